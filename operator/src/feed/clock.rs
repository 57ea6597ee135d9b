//! Whose clock is wrong.
//!
//! A member says what its clock shows when it enrols and with every status; in between both clocks run alike. What a look finds was set
//! on this machine, or said anew.

use std::time::Instant;

use session::feed::Clock;

/// Clocks may differ by this much, as `easynet doctor` has it too. At ten minutes certificates are not taken any more.
const TOLERANCE_S: u64 = 60;
/// Who was told of is right again below this: clocks are compared by whole seconds, and one at the bound must not come and go.
const RIGHT_S: u64 = 45;
/// What is told is told again when it is so far off.
const SHIFT_S: u64 = 30;

/// The clock of one member.
#[derive(Clone, Copy, Debug)]
pub struct Watched {
    clock: Clock,
    told: i64,
}

impl Watched {
    /// `said` is what the member's clock shows now, in unix seconds; members of an earlier version say 0.
    pub fn new(said: u64, now: Instant) -> Option<Self> {
        (said != 0).then(|| Self { clock: Clock::new(said, now), told: 0 })
    }

    /// The member's clock shows `said` now.
    pub fn said(&mut self, said: u64, now: Instant) {
        self.clock = Clock::new(said, now);
    }

    /// Seconds that the member's clock is ahead of this one, which shows `unix`, if that is news; 0 is not worth a word.
    pub fn look(&mut self, unix: u64, now: Instant) -> Option<i64> {
        let most = if self.told == 0 { TOLERANCE_S } else { RIGHT_S };
        let ahead = Some(self.clock.ahead(unix, now));
        let ahead = ahead.filter(|ahead| ahead.unsigned_abs() > most).unwrap_or(0);
        let is_news = (ahead == 0) != (self.told == 0) || ahead.abs_diff(self.told) > SHIFT_S;
        is_news.then(|| {
            self.told = ahead;
            ahead
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_clock_is_told_of_once_it_is_off_and_once_it_is_not() {
        let began = Instant::now();
        let mut clock = Watched::new(NOW - 3600, began).unwrap();
        let mut told = Vec::new();
        // What passed, and what this machine's clock shows then.
        for (passed, unix) in [
            (0, NOW),
            (1, NOW + 1),
            (2, NOW + 3),
            // This machine is set, first a little.
            (10, NOW + 10 - 20),
            (20, NOW + 20 - 120),
            (30, NOW + 30 - 3600),
            (40, NOW + 40 - 3570),
            (50, NOW + 50 - 3700),
        ] {
            told.extend(clock.look(unix, began + Duration::from_secs(passed)));
        }

        assert_eq!(told, [-3600, -3480, 0, 100]);
    }

    #[test]
    fn a_clock_at_the_bound_does_not_come_and_go() {
        let began = Instant::now();
        let mut clock = Watched::new(NOW + 60, began).unwrap();
        // Sub-second phases make it look 60 and 61 s ahead in turns, whole seconds further on.
        let told: Vec<i64> = (0..40)
            .filter_map(|look| {
                let unix = NOW + look * 15 / 10 - look % 2;
                clock.look(unix, began + Duration::from_millis(look * 1_500))
            })
            .collect();

        assert_eq!(told, [61]);
    }

    #[test]
    fn a_clock_that_was_slewed_is_right_once_it_says_so() {
        let began = Instant::now();
        let mut clock = Watched::new(NOW + 90, began).unwrap();
        assert_eq!(clock.look(NOW, began), Some(90));

        let later = began + Duration::from_secs(600);
        clock.said(NOW + 601, later);
        assert_eq!(clock.look(NOW + 600, later), Some(0));
    }

    #[test]
    fn a_clock_that_is_right_is_no_news_and_one_that_is_not_said_is_not_judged() {
        let now = Instant::now();

        for off in [-60, -1, 0, 60_i64] {
            let mut clock = Watched::new(NOW.saturating_add_signed(off), now).unwrap();
            assert_eq!(clock.look(NOW, now), None, "{off}");
        }
        assert!(Watched::new(0, now).is_none());
    }
}
