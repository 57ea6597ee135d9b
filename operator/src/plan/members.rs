//! Who is a member, and what each one has: EasyPeer, addresses, exports, configuration.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use ::config::Export;
use crds::{EasyPeer, network as spec, peer::PeerKind};
use data_encoding::BASE32_NOPAD;
use ipnet::IpNet;
use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{LabelSelector, Time},
    jiff::Timestamp,
};
use kube::ResourceExt;
use serde_json::json;
use wire::{
    certificate::Prefix,
    id::{DhKey, NetworkId, NodeId, NodeKeys, SignKey},
    lsa::{Claim, ClusterBody},
};

use super::{
    Desired, Input, LocalRanges, Object, Target, agents, cni,
    config::{self, Common, Own},
    owner, ranges, records, seeds, status,
};
use crate::{
    feed::{Attributes, Member, MemberKey},
    index::{Labels, Node, Pod},
    ipam, names,
};

/// What the last plan made of each member and of what, since of thousands hardly any is another in the next one.
#[derive(Debug, Default)]
pub struct Memo {
    shared: Option<Shared>,
    made: BTreeMap<MemberKey, Made>,
}

/// What goes into all members' objects and configurations.
#[derive(Debug, PartialEq)]
struct Shared {
    /// The EasyNetwork's.
    uid: Option<String>,
    network: NetworkId,
    common: Common,
    protected: Vec<IpNet>,
    exempt: Vec<IpNet>,
}

/// What was made of one member.
#[derive(Debug)]
struct Made {
    recorded: Recorded,
    object: Object,
    /// Once it was told something.
    told: Option<(Own, Member)>,
}

/// What of a member its EasyPeer is made of.
#[derive(Debug, PartialEq)]
struct Recorded {
    keys: Option<NodeKeys>,
    ipv4: Option<Ipv4Addr>,
    exports: Vec<Export>,
    /// The UID of its node, and the name of its pod's node.
    node: Option<String>,
    placed: Option<String>,
}

/// Who is, or shall be, a member.
struct Candidate {
    key: MemberKey,
    peer: String,
    /// Where it runs, if that is known.
    node: Option<Arc<Node>>,
    pod: Option<Arc<Pod>>,
}

/// Plans all members of a network whose spec and keys are in order.
pub(super) fn plan(
    input: &Input<'_>,
    common: &Common,
    network_id: NetworkId,
    memo: &mut Memo,
    desired: &mut Desired,
    findings: &mut status::Findings,
) {
    let name = input.network.name_any();
    let candidates = candidates(input, findings);
    let wanted: BTreeSet<String> =
        candidates.iter().map(|candidate| candidate.peer.clone()).collect();
    let claims = foreign_claims(input, common);
    let records = records(input.world, &name);
    let allocation = ipam::allocate(&ipam::Known {
        range: common.range4,
        cluster: &common.cluster,
        records: &records,
        wanted: &wanted,
        claims: &claims,
        lost: input.lost,
        now: input.now,
    });
    desired.next = allocation.next;
    desired.lost = allocation.lost.iter().map(|(block, (_, seen))| (*block, *seen)).collect();

    let local = LocalRanges::of(input.world, input.facts);
    let foreign = foreign_exports(input, common);
    let shared = Shared::of(input, common, network_id, &local, &foreign);
    let seeds = reachable(input, &name);
    let scene = Scene {
        input,
        shared: &shared,
        allocation: &allocation,
        local: &local,
        hashes: seeds.iter().map(|seed| seed.hash).collect(),
        seeds,
    };
    let mut before = memo.begin(&shared);
    let mut exported: BTreeSet<IpNet> = BTreeSet::new();
    for candidate in &candidates {
        let last = before.remove(&candidate.key);
        let made = scene.make(candidate, last, desired, findings);
        exported.extend(made.recorded.exports.iter().map(Export::announced));
        memo.made.insert(candidate.key.clone(), made);
    }
    memo.shared = Some(shared);

    objects(input, desired);
    departed(input, &wanted, desired);
    desired.claim = claim(common, &allocation, &exported);
    findings.allocated(common, &allocation);
    findings.exported(exported);
    findings.overlaps(common, &local, &foreign);
}

