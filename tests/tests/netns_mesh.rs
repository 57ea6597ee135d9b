//! The real binary in namespaces: what a user would try first, and what breaks networks.

#![allow(clippy::unwrap_used)]

use std::{fs, time::Duration};

use tests::lab::{Host, Lab, Nat, Node, Site, node};

const MOMENT: Duration = Duration::from_secs(15);

/// Two sites behind NATs, a public server, a node in each.
struct World {
    a: Node,
    b: Node,
    server: Node,
    url: String,
    site_a: Site,
    site_b: Site,
    host_a: Host,
    host_b: Host,
    lab: Lab,
}

impl World {
    fn new(nat_a: Nat, nat_b: Nat, options: &str) -> Self {
        let mut lab = Lab::new();
        let relay = lab.public_host("relay");
        let mut site_a = lab.site("ra", nat_a);
        let mut site_b = lab.site("rb", nat_b);
        let host_a = lab.host(&mut site_a, "a");
        let host_b = lab.host(&mut site_b, "b");
        let (server, url) = node::server(&mut lab, &relay, "server", "");
        let a = Node::start(&lab, &host_a, "a", &[&url], options);
        let b = Node::start(&lab, &host_b, "b", &[&url], options);
        a.wait("ready", MOMENT);
        b.wait("ready", MOMENT);
        a.wait("peers=1", MOMENT);
        b.wait("peers=1", MOMENT);
        Self { a, b, server, url, site_a, site_b, host_a, host_b, lab }
    }
}

#[test]
fn two_homes_meet_go_direct_and_leave_nothing_behind() {
    let mut world = World::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = world.b.ipv4();

    let ping = world.host_a.ping(&target, 5, Duration::from_millis(200));
    assert_eq!(ping.lost(), 0, "the first packet is held, not lost");
    world.a.wait("direct=b", MOMENT);
    let six = world.b.ipv6();
    assert_eq!(world.host_a.ping(&six, 3, Duration::from_millis(100)).lost(), 0);
    let large = world.host_a.try_run(&format!("ping -c 2 -s 4000 {target}"));
    assert!(large.status.success(), "packets larger than the mesh pass in fragments of IP");
    assert!(world.host_a.iperf(&world.host_b, &target, 1, "") > 0.1);

    let gateway = &world.host_a;
    assert!(gateway.run("ip link").contains("eza"));
    assert!(gateway.run("ip rule").contains("0x3000"));
    assert_eq!(world.a.stop(), Some(0), "{}", world.a.log());
    assert!(!gateway.run("ip link").contains("eza"));
    assert!(!gateway.run("ip rule").contains("0x3000"));
    assert!(!gateway.run("nft list tables").contains("easynet"));
    assert_eq!(world.b.json("status")["peers"]["total"], 0, "who leaves is forgotten at once");
    assert_eq!(world.server.stop(), Some(0), "{}", world.server.log());
}

#[test]
fn a_dead_direct_path_costs_less_than_a_second_and_comes_back() {
    let world = World::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = world.b.ipv4();
    world.host_a.ping(&target, 3, Duration::from_millis(100));
    world.a.wait("direct=b", MOMENT);

    let interval = Duration::from_millis(10);
    let (host, address) = (world.host_a.clone(), target.clone());
    let pinging = std::thread::spawn(move || host.ping(&address, 300, interval));
    std::thread::sleep(Duration::from_millis(700));
    world.lab.cut(&world.site_a, &world.site_b);
    let ping = pinging.join().unwrap();

    let gap = ping.longest_gap(interval);
    assert!(gap < Duration::from_millis(900), "an outage of {gap:?}");
    assert_eq!(world.a.peer("b")["state"], "relayed");

    world.lab.restore();
    for _ in 0..100 {
        world.host_a.ping(&target, 2, Duration::from_millis(200));
        if world.a.peer("b")["state"] == "direct" {
            return;
        }
    }
    panic!("not direct again: {}", world.a.json("events"));
}

#[test]
fn a_subnet_behind_one_node_is_reached_from_the_other() {
    let mut world = World::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let lan = format!("10.{}.0.0/24", world.site_b.number);
    let printer = world.lab.host(&mut world.site_b, "printer");
    assert_eq!(world.b.stop(), Some(0));
    world.b.restart(&[&world.url], &format!("--export {lan}"));
    world.b.wait("ready", MOMENT);
    world.a.wait("peers=1", MOMENT);

    let mut lost = u32::MAX;
    for _ in 0..20 {
        lost = world.host_a.ping(&printer.address, 2, Duration::from_millis(200)).lost();
        if lost == 0 {
            break;
        }
    }

    assert_eq!(lost, 0, "{} {}", world.a.json("routes"), world.b.json("status"));
}

#[test]
fn a_killed_node_is_back_within_seconds_with_its_address() {
    let mut world = World::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = world.b.ipv4();
    world.host_a.ping(&target, 2, Duration::from_millis(100));
    let id = world.b.json("status")["node_id"].clone();

    world.b.kill();
    world.b.restart(&[&world.url], "");
    world.b.wait("ready", MOMENT);

    assert_eq!(world.b.ipv4(), target);
    assert_eq!(world.b.json("status")["node_id"], id);
    let ping = world.host_a.ping(&target, 40, Duration::from_millis(100));
    let last = ping.answers.last().map(|(seq, _)| *seq);
    assert_eq!(last, Some(40), "{}", world.a.json("events"));
    let first = ping.answers.first().map(|(seq, _)| *seq);
    assert!(first < Some(30), "back after {first:?} tenths of a second");
}

