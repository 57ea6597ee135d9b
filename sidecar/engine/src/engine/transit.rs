//! Links with the nearest members that carry for others.

use std::time::Instant;

use wire::{
    control::{Body, Hello},
    id::NodeId,
};

use super::Engine;
use crate::{
    peer::Kind,
    routing::nearest::{Candidate, Plan},
};

impl Engine {
    /// Looks whether the links with members that carry for others are those with the nearest, and mends them by a step.
    pub(super) fn tend_transit(&mut self, now: Instant) {
        if self.left {
            return;
        }
        let candidates = self.transit_candidates(now);
        let gone: Vec<NodeId> = self
            .peers
            .iter()
            .filter(|(node, peer)| peer.chosen && !candidates.iter().any(|one| one.node == **node))
            .map(|(node, _)| *node)
            .collect();
        for node in gone {
            self.unlink(node, "it carries for others no more", now);
        }
        let Plan { link, unlink } = self.nearest.plan(&candidates, now);
        for node in link {
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.chosen = true;
            }
            self.link_if_neighbour(node, now);
        }
        if let Some(node) = unlink {
            self.unlink(node, "others are nearer", now);
        }
    }

    fn transit_candidates(&self, now: Instant) -> Vec<Candidate> {
        let carries =
            |node: &NodeId| self.topology.member(*node).is_some_and(|member| member.transit);
        self.peers
            .iter()
            .filter(|(node, peer)| {
                peer.kind == Kind::Member && peer.sessions.sending().is_some() && carries(node)
            })
            .map(|(node, peer)| Candidate {
                node: *node,
                rtt: peer.agent.rtt().filter(|_| peer.agent.is_direct_and_fresh(now)),
                is_chosen: peer.chosen,
                is_up: self.links.get(node).is_some_and(|adjacency| adjacency.link.rtt().is_some()),
            })
            .collect()
    }

    /// Gives up a link that was chosen; it stays if the far end, or the configuration, wants it.
    fn unlink(&mut self, node: NodeId, why: &str, now: Instant) {
        let Some(peer) = self.peers.get_mut(&node) else { return };
        peer.chosen = false;
        if self.wants_link(node) || self.peers.get(&node).is_some_and(|peer| peer.linked_by_peer) {
            return;
        }
        self.say_goodbye(node, now);
        self.link_down(node, why, now);
    }

    /// Whether the link is kept for our own sake.
    pub(super) fn wants_link(&self, node: NodeId) -> bool {
        self.links.get(&node).is_some_and(|adjacency| adjacency.server)
            || self.peers.get(&node).is_some_and(|peer| peer.chosen || !peer.bootstrap.is_empty())
    }

    /// Tells a neighbour that the link is kept no more.
    pub(super) fn say_goodbye(&mut self, node: NodeId, now: Instant) {
        self.send_control(node, Body::Hello(Hello { follows: true, ..Hello::default() }), now);
    }

    /// The far end keeps the link only for us, or no more (a goodbye).
    pub(super) fn on_follower(&mut self, from: NodeId, is_goodbye: bool, now: Instant) {
        let is_named = self.peers.get(&from).is_some_and(|peer| !peer.bootstrap.is_empty());
        if self.wants_link(from) && (!is_goodbye || is_named) {
            return;
        }
        if is_goodbye && let Some(peer) = self.peers.get_mut(&from).filter(|peer| peer.chosen) {
            peer.chosen = false;
            self.nearest.declined(from, now);
        }
        match self.links.get(&from) {
            Some(adjacency) if !adjacency.server => {
                if !is_goodbye {
                    self.say_goodbye(from, now);
                }
                self.link_down(from, "neither end needs it", now);
            }
            Some(_) => {}
            None if !is_goodbye => self.say_goodbye(from, now),
            None => {}
        }
    }
}
