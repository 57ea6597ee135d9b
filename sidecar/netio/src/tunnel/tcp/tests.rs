use std::{net::Ipv4Addr, sync::Mutex};

use tokio::{
    io::AsyncReadExt,
    sync::{Notify, mpsc},
};

use super::*;
use crate::{
    task::TaskGroup,
    tunnel::{MAX_STRANGERS_PER_SOURCE, Precedence, QUEUE_BOUND, Sent, TunnelConfig, Tunnels},
};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

#[tokio::test]
async fn datagrams_cross_a_connection_whole_and_in_order() {
    let (mut server, mut client) = (Side::new(), Side::new());
    let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
    let id = client.tunnels.dial_tcp(addr).unwrap();
    let (to_server, remote) = client.up().await;
    assert_eq!((to_server, remote), (id, addr));
    let (to_client, _) = server.up().await;

    let datagrams: Vec<Vec<u8>> = (0..200_usize)
        .map(|n| [&[0x84][..], &n.to_le_bytes()[..], &vec![7; n * 61 % 9000][..]].concat())
        .collect();
    for batch in datagrams.chunks(16) {
        let sent =
            client.tunnels.try_send_batch(id, Precedence::Data, batch.iter().map(Vec::as_slice));
        assert_eq!(sent.dropped, 0);
        while client.tunnels.queue(id).unwrap().bytes > 0 {
            tokio::task::yield_now().await;
        }
    }
    server.tunnels.try_send(to_client, Precedence::Control, &[0x82, 1]);

    assert_eq!(server.received(200).await, datagrams);
    assert_eq!(client.received(1).await, [[0x82, 1]]);
}

#[tokio::test]
async fn a_reader_that_stops_makes_the_sender_drop_and_not_grow() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let mut client = Side::new();
    let id = client.tunnels.dial_tcp(listener.local_addr().unwrap()).unwrap();
    let (_stalled, _) = listener.accept().await.unwrap();
    client.up().await;

    let mut dropped = 0;
    for _ in 0..40_000 {
        dropped += client.tunnels.try_send(id, Precedence::Data, &[0x84; 1350]).dropped;
        tokio::task::yield_now().await;
    }

    assert!(dropped > 10_000, "the kernel took {} datagrams", 40_000 - dropped);
    let queue = client.tunnels.queue(id).unwrap();
    assert!(queue.bytes <= QUEUE_BOUND, "{} bytes queued", queue.bytes);
    assert_eq!(queue.dropped, dropped as u64);
    assert_eq!(client.tunnels.counters().dropped.load(Ordering::Relaxed), dropped as u64);
    let control = client.tunnels.try_send(id, Precedence::Control, &[0x85; 58]);
    assert_eq!(control, Sent { queued: 1, dropped: 0 });
}

#[tokio::test]
async fn garbage_closes_the_connection_and_is_counted() {
    for (garbage, reason) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], Malformed::TooLong),
        (&[0x16, 0x03, 0x01][..], Malformed::Foreign),
        (&[0x00, 0x00][..], Malformed::Empty),
        (&[0x01, 0x00, 0x84, 0xff, 0xff][..], Malformed::TooLong),
    ] {
        let mut server = Side::new();
        let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
        let mut stream = TcpStream::connect(addr).await.unwrap();
        stream.write_all(garbage).await.unwrap();
        server.up().await;

        assert_eq!(server.down().await, Closed::Malformed(reason));

        assert!(matches!(stream.read(&mut [0; 8]).await, Ok(0) | Err(_)));
        assert_eq!(server.tunnels.counters().malformed.load(Ordering::Relaxed), 1);
        assert!(server.tunnels.is_empty());
    }
}

#[tokio::test]
async fn frames_that_arrive_byte_by_byte_are_put_together() {
    let server = Side::new();
    let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    for byte in [3, 0, 0x84, 1, 2, 1, 0, 0x81] {
        stream.write_all(&[byte]).await.unwrap();
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    assert_eq!(server.received(2).await, [&[0x84, 1, 2][..], &[0x81][..]]);
}

#[tokio::test]
async fn one_source_cannot_take_every_place_for_strangers() {
    let mut server = Side::new();
    let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
    let mut streams = Vec::new();
    for _ in 0..MAX_STRANGERS_PER_SOURCE {
        streams.push(TcpStream::connect(addr).await.unwrap());
        server.up().await;
    }

    let mut refused = TcpStream::connect(addr).await.unwrap();
    assert!(matches!(refused.read(&mut [0; 8]).await, Ok(0) | Err(_)));
    assert_eq!(server.tunnels.counters().refused.load(Ordering::Relaxed), 1);

    // One that is no stranger any more makes room.
    let first = server.ids[0];
    server.tunnels.trust(first);
    let _admitted = TcpStream::connect(addr).await.unwrap();
    server.up().await;
}

#[tokio::test]
async fn a_stranger_is_shown_out_and_a_friend_is_not() {
    let stranger_timeout = Duration::from_millis(200);
    let mut server = Side::with(TunnelConfig { stranger_timeout, ..TunnelConfig::default() });
    let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
    let _stranger = TcpStream::connect(addr).await.unwrap();
    let (stranger, _) = server.up().await;
    let _friend = TcpStream::connect(addr).await.unwrap();
    let (friend, _) = server.up().await;
    server.tunnels.trust(friend);

    assert_eq!(server.down().await, Closed::Stranger);

    tokio::time::sleep(stranger_timeout * 2).await;
    assert!(server.tunnels.queue(stranger).is_none());
    assert!(server.tunnels.queue(friend).is_some());
}

#[tokio::test]
async fn a_dial_that_is_refused_ends_with_its_reason() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let mut client = Side::new();

    client.tunnels.dial_tcp(nobody).unwrap();

    assert_eq!(client.down().await, Closed::Unreachable(io::ErrorKind::ConnectionRefused));
    assert!(client.tunnels.is_empty());
}

