use rand_chacha::rand_core::SeedableRng;
use wire::stun;

use super::*;

const MAIN: &str = "192.0.2.1:11010";
const SECOND: &str = "192.0.2.1:11011";
const ELSEWHERE: &str = "192.0.2.2:11012";
const WAN: &str = "198.51.100.1";

/// A NAT, as far as it can be told apart by asking.
#[derive(Clone, Copy)]
struct Nat {
    filtering: Behaviour,
    hairpin: bool,
    /// It gives the port away when an answer comes that it does not let in.
    leaky: bool,
    remembers: Duration,
}

const PLAIN: Nat = Nat {
    filtering: Behaviour::AddressPortDependent,
    hairpin: false,
    leaky: false,
    remembers: Duration::from_secs(120),
};

/// Servers and the network before them.
struct Bench {
    tests: Tests,
    rng: ChaCha12Rng,
    now: Instant,
    nat: Nat,
    /// Answers on their way, and questions turned back, by when they arrive.
    coming: Vec<(Instant, SocketAddr, Vec<u8>)>,
    asked: Vec<(Duration, SocketAddr, SocketId)>,
    began: Instant,
}

impl Bench {
    fn new(nat: Nat) -> Self {
        let now = Instant::now();
        let rng = ChaCha12Rng::from_seed([1; 32]);
        let (coming, asked) = (Vec::new(), Vec::new());
        Self { tests: Tests::default(), rng, now, nat, coming, asked, began: now }
    }

    fn servers(second: bool, other: bool) -> Servers {
        let second = second.then(|| SECOND.parse().unwrap());
        Servers { main: MAIN.parse().unwrap(), second, has_other_address: other }
    }

    /// Runs to the end; what peers are told then.
    fn run(&mut self, servers: Servers) -> NatProfile {
        self.tests.start(servers, false, self.now);
        for _ in 0..500 {
            self.turn();
            let arrives = self.coming.iter().map(|(at, ..)| *at).min();
            let Some(next) = [self.tests.poll_timeout(), arrives].into_iter().flatten().min()
            else {
                let mut profile = NatProfile::default();
                self.tests.describe(&mut profile);
                return profile;
            };
            self.now = self.now.max(next);
        }
        panic!("it never ends: {:?}", self.tests);
    }

    fn turn(&mut self) {
        while let Some(output) = self.tests.poll_output() {
            if let Output::Open { open } = output {
                let index = OPEN.iter().position(|own| *own == open).unwrap() as u16;
                let local = ([0, 0, 0, 0], 4000 + index).into();
                let socket = Socket { id: SocketId(index), local };
                assert!(self.tests.opened(open, Some(socket), self.now));
            }
        }
        let due: Vec<_> = self.coming.extract_if(.., |(at, ..)| *at <= self.now).collect();
        for (_, from, bytes) in due {
            self.tests.heard(&Message::parse(&bytes).unwrap(), from, self.now);
        }
        let (asks, _) = self.tests.handle_timeout(true, &mut self.rng, self.now);
        for ask in asks {
            self.asked.push((self.now - self.began, ask.to, ask.socket));
            self.carry(&ask);
        }
    }

    /// What becomes of a question.
    fn carry(&mut self, ask: &Ask) {
        let question = Message::parse(&ask.bytes).unwrap();
        let arrives = self.now + Duration::from_millis(40);
        let seen = |port: u16| SocketAddr::new(WAN.parse().unwrap(), port);
        if ask.to.ip() == seen(0).ip() {
            if self.nat.hairpin {
                self.coming.push((arrives, seen(5000 + ask.socket.0), ask.bytes.clone()));
            }
            return;
        }
        let (from, passes) = match question.change {
            Change { ip: false, port: false } => (ask.to, true),
            Change { ip: false, port: true } => {
                (SECOND.parse().unwrap(), self.nat.filtering != Behaviour::AddressPortDependent)
            }
            Change { ip: true, .. } => {
                (ELSEWHERE.parse().unwrap(), self.nat.filtering == Behaviour::EndpointIndependent)
            }
        };
        let delay = Duration::from_secs(question.delay.into());
        if passes && delay < self.nat.remembers {
            let spoilt = self.nat.leaky && ask.to == SECOND.parse().unwrap();
            let port = if spoilt { 6000 } else { 5000 + ask.socket.0 };
            let answer = stun::answer(&question, seen(port), None, None);
            self.coming.push((arrives + delay, from, answer));
        }
    }
}

