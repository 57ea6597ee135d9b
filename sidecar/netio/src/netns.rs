//! Runs a test in a network namespace of its own.

use std::process::{Child, Command};

use crate::task::TaskGroup;

const INSIDE: &str = "EASYNET_TEST_NETNS";

/// Runs `test` (whose full name is `name`) in a new, unnamed network namespace: the test program
/// runs itself again under `unshare`, so nothing is left whatever happens. Needs root, else skips.
pub(crate) fn in_netns(name: &str, test: impl AsyncFnOnce(TaskGroup)) {
    if std::env::var_os(INSIDE).is_none() {
        if output("id", &["-u"]).trim() != "0" {
            eprintln!("skipped: needs root");
            return;
        }
        let status = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture"])
            .env(INSIDE, "1")
            .status()
            .unwrap();
        assert!(status.success(), "{name} failed in its namespace");
        return;
    }
    ip("link set lo up");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let group = TaskGroup::new("test");
        test(group.clone()).await;
        group.cancel();
        group.join(std::time::Duration::from_secs(5)).await.unwrap();
    });
}

/// Another network namespace, with a veth into the current one; gone when dropped.
pub(crate) struct Neighbour {
    holder: Child,
}

impl Neighbour {
    /// Its end is `eth0` with `theirs`; ours is named `name` and has `ours`, if any.
    pub(crate) fn new(name: &str, ours: Option<&str>, theirs: &str) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "60"]).spawn().unwrap();
        let neighbour = Self { holder };
        let pid = neighbour.holder.id();
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let theirs_is_another = || {
            let link = std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
            link != own
        };
        while !theirs_is_another() {
            std::thread::yield_now();
        }
        ip(&format!("link add {name} type veth peer name eth0 netns {pid}"));
        ip(&format!("link set {name} up"));
        if let Some(ours) = ours {
            ip(&format!("addr add {ours} dev {name}"));
        }
        neighbour.run(&format!("ip addr add {theirs} dev eth0"));
        neighbour.run("ip link set eth0 up");
        neighbour
    }

    /// Runs a command there and returns what it says.
    pub(crate) fn run(&self, command: &str) -> String {
        let pid = self.holder.id().to_string();
        let mut arguments = vec!["-t", &pid, "-n"];
        arguments.extend(command.split_whitespace());
        output("nsenter", &arguments)
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs `ip` and returns what it says.
pub(crate) fn ip(arguments: &str) -> String {
    output("ip", &arguments.split_whitespace().collect::<Vec<_>>())
}

fn output(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
    String::from_utf8(output.stdout).unwrap()
}
