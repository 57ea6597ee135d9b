//! Random scenarios of fifty nodes, and what must be true after each. `SIM_STORMS` says how many.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use engine::snapshot::PeerState;
use tests::sim::{
    clock::Span,
    mesh::{Mesh, converged},
    scenario::for_seeds,
    site::direct_path_possible,
    storm::{Storm, brew},
};

/// The product's: a simulated network lives on small allocations, and its time goes there.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Storms of an ordinary run.
const STORMS: u64 = 200;
const NODES: usize = 50;
/// A mesh is well again this long after the last thing that happened to it.
const WELL_WITHIN: Duration = Duration::from_secs(45);
/// Pairs with traffic that may have a direct path have one within this.
const DIRECT_WITHIN: Duration = Duration::from_secs(20);
/// At rest: both directions, IP headers included, of a mesh in which some have talked.
const AT_REST: u64 = 1_000;
/// The one in use, the one before, and three answers to INITs of which the peer may still take one.
const SESSIONS_PER_PEER: usize = 5;
/// Beside them those of three INITs that may still be answered.
const INDICES_PER_PEER: usize = SESSIONS_PER_PEER + 3;

#[test]
fn storms_pass_and_the_mesh_is_well() {
    let told = std::env::var("SIM_STORMS").ok().and_then(|count| count.parse().ok());
    for_seeds(
        "sim_storms",
        "storms_pass_and_the_mesh_is_well",
        0..told.unwrap_or(STORMS),
        |seed| {
            weather(seed, true);
        },
    );
}

#[test]
fn a_storm_is_the_same_twice() {
    for_seeds("sim_storms", "a_storm_is_the_same_twice", 1000..1002, |seed| {
        assert_eq!(weather(seed, false), weather(seed, false), "seed {seed}");
    });
}

/// Runs the storm of a seed and looks at what it left; its fingerprint.
fn weather(seed: u64, looking: bool) -> u64 {
    let Storm { mut mesh, over, story } = brew(seed, NODES);
    let pairs: Vec<(usize, usize)> =
        (0..12).map(|n| (n * 4 % NODES, (n * 7 + 1) % NODES)).filter(|(a, b)| a != b).collect();
    // There is traffic while it storms.
    while mesh.now() < over {
        for &(from, to) in &pairs {
            mesh.ask(from, to, true);
        }
        mesh.run_for(500.ms());
        mesh.traffic.settle(&mut mesh.world);
        bounds_hold(&mesh);
    }
    if !looking {
        return mesh.world.fingerprint();
    }
    let told = || format!("seed {seed}\n{}\n", story.join("\n"));
    if mesh.run_until(converged, WELL_WITHIN).is_none() {
        eprint(&told());
        mesh.assert_sound();
        panic!("seed {seed}: LSDBs differ\n{}", mesh.describe());
    }
    direct_where_possible(&mut mesh, &pairs, &told);
    all_reach_each_other(&mut mesh, &pairs, &told);
    at_rest(&mut mesh, &told);
    mesh.world.fingerprint()
}

fn direct_where_possible(mesh: &mut Mesh, pairs: &[(usize, usize)], told: &dyn Fn() -> String) {
    let up: Vec<_> =
        pairs.iter().copied().filter(|&(a, b)| mesh.is_up(a) && mesh.is_up(b)).collect();
    let missing = |mesh: &Mesh| {
        let due = up.iter().filter(|&&(a, b)| {
            let (a, b) = (mesh.station(a), mesh.station(b));
            direct_path_possible(&mesh.world, a, b)
        });
        due.filter(|&&(a, b)| mesh.state(a, b) != PeerState::Direct).copied().collect::<Vec<_>>()
    };
    let began = mesh.now();
    while !missing(mesh).is_empty() && mesh.now() < began + DIRECT_WITHIN {
        mesh.talk(&up, 200.ms(), 1.s());
    }
    let missing = missing(mesh);
    let sites: Vec<_> = missing
        .iter()
        .map(|&(a, b)| {
            let profile = mesh.snapshot(a).map(|snapshot| (snapshot.nat, snapshot.candidates));
            let other = mesh.snapshot(b).map(|snapshot| (snapshot.nat, snapshot.candidates));
            (a, b, mesh.post(a).site, mesh.post(b).site, mesh.peer(a, b), profile, other)
        })
        .collect();
    assert!(missing.is_empty(), "{}not direct: {sites:#?}", told());
}

fn all_reach_each_other(mesh: &mut Mesh, pairs: &[(usize, usize)], told: &dyn Fn() -> String) {
    for &(from, to) in pairs {
        if mesh.is_up(from) && mesh.is_up(to) {
            let rtt = mesh.ping(from, to, 2.s());
            assert!(rtt.is_some(), "{}{from} does not reach {to}", told());
        }
    }
}

/// Nothing waits, nothing is left over, and little is said.
fn at_rest(mesh: &mut Mesh, told: &dyn Fn() -> String) {
    mesh.run_for(20.s());
    let span = 10.s();
    let before: Vec<u64> = (0..mesh.len()).map(|number| mesh.bytes(number)).collect();
    mesh.run_for(span);
    let up = mesh.up();
    let said: u64 = up.iter().map(|&number| mesh.bytes(number) - before[number]).sum();
    let rate = said / span.as_secs() / up.len() as u64;
    assert!(rate < AT_REST, "{}{rate} B/s per node at rest", told());
    for &number in &up {
        let live = mesh.snapshot(number).unwrap().live;
        assert_eq!(live.pulls, 0, "{}{number}: {live:?}", told());
        // Who asks for a dead one holds a packet while it tries, for 90 s.
        if live.handshakes == 0 {
            assert_eq!(live.held_packets, 0, "{}{number}: {live:?}", told());
            assert_eq!(live.indices, live.sessions, "{}{number}: {live:?}", told());
        }
        assert!(live.sessions <= SESSIONS_PER_PEER * live.peers, "{}{number}: {live:?}", told());
    }
}

/// At any time: what waits is bounded.
fn bounds_hold(mesh: &Mesh) {
    for number in mesh.up() {
        let live = mesh.machine(number).unwrap().engine().unwrap().live();
        assert!(live.held_packets <= 8 * NODES, "{number}: {live:?}");
        assert!(live.pulls <= 8192 && live.handshakes <= live.peers, "{number}: {live:?}");
        assert!(live.indices <= INDICES_PER_PEER * live.peers, "{number}: {live:?}");
        assert!(live.punches <= NODES && live.peers <= NODES + 2, "{number}: {live:?}");
    }
}

#[allow(clippy::print_stderr)]
fn eprint(text: &str) {
    eprintln!("{text}");
}
