//! Pairs of NATs: which go direct, and which stay usable over the relay.

#![allow(clippy::unwrap_used)]

use std::{
    net::UdpSocket,
    time::{Duration, Instant},
};

use tests::lab::{Host, Lab, Nat, Node, Site, inside, node};

/// Brings two nodes up behind two NATs and sends a few packets; whether they ended up direct.
fn meet(left: Nat, right: Nat) -> bool {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let (mut site_a, mut site_b) = (lab.site("ra", left), lab.site("rb", right));
    let (host_a, host_b) = (lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b"));
    become_direct(lab, relay, [host_a, host_b], &format!("{left:?} x {right:?}"))
}

/// A node on each host; they know each other.
fn join(lab: &Lab, host_a: &Host, host_b: &Host, url: &str) -> (Node, Node) {
    let a = Node::start(lab, host_a, "a", &[url], "");
    let b = Node::start(lab, host_b, "b", &[url], "");
    for node in [&a, &b] {
        node.wait("ready", Duration::from_secs(15));
        node.wait("peers=1", Duration::from_secs(15));
    }
    (a, b)
}

fn become_direct(mut lab: Lab, relay: Host, [host_a, host_b]: [Host; 2], what: &str) -> bool {
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let (a, b) = join(&lab, &host_a, &host_b, &url);
    let target = b.ipv4();
    for _ in 0..6 {
        let ping = host_a.ping(&target, 10, Duration::from_millis(50));
        assert!(ping.lost() <= 2, "{what}: {} of 10 lost\n{}", ping.lost(), a.log());
        if a.peer("b")["state"] == "direct" {
            return true;
        }
    }
    false
}

/// Its INPUT chain accepts, so that a packet of the peer's that comes first takes the mapping away. Here one does.
#[test]
fn nat_leaky_x_port_restricted_goes_direct_at_the_second_attempt_when_the_first_was_poisoned() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let (mut site_a, mut site_b) =
        (lab.site("ra", Nat::Leaky), lab.site("rb", Nat::PortRestricted));
    let (host_a, host_b) = (lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b"));
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let (a, b) = join(&lab, &host_a, &host_b, &url);
    let target = b.ipv4();
    poison(&site_a, &site_b);

    let mut outcomes = Vec::new();
    while !outcomes.contains(&"direct".into()) {
        assert!(outcomes.len() < 2, "{outcomes:?}\n{}", a.log());
        let ping = host_a.ping(&target, 10, Duration::from_millis(50));
        assert!(ping.lost() <= 2, "{} of 10 lost\n{}", ping.lost(), a.log());
        let ended = a.events("punch_ended");
        outcomes = ended.iter().map(|event| event["fields"]["outcome"].clone()).collect();
    }

    assert_eq!(outcomes, ["relayed", "direct"]);
    assert_eq!(a.peer("b")["state"], "direct");
    let gbps = host_a.iperf(&host_b, &target, 2, "");
    assert!(gbps > 0.1, "runs of datagrams go over the new socket too: {gbps} Gbit/s");
    assert_eq!(a.peer("b")["state"], "direct");
}

/// A packet as from the second site's usual port reaches the first site's, before any of its own has gone there.
fn poison(leaky: &Site, other: &Site) {
    let from = (other.router.address.clone(), 11_010);
    let to = (leaky.router.address.clone(), 11_010);
    // It must leave no trace where it comes from.
    other.router.run("nft 'add table ip raw; add chain ip raw output { type filter hook output priority -300; }; add rule ip raw output udp sport 11010 notrack'");
    inside(&other.router, || {
        let socket = UdpSocket::bind(from).unwrap();
        socket.send_to(b"early", to).unwrap();
    });
    let tracked = leaky.router.run("conntrack -L -p udp");
    let early = format!("src={} dst={} sport=11010", other.router.address, leaky.router.address);
    assert!(tracked.contains(&early), "{tracked}");
}

/// Two in one hotel: their access points part them, its router may join them.
fn meet_beside(nat: Nat) -> bool {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site = lab.site("ra", nat);
    let hosts = [lab.host(&mut site, "a"), lab.host(&mut site, "b")];
    site.isolate_hosts();
    let seen = hosts[0].ping(&hosts[1].address, 2, Duration::from_millis(50));
    assert_eq!(seen.lost(), 2, "they cannot see each other");
    become_direct(lab, relay, hosts, &format!("{nat:?} with both behind it"))
}

#[test]
fn nat_hairpin_joins_two_behind_it_that_cannot_see_each_other() {
    assert!(meet_beside(Nat::Hairpin));
}

#[test]
fn nat_without_hairpin_leaves_two_behind_it_that_cannot_see_each_other_on_the_relay() {
    assert!(!meet_beside(Nat::PortRestricted));
}

/// The server has two addresses, so that it can tell all three filters.
#[test]
fn a_node_finds_out_what_its_nat_lets_in_and_what_it_turns_back() {
    for (nat, filtering, hairpin) in [
        (Nat::PortRestricted, "apdf", false),
        (Nat::Restricted, "adf", false),
        (Nat::FullCone, "eif", false),
        (Nat::Hairpin, "eif", true),
        (Nat::Symmetric, "apdf", false),
    ] {
        let mut lab = Lab::new();
        let relay = lab.public_host("relay");
        let (net, _) = relay.address.rsplit_once('.').unwrap();
        relay.run(&format!("ip addr add {net}.3/24 dev wan0"));
        let mut site = lab.site("ra", nat);
        let host = lab.host(&mut site, "a");
        let (_server, url) = node::server(&mut lab, &relay, "server", "");
        let node = Node::start(&lab, &host, "a", &[&url], "");
        node.wait("ready", Duration::from_secs(15));

        let began = Instant::now();
        let mut found = node.json("nat")["v4"].clone();
        while (&found["filtering"], &found["hairpin"]) != (&filtering.into(), &hairpin.into()) {
            assert!(began.elapsed() < Duration::from_secs(15), "{nat:?}: {found}\n{}", node.log());
            std::thread::sleep(Duration::from_millis(200));
            found = node.json("nat")["v4"].clone();
        }
    }
}

/// The provider translates once more.
#[test]
fn nat_behind_a_carrier_nat_x_port_restricted_goes_direct() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site_a = lab.site_behind("ra", Nat::PortRestricted, Nat::OtherPort);
    let mut site_b = lab.site("rb", Nat::PortRestricted);
    let hosts = [lab.host(&mut site_a, "a"), lab.host(&mut site_b, "b")];
    assert!(become_direct(lab, relay, hosts, "carrier NAT x port restricted"));
}

