//! Machines against strangers: what does not belong is a counted drop, answers are short, and nothing stays.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::{
    Engine, Server,
    config::{Config, Ipv4Policy, Ipv6Policy, P2p, PunchMode},
    drops::DropReason,
    event::{Event, Input, Transmit},
    fastpath::{self, Inbox, Punt, Sink},
    fib::Fib,
    offload::Delivery,
    path::addr::{Hop, SocketId},
    server,
};
use netio::{driver::Machine, worker::Punted};
use session::{cookie, identity::Identity, membership::Master, transport::Session};
use tests::stranger::{self, Stranger};
use wire::{
    control::{Attach, AttachChange, Body, Drain, LsaCopy, Push, RefusedReason},
    datagram::{Datagram, INIT_LEN, Role, Whois},
    id::NodeKeys,
};

const SOURCE: &str = "192.0.2.1:4000";

/// A machine with its fast path, and no sockets.
struct Rig {
    machine: Machine,
    fib: Arc<Fib>,
    keys: NodeKeys,
    inbox: Inbox,
    now: Instant,
}

#[derive(Default)]
struct Outcome {
    sent: Vec<Vec<u8>>,
    punts: Vec<Punted>,
}

impl Sink for Outcome {
    fn transmit(&mut self, _: &Hop, datagrams: &[u8], segment: usize) {
        self.sent.extend(datagrams.chunks(segment).map(<[u8]>::to_vec));
    }

    fn deliver(&mut self, _: &mut [u8], deliveries: &[Delivery]) {
        assert!(deliveries.is_empty(), "nothing of a stranger reaches the TUN");
    }

    fn punt(&mut self, punt: Punt<'_>) {
        self.punts.push(Punted::from(punt));
    }
}

impl Rig {
    fn server() -> Self {
        let identity = Arc::new(Identity::from_bytes(&[9; 64]));
        let (keys, now) = (identity.keys(), Instant::now());
        let server = Server::new(server::Config::open(identity, 1, 1_800_000_000), [1; 32], now);
        Self::new(Machine::Server(Box::new(server)), keys, now)
    }

    fn member(master: &Master) -> Self {
        let identity = Arc::new(Identity::from_bytes(&[8; 64]));
        let (keys, now) = (identity.keys(), Instant::now());
        let config = Config {
            membership: Arc::new(master.membership(&identity, "m", 0)),
            identity,
            hostname: "m".to_owned(),
            version: "0".to_owned(),
            bootstrap: Vec::new(),
            records: Vec::new(),
            ipv4: Ipv4Policy::Auto { range: "100.112.0.0/16".parse().unwrap(), kept: None },
            ipv6: Ipv6Policy::Auto,
            exports: Vec::new(),
            behind: Vec::new(),
            imports: engine::config::Imports::All,
            protected: Vec::new(),
            mtu: 1320,
            p2p: P2p::On,
            punch: PunchMode::Full,
            transit: false,
            boot: 1,
            unix_at_start: 1_800_000_000,
            aead: 1,
        };
        Self::new(Machine::Node(Box::new(Engine::new(config, [2; 32], now))), keys, now)
    }

    fn new(machine: Machine, keys: NodeKeys, now: Instant) -> Self {
        let fib = Arc::new(Fib::new(keys.node(), now, 1320));
        let mut rig = Self { machine, fib, keys, inbox: Inbox::default(), now };
        rig.drain();
        rig
    }

    /// A datagram arrives; what leaves because of it.
    fn deliver(&mut self, from: &str, datagram: &[u8]) -> Vec<Vec<u8>> {
        let hop = Hop::Udp { socket: SocketId(0), remote: from.parse().unwrap() };
        let mut bytes = datagram.to_vec();
        let mut outcome = Outcome::default();
        fastpath::decapsulate(
            &self.fib,
            &mut bytes,
            std::iter::once(0..datagram.len()),
            hop,
            self.now,
            &mut self.inbox,
            &mut outcome,
        );
        for punt in std::mem::take(&mut outcome.punts) {
            match punt {
                Punted::Raw { arrival, bytes } => {
                    self.input(Input::Datagram { arrival, bytes: &bytes })
                }
                Punted::Opened { arrival, session, kind, plaintext } => {
                    self.input(Input::Record { arrival, session, kind, plaintext: &plaintext })
                }
                Punted::Heard { arrival, session } => self.input(Input::Heard { arrival, session }),
                Punted::NoSession { .. } | Punted::Active { .. } => {}
            }
            outcome.sent.extend(self.drain().into_iter().map(|transmit| transmit.bytes));
        }
        outcome.sent
    }

