//! Paths: concrete ways to a peer, and the one that carries its traffic.
//!
//! A path is *measured* by probes and *chosen* here. Probes only ever promote: a lost probe does not prove the
//! primary dead; silence while data is outstanding, and then two probes unanswered, does.
//!
//! ```text
//!                probe acknowledged            best of the warm
//!  ┌─────────┐ ───────────────────► ┌──────┐ ───────────────────► ┌─────────┐
//!  │ Probing │                      │ Warm │                      │ Primary │
//!  └─────────┘ ◄─── nothing         └──────┘ ◄─────────────────── └─────────┘
//!       │           for 30 s            ▲        a better one      │      ▲
//!       ▼ no answer                     │ another answered         ▼      │ answered
//!    removed                            └─────────────────────── ┌─────────┐
//!                                                                │ Suspect │  data goes both ways
//!                                                                └─────────┘
//! ```

pub mod addr;
mod mtu;
mod score;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use wire::id::NodeId;

use self::{
    addr::{Carrier, Hop},
    mtu::Search,
    score::Estimate,
};

/// Candidates that are probed or known at once.
const MAX_PATHS: usize = 16;
/// Addresses that showed a good probe but have not echoed ours yet.
const MAX_UNVERIFIED: usize = 4;
/// Answered paths that are kept measured beside the primary.
const MAX_WARM: usize = 4;
/// Probes that may be unanswered at once; older ones are forgotten.
const MAX_OUTSTANDING: usize = 64;
/// Nothing received for this long while data goes out is worth a probe.
const SILENCE: Duration = Duration::from_millis(100);
/// Spacing of the probes that decide whether the primary is alive.
const URGENT: Duration = Duration::from_millis(50);
/// A primary that stays suspect, with nothing to take its place, is asked less often after a while.
const URGENT_FOR: Duration = Duration::from_secs(5);
const LOST_SPACING: Duration = Duration::from_secs(1);
/// A probe is not called unanswered before this.
const PATIENCE: Duration = Duration::from_millis(100);
/// What an unmeasured path is given before a probe counts as unanswered.
const UNKNOWN_RTT: Duration = Duration::from_millis(300);
/// A suspect primary carries data beside the best other path for this long.
const BICAST: Duration = Duration::from_secs(2);
/// How often a path with traffic is measured: the primary, and the warm ones.
const MEASURE_PRIMARY: Duration = Duration::from_secs(5);
const MEASURE_WARM: Duration = Duration::from_secs(10);
/// Keeps the bindings of NATs alive, which last 30 s and more, unless this one is known to forget sooner.
const KEEPALIVE: Duration = Duration::from_secs(25);
/// With or without traffic a primary that works is heard of within this: two probes and some.
const FRESH: Duration = Duration::from_secs(55);
/// The first probes of a path: enough for three of five answers in a second.
const FIRST_PROBES: u32 = 5;
const FIRST_SPACING: Duration = Duration::from_millis(200);
/// A path that answers nothing for this long is gone; a former primary stays warm for as long.
const FORGET: Duration = Duration::from_secs(30);
/// Data within this makes a peer busy.
const BUSY: Duration = Duration::from_secs(10);

/// A way to a peer: straight, or over a link that relays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    Direct(Hop),
    /// Over the link with this node; where that link runs is its own agent's matter.
    Relayed(NodeId),
}

impl Way {
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Direct(_))
    }
}

/// The state of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    Probing,
    Warm,
    Primary,
    Suspect,
}

/// What the engine is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send a probe with this txid, of this length; 0 is the shortest.
    Probe { way: Way, txid: u64, len: u16 },
    /// The way of the traffic takes other lengths than before: publish it.
    Resized,
    /// The primary or the bicast changed: publish it.
    Changed { before: Option<Way>, after: Option<Way>, reason: Reason },
}

/// Why a path became primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    First,
    Direct,
    Better,
    Failover,
    Recovered,
    Suspect,
    Gone,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Direct => "direct",
            Self::Better => "better",
            Self::Failover => "failover",
            Self::Recovered => "recovered",
            Self::Suspect => "suspect",
            Self::Gone => "gone",
        }
    }
}

