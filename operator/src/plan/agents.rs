//! The objects that make agents run: per network a DaemonSet, and where agents find the feed.

use std::net::IpAddr;

use crds::EasyNetwork;
use k8s_openapi::api::core::v1::Toleration;
use kube::ResourceExt;
use serde_json::{Value, json};

use super::{Install, Object, Target};
use crate::{
    index::{FeedService, Labels, Node, SIDECAR_CONTAINER, Taint},
    names,
};

/// What an agent needs at rest, with room for a few thousand routes.
const REQUESTS: (&str, &str) = ("10m", "24Mi");
const MEMORY_LIMIT: &str = "256Mi";
/// SIGTERM asks the feed whether to clean up (1 s), then closes (1 s).
const GRACE_SECONDS: u32 = 10;

/// The metrics port lies so far from the mesh's.
const METRICS_DISTANCE: u16 = 10_000;

/// Taints that the controller of DaemonSets accepts for each of them.
const TOLERATED: [&str; 7] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/unschedulable",
    "node.kubernetes.io/network-unavailable",
];

/// Whether the network's agent runs on `node`.
pub fn selects(network: &EasyNetwork, node: &Node) -> bool {
    let nodes = &network.spec.members.nodes;
    let labelled = match nodes.mode {
        crds::network::NodeMode::All => true,
        crds::network::NodeMode::Selected => {
            nodes.node_selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        }
        crds::network::NodeMode::None => false,
    };
    let other_system = node.labels.get("kubernetes.io/os").is_some_and(|os| os != "linux");
    labelled
        && !other_system
        && node
            .taints
            .iter()
            .filter(|taint| taint.effect != "PreferNoSchedule")
            .all(|taint| tolerates(&nodes.tolerations, taint))
}

fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    TOLERATED.contains(&taint.key.as_str())
        || tolerations.iter().any(|toleration| {
            let effect = toleration.effect.as_deref().unwrap_or_default();
            let key = toleration.key.as_deref().unwrap_or_default();
            let exists = toleration.operator.as_deref() == Some("Exists");
            (effect.is_empty() || effect == taint.effect)
                && (key == taint.key || (key.is_empty() && exists))
                && (exists || toleration.value.as_deref().unwrap_or_default() == taint.value)
        })
}

/// The DaemonSet of a network.
pub fn daemon_set(network: &EasyNetwork, install: &Install, feed: &FeedService) -> Object {
    let name = network.name_any();
    let selector = json!({ names::NETWORK: name, "app.kubernetes.io/name": "easynet-agent" });
    let object = json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {
            "name": names::agents(&name),
            "namespace": install.namespace,
            "labels": labels_of(&name, "agent"),
            // Not the EasyNetwork's: its agents outlive it by the moment in which they clean up.
            "ownerReferences": owner_service(feed),
        },
        "spec": {
            "selector": {"matchLabels": selector},
            "revisionHistoryLimit": 3,
            // The successor starts beside the old agent and waits for it, so that the gap is that of one process.
            "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
            "template": {
                "metadata": pod_metadata(network, install, feed),
                "spec": pod_spec(network, install),
            },
        },
    });
    Object::new(Target::DaemonSet, &install.namespace, names::agents(&name), object)
}

/// What the pods are labelled with: what the network asks for, as far as it is not ours.
fn pod_metadata(network: &EasyNetwork, install: &Install, feed: &FeedService) -> Value {
    let agent = &network.spec.agent;
    let mut labels: Labels = agent.labels.clone();
    labels.retain(|key, _| !is_ours(key));
    for (key, value) in labels_of(&network.name_any(), "agent") {
        labels.insert(key, value);
    }
    let mut annotations = agent.annotations.clone();
    annotations.retain(|key, _| !is_ours(key));
    annotations
        .insert("kubectl.kubernetes.io/default-container".to_owned(), SIDECAR_CONTAINER.to_owned());
    // Environment does not follow a ConfigMap, so a pod is made anew when the feed is elsewhere.
    annotations.insert(names::FEED_HASH.to_owned(), feed_hash(install, feed));
    json!({"labels": labels, "annotations": annotations})
}

