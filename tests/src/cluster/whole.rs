//! Whole clusters: behind a NAT each, with nodes that run pods.
//!
//! ```text
//!                 ┌──────── backbone ────────┐
//!          router a (NAT)   public server   router b (NAT)
//!          ┌─────┴─────┐                    ┌─────┴─────┐
//!        a-cp   a-n1  a-n2                b-cp        b-n1
//! ```
//! All clusters use the same pod range (10.244.0.0/16; node N has 10.244.N.0/24) and the same service range (10.96.0.0/16), on
//! purpose. Each node masquerades what leaves the range of pods, as most CNIs do, and routes to the pods of its neighbours.

use std::{
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{ControlPlane, Image, Node, Options, Ran, node};
use crate::lab::{Host, Lab, Nat, Site};

/// The range of all pods of a cluster.
pub const POD_RANGE: &str = "10.244.0.0/16";
/// How long nodes may take to become Ready. It is 15 to 20 s for two clusters at once on two cores.
const NODES: Duration = Duration::from_secs(120);

/// A cluster in a site of a lab.
#[derive(Debug)]
pub struct Cluster {
    pub name: String,
    pub site: Site,
    pub nodes: Vec<Node>,
    plane: ControlPlane,
    host: Host,
}

impl Cluster {
    /// Starts clusters, each a name, the NAT that it is behind, and its number of nodes, which are `NAME-n1` …; all Ready, with the
    /// images loaded. All at once, since much of it is waiting.
    ///
    /// # Panics
    /// When something does not come up in time; the message holds what the logs complain about.
    pub fn start_all<const N: usize>(
        lab: &mut Lab,
        plans: [(&str, Nat, usize); N],
        images: &[Image],
    ) -> [Self; N] {
        let placed = plans.map(|(name, nat, nodes)| {
            let mut site = lab.site(name, nat);
            let host = lab.host(&mut site, &format!("{name}-cp"));
            let hosts: Vec<_> = (1..=nodes)
                .map(|number| lab.host(&mut site, &format!("{name}-n{number}")))
                .collect();
            wire_pods(&host, &hosts);
            (name, site, host, hosts)
        });
        thread::scope(|scope| {
            placed
                .map(|(name, site, host, hosts)| {
                    scope.spawn(move || {
                        let options = Options { controllers: true, scheduler: true };
                        let plane = ControlPlane::start_in(&host, options);
                        let name = name.to_owned();
                        let mut cluster = Self { name, site, nodes: Vec::new(), plane, host };
                        cluster.boot(&hosts, images);
                        cluster
                    })
                })
                .map(|starting| starting.join().expect("the message of the panic is above"))
        })
    }

    fn boot(&mut self, hosts: &[Host], images: &[Image]) {
        let dir = self.plane.dir();
        let archives: Vec<_> = [Image::pause(), Image::toolbox()]
            .iter()
            .chain(images)
            .enumerate()
            .map(|(number, image)| {
                let archive = dir.join(format!("image-{number}.tar"));
                image.write(&archive);
                archive
            })
            .collect();
        for number in 1..=hosts.len() {
            let name = format!("{}-n{number}", self.name);
            let range = format!("10.244.{number}.0/24");
            self.plane.node_kubeconfig(&name);
            // Before the kubelet registers it: its pod range is settled by where it is.
            let object = serde_json::json!({
                "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDR": range, "podCIDRs": [range]},
            });
            self.kubectl_with(&["create", "-f", "-"], &object.to_string()).ok();
        }
        let nodes = thread::scope(|scope| {
            let booting: Vec<_> = hosts
                .iter()
                .enumerate()
                .map(|(index, host)| {
                    let name = format!("{}-n{}", self.name, index + 1);
                    let (dir, archives) = (&dir, &archives);
                    scope.spawn(move || {
                        let place = node::Place {
                            host: host.clone(),
                            pod_range: format!("10.244.{}.0/24", index + 1),
                            all_pods: POD_RANGE.to_owned(),
                            authority: dir.join("pki/ca.crt"),
                            kubelet_config: dir.join(format!("pki/{name}.conf")),
                            proxy_config: dir.join("pki/proxy.conf"),
                        };
                        let node = Node::boot(&name, place, &dir.join(&name));
                        for archive in archives {
                            node.load(archive);
                        }
                        node
                    })
                })
                .collect();
            booting.into_iter().map(|node| node.join().expect("the message is above")).collect()
        });
        self.nodes = nodes;
        self.wait("the nodes are Ready", NODES, || {
            let nodes = self.list("nodes", &[]);
            nodes.len() == hosts.len() && nodes.iter().all(|node| has_condition(node, "Ready"))
        });
        self.wait("there is a default ServiceAccount", NODES, || {
            self.kubectl(&["get", "serviceaccount", "default"]).success
        });
    }

    /// The control plane, for what it can do beside `kubectl`: audit, memory, crashes.
    pub fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Gives all nodes a further image.
    pub fn load(&self, image: &Image) {
        let archive = self.plane.dir().join("image-later.tar");
        image.write(&archive);
        self.load_archive(&archive);
    }

    /// Gives all nodes the image of an archive.
    pub fn load_archive(&self, archive: &Path) {
        for node in &self.nodes {
            node.load(archive);
        }
    }

    /// Runs `kubectl` as cluster-admin.
    pub fn kubectl(&self, args: &[&str]) -> Ran {
        self.plane.kubectl(args)
    }

    /// The same with something on its standard input.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Ran {
        self.plane.kubectl_with(args, input)
    }

    /// Runs `helm` as cluster-admin.
    pub fn helm(&self, args: &[&str]) -> Ran {
        self.plane.helm(args)
    }

    /// One object, such as `easynetwork/prod`; nothing if it is not there.
    pub fn object(&self, what: &str, options: &[&str]) -> Option<Value> {
        let ran = self.kubectl(&[&["get", what, "-o", "json"], options].concat());
        ran.success.then(|| serde_json::from_str(&ran.stdout).expect("kubectl prints JSON"))
    }

    /// The objects of a kind, such as `pods` with options `-n`, `kube-system`, `-l`, `app=x`.
    pub fn list(&self, kind: &str, options: &[&str]) -> Vec<Value> {
        let list = self.object(kind, options).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Creates a pod of the toolbox that runs this shell script on a node, and waits until it is Ready. Its address.
    ///
    /// # Panics
    /// When it does not become Ready.
    pub fn pod(&self, name: &str, node: &str, script: &str) -> String {
        let object = serde_json::json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "box", "image": "local/box:1", "imagePullPolicy": "Never", "command": ["sh", "-c", script],
                }],
            },
        });
        self.kubectl_with(&["apply", "-f", "-"], &object.to_string()).ok();
        let what = format!("pod/{name}");
        self.wait(&format!("{what} is Ready"), NODES, || {
            self.object(&what, &[]).is_some_and(|pod| has_condition(&pod, "Ready"))
        });
        let pod = self.object(&what, &[]).unwrap_or_default();
        pod["status"]["podIP"].as_str().expect("a Ready pod has an address").to_owned()
    }

    /// Creates a pod on a node that answers every HTTP request on port 8080 with `text`. Its address.
    ///
    /// # Panics
    /// When it does not become Ready.
    pub fn web_pod(&self, name: &str, node: &str, text: &str) -> String {
        let serve = format!("echo {text} >/tmp/index.html; exec httpd -f -p 8080 -h /tmp");
        self.pod(name, node, &serve)
    }

    /// What a pod is answered over TCP at `address`; nothing if it is not answered within 3 s.
    pub fn fetch(&self, pod: &str, address: &str, port: u16) -> Option<String> {
        let script = format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 3 {address} {port}");
        let answer = self.exec(pod, &script);
        let (_, body) = answer.stdout.split_once("\r\n\r\n")?;
        answer.success.then(|| body.trim().to_owned())
    }

    /// Runs a shell command in a pod.
    pub fn exec(&self, pod: &str, script: &str) -> Ran {
        self.kubectl(&["exec", pod, "--", "sh", "-c", script])
    }

    /// Waits until something is so.
    ///
    /// # Panics
    /// When it is not within that time; the message holds what the logs complain about.
    pub fn wait(&self, what: &str, time: Duration, mut so: impl FnMut() -> bool) -> Duration {
        let start = Instant::now();
        while !so() {
            assert!(
                start.elapsed() < time,
                "cluster {}: not within {time:?}: {what}\n{}",
                self.name,
                self.plane.complaints()
            );
            thread::sleep(Duration::from_millis(100));
        }
        start.elapsed()
    }

    /// The machine that the control plane runs on.
    pub fn host(&self) -> &Host {
        &self.host
    }
}

