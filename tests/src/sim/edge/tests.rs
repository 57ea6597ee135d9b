//! The table of NAT kinds, and what RFC 4787 says of each.

use super::*;

const T0: SimTime = Duration::ZERO;

/// What a mapping test (RFC 5780 §4.3) and a filtering test (§4.4) see.
#[derive(Debug, PartialEq)]
struct Seen {
    mapping: Dependence,
    filtering: Dependence,
    preserves: bool,
}

#[test]
fn the_kinds_behave_as_the_table_says() {
    use Dependence::{
        AddressDependent as Address, AddressPortDependent as AddressPort,
        EndpointIndependent as Independent,
    };
    let table = [
        (Behaviour::port_restricted(), Independent, AddressPort, true),
        (Behaviour::full_cone(), Independent, Independent, true),
        (Behaviour::restricted(), Independent, Address, true),
        (Behaviour::other_port(), Independent, AddressPort, false),
        (Behaviour::symmetric_random(), AddressPort, AddressPort, false),
        (Behaviour::symmetric_sequential(), AddressPort, AddressPort, false),
        (Behaviour::port_block(), AddressPort, AddressPort, false),
        (Behaviour::address_dependent(), Address, AddressPort, false),
        (Behaviour::leaky(), Independent, AddressPort, true),
    ];
    for (behaviour, mapping, filtering, preserves) in table {
        assert_eq!(observe(&behaviour), Seen { mapping, filtering, preserves }, "{behaviour:?}");
    }
}

#[test]
fn a_sequential_nat_counts_and_a_block_stays_within() {
    let mut edge = edge(Behaviour::symmetric_sequential());
    let ports: Vec<u16> = (1..5).map(|n| out(&mut edge, 5000, "5.0.0.9", n).unwrap()).collect();
    assert!(ports.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ports:?}");

    let mut edge = self::edge(Behaviour::port_block());
    assert!(
        (1..500).all(|n| (40_000..=40_255).contains(&out(&mut edge, 5000, "5.0.0.9", n).unwrap()))
    );
}

#[test]
fn two_hosts_with_one_port_get_two() {
    let mut edge = edge(Behaviour::port_restricted());
    let first = edge.outbound(Proto::Udp, at("192.168.1.2", 5000), at("5.0.0.9", 1), T0).unwrap();
    let second = edge.outbound(Proto::Udp, at("192.168.1.3", 5000), at("5.0.0.9", 1), T0).unwrap();

    assert_eq!(first.port(), 5000);
    assert_ne!(second.port(), 5000);
    assert_eq!(
        edge.inbound(Proto::Udp, at("5.0.0.9", 1), second, T0),
        Some(at("192.168.1.3", 5000))
    );
}

#[test]
fn a_mapping_ends_after_its_time_and_traffic_renews_it() {
    let mut edge = edge(Behaviour::port_restricted());
    let outside = edge.outbound(Proto::Udp, at("192.168.1.2", 5000), at("5.0.0.9", 1), T0).unwrap();

    assert!(edge.inbound(Proto::Udp, at("5.0.0.9", 1), outside, 119.s()).is_some());
    assert!(edge.inbound(Proto::Udp, at("5.0.0.9", 1), outside, 238.s()).is_some());
    assert!(edge.inbound(Proto::Udp, at("5.0.0.9", 1), outside, 358.s()).is_none());
    assert_eq!(edge.len(358.s()), 0);
}

#[test]
fn a_packet_too_early_poisons_a_leaky_nat_for_thirty_seconds() {
    let mut edge = edge(Behaviour::leaky());
    assert_eq!(out(&mut edge, 5000, "5.0.0.1", 1), Some(5000));
    let peer = at("5.0.0.9", 7);

    assert_eq!(edge.inbound(Proto::Udp, peer, at("20.0.0.1", 5000), 1.s()), None);

    let poisoned = edge.outbound(Proto::Udp, at("192.168.1.2", 5000), peer, 2.s()).unwrap();
    assert_ne!(poisoned.port(), 5000);
    let elsewhere =
        edge.outbound(Proto::Udp, at("192.168.1.2", 5000), at("5.0.0.8", 7), 2.s()).unwrap();
    assert_eq!(elsewhere.port(), 5000, "others are not concerned");
}

