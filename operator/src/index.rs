//! What the operator knows of the cluster: one value, built from what the watches say.
//!
//! [`Index`] takes one [`Change`] after another and has no other inputs; [`World`] is what it says at a moment, cheap to hand on. Of
//! each object only what is needed is kept. One that does not parse takes the place of its former self in
//! [`World::malformed`], and all others go on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use crds::{EasyNetwork, EasyPeer};
use ipnet::IpNet;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        core::v1::{
            ConfigMap, Namespace, Node as ApiNode, Pod as ApiPod, Secret as ApiSecret, Service,
        },
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Serialize;
use zeroize::Zeroizing;

use crate::names;

/// An object, or why it is none.
pub type Read<T> = Result<Arc<T>, Malformed>;
/// Objects by name, or `namespace/name` where there are several namespaces.
pub type Objects<T> = BTreeMap<String, Arc<T>>;

/// An object that does not parse.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    pub error: String,
    pub uid: String,
    pub generation: Option<i64>,
}

/// What a watch said about one kind.
#[derive(Clone, Debug)]
pub enum Delta<T> {
    /// These are all there are.
    Reset(Vec<(String, Read<T>)>),
    Put(String, Read<T>),
    Remove(String),
}

/// One piece of news.
#[derive(Clone, Debug)]
pub enum Change {
    Networks(Delta<EasyNetwork>),
    Peers(Delta<EasyPeer>),
    Nodes(Delta<Node>),
    Agents(Delta<Pod>),
    Injected(Delta<Pod>),
    Namespaces(Delta<Labels>),
    Secrets(Delta<Secret>),
    ServiceRanges(Delta<Vec<IpNet>>),
    FeedServices(Delta<FeedService>),
    DaemonSets(Delta<Live>),
    ConfigMaps(Delta<Live>),
    Slices(Delta<Live>),
}

/// Labels of an object.
pub type Labels = BTreeMap<String, String>;

/// A node of the cluster, as far as the mesh goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub uid: String,
    /// Unix seconds.
    pub created: i64,
    pub ready: bool,
    /// Whether it is about to go: pods are not placed there.
    pub unschedulable: bool,
    pub labels: Labels,
    /// Key and effect of each taint.
    pub taints: Vec<Taint>,
    pub internal: Vec<IpAddr>,
    pub pod_cidrs: Vec<IpNet>,
    /// Those that CNIs write, [`NODE_ANNOTATIONS`].
    pub annotations: Labels,
    /// Why the network of the node is (not) there, in the words of the CNI.
    pub network_reason: String,
    /// The cloud: `aws` of `aws:///…`.
    pub provider: String,
}

/// What keeps pods away from a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Taint {
    pub key: String,
    pub value: String,
    pub effect: String,
}

/// Annotations of nodes in which CNIs say what is theirs.
pub const NODE_ANNOTATIONS: [&str; 6] = [
    "k8s.ovn.org/node-subnets",
    "network.cilium.io/ipv4-pod-cidr",
    "network.cilium.io/ipv6-pod-cidr",
    "io.cilium.network.ipv4-pod-cidr",
    "projectcalico.org/IPv4Address",
    "flannel.alpha.coreos.com/backend-type",
];

/// A pod of an agent, or one that wants a sidecar.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// Unix seconds.
    pub created: i64,
    /// The EasyNetwork that its label names.
    pub network: String,
    pub node: String,
    /// The DaemonSet that controls it; empty is none.
    pub daemon_set: String,
    pub ready: bool,
    /// It will not run again.
    pub ended: bool,
    /// Being deleted.
    pub leaving: bool,
    /// Whether it has our sidecar.
    pub injected: bool,
    /// Why a container of it does not run, if one does not: reason and message.
    pub trouble: Option<(String, String)>,
}

/// A Secret of our namespace.
#[derive(Clone)]
pub struct Secret {
    pub version: String,
    pub data: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// The Service under which sidecars find the feed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeedService {
    pub uid: String,
    pub address: Option<IpAddr>,
    pub port: u16,
}

