//! `Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s`, one round trip over any path.
//!
//! The initiator knows the responder's static key. The pre-shared key enters only with RESPONSE, whose clear
//! head names role and epoch, so the initiator learns there which one to use; the encrypted payload repeats
//! both, and a mismatch is fatal. The prologue is [`PROLOGUE`] ‖ the first eight bytes of INIT.
//!
//! Both messages end in `mac1`, keyed by the receiver's static public key, so that noise is told from
//! initiations for the price of a hash, and `mac2`, keyed by a cookie, which proves the source address when
//! the receiver is under load (see [`crate::cookie`]).

use std::fmt;

use prost::Message;
use rand_core::RngCore;
use snow::HandshakeState;
use wire::{
    control::{InitPayload, ResponsePayload},
    datagram::{
        INIT_LEN, INIT_PAYLOAD_LEN, Init, MAC_LEN, RESPONSE_MIN_LEN, Response, Role, TAG_LEN,
    },
    id::DhKey,
};

use crate::{
    identity::Identity,
    keys::{Suite, TransportKeys},
    noise,
    transport::same,
};

/// Binds the handshake to this protocol.
pub const PROLOGUE: &[u8] = b"easynet handshake v1";
/// The pre-shared key of sessions with servers and feeds.
pub const NO_PSK: [u8; 32] = [0; 32];
/// What INIT's payload may hold: all but the tag and its own length.
pub const INIT_PAYLOAD_MOST: usize = INIT_PAYLOAD_LEN - TAG_LEN - 2;
/// What RESPONSE's payload may hold, so that it never exceeds INIT.
pub const RESPONSE_PAYLOAD_MOST: usize = INIT_LEN - RESPONSE_MIN_LEN;

/// Why a handshake message is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Noise says no: another key, another pre-shared key, or changed on the way.
    #[error("does not authenticate")]
    Forged,
    /// It authenticates, but its payload does not decode.
    #[error("authenticates but does not decode")]
    Malformed,
    /// Role or epoch inside differ from those in clear, or the role is not the one asked for.
    #[error("answers as another role or epoch than asked for")]
    RoleMismatch,
    /// No pre-shared key for that role and epoch.
    #[error("uses a key epoch that this node does not have")]
    UnknownEpoch,
    /// What we would say does not fit.
    #[error("the payload does not fit")]
    TooLarge,
}

/// Our side of a handshake that we began.
pub struct Initiator {
    noise: Box<HandshakeState>,
    remote: DhKey,
    role: Role,
    offer: u32,
}

/// What a good RESPONSE gives.
#[derive(Debug)]
pub struct Answer {
    pub payload: ResponsePayload,
    pub role: Role,
    pub epoch: u8,
    pub keys: TransportKeys,
}

impl Initiator {
    /// Begins; the datagram has `mac1` but no `mac2` yet.
    ///
    /// # Errors
    /// The payload does not fit, or the remote key is none.
    pub fn start(
        me: &Identity,
        remote: DhKey,
        role: Role,
        index: u32,
        payload: &InitPayload,
        rng: &mut impl RngCore,
    ) -> Result<(Self, Vec<u8>), HandshakeError> {
        let body = payload.encode_to_vec();
        if body.len() > INIT_PAYLOAD_MOST {
            return Err(HandshakeError::TooLarge);
        }
        let mut plain = [0; INIT_PAYLOAD_LEN - TAG_LEN];
        plain[..2].copy_from_slice(&(body.len() as u16).to_le_bytes());
        plain[2..2 + body.len()].copy_from_slice(&body);

        let head = Init::head(role, index);
        let prologue = prologue(&head);
        let mut noise = noise::builder(rng)
            .local_private_key(me.dh_secret())
            .and_then(|builder| builder.remote_public_key(&remote.0))
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(|builder| builder.build_initiator())
            .map_err(|_| HandshakeError::Forged)?;
        let mut init = vec![0; INIT_LEN];
        init[..8].copy_from_slice(&head);
        noise
            .write_message(&plain, &mut init[8..INIT_LEN - 2 * MAC_LEN])
            .map_err(|_| HandshakeError::Forged)?;
        write_mac1(&mut init, &remote);
        Ok((Self { noise: Box::new(noise), remote, role, offer: payload.aead }, init))
    }

    /// Whom this handshake is with.
    pub fn remote(&self) -> DhKey {
        self.remote
    }

    /// Reads RESPONSE. `psk` gives the key of a role and epoch.
    ///
    /// # Errors
    /// It is not the answer to this INIT. That ends nothing: the true answer may still come.
    pub fn read(
        &mut self,
        response: &Response<'_>,
        psk: impl FnOnce(Role, u8) -> Option<[u8; 32]>,
    ) -> Result<Answer, HandshakeError> {
        let role = Role::from_byte(response.role).ok_or(HandshakeError::RoleMismatch)?;
        if role == Role::Any || (self.role != Role::Any && role != self.role) {
            return Err(HandshakeError::RoleMismatch);
        }
        let psk = match role {
            Role::Server | Role::Feed => NO_PSK,
            Role::Member | Role::Any => {
                psk(role, response.psk_epoch).ok_or(HandshakeError::UnknownEpoch)?
            }
        };
        self.noise.set_psk(2, &psk).map_err(|_| HandshakeError::UnknownEpoch)?;
        let mut plain = vec![0; response.noise.len()];
        let len = self
            .noise
            .read_message(response.noise, &mut plain)
            .map_err(|_| HandshakeError::Forged)?;
        let body = plain.get(..len).ok_or(HandshakeError::Malformed)?;
        let payload = ResponsePayload::decode(body).map_err(|_| HandshakeError::Malformed)?;
        if payload.role != u32::from(role as u8)
            || payload.psk_epoch != u32::from(response.psk_epoch)
        {
            return Err(HandshakeError::RoleMismatch);
        }
        let suite = Suite::from_bit(payload.aead & self.offer).ok_or(HandshakeError::Malformed)?;
        let (i, r) = self.noise.dangerously_get_raw_split();
        let keys = TransportKeys::from_split(true, suite, (&i, &r));
        Ok(Answer { payload, role, epoch: response.psk_epoch, keys })
    }
}

