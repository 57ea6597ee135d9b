//! EasyNetwork: one mesh, as a platform engineer writes it.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::{ResourceRequirements, Toleration},
    apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::text::{Cidr, Mtu, PeerUrl};

/// The range that members of a network get IPv4 addresses from unless it says another.
pub const DEFAULT_IPV4_CIDR: &str = "100.112.0.0/16";
/// The port of the mesh.
pub const DEFAULT_PORT: u16 = 11010;

/// What the network is and what this cluster brings to it. `clusterName` is all that must be written.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "easynet.io",
    version = "v1alpha1",
    kind = "EasyNetwork",
    plural = "easynetworks",
    shortname = "enet",
    category = "easynet",
    status = "EasyNetworkStatus",
    derive = "PartialEq",
    doc = "One mesh network that this cluster is part of. Every selected node runs an agent that connects it, encrypted and directly where NATs allow, with the nodes of the other clusters, machines and pods of the same network.",
    label("app.kubernetes.io/part-of", "easynet"),
    validation = Rule::new("self.metadata.name.size() <= 40 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("the name of an EasyNetwork is part of other names; write at most 40 lower-case letters, digits and dashes, no dots"),
    printcolumn(name = "Cluster", type_ = "string", json_path = ".spec.clusterName", description = "Name of this cluster in the network"),
    printcolumn(name = "CIDR", type_ = "string", json_path = ".spec.addressing.ipv4CIDR", description = "Range of the members' IPv4 addresses"),
    printcolumn(name = "Agents", type_ = "integer", json_path = ".status.agents.ready", description = "Nodes of this cluster whose agent is ready"),
    printcolumn(name = "Peers", type_ = "integer", json_path = ".status.peers.total", description = "Members of the whole network that are seen from here"),
    printcolumn(name = "Relayed", type_ = "integer", json_path = ".status.peers.relayed", description = "Of these, how many are reached through a relay"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status", description = "Whether the network does what it was asked to"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].reason", description = "Why it is (not) ready"),
    printcolumn(name = "Clusters", type_ = "integer", json_path = ".status.peers.clusters", description = "Clusters in the network", priority = 1),
    printcolumn(name = "Network ID", type_ = "string", json_path = ".status.networkID", description = "What proves that two networks are the same", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].message", description = "The reason in a sentence", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp", description = "Time since it was created"),
)]
#[x_kube(
    validation = Rule::new("self.clusterName == oldSelf.clusterName")
        .message("clusterName is for good, since other clusters know this one by it; delete the EasyNetwork and create it anew")
        .field_path(".clusterName"),
    validation = Rule::new("has(self.networkName) == has(oldSelf.networkName) && (!has(self.networkName) || self.networkName == oldSelf.networkName)")
        .message("networkName is for good; delete the EasyNetwork and create it anew")
        .field_path(".networkName"),
    validation = Rule::new("has(self.networkID) == has(oldSelf.networkID) && (!has(self.networkID) || self.networkID == oldSelf.networkID)")
        .message("networkID is for good; to join another network, delete the EasyNetwork and apply what `easynet-operator join` prints there")
        .field_path(".networkID"),
)]
#[serde(rename_all = "camelCase")]
pub struct EasyNetworkSpec {
    /// Name of this cluster in the network, such as `fra1`. No two clusters of a network may have the same one. It can not be
    /// changed later.
    #[x_kube(validation = Rule::new("self.size() <= 63 && self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message(Message::Expression("'\\'' + self + '\\' can not name a cluster; write at most 63 lower-case letters, digits and dashes, such as fra1'".to_owned())))]
    #[schemars(length(max = 253))]
    pub cluster_name: String,

    /// Name of the network, the same in all its clusters. Default is the name of this object. It can not be changed later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.size() >= 1 && self.size() <= 63 && self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("write the network's name with at most 63 lower-case letters, digits and dashes, or leave it out"))]
    #[schemars(length(max = 253))]
    pub network_name: Option<String>,

    /// The identity of a network that was created in another cluster: set by `easynet-operator join`, which also prints the Secret
    /// that belongs to it. Left out where the network is created. It can not be changed later.
    #[serde(default, rename = "networkID", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z2-7]{26}$')")
        .message("a networkID has 26 letters and digits; take it from what `easynet-operator join` prints in a cluster of the network, or leave it out to create a network"))]
    #[schemars(length(max = 64))]
    pub network_id: Option<String>,

    /// Where the network's keys are. Left out, the operator keeps them in the Secret `easynet-NAME-credentials` of its own
    /// namespace, and makes that unless `networkID` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,

    /// Where members find the first others outside this cluster. One cluster alone needs none.
    #[serde(default)]
    pub bootstrap: Bootstrap,

    /// The members' own addresses.
    #[serde(default)]
    pub addressing: Addressing,

    /// How packets travel between members.
    #[serde(default)]
    pub transport: Transport,

    /// Who of this cluster becomes a member.
    #[serde(default)]
    pub members: Members,

    /// Which ranges this cluster offers to the network, and which it takes from it.
    #[serde(default)]
    pub routing: Routing,

    /// What may be set on the pods of the node agents.
    #[serde(default)]
    pub agent: Agent,
}

