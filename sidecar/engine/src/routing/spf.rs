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
///
/// Two lists, no tree: a large network has thousands of members, and whenever one of them comes or goes this is made anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reachable {
    /// In their order, each with the place after its last way.
    nodes: Vec<(NodeId, usize)>,
    ways: Vec<Reach>,
}

impl Reachable {
    /// The ways to `node`, of which there is at least one, unless it is not reachable.
    pub fn get(&self, node: &NodeId) -> Option<&[Reach]> {
        let at = self.nodes.binary_search_by(|(other, _)| other.cmp(node)).ok()?;
        self.ways_at(at)
    }

    /// All of them in the order of their nodes.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &[Reach])> {
        let nodes = self.nodes.iter().enumerate();
        nodes.filter_map(|(at, (node, _))| Some((*node, self.ways_at(at)?)))
    }

    fn ways_at(&self, at: usize) -> Option<&[Reach]> {
        let (_, end) = self.nodes.get(at)?;
        let start = at.checked_sub(1).and_then(|before| self.nodes.get(before));
        self.ways.get(start.map_or(0, |(_, end)| *end)..*end)
    }
}

impl FromIterator<(NodeId, Reach)> for Reachable {
    /// In any order.
    fn from_iter<I: IntoIterator<Item = (NodeId, Reach)>>(ways: I) -> Self {
        let mut all: Vec<(NodeId, Reach)> = ways.into_iter().collect();
        // What each link leads to comes in order, and this sort joins what is sorted in parts.
        all.sort();
        let mut reachable = Self { nodes: Vec::new(), ways: Vec::with_capacity(all.len()) };
        for same in all.chunk_by(|(a, _), (b, _)| a == b) {
            reachable.ways.extend(same.iter().map(|(_, reach)| *reach));
            let end = reachable.ways.len();
            reachable.nodes.extend(same.first().map(|(node, _)| (*node, end)));
        }
        reachable.nodes.shrink_to_fit();
        reachable
    }
}

/// Computes all ways from `me` over `links`. Whoever none of these leads to has the way of `direct`.
pub fn compute(
    me: NodeId,
    links: &[OwnLink],
    direct: &[(NodeId, Reach)],
    topology: &Topology,
) -> Reachable {
    let reachable: Reachable =
        links.iter().flat_map(|link| from_link(me, link, topology)).collect();
    let mut alone = direct.iter().filter(|(node, _)| reachable.get(node).is_none()).peekable();
    if alone.peek().is_none() {
        return reachable;
    }
    let ways = reachable.iter().flat_map(|(node, ways)| ways.iter().map(move |way| (node, *way)));
    ways.chain(alone.copied()).collect()
}

/// In the order of nodes.
fn from_link(me: NodeId, link: &OwnLink, topology: &Topology) -> Vec<(NodeId, Reach)> {
    let first = u64::from(link.cost_us);
    if link.server {
        let members = topology.members_at(link.to).filter(|(node, _)| *node != me);
        let ways = members.map(|(node, last)| {
            let cost_us = first + u64::from(last.unwrap_or(DEFAULT_COST_US));
            (node, Reach { cost_us, hops: 2, via: link.to })
        });
        return ways.collect();
    }
    let mut settled: BTreeMap<NodeId, Reach> = BTreeMap::new();
    let mut queue = BinaryHeap::from([Reverse((first, 1, link.to))]);
    while let Some(Reverse((cost_us, hops, node))) = queue.pop() {
        if node == me || settled.contains_key(&node) {
            continue;
        }
        let Some(member) = topology.member(node) else { continue };
        settled.insert(node, Reach { cost_us, hops, via: link.to });
        if !member.transit || hops >= u32::from(wire::datagram::HOP_LIMIT) {
            continue;
        }
        for edge in topology.edges(node) {
            let mutual = !edge.server && topology.edges(edge.to).iter().any(|back| back.to == node);
            if mutual && !settled.contains_key(&edge.to) {
                queue.push(Reverse((cost_us + u64::from(edge.cost_us), hops + 1, edge.to)));
            }
        }
    }
    settled.into_iter().collect()
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
    use wire::lsa::{LinkBody, Neighbour};

    use super::*;
    use crate::routing::topology::tests::member;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn topology(members: &[(u8, bool)], edges: &[(u8, u8, u32)]) -> Topology {
        let mut topology = Topology::default();
        for &(number, transit) in members {
            topology.set_member(node(number), member(transit));
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
        topology.set_attached(node(100), vec![node(1), node(2)].into());

        let link = OwnLink { to: node(100), cost_us: 10, server: true };
        let ways = compute(node(1), &[link], &[], &topology);

        let way = Reach { cost_us: 20_010, hops: 2, via: node(100) };
        assert_eq!(ways.iter().collect::<Vec<_>>(), [(node(2), &[way][..])]);
    }

    #[test]
    fn transit_members_carry_and_others_do_not() {
        let links = [OwnLink { to: node(2), cost_us: 10, server: false }];
        let edges = [(2, 3, 5), (3, 2, 5), (3, 4, 5), (4, 3, 5)];

        let through =
            compute(node(1), &links, &[], &topology(&[(2, true), (3, true), (4, false)], &edges));
        let blocked =
            compute(node(1), &links, &[], &topology(&[(2, true), (3, false), (4, false)], &edges));

        let way = Reach { cost_us: 20, hops: 3, via: node(2) };
        assert_eq!(through.get(&node(4)), Some(&[way][..]));
        assert_eq!(blocked.get(&node(4)), None);
    }

    #[test]
    fn an_edge_counts_only_if_both_ends_list_it() {
        let links = [OwnLink { to: node(2), cost_us: 10, server: false }];

        let ways = compute(node(1), &links, &[], &topology(&[(2, true), (3, false)], &[(2, 3, 5)]));

        assert_eq!(ways.get(&node(3)), None);
    }

    #[test]
    fn of_several_ways_the_best_is_first_and_a_direct_one_counts_where_no_link_leads() {
        let mut topology = topology(&[(2, false), (3, false), (4, false)], &[(3, 101, 5)]);
        topology.set_attached(node(100), vec![node(2), node(3), node(9)].into());
        topology.set_attached(node(101), vec![node(3)].into());
        let link = |to, cost_us| OwnLink { to: node(to), cost_us, server: true };
        let direct = [3, 4].map(|to| (node(to), Reach { cost_us: 1, hops: 1, via: node(to) }));

        let ways = compute(node(1), &[link(100, 10), link(101, 20)], &direct, &topology);

        let vias = |to| ways.get(&node(to)).map(|ways| ways.iter().map(|way| way.via).collect());
        assert_eq!(vias(2), Some(vec![node(100)]));
        assert_eq!(vias(3), Some(vec![node(101), node(100)]));
        assert_eq!(vias(4), Some(vec![node(4)]));
        assert_eq!(vias(9), None, "who is attached and said nothing is no member");
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
