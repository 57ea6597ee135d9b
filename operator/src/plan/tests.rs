use std::{cell::RefCell, sync::Arc};

use session::issuer::Issuer;
use wire::id::{DhKey, SignKey};

use super::{status::Reason, *};
use crate::index::{Change, Delta, FeedService, Index, Node, Pod};

const NOW: i64 = 1_800_000_000;

/// A cluster as a test describes it, and what is planned in it.
struct Cluster {
    index: Index,
    network: EasyNetwork,
    credentials: Credentials,
    reports: BTreeMap<MemberKey, Reported>,
    facts: Facts,
    lost: BTreeMap<Ipv4Net, i64>,
    hearing_since: i64,
    retire: bool,
    now: i64,
    memo: RefCell<Memo>,
}

impl Cluster {
    fn new(spec: Value) -> Self {
        let mut cluster = Self {
            index: Index::default(),
            network: network("prod", 100, spec),
            credentials: Credentials::Ready { network: NetworkId([7; 16]) },
            reports: BTreeMap::new(),
            facts: Facts::default(),
            lost: BTreeMap::new(),
            hearing_since: NOW - 1000,
            retire: false,
            now: NOW,
            memo: RefCell::default(),
        };
        let feed = FeedService {
            uid: "feed-uid".to_owned(),
            address: "10.96.0.20".parse().ok(),
            port: 22020,
        };
        cluster.index.apply(Change::FeedServices(Delta::Put(
            "easynet-system/easynet-feed".to_owned(),
            Ok(Arc::new(feed)),
        )));
        let services = vec!["10.96.0.0/12".parse().unwrap()];
        cluster.index.apply(Change::ServiceRanges(Delta::Put(
            "kubernetes".to_owned(),
            Ok(Arc::new(services)),
        )));
        cluster
    }

    fn with_nodes(spec: Value, nodes: &[&str]) -> Self {
        let mut cluster = Self::new(spec);
        for (index, name) in nodes.iter().enumerate() {
            cluster.put_node(node(name, u8::try_from(index).unwrap()));
        }
        cluster
    }

    fn put_node(&mut self, node: Node) {
        self.index.apply(Change::Nodes(Delta::Put(node.name.clone(), Ok(Arc::new(node)))));
    }

    /// What follows, the same whether or not one remembers the last answer.
    fn plan(&self) -> Desired {
        let install = install();
        let input = Input {
            world: self.index.world(),
            network: &self.network,
            install: &install,
            credentials: &self.credentials,
            reports: &self.reports,
            facts: &self.facts,
            lost: &self.lost,
            hearing_since: self.hearing_since,
            retire: self.retire,
            now: self.now,
        };
        let anew = plan(&input, &mut Memo::default());
        let again = plan(&input, &mut self.memo.borrow_mut());
        assert_eq!(anew.objects, again.objects);
        assert_eq!(anew.members, again.members);
        again
    }

    /// The API server took what was planned, statuses included.
    fn settle(&mut self) -> Desired {
        let desired = self.plan();
        for object in &desired.objects {
            if object.key.target != Target::Peer {
                continue;
            }
            let mut peer: crds::EasyPeer =
                serde_json::from_value(Value::clone(&object.body)).unwrap();
            let known = self.index.world().peers.get(&object.key.name);
            let created = known
                .and_then(|known| known.creation_timestamp())
                .unwrap_or_else(|| time(self.now));
            peer.metadata.creation_timestamp = Some(created);
            peer.status = desired.peer_status.get(&object.key.name).cloned();
            self.index
                .apply(Change::Peers(Delta::Put(object.key.name.clone(), Ok(Arc::new(peer)))));
        }
        for key in desired.obsolete.iter().filter(|key| key.target == Target::Peer) {
            self.index.apply(Change::Peers(Delta::Remove(key.name.clone())));
        }
        self.network.status = Some(desired.status.clone());
        self.lost = desired.lost.clone();
        desired
    }

    /// Every member that was told something runs it, and is in the shape that `status` says.
    fn report(&mut self, status: rpc::feed::Status) {
        let desired = self.plan();
        for (index, (key, member)) in desired.members.iter().enumerate() {
            let byte = u8::try_from(index + 1).unwrap();
            let reported = Reported {
                online: true,
                keys: Some(keys(byte)),
                from: "192.0.2.1".parse().ok(),
                version: "0.1.0".to_owned(),
                applied: Some(member.revision),
                status: Some(status.clone()),
                ..Reported::default()
            };
            self.reports.insert(key.clone(), reported);
        }
    }

    /// Two rounds: addresses and keys stand in the EasyPeers, and members run what follows from them.
    fn converge(&mut self) -> Desired {
        for _ in 0..3 {
            self.settle();
            self.report(connected());
        }
        self.settle();
        self.plan()
    }

    fn key(&self, node: &str) -> MemberKey {
        MemberKey::Node(node.to_owned())
    }
}

