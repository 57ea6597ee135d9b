use std::{collections::BTreeMap, sync::Arc};

use crds::{
    EasyNetwork, EasyNetworkSpec,
    network::{Members, Pods},
};

use super::*;
use crate::index::{Index, Live, tests::empty_lists};

#[test]
fn a_pod_that_asks_gets_a_native_sidecar_before_everything_else() {
    let pod = pod(
        json!({"initContainers": [{"name": "migrate", "image": "m"}], "volumes": [{"name": "data", "emptyDir": {}}]}),
    );

    let patched = injected(&pod, &world());

    let init = patched["spec"]["initContainers"].as_array().unwrap();
    assert_eq!(init[0]["name"], "easynet");
    assert_eq!(init[0]["restartPolicy"], "Always");
    assert_eq!(init[0]["image"], "easynet:1");
    assert_eq!(init[1]["name"], "migrate");
    assert_eq!(patched["metadata"]["annotations"][INJECTED], env!("CARGO_PKG_VERSION"));
    let volumes: Vec<&str> = patched["spec"]["volumes"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|volume| volume["name"].as_str())
        .collect();
    assert_eq!(volumes, ["data", "easynet-token", "easynet-state", "easynet-tun"]);
    assert_eq!(
        patched["spec"]["containers"][0],
        json!({"name": "app", "image": "a"}),
        "not touched"
    );
}

#[test]
fn the_sidecar_finds_the_feed_without_dns_and_shows_it_who_it_is() {
    let patched = injected(&pod(json!({})), &world());

    let sidecar = &patched["spec"]["initContainers"][0];
    assert_eq!(
        sidecar["env"][0],
        json!({"name": "EASYNET_CONFIG_SERVER", "value": "tcp://10.96.0.9:22020/prod?k=rootkey"})
    );
    let token = &patched["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "easynet");
    let mounted = sidecar["volumeMounts"].as_array().unwrap();
    let mounted = mounted.iter().find(|mount| mount["name"] == "easynet-token").unwrap();
    let file =
        format!("{}/{}", mounted["mountPath"].as_str().unwrap(), token["path"].as_str().unwrap());
    assert_eq!(sidecar["env"][1]["value"], file);
}

#[test]
fn the_sidecar_sends_its_traces_where_the_operator_does() {
    let settings = Settings { collector: Some("http://10.96.0.20:4318".to_owned()), ..settings() };

    let patched = injected_by(&pod(json!({})), &world(), &settings);

    let env = patched["spec"]["initContainers"][0]["env"].as_array().unwrap();
    let expected =
        json!({"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://10.96.0.20:4318"});
    assert!(env.contains(&expected), "{env:?}");
}

#[test]
fn the_sidecar_may_shape_its_own_network_and_nothing_else() {
    let patched = injected(&pod(json!({})), &world());

    let rights = &patched["spec"]["initContainers"][0]["securityContext"];
    assert_eq!(rights["capabilities"], json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}));
    assert_eq!(rights["privileged"], false);
    assert_eq!(rights["allowPrivilegeEscalation"], false);
    assert_eq!(rights["readOnlyRootFilesystem"], true);
    assert_eq!(patched["spec"]["hostNetwork"], Value::Null);
}

#[test]
fn a_pod_that_does_not_ask_is_left_alone() {
    let settings = settings();
    let mut without = pod(json!({}));
    without.metadata.labels = None;
    let mut empty = pod(json!({}));
    empty.metadata.labels = Some(BTreeMap::from([(names::INJECT.to_owned(), String::new())]));

    assert_eq!(inject(&without, "shop", &world(), &settings), Verdict::Leave);
    assert_eq!(inject(&empty, "shop", &world(), &settings), Verdict::Leave);
}

#[test]
fn asking_twice_gives_one_sidecar() {
    let once: Pod = serde_json::from_value(injected(&pod(json!({})), &world())).unwrap();

    assert_eq!(inject(&once, "shop", &world(), &settings()), Verdict::Leave);
}

#[test]
fn each_reason_to_refuse_is_told_in_its_own_words() {
    let enforcing = |level: &str| {
        let mut world = world();
        let labels = BTreeMap::from([(ENFORCE.to_owned(), level.to_owned())]);
        world.namespaces.insert("shop".to_owned(), Arc::new(labels));
        world
    };
    let taking = |pods: Value| {
        let mut world = world();
        world.networks.insert("prod".to_owned(), Arc::new(network(pods)));
        world
    };
    let mut without_feed = world();
    without_feed.config_maps.clear();
    let selected = json!({"mode": "OptIn", "allowedNamespaces": {"matchLabels": {"team": "a"}}});
    let unreadable = json!({"mode": "OptIn", "allowedNamespaces": {"matchExpressions": [{"key": "team", "operator": "Near"}]}});
    let container = json!({"containers": [{"name": "easynet", "image": "a"}]});
    let volume = json!({"volumes": [{"name": "easynet-token", "emptyDir": {}}]});
    let cases = [
        (world(), json!({"hostNetwork": true}), "HostNetwork"),
        (world(), json!({"os": {"name": "windows"}}), "OtherSystem"),
        (World::default(), json!({}), "UnknownNetwork"),
        (taking(json!({})), json!({}), "PodsNotAllowed"),
        (taking(json!({"mode": "OptIn"})), json!({}), "NamespaceNotAllowed"),
        (taking(selected), json!({}), "NamespaceNotAllowed"),
        (taking(unreadable), json!({}), "NamespaceNotAllowed"),
        (enforcing("baseline"), json!({}), "PodSecurity"),
        (enforcing("restricted"), json!({}), "PodSecurity"),
        (enforcing("strictest"), json!({}), "PodSecurity"),
        (world(), container, "NameTaken"),
        (world(), volume, "NameTaken"),
        (without_feed, json!({}), "NoFeed"),
    ];
    for (world, spec, reason) in cases {
        let verdict = inject(&pod(spec.clone()), "shop", &world, &settings());
        let Verdict::Refuse(refusal) = verdict else { panic!("{spec}: {verdict:?}") };
        assert_eq!(refusal.reason(), reason, "{spec}");
        assert!(Refusal::REASONS.contains(&reason));
        assert!(refusal.to_string().len() > 30, "{refusal}");
    }
}

