//! IP packets as the data path meets them: who to whom, checksums, "packet too big", MSS.
//!
//! Fields are big-endian, as on the wire. Checksums are the 16-bit one's complement sums of
//! RFC 1071; [`sum`] and [`combine`] work on partial ones, a checksum field holds the complement.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{array, put};

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMPV6: u8 = 58;

pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
pub const TCP_LEN: usize = 20;
pub const UDP_LEN: usize = 8;
/// Every IPv6 link carries this much (RFC 8200 §5).
pub const IPV6_MIN_MTU: usize = 1280;

/// Where a TCP header has its checksum.
pub const TCP_CHECKSUM_AT: usize = 16;
/// Where a UDP header has its checksum.
pub const UDP_CHECKSUM_AT: usize = 6;

/// IPv6 extension headers that are walked; a packet with more is none that we look into.
const MAX_EXTENSIONS: usize = 8;
/// An ICMPv4 error stays within what every host takes (RFC 1812 §4.3.2.3).
const ICMPV4_ERROR_MAX: usize = 576;
const ICMP_LEN: usize = 8;
const ERROR_HOP_LIMIT: u8 = 64;

/// The headers of an IP packet whose lengths add up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Of the transport header, after IPv6 extension headers.
    pub protocol: u8,
    /// Where the transport header starts.
    pub header_len: usize,
    /// Length of the packet as its header has it; never more than the bytes there are.
    pub total_len: usize,
    pub fragment: Option<Fragment>,
}

/// A packet that is a piece of another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes into the whole; a transport header is there only at 0.
    pub offset: usize,
    pub more: bool,
}

/// Says whether a TCP or UDP checksum field holds the checksum or only the pseudo header's sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Complete,
    /// For an offload to complete.
    Partial,
}

impl Header {
    /// Reads the headers; `None` for what is no IP packet or is cut off.
    pub fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => Self::parse_v4(packet),
            6 => Self::parse_v6(packet),
            _ => None,
        }
    }

    fn parse_v4(packet: &[u8]) -> Option<Self> {
        let header_len = usize::from(packet.first()? & 0x0f).checked_mul(4)?;
        let total_len = usize::from(u16::from_be_bytes(array(packet, 2)?));
        if header_len < IPV4_LEN || total_len < header_len || total_len > packet.len() {
            return None;
        }
        let flags = u16::from_be_bytes(array(packet, 6)?);
        let (offset, more) = (usize::from(flags & 0x1fff).checked_mul(8)?, flags & 0x2000 != 0);
        Some(Self {
            src: array::<4>(packet, 12)?.into(),
            dst: array::<4>(packet, 16)?.into(),
            protocol: *packet.get(9)?,
            header_len,
            total_len,
            fragment: (offset != 0 || more).then_some(Fragment { offset, more }),
        })
    }

    fn parse_v6(packet: &[u8]) -> Option<Self> {
        let payload_len = usize::from(u16::from_be_bytes(array(packet, 4)?));
        let total_len = payload_len.checked_add(IPV6_LEN)?;
        if total_len > packet.len() {
            return None;
        }
        let packet = packet.get(..total_len)?;
        let mut header = Self {
            src: array::<16>(packet, 8)?.into(),
            dst: array::<16>(packet, 24)?.into(),
            protocol: *packet.get(6)?,
            header_len: IPV6_LEN,
            total_len,
            fragment: None,
        };
        for _ in 0..MAX_EXTENSIONS {
            if !header.skip_extension(packet)? {
                return Some(header);
            }
        }
        None
    }

    /// Moves behind one extension header; `Some(false)` when there is none.
    fn skip_extension(&mut self, packet: &[u8]) -> Option<bool> {
        let at = self.header_len;
        let len = match self.protocol {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: length in 8 bytes, less one.
            0 | 43 | 60 | 135 | 139 | 140 => {
                usize::from(array::<2>(packet, at)?[1]).checked_add(1)?.checked_mul(8)?
            }
            // Authentication header: length in 4 bytes, less two.
            51 => usize::from(array::<2>(packet, at)?[1]).checked_add(2)?.checked_mul(4)?,
            44 => {
                let [_, _, high, low, ..] = array::<8>(packet, at)?;
                let field = u16::from_be_bytes([high, low]);
                let fragment =
                    Fragment { offset: usize::from(field & 0xfff8), more: field & 1 != 0 };
                self.protocol = *packet.get(at)?;
                self.header_len = at.checked_add(8)?;
                self.fragment = Some(fragment);
                // Behind a later fragment's header there is payload, whatever `protocol` says.
                return Some(fragment.offset == 0);
            }
            _ => return Some(false),
        };
        let next = at.checked_add(len)?;
        if next > packet.len() {
            return None;
        }
        self.protocol = *packet.get(at)?;
        self.header_len = next;
        Some(true)
    }

    /// Whether a transport header begins at `header_len`: in whole packets and first fragments.
    pub fn has_transport(&self) -> bool {
        self.fragment.is_none_or(|fragment| fragment.offset == 0)
    }

    /// Bytes of transport header and payload.
    #[inline]
    pub fn payload_len(&self) -> usize {
        self.total_len.saturating_sub(self.header_len)
    }
}

