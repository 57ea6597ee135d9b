//! What a thousand peers leave behind that came and went: nothing.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use engine::{server::Counts, snapshot::Live};
use tests::sim::{
    clock::Span,
    mesh::{Mesh, converged},
    node::Node,
    site::Site,
};

const ROUNDS: usize = 25;
const PEERS: usize = 40;
/// An LSA that nobody withdrew lives this long.
const LIFETIME_S: u64 = 90 * 60;

#[test]
fn a_thousand_peers_come_and_go_and_nothing_of_them_is_left() {
    session::memo::remember(true);
    let mut mesh = Mesh::new(1).servers(2).node(Site::Public).node(Site::HomeNat);
    mesh.run_until(converged, 10.s()).expect("two meet");
    mesh.run_for(1200.s());
    let before = least(&mut mesh);

    for round in 0..ROUNDS {
        let sites = [Site::Public, Site::HomeNat, Site::Symmetric, Site::HomeDual];
        let new: Vec<usize> = (0..PEERS)
            .map(|n| {
                let number = mesh.add(sites[n % sites.len()], 10.ms());
                mesh.start(number);
                number
            })
            .collect();
        mesh.run_for(3.s());
        let meets = |n: usize| if n.is_multiple_of(2) { (0, new[n]) } else { (new[n], 1) };
        let pairs: Vec<_> = (0..PEERS).map(meets).collect();
        mesh.talk(&pairs, 500.ms(), 2.s());
        let live = mesh.machine(0).unwrap().engine().unwrap().live();
        assert!(live.sessions >= PEERS / 4, "round {round}: {live:?}");
        for (n, &number) in new.iter().enumerate() {
            if n.is_multiple_of(2) { mesh.leave(number) } else { mesh.stop(number) }
        }
        mesh.run_for(2.s());
    }
    mesh.run_for((LIFETIME_S + 300).s());

    let after = least(&mut mesh);
    assert_eq!(after, before, "what there was before, and what is left");
}

/// Counts of two members, with the sizes of their tables, and of two servers.
type Counted = (Vec<(Live, [usize; 5])>, Vec<Counts>);

/// The least of everything over some minutes, in which keys change.
fn least(mesh: &mut Mesh) -> Counted {
    let mut least: Option<Counted> = None;
    for _ in 0..60 {
        mesh.run_for(5.s());
        let members = [0, 1].map(|number| {
            let node = mesh.machine(number).unwrap();
            let fib = node.fib();
            let tables = [
                fib.peers.len(),
                fib.sessions.len(),
                fib.links.len(),
                fib.forwards.len(),
                fib.routes.len(),
            ];
            (node.engine().unwrap().live(), tables)
        });
        let servers = (0..2).map(|server| mesh.server(server).and_then(Node::as_server).unwrap());
        let servers: Vec<Counts> = servers.map(|server| server.counts()).collect();
        least = Some(match least {
            None => (members.to_vec(), servers),
            Some((old, old_servers)) => {
                let members = old.iter().zip(members).map(|(a, b)| {
                    (lesser(a.0, b.0), {
                        let mut tables = a.1;
                        tables.iter_mut().zip(b.1).for_each(|(a, b)| *a = (*a).min(b));
                        tables
                    })
                });
                let servers = old_servers.iter().zip(servers).map(|(a, b)| Counts {
                    networks: a.networks.min(b.networks),
                    attached: a.attached.min(b.attached),
                    sessions: a.sessions.min(b.sessions),
                    lsas: a.lsas.min(b.lsas),
                });
                (members.collect(), servers.collect())
            }
        });
    }
    least.unwrap()
}

fn lesser(a: Live, b: Live) -> Live {
    Live {
        timers: a.timers.min(b.timers),
        peers: a.peers.min(b.peers),
        sessions: a.sessions.min(b.sessions),
        handshakes: a.handshakes.min(b.handshakes),
        held_packets: a.held_packets.min(b.held_packets),
        lsas: a.lsas.min(b.lsas),
        indices: a.indices.min(b.indices),
        punches: a.punches.min(b.punches),
        pulls: a.pulls.min(b.pulls),
    }
}
