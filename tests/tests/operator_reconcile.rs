//! The operator against a real API server: what it makes, what it leaves alone, and what it survives.
//!
//! Agents are simulated: the product's own session with the feed, with tokens that the API server gave for pods of the DaemonSet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use crds::{EasyNetwork, EasyPeer, peer::PeerState};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams},
};
use operator::names;
use serde_json::{Value, json};
use tests::cluster::{
    Options,
    bed::{Bed, network},
    product::NAMESPACE,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_becomes_what_its_nodes_need_and_a_quiet_cluster_costs_nothing() {
    let bed = Bed::start(Options::default(), 2, &[]).await;
    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;

    // What it makes.
    let set = bed.wait("the DaemonSet", || bed.daemon_set("prod")).await;
    assert_eq!(set.owner_references()[0].kind, "Service", "agents outlive their network");
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
    let mut agents = bed.agents(operator.feed, &["node-1", "node-2"]).await;
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
    let bed = Bed::start(Options::default(), 2, &[]).await;
    let first = bed.operator("op-1").await;
    bed.wait("a leader", || async { (bed.leader().await? == "op-1").then_some(()) }).await;
    let second = bed.operator("op-2").await;
    let mut agents = bed.ready(first.feed).await;
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
    let mut agents = bed.agents(second.feed, &["node-1", "node-2"]).await;
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
    let bed = Bed::start(Options::default(), 2, &[]).await;
    let operator = bed.operator("op-1").await;
    let mut agents = bed.ready(operator.feed).await;
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
    // The agents come back by themselves.
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
async fn an_operator_that_is_killed_is_replaced_within_the_time_of_its_lease() {
    let bed = Bed::start(Options::default(), 2, &[]).await;
    let first = bed.operator_process("op-1").await;
    bed.wait("a leader", || async { (bed.leader().await? == "op-1").then_some(()) }).await;
    let second = bed.operator_process("op-2").await;
    let agents = bed.ready(first.feed).await;
    let before = bed.peers().await;
    drop(agents);

    let killed = Instant::now();
    first.kill();

    let leads = || async { (bed.leader().await? == "op-2").then_some(()) };
    bed.wait_for(Duration::from_secs(25), "the other leader", leads).await;
    println!("taken over {:?} after the kill", killed.elapsed());
    // Untouched for 15 s, looked at every 2 s.
    assert!(killed.elapsed() < Duration::from_secs(19), "{:?}", killed.elapsed());
    let mut agents = bed.agents(second.feed, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    bed.condition("Ready", "True").await;
    for (name, peer) in &bed.peers().await {
        assert_eq!(peer.spec, before[name].spec, "no renumbering");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_whose_past_is_gone_lists_again_and_misses_nothing() {
    let bed = Bed::start(Options::default(), 1, &[]).await;
    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;
    bed.wait("an EasyPeer", || async { bed.peers().await.pop_first() }).await;
    bed.quiet(&operator).await;
    let lists = operator.requests.reads();

    // The API server forgets, and so does etcd; what happens meanwhile is in no watch.
    bed.plane.kill_apiserver();
    bed.plane.compact();
    bed.plane.start_apiserver();
    bed.node(2).await;

    bed.wait_for(Duration::from_secs(60), "the other EasyPeer", || async {
        bed.peers().await.contains_key("node-2").then_some(())
    })
    .await;
    // A watch that only broke off goes on where it was; one that is told 410 lists.
    assert!(operator.requests.reads() > lists, "nothing was listed again");
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_the_operators_stays_so_and_what_a_user_adds_is_left_alone() {
    let bed = Bed::start(Options::default(), 1, &[]).await;
    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;
    bed.wait("the DaemonSet", || bed.daemon_set("prod")).await;
    bed.quiet(&operator).await;
    let edit = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet",
        "metadata": {"name": names::agents("prod"), "namespace": NAMESPACE, "annotations": {"team": "net"}},
        "spec": {"template": {"spec": {"hostNetwork": false}}},
    });

    // The API server tells a user whose field it is.
    let apply = ["apply", "--server-side", "--field-manager=anna", "-f", "-"];
    let refused = bed.plane.kubectl_with(&apply, &edit.to_string()).err();
    assert!(refused.contains("conflict") && refused.contains("\"easynet\""), "{refused}");
    assert!(refused.contains(".spec.template.spec.hostNetwork"), "{refused}");

    // Who insists gets it for a moment; what is nobody else's stays.
    let forced = [&apply[..], &["--force-conflicts"]].concat();
    bed.plane.kubectl_with(&forced, &edit.to_string()).ok();
    let repaired = bed
        .wait("the repair", || async {
            let set = bed.daemon_set("prod").await?;
            let template = set.spec.clone()?.template.spec?;
            template.host_network?.then_some(set)
        })
        .await;
    assert_eq!(repaired.metadata.annotations.unwrap()["team"], "net");
    bed.quiet(&operator).await;
    operator.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_object_from_before_its_schema_is_said_to_be_malformed_and_harms_no_other() {
    let bed = Bed::start(Options::default(), 1, &[]).await;
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
