//! Who is attached to a public server, in clear: the server's list for one network, and a member's replica of it.
//!
//! Changes travel as deltas with a running number and a digest of the whole; a replica whose digest differs asks for the list.

use std::collections::BTreeSet;

use wire::{
    control::{Attach, AttachChange},
    id::NodeId,
};

/// Changes in one record: at 20 B each they fit a datagram.
const CHANGES_PER_RECORD: usize = 48;

/// The server's side.
#[derive(Clone, Debug, Default)]
pub struct Attached {
    nodes: BTreeSet<NodeId>,
    seq: u64,
    digest: u64,
}

impl Attached {
    /// Notes that a node came or went; the delta to tell the others, unless nothing changed.
    pub fn set(&mut self, node: NodeId, up: bool) -> Option<Attach> {
        let changed = if up { self.nodes.insert(node) } else { self.nodes.remove(&node) };
        if !changed {
            return None;
        }
        self.seq += 1;
        self.digest ^= hash(node);
        Some(Attach {
            changes: vec![AttachChange { node: node.0.to_vec(), up }],
            full: false,
            seq: self.seq,
            digest: self.digest,
            more: false,
        })
    }

    /// The whole list, in records that fit a datagram.
    pub fn full(&self) -> Vec<Attach> {
        let nodes: Vec<NodeId> = self.nodes.iter().copied().collect();
        let chunks = nodes.len().div_ceil(CHANGES_PER_RECORD).max(1);
        (0..chunks)
            .map(|index| Attach {
                changes: nodes
                    .iter()
                    .skip(index * CHANGES_PER_RECORD)
                    .take(CHANGES_PER_RECORD)
                    .map(|node| AttachChange { node: node.0.to_vec(), up: true })
                    .collect(),
                full: true,
                seq: self.seq,
                digest: self.digest,
                more: index + 1 < chunks,
            })
            .collect()
    }

    pub fn nodes(&self) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().copied()
    }

    pub fn contains(&self, node: NodeId) -> bool {
        self.nodes.contains(&node)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }
}

/// A member's copy.
#[derive(Clone, Debug, Default)]
pub struct Replica {
    nodes: BTreeSet<NodeId>,
    incoming: BTreeSet<NodeId>,
    seq: u64,
    digest: u64,
}

impl Replica {
    pub fn nodes(&self) -> &BTreeSet<NodeId> {
        &self.nodes
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn digest(&self) -> u64 {
        self.digest
    }

    /// Takes a record; true if the replica changed.
    pub fn apply(&mut self, record: &Attach) -> bool {
        let changes = record
            .changes
            .iter()
            .filter_map(|change| Some((NodeId::from_slice(&change.node)?, change.up)));
        if record.full {
            self.incoming.extend(changes.map(|(node, _)| node));
            if record.more {
                return false;
            }
            let nodes = std::mem::take(&mut self.incoming);
            self.seq = record.seq;
            self.digest = record.digest;
            let changed = nodes != self.nodes;
            self.nodes = nodes;
            return changed;
        }
        if record.seq <= self.seq {
            return false;
        }
        let mut changed = false;
        for (node, up) in changes {
            let moved = if up { self.nodes.insert(node) } else { self.nodes.remove(&node) };
            if moved {
                self.digest ^= hash(node);
                changed = true;
            }
        }
        self.seq = record.seq;
        changed
    }

    /// Whether the server's number and digest (of a delta or a hello) are the replica's.
    pub fn agrees(&self, seq: u64, digest: u64) -> bool {
        self.seq == seq && self.digest == digest
    }
}

fn hash(node: NodeId) -> u64 {
    let mut bytes = [0; 8];
    blake3::Hasher::new().update(b"easynet attach").update(&node.0).finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    #[test]
    fn deltas_keep_a_replica_and_a_missed_one_is_noticed() {
        let mut server = Attached::default();
        let mut replica = Replica::default();
        for number in 0..100 {
            server.set(node(number), true);
        }
        let full = server.full();
        assert_eq!(full.len(), 3);
        let changed: Vec<bool> = full.iter().map(|record| replica.apply(record)).collect();
        assert_eq!(changed, [false, false, true]);
        assert!(replica.agrees(server.seq(), server.digest()));

        assert!(replica.apply(&server.set(node(5), false).unwrap()));
        assert!(replica.agrees(server.seq(), server.digest()));
        assert_eq!(server.set(node(5), false), None);

        server.set(node(6), false);
        replica.apply(&server.set(node(7), false).unwrap());
        assert!(!replica.agrees(server.seq(), server.digest()));
        server.full().iter().for_each(|record| {
            replica.apply(record);
        });
        assert!(replica.agrees(server.seq(), server.digest()));
        assert!(replica.nodes().iter().copied().eq(server.nodes()));
    }
}
