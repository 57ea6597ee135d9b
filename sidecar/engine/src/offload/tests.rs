use proptest::prelude::*;

use super::*;

#[test]
fn a_tcp_super_packet_is_cut_into_numbered_segments() {
    let virtio = virtio(GSO_TCP4, 4, 20, 16);
    #[rustfmt::skip]
    let packet = [
        // IPv4: length 50, id 0x1234, don't fragment, 10.0.0.1 to 10.0.0.2
        0x45, 0, 0, 50, 0x12, 0x34, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
        // TCP: 80 to 443, sequence 0xffff_fffe, ack 7, PSH ACK FIN CWR
        0, 80, 1, 187, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 7, 0x50, 0x99, 1, 0, 0, 0, 0, 0,
        b'a', b'b', b'c', b'd', b'e', b'f', b'g', b'h', b'i', b'j',
    ];

    let segments = split(&virtio, &packet);

    #[rustfmt::skip]
    assert_eq!(segments, [
        vec![
            0x45, 0, 0, 44, 0x12, 0x34, 0x40, 0, 64, 6, 0x14, 0x96, 10, 0, 0, 1, 10, 0, 0, 2,
            0, 80, 1, 187, 0xff, 0xff, 0xff, 0xfe, 0, 0, 0, 7, 0x50, 0x90, 1, 0, 0x14, 0x21, 0, 0,
            b'a', b'b', b'c', b'd',
        ],
        vec![
            0x45, 0, 0, 44, 0x12, 0x35, 0x40, 0, 64, 6, 0x14, 0x95, 10, 0, 0, 1, 10, 0, 0, 2,
            0, 80, 1, 187, 0, 0, 0, 2, 0, 0, 0, 7, 0x50, 0x10, 1, 0, 0x14, 0x21, 0, 0,
            b'e', b'f', b'g', b'h',
        ],
        vec![
            0x45, 0, 0, 42, 0x12, 0x36, 0x40, 0, 64, 6, 0x14, 0x96, 10, 0, 0, 1, 10, 0, 0, 2,
            0, 80, 1, 187, 0, 0, 0, 6, 0, 0, 0, 7, 0x50, 0x19, 1, 0, 0x14, 0x1f, 0, 0,
            b'i', b'j',
        ],
    ]);
}

#[test]
fn a_virtio_header_that_contradicts_its_packet_cuts_nothing() {
    let packet = packet(true, ip::TCP, 1000, 0, ACK);
    let good = virtio(GSO_TCP4, 100, 20, 16);
    assert!(Split::new(&good, &packet).is_some());

    for bad in [
        virtio(GSO_TCP6, 100, 20, 16),
        virtio(GSO_TCP4, 0, 20, 16),
        virtio(GSO_TCP4, 100, 0, 16),
        virtio(GSO_TCP4, 100, 1030, 16),
        virtio(GSO_TCP4, 100, 5000, 16),
        virtio(3, 100, 20, 16),
    ] {
        assert!(Split::new(&bad, &packet).is_none(), "{bad:?}");
    }
    for len in 0..packet.len() - 1000 {
        assert!(Split::new(&good, &packet[..len]).is_none(), "{len}");
    }
}

#[test]
fn a_partial_checksum_travels_as_it_is_where_the_receiver_finds_it_again() {
    let partial = virtio(GSO_NONE, 0, 20, 16);

    assert_eq!(partial.settle(&mut packet(true, ip::TCP, 10, 0, ACK)), Some(Kind::IpPartial));
    assert_eq!(Virtio::default().settle(&mut packet(true, ip::TCP, 10, 0, ACK)), Some(Kind::Ip));
    assert_eq!(virtio(GSO_NONE, 0, 5000, 16).settle(&mut packet(true, ip::TCP, 10, 0, ACK)), None);
}

#[test]
fn a_partial_checksum_elsewhere_is_completed() {
    // SCTP in UDP and the like: the field at byte 4 of a transport that is not TCP.
    let mut packet = packet(true, ip::TCP, 10, 0, ACK);
    packet[9] = 99;
    packet[24..26].copy_from_slice(&[0x12, 0x34]);
    let expected = !ip::sum(&packet[20..]);

    assert_eq!(virtio(GSO_NONE, 0, 20, 4).settle(&mut packet), Some(Kind::Ip));

    assert_eq!(packet[24..26], expected.to_be_bytes());
}

