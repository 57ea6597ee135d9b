//! The keys of one session, and where they come from.

use std::fmt;

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The AEAD of a session's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suite {
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Suite {
    /// The better of what both offer: sums of `wire::control::AEAD_` bits. ChaCha20-Poly1305 is spoken by everybody.
    pub fn choose(ours: u32, theirs: u32) -> Self {
        if ours & theirs & wire::control::AEAD_AES != 0 {
            Self::Aes256Gcm
        } else {
            Self::ChaCha20Poly1305
        }
    }

    /// The bit that RESPONSE carries.
    pub fn bit(self) -> u32 {
        match self {
            Self::Aes256Gcm => wire::control::AEAD_AES,
            Self::ChaCha20Poly1305 => wire::control::AEAD_CHACHA,
        }
    }

    /// The suite of RESPONSE's bit.
    pub fn from_bit(bit: u32) -> Option<Self> {
        [Self::Aes256Gcm, Self::ChaCha20Poly1305].into_iter().find(|suite| suite.bit() == bit)
    }
}

/// All keys of a session, from one side's view.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct TransportKeys {
    #[zeroize(skip)]
    pub suite: Suite,
    pub data_send: [u8; 32],
    pub data_recv: [u8; 32],
    pub probe_send: [u8; 32],
    pub probe_recv: [u8; 32],
    pub hop_send: [u8; 16],
    pub hop_recv: [u8; 16],
    /// The session's hash: what REGISTER and Enroll sign, the same on both sides.
    pub exporter: [u8; 32],
}

impl TransportKeys {
    /// From the two keys of the handshake's split: the initiator's sending key first. Data keys are these;
    /// probe, hop and exporter keys are derived from them, never from the handshake hash, which a relay sees.
    pub fn from_split(initiator: bool, suite: Suite, split: (&[u8; 32], &[u8; 32])) -> Self {
        let mut ikm = [0; 64];
        ikm[..32].copy_from_slice(split.0);
        ikm[32..].copy_from_slice(split.1);
        let derive = Hkdf::<Sha256>::new(Some(b"easynet session v1"), &ikm);
        ikm.zeroize();
        let probe = (expand(&derive, b"probe i"), expand(&derive, b"probe r"));
        let hop = (expand(&derive, b"hop i"), expand(&derive, b"hop r"));
        let exporter = expand(&derive, b"exporter");
        let (data, probe, hop) = if initiator {
            ((*split.0, *split.1), probe, hop)
        } else {
            ((*split.1, *split.0), (probe.1, probe.0), (hop.1, hop.0))
        };
        Self {
            suite,
            data_send: data.0,
            data_recv: data.1,
            probe_send: probe.0,
            probe_recv: probe.1,
            hop_send: hop.0,
            hop_recv: hop.1,
            exporter,
        }
    }
}

impl fmt::Debug for TransportKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransportKeys").field("suite", &self.suite).finish_non_exhaustive()
    }
}

fn expand<const N: usize>(derive: &Hkdf<Sha256>, label: &[u8]) -> [u8; N] {
    let mut key = [0; N];
    derive.expand(label, &mut key).expect("HKDF-SHA256 gives up to 8160 bytes");
    key
}