#[test]
fn a_namespace_that_is_labelled_as_privileged_or_allowed_gets_sidecars() {
    let mut world = world();
    let labels = [(ENFORCE, "privileged"), ("team", "a")];
    let labels: Labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    world.namespaces.insert("shop".to_owned(), Arc::new(labels));
    let pods = json!({"mode": "OptIn", "allowedNamespaces": {"matchLabels": {"team": "a"}}});
    world.networks.insert("prod".to_owned(), Arc::new(network(pods)));
    let settings = Settings { default_pod_security: PodSecurity::Baseline, ..settings() };

    let verdict = inject(&pod(json!({})), "shop", &world, &settings);

    assert!(matches!(verdict, Verdict::Inject(_)), "{verdict:?}");
}

#[test]
fn what_the_cluster_enforces_counts_where_a_namespace_says_nothing() {
    let settings = Settings { default_pod_security: PodSecurity::Baseline, ..settings() };

    let verdict = inject(&pod(json!({})), "shop", &world(), &settings);

    let expected =
        Refusal::PodSecurity { namespace: "shop".to_owned(), level: PodSecurity::Baseline };
    assert_eq!(verdict, Verdict::Refuse(expected));
}

#[test]
fn a_refused_pod_is_marked_with_the_reason() {
    let mut pod = pod(json!({}));
    pod.metadata.annotations = Some(BTreeMap::from([("a/b".to_owned(), "c".to_owned())]));

    let adds = mark_refused(&pod, &Refusal::HostNetwork);

    assert_eq!(
        serde_json::to_value(adds).unwrap(),
        json!([{"op": "add", "path": "/metadata/annotations/easynet.io~1inject-refused", "value": "HostNetwork"}])
    );
}

fn settings() -> Settings {
    Settings {
        namespace: "easynet-system".to_owned(),
        image: "easynet:1".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        default_pod_security: PodSecurity::Privileged,
        collector: None,
    }
}

fn world() -> World {
    let mut world = World::default();
    let everywhere = json!({"mode": "OptIn", "allowedNamespaces": {}});
    world.networks.insert("prod".to_owned(), Arc::new(network(everywhere)));
    world.namespaces.insert("shop".to_owned(), Arc::new(Labels::new()));
    let object = json!({"data": {"address": "10.96.0.9:22020", "rootKey": "rootkey"}});
    let published = Live { object, ..Live::default() };
    world.config_maps.insert("easynet-system/easynet-feed".to_owned(), Arc::new(published));
    world
}

/// The same, as if all watches had listed what there is.
pub(crate) fn synced_world() -> World {
    let mut index = Index::default();
    for change in empty_lists() {
        index.apply(change);
    }
    let (known, mut world) = (world(), index.world().clone());
    world.networks = known.networks;
    world.namespaces = known.namespaces;
    world.config_maps = known.config_maps;
    world
}

fn network(pods: Value) -> EasyNetwork {
    let pods: Pods = serde_json::from_value(pods).unwrap();
    let members = Members { pods, ..Members::default() };
    EasyNetwork::new("prod", EasyNetworkSpec { members, ..EasyNetworkSpec::default() })
}

/// One that asks for a sidecar of `prod`, with more in its spec.
fn pod(spec: Value) -> Pod {
    let mut pod = json!({
        "metadata": {"name": "p", "labels": {names::INJECT: "prod"}},
        "spec": {"containers": [{"name": "app", "image": "a"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    serde_json::from_value(pod).unwrap()
}

/// The pod after the patch.
fn injected(pod: &Pod, world: &World) -> Value {
    injected_by(pod, world, &settings())
}

fn injected_by(pod: &Pod, world: &World, settings: &Settings) -> Value {
    let Verdict::Inject(adds) = inject(pod, "shop", world, settings) else { panic!("refused") };
    let mut patched = serde_json::to_value(pod).unwrap();
    for Add { path, value, .. } in adds {
        let (parent, last) = path.rsplit_once('/').unwrap();
        let last = last.replace("~1", "/");
        let parent = patched.pointer_mut(parent).unwrap();
        match parent.as_array_mut() {
            Some(list) if last == "-" => list.push(value),
            Some(list) => list.insert(last.parse().unwrap(), value),
            None => parent[last] = value,
        }
    }
    patched
}