#[test]
fn objects_of_a_small_cluster() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "fra1"}), &["node-a", "node-b"]);
    cluster.converge();
    let mut shown = String::new();
    for object in cluster.plan().objects {
        shown.push_str(&serde_json::to_string_pretty(&*object.body).unwrap());
        shown.push('\n');
    }
    let install = install();
    let feed = cluster.index.world().feed_services.values().next().unwrap().clone();
    for object in agents::feed_config_map(&install, &feed).into_iter().chain([agents::feed_slice(
        &install,
        &feed,
        "10.244.0.9".parse().unwrap(),
    )]) {
        shown.push_str(&serde_json::to_string_pretty(&*object.body).unwrap());
        shown.push('\n');
    }

    insta::assert_snapshot!(shown);
}

#[test]
fn configuration_and_status_of_a_small_cluster() {
    let spec = json!({
        "clusterName": "fra1",
        "bootstrap": {"peers": ["udp://relay.example.com:11010"]},
        "routing": {"exports": [{"cidr": "10.42.0.0/16", "mapTo": "10.200.0.0/16"}, {"cidr": "192.168.7.0/24"}],
            "exportServiceCIDRs": "Auto"},
        "transport": {"mtu": 1400, "listenPort": 11011, "p2p": "RelayOnly", "punch": "Light"},
    });
    let mut cluster = Cluster::with_nodes(spec, &["node-a", "node-b"]);
    let desired = cluster.converge();
    let mut shown = String::new();
    for (key, member) in &desired.members {
        shown.push_str(&format!("{key:?} {:?}\n", member.attributes));
        let sidecar: Value = serde_json::from_str(&member.sidecar.to_json()).unwrap();
        shown.push_str(&serde_json::to_string_pretty(&sidecar).unwrap());
        shown.push('\n');
    }
    shown.push_str(&serde_json::to_string_pretty(&desired.status).unwrap());
    shown.push('\n');
    shown.push_str(&serde_json::to_string_pretty(&desired.peer_status).unwrap());

    insta::assert_snapshot!(shown);
}

#[test]
fn planning_again_changes_nothing() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y", "z"]);
    let once = cluster.converge();
    cluster.settle();
    let again = cluster.plan();

    assert_eq!(hashes(&once), hashes(&again));
    assert_eq!(once.members, again.members);
    assert_eq!(once.status, again.status);
    assert_eq!(Some(&once.status), cluster.network.status.as_ref());
    assert_eq!(once.peer_status, again.peer_status);
}

#[test]
fn nobody_is_told_an_address_that_does_not_stand_in_an_easypeer() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);

    assert_eq!(cluster.plan().members.len(), 0);
    cluster.settle();
    assert_eq!(cluster.plan().members.len(), 1);
}

#[test]
fn each_node_exports_its_own_part_of_a_map_without_masquerade() {
    let spec = json!({"clusterName": "a",
        "routing": {"exports": [{"cidr": "10.42.0.0/16", "mapTo": "10.200.0.0/16"}]}});
    let mut cluster = Cluster::with_nodes(spec, &["x", "y"]);
    let desired = cluster.converge();

    for (node, own, mapped) in
        [("x", "10.42.0.0/24", "10.200.0.0/24"), ("y", "10.42.1.0/24", "10.200.1.0/24")]
    {
        let member = &desired.members[&cluster.key(node)];
        assert_eq!(member.attributes.prefixes, [mapped.parse::<IpNet>().unwrap()]);
        let export = member.sidecar.exports[0];
        assert_eq!(export.cidr, own.parse::<IpNet>().unwrap());
        assert_eq!(export.map_to, mapped.parse().ok());
        assert_eq!(export.masquerade, ::config::Masquerade::Never);
    }
    assert_eq!(desired.status.exported, ["10.200.0.0/23"]);
}

#[test]
fn members_start_from_each_other_by_address_and_key() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    let desired = cluster.converge();

    let peers = &desired.members[&cluster.key("x")].sidecar.peers;
    assert_eq!(peers.len(), 1);
    assert_eq!((peers[0].host.as_str(), peers[0].port), ("192.0.2.1", 11010));
    assert_eq!(peers[0].keys.map(|keys| keys[0]), Some(2));
}

#[test]
fn ranges_of_the_cluster_itself_are_protected() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.facts.api_servers = vec!["203.0.113.7".parse().unwrap()];
    let desired = cluster.converge();

    let protected = &desired.members[&cluster.key("x")].sidecar.protected;
    for own in ["192.0.2.0/32", "203.0.113.7/32", "10.42.0.0/24", "10.42.1.0/24", "10.96.0.0/12"] {
        let own: IpNet = own.parse().unwrap();
        assert!(protected.iter().any(|range| range.contains(&own)), "{own} in {protected:?}");
    }
}

#[test]
fn the_younger_of_two_networks_on_one_port_is_not_accepted() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    let range = json!({"ipv4CIDR": "100.113.0.0/16"});
    let elder = network("older", 50, json!({"clusterName": "a", "addressing": range}));
    cluster.index.apply(Change::Networks(Delta::Put("older".to_owned(), Ok(Arc::new(elder)))));

    let desired = cluster.plan();

    assert_condition(&desired, "Accepted", "False", Reason::PortConflict);
    assert_condition(&desired, "Ready", "False", Reason::PortConflict);
    assert_condition(&desired, "Stalled", "True", Reason::PortConflict);
    assert_eq!(desired.members.len() + desired.objects.len() + desired.obsolete.len(), 0);
}

