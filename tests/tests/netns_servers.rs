//! Several homes, IPv6, and members that carry for others.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tests::lab::{Host, Lab, Nat, Node, homes::MOMENT, node};

/// Clock ticks of CPU that a process has used, of which a second has a hundred.
fn ticks(node: &Node) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", node.pid())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

fn meet(nodes: &[&Node]) {
    for node in nodes {
        node.wait("ready", MOMENT);
        node.wait(&format!("peers={}", nodes.len() - 1), MOMENT);
    }
}

/// Two members that a public server carries for.
struct Relayed {
    lab: Lab,
    relay: Host,
    server: Node,
    url: String,
    host_a: Host,
    host_b: Host,
    a: Node,
    b: Node,
}

impl Relayed {
    fn new() -> Self {
        let mut lab = Lab::new();
        let relay = lab.public_host("relay");
        let (host_a, host_b) = (lab.public_host("a"), lab.public_host("b"));
        let (server, url) = node::server(&mut lab, &relay, "server", "");
        let a = Node::start(&lab, &host_a, "a", &[&url], "--p2p relay-only");
        let b = Node::start(&lab, &host_b, "b", &[&url], "--p2p relay-only");
        meet(&[&a, &b]);
        Self { lab, relay, server, url, host_a, host_b, a, b }
    }
}

fn address6(host: &Host) -> &str {
    host.address6.as_deref().unwrap()
}

