use super::*;
use crate::{
    netlink::{HostConfig, Netlink},
    netns::{Neighbour, in_netns},
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
	chain nat_mapped {
		type nat hook prerouting priority dstnat; policy accept;
		iifname "ezs0" dnat ip prefix to ip daddr map { 10.99.7.0/24 : 192.168.7.0/24 }
	}
	chain nat_exports {
		type nat hook postrouting priority srcnat; policy accept;
		iifname "ezs0" oifname != "ezs0" ip daddr 192.168.7.0/24 masquerade
		iifname "ezs0" oifname != "ezs0" ip6 daddr fd07::/64 masquerade
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
        let tables = run(&["list", "tables"], "").await.unwrap();
        assert_eq!(tables.trim(), "table inet easynet_ezs0");
        assert_eq!(forward_drops().await.unwrap(), [""; 0]);

        remove("ezs0").await.unwrap();
        remove("ezs0").await.unwrap();

        assert_eq!(run(&["list", "tables"], "").await.unwrap(), "");
        let error = run(&["-f", "-"], "nonsense").await.unwrap_err();
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

fn config() -> NftConfig {
    let export = |prefix: &str, mapped: Option<&str>, masquerade| Export {
        prefix: prefix.parse().unwrap(),
        mapped: mapped.map(|net| net.parse().unwrap()),
        masquerade,
    };
    NftConfig {
        tun: "ezs0".to_owned(),
        mtu: 1320,
        exports: vec![
            export("192.168.7.0/24", Some("10.99.7.0/24"), true),
            export("fd07::/64", None, true),
            export("192.168.8.0/24", None, false),
        ],
    }
}
