use proptest::prelude::*;

use super::*;

/// 10.0.0.1 → 10.0.0.2, UDP 1 → 2, "hi"; checksums worked out by hand.
const UDP4: [u8; 30] = [
    0x45, 0, 0, 30, 0, 0, 0x40, 0, 64, 17, 0x26, 0xcd, 10, 0, 0, 1, 10, 0, 0, 2, 0, 1, 0, 2, 0, 10,
    0x83, 0x6b, b'h', b'i',
];

/// The example of RFC 1071 §3.
#[test]
fn the_sum_is_that_of_rfc_1071() {
    assert_eq!(sum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), 0xddf2);
    assert_eq!(sum(&[]), 0);
    assert_eq!(sum(&[0xab]), 0xab00);
    assert_eq!(sum(&[0xff; 65_536]), 0xffff);
}

#[test]
fn a_v4_header_is_read() {
    assert_eq!(
        Header::parse(&UDP4),
        Some(Header {
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            protocol: UDP,
            header_len: 20,
            total_len: 30,
            fragment: None,
        })
    );
    assert_eq!(ipv4_checksum(&UDP4[..20]), 0x26cd);
    assert_eq!(sum(&UDP4[..20]), 0xffff);
}

#[test]
fn a_partial_checksum_is_completed() {
    let mut packet = UDP4;
    let partial =
        pseudo_header_sum("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), UDP, 10);
    assert_eq!(partial, 0x141e);
    packet[26..28].copy_from_slice(&partial.to_be_bytes());

    assert!(complete(&mut packet));

    assert_eq!(packet, UDP4);
}

#[test]
fn extension_headers_are_skipped_within_bounds() {
    let packet = v6(0, &[&[43, 0, 0, 0, 0, 0, 0, 0, 6, 1][..], &[0; 14], &tcp(0, &[])].concat());
    let header = Header::parse(&packet).unwrap();
    assert_eq!((header.protocol, header.header_len, header.total_len), (TCP, 64, 84));

    for cut in 0..packet.len() {
        assert_eq!(Header::parse(&packet[..cut]), None, "cut at {cut}");
    }
    let endless = v6(0, &[0; 8 * 20]);
    assert_eq!(Header::parse(&endless), None);
}

#[test]
fn fragments_are_told_from_whole_packets() {
    let later = v6(44, &[TCP, 0, 0x05, 0xa9, 1, 2, 3, 4, 9, 9]);
    let header = Header::parse(&later).unwrap();
    assert_eq!(header.fragment, Some(Fragment { offset: 0x05a8, more: true }));
    assert!(!header.has_transport());

    let mut first = UDP4;
    first[6] = 0x20;
    let header = Header::parse(&first).unwrap();
    assert_eq!(header.fragment, Some(Fragment { offset: 0, more: true }));
    assert!(header.has_transport());
    assert!(!complete(&mut first));
}

#[test]
fn too_big_v4_is_icmp_3_4_with_the_mtu() {
    let answer = packet_too_big(&UDP4, 1280).unwrap();

    assert_eq!(answer.len(), 20 + 8 + 30);
    assert_eq!(answer[..10], [0x45, 0xc0, 0, 58, 0, 0, 0, 0, 64, 1]);
    assert_eq!(answer[12..20], [10, 0, 0, 2, 10, 0, 0, 1]);
    assert_eq!(sum(&answer[..20]), 0xffff);
    assert_eq!(answer[20..22], [3, 4]);
    assert_eq!(answer[24..28], [0, 0, 0x05, 0x00]);
    assert_eq!(sum(&answer[20..]), 0xffff);
    assert_eq!(answer[28..], UDP4);
}

#[test]
fn too_big_v6_is_icmp_2_and_fits_the_least_mtu() {
    let packet = v6(UDP, &[0; 1400]);

    let answer = packet_too_big(&packet, 1300).unwrap();

    assert_eq!(answer.len(), 1280);
    let header = Header::parse(&answer).unwrap();
    assert_eq!((header.protocol, header.dst), (ICMPV6, "fd00::1".parse().unwrap()));
    assert_eq!(answer[40..42], [2, 0]);
    assert_eq!(answer[44..48], [0, 0, 0x05, 0x14]);
    let all = combine(pseudo_header_sum(header.src, header.dst, ICMPV6, 1240), sum(&answer[40..]));
    assert_eq!(all, 0xffff);
}

#[test]
fn what_must_not_be_answered_is_not() {
    let ask = |change: &dyn Fn(&mut [u8; 30])| {
        let mut packet = UDP4;
        change(&mut packet);
        packet_too_big(&packet, 1280)
    };

    assert!(ask(&|_| ()).is_some());
    assert!(ask(&|p| (p[9], p[20]) = (ICMP, 8)).is_some(), "echo");
    assert!(ask(&|p| (p[9], p[20]) = (ICMP, 3)).is_none(), "ICMP error");
    assert!(ask(&|p| p[9] = ICMP).is_some(), "echo reply");
    assert!(ask(&|p| p[16] = 224).is_none(), "to multicast");
    assert!(ask(&|p| p[16..20].fill(255)).is_none(), "to broadcast");
    assert!(ask(&|p| p[12..16].fill(0)).is_none(), "from nobody");
    assert!(ask(&|p| p[7] = 1).is_none(), "later fragment");
    assert!(packet_too_big(&v6(ICMPV6, &[2, 0, 0, 0, 0, 0, 0, 0]), 1280).is_none());
    assert!(packet_too_big(&v6(ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0]), 1280).is_some());
}

