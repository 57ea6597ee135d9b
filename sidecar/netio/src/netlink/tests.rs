use super::*;
use crate::netns::{in_netns, ip as run_ip};

#[test]
fn the_same_again_sends_nothing_and_a_change_only_itself() {
    in_netns(
        "netlink::tests::the_same_again_sends_nothing_and_a_change_only_itself",
        async |group| {
            run_ip("tuntap add dev ezs0 mode tun");
            let mut netlink = Netlink::new(&group).unwrap();
            let mut desired = desired();
            let report = netlink.apply(&desired).await.unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            assert_eq!(report.changed, 1 + 2 + 2 + 2);

            let sent = netlink.requests();
            assert_eq!(netlink.apply(&desired).await.unwrap().changed, 0);
            assert_eq!(netlink.requests(), sent);

            desired.routes.insert(net("10.42.0.0/24"), None);
            assert_eq!(netlink.apply(&desired).await.unwrap().changed, 1);
            assert_eq!(netlink.requests(), sent + 1);
            desired.routes.remove(&net("10.42.0.0/24"));
            assert_eq!(netlink.apply(&desired).await.unwrap().changed, 1);
            assert_eq!(netlink.requests(), sent + 2);

            // The kernel agrees that there is nothing to do.
            netlink.resync();
            assert_eq!(netlink.apply(&desired).await.unwrap().changed, 0);
            assert!(netlink.requests() > sent + 2);

            // Somebody else took a route away.
            run_ip(&format!("route del 100.112.0.0/16 table {}", desired.table));
            netlink.resync();
            assert_eq!(netlink.apply(&desired).await.unwrap().changed, 1);
        },
    );
}

#[test]
fn marked_packets_do_not_see_the_mesh() {
    in_netns("netlink::tests::marked_packets_do_not_see_the_mesh", async |group| {
        underlay();
        run_ip("tuntap add dev ezs0 mode tun");
        let mut netlink = Netlink::new(&group).unwrap();
        netlink.apply(&desired()).await.unwrap();

        let plain = run_ip("route get 100.112.9.9");
        assert!(plain.contains("dev ezs0") && plain.contains("src 100.112.0.1"), "{plain}");
        let marked = run_ip("route get 100.112.9.9 mark 0x3000");
        assert!(marked.contains("dev ezsw"), "{marked}");
        let plain = run_ip("-6 route get fd00:1::9");
        assert!(plain.contains("dev ezs0"), "{plain}");
        assert_eq!(run_ip("route show dev ezs0 table main"), "");
    });
}

#[test]
fn what_is_gone_from_the_wish_goes_from_the_host() {
    in_netns("netlink::tests::what_is_gone_from_the_wish_goes_from_the_host", async |group| {
        run_ip("tuntap add dev ezs0 mode tun");
        let mut netlink = Netlink::new(&group).unwrap();
        netlink.apply(&desired()).await.unwrap();
        let mut less = HostConfig::new("ezs0", 1280);
        less.addresses.insert(net("100.112.0.2/16"));
        less.routes.insert(net("100.112.0.0/16"), Some("100.112.0.2".parse().unwrap()));

        let report = netlink.apply(&less).await.unwrap();

        assert!(report.failed.is_empty(), "{:?}", report.failed);
        let addresses = run_ip("-o addr show dev ezs0 scope global");
        assert_eq!(addresses.lines().count(), 1, "{addresses}");
        assert!(addresses.contains("100.112.0.2/16"), "{addresses}");
        let route = run_ip("route get 100.112.9.9");
        assert!(route.contains("src 100.112.0.2"), "{route}");
        assert!(!run_ip("-6 rule").contains(&less.table.to_string()));
        assert!(run_ip("link show ezs0").contains("mtu 1280"));
    });
}

#[test]
fn removing_and_sweeping_leave_nothing_of_ours_and_everything_else() {
    in_netns(
        "netlink::tests::removing_and_sweeping_leave_nothing_of_ours_and_everything_else",
        async |group| {
            let desired = desired();
            let table = desired.table;
            run_ip("tuntap add dev ezs0 mode tun");
            run_ip("tuntap add dev ezs1 mode tun");
            let mut netlink = Netlink::new(&group).unwrap();
            let mut other = Netlink::new(&group).unwrap();
            let mut neighbour = HostConfig::new("ezs1", 1320);
            neighbour.routes.insert(net("10.77.0.0/16"), None);
            other.apply(&neighbour).await.unwrap();
            netlink.apply(&desired).await.unwrap();
            run_ip(&format!("route add 10.55.0.0/16 dev ezs0 table {table}"));

            netlink.remove(&desired).await.unwrap();

            assert!(!run_ip("rule").contains(&table.to_string()));
            assert!(!run_ip("-6 rule").contains(&table.to_string()));
            // A stranger's route in our table and the neighbour's are not ours to remove.
            assert!(run_ip(&format!("route show table {table}")).starts_with("10.55.0.0/16"));
            assert!(run_ip("route get 10.77.1.1").contains("dev ezs1"));

            // Killed: the process and its socket are gone, its rules are not.
            netlink.apply(&desired).await.unwrap();
            let mut next = Netlink::new(&group).unwrap();
            next.sweep(["ezs0", "ezs9"]).await.unwrap();

            assert!(!run_ip("rule").contains(&table.to_string()));
            assert!(run_ip("route get 10.77.1.1").contains("dev ezs1"));
        },
    );
}

