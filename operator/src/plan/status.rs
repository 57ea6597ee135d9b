//! What people read: conditions with reasons, counters, events.
//!
//! Conditions follow the API conventions: all of them are there from the first visit on, each with the generation it is about; the
//! time of a transition changes with the status alone. Reasons are a closed list ([`Reason`]); a message names the object and what to
//! do. Nothing here changes only because time passes, so a status that is written does not call for the next one.

use std::collections::{BTreeMap, BTreeSet};

use crds::{
    ConditionType, EasyNetworkStatus, EasyPeerStatus,
    network::{AddressesStatus, AgentsStatus, Conflict, PeersStatus},
    peer::PeerState,
};
use ipnet::IpNet;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;
use wire::id::NodeId;

use super::{
    Credentials, Desired, Input, LocalRanges, Reported, agents, cni::Unclear, config::Common,
    ranges,
};
use crate::{
    feed::MemberKey,
    index::{Malformed, Pod},
    ipam, names,
};

/// A new leader hears of members as they connect again; so long it believes what was written last.
pub const HEARING: i64 = 90;
/// What sidecars call the condition of whether they know all of their configuration.
const CONFIG_KNOWN: &str = "ConfigKnown";
/// What they call that of their clocks.
const CLOCK_RIGHT: &str = "ClockRight";
/// Names that a message lists; the rest is a number.
const NAMED: usize = 3;

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident,)*) => {
        /// Why a condition is as it is: the closed list. Scripts and the documentation rely on the names.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)*
        }

        impl Reason {
            /// Every reason, with its documentation.
            pub const ALL: &[(Self, &'static str)] = &[$((Self::$name, concat!($($doc),+)),)*];

            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

reasons! {
    /// The object makes sense.
    Accepted,
    /// The object does not parse: it is from before its schema.
    Malformed,
    /// A field of the spec makes no sense; the message names it.
    InvalidSpec,
    /// An older EasyNetwork of this cluster has the port.
    PortConflict,
    /// An older EasyNetwork of this cluster has an overlapping range of addresses.
    AddressRangeConflict,
    /// Everything referred to is there.
    ResolvedRefs,
    /// The Secret with the network's keys is not there.
    CredentialsMissing,
    /// The Secret holds no keys.
    CredentialsInvalid,
    /// The secret in the Secret can be guessed.
    CredentialsWeak,
    /// The keys are being made.
    CredentialsPending,
    /// The keys are those of another network.
    NetworkIDMismatch,
    /// Every agent runs this generation.
    Programmed,
    /// Agents are on their way.
    AgentsPending,
    /// An agent's pod does not run.
    AgentNotRunning,
    /// An agent could not apply its configuration.
    AgentFailed,
    /// Every agent runs this generation, but for what another version does not know of it.
    AgentsOutdated,
    /// A node has no TUN device.
    TunMissing,
    /// The port is taken on a node.
    PortTaken,
    /// The clock of a node differs from the operator's, or from those of the servers that it knows.
    ClockSkew,
    /// Something is wrong with a node; the message says what.
    HostProblem,
    /// It is not known which range of pods is a node's own.
    PodRangeUnclear,
    /// The Service of the feed has no address.
    FeedMissing,
    /// No node is selected.
    NoNodes,
    /// Members reach each other.
    Connected,
    /// There is only one member.
    Alone,
    /// A member reaches nobody.
    MembersUnreachable,
    /// Nothing is known yet.
    Pending,
    /// No address and no range is used twice.
    NoConflict,
    /// Another cluster has a better claim to a block of addresses.
    BlockConflict,
    /// No address of the range is left.
    BlockExhausted,
    /// A range of this cluster overlaps what another offers.
    RangeOverlap,
    /// Somebody offers what is never taken.
    AnnouncementRefused,
    /// All is well.
    Ready,
    /// Not accepted, hence not tried.
    NotAccepted,
    /// Work is being done.
    Progressing,
    /// There is nothing to do.
    UpToDate,
    /// Everything is being taken down.
    Retiring,
}

/// What planning found; becomes conditions.
#[derive(Debug, Default)]
pub struct Findings {
    rejection: Option<(Reason, String)>,
    unresolved: Option<(Reason, String)>,
    generating: bool,
    unclear: Vec<(String, String)>,
    addresses: AddressesStatus,
    exhausted: BTreeSet<String>,
    lost: Vec<(String, String)>,
    exported: BTreeSet<IpNet>,
    conflicts: Vec<Conflict>,
    notices: Vec<Notice>,
}

/// An Event to be told, once.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Notice {
    pub about: About,
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    Network { name: String, uid: String },
    Pod { namespace: String, name: String, uid: String },
}

impl Findings {
    pub(super) fn new(rejection: Option<(Reason, String)>) -> Self {
        Self { rejection, ..Self::default() }
    }

    pub(super) fn is_accepted(&self) -> bool {
        self.rejection.is_none()
    }

    /// Whether the network is accepted, and its keys are there.
    fn goes_on(&self) -> bool {
        self.is_accepted() && self.unresolved.is_none() && !self.generating
    }

    pub(super) fn credentials_pending(&mut self) {
        self.generating = true;
    }

    pub(super) fn unresolved(&mut self, reason: Reason, message: String) {
        self.unresolved = Some((reason, message));
    }

    pub(super) fn pod_range_unclear(&mut self, node: &str, why: &Unclear) {
        self.unclear.push((node.to_owned(), why.to_string()));
    }

    /// A pod has the label, and no sidecar.
    pub(super) fn not_injected(&mut self, pod: &Pod, allowed: bool) {
        let message = if allowed {
            "the pod has no sidecar: the webhook did not see it. Delete the pod, so that it is made anew".to_owned()
        } else {
            format!(
                "the namespace {} may not have members of EasyNetwork {}: see spec.members.pods there",
                pod.namespace, pod.network
            )
        };
        let (namespace, name, uid) = (pod.namespace.clone(), pod.name.clone(), pod.uid.clone());
        let about = About::Pod { namespace, name, uid };
        let reason = "NotInjected".to_owned();
        self.notices.push(Notice { about, warning: true, reason, message });
    }

    pub(super) fn allocated(&mut self, common: &Common, allocation: &ipam::Allocation) {
        self.addresses = AddressesStatus {
            ipv4_cidr: Some(common.range4.to_string()),
            ipv6_cidr: self.addresses.ipv6_cidr.take(),
            ipv4_blocks: allocation.blocks.keys().map(ToString::to_string).collect(),
            allocated: u32::try_from(allocation.addresses.len()).unwrap_or(u32::MAX),
        };
        self.exhausted = allocation.exhausted.clone();
        for (block, (cluster, _)) in &allocation.lost {
            self.lost.push((block.to_string(), cluster.clone()));
            self.conflicts.push(Conflict {
                cidr: block.to_string(),
                with: cluster.clone(),
                remedy: None,
            });
        }
    }

    pub(super) fn exported(&mut self, exported: BTreeSet<IpNet>) {
        self.exported = exported;
    }

    /// Compares what others offer with this cluster's own ranges, and finds the line that ends each conflict.
    pub(super) fn overlaps(
        &mut self,
        common: &Common,
        local: &LocalRanges,
        foreign: &BTreeSet<(String, IpNet)>,
    ) {
        let mut used: Vec<IpNet> = local.all().collect();
        used.extend(foreign.iter().map(|(_, net)| *net));
        used.extend(common.exports.iter().flat_map(|(net, to)| [Some(*net), *to]).flatten());
        used.push(common.range4.into());
        for (cluster, offered) in foreign {
            let Some(own) = local.all().find(|own| ranges::overlap(*own, *offered)) else {
                continue;
            };
            let is_pods = local.pods.contains(&own);
            let mapped = common.exports.iter().any(|(net, to)| to.is_some() && net.contains(&own));
            let remedy = (is_pods && !mapped).then(|| {
                let whole = cluster_wide(own, local);
                let to = ranges::free_like(whole, &used)?;
                used.push(to);
                Some(format!("routing: {{exports: [{{cidr: {whole}, mapTo: {to}}}]}}"))
            });
            self.conflicts.push(Conflict {
                cidr: offered.to_string(),
                with: cluster.clone(),
                remedy: remedy.flatten(),
            });
        }
    }
}

/// The range of all nodes' pods, guessed from those there are: the /16 around, unless that has something else in it.
fn cluster_wide(own: IpNet, local: &LocalRanges) -> IpNet {
    let length = if own.addr().is_ipv4() { 16 } else { 48 };
    if own.prefix_len() <= length {
        return own;
    }
    let Ok(wide) = IpNet::new(own.addr(), length).map(|net| net.trunc()) else { return own };
    let others = local.nodes.iter().chain(&local.services);
    if others.into_iter().any(|other| ranges::overlap(*other, wide)) { own } else { wide }
}

/// How one condition stands.
struct Verdict {
    status: &'static str,
    reason: Reason,
    message: String,
}

fn verdict(status: &'static str, reason: Reason, message: impl Into<String>) -> Verdict {
    Verdict { status, reason, message: message.into() }
}

/// Writes the statuses.
pub(super) fn conclude(
    input: &Input<'_>,
    common: Option<&Common>,
    findings: Findings,
    desired: &mut Desired,
) {
    let members = Members::of(input, desired);
    for (name, status) in members.statuses(input, common) {
        desired.peer_status.insert(name, status);
    }
    if members.is_hearing {
        let until = input.now + HEARING;
        desired.next = Some(desired.next.map_or(until, |next| next.min(until)));
    }

    let before = input.network.status.as_ref();
    let previous = before.map(|status| status.conditions.as_slice()).unwrap_or_default();
    let verdicts = verdicts(input, &findings, &members);
    let generation = input.network.metadata.generation;
    let conditions = verdicts.into_iter().map(|(kind, verdict)| {
        condition(
            kind.as_str(),
            verdict.status,
            verdict.reason.as_str(),
            verdict.message,
            generation,
            previous,
            input.now,
        )
    });
    let goes_on = findings.goes_on();
    let mut addresses = findings.addresses;
    let network_id = match input.credentials {
        Credentials::Ready { network } => {
            let ula = network.ula();
            addresses.ipv6_cidr =
                IpNet::new(ula.into(), 48).ok().map(|net| net.trunc().to_string());
            Some(network.to_string())
        }
        Credentials::Absent | Credentials::Unusable { .. } => {
            before.and_then(|status| status.network_id.clone())
        }
    };
    let exported = ranges::summary(findings.exported);
    let mut conflicts = findings.conflicts;
    conflicts.sort_by(|a, b| (&a.with, &a.cidr).cmp(&(&b.with, &b.cidr)));
    conflicts.truncate(16);
    desired.status = EasyNetworkStatus {
        network_id,
        observed_generation: generation,
        conditions: conditions.collect(),
        addresses: goes_on.then_some(addresses),
        agents: Some(members.agents),
        peers: members
            .peers()
            .or_else(|| before.and_then(|status| status.peers).filter(|_| input.is_hearing())),
        exported: exported.iter().map(ToString::to_string).collect(),
        conflicts,
    };
    desired.events.extend(findings.notices);
}

/// How each condition stands.
fn verdicts(
    input: &Input<'_>,
    findings: &Findings,
    members: &Members,
) -> [(ConditionType, Verdict); 8] {
    let accepted = match &findings.rejection {
        Some((reason, message)) => verdict("False", *reason, message.clone()),
        None => verdict("True", Reason::Accepted, "the object makes sense"),
    };
    let resolved = match &findings.unresolved {
        Some((reason, message)) => verdict("False", *reason, message.clone()),
        None if findings.generating => {
            verdict("Unknown", Reason::CredentialsPending, "the network's keys are being made")
        }
        None => verdict("True", Reason::ResolvedRefs, "the network's keys are there"),
    };
    let goes_on = findings.goes_on();
    let blocked =
        || verdict("Unknown", Reason::NotAccepted, "the network is not accepted as it is");
    let programmed = if goes_on { programmed(input, findings, members) } else { blocked() };
    let connected = if goes_on { members.connected() } else { blocked() };
    let conflict_free = if goes_on { conflict_free(findings, members) } else { blocked() };
    let ready = summary([&accepted, &resolved, &programmed, &connected, &conflict_free]);
    let stalled = stalled(&accepted, &resolved, &programmed);
    let reconciling = reconciling(input.retire, &programmed, &stalled);
    [
        (ConditionType::Accepted, accepted),
        (ConditionType::ResolvedRefs, resolved),
        (ConditionType::Programmed, programmed),
        (ConditionType::Connected, connected),
        (ConditionType::AddressConflictFree, conflict_free),
        (ConditionType::Ready, ready),
        (ConditionType::Reconciling, reconciling),
        (ConditionType::Stalled, stalled),
    ]
}

/// Whether nothing will change without somebody's help.
fn stalled(accepted: &Verdict, resolved: &Verdict, programmed: &Verdict) -> Verdict {
    let hopeless = [
        Reason::AgentFailed,
        Reason::AgentNotRunning,
        Reason::TunMissing,
        Reason::PortTaken,
        Reason::ClockSkew,
        Reason::HostProblem,
        Reason::PodRangeUnclear,
        Reason::FeedMissing,
    ];
    if accepted.status == "False" {
        verdict("True", accepted.reason, accepted.message.clone())
    } else if resolved.status == "False" {
        verdict("True", resolved.reason, resolved.message.clone())
    } else if hopeless.contains(&programmed.reason) {
        verdict("True", programmed.reason, programmed.message.clone())
    } else {
        verdict("False", Reason::UpToDate, "nobody's help is needed")
    }
}

fn reconciling(retires: bool, programmed: &Verdict, stalled: &Verdict) -> Verdict {
    if retires {
        verdict("True", Reason::Retiring, "everything is being taken down")
    } else if stalled.status == "False" && programmed.status != "True" {
        verdict("True", Reason::Progressing, programmed.message.clone())
    } else {
        verdict("False", Reason::UpToDate, "there is nothing to do")
    }
}

/// What is said of an EasyNetwork that does not parse: its status, and an Event for when the API server takes no status for it.
pub fn malformed(name: &str, malformed: &Malformed, now: i64) -> (EasyNetworkStatus, Notice) {
    let sentence = format!("the object does not parse and is left alone: {}", malformed.error);
    let notice = Notice {
        about: About::Network { name: name.to_owned(), uid: malformed.uid.clone() },
        warning: true,
        reason: Reason::Malformed.as_str().to_owned(),
        message: sentence.clone(),
    };
    let conditions = ConditionType::ALL.into_iter().map(|kind| {
        let (status, reason) = match kind {
            ConditionType::Accepted | ConditionType::Ready => ("False", Reason::Malformed),
            ConditionType::Stalled => ("True", Reason::Malformed),
            ConditionType::Reconciling => ("False", Reason::UpToDate),
            ConditionType::ResolvedRefs
            | ConditionType::Programmed
            | ConditionType::Connected
            | ConditionType::AddressConflictFree => ("Unknown", Reason::NotAccepted),
        };
        condition(
            kind.as_str(),
            status,
            reason.as_str(),
            sentence.clone(),
            malformed.generation,
            &[],
            now,
        )
    });
    let status = EasyNetworkStatus {
        observed_generation: malformed.generation,
        conditions: conditions.collect(),
        ..EasyNetworkStatus::default()
    };
    (status, notice)
}

/// Events for what changed between two statuses of a network.
pub fn transitions(about: &About, before: &[Condition], after: &[Condition]) -> Vec<Notice> {
    let told = [
        ConditionType::Accepted,
        ConditionType::ResolvedRefs,
        ConditionType::AddressConflictFree,
        ConditionType::Ready,
    ];
    let find = |all: &[Condition], kind: ConditionType| {
        all.iter().find(|condition| condition.type_ == kind.as_str()).cloned()
    };
    let changed = told.into_iter().filter_map(|kind| {
        let now = find(after, kind)?;
        let was = find(before, kind);
        let same =
            was.as_ref().is_some_and(|was| was.status == now.status && was.reason == now.reason);
        // That a new network is not ready yet, or has no conflict yet, is no news.
        let expected = was.is_none() && (now.status != "False" || kind == ConditionType::Ready);
        // That agents take up a change is the rule.
        let is_routine = now.reason == Reason::AgentsPending.as_str();
        (!same && !expected && !is_routine && now.status != "Unknown").then(|| Notice {
            about: about.clone(),
            warning: now.status == "False" || now.reason == Reason::AgentsOutdated.as_str(),
            reason: now.reason.clone(),
            message: now.message,
        })
    });
    let mut notices: Vec<Notice> = changed.collect();
    // Ready repeats the first that is wrong.
    notices.dedup_by(|a, b| a.reason == b.reason && a.message == b.message);
    notices
}

fn condition(
    kind: &str,
    status: &str,
    reason: &str,
    message: String,
    generation: Option<i64>,
    previous: &[Condition],
    now: i64,
) -> Condition {
    let before = previous.iter().find(|before| before.type_ == kind && before.status == status);
    Condition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: before.map_or_else(
            || Time(Timestamp::from_second(now).unwrap_or_default()),
            |before| before.last_transition_time.clone(),
        ),
    }
}

/// The first that is not as it should be decides.
fn summary(all: [&Verdict; 5]) -> Verdict {
    let wrong = all.into_iter().find(|verdict| verdict.status == "False");
    let open = || {
        all.into_iter()
            .find(|verdict| verdict.status == "Unknown" && verdict.reason != Reason::Alone)
    };
    let partial = || all.into_iter().find(|verdict| verdict.reason == Reason::AgentsOutdated);
    match (wrong.or_else(open), partial()) {
        (Some(first), _) => verdict("False", first.reason, first.message.clone()),
        (None, Some(partial)) => verdict("True", partial.reason, partial.message.clone()),
        (None, None) => verdict("True", Reason::Ready, "the network does what it was asked to"),
    }
}

fn programmed(input: &Input<'_>, findings: &Findings, members: &Members) -> Verdict {
    let feed =
        input.world.feed_services.get(&format!("{}/{}", input.install.namespace, names::FEED));
    if feed.is_none_or(|feed| agents::feed_address(feed).is_none()) {
        return verdict(
            "False",
            Reason::FeedMissing,
            format!(
                "the Service {} in the namespace {} has no ClusterIP; install the chart again",
                names::FEED,
                input.install.namespace
            ),
        );
    }
    if members.agents.desired == 0 {
        let nobody = "no node is to have an agent";
        return members.outdated(nobody).unwrap_or(verdict("True", Reason::NoNodes, nobody));
    }
    let problems: Vec<&Problem> = members.problems.iter().collect();
    if let Some(first) = problems.first() {
        let same: Vec<String> = problems
            .iter()
            .filter(|problem| problem.reason == first.reason)
            .map(|problem| format!("{}: {}", problem.node, problem.text))
            .collect();
        return verdict("False", first.reason, list(&same, "; "));
    }
    if let Some((node, why)) = findings.unclear.first() {
        let more = findings.unclear.len() - 1;
        let others = if more == 0 { String::new() } else { format!(" (and {more} more nodes)") };
        return verdict("False", Reason::PodRangeUnclear, format!("node {node}{others}: {why}"));
    }
    let generation = input.network.metadata.generation.unwrap_or_default();
    let AgentsStatus { desired, updated, .. } = members.agents;
    let running = format!("{updated} of {desired} nodes run generation {generation}");
    if members.waiting.is_empty() {
        let all = || verdict("True", Reason::Programmed, running.clone());
        return members.outdated(&running).unwrap_or_else(all);
    }
    verdict(
        "False",
        Reason::AgentsPending,
        format!("{running}; waiting for {}", list(&members.waiting, ", ")),
    )
}

fn conflict_free(findings: &Findings, members: &Members) -> Verdict {
    if !findings.exhausted.is_empty() {
        let count = findings.exhausted.len();
        let range = findings.addresses.ipv4_cidr.clone().unwrap_or_default();
        return verdict(
            "False",
            Reason::BlockExhausted,
            format!(
                "{count} members have no address, since every block of {range} is taken; only a new network can have a wider range"
            ),
        );
    }
    if let Some((block, cluster)) = findings.lost.first() {
        return verdict(
            "False",
            Reason::BlockConflict,
            format!(
                "cluster {cluster} claimed {block} first; members of this cluster get other addresses within a minute"
            ),
        );
    }
    if let Some(conflict) = findings.conflicts.first() {
        let Conflict { cidr, with, remedy } = conflict;
        let what = match remedy {
            Some(line) => format!("write here under spec: {line}"),
            None => format!("map it in cluster {with}, with mapTo under spec.routing.exports"),
        };
        return verdict(
            "False",
            Reason::RangeOverlap,
            format!(
                "cluster {with} offers {cidr}, which this cluster uses itself, so neither reaches the other there; {what}"
            ),
        );
    }
    if let Some(sentence) = members.refused.first() {
        let more = members.refused.len() - 1;
        let others = if more == 0 { String::new() } else { format!(" (and {more} more)") };
        return verdict("False", Reason::AnnouncementRefused, format!("{sentence}{others}"));
    }
    verdict("True", Reason::NoConflict, "no address and no range is used twice")
}

struct Problem {
    node: String,
    reason: Reason,
    text: String,
}

/// What members say, taken together.
#[derive(Default)]
struct Members {
    agents: AgentsStatus,
    problems: Vec<Problem>,
    /// Ready nodes whose agent does not run this yet.
    waiting: Vec<String>,
    refused: BTreeSet<String>,
    /// Members of another version, which do not know all of their configuration.
    outdated: Vec<String>,
    reachable: u32,
    unreachable: Vec<String>,
    alone: u32,
    total: u32,
    direct: u32,
    relayed: u32,
    clusters: u32,
    is_hearing: bool,
}

impl Members {
    fn of(input: &Input<'_>, desired: &Desired) -> Self {
        let mut members = Self::default();
        members.look_at_nodes(input, desired);
        members.hear(input);
        members.believe(input);
        members
    }

    /// Whether each node that is to have an agent has one that does what it is told, or why not.
    fn look_at_nodes(&mut self, input: &Input<'_>, desired: &Desired) {
        let name = input.network.name_any();
        let troubles = troubles(input, &name);
        for node in input.world.nodes.values().filter(|node| agents::selects(input.network, node)) {
            let key = MemberKey::Node(node.name.clone());
            let wanted = desired.members.get(&key).map(|member| member.revision);
            let reported = input.reports.get(&key);
            let recorded = input.world.peers.get(&names::node_peer(&name, &node.name));
            let recorded = recorded.and_then(|peer| peer.status.as_ref());
            let (applied, is_ready) = match reported {
                Some(reported) => (reported.applied, is_ready(reported)),
                None if input.is_hearing() => {
                    let believed = recorded.and_then(|status| status.applied_revision);
                    let is_there = |status: &EasyPeerStatus| {
                        matches!(status.state, Some(PeerState::Connected | PeerState::Alone))
                    };
                    (believed.and_then(|it| u64::try_from(it).ok()), recorded.is_some_and(is_there))
                }
                None => (None, false),
            };
            let is_updated = wanted.is_some() && applied == wanted;
            self.agents.desired += 1;
            self.agents.updated += u32::from(is_updated);
            self.agents.ready += u32::from(is_ready);
            let trouble = troubles.get(node.name.as_str()).copied();
            if let Some((reason, text)) = problem(reported, wanted, trouble) {
                self.problems.push(Problem { node: node.name.clone(), reason, text });
            } else if !is_updated && node.ready {
                self.waiting.push(node.name.clone());
            }
        }
        self.problems.sort_by(|a, b| (a.reason, &a.node).cmp(&(b.reason, &b.node)));
    }

    /// What those say who have a session, of themselves and of the mesh.
    fn hear(&mut self, input: &Input<'_>) {
        let mut clusters = BTreeSet::from([input.network.spec.cluster_name.as_str()]);
        for (key, reported) in input.reports {
            let Some(status) = reported.status.as_ref().filter(|_| reported.online) else {
                continue;
            };
            clusters.extend(status.clusters.iter().map(|cluster| cluster.name.as_str()));
            self.refused.extend(status.refused.iter().chain(&status.conflicts).cloned());
            if status.conditions.iter().any(|said| said.kind == CONFIG_KNOWN && !said.status) {
                self.outdated.push(short_name(key));
            }
            match state(reported) {
                PeerState::Connected => self.reachable += 1,
                PeerState::Alone => self.alone += 1,
                PeerState::Disconnected => self.unreachable.push(short_name(key)),
                PeerState::Pending | PeerState::Lost => {}
            }
            let peers = status.peers.unwrap_or_default();
            self.total = self.total.max(status.members).max(peers.total + 1);
            self.direct = self.direct.max(peers.direct);
            self.relayed = self.relayed.max(peers.relayed);
        }
        self.clusters = u32::try_from(clusters.len()).unwrap_or(u32::MAX);
    }

    /// What was written of those who have said nothing yet, to this operator or since they came back.
    fn believe(&mut self, input: &Input<'_>) {
        let name = input.network.name_any();
        for peer in input.world.peers.values().filter(|peer| peer.spec.network == name) {
            let key = member_key(peer);
            let is_due = match input.reports.get(&key) {
                Some(reported) => reported.online && reported.status.is_none(),
                None => input.is_hearing(),
            };
            let Some(status) = peer.status.as_ref().filter(|_| is_due) else { continue };
            self.is_hearing |= input.is_hearing();
            match status.state {
                Some(PeerState::Connected) => self.reachable += 1,
                Some(PeerState::Alone) => self.alone += 1,
                Some(PeerState::Disconnected | PeerState::Pending | PeerState::Lost) | None => {}
            }
            let mut conditions = status.conditions.iter();
            if conditions.any(|said| said.type_ == CONFIG_KNOWN && said.status == "False") {
                self.outdated.push(short_name(&key));
            }
        }
    }

    fn connected(&self) -> Verdict {
        if !self.unreachable.is_empty() {
            let all = list(&self.unreachable, ", ");
            return verdict(
                "False",
                Reason::MembersUnreachable,
                format!("{all} reach nobody; see `easynet doctor` there"),
            );
        }
        if self.reachable > 0 {
            return verdict("True", Reason::Connected, "members reach each other");
        }
        if self.alone > 0 {
            return verdict(
                "Unknown",
                Reason::Alone,
                "there is only one member; nobody else is known",
            );
        }
        verdict("Unknown", Reason::Pending, "no member has said yet whom it reaches")
    }

    /// Of a network that is as it was asked to be, `so`, but for what members do not know of it.
    fn outdated(&self, so: &str) -> Option<Verdict> {
        let own = env!("CARGO_PKG_VERSION");
        let who = list(&self.outdated, ", ");
        let what = match self.outdated.len() {
            0 => return None,
            1 => "passes over what its version does not know, see ConfigKnown of its EasyPeer",
            _ => "pass over what their versions do not know, see ConfigKnown of their EasyPeers",
        };
        let message =
            format!("{so}, but {who} {what}: the operator is of version {own}, use one for all");
        Some(verdict("True", Reason::AgentsOutdated, message))
    }

    fn peers(&self) -> Option<PeersStatus> {
        (self.total > 0).then_some(PeersStatus {
            total: self.total,
            direct: self.direct,
            relayed: self.relayed,
            clusters: self.clusters,
        })
    }

    /// What each EasyPeer says of its member.
    fn statuses(
        &self,
        input: &Input<'_>,
        common: Option<&Common>,
    ) -> Vec<(String, EasyPeerStatus)> {
        let name = input.network.name_any();
        let peers = input.world.peers.iter().filter(|(_, peer)| peer.spec.network == name);
        let statuses = peers.filter_map(|(peer_name, peer)| {
            let before = peer.status.clone().unwrap_or_default();
            let key = member_key(peer);
            let status = match input.reports.get(&key) {
                Some(reported) => peer_status(input, common, peer, reported, &before),
                // Of a member that was never heard of there is nothing to say.
                None if before.state.is_none() => return None,
                None if input.is_hearing() || before.state == Some(PeerState::Pending) => before,
                None => EasyPeerStatus { state: Some(PeerState::Lost), ..before },
            };
            Some((peer_name.clone(), status))
        });
        statuses.collect()
    }
}

/// Whose EasyPeer it is.
fn member_key(peer: &crds::EasyPeer) -> MemberKey {
    match (&peer.spec.node_ref, &peer.spec.pod_ref, &peer.spec.external_name) {
        (Some(node), _, _) => MemberKey::Node(node.name.clone()),
        (_, Some(pod), _) => MemberKey::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        },
        (_, _, external) => MemberKey::External(external.clone().unwrap_or_default()),
    }
}