#[test]
fn each_filter_is_told_from_the_others() {
    use Behaviour::{AddressDependent, AddressPortDependent, EndpointIndependent};
    for filtering in [AddressPortDependent, AddressDependent, EndpointIndependent] {
        let mut bench = Bench::new(Nat { filtering, ..PLAIN });

        let profile = bench.run(Bench::servers(true, true));

        assert_eq!(profile.filtering(), filtering);
        assert!(!profile.clash_risk);
    }
}

#[test]
fn one_address_cannot_tell_whether_another_would_pass() {
    let mut bench = Bench::new(Nat { filtering: Behaviour::EndpointIndependent, ..PLAIN });

    let profile = bench.run(Bench::servers(true, false));

    assert_eq!(profile.filtering(), Behaviour::AddressDependent, "that much is sure");
}

#[test]
fn a_server_without_a_second_port_leaves_the_filter_unknown() {
    let mut bench = Bench::new(PLAIN);

    let profile = bench.run(Bench::servers(false, false));

    assert_eq!(profile.filtering(), Behaviour::Unknown);
    assert_eq!(profile.hairpin, Some(false));
}

#[test]
fn a_port_that_an_unasked_packet_costs_is_a_risk() {
    let mut bench = Bench::new(Nat { leaky: true, ..PLAIN });

    let profile = bench.run(Bench::servers(true, false));

    assert!(profile.clash_risk);
}

#[test]
fn what_comes_back_from_the_nat_itself_is_a_hairpin() {
    for hairpin in [true, false] {
        let mut bench = Bench::new(Nat { hairpin, ..PLAIN });

        assert_eq!(bench.run(Bench::servers(true, false)).hairpin, Some(hairpin));
    }
}

#[test]
fn the_lifetime_is_the_longest_time_that_was_survived_and_little_is_asked_for_it() {
    for (remembers, lifetime) in [(300, 112), (60, 56), (30, 28), (20, 14), (10, 7), (5, 0)] {
        let mut bench = Bench::new(Nat { remembers: Duration::from_secs(remembers), ..PLAIN });

        let profile = bench.run(Bench::servers(true, false));

        assert_eq!(profile.lifetime_s, lifetime, "of {remembers} s");
        assert!(bench.asked.len() < 40, "{} questions", bench.asked.len());
        assert_eq!(bench.tests.sockets, [None, None], "all are closed");
    }
}

#[test]
fn nothing_is_asked_again_within_the_hour_but_of_a_better_server_or_behind_another_nat() {
    let mut bench = Bench::new(PLAIN);
    bench.run(Bench::servers(false, false));
    let asked = bench.asked.len();
    bench.run(Bench::servers(false, false));
    assert_eq!(bench.asked.len(), asked);

    bench.run(Bench::servers(true, false));
    assert!(bench.asked.len() > asked, "this one can tell more");

    let asked = bench.asked.len();
    bench.tests.start(Bench::servers(true, false), true, bench.now);
    bench.run(Bench::servers(true, false));
    assert!(bench.asked.len() > asked, "behind another NAT");
}

#[test]
fn no_answer_and_no_socket_end_a_run_too() {
    let mut silent = Bench::new(PLAIN);
    silent.nat.remembers = Duration::ZERO;
    let profile = silent.run(Bench::servers(true, true));
    assert_eq!((profile.filtering(), profile.hairpin), (Behaviour::Unknown, None));

    let mut bench = Bench::new(PLAIN);
    bench.tests.start(Bench::servers(true, true), false, bench.now);
    while let Some(output) = bench.tests.poll_output() {
        if let Output::Open { open } = output {
            bench.tests.opened(open, None, bench.now);
        }
    }
    bench.turn();
    assert_eq!(bench.tests.poll_timeout(), None);
}
