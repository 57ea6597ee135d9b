//! Runs a test in a network namespace of its own.

use std::process::Command;

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