#[test]
fn two_networks_with_one_range_of_addresses_do_not_go_together() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    let port = json!({"listenPort": 12000});
    let elder = network("older", 50, json!({"clusterName": "a", "transport": port}));
    cluster.index.apply(Change::Networks(Delta::Put("older".to_owned(), Ok(Arc::new(elder)))));

    assert_condition(&cluster.plan(), "Accepted", "False", Reason::AddressRangeConflict);
}

#[test]
fn a_spec_that_got_past_the_schema_is_refused_with_a_sentence() {
    for (spec, words) in [
        (json!({"clusterName": ""}), "clusterName is empty"),
        (
            json!({"clusterName": "a", "addressing": {"ipv4CIDR": "nonsense"}}),
            "no range of addresses",
        ),
        (
            json!({"clusterName": "a", "addressing": {"ipv4CIDR": "100.112.0.1/16"}}),
            "write 100.112.0.0/16",
        ),
        (
            json!({"clusterName": "a", "addressing": {"ipv4CIDR": "100.112.0.0/30"}}),
            "none from /8 to /24",
        ),
        (json!({"clusterName": "a", "bootstrap": {"peers": ["gopher://x"]}}), "gopher"),
        (
            json!({"clusterName": "a", "routing": {"exports": [{"cidr": "0.0.0.0/0"}]}}),
            "no member accepts",
        ),
        (
            json!({"clusterName": "a", "routing": {"exports": [{"cidr": "169.254.0.0/16"}]}}),
            "no member accepts",
        ),
        (
            json!({"clusterName": "a", "routing": {"exports": [{"cidr": "10.0.0.0/8"}, {"cidr": "10.1.0.0/16"}]}}),
            "overlap",
        ),
        (
            json!({"clusterName": "a", "routing": {"exports": [{"cidr": "10.0.0.0/8", "mapTo": "11.0.0.0/9"}]}}),
            "same",
        ),
        (json!({"clusterName": "a", "transport": {"mtu": 100}}), "mtu"),
        (json!({"clusterName": "a", "transport": {"listenPort": 0}}), "listenPort"),
    ] {
        let desired = Cluster::with_nodes(spec.clone(), &["x"]).plan();

        assert_condition(&desired, "Accepted", "False", Reason::InvalidSpec);
        let message = message(&desired, "Accepted");
        assert!(message.contains(words), "{spec}: {message}");
    }
}

#[test]
fn a_rejected_change_leaves_what_runs_alone() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    let before = cluster.converge();
    cluster.network = network("prod", 100, json!({"clusterName": "a", "transport": {"mtu": 5}}));

    let desired = cluster.plan();

    assert_eq!(desired.objects.len() + desired.obsolete.len(), 0);
    assert_eq!(desired.peer_status, before.peer_status);
}

#[test]
fn keys_that_are_missing_are_made_where_the_network_begins() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    cluster.credentials = Credentials::Absent;
    let absent = cluster.plan();
    let message = "no keys".to_owned();
    cluster.credentials = Credentials::Unusable { reason: Reason::CredentialsMissing, message };
    let missing = cluster.plan();

    assert!(absent.generate && !missing.generate);
    assert_condition(&absent, "ResolvedRefs", "Unknown", Reason::CredentialsPending);
    assert_condition(&missing, "ResolvedRefs", "False", Reason::CredentialsMissing);
    assert_condition(&missing, "Stalled", "True", Reason::CredentialsMissing);
}

#[test]
fn all_conditions_are_set_on_the_first_visit_with_their_generation() {
    let desired = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]).plan();

    let kinds: Vec<&str> =
        desired.status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    assert_eq!(kinds, crds::ConditionType::ALL.map(crds::ConditionType::as_str));
    assert!(desired.status.conditions.iter().all(|condition| {
        condition.observed_generation == Some(3) && !condition.message.is_empty()
    }));
}

#[test]
fn a_network_is_ready_when_its_members_run_it_and_reach_each_other() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    let pending = cluster.plan();
    let ready = cluster.converge();

    assert_condition(&pending, "Programmed", "False", Reason::AgentsPending);
    assert_condition(&pending, "Reconciling", "True", Reason::Progressing);
    assert_condition(&ready, "Programmed", "True", Reason::Programmed);
    assert_condition(&ready, "Connected", "True", Reason::Connected);
    assert_condition(&ready, "Ready", "True", Reason::Ready);
    assert_condition(&ready, "Reconciling", "False", Reason::UpToDate);
    let agents = ready.status.agents.unwrap();
    assert_eq!((agents.desired, agents.updated, agents.ready), (2, 2, 2));
}

