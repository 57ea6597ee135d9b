//! What the look-at commands show: the JSON of the contract, field by field. Absent is `null`, never a missing key.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::{Instant, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use config::PassedOver;
use engine::{
    path::addr::{Carrier, Hop},
    snapshot::{self, PathState, PeerState, RouteSource, RouteState, ServerState},
};
use ipnet::IpNet;
use netio::{
    driver::{Recorded, View},
    udp::UdpSockets,
};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use wire::{
    endpoint::{Allocation, Behaviour, NatProfile, V6},
    id::NodeId,
};

use crate::source::feed::Health;

/// Facts of the process that the engine does not know.
#[derive(Debug)]
pub struct Facts {
    pub network: String,
    pub hostname: String,
    pub state_dir: PathBuf,
    /// The TUN device, or why there is none.
    pub tun: ArcSwap<Result<Tun, String>>,
    pub listeners: Vec<Listener>,
    pub sockets: Arc<UdpSockets>,
    pub started: Instant,
    pub started_at: SystemTime,
    pub source: String,
    /// The session with the configuration server, if there is to be one.
    pub server: Option<watch::Receiver<Health>>,
    /// What this version does not know of what the configuration server delivered, if there is one.
    pub passed_over: Option<watch::Receiver<Vec<PassedOver>>>,
    pub applied: ArcSwap<Applied>,
    /// Chains of others that drop what is forwarded; `None` until looked at, or if that does not matter here.
    pub forward_drops: ArcSwap<Option<Vec<String>>>,
}

/// The configuration in force.
#[derive(Clone, Debug)]
pub struct Applied {
    /// 1 at the start, one more with every change.
    pub revision: u64,
    pub at: SystemTime,
    /// Key, value and origin of everything.
    pub settings: serde_json::Value,
    /// Where the node starts, in the order of the configuration.
    pub starts: Vec<Start>,
}

/// A configured peer or server.
#[derive(Clone, Debug)]
pub struct Start {
    /// Without its key, which only makes lines long.
    pub url: String,
    pub peer: config::PeerUrl,
}

