//! The node: hands the values of one machine to the next.
//!
//! The machines do not know each other. What one of them puts out is handed on here, in these rooms:
//!
//! - `sessions`: handshakes, and records in and out of sessions
//! - `links`: bootstrap entries, home servers, hellos, who is attached where
//! - `transit`: which members that carry for others are links
//! - `routes`: LSAs out and in, shortest paths, routes, addresses
//! - `issued`: what the network's root says
//! - `reach`: probes, paths, NAT discovery, punching
//! - `publish`: the tables of the fast path, and snapshots for people
//!
//! After every input the caller drains `poll_event` *before* `poll_transmit`: what is sent may be answered at once, and
//! the fast path must know the session by then.

mod issued;
mod links;
mod publish;
mod reach;
mod routes;
mod sessions;
mod transit;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use session::transport::Session;
use wire::{datagram::DATA_OVERHEAD, id::NodeId};

pub use self::links::MAX_HOMES;
pub(crate) use self::{links::REGISTER_CONTEXT, reach::RECENT as RECENT_PROBE};

use crate::{
    accept::Acceptor,
    attach::Replica,
    boot::Boot,
    bootstrap::Bootstrap,
    config::Config,
    drops::{DropReason, Drops},
    event::{Event, Host, Input, Notice, NoticeKind, Socket, Transmit},
    fib::{PeerEntry, Routes, TrafficCounts},
    hold::Hold,
    link::Link,
    nat::{Discovery, Family},
    path::{Way, addr::Hop},
    peer::Peer,
    punch::{Coordinator, port::Ports},
    routing::{
        flood::Flood,
        issued::Issued,
        lsdb::{Limits, Lsdb},
        nearest::Nearest,
        origin::{Cost, Origin},
        rib::Rib,
        spf::{Reachable, Throttle},
        sync::Sync,
        topology::Topology,
    },
    timer::Timers,
};

/// Traffic with a peer is looked at this often while there is some.
const WATCH: Duration = Duration::from_millis(50);
/// Without traffic for this long the watch ends; the next packet starts it again.
const QUIET: Duration = Duration::from_secs(3);
/// Old state is swept this often.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// A second node with our keys is told of for this long after it was last heard of.
const TWIN_REMEMBERED: Duration = Duration::from_secs(600);
/// Direct paths are sought for peers with traffic in this time.
const SOUGHT_FOR: Duration = Duration::from_secs(300);

/// Why a deadline was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    Bootstrap(usize),
    Handshake(NodeId),
    Session(NodeId),
    Agent(NodeId),
    Watch(NodeId),
    Link(NodeId),
    Nat,
    Punch,
    Ports,
    Flood,
    Sync,
    NodeLsa,
    LinkLsa,
    Spf,
    Housekeeping,
}

/// One node of one network.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    me: NodeId,
    started: Instant,
    rng: ChaCha12Rng,
    boot: Boot,
    acceptor: Acceptor,
    drops: Arc<Drops>,

    peers: BTreeMap<NodeId, Peer>,
    /// Whose session, or pending INIT, has this index of ours.
    indices: BTreeMap<u32, NodeId>,
    next_index: u32,
    hold: Hold,
    pings: Pings,

    bootstraps: Vec<Entry>,
    links: BTreeMap<NodeId, Adjacency>,
    sockets: Vec<Socket>,
    /// Networks that the host is connected to: where the underlay runs, and where it does not.
    connected: Vec<IpNet>,
    networks: Vec<IpNet>,
    next_dial: u32,

    lsdb: Lsdb,
    flood: Flood,
    sync: Sync,
    topology: Topology,
    issued: Issued,
    node_lsa: Origin,
    link_lsa: Origin,
    nearest: Nearest,
    throttle: Throttle,
    reachable: Reachable,
    rib: Rib,
    claim: Option<(std::net::Ipv4Addr, u64)>,
    spf_runs: u64,
    /// When another node with our keys was last heard of.
    twin: Option<Instant>,
    /// Traffic, direct and relayed, with members whose entries are gone.
    gone: (TrafficCounts, TrafficCounts),
    left: bool,

    nat: Discovery,
    punch: Coordinator,
    ports: Ports,
    endpoints_revision: u64,

    entries: Arc<BTreeMap<NodeId, Arc<PeerEntry>>>,
    sessions: Arc<BTreeMap<u32, Arc<Session>>>,
    routes: Arc<Routes>,
    host: Host,
    fib_dirty: bool,
    host_dirty: bool,

    timers: Timers<Wake>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

