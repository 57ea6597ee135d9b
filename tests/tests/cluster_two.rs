//! Two whole clusters behind two NATs, with the same ranges of pods and services, and a public server between them.

#![allow(clippy::print_stdout)]

use std::{thread, time::Duration};

use serde_json::{Value, json};
use tests::{
    cluster::{
        Cluster, POD_RANGE, has_condition,
        measure::{Speed, memory},
        product::NAMESPACE,
    },
    lab::{Lab, Nat, node},
};

/// For what a cluster does within moments.
const MOMENT: Duration = Duration::from_secs(30);
/// A ClusterIP.
const SERVICE: &str = "10.96.0.80";

#[test]
fn whole_clusters_run_pods_that_reach_each_other_and_the_internet_but_not_the_other_cluster() {
    let mut lab = Lab::new();
    let server = lab.public_host("server");
    let plans = [("a", Nat::PortRestricted, 2), ("b", Nat::PortRestricted, 1)];
    let [mut a, b] = Cluster::start_all(&mut lab, plans, &[]);

    let web = a.web_pod("web", "a-n1", "hello");
    assert_eq!(web, "10.244.1.2");
    a.pod("client", "a-n2", "exec sleep 3600");
    assert_eq!(a.fetch("client", &web, 8080).as_deref(), Some("hello"));

    let service = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"clusterIP": SERVICE, "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    a.kubectl_with(&["apply", "-f", "-"], &service.to_string()).ok();
    a.wait("the service answers", MOMENT, || a.fetch("client", SERVICE, 80).is_some());

    b.pod("client", "b-n1", "exec sleep 3600");
    for (cluster, own) in [(&a, true), (&b, false)] {
        let reached = cluster.fetch("client", SERVICE, 80).is_some();
        assert_eq!(reached, own, "cluster {}", cluster.name);
        cluster.exec("client", &format!("ping -c 1 -W 2 {}", server.address)).ok();
    }

    // A node that loses power comes back with its pods.
    a.nodes[0].crash();
    a.nodes[0].start();
    a.wait("the pod is back", 3 * MOMENT, || {
        a.fetch("client", SERVICE, 80).is_some()
            && a.object("node/a-n1", &[]).is_some_and(|node| has_condition(&node, "Ready"))
    });
}

#[test]
fn two_clusters_with_equal_ranges_become_one_network_that_outlives_its_operator() {
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let (mut server, url) = node::server(&mut lab, &relay, "relay", "");
    let plans = [("a", Nat::PortRestricted, 2), ("b", Nat::PortRestricted, 1)];
    let [mut a, b] = Cluster::start_all(&mut lab, plans, &[]);
    thread::scope(|scope| {
        for cluster in [&a, &b] {
            scope.spawn(move || {
                cluster.load_easynet();
                cluster.install_easynet(&[]);
            });
        }
    });

    they_become_one_network(&a, &b, &url);
    let web = pods_reach_pods(&a, &b);
    pods_are_as_fast_as_their_nodes(&a, &b);
    keys_change_and_nobody_is_renumbered(&a, &b, &web);
    a_node_that_is_deleted_goes_and_may_come_back(&mut a, &b);

    // Without operators and public server traffic goes on.
    for cluster in [&a, &b] {
        scale(cluster, "0");
    }
    server.stop();
    assert_eq!(b.fetch("client", &web, 8080).as_deref(), Some("from-a"));
    let (_server, again) = node::server(&mut lab, &relay, "relay", "");
    assert_eq!(again, url, "its key is kept");
    let agents = ["-n", NAMESPACE, "delete", "pod", "-l", "easynet.io/network=prod"];
    b.kubectl(&agents).ok();
    b.wait("a new agent runs from what is on disk", MOMENT, || {
        b.fetch("client", &web, 8080).as_deref() == Some("from-a")
    });

    for cluster in [&a, &b] {
        nothing_is_left(cluster);
    }
}