#[test]
fn the_relay_carries_what_cannot_be_direct_and_reads_none_of_it() {
    let world = World::new(Nat::Symmetric, Nat::Symmetric, "");
    let target = world.b.ipv4();
    let marker = "0123456789abcdef";

    let ping = world.host_a.try_run(&format!("ping -c 20 -i 0.05 -p {marker} {target}"));
    assert!(ping.status.success());
    assert_eq!(world.a.peer("b")["state"], "relayed");
    assert!(world.host_a.iperf(&world.host_b, &target, 1, "") > 0.05);

    let needles =
        [b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67".to_vec(), target.clone().into_bytes()];
    for needle in &needles {
        for file in files(&world.server.state_dir()) {
            assert!(!contains(&fs::read(&file).unwrap(), needle), "{} holds it", file.display());
        }
        assert!(
            !memory_contains(world.server.pid(), needle),
            "the server's memory holds {needle:?}"
        );
    }
    assert!(
        memory_contains(world.a.pid(), needles[1].as_slice()),
        "the search finds what is there"
    );
}

#[test]
fn where_udp_is_blocked_tcp_carries_the_mesh() {
    let world = World::new(Nat::UdpBlocked, Nat::PortRestricted, "");
    let target = world.b.ipv4();

    let ping = world.host_a.ping(&target, 10, Duration::from_millis(100));

    assert_eq!(ping.lost(), 0, "{}", world.a.log());
    assert!(world.host_a.iperf(&world.host_b, &target, 1, "") > 0.02);
}

#[test]
fn a_lossy_underlay_keeps_its_session_and_its_direct_path() {
    let world = World::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = world.b.ipv4();
    world.host_a.ping(&target, 3, Duration::from_millis(100));
    world.a.wait("direct=b", MOMENT);
    world.lab.lose(5);

    let ping = world.host_a.ping(&target, 100, Duration::from_millis(20));

    assert!(ping.lost() < 30, "{} of 100 lost", ping.lost());
    assert_ne!(world.a.peer("b")["state"], "unreachable");
}

#[test]
fn a_black_hole_for_long_packets_is_found_and_gone_around() {
    let world = World::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = world.b.ipv4();
    world.host_a.ping(&target, 3, Duration::from_millis(100));
    world.a.wait("direct=b", MOMENT);
    assert!(world.host_a.iperf(&world.host_b, &target, 1, "") > 0.1);
    let mtu = |node: &Node| {
        let paths = node.json("paths b");
        paths.as_array().and_then(|paths| {
            let primary = paths.iter().find(|path| path["state"] == "primary")?;
            primary["mtu"].as_u64()
        })
    };
    assert_eq!(mtu(&world.a), Some(1320));

    world.lab.narrow(1300);
    let received = world.host_a.iperf(&world.host_b, &target, 4, "");

    assert!(
        received > 0.05,
        "{received} Gbit/s through a narrow way: {} {}",
        world.a.json("paths b"),
        world.a.json("stats")
    );
    let found = mtu(&world.a).unwrap();
    assert!((1220..=1239).contains(&found), "1300 less 28 less 33 is 1239, found {found}");
    // IPv6 has no packets below 1280: they travel in pieces.
    let six = world.b.ipv6();
    let large = world.host_a.try_run(&format!("ping -c 3 -i 0.2 -s 1200 {six}"));
    assert!(large.status.success(), "{}", String::from_utf8_lossy(&large.stdout));
    let received = world.host_a.iperf(&world.host_b, &six, 2, "");
    assert!(received > 0.01, "{received} Gbit/s in pieces: {}", world.b.json("stats"));
}

#[test]
fn a_wrong_secret_is_named_as_such() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let other = lab.public_host("o");
    let member = Node::start(&lab, &host, "m", &[], "");
    member.wait("ready", MOMENT);
    let url = format!("udp://{}:11010", host.address);
    let mut outsider = Node::start(&lab, &other, "o", &[], "");
    outsider.wait("ready", MOMENT);
    outsider.stop();
    outsider.set_secret("another secret of some length");
    outsider.restart(&[&url], "");
    std::thread::sleep(Duration::from_secs(2));

    assert_eq!(outsider.json("status")["ready"], false);
    assert_eq!(member.json("status")["peers"]["total"], 0);
    let drops = &member.json("stats")["drops"];
    assert!(drops["wrong_network"].as_u64() > Some(0), "{drops}");
}

fn files(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file())
        .collect()
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}

/// Searches the writable memory of a process.
fn memory_contains(pid: u32, needle: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    maps.lines().filter(|line| line.contains("rw-p")).any(|line| {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let from = u64::from_str_radix(from, 16).unwrap();
        let to = u64::from_str_radix(to, 16).unwrap();
        let mut bytes = vec![0; usize::try_from(to - from).unwrap().min(64 << 20)];
        memory.read_at(&mut bytes, from).is_ok() && contains(&bytes, needle)
    })
}