#[test]
fn an_own_packet_first_keeps_a_leaky_nat_sane() {
    let mut edge = edge(Behaviour::leaky());
    let peer = at("5.0.0.9", 7);
    assert_eq!(out(&mut edge, 5000, "5.0.0.9", 7), Some(5000));

    assert!(edge.inbound(Proto::Udp, peer, at("20.0.0.1", 5000), 1.s()).is_some());
    assert_eq!(out(&mut edge, 5000, "5.0.0.9", 7), Some(5000));
}

#[test]
fn hairpin_needs_a_nat_that_does_it() {
    for (behaviour, expected) in
        [(Behaviour::full_cone().with_hairpin(), true), (Behaviour::full_cone(), false)]
    {
        let mut edge = edge(behaviour);
        let a = edge.outbound(Proto::Udp, at("192.168.1.2", 5000), at("5.0.0.9", 1), T0).unwrap();

        let turned = edge.hairpin(Proto::Udp, at("192.168.1.3", 6000), a, T0);

        let there = (at("20.0.0.1", 6000), at("192.168.1.2", 5000));
        assert_eq!(turned, expected.then_some(there));
    }
}

#[test]
fn v6_is_filtered_and_not_translated() {
    let mut edge = edge(Behaviour::port_restricted());
    let (inside, outside) = (at("2a00::1", 5000), at("2a00:1::9", 7));
    assert_eq!(edge.inbound(Proto::Udp, outside, inside, T0), None);

    assert_eq!(edge.outbound(Proto::Udp, inside, outside, T0), Some(inside));

    assert_eq!(edge.inbound(Proto::Udp, outside, inside, 1.s()), Some(inside));
    assert_eq!(edge.inbound(Proto::Udp, at("2a00:1::9", 8), inside, 1.s()), None);
    assert_eq!(edge.inbound(Proto::Udp, outside, inside, 200.s()), None, "after its time");
}

#[test]
fn where_udp_is_blocked_tcp_to_443_still_gets_out() {
    let mut edge = edge(Behaviour::udp_blocked());
    let inside = at("192.168.1.2", 5000);
    assert_eq!(edge.outbound(Proto::Udp, inside, at("5.0.0.9", 443), T0), None);
    assert_eq!(edge.outbound(Proto::Tcp, inside, at("5.0.0.9", 11_010), T0), None);
    assert!(edge.outbound(Proto::Tcp, inside, at("5.0.0.9", 443), T0).is_some());
}

#[test]
fn a_reboot_forgets() {
    let mut edge = edge(Behaviour::full_cone());
    let outside = edge.outbound(Proto::Udp, at("192.168.1.2", 5000), at("5.0.0.9", 1), T0).unwrap();
    edge.reboot();
    assert_eq!(edge.inbound(Proto::Udp, at("5.0.0.9", 1), outside, T0), None);
}

fn observe(behaviour: &Behaviour) -> Seen {
    let mut edge = edge(behaviour.clone());
    let base = out(&mut edge, 5000, "5.0.0.1", 1).unwrap();
    let other_port = out(&mut edge, 5000, "5.0.0.1", 2).unwrap();
    let other_ip = out(&mut edge, 5000, "5.0.0.2", 1).unwrap();
    let mapping = match (base == other_port, base == other_ip) {
        (true, true) => Dependence::EndpointIndependent,
        (true, false) => Dependence::AddressDependent,
        (false, _) => Dependence::AddressPortDependent,
    };

    let mut edge = self::edge(behaviour.clone());
    let outside = at("20.0.0.1", out(&mut edge, 5000, "5.0.0.1", 1).unwrap());
    let mut passes = |ip, port| edge.inbound(Proto::Udp, at(ip, port), outside, T0).is_some();
    assert!(passes("5.0.0.1", 1), "answers come back");
    let filtering = match (passes("5.0.0.1", 2), passes("5.0.0.2", 1)) {
        (true, true) => Dependence::EndpointIndependent,
        (true, false) => Dependence::AddressDependent,
        (false, _) => Dependence::AddressPortDependent,
    };
    Seen { mapping, filtering, preserves: base == 5000 }
}

fn edge(behaviour: Behaviour) -> Edge {
    Edge::new(behaviour, "20.0.0.1".parse().unwrap(), 1)
}

fn out(edge: &mut Edge, port: u16, to: &str, to_port: u16) -> Option<u16> {
    let outside = edge.outbound(Proto::Udp, at("192.168.1.2", port), at(to, to_port), T0)?;
    Some(outside.port())
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}
