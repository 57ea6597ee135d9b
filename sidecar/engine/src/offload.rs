//! Super-packets: cutting what the TUN hands out, joining what it gets.
//!
//! A TUN with offloads passes packets of up to 64 KiB behind a virtio-net header (virtio 1.2,
//! §5.1.6); fields are in the host's byte order.
//!
//! ```text
//! 0 u8 flags (1: checksum partial) │ 1 u8 gso_type │ 2 u16 hdr_len │ 4 u16 gso_size │ 6 u16 csum_start │ 8 u16 csum_offset
//! ```
//! Inner checksums are never computed on this way: segments carry the pseudo header's sum and say so
//! ([`Kind::IpPartial`]), the AEAD covers integrity, and the receiving kernel takes them as they are.

use std::{net::IpAddr, ops::Range};

use wire::{
    ip::{self, Header},
    packet::Kind,
};

/// Length of the virtio-net header.
pub const VIRTIO_LEN: usize = 10;
/// The most that one packet, cut or joined, may have.
pub const MAX_PACKET: usize = 65_535;

const NEEDS_CHECKSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
/// Set beside the type when the first segment carries CWR.
const GSO_ECN: u8 = 0x80;

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// IPv4 or IPv6 header without options, TCP header with the most options.
const MAX_JOINED_HEADER: usize = ip::IPV6_LEN + 60;
/// Segments that the kernel takes in one UDP super-packet (`UDP_MAX_SEGMENTS`).
const MAX_UDP_SEGMENTS: usize = 64;

/// A virtio-net header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Virtio {
    flags: u8,
    gso_type: u8,
    header_len: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

