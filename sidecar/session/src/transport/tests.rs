use std::time::Instant;

use wire::datagram::{Probe, ProbeOp, Transit};
use wire::id::ShortId;

use super::*;

fn pair(suite: Suite) -> (Session, Session) {
    let split = ([1; 32], [2; 32]);
    let now = Instant::now();
    let side = |initiator, local, remote| {
        let keys = TransportKeys::from_split(initiator, suite, (&split.0, &split.1));
        Session::new(NodeId([0; 16]), local, remote, &keys, now)
    };
    (side(true, 10, 20), side(false, 20, 10))
}

#[test]
fn what_one_side_seals_the_other_opens_once() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (a, b) = pair(suite);
        let mut sealed = a.seal_record(Kind::Control, b"hello").unwrap();
        assert_eq!(sealed.len(), 5 + DATA_OVERHEAD);

        let opened = b.open(&mut sealed).unwrap();

        assert_eq!(opened, Opened { counter: 0, kind: Kind::Control, len: 5 });
        assert_eq!(&sealed[DATA_HEADER_LEN..DATA_HEADER_LEN + 5], b"hello");
        assert!(b.accept_one(opened.counter));
        assert!(!b.accept_one(opened.counter));
    }
}

#[test]
fn no_bit_of_a_packet_can_be_changed() {
    let (a, b) = pair(Suite::Aes256Gcm);
    let sealed = a.seal_record(Kind::Ip, b"packet").unwrap();
    for at in 0..sealed.len() {
        let mut forged = sealed.clone();
        forged[at] ^= 1;
        assert_eq!(b.open(&mut forged), Err(OpenError::Forged), "byte {at}");
    }
    assert_eq!(b.open(&mut [0; DATA_OVERHEAD - 1]), Err(OpenError::Malformed));
}

#[test]
fn counters_are_reserved_once() {
    let (a, _) = pair(Suite::Aes256Gcm);

    assert_eq!((a.reserve(64), a.reserve(1), a.reserve(64)), (Some(0), Some(64), Some(65)));
    assert_eq!(a.reserve(COUNTER_LIMIT), None);
}

#[test]
fn probes_and_hops_authenticate_in_one_direction() {
    let (a, b) = pair(Suite::Aes256Gcm);
    let mut probe = Probe::encode(ProbeOp::Ask, 1, 20, 2, 3, None, 100);
    a.sign_probe(&mut probe);
    assert!(b.verify_probe(&probe));
    assert!(!a.verify_probe(&probe));
    probe[99] ^= 1;
    assert!(!b.verify_probe(&probe));

    let mut transit = Transit::head(8, 20, a.reserve_hops(1), ShortId(1), ShortId(2)).to_vec();
    transit.extend_from_slice(&[5; 40]);
    a.sign_hop(&mut transit);
    assert!(b.verify_hop(&transit));
    assert!(b.accept_hop(0) && !b.accept_hop(0));
    transit[40 + 31] ^= 1;
    assert!(!b.verify_hop(&transit));
}

#[test]
fn a_session_shows_no_key() {
    let (a, _) = pair(Suite::Aes256Gcm);

    let text = format!("{a:?}");

    assert!(!text.contains("seal") && !text.contains("probe") && text.contains("local_index: 10"));
}
