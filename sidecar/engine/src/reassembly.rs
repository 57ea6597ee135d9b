//! Puts pieces together, within bounds; and reads a clock from its stamps.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wire::control::Chunk;

/// Records in pieces at once, per peer; the one begun first is given up for another.
const MAX_PARTIAL: usize = 4;
/// Pieces of one record.
const MAX_PIECES: u32 = 64;
/// Longest IP packet that comes in fragments: what the smallest MTU of IPv6 needs, and some.
const PACKET_MOST: usize = 2048;

/// Records of one peer that came in pieces.
#[derive(Debug, Default)]
pub(crate) struct Reassembly {
    partial: BTreeMap<u64, Partial>,
    begun: u64,
}

#[derive(Debug)]
struct Partial {
    order: u64,
    count: u32,
    bytes: usize,
    pieces: BTreeMap<u32, Vec<u8>>,
}

impl Reassembly {
    /// Takes a piece; the whole, once all are there.
    pub(crate) fn take(&mut self, chunk: Chunk, most: usize) -> Option<Vec<u8>> {
        if chunk.count == 0
            || chunk.count > MAX_PIECES
            || chunk.index >= chunk.count
            || chunk.bytes.len() > most
        {
            return None;
        }
        if !self.partial.contains_key(&chunk.id) && self.partial.len() >= MAX_PARTIAL {
            let oldest =
                self.partial.iter().min_by_key(|(_, partial)| partial.order).map(|(id, _)| *id)?;
            self.partial.remove(&oldest);
        }
        self.begun += 1;
        let partial = self.partial.entry(chunk.id).or_insert(Partial {
            order: self.begun,
            count: chunk.count,
            bytes: 0,
            pieces: BTreeMap::new(),
        });
        partial.bytes += chunk.bytes.len();
        if partial.count != chunk.count || partial.bytes > most {
            self.partial.remove(&chunk.id);
            return None;
        }
        partial.pieces.insert(chunk.index, chunk.bytes);
        if partial.pieces.len() < chunk.count as usize {
            return None;
        }
        let whole = self.partial.remove(&chunk.id)?;
        Some(whole.pieces.into_values().flatten().collect())
    }

    /// Takes a fragment record: `id u16 │ index u8 │ count u8 │ bytes`.
    pub(crate) fn take_piece(&mut self, piece: &[u8]) -> Option<Vec<u8>> {
        let (&[low, high, index, count], bytes) = piece.split_first_chunk::<4>()?;
        let id = u64::from(u16::from_le_bytes([low, high]));
        self.take(
            Chunk { id, index: index.into(), count: count.into(), bytes: bytes.to_vec() },
            PACKET_MOST,
        )
    }
}

/// A peer's clock, as its probes under one session show it. It runs for as long as the session lives: a peer that
/// restarts begins another session, and another clock.
#[derive(Debug, Default)]
pub(crate) struct RemoteClock {
    latest: Option<(Duration, Instant)>,
}

impl RemoteClock {
    /// Whether a stamp is no older than `window`, by the youngest seen so far; a younger one is remembered.
    pub(crate) fn is_recent(&mut self, stamp: Duration, window: Duration, now: Instant) -> bool {
        if let Some((latest, seen)) = self.latest {
            let theirs_now = latest + now.saturating_duration_since(seen);
            if stamp.saturating_add(window) < theirs_now {
                return false;
            }
            if stamp <= latest {
                return true;
            }
        }
        self.latest = Some((stamp, now));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(id: u64, index: u32, count: u32) -> Chunk {
        Chunk { id, index, count, bytes: vec![index as u8; 10] }
    }

    #[test]
    fn pieces_come_in_any_order_and_partial_ones_are_few() {
        let mut reassembly = Reassembly::default();
        for id in 100..120 {
            assert_eq!(reassembly.take(chunk(id, 0, 3), 100), None);
        }
        assert_eq!(reassembly.partial.len(), MAX_PARTIAL);

        assert_eq!(reassembly.take(chunk(1, 2, 3), 100), None);
        assert_eq!(reassembly.take(chunk(1, 0, 3), 100), None);
        let whole = reassembly.take(chunk(1, 1, 3), 100).unwrap();
        assert_eq!((whole.len(), whole[0], whole[10], whole[29]), (30, 0, 1, 2));
        assert_eq!(reassembly.take(chunk(2, 0, 65), 100), None);
        assert_eq!(reassembly.take(chunk(2, 3, 3), 100), None);
    }

    #[test]
    fn an_old_stamp_is_told_from_a_late_one() {
        let t0 = Instant::now();
        let window = Duration::from_secs(30);
        let mut clock = RemoteClock::default();
        assert!(clock.is_recent(Duration::from_secs(100), window, t0));
        assert!(clock.is_recent(Duration::from_secs(99), window, t0));
        assert!(!clock.is_recent(Duration::from_secs(69), window, t0));
        assert!(!clock.is_recent(Duration::from_secs(100), window, t0 + Duration::from_secs(31)));
        assert!(!clock.is_recent(Duration::from_secs(5), window, t0), "nor is a very old one");
        assert!(!clock.is_recent(Duration::ZERO, window, t0));
    }
}
