//! The lab: hosts, NATs and networks from namespaces, with the real binary on them.
//!
//! ```text
//!              ┌──────────── backbone (198.18.x.1) ────────────┐
//!        198.18.1.2                                       198.18.9.2
//!      ┌─ router a ─┐                                    public host
//!      │ NAT (nft)  │
//!      └─ 10.1.0.1 ─┘
//!         host a1 (10.1.0.2), a2 …
//! ```
//! A site may stand behind a carrier's router, which translates once more. IPv6 is there for who asks for it:
//! `2001:db8:N::/64` towards the backbone, `2001:db8:1N::/64` behind a router, which translates none of it.
//!
//! Everything a lab makes carries its prefix and goes away with it, also after a panic; what a killed run left is swept when the
//! next lab begins. Needs root, `ip`, `nft` and `ping`.

pub mod delay;
pub mod homes;
pub mod inside;
pub mod nat;
pub mod node;
pub mod tap;

use std::{
    fs::File,
    io::{Read, Write},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

pub use self::{homes::Homes, inside::inside, nat::Nat, node::Node, tap::Tap};

/// Labs of one process run one after the other: two cores bear no more.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A world of namespaces.
#[derive(Debug)]
pub struct Lab {
    prefix: String,
    namespaces: Vec<String>,
    links: u32,
    children: Vec<Child>,
    dir: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A host, or the router of a site, by its namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub namespace: String,
    /// Its address on the underlay.
    pub address: String,
    /// Its global IPv6 address, if it was given one.
    pub address6: Option<String>,
    /// Stands for `/etc/resolv.conf` there.
    resolv_conf: Option<PathBuf>,
}

/// Hosts behind a router of their own.
#[derive(Clone, Debug)]
pub struct Site {
    pub number: u32,
    pub router: Host,
    nat: Nat,
    hosts: u32,
    ipv6: bool,
}

/// Figures of a `ping`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ping {
    pub sent: u32,
    /// Sequence numbers answered, and the round trips.
    pub answers: Vec<(u32, Duration)>,
}

impl Ping {
    pub fn lost(&self) -> u32 {
        self.sent - u32::try_from(self.answers.len()).unwrap_or(self.sent)
    }

    /// The longest run of unanswered questions, as time at `interval`.
    pub fn longest_gap(&self, interval: Duration) -> Duration {
        let mut longest = 0;
        let mut last = 0;
        for (seq, _) in &self.answers {
            longest = longest.max(seq - last - 1);
            last = *seq;
        }
        interval * longest.max(self.sent - last)
    }

    pub fn percentile(&self, percent: usize) -> Option<Duration> {
        let mut times: Vec<Duration> = self.answers.iter().map(|(_, rtt)| *rtt).collect();
        times.sort_unstable();
        times.get((times.len() * percent / 100).min(times.len().checked_sub(1)?)).copied()
    }
}

impl Lab {
    /// Whether a lab can be made here.
    ///
    /// # Errors
    /// One sentence that says what is missing and what to do.
    pub fn is_possible() -> Result<(), String> {
        let run = |script: &str| {
            let output = Command::new("sh").args(["-c", script]).output();
            output.is_ok_and(|output| output.status.success())
        };
        for (program, package) in [
            ("ip", "iproute2"),
            ("nft", "nftables"),
            ("ping", "iputils-ping"),
            ("iperf3", "iperf3"),
        ] {
            if !run(&format!("command -v {program}")) {
                return Err(format!("{program} is missing: apt-get install {package}"));
            }
        }
        if !run("[ \"$(id -u)\" -eq 0 ]") {
            return Err("needs root, to make network namespaces: run it with sudo".to_owned());
        }
        Ok(())
    }

    /// An empty world with a backbone. Waits for other labs of this process.
    ///
    /// # Panics
    /// Without root, or when a program is missing; the message says which package brings it.
    pub fn new() -> Self {
        let turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(why) = Self::is_possible() {
            panic!("{why}");
        }
        sweep();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let dir = tempfile::Builder::new()
            .prefix("easynet-lab")
            .tempdir()
            .expect("a temporary directory");
        let mut lab = Self {
            prefix: format!("ez{}x{number}", std::process::id()),
            namespaces: Vec::new(),
            links: 0,
            children: Vec::new(),
            dir,
            _turn: turn,
        };
        lab.namespace("net");
        lab.sh("net", "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1");
        lab
    }

    /// A host on the backbone with a public address.
    pub fn public_host(&mut self, name: &str) -> Host {
        let number = self.wire(name);
        self.bare_host(name, format!("198.18.{number}.2"))
    }

