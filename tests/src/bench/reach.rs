//! Rows about reaching somebody: a start, a direct path through NATs, the death of a path.
//!
//! ```text
//!   a ─ NAT a ─┐ 15 ms      15 ms
//!              ├──────── relay          relayed RTT 60 ms, direct RTT 40 ms
//!   b ─ NAT b ─┘  a to b: 20 ms
//! ```

use std::time::{Duration, Instant};

use super::{
    Bench, attempt,
    goal::Row,
    median, millis, percentile, probe,
    report::Figure,
    stage::{MESH, Stage, Way},
};
use crate::lab::{Host, Lab, Nat, Node, Site, node};

/// Longer than anything here takes.
const MOMENT: Duration = Duration::from_secs(15);
/// A direct path that is not there by then counts as this.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of the pings that see a path die.
const PACE: Duration = Duration::from_millis(10);
const STARTS: u32 = 7;
/// Between two starts: who comes and goes faster than that is held back by the others, as a network that flaps should be.
const BETWEEN_STARTS: Duration = Duration::from_secs(2);
const DEATHS: u32 = 5;

/// Kinds of endpoint-independent NATs.
const EIM: [Nat; 3] = [Nat::PortRestricted, Nat::FullCone, Nat::OtherPort];

/// From the start of the process to the first answer, with a static address and keys in the state directory.
pub fn start(bench: &mut Bench) {
    let rows = [Row::Start];
    if !bench.wants_any(&rows) {
        return;
    }
    bench.say("start to first ping");
    attempt(bench, &rows, |bench| {
        let mut stage = Stage::new(Way::Udp)?;
        stage.a.stop();
        let mut times = Vec::new();
        for _ in 0..STARTS {
            std::thread::sleep(BETWEEN_STARTS);
            let log = stage.lab.dir().join("probe");
            let took = probe::first_answer(&stage.host_a, MESH, &stage.command_of_a(), &log)?;
            times.push(millis(took));
        }
        let seen = format!("of {STARTS}; worst {:.0} ms", percentile(times.iter().copied(), 100));
        bench.found(Row::Start, Figure::new(median(times), seen));
        Ok(())
    });
}

/// From the first packet to the direct path.
pub fn direct_path(bench: &mut Bench) {
    let rows = [Row::DirectMedian, Row::DirectTail];
    if !bench.wants_any(&rows) {
        return;
    }
    bench.say("direct path between endpoint-independent NATs: relayed RTT 60 ms, direct 40 ms");
    attempt(bench, &rows, |bench| {
        let pairs: Vec<(Nat, Nat)> =
            (0..EIM.len()).flat_map(|a| (a..EIM.len()).map(move |b| (EIM[a], EIM[b]))).collect();
        let each = bench.effort.meetings.div_ceil(pairs.len() as u32).max(1);
        let mut times = Vec::new();
        for (nat_a, nat_b) in pairs {
            let mut homes = Homes::new(nat_a, nat_b, Distances::NEAR);
            let of_pair: Vec<f64> = (0..each).map(|_| millis(homes.meet_anew())).collect();
            bench.say(&format!("  {nat_a:?} x {nat_b:?}: {of_pair:.0?} ms"));
            times.extend(of_pair);
        }
        let count = times.len();
        let late = times.iter().filter(|time| **time >= millis(PATIENCE)).count();
        let seen = format!(
            "{count} meetings of real nodes, {late} not direct within {PATIENCE:?}, fastest {:.0} ms",
            percentile(times.iter().copied(), 0)
        );
        let tail = percentile(times.iter().copied(), 95);
        bench.found(Row::DirectMedian, Figure::new(median(times), seen.clone()));
        bench.found(Row::DirectTail, Figure::new(tail, seen));
        Ok(())
    });
}

