//! Spreads LSAs: announce the head, pull the payload once.
//!
//! The originator pushes its own new LSAs, since nobody can have them; everybody else announces. Who lacks what was announced
//! pulls it from one neighbour, and from another if that stays silent.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use wire::{
    control::{Announce, Body, LsaHead, Pull, Push},
    id::NodeId,
    lsa::LsaKey,
};

use super::lsdb::{Freshness, Lsdb, key_of};

/// Changes that arrive close together are announced together.
const GATHER: Duration = Duration::from_millis(20);
/// What was pushed is announced too, after this: a push may be lost.
const PUSHED: Duration = Duration::from_millis(300);
/// Pulls under way at once; the next are asked for, together, when half of them are answered.
const MAX_PULLS: usize = 32;
/// A pull is asked elsewhere after this.
const PULL_TIMEOUT: Duration = Duration::from_secs(2);
/// A pull is given up after this many questions; anti-entropy finds it again.
const PULL_TRIES: u32 = 4;
/// Heads in one record: at some 35 B each they fit a datagram of 1200.
const HEADS_PER_RECORD: usize = 28;
/// Bytes of containers in one record, unless one alone is larger.
const PUSH_BYTES: usize = 1000;
/// What may be wanted at once; the rest waits for anti-entropy.
const MAX_WANTED: usize = 8192;

#[derive(Clone, Debug, Default)]
struct Neighbour {
    /// To be announced.
    changed: BTreeSet<LsaKey>,
}

#[derive(Clone, Debug)]
struct Wanted {
    seq: u64,
    from: VecDeque<NodeId>,
    asked: Option<Instant>,
    tries: u32,
}

/// The dissemination of one network's LSAs among our neighbours.
#[derive(Clone, Debug, Default)]
pub struct Flood {
    neighbours: BTreeMap<NodeId, Neighbour>,
    wanted: BTreeMap<LsaKey, Wanted>,
    /// Wanted and not asked for at the moment.
    idle: BTreeSet<LsaKey>,
    /// Asked for, by when.
    asked: BTreeSet<(Instant, LsaKey)>,
    announce_at: Option<Instant>,
    outputs: VecDeque<(NodeId, Body)>,
}

impl Flood {
    pub fn add_neighbour(&mut self, node: NodeId) {
        self.neighbours.entry(node).or_default();
    }

    pub fn remove_neighbour(&mut self, node: NodeId) {
        self.neighbours.remove(&node);
        for (key, wanted) in &mut self.wanted {
            if wanted.from.front() == Some(&node)
                && let Some(asked) = wanted.asked.take()
            {
                self.asked.remove(&(asked, *key));
                self.idle.insert(*key);
            }
            wanted.from.retain(|source| *source != node);
        }
        let lost: Vec<LsaKey> = self
            .wanted
            .iter()
            .filter(|(_, wanted)| wanted.from.is_empty())
            .map(|(key, _)| *key)
            .collect();
        for key in lost {
            self.unwant(&key);
        }
    }

    pub fn neighbours(&self) -> impl Iterator<Item = NodeId> {
        self.neighbours.keys().copied()
    }

    /// An LSA of ours is new: everybody gets it at once.
    pub fn originated(&mut self, lsdb: &Lsdb, key: LsaKey, now: Instant) {
        let Some(copy) = lsdb.copy(&key, now) else { return };
        for (&node, neighbour) in &mut self.neighbours {
            self.outputs.push_back((node, Body::Push(Push { copies: vec![copy.clone()] })));
            neighbour.changed.insert(key);
            self.announce_at.get_or_insert(now + PUSHED);
        }
    }

    /// An LSA was stored that came from `from`: the others hear of it.
    pub fn stored(&mut self, key: LsaKey, from: Option<NodeId>, now: Instant) {
        self.unwant(&key);
        for (&node, neighbour) in &mut self.neighbours {
            if Some(node) != from {
                neighbour.changed.insert(key);
                self.announce_at.get_or_insert(now + GATHER);
            }
        }
        if self.asked.len() <= MAX_PULLS / 2 {
            self.pull(now);
        }
    }