/// Source and destination without a look at anything else; what the FIB lookup needs.
#[inline]
pub fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    match packet.first()? >> 4 {
        4 => Some((array::<4>(packet, 12)?.into(), array::<4>(packet, 16)?.into())),
        6 => Some((array::<16>(packet, 8)?.into(), array::<16>(packet, 24)?.into())),
        _ => None,
    }
}

/// The one's complement sum of big-endian 16-bit words; an odd last byte counts as the high half.
#[inline]
pub fn sum(bytes: &[u8]) -> u16 {
    // The sum does not depend on byte order but for a final swap (RFC 1071 §2), so native words do.
    // 2³² of them fit before the accumulator wraps.
    let (words, rest) = bytes.as_chunks::<4>();
    let mut total = words
        .iter()
        .fold(0u64, |total, word| total.wrapping_add(u64::from(u32::from_ne_bytes(*word))));
    let mut last = [0; 4];
    put(&mut last, 0, rest);
    total = total.wrapping_add(u64::from(u32::from_ne_bytes(last)));
    u16::from_be(fold(total))
}

/// Folds an accumulator of 16-bit words into one.
#[inline]
pub fn fold(total: u64) -> u16 {
    let total = (total & 0xffff_ffff).wrapping_add(total >> 32);
    let total = (total & 0xffff).wrapping_add(total >> 16 & 0xffff).wrapping_add(total >> 32);
    let total = (total & 0xffff).wrapping_add(total >> 16);
    let total = (total & 0xffff).wrapping_add(total >> 16);
    (total & 0xffff) as u16
}

/// Adds two one's complement sums.
#[inline]
pub fn combine(a: u16, b: u16) -> u16 {
    fold(u64::from(a).wrapping_add(u64::from(b)))
}

/// A checksum after one 16-bit word that it covers has changed (RFC 1624, equation 3).
#[inline]
pub fn update(checksum: u16, old: u16, new: u16) -> u16 {
    !combine(combine(!checksum, !old), new)
}

/// The sum of the TCP and UDP pseudo header; `len` is that of transport header and payload.
#[inline]
pub fn pseudo_header_sum(src: IpAddr, dst: IpAddr, protocol: u8, len: usize) -> u16 {
    let addresses = match (src, dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => combine(sum(&src.octets()), sum(&dst.octets())),
        (src, dst) => combine(sum(&v6(src).octets()), sum(&v6(dst).octets())),
    };
    let len = fold(u64::try_from(len).unwrap_or(u64::MAX));
    combine(addresses, combine(u16::from(protocol), len))
}

fn v6(addr: IpAddr) -> Ipv6Addr {
    match addr {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    }
}

/// The checksum of an IPv4 header, whatever its checksum field holds.
#[inline]
pub fn ipv4_checksum(header: &[u8]) -> u16 {
    let (before, after) = header.split_at_checked(10).unwrap_or((header, &[]));
    !combine(sum(before), sum(after.get(2..).unwrap_or_default()))
}

