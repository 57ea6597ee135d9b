//! The tables of the fast path, and snapshots for people.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
    time::Instant,
};

use ipnet::IpNet;
use wire::{datagram::DATA_OVERHEAD, id::NodeId};

use super::{Engine, TWIN_REMEMBERED, routes::TWIN};
use crate::{
    fib::{Fib, Forward, Link, Local, PeerEntry},
    path::{self, State, Way},
    peer::Kind,
    routing::topology::Member,
    snapshot::{self, Live, PathState, PeerState, RouteState, ServerState, Snapshot},
};

impl Engine {
    /// The fast path's tables of this moment.
    pub(super) fn fib(&self) -> Fib {
        let mut fib = Fib::new(self.me, self.started, self.config.mtu);
        fib.local = Arc::new(self.local());
        fib.routes = Arc::clone(&self.routes);
        fib.peers = Arc::clone(&self.entries);
        fib.sessions = Arc::clone(&self.sessions);
        fib.links = Arc::new(self.link_table());
        fib.forwards = Arc::new(self.forward_table());
        fib.drops = Arc::clone(&self.drops);
        fib
    }

    pub(super) fn local(&self) -> Local {
        let reserved =
            [&self.config.behind, &self.config.protected, &self.connected, &self.networks];
        Local {
            addresses: self.host.addresses.iter().map(IpNet::addr).collect(),
            exports: self.config.exports.clone(),
            reserved: reserved.into_iter().flatten().copied().collect(),
        }
    }

    /// Over which sessions TRANSIT may arrive: those with servers and with members that carry for others, and, if we do,
    /// those with everybody, who then speaks for itself alone.
    fn link_table(&self) -> BTreeMap<u32, Link> {
        let network = self.config.membership.network;
        let mut links = BTreeMap::new();
        for peer in self.peers.values() {
            let carries = peer.kind == Kind::Server
                || self.topology.member(peer.node).is_some_and(|member| member.transit);
            if !carries && !self.config.transit {
                continue;
            }
            for session in peer.sessions.all() {
                let vouched = (!carries).then(|| peer.node.short());
                let link = Link { session: Arc::clone(session), network, vouched, quota: None };
                links.insert(session.local_index(), link);
            }
        }
        links
    }

    fn forward_table(&self) -> BTreeMap<(wire::id::NetworkId, wire::id::ShortId), Forward> {
        let mut forwards = BTreeMap::new();
        if !self.config.transit {
            return forwards;
        }
        let network = self.config.membership.network;
        for (node, _) in self.topology.members() {
            let own =
                self.peers.get(&node).is_some_and(|peer| peer.agent.is_direct()).then_some(node);
            let next = own.or_else(|| {
                let ways = self.reachable.get(&node)?;
                ways.iter()
                    .map(|reach| reach.via)
                    .find(|via| self.links.get(via).is_some_and(|adjacency| !adjacency.server))
            });
            let Some(peer) = next.and_then(|next| self.peers.get(&next)) else { continue };
            let (Some(link), Some(Way::Direct(hop))) =
                (peer.sessions.sending(), peer.agent.primary())
            else {
                continue;
            };
            forwards.insert((network, node.short()), Forward { link: Arc::clone(link), hop });
        }
        forwards
    }

    /// Brings the entries of everybody up to date after the routes changed.
    pub(super) fn rebuild_entries(&mut self) {
        let known: BTreeSet<NodeId> =
            self.entries.keys().chain(self.peers.keys()).copied().collect();
        let mut allowed: BTreeMap<NodeId, Vec<IpNet>> = BTreeMap::new();
        for (node, net) in self.sources().filter(|(node, _)| known.contains(node)) {
            allowed.entry(node).or_default().push(net);
        }
        for node in known {
            let allowed = allowed.remove(&node).unwrap_or_default();
            self.renew_entry(node, allowed.into());
        }
    }

    /// Brings the fast path's entry of one peer up to date.
    pub(super) fn update_entry(&mut self, node: NodeId) {
        let allowed = match self.entries.get(&node) {
            Some(entry) => Arc::clone(&entry.allowed),
            None => self.sources().filter(|(of, _)| *of == node).map(|(_, net)| net).collect(),
        };
        self.renew_entry(node, allowed);
    }

    /// The inner sources that nodes may use: what each announces, as far as it was not refused.
    fn sources(&self) -> impl Iterator<Item = (NodeId, IpNet)> {
        let taken = self.rib.routes.iter().filter(|route| route.state != RouteState::Rejected);
        taken.map(|route| (route.node, route.prefix))
    }

