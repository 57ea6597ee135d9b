//! The real binary in namespaces: what a user would try first, and what breaks networks.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use serde_json::Value;
use tests::lab::{Homes, Lab, Nat, Node};

const MOMENT: Duration = Duration::from_secs(15);

#[test]
fn two_homes_meet_go_direct_and_leave_nothing_behind() {
    let mut homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = homes.b.ipv4();

    let ping = homes.host_a.ping(&target, 5, Duration::from_millis(200));
    assert_eq!(ping.lost(), 0, "the first packet is held, not lost");
    homes.a.wait("direct=b", MOMENT);
    let six = homes.b.ipv6();
    assert_eq!(homes.host_a.ping(&six, 3, Duration::from_millis(100)).lost(), 0);
    let large = homes.host_a.try_run(&format!("ping -c 2 -s 4000 {target}"));
    assert!(large.status.success(), "packets larger than the mesh pass in fragments of IP");
    assert!(homes.host_a.iperf(&homes.host_b, &target, 1, "") > 0.1);

    let gateway = &homes.host_a;
    assert!(gateway.run("ip link").contains("eza"));
    assert!(gateway.run("ip rule").contains("0x3000"));
    assert_eq!(homes.a.stop(), Some(0), "{}", homes.a.log());
    assert!(!gateway.run("ip link").contains("eza"));
    assert!(!gateway.run("ip rule").contains("0x3000"));
    assert!(!gateway.run("nft list tables").contains("easynet"));
    assert_eq!(homes.b.json("status")["peers"]["total"], 0, "who leaves is forgotten at once");
    assert_eq!(homes.server.stop(), Some(0), "{}", homes.server.log());
}

#[test]
fn two_members_need_no_server_when_one_names_the_other() {
    let mut lab = Lab::new();
    let host_a = lab.lone_host("a", "10.99.0.1");
    let host_b = lab.lone_host("b", "10.99.0.2");
    lab.join((&host_a, "10.99.0.1/24"), (&host_b, "10.99.0.2/24"));
    let b = Node::start(&lab, &host_b, "b", &[], "--ipv4 10.98.0.2/24");
    let a = Node::start(&lab, &host_a, "a", &["udp://10.99.0.2:11010"], "--ipv4 10.98.0.1/24");

    for node in [&a, &b] {
        node.wait("ready", MOMENT);
        node.wait("peers=1", MOMENT);
    }

    let mut lost = 2;
    for _ in 0..20 {
        lost = host_a.ping("10.98.0.2", 2, Duration::from_millis(100)).lost();
        if lost == 0 {
            break;
        }
    }
    assert_eq!(lost, 0, "{} {}", a.json("routes"), b.json("routes"));
    assert_eq!(host_b.ping("10.98.0.1", 2, Duration::from_millis(100)).lost(), 0);
    assert_eq!(a.peer("b")["state"], "direct");
}

#[test]
fn a_peer_whose_only_path_is_dead_is_called_unreachable_and_named() {
    let mut lab = Lab::new();
    let host_a = lab.lone_host("a", "10.99.0.1");
    let host_b = lab.lone_host("b", "10.99.0.2");
    lab.join((&host_a, "10.99.0.1/24"), (&host_b, "10.99.0.2/24"));
    let a = Node::start(&lab, &host_a, "a", &[], "--ipv4 10.98.0.1/24");
    let mut b = Node::start(&lab, &host_b, "b", &["udp://10.99.0.1:11010"], "--ipv4 10.98.0.2/24");
    a.wait("direct=b", MOMENT);

    b.kill();

    host_a.ping("10.98.0.2", 5, Duration::from_millis(200));
    let peer = a.peer("b");
    assert_eq!(peer["state"], "unreachable", "{peer}");
    assert!(peer["last_error"].as_str().unwrap().contains("answered nothing"), "{peer}");
    let doctor = a.cli(&["doctor"]);
    assert_eq!(doctor.status.code(), Some(1));
    let said = String::from_utf8(doctor.stdout).unwrap();
    assert!(said.contains("1 of 1 peers are unreachable: b"), "{said}");
}

