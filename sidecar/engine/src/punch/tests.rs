use rand_chacha::rand_core::SeedableRng;
use wire::endpoint::Behaviour;

use super::*;

const PEER: NodeId = NodeId([2; 16]);

fn cone() -> NatProfile {
    NatProfile {
        mapping: Behaviour::EndpointIndependent as i32,
        external: vec![vec![1]],
        ..NatProfile::default()
    }
}

fn candidates(addrs: &[&str]) -> Vec<Candidate> {
    addrs
        .iter()
        .map(|addr| Candidate {
            kind: CandidateKind::Reflexive,
            transport: Transport::Udp,
            addr: addr.parse().unwrap(),
        })
        .collect()
}

fn at(t0: Instant) -> Start {
    Start { t0, again: false, socket: None }
}

fn drain(coordinator: &mut Coordinator) -> Vec<Output> {
    std::iter::from_fn(|| coordinator.poll_output()).collect()
}

#[test]
fn nothing_is_sent_before_the_common_start_and_little_after() {
    let t0 = Instant::now();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut coordinator = Coordinator::new(t0);
    let theirs = NatProfile { external: vec![vec![2]], ..cone() };
    let addrs = candidates(&["198.51.100.1:1", "198.51.100.1:2", "127.0.0.1:3", "224.0.0.1:4"]);
    let ours = Side { profile: &cone(), candidates: &[] };

    let theirs = Side { profile: &theirs, candidates: &addrs };
    coordinator.start(PEER, ours, theirs, at(t0 + LINGER), t0);
    coordinator.handle_timeout(&mut rng, t0);
    assert_eq!(drain(&mut coordinator), [Output::Started { peer: PEER, strategy: Strategy::Cone }]);

    let mut probes = 0;
    while let Some(at) = coordinator.poll_timeout() {
        coordinator.handle_timeout(&mut rng, at);
        let outputs = drain(&mut coordinator);
        probes += outputs.iter().filter(|output| matches!(output, Output::Probe { .. })).count();
        if outputs.iter().any(|output| matches!(output, Output::Ended { direct: false, .. })) {
            break;
        }
        assert!(at >= t0 + LINGER);
    }
    assert_eq!(probes, 2 * SCHEDULE_MS.len());
}

#[test]
fn an_address_that_comes_while_an_attempt_runs_gets_the_whole_schedule() {
    let t0 = Instant::now();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut coordinator = Coordinator::new(t0);
    let theirs = NatProfile { external: vec![vec![2]], ..cone() };
    let (first, both) = (["198.51.100.1:1"], ["198.51.100.1:1", "198.51.100.1:2"]);
    let ours = Side { profile: &cone(), candidates: &[] };
    for addrs in [&first[..], &both[..]] {
        let candidates = candidates(addrs);
        let theirs = Side { profile: &theirs, candidates: &candidates };
        coordinator.start(PEER, ours, theirs, at(t0), t0);
    }

    coordinator.handle_timeout(&mut rng, t0 + LINGER);

    let mut probes = BTreeMap::<SocketAddr, usize>::new();
    for output in drain(&mut coordinator) {
        if let Output::Probe { to, .. } = output {
            *probes.entry(to).or_default() += 1;
        }
    }
    assert_eq!(probes.into_values().collect::<Vec<_>>(), [SCHEDULE_MS.len(); 2]);
}

#[test]
fn failures_are_repeated_ever_more_rarely() {
    let t0 = Instant::now();
    let mut now = t0;
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut coordinator = Coordinator::new(t0);
    coordinator.want(PEER, &mut rng, now);
    let mut requests = Vec::new();
    while requests.len() < 6 {
        now = coordinator.poll_timeout().unwrap();
        coordinator.handle_timeout(&mut rng, now);
        if drain(&mut coordinator).contains(&Output::Request { peer: PEER, again: false }) {
            requests.push((now - t0).as_secs());
        }
    }

    let gaps: Vec<u64> = requests.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (gap, expected) in gaps.iter().zip([2, 5, 15, 60, 300]) {
        assert!((expected * 4 / 5 - 1..=expected * 6 / 5 + 1).contains(gap), "{gaps:?}");
    }
}

