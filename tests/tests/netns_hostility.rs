//! Hostility over real sockets: the real binary, and strangers beside it.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use rand_chacha::{
    ChaCha8Rng,
    rand_core::{RngCore, SeedableRng},
};
use session::{cookie, membership::Master, transport::Session};
use tests::{
    lab::{Host, Lab, Nat, Node, Tap, homes::MOMENT, inside, node},
    stranger::{self, Stranger},
};
use wire::{
    control::{Body, Ping},
    datagram::{Datagram, INIT_LEN, Role, Whois},
    id::{NodeKeys, ShortId},
    stream,
};

const METRICS: &str = "--metrics 127.0.0.1:9100";

/// A server, two members that reach each other directly, and somebody else; all of them public, in both families.
struct World {
    a: Node,
    b: Node,
    server: Node,
    url: String,
    relay: Host,
    host_a: Host,
    stranger: Host,
    lab: Lab,
}

impl World {
    fn new(log: &str) -> Self {
        let mut lab = Lab::new();
        let relay = lab.public_host6("relay");
        let (host_a, host_b) = (lab.public_host6("a"), lab.public_host6("b"));
        let stranger = lab.public_host6("x");
        // Whatever the stranger says it is, the answers reach it.
        stranger.run("ip route add local 10.98.0.0/16 dev lo");
        lab.way_back("10.98.0.0/16", &stranger);
        let (server, url) =
            node::server(&mut lab, &relay, "server", &format!("{METRICS} --log {log}"));
        let options = format!("--log {log}");
        let a = Node::start(&lab, &host_a, "a", &[&url], &options);
        let b = Node::start(&lab, &host_b, "b", &[&url], &options);
        for node in [&a, &b] {
            node.wait("ready", MOMENT);
            node.wait("peers=1", MOMENT);
        }
        host_a.ping(&b.ipv4(), 3, Duration::from_millis(100));
        a.wait("direct=b", MOMENT);
        Self { a, b, server, url, relay, host_a, stranger, lab }
    }

    fn server_keys(&self) -> NodeKeys {
        self.url.split_once("?k=").unwrap().1.parse().unwrap()
    }