/// The first makes the network and maps its pods out of the way of others; the second joins by what the first prints.
fn they_become_one_network(a: &Cluster, b: &Cluster, url: &str) {
    let spec = json!({
        "clusterName": "a",
        "bootstrap": {"peers": [url]},
        "routing": {"exports": [{"cidr": POD_RANGE, "mapTo": "10.200.0.0/16"}]},
    });
    a.apply_network("prod", &spec).ok();
    println!("first cluster: Ready after {:?}", a.network_ready("prod"));
    let (invitation, _) = a.invite("prod", "b", &["--pod-cidr", POD_RANGE]);
    b.kubectl_with(&["apply", "-f", "-"], &invitation).ok();
    println!("second cluster: Ready after {:?}", b.network_ready("prod"));
    let id = |cluster: &Cluster| {
        let network = cluster.object("easynetwork/prod", &[]).unwrap_or_default();
        network["status"]["networkID"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(id(a), id(b));
}

/// By mapped addresses, both ways, directly. The address of a's pod as b sees it.
fn pods_reach_pods(a: &Cluster, b: &Cluster) -> String {
    let web_a = seen_from_b(&a.web_pod("web", "a-n1", "from-a"));
    let web_b = b.web_pod("web", "b-n1", "from-b");
    let mapped = b.object("easynetwork/prod", &[]).unwrap_or_default();
    let mapped =
        mapped["spec"]["routing"]["exports"][0]["mapTo"].as_str().unwrap_or_default().to_owned();
    let range: Vec<_> = mapped.split('.').take(2).collect();
    let web_b = web_b.replacen("10.244.", &format!("{}.", range.join(".")), 1);
    a.pod("client", "a-n1", "exec sleep 3600");
    b.pod("client", "b-n1", "exec sleep 3600");
    a.wait("a pod of a reaches one of b", MOMENT, || {
        a.fetch("client", &web_b, 8080).as_deref() == Some("from-b")
    });
    b.wait("a pod of b reaches one of a", MOMENT, || {
        b.fetch("client", &web_a, 8080).as_deref() == Some("from-a")
    });
    b.wait("directly", MOMENT, || {
        b.fetch("client", &web_a, 8080);
        b.is_direct("prod", "b-n1", "a-n1.a")
    });
    web_a
}

fn pods_are_as_fast_as_their_nodes(a: &Cluster, b: &Cluster) {
    let speed = Speed::measure((b, "client"), a, seen_from_b);
    println!("{speed:.2?}, {:.2} of it", speed.ratio());
    assert!(speed.ratio() > 0.5, "{speed:?}");
    for (program, most) in [("easynet", 64), ("easynet-operator", 96)] {
        let memory = memory(a, program);
        println!("{program}: {memory:?} bytes");
        // Far above what the release may take: these are debug builds, whose code is larger.
        assert!(!memory.is_empty() && memory.iter().all(|bytes| *bytes < most << 20), "{memory:?}");
    }
}

fn keys_change_and_nobody_is_renumbered(a: &Cluster, b: &Cluster, web: &str) {
    let before = addresses(a);
    let epoch = |cluster: &Cluster| {
        let name = "secret/easynet-prod-credentials";
        let secret = cluster.object(name, &["-n", NAMESPACE]).unwrap_or_default();
        secret["data"]["epoch"].as_str().unwrap_or_default().to_owned()
    };
    let (one, two) = ("MQ==", "Mg==");
    assert_eq!((epoch(a).as_str(), epoch(b).as_str()), (one, one));

    // The keys of the first cluster have become old; the second follows what it hears.
    let old = r#"{"stringData": {"since": "1"}}"#;
    a.kubectl(&["-n", NAMESPACE, "patch", "secret", "easynet-prod-credentials", "-p", old]).ok();
    for (cluster, node) in [(a, "a-n1"), (b, "b-n1")] {
        cluster.wait("its keys change", 3 * MOMENT, || epoch(cluster) == two);
        cluster.wait("its agents have them", MOMENT, || {
            let events = cluster.easynet("prod", node, &["events"]).stdout;
            events.contains("Key epoch 2 is in force")
        });
    }

    assert_eq!(b.fetch("client", web, 8080).as_deref(), Some("from-a"));
    assert_eq!(addresses(a), before);
}

fn a_node_that_is_deleted_goes_and_may_come_back(a: &mut Cluster, b: &Cluster) {
    let before = addresses(a);
    let (_, address) = before.iter().find(|(name, _)| name.contains("a-n2")).expect("a member");
    let is_routed = || {
        let routes = b.easynet("prod", "b-n1", &["routes", "-o", "json"]).stdout;
        routes.contains(&format!("\"{address}/32\""))
    };
    assert!(is_routed());

    a.nodes[1].crash();
    a.kubectl(&["delete", "node", "a-n2"]).ok();
    a.wait("it is no member", MOMENT, || addresses(a).len() == 1);
    b.wait("its routes are gone", 2 * MOMENT, || !is_routed());

    a.nodes[1].start();
    a.wait("it is a member again", 3 * MOMENT, || addresses(a) == before);
    b.wait("its routes are back", 3 * MOMENT, is_routed);
    a.network_ready("prod");
}

/// The EasyNetwork is deleted just as the operator is back, and the chart after it.
fn nothing_is_left(cluster: &Cluster) {
    scale(cluster, "1");
    cluster.kubectl(&["delete", "easynetwork", "prod"]).ok();
    cluster.helm(&["uninstall", "easynet", "-n", NAMESPACE, "--wait", "--timeout", "90s"]).ok();
    for node in &cluster.nodes {
        let left = node.run("ip -br link; ip rule; nft list tables").ok();
        for trace in ["ez", "easynet"] {
            assert!(!left.contains(trace), "{}: {left}", node.name);
        }
    }
}

/// As the first cluster maps it.
fn seen_from_b(pod: &str) -> String {
    pod.replacen("10.244.", "10.200.", 1)
}

/// Address of each member by its name; not those that are only held for who may come back.
fn addresses(cluster: &Cluster) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let peers = cluster.list("easypeers", &[]);
    let members = peers.iter().filter(|peer| peer["spec"]["heldUntil"].is_null());
    members.map(|peer| (text(&peer["metadata"]["name"]), text(&peer["spec"]["ipv4"]))).collect()
}

fn scale(cluster: &Cluster, replicas: &str) {
    let operator = "deploy/easynet-operator";
    let replicas = format!("--replicas={replicas}");
    cluster.kubectl(&["-n", NAMESPACE, "scale", operator, &replicas]).ok();
    let status = ["-n", NAMESPACE, "rollout", "status", operator, "--timeout=60s"];
    cluster.kubectl(&status).ok();
}
