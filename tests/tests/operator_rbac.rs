//! What the chart lets the operator do is what it does: nothing that it asks for is refused, and nothing is allowed that it never asks for.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{
    collections::BTreeSet,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use crds::EasyNetwork;
use k8s_openapi::api::{
    authorization::v1::{SelfSubjectRulesReview, SelfSubjectRulesReviewSpec},
    core::v1::Node,
    rbac::v1::{ClusterRole, PolicyRule, Role},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use operator::{api::Requests, join, names, retire};
use serde_json::json;
use tests::cluster::{
    Audit, Options, Request,
    bed::{Bed, OPERATOR, network},
    product::NAMESPACE,
};

/// To do something with objects of a kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    /// Empty is every one.
    namespace: String,
    verb: String,
    /// With its subresource: `easynetworks/status`.
    resource: String,
}

impl Permission {
    fn covers(&self, other: &Self) -> bool {
        let covers_namespace = self.namespace.is_empty() || self.namespace == other.namespace;
        covers_namespace && (&self.verb, &self.resource) == (&other.verb, &other.resource)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_operator_needs_every_permission_of_the_chart_and_no_other() {
    let bed = Bed::start(Options::default(), 2, &["webhook.enabled=true"]).await;
    let mut audit = bed.plane.audit();
    foreign_networks(&bed);
    // Should somebody have deleted it.
    bed.plane.kubectl(&["-n", NAMESPACE, "delete", "lease", names::LEASE]).ok();

    walk_through_its_jobs(&bed).await;

    let requests = requests_of_operator(&mut audit).await;
    let refused: Vec<_> = requests.iter().filter(|request| request.is_forbidden()).collect();
    assert_eq!(refused, Vec::<&Request>::new());
    let needed: Vec<_> = requests.iter().flat_map(needed).collect();
    let mut unneeded = allowed(&bed.client).await;
    unneeded.retain(|allowed| !needed.iter().any(|needed| allowed.covers(needed)));
    assert_eq!(unneeded, BTreeSet::new(), "allowed, and never asked for");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_may_ask_the_api_server_for_nothing() {
    let bed = Bed::start(Options::default(), 1, &[]).await;
    let operator = bed.operator("op-1").await;
    bed.apply(network(json!({"clusterName": "fra1"}))).await;
    let set = bed.wait("the DaemonSet", || bed.daemon_set("prod")).await;
    let pod = bed.pod(&set, "node-1").await;

    // The token that is mounted into it is none of the API server's.
    let mounted =
        bed.plane.token(NAMESPACE, names::AGENT_ACCOUNT, names::AUDIENCE, Some(&pod)).await;
    let error = rules(&bed.plane.client_with_token(&mounted), NAMESPACE).await.unwrap_err();
    assert!(error.to_string().contains("Unauthorized"), "{error}");
    let template = set.spec.unwrap().template.spec.unwrap();
    assert_eq!(template.automount_service_account_token, Some(false));

    // Even one that is may read what everybody may, and no object.
    let own = bed.plane.token(NAMESPACE, names::AGENT_ACCOUNT, API_SERVER, Some(&pod)).await;
    let client = bed.plane.client_with_token(&own);
    for namespace in [NAMESPACE, "default", "kube-system"] {
        let mut resources = rules(&client, namespace).await.unwrap();
        resources.retain(|resource| !resource.starts_with("selfsubject"));
        assert_eq!(resources, [""; 0], "{namespace}");
    }
    operator.stop().await;
}

const API_SERVER: &str = "https://kubernetes.default.svc.cluster.local";

/// Whatever the operator does in its life, once.
async fn walk_through_its_jobs(bed: &Bed) {
    own_pod(bed, "op-1");
    let webhook = SocketAddr::from(([127, 0, 0, 1], 0));
    let operator = bed
        .operator_with("op-1", |run| {
            run.advertise = None;
            run.webhook_listen = Some(webhook);
        })
        .await;
    let nodes = json!({"mode": "Selected", "nodeSelector": {"kubernetes.io/os": "linux"}});
    bed.apply(network(json!({"clusterName": "fra1", "members": {"nodes": nodes}}))).await;
    let mut agents = bed.agents(operator.feed, &["node-1", "node-2"]).await;
    for agent in &mut agents {
        agent.run_what_is_delivered().await;
    }
    bed.condition("Ready", "True").await;
    bed.wait("an Event", || async { bed.events("prod").await.pop() }).await;
    bed.wait("the webhook's certificate", || bed.secret("easynet-webhook-tls")).await;
    bed.wait("trust in it", || async {
        let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
        let bundle = bed.plane.kubectl(&[
            "get",
            "mutatingwebhookconfiguration",
            "easynet-webhook",
            "-o",
            path,
        ]);
        (!bundle.ok().is_empty()).then_some(())
    })
    .await;

    let own = bed.operator_client(&Requests::default()).await;
    join::run(own.clone(), NAMESPACE, "prod", &"fra2".parse().unwrap(), &[])
        .await
        .expect("an invitation");
    keys_change(bed).await;

    // A node goes, then the network, then the operator.
    let nodes: Api<Node> = Api::all(bed.client.clone());
    nodes.delete("node-1", &DeleteParams::default()).await.unwrap();
    bed.wait("the hold", || async { bed.peers().await["node-1"].spec.held_until.clone() }).await;
    let networks: Api<EasyNetwork> = Api::all(bed.client.clone());
    networks.delete("prod", &DeleteParams::default()).await.unwrap();
    agents[1].retire().await;
    bed.wait_for(Duration::from_secs(40), "no DaemonSet and no EasyPeer", || async {
        (bed.daemon_set("prod").await.is_none() && bed.peers().await.is_empty()).then_some(())
    })
    .await;
    retire::run(own, NAMESPACE).await;
    operator.stop().await;
}

/// The keys are so old that it is time for other ones.
async fn keys_change(bed: &Bed) {
    let name = names::credentials("prod");
    let secret = bed.secret(&name).await.unwrap();
    let epoch = secret.data.unwrap()["epoch"].0.clone();
    let week = Duration::from_secs(8 * 24 * 3600);
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap() - week;
    let old = json!({"stringData": {"since": since.as_secs().to_string()}});
    bed.plane
        .kubectl(&[
            "-n",
            NAMESPACE,
            "patch",
            "secret",
            &name,
            "--type=merge",
            "-p",
            &old.to_string(),
        ])
        .ok();
    bed.wait("another key epoch", || async {
        let secret = bed.secret(&name).await?;
        (secret.data?["epoch"].0 != epoch).then_some(())
    })
    .await;
}

/// The pod that the operator finds its own address in.
fn own_pod(bed: &Bed, name: &str) {
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"serviceAccountName": names::OPERATOR, "containers": [{"name": "operator", "image": "easynet:dev"}]}});
    bed.plane.kubectl_with(&["create", "-f", "-"], &pod.to_string()).ok();
    let status = json!({"status": {"podIP": "192.0.2.98", "podIPs": [{"ip": "192.0.2.98"}]}});
    let patch =
        ["patch", "pod", name, "-n", NAMESPACE, "--subresource=status", "--type=merge", "-p"];
    bed.plane.kubectl(&[&patch[..], &[&status.to_string()]].concat()).ok();
}

