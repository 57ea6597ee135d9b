//! Measures the data plane against raw veth in the same run; needs root, iperf3, ping, taskset.
//!
//! `dataplane_bench [direct|tcp|relay] [rounds] [seconds] [mtu] [suite] [what…]`, what being `one`, `two`, `udp`, `rtt`.

use std::io::Write;

use tests::dataplane::{self, Lab, Layout, Settings};

fn main() {
    dataplane::become_node();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize, default: &str| arguments.get(at).cloned().unwrap_or(default.to_owned());
    let layout = match word(0, "direct").as_str() {
        "relay" => Layout::Relay,
        "tcp" => Layout::Tcp,
        _ => Layout::Direct,
    };
    let rounds: usize = word(1, "3").parse().expect("rounds");
    let seconds: u32 = word(2, "3").parse().expect("seconds");
    let mtu: u16 = word(3, "1320").parse().expect("mtu");
    let suite = word(4, "aes");
    let what: Vec<&str> = arguments.iter().skip(5).map(String::as_str).collect();
    let wants = |name: &str| what.is_empty() || what.contains(&name);

    let mut lab = Lab::new(layout);
    let one = Some("1".to_owned());
    for (name, cpus) in [("one", one.clone()), ("two", None)] {
        if !wants(name) {
            continue;
        }
        let mut results = Vec::new();
        for _ in 0..rounds {
            let settings =
                Settings { mtu: Some(mtu), suite: Some(suite.clone()), cpus: cpus.clone() };
            let raw = tcp(&lab, lab.raw_address(), &cpus, seconds);
            lab.start(&settings);
            let ours = tcp(&lab, "10.98.0.2", &cpus, seconds);
            let (_, resident) = lab.usage();
            lab.stop();
            say(&format!(
                "tcp {name} cpu: raw {:.2} Gbit/s {:.2} s/GB, ours {:.2} Gbit/s {:.2} s/GB: {:.3} × raw, CPU {:.2} ×, {} retransmits, RSS {resident} kB",
                raw.gbits,
                raw.cpu_per_gb,
                ours.gbits,
                ours.cpu_per_gb,
                ours.gbits / raw.gbits,
                ours.cpu_per_gb / raw.cpu_per_gb,
                ours.retransmits,
            ));
            results.push((ours.gbits / raw.gbits, ours.cpu_per_gb / raw.cpu_per_gb));
        }
        let ratio = median(results.iter().map(|result| result.0));
        let cpu = median(results.iter().map(|result| result.1));
        say(&format!("tcp {name} cpu MEDIAN: {ratio:.3} × raw, CPU s/GB {cpu:.2} ×"));
    }
    let settings = Settings { mtu: Some(mtu), suite: Some(suite), cpus: None };
    if wants("udp") {
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let raw = flood(&lab, lab.raw_address(), seconds);
            lab.start(&settings);
            let ours = flood(&lab, "10.98.0.2", seconds);
            lab.stop();
            say(&format!(
                "udp 64 B: raw {raw:.0} pps, ours {ours:.0} pps: {:.3} × raw",
                ours / raw
            ));
            ratios.push(ours / raw);
        }
        say(&format!("udp 64 B MEDIAN: {:.3} × raw", median(ratios.into_iter())));
    }
    if wants("rtt") {
        let mut ratios = Vec::new();
        for _ in 0..rounds {
            let raw = lab.ping(lab.raw_address(), &None, 300);
            lab.start(&settings);
            let ours = lab.ping("10.98.0.2", &None, 300);
            lab.stop();
            let at = |times: &[f64], percent: usize| times[times.len() * percent / 100];
            say(&format!(
                "rtt: raw p50 {:.0} µs, ours p50 {:.0} p99 {:.0} µs: {:.1} × raw",
                at(&raw, 50),
                at(&ours, 50),
                at(&ours, 99),
                at(&ours, 50) / at(&raw, 50),
            ));
            ratios.push(at(&ours, 50) / at(&raw, 50));
        }
        say(&format!("rtt p50 MEDIAN: {:.1} × raw", median(ratios.into_iter())));

        lab.start(&settings);
        let loaded = std::thread::scope(|scope| {
            scope.spawn(|| lab.iperf("10.98.0.2", &None, "-t 3"));
            std::thread::sleep(std::time::Duration::from_millis(1000));
            lab.ping("10.98.0.2", &None, 200)
        });
        lab.stop();
        let (p50, p99) = (loaded[loaded.len() / 2], loaded[loaded.len() * 99 / 100]);
        say(&format!("rtt beside one TCP stream: p50 {p50:.0} p99 {p99:.0} µs"));
    }
}

struct Tcp {
    gbits: f64,
    cpu_per_gb: f64,
    retransmits: u64,
}

fn tcp(lab: &Lab, to: &str, cpus: &Option<String>, seconds: u32) -> Tcp {
    let (before, _) = lab.usage();
    let report = lab.iperf(to, cpus, &format!("-t {seconds} -O 0.5"));
    let (after, _) = lab.usage();
    let end = &report["end"];
    let number = |value: &serde_json::Value| value.as_f64().unwrap_or(f64::NAN);
    let received = &end["sum_received"];
    let use_of = &end["cpu_utilization_percent"];
    let iperf_cpu = (number(&use_of["host_total"]) + number(&use_of["remote_total"])) / 100.0
        * number(&received["seconds"]);
    Tcp {
        gbits: number(&received["bits_per_second"]) / 1e9,
        cpu_per_gb: (iperf_cpu + after - before) / (number(&received["bytes"]) / 1e9),
        retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
    }
}

/// Datagrams of 64 bytes received per second.
fn flood(lab: &Lab, to: &str, seconds: u32) -> f64 {
    let report = lab.iperf(to, &None, &format!("-u -b 0 -l 64 -t {seconds}"));
    let sum = &report["end"]["sum"];
    let number = |name: &str| sum[name].as_f64().unwrap_or(f64::NAN);
    (number("packets") - number("lost_packets")) / number("seconds")
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn say(line: &str) {
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
