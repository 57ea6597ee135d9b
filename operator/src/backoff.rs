//! How long to wait before something that failed is tried again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(60);

/// Doubles with every failure, and differs between those that failed together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backoff {
    failures: u32,
    state: u64,
}

impl Backoff {
    /// `salt` tells apart what fails at the same time.
    pub fn new(salt: u64) -> Self {
        Self { failures: 0, state: salt }
    }

    /// Counts a failure; the pause is between half and all of the doubled one.
    pub fn failed(&mut self) -> Duration {
        let whole = FIRST.saturating_mul(1 << self.failures.min(8)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z ^= z >> 27;
        let share = f64::from(u32::try_from(z >> 40).unwrap_or(0)) / f64::from(1_u32 << 24);
        whole.mul_f64(0.5 + share / 2.0)
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub fn failures(self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_minute_and_start_anew_after_a_success() {
        let mut backoff = Backoff::new(7);
        let pauses: Vec<Duration> = (0..12).map(|_| backoff.failed()).collect();
        backoff.succeeded();

        for (index, pause) in pauses.iter().enumerate() {
            let whole = (500_u64 << index.min(8)).min(60_000);
            let (low, high) = (Duration::from_millis(whole / 2), Duration::from_millis(whole));
            assert!((low..=high).contains(pause), "{index}: {pause:?}");
        }
        assert!(backoff.failed() <= FIRST);
    }

    #[test]
    fn what_fails_together_is_not_tried_together() {
        let (mut a, mut b) = (Backoff::new(1), Backoff::new(2));

        assert_ne!(a.failed(), b.failed());
    }
}
