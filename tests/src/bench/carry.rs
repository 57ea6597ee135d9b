//! Rows about carrying packets between two nodes whose path is up.

use std::time::Duration;

use super::{
    Bench, attempt,
    goal::Row,
    load::{self, Load, Transfer},
    median, percentile,
    report::Figure,
    stage::{Stage, Way},
};
use crate::lab::Node;

/// Everything runs there where one CPU is measured: interrupts of other devices tend to be on the first.
const ONE_CPU: &str = "1";
/// What a node gives back after its start, it has given back by then.
const REST: Duration = Duration::from_secs(3);
/// Pings of one turn: 1.5 s.
const PINGS: u32 = 300;

const DIRECT: [Row; 8] = [
    Row::RssIdle,
    Row::TcpOneCpu,
    Row::CpuOneCpu,
    Row::TcpTwoCpus,
    Row::Flood,
    Row::RttIdle,
    Row::RttLoaded,
    Row::RssPeak,
];

/// Over UDP, next to each other.
pub fn direct(bench: &mut Bench) {
    if !bench.wants_any(&DIRECT) {
        return;
    }
    bench.say("direct path over UDP: two nodes with a veth between");
    attempt(bench, &DIRECT, |bench| {
        let stage = Stage::new(Way::Udp)?;
        let nodes = [&stage.a, &stage.b];
        if bench.wants(Row::RssIdle) {
            std::thread::sleep(REST);
            let idle = nodes.map(|node| node.rss() as f64 / 1e6);
            let seen = format!("the larger of {:.1} and {:.1} MB, one peer", idle[0], idle[1]);
            bench.found(Row::RssIdle, Figure::new(idle[0].max(idle[1]), seen));
        }
        for node in nodes {
            load::forget_peak(node.pid()).map_err(|error| format!("clear_refs: {error}"))?;
        }
        if bench.wants_any(&[Row::TcpOneCpu, Row::CpuOneCpu]) {
            one_cpu(bench, &stage, &nodes);
        }
        if bench.wants(Row::TcpTwoCpus) {
            let pair = transfers(bench, Row::TcpTwoCpus, &stage, &nodes, None);
            bench.found(Row::TcpTwoCpus, pair.throughput());
        }
        if bench.wants(Row::Flood) {
            flood(bench, &stage, &nodes);
        }
        if bench.wants(Row::RttIdle) {
            rtt_idle(bench, &stage);
        }
        if bench.wants_any(&[Row::RttLoaded, Row::RssPeak]) {
            let times = beside_a_stream(&stage.mesh(&nodes, None), bench.effort.seconds);
            let seen = format!("p99 {:.2} ms", percentile(times.iter().copied(), 99));
            bench.found(Row::RttLoaded, Figure::new(median(times), seen));
        }
        if bench.wants(Row::RssPeak) {
            let peak = nodes.map(|node| load::peak_megabytes(node.pid()));
            let seen = format!(
                "the larger of {:.1} and {:.1} MB, after all of the above",
                peak[0], peak[1]
            );
            bench.found(Row::RssPeak, Figure::new(peak[0].max(peak[1]), seen));
        }
        Ok(())
    });
}

/// Over one TCP connection, where UDP is lost.
pub fn stream(bench: &mut Bench) {
    let rows = [Row::TcpCarrier];
    if !bench.wants_any(&rows) {
        return;
    }
    bench.say("direct path over TCP: UDP between the two is dropped");
    attempt(bench, &rows, |bench| {
        let stage = Stage::new(Way::Tcp)?;
        let nodes = [&stage.a, &stage.b];
        let pair = transfers(bench, Row::TcpCarrier, &stage, &nodes, None);
        bench.found(Row::TcpCarrier, pair.throughput());
        Ok(())
    });
}

/// Over a public server.
pub fn relay(bench: &mut Bench) {
    let rows = [Row::Relay, Row::RelayRtt];
    if !bench.wants_any(&rows) {
        return;
    }
    bench.say("relayed: a public server between the two, raw veth beside it");
    attempt(bench, &rows, |bench| {
        let stage = Stage::new(Way::Relay)?;
        let nodes = stage.nodes();
        if bench.wants(Row::RelayRtt) {
            let times = stage.mesh(&[], None).ping(2 * PINGS);
            let seen =
                format!("p50 {:.2} ms of {} answers", median(times.iter().copied()), times.len());
            bench.found(Row::RelayRtt, Figure::new(percentile(times, 99), seen));
        }
        if bench.wants(Row::Relay) {
            let pair = transfers(bench, Row::Relay, &stage, &nodes, None);
            bench.found(Row::Relay, pair.throughput());
        }
        Ok(())
    });
}