impl fmt::Debug for Initiator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Initiator")
            .field("remote", &self.remote)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// Our side of a handshake that somebody else began.
pub struct Responder {
    noise: Box<HandshakeState>,
    /// The initiator's Noise static key; it has proved that it holds the secret half.
    pub remote: DhKey,
    pub payload: InitPayload,
    receiver_index: u32,
}

impl Responder {
    /// Reads INIT whose `mac1` is ours. The initiator is authenticated by it, but it may be a replay: only the first
    /// packet of the session proves that it is there.
    ///
    /// # Errors
    /// It does not authenticate or decode: a drop.
    pub fn read(
        me: &Identity,
        init: &Init<'_>,
        rng: &mut impl RngCore,
    ) -> Result<Self, HandshakeError> {
        let prologue = prologue(&init.head);
        let mut noise = noise::builder(rng)
            .local_private_key(me.dh_secret())
            .and_then(|builder| builder.prologue(&prologue))
            .and_then(|builder| builder.build_responder())
            .map_err(|_| HandshakeError::Forged)?;
        let mut plain = [0; INIT_PAYLOAD_LEN];
        let len = noise.read_message(init.noise, &mut plain).map_err(|_| HandshakeError::Forged)?;
        let remote = noise
            .get_remote_static()
            .and_then(DhKey::from_slice)
            .ok_or(HandshakeError::Malformed)?;
        let plain = plain.get(..len).ok_or(HandshakeError::Malformed)?;
        let (size, rest) = plain.split_first_chunk::<2>().ok_or(HandshakeError::Malformed)?;
        let body =
            rest.get(..usize::from(u16::from_le_bytes(*size))).ok_or(HandshakeError::Malformed)?;
        let payload = InitPayload::decode(body).map_err(|_| HandshakeError::Malformed)?;
        if payload.role != u32::from(init.role) {
            return Err(HandshakeError::RoleMismatch);
        }
        Ok(Self { noise: Box::new(noise), remote, payload, receiver_index: init.sender_index })
    }

    /// The index that the initiator wants to be answered at.
    pub fn receiver_index(&self) -> u32 {
        self.receiver_index
    }

    /// Answers. Role and epoch of `payload` are set to these; its AEAD is chosen from what both offer.
    ///
    /// # Errors
    /// The payload does not fit, or Noise refuses: a drop.
    pub fn respond(
        mut self,
        role: Role,
        psk: &[u8; 32],
        epoch: u8,
        aead: u32,
        index: u32,
        mut payload: ResponsePayload,
    ) -> Result<(Vec<u8>, TransportKeys), HandshakeError> {
        let suite = Suite::choose(aead, self.payload.aead);
        payload.role = u32::from(role as u8);
        payload.psk_epoch = u32::from(epoch);
        payload.aead = suite.bit();
        let body = payload.encode_to_vec();
        if body.len() > RESPONSE_PAYLOAD_MOST {
            return Err(HandshakeError::TooLarge);
        }
        let head = Response::head(role, epoch, index, self.receiver_index);
        let mut response = vec![0; RESPONSE_MIN_LEN + body.len()];
        response[..head.len()].copy_from_slice(&head);
        let noise_end = response.len() - 2 * MAC_LEN;
        self.noise.set_psk(2, psk).map_err(|_| HandshakeError::UnknownEpoch)?;
        self.noise
            .write_message(&body, &mut response[head.len()..noise_end])
            .map_err(|_| HandshakeError::Forged)?;
        write_mac1(&mut response, &self.remote);
        let (i, r) = self.noise.dangerously_get_raw_split();
        Ok((response, TransportKeys::from_split(false, suite, (&i, &r))))
    }
}

impl fmt::Debug for Responder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Responder").field("remote", &self.remote).finish_non_exhaustive()
    }
}

/// Whether `mac1` over `covers` was made for `receiver`: for the owner of that static key.
pub fn verify_mac1(receiver: &DhKey, covers: &[u8], mac1: &[u8; MAC_LEN]) -> bool {
    same(&mac(&mac1_key(receiver), covers), mac1)
}

fn write_mac1(message: &mut [u8], receiver: &DhKey) {
    let at = message.len() - 2 * MAC_LEN;
    let mac1 = mac(&mac1_key(receiver), &message[..at]);
    message[at..at + MAC_LEN].copy_from_slice(&mac1);
}

fn mac1_key(receiver: &DhKey) -> [u8; 32] {
    blake3::derive_key("easynet mac1 v1", &receiver.0)
}

pub(crate) fn mac(key: &[u8; 32], covers: &[u8]) -> [u8; MAC_LEN] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(covers);
    let mut mac = [0; MAC_LEN];
    hasher.finalize_xof().fill(&mut mac);
    mac
}

fn prologue(head: &[u8; 8]) -> [u8; PROLOGUE.len() + 8] {
    let mut prologue = [0; PROLOGUE.len() + 8];
    prologue[..PROLOGUE.len()].copy_from_slice(PROLOGUE);
    prologue[PROLOGUE.len()..].copy_from_slice(head);
    prologue
}

#[cfg(test)]
mod tests;