/// One way, measured.
#[derive(Clone, Debug)]
pub struct Path {
    pub way: Way,
    pub state: State,
    pub since: Instant,
    pub estimate: Estimate,
    /// Administrative cost of a relay: the latency that the topology says it adds.
    bias: Duration,
    probes: u32,
    acks: u32,
    next_probe: Instant,
    heard: Option<Instant>,
    unverified: bool,
    mtu: Search,
}

#[derive(Clone, Copy, Debug)]
struct Outstanding {
    way: Way,
    sent: Instant,
    /// Asks for this length; 0 asks whether the way works.
    len: u16,
}

/// Chooses among the paths to one peer.
#[derive(Clone, Debug)]
pub struct Agent {
    paths: BTreeMap<Way, Path>,
    outstanding: BTreeMap<u64, Outstanding>,
    primary: Option<Way>,
    bicast: Option<(Way, Instant)>,
    /// Since when data goes out and nothing comes in.
    silent_since: Option<Instant>,
    last_tx: Option<Instant>,
    last_rx: Option<Instant>,
    /// When the primary last answered a probe or carried anything.
    last_heard: Option<Instant>,
    next_txid: u64,
    active: bool,
    /// The longest datagram that the mesh needs.
    wanted: u16,
    keepalive: Duration,
    outputs: VecDeque<Output>,
}

impl Agent {
    /// `txid` seeds the transaction ids; take it from the engine's generator. `wanted` is the longest datagram that the
    /// mesh's MTU needs.
    pub fn new(txid: u64, wanted: u16) -> Self {
        Self {
            paths: BTreeMap::new(),
            outstanding: BTreeMap::new(),
            primary: None,
            bicast: None,
            silent_since: None,
            last_tx: None,
            last_rx: None,
            last_heard: None,
            next_txid: txid,
            active: false,
            wanted,
            keepalive: KEEPALIVE,
            outputs: VecDeque::new(),
        }
    }

    pub fn primary(&self) -> Option<Way> {
        self.primary
    }

    /// The second way that data takes while the primary is suspect.
    pub fn bicast(&self) -> Option<Way> {
        self.bicast.map(|(way, _)| way)
    }

