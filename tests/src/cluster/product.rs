//! easynet on whole clusters, by the means of a user: `helm install`, `kubectl apply`, `join`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Cluster, Image, Ran, condition, has_condition};

/// Where the chart is installed.
pub const NAMESPACE: &str = "easynet-system";
/// How long an installation may take.
const INSTALL: Duration = Duration::from_secs(120);
/// How long a network may take to be Ready, and traffic to flow.
const READY: Duration = Duration::from_secs(60);

/// Where the chart is in the repository.
pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join("charts/easynet")
}

impl Cluster {
    /// Gives the nodes the image of the product: `EASYNET_IMAGE_ARCHIVE`, as `make image` makes it, or one of what is built beside the tests.
    pub fn load_easynet(&self) {
        match std::env::var_os("EASYNET_IMAGE_ARCHIVE") {
            Some(archive) => self.load_archive(Path::new(&archive)),
            None => self.load(&Image::easynet()),
        }
    }

    /// `helm install`, with further words such as `--set`, `webhook.enabled=true`.
    ///
    /// # Panics
    /// When it fails; the message holds what the operator's pods say.
    pub fn install_easynet(&self, options: &[&str]) -> Duration {
        let chart = chart().display().to_string();
        let seconds = format!("{}s", INSTALL.as_secs());
        let words = [
            "install",
            "easynet",
            &chart,
            "-n",
            NAMESPACE,
            "--create-namespace",
            "--set",
            "image.tag=dev",
            "--set",
            "image.pullPolicy=Never",
            "--wait",
            "--timeout",
            &seconds,
        ];
        let start = std::time::Instant::now();
        let ran = self.helm(&[&words, options].concat());
        assert!(ran.success, "{}{}\n{}", ran.stdout, ran.stderr, self.what_easynet_says());
        start.elapsed()
    }

    /// `kubectl apply` of an EasyNetwork of this cluster.
    pub fn apply_network(&self, name: &str, spec: &Value) -> Ran {
        let object = json!({
            "apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork", "metadata": {"name": name}, "spec": spec,
        });
        self.kubectl_with(&["apply", "-f", "-"], &object.to_string())
    }

    /// What `easynet-operator join` prints in this cluster for another one, and what it remarks.
    ///
    /// # Panics
    /// When it fails.
    pub fn invite(&self, network: &str, cluster: &str, options: &[&str]) -> (String, String) {
        let words = [
            "-n",
            NAMESPACE,
            "exec",
            "deploy/easynet-operator",
            "--",
            "easynet-operator",
            "join",
            network,
            "--cluster-name",
            cluster,
        ];
        let ran = self.kubectl(&[&words, options].concat());
        let remarks = ran.stderr.clone();
        (ran.ok(), remarks)
    }

    /// Waits until a network is Ready. How long that took.
    ///
    /// # Panics
    /// When it is not in time; the message holds its conditions and what operator and agents say.
    pub fn network_ready(&self, name: &str) -> Duration {
        let what = format!("easynetwork/{name}");
        let start = std::time::Instant::now();
        while !self.object(&what, &[]).is_some_and(|network| has_condition(&network, "Ready")) {
            if start.elapsed() > READY {
                let conditions = self.kubectl(&["describe", &what]).stdout;
                panic!("{what} is not Ready\n{conditions}\n{}", self.what_easynet_says());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        start.elapsed()
    }

    /// A network's condition: its status, reason and message.
    pub fn network_condition(&self, name: &str, kind: &str) -> Option<(String, String, String)> {
        let network = self.object(&format!("easynetwork/{name}"), &[])?;
        let condition = condition(&network, kind)?;
        let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    /// Runs `easynet` with these words in the agent of a node, as a user does by `kubectl exec`.
    pub fn easynet(&self, network: &str, node: &str, words: &[&str]) -> Ran {
        let name = format!("spec.nodeName={node}");
        let label = format!("easynet.io/network={network}");
        let pods = self.list("pods", &["-n", NAMESPACE, "-l", &label, "--field-selector", &name]);
        let alive = pods.iter().find(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        let pod = alive.and_then(|pod| pod["metadata"]["name"].as_str()).unwrap_or("none");
        self.kubectl(&[&["-n", NAMESPACE, "exec", pod, "--", "easynet"], words].concat())
    }

    /// Whether the agent of `node` has a direct path to the member called `peer`.
    pub fn is_direct(&self, network: &str, node: &str, peer: &str) -> bool {
        let peers = self.easynet(network, node, &["peers", "-o", "json"]).stdout;
        let peers: Value = serde_json::from_str(&peers).unwrap_or_default();
        let direct = |other: &Value| other["hostname"] == peer && other["state"] == "direct";
        peers.as_array().is_some_and(|peers| peers.iter().any(direct))
    }

    /// From a node's first packet for a peer until its direct path carried the traffic, as its events say.
    pub fn direct_after(&self, network: &str, node: &str, peer: &str) -> Duration {
        let ask = |what: &str| {
            let said = self.easynet(network, node, &[what, "-o", "json"]).stdout;
            serde_json::from_str::<Value>(&said).unwrap_or_default()
        };
        let (peers, events) = (ask("peers"), ask("events"));
        let named = |other: &&Value| other["hostname"] == peer;
        let id =
            peers.as_array().and_then(|peers| peers.iter().find(named)).map(|it| &it["node_id"]);
        let after = |event: &Value| {
            let is_its = event["kind"] == "path_primary" && Some(&event["peer"]) == id;
            event["fields"]["after_ms"].as_str().filter(|_| is_its)?.parse().ok()
        };
        let after = events.as_array().and_then(|events| events.iter().find_map(after));
        Duration::from_millis(after.unwrap_or_else(|| panic!("no direct path in {events}")))
    }

    /// Pods of the installation, their events and the last of what they log: for the message of a failure.
    pub fn what_easynet_says(&self) -> String {
        let mut text =
            self.kubectl(&["-n", NAMESPACE, "get", "pods,ds,deploy,easynet", "-o", "wide"]).stdout;
        let events =
            self.kubectl(&["-n", NAMESPACE, "get", "events", "--sort-by=.lastTimestamp"]).stdout;
        let events: Vec<_> = events.lines().collect();
        text.push_str(&events[events.len().saturating_sub(12)..].join("\n"));
        for pod in self.list("pods", &["-n", NAMESPACE]) {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let logs = ["-n", NAMESPACE, "logs", name, "--tail=15", "--all-containers"];
            text.push_str(&format!("\n{name}:\n{}", self.kubectl(&logs).stdout));
        }
        text
    }
}
