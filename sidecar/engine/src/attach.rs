//! Who is attached to a public server, in clear: the server's list for one network, and a member's replica of it.
//!
//! Changes travel as deltas with a running number and a digest of the whole; a replica whose digest differs asks for the list.

use std::{collections::BTreeSet, sync::Arc};

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
    /// Changes that nobody was told yet, each with number and digest after it.
    pending: Vec<(AttachChange, u64, u64)>,
    /// Number and digest that everybody was told.
    told: (u64, u64),
}

impl Attached {
    /// Notes that a node came or went; true if that is a change, which [`Attached::take_deltas`] will tell.
    pub fn set(&mut self, node: NodeId, up: bool) -> bool {
        let changed = if up { self.nodes.insert(node) } else { self.nodes.remove(&node) };
        if changed {
            self.seq += 1;
            self.digest ^= hash(node);
            let change = AttachChange { node: node.0.to_vec(), up };
            self.pending.push((change, self.seq, self.digest));
        }
        changed
    }

    /// What changed since it was last asked for, in records that fit a datagram.
    pub fn take_deltas(&mut self) -> Vec<Attach> {
        let pending = std::mem::take(&mut self.pending);
        self.told = (self.seq, self.digest);
        let records = pending.chunks(CHANGES_PER_RECORD).map(|changes| {
            let (seq, digest) = changes.last().map_or((0, 0), |(_, seq, digest)| (*seq, *digest));
            let changes = changes.iter().map(|(change, ..)| change.clone()).collect();
            Attach { changes, full: false, seq, digest, more: false }
        });
        records.collect()
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

    /// Number and digest of what everybody was told: those of a hello.
    pub fn told(&self) -> (u64, u64) {
        self.told
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
    /// In order; routing looks at the same list.
    nodes: Arc<Vec<NodeId>>,
    incoming: Incoming,
    seq: u64,
    digest: u64,
    /// The server as it runs now has said so; another one may count from the beginning.
    vouched: bool,
}

/// A whole list, as far as its records have come.
#[derive(Clone, Debug, Default)]
struct Incoming {
    /// Number and digest of the list: a record of another one begins anew.
    state: (u64, u64),
    nodes: BTreeSet<NodeId>,
    digest: u64,
}

impl Replica {
    pub fn nodes(&self) -> &Arc<Vec<NodeId>> {
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
        if record.full {
            return self.collect(record);
        }
        if record.seq <= self.seq {
            return false;
        }
        let mut changed = false;
        let nodes = Arc::make_mut(&mut self.nodes);
        for (node, up) in changes(record) {
            match nodes.binary_search(&node) {
                Err(at) if up => nodes.insert(at, node),
                Ok(at) if !up => drop(nodes.remove(at)),
                Ok(_) | Err(_) => continue,
            }
            self.digest ^= hash(node);
            changed = true;
        }
        self.seq = record.seq;
        changed
    }

    /// Takes a record of a whole list, which may be lost or overtake another; true if the list is complete and another one
    /// than ours.
    fn collect(&mut self, record: &Attach) -> bool {
        let state = (record.seq, record.digest);
        if self.incoming.state != state {
            self.incoming = Incoming { state, ..Incoming::default() };
        }
        for (node, _) in changes(record) {
            if self.incoming.nodes.insert(node) {
                self.incoming.digest ^= hash(node);
            }
        }
        if self.incoming.digest != record.digest {
            return false;
        }
        (self.seq, self.digest, self.vouched) = (record.seq, record.digest, true);
        let nodes: Vec<NodeId> = std::mem::take(&mut self.incoming).nodes.into_iter().collect();
        let changed = nodes != *self.nodes;
        self.nodes = Arc::new(nodes);
        changed
    }

    /// A session with the server is new: it may have lost its memory, and its numbers with it.
    pub fn doubt(&mut self) {
        self.vouched = false;
    }

    /// Whether a record that was applied left nothing open: one that was overtaken by a later state says nothing.
    pub fn is_satisfied(&self, record: &Attach) -> bool {
        record.more
            || (!record.full && record.seq < self.seq)
            || self.holds(record.seq, record.digest)
    }

    /// Whether the replica is at least what a hello says.
    pub fn is_current(&mut self, seq: u64, digest: u64) -> bool {
        self.vouched |= self.holds(seq, digest);
        self.vouched && (seq < self.seq || self.holds(seq, digest))
    }

    fn holds(&self, seq: u64, digest: u64) -> bool {
        self.seq == seq && self.digest == digest
    }
}

fn changes(record: &Attach) -> impl Iterator<Item = (NodeId, bool)> {
    let changes = record.changes.iter();
    changes.filter_map(|change| Some((NodeId::from_slice(&change.node)?, change.up)))
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
        assert!(replica.holds(server.seq(), server.digest()));

        assert_eq!(server.take_deltas().len(), 3);

        assert!(server.set(node(5), false));
        assert!(!server.set(node(5), false));
        let [delta] = &server.take_deltas()[..] else { panic!("not one") };
        assert!(replica.apply(delta) && replica.is_satisfied(delta));
        assert!(replica.holds(server.seq(), server.digest()));
        assert!(server.take_deltas().is_empty());

        server.set(node(6), false);
        assert!(replica.is_current(server.told().0, server.told().1));
        let _lost = server.take_deltas();
        assert!(!replica.is_current(server.told().0, server.told().1));
        server.set(node(7), false);
        let [delta] = &server.take_deltas()[..] else { panic!("not one") };
        replica.apply(delta);
        assert!(!replica.is_satisfied(delta));
        server.full().iter().for_each(|record| {
            replica.apply(record);
        });
        assert!(replica.holds(server.seq(), server.digest()));
        assert!(replica.nodes().iter().copied().eq(server.nodes()));
    }

    #[test]
    fn many_changes_travel_together_and_one_that_comes_late_is_no_disagreement() {
        let mut server = Attached::default();
        let mut replica = Replica::default();
        (0..60).for_each(|number| assert!(server.set(node(number), true)));

        let deltas = server.take_deltas();
        assert_eq!(deltas.iter().map(|delta| delta.changes.len()).collect::<Vec<_>>(), [48, 12]);
        deltas
            .iter()
            .for_each(|delta| assert!(replica.apply(delta) && replica.is_satisfied(delta)));

        assert!(!replica.apply(&deltas[0]) && replica.is_satisfied(&deltas[0]));
        assert!(replica.holds(server.seq(), server.digest()));
    }

    #[test]
    fn a_list_of_which_a_record_was_lost_is_not_taken_for_whole_and_leaves_nothing_in_the_next() {
        let mut server = Attached::default();
        let mut replica = Replica::default();
        (0..60).for_each(|number| assert!(server.set(node(number), true)));
        let [first, last] = &server.full()[..] else { panic!("not two") };

        assert!(!replica.apply(last) && !replica.is_satisfied(last));
        assert!(replica.nodes().is_empty());
        assert!(replica.apply(first) && replica.is_satisfied(first), "in whatever order");
        assert_eq!(replica.nodes().len(), 60);

        replica.apply(first);
        server.set(node(7), false);
        server.full().iter().for_each(|record| {
            replica.apply(record);
        });
        assert!(replica.nodes().iter().copied().eq(server.nodes()));
    }

    #[test]
    fn a_server_that_counts_from_the_beginning_is_asked_for_its_list() {
        let mut before = Attached::default();
        let mut replica = Replica::default();
        (0..9).for_each(|number| assert!(before.set(node(number), true)));
        before.full().iter().for_each(|record| {
            replica.apply(record);
        });
        let mut after = Attached::default();
        after.set(node(1), true);
        after.take_deltas();

        replica.doubt();

        assert!(!replica.is_current(after.told().0, after.told().1));
        replica.apply(&after.full()[0]);
        assert!(replica.is_current(after.told().0, after.told().1));
        assert_eq!(replica.nodes().len(), 1);
    }
}
