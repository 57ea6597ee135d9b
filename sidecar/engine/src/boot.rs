//! The boot number in force, and when a running node may draw another.
//!
//! A number is drawn at every start, above all before it, and stands in each INIT. It may turn out too low while the node
//! runs: where a copy of its state directory that started later has been, its INITs are refused, as silently as every replay.
//! Then a higher one helps. Of two copies that live each shuts the other out so; the waits double, so that they take turns ever
//! more rarely.

use std::time::{Duration, Instant};

use session::freshness::{Clock, boot_counter};

/// Between a draw and the next.
const WAIT_FIRST: Duration = Duration::from_secs(10);
const WAIT_MOST: Duration = Duration::from_secs(300);
/// After this long without a draw the waits begin anew.
const CALM: Duration = Duration::from_secs(3600);

/// Numbers and values of one node.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    number: u32,
    clock: Clock,
    drawn: Option<Instant>,
    wait: Duration,
}

impl Boot {
    /// `number` is that of the start.
    pub fn new(number: u32) -> Self {
        Self { number, clock: Clock::new(number), drawn: None, wait: WAIT_FIRST }
    }

    /// The highest in use: to be kept across restarts.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// A freshness value for an INIT; never the same twice.
    pub fn freshness(&mut self) -> u64 {
        self.clock.tick()
    }

    /// Draws a number above ours and `above`, unless the last draw is too recent; true if it did.
    pub fn draw(&mut self, above: u32, unix: u64, now: Instant) -> bool {
        let since = self.drawn.map(|drawn| now.saturating_duration_since(drawn));
        if since.is_some_and(|since| since < self.wait) {
            return false;
        }
        self.wait = match since {
            Some(since) if since < CALM => (self.wait * 2).min(WAIT_MOST),
            Some(_) | None => WAIT_FIRST,
        };
        self.number = boot_counter(self.number.max(above), unix);
        self.clock = Clock::new(self.number);
        self.drawn = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_come_ever_more_rarely_until_it_was_calm() {
        let t0 = Instant::now();
        let mut boot = Boot::new(100);
        let mut drawn = Vec::new();
        for second in 0..1000 {
            if boot.draw(0, 0, t0 + Duration::from_secs(second)) {
                drawn.push(second);
            }
        }
        assert_eq!(drawn, [0, 10, 30, 70, 150, 310, 610, 910]);
        assert_eq!(boot.number(), 108);

        assert!(boot.draw(0, 0, t0 + Duration::from_secs(910) + CALM));
        assert!(boot.draw(0, 0, t0 + Duration::from_secs(920) + CALM));
    }

    #[test]
    fn a_number_is_above_what_was_shown_and_above_the_clock() {
        let t0 = Instant::now();
        let mut boot = Boot::new(100);
        let before = boot.freshness();

        assert!(boot.draw(150, 120, t0));
        assert_eq!((boot.number(), boot.freshness() >> 32), (151, 151));
        assert!(boot.freshness() > before);

        assert!(boot.draw(0, 400, t0 + WAIT_FIRST));
        assert_eq!(boot.number(), 400);
    }
}
