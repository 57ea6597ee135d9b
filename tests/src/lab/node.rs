//! The real binary on a host of the lab.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use super::{Host, Lab};

/// A secret of 128 bits, the same in every lab.
pub const SECRET: &str = "mfrggzdfmztwq2lknnwg23tpob";

/// A running `easynet run` or `easynet server`.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub host: Host,
    pub tun: String,
    dir: PathBuf,
    /// Tells those apart that share a state directory.
    instance: u32,
    child: Child,
    /// Its host name, unless the options give one.
    hostname: Option<String>,
}

/// The binary under test: `EASYNET_BIN`, or the one built beside the tests.
///
/// # Panics
/// When it is not there; the message says how to build it.
pub fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("EASYNET_BIN") {
        return path.into();
    }
    let exe = std::env::current_exe().expect("the path of this program");
    let profile = exe.ancestors().find(|dir| dir.join("easynet").is_file());
    profile
        .map(|dir| dir.join("easynet"))
        .expect("no easynet beside the tests: run `cargo build -p sidecar`")
}

/// Starts a public server; its URL with `?k=`.
pub fn server(lab: &mut Lab, host: &Host, name: &str, options: &str) -> (Node, String) {
    server_at(lab, host, name, &host.address, options)
}

/// The same, known by another address of its host.
pub fn server_at(
    lab: &mut Lab,
    host: &Host,
    name: &str,
    public: &str,
    options: &str,
) -> (Node, String) {
    let dir = lab.dir().join(name);
    fs::create_dir_all(&dir).expect("a directory");
    let command = format!(
        "{} server --state-dir {} --public-host {public} {options}",
        binary().display(),
        dir.join("state").display(),
    );
    let child = host.spawn(&command, &dir.join("log"));
    let (name, tun, instance) = (name.to_owned(), String::new(), 0);
    let hostname = None;
    let node = Node { name, host: host.clone(), tun, dir, instance, child, hostname };
    let start = Instant::now();
    loop {
        let url = node.log().lines().find(|line| line.starts_with("udp://")).map(str::to_owned);
        if let Some(url) = url {
            return (node, url);
        }
        assert!(
            start.elapsed() < Duration::from_secs(10),
            "the server says no URL: {}",
            node.log()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

impl Node {
    /// Starts a node of the network `lab` on a host, where `name` is its host name.
    pub fn start(lab: &Lab, host: &Host, name: &str, peers: &[&str], options: &str) -> Self {
        Self::begin(lab, host, name, Some(name), peers, options)
    }

    /// The same, with a host name among the options.
    pub fn start_as(lab: &Lab, host: &Host, name: &str, peers: &[&str], options: &str) -> Self {
        Self::begin(lab, host, name, None, peers, options)
    }

    fn begin(
        lab: &Lab,
        host: &Host,
        name: &str,
        hostname: Option<&str>,
        peers: &[&str],
        options: &str,
    ) -> Self {
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir).expect("a directory");
        fs::write(dir.join("secret"), SECRET).expect("a secret file");
        let tun = format!("ez{name}");
        let mut node = Self {
            name: name.to_owned(),
            host: host.clone(),
            tun,
            instance: 0,
            child: Command::new("true").spawn().expect("true runs"),
            dir,
            hostname: hostname.map(str::to_owned),
        };
        // What stood in for it ends at once.
        let _ = node.child.wait();
        node.restart(peers, options);
        node
    }

    /// Starts another one beside it, with the same state directory and the same TUN.
    pub fn successor(&self, peers: &[&str], options: &str) -> Self {
        let mut next = Self {
            name: self.name.clone(),
            host: self.host.clone(),
            tun: self.tun.clone(),
            dir: self.dir.clone(),
            instance: self.instance + 1,
            hostname: self.hostname.clone(),
            child: Command::new("true").spawn().expect("true runs"),
        };
        // What stood in for it ends at once.
        let _ = next.child.wait();
        next.restart(peers, options);
        next
    }

    /// Starts it again with the same state directory.
    pub fn restart(&mut self, peers: &[&str], options: &str) {
        let command = self.command_line(peers, options);
        self.child = self.host.spawn(&command, &self.log_path());
    }

    /// What starts it.
    pub fn command_line(&self, peers: &[&str], options: &str) -> String {
        let peers: Vec<String> = peers.iter().map(|peer| format!("-p '{peer}'")).collect();
        let hostname = self.hostname.as_ref().map(|name| format!("--hostname {name}"));
        format!(
            "{} run --network lab --secret-file {} {} --state-dir {} --admin {} --tun {} {} {options}",
            binary().display(),
            self.dir.join("secret").display(),
            hostname.unwrap_or_default(),
            self.dir.join("state").display(),
            self.socket().display(),
            self.tun,
            peers.join(" ")
        )
    }

    /// Gives it another secret from its next start on.
    pub fn set_secret(&self, secret: &str) {
        fs::write(self.dir.join("secret"), secret).expect("a secret file");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    pub fn state_dir(&self) -> PathBuf {
        self.dir.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join(self.numbered("sock"))
    }

    /// Waits for a condition of `easynet status --wait`.
    ///
    /// # Panics
    /// When it does not come; the message holds the log.
    pub fn wait(&self, condition: &str, within: Duration) {
        let limit = format!("{}ms", within.as_millis());
        let output = self.cli(&["status", "--wait", condition, "--timeout", &limit]);
        assert!(
            output.status.success(),
            "{} waits for {condition}: {}\n{}",
            self.name,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
    }

    /// Runs a command of the command line against this node.
    pub fn cli(&self, args: &[&str]) -> std::process::Output {
        Command::new(binary())
            .args(args)
            .arg("--admin")
            .arg(self.socket())
            .output()
            .expect("easynet runs")
    }

    /// What a look-at command shows as JSON.
    pub fn json(&self, command: &str) -> serde_json::Value {
        let words: Vec<&str> = command.split(' ').chain(["-o", "json"]).collect();
        let output = self.cli(&words);
        assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    pub fn ipv4(&self) -> String {
        self.json("status")["ipv4"].as_str().unwrap_or_default().to_owned()
    }

    pub fn ipv6(&self) -> String {
        self.json("status")["ipv6"].as_str().unwrap_or_default().to_owned()
    }

    /// The row of a peer in `easynet peers`.
    pub fn peer(&self, name: &str) -> serde_json::Value {
        let peers = self.json("peers");
        let found =
            peers.as_array().and_then(|peers| peers.iter().find(|peer| peer["hostname"] == name));
        found.cloned().unwrap_or_default()
    }

    /// Events of one kind.
    pub fn events(&self, kind: &str) -> Vec<serde_json::Value> {
        let events = self.json("events");
        events
            .as_array()
            .into_iter()
            .flatten()
            .filter(|event| event["kind"] == kind)
            .cloned()
            .collect()
    }

    /// Resident memory in bytes.
    pub fn rss(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    /// Ends it by SIGTERM; the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        signal(self.pid(), "TERM");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(8) {
            if let Ok(Some(status)) = self.child.try_wait() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        None
    }

    /// Ends it without a word.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    pub fn log_path(&self) -> PathBuf {
        Path::new(&self.dir).join(self.numbered("log"))
    }

    fn numbered(&self, name: &str) -> String {
        if self.instance == 0 { name.to_owned() } else { format!("{name}{}", self.instance) }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
        let log = self.log();
        let error = log.lines().find(|line| line.contains(" ERROR "));
        assert!(
            std::thread::panicking() || error.is_none(),
            "{}: {}",
            self.name,
            error.unwrap_or_default()
        );
    }
}

/// Searches the writable memory of a process.
///
/// # Panics
/// Without root, or when the process is gone.
pub fn memory_contains(pid: u32, needle: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).expect("a running process");
    let memory = fs::File::open(format!("/proc/{pid}/mem")).expect("root");
    maps.lines().filter(|line| line.contains("rw-p")).any(|line| {
        let range = line.split_whitespace().next().and_then(|range| range.split_once('-'));
        let (from, to) = range.expect("a range");
        let parse = |text| u64::from_str_radix(text, 16).expect("hex");
        let (from, to) = (parse(from), parse(to));
        let mut bytes = vec![0; usize::try_from(to - from).unwrap_or(usize::MAX).min(64 << 20)];
        memory.read_at(&mut bytes, from).is_ok()
            && bytes.windows(needle.len()).any(|window| window == needle)
    })
}

/// Sends a signal to a process that the lab started.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").args([&format!("-{name}"), &pid.to_string()]).status();
}
