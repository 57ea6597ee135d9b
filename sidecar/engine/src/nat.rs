//! What the NAT before us does, found on the data socket itself (RFC 5780, RFC 4787 in terms).
//!
//! A round asks every STUN address we know, of one family, from the socket that carries our data: where do you see me?
//! Answers that agree are an endpoint-independent mapping; answers that differ say how they differ. The first
//! answer is used at once. No address, no answer, no server are results too (unknown), tried again with
//! back-off and never in a loop.

pub(crate) mod behaviour;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use rand_chacha::{ChaCha12Rng, rand_core::RngCore};
use wire::{
    endpoint::{
        Allocation, Behaviour, Candidate, CandidateKind, MAX_CANDIDATES, NatProfile, Transport, V6,
    },
    stun::{self, Change, Class, Message, TransactionId},
};

use crate::{
    event::{Interface, Socket},
    path::addr::SocketId,
};

/// Waits after each question, then the round is over (RFC 8489 §6.2.1 in a hurry).
const RETRANSMIT: [Duration; 4] = [
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
    Duration::from_millis(800),
];
/// A good result is checked again after this.
const REFRESH: Duration = Duration::from_secs(600);
/// Without any answer the next round comes after this, then twice as late each time.
const RETRY_FIRST: Duration = Duration::from_secs(5);
const RETRY_MOST: Duration = Duration::from_secs(300);
/// Addresses asked in a round.
const MAX_TARGETS: usize = 6;
/// Peers in a row that see us elsewhere than the last round did, before another round is worth it.
const MISMATCHES: u8 = 3;
/// A doubted result is not asked for again within this.
const DOUBT: Duration = Duration::from_secs(5);
/// Servers that are asked about a socket for one attempt: one might lose the question.
const ASKED_AT_ONCE: usize = 2;
/// Addresses of such a socket that are told.
pub(crate) const MAX_FRESH: usize = 4;
/// Largest step between two ports that still looks sequential.
const SEQUENTIAL: u16 = 16;

/// An address family, each with its own socket, NAT and round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(addr: IpAddr) -> Self {
        if addr.to_canonical().is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// A question to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub socket: SocketId,
    pub to: SocketAddr,
    pub bytes: Vec<u8>,
}

/// A question that is said again until it is answered, or often enough.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    to: SocketAddr,
    transaction: TransactionId,
    change: Change,
    delay: u16,
    tries: usize,
    due: Option<Instant>,
    /// Who answered, and where it saw us; nowhere if it refused.
    answer: Option<(SocketAddr, Option<SocketAddr>)>,
}

#[derive(Clone, Debug)]
struct Round {
    socket: SocketId,
    port: u16,
    tests: Vec<Question>,
    next: Option<Instant>,
    retry: Duration,
    results: Vec<(SocketAddr, SocketAddr)>,
    tested: Option<Instant>,
    mismatches: u8,
}

/// Discovery over both families.
#[derive(Clone, Debug, Default)]
pub struct Discovery {
    rounds: BTreeMap<Family, Round>,
    servers: BTreeSet<SocketAddr>,
    interfaces: Vec<Interface>,
    /// Servers that can answer from another address.
    movable: BTreeSet<SocketAddr>,
    /// The external addresses of the NAT that `behaviour` is about.
    tested_behind: Vec<Vec<u8>>,
    behaviour: behaviour::Tests,
}

impl Discovery {
    /// The data socket of a family, and its port.
    pub fn set_socket(&mut self, family: Family, socket: SocketId, port: u16, now: Instant) {
        let same = self
            .rounds
            .get(&family)
            .is_some_and(|round| round.socket == socket && round.port == port);
        if !same {
            self.rounds.insert(
                family,
                Round {
                    socket,
                    port,
                    tests: Vec::new(),
                    next: Some(now),
                    retry: RETRY_FIRST,
                    results: Vec::new(),
                    tested: None,
                    mismatches: 0,
                },
            );
        }
    }

    /// A STUN address; a new one starts a round.
    pub fn add_server(&mut self, addr: SocketAddr, now: Instant) {
        if self.servers.len() < 2 * MAX_TARGETS && self.servers.insert(addr) {
            self.restart(Family::of(addr.ip()), now);
        }
    }

