//! Freshness of initiations: a value that grows, so that a recorded INIT is worth nothing.

use std::collections::{BTreeMap, VecDeque};

use wire::id::DhKey;

/// Peers remembered; the one longest unheard of is forgotten first.
const MOST_PEERS: usize = 65_536;

/// Our own values: the boot counter in the high 32 bits, a counter below.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    next: u64,
}

impl Clock {
    /// `boot` must be higher than at any earlier start: see [`boot_counter`].
    pub fn new(boot: u32) -> Self {
        Self { next: u64::from(boot) << 32 }
    }

    /// The next value; never the same twice.
    pub fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

/// The boot counter of a start: above the stored one, and above the clock, so that losing the state directory does
/// not lock the node out.
pub fn boot_counter(stored: u32, unix_now: u64) -> u32 {
    stored.saturating_add(1).max(u32::try_from(unix_now).unwrap_or(u32::MAX))
}

/// The highest value that each peer has shown.
#[derive(Clone, Debug, Default)]
pub struct Highest {
    peers: BTreeMap<DhKey, u64>,
    order: VecDeque<DhKey>,
}

impl Highest {
    /// True if `value` is above all that `peer` has shown; it is remembered then.
    pub fn accept(&mut self, peer: DhKey, value: u64) -> bool {
        match self.peers.get_mut(&peer) {
            Some(highest) if value <= *highest => return false,
            Some(highest) => *highest = value,
            None => {
                if self.order.len() >= MOST_PEERS {
                    self.order.pop_front().map(|oldest| self.peers.remove(&oldest));
                }
                self.order.push_back(peer);
                self.peers.insert(peer, value);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_only_grow() {
        let mut clock = Clock::new(7);
        let mut highest = Highest::default();
        let (first, second) = (clock.tick(), clock.tick());

        assert_eq!(first >> 32, 7);
        assert!(highest.accept(DhKey([1; 32]), second));
        assert!(!highest.accept(DhKey([1; 32]), second));
        assert!(!highest.accept(DhKey([1; 32]), first));
        assert!(highest.accept(DhKey([2; 32]), first));
        assert!(highest.accept(DhKey([1; 32]), Clock::new(8).tick()));
    }

    #[test]
    fn the_boot_counter_grows_with_and_without_state() {
        assert_eq!(boot_counter(0, 1_800_000_000), 1_800_000_000);
        assert_eq!(boot_counter(1_900_000_000, 1_800_000_000), 1_900_000_001);
    }
}
