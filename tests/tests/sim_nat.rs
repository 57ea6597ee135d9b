//! What a node finds out about the NAT before it, and how it crosses one that makes it hard.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::SocketAddr, time::Duration};

use engine::{event::NoticeKind, snapshot::PeerState};
use tests::sim::{
    clock::Span,
    mesh::{Mesh, converged},
    net::{EdgeId, Proto},
    scenario::for_seeds,
    site::{Site, direct_path_possible},
};
use wire::endpoint::{Behaviour, CandidateKind};

/// Every NAT that lets in nothing but answers.
const CLOSED: [Site; 4] = [Site::HomeNat, Site::OtherPort, Site::Leaky, Site::Carrier];

#[test]
fn a_nat_that_gave_the_usual_port_away_is_crossed_from_a_new_one_at_the_second_attempt() {
    for_seeds(
        "sim_nat",
        "a_nat_that_gave_the_usual_port_away_is_crossed_from_a_new_one_at_the_second_attempt",
        0..10,
        |seed| {
            for other in CLOSED {
                let mut mesh = Mesh::new(seed).servers(2).node(Site::Leaky).node(other);
                mesh.run_until(converged, 10.s()).expect("they meet");
                mesh.run_for(5.s());
                poison(&mut mesh, 0, 1);

                mesh.talk(&[(0, 1)], 100.ms(), 8.s());

                let told = format!("seed {seed}, {other:?}: {:#?}", punches(&mesh));
                assert_eq!(outcomes(&mesh, 0), ["relayed", "direct"], "{told}");
                mesh.talk(&[(0, 1)], 1.s(), 300.s());
                for number in [0, 1] {
                    let asked_for = mesh.world.asked_for(mesh.station(number));
                    assert_eq!(asked_for, 1, "{number} has the path's and no other, {told}");
                }
                assert_eq!(mesh.state(0, 1), PeerState::Direct, "{told}");
            }
        },
    );
}

#[test]
fn sockets_of_attempts_that_fail_are_closed() {
    let mut mesh = Mesh::new(1).servers(2).node(Site::Symmetric).node(Site::HomeNat);
    mesh.run_until(converged, 10.s()).expect("they meet");

    mesh.talk(&[(0, 1)], 200.ms(), 120.s());

    assert!(outcomes(&mesh, 0).len() > 3);
    assert_eq!(mesh.state(0, 1), PeerState::Relayed);
    mesh.run_for(300.s());
    assert_eq!([0, 1].map(|number| mesh.world.asked_for(mesh.station(number))), [0, 0]);
}

#[test]
fn two_behind_one_nat_that_cannot_see_each_other_meet_at_its_hairpin_if_it_has_one() {
    for_seeds(
        "sim_nat",
        "two_behind_one_nat_that_cannot_see_each_other_meet_at_its_hairpin_if_it_has_one",
        0..10,
        |seed| {
            for (site, hairpin) in [
                (Site::HomeNat, true),
                (Site::OtherPort, true),
                (Site::FullCone, true),
                (Site::HomeNat, false),
            ] {
                let mut mesh = Mesh::new(seed).servers(2).node(site);
                let edge = edge_of(&mesh, 0);
                mesh.world.net.edge_mut(edge).behaviour.hairpin = hairpin;
                mesh.world.net.isolate(edge);
                mesh = mesh.node_beside(0);
                mesh.run_until(converged, 10.s()).expect("they meet");
                mesh.run_for(5.s());

                mesh.talk(&[(0, 1)], 100.ms(), 4.s());

                let told = format!("seed {seed}, {site:?}: {:#?}", punches(&mesh));
                assert_eq!(mesh.snapshot(0).unwrap().nat.hairpin, Some(hairpin), "{told}");
                let expected = if hairpin { PeerState::Direct } else { PeerState::Relayed };
                assert_eq!(mesh.state(0, 1), expected, "{told}");
                let possible = direct_path_possible(&mesh.world, mesh.station(0), mesh.station(1));
                assert_eq!(possible, hairpin);
                assert!(mesh.ping(0, 1, 1.s()).is_some());
            }
        },
    );
}

