use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::endpoint::Behaviour;

#[test]
fn records_have_known_bytes() {
    let known: [(Body, &[u8]); 6] = [
        (
            Body::Hello(Hello {
                seq: 1,
                sent_us: 300,
                attach_seq: 0,
                attach_digest: 2,
                follows: false,
            }),
            &[0x12, 14, 0x08, 1, 0x10, 0xac, 0x02, 0x21, 2, 0, 0, 0, 0, 0, 0, 0],
        ),
        (
            Body::Announce(Announce { heads: vec![lsa_head()] }),
            &[0x22, 19, 0x0a, 17, 0x0a, 2, 7, 8, 0x10, 2, 0x21, 3, 0, 0, 0, 0, 0, 0, 0, 0x28, 4],
        ),
        (
            Body::Push(Push { copies: vec![LsaCopy { age_s: 1, container: (&b"x"[..]).into() }] }),
            &[0x32, 7, 0x0a, 5, 0x08, 1, 0x12, 1, b'x'],
        ),
        (
            Body::Refused(Refused {
                reason: RefusedReason::NotAdmitted as i32,
                message: "no".into(),
                retry_s: 9,
            }),
            &[0x72, 8, 0x08, 3, 0x12, 2, b'n', b'o', 0x18, 9],
        ),
        (Body::Leave(Leave {}), &[0x82, 0x01, 0]),
        (Body::Rpc(vec![1, 2]), &[0xa2, 0x01, 2, 1, 2]),
    ];
    for (body, bytes) in known {
        let control = Control::from(body);
        assert_eq!(control.encode_to_vec(), bytes);
        assert_eq!(Control::decode(bytes), Ok(control));
    }
}

#[test]
fn every_record_comes_back_as_it_went() {
    for control in all() {
        let bytes = control.encode_to_vec();
        assert_eq!(Control::decode(&bytes[..]), Ok(control));
    }
    assert_eq!(all().len(), 21, "one of each");
}

#[test]
fn a_record_of_a_later_version_is_known_as_unknown() {
    // Field 99 with a message in it: a body that we have no name for.
    let bytes = [0x9a, 0x06, 2, 0x08, 1];
    assert_eq!(Control::decode(&bytes[..]), Ok(Control { body: None }));
}

#[test]
fn later_fields_inside_a_record_are_passed_over() {
    // HELLO with seq 1 and a field 15.
    let bytes = [0x12, 4, 0x08, 1, 0x78, 5];
    let hello = Hello { seq: 1, ..Hello::default() };
    assert_eq!(Control::decode(&bytes[..]), Ok(Body::Hello(hello).into()));
}

#[test]
fn a_full_init_payload_fits_init() {
    let endpoints = Endpoints {
        profile: Some(NatProfile {
            mapping: Behaviour::AddressPortDependent as i32,
            filtering: Behaviour::AddressPortDependent as i32,
            allocation: 4,
            allocation_first: 65_535,
            allocation_second: 65_535,
            hairpin: Some(true),
            lifetime_s: 100_000,
            clash_risk: true,
            external: vec![vec![0xff; 16]; 2],
            v6: 2,
            udp_blocked: true,
            port_mapped: true,
        }),
        candidates: vec![0xff; crate::endpoint::MAX_CANDIDATES * crate::endpoint::CANDIDATE_LEN],
        revision: u64::MAX,
    };
    let payload = InitPayload {
        network: vec![0xff; 16],
        certificate: Some(signed_identity()),
        aead: AEAD_AES | AEAD_CHACHA,
        freshness: u64::MAX,
        role: 1,
        endpoints: Some(endpoints),
        punch: true,
        capabilities: u32::MAX,
        sign: vec![0xff; 32],
        clock: 1 << 40,
        epoch: u32::MAX,
    };
    let room = crate::datagram::INIT_PAYLOAD_LEN - crate::datagram::TAG_LEN - 2;

    assert!(payload.encoded_len() <= room, "{} of {room}", payload.encoded_len());
}

