//! The graph as members see it: what the LSAs say, and who is attached to which public server.

use std::collections::{BTreeMap, BTreeSet};

use wire::{
    certificate::Attributes,
    id::{NodeId, NodeKeys},
    lsa::{LinkBody, NodeBody},
};

/// What a member says of itself, opened and checked.
#[derive(Clone, Debug)]
pub struct Member {
    pub keys: NodeKeys,
    /// Of its identity certificate.
    pub serial: u64,
    pub attributes: Attributes,
    pub body: NodeBody,
    /// Sequence of the NODE that said so.
    pub seq: u64,
}

/// An advertised adjacency.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    pub to: NodeId,
    pub cost_us: u32,
    pub server: bool,
}

/// All that routing knows.
#[derive(Clone, Debug, Default)]
pub struct Topology {
    members: BTreeMap<NodeId, Member>,
    edges: BTreeMap<NodeId, Vec<Edge>>,
    attached: BTreeMap<NodeId, BTreeSet<NodeId>>,
}

impl Topology {
    pub fn set_member(&mut self, node: NodeId, member: Member) {
        self.members.insert(node, member);
    }

    pub fn remove_member(&mut self, node: NodeId) -> Option<Member> {
        self.edges.remove(&node);
        self.members.remove(&node)
    }

    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.members.get(&node)
    }

    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members.iter().map(|(node, member)| (*node, member))
    }

    pub fn set_links(&mut self, node: NodeId, body: &LinkBody) {
        let edges = body
            .neighbours
            .iter()
            .filter_map(|neighbour| {
                Some(Edge {
                    to: NodeId::from_slice(&neighbour.node)?,
                    cost_us: neighbour.cost_us,
                    server: neighbour.server,
                })
            })
            .collect();
        self.edges.insert(node, edges);
    }

    pub fn remove_links(&mut self, node: NodeId) {
        self.edges.remove(&node);
    }

    pub fn edges(&self, node: NodeId) -> &[Edge] {
        self.edges.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Who is attached to `server`, whole.
    pub fn set_attached(&mut self, server: NodeId, nodes: BTreeSet<NodeId>) {
        self.attached.insert(server, nodes);
    }

    pub fn remove_server(&mut self, server: NodeId) {
        self.attached.remove(&server);
    }

    pub fn is_attached(&self, server: NodeId, node: NodeId) -> bool {
        self.attached.get(&server).is_some_and(|nodes| nodes.contains(&node))
    }

    pub fn attached(&self, server: NodeId) -> impl Iterator<Item = NodeId> {
        self.attached.get(&server).into_iter().flatten().copied()
    }

    /// The cost that `from` advertises of its link with `to`.
    pub fn cost(&self, from: NodeId, to: NodeId) -> Option<u32> {
        self.edges(from).iter().find(|edge| edge.to == to).map(|edge| edge.cost_us)
    }
}
