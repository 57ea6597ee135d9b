//! The root of a network in issued mode: what makes others members.
//!
//! A root key fixes the NetworkId for good; pre-shared and group keys derive from a master key and the epoch, so they
//! change without anybody being renumbered:
//!
//! ```text
//! psk(e) = HKDF(master, "psk" ‖ e)         group key(e) = HKDF(master, "group" ‖ e)
//! ```
//! An issuer signs identity certificates, attributes, and the three link-state records that only the root may say.
//! Every holder of the same parts is the same issuer, so several clusters share a network.

use std::{collections::BTreeMap, fmt};

use ed25519_dalek::SigningKey;
use prost::Message;
use rand_core::{CryptoRng, RngCore};
use wire::{
    certificate::{Attributes, Signed},
    id::{NetworkId, NodeId, NodeKeys, SignKey},
    lsa::{ClusterBody, EpochBody, Head, LsaType, RevokeBody},
};
use zeroize::Zeroizing;

use crate::{
    certificate, lsa,
    membership::{EpochKeys, Master, Membership, low_byte},
};

/// How long a certificate is good, in seconds: days without an issuer break nothing.
pub const VALIDITY_S: u64 = 7 * 24 * 3600;
/// A certificate older than this is renewed, in seconds.
pub const RENEW_AFTER_S: u64 = 24 * 3600;
/// How long the link state keeps an issuer's record, in seconds: its most. Who issued it says it again before.
pub const RECORD_LIFETIME_S: u32 = 24 * 3600;
/// A record is said again after this, in seconds.
pub const REPEAT_RECORD_AFTER_S: u64 = 8 * 3600;
/// The epoch of a new network; 0 is that of secret mode, which stays there.
pub const FIRST_EPOCH: u32 = 1;

/// The root of a network, with the keys of its epochs.
#[derive(Clone)]
pub struct Issuer {
    root: SigningKey,
    key: SignKey,
    master: Master,
    epoch: u32,
}

/// An issuer's secrets, to be kept in one place alone. All of it is zeroised when dropped.
pub struct Parts {
    /// Ed25519 seed of the root.
    pub root: Zeroizing<[u8; 32]>,
    pub master: Zeroizing<[u8; 32]>,
    /// The epoch in force.
    pub epoch: u32,
}

