//! Hole punching: a common start, few packets, and patience.
//!
//! The two ends agree on T0 by what they exchange over the relay anyway; until then nobody sends to an address that is not
//! known to be open, since an early packet poisons the other side's NAT. What is sent when is a [`plan`], a symmetric
//! function of both profiles. An attempt that fails is repeated with back-off for as long as there is traffic.

pub mod plan;
pub mod port;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand_chacha::{ChaCha12Rng, rand_core::RngCore};
use wire::{
    endpoint::{Candidate, CandidateKind, NatProfile, Transport},
    id::NodeId,
};

use self::plan::{Plan, Strategy};
use crate::{nat::useful, path::addr::SocketId};

/// Waits between attempts with one peer, each give or take a fifth.
const BACK_OFF: [Duration; 7] = [
    Duration::from_secs(0),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(900),
];
/// Openers go out so long before T0, with this time to live. The first dies on its way through the providers; when the
/// second goes, which gets through two NATs of our own, the other side's is open too.
const OPENERS: [(u64, u8); 2] = [(100, 2), (50, 4)];
/// T0 is so much later where there are openers.
const OPENED_WITHIN: Duration = Duration::from_millis(100);
/// When probes go out after T0.
const SCHEDULE_MS: [u64; 8] = [0, 20, 40, 80, 160, 320, 640, 1000];
/// Until then neighbours try their LAN alone.
const LAN_FIRST_MS: u64 = 160;
/// An attempt is over this long after its last probe.
const LINGER: Duration = Duration::from_millis(1500);
/// Attempts at once; each is a handful of packets.
const MAX_ATTEMPTS: usize = 16;
/// Addresses tried in one attempt.
const MAX_TARGETS: usize = 8;
/// Punch packets of this node in an hour, whatever the peers ask for.
const HOURLY: u32 = 20_000;

/// What the engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a probe to this address of the peer, out of this socket or else the usual one. One with a time to live of its
    /// own is an opener, which nobody is to answer.
    Probe {
        peer: NodeId,
        to: SocketAddr,
        ttl: Option<u8>,
        socket: Option<SocketId>,
    },
    /// Agree on an attempt with the peer; `again` if one failed before.
    Request {
        peer: NodeId,
        again: bool,
    },
    Started {
        peer: NodeId,
        strategy: Strategy,
    },
    Ended {
        peer: NodeId,
        strategy: Strategy,
        direct: bool,
        took: Duration,
    },
}

/// How an attempt begins.
#[derive(Clone, Copy, Debug)]
pub struct Start {
    /// The common start, before openers put it off.
    pub t0: Instant,
    /// Both sides take new ports and open their NATs first.
    pub again: bool,
    /// Ours, if there is one.
    pub socket: Option<SocketId>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Send {
    at: Instant,
    to: SocketAddr,
    ttl: Option<u8>,
    socket: Option<SocketId>,
}

#[derive(Clone, Debug)]
struct Attempt {
    strategy: Strategy,
    sends: VecDeque<Send>,
    socket: Option<SocketId>,
    until: Instant,
    began: Instant,
}

#[derive(Clone, Debug, Default)]
struct Target {
    attempt: Option<Attempt>,
    failures: usize,
    /// The last request counts as a failure until an attempt comes of it.
    asked: bool,
    /// An attempt failed: perhaps a NAT has given the usual port away.
    spoilt: bool,
    retry_at: Option<Instant>,
}

/// All attempts of this node.
#[derive(Clone, Debug)]
pub struct Coordinator {
    targets: BTreeMap<NodeId, Target>,
    outputs: VecDeque<Output>,
    hour: Instant,
    sent_this_hour: u32,
}

/// One side of an attempt, as far as the plan goes.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    pub profile: &'a NatProfile,
    pub candidates: &'a [Candidate],
}

impl Coordinator {
    pub fn new(now: Instant) -> Self {
        Self { targets: BTreeMap::new(), outputs: VecDeque::new(), hour: now, sent_this_hour: 0 }
    }

    /// Whether an attempt with `peer` runs.
    pub fn running(&self, peer: NodeId) -> bool {
        self.targets.get(&peer).is_some_and(|target| target.attempt.is_some())
    }

