//! STUN: "where do you see me?" (RFC 8489), and behaviour discovery (RFC 5780).
//!
//! ```text
//! message    0 u16 method and class │ 2 u16 length of attributes │ 4 u32 0x2112a442 │ 8 [12] transaction
//! attribute  0 u16 type │ 2 u16 length │ 4 value, padded to a multiple of 4
//! ```
//! Fields are big-endian. Only Binding is spoken, without authentication. The format lets answers
//! be longer than questions; ours are not: a client pads its question to [`REQUEST_LEN`], and a
//! server leaves out of the answer what would make it longer.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::{array, put};

pub const MAGIC: [u8; 4] = [0x21, 0x12, 0xa4, 0x42];
pub const HEADER_LEN: usize = 20;
/// Our questions are this long: as the answer with three IPv6 addresses and a fingerprint.
pub const REQUEST_LEN: usize = 100;
/// The longest message that is looked at; no answer we ask for is longer.
pub const MAX_LEN: usize = 1500;

const BINDING: u16 = 0x0001;

const MAPPED_ADDRESS: u16 = 0x0001;
pub const CHANGE_REQUEST: u16 = 0x0003;
const USERNAME: u16 = 0x0006;
const MESSAGE_INTEGRITY: u16 = 0x0008;
const ERROR_CODE: u16 = 0x0009;
const UNKNOWN_ATTRIBUTES: u16 = 0x000a;
const REALM: u16 = 0x0014;
const NONCE: u16 = 0x0015;
const MESSAGE_INTEGRITY_SHA256: u16 = 0x001c;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
const PADDING: u16 = 0x0026;
const RESPONSE_PORT: u16 = 0x0027;
const SOFTWARE: u16 = 0x8022;
const FINGERPRINT: u16 = 0x8028;
const RESPONSE_ORIGIN: u16 = 0x802b;
const OTHER_ADDRESS: u16 = 0x802c;
/// Ours, of the range that need not be understood: `u16 seconds │ u16 0`, after which the one answer comes. RFC 5780 §4.6 has
/// the answer sent to another port to learn how long a NAT remembers; that would let anybody aim our packets.
const DELAY: u16 = 0xc0e5;

const FINGERPRINT_LEN: usize = 8;
const FINGERPRINT_XOR: u32 = 0x5354_554e;

/// 400 (Bad Request).
pub const BAD_REQUEST: u16 = 400;
/// 420 (Unknown Attribute): of those below 0x8000, which must be understood.
pub const UNKNOWN_ATTRIBUTE: u16 = 420;

/// Chosen by the asker at random, echoed by the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TransactionId(pub [u8; 12]);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    Request,
    Indication,
    Success,
    Error,
}

/// Asks the server to answer from elsewhere (RFC 5780 §7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    pub ip: bool,
    pub port: bool,
}

/// A Binding message: what of it we understand.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub class: Class,
    pub transaction: TransactionId,
    /// Where the server saw the request come from; XOR-MAPPED-ADDRESS, else MAPPED-ADDRESS.
    pub mapped: Option<SocketAddr>,
    /// Where the answer came from, as the server has it.
    pub origin: Option<SocketAddr>,
    /// The server's other address and port; only one that can test filtering has them.
    pub other: Option<SocketAddr>,
    pub change: Change,
    /// Seconds until the answer is wanted.
    pub delay: u16,
    pub software: Option<&'a str>,
    /// Code 300–699 of an error response.
    pub error: Option<u16>,
    /// Attributes below 0x8000 that we do not understand; a request with such is answered with 420.
    pub unknown: Vec<u16>,
    /// The message ends in a right fingerprint. (A wrong one is no STUN message.)
    pub fingerprint: bool,
    /// Bytes of the whole message.
    pub len: usize,
}

