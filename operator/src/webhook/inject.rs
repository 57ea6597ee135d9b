//! Whether a pod gets a sidecar, and what that changes in the pod.
//!
//! The sidecar is a *native* one: an init container that keeps running, which the API server orders before every other container
//! and the kubelet ends after them, so that a Job completes and the application has the mesh from its first to its last packet. It
//! leaves the network when it is told to end. A `preStop` hook would not do: the kubelet runs it when the pod *begins* to end, while
//! the application still drains.

use std::fmt;

use crds::network::PodMode;
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use kube::{
    ResourceExt,
    core::{Selector, SelectorExt},
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    index::{Labels, World},
    names,
    plan::agents,
};

pub use crate::index::SIDECAR_CONTAINER as CONTAINER;
/// On a pod: the version of the operator that put the sidecar in.
pub const INJECTED: &str = "easynet.io/injected";
/// On a pod that asked for a sidecar and got none: the reason, [`Refusal::reason`].
pub const REFUSED: &str = "easynet.io/inject-refused";

const TOKEN_VOLUME: &str = "easynet-token";
const STATE_VOLUME: &str = "easynet-state";
const TUN_VOLUME: &str = "easynet-tun";
/// The kubelet renews a token at 80 % of this.
const TOKEN_SECONDS: i64 = 3600;
/// The probe itself waits for the sidecar, so the application starts the moment it is ready and not at the next full second.
const READY_WITHIN_SECONDS: u32 = 30;
/// A network that does not come up keeps the pod starting for five minutes; then the kubelet starts the sidecar anew.
const START_ATTEMPTS: u32 = 10;
const ENFORCE: &str = "pod-security.kubernetes.io/enforce";

/// What does not depend on the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where the operator is installed.
    pub namespace: String,
    /// The image of the sidecar.
    pub image: String,
    pub pull_policy: String,
    /// What the cluster enforces in a namespace without a label about it.
    pub default_pod_security: PodSecurity,
    /// Where the sidecars send traces.
    pub collector: Option<String>,
}

/// A level of the Pod Security Standards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum PodSecurity {
    #[default]
    Privileged,
    Baseline,
    Restricted,
}

/// What becomes of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The sidecar goes in by this patch.
    Inject(Vec<Add>),
    /// It starts as it is: it has the sidecar, or does not ask for one.
    Leave,
    /// It asked, and starts without.
    Refuse(Refusal),
}

/// One operation of a JSON patch (RFC 6902); no other kind is needed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Add {
    op: &'static str,
    pub path: String,
    pub value: Value,
}

/// Why a pod that asked for a sidecar got none. The list is closed: people search for these words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// There is no EasyNetwork of that name.
    UnknownNetwork(String),
    /// `members.pods.mode` is `None`.
    PodsNotAllowed(String),
    /// `members.pods.allowedNamespaces` does not match.
    NamespaceNotAllowed { network: String, namespace: String },
    /// The namespace would reject the pod with the sidecar in it.
    PodSecurity { namespace: String, level: PodSecurity },
    /// It has the network of its node, where the node's agent is.
    HostNetwork,
    /// Not Linux.
    OtherSystem(String),
    /// A container or volume of the pod has a name that the sidecar needs.
    NameTaken(String),
    /// Where the feed is is not known yet.
    NoFeed,
}

impl Refusal {
    /// Every word that [`Self::reason`] may say.
    pub const REASONS: [&str; 8] = [
        "UnknownNetwork",
        "PodsNotAllowed",
        "NamespaceNotAllowed",
        "PodSecurity",
        "HostNetwork",
        "OtherSystem",
        "NameTaken",
        "NoFeed",
    ];

