//! The configuration feed over real sockets: the product's server and the product's client, with tokens given out by hand.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout)]

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use netio::{
    resolve::{self, Resolver},
    task::TaskGroup,
};
use operator::feed::{
    Attributes, Authenticator, Event, Limits, Member, MemberKey, Network, Report, Server, Table,
    auth::Tokens,
};
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use rpc::feed::{Applied, Status, Transition};
use session::{feed::Root, identity::Identity, issuer::Issuer};
use sidecar::source::{
    FeedUrl, Standing,
    feed::{self, Link, Parts},
};
use tokio::sync::watch;

const WITHIN: Duration = Duration::from_secs(10);
const NETWORK: &str = "prod";

fn root() -> Root {
    Root::from_bytes(&[7; 32])
}

fn issuer() -> Arc<Issuer> {
    Arc::new(Issuer::generate(&mut ChaCha12Rng::from_seed([8; 32])))
}

fn key(number: usize) -> MemberKey {
    MemberKey::Node(format!("node-{number}"))
}

fn identity(number: usize) -> Arc<Identity> {
    let mut bytes = [1; 64];
    bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
    bytes[32..40].copy_from_slice(&(number as u64).to_le_bytes());
    Arc::new(Identity::from_bytes(&bytes))
}

fn member(number: usize, revision: u64) -> Member {
    let low = u16::try_from(number + 1).unwrap().to_be_bytes();
    Member {
        revision,
        sidecar: Arc::new(
            serde_json::from_value(serde_json::json!({
            "network": {"name": NETWORK},
            "node": {"hostname": format!("node-{number}"), "ipv4": format!("100.112.{}.{}/16", low[0], low[1])},
            "exports": [{"cidr": format!("10.{}.{}.0/24", low[0], low[1])}],
            "peers": (0..6).map(|seed| format!("udp://192.0.2.{seed}:11010")).collect::<Vec<_>>(),
        }))
        .unwrap()),
        attributes: Attributes {
            addresses: vec![IpAddr::V4(Ipv4Addr::new(100, 112, low[0], low[1]))],
            prefixes: vec![format!("10.{}.{}.0/24", low[0], low[1]).parse().unwrap()],
            hostname: format!("node-{number}"),
            groups: vec![],
        },
        retire: false,
        traceparent: String::new(),
    }
}

fn table(members: usize, revision: u64) -> Table {
    let network = Network {
        issuer: issuer(),
        epochs: vec![1],
        members: (0..members).map(|number| (key(number), member(number, revision))).collect(),
        records: Arc::new(vec![Bytes::from(
            issuer().epoch_record(1_800_000_000, &mut ChaCha12Rng::from_seed([1; 32])),
        )]),
    };
    Table { networks: [(NETWORK.to_owned(), network)].into(), whole: true }
}

fn tokens(members: usize) -> Authenticator {
    let mut tokens = Tokens::default();
    for number in 0..members {
        tokens.add(&format!("token-{number}"), NETWORK, key(number));
    }
    Authenticator::Static(tokens)
}

/// Everything of one test: a server, and a directory for tokens.
struct Bench {
    group: TaskGroup,
    server: Server,
    table: watch::Sender<Arc<Table>>,
    dir: tempfile::TempDir,
    resolver: Resolver,
    limits: Limits,
    members: usize,
}

impl Bench {
    fn new(members: usize) -> Self {
        Self::limited(members, Limits::default())
    }

    fn limited(members: usize, limits: Limits) -> Self {
        let group = TaskGroup::new("bench");
        let (table, receiver) = watch::channel(Arc::new(table(members, 1)));
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let server =
            Server::start(listen, &root(), tokens(members), receiver, limits, &group).unwrap();
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let dir = tempfile::tempdir().unwrap();
        Self { group, server, table, dir, resolver, limits, members }
    }

