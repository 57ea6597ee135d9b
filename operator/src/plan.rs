//! What follows from the world: `plan(world, EasyNetwork) -> Desired`.
//!
//! A function of its [`Input`]: no clock, no chance, no I/O, so asking twice gives the same answer, byte for byte, in whatever order
//! the world was learned. The [`Memo`] of the last answer makes the next one cheaper, and no other. What is to be *applied* are
//! [`Object`]s; what the feed delivers are [`feed::Member`]s; what people read is the status. `apply`, `feed` and `status` carry it
//! out and decide nothing.
//!
//! | room | says |
//! |---|---|
//! | [`agents`] | on which nodes agents run, and as what |
//! | [`cni`] | which ranges of pods are a node's own |
//! | [`config`] | how each sidecar is configured |
//! | [`members`] | who is a member, with which EasyPeer, address and exports |
//! | [`ranges`] | arithmetic of address ranges |
//! | [`seeds`] | whom a member starts from |
//! | [`status`] | conditions, counters, and events |

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crds::{EasyNetwork, EasyNetworkStatus, EasyPeerStatus};
use ipnet::{IpNet, Ipv4Net};
use kube::ResourceExt;
use serde_json::{Value, json};
use wire::id::{NetworkId, NodeKeys};

use crate::{
    feed::{self, MemberKey},
    index::World,
    ipam, names,
};

pub mod agents;
pub mod cni;
pub mod config;
pub mod members;
pub mod ranges;
pub mod seeds;
pub mod status;

use cni::Facts;
pub use members::Memo;

/// All that a plan depends on.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    pub world: &'a World,
    pub network: &'a EasyNetwork,
    pub install: &'a Install,
    pub credentials: &'a Credentials,
    /// What the members of this network last said.
    pub reports: &'a BTreeMap<MemberKey, Reported>,
    pub facts: &'a Facts,
    /// Address blocks lost to another cluster, and since when (unix seconds).
    pub lost: &'a BTreeMap<Ipv4Net, i64>,
    /// When this operator began to hear members (unix seconds).
    pub hearing_since: i64,
    /// Everything is to be taken down.
    pub retire: bool,
    /// Unix seconds.
    pub now: i64,
}

/// How this operator was installed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Install {
    /// Where this operator sends its traces; agents send theirs there too.
    pub collector: Option<String>,
    pub namespace: String,
    /// What agents run.
    pub image: String,
    pub pull_policy: String,
    /// The public root of the feed's identity, as in `?k=`.
    pub feed_root: String,
    /// Where the feed listens.
    pub feed_port: u16,
}

/// The network's keys, as far as the plan must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    Ready {
        network: NetworkId,
    },
    /// To be made, since the network begins here.
    Absent,
    /// The reason and the sentence for the condition.
    Unusable {
        reason: status::Reason,
        message: String,
    },
}

/// What a member last said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reported {
    /// It has a session with the feed.
    pub online: bool,
    pub keys: Option<NodeKeys>,
    pub from: Option<IpAddr>,
    pub version: String,
    /// The newest revision in force.
    pub applied: Option<u64>,
    /// A revision that it could not apply, and why.
    pub failed: Option<(u64, String)>,
    pub status: Option<rpc::feed::Status>,
    /// Its clock is so many seconds ahead of the operator's; 0 is close enough.
    pub ahead_s: i64,
    /// It acknowledged that it is no member any more.
    pub retired: bool,
}

/// What is to be.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// To be applied, in this order.
    pub objects: Vec<Object>,
    /// To be deleted.
    pub obsolete: BTreeSet<ObjectKey>,
    pub members: BTreeMap<MemberKey, feed::Member>,
    /// What this cluster claims of the network, for the CLUSTER record.
    pub claim: wire::lsa::ClusterBody,
    /// Credentials are to be made.
    pub generate: bool,
    /// Keys that must lose their membership: of members that are gone or have new keys.
    pub revoked: BTreeSet<NodeKeys>,
    pub lost: BTreeMap<Ipv4Net, i64>,
    pub status: EasyNetworkStatus,
    pub peer_status: BTreeMap<String, EasyPeerStatus>,
    pub events: Vec<status::Notice>,
    /// When the answer may change without anything happening (unix seconds).
    pub next: Option<i64>,
}

/// Why a spec makes no sense: a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable(pub String);

/// The kinds that are applied, in this order: what starts agents goes before what each of thousands has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    ConfigMap,
    EndpointSlice,
    DaemonSet,
    Peer,
}

/// Which object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    pub target: Target,
    /// Empty for what has none.
    pub namespace: String,
    pub name: String,
}

/// An object as it is to be: what is sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    pub key: ObjectKey,
    pub body: Arc<Value>,
    /// Of the body.
    pub hash: u64,
}