impl Input<'_> {
    /// Whether members may not have had the time to connect to this operator.
    fn is_hearing(&self) -> bool {
        self.now < self.hearing_since + HEARING
    }
}

fn peer_status(
    input: &Input<'_>,
    common: Option<&Common>,
    peer: &crds::EasyPeer,
    reported: &Reported,
    before: &EasyPeerStatus,
) -> EasyPeerStatus {
    let status = reported.status.as_ref();
    let peers = status.and_then(|status| status.peers);
    let port = status
        .and_then(|status| status.ports.first())
        .and_then(|port| u16::try_from(*port).ok())
        .or(common.map(|common| common.port));
    // What the feed sees of a node may be the address of a bridge for pods.
    let node = peer.spec.node_ref.as_ref().and_then(|node| input.world.nodes.get(&node.name));
    let endpoint = node
        .and_then(|node| node.internal.first().copied())
        .or(reported.from)
        .zip(port)
        .map(|(address, port)| std::net::SocketAddr::new(address, port).to_string());
    let say = |kind: &str, truth: &str, reason: &str, message: String| {
        let generation = peer.metadata.generation;
        condition(kind, truth, reason, message, generation, &before.conditions, input.now)
    };
    let skew = clock_skew(reported).filter(|_| reported.online);
    let conditions: Vec<Condition> = match status {
        Some(status) => status
            .conditions
            .iter()
            .map(|said| {
                let reason = if is_reason(&said.reason) { &said.reason } else { "HostProblem" };
                let truth = if said.status { "True" } else { "False" };
                say(&said.kind, truth, reason, said.message.clone())
            })
            .collect(),
        // It came back, and has said nothing new yet.
        None => before.conditions.clone(),
    };
    let conditions =
        conditions.into_iter().filter(|said| said.type_ != CLOCK_RIGHT || skew.is_none());
    let skewed = skew
        .as_ref()
        .map(|skew| say(CLOCK_RIGHT, "False", Reason::ClockSkew.as_str(), skew.clone()));
    EasyPeerStatus {
        node_id: reported
            .keys
            .map(|keys| NodeId::of(&keys.sign).to_string())
            .or_else(|| before.node_id.clone()),
        applied_revision: reported
            .applied
            .and_then(|revision| i64::try_from(revision).ok())
            .or(before.applied_revision),
        applied_error: reported.failed.as_ref().map(|(_, error)| error.clone()),
        endpoint: endpoint.or_else(|| before.endpoint.clone()),
        state: Some(state(reported)),
        direct: peers.map(|peers| peers.direct),
        relayed: peers.map(|peers| peers.relayed),
        version: Some(reported.version.clone()).filter(|version| !version.is_empty()),
        conditions: conditions.chain(skewed).collect(),
        exported: peer
            .spec
            .exports
            .iter()
            .map(|export| export.map_to.clone().unwrap_or_else(|| export.cidr.clone()))
            .collect(),
    }
}