    /// Only who was met has an entry: of the thousands of a large network a node talks to few.
    fn renew_entry(&mut self, node: NodeId, allowed: Arc<[IpNet]>) {
        let is_member = self.topology.member(node).is_some();
        let peer = self.peers.get(&node).filter(|peer| peer.kind != Kind::Server);
        let before = self.entries.get(&node);
        if peer.is_none() && !(is_member && before.is_some()) {
            if before.is_some()
                && let Some(entry) = Arc::make_mut(&mut self.entries).remove(&node)
            {
                self.fib_dirty = true;
                let (direct, relayed) = (entry.stats.direct.counts(), entry.stats.relayed.counts());
                self.gone = (self.gone.0.plus(direct), self.gone.1.plus(relayed));
            }
            return;
        }
        self.fib_dirty = true;
        let session = peer.and_then(|peer| peer.sessions.sending().cloned());
        let way = peer.and_then(|peer| peer.agent.primary());
        let next_hop = way.and_then(|way| self.next_hop(node, way));
        let bicast =
            peer.and_then(|peer| peer.agent.bicast()).and_then(|way| self.next_hop(node, way));
        let fits = peer.map_or(self.config.mtu, |peer| packet_in(peer.agent.datagram()));
        let entry = PeerEntry {
            node,
            session,
            next_hop,
            bicast,
            mtu: self.config.mtu.min(fits),
            allowed,
            stats: before.map(|before| Arc::clone(&before.stats)).unwrap_or_default(),
        };
        Arc::make_mut(&mut self.entries).insert(node, Arc::new(entry));
    }

    /// Shortest-path computations so far.
    pub fn spf_runs(&self) -> u64 {
        self.spf_runs
    }

    /// One number for all that the LSDB holds: equal digests are equal databases.
    pub fn lsdb_digest(&self) -> u64 {
        self.lsdb.root()
    }

    /// What is to be said of a second node with our keys, if one was heard of lately.
    fn duplicate_key(&self, now: Instant) -> Option<String> {
        let twin = self.twin.filter(|seen| now.saturating_duration_since(*seen) < TWIN_REMEMBERED);
        twin.map(|_| TWIN.to_owned())
    }

    /// The node as it is now.
    pub fn snapshot(&self, now: Instant) -> Snapshot {
        Snapshot {
            node: self.me,
            network: self.config.membership.network,
            addresses: self.host.addresses.clone(),
            servers: self.snapshot_servers(),
            links: self
                .links
                .iter()
                .filter(|(_, adjacency)| !adjacency.server)
                .map(|(node, _)| *node)
                .collect(),
            peers: self.snapshot_peers(now),
            routes: self.snapshot_routes(),
            nat: self.nat.profile(),
            nat_tested: self.nat.tested(),
            candidates: self.own_candidates(),
            conflicts: self.rib.conflicts.clone(),
            duplicate_key: self.duplicate_key(now),
            issued: self.issued_snapshot(),
            lsdb_entries: self.lsdb.len(),
            lsdb_digest: self.lsdb.root(),
            spf_runs: self.spf_runs,
            gone: self.gone,
            live: self.live(),
        }
    }

    /// Counts of what is alive, for the leak test and bounds.
    pub fn live(&self) -> Live {
        Live {
            timers: self.timers.len(),
            peers: self.peers.len(),
            sessions: self.sessions.len(),
            handshakes: self.peers.values().filter(|peer| peer.handshake.is_some()).count(),
            held_packets: self.hold.len(),
            lsas: self.lsdb.len(),
            indices: self.indices.len(),
            punches: self.punch.len(),
            pulls: self.flood.waiting(),
        }
    }

    /// The RIB; who is reached directly needs no other node on the way.
    fn snapshot_routes(&self) -> Vec<snapshot::Route> {
        let is_direct =
            |node: &NodeId| self.peers.get(node).is_some_and(|peer| peer.agent.is_direct());
        let mut routes = self.rib.routes.clone();
        for route in routes.iter_mut().filter(|route| is_direct(&route.node)) {
            route.via = None;
        }
        routes
    }

    fn snapshot_servers(&self) -> Vec<snapshot::Server> {
        let servers = self.bootstraps.iter().enumerate().map(|(bootstrap, entry)| {
            let node = entry.bootstrap.node();
            let peer = node.and_then(|node| self.peers.get(&node));
            let adjacency = node.and_then(|node| self.links.get(&node));
            let error = peer.and_then(|peer| peer.last_error.clone());
            let state = match adjacency {
                Some(adjacency) if adjacency.refused.is_some() => {
                    ServerState::Refused(adjacency.refused.clone().unwrap_or_default())
                }
                Some(adjacency) if adjacency.registered || !adjacency.server => {
                    ServerState::Attached
                }
                Some(_) => ServerState::Connecting,
                None if entry.bootstrap.addrs.is_empty() => ServerState::Resolving,
                None => error.map_or(ServerState::Connecting, ServerState::Failing),
            };
            snapshot::Server {
                bootstrap,
                node,
                state,
                is_server: peer.is_some_and(|peer| peer.kind == Kind::Server),
                remote: peer
                    .and_then(|peer| match peer.agent.primary()? {
                        Way::Direct(hop) => Some(hop.remote()),
                        Way::Relayed(_) => None,
                    })
                    .or(entry.bootstrap.addrs.first().copied()),
                rtt: peer.and_then(|peer| peer.agent.rtt()),
                clock_offset_s: peer.and_then(|peer| peer.clock_offset),
            }
        });
        servers.collect()
    }

