//! How the NAT before us filters, whether it turns packets back, and how long it remembers a flow (RFC 4787 §4.3, §5, §6).
//!
//! Two sockets of their own ask, never the one that carries data: a packet that nobody asked for may cost a NAT's
//! mapping (page 18 of the decisions), which is one of the things found out here.
//!
//! ```text
//! Opening ─► Mapping ─► Filtering, hairpin ─┬ answered ─► from another address too? ─► Lifetime ─► Idle
//!                                           └ not ─► is the port of the answer spoilt? ─┘
//! ```
//! The lifetime is asked for slowly: a server that is told to answer late shows whether the flow is remembered until then.
//! Whatever gets no answer stays unknown until the next run, and no run waits for ever.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand_chacha::ChaCha12Rng;
use wire::{
    endpoint::{Behaviour, NatProfile},
    stun::{Change, Class, Message},
};

use super::{Ask, Question};
use crate::{event::Socket, path::addr::SocketId};

/// The numbers under which the sockets are asked for; those of attempts count up from 0.
const OPEN: [u32; 2] = [u32::MAX - 1, u32::MAX];
/// The shell opens at once, or not at all.
const OPENS_WITHIN: Duration = Duration::from_millis(500);
/// What a NAT does hardly changes; which one it is does, and that starts a run by itself.
const AGAIN_AFTER: Duration = Duration::from_secs(3600);
/// A flow of two packets is not remembered like one that lasts: Linux tells them apart after 2 s.
const LASTS_FROM: Duration = Duration::from_secs(3);
/// An answer that was asked for late may be so much later.
const LATE_BY: Duration = Duration::from_secs(3);
/// Times without traffic that are tried: from the third on upwards while they are survived, else downwards. The third is
/// a little more than paths are left alone.
const LIFETIMES_S: [u16; 5] = [7, 14, 28, 56, 112];
const FIRST_LIFETIME: usize = 2;

/// Whom to ask; a server that can answer from elsewhere is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Servers {
    pub(super) main: SocketAddr,
    /// The same server's second port.
    pub(super) second: Option<SocketAddr>,
    /// It has a second address, too.
    pub(super) has_other_address: bool,
}

impl Servers {
    pub(super) fn rank(&self) -> (bool, bool) {
        (self.has_other_address, self.second.is_some())
    }
}

/// What the engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Open { open: u32 },
    Close { socket: SocketId },
}

/// What was found out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Findings {
    filtering: Option<Behaviour>,
    hairpin: Option<bool>,
    clash_risk: bool,
    lifetime_s: u16,
}

/// One run after the other.
#[derive(Clone, Debug, Default)]
pub(super) struct Tests {
    findings: Findings,
    sockets: [Option<SocketId>; 2],
    /// Sockets that the shell has not answered for.
    opening: [bool; 2],
    run: Option<Run>,
    last: Option<(Instant, Servers)>,
    outputs: VecDeque<Output>,
}

#[derive(Clone, Debug)]
struct Run {
    servers: Servers,
    stage: Stage,
    /// Where the two sockets are seen.
    mapped: [SocketAddr; 2],
    /// Something came that the next step may have waited for.
    news: Option<Instant>,
}

#[derive(Clone, Debug)]
enum Stage {
    Opening {
        until: Instant,
    },
    Mapping([Question; 2]),
    Filtering {
        port: Option<Question>,
        hairpin: [Question; 2],
    },
    OtherAddress(Question),
    Clash(Question),
    /// The flow shall be one that lasts before it is left alone.
    Warming {
        search: Search,
        question: Question,
        until: Instant,
    },
    Left {
        search: Search,
        question: Question,
        since: Instant,
    },
}

/// The search for the lifetime.
#[derive(Clone, Copy, Debug)]
struct Search {
    step: usize,
    /// Some step was survived.
    upwards: bool,
    /// The step was tried before: one packet may get lost.
    again: bool,
}

impl Tests {
    /// Starts a run, unless one is under way or the last is recent; `anew` if this may be another NAT than that of the last.
    pub(super) fn start(&mut self, servers: Servers, anew: bool, now: Instant) {
        let better = self.last.is_some_and(|(_, last)| servers.rank() > last.rank());
        if anew {
            self.findings = Findings::default();
        }
        if anew || better {
            self.stop();
        }
        let recent = self.last.is_some_and(|(began, _)| now < began + AGAIN_AFTER);
        if self.run.is_some() || self.opening.contains(&true) || (recent && !anew && !better) {
            return;
        }
        self.last = Some((now, servers));
        self.opening = [true; 2];
        let stage = Stage::Opening { until: now + OPENS_WITHIN };
        let mapped = [servers.main; 2];
        self.run = Some(Run { servers, stage, mapped, news: None });
        self.outputs.extend(OPEN.map(|open| Output::Open { open }));
    }

    /// Everything that was found belongs to a NAT that is not before us any more.
    pub(super) fn forget(&mut self) {
        self.stop();
        self.findings = Findings::default();
        self.last = None;
    }

