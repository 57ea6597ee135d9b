//! The chart on a real cluster: installed, used, upgraded, rolled back and uninstalled by `helm`, with real pods on a real node.
//!
//! One cluster for all of it, in the order in which a person does it, since a cluster takes half a minute.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tests::{
    cluster::{Cluster, Image, condition, has_condition},
    kubetools::root,
    lab::{Lab, Nat},
};

const NAMESPACE: &str = "easynet-system";
/// Ends well in a pod that has an address of the mesh.
const IN_MESH: &str = r#"case "$(ip -4 addr)" in *100.112.*) exit 0;; *) exit 1;; esac"#;
const SOON: Duration = Duration::from_secs(60);

#[test]
fn the_chart_comes_does_its_work_and_goes_without_a_trace() {
    let mut lab = Lab::new();
    let [cluster] =
        Cluster::start_all(&mut lab, [("c", Nat::PortRestricted, 1)], &[Image::easynet()]);

    let took =
        helm(&cluster, &["install", "--create-namespace", "--wait", "--timeout", "90s"], &[]);
    println!("helm install until both operators are ready: {took:?}");
    let operators =
        cluster.list("pods", &["-n", NAMESPACE, "-l", "app.kubernetes.io/component=operator"]);
    assert_eq!(operators.len(), 2);
    assert!(operators.iter().all(|pod| has_condition(pod, "Ready")));

    a_network_becomes_ready(&cluster);
    doctor_finds_nothing_wrong(&cluster);
    pods_that_ask_become_members(&cluster);
    an_upgrade_and_a_rollback_keep_everything(&cluster);
    uninstalling_leaves_nothing(&cluster);

    helm(&cluster, &["install", "--wait", "--timeout", "90s"], &[]);
    let networks = cluster.list("easynetworks", &[]);
    assert_eq!(networks.len(), 1, "the kinds were kept, and what was written is found again");
    wait_ready(&cluster);
}

fn a_network_becomes_ready(cluster: &Cluster) {
    let network = json!({
        "apiVersion": "easynet.io/v1alpha1",
        "kind": "EasyNetwork",
        "metadata": {"name": "prod"},
        "spec": {
            "clusterName": "c",
            "members": {"pods": {"mode": "OptIn", "allowedNamespaces": {}}},
        },
    });
    let began = Instant::now();
    cluster.kubectl_with(&["apply", "-f", "-"], &network.to_string()).ok();
    wait_ready(cluster);
    println!("kubectl apply until the network is Ready: {:?}", began.elapsed());
    let viewer = ["get", "easynetworks", "--as", "anna", "--as-group", "viewers"];
    assert!(cluster.kubectl(&viewer).err().contains("forbidden"));
    cluster
        .kubectl(&[
            "create",
            "clusterrolebinding",
            "viewers",
            "--clusterrole=view",
            "--group=viewers",
        ])
        .ok();
    assert!(cluster.kubectl(&viewer).ok().contains("prod"), "who may view may see networks");
    let write =
        ["auth", "can-i", "create", "easynetworks", "--as", "anna", "--as-group", "viewers"];
    assert!(!cluster.kubectl(&write).success);
}

fn doctor_finds_nothing_wrong(cluster: &Cluster) {
    let ran = cluster.helm(&["test", "easynet", "-n", NAMESPACE, "--timeout", "60s"]);
    let said = cluster.kubectl(&["logs", "-n", NAMESPACE, "easynet-doctor"]).stdout;
    assert!(ran.success, "{}{}\n{said}", ran.stdout, ran.stderr);
    assert!(said.contains("prod node"), "it looked at the agent: {said}");
}