    fn input(&mut self, input: Input<'_>) {
        match &mut self.machine {
            Machine::Node(engine) => engine.handle_input(input, self.now),
            Machine::Server(server) => server.handle_input(input, self.now),
        }
    }

    /// Time passes; what is sent meanwhile is lost.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        loop {
            let next = match &self.machine {
                Machine::Node(engine) => engine.poll_timeout().map(|(at, _)| at),
                Machine::Server(server) => server.poll_timeout().map(|(at, _)| at),
            };
            let Some(at) = next.filter(|at| *at <= until) else { break };
            self.now = self.now.max(at);
            match &mut self.machine {
                Machine::Node(engine) => engine.handle_timeout(self.now),
                Machine::Server(server) => server.handle_timeout(self.now),
            }
            self.drain();
        }
        self.now = until;
    }

    fn drain(&mut self) -> Vec<Transmit> {
        let mut sent = Vec::new();
        loop {
            let event = match &mut self.machine {
                Machine::Node(engine) => engine.poll_event(),
                Machine::Server(server) => server.poll_event(),
            };
            match event {
                Some(Event::Fib(fib)) => self.fib = fib,
                Some(_) => {}
                None => break,
            }
        }
        while let Some(transmit) = match &mut self.machine {
            Machine::Node(engine) => engine.poll_transmit(),
            Machine::Server(server) => server.poll_transmit(),
        } {
            sent.push(transmit);
        }
        sent
    }

    fn drops(&self) -> BTreeMap<&'static str, u64> {
        let drops = match &self.machine {
            Machine::Node(engine) => engine.drops(),
            Machine::Server(server) => server.drops(),
        };
        let counts = drops.iter().filter(|(_, count)| *count > 0);
        counts.map(|(reason, count)| (reason.as_str(), count)).collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.drops().get(reason.as_str()).copied().unwrap_or(0)
    }

    fn counts(&self) -> server::Counts {
        match &self.machine {
            Machine::Server(server) => server.counts(),
            Machine::Node(_) => panic!("a node"),
        }
    }

    fn live(&self) -> engine::snapshot::Live {
        match &self.machine {
            Machine::Node(engine) => engine.snapshot(self.now).live,
            Machine::Server(_) => panic!("a server"),
        }
    }

    /// Handshake to the end.
    fn session(&mut self, stranger: &mut Stranger, from: &str, role: Role) -> Session {
        let mut pending = stranger.init(self.keys, role);
        let answers = self.deliver(from, &pending.init.clone());
        let session =
            answers.iter().find_map(|bytes| stranger.session(&mut pending, bytes, self.now));
        session.unwrap_or_else(|| panic!("no answer: {:?}", self.drops()))
    }

    /// Sends a record and returns the records that come back.
    fn say(&mut self, session: &Session, from: &str, body: Body) -> Vec<Body> {
        let answers = self.deliver(from, &stranger::control(session, body));
        answers.iter().filter_map(|bytes| stranger::open(session, bytes)).collect()
    }
}

/// A network's master key; its derivation from a secret is slow on purpose, and not what is tried here.
fn master(number: u8) -> Master {
    Master::from_bytes([number; 32])
}

