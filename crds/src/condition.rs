//! The conditions of an EasyNetwork: their types. The operator has the closed list of reasons.

use std::fmt;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

/// What a condition of an EasyNetwork is about. All of them are there from the operator's first visit on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// The object makes sense, by itself and beside the other EasyNetworks.
    Accepted,
    /// Everything it refers to is there and usable.
    ResolvedRefs,
    /// The sidecar of every Ready node runs this generation.
    Programmed,
    /// A packet went through the mesh and back.
    Connected,
    /// No address and no range of this cluster is used by another member.
    AddressConflictFree,
    /// The network does what it was asked to.
    Ready,
    /// The operator is still working towards this generation.
    Reconciling,
    /// The operator can not go on without somebody's help.
    Stalled,
}

impl ConditionType {
    pub const ALL: [Self; 8] = [
        Self::Accepted,
        Self::ResolvedRefs,
        Self::Programmed,
        Self::Connected,
        Self::AddressConflictFree,
        Self::Ready,
        Self::Reconciling,
        Self::Stalled,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Accepted => "Accepted",
            Self::ResolvedRefs => "ResolvedRefs",
            Self::Programmed => "Programmed",
            Self::Connected => "Connected",
            Self::AddressConflictFree => "AddressConflictFree",
            Self::Ready => "Ready",
            Self::Reconciling => "Reconciling",
            Self::Stalled => "Stalled",
        }
    }
}

impl fmt::Display for ConditionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