    pub fn is_direct(&self) -> bool {
        self.primary.is_some_and(|way| way.is_direct())
    }

    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.values()
    }

    pub fn path(&self, way: Way) -> Option<&Path> {
        self.paths.get(&way)
    }

    /// Whether the primary is direct and was heard of lately.
    pub fn is_direct_and_fresh(&self, now: Instant) -> bool {
        let heard = self.primary.filter(Way::is_direct).and_then(|way| self.paths.get(&way)?.heard);
        heard.is_some_and(|heard| now.saturating_duration_since(heard) < FRESH)
    }

    /// Round trip of the primary.
    pub fn rtt(&self) -> Option<Duration> {
        self.paths.get(&self.primary?)?.estimate.rtt()
    }

    /// The longest datagram that every way of the traffic takes.
    pub fn datagram(&self) -> u16 {
        [self.primary, self.bicast()]
            .into_iter()
            .flatten()
            .filter_map(|way| self.paths.get(&way))
            .map(Path::datagram)
            .min()
            .unwrap_or(self.wanted)
    }

    /// The mesh needs another length than before.
    pub fn want(&mut self, wanted: u16, now: Instant) {
        self.wanted = wanted;
        for path in self.paths.values_mut().filter(|path| path.acks > 0) {
            path.mtu.want(wanted, now);
        }
    }

    /// The NAT before us remembers a flow for `lifetime` at least; nothing if that is not known. Each path heeds it from its
    /// next probe on.
    pub fn remembered_for(&mut self, lifetime: Option<Duration>) {
        self.keepalive = lifetime.map_or(KEEPALIVE, |lifetime| KEEPALIVE.min(lifetime * 3 / 4));
    }

    /// The ground may have moved: everything is probed now.
    pub fn check_all(&mut self, now: Instant) {
        for path in self.paths.values_mut() {
            path.next_probe = now;
            path.probes = 0;
            path.measure_mtu(now);
        }
        if self.active && self.primary.is_some() {
            self.silent_since.get_or_insert(now);
        }
    }

    /// The peer speaks from elsewhere than the primary leads to: whether that still answers is looked at now.
    pub fn doubt_primary(&mut self, now: Instant) {
        let Some(path) = self.primary.and_then(|way| self.paths.get_mut(&way)) else { return };
        if self.active {
            path.next_probe = now;
            self.silent_since.get_or_insert(now);
        }
    }

    /// Whether probing runs: the peer has a session.
    pub fn set_active(&mut self, active: bool, now: Instant) {
        if self.active == active {
            return;
        }
        self.active = active;
        if active {
            for path in self.paths.values_mut() {
                path.next_probe = path.next_probe.min(now);
            }
        } else {
            self.outstanding.clear();
            self.silent_since = None;
            self.bicast = None;
        }
    }

    /// Adds a way that may work; it is probed from now on.
    pub fn add(&mut self, way: Way, now: Instant) {
        if self.paths.contains_key(&way) {
            return;
        }
        if self.paths.len() >= MAX_PATHS {
            let oldest = self
                .paths
                .values()
                .filter(|path| path.state == State::Probing)
                .min_by_key(|path| path.since);
            let Some(oldest) = oldest.map(|path| path.way) else { return };
            self.paths.remove(&oldest);
        }
        self.paths.insert(way, Path::new(way, self.wanted, now));
    }

    /// The relays there are, each with the latency that the topology gives the whole way. A relay is usable without
    /// having been probed.
    pub fn set_relays(&mut self, relays: &[(NodeId, Duration)], now: Instant) {
        let gone: Vec<Way> = self
            .paths
            .keys()
            .filter(|way| matches!(way, Way::Relayed(link) if !relays.iter().any(|(relay, _)| relay == link)))
            .copied()
            .collect();
        for way in gone {
            self.remove(way, now);
        }
        for &(relay, latency) in relays {
            self.add(Way::Relayed(relay), now);
            if let Some(path) = self.paths.get_mut(&Way::Relayed(relay)) {
                path.bias = latency;
            }
        }
        if self.primary.is_none() {
            self.fall_back(Reason::First, now);
        }
    }

    /// Takes a way out: its socket, connection or link is gone.
    pub fn remove(&mut self, way: Way, now: Instant) {
        if self.paths.remove(&way).is_none() {
            return;
        }
        self.outstanding.retain(|_, probe| probe.way != way);
        if self.bicast() == Some(way) {
            self.bicast = None;
        }
        if self.primary == Some(way) {
            self.fall_back(Reason::Gone, now);
        }
    }

    /// Registers a probe that the caller sends by itself, on a punch plan's schedule.
    pub fn probe(&mut self, way: Way, now: Instant) -> u64 {
        let is_new = !self.paths.contains_key(&way);
        self.add(way, now);
        if let Some(path) = self.paths.get_mut(&way) {
            path.probes += 1;
            if is_new {
                // This one is the first.
                path.next_probe = now + FIRST_SPACING;
            }
        }
        self.expect(way, 0, now)
    }

    /// Expects the answer to a probe that goes out now.
    fn expect(&mut self, way: Way, len: u16, now: Instant) -> u64 {
        let txid = self.next_txid;
        self.next_txid = self.next_txid.wrapping_add(1);
        if self.outstanding.len() >= MAX_OUTSTANDING {
            self.outstanding.pop_first();
        }
        self.outstanding.insert(txid, Outstanding { way, sent: now, len });
        txid
    }

    /// A probe of ours was answered; true if it was one, and where it had gone.
    pub fn acknowledged(&mut self, txid: u64, now: Instant) -> Option<Way> {
        let probe = self.outstanding.remove(&txid)?;
        let path = self.paths.get_mut(&probe.way)?;
        path.unverified = false;
        if probe.len > 0 {
            self.heard(probe.way, now);
            self.sized(probe.way, |mtu| mtu.acknowledged(probe.len, now), now);
            return Some(probe.way);
        }
        path.acks += 1;
        path.estimate.sample(now.saturating_duration_since(probe.sent));
        let unanswered = self.silent_since.is_some_and(|since| probe.sent >= since + SILENCE);
        if path.acks == 1 {
            path.measure_mtu(now);
        } else if unanswered && self.primary == Some(probe.way) {
            path.mtu.doubt(now);
        }
        self.heard(probe.way, now);
        self.outstanding
            .retain(|_, other| other.way != probe.way || other.sent > probe.sent || other.len > 0);
        let path = self.paths.get_mut(&probe.way)?;
        match path.state {
            State::Probing => {
                path.state = State::Warm;
                path.since = now;
                // One answer may have waited for a neighbour to be found; the next ones tell how far it is.
                path.probes = 0;
                path.next_probe = path.next_probe.min(now + FIRST_SPACING);
            }
            State::Suspect => {
                path.state = State::Primary;
                self.bicast = None;
                self.change(Some(probe.way), Reason::Recovered, now);
            }
            State::Warm | State::Primary => {}
        }
        self.choose(probe.way, now);
        self.trim(now);
        Some(probe.way)
    }

    /// A good probe of the peer came over `way`: it is worth one of ours. `padded` if it asks for a length.
    pub fn asked(&mut self, way: Way, padded: bool, now: Instant) {
        if let Some(path) = self.paths.get_mut(&way) {
            path.heard = Some(now);
            if padded && path.acks > 0 {
                path.mtu.hint(now);
            }
            if path.state == State::Probing {
                path.next_probe = path.next_probe.min(now);
                path.probes = path.probes.min(FIRST_PROBES - 1);
            }
            return;
        }
        if self.paths.values().filter(|path| path.unverified).count() >= MAX_UNVERIFIED {
            return;
        }
        self.add(way, now);
        if let Some(path) = self.paths.get_mut(&way) {
            path.unverified = true;
        }
    }

    /// An authentic packet came over `way`. A first one is a path that works in at least one direction; before anything is
    /// measured it is as good as any.
    pub fn received(&mut self, way: Way, now: Instant) {
        self.add(way, now);
        self.heard(way, now);
        if self.primary.is_none() {
            self.change(Some(way), Reason::First, now);
        }
    }

    /// What the fast path has seen of this peer's traffic: when data last went out, and last came in.
    pub fn traffic(&mut self, tx: Option<Instant>, rx: Option<Instant>, now: Instant) {
        if rx > self.last_rx {
            self.last_rx = rx;
            self.silent_since = None;
            if let (Some(primary), Some(rx)) = (self.primary, rx)
                && let Some(path) = self.paths.get_mut(&primary)
                && path.state == State::Primary
            {
                path.heard = path.heard.max(Some(rx));
            }
        }
        if tx > self.last_tx {
            self.last_tx = tx;
            if let Some(path) = self.primary.and_then(|way| self.paths.get_mut(&way)) {
                path.mtu.wake(now);
            }
        }
        if self.last_tx > self.last_rx.max(self.last_heard)
            && self.last_tx.is_some_and(|tx| now.saturating_duration_since(tx) < SILENCE * 2)
        {
            self.silent_since.get_or_insert(self.last_tx.unwrap_or(now));
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        if !self.active {
            return None;
        }
        let probes = self.paths.values().map(|path| path.next_probe).min();
        let lengths =
            self.paths.values().filter_map(|path| path.mtu.poll_timeout(path.patience())).min();
        let bicast = self.bicast.map(|(_, until)| until);
        [probes, lengths, bicast, self.judged_at(), self.missed_at()].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        if !self.active {
            return;
        }
        if self.bicast.is_some_and(|(_, until)| now >= until) {
            self.bicast = None;
            self.change(self.primary, Reason::Suspect, now);
        }
        if self.missed_at().is_some_and(|at| at <= now) {
            self.silent_since = Some(now);
        }
        self.watch(now);
        self.ask_lengths(now);
        self.measure(now);
        self.forget(now);
    }

    /// Whether user data moved lately.
    fn busy(&self, now: Instant) -> bool {
        [self.last_tx, self.last_rx]
            .into_iter()
            .flatten()
            .any(|at| now.saturating_duration_since(at) < BUSY)
    }

    /// Judges the primary while data goes out and nothing comes back.
    fn watch(&mut self, now: Instant) {
        let Some((primary, since)) = self.doubted() else { return };
        if now < since + SILENCE {
            return;
        }
        let asked = self.asked_since(primary, since);
        if asked == 0
            && let Some(path) = self.paths.get_mut(&primary)
        {
            path.next_probe = path.next_probe.min(now);
        }
        if asked >= 2 && self.judged_at().is_some_and(|at| at <= now) {
            self.suspect(primary, now);
        }
    }

    /// The primary, and since when it is silent while data goes out; nothing once it is suspect.
    fn doubted(&self) -> Option<(Way, Instant)> {
        let (primary, since) = (self.primary?, self.silent_since?);
        (self.paths.get(&primary)?.state == State::Primary).then_some((primary, since))
    }

    /// Unanswered probes of `way` that were sent because of the silence.
    fn asked_since(&self, way: Way, since: Instant) -> usize {
        self.outstanding
            .values()
            .filter(|probe| probe.way == way && probe.len == 0 && probe.sent >= since + SILENCE)
            .count()
    }

    /// When the silence is worth a probe, or the second of these counts as unanswered; in between the probes have
    /// deadlines of their own.
    fn judged_at(&self) -> Option<Instant> {
        let (primary, since) = self.doubted()?;
        let mut asked = self.outstanding.values().filter(|probe| {
            probe.way == primary && probe.len == 0 && probe.sent >= since + SILENCE
        });
        if asked.next().is_none() {
            return Some(since + SILENCE);
        }
        Some(asked.next()?.sent + self.patience(primary))
    }

    /// When a probe of a direct primary counts as unanswered after which nothing came that way: without traffic nothing else
    /// tells that it is dead. Of a relayed one the relay tells that its far end is gone.
    fn missed_at(&self) -> Option<Instant> {
        let primary = self.paths.get(&self.primary?)?;
        let is_judged = primary.way.is_direct() && primary.state == State::Primary;
        if !is_judged || self.silent_since.is_some() {
            return None;
        }
        let probes = self.outstanding.values().filter(|probe| {
            probe.way == primary.way && probe.len == 0 && Some(probe.sent) > primary.heard
        });
        Some(probes.map(|probe| probe.sent).min()? + primary.patience())
    }

    fn patience(&self, way: Way) -> Duration {
        self.paths.get(&way).map_or(UNKNOWN_RTT, Path::patience)
    }

    fn suspect(&mut self, primary: Way, now: Instant) {
        let Some(path) = self.paths.get_mut(&primary) else { return };
        if path.state == State::Suspect {
            return;
        }
        path.state = State::Suspect;
        path.since = now;
        path.estimate.lost();
        for path in self.paths.values_mut() {
            path.next_probe = path.next_probe.min(now);
        }
        self.bicast =
            self.best(|path| path.way != primary && path.usable()).map(|way| (way, now + BICAST));
        self.outputs.push_back(Output::Changed {
            before: self.primary,
            after: self.primary,
            reason: Reason::Suspect,
        });
    }

    /// What carries `way` is in doubt: if that is where the traffic goes, another way gets it too, as far as there is one.
    pub fn distrust(&mut self, way: Way, now: Instant) {
        let other = self.best(|path| path.way != way && path.usable());
        if self.primary == Some(way) && other.is_some() {
            self.suspect(way, now);
        }
    }

    /// Sends the probes that ask for a length, each with a short one beside it that tells a dead way from a narrow one.
    fn ask_lengths(&mut self, now: Instant) {
        let busy = self.busy(now);
        let due: Vec<Way> = self
            .paths
            .values()
            .filter(|path| path.mtu.poll_timeout(path.patience()).is_some_and(|at| at <= now))
            .map(|path| path.way)
            .collect();
        for way in due {
            let Some(path) = self.paths.get(&way) else { continue };
            let (patience, heard) = (path.patience(), path.heard);
            self.sized(way, |mtu| mtu.handle_timeout(patience, heard, busy, now), now);
        }
    }

    /// Lets a way's search take a step, sends what it asks for, and says so if the traffic's way changed its length.
    fn sized(&mut self, way: Way, step: impl FnOnce(&mut Search) -> Option<u16>, now: Instant) {
        let before = self.datagram();
        let Some(path) = self.paths.get_mut(&way) else { return };
        if let Some(len) = step(&mut path.mtu) {
            path.next_probe = path.next_probe.min(now);
            let txid = self.expect(way, len, now);
            self.outputs.push_back(Output::Probe { way, txid, len });
        }
        if self.datagram() != before {
            self.outputs.push_back(Output::Resized);
        }
    }

    /// Sends the probes that are due.
    fn measure(&mut self, now: Instant) {
        let due: Vec<Way> = self
            .paths
            .values()
            .filter(|path| path.next_probe <= now)
            .map(|path| path.way)
            .collect();
        let busy = self.busy(now);
        let trouble = self.primary.and_then(|way| self.paths.get(&way)).is_some_and(|path| {
            path.state == State::Suspect && now.saturating_duration_since(path.since) < URGENT_FOR
        });
        let silent = self.silent_since.is_some_and(|since| now >= since + SILENCE);
        for way in due {
            let primary = self.primary == Some(way);
            let txid = self.probe(way, now);
            self.outputs.push_back(Output::Probe { way, txid, len: 0 });
            let Some(path) = self.paths.get_mut(&way) else { continue };
            path.next_probe = now
                + match path.state {
                    State::Suspect if trouble => URGENT,
                    State::Suspect => LOST_SPACING,
                    State::Primary if silent => URGENT,
                    State::Primary if path.probes < FIRST_PROBES => FIRST_SPACING,
                    State::Primary if busy => MEASURE_PRIMARY,
                    State::Warm if trouble => URGENT,
                    State::Warm if path.probes < FIRST_PROBES => FIRST_SPACING,
                    State::Warm if busy => MEASURE_WARM,
                    State::Primary | State::Warm => self.keepalive,
                    State::Probing if trouble => URGENT * 2,
                    State::Probing if path.probes < FIRST_PROBES => FIRST_SPACING,
                    State::Probing => MEASURE_WARM,
                };
            if !primary
                && path.state == State::Warm
                && path.probes % FIRST_PROBES == 0
                && path.acks == 0
            {
                path.estimate.lost();
            }
        }
    }

    /// Drops what answers nothing: paths that never did, and warm ones that stopped.
    fn forget(&mut self, now: Instant) {
        let gone: Vec<Way> = self
            .paths
            .values()
            .filter(|path| {
                let silent = now
                    .saturating_duration_since(path.heard.unwrap_or(path.since).max(path.since))
                    >= FORGET;
                match path.state {
                    State::Probing => silent && path.way.is_direct(),
                    State::Warm => {
                        path.way.is_direct()
                            && now.saturating_duration_since(path.heard.unwrap_or(path.since))
                                >= FORGET * 2
                    }
                    State::Suspect => silent && self.paths.len() > 1,
                    State::Primary => false,
                }
            })
            .map(|path| path.way)
            .collect();
        for way in gone {
            self.remove(way, now);
        }
    }

    fn heard(&mut self, way: Way, now: Instant) {
        if let Some(path) = self.paths.get_mut(&way) {
            path.heard = Some(now);
        }
        if self.primary == Some(way) {
            self.silent_since = None;
            self.last_heard = Some(now);
        }
    }

    /// Considers `way`, which just answered, for the traffic.
    fn choose(&mut self, way: Way, now: Instant) {
        let Some(primary) = self.primary else {
            return self.change(Some(way), Reason::First, now);
        };
        if primary == way {
            return;
        }
        let (Some(new), Some(old)) = (self.paths.get(&way), self.paths.get(&primary)) else {
            return;
        };
        let reason =
            if old.state == State::Suspect { Some(Reason::Failover) } else { new.beats(old) };
        if let Some(reason) = reason {
            self.bicast = None;
            self.change(Some(way), reason, now);
        }
    }

    /// Without a primary, takes the best of what is left.
    fn fall_back(&mut self, reason: Reason, now: Instant) {
        let best = self.best(Path::usable);
        if best.is_some() || self.primary.is_some() {
            self.bicast = None;
            self.change(best, reason, now);
        }
    }

    fn best(&self, allowed: impl Fn(&Path) -> bool) -> Option<Way> {
        self.paths
            .values()
            .filter(|path| allowed(path))
            .min_by_key(|path| path.rank())
            .map(|path| path.way)
    }

    fn change(&mut self, after: Option<Way>, reason: Reason, now: Instant) {
        let before = self.primary;
        if before != after {
            if let Some(path) = before.and_then(|way| self.paths.get_mut(&way)) {
                path.state = if path.acks > 0 || !path.way.is_direct() {
                    State::Warm
                } else {
                    State::Probing
                };
                path.since = now;
            }
            if let Some(path) = after.and_then(|way| self.paths.get_mut(&way)) {
                path.state = State::Primary;
                path.since = now;
                path.next_probe = path.next_probe.min(now + FIRST_SPACING);
            }
            self.primary = after;
            self.silent_since = None;
        }
        self.outputs.push_back(Output::Changed { before, after, reason });
    }

    /// Keeps the best few warm paths; the others go.
    fn trim(&mut self, now: Instant) {
        loop {
            let warm = self
                .paths
                .values()
                .filter(|path| path.state == State::Warm && path.way.is_direct());
            if warm.clone().count() <= MAX_WARM {
                return;
            }
            let Some(worst) = warm.max_by_key(|path| path.rank()).map(|path| path.way) else {
                return;
            };
            self.remove(worst, now);
        }
    }
}

