use std::collections::BTreeMap;

use proptest::prelude::*;
use session::keys::{Suite, TransportKeys};
use wire::id::NetworkId;

use super::*;
use crate::{
    fib::{Local, Meter, Quota},
    path::addr::SocketId,
};

const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);
const R: NodeId = NodeId([3; 16]);
const NETWORK: NetworkId = NetworkId([9; 16]);

#[test]
fn a_packet_passes_from_tun_to_tun() {
    let (a, b, now) = direct();
    let packet = udp(1, 2, 100);

    let sent = a.encapsulate(&packet, now);
    assert_eq!(sent.transmits.len(), 1);
    assert_eq!(sent.transmits[0].0, hop(2));
    assert_eq!(sent.transmits[0].1.len(), packet.len() + DATA_OVERHEAD);
    assert_eq!(sent.punts, ["active 2"]);

    let received = b.decapsulate(&sent.transmits[0].1, now);
    assert_eq!(received.delivered, [packet]);
    assert_eq!(received.punts, ["heard 2", "active 1"]);
    assert_eq!(b.peers[&A].stats.direct.counts().rx_packets, 1);
    assert_eq!(a.peers[&B].stats.direct.counts().tx_bytes, 128);
}

#[test]
fn a_repeated_datagram_is_dropped() {
    let (a, b, now) = direct();
    let sent = a.encapsulate(&udp(1, 2, 100), now);

    assert_eq!(b.decapsulate(&sent.transmits[0].1, now).delivered.len(), 1);
    assert_eq!(b.decapsulate(&sent.transmits[0].1, now).delivered.len(), 0);

    assert_eq!(drops(&b), [(DropReason::Replayed, 1)]);
}

#[test]
fn only_the_first_packet_of_a_quiet_peer_is_told() {
    let (a, b, now) = direct();
    a.encapsulate(&udp(1, 2, 1), now);
    let second = a.encapsulate(&udp(1, 2, 1), now);
    assert!(second.punts.is_empty());

    b.decapsulate(&second.transmits[0].1, now);
    let third = a.encapsulate(&udp(1, 2, 1), now);
    assert!(b.decapsulate(&third.transmits[0].1, now).punts.is_empty());

    a.peers[&B].stats.cool();
    assert_eq!(a.encapsulate(&udp(1, 2, 1), now).punts, ["active 2"]);
}

#[test]
fn a_source_that_is_not_the_peers_and_a_destination_that_is_not_ours_are_dropped() {
    let (a, b, now) = direct();
    for packet in [udp(7, 2, 10), udp(1, 9, 10)] {
        let mut routed = a.clone();
        routed.routes = Arc::new([("10.0.0.0/8".parse().unwrap(), B)].into_iter().collect());
        let sent = routed.encapsulate(&packet, now);
        assert!(b.decapsulate(&sent.transmits[0].1, now).delivered.is_empty());
    }

    assert_eq!(drops(&b), [(DropReason::SourceNotAllowed, 1), (DropReason::NotOurs, 1)]);
}

#[test]
fn a_source_out_of_our_own_networks_is_dropped_with_a_reason_of_its_own() {
    let (a, mut b, now) = direct();
    let local = Local { reserved: vec!["10.0.0.7/32".parse().unwrap()], ..(*b.local).clone() };
    b.local = Arc::new(local);
    let mut routed = a.clone();
    routed.routes = Arc::new([("10.0.0.0/8".parse().unwrap(), B)].into_iter().collect());
    let sent = routed.encapsulate(&udp(7, 2, 10), now);

    assert!(b.decapsulate(&sent.transmits[0].1, now).delivered.is_empty());

    assert_eq!(drops(&b), [(DropReason::SourceOverlaps, 1)]);
}

