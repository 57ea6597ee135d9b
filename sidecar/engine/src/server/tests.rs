use session::identity::Identity;
use wire::{
    control::AEAD_CHACHA,
    stun::{Change, Message, TransactionId},
};

use super::*;
use crate::path::addr::SocketId;

const ASKER: &str = "203.0.113.7:40000";

/// A server with these sockets, numbered in their order.
fn server(sockets: &[&str], now: Instant) -> Server {
    let identity = Arc::new(Identity::from_bytes(&[3; 64]));
    let mut server = Server::new(Config::open(identity, AEAD_CHACHA, 0), [1; 32], now);
    let sockets = (0..).zip(sockets);
    let sockets = sockets
        .map(|(id, local)| Socket { id: SocketId(id), local: local.parse().unwrap() })
        .collect();
    server.handle_input(Input::Sockets(sockets), now);
    server
}

/// What goes out for a question: from which socket, to whom, and the bytes.
fn ask(server: &mut Server, socket: u16, bytes: &[u8], now: Instant) -> Vec<(u16, Vec<u8>)> {
    let remote = ASKER.parse().unwrap();
    let arrival = Arrival { hop: Hop::Udp { socket: SocketId(socket), remote }, via: None };
    server.handle_input(Input::Datagram { arrival, bytes }, now);
    sent(server)
}

fn sent(server: &mut Server) -> Vec<(u16, Vec<u8>)> {
    std::iter::from_fn(|| server.poll_transmit())
        .map(|transmit| {
            let Hop::Udp { socket, remote } = transmit.hop else { panic!("{transmit:?}") };
            assert_eq!(remote, ASKER.parse().unwrap(), "nobody else gets anything");
            (socket.0, transmit.bytes)
        })
        .collect()
}

fn question(change: Change, delay: u16) -> Vec<u8> {
    stun::request(TransactionId([9; 12]), change, delay)
}

#[test]
fn the_answer_comes_from_elsewhere_as_far_as_there_is_an_elsewhere() {
    let now = Instant::now();
    let one = ["0.0.0.0:11010", "[::]:11010", "0.0.0.0:11011", "[::]:11011"];
    let two = ["0.0.0.0:11010", "0.0.0.0:11011", "198.51.100.1:11012", "198.51.100.2:11013"];
    let port = Change { ip: false, port: true };
    let both = Change { ip: true, port: true };
    for (sockets, asked, change, expected) in [
        (&one, 0, Change::default(), Some(0)),
        (&one, 0, port, Some(2)),
        (&one, 1, port, Some(3)),
        (&one, 2, port, Some(0)),
        // It does not know its address, so it cannot know another one.
        (&one, 0, both, None),
        (&two, 2, both, Some(3)),
        (&two, 3, both, Some(2)),
        (&two, 0, both, None),
        (&two, 2, Change { ip: true, port: false }, None),
    ] {
        let answers = ask(&mut server(sockets, now), asked, &question(change, 0), now);

        let [(from, bytes)] = &answers[..] else { panic!("{answers:?}") };
        let message = Message::parse(bytes).unwrap();
        match expected {
            Some(socket) => assert_eq!((*from, message.error), (socket, None), "{change:?}"),
            None => {
                assert_eq!((*from, message.error), (asked, Some(420)), "{asked} {change:?}");
                assert!(message.mapped.is_none());
            }
        }
    }
}

#[test]
fn who_has_two_addresses_tells_of_the_other() {
    let now = Instant::now();
    let mut server = server(&["198.51.100.1:11012", "198.51.100.2:11013"], now);

    let answers = ask(&mut server, 0, &question(Change::default(), 0), now);

    let message = Message::parse(&answers[0].1).unwrap();
    assert_eq!(message.origin, Some("198.51.100.1:11012".parse().unwrap()));
    assert_eq!(message.other, Some("198.51.100.2:11013".parse().unwrap()));
}

#[test]
fn no_stun_answer_is_longer_than_its_question() {
    let now = Instant::now();
    let mut server = server(&["0.0.0.0:11010", "0.0.0.0:11011"], now);
    let mut bare = question(Change::default(), 0);
    bare.truncate(20);
    bare[2..4].copy_from_slice(&[0, 0]);
    assert!(Message::parse(&bare).is_some());
    assert_eq!(ask(&mut server, 0, &bare, now), []);

    for change in
        [Change::default(), Change { ip: false, port: true }, Change { ip: true, port: true }]
    {
        let question = question(change, 0);
        let answers = ask(&mut server, 0, &question, now);
        assert!(answers.len() == 1 && answers[0].1.len() <= question.len());
    }
}

#[test]
fn a_late_answer_comes_once_and_when_it_was_asked_for() {
    let now = Instant::now();
    let mut server = server(&["0.0.0.0:11010"], now);
    assert_eq!(ask(&mut server, 0, &question(Change::default(), 28), now), []);
    assert_eq!(ask(&mut server, 0, &question(Change::default(), 5), now), []);

    for (wait, expected) in [(4, 0), (5, 1), (27, 0), (28, 1), (300, 0)] {
        server.handle_timeout(now + Duration::from_secs(wait));
        assert_eq!(sent(&mut server).len(), expected, "after {wait} s");
    }
}

#[test]
fn late_answers_are_few_and_none_is_too_late() {
    let now = Instant::now();
    let mut server = server(&["0.0.0.0:11010"], now);
    ask(&mut server, 0, &question(Change::default(), 241), now);
    for _ in 0..MAX_LATE_PER_SOURCE + 4 {
        ask(&mut server, 0, &question(Change::default(), 10), now);
    }

    server.handle_timeout(now + Duration::from_secs(400));

    assert_eq!(sent(&mut server).len(), MAX_LATE_PER_SOURCE);
}