proptest! {
    #[test]
    fn truncations_and_bit_flips_never_panic(which in any::<prop::sample::Index>(), bit in any::<prop::sample::Index>()) {
        let controls = all();
        let bytes = controls[which.index(controls.len())].encode_to_vec();
        for cut in 0..bytes.len() {
            let _ = Control::decode(&bytes[..cut]);
        }
        let bit = bit.index(bytes.len() * 8);
        let mut flipped = bytes;
        flipped[bit / 8] ^= 1 << (bit % 8);
        let _ = Control::decode(&flipped[..]);
    }

    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Control::decode(&bytes[..]);
        let _ = InitPayload::decode(&bytes[..]);
        let _ = ResponsePayload::decode(&bytes[..]);
    }
}

fn lsa_head() -> LsaHead {
    LsaHead { signer: vec![7, 8], kind: 2, id: 0, seq: 3, age_s: 4 }
}

fn signed_identity() -> Signed {
    let identity = crate::certificate::Identity {
        version: 1,
        network: vec![0xff; 16],
        sign: vec![0xff; 32],
        dh: vec![0xff; 32],
        serial: u64::MAX,
        not_before: 1 << 40,
        not_after: 1 << 40,
        capabilities: 15,
        issuer: vec![0xff; 32],
    };
    Signed { body: identity.encode_to_vec(), signature: vec![0xff; 64] }
}

/// One record of each kind, with something in each.
fn all() -> Vec<Control> {
    let hello = Hello { seq: 1, sent_us: 2, attach_seq: 3, attach_digest: 4, follows: true };
    let heads = vec![lsa_head(), lsa_head()];
    let endpoints = Endpoints { profile: None, candidates: vec![1; 19], revision: 2 };
    let punch = Punch {
        attempt: 1,
        endpoints: Some(endpoints.clone()),
        plan_hash: 3,
        starts_in_us: 100_000,
        again: true,
        fresh: vec![1; 19],
    };
    let ping = Ping { id: 1, sent_us: 2 };
    let bodies = [
        Body::Attributes(signed_identity()),
        Body::Hello(hello.clone()),
        Body::HelloAck(hello),
        Body::Announce(Announce { heads: heads.clone() }),
        Body::Pull(Pull { heads: heads.clone() }),
        Body::Push(Push { copies: vec![LsaCopy { age_s: 7, container: vec![9; 100].into() }] }),
        Body::Digest(Digest { root: 1, entries: 2 }),
        Body::Buckets(Buckets { digests: vec![1, 2, 3] }),
        Body::BucketHeads(BucketHeads { buckets: vec![1, 300], heads, reply: true }),
        Body::PunchRequest(punch.clone()),
        Body::PunchAck(punch),
        Body::Register(Register {
            network: vec![1; 16],
            root: vec![2; 32],
            certificate: Some(signed_identity()),
            signature: vec![3; 64],
            token: vec![4; 5],
            attach_seq: 6,
            attach_digest: 7,
        }),
        Body::Registered(Registered {
            rate_node: 1,
            rate_network: 2,
            lsa_bytes: 3,
            stun: vec![4; 18],
        }),
        Body::Refused(Refused { reason: 1, message: "no".into(), retry_s: 2 }),
        Body::Attach(Attach {
            changes: vec![AttachChange { node: vec![1; 16], up: true }],
            full: true,
            seq: 1,
            digest: 2,
            more: true,
        }),
        Body::Leave(Leave {}),
        Body::Drain(Drain { elsewhere: vec!["udp://a:1".into()], within_s: 3 }),
        Body::Ping(ping.clone()),
        Body::Pong(ping),
        Body::Rpc(vec![1, 2, 3]),
        Body::Endpoints(endpoints),
    ];
    bodies.into_iter().map(Control::from).collect()
}
