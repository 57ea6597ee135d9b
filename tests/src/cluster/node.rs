//! A node: a machine of its own by namespaces (mount, pid, uts, ipc, cgroup, network), with containerd, kubelet and kube-proxy.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::{
    Ran, binaries,
    process::{self, Component},
};
use crate::lab::Host;

/// How long process 1 and containerd may take.
const BOOT: Duration = Duration::from_secs(60);

/// Where a node is in the world.
#[derive(Clone, Debug)]
pub(super) struct Place {
    pub(super) host: Host,
    /// `10.244.1.0/24`
    pub(super) pod_range: String,
    /// `10.244.0.0/16`
    pub(super) all_pods: String,
    /// The authority of the cluster, and the kubeconfigs of this node's kubelet and of all kube-proxies.
    pub(super) authority: PathBuf,
    pub(super) kubelet_config: PathBuf,
    pub(super) proxy_config: PathBuf,
}

/// A node of a cluster. It dies with the test program, and with it every process of it.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    /// Its address, which is the InternalIP.
    pub address: String,
    place: Place,
    dir: PathBuf,
    cgroup: String,
    /// Outside; process 1 of the node is its only child.
    shell: Option<Component>,
}

impl Node {
    /// Boots it. Returns once containerd answers; the kubelet takes a moment more.
    pub(super) fn boot(name: &str, place: Place, dir: &Path) -> Self {
        sweep();
        let cgroup = format!("easynet-{}-{name}", std::process::id());
        let address = place.host.address.clone();
        let mut node = Self {
            name: name.to_owned(),
            address,
            place,
            dir: dir.to_owned(),
            cgroup,
            shell: None,
        };
        for folder in ["etc", "log"] {
            fs::create_dir_all(node.dir.join(folder)).expect("a folder in target");
        }
        node.write_configuration();
        node.start();
        node
    }

