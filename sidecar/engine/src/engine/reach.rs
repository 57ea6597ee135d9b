//! Probes, paths, NAT discovery and punching.

use std::time::{Duration, Instant};

use rand_chacha::rand_core::RngCore;
use wire::{
    control::{Body, Endpoints, Punch},
    datagram::{PROBE_LEN, Probe, ProbeOp},
    endpoint::{Candidate, NatProfile, Transport},
    id::NodeId,
    packet::Kind as RecordKind,
    stun::Message,
};

use super::{Engine, QUIET, SOUGHT_FOR, WATCH, Wake};
use crate::{
    config::{P2p, PunchMode},
    drops::DropReason,
    event::{Event, Notice, NoticeKind, Socket, Transmit},
    nat::{self, MAX_FRESH, behaviour},
    path::{
        self, State, Way,
        addr::{Arrival, Hop, SocketId},
    },
    peer::Kind,
    punch::{
        self, Side, Start,
        port::{self, Purpose},
    },
};

/// A probe may be this old by the asker's clock; NATs and relays add milliseconds, suspended machines minutes.
pub(crate) const RECENT: Duration = Duration::from_secs(30);
/// A suspect path without another one for this long: the peer may have restarted, so INIT is said again.
const LOST: Duration = Duration::from_millis(300);

/// A home that stays suspect for so long, while another one is there, is no home any more: 1 s of unanswered traffic, less what
/// suspicion takes.
const HOME_LOST: Duration = Duration::from_millis(700);

/// A probe to send.
struct Ask {
    txid: u64,
    /// Of the whole probe; 0 is the shortest.
    len: u16,
    ttl: Option<u8>,
}

impl Engine {
    /// Sends what a peer's path agent wants sent, and publishes what it chose.
    pub(super) fn drain_agent(&mut self, node: NodeId, now: Instant) {
        let mut changed = false;
        while let Some(output) = self.peers.get_mut(&node).and_then(|peer| peer.agent.poll_output())
        {
            match output {
                path::Output::Probe { way, txid, len } => {
                    self.send_probe(node, way, Ask { txid, len, ttl: None }, now);
                }
                path::Output::Resized => changed = true,
                path::Output::Changed { before, after, reason } => {
                    changed = true;
                    self.on_path_changed(node, before, after, reason, now);
                }
            }
        }
        if changed {
            self.update_entry(node);
            self.link_if_neighbour(node, now);
        }
        self.note_silence(node, now);
        self.arm_peer(node);
    }

    /// An owner with no answering path is as good as unreachable from here at once, whatever the LSDB says.
    pub(super) fn note_silence(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let silent = peer.kind == Kind::Member && peer.answers_nothing(now);
        if silent != peer.silent {
            peer.silent = silent;
            self.throttle.request(now);
        }
    }