#[test]
fn a_batch_is_judged_packet_by_packet() {
    let (a, b, now) = direct();
    let mut batch = Vec::new();
    for number in 0..5 {
        let mut datagram = a.encapsulate(&udp(1, 2, 100), now).transmits.remove(0).1;
        if number == 2 {
            datagram[20] ^= 1;
        }
        batch.push(datagram);
    }
    batch.push(batch[0].clone());

    let received = b.decapsulate_all(&batch, now);

    assert_eq!(received.delivered.len(), 4);
    assert_eq!(drops(&b), [(DropReason::Forged, 1), (DropReason::Replayed, 1)]);
}

#[test]
fn packets_wait_in_the_engine_for_a_session_and_expired_keys_are_none() {
    let (mut a, b, now) = direct();
    let later = now + session::transport::REJECT_AFTER;
    assert_eq!(a.encapsulate(&udp(1, 2, 1), later).punts, ["active 2", "no session 2: 29 B"]);
    let sent = a.encapsulate(&udp(1, 2, 1), now).transmits.remove(0).1;
    assert!(b.decapsulate(&sent, later).delivered.is_empty());
    assert_eq!(drops(&b), [(DropReason::KeyExpired, 1)]);

    change_peer(&mut a, B, |peer| peer.session = None);
    assert_eq!(a.encapsulate(&udp(1, 2, 1), now).punts, ["no session 2: 29 B"]);
    change_peer(&mut a, B, |peer| peer.session = b.sessions.values().next().cloned());
    change_peer(&mut a, B, |peer| peer.next_hop = None);
    a.encapsulate(&udp(1, 2, 1), now);
    a.encapsulate(&udp(1, 77, 1), now);
    a.encapsulate(&[1, 2, 3], now);
    assert_eq!(
        drops(&a),
        [(DropReason::NotIp, 1), (DropReason::NoRoute, 1), (DropReason::NoPath, 1)]
    );
}

#[test]
fn a_super_packet_becomes_one_run_and_is_whole_again_at_the_other_end() {
    let (a, b, now) = direct();
    let (virtio, packet) = super_packet(10_000, 1200);

    let sent = a.encapsulate_super(&virtio, &packet, now);
    assert_eq!(sent.transmits.len(), 1);
    assert_eq!(sent.segments, [1200 + 40 + DATA_OVERHEAD]);
    let datagrams: Vec<_> =
        sent.transmits[0].1.chunks(sent.segments[0]).map(<[u8]>::to_vec).collect();
    assert_eq!(datagrams.len(), 9);

    let received = b.decapsulate_all(&datagrams, now);
    assert!(received.partial.iter().all(|&is_partial| is_partial));
    let payload: usize = received.delivered.iter().map(|one| one.len() - 40).sum();
    assert_eq!(payload, 10_000);
    assert_eq!(a.peers[&B].stats.direct.counts().tx_packets, 9);
}

#[test]
fn a_super_packet_without_session_is_held_as_a_few_whole_packets() {
    let (mut a, _, now) = direct();
    change_peer(&mut a, B, |peer| peer.session = None);
    let (virtio, packet) = super_packet(20_000, 1200);

    let sent = a.encapsulate_super(&virtio, &packet, now);

    assert_eq!(sent.punts[1..], vec!["no session 2: 1240 B"; 8]);
}

#[test]
fn a_run_ends_where_a_kernel_would_not_take_more() {
    let (a, _, now) = direct();
    let (virtio, packet) = super_packet(60_000, 1000);
    let (small_virtio, small) = super_packet(20_000, 200);

    let runs = a.encapsulate_super(&virtio, &packet, now).transmits;
    assert!(runs.iter().all(|(_, run)| run.len() <= MAX_RUN), "{}", runs.len());
    assert_eq!(runs.len(), 1);
    let small_runs = a.encapsulate_super(&small_virtio, &small, now);
    let counts: Vec<_> = small_runs
        .transmits
        .iter()
        .zip(&small_runs.segments)
        .map(|((_, run), segment)| run.len().div_ceil(*segment))
        .collect();
    assert_eq!(counts, [64, 36]);
}