impl Start {
    /// Its key stands in the configuration.
    pub fn is_pinned(&self) -> bool {
        self.peer.keys.is_some()
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Tun {
    pub name: String,
    pub mtu: u16,
    pub queues: u32,
    pub offload: Offload,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Offload {
    pub checksum: bool,
    pub tcp: bool,
    pub udp: bool,
    pub udp_gso: bool,
    pub udp_gro: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Listener {
    pub url: String,
    pub state: String,
    pub error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    pub network: String,
    pub network_id: String,
    pub node_id: String,
    pub hostname: String,
    pub version: String,
    pub started_at: String,
    pub uptime_s: u64,
    pub ready: bool,
    pub ipv4: Option<String>,
    pub ipv6: Option<String>,
    pub tun: Option<Tun>,
    pub listeners: Vec<Listener>,
    pub servers: Vec<Server>,
    pub peers: PeerCounts,
    pub config: Config,
    pub nat: Nat,
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Server {
    pub url: String,
    pub node_id: Option<String>,
    pub state: String,
    pub rtt_ms: Option<f64>,
    pub message: Option<String>,
    pub clock_offset_s: Option<i64>,
    /// Its key stands in the configuration (`?k=`).
    pub pinned: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerCounts {
    pub total: usize,
    pub direct: usize,
    pub relayed: usize,
    pub idle: usize,
    pub connecting: usize,
    pub unreachable: usize,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Config {
    pub source: String,
    pub revision: u64,
    pub applied_at: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub node_id: String,
    pub hostname: String,
    pub ipv4: Option<String>,
    pub ipv6: Option<String>,
    pub state: String,
    pub carrier: Option<String>,
    pub remote: Option<String>,
    pub via: Option<String>,
    pub rtt_ms: Option<f64>,
    pub loss: f64,
    pub tx_bytes: u64,
    pub rx_bytes: u64,
    pub nat: Option<String>,
    pub version: String,
    pub exports: Vec<String>,
    pub since: Option<String>,
    pub last_error: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Path {
    pub id: usize,
    pub state: String,
    pub carrier: String,
    pub local: Option<String>,
    pub remote: String,
    pub relayed: bool,
    pub via: Option<String>,
    pub rtt_ms: Option<f64>,
    pub rtt_var_ms: Option<f64>,
    pub loss: f64,
    pub mtu: Option<u16>,
    pub score: Option<f64>,
    pub since: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Route {
    pub prefix: String,
    pub node_id: String,
    pub hostname: Option<String>,
    pub via: Option<String>,
    pub metric: Option<u32>,
    pub source: String,
    pub state: String,
    pub reason: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Node {
    pub node_id: String,
    pub hostname: String,
    pub version: String,
    pub os: String,
    pub arch: String,
    pub addresses: Vec<String>,
    pub interfaces: Vec<Interface>,
    pub public_addresses: Vec<String>,
    pub listeners: Vec<Listener>,
    pub nat: Nat,
    pub capabilities: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Interface {
    pub name: String,
    pub mtu: u32,
    pub addresses: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Nat {
    pub v4: NatV4,
    pub v6: NatV6,
    pub udp: String,
    pub portmap: Option<String>,
    pub tested_at: Option<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NatV4 {
    pub mapping: String,
    pub filtering: String,
    pub allocation: AllocationView,
    pub hairpin: Option<bool>,
    pub lifetime_s: Option<u32>,
    pub external: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AllocationView {
    pub kind: String,
    pub step: Option<u32>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NatV6 {
    pub kind: String,
    pub external: Vec<String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stats {
    pub packets: Directions,
    pub bytes: Directions,
    pub drops: std::collections::BTreeMap<String, u64>,
    pub queues: std::collections::BTreeMap<String, Queue>,
    pub memory: Memory,
    pub lsdb_entries: usize,
    pub spf_runs: u64,
    /// Objects alive, by kind: what came and went leaves none behind.
    pub live: std::collections::BTreeMap<String, usize>,
}

#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Directions {
    pub tx: Kinds,
    pub rx: Kinds,
}

/// By kind of path.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Kinds {
    pub direct: u64,
    pub relayed: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Queue {
    pub len: usize,
    pub cap: usize,
    pub dropped: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub rss_bytes: Option<u64>,
    pub allocated_bytes: Option<u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Event {
    pub number: u64,
    pub at: String,
    pub kind: String,
    pub peer: Option<String>,
    pub message: String,
    pub fields: std::collections::BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Pong {
    pub peer: String,
    pub rtt_ms: f64,
    pub relayed: bool,
    pub remote: String,
}

/// RFC 3339, in UTC, to the millisecond.
pub fn rfc3339(at: SystemTime) -> String {
    humantime::format_rfc3339_millis(at).to_string()
}

impl Facts {
    /// The configuration in force.
    pub fn applied(&self) -> Guard<Arc<Applied>> {
        self.applied.load()
    }

    fn at(&self, instant: Instant) -> String {
        rfc3339(self.started_at + instant.saturating_duration_since(self.started))
    }

    pub fn status(&self, view: &View) -> Status {
        let snapshot = &view.snapshot;
        let address = |v4: bool| {
            snapshot
                .addresses
                .iter()
                .map(IpNet::addr)
                .find(|addr| addr.is_ipv4() == v4)
                .map(|addr| addr.to_string())
        };
        let applied = self.applied();
        let servers: Vec<Server> =
            snapshot.servers.iter().map(|server| server_row(server, &applied, view)).collect();
        let attached =
            servers.is_empty() || servers.iter().any(|server| server.state == "attached");
        Status {
            network: self.network.clone(),
            network_id: snapshot.network.to_string(),
            node_id: snapshot.node.to_string(),
            hostname: self.hostname.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: rfc3339(self.started_at),
            uptime_s: view.now.saturating_duration_since(self.started).as_secs(),
            ready: view.host.applied && attached,
            ipv4: address(true),
            ipv6: address(false),
            tun: (**self.tun.load()).clone().ok(),
            listeners: self.listeners.clone(),
            conditions: self.conditions(view, &servers),
            servers,
            peers: counts(&snapshot.peers),
            config: Config {
                source: self.source.clone(),
                revision: applied.revision,
                applied_at: rfc3339(applied.at),
            },
            nat: self.nat(snapshot),
        }
    }

    /// Where a hop's packets leave: the socket's address, unspecified where it is bound to all.
    fn local(&self, hop: &Hop) -> Option<String> {
        match *hop {
            Hop::Udp { socket, .. } => {
                self.sockets.table().get(&socket).map(|socket| socket.local().to_string())
            }
            Hop::Tunnel { .. } => None,
        }
    }

    /// What this machine, and this node's role, can do.
    fn capabilities(&self) -> Vec<String> {
        let mut names = vec!["chacha20-poly1305"];
        if crate::app::aead() & wire::control::AEAD_AES != 0 {
            names.push("aes-256-gcm");
        }
        if let Ok(tun) = &**self.tun.load() {
            let offload = &tun.offload;
            names.extend(
                [
                    (offload.checksum, "tun-checksum"),
                    (offload.tcp, "tun-tso"),
                    (offload.udp, "tun-uso"),
                    (offload.udp_gso, "udp-gso"),
                    (offload.udp_gro, "udp-gro"),
                ]
                .into_iter()
                .filter_map(|(has, name)| has.then_some(name)),
            );
        }
        let applied = self.applied();
        let rows = applied.settings.as_array().into_iter().flatten();
        if rows.into_iter().any(|row| row["key"] == "roles.transit" && row["value"] == true) {
            names.push("transit");
        }
        names.into_iter().map(str::to_owned).collect()
    }

    pub fn peers(&self, view: &View) -> Vec<Peer> {
        view.snapshot.peers.iter().map(|peer| self.peer(peer)).collect()
    }

    fn peer(&self, peer: &snapshot::Peer) -> Peer {
        let address = |v4: bool| {
            peer.addresses
                .iter()
                .map(IpNet::addr)
                .find(|addr| addr.is_ipv4() == v4)
                .map(|addr| addr.to_string())
        };
        Peer {
            node_id: peer.node.to_string(),
            hostname: peer.hostname.clone(),
            ipv4: address(true),
            ipv6: address(false),
            state: peer_state(peer.state).to_owned(),
            carrier: peer.hop.map(|hop| carrier(hop.carrier()).to_owned()),
            remote: peer.hop.map(|hop| hop.remote().to_string()),
            via: peer.via.map(|via| via.to_string()),
            rtt_ms: peer.rtt.map(millis),
            loss: round(peer.loss),
            tx_bytes: peer.direct.tx_bytes + peer.relayed.tx_bytes,
            rx_bytes: peer.direct.rx_bytes + peer.relayed.rx_bytes,
            nat: peer.profile.as_ref().map(|profile| {
                format!(
                    "{}/{}",
                    profile.mapping().mapping_str(),
                    profile.filtering().filtering_str()
                )
            }),
            version: peer.version.clone(),
            exports: peer.exports.iter().map(ToString::to_string).collect(),
            since: peer.since.map(|since| self.at(since)),
            last_error: peer.last_error.clone(),
        }
    }

    /// The paths of one peer, or nothing if nobody has that name.
    pub fn paths(&self, view: &View, name: &str) -> Option<Vec<Path>> {
        let peer = find(&view.snapshot, name)?;
        Some(
            peer.paths
                .iter()
                .enumerate()
                .map(|(id, path)| Path {
                    id,
                    state: path_state(path.state).to_owned(),
                    carrier: carrier(path.carrier).to_owned(),
                    local: self.local(&path.hop),
                    remote: path.hop.remote().to_string(),
                    relayed: path.via.is_some(),
                    via: path.via.map(|via| via.to_string()),
                    rtt_ms: path.rtt.map(millis),
                    rtt_var_ms: path.rtt_var.map(millis),
                    loss: round(path.loss),
                    mtu: path.mtu,
                    score: path.score.map(millis),
                    since: self.at(path.since),
                })
                .collect(),
        )
    }

    pub fn routes(&self, view: &View) -> Vec<Route> {
        let hostname = |node: NodeId| {
            view.snapshot
                .peers
                .iter()
                .find(|peer| peer.node == node)
                .map(|peer| peer.hostname.clone())
        };
        view.snapshot
            .routes
            .iter()
            .map(|route| Route {
                prefix: route.prefix.to_string(),
                node_id: route.node.to_string(),
                hostname: hostname(route.node),
                via: route.via.map(|via| via.to_string()),
                metric: Some(route.metric).filter(|metric| *metric != u32::MAX),
                source: match route.source {
                    RouteSource::Lsa => "lsa",
                    RouteSource::Static => "static",
                    RouteSource::Claim => "claim",
                }
                .to_owned(),
                state: match route.state {
                    RouteState::Installed => "installed",
                    RouteState::Shadowed => "shadowed",
                    RouteState::Rejected => "rejected",
                }
                .to_owned(),
                reason: Some(route.reason.to_string()).filter(|reason| !reason.is_empty()),
            })
            .collect()
    }

    pub fn node(&self, view: &View) -> Node {
        let nat = self.nat(&view.snapshot);
        let public = nat.v4.external.iter().chain(&nat.v6.external).cloned().collect();
        Node {
            node_id: view.snapshot.node.to_string(),
            hostname: self.hostname.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            addresses: view.snapshot.addresses.iter().map(ToString::to_string).collect(),
            interfaces: view
                .interfaces
                .list
                .iter()
                .map(|interface| Interface {
                    name: interface.name.clone(),
                    mtu: interface.mtu,
                    addresses: interface.addresses.iter().map(ToString::to_string).collect(),
                })
                .collect(),
            public_addresses: public,
            listeners: self.listeners.clone(),
            nat,
            capabilities: self.capabilities(),
        }
    }

    pub fn nat(&self, snapshot: &snapshot::Snapshot) -> Nat {
        let profile = &snapshot.nat;
        let external = |v4: bool| {
            profile
                .external
                .iter()
                .filter_map(|packed| <[u8; 16]>::try_from(packed.as_slice()).ok())
                .map(|octets| std::net::Ipv6Addr::from(octets).to_canonical())
                .filter(|ip| ip.is_ipv4() == v4)
                .map(|ip| ip.to_string())
                .collect::<Vec<_>>()
        };
        let reflexive_v6 = snapshot
            .candidates
            .iter()
            .filter(|candidate| {
                candidate.kind == wire::endpoint::CandidateKind::Reflexive
                    && candidate.addr.is_ipv6()
            })
            .map(|candidate| candidate.addr.ip().to_string());
        Nat {
            v4: NatV4 {
                mapping: profile.mapping().mapping_str().to_owned(),
                filtering: profile.filtering().filtering_str().to_owned(),
                allocation: allocation(profile),
                hairpin: profile.hairpin,
                lifetime_s: Some(profile.lifetime_s).filter(|lifetime| *lifetime > 0),
                external: external(true),
            },
            v6: NatV6 {
                kind: match profile.v6() {
                    V6::None => "none",
                    V6::Filtered => "filtered",
                    V6::Open => "open",
                }
                .to_owned(),
                external: reflexive_v6.collect(),
            },
            udp: if profile.udp_blocked { "blocked" } else { "ok" }.to_owned(),
            portmap: None,
            tested_at: snapshot.nat_tested.map(|at| self.at(at)),
        }
    }

    pub fn stats(&self, view: &View) -> Stats {
        let (direct, relayed) =
            view.snapshot.peers.iter().fold(view.snapshot.gone, |(direct, relayed), peer| {
                (direct.plus(peer.direct), relayed.plus(peer.relayed))
            });
        let by_direction = |direct_tx, relayed_tx, direct_rx, relayed_rx| Directions {
            tx: Kinds { direct: direct_tx, relayed: relayed_tx },
            rx: Kinds { direct: direct_rx, relayed: relayed_rx },
        };
        let (punts, data) = view.punted;
        let dropped = |name: &str| {
            view.drops
                .iter()
                .find(|(reason, _)| reason.as_str() == name)
                .map_or(0, |(_, count)| *count)
        };
        let queue = |len, cap, dropped| Queue { len, cap, dropped };
        Stats {
            packets: by_direction(
                direct.tx_packets,
                relayed.tx_packets,
                direct.rx_packets,
                relayed.rx_packets,
            ),
            bytes: by_direction(
                direct.tx_bytes,
                relayed.tx_bytes,
                direct.rx_bytes,
                relayed.rx_bytes,
            ),
            drops: view
                .drops
                .iter()
                .filter(|(_, count)| *count > 0)
                .map(|(reason, count)| (reason.as_str().to_owned(), *count))
                .collect(),
            queues: [
                (
                    "punt_control".to_owned(),
                    queue(punts, netio::worker::punt::CONTROL_BOUND, dropped("punt_full")),
                ),
                (
                    "punt_data".to_owned(),
                    queue(data, netio::worker::punt::DATA_BOUND, dropped("punt_full")),
                ),
            ]
            .into(),
            memory: Memory { rss_bytes: rss(), allocated_bytes: allocated() },
            lsdb_entries: view.snapshot.lsdb_entries,
            spf_runs: view.snapshot.spf_runs,
            live: live(&view.snapshot.live),
        }
    }
}

impl Status {
    /// Of a process in which no node runs, for a reason that is no fault.
    pub fn lobby(hostname: String, node_id: Option<String>, reason: &str, message: &str) -> Self {
        let now = rfc3339(SystemTime::now());
        let unknown = || "unknown".to_owned();
        Self {
            network: String::new(),
            network_id: String::new(),
            node_id: node_id.unwrap_or_default(),
            hostname,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: now.clone(),
            uptime_s: 0,
            ready: true,
            ipv4: None,
            ipv6: None,
            tun: None,
            listeners: Vec::new(),
            servers: Vec::new(),
            peers: PeerCounts::default(),
            config: Config { source: String::new(), revision: 0, applied_at: now },
            nat: Nat {
                v4: NatV4 {
                    mapping: unknown(),
                    filtering: unknown(),
                    allocation: AllocationView { kind: unknown(), step: None },
                    hairpin: None,
                    lifetime_s: None,
                    external: Vec::new(),
                },
                v6: NatV6 { kind: unknown(), external: Vec::new() },
                udp: unknown(),
                portmap: None,
                tested_at: None,
            },
            conditions: vec![condition("Active", false, reason, message)],
        }
    }
}

fn live(live: &snapshot::Live) -> std::collections::BTreeMap<String, usize> {
    let snapshot::Live {
        timers,
        peers,
        sessions,
        handshakes,
        held_packets,
        lsas,
        indices,
        punches,
        pulls,
    } = *live;
    [
        ("timers", timers),
        ("peers", peers),
        ("sessions", sessions),
        ("handshakes", handshakes),
        ("held_packets", held_packets),
        ("lsas", lsas),
        ("indices", indices),
        ("punches", punches),
        ("pulls", pulls),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), count))
    .collect()
}

/// Whether people mean this node by `name`: its host name, one of its addresses, or at least so much of its id.
fn is_called(name: &str, hostname: &str, addresses: &[IpNet], node: &str) -> bool {
    hostname == name
        || addresses.iter().any(|net| net.addr().to_string() == name)
        || (name.len() >= SHORTEST_ID && node.starts_with(name))
}

/// A peer by host name, mesh address or the beginning of its id.
pub fn find<'a>(snapshot: &'a snapshot::Snapshot, name: &str) -> Option<&'a snapshot::Peer> {
    let is_it = |peer: &&snapshot::Peer| {
        is_called(name, &peer.hostname, &peer.addresses, &peer.node.to_string())
    };
    snapshot.peers.iter().find(is_it)
}

/// Whether a name, address or the beginning of an id is this node's own.
pub fn is_own(facts: &Facts, snapshot: &snapshot::Snapshot, name: &str) -> bool {
    is_called(name, &facts.hostname, &snapshot.addresses, &snapshot.node.to_string())
}

impl Peer {
    /// Whether people mean this peer by `name`.
    pub fn is_called(&self, name: &str) -> bool {
        let addresses = [&self.ipv4, &self.ipv6].into_iter().flatten();
        let addresses: Vec<IpNet> =
            addresses.filter_map(|text| text.parse::<IpAddr>().ok()).map(IpNet::from).collect();
        is_called(name, &self.hostname, &addresses, &self.node_id)
    }
}

pub fn event(recorded: &Recorded) -> Event {
    Event {
        number: recorded.number,
        at: rfc3339(recorded.at),
        kind: recorded.notice.kind.as_str().to_owned(),
        peer: recorded.notice.peer.map(|peer| peer.to_string()),
        message: recorded.notice.message.clone(),
        fields: recorded
            .notice
            .fields
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()))
            .collect(),
    }
}

fn server_row(server: &snapshot::Server, applied: &Applied, view: &View) -> Server {
    let start = applied.starts.get(server.bootstrap);
    let (state, message) = match &server.state {
        ServerState::Resolving => {
            let why = view.unresolved.get(&server.bootstrap);
            ("resolving", why.map(|why| format!("its name does not resolve: {why}")))
        }
        ServerState::Connecting
            if server.node.is_some() && !start.is_some_and(Start::is_pinned) =>
        {
            let message = "says who it is, but does not accept this node: its network or secret is another one";
            ("connecting", Some(message.to_owned()))
        }
        ServerState::Connecting => ("connecting", None),
        ServerState::Attached => ("attached", None),
        ServerState::Refused(why) => ("refused", Some(why.clone())),
        ServerState::Failing(why) => ("failing", Some(why.clone())),
    };
    Server {
        url: start.map(|start| start.url.clone()).unwrap_or_default(),
        node_id: server.node.map(|node| node.to_string()),
        state: state.to_owned(),
        rtt_ms: server.rtt.map(millis),
        message,
        clock_offset_s: server.clock_offset_s,
        pinned: start.is_some_and(Start::is_pinned),
    }
}

impl Facts {
    fn conditions(&self, view: &View, servers: &[Server]) -> Vec<Condition> {
        let mut conditions = vec![
            connected(servers, view),
            host(view),
            addresses(view),
            key(view),
            self.listening(),
        ];
        conditions.push(match &**self.tun.load() {
            Ok(tun) => condition("TunOpen", true, "Open", format!("{} carries packets", tun.name)),
            Err(why) => condition("TunOpen", false, "Missing", why.clone()),
        });
        let unmarked = self.sockets.table().values().any(|socket| socket.is_unmarked());
        conditions.push(if unmarked {
            let message = "The kernel refused the mark on a socket: packets of the underlay may loop into the mesh";
            condition("SocketsMarked", false, "Refused", message)
        } else {
            condition("SocketsMarked", true, "Marked", "The underlay stays out of the mesh")
        });
        match &**self.forward_drops.load() {
            None => {}
            Some(chains) if chains.is_empty() => {
                let message = "No other firewall table drops what is forwarded";
                conditions.push(condition("ForwardingOpen", true, "Open", message));
            }
            Some(chains) => {
                let message = format!(
                    "Firewall chains of others drop forwarded packets: {}; exports are reached only if they let them pass",
                    chains.join(", ")
                );
                conditions.push(condition("ForwardingOpen", false, "Dropped", message));
            }
        }
        conditions.extend(self.configured());
        conditions.extend(self.known());
        let offset = servers
            .iter()
            .filter_map(|server| server.clock_offset_s)
            .min_by_key(|offset| offset.abs());
        if let Some(offset) = offset {
            conditions.push(if offset.abs() > CLOCK_TOLERANCE_S {
                let message = format!(
                    "This machine's clock and those of the configured peers differ by {offset} s"
                );
                condition("ClockRight", false, "Differs", message)
            } else {
                condition("ClockRight", true, "Agrees", "This machine's clock agrees with others")
            });
        }
        conditions
    }

    fn configured(&self) -> Option<Condition> {
        let health = self.server.as_ref()?.borrow();
        let kind = "ConfigServerReached";
        Some(match (&health.member, &health.error) {
            (Some(member), _) => {
                let message = format!("The configuration server knows this node as {member}");
                condition(kind, true, "Reached", message)
            }
            (None, Some(error)) => condition(kind, false, "NotReached", error.clone()),
            (None, None) => condition(kind, false, "Dialling", "No answer yet"),
        })
    }

    fn known(&self) -> Option<Condition> {
        let kind = "ConfigKnown";
        let passed_over = self.passed_over.as_ref()?.borrow();
        if passed_over.is_empty() {
            let message = "This version knows all of its configuration";
            return Some(condition(kind, true, "Known", message));
        }
        let named: Vec<String> =
            passed_over.iter().take(PASSED_OVER_NAMED).map(short_name).collect();
        let more = match passed_over.len().saturating_sub(PASSED_OVER_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let message = format!(
            "This version, {}, does not know {}{more} of its configuration, and passes it over: run the version of its configuration server",
            env!("CARGO_PKG_VERSION"),
            named.join(", ")
        );
        Some(condition(kind, false, "PassedOver", message))
    }

    fn listening(&self) -> Condition {
        let failed: Vec<String> = self
            .listeners
            .iter()
            .filter_map(|listener| Some(format!("{}: {}", listener.url, listener.error.as_ref()?)))
            .collect();
        if failed.is_empty() {
            return condition("Listening", true, "Bound", "Every listener is bound");
        }
        condition("Listening", false, "NotBound", failed.join("; "))
    }
}

/// Parts of a configuration that a sentence names.
const PASSED_OVER_NAMED: usize = 3;
/// Bytes of one of them.
const PASSED_OVER_LEN: usize = 128;

fn short_name(part: &PassedOver) -> String {
    let mut name = part.to_string();
    name.truncate(name.floor_char_boundary(PASSED_OVER_LEN));
    name
}

/// So many characters of a node's id stand for it.
const SHORTEST_ID: usize = 8;

/// Clocks may differ by this much, in seconds, before it is worth a word.
pub const CLOCK_TOLERANCE_S: i64 = 60;

fn condition(kind: &str, status: bool, reason: &str, message: impl Into<String>) -> Condition {
    Condition { kind: kind.to_owned(), status, reason: reason.to_owned(), message: message.into() }
}

fn connected(servers: &[Server], view: &View) -> Condition {
    let counts = counts(&view.snapshot.peers);
    let reached = counts.total - counts.unreachable;
    let attached = servers.iter().filter(|server| server.state == "attached").count();
    match (servers.len(), attached) {
        (0, _) if reached > 0 => {
            condition("Connected", true, "Joined", format!("{reached} members have come here"))
        }
        (0, _) => condition("Connected", true, "Alone", "No peer or server is configured"),
        (_, 0) => {
            let why = servers.iter().find_map(|server| {
                server.message.as_ref().map(|message| format!("{} {message}", server.url))
            });
            let message =
                why.unwrap_or_else(|| "No configured peer or server answers yet".to_owned());
            condition("Connected", false, "NotReached", message)
        }
        (all, some) => condition("Connected", true, "Attached", format!("{some} of {all} answer")),
    }
}

fn host(view: &View) -> Condition {
    if view.host.applied {
        return condition("HostConfigured", true, "Applied", "Addresses and routes are in place");
    }
    let problems = &view.host.problems;
    let message = if problems.is_empty() {
        "Addresses and routes are not in place yet".to_owned()
    } else {
        problems.join("; ")
    };
    condition(
        "HostConfigured",
        false,
        if problems.is_empty() { "Pending" } else { "Incomplete" },
        message,
    )
}

fn addresses(view: &View) -> Condition {
    let conflicts = &view.snapshot.conflicts;
    if conflicts.is_empty() {
        let message = "No address or prefix is announced twice";
        return condition("AddressConflictFree", true, "None", message);
    }
    condition("AddressConflictFree", false, "Overlap", conflicts.join("; "))
}

fn key(view: &View) -> Condition {
    match &view.snapshot.duplicate_key {
        None => condition("KeyUnique", true, "Unique", "No other node runs with this node's key"),
        Some(message) => condition("KeyUnique", false, "DuplicateKey", message.clone()),
    }
}

fn counts(peers: &[snapshot::Peer]) -> PeerCounts {
    let mut counts = PeerCounts { total: peers.len(), ..PeerCounts::default() };
    for peer in peers {
        match peer.state {
            PeerState::Direct => counts.direct += 1,
            PeerState::Relayed => counts.relayed += 1,
            PeerState::Idle => counts.idle += 1,
            PeerState::Connecting => counts.connecting += 1,
            PeerState::Unreachable => counts.unreachable += 1,
        }
    }
    counts
}

fn peer_state(state: PeerState) -> &'static str {
    match state {
        PeerState::Direct => "direct",
        PeerState::Relayed => "relayed",
        PeerState::Idle => "idle",
        PeerState::Connecting => "connecting",
        PeerState::Unreachable => "unreachable",
    }
}

fn path_state(state: PathState) -> &'static str {
    match state {
        PathState::Primary => "primary",
        PathState::Warm => "warm",
        PathState::Probing => "probing",
        PathState::Suspect => "suspect",
    }
}

fn carrier(carrier: Carrier) -> &'static str {
    match carrier {
        Carrier::Udp => "udp",
        Carrier::Tcp => "tcp",
    }
}

fn allocation(profile: &NatProfile) -> AllocationView {
    let known = profile.mapping() != Behaviour::None;
    let (kind, step) = match profile.allocation() {
        _ if !known => ("none", None),
        Allocation::Unknown => ("unknown", None),
        Allocation::Preserve => ("preserve", None),
        Allocation::Sequential => ("sequential", Some(profile.allocation_second)),
        Allocation::Block => ("block", None),
        Allocation::Random => ("random", None),
    };
    AllocationView { kind: kind.to_owned(), step }
}

/// Milliseconds with two digits behind the point.
pub fn millis(time: std::time::Duration) -> f64 {
    (time.as_secs_f64() * 100_000.0).round() / 100.0
}

fn round(share: f64) -> f64 {
    (share * 1000.0).round() / 1000.0
}

/// Resident memory of this process.
pub fn rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes that the allocator has handed out; its figures are as old as its last epoch.
fn allocated() -> Option<u64> {
    tikv_jemalloc_ctl::epoch::advance().ok()?;
    tikv_jemalloc_ctl::stats::allocated::read().ok().map(|bytes| bytes as u64)
}

/// A listener's URL.
pub fn url(scheme: &str, addr: SocketAddr) -> String {
    format!("{scheme}://{addr}")
}
