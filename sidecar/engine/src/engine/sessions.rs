//! Handshakes, and records in and out of sessions.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use rand_chacha::rand_core::RngCore;
use session::{
    certificate, cookie,
    handshake::{HandshakeError, Initiator, Responder},
    membership,
    transport::Session,
};
use wire::{
    control::{Body, InitPayload, Ping, Refused, RefusedReason, ResponsePayload},
    datagram::{Cookie, Datagram, Init, Response, Role, Versions},
    endpoint::{Candidate, pack_addr},
    id::{DhKey, NodeId, NodeKeys, SignKey},
    packet::Kind as RecordKind,
};

use super::{Engine, Wake};
use crate::{
    accept::Gate,
    drops::DropReason,
    event::{Event, Notice, NoticeKind, Transmit},
    fib::NextHop,
    path::{Way, addr::Arrival},
    peer::{Attempt, Endpoints, Handshake, Kind, Peer},
    record::{self, Decoded},
};

impl Engine {
    pub(super) fn on_datagram(&mut self, arrival: Arrival, bytes: &[u8], now: Instant) {
        match Datagram::parse(bytes) {
            Some(Datagram::Init(init)) => self.on_init(arrival, &init, now),
            Some(Datagram::Response(response)) => self.on_response(arrival, &response, now),
            Some(Datagram::Cookie(cookie)) => self.on_cookie(arrival, &cookie, now),
            Some(Datagram::Versions(versions)) => self.on_versions(&versions),
            Some(Datagram::Probe(probe)) => self.on_probe(arrival, &probe, now),
            Some(Datagram::Whois(whois)) => self.on_whois(arrival, &whois, now),
            Some(Datagram::Stun(bytes)) => self.on_stun(arrival, bytes, now),
            Some(Datagram::Data(data)) => self.on_data(arrival, data.receiver_index, bytes, now),
            Some(Datagram::Transit(_)) | None => self.drop_packet(DropReason::Malformed),
        }
    }

    /// Gets to know a node by its keys; the peer is made if it is new.
    pub(super) fn meet(&mut self, keys: NodeKeys, kind: Kind) -> Option<&mut Peer> {
        let node = keys.node();
        if node == self.me {
            return None;
        }
        if !self.peers.contains_key(&node) {
            let txid = self.rng.next_u64();
            let datagram = self.longest_datagram();
            let mut peer = Peer::new(keys, kind, txid, datagram);
            peer.agent.remembered_for(self.lifetime());
            self.peers.insert(node, peer);
        }
        self.peers.get_mut(&node)
    }

    /// Begins a handshake; one that is under way says INIT again, since there may be a new way for it.
    pub(super) fn initiate(&mut self, node: NodeId, now: Instant) {
        let known = self.topology.member(node).is_some();
        let Some(peer) = self.peers.get_mut(&node) else { return };
        if let Some(handshake) = &mut peer.handshake {
            handshake.hurry(now);
            self.arm_peer(node);
            return;
        }
        let role = match peer.kind {
            Kind::Server => Role::Server,
            Kind::Member => Role::Member,
            Kind::Unknown if known => Role::Member,
            Kind::Unknown => Role::Any,
        };
        peer.handshake = Some(Handshake::new(role, now));
        self.send_init(node, now);
    }

    pub(super) fn on_handshake_timeout(&mut self, node: NodeId, now: Instant) {
        let Some(peer) = self.peers.get(&node) else { return };
        let Some(handshake) = &peer.handshake else { return };
        let lasting = self.links.contains_key(&node) || !peer.bootstrap.is_empty();
        if handshake.hopeless(now) && !lasting {
            self.end_handshake(node);
            self.fail(node, "no answer to the handshake in 90 s");
            let _held = self.hold.take(node);
            self.note_silence(node, now);
            self.arm_peer(node);
            return;
        }
        if handshake.is_unanswered(now) {
            self.renew_boot(0, now);
        }
        self.send_init(node, now);
        self.note_silence(node, now);
    }

    /// Takes a boot number above ours and `above`, if it is time for one; true if it did.
    pub(super) fn renew_boot(&mut self, above: u32, now: Instant) -> bool {
        let drawn = self.boot.draw(above, self.unix(now), now);
        if drawn {
            self.persist();
        }
        drawn
    }