fn pods_that_ask_become_members(cluster: &Cluster) {
    let trusted = || {
        let webhook = cluster.object("mutatingwebhookconfiguration/easynet-webhook", &[]).unwrap();
        webhook["webhooks"][0]["clientConfig"]["caBundle"].is_string()
    };
    cluster.wait("the webhook is trusted", SOON, trusted);
    let app = json!({"containers": [box_of("sleep 600")]});
    let without = start(cluster, "plain", &json!({}), &app);
    let delay = injection_delay(cluster, &app);
    println!("a pod is Ready after {without:?}, one with our sidecar {delay:?} after one with any");
    assert!(delay < Duration::from_millis(500), "{delay:?}");
    let pod = cluster.object("pod/member", &[]).unwrap();
    assert_eq!(pod["spec"]["initContainers"][0]["name"], "easynet");
    assert!(cluster.exec("member", "ip -4 addr").ok().contains("inet 100.112."));
    assert!(!cluster.exec("plain", "ip -4 addr").ok().contains("inet 100.112."));

    // A Job completes: the sidecar does not keep it.
    let job = json!({
        "apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "once"},
        "spec": {"backoffLimit": 0, "template": {
            "metadata": {"labels": {"easynet.io/inject": "prod"}},
            "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 5, "containers": [box_of(IN_MESH)]},
        }},
    });
    cluster.kubectl_with(&["apply", "-f", "-"], &job.to_string()).ok();
    cluster.wait("the Job is complete", SOON, || {
        cluster.object("job/once", &[]).is_some_and(|job| has_condition(&job, "Complete"))
    });

    // Where the sidecar would be rejected the pod starts without, and says so.
    cluster.kubectl(&["create", "namespace", "strict"]).ok();
    let baseline = "pod-security.kubernetes.io/enforce=baseline";
    cluster.kubectl(&["label", "namespace", "strict", baseline]).ok();
    let labels = json!({"easynet.io/inject": "prod"});
    let pod = pod_of("refused", &labels, &app);
    let created = cluster.kubectl_with(&["apply", "-n", "strict", "-f", "-"], &pod.to_string());
    assert!(created.success, "{}", created.stderr);
    assert!(
        created.stderr.contains("easynet: no sidecar: namespace strict enforces"),
        "{}",
        created.stderr
    );
    let pod = cluster.object("pod/refused", &["-n", "strict"]).unwrap();
    assert_eq!(pod["metadata"]["annotations"]["easynet.io/inject-refused"], "PodSecurity");
    assert_eq!(pod["spec"]["initContainers"], Value::Null);
    for pod in ["plain", "member"] {
        cluster.kubectl(&["delete", "pod", pod, "--grace-period=2"]).ok();
    }
    cluster.kubectl(&["delete", "namespace", "strict", "--wait=false"]).ok();
    cluster.kubectl(&["delete", "job", "once"]).ok();
}

/// How much later than with a sidecar that does nothing a pod is Ready with ours, the least of some rounds. Any native sidecar costs
/// what the kubelet takes to see that it has started.
fn injection_delay(cluster: &Cluster, app: &Value) -> Duration {
    let mut idle_spec = app.clone();
    let probe = json!({"exec": {"command": ["sh", "-c", "exit 0"]}, "periodSeconds": 1});
    let mut idle = box_of("sleep 600");
    (idle["name"], idle["restartPolicy"]) = ("idle".into(), "Always".into());
    idle["startupProbe"] = probe;
    idle_spec["initContainers"] = json!([idle]);
    let rounds = (1..=3).map(|round| {
        let other = start(cluster, &format!("idle-{round}"), &json!({}), &idle_spec);
        let name = if round == 1 { "member".to_owned() } else { format!("member-{round}") };
        let ours = start(cluster, &name, &json!({"easynet.io/inject": "prod"}), app);
        println!("with a sidecar that does nothing after {other:?}, with ours after {ours:?}");
        ours.saturating_sub(other)
    });
    let least = rounds.min().unwrap();
    let others = ["idle-1", "idle-2", "idle-3", "member-2", "member-3"];
    cluster.kubectl(&[&["delete", "pod", "--wait=false"], &others[..]].concat()).ok();
    least
}

fn an_upgrade_and_a_rollback_keep_everything(cluster: &Cluster) {
    let bundle = || {
        let webhook = cluster.object("mutatingwebhookconfiguration/easynet-webhook", &[]).unwrap();
        webhook["webhooks"][0]["clientConfig"]["caBundle"].clone()
    };
    let address = address(cluster);
    let trusted = bundle();

    helm(
        cluster,
        &["upgrade", "--wait", "--timeout", "90s"],
        &["operator.log=debug", "webhook.timeoutSeconds=3"],
    );
    wait_ready(cluster);
    assert_eq!(bundle(), trusted, "the operator's part of the webhook is left alone");
    let rolled = ["rollback", "easynet", "1", "-n", NAMESPACE, "--wait", "--timeout", "90s"];
    let ran = cluster.helm(&rolled);
    assert!(ran.success, "{}", ran.stderr);
    wait_ready(cluster);
    assert_eq!(bundle(), trusted);
    let webhook = cluster.object("mutatingwebhookconfiguration/easynet-webhook", &[]).unwrap();
    assert_eq!(webhook["webhooks"][0]["timeoutSeconds"], 5);
    assert_eq!(self::address(cluster), address, "no member got another address");
}

