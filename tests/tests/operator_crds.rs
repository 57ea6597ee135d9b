//! What the API server itself refuses, fills in and explains, with the schemas of crate `crds`.

#![allow(clippy::unwrap_used)]

use kube::{
    Api,
    api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams},
    core::{ApiResource, GroupVersionKind},
};
use serde_json::{Value, json};
use tests::cluster::ControlPlane;

#[tokio::test]
async fn a_wrong_network_is_refused_with_a_sentence_that_says_what_to_do() {
    let api = networks().await;
    let port = |port: i64| json!({"transport": {"listenPort": port}});
    let mtu = |mtu: Value| json!({"transport": {"mtu": mtu}});
    let exports = |exports: Value| json!({"routing": {"exports": exports}});
    let table = [
        // Who it is.
        (json!({"clusterName": null}), "spec.clusterName: Required value"),
        (json!({"clusterName": ""}), "can not name a cluster; write at most 63 lower-case letters"),
        (json!({"clusterName": "Frankfurt 1"}), "'Frankfurt 1' can not name a cluster"),
        (
            json!({"networkName": "a.b"}),
            "write the network's name with at most 63 lower-case letters",
        ),
        (
            json!({"networkID": "prod"}),
            "a networkID has 26 letters and digits; take it from what `easynet-operator join` prints",
        ),
        (json!({"credentials": {}}), "spec.credentials.secretRef: Required value"),
        (
            json!({"credentials": {"secretRef": {"name": "A"}}}),
            "write the name of a Secret in the operator's namespace",
        ),
        // Where it starts.
        (
            json!({"bootstrap": {"peers": ["relay.example.com:11010"]}}),
            "relay.example.com:11010 is no peer; write udp://HOST:PORT?k=KEY",
        ),
        (
            json!({"bootstrap": {"peers": ["http://relay.example.com"]}}),
            "is no peer; write udp://HOST:PORT?k=KEY",
        ),
        (
            json!({"bootstrap": {"peers": ["udp://relay.example.com:11010?k=abc"]}}),
            "KEY is what `easynet key show` prints there",
        ),
        (json!({"bootstrap": {"peers": ["udp://a:1", "udp://a:1"]}}), "Duplicate value"),
        (json!({"bootstrap": {"peers": vec!["udp://a"; 17]}}), "must have at most 16 items"),
        // Its addresses.
        (
            json!({"addressing": {"ipv4CIDR": "100.112.0.0"}}),
            "100.112.0.0 is no range of addresses; write ADDRESS/LENGTH",
        ),
        (
            json!({"addressing": {"ipv4CIDR": "100.112.0.1/16"}}),
            "that is one address of a range; write the range itself",
        ),
        (json!({"addressing": {"ipv4CIDR": "fd00::/48"}}), "write an IPv4 range from /8 to /24"),
        (
            json!({"addressing": {"ipv4CIDR": "100.112.0.0/25"}}),
            "write an IPv4 range from /8 to /24",
        ),
        (json!({"addressing": {"ipv6CIDR": "10.0.0.0/16"}}), "write an IPv6 range from /16 to /64"),
        (json!({"addressing": {"ipv6CIDR": "fd00::1/48"}}), "that is one address of a range"),
        // Its transport.
        (port(0), "write a port from 1 to 65535"),
        (port(65536), "write a port from 1 to 65535"),
        (mtu(json!(1279)), "write Auto or a number from 1280 to 9000"),
        (mtu(json!(9001)), "write Auto or a number from 1280 to 9000"),
        (mtu(json!("auto")), "write Auto or a number from 1280 to 9000"),
        (json!({"transport": {"p2p": "Disabled"}}), "supported values: \"Enabled\", \"RelayOnly\""),
        (json!({"transport": {"punch": "Hard"}}), "supported values: \"Full\", \"Light\", \"Off\""),
        // Its members.
        (
            json!({"members": {"nodes": {"mode": "Selected"}}}),
            "mode Selected needs a nodeSelector with at least one label",
        ),
        (
            json!({"members": {"nodes": {"nodeSelector": {"a": "b"}}}}),
            "a nodeSelector only counts with mode Selected",
        ),
        (
            json!({"members": {"pods": {"allowedNamespaces": {}}}}),
            "allowedNamespaces only counts with mode OptIn",
        ),
        // Its routes.
        (exports(json!([{"cidr": "10.42.0.0"}])), "10.42.0.0 is no range of addresses"),
        (
            exports(json!([{"cidr": "0.0.0.0/0"}])),
            "no member accepts a default route, loopback or link-local range",
        ),
        (
            exports(json!([{"cidr": "127.0.0.0/8"}])),
            "no member accepts a default route, loopback or link-local range",
        ),
        (
            exports(json!([{"cidr": "169.254.169.254/32"}])),
            "no member accepts a default route, loopback or link-local range",
        ),
        (
            exports(json!([{"cidr": "fe80::/64"}])),
            "no member accepts a default route, loopback or link-local range",
        ),
        (
            exports(json!([{"cidr": "10.42.0.0/16", "mapTo": "10.200.0.0/17"}])),
            "mapTo maps address by address",
        ),
        (
            exports(json!([{"cidr": "10.42.0.0/16", "mapTo": "fd00::/16"}])),
            "mapTo maps address by address",
        ),
        (
            exports(json!([{"cidr": "10.42.0.0/16", "mapTo": "169.254.0.0/16"}])),
            "write a private range that is free in the whole network",
        ),
        (
            exports(json!([{"cidr": "10.42.0.0/16"}, {"cidr": "10.42.7.0/24"}])),
            "two exports overlap; write ranges of which none contains another",
        ),
        (
            exports(
                json!([{"cidr": "10.42.0.0/16", "mapTo": "10.9.0.0/16"}, {"cidr": "10.43.0.0/16", "mapTo": "10.9.0.0/16"}]),
            ),
            "two exports overlap as the mesh sees them",
        ),
        (
            exports(
                json!([{"cidr": "10.42.0.0/16", "mapTo": "10.43.0.0/16"}, {"cidr": "10.43.0.0/16"}]),
            ),
            "two exports overlap as the mesh sees them",
        ),
        (exports(json!([{"cidr": "10.42.0.0/16"}, {"cidr": "10.42.0.0/16"}])), "Duplicate value"),
        (
            json!({"routing": {"imports": {"mode": "Listed"}}}),
            "mode Listed needs at least one range in cidrs",
        ),
        (
            json!({"routing": {"imports": {"cidrs": ["10.0.0.0/8"]}}}),
            "cidrs only count with mode Listed",
        ),
        (
            json!({"routing": {"imports": {"mode": "Listed", "cidrs": ["10.0.0.1/8"]}}}),
            "that is one address of a range",
        ),
        (
            json!({"routing": {"masquerade": "Sometimes"}}),
            "supported values: \"Inbound\", \"Never\", \"Always\"",
        ),
        // Its agents' pods.
        (
            json!({"agent": {"labels": {"easynet.io/network": "other"}}}),
            "are the operator's; use another prefix",
        ),
        (
            json!({"agent": {"annotations": {"easynet.io/x": ""}}}),
            "are the operator's; use another prefix",
        ),
    ];
    for (change, sentence) in table {
        let refused = refusal(&api, network("prod", &change)).await;
        assert!(
            refused.contains(sentence),
            "{change}\nexpected: {sentence}\nrefused with: {refused}"
        );
    }
    for name in ["a.b", "a23456789012345678901234567890123456789012"] {
        let refused = refusal(&api, network(name, &json!({}))).await;
        assert!(
            refused.contains("write at most 40 lower-case letters, digits and dashes"),
            "{refused}"
        );
    }
}

