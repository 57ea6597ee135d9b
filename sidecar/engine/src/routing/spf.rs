//! Shortest paths from here to every member (Dijkstra, ties by NodeId).
//!
//! A member is expanded only if it offers transit, and nothing is expanded that was reached through a public server: a
//! server delivers to who is attached to it, and knows nobody else.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use wire::id::NodeId;

use super::topology::Topology;

/// Cost of an edge that nobody has measured.
const DEFAULT_COST_US: u32 = 20_000;
/// Recomputation waits this long after a change, and doubles up to the most while changes go on.
const THROTTLE_FIRST: Duration = Duration::from_millis(50);
const THROTTLE_MOST: Duration = Duration::from_secs(1);

/// A link of ours that is up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnLink {
    pub to: NodeId,
    pub cost_us: u32,
    pub server: bool,
}

/// The way to a member: over which link of ours, and what it costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reach {
    pub cost_us: u64,
    pub hops: u32,
    pub via: NodeId,
}

impl Reach {
    pub fn latency(&self) -> Duration {
        Duration::from_micros(self.cost_us)
    }
}

/// For every reachable member, the ways to it: the best of every link of ours that leads there, best first.
pub type Reachable = BTreeMap<NodeId, Vec<Reach>>;

/// Computes all ways from `me` over `links`.
pub fn compute(me: NodeId, links: &[OwnLink], topology: &Topology) -> Reachable {
    let mut reachable = Reachable::new();
    for link in links {
        for (node, reach) in from_link(me, link, topology) {
            reachable.entry(node).or_default().push(reach);
        }
    }
    for ways in reachable.values_mut() {
        ways.sort_unstable();
    }
    reachable
}

fn from_link(me: NodeId, link: &OwnLink, topology: &Topology) -> BTreeMap<NodeId, Reach> {
    let mut settled: BTreeMap<NodeId, Reach> = BTreeMap::new();
    let first = u64::from(link.cost_us);
    if link.server {
        for node in topology
            .attached(link.to)
            .filter(|node| *node != me && topology.member(*node).is_some())
        {
            let last = topology.cost(node, link.to).unwrap_or(DEFAULT_COST_US);
            settled.insert(node, Reach { cost_us: first + u64::from(last), hops: 2, via: link.to });
        }
        return settled;
    }
    let mut queue = BinaryHeap::from([Reverse((first, 1, link.to))]);
    while let Some(Reverse((cost_us, hops, node))) = queue.pop() {
        if node == me || settled.contains_key(&node) {
            continue;
        }
        let Some(member) = topology.member(node) else { continue };
        settled.insert(node, Reach { cost_us, hops, via: link.to });
        if !member.body.transit || hops >= u32::from(wire::datagram::HOP_LIMIT) {
            continue;
        }
        for edge in topology.edges(node) {
            let mutual = !edge.server && topology.edges(edge.to).iter().any(|back| back.to == node);
            if mutual && !settled.contains_key(&edge.to) {
                queue.push(Reverse((cost_us + u64::from(edge.cost_us), hops + 1, edge.to)));
            }
        }
    }
    settled
}

/// When to compute again.
#[derive(Clone, Copy, Debug, Default)]
pub struct Throttle {
    due: Option<Instant>,
    wait: Duration,
    last: Option<Instant>,
}

impl Throttle {
    /// Something changed.
    pub fn request(&mut self, now: Instant) {
        if self.due.is_some() {
            return;
        }
        let quiet =
            self.last.is_none_or(|last| now.saturating_duration_since(last) > THROTTLE_MOST);
        self.wait = if quiet {
            THROTTLE_FIRST
        } else {
            (self.wait * 2).clamp(THROTTLE_FIRST, THROTTLE_MOST)
        };
        self.due = Some(now + self.wait);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// True if it is time; the request is taken.
    pub fn take(&mut self, now: Instant) -> bool {
        if self.due.is_none_or(|due| now < due) {
            return false;
        }
        self.due = None;
        self.last = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use wire::{
        certificate::Attributes,
        id::{DhKey, NodeKeys, SignKey},
        lsa::{LinkBody, Neighbour, NodeBody},
    };

    use super::*;
    use crate::routing::topology::Member;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn topology(members: &[(u8, bool)], edges: &[(u8, u8, u32)]) -> Topology {
        let mut topology = Topology::default();
        for &(number, transit) in members {
            topology.set_member(
                node(number),
                Member {
                    keys: NodeKeys { sign: SignKey([0; 32]), dh: DhKey([0; 32]) },
                    serial: 1,
                    attributes: Attributes::default(),
                    body: NodeBody { transit, ..NodeBody::default() },
                    seq: 1,
                },
            );
            let neighbours = edges
                .iter()
                .filter(|(from, _, _)| *from == number)
                .map(|&(_, to, cost_us)| Neighbour {
                    node: node(to).0.to_vec(),
                    cost_us,
                    server: false,
                })
                .collect();
            topology.set_links(node(number), &LinkBody { neighbours });
        }
        topology
    }

    #[test]
    fn members_behind_a_server_are_reached_and_not_expanded() {
        let mut topology = topology(&[(2, true), (3, false)], &[(2, 3, 5), (3, 2, 5)]);
        topology.set_attached(node(100), BTreeSet::from([node(1), node(2)]));

        let ways =
            compute(node(1), &[OwnLink { to: node(100), cost_us: 10, server: true }], &topology);

        assert_eq!(ways.keys().copied().collect::<Vec<_>>(), [node(2)]);
        assert_eq!(ways[&node(2)][0].via, node(100));
    }

    #[test]
    fn transit_members_carry_and_others_do_not() {
        let links = [OwnLink { to: node(2), cost_us: 10, server: false }];
        let edges = [(2, 3, 5), (3, 2, 5), (3, 4, 5), (4, 3, 5)];

        let through =
            compute(node(1), &links, &topology(&[(2, true), (3, true), (4, false)], &edges));
        let blocked =
            compute(node(1), &links, &topology(&[(2, true), (3, false), (4, false)], &edges));

        assert_eq!(through[&node(4)], [Reach { cost_us: 20, hops: 3, via: node(2) }]);
        assert!(!blocked.contains_key(&node(4)));
    }

    #[test]
    fn an_edge_counts_only_if_both_ends_list_it() {
        let links = [OwnLink { to: node(2), cost_us: 10, server: false }];

        let ways = compute(node(1), &links, &topology(&[(2, true), (3, false)], &[(2, 3, 5)]));

        assert!(!ways.contains_key(&node(3)));
    }

    #[test]
    fn a_burst_of_changes_is_computed_ever_more_rarely() {
        let mut now = Instant::now();
        let mut throttle = Throttle::default();
        let mut waits = Vec::new();
        for _ in 0..7 {
            throttle.request(now);
            let due = throttle.poll_timeout().unwrap();
            waits.push((due - now).as_millis());
            assert!(!throttle.take(now) && throttle.take(due));
            now = due;
        }

        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000]);
    }
}
