use rand_chacha::rand_core::SeedableRng;

use super::*;

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

/// Runs one round against servers that see us as `see` says.
fn discover(
    port: u16,
    local: &str,
    servers: &[&str],
    see: impl Fn(SocketAddr) -> Option<&'static str>,
) -> Discovery {
    let mut now = Instant::now();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    let mut discovery = Discovery::default();
    discovery.set_socket(Family::V4, SocketId(0), port, now);
    let interface = Interface {
        name: "eth0".into(),
        mtu: 1500,
        addresses: vec![format!("{local}/24").parse().unwrap()],
    };
    discovery.set_interfaces(&[interface], now);
    for server in servers {
        discovery.add_server(addr(server), now);
    }
    for _ in 0..20 {
        let (asks, _) = discovery.handle_timeout(&mut rng, now);
        for ask in asks {
            let Some(mapped) = see(ask.to) else { continue };
            let question = Message::parse(&ask.bytes).unwrap();
            let answer = stun::answer(&question, addr(mapped), None, None);
            assert!(discovery.answered(&Message::parse(&answer).unwrap(), ask.to, now));
        }
        // What the NAT does beyond mapping is `behaviour`'s matter.
        while let Some(output) = discovery.poll_output() {
            if let behaviour::Output::Open { open } = output {
                assert!(discovery.opened(open, None, now));
            }
        }
        let Some(next) = discovery.poll_timeout() else { break };
        if next > now + Duration::from_secs(4) {
            break;
        }
        now = next;
    }
    discovery
}

#[test]
fn equal_answers_are_an_endpoint_independent_mapping() {
    let seen = discover(11010, "10.0.0.2", &["192.0.2.1:1", "192.0.2.2:1"], |_| {
        Some("198.51.100.1:11010")
    });

    let profile = seen.profile();
    assert_eq!(profile.mapping(), Behaviour::EndpointIndependent);
    assert_eq!(profile.allocation(), Allocation::Preserve);
    let reflexive: Vec<_> = seen.candidates().into_iter().map(|candidate| candidate.addr).collect();
    assert_eq!(reflexive, [addr("198.51.100.1:11010"), addr("10.0.0.2:11010")]);
}

#[test]
fn the_own_address_is_no_nat() {
    let seen = discover(11010, "192.0.2.9", &["192.0.2.1:1"], |_| Some("192.0.2.9:11010"));

    assert_eq!(seen.profile().mapping(), Behaviour::None);
}

#[test]
fn different_answers_say_how_they_differ() {
    let servers = ["192.0.2.1:1", "192.0.2.1:2", "192.0.2.2:1"];
    let by_address = discover(11010, "10.0.0.2", &servers, |to| {
        Some(if to.ip() == addr("192.0.2.1:1").ip() {
            "198.51.100.1:100"
        } else {
            "198.51.100.1:9000"
        })
    });
    let by_port = discover(11010, "10.0.0.2", &servers, |to| match to.to_string().as_str() {
        "192.0.2.1:1" => Some("198.51.100.1:40000"),
        "192.0.2.1:2" => Some("198.51.100.1:40001"),
        _ => Some("198.51.100.1:40002"),
    });

    assert_eq!(by_address.profile().mapping(), Behaviour::AddressDependent);
    assert_eq!(by_port.profile().mapping(), Behaviour::AddressPortDependent);
    assert_eq!(by_port.profile().allocation(), Allocation::Sequential);
}

#[test]
fn no_answer_is_a_result_and_not_a_loop() {
    let silent = discover(11010, "10.0.0.2", &["192.0.2.1:1"], |_| None);

    assert!(silent.profile().udp_blocked);
    assert_eq!(silent.profile().mapping(), Behaviour::Unknown);
    let mut alone = Discovery::default();
    let mut rng = ChaCha12Rng::from_seed([1; 32]);
    alone.set_socket(Family::V4, SocketId(0), 1, Instant::now());
    assert_eq!(alone.handle_timeout(&mut rng, Instant::now()), (Vec::new(), false));
    assert_eq!(alone.poll_timeout(), None);
}

#[test]
fn a_nat_with_another_address_is_asked_again_once_it_was_seen_thrice() {
    let mut seen =
        discover(11010, "10.0.0.2", &["192.0.2.1:1", "192.0.2.2:1"], |_| Some("198.51.100.1:4000"));
    let now = Instant::now();
    let rested = seen.poll_timeout();
    for _ in 0..10 {
        seen.observed(addr("198.51.100.1:4000"), now);
    }
    seen.observed(addr("198.51.100.9:4000"), now);
    seen.observed(addr("198.51.100.1:4000"), now);
    seen.observed(addr("198.51.100.9:4000"), now);
    seen.observed(addr("[::ffff:198.51.100.9]:4000"), now);
    assert_eq!(seen.poll_timeout(), rested);

    seen.observed(addr("198.51.100.1:4001"), now);

    assert_eq!(seen.poll_timeout(), Some(now));
}

#[test]
fn a_doubted_result_is_asked_for_again_but_not_in_a_loop() {
    let mut seen = discover(11010, "10.0.0.2", &["192.0.2.1:1"], |_| Some("198.51.100.1:4000"));
    let now = seen.tested().unwrap();
    let rested = seen.poll_timeout();

    seen.doubt(now + Duration::from_secs(4));
    assert_eq!(seen.poll_timeout(), rested);
    seen.doubt(now + Duration::from_secs(6));

    assert_eq!(seen.poll_timeout(), Some(now + Duration::from_secs(6)));
}