#[test]
fn success_ends_the_attempt_and_forgets_the_failures() {
    let t0 = Instant::now();
    let mut coordinator = Coordinator::new(t0);
    let addrs = candidates(&["198.51.100.1:1"]);
    let side = Side { profile: &cone(), candidates: &addrs };
    coordinator.start(PEER, side, side, at(t0), t0);
    drain(&mut coordinator);

    coordinator.succeeded(PEER, t0 + Duration::from_millis(40));

    let took = Duration::from_millis(40);
    assert_eq!(
        drain(&mut coordinator),
        [Output::Ended { peer: PEER, strategy: Strategy::Lan, direct: true, took }]
    );
    assert_eq!(coordinator.poll_timeout(), None);
}

#[test]
fn what_comes_after_a_failed_attempt_goes_out_of_a_new_port_behind_two_openers() {
    let t0 = Instant::now();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut coordinator = Coordinator::new(t0);
    let theirs = NatProfile { external: vec![vec![2]], ..cone() };
    let addrs = candidates(&["198.51.100.1:1", "[2001:db8::1]:1"]);
    let ours = Side { profile: &cone(), candidates: &[] };
    let theirs = Side { profile: &theirs, candidates: &addrs };
    coordinator.start(PEER, ours, theirs, at(t0), t0);
    let mut now = t0;
    let request = Output::Request { peer: PEER, again: true };
    while !drain(&mut coordinator).contains(&request) {
        now = coordinator.poll_timeout().unwrap();
        coordinator.handle_timeout(&mut rng, now);
    }

    let socket = Some(SocketId(9));
    coordinator.start(PEER, ours, theirs, Start { t0: now, again: true, socket }, now);

    let mut sent = Vec::new();
    let began = now;
    while now < began + Duration::from_millis(140) {
        for output in drain(&mut coordinator) {
            if let Output::Probe { to, ttl, socket, .. } = output {
                sent.push(((now - began).as_millis(), to.port(), to.is_ipv4(), ttl, socket));
            }
        }
        now = coordinator.poll_timeout().unwrap().max(now);
        coordinator.handle_timeout(&mut rng, now);
    }
    let usual = None;
    assert_eq!(
        sent,
        [
            (0, 1, true, Some(2), socket),
            (50, 1, true, Some(4), socket),
            (100, 1, true, None, socket),
            (100, 1, false, None, usual),
            (120, 1, true, None, socket),
            (120, 1, false, None, usual),
        ]
    );
}

#[test]
fn an_attempt_that_was_asked_for_counts_as_one_failure() {
    let t0 = Instant::now();
    let mut now = t0;
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut coordinator = Coordinator::new(t0);
    let addrs = candidates(&["198.51.100.1:1"]);
    let side = Side { profile: &cone(), candidates: &addrs };
    coordinator.want(PEER, &mut rng, now);
    let mut waits = Vec::new();
    let mut ended = now;
    while waits.len() < 4 {
        now = coordinator.poll_timeout().unwrap().max(now);
        coordinator.handle_timeout(&mut rng, now);
        for output in drain(&mut coordinator) {
            match output {
                Output::Request { .. } => {
                    waits.push((now - ended).as_secs_f64().round());
                    coordinator.start(PEER, side, side, at(now), now);
                }
                Output::Ended { .. } => ended = now,
                Output::Probe { .. } | Output::Started { .. } => {}
            }
        }
    }

    for (wait, expected) in waits.iter().zip([0.0, 2.0, 5.0, 15.0]) {
        assert!((expected * 0.8 - 0.5..=expected * 1.2 + 0.5).contains(wait), "{waits:?}");
    }
}

#[test]
fn neighbours_try_the_nat_itself_unless_it_is_known_to_turn_nothing_back() {
    let t0 = Instant::now();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut addrs = candidates(&["198.51.100.1:1", "192.168.1.3:1"]);
    addrs[1].kind = CandidateKind::Host;
    for (hairpin, expected) in [(None, 2), (Some(true), 2), (Some(false), 1)] {
        let mut coordinator = Coordinator::new(t0);
        let theirs = NatProfile { hairpin, ..cone() };
        let ours = Side { profile: &cone(), candidates: &[] };
        let theirs = Side { profile: &theirs, candidates: &addrs };
        coordinator.start(PEER, ours, theirs, at(t0), t0);

        coordinator.handle_timeout(&mut rng, t0 + LINGER);

        let tried: BTreeSet<SocketAddr> = drain(&mut coordinator)
            .into_iter()
            .filter_map(|output| match output {
                Output::Probe { to, .. } => Some(to),
                Output::Request { .. } | Output::Started { .. } | Output::Ended { .. } => None,
            })
            .collect();
        assert_eq!(tried.len(), expected, "{hairpin:?}: {tried:?}");
    }
}