impl Memo {
    /// What was made of members last time, as far as it may hold still.
    fn begin(&mut self, shared: &Shared) -> BTreeMap<MemberKey, Made> {
        let mut before = std::mem::take(&mut self.made);
        match &self.shared {
            Some(last) if last == shared => {}
            // The EasyPeers are what they were.
            Some(last) if last.uid == shared.uid && last.network == shared.network => {
                before.values_mut().for_each(|made| made.told = None);
            }
            Some(_) | None => before.clear(),
        }
        before
    }
}

impl Shared {
    fn of(
        input: &Input<'_>,
        common: &Common,
        network: NetworkId,
        local: &LocalRanges,
        foreign: &BTreeSet<(String, IpNet)>,
    ) -> Self {
        let mesh = [IpNet::from(common.range4), ula(network)];
        let pods = local.pods.iter().copied();
        let exempt = mesh.into_iter().chain(pods).chain(foreign.iter().map(|(_, net)| *net));
        Self {
            uid: input.network.uid(),
            network,
            common: common.clone(),
            protected: local.all().collect(),
            exempt: ranges::summary(exempt),
        }
    }
}

/// What all members of one plan are made from.
struct Scene<'a> {
    input: &'a Input<'a>,
    shared: &'a Shared,
    allocation: &'a ipam::Allocation,
    local: &'a LocalRanges,
    seeds: Vec<Seed>,
    /// Of the seeds.
    hashes: Vec<u64>,
}

impl Scene<'_> {
    /// Makes one member; `last` is what the last plan made of it.
    fn make(
        &self,
        candidate: &Candidate,
        last: Option<Made>,
        desired: &mut Desired,
        findings: &mut status::Findings,
    ) -> Made {
        let known = self.input.world.peers.get(&candidate.peer).map(|peer| &**peer);
        let recorded = Recorded {
            keys: keys_of(self.input, candidate, known, desired),
            ipv4: self.allocation.addresses.get(&candidate.peer).copied(),
            exports: self.exports(candidate, findings),
            node: candidate.node.as_ref().map(|node| node.uid.clone()),
            placed: candidate.pod.as_ref().map(|pod| pod.node.clone()),
        };
        let (object, told) = match last {
            Some(last) if last.recorded == recorded => (last.object, last.told),
            last => (self.object(candidate, &recorded), last.and_then(|last| last.told)),
        };
        desired.objects.push(object.clone());

        // Only what stands in an EasyPeer is told to anybody.
        let address = recorded.ipv4.map(|address| address.to_string());
        let is_recorded = known.is_some_and(|peer| address.is_none() || peer.spec.ipv4 == address);
        if !is_recorded {
            return Made { recorded, object, told };
        }
        let (own, member) = self.tell(candidate, &recorded, told);
        let now = Member { retire: self.input.retire, ..member.clone() };
        desired.members.insert(candidate.key.clone(), now);
        Made { recorded, object, told: Some((own, member)) }
    }

    fn exports(&self, candidate: &Candidate, findings: &mut status::Findings) -> Vec<Export> {
        let (MemberKey::Node(_), Some(node)) = (&candidate.key, &candidate.node) else {
            return Vec::new();
        };
        let services: &[IpNet] = match self.input.network.spec.routing.export_service_cidrs {
            spec::ExportServiceCidrs::Auto => &self.local.services,
            spec::ExportServiceCidrs::None => &[],
        };
        node_exports(self.input, &self.shared.common, node, self.local, services, findings)
    }

    fn object(&self, candidate: &Candidate, recorded: &Recorded) -> Object {
        let network = self.shared.network;
        let ipv6 = recorded.keys.map(|keys| network.address_of(NodeId::of(&keys.sign)));
        let ipv4 = recorded.ipv4.map(IpAddr::V4);
        peer_object(self.input, candidate, recorded.keys, ipv4, ipv6, &recorded.exports, None)
    }

    /// What a member is told, and of what; `told` is what it was told last.
    fn tell(
        &self,
        candidate: &Candidate,
        recorded: &Recorded,
        told: Option<(Own, Member)>,
    ) -> (Own, Member) {
        let common = &self.shared.common;
        let chosen = seeds::choose(seeds::hash(&candidate.peer), &self.hashes).into_iter();
        let own = Own {
            hostname: hostname(candidate, &common.cluster),
            ipv4: recorded.ipv4,
            exports: recorded.exports.clone(),
            seeds: chosen.map(|index| self.seeds[index].url(common.port)).collect(),
            listens: matches!(candidate.key, MemberKey::Node(_)),
        };
        match told {
            Some(told) if told.0 == own => told,
            Some(_) | None => {
                let member = told_to(&own, self.shared);
                (own, member)
            }
        }
    }
}