#[test]
fn too_big_is_told_by_icmp_or_cut_inside_below_1280() {
    let (mut a, b, now) = direct();
    change_peer(&mut a, B, |peer| peer.mtu = 1300);
    let mut packet = udp(1, 2, 1400);
    packet[6] = 0x40;
    let told = a.encapsulate(&packet, now);
    let icmp = told.reply.unwrap();
    assert_eq!((icmp[9], icmp[20], icmp[21]), (1, 3, 4));
    assert_eq!(icmp[26..28], 1300u16.to_be_bytes());
    assert!(told.transmits.is_empty());

    // Without "don't fragment".
    packet[6] = 0;
    let sent = a.encapsulate(&packet, now);
    assert!(sent.reply.is_none());
    let datagrams: Vec<_> = sent
        .transmits
        .iter()
        .zip(&sent.segments)
        .flat_map(|((_, run), segment)| run.chunks(*segment).map(<[u8]>::to_vec))
        .collect();
    assert_eq!(datagrams.len(), 2);
    assert!(datagrams.iter().all(|datagram| datagram.len() <= 1300 + DATA_OVERHEAD));
    let received = b.decapsulate_all(&datagrams, now);
    assert_eq!(received.punts[1..], ["opened 2 Fragment: 1300 B", "opened 2 Fragment: 136 B"]);
    assert_eq!(drops(&a), [(DropReason::TooBig, 1)]);
}

#[test]
fn a_syn_is_clamped_to_the_mesh_both_ways() {
    let (a, b, now) = direct();
    let mut packet = udp(1, 2, 16);
    packet[9] = ip::TCP;
    packet[32] = 0x60;
    packet[33] = 2;
    packet[40..44].copy_from_slice(&[2, 4, 0x05, 0xb4]);
    let total = packet.len();
    assert_eq!(total, 44);

    let sent = a.encapsulate(&packet, now);
    let received = b.decapsulate(&sent.transmits[0].1, now);

    assert_eq!(received.delivered[0][42..44], 1280u16.to_be_bytes());
}

#[test]
fn records_and_strangers_go_to_the_engine() {
    let (a, b, now) = direct();
    let session = a.peers[&B].session.clone().unwrap();
    let record = session.seal_record(Kind::Control, b"hello").unwrap();
    assert_eq!(b.decapsulate(&record, now).punts, ["heard 2", "opened 2 Control: 5 B"]);

    let mut stranger = record.clone();
    stranger[4] = 77;
    assert_eq!(b.decapsulate(&stranger, now).punts, ["raw 38 B"]);
    let mut init = vec![0; wire::datagram::INIT_LEN];
    init[0] = wire::datagram::TYPE_INIT;
    assert_eq!(b.decapsulate(&init, now).punts, ["raw 1144 B"]);
    assert!(b.decapsulate(&init[..1143], now).punts.is_empty());
    assert!(b.decapsulate(&[], now).punts.is_empty());
    assert!(b.decapsulate(&[0x84; 20], now).punts.is_empty());
    assert_eq!(drops(&b), [(DropReason::Malformed, 3)]);
}

#[test]
fn a_relay_forwards_without_opening_and_the_end_knows_the_way() {
    let (a, r, b, now) = relayed();
    let packet = udp(1, 2, 100);
    let sent = a.encapsulate(&packet, now);
    assert_eq!(sent.transmits[0].0, hop(3));
    assert_eq!(sent.transmits[0].1[1], HOP_LIMIT);

    let forwarded = r.decapsulate(&sent.transmits[0].1, now);
    assert_eq!(forwarded.transmits[0].0, hop(2));
    assert_eq!(forwarded.transmits[0].1[1], HOP_LIMIT - 1);
    assert!(forwarded.delivered.is_empty());

    let received = b.decapsulate(&forwarded.transmits[0].1, now);
    assert_eq!(received.delivered, [packet]);
    assert_eq!(b.peers[&A].stats.relayed.counts().rx_packets, 1);
    assert_eq!(received.vias, [Some(Via { link: 202, src: A.short() })]);
}