/// Where the network's keys are.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Credentials {
    /// A Secret in the operator's namespace.
    pub secret_ref: SecretRef,
}

/// A Secret in the operator's namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// Its name. It holds either what `easynet-operator join` printed (`root`, `epoch`), or one key `secret` with a secret of the
    /// network that machines outside Kubernetes join with; another secret is another network.
    #[x_kube(validation = Rule::new("self.size() <= 253 && self.matches('^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$')")
        .message("write the name of a Secret in the operator's namespace"))]
    #[schemars(length(max = 253))]
    pub name: String,
}

/// Where members find the first others.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Public servers or reachable members of the network: `udp://HOST:PORT?k=KEY` or `tcp://HOST:PORT?k=KEY`. KEY is what `easynet key show`
    /// prints there; without it the first answer is trusted and remembered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 16))]
    pub peers: Vec<PeerUrl>,
}

/// The members' own addresses.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addressing {
    /// Range of the members' IPv4 addresses, the same in all clusters; each cluster claims blocks of 256 addresses in it.
    #[serde(default = "default_ipv4_cidr", rename = "ipv4CIDR")]
    #[x_kube(validation = Rule::new("!isCIDR(self) || (cidr(self).ip().family() == 4 && cidr(self).prefixLength() >= 8 && cidr(self).prefixLength() <= 24)")
        .message("write an IPv4 range from /8 to /24, such as 100.112.0.0/16"))]
    pub ipv4_cidr: Cidr,

    /// Range of the members' IPv6 addresses. Default is the /48 that follows from the network's identity, which no other network
    /// has.
    #[serde(default, rename = "ipv6CIDR", skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!isCIDR(self) || (cidr(self).ip().family() == 6 && cidr(self).prefixLength() >= 16 && cidr(self).prefixLength() <= 64)")
        .message("write an IPv6 range from /16 to /64, or leave it out to use the network's own"))]
    pub ipv6_cidr: Option<Cidr>,
}

impl Default for Addressing {
    fn default() -> Self {
        Self { ipv4_cidr: default_ipv4_cidr(), ipv6_cidr: None }
    }
}

fn default_ipv4_cidr() -> Cidr {
    DEFAULT_IPV4_CIDR.into()
}

/// How packets travel between members.
#[derive(KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Transport {
    /// MTU of the mesh interface: `Auto` (1320, which fits every usual underlay) or a number of bytes from 1280 to 9000.
    #[serde(default)]
    pub mtu: Mtu,

    /// Port of every node agent, UDP and TCP. Two EasyNetworks of one cluster need two ports. Only needs to be open in a firewall
    /// if members shall connect to the nodes from outside without punching.
    #[serde(default = "default_port")]
    #[x_kube(validation = Rule::new("self >= 1 && self <= 65535").message("write a port from 1 to 65535"))]
    pub listen_port: u16,

    /// `Enabled`: members talk directly where they can. `RelayOnly`: always over public servers.
    #[serde(default)]
    pub p2p: P2p,

    /// How hard to try to get through NATs. `Full`: also with many ports at once where NATs are hard. `Light`: only what costs a
    /// few packets. `Off`: never.
    #[serde(default)]
    pub punch: Punch,
}

impl Default for Transport {
    fn default() -> Self {
        Self { mtu: Mtu::Auto, listen_port: DEFAULT_PORT, p2p: P2p::Enabled, punch: Punch::Full }
    }
}

fn default_port() -> u16 {
    DEFAULT_PORT
}

/// Whether members talk directly.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum P2p {
    #[default]
    Enabled,
    RelayOnly,
}

/// How hard to try to get through NATs.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Punch {
    #[default]
    Full,
    Light,
    Off,
}

/// Who of this cluster becomes a member.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Members {
    /// Nodes, by an agent on each.
    #[serde(default)]
    pub nodes: Nodes,

    /// Pods with a mesh interface of their own, by an injected sidecar.
    #[serde(default)]
    pub pods: Pods,
}

/// Which nodes are members.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.mode != 'Selected' || (has(self.nodeSelector) && self.nodeSelector.size() > 0)")
        .message("mode Selected needs a nodeSelector with at least one label; write one, or mode All")
        .field_path(".mode"),
    validation = Rule::new("self.mode == 'Selected' || !has(self.nodeSelector) || self.nodeSelector.size() == 0")
        .message("a nodeSelector only counts with mode Selected; write mode: Selected, or remove the selector")
        .field_path(".nodeSelector"),
)]
#[serde(rename_all = "camelCase")]
pub struct Nodes {
    /// `All` nodes, the `Selected` ones, or `None`.
    #[serde(default)]
    pub mode: NodeMode,

