use std::net::Ipv4Addr;

use arc_swap::ArcSwap;
use engine::fib::Fib;
use wire::{datagram::Whois, id::NodeId};

use super::*;
use crate::udp::UdpSockets;

#[tokio::test]
async fn a_worker_without_tun_reads_sockets_that_come_later_and_ends_with_its_group() {
    let group = TaskGroup::new("test");
    let sockets = Arc::new(UdpSockets::new(None));
    let (punts, receiver) = punt::queue();
    let fib = Arc::new(ArcSwap::from_pointee(Fib::new(NodeId([1; 16]), Instant::now(), 1320)));
    let plane = Arc::new(Plane::new(fib, None, sockets.clone(), punts));
    Worker::spawn(plane, 0, &group).unwrap();

    for txid in 0..3 {
        let socket = sockets.bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        let asker = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let question = Whois::ask(txid);
        asker.send_to(&question, socket.local()).unwrap();

        let punts = receiver.receive().await;

        let remote = asker.local_addr().unwrap();
        let [Punted::Raw { arrival, bytes }] = &punts[..] else { panic!("{punts:?}") };
        assert_eq!(arrival.hop, Hop::Udp { socket: socket.id(), remote });
        assert_eq!(bytes[..], question);
        sockets.close(socket.id());
    }

    group.cancel();
    group.join(Duration::from_secs(5)).await.unwrap();
}

#[tokio::test]
async fn a_worker_that_always_has_something_to_do_reads_sockets_that_come_later_too() {
    let sockets = Arc::new(UdpSockets::new(None));
    let (punts, receiver) = punt::queue();
    let fib = Arc::new(ArcSwap::from_pointee(Fib::new(NodeId([1; 16]), Instant::now(), 1320)));
    let mut worker = Worker::new(Arc::new(Plane::new(fib, None, sockets.clone(), punts))).unwrap();
    let local = || (Ipv4Addr::LOCALHOST, 0).into();
    let busy = sockets.bind(local()).unwrap();
    let asker = std::net::UdpSocket::bind::<std::net::SocketAddr>(local()).unwrap();
    let mut go_on = |turns: u32| {
        for _ in 0..turns {
            asker.send_to(b"nothing of ours", busy.local()).unwrap();
            worker.advance().unwrap();
        }
    };
    go_on(BUSY_TURNS);

    let fresh = sockets.bind(local()).unwrap();
    asker.send_to(&Whois::ask(7), fresh.local()).unwrap();
    go_on(4 * BUSY_TURNS);

    let punts = tokio::time::timeout(Duration::from_secs(1), receiver.receive()).await.unwrap();
    let of_fresh = |punt: &Punted| {
        matches!(punt, Punted::Raw { arrival, .. }
            if matches!(arrival.hop, Hop::Udp { socket, .. } if socket == fresh.id()))
    };
    assert!(punts.iter().any(of_fresh), "{punts:?}");
}
