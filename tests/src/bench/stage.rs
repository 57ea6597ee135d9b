//! Where packets are carried: two nodes with a veth between, or with a relay between.
//!
//! ```text
//! a 10.99.0.1 ── veth ── 10.99.0.2 b          direct, over UDP or one TCP connection
//! a 10.99.1.1 ── veth ── r ── veth ── 10.99.2.1 b     r: a public server
//! mesh: 10.98.0.1 and 10.98.0.2
//! ```

use std::time::Duration;

use super::load::Load;
use crate::lab::{Host, Lab, Node, node};

/// Where `b` is reached without and with the mesh.
pub const RAW: &str = "10.99.0.2";
pub const MESH: &str = "10.98.0.2";
/// Longer than anything here takes.
const MOMENT: Duration = Duration::from_secs(15);

/// How `a` reaches `b`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Udp,
    Tcp,
    Relay,
}

/// Two nodes that know each other, and what is between them.
#[derive(Debug)]
pub struct Stage {
    // Nodes end before their namespaces.
    pub a: Node,
    pub b: Node,
    pub relay: Option<Node>,
    pub host_a: Host,
    pub host_b: Host,
    peer: String,
    options: &'static str,
    pub lab: Lab,
}

impl Stage {
    /// Starts the nodes twice: what is measured is not their first start, which derives the network's key.
    ///
    /// # Errors
    /// When they do not reach each other in that way; in one sentence.
    pub fn new(way: Way) -> Result<Self, String> {
        let mut lab = Lab::new();
        let host_a = lab.lone_host("a", "10.99.0.1");
        let host_b = lab.lone_host("b", RAW);
        lab.join((&host_a, "10.99.0.1/24"), (&host_b, "10.99.0.2/24"));
        let (mut relay, mut options) = (None, "");
        let peer = match way {
            Way::Udp => format!("udp://{RAW}:11010"),
            Way::Tcp => {
                for host in [&host_a, &host_b] {
                    host.run("nft add table inet wall");
                    host.run(
                        "nft \"add chain inet wall input { type filter hook input priority 0; }\"",
                    );
                    host.run("nft add rule inet wall input udp dport 11010 drop");
                }
                format!("tcp://{RAW}:11010")
            }
            Way::Relay => {
                let host_r = lab.lone_host("r", "10.99.3.1");
                lab.join((&host_a, "10.99.1.1/24"), (&host_r, "10.99.1.254/24"));
                lab.join((&host_b, "10.99.2.1/24"), (&host_r, "10.99.2.254/24"));
                host_r.run("ip addr add 10.99.3.1/32 dev lo; sysctl -qw net.ipv4.ip_forward=1");
                host_a.run("ip route add default via 10.99.1.254");
                host_b.run("ip route add default via 10.99.2.254");
                let (server, url) = node::server(&mut lab, &host_r, "server", "");
                relay = Some(server);
                options = "--p2p relay-only";
                url
            }
        };
        let peers_of_b: Vec<&str> = if way == Way::Relay { vec![&peer] } else { Vec::new() };
        let (options_a, options_b) = (options_of_a(options), format!("--ipv4 {MESH}/24 {options}"));
        let mut b = Node::start(&lab, &host_b, "b", &peers_of_b, &options_b);
        let mut a = Node::start(&lab, &host_a, "a", &[&peer], &options_a);
        meet(&a, &b)?;
        a.stop();
        b.stop();
        b.restart(&peers_of_b, &options_b);
        a.restart(&[&peer], &options_a);
        meet(&a, &b)?;
        let stage = Self { a, b, relay, host_a, host_b, peer, options, lab };
        stage.check(way)?;
        Ok(stage)
    }

    /// That packets go the way that is to be measured.
    fn check(&self, way: Way) -> Result<(), String> {
        let (state, carrier) = match way {
            Way::Udp => ("direct", "udp"),
            Way::Tcp => ("direct", "tcp"),
            Way::Relay => ("relayed", "udp"),
        };
        let peer = self.a.peer("b");
        if peer["state"] == state && peer["carrier"] == carrier {
            return Ok(());
        }
        Err(format!("b is {} over {}, not {state} over {carrier}", peer["state"], peer["carrier"]))
    }

    /// Restricts everything that carries packets to these CPUs.
    pub fn pin(&self, cpus: &str) {
        for node in self.nodes() {
            self.host_a.run(&format!("taskset -a -p -c {cpus} {} >/dev/null", node.pid()));
        }
    }

    pub fn nodes(&self) -> Vec<&Node> {
        [&self.a, &self.b].into_iter().chain(&self.relay).collect()
    }

    /// From `a` to `b` without the mesh.
    pub fn raw<'a>(&'a self, cpus: Option<&'a str>) -> Load<'a> {
        Load { from: &self.host_a, to: &self.host_b, address: RAW, nodes: &[], cpus }
    }

    /// The same through the mesh; `nodes` are whose CPU time counts.
    pub fn mesh<'a>(&'a self, nodes: &'a [&'a Node], cpus: Option<&'a str>) -> Load<'a> {
        Load { from: &self.host_a, to: &self.host_b, address: MESH, nodes, cpus }
    }

    /// What starts `a` again.
    pub fn command_of_a(&self) -> String {
        self.a.command_line(&[&self.peer], &options_of_a(self.options))
    }
}

/// Waits until packets pass.
fn meet(a: &Node, b: &Node) -> Result<(), String> {
    for node in [b, a] {
        node.wait("ready", MOMENT);
    }
    a.wait("peers=1", MOMENT);
    for _ in 0..50 {
        if a.host.ping(MESH, 1, Duration::from_millis(100)).lost() == 0 {
            return Ok(());
        }
    }
    Err(format!("b does not answer: {}", a.json("peers")))
}

fn options_of_a(options: &str) -> String {
    format!("--ipv4 10.98.0.1/24 {options}")
}