#[test]
fn a_dead_direct_path_costs_less_than_a_second_and_comes_back() {
    let homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = homes.b.ipv4();
    homes.host_a.ping(&target, 3, Duration::from_millis(100));
    homes.a.wait("direct=b", MOMENT);

    let interval = Duration::from_millis(10);
    let (host, address) = (homes.host_a.clone(), target.clone());
    let pinging = std::thread::spawn(move || host.ping(&address, 300, interval));
    std::thread::sleep(Duration::from_millis(700));
    homes.lab.cut(&homes.site_a, &homes.site_b);
    let ping = pinging.join().unwrap();

    let gap = ping.longest_gap(interval);
    assert!(gap < Duration::from_millis(900), "an outage of {gap:?}");
    assert_eq!(homes.a.peer("b")["state"], "relayed");

    homes.lab.restore();
    for _ in 0..100 {
        homes.host_a.ping(&target, 2, Duration::from_millis(200));
        if homes.a.peer("b")["state"] == "direct" {
            return;
        }
    }
    panic!("not direct again: {}", homes.a.json("events"));
}

#[test]
fn a_ping_alone_finds_the_way_round_a_dead_path() {
    let homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    homes.host_a.ping(&homes.b.ipv4(), 3, Duration::from_millis(100));
    homes.a.wait("direct=b", MOMENT);
    homes.lab.cut(&homes.site_a, &homes.site_b);

    let ping = homes.a.cli(&["ping", "b", "-c", "3", "-i", "0.5", "-o", "json"]);

    let asked: Vec<Value> = serde_json::from_slice(&ping.stdout).unwrap();
    assert!(asked.iter().any(|asked| asked["relayed"] == true), "{asked:?}");
    assert_eq!(homes.a.peer("b")["state"], "relayed");
}

#[test]
fn a_subnet_behind_one_node_is_reached_from_the_other() {
    let mut homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let lan = format!("10.{}.0.0/24", homes.site_b.number);
    let printer = homes.lab.host(&mut homes.site_b, "printer");
    assert_eq!(homes.b.stop(), Some(0));
    homes.b.restart(&[&homes.url], &format!("--export {lan}"));
    homes.b.wait("ready", MOMENT);
    homes.a.wait("peers=1", MOMENT);

    let mut lost = u32::MAX;
    for _ in 0..20 {
        lost = homes.host_a.ping(&printer.address, 2, Duration::from_millis(200)).lost();
        if lost == 0 {
            break;
        }
    }

    assert_eq!(lost, 0, "{} {}", homes.a.json("routes"), homes.b.json("status"));
}

#[test]
fn a_killed_node_is_back_within_seconds_with_its_address() {
    let mut homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = homes.b.ipv4();
    homes.host_a.ping(&target, 2, Duration::from_millis(100));
    let id = homes.b.json("status")["node_id"].clone();

    homes.b.kill();
    homes.b.restart(&[&homes.url], "");
    homes.b.wait("ready", MOMENT);

    assert_eq!(homes.b.ipv4(), target);
    assert_eq!(homes.b.json("status")["node_id"], id);
    let ping = homes.host_a.ping(&target, 40, Duration::from_millis(100));
    let last = ping.answers.last().map(|(seq, _)| *seq);
    assert_eq!(last, Some(40), "{}", homes.a.json("events"));
    let first = ping.answers.first().map(|(seq, _)| *seq);
    assert!(first < Some(30), "back after {first:?} tenths of a second");
}

#[test]
fn the_relay_carries_what_cannot_be_direct() {
    let homes = Homes::new(Nat::Symmetric, Nat::Symmetric, "");
    let target = homes.b.ipv4();

    let ping = homes.host_a.ping(&target, 20, Duration::from_millis(50));

    assert_eq!(ping.lost(), 0);
    assert_eq!(homes.a.peer("b")["state"], "relayed");
    assert!(homes.host_a.iperf(&homes.host_b, &target, 1, "") > 0.05);
}