/// A bootstrap entry and the stream connection made for it.
#[derive(Debug)]
struct Entry {
    bootstrap: Bootstrap,
    dial: Option<u32>,
    redial_at: Option<Instant>,
    since: Option<Instant>,
}

/// A link that is up.
#[derive(Debug)]
struct Adjacency {
    link: Link,
    cost: Cost,
    server: bool,
    /// The server took our REGISTER.
    registered: bool,
    register_sent: Option<Instant>,
    refused: Option<String>,
    replica: Replica,
}

/// Pings that wait for a session or an answer.
#[derive(Debug, Default)]
struct Pings {
    waiting: BTreeMap<u64, (NodeId, Instant, Option<Instant>)>,
}

impl Engine {
    /// A node that knows nobody yet. All randomness comes from `seed`, all time from `now`.
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let me = config.identity.node();
        let bootstraps =
            config.bootstrap.iter().map(|entry| Entry::new(entry, rng.next_u64())).collect();
        let offset = Duration::from_millis(u64::from(rng.next_u32() % 10_000));
        let mut engine = Self {
            me,
            started: now,
            boot: Boot::new(config.boot),
            acceptor: Acceptor::new(&mut rng, now),
            drops: Arc::default(),
            peers: BTreeMap::new(),
            indices: BTreeMap::new(),
            next_index: rng.next_u32(),
            hold: Hold::default(),
            pings: Pings::default(),
            bootstraps,
            links: BTreeMap::new(),
            sockets: Vec::new(),
            connected: Vec::new(),
            networks: Vec::new(),
            next_dial: 0,
            lsdb: Lsdb::new(Limits::MEMBER, now),
            flood: Flood::default(),
            sync: Sync::new(offset, now),
            topology: Topology::default(),
            issued: Issued::default(),
            node_lsa: Origin::new(config.boot),
            link_lsa: Origin::new(config.boot),
            nearest: Nearest::default(),
            throttle: Throttle::default(),
            reachable: Reachable::default(),
            rib: Rib::default(),
            claim: None,
            spf_runs: 0,
            twin: None,
            gone: Default::default(),
            left: false,
            nat: Discovery::default(),
            punch: Coordinator::new(now),
            ports: Ports::default(),
            endpoints_revision: 0,
            entries: Arc::default(),
            sessions: Arc::default(),
            routes: Arc::default(),
            host: Host::default(),
            fib_dirty: true,
            host_dirty: true,
            timers: Timers::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            config,
            rng,
        };
        engine.take_records(now);
        engine.claim_address(now);
        engine.node_lsa.changed(now);
        engine.link_lsa.changed(now);
        engine.timers.set(Wake::Housekeeping, Some(now + HOUSEKEEPING));
        engine.arm();
        engine
    }

    pub fn node(&self) -> NodeId {
        self.me
    }

    /// What was dropped, and why.
    pub fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    /// Takes what happened.
    pub fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Datagram { arrival, bytes } => self.on_datagram(arrival, bytes, now),
            Input::Record { arrival, session, kind, plaintext } => {
                self.on_record(arrival, session, kind, plaintext, now);
            }
            Input::Heard { arrival, session } => self.on_heard(arrival, session, now),
            Input::Outbound { packet, peer } => self.on_outbound(packet, peer, now),
            Input::Active { peer } => self.on_active(peer, now),
            Input::Sockets(sockets) => self.on_sockets(sockets, now),
            Input::SocketOpened { open, socket } => self.on_socket_opened(open, socket, now),
            Input::Underlay(interfaces) => {
                self.nat.set_interfaces(&interfaces, now);
                let connected: Vec<IpNet> =
                    interfaces.into_iter().flat_map(|interface| interface.addresses).collect();
                if connected != self.connected && !self.rib.routes.is_empty() {
                    self.throttle.request(now);
                }
                self.connected = connected;
                self.underlay_changed(now);
            }
            Input::Networks(networks) => {
                if networks != self.networks {
                    self.networks = networks;
                    self.throttle.request(now);
                    self.fib_dirty = true;
                }
            }
            Input::Bootstrap { index, addrs } => self.on_resolved(index, addrs, now),
            Input::TunnelUp { id, carrier, remote, dial } => {
                self.on_tunnel_up(Hop::Tunnel { id, carrier, remote }, dial, now);
            }
            Input::TunnelDown { id, dial } => self.on_tunnel_down(id, dial, now),
            Input::Configure(config) => self.configure(*config, now),
            Input::Ping { id, peer } => self.on_ping(id, peer, now),
            Input::Punch { peer } => {
                self.punch.reset(peer);
                self.seek_direct(peer, now);
            }
            Input::Leave => self.leave(now),
        }
        self.settle(now);
    }

    /// Time passed; early, late and twice are all right.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(wake) = self.timers.pop_due(now) {
            match wake {
                Wake::Bootstrap(index) => self.on_bootstrap_timeout(index, now),
                Wake::Handshake(peer) => self.on_handshake_timeout(peer, now),
                Wake::Session(peer) => self.on_session_timeout(peer, now),
                Wake::Agent(peer) => {
                    if let Some(peer) = self.peers.get_mut(&peer) {
                        peer.agent.handle_timeout(now);
                    }
                    self.drain_agent(peer, now);
                }
                Wake::Watch(peer) => self.watch(peer, now),
                Wake::Link(peer) => self.on_link_timeout(peer, now),
                Wake::Nat => self.on_nat_timeout(now),
                Wake::Punch => self.punch.handle_timeout(&mut self.rng, now),
                Wake::Ports => self.ports.handle_timeout(now),
                Wake::Flood => self.flood.handle_timeout(&self.lsdb, now),
                Wake::Sync => {
                    let neighbours: Vec<NodeId> = self.flood.neighbours().collect();
                    self.sync.handle_timeout(&self.lsdb, &neighbours, now);
                }
                Wake::NodeLsa => self.originate_node(now),
                Wake::LinkLsa => self.originate_links(now),
                Wake::Spf => self.recompute(now),
                Wake::Housekeeping => self.housekeep(now),
            }
        }
        self.settle(now);
    }

    /// When to call [`Engine::handle_timeout`], and why.
    pub fn poll_timeout(&self) -> Option<(Instant, Wake)> {
        self.timers.next()
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Drain this before [`Engine::poll_transmit`].
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.fib_dirty {
            self.fib_dirty = false;
            return Some(Event::Fib(Arc::new(self.fib())));
        }
        if self.host_dirty {
            self.host_dirty = false;
            return Some(Event::Host(self.host.clone()));
        }
        self.events.pop_front()
    }

    /// Hands on what the machines put out, until they are quiet, and sets the deadlines.
    fn settle(&mut self, now: Instant) {
        loop {
            let before = (self.transmits.len(), self.events.len());
            while let Some((to, body)) = self.flood.poll_output() {
                self.send_control_to(&to, body, now);
            }
            while let Some((to, body)) = self.sync.poll_output() {
                self.send_control(to, body, now);
            }
            while let Some(output) = self.punch.poll_output() {
                self.on_punch_output(output, now);
            }
            while let Some(output) = self.nat.poll_output() {
                self.on_behaviour_output(output);
            }
            while let Some(output) = self.ports.poll_output() {
                self.on_port_output(output, now);
            }
            if before == (self.transmits.len(), self.events.len()) {
                break;
            }
        }
        self.arm();
    }

    fn arm(&mut self) {
        self.timers.set(Wake::Nat, self.nat.poll_timeout());
        self.timers.set(Wake::Punch, self.punch.poll_timeout());
        self.timers.set(Wake::Ports, self.ports.poll_timeout());
        self.timers.set(Wake::Flood, self.flood.poll_timeout());
        self.timers.set(Wake::Sync, self.sync.poll_timeout().filter(|_| !self.links.is_empty()));
        self.timers.set(Wake::NodeLsa, self.node_lsa.poll_timeout());
        self.timers.set(Wake::LinkLsa, self.link_lsa.poll_timeout());
        self.timers.set(Wake::Spf, self.throttle.poll_timeout());
    }

    /// Sets the deadlines that belong to one peer; called whenever something of it changed.
    fn arm_peer(&mut self, node: NodeId) {
        let Some(peer) = self.peers.get(&node) else {
            for wake in
                [Wake::Handshake(node), Wake::Session(node), Wake::Agent(node), Wake::Watch(node)]
            {
                self.timers.set(wake, None);
            }
            return;
        };
        self.timers.set(Wake::Agent(node), peer.agent.poll_timeout());
        self.timers
            .set(Wake::Handshake(node), peer.handshake.as_ref().map(|handshake| handshake.due()));
        let rekey = peer.sessions.rekey_at().filter(|_| peer.handshake.is_none());
        let session = [peer.sessions.expires(), rekey].into_iter().flatten().min();
        self.timers.set(Wake::Session(node), session);
    }

    fn housekeep(&mut self, now: Instant) {
        self.timers.set(Wake::Housekeeping, Some(now + HOUSEKEEPING));
        let gone = self.lsdb.expire(now);
        for key in gone {
            self.on_lsa_gone(key, now);
        }
        if self.lost_directly(now) {
            self.throttle.request(now);
        }
        self.tend_transit(now);
        self.pings
            .waiting
            .retain(|_, (_, began, _)| now.saturating_duration_since(*began) < HOUSEKEEPING * 2);
        let idle: Vec<NodeId> = self
            .peers
            .values()
            .filter(|peer| {
                !self.links.contains_key(&peer.node)
                    && peer.bootstrap.is_empty()
                    && peer.handshake.is_none()
                    && peer.idle_since(now)
                    && !self.hold.has(peer.node)
            })
            .map(|peer| peer.node)
            .collect();
        for node in idle {
            self.drop_peer(node, "idle", now);
        }
    }

    /// Leaves the network: withdraws what this node said and tells who has a session with it.
    fn leave(&mut self, now: Instant) {
        if self.left {
            return;
        }
        self.left = true;
        self.withdraw(now);
        self.settle(now);
        let with_session: Vec<NodeId> = self
            .peers
            .values()
            .filter(|peer| peer.sessions.sending().is_some())
            .map(|peer| peer.node)
            .collect();
        for node in with_session {
            self.send_control(node, wire::control::Body::Leave(wire::control::Leave {}), now);
        }
        self.events.push_back(Event::Left);
    }

    /// A new desired state. What names this node to others (identity, network) cannot change in a running engine.
    fn configure(&mut self, config: Config, now: Instant) {
        let same = config.bootstrap == self.config.bootstrap;
        if !same {
            let kept: BTreeSet<NodeId> = config
                .bootstrap
                .iter()
                .filter_map(|entry| entry.keys.map(|keys| keys.node()))
                .collect();
            let gone: Vec<NodeId> =
                self.links.keys().filter(|node| !kept.contains(node)).copied().collect();
            self.bootstraps = config
                .bootstrap
                .iter()
                .map(|entry| Entry::new(entry, self.rng.next_u64()))
                .collect();
            for node in gone {
                self.link_down(node, "no longer configured", now);
                self.drop_peer(node, "no longer configured", now);
            }
        }
        let before = std::mem::replace(&mut self.config, config);
        self.renew_membership(&before, now);
        self.take_records(now);
        let datagram = self.longest_datagram();
        for node in self.peers.keys().copied().collect::<Vec<_>>() {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.agent.want(datagram, now);
            }
            self.drain_agent(node, now);
        }
        self.claim_address(now);
        self.node_lsa.changed(now);
        self.throttle.request(now);
        self.fib_dirty = true;
        self.notice(Notice::new(NoticeKind::ConfigApplied, None, "Configuration applied"));
    }

    fn notice(&mut self, notice: Notice) {
        self.events.push_back(Event::Notice(notice));
    }

    fn drop_packet(&self, reason: DropReason) {
        self.drops.count(reason);
    }

    /// Microseconds since the start, for hellos and probes.
    fn micros(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.started).as_micros()).unwrap_or(u64::MAX)
    }

    fn unix(&self, now: Instant) -> u64 {
        self.config.unix_at_start + now.saturating_duration_since(self.started).as_secs()
    }

    /// What a packet of the mesh's MTU becomes when sealed.
    fn longest_datagram(&self) -> u16 {
        self.config.mtu.saturating_add(DATA_OVERHEAD as u16)
    }

    /// The main UDP socket of the address' family.
    fn socket_for(&self, addr: SocketAddr) -> Option<Socket> {
        let family = Family::of(addr.ip());
        self.sockets.iter().find(|socket| Family::of(socket.local.ip()) == family).copied()
    }

    fn udp_way(&self, addr: SocketAddr) -> Option<Way> {
        Some(Way::Direct(Hop::Udp { socket: self.socket_for(addr)?.id, remote: addr }))
    }

    /// Addresses that the mesh itself uses: never a candidate, or a tunnel would run inside itself.
    fn is_overlay(&self, addr: SocketAddr) -> bool {
        let ip = addr.ip().to_canonical();
        self.host.addresses.iter().any(|net| net.contains(&ip))
            || self.rib.routes.iter().any(|route| {
                route.state == crate::snapshot::RouteState::Installed && route.prefix.contains(&ip)
            })
    }

    fn own_nets(&self) -> Vec<IpNet> {
        let addresses = self.host.addresses.iter().map(|net| IpNet::from(net.addr()));
        addresses.chain(self.config.exports.iter().copied()).collect()
    }
}

impl Entry {
    fn new(config: &crate::config::Bootstrap, txid: u64) -> Self {
        Self {
            bootstrap: Bootstrap::new(config.transport, config.keys, txid),
            dial: None,
            redial_at: None,
            since: None,
        }
    }
}