impl Virtio {
    #[inline]
    pub fn parse(bytes: &[u8; VIRTIO_LEN]) -> Self {
        let word = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_len: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    #[inline]
    pub fn encode(&self) -> [u8; VIRTIO_LEN] {
        let mut bytes = [0; VIRTIO_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        bytes[2..4].copy_from_slice(&self.header_len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&self.gso_size.to_ne_bytes());
        bytes[6..8].copy_from_slice(&self.checksum_start.to_ne_bytes());
        bytes[8..10].copy_from_slice(&self.checksum_offset.to_ne_bytes());
        bytes
    }

    /// Whether the packet behind it is to be cut.
    #[inline]
    pub fn is_super(&self) -> bool {
        self.gso_type != GSO_NONE
    }

    /// Brings a packet that is not to be cut into one of the two forms that travel; `None` if the header
    /// contradicts the packet.
    #[inline]
    pub fn settle(&self, packet: &mut [u8]) -> Option<Kind> {
        if self.flags & NEEDS_CHECKSUM == 0 {
            return Some(Kind::Ip);
        }
        let (start, offset) = (usize::from(self.checksum_start), usize::from(self.checksum_offset));
        if is_usual_checksum(packet, start, offset) {
            return Some(Kind::IpPartial);
        }
        let segment = packet.get_mut(start..)?;
        let field = segment.get(offset..offset + 2)?;
        debug_assert_eq!(field.len(), 2);
        // The field holds the pseudo header's sum, so the sum over all includes it.
        let checksum = !ip::sum(segment);
        segment[offset..offset + 2].copy_from_slice(&checksum.to_be_bytes());
        Some(Kind::Ip)
    }
}

/// TCP or UDP right behind a plain header, where [`deliver`] will look for it.
#[inline]
fn is_usual_checksum(packet: &[u8], start: usize, offset: usize) -> bool {
    let usual = match packet {
        [0x45, ..] if packet.len() >= ip::IPV4_LEN => (ip::IPV4_LEN, packet[9]),
        [first, ..] if first >> 4 == 6 && packet.len() >= ip::IPV6_LEN => (ip::IPV6_LEN, packet[6]),
        _ => return false,
    };
    usual.0 == start && ip::checksum_at(usual.1) == Some(offset)
}

/// How a super-packet is cut.
#[derive(Clone, Copy, Debug)]
pub struct Split {
    /// Bytes of all headers, repeated in each segment.
    header_len: usize,
    transport_at: usize,
    segment: usize,
    payload: usize,
    is_v4: bool,
    protocol: u8,
    /// The pseudo header's sum but for the length.
    pseudo: u16,
    id: u16,
    sequence: u32,
    flags: u8,
}

impl Split {
    /// Reads the headers; `None` if the virtio header contradicts the packet.
    pub fn new(virtio: &Virtio, packet: &[u8]) -> Option<Self> {
        let is_v4 = packet.first()? >> 4 == 4;
        let transport_at = usize::from(virtio.checksum_start);
        let protocol = match (virtio.gso_type & !GSO_ECN, is_v4) {
            (GSO_TCP4, true) | (GSO_TCP6, false) => ip::TCP,
            (GSO_UDP, _) => ip::UDP,
            _ => return None,
        };
        let network_len = if is_v4 { ip::IPV4_LEN } else { ip::IPV6_LEN };
        if transport_at < network_len || (is_v4 && transport_at > 60) {
            return None;
        }
        let transport = packet.get(transport_at..)?;
        let transport_len = match protocol {
            ip::TCP => usize::from(transport.get(12)? >> 4) * 4,
            _ => ip::UDP_LEN,
        };
        let least = if protocol == ip::TCP { ip::TCP_LEN } else { ip::UDP_LEN };
        let header_len = transport_at + transport_len;
        let segment = usize::from(virtio.gso_size);
        if transport_len < least || segment == 0 || header_len >= packet.len() {
            return None;
        }
        let (src, dst) = ip::addresses(packet)?;
        let tcp = protocol == ip::TCP;
        Some(Self {
            header_len,
            transport_at,
            segment,
            payload: packet.len() - header_len,
            is_v4,
            protocol,
            pseudo: ip::pseudo_header_sum(src, dst, protocol, 0),
            id: u16::from_be_bytes([packet[4], packet[5]]),
            sequence: if tcp { u32::from_be_bytes(*transport.get(4..)?.first_chunk()?) } else { 0 },
            flags: if tcp { transport[13] } else { 0 },
        })
    }

    /// How many packets it becomes.
    #[inline]
    pub fn count(&self) -> usize {
        self.payload.div_ceil(self.segment)
    }

    /// Length of the longest of them.
    #[inline]
    pub fn longest(&self) -> usize {
        self.header_len + self.segment.min(self.payload)
    }

    /// Length of packet `index`.
    #[inline]
    pub fn len_of(&self, index: usize) -> usize {
        self.header_len + self.segment.min(self.payload - index * self.segment)
    }

    /// Writes packet `index`, [`Split::len_of`] bytes, into `out`; its checksum is partial.
    #[inline]
    pub fn write(&self, packet: &[u8], index: usize, out: &mut [u8]) {
        let at = index * self.segment;
        let len = self.segment.min(self.payload - at);
        let (header, payload) = out.split_at_mut(self.header_len);
        header.copy_from_slice(&packet[..self.header_len]);
        payload[..len].copy_from_slice(&packet[self.header_len + at..self.header_len + at + len]);

        let total = self.header_len + len;
        if self.is_v4 {
            header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            header[4..6].copy_from_slice(&self.id.wrapping_add(index as u16).to_be_bytes());
            let checksum = ip::ipv4_checksum(&header[..self.transport_at]);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            header[4..6].copy_from_slice(&((total - ip::IPV6_LEN) as u16).to_be_bytes());
        }

        let transport_len = total - self.transport_at;
        let transport = &mut header[self.transport_at..];
        let sum = ip::combine(self.pseudo, transport_len as u16).to_be_bytes();
        if self.protocol == ip::TCP {
            let sequence = self.sequence.wrapping_add(at as u32);
            transport[4..8].copy_from_slice(&sequence.to_be_bytes());
            let mut flags = self.flags;
            if index > 0 {
                flags &= !CWR;
            }
            if at + len < self.payload {
                flags &= !(FIN | PSH);
            }
            transport[13] = flags;
            transport[ip::TCP_CHECKSUM_AT..][..2].copy_from_slice(&sum);
        } else {
            transport[4..6].copy_from_slice(&(transport_len as u16).to_be_bytes());
            transport[ip::UDP_CHECKSUM_AT..][..2].copy_from_slice(&sum);
        }
    }
}

/// A packet for the TUN, in the buffer it was opened in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivery {
    pub at: usize,
    pub len: usize,
    /// Its checksum holds only the pseudo header's sum.
    pub is_partial: bool,
}

/// One write to the TUN: `head`, then of each packet what follows its first `skip` bytes.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The virtio header and, of a joined packet, its headers.
    pub head: &'a [u8],
    pub packets: &'a [Delivery],
    pub skip: usize,
}

impl Write<'_> {
    /// Where in the buffer the bytes behind `head` are.
    pub fn payloads(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        self.packets.iter().map(|packet| packet.at + self.skip..packet.at + packet.len)
    }
}

