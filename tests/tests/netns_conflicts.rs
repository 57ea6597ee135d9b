//! Two that claim the same: resolved the same way everywhere, and told.

#![allow(clippy::unwrap_used)]

use std::{
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tests::lab::{Host, Lab, Node, homes::MOMENT, node};

/// Three public hosts and a server, with no nodes yet.
fn hosts(lab: &mut Lab) -> ([Host; 3], Node, String) {
    let relay = lab.public_host("relay");
    let hosts = ["a", "b", "m"].map(|name| lab.public_host(name));
    let (server, url) = node::server(lab, &relay, "server", "");
    (hosts, server, url)
}

/// Waits until the node says that something is claimed twice; what it says.
fn conflict(node: &Node) -> String {
    let start = Instant::now();
    loop {
        let status = node.json("status");
        let conditions = status["conditions"].as_array().unwrap();
        let found = conditions.iter().find(|one| one["type"] == "AddressConflictFree").unwrap();
        if found["status"] == false {
            return found["message"].as_str().unwrap().to_owned();
        }
        assert!(start.elapsed() < MOMENT, "{} sees no conflict: {status}", node.name);
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn routes(node: &Node, prefix: &str) -> Vec<(String, String)> {
    let routes = node.json("routes");
    let rows = routes.as_array().unwrap().iter().filter(|row| row["prefix"] == prefix);
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut rows: Vec<_> = rows.map(|row| (text(&row["state"]), text(&row["hostname"]))).collect();
    rows.sort();
    rows
}

#[test]
fn an_address_and_a_prefix_that_two_claim_have_one_owner_and_are_told() {
    let mut lab = Lab::new();
    let ([host_a, host_b, host_m], _server, url) = hosts(&mut lab);
    let same = "--ipv4 100.112.9.9/16 --export 10.77.0.0/24";
    let a = Node::start(&lab, &host_a, "a", &[&url], same);
    let b = Node::start(&lab, &host_b, "b", &[&url], same);
    let m = Node::start(&lab, &host_m, "m", &[&url], "");
    m.wait("peers=2", MOMENT);

    let said = conflict(&m);
    assert!(said.contains("10.77.0.0/24") || said.contains("100.112.9.9"), "{said}");
    for prefix in ["10.77.0.0/24", "100.112.9.9/32"] {
        let rows = routes(&m, prefix);
        let states: Vec<&str> = rows.iter().map(|(state, _)| state.as_str()).collect();
        assert_eq!(states, ["installed", "shadowed"], "{prefix}: {rows:?}");
    }
    assert!(!m.events("address_conflict").is_empty());
    // Whose it is does not change while nothing else does.
    let owner = routes(&m, "100.112.9.9/32")[0].1.clone();
    let ping = m.cli(&["ping", "100.112.9.9", "-c", "2", "-i", "0.1"]);
    assert!(ping.status.success(), "{}", String::from_utf8_lossy(&ping.stderr));
    assert_eq!(routes(&m, "100.112.9.9/32")[0].1, owner);
    // The two themselves see it as well.
    assert!(!conflict(&a).is_empty() && !conflict(&b).is_empty());
}

#[test]
fn a_second_node_with_the_same_key_is_told_of() {
    let mut lab = Lab::new();
    let ([host_a, host_b, _], _server, url) = hosts(&mut lab);
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    a.wait("ready", MOMENT);
    let twin = lab.dir().join("b");
    std::fs::create_dir_all(&twin).unwrap();
    let copied = Command::new("cp").arg("-a").arg(a.state_dir()).arg(&twin).status().unwrap();
    assert!(copied.success());

    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    b.wait("ready", MOMENT);
    assert_eq!(a.json("status")["node_id"], b.json("status")["node_id"]);

    let start = Instant::now();
    let said = loop {
        let found = [&a, &b].iter().flat_map(|node| node.events("address_conflict")).next();
        if let Some(event) = found {
            break event["message"].as_str().unwrap().to_owned();
        }
        assert!(start.elapsed() < MOMENT, "{} {}", a.json("events"), b.json("events"));
        std::thread::sleep(Duration::from_millis(200));
    };
    assert!(said.contains("runs with this node's key"), "{said}");
    assert!(said.contains("state directory"), "what to do: {said}");
    let told = [&a, &b].iter().any(|node| {
        let status = node.json("status")["conditions"].to_string();
        status.contains("runs with this node's key")
    });
    assert!(told, "{}", b.json("status"));
    let told = [&a, &b].iter().any(|node| {
        let findings = node.cli(&["doctor", "-o", "json"]).stdout;
        let findings: Value = serde_json::from_slice(&findings).unwrap();
        let found = findings.as_array().unwrap().iter().find(|one| one["check"] == "key").unwrap();
        found["level"] == "wrong" && found["remedy"].as_str().unwrap().contains("node.key")
    });
    assert!(told, "{}", String::from_utf8_lossy(&a.cli(&["doctor"]).stdout));
}