#[test]
fn a_run_of_transit_leaves_the_relay_as_a_run() {
    let (a, r, b, now) = relayed();
    let (virtio, packet) = super_packet(10_000, 1200);
    let sent = a.encapsulate_super(&virtio, &packet, now);
    let datagrams: Vec<_> =
        sent.transmits[0].1.chunks(sent.segments[0]).map(<[u8]>::to_vec).collect();

    let forwarded = r.decapsulate_all(&datagrams, now);

    assert_eq!(forwarded.transmits.len(), 1);
    assert_eq!(forwarded.segments, sent.segments);
    let datagrams: Vec<_> =
        forwarded.transmits[0].1.chunks(sent.segments[0]).map(<[u8]>::to_vec).collect();
    assert_eq!(b.decapsulate_all(&datagrams, now).delivered.len(), 9);
}

#[test]
fn a_relay_drops_what_it_cannot_vouch_for() {
    let (a, r, _, now) = relayed();
    let link = a.links.values().next().unwrap().session.clone();
    let transit = |hop_limit, dst: NodeId, src: NodeId, inner: &[u8]| {
        let head = Transit::head(
            hop_limit,
            link.remote_index(),
            link.reserve_hops(1),
            dst.short(),
            src.short(),
        );
        let mut bytes = [&head[..], inner].concat();
        link.sign_hop(&mut bytes);
        bytes
    };
    let good = transit(8, B, A, &[0x85; 60]);
    let mut forged = transit(8, B, A, &[0x85; 60]);
    forged[16] ^= 1;
    let mut stranger = good.clone();
    stranger[4] ^= 1;

    assert_eq!(r.decapsulate(&good, now).transmits.len(), 1);
    for bad in [
        good,
        forged,
        stranger,
        transit(1, B, A, &[0x85; 60]),
        transit(8, B, R, &[0x85; 60]),
        transit(8, NodeId([7; 16]), A, &[0x85; 60]),
        transit(8, R, A, &transit(8, R, A, &[1; 60])),
        transit(8, R, A, &[1; 60]),
    ] {
        assert!(r.decapsulate(&bad, now).transmits.is_empty());
    }

    assert_eq!(
        drops(&r),
        [
            (DropReason::Malformed, 1),
            (DropReason::UnknownLink, 1),
            (DropReason::HopForged, 1),
            (DropReason::HopReplayed, 1),
            (DropReason::HopLimit, 1),
            (DropReason::Nested, 1),
            (DropReason::NotVouched, 1),
            (DropReason::NoForward, 1),
        ]
    );
}

#[test]
fn a_quota_stops_data_before_control() {
    let (a, mut r, _, now) = relayed();
    let quota = Arc::new(Quota::new(Meter::new(1, 3_000), None));
    let links = Arc::make_mut(&mut r.links);
    links.values_mut().for_each(|link| link.quota = Some(quota.clone()));
    let send = |bytes| a.encapsulate(&udp(1, 2, bytes), now).transmits.remove(0).1;

    let passed = (0..10).filter(|_| !r.decapsulate(&send(1000), now).transmits.is_empty());
    assert_eq!(passed.count(), 2);
    assert_eq!(r.decapsulate(&send(20), now).transmits.len(), 1);

    assert_eq!(drops(&r), [(DropReason::OverQuota, 8)]);
}