    fn snapshot_peers(&self, now: Instant) -> Vec<snapshot::Peer> {
        self.topology
            .members()
            .filter(|(node, _)| *node != self.me)
            .map(|(node, member)| self.peer(node, member, now))
            .collect()
    }

    fn peer(&self, node: NodeId, member: &Member, now: Instant) -> snapshot::Peer {
        let peer = self.peers.get(&node);
        let primary = peer.and_then(|peer| peer.agent.primary());
        let up = peer.is_some_and(|peer| peer.sessions.sending().is_some());
        let reachable = self.reachable.get(&node);
        let is_lost = up && peer.is_some_and(|peer| peer.answers_nothing(now));
        let state = match (up, primary) {
            _ if is_lost => PeerState::Unreachable,
            (true, Some(Way::Direct(_))) => PeerState::Direct,
            (true, Some(Way::Relayed(_))) => PeerState::Relayed,
            (true, None) => PeerState::Unreachable,
            (false, _) if peer.is_some_and(|peer| peer.handshake.is_some()) => {
                PeerState::Connecting
            }
            (false, _) if reachable.is_some() => PeerState::Idle,
            (false, _) => PeerState::Unreachable,
        };
        let stats =
            self.entries.get(&node).map(|entry| Arc::clone(&entry.stats)).unwrap_or_default();
        let (direct, relayed) = (stats.direct.counts(), stats.relayed.counts());
        let via = match primary.filter(|_| up) {
            Some(Way::Relayed(via)) => Some(via),
            Some(Way::Direct(_)) => None,
            None => reachable
                .and_then(|ways| ways.first())
                .map(|reach| reach.via)
                .filter(|via| *via != node),
        };
        let path = primary.and_then(|way| peer?.agent.path(way));
        snapshot::Peer {
            node,
            hostname: member.hostname.to_string(),
            version: member.version.to_string(),
            addresses: member.addresses().map(|announced| announced.prefix).collect(),
            exports: member.exports().map(|announced| announced.prefix).collect(),
            state,
            hop: primary
                .filter(|_| up)
                .and_then(|way| self.next_hop(node, way))
                .map(|next| *next.hop()),
            via,
            rtt: path.and_then(|path| path.estimate.rtt()),
            loss: path.map_or(0.0, path::Path::loss),
            direct,
            relayed,
            profile: peer.and_then(|peer| peer.endpoints.profile.clone()),
            since: peer.and_then(|peer| peer.since),
            last_error: match peer.and_then(|peer| peer.silent_for(now)).filter(|_| is_lost) {
                Some(time) => {
                    Some(format!("it has answered nothing on any path for {} s", time.as_secs()))
                }
                None => peer.and_then(|peer| peer.last_error.clone()),
            },
            paths: peer.map(|peer| self.paths(node, &peer.agent)).unwrap_or_default(),
        }
    }

    fn paths(&self, node: NodeId, agent: &path::Agent) -> Vec<snapshot::Path> {
        agent
            .paths()
            .filter_map(|path| {
                let hop = *self.next_hop(node, path.way)?.hop();
                Some(snapshot::Path {
                    state: match path.state {
                        State::Primary => PathState::Primary,
                        State::Warm => PathState::Warm,
                        State::Probing => PathState::Probing,
                        State::Suspect => PathState::Suspect,
                    },
                    carrier: hop.carrier(),
                    hop,
                    via: match path.way {
                        Way::Direct(_) => None,
                        Way::Relayed(via) => Some(via),
                    },
                    rtt: path.estimate.rtt(),
                    rtt_var: path.estimate.variation(),
                    loss: path.loss(),
                    mtu: Some(packet_in(path.datagram())),
                    score: path.score(),
                    since: path.since,
                })
            })
            .collect()
    }

    /// The member that an overlay address or a host name belongs to.
    pub fn find(&self, name: &str) -> Option<NodeId> {
        if let Ok(address) = name.parse::<IpAddr>() {
            return self.routes.longest_match(address);
        }
        let by_id = |node: &NodeId| {
            node.to_string().starts_with(&name.to_ascii_lowercase()) && name.len() >= 8
        };
        let members: Vec<(NodeId, &Member)> =
            self.topology.members().filter(|(node, _)| *node != self.me).collect();
        let named = members.iter().find(|(_, member)| *member.hostname == *name);
        named.or_else(|| members.iter().find(|(node, _)| by_id(node))).map(|(node, _)| *node)
    }
}

/// The longest IP packet in a datagram of `len` bytes.
fn packet_in(len: u16) -> u16 {
    len.saturating_sub(DATA_OVERHEAD as u16)
}
