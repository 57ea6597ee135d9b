//! Two whole clusters behind two NATs, with the same ranges of pods and services, and a public server between them.

use std::time::Duration;

use tests::{
    cluster::{Cluster, has_condition},
    lab::{Lab, Nat},
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