#[test]
fn nat_symmetric_x_no_nat_goes_direct() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site = lab.site("ra", Nat::Symmetric);
    let hosts = [lab.host(&mut site, "a"), lab.public_host("b")];
    assert!(become_direct(lab, relay, hosts, "symmetric x public"));
}

macro_rules! pairs {
    ($($name:ident: $left:ident, $right:ident => $direct:literal;)+) => {
        $(
            #[test]
            fn $name() {
                assert_eq!(meet(Nat::$left, Nat::$right), $direct);
            }
        )+
    };
}

pairs! {
    nat_port_restricted_x_port_restricted_goes_direct: PortRestricted, PortRestricted => true;
    nat_full_cone_x_port_restricted_goes_direct: FullCone, PortRestricted => true;
    nat_other_port_x_port_restricted_goes_direct: OtherPort, PortRestricted => true;
    nat_full_cone_x_full_cone_goes_direct: FullCone, FullCone => true;
    nat_restricted_x_port_restricted_goes_direct: Restricted, PortRestricted => true;
    nat_full_cone_x_symmetric_goes_direct: FullCone, Symmetric => true;
    nat_restricted_x_symmetric_goes_direct: Restricted, Symmetric => true;
    nat_port_restricted_x_symmetric_stays_usable_over_the_relay: PortRestricted, Symmetric => false;
    nat_port_block_x_address_dependent_stays_usable_over_the_relay: PortBlock, AddressDependent => false;
    nat_symmetric_x_symmetric_stays_usable_over_the_relay: Symmetric, Symmetric => false;
    nat_sequential_x_symmetric_stays_usable_over_the_relay: Sequential, Symmetric => false;
    nat_udp_blocked_x_port_restricted_stays_usable_over_the_relay: UdpBlocked, PortRestricted => false;
}