#[test]
fn exports_switch_forwarding_on_where_they_are_and_off_again() {
    in_netns(
        "netlink::tests::exports_switch_forwarding_on_where_they_are_and_off_again",
        async |group| {
            underlay();
            run_ip("tuntap add dev ezs0 mode tun");
            let mut desired = desired();
            desired.exports.insert(net("192.0.2.0/24"));
            let mut netlink = Netlink::new(&group).unwrap();

            let report = netlink.apply(&desired).await.unwrap();

            assert!(report.failed.is_empty(), "{:?}", report.failed);
            assert_eq!(forwarding("ezs0"), "1");
            assert_eq!(forwarding("ezsw"), "1");
            let sent = netlink.requests();
            assert_eq!(netlink.apply(&desired).await.unwrap().changed, 0);
            assert_eq!(netlink.requests(), sent);

            netlink.remove(&desired).await.unwrap();

            assert_eq!(forwarding("ezsw"), "0");
        },
    );
}

#[test]
fn spared_routes_stay_until_they_are_spared_no_more() {
    in_netns("netlink::tests::spared_routes_stay_until_they_are_spared_no_more", async |group| {
        run_ip("tuntap add dev ezs0 mode tun");
        let mut before = Netlink::new(&group).unwrap();
        before.apply(&desired()).await.unwrap();
        let mut successor = Netlink::new(&group).unwrap();
        let mut less = HostConfig::new("ezs0", 1320);
        less.addresses = desired().addresses;
        less.spared = successor.found(less.table).await.unwrap();

        let report = successor.apply(&less).await.unwrap();

        assert_eq!((report.changed, report.failed.len()), (0, 0), "{report:?}");
        assert!(run_ip("route get 100.112.9.9").contains("dev ezs0"));

        less.spared.clear();
        assert_eq!(successor.apply(&less).await.unwrap().changed, 2 + 2);
    });
}

#[test]
fn only_what_others_change_is_drift() {
    in_netns("netlink::tests::only_what_others_change_is_drift", async |group| {
        run_ip("tuntap add dev ezs0 mode tun");
        let mut netlink = Netlink::new(&group).unwrap();
        let mut desired = desired();
        netlink.apply(&desired).await.unwrap();
        let mut changes = drift::watch("ezs0", netlink.own(), &group);
        let quiet = Duration::from_millis(100);
        // The kernel tells of a link's new state up to a second late.
        let settled = Duration::from_millis(1200);
        while tokio::time::timeout(settled, changes.recv()).await.is_ok() {}
        desired.routes.insert(net("10.42.0.0/24"), None);
        netlink.apply(&desired).await.unwrap();
        run_ip("route add 10.55.0.0/16 dev lo");
        assert!(tokio::time::timeout(quiet, changes.recv()).await.is_err());

        let table = desired.table;
        for hand in [
            format!("route del 10.42.0.0/24 table {table}"),
            format!("rule del lookup {table}"),
            "addr del 100.112.0.1/16 dev ezs0".to_owned(),
            "link set ezs0 mtu 1400".to_owned(),
            "link set ezs0 down".to_owned(),
        ] {
            run_ip(&hand);
            let told = tokio::time::timeout(Duration::from_secs(1), changes.recv()).await;
            assert!(told.is_ok(), "{hand}");
            // What follows from it: routes that go with an address, say.
            while tokio::time::timeout(quiet, changes.recv()).await.is_ok() {}
        }

        netlink.resync();
        let report = netlink.apply(&desired).await.unwrap();
        assert!(report.failed.is_empty() && report.changed >= 4, "{report:?}");
        assert!(run_ip("route get 10.42.0.9").contains("dev ezs0"));
    });
}

#[test]
fn without_the_interface_there_is_an_error() {
    in_netns("netlink::tests::without_the_interface_there_is_an_error", async |group| {
        let mut netlink = Netlink::new(&group).unwrap();
        let error = netlink.apply(&desired()).await.unwrap_err();
        assert!(matches!(error, Error::NoInterface(_)), "{error}");
    });
}

#[test]
fn instances_have_tables_of_their_own() {
    assert_eq!(table_of("easynet0"), table_of("easynet0"));
    assert_ne!(table_of("easynet0"), table_of("easynet1"));
    assert_eq!(table_of("easynet0") >> 24, 0x65);
}

#[test]
fn routes_are_set_before_the_address_they_used_goes() {
    let old = net("100.112.0.1/16");
    let actual = Actual {
        mtu: 1320,
        up: true,
        addresses: BTreeSet::from([old]),
        routes: BTreeMap::from([(net("100.112.0.0/16"), Some(old.addr()))]),
        ..Actual::default()
    };
    let mut wanted = HostConfig::new("ezs0", 1320);
    let new = net("100.112.0.2/16");
    wanted.addresses.insert(new);
    wanted.routes.insert(net("100.112.0.0/16"), Some(new.addr()));
    let rule = *wanted.rules().first().unwrap();

    assert_eq!(
        plan(&wanted, &actual),
        [
            Change::AddAddress(new),
            Change::SetRoute(net("100.112.0.0/16"), Some(new.addr())),
            Change::AddRule(rule),
            Change::RemoveAddress(old),
        ]
    );
}

fn desired() -> HostConfig {
    let mut desired = HostConfig::new("ezs0", 1320);
    desired.addresses = [net("100.112.0.1/16"), net("fd00:1::1/64")].into();
    desired.routes = BTreeMap::from([
        (net("100.112.0.0/16"), Some("100.112.0.1".parse().unwrap())),
        (net("fd00:1::/64"), None),
    ]);
    desired
}

/// An interface with a default route.
fn underlay() {
    run_ip("link add ezsw type veth peer name ezsp");
    run_ip("addr add 192.0.2.1/24 dev ezsw");
    run_ip("link set ezsw up");
    run_ip("link set ezsp up");
    run_ip("route add default via 192.0.2.254");
}

fn forwarding(interface: &str) -> String {
    let path = format!("/proc/sys/net/ipv4/conf/{interface}/forwarding");
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}
