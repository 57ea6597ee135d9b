use proptest::prelude::*;

use super::*;

#[test]
fn init_has_known_bytes() {
    let mut bytes = vec![0; INIT_LEN];
    bytes[..8].copy_from_slice(&Init::head(Role::Server, 0x0403_0201));
    assert_eq!(bytes[..8], [0x81, 1, 2, 0, 1, 2, 3, 4]);
    bytes[8] = 0xe0;
    bytes[1111] = 0xef;
    bytes[1112..1128].fill(0xa1);
    bytes[1128..].fill(0xa2);

    let Some(Datagram::Init(init)) = Datagram::parse(&bytes) else { panic!("no INIT") };

    assert_eq!((init.version, init.role, init.sender_index), (1, 2, 0x0403_0201));
    assert_eq!((init.noise.len(), init.noise[0], init.noise[1103]), (1104, 0xe0, 0xef));
    assert_eq!((init.mac1, init.mac2), ([0xa1; 16], [0xa2; 16]));
    assert_eq!((init.mac1_covers.len(), init.mac2_covers.len()), (1112, 1128));
    assert_eq!(init.head[..], bytes[..8]);
}

#[test]
fn response_has_known_bytes_and_bounds() {
    let mut bytes = vec![0; 200];
    bytes[..12].copy_from_slice(&Response::head(Role::Member, 7, 1, 0x0403_0201));
    assert_eq!(bytes[..12], [0x82, 1, 1, 7, 1, 0, 0, 0, 1, 2, 3, 4]);
    bytes[168..184].fill(0xa1);
    bytes[184..].fill(0xa2);

    let Some(Datagram::Response(response)) = Datagram::parse(&bytes) else { panic!("no RESPONSE") };

    assert_eq!((response.role, response.psk_epoch), (1, 7));
    assert_eq!((response.sender_index, response.receiver_index), (1, 0x0403_0201));
    assert_eq!(response.noise.len(), 156);
    assert_eq!((response.mac1, response.mac2), ([0xa1; 16], [0xa2; 16]));
    assert_eq!((response.mac1_covers.len(), response.mac2_covers.len()), (168, 184));
    bytes.resize(RESPONSE_MIN_LEN - 1, 0);
    assert_eq!(Datagram::parse(&bytes), None);
    bytes.resize(INIT_LEN + 1, 0);
    assert_eq!(Datagram::parse(&bytes), None);
}

#[test]
fn cookie_has_known_bytes() {
    let bytes = Cookie::encode(0x0403_0201, &[0xaa; 24], &[0xbb; 32]);
    assert_eq!(bytes[..8], [0x83, 0, 0, 0, 1, 2, 3, 4]);
    assert_eq!((&bytes[8..32], &bytes[32..]), (&[0xaa; 24][..], &[0xbb; 32][..]));

    assert_eq!(
        Datagram::parse(&bytes),
        Some(Datagram::Cookie(Cookie {
            receiver_index: 0x0403_0201,
            nonce: [0xaa; 24],
            sealed: &[0xbb; 32]
        }))
    );
}

#[test]
fn data_has_known_bytes() {
    let mut bytes = Data::head(0x0403_0201, 0x0807_0605_0403_0201).to_vec();
    assert_eq!(bytes, [0x84, 0, 0, 0, 1, 2, 3, 4, 1, 2, 3, 4, 5, 6, 7, 8]);
    bytes.extend_from_slice(&[9; 17]);

    assert_eq!(
        Datagram::parse(&bytes),
        Some(Datagram::Data(Data {
            receiver_index: 0x0403_0201,
            counter: 0x0807_0605_0403_0201,
            sealed: &[9; 17]
        }))
    );
    assert_eq!(Datagram::parse(&bytes[..32]), None);
    bytes[1] = 1;
    assert_eq!(Datagram::parse(&bytes), None, "flags have no meaning yet");
}

#[test]
fn probe_has_known_bytes() {
    let observed = "203.0.113.9:11010".parse().unwrap();
    let bytes =
        Probe::encode(ProbeOp::Ack, 0x0201, 3, 0x0807_0605_0403_0201, 4, Some(observed), 60);
    assert_eq!(
        bytes,
        [
            0x85, 1, 1, 2, 3, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 0, 0, 0, 0, 0, 0, 0, //
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, //
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9, 0x02, 0x2b, 0, 0
        ]
    );

    let Some(Datagram::Probe(probe)) = Datagram::parse(&bytes) else { panic!("no PROBE") };

    assert_eq!((probe.op, probe.seq, probe.receiver_index), (ProbeOp::Ack, 0x0201, 3));
    assert_eq!((probe.txid, probe.sender_time), (0x0807_0605_0403_0201, 4));
    assert_eq!((probe.observed(), probe.bytes.len()), (observed, 60));
    assert_eq!(Probe::encode(ProbeOp::Ask, 0, 0, 0, 0, None, 0).len(), PROBE_LEN);
}