    /// With mode `Selected`: the labels that a node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that the agent accepts beside those every agent accepts (a node that is not ready, or unreachable).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 32))]
    pub tolerations: Vec<Toleration>,
}

/// Which nodes are members.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeMode {
    #[default]
    All,
    Selected,
    None,
}

/// Which pods are members.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.mode == 'OptIn' || !has(self.allowedNamespaces)")
    .message("allowedNamespaces only counts with mode OptIn; write mode: OptIn, or remove it")
    .field_path(".allowedNamespaces"))]
pub struct Pods {
    /// `OptIn`: pods with the label `easynet.io/inject: NAME` get a sidecar. `None`: no pod does.
    #[serde(default)]
    pub mode: PodMode,

    /// With mode `OptIn`: the namespaces in which the label counts. Left out means none, `{}` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allowed_namespaces: Option<LabelSelector>,
}

/// Which pods are members.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodMode {
    #[default]
    None,
    OptIn,
}

/// Which ranges this cluster offers to the network, and which it takes from it.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Routing {
    /// `Auto`: each node offers the pod range that is its own. `None`: pods are not reachable from the mesh.
    #[serde(default, rename = "exportPodCIDRs")]
    pub export_pod_cidrs: ExportPodCidrs,

    /// `Auto`: the nodes offer the range of ClusterIPs. `None`: they do not.
    #[serde(default, rename = "exportServiceCIDRs")]
    pub export_service_cidrs: ExportServiceCidrs,

    /// Further ranges that every node offers, and how ranges that other clusters also use are seen from outside.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(
        merge_strategy = ListMerge::Map(vec!["cidr".into()]),
        validation = Rule::new("!self.all(e, isCIDR(e.cidr)) || self.all(e, self.exists_one(f, cidr(f.cidr).containsCIDR(e.cidr) || cidr(e.cidr).containsCIDR(f.cidr)))")
            .message("two exports overlap; write ranges of which none contains another"),
        validation = Rule::new("!self.all(e, isCIDR(e.cidr) && (!has(e.mapTo) || isCIDR(e.mapTo))) || self.all(e, self.exists_one(f, cidr(has(f.mapTo) ? f.mapTo : f.cidr).containsCIDR(has(e.mapTo) ? e.mapTo : e.cidr) || cidr(has(e.mapTo) ? e.mapTo : e.cidr).containsCIDR(has(f.mapTo) ? f.mapTo : f.cidr)))")
            .message("two exports overlap as the mesh sees them; give each a mapTo of its own"),
    )]
    #[schemars(length(max = 64))]
    pub exports: Vec<Export>,

    /// What is taken from the network.
    #[serde(default)]
    pub imports: Imports,

    /// Whether packets from the mesh into this cluster get the node's address as their source. `Inbound`: where the cluster's own
    /// network would not send the answer back. `Never`, `Always`.
    #[serde(default)]
    pub masquerade: Masquerade,
}

/// Whether nodes offer their pods.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportPodCidrs {
    #[default]
    Auto,
    None,
}

/// Whether nodes offer the ClusterIPs.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExportServiceCidrs {
    #[default]
    None,
    Auto,
}

/// A range that this cluster offers to the network.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new(
    "!has(self.mapTo) || !isCIDR(self.mapTo) || !isCIDR(self.cidr) || (cidr(self.cidr).prefixLength() == cidr(self.mapTo).prefixLength() && cidr(self.cidr).ip().family() == cidr(self.mapTo).ip().family())")
    .message("mapTo maps address by address, so it is of the same family and length as cidr; write for example cidr: 10.42.0.0/16, mapTo: 10.200.0.0/16")
    .field_path(".mapTo"))]
#[serde(rename_all = "camelCase")]
pub struct Export {
    /// The range as this cluster uses it. If it contains the nodes' pod ranges, each node offers its own part only.
    #[x_kube(validation = Rule::new("!isCIDR(self) || (cidr(self).prefixLength() > 0 && !cidr(self).ip().isLoopback() && !cidr(self).ip().isLinkLocalUnicast() && !cidr(self).ip().isLinkLocalMulticast())")
        .message("no member accepts a default route, loopback or link-local range from another; write the ranges that others shall reach"))]
    pub cidr: Cidr,

    /// The range as the rest of the network sees it, 1:1, if another cluster uses `cidr` too. Same prefix length as `cidr`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!isCIDR(self) || (cidr(self).prefixLength() > 0 && !cidr(self).ip().isLoopback() && !cidr(self).ip().isLinkLocalUnicast() && !cidr(self).ip().isLinkLocalMulticast())")
        .message("no member accepts a default route, loopback or link-local range from another; write a private range that is free in the whole network"))]
    pub map_to: Option<Cidr>,
}