#[test]
fn a_single_member_is_alone_and_that_is_well() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    for _ in 0..3 {
        cluster.settle();
        let peers = Some(rpc::feed::Peers::default());
        cluster.report(rpc::feed::Status { ready: true, members: 1, peers, ..connected() });
    }

    let desired = cluster.settle();

    assert_condition(&desired, "Connected", "Unknown", Reason::Alone);
    assert_condition(&desired, "Ready", "True", Reason::Ready);
}

#[test]
fn a_member_that_reaches_nobody_is_named() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    let cut = rpc::feed::Peers { total: 1, unreachable: 1, ..rpc::feed::Peers::default() };
    let key = cluster.key("y");
    let reported = cluster.reports.get_mut(&key).unwrap();
    reported.status.as_mut().unwrap().peers = Some(cut);

    let desired = cluster.plan();

    assert_condition(&desired, "Connected", "False", Reason::MembersUnreachable);
    assert!(message(&desired, "Ready").contains("node y"));
}

#[test]
fn what_is_wrong_with_a_node_names_the_node_and_the_fix() {
    for (kind, expected) in [
        ("TunOpen", Reason::TunMissing),
        ("Listening", Reason::PortTaken),
        ("ForwardingOpen", Reason::HostProblem),
    ] {
        let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
        cluster.converge();
        let condition = |kind: &str, message: &str| rpc::feed::Condition {
            kind: kind.to_owned(),
            status: false,
            reason: "Missing".to_owned(),
            message: message.to_owned(),
        };
        let key = cluster.key("y");
        let reported = cluster.reports.get_mut(&key).unwrap();
        let mut said = vec![condition(kind, "run `modprobe tun`")];
        if expected != Reason::HostProblem {
            // What follows from it, which agents say before it.
            said.insert(0, condition("HostConfigured", "addresses are not in place yet"));
        }
        reported.status.as_mut().unwrap().conditions = said;

        let desired = cluster.plan();

        assert_condition(&desired, "Programmed", "False", expected);
        assert_eq!(message(&desired, "Programmed"), "y: run `modprobe tun`");
    }
}

#[test]
fn members_that_do_not_know_all_of_their_configuration_are_named() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["w", "x", "y", "z"]);
    let ready = cluster.converge().status.conditions;
    let (key, peer) = (cluster.key("y"), names::node_peer("prod", "y"));
    cluster.reports.get_mut(&key).unwrap().status = Some(passes_over());

    let desired = cluster.plan();

    assert_condition(&desired, "Programmed", "True", Reason::AgentsOutdated);
    assert_condition(&desired, "Ready", "True", Reason::AgentsOutdated);
    assert_condition(&desired, "Stalled", "False", Reason::UpToDate);
    let own = env!("CARGO_PKG_VERSION");
    let said = format!(
        "4 of 4 nodes run generation 3, but node y passes over what its version does not know, see ConfigKnown of its \
         EasyPeer: the operator is of version {own}, use one for all"
    );
    assert_eq!(message(&desired, "Programmed"), said);
    assert_eq!(message(&desired, "Ready"), said);
    let shown = &desired.peer_status[&peer].conditions;
    let shown = shown.iter().find(|condition| condition.type_ == "ConfigKnown").unwrap();
    assert_eq!((shown.status.as_str(), shown.reason.as_str()), ("False", "PassedOver"));
    let about = status::About::Network { name: "prod".to_owned(), uid: "1".to_owned() };
    let told = status::transitions(&about, &ready, &desired.status.conditions);
    let told: Vec<_> = told.iter().map(|notice| (notice.reason.as_str(), notice.warning)).collect();
    assert_eq!(told, [("AgentsOutdated", true)]);

    for node in ["w", "x", "y", "z"] {
        let key = cluster.key(node);
        cluster.reports.get_mut(&key).unwrap().status = Some(passes_over());
    }
    let said = message(&cluster.plan(), "Programmed");
    assert!(said.contains("node w, node x, node y and 1 more pass over"), "{said}");

    // Whoever is away says nothing, and what is wrong comes first.
    for reported in cluster.reports.values_mut() {
        reported.online = false;
    }
    let before = cluster.plan();
    assert!(!message(&before, "Programmed").contains("over what"));
    for reported in cluster.reports.values_mut() {
        reported.online = true;
        reported.status.as_mut().unwrap().peers =
            Some(rpc::feed::Peers { total: 3, unreachable: 3, ..rpc::feed::Peers::default() });
    }
    assert_condition(&cluster.plan(), "Ready", "False", Reason::MembersUnreachable);
}

