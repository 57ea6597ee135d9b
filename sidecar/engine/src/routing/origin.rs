//! When a node speaks: sequence numbers, throttling, refreshing, and small changes that are not worth a word.

use std::time::{Duration, Instant};

/// Waits between originations of the same LSA while it keeps changing.
const THROTTLE: [Duration; 4] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
];
/// After this long without change the throttle starts over.
const QUIET: Duration = Duration::from_secs(10);
/// Refreshing is only the back-stop; anti-entropy does the work.
const REFRESH_SMALL: Duration = Duration::from_secs(30 * 60);
const REFRESH_LARGE: Duration = Duration::from_secs(6 * 3600);
const LARGE_NETWORK: usize = 1000;
/// A cost is advertised anew if it moved by both of these and stayed there.
const MOVED: u32 = 5_000;
const MOVED_PERCENT: u32 = 20;
const STAYED: Duration = Duration::from_secs(10);

/// One LSA of ours.
#[derive(Clone, Debug)]
pub struct Origin {
    seq: u64,
    due: Option<Instant>,
    step: usize,
    last: Option<Instant>,
}

impl Origin {
    /// `boot` grows with every start, so that no sequence number is used twice.
    pub fn new(boot: u32) -> Self {
        Self { seq: u64::from(boot) << 32, due: None, step: 0, last: None }
    }

    /// The content changed.
    pub fn changed(&mut self, now: Instant) {
        let quiet = self.last.is_none_or(|last| now.saturating_duration_since(last) >= QUIET);
        if quiet {
            self.step = 0;
        }
        let wait = THROTTLE.get(self.step).copied().unwrap_or(QUIET / 2);
        let due = now + wait;
        if self.due.is_none_or(|set| due < set) {
            self.due = Some(due);
        }
    }

    /// Somebody holds an LSA of ours with a sequence number that we may not have given: speak above it. True if a second node
    /// lives with our keys: the number is of this very start of ours, or the LSA is younger than this start.
    pub fn surpassed(&mut self, seq: u64, is_younger: bool, now: Instant) -> bool {
        if seq <= self.seq {
            return false;
        }
        let twin = is_younger || (seq >> 32 == self.seq >> 32 && self.last.is_some());
        self.seq = seq;
        self.changed(now);
        twin
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// The sequence number to speak with, if it is time.
    pub fn take(&mut self, network_size: usize, now: Instant) -> Option<u64> {
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        self.seq += 1;
        self.last = Some(now);
        self.step = (self.step + 1).min(THROTTLE.len() - 1);
        self.due =
            Some(now + if network_size < LARGE_NETWORK { REFRESH_SMALL } else { REFRESH_LARGE });
        Some(self.seq)
    }

    /// The sequence number to withdraw with, now.
    pub fn withdraw(&mut self) -> u64 {
        self.due = None;
        self.seq += 1;
        self.seq
    }

    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Seconds to put into the LSA: three refreshes.
    pub fn lifetime(network_size: usize) -> u32 {
        let refresh = if network_size < LARGE_NETWORK { REFRESH_SMALL } else { REFRESH_LARGE };
        u32::try_from(refresh.as_secs() * 3).unwrap_or(u32::MAX)
    }
}

/// A measured cost and the one that is advertised for it.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    advertised: u32,
    moved_since: Option<Instant>,
}

impl Cost {
    pub fn new(measured_us: u32) -> Self {
        Self { advertised: quantise(measured_us), moved_since: None }
    }

    pub fn advertised(&self) -> u32 {
        self.advertised
    }

    /// Takes a measurement; true if the advertised cost changed.
    pub fn measured(&mut self, cost_us: u32, now: Instant) -> bool {
        let distance = cost_us.abs_diff(self.advertised);
        if distance < MOVED.max(self.advertised / 100 * MOVED_PERCENT) {
            self.moved_since = None;
            return false;
        }
        let since = *self.moved_since.get_or_insert(now);
        if now.saturating_duration_since(since) < STAYED {
            return false;
        }
        *self = Self::new(cost_us);
        true
    }
}

/// Costs are told in steps of a millisecond, and never as nothing.
fn quantise(cost_us: u32) -> u32 {
    cost_us.div_ceil(1000).max(1) * 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changing_lsa_is_told_ever_more_rarely() {
        let mut now = Instant::now();
        let mut origin = Origin::new(7);
        let mut waits = Vec::new();
        for _ in 0..5 {
            origin.changed(now);
            let due = origin.poll_timeout().unwrap();
            waits.push((due - now).as_millis());
            now = due;
            assert!(origin.take(10, now).is_some());
            origin.due = None;
        }

        assert_eq!(waits, [50, 200, 1000, 5000, 5000]);
        assert_eq!(origin.seq(), (7 << 32) + 5);
    }

    #[test]
    fn a_twin_is_noticed_and_an_old_life_is_not_one() {
        let now = Instant::now();
        let mut origin = Origin::new(7);
        assert!(!origin.surpassed((6 << 32) + 9, false, now));
        origin.changed(now);
        origin.take(1, now + QUIET).unwrap();

        assert!(!origin.surpassed((6 << 32) + 10, false, now));
        assert!(origin.surpassed((7 << 32) + 44, false, now));
        assert_eq!(origin.take(1, now + QUIET), Some((7 << 32) + 45));

        assert!(!origin.surpassed((8 << 32) + 1, false, now), "an old life with a clock ahead");
        assert!(!origin.surpassed((8 << 32) + 1, true, now), "the same again");
        assert!(origin.surpassed((9 << 32) + 1, true, now), "one that began while we live");
    }

    #[test]
    fn a_cost_is_told_again_when_it_moved_and_stayed() {
        let t0 = Instant::now();
        let mut cost = Cost::new(20_300);
        assert_eq!(cost.advertised(), 21_000);

        assert!(!cost.measured(24_000, t0));
        assert!(!cost.measured(40_000, t0));
        assert!(!cost.measured(40_000, t0 + STAYED / 2));
        assert!(cost.measured(40_000, t0 + STAYED));
        assert_eq!(cost.advertised(), 40_000);
    }
}