    /// `from` has these; what is newer than ours is pulled.
    pub fn announced(&mut self, lsdb: &Lsdb, from: NodeId, heads: &[LsaHead], now: Instant) {
        for (key, seq) in heads.iter().filter_map(key_of) {
            if let Some(neighbour) = self.neighbours.get_mut(&from)
                && lsdb.freshness(&key, seq) == Freshness::Same
            {
                neighbour.changed.remove(&key);
            }
            if lsdb.freshness(&key, seq) != Freshness::Newer {
                continue;
            }
            if self.wanted.len() >= MAX_WANTED && !self.wanted.contains_key(&key) {
                continue;
            }
            let wanted = self.wanted.entry(key).or_insert_with(|| Wanted {
                seq,
                from: VecDeque::new(),
                asked: None,
                tries: 0,
            });
            if seq > wanted.seq {
                if let Some(asked) = wanted.asked {
                    self.asked.remove(&(asked, key));
                }
                *wanted = Wanted { seq, from: VecDeque::new(), asked: None, tries: 0 };
            }
            if seq == wanted.seq && !wanted.from.contains(&from) {
                wanted.from.push_back(from);
            }
            if wanted.asked.is_none() {
                self.idle.insert(key);
            }
        }
        self.pull(now);
    }

    /// `from` asks for these.
    pub fn pulled(&mut self, lsdb: &Lsdb, from: NodeId, heads: &[LsaHead], now: Instant) {
        let mut push = Push::default();
        let mut bytes = 0;
        for (key, _) in heads.iter().take(MAX_PULLS).filter_map(key_of) {
            let Some(copy) = lsdb.copy(&key, now) else { continue };
            if bytes > 0 && bytes + copy.container.len() > PUSH_BYTES {
                self.outputs.push_back((from, Body::Push(std::mem::take(&mut push))));
                bytes = 0;
            }
            bytes += copy.container.len();
            push.copies.push(copy);
        }
        if !push.copies.is_empty() {
            self.outputs.push_back((from, Body::Push(push)));
        }
    }

    pub fn poll_output(&mut self) -> Option<(NodeId, Body)> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let pulls = self.asked.first().map(|(asked, _)| *asked + PULL_TIMEOUT);
        [self.announce_at, pulls].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, lsdb: &Lsdb, now: Instant) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            for (&node, neighbour) in &mut self.neighbours {
                let heads: Vec<LsaHead> = std::mem::take(&mut neighbour.changed)
                    .iter()
                    .filter_map(|key| lsdb.head(key, now))
                    .collect();
                for heads in heads.chunks(HEADS_PER_RECORD) {
                    self.outputs
                        .push_back((node, Body::Announce(Announce { heads: heads.to_vec() })));
                }
            }
        }
        self.pull(now);
    }

    /// Entries waited for, for the leak test.
    pub fn waiting(&self) -> usize {
        self.wanted.len()
    }

    fn unwant(&mut self, key: &LsaKey) {
        let Some(wanted) = self.wanted.remove(key) else { return };
        self.idle.remove(key);
        if let Some(asked) = wanted.asked {
            self.asked.remove(&(asked, *key));
        }
    }

    /// Gives up what was not answered, and asks for as much as may be under way.
    fn pull(&mut self, now: Instant) {
        while let Some((asked, key)) = self.asked.first().copied()
            && asked + PULL_TIMEOUT <= now
        {
            self.asked.pop_first();
            let Some(wanted) = self.wanted.get_mut(&key) else { continue };
            wanted.asked = None;
            wanted.from.rotate_left(1);
            if wanted.tries < PULL_TRIES {
                self.idle.insert(key);
            } else {
                self.wanted.remove(&key);
            }
        }
        let mut pulls: BTreeMap<NodeId, Vec<LsaHead>> = BTreeMap::new();
        while self.asked.len() < MAX_PULLS {
            let Some(key) = self.idle.pop_first() else { break };
            let Some(wanted) = self.wanted.get_mut(&key) else { continue };
            let Some(&source) = wanted.from.front() else { continue };
            wanted.asked = Some(now);
            wanted.tries += 1;
            self.asked.insert((now, key));
            pulls.entry(source).or_default().push(LsaHead {
                signer: key.signer.0.to_vec(),
                kind: u32::from(key.kind),
                id: key.id,
                seq: wanted.seq,
                age_s: 0,
            });
        }
        for (node, heads) in pulls {
            for heads in heads.chunks(HEADS_PER_RECORD) {
                self.outputs.push_back((node, Body::Pull(Pull { heads: heads.to_vec() })));
            }
        }
    }
}