#[test]
fn a_second_home_carries_on_when_the_first_one_dies() {
    let mut lab = Lab::new();
    let (one, two) = (lab.public_host("one"), lab.public_host("two"));
    let (host_a, host_b) = (lab.public_host("a"), lab.public_host("b"));
    let (mut first, url1) = node::server(&mut lab, &one, "first", "");
    let (mut second, url2) = node::server(&mut lab, &two, "second", "");
    let both = [url1.as_str(), url2.as_str()];
    let a = Node::start(&lab, &host_a, "a", &both, "--p2p relay-only");
    let b = Node::start(&lab, &host_b, "b", &both, "--p2p relay-only");
    meet(&[&a, &b]);
    let attached = |node: &Node| {
        let servers = node.json("status")["servers"].clone();
        servers.as_array().unwrap().iter().filter(|server| server["state"] == "attached").count()
    };
    let start = Instant::now();
    while attached(&a) < 2 || attached(&b) < 2 {
        assert!(start.elapsed() < MOMENT, "{}", a.json("status")["servers"]);
        std::thread::sleep(Duration::from_millis(50));
    }
    let target = b.ipv4();
    assert_eq!(host_a.ping(&target, 5, Duration::from_millis(50)).lost(), 0);
    let via = a.peer("b")["via"].clone();
    let id = |url: &str| {
        let servers = a.json("status")["servers"].clone();
        let port = url.split('?').next().unwrap().to_owned();
        let found =
            servers.as_array().unwrap().iter().find(|server| server["url"] == port).cloned();
        found.unwrap()["node_id"].clone()
    };
    let carries = if via == id(&url1) { &mut first } else { &mut second };

    let interval = Duration::from_millis(20);
    let (host, address) = (host_a.clone(), target.clone());
    let pinging = std::thread::spawn(move || host.ping(&address, 150, interval));
    std::thread::sleep(Duration::from_millis(500));
    carries.kill();
    let ping = pinging.join().unwrap();

    let gap = ping.longest_gap(interval);
    assert!(gap < Duration::from_millis(1000), "{gap:?} without an answer: {}", a.json("events"));
    assert_eq!(ping.answers.last().map(|(seq, _)| *seq), Some(150));
    assert_ne!(a.peer("b")["via"], via);
    // It is told within the time of its hellos.
    let start = Instant::now();
    while a.events("server_lost").is_empty() {
        assert!(start.elapsed() < Duration::from_secs(25), "{}", a.json("status")["servers"]);
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(attached(&a), 1);
}

#[test]
fn a_server_that_restarts_costs_those_who_talk_a_moment() {
    let Relayed { mut lab, relay, mut server, url, host_a, host_b, a, b } = Relayed::new();
    let target = b.ipv4();
    assert_eq!(host_a.ping(&target, 5, Duration::from_millis(50)).lost(), 0);

    // Both say something: who is silent notices with its next hello.
    let interval = Duration::from_millis(20);
    let pinging = [(&host_a, target.clone()), (&host_b, a.ipv4())].map(|(host, address)| {
        let host = host.clone();
        std::thread::spawn(move || host.ping(&address, 300, interval))
    });
    std::thread::sleep(Duration::from_millis(500));
    server.kill();
    let (again, same) = node::server(&mut lab, &relay, "server", "");
    let [ping, _] = pinging.map(|pinging| pinging.join().unwrap());

    assert_eq!(same, url, "its key is kept");
    let gap = ping.longest_gap(interval);
    assert!(gap < Duration::from_secs(3), "{gap:?} without an answer: {}", a.json("events"));
    assert_eq!(ping.answers.last().map(|(seq, _)| *seq), Some(300), "{}", again.log());
}

#[test]
fn a_server_that_is_told_to_stop_and_comes_back_costs_a_moment() {
    let Relayed { mut lab, relay, mut server, host_a, a, b, .. } = Relayed::new();
    let target = b.ipv4();
    assert_eq!(host_a.ping(&target, 3, Duration::from_millis(50)).lost(), 0);

    assert_eq!(server.stop(), Some(0));
    let (again, _) = node::server(&mut lab, &relay, "server", "");
    let interval = Duration::from_millis(50);
    let ping = host_a.ping(&target, 100, interval);

    let gap = ping.longest_gap(interval);
    assert!(gap < Duration::from_secs(3), "{gap:?} without an answer: {}", a.json("events"));
    assert_eq!(ping.answers.last().map(|(seq, _)| *seq), Some(100), "{}", again.log());
}

#[test]
fn a_member_that_leaves_over_tcp_is_forgotten_at_once() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let (host_a, host_b) = (lab.public_host("a"), lab.public_host("b"));
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let tcp = url.replace("udp://", "tcp://");
    let mut a = Node::start(&lab, &host_a, "a", &[&tcp], "--p2p relay-only");
    let b = Node::start(&lab, &host_b, "b", &[&url], "--p2p relay-only");
    meet(&[&a, &b]);

    assert_eq!(a.stop(), Some(0));

    let start = Instant::now();
    while b.json("peers").as_array().is_none_or(|peers| !peers.is_empty()) {
        assert!(start.elapsed() < Duration::from_secs(2), "{}", b.json("peers"));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn members_that_carry_for_others_replace_a_server() {
    let mut lab = Lab::new();
    let middle = lab.public_host("m");
    let (mut site_a, mut site_b) = (lab.site("ra", Nat::Symmetric), lab.site("rb", Nat::Symmetric));
    let (host_a, host_b) = (lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b"));
    let m = Node::start(&lab, &middle, "m", &[], "--transit");
    m.wait("ready", MOMENT);
    let url = format!("udp://{}:11010", middle.address);
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    meet(&[&a, &b, &m]);

    let ping = host_a.ping(&b.ipv4(), 20, Duration::from_millis(50));

    assert!(ping.lost() <= 1, "{} lost: {}", ping.lost(), a.json("routes"));
    let peer = a.peer("b");
    assert_eq!((&peer["state"], &peer["via"]), (&"relayed".into(), &m.json("status")["node_id"]));
    assert!(host_a.iperf(&host_b, &b.ipv4(), 1, "") > 0.02);
}

#[test]
fn a_member_that_does_not_offer_it_carries_for_nobody() {
    let mut lab = Lab::new();
    let middle = lab.public_host("m");
    let (mut site_a, mut site_b) = (lab.site("ra", Nat::Symmetric), lab.site("rb", Nat::Symmetric));
    let (host_a, host_b) = (lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b"));
    let m = Node::start(&lab, &middle, "m", &[], "");
    m.wait("ready", MOMENT);
    let url = format!("udp://{}:11010", middle.address);
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    m.wait("peers=2", MOMENT);
    for node in [&a, &b] {
        node.wait("peers=1", MOMENT);
    }
    let start = Instant::now();
    while a.peer("b").is_null() {
        assert!(start.elapsed() < MOMENT, "{}", a.json("peers"));
        std::thread::sleep(Duration::from_millis(50));
    }

    let ping = host_a.ping(&b.ipv4(), 5, Duration::from_millis(100));

    assert_eq!(ping.lost(), 5);
    assert_eq!(a.peer("b")["state"], "unreachable", "{}", a.peer("b"));
    assert_eq!(host_a.ping(&m.ipv4(), 5, Duration::from_millis(100)).lost(), 0);
}

#[test]
fn a_mesh_of_ipv6_alone_works_and_asks_nobody_in_a_loop() {
    let mut lab = Lab::new();
    let (relay, host_a) = (lab.public_host6("relay"), lab.public_host6("a"));
    let mut site = lab.site6("rb", Nat::PortRestricted);
    let host_b = lab.host(&mut site, "b");
    for host in [&relay, &host_a, &host_b] {
        host.drop_ipv4();
    }
    let (server, url) = node::server_at(&mut lab, &relay, "server", address6(&relay), "");
    assert!(url.starts_with(&format!("udp://[{}]:11010?k=", address6(&relay))), "{url}");
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    let b = Node::start(&lab, &host_b, "b", &[&url.replace("udp://", "tcp://")], "");
    meet(&[&a, &b]);

    assert_eq!(host_a.ping(&b.ipv4(), 5, Duration::from_millis(100)).lost(), 0, "IPv4 inside");
    a.wait("direct=b", MOMENT);
    assert!(a.peer("b")["remote"].as_str().unwrap().starts_with("[2001:db8:"), "{}", a.peer("b"));
    let nat = a.json("nat");
    assert_ne!(nat["v6"]["kind"], "none", "{nat}");
    assert_eq!(nat["v4"]["external"], serde_json::json!([]));
    let nodes = [&a, &b, &server];
    let before = nodes.map(ticks);
    let events = a.json("events").as_array().unwrap().len();
    std::thread::sleep(Duration::from_secs(3));
    for (node, before) in nodes.iter().zip(before) {
        let used = ticks(node) - before;
        assert!(used < 30, "{} used {used} ticks in 3 s of rest", node.name);
    }
    assert!(a.json("events").as_array().unwrap().len() <= events + 2, "{}", a.json("events"));
}

#[test]
fn two_firewalls_of_ipv6_open_for_each_other_where_ipv4_cannot() {
    let mut lab = Lab::new();
    let relay = lab.public_host6("relay");
    let mut site_a = lab.site6("ra", Nat::Symmetric);
    let mut site_b = lab.site6("rb", Nat::Symmetric);
    let (host_a, host_b) = (lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b"));
    // A name would give both addresses; so do two entries.
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let url6 = url.replace(&relay.address, &format!("[{}]", address6(&relay)));
    let a = Node::start(&lab, &host_a, "a", &[&url, &url6], "");
    let b = Node::start(&lab, &host_b, "b", &[&url, &url6], "");
    meet(&[&a, &b]);
    assert!(!host_a.try_run(&format!("ping -c 1 -W 1 {}", address6(&host_b))).status.success());

    host_a.ping(&b.ipv4(), 10, Duration::from_millis(100));
    a.wait("direct=b", MOMENT);

    let remote = a.peer("b")["remote"].as_str().unwrap().to_owned();
    assert!(remote.starts_with(&format!("[{}]", address6(&host_b))), "{remote}");
    assert_eq!(host_a.ping(&b.ipv6(), 5, Duration::from_millis(50)).lost(), 0);
}

#[test]
fn neighbours_talk_in_their_lan_though_their_router_would_turn_packets_around() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site = lab.site("ra", Nat::Hairpin);
    let (host_a, host_b) = (lab.host(&mut site, "a"), lab.host(&mut site, "b"));
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    meet(&[&a, &b]);

    host_a.ping(&b.ipv4(), 10, Duration::from_millis(100));
    a.wait("direct=b", MOMENT);

    let remote = a.peer("b")["remote"].as_str().unwrap().to_owned();
    assert!(remote.starts_with(&format!("{}:", host_b.address)), "{remote}");
    assert_eq!(host_a.ping(&b.ipv4(), 5, Duration::from_millis(50)).lost(), 0);
}
