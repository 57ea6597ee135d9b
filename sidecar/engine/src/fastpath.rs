//! What happens to a packet: the same two functions in the workers, the tunnels and the simulator.
//!
//! ```text
//! encapsulate   IP packet from the TUN ─► route ─► peer ─► cut, seal in place ─► Sink::transmit
//!                                          └ no session, cold ─► Sink::punt    └ too big ─► ICMP
//! decapsulate   datagrams ┬ DATA    ─► open in place ─► replay ─► source ─► Sink::deliver │ punt
//!                         ├ TRANSIT ─► hop MAC ─► to us: as if it had arrived alone
//!                         │                    └► for others: new header in place ─► Sink::transmit
//!                         └ else    ─► Sink::punt
//! ```
//! Neither allocates, locks or calls the system per packet: counters are reserved per super-packet,
//! replay windows updated per run of packets of one session.

use std::{
    net::IpAddr,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant},
};

use session::transport::{OpenError, Session};
use wire::{
    datagram::{
        DATA_HEADER_LEN, DATA_OVERHEAD, Datagram, HOP_LIMIT, TRANSIT_LEN, TYPE_DATA, TYPE_TRANSIT,
        Transit,
    },
    id::{NodeId, ShortId},
    ip,
    packet::Kind,
};

use crate::{
    drops::DropReason,
    fib::{Fib, Forward, Link, NextHop, PeerEntry},
    offload::{Delivery, Split, Virtio},
    path::addr::{Arrival, Hop, Via},
};

