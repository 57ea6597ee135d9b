//! What the network's root says, taken in: key epochs, revocations, claims of clusters.

use std::time::Instant;

use session::lsa;
use wire::{
    id::NodeId,
    lsa::{Container, LsaType},
};

use super::Engine;
use crate::{
    config::Config,
    drops::DropReason,
    event::{Notice, NoticeKind},
    routing::{issued::Change, lsdb::Freshness},
    snapshot,
};

impl Engine {
    /// Records of our own configuration: this node spreads them.
    pub(super) fn take_records(&mut self, now: Instant) {
        for bytes in self.config.records.clone() {
            let issued = Container::parse(bytes).filter(|container| {
                lsa::is_issued(container, self.config.membership.network)
                    && self.lsdb.freshness(&container.key(), container.head.seq) == Freshness::Newer
            });
            if let Some(container) = issued {
                self.on_issued(None, container, 0, now);
            }
        }
    }

    /// A record of the root that is newer than ours, from a neighbour or from our configuration.
    pub(super) fn on_issued(
        &mut self,
        from: Option<NodeId>,
        container: Container,
        age: u32,
        now: Instant,
    ) {
        if !lsa::verify(&container) {
            return self.drop_packet(DropReason::Forged);
        }
        if self.lsdb.insert(&container, age, now).is_err() {
            return self.drop_packet(DropReason::LsaRefused);
        }
        self.flood.stored(container.key(), from, now);
        self.read_issued(&container, now);
    }

    /// Acts on a stored record of the root; CLUSTER only once there is a key for it.
    pub(super) fn read_issued(&mut self, container: &Container, now: Instant) {
        let Some(kind) = LsaType::from_byte(container.head.kind) else { return };
        if container.head.lifetime == 0 {
            return self.on_lsa_gone(container.key(), now);
        }
        let change = if kind == LsaType::Cluster {
            let group = self.config.membership.group(container.head.gk_epoch);
            let Some(body) = group.and_then(|group| lsa::open(container, group)) else { return };
            self.issued.take(kind, container.head.id, &body)
        } else {
            self.issued.take(kind, container.head.id, container.clear())
        };
        match change {
            Change::Epoch(epoch) => self.on_epoch(epoch, now),
            Change::Revoked(node, below) => self.on_revoked(node, below, now),
            Change::Clusters | Change::Nothing => {}
        }
    }

    /// From now on this node seals with the newest keys that the epoch allows.
    fn on_epoch(&mut self, epoch: u32, now: Instant) {
        self.node_lsa.changed(now);
        self.link_lsa.changed(now);
        let newest = self.config.membership.newest();
        let message = if newest < epoch {
            format!("Key epoch {epoch} is in force; this node has keys up to {newest} so far")
        } else {
            format!("Key epoch {epoch} is in force")
        };
        self.notice(Notice::new(NoticeKind::KeyEpoch, None, message));
    }

    fn on_revoked(&mut self, node: NodeId, below: u64, now: Instant) {
        if node == self.me {
            let message = "This node was revoked: no other will speak to it";
            return self.notice(Notice::new(NoticeKind::Revoked, Some(node), message));
        }
        let serial = self.topology.member(node).map(|member| member.serial);
        let serial = serial.max(self.peers.get(&node).and_then(|peer| peer.serial));
        if serial.is_none_or(|serial| serial >= below) {
            return;
        }
        self.lsdb.forget(node);
        self.topology.remove_member(node);
        self.topology.remove_links(node);
        if self.links.contains_key(&node) {
            self.link_down(node, "it was revoked", now);
        }
        self.drop_peer(node, "it was revoked", now);
        let message = "The node was revoked: its sessions and routes are gone";
        self.notice(Notice::new(NoticeKind::Revoked, Some(node), message));
        self.throttle.request(now);
    }

    /// Our configuration may have another membership now: servers see the new certificate, and what came before we had its
    /// keys is read.
    pub(super) fn renew_membership(&mut self, before: &Config, now: Instant) {
        if before.membership.certificate != self.config.membership.certificate {
            let servers: Vec<NodeId> = self
                .links
                .iter()
                .filter(|(_, adjacency)| adjacency.server)
                .map(|(node, _)| *node)
                .collect();
            for server in servers {
                self.register(server, now);
            }
        }
        let had = &before.membership.epochs;
        let new: Vec<u32> = self
            .config
            .membership
            .epochs
            .keys()
            .filter(|epoch| !had.contains_key(epoch))
            .copied()
            .collect();
        if new.is_empty() {
            return;
        }
        self.node_lsa.changed(now);
        self.link_lsa.changed(now);
        let low: Vec<u8> = new.into_iter().map(session::membership::low_byte).collect();
        let stored: Vec<Container> = self
            .lsdb
            .containers()
            .filter(|container| low.contains(&container.head.gk_epoch))
            .collect();
        for container in stored {
            if container.key().signer == self.me || container.head.lifetime == 0 {
                continue;
            }
            if lsa::is_issued(&container, self.config.membership.network) {
                self.read_issued(&container, now);
            } else {
                self.read_lsa(&container, now);
            }
        }
    }

    pub(super) fn issued_snapshot(&self) -> snapshot::Issued {
        let membership = &self.config.membership;
        let (sealing, _) = membership.sealing(self.issued.epoch());
        let low = session::membership::low_byte(sealing);
        snapshot::Issued {
            epochs: membership.epochs.keys().copied().collect(),
            sealing,
            seen: self.issued.epoch(),
            members_on_epoch: self
                .topology
                .members()
                .filter(|(_, member)| member.gk_epoch == low)
                .count(),
            members: self.topology.members().count(),
            clusters: self.issued.clusters().cloned().collect(),
            certificate_ends: self.config.membership.certificate_ends(),
        }
    }
}
