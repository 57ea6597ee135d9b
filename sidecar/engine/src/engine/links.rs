//! Bootstrap entries, home servers and other links, and who is attached where.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use session::cookie::Source;
use wire::{
    control::{Attach, Body, Hello, Refused, RefusedReason, Register, Registered},
    datagram::Whois,
    endpoint::Transport,
    id::NodeId,
};

use super::{Adjacency, Engine, Wake};
use crate::{
    drops::DropReason,
    event::{Event, Notice, NoticeKind, Socket, Transmit},
    link::{Due, HOME_HELLO, Link, MEMBER_HELLO},
    nat::Family,
    path::{
        Way,
        addr::{Arrival, Carrier, Hop, TunnelId},
    },
    peer::Kind,
    routing::{origin::Cost, spf::OwnLink},
};

/// REGISTER is said again after this until the server answers.
const REGISTER_AGAIN: Duration = Duration::from_secs(1);
/// A UDP entry that has not led to a session by then is tried over TCP too.
const TCP_AFTER: Duration = Duration::from_secs(2);
/// A stream connection that ended is made anew after this.
const REDIAL: Duration = Duration::from_secs(3);
/// Servers that may be homes until servers form a mesh of their own.
pub const MAX_HOMES: usize = 2;
/// Links of one node: so many still fit its LSA.
pub(super) const MAX_LINKS: usize = 300;
/// Context of REGISTER's signature.
pub(crate) const REGISTER_CONTEXT: &[u8] = b"easynet register";

impl Engine {
    pub(super) fn on_resolved(&mut self, index: usize, addrs: Vec<SocketAddr>, now: Instant) {
        let addrs: Vec<SocketAddr> =
            addrs.into_iter().filter(|addr| !self.is_overlay(*addr)).collect();
        let Some(entry) = self.bootstraps.get_mut(index) else { return };
        if entry.bootstrap.resolved(addrs, now) {
            entry.since.get_or_insert(now);
            self.on_bootstrap_timeout(index, now);
        }
    }

    pub(super) fn on_sockets(&mut self, sockets: Vec<Socket>, now: Instant) {
        self.sockets = sockets;
        for socket in &self.sockets {
            let family = Family::of(socket.local.ip());
            self.nat.set_socket(family, socket.id, socket.local.port(), now);
        }
        for index in 0..self.bootstraps.len() {
            self.on_bootstrap_timeout(index, now);
        }
        self.node_lsa.changed(now);
    }

    /// Moves a bootstrap entry on: asks who is there, gets to know it, connects.
    pub(super) fn on_bootstrap_timeout(&mut self, index: usize, now: Instant) {
        let Some(entry) = self.bootstraps.get_mut(index) else { return };
        let (transport, addrs, keys) = (
            entry.bootstrap.transport,
            entry.bootstrap.addrs.clone(),
            entry.bootstrap.keys().copied(),
        );
        let question = entry.bootstrap.handle_timeout(now);
        let late =
            entry.since.is_some_and(|since| now.saturating_duration_since(since) >= TCP_AFTER);
        let redial = entry.redial_at.is_none_or(|at| at <= now) && entry.dial.is_none();
        let ways: Vec<Hop> = addrs
            .iter()
            .filter(|_| transport == Transport::Udp)
            .filter_map(|addr| match self.udp_way(*addr)? {
                Way::Direct(hop) => Some(hop),
                Way::Relayed(_) => None,
            })
            .collect();
        if let Some(question) = question {
            for hop in &ways {
                self.transmits.push_back(Transmit {
                    hop: *hop,
                    bytes: question.to_vec(),
                    ttl: None,
                });
            }
        }
        let connected = keys.is_some_and(|keys| {
            self.peers.get(&keys.node()).is_some_and(|peer| {
                peer.sessions.sending().is_some()
                    && (transport == Transport::Udp || self.has_tunnel(keys.node()))
            })
        });
        if let Some(keys) = keys
            && let Some(peer) = self.meet(keys, Kind::Unknown)
        {
            let fresh = ways.iter().any(|hop| !peer.bootstrap.contains(hop));
            peer.bootstrap.extend(&ways);
            let idle = peer.sessions.sending().is_none() && peer.handshake.is_none();
            let node = peer.node;
            for hop in &ways {
                peer.agent.add(Way::Direct(*hop), now);
            }
            let somewhere = !peer.bootstrap.is_empty();
            if (fresh || idle) && somewhere && !connected {
                self.initiate(node, now);
            }
            self.arm_peer(node);
        }
        let wants_stream = transport == Transport::Tcp || (late && !connected);
        if wants_stream
            && !connected
            && redial
            && let Some(&remote) = addrs.first()
        {
            self.next_dial += 1;
            let dial = self.next_dial;
            if let Some(entry) = self.bootstraps.get_mut(index) {
                entry.dial = Some(dial);
            }
            self.events.push_back(Event::Dial { dial, carrier: Carrier::Tcp, remote });
        }
        let Some(entry) = self.bootstraps.get(index) else { return };
        let again = if connected || addrs.is_empty() { None } else { Some(now + TCP_AFTER) };
        let next = [entry.bootstrap.poll_timeout(), again].into_iter().flatten().min();
        self.timers.set(Wake::Bootstrap(index), next);
    }

