//! LSAs: encrypt, then sign; so servers can drop forgeries without reading anything.

use chacha20poly1305::{AeadInPlace, Key, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use ed25519_dalek::SigningKey;
use prost::Message;
use wire::{
    certificate::Signed,
    id::NetworkId,
    lsa::{Container, Head, LsaType, SIGNATURE_CONTEXT, SIGNATURE_LEN, TAG_LEN},
};

use crate::{
    certificate::{self, Certified, Untrusted},
    identity::{self, Identity},
};

/// Seals `body` under the group key and signs the whole; `None` if it exceeds `wire::lsa::MAX_LEN`.
///
/// `head.signer` must be the identity's key and `head.nonce` must be used once with this group key.
pub fn seal(
    identity: &Identity,
    group: &[u8; 32],
    head: &Head,
    clear: &[u8],
    body: &[u8],
) -> Option<Vec<u8>> {
    seal_with(group, head, clear, body, |bytes| identity.sign(SIGNATURE_CONTEXT, bytes))
}

/// The same as the network's root; `head.signer` must be its key.
pub(crate) fn seal_as_root(
    root: &SigningKey,
    group: &[u8; 32],
    head: &Head,
    clear: &[u8],
    body: &[u8],
) -> Option<Vec<u8>> {
    seal_with(group, head, clear, body, |bytes| identity::sign(root, SIGNATURE_CONTEXT, bytes))
}

fn seal_with(
    group: &[u8; 32],
    head: &Head,
    clear: &[u8],
    body: &[u8],
    sign: impl FnOnce(&[u8]) -> [u8; SIGNATURE_LEN],
) -> Option<Vec<u8>> {
    let body_len = u16::try_from(body.len() + TAG_LEN).ok()?;
    let aad = additional(head, clear, body_len)?;
    let mut sealed = body.to_vec();
    let tag = cipher(group)
        .encrypt_in_place_detached(XNonce::from_slice(&head.nonce), &aad, &mut sealed)
        .expect("an LSA is shorter than XChaCha20-Poly1305's limit");
    sealed.extend_from_slice(&tag);
    let mut bytes = Container::unsigned(head, clear, &sealed)?;
    let signature = sign(&bytes);
    bytes.extend_from_slice(&signature);
    Some(bytes)
}

/// Whether an LSA is the issuer's: signed by the network's root and of a type that only the root signs. Says nothing of
/// the signature itself, which [`verify`] does.
pub fn is_issued(container: &Container, network: NetworkId) -> bool {
    let issued = match LsaType::from_byte(container.head.kind) {
        Some(LsaType::Cluster | LsaType::Epoch | LsaType::Revoke) => true,
        Some(LsaType::Node | LsaType::Link) | None => false,
    };
    issued && NetworkId::of(&container.head.signer) == network
}

/// Whether the container's signer made it.
pub fn verify(container: &Container) -> bool {
    identity::verify(
        &container.head.signer,
        SIGNATURE_CONTEXT,
        container.signed(),
        &container.signature(),
    )
}

/// For NODE: the certificate in clear, checked against the network and the signer.
///
/// # Errors
/// It is no NODE, or its certificate is not to be believed: a drop.
pub fn certified(
    container: &Container,
    network: NetworkId,
    unix_now: u64,
) -> Result<Certified, Untrusted> {
    if container.head.kind != LsaType::Node as u8 {
        return Err(Untrusted::Malformed);
    }
    let signed = Signed::decode(container.clear()).map_err(|_| Untrusted::Malformed)?;
    let certified = certificate::check(&signed, network, unix_now)?;
    if certified.keys.sign != container.head.signer {
        return Err(Untrusted::WrongKey);
    }
    Ok(certified)
}

/// Opens the body; `None` if it was sealed under another key or changed.
pub fn open(container: &Container, group: &[u8; 32]) -> Option<Vec<u8>> {
    let sealed = container.sealed();
    let aad = additional(&container.head, container.clear(), u16::try_from(sealed.len()).ok()?)?;
    let (body, tag) = sealed.split_at_checked(sealed.len().checked_sub(TAG_LEN)?)?;
    let mut body = body.to_vec();
    cipher(group)
        .decrypt_in_place_detached(
            XNonce::from_slice(&container.head.nonce),
            &aad,
            &mut body,
            Tag::from_slice(tag),
        )
        .ok()?;
    Some(body)
}

fn additional(head: &Head, clear: &[u8], body_len: u16) -> Option<Vec<u8>> {
    let mut aad = Container::aad(head, u16::try_from(clear.len()).ok()?, body_len).to_vec();
    aad.extend_from_slice(clear);
    Some(aad)
}

fn cipher(group: &[u8; 32]) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(Key::from_slice(group))
}

#[cfg(test)]
mod tests {
    use crate::membership::Master;

    use super::*;

    const GROUP: [u8; 32] = [7; 32];

    fn sealed() -> (Identity, NetworkId, Vec<u8>) {
        let identity = Identity::from_bytes(&[1; 64]);
        let membership = Master::from_bytes([2; 32]).membership(&identity, "a", 0);
        let head = Head {
            network: membership.network,
            signer: identity.keys().sign,
            kind: LsaType::Node as u8,
            id: 0,
            flags: 0,
            gk_epoch: 0,
            seq: 1,
            lifetime: 3600,
            nonce: [3; 24],
        };
        let clear = membership.certificate.encode_to_vec();
        let bytes =
            seal(&identity, &GROUP, &head, &clear, b"a body that names overlay addresses").unwrap();
        (identity, membership.network, bytes)
    }

    #[test]
    fn members_read_it_and_anybody_can_check_it() {
        let (identity, network, bytes) = sealed();
        let container = Container::parse(bytes.into()).unwrap();

        assert!(verify(&container));
        assert_eq!(certified(&container, network, 0).unwrap().keys, identity.keys());
        assert_eq!(certified(&container, NetworkId([0; 16]), 0), Err(Untrusted::WrongNetwork));
        assert_eq!(open(&container, &GROUP).unwrap(), b"a body that names overlay addresses");
        assert_eq!(open(&container, &[8; 32]), None);
    }

    #[test]
    fn no_bit_of_it_can_be_changed() {
        let (_, _, bytes) = sealed();
        for at in 0..bytes.len() {
            let mut forged = bytes.clone();
            forged[at] ^= 1;
            let accepted =
                Container::parse(forged.into()).is_some_and(|container| verify(&container));
            assert!(!accepted, "bit in byte {at}");
        }
    }
}