#[test]
fn transit_has_known_bytes() {
    let mut bytes = Transit::head(8, 1, 2, ShortId(3), ShortId(0x0807_0605_0403_0201)).to_vec();
    assert_eq!(
        bytes,
        [
            0x86, 8, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0, //
            1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0
        ]
    );
    assert_eq!(Datagram::parse(&bytes), None, "nothing inside");
    bytes[TRANSIT_MAC_AT..].fill(0xaa);
    bytes.push(0x84);

    assert_eq!(
        Datagram::parse(&bytes),
        Some(Datagram::Transit(Transit {
            hop_limit: 8,
            link_index: 1,
            link_counter: 2,
            dst: ShortId(3),
            src: ShortId(0x0807_0605_0403_0201),
            mac: [0xaa; 8],
            inner: &[0x84],
        }))
    );
}

#[test]
fn whois_and_versions_have_known_bytes() {
    let ask = Whois::ask(0x0807_0605_0403_0201);
    assert_eq!(ask[..16], [0x87, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert!(ask[16..].iter().all(|&byte| byte == 0));
    let keys = NodeKeys { sign: SignKey([1; 32]), dh: DhKey([2; 32]) };
    let answer = Whois::answer(5, &keys, &[3; 64]);
    assert_eq!(answer[..16], [0x87, 1, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(
        (&answer[16..48], &answer[48..80], &answer[80..]),
        (&[1; 32][..], &[2; 32][..], &[3; 64][..])
    );
    assert_eq!(answer.len(), ask.len());

    assert_eq!(
        Datagram::parse(&answer),
        Some(Datagram::Whois(Whois { answer: true, txid: 5, keys, signature: [3; 64] }))
    );
    let versions = Versions::encode(1, 3, 0x0403_0201);
    assert_eq!(versions, [0x87, 2, 1, 3, 1, 2, 3, 4]);
    assert_eq!(
        Datagram::parse(&versions),
        Some(Datagram::Versions(Versions { lowest: 1, highest: 3, receiver_index: 0x0403_0201 }))
    );
}

#[test]
fn stun_is_told_by_its_cookie() {
    let request = crate::stun::request(crate::stun::TransactionId([1; 12]), Default::default(), 0);
    assert_eq!(Datagram::parse(&request), Some(Datagram::Stun(&request)));
    assert_eq!(Datagram::parse(&[0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x43]), None);
    assert_eq!(Datagram::parse(&[0, 1, 0, 0, 0x21, 0x12, 0xa4]), None);
}

#[test]
fn fixed_layouts_have_one_length_and_open_ones_a_least() {
    let keys = NodeKeys { sign: SignKey([1; 32]), dh: DhKey([2; 32]) };
    let fixed: [Vec<u8>; 4] = [
        with_type(TYPE_INIT, INIT_LEN),
        Cookie::encode(1, &[0; 24], &[0; 32]).to_vec(),
        Whois::answer(1, &keys, &[0; 64]).to_vec(),
        Versions::encode(1, 1, 1).to_vec(),
    ];
    for mut bytes in fixed {
        assert!(Datagram::parse(&bytes).is_some());
        for cut in 0..bytes.len() {
            assert_eq!(Datagram::parse(&bytes[..cut]), None, "{:02x?} cut at {cut}", bytes[0]);
        }
        bytes.push(0);
        assert_eq!(Datagram::parse(&bytes), None, "{:02x?} and a byte", bytes[0]);
    }
    for (kind, least) in
        [(TYPE_RESPONSE, 92), (TYPE_DATA, 33), (TYPE_PROBE, 58), (TYPE_TRANSIT, 41)]
    {
        let bytes = with_type(kind, 300);
        for cut in 0..bytes.len() {
            assert_eq!(
                Datagram::parse(&bytes[..cut]).is_some(),
                cut >= least,
                "{kind:02x} cut at {cut}"
            );
        }
    }
}

#[test]
fn other_first_bytes_are_nobody_s() {
    for first in (4..=0x80).chain(0x88..=0xff) {
        assert_eq!(Datagram::parse(&with_type(first, INIT_LEN)), None, "{first:02x}");
    }
}

proptest! {
    #[test]
    fn nothing_panics(first in prop_oneof![0x80u8..0x89, any::<u8>()], rest in proptest::collection::vec(any::<u8>(), 0..1300)) {
        let bytes = [&[first][..], &rest].concat();
        if let Some(Datagram::Probe(probe)) = Datagram::parse(&bytes) {
            let _ = probe.observed();
        }
    }

    #[test]
    fn a_probe_comes_back_as_it_went(ack: bool, seq: u16, index: u32, txid: u64, time: u64, ip: [u8; 16], port: u16, len in 0usize..1500) {
        let op = if ack { ProbeOp::Ack } else { ProbeOp::Ask };
        let addr = SocketAddr::new(std::net::Ipv6Addr::from(ip).to_canonical(), port);
        let bytes = Probe::encode(op, seq, index, txid, time, Some(addr), len);
        let Some(Datagram::Probe(probe)) = Datagram::parse(&bytes) else { panic!("no PROBE") };
        prop_assert_eq!((probe.op, probe.seq, probe.receiver_index), (op, seq, index));
        prop_assert_eq!((probe.txid, probe.sender_time, probe.observed()), (txid, time, addr));
    }
}

fn with_type(kind: u8, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    bytes[0] = kind;
    bytes
}
