//! The command line against running nodes: what it shows, what it refuses, what `doctor` finds.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead, BufReader},
    net::Shutdown,
    os::{
        fd::OwnedFd,
        unix::{fs::PermissionsExt, net::UnixStream},
    },
    path::Path,
    process::{Child, Command, ExitStatus, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::lab::{
    Host, Lab, Nat, Node,
    node::{self, SECRET, signal},
};

const MOMENT: Duration = Duration::from_secs(15);

/// Two public hosts with a node each, and a server.
struct World {
    a: Node,
    b: Node,
    _server: Node,
    host_a: Host,
    lab: Lab,
}

impl World {
    fn new(options: &str) -> Self {
        let mut lab = Lab::new();
        let relay = lab.public_host("relay");
        let (host_a, host_b) = (lab.public_host("a"), lab.public_host("b"));
        let (server, url) = node::server(&mut lab, &relay, "server", "");
        let a = Node::start(&lab, &host_a, "a", &[&url], options);
        let b = Node::start(&lab, &host_b, "b", &[&url], "");
        a.wait("peers=1", MOMENT);
        b.wait("peers=1", MOMENT);
        Self { a, b, _server: server, host_a, lab }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn keys(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

/// The value has exactly these keys.
fn assert_keys(value: &Value, expected: &str) {
    assert_eq!(keys(value), expected.split_whitespace().collect(), "{value:#}");
}

/// The value has all of these keys, and maybe more.
fn assert_has(value: &Value, expected: &str) {
    let missing: Vec<&str> =
        expected.split_whitespace().filter(|key| !keys(value).contains(key)).collect();
    assert!(missing.is_empty(), "{missing:?} are missing in {value:#}");
}

fn is_time(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text.len() == 24 && text.ends_with('Z'))
}

#[test]
fn json_has_every_field_of_the_contract() {
    let world = World::new("--export 10.77.0.0/24");
    let target = world.b.ipv4();
    world.host_a.ping(&target, 3, Duration::from_millis(100));
    world.a.wait("direct=b", MOMENT);

    let status = world.a.json("status");
    assert_has(
        &status,
        "network network_id node_id hostname version started_at uptime_s ready ipv4 ipv6 tun listeners servers peers \
         config nat conditions",
    );
    assert_keys(&status["tun"], "name mtu queues offload");
    assert_keys(&status["listeners"][0], "url state error");
    assert_has(&status["servers"][0], "url node_id state rtt_ms");
    assert_keys(&status["peers"], "total direct relayed idle connecting unreachable");
    assert_keys(&status["config"], "source revision applied_at");
    assert_keys(&status["conditions"][0], "type status reason message");
    assert!(is_time(&status["started_at"]) && is_time(&status["config"]["applied_at"]));
    assert_eq!(status["config"]["revision"], 1);
    assert_eq!((&status["ready"], &status["peers"]["total"]), (&true.into(), &1.into()));
    assert!(status["servers"][0]["url"].as_str().unwrap().ends_with(":11010"), "{status}");

    let nat = world.a.json("nat");
    assert_eq!(keys(&nat), keys(&status["nat"]));
    assert_keys(&nat, "v4 v6 udp portmap tested_at");
    assert_keys(&nat["v4"], "mapping filtering allocation hairpin lifetime_s external");
    assert_has(&nat["v4"]["allocation"], "kind");
    assert_keys(&nat["v6"], "kind external");

    let peer = world.a.peer("b");
    assert_keys(
        &peer,
        "node_id hostname ipv4 ipv6 state carrier remote via rtt_ms loss tx_bytes rx_bytes nat version exports since \
         last_error",
    );
    assert_eq!((&peer["state"], &peer["carrier"]), (&"direct".into(), &"udp".into()));
    assert_eq!((&peer["via"], &peer["last_error"]), (&Value::Null, &Value::Null));
    assert!(peer["tx_bytes"].as_u64() >= Some(3 * 84), "{peer}");
    assert!(is_time(&peer["since"]));
    assert_eq!(world.b.peer("a")["exports"], serde_json::json!(["10.77.0.0/24"]));

    let paths = world.a.json("paths b");
    let primary = paths.as_array().unwrap().iter().find(|path| path["state"] == "primary").unwrap();
    assert_has(
        primary,
        "id state carrier local remote relayed rtt_ms rtt_var_ms loss mtu score since",
    );
    assert_eq!(primary["local"].as_str().unwrap().rsplit(':').next(), Some("11010"));

    let routes = world.b.json("routes");
    for route in routes.as_array().unwrap() {
        assert_keys(route, "prefix node_id hostname via metric source state reason");
    }
    let export = routes.as_array().unwrap().iter().find(|route| route["prefix"] == "10.77.0.0/24");
    assert_eq!(export.unwrap()["state"], "installed");
    assert_eq!(export.unwrap()["hostname"], "a");

    let this = world.a.json("node");
    assert_keys(
        &this,
        "node_id hostname version os arch addresses interfaces public_addresses listeners nat capabilities",
    );
    assert_keys(&this["interfaces"][0], "name mtu addresses");
    assert!(
        this["capabilities"].as_array().unwrap().iter().any(|name| name == "chacha20-poly1305")
    );

    let stats = world.a.json("stats");
    assert_has(&stats, "packets bytes drops queues memory");
    for kind in ["packets", "bytes"] {
        assert_keys(&stats[kind], "tx rx");
        assert_keys(&stats[kind]["tx"], "direct relayed");
    }
    let sent = &stats["packets"]["tx"];
    assert!(sent["direct"].as_u64().unwrap() + sent["relayed"].as_u64().unwrap() >= 3, "{stats}");
    assert_keys(&stats["memory"], "rss_bytes allocated_bytes");
    for queue in stats["queues"].as_object().unwrap().values() {
        assert_keys(queue, "len cap dropped");
    }

    let events = world.a.json("events");
    let known = [
        "peer_up",
        "peer_down",
        "path_primary",
        "punch_started",
        "punch_ended",
        "nat_profile",
        "route_added",
        "route_removed",
        "server_attached",
        "server_lost",
        "config_applied",
        "config_rolled_back",
        "address_claimed",
        "address_conflict",
    ];
    for event in events.as_array().unwrap() {
        assert_has(event, "at kind peer message fields");
        assert!(is_time(&event["at"]));
        assert!(known.contains(&event["kind"].as_str().unwrap()), "{event}");
    }
    let won = &world.a.events("path_primary")[0];
    assert!(won["fields"]["reason"].is_string(), "{won}");
    assert_eq!(world.a.events("server_attached").len(), 1);
    assert_eq!(world.a.events("address_claimed").len(), 1);
}

#[test]
fn every_look_has_every_form_and_tables_fit() {
    let world = World::new("");
    let commands = [
        "status",
        "peers",
        "paths b",
        "routes",
        "node",
        "nat",
        "stats",
        "events",
        "config show",
        "doctor --peer b",
    ];
    world.host_a.ping(&world.b.ipv4(), 2, Duration::from_millis(100));
    for command in commands {
        for form in ["table", "wide", "json", "yaml"] {
            let words: Vec<&str> = command.split(' ').chain(["-o", form]).collect();
            let output = world.a.cli(&words);
            let said = text(&output.stdout);
            assert!(output.status.success(), "{command}: {said}{}", text(&output.stderr));
            assert!(!said.contains('\x1b'), "colour only on a terminal");
            assert!(!said.trim().is_empty(), "{command} -o {form}");
            match form {
                "json" => drop(serde_json::from_str::<Value>(&said).unwrap()),
                "yaml" => assert!(said.contains(": ") || said.starts_with("- "), "{said}"),
                "table" if command != "events" => {
                    let widest = said.lines().max_by_key(|line| line.chars().count()).unwrap();
                    assert!(widest.chars().count() <= 100, "{command}: {widest}");
                }
                _ => {}
            }
        }
    }
    for name in [world.b.ipv4(), world.b.ipv6(), "b".to_owned()] {
        assert!(world.a.cli(&["paths", &name]).status.success(), "{name}");
        let ping = world.a.cli(&["ping", &name, "-c", "2", "-i", "0.05"]);
        assert!(ping.status.success(), "{}", text(&ping.stderr));
        assert_eq!(text(&ping.stdout).lines().count(), 2);
        assert!(text(&ping.stdout).contains(" ms, "));
    }
    for command in [["paths", "nobody"], ["ping", "nobody"]] {
        let output = world.a.cli(&command);
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("Nobody in the mesh is called"), "{output:?}");
    }
    for condition in ["direct=nobody", "peers=7"] {
        let output = world.a.cli(&["status", "--wait", condition, "--timeout", "200ms"]);
        assert_eq!(output.status.code(), Some(4));
        assert!(text(&output.stderr).contains(condition), "{output:?}");
    }
}

#[test]
fn metrics_are_there_and_true() {
    let world = World::new("--metrics 127.0.0.1:9100");
    let target = world.b.ipv4();
    world.host_a.ping(&target, 5, Duration::from_millis(100));
    world.a.wait("direct=b", MOMENT);
    world.a.json("peers");
    let get = |path: &str| world.host_a.run(&http("127.0.0.1:9100", path));

    assert!(get("/livez").starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").starts_with("HTTP/1.1 200"));
    let metrics = get("/metrics");
    let value = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("{name} is not in {metrics}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };

    let guide = std::fs::read_to_string("../docs/guide.md").unwrap();
    for name in metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = name.split(' ').next().unwrap();
        assert!(guide.contains(&format!("`{name}")), "{name} is not in the guide");
    }
    assert_eq!(value("easynet_peers{state=\"direct\"}"), 1.0);
    assert_eq!(value("easynet_peers{state=\"relayed\"}"), 0.0);
    let switches = world.a.events("path_primary").len() as f64;
    let counted: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("easynet_path_switches_total{reason="))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(counted, switches);
    let direct: Vec<Value> = world.a.events("path_primary");
    let measured = direct.iter().filter(|event| event["fields"]["after_ms"].is_string()).count();
    assert_eq!(value("easynet_direct_seconds_count"), measured as f64);
    assert!(metrics.contains("# TYPE easynet_punch_attempts counter"));
    let punches = world.a.events("punch_ended").len() as f64;
    let attempts: f64 = metrics
        .lines()
        .filter(|line| line.starts_with("easynet_punch_attempts_total{plan="))
        .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
        .sum();
    assert_eq!(attempts, punches);
    let packets = value("easynet_packets_total{direction=\"tx\",kind=\"direct\"}")
        + value("easynet_packets_total{direction=\"tx\",kind=\"relayed\"}");
    assert!((5.0..50.0).contains(&packets), "{packets}");
    assert!(value("easynet_bytes_total{direction=\"rx\",kind=\"direct\"}") > 0.0);
    assert!(metrics.contains("# TYPE easynet_drops counter"));
    // Bytes: nothing piles up, but a record may be under way.
    let queued = value("easynet_queue_length{queue=\"punt_control\"}");
    assert!(queued < 2048.0, "{queued}");
    assert_eq!(
        value("easynet_lsdb_entries"),
        world.a.json("stats")["lsdb_entries"].as_f64().unwrap()
    );
    assert!(value("easynet_spf_seconds_count") >= 1.0);
    assert!(value("easynet_spf_seconds_sum") < 1.0);
    assert!(value("easynet_rpc_seconds_count{method=\"peers\",outcome=\"ok\"}") >= 1.0);
    assert_eq!(value("easynet_config_revision"), 1.0);
    let rss = value("process_resident_memory_bytes");
    assert!((rss - world.a.rss() as f64).abs() < 4e6, "{rss}");
    assert!(metrics.trim_end().ends_with("# EOF") && metrics.matches("# EOF").count() == 1);
    for secret in [world.b.ipv4(), world.b.json("status")["node_id"].to_string()] {
        assert!(!metrics.contains(secret.trim_matches('"')), "labels are bounded: {metrics}");
    }
}

fn http(addr: &str, path: &str) -> String {
    let (host, port) = addr.rsplit_once(':').unwrap();
    format!(
        "exec bash -c 'exec 3<>/dev/tcp/{host}/{port}; printf \"GET {path} HTTP/1.1\\r\\n\\r\\n\" >&3; cat <&3'"
    )
}

const FILE: &str = "\
apiVersion: config.easynet.io/v1alpha1
kind: Sidecar
transport: {punch: full}
";

#[test]
fn a_reload_applies_what_is_valid_and_nothing_else() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let file = lab.dir().join("config.yaml");
    fs::write(&file, FILE).unwrap();
    let node = Node::start(&lab, &host, "m", &[], &format!("--config {}", file.display()));
    node.wait("ready", MOMENT);
    let shown = |key: &str| {
        let rows = node.json("config show");
        let row = rows.as_array().unwrap().iter().find(|row| row["key"] == key).cloned();
        row.unwrap_or_default()
    };
    assert_keys(&shown("transport.punch"), "key value origin");
    assert_eq!(
        (&shown("transport.punch")["value"], &shown("transport.punch")["origin"]),
        (&"full".into(), &"file".into())
    );
    assert_eq!(shown("network.name")["origin"], "flag");
    assert_eq!(shown("transport.mtu")["origin"], "default");
    let revision = || node.json("status")["config"]["revision"].as_u64().unwrap();

    fs::write(&file, format!("{FILE}rols: 1\n")).unwrap();
    let output = node.cli(&["config", "reload"]);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(said.contains("line 4, column 1: rols: is not known; did you mean roles?"), "{said}");
    assert_eq!((revision(), &shown("transport.punch")["value"]), (1, &"full".into()));

    fs::write(&file, format!("{FILE}metrics: 127.0.0.1:1\n")).unwrap();
    let output = node.cli(&["config", "reload"]);
    assert!(text(&output.stderr).contains("metrics cannot change"), "{output:?}");
    assert_eq!(revision(), 1);

    fs::write(&file, FILE.replace("full", "light")).unwrap();
    let output = node.cli(&["config", "reload"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!((revision(), &shown("transport.punch")["value"]), (2, &"light".into()));
    assert_eq!(node.events("config_applied").len(), 1);
    let output = node.cli(&["config", "reload"]);
    assert!(text(&output.stdout).contains("the same"), "{output:?}");

    fs::write(&file, FILE.replace("full", "off")).unwrap();
    signal(node.pid(), "HUP");
    until("the file is read again", || revision() == 3);
    fs::write(&file, "nonsense").unwrap();
    signal(node.pid(), "HUP");
    until("the log says why", || node.log().contains("Nothing was changed; mend the file"));
    assert_eq!((revision(), &shown("transport.punch")["value"]), (3, &"off".into()));
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < MOMENT, "in vain until {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn events_are_followed_as_they_happen() {
    let world = World::new("");
    let mut child = Command::new(node::binary())
        .args(["events", "--follow", "-o", "json", "--admin"])
        .arg(world.a.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |kind: &str| loop {
        let event: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
        if event["kind"] == kind {
            return event;
        }
    };
    assert!(next("server_attached")["peer"].is_string());

    world.host_a.ping(&world.b.ipv4(), 2, Duration::from_millis(100));

    assert!(next("path_primary")["fields"]["reason"].is_string());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_ping_without_end_says_each_answer_as_it_comes() {
    let world = World::new("");
    let few = world.a.cli(&["ping", "b", "-c", "2", "-i", "0.05", "-o", "json"]);
    let few: Value = serde_json::from_slice(&few.stdout).unwrap();
    let mut child = Command::new(node::binary())
        .args(["ping", "b", "-c", "0", "-i", "0.05", "-o", "json", "--admin"])
        .arg(world.a.socket())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let (sender, lines) = mpsc::channel();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    thread::spawn(move || stdout.lines().try_for_each(|line| sender.send(line.unwrap())));
    let next = || serde_json::from_str(&lines.recv_timeout(MOMENT).unwrap()).unwrap();
    let many: [Value; 2] = [next(), next()];
    child.kill().unwrap();
    child.wait().unwrap();

    assert_eq!(few.as_array().unwrap().len(), 2, "what has an end is one document: {few}");
    for (index, answer) in many.iter().enumerate() {
        assert_keys(answer, "number peer rtt_ms relayed remote");
        assert_eq!(answer["number"], index + 1);
        assert!(answer["rtt_ms"].is_number(), "{answer}");
    }
}

#[test]
fn what_has_no_end_ends_quietly_when_nobody_reads_it() {
    let world = World::new("");
    for (what, args) in [
        ("what writes again", "ping b -c 0 -i 0.05"),
        ("what has nothing more to write", "ping b -c 0 -i 600"),
        ("what waits for news", "events --follow"),
    ] {
        let command = format!(
            "{{ {} {args} --admin {}; echo $? >&2; }} | head -1",
            node::binary().display(),
            world.a.socket().display()
        );
        let child = Command::new("timeout")
            .args([&MOMENT.as_secs().to_string(), "sh", "-c", &command])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();

        let output = child.wait_with_output().unwrap();

        assert!(output.status.success(), "{what} goes on: {output:?}");
        assert_eq!(text(&output.stdout).lines().count(), 1, "{what}: {output:?}");
        assert_eq!(text(&output.stderr), "0\n", "{what}");
    }

    for (what, args) in [
        ("what has nothing more to write to a socket", "ping b -c 0 -i 600"),
        ("what waits for news to write to a socket", "events --follow"),
    ] {
        let (reader, out) = UnixStream::pair().unwrap();
        let mut child = start_asking(&world.a, args, OwnedFd::from(out));
        let mut reader = BufReader::new(reader);
        assert!(reader.read_line(&mut String::new()).unwrap() > 0, "{what}");
        // It only says that it will send nothing, as the end of a pipe into a socket does.
        reader.get_ref().shutdown(Shutdown::Write).unwrap();
        thread::sleep(Duration::from_millis(300));
        assert!(child.try_wait().unwrap().is_none(), "{what} is read");

        drop(reader);

        assert_eq!(ends(&mut child).code(), Some(0), "{what}");
    }

    let fifo = world.lab.dir().join("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let reader = {
        let fifo = fifo.clone();
        thread::spawn(move || BufReader::new(fs::File::open(fifo).unwrap()))
    };
    let out = fs::File::options().write(true).open(&fifo).unwrap();
    let mut reader = reader.join().unwrap();
    let mut child = start_asking(&world.a, "ping b -c 0 -i 600", out);
    assert!(reader.read_line(&mut String::new()).unwrap() > 0);
    drop(reader);
    assert_eq!(ends(&mut child).code(), Some(0), "a named pipe");
}

#[test]
fn a_ping_that_ends_tells_its_outcome_also_when_nobody_reads_it() {
    let world = World::new("");
    let ping = |args: &str| {
        let (reader, out) = UnixStream::pair().unwrap();
        drop(reader);
        let mut child = start_asking(&world.a, args, OwnedFd::from(out));
        ends(&mut child).code()
    };
    assert_eq!(ping("ping b -c 2 -i 600"), Some(0), "answered, and nothing more to say");
    assert_eq!(ping("ping nobody -c 2"), Some(1), "there is no such peer");

    signal(world.b.pid(), "STOP");

    let outcome = ping("ping b -c 1");
    signal(world.b.pid(), "CONT");
    assert_eq!(outcome, Some(1), "not answered");
}

/// A command of the command line against a node, with this standard output.
fn start_asking(node: &Node, args: &str, out: impl Into<Stdio>) -> Child {
    let mut command = Command::new(node::binary());
    command.args(args.split(' ')).arg("--admin").arg(node.socket());
    command.stdout(out).stderr(Stdio::null()).spawn().unwrap()
}

/// How a process ends, which it does soon.
fn ends(child: &mut Child) -> ExitStatus {
    let deadline = Instant::now() + MOMENT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("it goes on");
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn lines_of_the_log_have_values_as_fields_and_no_address_of_a_peer() {
    let world = World::new("--log-format json");
    world.host_a.ping(&world.b.ipv4(), 2, Duration::from_millis(100));
    let lines = || {
        let log = world.a.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines.collect::<Vec<_>>()
    };
    let of_kind = |kind: &str| lines().into_iter().find(|line| line["kind"] == kind);
    until("the path is told", || of_kind("path_primary").is_some());

    let line = of_kind("path_primary").unwrap();

    assert_eq!(line["level"], "INFO", "{line}");
    assert!(line["message"].as_str().is_some_and(|said| said.contains("traffic")), "{line}");
    assert_eq!(line["peer"], world.b.json("status")["node_id"], "{line}");
    assert!(line["reason"].is_string(), "{line}");
    assert!(line["after_ms"].is_null() || line["after_ms"].is_u64(), "{line}");
    let attached = of_kind("server_attached").unwrap();
    assert!(attached["peer"].is_string(), "{attached}");
    let addresses = [world.b.ipv4(), world.b.ipv6()];
    assert!(addresses.iter().all(|address| !address.is_empty()), "{addresses:?}");
    for line in lines() {
        let text = line.to_string();
        assert!(!addresses.iter().any(|address| text.contains(address)), "{line}");
    }
}

#[test]
fn an_admin_socket_over_tcp_opens_only_for_the_token() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let (token, wrong) = (lab.dir().join("token"), lab.dir().join("wrong"));
    fs::write(&token, "0123456789abcdefgh\n").unwrap();
    fs::write(&wrong, "0123456789abcdefgi\n").unwrap();
    fs::write(lab.dir().join("secret"), SECRET).unwrap();
    let binary = node::binary().display().to_string();
    let dir = lab.dir().display().to_string();
    let command = |name: &str, tun: &str| {
        format!(
            "{binary} run --network lab --secret-file {dir}/secret --state-dir {dir}/{name} --tun {tun} --listen none \
             --admin 127.0.0.1:0 --admin-token-file {dir}/token"
        )
    };
    let address = |log: &Path| {
        let mut found = None;
        until("the address is printed", || {
            let log = fs::read_to_string(log).unwrap_or_default();
            found = log.lines().find_map(|line| line.strip_prefix("admin ").map(str::to_owned));
            found.is_some()
        });
        found.unwrap()
    };
    let (first, second) = (lab.dir().join("first.log"), lab.dir().join("second.log"));
    let child = host.spawn(&command("first", "ezm0"), &first);
    lab.keep(child);
    assert_eq!(address(&first), "127.0.0.1:15888");
    let child = host.spawn(&command("second", "ezm1"), &second);
    lab.keep(child);
    assert_eq!(address(&second), "127.0.0.1:15889", "the first free one");

    let ask = |options: &str| {
        host.try_run(&format!("{binary} status -o json --admin 127.0.0.1:15888 {options}"))
    };
    let opened = ask(&format!("--admin-token-file {}", token.display()));
    let status: Value = serde_json::from_slice(&opened.stdout).unwrap();
    assert_eq!(status["network"], "lab");
    let refused = ask(&format!("--admin-token-file {}", wrong.display()));
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("the token is another one"), "{refused:?}");
    assert_eq!(ask("").status.code(), Some(2));
    fs::write(&wrong, "short").unwrap();
    assert_eq!(ask(&format!("--admin-token-file {}", wrong.display())).status.code(), Some(2));
    // A caller of the unix socket's protocol, without a nonce.
    let garbage = host.try_run(
        "printf 'GET / HTTP/1.1\\r\\n\\r\\n' | timeout 2 bash -c 'cat >/dev/tcp/127.0.0.1/15888'",
    );
    drop(garbage);
    assert!(ask(&format!("--admin-token-file {}", token.display())).status.success());
}

/// Runs a node that will not come up; its exit code and what it said.
fn start(host: &Host, lab: &Lab, wrapper: &str, options: &str) -> Output {
    fs::write(lab.dir().join("secret"), SECRET).unwrap();
    let dir = lab.dir().display().to_string();
    let or = |flag: &str, name: &str| match options.contains(flag) {
        true => String::new(),
        false => format!("{flag} {dir}/{name}"),
    };
    let (state, admin) = (or("--state-dir", "state"), or("--admin", "sock"));
    host.try_run(&format!(
        "timeout 20 {wrapper} {} run --network lab --secret-file {dir}/secret {state} {admin} {options}",
        node::binary().display()
    ))
}

fn assert_refused(output: &Output, code: i32, what: &str, remedy: &str) {
    let said = text(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert!(last.starts_with("easynet: ") && last.ends_with('.'), "{said}");
    assert!(last.contains(what) && last.contains(remedy), "{said}");
}

#[test]
fn a_node_that_cannot_start_says_why_and_leaves_nothing() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let other = Node::start(&lab, &host, "o", &[], "");
    other.wait("ready", MOMENT);
    let links = host.run("ip -o link | wc -l");

    let taken = start(&host, &lab, "", "--tun ezx");
    assert_refused(
        &taken,
        1,
        "Cannot listen on UDP port 11010",
        "--listen; 0 takes the first free",
    );
    let name = start(&host, &lab, "", &format!("--tun {} --listen 0", other.tun));
    assert_refused(&name, 1, "is in use", "Choose another one");
    let locked = start(
        &host,
        &lab,
        "",
        &format!("--listen 0 --tun ezx --state-dir {}", other.state_dir().display()),
    );
    assert_refused(&locked, 1, "Another easynet runs with the state directory", "--state-dir");
    let socket = start(
        &host,
        &lab,
        "",
        &format!("--listen 0 --tun ezx --admin {}", other.socket().display()),
    );
    assert_refused(&socket, 1, "Another node answers on the admin socket", "--admin");
    let metrics = start(&host, &lab, "", "--tun ezx --listen 0 --metrics 192.0.2.1:1");
    assert_refused(&metrics, 1, "Cannot serve metrics on 192.0.2.1:1", "--metrics");
    let weak = "setpriv --inh-caps -net_admin --bounding-set -net_admin";
    let unprivileged = start(&host, &lab, weak, "--tun ezx --listen 0");
    assert_refused(&unprivileged, 1, "is not permitted", "CAP_NET_ADMIN");

    assert_eq!(host.run("ip -o link | wc -l"), links, "{}", host.run("ip link"));
    assert_eq!(host.run("ip rule | grep -c 0x3000").trim(), "1");
    assert!(!lab.dir().join("sock").exists());
    assert_eq!(other.json("status")["ready"], true, "the other goes on");
}

#[test]
fn a_door_that_is_taken_is_said_before_anything_is_told_to_others() {
    let mut lab = Lab::new();
    let (host_o, host_m) = (lab.public_host("o"), lab.public_host("m"));
    let other = Node::start(&lab, &host_o, "o", &[], "");
    let neighbour = Node::start(&lab, &host_m, "n", &[], "--metrics 127.0.0.1:9100");
    other.wait("ready", MOMENT);
    neighbour.wait("ready", MOMENT);
    host_o.run(&format!(
        "nft 'add table ip watch; add chain ip watch in {{ type filter hook input priority 0; }}; \
         add rule ip watch in ip saddr {} counter'",
        host_m.address
    ));
    let url = format!("udp://{}:11010", host_o.address);
    let begin = |options: &str| {
        start(&host_m, &lab, "", &format!("--listen 0 --tun ezx -p {url} {options}"))
    };

    let metrics = begin("--metrics 127.0.0.1:9100");
    let admin = begin(&format!("--admin {}", neighbour.socket().display()));

    assert_refused(&metrics, 1, "Cannot serve metrics on 127.0.0.1:9100", "--metrics");
    assert_refused(&admin, 1, "Another node answers on the admin socket", "--admin");
    assert!(!lab.dir().join("sock").exists());
    let heard = host_o.run("nft list table ip watch");
    assert!(heard.contains("counter packets 0 "), "{heard}");
}

#[test]
fn a_port_that_is_taken_for_tcp_alone_is_said_and_udp_goes_on() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    squat(&mut lab, &host, "STREAM");
    until("the port is taken", || host.run("ss -Hltn sport = :11010").contains("11010"));
    let node = Node::start(&lab, &host, "m", &[], "");
    node.wait("ready", MOMENT);

    let status = node.json("status");
    let tcp = status["listeners"].as_array().unwrap().iter().find(|row| row["state"] == "failed");
    assert!(tcp.unwrap()["error"].as_str().unwrap().contains("in use"), "{status}");
    let found = doctor(&node, "ports");
    assert_eq!(found["level"], "wrong");
    assert!(found["remedy"].as_str().unwrap().contains("--listen"), "{found}");

    let agents = lab.dir().join("agents");
    fs::create_dir(&agents).unwrap();
    std::os::unix::fs::symlink(node.socket(), agents.join("prod.sock")).unwrap();
    let output = node.cli(&["doctor", "--agents", agents.to_str().unwrap(), "-o", "json"]);
    assert_eq!(finding(&output, "prod ports")["level"], "wrong", "the same, as an agent of prod");
}

#[test]
fn a_full_disk_stops_nothing() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let (host_a, host_b) = (lab.public_host("a"), lab.public_host("b"));
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    let dir = lab.dir().display().to_string();
    fs::write(lab.dir().join("secret"), SECRET).unwrap();
    fs::create_dir_all(lab.dir().join("full")).unwrap();
    // The key has been made; then somebody fills the disk.
    let script = format!(
        "mount -t tmpfs -o size=64k none {dir}/full && {bin} key show --state-dir {dir}/full/state >/dev/null && \
         (cat /dev/zero >{dir}/full/filler; true) 2>/dev/null; cat {dir}/full/state/node.key | wc -c; exec {bin} run --network lab \
         --secret-file {dir}/secret --hostname a --state-dir {dir}/full/state --admin {dir}/sock --tun eza -p {url}",
        bin = node::binary().display()
    );
    let log = lab.dir().join("a.log");
    let child = host_a.spawn(&format!("unshare -m sh -c '{script}'"), &log);
    lab.keep(child);
    let reached = b.cli(&["status", "--wait", "peers=1", "--timeout", "15s"]);

    let said = fs::read_to_string(&log).unwrap();
    assert!(reached.status.success(), "{said}");
    assert!(said.starts_with("64\n"), "{said}");
    assert!(said.contains("Could not keep the state; going on without"), "{said}");
    // That b knows a does not mean that a has a route to b yet.
    until("a reaches b", || host_a.ping(&b.ipv4(), 3, Duration::from_millis(100)).lost() == 0);
}

#[test]
fn a_peer_that_never_answers_keeps_a_node_alive_and_waiting() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let silent = lab.public_host("silent");
    let url = format!("udp://{}:11010", silent.address);
    let node = Node::start(&lab, &host, "m", &[&url], "");
    let output = node.cli(&["status", "--wait", "ready", "--timeout", "1s"]);

    assert_eq!(output.status.code(), Some(4));
    let said = text(&output.stderr);
    assert!(said.contains("No configured peer or server answers yet"), "{said}");
    let found = doctor(&node, &format!("start {url}"));
    assert_eq!((&found["level"], &found["message"]), (&"wrong".into(), &"does not answer".into()));
    assert!(found["remedy"].as_str().unwrap().contains("UDP and TCP"), "{found}");
    let get = Node::start(&lab, &silent, "silent", &[], "");
    get.wait("ready", MOMENT);
    node.wait("ready", MOMENT);
    assert_eq!(doctor(&node, &format!("start {url}"))["level"], "ok");
}

/// Takes the default port for one protocol.
fn squat(lab: &mut Lab, host: &Host, kind: &str) {
    let script = lab.dir().join("squat.py");
    let code = format!(
        "import socket, time\ns = socket.socket(socket.AF_INET, socket.SOCK_{kind})\ns.bind((\"\", 11010))\n\
         if \"{kind}\" == \"STREAM\": s.listen()\ntime.sleep(60)\n"
    );
    fs::write(&script, code).unwrap();
    let child = host.spawn(&format!("python3 {}", script.display()), &lab.dir().join("squatter"));
    lab.keep(child);
}

/// What `easynet doctor` finds in one check.
fn doctor(node: &Node, check: &str) -> Value {
    let output = node.cli(&["doctor", "-o", "json"]);
    finding(&output, check)
}

fn finding(output: &Output, check: &str) -> Value {
    let findings: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)));
    let list = findings.as_array().unwrap();
    for finding in list {
        assert_keys(finding, "check level message remedy");
        assert_eq!(finding["level"] == "ok", finding["remedy"].is_null(), "{finding}");
    }
    let wrong = list.iter().any(|finding| finding["level"] == "wrong");
    assert_eq!(output.status.code(), Some(i32::from(wrong)));
    let found = list.iter().find(|finding| finding["check"] == check);
    found.unwrap_or_else(|| panic!("no {check} in {findings:#}")).clone()
}

