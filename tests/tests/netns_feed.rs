//! Nodes that a server configures: the real binary in namespaces, the real server in a process of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::Child,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use netio::task::TaskGroup;
use operator::feed::{
    Attributes, Authenticator, Event, Limits, Member, MemberKey, Network, Server, Table,
    auth::Tokens,
};
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};
use session::{feed::Root, issuer::Issuer};
use tests::lab::{Host, Lab, node, node::binary};
use tokio::sync::watch;
use wire::id::NodeKeys;

const MOMENT: Duration = Duration::from_secs(20);
const DIR: &str = "EASYNET_TEST_FEED";

/// What the server process delivers; it reads this file anew whenever it changes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Plan {
    members: BTreeMap<String, Planned>,
    epochs: Vec<u32>,
    epoch: u32,
    revoked: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Planned {
    revision: u64,
    address: String,
    peers: Vec<String>,
    exports: Vec<String>,
    relay_only: bool,
    retire: bool,
}

fn root() -> Root {
    Root::from_bytes(&[7; 32])
}

fn key(name: &str) -> MemberKey {
    MemberKey::Node(name.to_owned())
}

fn unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn table(plan: &Plan, keys: &BTreeMap<String, NodeKeys>) -> Table {
    let mut rng = ChaCha12Rng::from_seed([3; 32]);
    let issuer = Arc::new(Issuer::generate(&mut rng).at_epoch(plan.epoch));
    let mut records = vec![Bytes::from(issuer.epoch_record(unix(), &mut rng))];
    for name in &plan.revoked {
        let record = issuer.revoke_record(keys[name].node(), unix() + 1, unix(), &mut rng);
        records.push(Bytes::from(record));
    }
    let member = |(name, planned): (&String, &Planned)| {
        let sidecar = serde_json::json!({
            "network": {"name": "prod"},
            "node": {"hostname": name, "ipv4": format!("{}/16", planned.address)},
            "peers": planned.peers,
            "exports": planned.exports.iter().map(|cidr| serde_json::json!({"cidr": cidr})).collect::<Vec<_>>(),
            "transport": {"p2p": if planned.relay_only { "relay-only" } else { "on" }},
        });
        let member = Member {
            revision: planned.revision,
            sidecar: Arc::new(serde_json::from_value(sidecar).unwrap()),
            attributes: Attributes {
                addresses: vec![planned.address.parse::<IpAddr>().unwrap()],
                prefixes: planned.exports.iter().map(|cidr| cidr.parse().unwrap()).collect(),
                hostname: name.clone(),
                groups: vec![],
            },
            retire: planned.retire,
            traceparent: String::new(),
        };
        (key(name), member)
    };
    let network = Network {
        issuer,
        epochs: plan.epochs.clone(),
        members: plan.members.iter().map(member).collect(),
        records: Arc::new(records),
    };
    Table { networks: [("prod".to_owned(), network)].into(), whole: true }
}

/// Not a test: the server process of those below.
#[tokio::test]
#[ignore = "the server process of the other tests"]
async fn server_process() {
    let dir = PathBuf::from(std::env::var_os(DIR).expect("started by a test"));
    let group = TaskGroup::new("server");
    let mut plan = Plan::default();
    let mut keys = BTreeMap::new();
    let (tables, receiver) = watch::channel(Arc::default());
    let mut tokens = Tokens::default();
    for name in ["a", "b"] {
        tokens.add(&format!("token-{name}"), "prod", key(name));
    }
    let listen = SocketAddr::from(([0, 0, 0, 0], 22020));
    let authenticator = Authenticator::Static(tokens);
    let server =
        Server::start(listen, &root(), authenticator, receiver, Limits::default(), &group).unwrap();
    println!("listening");
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    loop {
        tokio::select! {
            report = server.reports.next() => {
                let MemberKey::Node(name) = &report.member else { continue };
                if let Event::Enrolled { keys: enrolled, .. } = &report.event {
                    keys.insert(name.clone(), *enrolled);
                }
                println!("{name}: {:?}", report.event);
            }
            _ = tick.tick() => {
                let text = fs::read(dir.join("plan.json")).unwrap_or_default();
                if let Ok(next) = serde_json::from_slice::<Plan>(&text)
                    && next != plan
                {
                    plan = next;
                    tables.send_replace(Arc::new(table(&plan, &keys)));
                }
            }
        }
    }
}

/// The name of another test of this file, as the harness knows it.
fn beside(test: &str) -> String {
    let own = std::thread::current().name().unwrap_or_default().to_owned();
    match own.rsplit_once("::") {
        Some((module, _)) => format!("{module}::{test}"),
        None => test.to_owned(),
    }
}

/// The server process on a host of the lab.
struct Feed {
    host: Host,
    dir: PathBuf,
    child: Option<Child>,
    plan: Plan,
    /// Each start has a log of its own.
    starts: u32,
}