#[tokio::test]
async fn what_is_right_is_accepted_and_filled_in() {
    let api = networks().await;
    let created = create(&api, network("small", &json!({}))).await.unwrap();
    let expected = json!({
        "clusterName": "fra1",
        "bootstrap": {},
        "addressing": {"ipv4CIDR": "100.112.0.0/16"},
        "transport": {"mtu": "Auto", "listenPort": 11010, "p2p": "Enabled", "punch": "Full"},
        "members": {"nodes": {"mode": "All"}, "pods": {"mode": "None"}},
        "routing": {
            "exportPodCIDRs": "Auto",
            "exportServiceCIDRs": "None",
            "imports": {"mode": "All"},
            "masquerade": "Inbound",
        },
        "agent": {},
    });
    assert_eq!(created.data["spec"], expected);

    let key = "a".repeat(103);
    let everything = json!({
        "networkName": "prod",
        "networkID": "abcdefghijklmnopqrstuvwxy2",
        "credentials": {"secretRef": {"name": "easynet.prod-credentials"}},
        "bootstrap": {"peers": [format!("udp://relay.example.com:11010?k={key}"), "tcp://[fd00::1]:443", "udp://198.51.100.7"]},
        "addressing": {"ipv4CIDR": "10.128.0.0/9", "ipv6CIDR": "fd7a:115c:a1e0::/48"},
        "transport": {"mtu": 1400, "listenPort": 443, "p2p": "RelayOnly", "punch": "Off"},
        "members": {
            "nodes": {"mode": "Selected", "nodeSelector": {"mesh": "yes"}, "tolerations": [{"operator": "Exists"}]},
            "pods": {"mode": "OptIn", "allowedNamespaces": {"matchLabels": {"mesh": "yes"}}},
        },
        "routing": {
            "exportPodCIDRs": "None",
            "exportServiceCIDRs": "Auto",
            "exports": [{"cidr": "10.42.0.0/16", "mapTo": "10.200.0.0/16"}, {"cidr": "10.200.0.0/16", "mapTo": "10.201.0.0/16"}, {"cidr": "fd00:42::/56"}],
            "imports": {"mode": "Listed", "cidrs": ["10.0.0.0/8", "fd00::/8"]},
            "masquerade": "Always",
        },
        "agent": {
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}},
            "labels": {"team": "net"},
            "annotations": {"prometheus.io/scrape": "true"},
            "priorityClassName": "system-node-critical",
        },
    });
    let created = create(&api, network("all", &everything)).await.unwrap();
    for (name, value) in everything.as_object().unwrap() {
        assert_eq!(created.data["spec"][name], *value);
    }
    // What the server keeps is what the types say.
    let typed: crds::EasyNetwork =
        serde_json::from_value(serde_json::to_value(created).unwrap()).unwrap();
    assert_eq!(typed.spec.transport.mtu, crds::Mtu::Bytes(1400));
    assert_eq!(serde_json::to_value(&typed.spec).unwrap()["routing"], everything["routing"]);
}

