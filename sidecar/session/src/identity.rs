//! A node's own keys.

use std::fmt;

use ed25519_dalek::{Signer, SigningKey};
use rand_core::{CryptoRng, RngCore};
use wire::id::{DhKey, NodeId, NodeKeys, SignKey};
use x25519_dalek::{PublicKey, StaticSecret};
use zeroize::Zeroizing;

use crate::memo;

/// Ed25519 to sign, X25519 as Noise static; separate keys, bound by the identity certificate.
#[derive(Clone)]
pub struct Identity {
    sign: SigningKey,
    dh: StaticSecret,
    keys: NodeKeys,
}

impl Identity {
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut bytes = Zeroizing::new([0; 64]);
        rng.fill_bytes(&mut *bytes);
        Self::from_bytes(&bytes)
    }

    /// From the 64 secret bytes of the state directory: Ed25519 seed, then X25519 scalar.
    pub fn from_bytes(bytes: &[u8; 64]) -> Self {
        let mut half = Zeroizing::new([0; 32]);
        half.copy_from_slice(&bytes[..32]);
        let sign = SigningKey::from_bytes(&half);
        half.copy_from_slice(&bytes[32..]);
        let dh = StaticSecret::from(*half);
        let keys = NodeKeys {
            sign: SignKey(sign.verifying_key().to_bytes()),
            dh: DhKey(PublicKey::from(&dh).to_bytes()),
        };
        Self { sign, dh, keys }
    }

    /// The 64 secret bytes, for the state directory alone.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 64]> {
        let mut bytes = Zeroizing::new([0; 64]);
        bytes[..32].copy_from_slice(self.sign.as_bytes());
        bytes[32..].copy_from_slice(self.dh.as_bytes());
        bytes
    }

    pub fn keys(&self) -> NodeKeys {
        self.keys
    }

    pub fn node(&self) -> NodeId {
        self.keys.node()
    }

    /// Signs `context ‖ message`.
    pub fn sign(&self, context: &[u8], message: &[u8]) -> [u8; 64] {
        sign(&self.sign, context, message)
    }

    pub(crate) fn dh_secret(&self) -> &[u8; 32] {
        self.dh.as_bytes()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Identity").field(&self.keys).finish()
    }
}

pub(crate) fn sign(key: &SigningKey, context: &[u8], message: &[u8]) -> [u8; 64] {
    let mut signed = Vec::with_capacity(context.len() + message.len());
    signed.extend_from_slice(context);
    signed.extend_from_slice(message);
    key.sign(&signed).to_bytes()
}

/// Whether `signature` is `key`'s over `context ‖ message`.
pub fn verify(key: &SignKey, context: &[u8], message: &[u8], signature: &[u8]) -> bool {
    memo::recall(&key.0, context, message, signature, || {
        let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&key.0) else { return false };
        let Ok(signature) = ed25519_dalek::Signature::from_slice(signature) else { return false };
        let mut signed = Vec::with_capacity(context.len() + message.len());
        signed.extend_from_slice(context);
        signed.extend_from_slice(message);
        key.verify_strict(&signed, &signature).is_ok()
    })
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};

    use super::*;

    #[test]
    fn an_identity_survives_the_state_directory_and_shows_no_secret() {
        let identity = Identity::generate(&mut ChaCha12Rng::from_seed([1; 32]));

        let again = Identity::from_bytes(&identity.to_bytes());

        assert_eq!(again.keys(), identity.keys());
        let secret =
            identity.to_bytes()[..8].iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert!(!format!("{identity:?}").contains(&secret));
    }

    #[test]
    fn a_signature_is_bound_to_its_context() {
        let identity = Identity::from_bytes(&[3; 64]);
        let signature = identity.sign(b"a", b"message");

        assert!(verify(&identity.keys().sign, b"a", b"message", &signature));
        assert!(!verify(&identity.keys().sign, b"b", b"message", &signature));
        assert!(!verify(&identity.keys().sign, b"a", b"massage", &signature));
        assert!(!verify(&identity.keys().sign, b"a", b"message", &signature[..63]));
    }
}
