//! What the network's root says: the key epoch in force, who is a member no more, what clusters claim.
//!
//! Records are the link state's: [`crate::routing::lsdb`] keeps and spreads them; here is what they mean. An epoch only
//! grows, and a revocation stays in force when its record expires, since a certificate outlives the record.

use std::collections::BTreeMap;

use prost::Message;
use wire::{
    id::NodeId,
    lsa::{ClusterBody, EpochBody, LsaType, RevokeBody},
};

/// Revocations remembered; beyond it those are forgotten whose certificates run out first.
const MOST_REVOKED: usize = 4096;
/// Clusters of one network.
const MOST_CLUSTERS: usize = 1024;

/// The root's word, as far as it came here.
#[derive(Clone, Debug, Default)]
pub struct Issued {
    epoch: Option<u32>,
    revoked: BTreeMap<NodeId, u64>,
    clusters: BTreeMap<u32, ClusterBody>,
}

/// What a record changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// This epoch is in force.
    Epoch(u32),
    /// Certificates of this node with a serial below that are good no more.
    Revoked(NodeId, u64),
    Clusters,
    Nothing,
}

impl Issued {
    /// Takes the body of a verified record: of CLUSTER as it was opened, of the others as it stands in clear.
    pub fn take(&mut self, kind: LsaType, id: u32, body: &[u8]) -> Change {
        match kind {
            LsaType::Epoch => {
                let Ok(body) = EpochBody::decode(body) else { return Change::Nothing };
                if self.epoch.is_some_and(|epoch| body.epoch <= epoch) {
                    return Change::Nothing;
                }
                self.epoch = Some(body.epoch);
                Change::Epoch(body.epoch)
            }
            LsaType::Revoke => {
                let Ok(body) = RevokeBody::decode(body) else { return Change::Nothing };
                let Some(node) = NodeId::from_slice(&body.node) else { return Change::Nothing };
                if self.revoked.get(&node).is_some_and(|below| body.below_serial <= *below) {
                    return Change::Nothing;
                }
                self.revoked.insert(node, body.below_serial);
                if self.revoked.len() > MOST_REVOKED
                    && let Some(oldest) =
                        self.revoked.iter().min_by_key(|(_, below)| **below).map(|(node, _)| *node)
                {
                    self.revoked.remove(&oldest);
                }
                Change::Revoked(node, body.below_serial)
            }
            LsaType::Cluster => {
                let Ok(body) = ClusterBody::decode(body) else { return Change::Nothing };
                let known = self.clusters.contains_key(&id);
                if self.clusters.get(&id) == Some(&body)
                    || (!known && self.clusters.len() >= MOST_CLUSTERS)
                {
                    return Change::Nothing;
                }
                self.clusters.insert(id, body);
                Change::Clusters
            }
            LsaType::Node | LsaType::Link => Change::Nothing,
        }
    }

    /// The record of a cluster expired.
    pub fn forget_cluster(&mut self, id: u32) {
        self.clusters.remove(&id);
    }

    /// The epoch of the highest EPOCH record.
    pub fn epoch(&self) -> Option<u32> {
        self.epoch
    }

    /// Whether a certificate of `node` with this serial was taken away.
    pub fn is_revoked(&self, node: NodeId, serial: u64) -> bool {
        self.revoked.get(&node).is_some_and(|below| serial < *below)
    }

    pub fn clusters(&self) -> impl Iterator<Item = &ClusterBody> {
        self.clusters.values()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId([7; 16]);

    fn epoch(issued: &mut Issued, epoch: u32) -> Change {
        issued.take(LsaType::Epoch, 0, &EpochBody { epoch }.encode_to_vec())
    }

    fn revoke(issued: &mut Issued, node: NodeId, below_serial: u64) -> Change {
        let body = RevokeBody { node: node.0.to_vec(), below_serial };
        issued.take(LsaType::Revoke, 1, &body.encode_to_vec())
    }

    #[test]
    fn the_highest_epoch_wins_in_whatever_order_they_come() {
        let mut issued = Issued::default();

        assert_eq!(epoch(&mut issued, 3), Change::Epoch(3));
        assert_eq!(epoch(&mut issued, 2), Change::Nothing);
        assert_eq!(epoch(&mut issued, 3), Change::Nothing);
        assert_eq!(epoch(&mut issued, 300), Change::Epoch(300));
        assert_eq!(issued.epoch(), Some(300));
    }

    #[test]
    fn a_revocation_hits_what_was_issued_before_it_alone() {
        let mut issued = Issued::default();

        assert_eq!(revoke(&mut issued, NODE, 100), Change::Revoked(NODE, 100));
        assert_eq!(revoke(&mut issued, NODE, 90), Change::Nothing);

        assert!(issued.is_revoked(NODE, 99));
        assert!(!issued.is_revoked(NODE, 100));
        assert!(!issued.is_revoked(NodeId([8; 16]), 1));
    }

    #[test]
    fn revocations_are_bounded_and_the_oldest_go_first() {
        let mut issued = Issued::default();
        let node = |n: u64| {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&n.to_le_bytes());
            NodeId(id)
        };
        for n in 0..MOST_REVOKED as u64 + 1 {
            revoke(&mut issued, node(n), 1000 + n);
        }

        assert_eq!(issued.revoked.len(), MOST_REVOKED);
        assert!(!issued.is_revoked(node(0), 1) && issued.is_revoked(node(1), 1));
    }

    #[test]
    fn what_does_not_decode_changes_nothing() {
        let mut issued = Issued::default();
        for kind in [LsaType::Epoch, LsaType::Revoke, LsaType::Cluster] {
            assert_eq!(issued.take(kind, 0, &[0xff; 9]), Change::Nothing);
        }
        assert_eq!(issued.take(LsaType::Revoke, 0, &[]), Change::Nothing);
    }
}
