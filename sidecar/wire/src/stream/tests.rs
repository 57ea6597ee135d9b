use super::*;

#[test]
fn a_frame_is_a_length_and_a_datagram() {
    assert_eq!(header(&[0x84; 300]), Some([0x2c, 0x01]));

    let bytes = [3, 0, 0x84, 1, 2, 1, 0, 0x85, 9];

    assert_eq!(next(&bytes, 0), Frame::Whole(2..5));
    assert_eq!(next(&bytes, 5), Frame::Whole(7..8));
    assert_eq!(next(&bytes, 8), Frame::Partial);
}

#[test]
fn every_beginning_of_a_frame_is_partial() {
    let bytes = [3, 0, 0x84, 1, 2];
    for len in 0..bytes.len() {
        assert_eq!(next(&bytes[..len], 0), Frame::Partial, "of {len} bytes");
    }
}

#[test]
fn what_cannot_be_a_frame_is_told_early() {
    assert_eq!(next(&[0, 0], 0), Frame::Malformed(Malformed::Empty));
    assert_eq!(next(b"GET / HTTP/1.1", 0), Frame::Malformed(Malformed::TooLong));
    assert_eq!(next(&[0x16, 0x03, 0x01], 0), Frame::Malformed(Malformed::Foreign));
    assert_eq!(next(&[0x10, 0x00, 0xc0], 0), Frame::Malformed(Malformed::Foreign));
    assert_eq!(next(&[0x01, 0x40], 0), Frame::Malformed(Malformed::TooLong));
    assert_eq!(next(&[0x00, 0x40], 0), Frame::Partial);
}

#[test]
fn what_cannot_be_framed_has_no_header() {
    assert_eq!(header(&[]), None);
    assert_eq!(header(&[0x84; MAX_FRAME + 1]), None);
    assert_eq!(header(&[0x84; MAX_FRAME]), Some([0x00, 0x40]));
    assert_eq!(header(&[0x84; 70_000]), None);
}