/// What a member is told.
fn told_to(own: &Own, shared: &Shared) -> Member {
    let sidecar = shared.common.sidecar(own, &shared.protected, &shared.exempt);
    let attributes = Attributes {
        addresses: own.ipv4.map(IpAddr::V4).into_iter().collect(),
        prefixes: own.exports.iter().map(Export::announced).collect(),
        hostname: own.hostname.clone(),
        groups: Vec::new(),
    };
    let revision = revision(&sidecar, &attributes);
    let sidecar = Arc::new(sidecar);
    Member { revision, sidecar, attributes, retire: false, traceparent: String::new() }
}

fn objects(input: &Input<'_>, desired: &mut Desired) {
    let feed =
        input.world.feed_services.get(&format!("{}/{}", input.install.namespace, names::FEED));
    let feed = feed.map(|feed| (**feed).clone()).unwrap_or_default();
    let mode = input.network.spec.members.nodes.mode;
    if mode == spec::NodeMode::None || input.retire {
        desired.obsolete.insert(super::ObjectKey {
            target: Target::DaemonSet,
            namespace: input.install.namespace.clone(),
            name: names::agents(&input.network.name_any()),
        });
        return;
    }
    desired.objects.push(agents::daemon_set(input.network, input.install, &feed));
}

/// EasyPeers of members that are gone: their addresses are held for a while, then they go.
fn departed(input: &Input<'_>, wanted: &BTreeSet<String>, desired: &mut Desired) {
    let name = input.network.name_any();
    for (peer_name, peer) in &input.world.peers {
        if peer.spec.network != name || wanted.contains(peer_name) {
            continue;
        }
        desired.revoked.extend(peer.spec.keys.as_deref().and_then(parse_keys));
        let key = super::ObjectKey {
            target: Target::Peer,
            namespace: String::new(),
            name: peer_name.clone(),
        };
        let until = peer.spec.held_until.as_ref().map(|time| time.0.as_second());
        let until = until.unwrap_or(input.now + i64::try_from(ipam::HOLD.as_secs()).unwrap_or(0));
        if until <= input.now || input.retire || peer.spec.ipv4.is_none() {
            desired.obsolete.insert(key);
            continue;
        }
        desired.next = Some(desired.next.map_or(until, |next| next.min(until)));
        let mut body = peer_body(input, peer_name, &peer.spec.kind);
        body["spec"] = json!(peer.spec);
        body["spec"]["heldUntil"] = json!(Time(Timestamp::from_second(until).unwrap_or_default()));
        desired.objects.push(Object::new(Target::Peer, "", peer_name.clone(), body));
        // A node that is no longer selected still has an agent, which must clean up.
        let member = member_key(peer);
        if let Some(mut last) = last_configuration(input, peer, member.as_ref()) {
            last.retire = true;
            if let Some(member) = member {
                desired.members.insert(member, last);
            }
        }
    }
}

