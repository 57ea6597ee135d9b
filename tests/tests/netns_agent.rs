//! A host's agent in namespaces: it is replaced and killed under traffic, its host is meddled with, it retires.

#![allow(clippy::unwrap_used)]

use std::{
    process::{Child, Stdio},
    time::{Duration, Instant},
};

use tests::lab::{
    Homes, Host, Lab, Nat,
    homes::MOMENT,
    node::{SECRET, binary},
};

/// What an upgrade or a crash may cost.
const GAP: Duration = Duration::from_secs(2);
/// What others changed is put back within this.
const REPAIRED: Duration = Duration::from_secs(2);

#[test]
fn a_successor_goes_on_with_address_key_routes_and_connections() {
    let mut homes = agents();
    let (id, address) = (homes.b.json("status")["node_id"].clone(), homes.b.ipv4());
    let before = host_side(&homes.host_b);
    for way in [Way::In, Way::Out] {
        let stream = Stream::start(&homes, &address, way);
        let next = homes.b.successor(&[&homes.url], "--standby");
        next.wait("ready", MOMENT);
        let status = next.json("status");
        assert_eq!(status["conditions"][0]["reason"], "Standby", "{status}");
        assert_eq!(status["node_id"], id);
        assert_eq!(next.cli(&["peers"]).status.code(), Some(1), "it has no peers to show yet");

        assert_eq!(homes.b.stop(), Some(0), "{}", homes.b.log());

        assert_eq!(host_side(&homes.host_b), before, "SIGTERM keeps everything");
        let gap = stream.longest_gap();
        eprintln!("a roll-out cost {gap:?}");
        assert!(gap < GAP, "{gap:?} without a byte: {}", next.log());
        next.wait("peers=1", MOMENT);
        let status = next.json("status");
        assert_eq!((status["ready"].as_bool(), &status["node_id"]), (Some(true), &id), "{status}");
        assert_eq!(next.ipv4(), address);
        assert_eq!(host_side(&homes.host_b), before);
        homes.b = next;
    }
}

#[test]
fn a_kill_costs_less_than_two_seconds_with_a_successor_and_without() {
    let mut homes = agents();
    let address = homes.b.ipv4();
    let mut next = homes.b.successor(&[&homes.url], "--standby");
    next.wait("ready", MOMENT);
    let stream = Stream::start(&homes, &address, Way::In);

    homes.b.kill();

    let gap = stream.longest_gap();
    eprintln!("a kill with a successor cost {gap:?}");
    assert!(gap < GAP, "{gap:?} without a byte: {}", next.log());

    for way in [Way::In, Way::Out] {
        let stream = Stream::start(&homes, &address, way);
        next.kill();
        next.restart(&[&homes.url], "--standby");
        let gap = stream.longest_gap();
        eprintln!("a kill and a restart cost {gap:?}");
        assert!(gap < GAP, "{gap:?} without a byte: {}", next.log());
        assert_eq!(next.ipv4(), address);
    }
}