#[test]
fn a_node_finds_out_what_its_nat_does() {
    use Behaviour::{AddressDependent, AddressPortDependent, Unknown};
    for (site, filtering, clash) in [
        (Site::HomeNat, AddressPortDependent, false),
        (Site::OtherPort, AddressPortDependent, false),
        (Site::Restricted, AddressDependent, false),
        // Servers with one address cannot tell it from the one before.
        (Site::FullCone, AddressDependent, false),
        (Site::Leaky, AddressPortDependent, true),
        (Site::Symmetric, AddressPortDependent, false),
        (Site::Carrier, AddressPortDependent, false),
        (Site::Public, Unknown, false),
        (Site::UdpBlocked, Unknown, false),
        (Site::V6Only, Unknown, false),
    ] {
        for seed in 0..3 {
            let mut mesh = Mesh::new(seed).servers(2).node(site);
            mesh.run_for(10.s());

            let nat = mesh.snapshot(0).unwrap().nat;

            assert_eq!((nat.filtering(), nat.clash_risk), (filtering, clash), "{site:?}");
        }
    }
}

#[test]
fn how_long_a_nat_remembers_is_found_out_and_paths_are_kept_alive_by_it() {
    for (remembers, lifetime) in [(120, 112), (20, 14)] {
        let mut mesh = Mesh::new(1).servers(2).node(Site::Symmetric).node(Site::Public);
        let edge = edge_of(&mesh, 0);
        let behaviour = &mut mesh.world.net.edge_mut(edge).behaviour;
        behaviour.udp_timeout = Duration::from_secs(remembers);
        behaviour.inbound_refreshes = false;
        mesh.run_until(converged, 10.s()).expect("they meet");
        mesh.run_for(300.s());
        assert_eq!(mesh.snapshot(0).unwrap().nat.lifetime_s, lifetime, "of {remembers} s");
        assert_eq!(mesh.world.asked_for(mesh.station(0)), 0, "the sockets are closed");

        mesh.talk(&[(0, 1)], 100.ms(), 4.s());
        assert_eq!(mesh.state(1, 0), PeerState::Direct);
        let seen = mesh.peer(1, 0).unwrap().hop;
        mesh.run_for(200.s());

        assert_eq!(
            mesh.peer(1, 0).unwrap().hop,
            seen,
            "the mapping is the same after all the calm"
        );
    }
}

/// The edge of a member on the internet.
fn edge_of(mesh: &Mesh, number: usize) -> EdgeId {
    *mesh.world.net.edges_before(mesh.host(number)).last().unwrap()
}

/// A packet of `other` reaches the NAT of `member` before one to it went out.
fn poison(mesh: &mut Mesh, member: usize, other: usize) {
    let [to, from] = [member, other].map(|number| seen_at(mesh, number));
    let (edge, now) = (edge_of(mesh, member), mesh.now());
    assert_eq!(mesh.world.net.edge_mut(edge).inbound(Proto::Udp, from, to, now), None);
}

/// Where the servers see a member's usual port.
fn seen_at(mesh: &Mesh, number: usize) -> SocketAddr {
    let candidates = mesh.snapshot(number).unwrap().candidates;
    let seen = candidates.iter().find(|one| one.kind == CandidateKind::Reflexive);
    seen.expect("a server answered").addr
}

/// What both members say about their attempts.
fn punches(mesh: &Mesh) -> Vec<String> {
    let of = |number: usize| {
        let notices = &mesh.machine(number).unwrap().notices;
        let began = mesh.instant() - mesh.now();
        notices.iter().map(move |(at, notice)| {
            format!("{:?} {number}: {} {:?}", *at - began, notice.message, notice.fields)
        })
    };
    let mut all: Vec<String> = [0, 1].into_iter().flat_map(of).collect();
    all.retain(|line| line.contains("irect path"));
    all
}

/// How the attempts of a member ended.
fn outcomes(mesh: &Mesh, number: usize) -> Vec<String> {
    let notices = &mesh.machine(number).unwrap().notices;
    let ended = notices.iter().filter(|(_, notice)| notice.kind == NoticeKind::PunchEnded);
    let fields = ended.flat_map(|(_, notice)| &notice.fields);
    fields.filter(|(name, _)| *name == "outcome").map(|(_, value)| value.clone()).collect()
}
