use super::*;

const PACKET: [u8; 1350] = [0x84; 1350];

#[test]
fn a_full_queue_drops_the_newest_data_and_counts() {
    let queue = Queue::default();
    let room = (QUEUE_BOUND - CONTROL_RESERVE) / (PACKET.len() + 2);

    let sent = queue.push(Precedence::Data, (0..room + 10).map(|_| &PACKET[..]));

    assert_eq!(sent, Sent { queued: room, dropped: 10 });
    assert_eq!(queue.state(), QueueState { bytes: room * 1352, dropped: 10 });
}

#[test]
fn control_finds_room_when_data_has_none_and_leaves_first() {
    let queue = Queue::default();
    queue.push(Precedence::Data, (0..1000).map(|_| &PACKET[..]));

    let sent = queue.push(Precedence::Control, [&[0x81, 7][..]]);

    assert_eq!(sent.queued, 1);
    assert_eq!(queue.take(Vec::new()).unwrap(), [2, 0, 0x81, 7]);
}

#[test]
fn control_never_exceeds_the_bound_and_keeps_the_newest() {
    let queue = Queue::default();
    let count = QUEUE_BOUND / 1352 + 5;
    for number in 0..count {
        let mut message = PACKET;
        message[1..9].copy_from_slice(&number.to_le_bytes());
        assert_eq!(queue.push(Precedence::Control, [&message[..]]).queued, 1);
    }

    assert!(queue.state().bytes <= QUEUE_BOUND);
    assert_eq!(queue.state().dropped, 5);
    let all = queue.take(Vec::new()).unwrap();
    assert_eq!(all[all.len() - 1352 + 3..][..8], (count - 1).to_le_bytes());
}

#[test]
fn what_is_being_written_counts_until_it_is_written() {
    let queue = Queue::default();
    queue.push(Precedence::Data, [&PACKET[..]]);
    let chunk = queue.take(Vec::new()).unwrap();
    assert_eq!(queue.state().bytes, 1352);

    assert_eq!(queue.take(chunk), None);

    assert_eq!(queue.state().bytes, 0);
}

#[test]
fn data_leaves_in_chunks_that_control_can_overtake() {
    let queue = Queue::default();
    queue.push(Precedence::Data, (0..100).map(|_| &PACKET[..]));
    let first = queue.take(Vec::new()).unwrap();
    assert!(first.len() <= CHUNK && first.len() > CHUNK - 1352);

    queue.push(Precedence::Control, [&[0x81][..]]);

    assert_eq!(queue.take(first).unwrap(), [1, 0, 0x81]);
}

#[test]
fn what_cannot_be_framed_is_dropped() {
    let queue = Queue::default();
    let sent = queue.push(Precedence::Data, [&[][..], &[0x84; 20_000][..], &[0x84][..]]);
    assert_eq!(sent, Sent { queued: 1, dropped: 2 });
}
