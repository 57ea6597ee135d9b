//! The newest LSA of every (signer, type, id), as received.
//!
//! Freshness is judged before anything is verified or decoded: most receptions are duplicates. What is withdrawn stays
//! as a tombstone for a while, so that an old copy from a far corner cannot revive it; ages only grow, for the same reason.

use std::{collections::BTreeMap, time::Instant};

use bytes::Bytes;
use wire::{
    control::{LsaCopy, LsaHead},
    id::NodeId,
    lsa::{Container, Head, LsaKey, LsaType},
};

/// Digests are compared by this many buckets.
pub const BUCKETS: usize = 64;
/// A withdrawn LSA is remembered this long: longer than any copy of it is under way.
const TOMBSTONE_S: u32 = 600;
/// No LSA lives longer, whatever it says.
const MAX_LIFETIME: u32 = 24 * 3600;

/// How much may be stored.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub bytes_per_signer: usize,
    /// For the network's root, which speaks for many.
    pub bytes_of_root: usize,
    pub bytes: usize,
}

impl Limits {
    /// For a member, which knows that the signers are members.
    pub const MEMBER: Self =
        Self { bytes_per_signer: 64 * 1024, bytes_of_root: 1024 * 1024, bytes: 64 * 1024 * 1024 };
    /// For a public server, which knows only that they have certificates.
    pub const SERVER: Self =
        Self { bytes_per_signer: 24 * 1024, bytes_of_root: 256 * 1024, bytes: 16 * 1024 * 1024 };
}

/// What an offered LSA is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// We have nothing as new.
    Newer,
    Same,
    /// We have a newer one.
    Older,
}

/// Why an LSA was not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    NotNewer,
    Expired,
    SignerQuota,
    NetworkQuota,
}

/// One LSA, as small as it gets: there are thousands, and each is read once and then only passed on.
#[derive(Clone, Debug)]
struct Entry {
    /// The container as received.
    bytes: Box<[u8]>,
    seq: u64,
    /// When it was made, by the database's clock; before that began for what is older than the database.
    made: i32,
    /// Seconds; 0 withdraws.
    lifetime: u32,
}

impl Entry {
    fn copy(&self) -> Bytes {
        Bytes::copy_from_slice(&self.bytes)
    }

    /// Whole seconds, up to one too many.
    fn age(&self, clock: i32) -> u32 {
        u32::try_from(clock.saturating_sub(self.made)).unwrap_or(0)
    }
}

/// The link-state database of one network.
#[derive(Clone, Debug)]
pub struct Lsdb {
    entries: BTreeMap<LsaKey, Entry>,
    bytes: usize,
    buckets: [u64; BUCKETS],
    limits: Limits,
    started: Instant,
}

impl Lsdb {
    pub fn new(limits: Limits, now: Instant) -> Self {
        Self { entries: BTreeMap::new(), bytes: 0, buckets: [0; BUCKETS], limits, started: now }
    }

    /// Seconds since the database began.
    fn clock(&self, now: Instant) -> i32 {
        i32::try_from(now.saturating_duration_since(self.started).as_secs()).unwrap_or(i32::MAX)
    }