#[test]
fn what_others_change_is_put_back() {
    let homes = agents();
    let (host, tun) = (&homes.host_b, homes.b.tun.clone());
    let table = format!("inet easynet_{tun}");
    let address = homes.b.ipv4();
    let number = host
        .run("ip rule")
        .lines()
        .find(|line| line.contains("0x3000"))
        .and_then(|line| line.split("lookup ").nth(1))
        .map(|rest| rest.split_whitespace().next().unwrap().to_owned())
        .unwrap();
    let before = host_side(host);
    for (hand, look) in [
        (format!("ip rule del lookup {number}"), "ip rule".to_owned()),
        (format!("ip route flush table {number}"), format!("ip route show table {number}")),
        (format!("ip addr flush dev {tun}"), format!("ip -o addr show dev {tun}")),
        (format!("ip link set {tun} mtu 1400"), format!("ip link show {tun}")),
        (format!("ip link set {tun} down"), format!("ip link show {tun}")),
        (format!("nft flush chain {table} mss_forward"), format!("nft list table {table}")),
        (format!("nft delete table {table}"), format!("nft list table {table}")),
        ("nft flush ruleset".to_owned(), format!("nft list table {table}")),
    ] {
        host.run(&hand);
        let began = Instant::now();
        while host_side(host) != before {
            assert!(
                began.elapsed() < REPAIRED,
                "after {hand}: {}\n{before:#?}\n{:#?}\n{}",
                host.try_run(&look).status,
                host_side(host),
                homes.b.log()
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{hand}: put back after {:?}", began.elapsed());
    }
    let ping = homes.host_a.ping(&address, 3, Duration::from_millis(100));
    assert_eq!(ping.lost(), 0, "{}", homes.b.log());

    host.run(&format!("ip link del {tun}"));
    let began = Instant::now();
    while host_side(host) != before {
        assert!(began.elapsed() < Duration::from_secs(5), "{:#?}", host_side(host));
        std::thread::sleep(Duration::from_millis(20));
    }
    eprintln!("a removed TUN is back after {:?}", began.elapsed());
    assert_eq!(homes.host_a.ping(&address, 3, Duration::from_millis(200)).lost(), 0);
    assert_eq!(homes.b.json("status")["ready"], true);
}

#[test]
fn who_retires_leaves_nothing_and_waits_to_be_stopped() {
    let mut homes = agents();
    let said = homes.b.cli(&["retire"]);
    assert!(said.status.success(), "{said:?}");
    let began = Instant::now();
    let is_gone = |host: &Host| {
        !host.run("ip link").contains("ezb")
            && !host.run("ip rule; ip -6 rule").contains("0x3000")
            && !host.run("nft list tables").contains("easynet")
    };
    while !is_gone(&homes.host_b) {
        assert!(began.elapsed() < Duration::from_secs(5), "{}", homes.b.log());
        std::thread::sleep(Duration::from_millis(20));
    }
    homes.b.wait("ready", MOMENT);
    assert_eq!(homes.b.json("status")["conditions"][0]["reason"], "Retired");
    assert_eq!(homes.a.json("status")["peers"]["total"], 0, "who leaves is forgotten at once");
    assert_eq!(homes.b.stop(), Some(0), "{}", homes.b.log());
    assert!(is_gone(&homes.host_b));

    homes.b.restart(&[&homes.url], "--standby");
    homes.b.wait("ready", MOMENT);
    homes.a.wait("peers=1", MOMENT);
}

#[test]
fn the_commands_of_the_documentation_remove_what_an_agent_left() {
    let mut homes = agents();
    assert_eq!(homes.b.stop(), Some(0));
    assert!(homes.host_b.run("ip link; ip rule").contains("0x3000"), "it stays");
    let page = include_str!("../../docs/kubernetes/node-agent.md");
    let by_hand = page.split("## By hand").nth(1).unwrap().split("```").nth(1).unwrap();
    for line in by_hand.lines().filter(|line| !line.trim().is_empty()) {
        let command = line.split('#').next().unwrap().replace("ez0", "ezb");
        if !command.starts_with("rm ") {
            homes.host_b.run(&command);
        }
    }
    assert!(!homes.host_b.run("ip link").contains("ezb"));
    assert!(!homes.host_b.run("ip rule; ip -6 rule").contains("0x3000"));
    assert_eq!(homes.host_b.run("ip route show table all proto 229"), "");
    assert_eq!(homes.host_b.run("nft list tables"), "");
}

#[test]
fn without_a_tun_an_agent_runs_says_so_and_goes_on_trying() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let dir = lab.dir();
    std::fs::write(dir.join("secret"), SECRET).unwrap();
    let (socket, log) = (dir.join("sock"), dir.join("log"));
    let command = format!(
        "true && mount -t tmpfs none /dev/net && exec {} run --network lab --secret-file {} --state-dir {} --admin {} \
         --tun ezm --standby",
        binary().display(),
        dir.join("secret").display(),
        dir.join("state").display(),
        socket.display()
    );
    let child = host.spawn(&format!("sh -c '{command}'"), &log);
    let pid = child.id();
    lab.keep(child);
    let ask = |args: &[&str]| {
        let mut command = std::process::Command::new(binary());
        command.args(args).arg("--admin").arg(&socket).output().unwrap()
    };
    let open = || {
        let output = ask(&["status", "-o", "json"]);
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|condition| condition["type"] == "TunOpen")
    };
    let began = Instant::now();
    let missing = loop {
        if let Some(condition) = open() {
            break condition;
        }
        assert!(began.elapsed() < MOMENT, "{}", std::fs::read_to_string(&log).unwrap());
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(missing["status"], false);
    assert!(missing["message"].as_str().unwrap().contains("modprobe tun"), "{missing}");

    let made = std::process::Command::new("nsenter")
        .args(["-t", &pid.to_string(), "-m", "mknod", "/dev/net/tun", "c", "10", "200"])
        .status()
        .unwrap();
    assert!(made.success());

    let output = ask(&["status", "--wait", "ready", "--timeout", "10s"]);
    assert!(output.status.success(), "{}", std::fs::read_to_string(&log).unwrap());
    assert_eq!(open().unwrap()["status"], true);
    assert!(host.run("ip -o addr show dev ezm").contains("100.112."));
}

#[test]
fn clusters_with_equal_pod_ranges_reach_each_other_by_their_maps() {
    let mut homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let pod_a = homes.lab.pod(&homes.host_a, "pa", "10.244.0.2");
    let pod_b = homes.lab.pod(&homes.host_b, "pb", "10.244.0.2");
    for (node, map) in [(&mut homes.a, "10.200.0.0/24"), (&mut homes.b, "10.201.0.0/24")] {
        assert_eq!(node.stop(), Some(0));
        node.restart(&[&homes.url], &format!("--export 10.244.0.0/24={map}"));
    }
    for node in [&homes.a, &homes.b] {
        node.wait("ready", MOMENT);
        node.wait("peers=1", MOMENT);
    }

    assert_eq!(reach(&pod_a, "10.201.0.2").lost(), 0, "{}", homes.a.json("routes"));
    assert_eq!(reach(&pod_b, "10.200.0.2").lost(), 0, "{}", homes.b.json("routes"));
    assert!(pod_a.iperf(&pod_b, "10.201.0.2", 1, "") > 0.05);
    assert_eq!(homes.b.peer("a")["exports"], serde_json::json!(["10.200.0.0/24"]));

    // Now b announces its range as it is, which is a's own too.
    assert_eq!(homes.b.stop(), Some(0));
    homes.b.restart(&[&homes.url], "--export 10.244.0.0/24");
    homes.b.wait("ready", MOMENT);
    homes.b.wait("peers=1", MOMENT);
    let began = Instant::now();
    let refused = loop {
        let routes = homes.a.json("routes");
        let routes = routes.as_array().cloned().unwrap();
        if let Some(route) = routes.into_iter().find(|route| route["prefix"] == "10.244.0.0/24") {
            break route;
        }
        assert!(began.elapsed() < MOMENT, "{}", homes.a.json("routes"));
        std::thread::sleep(Duration::from_millis(50));
    };
    assert_eq!(refused["state"], "rejected");
    let reason = refused["reason"].as_str().unwrap();
    assert!(reason.contains("is behind this node") && reason.contains("mapTo"), "{reason}");
    for node in [&homes.a, &homes.b] {
        let status = node.json("status");
        let conditions = status["conditions"].as_array().cloned().unwrap();
        let told = conditions.iter().any(|condition| {
            let message = condition["message"].as_str().unwrap();
            condition["type"] == "AddressConflictFree"
                && message.contains("10.244.0.0/24")
                && message.contains("mapTo")
        });
        assert!(told, "{status}");
    }
    let ping = pod_b.ping("10.200.0.2", 3, Duration::from_millis(200));
    assert_eq!(ping.lost(), 3, "nobody answers what could not find back");
    let drops = &homes.a.json("stats")["drops"];
    assert!(drops["source_overlaps"].as_u64() > Some(0), "{drops}");
}

/// Two agents on their direct path.
fn agents() -> Homes {
    let homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "--standby");
    homes.host_a.ping(&homes.b.ipv4(), 3, Duration::from_millis(100));
    homes.a.wait("direct=b", MOMENT);
    homes
}