/// How long nothing passes after the direct path died.
pub fn failover(bench: &mut Bench) {
    let rows = [Row::Failover];
    if !bench.wants_any(&rows) {
        return;
    }
    bench.say("death of a direct path of 150 ms, the relay's being 160 ms");
    attempt(bench, &rows, |bench| {
        let mut homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, Distances::FAR);
        let mut gaps = Vec::new();
        for _ in 0..DEATHS {
            if homes.meet_anew() >= PATIENCE {
                return Err("there was no direct path to die".to_owned());
            }
            gaps.push(millis(homes.die()));
            bench.say(&format!("  an outage of {:.0} ms", gaps[gaps.len() - 1]));
        }
        let seen = format!(
            "of {DEATHS}, pings every {PACE:?}; p50 {:.0} ms",
            median(gaps.iter().copied())
        );
        bench.found(Row::Failover, Figure::new(percentile(gaps, 100), seen));
        Ok(())
    });
}

/// One way from each home to the relay, and from home to home.
#[derive(Clone, Copy, Debug)]
struct Distances {
    relay: Duration,
    direct: Duration,
}

impl Distances {
    const NEAR: Self = Self { relay: Duration::from_millis(15), direct: Duration::from_millis(20) };
    const FAR: Self = Self { relay: Duration::from_millis(40), direct: Duration::from_millis(75) };
}

/// Two homes at a distance, whose nodes meet anew as often as one likes.
struct Homes {
    // Nodes end before their namespaces.
    a: Node,
    b: Node,
    _server: Node,
    url: String,
    sites: [Site; 2],
    host_a: Host,
    lab: Lab,
}

impl Homes {
    fn new(nat_a: Nat, nat_b: Nat, distances: Distances) -> Self {
        let mut lab = Lab::new();
        let relay = lab.public_host("relay");
        let mut site_a = lab.site("ra", nat_a);
        let mut site_b = lab.site("rb", nat_b);
        let host_a = lab.host(&mut site_a, "a");
        let host_b = lab.host(&mut site_b, "b");
        let (at_a, at_b) = (&site_a.router.address, &site_b.router.address);
        lab.stretch(&[
            (at_a, &relay.address, distances.relay),
            (at_b, &relay.address, distances.relay),
            (at_a, at_b, distances.direct),
        ]);
        let (server, url) = node::server(&mut lab, &relay, "server", "");
        let a = Node::start(&lab, &host_a, "a", &[&url], "");
        let b = Node::start(&lab, &host_b, "b", &[&url], "");
        let homes = Self { a, b, _server: server, url, sites: [site_a, site_b], host_a, lab };
        homes.settle();
        homes
    }

    /// Both nodes start anew before NATs that know nothing; from the first packet to the direct path.
    fn meet_anew(&mut self) -> Duration {
        self.a.stop();
        self.b.stop();
        self.lab.restore_if_cut();
        for site in &self.sites {
            site.reboot_nat();
        }
        self.a.restart(&[&self.url], "");
        self.b.restart(&[&self.url], "");
        self.settle();
        self.host_a.ping(&self.b.ipv4(), 30, Duration::from_millis(20));
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let events = self.a.events("path_primary");
            let after = events.iter().find_map(|event| event["fields"]["after_ms"].as_str());
            if let Some(after) = after.and_then(|after| after.parse().ok()) {
                return Duration::from_millis(after).min(PATIENCE);
            }
            self.host_a.ping(&self.b.ipv4(), 5, Duration::from_millis(20));
        }
        PATIENCE
    }

    /// The direct path dies while pings run; the longest time without an answer.
    fn die(&self) -> Duration {
        let (host, target) = (self.host_a.clone(), self.b.ipv4());
        let pinging = std::thread::spawn(move || host.ping(&target, 300, PACE));
        std::thread::sleep(Duration::from_millis(1000));
        self.lab.cut(&self.sites[0], &self.sites[1]);
        let ping = pinging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        ping.longest_gap(PACE)
    }

    /// Both know each other and what their NAT does.
    fn settle(&self) {
        for node in [&self.a, &self.b] {
            node.wait("ready", MOMENT);
            node.wait("peers=1", MOMENT);
        }
        let start = Instant::now();
        while [&self.a, &self.b].iter().any(|node| node.json("nat")["tested_at"].is_null())
            && start.elapsed() < PATIENCE
        {
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}