#[test]
fn doctor_names_a_wrong_secret_on_both_sides() {
    let mut lab = Lab::new();
    let (host_m, host_o) = (lab.public_host("m"), lab.public_host("o"));
    let member = Node::start(&lab, &host_m, "m", &[], "");
    member.wait("ready", MOMENT);
    let url = format!("udp://{}:11010", host_m.address);
    let mut outsider = Node::start(&lab, &host_o, "o", &[], "");
    outsider.wait("ready", MOMENT);
    outsider.stop();
    outsider.set_secret("another secret of some length");
    outsider.restart(&[&url], "");
    until("it says who it is", || {
        outsider.cli(&["status"]).status.success()
            && outsider.json("status")["servers"][0]["node_id"].is_string()
    });

    let found = doctor(&outsider, &format!("start {url}"));
    assert_eq!(found["level"], "wrong");
    assert!(found["message"].as_str().unwrap().contains("secret is another one"), "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("network id"), "{found}");
    until("the member has counted it", || {
        member.json("stats")["drops"]["wrong_network"].as_u64() > Some(0)
    });
    let found = doctor(&member, "strangers");
    assert!(
        found["message"].as_str().unwrap().contains("another network name or secret"),
        "{found}"
    );
}

#[test]
fn doctor_names_a_wrong_key_of_a_server() {
    let mut lab = Lab::new();
    let (host_r, host_s) = (lab.public_host("r"), lab.public_host("s"));
    let host = lab.public_host("m");
    let (_first, url) = node::server(&mut lab, &host_r, "first", "");
    let (_second, other) = node::server(&mut lab, &host_s, "second", "");
    let (place, key) = (url.split('?').next().unwrap(), other.split('?').nth(1).unwrap());
    let node = Node::start(&lab, &host, "m", &[&format!("{place}?{key}")], "");
    until("it answers", || node.cli(&["status"]).status.success());

    // Asked from outside the node's namespace, as here, the way to the server is not the node's.
    let found = doctor(&node, &format!("start {place}"));

    assert_eq!(found["level"], "wrong", "{found}");
    assert_eq!(found["message"], "answers with another key than ?k=", "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("easynet server"), "{found}");
}

#[test]
fn doctor_sees_that_udp_is_blocked_and_why_a_peer_is_relayed() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site = lab.site("ra", Nat::UdpBlocked);
    let host_a = lab.host(&mut site, "a");
    let host_b = lab.public_host("b");
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "--p2p relay-only");
    a.wait("peers=1", MOMENT);
    host_a.ping(&b.ipv4(), 5, Duration::from_millis(100));
    until("STUN was tried", || !a.json("nat")["tested_at"].is_null());

    let found = doctor(&a, "udp");
    assert_eq!(found["level"], "wrong", "{found}");
    assert!(found["message"].as_str().unwrap().contains("blocked"), "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("Let UDP out"), "{found}");
    let peer = finding(&a.cli(&["doctor", "--peer", "b", "-o", "json"]), "peer b");
    assert!(peer["message"].as_str().unwrap().contains("UDP is blocked"), "{peer}");
    let peer = finding(&b.cli(&["doctor", "--peer", "a", "-o", "json"]), "peer a");
    assert!(peer["message"].as_str().unwrap().contains("relay-only"), "{peer}");
    let nobody = finding(&b.cli(&["doctor", "--peer", "x", "-o", "json"]), "peer x");
    assert!(nobody["message"].as_str().unwrap().contains("nobody"), "{nobody}");
}

#[test]
fn doctor_says_what_keeps_a_node_from_starting() {
    let mut lab = Lab::new();
    let (host, silent) = (lab.public_host("m"), lab.public_host("silent"));
    let relay = lab.public_host("relay");
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    squat(&mut lab, &host, "DGRAM");
    until("the port is taken", || host.run("ss -Hlun sport = :11010").contains("11010"));
    let file = lab.dir().join("config.yaml");
    let silent_url = format!("udp://{}:11010", silent.address);
    fs::write(
        &file,
        format!(
            "apiVersion: config.easynet.io/v1alpha1\nkind: Sidecar\npeers: [\"{url}\", \"{silent_url}\"]\n\
             node: {{stateDir: /proc/nowhere}}\n"
        ),
    )
    .unwrap();
    let resolv = lab.dir().join("resolv.conf");
    fs::write(&resolv, format!("nameserver {}\n", silent.address)).unwrap();
    let run = |wrapper: &str| {
        host.try_run(&format!(
            "unshare -m sh -c 'mount --bind {} /etc/resolv.conf; exec {wrapper} {} doctor -o json --admin {}/none --config {}'",
            resolv.display(),
            node::binary().display(),
            lab.dir().display(),
            file.display()
        ))
    };

    let output = run("setpriv --inh-caps -net_admin --bounding-set -net_admin");

    let level = |check: &str| finding(&output, check)["level"].as_str().unwrap().to_owned();
    assert_eq!(level("node"), "wrong");
    assert_eq!(level("privileges"), "wrong");
    assert!(finding(&output, "privileges")["remedy"].as_str().unwrap().contains("NET_ADMIN"));
    assert_eq!(level("tun"), "ok");
    assert_eq!(level("ports"), "wrong");
    assert_eq!(level("state"), "wrong");
    assert_eq!(level("dns"), "wrong");
    assert_eq!(level(&format!("start {silent_url}")), "wrong");
    assert_eq!(level(&format!("start {}", url.split('?').next().unwrap())), "ok");
    assert_eq!(finding(&run(""), "privileges")["level"], "ok");
}

#[test]
fn doctor_sees_a_clock_that_is_an_hour_off() {
    let mut lab = Lab::new();
    let source = lab.dir().join("clock.c");
    fs::write(
        &source,
        "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
         int clock_gettime(clockid_t id, struct timespec *t) {\n\
         int r = syscall(SYS_clock_gettime, id, t);\n if (r == 0 && id == CLOCK_REALTIME) t->tv_sec += 3600;\n return r;\n}\n",
    )
    .unwrap();
    let library = lab.dir().join("clock.so");
    let built =
        Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
    assert!(built.unwrap().success(), "cc is missing: apt-get install gcc");
    let (relay, host_a, host_b) =
        (lab.public_host("relay"), lab.public_host("a"), lab.public_host("b"));
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    b.wait("ready", MOMENT);
    fs::write(lab.dir().join("secret"), SECRET).unwrap();
    let (dir, binary) = (lab.dir().display().to_string(), node::binary().display().to_string());
    let command = format!(
        "env LD_PRELOAD={} {binary} run --network lab --secret-file {dir}/secret --hostname a --state-dir {dir}/state \
         --admin {dir}/sock --tun eza -p {url}",
        library.display()
    );
    let child = host_a.spawn(&command, &lab.dir().join("log"));
    lab.keep(child);
    let socket = lab.dir().join("sock");
    let cli = |args: &[&str]| {
        Command::new(node::binary()).args(args).arg("--admin").arg(&socket).output().unwrap()
    };
    let ready = cli(&["status", "--wait", "ready", "--timeout", "15s"]);
    assert!(ready.status.success(), "{}", text(&ready.stderr));

    let found = finding(&cli(&["doctor", "-o", "json"]), "clock");

    assert_eq!(found["level"], "wrong");
    // Both clocks count whole seconds, so the difference may be one off either way.
    let message = found["message"].as_str().unwrap();
    assert!((3599..=3601).any(|off| message.contains(&format!("-{off} s"))), "{found}");
    assert!(found["remedy"].as_str().unwrap().contains("NTP"), "{found}");
    assert_eq!(doctor(&b, "clock")["level"], "ok");
}

#[test]
fn a_firewall_that_drops_what_is_forwarded_is_named() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    host.run("nft add table ip other; nft \"add chain ip other FORWARD { type filter hook forward priority 0; policy drop; }\"");
    let node = Node::start(&lab, &host, "m", &[], "--export 10.77.0.0/24");
    node.wait("ready", MOMENT);
    let condition = || {
        let status = node.json("status");
        let rows = status["conditions"].as_array().unwrap().clone();
        rows.into_iter().find(|row| row["type"] == "ForwardingOpen").unwrap_or_default()
    };
    until("it was looked at", || !condition().is_null());

    assert_eq!(condition()["status"], false);
    assert!(condition()["message"].as_str().unwrap().contains("other FORWARD"), "{}", condition());
    let found = doctor(&node, "forwarding");
    assert_eq!(found["level"], "wrong");
    assert!(found["remedy"].as_str().unwrap().contains("accept"), "{found}");
}

