//! How good a path is: smaller wins.

use std::{net::IpAddr, time::Duration};

use super::addr::{Carrier, Hop};

/// What a kind of way costs, or saves, beside its latency.
#[derive(Clone, Copy, Debug)]
pub(super) struct Class {
    pub(super) cost: Duration,
    pub(super) bonus: Duration,
}

pub(super) const RELAY: Class = Class { cost: Duration::from_millis(10), bonus: Duration::ZERO };
/// Streams stall where datagrams lose.
const STREAM: Duration = Duration::from_millis(15);
/// IPv6 has no translator to lose state.
const V4: Duration = Duration::from_millis(2);
const LAN: Duration = Duration::from_millis(2);

/// A better path must be better by both of these to be worth a flip.
const MARGIN: Duration = Duration::from_millis(5);
const MARGIN_PERCENT: u32 = 10;
/// A direct path is preferred to a relay unless it is worse by both of these.
const RELAY_MARGIN: Duration = Duration::from_millis(30);
const RELAY_MARGIN_PERCENT: u32 = 30;
/// As long as there are no more samples than these, one that is less by more than they vary counts alone: the first packets of a
/// path wait for neighbours to be found and radios to wake, and behind what a new session has to say, a punch plan's whole volley
/// among them.
const EARLY: u32 = 16;
/// What losing every probe would cost; loss is scaled by it.
const LOSS: Duration = Duration::from_millis(500);

pub(super) fn class(hop: Hop) -> Class {
    let mut class = Class { cost: Duration::ZERO, bonus: Duration::ZERO };
    match hop.carrier() {
        Carrier::Udp => {}
        Carrier::Tcp => class.cost += STREAM,
    }
    match hop.remote().ip().to_canonical() {
        IpAddr::V4(v4) => {
            class.cost += V4;
            if v4.is_private() || v4.is_link_local() {
                class.bonus += LAN;
            }
        }
        IpAddr::V6(v6) => {
            if v6.is_unique_local() || v6.is_unicast_link_local() {
                class.bonus += LAN;
            }
        }
    }
    class
}

pub(super) fn clearly_better(new: Duration, old: Duration) -> bool {
    new + MARGIN.max(old * MARGIN_PERCENT / 100) <= old
}

/// Whether `a` is worse than `b` by so much that even a direct path is not worth it.
pub(super) fn much_worse(a: Duration, b: Duration) -> bool {
    a > b + RELAY_MARGIN && a > b * (100 + RELAY_MARGIN_PERCENT) / 100
}

/// Smoothed round trip, its variation (RFC 6298), and loss.
#[derive(Clone, Copy, Debug, Default)]
pub struct Estimate {
    rtt: Option<(Duration, Duration)>,
    samples: u32,
    loss: f64,
}

impl Estimate {
    pub(super) fn sample(&mut self, sample: Duration) {
        self.loss *= 0.9;
        self.samples = self.samples.saturating_add(1);
        self.rtt = Some(match self.rtt {
            None => (sample, sample / 8),
            Some((rtt, var)) if self.samples <= EARLY && sample + var < rtt => (sample, sample / 8),
            Some((rtt, var)) => ((rtt * 7 + sample) / 8, (var * 3 + rtt.abs_diff(sample)) / 4),
        });
    }

    pub(super) fn lost(&mut self) {
        self.loss = self.loss * 0.9 + 0.1;
    }

    pub fn rtt(&self) -> Option<Duration> {
        self.rtt.map(|(rtt, _)| rtt)
    }

    pub fn variation(&self) -> Option<Duration> {
        self.rtt.map(|(_, var)| var)
    }

    pub(super) fn loss(&self) -> f64 {
        self.loss
    }

    /// After this a probe counts as unanswered.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.rtt.map(|(rtt, var)| rtt + var * 4)
    }

    pub(super) fn cost(&self) -> Option<Duration> {
        self.rtt.map(|(rtt, var)| rtt + var * 2 + LOSS.mul_f64(self.loss))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volley_that_waited_for_a_neighbour_does_not_make_a_path_far() {
        let mut estimate = Estimate::default();
        for sample in [840, 820, 800, 760, 680, 520, 200, 2] {
            estimate.sample(Duration::from_millis(sample));
        }

        assert_eq!(estimate.rtt(), Some(Duration::from_millis(2)));
    }

    #[test]
    fn a_volley_that_waited_in_a_queue_is_forgotten_with_the_first_answer_that_did_not() {
        let mut estimate = Estimate::default();
        for sample in [200, 200, 205, 210, 190, 190, 220, 220, 170] {
            estimate.sample(Duration::from_millis(sample));
        }
        assert_eq!(estimate.rtt(), Some(Duration::from_millis(170)));

        (0..16).for_each(|_| estimate.sample(Duration::from_millis(170)));
        estimate.sample(Duration::from_millis(90));
        assert_eq!(
            estimate.rtt(),
            Some(Duration::from_millis(160)),
            "later one of many is smoothed"
        );
    }
}
