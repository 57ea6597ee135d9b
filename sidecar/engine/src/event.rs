//! What goes into an engine and what comes out: values, so that the shell and the simulator are
//! interchangeable.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use ipnet::IpNet;
use wire::{id::NodeId, packet::Kind};

use crate::{
    config::Config,
    fib::Fib,
    path::addr::{Arrival, Carrier, Hop, SocketId, TunnelId},
};

/// What happened.
#[derive(Debug)]
pub enum Input<'a> {
    /// A datagram that the fast path does not decide: handshakes, probes, WHOIS, STUN.
    Datagram { arrival: Arrival, bytes: &'a [u8] },
    /// A record of a session that the fast path opened: control, keepalive, fragment.
    Record { arrival: Arrival, session: u32, kind: Kind, plaintext: &'a [u8] },
    /// The first packet under a session authenticated.
    Heard { arrival: Arrival, session: u32 },
    /// An IP packet from the TUN to a peer without a session.
    Outbound { packet: &'a [u8], peer: NodeId },
    /// Traffic with a peer that was quiet began.
    Active { peer: NodeId },
    /// The UDP sockets there are, but for those that the engine asked for.
    Sockets(Vec<Socket>),
    /// What became of a wish for a socket, by its number; none if there is no descriptor or port left.
    SocketOpened { open: u32, socket: Option<Socket> },
    /// The addresses of the host where the underlay may run, after a change of them.
    Underlay(Vec<Interface>),
    /// Networks of the host where the underlay does not run: of containers, pods, other tunnels. Not imported.
    Networks(Vec<IpNet>),
    /// Addresses of a bootstrap entry, resolved.
    Bootstrap { index: usize, addrs: Vec<SocketAddr> },
    /// A stream connection is there, dialled by us (with the number of the dial) or accepted.
    TunnelUp { id: TunnelId, carrier: Carrier, remote: SocketAddr, dial: Option<u32> },
    /// A stream connection, or the attempt at one, ended.
    TunnelDown { id: Option<TunnelId>, dial: Option<u32> },
    /// A new desired state.
    Configure(Box<Config>),
    /// Asks a peer for an answer, engine to engine.
    Ping { id: u64, peer: NodeId },
    /// Seeks a direct path to a peer now, whatever the back-off.
    Punch { peer: NodeId },
    /// Leaves the network: withdraws all own LSAs and tells the sessions.
    Leave,
}

/// A UDP socket of the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Socket {
    pub id: SocketId,
    /// Where it is bound; the family counts, the address is usually unspecified.
    pub local: SocketAddr,
}

/// An interface of the host that may carry the underlay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mtu: u32,
    pub addresses: Vec<IpNet>,
}

/// Bytes to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transmit {
    pub hop: Hop,
    pub bytes: Vec<u8>,
    /// Time to live of the outer packet, for openers that shall not arrive.
    pub ttl: Option<u8>,
}

/// Things for the shell to do or to tell.
#[derive(Debug)]
pub enum Event {
    /// The fast path's new tables.
    Fib(Arc<Fib>),
    /// What the host shall have: the TUN's addresses, and prefixes routed into it.
    Host(Host),
    /// A packet held for a session may go now; the fast path encapsulates it.
    Release(Vec<u8>),
    /// An IP packet for the TUN that the engine put together (fragments, ICMP).
    Deliver(Vec<u8>),
    /// Connect a stream carrier; answered by `TunnelUp` or `TunnelDown` with the same number.
    Dial {
        dial: u32,
        carrier: Carrier,
        remote: SocketAddr,
    },
    /// This connection belongs to an authenticated peer; it may stay.
    Authenticated(TunnelId),
    CloseTunnel(TunnelId),
    /// Make an IPv4 socket with a port of its own, for one attempt or test; answered by `SocketOpened` with the same
    /// number.
    OpenSocket {
        open: u32,
    },
    /// Close one that was made so.
    CloseSocket(SocketId),
    /// An answer to a ping.
    Pong {
        id: u64,
        peer: NodeId,
        rtt: Duration,
        relayed: bool,
        hop: Hop,
    },
    /// To be kept across restarts.
    Persist(Persist),
    /// For people: logged, counted, shown by `easynet events`.
    Notice(Notice),
    /// Everything that `Leave` asked for has been handed to the shell.
    Left,
}

/// What a node keeps across restarts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Persist {
    /// The claimed IPv4 address and since when (unix seconds).
    pub claim: Option<(std::net::Ipv4Addr, u64)>,
    /// The highest boot number in use; the next start takes one above.
    pub boot: u32,
}

/// The state that the engine wants the host's network to have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    pub addresses: Vec<IpNet>,
    /// Routed into the TUN.
    pub routes: Vec<IpNet>,
    pub mtu: u16,
}

/// Something happened that a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    pub kind: NoticeKind,
    pub peer: Option<NodeId>,
    pub message: String,
    /// Further values by name.
    pub fields: Vec<(&'static str, String)>,
}

impl Notice {
    pub fn new(kind: NoticeKind, peer: Option<NodeId>, message: impl Into<String>) -> Self {
        Self { kind, peer, message: message.into(), fields: Vec::new() }
    }

    #[must_use]
    pub fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.fields.push((name, value.to_string()));
        self
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $text:literal,)*) => {
        /// The kinds of `easynet events`; a closed list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum NoticeKind {
            $($(#[$doc])* $variant,)*
        }

        impl NoticeKind {
            pub const ALL: &[Self] = &[$(Self::$variant),*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)*
                }
            }
        }
    };
}

kinds! {
    PeerUp = "peer_up",
    PeerDown = "peer_down",
    PathPrimary = "path_primary",
    PunchStarted = "punch_started",
    PunchEnded = "punch_ended",
    NatProfile = "nat_profile",
    RouteAdded = "route_added",
    RouteRemoved = "route_removed",
    ServerAttached = "server_attached",
    ServerLost = "server_lost",
    ConfigApplied = "config_applied",
    /// Whoever configures the node took a configuration back.
    ConfigRolledBack = "config_rolled_back",
    AddressClaimed = "address_claimed",
    AddressConflict = "address_conflict",
    KeyEpoch = "key_epoch",
    Revoked = "revoked",
}