#[test]
fn a_configuration_that_an_agent_could_not_apply_is_shown_with_its_words_and_both_versions() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    let revision = cluster.plan().members[&cluster.key("y")].revision;
    let (key, peer) = (cluster.key("y"), names::node_peer("prod", "y"));
    let error = "line 1, column 99: node.ipv4: \"anycast\" is no IPv4 address";
    let reported = cluster.reports.get_mut(&key).unwrap();
    (reported.applied, reported.failed) = (Some(1), Some((revision, error.to_owned())));
    "0.0.9".clone_into(&mut reported.version);

    let desired = cluster.plan();

    assert_condition(&desired, "Programmed", "False", Reason::AgentFailed);
    assert_condition(&desired, "Ready", "False", Reason::AgentFailed);
    let own = env!("CARGO_PKG_VERSION");
    let said = format!(
        "y: the agent could not apply its configuration: {error}; its version is 0.0.9, the operator's {own}: use one for both"
    );
    assert_eq!(message(&desired, "Programmed"), said);
    let status = &desired.peer_status[&peer];
    assert_eq!(status.applied_error.as_deref(), Some(error));
    assert_eq!(status.applied_revision, Some(1));

    let reported = cluster.reports.get_mut(&key).unwrap();
    own.clone_into(&mut reported.version);
    assert!(message(&cluster.plan(), "Programmed").ends_with(error));
}

#[test]
fn a_clock_that_is_off_is_named_before_what_follows_from_it_and_until_it_is_right() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    let (key, peer) = (cluster.key("y"), names::node_peer("prod", "y"));
    let agrees = |status, reason: &str| rpc::feed::Condition {
        kind: "ClockRight".to_owned(),
        status,
        reason: reason.to_owned(),
        message: "clocks differ by 61 s".to_owned(),
    };
    let clock = |desired: &Desired| {
        let all = &desired.peer_status[&peer].conditions;
        let clocks: Vec<_> = all.iter().filter(|found| found.type_ == "ClockRight").collect();
        assert_eq!(clocks.len(), 1, "{all:?}");
        (clocks[0].status.clone(), clocks[0].reason.clone(), clocks[0].message.clone())
    };
    for (ahead_s, text) in [
        (-90, "the clock is 90 s behind the operator's; set"),
        (3_600, "the clock is 60 min ahead of the operator's; set"),
        (-86_400, "the clock is 24 h behind the operator's; set"),
        (172_800, "the clock is 2 days ahead of the operator's; set"),
    ] {
        let reported = cluster.reports.get_mut(&key).unwrap();
        reported.ahead_s = ahead_s;
        reported.failed = Some((1, "the certificate is not valid yet".to_owned()));
        reported.status.as_mut().unwrap().conditions = vec![agrees(true, "Agrees")];

        let desired = cluster.plan();

        assert_condition(&desired, "Programmed", "False", Reason::ClockSkew);
        assert_condition(&desired, "Stalled", "True", Reason::ClockSkew);
        assert!(message(&desired, "Ready").starts_with(&format!("y: {text}")), "{text}");
        assert!(message(&desired, "Ready").contains("NTP"));
        let (status, reason, said) = clock(&desired);
        assert_eq!((status.as_str(), reason.as_str()), ("False", "ClockSkew"));
        assert!(said.starts_with(text), "{said}");
    }

    let reported = cluster.reports.get_mut(&key).unwrap();
    (reported.ahead_s, reported.failed) = (0, None);
    let desired = cluster.plan();
    assert_condition(&desired, "Ready", "True", Reason::Ready);
    assert_eq!(clock(&desired).1, "Agrees");

    // What the member itself finds out from its servers.
    let reported = cluster.reports.get_mut(&key).unwrap();
    reported.status.as_mut().unwrap().conditions = vec![agrees(false, "Differs")];
    let desired = cluster.plan();
    assert_condition(&desired, "Programmed", "False", Reason::ClockSkew);
    let said = "y: clocks differ by 61 s; set it, by NTP for example";
    assert_eq!(message(&desired, "Programmed"), said);
}

#[test]
fn an_agent_whose_pod_does_not_run_is_named_with_the_reason() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    cluster.settle();
    let pod = Pod {
        name: "easynet-agent-prod-1".to_owned(),
        network: "prod".to_owned(),
        node: "x".to_owned(),
        trouble: Some(("ErrImagePull".to_owned(), "no such image".to_owned())),
        ..Pod::default()
    };
    cluster.index.apply(Change::Agents(Delta::Put("p".to_owned(), Ok(Arc::new(pod)))));

    let desired = cluster.plan();

    assert_condition(&desired, "Programmed", "False", Reason::AgentNotRunning);
    assert!(message(&desired, "Programmed").contains("ErrImagePull: no such image"));
}

#[test]
fn a_node_without_a_range_of_pods_is_named_until_somebody_writes_one() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    let mut odd = node("odd", 9);
    odd.pod_cidrs.clear();
    cluster.put_node(odd);
    let unclear = cluster.converge();
    cluster.network.spec.routing.exports =
        vec![crds::network::Export { cidr: "172.20.0.0/16".into(), map_to: None }];
    let written = cluster.converge();

    assert_condition(&unclear, "Programmed", "False", Reason::PodRangeUnclear);
    assert!(
        message(&unclear, "Programmed").contains("node odd"),
        "{}",
        message(&unclear, "Programmed")
    );
    assert_condition(&written, "Programmed", "True", Reason::Programmed);
}