    /// A gauge or counter of the server.
    fn server_count(&self, name: &str) -> u64 {
        let metrics = self.relay.run(
            "exec bash -c 'exec 3<>/dev/tcp/127.0.0.1/9100; printf \"GET /metrics HTTP/1.1\\r\\n\\r\\n\" >&3; cat <&3'",
        );
        let line = metrics.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("{name} is not in {metrics}"))
    }

    fn server_dropped(&self, reason: &str) -> u64 {
        self.server_count(&format!("easynet_drops_total{{reason=\"{reason}\"}}"))
    }

    /// Waits until a count of the server is no more than this.
    fn until_server(&self, name: &str, most: u64, within: Duration) {
        let start = Instant::now();
        while self.server_count(name) > most {
            assert!(start.elapsed() < within, "{name} is {}", self.server_count(name));
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

fn keys(node: &Node) -> NodeKeys {
    let output = Command::new(node::binary())
        .args(["key", "show", "-o", "json", "--state-dir"])
        .arg(node.state_dir())
        .output()
        .unwrap();
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    shown["k"].as_str().unwrap().parse().unwrap()
}

fn live(node: &Node) -> BTreeMap<String, u64> {
    let mut live: BTreeMap<String, u64> =
        serde_json::from_value(node.json("stats")["live"].clone()).unwrap();
    // Deadlines come and go with what a node does by itself.
    for passing in ["timers", "pulls", "punches"] {
        live.remove(passing);
    }
    live
}

fn drops(node: &Node) -> BTreeMap<String, u64> {
    serde_json::from_value(node.json("stats")["drops"].clone()).unwrap()
}

/// A socket that counts what it asked and what it was answered.
struct Asker {
    socket: UdpSocket,
    to: SocketAddr,
    asked: usize,
    answered: usize,
}

impl Asker {
    fn new(to: SocketAddr) -> Self {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        Self::bound(any, to)
    }

    fn bound(from: &str, to: SocketAddr) -> Self {
        let socket = UdpSocket::bind(from).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        Self { socket, to, asked: 0, answered: 0 }
    }

    fn send(&mut self, bytes: &[u8]) {
        // A refusal by ICMP is no matter here.
        if self.socket.send_to(bytes, self.to).is_ok() {
            self.asked += bytes.len();
        }
    }

    /// Everything that comes until there is silence.
    fn hear(&mut self) -> Vec<Vec<u8>> {
        let mut heard = Vec::new();
        let mut buf = [0; 65_535];
        while let Ok((len, _)) = self.socket.recv_from(&mut buf) {
            self.answered += len;
            heard.push(buf[..len].to_vec());
        }
        heard
    }

    /// Asks once and waits for one answer.
    fn ask(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.send(bytes);
        let mut buf = [0; 65_535];
        let (len, _) = self.socket.recv_from(&mut buf).ok()?;
        self.answered += len;
        Some(buf[..len].to_vec())
    }

    /// A handshake to the end, with a cookie if that is asked for.
    fn session(&mut self, stranger: &mut Stranger, to: NodeKeys, role: Role) -> Option<Session> {
        let mut pending = stranger.init(to, role);
        for _ in 0..4 {
            let answer = self.ask(&pending.init.clone())?;
            if let Some(Datagram::Cookie(baked)) = Datagram::parse(&answer) {
                assert!(cookie::redeem(&mut pending.init, &to.dh, &baked));
                continue;
            }
            return stranger.session(&mut pending, &answer, Instant::now());
        }
        None
    }
}

/// Whether a stream carries it on.
fn may_frame(bytes: &[u8]) -> bool {
    stream::TYPES.contains(&bytes[0]) && bytes.len() <= stream::MAX_FRAME
}

/// Everything that is no protocol of ours, or not quite.
fn broken(good: &[u8], random: &mut ChaCha8Rng) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for first in 0..=255_u8 {
        let mut bytes = vec![0; 1 + random.next_u32() as usize % 1300];
        random.fill_bytes(&mut bytes);
        bytes[0] = first;
        all.push(bytes);
    }
    all.extend((1..INIT_LEN).step_by(97).map(|len| good[..len].to_vec()));
    for _ in 0..20 {
        let mut flipped = good.to_vec();
        flipped[random.next_u32() as usize % INIT_LEN] ^= 1 << (random.next_u32() % 8);
        all.push(flipped);
    }
    all.push([good, &[0; 200]].concat());
    all.push(vec![0x84; 1200]);
    all.push([&[0x84, 0, 0, 0][..], &[9; 60]].concat());
    all.push([&[0x85, 0][..], &[9; 80]].concat());
    all.push([&[0x86, 8][..], &[9; 80]].concat());
    all.push(vec![0x81; 60_000]);
    all
}

#[test]
fn what_strangers_send_on_any_carrier_is_counted_and_leaves_nothing() {
    let world = World::new("debug");
    let (server, a) = (world.server_keys(), keys(&world.a));
    let before = (live(&world.a), live(&world.b), world.server_count("easynet_sessions"));
    let lines = |node: &Node| node.log().lines().count();
    let logged = [lines(&world.server), lines(&world.a)];
    let (host, target) = (world.host_a.clone(), world.b.ipv4());
    let pinging = std::thread::spawn(move || host.ping(&target, 100, Duration::from_millis(50)));

    let other = Master::from_bytes([3; 32]);
    let addresses = |host: &Host| -> Vec<SocketAddr> {
        let v6 = format!("[{}]:11010", host.address6.as_ref().unwrap());
        vec![format!("{}:11010", host.address).parse().unwrap(), v6.parse().unwrap()]
    };
    inside(&world.stranger, || {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        for (keys, host) in [(server, &world.relay), (a, &world.host_a)] {
            let is_server = keys == server;
            let wrong = if is_server { Role::Member } else { Role::Server };
            for to in addresses(host) {
                // UDP, from an address of its own.
                let mut stranger = Stranger::new(&other, random.next_u64());
                let mut asker = Asker::new(to);
                let good = stranger.init(keys, wrong).init;
                for bytes in broken(&good, &mut random) {
                    asker.send(&bytes);
                    std::thread::sleep(Duration::from_micros(700));
                }
                for _ in 0..3 {
                    asker.send(&stranger.init(keys, wrong).init);
                    asker.send(&stranger.init(keys, Role::Any).init[..INIT_LEN - 1]);
                    if !is_server {
                        asker.send(&stranger.init(keys, Role::Member).init);
                    }
                }
                asker.send(&Whois::ask(9));
                let heard = asker.hear();
                assert!(
                    asker.answered <= asker.asked / 10,
                    "{} of {}",
                    asker.answered,
                    asker.asked
                );
                assert!(heard.iter().all(|bytes| bytes.len() <= INIT_LEN));

                // The same inside frames of a stream, which lives on; then what is no frame.
                let mut tcp = TcpStream::connect(to).unwrap();
                tcp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
                let mut sent = 0;
                for bytes in broken(&good, &mut random).iter().filter(|bytes| may_frame(bytes)) {
                    let Some(header) = stream::header(bytes) else { continue };
                    sent += bytes.len();
                    if tcp.write_all(&[&header[..], bytes].concat()).is_err() {
                        break;
                    }
                }
                let mut back = Vec::new();
                let _ = tcp.read_to_end(&mut back);
                assert!(back.len() < sent / 10, "{} bytes for {sent}", back.len());
                for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0, 0], &[0x16, 3, 1, 0, 9]] {
                    let mut tcp = TcpStream::connect(to).unwrap();
                    tcp.write_all(garbage).unwrap();
                    tcp.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                    assert!(matches!(tcp.read(&mut [0; 8]), Ok(0) | Err(_)));
                }
            }
        }
    });

    let ping = pinging.join().unwrap();
    assert!(ping.lost() <= 1, "{} of {} lost", ping.lost(), ping.sent);
    assert_eq!(live(&world.a), before.0);
    assert_eq!(live(&world.b), before.1);
    assert!(world.server_count("easynet_sessions") <= before.2);
    for reason in [
        "malformed",
        "bad_mac1",
        "unknown_session",
        "unknown_link",
        "wrong_role",
        "stream_malformed",
    ] {
        assert!(world.server_dropped(reason) > 0, "{reason}");
        assert!(drops(&world.a).contains_key(reason), "{reason}: {:?}", drops(&world.a));
    }
    assert!(drops(&world.a).contains_key("wrong_network"));
    for (node, before) in [(&world.server, logged[0]), (&world.a, logged[1])] {
        let log = node.log();
        let new: Vec<&str> = log.lines().skip(before).collect();
        assert!(new.len() < 10, "{new:#?}");
    }
}