/// Where the fast path puts its outcomes.
pub trait Sink {
    /// Sends datagrams of `segment` bytes each, the last maybe shorter, that stand one after the other.
    fn transmit(&mut self, hop: &Hop, datagrams: &[u8], segment: usize);
    /// Takes packets for the TUN, by where they are in the buffer.
    fn deliver(&mut self, buf: &mut [u8], deliveries: &[Delivery]);
    /// Takes what only the engine can decide; a copy, if it is to live.
    fn punt(&mut self, punt: Punt<'_>);
}

/// What the fast path leaves to the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Punt<'a> {
    /// A datagram that is not data of a known session.
    Raw { arrival: Arrival, bytes: &'a [u8] },
    /// A record that is no IP packet: control, keepalive, fragment.
    Opened { arrival: Arrival, session: u32, kind: Kind, plaintext: &'a [u8] },
    /// The first packet of a session's peer authenticated.
    Heard { arrival: Arrival, session: u32 },
    /// An IP packet, whole and with complete checksums, to a peer without a usable session.
    NoSession { peer: NodeId, packet: &'a [u8] },
    /// User traffic with a cold peer began.
    Active { peer: NodeId },
}

/// Most bytes of one run of datagrams: what one UDP super-packet carries over IPv4.
pub const MAX_RUN: usize = 65_507;
/// Most datagrams of one run (`UDP_MAX_SEGMENTS`).
pub const MAX_SEGMENTS: usize = 64;
/// Packets of a super-packet that are worth holding for a session.
const MAX_HELD: usize = 8;
/// Longest datagram that is built here.
const MAX_DATAGRAM: usize = MAX_RUN;
/// Bytes of a fragment record before the piece.
const FRAGMENT_LEN: usize = 4;
/// TRANSIT of other datagrams than DATA, or of short ones (acknowledgements), draws on the guarantee.
const SMALL: usize = 256;

/// Builds runs of sealed datagrams. One per worker, reused; whoever encapsulates flushes it in the end.
#[derive(Debug)]
pub struct Outbox {
    buf: Box<[u8]>,
    run: Option<Run>,
    /// Sealed datagrams that a second path gets too: their length, then their bytes.
    copies: Vec<u8>,
    scratch: Vec<u8>,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    hop: Hop,
    segment: usize,
    len: usize,
    count: usize,
    /// A shorter datagram was the last one.
    is_closed: bool,
}

impl Default for Outbox {
    fn default() -> Self {
        Self {
            buf: vec![0; MAX_RUN].into_boxed_slice(),
            run: None,
            copies: Vec::new(),
            scratch: Vec::new(),
        }
    }
}

impl Outbox {
    /// Sends what is there.
    pub fn flush(&mut self, sink: &mut impl Sink) {
        if let Some(run) = self.run.take() {
            sink.transmit(&run.hop, &self.buf[..run.len], run.segment);
        }
    }

    /// Room for the next datagram to `hop`, of `len` bytes; sends the run if it does not fit in.
    #[inline]
    fn slot(&mut self, hop: &Hop, len: usize, sink: &mut impl Sink) -> &mut [u8] {
        let fits = self.run.as_ref().is_some_and(|run| {
            !run.is_closed
                && len <= run.segment
                && run.len + len <= MAX_RUN
                && run.count < MAX_SEGMENTS
                && run.hop == *hop
        });
        if !fits {
            self.flush(sink);
        }
        let run = self.run.get_or_insert(Run {
            hop: *hop,
            segment: len,
            len: 0,
            count: 0,
            is_closed: false,
        });
        let at = run.len;
        run.len += len;
        run.count += 1;
        run.is_closed = len < run.segment;
        &mut self.buf[at..at + len]
    }
}

/// Seals an IP packet from the TUN, or the pieces of a super-packet, for the peer it is routed to. `packet` is
/// scratch afterwards. Returns an ICMP error for the TUN if it is too big. The caller flushes `out`.
pub fn encapsulate(
    fib: &Fib,
    virtio: &Virtio,
    packet: &mut [u8],
    now: Instant,
    out: &mut Outbox,
    sink: &mut impl Sink,
) -> Option<Vec<u8>> {
    let Some((_, dst)) = ip::addresses(packet) else {
        fib.drops.count(DropReason::NotIp);
        return None;
    };
    let Some((node, peer)) = fib.route(dst) else {
        fib.drops.count(DropReason::NoRoute);
        return None;
    };
    if peer.is_some_and(|peer| peer.stats.warm_up()) {
        sink.punt(Punt::Active { peer: node });
    }
    let outbound = if virtio.is_super() {
        Split::new(virtio, packet).map(Outbound::Super)
    } else {
        virtio.settle(packet).map(Outbound::Single)
    };
    let Some(outbound) = outbound else {
        fib.drops.count(DropReason::BadOffload);
        return None;
    };
    let met = peer.and_then(|peer| Some((peer, peer.session.as_ref()?)));
    let Some((peer, session)) = met.filter(|(_, session)| !session.is_expired(now)) else {
        outbound.hold(node, packet, &mut out.scratch, sink);
        return None;
    };
    let Some(next_hop) = &peer.next_hop else {
        fib.drops.count(DropReason::NoPath);
        return None;
    };
    if let Outbound::Single(kind) = outbound {
        clamp_syn(packet, usize::from(fib.mtu), kind);
    }
    let longest = outbound.longest(packet);
    let fragment = longest > usize::from(peer.mtu);
    if fragment && let Some(mtu) = refused_for(packet, longest, peer.mtu) {
        fib.drops.count(DropReason::TooBig);
        return ip::packet_too_big(packet, mtu);
    }

    let to = Sealer { fib, peer, session, next_hop, now };
    let sent = if fragment {
        outbound.fragments(packet, &to, out, sink)
    } else {
        outbound.seal(packet, &to, out, sink)
    };
    let Some((packets, bytes)) = sent else {
        fib.drops.count(DropReason::KeyExhausted);
        return None;
    };
    let millis = fib.millis(now);
    peer.stats.of(next_hop.is_relayed()).sent(packets, bytes, millis);
    session.touch_sent(millis);
    if let NextHop::Relayed { link, .. } = next_hop {
        link.touch_sent(millis);
    }
    if !out.copies.is_empty() {
        to.copy_to_second_path(out, sink);
    }
    None
}

/// One packet, or one to be cut.
enum Outbound {
    Single(Kind),
    Super(Split),
}

impl Outbound {
    fn longest(&self, packet: &[u8]) -> usize {
        match self {
            Self::Single(_) => packet.len(),
            Self::Super(split) => split.longest(),
        }
    }

    /// Hands the first packets to the engine, to wait for a session.
    fn hold(&self, peer: NodeId, packet: &mut [u8], scratch: &mut Vec<u8>, sink: &mut impl Sink) {
        match self {
            Self::Single(kind) => {
                if *kind == Kind::IpPartial {
                    ip::complete(packet);
                }
                sink.punt(Punt::NoSession { peer, packet });
            }
            Self::Super(split) => {
                for index in 0..split.count().min(MAX_HELD) {
                    scratch.resize(split.len_of(index), 0);
                    split.write(packet, index, scratch);
                    ip::complete(scratch);
                    sink.punt(Punt::NoSession { peer, packet: scratch });
                }
            }
        }
    }

    /// Packets and bytes sealed; `None` when the key is used up.
    #[inline]
    fn seal(
        &self,
        packet: &[u8],
        to: &Sealer<'_>,
        out: &mut Outbox,
        sink: &mut impl Sink,
    ) -> Option<(u64, u64)> {
        match self {
            Self::Single(kind) => {
                let counter = to.session.reserve(1)?;
                to.seal(counter, *kind, packet.len(), out, sink, |slot| {
                    slot.copy_from_slice(packet)
                });
                Some((1, packet.len() as u64))
            }
            Self::Super(split) => {
                let count = split.count();
                let first = to.session.reserve(count as u64)?;
                let mut bytes = 0;
                for index in 0..count {
                    let len = split.len_of(index);
                    let counter = first + index as u64;
                    to.seal(counter, Kind::IpPartial, len, out, sink, |slot| {
                        split.write(packet, index, slot);
                    });
                    bytes += len as u64;
                }
                Some((count as u64, bytes))
            }
        }
    }

    /// The same in pieces that fit the path.
    fn fragments(
        &self,
        packet: &mut [u8],
        to: &Sealer<'_>,
        out: &mut Outbox,
        sink: &mut impl Sink,
    ) -> Option<(u64, u64)> {
        match self {
            Self::Single(kind) => {
                if *kind == Kind::IpPartial {
                    ip::complete(packet);
                }
                let packets = to.seal_fragments(packet, out, sink)?;
                Some((packets, packet.len() as u64))
            }
            Self::Super(split) => {
                let mut whole = std::mem::take(&mut out.scratch);
                let (mut packets, mut bytes) = (0, 0);
                let mut is_exhausted = false;
                for index in 0..split.count() {
                    whole.resize(split.len_of(index), 0);
                    split.write(packet, index, &mut whole);
                    ip::complete(&mut whole);
                    match to.seal_fragments(&whole, out, sink) {
                        Some(count) => packets += count,
                        None => is_exhausted = true,
                    }
                    bytes += whole.len() as u64;
                }
                out.scratch = whole;
                (!is_exhausted).then_some((packets, bytes))
            }
        }
    }
}

/// Whom to seal for, and where to.
struct Sealer<'a> {
    fib: &'a Fib,
    peer: &'a PeerEntry,
    session: &'a Session,
    next_hop: &'a NextHop,
    now: Instant,
}

impl Sealer<'_> {
    #[inline]
    fn seal(
        &self,
        counter: u64,
        kind: Kind,
        len: usize,
        out: &mut Outbox,
        sink: &mut impl Sink,
        write: impl FnOnce(&mut [u8]),
    ) {
        let sealed = len + DATA_OVERHEAD;
        let head = match self.next_hop {
            NextHop::Direct(_) => 0,
            NextHop::Relayed { .. } => TRANSIT_LEN,
        };
        if head + sealed > MAX_DATAGRAM {
            self.fib.drops.count(DropReason::TooBig);
            return;
        }
        let slot = out.slot(self.next_hop.hop(), head + sealed, sink);
        let data = &mut slot[head..];
        write(&mut data[DATA_HEADER_LEN..DATA_HEADER_LEN + len]);
        self.session.seal(counter, kind, data);
        if let NextHop::Relayed { link, dst, .. } = self.next_hop {
            sign_transit(slot, link, *dst, self.fib.node.short());
        }
        if self.peer.bicast.is_some() {
            self.keep_copy(head, sealed, out);
        }
    }

    fn seal_fragments(&self, packet: &[u8], out: &mut Outbox, sink: &mut impl Sink) -> Option<u64> {
        let room = usize::from(self.peer.mtu).saturating_sub(FRAGMENT_LEN).max(1);
        let count = packet.len().div_ceil(room);
        let Ok(count_field) = u8::try_from(count) else {
            self.fib.drops.count(DropReason::TooBig);
            return Some(0);
        };
        let first = self.session.reserve(count as u64)?;
        let [low, high, ..] = first.to_le_bytes();
        for (index, piece) in packet.chunks(room).enumerate() {
            let counter = first + index as u64;
            let len = FRAGMENT_LEN + piece.len();
            self.seal(counter, Kind::Fragment, len, out, sink, |slot| {
                slot[..FRAGMENT_LEN].copy_from_slice(&[low, high, index as u8, count_field]);
                slot[FRAGMENT_LEN..].copy_from_slice(piece);
            });
        }
        Some(count as u64)
    }

    fn keep_copy(&self, head: usize, sealed: usize, out: &mut Outbox) {
        let Some(run) = &out.run else { return };
        let since_epoch = self.now.saturating_duration_since(self.fib.epoch);
        if !self.peer.stats.may_bicast(sealed as u64, since_epoch) {
            return;
        }
        let at = run.len - sealed;
        debug_assert!(at >= head);
        out.copies.extend_from_slice(&(sealed as u32).to_le_bytes());
        let Outbox { buf, copies, .. } = out;
        copies.extend_from_slice(&buf[at..at + sealed]);
    }

    fn copy_to_second_path(&self, out: &mut Outbox, sink: &mut impl Sink) {
        let copies = std::mem::take(&mut out.copies);
        let mut rest = &copies[..];
        while let Some((len, after)) = rest.split_first_chunk::<4>()
            && let Some((sealed, after)) = after.split_at_checked(u32::from_le_bytes(*len) as usize)
        {
            rest = after;
            let Some(second) = &self.peer.bicast else { break };
            let head = if second.is_relayed() { TRANSIT_LEN } else { 0 };
            if head + sealed.len() > MAX_DATAGRAM {
                continue;
            }
            let slot = out.slot(second.hop(), head + sealed.len(), sink);
            slot[head..].copy_from_slice(sealed);
            if let NextHop::Relayed { link, dst, .. } = second {
                sign_transit(slot, link, *dst, self.fib.node.short());
            }
        }
        out.copies = copies;
        out.copies.clear();
    }
}

/// Fills in the TRANSIT header in front of an inner datagram.
#[inline]
fn sign_transit(datagram: &mut [u8], link: &Session, dst: ShortId, src: ShortId) {
    let counter = link.reserve_hops(1);
    let head = Transit::head(HOP_LIMIT, link.remote_index(), counter, dst, src);
    datagram[..TRANSIT_LEN].copy_from_slice(&head);
    link.sign_hop(datagram);
}

impl NextHop {
    /// Puts a datagram of the engine's own on its way: as it is, or inside TRANSIT.
    pub fn wrap(&self, src: ShortId, datagram: Vec<u8>) -> (Hop, Vec<u8>) {
        match self {
            Self::Direct(hop) => (*hop, datagram),
            Self::Relayed { link, hop, dst } => {
                let mut transit = vec![0; TRANSIT_LEN];
                transit.extend_from_slice(&datagram);
                sign_transit(&mut transit, link, *dst, src);
                (*hop, transit)
            }
        }
    }
}

/// The MTU that the sender of a packet too long for the path is told by ICMP; `None` if it is cut inside the tunnel: IPv4
/// that may be fragmented, and IPv6 of its minimum MTU, below which nobody can be told to go.
fn refused_for(packet: &[u8], longest: usize, mtu: u16) -> Option<usize> {
    let mtu = usize::from(mtu);
    if packet[0] >> 4 == 4 {
        let may_fragment = packet[6] & 0x40 == 0;
        (!may_fragment).then_some(mtu)
    } else {
        (longest > ip::IPV6_MIN_MTU).then_some(mtu.max(ip::IPV6_MIN_MTU))
    }
}

/// Clamps the MSS of a TCP SYN; a cheap look first, as nearly no packet is one.
#[inline]
fn clamp_syn(packet: &mut [u8], mtu: usize, kind: Kind) {
    const SYN: u8 = 2;
    let flags = match *packet {
        [first, ..] if first >> 4 == 4 && packet.len() > 33 && packet[9] == ip::TCP => {
            packet.get(usize::from(first & 15) * 4 + 13)
        }
        // TCP behind extension headers is rare enough not to be clamped.
        [first, ..] if first >> 4 == 6 && packet.len() > 53 && packet[6] == ip::TCP => {
            packet.get(ip::IPV6_LEN + 13)
        }
        _ => None,
    };
    if flags.is_some_and(|flags| flags & SYN != 0) {
        let checksum = match kind {
            Kind::IpPartial => ip::Checksum::Partial,
            Kind::Ip | Kind::Control | Kind::Fragment | Kind::Keepalive | Kind::Super => {
                ip::Checksum::Complete
            }
        };
        ip::clamp_mss(packet, mtu, checksum);
    }
}

/// Scratch of [`decapsulate`]. One per worker, reused.
#[derive(Debug, Default)]
pub struct Inbox {
    pending: Vec<Pending>,
    /// Of each pending packet, whether the window took it.
    fresh: Vec<bool>,
    deliveries: Vec<Delivery>,
}

/// A packet that authenticated and waits for the replay window.
#[derive(Clone, Copy, Debug)]
struct Pending {
    counter: u64,
    kind: Kind,
    at: usize,
    len: usize,
}

/// Decides about datagrams that arrived over `hop`, by where they are in `buf`; they are opened and rewritten in
/// place. Deliveries come in one call in the end.
pub fn decapsulate(
    fib: &Fib,
    buf: &mut [u8],
    datagrams: impl IntoIterator<Item = Range<usize>>,
    hop: Hop,
    now: Instant,
    inbox: &mut Inbox,
    sink: &mut impl Sink,
) {
    inbox.deliveries.clear();
    inbox.pending.clear();
    let mut inbound = Inbound {
        fib,
        buf,
        hop,
        now,
        millis: fib.millis(now),
        run: None,
        forward: None,
        allowed: None,
        ours: None,
        inbox,
        sink,
    };
    for range in datagrams {
        inbound.datagram(range);
    }
    inbound.finish();
}

/// The way through one batch.
struct Inbound<'a, S> {
    fib: &'a Fib,
    buf: &'a mut [u8],
    hop: Hop,
    now: Instant,
    millis: u64,
    /// The session of the pending packets and how they came.
    run: Option<(&'a Arc<Session>, Option<Via>)>,
    forward: Option<ForwardRun<'a>>,
    /// The last inner source found allowed, and for whom: packets of a batch mostly agree.
    allowed: Option<(NodeId, IpAddr)>,
    /// The last inner destination found to be ours.
    ours: Option<IpAddr>,
    inbox: &'a mut Inbox,
    sink: &'a mut S,
}

/// TRANSIT datagrams side by side with one next hop: they leave as they came, in one piece.
#[derive(Clone, Debug)]
struct ForwardRun<'a> {
    to: &'a Forward,
    range: Range<usize>,
    segment: usize,
    is_closed: bool,
}