#[test]
fn overlapping_pods_of_another_cluster_come_with_the_line_to_add() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    cluster.report(sees_cluster("b", &[], &["10.42.0.0/16"]));

    let desired = cluster.plan();

    assert_condition(&desired, "AddressConflictFree", "False", Reason::RangeOverlap);
    let line = "routing: {exports: [{cidr: 10.42.0.0/16, mapTo: 10.200.0.0/16}]}";
    assert!(message(&desired, "AddressConflictFree").contains(line));
    assert_eq!(desired.status.conflicts[0].remedy.as_deref(), Some(line));
    assert_eq!(desired.status.conflicts[0].with, "b");
    assert_eq!(desired.status.peers.unwrap().clusters, 2);
}

#[test]
fn where_this_cluster_is_mapped_already_the_other_one_is_asked() {
    let spec = json!({"clusterName": "a",
        "routing": {"exports": [{"cidr": "10.42.0.0/16", "mapTo": "10.200.0.0/16"}]}});
    let mut cluster = Cluster::with_nodes(spec, &["x", "y"]);
    cluster.converge();
    cluster.report(sees_cluster("b", &[], &["10.42.0.0/16"]));

    let desired = cluster.plan();

    assert!(message(&desired, "AddressConflictFree").contains("map it in cluster b"));
}

#[test]
fn a_block_that_another_cluster_claimed_first_is_left_after_a_minute() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "z"}), &["x"]);
    cluster.converge();
    let before = address(&cluster, "x");
    let block = format!("{}.0/24", before.rsplit_once('.').unwrap().0);
    cluster.report(sees_cluster("a", &[&block], &[]));
    let warned = cluster.settle();
    cluster.report(sees_cluster("a", &[&block], &[]));
    cluster.now += 61;
    cluster.settle();
    let after = address(&cluster, "x");

    assert_condition(&warned, "AddressConflictFree", "False", Reason::BlockConflict);
    assert_eq!(warned.next, Some(NOW + 60));
    assert!(warned.claim.blocks.is_empty(), "a lost block is not claimed any more");
    assert_ne!(before.rsplit_once('.').unwrap().0, after.rsplit_once('.').unwrap().0);
}

#[test]
fn a_member_without_an_address_says_that_the_range_is_used_up() {
    let spec = json!({"clusterName": "z", "addressing": {"ipv4CIDR": "100.112.5.0/24"}});
    let mut cluster = Cluster::with_nodes(spec, &["x"]);
    cluster.settle();
    cluster.report(sees_cluster("a", &["100.112.5.0/24"], &[]));
    cluster.now += 3600;
    cluster.settle();
    cluster.now += 61;
    cluster.settle();

    let desired = cluster.plan();

    assert_condition(&desired, "AddressConflictFree", "False", Reason::BlockExhausted);
}

#[test]
fn a_node_that_is_gone_keeps_its_address_for_an_hour_and_loses_its_keys_at_once() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    let peer = names::node_peer("prod", "y");
    let before = address(&cluster, "y");
    cluster.index.apply(Change::Nodes(Delta::Remove("y".to_owned())));
    let gone = cluster.settle();
    let held = cluster.index.world().peers[&peer].clone();
    cluster.now += 3599;
    let late = cluster.plan();
    cluster.now += 1;
    let over = cluster.plan();

    assert_eq!(gone.revoked.len(), 1);
    assert!(!gone.members.contains_key(&cluster.key("y")));
    assert_eq!(held.spec.held_until, Some(time(NOW + 3600)));
    assert_eq!(held.spec.ipv4, Some(before));
    assert_eq!(gone.next, Some(NOW + 3600));
    assert!(late.obsolete.is_empty());
    assert!(over.obsolete.iter().any(|key| key.name == peer));
}

#[test]
fn a_node_that_is_no_longer_selected_is_told_to_clean_up() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    cluster.network.spec.members.nodes.mode = crds::network::NodeMode::Selected;
    cluster.network.spec.members.nodes.node_selector =
        BTreeMap::from([("kubernetes.io/hostname".to_owned(), "x".to_owned())]);

    let desired = cluster.plan();

    assert!(desired.members[&cluster.key("y")].retire);
    assert!(!desired.members[&cluster.key("x")].retire);
}

#[test]
fn taints_keep_agents_away_unless_they_are_tolerated() {
    let mut tainted = node("x", 1);
    tainted.taints = vec![crate::index::Taint {
        key: "dedicated".to_owned(),
        value: "db".to_owned(),
        effect: "NoSchedule".to_owned(),
    }];
    let mut fresh = node("y", 2);
    fresh.taints = vec![crate::index::Taint {
        key: "node.kubernetes.io/not-ready".to_owned(),
        value: String::new(),
        effect: "NoExecute".to_owned(),
    }];
    let strict = network("prod", 1, json!({"clusterName": "a"}));
    let tolerant = network(
        "prod",
        1,
        json!({"clusterName": "a",
        "members": {"nodes": {"tolerations": [{"key": "dedicated", "operator": "Exists"}]}}}),
    );

    assert!(!agents::selects(&strict, &tainted));
    assert!(agents::selects(&strict, &fresh));
    assert!(agents::selects(&tolerant, &tainted));
}

