use proptest::prelude::*;

use super::*;

/// RFC 5769 §2.1: ICE connectivity check.
const SAMPLE_REQUEST: &str = "
    00010058 2112a442 b7e7a701 bc34d686 fa87dfae
    80220010 5354554e 20746573 7420636c 69656e74
    00240004 6e0001ff
    80290008 932ff9b1 51263b36
    00060009 6576746a 3a683676 59202020
    00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2
    80280004 e57a3bcf";

/// RFC 5769 §2.2: IPv4 response.
const SAMPLE_V4: &str = "
    0101003c 2112a442 b7e7a701 bc34d686 fa87dfae
    8022000b 74657374 20766563 746f7220
    00200008 0001a147 e112a643
    00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7
    80280004 c07d4c96";

/// RFC 5769 §2.3: IPv6 response.
const SAMPLE_V6: &str = "
    01010048 2112a442 b7e7a701 bc34d686 fa87dfae
    8022000b 74657374 20766563 746f7220
    00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
    00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41
    80280004 c8fb0b4c";

const TRANSACTION: TransactionId =
    TransactionId([0xb7, 0xe7, 0xa7, 0x01, 0xbc, 0x34, 0xd6, 0x86, 0xfa, 0x87, 0xdf, 0xae]);

#[test]
fn the_request_of_rfc_5769_is_read() {
    let bytes = hex(SAMPLE_REQUEST);

    let message = Message::parse(&bytes).unwrap();

    assert_eq!(message.class, Class::Request);
    assert_eq!(message.transaction, TRANSACTION);
    assert_eq!(message.software, Some("STUN test client"));
    assert_eq!(message.unknown, [0x0024], "PRIORITY belongs to ICE");
    assert!(message.fingerprint);
}

#[test]
fn the_responses_of_rfc_5769_are_read() {
    let (v4, v6) = (hex(SAMPLE_V4), hex(SAMPLE_V6));

    let v4 = Message::parse(&v4).unwrap();
    let v6 = Message::parse(&v6).unwrap();

    assert_eq!(v4.mapped, Some("192.0.2.1:32853".parse().unwrap()));
    assert_eq!(v6.mapped, Some("[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap()));
    assert_eq!((v4.class, v4.software), (Class::Success, Some("test vector")));
    assert!(v4.fingerprint && v6.fingerprint);
}

#[test]
fn a_wrong_fingerprint_is_no_stun_message() {
    let mut bytes = hex(SAMPLE_V4);
    bytes[44] ^= 1;
    assert_eq!(Message::parse(&bytes), None);
}

#[test]
fn our_request_has_known_bytes() {
    let mut expected =
        hex("00010050 2112a442 b7e7a701 bc34d686 fa87dfae 00030004 00000006 8022003c");
    expected.extend_from_slice(format!("{:<60}", "easynet").as_bytes());
    expected.extend_from_slice(&hex("80280004"));

    let bytes = request(TRANSACTION, Change { ip: true, port: true }, 0);

    assert_eq!(bytes.len(), REQUEST_LEN);
    assert_eq!(bytes[..96], expected);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.change, Change { ip: true, port: true });
    assert!(message.fingerprint && message.unknown.is_empty());
    assert_eq!(request(TRANSACTION, Change::default(), 0).len(), REQUEST_LEN);
}

#[test]
fn a_question_that_wants_its_answer_late_is_no_longer_and_known_bytes() {
    let bytes = request(TRANSACTION, Change::default(), 300);

    assert_eq!(bytes.len(), REQUEST_LEN);
    assert_eq!(bytes[20..28], [0xc0, 0xe5, 0, 4, 1, 44, 0, 0]);
    assert_eq!(Message::parse(&bytes).unwrap().delay, 300);
    let cut = hex("00010004 2112a442 b7e7a701 bc34d686 fa87dfae c0e50000");
    assert_eq!(Message::parse(&cut), None, "it has no value");
}

#[test]
fn the_fullest_answer_is_as_long_as_our_question() {
    let question = request(TRANSACTION, Change::default(), 0);
    let from = "[2001:db8:1234:5678:11:2233:4455:6677]:32853".parse().unwrap();
    let origin = "[2001:db8::1]:3478".parse().unwrap();
    let other = "[2001:db8::2]:3479".parse().unwrap();

    let bytes = answer(&Message::parse(&question).unwrap(), from, Some(origin), Some(other));

    assert_eq!(bytes.len(), REQUEST_LEN);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.class, Class::Success);
    assert_eq!(message.mapped, Some(from));
    assert_eq!(message.origin, Some(origin));
    assert_eq!(message.other, Some(other));
    assert!(message.fingerprint);
}

