use super::*;
use crate::netns::{in_netns, ip};

#[test]
fn only_interfaces_that_mean_something_elsewhere_are_underlay() {
    for (name, kind, expected) in [
        ("lo", None, Kind::Loopback),
        ("eth0", None, Kind::Underlay),
        ("eth0", Some("veth"), Kind::Underlay),
        ("enp3s0", None, Kind::Underlay),
        ("wlan0", None, Kind::Underlay),
        ("bond0", Some("bond"), Kind::Underlay),
        ("eth0.100", Some("vlan"), Kind::Underlay),
        ("br0", Some("bridge"), Kind::Underlay),
        ("easynet0", Some("tun"), Kind::Tunnel),
        ("ez0", None, Kind::Tunnel),
        ("wg0", Some("wireguard"), Kind::Tunnel),
        ("corp", Some("wireguard"), Kind::Tunnel),
        ("vpn0", Some("tun"), Kind::Tunnel),
        ("tun0", None, Kind::Tunnel),
        ("tap3", None, Kind::Tunnel),
        ("sit0", Some("sit"), Kind::Tunnel),
        ("docker0", Some("bridge"), Kind::Container),
        ("br-8f3a", Some("bridge"), Kind::Container),
        ("cni0", Some("bridge"), Kind::Container),
        ("veth12ab", Some("veth"), Kind::Container),
        ("cali0a1b", Some("veth"), Kind::Container),
        ("flannel.1", Some("vxlan"), Kind::Container),
        ("cilium_host", Some("veth"), Kind::Container),
        ("kube-ipvs0", Some("dummy"), Kind::Container),
        ("virbr0", Some("bridge"), Kind::Container),
        ("anything", Some("dummy"), Kind::Container),
    ] {
        assert_eq!(classify(name, kind), expected, "{name} of kind {kind:?}");
    }
}

#[test]
fn changes_are_published_within_a_second() {
    in_netns("netmon::tests::changes_are_published_within_a_second", async |group| {
        let mut watched = watch(&group);
        wait(&mut watched, |now| now.list.len() == 1 && now.list[0].kind == Kind::Loopback).await;

        ip("link add ethw type veth peer name ethp");
        ip("link set ethw up");
        ip("link set ethp up");
        ip("addr add 192.0.2.1/24 dev ethw");
        ip("addr add 2001:db8::1/64 dev ethw nodad");
        wait(&mut watched, |now| now.candidates().count() == 2).await;
        assert!(!watched.borrow().default_v4);

        ip("route add default via 192.0.2.254");
        wait(&mut watched, |now| now.default_v4 && !now.default_v6).await;
        ip("-6 route add default via 2001:db8::ff");
        wait(&mut watched, |now| now.default_v6).await;

        ip("link set ethp down");
        wait(&mut watched, |now| now.candidates().count() == 0).await;

        ip("link set ethw mtu 1400");
        wait(&mut watched, |now| now.list.iter().any(|found| found.mtu == 1400)).await;
        ip("link del ethw");
        wait(&mut watched, |now| now.list.len() == 1 && !now.default_v4).await;
    });
}

#[test]
fn a_mesh_interface_is_no_candidate() {
    in_netns("netmon::tests::a_mesh_interface_is_no_candidate", async |group| {
        ip("tuntap add dev vpn7 mode tun");
        ip("addr add 100.112.0.1/16 dev vpn7");
        ip("link set vpn7 up");
        let mut watched = watch(&group);

        wait(&mut watched, |now| now.list.iter().any(|found| found.kind == Kind::Tunnel)).await;

        assert_eq!(watched.borrow().candidates().count(), 0);
    });
}

#[test]
fn a_flood_of_notifications_loses_nothing_that_matters() {
    in_netns("netmon::tests::a_flood_of_notifications_loses_nothing_that_matters", async |group| {
        ip("link add ethw type veth peer name ethp");
        ip("link set ethw up");
        ip("link set ethp up");
        let mut watched = watch(&group);
        wait(&mut watched, |now| now.list.len() == 3).await;
        let flood: String = (0..4000)
            .map(|n| format!("route add 10.{}.{}.0/24 dev ethw\n", n / 250, n % 250))
            .collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), flood).unwrap();

        // Nobody reads notifications while this thread waits for `ip`: the kernel drops the last.
        ip(&format!("-batch {}", file.path().display()));
        ip("addr add 192.0.2.1/24 dev ethw");

        let sockets = std::fs::read_to_string("/proc/net/netlink").unwrap();
        let dropped = |line: &str| line.split_whitespace().nth(8)?.parse::<u64>().ok();
        assert!(sockets.lines().filter_map(dropped).sum::<u64>() > 0, "no flood:\n{sockets}");
        wait(&mut watched, |now| now.candidates().count() == 1).await;
    });
}

async fn wait(watched: &mut watch::Receiver<Interfaces>, until: impl Fn(&Interfaces) -> bool) {
    let second = Duration::from_secs(1);
    let seen = timeout(second, watched.wait_for(|now| until(now))).await.is_ok();
    assert!(seen, "not published within a second: {:?}", watched.borrow());
}
