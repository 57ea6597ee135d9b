use super::*;
use crate::{
    netlink::{HostConfig, Netlink},
    netns::{Neighbour, in_netns, ip},
};

#[test]
fn a_table_clamps_both_directions_of_both_families_and_masquerades_exports() {
    let script = render(&config());

    assert_eq!(
        script,
        r#"add table inet easynet_ezs0
delete table inet easynet_ezs0
table inet easynet_ezs0 {
	chain mss_forward {
		type filter hook forward priority mangle; policy accept;
		iifname "ezs0" meta nfproto ipv4 tcp flags & (syn | rst) == syn tcp option maxseg size > 1280 tcp option maxseg size set 1280
		iifname "ezs0" meta nfproto ipv6 tcp flags & (syn | rst) == syn tcp option maxseg size > 1260 tcp option maxseg size set 1260
		oifname "ezs0" meta nfproto ipv4 tcp flags & (syn | rst) == syn tcp option maxseg size > 1280 tcp option maxseg size set 1280
		oifname "ezs0" meta nfproto ipv6 tcp flags & (syn | rst) == syn tcp option maxseg size > 1260 tcp option maxseg size set 1260
	}
	chain mss_input {
		type filter hook input priority mangle; policy accept;
		iifname "ezs0" meta nfproto ipv4 tcp flags & (syn | rst) == syn tcp option maxseg size > 1280 tcp option maxseg size set 1280
		iifname "ezs0" meta nfproto ipv6 tcp flags & (syn | rst) == syn tcp option maxseg size > 1260 tcp option maxseg size set 1260
	}
	chain mss_output {
		type filter hook output priority mangle; policy accept;
		oifname "ezs0" meta nfproto ipv4 tcp flags & (syn | rst) == syn tcp option maxseg size > 1280 tcp option maxseg size set 1280
		oifname "ezs0" meta nfproto ipv6 tcp flags & (syn | rst) == syn tcp option maxseg size > 1260 tcp option maxseg size set 1260
	}
	chain map_in {
		type nat hook prerouting priority -110; policy accept;
		iifname "ezs0" ip daddr 10.99.7.0/24 dnat ip prefix to ip daddr map { 10.99.7.0/24 : 192.168.7.0/24 }
	}
	set mesh4 {
		type ipv4_addr
		flags interval
		auto-merge
		elements = { 10.42.0.0/16, 10.43.0.0/16 }
	}
	chain translate {
		type nat hook postrouting priority 90; policy accept;
		iifname "ezs0" oifname != "ezs0" ip daddr 192.168.7.0/24 masquerade
		oifname "ezs0" ip saddr 192.168.7.0/24 snat ip prefix to ip saddr map { 192.168.7.0/24 : 10.99.7.0/24 }
		iifname "ezs0" oifname != "ezs0" ip6 daddr fd07::/64 masquerade
		oifname "ezs0" ip6 saddr fd07::/64 masquerade
		iifname "ezs0" oifname != "ezs0" ip daddr 192.168.8.0/24 snat ip to ip saddr
		oifname "ezs0" ip saddr 192.168.8.0/24 snat ip to ip saddr
		ip saddr @mesh4 ip daddr @mesh4 snat ip to ip saddr
	}
}
"#
    );
}

#[test]
fn names_that_nft_does_not_allow_stay_different() {
    assert_eq!(table("easynet0"), "easynet_easynet0");
    assert_ne!(table("a-b"), table("a.b"));
    assert_ne!(table("a-b"), table("a_b"));
}

#[test]
fn a_forward_policy_of_drop_is_found() {
    let listing = "table ip filter {\n\tchain FORWARD {\n\t\ttype filter hook forward priority \
                   filter; policy drop;\n\t}\n\tchain INPUT {\n\t\ttype filter hook input priority \
                   filter; policy drop;\n\t}\n}\n";
    assert_eq!(dropping_chains(listing), ["ip filter FORWARD"]);
}