    fn send_init(&mut self, node: NodeId, now: Instant) {
        let hops = self.handshake_hops(node);
        let index = self.new_index(node);
        let freshness = self.boot.freshness();
        let Some(peer) = self.peers.get(&node) else { return };
        let Some(role) = peer.handshake.as_ref().map(|handshake| handshake.role) else { return };
        // Psk2 enters only with RESPONSE, so where we are reached is told only to keys that a LSA or `?k=` vouches for.
        let trusted = role == Role::Member;
        let payload = InitPayload {
            network: self.config.membership.network.0.to_vec(),
            certificate: Some(self.config.membership.certificate.clone()),
            aead: self.config.aead,
            freshness,
            role: u32::from(role as u8),
            endpoints: trusted.then(|| self.own_endpoints()),
            punch: trusted && !peer.agent.is_direct(),
            capabilities: 0,
            sign: self.config.identity.keys().sign.0.to_vec(),
            clock: self.unix(now),
            epoch: self.config.membership.newest(),
        };
        let dh = peer.keys.dh;
        let started =
            Initiator::start(&self.config.identity, dh, role, index, &payload, &mut self.rng);
        let Ok((initiator, init)) = started else {
            self.indices.remove(&index);
            return;
        };
        for hop in &hops {
            let (hop, bytes) = hop.wrap(self.me.short(), init.clone());
            self.transmits.push_back(Transmit { hop, bytes, ttl: None });
        }
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let Some(handshake) = &mut peer.handshake else { return };
        if let Some(given_up) =
            handshake.attempt(Attempt { index, initiator, init, sent: now }, now)
        {
            self.indices.remove(&given_up);
        }
        self.arm_peer(node);
    }

    /// Where an INIT goes: the way that carries the traffic, every relay, and what the configuration names.
    fn handshake_hops(&self, node: NodeId) -> Vec<NextHop> {
        let Some(peer) = self.peers.get(&node) else { return Vec::new() };
        let mut ways: BTreeSet<Way> = peer.agent.primary().into_iter().collect();
        let relays =
            self.reachable.get(&node).into_iter().flatten().map(|reach| Way::Relayed(reach.via));
        ways.extend(relays.take(2).filter(|way| *way != Way::Relayed(node)));
        ways.extend(peer.bootstrap.iter().map(|hop| Way::Direct(*hop)));
        ways.extend(
            peer.agent
                .paths()
                .filter(|path| path.way.is_direct() && path.acks() > 0)
                .map(|path| path.way),
        );
        ways.into_iter().filter_map(|way| self.next_hop(node, way)).collect()
    }

    fn on_init(&mut self, arrival: Arrival, init: &Init<'_>, now: Instant) {
        let gate = self.acceptor.admit(&self.config.identity, init, &arrival, &mut self.rng, now);
        let responder = match gate {
            Gate::Open(responder) => responder,
            Gate::Reply(bytes) => return self.reply(arrival, bytes),
            Gate::Drop(reason) => return self.drop_packet(reason),
        };
        if responder.payload.role == Role::Server as u32
            || responder.payload.role == Role::Feed as u32
        {
            return self.drop_packet(DropReason::WrongRole);
        }
        let Some((keys, serial)) = self.check_member(&responder, now) else { return };
        let node = keys.node();
        if node == self.me || !self.short_is_free(node) {
            return self.drop_packet(DropReason::DuplicateKey);
        }
        if !self.acceptor.is_fresh(&responder) {
            return self.drop_packet(DropReason::Replayed);
        }
        // Glare: the lower NodeId's initiation wins; the higher answers it, the lower has only to say INIT again
        // where the other's came from, in case its own way there is dead.
        let ours_stands = self.me < node
            && self.peers.get(&node).is_some_and(|peer| {
                peer.handshake.is_some()
                    && peer.sessions.sending().is_none()
                    && !peer.handshake_stale(now)
            });
        if ours_stands {
            let latest =
                self.peers.get(&node).and_then(|peer| peer.handshake.as_ref()?.attempts.back());
            if let Some(bytes) = latest.map(|attempt| attempt.init.clone()) {
                self.reply(arrival, bytes);
            }
            return;
        }
        self.respond(arrival, *responder, keys, serial, now);
    }

