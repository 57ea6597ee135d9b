//! Sidecars for pods that ask, by the real API server and with the chart's configuration of the webhook.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::SocketAddr, time::Duration};

use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{Api, api::DeleteParams};
use serde_json::json;
use tests::cluster::{
    Options,
    bed::{Bed, alone_again, network, own_address},
    product::NAMESPACE,
};

/// The certificate is looked after twice a minute.
const ROTATED: Duration = Duration::from_secs(45);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_ask_get_a_sidecar_and_nobody_is_kept_from_starting() {
    // The API server dials endpoints, and they may not be loopback addresses.
    if alone_again(1, 1024) {
        return;
    }
    let bed = Bed::start(Options::default(), 1, &["webhook.enabled=true"]).await;
    let webhook = SocketAddr::new(own_address(0), 9443);
    let operator = bed.operator_with("op-1", |run| run.webhook_listen = Some(webhook)).await;
    endpoints(&bed, webhook);
    let pods = json!({"pods": {"mode": "OptIn", "allowedNamespaces": {}}});
    bed.apply(network(json!({"clusterName": "fra1", "members": pods}))).await;
    namespace(&bed, "apps", "privileged").await;
    namespace(&bed, "careful", "baseline").await;

    // Who asks gets one, once the webhook is trusted.
    let injected = bed
        .wait("a pod with a sidecar", || async {
            Some(create(&bed, "apps", "prod").0).filter(has_sidecar)
        })
        .await;
    let sidecar = injected.spec.unwrap().init_containers.unwrap().remove(0);
    assert_eq!(sidecar.restart_policy.as_deref(), Some("Always"), "a native sidecar");
    assert!(sidecar.startup_probe.is_some());
    let security = sidecar.security_context.unwrap();
    assert_ne!(security.privileged, Some(true));

    // Who does not ask, or asks for what is not there, is let through as it is.
    assert!(!has_sidecar(&create(&bed, "apps", "").0));
    let (pod, said) = create(&bed, "apps", "nothing");
    assert!(!has_sidecar(&pod));
    assert!(said.contains("easynet: no sidecar"), "{said}");

    // Where Pod Security would refuse the sidecar, the pod comes without one.
    let (pod, said) = create(&bed, "careful", "prod");
    assert!(!has_sidecar(&pod));
    assert!(said.contains("easynet: no sidecar") && said.contains("baseline"), "{said}");

    // Another certificate, and the API server trusts that.
    let before = bundle(&bed);
    let secrets: Api<Secret> = Api::namespaced(bed.client.clone(), NAMESPACE);
    secrets.delete("easynet-webhook-tls", &DeleteParams::default()).await.unwrap();
    bed.wait_for(ROTATED, "another bundle", || async { (bundle(&bed) != before).then_some(()) })
        .await;
    bed.wait("a sidecar by the new certificate", || async {
        Some(create(&bed, "apps", "prod").0).filter(has_sidecar)
    })
    .await;

    // Without an operator pods start all the same.
    operator.stop().await;
    assert!(!has_sidecar(&create(&bed, "apps", "prod").0));
}

/// Where the Service of the webhook leads, as the cluster's controllers would write it for a pod of the operator.
fn endpoints(bed: &Bed, webhook: SocketAddr) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "easynet-webhook-1", "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": "easynet-webhook"}},
        "ports": [{"name": "webhook", "port": webhook.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [webhook.ip()], "conditions": {"ready": true}}],
    });
    bed.plane.kubectl_with(&["create", "-f", "-"], &slice.to_string()).ok();
}

async fn namespace(bed: &Bed, name: &str, level: &str) {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name,
        "labels": {"pod-security.kubernetes.io/enforce": level}}});
    bed.plane.kubectl_with(&["create", "-f", "-"], &namespace.to_string()).ok();
    bed.plane.service_account(name, "default").await;
}

/// Creates a pod that asks for a network, and tells what the API server made of it and said.
fn create(bed: &Bed, namespace: &str, asked: &str) -> (Pod, String) {
    let labels = if asked.is_empty() { json!({}) } else { json!({"easynet.io/inject": asked}) };
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"generateName": "app-", "namespace": namespace, "labels": labels},
        "spec": {"containers": [{"name": "app", "image": "app"}]}});
    let ran = bed.plane.kubectl_with(&["create", "-o", "json", "-f", "-"], &pod.to_string());
    let said = ran.stderr.clone();
    (serde_json::from_str(&ran.ok()).unwrap(), said)
}

fn has_sidecar(pod: &Pod) -> bool {
    let containers = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    containers.into_iter().any(|container| container.name == "easynet")
}

fn bundle(bed: &Bed) -> String {
    let path = "jsonpath={.webhooks[0].clientConfig.caBundle}";
    bed.plane.kubectl(&["get", "mutatingwebhookconfiguration", "easynet-webhook", "-o", path]).ok()
}
