//! When the next pass is.
//!
//! What is heard together is planned together, and passes are so far apart that planning takes little of the machine: a thousand
//! nodes that come up are a few passes. Somebody who edits an EasyNetwork waits for what comes of it, so that one is planned at once.

use std::time::{Duration, Instant};

/// What is heard together is planned together.
const DELAY: Duration = Duration::from_millis(20);
/// Passes are at least this far apart.
const PAUSE: Duration = Duration::from_millis(50);
/// And so much longer than the last one took that planning takes a fifth of a core at most.
const SHARE: u32 = 4;

/// News that make a pass due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Somebody changed what is wanted.
    Edit,
    Other,
}

/// Decides when the next pass is.
#[derive(Debug)]
pub struct Pace {
    due: Option<Instant>,
    /// Passes for edits.
    soonest: Instant,
    /// Passes for other news.
    earliest: Instant,
}

impl Pace {
    /// The first pass is due.
    pub fn new(now: Instant) -> Self {
        Self { due: Some(now), soonest: now, earliest: now }
    }

    pub fn heard(&mut self, news: News, now: Instant) {
        let at = match news {
            News::Edit => self.soonest,
            News::Other => self.earliest,
        };
        let at = at.max(now + DELAY);
        self.due = Some(self.due.map_or(at, |due| due.min(at)));
    }

    /// Somewhat later than `at`, if it may be no pass yet then.
    pub fn not_before(&self, at: Instant) -> Instant {
        at.max(self.earliest)
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }

    /// Whether a pass is to be made now.
    pub fn is_due(&self, now: Instant) -> bool {
        self.due.is_some_and(|at| at <= now)
    }

    /// A pass was made.
    pub fn passed(&mut self, began: Instant, took: Duration) {
        self.due = None;
        self.soonest = began + took + PAUSE;
        self.earliest = began + PAUSE.max(took * SHARE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn news_that_come_together_are_one_pass() {
        let t0 = Instant::now();
        let mut pace = Pace::new(t0);
        assert!(pace.is_due(t0));
        pace.passed(t0, 5 * MS);
        assert_eq!(pace.poll_timeout(), None);

        pace.heard(News::Other, t0 + 100 * MS);
        pace.heard(News::Other, t0 + 110 * MS);

        assert_eq!(pace.poll_timeout(), Some(t0 + 120 * MS));
        assert!(!pace.is_due(t0 + 119 * MS) && pace.is_due(t0 + 120 * MS));
    }

    #[test]
    fn after_a_long_pass_only_an_edit_is_planned_soon() {
        let t0 = Instant::now();
        let mut pace = Pace::new(t0);
        pace.passed(t0, 500 * MS);

        pace.heard(News::Other, t0 + 510 * MS);
        assert_eq!(pace.poll_timeout(), Some(t0 + 2000 * MS));

        pace.heard(News::Edit, t0 + 520 * MS);
        assert_eq!(pace.poll_timeout(), Some(t0 + 550 * MS));
        pace.heard(News::Other, t0 + 530 * MS);
        pace.heard(News::Edit, t0 + 540 * MS);
        assert_eq!(pace.poll_timeout(), Some(t0 + 550 * MS));
    }
}
