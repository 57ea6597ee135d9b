//! The graph as members see it: what the LSAs say, and who is attached to which public server.

use std::{collections::BTreeMap, ops::RangeInclusive, sync::Arc};

use ipnet::IpNet;
use session::certificate::allows;
use wire::{
    certificate::{Attributes, Prefix},
    id::{NodeId, NodeKeys},
    lsa::{Head, LinkBody, NodeBody},
};

use crate::snapshot::RouteSource;

/// Prefixes that one node may announce; more are not looked at.
pub const MAX_PREFIXES: usize = 256;

/// What a member says of itself, opened and checked; only what somebody asks for, since there are thousands of members.
#[derive(Clone, Debug)]
pub struct Member {
    pub keys: NodeKeys,
    /// Of its identity certificate.
    pub serial: u64,
    pub hostname: Box<str>,
    pub version: Box<str>,
    /// It carries other members' traffic.
    pub transit: bool,
    /// Everything that it announces.
    pub announced: Box<[Announced]>,
    /// What its mapped exports are on its host.
    pub behind: Box<[IpNet]>,
    /// Sequence of the NODE that said so.
    pub seq: u64,
    /// Low byte of the epoch of the group key that sealed it.
    pub gk_epoch: u8,
}

/// A prefix that a member announces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Announced {
    pub prefix: IpNet,
    pub what: Announcement,
    /// The member's attributes allow it the prefix.
    pub allowed: bool,
}

/// As what.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Announcement {
    /// An overlay address of its own that nobody has to agree to.
    Address,
    /// One that is its own as long as nobody has the better claim.
    Claim {
        /// Unix seconds.
        since: u64,
    },
    /// A subnet behind it.
    Export,
}

impl Announcement {
    pub fn source(self) -> RouteSource {
        match self {
            Self::Claim { .. } => RouteSource::Claim,
            Self::Address | Self::Export => RouteSource::Lsa,
        }
    }
}

impl Member {
    /// A member that says `body`, with the attributes that were found in it.
    pub fn new(
        keys: NodeKeys,
        serial: u64,
        attributes: &Attributes,
        body: NodeBody,
        head: &Head,
    ) -> Self {
        Self {
            keys,
            serial,
            announced: announced(attributes, &body),
            behind: body.behind.iter().take(MAX_PREFIXES).filter_map(network).collect(),
            hostname: body.hostname.into(),
            version: body.version.into(),
            transit: body.transit,
            seq: head.seq,
            gk_epoch: head.gk_epoch,
        }
    }

    /// Its overlay addresses, claimed ones with them.
    pub fn addresses(&self) -> impl Iterator<Item = &Announced> {
        self.announced.iter().filter(|announced| announced.what != Announcement::Export)
    }

    /// The subnets behind it.
    pub fn exports(&self) -> impl Iterator<Item = &Announced> {
        self.announced.iter().filter(|announced| announced.what == Announcement::Export)
    }
}

fn announced(attributes: &Attributes, body: &NodeBody) -> Box<[Announced]> {
    let fixed = body.addresses.iter().map(|prefix| (prefix, Announcement::Address));
    let claims = body.claims.iter().filter_map(|claim| {
        Some((claim.prefix.as_ref()?, Announcement::Claim { since: claim.since }))
    });
    let exports = body.exports.iter().map(|prefix| (prefix, Announcement::Export));
    let all = fixed.chain(claims).chain(exports).take(MAX_PREFIXES);
    let announced = all.filter_map(|(prefix, what)| {
        Some(Announced { prefix: network(prefix)?, what, allowed: allows(attributes, prefix) })
    });
    announced.collect()
}

fn network(prefix: &Prefix) -> Option<IpNet> {
    let (address, length) = prefix.parse()?;
    Some(IpNet::new(address, length).ok()?.trunc())
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
    nodes: BTreeMap<NodeId, Known>,
    /// In the order of nodes.
    attached: BTreeMap<NodeId, Arc<Vec<NodeId>>>,
}

/// What one node said: of itself, and of its links. Boxed, since a third of a tree's places is empty.
#[derive(Clone, Debug, Default)]
struct Known {
    member: Option<Box<Member>>,
    edges: Box<[Edge]>,
}

impl Topology {
    pub fn set_member(&mut self, node: NodeId, member: Member) {
        self.nodes.entry(node).or_default().member = Some(Box::new(member));
    }