    /// The host's addresses; a change of them starts everything over.
    pub fn set_interfaces(&mut self, interfaces: &[Interface], now: Instant) {
        if self.interfaces == interfaces {
            return;
        }
        self.interfaces = interfaces.to_vec();
        for round in self.rounds.values_mut() {
            round.results.clear();
        }
        self.behaviour.forget();
        self.restart(Family::V4, now);
        self.restart(Family::V6, now);
    }

    /// Starts a round of `family` now, unless one is under way.
    pub fn restart(&mut self, family: Family, now: Instant) {
        if let Some(round) = self.rounds.get_mut(&family)
            && round.tests.is_empty()
        {
            round.next = Some(now);
            round.retry = RETRY_FIRST;
        }
    }

    /// A public server saw us there, as its answer to a probe says. If that is elsewhere than known, time and again, the
    /// NAT has another address or port for us now.
    pub fn observed(&mut self, seen: SocketAddr, now: Instant) {
        let seen = SocketAddr::new(seen.ip().to_canonical(), seen.port());
        let Some(round) = self.rounds.get_mut(&Family::of(seen.ip())) else { return };
        let independent = round.mapping(false) == Behaviour::EndpointIndependent;
        let known = round.results.iter().any(|(_, mapped)| {
            mapped.ip().to_canonical() == seen.ip()
                && (!independent || mapped.port() == seen.port())
        });
        round.mismatches = if known { 0 } else { round.mismatches + 1 };
        if round.mismatches >= MISMATCHES {
            round.mismatches = 0;
            self.restart(Family::of(seen.ip()), now);
        }
    }

    /// A direct path died: perhaps the NAT has forgotten us, or has another address.
    pub fn doubt(&mut self, now: Instant) {
        for family in [Family::V4, Family::V6] {
            let fresh = self.rounds.get(&family).and_then(|round| round.tested);
            if fresh.is_none_or(|tested| now.saturating_duration_since(tested) >= DOUBT) {
                self.restart(family, now);
            }
        }
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let asks =
            self.rounds.values().flat_map(|round| round.tests.iter().filter_map(|test| test.due));
        let rounds = self
            .rounds
            .values()
            .filter(|round| round.tests.is_empty())
            .filter_map(|round| round.next);
        asks.chain(rounds).chain(self.behaviour.poll_timeout()).min()
    }

    /// Sockets that are wanted, or not any more.
    pub(crate) fn poll_output(&mut self) -> Option<behaviour::Output> {
        self.behaviour.poll_output()
    }

    /// What became of a socket that was wanted; false if it was not by this.
    pub fn opened(&mut self, open: u32, socket: Option<Socket>, now: Instant) -> bool {
        self.behaviour.opened(open, socket, now)
    }

    /// Gives the questions that are due; true if a round ended and the profile may have changed.
    pub fn handle_timeout(&mut self, rng: &mut ChaCha12Rng, now: Instant) -> (Vec<Ask>, bool) {
        let mut asks = Vec::new();
        let mut ended = false;
        let servers: Vec<SocketAddr> = self.servers.iter().copied().collect();
        for (&family, round) in &mut self.rounds {
            if round.tests.is_empty() && round.next.is_some_and(|next| next <= now) {
                round.next = None;
                let targets =
                    servers.iter().filter(|addr| Family::of(addr.ip()) == family).take(MAX_TARGETS);
                round.tests = targets.map(|&to| Question::new(to, rng, now)).collect();
            }
            for test in &mut round.tests {
                asks.extend(test.poll_ask(round.socket, now));
            }
            if !round.tests.is_empty() && round.tests.iter().all(|test| test.due.is_none()) {
                round.finish(now);
                ended = true;
            }
        }
        let independent = self.rounds.get(&Family::V4).is_some_and(|round| {
            round.mapping(self.is_local(round)) == Behaviour::EndpointIndependent
        });
        let (more, found) = self.behaviour.handle_timeout(independent, rng, now);
        asks.extend(more);
        if ended {
            self.test_behaviour(now);
        }
        (asks, ended || found)
    }

