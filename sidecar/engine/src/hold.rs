//! Packets that wait for a session.

use std::collections::{BTreeMap, VecDeque};

use wire::id::NodeId;

/// Packets held per peer: the first segments of a connection, not a transfer.
const PER_PEER: usize = 8;
/// Bytes held in all, so that a scan of the overlay cannot fill the memory.
pub const TOTAL_BYTES: usize = 64 * 1024;

/// Holds the latest few packets of every peer that has no session yet.
#[derive(Clone, Debug, Default)]
pub struct Hold {
    peers: BTreeMap<NodeId, VecDeque<Vec<u8>>>,
    /// Peers in the order in which their oldest packet came; entries may be stale.
    order: VecDeque<NodeId>,
    bytes: usize,
    dropped: u64,
}

impl Hold {
    /// Holds a copy of `packet`, at the price of the oldest where a bound is reached.
    pub fn push(&mut self, peer: NodeId, packet: &[u8]) {
        if packet.len() > TOTAL_BYTES {
            self.dropped += 1;
            return;
        }
        let queue = self.peers.entry(peer).or_default();
        if queue.len() == PER_PEER {
            self.bytes -= queue.pop_front().map_or(0, |oldest| oldest.len());
            self.dropped += 1;
        } else {
            self.order.push_back(peer);
        }
        queue.push_back(packet.to_vec());
        self.bytes += packet.len();
        while self.bytes > TOTAL_BYTES {
            self.drop_oldest();
        }
    }

    /// Takes all packets of `peer`, oldest first.
    pub fn take(&mut self, peer: NodeId) -> VecDeque<Vec<u8>> {
        let packets = self.peers.remove(&peer).unwrap_or_default();
        self.bytes -= packets.iter().map(Vec::len).sum::<usize>();
        self.order.retain(|&waiting| waiting != peer);
        packets
    }

    pub fn has(&self, peer: NodeId) -> bool {
        self.peers.contains_key(&peer)
    }

    /// Packets held now.
    pub fn len(&self) -> usize {
        self.peers.values().map(VecDeque::len).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// Packets given up so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    fn drop_oldest(&mut self) {
        let Some(peer) = self.order.pop_front() else { return };
        let Some(queue) = self.peers.get_mut(&peer) else { return };
        if let Some(oldest) = queue.pop_front() {
            self.bytes -= oldest.len();
            self.dropped += 1;
        }
        if queue.is_empty() {
            self.peers.remove(&peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId([1; 16]);
    const B: NodeId = NodeId([2; 16]);

    #[test]
    fn a_peer_keeps_its_latest_eight_packets() {
        let mut hold = Hold::default();
        for number in 0..10 {
            hold.push(A, &[number]);
        }

        assert_eq!(hold.take(A), (2..10).map(|number| vec![number]).collect::<Vec<_>>());
        assert_eq!((hold.len(), hold.dropped()), (0, 2));
    }

    #[test]
    fn all_peers_together_hold_no_more_than_the_bound() {
        let mut hold = Hold::default();
        for _ in 0..4 {
            hold.push(A, &[0; 10_000]);
            hold.push(B, &[0; 10_000]);
        }

        assert_eq!(hold.len(), 6);
        assert_eq!(hold.take(A).len() + hold.take(B).len(), 6);
        assert!(hold.is_empty());
    }
}