/// An object that we applied, as it is now.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Live {
    pub uid: String,
    pub version: String,
    /// Absent for kinds that do not count.
    pub generation: Option<i64>,
    pub labels: Labels,
    /// All of it.
    pub object: serde_json::Value,
}

/// The cluster at one moment.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub networks: Objects<EasyNetwork>,
    pub peers: Objects<EasyPeer>,
    pub nodes: Objects<Node>,
    /// By name; they are all in our namespace.
    pub agents: Objects<Pod>,
    pub injected: Objects<Pod>,
    pub namespaces: Objects<Labels>,
    pub secrets: Objects<Secret>,
    pub service_ranges: Objects<Vec<IpNet>>,
    pub feed_services: Objects<FeedService>,
    pub daemon_sets: Objects<Live>,
    pub config_maps: Objects<Live>,
    pub slices: Objects<Live>,
    /// By kind and name.
    pub malformed: BTreeMap<(&'static str, String), Malformed>,
    synced: BTreeSet<&'static str>,
}

/// Kinds that the index follows.
pub const KINDS: [&str; 12] = [
    "EasyNetwork",
    "EasyPeer",
    "Node",
    "agent Pod",
    "injected Pod",
    "Namespace",
    "Secret",
    "ServiceCIDR",
    "feed Service",
    "DaemonSet",
    "ConfigMap",
    "EndpointSlice",
];

impl World {
    /// Whether every kind was listed once. Before that nobody may conclude that something is gone.
    pub fn is_synced(&self) -> bool {
        self.unsynced().is_empty()
    }

    /// Kinds that were not listed yet.
    pub fn unsynced(&self) -> Vec<&'static str> {
        KINDS.into_iter().filter(|kind| !self.synced.contains(kind)).collect()
    }
}

/// Builds the [`World`].
#[derive(Debug, Default)]
pub struct Index {
    world: World,
}

impl Index {
    pub fn world(&self) -> &World {
        &self.world
    }

    /// Takes in what a watch said; `false` if it makes no difference.
    pub fn apply(&mut self, change: Change) -> bool {
        let world = &mut self.world;
        let mut slot = Slot { malformed: &mut world.malformed, synced: &mut world.synced };
        match change {
            Change::Networks(delta) => slot.put("EasyNetwork", &mut world.networks, delta),
            Change::Peers(delta) => slot.put("EasyPeer", &mut world.peers, delta),
            Change::Nodes(delta) => slot.put("Node", &mut world.nodes, delta),
            Change::Agents(delta) => slot.put("agent Pod", &mut world.agents, delta),
            Change::Injected(delta) => slot.put("injected Pod", &mut world.injected, delta),
            Change::Namespaces(delta) => slot.put("Namespace", &mut world.namespaces, delta),
            Change::Secrets(delta) => slot.put("Secret", &mut world.secrets, delta),
            Change::ServiceRanges(delta) => {
                slot.put("ServiceCIDR", &mut world.service_ranges, delta)
            }
            Change::FeedServices(delta) => {
                slot.put("feed Service", &mut world.feed_services, delta)
            }
            Change::DaemonSets(delta) => slot.put("DaemonSet", &mut world.daemon_sets, delta),
            Change::ConfigMaps(delta) => slot.put("ConfigMap", &mut world.config_maps, delta),
            Change::Slices(delta) => slot.put("EndpointSlice", &mut world.slices, delta),
        }
    }
}

struct Slot<'a> {
    malformed: &'a mut BTreeMap<(&'static str, String), Malformed>,
    synced: &'a mut BTreeSet<&'static str>,
}