/// All that a node has on its host, in the order of the kernel.
fn host_side(host: &Host) -> Vec<String> {
    let looks = [
        "ip rule",
        "ip -6 rule",
        "ip route show table all proto 229",
        "ip -6 route show table all proto 229",
        "ip -o -4 addr show dev ezb",
        "ip -o -6 addr show dev ezb scope global",
        "ip link show ezb | grep -o \"mtu [0-9]*\"; cat /sys/class/net/ezb/flags",
        "nft list table inet easynet_ezb",
    ];
    let said = |look: &str| {
        let output = host.try_run(look);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        // A link without its owner has no carrier, and a new one has another index.
        let words =
            text.split_whitespace().filter(|word| *word != "linkdown" && !word.ends_with(':'));
        words.collect::<Vec<_>>().join(" ")
    };
    looks.iter().map(|look| said(look)).collect()
}

/// Pings until the way is there.
fn reach(from: &Host, to: &str) -> tests::lab::Ping {
    for _ in 0..30 {
        let ping = from.ping(to, 2, Duration::from_millis(200));
        if ping.lost() == 0 {
            return ping;
        }
    }
    from.ping(to, 2, Duration::from_millis(200))
}

/// A TCP connection that carries data all the time, measured where it arrives.
struct Stream {
    client: Child,
    server: Child,
    /// What the server saw, in the end.
    report: std::path::PathBuf,
    way: Way,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Into the host whose node is meddled with.
    In,
    Out,
}