    /// What is found out only once where the NAT maps us is known.
    fn test_behaviour(&mut self, now: Instant) {
        let Some(round) = self.rounds.get(&Family::V4) else { return };
        let translated = !matches!(round.mapping(self.is_local(round)), Behaviour::None);
        let external = round.external();
        // One of several addresses may be missing for once.
        let anew = !external.iter().any(|ip| self.tested_behind.contains(ip));
        let servers = round.results.iter().map(|(main, _)| {
            // From there the unasked answer comes: who has two addresses has two ports of each beside the usual ones.
            let is_second = |other: &&SocketAddr| {
                let alike = self.movable.contains(*other) == self.movable.contains(main);
                other.ip() == main.ip() && *other != main && alike
            };
            behaviour::Servers {
                main: *main,
                second: self.servers.iter().find(is_second).copied(),
                has_other_address: self.movable.contains(main),
            }
        });
        let Some(servers) = servers.max_by_key(behaviour::Servers::rank) else { return };
        if translated {
            self.tested_behind = external;
            self.behaviour.start(servers, anew, now);
        } else {
            self.behaviour.forget();
        }
    }

    /// Takes what a STUN server, or the NAT itself, sent us; true if it has to do with a question of ours.
    pub fn answered(&mut self, message: &Message<'_>, from: SocketAddr, now: Instant) -> bool {
        if self.behaviour.heard(message, from, now) {
            return true;
        }
        if message.class != Class::Success {
            return false;
        }
        let mut ended = false;
        let mut other = None;
        let mut known = false;
        for round in self.rounds.values_mut() {
            let Some(test) = round.tests.iter_mut().find(|test| test.is_of(message)) else {
                continue;
            };
            known = true;
            test.take(message, from);
            other = message.other;
            if other.is_some_and(|other| other.ip() != test.to.ip()) {
                self.movable.insert(test.to);
            }
            if round.results.is_empty()
                && let Some(mapped) = message.mapped
            {
                round.results.push((test.to, mapped));
            }
            if round.tests.iter().all(|test| test.due.is_none()) {
                round.finish(now);
                ended = true;
            }
        }
        if let Some(other) = other {
            self.add_server(other, now);
        }
        if ended {
            self.test_behaviour(now);
        }
        known
    }

    /// What peers are told.
    pub fn profile(&self) -> NatProfile {
        let mut profile = NatProfile::default();
        if let Some(round) = self.rounds.get(&Family::V4) {
            let local = self.is_local(round);
            let mapping = round.mapping(local);
            profile.mapping = mapping as i32;
            self.behaviour.describe(&mut profile);
            let (allocation, first, second) = round.allocation();
            profile.allocation = allocation as i32;
            profile.allocation_first = first;
            profile.allocation_second = second;
            let v6_works =
                self.rounds.get(&Family::V6).is_some_and(|round| !round.results.is_empty());
            profile.udp_blocked = round.tested.is_some() && round.results.is_empty() && !v6_works;
            profile.external = round.external();
        }
        profile.v6 = V6::None as i32;
        if let Some(round) = self.rounds.get(&Family::V6)
            && !round.results.is_empty()
        {
            profile.v6 = V6::Filtered as i32;
        }
        profile
    }

    /// When the current result was found.
    pub fn tested(&self) -> Option<Instant> {
        self.rounds.values().filter_map(|round| round.tested).max()
    }

    /// Where peers may try: as the servers saw us, then the host's own addresses; global IPv6 first.
    pub fn candidates(&self) -> Vec<Candidate> {
        let mut found = BTreeSet::new();
        let mut add = |kind, addr| {
            found.insert((
                preference(kind, addr),
                Candidate { kind, transport: Transport::Udp, addr },
            ));
        };
        for (&family, round) in &self.rounds {
            for &(_, mapped) in &round.results {
                add(CandidateKind::Reflexive, mapped);
            }
            for net in self.interfaces.iter().flat_map(|interface| &interface.addresses) {
                if Family::of(net.addr()) == family && useful(net.addr()) {
                    add(CandidateKind::Host, SocketAddr::new(net.addr(), round.port));
                }
            }
        }
        let mut seen = BTreeSet::new();
        let candidates = found.into_iter().map(|(_, candidate)| candidate);
        candidates.filter(|candidate| seen.insert(candidate.addr)).take(MAX_CANDIDATES).collect()
    }

