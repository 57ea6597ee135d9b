//! Configures sidecars: the server of the configuration feed.
//!
//! A sidecar dials, proves who it is, and keeps its session. What every member shall have stands in one [`Table`], which
//! is published whole; each session compares it with what it sent last and sends the difference. What members say comes
//! back as [`Report`]s, coalesced, so that a thousand flapping members are a thousand entries and no more.
//!
//! ```text
//!            watch: Arc<Table>                       Reports: one entry per member, newest wins
//!   plan ───────────────────────► session × 5,000 ──────────────────────────────────────────► status
//!                                    ▲ TCP, sealed (`session::feed`), calls of `rpc::feed`
//!                                    ▼
//!                                 sidecar
//! ```
//! [`identity`] is the root that sidecars know this server by, [`auth`] says who a caller is, [`member`] what a member is sent,
//! [`server`] accepts and runs the sessions, [`clock`] judges the callers' clocks, [`bounds`] what they say, [`reports`] is the way back.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use bytes::Bytes;
use ipnet::IpNet;
use session::issuer::Issuer;
use wire::id::NodeKeys;

pub mod auth;
pub mod bounds;
pub mod clock;
pub mod identity;
pub mod member;
pub mod reports;
pub mod server;

pub use self::{
    auth::Authenticator,
    reports::Reports,
    server::{Counts, Limits, Server},
};

/// What every member of every network shall have.
#[derive(Clone, Debug, Default)]
pub struct Table {
    /// By the name of the EasyNetwork.
    pub networks: BTreeMap<String, Network>,
    /// No network is missing here: whoever says to be of another one is of one that was deleted.
    pub whole: bool,
}

impl Table {
    /// Whether a member is to remove what it made, for it or its whole network is gone.
    pub fn retires(&self, network: &str, member: &MemberKey) -> bool {
        match self.networks.get(network) {
            Some(network) => network.members.get(member).is_some_and(|member| member.retire),
            None => self.whole,
        }
    }
}

/// One network.
#[derive(Clone, Debug)]
pub struct Network {
    pub issuer: Arc<Issuer>,
    /// Key epochs that members are given. Empty is the issuer's and the one before it, so that a change of keys reaches
    /// members one after the other without parting them.
    pub epochs: Vec<u32>,
    pub members: BTreeMap<MemberKey, Member>,
    /// Link-state records of the root (`Issuer::epoch_record` and the like) that members spread; all of them together are
    /// at most [`rpc::feed::MAX_RECORDS`] long.
    pub records: Arc<Vec<Bytes>>,
}

/// Who a member is in this cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberKey {
    /// The agent of a node, by the node's name.
    Node(String),
    Pod {
        namespace: String,
        name: String,
        uid: String,
    },
    /// A machine outside Kubernetes.
    External(String),
}

impl std::fmt::Display for MemberKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(name) => write!(f, "node {name}"),
            Self::Pod { namespace, name, .. } => write!(f, "pod {namespace}/{name}"),
            Self::External(name) => write!(f, "external {name}"),
        }
    }
}

/// What a member shall have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Grows with every change of `sidecar`.
    pub revision: u64,
    pub sidecar: Arc<config::Sidecar>,
    pub attributes: Attributes,
    /// It is a member no more, and removes everything that it made on its host.
    pub retire: bool,
    /// W3C trace context of the change that led here; empty is none.
    pub traceparent: String,
}

/// What the network lets a member say of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Mesh addresses; the automatic IPv6 address is added by the feed, which knows the member's key.
    pub addresses: Vec<IpAddr>,
    /// Prefixes that it may announce, as the mesh sees them.
    pub prefixes: Vec<IpNet>,
    pub hostname: String,
    pub groups: Vec<String>,
}

/// Something that a member said, or that is known of its session.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// Name of the EasyNetwork.
    pub network: String,
    pub member: MemberKey,
    pub event: Event,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// It has a session now, with these keys.
    Enrolled {
        keys: NodeKeys,
        from: IpAddr,
        version: String,
    },
    /// The revision is in force; it has keys of these epochs.
    Applied {
        revision: u64,
        epochs: Vec<u32>,
    },
    /// The revision is not in force, or no more; the one before stays.
    Failed {
        revision: u64,
        error: String,
        rolled_back: bool,
    },
    Status(Box<rpc::feed::Status>),
    /// Its clock is so many seconds ahead of this machine's; 0 is close enough.
    Clock {
        ahead_s: i64,
    },
    /// It keeps on disk that it is retired.
    Retired,
    /// Its session ended, and it has no other.
    Gone,
}
