//! The graph as members see it: what the LSAs say, and who is attached to which public server.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use session::certificate::allows;
use wire::{
    certificate::{Attributes, Prefix},
    id::{NodeId, NodeKeys},
    lsa::{LinkBody, NodeBody},
};

use crate::snapshot::RouteSource;

/// Prefixes that one node may announce; more are not looked at.
pub const MAX_PREFIXES: usize = 256;

/// What a member says of itself, opened and checked.
#[derive(Clone, Debug)]
pub struct Member {
    pub keys: NodeKeys,
    /// Of its identity certificate.
    pub serial: u64,
    /// Without what nobody asks for any more once it was read: there are thousands of members.
    pub body: NodeBody,
    /// Everything that it announces.
    pub announced: Box<[Announced]>,
    /// Sequence of the NODE that said so.
    pub seq: u64,
}

/// A prefix that a member announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    pub prefix: IpNet,
    pub source: RouteSource,
    /// Unix seconds of a claim, else 0.
    pub since: u64,
    /// The member's attributes allow it the prefix.
    pub allowed: bool,
}

impl Member {
    /// A member that says `body`, with the attributes that were found in it.
    pub fn new(
        keys: NodeKeys,
        serial: u64,
        attributes: &Attributes,
        body: NodeBody,
        seq: u64,
    ) -> Self {
        let announced = announced(attributes, &body);
        let body = NodeBody {
            attributes: None,
            candidates: Vec::new(),
            profile: None,
            homes: Vec::new(),
            os: String::new(),
            arch: String::new(),
            ..body
        };
        Self { keys, serial, body, announced, seq }
    }
}

fn announced(attributes: &Attributes, body: &NodeBody) -> Box<[Announced]> {
    let fixed = body.addresses.iter().map(|prefix| (prefix, RouteSource::Lsa, 0));
    let claims = body.claims.iter().filter_map(|claim| {
        let prefix = claim.prefix.as_ref()?;
        Some((prefix, RouteSource::Claim, claim.since))
    });
    let exports = body.exports.iter().map(|prefix| (prefix, RouteSource::Lsa, 0));
    let all = fixed.chain(claims).chain(exports).take(MAX_PREFIXES);
    let announced = all.filter_map(|(prefix, source, since)| {
        let (address, length) = Prefix::parse(prefix)?;
        let net = IpNet::new(address, length).ok()?.trunc();
        let allowed = allows(attributes, prefix);
        Some(Announced { prefix: net, source, since, allowed })
    });
    announced.collect()
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

    pub fn attached(&self, server: NodeId) -> impl Iterator<Item = NodeId> {
        self.attached.get(&server).into_iter().flatten().copied()
    }

    /// The members that are attached to `server`, in their order, each with the cost that it advertises of its link there.
    pub fn members_at(&self, server: NodeId) -> impl Iterator<Item = (NodeId, Option<u32>)> {
        // All three have the order of nodes: one walk through each instead of searches for each of thousands.
        let mut members = self.members.keys().peekable();
        let mut edges = self.edges.iter().peekable();
        self.attached(server).filter_map(move |node| {
            while members.next_if(|member| **member < node).is_some() {}
            members.next_if(|member| **member == node)?;
            while edges.next_if(|(from, _)| **from < node).is_some() {}
            let own = edges.next_if(|(from, _)| **from == node).into_iter();
            let there = own.flat_map(|(_, edges)| edges).find(|edge| edge.to == server);
            Some((node, there.map(|edge| edge.cost_us)))
        })
    }
}