impl Issuer {
    /// A new network.
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let (mut root, mut master) = (Zeroizing::new([0; 32]), Zeroizing::new([0; 32]));
        rng.fill_bytes(&mut *root);
        rng.fill_bytes(&mut *master);
        Self::from_parts(&root, &master, FIRST_EPOCH)
    }

    pub fn from_parts(root: &[u8; 32], master: &[u8; 32], epoch: u32) -> Self {
        Self::new(SigningKey::from_bytes(root), Master::from_bytes(*master), epoch)
    }

    /// The network that nodes join by name and secret; its epoch is 0 and stays so.
    pub fn from_secret(name: &str, secret: &str) -> Self {
        let master = Master::derive(name, secret);
        Self::new(master.root(), master, 0)
    }

    fn new(root: SigningKey, master: Master, epoch: u32) -> Self {
        let key = SignKey(root.verifying_key().to_bytes());
        Self { root, key, master, epoch }
    }

    pub fn to_parts(&self) -> Parts {
        Parts {
            root: Zeroizing::new(self.root.to_bytes()),
            master: self.master.to_bytes(),
            epoch: self.epoch,
        }
    }

    pub fn network(&self) -> NetworkId {
        NetworkId::of(&self.key)
    }

    /// The root's public key; it hashes to the network.
    pub fn root(&self) -> SignKey {
        self.key
    }

    /// The epoch that this issuer says is in force.
    pub fn current_epoch(&self) -> u32 {
        self.epoch
    }

    /// The same issuer with another epoch in force.
    #[must_use]
    pub fn at_epoch(&self, epoch: u32) -> Self {
        Self { epoch, ..self.clone() }
    }

    /// The keys of an epoch.
    pub fn epoch(&self, epoch: u32) -> EpochKeys {
        self.master.epoch(epoch)
    }

    /// The identity certificate of `keys`, valid between two times in unix seconds (0 for `not_after` is for ever).
    /// `serial` must grow per node: REVOKE takes away all below one. Unix seconds do.
    pub fn certificate(
        &self,
        keys: NodeKeys,
        serial: u64,
        not_before: u64,
        not_after: u64,
        capabilities: u32,
    ) -> Signed {
        let body = certificate::identity(&self.key, self.network(), keys, serial, capabilities);
        certificate::issue(
            &self.root,
            &wire::certificate::Identity { not_before, not_after, ..body },
        )
    }

    /// Signs what a node may do; `attributes.sign` says which.
    pub fn attributes(&self, attributes: &Attributes) -> Signed {
        certificate::issue_attributes(&self.root, attributes)
    }

    /// All that makes `keys` a member from `now` (unix seconds) on, with the keys of these epochs.
    pub fn membership(
        &self,
        keys: NodeKeys,
        attributes: &Attributes,
        capabilities: u32,
        epochs: impl IntoIterator<Item = u32>,
        now: u64,
    ) -> Membership {
        let attributes = Attributes {
            sign: keys.sign.0.to_vec(),
            serial: now,
            not_after: now + VALIDITY_S,
            ..attributes.clone()
        };
        let epochs: BTreeMap<u32, EpochKeys> =
            epochs.into_iter().map(|epoch| (epoch, self.epoch(epoch))).collect();
        Membership {
            network: self.network(),
            root: self.key,
            certificate: self.certificate(keys, now, now, now + VALIDITY_S, capabilities),
            attributes: self.attributes(&attributes),
            epochs,
        }
    }

    /// The EPOCH record: this issuer's epoch is in force. Of two, the higher epoch is the newer record.
    pub fn epoch_record(&self, now: u64, rng: &mut impl RngCore) -> Vec<u8> {
        let body = EpochBody { epoch: self.epoch }.encode_to_vec();
        let seq = u64::from(self.epoch) << 32 | u64::from(low_half(now));
        self.record(LsaType::Epoch, 0, seq, &body, &[], rng)
            .expect("an EPOCH is some 200 bytes long")
    }

    /// The REVOKE record: no certificate of `node` with a serial below `below_serial` is good any more.
    pub fn revoke_record(
        &self,
        node: NodeId,
        below_serial: u64,
        now: u64,
        rng: &mut impl RngCore,
    ) -> Vec<u8> {
        let body = RevokeBody { node: node.0.to_vec(), below_serial }.encode_to_vec();
        let [a, b, c, d, ..] = node.0;
        let id = u32::from_le_bytes([a, b, c, d]);
        self.record(LsaType::Revoke, id, u64::from(low_half(now)) << 32, &body, &[], rng)
            .expect("a REVOKE is some 200 bytes long")
    }

    /// The CLUSTER record of one cluster, `None` if it claims more than fits one record. `counter` tells records of
    /// the same second apart.
    pub fn cluster_record(
        &self,
        body: &ClusterBody,
        now: u64,
        counter: u32,
        rng: &mut impl RngCore,
    ) -> Option<Vec<u8>> {
        let seq = u64::from(low_half(now)) << 32 | u64::from(counter);
        let id = cluster_id(&body.name);
        self.record(LsaType::Cluster, id, seq, &[], &body.encode_to_vec(), rng)
    }

    fn record(
        &self,
        kind: LsaType,
        id: u32,
        seq: u64,
        clear: &[u8],
        body: &[u8],
        rng: &mut impl RngCore,
    ) -> Option<Vec<u8>> {
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let head = Head {
            network: self.network(),
            signer: self.key,
            kind: kind as u8,
            id,
            flags: 0,
            gk_epoch: low_byte(self.epoch),
            seq,
            lifetime: RECORD_LIFETIME_S,
            nonce,
        };
        let keys = self.epoch(self.epoch);
        lsa::seal_as_root(&self.root, &keys.group, &head, clear, body)
    }
}

impl fmt::Debug for Issuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuer")
            .field("network", &self.network())
            .field("epoch", &self.epoch)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Parts(…)")
    }
}

/// The id of a cluster's record among those of the root.
pub fn cluster_id(name: &str) -> u32 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"easynet cluster");
    hasher.update(name.as_bytes());
    let [a, b, c, d, ..] = *hasher.finalize().as_bytes();
    u32::from_le_bytes([a, b, c, d])
}