/// The full checksum of a TCP or UDP segment (or ICMPv6 message) between two addresses, whatever the field at
/// `checksum_at` holds. UDP sends 0xffff for 0; see [`complete`].
#[inline]
pub fn transport_checksum(
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    segment: &[u8],
    checksum_at: usize,
) -> u16 {
    let (before, after) = segment.split_at_checked(checksum_at).unwrap_or((segment, &[]));
    let words = combine(sum(before), sum(after.get(2..).unwrap_or_default()));
    !combine(pseudo_header_sum(src, dst, protocol, segment.len()), words)
}

/// Where the checksum of this protocol lies in its header.
#[inline]
pub fn checksum_at(protocol: u8) -> Option<usize> {
    match protocol {
        TCP => Some(TCP_CHECKSUM_AT),
        UDP => Some(UDP_CHECKSUM_AT),
        _ => None,
    }
}

/// Writes the full TCP or UDP checksum of an unfragmented packet; false if it has none.
pub fn complete(packet: &mut [u8]) -> bool {
    complete_checked(packet).is_some()
}

fn complete_checked(packet: &mut [u8]) -> Option<()> {
    let header = Header::parse(packet)?;
    let at = checksum_at(header.protocol)?;
    if header.fragment.is_some() {
        return None;
    }
    let segment = packet.get_mut(header.header_len..header.total_len)?;
    segment.get(at..at.checked_add(2)?)?;
    let checksum = transport_checksum(header.src, header.dst, header.protocol, segment, at);
    let checksum = if header.protocol == UDP && checksum == 0 { 0xffff } else { checksum };
    put(segment, at, &checksum.to_be_bytes());
    Some(())
}

/// Lowers the MSS option of a TCP SYN to what fits `mtu` with plain headers, in place; true if it did.
/// Packets that are no SYN, or carry no MSS option, are left alone.
pub fn clamp_mss(packet: &mut [u8], mtu: usize, checksum: Checksum) -> bool {
    clamp_mss_checked(packet, mtu, checksum).is_some()
}

fn clamp_mss_checked(packet: &mut [u8], mtu: usize, checksum: Checksum) -> Option<()> {
    let header = Header::parse(packet)?;
    if header.protocol != TCP || !header.has_transport() {
        return None;
    }
    let ip_len = if header.src.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
    let most = u16::try_from(mtu.checked_sub(ip_len)?.checked_sub(TCP_LEN)?).ok()?;
    let segment = packet.get_mut(header.header_len..header.total_len)?;
    if segment.get(13)? & SYN == 0 {
        return None;
    }
    let data_at = usize::from(segment.get(12)? >> 4).checked_mul(4)?;
    let at = mss_at(segment.get(..data_at)?)?;
    let old = u16::from_be_bytes(array(segment, at)?);
    if old <= most {
        return None;
    }
    put(segment, at, &most.to_be_bytes());
    if checksum == Checksum::Complete {
        // A word at an odd offset counts with its bytes swapped.
        let (from, to) = match at % 2 {
            0 => (old, most),
            _ => (old.swap_bytes(), most.swap_bytes()),
        };
        let field = u16::from_be_bytes(array(segment, TCP_CHECKSUM_AT)?);
        put(segment, TCP_CHECKSUM_AT, &update(field, from, to).to_be_bytes());
    }
    Some(())
}

const SYN: u8 = 0x02;

/// Where in a TCP header the value of the MSS option is.
fn mss_at(header: &[u8]) -> Option<usize> {
    let mut at = TCP_LEN;
    loop {
        match *header.get(at)? {
            0 => return None,
            1 => at = at.checked_add(1)?,
            kind => {
                let len = usize::from(*header.get(at.checked_add(1)?)?);
                if kind == 2 && len == 4 {
                    let value = at.checked_add(2)?;
                    header.get(value..value.checked_add(2)?)?;
                    return Some(value);
                }
                if len < 2 {
                    return None;
                }
                at = at.checked_add(len)?;
            }
        }
    }
}