fn uninstalling_leaves_nothing(cluster: &Cluster) {
    let began = Instant::now();
    let ran =
        cluster.helm(&["uninstall", "easynet", "-n", NAMESPACE, "--wait", "--timeout", "120s"]);
    println!("helm uninstall: {:?}", began.elapsed());
    assert!(ran.success, "{}", ran.stderr);

    assert!(cluster.list("easypeers", &[]).is_empty());
    for kind in [
        "daemonsets",
        "deployments",
        "jobs",
        "endpointslices",
        "services",
        "networkpolicies",
        "leases",
    ] {
        let left = cluster.list(kind, &["-n", NAMESPACE]);
        let names: Vec<&Value> = left.iter().map(|object| &object["metadata"]["name"]).collect();
        assert!(names.is_empty(), "{kind}: {names:?}");
    }
    for kind in ["clusterroles", "clusterrolebindings", "mutatingwebhookconfigurations"] {
        let left = cluster.list(kind, &["-l", "app.kubernetes.io/part-of=easynet"]);
        assert!(left.is_empty(), "{kind}: {left:?}");
    }
    let secrets = || {
        let all = cluster.list("secrets", &["-n", NAMESPACE]);
        all.iter()
            .map(|secret| secret["metadata"]["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    cluster.wait("the Secrets of the release are gone", SOON, || {
        secrets() == ["easynet-prod-credentials"]
    });
    let node = &cluster.nodes[0];
    for (what, trace) in [
        ("ip -o link", "ez"),
        ("ip rule", "easynet"),
        ("nft list tables", "easynet"),
        ("ls -A /var/lib/easynet/prod", ""),
        ("ls -A /run/easynet", ""),
    ] {
        let found = node.run(what).ok();
        assert!(!found.split_whitespace().any(|word| word.starts_with(trace)), "{what}: {found}");
    }
}

/// Runs `helm` on the chart of this repository; how long it took.
fn helm(cluster: &Cluster, words: &[&str], set: &[&str]) -> Duration {
    let chart = root().join("charts/easynet").display().to_string();
    let (verb, options) = words.split_first().unwrap();
    let base = [*verb, "easynet", &chart, "-n", NAMESPACE];
    let image = ["image.tag=dev", "image.pullPolicy=Never", "webhook.enabled=true"];
    let sets = image.iter().chain(set).flat_map(|set| ["--set", set]);
    let all: Vec<&str> = base.into_iter().chain(options.iter().copied()).chain(sets).collect();
    let began = Instant::now();
    let ran = cluster.helm(&all);
    assert!(ran.success, "{words:?}: {}{}\n{}", ran.stdout, ran.stderr, state(cluster));
    began.elapsed()
}

fn wait_ready(cluster: &Cluster) {
    cluster.wait("the network is Ready", SOON, || {
        let network = cluster.object("easynetwork/prod", &[]).unwrap_or_default();
        let current = network["metadata"]["generation"] == network["status"]["observedGeneration"];
        current && has_condition(&network, "Ready") && condition(&network, "Programmed").is_some()
    });
}

fn address(cluster: &Cluster) -> Value {
    cluster.list("easypeers", &[])[0]["spec"]["ipv4"].clone()
}

/// Creates a pod; how long it took until it was Ready.
fn start(cluster: &Cluster, name: &str, labels: &Value, spec: &Value) -> Duration {
    let began = Instant::now();
    let pod = pod_of(name, labels, spec);
    cluster.kubectl_with(&["apply", "-f", "-"], &pod.to_string()).ok();
    let what = format!("pod/{name}");
    cluster.wait(&format!("{what} is Ready"), SOON, || {
        cluster.object(&what, &[]).is_some_and(|pod| has_condition(&pod, "Ready"))
    });
    began.elapsed()
}

fn pod_of(name: &str, labels: &Value, spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["terminationGracePeriodSeconds"] = json!(2);
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}, "spec": spec})
}

fn box_of(script: &str) -> Value {
    json!({"name": "box", "image": "local/box:1", "imagePullPolicy": "Never", "command": ["sh", "-c", script]})
}

/// What a person would look at.
fn state(cluster: &Cluster) -> String {
    let pods = cluster.kubectl(&["get", "pods", "-A", "-o", "wide"]).stdout;
    let events = cluster.kubectl(&["get", "events", "-A", "--sort-by=.lastTimestamp"]).stdout;
    let log = ["logs", "-n", NAMESPACE, "deploy/easynet-operator", "--tail=40"];
    format!("{pods}\n{events}\n{}", cluster.kubectl(&log).stdout)
}