/// What a member that must go is told, if it is still there to be told.
fn last_configuration(
    input: &Input<'_>,
    peer: &EasyPeer,
    member: Option<&MemberKey>,
) -> Option<Member> {
    let MemberKey::Node(node) = member? else { return None };
    if !input.world.nodes.contains_key(node) {
        return None;
    }
    let sidecar = Arc::new(::config::Sidecar::default());
    let address = peer.spec.ipv4.as_ref().and_then(|address| address.parse().ok());
    let attributes = Attributes {
        addresses: address.into_iter().collect(),
        hostname: node.clone(),
        ..Attributes::default()
    };
    let revision = revision(&sidecar, &attributes);
    Some(Member { revision, sidecar, attributes, retire: true, traceparent: String::new() })
}

fn member_key(peer: &EasyPeer) -> Option<MemberKey> {
    let spec = &peer.spec;
    match spec.kind {
        PeerKind::Node => spec.node_ref.as_ref().map(|node| MemberKey::Node(node.name.clone())),
        PeerKind::Pod => spec.pod_ref.as_ref().map(|pod| MemberKey::Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
        }),
        PeerKind::External => spec.external_name.clone().map(MemberKey::External),
    }
}

/// Everybody who shall be a member, in the order of their keys.
fn candidates(input: &Input<'_>, findings: &mut status::Findings) -> Vec<Candidate> {
    let name = input.network.name_any();
    let mut all = Vec::new();
    for node in input.world.nodes.values() {
        if agents::selects(input.network, node) {
            all.push(Candidate {
                key: MemberKey::Node(node.name.clone()),
                peer: names::node_peer(&name, &node.name),
                node: Some(node.clone()),
                pod: None,
            });
        }
    }
    let pods = &input.network.spec.members.pods;
    for pod in input.world.injected.values().filter(|pod| pod.network == name && !pod.ended) {
        let labels = input.world.namespaces.get(&pod.namespace);
        let allowed = pods.mode == spec::PodMode::OptIn
            && pods
                .allowed_namespaces
                .as_ref()
                .is_some_and(|selector| labels.is_some_and(|labels| matches(selector, labels)));
        if !allowed || !pod.injected {
            findings.not_injected(pod, allowed);
            continue;
        }
        all.push(Candidate {
            key: MemberKey::Pod {
                namespace: pod.namespace.clone(),
                name: pod.name.clone(),
                uid: pod.uid.clone(),
            },
            peer: names::pod_peer(&name, &pod.namespace, &pod.name, &pod.uid),
            node: input.world.nodes.get(&pod.node).cloned(),
            pod: Some(pod.clone()),
        });
    }
    all
}

/// Whether a label selector fits some labels.
pub fn matches(selector: &LabelSelector, labels: &Labels) -> bool {
    let equal =
        selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value));
    let expressions = selector.match_expressions.iter().flatten();
    equal
        && expressions.into_iter().all(|expression| {
            let value = labels.get(&expression.key);
            let among = value.is_some_and(|value| {
                expression.values.iter().flatten().any(|listed| listed == value)
            });
            match expression.operator.as_str() {
                "In" => among,
                "NotIn" => !among,
                "Exists" => value.is_some(),
                "DoesNotExist" => value.is_none(),
                _ => false,
            }
        })
}

/// The keys that the member's certificate is for; those before are revoked.
fn keys_of(
    input: &Input<'_>,
    candidate: &Candidate,
    peer: Option<&EasyPeer>,
    desired: &mut Desired,
) -> Option<NodeKeys> {
    let recorded = peer.and_then(|peer| peer.spec.keys.as_deref()).and_then(parse_keys);
    let reported = input.reports.get(&candidate.key).and_then(|reported| reported.keys);
    if let (Some(recorded), Some(reported)) = (recorded, reported)
        && recorded != reported
    {
        desired.revoked.insert(recorded);
    }
    reported.or(recorded)
}

/// `S_pub ‖ D_pub` in lower-case base32.
pub fn format_keys(keys: &NodeKeys) -> String {
    BASE32_NOPAD.encode(&key_bytes(keys)).to_ascii_lowercase()
}

pub fn parse_keys(text: &str) -> Option<NodeKeys> {
    let bytes = BASE32_NOPAD.decode(text.to_ascii_uppercase().as_bytes()).ok()?;
    let (sign, dh) = bytes.split_at_checked(32)?;
    Some(NodeKeys { sign: SignKey::from_slice(sign)?, dh: DhKey::from_slice(dh)? })
}