impl Object {
    pub fn new(target: Target, namespace: &str, name: String, mut body: Value) -> Self {
        let hash = names::hash64(&[&body.to_string()]);
        // So that another operator, which does not remember having applied it, can see what it was applied from.
        body["metadata"]["annotations"][crate::apply::APPLIED] = json!(format!("{hash:016x}"));
        let key = ObjectKey { target, namespace: namespace.to_owned(), name };
        Self { key, body: Arc::new(body), hash }
    }
}

/// Says what follows from `input`; `memo` is that of the last plan of the same network, or a new one.
pub fn plan(input: &Input<'_>, memo: &mut Memo) -> Desired {
    let mut desired = Desired::default();
    let common = config::Common::read(input.network);
    let rejection = match &common {
        Err(Unusable(sentence)) => Some((status::Reason::InvalidSpec, sentence.clone())),
        Ok(common) => conflict(input, common),
    };
    let mut report = status::Findings::new(rejection);
    match (&common, input.credentials) {
        (Ok(common), Credentials::Ready { network }) if report.is_accepted() => {
            members::plan(input, common, *network, memo, &mut desired, &mut report);
        }
        (Ok(_), Credentials::Absent) if report.is_accepted() => {
            desired.generate = true;
            report.credentials_pending();
            keep_peers(input, &mut desired);
        }
        // What runs goes on as it is: a typing error must not take a network down.
        (Ok(_) | Err(_), _) => keep_peers(input, &mut desired),
    }
    if let Credentials::Unusable { reason, message } = input.credentials {
        report.unresolved(*reason, message.clone());
    }
    status::conclude(input, common.as_ref().ok(), report, &mut desired);
    desired
}

/// The statuses of peers that nobody plans now stay as they are.
fn keep_peers(input: &Input<'_>, desired: &mut Desired) {
    for (name, peer) in &input.world.peers {
        if peer.spec.network == input.network.name_any()
            && let Some(status) = &peer.status
        {
            desired.peer_status.insert(name.clone(), status.clone());
        }
    }
}

/// Whether another EasyNetwork of this cluster was first with what this one needs alone.
fn conflict(input: &Input<'_>, common: &config::Common) -> Option<(status::Reason, String)> {
    let seniority = |network: &EasyNetwork| {
        let created = network.creation_timestamp().map_or(i64::MAX, |time| time.0.as_second());
        (created, network.name_any())
    };
    let own = seniority(input.network);
    let mut elders: Vec<&EasyNetwork> = input
        .world
        .networks
        .values()
        .map(|network| &**network)
        .filter(|other| seniority(other) < own)
        .collect();
    elders.sort_by_key(|other| seniority(other));
    for elder in elders {
        let Ok(theirs) = config::Common::read(elder) else { continue };
        let name = elder.name_any();
        if theirs.port == common.port {
            let message = format!(
                "EasyNetwork {name} has port {} already; write another spec.transport.listenPort",
                common.port
            );
            return Some((status::Reason::PortConflict, message));
        }
        if ranges::overlap(theirs.range4.into(), common.range4.into()) {
            let message = format!(
                "EasyNetwork {name} has the addresses {} already; write another range under spec.addressing.ipv4CIDR",
                theirs.range4
            );
            return Some((status::Reason::AddressRangeConflict, message));
        }
    }
    None
}

/// Makes `network` the owner of an object.
fn owner(network: &EasyNetwork) -> Value {
    json!({
        "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION),
        "kind": "EasyNetwork",
        "name": network.name_any(),
        "uid": network.uid().unwrap_or_default(),
        "controller": true,
        "blockOwnerDeletion": false,
    })
}

/// Ranges of this cluster's own, which nobody else may announce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalRanges {
    pub nodes: Vec<IpNet>,
    pub pods: Vec<IpNet>,
    pub services: Vec<IpNet>,
}

impl LocalRanges {
    pub fn of(world: &World, facts: &Facts) -> Self {
        let addresses =
            world.nodes.values().flat_map(|node| &node.internal).chain(&facts.api_servers);
        let pods = world.nodes.values().flat_map(|node| {
            cni::pod_ranges(node, facts).unwrap_or_else(|_| node.pod_cidrs.clone())
        });
        let services = world.service_ranges.values().flat_map(|ranges| ranges.iter().copied());
        Self {
            nodes: ranges::summary(addresses.map(|address| ranges::host(*address))),
            pods: ranges::summary(pods),
            services: ranges::summary(services),
        }
    }

    pub fn all(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.nodes.iter().chain(&self.pods).chain(&self.services).copied()
    }
}

/// Addresses that members of the network have, from their EasyPeers.
fn records(world: &World, network: &str) -> Vec<ipam::Record> {
    let peers = world.peers.values().filter(|peer| peer.spec.network == network);
    let records = peers.filter_map(|peer| {
        Some(ipam::Record {
            owner: peer.name_any(),
            address: peer.spec.ipv4.as_ref()?.parse().ok()?,
            since: peer.creation_timestamp().map_or(0, |time| time.0.as_second()),
            held_until: peer.spec.held_until.as_ref().map(|time| time.0.as_second()),
        })
    });
    records.collect()
}

#[cfg(test)]
mod tests;