    /// Whether a NAT is before us over IPv4, or one may be; a port of its own does nothing for whoever has none.
    pub fn is_translated(&self) -> bool {
        let round = self.rounds.get(&Family::V4);
        round.is_some_and(|round| round.mapping(self.is_local(round)) != Behaviour::None)
    }

    /// IPv4 servers that answered lately, to be asked where another socket than the usual one is seen.
    pub fn responders(&self) -> impl Iterator<Item = SocketAddr> {
        let answered = self.rounds.get(&Family::V4).into_iter().flat_map(|round| &round.results);
        answered.map(|(server, _)| *server).take(ASKED_AT_ONCE)
    }

    /// Where peers may try another IPv4 socket than the usual one, with this port and seen there.
    pub fn candidates_of(&self, port: u16, mapped: Option<SocketAddr>) -> Vec<Candidate> {
        let nets = self.interfaces.iter().flat_map(|interface| &interface.addresses);
        let hosts = nets
            .map(|net| net.addr())
            .filter(|ip| ip.is_ipv4() && useful(*ip))
            .map(|ip| (CandidateKind::Host, SocketAddr::new(ip, port)));
        let reflexive = mapped.into_iter().map(|addr| (CandidateKind::Reflexive, addr));
        let all = reflexive.chain(hosts.filter(|(_, addr)| Some(*addr) != mapped));
        all.map(|(kind, addr)| Candidate { kind, transport: Transport::Udp, addr })
            .take(MAX_FRESH)
            .collect()
    }

    /// External addresses without ports, to tell whether a peer is behind the same NAT.
    pub fn external(&self) -> BTreeSet<IpAddr> {
        self.rounds
            .values()
            .flat_map(|round| round.results.iter().map(|(_, mapped)| mapped.ip()))
            .collect()
    }

    fn is_local(&self, round: &Round) -> bool {
        let own = |ip: IpAddr| {
            self.interfaces
                .iter()
                .flat_map(|interface| &interface.addresses)
                .any(|net| net.addr() == ip)
        };
        round.results.iter().any(|(_, mapped)| own(mapped.ip()) && mapped.port() == round.port)
    }
}

impl Question {
    pub(crate) fn new(to: SocketAddr, rng: &mut ChaCha12Rng, now: Instant) -> Self {
        let mut transaction = [0; 12];
        rng.fill_bytes(&mut transaction);
        Self {
            to,
            transaction: TransactionId(transaction),
            change: Change::default(),
            delay: 0,
            tries: 0,
            due: Some(now),
            answer: None,
        }
    }

    /// To be answered from elsewhere.
    pub(crate) fn changed(self, change: Change) -> Self {
        Self { change, ..self }
    }

    /// To be answered after so many seconds, and said only once.
    pub(crate) fn late(self, delay: u16) -> Self {
        Self { delay, tries: RETRANSMIT.len() - 1, ..self }
    }

    /// When it is said again, or is over; nothing once it is.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Where the server saw it come from.
    pub(crate) fn mapped(&self) -> Option<SocketAddr> {
        self.answer.and_then(|(_, mapped)| mapped)
    }

    pub(crate) fn is_answered(&self) -> bool {
        self.answer.is_some()
    }

    /// Whether it was granted that the answer come from elsewhere.
    pub(crate) fn is_answered_from_elsewhere(&self) -> bool {
        self.answer.is_some_and(|(from, mapped)| from != self.to && mapped.is_some())
    }

    /// Whether it was answered, or said often enough.
    pub(crate) fn is_over(&self, now: Instant) -> bool {
        self.is_answered()
            || self.due.is_none_or(|due| due <= now && self.tries >= RETRANSMIT.len())
    }

    /// Says it, out of `socket`, if it is due.
    pub(crate) fn poll_ask(&mut self, socket: SocketId, now: Instant) -> Option<Ask> {
        self.due.filter(|due| *due <= now)?;
        let wait = RETRANSMIT.get(self.tries).copied();
        self.tries += 1;
        self.due = wait.map(|wait| now + wait);
        wait?;
        let bytes = stun::request(self.transaction, self.change, self.delay);
        Some(Ask { socket, to: self.to, bytes })
    }

