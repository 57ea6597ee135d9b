//! Commit-confirm: a configuration that cuts the node off is taken back.
//!
//! ```text
//!            applied while connected                  peer or server seen
//! settled ───────────────────────────► on trial ───────────────────────────► settled
//!    │ applied while alone                  │ neither for 60 s
//!    └─► settled                            └─► taken back; not tried again
//! ```
//! A node that was not connected before proves nothing by not being connected afterwards.

use std::time::{Duration, Instant};

/// How long a configuration may leave the node without peer and server.
const WITHIN: Duration = Duration::from_secs(60);
/// A change needs a moment before it cuts anything: what is seen so early is still of before.
const SETTLE: Duration = Duration::from_secs(5);

/// The trial of one configuration.
#[derive(Clone, Copy, Debug, Default)]
pub struct Confirm {
    trial: Option<Trial>,
}

#[derive(Clone, Copy, Debug)]
struct Trial {
    revision: u64,
    began: Instant,
    alone_since: Instant,
}

/// How a trial ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This revision is good.
    Good(u64),
    /// This revision cut the node off.
    TakeBack(u64),
}

impl Confirm {
    /// A revision was applied; true if it is on trial now, else it counts as good.
    pub fn applied(&mut self, revision: u64, was_connected: bool, now: Instant) -> bool {
        self.trial = was_connected.then_some(Trial { revision, began: now, alone_since: now });
        was_connected
    }

    /// Whether there is a peer or a server now.
    pub fn observe(&mut self, is_connected: bool, now: Instant) -> Option<Verdict> {
        let trial = self.trial.as_mut()?;
        if now < trial.began + SETTLE {
            return None;
        }
        let revision = trial.revision;
        if is_connected {
            self.trial = None;
            return Some(Verdict::Good(revision));
        }
        if now >= trial.alone_since + WITHIN {
            self.trial = None;
            return Some(Verdict::TakeBack(revision));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn observe(
        confirm: &mut Confirm,
        from: Instant,
        connected: &[(u32, bool)],
    ) -> Vec<(u32, Verdict)> {
        connected
            .iter()
            .filter_map(|&(at, connected)| {
                Some((at, confirm.observe(connected, from + SECOND * at)?))
            })
            .collect()
    }

    #[test]
    fn a_configuration_that_cuts_the_node_off_is_taken_back_after_a_minute() {
        let now = Instant::now();
        let mut confirm = Confirm::default();
        assert!(confirm.applied(7, true, now));

        let seen = observe(
            &mut confirm,
            now,
            &[(1, true), (6, false), (30, false), (59, false), (60, false), (61, false)],
        );

        assert_eq!(seen, [(60, Verdict::TakeBack(7))]);
    }

    #[test]
    fn one_that_does_not_is_good_as_soon_as_that_shows() {
        let now = Instant::now();
        let mut confirm = Confirm::default();
        confirm.applied(7, true, now);

        let seen = observe(&mut confirm, now, &[(2, true), (6, false), (20, true), (90, false)]);

        assert_eq!(seen, [(20, Verdict::Good(7))]);
    }

    #[test]
    fn a_node_that_was_alone_before_proves_nothing() {
        let now = Instant::now();
        let mut confirm = Confirm::default();

        assert!(!confirm.applied(7, false, now));
        assert_eq!(observe(&mut confirm, now, &[(61, false), (200, false)]), []);
    }

    #[test]
    fn a_later_one_begins_its_own_trial() {
        let now = Instant::now();
        let mut confirm = Confirm::default();
        confirm.applied(7, true, now);
        confirm.applied(8, true, now + SECOND * 50);

        let seen = observe(&mut confirm, now, &[(60, false), (109, false), (110, false)]);

        assert_eq!(seen, [(110, Verdict::TakeBack(8))]);
    }
}
