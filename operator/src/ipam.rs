//! Which IPv4 address each member of this cluster has.
//!
//! All clusters of a network share one range. A cluster *claims* blocks of 256 addresses in it and gives addresses out of its
//! own blocks; the EasyPeers are the record. [`allocate`] is a function of that record, of who wants an address and of what other
//! clusters claim, so asking twice, or in another order, gives the same answer.
//!
//! - An address that a member has stays its own, unless two have it (the older one keeps it) or another cluster has a better claim
//!   to the block.
//! - A new address comes from the member's name, then the next free one: a node that is created anew under its old name most
//!   likely has its old address.
//! - Of two claims to a block that were made more than ten minutes apart the older one wins, else that of the cluster whose name
//!   sorts first. The loser keeps its addresses for [`DRAIN`], so that people see what is coming, and renumbers then.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    time::Duration,
};

use ipnet::Ipv4Net;

use crate::names::hash64;

/// How long the address of a member that is gone stays its own.
pub const HOLD: Duration = Duration::from_secs(3600);
/// How long a lost block is still used.
pub const DRAIN: Duration = Duration::from_secs(60);

/// Claims less far apart count as made at once; clocks of clusters are not exact.
const SENIORITY_S: i64 = 600;
const BLOCK_LEN: u8 = 24;
/// The first and the last address of a block are left out: some hosts take them for something else.
const USABLE: u32 = 254;

/// What is known.
#[derive(Clone, Debug)]
pub struct Known<'a> {
    /// Of the whole network; at most a /24.
    pub range: Ipv4Net,
    /// This cluster's name.
    pub cluster: &'a str,
    /// Addresses given, in any order.
    pub records: &'a [Record],
    /// Members that shall have an address, in any order.
    pub wanted: &'a BTreeSet<String>,
    /// What other clusters claim, in any order.
    pub claims: &'a [Claim],
    /// Blocks that were lost to another cluster, and when that was first seen (unix seconds).
    pub lost: &'a BTreeMap<Ipv4Net, i64>,
    /// Unix seconds.
    pub now: i64,
}

/// One address given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub owner: String,
    pub address: Ipv4Addr,
    /// Unix seconds.
    pub since: i64,
    /// The owner is gone, and nobody else gets the address before this time (unix seconds).
    pub held_until: Option<i64>,
}

/// A cluster's claim to a block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub cluster: String,
    pub block: Ipv4Net,
    /// Unix seconds.
    pub since: i64,
}

/// What follows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocation {
    /// The address of everybody who wants one and could get one.
    pub addresses: BTreeMap<String, Ipv4Addr>,
    /// This cluster's claims: block and unix seconds.
    pub blocks: BTreeMap<Ipv4Net, i64>,
    /// Who had to give up an address, and to whom.
    pub duplicates: Vec<Duplicate>,
    /// Blocks that another cluster has the better claim to, with its name and when that was first seen.
    pub lost: BTreeMap<Ipv4Net, (String, i64)>,
    /// Who gets none, since every block of the range is somebody's.
    pub exhausted: BTreeSet<String>,
    /// When the answer may change without anything happening (unix seconds).
    pub next: Option<i64>,
}

/// An address that two had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Duplicate {
    pub address: Ipv4Addr,
    pub keeps: String,
    pub renumbered: String,
}

/// Says who has which address.
pub fn allocate(known: &Known<'_>) -> Allocation {
    let mut allocation = Allocation::default();
    let foreign = foreign_blocks(known, &mut allocation);
    let mut taken = Taken::default();

    let mut records: Vec<&Record> = known.records.iter().collect();
    records.sort_by(|a, b| (a.since, &a.owner, a.address).cmp(&(b.since, &b.owner, b.address)));
    for record in records {
        let block = block_of(record.address);
        let wanted = known.wanted.contains(&record.owner);
        let held = record.held_until.is_some_and(|until| until > known.now);
        if !(wanted || held) || !known.range.contains(&record.address) || foreign.contains(&block) {
            continue;
        }
        if let Some(keeps) = taken.owner(record.address) {
            let (keeps, renumbered) = (keeps.to_owned(), record.owner.clone());
            if keeps != renumbered && wanted {
                let address = record.address;
                allocation.duplicates.push(Duplicate { address, keeps, renumbered });
            }
            continue;
        }
        if allocation.addresses.contains_key(&record.owner) {
            continue;
        }
        taken.insert(record.address, &record.owner);
        let since = allocation.blocks.entry(block).or_insert(record.since);
        *since = record.since.min(*since);
        if wanted {
            allocation.addresses.insert(record.owner.clone(), record.address);
        } else if let Some(until) = record.held_until {
            allocation.next = earliest(allocation.next, until);
        }
    }

    for owner in known.wanted {
        if allocation.addresses.contains_key(owner) {
            continue;
        }
        let Some(address) = free_address(owner, known, &allocation.blocks, &taken, &foreign) else {
            allocation.exhausted.insert(owner.clone());
            continue;
        };
        taken.insert(address, owner);
        allocation.blocks.entry(block_of(address)).or_insert(known.now);
        allocation.addresses.insert(owner.clone(), address);
    }
    allocation
}

/// Addresses and who has them.
#[derive(Debug, Default)]
struct Taken<'a> {
    owners: BTreeMap<Ipv4Addr, &'a str>,
    /// Of each block how many of those that may be given.
    counts: BTreeMap<Ipv4Net, u32>,
}

