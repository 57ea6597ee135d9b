//! The lab's usual world: two homes behind NATs, and a public server.

use std::time::Duration;

use super::{Host, Lab, Nat, Node, Site, node};

/// Longer than anything here takes, also on a busy machine.
pub const MOMENT: Duration = Duration::from_secs(15);

/// Two sites, a node in each, and the server that introduced them.
#[derive(Debug)]
pub struct Homes {
    // Nodes end before their namespaces.
    pub a: Node,
    pub b: Node,
    pub server: Node,
    pub url: String,
    pub site_a: Site,
    pub site_b: Site,
    pub host_a: Host,
    pub host_b: Host,
    pub lab: Lab,
}

impl Homes {
    /// Starts all of it and waits until the nodes know each other; `options` go to both.
    ///
    /// # Panics
    /// When they do not; the message holds the logs.
    pub fn new(nat_a: Nat, nat_b: Nat, options: &str) -> Self {
        let mut lab = Lab::new();
        let relay = lab.public_host("relay");
        let mut site_a = lab.site("ra", nat_a);
        let mut site_b = lab.site("rb", nat_b);
        let host_a = lab.host(&mut site_a, "a");
        let host_b = lab.host(&mut site_b, "b");
        let (server, url) = node::server(&mut lab, &relay, "server", "");
        let a = Node::start(&lab, &host_a, "a", &[&url], options);
        let b = Node::start(&lab, &host_b, "b", &[&url], options);
        for node in [&a, &b] {
            node.wait("ready", MOMENT);
            node.wait("peers=1", MOMENT);
        }
        Self { a, b, server, url, site_a, site_b, host_a, host_b, lab }
    }

    /// The same with packets on their direct path.
    pub fn direct(nat_a: Nat, nat_b: Nat) -> Self {
        let homes = Self::new(nat_a, nat_b, "");
        homes.host_a.ping(&homes.b.ipv4(), 3, Duration::from_millis(100));
        homes.a.wait("direct=b", MOMENT);
        homes
    }
}
