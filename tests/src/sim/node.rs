//! The product on a station: engine or server with the same fast path as the workers run.

use std::{
    cell::RefCell,
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use engine::{
    Engine, Server,
    config::{self, Bootstrap, Ipv4Policy, Ipv6Policy, P2p, PunchMode},
    event::{Event, Host, Input, Interface, Notice, NoticeKind, Persist, Socket},
    fastpath::{self, Inbox, Outbox, Punt, Sink},
    fib::Fib,
    offload::{Delivery, Virtio},
    path::addr::{Arrival, Carrier, Hop},
    server,
    snapshot::Snapshot,
};
use ipnet::{IpNet, Ipv4Net};
use prost::Message;
use session::{freshness::boot_counter, identity::Identity, membership::Master};
use wire::{
    control::{AEAD_CHACHA, Body, Control, Hello},
    endpoint::Transport,
    id::{NodeId, NodeKeys},
    packet::Kind,
};

use super::world::{In, Machine, Out};

/// Where automatic addresses come from.
pub const RANGE: &str = "100.112.0.0/16";
/// Notices kept of one node.
const MAX_NOTICES: usize = 10_000;

thread_local! {
    /// The buffers of the worker that this thread plays for all nodes of its world.
    static WORKER: RefCell<(Outbox, Inbox)> = RefCell::default();
}

/// What a member of a simulated network is told.
#[derive(Clone, Debug)]
pub struct Member {
    /// Makes the identity; the same number is the same node.
    pub number: u64,
    pub network: Master,
    pub bootstrap: Vec<(SocketAddr, Transport, Option<NodeKeys>)>,
    /// What the name of each of them resolves to beside that.
    pub alternates: Vec<Vec<SocketAddr>>,
    pub ipv4: Option<Ipv4Net>,
    pub exports: Vec<IpNet>,
    pub transit: bool,
    pub p2p: P2p,
    /// What the state directory holds: the boot counter of the last start and the claim.
    pub boot: u32,
    pub kept: Persist,
    /// Hears no LSAs: stands for the many in a world where only some are looked at.
    pub deaf: bool,
}

impl Member {
    pub fn new(number: u64, network: &Master) -> Self {
        Self {
            number,
            network: network.clone(),
            bootstrap: Vec::new(),
            alternates: Vec::new(),
            ipv4: None,
            exports: Vec::new(),
            transit: false,
            p2p: P2p::On,
            boot: 0,
            kept: Persist::default(),
            deaf: false,
        }
    }

    /// What its engine is told at a start.
    pub fn config(&self, unix: u64, boot: u32) -> config::Config {
        let identity = identity(b'm', self.number);
        let hostname = format!("node-{}", self.number);
        config::Config {
            membership: Arc::new(self.network.membership(&identity, &hostname, 0)),
            identity: Arc::new(identity),
            boot,
            hostname,
            version: "simulated".to_owned(),
            ipv4: match self.ipv4 {
                Some(fixed) => Ipv4Policy::Fixed(fixed),
                None => Ipv4Policy::Auto {
                    range: RANGE.parse().expect("a prefix"),
                    kept: self.kept.claim,
                },
            },
            ipv6: Ipv6Policy::Auto,
            exports: self.exports.clone(),
            behind: Vec::new(),
            imports: engine::config::Imports::All,
            protected: Vec::new(),
            records: Vec::new(),
            bootstrap: self
                .bootstrap
                .iter()
                .map(|&(_, transport, keys)| Bootstrap { transport, keys })
                .collect(),
            mtu: 1320,
            transit: self.transit,
            p2p: self.p2p,
            punch: PunchMode::Full,
            aead: AEAD_CHACHA,
            unix_at_start: unix,
        }
    }
}

/// The identity of a number; `kind` keeps servers and members apart.
pub fn identity(kind: u8, number: u64) -> Identity {
    let mut bytes = [kind; 64];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    // Not into the first byte of a Curve25519 scalar, whose low bits do not count.
    bytes[40..48].copy_from_slice(&number.to_le_bytes());
    Identity::from_bytes(&bytes)
}

#[derive(Debug)]
enum Core {
    Member(Box<Engine>),
    Server(Box<Server>),
}

/// A node or a public server, with its fast path.
#[derive(Debug)]
pub struct Node {
    core: Core,
    fib: Arc<Fib>,
    /// The tables that the worker does not see yet, and since when it does.
    late: VecDeque<(Instant, Arc<Fib>)>,
    worker: Arc<Fib>,
    outs: VecDeque<Out>,
    deaf: bool,
    /// New tables reach the worker this late.
    pub lag: Duration,
    pub host: Host,
    pub persist: Persist,
    pub notices: Vec<(Instant, Notice)>,
    pub pongs: Vec<(u64, Duration, bool)>,
}

impl Node {
    /// A member; `unix` is the time of its start.
    pub fn member(member: &Member, seed: u64, unix: u64, now: Instant) -> Self {
        let boot = boot_counter(member.boot, unix);
        Self::configured(member, member.config(unix, boot), seed, now)
    }

    /// A member whose configuration is not the one that `member` makes.
    pub fn configured(member: &Member, config: config::Config, seed: u64, now: Instant) -> Self {
        let engine = Engine::new(config, seed_bytes(seed), now);
        let mut node = Self::new(engine.node(), Core::Member(Box::new(engine)), now);
        node.deaf = member.deaf;
        node.persist = member.kept.clone();
        for (index, (addr, ..)) in member.bootstrap.iter().enumerate() {
            let alternates = member.alternates.get(index).into_iter().flatten();
            let addrs = alternates.chain([addr]).copied().collect();
            node.input(Input::Bootstrap { index, addrs }, now);
        }
        node
    }

    pub fn server(number: u64, seed: u64, unix: u64, now: Instant) -> Self {
        let config = server::Config::open(Arc::new(identity(b's', number)), AEAD_CHACHA, unix);
        let server = Server::new(config, seed_bytes(seed), now);
        Self::new(server.node(), Core::Server(Box::new(server)), now)
    }

    fn new(id: NodeId, core: Core, now: Instant) -> Self {
        let fib = Arc::new(Fib::new(id, now, 1320));
        let mut node = Self {
            core,
            worker: Arc::clone(&fib),
            fib,
            late: VecDeque::new(),
            outs: VecDeque::new(),
            deaf: false,
            lag: Duration::ZERO,
            host: Host::default(),
            persist: Persist::default(),
            notices: Vec::new(),
            pongs: Vec::new(),
        };
        node.drain(now);
        node
    }

    pub fn id(&self) -> NodeId {
        match &self.core {
            Core::Member(engine) => engine.node(),
            Core::Server(server) => server.node(),
        }
    }

    pub fn engine(&self) -> Option<&Engine> {
        match &self.core {
            Core::Member(engine) => Some(engine),
            Core::Server(_) => None,
        }
    }

    pub fn as_server(&self) -> Option<&Server> {
        match &self.core {
            Core::Server(server) => Some(server),
            Core::Member(_) => None,
        }
    }

    pub fn snapshot(&self, now: Instant) -> Option<Snapshot> {
        self.engine().map(|engine| engine.snapshot(now))
    }

    pub fn fib(&self) -> &Fib {
        &self.fib
    }

    /// The overlay address of a family.
    pub fn address(&self, v4: bool) -> Option<IpAddr> {
        self.host.addresses.iter().map(IpNet::addr).find(|addr| addr.is_ipv4() == v4)
    }

    pub fn input(&mut self, input: Input<'_>, now: Instant) {
        match &mut self.core {
            Core::Member(engine) => engine.handle_input(input, now),
            Core::Server(server) => server.handle_input(input, now),
        }
        self.drain(now);
    }

    fn drain(&mut self, now: Instant) {
        loop {
            let event = match &mut self.core {
                Core::Member(engine) => engine.poll_event(),
                Core::Server(server) => server.poll_event(),
            };
            let Some(event) = event else { break };
            self.on_event(event, now);
        }
        loop {
            let transmit = match &mut self.core {
                Core::Member(engine) => engine.poll_transmit(),
                Core::Server(server) => server.poll_transmit(),
            };
            let Some(transmit) = transmit else { break };
            let (hop, bytes, ttl) = (transmit.hop, transmit.bytes, transmit.ttl);
            self.outs.push_back(Out::Send { hop, bytes, ttl });
        }
    }

    fn on_event(&mut self, event: Event, now: Instant) {
        match event {
            Event::Fib(fib) => {
                self.fib = Arc::clone(&fib);
                self.late.push_back((now + self.lag, fib));
            }
            Event::Host(host) => self.host = host,
            Event::Release(packet) => self.encapsulate(&Arc::clone(&self.fib), packet, now),
            Event::Deliver(packet) => self.outs.push_back(Out::Tun(packet)),
            Event::Dial { dial, remote, .. } => self.outs.push_back(Out::Dial { dial, remote }),
            Event::Authenticated(_) => {}
            Event::CloseTunnel(id) => self.outs.push_back(Out::CloseTunnel(id)),
            Event::OpenSocket { open } => self.outs.push_back(Out::OpenSocket { open }),
            Event::CloseSocket(id) => self.outs.push_back(Out::CloseSocket(id)),
            Event::Pong { id, rtt, relayed, .. } => self.pongs.push((id, rtt, relayed)),
            Event::Persist(persist) => self.persist = persist,
            Event::Notice(notice) => self.note(notice, now),
            Event::Left => {}
        }
    }

    /// Keeps what is rare; a world of thousands has millions of routes.
    fn note(&mut self, notice: Notice, now: Instant) {
        if !matches!(notice.kind, NoticeKind::RouteAdded | NoticeKind::RouteRemoved)
            && self.notices.len() < MAX_NOTICES
        {
            self.notices.push((now, notice));
        }
    }

    /// The tables of the worker.
    fn tables(&mut self, now: Instant) -> Arc<Fib> {
        while let Some((_, fib)) = self.late.pop_front_if(|(at, _)| *at <= now) {
            self.worker = fib;
        }
        Arc::clone(&self.worker)
    }

    fn encapsulate(&mut self, fib: &Fib, mut packet: Vec<u8>, now: Instant) {
        let mut collect = Collect::default();
        let icmp = WORKER.with_borrow_mut(|(outbox, _)| {
            let virtio = Virtio::default();
            let icmp = fastpath::encapsulate(fib, &virtio, &mut packet, now, outbox, &mut collect);
            outbox.flush(&mut collect);
            icmp
        });
        self.outs.extend(icmp.map(Out::Tun));
        self.take(collect, now);
    }

    fn decapsulate(&mut self, hop: Hop, mut bytes: Vec<u8>, now: Instant) {
        let fib = self.tables(now);
        let mut collect = Collect::default();
        let whole = 0..bytes.len();
        WORKER.with_borrow_mut(|(_, inbox)| {
            fastpath::decapsulate(&fib, &mut bytes, [whole], hop, now, inbox, &mut collect);
        });
        self.take(collect, now);
    }

    fn take(&mut self, collect: Collect, now: Instant) {
        self.outs.extend(collect.outs);
        for punt in collect.punts {
            match punt {
                Owned::Raw(arrival, bytes) => {
                    self.input(Input::Datagram { arrival, bytes: &bytes }, now)
                }
                Owned::Opened(arrival, session, kind, plaintext) => {
                    let deafened = self.deaf && kind == Kind::Control;
                    let plaintext = if deafened { without_others(plaintext) } else { plaintext };
                    self.input(
                        Input::Record { arrival, session, kind, plaintext: &plaintext },
                        now,
                    );
                }
                Owned::Heard(arrival, session) => {
                    self.input(Input::Heard { arrival, session }, now)
                }
                Owned::NoSession(peer, packet) => {
                    self.input(Input::Outbound { packet: &packet, peer }, now)
                }
                Owned::Active(peer) => self.input(Input::Active { peer }, now),
            }
        }
    }
}

impl Machine for Node {
    fn handle(&mut self, input: In, now: Instant) {
        match input {
            In::Datagram { hop, bytes } => self.decapsulate(hop, bytes, now),
            In::Tun(packet) => {
                let fib = self.tables(now);
                self.encapsulate(&fib, packet, now);
            }
            In::Sockets(sockets) => {
                let sockets = sockets.into_iter().map(|(id, local)| Socket { id, local }).collect();
                self.input(Input::Sockets(sockets), now);
            }
            In::SocketOpened { open, id, local } => {
                let socket = Some(Socket { id, local });
                self.input(Input::SocketOpened { open, socket }, now);
            }
            In::Underlay(addresses) => {
                let interface = Interface { name: "eth0".to_owned(), mtu: 1500, addresses };
                self.input(Input::Underlay(vec![interface]), now);
            }
            In::TunnelUp { id, remote, dial } => {
                self.input(Input::TunnelUp { id, carrier: Carrier::Tcp, remote, dial }, now);
            }
            In::TunnelDown { id, dial } => self.input(Input::TunnelDown { id, dial }, now),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        match &mut self.core {
            Core::Member(engine) => engine.handle_timeout(now),
            Core::Server(server) => server.handle_timeout(now),
        }
        self.drain(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match &self.core {
            Core::Member(engine) => engine.poll_timeout().map(|(at, _)| at),
            Core::Server(server) => server.poll_timeout().map(|(at, _)| at),
        }
    }

    fn poll(&mut self) -> Option<Out> {
        self.outs.pop_front()
    }
}

/// A control record without LSAs and who is attached where. Millions come by, so of most only the number of the one field is read, which
/// says what the record is.
fn without_others(plaintext: Vec<u8>) -> Vec<u8> {
    const HELLO_ACK: u8 = 3;
    const ABOUT_OTHERS: [u8; 5] = [4, 6, 8, 9, 15];
    let Some(field) = plaintext.first().map(|key| key >> 3) else { return plaintext };
    if ABOUT_OTHERS.contains(&field) {
        return Vec::new();
    }
    if field == HELLO_ACK
        && let Ok(Control { body: Some(Body::HelloAck(ack)) }) = Control::decode(&*plaintext)
    {
        // As of a server at which nobody ever was.
        let ack = Hello { attach_seq: 0, attach_digest: 0, ..ack };
        return Control::from(Body::HelloAck(ack)).encode_to_vec();
    }
    plaintext
}

enum Owned {
    Raw(Arrival, Vec<u8>),
    Opened(Arrival, u32, Kind, Vec<u8>),
    Heard(Arrival, u32),
    NoSession(NodeId, Vec<u8>),
    Active(NodeId),
}

/// What one call of the fast path put out.
#[derive(Default)]
struct Collect {
    outs: Vec<Out>,
    punts: Vec<Owned>,
}

impl Sink for Collect {
    fn transmit(&mut self, hop: &Hop, datagrams: &[u8], segment: usize) {
        let sends = datagrams.chunks(segment.max(1));
        self.outs.extend(sends.map(|bytes| Out::Send {
            hop: *hop,
            bytes: bytes.to_vec(),
            ttl: None,
        }));
    }

    fn deliver(&mut self, buf: &mut [u8], deliveries: &[Delivery]) {
        for delivery in deliveries {
            let mut packet = buf[delivery.at..delivery.at + delivery.len].to_vec();
            if delivery.is_partial {
                wire::ip::complete(&mut packet);
            }
            self.outs.push(Out::Tun(packet));
        }
    }

    fn punt(&mut self, punt: Punt<'_>) {
        self.punts.push(match punt {
            Punt::Raw { arrival, bytes } => Owned::Raw(arrival, bytes.to_vec()),
            Punt::Opened { arrival, session, kind, plaintext } => {
                Owned::Opened(arrival, session, kind, plaintext.to_vec())
            }
            Punt::Heard { arrival, session } => Owned::Heard(arrival, session),
            Punt::NoSession { peer, packet } => Owned::NoSession(peer, packet.to_vec()),
            Punt::Active { peer } => Owned::Active(peer),
        });
    }
}

fn seed_bytes(seed: u64) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use wire::control::{Announce, Attach, BucketHeads, Buckets, Digest, Ping, Pull, Push};

    use super::*;

    #[test]
    fn a_deaf_node_hears_nothing_of_others_and_all_else() {
        let heard = |body: Body| {
            let record = Control::from(body).encode_to_vec();
            Control::decode(&*without_others(record)).unwrap().body
        };
        for body in [
            Body::Announce(Announce::default()),
            Body::Push(Push::default()),
            Body::Buckets(Buckets::default()),
            Body::BucketHeads(BucketHeads::default()),
            Body::Attach(Attach::default()),
        ] {
            assert_eq!(heard(body.clone()), None, "{body:?}");
        }
        for body in [
            Body::Hello(Hello::default()),
            Body::Pull(Pull::default()),
            Body::Digest(Digest::default()),
            Body::Ping(Ping::default()),
            Body::Rpc(vec![1]),
        ] {
            assert_eq!(heard(body.clone()), Some(body));
        }
        let ack = Hello { seq: 7, attach_seq: 3, attach_digest: 9, ..Hello::default() };
        let silenced = Hello { attach_seq: 0, attach_digest: 0, ..ack };
        assert_eq!(heard(Body::HelloAck(ack)), Some(Body::HelloAck(silenced)));
    }
}
