//! A session in use: sealing, opening, authenticating probes and hops.
//!
//! One `Session` is shared by the engine and all workers. Sending counters are one atomic, reserved
//! per batch; the replay windows are behind short locks, taken once per batch and only for packets
//! that authenticated.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ring::aead::{AES_256_GCM, Aad, CHACHA20_POLY1305, LessSafeKey, Nonce, UnboundKey};
use siphasher::sip::SipHasher24;
use wire::{
    datagram::{
        DATA_HEADER_LEN, DATA_OVERHEAD, PROBE_LEN, PROBE_MAC_AT, TAG_LEN, TRANSIT_LEN,
        TRANSIT_MAC_AT, TYPE_DATA,
    },
    id::NodeId,
    packet::Kind,
};

use crate::{
    keys::{Suite, TransportKeys},
    replay::Window,
};

/// Packets that one key may seal, far below what AES-GCM allows and beyond what 180 s can send.
const COUNTER_LIMIT: u64 = 1 << 40;
/// Keys older than this neither seal nor open, so that a stolen one is of little use.
pub const REJECT_AFTER: Duration = Duration::from_secs(180);
/// Bytes of the inner datagram that the hop MAC covers: all that tells one packet from another.
const HOP_COVERED: usize = 32;

/// The Noise keys shared with one peer, independent of paths.
pub struct Session {
    peer: NodeId,
    local_index: u32,
    remote_index: u32,
    established: Instant,
    seal: LessSafeKey,
    open: LessSafeKey,
    next: AtomicU64,
    replay: Mutex<Window>,
    probe_send: [u8; 32],
    probe_recv: [u8; 32],
    hop_send: [u8; 16],
    hop_recv: [u8; 16],
    hop_next: AtomicU64,
    hop_replay: Mutex<Window>,
    exporter: [u8; 32],
    suite: Suite,
    heard: AtomicBool,
    last_sent: AtomicU64,
    last_received: AtomicU64,
}

/// Why a packet did not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    #[error("not a DATA packet, or of an unknown kind")]
    Malformed,
    #[error("does not authenticate")]
    Forged,
}

/// A packet that opened; its counter still has to pass the replay window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    pub counter: u64,
    pub kind: Kind,
    /// Length of the plaintext at [`DATA_HEADER_LEN`], without the kind byte.
    pub len: usize,
}

impl Session {
    pub fn new(
        peer: NodeId,
        local_index: u32,
        remote_index: u32,
        keys: &TransportKeys,
        established: Instant,
    ) -> Self {
        Self {
            peer,
            local_index,
            remote_index,
            established,
            seal: aead(keys.suite, &keys.data_send),
            open: aead(keys.suite, &keys.data_recv),
            next: AtomicU64::new(0),
            replay: Mutex::new(Window::new()),
            probe_send: keys.probe_send,
            probe_recv: keys.probe_recv,
            hop_send: keys.hop_send,
            hop_recv: keys.hop_recv,
            hop_next: AtomicU64::new(0),
            hop_replay: Mutex::new(Window::new()),
            exporter: keys.exporter,
            suite: keys.suite,
            heard: AtomicBool::new(false),
            last_sent: AtomicU64::new(0),
            last_received: AtomicU64::new(0),
        }
    }

    pub fn peer(&self) -> NodeId {
        self.peer
    }

    /// The index that the peer puts into what it sends us.
    pub fn local_index(&self) -> u32 {
        self.local_index
    }

    /// The index that we put into what we send.
    pub fn remote_index(&self) -> u32 {
        self.remote_index
    }

