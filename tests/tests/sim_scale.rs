//! A thousand nodes, all of them whole.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use tests::sim::{clock::Span, mesh::converged, scale::Run, scenario};

#[test]
#[ignore = "takes some minutes of one core; name it to run it"]
fn a_thousand_nodes_meet_rest_churn_and_part() {
    let mut run = Run::new(1000, 1000, 1);
    let (learnt_in, memory) = run.join();
    told(&format!("all knew all after {learnt_in:?}; {} KiB per node", memory / 1024));
    assert!(learnt_in < 30.s(), "{learnt_in:?}");
    run.mesh.assert_sound();

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
    run.mesh.run_until(converged, 60.s()).unwrap_or_else(|| panic!("{}", run.mesh.describe()));

    scenario::partition_with_server(0..300, 1)(&mut run.mesh);
    run.mesh.run_for(30.s());
    run.mesh.run_until(converged, 60.s()).unwrap_or_else(|| panic!("{}", run.mesh.describe()));
    scenario::heal()(&mut run.mesh);
    run.mesh.run_until(converged, 60.s()).unwrap_or_else(|| panic!("{}", run.mesh.describe()));

    let times = run.deaths();
    let p99 = times[times.len() * 99 / 100];
    told(&format!("{} talkers found the other way, p99 {p99:?}", times.len()));
    assert!(p99 <= 2.s(), "{times:?}");
}

#[allow(clippy::print_stderr)]
fn told(text: &str) {
    eprintln!("{text}");
}