    fn on_path_changed(
        &mut self,
        node: NodeId,
        before: Option<Way>,
        after: Option<Way>,
        reason: path::Reason,
        now: Instant,
    ) {
        let direct = after.is_some_and(|way| way.is_direct());
        if direct && before.is_none_or(|way| !way.is_direct()) {
            self.punch.succeeded(node, now);
        }
        if !direct && before.is_some_and(|way| way.is_direct()) {
            self.nat.doubt(now);
        }
        if self.links.contains_key(&node) {
            // Everybody behind this link is reached in another way now.
            let behind: Vec<NodeId> = self
                .peers
                .iter()
                .filter(|(_, peer)| peer.agent.paths().any(|path| path.way == Way::Relayed(node)))
                .map(|(behind, _)| *behind)
                .collect();
            for behind in behind {
                self.update_entry(behind);
            }
            self.fib_dirty = true;
        }
        // Where no link leads, a direct path makes the difference.
        let linked = self.reachable.get(&node).is_some_and(|ways| {
            ways.iter().any(|way| way.via != node || self.links.contains_key(&node))
        });
        if !linked && (direct || before.is_some_and(|way| way.is_direct())) {
            self.throttle.request(now);
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if peer.kind == Kind::Server && reason != path::Reason::Gone {
            return;
        }
        let took = direct
            .then(|| peer.wanted.take())
            .flatten()
            .map(|wanted| now.saturating_duration_since(wanted));
        let message = match after {
            Some(_) if before == after && reason == path::Reason::Suspect => {
                "The path answers nothing"
            }
            Some(_) if before == after => "The path answers again",
            Some(Way::Direct(_)) => "Direct path carries the traffic",
            Some(Way::Relayed(_)) => "A relay carries the traffic",
            None => "No path is left",
        };
        let mut notice = Notice::new(NoticeKind::PathPrimary, Some(node), message)
            .with("reason", reason.as_str());
        match after {
            Some(Way::Direct(hop)) => notice = notice.with("remote", hop.remote()),
            Some(Way::Relayed(via)) => notice = notice.with("via", via),
            None => {}
        }
        if let Some(took) = took {
            notice = notice.with("after_ms", took.as_millis());
        }
        self.notice(notice);
        if !direct {
            self.seek_direct(node, now);
        }
    }

    fn send_probe(&mut self, node: NodeId, way: Way, ask: Ask, now: Instant) {
        let Some(session) = self.peers.get(&node).and_then(|peer| peer.sessions.sending()) else {
            return;
        };
        let micros = self.micros(now);
        let mut probe = Probe::encode(
            ProbeOp::Ask,
            0,
            session.remote_index(),
            ask.txid,
            micros,
            None,
            ask.len.into(),
        );
        session.sign_probe(&mut probe);
        let Some(next) = self.next_hop(node, way) else { return };
        let (hop, bytes) = next.wrap(self.me.short(), probe);
        self.transmits.push_back(Transmit { hop, bytes, ttl: ask.ttl });
    }

    pub(super) fn on_probe(&mut self, arrival: Arrival, probe: &Probe<'_>, now: Instant) {
        let Some(session) = self.sessions.get(&probe.receiver_index).cloned() else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        if !session.verify_probe(probe.bytes) {
            return self.drop_packet(DropReason::Forged);
        }
        let node = session.peer();
        let Some(way) = self.way_of(arrival) else { return };
        match probe.op {
            ProbeOp::Ask => {
                let their_now = Duration::from_micros(probe.sender_time);
                let Some(peer) = self.peers.get_mut(&node) else { return };
                let clock = peer.clocks.entry(session.local_index()).or_default();
                if !clock.is_recent(their_now, RECENT, now) {
                    return self.drop_packet(DropReason::Replayed);
                }
                if way != Way::Relayed(node) {
                    peer.agent.asked(way, probe.bytes.len() > PROBE_LEN, now);
                }
                let seen = arrival.via.is_none().then(|| arrival.hop.remote());
                let mut ack = Probe::encode(
                    ProbeOp::Ack,
                    probe.seq,
                    session.remote_index(),
                    probe.txid,
                    probe.sender_time,
                    seen,
                    0,
                );
                session.sign_probe(&mut ack);
                self.reply(arrival, ack);
            }
            ProbeOp::Ack => {
                let Some(peer) = self.peers.get_mut(&node) else { return };
                if peer.agent.acknowledged(probe.txid, now).is_none() {
                    return self.drop_packet(DropReason::Replayed);
                }
                let by_server =
                    peer.kind == Kind::Server && matches!(way, Way::Direct(Hop::Udp { .. }));
                if by_server {
                    self.nat.observed(probe.observed(), now);
                    // A home that answers in this family can be asked how its NAT maps, too.
                    if self.links.get(&node).is_some_and(|adjacency| adjacency.registered) {
                        self.nat.add_server(arrival.hop.remote(), now);
                    }
                }
                if let Some(adjacency) = self.links.get_mut(&node) {
                    adjacency.link.heard(now);
                }
            }
        }
        self.drain_agent(node, now);
    }

    /// The fast path saw the first packet of a quiet peer.
    pub(super) fn on_active(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.traffic = Some(now);
            if !peer.agent.is_direct() {
                peer.wanted.get_or_insert(now);
            }
        }
        self.timers.set_earlier(Wake::Watch(node), now + WATCH);
        self.seek_direct(node, now);
    }