    pub fn established(&self) -> Instant {
        self.established
    }

    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Whether the keys are too old to use.
    #[inline]
    pub fn is_expired(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.established) >= REJECT_AFTER
    }

    /// Notes that a packet of the peer authenticated; true for the first one, which proves to a responder that
    /// its RESPONSE arrived.
    #[inline]
    pub fn first_heard(&self) -> bool {
        !self.heard.load(Ordering::Relaxed) && !self.heard.swap(true, Ordering::Relaxed)
    }

    /// Stamps that something was sent with these keys, DATA or TRANSIT; `millis` is the caller's clock, 0 never.
    #[inline]
    pub fn touch_sent(&self, millis: u64) {
        self.last_sent.store(millis, Ordering::Relaxed);
    }

    /// Stamps that something of the peer authenticated, DATA or TRANSIT.
    #[inline]
    pub fn touch_received(&self, millis: u64) {
        self.last_received.store(millis, Ordering::Relaxed);
    }

    /// The last stamp of sending.
    pub fn last_sent(&self) -> u64 {
        self.last_sent.load(Ordering::Relaxed)
    }

    /// The last stamp of receiving.
    pub fn last_received(&self) -> u64 {
        self.last_received.load(Ordering::Relaxed)
    }

    /// The session's hash, equal on both sides and known to nobody else; REGISTER signs it.
    pub fn exporter(&self) -> &[u8; 32] {
        &self.exporter
    }

    /// Reserves `count` counters and returns the first; `None` when the key is used up.
    #[inline]
    pub fn reserve(&self, count: u64) -> Option<u64> {
        let first = self.next.fetch_add(count, Ordering::Relaxed);
        (first.saturating_add(count) <= COUNTER_LIMIT).then_some(first)
    }

    /// Packets sealed so far.
    pub fn sealed(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    /// Seals in place: `buf` is `16 B for the header │ plaintext │ 1 B for the kind │ 16 B for the tag`.
    /// False if `buf` is shorter than that. `counter` must come from [`Session::reserve`] and be used once.
    #[inline]
    pub fn seal(&self, counter: u64, kind: Kind, buf: &mut [u8]) -> bool {
        if buf.len() < DATA_OVERHEAD {
            return false;
        }
        let (header, rest) = buf.split_at_mut(DATA_HEADER_LEN);
        header.copy_from_slice(&wire::datagram::Data::head(self.remote_index, counter));
        let (body, tag_out) = rest.split_at_mut(rest.len() - TAG_LEN);
        let kind_at = body.len() - 1;
        body[kind_at] = kind as u8;
        match self.seal.seal_in_place_separate_tag(nonce(counter), Aad::from(&*header), body) {
            Ok(tag) => {
                tag_out.copy_from_slice(tag.as_ref());
                true
            }
            Err(ring::error::Unspecified) => false,
        }
    }

    /// Seals one record into a buffer of its own; `None` when the key is used up.
    pub fn seal_record(&self, kind: Kind, plaintext: &[u8]) -> Option<Vec<u8>> {
        let counter = self.reserve(1)?;
        let mut buf = vec![0; DATA_OVERHEAD + plaintext.len()];
        buf[DATA_HEADER_LEN..DATA_HEADER_LEN + plaintext.len()].copy_from_slice(plaintext);
        self.seal(counter, kind, &mut buf).then_some(buf)
    }

    /// Opens a whole DATA datagram in place; the plaintext then stands at [`DATA_HEADER_LEN`].
    ///
    /// # Errors
    /// It is not of this session, or was changed on the way: a drop.
    #[inline]
    pub fn open(&self, datagram: &mut [u8]) -> Result<Opened, OpenError> {
        if datagram.len() < DATA_OVERHEAD {
            return Err(OpenError::Malformed);
        }
        let (header, body) = datagram.split_at_mut(DATA_HEADER_LEN);
        if header[..4] != [TYPE_DATA, 0, 0, 0] {
            return Err(OpenError::Malformed);
        }
        let mut counter = [0; 8];
        counter.copy_from_slice(&header[8..16]);
        let counter = u64::from_le_bytes(counter);
        let plain = self
            .open
            .open_in_place(nonce(counter), Aad::from(&*header), body)
            .map_err(|ring::error::Unspecified| OpenError::Forged)?;
        let (kind, plain) = plain.split_last().ok_or(OpenError::Malformed)?;
        let kind = Kind::from_byte(*kind).ok_or(OpenError::Malformed)?;
        Ok(Opened { counter, kind, len: plain.len() })
    }

    /// Passes a batch of authenticated counters through the replay window under one lock: `keep` is told for each
    /// whether it is new.
    pub fn accept(&self, counters: impl Iterator<Item = u64>, mut keep: impl FnMut(u64, bool)) {
        let mut window = self.replay.lock().unwrap_or_else(PoisonError::into_inner);
        for counter in counters {
            let new = window.accept(counter);
            keep(counter, new);
        }
    }

    /// The same for one counter.
    pub fn accept_one(&self, counter: u64) -> bool {
        self.replay.lock().unwrap_or_else(PoisonError::into_inner).accept(counter)
    }

    /// Writes the MAC of a probe that we send.
    pub fn sign_probe(&self, probe: &mut [u8]) {
        if probe.len() < PROBE_LEN {
            return;
        }
        let mac = probe_mac(&self.probe_send, probe);
        probe[PROBE_MAC_AT..PROBE_MAC_AT + 16].copy_from_slice(&mac);
    }

    /// Whether a probe that came to our index is the peer's.
    pub fn verify_probe(&self, probe: &[u8]) -> bool {
        probe.len() >= PROBE_LEN
            && same(&probe[PROBE_MAC_AT..PROBE_MAC_AT + 16], &probe_mac(&self.probe_recv, probe))
    }

    /// Reserves `count` counters for TRANSIT headers.
    pub fn reserve_hops(&self, count: u64) -> u64 {
        self.hop_next.fetch_add(count, Ordering::Relaxed)
    }

    /// Writes the hop MAC of a TRANSIT datagram that goes over this link.
    pub fn sign_hop(&self, transit: &mut [u8]) {
        if transit.len() <= TRANSIT_LEN {
            return;
        }
        let mac = hop_mac(&self.hop_send, transit);
        transit[TRANSIT_MAC_AT..TRANSIT_LEN].copy_from_slice(&mac);
    }

    /// Whether a TRANSIT datagram came over this link; its counter still has to pass [`Session::accept_hop`].
    pub fn verify_hop(&self, transit: &[u8]) -> bool {
        transit.len() > TRANSIT_LEN
            && same(&transit[TRANSIT_MAC_AT..TRANSIT_LEN], &hop_mac(&self.hop_recv, transit))
    }

    /// Passes a verified hop counter through the link's own window.
    pub fn accept_hop(&self, counter: u64) -> bool {
        self.hop_replay.lock().unwrap_or_else(PoisonError::into_inner).accept(counter)
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session")
            .field("peer", &self.peer)
            .field("local_index", &self.local_index)
            .field("remote_index", &self.remote_index)
            .finish_non_exhaustive()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        use zeroize::Zeroize;
        self.probe_send.zeroize();
        self.probe_recv.zeroize();
        self.hop_send.zeroize();
        self.hop_recv.zeroize();
        self.exporter.zeroize();
    }
}

