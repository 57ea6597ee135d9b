//! What makes a node a member of a network, as data: whoever issued it.
//!
//! In *secret mode* everything derives from a name and a secret:
//!
//! ```text
//! master = Argon2id(secret, salt = BLAKE3("easynet salt" ‖ name)[0..16], 19 MiB, t = 2, p = 1)
//! root   = Ed25519 seed HKDF(master, "root")
//! psk(e) = HKDF(master, "psk" ‖ e)         group key(e) = HKDF(master, "group" ‖ e)
//! ```
//! so every holder of the secret can issue certificates, its own first of all. An [`crate::issuer::Issuer`] that
//! hands out the same [`Membership`] instead is only another source.
//!
//! An epoch is a 32-bit number that only grows; headers carry its low byte, which is enough to tell the few apart that
//! are valid at a time. `e` above is the number's little-endian bytes without trailing zeros, at least one.

use std::{collections::BTreeMap, fmt};

use argon2::{Algorithm, Argon2, Params, Version};
use ed25519_dalek::SigningKey;
use hkdf::Hkdf;
use prost::Message;
use sha2::Sha256;
use wire::{
    certificate::{Attributes, Signed},
    id::{NetworkId, SignKey},
};
use zeroize::{Zeroize, Zeroizing};

use crate::{certificate, identity::Identity};

/// Memory of the derivation, in KiB: it has to fit a container of 32 MB.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
/// Below this estimate of entropy, a secret is worth a warning.
pub const WEAK_BITS: f64 = 70.0;

/// The master key of a network in secret mode. Its derivation is slow on purpose, so it is kept in the state
/// directory.
#[derive(Clone)]
pub struct Master(Zeroizing<[u8; 32]>);

impl Master {
    /// Derives the master key; takes 19 MiB and some 30 ms.
    pub fn derive(name: &str, secret: &str) -> Self {
        let mut salt = blake3::Hasher::new();
        salt.update(b"easynet salt");
        salt.update(name.as_bytes());
        let salt = salt.finalize();
        let params =
            Params::new(MEMORY_KIB, PASSES, 1, Some(32)).expect("constants in Argon2's range");
        let mut master = Zeroizing::new([0; 32]);
        Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
            .hash_password_into(secret.as_bytes(), &salt.as_bytes()[..16], &mut *master)
            .expect("lengths in Argon2's range");
        Self(master)
    }

    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// The secret bytes, for the state directory alone.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        self.0.clone()
    }

    /// What makes `identity` a member: the network's keys and a certificate issued by itself.
    pub fn membership(&self, identity: &Identity, hostname: &str, capabilities: u32) -> Membership {
        let root = self.root();
        let root_key = SignKey(root.verifying_key().to_bytes());
        let network = NetworkId::of(&root_key);
        let body = certificate::identity(&root_key, network, identity.keys(), 1, capabilities);
        let attributes = Attributes {
            sign: identity.keys().sign.0.to_vec(),
            hostname: hostname.to_owned(),
            any_prefix: true,
            serial: 1,
            ..Attributes::default()
        };
        Membership {
            network,
            root: root_key,
            certificate: certificate::issue(&root, &body),
            attributes: certificate::issue_attributes(&root, &attributes),
            epochs: BTreeMap::from([(0, self.epoch(0))]),
        }
    }

    /// The secret half of the network's root.
    pub(crate) fn root(&self) -> SigningKey {
        SigningKey::from_bytes(&self.expand(b"root", 0))
    }

    /// The keys of one epoch.
    pub fn epoch(&self, epoch: u32) -> EpochKeys {
        EpochKeys { psk: *self.expand(b"psk", epoch), group: *self.expand(b"group", epoch) }
    }

    fn expand(&self, label: &[u8], epoch: u32) -> Zeroizing<[u8; 32]> {
        let bytes = epoch.to_le_bytes();
        let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        let mut key = Zeroizing::new([0; 32]);
        Hkdf::<Sha256>::new(Some(b"easynet network v1"), &*self.0)
            .expand_multi_info(&[label, &bytes[..used]], &mut *key)
            .expect("HKDF-SHA256 gives up to 8160 bytes");
        key
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Master(…)")
    }
}

/// The keys of one epoch.
#[derive(Clone, Zeroize)]
#[zeroize(drop)]
pub struct EpochKeys {
    /// Proves membership in the handshake.
    pub psk: [u8; 32],
    /// Encrypts LSAs.
    pub group: [u8; 32],
}

impl fmt::Debug for EpochKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EpochKeys(…)")
    }
}

/// All that a node needs to be a member.
#[derive(Clone, Debug)]
pub struct Membership {
    pub network: NetworkId,
    /// The network root's public key; it hashes to `network`.
    pub root: SignKey,
    pub certificate: Signed,
    pub attributes: Signed,
    /// Keys by epoch; all open, and the one in force seals: see [`Membership::sealing`].
    pub epochs: BTreeMap<u32, EpochKeys>,
}

