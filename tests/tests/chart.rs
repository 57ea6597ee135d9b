//! The chart as a user gets it: rendered, linted and checked by real `helm` and the schemas of Kubernetes.

#![allow(clippy::unwrap_used, clippy::unwrap_in_result)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Instant,
};

use operator::{api::Requests, metrics::Metrics, watch::Pulse};
use serde_json::Value;
use tests::kubetools::{helm, root, validate};

/// Everything that can be turned on.
const ALL: &[&str] = &[
    "webhook.enabled=true",
    "criticalPods.quota=true",
    "image.pullSecrets={first,second}",
    "operator.priorityClassName=system-cluster-critical",
    "operator.env[0].name=OTEL_EXPORTER_OTLP_ENDPOINT",
    "operator.env[0].value=http://otel:4317",
];
const MONITORING: &str = "monitoring.coreos.com/v1";
const OPENSHIFT: &str = "security.openshift.io/v1";
/// Kinds of others, which the schemas of Kubernetes do not know.
const FOREIGN: &[&str] =
    &["PodMonitor", "PrometheusRule", "SecurityContextConstraints", "ServiceMonitor"];

#[test]
fn lint_has_nothing_to_say() {
    for set in [&[][..], ALL] {
        let output = run(Command::new(helm()).args(["lint", "--strict", "--quiet"]), set);
        assert!(output.is_ok(), "{output:?}");
    }
}

#[test]
fn every_object_is_valid_in_every_kubernetes_it_is_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (name, set) in [("default", &[][..]), ("all", ALL)] {
        let file = folder.path().join(format!("{name}.yaml"));
        let rendered = render(set, &[MONITORING, OPENSHIFT]).unwrap();
        let known = rendered.iter().filter(|object| !FOREIGN.contains(&kind(object)));
        let known = known.filter(|object| kind(object) != "CustomResourceDefinition");
        let texts: Vec<String> = known.map(ToString::to_string).collect();
        assert!(texts.len() > 10);
        fs::write(&file, texts.join("\n---\n")).unwrap();
        files.push(file);
    }
    let files: Vec<&Path> = files.iter().map(PathBuf::as_path).collect();
    for version in ["1.33", "1.34", "1.35", "1.36", "1.37"] {
        validate(version, &files).unwrap();
    }

    let misspelt = folder.path().join("misspelt.yaml");
    let pod = r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": {"containerz": [], "containers": []}}"#;
    fs::write(&misspelt, pod).unwrap();
    assert!(validate("1.33", &[&misspelt]).is_err(), "the check can fail");
}

#[test]
fn a_value_that_does_not_exist_or_fit_is_refused() {
    let cases = [
        ("image.digset=sha256:00", "'digset' not allowed"),
        ("imagee.tag=1", "'imagee' not allowed"),
        ("image.digest=sha256:00", "does not match pattern"),
        ("image.pullPolicy=Sometimes", "must be one of"),
        ("operator.replicas=0", "minimum"),
        ("feed.port=70000", "maximum"),
        ("webhook.enabled=yes", "want boolean"),
        ("monitoring.rules.labels.a=1", "want string"),
    ];
    for (set, sentence) in cases {
        let refused = render(&[set], &[]).unwrap_err();
        assert!(refused.contains(sentence), "{set}: {refused}");
    }
}

#[test]
fn a_kubernetes_that_is_too_old_is_refused() {
    let mut command = Command::new(helm());
    command.args(["template", "easynet", "--kube-version", "1.32.9"]);

    let refused = run(&mut command, &[]).unwrap_err();

    assert!(refused.contains(">=1.33.0-0"), "{refused}");
}

