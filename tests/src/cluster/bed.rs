//! The operator against a real API server, without nodes: the chart is installed, and its agents are simulated.
//!
//! The operator runs with the token of the chart's ServiceAccount, so with exactly the chart's permissions. An agent is the product's own
//! session with the feed, with a token that the API server gave for a pod of the DaemonSet.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::{EasyNetwork, EasyPeer};
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Node, Pod, Secret, Service},
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams, PostParams},
    config::AuthInfo,
};
use netio::resolve::{self, Resolver};
use operator::{
    api::Requests,
    args::{Log, LogFormat, Place, PullPolicy, Run},
    names,
    webhook::inject::PodSecurity,
};
use rpc::feed::{Applied, Desired, Peers, Status};
use serde_json::{Value, json};
use session::identity::Identity;
use sidecar::source::feed::{self, Link};
use task::{CancellationToken, TaskGroup};

use super::{
    ControlPlane, Options,
    image::built,
    process::Component,
    product::{NAMESPACE, chart},
};
/// How long what the operator does at once may take.
const SOON: Duration = Duration::from_secs(20);
/// Where agents are told to find the feed. Those of the bed know better.
const ADVERTISED: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99));
/// The audience of tokens that the API server takes.
const API_SERVER: &str = "https://kubernetes.default.svc.cluster.local";
/// Says to a process that it is the one of [`alone_again`].
const ALONE: &str = "EASYNET_TEST_ALONE";
/// The user that the chart's operator is.
pub const OPERATOR: &str = "system:serviceaccount:easynet-system:easynet-operator";

/// A control plane with nodes, and what the chart would have installed.
pub struct Bed {
    pub plane: ControlPlane,
    /// With all rights.
    pub client: Client,
    resolver: Resolver,
    group: TaskGroup,
    dir: tempfile::TempDir,
}

impl Bed {
    /// Starts a control plane, installs the chart with these values of its own, and makes nodes `node-1` and so on.
    pub async fn start(options: Options, nodes: u8, values: &[&str]) -> Self {
        let plane = ControlPlane::start_with(options);
        let client = plane.client();
        let chart = chart().display().to_string();
        let mut words = vec!["install", "easynet", &chart, "-n", NAMESPACE, "--create-namespace"];
        words.extend(values.iter().flat_map(|value| ["--set", value]));
        plane.helm(&words).ok();
        let group = TaskGroup::new("bed");
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let bed = Self { plane, client, resolver, group, dir: tempfile::tempdir().unwrap() };
        for number in 1..=nodes {
            bed.node(number).await;
        }
        bed
    }