#[test]
fn the_kernel_takes_the_table_twice_and_lets_it_go() {
    in_netns("nft::tests::the_kernel_takes_the_table_twice_and_lets_it_go", async |_| {
        apply(&config()).await.unwrap();
        apply(&config()).await.unwrap();
        let tables = run(vec!["list".into(), "tables".into()], "").await.unwrap();
        assert_eq!(tables.trim(), "table inet easynet_ezs0");
        assert_eq!(forward_drops().await.unwrap(), [""; 0]);

        remove("ezs0").await.unwrap();
        remove("ezs0").await.unwrap();

        assert_eq!(run(vec!["list".into(), "tables".into()], "").await.unwrap(), "");
        let error = run(script_arguments(), "nonsense").await.unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
    });
}

/// A veth stands in for the TUN: mesh ── ezs0 [node] ezl ── lan, which has no route back.
#[test]
fn the_mesh_reaches_an_exported_network_that_knows_nothing_of_it() {
    in_netns(
        "nft::tests::the_mesh_reaches_an_exported_network_that_knows_nothing_of_it",
        async |group| {
            let mesh = Neighbour::new("ezs0", None, "100.112.0.2/16");
            let lan = Neighbour::new("ezl", Some("192.168.7.1/24"), "192.168.7.2/24");
            mesh.run("ip route add default via 100.112.0.1");
            let mut host = HostConfig::new("ezs0", 1320);
            host.addresses.insert("100.112.0.1/16".parse().unwrap());
            host.routes.insert("100.112.0.0/16".parse().unwrap(), None);
            host.exports.insert("192.168.7.0/24".parse().unwrap());
            let mut netlink = Netlink::new(&group).unwrap();
            let report = netlink.apply(&host).await.unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed);

            apply(&config()).await.unwrap();

            mesh.run("ping -c 1 -W 2 192.168.7.2");
            mesh.run("ping -c 1 -W 2 10.99.7.2");
            let neighbours = lan.run("ip neigh");
            assert!(!neighbours.contains("100.112"), "{neighbours}");
        },
    );
}

/// mesh ── ezs0 [node] ezl ── pod, and a CNI that masquerades whatever leaves the pod range. Both clusters have the pod
/// range 10.244.0.0/16; in the mesh this one is 10.200.0.0/16 and the other 10.201.0.0/16.
#[test]
fn equal_ranges_are_mapped_both_ways_under_a_masquerading_cni() {
    in_netns(
        "nft::tests::equal_ranges_are_mapped_both_ways_under_a_masquerading_cni",
        async |group| {
            let mesh = Neighbour::new("ezs0", None, "10.201.0.9/32");
            let pod = Neighbour::new("ezl", Some("10.244.0.1/24"), "10.244.0.2/24");
            mesh.run("ip route add 100.112.0.1 dev eth0");
            mesh.run("ip route add 10.200.0.0/16 via 100.112.0.1 dev eth0");
            pod.run("ip route add default via 10.244.0.1");
            ip("route add 10.201.0.0/16 dev ezs0");
            let cni = "table ip cni {\nchain post {\ntype nat hook postrouting priority 100\n\
                       ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 masquerade\n}\n}\n";
            run(script_arguments(), cni).await.unwrap();
            let mut host = HostConfig::new("ezs0", 1320);
            host.addresses.insert("100.112.0.1/32".parse().unwrap());
            host.exports.insert("10.244.0.0/24".parse().unwrap());
            let report = Netlink::new(&group).unwrap().apply(&host).await.unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            for there in [&mesh, &pod] {
                there.run("nft add table ip seen");
                there.run("nft add chain ip seen in { type filter hook input priority 0 ; }");
            }
            mesh.run("nft add rule ip seen in ip saddr 10.200.0.2 counter");
            pod.run("nft add rule ip seen in ip saddr 10.201.0.9 counter");

            let exports = vec![export("10.244.0.0/24", Some("10.200.0.0/24"), Masquerade::Never)];
            let translation = Translation { exports, exempt: Vec::new() };
            apply(&NftConfig { tun: "ezs0".to_owned(), mtu: 1320, translation }).await.unwrap();

            mesh.run("ping -c 2 -i 0.2 -W 2 10.200.0.2");
            pod.run("ping -c 2 -i 0.2 -W 2 10.201.0.9");

            for there in [&mesh, &pod] {
                let seen = there.run("nft list table ip seen");
                // Two requests and two answers, all from the address that the other side shall see.
                assert!(seen.contains("counter packets 4 "), "{seen}");
            }
        },
    );
}

