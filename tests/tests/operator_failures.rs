//! What a user reads when something is wrong: the condition, its reason, and a message that names the object and what to do.
//!
//! One control plane and one operator for all of it; every case is a network of its own, with a port and addresses of its own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::{Duration, Instant};

use crds::EasyNetwork;
use k8s_openapi::{
    api::core::v1::{Node, Secret},
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::{
    Api,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use operator::join;
use rpc::feed::{Applied, Status};
use serde_json::{Value, json};
use tests::cluster::{
    Options,
    bed::{Bed, network},
    product::NAMESPACE,
};
use wire::{certificate::Prefix, lsa::ClusterBody};

const SOON: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_failure_has_a_reason_and_a_message_that_helps() {
    let bed = Bed::start(Options::default(), 2, &[]).await;
    let operator = bed.operator("op-1").await;
    let mut agents = bed.ready(operator.feed).await;

    secrets_that_hold_no_keys(&bed).await;
    a_network_id_of_another_network(&bed).await;
    two_networks_that_want_the_same(&bed).await;
    nodes_whose_pods_nobody_can_tell(&bed).await;
    let agent = &mut agents[0];
    let revision = agent.desired().await.revision;

    // Another cluster offers what this one has itself.
    let pods = Prefix::new([10, 42, 0, 0].into(), 16);
    let foreign =
        ClusterBody { name: "ams1".into(), exports: vec![pods], ..ClusterBody::default() };
    agent.link.up.status(told(revision, |status| status.clusters = vec![foreign]));
    let said = expect(&bed, "prod", "AddressConflictFree", "RangeOverlap").await;
    for part in ["10.42.0.0/16", "ams1", "mapTo"] {
        assert!(said.contains(part), "{part}: {said}");
    }

    // Another member announces what it was not given, and the nodes refuse it.
    let refusal = "10.96.0.0/16 of evil.ams1: its certificate does not allow it";
    agent.link.up.status(told(revision, |status| status.refused = vec![refusal.into()]));
    let said = expect(&bed, "prod", "AddressConflictFree", "AnnouncementRefused").await;
    assert!(said.contains(refusal), "{said}");

    // A node of an earlier version does not know all that it is told; it runs the rest.
    let condition = rpc::feed::Condition {
        kind: "ConfigKnown".into(),
        status: false,
        reason: "PassedOver".into(),
        message: "This version, 0.0.9, does not know node.mood of its configuration".into(),
    };
    agent.link.up.status(told(revision, |status| {
        status.conditions = vec![condition.clone()];
    }));
    for kind in ["Programmed", "Ready"] {
        let said = expect(&bed, "prod", kind, "AgentsOutdated").await;
        assert!(said.contains("node node-1 passes over"), "{said}");
    }
    let shown = bed
        .wait("the EasyPeer's condition", || async {
            let peer = bed.peers().await.remove("node-1")?;
            peer.status?.conditions.into_iter().find(|shown| shown.type_ == "ConfigKnown")
        })
        .await;
    assert_eq!(
        (shown.status.as_str(), shown.reason, shown.message),
        ("False", condition.reason, condition.message)
    );

    // A node cannot do what it is told.
    let error = "the port 11010 is taken".to_owned();
    agent.link.up.applied(Applied { revision, error, ..Applied::default() });
    let said = expect(&bed, "prod", "Programmed", "AgentFailed").await;
    for part in ["node-1", "the port 11010 is taken"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let error = bed
        .wait("the EasyPeer's error", || async {
            bed.peers().await.remove("node-1")?.status?.applied_error
        })
        .await;
    assert_eq!(error, "the port 11010 is taken");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_without_an_address_are_named_when_the_range_is_used_up() {
    let bed = Bed::start(Options::default(), 0, &[]).await;
    for number in 0..=255 {
        let node = json!({"metadata": {"name": format!("n{number}")},
            "spec": {"podCIDR": format!("10.42.{number}.0/24"), "podCIDRs": [format!("10.42.{number}.0/24")]}});
        create_node(&bed, node).await;
    }
    let operator = bed.operator("op-1").await;

    let small = json!({"clusterName": "fra1", "addressing": {"ipv4CIDR": "100.112.7.0/24"}});
    bed.apply(network(small)).await;

    let said = expect(&bed, "prod", "AddressConflictFree", "BlockExhausted").await;
    assert!(said.contains("100.112.7.0/24") || said.contains("ipv4CIDR"), "{said}");
    operator.stop().await;
}

async fn secrets_that_hold_no_keys(bed: &Bed) {
    let spec = |port: u16, secret: &str| {
        json!({"clusterName": "fra1", "transport": {"listenPort": port},
            "addressing": {"ipv4CIDR": format!("100.{}.0.0/16", port % 256)},
            "members": {"nodes": {"mode": "None"}}, "credentials": {"secretRef": {"name": secret}}})
    };
    for (name, port, data, reason, part) in [
        ("missing", 12001, None, "CredentialsMissing", "make it, or remove spec.credentials"),
        ("empty", 12002, Some(json!({})), "CredentialsInvalid", "has neither `root` nor `secret`"),
        ("blank", 12003, Some(json!({"secret": " "})), "CredentialsInvalid", "easynet secret new"),
        ("weak", 12004, Some(json!({"secret": "summer"})), "CredentialsWeak", "can be guessed"),
        ("short", 12005, Some(json!({"root": "aa", "epoch": "1"})), "CredentialsInvalid", "length"),
    ] {
        if let Some(data) = data {
            secret(bed, json!({"metadata": {"name": name}, "stringData": data})).await;
        }
        apply(bed, name, spec(port, name)).await;
        let said = expect(bed, name, "ResolvedRefs", reason).await;
        assert!(said.contains(part) && said.contains(name), "{name}: {said}");
        expect(bed, name, "Ready", reason).await;
    }

    // Mended, it goes on by itself.
    secret(bed, json!({"metadata": {"name": "missing"}, "stringData": {"secret": "mfrggzdfmztwq2lknnwg23tpob"}})).await;
    expect(bed, "missing", "ResolvedRefs", "ResolvedRefs").await;
    for name in ["missing", "empty", "blank", "weak", "short"] {
        delete(bed, name).await;
    }
}

/// What `join` printed, but for another network's Secret.
async fn a_network_id_of_another_network(bed: &Bed) {
    let invitation =
        join::run(bed.client.clone(), NAMESPACE, "prod", &"ams1".parse().unwrap(), &[])
            .await
            .unwrap();
    let mut joined =
        invitation.documents.into_iter().find(|object| object["kind"] == "EasyNetwork").unwrap();
    joined["metadata"]["name"] = json!("joined");
    joined["spec"]["transport"] = json!({"listenPort": 12010});
    joined["spec"]["addressing"] = json!({"ipv4CIDR": "100.120.0.0/16"});
    joined["spec"]["credentials"] = json!({"secretRef": {"name": "foreign"}});
    let id = joined["spec"]["networkID"].as_str().unwrap().to_owned();
    let foreign = json!({"metadata": {"name": "foreign"}, "stringData": {"secret": "nfrggzdfmztwq2lknnwg23tpob"}});
    secret(bed, foreign).await;
    bed.apply(joined).await;

    let said = expect(bed, "joined", "ResolvedRefs", "NetworkIDMismatch").await;
    assert!(said.contains(&id) && said.contains("foreign"), "{said}");
    delete(bed, "joined").await;
}

async fn two_networks_that_want_the_same(bed: &Bed) {
    let nodes = json!({"nodes": {"mode": "None"}});
    let port = json!({"clusterName": "fra1", "members": nodes, "addressing": {"ipv4CIDR": "100.121.0.0/16"}});
    apply(bed, "port", port).await;
    let said = expect(bed, "port", "Accepted", "PortConflict").await;
    assert!(said.contains("11010") && said.contains("prod"), "{said}");
    expect(bed, "port", "Stalled", "PortConflict").await;

    let range =
        json!({"clusterName": "fra1", "members": nodes, "transport": {"listenPort": 12011}});
    apply(bed, "range", range).await;
    let said = expect(bed, "range", "Accepted", "AddressRangeConflict").await;
    assert!(said.contains("100.112.0.0/16") && said.contains("prod"), "{said}");
    for name in ["port", "range"] {
        delete(bed, name).await;
    }
    // The older one is as it was.
    bed.condition("Ready", "True").await;
}

async fn nodes_whose_pods_nobody_can_tell(bed: &Bed) {
    for (name, annotations, part) in [
        ("bare", json!({}), "routing.exports"),
        ("calico", json!({"projectcalico.org/IPv4Address": "192.0.2.9/24"}), "Calico"),
    ] {
        create_node(bed, json!({"metadata": {"name": name, "annotations": annotations}})).await;
        let said = expect(bed, "prod", "Programmed", "PodRangeUnclear").await;
        assert!(said.contains(name) && said.contains(part), "{said}");
        let nodes: Api<Node> = Api::all(bed.client.clone());
        nodes.delete(name, &DeleteParams::default()).await.unwrap();
        expect(bed, "prod", "Programmed", "Programmed").await;
    }
}

/// The status of an agent that is well, but for something.
fn told(revision: u64, change: impl FnOnce(&mut Status)) -> Status {
    let peers = rpc::feed::Peers { total: 1, direct: 1, ..rpc::feed::Peers::default() };
    let transitions = vec![rpc::feed::Transition::default()];
    let mut status = Status {
        revision,
        ready: true,
        members: 2,
        peers: Some(peers),
        ports: vec![11010],
        transitions,
        ..Status::default()
    };
    change(&mut status);
    status
}

/// Waits until a condition of a network has this reason; its message.
async fn expect(bed: &Bed, name: &str, kind: &str, reason: &str) -> String {
    let networks: Api<EasyNetwork> = Api::all(bed.client.clone());
    let deadline = Instant::now() + SOON;
    loop {
        let status = networks.get(name).await.unwrap().status.unwrap_or_default();
        let is_it = |condition: &&Condition| condition.type_ == kind && condition.reason == reason;
        if let Some(condition) = status.conditions.iter().find(is_it) {
            return condition.message.clone();
        }
        assert!(
            Instant::now() < deadline,
            "{name}: {kind} is not {reason}: {:#?}",
            status.conditions
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn apply(bed: &Bed, name: &str, spec: Value) {
    let mut object = network(spec);
    object["metadata"]["name"] = json!(name);
    bed.apply(object).await;
}

async fn delete(bed: &Bed, name: &str) {
    let networks: Api<EasyNetwork> = Api::all(bed.client.clone());
    networks.delete(name, &DeleteParams::default()).await.unwrap();
}

async fn secret(bed: &Bed, mut secret: Value) {
    secret["apiVersion"] = json!("v1");
    secret["kind"] = json!("Secret");
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), NAMESPACE);
    let name = secret["metadata"]["name"].as_str().unwrap().to_owned();
    let params = PatchParams::apply("tests").force();
    secrets.patch(&name, &params, &Patch::Apply(&secret)).await.unwrap();
}

async fn create_node(bed: &Bed, mut node: Value) {
    node["metadata"]["labels"] = json!({"kubernetes.io/os": "linux"});
    let nodes: Api<Node> = Api::all(bed.client.clone());
    nodes.create(&PostParams::default(), &serde_json::from_value(node).unwrap()).await.unwrap();
}