    pub async fn node(&self, number: u8) {
        let name = format!("node-{number}");
        let nodes: Api<Node> = Api::all(self.client.clone());
        let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
            "spec": {"podCIDR": format!("10.42.{number}.0/24"), "podCIDRs": [format!("10.42.{number}.0/24")]}});
        nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
        let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": format!("192.0.2.{number}")}],
            "conditions": [{"type": "Ready", "status": "True", "reason": "Test", "message": "", "lastHeartbeatTime": null, "lastTransitionTime": null}]}});
        nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    /// Starts an operator in this process.
    pub async fn operator(&self, name: &str) -> Operator {
        self.operator_with(name, |_| ()).await
    }

    /// The same with other options.
    pub async fn operator_with(&self, name: &str, change: impl FnOnce(&mut Run)) -> Operator {
        let feed = free_port();
        let mut options = Run {
            place: Place { namespace: NAMESPACE.to_owned() },
            name: name.to_owned(),
            image: "easynet:dev".to_owned(),
            image_pull_policy: PullPolicy::IfNotPresent,
            feed_listen: feed,
            advertise: Some(ADVERTISED),
            webhook_listen: None,
            default_pod_security: PodSecurity::Privileged,
            metrics: free_port(),
            log: Log { filter: "info".to_owned(), format: LogFormat::Text },
        };
        change(&mut options);
        let requests = Requests::default();
        let client = self.operator_client(&requests).await;
        let stop = CancellationToken::new();
        let group = TaskGroup::new(name.to_owned());
        let running = operator::app::operate(options, client, requests.clone(), stop.clone());
        group.spawn_transient("operate", running);
        Operator { feed, requests, stop, group }
    }

    /// A client that is the chart's operator.
    pub async fn operator_client(&self, requests: &Requests) -> Client {
        let token = Some(self.operator_token().await.into());
        let config = self.plane.config(AuthInfo { token, ..AuthInfo::default() });
        operator::api::client(config, requests).unwrap()
    }

    async fn operator_token(&self) -> String {
        self.plane.token(NAMESPACE, names::OPERATOR, API_SERVER, None).await
    }

    /// Starts an operator as the process that a pod of the chart is.
    pub async fn operator_process(&self, name: &str) -> Process {
        self.operator_process_with(name, &[]).await
    }

    /// The same with these variables of the environment.
    pub async fn operator_process_with(&self, name: &str, more: &[(&str, String)]) -> Process {
        let (feed, metrics) = (free_port(), free_port());
        let kubeconfig = self.operator_kubeconfig(name).await;
        let args = [
            "run".to_owned(),
            format!("--name={name}"),
            format!("--namespace={NAMESPACE}"),
            "--image=easynet:dev".to_owned(),
            format!("--feed-listen=0.0.0.0:{}", feed.port()),
            format!("--advertise={ADVERTISED}"),
            format!("--metrics={metrics}"),
        ];
        let log = self.plane.dir().join("log").join(format!("{name}.log"));
        let kubeconfig = ("KUBECONFIG", kubeconfig.display().to_string());
        let environment: Vec<_> = more.iter().cloned().chain([kubeconfig]).collect();
        let component = Component::start(&built("easynet-operator"), &args, &log, &environment);
        Process { feed, metrics, component }
    }

    async fn operator_kubeconfig(&self, name: &str) -> PathBuf {
        let kubeconfig = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {
                "server": self.plane.url(), "certificate-authority": self.plane.dir().join("pki/ca.crt")}}],
            "users": [{"name": "u", "user": {"token": self.operator_token().await}}],
        });
        let path = self.dir.path().join(format!("{name}.conf"));
        std::fs::write(&path, kubeconfig.to_string()).unwrap();
        path
    }

    /// A network whose two nodes run what is delivered, once it is Ready.
    pub async fn ready(&self, feed: SocketAddr) -> Vec<Agent> {
        self.apply(network(json!({"clusterName": "fra1"}))).await;
        let mut agents = self.agents(feed, &["node-1", "node-2"]).await;
        for agent in &mut agents {
            agent.run_what_is_delivered().await;
        }
        self.condition("Ready", "True").await;
        agents
    }

    /// Agents on some nodes, as far as the operator can tell.
    pub async fn agents(&self, feed: SocketAddr, nodes: &[&str]) -> Vec<Agent> {
        let set = self.wait("the DaemonSet", || self.daemon_set("prod")).await;
        let map = self.wait("the ConfigMap", || self.config_map(names::FEED)).await;
        let root = map.data.unwrap()["rootKey"].clone();
        let mut agents = Vec::new();
        for node in nodes {
            let pod = self.pod(&set, node).await;
            let account = names::AGENT_ACCOUNT;
            let token = self.plane.token(NAMESPACE, account, names::AUDIENCE, Some(&pod)).await;
            agents.push(self.session(feed, &root, node, &token));
        }
        agents
    }

    /// The session of an agent that has this token.
    pub fn session(&self, feed: SocketAddr, root: &str, node: &str, token: &str) -> Agent {
        let token_file = self.dir.path().join(node);
        std::fs::write(&token_file, token).unwrap();
        let mut seed = [3; 64];
        for (index, byte) in node.bytes().enumerate() {
            seed[index] ^= byte;
            seed[32 + index] ^= byte;
        }
        let parts = feed::Parts {
            url: format!("tcp://{feed}/prod?k={root}").parse().unwrap(),
            token_file: Some(token_file),
            identity: Arc::new(Identity::from_bytes(&seed)),
            aead: wire::control::AEAD_CHACHA,
            revision: 0,
        };
        Agent { link: feed::spawn(parts, self.resolver.clone(), &self.group) }
    }

    /// A pod of the DaemonSet on a node, as its controller and the kubelet would have it.
    pub async fn pod(&self, set: &DaemonSet, node: &str) -> Pod {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let name = format!("{}-{node}", set.name_any());
        if let Some(pod) = pods.get_opt(&name).await.unwrap() {
            return pod;
        }
        let pod = json!({
            "metadata": {"name": name, "labels": {"easynet.io/network": "prod"}, "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "DaemonSet", "name": set.name_any(), "uid": set.uid(), "controller": true}]},
            "spec": {"nodeName": node, "serviceAccountName": names::AGENT_ACCOUNT,
                "automountServiceAccountToken": false, "containers": [{"name": "easynet", "image": "easynet:dev"}]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap()
    }

    pub async fn apply(&self, network: Value) {
        let networks: Api<EasyNetwork> = Api::all(self.client.clone());
        let name = network["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("tests");
        networks.patch(&name, &params, &Patch::Apply(&network)).await.unwrap();
    }

    pub async fn patch(&self, patch: Value) {
        let networks: Api<EasyNetwork> = Api::all(self.client.clone());
        networks.patch("prod", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    pub async fn network(&self) -> EasyNetwork {
        Api::all(self.client.clone()).get("prod").await.unwrap()
    }

    /// EasyPeers by the name of their node.
    pub async fn peers(&self) -> BTreeMap<String, EasyPeer> {
        let peers: Api<EasyPeer> = Api::all(self.client.clone());
        let all = peers.list(&ListParams::default()).await.unwrap();
        all.into_iter().map(|peer| (peer.spec.node_ref.clone().unwrap().name, peer)).collect()
    }

    pub async fn daemon_set(&self, network: &str) -> Option<DaemonSet> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), NAMESPACE);
        sets.get_opt(&names::agents(network)).await.unwrap()
    }

    pub async fn config_map(&self, name: &str) -> Option<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE).get_opt(name).await.unwrap()
    }

    pub async fn secret(&self, name: &str) -> Option<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE).get_opt(name).await.unwrap()
    }

    pub async fn service(&self) -> Service {
        Api::namespaced(self.client.clone(), NAMESPACE).get(names::FEED).await.unwrap()
    }

    pub async fn slice(&self) -> Option<EndpointSlice> {
        Api::namespaced(self.client.clone(), NAMESPACE).get_opt(names::FEED).await.unwrap()
    }

    pub async fn lease(&self) -> Option<Lease> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get_opt(names::LEASE).await.ok()?
    }

    pub async fn leader(&self) -> Option<String> {
        self.lease().await?.spec?.holder_identity
    }

    pub async fn lease_transitions_and_time(&self) -> String {
        format!("{:?}", self.lease().await.unwrap().spec)
    }

    pub async fn events(&self, name: &str) -> Vec<Event> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let all = events.list(&ListParams::default()).await.unwrap();
        let about = |event: &Event| {
            event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some(name))
        };
        all.into_iter().filter(about).collect()
    }

    /// Waits until a condition of the network has a status.
    pub async fn condition(&self, kind: &str, status: &str) -> Condition {
        let deadline = Instant::now() + SOON;
        loop {
            let conditions = self.network().await.status.unwrap_or_default().conditions;
            if let Some(found) = conditions.iter().find(|c| c.type_ == kind && c.status == status) {
                return found.clone();
            }
            assert!(Instant::now() < deadline, "{kind} is not {status}: {conditions:#?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Waits until the operator writes nothing but the lease.
    pub async fn quiet(&self, operator: &Operator) {
        let deadline = Instant::now() + Duration::from_secs(30);
        let mut last = (operator.requests.writes(), Instant::now());
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let writes = operator.requests.writes();
            if writes > last.0 + 1 {
                last = (writes, Instant::now());
            } else if last.1.elapsed() > Duration::from_millis(2500) {
                return;
            }
            assert!(Instant::now() < deadline, "the operator does not come to rest");
        }
    }

    pub async fn wait<T, F: Future<Output = Option<T>>>(
        &self,
        what: &str,
        look: impl Fn() -> F,
    ) -> T {
        self.wait_for(SOON, what, look).await
    }

    pub async fn wait_for<T, F: Future<Output = Option<T>>>(
        &self,
        limit: Duration,
        what: &str,
        look: impl Fn() -> F,
    ) -> T {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(found) = look().await {
                return found;
            }
            assert!(Instant::now() < deadline, "{what}: not within {limit:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

#[derive(Debug)]
pub struct Operator {
    pub feed: SocketAddr,
    pub requests: Requests,
    stop: CancellationToken,
    group: TaskGroup,
}

impl Operator {
    /// Ends it as SIGTERM does.
    pub async fn stop(self) {
        self.stop.cancel();
        let deadline = Instant::now() + SOON;
        while !self.group.running().is_empty() {
            assert!(Instant::now() < deadline, "the operator does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl fmt::Debug for Bed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bed").field("plane", &self.plane).finish_non_exhaustive()
    }
}

/// An operator that is a process of its own.
#[derive(Debug)]
pub struct Process {
    pub feed: SocketAddr,
    pub metrics: SocketAddr,
    component: Component,
}

impl Process {
    /// Ends it as a crash does.
    pub fn kill(self) {
        self.component.kill();
    }

    /// Bytes of memory that it uses.
    pub fn memory(&self) -> u64 {
        self.component.memory()
    }
}

/// The session of an agent.
#[derive(Debug)]
pub struct Agent {
    pub link: Link,
}

impl Agent {
    pub async fn wait_for(&mut self, is_it: impl Fn(&Desired) -> bool) -> Arc<Desired> {
        let health = self.link.health.clone();
        let wait = self
            .link
            .desired
            .wait_for(|desired| desired.as_ref().is_some_and(|desired| is_it(desired)));
        let found = tokio::time::timeout(SOON, wait).await;
        let found = found.unwrap_or_else(|_| panic!("not delivered: {:?}", health.borrow()));
        found.unwrap().clone().unwrap()
    }

    pub async fn desired(&mut self) -> Arc<Desired> {
        self.wait_for(|_| true).await
    }

    pub async fn configuration(&mut self) -> Value {
        serde_json::from_str(&self.desired().await.sidecar).unwrap()
    }

    /// Applies whatever is delivered until it is what the others' keys make of it.
    pub async fn run_what_is_delivered(&mut self) {
        let first = self.desired().await;
        self.run(&first);
        let seeded = self.wait_for(|desired| desired.sidecar.contains("udp://192.0.2.")).await;
        self.run(&seeded);
        self.link.up.status(Status {
            revision: seeded.revision,
            ready: true,
            members: 2,
            peers: Some(Peers { total: 1, direct: 1, ..Peers::default() }),
            ports: vec![11010],
            ..Status::default()
        });
    }

    pub fn run(&mut self, desired: &Desired) {
        config::parse_delivered(&desired.sidecar).expect("a valid configuration");
        self.link.up.applied(Applied { revision: desired.revision, ..Applied::default() });
    }

    pub async fn retire(&mut self) {
        let asked = tokio::time::timeout(SOON, self.link.retire.recv()).await.expect("asked to go");
        asked.unwrap().send(()).unwrap();
    }
}

/// Runs the calling test again in a process that has a network of its own, with so many addresses, and may open so many files. `true` if
/// that has been done, and nothing is left to do; `false` in that process. Needs root.
///
/// # Panics
/// When the test fails there.
pub fn alone_again(addresses: usize, files: usize) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return false;
    }
    let exe = std::env::current_exe().expect("the path of this program").display().to_string();
    let test = std::thread::current().name().unwrap_or_default().to_owned();
    let own: String =
        (0..addresses).map(|n| format!("ip addr add {}/32 dev lo && ", own_address(n))).collect();
    let again = format!(
        "ulimit -n {files} && ip link set lo up && {own}exec {exe} --include-ignored --exact --nocapture {test}"
    );
    // Waiting here, this thread ends when the test does.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "unshare", "--net", "sh", "-c", &again]);
    let status = command.env(ALONE, "1").status();
    assert!(
        status.expect("unshare runs").success(),
        "see above; this needs root, and {files} files"
    );
    true
}

/// An address of [`alone_again`].
pub fn own_address(number: usize) -> IpAddr {
    let [high, low] = u16::try_from(number + 1).expect("not so many").to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 9, high, low))
}

/// An EasyNetwork `prod`.
pub fn network(spec: Value) -> Value {
    json!({"apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork", "metadata": {"name": "prod"}, "spec": spec})
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap()
}