#[test]
fn the_chart_has_the_version_of_the_binaries() {
    let chart: Value = yaml(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).remove(0);
    assert_eq!(chart["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(chart["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn one_image_runs_everywhere_and_the_digest_wins() {
    let images = |set: &[&str]| -> BTreeSet<String> {
        let objects = render(set, &[]).unwrap();
        let pods = objects.iter().filter_map(pod_spec);
        let images = pods.flat_map(containers).map(|container| text(&container["image"]));
        images.map(str::to_owned).collect()
    };
    let one = |image: &str| BTreeSet::from([image.to_owned()]);
    let digest = format!("sha256:{}", "0a".repeat(32));
    let with_digest = format!("image.digest={digest}");

    assert_eq!(images(&[]), one(concat!("easynet:", env!("CARGO_PKG_VERSION"))));
    assert_eq!(images(&["image.tag=dev"]), one("easynet:dev"));
    assert_eq!(
        images(&["image.registry=mirror:5000/team", "image.tag=dev", &with_digest]),
        one(&format!("mirror:5000/team/easynet@{digest}"))
    );
    let objects = render(&["image.tag=dev"], &[]).unwrap();
    let deployment = named(&objects, "Deployment", "easynet-operator");
    let environment = &deployment["spec"]["template"]["spec"]["containers"][0]["env"];
    let agents = environment.as_array().unwrap().iter().find(|one| one["name"] == "EASYNET_IMAGE");
    assert_eq!(agents.unwrap()["value"], "easynet:dev", "what the node agents run");
}

#[test]
fn secrets_to_pull_with_reach_every_pod() {
    let objects = render(ALL, &[]).unwrap();
    let expected = serde_json::json!([{"name": "first"}, {"name": "second"}]);
    for pod in objects.iter().filter_map(pod_spec) {
        assert_eq!(pod["imagePullSecrets"], expected);
    }
    // The operator makes the pods of the node agents; they pull with what their account has.
    let account = named(&objects, "ServiceAccount", "easynet-agent");
    assert_eq!(account["imagePullSecrets"], expected);
}

#[test]
fn no_pod_has_more_rights_than_it_needs() {
    let objects = render(ALL, &[]).unwrap();
    let mut seen = 0;
    for object in &objects {
        let Some(pod) = pod_spec(object) else { continue };
        let name = name(object);
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
        for field in ["hostPID", "hostIPC", "shareProcessNamespace"] {
            assert_eq!(pod[field], Value::Null, "{name}");
        }
        for container in containers(pod) {
            let rights = &container["securityContext"];
            assert_eq!(rights["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(rights["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(rights["privileged"], Value::Null, "{name}");
            assert_eq!(rights["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
            assert!(container["resources"]["requests"]["memory"].is_string(), "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name}");
            // What looks at a node needs what runs on it; everything else is restricted.
            if name == "easynet-doctor" {
                let one = serde_json::json!(["NET_ADMIN"]);
                assert_eq!(rights["capabilities"]["add"], one, "{name}");
                assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            } else {
                assert_eq!(rights["capabilities"]["add"], Value::Null, "{name}");
                assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
                assert_eq!(pod["securityContext"]["runAsUser"], 65532, "{name}");
                assert_eq!(pod["hostNetwork"], Value::Null, "{name}");
                assert_eq!(pod["volumes"], Value::Null, "{name}");
            }
            seen += 1;
        }
    }
    assert_eq!(seen, 3);
}

#[test]
fn permissions_name_what_they_are_for() {
    let objects = render(ALL, &[]).unwrap();
    let rules =
        |kind: &str, name: &str| named(&objects, kind, name)["rules"].as_array().unwrap().clone();
    let strings =
        |list: &Value| -> Vec<String> { serde_json::from_value(list.clone()).unwrap_or_default() };
    for object in objects.iter().filter(|object| matches!(kind(object), "Role" | "ClusterRole")) {
        for rule in object["rules"].as_array().unwrap() {
            for field in ["apiGroups", "resources", "verbs"] {
                assert!(!strings(&rule[field]).iter().any(|one| one.contains('*')), "{rule}");
            }
        }
    }
    let everywhere = rules("ClusterRole", "easynet-operator");
    for rule in &everywhere {
        let (resources, verbs) = (strings(&rule["resources"]), strings(&rule["verbs"]));
        assert!(!resources.contains(&"secrets".to_owned()), "Secrets are of one namespace");
        let writes = verbs.iter().any(|verb| !["get", "list", "watch"].contains(&verb.as_str()));
        let ours = ["easypeers", "easypeers/status", "easynetworks/status"];
        let harmless = ["tokenreviews", "events"];
        if writes && rule["resourceNames"].is_null() {
            for resource in resources {
                let resource = resource.as_str();
                assert!(ours.contains(&resource) || harmless.contains(&resource), "{resource}");
            }
        }
    }
    for rule in rules("ClusterRole", "easynet-view") {
        assert_eq!(rule["verbs"], serde_json::json!(["get", "list", "watch"]));
    }
    // Nobody who may write in a namespace may thereby write networks.
    for object in &objects {
        let labels = &object["metadata"]["labels"];
        for role in ["edit", "admin"] {
            assert!(labels[format!("rbac.authorization.k8s.io/aggregate-to-{role}")].is_null());
        }
    }
    let bound: Vec<&Value> =
        objects.iter().filter(|object| kind(object).ends_with("RoleBinding")).collect();
    assert_eq!(bound.len(), 3);
    for binding in bound {
        assert_eq!(binding["subjects"][0]["name"], "easynet-operator", "agents may do nothing");
        assert_eq!(binding["subjects"].as_array().unwrap().len(), 1);
    }
}

#[test]
fn no_secret_and_no_certificate_is_rendered() {
    let mut command = Command::new(helm());
    command.args(["template", "easynet"]);
    let text = run(&mut command, ALL).unwrap();

    assert!(!text.contains("kind: Secret"));
    let bundle = text.lines().find(|line| line.trim_start().starts_with("caBundle:"));
    assert_eq!(bundle, None, "the operator's");
    let templates = fs::read_dir(chart().join("templates")).unwrap();
    for template in templates.filter_map(Result::ok).filter(|entry| entry.path().is_file()) {
        let text = fs::read_to_string(template.path()).unwrap();
        for made_anew_each_time in ["lookup ", "genCA", "genSelfSigned", "randAlpha", "randBytes"] {
            assert!(!text.contains(made_anew_each_time), "{:?}", template.path());
        }
    }
}

#[test]
fn the_kinds_are_those_of_the_binaries_and_outlive_the_release() {
    let objects = render(&[], &[]).unwrap();
    for definition in fs::read_dir(root().join("crds/generated")).unwrap() {
        let generated = fs::read_to_string(definition.unwrap().path()).unwrap();
        let mut expected = yaml(&generated).remove(0);
        let called = name(&expected).to_owned();
        let plural = called.split('.').next().unwrap();
        let copy = chart().join(format!("files/crds/{plural}.yaml"));
        assert_eq!(
            fs::read_to_string(copy).unwrap(),
            generated,
            "run `cargo run -p crds --bin crdgen`"
        );

        let mut rendered = named(&objects, "CustomResourceDefinition", &called).clone();
        assert_eq!(rendered["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
        for object in [&mut expected, &mut rendered] {
            object.as_object_mut().unwrap().remove("metadata");
            numbers_as_helm_has_them(object);
        }
        assert!(rendered == expected, "{called} is rendered as another");
    }
}

#[test]
fn the_webhook_is_off_until_asked_for_and_stands_in_nobodys_way() {
    let kinds = |set: &[&str]| -> Vec<String> {
        render(set, &[]).unwrap().iter().map(|object| kind(object).to_owned()).collect()
    };
    assert!(!kinds(&[]).contains(&"MutatingWebhookConfiguration".to_owned()));

    let objects = render(&["webhook.enabled=true"], &[]).unwrap();
    let configuration = named(&objects, "MutatingWebhookConfiguration", "easynet-webhook");
    let webhook = &configuration["webhooks"][0];

    assert_eq!(webhook["failurePolicy"], "Ignore");
    assert_eq!(webhook["objectSelector"]["matchExpressions"][0]["key"], "easynet.io/inject");
    let spared = &webhook["namespaceSelector"]["matchExpressions"][0];
    assert_eq!(spared["operator"], "NotIn");
    for namespace in ["kube-system", "easynet-system"] {
        assert!(spared["values"].as_array().unwrap().contains(&Value::from(namespace)));
    }
}

#[test]
fn kinds_of_others_are_rendered_only_where_they_are_known() {
    let foreign = |capabilities: &[&str]| -> BTreeSet<String> {
        let objects = render(ALL, capabilities).unwrap();
        let kinds = objects.iter().map(|object| kind(object).to_owned());
        kinds.filter(|kind| FOREIGN.contains(&kind.as_str())).collect()
    };
    assert_eq!(foreign(&[]), BTreeSet::new());
    let monitoring = ["PodMonitor", "PrometheusRule", "ServiceMonitor"];
    assert_eq!(foreign(&[MONITORING]), monitoring.map(str::to_owned).into());
    assert_eq!(foreign(&[OPENSHIFT]), BTreeSet::from(["SecurityContextConstraints".to_owned()]));
}

#[test]
fn alerts_and_dashboards_ask_for_metrics_that_exist() {
    let objects = render(&[], &[MONITORING]).unwrap();
    let rules = named(&objects, "PrometheusRule", "easynet").to_string();
    let dashboard =
        text(&named(&objects, "ConfigMap", "easynet-dashboard")["data"]["easynet.json"]);
    let parsed: Value = serde_json::from_str(dashboard).unwrap();
    assert_eq!(parsed["uid"], "easynet");
    let sources = ["sidecar/src/metrics.rs", "operator/src/metrics.rs"];
    let sources = sources.map(|source| fs::read_to_string(root().join(source)).unwrap()).concat();
    let is_of_a_name = |c: char| c.is_ascii_lowercase() || c == '_';
    let asked: BTreeSet<&str> = [rules.as_str(), dashboard]
        .iter()
        .flat_map(|text| text.split(|c| !is_of_a_name(c)))
        .filter(|word| word.starts_with("easynet_"))
        .collect();
    assert!(asked.len() > 10, "{asked:?}");
    for metric in asked {
        let mut name = metric.trim_start_matches("easynet_").trim_start_matches("operator_");
        for suffix in ["_bucket", "_total", "_seconds"] {
            name = name.trim_end_matches(suffix);
        }
        assert!(sources.contains(&format!("\"{name}\"")), "no metric {metric}");
    }
}

#[test]
fn the_documentation_knows_every_metric_of_the_operator() {
    let page = fs::read_to_string(root().join("docs/kubernetes/README.md")).unwrap();
    let metrics = Metrics::new(Requests::default(), Pulse::default());
    metrics.serves(Arc::default());

    let text = metrics.render(Instant::now());

    let names = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let names: Vec<&str> = names.filter_map(|line| line.split(' ').next()).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        assert!(page.contains(&format!("`{name}")), "{name} is not there");
    }
}

#[test]
fn the_guide_knows_every_kind_of_event() {
    let guide = fs::read_to_string(root().join("docs/guide.md")).unwrap();
    for kind in engine::event::NoticeKind::ALL {
        assert!(guide.contains(&format!("`{}`", kind.as_str())), "{kind:?} is not there");
    }
}

#[test]
fn the_documentation_knows_every_reason() {
    let page = |name: &str| fs::read_to_string(root().join("docs/kubernetes").join(name)).unwrap();
    let troubleshooting = page("troubleshooting.md");
    for (reason, _) in operator::plan::status::Reason::ALL {
        let row = format!("| `{}` |", reason.as_str());
        assert!(troubleshooting.contains(&row), "no row {row}");
    }
    let pods = page("pods.md");
    for reason in operator::webhook::inject::Refusal::REASONS {
        assert!(pods.contains(&format!("| `{reason}` |")), "no row {reason}");
    }
}

#[test]
fn every_object_has_the_standard_labels() {
    for object in render(ALL, &[MONITORING, OPENSHIFT]).unwrap() {
        let labels = &object["metadata"]["labels"];
        for label in ["name", "instance", "version", "component", "part-of", "managed-by"] {
            let label = format!("app.kubernetes.io/{label}");
            assert!(labels[&label].is_string(), "{} {}: {label}", kind(&object), name(&object));
        }
        assert!(labels["helm.sh/chart"].is_string());
    }
}

#[test]
fn a_roll_out_selects_by_labels_that_never_change() {
    let objects = render(&[], &[]).unwrap();
    let deployment = named(&objects, "Deployment", "easynet-operator");
    assert_eq!(
        deployment["spec"]["selector"]["matchLabels"],
        serde_json::json!({"app.kubernetes.io/name": "easynet", "app.kubernetes.io/component": "operator"})
    );
    let feed = named(&objects, "Service", "easynet-feed");
    assert_eq!(feed["spec"]["selector"], Value::Null, "the leader alone serves");
}

fn chart() -> PathBuf {
    root().join("charts/easynet")
}

/// What `helm template` makes of the values, as if the cluster had these API versions too.
fn render(set: &[&str], capabilities: &[&str]) -> Result<Vec<Value>, String> {
    let mut command = Command::new(helm());
    command.args(["template", "easynet", "--namespace", "easynet-system"]);
    for capability in capabilities {
        command.args(["--api-versions", capability]);
    }
    run(&mut command, set).map(|text| yaml(&text))
}

/// Runs a `helm` command on the chart; what it wrote, or why not.
fn run(command: &mut Command, set: &[&str]) -> Result<String, String> {
    command.arg(chart());
    for value in set {
        command.args(["--set", value]);
    }
    let output = command.output().unwrap();
    if output.status.success() {
        return Ok(String::from_utf8(output.stdout).unwrap());
    }
    let (said, why) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{said}{why}"))
}

fn yaml(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn named<'a>(objects: &'a [Value], of: &str, called: &str) -> &'a Value {
    let found = objects.iter().find(|object| kind(object) == of && name(object) == called);
    found.unwrap_or_else(|| panic!("no {of} {called}"))
}

/// Helm reads every number as a float and writes 0.0 as 0.
fn numbers_as_helm_has_them(value: &mut Value) {
    match value {
        Value::Number(number) => *value = Value::from(number.as_f64()),
        Value::Array(list) => list.iter_mut().for_each(numbers_as_helm_has_them),
        Value::Object(map) => map.values_mut().for_each(numbers_as_helm_has_them),
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
}

fn kind(object: &Value) -> &str {
    text(&object["kind"])
}

fn name(object: &Value) -> &str {
    text(&object["metadata"]["name"])
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn pod_spec(object: &Value) -> Option<&Value> {
    match kind(object) {
        "Pod" => Some(&object["spec"]),
        "Deployment" | "Job" | "DaemonSet" => Some(&object["spec"]["template"]["spec"]),
        _ => None,
    }
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"]
        .into_iter()
        .flat_map(|field| pod[field].as_array().into_iter().flatten())
}
