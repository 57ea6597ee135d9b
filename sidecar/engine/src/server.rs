//! The public server: introduces members of networks to each other and forwards what it cannot read.
//!
//! It holds no network's secret. It sees network ids, node keys, sizes and times; it stores LSAs as signed, sealed bytes and
//! forwards TRANSIT by 64-bit ids. Whoever attaches proves with a certificate that hashes to the NetworkId that it belongs
//! there, so nobody can squat a network.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use session::{
    certificate,
    cookie::{Limiter, Source},
    handshake::{NO_PSK, Responder},
    identity::{self, Identity},
    lsa,
    transport::Session,
};
use wire::{
    control::{Body, Hello, Push, Refused, RefusedReason, Register, Registered, ResponsePayload},
    datagram::{Datagram, Init, Probe, ProbeOp, Role, Whois},
    endpoint::pack_addr,
    id::{DhKey, NetworkId, NodeId, SignKey},
    lsa::{Container, LsaType},
    packet::Kind,
    stun::{self, Class},
};

use crate::{
    accept::{Acceptor, Gate},
    attach::Attached,
    drops::{DropReason, Drops},
    engine::REGISTER_CONTEXT,
    event::{Event, Input, Notice, NoticeKind, Socket, Transmit},
    fib::{Fib, Forward, Link, Meter, Quota},
    path::addr::{Arrival, Hop},
    reassembly::{Reassembly, RemoteClock},
    record::{self, Decoded},
    routing::{
        flood::Flood,
        issued::{Change, Issued},
        lsdb::{Freshness, Limits, Lsdb},
        sync::Sync,
    },
    timer::Timers,
};

/// A session that does not register within this is forgotten.
const REGISTER_WITHIN: Duration = Duration::from_secs(10);
/// A member that says nothing for this long is gone: three of its hellos.
const SILENT: Duration = Duration::from_secs(15);
/// Keys older than this are gone.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// What an empty network leaves behind is kept this long, for members that only restart.
const KEEP_EMPTY: Duration = Duration::from_secs(120);
const SWEEP: Duration = Duration::from_secs(1);
/// Members that come or go within this are told of together: when a server starts, all of them come.
const GATHER: Duration = Duration::from_millis(50);
/// Sessions that may wait for REGISTER at once.
const MAX_STRANGERS: usize = 4096;
/// Networks that one IPv4 address or IPv6 /64 may bring to an open server: many for an office behind one address, few of
/// what the server bears.
const MAX_NETWORKS_PER_SOURCE: usize = 64;
/// A member leaves an old session for the new one at once. Who still says hello in the old one after this is another node with
/// the same keys.
const TWIN_AFTER: Duration = Duration::from_secs(3);
/// A STUN answer is put off at most so long, and so many at once, in all and for one source: enough to ask one NAT how long it
/// remembers.
const LATEST_ANSWER: Duration = Duration::from_secs(240);
const MAX_LATE: usize = 1024;
const MAX_LATE_PER_SOURCE: usize = 8;
/// A probe may be this old by the asker's clock.
const RECENT: Duration = crate::engine::RECENT_PROBE;

/// What a server is told.
#[derive(Clone, Debug)]
pub struct Config {
    pub identity: Arc<Identity>,
    pub aead: u32,
    pub admission: Admission,
    /// Bytes per second relayed for one node, and for one network.
    pub rate_node: u64,
    pub rate_network: u64,
    pub max_nodes_per_network: usize,
    pub max_networks: usize,
    pub unix_at_start: u64,
}

impl Config {
    /// An open server with rates that a small machine bears.
    pub fn open(identity: Arc<Identity>, aead: u32, unix_at_start: u64) -> Self {
        Self {
            identity,
            aead,
            admission: Admission::Open,
            rate_node: 250_000_000,
            rate_network: 1_000_000_000,
            max_nodes_per_network: 10_000,
            max_networks: 1_000,
            unix_at_start,
        }
    }
}

/// Which networks may attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    Open,
    Listed(BTreeSet<NetworkId>),
}

/// Why a deadline was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wake {
    Sweep,
    Flood(NetworkId),
    Attached(NetworkId),
    Late,
}

/// The machine.
#[derive(Debug)]
pub struct Server {
    config: Config,
    started: Instant,
    rng: ChaCha12Rng,
    acceptor: Acceptor,
    limiter: Limiter,
    drops: Arc<Drops>,
    clients: BTreeMap<u32, Client>,
    networks: BTreeMap<NetworkId, Tenant>,
    next_index: u32,
    sockets: Vec<Socket>,
    /// STUN answers that were asked for late.
    late: VecDeque<Late>,
    sessions: Arc<BTreeMap<u32, Arc<Session>>>,
    links: Arc<BTreeMap<u32, Link>>,
    forwards: Arc<BTreeMap<(NetworkId, wire::id::ShortId), Forward>>,
    fib_dirty: bool,
    timers: Timers<Wake>,
    transmits: VecDeque<Transmit>,
    events: VecDeque<Event>,
}

