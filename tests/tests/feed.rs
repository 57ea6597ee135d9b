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
    member::{Holder, Next},
};
use prost::Message;
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use rpc::{
    feed::{
        APPLIED, Applied, DESIRED, Desired, ENROLL, ENROLL_CONTEXT, Enroll, Enrolled, LEAVING,
        Left, Peers, STATUS, Status, Transition,
    },
    frame::{self, Failure, Frame, Kind, Reason},
};
use serde_json::{Value, json};
use session::{
    feed::{Feed, Root},
    identity::Identity,
    issuer::Issuer,
};
use sidecar::source::{
    FeedUrl, Standing,
    feed::{self, Link, Parts},
};
use tests::{cluster::bed::alone_again, lab::node::binary};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::watch,
};
use wire::id::{DhKey, NodeKeys, SignKey};

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
    url_text(server, root).parse().unwrap()
}

fn url_text(server: SocketAddr, root: &Root) -> String {
    format!("tcp://{server}/{NETWORK}?k={}", root.key())
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
    let hostname = delivered.partial.hostname.unwrap().value.unwrap();
    assert_eq!(hostname.as_str(), "node-1");
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

#[tokio::test]
async fn a_member_takes_of_what_a_later_server_says_what_it_knows() {
    let (mut server, mut link, group) = Raw::accept_member(1).await;
    let enroll = server.frame().await;
    assert_eq!(enroll.method, ENROLL);
    let enrolled = Enrolled { member: "node-1".into(), unix_s: unix(), ..Enrolled::default() };
    server.answer(enroll.call, &later(&enrolled)).await;

    // A frame of a kind that is not known, and a call of a method that is not.
    server.send_bytes(&later(&Frame { call: 7, kind: 9, ..Frame::default() })).await;
    server.ask(8, 2 << 16 | 99, &UNKNOWN).await;
    let refused = server.frame().await;
    assert_eq!((refused.call, refused.kind()), (8, Kind::Error));

    // Something new at every level of a configuration.
    let known = delivered(1);
    let mut sidecar: Value = serde_json::from_str(&known.sidecar).unwrap();
    sidecar["colour"] = json!({"of": ["sea"]});
    sidecar["node"]["mood"] = json!("calm");
    sidecar["exports"][0]["weight"] = json!(7);
    let odd = json!({"cidr": "10.99.0.0/24", "masquerade": "thrice"});
    sidecar["exports"].as_array_mut().unwrap().push(odd);
    sidecar["peers"].as_array_mut().unwrap().push(json!("quic://192.0.2.9:11010"));
    sidecar["transport"] = json!({"mtu": 1400, "punch": "somewhat", "pace": 3});
    let (certificate, attributes) = (known.certificate.as_ref(), known.attributes.as_ref());
    let mut bytes = Desired {
        sidecar: sidecar.to_string(),
        certificate: None,
        attributes: None,
        epochs: vec![],
        ..known.clone()
    }
    .encode_to_vec();
    bytes.extend(inner(4, &later(certificate.unwrap())));
    bytes.extend(inner(5, &later(attributes.unwrap())));
    bytes.extend(inner(6, &later(&known.epochs[0])));
    bytes.extend(UNKNOWN);
    server.ask(9, DESIRED, &bytes).await;
    let taken = server.frame().await;
    assert_eq!((taken.call, taken.kind()), (9, Kind::Response));

    let desired = revision(&mut link, 1).await;
    let standing = Standing::read(&desired, &identity(1).keys(), None, unix()).expect("a member");
    assert_eq!((standing.epochs(), standing.records.len()), (vec![1], 1));
    let delivered = config::parse_delivered(&desired.sidecar).expect("known parts");
    let passed_over: Vec<&str> =
        delivered.passed_over.iter().map(|part| part.path.as_str()).collect();
    assert_eq!(
        passed_over,
        [
            "colour",
            "exports[0].weight",
            "exports[1].masquerade",
            "node.mood",
            "peers[6]",
            "transport.pace",
            "transport.punch"
        ]
    );
    let settings = delivered.partial.settle();
    assert_eq!(settings.hostname.value.unwrap().as_str(), "node-1");
    assert_eq!((settings.exports.value.len(), settings.peers.value.len()), (1, 6));
    assert_eq!(settings.mtu.value.to_string(), "1400");

    // Answers with more in them than was asked.
    link.up.applied(Applied { revision: 1, ..Applied::default() });
    let applied = server.frame().await;
    assert_eq!(applied.method, APPLIED);
    server.answer(applied.call, &UNKNOWN).await;
    let (retires, ()) = tokio::join!(link.up.leaving(), async {
        let leaving = server.frame().await;
        assert_eq!(leaving.method, LEAVING);
        server.answer(leaving.call, &later(&Left { retire: true })).await;
    });
    assert!(retires);
    group.cancel();
}

#[tokio::test]
async fn a_member_takes_what_an_earlier_server_says_and_does_without_the_rest() {
    let (mut server, mut link, group) = Raw::accept_member(1).await;
    let enroll = server.frame().await;
    // It does not say what time it is.
    let enrolled = Enrolled { member: "node-1".into(), ..Enrolled::default() };
    server.answer(enroll.call, &enrolled.encode_to_vec()).await;
    let sidecar = json!({"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar",
        "node": {"hostname": "node-1"}});
    let earlier = Desired {
        sidecar: sidecar.to_string(),
        records: vec![],
        traceparent: String::new(),
        ..delivered(1)
    };
    server.ask(1, DESIRED, &earlier.encode_to_vec()).await;
    assert_eq!(server.frame().await.kind(), Kind::Response);

    let desired = revision(&mut link, 1).await;
    Standing::read(&desired, &identity(1).keys(), None, unix()).expect("a member");
    let settings = config::parse_delivered(&desired.sidecar).unwrap().partial.settle();
    assert_eq!(settings.hostname.value.unwrap().as_str(), "node-1");

    // It does not know this call yet; the session goes on.
    link.up.status(Status { ready: true, ..Status::default() });
    let status = server.frame().await;
    let failure = Failure::new(Reason::NotAllowed, "no such method");
    server.send(&frame::failure(status.call, &failure)).await;
    server.ask(2, DESIRED, &Desired { revision: 2, ..earlier }.encode_to_vec()).await;
    assert_eq!(revision(&mut link, 2).await.revision, 2);
    group.cancel();
}

#[tokio::test]
async fn a_server_takes_what_members_of_other_versions_say() {
    let bench = Bench::new(2);
    // A later one, and an earlier one.
    for (number, more) in [(0, &UNKNOWN[..]), (1, &[][..])] {
        let with_more = |mut bytes: Vec<u8>| {
            bytes.extend_from_slice(more);
            bytes
        };
        let mut member = Raw::dial(bench.server.local, number).await;
        let enroll = Enroll { version: String::new(), unix_s: 0, ..member.enroll(number) };
        member.ask(1, ENROLL, &with_more(enroll.encode_to_vec())).await;
        let enrolled = member.frame().await;
        assert_eq!((enrolled.call, enrolled.kind()), (1, Kind::Response));
        let desired = member.frame().await;
        assert_eq!(
            (desired.method, Desired::decode(&*desired.body).unwrap().revision),
            (DESIRED, 1)
        );
        member.answer(desired.call, more).await;

        // A method that the server does not know is refused, and nothing else is.
        member.ask(2, 2 << 16 | 99, more).await;
        let refused = member.frame().await;
        assert_eq!((refused.call, refused.kind()), (2, Kind::Error));
        let applied = Applied { revision: 1, ..Applied::default() };
        member.ask(3, APPLIED, &with_more(applied.encode_to_vec())).await;
        assert_eq!(member.frame().await.kind(), Kind::Response);
        let condition =
            rpc::feed::Condition { kind: "MoodGood".into(), ..rpc::feed::Condition::default() };
        let transition = Transition { kind: "mood".into(), ..Transition::default() };
        let status = Status { revision: 1, ready: true, ..Status::default() };
        let mut status = status.encode_to_vec();
        status.extend(inner(4, &with_more(Peers { total: 3, ..Peers::default() }.encode_to_vec())));
        status.extend(inner(5, &with_more(condition.encode_to_vec())));
        status.extend(inner(6, &with_more(transition.encode_to_vec())));
        member.ask(4, STATUS, &with_more(status)).await;
        assert_eq!(member.frame().await.kind(), Kind::Response);

        assert!(matches!(bench.report().await.event, Event::Enrolled { .. }));
        assert_eq!(bench.report().await.event, Event::Applied { revision: 1, epochs: vec![] });
        let Event::Status(status) = bench.report().await.event else { panic!("a status") };
        assert_eq!((status.ready, status.peers.unwrap().total), (true, 3));
        assert_eq!(status.conditions, [condition]);
        assert_eq!(status.transitions, [transition]);
        drop(member);
        assert_eq!(bench.report().await.event, Event::Gone);
    }
}

#[tokio::test]
async fn a_node_says_what_it_passes_over_of_a_later_configuration_and_refuses_what_has_no_stand_in()
{
    if alone_again(0, 1024) {
        return;
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let node = Running::start(&url_text(listener.local_addr().unwrap(), &root()));
    let (mut server, enroll) = Raw::accept_node(&listener).await;
    let keys = NodeKeys {
        sign: SignKey::from_slice(&enroll.sign).unwrap(),
        dh: DhKey::from_slice(&enroll.dh).unwrap(),
    };
    let known = delivered_to(keys, 1);
    let with = |revision, change: &dyn Fn(&mut Value)| {
        let mut sidecar: Value = serde_json::from_str(&known.sidecar).unwrap();
        change(&mut sidecar);
        Desired { revision, sidecar: sidecar.to_string(), ..known.clone() }.encode_to_vec()
    };

    let later = with(1, &|sidecar| {
        sidecar["node"]["mood"] = json!("calm");
        sidecar["transport"] = json!({"punch": "gently"});
    });
    server.ask(1, DESIRED, &later).await;

    let applied = Applied::decode(&*server.asked(APPLIED).await).unwrap();
    assert_eq!((applied.revision, applied.error.as_str()), (1, ""));
    let status = server.status(|status| status.revision == 1).await;
    let known_to_it = |status: &Status| {
        let mut conditions = status.conditions.iter();
        let condition = conditions.find(|condition| condition.kind == "ConfigKnown").unwrap();
        (condition.status, condition.reason.clone(), condition.message.clone())
    };
    let (is_known, reason, message) = known_to_it(&status);
    assert_eq!((is_known, reason.as_str()), (false, "PassedOver"));
    let said = "does not know node.mood, transport.punch \"gently\" of its configuration";
    assert!(message.contains(said), "{message}");
    let page = node.cli("status");
    assert!(page.contains("PassedOver") && page.contains(said), "{page}");
    let findings: Value = serde_json::from_str(&node.cli("doctor -o json")).unwrap();
    let mut findings = findings.as_array().unwrap().iter();
    let finding = findings.find(|finding| finding["check"] == "config").unwrap();
    assert_eq!(finding["level"], "note", "{finding}");
    assert!(finding["remedy"].as_str().unwrap().contains("Upgrade"), "{finding}");

    // Nothing that it knows may stand in for an address.
    server.ask(2, DESIRED, &with(2, &|sidecar| sidecar["node"]["ipv4"] = json!("anycast"))).await;

    let applied = Applied::decode(&*server.asked(APPLIED).await).unwrap();
    assert_eq!(applied.revision, 2);
    assert!(applied.error.contains("node.ipv4"), "{}", applied.error);
    let page: Value = serde_json::from_str(&node.cli("status -o json")).unwrap();
    assert_eq!(page["config"]["revision"], 1);

    server.ask(3, DESIRED, &with(3, &|_| {})).await;

    let status = server.status(|status| status.revision == 3).await;
    assert!(known_to_it(&status).0);
    let log = node.log();
    let warned = log.lines().filter(|line| line.contains("of a later version")).count();
    assert_eq!(warned, 1, "{log}");
}

#[tokio::test]
async fn a_member_whose_clock_is_off_is_reported_with_how_far() {
    let bench = Bench::new(1);
    for (off, told) in [(-3600, true), (0, false), (90, true)] {
        let mut member = Raw::dial(bench.server.local, 0).await;
        let unix_s = unix().saturating_add_signed(off);
        let enroll = Enroll { unix_s, ..member.enroll(0) };
        member.ask(1, ENROLL, &enroll.encode_to_vec()).await;
        member.frame().await;
        assert!(matches!(bench.report().await.event, Event::Enrolled { .. }));
        if told {
            let Event::Clock { ahead_s } = bench.report().await.event else { panic!("a clock") };
            // Both clocks count whole seconds.
            assert!(ahead_s.abs_diff(off) <= 1, "{ahead_s} {off}");
        }
        drop(member);
        assert_eq!(bench.report().await.event, Event::Gone);
    }
}

/// What no version knows: a varint, eight bytes and a text under numbers that are nobody's.
const UNKNOWN: [u8; 19] =
    [0xf0, 0x07, 0x2a, 0xe9, 0x07, 1, 2, 3, 4, 5, 6, 7, 8, 0xfa, 0x07, 3, 1, 2, 3];

/// A message as a later version might send it.
fn later(message: &impl Message) -> Vec<u8> {
    let mut bytes = message.encode_to_vec();
    bytes.extend_from_slice(&UNKNOWN);
    bytes
}

/// A message within another one, under a number below 16.
fn inner(number: u8, message: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    prost::encoding::encode_varint(message.len() as u64, &mut bytes);
    bytes.extend_from_slice(message);
    bytes
}

/// What the real server would deliver to a member of the table.
fn delivered(number: usize) -> Desired {
    delivered_to(identity(number).keys(), number)
}

/// The same to whoever has these keys.
fn delivered_to(keys: NodeKeys, number: usize) -> Desired {
    let mut holder = Holder::new(keys);
    match holder.next(&table(number + 1, 1), NETWORK, &key(number), unix()) {
        Next::Send(desired) => *desired,
        other @ (Next::Nothing | Next::Unknown | Next::Retire) => panic!("{other:?}"),
    }
}

/// One end of a session, byte by byte.
struct Raw {
    stream: tokio::net::TcpStream,
    feed: Feed,
}

impl Raw {
    /// The server's end of the session of a real member.
    async fn accept_member(number: usize) -> (Self, Link, TaskGroup) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let group = TaskGroup::new("member");
        let parts = Parts {
            url: url(listener.local_addr().unwrap(), &root()),
            token_file: None,
            identity: identity(number),
            aead: wire::control::AEAD_CHACHA,
            revision: 0,
        };
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let link = feed::spawn(parts, resolver, &group);
        (Self::accept(&listener).await, link, group)
    }

    /// The server's end of the session of a real node, and who that says it is.
    async fn accept_node(listener: &tokio::net::TcpListener) -> (Self, Enroll) {
        let mut raw = Self::accept(listener).await;
        let asked = raw.frame().await;
        assert_eq!(asked.method, ENROLL);
        let enrolled = Enrolled { member: "node-1".into(), unix_s: unix(), ..Enrolled::default() };
        raw.answer(asked.call, &enrolled.encode_to_vec()).await;
        (raw, Enroll::decode(&*asked.body).unwrap())
    }

    async fn accept(listener: &tokio::net::TcpListener) -> Self {
        let accepted = tokio::time::timeout(WITHIN, listener.accept()).await;
        let (stream, _) = accepted.expect("a member dials").unwrap();
        let mut rng = ChaCha12Rng::from_seed([9; 32]);
        let server = session::feed::Server::new(&root(), wire::control::AEAD_CHACHA, &mut rng);
        let feed = Feed::accept(Arc::new(server), [5; 32], Instant::now());
        let mut raw = Self { stream, feed };
        raw.establish().await;
        raw
    }

    /// A member's end of a session with a real server.
    async fn dial(server: SocketAddr, number: usize) -> Self {
        let stream = tokio::net::TcpStream::connect(server).await.unwrap();
        let aead = wire::control::AEAD_CHACHA;
        let feed = Feed::dial(identity(number), root().key(), aead, [6; 32], Instant::now());
        let mut raw = Self { stream, feed };
        raw.establish().await;
        raw
    }

    /// What this member proves who it is by.
    fn enroll(&self, number: usize) -> Enroll {
        let (keys, exporter) = (identity(number).keys(), self.feed.exporter().unwrap());
        Enroll {
            token: format!("token-{number}"),
            sign: keys.sign.0.to_vec(),
            dh: keys.dh.0.to_vec(),
            signature: identity(number).sign(ENROLL_CONTEXT, exporter).to_vec(),
            network: NETWORK.to_owned(),
            ..Enroll::default()
        }
    }

    async fn establish(&mut self) {
        while self.feed.exporter().is_none() {
            self.read().await;
        }
        self.flush().await;
    }

    async fn flush(&mut self) {
        self.stream.write_all(self.feed.unsent()).await.unwrap();
        let count = self.feed.unsent().len();
        self.feed.handle_sent(count);
    }

    async fn read(&mut self) {
        self.flush().await;
        let mut buffer = [0; 4096];
        let read = tokio::time::timeout(WITHIN, self.stream.read(&mut buffer)).await;
        let count = read.expect("the other side says something").unwrap();
        assert!(count > 0, "the other side ended the session");
        self.feed.handle_bytes(&buffer[..count], Instant::now()).unwrap();
    }

    /// The next frame that comes.
    async fn frame(&mut self) -> Frame {
        loop {
            if let Some(frame) = frame::take(self.feed.received()).unwrap() {
                return frame;
            }
            self.read().await;
        }
    }

    async fn send(&mut self, frame: &Frame) {
        self.feed.send(&frame.to_stream(), Instant::now());
        self.flush().await;
    }

    /// Sends a frame that is encoded already.
    async fn send_bytes(&mut self, frame: &[u8]) {
        let mut bytes = u32::try_from(frame.len()).unwrap().to_le_bytes().to_vec();
        bytes.extend_from_slice(frame);
        self.feed.send(&bytes, Instant::now());
        self.flush().await;
    }

    async fn ask(&mut self, call: u64, method: u32, body: &[u8]) {
        let kind = Kind::Request as i32;
        self.send(&Frame { call, kind, method, deadline_ms: 10_000, body: body.to_vec() }).await;
    }

    /// What the member asks by `method` next; whatever it asks is answered.
    async fn asked(&mut self, method: u32) -> Vec<u8> {
        loop {
            let frame = self.frame().await;
            if frame.kind() != Kind::Request {
                continue;
            }
            self.answer(frame.call, &[]).await;
            if frame.method == method {
                return frame.body;
            }
        }
    }

    /// The next status of the member that is so.
    async fn status(&mut self, is_so: impl Fn(&Status) -> bool) -> Status {
        loop {
            let status = Status::decode(&*self.asked(STATUS).await).unwrap();
            if is_so(&status) {
                return status;
            }
        }
    }

    async fn answer(&mut self, call: u64, body: &[u8]) {
        for frame in frame::answer(call, body) {
            self.send(&frame).await;
        }
    }
}

/// A real node that a server configures.
struct Running {
    dir: tempfile::TempDir,
    child: Child,
}

impl Running {
    fn start(url: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let own = |name: &str| dir.path().join(name);
        fs::write(own("token"), "token-1").unwrap();
        let log = fs::File::create(own("log")).unwrap();
        let child = Command::new(binary())
            .args(["run", "--config-server", url, "--config-server-token-file"])
            .arg(own("token"))
            .arg("--state-dir")
            .arg(own("state"))
            .arg("--admin")
            .arg(own("admin.sock"))
            .stdin(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { dir, child }
    }

    fn cli(&self, args: &str) -> String {
        let output = Command::new(binary())
            .args(args.split(' '))
            .arg("--admin")
            .arg(self.dir.path().join("admin.sock"))
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
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