    /// What became of [`Output::Open`]; false if the number is not ours.
    pub(super) fn opened(&mut self, open: u32, socket: Option<Socket>, now: Instant) -> bool {
        let Some(index) = OPEN.iter().position(|own| *own == open) else { return false };
        self.opening[index] = false;
        self.sockets[index] = socket.map(|socket| socket.id);
        match &mut self.run {
            Some(run) if matches!(run.stage, Stage::Opening { .. }) => run.news = Some(now),
            Some(_) | None => self.close(index),
        }
        true
    }

    /// Takes an answer, or a question of ours that was turned back; true if it was one.
    pub(super) fn heard(&mut self, message: &Message<'_>, from: SocketAddr, now: Instant) -> bool {
        let Some(run) = &mut self.run else { return false };
        let turned_back = message.class == Class::Request;
        let found = run
            .stage
            .questions()
            .find(|(own_address, question)| *own_address == turned_back && question.is_of(message));
        let Some((_, question)) = found else { return false };
        question.take(message, from);
        run.news = Some(now);
        true
    }

    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let run = self.run.as_ref()?;
        let until = match &run.stage {
            Stage::Opening { until } => Some(*until),
            Stage::Mapping(questions) => questions.iter().filter_map(Question::due).min(),
            Stage::Filtering { port, hairpin } => {
                port.iter().chain(hairpin).filter_map(Question::due).min()
            }
            Stage::OtherAddress(question) | Stage::Clash(question) => question.due(),
            Stage::Warming { question, until, .. } => {
                Some(question.due().map_or(*until, |due| due.min(*until)))
            }
            Stage::Left { search, question, since } => {
                Some(question.due().unwrap_or(*since + search.span() + LATE_BY))
            }
        };
        [until, run.news].into_iter().flatten().min()
    }

    /// Gives the questions that are due; true if something was found. `independent` is what the data socket found of the
    /// mapping.
    pub(super) fn handle_timeout(
        &mut self,
        independent: bool,
        rng: &mut ChaCha12Rng,
        now: Instant,
    ) -> (Vec<Ask>, bool) {
        let before = self.findings;
        while self.run.as_ref().is_some_and(|run| run.is_ready(&self.opening, now)) {
            self.step(independent, rng, now);
        }
        let mut asks = Vec::new();
        if let Some(run) = &mut self.run {
            run.news = None;
            run.stage.ask(self.sockets, now, &mut asks);
        }
        (asks, self.findings != before)
    }

    pub(super) fn describe(&self, profile: &mut NatProfile) {
        let Findings { filtering, hairpin, clash_risk, lifetime_s } = self.findings;
        profile.filtering = filtering.unwrap_or(Behaviour::Unknown) as i32;
        profile.hairpin = hairpin;
        profile.clash_risk = clash_risk;
        profile.lifetime_s = lifetime_s.into();
    }

    /// Draws the conclusion of a stage that is over, and goes on to the next.
    fn step(&mut self, independent: bool, rng: &mut ChaCha12Rng, now: Instant) {
        let Some(mut run) = self.run.take() else { return };
        let (servers, findings) = (run.servers, &mut self.findings);
        let ask = |rng: &mut ChaCha12Rng, to| Question::new(to, rng, now);
        let next = match &run.stage {
            Stage::Opening { .. } => {
                let all = self.sockets.iter().all(Option::is_some);
                all.then(|| Stage::Mapping([ask(rng, servers.main), ask(rng, servers.main)]))
            }
            Stage::Mapping([a, b]) => match (a.mapped(), b.mapped()) {
                (Some(a), Some(b)) => {
                    run.mapped = [a, b];
                    let port = servers
                        .second
                        .map(|_| ask(rng, servers.main).changed(Change { ip: false, port: true }));
                    Some(Stage::Filtering { port, hairpin: [ask(rng, b), ask(rng, a)] })
                }
                _ => None,
            },
            Stage::Filtering { port, hairpin } => {
                findings.hairpin = Some(hairpin.iter().any(Question::is_answered));
                match (port, servers.second) {
                    (Some(port), Some(_)) if port.is_answered_from_elsewhere() => {
                        findings.filtering = Some(Behaviour::AddressDependent);
                        Some(if servers.has_other_address {
                            let both = Change { ip: true, port: true };
                            Stage::OtherAddress(ask(rng, servers.main).changed(both))
                        } else {
                            Stage::warming(Search::FIRST, servers.main, rng, now)
                        })
                    }
                    (Some(port), Some(second)) if !port.is_answered() => {
                        findings.filtering = Some(Behaviour::AddressPortDependent);
                        Some(Stage::Clash(ask(rng, second)))
                    }
                    _ => Some(Stage::warming(Search::FIRST, servers.main, rng, now)),
                }
            }
            Stage::OtherAddress(question) => {
                if question.is_answered_from_elsewhere() {
                    findings.filtering = Some(Behaviour::EndpointIndependent);
                }
                Some(Stage::warming(Search::FIRST, servers.main, rng, now))
            }
            Stage::Clash(question) => {
                let moved = question.mapped().is_some_and(|mapped| mapped != run.mapped[0]);
                findings.clash_risk = independent && moved;
                Some(Stage::warming(Search::FIRST, servers.main, rng, now))
            }
            Stage::Warming { search, question, .. } => question.is_answered().then(|| {
                let question = ask(rng, servers.main).late(search.seconds());
                Stage::Left { search: *search, question, since: now }
            }),
            Stage::Left { search, question, since } => {
                let in_time = now + LATE_BY >= *since + search.span();
                if question.is_answered() && in_time {
                    findings.lifetime_s = search.seconds();
                }
                // A server that answers at once cannot answer late.
                let understood = in_time || !question.is_answered();
                let next = search.next(question.is_answered()).filter(|_| understood);
                next.map(|search| Stage::warming(search, servers.main, rng, now))
            }
        };
        let Some(stage) = next else { return self.stop() };
        let warms = matches!(stage, Stage::Warming { .. });
        self.run = Some(Run { stage, news: None, ..run });
        if warms {
            self.close(0);
        }
    }

    /// Ends the run; what was found so far stays.
    fn stop(&mut self) {
        self.run = None;
        self.close(0);
        self.close(1);
    }

    fn close(&mut self, index: usize) {
        let socket = self.sockets.get_mut(index).and_then(Option::take);
        self.outputs.extend(socket.map(|socket| Output::Close { socket }));
    }
}