/// What is taken from the network.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(
    validation = Rule::new("self.mode != 'Listed' || (has(self.cidrs) && self.cidrs.size() > 0)")
        .message("mode Listed needs at least one range in cidrs; write one, or mode None")
        .field_path(".mode"),
    validation = Rule::new("self.mode == 'Listed' || !has(self.cidrs) || self.cidrs.size() == 0")
        .message("cidrs only count with mode Listed; write mode: Listed, or remove them")
        .field_path(".cidrs"),
)]
pub struct Imports {
    /// `All` ranges that others offer, those within the ranges `Listed` in cidrs, or `None`. Default routes, loopback, link-local and
    /// whatever overlaps this cluster's own ranges is never taken.
    #[serde(default)]
    pub mode: ImportMode,

    /// With mode `Listed`: what is offered within these ranges is taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[schemars(length(max = 64))]
    pub cidrs: Vec<Cidr>,
}

/// What is taken from the network.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ImportMode {
    #[default]
    All,
    Listed,
    None,
}

/// Whether packets from the mesh get the node's address as their source.
#[derive(JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Masquerade {
    #[default]
    Inbound,
    Never,
    Always,
}

/// What may be set on the pods of the node agents. They run as root on every node, so this is no pod template.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// CPU and memory of the agent's container.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// Further labels of the agents' pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('easynet.io/') && !key.startsWith('app.kubernetes.io/'))")
        .message("labels of easynet.io/ and app.kubernetes.io/ are the operator's; use another prefix"))]
    #[schemars(extend("maxProperties" = 32))]
    pub labels: BTreeMap<String, String>,

    /// Further annotations of the agents' pods.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[x_kube(validation = Rule::new("self.all(key, !key.startsWith('easynet.io/'))")
        .message("annotations of easynet.io/ are the operator's; use another prefix"))]
    #[schemars(extend("maxProperties" = 32))]
    pub annotations: BTreeMap<String, String>,

    /// PriorityClass of the agents' pods. Default `system-node-critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub priority_class_name: Option<String>,
}

/// What the operator last saw. Fast detail is in the metrics and in `easynet status` on a node.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EasyNetworkStatus {
    /// The network's identity; two clusters are in one network exactly if they show the same one.
    #[serde(default, rename = "networkID", skip_serializing_if = "Option::is_none")]
    pub network_id: Option<String>,

    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Accepted, ResolvedRefs, Programmed, Connected, AddressConflictFree, Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The addresses in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub addresses: Option<AddressesStatus>,

    /// The agents of this cluster's nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agents: Option<AgentsStatus>,

    /// The members of the whole network, seen from this cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peers: Option<PeersStatus>,

    /// The ranges that this cluster offers, as the rest of the network sees them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 64))]
    pub exported: Vec<String>,

    /// Ranges and addresses that somebody else in the network uses too, the first 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 16))]
    pub conflicts: Vec<Conflict>,
}

/// The addresses in use.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressesStatus {
    /// Range of the members' IPv4 addresses.
    #[serde(default, rename = "ipv4CIDR", skip_serializing_if = "Option::is_none")]
    pub ipv4_cidr: Option<String>,

    /// Range of the members' IPv6 addresses.
    #[serde(default, rename = "ipv6CIDR", skip_serializing_if = "Option::is_none")]
    pub ipv6_cidr: Option<String>,

    /// The blocks of the IPv4 range that are this cluster's.
    #[serde(default, rename = "ipv4Blocks", skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub ipv4_blocks: Vec<String>,

    /// How many addresses members of this cluster have.
    #[serde(default)]
    pub allocated: u32,
}

/// The agents of this cluster's nodes.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentsStatus {
    /// Nodes that shall have one.
    #[serde(default)]
    pub desired: u32,

    /// Agents that run the current generation.
    #[serde(default)]
    pub updated: u32,

    /// Agents that are ready.
    #[serde(default)]
    pub ready: u32,
}

/// The members of the whole network, seen from this cluster.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeersStatus {
    /// All of them.
    #[serde(default)]
    pub total: u32,

    /// Reached directly by at least one member of this cluster.
    #[serde(default)]
    pub direct: u32,

    /// Reached through a relay only.
    #[serde(default)]
    pub relayed: u32,

    /// Clusters they belong to, this one included.
    #[serde(default)]
    pub clusters: u32,
}

/// A range or address that somebody else in the network uses too.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Conflict {
    /// What is used twice.
    pub cidr: String,

    /// Who else uses it: a cluster or member.
    pub with: String,

    /// The line that ends the conflict, ready to paste into the spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}