fn is_ready(reported: &Reported) -> bool {
    reported.online && reported.status.as_ref().is_some_and(|status| status.ready)
}

fn state(reported: &Reported) -> PeerState {
    if !reported.online {
        return PeerState::Lost;
    }
    let Some(status) = &reported.status else { return PeerState::Pending };
    let peers = status.peers.unwrap_or_default();
    if peers.direct + peers.relayed + peers.idle > 0 {
        PeerState::Connected
    } else if peers.total == 0 {
        PeerState::Alone
    } else if peers.connecting > 0 && peers.unreachable == 0 {
        PeerState::Pending
    } else {
        PeerState::Disconnected
    }
}

/// Why pods of agents do not run, reason and message, by node.
fn troubles<'a>(input: &Input<'a>, network: &str) -> BTreeMap<&'a str, &'a (String, String)> {
    let mut troubles = BTreeMap::new();
    for pod in input.world.agents.values().filter(|pod| pod.network == network) {
        if let Some(trouble) = &pod.trouble {
            troubles.entry(pod.node.as_str()).or_insert(trouble);
        }
    }
    troubles
}

/// What keeps a node's agent from running what it should, if anything is known.
fn problem(
    reported: Option<&Reported>,
    revision: Option<u64>,
    trouble: Option<&(String, String)>,
) -> Option<(Reason, String)> {
    if let Some(reported) = reported.filter(|reported| reported.online) {
        // Before what follows from it: certificates are judged by the clock.
        if let Some(skew) = clock_skew(reported) {
            return Some((Reason::ClockSkew, skew));
        }
        if let Some((failed, error)) = &reported.failed
            && Some(*failed) == revision
        {
            let skew = version_skew(&reported.version);
            return Some((
                Reason::AgentFailed,
                format!("the agent could not apply its configuration: {error}{skew}"),
            ));
        }
        let conditions = reported.status.as_ref().map(|status| status.conditions.as_slice());
        let wrong = conditions.unwrap_or_default().iter().filter(|condition| !condition.status);
        let wrong = wrong.filter_map(|said| Some((host_problem(&said.kind)?, said)));
        // The host is not set up without a TUN: what others follow from comes first among reasons.
        let (reason, wrong) = wrong.min_by_key(|(reason, _)| *reason)?;
        let remedy = if reason == Reason::ClockSkew { "; set it, by NTP for example" } else { "" };
        return Some((reason, format!("{}{remedy}", wrong.message)));
    }
    let (reason, message) = trouble?;
    let message = if message.is_empty() { String::new() } else { format!(": {message}") };
    Some((Reason::AgentNotRunning, format!("the agent's pod does not run, {reason}{message}")))
}