#[test]
fn records_replayed_reordered_and_from_false_addresses_change_nothing() {
    let world = World::new("info");
    let (keys, relay) = (world.server_keys(), world.relay.address.clone());
    let to: SocketAddr = format!("{relay}:11010").parse().unwrap();
    let mut first = Stranger::new(&Master::from_bytes([3; 32]), 1);
    let spoofed = world.host_a.address.clone();
    // The stranger may say that it is `a`.
    world.stranger.run(&format!("ip route add local {spoofed} dev lo"));

    inside(&world.stranger, || {
        let mut asker = Asker::new(to);
        let session = asker.session(&mut first, keys, Role::Server).unwrap();
        let register = stranger::control(&session, first.register(&session));
        let answer = asker.ask(&register).unwrap();
        assert!(matches!(stranger::open(&session, &answer), Some(Body::Registered(_))));
        asker.hear();

        // Out of order they are all good, and each is good once.
        let mut pings: Vec<Vec<u8>> = (0..20)
            .map(|id| stranger::control(&session, Body::Ping(Ping { id, sent_us: 0 })))
            .collect();
        pings.reverse();
        pings.iter().for_each(|ping| asker.send(ping));
        let pongs = asker.hear();
        assert_eq!(pongs.len(), 20);
        let mut elsewhere = Asker::new(to);
        for bytes in pings.iter().chain([&register]) {
            asker.send(bytes);
            elsewhere.send(bytes);
        }
        assert_eq!((asker.hear().len(), elsewhere.hear().len()), (0, 0));
        // Where it was replayed from is not where the server sends to.
        let ping = stranger::control(&session, Body::Ping(Ping { id: 99, sent_us: 0 }));
        assert!(asker.ask(&ping).is_some());

        // In the name of another node, and in that of `a` by its address.
        let (me, them) = (first.node().short(), ShortId(77));
        asker.send(&stranger::transit(&session, them, me, &[0x84; 60]));
        let mut forger = Asker::bound(&format!("{spoofed}:11010"), to);
        let mut random = ChaCha8Rng::seed_from_u64(1);
        for bytes in broken(&first.init(keys, Role::Server).init, &mut random) {
            forger.send(&bytes);
        }
    });
    world.stranger.run(&format!("ip route del local {spoofed} dev lo"));

    assert!(world.server_dropped("replayed") >= 42, "{}", world.server_dropped("replayed"));
    assert!(world.server_dropped("not_vouched") >= 1);
    let ping = world.host_a.ping(&world.b.ipv4(), 20, Duration::from_millis(50));
    assert_eq!(ping.lost(), 0);
    assert_eq!(world.a.json("status")["servers"][0]["state"], "attached");
}