impl<'a, S: Sink> Inbound<'a, S> {
    #[inline]
    fn datagram(&mut self, range: Range<usize>) {
        match self.buf.get(range.start) {
            Some(&TYPE_DATA) if range.len() >= DATA_OVERHEAD => self.data(range, None),
            Some(&TYPE_TRANSIT) => self.transit(range),
            _ => self.other(range, None),
        }
    }

    #[inline]
    fn data(&mut self, range: Range<usize>, via: Option<Via>) {
        let datagram = &self.buf[range.clone()];
        let index = u32::from_le_bytes([datagram[4], datagram[5], datagram[6], datagram[7]]);
        let session = match self.run {
            Some((session, run_via)) if session.local_index() == index && run_via == via => session,
            _ => {
                self.settle();
                let Some(session) = self.fib.sessions.get(&index) else {
                    return self.other(range, via);
                };
                if session.is_expired(self.now) {
                    return self.fib.drops.count(DropReason::KeyExpired);
                }
                self.run = Some((session, via));
                session
            }
        };
        match session.open(&mut self.buf[range.clone()]) {
            Ok(opened) => self.inbox.pending.push(Pending {
                counter: opened.counter,
                kind: opened.kind,
                at: range.start + DATA_HEADER_LEN,
                len: opened.len,
            }),
            Err(OpenError::Malformed) => self.fib.drops.count(DropReason::Malformed),
            Err(OpenError::Forged) => self.fib.drops.count(DropReason::Forged),
        }
    }