#[tokio::test]
async fn the_longest_list_of_exports_is_within_the_cost_that_rules_may_have() {
    let api = networks().await;
    let exports: Vec<_> = (0..64)
        .map(|n| json!({"cidr": format!("fd00:aaaa:bbbb:cccc:dddd:eeee:{n:x}:0/112"), "mapTo": format!("fd01:aaaa:bbbb:cccc:dddd:eeee:{n:x}:0/112")}))
        .collect();
    create(&api, network("long", &json!({"routing": {"exports": exports}}))).await.unwrap();
    let one_more = vec![json!({"cidr": "10.0.0.0/8"}); 65];
    let refused = refusal(&api, network("long", &json!({"routing": {"exports": one_more}}))).await;
    assert!(refused.contains("must have at most 64 items"), "{refused}");
}

#[tokio::test]
async fn what_is_for_good_can_not_be_changed_set_or_removed_later() {
    let api = networks().await;
    let id = "abcdefghijklmnopqrstuvwxy2";
    let keep = PostParams::default();
    api.create(&keep, &network("bare", &json!({}))).await.unwrap();
    let named = json!({"networkName": "prod", "networkID": id});
    api.create(&keep, &network("named", &named)).await.unwrap();
    let table = [
        ("bare", json!({"clusterName": "fra2"}), "clusterName is for good"),
        ("bare", json!({"networkName": "prod"}), "networkName is for good"),
        (
            "bare",
            json!({"networkID": id}),
            "networkID is for good; to join another network, delete the EasyNetwork",
        ),
        ("named", json!({"networkName": "test"}), "networkName is for good"),
        ("named", json!({"networkName": null}), "networkName is for good"),
        ("named", json!({"networkID": "abcdefghijklmnopqrstuvwxy3"}), "networkID is for good"),
        ("named", json!({"networkID": null}), "networkID is for good"),
    ];
    for (name, change, sentence) in table {
        let patch = Patch::Merge(json!({"spec": change}));
        let refused =
            api.patch(name, &PatchParams::default(), &patch).await.unwrap_err().to_string();
        assert!(refused.contains(sentence), "{change}: {refused}");
    }
    let free = json!({"spec": {"transport": {"listenPort": 11011}, "credentials": {"secretRef": {"name": "other"}}}});
    api.patch("named", &PatchParams::default(), &Patch::Merge(free)).await.unwrap();
    for name in ["bare", "named"] {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn a_wrong_peer_is_refused() {
    let api = peers().await;
    let node = json!({"network": "prod", "kind": "Node", "nodeRef": {"name": "n1"}});
    let keys = "b".repeat(103);
    let right = [
        node.clone(),
        json!({"network": "prod", "kind": "Pod", "podRef": {"namespace": "default", "name": "web", "uid": "1"}, "keys": keys, "ipv4": "100.112.0.7", "ipv6": "fd7a::7"}),
        json!({"network": "prod", "kind": "External", "externalName": "laptop", "heldUntil": "2026-01-01T00:00:00Z", "exports": [{"cidr": "10.42.1.0/24", "mapTo": "10.200.1.0/24"}]}),
    ];
    for spec in right {
        create(&api, peer("right", spec)).await.unwrap();
    }
    let table = [
        (json!({"kind": "Node"}), "spec.network: Required value"),
        (
            json!({"network": "prod", "kind": "Router"}),
            "supported values: \"Node\", \"Pod\", \"External\"",
        ),
        (json!({"network": "prod", "kind": "Node"}), "exactly the reference of its kind is set"),
        (
            json!({"network": "prod", "kind": "Pod", "nodeRef": {"name": "n1"}}),
            "exactly the reference of its kind is set",
        ),
        (
            json!({"network": "prod", "kind": "Node", "nodeRef": {"name": "n1"}, "externalName": "x"}),
            "exactly the reference of its kind is set",
        ),
        (
            json!({"network": "prod", "kind": "Node", "nodeRef": {"name": "n1"}, "keys": "abc"}),
            "keys are the base32 of 64 bytes",
        ),
        (
            json!({"network": "prod", "kind": "Node", "nodeRef": {"name": "n1"}, "ipv4": "fd00::1"}),
            "write an IPv4 address",
        ),
        (
            json!({"network": "prod", "kind": "Node", "nodeRef": {"name": "n1"}, "ipv6": "10.0.0.1"}),
            "write an IPv6 address",
        ),
        (
            json!({"network": "prod", "kind": "Node", "nodeRef": {"name": "n1"}, "exports": [{"cidr": "0.0.0.0/0"}]}),
            "no member accepts a default route",
        ),
    ];
    for (spec, sentence) in table {
        let refused = refusal(&api, peer("wrong", spec.clone())).await;
        assert!(
            refused.contains(sentence),
            "{spec}\nexpected: {sentence}\nrefused with: {refused}"
        );
    }
    api.create(&PostParams::default(), &peer("stays", node)).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"network": "test"}}));
    let refused =
        api.patch("stays", &PatchParams::default(), &patch).await.unwrap_err().to_string();
    assert!(refused.contains("an EasyPeer stays what it is"), "{refused}");
    api.delete("stays", &DeleteParams::default()).await.unwrap();
}

