//! Anti-entropy: finds what flooding missed, by digests, with one neighbour at a time.
//!
//! ```text
//! A ── Digest(root) ──► B      equal: nothing more
//! A ◄── Buckets ─────── B      64 digests
//! A ── BucketHeads ───► B      heads of those that differ, and "yours please"
//! A ◄── BucketHeads ─── B      its heads; both pull what is newer
//! ```
//! So a reconnect is always a delta.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use wire::{
    control::{Body, BucketHeads, Buckets, Digest, LsaHead},
    id::NodeId,
};

use super::lsdb::{BUCKETS, Lsdb};

const INTERVAL: Duration = Duration::from_secs(10);
/// A new neighbour is compared with at once, and again after these waits, since any part of a round may be lost.
const FIRST_AGAIN: Duration = Duration::from_secs(1);
const LAST_AGAIN: Duration = Duration::from_secs(4);
const HEADS_PER_RECORD: usize = 28;

/// The rounds of one network.
#[derive(Clone, Debug)]
pub struct Sync {
    next: Instant,
    turn: usize,
    /// Neighbours that are new: when they are compared with again, and what the wait was.
    fresh: BTreeMap<NodeId, (Instant, Duration)>,
    outputs: VecDeque<(NodeId, Body)>,
}

impl Sync {
    /// `offset` spreads the rounds of many nodes over the interval.
    pub fn new(offset: Duration, now: Instant) -> Self {
        Self {
            next: now + offset.min(INTERVAL),
            turn: 0,
            fresh: BTreeMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// A neighbour is new: it is compared with at once.
    pub fn started(&mut self, lsdb: &Lsdb, node: NodeId, now: Instant) {
        self.fresh.insert(node, (now + FIRST_AGAIN, FIRST_AGAIN));
        self.outputs.push_back((node, Body::Digest(digest(lsdb))));
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.fresh.values().map(|(at, _)| *at).chain([self.next]).min()
    }

    pub fn handle_timeout(&mut self, lsdb: &Lsdb, neighbours: &[NodeId], now: Instant) {
        self.ask_fresh(lsdb, neighbours, now);
        if now < self.next {
            return;
        }
        self.next = now + INTERVAL;
        if neighbours.is_empty() {
            return;
        }
        self.turn = (self.turn + 1) % neighbours.len();
        if let Some(&node) = neighbours.get(self.turn) {
            self.outputs.push_back((node, Body::Digest(digest(lsdb))));
        }
    }

    fn ask_fresh(&mut self, lsdb: &Lsdb, neighbours: &[NodeId], now: Instant) {
        self.fresh.retain(|node, (at, wait)| {
            if now < *at {
                return true;
            }
            if neighbours.contains(node) {
                self.outputs.push_back((*node, Body::Digest(digest(lsdb))));
            }
            *wait *= 2;
            *at = now + *wait;
            *wait <= LAST_AGAIN && neighbours.contains(node)
        });
    }

    pub fn on_digest(&mut self, lsdb: &Lsdb, from: NodeId, theirs: &Digest) {
        if theirs.root != lsdb.root() {
            self.outputs
                .push_back((from, Body::Buckets(Buckets { digests: lsdb.buckets().to_vec() })));
        }
    }

    pub fn on_buckets(&mut self, lsdb: &Lsdb, from: NodeId, theirs: &Buckets, now: Instant) {
        if theirs.digests.len() != BUCKETS {
            return;
        }
        let differing: Vec<usize> = (0..BUCKETS)
            .filter(|&bucket| theirs.digests.get(bucket) != lsdb.buckets().get(bucket))
            .collect();
        self.send_heads(lsdb, from, &differing, true, now);
    }

    /// The heads are for [`super::flood::Flood::announced`]; if they are wanted in return, ours are sent.
    pub fn on_bucket_heads(
        &mut self,
        lsdb: &Lsdb,
        from: NodeId,
        theirs: &BucketHeads,
        now: Instant,
    ) {
        if theirs.reply {
            let buckets: Vec<usize> = theirs
                .buckets
                .iter()
                .map(|&bucket| bucket as usize)
                .filter(|&bucket| bucket < BUCKETS)
                .collect();
            self.send_heads(lsdb, from, &buckets, false, now);
        }
    }

    pub fn poll_output(&mut self) -> Option<(NodeId, Body)> {
        self.outputs.pop_front()
    }

    fn send_heads(
        &mut self,
        lsdb: &Lsdb,
        to: NodeId,
        buckets: &[usize],
        reply: bool,
        now: Instant,
    ) {
        let heads: Vec<LsaHead> =
            buckets.iter().flat_map(|&bucket| lsdb.bucket_heads(bucket, now)).collect();
        let mut rest: Vec<u32> = buckets.iter().map(|&bucket| bucket as u32).collect();
        if heads.is_empty() && reply && !rest.is_empty() {
            self.outputs
                .push_back((to, Body::BucketHeads(BucketHeads { buckets: rest, heads, reply })));
            return;
        }
        for heads in heads.chunks(HEADS_PER_RECORD) {
            let buckets = std::mem::take(&mut rest);
            let reply = reply && !buckets.is_empty();
            self.outputs.push_back((
                to,
                Body::BucketHeads(BucketHeads { buckets, heads: heads.to_vec(), reply }),
            ));
        }
    }
}

fn digest(lsdb: &Lsdb) -> Digest {
    Digest { root: lsdb.root(), entries: u32::try_from(lsdb.len()).unwrap_or(u32::MAX) }
}