    fn has_tunnel(&self, node: NodeId) -> bool {
        self.peers
            .get(&node)
            .is_some_and(|peer| peer.bootstrap.iter().any(|hop| matches!(hop, Hop::Tunnel { .. })))
    }

    pub(super) fn on_tunnel_up(&mut self, hop: Hop, dial: Option<u32>, now: Instant) {
        let Some(index) =
            dial.and_then(|dial| self.bootstraps.iter().position(|entry| entry.dial == Some(dial)))
        else {
            return;
        };
        let keys = self.bootstraps.get(index).and_then(|entry| entry.bootstrap.keys().copied());
        match keys {
            Some(keys) => {
                let Some(peer) = self.meet(keys, Kind::Unknown) else { return };
                peer.bootstrap.insert(hop);
                let node = peer.node;
                let connected = peer.sessions.sending().is_some();
                peer.agent.add(Way::Direct(hop), now);
                if connected && let Hop::Tunnel { id, .. } = hop {
                    self.events.push_back(Event::Authenticated(id));
                }
                // With a session too: what is at the other end may have restarted and not know it.
                self.initiate(node, now);
                self.arm_peer(node);
            }
            None => {
                if let Some(entry) = self.bootstraps.get(index) {
                    let bytes = entry.bootstrap.question().to_vec();
                    self.transmits.push_back(Transmit { hop, bytes, ttl: None });
                }
            }
        }
    }