#[test]
fn floods_leave_sessions_working_and_let_new_ones_in() {
    let mut world = World::new("info");
    let (server, a) = (world.server_keys(), keys(&world.a));
    let targets: Vec<(NodeKeys, SocketAddr)> = [(server, &world.relay), (a, &world.host_a)]
        .map(|(keys, host)| (keys, format!("{}:11010", host.address).parse().unwrap()))
        .to_vec();
    let rss = (world.server.rss(), world.a.rss());
    let newcomer = world.lab.public_host("n");
    let (host, target) = (world.host_a.clone(), world.b.ipv4());
    let pinging = std::thread::spawn(move || host.ping(&target, 160, Duration::from_millis(50)));

    let mut flooded = 0;
    std::thread::scope(|scope| {
        let attacker = world.stranger.clone();
        let flood = scope.spawn(move || {
            inside(&attacker, || {
                let mut stranger = Stranger::new(&Master::from_bytes([3; 32]), 9);
                let inits: Vec<Vec<u8>> =
                    targets.iter().map(|(keys, _)| stranger.init(*keys, Role::Any).init).collect();
                // Connections that say nothing, as many as one may have and some more.
                let _idle: Vec<TcpStream> = targets
                    .iter()
                    .flat_map(|(_, to)| (0..10).filter_map(|_| TcpStream::connect(*to).ok()))
                    .collect();
                let (start, mut sent) = (Instant::now(), 0_u32);
                while start.elapsed() < Duration::from_secs(7) {
                    for _ in 0..20 {
                        // Another source each time: 10.98.0.0/16 is all the stranger's.
                        let from = Ipv4Addr::from(0x0a62_0000 + (sent & 0xffff));
                        let socket = UdpSocket::bind((from, 0)).unwrap();
                        for (init, (_, to)) in inits.iter().zip(&targets) {
                            let _ = socket.send_to(init, *to);
                        }
                        sent += 1;
                    }
                    std::thread::sleep(Duration::from_millis(4));
                }
                sent
            })
        });
        std::thread::sleep(Duration::from_secs(1));
        let began = Instant::now();
        let c = Node::start(&world.lab, &newcomer, "c", &[&world.url], "");
        c.wait("ready", MOMENT);
        let took = began.elapsed();
        assert!(took < Duration::from_secs(5), "in after {took:?}");
        c.wait("peers=2", MOMENT);
        let ping = newcomer.ping(&world.a.ipv4(), 10, Duration::from_millis(100));
        assert!(ping.lost() <= 2, "{} of 10 lost", ping.lost());
        flooded = flood.join().unwrap();
    });

    let ping = pinging.join().unwrap();
    assert!(flooded > 10_000, "{flooded}");
    assert!(ping.lost() <= 8, "{} of {} lost", ping.lost(), ping.sent);
    assert_eq!(world.a.json("status")["servers"][0]["state"], "attached");
    assert_eq!(world.a.events("server_lost").len(), 0);
    let more = (world.server.rss().saturating_sub(rss.0), world.a.rss().saturating_sub(rss.1));
    assert!(more.0 < 12 << 20 && more.1 < 12 << 20, "{more:?} bytes more");
    assert!(world.server_dropped("stream_refused") > 0);
}

