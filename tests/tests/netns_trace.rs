//! One trace shows a change's whole way: from the EasyNetwork over plan, apply and delivery to the nodes that are connected with it.
//!
//! A real API server, operator and collector on one host of the lab, real sidecars on two others.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    net::TcpListener,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tests::{
    cluster::{
        ControlPlane, Options, built,
        collector::{Collector, Span},
        has_condition,
        product::{NAMESPACE, chart},
    },
    lab::{Host, Lab, inside, node::binary},
};

const SOON: Duration = Duration::from_secs(60);

#[test]
fn one_trace_shows_a_change_from_the_easynetwork_to_the_connected_nodes() {
    let mut lab = Lab::new();
    let home = lab.public_host("home");
    let hosts = [lab.public_host("n1"), lab.public_host("n2")];
    let collector = Collector::start(inside(&home, || TcpListener::bind("0.0.0.0:4318").unwrap()));
    let site = Site { plane: ControlPlane::start_in(&home, Options::default()), home };
    site.install(&hosts);
    site.operator(&mut lab);
    site.apply(json!({"clusterName": "fra1"}));
    for host in &hosts {
        site.sidecar(&mut lab, host);
    }
    site.wait_ready();

    // All of the first change.
    let change = collector.wait(SOON, |spans| find_change(spans, "1"));
    let trace = |name: &'static str| {
        collector.wait(SOON, |spans| {
            let found = spans.iter().find(|span| span.trace == change.trace && span.name == name);
            found.cloned()
        })
    };
    assert_eq!((change.service.as_str(), change.parent.as_str()), ("easynet-operator", ""));
    assert_eq!(change.attributes["network"], "prod");
    assert_eq!(trace("plan").parent, change.id);
    let applied = collector.wait(SOON, |spans| {
        let is_set =
            |span: &&Span| span.attributes.get("kind").is_some_and(|kind| kind == "DaemonSet");
        spans.iter().filter(|span| span.trace == change.trace).find(is_set).cloned()
    });
    assert_eq!((applied.name.as_str(), applied.parent.as_str()), ("apply", change.id.as_str()));

    // A later one, on nodes that run.
    site.apply(json!({"clusterName": "fra1", "transport": {"mtu": 1400}}));
    let change = collector.wait(SOON, |spans| find_change(spans, "2"));
    for node in ["node n1", "node n2"] {
        let [connect, configure, deliver] = collector.wait(SOON, |spans| way(spans, &change, node));
        assert_eq!(deliver.parent, change.id);
        assert_eq!(deliver.service, "easynet-operator");
        assert_eq!((configure.service.as_str(), connect.service.as_str()), ("easynet", "easynet"));
        let times = [change.began, deliver.began, configure.began, connect.began];
        assert!(times.is_sorted(), "{times:?}");
        assert!(connect.ended > configure.ended, "{connect:?} {configure:?}");
    }
    let secrets = format!("{:?}", collector.spans());
    assert!(!secrets.contains("eyJ"), "a token");
}

/// The root of the trace of one generation.
fn find_change(spans: &[Span], generation: &str) -> Option<Span> {
    let is_it = |span: &&Span| span.name == "change" && span.attributes["generation"] == generation;
    spans.iter().find(is_it).cloned()
}

/// The last spans of a change on one node, each the child of the next.
fn way(spans: &[Span], change: &Span, node: &str) -> Option<[Span; 3]> {
    let of_trace = || spans.iter().filter(|span| span.trace == change.trace);
    let parent = |span: &Span| of_trace().find(|other| other.id == span.parent).cloned();
    of_trace().filter(|span| span.name == "connect").find_map(|connect| {
        let configure = parent(connect).filter(|span| span.name == "configure")?;
        let deliver = parent(&configure).filter(|span| span.name == "deliver")?;
        let is_of_node = deliver.attributes["member"] == node;
        is_of_node.then(|| [connect.clone(), configure, deliver])
    })
}

/// A cluster whose nodes are hosts of the lab.
struct Site {
    plane: ControlPlane,
    home: Host,
}

