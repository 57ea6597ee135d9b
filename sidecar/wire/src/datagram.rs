//! The datagrams of one UDP port, and of every other carrier.
//!
//! Header fields are little-endian. The first byte lies in 0x80–0xBF, which no STUN, DTLS or TURN
//! packet has.
//!
//! ```text
//! INIT      0 u8 0x81 │ 1 u8 version │ 2 u8 role │ 3 u8 0 │ 4 u32 sender_index │ 8 [32] e │ 40 [48] s
//!           88 [1024] payload and tag │ 1112 [16] mac1 │ 1128 [16] mac2                         = 1144 B
//! RESPONSE  0 u8 0x82 │ 1 u8 version │ 2 u8 role │ 3 u8 psk_epoch │ 4 u32 sender_index
//!           8 u32 receiver_index │ 12 [32] e │ 44 payload and tag │ [16] mac1 │ [16] mac2     ≤ 1144 B
//! COOKIE    0 u8 0x83 │ 1 [3] 0 │ 4 u32 receiver_index │ 8 [24] nonce │ 32 [32] cookie and tag   = 64 B
//! DATA      0 u8 0x84 │ 1 u8 flags 0 │ 2 u16 0 │ 4 u32 receiver_index │ 8 u64 counter
//!           16 sealed( plaintext ‖ u8 kind ) ‖ [16] tag                                        ≥ 33 B
//! PROBE     0 u8 0x85 │ 1 u8 op │ 2 u16 seq │ 4 u32 receiver_index │ 8 u64 txid │ 16 u64 sender_time_µs
//!           24 [16] MAC over all else │ 40 [18] observed_src │ 58 padding                      ≥ 58 B
//! TRANSIT   0 u8 0x86 │ 1 u8 hop_limit │ 2 u16 0 │ 4 u32 link_index │ 8 u64 link_counter
//!           16 u64 dst │ 24 u64 src │ 32 [8] hop MAC │ 40 inner datagram                       > 40 B
//! WHOIS     0 u8 0x87 │ 1 u8 op │ 2 [6] 0 │ 8 u64 txid │ 16 [32] S │ 48 [32] D │ 80 [64] signature = 144 B
//! VERSIONS  0 u8 0x87 │ 1 u8 2 │ 2 u8 lowest │ 3 u8 highest │ 4 u32 receiver_index                = 8 B
//! ```
//!
//! WHOIS asks (op 0, padded with zeros to the answer's size) and answers (op 1) for the identity
//! keys of an address; the signature is the root's over `S ‖ D` where a root is pinned, else zero.
//! VERSIONS (op 2) answers an INIT of a version that we do not speak.

use std::net::SocketAddr;

use crate::{
    array,
    endpoint::{self, ADDR_LEN},
    id::{DhKey, NodeKeys, ShortId, SignKey},
    put,
};

pub const TYPE_INIT: u8 = 0x81;
pub const TYPE_RESPONSE: u8 = 0x82;
pub const TYPE_COOKIE: u8 = 0x83;
pub const TYPE_DATA: u8 = 0x84;
pub const TYPE_PROBE: u8 = 0x85;
pub const TYPE_TRANSIT: u8 = 0x86;
pub const TYPE_WHOIS: u8 = 0x87;

/// INIT is always this long, so that its answer can never be longer, and with TRANSIT (40) and a
/// NetworkId (16) it fits the smallest path of 1200.
pub const INIT_LEN: usize = 1144;
/// Payload and tag of INIT.
pub const INIT_PAYLOAD_LEN: usize = 1024;
/// RESPONSE with an empty payload: header, tag and two MACs.
pub const RESPONSE_MIN_LEN: usize = 92;
pub const COOKIE_LEN: usize = 64;
pub const MAC_LEN: usize = 16;
pub const TAG_LEN: usize = 16;
pub const DATA_HEADER_LEN: usize = 16;
/// What DATA adds to an IP packet: header, kind byte, tag.
pub const DATA_OVERHEAD: usize = DATA_HEADER_LEN + 1 + TAG_LEN;
pub const PROBE_LEN: usize = 58;
pub const PROBE_MAC_AT: usize = 24;
pub const TRANSIT_LEN: usize = 40;
pub const TRANSIT_MAC_AT: usize = 32;
/// Hops that a TRANSIT packet may take.
pub const HOP_LIMIT: u8 = 8;
pub const WHOIS_LEN: usize = 144;
pub const VERSIONS_LEN: usize = 8;
/// No datagram of ours is longer; more is not even looked at.
pub const MAX_DATAGRAM: usize = 65_535;

