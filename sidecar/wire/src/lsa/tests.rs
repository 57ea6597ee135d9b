use proptest::prelude::*;
use prost::Message;

use super::*;

#[test]
fn a_container_has_known_bytes() {
    let bytes = sample();

    assert_eq!(bytes[..16], [0x11; 16]);
    assert_eq!(bytes[16..48], [0x22; 32]);
    assert_eq!(bytes[48..55], [2, 1, 2, 3, 4, 5, 6]);
    assert_eq!(bytes[55..63], [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(bytes[63..71], [0x10, 0x0e, 0, 0, 3, 0, 20, 0]);
    assert_eq!(bytes[71..95], [0x33; 24]);
    assert_eq!(bytes[95..98], *b"abc");
    assert_eq!(bytes[98..118], [0x44; 20]);
    assert_eq!(bytes[118..], [0x55; 64]);
}

#[test]
fn a_container_is_read_as_it_was_laid_out() {
    let bytes = sample();

    let container = Container::parse(bytes.clone()).unwrap();

    assert_eq!(container.head, head());
    assert_eq!(container.clear(), b"abc");
    assert_eq!(container.sealed(), [0x44; 20]);
    assert_eq!(container.signed(), &bytes[..118]);
    assert_eq!(container.signature(), [0x55; 64]);
    assert_eq!(container.bytes(), &bytes);
    assert_eq!(Container::aad(&container.head, 3, 20)[..], bytes[..AAD_LEN]);
    assert_eq!(container.key().signer, NodeId::of(&SignKey([0x22; 32])));
}

#[test]
fn an_unknown_type_is_kept_byte_for_byte() {
    let unknown = Head { kind: 200, flags: 0xff, ..head() };
    let mut bytes = Container::unsigned(&unknown, b"future", &[9; 30]).unwrap();
    bytes.extend_from_slice(&[8; 64]);

    let container = Container::parse(bytes.clone().into()).unwrap();

    assert_eq!(LsaType::from_byte(container.head.kind), None);
    assert_eq!(container.bytes()[..], bytes[..]);
}

#[test]
fn a_container_has_one_length_and_a_most() {
    let bytes = sample();
    for cut in 0..bytes.len() {
        assert_eq!(Container::parse(bytes.slice(..cut)), None, "cut at {cut}");
    }
    assert_eq!(Container::parse([&bytes[..], &[0]].concat().into()), None);

    let most = MAX_LEN - HEAD_LEN - SIGNATURE_LEN;
    assert_eq!(Container::unsigned(&head(), &[], &vec![0; most]).unwrap().len(), MAX_LEN - 64);
    assert_eq!(Container::unsigned(&head(), &[0], &vec![0; most]), None);
    assert_eq!(Container::unsigned(&head(), &[], &vec![0; 70_000]), None);
}

#[test]
fn a_sealed_body_is_at_least_its_tag() {
    let mut bytes = Container::unsigned(&head(), &[], &[0; 15]).unwrap();
    bytes.extend_from_slice(&[0; 64]);
    assert_eq!(Container::parse(bytes.into()), None);
}

#[test]
fn a_node_body_survives_fields_of_a_later_version() {
    let body = NodeBody {
        hostname: "a".into(),
        homes: vec![vec![1; 16]],
        addresses: vec![Prefix::new([10, 0, 0, 1].into(), 32)],
        transit: true,
        ..NodeBody::default()
    };
    let mut bytes = body.encode_to_vec();
    assert_eq!(
        bytes,
        [
            &[0x12, 1, b'a', 0x2a, 16][..],
            &[1; 16],
            &[0x3a, 8, 0x0a, 4, 10, 0, 0, 1, 0x10, 32, 0x48, 1]
        ]
        .concat()
    );

    // Field 99, "hello".
    bytes.extend_from_slice(&[0x9a, 0x06, 5, b'h', b'e', b'l', b'l', b'o']);

    assert_eq!(NodeBody::decode(&bytes[..]), Ok(body));
}

proptest! {
    #[test]
    fn bit_flips_never_panic(bit in 0usize..182 * 8) {
        let mut bytes = sample().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(container) = Container::parse(bytes.clone().into()) {
            prop_assert_eq!(&container.bytes()[..], &bytes[..]);
            prop_assert_eq!(container.clear().len() + container.sealed().len(), 23);
        }
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Container::parse(bytes.clone().into());
        let _ = NodeBody::decode(&bytes[..]);
        let _ = LinkBody::decode(&bytes[..]);
    }
}

fn head() -> Head {
    Head {
        network: NetworkId([0x11; 16]),
        signer: SignKey([0x22; 32]),
        kind: LsaType::Link as u8,
        id: 0x0403_0201,
        flags: 5,
        gk_epoch: 6,
        seq: 0x0807_0605_0403_0201,
        lifetime: 3600,
        nonce: [0x33; 24],
    }
}

fn sample() -> Bytes {
    let mut bytes = Container::unsigned(&head(), b"abc", &[0x44; 20]).unwrap();
    bytes.extend_from_slice(&[0x55; 64]);
    bytes.into()
}
