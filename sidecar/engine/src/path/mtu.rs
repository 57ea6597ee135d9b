//! The longest datagram that a way takes, found with padded probes (RFC 8899), since routers may drop without a word.
//!
//! ```text
//!            passes                     three unanswered, while short probes are answered
//!  ┌──────┐ ◄────── ask for what the ──────────────────────► ┌────────┐ ─ next length: half way
//!  │ Rest │         mesh needs                               │ Search │      between what passes
//!  └──────┘ ──────► again: every 30 s with traffic,          └────────┘ ◄─    and what does not
//!     ▲             at once when data is not answered            │
//!     └───────────────────────────────────────────────────────── ┘ found to within 16 bytes
//! ```
//! Until the contrary is seen, a way takes what the mesh needs: that is so nearly everywhere. Lengths are those of a
//! datagram for the peer (a DATA packet, say), in bytes, without what a relay or the underlay puts around it.

use std::time::{Duration, Instant};

/// Passes wherever a session could be made: the length of INIT.
pub(super) const BASE: u16 = 1144;
/// Unanswered probes of one length, on a way that answers shorter ones, that prove it too long.
const TRIES: u8 = 3;
/// Closer than this is not worth another probe.
const PRECISION: u16 = 16;
/// A length in use is asked for again this often while there is traffic.
const CONFIRM: Duration = Duration::from_secs(30);
/// A longer one is tried again after this (`PMTU_RAISE_TIMER`).
const RAISE: Duration = Duration::from_secs(600);
/// Doubt makes us ask at once, but not more often than this.
const DOUBT: Duration = Duration::from_secs(5);
/// So do questions of the other end, unless we asked within this: or two ends would ask for ever.
const HINT: Duration = Duration::from_secs(1);

/// The search on one way.
#[derive(Clone, Debug)]
pub(super) struct Search {
    wanted: u16,
    /// What data may use now.
    usable: u16,
    /// The longest that passed.
    low: u16,
    /// The shortest that did not.
    high: u16,
    asked: Option<Asked>,
    next: Option<Instant>,
    last: Option<Instant>,
    doubted: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Asked {
    len: u16,
    tries: u8,
    sent: Instant,
}

impl Search {
    /// Nothing is asked before [`Search::begin`].
    pub(super) fn new(wanted: u16) -> Self {
        let wanted = wanted.max(BASE);
        Self {
            wanted,
            usable: wanted,
            low: BASE,
            high: wanted + 1,
            asked: None,
            next: None,
            last: None,
            doubted: None,
        }
    }

    /// The longest datagram that is known to pass, or not known not to.
    pub(super) fn usable(&self) -> u16 {
        self.usable
    }

    /// The way works, or is another one than before: what the mesh needs is asked for at once.
    pub(super) fn begin(&mut self, now: Instant) {
        self.low = BASE;
        self.high = self.wanted + 1;
        self.asked = None;
        self.next = (self.wanted > BASE).then_some(now);
    }

    /// The mesh needs another length than before.
    pub(super) fn want(&mut self, wanted: u16, now: Instant) {
        if wanted.max(BASE) != self.wanted {
            *self = Self::new(wanted);
            self.begin(now);
        }
    }

    /// There is traffic: what is in use is asked for now and then.
    pub(super) fn wake(&mut self, now: Instant) {
        if self.asked.is_none() && self.next.is_none() && self.wanted > BASE {
            self.next = Some(now + CONFIRM);
        }
    }

    /// Data goes out, none comes back, and yet short probes are answered: perhaps long packets are lost.
    pub(super) fn doubt(&mut self, now: Instant) {
        let lately = self.doubted.is_some_and(|at| now.saturating_duration_since(at) < DOUBT);
        if self.asked.is_none() && !lately && self.wanted > BASE {
            self.doubted = Some(now);
            self.next = Some(now);
        }
    }

    /// The other end asks for lengths: it has doubts, and what was lost may have been ours.
    pub(super) fn hint(&mut self, now: Instant) {
        let lately = self.last.is_some_and(|at| now.saturating_duration_since(at) < HINT);
        if self.asked.is_none() && !lately && self.wanted > BASE {
            self.next = Some(now);
        }
    }

    pub(super) fn poll_timeout(&self, patience: Duration) -> Option<Instant> {
        self.asked.map(|asked| asked.sent + patience).or(self.next)
    }