    /// The initiator's certificate must be of this network and about the key that it proved to hold.
    fn check_member(&mut self, responder: &Responder, now: Instant) -> Option<(NodeKeys, u64)> {
        if responder.payload.network != self.config.membership.network.0 {
            self.drop_packet(DropReason::WrongNetwork);
            return None;
        }
        let signed = responder.payload.certificate.as_ref();
        let checked = signed.map(|signed| {
            certificate::check(signed, self.config.membership.network, self.unix(now))
        });
        match checked {
            Some(Ok(certified)) if certified.keys.dh == responder.remote => {
                if self.issued.is_revoked(certified.keys.node(), certified.serial) {
                    self.drop_packet(DropReason::Revoked);
                    return None;
                }
                Some((certified.keys, certified.serial))
            }
            Some(Ok(_) | Err(_)) | None => {
                self.drop_packet(DropReason::BadCertificate);
                None
            }
        }
    }

    fn respond(
        &mut self,
        arrival: Arrival,
        responder: Responder,
        keys: NodeKeys,
        serial: u64,
        now: Instant,
    ) {
        let node = keys.node();
        let common = self.config.membership.newest_up_to(responder.payload.epoch);
        let Some((epoch, psk)) = common.map(|(epoch, keys)| (epoch, keys.psk)) else {
            return self.drop_packet(DropReason::KeyEpoch);
        };
        let payload = ResponsePayload {
            network: self.config.membership.network.0.to_vec(),
            certificate: Some(self.config.membership.certificate.clone()),
            observed: observed(arrival),
            endpoints: Some(self.own_endpoints()),
            sign: self.config.identity.keys().sign.0.to_vec(),
            clock: self.unix(now),
            ..ResponsePayload::default()
        };
        let init = responder.payload.clone();
        let index = self.new_index(node);
        let remote_index = responder.receiver_index();
        let epoch = membership::low_byte(epoch);
        let answered =
            responder.respond(Role::Member, &psk, epoch, self.config.aead, index, payload);
        let Ok((response, transport)) = answered else {
            self.indices.remove(&index);
            return self.drop_packet(DropReason::BadHandshake);
        };
        let session = Arc::new(Session::new(node, index, remote_index, &transport, now));
        let Some(peer) = self.meet(keys, Kind::Member) else { return };
        peer.kind = Kind::Member;
        peer.serial = Some(serial);
        if let Some(endpoints) = &init.endpoints {
            peer.endpoints = Endpoints::from(endpoints);
        }
        peer.punch_on_confirm = init.punch;
        let gone = peer.sessions.responded(Arc::clone(&session), now);
        self.remove_sessions(gone);
        self.add_session(session);
        self.reply(arrival, response);
        self.arm_peer(node);
    }

    fn on_response(&mut self, arrival: Arrival, response: &Response<'_>, now: Instant) {
        let Some(&node) = self.indices.get(&response.receiver_index) else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        let membership = Arc::clone(&self.config.membership);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let expected = peer.keys;
        let Some(handshake) = &mut peer.handshake else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        let Some(attempt) =
            handshake.attempts.iter_mut().find(|attempt| attempt.index == response.receiver_index)
        else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        let (sent, index) = (attempt.sent, attempt.index);
        let answer =
            match attempt.initiator.read(response, |_, epoch| membership.psk(epoch).copied()) {
                Ok(answer) => answer,
                Err(error) => {
                    let why = match error {
                        HandshakeError::Forged => {
                            "it answers with another secret: check the network's name and secret"
                        }
                        HandshakeError::RoleMismatch => {
                            "it answers in another role than its key was known for"
                        }
                        HandshakeError::UnknownEpoch => {
                            "it uses a key epoch that this node does not have"
                        }
                        HandshakeError::Malformed | HandshakeError::TooLarge => {
                            "it answers what does not decode"
                        }
                    };
                    self.drop_packet(DropReason::BadHandshake);
                    return self.fail(node, why);
                }
            };
        let mut serial = None;
        if answer.role == Role::Member {
            let network = self.config.membership.network;
            let signed = answer.payload.certificate.as_ref();
            let certified = signed
                .and_then(|signed| certificate::check(signed, network, self.unix(now)).ok())
                .filter(|certified| certified.keys == expected);
            let Some(certified) = certified else {
                self.drop_packet(DropReason::BadCertificate);
                return self.fail(
                    node,
                    "its certificate is not of this network: check the network's name and secret",
                );
            };
            if self.issued.is_revoked(node, certified.serial) {
                self.drop_packet(DropReason::Revoked);
                return self.fail(node, "it was revoked");
            }
            serial = Some(certified.serial);
        }
        let session = Arc::new(Session::new(node, index, response.sender_index, &answer.keys, now));
        let rtt = now.saturating_duration_since(sent);
        self.end_handshake_but(node, index);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.kind = if answer.role == Role::Server { Kind::Server } else { Kind::Member };
        peer.serial = serial;
        peer.clock_offset = i64::try_from(answer.payload.clock)
            .ok()
            .zip(i64::try_from(self.config.unix_at_start).ok())
            .map(|(theirs, at_start)| {
                theirs - at_start - now.saturating_duration_since(self.started).as_secs() as i64
            });
        if let Some(endpoints) = &answer.payload.endpoints {
            peer.endpoints = Endpoints::from(endpoints);
        }
        peer.last_error = None;
        let gone = peer.sessions.initiated(Arc::clone(&session), now);
        self.remove_sessions(gone);
        self.add_session(session);
        self.session_up(node, arrival, now);
        // The responder sends nothing before it has heard us, and takes this moment as the common start.
        self.greet(node, now);
        if answer.role == Role::Member {
            self.punch_after_handshake(node, now + rtt / 2, now);
        }
    }