    /// Forgets what a node said of itself; true if it had said something. What it said of its links stays as long as that is stored: a
    /// node that speaks again may have nothing new to say of them.
    pub fn remove_member(&mut self, node: NodeId) -> bool {
        let Some(known) = self.nodes.get_mut(&node) else { return false };
        let was_member = known.member.take().is_some();
        if known.edges.is_empty() {
            self.nodes.remove(&node);
        }
        was_member
    }

    pub fn member(&self, node: NodeId) -> Option<&Member> {
        self.nodes.get(&node)?.member.as_deref()
    }

    pub fn members(&self) -> impl Iterator<Item = (NodeId, &Member)> {
        self.members_in(NodeId([0; 16])..=NodeId([0xff; 16]))
    }

    /// Those among a range of ids.
    pub fn members_in(
        &self,
        ids: RangeInclusive<NodeId>,
    ) -> impl Iterator<Item = (NodeId, &Member)> {
        let nodes = self.nodes.range(ids);
        nodes.filter_map(|(node, known)| Some((*node, known.member.as_deref()?)))
    }

    pub fn set_links(&mut self, node: NodeId, body: &LinkBody) {
        let edges = body.neighbours.iter().filter_map(|neighbour| {
            Some(Edge {
                to: NodeId::from_slice(&neighbour.node)?,
                cost_us: neighbour.cost_us,
                server: neighbour.server,
            })
        });
        self.nodes.entry(node).or_default().edges = edges.collect();
    }

    pub fn remove_links(&mut self, node: NodeId) {
        let Some(known) = self.nodes.get_mut(&node) else { return };
        known.edges = Box::default();
        if known.member.is_none() {
            self.nodes.remove(&node);
        }
    }

    pub fn edges(&self, node: NodeId) -> &[Edge] {
        self.nodes.get(&node).map_or(&[], |known| &known.edges)
    }

    /// Who is attached to `server`, whole and in the order of nodes.
    pub fn set_attached(&mut self, server: NodeId, nodes: Arc<Vec<NodeId>>) {
        self.attached.insert(server, nodes);
    }

    pub fn remove_server(&mut self, server: NodeId) {
        self.attached.remove(&server);
    }

    pub fn attached(&self, server: NodeId) -> impl Iterator<Item = NodeId> {
        self.attached.get(&server).into_iter().flat_map(|nodes| nodes.iter().copied())
    }

    /// The members that are attached to `server`, in their order, each with the cost that it advertises of its link there.
    pub fn members_at(&self, server: NodeId) -> impl Iterator<Item = (NodeId, Option<u32>)> {
        // Both have the order of nodes: one walk through each instead of searches for each of thousands.
        let mut nodes = self.nodes.iter().peekable();
        self.attached(server).filter_map(move |node| {
            while nodes.next_if(|(known, _)| **known < node).is_some() {}
            let (_, known) = nodes.next_if(|(known, _)| **known == node)?;
            known.member.as_ref()?;
            let there = known.edges.iter().find(|edge| edge.to == server);
            Some((node, there.map(|edge| edge.cost_us)))
        })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use wire::{
        id::{DhKey, SignKey},
        lsa::Neighbour,
    };

    use super::*;

    /// Who says nothing but whether it carries.
    pub(crate) fn member(transit: bool) -> Member {
        Member {
            keys: NodeKeys { sign: SignKey([0; 32]), dh: DhKey([0; 32]) },
            serial: 1,
            hostname: "".into(),
            version: "".into(),
            transit,
            announced: [].into(),
            behind: [].into(),
            seq: 1,
            gk_epoch: 0,
        }
    }

    #[test]
    fn links_are_kept_while_their_node_is_not_known_and_nothing_is_when_both_are_gone() {
        let node = NodeId([1; 16]);
        let neighbour = Neighbour { node: vec![2; 16], cost_us: 7, server: false };
        let mut topology = Topology::default();
        topology.set_links(node, &LinkBody { neighbours: vec![neighbour] });
        assert!(topology.member(node).is_none() && topology.members().next().is_none());

        topology.set_member(node, member(false));
        assert!(topology.remove_member(node));
        assert!(!topology.remove_member(node));
        assert_eq!(topology.edges(node).len(), 1);
        topology.set_member(node, member(false));
        assert_eq!(topology.members().count(), 1);

        topology.remove_links(node);
        assert_eq!((topology.edges(node), topology.members().count()), (&[][..], 1));
        topology.remove_member(node);
        assert!(topology.nodes.is_empty());
    }
}