#[test]
fn a_thousand_strangers_and_members_come_and_go_and_nothing_stays() {
    let world = World::new("info");
    let to = |host: &Host| -> SocketAddr { format!("{}:11010", host.address).parse().unwrap() };
    let (server, relay) = (world.server_keys(), to(&world.relay));
    let (member, at) = (keys(&world.a), to(&world.host_a));
    let mine = Master::derive("lab", node::SECRET);
    let before = (live(&world.a), world.server_count("easynet_sessions"));
    let descriptors =
        |node: &Node| std::fs::read_dir(format!("/proc/{}/fd", node.pid())).unwrap().count();
    let open = (descriptors(&world.server), descriptors(&world.a));

    let met = inside(&world.stranger, || {
        let mut met = (0, 0);
        for number in 0..1000_u64 {
            let from = format!("10.98.{}.{}:0", number / 200 + 1, number % 200 + 1);
            // To the server as members of many networks.
            let theirs = Master::from_bytes([number as u8 % 16; 32]);
            let mut guest = Stranger::new(&theirs, number);
            let mut asker = Asker::bound(&from, relay);
            if let Some(session) = asker.session(&mut guest, server, Role::Server) {
                met.0 += 1;
                asker.ask(&stranger::control(&session, guest.register(&session)));
                asker.send(&stranger::control(&session, Body::Leave(Default::default())));
            }
            // To a member as another one of its network.
            let mut guest = Stranger::new(&mine, number);
            let mut asker = Asker::bound(&from, at);
            if let Some(session) = asker.session(&mut guest, member, Role::Member) {
                met.1 += 1;
                let attributes = guest.membership.attributes.clone();
                asker.send(&stranger::control(&session, Body::Attributes(attributes)));
                asker.send(&stranger::control(&session, Body::Leave(Default::default())));
            }
        }
        // Connections too.
        for _ in 0..100 {
            let _ = TcpStream::connect(relay);
            let _ = TcpStream::connect(at);
        }
        met
    });

    assert!(met.0 >= 990 && met.1 >= 990, "{met:?} of 1000 were let in");
    world.until_server("easynet_sessions", before.1, Duration::from_secs(20));
    world.until_server("easynet_attached", 2, Duration::from_secs(20));
    let start = Instant::now();
    while live(&world.a) != before.0 || descriptors(&world.a) != open.1 {
        let (now, fds) = (live(&world.a), descriptors(&world.a));
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "{now:?} {fds}, was {before:?} {open:?}"
        );
        std::thread::sleep(Duration::from_millis(500));
    }
    assert_eq!(descriptors(&world.server), open.0);
    assert_eq!(world.host_a.ping(&world.b.ipv4(), 5, Duration::from_millis(50)).lost(), 0);
}

#[test]
fn a_server_sees_no_names_addresses_or_payload_on_its_wire() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let (mut site_a, mut site_b) = (lab.site("ra", Nat::Symmetric), lab.site("rb", Nat::Symmetric));
    let (host_a, host_b) = (lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b"));
    let (server, url) = node::server(&mut lab, &relay, "server", "--log trace");
    let (tap, control) = (Tap::start(&relay), Tap::start(&host_a));
    let names = ["--hostname anna-of-the-tenant", "--hostname bert-of-the-tenant"];
    let export = "--export 172.23.45.0/24";
    let a = Node::start_as(&lab, &host_a, "a", &[&url], &format!("{} {export}", names[0]));
    let b = Node::start_as(&lab, &host_b, "b", &[&url], names[1]);
    for node in [&a, &b] {
        node.wait("ready", MOMENT);
        node.wait("peers=1", MOMENT);
    }
    let target = b.ipv4();
    let ping = format!("ping -c 10 -i 0.1 -s 200 -p 0f1e2d3c4b5a69788796a5b4c3d2e1f0 {target}");
    assert!(host_a.try_run(&ping).status.success(), "{}", a.log());
    assert_eq!(a.json("peers")[0]["state"], "relayed");
    std::thread::sleep(Duration::from_millis(300));
    let (wire, inside) = (tap.stop(), control.stop());

    let v4 = |text: &str| text.parse::<Ipv4Addr>().unwrap().octets();
    // Header of the inner packet from source address to destination, as it lies in an IP packet.
    let inner = [v4(&a.ipv4()), v4(&target)].concat();
    let needles: Vec<(&str, Vec<u8>)> = vec![
        ("payload", b"\x0f\x1e\x2d\x3c\x4b\x5a\x69\x78\x87\x96\xa5\xb4".to_vec()),
        ("the inner addresses", inner),
        ("an address as text", target.clone().into_bytes()),
        ("a name", b"anna-of-the-tenant".to_vec()),
        ("a name", b"bert-of-the-tenant".to_vec()),
        ("a prefix as text", b"172.23.45.0".to_vec()),
        ("the secret", node::SECRET.as_bytes().to_vec()),
    ];
    assert!(wire.len() > 20_000, "the tap saw {} bytes", wire.len());
    for (what, needle) in &needles {
        assert!(!contains(&wire, needle), "{what} on the wire");
        assert!(!contains(server.log().as_bytes(), needle), "{what} in the log");
        for entry in std::fs::read_dir(server.state_dir()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            assert!(!contains(&bytes, needle), "{what} on the disk");
        }
        assert!(!node::memory_contains(server.pid(), needle), "{what} in memory");
    }
    // The searches find what is there: on the member's TUN, and in its memory.
    assert!(contains(&inside, &needles[0].1) && contains(&inside, &needles[1].1));
    assert!(node::memory_contains(a.pid(), &needles[4].1));
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    let Some(first) = needle.first() else { return true };
    haystack
        .iter()
        .enumerate()
        .filter(|(_, byte)| *byte == first)
        .any(|(at, _)| haystack[at..].starts_with(needle))
}