    fn on_cookie(&mut self, arrival: Arrival, answer: &Cookie<'_>, now: Instant) {
        let Some(&node) = self.indices.get(&answer.receiver_index) else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let dh: DhKey = peer.keys.dh;
        let attempt = peer.handshake.as_mut().and_then(|handshake| {
            handshake.attempts.iter_mut().find(|a| a.index == answer.receiver_index)
        });
        let Some(attempt) = attempt else { return };
        if !cookie::redeem(&mut attempt.init, &dh, answer) {
            return self.drop_packet(DropReason::BadHandshake);
        }
        attempt.sent = now;
        let bytes = attempt.init.clone();
        self.reply(arrival, bytes);
    }

    fn on_versions(&mut self, versions: &Versions) {
        let Some(&node) = self.indices.get(&versions.receiver_index) else { return };
        let why = format!(
            "it speaks protocol versions {} to {}, this node speaks {}: upgrade the older of the two",
            versions.lowest,
            versions.highest,
            wire::VERSION
        );
        self.fail(node, &why);
    }

    /// A session with `node` can be used from now on.
    fn session_up(&mut self, node: NodeId, arrival: Arrival, now: Instant) {
        let way = self.way_of(arrival);
        let relays = self.relays_of(node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let first = peer.since.is_none();
        peer.since.get_or_insert(now);
        peer.agent.set_active(true, now);
        peer.agent.set_relays(&relays, now);
        if let Some(way) = way.filter(|way| *way != Way::Relayed(node)) {
            peer.agent.received(way, now);
        }
        let kind = peer.kind;
        if let crate::path::addr::Hop::Tunnel { id, .. } = arrival.hop {
            self.events.push_back(Event::Authenticated(id));
        }
        if first {
            let what = if kind == Kind::Server { "Server answers" } else { "Peer is up" };
            self.notice(Notice::new(NoticeKind::PeerUp, Some(node), what));
        }
        if kind == Kind::Server {
            if let Some(adjacency) = self.links.get_mut(&node) {
                adjacency.replica.doubt();
            }
            self.register(node, now);
        } else {
            self.link_if_neighbour(node, now);
        }
        self.drain_agent(node, now);
        self.update_entry(node);
        for packet in self.hold.take(node) {
            self.events.push_back(Event::Release(packet));
        }
        self.send_waiting_pings(node, now);
    }

    /// The first records of a session that we began.
    fn greet(&mut self, node: NodeId, now: Instant) {
        let member = self.peers.get(&node).is_some_and(|peer| peer.kind == Kind::Member);
        if member {
            self.send_control(
                node,
                Body::Attributes(self.config.membership.attributes.clone()),
                now,
            );
            self.send_control(node, Body::Endpoints(self.own_endpoints()), now);
        } else {
            self.send_record(node, RecordKind::Keepalive, &[]);
        }
    }

    /// Whether the node at the other end left this session for another one long ago.
    fn is_left(&self, node: NodeId, index: u32, now: Instant) -> bool {
        self.peers.get(&node).is_some_and(|peer| peer.sessions.is_left(index, now))
    }

    /// Tells who speaks in a session that its node left that another one has its keys.
    fn refuse_twin(&mut self, index: u32, arrival: Arrival, now: Instant) {
        let refused = Refused {
            reason: RefusedReason::DuplicateKey as i32,
            message: "another node with the same keys is here".to_owned(),
            retry_s: 0,
        };
        let id = self.micros(now) ^ self.rng.next_u64();
        for plaintext in record::encode(Body::Refused(refused), id) {
            let sealed = self
                .sessions
                .get(&index)
                .and_then(|session| session.seal_record(RecordKind::Control, &plaintext));
            if let Some(sealed) = sealed {
                self.reply(arrival, sealed);
            }
        }
    }

    /// The first packet under a session authenticated.
    pub(super) fn on_heard(&mut self, arrival: Arrival, index: u32, now: Instant) {
        let Some(&node) = self.indices.get(&index) else { return };
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let (confirmed, gone) = peer.sessions.confirm(index, now);
        self.remove_sessions(gone);
        if !confirmed {
            return;
        }
        self.end_handshake(node);
        let way = self.way_of(arrival);
        self.session_up(node, arrival, now);
        // It may have come up again elsewhere, and knows nothing of where it was.
        if let Some(way) = way.filter(Way::is_direct)
            && let Some(peer) = self.peers.get_mut(&node)
            && peer.agent.primary() != Some(way)
        {
            peer.agent.doubt_primary(now);
            self.arm_peer(node);
        }
        self.send_control(node, Body::Attributes(self.config.membership.attributes.clone()), now);
        let punch = self
            .peers
            .get_mut(&node)
            .is_some_and(|peer| std::mem::take(&mut peer.punch_on_confirm));
        if punch {
            self.punch_after_handshake(node, now, now);
        }
    }

    /// A record that a worker could not open: its tables were older than the session.
    fn on_data(&mut self, arrival: Arrival, index: u32, datagram: &[u8], now: Instant) {
        let Some(session) = self.sessions.get(&index) else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        match record::open(session, datagram, now) {
            Ok((kind, plaintext)) => self.on_record(arrival, index, kind, &plaintext, now),
            Err(reason) => self.drop_packet(reason),
        }
    }

    pub(super) fn on_record(
        &mut self,
        arrival: Arrival,
        index: u32,
        kind: RecordKind,
        plaintext: &[u8],
        now: Instant,
    ) {
        let Some(&node) = self.indices.get(&index) else {
            return self.drop_packet(DropReason::UnknownSession);
        };
        self.on_heard(arrival, index, now);
        let way = self.way_of(arrival);
        if let Some(peer) = self.peers.get_mut(&node)
            && let Some(way) = way
            && way != Way::Relayed(node)
        {
            peer.agent.received(way, now);
        }
        if let Some(adjacency) = self.links.get_mut(&node) {
            adjacency.link.heard(now);
        }
        match kind {
            RecordKind::Control => {
                let Some(peer) = self.peers.get_mut(&node) else { return };
                match record::decode(plaintext, &mut peer.chunks) {
                    Decoded::Body(body) => self.on_control(node, index, arrival, body, now),
                    Decoded::Nothing => {}
                    Decoded::Malformed => self.drop_packet(DropReason::Malformed),
                }
            }
            RecordKind::Keepalive => {}
            RecordKind::Fragment => self.on_fragment(node, plaintext),
            RecordKind::Ip => self.deliver(node, plaintext.to_vec()),
            RecordKind::IpPartial => {
                let mut packet = plaintext.to_vec();
                wire::ip::complete(&mut packet);
                self.deliver(node, packet);
            }
            RecordKind::Super => self.drop_packet(DropReason::Malformed),
        }
        self.drain_agent(node, now);
    }

    fn on_control(&mut self, from: NodeId, index: u32, arrival: Arrival, body: Body, now: Instant) {
        match body {
            Body::Attributes(signed) => self.on_attributes(from, &signed, now),
            Body::Hello(_) if self.is_left(from, index, now) => {
                self.refuse_twin(index, arrival, now);
            }
            Body::Hello(hello) => self.on_hello(from, hello, now),
            Body::HelloAck(ack) => self.on_hello_ack(from, &ack, now),
            Body::Announce(announce) => {
                self.flood.announced(&self.lsdb, from, &announce.heads, now)
            }
            Body::Pull(pull) => self.flood.pulled(&self.lsdb, from, &pull.heads, now),
            Body::Push(push) => self.on_push(from, push, now),
            Body::Digest(digest) => self.sync.on_digest(&self.lsdb, from, &digest),
            Body::Buckets(buckets) => self.sync.on_buckets(&self.lsdb, from, &buckets, now),
            Body::BucketHeads(heads) => {
                self.sync.on_bucket_heads(&self.lsdb, from, &heads, now);
                self.flood.announced(&self.lsdb, from, &heads.heads, now);
            }
            Body::PunchRequest(punch) => self.on_punch_request(from, &punch, now),
            Body::PunchAck(punch) => self.on_punch_ack(from, &punch, now),
            Body::Registered(registered) => self.on_registered(from, &registered, now),
            Body::Refused(refused) => self.on_refused(from, &refused, now),
            Body::Attach(attach) => self.on_attach(from, &attach, now),
            Body::Leave(_) => self.on_peer_leave(from, now),
            Body::Drain(_) => self.on_drain(from, now),
            Body::Ping(ping) => self.send_control(from, Body::Pong(ping), now),
            Body::Pong(pong) => self.on_pong(from, arrival, &pong, now),
            Body::Endpoints(endpoints) => self.on_endpoints(from, &endpoints, now),
            // For servers, and for a later version.
            Body::Register(_) | Body::Rpc(_) | Body::Chunk(_) => {
                self.drop_packet(DropReason::Malformed)
            }
        }
    }

    fn on_fragment(&mut self, from: NodeId, piece: &[u8]) {
        let Some(peer) = self.peers.get_mut(&from) else { return };
        if let Some(packet) = peer.fragments.take_piece(piece) {
            self.deliver(from, packet);
        }
    }

    /// Puts a packet of a peer's into the TUN, if its addresses may stand in it.
    fn deliver(&mut self, from: NodeId, packet: Vec<u8>) {
        let Some((src, dst)) = wire::ip::addresses(&packet) else {
            return self.drop_packet(DropReason::NotIp);
        };
        let local = self.local();
        if !self.entries.get(&from).is_some_and(|entry| entry.allows(src)) {
            return self.drop_packet(local.refusal(src));
        }
        if !local.accepts(dst) {
            return self.drop_packet(DropReason::NotOurs);
        }
        self.events.push_back(Event::Deliver(packet));
    }

    fn on_peer_leave(&mut self, node: NodeId, now: Instant) {
        if self.links.contains_key(&node) {
            self.link_down(node, "it left", now);
        }
        self.drop_peer(node, "it left", now);
        self.reconnect(node, now);
    }

    /// Seals and sends a control record over the way that carries the peer's traffic, in pieces if it has to be.
    pub(super) fn send_control(&mut self, node: NodeId, body: Body, now: Instant) {
        self.send_control_to(&[node], body, now);
    }

    /// The same to several.
    pub(super) fn send_control_to(&mut self, nodes: &[NodeId], body: Body, now: Instant) {
        let id = self.micros(now) ^ self.rng.next_u64();
        let plaintexts = record::encode(body, id);
        for node in nodes {
            for plaintext in &plaintexts {
                self.send_record(*node, RecordKind::Control, plaintext);
            }
        }
    }

    pub(super) fn send_record(&mut self, node: NodeId, kind: RecordKind, plaintext: &[u8]) {
        let Some(peer) = self.peers.get(&node) else { return };
        let Some(way) = peer.agent.primary() else { return };
        let Some(session) = peer.sessions.sending() else { return };
        let Some(sealed) = session.seal_record(kind, plaintext) else { return };
        let second = peer.agent.bicast().and_then(|way| self.next_hop(node, way));
        let Some(hop) = self.next_hop(node, way) else { return };
        if let Some(second) = second {
            let (hop, bytes) = second.wrap(self.me.short(), sealed.clone());
            self.transmits.push_back(Transmit { hop, bytes, ttl: None });
        }
        let (hop, bytes) = hop.wrap(self.me.short(), sealed);
        self.transmits.push_back(Transmit { hop, bytes, ttl: None });
    }

    /// Sends a datagram back the way that one came.
    pub(super) fn reply(&mut self, arrival: Arrival, bytes: Vec<u8>) {
        let Some(via) = arrival.via else {
            self.transmits.push_back(Transmit { hop: arrival.hop, bytes, ttl: None });
            return;
        };
        let Some(link) = self.sessions.get(&via.link).cloned() else { return };
        let next = NextHop::Relayed { link, hop: arrival.hop, dst: via.src };
        let (hop, bytes) = next.wrap(self.me.short(), bytes);
        self.transmits.push_back(Transmit { hop, bytes, ttl: None });
    }

    /// How sealed bytes for `node` travel on `way`.
    pub(super) fn next_hop(&self, node: NodeId, way: Way) -> Option<NextHop> {
        match way {
            Way::Direct(hop) => Some(NextHop::Direct(hop)),
            Way::Relayed(relay) => {
                let relay = self.peers.get(&relay)?;
                let link = Arc::clone(relay.sessions.sending()?);
                match relay.agent.primary()? {
                    Way::Direct(hop) => Some(NextHop::Relayed { link, hop, dst: node.short() }),
                    Way::Relayed(_) => None,
                }
            }
        }
    }

    /// The way that an arrival came by, from this side.
    pub(super) fn way_of(&self, arrival: Arrival) -> Option<Way> {
        match arrival.via {
            None => Some(Way::Direct(arrival.hop)),
            Some(via) => self.sessions.get(&via.link).map(|link| Way::Relayed(link.peer())),
        }
    }

    pub(super) fn on_session_timeout(&mut self, node: NodeId, now: Instant) {
        let linked = self.links.contains_key(&node);
        let Some(peer) = self.peers.get_mut(&node) else { return };
        let gone = peer.sessions.expire(now);
        let rekey = peer.sessions.rekey_at().is_some_and(|at| at <= now)
            && (linked || peer.busy(super::SOUGHT_FOR, now) || !peer.bootstrap.is_empty());
        let over = peer.sessions.sending().is_none() && peer.since.is_some();
        self.remove_sessions(gone);
        if rekey {
            self.initiate(node, now);
        }
        if over {
            self.session_over(node, now);
        }
        self.arm_peer(node);
        if !rekey && let Some(peer) = self.peers.get(&node) {
            self.timers.set(Wake::Session(node), peer.sessions.expires());
        }
    }

    /// The last session with a peer ran out.
    fn session_over(&mut self, node: NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.since = None;
            peer.agent.set_active(false, now);
        }
        self.notice(Notice::new(NoticeKind::PeerDown, Some(node), "Session ended"));
        if self.links.contains_key(&node) {
            self.link_down(node, "its session ran out", now);
        }
        self.update_entry(node);
        self.reconnect(node, now);
    }