fn key_bytes(keys: &NodeKeys) -> [u8; 64] {
    let mut bytes = [0; 64];
    bytes[..32].copy_from_slice(&keys.sign.0);
    bytes[32..].copy_from_slice(&keys.dh.0);
    bytes
}

fn node_exports(
    input: &Input<'_>,
    common: &Common,
    node: &Node,
    local: &LocalRanges,
    services: &[IpNet],
    findings: &mut status::Findings,
) -> Vec<Export> {
    let pods = match input.network.spec.routing.export_pod_cidrs {
        spec::ExportPodCidrs::None => Vec::new(),
        spec::ExportPodCidrs::Auto => match cni::pod_ranges(node, input.facts) {
            Ok(ranges) => ranges,
            Err(unclear) => {
                // Ranges that somebody wrote by hand are the answer to this very finding.
                if common.exports.is_empty() {
                    findings.pod_range_unclear(&node.name, &unclear);
                }
                Vec::new()
            }
        },
    };
    common.exports_of(&pods, &local.pods, services)
}

/// A node that others of the cluster can start from.
struct Seed {
    hash: u64,
    address: IpAddr,
    keys: NodeKeys,
}

impl Seed {
    fn url(&self, port: u16) -> ::config::PeerUrl {
        config::seed(self.address, port, key_bytes(&self.keys))
    }
}

fn reachable(input: &Input<'_>, network: &str) -> Vec<Seed> {
    let nodes = input.world.nodes.values().filter(|node| agents::selects(input.network, node));
    let seeds = nodes.filter_map(|node| {
        let peer = names::node_peer(network, &node.name);
        let reported = input.reports.get(&MemberKey::Node(node.name.clone()));
        let recorded = || input.world.peers.get(&peer)?.spec.keys.as_deref().and_then(parse_keys);
        let keys = reported.and_then(|reported| reported.keys).or_else(recorded)?;
        Some(Seed { hash: seeds::hash(&peer), address: *node.internal.first()?, keys })
    });
    seeds.collect()
}

fn hostname(candidate: &Candidate, cluster: &str) -> String {
    let name = match &candidate.key {
        MemberKey::Node(name) | MemberKey::External(name) => name.clone(),
        MemberKey::Pod { namespace, name, .. } => format!("{name}.{namespace}"),
    };
    format!("{name}.{cluster}")
}

fn peer_body(input: &Input<'_>, name: &str, kind: &PeerKind) -> serde_json::Value {
    let component = match kind {
        PeerKind::Node => "node",
        PeerKind::Pod => "pod",
        PeerKind::External => "external",
    };
    json!({
        "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION),
        "kind": "EasyPeer",
        "metadata": {
            "name": name,
            "labels": agents::labels_of(&input.network.name_any(), component),
            "ownerReferences": [owner(input.network)],
        },
    })
}

fn peer_object(
    input: &Input<'_>,
    candidate: &Candidate,
    keys: Option<NodeKeys>,
    ipv4: Option<IpAddr>,
    ipv6: Option<Ipv6Addr>,
    exports: &[Export],
    held_until: Option<Time>,
) -> Object {
    let exports = exports.iter().map(|export| crds::network::Export {
        cidr: export.cidr.to_string().as_str().into(),
        map_to: export.map_to.map(|to| to.to_string().as_str().into()),
    });
    let mut spec = crds::EasyPeerSpec {
        network: input.network.name_any(),
        keys: keys.as_ref().map(format_keys),
        ipv4: ipv4.map(|address| address.to_string()),
        ipv6: ipv6.map(|address| address.to_string()),
        exports: exports.take(ranges::MOST).collect(),
        held_until,
        ..crds::EasyPeerSpec::default()
    };
    match &candidate.key {
        MemberKey::Node(name) => {
            spec.kind = PeerKind::Node;
            spec.node_ref = Some(crds::peer::NodeRef {
                name: name.clone(),
                uid: candidate.node.as_ref().map(|node| node.uid.clone()),
            });
        }
        MemberKey::Pod { namespace, name, uid } => {
            spec.kind = PeerKind::Pod;
            spec.pod_ref = Some(crds::peer::PodRef {
                namespace: namespace.clone(),
                name: name.clone(),
                uid: uid.clone(),
                node_name: candidate
                    .pod
                    .as_ref()
                    .map(|pod| pod.node.clone())
                    .filter(|node| !node.is_empty()),
            });
        }
        MemberKey::External(name) => {
            spec.kind = PeerKind::External;
            spec.external_name = Some(name.clone());
        }
    }
    let mut body = peer_body(input, &candidate.peer, &spec.kind);
    body["spec"] = json!(spec);
    Object::new(Target::Peer, "", candidate.peer.clone(), body)
}

