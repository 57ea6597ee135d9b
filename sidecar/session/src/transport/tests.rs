use wire::{
    datagram::{Probe, ProbeOp, Transit},
    id::ShortId,
};

use super::*;

const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);

#[test]
fn what_one_side_seals_only_the_other_opens_and_only_once() {
    for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
        let (a, b) = pair(suite);
        let mut datagram = a.seal_record(Kind::Control, b"hello").unwrap();
        let mut replay = datagram.clone();
        assert_eq!(a.open(&mut datagram.clone()), Err(OpenError::Forged));

        let opened = b.open(&mut datagram).unwrap();

        assert_eq!((opened.counter, opened.kind), (0, Kind::Control));
        assert_eq!(&datagram[DATA_HEADER_LEN..][..opened.len], b"hello");
        assert!(b.accept_one(opened.counter));
        let again = b.open(&mut replay).unwrap();
        assert!(!b.accept_one(again.counter));
    }
}

#[test]
fn one_flipped_bit_anywhere_is_noticed() {
    let (a, b) = pair(Suite::Aes256Gcm);
    let datagram = a.seal_record(Kind::Ip, b"hello").unwrap();

    for bit in 0..datagram.len() * 8 {
        let mut forged = datagram.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        // The receiver's index chooses the session; the AEAD covers it nevertheless.
        assert!(b.open(&mut forged).is_err(), "bit {bit}");
    }
}

#[test]
fn a_batch_of_counters_is_never_reused_and_ends_at_the_limit() {
    let (a, _) = pair(Suite::Aes256Gcm);
    assert_eq!(a.reserve(64), Some(0));
    assert_eq!(a.reserve(1), Some(64));
    a.next.store(COUNTER_LIMIT - 1, Ordering::Relaxed);

    assert_eq!(a.reserve(1), Some(COUNTER_LIMIT - 1));
    assert_eq!(a.reserve(1), None);
    assert!(a.seal_record(Kind::Ip, b"").is_none());
}

#[test]
fn a_batch_passes_the_window_under_one_lock() {
    let (_, b) = pair(Suite::Aes256Gcm);
    let mut kept = Vec::new();

    b.accept([3, 1, 3, 2].into_iter(), |counter, new| kept.push((counter, new)));

    assert_eq!(kept, [(3, true), (1, true), (3, false), (2, true)]);
}

#[test]
fn keys_are_refused_after_three_minutes() {
    let now = Instant::now();
    let (a, _) = pair(Suite::Aes256Gcm);

    assert!(!a.is_expired(a.established() + Duration::from_secs(179)));
    assert!(a.is_expired(a.established() + Duration::from_secs(180)));
    assert!(!a.is_expired(now - Duration::from_secs(1)));
}

#[test]
fn the_first_authentic_packet_is_told_once() {
    let (a, _) = pair(Suite::Aes256Gcm);

    assert!(a.first_heard());
    assert!(!a.first_heard());
}

#[test]
fn a_probe_is_the_peers_or_none() {
    let (a, b) = pair(Suite::Aes256Gcm);
    let mut probe = Probe::encode(ProbeOp::Ask, 1, b.local_index(), 7, 8, None, 100);
    a.sign_probe(&mut probe);

    assert!(b.verify_probe(&probe));
    assert!(!a.verify_probe(&probe));
    for at in 0..probe.len() {
        let mut forged = probe.clone();
        forged[at] ^= 1;
        assert!(!b.verify_probe(&forged), "byte {at}");
    }
    assert!(!b.verify_probe(&probe[..57]));
}

#[test]
fn a_hop_mac_covers_the_header_and_the_head_of_the_inner_datagram() {
    let (a, b) = pair(Suite::Aes256Gcm);
    let head = Transit::head(8, b.local_index(), a.reserve_hops(1), ShortId(3), ShortId(4));
    let mut transit = [&head[..], &[9; 100]].concat();
    a.sign_hop(&mut transit);

    assert!(b.verify_hop(&transit));
    assert!(!a.verify_hop(&transit));
    for at in (0..TRANSIT_LEN + HOP_COVERED).filter(|&at| at != 2 && at != 3) {
        let mut forged = transit.clone();
        forged[at] ^= 1;
        assert!(!b.verify_hop(&forged), "byte {at}");
    }
    assert!(b.accept_hop(0));
    assert!(!b.accept_hop(0));
}

fn pair(suite: Suite) -> (Session, Session) {
    let now = Instant::now();
    let (i, r) = ([1; 32], [2; 32]);
    let a = TransportKeys::from_split(true, suite, (&i, &r));
    let b = TransportKeys::from_split(false, suite, (&i, &r));
    (Session::new(B, 10, 20, &a, now), Session::new(A, 20, 10, &b, now))
}