    /// Forgets a peer and all that hangs on it.
    pub(super) fn drop_peer(&mut self, node: NodeId, why: &str, now: Instant) {
        self.end_handshake(node);
        let Some(mut peer) = self.peers.remove(&node) else { return };
        let gone = peer.sessions.clear();
        self.remove_sessions(gone);
        self.punch.forget(node);
        self.ports.over(node, now);
        let _held = self.hold.take(node);
        if peer.silent {
            self.throttle.request(now);
        }
        if peer.since.is_some() {
            self.notice(Notice::new(
                NoticeKind::PeerDown,
                Some(node),
                format!("Peer is down: {why}"),
            ));
        }
        self.update_entry(node);
        self.arm_peer(node);
    }

    fn end_handshake(&mut self, node: NodeId) {
        self.end_handshake_but(node, 0);
    }

    /// Ends the handshake; the index of the attempt that became a session stays.
    fn end_handshake_but(&mut self, node: NodeId, kept: u32) {
        let Some(handshake) = self.peers.get_mut(&node).and_then(|peer| peer.handshake.take())
        else {
            return;
        };
        for attempt in handshake.attempts {
            if attempt.index != kept {
                self.indices.remove(&attempt.index);
            }
        }
        self.timers.set(Wake::Handshake(node), None);
    }