/// What the initiator wants its counterpart to be, in INIT; what it is, in RESPONSE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Role {
    /// Whatever answers at a bare address.
    Any = 0,
    /// A member of the network: proved by PSK and certificate.
    Member = 1,
    /// A public server: psk is zero.
    Server = 2,
    /// A configuration feed: psk is zero.
    Feed = 3,
}

impl Role {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Any,
            1 => Self::Member,
            2 => Self::Server,
            3 => Self::Feed,
            _ => return None,
        })
    }
}

/// A datagram by its first byte and length; views borrow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datagram<'a> {
    Init(Init<'a>),
    Response(Response<'a>),
    Cookie(Cookie<'a>),
    Data(Data<'a>),
    Probe(Probe<'a>),
    Transit(Transit<'a>),
    Whois(Whois),
    Versions(Versions),
    /// Has STUN's first two bits and magic cookie; see [`crate::stun`].
    Stun(&'a [u8]),
}

impl<'a> Datagram<'a> {
    /// Says what a datagram is; `None` for whatever has no layout of ours, or not its length.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        match *bytes.first()? {
            TYPE_INIT => Init::parse(bytes).map(Self::Init),
            TYPE_RESPONSE => Response::parse(bytes).map(Self::Response),
            TYPE_COOKIE => Cookie::parse(bytes).map(Self::Cookie),
            TYPE_DATA => Data::parse(bytes).map(Self::Data),
            TYPE_PROBE => Probe::parse(bytes).map(Self::Probe),
            TYPE_TRANSIT => Transit::parse(bytes).map(Self::Transit),
            TYPE_WHOIS => match *bytes.get(1)? {
                2 => Versions::parse(bytes).map(Self::Versions),
                _ => Whois::parse(bytes).map(Self::Whois),
            },
            0..=3 if array::<4>(bytes, 4)? == [0x21, 0x12, 0xa4, 0x42] => Some(Self::Stun(bytes)),
            _ => None,
        }
    }
}

/// INIT, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Init<'a> {
    pub version: u8,
    pub role: u8,
    pub sender_index: u32,
    /// Noise message 1: `e ‖ s ‖ payload`, without our header.
    pub noise: &'a [u8],
    /// All that `mac1` covers.
    pub mac1_covers: &'a [u8],
    pub mac1: [u8; MAC_LEN],
    /// All that `mac2` covers.
    pub mac2_covers: &'a [u8],
    pub mac2: [u8; MAC_LEN],
    /// The first eight bytes, which the prologue binds.
    pub head: [u8; 8],
}

impl<'a> Init<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() != INIT_LEN {
            return None;
        }
        let head = array::<8>(bytes, 0)?;
        Some(Self {
            version: head[1],
            role: head[2],
            sender_index: u32::from_le_bytes(array(bytes, 4)?),
            noise: bytes.get(8..INIT_LEN.checked_sub(2 * MAC_LEN)?)?,
            mac1_covers: bytes.get(..INIT_LEN.checked_sub(2 * MAC_LEN)?)?,
            mac1: array(bytes, INIT_LEN.checked_sub(2 * MAC_LEN)?)?,
            mac2_covers: bytes.get(..INIT_LEN.checked_sub(MAC_LEN)?)?,
            mac2: array(bytes, INIT_LEN.checked_sub(MAC_LEN)?)?,
            head,
        })
    }

    /// The first eight bytes of an INIT.
    pub fn head(role: Role, sender_index: u32) -> [u8; 8] {
        let [a, b, c, d] = sender_index.to_le_bytes();
        [TYPE_INIT, crate::VERSION, role as u8, 0, a, b, c, d]
    }
}

/// RESPONSE, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    pub version: u8,
    pub role: u8,
    pub psk_epoch: u8,
    pub sender_index: u32,
    pub receiver_index: u32,
    /// Noise message 2: `e ‖ payload`, without our header.
    pub noise: &'a [u8],
    pub mac1_covers: &'a [u8],
    pub mac1: [u8; MAC_LEN],
    pub mac2_covers: &'a [u8],
    pub mac2: [u8; MAC_LEN],
}