    /// The length to ask for now. `heard` is when the way last answered anything; `busy` whether there is traffic.
    pub(super) fn handle_timeout(
        &mut self,
        patience: Duration,
        heard: Option<Instant>,
        busy: bool,
        now: Instant,
    ) -> Option<u16> {
        if let Some(asked) = self.asked {
            if now < asked.sent + patience {
                return None;
            }
            self.asked = None;
            if heard.is_none_or(|heard| heard < asked.sent) {
                // It answers nothing at all, which says nothing about lengths; its next answer begins anew.
                self.next = None;
                return None;
            }
            if asked.tries < TRIES {
                return self.ask(asked.len, asked.tries + 1, now);
            }
            self.refused(asked.len);
            return self.go_on(now);
        }
        self.next.take_if(|at| *at <= now)?;
        if self.searching() {
            return self.go_on(now);
        }
        if !busy && self.low > BASE {
            return None;
        }
        self.high = self.wanted + 1;
        // A way that took less is asked for all again; one that took all is asked whether it still does.
        self.ask(self.wanted, 1, now)
    }

    /// A probe of this length was answered.
    pub(super) fn acknowledged(&mut self, len: u16, now: Instant) -> Option<u16> {
        self.asked.take_if(|asked| asked.len == len)?;
        self.low = self.low.max(len);
        self.usable = self.usable.max(self.low).min(self.high - 1);
        self.go_on(now)
    }

    fn searching(&self) -> bool {
        self.high <= self.wanted && self.high - self.low > PRECISION
    }

    fn refused(&mut self, len: u16) {
        self.high = self.high.min(len);
        if self.low >= len {
            self.low = BASE;
        }
        if self.usable >= len {
            self.usable = self.low;
        }
    }

    /// Asks for the next length, or rests.
    fn go_on(&mut self, now: Instant) -> Option<u16> {
        if self.searching() {
            return self.ask(self.low + (self.high - self.low) / 2, 1, now);
        }
        self.usable = self.usable.min(self.high - 1).max(self.low);
        self.next = Some(now + if self.low < self.wanted { RAISE } else { CONFIRM });
        None
    }

    fn ask(&mut self, len: u16, tries: u8, now: Instant) -> Option<u16> {
        self.next = None;
        self.last = Some(now);
        self.asked = Some(Asked { len, tries, sent: now });
        Some(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    /// Runs a search for `time` on a way that takes `most`; probes sent, by length.
    fn run(search: &mut Search, most: u16, time: Duration, now: &mut Instant) -> Vec<u16> {
        let end = *now + time;
        let mut sent = Vec::new();
        while let Some(at) = search.poll_timeout(PATIENCE).filter(|at| *at <= end) {
            *now = (*now).max(at);
            let mut asked = search.handle_timeout(PATIENCE, Some(*now), true, *now);
            while let Some(len) = asked {
                sent.push(len);
                assert!(sent.len() < 1000, "it never rests: {search:?}");
                *now += Duration::from_millis(20);
                asked = (len <= most).then(|| search.acknowledged(len, *now)).flatten();
            }
        }
        *now = end;
        sent
    }

    #[test]
    fn where_all_passes_one_probe_is_enough() {
        let mut now = Instant::now();
        let mut search = Search::new(1353);
        search.begin(now);

        let sent = run(&mut search, 1472, Duration::from_secs(20), &mut now);

        assert_eq!((sent, search.usable()), (vec![1353], 1353));
    }

    #[test]
    fn a_narrow_way_is_measured_to_within_a_few_bytes_and_tried_again_later() {
        for most in [1150, 1272, 1300, 1340, 1352] {
            let mut now = Instant::now();
            let mut search = Search::new(1353);
            search.begin(now);

            let sent = run(&mut search, most, Duration::from_secs(20), &mut now);

            assert!(search.usable() <= most && search.usable() + PRECISION > most, "{search:?}");
            assert!(sent.len() <= 20, "{sent:?}");
            assert_eq!(run(&mut search, most, Duration::from_secs(300), &mut now), []);

            run(&mut search, 1472, Duration::from_secs(600), &mut now);
            assert_eq!(search.usable(), 1353);
        }
    }

    #[test]
    fn a_way_that_narrows_is_noticed_when_data_is_not_answered() {
        let mut now = Instant::now();
        let mut search = Search::new(1353);
        search.begin(now);
        run(&mut search, 1472, Duration::from_secs(6), &mut now);

        search.doubt(now);
        run(&mut search, 1250, Duration::from_millis(320), &mut now);

        assert!(search.usable() <= 1250, "{search:?}");
        run(&mut search, 1250, Duration::from_secs(3), &mut now);
        assert!(search.usable() > 1250 - PRECISION, "{search:?}");
    }

    #[test]
    fn a_dead_way_says_nothing_about_lengths() {
        let mut now = Instant::now();
        let mut search = Search::new(1353);
        search.begin(now);
        let heard = Some(now);
        assert_eq!(search.handle_timeout(PATIENCE, heard, true, now), Some(1353));
        now += Duration::from_millis(100);

        assert_eq!(search.handle_timeout(PATIENCE, None, true, now), None);

        assert_eq!((search.poll_timeout(PATIENCE), search.usable()), (None, 1353));
    }
}
