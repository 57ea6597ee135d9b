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
    neighbours: BTreeSet<NodeId>,
    /// To be announced, and which neighbours need not hear of it. Once for all of them: a server has thousands, and hardly any is an
    /// exception.
    changed: BTreeMap<LsaKey, BTreeSet<NodeId>>,
    wanted: BTreeMap<LsaKey, Wanted>,
    /// Wanted and not asked for at the moment.
    idle: BTreeSet<LsaKey>,
    /// Asked for, by when.
    asked: BTreeSet<(Instant, LsaKey)>,
    announce_at: Option<Instant>,
    outputs: VecDeque<(Vec<NodeId>, Body)>,
}

impl Flood {
    pub fn add_neighbour(&mut self, node: NodeId) {
        if self.neighbours.insert(node) {
            // What is new to it anti-entropy finds.
            for excepted in self.changed.values_mut() {
                excepted.insert(node);
            }
        }
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
        self.neighbours.iter().copied()
    }

    /// An LSA of ours is new: everybody gets it at once.
    pub fn originated(&mut self, lsdb: &Lsdb, key: LsaKey, now: Instant) {
        let Some(copy) = lsdb.copy(&key, now) else { return };
        if self.neighbours.is_empty() {
            return;
        }
        let all = self.neighbours.iter().copied().collect();
        self.outputs.push_back((all, Body::Push(Push { copies: vec![copy] })));
        self.changed.insert(key, BTreeSet::new());
        self.announce_at.get_or_insert(now + PUSHED);
    }

    /// An LSA was stored that came from `from`: the others hear of it.
    pub fn stored(&mut self, key: LsaKey, from: Option<NodeId>, now: Instant) {
        self.unwant(&key);
        if self.neighbours.iter().any(|node| Some(*node) != from) {
            let excepted = self.changed.remove(&key);
            // Who was to hear of the one before still is.
            let excepted = from.filter(|from| excepted.is_none_or(|all| all.contains(from)));
            self.changed.insert(key, excepted.into_iter().collect());
            self.announce_at.get_or_insert(now + GATHER);
        }
        if self.asked.len() <= MAX_PULLS / 2 {
            self.pull(now);
        }
    }

    /// `from` has these; what is newer than ours is pulled.
    pub fn announced(&mut self, lsdb: &Lsdb, from: NodeId, heads: &[LsaHead], now: Instant) {
        for (key, seq) in heads.iter().filter_map(key_of) {
            if let Some(excepted) = self.changed.get_mut(&key)
                && lsdb.freshness(&key, seq) == Freshness::Same
            {
                excepted.insert(from);
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
                self.outputs.push_back((vec![from], Body::Push(std::mem::take(&mut push))));
                bytes = 0;
            }
            bytes += copy.container.len();
            push.copies.push(copy);
        }
        if !push.copies.is_empty() {
            self.outputs.push_back((vec![from], Body::Push(push)));
        }
    }

    /// What to send, and to whom.
    pub fn poll_output(&mut self) -> Option<(Vec<NodeId>, Body)> {
        self.outputs.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        let pulls = self.asked.first().map(|(asked, _)| *asked + PULL_TIMEOUT);
        [self.announce_at, pulls].into_iter().flatten().min()
    }

