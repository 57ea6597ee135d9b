//! The ground moves under the mesh: addresses, NATs, name servers.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use tests::lab::{Homes, Lab, Nat, Node, homes::MOMENT, node};

/// Pings until `a` is direct with `b` again; how long that took, and the longest time without an answer.
fn recovers(homes: &Homes) -> (Duration, Duration) {
    let interval = Duration::from_millis(50);
    let target = homes.b.ipv4();
    let start = Instant::now();
    let mut gap = Duration::ZERO;
    while start.elapsed() < Duration::from_secs(40) {
        let ping = homes.host_a.ping(&target, 20, interval);
        gap = gap.max(ping.longest_gap(interval));
        if ping.lost() == 0 && homes.a.peer("b")["state"] == "direct" {
            return (start.elapsed(), gap);
        }
    }
    panic!("not direct again: {}\n{}\n{}", homes.a.json("events"), homes.a.log(), homes.b.log());
}

#[test]
fn a_nat_that_reboots_costs_little() {
    let homes = Homes::direct(Nat::OtherPort, Nat::PortRestricted);

    homes.site_a.reboot_nat();
    homes.site_b.reboot_nat();
    let (took, gap) = recovers(&homes);

    assert!(gap < Duration::from_secs(1), "{gap:?} without an answer, direct after {took:?}");
}

#[test]
fn a_router_with_another_address_costs_little() {
    let mut homes = Homes::direct(Nat::PortRestricted, Nat::PortRestricted);

    homes.site_b.change_address(&homes.lab);
    let (took, gap) = recovers(&homes);

    assert!(gap < Duration::from_secs(2), "{gap:?} without an answer, direct after {took:?}");
}

#[test]
fn a_host_that_moves_is_reached_where_it_is() {
    let mut homes = Homes::direct(Nat::PortRestricted, Nat::PortRestricted);
    let moved = format!("10.{}.0.77", homes.site_b.number);

    homes.host_b.change_address(&moved);
    let (took, gap) = recovers(&homes);

    assert!(gap < Duration::from_secs(2), "{gap:?} without an answer, direct after {took:?}");
    let candidates = homes.b.json("node")["interfaces"].to_string();
    assert!(candidates.contains(&moved), "{candidates}");
}

#[test]
fn a_name_server_that_hangs_delays_nothing_but_its_names() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site = lab.site("ra", Nat::PortRestricted);
    let mut host = lab.host(&mut site, "a");
    // Nobody answers there, and nobody says so.
    let silent = lab.public_host("silent");
    silent.run("nft add table ip t; nft add chain ip t c \"{ type filter hook input priority 0 ; }\"; nft add rule ip t c udp dport 53 drop; nft add rule ip t c tcp dport 53 drop");
    host.set_name_server(&lab, &silent.address);
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let start = Instant::now();

    let a = Node::start(&lab, &host, "a", &["udp://nowhere.example:11010", &url], "");
    a.wait("ready", MOMENT);

    assert!(start.elapsed() < Duration::from_secs(4), "ready after {:?}", start.elapsed());
    let servers = a.json("status")["servers"].clone();
    assert_eq!(servers[1]["state"], "attached", "{servers}");
    assert_ne!(servers[0]["state"], "attached", "{servers}");
}