#[test]
fn while_suspect_the_same_bytes_go_two_ways_and_arrive_once() {
    let (mut a, r, mut b, now) = relayed();
    let relayed_hop = a.peers[&B].next_hop.clone();
    change_peer(&mut a, B, |peer| {
        peer.next_hop = Some(NextHop::Direct(hop(2)));
        peer.bicast = relayed_hop;
    });
    b.drops = Arc::default();
    let packet = udp(1, 2, 100);

    let sent = a.encapsulate(&packet, now);
    let hops: Vec<_> = sent.transmits.iter().map(|(hop, _)| *hop).collect();
    assert_eq!(hops, [hop(2), hop(3)]);

    let over_relay = r.decapsulate(&sent.transmits[1].1, now).transmits.remove(0).1;
    assert_eq!(b.decapsulate(&over_relay, now).delivered, [packet]);
    assert!(b.decapsulate(&sent.transmits[0].1, now).delivered.is_empty());
    assert_eq!(drops(&b), [(DropReason::Replayed, 1)]);
}

#[test]
fn what_goes_two_ways_is_limited() {
    let (mut a, _, now) = direct();
    change_peer(&mut a, B, |peer| peer.bicast = Some(NextHop::Direct(hop(4))));
    let (virtio, packet) = super_packet(50_000, 1200);

    let mut doubled = 0;
    for _ in 0..10 {
        let sent = a.encapsulate_super(&virtio, &packet, now);
        let second = sent.transmits.iter().filter(|(to, _)| *to == hop(4));
        doubled += second.map(|(_, run)| run.len()).sum::<usize>();
    }

    assert!((50_000..=64 * 1024).contains(&doubled), "{doubled}");
}

#[test]
fn a_datagram_of_the_engine_travels_inside_transit() {
    let (a, r, b, now) = relayed();
    let mut init = vec![0; wire::datagram::INIT_LEN];
    init[0] = wire::datagram::TYPE_INIT;

    let (to, bytes) = a.peers[&B].next_hop.as_ref().unwrap().wrap(A.short(), init);
    assert_eq!(to, hop(3));
    let forwarded = r.decapsulate(&bytes, now).transmits.remove(0).1;

    let received = b.decapsulate(&forwarded, now);
    assert_eq!(received.punts, ["raw 1144 B"]);
    assert_eq!(received.vias, [Some(Via { link: 202, src: A.short() })]);
}

proptest! {
    #[test]
    fn no_datagram_makes_it_panic(
        mut datagrams in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
        kinds in prop::collection::vec(0x80u8..0x90, 4),
        index in prop::sample::select(vec![1u8, 2, 201, 202, 9]),
    ) {
        let (a, r, _, now) = relayed();
        for (datagram, kind) in datagrams.iter_mut().zip(kinds) {
            if let [first, _, _, _, low, high @ ..] = &mut datagram[..] {
                (*first, *low) = (kind, index);
                high.iter_mut().take(3).for_each(|byte| *byte = 0);
            }
        }
        a.decapsulate_all(&datagrams, now);
        r.decapsulate_all(&datagrams, now);
    }

    #[test]
    fn no_packet_makes_it_panic(
        virtio in any::<[u8; 10]>(),
        gso in prop::sample::select(vec![0u8, 1, 4, 5]),
        mut packet in prop::collection::vec(any::<u8>(), 0..3000),
        start in prop::sample::select(vec![20u16, 40, 60]),
        first in prop::sample::select(vec![0x45u8, 0x4f, 0x60, 0]),
        mtu in prop::sample::select(vec![0u16, 100, 1280, 1320, 65535]),
    ) {
        let (mut a, b, now) = direct();
        let all = ["0.0.0.0/0", "::/0"].map(|net| (net.parse().unwrap(), B));
        a.routes = Arc::new(all.into_iter().collect());
        change_peer(&mut a, B, |peer| peer.mtu = mtu);
        let mut virtio = virtio;
        virtio[1] = gso;
        virtio[6..8].copy_from_slice(&start.to_ne_bytes());
        if let Some(byte) = packet.first_mut() {
            *byte = first;
        }
        let sent = a.encapsulate_super(&Virtio::parse(&virtio), &packet, now);
        for ((_, run), segment) in sent.transmits.iter().zip(&sent.segments) {
            let datagrams: Vec<_> = run.chunks(*segment).map(<[u8]>::to_vec).collect();
            b.decapsulate_all(&datagrams, now);
        }
        prop_assert_eq!(b.drops.count_of(DropReason::Forged), 0);
    }
}