#[test]
fn what_is_broken_leaves_a_count_and_nothing_else() {
    let mine = master(1);
    for mut rig in [Rig::server(), Rig::member(&mine)] {
        let mut stranger = Stranger::new(&master(2), 1);
        let good = stranger.init(rig.keys, Role::Any).init;
        let before = rig.drops().values().sum::<u64>();
        let mut sent = 0;
        let mut shown = |rig: &mut Rig, bytes: &[u8]| {
            let answers = rig.deliver(SOURCE, bytes);
            assert!(answers.iter().map(Vec::len).sum::<usize>() <= bytes.len(), "no amplification");
            sent += 1;
            rig.pass(Duration::from_millis(60));
        };
        for first in 0..=255_u8 {
            shown(&mut rig, &[first; 60]);
        }
        for len in [0, 1, 8, 100, INIT_LEN - 1] {
            shown(&mut rig, &good[..len]);
        }
        shown(&mut rig, &[&good[..], &[0]].concat());
        for at in [0, 1, 3, 8, 40, 100, INIT_LEN - 20] {
            let mut forged = good.clone();
            forged[at] ^= 0x40;
            shown(&mut rig, &forged);
        }
        shown(&mut rig, &vec![0x81; 65_507]);

        let dropped = rig.drops().values().sum::<u64>() - before;
        assert!(dropped >= sent - 2, "{dropped} of {sent} counted: {:?}", rig.drops());
        match &rig.machine {
            Machine::Server(server) => assert_eq!(server.counts().sessions, 0),
            Machine::Node(engine) => {
                let live = engine.snapshot(rig.now).live;
                assert_eq!((live.peers, live.sessions, live.indices), (0, 0, 0));
            }
        }
    }
}

#[test]
fn a_stranger_to_the_network_leaves_no_state_in_a_member() {
    let mut rig = Rig::member(&master(1));
    let before = rig.live();
    for seed in 0..15 {
        let mut stranger = Stranger::new(&master(2), seed);
        let pending = stranger.init(rig.keys, Role::Member);
        assert_eq!(rig.deliver(SOURCE, &pending.init), [[0_u8; 0]; 0]);
        // Nor as a server, which it is not.
        let pending = stranger.init(rig.keys, Role::Server);
        assert_eq!(rig.deliver("192.0.2.2:4000", &pending.init), [[0_u8; 0]; 0]);
    }

    assert_eq!(rig.dropped(DropReason::WrongNetwork), 15);
    assert_eq!(rig.dropped(DropReason::WrongRole), 15);
    assert_eq!(rig.live(), before);
}

#[test]
fn a_replayed_initiation_and_a_replayed_record_are_worth_nothing() {
    let mine = master(1);
    for (mut rig, role) in [(Rig::server(), Role::Server), (Rig::member(&mine), Role::Member)] {
        let mut stranger = Stranger::new(&mine, 1);
        let mut pending = stranger.init(rig.keys, role);
        let init = pending.init.clone();
        let answers = rig.deliver(SOURCE, &init);
        let session = stranger.session(&mut pending, &answers[0], rig.now).unwrap();
        let record = stranger::control(&session, stranger.register(&session));
        rig.deliver(SOURCE, &record);

        assert_eq!(rig.deliver("198.51.100.9:9", &init), [[0_u8; 0]; 0]);
        assert_eq!(rig.deliver("198.51.100.9:9", &record), [[0_u8; 0]; 0]);
        let old = stranger.init_with(rig.keys, role, 3).init;
        assert_eq!(rig.deliver(SOURCE, &old), [[0_u8; 0]; 0]);

        assert_eq!(rig.dropped(DropReason::Replayed), 3, "{:?}", rig.drops());
    }
}

#[test]
fn invented_sources_do_not_keep_a_real_one_out() {
    let mut rig = Rig::server();
    let mut flooder = Stranger::new(&master(3), 1);
    let init = flooder.init(rig.keys, Role::Server).init;
    for number in 0..10_000_u32 {
        let source = SocketAddr::from((Ipv4Addr::from(0x0a00_0000 + number), 7));
        let answers = rig.deliver(&source.to_string(), &init);
        assert!(answers.iter().map(Vec::len).sum::<usize>() < INIT_LEN);
        if number % 100 == 0 {
            rig.pass(Duration::from_millis(9));
        }
    }

    let mut real = Stranger::new(&master(4), 2);
    let mut pending = real.init(rig.keys, Role::Server);
    let answers = rig.deliver(SOURCE, &pending.init);
    let Some(Datagram::Cookie(answer)) = Datagram::parse(&answers[0]) else {
        panic!("no cookie: {:?}", rig.drops())
    };
    assert!(cookie::redeem(&mut pending.init, &rig.keys.dh, &answer));
    let answers = rig.deliver(SOURCE, &pending.init.clone());
    assert!(real.session(&mut pending, &answers[0], rig.now).is_some(), "{:?}", rig.drops());

    // A cookie is good for its source alone.
    let answers = rig.deliver("192.0.2.77:4000", &pending.init);
    assert!(matches!(Datagram::parse(&answers[0]), Some(Datagram::Cookie(_))));
    // And when the flood is over nobody is asked for one.
    rig.pass(Duration::from_secs(3));
    rig.session(&mut Stranger::new(&master(5), 3), "192.0.2.3:1", Role::Server);
}

