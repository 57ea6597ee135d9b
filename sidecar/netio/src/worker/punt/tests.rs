use engine::path::addr::{Hop, SocketId};

use super::*;

#[test]
fn user_packets_leave_room_for_control() {
    let (sender, receiver) = queue();
    let packet = [0; 1400];
    let peer = NodeId([1; 16]);
    let mut queued = 0;
    while sender.push(Punt::NoSession { peer, packet: &packet }).is_ok() {
        queued += 1;
    }

    assert!(queued * (1400 + ENTRY) <= DATA_BOUND);
    assert_eq!(sender.push(Punt::NoSession { peer, packet: &packet }), Err(DropReason::PuntFull));
    assert_eq!(sender.push(Punt::Active { peer }), Ok(()));

    assert_eq!(receiver.take().len(), queued + 1);
    assert_eq!(receiver.len_bytes(), (0, 0));
    assert_eq!(sender.push(Punt::NoSession { peer, packet: &packet }), Ok(()));
}

#[test]
fn one_source_cannot_take_the_queue_from_others() {
    let (sender, receiver) = queue();
    let flood = Punt::Raw { arrival: from("192.0.2.1:1"), bytes: &[0x85] };
    let admitted = (0..5000).filter(|_| sender.push(flood).is_ok()).count() as u64;
    assert!((SOURCE_BURST..2 * SOURCE_BURST).contains(&admitted), "{admitted}");
    receiver.take();

    let others = (2..100u8)
        .filter(|host| {
            let arrival = from(&format!("192.0.2.{host}:1"));
            sender.push(Punt::Raw { arrival, bytes: &[0x85] }).is_ok()
        })
        .count();

    // Some may share the flooder's slot.
    assert!(others > 90, "{others}");
}

#[test]
fn stale_data_does_not_use_up_what_handshakes_need() {
    let (sender, _receiver) = queue();
    let arrival = from("192.0.2.1:1");
    let stale =
        (0..100).filter(|_| sender.push(Punt::Raw { arrival, bytes: &[TYPE_DATA] }).is_ok());
    assert!(stale.count() < 10);

    assert_eq!(sender.push(Punt::Raw { arrival, bytes: &[0x81] }), Ok(()));
}

#[test]
fn a_flood_of_strangers_leaves_room_for_the_records_of_sessions() {
    let (sender, _receiver) = queue();
    let init = vec![0x81; 1144];
    let mut full = 0;
    for source in 0..2000_u32 {
        let arrival = from(&format!("192.0.{}.{}:1", source / 256, source % 256));
        let pushed = sender.push(Punt::Raw { arrival, bytes: &init });
        full += u32::from(pushed == Err(DropReason::PuntFull));
    }
    assert!(full > 1000, "{full}");

    let arrival = from("198.51.100.1:1");
    let record = Punt::Opened { arrival, session: 7, kind: Kind::Control, plaintext: &[0; 1000] };
    let records = (0..100).filter(|_| sender.push(record).is_ok()).count();

    assert_eq!(records, 100);
}

#[tokio::test]
async fn the_driver_is_woken_and_takes_all_in_order() {
    let (sender, receiver) = queue();
    let peer = |number| NodeId([number; 16]);
    let pushed = tokio::task::spawn_blocking(move || {
        sender.push(Punt::Active { peer: peer(1) }).unwrap();
        sender.push(Punt::Active { peer: peer(2) }).unwrap();
    });

    let mut punts = receiver.receive().await;
    pushed.await.unwrap();
    punts.extend(receiver.take());

    assert_eq!(punts, [Punted::Active { peer: peer(1) }, Punted::Active { peer: peer(2) }]);
}

fn from(remote: &str) -> Arrival {
    let hop = Hop::Udp { socket: SocketId(0), remote: remote.parse().unwrap() };
    Arrival { hop, via: None }
}