/// A STUN answer that is put off.
#[derive(Debug)]
struct Late {
    at: Instant,
    source: Source,
    answer: Transmit,
}

/// One session.
#[derive(Debug)]
struct Client {
    session: Arc<Session>,
    dh: DhKey,
    hop: Hop,
    member: Option<(NetworkId, NodeId)>,
    /// Of the certificate that it registered with.
    serial: u64,
    heard: Instant,
    chunks: Reassembly,
    clock: RemoteClock,
    /// Since when another session of the same member is the one that counts.
    superseded: Option<Instant>,
}

/// One network, opaque.
#[derive(Debug)]
struct Tenant {
    lsdb: Lsdb,
    flood: Flood,
    sync: Sync,
    attached: Attached,
    issued: Issued,
    /// The session that each attached member registered last.
    sessions: BTreeMap<NodeId, u32>,
    meter: Arc<Meter>,
    /// Who brought it.
    source: Source,
    empty_since: Option<Instant>,
}

/// Counts, for status and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub networks: usize,
    pub attached: usize,
    pub sessions: usize,
    pub lsas: usize,
}

impl Server {
    pub fn new(config: Config, seed: [u8; 32], now: Instant) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let mut timers = Timers::new();
        timers.set(Wake::Sweep, Some(now + SWEEP));
        Self {
            started: now,
            acceptor: Acceptor::new(&mut rng, now),
            limiter: Limiter::new(now),
            drops: Arc::default(),
            clients: BTreeMap::new(),
            networks: BTreeMap::new(),
            next_index: rng.next_u32(),
            sockets: Vec::new(),
            late: VecDeque::new(),
            sessions: Arc::default(),
            links: Arc::default(),
            forwards: Arc::default(),
            fib_dirty: true,
            timers,
            transmits: VecDeque::new(),
            events: VecDeque::new(),
            config,
            rng,
        }
    }

    pub fn node(&self) -> NodeId {
        self.config.identity.node()
    }

    pub fn drops(&self) -> &Arc<Drops> {
        &self.drops
    }

    pub fn counts(&self) -> Counts {
        Counts {
            networks: self.networks.len(),
            attached: self.networks.values().map(|tenant| tenant.attached.len()).sum(),
            sessions: self.clients.len(),
            lsas: self.networks.values().map(|tenant| tenant.lsdb.len()).sum(),
        }
    }

    /// Who of a network is attached here, and the digest of what is stored for it.
    pub fn network(&self, network: NetworkId) -> Option<(Vec<NodeId>, u64)> {
        let tenant = self.networks.get(&network)?;
        Some((tenant.attached.nodes().collect(), tenant.lsdb.root()))
    }

    pub fn handle_input(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Datagram { arrival, bytes } => self.on_datagram(arrival, bytes, now),
            Input::Record { arrival, session, kind, plaintext } => {
                self.on_record(arrival, session, kind, plaintext, now);
            }
            Input::Heard { arrival, session } => self.on_heard(arrival, session, now),
            Input::Sockets(sockets) => self.sockets = sockets,
            Input::TunnelDown { id: Some(id), .. } => {
                let is_it =
                    |hop: &Hop| matches!(hop, Hop::Tunnel { id: other, .. } if *other == id);
                let gone: Vec<u32> = self
                    .clients
                    .iter()
                    .filter(|(_, client)| is_it(&client.hop))
                    .map(|(index, _)| *index)
                    .collect();
                for index in gone {
                    self.remove(index, now);
                }
            }
            Input::Leave => {
                let indices: Vec<u32> = self.clients.keys().copied().collect();
                for index in indices {
                    let drain = wire::control::Drain { elsewhere: Vec::new(), within_s: 0 };
                    self.send(index, Body::Drain(drain));
                }
                self.events.push_back(Event::Left);
            }
            // A server has no TUN, no peers of its own and nobody to call.
            Input::Outbound { .. }
            | Input::Active { .. }
            | Input::Underlay(_)
            | Input::Networks(_)
            | Input::Bootstrap { .. }
            | Input::TunnelUp { .. }
            | Input::TunnelDown { id: None, .. }
            | Input::SocketOpened { .. }
            | Input::Configure(_)
            | Input::Ping { .. }
            | Input::Punch { .. } => {}
        }
        self.settle();
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(wake) = self.timers.pop_due(now) {
            match wake {
                Wake::Sweep => self.sweep(now),
                Wake::Attached(network) => self.tell_attached(network),
                Wake::Late => self.send_late(now),
                Wake::Flood(network) => {
                    if let Some(tenant) = self.networks.get_mut(&network) {
                        tenant.flood.handle_timeout(&tenant.lsdb, now);
                    }
                }
            }
        }
        self.settle();
    }

    pub fn poll_timeout(&self) -> Option<(Instant, Wake)> {
        self.timers.next()
    }

    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        self.transmits.pop_front()
    }

    /// Drain this before [`Server::poll_transmit`].
    pub fn poll_event(&mut self) -> Option<Event> {
        if self.fib_dirty {
            self.fib_dirty = false;
            let mut fib = Fib::new(self.node(), self.started, u16::MAX);
            fib.sessions = Arc::clone(&self.sessions);
            fib.links = Arc::clone(&self.links);
            fib.forwards = Arc::clone(&self.forwards);
            fib.drops = Arc::clone(&self.drops);
            return Some(Event::Fib(Arc::new(fib)));
        }
        self.events.pop_front()
    }

    fn settle(&mut self) {
        let networks: Vec<NetworkId> = self.networks.keys().copied().collect();
        for network in networks {
            while let Some(tenant) = self.networks.get_mut(&network) {
                let one = |(node, body)| (vec![node], body);
                let output =
                    tenant.flood.poll_output().or_else(|| tenant.sync.poll_output().map(one));
                let Some((nodes, body)) = output else { break };
                let sessions = nodes.iter().filter_map(|node| tenant.sessions.get(node).copied());
                let sessions: Vec<u32> = sessions.collect();
                self.send_to(&sessions, body);
            }
            if let Some(tenant) = self.networks.get(&network) {
                self.timers.set(Wake::Flood(network), tenant.flood.poll_timeout());
            }
        }
    }

    fn on_datagram(&mut self, arrival: Arrival, bytes: &[u8], now: Instant) {
        match Datagram::parse(bytes) {
            Some(Datagram::Init(init)) => self.on_init(arrival, &init, now),
            Some(Datagram::Probe(probe)) => self.on_probe(arrival, &probe, now),
            Some(Datagram::Whois(whois)) if !whois.answer => {
                if !self.limiter.accept(Source::of(arrival.hop.remote().ip()), now) {
                    return self.drops.count(DropReason::PuntLimited);
                }
                let answer = Whois::answer(whois.txid, &self.config.identity.keys(), &[0; 64]);
                self.transmit(arrival.hop, answer.to_vec());
            }
            Some(Datagram::Stun(bytes)) => self.on_stun(arrival, bytes, now),
            Some(Datagram::Data(data)) => self.on_data(arrival, data.receiver_index, bytes, now),
            Some(
                Datagram::Response(_)
                | Datagram::Cookie(_)
                | Datagram::Versions(_)
                | Datagram::Whois(_)
                | Datagram::Transit(_),
            )
            | None => self.drops.count(DropReason::Malformed),
        }
    }

    fn on_stun(&mut self, arrival: Arrival, bytes: &[u8], now: Instant) {
        let Some(mut question) =
            stun::Message::parse(bytes).filter(|message| message.class == Class::Request)
        else {
            return self.drops.count(DropReason::Malformed);
        };
        let remote = arrival.hop.remote();
        let source = Source::of(remote.ip());
        if !self.limiter.accept(source, now) {
            return self.drops.count(DropReason::PuntLimited);
        }
        let asked = self.socket_of(arrival.hop);
        let mut hop = arrival.hop;
        if question.change != stun::Change::default() {
            match asked.and_then(|asked| self.elsewhere(asked, question.change)) {
                Some(other) => hop = Hop::Udp { socket: other.id, remote },
                None => question.unknown.push(stun::CHANGE_REQUEST),
            }
        }
        // Who listens on all addresses does not know which one was asked.
        let named = |socket: Socket| Some(socket.local).filter(|addr| !addr.ip().is_unspecified());
        let both = stun::Change { ip: true, port: true };
        let other = asked.and_then(|asked| self.elsewhere(asked, both)).and_then(named);
        let origin = self.socket_of(hop).and_then(named);
        let bytes_asked = bytes.len();
        let bytes = stun::answer(&question, remote, origin, other);
        if bytes.len() > bytes_asked {
            // A source may be forged: nobody is to get more from us than was sent in his name.
            return self.drops.count(DropReason::Malformed);
        }
        let answer = Transmit { hop, bytes, ttl: None };
        match Duration::from_secs(question.delay.into()) {
            Duration::ZERO => self.transmits.push_back(answer),
            delay => self.answer_late(answer, source, delay, now),
        }
    }

    /// One question gets one answer, late as it may be.
    fn answer_late(&mut self, answer: Transmit, source: Source, delay: Duration, now: Instant) {
        let own = self.late.iter().filter(|late| late.source == source).count();
        if delay > LATEST_ANSWER || own >= MAX_LATE_PER_SOURCE || self.late.len() >= MAX_LATE {
            return self.drops.count(DropReason::OverQuota);
        }
        let at = now + delay;
        let place = self.late.partition_point(|late| late.at <= at);
        self.late.insert(place, Late { at, source, answer });
        self.timers.set_earlier(Wake::Late, at);
    }

    fn send_late(&mut self, now: Instant) {
        while let Some(late) = self.late.pop_front_if(|late| late.at <= now) {
            self.transmits.push_back(late.answer);
        }
        self.timers.set(Wake::Late, self.late.front().map(|late| late.at));
    }

    fn socket_of(&self, hop: Hop) -> Option<Socket> {
        let Hop::Udp { socket, .. } = hop else { return None };
        self.sockets.iter().find(|own| own.id == socket).copied()
    }

    /// The socket that answers what came to `asked` from another address, or only from another port of the same.
    fn elsewhere(&self, asked: Socket, change: stun::Change) -> Option<Socket> {
        let differs = |own: &&Socket| {
            let (ip, port) = (own.local.ip(), own.local.port());
            let same_ip = ip == asked.local.ip();
            let known = !ip.is_unspecified() && !asked.local.ip().is_unspecified();
            own.local.is_ipv4() == asked.local.is_ipv4()
                && if change.ip { !same_ip && known } else { same_ip }
                && (port != asked.local.port()) == change.port
        };
        self.sockets.iter().find(differs).copied()
    }

    fn on_init(&mut self, arrival: Arrival, init: &Init<'_>, now: Instant) {
        let gate = self.acceptor.admit(&self.config.identity, init, &arrival, &mut self.rng, now);
        let responder = match gate {
            Gate::Open(responder) => responder,
            Gate::Reply(bytes) => return self.transmit(arrival.hop, bytes),
            Gate::Drop(reason) => return self.drops.count(reason),
        };
        let wanted = responder.payload.role;
        if wanted != Role::Server as u32 && wanted != Role::Any as u32 {
            return self.drops.count(DropReason::WrongRole);
        }
        let strangers = self.clients.values().filter(|client| client.member.is_none()).count();
        if strangers >= MAX_STRANGERS {
            return self.drops.count(DropReason::OverQuota);
        }
        if !self.acceptor.is_fresh(&responder) {
            return self.drops.count(DropReason::Replayed);
        }
        self.respond(arrival, *responder, now);
    }

    fn respond(&mut self, arrival: Arrival, responder: Responder, now: Instant) {
        let Some(sign) = SignKey::from_slice(&responder.payload.sign) else {
            return self.drops.count(DropReason::BadHandshake);
        };
        let node = NodeId::of(&sign);
        let (dh, remote_index) = (responder.remote, responder.receiver_index());
        let payload = ResponsePayload {
            observed: if arrival.via.is_some() {
                Vec::new()
            } else {
                pack_addr(arrival.hop.remote()).to_vec()
            },
            sign: self.config.identity.keys().sign.0.to_vec(),
            clock: self.unix(now),
            ..ResponsePayload::default()
        };
        let index = self.new_index();
        let Ok((response, keys)) =
            responder.respond(Role::Server, &NO_PSK, 0, self.config.aead, index, payload)
        else {
            return self.drops.count(DropReason::BadHandshake);
        };
        let session = Arc::new(Session::new(node, index, remote_index, &keys, now));
        Arc::make_mut(&mut self.sessions).insert(index, Arc::clone(&session));
        let client = Client {
            session,
            dh,
            hop: arrival.hop,
            member: None,
            serial: 0,
            heard: now,
            chunks: Reassembly::default(),
            clock: RemoteClock::default(),
            superseded: None,
        };
        self.clients.insert(index, client);
        self.fib_dirty = true;
        self.transmit(arrival.hop, response);
    }

    fn on_probe(&mut self, arrival: Arrival, probe: &Probe<'_>, now: Instant) {
        let Some(session) = self.sessions.get(&probe.receiver_index) else {
            return self.drops.count(DropReason::UnknownSession);
        };
        if !session.verify_probe(probe.bytes) {
            return self.drops.count(DropReason::Forged);
        }
        if probe.op == ProbeOp::Ack {
            return self.drops.count(DropReason::Malformed);
        }
        let stamp = Duration::from_micros(probe.sender_time);
        let client = self.clients.get_mut(&probe.receiver_index);
        if !client.is_some_and(|client| client.clock.is_recent(stamp, RECENT, now)) {
            return self.drops.count(DropReason::Replayed);
        }
        let seen = Some(arrival.hop.remote());
        let mut ack = Probe::encode(
            ProbeOp::Ack,
            probe.seq,
            session.remote_index(),
            probe.txid,
            probe.sender_time,
            seen,
            probe.bytes.len(),
        );
        session.sign_probe(&mut ack);
        self.transmit(arrival.hop, ack);
    }

    fn on_heard(&mut self, arrival: Arrival, index: u32, now: Instant) {
        let Some(client) = self.clients.get_mut(&index) else { return };
        client.heard = now;
        if client.hop != arrival.hop {
            client.hop = arrival.hop;
            if let Hop::Tunnel { id, .. } = arrival.hop {
                self.events.push_back(Event::Authenticated(id));
            }
            self.link(index);
        }
    }

    /// A record that a worker could not open: its tables were older than the session.
    fn on_data(&mut self, arrival: Arrival, index: u32, datagram: &[u8], now: Instant) {
        let Some(session) = self.sessions.get(&index) else {
            return self.drops.count(DropReason::UnknownSession);
        };
        match record::open(session, datagram, now) {
            Ok((kind, plaintext)) => self.on_record(arrival, index, kind, &plaintext, now),
            Err(reason) => self.drops.count(reason),
        }
    }

    fn on_record(
        &mut self,
        arrival: Arrival,
        index: u32,
        kind: Kind,
        plaintext: &[u8],
        now: Instant,
    ) {
        self.on_heard(arrival, index, now);
        let Some(client) = self.clients.get_mut(&index) else {
            return self.drops.count(DropReason::UnknownSession);
        };
        match kind {
            Kind::Control => match record::decode(plaintext, &mut client.chunks) {
                Decoded::Body(body) => self.on_control(arrival, index, body, now),
                Decoded::Nothing => {}
                Decoded::Malformed => self.drops.count(DropReason::Malformed),
            },
            Kind::Keepalive => {}
            Kind::Ip | Kind::IpPartial | Kind::Fragment | Kind::Super => {
                self.drops.count(DropReason::Malformed)
            }
        }
    }

    fn on_control(&mut self, arrival: Arrival, index: u32, body: Body, now: Instant) {
        if let Body::Register(register) = body {
            return self.on_register(arrival, index, &register, now);
        }
        let Some((network, node)) = self.clients.get(&index).and_then(|client| client.member)
        else {
            return self.drops.count(DropReason::WrongRole);
        };
        let Some(tenant) = self.networks.get_mut(&network) else { return };
        match body {
            Body::Hello(hello) => {
                let client = self.clients.get_mut(&index);
                let twin = client.and_then(|client| client.superseded.as_mut()).is_some_and(|at| {
                    now.saturating_duration_since(std::mem::replace(at, now)) >= TWIN_AFTER
                });
                let (attach_seq, attach_digest) = tenant.attached.told();
                let ack = Hello { attach_seq, attach_digest, ..hello };
                self.send(index, Body::HelloAck(ack));
                if twin {
                    let message = "another node with the same keys is attached".to_owned();
                    let reason = RefusedReason::DuplicateKey as i32;
                    self.send(index, Body::Refused(Refused { reason, message, retry_s: 0 }));
                }
            }
            Body::Announce(announce) => {
                tenant.flood.announced(&tenant.lsdb, node, &announce.heads, now)
            }
            Body::Pull(pull) => tenant.flood.pulled(&tenant.lsdb, node, &pull.heads, now),
            Body::Push(push) => self.on_push(network, node, push, now),
            Body::Digest(digest) => tenant.sync.on_digest(&tenant.lsdb, node, &digest),
            Body::Buckets(buckets) => tenant.sync.on_buckets(&tenant.lsdb, node, &buckets, now),
            Body::BucketHeads(heads) => {
                tenant.sync.on_bucket_heads(&tenant.lsdb, node, &heads, now);
                tenant.flood.announced(&tenant.lsdb, node, &heads.heads, now);
            }
            Body::Ping(ping) => self.send(index, Body::Pong(ping)),
            Body::Leave(_) => {
                let own: Vec<u32> = self
                    .clients
                    .iter()
                    .filter(|(_, client)| client.member == Some((network, node)))
                    .map(|(index, _)| *index)
                    .collect();
                for index in own {
                    self.remove(index, now);
                }
            }
            Body::HelloAck(_) | Body::Endpoints(_) | Body::Attributes(_) => {}
            Body::Register(_)
            | Body::PunchRequest(_)
            | Body::PunchAck(_)
            | Body::Registered(_)
            | Body::Refused(_)
            | Body::Attach(_)
            | Body::Drain(_)
            | Body::Pong(_)
            | Body::Rpc(_)
            | Body::Chunk(_) => self.drops.count(DropReason::Malformed),
        }
    }

    fn on_register(&mut self, arrival: Arrival, index: u32, register: &Register, now: Instant) {
        match self.check_register(arrival, index, register, now) {
            Ok((network, node, serial)) => {
                self.attach(arrival, index, (network, node, serial), register, now);
            }
            Err((reason, message)) => {
                let retry_s = if reason == RefusedReason::Full { 60 } else { 0 };
                let refused =
                    Refused { reason: reason as i32, message: message.to_owned(), retry_s };
                self.send(index, Body::Refused(refused));
            }
        }
    }

    fn check_register(
        &self,
        arrival: Arrival,
        index: u32,
        register: &Register,
        now: Instant,
    ) -> Result<(NetworkId, NodeId, u64), (RefusedReason, &'static str)> {
        let bad = |message| (RefusedReason::BadCertificate, message);
        let network =
            NetworkId::from_slice(&register.network).ok_or(bad("the network id is not one"))?;
        let root =
            SignKey::from_slice(&register.root).ok_or(bad("the network's root key is not one"))?;
        if NetworkId::of(&root) != network {
            return Err(bad("the root key does not hash to the network id"));
        }
        let signed = register.certificate.as_ref().ok_or(bad("there is no certificate"))?;
        let certified = certificate::check(signed, network, self.unix(now)).map_err(|_| {
            bad("the certificate is not of this network, or not valid now: check the clock")
        })?;
        let client = self.clients.get(&index).ok_or(bad("the session is gone"))?;
        if certified.keys.dh != client.dh || certified.keys.node() != client.session.peer() {
            return Err(bad("the certificate is about another key"));
        }
        // Who was somebody else under this session would stay attached there for ever.
        if client.member.is_some_and(|member| member != (network, certified.keys.node())) {
            return Err(bad("this session is registered for another network already"));
        }
        let proof = client.session.exporter();
        if !identity::verify(&certified.keys.sign, REGISTER_CONTEXT, proof, &register.signature) {
            return Err((
                RefusedReason::BadSignature,
                "the signature over the session does not verify",
            ));
        }
        let revoked = self.networks.get(&network).is_some_and(|tenant| {
            tenant.issued.is_revoked(certified.keys.node(), certified.serial)
        });
        if revoked {
            return Err(bad("the network revoked the certificate"));
        }
        let admitted = match &self.config.admission {
            Admission::Open => true,
            Admission::Listed(networks) => networks.contains(&network),
        };
        if !admitted {
            return Err((RefusedReason::NotAdmitted, "this server does not serve this network"));
        }
        let full = match self.networks.get(&network) {
            None => {
                let source = Source::of(arrival.hop.remote().ip());
                let own = self.networks.values().filter(|tenant| tenant.source == source).count();
                let most = match self.config.admission {
                    Admission::Open => MAX_NETWORKS_PER_SOURCE,
                    Admission::Listed(_) => usize::MAX,
                };
                self.networks.len() >= self.config.max_networks || own >= most
            }
            Some(tenant) => {
                let node = certified.keys.node();
                let clash = tenant
                    .attached
                    .nodes()
                    .any(|other| other != node && other.short() == node.short());
                if clash {
                    return Err(bad(
                        "another node of the network has the same short id: make a new key",
                    ));
                }
                !tenant.attached.contains(node)
                    && tenant.attached.len() >= self.config.max_nodes_per_network
            }
        };
        if full {
            return Err((RefusedReason::Full, "this server is full"));
        }
        Ok((network, certified.keys.node(), certified.serial))
    }

    fn attach(
        &mut self,
        arrival: Arrival,
        index: u32,
        (network, node, serial): (NetworkId, NodeId, u64),
        register: &Register,
        now: Instant,
    ) {
        let offset = Duration::from_millis(u64::from(self.rng.next_u32() % 10_000));
        let (rate_node, rate_network) = (self.config.rate_node, self.config.rate_network);
        let tenant = self.networks.entry(network).or_insert_with(|| Tenant {
            lsdb: Lsdb::new(Limits::SERVER, now),
            flood: Flood::default(),
            sync: Sync::new(offset, now),
            attached: Attached::default(),
            issued: Issued::default(),
            sessions: BTreeMap::new(),
            meter: Arc::new(Meter::new(rate_network, rate_network / 4)),
            source: Source::of(arrival.hop.remote().ip()),
            empty_since: None,
        });
        tenant.empty_since = None;
        let before = tenant.sessions.insert(node, index).filter(|before| *before != index);
        tenant.flood.add_neighbour(node);
        let first = tenant.attached.set(node, true);
        let knows = !first
            && register.attach_seq == tenant.attached.seq()
            && register.attach_digest == tenant.attached.digest();
        let list = if knows { Vec::new() } else { tenant.attached.full() };
        if let Some(client) = before.and_then(|before| self.clients.get_mut(&before)) {
            client.superseded = Some(now);
        }
        if let Some(client) = self.clients.get_mut(&index) {
            client.member = Some((network, node));
            client.serial = serial;
            client.superseded = None;
        }
        if let Hop::Tunnel { id, .. } = arrival.hop {
            self.events.push_back(Event::Authenticated(id));
        }
        self.link(index);
        let stun = self.stun_addresses().into_iter().flat_map(pack_addr).collect();
        let registered = Registered {
            rate_node,
            rate_network,
            lsa_bytes: Limits::SERVER.bytes_per_signer as u64,
            stun,
        };
        self.send(index, Body::Registered(registered));
        for attach in list {
            self.send(index, Body::Attach(attach));
        }
        if first {
            self.timers.set_earlier(Wake::Attached(network), now + GATHER);
            self.notice(NoticeKind::PeerUp, node, "A member attached");
        }
    }

    /// Tells everybody of a network who came and who went.
    fn tell_attached(&mut self, network: NetworkId) {
        let Some(tenant) = self.networks.get_mut(&network) else { return };
        let deltas = tenant.attached.take_deltas();
        let all: Vec<u32> = tenant.sessions.values().copied().collect();
        for delta in deltas {
            self.send_to(&all, Body::Attach(delta));
        }
    }

    /// Publishes where TRANSIT of and to this client goes.
    fn link(&mut self, index: u32) {
        let Some(client) = self.clients.get(&index) else { return };
        let Some((network, node)) = client.member else { return };
        let Some(tenant) = self.networks.get(&network) else { return };
        let own = Meter::new(self.config.rate_node, self.config.rate_node / 4);
        let quota = Some(Arc::new(Quota::new(own, Some(Arc::clone(&tenant.meter)))));
        let before = self.links.get(&index).and_then(|link| link.quota.clone());
        let link = Link {
            session: Arc::clone(&client.session),
            network,
            vouched: Some(node.short()),
            quota: before.or(quota),
        };
        Arc::make_mut(&mut self.links).insert(index, link);
        if tenant.sessions.get(&node) == Some(&index) {
            let forward = Forward { link: Arc::clone(&client.session), hop: client.hop };
            Arc::make_mut(&mut self.forwards).insert((network, node.short()), forward);
        }
        self.fib_dirty = true;
    }

    fn on_push(&mut self, network: NetworkId, from: NodeId, push: Push, now: Instant) {
        let unix = self.unix(now);
        for copy in push.copies {
            let Some(tenant) = self.networks.get_mut(&network) else { return };
            let Some(container) = Container::parse(copy.container) else {
                self.drops.count(DropReason::Malformed);
                continue;
            };
            let key = container.key();
            if container.head.network != network {
                self.drops.count(DropReason::WrongNetwork);
                continue;
            }
            if tenant.lsdb.freshness(&key, container.head.seq) != Freshness::Newer {
                continue;
            }
            let node_key = wire::lsa::LsaKey { kind: LsaType::Node as u8, id: 0, ..key };
            let issued = lsa::is_issued(&container, network);
            let known = match LsaType::from_byte(container.head.kind) {
                Some(LsaType::Node) => lsa::certified(&container, network, unix)
                    .is_ok_and(|node| !tenant.issued.is_revoked(key.signer, node.serial)),
                Some(LsaType::Cluster | LsaType::Epoch | LsaType::Revoke) => issued,
                Some(LsaType::Link) | None => tenant.lsdb.contains(&node_key),
            };
            if !known {
                self.drops.count(DropReason::BadCertificate);
                continue;
            }
            if !lsa::verify(&container) {
                self.drops.count(DropReason::Forged);
                continue;
            }
            let revoke = (issued && container.head.kind == LsaType::Revoke as u8)
                .then(|| tenant.issued.take(LsaType::Revoke, key.id, container.clear()));
            if tenant.lsdb.insert(&container, copy.age_s, now).is_err() {
                self.drops.count(DropReason::LsaRefused);
                continue;
            }
            tenant.flood.stored(key, Some(from), now);
            if let Some(Change::Revoked(node, below)) = revoke {
                self.revoke(network, node, below, now);
            }
        }
    }

    /// Ends the sessions of a member that is none any more, and forgets what it said.
    fn revoke(&mut self, network: NetworkId, node: NodeId, below: u64, now: Instant) {
        if let Some(tenant) = self.networks.get_mut(&network) {
            tenant.lsdb.forget(node);
        }
        let gone: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| client.member == Some((network, node)) && client.serial < below)
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            self.remove(index, now);
        }
    }

    fn sweep(&mut self, now: Instant) {
        self.timers.set(Wake::Sweep, Some(now + SWEEP));
        let silent = |client: &Client| {
            let limit = if client.member.is_some() { SILENT } else { REGISTER_WITHIN };
            now.saturating_duration_since(client.heard) >= limit
                || now.saturating_duration_since(client.session.established()) >= REJECT_AFTER
        };
        let gone: Vec<u32> = self
            .clients
            .iter()
            .filter(|(_, client)| silent(client))
            .map(|(index, _)| *index)
            .collect();
        for index in gone {
            self.remove(index, now);
        }
        for tenant in self.networks.values_mut() {
            tenant.lsdb.expire(now);
        }
        let over = |tenant: &Tenant| {
            tenant
                .empty_since
                .is_some_and(|since| now.saturating_duration_since(since) >= KEEP_EMPTY)
        };
        let empty: Vec<NetworkId> = self
            .networks
            .iter()
            .filter(|(_, tenant)| over(tenant))
            .map(|(network, _)| *network)
            .collect();
        for network in empty {
            self.networks.remove(&network);
            self.timers.set(Wake::Flood(network), None);
            self.timers.set(Wake::Attached(network), None);
        }
    }

    /// Forgets a session, and its member if it has no other.
    fn remove(&mut self, index: u32, now: Instant) {
        let Some(client) = self.clients.remove(&index) else { return };
        Arc::make_mut(&mut self.sessions).remove(&index);
        Arc::make_mut(&mut self.links).remove(&index);
        self.fib_dirty = true;
        let Some((network, node)) = client.member else { return };
        let Some(tenant) = self.networks.get_mut(&network) else { return };
        if tenant.sessions.get(&node) != Some(&index) {
            return;
        }
        tenant.sessions.remove(&node);
        tenant.flood.remove_neighbour(node);
        Arc::make_mut(&mut self.forwards).remove(&(network, node.short()));
        let changed = tenant.attached.set(node, false);
        if tenant.attached.is_empty() {
            tenant.empty_since = Some(now);
        }
        if changed {
            self.timers.set_earlier(Wake::Attached(network), now + GATHER);
            self.notice(NoticeKind::PeerDown, node, "A member is gone");
        }
    }

    /// Where this server answers STUN beside its main port; without an address, on the one that the asker knows.
    fn stun_addresses(&self) -> BTreeSet<SocketAddr> {
        let main = self.sockets.first().map(|socket| socket.local.port());
        let others = self.sockets.iter().filter(|socket| Some(socket.local.port()) != main);
        others
            .map(|socket| match socket.local {
                SocketAddr::V6(v6) if v6.ip().is_unspecified() => ([0, 0, 0, 0], v6.port()).into(),
                addr @ (SocketAddr::V4(_) | SocketAddr::V6(_)) => addr,
            })
            .collect()
    }

    fn send(&mut self, index: u32, body: Body) {
        self.send_to(&[index], body);
    }

    /// The same over several sessions.
    fn send_to(&mut self, indices: &[u32], body: Body) {
        let plaintexts = record::encode(body, self.rng.next_u64());
        for client in indices.iter().filter_map(|index| self.clients.get(index)) {
            for plaintext in &plaintexts {
                if let Some(bytes) = client.session.seal_record(Kind::Control, plaintext) {
                    self.transmits.push_back(Transmit { hop: client.hop, bytes, ttl: None });
                }
            }
        }
    }

    fn transmit(&mut self, hop: Hop, bytes: Vec<u8>) {
        self.transmits.push_back(Transmit { hop, bytes, ttl: None });
    }

    fn notice(&mut self, kind: NoticeKind, node: NodeId, message: &str) {
        self.events.push_back(Event::Notice(Notice::new(kind, Some(node), message)));
    }

    fn new_index(&mut self) -> u32 {
        loop {
            self.next_index = self.next_index.wrapping_add(1);
            if self.next_index != 0 && !self.clients.contains_key(&self.next_index) {
                return self.next_index;
            }
        }
    }

    fn unix(&self, now: Instant) -> u64 {
        self.config.unix_at_start + now.saturating_duration_since(self.started).as_secs()
    }
}

#[cfg(test)]
mod tests;