impl Path {
    fn new(way: Way, wanted: u16, now: Instant) -> Self {
        Self {
            way,
            mtu: Search::new(wanted),
            state: State::Probing,
            since: now,
            estimate: Estimate::default(),
            bias: Duration::ZERO,
            probes: 0,
            acks: 0,
            next_probe: now,
            heard: None,
            unverified: false,
        }
    }

    /// Smaller is better; unmeasured ones come last.
    pub fn score(&self) -> Option<Duration> {
        let class = match self.way {
            Way::Relayed(_) => score::RELAY,
            Way::Direct(hop) => score::class(hop),
        };
        Some((self.estimate.cost()? + class.cost).saturating_sub(class.bonus))
    }

    /// The longest datagram for the peer that it takes, as far as is known.
    pub fn datagram(&self) -> u16 {
        self.mtu.usable()
    }

    /// A stream has no longest datagram; everything else is measured.
    fn measure_mtu(&mut self, now: Instant) {
        if !matches!(self.way, Way::Direct(Hop::Tunnel { .. })) {
            self.mtu.begin(now);
        }
    }

    /// After this a probe counts as unanswered.
    fn patience(&self) -> Duration {
        self.estimate.timeout().map_or(UNKNOWN_RTT, |rto| rto.max(PATIENCE))
    }