    /// Begins an attempt. One that runs is kept, but takes up addresses and a port that it did not know.
    pub fn start(
        &mut self,
        peer: NodeId,
        ours: Side<'_>,
        theirs: Side<'_>,
        start: Start,
        now: Instant,
    ) {
        let busy = self.targets.values().filter(|target| target.attempt.is_some()).count();
        let target = self.targets.entry(peer).or_default();
        if target.attempt.is_none() && busy >= MAX_ATTEMPTS {
            target.retry_at.get_or_insert(now + BACK_OFF[1]);
            return;
        }
        if std::mem::take(&mut target.asked) {
            target.failures = target.failures.saturating_sub(1);
        }
        let plan = plan::plan(ours.profile, theirs.profile);
        let openers = plan.openers || (start.again && plan.strategy != Strategy::Relay);
        let t0 = if openers { start.t0 + OPENED_WITHIN } else { start.t0 };
        let running = target.attempt.as_ref().and_then(|attempt| attempt.socket);
        let socket = start.socket.or(running);
        let sends = schedule(&plan, ours, theirs, openers, t0).map(|(at, to, ttl)| {
            // Only IPv4 is translated, so only there another port makes a difference.
            Send { at, to, ttl, socket: socket.filter(|_| to.is_ipv4()) }
        });
        let until = t0 + Duration::from_millis(1000) + LINGER;
        match &mut target.attempt {
            Some(attempt) => {
                let known: BTreeSet<_> =
                    attempt.sends.iter().map(|send| (send.to, send.socket)).collect();
                let news: Vec<Send> =
                    sends.filter(|send| !known.contains(&(send.to, send.socket))).collect();
                attempt.sends.extend(news);
                attempt.sends.make_contiguous().sort_unstable();
                attempt.socket = socket;
                attempt.until = attempt.until.max(until);
            }
            None => {
                target.retry_at = None;
                let sends = sends.collect();
                let strategy = plan.strategy;
                target.attempt = Some(Attempt { strategy, sends, socket, until, began: now });
                self.outputs.push_back(Output::Started { peer, strategy: plan.strategy });
            }
        }
    }

    /// The peer is reached directly.
    pub fn succeeded(&mut self, peer: NodeId, now: Instant) {
        let Some(target) = self.targets.get_mut(&peer) else { return };
        target.failures = 0;
        target.asked = false;
        target.spoilt = false;
        target.retry_at = None;
        if let Some(attempt) = target.attempt.take() {
            let took = now.saturating_duration_since(attempt.began);
            self.outputs.push_back(Output::Ended {
                peer,
                strategy: attempt.strategy,
                direct: true,
                took,
            });
        }
    }

    /// A direct path is wanted and none is there: the next attempt comes when its back-off is over.
    pub fn want(&mut self, peer: NodeId, rng: &mut ChaCha12Rng, now: Instant) {
        let target = self.targets.entry(peer).or_default();
        if target.attempt.is_none() && target.retry_at.is_none() {
            target.retry_at = Some(now + back_off(target.failures, rng));
        }
    }

    /// Nothing is wanted any more: no traffic, or no such peer.
    pub fn forget(&mut self, peer: NodeId) {
        self.targets.remove(&peer);
    }