    fn of_signer(&self, signer: NodeId) -> impl Iterator<Item = (&LsaKey, &Entry)> {
        let first = LsaKey { signer, kind: 0, id: 0 };
        let last = LsaKey { signer, kind: u8::MAX, id: u32::MAX };
        self.entries.range(first..=last)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What `seq` of `key` is to us.
    pub fn freshness(&self, key: &LsaKey, seq: u64) -> Freshness {
        match self.entries.get(key).map(|entry| entry.seq.cmp(&seq)) {
            None | Some(std::cmp::Ordering::Less) => Freshness::Newer,
            Some(std::cmp::Ordering::Equal) => Freshness::Same,
            Some(std::cmp::Ordering::Greater) => Freshness::Older,
        }
    }

    /// Stores a verified LSA that is newer than ours. Those of the types that only the root signs are the root's: whoever
    /// verified them saw to that.
    ///
    /// # Errors
    /// It is not newer, too old, or exceeds what its signer or the network may store: a drop.
    pub fn insert(&mut self, container: &Container, age: u32, now: Instant) -> Result<(), Refused> {
        let key = container.key();
        let Head { seq, lifetime, .. } = container.head;
        if self.freshness(&key, seq) != Freshness::Newer {
            return Err(Refused::NotNewer);
        }
        if age >= lives(lifetime) {
            return Err(Refused::Expired);
        }
        let len = container.bytes().len();
        let before = self.entries.get(&key).map_or(0, |entry| entry.bytes.len());
        let signer: usize = self.of_signer(key.signer).map(|(_, entry)| entry.bytes.len()).sum();
        let most = match LsaType::from_byte(key.kind) {
            Some(LsaType::Cluster | LsaType::Epoch | LsaType::Revoke) => self.limits.bytes_of_root,
            Some(LsaType::Node | LsaType::Link) | None => self.limits.bytes_per_signer,
        };
        if signer + len - before > most {
            return Err(Refused::SignerQuota);
        }
        if self.bytes + len - before > self.limits.bytes {
            return Err(Refused::NetworkQuota);
        }
        self.remove(&key);
        self.toggle(&key, seq);
        self.bytes += len;
        let made = self.clock(now).saturating_sub_unsigned(age);
        let bytes = container.bytes().as_ref().into();
        self.entries.insert(key, Entry { bytes, seq, made, lifetime });
        Ok(())
    }

    pub fn contains(&self, key: &LsaKey) -> bool {
        self.entries.contains_key(key)
    }

    pub fn containers(&self) -> impl Iterator<Item = Container> {
        self.entries.values().filter_map(|entry| Container::parse(entry.copy()))
    }

    /// The copy to push, with its age now.
    pub fn copy(&self, key: &LsaKey, now: Instant) -> Option<LsaCopy> {
        let entry = self.entries.get(key)?;
        Some(LsaCopy { age_s: entry.age(self.clock(now)), container: entry.copy() })
    }

    /// The head to announce.
    pub fn head(&self, key: &LsaKey, now: Instant) -> Option<LsaHead> {
        let entry = self.entries.get(key)?;
        Some(LsaHead {
            signer: key.signer.0.to_vec(),
            kind: u32::from(key.kind),
            id: key.id,
            seq: entry.seq,
            age_s: entry.age(self.clock(now)),
        })
    }

    /// All heads of one bucket.
    pub fn bucket_heads(&self, bucket: usize, now: Instant) -> Vec<LsaHead> {
        self.entries
            .keys()
            .filter(|key| bucket_of(key) == bucket)
            .filter_map(|key| self.head(key, now))
            .collect()
    }

    /// One number for the whole state: equal if and (but for chance) only if the databases are.
    pub fn root(&self) -> u64 {
        let mut hasher = blake3::Hasher::new();
        for digest in self.buckets {
            hasher.update(&digest.to_le_bytes());
        }
        first_eight(&hasher)
    }

    pub fn buckets(&self) -> &[u64; BUCKETS] {
        &self.buckets
    }

    /// Removes what is too old; the keys of what was not withdrawn before are returned.
    pub fn expire(&mut self, now: Instant) -> Vec<LsaKey> {
        let clock = self.clock(now);
        let due: Vec<LsaKey> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.age(clock) >= lives(entry.lifetime))
            .map(|(key, _)| *key)
            .collect();
        due.into_iter()
            .filter(|key| self.remove(key).is_some_and(|entry| entry.lifetime != 0))
            .collect()
    }

    /// Forgets all of one signer (it was revoked, or detached from a server that keeps nothing).
    pub fn forget(&mut self, signer: NodeId) {
        let keys: Vec<LsaKey> = self.of_signer(signer).map(|(key, _)| *key).collect();
        for key in keys {
            self.remove(&key);
        }
    }

    fn remove(&mut self, key: &LsaKey) -> Option<Entry> {
        let entry = self.entries.remove(key)?;
        let len = entry.bytes.len();
        self.toggle(key, entry.seq);
        self.bytes -= len;
        Some(entry)
    }

    /// Adds an entry to its bucket's digest, or takes it out: XOR does both.
    fn toggle(&mut self, key: &LsaKey, seq: u64) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&key.signer.0);
        hasher.update(&[key.kind]);
        hasher.update(&key.id.to_le_bytes());
        hasher.update(&seq.to_le_bytes());
        self.buckets[bucket_of(key)] ^= first_eight(&hasher);
    }
}

/// Seconds from its making until nobody keeps it, tombstones included: by its age, so that it dies everywhere at
/// about one time and no database gets it back from another.
fn lives(lifetime: u32) -> u32 {
    match lifetime {
        0 => TOMBSTONE_S,
        lifetime => lifetime.min(MAX_LIFETIME),
    }
}

/// The key and sequence that a head names.
pub fn key_of(head: &LsaHead) -> Option<(LsaKey, u64)> {
    let signer = NodeId::from_slice(&head.signer)?;
    Some((LsaKey { signer, kind: u8::try_from(head.kind).ok()?, id: head.id }, head.seq))
}

fn bucket_of(key: &LsaKey) -> usize {
    usize::from(key.signer.0[15]) % BUCKETS
}