impl Run {
    /// Whether its stage is over.
    fn is_ready(&self, opening: &[bool], now: Instant) -> bool {
        match &self.stage {
            Stage::Opening { until } => !opening.contains(&true) || *until <= now,
            Stage::Mapping(questions) => questions.iter().all(|one| one.is_over(now)),
            Stage::Filtering { port, hairpin } => {
                port.iter().all(|one| one.is_over(now))
                    && (hairpin.iter().all(|one| one.is_over(now))
                        || hairpin.iter().any(Question::is_answered))
            }
            Stage::OtherAddress(question) | Stage::Clash(question) => question.is_over(now),
            Stage::Warming { until, .. } => *until <= now,
            Stage::Left { search, question, since } => {
                question.is_answered() || *since + search.span() + LATE_BY <= now
            }
        }
    }
}

impl Stage {
    fn warming(search: Search, server: SocketAddr, rng: &mut ChaCha12Rng, now: Instant) -> Self {
        let question = Question::new(server, rng, now);
        Self::Warming { search, question, until: now + LASTS_FROM }
    }

    /// All that was asked, and whether that went to an address of our own.
    fn questions(&mut self) -> impl Iterator<Item = (bool, &mut Question)> {
        let (own, others): (&mut [Question], &mut [Question]) = match self {
            Self::Opening { .. } => (&mut [], &mut []),
            Self::Mapping(questions) => (&mut [], questions),
            Self::Filtering { port, hairpin } => (hairpin, port.as_mut_slice()),
            Self::OtherAddress(question)
            | Self::Clash(question)
            | Self::Warming { question, .. }
            | Self::Left { question, .. } => (&mut [], std::slice::from_mut(question)),
        };
        let own = own.iter_mut().map(|question| (true, question));
        own.chain(others.iter_mut().map(|question| (false, question)))
    }

    fn ask(&mut self, sockets: [Option<SocketId>; 2], now: Instant, asks: &mut Vec<Ask>) {
        let mut say = |question: &mut Question, index: usize| {
            asks.extend(sockets[index].and_then(|socket| question.poll_ask(socket, now)));
        };
        match self {
            Self::Opening { .. } => {}
            Self::Mapping([a, b]) => {
                say(a, 0);
                say(b, 1);
            }
            Self::Filtering { port, hairpin: [a, b] } => {
                if let Some(port) = port {
                    say(port, 0);
                }
                say(a, 0);
                say(b, 1);
            }
            Self::OtherAddress(question) | Self::Clash(question) => say(question, 0),
            Self::Warming { question, .. } | Self::Left { question, .. } => say(question, 1),
        }
    }
}

impl Search {
    const FIRST: Self = Self { step: FIRST_LIFETIME, upwards: false, again: false };

    fn seconds(self) -> u16 {
        LIFETIMES_S.get(self.step).copied().unwrap_or_default()
    }

    fn span(self) -> Duration {
        Duration::from_secs(self.seconds().into())
    }

    /// What is tried after this, if anything.
    fn next(self, survived: bool) -> Option<Self> {
        let new = |step, upwards| Self { step, upwards, again: false };
        match survived {
            true if self.step < FIRST_LIFETIME => None,
            true => Some(new(self.step + 1, true)).filter(|next| next.step < LIFETIMES_S.len()),
            false if !self.again => Some(Self { again: true, ..self }),
            false if self.upwards => None,
            false => Some(new(self.step.checked_sub(1)?, false)),
        }
    }
}

#[cfg(test)]
mod tests;