fn pod_spec(network: &EasyNetwork, install: &Install) -> Value {
    let spec = &network.spec;
    let mut node_selector = json!({"kubernetes.io/os": "linux"});
    if spec.members.nodes.mode == crds::network::NodeMode::Selected {
        for (key, value) in &spec.members.nodes.node_selector {
            node_selector[key] = json!(value);
        }
    }
    json!({
        "serviceAccountName": names::AGENT_ACCOUNT,
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "hostNetwork": true,
        // The way to the feed must not need the cluster's DNS.
        "dnsPolicy": "Default",
        "priorityClassName": spec.agent.priority_class_name.as_deref().unwrap_or("system-node-critical"),
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "nodeSelector": node_selector,
        "tolerations": spec.members.nodes.tolerations,
        "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container(network, install)],
        "volumes": [
            {"name": "state", "hostPath": {"path": state(network), "type": "DirectoryOrCreate"}},
            {"name": "run", "hostPath": {"path": "/run/easynet", "type": "DirectoryOrCreate"}},
            // A directory: a node without TUN has a running agent that says so.
            {"name": "dev-net", "hostPath": {"path": "/dev/net", "type": "DirectoryOrCreate"}},
            {"name": "token", "projected": {"sources": [{"serviceAccountToken": {
                "audience": names::AUDIENCE, "expirationSeconds": 3600, "path": "token",
            }}]}},
        ],
    })
}

fn container(network: &EasyNetwork, install: &Install) -> Value {
    let (name, spec) = (network.name_any(), &network.spec);
    let resources = spec.agent.resources.as_ref().map_or_else(
        || {
            json!({
                "requests": {"cpu": REQUESTS.0, "memory": REQUESTS.1},
                "limits": {"memory": MEMORY_LIMIT},
            })
        },
        |resources| json!(resources),
    );
    let port = metrics_port(spec.transport.listen_port);
    // While a successor stands by, the port still answers for the agent before it, and so the successor counts as ready.
    let probe = |path: &str, period: u32, failures: u32| {
        json!({
            "httpGet": {"path": path, "port": port, "scheme": "HTTP"},
            "periodSeconds": period, "timeoutSeconds": 3, "failureThreshold": failures,
        })
    };
    json!({
        "name": SIDECAR_CONTAINER,
        "image": install.image,
        "imagePullPolicy": install.pull_policy,
        "command": ["easynet"],
        "args": [
            "run",
            "--standby",
            "--state-dir", state(network),
            "--tun", names::tun(&name),
            "--config-server-token-file", "/var/run/secrets/easynet/token",
            "--metrics", format!("$(HOST_IP):{port}"),
            "--log-format", "json",
        ],
        "env": environment(&name, install),
        "resources": resources,
        "startupProbe": probe("/livez", 1, 120),
        "livenessProbe": probe("/livez", 10, 6),
        "readinessProbe": probe("/readyz", 2, 3),
        "securityContext": {
            "runAsUser": 0,
            "runAsNonRoot": false,
            "allowPrivilegeEscalation": false,
            "privileged": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": "state", "mountPath": state(network)},
            {"name": "run", "mountPath": "/run/easynet"},
            {"name": "token", "mountPath": "/var/run/secrets/easynet", "readOnly": true},
            {"name": "dev-net", "mountPath": "/dev/net"},
        ],
    })
}

fn environment(network: &str, install: &Install) -> Vec<Value> {
    let admin = format!("/run/easynet/{network}.sock");
    let feed = |key: &str| json!({"configMapKeyRef": {"name": names::FEED, "key": key}});
    let url = format!("tcp://$(FEED_ADDRESS)/{network}?k=$(FEED_ROOT_KEY)");
    let own = [
        // By this, not by an argument, so that `kubectl exec … -- easynet peers` finds it too.
        json!({"name": "EASYNET_ADMIN", "value": admin}),
        json!({"name": "NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}}),
        json!({"name": "HOST_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.hostIP"}}}),
        json!({"name": "FEED_ADDRESS", "valueFrom": feed("address")}),
        json!({"name": "FEED_ROOT_KEY", "valueFrom": feed("rootKey")}),
        json!({"name": "EASYNET_CONFIG_SERVER", "value": url}),
    ];
    own.into_iter().chain(install.collector.as_deref().map(env_of_collector)).collect()
}

