//! The operator against a real API server: what it makes, what it leaves alone, and what it survives.
//!
//! Agents are simulated: the product's own session with the feed, with tokens that the API server gave for pods of the DaemonSet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::{EasyNetwork, EasyPeer, peer::PeerState};
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    coordination::v1::Lease,
    core::v1::{ConfigMap, Node, Pod, Secret, Service},
    discovery::v1::EndpointSlice,
    events::v1::Event,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
};
use netio::resolve::{self, Resolver};
use operator::{
    api::Requests,
    args::{Log, LogFormat, Place, PullPolicy, Run},
    names,
    webhook::inject::PodSecurity,
};
use rpc::feed::{Applied, Peers, Status};
use serde_json::{Value, json};
use session::identity::Identity;
use sidecar::source::feed::{self, Link};
use task::{CancellationToken, TaskGroup};
use tests::cluster::{ControlPlane, Options};

const NAMESPACE: &str = "easynet-system";
const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_becomes_what_its_nodes_need_and_a_quiet_cluster_costs_nothing() {
    let bed = Bed::start(Options::default(), 2).await;
    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;

    // What it makes.
    let set = bed.wait("the DaemonSet", || bed.daemon_set("prod")).await;
    assert_eq!(set.owner_references()[0].kind, "EasyNetwork");
    let secret = bed.secret("easynet-prod-credentials").await.expect("keys");
    assert_eq!(secret.type_.as_deref(), Some("easynet.io/credentials"));
    let map = bed.wait("the ConfigMap", || bed.config_map(names::FEED)).await;
    let service = bed.service().await;
    let data = map.data.unwrap();
    assert_eq!(data["address"], format!("{}:22020", service.spec.unwrap().cluster_ip.unwrap()));
    assert_eq!(data["rootKey"].len(), 52);
    let slice = bed.wait("the EndpointSlice", || bed.slice()).await;
    assert_eq!(slice.endpoints[0].addresses, ["192.0.2.99"]);
    let peers = bed
        .wait("two EasyPeers", || async {
            Some(bed.peers().await).filter(|peers| peers.len() == 2)
        })
        .await;
    assert_ne!(peers["node-1"].spec.ipv4, peers["node-2"].spec.ipv4);
    assert_eq!(peers["node-1"].spec.exports[0].cidr.0, "10.42.1.0/24");

    // Agents come, and the network is ready.
    let began = Instant::now();
    let mut agents = bed.agents(&operator, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    let ready = bed.condition("Ready", "True").await;
    println!("Ready {:?} after the agents' first dial", began.elapsed());
    assert_eq!(ready.reason, "Ready");
    let delivered = agents[0].configuration().await;
    assert_eq!(delivered["exports"][0]["cidr"], "10.42.1.0/24");
    assert_eq!(delivered["node"]["hostname"], "node-1.fra1");
    let network = bed.network().await;
    let counters = network.status.clone().unwrap().agents.unwrap();
    assert_eq!((counters.desired, counters.updated), (2, 2));
    bed.wait("keys in the EasyPeers", || async {
        let peers = bed.peers().await;
        peers
            .values()
            .all(|peer| {
                peer.spec.keys.is_some()
                    && peer
                        .status
                        .as_ref()
                        .is_some_and(|status| status.state == Some(PeerState::Connected))
            })
            .then_some(())
    })
    .await;
    let events = bed.events("prod").await;
    assert!(events.iter().any(|event| event.reason.as_deref() == Some("Ready")), "{events:?}");

    // Nothing happens, and nothing is sent.
    bed.quiet(&operator).await;
    let writes = operator.requests.writes();
    let lease_writes = bed.lease_transitions_and_time().await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    let renewals = operator.requests.writes() - writes;
    assert_ne!(bed.lease_transitions_and_time().await, lease_writes);
    assert!(
        (1..=4).contains(&renewals),
        "{renewals} writes in 7 s, of which 2 or 3 renew the lease"
    );

    // A change of the spec reaches every agent.
    let changed = Instant::now();
    bed.patch(json!({"spec": {"transport": {"mtu": 1400}}})).await;
    for agent in &mut agents {
        let desired = agent.wait_for(|desired| desired.sidecar.contains("1400")).await;
        println!("change → delivered {:?}", changed.elapsed());
        agent.run(&desired);
    }
    bed.wait("the generation", || async {
        let network = bed.network().await;
        let status = network.status.clone().unwrap_or_default();
        let programmed = status.conditions.iter().find(|c| c.type_ == "Programmed")?.clone();
        (programmed.status == "True"
            && programmed.observed_generation == network.metadata.generation)
            .then_some(())
    })
    .await;

    // Somebody edits what is ours.
    let sets: Api<DaemonSet> = Api::namespaced(bed.client.clone(), NAMESPACE);
    let edit = json!({"spec": {"template": {"spec": {"hostNetwork": false}}}});
    sets.patch("easynet-agent-prod", &PatchParams::default(), &Patch::Strategic(edit))
        .await
        .unwrap();
    bed.wait("the repair", || async {
        let set = bed.daemon_set("prod").await?;
        set.spec?.template.spec?.host_network?.then_some(())
    })
    .await;
    let peers: Api<EasyPeer> = Api::all(bed.client.clone());
    let peer = bed.peers().await["node-1"].clone();
    let edit = json!({"spec": {"ipv4": "100.112.77.77"}});
    peers.patch(&peer.name_any(), &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    bed.wait("an address of its own", || async {
        // An address that somebody wrote is taken for given, as long as it is the member's alone.
        let peers = bed.peers().await;
        (peers["node-1"].spec.ipv4 != peers["node-2"].spec.ipv4).then_some(())
    })
    .await;
    let other = bed.peers().await["node-2"].clone();
    let edit = json!({"spec": {"ipv4": other.spec.ipv4}});
    peers.patch(&peer.name_any(), &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    bed.wait("no two members with one address", || async {
        let peers = bed.peers().await;
        (peers["node-1"].spec.ipv4 != peers["node-2"].spec.ipv4).then_some(())
    })
    .await;

    // A node goes: its peer is held, the others' lists forget it, its keys are revoked.
    let before = agents[1].desired().await.records.len();
    let nodes: Api<Node> = Api::all(bed.client.clone());
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    bed.wait("the hold", || async { bed.peers().await["node-1"].spec.held_until.clone() }).await;
    let desired = agents[1].wait_for(|desired| desired.records.len() > before).await;
    assert_eq!(desired.records.len(), before + 1, "a REVOKE more");

    // The network goes, and everything with it, also without a garbage collector.
    let networks: Api<EasyNetwork> = Api::all(bed.client.clone());
    networks.delete("prod", &DeleteParams::default()).await.unwrap();
    agents[1].retire().await;
    bed.wait_for(Duration::from_secs(40), "no DaemonSet and no EasyPeer", || async {
        (bed.daemon_set("prod").await.is_none() && bed.peers().await.is_empty()).then_some(())
    })
    .await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_operators_one_leads_and_the_other_takes_over_without_renumbering() {
    let bed = Bed::start(Options::default(), 2).await;
    let first = bed.operator("op-1").await;
    bed.wait("a leader", || async { (bed.leader().await? == "op-1").then_some(()) }).await;
    let second = bed.operator("op-2").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;
    let mut agents = bed.agents(&first, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    bed.condition("Ready", "True").await;
    bed.quiet(&first).await;
    let before = bed.peers().await;
    let delivered = agents[0].desired().await.revision;
    drop(agents);

    // A graceful end hands over at once.
    let asked = Instant::now();
    first.stop().await;
    bed.wait("the other leader", || async { (bed.leader().await? == "op-2").then_some(()) }).await;
    println!("hand-over {:?}", asked.elapsed());
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    let mut agents = bed.agents(&second, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    assert_eq!(
        agents[0].desired().await.revision,
        delivered,
        "the same, so nothing is applied again"
    );
    bed.quiet(&second).await;
    let after = bed.peers().await;
    for (name, peer) in &before {
        assert_eq!(after[name].spec, peer.spec);
        assert_eq!(after[name].metadata.generation, peer.metadata.generation, "not even touched");
    }
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_api_server_that_goes_and_comes_back_changes_nothing() {
    let bed = Bed::start(Options::default(), 2).await;
    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;
    let mut agents = bed.agents(&operator, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    bed.condition("Ready", "True").await;
    bed.quiet(&operator).await;
    let before = bed.peers().await;

    bed.plane.kill_apiserver();
    tokio::time::sleep(Duration::from_secs(16)).await;
    bed.plane.start_apiserver();

    bed.wait_for(Duration::from_secs(60), "a leader again", || async {
        let lease = bed.lease().await?;
        let renewed = lease.spec?.renew_time?.0;
        (k8s_openapi::jiff::Timestamp::now().as_second() - renewed.as_second() < 3).then_some(())
    })
    .await;
    let mut agents = bed.agents(&operator, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    bed.patch(json!({"spec": {"transport": {"mtu": 1400}}})).await;
    for agent in &mut agents {
        agent.wait_for(|desired| desired.sidecar.contains("1400")).await;
    }
    let after = bed.peers().await;
    for (name, peer) in &before {
        assert_eq!(after[name].spec, peer.spec, "no renumbering");
    }
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_from_before_its_schema_is_said_to_be_malformed_and_harms_no_other() {
    let bed = Bed::start(Options::default(), 1).await;
    // A schema that lets everything pass, as an older one might have.
    let lax = bed.plane.kubectl(&["get", "crd", "easynetworks.easynet.io", "-o", "json"]).ok();
    let mut lax: Value = serde_json::from_str(&lax).unwrap();
    let strict = lax.clone();
    lax["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    bed.plane.kubectl_with(&["replace", "-f", "-"], &strip(&lax).to_string()).ok();
    let odd = json!({"apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork", "metadata": {"name": "odd"},
        "spec": {"clusterName": "x", "transport": {"listenPort": "many"}}});
    bed.wait("the lax schema", || async {
        bed.plane.kubectl_with(&["create", "-f", "-"], &odd.to_string()).success.then_some(())
    })
    .await;
    bed.plane.kubectl_with(&["replace", "-f", "-"], &strip(&strict).to_string()).ok();

    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;

    bed.wait("the other's DaemonSet", || bed.daemon_set("prod")).await;
    // The API server takes no status for such an object, so an Event says it, once.
    let said = bed
        .wait("the Event", || async {
            bed.events("odd")
                .await
                .into_iter()
                .find(|event| event.type_.as_deref() == Some("Warning"))
        })
        .await;
    assert_eq!(said.reason.as_deref(), Some("Malformed"));
    assert!(said.note.as_ref().unwrap().contains("does not parse"), "{said:?}");
    bed.quiet(&operator).await;
    assert_eq!(bed.events("odd").await.len(), 1);

    // Mended, it is a network like any other.
    let mended = json!({"spec": {"transport": {"listenPort": 11020}, "addressing": {"ipv4CIDR": "100.113.0.0/16"}}});
    let networks: Api<EasyNetwork> = Api::all(bed.client.clone());
    networks.patch("odd", &PatchParams::default(), &Patch::Merge(mended)).await.unwrap();
    bed.wait("its DaemonSet", || bed.daemon_set("odd")).await;
    operator.stop().await;
}

fn strip(definition: &Value) -> Value {
    let mut definition = definition.clone();
    let meta = definition["metadata"].as_object_mut().unwrap();
    for field in ["managedFields", "resourceVersion", "uid", "creationTimestamp", "generation"] {
        meta.remove(field);
    }
    definition.as_object_mut().unwrap().remove("status");
    definition
}

fn network(spec: Value) -> Value {
    json!({"apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork", "metadata": {"name": "prod"}, "spec": spec})
}

/// A control plane with nodes, and what the chart would have installed.
struct Bed {
    plane: ControlPlane,
    client: Client,
    resolver: Resolver,
    group: TaskGroup,
    dir: tempfile::TempDir,
}

impl Bed {
    async fn start(options: Options, nodes: u8) -> Self {
        let plane = ControlPlane::start_with(options);
        plane.install_crds().await;
        let client = plane.client();
        plane.kubectl(&["create", "namespace", NAMESPACE]).ok();
        plane.service_account(NAMESPACE, names::AGENT_ACCOUNT).await;
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": names::FEED, "namespace": NAMESPACE},
            "spec": {"ports": [{"name": "feed", "port": 22020, "targetPort": 22020}]}});
        plane.kubectl_with(&["apply", "-f", "-"], &service.to_string()).ok();
        let group = TaskGroup::new("bed");
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let bed = Self { plane, client, resolver, group, dir: tempfile::tempdir().unwrap() };
        for number in 1..=nodes {
            bed.node(number).await;
        }
        bed
    }

    async fn node(&self, number: u8) {
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
    async fn operator(&self, name: &str) -> Operator {
        let feed = free_port();
        let options = Run {
            place: Place { namespace: NAMESPACE.to_owned() },
            name: name.to_owned(),
            image: "easynet:dev".to_owned(),
            image_pull_policy: PullPolicy::IfNotPresent,
            feed_listen: feed,
            advertise: Some([192, 0, 2, 99].into()),
            webhook_listen: None,
            default_pod_security: PodSecurity::Privileged,
            metrics: free_port(),
            log: Log { filter: "info".to_owned(), format: LogFormat::Text },
        };
        let requests = Requests::default();
        let client = self.counted_client(&requests).await;
        let stop = CancellationToken::new();
        let group = TaskGroup::new(name.to_owned());
        let running = operator::app::operate(options, client, requests.clone(), stop.clone());
        group.spawn_transient("operate", running);
        Operator { feed, requests, stop, group }
    }

    async fn counted_client(&self, requests: &Requests) -> Client {
        let kubeconfig = Kubeconfig::read_from(self.plane.admin_kubeconfig()).unwrap();
        let options = KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        operator::api::client(config, requests).unwrap()
    }

    /// Agents on some nodes, as far as the operator can tell.
    async fn agents(&self, operator: &Operator, nodes: &[&str]) -> Vec<Agent> {
        let set = self.wait("the DaemonSet", || self.daemon_set("prod")).await;
        let map = self.wait("the ConfigMap", || self.config_map(names::FEED)).await;
        let root = map.data.unwrap()["rootKey"].clone();
        let mut agents = Vec::new();
        for node in nodes {
            let pod = self.pod(&set, node).await;
            let account = names::AGENT_ACCOUNT;
            let token = self.plane.token(NAMESPACE, account, names::AUDIENCE, Some(&pod)).await;
            let token_file = self.dir.path().join(pod.name_any());
            std::fs::write(&token_file, token).unwrap();
            let mut seed = [3; 64];
            for (index, byte) in node.bytes().enumerate() {
                seed[index] ^= byte;
                seed[32 + index] ^= byte;
            }
            let parts = feed::Parts {
                url: format!("tcp://{}/prod?k={root}", operator.feed).parse().unwrap(),
                token_file: Some(token_file),
                identity: Arc::new(Identity::from_bytes(&seed)),
                aead: wire::control::AEAD_CHACHA,
                revision: 0,
            };
            agents.push(Agent { link: feed::spawn(parts, self.resolver.clone(), &self.group) });
        }
        agents
    }

    /// A pod of the DaemonSet on a node, as its controller and the kubelet would have it.
    async fn pod(&self, set: &DaemonSet, node: &str) -> Pod {
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

    async fn apply(&self, network: Value) {
        let networks: Api<EasyNetwork> = Api::all(self.client.clone());
        let name = network["metadata"]["name"].as_str().unwrap().to_owned();
        let params = PatchParams::apply("tests");
        networks.patch(&name, &params, &Patch::Apply(&network)).await.unwrap();
    }

    async fn patch(&self, patch: Value) {
        let networks: Api<EasyNetwork> = Api::all(self.client.clone());
        networks.patch("prod", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn network(&self) -> EasyNetwork {
        Api::all(self.client.clone()).get("prod").await.unwrap()
    }

    /// EasyPeers by the name of their node.
    async fn peers(&self) -> BTreeMap<String, EasyPeer> {
        let peers: Api<EasyPeer> = Api::all(self.client.clone());
        let all = peers.list(&ListParams::default()).await.unwrap();
        all.into_iter().map(|peer| (peer.spec.node_ref.clone().unwrap().name, peer)).collect()
    }

    async fn daemon_set(&self, network: &str) -> Option<DaemonSet> {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), NAMESPACE);
        sets.get_opt(&names::agents(network)).await.unwrap()
    }

    async fn config_map(&self, name: &str) -> Option<ConfigMap> {
        Api::namespaced(self.client.clone(), NAMESPACE).get_opt(name).await.unwrap()
    }

    async fn secret(&self, name: &str) -> Option<Secret> {
        Api::namespaced(self.client.clone(), NAMESPACE).get_opt(name).await.unwrap()
    }

    async fn service(&self) -> Service {
        Api::namespaced(self.client.clone(), NAMESPACE).get(names::FEED).await.unwrap()
    }

    async fn slice(&self) -> Option<EndpointSlice> {
        Api::namespaced(self.client.clone(), NAMESPACE).get_opt(names::FEED).await.unwrap()
    }

    async fn lease(&self) -> Option<Lease> {
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
        leases.get_opt(names::LEASE).await.ok()?
    }

    async fn leader(&self) -> Option<String> {
        self.lease().await?.spec?.holder_identity
    }

    async fn lease_transitions_and_time(&self) -> String {
        format!("{:?}", self.lease().await.unwrap().spec)
    }

    async fn events(&self, name: &str) -> Vec<Event> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let all = events.list(&ListParams::default()).await.unwrap();
        let about = |event: &Event| {
            event.regarding.as_ref().is_some_and(|object| object.name.as_deref() == Some(name))
        };
        all.into_iter().filter(about).collect()
    }

    /// Waits until a condition of the network has a status.
    async fn condition(
        &self,
        kind: &str,
        status: &str,
    ) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
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
    async fn quiet(&self, operator: &Operator) {
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

    async fn wait<T, F: Future<Output = Option<T>>>(&self, what: &str, look: impl Fn() -> F) -> T {
        self.wait_for(SOON, what, look).await
    }

    async fn wait_for<T, F: Future<Output = Option<T>>>(
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

struct Operator {
    feed: SocketAddr,
    requests: Requests,
    stop: CancellationToken,
    group: TaskGroup,
}

impl Operator {
    /// Ends it as SIGTERM does.
    async fn stop(self) {
        self.stop.cancel();
        let deadline = Instant::now() + SOON;
        while !self.group.running().is_empty() {
            assert!(Instant::now() < deadline, "the operator does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// The session of an agent.
struct Agent {
    link: Link,
}

impl Agent {
    async fn wait_for(
        &mut self,
        is_it: impl Fn(&rpc::feed::Desired) -> bool,
    ) -> Arc<rpc::feed::Desired> {
        let health = self.link.health.clone();
        let wait = self
            .link
            .desired
            .wait_for(|desired| desired.as_ref().is_some_and(|desired| is_it(desired)));
        let found = tokio::time::timeout(SOON, wait).await;
        let found = found.unwrap_or_else(|_| panic!("not delivered: {:?}", health.borrow()));
        found.unwrap().clone().unwrap()
    }

    async fn desired(&mut self) -> Arc<rpc::feed::Desired> {
        self.wait_for(|_| true).await
    }

    async fn configuration(&mut self) -> Value {
        serde_json::from_str(&self.desired().await.sidecar).unwrap()
    }

    /// Applies whatever is delivered until it is what the others' keys make of it.
    async fn run_what_is_delivered(&mut self) {
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

    fn run(&mut self, desired: &rpc::feed::Desired) {
        config::parse_delivered(&desired.sidecar).expect("a valid configuration");
        self.link.up.applied(Applied { revision: desired.revision, ..Applied::default() });
    }

    async fn retire(&mut self) {
        let asked = tokio::time::timeout(SOON, self.link.retire.recv()).await.expect("asked to go");
        asked.unwrap().send(()).unwrap();
    }
}

fn free_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap()
}