// Arranging.

fn direct() -> (Fib, Fib, Instant) {
    let now = Instant::now();
    (end(A, B, false, now), end(B, A, false, now), now)
}

fn relayed() -> (Fib, Fib, Fib, Instant) {
    let now = Instant::now();
    let mut r = Fib::new(R, now, 1320);
    let (mut links, mut forwards) = (BTreeMap::new(), BTreeMap::new());
    for node in [A, B] {
        let session = Arc::new(session(R, node, now));
        let link = Link {
            session: session.clone(),
            network: NETWORK,
            vouched: Some(node.short()),
            quota: None,
        };
        links.insert(session.local_index(), link);
        forwards.insert((NETWORK, node.short()), Forward { link: session, hop: hop(node.0[0]) });
    }
    (r.links, r.forwards) = (Arc::new(links), Arc::new(forwards));
    (end(A, B, true, now), r, end(B, A, true, now), now)
}

fn end(own: NodeId, other: NodeId, is_relayed: bool, now: Instant) -> Fib {
    let (shared, link) = (Arc::new(session(own, other, now)), Arc::new(session(own, R, now)));
    let next_hop = if is_relayed {
        NextHop::Relayed { link: link.clone(), hop: hop(3), dst: other.short() }
    } else {
        NextHop::Direct(hop(other.0[0]))
    };
    let net = |node: NodeId| format!("10.0.0.{}/32", node.0[0]).parse().unwrap();
    let peer = PeerEntry {
        node: other,
        session: Some(shared.clone()),
        next_hop: Some(next_hop),
        bicast: None,
        mtu: 1320,
        allowed: [net(other)].into(),
        stats: Arc::default(),
    };
    let mut fib = Fib::new(own, now, 1320);
    fib.local = Arc::new(Local { addresses: vec![addr(own.0[0])], ..Local::default() });
    fib.routes = Arc::new([(net(other), other)].into_iter().collect());
    fib.peers = Arc::new([(other, Arc::new(peer))].into());
    fib.sessions = Arc::new([(shared.local_index(), shared)].into());
    let entry = Link { session: link.clone(), network: NETWORK, vouched: None, quota: None };
    fib.links = Arc::new([(link.local_index(), entry)].into());
    fib
}

/// Between two ends the index is the owner's number; of a link, 200 and the member's number.
fn session(own: NodeId, other: NodeId, now: Instant) -> Session {
    let (low, high) = (own.min(other).0[0], own.max(other).0[0]);
    let keys =
        TransportKeys::from_split(own < other, Suite::Aes256Gcm, (&[low; 32], &[high + 90; 32]));
    let index = |node: NodeId| match (own == R || other == R, own == R) {
        (false, _) => u32::from(node.0[0]),
        (true, true) => 200 + u32::from(other.0[0]),
        (true, false) => 200 + u32::from(own.0[0]),
    };
    Session::new(other, index(own), index(other), &keys, now)
}

fn hop(number: u8) -> Hop {
    Hop::Udp { socket: SocketId(0), remote: ([192, 0, 2, number], 1).into() }
}

fn addr(number: u8) -> IpAddr {
    [10, 0, 0, number].into()
}

fn udp(src: u8, dst: u8, payload: usize) -> Vec<u8> {
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, 17, 0, 0];
    packet.extend([10, 0, 0, src, 10, 0, 0, dst]);
    let len = (8 + payload) as u16;
    packet.extend([0x12, 0x34, 0, 80]);
    packet.extend(len.to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(std::iter::repeat_n(7, payload));
    packet[2..4].copy_from_slice(&(20 + len).to_be_bytes());
    packet
}

