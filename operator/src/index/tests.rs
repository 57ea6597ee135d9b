use serde_json::json;

use super::*;

fn network(name: &str, cluster: &str) -> Arc<EasyNetwork> {
    let mut network = EasyNetwork::new(name, crds::EasyNetworkSpec::default());
    network.spec.cluster_name = cluster.to_owned();
    Arc::new(network)
}

fn malformed() -> Malformed {
    Malformed {
        error: "invalid type: integer `7`".to_owned(),
        uid: "1".to_owned(),
        generation: Some(3),
    }
}

#[test]
fn a_list_replaces_what_was_there_and_says_if_that_makes_a_difference() {
    let mut index = Index::default();
    let list = |items: &[(&str, &str)]| {
        let all =
            items.iter().map(|(name, cluster)| ((*name).to_owned(), Ok(network(name, cluster))));
        Change::Networks(Delta::Reset(all.collect()))
    };

    assert!(index.apply(list(&[("a", "x"), ("b", "x")])));
    assert!(!index.apply(list(&[("b", "x"), ("a", "x")])));
    assert!(index.apply(list(&[("b", "y")])));

    assert_eq!(index.world().networks.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(index.world().networks["b"].spec.cluster_name, "y");
}

#[test]
fn an_object_that_does_not_parse_is_set_aside_and_all_others_go_on() {
    let mut index = Index::default();
    index.apply(Change::Networks(Delta::Put("a".to_owned(), Ok(network("a", "x")))));
    index.apply(Change::Networks(Delta::Put("b".to_owned(), Ok(network("b", "x")))));

    assert!(index.apply(Change::Networks(Delta::Put("a".to_owned(), Err(malformed())))));
    assert!(!index.apply(Change::Networks(Delta::Put("a".to_owned(), Err(malformed())))));
    assert_eq!(index.world().networks.keys().collect::<Vec<_>>(), ["b"]);
    assert_eq!(index.world().malformed[&("EasyNetwork", "a".to_owned())], malformed());

    assert!(index.apply(Change::Networks(Delta::Put("a".to_owned(), Ok(network("a", "x"))))));
    assert!(index.world().malformed.is_empty());
}

#[test]
fn what_is_gone_is_gone_also_if_it_never_parsed() {
    let mut index = Index::default();
    index.apply(Change::Networks(Delta::Put("a".to_owned(), Err(malformed()))));
    index.apply(Change::Networks(Delta::Put("b".to_owned(), Err(malformed()))));

    assert!(index.apply(Change::Networks(Delta::Remove("a".to_owned()))));
    assert!(index.apply(Change::Networks(Delta::Reset(Vec::new()))));
    assert!(!index.apply(Change::Networks(Delta::Remove("b".to_owned()))));

    assert!(index.world().malformed.is_empty());
}

/// What all watches say in an empty cluster.
pub(crate) fn empty_lists() -> [Change; KINDS.len()] {
    [
        Change::Networks(Delta::Reset(Vec::new())),
        Change::Peers(Delta::Reset(Vec::new())),
        Change::Nodes(Delta::Reset(Vec::new())),
        Change::Agents(Delta::Reset(Vec::new())),
        Change::Injected(Delta::Reset(Vec::new())),
        Change::Namespaces(Delta::Reset(Vec::new())),
        Change::Secrets(Delta::Reset(Vec::new())),
        Change::ServiceRanges(Delta::Reset(Vec::new())),
        Change::FeedServices(Delta::Reset(Vec::new())),
        Change::DaemonSets(Delta::Reset(Vec::new())),
        Change::ConfigMaps(Delta::Reset(Vec::new())),
        Change::Slices(Delta::Reset(Vec::new())),
    ]
}

#[test]
fn the_world_is_synced_when_every_kind_was_listed() {
    let mut index = Index::default();
    assert_eq!(index.world().unsynced().len(), KINDS.len());

    let [others @ .., last] = empty_lists();
    for change in others {
        assert!(index.apply(change));
        assert!(!index.world().is_synced());
    }
    index.apply(last);

    assert!(index.world().is_synced());
}

#[test]
fn a_heartbeat_of_a_node_makes_no_difference() {
    let node = |heartbeat: &str, ready: &str| {
        let node: ApiNode = serde_json::from_value(json!({
            "metadata": {"name": "a", "uid": "1", "creationTimestamp": "2026-01-01T00:00:00Z",
                "annotations": {"flannel.alpha.coreos.com/backend-type": "vxlan", "other": heartbeat}},
            "spec": {"podCIDR": "10.42.1.0/24", "podCIDRs": ["10.42.1.0/24", "fd00:42:1::/64"],
                "providerID": "aws:///eu-central-1a/i-1"},
            "status": {
                "addresses": [{"type": "Hostname", "address": "a"}, {"type": "InternalIP", "address": "192.0.2.1"}],
                "conditions": [
                    {"type": "Ready", "status": ready, "lastHeartbeatTime": heartbeat},
                    {"type": "NetworkUnavailable", "status": "False", "reason": "FlannelIsUp"},
                ],
            },
        }))
        .unwrap();
        Change::Nodes(Delta::Put("a".to_owned(), Ok(Arc::new(Node::take(node)))))
    };
    let mut index = Index::default();

    assert!(index.apply(node("2026-01-01T00:00:10Z", "True")));
    assert!(!index.apply(node("2026-01-01T00:00:20Z", "True")));
    let kept = index.world().nodes["a"].clone();
    assert!(index.apply(node("2026-01-01T00:00:30Z", "False")));

    assert!(kept.ready);
    assert_eq!(kept.pod_cidrs.len(), 2);
    assert_eq!(kept.internal, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!((kept.network_reason.as_str(), kept.provider.as_str()), ("FlannelIsUp", "aws"));
    assert_eq!(kept.annotations.len(), 1);
    assert_eq!(kept.created, 1_767_225_600);
}

#[test]
fn a_pod_says_why_its_container_does_not_run() {
    let pod = |status: serde_json::Value| {
        let pod: ApiPod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "easynet-system", "uid": "1", "labels": {"easynet.io/network": "prod"}},
            "spec": {"nodeName": "a", "containers": []},
            "status": status,
        }))
        .unwrap();
        Pod::take_agent(pod)
    };
    let waiting = |reason: &str| {
        json!({"containerStatuses": [{"name": "easynet", "image": "", "imageID": "", "ready": false,
            "restartCount": 0, "state": {"waiting": {"reason": reason, "message": "no such image"}}}]})
    };

    assert_eq!(pod(waiting("ContainerCreating")).trouble, None);
    assert_eq!(
        pod(waiting("ErrImagePull")).trouble,
        Some(("ErrImagePull".to_owned(), "no such image".to_owned()))
    );
    assert_eq!(pod(json!({})).network, "prod");
}

#[test]
fn a_secret_shows_its_keys_and_nothing_of_what_they_hold() {
    let secret: ApiSecret = serde_json::from_value(json!({
        "metadata": {"name": "s", "resourceVersion": "7"}, "data": {"root": "c2VjcmV0"},
    }))
    .unwrap();
    let secret = Secret::take(secret);

    assert_eq!(format!("{secret:?}"), "Secret { version: \"7\", keys: [\"root\"], .. }");
    assert_eq!(**secret.data.get("root").unwrap(), *b"secret");
}