    /// The server ends, and after `pause` another one with the same root takes its port.
    async fn restart(&mut self, pause: Duration) {
        let listen = self.server.local;
        self.group.cancel();
        let _ = self.group.join(Duration::from_secs(2)).await;
        tokio::time::sleep(pause).await;
        self.group = TaskGroup::new("bench");
        let receiver = self.table.subscribe();
        self.server = Server::start(
            listen,
            &root(),
            tokens(self.members),
            receiver,
            self.limits,
            &self.group,
        )
        .unwrap();
    }

    fn url(&self) -> FeedUrl {
        url(self.server.local, &root())
    }

    fn token_file(&self, number: usize, token: &str) -> PathBuf {
        let path = self.dir.path().join(format!("token-{number}"));
        fs::write(&path, token).unwrap();
        path
    }

    fn dial(&self, number: usize, group: &TaskGroup) -> Link {
        self.dial_with(number, &format!("token-{number}"), self.url(), group)
    }

    fn dial_with(&self, number: usize, token: &str, url: FeedUrl, group: &TaskGroup) -> Link {
        let parts = Parts {
            url,
            token_file: Some(self.token_file(number, token)),
            identity: identity(number),
            aead: wire::control::AEAD_CHACHA,
            revision: 0,
        };
        feed::spawn(parts, self.resolver.clone(), group)
    }

    fn publish(&self, change: impl FnOnce(&mut Network)) {
        let mut next = Table::clone(&self.table.borrow());
        change(next.networks.get_mut(NETWORK).unwrap());
        self.table.send_replace(Arc::new(next));
    }

    async fn report(&self) -> Report {
        tokio::time::timeout(WITHIN, self.server.reports.next()).await.expect("a report")
    }
}

fn url(server: SocketAddr, root: &Root) -> FeedUrl {
    format!("tcp://{server}/{NETWORK}?k={}", root.key()).parse().unwrap()
}

async fn revision(link: &mut Link, wanted: u64) -> Arc<rpc::feed::Desired> {
    let wait = link
        .desired
        .wait_for(|desired| desired.as_ref().is_some_and(|desired| desired.revision >= wanted));
    let desired = tokio::time::timeout(WITHIN, wait).await.expect("in time").unwrap();
    desired.clone().unwrap()
}

async fn refusal(link: &mut Link) -> String {
    let wait = link.health.wait_for(|health| health.error.is_some());
    let health = tokio::time::timeout(WITHIN, wait).await.expect("in time").unwrap();
    health.error.clone().unwrap()
}

#[tokio::test]
async fn a_member_gets_its_configuration_and_says_what_became_of_it() {
    let bench = Bench::new(3);
    let group = TaskGroup::new("member");
    let mut link = bench.dial(1, &group);

    let desired = revision(&mut link, 1).await;

    let delivered = config::parse_delivered(&desired.sidecar).expect("a valid configuration");
    assert_eq!(delivered.hostname.unwrap().value.unwrap().as_str(), "node-1");
    let standing =
        Standing::read(&desired, &identity(1).keys(), None, unix()).expect("makes it a member");
    assert_eq!(standing.membership.network, issuer().network());
    assert_eq!(standing.records.len(), 1);
    link.up.applied(Applied { revision: 1, epochs: vec![1], ..Applied::default() });
    let enrolled = bench.report().await;
    assert_eq!((enrolled.network.as_str(), &enrolled.member), (NETWORK, &key(1)));
    let Event::Enrolled { keys, from, .. } = enrolled.event else { panic!("{enrolled:?}") };
    assert_eq!((keys, from), (identity(1).keys(), [127, 0, 0, 1].into()));
    assert_eq!(bench.report().await.event, Event::Applied { revision: 1, epochs: vec![1] });

    bench.publish(|network| network.members.get_mut(&key(1)).unwrap().revision = 2);
    assert_eq!(revision(&mut link, 2).await.revision, 2);
    link.up.applied(Applied { revision: 2, error: "no".into(), ..Applied::default() });
    let failed = Event::Failed { revision: 2, error: "no".into(), rolled_back: false };
    assert_eq!(bench.report().await.event, failed);

    group.cancel();
    assert_eq!(bench.report().await.event, Event::Gone);
}