/// Whether an object's condition of this type is True.
pub fn has_condition(object: &Value, kind: &str) -> bool {
    condition(object, kind).is_some_and(|condition| condition["status"] == "True")
}

/// An object's condition of this type.
pub fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = object["status"]["conditions"].as_array()?;
    conditions.iter().find(|condition| condition["type"] == kind)
}

/// Routes to pods on every machine of the cluster, and on nodes the masquerade that a CNI would do.
fn wire_pods(plane: &Host, nodes: &[Host]) {
    for host in nodes.iter().chain([plane]) {
        for (index, node) in nodes.iter().enumerate() {
            if node != host {
                let number = index + 1;
                host.run(&format!("ip route add 10.244.{number}.0/24 via {}", node.address));
            }
        }
    }
    for (index, node) in nodes.iter().enumerate() {
        let number = index + 1;
        node.run("sysctl -qw net.ipv4.ip_forward=1");
        node.run(&format!(
            "nft \"add table ip cni; add chain ip cni post {{ type nat hook postrouting priority 100; }}; \
             add rule ip cni post ip saddr 10.244.{number}.0/24 ip daddr != {POD_RANGE} oifname eth0 masquerade\""
        ));
    }
    // ClusterIPs are translated on nodes only; the control plane goes through the first.
    if let Some(first) = nodes.first() {
        plane.run(&format!("ip route add 10.96.0.0/16 via {}", first.address));
    }
}