    /// Passes the pending packets through their session's replay window and on.
    fn settle(&mut self) {
        let Some((session, via)) = self.run.take() else { return };
        if self.inbox.pending.is_empty() {
            return;
        }
        let mut pending = std::mem::take(&mut self.inbox.pending);
        let mut fresh = std::mem::take(&mut self.inbox.fresh);
        session.accept(pending.iter().map(|one| one.counter), |_, is_new| fresh.push(is_new));
        session.touch_received(self.millis);
        let arrival = Arrival { hop: self.hop, via };
        if session.first_heard() {
            self.sink.punt(Punt::Heard { arrival, session: session.local_index() });
        }
        self.pass(session, arrival, &pending, &fresh);
        pending.clear();
        fresh.clear();
        (self.inbox.pending, self.inbox.fresh) = (pending, fresh);
    }

    fn pass(&mut self, session: &Session, arrival: Arrival, pending: &[Pending], fresh: &[bool]) {
        let peer = self.fib.peers.get(&session.peer());
        let (mut packets, mut bytes) = (0, 0);
        for (one, is_new) in pending.iter().zip(fresh) {
            if !is_new {
                self.fib.drops.count(DropReason::Replayed);
                continue;
            }
            match one.kind {
                Kind::Ip | Kind::IpPartial => {
                    packets += 1;
                    bytes += one.len as u64;
                    match self.admit(peer.map(|peer| &**peer), one) {
                        Ok(delivery) => self.inbox.deliveries.push(delivery),
                        Err(reason) => self.fib.drops.count(reason),
                    }
                }
                Kind::Control | Kind::Fragment | Kind::Keepalive => self.sink.punt(Punt::Opened {
                    arrival,
                    session: session.local_index(),
                    kind: one.kind,
                    plaintext: &self.buf[one.at..one.at + one.len],
                }),
                Kind::Super => self.fib.drops.count(DropReason::Malformed),
            }
        }
        let Some(peer) = peer.filter(|_| packets > 0) else { return };
        peer.stats.of(arrival.via.is_some()).received(packets, bytes, self.millis);
        if peer.stats.warm_up() {
            self.sink.punt(Punt::Active { peer: peer.node });
        }
    }