    /// Looks at what the fast path stamped, for as long as there is traffic.
    pub(super) fn watch(&mut self, node: NodeId, now: Instant) {
        let Some(entry) = self.entries.get(&node) else { return };
        let stats = std::sync::Arc::clone(&entry.stats);
        let (direct, relayed) = (stats.direct.counts(), stats.relayed.counts());
        let at = |stamp: Option<Duration>| stamp.map(|since| self.started + since);
        let tx = at(direct.last_tx.max(relayed.last_tx));
        let any_rx = at(direct.last_rx.max(relayed.last_rx));
        let last = tx.max(any_rx);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.traffic = peer.traffic.max(last);
        // What comes over a relay says nothing of the direct path: the peer may have left it as dead already.
        let rx = if peer.agent.is_direct() { at(direct.last_rx) } else { any_rx };
        peer.agent.traffic(tx, rx, now);
        let lost = peer.agent.primary().and_then(|way| peer.agent.path(way)).is_some_and(|path| {
            path.state == State::Suspect && now.saturating_duration_since(path.since) >= LOST
        });
        let quiet = last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        if quiet {
            stats.cool();
        } else {
            self.timers.set(Wake::Watch(node), Some(now + WATCH));
        }
        let relay = peer.agent.primary().and_then(|way| match way {
            Way::Relayed(relay) => Some(relay),
            Way::Direct(_) => None,
        });
        if lost && self.peers.get(&node).is_some_and(|peer| peer.handshake.is_none()) {
            self.initiate(node, now);
        }
        self.drain_agent(node, now);
        if let Some(relay) = relay {
            self.watch_relay(relay, now);
        }
    }