    pub(super) fn on_tunnel_down(&mut self, id: Option<TunnelId>, dial: Option<u32>, now: Instant) {
        let is_it = |hop: &Hop| matches!(hop, Hop::Tunnel { id: other, .. } if Some(*other) == id);
        for index in 0..self.bootstraps.len() {
            let Some(entry) = self.bootstraps.get_mut(index) else { continue };
            if entry.dial.is_some() && entry.dial == dial {
                entry.dial = None;
                entry.redial_at = Some(now + REDIAL);
                self.timers.set_earlier(Wake::Bootstrap(index), now + REDIAL);
            }
        }
        let touched: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(_, peer)| {
                peer.bootstrap.iter().any(is_it)
                    || peer
                        .agent
                        .paths()
                        .any(|path| matches!(&path.way, Way::Direct(hop) if is_it(hop)))
            })
            .map(|(node, _)| *node)
            .collect();
        for node in touched {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let ways: Vec<Hop> = peer
                .agent
                .paths()
                .filter_map(|path| match path.way {
                    Way::Direct(hop) if is_it(&hop) => Some(hop),
                    Way::Direct(_) | Way::Relayed(_) => None,
                })
                .collect();
            peer.bootstrap.retain(|hop| !is_it(hop));
            for hop in ways {
                peer.agent.remove(Way::Direct(hop), now);
            }
            self.drain_agent(node, now);
        }
    }

    pub(super) fn on_whois(&mut self, arrival: Arrival, whois: &Whois, now: Instant) {
        if !whois.answer {
            let source = match arrival.via {
                Some(via) => Source::Relayed(via.link, via.src),
                None => Source::of(arrival.hop.remote().ip()),
            };
            if !self.acceptor.may_ask(source, now) {
                return self.drop_packet(DropReason::PuntLimited);
            }
            let answer = Whois::answer(whois.txid, &self.config.identity.keys(), &[0; 64]);
            return self.reply(arrival, answer.to_vec());
        }
        let Some(index) =
            self.bootstraps.iter_mut().position(|entry| entry.bootstrap.answered(whois))
        else {
            return self.drop_packet(DropReason::Malformed);
        };
        if let Hop::Tunnel { .. } = arrival.hop
            && let Some(peer) = self.meet(whois.keys, Kind::Unknown)
        {
            peer.bootstrap.insert(arrival.hop);
            let node = peer.node;
            self.initiate(node, now);
        }
        self.on_bootstrap_timeout(index, now);
    }

    /// Proves to a server that we are a member of our network.
    pub(super) fn register(&mut self, node: NodeId, now: Instant) {
        let homes = self.links.values().filter(|adjacency| adjacency.server).count();
        if !self.links.contains_key(&node) {
            if homes >= MAX_HOMES {
                return self.fail(node, "not used: a network has at most two home servers for now");
            }
            self.add_link(node, true, now);
        }
        let Some(session) = self.peers.get(&node).and_then(|peer| peer.sessions.sending()) else {
            return;
        };
        let signature = self.config.identity.sign(REGISTER_CONTEXT, session.exporter()).to_vec();
        let membership = &self.config.membership;
        let Some(adjacency) = self.links.get_mut(&node) else { return };
        adjacency.register_sent = Some(now);
        let register = Register {
            network: membership.network.0.to_vec(),
            root: membership.root.0.to_vec(),
            certificate: Some(membership.certificate.clone()),
            signature,
            token: Vec::new(),
            attach_seq: adjacency.replica.seq(),
            attach_digest: adjacency.replica.digest(),
        };
        self.timers.set_earlier(Wake::Link(node), now + REGISTER_AGAIN);
        self.send_control(node, Body::Register(register), now);
    }

    pub(super) fn on_registered(&mut self, node: NodeId, registered: &Registered, now: Instant) {
        if self.home(node).is_none() {
            return;
        }
        let primary = self.peers.get(&node).and_then(|peer| peer.agent.primary());
        let server = match primary {
            // Attached over a stream too: that its UDP does not answer is what tells that UDP is blocked.
            Some(Way::Direct(hop)) => Some(hop.remote()),
            Some(Way::Relayed(_)) | None => None,
        };
        for packed in registered
            .stun
            .chunks_exact(wire::endpoint::ADDR_LEN)
            .filter_map(|packed| packed.first_chunk())
        {
            let mut addr = wire::endpoint::unpack_addr(packed);
            // A server behind a translator of its own knows its ports, not its address.
            if addr.ip().is_unspecified()
                && let Some(server) = server
            {
                addr.set_ip(server.ip());
            }
            if !addr.ip().is_unspecified() {
                self.nat.add_server(addr, now);
            }
        }
        let entries = self.bootstraps.iter().map(|entry| &entry.bootstrap);
        let named = entries
            .filter(|entry| entry.node() == Some(node) && entry.transport == Transport::Udp)
            .flat_map(|entry| &entry.addrs);
        let addrs: Vec<SocketAddr> = named.copied().chain(server).collect();
        let Some(adjacency) = self.links.get_mut(&node) else { return };
        let first = !adjacency.registered;
        adjacency.registered = true;
        adjacency.refused = None;
        adjacency.register_sent = None;
        // The server may have restarted with nothing while our link never went down.
        self.sync.started(&self.lsdb, node, now);
        if !first {
            return;
        }
        for addr in addrs {
            self.nat.add_server(addr, now);
        }
        self.flood.add_neighbour(node);
        self.link_lsa.changed(now);
        self.node_lsa.changed(now);
        self.throttle.request(now);
        self.notice(Notice::new(
            NoticeKind::ServerAttached,
            Some(node),
            "Attached to a public server",
        ));
    }

    /// What only a server may say is heard from a server alone; a member that says it is out of order.
    fn home(&mut self, node: NodeId) -> Option<&mut Adjacency> {
        let found = self.links.get_mut(&node).filter(|adjacency| adjacency.server);
        if found.is_none() {
            self.drops.count(DropReason::WrongRole);
        }
        found
    }

    pub(super) fn on_refused(&mut self, node: NodeId, refused: &Refused, now: Instant) {
        if refused.reason == RefusedReason::DuplicateKey as i32 {
            // With a higher boot number than the other's we are heard again.
            if self.renew_boot(0, now) {
                self.initiate(node, now);
            }
            return self.meet_twin(now);
        }
        let Some(adjacency) = self.home(node) else { return };
        adjacency.refused = Some(refused.message.clone());
        adjacency.register_sent = None;
        if refused.retry_s > 0 {
            let again = now + Duration::from_secs(u64::from(refused.retry_s));
            self.timers.set(Wake::Link(node), Some(again));
        }
        let message = format!("The public server refuses this network: {}", refused.message);
        self.notice(Notice::new(NoticeKind::ServerLost, Some(node), message));
    }

    pub(super) fn on_attach(&mut self, node: NodeId, attach: &Attach, now: Instant) {
        let Some(adjacency) = self.home(node) else { return };
        let changed = adjacency.replica.apply(attach);
        let satisfied = adjacency.replica.is_satisfied(attach);
        if changed {
            let nodes = Arc::clone(adjacency.replica.nodes());
            self.topology.set_attached(node, nodes);
            self.throttle.request(now);
        }
        if !satisfied {
            self.register(node, now);
        }
    }

    /// A member is a link neighbour if the configuration names it, if it is one of the nearest that carry other members'
    /// traffic, or if it takes us for one: an edge counts only if both list it.
    pub(super) fn link_if_neighbour(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.kind != Kind::Member || peer.sessions.sending().is_none() {
            return;
        }
        let is_wanted = self.wants_link(node);
        if !(is_wanted || peer.linked_by_peer) || self.links.contains_key(&node) {
            return;
        }
        if !is_wanted && self.links.len() >= MAX_LINKS {
            return self.say_goodbye(node, now);
        }
        self.add_link(node, false, now);
        self.flood.add_neighbour(node);
        self.sync.started(&self.lsdb, node, now);
        self.link_lsa.changed(now);
        self.throttle.request(now);
    }

    fn add_link(&mut self, node: NodeId, server: bool, now: Instant) {
        let rtt = self.peers.get(&node).and_then(|peer| peer.agent.rtt());
        let interval = if server { HOME_HELLO } else { MEMBER_HELLO };
        self.links.insert(
            node,
            Adjacency {
                link: Link::new(interval, now),
                cost: Cost::new(
                    rtt.map_or(20_000, |rtt| u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX))
                        / 2,
                ),
                server,
                registered: false,
                register_sent: None,
                refused: None,
                replica: Default::default(),
            },
        );
        self.timers.set(Wake::Link(node), Some(now));
        self.fib_dirty = true;
    }

    pub(super) fn on_link_timeout(&mut self, node: NodeId, now: Instant) {
        let pending = self.links.get(&node).and_then(|adjacency| adjacency.register_sent);
        if pending.is_some_and(|sent| now >= sent + REGISTER_AGAIN) {
            self.register(node, now);
        }
        let measured = self.peers.get(&node).and_then(|peer| peer.agent.rtt());
        let Some(adjacency) = self.links.get_mut(&node) else { return };
        let due = adjacency.link.handle_timeout(now);
        let rtt = measured.or(adjacency.link.rtt());
        let moved = rtt.is_some_and(|rtt| {
            adjacency.cost.measured(u32::try_from(rtt.as_micros() / 2).unwrap_or(u32::MAX), now)
        });
        let next = adjacency.link.poll_timeout();
        let register = adjacency.register_sent.map(|sent| sent + REGISTER_AGAIN);
        self.timers.set(Wake::Link(node), [next, register].into_iter().flatten().min());
        if moved {
            self.link_lsa.changed(now);
            self.throttle.request(now);
        }
        match due {
            Some(Due::Hello { seq }) => {
                let missed = self
                    .links
                    .get(&node)
                    .is_some_and(|adjacency| adjacency.server && adjacency.link.missed() > 0);
                if missed {
                    // It may have restarted; the hellos go on meanwhile.
                    self.initiate(node, now);
                }
                let follows = !self.wants_link(node);
                let hello = Hello { seq, sent_us: self.micros(now), follows, ..Hello::default() };
                self.send_control(node, Body::Hello(hello), now);
            }
            Some(Due::Down) => {
                self.link_down(node, "three hellos were not answered", now);
                self.drop_peer_sessions(node, now);
                self.reconnect(node, now);
            }
            None => {}
        }
    }

    pub(super) fn on_hello(&mut self, from: NodeId, hello: Hello, now: Instant) {
        let (follows, is_goodbye) = (hello.follows, hello.seq == 0);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.linked_by_peer = !follows;
        }
        if !is_goodbye {
            self.send_control(from, Body::HelloAck(hello), now);
        }
        if follows {
            self.on_follower(from, is_goodbye, now);
        } else {
            self.link_if_neighbour(from, now);
        }
    }

    pub(super) fn on_hello_ack(&mut self, from: NodeId, ack: &Hello, now: Instant) {
        let now_us = self.micros(now);
        let Some(adjacency) = self.links.get_mut(&from) else { return };
        adjacency.link.acknowledged(ack, now_us, now);
        let (server, registered) = (adjacency.server, adjacency.registered);
        let current = adjacency.replica.is_current(ack.attach_seq, ack.attach_digest);
        if server && registered && !current {
            self.register(from, now);
        }
    }

    /// A link is no more: others hear of it, and other ways are sought.
    pub(super) fn link_down(&mut self, node: NodeId, why: &str, now: Instant) {
        let Some(adjacency) = self.links.remove(&node) else { return };
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.linked_by_peer = false;
            peer.chosen = false;
        }
        self.timers.set(Wake::Link(node), None);
        self.flood.remove_neighbour(node);
        self.topology.remove_server(node);
        self.link_lsa.changed(now);
        self.throttle.request(now);
        self.fib_dirty = true;
        if adjacency.server {
            self.node_lsa.changed(now);
        }
        if adjacency.server && adjacency.registered {
            self.notice(Notice::new(
                NoticeKind::ServerLost,
                Some(node),
                format!("Public server lost: {why}"),
            ));
        }
    }

    /// A home answers nothing while traffic goes out; with another one there, it is given up before its hellos say so.
    pub(super) fn home_lost(&mut self, node: NodeId, now: Instant) {
        let is_home = |adjacency: &Adjacency| adjacency.server && adjacency.registered;
        let others = self.links.iter().any(|(other, link)| *other != node && is_home(link));
        if !others || !self.links.get(&node).is_some_and(is_home) {
            return;
        }
        self.link_down(node, "it answers nothing", now);
        self.drop_peer_sessions(node, now);
        self.reconnect(node, now);
    }

    /// Forgets the sessions with a peer but not the peer: it may answer again.
    fn drop_peer_sessions(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let gone = peer.sessions.clear();
        peer.clocks.clear();
        peer.since = None;
        peer.agent.set_active(false, now);
        for session in gone {
            std::sync::Arc::make_mut(&mut self.sessions).remove(&session.local_index());
            self.indices.remove(&session.local_index());
        }
        self.fib_dirty = true;
        self.update_entry(node);
    }

    /// Tries again to reach what the configuration names.
    pub(super) fn reconnect(&mut self, node: NodeId, now: Instant) {
        for index in 0..self.bootstraps.len() {
            let named =
                self.bootstraps.get(index).and_then(|entry| entry.bootstrap.node()) == Some(node);
            if named {
                if let Some(entry) = self.bootstraps.get_mut(index) {
                    entry.since = Some(now);
                }
                self.timers.set(Wake::Bootstrap(index), Some(now + Duration::from_millis(100)));
            }
        }
    }

    pub(super) fn on_drain(&mut self, node: NodeId, now: Instant) {
        if self.home(node).is_none() {
            return;
        }
        self.link_down(node, "it is going away", now);
        // It may be back soon, and then knows nothing of this session.
        self.drop_peer_sessions(node, now);
        self.reconnect(node, now);
    }

    /// Links over which routes may lead.
    pub(super) fn own_links(&self) -> Vec<OwnLink> {
        self.links
            .iter()
            .filter(|(node, adjacency)| {
                (!adjacency.server || adjacency.registered)
                    && self.peers.get(node).is_some_and(|peer| {
                        peer.sessions.sending().is_some()
                            && peer.agent.primary().is_some_and(|way| way.is_direct())
                    })
            })
            .map(|(node, adjacency)| OwnLink {
                to: *node,
                cost_us: adjacency.cost.advertised(),
                server: adjacency.server,
            })
            .collect()
    }
}