    /// A profile or address changed: the back-off starts over.
    pub fn reset(&mut self, peer: NodeId) {
        if let Some(target) = self.targets.get_mut(&peer) {
            target.failures = 0;
            target.asked = false;
            target.retry_at = None;
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.targets
            .values()
            .flat_map(|target| {
                let attempt = target.attempt.as_ref();
                [
                    attempt.and_then(|attempt| attempt.sends.front().map(|send| send.at)),
                    attempt.map(|attempt| attempt.until),
                    target.retry_at,
                ]
            })
            .flatten()
            .min()
    }

    pub fn handle_timeout(&mut self, rng: &mut ChaCha12Rng, now: Instant) {
        if now.saturating_duration_since(self.hour) >= Duration::from_secs(3600) {
            self.hour = now;
            self.sent_this_hour = 0;
        }
        for (&peer, target) in &mut self.targets {
            if let Some(attempt) = &mut target.attempt {
                while let Some(send) = attempt.sends.pop_front_if(|send| send.at <= now) {
                    if self.sent_this_hour < HOURLY {
                        self.sent_this_hour += 1;
                        let Send { to, ttl, socket, .. } = send;
                        self.outputs.push_back(Output::Probe { peer, to, ttl, socket });
                    }
                }
                if attempt.until <= now {
                    let strategy = attempt.strategy;
                    let took = now.saturating_duration_since(attempt.began);
                    self.outputs.push_back(Output::Ended { peer, strategy, direct: false, took });
                    target.attempt = None;
                    target.spoilt = true;
                    target.failures += 1;
                    target.retry_at = Some(now + back_off(target.failures, rng));
                }
            }
            if target.retry_at.is_some_and(|at| at <= now) {
                // Asked again if no answer comes: the next back-off counts from here.
                target.failures += 1;
                target.asked = true;
                target.retry_at = Some(now + back_off(target.failures, rng));
                self.outputs.push_back(Output::Request { peer, again: target.spoilt });
            }
        }
    }

    /// Attempts and waits, for the leak test.
    pub fn len(&self) -> usize {
        self.targets.len()
    }

    pub fn is_empty(&self) -> bool {
        self.targets.is_empty()
    }
}

/// What is sent when, and how far: every useful address of the peer at every step of the schedule, as far as the plan's
/// budget goes.
fn schedule(
    plan: &Plan,
    ours: Side<'_>,
    theirs: Side<'_>,
    openers: bool,
    t0: Instant,
) -> impl Iterator<Item = (Instant, SocketAddr, Option<u8>)> {
    let turns_back = ours.profile.hairpin != Some(false) && theirs.profile.hairpin != Some(false);
    let reach = |candidate: &&Candidate| {
        candidate.transport == Transport::Udp
            && (plan.strategy != Strategy::Lan
                || candidate.kind == CandidateKind::Host
                || candidate.addr.is_ipv6()
                || turns_back)
            && useful(candidate.addr.ip())
            && (plan.strategy != Strategy::Relay || candidate.kind == CandidateKind::Host)
            && (candidate.kind != CandidateKind::Host
                || reachable_host(candidate.addr, ours, theirs))
    };
    let targets: Vec<SocketAddr> = theirs
        .candidates
        .iter()
        .filter(reach)
        .map(|candidate| candidate.addr)
        .take(MAX_TARGETS)
        .collect();
    let mut sends = Vec::new();
    if openers {
        for (before, ttl) in OPENERS {
            let at = t0.checked_sub(Duration::from_millis(before)).unwrap_or(t0);
            let translated = targets.iter().filter(|to| to.is_ipv4());
            sends.extend(translated.map(|&to| (at, to, Some(ttl))));
        }
    }
    let host = |to: &SocketAddr| {
        theirs.candidates.iter().any(|one| one.addr == *to && one.kind == CandidateKind::Host)
    };
    for step in SCHEDULE_MS {
        // Neighbours need no router: what goes through one is for those whose LAN parts them.
        let now = targets
            .iter()
            .filter(|to| plan.strategy != Strategy::Lan || step >= LAN_FIRST_MS || host(to));
        sends.extend(now.map(|&to| (t0 + Duration::from_millis(step), to, None)));
    }
    sends.into_iter().take(plan.budget)
}

/// Host addresses are worth a packet if they are global, or if both are behind one NAT or in one network.
fn reachable_host(addr: SocketAddr, ours: Side<'_>, theirs: Side<'_>) -> bool {
    let global = match addr.ip() {
        std::net::IpAddr::V4(v4) => !v4.is_private(),
        std::net::IpAddr::V6(v6) => !v6.is_unique_local(),
    };
    let same_nat = ours.profile.external.iter().any(|ip| theirs.profile.external.contains(ip));
    let unknown = ours.profile.external.is_empty() || theirs.profile.external.is_empty();
    global || same_nat || unknown
}

fn back_off(failures: usize, rng: &mut ChaCha12Rng) -> Duration {
    let base = BACK_OFF.get(failures).or(BACK_OFF.last()).copied().unwrap_or_default();
    base * (80 + rng.next_u32() % 41) / 100
}

#[cfg(test)]
mod tests;
