use proptest::prelude::*;
use prost::Message;

use super::*;

#[test]
fn an_identity_has_known_bytes() {
    let identity = Identity {
        version: 1,
        network: vec![1; 16],
        sign: vec![2; 32],
        dh: vec![3; 32],
        serial: 4,
        not_before: 300,
        not_after: 0,
        capabilities: CAPABILITY_TRANSIT | 8,
        issuer: vec![5; 32],
    };

    let bytes = identity.encode_to_vec();

    let expected = [
        &[0x08, 1, 0x12, 16][..],
        &[1; 16],
        &[0x1a, 32],
        &[2; 32],
        &[0x22, 32],
        &[3; 32],
        &[0x28, 4, 0x30, 0xac, 0x02, 0x40, 9, 0x4a, 32],
        &[5; 32],
    ];
    assert_eq!(bytes, expected.concat());
    assert_eq!(Identity::decode(&bytes[..]), Ok(identity));
}

#[test]
fn a_body_is_carried_as_the_bytes_that_were_signed() {
    // An identity with a field 99 that we do not know: re-encoding would lose it.
    let signed = Signed { body: vec![0x08, 1, 0x98, 0x06, 7], signature: vec![9; 64] };

    let carried = Signed::decode(&signed.encode_to_vec()[..]).unwrap();

    assert_eq!(carried.body, [0x08, 1, 0x98, 0x06, 7]);
    assert_eq!(Identity::decode(&carried.body[..]).unwrap().version, 1);
}

#[test]
fn a_prefix_is_one_only_with_a_fitting_length() {
    let v4 = Prefix::new([10, 1, 0, 0].into(), 16);
    assert_eq!(v4.encode_to_vec(), [0x0a, 4, 10, 1, 0, 0, 0x10, 16]);
    assert_eq!(v4.parse(), Some(([10, 1, 0, 0].into(), 16)));
    assert_eq!(Prefix { length: 33, ..v4.clone() }.parse(), None);
    assert_eq!(Prefix { address: vec![1; 5], ..v4 }.parse(), None);
    assert_eq!(Prefix { address: vec![0; 16], length: 128 }.parse(), Some(([0u16; 8].into(), 128)));
    assert_eq!(Prefix { address: vec![0; 16], length: 300 }.parse(), None);
}

proptest! {
    #[test]
    fn nothing_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Signed::decode(&bytes[..]);
        let _ = Identity::decode(&bytes[..]);
        let _ = Attributes::decode(&bytes[..]);
        if let Ok(prefix) = Prefix::decode(&bytes[..]) {
            let _ = prefix.parse();
        }
    }
}
