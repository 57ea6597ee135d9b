//! Certificates and attributes: issuing and checking what `wire::certificate` lays out.

use ed25519_dalek::SigningKey;
use prost::Message;
use wire::{
    certificate::{ATTRIBUTES_CONTEXT, Attributes, IDENTITY_CONTEXT, Identity, Prefix, Signed},
    id::{DhKey, NetworkId, NodeKeys, SignKey},
};

use crate::identity::{sign, verify};

/// How far clocks may differ before a certificate's validity is doubted.
pub const CLOCK_TOLERANCE_S: u64 = 600;
/// The only version of identity certificates there is.
const VERSION: u32 = 1;

/// Why a certificate or attributes are not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Untrusted {
    #[error("does not decode")]
    Malformed,
    #[error("is of a version that this node does not know")]
    Version,
    #[error("is of another network")]
    WrongNetwork,
    #[error("its signature does not verify")]
    Forged,
    #[error("is not valid yet, or no more")]
    Expired,
    #[error("is about another key")]
    WrongKey,
}

/// An identity certificate that was checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    pub keys: NodeKeys,
    pub serial: u64,
    /// As in the certificate: [`wire::certificate::CAPABILITY_TRANSIT`] and bits that are not asked for.
    pub capabilities: u32,
}

/// Signs an identity certificate as the network's root.
pub(crate) fn issue(root: &SigningKey, identity: &Identity) -> Signed {
    let body = identity.encode_to_vec();
    let signature = sign(root, IDENTITY_CONTEXT, &body).to_vec();
    Signed { body, signature }
}

/// Signs attributes as the network's root.
pub(crate) fn issue_attributes(root: &SigningKey, attributes: &Attributes) -> Signed {
    let body = attributes.encode_to_vec();
    let signature = sign(root, ATTRIBUTES_CONTEXT, &body).to_vec();
    Signed { body, signature }
}

/// The body of a certificate without an end.
pub(crate) fn identity(
    root: &SignKey,
    network: NetworkId,
    keys: NodeKeys,
    serial: u64,
    capabilities: u32,
) -> Identity {
    Identity {
        version: VERSION,
        network: network.0.to_vec(),
        sign: keys.sign.0.to_vec(),
        dh: keys.dh.0.to_vec(),
        serial,
        not_before: 0,
        not_after: 0,
        capabilities,
        issuer: root.0.to_vec(),
    }
}

/// Checks an identity certificate: its issuer hashes to `network`, its signature is over the raw bytes, and it is
/// valid at `unix_now` (seconds), give or take [`CLOCK_TOLERANCE_S`].
///
/// # Errors
/// It is not to be believed: whoever showed it is no member.
pub fn check(signed: &Signed, network: NetworkId, unix_now: u64) -> Result<Certified, Untrusted> {
    let identity = Identity::decode(&*signed.body).map_err(|_| Untrusted::Malformed)?;
    if identity.version != VERSION {
        return Err(Untrusted::Version);
    }
    let issuer = SignKey::from_slice(&identity.issuer).ok_or(Untrusted::Malformed)?;
    if NetworkId::of(&issuer) != network || identity.network != network.0 {
        return Err(Untrusted::WrongNetwork);
    }
    if !verify(&issuer, IDENTITY_CONTEXT, &signed.body, &signed.signature) {
        return Err(Untrusted::Forged);
    }
    let early = identity.not_before > unix_now.saturating_add(CLOCK_TOLERANCE_S);
    let late =
        identity.not_after != 0 && identity.not_after.saturating_add(CLOCK_TOLERANCE_S) < unix_now;
    if early || late {
        return Err(Untrusted::Expired);
    }
    let sign = SignKey::from_slice(&identity.sign).ok_or(Untrusted::Malformed)?;
    let dh = DhKey::from_slice(&identity.dh).ok_or(Untrusted::Malformed)?;
    Ok(Certified {
        keys: NodeKeys { sign, dh },
        serial: identity.serial,
        capabilities: identity.capabilities,
    })
}