    /// The same with IPv6 beside IPv4.
    pub fn public_host6(&mut self, name: &str) -> Host {
        let mut host = self.public_host(name);
        let number = self.links;
        self.uplink6(name, number);
        host.address6 = Some(format!("2001:db8:{number}::2"));
        host
    }

    /// A site: a router with that NAT, and no hosts yet.
    pub fn site(&mut self, name: &str, nat: Nat) -> Site {
        let number = self.wire(name);
        let router = self.bare_host(name, format!("198.18.{number}.2"));
        self.route(name, &format!("10.{number}.0.1/24"));
        let site = Site { number, router, nat, hosts: 0, ipv6: false };
        site.apply_nat(self);
        site
    }

    /// A site whose router is itself behind a carrier's NAT.
    pub fn site_behind(&mut self, name: &str, nat: Nat, carrier: Nat) -> Site {
        let outer = format!("{name}c");
        let number = self.wire(&outer);
        self.route(&outer, &format!("100.64.{number}.1/24"));
        nft(&self.full(&outer), &carrier.rules(&format!("198.18.{number}.2")));
        self.namespace(name);
        let (inner, outer) = (self.full(name), self.full(&outer));
        run_ok(&format!("ip link add wan0 netns {inner} type veth peer name down0 netns {outer}"));
        run_ok(&format!("ip -n {outer} link set down0 master lan0 up"));
        run_ok(&format!("ip -n {inner} addr add 100.64.{number}.2/24 dev wan0"));
        run_ok(&format!("ip -n {inner} link set wan0 up"));
        run_ok(&format!("ip -n {inner} route add default via 100.64.{number}.1"));
        self.route(name, &format!("10.{number}.0.1/24"));
        let router = self.bare_host(name, format!("100.64.{number}.2"));
        let site = Site { number, router, nat, hosts: 0, ipv6: false };
        site.apply_nat(self);
        site
    }

    /// A site with IPv6 for the hosts that come after: global addresses behind a firewall that lets only answers in.
    pub fn site6(&mut self, name: &str, nat: Nat) -> Site {
        let mut site = self.site(name, nat);
        let number = site.number;
        self.uplink6(name, number);
        self.sh(name, "sysctl -qw net.ipv6.conf.all.forwarding=1");
        self.sh(name, &format!("ip addr add 2001:db8:1{number:03}::1/64 dev lan0 nodad"));
        self.sh(
            "net",
            &format!("ip route add 2001:db8:1{number:03}::/64 via 2001:db8:{number}::2"),
        );
        self.nft(name, nat::FIREWALL6);
        site.ipv6 = true;
        site
    }

    /// Makes a router of a namespace, with a bridge for what is behind it.
    fn route(&self, name: &str, lan: &str) {
        self.sh(name, "sysctl -qw net.ipv4.ip_forward=1");
        self.sh(name, "ip link add lan0 type bridge; ip link set lan0 up");
        // Where br_netfilter is loaded the bridge itself would translate, and lead what comes back in to nobody.
        self.sh(name, "sysctl -qw net.bridge.bridge-nf-call-iptables=0 2>/dev/null || true");
        self.sh(name, &format!("ip addr add {lan} dev lan0"));
    }

    fn uplink6(&self, name: &str, number: u32) {
        self.sh(name, &format!("ip addr add 2001:db8:{number}::2/64 dev wan0 nodad"));
        self.sh(name, &format!("ip route add default via 2001:db8:{number}::1"));
    }

    /// Another host behind the site's router.
    pub fn host(&mut self, site: &mut Site, name: &str) -> Host {
        site.hosts += 1;
        self.namespace(name);
        let index = self.links;
        self.links += 1;
        let (inner, outer) = (format!("ez{index}i"), format!("ez{index}o"));
        let (host, router) = (self.full(name), site.router.namespace.clone());
        let address = format!("10.{}.0.{}", site.number, site.hosts + 1);
        run_ok(&format!(
            "ip link add {inner} netns {host} type veth peer name {outer} netns {router}"
        ));
        run_ok(&format!("ip -n {router} link set {outer} master lan0 up"));
        run_ok(&format!("ip -n {host} link set {inner} name eth0"));
        run_ok(&format!("ip -n {host} addr add {address}/24 dev eth0"));
        run_ok(&format!("ip -n {host} link set eth0 up"));
        run_ok(&format!("ip -n {host} route add default via 10.{}.0.1", site.number));
        let address6 = site.ipv6.then(|| {
            let net = format!("2001:db8:1{:03}:", site.number);
            let address = format!("{net}:{}", site.hosts + 1);
            run_ok(&format!("ip -n {host} addr add {address}/64 dev eth0 nodad"));
            run_ok(&format!("ip -n {host} route add default via {net}:1"));
            address
        });
        Host { namespace: host, address, address6, resolv_conf: None }
    }