#[test]
fn segments_of_two_flows_and_out_of_sequence_are_not_joined() {
    let mut buf = Vec::new();
    let a0 = push(&mut buf, packet(true, ip::TCP, 100, 0, ACK));
    let a1 = push(&mut buf, packet(true, ip::TCP, 100, 100, ACK));
    let mut other = packet(true, ip::TCP, 100, 200, ACK);
    other[21] ^= 1;
    let b = push(&mut buf, other);
    let gap = push(&mut buf, packet(true, ip::TCP, 100, 300, ACK));
    let joined = |deliveries: &[Delivery]| joins(&buf, deliveries, true);

    assert_eq!(joined(&[a0, a1]), [2]);
    assert_eq!(joined(&[a0, a1, b]), [2, 1]);
    assert_eq!(joined(&[a0, b, a1]), [1, 1, 1]);
    assert_eq!(joined(&[a0, a1, gap]), [2, 1]);
    assert_eq!(joined(&[a1, a0]), [1, 1]);
    assert_eq!(joined(&[a0, Delivery { is_partial: false, ..a1 }]), [1, 1]);
}

#[test]
fn push_and_a_short_segment_end_a_joined_packet_and_other_flags_prevent_it() {
    let mut buf = Vec::new();
    let mut add = |len, at, flags| push(&mut buf, packet(false, ip::TCP, len, at, flags));
    let first = add(100, 0, ACK);
    let pushed = add(100, 100, ACK | PSH);
    let after_push = add(100, 200, ACK);
    let short = add(50, 100, ACK);
    let after_short = add(100, 150, ACK);
    let syn = add(100, 100, ACK | 2);
    let longer = add(101, 100, ACK);

    assert_eq!(joins(&buf, &[first, pushed, after_push], true), [2, 1]);
    assert_eq!(joins(&buf, &[first, short, after_short], true), [2, 1]);
    assert_eq!(joins(&buf, &[first, syn], true), [1, 1]);
    assert_eq!(joins(&buf, &[first, longer], true), [1, 1]);
}

#[test]
fn udp_is_joined_only_where_the_tun_takes_it() {
    let mut buf = Vec::new();
    let two = [(); 2].map(|()| push(&mut buf, packet(true, ip::UDP, 64, 0, 0)));

    assert_eq!(joins(&buf, &two, true), [2]);
    assert_eq!(joins(&buf, &two, false), [1, 1]);
}

#[test]
fn what_is_no_tcp_or_udp_is_written_as_it_is() {
    let icmp =
        [0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0];
    for (bytes, is_partial) in
        [(&icmp[..], false), (&icmp[..], true), (&[0x45][..], true), (&[][..], true)]
    {
        let one = Delivery { at: 0, len: bytes.len(), is_partial };
        let mut written = Vec::new();
        coalesce(bytes, &[one], true, |write| written.push((write.head.to_vec(), write.skip)));
        assert_eq!(written, [(vec![0; VIRTIO_LEN], 0)]);
    }
}