pub(crate) fn aead(suite: Suite, key: &[u8; 32]) -> LessSafeKey {
    let algorithm = match suite {
        Suite::Aes256Gcm => &AES_256_GCM,
        Suite::ChaCha20Poly1305 => &CHACHA20_POLY1305,
    };
    LessSafeKey::new(UnboundKey::new(algorithm, key).expect("both algorithms take 32 bytes"))
}

pub(crate) fn nonce(counter: u64) -> Nonce {
    let mut nonce = [0; 12];
    nonce[4..].copy_from_slice(&counter.to_le_bytes());
    Nonce::assume_unique_for_key(nonce)
}

fn probe_mac(key: &[u8; 32], probe: &[u8]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new_keyed(key);
    hasher.update(&probe[..PROBE_MAC_AT]);
    hasher.update(&probe[PROBE_MAC_AT + 16..]);
    let mut mac = [0; 16];
    hasher.finalize_xof().fill(&mut mac);
    mac
}

fn hop_mac(key: &[u8; 16], transit: &[u8]) -> [u8; 8] {
    let mut covered = [0; TRANSIT_MAC_AT + HOP_COVERED];
    covered[..TRANSIT_MAC_AT].copy_from_slice(&transit[..TRANSIT_MAC_AT]);
    let inner = &transit[TRANSIT_LEN..transit.len().min(TRANSIT_LEN + HOP_COVERED)];
    covered[TRANSIT_MAC_AT..TRANSIT_MAC_AT + inner.len()].copy_from_slice(inner);
    SipHasher24::new_with_key(key).hash(&covered[..TRANSIT_MAC_AT + inner.len()]).to_le_bytes()
}

/// Compares without telling where the difference is.
pub(crate) fn same(a: &[u8], b: &[u8]) -> bool {
    a.len() == b.len() && a.iter().zip(b).fold(0, |acc, (x, y)| acc | (x ^ y)) == 0
}

#[cfg(test)]
mod tests;