    /// Whether an opened IP packet may go into the TUN.
    #[inline]
    fn admit(&mut self, peer: Option<&PeerEntry>, one: &Pending) -> Result<Delivery, DropReason> {
        let packet = &mut self.buf[one.at..one.at + one.len];
        let (src, dst) = ip::addresses(packet).ok_or(DropReason::NotIp)?;
        let peer = peer.ok_or(DropReason::SourceNotAllowed)?;
        if self.allowed != Some((peer.node, src)) {
            if !peer.allows(src) {
                return Err(self.fib.local.refusal(src));
            }
            self.allowed = Some((peer.node, src));
        }
        if self.ours != Some(dst) {
            if !self.fib.local.accepts(dst) {
                return Err(DropReason::NotOurs);
            }
            self.ours = Some(dst);
        }
        clamp_syn(packet, usize::from(self.fib.mtu), one.kind);
        Ok(Delivery { at: one.at, len: one.len, is_partial: one.kind == Kind::IpPartial })
    }

    fn transit(&mut self, range: Range<usize>) {
        if let Err(reason) = self.relay(range) {
            self.fib.drops.count(reason);
        }
    }

    #[inline]
    fn relay(&mut self, range: Range<usize>) -> Result<(), DropReason> {
        let fib = self.fib;
        let datagram = &self.buf[range.clone()];
        let Some(Datagram::Transit(transit)) = Datagram::parse(datagram) else {
            return Err(DropReason::Malformed);
        };
        let link = fib.links.get(&transit.link_index).ok_or(DropReason::UnknownLink)?;
        if link.session.is_expired(self.now) {
            return Err(DropReason::KeyExpired);
        }
        if !link.session.verify_hop(datagram) {
            return Err(DropReason::HopForged);
        }
        if !link.session.accept_hop(transit.link_counter) {
            return Err(DropReason::HopReplayed);
        }
        link.session.touch_received(self.millis);
        if link.vouched.is_some_and(|vouched| vouched != transit.src) {
            return Err(DropReason::NotVouched);
        }
        if transit.dst == fib.node.short() {
            let via = Some(Via { link: transit.link_index, src: transit.src });
            self.inner(range.start + TRANSIT_LEN..range.end, via);
            return Ok(());
        }
        let (hop_limit, dst) = (transit.hop_limit, transit.dst);
        let is_control = transit.inner.first() != Some(&TYPE_DATA) || transit.inner.len() < SMALL;
        self.forward(range, link, dst, hop_limit, is_control)
    }