impl<'a> Response<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < RESPONSE_MIN_LEN || bytes.len() > INIT_LEN {
            return None;
        }
        let mac1_at = bytes.len().checked_sub(2 * MAC_LEN)?;
        let mac2_at = bytes.len().checked_sub(MAC_LEN)?;
        let [_, version, role, psk_epoch] = array::<4>(bytes, 0)?;
        Some(Self {
            version,
            role,
            psk_epoch,
            sender_index: u32::from_le_bytes(array(bytes, 4)?),
            receiver_index: u32::from_le_bytes(array(bytes, 8)?),
            noise: bytes.get(12..mac1_at)?,
            mac1_covers: bytes.get(..mac1_at)?,
            mac1: array(bytes, mac1_at)?,
            mac2_covers: bytes.get(..mac2_at)?,
            mac2: array(bytes, mac2_at)?,
        })
    }

    /// The first twelve bytes of a RESPONSE.
    pub fn head(role: Role, psk_epoch: u8, sender_index: u32, receiver_index: u32) -> [u8; 12] {
        let mut head = [0; 12];
        put(&mut head, 0, &[TYPE_RESPONSE, crate::VERSION, role as u8, psk_epoch]);
        put(&mut head, 4, &sender_index.to_le_bytes());
        put(&mut head, 8, &receiver_index.to_le_bytes());
        head
    }
}

/// COOKIE, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie<'a> {
    pub receiver_index: u32,
    pub nonce: [u8; 24],
    pub sealed: &'a [u8],
}

impl<'a> Cookie<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() != COOKIE_LEN {
            return None;
        }
        Some(Self {
            receiver_index: u32::from_le_bytes(array(bytes, 4)?),
            nonce: array(bytes, 8)?,
            sealed: bytes.get(32..)?,
        })
    }

    pub fn encode(receiver_index: u32, nonce: &[u8; 24], sealed: &[u8; 32]) -> [u8; COOKIE_LEN] {
        let mut bytes = [0; COOKIE_LEN];
        put(&mut bytes, 0, &[TYPE_COOKIE]);
        put(&mut bytes, 4, &receiver_index.to_le_bytes());
        put(&mut bytes, 8, nonce);
        put(&mut bytes, 32, sealed);
        bytes
    }
}

/// The header of DATA and the sealed rest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Data<'a> {
    pub receiver_index: u32,
    pub counter: u64,
    /// Ciphertext and tag.
    pub sealed: &'a [u8],
}

impl<'a> Data<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < DATA_OVERHEAD || array::<4>(bytes, 0)? != [TYPE_DATA, 0, 0, 0] {
            return None;
        }
        Some(Self {
            receiver_index: u32::from_le_bytes(array(bytes, 4)?),
            counter: u64::from_le_bytes(array(bytes, 8)?),
            sealed: bytes.get(DATA_HEADER_LEN..)?,
        })
    }

    /// The header that the AEAD covers.
    #[inline]
    pub fn head(receiver_index: u32, counter: u64) -> [u8; DATA_HEADER_LEN] {
        let mut head = [0; DATA_HEADER_LEN];
        put(&mut head, 0, &[TYPE_DATA]);
        put(&mut head, 4, &receiver_index.to_le_bytes());
        put(&mut head, 8, &counter.to_le_bytes());
        head
    }
}

/// What a probe is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ProbeOp {
    Ask = 0,
    Ack = 1,
}

/// PROBE or PROBE_ACK, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe<'a> {
    pub op: ProbeOp,
    pub seq: u16,
    pub receiver_index: u32,
    /// Chosen by the asker, echoed by the answer.
    pub txid: u64,
    /// The asker's clock in µs; echoed by the answer.
    pub sender_time: u64,
    pub mac: [u8; MAC_LEN],
    /// In the answer, where the probe came from; else zero.
    pub observed: [u8; ADDR_LEN],
    /// The whole datagram, for the MAC.
    pub bytes: &'a [u8],
}

impl<'a> Probe<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() < PROBE_LEN {
            return None;
        }
        let op = match *bytes.get(1)? {
            0 => ProbeOp::Ask,
            1 => ProbeOp::Ack,
            _ => return None,
        };
        Some(Self {
            op,
            seq: u16::from_le_bytes(array(bytes, 2)?),
            receiver_index: u32::from_le_bytes(array(bytes, 4)?),
            txid: u64::from_le_bytes(array(bytes, 8)?),
            sender_time: u64::from_le_bytes(array(bytes, 16)?),
            mac: array(bytes, PROBE_MAC_AT)?,
            observed: array(bytes, 40)?,
            bytes,
        })
    }

    /// Where the answerer saw the probe come from.
    pub fn observed(&self) -> SocketAddr {
        endpoint::unpack_addr(&self.observed)
    }

    /// Lays out a probe of `len` bytes (at least [`PROBE_LEN`]) with a zero MAC, for the session to fill in
    /// at [`PROBE_MAC_AT`].
    pub fn encode(
        op: ProbeOp,
        seq: u16,
        receiver_index: u32,
        txid: u64,
        sender_time: u64,
        observed: Option<SocketAddr>,
        len: usize,
    ) -> Vec<u8> {
        let mut bytes = vec![0; len.max(PROBE_LEN)];
        put(&mut bytes, 0, &[TYPE_PROBE, op as u8]);
        put(&mut bytes, 2, &seq.to_le_bytes());
        put(&mut bytes, 4, &receiver_index.to_le_bytes());
        put(&mut bytes, 8, &txid.to_le_bytes());
        put(&mut bytes, 16, &sender_time.to_le_bytes());
        if let Some(addr) = observed {
            put(&mut bytes, 40, &endpoint::pack_addr(addr));
        }
        bytes
    }
}