const STREAM: Duration = Duration::from_secs(8);
const TICK: Duration = Duration::from_millis(100);

impl Stream {
    fn start(homes: &Homes, address: &str, way: Way) -> Self {
        let (from, to) = (&homes.host_a, &homes.host_b);
        let report = homes.lab.dir().join("stream");
        let server = to.spawn("iperf3 -s -1 -J -i 0.1", &report);
        let began = Instant::now();
        while !to.run("ss -Hltn sport = :5201").contains("5201") {
            assert!(began.elapsed() < Duration::from_secs(5), "iperf3 does not listen");
            std::thread::sleep(Duration::from_millis(20));
        }
        let mut command = std::process::Command::new("ip");
        command.args(["netns", "exec", &from.namespace, "timeout", "30"]);
        // A trickle: what counts is time, not bytes.
        command.args(["iperf3", "-J", "-c", address, "-i", "0.1", "-b", "4M", "-l", "1000"]);
        command.args(["-t", &STREAM.as_secs().to_string()]);
        if way == Way::Out {
            command.arg("-R");
        }
        let client = command.stdout(Stdio::piped()).spawn().unwrap();
        std::thread::sleep(Duration::from_secs(1));
        Self { client, server, report, way }
    }

    /// The longest time in which nothing arrived, when all is over.
    fn longest_gap(self) -> Duration {
        let Self { client, mut server, report, way } = self;
        let output = client.wait_with_output().unwrap();
        let client: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert!(client["error"].is_null(), "the connection broke: {}", client["error"]);
        let began = Instant::now();
        while server.try_wait().unwrap().is_none() && began.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = server.kill();
        let _ = server.wait();
        let receiver = match way {
            Way::In => serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap(),
            Way::Out => client,
        };
        let intervals = receiver["intervals"].as_array().cloned().unwrap_or_default();
        assert!(intervals.len() > 50, "{receiver}");
        let (mut longest, mut run) = (0, 0);
        for interval in &intervals {
            let stalled = interval["sum"]["bytes"].as_u64() == Some(0);
            run = if stalled { run + 1 } else { 0 };
            longest = longest.max(run);
        }
        let bytes: u64 = intervals.iter().filter_map(|one| one["sum"]["bytes"].as_u64()).sum();
        assert!(bytes > 2_000_000, "{bytes} bytes arrived: {receiver}");
        TICK * longest
    }
}

#[test]
fn the_configuration_names_what_an_agent_may_be_told() {
    let host = "exports: [{cidr: 10.244.0.0/24, mapTo: 10.200.0.0/24, masquerade: never}]\n\
                imports: {mode: listed, cidrs: [10.201.0.0/16]}\nprotected: [10.96.0.0/12]\nexempt: [10.244.0.0/16]\n";
    let mut homes = Homes::new(Nat::PortRestricted, Nat::PortRestricted, "");
    let file = homes.lab.dir().join("config.yaml");
    std::fs::write(&file, format!("apiVersion: config.easynet.io/v1alpha1\nkind: Sidecar\n{host}"))
        .unwrap();
    assert_eq!((homes.a.stop(), homes.b.stop()), (Some(0), Some(0)));
    homes.a.restart(&[&homes.url], &format!("--config {}", file.display()));
    homes.b.restart(&[&homes.url], "--export 10.201.7.0/24,10.202.7.0/24,10.97.0.0/24");
    for node in [&homes.a, &homes.b] {
        node.wait("ready", MOMENT);
        node.wait("peers=1", MOMENT);
    }

    let began = Instant::now();
    let routes = loop {
        let routes = homes.a.json("routes");
        if routes.to_string().contains("installed") {
            break routes;
        }
        assert!(began.elapsed() < MOMENT, "{routes}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let of = |prefix: &str| {
        let mut routes = routes.as_array().unwrap().iter();
        let route = routes.find(|route| route["prefix"] == prefix).cloned().unwrap_or_default();
        (route["state"].as_str().unwrap_or("").to_owned(), route["reason"].to_string())
    };
    assert_eq!(of("10.201.7.0/24").0, "installed", "{routes}");
    assert!(of("10.202.7.0/24").1.contains("not listed"), "{routes}");
    assert!(of("10.97.0.0/24").1.contains("the configuration protects"), "{routes}");
    let table = homes.host_a.run("nft list table inet easynet_eza");
    assert!(table.contains("10.244.0.0/16") && table.contains("10.200.0.0/24"), "{table}");
}