fn low_half(unix: u64) -> u32 {
    u32::try_from(unix).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
    use wire::{certificate::Prefix, lsa::Container};

    use super::*;
    use crate::identity::Identity;

    const NOW: u64 = 1_800_000_000;

    fn rng() -> ChaCha12Rng {
        ChaCha12Rng::from_seed([5; 32])
    }

    #[test]
    fn the_same_parts_are_the_same_network_whatever_the_epoch() {
        let issuer = Issuer::generate(&mut rng());
        let parts = issuer.to_parts();

        let other = Issuer::from_parts(&parts.root, &parts.master, parts.epoch).at_epoch(9);

        assert_eq!((other.network(), other.root()), (issuer.network(), issuer.root()));
        assert_eq!(other.epoch(1).psk, issuer.epoch(1).psk);
        assert_ne!(other.epoch(9).psk, issuer.epoch(1).psk);
        assert_ne!(other.epoch(257).group, issuer.epoch(1).group);
        assert_eq!((issuer.current_epoch(), other.current_epoch()), (FIRST_EPOCH, 9));
        assert_eq!(format!("{parts:?}"), "Parts(…)");
    }

    #[test]
    fn a_typed_secret_gives_the_network_that_nodes_join_by_it() {
        let node = Identity::from_bytes(&[1; 64]);
        let typed = Master::derive("prod", "correct horse").membership(&node, "a", 0);

        let issuer = Issuer::from_secret("prod", "correct horse");

        assert_eq!((issuer.network(), issuer.current_epoch()), (typed.network, 0));
        assert_eq!(Some(&issuer.epoch(0).psk), typed.psk(0));
    }

    #[test]
    fn a_member_has_a_week_and_what_the_issuer_allows_it() {
        let issuer = Issuer::generate(&mut rng());
        let node = Identity::from_bytes(&[1; 64]);
        let allowed = Prefix::new([10, 42, 0, 0].into(), 16);
        let attributes = Attributes { prefixes: vec![allowed], ..Attributes::default() };

        let member = issuer.membership(node.keys(), &attributes, 0, [1, 2], NOW);

        let check = |unix| certificate::check(&member.certificate, member.network, unix);
        assert_eq!(
            check(NOW).map(|certified| (certified.keys, certified.serial)),
            Ok((node.keys(), NOW))
        );
        assert!(check(NOW + VALIDITY_S).is_ok());
        assert_eq!(check(NOW + 2 * VALIDITY_S), Err(certificate::Untrusted::Expired));
        let attributes =
            certificate::check_attributes(&member.attributes, &member.root, &node.keys().sign, NOW)
                .unwrap();
        assert!(certificate::allows(&attributes, &Prefix::new([10, 42, 7, 0].into(), 24)));
        assert!(!certificate::allows(&attributes, &Prefix::new([10, 43, 7, 0].into(), 24)));
        assert_eq!(member.epochs.keys().copied().collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn records_are_the_roots_and_of_two_the_higher_epoch_is_newer() {
        let issuer = Issuer::generate(&mut rng());
        let parse = |bytes: Vec<u8>| Container::parse(bytes.into()).unwrap();
        let body = ClusterBody { name: "fra1".into(), ..ClusterBody::default() };
        let cluster = parse(issuer.cluster_record(&body, NOW, 0, &mut rng()).unwrap());
        let revoke = parse(issuer.revoke_record(NodeId([7; 16]), NOW, NOW, &mut rng()));
        let epoch = parse(issuer.epoch_record(NOW, &mut rng()));
        let later = parse(issuer.at_epoch(2).epoch_record(NOW - 999, &mut rng()));

        for container in [&cluster, &revoke, &epoch] {
            assert!(lsa::is_issued(container, issuer.network()) && lsa::verify(container));
            assert!(!lsa::is_issued(container, NetworkId([0; 16])));
        }
        assert_eq!(epoch.key(), later.key());
        assert!(later.head.seq > epoch.head.seq);
        let opened = lsa::open(&cluster, &issuer.epoch(FIRST_EPOCH).group).unwrap();
        assert_eq!(ClusterBody::decode(&*opened).unwrap(), body);
        assert!(cluster.clear().is_empty());
        assert_eq!(RevokeBody::decode(revoke.clear()).unwrap().below_serial, NOW);
        assert_eq!(EpochBody::decode(epoch.clear()).unwrap().epoch, FIRST_EPOCH);
    }

    #[test]
    fn a_nodes_own_record_is_not_the_issuers() {
        let issuer = Issuer::generate(&mut rng());
        let node = Identity::from_bytes(&[1; 64]);
        let head = Head {
            network: issuer.network(),
            signer: node.keys().sign,
            kind: LsaType::Revoke as u8,
            id: 0,
            flags: 0,
            gk_epoch: 1,
            seq: 1,
            lifetime: 60,
            nonce: [0; 24],
        };
        let bytes = lsa::seal(&node, &issuer.epoch(1).group, &head, &[], &[]).unwrap();
        let container = Container::parse(bytes.into()).unwrap();

        assert!(!lsa::is_issued(&container, issuer.network()));
    }
}
