//! The link-state records that only the network's root signs, as this cluster says them.
//!
//! CLUSTER names the blocks and ranges of this cluster, EPOCH the keys in force, REVOKE who is no member any more. Members spread
//! them. A record is signed anew when its content changes, and again before it expires; the time of signing makes it newer than what
//! any other holder of the root said before.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use rand_chacha::ChaCha12Rng;
use session::issuer::{Issuer, REPEAT_RECORD_AFTER_S, VALIDITY_S};
use wire::{
    id::{NodeId, NodeKeys},
    lsa::ClusterBody,
};

/// REVOKE records that are kept; with more, the oldest go, which the change of the key epoch makes good.
const MOST_REVOKED: usize = 256;
/// The keys change this often by themselves.
pub const ROTATE: Duration = Duration::from_secs(7 * 24 * 3600);
/// After a revocation they change at once, but not more often than this.
pub const ROTATE_PAUSE: Duration = Duration::from_secs(600);

/// The records of one network.
#[derive(Debug, Default)]
pub struct Records {
    cluster: Option<(ClusterBody, Said)>,
    epoch: Option<(u32, Said)>,
    revoked: BTreeMap<NodeId, Revoked>,
    /// Tells CLUSTER records of one second apart.
    counter: u32,
}

#[derive(Debug)]
struct Said {
    at: u64,
    bytes: Bytes,
}

#[derive(Debug)]
struct Revoked {
    below_serial: u64,
    said: Said,
}

impl Records {
    /// Revokes the certificates that `keys` have now; whether that was news.
    pub fn revoke(
        &mut self,
        keys: NodeKeys,
        issuer: &Issuer,
        now: u64,
        rng: &mut ChaCha12Rng,
    ) -> bool {
        let node = NodeId::of(&keys.sign);
        if self.revoked.contains_key(&node) {
            return false;
        }
        let said = Said { at: now, bytes: issuer.revoke_record(node, now, now, rng).into() };
        self.revoked.insert(node, Revoked { below_serial: now, said });
        while self.revoked.len() > MOST_REVOKED {
            let oldest = self.revoked.iter().min_by_key(|(_, revoked)| revoked.below_serial);
            let Some(oldest) = oldest.map(|(node, _)| *node) else { break };
            self.revoked.remove(&oldest);
        }
        true
    }

    /// Everything that is to be said at `now` (unix seconds).
    pub fn all(
        &mut self,
        issuer: &Issuer,
        claim: &ClusterBody,
        now: u64,
        rng: &mut ChaCha12Rng,
    ) -> Arc<Vec<Bytes>> {
        let due = |said: &Said| now >= said.at + REPEAT_RECORD_AFTER_S;
        if self.cluster.as_ref().is_none_or(|(body, said)| body != claim || due(said)) {
            self.counter = self.counter.wrapping_add(1);
            let bytes = issuer.cluster_record(claim, now, self.counter, rng);
            // More than fits is not claimed at all, which `plan` reports; the old record stays.
            if let Some(bytes) = bytes {
                self.cluster = Some((claim.clone(), Said { at: now, bytes: bytes.into() }));
            }
        }
        let current = issuer.current_epoch();
        let is_epoch_old =
            self.epoch.as_ref().is_none_or(|(epoch, said)| *epoch != current || due(said));
        if current > 0 && is_epoch_old {
            let bytes = issuer.epoch_record(now, rng).into();
            self.epoch = Some((current, Said { at: now, bytes }));
        }
        // A certificate that has expired needs no revocation.
        self.revoked.retain(|_, revoked| now < revoked.below_serial + VALIDITY_S);
        for (node, revoked) in &mut self.revoked {
            if due(&revoked.said) {
                let bytes = issuer.revoke_record(*node, revoked.below_serial, now, rng).into();
                revoked.said = Said { at: now, bytes };
            }
        }
        let epoch = self.epoch.iter().map(|(_, said)| said);
        let cluster = self.cluster.iter().map(|(_, said)| said);
        let revoked = self.revoked.values().map(|revoked| &revoked.said);
        Arc::new(epoch.chain(cluster).chain(revoked).map(|said| said.bytes.clone()).collect())
    }
}

/// The epochs whose keys members have: the one before, the one in force, and the next one, so that everybody has it when it comes.
pub fn epochs(current: u32) -> Vec<u32> {
    [current.saturating_sub(1), current, current.saturating_add(1)]
        .into_iter()
        .filter(|epoch| *epoch > 0)
        .collect()
}