impl Membership {
    /// The epoch to seal with, and its keys: the newest up to the one that an EPOCH record says is in force. Without such a
    /// record, the oldest: others may not have the newer ones yet.
    pub fn sealing(&self, in_force: Option<u32>) -> (u32, &EpochKeys) {
        in_force
            .and_then(|epoch| self.newest_up_to(epoch))
            .or_else(|| self.epochs.first_key_value().map(|(epoch, keys)| (*epoch, keys)))
            .expect("a membership has an epoch")
    }

    /// The newest epoch up to `epoch` that there are keys of, and those.
    pub fn newest_up_to(&self, epoch: u32) -> Option<(u32, &EpochKeys)> {
        self.epochs.range(..=epoch).next_back().map(|(epoch, keys)| (*epoch, keys))
    }

    /// The newest epoch that there are keys of.
    pub fn newest(&self) -> u32 {
        self.epochs.last_key_value().map_or(0, |(epoch, _)| *epoch)
    }

    /// The pre-shared key of the epoch that a header names by its low byte.
    pub fn psk(&self, low: u8) -> Option<&[u8; 32]> {
        self.by_low_byte(low).map(|keys| &keys.psk)
    }

    /// The group key of the epoch that a header names by its low byte.
    pub fn group(&self, low: u8) -> Option<&[u8; 32]> {
        self.by_low_byte(low).map(|keys| &keys.group)
    }

    /// When the identity certificate runs out, in unix seconds; `None` is never.
    pub fn certificate_ends(&self) -> Option<u64> {
        let body = wire::certificate::Identity::decode(&*self.certificate.body).ok()?;
        Some(body.not_after).filter(|end| *end != 0)
    }

    fn by_low_byte(&self, low: u8) -> Option<&EpochKeys> {
        self.epochs.iter().rev().find(|(epoch, _)| low_byte(**epoch) == low).map(|(_, keys)| keys)
    }
}

/// How headers name an epoch.
pub fn low_byte(epoch: u32) -> u8 {
    epoch.to_le_bytes()[0]
}

/// A lower bound guess of a secret's entropy in bits: distinct characters by the classes they come from. A text
/// made by `easynet secret new` has 128.
pub fn strength(secret: &str) -> f64 {
    let class = |test: fn(&char) -> bool, size: f64| {
        if secret.chars().any(|c| test(&c)) { size } else { 0.0 }
    };
    let alphabet = class(char::is_ascii_lowercase, 26.0)
        + class(char::is_ascii_uppercase, 26.0)
        + class(char::is_ascii_digit, 10.0)
        + class(|c| !c.is_ascii_alphanumeric(), 32.0);
    let mut distinct: Vec<char> = secret.chars().collect();
    let length = distinct.len() as f64;
    distinct.sort_unstable();
    distinct.dedup();
    let effective = length.min(distinct.len() as f64 * 2.0);
    if alphabet < 2.0 { 0.0 } else { effective * alphabet.log2() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_and_secret_make_the_network() {
        let a = Identity::from_bytes(&[1; 64]);
        let b = Identity::from_bytes(&[2; 64]);
        let master = Master::derive("prod", "correct horse battery staple");

        let one = master.membership(&a, "a", 0);
        let other = Master::from_bytes(*master.to_bytes()).membership(&b, "b", 0);

        assert_eq!(one.network, other.network);
        assert_eq!(one.psk(0), other.psk(0));
        assert_ne!(one.psk(0), one.group(0));
        assert_eq!(certificate::check(&other.certificate, one.network, 0).unwrap().keys, b.keys());
        assert_ne!(
            Master::derive("prod", "another").membership(&a, "a", 0).network,
            Master::derive("test", "another").membership(&a, "a", 0).network
        );
    }

    #[test]
    fn the_derivation_does_not_move() {
        let membership =
            Master::derive("net", "secret").membership(&Identity::from_bytes(&[1; 64]), "a", 0);

        assert_eq!(membership.network.to_string(), "jm2ldbiqcwfnkrjz6fu7bomqty");
    }

    #[test]
    fn the_epoch_in_force_seals_and_every_epoch_opens() {
        let master = Master::from_bytes([3; 32]);
        let mut membership = master.membership(&Identity::from_bytes(&[1; 64]), "a", 0);
        membership.epochs = [255, 256, 257].map(|epoch| (epoch, master.epoch(epoch))).into();

        for (in_force, sealing) in
            [(None, 255), (Some(1), 255), (Some(256), 256), (Some(257), 257), (Some(300), 257)]
        {
            assert_eq!(membership.sealing(in_force).0, sealing, "{in_force:?}");
        }
        assert_eq!(membership.newest(), 257);
        assert_eq!(membership.psk(255), Some(&master.epoch(255).psk));
        assert_eq!(membership.group(1), Some(&master.epoch(257).group));
        assert_eq!(membership.psk(2), None);
    }

    #[test]
    fn strength_tells_a_password_from_a_secret() {
        assert!(strength("hunter2") < WEAK_BITS);
        assert!(strength("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa") < WEAK_BITS);
        assert!(strength("mfrggzdfmztwq2lknnwg23tpob") > WEAK_BITS);
    }
}