    /// One word for machines.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::UnknownNetwork(_) => "UnknownNetwork",
            Self::PodsNotAllowed(_) => "PodsNotAllowed",
            Self::NamespaceNotAllowed { .. } => "NamespaceNotAllowed",
            Self::PodSecurity { .. } => "PodSecurity",
            Self::HostNetwork => "HostNetwork",
            Self::OtherSystem(_) => "OtherSystem",
            Self::NameTaken(_) => "NameTaken",
            Self::NoFeed => "NoFeed",
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownNetwork(network) => {
                write!(
                    f,
                    "there is no EasyNetwork {network}; `kubectl get easynetworks` lists them"
                )
            }
            Self::PodsNotAllowed(network) => {
                write!(f, "EasyNetwork {network} takes no pods; set spec.members.pods.mode: OptIn")
            }
            Self::NamespaceNotAllowed { network, namespace } => write!(
                f,
                "EasyNetwork {network} takes no pods of namespace {namespace}; widen spec.members.pods.allowedNamespaces"
            ),
            Self::PodSecurity { namespace, level } => write!(
                f,
                "namespace {namespace} enforces Pod Security {level}, which rejects NET_ADMIN and /dev/net; label it \
                 {ENFORCE}=privileged, or reach the mesh over the node"
            ),
            Self::HostNetwork => f.write_str(
                "a pod with hostNetwork has the mesh of its node already; remove the label",
            ),
            Self::OtherSystem(system) => write!(f, "the sidecar runs on Linux, not on {system}"),
            Self::NameTaken(name) => {
                write!(f, "the sidecar needs the name {name}, which the pod uses for another thing")
            }
            Self::NoFeed => f.write_str(
                "the operator has not published its feed yet; create the pod again in a moment",
            ),
        }
    }
}

impl PodSecurity {
    /// What a namespace of these labels enforces. A level that nobody knows is taken for the strictest, as the API server does.
    fn of(labels: &Labels, default: Self) -> Self {
        match labels.get(ENFORCE).map(String::as_str) {
            None => default,
            Some("privileged") => Self::Privileged,
            Some("baseline") => Self::Baseline,
            Some(_) => Self::Restricted,
        }
    }
}

impl fmt::Display for PodSecurity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Privileged => "privileged",
            Self::Baseline => "baseline",
            Self::Restricted => "restricted",
        })
    }
}

/// Decides about a pod that is about to be created in `namespace`.
pub fn inject(pod: &Pod, namespace: &str, world: &World, settings: &Settings) -> Verdict {
    let Some(network) = pod.labels().get(names::INJECT).filter(|name| !name.is_empty()) else {
        return Verdict::Leave;
    };
    let Some(spec) = &pod.spec else { return Verdict::Leave };
    if pod.annotations().contains_key(INJECTED) && has_sidecar(spec) {
        return Verdict::Leave;
    }
    match refusal(spec, network, namespace, world, settings) {
        Some(refusal) => Verdict::Refuse(refusal),
        None => match config_server(network, world, settings) {
            Some(url) => Verdict::Inject(patch(pod, spec, &url, settings)),
            None => Verdict::Refuse(Refusal::NoFeed),
        },
    }
}

/// Marks a pod that is let through without a sidecar, so that it can be found.
pub fn mark_refused(pod: &Pod, refusal: &Refusal) -> Vec<Add> {
    annotate(pod, REFUSED, refusal.reason())
}

fn refusal(
    spec: &PodSpec,
    network: &str,
    namespace: &str,
    world: &World,
    settings: &Settings,
) -> Option<Refusal> {
    if spec.host_network == Some(true) {
        return Some(Refusal::HostNetwork);
    }
    if let Some(os) = spec.os.as_ref().filter(|os| os.name != "linux") {
        return Some(Refusal::OtherSystem(os.name.clone()));
    }
    let Some(wanted) = world.networks.get(network) else {
        return Some(Refusal::UnknownNetwork(network.to_owned()));
    };
    let pods = &wanted.spec.members.pods;
    if pods.mode == PodMode::None {
        return Some(Refusal::PodsNotAllowed(network.to_owned()));
    }
    let none = Labels::new();
    let labels = world.namespaces.get(namespace).map_or(&none, |labels| labels);
    let selector = pods.allowed_namespaces.clone().map(Selector::try_from);
    // A selector that cannot be read selects nothing.
    let is_allowed = selector.is_some_and(|selector| selector.is_ok_and(|it| it.matches(labels)));
    if !is_allowed {
        let (network, namespace) = (network.to_owned(), namespace.to_owned());
        return Some(Refusal::NamespaceNotAllowed { network, namespace });
    }
    let level = PodSecurity::of(labels, settings.default_pod_security);
    if level != PodSecurity::Privileged {
        return Some(Refusal::PodSecurity { namespace: namespace.to_owned(), level });
    }
    taken(spec).map(Refusal::NameTaken)
}

/// A name that the sidecar needs and the pod has.
fn taken(spec: &PodSpec) -> Option<String> {
    let init = spec.init_containers.iter().flatten();
    let mut containers = init.chain(&spec.containers).map(|container| &container.name);
    let mut volumes = spec.volumes.iter().flatten().map(|volume| &volume.name);
    let ours = [TOKEN_VOLUME, STATE_VOLUME, TUN_VOLUME];
    let container = containers.find(|name| *name == CONTAINER);
    container.or_else(|| volumes.find(|name| ours.contains(&name.as_str()))).cloned()
}