/// The ICMP error that tells the sender of `original` that only `mtu` bytes fit: ICMPv4 "fragmentation
/// needed" (RFC 1191) or ICMPv6 "packet too big" (RFC 8201).
///
/// It comes from the address that the packet was for: hosts drop as a martian what claims to be from one of their own.
///
/// `None` where RFC 1122 §3.2.2 and RFC 4443 §2.4 forbid an answer: to ICMP errors, multicast, broadcast,
/// later fragments, and sources that are not one host.
pub fn packet_too_big(original: &[u8], mtu: usize) -> Option<Vec<u8>> {
    let header = Header::parse(original)?;
    let original = original.get(..header.total_len)?;
    if !header.has_transport() || is_icmp_error(&header, original) {
        return None;
    }
    match (header.src, header.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let answerable = is_one_host_v4(src) && !dst.is_multicast() && !dst.is_broadcast();
            answerable.then(|| too_big_v4(original, mtu, dst, src)).flatten()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let answerable = !src.is_unspecified() && !src.is_multicast() && !dst.is_multicast();
            answerable.then(|| too_big_v6(original, mtu, dst, src)).flatten()
        }
        _ => None,
    }
}

fn is_one_host_v4(addr: Ipv4Addr) -> bool {
    !(addr.is_unspecified() || addr.is_multicast() || addr.is_broadcast() || addr.is_loopback())
}

fn is_icmp_error(header: &Header, packet: &[u8]) -> bool {
    let kind = packet.get(header.header_len).copied();
    match header.protocol {
        // All but echo, router discovery, timestamps and address masks; a cut-off one is taken for an error.
        ICMP => !kind.is_some_and(|kind| matches!(kind, 0 | 8 | 9 | 10 | 13..=18)),
        ICMPV6 => kind.is_none_or(|kind| kind < 128),
        _ => false,
    }
}

fn too_big_v4(original: &[u8], mtu: usize, from: Ipv4Addr, to: Ipv4Addr) -> Option<Vec<u8>> {
    let quoted = original.get(..original.len().min(ICMPV4_ERROR_MAX - IPV4_LEN - ICMP_LEN))?;
    let mtu = u16::try_from(mtu).ok()?;
    let len = quoted.len().checked_add(IPV4_LEN + ICMP_LEN)?;

    let mut icmp = vec![0; ICMP_LEN];
    put(&mut icmp, 0, &[3, 4]);
    put(&mut icmp, 6, &mtu.to_be_bytes());
    icmp.extend_from_slice(quoted);
    let checksum = !sum(&icmp);
    put(&mut icmp, 2, &checksum.to_be_bytes());

    let mut packet = vec![0; IPV4_LEN];
    // Precedence "internetwork control" (RFC 1812 §4.3.2.5).
    put(&mut packet, 0, &[0x45, 0xc0]);
    put(&mut packet, 2, &u16::try_from(len).ok()?.to_be_bytes());
    put(&mut packet, 8, &[ERROR_HOP_LIMIT, ICMP]);
    put(&mut packet, 12, &from.octets());
    put(&mut packet, 16, &to.octets());
    let checksum = ipv4_checksum(&packet);
    put(&mut packet, 10, &checksum.to_be_bytes());
    packet.extend_from_slice(&icmp);
    Some(packet)
}

fn too_big_v6(original: &[u8], mtu: usize, from: Ipv6Addr, to: Ipv6Addr) -> Option<Vec<u8>> {
    let quoted = original.get(..original.len().min(IPV6_MIN_MTU - IPV6_LEN - ICMP_LEN))?;
    let mtu = u32::try_from(mtu).ok()?;

    let mut icmp = vec![0; ICMP_LEN];
    put(&mut icmp, 0, &[2, 0]);
    put(&mut icmp, 4, &mtu.to_be_bytes());
    icmp.extend_from_slice(quoted);
    let checksum = transport_checksum(from.into(), to.into(), ICMPV6, &icmp, 2);
    put(&mut icmp, 2, &checksum.to_be_bytes());

    let mut packet = vec![0; IPV6_LEN];
    put(&mut packet, 0, &[0x60]);
    put(&mut packet, 4, &u16::try_from(icmp.len()).ok()?.to_be_bytes());
    put(&mut packet, 6, &[ICMPV6, ERROR_HOP_LIMIT]);
    put(&mut packet, 8, &from.octets());
    put(&mut packet, 24, &to.octets());
    packet.extend_from_slice(&icmp);
    Some(packet)
}

#[cfg(test)]
mod tests;