    /// Looks at a relay that carries traffic. If nothing comes from it any more, not even answers to probes, what it carries
    /// goes over another one, whichever end of the traffic notices first.
    fn watch_relay(&mut self, relay: NodeId, now: Instant) {
        let started = self.started;
        let Some(peer) = self.peers.get_mut(&relay) else { return };
        let at = |millis: u64| (millis > 0).then(|| started + Duration::from_millis(millis));
        let tx = peer.sessions.all().map(|session| session.last_sent()).max().and_then(at);
        let rx = peer.sessions.all().map(|session| session.last_received()).max().and_then(at);
        peer.agent.traffic(tx, rx, now);
        self.drain_agent(relay, now);
        let suspect = self.peers.get(&relay).and_then(|peer| {
            let path = peer.agent.path(peer.agent.primary()?)?;
            (path.state == State::Suspect).then_some(path.since)
        });
        let Some(since) = suspect else { return };
        let way = Way::Relayed(relay);
        let carried: Vec<NodeId> = self
            .peers
            .values()
            .filter(|peer| peer.agent.primary() == Some(way))
            .map(|peer| peer.node)
            .collect();
        for node in carried {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.agent.distrust(way, now);
            }
            self.drain_agent(node, now);
        }
        let suspect_for = now.saturating_duration_since(since);
        if suspect_for >= LOST
            && self.peers.get(&relay).is_some_and(|peer| peer.handshake.is_none())
        {
            // It may have restarted, and know nothing of our session.
            self.initiate(relay, now);
        }
        if suspect_for >= HOME_LOST {
            self.home_lost(relay, now);
        }
    }

    /// Asks for a direct path to a peer with traffic, unless there is one.
    pub(super) fn seek_direct(&mut self, node: NodeId, now: Instant) {
        if self.config.p2p == P2p::RelayOnly || self.config.punch == PunchMode::Off {
            return;
        }
        let Some(peer) = self.peers.get(&node) else { return };
        if peer.kind != Kind::Member || peer.agent.is_direct() || peer.sessions.sending().is_none()
        {
            return;
        }
        if peer.busy(SOUGHT_FOR, now) && !self.punch.running(node) {
            self.punch.want(node, &mut self.rng, now);
        }
    }

    /// The handshake told both sides all they need; `t0` is the common start.
    pub(super) fn punch_after_handshake(&mut self, node: NodeId, t0: Instant, now: Instant) {
        if self.config.p2p == P2p::RelayOnly || self.config.punch == PunchMode::Off {
            return;
        }
        if self.peers.get(&node).is_none_or(|peer| peer.agent.is_direct()) {
            return;
        }
        self.start_punch(node, Start { t0, again: false, socket: None }, &[], now);
    }

    /// `fresh` is where the peer's port of this attempt is, beside the usual one.
    fn start_punch(&mut self, node: NodeId, start: Start, fresh: &[Candidate], now: Instant) {
        let profile = self.nat.profile();
        let candidates = self.own_candidates();
        let Some(peer) = self.peers.get(&node) else { return };
        let theirs: Vec<Candidate> = fresh
            .iter()
            .chain(&peer.endpoints.candidates)
            .filter(|candidate| {
                !self.is_overlay(candidate.addr) && self.socket_for(candidate.addr).is_some()
            })
            .copied()
            .collect();
        let their_profile = peer.endpoints.profile.clone().unwrap_or_default();
        self.punch.start(
            node,
            Side { profile: &profile, candidates: &candidates },
            Side { profile: &their_profile, candidates: &theirs },
            start,
            now,
        );
    }

    /// Sends from the port of the attempt, if there is one.
    fn start_again(&mut self, node: NodeId, t0: Instant, fresh: &[Candidate], now: Instant) {
        let socket = self.ports.of(node).map(|port| port.socket);
        self.start_punch(node, Start { t0, again: true, socket }, fresh, now);
    }

    pub(super) fn on_punch_output(&mut self, output: punch::Output, now: Instant) {
        match output {
            punch::Output::Probe { peer, to, ttl, socket } => {
                let of_attempt = socket.map(|socket| Way::Direct(Hop::Udp { socket, remote: to }));
                let Some(way) = of_attempt.or_else(|| self.udp_way(to)) else { return };
                let Some(state) = self.peers.get_mut(&peer) else { return };
                if state.agent.is_direct() {
                    return;
                }
                let txid = match ttl {
                    // Were it known as a path from now on, the agent's own probes would arrive before T0.
                    Some(_) => self.rng.next_u64(),
                    None => state.agent.probe(way, now),
                };
                self.send_probe(peer, way, Ask { txid, len: 0, ttl }, now);
                self.arm_peer(peer);
            }
            punch::Output::Request { peer, again } => {
                if !self.wants_direct(peer, now) {
                    return self.punch.forget(peer);
                }
                let risky = |profile: &NatProfile| profile.clash_risk;
                let theirs = self.peers.get(&peer).and_then(|peer| peer.endpoints.profile.as_ref());
                if again || risky(&self.nat.profile()) || theirs.is_some_and(risky) {
                    self.prepare_port(peer, Purpose::Request, now);
                } else {
                    self.request_punch(peer, false, now);
                }
            }
            punch::Output::Started { peer, strategy } => {
                let notice =
                    Notice::new(NoticeKind::PunchStarted, Some(peer), "Seeking a direct path");
                self.notice(notice.with("plan", strategy.as_str()));
            }
            punch::Output::Ended { peer, strategy, direct, took } => {
                self.ports.over(peer, now);
                let message = if direct {
                    "Direct path found"
                } else {
                    "No direct path found; the relay carries on"
                };
                let notice = Notice::new(NoticeKind::PunchEnded, Some(peer), message)
                    .with("plan", strategy.as_str())
                    .with("outcome", if direct { "direct" } else { "relayed" })
                    .with("ms", took.as_millis());
                self.notice(notice);
            }
        }
    }

    fn wants_direct(&self, node: NodeId, now: Instant) -> bool {
        self.peers.get(&node).is_some_and(|peer| {
            !peer.agent.is_direct()
                && peer.busy(SOUGHT_FOR, now)
                && peer.sessions.sending().is_some()
        })
    }

    /// Where nothing is translated no port was spoilt.
    fn prepare_port(&mut self, peer: NodeId, purpose: Purpose, now: Instant) {
        if self.nat.is_translated() {
            self.ports.prepare(peer, purpose, now);
        } else {
            self.on_port_ready(peer, purpose, now);
        }
    }

    pub(super) fn on_port_output(&mut self, output: port::Output, now: Instant) {
        match output {
            port::Output::Open { open } => self.events.push_back(Event::OpenSocket { open }),
            port::Output::Ask(ask) => self.send_stun(ask),
            port::Output::Ready { peer, purpose } => self.on_port_ready(peer, purpose, now),
            port::Output::Idle { open, peer, socket } => {
                let carries = |path: &path::Path| {
                    matches!(path.way, Way::Direct(Hop::Udp { socket: on, .. }) if on == socket)
                        && path.acks() > 0
                };
                let peer = self.peers.get(&peer);
                if !peer.is_some_and(|peer| peer.agent.paths().any(carries)) {
                    self.ports.closed(open);
                    self.close_socket(socket, now);
                }
            }
            port::Output::Close { socket } => self.close_socket(socket, now),
        }
    }

    pub(super) fn on_socket_opened(&mut self, open: u32, socket: Option<Socket>, now: Instant) {
        if !self.nat.opened(open, socket, now) {
            self.ports.opened(open, socket, self.nat.responders(), &mut self.rng, now);
        }
    }

    pub(super) fn on_behaviour_output(&mut self, output: behaviour::Output) {
        self.events.push_back(match output {
            behaviour::Output::Open { open } => Event::OpenSocket { open },
            behaviour::Output::Close { socket } => Event::CloseSocket(socket),
        });
    }

    fn close_socket(&mut self, id: SocketId, now: Instant) {
        for node in self.peers.keys().copied().collect::<Vec<_>>() {
            let Some(peer) = self.peers.get_mut(&node) else { continue };
            let over =
                |way: &Way| matches!(way, Way::Direct(Hop::Udp { socket, .. }) if *socket == id);
            let ways: Vec<Way> = peer.agent.paths().map(|path| path.way).filter(over).collect();
            if !ways.is_empty() {
                ways.into_iter().for_each(|way| peer.agent.remove(way, now));
                self.drain_agent(node, now);
            }
        }
        self.events.push_back(Event::CloseSocket(id));
    }

    fn on_port_ready(&mut self, peer: NodeId, purpose: Purpose, now: Instant) {
        match purpose {
            Purpose::Request if self.wants_direct(peer, now) => self.request_punch(peer, true, now),
            Purpose::Request => {
                self.punch.forget(peer);
                self.ports.over(peer, now);
            }
            Purpose::Answer { attempt, fresh } => {
                let endpoints = Some(self.own_endpoints());
                let own = Candidate::pack_all(&self.fresh_candidates(peer));
                let ack = Punch { attempt, endpoints, again: true, fresh: own, ..Punch::default() };
                self.send_control(peer, Body::PunchAck(ack), now);
                // The asker starts when our answer arrives.
                let t0 = now + self.rtt(peer) / 2;
                self.start_again(peer, t0, &fresh, now);
            }
        }
    }

    fn request_punch(&mut self, peer: NodeId, again: bool, now: Instant) {
        let endpoints = Some(self.own_endpoints());
        let attempt = self.micros(now);
        let fresh = Candidate::pack_all(&self.fresh_candidates(peer));
        let request = Punch { attempt, endpoints, again, fresh, ..Punch::default() };
        self.send_control(peer, Body::PunchRequest(request), now);
    }

    /// Where the port of the attempt with a peer is.
    fn fresh_candidates(&self, peer: NodeId) -> Vec<Candidate> {
        let Some(port) = self.ports.of(peer) else { return Vec::new() };
        let mut candidates = self.nat.candidates_of(port.number, port.mapped);
        candidates.retain(|candidate| !self.is_overlay(candidate.addr));
        candidates
    }

    pub(super) fn on_punch_request(&mut self, from: NodeId, punch: &Punch, now: Instant) {
        if self.config.p2p == P2p::RelayOnly || self.config.punch == PunchMode::Off {
            return;
        }
        let rtt = self.rtt(from);
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if let Some(endpoints) = &punch.endpoints {
            peer.endpoints = crate::peer::Endpoints::from(endpoints);
        }
        let attempt = punch.attempt;
        if punch.again {
            // Of two requests that cross, the lower node's counts.
            if from < self.me || !self.ports.asks(from, now) {
                let answer = Purpose::Answer { attempt, fresh: fresh(punch) };
                self.prepare_port(from, answer, now);
            }
            return;
        }
        let ack = Punch { attempt, endpoints: Some(self.own_endpoints()), ..Punch::default() };
        self.send_control(from, Body::PunchAck(ack), now);
        // The asker starts when our answer arrives.
        let start = Start { t0: now + rtt / 2, again: false, socket: None };
        self.start_punch(from, start, &[], now);
    }

    pub(super) fn on_punch_ack(&mut self, from: NodeId, punch: &Punch, now: Instant) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if let Some(endpoints) = &punch.endpoints {
            peer.endpoints = crate::peer::Endpoints::from(endpoints);
        }
        if peer.agent.is_direct() {
            self.ports.over(from, now);
        } else if punch.again {
            self.start_again(from, now, &fresh(punch), now);
        } else {
            let start = Start { t0: now, again: false, socket: None };
            self.start_punch(from, start, &[], now);
        }
    }

    pub(super) fn on_endpoints(&mut self, from: NodeId, endpoints: &Endpoints, now: Instant) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        let before =
            std::mem::replace(&mut peer.endpoints, crate::peer::Endpoints::from(endpoints));
        let news = before.profile != peer.endpoints.profile
            || before.candidates != peer.endpoints.candidates;
        if news && !peer.agent.is_direct() {
            if self.punch.running(from) {
                let start = Start { t0: now, again: false, socket: None };
                self.start_punch(from, start, &[], now);
            } else {
                self.punch.reset(from);
                self.seek_direct(from, now);
            }
        }
    }

    /// Where this node may be reached, as told to peers.
    pub(super) fn own_endpoints(&self) -> Endpoints {
        Endpoints {
            profile: Some(self.nat.profile()),
            candidates: Candidate::pack_all(&self.own_candidates()),
            revision: self.endpoints_revision,
        }
    }

    pub(super) fn own_candidates(&self) -> Vec<Candidate> {
        if self.config.p2p == P2p::RelayOnly {
            return Vec::new();
        }
        let mut candidates = self.nat.candidates();
        candidates.retain(|candidate| !self.is_overlay(candidate.addr));
        candidates
    }

    pub(super) fn on_stun(&mut self, arrival: Arrival, bytes: &[u8], now: Instant) {
        let from = arrival.hop.remote();
        let Some(message) = Message::parse(bytes) else {
            return self.drop_packet(DropReason::Malformed);
        };
        if self.ports.answered(&message, from, now) {
            return;
        }
        let before = (self.nat.profile(), self.nat.candidates());
        if !self.nat.answered(&message, from, now) {
            return self.drop_packet(DropReason::Malformed);
        }
        self.reachability_may_have_changed(&before, now);
    }

    fn send_stun(&mut self, ask: nat::Ask) {
        let hop = Hop::Udp { socket: ask.socket, remote: ask.to };
        self.transmits.push_back(Transmit { hop, bytes: ask.bytes, ttl: None });
    }

    pub(super) fn on_nat_timeout(&mut self, now: Instant) {
        let before = (self.nat.profile(), self.nat.candidates());
        let (asks, ended) = self.nat.handle_timeout(&mut self.rng, now);
        for ask in asks {
            self.send_stun(ask);
        }
        if ended {
            self.reachability_may_have_changed(&before, now);
        }
    }

    fn reachability_may_have_changed(
        &mut self,
        before: &(NatProfile, Vec<Candidate>),
        now: Instant,
    ) {
        let profile = self.nat.profile();
        if profile.lifetime_s != before.0.lifetime_s {
            let lifetime = self.lifetime();
            for peer in self.peers.values_mut() {
                peer.agent.remembered_for(lifetime);
            }
        }
        // How long it remembers makes no other path possible.
        if profile != (NatProfile { lifetime_s: profile.lifetime_s, ..before.0.clone() }) {
            let notice = Notice::new(NoticeKind::NatProfile, None, "NAT behaviour found")
                .with("mapping", profile.mapping().mapping_str())
                .with("filtering", profile.filtering().filtering_str());
            self.notice(notice);
        } else if self.nat.candidates() == before.1 {
            return;
        }
        self.endpoints_revision += 1;
        self.tell_endpoints(now);
    }

    /// How long the NAT before us remembers a flow, if that is known.
    pub(super) fn lifetime(&self) -> Option<Duration> {
        let seconds = self.nat.profile().lifetime_s;
        (seconds > 0).then(|| Duration::from_secs(seconds.into()))
    }

    /// Tells everybody who still reaches us over a relay where we are.
    fn tell_endpoints(&mut self, now: Instant) {
        let relayed: Vec<NodeId> = self
            .peers
            .values()
            .filter(|peer| {
                peer.kind == Kind::Member
                    && peer.sessions.sending().is_some()
                    && !peer.agent.is_direct()
            })
            .map(|peer| peer.node)
            .collect();
        for node in relayed {
            self.punch.reset(node);
            self.send_control(node, Body::Endpoints(self.own_endpoints()), now);
            self.seek_direct(node, now);
        }
    }

    /// Addresses or links of the host changed: every path is looked at now, not when its time comes.
    pub(super) fn underlay_changed(&mut self, now: Instant) {
        self.endpoints_revision += 1;
        for index in 0..self.bootstraps.len() {
            self.timers.set(Wake::Bootstrap(index), Some(now));
        }
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.agent.check_all(now);
            }
            // A packet of ours tells the other side the new address at once.
            self.send_record(node, RecordKind::Keepalive, &[]);
            self.drain_agent(node, now);
        }
        for adjacency in self.links.keys().copied().collect::<Vec<_>>() {
            self.timers.set(Wake::Link(adjacency), Some(now));
        }
        self.tell_endpoints(now);
    }

    fn rtt(&self, node: NodeId) -> Duration {
        self.peers.get(&node).and_then(|peer| peer.agent.rtt()).unwrap_or_default()
    }
}

/// Where the peer's port of an attempt is, as far as we send there.
fn fresh(punch: &Punch) -> Vec<Candidate> {
    let mut candidates = Candidate::unpack_all(&punch.fresh);
    candidates.retain(|one| one.transport == Transport::Udp && one.addr.is_ipv4());
    candidates.truncate(MAX_FRESH);
    candidates
}