fn first_eight(hasher: &blake3::Hasher) -> u64 {
    let mut bytes = [0; 8];
    hasher.finalize_xof().fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use wire::id::{NetworkId, SignKey};

    use super::*;

    fn lsa(signer: u8, seq: u64, lifetime: u32, len: usize) -> Container {
        let head = Head {
            network: NetworkId([0; 16]),
            signer: SignKey([signer; 32]),
            kind: 1,
            id: 0,
            flags: 0,
            gk_epoch: 0,
            seq,
            lifetime,
            nonce: [0; 24],
        };
        let mut bytes = Container::unsigned(&head, &[], &vec![0; len.max(16)]).unwrap();
        bytes.extend_from_slice(&[0; 64]);
        Container::parse(bytes.into()).unwrap()
    }

    #[test]
    fn only_newer_ones_replace() {
        let now = Instant::now();
        let mut lsdb = Lsdb::new(Limits::MEMBER, now);

        assert_eq!(lsdb.insert(&lsa(1, 5, 60, 0), 0, now), Ok(()));
        assert_eq!(lsdb.insert(&lsa(1, 5, 60, 0), 0, now), Err(Refused::NotNewer));
        assert_eq!(lsdb.insert(&lsa(1, 4, 60, 0), 0, now), Err(Refused::NotNewer));
        assert_eq!(lsdb.insert(&lsa(1, 6, 60, 0), 0, now), Ok(()));
        assert_eq!(lsdb.len(), 1);
    }

    #[test]
    fn the_digest_depends_on_the_content_alone() {
        let now = Instant::now();
        let (mut a, mut b) = (Lsdb::new(Limits::MEMBER, now), Lsdb::new(Limits::MEMBER, now));
        let empty = a.root();
        for signer in 0..20 {
            a.insert(&lsa(signer, 2, 60, 0), 0, now).unwrap();
        }
        assert_ne!(a.root(), empty);
        for signer in (0..20).rev() {
            b.insert(&lsa(signer, 1, 60, 0), 0, now).unwrap();
            b.insert(&lsa(signer, 2, 60, 0), 3, now).unwrap();
        }

        assert_eq!(a.root(), b.root());
        a.expire(now + Duration::from_secs(61));
        assert_eq!((a.root(), a.len(), a.bytes), (empty, 0, 0));
    }

    #[test]
    fn what_is_expired_or_withdrawn_is_not_revived() {
        let now = Instant::now();
        let mut lsdb = Lsdb::new(Limits::MEMBER, now);
        lsdb.insert(&lsa(1, 1, 60, 0), 50, now).unwrap();
        assert_eq!(
            lsdb.copy(&lsa(1, 1, 60, 0).key(), now + Duration::from_secs(4)).unwrap().age_s,
            54
        );
        assert_eq!(lsdb.expire(now + Duration::from_secs(10)).len(), 1);
        assert_eq!(lsdb.insert(&lsa(1, 1, 60, 0), 60, now), Err(Refused::Expired));

        lsdb.insert(&lsa(2, 2, 0, 0), 0, now).unwrap();
        assert_eq!(lsdb.insert(&lsa(2, 1, 60, 0), 0, now), Err(Refused::NotNewer));
        assert_eq!(lsdb.expire(now + Duration::from_secs(600)), []);
        assert!(lsdb.is_empty());
        assert_eq!(lsdb.insert(&lsa(2, 2, 0, 0), 600, now), Err(Refused::Expired));
    }

    #[test]
    fn an_age_is_at_most_a_second_off_and_never_shrinks() {
        let began = Instant::now();
        let mut lsdb = Lsdb::new(Limits::MEMBER, began);
        let received = began + Duration::from_millis(900);
        lsdb.insert(&lsa(1, 1, 600, 0), 70, received).unwrap();
        let key = lsa(1, 1, 600, 0).key();

        let mut before = 0;
        for tenths in 0..50_u32 {
            let age =
                lsdb.copy(&key, received + Duration::from_millis(100) * tenths).unwrap().age_s;
            assert!(age >= before && age.abs_diff(70 + tenths / 10) <= 1, "{age} after {tenths}");
            before = age;
        }
    }

    #[test]
    fn nobody_takes_more_than_its_share() {
        let now = Instant::now();
        let mut lsdb =
            Lsdb::new(Limits { bytes_per_signer: 1000, bytes_of_root: 0, bytes: 1500 }, now);

        assert_eq!(lsdb.insert(&lsa(1, 1, 60, 900), 0, now), Err(Refused::SignerQuota));
        assert_eq!(lsdb.insert(&lsa(1, 1, 60, 800), 0, now), Ok(()));
        assert_eq!(lsdb.insert(&lsa(1, 2, 60, 700), 0, now), Ok(()));
        assert_eq!(lsdb.insert(&lsa(2, 1, 60, 800), 0, now), Err(Refused::NetworkQuota));
    }
}
