//! What a real agent finds wrong with its host, read where people look: in EasyPeer and EasyNetwork of a real API server.
//!
//! Each test has a network of its own, so that the agent's interface, routes and tables are nobody else's.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    process::{Child, Command},
};

use operator::names;
use serde_json::json;
use tests::cluster::{
    Options,
    bed::{Bed, Operator, alone_again, network},
    built,
    product::NAMESPACE,
};

/// Files that everything in one test may open.
const FILES: usize = 4096;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_tun_is_named_until_it_has_one() {
    if alone_again(0, FILES) {
        return;
    }
    let site = Site::new().await;
    // In a mount namespace of its own: the machine's TUN is others' too.
    let agent =
        site.agent("unshare --mount sh -c 'mount -t tmpfs none /dev/net && exec \"$@\"' sh");

    let programmed = site.reason("Programmed", "TunMissing").await;
    assert!(programmed.message.starts_with("node-1: "), "{}", programmed.message);
    assert!(programmed.message.contains("modprobe tun"), "{}", programmed.message);
    assert_eq!(site.bed.condition("Ready", "False").await.reason, "TunMissing");
    assert_eq!(site.bed.condition("Stalled", "True").await.reason, "TunMissing");
    let (status, reason, message) = site.peer_condition("TunOpen").await.unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "Missing"));
    assert!(message.contains("modprobe tun"), "{message}");

    let pid = agent.0.id().to_string();
    let made = ["-t", &pid, "-m", "mknod", "/dev/net/tun", "c", "10", "200"];
    assert!(Command::new("nsenter").args(made).status().unwrap().success());

    site.bed.condition("Ready", "True").await;
    assert_eq!(site.bed.condition("Stalled", "False").await.reason, "UpToDate");
    assert_eq!(site.peer_condition("TunOpen").await.unwrap().0, "True");
    site.end(agent).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_clock_is_off_is_named_until_it_is_right() {
    if alone_again(0, FILES) {
        return;
    }
    let site = Site::new().await;
    let clock = Clock::new(site.dir.path());
    // So far behind that its certificate is of the future: it can not even start.
    clock.set(-3600);
    let agent = site.agent(&clock.preload());

    let programmed = site.reason("Programmed", "ClockSkew").await;
    let text =
        "node-1: the clock is 60 min behind the operator's; set the one that is wrong, by NTP";
    // Whole seconds on both sides: it may be one less.
    let text_59 = text.replace("60 min", "59 min");
    let said = &programmed.message;
    assert!(said.starts_with(text) || said.starts_with(&text_59), "{said}");
    assert_eq!(site.reason("Stalled", "ClockSkew").await.status, "True");
    let (status, reason, message) = site.peer_condition("ClockRight").await.unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "ClockSkew"));
    assert!(message.contains("behind the operator's"), "{message}");

    clock.set(0);
    site.bed.condition("Ready", "True").await;
    assert!(!site.is_skewed().await);

    // While it runs it goes on with what it has.
    clock.set(120);
    site.reason("Ready", "ClockSkew").await;
    let (_, _, message) = site.peer_condition("ClockRight").await.unwrap();
    assert!(message.contains("s ahead of") || message.contains("2 min ahead of"), "{message}");
    clock.set(0);
    site.bed.condition("Ready", "True").await;
    assert!(!site.is_skewed().await);
    site.end(agent).await;
}

/// A cluster of one node, whose agent is a process of this test.
struct Site {
    bed: Bed,
    operator: Operator,
    dir: tempfile::TempDir,
    root: String,
}

impl Site {
    async fn new() -> Self {
        let bed = Bed::start(Options::default(), 1, &[]).await;
        let operator = bed.operator("op-1").await;
        bed.apply(network(json!({"clusterName": "fra1"}))).await;
        let set = bed.wait("the DaemonSet", || bed.daemon_set("prod")).await;
        let map = bed.wait("the ConfigMap", || bed.config_map(names::FEED)).await;
        let pod = bed.pod(&set, "node-1").await;
        let account = names::AGENT_ACCOUNT;
        let token = bed.plane.token(NAMESPACE, account, names::AUDIENCE, Some(&pod)).await;
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("token"), token).unwrap();
        Self { bed, operator, dir, root: map.data.unwrap()["rootKey"].clone() }
    }

    /// Starts what the DaemonSet would run on the node, as the last of the words of a command.
    fn agent(&self, before: &str) -> Agent {
        let dir = self.dir.path().display();
        let log = fs::File::create(self.dir.path().join("log")).unwrap();
        let command = format!(
            "exec {before} {} run --standby --state-dir {dir}/state --tun ez0 --admin {dir}/admin.sock \
             --config-server-token-file {dir}/token --config-server 'tcp://{}/prod?k={}'",
            built("easynet").display(),
            self.operator.feed,
            self.root,
        );
        let mut shell = Command::new("sh");
        Agent(shell.args(["-c", &command]).stderr(log).spawn().unwrap())
    }

    /// Waits until a condition of the network has a reason.
    async fn reason(
        &self,
        kind: &str,
        reason: &str,
    ) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition {
        let what = format!("{kind} with {reason}");
        let look = || async {
            let all = self.bed.network().await.status.unwrap_or_default().conditions;
            all.into_iter().find(|found| found.type_ == kind && found.reason == reason)
        };
        let within = std::time::Duration::from_secs(40);
        self.bed.wait_for(within, &what, look).await
    }

    /// Status, reason and message of a condition of the node's EasyPeer.
    async fn peer_condition(&self, kind: &str) -> Option<(String, String, String)> {
        let peer = self.bed.peers().await.remove("node-1")?;
        let found = peer.status?.conditions.into_iter().find(|found| found.type_ == kind)?;
        Some((found.status, found.reason, found.message))
    }

    async fn is_skewed(&self) -> bool {
        let clock = self.peer_condition("ClockRight").await;
        clock.is_some_and(|(status, ..)| status == "False")
    }

    async fn end(self, agent: Agent) {
        drop(agent);
        self.operator.stop().await;
    }
}

/// Ended with the test.
struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The wall clock of a process, as a test sets it.
struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    fn new(dir: &Path) -> Self {
        let (source, library) = (dir.join("clock.c"), dir.join("clock.so"));
        fs::write(
            &source,
            r#"#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static volatile long *offset;
__attribute__((constructor)) static void start(void) {
    int file = open(getenv("CLOCK_OFFSET"), O_RDONLY | O_CLOEXEC);
    offset = mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, file, 0);
    close(file);
}
int clock_gettime(clockid_t id, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, id, time);
    if (result == 0 && id == CLOCK_REALTIME && offset) time->tv_sec += *offset;
    return result;
}
"#,
        )
        .unwrap();
        let built =
            Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&source).status();
        assert!(built.unwrap().success(), "cc is missing: apt-get install gcc");
        Self { library, offset: dir.join("offset") }
    }

    /// Sets it so many seconds ahead of the machine's.
    fn set(&self, ahead: i64) {
        let file =
            fs::OpenOptions::new().write(true).create(true).truncate(false).open(&self.offset);
        file.unwrap().write_all_at(&ahead.to_ne_bytes(), 0).unwrap();
    }

    /// What a command begins with whose clock this is.
    fn preload(&self) -> String {
        let (library, offset) = (self.library.display(), self.offset.display());
        format!("env CLOCK_OFFSET={offset} LD_PRELOAD={library}")
    }
}