impl Slot<'_> {
    fn put<T: PartialEq>(
        &mut self,
        kind: &'static str,
        objects: &mut Objects<T>,
        delta: Delta<T>,
    ) -> bool {
        match delta {
            Delta::Reset(all) => {
                let mut changed = self.synced.insert(kind);
                let names: BTreeSet<String> = all.iter().map(|(name, _)| name.clone()).collect();
                let gone: Vec<String> = objects
                    .keys()
                    .chain(self.malformed.keys().filter(|(of, _)| *of == kind).map(|(_, n)| n))
                    .filter(|name| !names.contains(*name))
                    .cloned()
                    .collect();
                for name in gone {
                    changed |= self.remove(kind, objects, &name);
                }
                for (name, read) in all {
                    changed |= self.set(kind, objects, name, read);
                }
                changed
            }
            Delta::Put(name, read) => self.set(kind, objects, name, read),
            Delta::Remove(name) => self.remove(kind, objects, &name),
        }
    }

    fn set<T: PartialEq>(
        &mut self,
        kind: &'static str,
        objects: &mut Objects<T>,
        name: String,
        read: Read<T>,
    ) -> bool {
        match read {
            Ok(object) => {
                let healed = self.malformed.remove(&(kind, name.clone())).is_some();
                let before = objects.insert(name, object.clone());
                healed || before.is_none_or(|before| *before != *object)
            }
            Err(malformed) => {
                // What it was before is no guide to what it should be now.
                let before = objects.remove(&name).is_some();
                let same = self.malformed.insert((kind, name), malformed.clone());
                before || same.is_none_or(|same| same != malformed)
            }
        }
    }

    fn remove<T>(&mut self, kind: &'static str, objects: &mut Objects<T>, name: &str) -> bool {
        let malformed = self.malformed.remove(&(kind, name.to_owned())).is_some();
        objects.remove(name).is_some() || malformed
    }
}

impl Node {
    pub fn take(node: ApiNode) -> Self {
        let status = node.status.unwrap_or_default();
        let spec = node.spec.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let condition = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind);
        let mut pod_cidrs = spec.pod_cidrs.unwrap_or_default();
        if pod_cidrs.is_empty() {
            pod_cidrs.extend(spec.pod_cidr);
        }
        let mut annotations = node.metadata.annotations.clone().unwrap_or_default();
        annotations.retain(|key, _| NODE_ANNOTATIONS.contains(&key.as_str()));
        let internal = status.addresses.unwrap_or_default().into_iter();
        let internal = internal.filter(|address| address.type_ == "InternalIP");
        let taints = spec.taints.unwrap_or_default().into_iter().map(|taint| Taint {
            key: taint.key,
            value: taint.value.unwrap_or_default(),
            effect: taint.effect,
        });
        let provider = spec.provider_id.unwrap_or_default();
        Self {
            name: node.metadata.name.clone().unwrap_or_default(),
            uid: node.metadata.uid.clone().unwrap_or_default(),
            created: created(&node.metadata),
            ready: condition("Ready").is_some_and(|condition| condition.status == "True"),
            unschedulable: spec.unschedulable.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
            taints: taints.collect(),
            internal: internal.filter_map(|address| address.address.parse().ok()).collect(),
            pod_cidrs: pod_cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect(),
            annotations,
            network_reason: condition("NetworkUnavailable")
                .and_then(|condition| condition.reason.clone())
                .unwrap_or_default(),
            provider: provider.split(':').next().unwrap_or_default().to_owned(),
        }
    }
}

impl Pod {
    /// Of an agent.
    pub fn take_agent(pod: ApiPod) -> Self {
        Self::take(pod, names::NETWORK)
    }

    /// Of a pod that wants a sidecar.
    pub fn take_injected(pod: ApiPod) -> Self {
        Self::take(pod, names::INJECT)
    }