#[test]
fn one_source_has_its_share_of_initiations_and_questions() {
    let mut rig = Rig::server();
    let mut stranger = Stranger::new(&master(1), 1);
    let answered = (0..60)
        .filter(|_| {
            let init = stranger.init(rig.keys, Role::Server).init;
            !rig.deliver(SOURCE, &init).is_empty()
        })
        .count();
    assert_eq!(answered, 20);
    assert_eq!(rig.dropped(DropReason::InitiationRate), 40);

    let mut asked = |from: &str| {
        (0..60).filter(|txid| !rig.deliver(from, &Whois::ask(*txid)).is_empty()).count()
    };
    assert_eq!((asked("192.0.2.9:1"), asked("192.0.2.9:2")), (20, 0));
}

#[test]
fn a_session_registers_for_one_network_and_leaves_with_it() {
    let mut rig = Rig::server();
    let (first, second) = (master(6), master(7));
    let mut stranger = Stranger::new(&first, 1);
    let mut again = Stranger::new(&second, 1);
    assert_eq!(stranger.node(), again.node(), "the same keys in two networks");
    let session = rig.session(&mut stranger, SOURCE, Role::Server);
    let said = rig.say(&session, SOURCE, stranger.register(&session));
    assert!(matches!(said[0], Body::Registered(_)), "{said:?}");
    assert_eq!((rig.counts().networks, rig.counts().attached), (1, 1));

    let said = rig.say(&session, SOURCE, again.register(&session));
    let Body::Refused(refused) = &said[0] else { panic!("{said:?}") };
    assert_eq!(refused.reason, RefusedReason::BadCertificate as i32);
    assert_eq!((rig.counts().networks, rig.counts().attached), (1, 1));
    // Its own again is no second one, and another session may be for the other.
    let said = rig.say(&session, SOURCE, stranger.register(&session));
    assert!(matches!(said[0], Body::Registered(_)), "{said:?}");
    let _ = again.init(rig.keys, Role::Server);
    let other = rig.session(&mut again, SOURCE, Role::Server);
    rig.say(&other, SOURCE, again.register(&other));
    assert_eq!((rig.counts().networks, rig.counts().attached), (2, 2));

    rig.pass(Duration::from_secs(20));
    assert_eq!((rig.counts().sessions, rig.counts().attached), (0, 0), "silent ones are gone");
    rig.pass(Duration::from_secs(130));
    assert_eq!(rig.counts().networks, 0);
}

#[test]
fn a_register_that_proves_nothing_is_refused() {
    let mut rig = Rig::server();
    let (mine, theirs) = (master(1), master(8));
    let mut stranger = Stranger::new(&mine, 1);
    let victim = Stranger::new(&theirs, 2);
    let session = rig.session(&mut stranger, SOURCE, Role::Server);
    let Body::Register(good) = stranger.register(&session) else { panic!() };
    let mut root = good.clone();
    root.root = victim.membership.root.0.to_vec();
    let mut network = good.clone();
    network.network = victim.membership.network.0.to_vec();
    network.root = victim.membership.root.0.to_vec();
    let mut certificate = network.clone();
    certificate.certificate = Some(victim.membership.certificate.clone());
    let mut signature = good.clone();
    signature.signature[5] ^= 1;
    let mut nothing = good;
    nothing.certificate = None;

    for (register, reason) in [
        (root, RefusedReason::BadCertificate),
        (network, RefusedReason::BadCertificate),
        (certificate, RefusedReason::BadCertificate),
        (signature, RefusedReason::BadSignature),
        (nothing, RefusedReason::BadCertificate),
    ] {
        let said = rig.say(&session, SOURCE, Body::Register(register));
        let Body::Refused(refused) = &said[0] else { panic!("{said:?}") };
        assert_eq!(refused.reason, reason as i32, "{}", refused.message);
    }
    assert_eq!((rig.counts().networks, rig.counts().attached), (0, 0));
}