#[tokio::test]
async fn kubectl_shows_the_sentence_explains_the_fields_and_prints_the_columns() {
    let api = networks().await;
    let plane = ControlPlane::shared();
    let apply = |more: &str| {
        let manifest = format!(
            "apiVersion: easynet.io/v1alpha1\nkind: EasyNetwork\nmetadata: {{name: columns}}\nspec:\n  clusterName: fra1\n  {more}\n"
        );
        plane.kubectl_with(&["apply", "-f", "-"], &manifest)
    };
    let complaint = apply("transport: {listenPort: 0}").err();
    assert!(complaint.contains("spec.transport.listenPort"), "{complaint}");
    assert!(complaint.contains("write a port from 1 to 65535"), "{complaint}");
    let complaint = apply("agent: {hostPID: true}").err();
    assert!(complaint.contains("unknown field \"spec.agent.hostPID\""), "{complaint}");

    apply("").ok();
    let status = json!({"status": {
        "networkID": "abcdefghijklmnopqrstuvwxy2",
        "conditions": [{"type": "Ready", "status": "True", "reason": "Connected", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
        "agents": {"desired": 3, "updated": 3, "ready": 2},
        "peers": {"total": 7, "direct": 5, "relayed": 2, "clusters": 2},
    }});
    api.patch_status("columns", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let table = plane.kubectl(&["get", "enet", "columns"]).ok();
    let mut lines = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(
        lines.next().unwrap(),
        ["NAME", "CLUSTER", "CIDR", "AGENTS", "PEERS", "RELAYED", "READY", "REASON", "AGE"]
    );
    assert_eq!(
        lines.next().unwrap()[..8],
        ["columns", "fra1", "100.112.0.0/16", "2", "7", "2", "True", "Connected"]
    );
    let all = plane.kubectl(&["get", "easynet", "-o", "name"]).ok();
    assert!(all.contains("easynetwork.easynet.io/columns"), "{all}");
    plane.kubectl(&["delete", "enet", "columns"]).ok();

    let network = plane.kubectl(&["explain", "easynetworks.spec"]).ok();
    for part in ["clusterName", "-required-", "No two clusters of a network may have the same one."]
    {
        assert!(one_line(&network).contains(part), "{part}: {network}");
    }
    let punch = plane.kubectl(&["explain", "easynetworks.spec.transport.punch"]).ok();
    assert!(punch.contains("How hard to try to get through NATs."), "{punch}");
    for value in ["Full", "Light", "Off"] {
        assert!(punch.contains(value), "{punch}");
    }
    let peer = plane.kubectl(&["explain", "easypeers"]).ok();
    assert!(one_line(&peer).contains("One member of an EasyNetwork in this cluster"), "{peer}");
}

async fn networks() -> Api<DynamicObject> {
    kind("EasyNetwork", "easynetworks").await
}

async fn peers() -> Api<DynamicObject> {
    kind("EasyPeer", "easypeers").await
}

/// The kind without our types, so that anything can be sent.
async fn kind(kind: &str, plural: &str) -> Api<DynamicObject> {
    let plane = ControlPlane::shared();
    plane.install_crds().await;
    let gvk = GroupVersionKind::gvk(crds::GROUP, crds::VERSION, kind);
    Api::all_with(plane.client(), &ApiResource::from_gvk_with_plural(&gvk, plural))
}

fn network(name: &str, change: &Value) -> DynamicObject {
    let mut spec = json!({"clusterName": "fra1"});
    for (field, value) in change.as_object().unwrap() {
        spec[field] = value.clone();
    }
    object("EasyNetwork", name, spec)
}

fn peer(name: &str, spec: Value) -> DynamicObject {
    object("EasyPeer", name, spec)
}

fn object(kind: &str, name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "easynet.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

/// Creates it for a moment: everything but the writing is done.
async fn create(api: &Api<DynamicObject>, object: DynamicObject) -> kube::Result<DynamicObject> {
    let params = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&params, &object).await
}

async fn refusal(api: &Api<DynamicObject>, object: DynamicObject) -> String {
    match create(api, object.clone()).await {
        Ok(_) => panic!("accepted: {}", object.data),
        Err(error) => error.to_string(),
    }
}

/// Without the line breaks that `kubectl explain` makes.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