    pub(super) fn fail(&mut self, node: NodeId, why: &str) {
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.last_error = Some(why.to_owned());
        }
    }

    /// An index that nothing uses; 0 never is one.
    fn new_index(&mut self, node: NodeId) -> u32 {
        loop {
            self.next_index = self.next_index.wrapping_add(1);
            if self.next_index != 0 && !self.indices.contains_key(&self.next_index) {
                self.indices.insert(self.next_index, node);
                return self.next_index;
            }
        }
    }

    fn add_session(&mut self, session: Arc<Session>) {
        let peer = session.peer();
        Arc::make_mut(&mut self.sessions).insert(session.local_index(), session);
        self.fib_dirty = true;
        // The first packet may come before we can seal anything ourselves.
        self.update_entry(peer);
    }

    fn remove_sessions(&mut self, gone: impl IntoIterator<Item = Arc<Session>>) {
        for session in gone {
            Arc::make_mut(&mut self.sessions).remove(&session.local_index());
            self.indices.remove(&session.local_index());
            if let Some(peer) = self.peers.get_mut(&session.peer()) {
                peer.clocks.remove(&session.local_index());
            }
            self.fib_dirty = true;
        }
    }

    /// Whether no other node has this node's short id, which packet headers carry.
    pub(super) fn short_is_free(&self, node: NodeId) -> bool {
        let same = node.short().nodes();
        let members = self.topology.members_in(same.clone()).map(|(known, _)| known);
        let peers = self.peers.range(same).map(|(known, _)| *known);
        peers.chain(members).all(|known| known == node)
            && (self.me == node || self.me.short() != node.short())
    }

    pub(super) fn on_outbound(&mut self, packet: &[u8], node: NodeId, now: Instant) {
        let Some(member) = self.topology.member(node) else { return };
        let keys = member.keys;
        self.hold.push(node, packet);
        let Some(peer) = self.meet(keys, Kind::Member) else { return };
        peer.traffic = Some(now);
        peer.wanted.get_or_insert(now);
        if peer.sessions.sending().is_some() {
            for packet in self.hold.take(node) {
                self.events.push_back(Event::Release(packet));
            }
            return;
        }
        self.seek_session(node, now);
    }

    /// Begins a handshake because there is something to send; one that runs keeps its pace, or every packet would be another
    /// INIT.
    fn seek_session(&mut self, node: NodeId, now: Instant) {
        if self.peers.get(&node).is_some_and(|peer| peer.handshake.is_none()) {
            self.initiate(node, now);
        }
    }

    pub(super) fn on_ping(&mut self, id: u64, node: NodeId, now: Instant) {
        let Some(keys) = self.topology.member(node).map(|member| member.keys) else { return };
        self.pings.waiting.insert(id, (node, now, None));
        let Some(peer) = self.meet(keys, Kind::Member) else { return };
        if peer.sessions.sending().is_none() {
            peer.traffic = Some(now);
            self.seek_session(node, now);
        } else {
            self.on_active(node, now);
        }
        self.send_waiting_pings(node, now);
    }

    fn send_waiting_pings(&mut self, node: NodeId, now: Instant) {
        if self.peers.get(&node).is_none_or(|peer| peer.sessions.sending().is_none()) {
            return;
        }
        let sent_us = self.micros(now);
        let due: Vec<u64> = self
            .pings
            .waiting
            .iter_mut()
            .filter(|(_, (to, _, sent))| *to == node && sent.is_none())
            .map(|(id, (_, _, sent))| {
                *sent = Some(now);
                *id
            })
            .collect();
        if due.is_empty() {
            return;
        }
        for id in due {
            self.send_control(node, Body::Ping(Ping { id, sent_us }), now);
        }
        // Without an answer the path is doubted as for any packet.
        if let Some(peer) = self.peers.get_mut(&node) {
            peer.agent.traffic(Some(now), None, now);
        }
        self.drain_agent(node, now);
    }

    fn on_pong(&mut self, from: NodeId, arrival: Arrival, pong: &Ping, now: Instant) {
        let Some((node, _, Some(sent))) = self.pings.waiting.get(&pong.id).copied() else { return };
        if node != from {
            return;
        }
        self.pings.waiting.remove(&pong.id);
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.agent.traffic(None, Some(now), now);
        }
        self.events.push_back(Event::Pong {
            id: pong.id,
            peer: from,
            rtt: now.saturating_duration_since(sent),
            relayed: arrival.via.is_some(),
            hop: arrival.hop,
        });
    }

    fn on_attributes(&mut self, from: NodeId, signed: &wire::certificate::Signed, now: Instant) {
        let Some(sign) = self.peers.get(&from).map(|peer| peer.keys.sign) else { return };
        let root: SignKey = self.config.membership.root;
        match certificate::check_attributes(signed, &root, &sign, self.unix(now)) {
            Ok(attributes) => {
                if let Some(peer) = self.peers.get_mut(&from) {
                    peer.attributes = Some(attributes);
                }
            }
            Err(_) => self.drop_packet(DropReason::BadCertificate),
        }
    }
}

/// What RESPONSE tells the initiator of its own address: nothing over a relay.
fn observed(arrival: Arrival) -> Vec<u8> {
    if arrival.via.is_some() { Vec::new() } else { pack_addr(arrival.hop.remote()).to_vec() }
}

impl From<&wire::control::Endpoints> for Endpoints {
    fn from(told: &wire::control::Endpoints) -> Self {
        Self { profile: told.profile.clone(), candidates: Candidate::unpack_all(&told.candidates) }
    }
}

impl Peer {
    /// A handshake that nobody answered for so long that the other's may take its place.
    fn handshake_stale(&self, now: Instant) -> bool {
        self.handshake.as_ref().is_some_and(|handshake| {
            now.saturating_duration_since(handshake.began) > std::time::Duration::from_secs(2)
        })
    }
}
