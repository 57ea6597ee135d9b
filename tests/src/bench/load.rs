//! TCP streams, floods and pings between two hosts, and the CPU time they cost.

use std::{path::Path, time::Duration};

use serde_json::Value;

use crate::lab::{Host, Node};

const PORT: u16 = 5999;
/// Longer than an iperf3 takes to end by itself.
const GRACE: u32 = 8;

/// Between whom, and on which CPUs (as taskset takes them).
#[derive(Clone, Copy, Debug)]
pub struct Load<'a> {
    pub from: &'a Host,
    pub to: &'a Host,
    /// Where `to` is reached.
    pub address: &'a str,
    /// Processes whose CPU time counts.
    pub nodes: &'a [&'a Node],
    pub cpus: Option<&'a str>,
}

/// One TCP stream.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    pub gbits: f64,
    /// CPU seconds of both iperf3 and all nodes for each gigabyte.
    pub cpu_per_gb: f64,
    pub retransmits: u64,
}

impl Load<'_> {
    pub fn tcp(&self, seconds: u32) -> Transfer {
        let before = self.cpu_seconds();
        let report = self.iperf(seconds, "");
        let nodes = self.cpu_seconds() - before;
        let end = &report["end"];
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let received = &end["sum_received"];
        let percent = &end["cpu_utilization_percent"];
        let percent = number(&percent["host_total"]) + number(&percent["remote_total"]);
        let iperf = percent / 100.0 * number(&received["seconds"]);
        Transfer {
            gbits: number(&received["bits_per_second"]) / 1e9,
            cpu_per_gb: (iperf + nodes) / (number(&received["bytes"]) / 1e9),
            retransmits: end["sum_sent"]["retransmits"].as_u64().unwrap_or(0),
        }
    }

    /// Datagrams of 64 bytes that arrive, thousands a second.
    pub fn flood(&self, seconds: u32) -> f64 {
        let report = self.iperf(seconds, "-u -b 0 -l 64");
        let sum = &report["end"]["sum"];
        let number = |name: &str| sum[name].as_f64().unwrap_or(f64::NAN);
        (number("packets") - number("lost_packets")) / number("seconds") / 1e3
    }

    /// Round trips in milliseconds of `count` pings, 5 ms apart.
    pub fn ping(&self, count: u32) -> Vec<f64> {
        let ping = self.from.ping(self.address, count, Duration::from_millis(5));
        ping.answers.iter().map(|(_, rtt)| super::millis(*rtt)).collect()
    }

    /// The report of one iperf3, or null.
    fn iperf(&self, seconds: u32, options: &str) -> Value {
        let pin = self.cpus.map_or_else(String::new, |cpus| format!("taskset -c {cpus} "));
        let nowhere = Path::new("/dev/null");
        let mut server = self.to.spawn(&format!("{pin}iperf3 -s -1 -p {PORT}"), nowhere);
        for _ in 0..200 {
            if self.to.run(&format!("ss -Hltn sport = :{PORT}")).contains(&PORT.to_string()) {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let output = self.from.try_run(&format!(
            "{pin}timeout {} iperf3 -J -c {} -p {PORT} --connect-timeout 3000 -t {seconds} {options}",
            seconds + GRACE,
            self.address
        ));
        // With -1 it ends by itself; not if nobody came.
        let _ = server.kill();
        let _ = server.wait();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(|node| cpu_seconds(node.pid())).sum()
    }
}

/// CPU seconds that a process has used.
fn cpu_seconds(pid: u32) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks = |at: usize| {
        let field = after_name.split_whitespace().nth(at);
        field.and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0)
    };
    (ticks(11) + ticks(12)) / TICKS_PER_SECOND
}

/// The largest resident set of a process since [`forget_peak`], in megabytes.
pub fn peak_megabytes(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap_or_default();
    let kib = line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib * 1024.0 / 1e6)
}

/// Sets the largest resident set back to the present one (`clear_refs`; proc(5)).
pub fn forget_peak(pid: u32) -> std::io::Result<()> {
    std::fs::write(format!("/proc/{pid}/clear_refs"), "5")
}