    pub fn handle_timeout(&mut self, lsdb: &Lsdb, now: Instant) {
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            self.announce(lsdb, now);
        }
        self.pull(now);
    }

    /// Entries waited for, for the leak test.
    pub fn waiting(&self) -> usize {
        self.wanted.len()
    }

    fn announce(&mut self, lsdb: &Lsdb, now: Instant) {
        let changed = std::mem::take(&mut self.changed);
        let all: BTreeSet<NodeId> = changed.values().flatten().copied().collect();
        let heads: Vec<(LsaHead, BTreeSet<NodeId>)> = changed
            .into_iter()
            .filter_map(|(key, excepted)| Some((lsdb.head(&key, now)?, excepted)))
            .collect();
        let (excepted, others): (Vec<NodeId>, Vec<NodeId>) =
            self.neighbours.iter().partition(|node| all.contains(*node));
        let everything: Vec<LsaHead> = heads.iter().map(|(head, _)| head.clone()).collect();
        self.put_heads(others, &everything);
        for node in excepted {
            let news = heads.iter().filter(|(_, excepted)| !excepted.contains(&node));
            let news: Vec<LsaHead> = news.map(|(head, _)| head.clone()).collect();
            self.put_heads(vec![node], &news);
        }
    }

    fn put_heads(&mut self, to: Vec<NodeId>, heads: &[LsaHead]) {
        if to.is_empty() {
            return;
        }
        for heads in heads.chunks(HEADS_PER_RECORD) {
            let body = Body::Announce(Announce { heads: heads.to_vec() });
            self.outputs.push_back((to.clone(), body));
        }
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
                self.outputs.push_back((vec![node], Body::Pull(Pull { heads: heads.to_vec() })));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use wire::{
        id::{NetworkId, SignKey},
        lsa::{Container, Head, LsaType},
    };

    use super::*;
    use crate::routing::lsdb::Limits;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    fn lsa(signer: u8, seq: u64) -> Container {
        let head = Head {
            network: NetworkId([0; 16]),
            signer: SignKey([signer; 32]),
            kind: LsaType::Node as u8,
            id: 0,
            flags: 0,
            gk_epoch: 0,
            seq,
            lifetime: 60,
            nonce: [0; 24],
        };
        let mut bytes = Container::unsigned(&head, &[], &[0; 16]).unwrap();
        bytes.extend_from_slice(&[0; 64]);
        Container::parse(bytes.into()).unwrap()
    }

    /// Who is told of what, by key and sequence.
    type Told = (Vec<NodeId>, Vec<(LsaKey, u64)>);

    struct Server {
        flood: Flood,
        lsdb: Lsdb,
        now: Instant,
    }

    impl Server {
        fn with_neighbours(count: u8) -> Self {
            let mut flood = Flood::default();
            (1..=count).for_each(|number| flood.add_neighbour(node(number)));
            let now = Instant::now();
            Self { flood, lsdb: Lsdb::new(Limits::SERVER, now), now }
        }

        fn store(&mut self, signer: u8, seq: u64, from: u8) -> LsaKey {
            let container = lsa(signer, seq);
            let key = container.key();
            self.lsdb.insert(&container, 0, self.now).unwrap();
            self.flood.stored(key, Some(node(from)), self.now);
            key
        }

        fn announced(&mut self) -> Vec<Told> {
            let due = self.flood.poll_timeout().unwrap_or(self.now);
            self.flood.handle_timeout(&self.lsdb, due);
            let outputs = std::iter::from_fn(|| self.flood.poll_output());
            let announced = outputs.map(|(to, body)| {
                let Body::Announce(announce) = body else { panic!("{body:?}") };
                (to, announce.heads.iter().filter_map(key_of).collect())
            });
            announced.collect()
        }
    }

    #[test]
    fn what_came_from_one_is_announced_to_all_others_in_one_record() {
        let mut server = Server::with_neighbours(3);
        let key = server.store(9, 1, 2);

        assert_eq!(server.announced(), [(vec![node(1), node(3)], vec![(key, 1)])]);
        assert_eq!(server.announced(), []);
    }

    #[test]
    fn whoever_has_the_same_need_not_hear_of_it_and_of_the_next_it_does() {
        let mut server = Server::with_neighbours(3);
        let first = server.store(8, 1, 1);
        let second = server.store(9, 1, 1);
        let head = server.lsdb.head(&second, server.now).unwrap();
        server.flood.announced(&server.lsdb, node(2), &[head], server.now);

        assert_eq!(
            server.announced(),
            [(vec![node(3)], vec![(first, 1), (second, 1)]), (vec![node(2)], vec![(first, 1)])]
        );

        let head = server.lsdb.head(&second, server.now).unwrap();
        server.store(9, 2, 1);
        server.flood.announced(&server.lsdb, node(2), &[head], server.now);
        server.store(9, 3, 3);
        assert_eq!(server.announced(), [(vec![node(1), node(2), node(3)], vec![(second, 3)])]);
    }

    #[test]
    fn a_neighbour_that_is_new_is_not_told_what_others_are() {
        let mut server = Server::with_neighbours(1);
        let key = server.store(9, 1, 7);
        server.flood.add_neighbour(node(2));

        assert_eq!(server.announced(), [(vec![node(1)], vec![(key, 1)])]);
    }
}