/// Where an agent keeps its state, on the node and in its container.
fn state(network: &EasyNetwork) -> String {
    format!("/var/lib/easynet/{}", network.name_any())
}

/// Tells a sidecar where its traces go.
pub fn env_of_collector(url: &str) -> Value {
    json!({"name": names::COLLECTOR, "value": url})
}

/// Where an agent answers probes and scrapers, on its node's address: a port that follows from that of the mesh, so that two
/// networks of a cluster have two.
pub fn metrics_port(listen: u16) -> u16 {
    listen.checked_add(METRICS_DISTANCE).unwrap_or(listen.saturating_sub(METRICS_DISTANCE))
}

/// Where sidecars find the feed, and by which key they know it.
pub fn feed_config_map(install: &Install, feed: &FeedService) -> Option<Object> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": names::FEED,
            "namespace": install.namespace,
            "labels": labels_of_operator("feed"),
            "ownerReferences": owner_service(feed),
        },
        "data": {"address": feed_address(feed)?, "rootKey": install.feed_root},
    });
    Some(Object::new(Target::ConfigMap, &install.namespace, names::FEED.to_owned(), object))
}

/// The operator that serves the feed: the one that applies this.
pub fn feed_slice(install: &Install, feed: &FeedService, address: IpAddr) -> Object {
    let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
    let mut labels = labels_of_operator("feed");
    labels.insert("kubernetes.io/service-name".to_owned(), names::FEED.to_owned());
    labels.insert(
        "endpointslice.kubernetes.io/managed-by".to_owned(),
        "operator.easynet.io".to_owned(),
    );
    let object = json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": names::FEED,
            "namespace": install.namespace,
            "labels": labels,
            "ownerReferences": owner_service(feed),
        },
        "addressType": family,
        "endpoints": [{"addresses": [address.to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "feed", "port": install.feed_port, "protocol": "TCP"}],
    });
    Object::new(Target::EndpointSlice, &install.namespace, names::FEED.to_owned(), object)
}

/// What the operator makes for itself goes with the Service of the feed, which is the chart's.
pub fn owner_service(feed: &FeedService) -> Value {
    if feed.uid.is_empty() {
        return json!([]);
    }
    json!([{"apiVersion": "v1", "kind": "Service", "name": names::FEED, "uid": feed.uid}])
}

/// `ADDRESS:PORT` of the feed's Service, if it has one.
pub fn feed_address(feed: &FeedService) -> Option<String> {
    let address = feed.address.filter(|_| feed.port != 0)?;
    Some(std::net::SocketAddr::new(address, feed.port).to_string())
}

fn feed_hash(install: &Install, feed: &FeedService) -> String {
    names::hash8(&["feed", &feed_address(feed).unwrap_or_default(), &install.feed_root])
}

/// Labels of what belongs to one network.
pub fn labels_of(network: &str, component: &str) -> Labels {
    let mut labels = labels_of_operator(component);
    labels.insert("app.kubernetes.io/name".to_owned(), format!("easynet-{component}"));
    labels.insert("app.kubernetes.io/instance".to_owned(), network.to_owned());
    labels.insert(names::NETWORK.to_owned(), network.to_owned());
    labels
}

/// Labels of what is the operator's own.
pub fn labels_of_operator(component: &str) -> Labels {
    [
        ("app.kubernetes.io/name", "easynet"),
        ("app.kubernetes.io/component", component),
        ("app.kubernetes.io/part-of", "easynet"),
        ("app.kubernetes.io/managed-by", names::OPERATOR),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}

fn is_ours(key: &str) -> bool {
    key.starts_with("easynet.io/") || key.starts_with("app.kubernetes.io/")
}
