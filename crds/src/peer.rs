//! EasyPeer: one member of this cluster, written by the operator alone.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{network::Export, text::Cidr};

/// Who the member is and which addresses are its own; the truth of allocations. The operator writes it; to change a member, change the
/// EasyNetwork.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "easynet.io",
    version = "v1alpha1",
    kind = "EasyPeer",
    plural = "easypeers",
    shortname = "epeer",
    category = "easynet",
    status = "EasyPeerStatus",
    derive = "PartialEq",
    doc = "One member of an EasyNetwork in this cluster: a node, a pod with a sidecar, or a machine outside Kubernetes. Written by the operator; read it to see which addresses a member has and whether it is connected.",
    label("app.kubernetes.io/part-of", "easynet"),
    selectable = ".spec.network",
    printcolumn(
        name = "Network",
        type_ = "string",
        json_path = ".spec.network",
        description = "The EasyNetwork it is a member of"
    ),
    printcolumn(
        name = "Kind",
        type_ = "string",
        json_path = ".spec.kind",
        description = "Node, Pod or External"
    ),
    printcolumn(
        name = "IPv4",
        type_ = "string",
        json_path = ".spec.ipv4",
        description = "Its address in the mesh"
    ),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "Whether it is connected"
    ),
    printcolumn(
        name = "Direct",
        type_ = "integer",
        json_path = ".status.direct",
        description = "Peers that it reaches directly"
    ),
    printcolumn(
        name = "Relayed",
        type_ = "integer",
        json_path = ".status.relayed",
        description = "Peers that it reaches through a relay"
    ),
    printcolumn(
        name = "Endpoint",
        type_ = "string",
        json_path = ".status.endpoint",
        description = "Where others see it on the underlay"
    ),
    printcolumn(
        name = "IPv6",
        type_ = "string",
        json_path = ".spec.ipv6",
        description = "Its IPv6 address in the mesh",
        priority = 1
    ),
    printcolumn(
        name = "Revision",
        type_ = "integer",
        json_path = ".status.appliedRevision",
        description = "The configuration that it runs",
        priority = 1
    ),
    printcolumn(
        name = "Version",
        type_ = "string",
        json_path = ".status.version",
        description = "Version of its sidecar",
        priority = 1
    ),
    printcolumn(
        name = "Node ID",
        type_ = "string",
        json_path = ".status.nodeID",
        description = "Its identity in the mesh",
        priority = 1
    ),
    printcolumn(
        name = "Age",
        type_ = "date",
        json_path = ".metadata.creationTimestamp",
        description = "Time since it was created"
    )
)]
#[x_kube(
    validation = Rule::new("self.network == oldSelf.network && self.kind == oldSelf.kind")
        .message("an EasyPeer stays what it is: network and kind are for good"),
    validation = Rule::new("has(self.nodeRef) == (self.kind == 'Node') && has(self.podRef) == (self.kind == 'Pod') && has(self.externalName) == (self.kind == 'External')")
        .message("exactly the reference of its kind is set: nodeRef for Node, podRef for Pod, externalName for External")
        .field_path(".kind"),
)]
#[serde(rename_all = "camelCase")]
pub struct EasyPeerSpec {
    /// Name of the EasyNetwork.
    #[schemars(length(min = 1, max = 63))]
    pub network: String,

    /// `Node`, `Pod` or `External`.
    pub kind: PeerKind,

    /// With kind `Node`: the node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_ref: Option<NodeRef>,

    /// With kind `Pod`: the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_ref: Option<PodRef>,

    /// With kind `External`: the machine's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub external_name: Option<String>,

    /// The member's public keys (base32), once it has shown them. Its certificate is for these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("self.matches('^[a-z2-7]{103}$')").message("keys are the base32 of 64 bytes"))]
    #[schemars(length(max = 128))]
    pub keys: Option<String>,

    /// Its IPv4 address in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 4").message("write an IPv4 address"))]
    #[schemars(length(max = 15))]
    pub ipv4: Option<String>,

    /// Its IPv6 address in the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isIP(self) && ip(self).family() == 6").message("write an IPv6 address"))]
    #[schemars(length(max = 39))]
    pub ipv6: Option<String>,

    /// The ranges that it may offer to the network.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["cidr".into()]))]
    #[schemars(length(max = 64))]
    pub exports: Vec<Export>,

    /// Set when the member is gone: until then its addresses are kept for it, should it come back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_until: Option<Time>,
}

/// What kind of member it is.
#[derive(
    JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
)]
pub enum PeerKind {
    #[default]
    Node,
    Pod,
    External,
}

/// A node of this cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Its UID: a node of the same name that was created anew is another machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub uid: Option<String>,
}

/// A pod of this cluster.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,

    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,

    /// Its UID.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,

    /// The node that it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node_name: Option<String>,
}

/// What the member last said about itself.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EasyPeerStatus {
    /// Its identity in the mesh.
    #[serde(default, rename = "nodeID", skip_serializing_if = "Option::is_none")]
    pub node_id: Option<String>,

    /// The newest revision of its configuration that it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_revision: Option<i64>,

    /// Why it could not apply a newer one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub applied_error: Option<String>,

    /// Where others see it on the underlay: `ADDRESS:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,

    /// `Pending` until it first reports, then `Connected`, `Alone` (it is the only member), `Disconnected` (it reports, but reaches nobody) or
    /// `Lost` (it does not report).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PeerState>,

    /// Peers that it reaches directly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub direct: Option<u32>,

    /// Peers that it reaches through a relay.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relayed: Option<u32>,

    /// Version of its sidecar.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,

    /// What it found wrong with its host or its configuration, and what to do.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// The ranges that it offers now.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    #[schemars(length(max = 64))]
    pub exported: Vec<Cidr>,
}

/// Whether a member is connected.
#[derive(
    JsonSchema,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Serialize,
    Deserialize,
)]
pub enum PeerState {
    #[default]
    Pending,
    Connected,
    Alone,
    Disconnected,
    Lost,
}