#[tokio::test]
async fn a_member_that_the_table_learns_of_later_gets_it_then() {
    let bench = Bench::new(2);
    bench.publish(|network| drop(network.members.remove(&key(1))));
    let group = TaskGroup::new("member");
    let mut link = bench.dial(1, &group);
    assert!(matches!(bench.report().await.event, Event::Enrolled { .. }));
    assert_eq!(*link.desired.borrow(), None);

    bench.publish(|network| drop(network.members.insert(key(1), member(1, 5))));

    assert_eq!(revision(&mut link, 5).await.revision, 5);
}

#[tokio::test]
async fn whoever_is_nobody_is_told_why_and_gets_nothing() {
    let bench = Bench::new(3);
    let group = TaskGroup::new("member");
    let mut unknown = bench.dial_with(0, "token-9", bench.url(), &group);
    let mut nothing = bench.dial_with(1, "", bench.url(), &group);
    let other = Root::from_bytes(&[9; 32]);
    let mut misled = bench.dial_with(2, "token-2", url(bench.server.local, &other), &group);

    assert!(refusal(&mut unknown).await.contains("the token is not good: it is not known"));
    assert!(refusal(&mut nothing).await.contains("there is none"));
    assert!(refusal(&mut misled).await.contains("not signed by the root"));
    for link in [&unknown, &nothing, &misled] {
        assert_eq!(*link.desired.borrow(), None);
    }
    assert_eq!(bench.server.reports.try_next(), None);
}

#[tokio::test]
async fn a_token_is_read_anew_for_every_session() {
    let bench = Bench::new(1);
    let group = TaskGroup::new("member");
    let mut link = bench.dial_with(0, "expired", bench.url(), &group);
    refusal(&mut link).await;

    bench.token_file(0, "token-0\n");

    revision(&mut link, 1).await;
}

#[tokio::test]
async fn a_later_session_of_a_member_takes_the_place_of_the_one_before() {
    let bench = Bench::new(1);
    let (first_group, second_group) = (TaskGroup::new("first"), TaskGroup::new("second"));
    let mut first = bench.dial(0, &first_group);
    revision(&mut first, 1).await;
    assert!(matches!(bench.report().await.event, Event::Enrolled { .. }));

    let mut second = bench.dial(0, &second_group);
    revision(&mut second, 1).await;

    assert!(refusal(&mut first).await.contains("closed"));
    first_group.cancel();
    assert!(matches!(bench.report().await.event, Event::Enrolled { .. }));
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(bench.server.reports.try_next(), None, "the member is not gone");
}

#[tokio::test]
async fn a_member_outlives_its_server_and_finds_the_next_one() {
    let mut bench = Bench::new(1);
    let group = TaskGroup::new("member");
    let mut link = bench.dial(0, &group);
    revision(&mut link, 1).await;

    bench.restart(Duration::ZERO).await;
    bench.publish(|network| network.members.get_mut(&key(0)).unwrap().revision = 2);

    assert_eq!(revision(&mut link, 2).await.revision, 2);
}

#[tokio::test]
async fn retiring_counts_once_it_is_kept_and_leaving_asks_for_it() {
    let bench = Bench::new(1);
    let group = TaskGroup::new("member");
    let mut link = bench.dial(0, &group);
    revision(&mut link, 1).await;
    assert!(matches!(bench.report().await.event, Event::Enrolled { .. }));
    assert!(!link.up.leaving().await, "an upgrade leaves everything in place");

    bench.publish(|network| network.members.get_mut(&key(0)).unwrap().retire = true);
    let kept = tokio::time::timeout(WITHIN, link.retire.recv()).await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(bench.server.reports.try_next(), None, "nothing is kept yet");
    kept.send(()).unwrap();

    assert_eq!(bench.report().await.event, Event::Retired);
    assert!(link.up.leaving().await);
}

#[tokio::test]
async fn a_member_that_ends_just_as_its_server_is_back_does_not_wait_to_ask_it() {
    let mut bench = Bench::new(1);
    let group = TaskGroup::new("member");
    let mut link = bench.dial(0, &group);
    revision(&mut link, 1).await;

    // Long enough for it to dial but every few seconds.
    bench.restart(Duration::from_secs(5)).await;
    bench.publish(|network| network.members.get_mut(&key(0)).unwrap().retire = true);

    assert!(link.up.leaving().await);
}