/// Nodes of the CNIs that say in objects of their own which pods are a node's.
fn foreign_networks(bed: &Bed) {
    for (group, version, kind, plural) in [
        ("cilium.io", "v2", "CiliumNode", "ciliumnodes"),
        ("crd.projectcalico.org", "v1", "BlockAffinity", "blockaffinities"),
    ] {
        let definition = json!({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": format!("{plural}.{group}")},
            "spec": {"group": group, "scope": "Cluster",
                "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                "versions": [{"name": version, "served": true, "storage": true, "schema":
                    {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}}]},
        });
        bed.plane.kubectl_with(&["create", "-f", "-"], &definition.to_string()).ok();
    }
    for (node, annotation) in
        [("cilium", "network.cilium.io/ipv4-pod-cidr"), ("calico", "projectcalico.org/IPv4Address")]
    {
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node,
            "annotations": {annotation: "10.0.0.0/24"}}});
        bed.plane.kubectl_with(&["create", "-f", "-"], &node.to_string()).ok();
    }
}

/// What the operator asked until now. The log is written by another process, after the answer.
async fn requests_of_operator(audit: &mut Audit) -> Vec<Request> {
    tokio::time::sleep(Duration::from_millis(500)).await;
    audit.requests_of(OPERATOR)
}

/// What a request shows to be needed. An apply that made the object needed the right to create as well.
fn needed(request: &Request) -> Vec<Permission> {
    let verbs = match (request.verb.as_str(), request.code) {
        ("patch", 201) => vec!["patch", "create"],
        (verb, _) => vec![verb],
    };
    let permission = |verb: &str| Permission {
        namespace: request.namespace.clone(),
        verb: verb.to_owned(),
        resource: request.resource.clone(),
    };
    verbs.into_iter().map(permission).collect()
}

/// What the chart's roles allow.
async fn allowed(client: &Client) -> BTreeSet<Permission> {
    let named = ListParams::default().labels("app.kubernetes.io/component=operator");
    let roles: Api<ClusterRole> = Api::all(client.clone());
    let of_cluster = roles.list(&named).await.unwrap().into_iter();
    let of_cluster = of_cluster.flat_map(|role| permissions("", role.rules));
    let roles: Api<Role> = Api::all(client.clone());
    let of_namespaces = roles.list(&named).await.unwrap().into_iter();
    let of_namespaces = of_namespaces
        .flat_map(|role| permissions(&role.namespace().unwrap_or_default(), role.rules));
    of_cluster.chain(of_namespaces).collect()
}

fn permissions(namespace: &str, rules: Option<Vec<PolicyRule>>) -> Vec<Permission> {
    let mut all = Vec::new();
    for rule in rules.unwrap_or_default() {
        for resource in rule.resources.unwrap_or_default() {
            all.extend(rule.verbs.iter().map(|verb| Permission {
                namespace: namespace.to_owned(),
                verb: verb.clone(),
                resource: resource.clone(),
            }));
        }
    }
    all
}

/// The resources that whoever has this client may do something with.
async fn rules(client: &Client, namespace: &str) -> kube::Result<Vec<String>> {
    let spec = SelfSubjectRulesReviewSpec { namespace: Some(namespace.to_owned()) };
    let review = SelfSubjectRulesReview { spec, ..SelfSubjectRulesReview::default() };
    let reviews: Api<SelfSubjectRulesReview> = Api::all(client.clone());
    let answer = reviews.create(&PostParams::default(), &review).await?;
    let rules = answer.status.unwrap().resource_rules;
    Ok(rules.into_iter().flat_map(|rule| rule.resources.unwrap_or_default()).collect())
}