/// The header of TRANSIT and what it carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transit<'a> {
    pub hop_limit: u8,
    pub link_index: u32,
    pub link_counter: u64,
    pub dst: ShortId,
    pub src: ShortId,
    pub mac: [u8; 8],
    pub inner: &'a [u8],
}

impl<'a> Transit<'a> {
    fn parse(bytes: &'a [u8]) -> Option<Self> {
        if bytes.len() <= TRANSIT_LEN {
            return None;
        }
        Some(Self {
            hop_limit: *bytes.get(1)?,
            link_index: u32::from_le_bytes(array(bytes, 4)?),
            link_counter: u64::from_le_bytes(array(bytes, 8)?),
            dst: ShortId(u64::from_le_bytes(array(bytes, 16)?)),
            src: ShortId(u64::from_le_bytes(array(bytes, 24)?)),
            mac: array(bytes, TRANSIT_MAC_AT)?,
            inner: bytes.get(TRANSIT_LEN..)?,
        })
    }

    /// The header with a zero MAC, for the link session to fill in at [`TRANSIT_MAC_AT`].
    #[inline]
    pub fn head(
        hop_limit: u8,
        link_index: u32,
        link_counter: u64,
        dst: ShortId,
        src: ShortId,
    ) -> [u8; TRANSIT_LEN] {
        let mut head = [0; TRANSIT_LEN];
        put(&mut head, 0, &[TYPE_TRANSIT, hop_limit]);
        put(&mut head, 4, &link_index.to_le_bytes());
        put(&mut head, 8, &link_counter.to_le_bytes());
        put(&mut head, 16, &dst.0.to_le_bytes());
        put(&mut head, 24, &src.0.to_le_bytes());
        head
    }
}

/// WHOIS or WHOIS_ACK, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Whois {
    pub answer: bool,
    pub txid: u64,
    pub keys: NodeKeys,
    pub signature: [u8; 64],
}

impl Whois {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != WHOIS_LEN {
            return None;
        }
        let answer = match *bytes.get(1)? {
            0 => false,
            1 => true,
            _ => return None,
        };
        Some(Self {
            answer,
            txid: u64::from_le_bytes(array(bytes, 8)?),
            keys: NodeKeys { sign: SignKey(array(bytes, 16)?), dh: DhKey(array(bytes, 48)?) },
            signature: array(bytes, 80)?,
        })
    }

    /// A question for the identity keys of an address.
    pub fn ask(txid: u64) -> [u8; WHOIS_LEN] {
        let mut bytes = [0; WHOIS_LEN];
        put(&mut bytes, 0, &[TYPE_WHOIS, 0]);
        put(&mut bytes, 8, &txid.to_le_bytes());
        bytes
    }

    /// The answer to it.
    pub fn answer(txid: u64, keys: &NodeKeys, signature: &[u8; 64]) -> [u8; WHOIS_LEN] {
        let mut bytes = Self::ask(txid);
        put(&mut bytes, 1, &[1]);
        put(&mut bytes, 16, &keys.to_bytes());
        put(&mut bytes, 80, signature);
        bytes
    }
}

/// The versions that the answerer of an INIT speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    pub lowest: u8,
    pub highest: u8,
    pub receiver_index: u32,
}

impl Versions {
    fn parse(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != VERSIONS_LEN {
            return None;
        }
        let [_, _, lowest, highest, a, b, c, d] = array::<8>(bytes, 0)?;
        Some(Self { lowest, highest, receiver_index: u32::from_le_bytes([a, b, c, d]) })
    }

    pub fn encode(lowest: u8, highest: u8, receiver_index: u32) -> [u8; VERSIONS_LEN] {
        let [a, b, c, d] = receiver_index.to_le_bytes();
        [TYPE_WHOIS, 2, lowest, highest, a, b, c, d]
    }
}

#[cfg(test)]
mod tests;
