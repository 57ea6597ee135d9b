//! What a node is told: its identity, its network, and what it may do.

use std::{net::Ipv4Addr, sync::Arc};

use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use session::{identity::Identity, membership::Membership};
use wire::{endpoint::Transport, id::NodeKeys};

/// The whole desired state of a node; handed over whole, the engine computes the difference.
#[derive(Clone, Debug)]
pub struct Config {
    pub identity: Arc<Identity>,
    /// Certificate, attributes, PSK and group key by epoch: data, whoever issued them.
    pub membership: Arc<Membership>,
    /// Link-state records of the network's root, for this node to spread: encoded `wire::lsa` containers.
    pub records: Vec<Bytes>,
    /// Grows with every start of this node.
    pub boot: u32,
    pub hostname: String,
    /// Of the software, as peers see it.
    pub version: String,
    pub ipv4: Ipv4Policy,
    pub ipv6: Ipv6Policy,
    /// Subnets reachable through this node, as the mesh sees them.
    pub exports: Vec<IpNet>,
    /// The same subnets as this host sees them, where that is something else (1:1 maps).
    pub behind: Vec<IpNet>,
    pub imports: Imports,
    /// Prefixes that are never imported, whoever announces them, beside the networks of the host itself.
    pub protected: Vec<IpNet>,
    /// Where to start, by number; the shell resolves names and says so with
    /// [`crate::event::Input::Bootstrap`].
    pub bootstrap: Vec<Bootstrap>,
    /// MTU of the TUN, in bytes of an IP packet.
    pub mtu: u16,
    /// Carries other members' traffic.
    pub transit: bool,
    pub p2p: P2p,
    pub punch: PunchMode,
    /// AEADs this machine offers, a sum of `wire::control::AEAD_` bits.
    pub aead: u32,
    /// Unix seconds at the engine's start; certificates and claims are judged by it and by time passed.
    pub unix_at_start: u64,
}

/// Which of the subnets that others announce are taken; the addresses of members always are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Imports {
    #[default]
    All,
    /// Those within one of these.
    Listed(Vec<IpNet>),
    None,
}

/// Which IPv4 address the node has in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv4Policy {
    Off,
    Fixed(Ipv4Net),
    /// Claims one in `range`; `kept` is the claim of an earlier run and when it began (unix seconds).
    Auto {
        range: Ipv4Net,
        kept: Option<(Ipv4Addr, u64)>,
    },
}

/// Which IPv6 address the node has in the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ipv6Policy {
    Off,
    Fixed(Ipv6Net),
    /// From the network's id and the node's key.
    Auto,
}

/// A place to start from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    pub transport: Transport,
    /// Pinned by `?k=`; else asked for by WHOIS.
    pub keys: Option<NodeKeys>,
}

/// Whether direct paths are sought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum P2p {
    On,
    RelayOnly,
}

/// How much effort goes into a direct path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PunchMode {
    Off,
    Light,
    Full,
}