/// Checks attributes: signed by the network's root and about `subject`.
///
/// # Errors
/// They are not to be believed.
pub fn check_attributes(
    signed: &Signed,
    root: &SignKey,
    subject: &SignKey,
    unix_now: u64,
) -> Result<Attributes, Untrusted> {
    if !verify(root, ATTRIBUTES_CONTEXT, &signed.body, &signed.signature) {
        return Err(Untrusted::Forged);
    }
    let attributes = Attributes::decode(&*signed.body).map_err(|_| Untrusted::Malformed)?;
    if attributes.sign != subject.0 {
        return Err(Untrusted::WrongKey);
    }
    if attributes.not_after != 0
        && attributes.not_after.saturating_add(CLOCK_TOLERANCE_S) < unix_now
    {
        return Err(Untrusted::Expired);
    }
    Ok(attributes)
}

/// Whether a node with these attributes may announce `prefix`: it lies in an allowed prefix or address.
pub fn allows(attributes: &Attributes, prefix: &Prefix) -> bool {
    let Some((address, length)) = prefix.parse() else { return false };
    attributes.any_prefix
        || attributes
            .addresses
            .iter()
            .chain(&attributes.prefixes)
            .filter_map(Prefix::parse)
            .any(|(allowed, most)| most <= length && share(address, allowed, most))
}

fn share(a: std::net::IpAddr, b: std::net::IpAddr, bits: u8) -> bool {
    use std::net::IpAddr::{V4, V6};
    match (a, b) {
        (V4(a), V4(b)) => {
            (u32::from(a) ^ u32::from(b)).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
        }
        (V6(a), V6(b)) => {
            (u128::from(a) ^ u128::from(b)).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
        }
        (V4(_), V6(_)) | (V6(_), V4(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn root() -> SigningKey {
        SigningKey::from_bytes(&[9; 32])
    }

    fn root_pub() -> SignKey {
        SignKey(root().verifying_key().to_bytes())
    }

    fn subject() -> NodeKeys {
        crate::identity::Identity::from_bytes(&[5; 64]).keys()
    }

    fn body() -> Identity {
        identity(&root_pub(), NetworkId::of(&root_pub()), subject(), 1, 0)
    }

    #[test]
    fn a_certificate_is_believed_only_as_the_root_signed_it() {
        let network = NetworkId::of(&root_pub());
        let good = issue(&root(), &body());
        let mut flipped = good.clone();
        flipped.body[8] ^= 1;
        let stranger = SigningKey::from_bytes(&[8; 32]);

        assert_eq!(check(&good, network, NOW).map(|certified| certified.keys), Ok(subject()));
        assert_eq!(check(&good, NetworkId([0; 16]), NOW), Err(Untrusted::WrongNetwork));
        assert!(check(&flipped, network, NOW).is_err());
        assert_eq!(check(&issue(&stranger, &body()), network, NOW), Err(Untrusted::Forged));
        assert_eq!(
            check(&Signed { body: vec![0xff], ..good }, network, NOW),
            Err(Untrusted::Malformed)
        );
    }

    #[test]
    fn validity_tolerates_ten_minutes_of_clock() {
        let network = NetworkId::of(&root_pub());
        let valid = |not_before, not_after| {
            check(&issue(&root(), &Identity { not_before, not_after, ..body() }), network, NOW)
                .is_ok()
        };

        assert!(valid(NOW + 600, 0));
        assert!(!valid(NOW + 601, 0));
        assert!(valid(0, NOW - 600));
        assert!(!valid(0, NOW - 601));
    }

    #[test]
    fn attributes_are_bound_to_their_subject_and_limit_prefixes() {
        let attributes = Attributes {
            sign: subject().sign.0.to_vec(),
            prefixes: vec![Prefix::new([10, 42, 0, 0].into(), 16)],
            ..Attributes::default()
        };
        let signed = issue_attributes(&root(), &attributes);

        assert_eq!(
            check_attributes(&signed, &root_pub(), &subject().sign, NOW),
            Ok(attributes.clone())
        );
        assert_eq!(
            check_attributes(&signed, &root_pub(), &SignKey([0; 32]), NOW),
            Err(Untrusted::WrongKey)
        );
        assert!(allows(&attributes, &Prefix::new([10, 42, 3, 0].into(), 24)));
        assert!(!allows(&attributes, &Prefix::new([10, 0, 0, 0].into(), 8)));
        assert!(!allows(&attributes, &Prefix::new([10, 43, 3, 0].into(), 24)));
        assert!(!allows(&attributes, &Prefix::new("fd00::".parse().unwrap(), 64)));
    }
}