    /// The node loses power: everything on it is gone at once, and the memory with it. Disks stay.
    pub fn crash(&mut self) {
        let Some(shell) = self.shell.take() else { return };
        let inside = self.process_one();
        shell.kill();
        let start = Instant::now();
        // The kernel takes the whole process namespace along.
        while inside.as_ref().is_some_and(|pid| Path::new("/proc").join(pid).exists()) {
            assert!(start.elapsed() < BOOT, "{} does not die", self.name);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Starts it after [`Node::crash`].
    pub fn start(&mut self) {
        let env = self.environment();
        let log = self.dir.join("log/init.log");
        self.shell = Some(Component::start(Path::new("sh"), &[self.init()], &log, &env));
        self.wait_for_containerd();
    }

    /// Runs a shell command in the node, in all its namespaces.
    pub fn run(&self, script: &str) -> Ran {
        let pid = self.process_one().unwrap_or_else(|| panic!("{} is down", self.name));
        let mut command = Command::new("nsenter");
        command.args(["-t", &pid, "-m", "-u", "-i", "-n", "-p", "-C", "sh", "-c", script]);
        process::run(command, "")
    }

    /// Gives it the image of an archive.
    ///
    /// # Panics
    /// When containerd does not take it.
    pub fn load(&self, archive: &Path) {
        // Inside sees outside's files only where they are shared; the archive goes in by its descriptor.
        let pid = self.process_one().unwrap_or_else(|| panic!("{} is down", self.name));
        let script = format!(
            "ctr -a /proc/{pid}/root/run/containerd/containerd.sock -n k8s.io images import {}",
            archive.display()
        );
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        process::run(command, "").ok();
    }

    /// The folder that survives a crash as `/var/lib/easynet`.
    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("kept/var/lib/easynet")
    }

    /// Process 1 of the node, as seen from outside.
    fn process_one(&self) -> Option<String> {
        let shell = self.shell.as_ref()?.id();
        let children = fs::read_to_string(format!("/proc/{shell}/task/{shell}/children")).ok()?;
        children.split_whitespace().next().map(str::to_owned)
    }

    fn wait_for_containerd(&mut self) {
        let start = Instant::now();
        loop {
            if let Some(pid) = self.process_one() {
                let socket = format!("/proc/{pid}/root/run/containerd/containerd.sock");
                let mut version = Command::new("ctr");
                version.args(["-a", &socket, "version"]);
                if Path::new(&socket).exists() && process::run(version, "").success {
                    return;
                }
            }
            let has_ended = self.shell.as_mut().is_none_or(Component::has_ended);
            assert!(
                !has_ended && start.elapsed() < BOOT,
                "{} does not boot: {}{}",
                self.name,
                tail(&self.dir.join("log/init.log")),
                tail(&self.dir.join("log/containerd.log"))
            );
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn init(&self) -> String {
        let script = self.dir.join("etc/init.sh");
        fs::write(&script, include_str!("node/init.sh")).expect("a file in target");
        script.display().to_string()
    }

    fn environment(&self) -> Vec<(&'static str, String)> {
        let words = |part: &'static str| {
            let (program, first) = binaries::kubernetes(part);
            format!("{} {}", program.display(), first.unwrap_or_default())
        };
        vec![
            ("EZ_NODE", self.name.clone()),
            ("EZ_DIR", self.dir.display().to_string()),
            ("EZ_NETNS", self.place.host.namespace.clone()),
            ("EZ_SHARED", binaries::target().display().to_string()),
            ("EZ_CGROUP", self.cgroup.clone()),
            ("EZ_ADDRESS", self.address.clone()),
            ("EZ_KUBELET", words("kubelet")),
            ("EZ_PROXY", words("kube-proxy")),
        ]
    }

    fn write_configuration(&self) {
        let write = |name: &str, content: &str| {
            fs::write(self.dir.join("etc").join(name), content).expect("a file in target");
        };
        write("hosts", &format!("127.0.0.1 localhost\n{} {}\n", self.address, self.name));
        write("resolv.conf", "nameserver 127.0.0.1\n");
        write("10-pods.conflist", &self.pod_network().to_string());
        write("containerd.toml", CONTAINERD);
        write("kubelet.json", &self.kubelet().to_string());
        write("proxy.json", &self.proxy().to_string());
        let kubeconfig = self.dir.join("etc/kubelet.conf");
        fs::copy(&self.place.kubelet_config, kubeconfig).expect("a file in target");
    }

    /// Pods hang on the node by a veth each; what leaves the range of all pods is masqueraded by a rule of the site, not here.
    fn pod_network(&self) -> Value {
        json!({
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "ptp",
                    "mtu": 1500,
                    "ipam": {
                        "type": "host-local",
                        "dataDir": "/run/cni-ipam",
                        "ranges": [[{"subnet": self.place.pod_range}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        })
    }

    fn kubelet(&self) -> Value {
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
            "cgroupDriver": "cgroupfs",
            "failCgroupV1": false,
            "failSwapOn": false,
            // Lower ones need a right that these machines do not give.
            "oomScoreAdj": 0,
            "authentication": {
                "anonymous": {"enabled": false},
                "webhook": {"enabled": true},
                "x509": {"clientCAFile": self.place.authority},
            },
            "authorization": {"mode": "Webhook"},
            "clusterDomain": "cluster.local",
            "resolvConf": self.dir.join("etc/resolv.conf"),
            "evictionHard": {
                "memory.available": "50Mi",
                "nodefs.available": "1%",
                "nodefs.inodesFree": "1%",
                "imagefs.available": "1%",
            },
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": 10,
            "shutdownGracePeriod": "0s",
            "serializeImagePulls": false,
        })
    }

    fn proxy(&self) -> Value {
        json!({
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "clientConnection": {"kubeconfig": self.place.proxy_config},
            "mode": "nftables",
            "clusterCIDR": self.place.all_pods,
            "hostnameOverride": self.name,
            // Limits of the whole machine, which are not ours to set.
            "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        })
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.crash();
        }
        drop(self.shell.take());
        let script = format!(
            "for group in /sys/fs/cgroup/*/{0} /sys/fs/cgroup/{0}; do [ -e $group ] && find $group -depth -type d -exec rmdir {{}} +; done",
            self.cgroup
        );
        // What is still dying keeps its group; the next boot of this name empties it.
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

/// Removes the groups of nodes whose program is gone: a failed test leaves them, since its nodes die after it.
fn sweep() {
    let script = "for group in /sys/fs/cgroup/*/easynet-* /sys/fs/cgroup/easynet-*; do \
        name=${group##*/easynet-}; [ ! -d \"$group\" ] || [ -e \"/proc/${name%%-*}\" ] || \
        find \"$group\" -depth -type d -exec rmdir {} +; done";
    // One that is not empty yet goes the next time.
    let _ = Command::new("sh").args(["-c", script]).output();
}

const CONTAINERD: &str = r#"version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.btrfs","io.containerd.snapshotter.v1.devmapper","io.containerd.snapshotter.v1.zfs","io.containerd.snapshotter.v1.aufs","io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "local/pause:1"
  restrict_oom_score_adj = true
  disable_apparmor = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#;

/// The last lines of a log.
fn tail(log: &Path) -> String {
    let text = fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(20)..].join("\n")
}
