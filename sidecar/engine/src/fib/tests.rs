use super::*;

const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);

#[test]
fn the_longest_prefix_wins_in_both_families() {
    let routes: Routes = [
        ("10.0.0.0/8", A),
        ("10.1.0.0/16", B),
        ("10.1.2.3/32", A),
        ("0.0.0.0/0", B),
        ("fd00::/8", A),
        ("fd00:1::/32", B),
    ]
    .map(|(prefix, node)| (prefix.parse().unwrap(), node))
    .into_iter()
    .collect();
    let find = |addr: &str| routes.longest_match(addr.parse().unwrap());

    assert_eq!(find("10.9.9.9"), Some(A));
    assert_eq!(find("10.1.9.9"), Some(B));
    assert_eq!(find("10.1.2.3"), Some(A));
    assert_eq!(find("11.0.0.1"), Some(B));
    assert_eq!(find("255.255.255.255"), Some(B));
    assert_eq!(find("fd00:1::1"), Some(B));
    assert_eq!(find("fd00:2::1"), Some(A));
    assert_eq!(find("fe80::1"), None);
    assert_eq!(routes.len(), 6);
}

#[test]
fn only_own_addresses_and_exports_are_behind_the_tun() {
    let local = Local {
        addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        exports: vec!["192.168.1.0/24".parse().unwrap()],
        reserved: Vec::new(),
    };

    assert!(local.accepts("10.0.0.1".parse().unwrap()));
    assert!(local.accepts("192.168.1.77".parse().unwrap()));
    assert!(!local.accepts("10.0.0.2".parse().unwrap()));
}

#[test]
fn a_peer_is_told_active_once_until_it_cools() {
    let stats = PeerStats::default();
    assert!(stats.warm_up());
    assert!(!stats.warm_up());

    stats.cool();

    assert!(stats.warm_up());
}

#[test]
fn a_meter_gives_its_burst_at_once_and_its_rate_over_time() {
    let meter = Meter::new(1_000_000, 10_000);
    let at = Duration::from_millis;

    assert!(meter.take(10_000, at(0)));
    assert!(!meter.take(100, at(0)));
    assert!(meter.take(1_000, at(1)));
    assert!(!meter.take(1_000, at(1)));
    assert!(meter.take(10_000, at(1000)));
    assert!(!meter.take(10_000, at(1005)));
}

#[test]
fn meters_keep_their_rate_from_bytes_to_terabits() {
    for rate in [1, 1_000, 125_000_000, 125_000_000_000] {
        let meter = Meter::new(rate, rate);
        assert!(meter.take(rate, Duration::ZERO), "{rate}");
        assert!(!meter.take(rate / 2 + 1, Duration::from_millis(400)), "{rate}");
        assert!(meter.take(rate / 2, Duration::from_millis(510)), "{rate}");
    }
}

#[test]
fn control_passes_when_data_has_used_up_the_quota() {
    let network = Arc::new(Meter::new(1, 2_000));
    let quota = Quota::new(Meter::new(1, 10_000), Some(network));

    assert!(quota.admit(1_500, false, Duration::ZERO));
    assert!(!quota.admit(1_500, false, Duration::ZERO));
    assert!(quota.admit(1_200, true, Duration::ZERO));
}

#[test]
fn traffic_is_counted_and_stamped() {
    let traffic = Traffic::default();
    assert_eq!(traffic.counts(), TrafficCounts::default());

    traffic.sent(3, 300, 7);
    traffic.received(1, 100, 9);

    let counts = traffic.counts();
    assert_eq!((counts.tx_packets, counts.tx_bytes), (3, 300));
    assert_eq!((counts.rx_packets, counts.rx_bytes), (1, 100));
    assert_eq!(counts.last_rx, Some(Duration::from_millis(9)));
}