impl<'a> Message<'a> {
    /// Reads a Binding message; `None` for what is none, or is cut off or forged.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let kind = u16::from_be_bytes(array(bytes, 0)?);
        let class = match kind & 0x0110 {
            0x0000 => Class::Request,
            0x0010 => Class::Indication,
            0x0100 => Class::Success,
            _ => Class::Error,
        };
        let len = usize::from(u16::from_be_bytes(array(bytes, 2)?));
        if kind & !0x0110 != BINDING
            || array::<4>(bytes, 4)? != MAGIC
            || len.checked_add(HEADER_LEN)? != bytes.len()
            || bytes.len() > MAX_LEN
        {
            return None;
        }
        let mut message = Self {
            class,
            transaction: TransactionId(array(bytes, 8)?),
            mapped: None,
            origin: None,
            other: None,
            change: Change::default(),
            delay: 0,
            software: None,
            error: None,
            unknown: Vec::new(),
            fingerprint: false,
            len: bytes.len(),
        };
        let mut plain = None;
        let mut sealed = false;
        let mut at = HEADER_LEN;
        while at < bytes.len() {
            let kind = u16::from_be_bytes(array(bytes, at)?);
            let len = usize::from(u16::from_be_bytes(array(bytes, at.checked_add(2)?)?));
            let start = at.checked_add(4)?;
            let value = bytes.get(start..start.checked_add(len)?)?;
            match kind {
                FINGERPRINT => {
                    let given = u32::from_be_bytes(value.try_into().ok()?);
                    if given != fingerprint(bytes.get(..at)?)
                        || start.checked_add(4)? != bytes.len()
                    {
                        return None;
                    }
                    message.fingerprint = true;
                }
                // Whatever follows MESSAGE-INTEGRITY is ignored (RFC 8489 §14.5).
                _ if sealed => {}
                MESSAGE_INTEGRITY | MESSAGE_INTEGRITY_SHA256 => sealed = true,
                XOR_MAPPED_ADDRESS => {
                    message.mapped =
                        message.mapped.or(Some(unxor(address(value)?, &message.transaction)));
                }
                MAPPED_ADDRESS => plain = plain.or(Some(address(value)?)),
                RESPONSE_ORIGIN => message.origin = message.origin.or(Some(address(value)?)),
                OTHER_ADDRESS => message.other = message.other.or(Some(address(value)?)),
                CHANGE_REQUEST => {
                    let flags = u32::from_be_bytes(value.try_into().ok()?);
                    message.change = Change { ip: flags & 4 != 0, port: flags & 2 != 0 };
                }
                ERROR_CODE => {
                    let [_, _, class, number] = array::<4>(value, 0)?;
                    let code = u16::from(class & 7).checked_mul(100)?.checked_add(number.into())?;
                    message.error = Some(code);
                }
                DELAY => message.delay = u16::from_be_bytes(array(value, 0)?),
                SOFTWARE => message.software = std::str::from_utf8(value).ok(),
                PADDING | USERNAME | REALM | NONCE | UNKNOWN_ATTRIBUTES => {}
                // Answering to a port of the asker's choice would make us a reflector.
                RESPONSE_PORT => message.unknown.push(kind),
                0..0x8000 => message.unknown.push(kind),
                0x8000.. => {}
            }
            at = start.checked_add(len.checked_next_multiple_of(4)?)?;
        }
        message.mapped = message.mapped.or(plain);
        Some(message)
    }
}

/// A Binding request of [`REQUEST_LEN`] bytes, to be answered after `delay` seconds.
pub fn request(transaction: TransactionId, change: Change, delay: u16) -> Vec<u8> {
    let mut message = Builder::new(Class::Request, transaction);
    if change != Change::default() {
        let flags = u32::from(change.ip) << 2 | u32::from(change.port) << 1;
        message.attribute(CHANGE_REQUEST, &flags.to_be_bytes());
    }
    if delay > 0 {
        let [high, low] = delay.to_be_bytes();
        message.attribute(DELAY, &[high, low, 0, 0]);
    }
    // SOFTWARE, because PADDING must be understood and many servers do not.
    let room = REQUEST_LEN.saturating_sub(message.bytes.len()).saturating_sub(FINGERPRINT_LEN + 4);
    message.attribute(SOFTWARE, format!("{:<room$}", "easynet").as_bytes());
    message.finish()
}

/// The answer to `request`, which came from `from`; no longer than the request, but for one shorter than
/// the mapped address needs. `origin` is the answering address, `other` the server's second one.
pub fn answer(
    request: &Message<'_>,
    from: SocketAddr,
    origin: Option<SocketAddr>,
    other: Option<SocketAddr>,
) -> Vec<u8> {
    if !request.unknown.is_empty() {
        return refuse(request, UNKNOWN_ATTRIBUTE);
    }
    let mut message = Builder::new(Class::Success, request.transaction);
    message.attribute(XOR_MAPPED_ADDRESS, &pack(xor(canonical(from), &request.transaction)));
    let room = |message: &Builder, more: usize| {
        message.bytes.len().saturating_add(more).saturating_add(FINGERPRINT_LEN) <= request.len
    };
    for (kind, addr) in [(OTHER_ADDRESS, other), (RESPONSE_ORIGIN, origin)] {
        if let Some(addr) = addr {
            let value = pack(canonical(addr));
            if room(&message, value.len().saturating_add(4)) {
                message.attribute(kind, &value);
            }
        }
    }
    if room(&message, 0) { message.finish() } else { message.bytes }
}

