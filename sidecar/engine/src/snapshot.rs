//! What a node looks like right now, for people and metrics; taken on demand, decides nothing.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use wire::{
    endpoint::{Candidate, NatProfile},
    id::{NetworkId, NodeId},
    lsa::ClusterBody,
};

use crate::{
    fib::TrafficCounts,
    path::addr::{Carrier, Hop},
};

/// A node, whole.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub node: NodeId,
    pub network: NetworkId,
    pub addresses: Vec<IpNet>,
    pub servers: Vec<Server>,
    /// Members to which links are kept, for whichever end's sake.
    pub links: Vec<NodeId>,
    pub peers: Vec<Peer>,
    pub routes: Vec<Route>,
    pub nat: NatProfile,
    pub nat_tested: Option<Instant>,
    pub candidates: Vec<Candidate>,
    /// What is claimed twice, for as long as it is.
    pub conflicts: Vec<String>,
    /// Another node runs with this node's key, in words.
    pub duplicate_key: Option<String>,
    pub issued: Issued,
    pub lsdb_entries: usize,
    /// Equal digests are equal databases.
    pub lsdb_digest: u64,
    pub spf_runs: u64,
    /// What passed directly, and over relays, with members that are gone.
    pub gone: (TrafficCounts, TrafficCounts),
    /// Deadlines, sessions, handshakes and held packets alive, for the leak test.
    pub live: Live,
}

/// What the network's root says, and how far this node and the others follow.
#[derive(Clone, Debug, Default)]
pub struct Issued {
    /// Key epochs that this node has, ascending.
    pub epochs: Vec<u32>,
    /// The epoch that this node seals with.
    pub sealing: u32,
    /// The epoch of the highest EPOCH record.
    pub seen: Option<u32>,
    /// Members, and those whose own records are sealed with the epoch that this node seals with.
    pub members: usize,
    pub members_on_epoch: usize,
    /// The CLUSTER records.
    pub clusters: Vec<ClusterBody>,
    /// When this node's certificate runs out, in unix seconds.
    pub certificate_ends: Option<u64>,
}

/// Counts of live objects.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Live {
    pub timers: usize,
    pub peers: usize,
    pub sessions: usize,
    pub handshakes: usize,
    pub held_packets: usize,
    pub lsas: usize,
    pub indices: usize,
    pub punches: usize,
    pub pulls: usize,
}

/// A public server that this node knows.
#[derive(Clone, Debug)]
pub struct Server {
    pub bootstrap: usize,
    pub node: Option<NodeId>,
    pub state: ServerState,
    /// A public server, not a member.
    pub is_server: bool,
    pub remote: Option<SocketAddr>,
    pub rtt: Option<Duration>,
    /// Its clock less ours, in seconds.
    pub clock_offset_s: Option<i64>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerState {
    Resolving,
    Connecting,
    Attached,
    Refused(String),
    /// It answers, or should, and why that leads nowhere.
    Failing(String),
}

/// A member of the network as seen from here.
#[derive(Clone, Debug)]
pub struct Peer {
    pub node: NodeId,
    pub hostname: String,
    pub version: String,
    pub addresses: Vec<IpNet>,
    pub exports: Vec<IpNet>,
    pub state: PeerState,
    pub hop: Option<Hop>,
    /// The relay that carries its traffic.
    pub via: Option<NodeId>,
    pub rtt: Option<Duration>,
    pub loss: f64,
    /// What passed directly, and over relays.
    pub direct: TrafficCounts,
    pub relayed: TrafficCounts,
    pub profile: Option<NatProfile>,
    pub since: Option<Instant>,
    pub last_error: Option<String>,
    pub paths: Vec<Path>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerState {
    Direct,
    Relayed,
    /// Reachable over a relay; no session, since there is no traffic.
    Idle,
    Connecting,
    Unreachable,
}

/// One way to a peer.
#[derive(Clone, Debug)]
pub struct Path {
    pub state: PathState,
    pub carrier: Carrier,
    pub hop: Hop,
    pub via: Option<NodeId>,
    pub rtt: Option<Duration>,
    pub rtt_var: Option<Duration>,
    pub loss: f64,
    pub mtu: Option<u16>,
    pub score: Option<Duration>,
    pub since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PathState {
    Primary,
    Warm,
    Probing,
    Suspect,
}

/// A row of the RIB.
#[derive(Clone, Debug)]
pub struct Route {
    pub prefix: IpNet,
    pub node: NodeId,
    pub via: Option<NodeId>,
    pub metric: u32,
    pub source: RouteSource,
    pub state: RouteState,
    /// Empty if the route is installed.
    pub reason: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteSource {
    Lsa,
    Static,
    Claim,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteState {
    Installed,
    Shadowed,
    Rejected,
}
