//! A thousand nodes, as many of them whole as this takes about two minutes of one core.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use tests::sim::{
    clock::Span,
    mesh::{Mesh, converged},
    scale::Run,
    scenario,
};

/// The product's: a simulated network lives on small allocations, and what they take is what nodes take.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const NODES: usize = 1000;
const WHOLE: usize = 100;

#[test]
fn a_thousand_nodes_meet_rest_churn_and_part() {
    let mut run = Run::new(NODES, WHOLE, 1);
    let learnt_in = run.join();
    told(&format!("the whole ones knew all after {learnt_in:?}"));
    assert!(learnt_in < 30.s(), "{learnt_in:?}");
    settle(&mut run.mesh);

    run.mesh.run_for(20.s());
    let (rest, _) = run.rate(30.s());
    told(&format!("{rest:.0} B/s per node at rest"));
    assert!(rest <= 1_000.0, "{rest} B/s");

    run.churn(70.s());
    run.mesh.run_for(25.s());
    let (churn, _) = run.rate(30.s());
    told(&format!("{churn:.0} B/s per node at 1 %/min"));
    assert!(churn <= 6_000.0, "{churn} B/s");
    run.mesh.run_for(15.s() + 25.s());
    settle(&mut run.mesh);

    scenario::partition_with_server(50..350, 1)(&mut run.mesh);
    run.mesh.run_for(30.s());
    settle(&mut run.mesh);
    scenario::heal()(&mut run.mesh);
    settle(&mut run.mesh);

    let times = run.deaths();
    let p99 = times[times.len() * 99 / 100];
    told(&format!("{} talkers found the other way, p99 {p99:?}", times.len()));
    assert!(p99 <= 2.s(), "{times:?}");

    let memory = run.memory();
    told(&format!("{} kB per node, {} B per member", memory / 1000, memory / NODES as u64));
    assert!(memory > 0 && memory <= 2_200 * NODES as u64, "{memory}");
}

/// Runs until all is as it should be; to look at all of it takes longer than a second of the mesh's time.
fn settle(mesh: &mut Mesh) {
    mesh.run_until_every(2.s(), converged, 60.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));
}

#[allow(clippy::print_stderr)]
fn told(text: &str) {
    eprintln!("{text}");
}
