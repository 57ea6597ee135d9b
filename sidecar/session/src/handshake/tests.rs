use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use wire::{
    control::{AEAD_AES, AEAD_CHACHA},
    datagram::Datagram,
};

use super::*;

const PSK: [u8; 32] = [8; 32];

fn alice() -> Identity {
    Identity::from_bytes(&[1; 64])
}

fn bob() -> Identity {
    Identity::from_bytes(&[2; 64])
}

fn rng(seed: u8) -> ChaCha12Rng {
    ChaCha12Rng::from_seed([seed; 32])
}

fn payload(role: Role) -> InitPayload {
    InitPayload {
        role: u32::from(role as u8),
        aead: AEAD_CHACHA | AEAD_AES,
        freshness: 5,
        ..InitPayload::default()
    }
}

fn start(role: Role) -> (Initiator, Vec<u8>) {
    Initiator::start(&alice(), bob().keys().dh, role, 77, &payload(role), &mut rng(1)).unwrap()
}

fn init(bytes: &[u8]) -> Init<'_> {
    match Datagram::parse(bytes) {
        Some(Datagram::Init(init)) => init,
        other => panic!("{other:?}"),
    }
}

fn response(bytes: &[u8]) -> Response<'_> {
    match Datagram::parse(bytes) {
        Some(Datagram::Response(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn answer(bytes: &[u8], role: Role, psk: &[u8; 32]) -> (Vec<u8>, TransportKeys) {
    Responder::read(&bob(), &init(bytes), &mut rng(2))
        .unwrap()
        .respond(role, psk, 0, AEAD_CHACHA, 99, ResponsePayload::default())
        .unwrap()
}

#[test]
fn one_round_trip_makes_the_same_keys_crosswise() {
    let (mut initiator, init_bytes) = start(Role::Member);

    let (response_bytes, theirs) = answer(&init_bytes, Role::Member, &PSK);
    let ours = initiator.read(&response(&response_bytes), |_, _| Some(PSK)).unwrap().keys;

    assert_eq!(init_bytes.len(), INIT_LEN);
    assert_eq!(ours.suite, Suite::ChaCha20Poly1305);
    assert_eq!((ours.data_send, ours.data_recv), (theirs.data_recv, theirs.data_send));
    assert_eq!((ours.probe_send, ours.hop_send), (theirs.probe_recv, theirs.hop_recv));
    assert_eq!(ours.exporter, theirs.exporter);
    assert_ne!(ours.data_send, ours.data_recv);
}

#[test]
fn the_same_seed_makes_the_same_bytes() {
    assert_eq!(start(Role::Member).1, start(Role::Member).1);
    let hash = blake3::hash(&start(Role::Server).1);
    assert_eq!(&hash.to_hex()[..16], "95f5d8ca1e6ac766");
}

#[test]
fn the_responder_learns_who_asks_and_what_for() {
    let (_, bytes) = start(Role::Any);

    let responder = Responder::read(&bob(), &init(&bytes), &mut rng(2)).unwrap();

    assert_eq!(responder.remote, alice().keys().dh);
    assert_eq!(responder.payload, payload(Role::Any));
    assert!(verify_mac1(&bob().keys().dh, init(&bytes).mac1_covers, &init(&bytes).mac1));
    assert!(!verify_mac1(&alice().keys().dh, init(&bytes).mac1_covers, &init(&bytes).mac1));
}

#[test]
fn a_wrong_secret_is_not_a_session_and_the_right_answer_may_still_come() {
    let (mut initiator, init_bytes) = start(Role::Member);
    let (wrong, _) = answer(&init_bytes, Role::Member, &[9; 32]);
    let (right, _) = answer(&init_bytes, Role::Member, &PSK);

    let refused = initiator.read(&response(&wrong), |_, _| Some(PSK)).map(|answer| answer.role);
    assert_eq!(refused, Err(HandshakeError::Forged));
    assert!(initiator.read(&response(&right), |_, _| Some(PSK)).is_ok());
}

#[test]
fn a_member_does_not_answer_as_a_server() {
    let (mut initiator, init_bytes) = start(Role::Member);
    let (as_server, _) = answer(&init_bytes, Role::Server, &NO_PSK);
    let refused = initiator.read(&response(&as_server), |_, _| Some(PSK)).map(|answer| answer.role);
    assert_eq!(refused, Err(HandshakeError::RoleMismatch));

    let (mut initiator, init_bytes) = start(Role::Any);
    let (mut relabelled, _) = answer(&init_bytes, Role::Member, &NO_PSK);
    relabelled[2] = Role::Server as u8;
    let refused =
        initiator.read(&response(&relabelled), |_, _| Some(PSK)).map(|answer| answer.role);
    assert_eq!(refused, Err(HandshakeError::RoleMismatch));
}

#[test]
fn no_bit_of_init_or_response_can_be_changed() {
    let (_, init_bytes) = start(Role::Member);
    for at in 8..INIT_LEN - 2 * MAC_LEN {
        let mut forged = init_bytes.clone();
        forged[at] ^= 0x10;
        let read = Responder::read(&bob(), &init(&forged), &mut rng(2));
        assert!(read.is_err(), "byte {at}");
    }
    let (response_bytes, _) = answer(&init_bytes, Role::Member, &PSK);
    for at in 12..response_bytes.len() - 2 * MAC_LEN {
        let (mut initiator, _) = start(Role::Member);
        let mut forged = response_bytes.clone();
        forged[at] ^= 0x10;
        assert!(initiator.read(&response(&forged), |_, _| Some(PSK)).is_err(), "byte {at}");
    }
}

#[test]
fn a_payload_that_does_not_fit_is_refused() {
    let large = InitPayload { network: vec![0; INIT_PAYLOAD_MOST], ..payload(Role::Member) };

    let refused = Initiator::start(&alice(), bob().keys().dh, Role::Member, 1, &large, &mut rng(1));

    assert_eq!(refused.map(|_| ()), Err(HandshakeError::TooLarge));
}

#[test]
fn keys_show_nothing_of_themselves() {
    let (init_bytes, keys) = (start(Role::Member).1, ());
    let ((), (_, keys)) = (keys, answer(&init_bytes, Role::Member, &PSK));

    assert_eq!(format!("{keys:?}"), "TransportKeys { suite: ChaCha20Poly1305, .. }");
}