#[tokio::test]
async fn one_source_cannot_take_all_the_places_of_those_who_are_nobody_yet() {
    let limits = Limits { sessions: 100, nobodies: 20, nobodies_per_source: 4 };
    let bench = Bench::limited(1, limits);
    let mut silent = Vec::new();
    for _ in 0..40 {
        silent.push(tokio::net::TcpStream::connect(bench.server.local).await.unwrap());
    }
    let group = TaskGroup::new("member");
    let far = tokio::net::TcpSocket::new_v4().unwrap();
    far.bind(SocketAddr::from(([127, 0, 0, 9], 0))).unwrap();

    let _far = far.connect(bench.server.local).await.unwrap();

    // The silent ones have four places; the rest was closed.
    let closed = silent.iter().filter(|stream| {
        let mut byte = [0];
        matches!(stream.try_read(&mut byte), Ok(0))
    });
    let closed = closed.count();
    assert!(closed >= 30, "{closed} of 40 were closed");
    drop(silent);
    let mut link = bench.dial(0, &group);
    revision(&mut link, 1).await;
}

/// Figures of a server process with thousands of members: see [`two_thousand_members_are_cheap`].
const MEMBERS: usize = 2000;
const FLAPPING: usize = 1000;

/// Not a test: the server of the test below, in a process of its own.
#[tokio::test]
#[ignore = "the server process of two_thousand_members_are_cheap"]
async fn server_process() {
    let limits = Limits { nobodies_per_source: 512, ..Limits::default() };
    let group = TaskGroup::new("server");
    let (tables, receiver) = watch::channel(Arc::new(table(MEMBERS, 1)));
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server::start(listen, &root(), tokens(MEMBERS), receiver, limits, &group).unwrap();
    println!("listening {}", server.local);
    let (lines, mut commands) = tokio::sync::mpsc::channel(4);
    let _stdin = group.spawn_thread("stdin", move |_| {
        for line in std::io::stdin().lines() {
            if lines.blocking_send(line?).is_err() {
                break;
            }
        }
        Ok(())
    });
    let mut written = BTreeMap::new();
    let mut tick = tokio::time::interval(Duration::from_millis(50));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command.as_deref() {
                Some("bump") => {
                    tables.send_replace(Arc::new(table(MEMBERS, 2)));
                }
                Some("rss") => println!("rss {} {}", rss_kib(), server.reports.waiting()),
                Some("written") => {
                    let newest = written.values().filter(|status: &&Status| status.revision == 99);
                    println!("written {} {}", written.len(), newest.count());
                }
                Some("drain") => {
                    while let Some(report) = server.reports.try_next() {
                        take(&mut written, report);
                    }
                    println!("drained");
                }
                Some(_) | None => return,
            },
            // Twenty writes a second, as the writer of status has it.
            _ = tick.tick() => {
                if let Some(report) = server.reports.try_next() {
                    take(&mut written, report);
                }
            }
        }
    }
}

fn take(written: &mut BTreeMap<MemberKey, Status>, report: Report) {
    if let Event::Status(status) = report.event {
        written.insert(report.member, *status);
    }
}

fn rss_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The name of another test of this file, as the harness knows it.
fn beside(test: &str) -> String {
    let own = std::thread::current().name().unwrap_or_default().to_owned();
    match own.rsplit_once("::") {
        Some((module, _)) => format!("{module}::{test}"),
        None => test.to_owned(),
    }
}

struct Process {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Process {
    fn start() -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", &beside("server_process")])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    fn say(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
    }

    /// The rest of the next line that begins so.
    fn hear(&mut self, word: &str) -> String {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the server process ended");
            if let Some(at) = line.find(word) {
                return line[at + word.len()..].trim().to_owned();
            }
        }
    }

    fn numbers<const N: usize>(&mut self, word: &str) -> [u64; N] {
        self.say(word);
        let rest = self.hear(&format!("{word} "));
        let numbers: Vec<u64> = rest.split(' ').map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.stdin.take();
        let _ = self.child.wait();
    }
}

