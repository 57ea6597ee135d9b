//! How far two clocks are apart, after one was read once.

use std::time::Instant;

/// A clock as it stood at a moment: the other side's as it said it, or our own. What passed since is known, so a look at any time says
/// how far that clock is from the one that is looked at, unless one of them was set meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// Unix seconds.
    stood: u64,
    at: Instant,
}

impl Clock {
    /// A clock that shows `unix` seconds now.
    pub fn new(unix: u64, now: Instant) -> Self {
        Self { stood: unix, at: now }
    }

    /// Seconds that it is ahead of a clock that shows `unix` now; negative is behind.
    pub fn ahead(&self, unix: u64, now: Instant) -> i64 {
        let passed = now.saturating_duration_since(self.at);
        let shows = self.stood.saturating_add(passed.as_secs());
        let apart = i64::try_from(shows.abs_diff(unix)).unwrap_or(i64::MAX);
        if shows >= unix { apart } else { -apart }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn clocks_that_both_run_stay_as_far_apart_as_they_were() {
        let now = Instant::now();
        let clock = Clock::new(1_000, now);

        for (passed, unix, ahead) in [
            (0, 1_000, 0),
            (0, 1_700, -700),
            (60, 1_060, 0),
            (60, 460, 600),
            (3_600, 4_600, 0),
            (0, u64::MAX, -i64::MAX),
        ] {
            assert_eq!(clock.ahead(unix, now + Duration::from_secs(passed)), ahead, "{unix}");
        }
    }
}