#[tokio::test]
async fn dials_are_limited_and_the_places_come_back() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut client = Side::new();
    let ids: Vec<_> = (0..MAX_DIALS).map(|_| client.tunnels.dial_tcp(addr).unwrap()).collect();

    assert_eq!(client.tunnels.dial_tcp(addr), Err(Busy));

    for id in ids {
        client.tunnels.close(id);
    }
    for _ in 0..MAX_DIALS {
        client.down().await;
    }
    client.tunnels.dial_tcp(addr).unwrap();
}

#[tokio::test]
async fn closing_sends_what_is_queued_first() {
    let (mut server, mut client) = (Side::new(), Side::new());
    let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
    let id = client.tunnels.dial_tcp(addr).unwrap();
    client.up().await;
    for _ in 0..300 {
        client.tunnels.try_send(id, Precedence::Data, &[0x84; 1350]);
    }
    client.tunnels.close(id);

    assert_eq!(client.down().await, Closed::Local);
    server.up().await;
    assert_eq!(server.down().await, Closed::Remote);
    assert_eq!(server.received(300).await.len(), 300);
    assert!(client.tunnels.is_empty() && server.tunnels.is_empty());
}

#[tokio::test]
async fn what_is_sent_to_a_tunnel_that_is_gone_is_dropped() {
    let client = Side::new();
    let sent = client.tunnels.try_send(TunnelId(77), Precedence::Data, &[0x84]);
    assert_eq!(sent, Sent { queued: 0, dropped: 1 });
}

#[test]
fn an_address_and_a_network_of_64_are_one_source() {
    let source = |ip: &str| crate::tunnel::source(ip.parse().unwrap());
    assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:1"));
    assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
    assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
    assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
}

/// Accepting goes on when the process ran out of file descriptors: run again with few of them.
#[test]
fn accepting_survives_running_out_of_descriptors() {
    const FEW: &str = "EASYNET_TEST_FEW_DESCRIPTORS";
    if std::env::var_os(FEW).is_none() {
        let status = std::process::Command::new("prlimit")
            .args(["--nofile=40:40", "--"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "tunnel::tcp::tests::accepting_survives_running_out_of_descriptors"])
            .env(FEW, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let mut server = Side::new();
        let addr = server.tunnels.listen_tcp(LOOPBACK).unwrap();
        // An own end first: descriptors for it would be missing later.
        let socket = TcpSocket::new_v4().unwrap();
        let mut hoard = Vec::new();
        while let Ok(file) = std::fs::File::open("/dev/null") {
            hoard.push(file);
        }
        let _stream = socket.connect(addr).await.unwrap();
        while server.tunnels.counters().accept_errors.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }

        drop(hoard);

        server.up().await;
    });
}

/// One process's tunnels, with what they received.
struct Side {
    tunnels: Tunnels,
    events: mpsc::Receiver<TunnelEvent>,
    received: Arc<Mutex<Vec<Vec<u8>>>>,
    more: Arc<Notify>,
    ids: Vec<TunnelId>,
    group: TaskGroup,
}

impl Side {
    fn new() -> Self {
        Self::with(TunnelConfig::default())
    }

    fn with(config: TunnelConfig) -> Self {
        let received: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let more: Arc<Notify> = Arc::default();
        let (group, sink, told) = (TaskGroup::new("side"), received.clone(), more.clone());
        let handler = move |_: Hop, batch: &mut Batch<'_>| {
            batch.for_each(|datagram| sink.lock().unwrap().push(datagram.to_vec()));
            told.notify_one();
        };
        let (tunnels, events) = Tunnels::new(config, group.clone(), Arc::new(handler));
        Self { tunnels, events, received, more, ids: Vec::new(), group }
    }

    async fn up(&mut self) -> (TunnelId, SocketAddr) {
        match self.events.recv().await.unwrap() {
            TunnelEvent::Up { id, remote, .. } => {
                self.ids.push(id);
                (id, remote)
            }
            TunnelEvent::Down { reason, .. } => panic!("down: {reason:?}"),
        }
    }

    async fn down(&mut self) -> Closed {
        loop {
            if let TunnelEvent::Down { reason, .. } = self.events.recv().await.unwrap() {
                return reason;
            }
        }
    }

    async fn received(&self, count: usize) -> Vec<Vec<u8>> {
        while self.received.lock().unwrap().len() < count {
            self.more.notified().await;
        }
        std::mem::take(&mut *self.received.lock().unwrap())
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        self.group.cancel();
    }
}
