//! What must be true of a mesh that has settled: questions about plain views of its nodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use ipnet::IpNet;
use wire::id::NodeId;

/// Relays that a packet may pass (`wire::datagram::HOP_LIMIT`).
const HOP_LIMIT: usize = wire::datagram::HOP_LIMIT as usize;

/// How a node, or a server, hands on what is for another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// It is the next stop.
    Direct,
    /// It goes to this one first.
    Via(NodeId),
}

/// A node or server, as far as routing goes.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// A hash of all that its LSDB holds.
    pub lsdb: u64,
    /// Prefixes and whose they are.
    pub routes: BTreeMap<IpNet, NodeId>,
    pub next: BTreeMap<NodeId, Next>,
    /// What it owns itself.
    pub owns: BTreeSet<IpNet>,
    pub server: bool,
    /// Hears no LSAs: what it knows of others says nothing, what others know of it does.
    pub deaf: bool,
}

/// The mesh from outside: views of everybody, and who can reach whom at all.
#[derive(Clone, Debug, Default)]
pub struct Mesh {
    pub views: BTreeMap<NodeId, View>,
    /// Sets of nodes that can reach each other, over whatever relays.
    pub components: Vec<BTreeSet<NodeId>>,
}

/// Something that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    LsdbsDiffer {
        a: NodeId,
        b: NodeId,
    },
    Loop {
        from: NodeId,
        to: NodeId,
        way: Vec<NodeId>,
    },
    /// A route that leads nowhere although the owner is reachable.
    DeadEnd {
        from: NodeId,
        to: NodeId,
        way: Vec<NodeId>,
    },
    NoRoute {
        from: NodeId,
        to: NodeId,
        prefix: IpNet,
    },
    WrongOwner {
        from: NodeId,
        prefix: IpNet,
        routed_to: NodeId,
    },
    /// A route to what cannot be reached.
    Stale {
        from: NodeId,
        to: NodeId,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LsdbsDiffer { a, b } => write!(f, "the LSDBs of {a} and {b} differ"),
            Self::Loop { from, to, way } => write!(f, "{from} to {to} runs in a loop: {way:?}"),
            Self::DeadEnd { from, to, way } => write!(f, "{from} to {to} ends early: {way:?}"),
            Self::NoRoute { from, to, prefix } => {
                write!(f, "{from} has no route to {prefix} of {to}, which it can reach")
            }
            Self::WrongOwner { from, prefix, routed_to } => {
                write!(f, "{from} routes {prefix} to {routed_to}, who does not own it")
            }
            Self::Stale { from, to } => write!(f, "{from} routes to {to}, which it cannot reach"),
        }
    }
}

impl Mesh {
    /// Everything that is wrong with a mesh that has settled.
    pub fn wrongs(&self) -> Vec<Wrong> {
        let mut wrongs = Vec::new();
        for component in &self.components {
            self.compare_lsdbs(component, &mut wrongs);
            let members: Vec<_> = component.iter().filter(|node| self.is_member(node)).collect();
            for &&from in members.iter().filter(|node| !self.is_deaf(node)) {
                for &&to in &members {
                    if from != to {
                        self.check_pair(from, to, &mut wrongs);
                    }
                }
                self.check_unreachable(from, component, &mut wrongs);
            }
        }
        wrongs
    }

    fn is_member(&self, node: &NodeId) -> bool {
        self.views.get(node).is_some_and(|view| !view.server)
    }

    fn is_deaf(&self, node: &NodeId) -> bool {
        self.views.get(node).is_some_and(|view| view.deaf)
    }

    fn compare_lsdbs(&self, component: &BTreeSet<NodeId>, wrongs: &mut Vec<Wrong>) {
        let views = component.iter().filter_map(|node| Some((node, self.views.get(node)?)));
        let mut views = views.filter(|(_, view)| !view.deaf);
        let Some((&a, first)) = views.next() else { return };
        let differing = views.filter(|(_, view)| view.lsdb != first.lsdb);
        wrongs.extend(differing.map(|(&b, _)| Wrong::LsdbsDiffer { a, b }));
    }

    fn check_pair(&self, from: NodeId, to: NodeId, wrongs: &mut Vec<Wrong>) {
        let (Some(view), Some(owner)) = (self.views.get(&from), self.views.get(&to)) else {
            return;
        };
        for &prefix in owner.owns.iter().filter(|prefix| !view.owns.contains(prefix)) {
            match view.routes.get(&prefix) {
                None => wrongs.push(Wrong::NoRoute { from, to, prefix }),
                Some(routed_to) => {
                    let owns =
                        self.views.get(routed_to).is_some_and(|view| view.owns.contains(&prefix));
                    if !owns {
                        wrongs.push(Wrong::WrongOwner { from, prefix, routed_to: *routed_to });
                    }
                }
            }
        }
        wrongs.extend(self.walk(from, to));
    }

    /// Routes into another component are stale: whoever settled knows that nobody answers there.
    fn check_unreachable(
        &self,
        from: NodeId,
        component: &BTreeSet<NodeId>,
        wrongs: &mut Vec<Wrong>,
    ) {
        let Some(view) = self.views.get(&from) else { return };
        let owners: BTreeSet<_> = view.routes.values().copied().collect();
        let stale = owners.into_iter().filter(|owner| *owner != from && !component.contains(owner));
        wrongs.extend(stale.map(|to| Wrong::Stale { from, to }));
    }

    /// Follows the way of a packet; nothing if it arrives.
    fn walk(&self, from: NodeId, to: NodeId) -> Option<Wrong> {
        let mut way = vec![from];
        let mut at = from;
        while at != to {
            let Some(next) = self.views.get(&at).and_then(|view| view.next.get(&to)) else {
                return Some(Wrong::DeadEnd { from, to, way });
            };
            at = match *next {
                Next::Direct => to,
                Next::Via(relay) => relay,
            };
            if way.contains(&at) {
                way.push(at);
                return Some(Wrong::Loop { from, to, way });
            }
            way.push(at);
            if way.len() > HOP_LIMIT + 1 {
                return Some(Wrong::DeadEnd { from, to, way });
            }
        }
        None
    }
}

/// The connected components of an undirected graph.
pub fn components(
    nodes: impl IntoIterator<Item = NodeId>,
    edges: impl IntoIterator<Item = (NodeId, NodeId)>,
) -> Vec<BTreeSet<NodeId>> {
    let mut neighbours: BTreeMap<NodeId, BTreeSet<NodeId>> =
        nodes.into_iter().map(|node| (node, BTreeSet::new())).collect();
    for (a, b) in edges {
        if neighbours.contains_key(&a) && neighbours.contains_key(&b) {
            neighbours.entry(a).or_default().insert(b);
            neighbours.entry(b).or_default().insert(a);
        }
    }
    let mut components = Vec::new();
    while let Some((&start, _)) = neighbours.first_key_value() {
        let mut component = BTreeSet::new();
        let mut left = vec![start];
        while let Some(node) = left.pop() {
            if component.insert(node) {
                left.extend(neighbours.remove(&node).unwrap_or_default());
            }
        }
        components.push(component);
    }
    components
}

#[cfg(test)]
mod tests;