    fn inner(&mut self, range: Range<usize>, via: Option<Via>) {
        match self.buf.get(range.start) {
            Some(&TYPE_DATA) if range.len() >= DATA_OVERHEAD => self.data(range, via),
            Some(&TYPE_TRANSIT) => self.fib.drops.count(DropReason::Nested),
            _ => self.other(range, via),
        }
    }

    #[inline]
    fn forward(
        &mut self,
        range: Range<usize>,
        link: &Link,
        dst: ShortId,
        hop_limit: u8,
        is_control: bool,
    ) -> Result<(), DropReason> {
        if hop_limit <= 1 {
            return Err(DropReason::HopLimit);
        }
        let known = self.forward.as_ref().map(|run| run.to);
        let to = self.fib.forwards.get(&(link.network, dst)).ok_or(DropReason::NoForward)?;
        if to.link.is_expired(self.now) {
            return Err(DropReason::KeyExpired);
        }
        let since_epoch = self.now.saturating_duration_since(self.fib.epoch);
        if !link.admits(range.len() as u64, is_control, since_epoch) {
            return Err(DropReason::OverQuota);
        }
        let datagram = &mut self.buf[range.clone()];
        datagram[1] = hop_limit - 1;
        datagram[4..8].copy_from_slice(&to.link.remote_index().to_le_bytes());
        datagram[8..16].copy_from_slice(&to.link.reserve_hops(1).to_le_bytes());
        to.link.sign_hop(datagram);
        to.link.touch_sent(self.millis);

        if let Some(run) = &mut self.forward
            && known.is_some_and(|known| std::ptr::eq(known, to))
            && run.takes(&range)
        {
            run.is_closed = range.len() < run.segment;
            run.range.end = range.end;
            return Ok(());
        }
        self.flush_forward();
        self.forward = Some(ForwardRun { to, segment: range.len(), range, is_closed: false });
        Ok(())
    }