#[test]
fn mss_is_clamped_and_the_checksum_follows() {
    for options in
        [&[2, 4, 0x05, 0xb4][..], &[1, 2, 4, 0x05, 0xb4, 0, 0, 0], &[4, 2, 1, 1, 2, 4, 0x05, 0xb4]]
    {
        let mut packet = v6(TCP, &tcp(SYN, options));
        assert!(complete(&mut packet));

        assert!(clamp_mss(&mut packet, 1320, Checksum::Complete));

        let at = 40 + mss_at(&packet[40..]).unwrap();
        assert_eq!(packet[at..at + 2], 1260u16.to_be_bytes());
        let clamped = packet.clone();
        assert!(complete(&mut packet));
        assert_eq!(packet, clamped, "checksum with {options:?}");
        assert!(!clamp_mss(&mut packet, 1320, Checksum::Complete), "once is enough");
    }
}

#[test]
fn only_syn_is_clamped_and_partial_checksums_stay() {
    let mut data = v6(TCP, &tcp(0x10, &[2, 4, 0x05, 0xb4]));
    assert!(!clamp_mss(&mut data, 1320, Checksum::Complete));

    let mut partial = v6(TCP, &tcp(SYN, &[2, 4, 0x05, 0xb4]));
    assert!(clamp_mss(&mut partial, 1320, Checksum::Partial));
    assert_eq!(partial[40 + 16..40 + 18], [0, 0]);
}

proptest! {
    #[test]
    fn sums_agree_with_the_naive_one(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let naive = bytes.chunks(2).fold(0u64, |total, word| {
            total + u64::from(u16::from_be_bytes([word[0], *word.get(1).unwrap_or(&0)]))
        });
        prop_assert_eq!(sum(&bytes), fold(naive));
    }

    #[test]
    fn folding_keeps_the_value(total in any::<u64>()) {
        let folded = u64::from(fold(total));
        prop_assert_eq!(folded % 0xffff, total % 0xffff);
        prop_assert_eq!(folded == 0, total == 0);
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), version in prop_oneof![Just(0x45u8), Just(0x60), any::<u8>()], mtu in 0usize..70_000) {
        let mut bytes = bytes;
        if let Some(first) = bytes.first_mut() {
            *first = version;
        }
        if let Some(header) = Header::parse(&bytes) {
            prop_assert!(header.header_len <= header.total_len && header.total_len <= bytes.len());
        }
        let _ = packet_too_big(&bytes, mtu);
        clamp_mss(&mut bytes, mtu, Checksum::Complete);
        complete(&mut bytes);
    }

    #[test]
    fn an_updated_checksum_is_the_computed_one(words in proptest::collection::vec(any::<u16>(), 2..20), at in any::<prop::sample::Index>(), new in any::<u16>()) {
        let bytes = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
        let at = at.index(words.len());
        let before = !sum(&bytes(&words));
        let mut changed = words.clone();
        changed[at] = new;
        // Only a sum of all zeros has two representations.
        prop_assume!(changed.iter().any(|&word| word != 0) && words.iter().any(|&word| word != 0));
        prop_assert_eq!(update(before, words[at], new) , !sum(&bytes(&changed)));
    }
}

/// fd00::1 → fd00::2.
fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[next, 64]);
    packet.extend_from_slice(&"fd00::1".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend_from_slice(&"fd00::2".parse::<Ipv6Addr>().unwrap().octets());
    packet.extend_from_slice(payload);
    packet
}

/// A TCP header of `flags` with options (a multiple of 4 bytes).
fn tcp(flags: u8, options: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 20];
    header[..4].copy_from_slice(&[0x1f, 0x90, 0, 80]);
    header[12] = ((20 + options.len()) as u8 / 4) << 4;
    header[13] = flags;
    header.extend_from_slice(options);
    header
}