proptest! {
    #[test]
    fn joining_undoes_cutting(
        is_v4: bool,
        is_tcp: bool,
        payload in 2usize..60_000,
        segments in 2usize..64,
        psh: bool,
        sequence: u32,
    ) {
        let protocol = if is_tcp { ip::TCP } else { ip::UDP };
        let mut whole = packet(is_v4, protocol, payload, sequence, if psh { ACK | PSH } else { ACK });
        let segment = payload.div_ceil(segments).max(1);
        prop_assume!(segment < payload && segment < 9000);
        let network = if is_v4 { 20 } else { 40 };
        let gso = match (is_tcp, is_v4) {
            (true, true) => GSO_TCP4,
            (true, false) => GSO_TCP6,
            _ => GSO_UDP,
        };
        let offset = if is_tcp { 16 } else { 6 };
        let header_len = network + if is_tcp { 32 } else { 8 };
        let virtio = Virtio { header_len: header_len as u16, ..virtio(gso, segment as u16, network as u16, offset) };
        let sum = ip::pseudo_header_sum(
            ip::addresses(&whole).unwrap().0,
            ip::addresses(&whole).unwrap().1,
            protocol,
            whole.len() - network,
        );
        let at = network + usize::from(offset);
        whole[at..at + 2].copy_from_slice(&sum.to_be_bytes());

        let mut buf = Vec::new();
        let deliveries: Vec<_> = split(&virtio, &whole).into_iter().map(|one| push(&mut buf, one)).collect();
        for one in &deliveries {
            // Each is a packet in its own right once its checksum is complete.
            let mut complete = buf[one.at..one.at + one.len].to_vec();
            prop_assert!(ip::complete(&mut complete));
            prop_assert_eq!(Header::parse(&complete).unwrap().total_len, complete.len());
        }
        let mut written = Vec::new();
        coalesce(&buf, &deliveries, true, |write| {
            let mut bytes = write.head.to_vec();
            write.payloads().for_each(|range| bytes.extend_from_slice(&buf[range]));
            written.push(bytes);
        });

        prop_assert_eq!(written.len(), 1);
        prop_assert_eq!(Virtio::parse(written[0].first_chunk().unwrap()), virtio);
        prop_assert_eq!(&written[0][VIRTIO_LEN..], &whole[..]);
    }

    #[test]
    fn joining_arbitrary_bytes_writes_each_byte_once(
        packets in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..80), any::<bool>()), 0..8),
        first in prop::sample::select(vec![0x45u8, 0x60, 0x00]),
        protocol in prop::sample::select(vec![6u8, 17, 1]),
    ) {
        let mut buf = Vec::new();
        let mut deliveries = Vec::new();
        for (mut bytes, is_partial) in packets {
            if let [version, _, _, _, _, _, next6, _, _, next4, ..] = &mut bytes[..] {
                (*version, *next6, *next4) = (first, protocol, protocol);
            }
            deliveries.push(Delivery { is_partial, ..push(&mut buf, bytes) });
        }
        let mut count = 0;
        coalesce(&buf, &deliveries, true, |write| count += write.packets.len());
        prop_assert_eq!(count, deliveries.len());
    }
}

fn virtio(gso_type: u8, gso_size: u16, checksum_start: u16, checksum_offset: u16) -> Virtio {
    Virtio {
        flags: NEEDS_CHECKSUM,
        gso_type,
        header_len: 0,
        gso_size,
        checksum_start,
        checksum_offset,
    }
}

/// TCP with a timestamp option, or UDP; the payload counts up.
fn packet(is_v4: bool, protocol: u8, payload: usize, sequence: u32, flags: u8) -> Vec<u8> {
    let transport_len = if protocol == ip::TCP { 32 } else { 8 };
    let len = transport_len + payload;
    let mut packet = if is_v4 {
        let mut header = vec![0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0];
        header.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        header[2..4].copy_from_slice(&((20 + len) as u16).to_be_bytes());
        let checksum = ip::ipv4_checksum(&header);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 1, 2, 3, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&(len as u16).to_be_bytes());
        header.extend([0xfd; 16]);
        header.extend([0xfe; 16]);
        header
    };
    packet.extend([0x12, 0x34, 0x43, 0x21]);
    if protocol == ip::TCP {
        packet.extend(sequence.to_be_bytes());
        packet.extend([0, 0, 0, 9, 0x80, flags, 4, 0, 0, 0, 0, 0]);
        packet.extend([1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    } else {
        packet.extend((len as u16).to_be_bytes());
        packet.extend([0, 0]);
    }
    packet.extend((0..payload).map(|n| n as u8));
    packet
}

fn split(virtio: &Virtio, packet: &[u8]) -> Vec<Vec<u8>> {
    let split = Split::new(virtio, packet).unwrap();
    (0..split.count())
        .map(|index| {
            let mut out = vec![0; split.len_of(index)];
            split.write(packet, index, &mut out);
            out
        })
        .collect()
}

fn push(buf: &mut Vec<u8>, packet: Vec<u8>) -> Delivery {
    let at = buf.len();
    buf.extend_from_slice(&packet);
    Delivery { at, len: packet.len(), is_partial: true }
}

fn joins(buf: &[u8], deliveries: &[Delivery], udp: bool) -> Vec<usize> {
    let mut counts = Vec::new();
    coalesce(buf, deliveries, udp, |write| counts.push(write.packets.len()));
    counts
}
