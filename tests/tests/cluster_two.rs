//! Two whole clusters behind two NATs, with the same ranges of pods and services, and a public server between them.

#![allow(clippy::print_stdout)]

use std::{thread, time::Duration};

use serde_json::json;
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
    let [a, b] = Cluster::start_all(&mut lab, plans, &[]);
    thread::scope(|scope| {
        for cluster in [&a, &b] {
            scope.spawn(move || {
                cluster.load_easynet();
                cluster.install_easynet(&[]);
            });
        }
    });

    // The first cluster makes the network, and maps its pods out of the way of others.
    let spec = json!({
        "clusterName": "a",
        "bootstrap": {"peers": [url]},
        "routing": {"exports": [{"cidr": POD_RANGE, "mapTo": "10.200.0.0/16"}]},
    });
    a.apply_network("prod", &spec).ok();
    let ready = a.network_ready("prod");
    eprintln!("first cluster: Ready after {ready:?}");

    // The second joins by what the first prints.
    let (invitation, _) = a.invite("prod", "b", &["--pod-cidr", POD_RANGE]);
    b.kubectl_with(&["apply", "-f", "-"], &invitation).ok();
    let ready = b.network_ready("prod");
    eprintln!("second cluster: Ready after {ready:?}");
    let id = |cluster: &Cluster| {
        let network = cluster.object("easynetwork/prod", &[]).unwrap_or_default();
        network["status"]["networkID"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(id(&a), id(&b));

    // A pod reaches a pod by its mapped address, both ways.
    let web_a = a.web_pod("web", "a-n1", "from-a").replacen("10.244.", "10.200.", 1);
    let web_b = b.web_pod("web", "b-n1", "from-b");
    let mapped = b.object("easynetwork/prod", &[]).unwrap_or_default();
    let mapped =
        mapped["spec"]["routing"]["exports"][0]["mapTo"].as_str().unwrap_or_default().to_owned();
    let range: Vec<_> = mapped.split('.').take(2).collect();
    let web_b = web_b.replacen("10.244.", &format!("{}.", range.join(".")), 1);
    a.pod("client", "a-n2", "exec sleep 3600");
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

    // What it costs to start in a pod instead of on a node.
    let speed = Speed::measure((&b, "client"), &a, |pod| pod.replacen("10.244.", "10.200.", 1));
    eprintln!("{speed:.2?}, {:.2} of it", speed.ratio());
    assert!(speed.ratio() > 0.5, "{speed:?}");
    for (program, most) in [("easynet", 64), ("easynet-operator", 96)] {
        let memory = memory(&a, program);
        eprintln!("{program}: {memory:?} bytes");
        // Twice of what the release may take: these are debug builds, whose code is larger.
        assert!(!memory.is_empty() && memory.iter().all(|bytes| *bytes < most << 20), "{memory:?}");
    }

    // Without operators, API server and public server traffic goes on.
    for cluster in [&a, &b] {
        cluster
            .kubectl(&["-n", NAMESPACE, "scale", "deploy/easynet-operator", "--replicas=0"])
            .ok();
    }
    server.stop();
    assert_eq!(b.fetch("client", &web_a, 8080).as_deref(), Some("from-a"));
    let (_server, again) = node::server(&mut lab, &relay, "relay", "");
    assert_eq!(again, url, "its key is kept");
    let label = ["-n", NAMESPACE, "delete", "pod", "-l", "easynet.io/network=prod"];
    b.kubectl(&label).ok();
    b.wait("a new agent runs from what is on disk", MOMENT, || {
        b.fetch("client", &web_a, 8080).as_deref() == Some("from-a")
    });

    // Nothing is left behind.
    for cluster in [&a, &b] {
        cluster
            .kubectl(&["-n", NAMESPACE, "scale", "deploy/easynet-operator", "--replicas=1"])
            .ok();
        cluster
            .kubectl(&[
                "-n",
                NAMESPACE,
                "rollout",
                "status",
                "deploy/easynet-operator",
                "--timeout=60s",
            ])
            .ok();
        cluster.kubectl(&["delete", "easynetwork", "prod"]).ok();
        cluster.helm(&["uninstall", "easynet", "-n", NAMESPACE, "--wait", "--timeout", "90s"]).ok();
        for node in &cluster.nodes {
            let left = node.run("ip -br link; ip rule; nft list tables").ok();
            for trace in ["ez", "easynet"] {
                assert!(!left.contains(trace), "{}: {left}", node.name);
            }
        }
    }
}