impl Feed {
    fn new(lab: &Lab, host: Host, plan: Plan) -> Self {
        let dir = lab.dir().join("feed");
        fs::create_dir_all(&dir).unwrap();
        let mut feed = Self { host, dir, child: None, plan, starts: 0 };
        feed.publish(|_| {});
        feed.start();
        feed
    }

    fn start(&mut self) {
        let exe = std::env::current_exe().unwrap();
        let command = format!(
            "env {DIR}={} {} --ignored --exact --nocapture {}",
            self.dir.display(),
            exe.display(),
            beside("server_process")
        );
        self.starts += 1;
        self.child = Some(self.host.spawn(&command, &self.log_path()));
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join(format!("log-{}", self.starts))
    }

    fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    fn publish(&mut self, change: impl FnOnce(&mut Plan)) {
        change(&mut self.plan);
        let beside = self.dir.join("plan.tmp");
        fs::write(&beside, serde_json::to_vec(&self.plan).unwrap()).unwrap();
        fs::rename(beside, self.dir.join("plan.json")).unwrap();
    }

    fn url(&self) -> String {
        format!("tcp://{}:22020/prod?k={}", self.host.address, root().key())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    fn wait(&self, part: &str, within: Duration) {
        until(within, &format!("{part} in {}", self.log()), || self.log().contains(part));
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A node that has nothing but a URL and a token.
struct Agent {
    name: &'static str,
    host: Host,
    dir: PathBuf,
    child: Child,
}

impl Agent {
    fn start(lab: &Lab, host: &Host, name: &'static str, url: &str) -> Self {
        let dir = lab.dir().join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("token"), format!("token-{name}")).unwrap();
        let child = Self::spawn(host, &dir, name, url);
        Self { name, host: host.clone(), dir, child }
    }

    fn spawn(host: &Host, dir: &Path, name: &str, url: &str) -> Child {
        let command = format!(
            "{} run --config-server '{url}' --config-server-token-file {dir}/token --tun ez{name} --state-dir {dir}/state --admin {dir}/admin.sock",
            binary().display(),
            dir = dir.display(),
        );
        host.spawn(&command, &dir.join("log"))
    }

    fn restart(&mut self, url: &str) {
        self.child = Self::spawn(&self.host, &self.dir, self.name, url);
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn cli(&self, args: &str) -> std::process::Output {
        let socket = self.dir.join("admin.sock");
        self.host.try_run(&format!("{} {args} --admin {}", binary().display(), socket.display()))
    }

    fn json(&self, what: &str) -> serde_json::Value {
        let output = self.cli(&format!("{what} -o json"));
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn wait(&self, condition: &str) {
        let output =
            self.cli(&format!("status --wait {condition} --timeout {}s", MOMENT.as_secs()));
        assert!(output.status.success(), "{condition}: {output:?}\n{}", self.log());
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(within: Duration, what: &str, good: impl Fn() -> bool) -> Duration {
    let began = Instant::now();
    while !good() {
        assert!(began.elapsed() < within, "not within {within:?}: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
    began.elapsed()
}

fn two(lab: &mut Lab) -> (Feed, Agent, Agent) {
    let hosts = ["f", "a", "b"].map(|name| lab.public_host(name));
    let [feed, a, b] = hosts;
    let planned = |address: &str, other: &Host| Planned {
        revision: 1,
        address: address.to_owned(),
        peers: vec![format!("udp://{}:11010", other.address)],
        ..Planned::default()
    };
    let plan = Plan {
        members: BTreeMap::from([
            ("a".to_owned(), planned("100.112.0.1", &b)),
            ("b".to_owned(), planned("100.112.0.2", &a)),
        ]),
        epochs: vec![1],
        epoch: 1,
        revoked: vec![],
    };
    let feed = Feed::new(lab, feed, plan);
    let agents = (Agent::start(lab, &a, "a", &feed.url()), Agent::start(lab, &b, "b", &feed.url()));
    (feed, agents.0, agents.1)
}

fn pings(from: &Agent, address: &str) -> bool {
    from.host.ping(address, 5, Duration::from_millis(100)).lost() == 0
}

#[test]
fn nodes_are_configured_by_a_server_and_go_on_without_it() {
    let mut lab = Lab::new();
    let (mut feed, a, mut b) = two(&mut lab);
    for agent in [&a, &b] {
        until(MOMENT, &agent.log(), || agent.dir.join("admin.sock").exists());
        agent.wait("ready");
        agent.wait("peers=1");
    }
    assert!(pings(&a, "100.112.0.2"), "{}\n{}", a.log(), b.log());
    feed.wait("a: Applied { revision: 1, epochs: [1] }", MOMENT);
    feed.wait("b: Status(Status { revision: 1", MOMENT);
    assert_eq!(a.json("status")["config"]["source"], "server");
    for secret in ["token-a", "psk"] {
        assert!(!a.log().contains(secret) && !a.json("config show").to_string().contains(secret));
    }

    // Keys change, one prefix more: nothing is restarted, nobody renumbered.
    feed.publish(|plan| {
        plan.epochs = vec![1, 2];
        let b = plan.members.get_mut("b").unwrap();
        (b.revision, b.exports) = (2, vec!["10.77.0.0/24".to_owned()]);
    });
    feed.wait("a: Applied { revision: 1, epochs: [1, 2] }", MOMENT);
    feed.wait("b: Applied { revision: 2, epochs: [1, 2] }", MOMENT);
    until(MOMENT, "the route to the export", || {
        a.json("routes").to_string().contains("10.77.0.0/24")
    });
    feed.publish(|plan| plan.epoch = 2);
    feed.wait("epoch_seen: 2, epochs: [1, 2]", MOMENT);
    assert!(pings(&a, "100.112.0.2"));

    // The server is gone; a node that starts again starts from its disk.
    feed.kill();
    b.kill();
    let url = feed.url();
    b.restart(&url);
    let began = Instant::now();
    until(MOMENT, &b.log(), || b.log().contains("starting from what it said last"));
    b.wait("ready");
    let took = began.elapsed();
    println!("up from disk after {took:?}");
    assert!(took < Duration::from_secs(2), "up after {took:?}");
    until(MOMENT, "reached again", || pings(&a, "100.112.0.2"));
    assert_eq!(b.json("status")["config"]["revision"], 2);

    // It comes back, and goes on where it was.
    feed.publish(|plan| plan.members.get_mut("a").unwrap().revision = 3);
    feed.start();
    feed.wait("a: Applied { revision: 3", Duration::from_secs(60));

    // One is revoked.
    feed.wait("b: Enrolled", Duration::from_secs(60));
    feed.publish(|plan| plan.revoked = vec!["b".to_owned()]);
    let gone = until(MOMENT, "the revoked node is gone", || {
        a.json("peers").as_array().is_some_and(Vec::is_empty)
    });
    assert!(gone < Duration::from_secs(3), "gone after {gone:?}");
    assert!(!pings(&a, "100.112.0.2"));
}

#[test]
fn a_configuration_that_cuts_nodes_off_is_taken_back_and_not_tried_again() {
    let mut lab = Lab::new();
    let relay = lab.public_host("r");
    let (_server, url) = node::server(&mut lab, &relay, "server", "");
    let (mut feed, mut a, b) = two(&mut lab);
    feed.publish(|plan| {
        for member in plan.members.values_mut() {
            (member.revision, member.relay_only) = (2, true);
            member.peers = vec![url.clone()];
        }
    });
    for agent in [&a, &b] {
        until(MOMENT, &agent.log(), || agent.json("status")["config"]["revision"] == 2);
    }
    until(MOMENT, "relayed", || pings(&a, "100.112.0.2"));
    // What was on trial before counts as good once the node looked.
    std::thread::sleep(Duration::from_secs(7));

    // The only server is replaced by one that does not exist.
    feed.publish(|plan| {
        for member in plan.members.values_mut() {
            member.revision = 3;
            member.peers = vec!["udp://198.18.200.2:11010".to_owned()];
        }
    });
    feed.wait("a: Applied { revision: 3", MOMENT);
    let within = Duration::from_secs(90);
    for name in ["a", "b"] {
        feed.wait(&format!("{name}: Failed {{ revision: 3"), within);
    }

    until(MOMENT, "connected again", || pings(&a, "100.112.0.2"));
    assert!(feed.log().contains("rolled_back: true"));
    assert_eq!(a.json("status")["config"]["revision"], 2);
    assert!(a.json("events").to_string().contains("config_rolled_back"), "{}", a.json("events"));
    a.kill();
    a.restart(&feed.url());
    a.wait("ready");
    assert_eq!(a.json("status")["config"]["revision"], 2, "{}", a.log());

    feed.publish(|plan| {
        for member in plan.members.values_mut() {
            member.revision = 4;
            member.peers = vec![url.clone()];
        }
    });
    feed.wait("a: Applied { revision: 4", MOMENT);
    until(MOMENT, "a later one is applied", || pings(&a, "100.112.0.2"));
}

#[test]
fn a_node_that_is_to_retire_removes_all_it_made_and_says_so() {
    let mut lab = Lab::new();
    let (mut feed, a, b) = two(&mut lab);
    for agent in [&a, &b] {
        until(MOMENT, &agent.log(), || agent.dir.join("admin.sock").exists());
        agent.wait("ready");
    }
    feed.publish(|plan| plan.members.get_mut("a").unwrap().retire = true);

    feed.wait("a: Retired", MOMENT);
    until(MOMENT, "its interface is gone", || !a.host.run("ip link").contains("eza"));
    assert!(!a.host.run("nft list tables").contains("easynet"));
    assert!(!a.dir.join("state/feed.state").exists());
    until(MOMENT, "the other forgets it", || b.json("peers").as_array().is_some_and(Vec::is_empty));
}