#[test]
fn a_state_directory_that_is_open_to_others_is_warned_of() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let mut node = Node::start(&lab, &host, "m", &[], "");
    node.wait("ready", MOMENT);
    node.stop();
    let chmod = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(&node.state_dir(), 0o777);
    chmod(&node.state_dir().join("node.key"), 0o644);
    node.restart(&[], "");
    node.wait("ready", MOMENT);

    let log = node.log();
    for what in ["state (mode 0777)", "node.key (mode 0644)"] {
        assert!(log.lines().any(|line| line.contains(" WARN ") && line.contains(what)), "{log}");
    }
    let found = doctor(&node, "state");
    assert_eq!(found["level"], "wrong", "{found}");
    assert!(found["message"].as_str().unwrap().starts_with("others can replace the key in "));
    assert!(found["remedy"].as_str().unwrap().contains("`chmod 700 "), "{found}");
}

#[test]
fn a_running_nodes_key_can_be_shown() {
    let mut lab = Lab::new();
    let host = lab.public_host("m");
    let node = Node::start(&lab, &host, "m", &[], "");
    node.wait("ready", MOMENT);
    let output = Command::new(node::binary())
        .args(["key", "show", "-o", "json", "--state-dir"])
        .arg(node.state_dir())
        .output()
        .unwrap();
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();

    assert_eq!(shown["node_id"], node.json("status")["node_id"]);
}