    /// A pod behind a host, with a route by it and no other way; the host routes to it.
    pub fn pod(&mut self, node: &Host, name: &str, address: &str) -> Host {
        self.namespace(name);
        let index = self.links;
        self.links += 1;
        let (node, pod) = (&node.namespace, self.full(name));
        run_ok(&format!(
            "ip link add eth0 netns {pod} type veth peer name pod{index} netns {node}"
        ));
        run_ok(&format!("ip -n {node} addr add 169.254.1.1/32 dev pod{index}"));
        run_ok(&format!("ip -n {node} link set pod{index} up"));
        // As every CNI does.
        run_ok(&format!("ip netns exec {node} sysctl -qw net.ipv4.ip_forward=1"));
        run_ok(&format!("ip -n {node} route add {address}/32 dev pod{index}"));
        run_ok(&format!("ip -n {pod} addr add {address}/32 dev eth0"));
        run_ok(&format!("ip -n {pod} link set eth0 up"));
        run_ok(&format!("ip -n {pod} route add 169.254.1.1 dev eth0"));
        run_ok(&format!("ip -n {pod} route add default via 169.254.1.1"));
        Host { namespace: pod, address: address.to_owned(), address6: None, resolv_conf: None }
    }

    /// A host without any link; its address is what the caller will give it.
    pub fn lone_host(&mut self, name: &str, address: &str) -> Host {
        self.namespace(name);
        self.bare_host(name, address.to_owned())
    }

    /// Joins two hosts by a veth of their own; addresses come with their prefix lengths.
    pub fn join(&mut self, a: (&Host, &str), b: (&Host, &str)) {
        self.links += 1;
        let device = format!("eth{}", self.links);
        let (a_space, b_space) = (&a.0.namespace, &b.0.namespace);
        run_ok(&format!(
            "ip link add {device} netns {a_space} type veth peer name {device} netns {b_space}"
        ));
        for (host, address) in [a, b] {
            let namespace = &host.namespace;
            run_ok(&format!("ip -n {namespace} addr add {address} dev {device}"));
            run_ok(&format!("ip -n {namespace} link set {device} up"));
        }
    }

    fn bare_host(&self, name: &str, address: String) -> Host {
        Host { namespace: self.full(name), address, address6: None, resolv_conf: None }
    }

    /// Drops everything between two sites on the backbone; what goes to public hosts passes.
    pub fn cut(&self, a: &Site, b: &Site) {
        let (a, b) = (&a.router.address, &b.router.address);
        let rules = format!(
            "table ip cut {{\n chain forward {{\n  type filter hook forward priority 0;\n  ip saddr {a} ip daddr {b} drop\n  \
             ip saddr {b} ip daddr {a} drop\n }}\n}}\n"
        );
        self.nft("net", &rules);
    }

    /// Leads what goes to a prefix to this public host, which answers for all of it.
    pub fn way_back(&self, prefix: &str, host: &Host) {
        self.sh("net", &format!("ip route add {prefix} via {}", host.address));
    }

    pub fn restore(&self) {
        self.sh("net", "nft delete table ip cut");
    }

    /// The same, whether or not there was a cut.
    pub fn restore_if_cut(&self) {
        self.sh("net", "nft delete table ip cut 2>/dev/null || true");
    }

    /// Loses this share of all packets on the backbone, in percent.
    pub fn lose(&self, percent: u32) {
        let rules = format!(
            "table ip loss {{\n chain forward {{\n  type filter hook forward priority -1;\n  numgen random mod 100 < {percent} drop\n }}\n}}\n"
        );
        self.nft("net", &rules);
    }

    /// The backbone carries no packet longer than `most` bytes from now on, and tells nobody.
    pub fn narrow(&self, most: u32) {
        let silence = "table ip narrow {\n chain output {\n  type filter hook output priority 0;\n  icmp type destination-unreachable drop\n }\n}\n";
        self.nft("net", silence);
        let net = self.full("net");
        for number in 1..=self.links {
            // Some of the numbers are links inside sites.
            let link = format!("ip -n {net} link set b{number} mtu {most}");
            let _ = Command::new("sh").args(["-c", &link]).output();
        }
    }