#[test]
fn a_pod_is_a_member_if_its_namespace_may_and_it_has_a_sidecar() {
    let spec = json!({"clusterName": "a", "members": {"nodes": {"mode": "None"},
        "pods": {"mode": "OptIn", "allowedNamespaces": {"matchLabels": {"team": "red"}}}}});
    let mut cluster = Cluster::new(spec);
    for (namespace, team) in [("red", "red"), ("blue", "blue")] {
        let labels = BTreeMap::from([("team".to_owned(), team.to_owned())]);
        cluster
            .index
            .apply(Change::Namespaces(Delta::Put(namespace.to_owned(), Ok(Arc::new(labels)))));
        for (name, injected) in [("with", true), ("without", false)] {
            let pod = Pod {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                uid: format!("{namespace}-{name}"),
                network: "prod".to_owned(),
                injected,
                ..Pod::default()
            };
            let key = format!("{namespace}/{name}");
            cluster.index.apply(Change::Injected(Delta::Put(key, Ok(Arc::new(pod)))));
        }
    }
    let events = cluster.settle().events;
    let desired = cluster.plan();

    let members: Vec<&MemberKey> = desired.members.keys().collect();
    assert_eq!(members.len(), 1);
    assert!(
        matches!(members[0], MemberKey::Pod { namespace, name, .. } if namespace == "red" && name == "with")
    );
    assert_eq!(events.len(), 3);
    assert!(events.iter().all(|event| event.reason == "NotInjected" && event.warning));
}

#[test]
fn a_new_leader_believes_what_was_written_until_members_had_time_to_connect() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    let before = cluster.converge();
    cluster.reports.clear();
    cluster.hearing_since = NOW;
    let early = cluster.plan();
    cluster.now += status::HEARING;
    let late = cluster.plan();

    assert_eq!(early.peer_status, before.peer_status);
    assert_condition(&early, "Programmed", "True", Reason::Programmed);
    assert_condition(&early, "Connected", "True", Reason::Connected);
    assert_condition(&early, "Ready", "True", Reason::Ready);
    assert_eq!(early.status.peers, before.status.peers);
    assert_eq!(early.next, Some(NOW + status::HEARING));
    let lost = Some(crds::peer::PeerState::Lost);
    assert!(late.peer_status.values().all(|status| status.state == lost));
    assert_condition(&late, "Programmed", "False", Reason::AgentsPending);
}

#[test]
fn who_passes_over_something_is_known_while_it_comes_back_and_to_a_new_leader() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    let key = cluster.key("y");
    cluster.reports.get_mut(&key).unwrap().status = Some(passes_over());
    cluster.settle();

    cluster.reports.get_mut(&key).unwrap().status = None;
    assert_condition(&cluster.plan(), "Ready", "True", Reason::AgentsOutdated);
    cluster.reports.clear();
    cluster.hearing_since = NOW;
    assert_condition(&cluster.plan(), "Ready", "True", Reason::AgentsOutdated);
}

fn passes_over() -> rpc::feed::Status {
    let condition = rpc::feed::Condition {
        kind: "ConfigKnown".to_owned(),
        status: false,
        reason: "PassedOver".to_owned(),
        message: "This version, 0.0.9, does not know node.mood".to_owned(),
    };
    rpc::feed::Status { conditions: vec![condition], ..connected() }
}

#[test]
fn events_tell_what_changed_and_nothing_on_the_first_visit() {
    let about = status::About::Network { name: "prod".to_owned(), uid: "1".to_owned() };
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    let first = cluster.plan().status.conditions;
    let ready = cluster.converge().status.conditions;
    cluster.report(sees_cluster("b", &[], &["10.42.0.0/16"]));
    let conflict = cluster.plan().status.conditions;

    assert_eq!(status::transitions(&about, &[], &first), []);
    let good = status::transitions(&about, &first, &ready);
    assert_eq!(
        good.iter().map(|notice| (notice.reason.as_str(), notice.warning)).collect::<Vec<_>>(),
        [("Ready", false)]
    );
    let bad = status::transitions(&about, &ready, &conflict);
    assert_eq!(
        bad.iter().map(|notice| (notice.reason.as_str(), notice.warning)).collect::<Vec<_>>(),
        [("RangeOverlap", true)]
    );
    assert_eq!(status::transitions(&about, &conflict, &conflict), []);
}

#[test]
fn taking_down_retires_every_member_and_removes_the_agents() {
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x", "y"]);
    cluster.converge();
    cluster.retire = true;

    let desired = cluster.plan();

    assert!(desired.members.values().all(|member| member.retire));
    assert!(desired.obsolete.iter().any(|key| key.target == Target::DaemonSet));
    assert_condition(&desired, "Reconciling", "True", Reason::Retiring);
}

