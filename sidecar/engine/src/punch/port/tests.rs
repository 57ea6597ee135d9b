use rand_chacha::rand_core::SeedableRng;
use wire::stun;

use super::*;

const PEER: NodeId = NodeId([2; 16]);
const SERVER: &str = "192.0.2.1:11010";

struct Bench {
    ports: Ports,
    rng: ChaCha12Rng,
    now: Instant,
}

impl Bench {
    fn new() -> Self {
        Self { ports: Ports::default(), rng: ChaCha12Rng::from_seed([1; 32]), now: Instant::now() }
    }

    fn open(&mut self, open: u32, socket: Option<u16>) {
        let socket =
            socket.map(|id| Socket { id: SocketId(id), local: ([0, 0, 0, 0], 40_000 + id).into() });
        let servers = [SERVER.parse().unwrap()].into_iter();
        self.ports.opened(open, socket, servers, &mut self.rng, self.now);
    }

    fn outputs(&mut self) -> Vec<Output> {
        std::iter::from_fn(|| self.ports.poll_output()).collect()
    }

    /// Lets time pass until something is put out.
    fn next(&mut self) -> Vec<Output> {
        while let Some(at) = self.ports.poll_timeout() {
            self.now = at.max(self.now);
            self.ports.handle_timeout(self.now);
            let outputs = self.outputs();
            if !outputs.is_empty() {
                return outputs;
            }
        }
        Vec::new()
    }

    /// A port that was prepared, opened and answered for.
    fn ready(&mut self) -> Port {
        self.ports.prepare(PEER, Purpose::Request, self.now);
        self.open(0, Some(7));
        let outputs = self.outputs();
        let [Output::Open { open: 0 }, Output::Ask(ask)] = &outputs[..] else {
            panic!("{outputs:?}")
        };
        assert_eq!((ask.socket, ask.to), (SocketId(7), SERVER.parse().unwrap()));
        let question = Message::parse(&ask.bytes).unwrap();
        let seen = "198.51.100.1:40007".parse().unwrap();
        let answer = stun::answer(&question, seen, None, None);
        assert!(self.ports.answered(&Message::parse(&answer).unwrap(), ask.to, self.now));
        let ready = Output::Ready { peer: PEER, purpose: Purpose::Request };
        assert_eq!(self.outputs(), [ready]);
        self.ports.of(PEER).unwrap()
    }
}

#[test]
fn the_peer_is_told_once_the_nat_s_mapping_of_the_port_is_known() {
    let mut bench = Bench::new();

    let port = bench.ready();

    let mapped = Some("198.51.100.1:40007".parse().unwrap());
    assert_eq!(port, Port { socket: SocketId(7), number: 40_007, mapped });
}

#[test]
fn a_port_that_nothing_came_of_is_looked_at_two_seconds_after_its_attempt() {
    let mut bench = Bench::new();
    bench.ready();
    let ended = bench.now;

    bench.ports.over(PEER, ended);
    assert_eq!(bench.ports.of(PEER), None, "the next attempt takes another one");

    let idle = Output::Idle { open: 0, peer: PEER, socket: SocketId(7) };
    assert_eq!(bench.next(), std::slice::from_ref(&idle));
    assert_eq!(bench.now, ended + CLOSED_AFTER);
    // Kept for its path, it is looked at again; closed, it is forgotten.
    assert_eq!(bench.next(), [idle]);
    bench.ports.closed(0);
    assert!(bench.ports.is_empty());
    assert_eq!(bench.ports.poll_timeout(), None);
}

#[test]
fn without_an_answer_the_peer_is_told_all_the_same() {
    let mut bench = Bench::new();
    bench.ports.prepare(PEER, Purpose::Request, bench.now);
    bench.open(0, Some(7));
    let began = bench.now;
    bench.outputs();

    let mut outputs = Vec::new();
    while !outputs.iter().any(|output| matches!(output, Output::Ready { .. })) {
        outputs = bench.next();
    }

    assert_eq!(bench.now, began + ASKED_WITHIN);
    assert_eq!(bench.ports.of(PEER).unwrap().mapped, None);
}

#[test]
fn without_a_descriptor_the_attempt_goes_on_from_the_usual_port() {
    let mut bench = Bench::new();
    bench.ports.prepare(PEER, Purpose::Request, bench.now);
    bench.outputs();

    bench.open(0, None);

    assert_eq!(bench.outputs(), [Output::Ready { peer: PEER, purpose: Purpose::Request }]);
    assert_eq!(bench.ports.of(PEER), None);
    assert!(bench.ports.is_empty());
}

#[test]
fn a_socket_that_comes_too_late_is_closed() {
    let mut bench = Bench::new();
    bench.ports.prepare(PEER, Purpose::Request, bench.now);
    bench.outputs();
    assert_eq!(bench.next(), [Output::Ready { peer: PEER, purpose: Purpose::Request }]);

    bench.open(0, Some(7));

    assert_eq!(bench.outputs(), [Output::Close { socket: SocketId(7) }]);
    assert!(bench.ports.is_empty());
}

#[test]
fn ports_are_bounded_whatever_peers_ask_for() {
    let mut bench = Bench::new();
    for number in 0..=MAX_PORTS as u8 {
        let purpose = Purpose::Answer { attempt: 1, fresh: Vec::new() };
        bench.ports.prepare(NodeId([number; 16]), purpose, bench.now);
    }

    let outputs = bench.outputs();

    let opened = outputs.iter().filter(|output| matches!(output, Output::Open { .. })).count();
    assert_eq!((opened, bench.ports.len()), (MAX_PORTS, MAX_PORTS));
    let last = NodeId([MAX_PORTS as u8; 16]);
    assert!(matches!(outputs.last(), Some(Output::Ready { peer, .. }) if *peer == last));
}

#[test]
fn a_request_that_crosses_ours_takes_over_the_port() {
    let mut bench = Bench::new();
    bench.ports.prepare(PEER, Purpose::Request, bench.now);
    assert!(bench.ports.asks(PEER, bench.now));

    let answer = Purpose::Answer { attempt: 1, fresh: Vec::new() };
    bench.ports.prepare(PEER, answer.clone(), bench.now);
    bench.open(0, None);

    assert!(!bench.ports.asks(PEER, bench.now));
    let open = Output::Open { open: 0 };
    assert_eq!(bench.outputs(), [open, Output::Ready { peer: PEER, purpose: answer }]);
}

#[test]
fn an_answer_that_is_being_prepared_is_not_given_up_for_a_request() {
    let mut bench = Bench::new();
    let answer = Purpose::Answer { attempt: 1, fresh: Vec::new() };
    bench.ports.prepare(PEER, answer.clone(), bench.now);

    bench.ports.prepare(PEER, Purpose::Request, bench.now);
    bench.open(0, None);

    assert!(!bench.ports.asks(PEER, bench.now));
    let open = Output::Open { open: 0 };
    assert_eq!(bench.outputs(), [open, Output::Ready { peer: PEER, purpose: answer }]);
}