    /// Limits a site's uplink.
    pub fn shape(&self, site: &Site, rate: &str) {
        let namespace = &site.router.namespace;
        run_ok(&format!(
            "ip netns exec {namespace} tc qdisc replace dev wan0 root tbf rate {rate} burst 64kb latency 50ms"
        ));
    }

    /// A directory for state, sockets and logs.
    pub fn dir(&self) -> PathBuf {
        self.dir.path().to_owned()
    }

    /// Keeps a process to end it with the lab.
    pub fn keep(&mut self, child: Child) {
        self.children.push(child);
    }

    /// Makes a namespace and its link to the backbone; the link's number.
    fn wire(&mut self, name: &str) -> u32 {
        self.namespace(name);
        self.links += 1;
        let number = self.links;
        let (net, host) = (self.full("net"), self.full(name));
        run_ok(&format!("ip link add b{number} netns {net} type veth peer name wan0 netns {host}"));
        run_ok(&format!("ip -n {net} addr add 198.18.{number}.1/24 dev b{number}"));
        run_ok(&format!("ip -n {net} addr add 2001:db8:{number}::1/64 dev b{number} nodad"));
        run_ok(&format!("ip -n {net} link set b{number} up"));
        run_ok(&format!("ip -n {host} addr add 198.18.{number}.2/24 dev wan0"));
        run_ok(&format!("ip -n {host} link set wan0 up"));
        run_ok(&format!("ip -n {host} route add default via 198.18.{number}.1"));
        number
    }

    fn namespace(&mut self, name: &str) {
        let full = self.full(name);
        run_ok(&format!("ip netns add {full}"));
        run_ok(&format!("ip -n {full} link set lo up"));
        self.namespaces.push(full);
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    fn sh(&self, name: &str, script: &str) {
        run_ok(&format!("ip netns exec {} sh -c '{script}'", self.full(name)));
    }

    fn nft(&self, name: &str, rules: &str) {
        nft(&self.full(name), rules);
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        for namespace in &self.namespaces {
            let _ = Command::new("ip").args(["netns", "del", namespace]).output();
        }
    }
}

impl Site {
    /// Installs the NAT's rules anew.
    pub fn apply_nat(&self, _lab: &Lab) {
        nft(&self.router.namespace, "flush ruleset\n");
        nft(&self.router.namespace, &self.nat.rules(&self.router.address));
    }

    /// Gives the router another address on the backbone, as a provider does at night.
    pub fn change_address(&mut self, lab: &Lab) {
        let number = self.router.address.split('.').nth(2).unwrap_or_default().to_owned();
        let router = &self.router.namespace;
        run_ok(&format!("ip -n {router} addr flush dev wan0"));
        run_ok(&format!("ip -n {router} addr add 198.18.{number}.77/24 dev wan0"));
        run_ok(&format!("ip -n {router} route add default via 198.18.{number}.1"));
        self.router.address = format!("198.18.{number}.77");
        self.apply_nat(lab);
        self.reboot_nat();
    }

    /// Lets the hosts that are there see the router alone, as a hotel's network does.
    pub fn isolate_hosts(&self) {
        self.router.run(
            "for port in $(ls /sys/class/net/lan0/brif); do bridge link set dev $port isolated on; done",
        );
    }

    /// The NAT forgets all flows.
    pub fn reboot_nat(&self) {
        self.router.run("conntrack -F");
    }
}

impl Host {
    /// Has the host ask this name server, and no other, from now on.
    pub fn set_name_server(&mut self, lab: &Lab, address: &str) {
        let path = lab.dir().join(format!("{}.resolv.conf", self.namespace));
        std::fs::write(&path, format!("nameserver {address}\n")).expect("a file");
        self.resolv_conf = Some(path);
    }

    /// Gives the host another address in its LAN, as when it moves to another network.
    pub fn change_address(&mut self, address: &str) {
        let namespace = &self.namespace;
        let gateway = self.run("ip -4 route show default");
        let gateway = gateway.split_whitespace().nth(2).expect("a default route").to_owned();
        run_ok(&format!("ip -n {namespace} addr flush dev eth0"));
        run_ok(&format!("ip -n {namespace} addr add {address}/24 dev eth0"));
        run_ok(&format!("ip -n {namespace} route add default via {gateway}"));
        self.address = address.to_owned();
    }

    /// Takes its IPv4 away.
    pub fn drop_ipv4(&self) {
        self.run("for dev in eth0 wan0; do ip -4 addr flush dev $dev 2>/dev/null || true; done");
    }