#[test]
fn two_thousand_nodes_are_planned_in_a_moment() {
    let names: Vec<String> = (0..2000).map(|index| format!("node-{index}")).collect();
    let mut cluster = Cluster::new(json!({"clusterName": "a"}));
    for (index, name) in names.iter().enumerate() {
        let mut node = node(name, 0);
        let [high, low] = u16::try_from(index).unwrap().to_be_bytes();
        node.internal = vec![[192, 168, high, low].into()];
        node.pod_cidrs = vec![format!("10.{}.{low}.0/24", 32 + u16::from(high)).parse().unwrap()];
        cluster.put_node(node);
    }
    cluster.settle();
    let desired = cluster.plan();

    assert_eq!(desired.members.len(), 2000);
    let addresses: BTreeSet<_> =
        desired.members.values().map(|member| member.attributes.addresses.clone()).collect();
    assert_eq!(addresses.len(), 2000);
    // What every node is told does not grow with the cluster.
    let longest = desired.members.values().map(|member| member.sidecar.to_json().len()).max();
    assert!(longest.unwrap() < 8192, "{longest:?}");
}

fn hashes(desired: &Desired) -> Vec<(ObjectKey, u64)> {
    desired.objects.iter().map(|object| (object.key.clone(), object.hash)).collect()
}

fn message(desired: &Desired, kind: &str) -> String {
    let conditions = desired.status.conditions.iter();
    conditions.clone().find(|condition| condition.type_ == kind).unwrap().message.clone()
}

#[track_caller]
fn assert_condition(desired: &Desired, kind: &str, status: &str, reason: Reason) {
    let mut conditions = desired.status.conditions.iter();
    let condition = conditions.find(|condition| condition.type_ == kind).unwrap();
    assert_eq!(
        (condition.status.as_str(), condition.reason.as_str()),
        (status, reason.as_str()),
        "{kind}: {}",
        condition.message
    );
}

fn address(cluster: &Cluster, node: &str) -> String {
    let peer = names::node_peer("prod", node);
    cluster.index.world().peers[&peer].spec.ipv4.clone().unwrap()
}

fn install() -> Install {
    Install {
        collector: None,
        namespace: "easynet-system".to_owned(),
        image: "easynet:dev".to_owned(),
        pull_policy: "IfNotPresent".to_owned(),
        feed_root: "aaaa".to_owned(),
        feed_port: 22020,
    }
}

fn network(name: &str, created: i64, spec: Value) -> EasyNetwork {
    let mut network: EasyNetwork = serde_json::from_value(json!({
        "apiVersion": "easynet.io/v1alpha1",
        "kind": "EasyNetwork",
        "metadata": {"name": name, "uid": format!("{name}-uid"), "generation": 3},
        "spec": spec,
    }))
    .unwrap();
    network.metadata.creation_timestamp = Some(time(created));
    network
}

fn node(name: &str, index: u8) -> Node {
    Node {
        name: name.to_owned(),
        uid: format!("{name}-uid"),
        ready: true,
        labels: BTreeMap::from([("kubernetes.io/hostname".to_owned(), name.to_owned())]),
        internal: vec![[192, 0, 2, index].into()],
        pod_cidrs: vec![format!("10.42.{index}.0/24").parse().unwrap()],
        ..Node::default()
    }
}

fn keys(byte: u8) -> NodeKeys {
    NodeKeys { sign: SignKey([byte; 32]), dh: DhKey([byte; 32]) }
}

fn connected() -> rpc::feed::Status {
    rpc::feed::Status {
        ready: true,
        members: 2,
        peers: Some(rpc::feed::Peers { total: 1, direct: 1, ..rpc::feed::Peers::default() }),
        ports: vec![11010],
        ..rpc::feed::Status::default()
    }
}

fn sees_cluster(name: &str, blocks: &[&str], exports: &[&str]) -> rpc::feed::Status {
    let prefix = |text: &&str| {
        let net: IpNet = text.parse().unwrap();
        wire::certificate::Prefix::new(net.network(), net.prefix_len())
    };
    let body = wire::lsa::ClusterBody {
        name: name.to_owned(),
        blocks: blocks
            .iter()
            .map(|block| wire::lsa::Claim { prefix: Some(prefix(block)), since: 5 })
            .collect(),
        exports: exports.iter().map(prefix).collect(),
    };
    rpc::feed::Status { clusters: vec![body], ..connected() }
}

fn time(unix: i64) -> k8s_openapi::apimachinery::pkg::apis::meta::v1::Time {
    k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
        k8s_openapi::jiff::Timestamp::from_second(unix).unwrap(),
    )
}

#[test]
fn a_revision_stands_for_the_content_alone() {
    let issuer = Issuer::generate(
        &mut <rand_chacha::ChaCha12Rng as rand_chacha::rand_core::SeedableRng>::from_seed([1; 32]),
    );
    let mut cluster = Cluster::with_nodes(json!({"clusterName": "a"}), &["x"]);
    cluster.credentials = Credentials::Ready { network: issuer.network() };
    let before = cluster.converge().members[&cluster.key("x")].revision;
    cluster.now += 10;
    let same = cluster.converge().members[&cluster.key("x")].revision;
    cluster.network.spec.transport.mtu = crds::Mtu::Bytes(1400);
    let other = cluster.converge().members[&cluster.key("x")].revision;

    assert_eq!(before, same);
    assert_ne!(before, other);
    assert!(before < 1 << 53);
}
