//! Rows about many nodes: the simulator with the product's engines, in virtual time.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use super::{Bench, attempt, goal::Row, millis, report::Figure};
use crate::sim::scale;

const SEED: u64 = 1;
const ROWS: [Row; 4] = [Row::SimRest, Row::SimChurn, Row::SimConvergence, Row::SimMemory];

/// A network of [`Effort::nodes`](super::Effort): at rest, under churn, and when nodes die.
pub fn many(bench: &mut Bench) {
    if !bench.wants_any(&ROWS) {
        return;
    }
    let nodes = bench.effort.nodes;
    bench.say(&format!("simulating {nodes} nodes; this takes some minutes"));
    attempt(bench, &ROWS, |bench| {
        let scale = while_saying_so(bench, || scale::measure(nodes, SEED));
        let whole = format!("{nodes} nodes, {} of them measured", scale.whole);
        let seen = format!("{whole}; {:.1} datagrams/s", scale.packets_per_node_at_rest);
        bench.found(Row::SimRest, Figure::new(scale.bytes_per_node_at_rest, seen));
        let seen = "1 % of the nodes go and come back each minute".to_owned();
        bench.found(Row::SimChurn, Figure::new(scale.bytes_per_node_churn, seen));
        let seen = format!("p50 {:.0} ms, under churn", millis(scale.convergence_p50));
        bench.found(Row::SimConvergence, Figure::new(millis(scale.convergence_p99), seen));
        let seen = format!("a joining node knows all after {:.1} s", scale.learnt_in.as_secs_f64());
        let memory = scale.memory_per_node as f64 / 1e6;
        bench.found(Row::SimMemory, Figure::new(memory, seen));
        Ok(())
    });
}

/// Runs what has no progress of its own, and says every ten seconds that it still runs.
fn while_saying_so<T>(bench: &Bench, run: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut told = Instant::now();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(100));
                if told.elapsed() >= Duration::from_secs(10) {
                    told = Instant::now();
                    bench.say("  still simulating");
                }
            }
        });
        let stop = Stop(&done);
        let result = run();
        drop(stop);
        result
    })
}

/// Also when the simulation panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