/// What may explain that a configuration makes no sense to an agent.
fn version_skew(version: &str) -> String {
    let own = env!("CARGO_PKG_VERSION");
    if version.is_empty() || version == own {
        return String::new();
    }
    format!("; its version is {version}, the operator's {own}: use one for both")
}

/// What is wrong with the clock of a member, if anything is.
fn clock_skew(reported: &Reported) -> Option<String> {
    let apart = match reported.ahead_s.unsigned_abs() {
        0 => return None,
        seconds @ ..120 => format!("{seconds} s"),
        seconds @ ..7_200 => format!("{} min", seconds / 60),
        seconds @ ..172_800 => format!("{} h", seconds / 3_600),
        seconds => format!("{} days", seconds / 86_400),
    };
    let way = if reported.ahead_s > 0 { "ahead of" } else { "behind" };
    Some(format!(
        "the clock is {apart} {way} the operator's; set the one that is wrong, by NTP for example: certificates are judged by it"
    ))
}

/// What a condition of a sidecar that is not true means for the network. Whom it reaches is another matter, and judged elsewhere.
fn host_problem(kind: &str) -> Option<Reason> {
    match kind {
        "TunOpen" => Some(Reason::TunMissing),
        "Listening" => Some(Reason::PortTaken),
        CLOCK_RIGHT => Some(Reason::ClockSkew),
        "HostConfigured" | "SocketsMarked" | "ForwardingOpen" => Some(Reason::HostProblem),
        _ => None,
    }
}

/// The API server takes reasons such as `TunMissing`.
fn is_reason(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|first| first.is_ascii_alphabetic())
        && chars.all(|c| c.is_ascii_alphanumeric() || c == '_')
        && text.len() <= 1024
}

fn short_name(key: &MemberKey) -> String {
    match key {
        MemberKey::Node(name) => format!("node {name}"),
        MemberKey::Pod { namespace, name, .. } => format!("pod {namespace}/{name}"),
        MemberKey::External(name) => name.clone(),
    }
}

/// The first few, and how many more there are.
fn list(all: &[String], separator: &str) -> String {
    let shown = all.iter().take(NAMED).cloned().collect::<Vec<_>>().join(separator);
    match all.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