/// An error response with `code` and an empty reason.
pub fn refuse(request: &Message<'_>, code: u16) -> Vec<u8> {
    let mut message = Builder::new(Class::Error, request.transaction);
    let [class, number] = [code / 100, code % 100].map(|part| u8::try_from(part).unwrap_or(0));
    message.attribute(ERROR_CODE, &[0, 0, class & 7, number]);
    if code == UNKNOWN_ATTRIBUTE {
        // Named as far as the answer stays no longer than the question.
        let room = (request.len.saturating_sub(message.bytes.len()).saturating_sub(4) / 4)
            .saturating_mul(2);
        let named: Vec<u8> =
            request.unknown.iter().take(room).flat_map(|kind| kind.to_be_bytes()).collect();
        message.attribute(UNKNOWN_ATTRIBUTES, &named);
    }
    message.bytes
}

struct Builder {
    bytes: Vec<u8>,
}

impl Builder {
    fn new(class: Class, transaction: TransactionId) -> Self {
        let class = match class {
            Class::Request => 0x0000u16,
            Class::Indication => 0x0010,
            Class::Success => 0x0100,
            Class::Error => 0x0110,
        };
        let mut bytes = vec![0; HEADER_LEN];
        put(&mut bytes, 0, &(BINDING | class).to_be_bytes());
        put(&mut bytes, 4, &MAGIC);
        put(&mut bytes, 8, &transaction.0);
        Self { bytes }
    }

    /// Adds an attribute and keeps the message's length right. A value that does not fit is left out.
    fn attribute(&mut self, kind: u16, value: &[u8]) {
        let Ok(len) = u16::try_from(value.len()) else { return };
        self.bytes.extend_from_slice(&kind.to_be_bytes());
        self.bytes.extend_from_slice(&len.to_be_bytes());
        self.bytes.extend_from_slice(value);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
        self.set_len(self.bytes.len().saturating_sub(HEADER_LEN));
    }

    fn set_len(&mut self, len: usize) {
        put(&mut self.bytes, 2, &u16::try_from(len).unwrap_or(u16::MAX).to_be_bytes());
    }

    /// Adds the fingerprint, which covers the length with itself included.
    fn finish(mut self) -> Vec<u8> {
        let len = self.bytes.len().saturating_sub(HEADER_LEN).saturating_add(FINGERPRINT_LEN);
        self.set_len(len);
        let fingerprint = fingerprint(&self.bytes);
        self.attribute(FINGERPRINT, &fingerprint.to_be_bytes());
        self.bytes
    }
}

/// Reads `0 │ family │ u16 port │ address`.
fn address(value: &[u8]) -> Option<SocketAddr> {
    let port = u16::from_be_bytes(array(value, 2)?);
    let ip: IpAddr = match (*value.get(1)?, value.len()) {
        (1, 8) => array::<4>(value, 4)?.into(),
        (2, 20) => array::<16>(value, 4)?.into(),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

fn pack(addr: SocketAddr) -> Vec<u8> {
    let (family, ip) = match addr.ip() {
        IpAddr::V4(v4) => (1, v4.octets().to_vec()),
        IpAddr::V6(v6) => (2, v6.octets().to_vec()),
    };
    let mut value = vec![0, family];
    value.extend_from_slice(&addr.port().to_be_bytes());
    value.extend_from_slice(&ip);
    value
}

/// A dual-stack socket reports IPv4 peers as v4-mapped; they asked over IPv4.
fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// XORs with the cookie and, for IPv6, the transaction; its own inverse (RFC 8489 §14.2).
fn xor(addr: SocketAddr, transaction: &TransactionId) -> SocketAddr {
    let [a, b, c, d] = MAGIC;
    let port = addr.port() ^ u16::from_be_bytes([a, b]);
    let ip = match addr.ip() {
        IpAddr::V4(v4) => {
            IpAddr::from((v4.to_bits() ^ u32::from_be_bytes([a, b, c, d])).to_be_bytes())
        }
        IpAddr::V6(v6) => {
            let mut mask = [0; 16];
            put(&mut mask, 0, &MAGIC);
            put(&mut mask, 4, &transaction.0);
            Ipv6Addr::from_bits(v6.to_bits() ^ u128::from_be_bytes(mask)).into()
        }
    };
    SocketAddr::new(ip, port)
}

fn unxor(addr: SocketAddr, transaction: &TransactionId) -> SocketAddr {
    xor(addr, transaction)
}

fn fingerprint(bytes: &[u8]) -> u32 {
    crc32(bytes) ^ FINGERPRINT_XOR
}

/// CRC-32 of ISO 3309, as in zip; messages are short, so bit by bit will do.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
        })
    })
}

#[cfg(test)]
mod tests;