    fn flush_forward(&mut self) {
        if let Some(run) = self.forward.take() {
            self.sink.transmit(&run.to.hop, &self.buf[run.range], run.segment);
        }
    }

    fn other(&mut self, range: Range<usize>, via: Option<Via>) {
        let arrival = Arrival { hop: self.hop, via };
        let bytes = &self.buf[range];
        if Datagram::parse(bytes).is_none() {
            return self.fib.drops.count(DropReason::Malformed);
        }
        self.sink.punt(Punt::Raw { arrival, bytes });
    }

    fn finish(&mut self) {
        self.settle();
        self.flush_forward();
        if !self.inbox.deliveries.is_empty() {
            self.sink.deliver(self.buf, &self.inbox.deliveries);
        }
    }
}

impl ForwardRun<'_> {
    fn takes(&self, next: &Range<usize>) -> bool {
        !self.is_closed
            && self.range.end == next.start
            && next.len() <= self.segment
            && next.end - self.range.start <= MAX_RUN
            && self.range.len() / self.segment < MAX_SEGMENTS
    }
}

impl Link {
    #[inline]
    fn admits(&self, bytes: u64, is_control: bool, since_epoch: Duration) -> bool {
        self.quota.as_ref().is_none_or(|quota| quota.admit(bytes, is_control, since_epoch))
    }
}

#[cfg(test)]
mod tests;