#[test]
fn one_source_brings_so_many_networks_and_another_still_finds_room() {
    let mut rig = Rig::server();
    let bring = |rig: &mut Rig, number: u8, source: &str| {
        let mut stranger = Stranger::new(&master(number), u64::from(number));
        let session = rig.session(&mut stranger, source, Role::Server);
        rig.pass(Duration::from_millis(60));
        rig.say(&session, source, stranger.register(&session)).remove(0)
    };
    let admitted = (0..80)
        .filter(|number| matches!(bring(&mut rig, *number, SOURCE), Body::Registered(_)))
        .count();
    assert_eq!(admitted, 64);

    assert!(matches!(bring(&mut rig, 200, "198.51.100.1:1"), Body::Registered(_)));
}

#[test]
fn a_probe_is_answered_while_it_is_young() {
    let mine = master(1);
    for (mut rig, role) in [(Rig::server(), Role::Server), (Rig::member(&mine), Role::Member)] {
        let mut stranger = Stranger::new(&mine, 1);
        let session = rig.session(&mut stranger, SOURCE, role);
        rig.say(&session, SOURCE, stranger.register(&session));
        let minute = 60_000_000;
        let old = stranger::probe(&session, minute, 600);
        let answers = rig.deliver("192.0.2.5:5", &old);
        assert!(answers.iter().map(Vec::len).sum::<usize>() <= old.len());
        assert!(!answers.is_empty(), "{:?}", rig.drops());

        rig.deliver(SOURCE, &stranger::probe(&session, 2 * minute, 58));
        assert_eq!(rig.deliver("203.0.113.7:7", &old), [[0_u8; 0]; 0], "{:?}", rig.drops());
        assert_eq!(rig.dropped(DropReason::Replayed), 1);
        let mut forged = stranger::probe(&session, 2 * minute, 58);
        forged[30] ^= 1;
        assert_eq!(rig.deliver(SOURCE, &forged), [[0_u8; 0]; 0]);
        assert_eq!(rig.dropped(DropReason::Forged), 1);
    }
}

#[test]
fn a_peer_that_restarts_is_not_taken_for_a_replay_of_itself() {
    let mine = master(1);
    let mut rig = Rig::member(&mine);
    let mut stranger = Stranger::new(&mine, 1);
    let session = rig.session(&mut stranger, SOURCE, Role::Member);
    let hour = 3_600_000_000;
    assert!(!rig.deliver(SOURCE, &stranger::probe(&session, hour, 58)).is_empty());

    // Its clock begins anew with its next life.
    let session = rig.session(&mut stranger, SOURCE, Role::Member);
    for seconds in [1, 20, 40, 100, 1000] {
        let probe = stranger::probe(&session, seconds * 1_000_000, 58);
        assert!(!rig.deliver(SOURCE, &probe).is_empty(), "after {seconds} s: {:?}", rig.drops());
    }
}

#[test]
fn a_member_that_speaks_like_a_server_is_not_heard() {
    let mine = master(1);
    let mut rig = Rig::member(&mine);
    let mut stranger = Stranger::new(&mine, 1);
    let session = rig.session(&mut stranger, SOURCE, Role::Member);
    let attach = Attach {
        changes: vec![AttachChange { node: vec![7; 16], up: true }],
        full: true,
        ..Attach::default()
    };

    for body in
        [Body::Attach(attach), Body::Drain(Drain::default()), Body::Registered(Default::default())]
    {
        rig.say(&session, SOURCE, body);
    }

    assert_eq!(rig.dropped(DropReason::WrongRole), 3, "{:?}", rig.drops());
}

#[test]
fn a_relay_forwards_only_what_its_sender_may_say() {
    let mut rig = Rig::server();
    let (mine, others) = (master(1), master(8));
    let (mut a, mut b, mut c) =
        (Stranger::new(&mine, 1), Stranger::new(&mine, 2), Stranger::new(&others, 3));
    let mut sessions = Vec::new();
    for (stranger, source) in
        [(&mut a, "192.0.2.1:1"), (&mut b, "192.0.2.2:1"), (&mut c, "192.0.2.3:1")]
    {
        let session = rig.session(stranger, source, Role::Server);
        rig.say(&session, source, stranger.register(&session));
        sessions.push(session);
    }
    let (a, b, c) = (a.node().short(), b.node().short(), c.node().short());
    let inner = [0x84_u8; 100];
    let good = stranger::transit(&sessions[0], a, b, &inner);
    assert_eq!(rig.deliver("192.0.2.1:1", &good)[0].len(), good.len());

    for (bytes, reason) in [
        (good.clone(), DropReason::HopReplayed),
        (stranger::transit(&sessions[0], b, a, &inner), DropReason::NotVouched),
        (stranger::transit(&sessions[0], a, c, &inner), DropReason::NoForward),
        (stranger::transit(&sessions[2], c, b, &inner), DropReason::NoForward),
        ([&good[..50], &[0; 60]].concat(), DropReason::HopForged),
    ] {
        let before = rig.dropped(reason);
        assert_eq!(rig.deliver("192.0.2.1:1", &bytes), [[0_u8; 0]; 0], "{reason:?}");
        assert_eq!(rig.dropped(reason), before + 1, "{reason:?}: {:?}", rig.drops());
    }
}