/// Joins consecutive packets of a flow as far as TCP and UDP segmentation offload can undo it, and hands out
/// what to write. `udp` says whether the TUN takes UDP super-packets.
pub fn coalesce(buf: &[u8], deliveries: &[Delivery], udp: bool, mut write: impl FnMut(Write<'_>)) {
    let mut head = [0; VIRTIO_LEN + MAX_JOINED_HEADER];
    let mut rest = deliveries;
    while let Some(first) = rest.first() {
        let packet = &buf[first.at..first.at + first.len];
        let Some(flow) = Flow::of(packet, first.is_partial) else {
            let (one, others) = rest.split_at(1);
            let virtio = partial_of(packet, first.is_partial);
            write(Write { head: &virtio.encode(), packets: one, skip: 0 });
            rest = others;
            continue;
        };
        let count = match flow.protocol {
            ip::TCP => flow.tcp_run(packet, buf, rest),
            _ if udp => flow.udp_run(packet, buf, rest),
            _ => 1,
        };
        let (run, others) = rest.split_at(count);
        rest = others;
        if count == 1 {
            write(Write { head: &flow.single().encode(), packets: run, skip: 0 });
            continue;
        }
        let last = run[count - 1];
        let last = &buf[last.at..last.at + last.len];
        let len = flow.join(packet, last, run, &mut head);
        write(Write { head: &head[..len], packets: run, skip: flow.header_len });
    }
}

/// The virtio header of a packet that is in no flow.
fn partial_of(packet: &[u8], is_partial: bool) -> Virtio {
    let header = Header::parse(packet).filter(|header| is_partial && header.has_transport());
    let Some(header) = header else { return Virtio::default() };
    let Some(offset) = ip::checksum_at(header.protocol) else { return Virtio::default() };
    Virtio {
        flags: NEEDS_CHECKSUM,
        checksum_start: header.header_len as u16,
        checksum_offset: offset as u16,
        ..Virtio::default()
    }
}

/// What packets of a joined one have in common.
#[derive(Clone, Copy, Debug)]
struct Flow {
    is_v4: bool,
    protocol: u8,
    transport_at: usize,
    header_len: usize,
    /// Payload of the first packet: that of all but the last.
    segment: usize,
}

impl Flow {
    /// Headers without IP options or fragments, checksum partial, some payload.
    #[inline]
    fn of(packet: &[u8], is_partial: bool) -> Option<Self> {
        if !is_partial {
            return None;
        }
        let (is_v4, transport_at, protocol, total) = match *packet.first()? {
            0x45 if packet.len() >= ip::IPV4_LEN && packet[6] & 0x3f == 0 && packet[7] == 0 => {
                (true, ip::IPV4_LEN, packet[9], usize::from(be16(packet, 2)))
            }
            first if first >> 4 == 6 && packet.len() >= ip::IPV6_LEN => {
                (false, ip::IPV6_LEN, packet[6], ip::IPV6_LEN + usize::from(be16(packet, 4)))
            }
            _ => return None,
        };
        let transport = packet.get(transport_at..)?;
        let transport_len = match protocol {
            ip::TCP => usize::from(transport.get(12)? >> 4) * 4,
            ip::UDP if usize::from(be16(transport.get(..ip::UDP_LEN)?, 4)) == transport.len() => {
                ip::UDP_LEN
            }
            _ => return None,
        };
        let header_len = transport_at + transport_len;
        let is_whole = total == packet.len() && header_len < packet.len();
        let is_sane = protocol == ip::UDP || (ip::TCP_LEN..=60).contains(&transport_len);
        (is_whole && is_sane).then(|| Self {
            is_v4,
            protocol,
            transport_at,
            header_len,
            segment: packet.len() - header_len,
        })
    }

    /// How many packets from the first on can be joined: same headers but for length, id, sequence, checksum;
    /// in sequence; all of the first one's length, but the last may be shorter; FIN and PSH end it.
    fn tcp_run(&self, first: &[u8], buf: &[u8], rest: &[Delivery]) -> usize {
        let flags_at = self.transport_at + 13;
        if first[flags_at] != ACK {
            return 1;
        }
        let sequence = be32(first, self.transport_at + 4);
        let (mut count, mut payload) = (1, self.segment);
        for next in &rest[1..] {
            let packet = &buf[next.at..next.at + next.len];
            let len = packet.len().wrapping_sub(self.header_len);
            let fits = next.is_partial
                && packet.len() > self.header_len
                && len <= self.segment
                && self.header_len + payload + len <= MAX_PACKET
                && self.is_same_tcp(first, packet)
                && be32(packet, self.transport_at + 4) == sequence.wrapping_add(payload as u32);
            if !fits {
                break;
            }
            count += 1;
            payload += len;
            if len < self.segment || packet[flags_at] != ACK {
                break;
            }
        }
        count
    }

    #[inline]
    fn is_same_tcp(&self, a: &[u8], b: &[u8]) -> bool {
        let (ta, tb) = (&a[self.transport_at..], &b[self.transport_at..]);
        self.is_same_network(a, b)
            && ta[..4] == tb[..4]
            && ta[8..13] == tb[8..13]
            && tb[13] & !(FIN | PSH) == ACK
            && ta[14..16] == tb[14..16]
            && ta[18..self.header_len - self.transport_at]
                == tb[18..self.header_len - self.transport_at]
    }

    fn udp_run(&self, first: &[u8], buf: &[u8], rest: &[Delivery]) -> usize {
        let (mut count, mut payload) = (1, self.segment);
        for next in &rest[1..] {
            let packet = &buf[next.at..next.at + next.len];
            let len = packet.len().wrapping_sub(self.header_len);
            let fits = next.is_partial
                && packet.len() > self.header_len
                && len <= self.segment
                && count < MAX_UDP_SEGMENTS
                && self.header_len + payload + len <= MAX_PACKET
                && self.is_same_network(first, packet)
                && first[self.transport_at..][..4] == packet[self.transport_at..][..4]
                && usize::from(be16(packet, self.transport_at + 4)) == ip::UDP_LEN + len;
            if !fits {
                break;
            }
            count += 1;
            payload += len;
            if len < self.segment {
                break;
            }
        }
        count
    }

    /// The network headers but for length, id and checksum; and the packet has the length it says.
    #[inline]
    fn is_same_network(&self, a: &[u8], b: &[u8]) -> bool {
        if self.is_v4 {
            a[..2] == b[..2]
                && a[6..10] == b[6..10]
                && a[12..20] == b[12..20]
                && usize::from(be16(b, 2)) == b.len()
        } else {
            a[..4] == b[..4]
                && a[6..40] == b[6..40]
                && usize::from(be16(b, 4)) + ip::IPV6_LEN == b.len()
        }
    }

    fn single(&self) -> Virtio {
        Virtio {
            flags: NEEDS_CHECKSUM,
            header_len: self.header_len as u16,
            checksum_start: self.transport_at as u16,
            checksum_offset: self.checksum_offset(),
            ..Virtio::default()
        }
    }

    fn checksum_offset(&self) -> u16 {
        (if self.protocol == ip::TCP { ip::TCP_CHECKSUM_AT } else { ip::UDP_CHECKSUM_AT }) as u16
    }

    /// Writes the headers of a joined packet and returns their length with the virtio header.
    fn join(&self, first: &[u8], last: &[u8], run: &[Delivery], head: &mut [u8]) -> usize {
        let payload: usize = run.iter().map(|packet| packet.len - self.header_len).sum();
        let total = self.header_len + payload;
        let gso_type = match (self.protocol, self.is_v4) {
            (ip::TCP, true) => GSO_TCP4,
            (ip::TCP, false) => GSO_TCP6,
            _ => GSO_UDP,
        };
        let virtio = Virtio { gso_type, gso_size: self.segment as u16, ..self.single() };
        let (virtio_out, header) = head[..VIRTIO_LEN + self.header_len].split_at_mut(VIRTIO_LEN);
        virtio_out.copy_from_slice(&virtio.encode());
        header.copy_from_slice(&first[..self.header_len]);

        if self.is_v4 {
            header[2..4].copy_from_slice(&(total as u16).to_be_bytes());
            let checksum = ip::ipv4_checksum(&header[..self.transport_at]);
            header[10..12].copy_from_slice(&checksum.to_be_bytes());
        } else {
            header[4..6].copy_from_slice(&((total - ip::IPV6_LEN) as u16).to_be_bytes());
        }
        let transport_len = total - self.transport_at;
        if self.protocol == ip::TCP {
            header[self.transport_at + 13] = last[self.transport_at + 13];
        } else {
            header[self.transport_at + 4..][..2]
                .copy_from_slice(&(transport_len as u16).to_be_bytes());
        }
        let (src, dst) =
            ip::addresses(first).unwrap_or((IpAddr::from([0; 4]), IpAddr::from([0; 4])));
        let sum = ip::pseudo_header_sum(src, dst, self.protocol, transport_len);
        let at = self.transport_at + usize::from(self.checksum_offset());
        header[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        VIRTIO_LEN + self.header_len
    }
}

#[inline]
fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[cfg(test)]
mod tests;