/// Which epoch is to be in force, if another one is. After a revocation it is one whose keys nobody has yet.
///
/// `seen` is the highest that any member heard of: another cluster of the network may have changed the keys.
pub fn next_epoch(
    current: u32,
    since: i64,
    seen: u32,
    revoked_at: Option<i64>,
    now: i64,
) -> Option<u32> {
    if seen > current {
        return Some(seen);
    }
    let age = now.saturating_sub(since);
    let long = i64::try_from(ROTATE.as_secs()).unwrap_or(i64::MAX);
    let short = i64::try_from(ROTATE_PAUSE.as_secs()).unwrap_or(i64::MAX);
    let revoked = revoked_at.is_some_and(|at| at >= since) && age >= short;
    if revoked {
        return Some(current.saturating_add(2));
    }
    (age >= long).then(|| current.saturating_add(1))
}

#[cfg(test)]
mod tests {
    use rand_chacha::rand_core::SeedableRng;
    use wire::id::{DhKey, SignKey};

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn rng() -> ChaCha12Rng {
        ChaCha12Rng::from_seed([1; 32])
    }

    fn keys(byte: u8) -> NodeKeys {
        NodeKeys { sign: SignKey([byte; 32]), dh: DhKey([byte; 32]) }
    }

    #[test]
    fn a_record_is_said_again_before_it_expires_and_else_stays_the_same() {
        let issuer = Issuer::generate(&mut rng());
        let mut records = Records::default();
        let claim = ClusterBody { name: "a".into(), ..ClusterBody::default() };

        let first = records.all(&issuer, &claim, NOW, &mut rng());
        let same = records.all(&issuer, &claim, NOW + 1000, &mut rng());
        let later = records.all(&issuer, &claim, NOW + REPEAT_RECORD_AFTER_S, &mut rng());

        assert_eq!(first.len(), 2);
        assert_eq!(first, same);
        assert!(first.iter().zip(later.iter()).all(|(a, b)| a != b));
    }

    #[test]
    fn a_changed_claim_is_said_at_once() {
        let issuer = Issuer::generate(&mut rng());
        let mut records = Records::default();
        let mut claim = ClusterBody { name: "a".into(), ..ClusterBody::default() };
        let first = records.all(&issuer, &claim, NOW, &mut rng());
        claim.exports.push(wire::certificate::Prefix::new([10, 42, 0, 0].into(), 16));

        let second = records.all(&issuer, &claim, NOW, &mut rng());

        assert_eq!(first[0], second[0]);
        assert_ne!(first[1], second[1]);
    }

    #[test]
    fn a_revocation_is_news_once_and_ends_with_the_certificate() {
        let issuer = Issuer::generate(&mut rng());
        let mut records = Records::default();
        let claim = ClusterBody::default();

        assert!(records.revoke(keys(1), &issuer, NOW, &mut rng()));
        assert!(!records.revoke(keys(1), &issuer, NOW + 5, &mut rng()));
        assert_eq!(records.all(&issuer, &claim, NOW, &mut rng()).len(), 3);
        assert_eq!(records.all(&issuer, &claim, NOW + VALIDITY_S, &mut rng()).len(), 2);
    }

    #[test]
    fn revocations_are_bounded() {
        let issuer = Issuer::generate(&mut rng());
        let mut records = Records::default();
        for byte in 0..=255 {
            records.revoke(keys(byte), &issuer, NOW + u64::from(byte), &mut rng());
        }
        let other = NodeKeys { sign: SignKey([255; 32]), dh: DhKey([0; 32]) };
        let mut sign = other.sign.0;
        sign[0] = 0;
        records.revoke(NodeKeys { sign: SignKey(sign), ..other }, &issuer, NOW + 999, &mut rng());

        assert_eq!(records.revoked.len(), MOST_REVOKED);
        assert!(!records.revoked.contains_key(&NodeId::of(&keys(0).sign)));
    }

    #[test]
    fn members_have_the_keys_of_the_next_epoch_before_it_comes() {
        assert_eq!(epochs(1), [1, 2]);
        assert_eq!(epochs(7), [6, 7, 8]);
        assert!(!epochs(7).contains(&next_epoch(7, 0, 0, Some(5), 600).unwrap()));
    }

    #[test]
    fn keys_change_weekly_upon_revocation_and_when_another_cluster_did() {
        let day = 24 * 3600;
        for (since, seen, revoked, now, expected) in [
            (0, 0, None, 6 * day, None),
            (0, 3, None, 6 * day, None),
            (0, 0, None, 7 * day, Some(4)),
            (0, 5, None, 1, Some(5)),
            (day, 0, Some(day + 10), day + 20, None),
            (day, 0, Some(day + 10), day + 600, Some(5)),
            (day, 0, Some(day - 10), day + 600, None),
        ] {
            let next = next_epoch(3, since, seen, revoked, now);
            assert_eq!(next, expected, "{since} {seen} {revoked:?} {now}");
        }
    }
}