/// What other clusters claim, from the records that members saw; the newest of each cluster is not told apart, so all count.
fn foreign_claims(input: &Input<'_>, common: &Common) -> Vec<ipam::Claim> {
    let mut claims: BTreeMap<(String, ipnet::Ipv4Net), i64> = BTreeMap::new();
    for cluster in foreign_clusters(input, common) {
        for claim in &cluster.blocks {
            let Some((IpAddr::V4(address), length)) = claim.prefix.as_ref().and_then(Prefix::parse)
            else {
                continue;
            };
            let Ok(block) = ipnet::Ipv4Net::new(address, length) else { continue };
            let since = i64::try_from(claim.since).unwrap_or(i64::MAX);
            let entry = claims.entry((cluster.name.clone(), block.trunc())).or_insert(since);
            *entry = since.min(*entry);
        }
    }
    claims
        .into_iter()
        .map(|((cluster, block), since)| ipam::Claim { cluster, block, since })
        .collect()
}

/// What other clusters export, as the mesh sees it.
fn foreign_exports(input: &Input<'_>, common: &Common) -> BTreeSet<(String, IpNet)> {
    let mut exports = BTreeSet::new();
    for cluster in foreign_clusters(input, common) {
        for prefix in &cluster.exports {
            if let Some((address, length)) = prefix.parse()
                && let Ok(net) = IpNet::new(address, length)
            {
                exports.insert((cluster.name.clone(), net.trunc()));
            }
        }
    }
    exports
}

/// The records of the other clusters. Only members that are connected now are asked: an old report may name what is long gone.
fn foreign_clusters<'a>(
    input: &'a Input<'_>,
    common: &'a Common,
) -> impl Iterator<Item = &'a ClusterBody> {
    input
        .reports
        .values()
        .filter(|reported| reported.online)
        .filter_map(|reported| reported.status.as_ref())
        .flat_map(|status| &status.clusters)
        .filter(|cluster| cluster.name != common.cluster)
}

fn claim(
    common: &Common,
    allocation: &ipam::Allocation,
    exported: &BTreeSet<IpNet>,
) -> ClusterBody {
    let blocks =
        allocation.blocks.iter().filter(|(block, _)| !allocation.lost.contains_key(*block)).map(
            |(block, since)| Claim {
                prefix: Some(Prefix::new(block.network().into(), block.prefix_len())),
                since: u64::try_from(*since).unwrap_or_default(),
            },
        );
    let exports = ranges::summary(exported.iter().copied());
    ClusterBody {
        name: common.cluster.clone(),
        blocks: blocks.collect(),
        exports: exports.iter().map(|net| Prefix::new(net.network(), net.prefix_len())).collect(),
    }
}

/// Stands for what a member is told: the same for the same content, whoever says it, so that another operator that takes over has
/// nothing to say. 52 bits, which every JSON parser can count.
fn revision(sidecar: &::config::Sidecar, attributes: &Attributes) -> u64 {
    let text = format!("{attributes:?}");
    (names::hash64(&[&sidecar.to_json(), &text]) >> 12).max(1)
}

fn ula(network: NetworkId) -> IpNet {
    let address = network.ula();
    IpNet::new(IpAddr::V6(address), 48)
        .map_or_else(|_| ranges::host(IpAddr::V6(address)), |net| net.trunc())
}