/// Open files that this process may have; many shells allow 1024, and a test may raise that for its children alone.
fn most_files() -> usize {
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX)
}

#[tokio::test]
async fn two_thousand_members_are_cheap() {
    if most_files() < 2 * MEMBERS {
        let exe = std::env::current_exe().unwrap();
        let again = format!(
            "ulimit -n {} && exec {} --exact --nocapture {}",
            3 * MEMBERS,
            exe.display(),
            beside("two_thousand_members_are_cheap")
        );
        let status = Command::new("sh").args(["-c", &again]).status().unwrap();
        assert!(status.success(), "see above; this needs `ulimit -Hn` of {}", 3 * MEMBERS);
        return;
    }
    let mut process = Process::start();
    let server: SocketAddr = process.hear("listening ").parse().unwrap();
    let url = url(server, &root());
    let dir = tempfile::tempdir().unwrap();
    let group = TaskGroup::new("members");
    let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
    for number in 0..MEMBERS {
        fs::write(dir.path().join(number.to_string()), format!("token-{number}")).unwrap();
    }
    let identities: Vec<_> = (0..MEMBERS).map(identity).collect();

    let began = Instant::now();
    let mut links: Vec<Link> = identities
        .into_iter()
        .enumerate()
        .map(|(number, identity)| {
            let parts = Parts {
                url: url.clone(),
                token_file: Some(dir.path().join(number.to_string())),
                identity,
                aead: wire::control::AEAD_CHACHA,
                revision: 0,
            };
            feed::spawn(parts, resolver.clone(), &group)
        })
        .collect();
    all_have(&mut links, 1, Duration::from_secs(30)).await;
    let configured = began.elapsed();
    for link in &links {
        link.up.applied(Applied { revision: 1, epochs: vec![1], ..Applied::default() });
    }
    process.say("drain");
    process.hear("drained");
    let [configured_kib, _] = process.numbers("rss");

    let began = Instant::now();
    process.say("bump");
    all_have(&mut links, 2, Duration::from_secs(10)).await;
    let changed = began.elapsed();

    // A thousand members have ten transitions a second each, for five seconds.
    for round in 50..100 {
        for link in &links[..FLAPPING] {
            let transition = Transition { kind: "flap".into(), ..Transition::default() };
            link.up.status(Status {
                revision: round,
                transitions: vec![transition],
                ..Status::default()
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let [flapped_kib, waiting] = process.numbers("rss");
    let [written, _] = process.numbers("written");
    tokio::time::sleep(Duration::from_secs(3)).await;
    process.say("drain");
    process.hear("drained");
    let [reported, newest] = process.numbers("written");

    println!(
        "{MEMBERS} members configured in {configured:?}, one change in {changed:?}, RSS {configured_kib} KiB, after flapping {flapped_kib} KiB; {written} written while {waiting} waited"
    );
    assert!(configured <= Duration::from_secs(30), "{configured:?}");
    assert!(changed <= Duration::from_secs(2), "{changed:?}");
    assert!(configured_kib.max(flapped_kib) <= 64 * 1024, "{configured_kib} {flapped_kib}");
    assert!(written <= 20 * 12, "{written} writes");
    assert!(waiting <= MEMBERS as u64, "{waiting} members wait");
    assert_eq!((reported, newest), (FLAPPING as u64, FLAPPING as u64));
    group.cancel();
}

async fn all_have(links: &mut [Link], wanted: u64, limit: Duration) {
    let until = Instant::now() + limit;
    let mut have = 0;
    for link in &mut *links {
        let wait = link
            .desired
            .wait_for(|desired| desired.as_ref().is_some_and(|desired| desired.revision >= wanted));
        let left = until.saturating_duration_since(Instant::now());
        if tokio::time::timeout(left, wait).await.is_ok() {
            have += 1;
        }
    }
    assert_eq!(have, links.len(), "members with revision {wanted} within {limit:?}");
}

fn unix() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}