fn has_sidecar(spec: &PodSpec) -> bool {
    spec.init_containers.iter().flatten().any(|container| container.name == CONTAINER)
}

/// Where the sidecar takes its configuration from, as the operator that leads published it.
fn config_server(network: &str, world: &World, settings: &Settings) -> Option<String> {
    let published = world.config_maps.get(&format!("{}/{}", settings.namespace, names::FEED))?;
    let field = |name: &str| published.object.pointer(&format!("/data/{name}"))?.as_str();
    Some(format!("tcp://{}/{network}?k={}", field("address")?, field("rootKey")?))
}

fn patch(pod: &Pod, spec: &PodSpec, config_server: &str, settings: &Settings) -> Vec<Add> {
    let mut adds = annotate(pod, INJECTED, env!("CARGO_PKG_VERSION"));
    let sidecar = sidecar(config_server, settings);
    adds.push(if spec.init_containers.as_ref().is_none_or(Vec::is_empty) {
        add("/spec/initContainers", json!([sidecar]))
    } else {
        // First, so that the other init containers have the mesh too.
        add("/spec/initContainers/0", sidecar)
    });
    if spec.volumes.as_ref().is_none_or(Vec::is_empty) {
        adds.push(add("/spec/volumes", Value::from(volumes().to_vec())));
    } else {
        adds.extend(volumes().map(|volume| add("/spec/volumes/-", volume)));
    }
    adds
}

fn annotate(pod: &Pod, key: &str, value: &str) -> Vec<Add> {
    if pod.annotations().is_empty() {
        return vec![add("/metadata/annotations", json!({ key: value }))];
    }
    let escaped = key.replace('~', "~0").replace('/', "~1");
    vec![add(&format!("/metadata/annotations/{escaped}"), Value::from(value))]
}

fn add(path: &str, value: Value) -> Add {
    Add { op: "add", path: path.to_owned(), value }
}

fn sidecar(config_server: &str, settings: &Settings) -> Value {
    let ready = format!("{READY_WITHIN_SECONDS}s");
    let mut env = vec![
        json!({"name": "EASYNET_CONFIG_SERVER", "value": config_server}),
        json!({"name": "EASYNET_CONFIG_SERVER_TOKEN_FILE", "value": "/var/run/secrets/easynet/token"}),
        json!({"name": "EASYNET_HOSTNAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}),
        json!({"name": "EASYNET_STATE_DIR", "value": "/var/lib/easynet/state"}),
        json!({"name": "EASYNET_ADMIN", "value": "/var/lib/easynet/admin.sock"}),
    ];
    env.extend(settings.collector.as_deref().map(agents::env_of_collector));
    json!({
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": settings.pull_policy,
        "command": ["easynet"],
        "args": ["run"],
        "restartPolicy": "Always",
        "env": env,
        "startupProbe": {
            "exec": {"command": ["easynet", "status", "--wait", "ready", "--timeout", ready]},
            "periodSeconds": 1,
            "timeoutSeconds": READY_WITHIN_SECONDS + 5,
            "failureThreshold": START_ATTEMPTS,
        },
        "resources": {
            "requests": {"cpu": "10m", "memory": "24Mi"},
            "limits": {"memory": "128Mi"},
        },
        "securityContext": {
            "runAsUser": 0,
            "runAsGroup": 0,
            "runAsNonRoot": false,
            "privileged": false,
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": [
            {"name": TOKEN_VOLUME, "mountPath": "/var/run/secrets/easynet", "readOnly": true},
            {"name": STATE_VOLUME, "mountPath": "/var/lib/easynet"},
            {"name": TUN_VOLUME, "mountPath": "/dev/net"},
        ],
    })
}

fn volumes() -> [Value; 3] {
    let token = json!({
        "serviceAccountToken": {"audience": names::AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"},
    });
    [
        json!({"name": TOKEN_VOLUME, "projected": {"sources": [token]}}),
        // Keys that go with the pod and never touch a disk.
        json!({"name": STATE_VOLUME, "emptyDir": {"medium": "Memory", "sizeLimit": "16Mi"}}),
        // The directory, so that a node without the device gives a sidecar that says so, not a pod that hangs.
        json!({"name": TUN_VOLUME, "hostPath": {"path": "/dev/net", "type": ""}}),
    ]
}

#[cfg(test)]
pub(crate) mod tests;