fn one_cpu(bench: &mut Bench, stage: &Stage, nodes: &[&Node]) {
    stage.pin(ONE_CPU);
    let pair = transfers(bench, Row::TcpOneCpu, stage, nodes, Some(ONE_CPU));
    stage.pin(&all_cpus());
    bench.found(Row::TcpOneCpu, pair.throughput());
    bench.found(Row::CpuOneCpu, pair.cpu());
}

/// Raw and ours in turns.
struct Pairs(Vec<(Transfer, Transfer)>);

fn transfers(bench: &Bench, row: Row, stage: &Stage, nodes: &[&Node], cpus: Option<&str>) -> Pairs {
    let turns = (0..bench.effort.rounds).map(|round| {
        let raw = stage.raw(cpus).tcp(bench.effort.seconds);
        let ours = stage.mesh(nodes, cpus).tcp(bench.effort.seconds);
        bench.say(&format!(
            "  {} {}/{}: raw {:.2} Gbit/s {:.2} s/GB, ours {:.2} Gbit/s {:.2} s/GB, {} retransmits",
            row.name(),
            round + 1,
            bench.effort.rounds,
            raw.gbits,
            raw.cpu_per_gb,
            ours.gbits,
            ours.cpu_per_gb,
            ours.retransmits,
        ));
        (raw, ours)
    });
    Pairs(turns.collect())
}

impl Pairs {
    fn throughput(&self) -> Figure {
        self.figure("Gbit/s", |transfer| transfer.gbits)
    }

    fn cpu(&self) -> Figure {
        self.figure("s/GB", |transfer| transfer.cpu_per_gb)
    }

    fn figure(&self, unit: &str, of: impl Fn(&Transfer) -> f64) -> Figure {
        let ratio = median(self.0.iter().map(|(raw, ours)| of(ours) / of(raw)));
        let raw = median(self.0.iter().map(|(raw, _)| of(raw)));
        let ours = median(self.0.iter().map(|(_, ours)| of(ours)));
        Figure::new(ratio, format!("ours {ours:.2}, raw {raw:.2} {unit}"))
    }
}

fn flood(bench: &mut Bench, stage: &Stage, nodes: &[&Node]) {
    let (mut ratios, mut seen) = (Vec::new(), Vec::new());
    for round in 0..bench.effort.rounds {
        let raw = stage.raw(None).flood(bench.effort.seconds);
        let ours = stage.mesh(nodes, None).flood(bench.effort.seconds);
        let (of, name) = (bench.effort.rounds, Row::Flood.name());
        bench.say(&format!("  {name} {}/{of}: raw {raw:.0} kpps, ours {ours:.0} kpps", round + 1));
        ratios.push(ours / raw);
        seen.push((ours, raw));
    }
    let ours = median(seen.iter().map(|(ours, _)| *ours));
    let raw = median(seen.iter().map(|(_, raw)| *raw));
    bench.found(
        Row::Flood,
        Figure::new(median(ratios), format!("ours {ours:.0}, raw {raw:.0} kpps")),
    );
}

fn rtt_idle(bench: &mut Bench, stage: &Stage) {
    let (mut ratios, mut tails, mut middles) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..bench.effort.rounds {
        let raw = median(stage.raw(None).ping(PINGS));
        let times = stage.mesh(&[], None).ping(PINGS);
        tails.push(percentile(times.iter().copied(), 99));
        let ours = median(times);
        ratios.push(ours / raw);
        middles.push((ours, raw));
    }
    let seen = format!(
        "ours {:.0} us (p99 {:.0}), raw {:.0} us",
        median(middles.iter().map(|(ours, _)| ours * 1e3)),
        median(tails.iter().map(|tail| tail * 1e3)),
        median(middles.iter().map(|(_, raw)| raw * 1e3)),
    );
    bench.found(Row::RttIdle, Figure::new(median(ratios), seen));
}

/// Round trips while one TCP stream runs in the same direction.
fn beside_a_stream(load: &Load<'_>, seconds: u32) -> Vec<f64> {
    std::thread::scope(|scope| {
        scope.spawn(|| load.tcp(seconds + 1));
        // The stream has found its rate by then.
        std::thread::sleep(Duration::from_millis(1000));
        load.ping(seconds.saturating_sub(1).max(1) * 200)
    })
}

fn all_cpus() -> String {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    format!("0-{}", cpus - 1)
}