    fn take(pod: ApiPod, label: &str) -> Self {
        let spec = pod.spec.unwrap_or_default();
        let status = pod.status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let containers = status.container_statuses.into_iter().flatten();
        let containers = containers.chain(status.init_container_statuses.into_iter().flatten());
        let mut trouble = containers.filter_map(|container| {
            let waiting = container.state?.waiting?;
            let reason = waiting.reason?;
            let starting = ["ContainerCreating", "PodInitializing"].contains(&reason.as_str());
            (!starting).then(|| (reason, waiting.message.unwrap_or_default()))
        });
        let unscheduled = conditions
            .iter()
            .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False")
            .map(|condition| {
                let reason = condition.reason.clone().unwrap_or_default();
                (reason, condition.message.clone().unwrap_or_default())
            });
        let owners = pod.metadata.owner_references.iter().flatten();
        let mut daemon_sets = owners
            .filter(|owner| owner.controller == Some(true) && owner.kind == "DaemonSet")
            .map(|owner| owner.name.clone());
        Self {
            namespace: pod.metadata.namespace.clone().unwrap_or_default(),
            name: pod.metadata.name.clone().unwrap_or_default(),
            daemon_set: daemon_sets.next().unwrap_or_default(),
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            created: created(&pod.metadata),
            network: pod
                .metadata
                .labels
                .as_ref()
                .and_then(|labels| labels.get(label).cloned())
                .unwrap_or_default(),
            // A DaemonSet's pod says where it belongs before it is bound there.
            node: spec.node_name.unwrap_or_default(),
            ready: conditions
                .iter()
                .any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            ended: matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")),
            leaving: pod.metadata.deletion_timestamp.is_some(),
            injected: spec
                .init_containers
                .unwrap_or_default()
                .iter()
                .any(|container| container.name == SIDECAR_CONTAINER),
            trouble: trouble.next_back().or(unscheduled),
        }
    }
}

/// The name of the container in agents' and injected pods.
pub const SIDECAR_CONTAINER: &str = "easynet";

impl Secret {
    pub fn take(secret: ApiSecret) -> Self {
        let data = secret.data.unwrap_or_default().into_iter();
        Self {
            version: secret.metadata.resource_version.unwrap_or_default(),
            data: data.map(|(key, value)| (key, Zeroizing::new(value.0))).collect(),
        }
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Self) -> bool {
        self.version == other.version
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let keys: Vec<_> = self.data.keys().collect();
        f.debug_struct("Secret")
            .field("version", &self.version)
            .field("keys", &keys)
            .finish_non_exhaustive()
    }
}

impl FeedService {
    pub fn take(service: Service) -> Self {
        let spec = service.spec.unwrap_or_default();
        let port = spec.ports.unwrap_or_default().first().map_or(0, |port| port.port);
        Self {
            uid: service.metadata.uid.unwrap_or_default(),
            address: spec.cluster_ip.and_then(|address| address.parse().ok()),
            port: u16::try_from(port).unwrap_or_default(),
        }
    }
}

impl Live {
    pub fn take_daemon_set(object: DaemonSet) -> Self {
        Self::take(&object.metadata, &object)
    }

    pub fn take_config_map(object: ConfigMap) -> Self {
        Self::take(&object.metadata, &object)
    }

    pub fn take_slice(object: EndpointSlice) -> Self {
        Self::take(&object.metadata, &object)
    }

    fn take(meta: &ObjectMeta, object: &impl Serialize) -> Self {
        let mut json = serde_json::to_value(object).unwrap_or_default();
        if let Some(meta) = json.get_mut("metadata").and_then(|meta| meta.as_object_mut()) {
            meta.remove("managedFields");
        }
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            version: meta.resource_version.clone().unwrap_or_default(),
            generation: meta.generation,
            labels: meta.labels.clone().unwrap_or_default(),
            object: json,
        }
    }
}

/// The labels of a Namespace.
pub fn take_namespace(namespace: Namespace) -> Labels {
    namespace.metadata.labels.unwrap_or_default()
}

/// The ranges that a ServiceCIDR gives ClusterIPs out of.
pub fn take_service_ranges(range: ServiceCIDR) -> Vec<IpNet> {
    let cidrs = range.spec.unwrap_or_default().cidrs.unwrap_or_default();
    cidrs.iter().filter_map(|cidr| cidr.parse().ok()).collect()
}

fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
pub(crate) mod tests;
