//! What two clusters that are one network cost and give: memory of their parts, throughput between pods and between nodes.

use std::{thread, time::Duration};

use serde_json::Value;

use super::{Cluster, Node, Ran};

/// Rounds of each measurement, one after the other in turn, so that whatever else the machine does meets both.
const ROUNDS: usize = 3;
const SECONDS: u32 = 2;
const ATTEMPTS: u32 = 10;

/// Throughput of one TCP connection in Gbit/s, the best of some rounds.
#[derive(Clone, Copy, Debug)]
pub struct Speed {
    /// From a node to a node of the other cluster, by their addresses in the mesh.
    pub nodes: f64,
    /// From a pod to a pod of the other cluster, on the same two nodes.
    pub pods: f64,
}

impl Speed {
    /// Measures from the pod `client` of `from`, on its first node, to a pod on the first node of `to`.
    ///
    /// `address` is what pods of `from` call the pod at the address that it is given.
    ///
    /// # Panics
    /// When a measurement fails.
    pub fn measure(
        (from, client): (&Cluster, &str),
        to: &Cluster,
        address: impl Fn(&str) -> String,
    ) -> Self {
        let node = &to.nodes[0];
        let pod = address(&to.pod("iperf", &node.name, "exec iperf3 -s"));
        let peer = to.object(&format!("easypeers/{}", peer_of(to, node)), &[]).unwrap_or_default();
        let mesh = peer["spec"]["ipv4"].as_str().expect("a member has an address").to_owned();
        node.run("iperf3 -s -D").ok();
        let mut speed = Self { nodes: 0.0, pods: 0.0 };
        for _ in 0..ROUNDS {
            let nodes = gigabits(|| from.nodes[0].run(&client_of(&mesh)));
            speed.nodes = speed.nodes.max(nodes);
            let pods = gigabits(|| from.exec(client, &client_of(&pod)));
            speed.pods = speed.pods.max(pods);
        }
        node.run("pkill -x iperf3");
        to.kubectl(&["delete", "pod", "iperf"]).ok();
        speed
    }

    pub fn ratio(&self) -> f64 {
        self.pods / self.nodes
    }
}

/// Resident memory of a program on each node where it runs, in bytes.
pub fn memory(cluster: &Cluster, program: &str) -> Vec<u64> {
    // The kernel keeps 15 characters of a name.
    let name: String = program.chars().take(15).collect();
    let script = format!("for p in $(pgrep -x {name}); do grep VmRSS /proc/$p/status; done");
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
    let nodes = cluster.nodes.iter().map(|node| node.run(&script).stdout);
    nodes
        .flat_map(|lines| lines.lines().filter_map(kib).collect::<Vec<_>>())
        .map(|kib| kib * 1024)
        .collect()
}

fn peer_of(cluster: &Cluster, node: &Node) -> String {
    let peers = cluster.list("easypeers", &[]);
    let peer = peers.iter().find(|peer| peer["spec"]["nodeRef"]["name"] == *node.name);
    let name = peer.and_then(|peer| peer["metadata"]["name"].as_str());
    name.unwrap_or_else(|| panic!("{} is no member", node.name)).to_owned()
}

fn client_of(address: &str) -> String {
    format!("iperf3 -J -c {address} -t {SECONDS}")
}

/// What iperf3 reports; it is run again while its server is only starting.
fn gigabits(run: impl Fn() -> Ran) -> f64 {
    let mut attempt = 1;
    loop {
        let ran = run();
        let report: Value = serde_json::from_str(&ran.stdout).unwrap_or_default();
        if let Some(bits) = report["end"]["sum_received"]["bits_per_second"].as_f64() {
            return bits / 1e9;
        }
        assert!(attempt < ATTEMPTS, "iperf3: {}{}", ran.stdout, ran.stderr);
        attempt += 1;
        thread::sleep(Duration::from_millis(300));
    }
}