impl<'a> Taken<'a> {
    fn insert(&mut self, address: Ipv4Addr, owner: &'a str) {
        let block = block_of(address);
        let place = u32::from(address) - u32::from(block.network());
        let is_new = self.owners.insert(address, owner).is_none();
        if is_new && (1..=USABLE).contains(&place) {
            *self.counts.entry(block).or_default() += 1;
        }
    }

    fn owner(&self, address: Ipv4Addr) -> Option<&'a str> {
        self.owners.get(&address).copied()
    }

    fn is_full(&self, block: &Ipv4Net) -> bool {
        self.counts.get(block) == Some(&USABLE)
    }
}

/// The blocks that this cluster must not use; notes in `allocation` those that it lost.
fn foreign_blocks(known: &Known<'_>, allocation: &mut Allocation) -> BTreeSet<Ipv4Net> {
    let mut own: BTreeMap<Ipv4Net, i64> = BTreeMap::new();
    for record in known.records {
        let since = own.entry(block_of(record.address)).or_insert(record.since);
        *since = record.since.min(*since);
    }
    let mut foreign = BTreeSet::new();
    let mut claims: Vec<&Claim> =
        known.claims.iter().filter(|claim| claim.cluster != known.cluster).collect();
    claims.sort_by(|a, b| (&a.cluster, a.block, a.since).cmp(&(&b.cluster, b.block, b.since)));
    for claim in claims {
        for block in blocks_of(claim.block, known.range) {
            let Some(since) = own.get(&block) else {
                foreign.insert(block);
                continue;
            };
            if wins((*since, known.cluster), (claim.since, &claim.cluster)) {
                continue;
            }
            let seen = known.lost.get(&block).copied().unwrap_or(known.now);
            let drained = seen + seconds(DRAIN);
            allocation.lost.entry(block).or_insert_with(|| (claim.cluster.clone(), seen));
            if drained <= known.now {
                foreign.insert(block);
            } else {
                allocation.next = earliest(allocation.next, drained);
            }
        }
    }
    foreign
}

/// Whether claim `a` (unix seconds, cluster) beats claim `b`.
fn wins(a: (i64, &str), b: (i64, &str)) -> bool {
    if a.0.saturating_add(SENIORITY_S) < b.0 {
        return true;
    }
    if b.0.saturating_add(SENIORITY_S) < a.0 {
        return false;
    }
    a.1 < b.1
}

fn free_address(
    owner: &str,
    known: &Known<'_>,
    own: &BTreeMap<Ipv4Net, i64>,
    taken: &Taken<'_>,
    foreign: &BTreeSet<Ipv4Net>,
) -> Option<Ipv4Addr> {
    let start = u32::try_from(hash64(&["address", owner]) % u64::from(USABLE)).unwrap_or(0);
    let free_in = |block: &Ipv4Net| {
        if taken.is_full(block) {
            return None;
        }
        (0..USABLE)
            .map(|step| Ipv4Addr::from(u32::from(block.network()) + 1 + (start + step) % USABLE))
            .find(|address| taken.owner(*address).is_none())
    };
    // A block that is on its way out gets nobody new, though it may still be in use.
    let staying = own.keys().filter(|block| !foreign.contains(block));
    let staying = staying.filter(|block| !is_lost(block, known, own));
    if let Some(address) = staying.clone().find_map(free_in) {
        return Some(address);
    }
    let count = 1_u32 << (BLOCK_LEN - known.range.prefix_len().min(BLOCK_LEN));
    let start =
        u32::try_from(hash64(&["block", known.cluster]) % u64::from(count)).unwrap_or_default();
    let fresh = (0..count)
        .map(|step| nth_block(known.range, (start + step) % count))
        .find(|block| !foreign.contains(block) && !own.contains_key(block))?;
    free_in(&fresh)
}

fn is_lost(block: &Ipv4Net, known: &Known<'_>, own: &BTreeMap<Ipv4Net, i64>) -> bool {
    let Some(since) = own.get(block) else { return false };
    known
        .claims
        .iter()
        .filter(|claim| claim.cluster != known.cluster && overlap(claim.block, *block))
        .any(|claim| !wins((*since, known.cluster), (claim.since, &claim.cluster)))
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The blocks of `range` that `claimed` touches.
fn blocks_of(claimed: Ipv4Net, range: Ipv4Net) -> Vec<Ipv4Net> {
    if !overlap(claimed, range) {
        return Vec::new();
    }
    let both = if claimed.prefix_len() > range.prefix_len() { claimed } else { range };
    if both.prefix_len() >= BLOCK_LEN {
        return vec![block_of(both.network())];
    }
    both.subnets(BLOCK_LEN).map(Iterator::collect).unwrap_or_default()
}

fn block_of(address: Ipv4Addr) -> Ipv4Net {
    let [a, b, c, _] = address.octets();
    Ipv4Net::new(Ipv4Addr::new(a, b, c, 0), BLOCK_LEN).unwrap_or_default()
}

fn nth_block(range: Ipv4Net, index: u32) -> Ipv4Net {
    block_of(Ipv4Addr::from(u32::from(range.network()) + (index << 8)))
}

fn earliest(a: Option<i64>, b: i64) -> Option<i64> {
    Some(a.map_or(b, |a| a.min(b)))
}

fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