/// A TCP super-packet from A to B.
fn super_packet(payload: usize, segment: u16) -> (Virtio, Vec<u8>) {
    let mut packet = udp(1, 2, payload + 12);
    packet[9] = ip::TCP;
    packet[32] = 0x50;
    packet[33] = 0x10;
    let mut header = [0; crate::offload::VIRTIO_LEN];
    (header[0], header[1]) = (1, 1);
    header[4..6].copy_from_slice(&segment.to_ne_bytes());
    header[6..8].copy_from_slice(&20u16.to_ne_bytes());
    header[8..10].copy_from_slice(&16u16.to_ne_bytes());
    (Virtio::parse(&header), packet)
}

fn change_peer(fib: &mut Fib, node: NodeId, change: impl FnOnce(&mut PeerEntry)) {
    let mut peer = PeerEntry::clone(&fib.peers[&node]);
    change(&mut peer);
    Arc::make_mut(&mut fib.peers).insert(node, Arc::new(peer));
}

fn drops(fib: &Fib) -> Vec<(DropReason, u64)> {
    fib.drops.iter().filter(|(_, count)| *count > 0).collect()
}

// Acting.

/// What a sink got.
#[derive(Debug, Default)]
struct Got {
    transmits: Vec<(Hop, Vec<u8>)>,
    segments: Vec<usize>,
    delivered: Vec<Vec<u8>>,
    partial: Vec<bool>,
    punts: Vec<String>,
    vias: Vec<Option<Via>>,
    reply: Option<Vec<u8>>,
}

impl Sink for Got {
    fn transmit(&mut self, hop: &Hop, datagrams: &[u8], segment: usize) {
        self.transmits.push((*hop, datagrams.to_vec()));
        self.segments.push(segment);
    }

    fn deliver(&mut self, buf: &mut [u8], deliveries: &[Delivery]) {
        for one in deliveries {
            self.delivered.push(buf[one.at..one.at + one.len].to_vec());
            self.partial.push(one.is_partial);
        }
    }

    fn punt(&mut self, punt: Punt<'_>) {
        let (text, arrival) = match punt {
            Punt::Raw { arrival, bytes } => (format!("raw {} B", bytes.len()), Some(arrival)),
            Punt::Opened { arrival, session, kind, plaintext } => {
                (format!("opened {session} {kind:?}: {} B", plaintext.len()), Some(arrival))
            }
            Punt::Heard { arrival, session } => (format!("heard {session}"), Some(arrival)),
            Punt::NoSession { peer, packet } => {
                (format!("no session {}: {} B", peer.0[0], packet.len()), None)
            }
            Punt::Active { peer } => (format!("active {}", peer.0[0]), None),
        };
        self.punts.push(text);
        self.vias.extend(arrival.map(|arrival| arrival.via));
    }
}

impl Fib {
    fn encapsulate(&self, packet: &[u8], now: Instant) -> Got {
        self.encapsulate_super(&Virtio::default(), packet, now)
    }

    fn encapsulate_super(&self, virtio: &Virtio, packet: &[u8], now: Instant) -> Got {
        let (mut got, mut out) = (Got::default(), Outbox::default());
        got.reply = encapsulate(self, virtio, &mut packet.to_vec(), now, &mut out, &mut got);
        out.flush(&mut got);
        got
    }

    fn decapsulate(&self, datagram: &[u8], now: Instant) -> Got {
        self.decapsulate_all(&[datagram.to_vec()], now)
    }

    fn decapsulate_all(&self, datagrams: &[Vec<u8>], now: Instant) -> Got {
        let mut buf = datagrams.concat();
        let mut ranges = Vec::new();
        let mut at = 0;
        for datagram in datagrams {
            ranges.push(at..at + datagram.len());
            at += datagram.len();
        }
        let mut got = Got::default();
        decapsulate(self, &mut buf, ranges, hop(1), now, &mut Inbox::default(), &mut got);
        got
    }
}