/// pod ── ezl [node] ezs0 ── mesh, under a CNI that masquerades.
#[test]
fn exempt_sources_stay_what_they_are_whatever_a_cni_masquerades() {
    in_netns(
        "nft::tests::exempt_sources_stay_what_they_are_whatever_a_cni_masquerades",
        async |group| {
            let mesh = Neighbour::new("ezs0", None, "10.42.9.9/32");
            let pod = Neighbour::new("ezl", Some("10.42.0.1/24"), "10.42.0.2/24");
            mesh.run("ip route add 100.112.0.1 dev eth0");
            mesh.run("ip route add 10.42.0.0/24 via 100.112.0.1 dev eth0");
            pod.run("ip route add default via 10.42.0.1");
            ip("route add 10.42.9.0/24 dev ezs0");
            let cni = "table ip cni {\nchain post {\ntype nat hook postrouting priority 100\n\
                       ip saddr 10.42.0.0/24 ip daddr != 10.42.0.0/24 masquerade\n}\n}\n";
            run(script_arguments(), cni).await.unwrap();
            let mut host = HostConfig::new("ezs0", 1320);
            host.addresses.insert("100.112.0.1/32".parse().unwrap());
            host.exports.insert("10.42.0.0/24".parse().unwrap());
            let report = Netlink::new(&group).unwrap().apply(&host).await.unwrap();
            assert!(report.failed.is_empty(), "{:?}", report.failed);
            mesh.run("nft add table ip seen");
            mesh.run("nft add chain ip seen in { type filter hook input priority 0 ; }");
            mesh.run("nft add rule ip seen in ip saddr 10.42.0.2 counter");
            mesh.run("nft add rule ip seen in ip saddr 100.112.0.1 counter");
            pod.run("ping -c 1 -W 2 10.42.9.9");
            let seen = mesh.run("nft list table ip seen");
            assert!(seen.contains("100.112.0.1 counter packets 1 "), "the CNI masquerades: {seen}");

            let exempt = vec!["10.42.0.0/16".parse().unwrap()];
            let translation = Translation { exports: Vec::new(), exempt };
            apply(&NftConfig { tun: "ezs0".to_owned(), mtu: 1320, translation }).await.unwrap();

            pod.run("ping -c 1 -W 2 10.42.9.9");
            let seen = mesh.run("nft list table ip seen");
            assert!(seen.contains("10.42.0.2 counter packets 1 "), "{seen}");
        },
    );
}

#[test]
fn somebody_elses_hand_on_the_table_is_told() {
    in_netns("nft::tests::somebody_elses_hand_on_the_table_is_told", async |group| {
        apply(&config()).await.unwrap();
        let mut changes = drift::watch("ezs0", &group);
        let shown = show("ezs0").await.unwrap();
        let other = "add table ip other\nadd chain ip other c\n";
        run(script_arguments(), other).await.unwrap();
        assert!(timeout(Duration::from_millis(100), changes.recv()).await.is_err());

        run(script_arguments(), "flush chain inet easynet_ezs0 translate\n").await.unwrap();

        timeout(Duration::from_secs(1), changes.recv()).await.unwrap().unwrap();
        assert_ne!(show("ezs0").await.unwrap(), shown);
        run(script_arguments(), "flush ruleset\n").await.unwrap();
        timeout(Duration::from_secs(1), changes.recv()).await.unwrap().unwrap();
        assert!(matches!(show("ezs0").await, Err(Error::Refused(_))));
        apply(&config()).await.unwrap();
        assert_eq!(show("ezs0").await.unwrap(), shown);
    });
}

fn export(prefix: &str, mapped: Option<&str>, masquerade: Masquerade) -> Export {
    let mapped = mapped.map(|net| net.parse().unwrap());
    Export { prefix: prefix.parse().unwrap(), mapped, masquerade }
}

fn config() -> NftConfig {
    NftConfig {
        tun: "ezs0".to_owned(),
        mtu: 1320,
        translation: Translation {
            exports: vec![
                export("192.168.7.0/24", Some("10.99.7.0/24"), Masquerade::Inbound),
                export("fd07::/64", None, Masquerade::Always),
                export("192.168.8.0/24", None, Masquerade::Never),
            ],
            exempt: vec!["10.42.0.0/16".parse().unwrap(), "10.43.0.0/16".parse().unwrap()],
        },
    }
}