#[test]
fn a_bare_question_gets_the_least_answer() {
    let question = hex("00010000 2112a442 b7e7a701 bc34d686 fa87dfae");
    let origin = "192.0.2.9:3478".parse().unwrap();
    let from = "[::ffff:192.0.2.1]:32853".parse().unwrap();

    let bytes = answer(&Message::parse(&question).unwrap(), from, Some(origin), Some(origin));

    assert_eq!(
        bytes,
        hex("0101000c 2112a442 b7e7a701 bc34d686 fa87dfae 00200008 0001a147 e112a643")
    );
}

#[test]
fn what_must_be_understood_and_is_not_is_named() {
    let question =
        hex("00010010 2112a442 b7e7a701 bc34d686 fa87dfae 00270004 12340000 00240004 6e0001ff");

    let bytes =
        answer(&Message::parse(&question).unwrap(), "192.0.2.1:1".parse().unwrap(), None, None);

    assert_eq!(
        bytes,
        hex("01110010 2112a442 b7e7a701 bc34d686 fa87dfae 00090004 00000414 000a0004 00270024")
    );
    let message = Message::parse(&bytes).unwrap();
    assert_eq!((message.class, message.error), (Class::Error, Some(420)));
}

#[test]
fn mapped_address_serves_where_xor_is_missing() {
    let bytes = hex("0101000c 2112a442 b7e7a701 bc34d686 fa87dfae 00010008 00018055 c0000201");
    let mapped = Message::parse(&bytes).unwrap().mapped;
    assert_eq!(mapped, Some("192.0.2.1:32853".parse().unwrap()));
}

#[test]
fn no_truncation_parses() {
    for sample in [SAMPLE_REQUEST, SAMPLE_V4, SAMPLE_V6] {
        let bytes = hex(sample);
        for cut in 0..bytes.len() {
            assert_eq!(Message::parse(&bytes[..cut]), None, "cut at {cut}");
        }
    }
}

proptest! {
    #[test]
    fn bit_flips_never_panic_nor_pass_the_fingerprint(bit in 0usize..80 * 8) {
        let mut bytes = hex(SAMPLE_V4);
        bytes[bit / 8] ^= 1 << (bit % 8);
        if let Some(message) = Message::parse(&bytes) {
            prop_assert!(!message.fingerprint);
        }
    }

    #[test]
    fn nothing_panics_and_answers_stay_short(attributes in proptest::collection::vec(any::<u8>(), 0..200), port in any::<u16>()) {
        let mut bytes = hex("00010000 2112a442 b7e7a701 bc34d686 fa87dfae");
        bytes.extend_from_slice(&attributes);
        let len = attributes.len() as u16;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        if let Some(message) = Message::parse(&bytes) {
            let answer = answer(&message, SocketAddr::new([192, 0, 2, 1].into(), port), None, None);
            prop_assert!(answer.len() <= bytes.len().max(32));
            prop_assert!(Message::parse(&answer).is_some());
        }
    }
}

fn hex(text: &str) -> Vec<u8> {
    let digits: String = text.split_whitespace().collect();
    data_encoding::HEXLOWER.decode(digits.as_bytes()).unwrap()
}