    /// Runs a shell command on the host.
    ///
    /// # Panics
    /// When it fails; the message holds its output.
    pub fn run(&self, command: &str) -> String {
        let output = self.try_run(command);
        assert!(
            output.status.success(),
            "{command}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same; how it ended is the caller's matter.
    pub fn try_run(&self, command: &str) -> Output {
        self.command(command).output().expect("ip netns exec runs")
    }

    /// Starts a shell command whose output goes to `log`.
    pub fn spawn(&self, command: &str, log: &std::path::Path) -> Child {
        let log = File::create(log).expect("a log file");
        let stderr = log.try_clone().expect("a log file");
        self.command(&format!("exec {command}"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(stderr)
            .spawn()
            .expect("ip netns exec runs")
    }

    fn command(&self, command: &str) -> Command {
        let mut exec = Command::new("ip");
        exec.args(["netns", "exec", &self.namespace, "sh", "-c"]);
        // `ip netns exec` gives every command mounts of its own.
        exec.arg(match &self.resolv_conf {
            Some(path) => format!("mount --bind {} /etc/resolv.conf && {command}", path.display()),
            None => command.to_owned(),
        });
        exec
    }

    /// Pings `count` times, `interval` apart.
    pub fn ping(&self, address: &str, count: u32, interval: Duration) -> Ping {
        let seconds = interval.as_secs_f64();
        let output = self.try_run(&format!("ping -n -O -c {count} -i {seconds} -W 1 {address}"));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let answers = text
            .lines()
            .filter_map(|line| {
                let field = |name: &str| {
                    line.split_whitespace()
                        .find_map(|word| word.strip_prefix(name).map(str::to_owned))
                };
                let seq = field("icmp_seq=")?.parse().ok()?;
                let time: f64 = field("time=")?.parse().ok()?;
                Some((seq, Duration::from_secs_f64(time / 1000.0)))
            })
            .collect();
        Ping { sent: count, answers }
    }

    /// One TCP stream towards `address`, where it starts a server; Gbit/s received.
    pub fn iperf(&self, server: &Host, address: &str, seconds: u32, options: &str) -> f64 {
        let mut child =
            server.command("exec iperf3 -s -1").stdout(Stdio::null()).spawn().expect("iperf3 runs");
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(5)
            && !server.run("ss -Hltn sport = :5201").contains("5201")
        {
            std::thread::sleep(Duration::from_millis(20));
        }
        let output = self.try_run(&format!(
            "timeout {} iperf3 -J -c {address} -t {seconds} {options}",
            seconds + 10
        ));
        // With -1 it ends by itself; not if the client never came.
        let _ = child.kill();
        let _ = child.wait();
        let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        report["end"]["sum_received"]["bits_per_second"].as_f64().unwrap_or(0.0) / 1e9
    }
}

/// Runs a command that has to succeed.
pub(crate) fn run_ok(command: &str) {
    let output = Command::new("sh").args(["-c", command]).output().expect("sh runs");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

fn nft(namespace: &str, rules: &str) {
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("nft runs");
    child.stdin.take().expect("a pipe").write_all(rules.as_bytes()).expect("nft reads");
    let mut error = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut error).expect("nft's words are text");
    assert!(child.wait().expect("nft ends").success(), "{error}\n{rules}");
}

/// Removes the namespaces of labs whose process is gone.
fn sweep() {
    for (name, pid) in namespaces() {
        if !std::path::Path::new(&format!("/proc/{pid}")).exists() {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

/// Ends what runs in this process' labs and removes them: for whoever is told to stop in the middle.
pub fn abandon() {
    for (name, _) in namespaces().into_iter().filter(|(_, pid)| *pid == std::process::id()) {
        if let Ok(output) = Command::new("ip").args(["netns", "pids", &name]).output() {
            let pids = String::from_utf8_lossy(&output.stdout).into_owned();
            pids.split_whitespace().filter_map(|pid| pid.parse().ok()).for_each(|pid: u32| {
                node::signal(pid, "KILL");
            });
        }
        let _ = Command::new("ip").args(["netns", "del", &name]).output();
    }
}

/// The labs' namespaces and the process that made each.
fn namespaces() -> Vec<(String, u32)> {
    let Ok(output) = Command::new("ip").args(["netns", "list"]).output() else { return Vec::new() };
    let list = String::from_utf8_lossy(&output.stdout).into_owned();
    list.lines()
        .filter_map(|line| {
            let name = line.split_whitespace().next()?;
            let (pid, _) = name.strip_prefix("ez")?.split_once('x')?;
            Some((name.to_owned(), pid.parse().ok()?))
        })
        .collect()
}
