//! What a node finds out about the NAT before it, and how it crosses one that makes it hard.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::SocketAddr;

use engine::{event::NoticeKind, snapshot::PeerState};
use tests::sim::{
    clock::Span,
    mesh::{Mesh, converged},
    net::Proto,
    scenario::for_seeds,
    site::Site,
};
use wire::endpoint::CandidateKind;

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

                let outcomes = outcomes(&mesh, 0);
                assert_eq!(outcomes, ["relayed", "direct"], "seed {seed}, {other:?}");
                for number in [0, 1] {
                    let asked_for = mesh.world.asked_for(mesh.station(number));
                    assert_eq!(asked_for, 1, "seed {seed}, {other:?}: {number} has the path's");
                }
                assert!(mesh.ping(0, 1, 1.s()).is_some());
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
    mesh.run_for(10.s());
    assert_eq!([0, 1].map(|number| mesh.world.asked_for(mesh.station(number))), [0, 0]);
}

/// A packet of `other` reaches the NAT of `member` before one to it went out.
fn poison(mesh: &mut Mesh, member: usize, other: usize) {
    let [to, from] = [member, other].map(|number| seen_at(mesh, number));
    let edge = *mesh.world.net.edges_before(mesh.host(member)).last().unwrap();
    let now = mesh.now();
    assert_eq!(mesh.world.net.edge_mut(edge).inbound(Proto::Udp, from, to, now), None);
}

/// Where the servers see a member's usual port.
fn seen_at(mesh: &Mesh, number: usize) -> SocketAddr {
    let candidates = mesh.snapshot(number).unwrap().candidates;
    let seen = candidates.iter().find(|one| one.kind == CandidateKind::Reflexive);
    seen.expect("a server answered").addr
}

/// How the attempts of a member ended.
fn outcomes(mesh: &Mesh, number: usize) -> Vec<String> {
    let notices = &mesh.machine(number).unwrap().notices;
    let ended = notices.iter().filter(|(_, notice)| notice.kind == NoticeKind::PunchEnded);
    let fields = ended.flat_map(|(_, notice)| &notice.fields);
    fields.filter(|(name, _)| *name == "outcome").map(|(_, value)| value.clone()).collect()
}
