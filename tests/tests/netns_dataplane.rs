//! The data plane alone, in network namespaces: it carries everything unharmed, and not slowly.
//!
//! One test function, since a node is this program again and starts as that test.

use tests::dataplane::{self, Lab, Layout, Settings};

/// A debug build on a busy machine; the release build is measured by `make bench`.
const LEAST_RATIO: f64 = 0.05;

#[test]
fn packets_of_all_kinds_pass_over_udp_over_tcp_and_over_a_blind_relay() {
    dataplane::become_node();
    if !is_root() {
        eprintln!("skipped: needs root");
        return;
    }
    let mut lab = Lab::new(Layout::Direct);
    lab.start(&Settings::default());
    carries_everything(&lab);
    is_fast(&lab);
    lab.start(&Settings { suite: Some("chacha".to_owned()), ..Settings::default() });
    lab.talk("10.98.0.2");
    drop(lab);

    let mut lab = Lab::new(Layout::Tcp);
    lab.start(&Settings::default());
    lab.ping("10.98.0.2", &None, 20);
    lab.talk("10.98.0.2");
    drop(lab);

    let mut lab = Lab::new(Layout::Relay);
    lab.start(&Settings::default());
    carries_everything(&lab);
}

fn carries_everything(lab: &Lab) {
    for to in ["10.98.0.2", "fd98::2"] {
        assert_eq!(lab.ping(to, &None, 20).len(), 20, "small pings to {to}");
        // One full packet, and one that the host cuts into pieces.
        for size in [1272, 8000] {
            let pings = lab.run("ezdA", &None, &format!("ping -n -c 3 -i 0.01 -s {size} {to}"));
            assert!(pings.contains("3 received"), "{pings}");
        }
    }
    for to in ["10.98.0.2", "[fd98::2]"] {
        lab.talk(to);
    }
    // UDP super-packets are cut and joined at datagram boundaries: none is lost or merged.
    let report = lab.iperf("10.98.0.2", &None, "-u -b 20M -l 1000 -n 2M");
    let sum = &report["end"]["sum"];
    assert_eq!(sum["packets"].as_u64(), Some(2098), "{report}");
    assert_eq!(sum["lost_packets"].as_u64(), Some(0), "{sum}");
}

fn is_fast(lab: &Lab) {
    let rate = |to: &str| {
        let report = lab.iperf(to, &None, "-t 1");
        report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or_default()
    };
    let (raw, ours) = (rate(lab.raw_address()), rate("10.98.0.2"));
    assert!(ours > LEAST_RATIO * raw, "{ours} of {raw} bit/s");
}

fn is_root() -> bool {
    let output = std::process::Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout == b"0\n")
}
