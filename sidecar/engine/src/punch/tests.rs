use rand_chacha::rand_core::SeedableRng;
use wire::endpoint::Behaviour;

use super::*;

const ME: NodeId = NodeId([1; 16]);
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

fn drain(coordinator: &mut Coordinator) -> Vec<Output> {
    std::iter::from_fn(|| coordinator.poll_output()).collect()
}

#[test]
fn nothing_is_sent_before_the_common_start_and_little_after() {
    let t0 = Instant::now();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut coordinator = Coordinator::new(ME, t0);
    let theirs = NatProfile { external: vec![vec![2]], ..cone() };
    let addrs = candidates(&["198.51.100.1:1", "198.51.100.1:2", "127.0.0.1:3", "224.0.0.1:4"]);
    let ours = Side { profile: &cone(), candidates: &[] };

    coordinator.start(PEER, ours, Side { profile: &theirs, candidates: &addrs }, t0 + LINGER, t0);
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
    let mut coordinator = Coordinator::new(ME, t0);
    let theirs = NatProfile { external: vec![vec![2]], ..cone() };
    let (first, both) = (["198.51.100.1:1"], ["198.51.100.1:1", "198.51.100.1:2"]);
    let ours = Side { profile: &cone(), candidates: &[] };
    for addrs in [&first[..], &both[..]] {
        let candidates = candidates(addrs);
        let theirs = Side { profile: &theirs, candidates: &candidates };
        coordinator.start(PEER, ours, theirs, t0, t0);
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
    let mut coordinator = Coordinator::new(ME, t0);
    coordinator.want(PEER, &mut rng, now);
    let mut requests = Vec::new();
    while requests.len() < 6 {
        now = coordinator.poll_timeout().unwrap();
        coordinator.handle_timeout(&mut rng, now);
        if drain(&mut coordinator).contains(&Output::Request { peer: PEER }) {
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
    let mut coordinator = Coordinator::new(ME, t0);
    let addrs = candidates(&["198.51.100.1:1"]);
    let side = Side { profile: &cone(), candidates: &addrs };
    coordinator.start(PEER, side, side, t0, t0);
    drain(&mut coordinator);

    coordinator.succeeded(PEER, t0 + Duration::from_millis(40));

    let took = Duration::from_millis(40);
    assert_eq!(
        drain(&mut coordinator),
        [Output::Ended { peer: PEER, strategy: Strategy::Lan, direct: true, took }]
    );
    assert_eq!(coordinator.poll_timeout(), None);
}