impl Site {
    fn install(&self, hosts: &[Host]) {
        let chart = chart().display().to_string();
        self.plane
            .helm(&["install", "easynet", &chart, "-n", NAMESPACE, "--create-namespace"])
            .ok();
        for (number, host) in (1..).zip(hosts) {
            let (name, range) = (name(host), format!("10.42.{number}.0/24"));
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDR": range, "podCIDRs": [range]}});
            self.plane.kubectl_with(&["create", "-f", "-"], &node.to_string()).ok();
            let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": host.address}],
                "conditions": [{"type": "Ready", "status": "True"}]}});
            let patch = ["patch", "node", &name, "--subresource=status", "--type=merge", "-p"];
            self.plane.kubectl(&[&patch[..], &[&status.to_string()]].concat()).ok();
        }
    }

    /// The environment of whoever traces.
    fn traced(&self) -> String {
        format!(
            "OTEL_BSP_SCHEDULE_DELAY=200 OTEL_EXPORTER_OTLP_ENDPOINT=http://{}:4318",
            self.home.address
        )
    }

    fn operator(&self, lab: &mut Lab) {
        let command = format!(
            "env {} KUBECONFIG={} {} run --name=op-1 --namespace={NAMESPACE} --image=easynet:dev --advertise={}",
            self.traced(),
            self.plane.admin_kubeconfig().display(),
            built("easynet-operator").display(),
            self.home.address,
        );
        let log = lab.dir().join("operator.log");
        let child = self.home.spawn(&command, &log);
        lab.keep(child);
    }

    fn apply(&self, spec: Value) {
        let network = json!({"apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork",
            "metadata": {"name": "prod"}, "spec": spec});
        self.plane.kubectl_with(&["apply", "-f", "-"], &network.to_string()).ok();
    }

    /// Starts what the DaemonSet would run on a node.
    fn sidecar(&self, lab: &mut Lab, host: &Host) {
        let set = self.object(&["-n", NAMESPACE, "daemonset", "easynet-agent-prod"]);
        let root =
            self.object(&["-n", NAMESPACE, "configmap", "easynet-feed"])["data"]["rootKey"].clone();
        let (node, pod) = (name(host), format!("agent-{}", name(host)));
        let object = json!({"apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": pod, "namespace": NAMESPACE, "labels": {"easynet.io/network": "prod"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "DaemonSet", "controller": true,
                    "name": "easynet-agent-prod", "uid": set["metadata"]["uid"]}]},
            "spec": {"nodeName": node, "serviceAccountName": "easynet-agent",
                "containers": [{"name": "easynet", "image": "easynet:dev"}]}});
        self.plane.kubectl_with(&["create", "-f", "-"], &object.to_string()).ok();
        let token = self.plane.kubectl(&[
            "-n",
            NAMESPACE,
            "create",
            "token",
            "easynet-agent",
            "--audience=easynet",
            "--bound-object-kind=Pod",
            &format!("--bound-object-name={pod}"),
        ]);
        let dir = lab.dir().join(&node);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("token"), token.ok()).unwrap();
        let dir = dir.display();
        let command = format!(
            "env {} {} run --state-dir {dir}/state --tun ez0 --admin {dir}/admin.sock --config-server-token-file {dir}/token --config-server 'tcp://{}:22020/prod?k={}'",
            self.traced(),
            binary().display(),
            self.home.address,
            root.as_str().unwrap(),
        );
        let child = host.spawn(&command, &lab.dir().join(format!("{node}.log")));
        lab.keep(child);
    }

    /// An object, once it is there.
    fn object(&self, words: &[&str]) -> Value {
        let deadline = Instant::now() + SOON;
        loop {
            let ran = self.plane.kubectl(&[&["get", "-o", "json"], words].concat());
            if ran.success {
                return serde_json::from_str(&ran.stdout).unwrap();
            }
            assert!(Instant::now() < deadline, "{}", ran.err());
        }
    }

    fn wait_ready(&self) {
        let deadline = Instant::now() + SOON;
        loop {
            let network = self.object(&["easynetwork", "prod"]);
            let is_current = network["status"]["peers"]["direct"].as_u64() >= Some(1);
            if is_current && has_condition(&network, "Ready") {
                return;
            }
            assert!(Instant::now() < deadline, "{network:#}");
        }
    }
}

/// Of the node that is this host.
fn name(host: &Host) -> String {
    host.namespace.rsplit('-').next().unwrap_or_default().to_owned()
}