#[test]
fn what_a_killed_node_left_is_gone_after_the_next_one() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let traces = |host: &tests::lab::Host| {
        let count = |command: &str, word: &str| host.run(command).matches(word).count();
        (
            count("ip rule; ip -6 rule", "0x3000"),
            count("nft list tables", "easynet"),
            count("ip -br link", "ezm"),
        )
    };
    assert_eq!(traces(&host), (0, 0, 0));
    let mut node = Node::start(&lab, &host, "m", &[], "--export 10.200.0.0/24");
    node.wait("ready", MOMENT);
    let running = traces(&host);
    assert!(running.0 > 0 && running.1 == 1 && running.2 == 1, "{running:?}");

    node.kill();
    assert_eq!(traces(&host).1, 1, "it had no time to tidy up");
    node.restart(&[], "--export 10.200.0.0/24");
    node.wait("ready", MOMENT);
    assert_eq!(traces(&host), running, "once, not twice");
    node.kill();
    // Another configuration does not need what the killed one had made, and removes it all the same.
    node.restart(&[], "");
    node.wait("ready", MOMENT);
    assert_eq!(node.stop(), Some(0));

    assert_eq!(traces(&host), (0, 0, 0), "{}", host.run("ip rule; nft list ruleset"));
}

#[test]
fn where_udp_is_blocked_tcp_carries_the_mesh() {
    let homes = Homes::new(Nat::UdpBlocked, Nat::PortRestricted, "");
    let target = homes.b.ipv4();

    let ping = homes.host_a.ping(&target, 10, Duration::from_millis(100));

    assert_eq!(ping.lost(), 0, "{}", homes.a.log());
    assert!(homes.host_a.iperf(&homes.host_b, &target, 1, "") > 0.02);
}

#[test]
fn a_lossy_underlay_keeps_its_session_and_its_direct_path() {
    let homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = homes.b.ipv4();
    homes.host_a.ping(&target, 3, Duration::from_millis(100));
    homes.a.wait("direct=b", MOMENT);
    homes.lab.lose(5);

    let ping = homes.host_a.ping(&target, 100, Duration::from_millis(20));

    assert!(ping.lost() < 30, "{} of 100 lost", ping.lost());
    assert_ne!(homes.a.peer("b")["state"], "unreachable");
}

#[test]
fn a_black_hole_for_long_packets_is_found_and_gone_around() {
    let homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let target = homes.b.ipv4();
    homes.host_a.ping(&target, 3, Duration::from_millis(100));
    homes.a.wait("direct=b", MOMENT);
    assert!(homes.host_a.iperf(&homes.host_b, &target, 1, "") > 0.1);
    let mtu = |node: &Node| {
        let paths = node.json("paths b");
        paths.as_array().and_then(|paths| {
            let primary = paths.iter().find(|path| path["state"] == "primary")?;
            primary["mtu"].as_u64()
        })
    };
    assert_eq!(mtu(&homes.a), Some(1320));

    homes.lab.narrow(1300);
    let received = homes.host_a.iperf(&homes.host_b, &target, 4, "");

    assert!(
        received > 0.05,
        "{received} Gbit/s through a narrow way: {} {}",
        homes.a.json("paths b"),
        homes.a.json("stats")
    );
    let found = mtu(&homes.a).unwrap();
    assert!((1220..=1239).contains(&found), "1300 less 28 less 33 is 1239, found {found}");
    let doctor = homes.a.cli(&["doctor", "--peer", "b", "-o", "json"]);
    let said = String::from_utf8_lossy(&doctor.stdout).into_owned();
    assert!(said.contains("an MTU black hole"), "{said}");
    // IPv6 has no packets below 1280: they travel in pieces.
    let six = homes.b.ipv6();
    let large = homes.host_a.try_run(&format!("ping -c 3 -i 0.2 -s 1200 {six}"));
    assert!(
        large.status.success(),
        "{}{}{}",
        String::from_utf8_lossy(&large.stdout),
        homes.a.json("stats"),
        homes.b.json("stats")
    );
    let received = homes.host_a.iperf(&homes.host_b, &six, 2, "");
    assert!(received > 0.01, "{received} Gbit/s in pieces: {}", homes.b.json("stats"));
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
