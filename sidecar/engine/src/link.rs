//! Links: the few adjacencies that a node keeps alive and advertises, its home servers first.
//!
//! A link lives by hellos, which its far end acknowledges. Their loss is noticed slowly, since an idle link harms
//! nobody; a link with traffic is watched by its path agent, which is faster by far.

use std::time::{Duration, Instant};

use wire::control::Hello;

/// Hellos to a home server: three of them lost is what the loss of an idle server costs.
pub const HOME_HELLO: Duration = Duration::from_secs(5);
/// Hellos to a member; its path is kept open by the agent's keepalives anyhow.
pub const MEMBER_HELLO: Duration = Duration::from_secs(25);
/// Hellos without an answer after which a link is down.
pub const MISSES: u32 = 3;
/// A hello is answered within this or counts as missed: well above any round trip that carries traffic.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Share of a new sample in the smoothed round trip (RFC 6298 uses the same).
const SMOOTHING: u32 = 8;

/// One adjacency.
#[derive(Clone, Debug)]
pub struct Link {
    interval: Duration,
    seq: u64,
    next: Instant,
    missed: u32,
    waiting: bool,
    /// The last hello that was acknowledged.
    acknowledged: u64,
    rtt: Option<Duration>,
    up: bool,
}

/// What a deadline asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Hello { seq: u64 },
    Down,
}

impl Link {
    /// A link that is up as of now; its first hello is due at once and measures it.
    pub fn new(interval: Duration, now: Instant) -> Self {
        Self {
            interval,
            seq: 0,
            next: now,
            missed: 0,
            waiting: false,
            acknowledged: 0,
            rtt: None,
            up: true,
        }
    }

    pub fn is_up(&self) -> bool {
        self.up
    }

    /// Hellos in a row without an answer.
    pub fn missed(&self) -> u32 {
        self.missed
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.up.then_some(self.next)
    }

    pub fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        if !self.up || now < self.next {
            return None;
        }
        if self.waiting {
            self.missed += 1;
            if self.missed >= MISSES {
                self.up = false;
                return Some(Due::Down);
            }
        }
        self.seq += 1;
        self.waiting = true;
        // The first one also tells the far end that we are a neighbour of its.
        let is_steady = self.missed == 0 && self.acknowledged > 0;
        self.next = now + if is_steady { self.interval } else { ANSWER_WITHIN.min(self.interval) };
        Some(Due::Hello { seq: self.seq })
    }

    /// The far end acknowledged a hello that was sent `sent_us` on our clock, which now shows `now_us`.
    pub fn acknowledged(&mut self, ack: &Hello, now_us: u64, now: Instant) {
        if ack.seq != self.seq || ack.seq == self.acknowledged {
            return;
        }
        self.acknowledged = ack.seq;
        let sample = Duration::from_micros(now_us.saturating_sub(ack.sent_us));
        if self.rtt.is_none() {
            self.next = now + self.interval;
        }
        self.rtt =
            Some(self.rtt.map_or(sample, |rtt| (rtt * (SMOOTHING - 1) + sample) / SMOOTHING));
        self.heard(now);
    }

    /// Anything authentic came from the far end.
    pub fn heard(&mut self, now: Instant) {
        self.missed = 0;
        self.waiting = false;
        self.next = self.next.max(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_unanswered_hellos_take_a_link_down() {
        let t0 = Instant::now();
        let mut fresh = Link::new(HOME_HELLO, t0);
        let mut steady = Link::new(HOME_HELLO, t0);
        steady.handle_timeout(t0);
        steady.acknowledged(&Hello { seq: 1, ..Hello::default() }, 10, t0);

        assert_eq!(hellos_until_down(&mut fresh), (3, t0 + Duration::from_secs(6)));
        assert_eq!(hellos_until_down(&mut steady), (3, t0 + Duration::from_secs(14)));
        assert_eq!((fresh.poll_timeout(), steady.poll_timeout()), (None, None));
    }

    /// How many of them, and when it is down.
    fn hellos_until_down(link: &mut Link) -> (u32, Instant) {
        let mut hellos = 0;
        loop {
            let now = link.poll_timeout().unwrap();
            match link.handle_timeout(now).unwrap() {
                Due::Hello { .. } => hellos += 1,
                Due::Down => return (hellos, now),
            }
        }
    }

    #[test]
    fn an_answer_measures_the_link_and_keeps_it_up() {
        let t0 = Instant::now();
        let mut link = Link::new(HOME_HELLO, t0);
        assert_eq!(link.handle_timeout(t0), Some(Due::Hello { seq: 1 }));

        // That it is authentic is noticed before what it says.
        link.heard(t0);
        link.acknowledged(&Hello { seq: 1, sent_us: 1_000, ..Hello::default() }, 31_000, t0);

        assert_eq!(link.rtt(), Some(Duration::from_millis(30)));
        assert_eq!(link.poll_timeout(), Some(t0 + HOME_HELLO));
        assert_eq!(link.handle_timeout(t0 + HOME_HELLO), Some(Due::Hello { seq: 2 }));
    }
}
