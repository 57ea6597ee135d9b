//! A port of its own for each attempt after the first.
//!
//! A NAT that a packet reached too early has given our usual port away for as long as it remembers that packet, so that a
//! retry from there cannot succeed. It goes out of a new socket; where the NAT maps that is asked before the peer is told.
//!
//! ```text
//! prepare ─► Opening ─► Asking ─► Ready, used by the attempt ─► Over ─► closed, or carries a path and is kept
//!               │ refused, or too many: ready without a port
//! ```

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::{Duration, Instant},
};

use rand_chacha::ChaCha12Rng;
use wire::{endpoint::Candidate, id::NodeId, stun::Message};

use crate::{
    event::Socket,
    nat::{Ask, Question},
    path::addr::SocketId,
};

/// Sockets at once, those that carry paths included: a process may have 1024 descriptors, and others need some.
pub const MAX_PORTS: usize = 64;
/// The shell opens at once, or not at all.
const OPENS_WITHIN: Duration = Duration::from_millis(500);
/// The peer is told without an address from then on: its probes may show it.
const ASKED_WITHIN: Duration = Duration::from_millis(500);
/// Of two requests that cross, the one counts that is no older than this.
const ASKS_FOR: Duration = Duration::from_millis(1500);
/// An attempt is over by then, whether or not it said so.
const USED_WITHIN: Duration = Duration::from_secs(6);
/// A port that nothing came of is closed so long after its attempt: what is on the way may still come.
const CLOSED_AFTER: Duration = Duration::from_secs(2);
/// How often a port with a path is looked at.
const LOOKED_AT_EVERY: Duration = Duration::from_secs(5);

/// What a port is made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To ask the peer for an attempt.
    Request,
    /// To answer its request, which told of these addresses.
    Answer { attempt: u64, fresh: Vec<Candidate> },
}

/// What the engine is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Open {
        open: u32,
    },
    Ask(Ask),
    /// The peer may be told. There is a port, unless none could be had.
    Ready {
        peer: NodeId,
        purpose: Purpose,
    },
    /// Close it, unless it carries a path to the peer.
    Idle {
        open: u32,
        peer: NodeId,
        socket: SocketId,
    },
    /// It was not to be had in time, and nobody wants it any more.
    Close {
        socket: SocketId,
    },
}

/// A port that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    pub socket: SocketId,
    pub number: u16,
    /// Where the servers saw it.
    pub mapped: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Opening,
    Asking,
    Ready,
    Over,
}

#[derive(Clone, Debug)]
struct Entry {
    peer: NodeId,
    stage: Stage,
    until: Instant,
    /// Until the peer may be told.
    purpose: Option<Purpose>,
    asked_at: Option<Instant>,
    port: Option<Port>,
    questions: Vec<Question>,
}

/// All such ports of this node.
#[derive(Clone, Debug, Default)]
pub struct Ports {
    next: u32,
    entries: BTreeMap<u32, Entry>,
    outputs: VecDeque<Output>,
}

impl Ports {
    /// Wants a port for an attempt with `peer`. One that is not over yet serves again.
    pub fn prepare(&mut self, peer: NodeId, purpose: Purpose, now: Instant) {
        let asked_at = (purpose == Purpose::Request).then_some(now);
        if let Some(entry) = self.current_mut(peer) {
            // The peer waits for an answer; asking for another attempt beside it would have both sides wait.
            if asked_at.is_some() && matches!(entry.purpose, Some(Purpose::Answer { .. })) {
                return;
            }
            entry.asked_at = asked_at;
            if entry.stage == Stage::Ready {
                entry.until = now + USED_WITHIN;
                self.outputs.push_back(Output::Ready { peer, purpose });
            } else {
                entry.purpose = Some(purpose);
            }
            return;
        }
        if self.entries.len() >= MAX_PORTS {
            self.outputs.push_back(Output::Ready { peer, purpose });
            return;
        }
        let open = self.next;
        self.next = self.next.wrapping_add(1);
        let entry = Entry {
            peer,
            stage: Stage::Opening,
            until: now + OPENS_WITHIN,
            purpose: Some(purpose),
            asked_at,
            port: None,
            questions: Vec::new(),
        };
        self.entries.insert(open, entry);
        self.outputs.push_back(Output::Open { open });
    }

