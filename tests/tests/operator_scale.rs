//! Two thousand nodes: one operator process, the real API server, and as many real sessions of the feed.
//!
//! What is asked of the API server, what the operator keeps, and that everybody has what was applied holds on any machine. Times are
//! those of two cores that do nothing else, which `make bench-scale` asks for by [`STRICT`]; otherwise they may be [`SLACK`] times as long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use operator::names;
use rpc::feed::{Condition, Peers, Status};
use serde_json::{Value, json};
use tests::cluster::{
    Audit, Options, Request,
    bed::{Agent, Bed, OPERATOR, alone_again, network, own_address},
    product::NAMESPACE,
};
use tokio::task::JoinSet;

const NODES: usize = 2000;
const FLAPPING: usize = 1000;
/// Addresses that nodes come from.
const SOURCES: usize = 100;
/// Requests of the harness under way at once.
const AT_ONCE: usize = 32;
/// Set in the environment: this machine does nothing else.
const STRICT: &str = "EASYNET_TEST_STRICT_TIMES";
/// What other work on the machine may cost: the API server alone takes longer beside it than the bounds are.
const SLACK: u32 = 4;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_nodes_are_configured_and_cost_the_api_server_little() {
    if alone_again(SOURCES, 3 * NODES) {
        return;
    }
    let bed = Bed::start(Options::default(), 0, &[]).await;
    let began = Instant::now();
    let pods = nodes(&bed.client).await;
    let operator = bed.operator_process("op-1").await;
    let map = bed.wait("the ConfigMap", || bed.config_map(names::FEED)).await;
    let root = map.data.unwrap()["rootKey"].clone();
    let mut tokens = Vec::new();
    for pod in &pods {
        tokens.push(
            bed.plane.token(NAMESPACE, names::AGENT_ACCOUNT, names::AUDIENCE, Some(pod)).await,
        );
    }
    println!("{NODES} nodes and tokens made in {:?}", began.elapsed());
    let idle = operator.memory();
    let mut audit = bed.plane.audit();

    // kubectl apply, and everybody has a configuration.
    let began = Instant::now();
    bed.apply(network(json!({"clusterName": "fra1"}))).await;
    let mut agents: Vec<Agent> = (0..NODES)
        .map(|number| {
            bed.session(reached(operator.feed, number), &root, &name(number), &tokens[number])
        })
        .collect();
    let (configured_within, changed_within) = (within(30), within(2));
    all_have(&mut agents, "\"network\"", configured_within).await;
    let configured = began.elapsed();
    bed.wait_for(within(120), "keys in every EasyPeer", || async {
        let peers = bed.peers().await;
        let known = peers.values().filter(|peer| peer.spec.keys.is_some());
        (known.count() == NODES).then_some(())
    })
    .await;
    let settled = began.elapsed();
    let used = operator.memory();
    let requests = since(&mut audit).await;
    let (reads, writes) = count(&requests);
    println!(
        "{NODES} configured in {configured:?} of {configured_within:?}, all written in {settled:?}, with {reads} reads and {writes} writes; RSS {} -> {} MB",
        idle >> 20,
        used >> 20
    );

    // One field.
    let began = Instant::now();
    bed.patch(json!({"spec": {"transport": {"mtu": 1400}}})).await;
    all_have(&mut agents, "1400", within(10)).await;
    let changed = began.elapsed();

    // A thousand that come and go five times a second.
    for agent in &mut agents {
        let desired = agent.desired().await;
        agent.run(&desired);
    }
    since(&mut audit).await;
    let began = Instant::now();
    for round in 0..50 {
        for agent in &agents[..FLAPPING] {
            agent.link.up.status(flap(round));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let flapped = began.elapsed();
    let (_, flap_writes) = count(&since(&mut audit).await);
    let per_second = flap_writes as f64 / flapped.as_secs_f64();
    let used = used.max(operator.memory());
    println!(
        "one field in {changed:?} of {changed_within:?}; {FLAPPING} flapping: {per_second:.1} writes/s; RSS {} MB",
        used >> 20
    );

    assert!(configured <= configured_within, "{configured:?}");
    assert!(changed <= changed_within, "{changed:?}");
    assert!(used <= 150 << 20, "{used} bytes");
    // A review of each token, whose pod the index has; each EasyPeer made, and given its keys and its states.
    assert!(reads <= 100, "{reads} reads");
    assert!(writes <= 5 * NODES, "{writes} writes");
    // The lease is renewed beside it.
    assert!(per_second <= 21.0, "{per_second} writes a second");
}

/// So many seconds, on a machine that does nothing else.
fn within(seconds: u64) -> Duration {
    let strict = Duration::from_secs(seconds);
    if std::env::var_os(STRICT).is_some() { strict } else { strict * SLACK }
}

/// The feed, as the node reaches it that is `number`: whoever dials an address of this machine comes from that one, and the feed counts
/// callers by their addresses.
fn reached(feed: SocketAddr, number: usize) -> SocketAddr {
    SocketAddr::new(own_address(number % SOURCES), feed.port())
}

fn name(number: usize) -> String {
    format!("n{number:04}")
}

/// Nodes, each with the pod of the DaemonSet that will be.
async fn nodes(client: &Client) -> Vec<Pod> {
    let (nodes, pods) =
        (Api::<Node>::all(client.clone()), Api::<Pod>::namespaced(client.clone(), NAMESPACE));
    let mut made = Vec::new();
    let mut under_way = JoinSet::new();
    for number in 0..NODES {
        if under_way.len() >= AT_ONCE {
            made.push(under_way.join_next().await.unwrap().unwrap());
        }
        let (nodes, pods) = (nodes.clone(), pods.clone());
        under_way.spawn(async move { node(&nodes, &pods, number).await });
    }
    while let Some(pod) = under_way.join_next().await {
        made.push(pod.unwrap());
    }
    made.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    made
}

async fn node(nodes: &Api<Node>, pods: &Api<Pod>, number: usize) -> Pod {
    let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
    let (name, range) = (name(number), format!("10.{}.{low}.0/24", 64 + high));
    let node = json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": "linux"}},
        "spec": {"podCIDR": range, "podCIDRs": [range]}});
    nodes.create(&PostParams::default(), &object(node)).await.unwrap();
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": format!("198.18.{high}.{low}")}],
        "conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let pod = json!({
        "metadata": {"name": format!("agent-{name}"), "labels": {names::NETWORK: "prod"}, "ownerReferences": [{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": names::agents("prod"), "uid": "1", "controller": true}]},
        "spec": {"nodeName": name, "serviceAccountName": names::AGENT_ACCOUNT,
            "automountServiceAccountToken": false, "containers": [{"name": "easynet", "image": "easynet:dev"}]},
    });
    pods.create(&PostParams::default(), &object(pod)).await.unwrap()
}

fn object<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

/// Waits until every agent has a configuration with this text in it.
async fn all_have(agents: &mut [Agent], text: &str, limit: Duration) {
    let until = tokio::time::Instant::now() + limit;
    let mut missing = 0;
    for agent in &mut *agents {
        let has = |desired: &Option<std::sync::Arc<rpc::feed::Desired>>| {
            desired.as_ref().is_some_and(|desired| desired.sidecar.contains(text))
        };
        missing += usize::from(
            tokio::time::timeout_at(until, agent.link.desired.wait_for(has)).await.is_err(),
        );
    }
    assert_eq!(missing, 0, "agents without {text} after {limit:?}");
}

/// One that has lost everybody, or found them again.
fn flap(round: u32) -> Status {
    let direct = round % 2;
    Status {
        ready: direct == 1,
        members: 2,
        peers: Some(Peers { total: 1, direct, unreachable: 1 - direct, ..Peers::default() }),
        conditions: vec![Condition {
            kind: "Connected".into(),
            status: direct == 1,
            ..Condition::default()
        }],
        transitions: vec![rpc::feed::Transition { kind: "flap".into(), ..Default::default() }],
        ..Status::default()
    }
}

/// What the operator asked since the last look. The log is written by another process, after the answer.
async fn since(audit: &mut Audit) -> Vec<Request> {
    tokio::time::sleep(Duration::from_millis(300)).await;
    audit.requests_of(OPERATOR)
}

/// Reads and writes. To review a token changes nothing.
fn count(requests: &[Request]) -> (usize, usize) {
    let is_write = |request: &&Request| request.is_write() && request.resource != "tokenreviews";
    let writes = requests.iter().filter(is_write).count();
    let is_read = |request: &&Request| ["get", "list"].contains(&request.verb.as_str());
    (requests.iter().filter(is_read).count(), writes)
}