    pub(crate) fn is_of(&self, message: &Message<'_>) -> bool {
        self.transaction == message.transaction
    }

    pub(crate) fn take(&mut self, message: &Message<'_>, from: SocketAddr) {
        self.due = None;
        let from = SocketAddr::new(from.ip().to_canonical(), from.port());
        self.answer = self.answer.or(Some((from, message.mapped)));
    }
}

impl Round {
    fn finish(&mut self, now: Instant) {
        let results: Vec<(SocketAddr, SocketAddr)> =
            self.tests.iter().filter_map(|test| Some((test.to, test.mapped()?))).collect();
        self.tests.clear();
        self.tested = Some(now);
        if results.is_empty() {
            self.next = Some(now + self.retry);
            self.retry = (self.retry * 2).min(RETRY_MOST);
            self.results.clear();
        } else {
            self.next = Some(now + REFRESH);
            self.retry = RETRY_FIRST;
            self.results = results;
        }
    }

    fn mapping(&self, local: bool) -> Behaviour {
        if self.results.is_empty() {
            return Behaviour::Unknown;
        }
        if local {
            return Behaviour::None;
        }
        if self.results.len() < 2 {
            return Behaviour::Unknown;
        }
        let mapped: BTreeSet<SocketAddr> = self.results.iter().map(|(_, mapped)| *mapped).collect();
        if mapped.len() == 1 {
            return Behaviour::EndpointIndependent;
        }
        let by_ip = self.results.iter().fold(
            BTreeMap::<IpAddr, BTreeSet<SocketAddr>>::new(),
            |mut by_ip, result| {
                by_ip.entry(result.0.ip()).or_default().insert(result.1);
                by_ip
            },
        );
        let asked_twice = self.results.len() > by_ip.len();
        if asked_twice && by_ip.len() > 1 && by_ip.values().all(|mapped| mapped.len() == 1) {
            Behaviour::AddressDependent
        } else {
            Behaviour::AddressPortDependent
        }
    }

    fn allocation(&self) -> (Allocation, u32, u32) {
        let mut ports: Vec<u16> = self.results.iter().map(|(_, mapped)| mapped.port()).collect();
        let Some(&last) = ports.last() else { return (Allocation::Unknown, 0, 0) };
        if ports.iter().all(|port| *port == self.port) {
            return (Allocation::Preserve, 0, 0);
        }
        ports.sort_unstable();
        ports.dedup();
        if ports.len() < 2 {
            return (Allocation::Unknown, 0, 0);
        }
        let steps: Vec<u16> = ports.windows(2).map(|pair| pair[1] - pair[0]).collect();
        match steps.iter().max() {
            Some(&step) if step <= SEQUENTIAL => {
                (Allocation::Sequential, u32::from(last), u32::from(step))
            }
            _ => (Allocation::Random, 0, 0),
        }
    }

    fn external(&self) -> Vec<Vec<u8>> {
        let ips: BTreeSet<IpAddr> = self.results.iter().map(|(_, mapped)| mapped.ip()).collect();
        ips.into_iter()
            .map(|ip| wire::endpoint::pack_addr(SocketAddr::new(ip, 0))[..16].to_vec())
            .collect()
    }
}

/// Whether an address of ours, or of a peer, can be a candidate at all.
pub fn useful(addr: IpAddr) -> bool {
    match addr.to_canonical() {
        IpAddr::V4(v4) => {
            !(v4.is_loopback()
                || v4.is_unspecified()
                || v4.is_multicast()
                || v4.is_broadcast()
                || v4.is_link_local())
        }
        IpAddr::V6(v6) => {
            !(v6.is_loopback()
                || v6.is_unspecified()
                || v6.is_multicast()
                || v6.is_unicast_link_local())
        }
    }
}

fn preference(kind: CandidateKind, addr: SocketAddr) -> u8 {
    match (kind, addr.ip()) {
        (CandidateKind::Configured | CandidateKind::Mapped, _) => 0,
        (CandidateKind::Reflexive, _) => 1,
        (CandidateKind::Host, IpAddr::V6(_)) => 2,
        (CandidateKind::Host, IpAddr::V4(_)) => 3,
    }
}

#[cfg(test)]
mod tests;