    /// What became of [`Output::Open`]; `servers` say where the port is seen.
    pub fn opened(
        &mut self,
        open: u32,
        socket: Option<Socket>,
        servers: impl Iterator<Item = SocketAddr>,
        rng: &mut ChaCha12Rng,
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(&open).filter(|entry| entry.port.is_none()) else {
            self.outputs.extend(socket.map(|socket| Output::Close { socket: socket.id }));
            return;
        };
        let Some(socket) = socket else {
            if let Some(mut entry) = self.entries.remove(&open) {
                self.outputs.extend(entry.told());
            }
            return;
        };
        entry.port = Some(Port { socket: socket.id, number: socket.local.port(), mapped: None });
        if entry.stage == Stage::Over {
            return;
        }
        entry.questions = servers.map(|server| Question::new(server, rng, now)).collect();
        entry.stage = Stage::Asking;
        entry.until = now + ASKED_WITHIN;
        if entry.questions.is_empty() {
            self.outputs.extend(entry.ready(now));
        }
        self.handle_timeout(now);
    }

    /// Takes a STUN answer; true if it was to one of our questions.
    pub fn answered(&mut self, message: &Message<'_>, from: SocketAddr, now: Instant) -> bool {
        for entry in self.entries.values_mut() {
            let Some(question) = entry.questions.iter_mut().find(|one| one.is_of(message)) else {
                continue;
            };
            question.take(message, from);
            if let (Some(port), Some(mapped)) = (&mut entry.port, question.mapped()) {
                port.mapped = port.mapped.or(Some(mapped));
                if entry.stage == Stage::Asking {
                    self.outputs.extend(entry.ready(now));
                }
            }
            return true;
        }
        false
    }

    /// The port of the attempt with `peer` that is being prepared or runs.
    pub fn of(&self, peer: NodeId) -> Option<Port> {
        let current = |entry: &&Entry| entry.peer == peer && entry.stage == Stage::Ready;
        self.entries.values().find(current).and_then(|entry| entry.port)
    }

    /// Whether this node asks `peer` for an attempt, or just did.
    pub fn asks(&self, peer: NodeId, now: Instant) -> bool {
        let recent = |asked: Instant| now.saturating_duration_since(asked) < ASKS_FOR;
        self.entries.values().any(|entry| entry.peer == peer && entry.asked_at.is_some_and(recent))
    }

    /// The attempt with `peer` is over, or not wanted any more.
    pub fn over(&mut self, peer: NodeId, now: Instant) {
        for entry in self.entries.values_mut().filter(|entry| entry.peer == peer) {
            if entry.stage != Stage::Over {
                entry.stage = Stage::Over;
                entry.purpose = None;
                entry.asked_at = None;
                entry.questions.clear();
                entry.until = now + CLOSED_AFTER;
            }
        }
    }

    /// An idle port is closed: forget it.
    pub fn closed(&mut self, open: u32) {
        self.entries.remove(&open);
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let questions = self.entries.values().flat_map(|entry| &entry.questions);
        let due = questions.filter_map(Question::due);
        due.chain(self.entries.values().map(|entry| entry.until)).min()
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let mut gone = Vec::new();
        for (&open, entry) in &mut self.entries {
            if let Some(port) = entry.port {
                let questions = entry.questions.iter_mut();
                let asks = questions.filter_map(|question| question.poll_ask(port.socket, now));
                self.outputs.extend(asks.map(Output::Ask));
            }
            if now < entry.until {
                continue;
            }
            match (entry.stage, entry.port) {
                (_, None) => {
                    self.outputs.extend(entry.told());
                    gone.push(open);
                }
                (Stage::Opening | Stage::Asking, Some(_)) => self.outputs.extend(entry.ready(now)),
                (Stage::Ready | Stage::Over, Some(port)) => {
                    entry.stage = Stage::Over;
                    entry.until = now + LOOKED_AT_EVERY;
                    let (peer, socket) = (entry.peer, port.socket);
                    self.outputs.push_back(Output::Idle { open, peer, socket });
                }
            }
        }
        for open in gone {
            self.entries.remove(&open);
        }
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn current_mut(&mut self, peer: NodeId) -> Option<&mut Entry> {
        self.entries.values_mut().find(|entry| entry.peer == peer && entry.stage != Stage::Over)
    }
}

impl Entry {
    fn ready(&mut self, now: Instant) -> Option<Output> {
        self.stage = Stage::Ready;
        self.until = now + USED_WITHIN;
        self.questions.clear();
        self.told()
    }

    fn told(&mut self) -> Option<Output> {
        let purpose = self.purpose.take()?;
        Some(Output::Ready { peer: self.peer, purpose })
    }
}

#[cfg(test)]
mod tests;