    /// Probes that were answered.
    pub fn acks(&self) -> u32 {
        self.acks
    }

    /// Smoothed loss of probes, 0 to 1.
    pub fn loss(&self) -> f64 {
        self.estimate.loss()
    }

    fn rank(&self) -> (bool, Duration) {
        match self.score() {
            Some(score) => (false, score),
            None => (true, self.bias),
        }
    }

    /// Whether data may take it: it was answered, or it is a relay that the topology vouches for.
    fn usable(&self) -> bool {
        self.state != State::Suspect && (self.acks > 0 || !self.way.is_direct())
    }

    fn beats(&self, old: &Self) -> Option<Reason> {
        let (Some(new), Some(before)) =
            (self.score(), old.score().or(Some(old.bias).filter(|_| !old.way.is_direct())))
        else {
            return Some(Reason::Better);
        };
        match (self.way.is_direct(), old.way.is_direct()) {
            (true, false) => (!score::much_worse(new, before)).then_some(Reason::Direct),
            (false, true) => {
                (self.acks >= 3 && score::much_worse(before, new)).then_some(Reason::Better)
            }
            (true, true) | (false, false) => {
                (self.acks >= 3 && score::clearly_better(new, before)).then_some(Reason::Better)
            }
        }
    }
}

/// The carrier of a way, for people; a relayed one is its link's matter.
pub fn carrier(way: Way) -> Option<Carrier> {
    match way {
        Way::Direct(hop) => Some(hop.carrier()),
        Way::Relayed(_) => None,
    }
}