#[test]
fn a_server_stores_what_is_signed_and_no_more_than_a_share() {
    let mut rig = Rig::server();
    let (mut stranger, other) = (Stranger::new(&master(1), 1), Stranger::new(&master(2), 2));
    let session = rig.session(&mut stranger, SOURCE, Role::Server);
    rig.say(&session, SOURCE, stranger.register(&session));
    let push = |rig: &mut Rig, container: Bytes| {
        let copies = vec![LsaCopy { age_s: 0, container }];
        rig.say(&session, SOURCE, Body::Push(Push { copies }));
        rig.counts().lsas
    };

    assert_eq!(push(&mut rig, stranger.lsa(2, 0, 5, 600, b"links")), 0, "who is it?");
    assert_eq!(rig.dropped(DropReason::BadCertificate), 1);
    let node = stranger.lsa(1, 0, 5, 600, b"node");
    let mut forged = node.to_vec();
    *forged.last_mut().unwrap() ^= 1;
    assert_eq!(push(&mut rig, forged.into()), 0);
    assert_eq!(rig.dropped(DropReason::Forged), 1);
    assert_eq!(push(&mut rig, other.lsa(1, 0, 5, 600, b"node")), 0);
    assert_eq!(rig.dropped(DropReason::WrongNetwork), 1);
    assert_eq!(push(&mut rig, node[..node.len() - 1].to_vec().into()), 0);
    assert_eq!(push(&mut rig, node.clone()), 1);
    assert_eq!(push(&mut rig, stranger.lsa(77, 3, 5, 600, b"of a later version")), 2);

    let filled = (0..40).map(|id| push(&mut rig, stranger.lsa(78, id, 5, 600, &[7; 900]))).last();
    assert!((15..25).contains(&filled.unwrap()), "{filled:?}");
    assert!(rig.dropped(DropReason::LsaRefused) > 10);

    push(&mut rig, stranger.lsa(1, 0, 6, 0, &[]));
    let (_, after) = network(&rig, &stranger);
    push(&mut rig, node);
    assert_eq!(network(&rig, &stranger).1, after, "an old copy revives nothing");
}

fn network(rig: &Rig, stranger: &Stranger) -> (Vec<wire::id::NodeId>, u64) {
    match &rig.machine {
        Machine::Server(server) => server.network(stranger.membership.network).unwrap(),
        Machine::Node(_) => panic!("a node"),
    }
}

#[test]
fn a_thousand_members_come_and_go_and_a_server_is_as_before() {
    let mut rig = Rig::server();
    for number in 0..1000_u64 {
        let mut stranger = Stranger::new(&master(number as u8 % 8), number);
        let source = format!("10.9.{}.{}:9", number / 250, number % 250);
        let session = rig.session(&mut stranger, &source, Role::Server);
        rig.say(&session, &source, stranger.register(&session));
        if number % 2 == 0 {
            rig.say(&session, &source, Body::Leave(Default::default()));
        }
        rig.pass(Duration::from_millis(15));
    }
    assert_eq!(rig.counts().networks, 8);

    rig.pass(Duration::from_secs(200));

    assert_eq!(rig.counts(), server::Counts::default());
    assert_eq!((rig.fib.sessions.len(), rig.fib.links.len(), rig.fib.forwards.len()), (0, 0, 0));
    let Machine::Server(server) = &rig.machine else { panic!() };
    assert!(server.poll_timeout().is_some_and(|(at, _)| at > rig.now), "only its sweep is left");
}
