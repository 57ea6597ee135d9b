//! The configuration feed: what a node and the server that configures it say to each other.
//!
//! One session (`session::feed`) carries frames of [`crate::frame`] both ways. The node calls [`ENROLL`] first, and then
//! [`APPLIED`], [`STATUS`] and [`LEAVING`]; the server calls [`DESIRED`] and [`RETIRE`]. Every answer is a message of
//! this module, empty where none is named.
//!
//! ```text
//! node                                     server
//!  Enroll{token, keys, signature}     ──►   who is it? (TokenReview, or a list)
//!                                     ◄──   Enrolled{network, member}
//!                                     ◄──   Desired{revision, configuration, certificate, keys, records}
//!  Applied{revision | error}          ──►   … and so on with every revision
//!  Status{counters, transitions}      ──►   transitions at once, counters at most every 10 s
//!                                     ◄──   Retire          the node persists that it is one no more, then answers
//!  Leaving                            ──►   Left{retire}    asked at SIGTERM: remove everything, or leave it in place?
//! ```
//! Fields are only ever added, so either side may be a minor version away from the other.

use std::fmt;

use prost::Message;
use wire::{certificate::Signed, lsa::ClusterBody};

/// Service 2, method 1, to the server: [`Enroll`], answered by [`Enrolled`].
pub const ENROLL: u32 = 2 << 16 | 1;
/// Service 2, method 2, to the server: [`Applied`].
pub const APPLIED: u32 = 2 << 16 | 2;
/// Service 2, method 3, to the server: [`Status`].
pub const STATUS: u32 = 2 << 16 | 3;
/// Service 2, method 4, to the server: [`Leaving`], answered by [`Left`].
pub const LEAVING: u32 = 2 << 16 | 4;
/// Service 2, method 16, to the node: [`Desired`], answered when it is taken, before it is applied.
pub const DESIRED: u32 = 2 << 16 | 16;
/// Service 2, method 17, to the node: [`Retire`], answered by [`Retired`].
pub const RETIRE: u32 = 2 << 16 | 17;

/// Context of the signature in [`Enroll`], before the session's hash.
pub const ENROLL_CONTEXT: &[u8] = b"easynet feed enroll v1";
/// A token longer than this is none.
pub const MAX_TOKEN: usize = 16 * 1024;
/// Bytes that all records of one [`Desired`] may have together, so that it fits a frame.
pub const MAX_RECORDS: usize = 160 * 1024;
/// Transitions that one [`Status`] may name; the oldest are left out.
pub const MAX_TRANSITIONS: usize = 32;

/// Asks for a configuration; the first call of every session.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
#[prost(skip_debug)]
pub struct Enroll {
    /// Who the node is: a ServiceAccount token, or what the server's list says.
    #[prost(string, tag = "1")]
    pub token: String,
    /// The node's Ed25519 key, 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub sign: Vec<u8>,
    /// The node's X25519 key, 32 bytes: the Noise static key of this session.
    #[prost(bytes = "vec", tag = "3")]
    pub dh: Vec<u8>,
    /// By `sign` over [`ENROLL_CONTEXT`] ‖ the session's hash.
    #[prost(bytes = "vec", tag = "4")]
    pub signature: Vec<u8>,
    /// Which network, as the URL's path says.
    #[prost(string, tag = "5")]
    pub network: String,
    /// Of the node's software.
    #[prost(string, tag = "6")]
    pub version: String,
    /// The revision that the node runs with; 0 is none.
    #[prost(uint64, tag = "7")]
    pub revision: u64,
    /// Unix seconds as the node's clock has it; 0 is a node that does not say.
    #[prost(uint64, tag = "8")]
    pub unix_s: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Enrolled {
    #[prost(string, tag = "1")]
    pub network: String,
    /// Whom the server takes the node for, for people.
    #[prost(string, tag = "2")]
    pub member: String,
    /// Unix seconds as the server's clock has it: certificates are judged by the node's.
    #[prost(uint64, tag = "3")]
    pub unix_s: u64,
}

/// The whole desired state; a later one replaces it.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Desired {
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// `config::Sidecar` as JSON; unknown keys are ignored.
    #[prost(string, tag = "2")]
    pub sidecar: String,
    /// The network root's public key, 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub root: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    pub certificate: Option<Signed>,
    #[prost(message, optional, tag = "5")]
    pub attributes: Option<Signed>,
    #[prost(message, repeated, tag = "6")]
    pub epochs: Vec<Epoch>,
    /// Link-state records that only the network's root signs, for the node to spread.
    #[prost(bytes = "vec", repeated, tag = "7")]
    pub records: Vec<Vec<u8>>,
    /// W3C trace context of the change that led here; empty is none.
    #[prost(string, tag = "8")]
    pub traceparent: String,
}

/// The keys of one epoch.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
#[prost(skip_debug)]
pub struct Epoch {
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
    /// 32 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub psk: Vec<u8>,
    /// 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub group: Vec<u8>,
}

/// What became of a revision.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Applied {
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// Empty if it is in force; else why it is not, and the one before stays.
    #[prost(string, tag = "2")]
    pub error: String,
    /// It was in force, and taken back since it cut the node off.
    #[prost(bool, tag = "3")]
    pub rolled_back: bool,
    /// Key epochs that the node has.
    #[prost(uint32, repeated, tag = "4")]
    pub epochs: Vec<u32>,
}

/// How the node is. Coalesced: only the newest counts, but for its transitions.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Status {
    /// The revision in force.
    #[prost(uint64, tag = "1")]
    pub revision: u64,
    /// Mesh addresses in use, as text.
    #[prost(string, repeated, tag = "2")]
    pub addresses: Vec<String>,
    #[prost(bool, tag = "3")]
    pub ready: bool,
    #[prost(message, optional, tag = "4")]
    pub peers: Option<Peers>,
    #[prost(message, repeated, tag = "5")]
    pub conditions: Vec<Condition>,
    #[prost(message, repeated, tag = "6")]
    pub transitions: Vec<Transition>,
    /// The epoch of the highest EPOCH record seen; 0 is none.
    #[prost(uint32, tag = "7")]
    pub epoch_seen: u32,
    /// Key epochs that the node has.
    #[prost(uint32, repeated, tag = "8")]
    pub epochs: Vec<u32>,
    /// The CLUSTER records seen.
    #[prost(message, repeated, tag = "9")]
    pub clusters: Vec<ClusterBody>,
    /// Overlapping claims and announcements, a sentence each.
    #[prost(string, repeated, tag = "10")]
    pub conflicts: Vec<String>,
    /// Prefixes that others announce and this node refuses, a sentence each.
    #[prost(string, repeated, tag = "11")]
    pub refused: Vec<String>,
    /// Members whose own records are sealed with the epoch in force.
    #[prost(uint32, tag = "12")]
    pub members_on_epoch: u32,
    /// Members known.
    #[prost(uint32, tag = "13")]
    pub members: u32,
    /// Ports that the node listens on, in the order of its configuration.
    #[prost(uint32, repeated, tag = "14")]
    pub ports: Vec<u32>,
    /// Unix seconds as the member's clock has it; members of an earlier version say 0.
    #[prost(uint64, tag = "15")]
    pub unix_s: u64,
}

/// Peers by how they are reached.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Peers {
    #[prost(uint32, tag = "1")]
    pub total: u32,
    #[prost(uint32, tag = "2")]
    pub direct: u32,
    #[prost(uint32, tag = "3")]
    pub relayed: u32,
    #[prost(uint32, tag = "4")]
    pub idle: u32,
    #[prost(uint32, tag = "5")]
    pub connecting: u32,
    #[prost(uint32, tag = "6")]
    pub unreachable: u32,
}

/// One thing that is, or is not, as it should be on the node.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Condition {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(bool, tag = "2")]
    pub status: bool,
    #[prost(string, tag = "3")]
    pub reason: String,
    #[prost(string, tag = "4")]
    pub message: String,
}

/// Something that happened on the node and is told at once.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Transition {
    /// Unix milliseconds of the node's clock.
    #[prost(uint64, tag = "1")]
    pub at_ms: u64,
    /// As `easynet events` names it.
    #[prost(string, tag = "2")]
    pub kind: String,
    #[prost(string, tag = "3")]
    pub message: String,
}

/// The process is told to end; what about the network that it made on the host?
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Leaving {}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Left {
    /// Remove all of it; else leave it for the successor.
    #[prost(bool, tag = "1")]
    pub retire: bool,
}

/// The node is no member any more: it leaves the network and removes everything that it made.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Retire {}

/// The node has kept on disk that it is retired.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Retired {}

impl fmt::Debug for Enroll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Enroll")
            .field("network", &self.network)
            .field("version", &self.version)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Epoch").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neither_tokens_nor_keys_show() {
        let enroll =
            Enroll { token: "eyJsecret".into(), network: "prod".into(), ..Enroll::default() };
        let epoch = Epoch { epoch: 7, psk: vec![213; 32], group: vec![213; 32] };
        let desired = Desired { epochs: vec![epoch], ..Desired::default() };

        let shown = format!("{enroll:?} {desired:?}");

        assert!(shown.contains("prod") && shown.contains("epoch: 7"), "{shown}");
        assert!(!shown.contains("eyJ") && !shown.contains("213"), "{shown}");
    }

    #[test]
    fn a_message_of_a_later_version_is_read_for_what_is_known() {
        let mut bytes = Applied { revision: 9, ..Applied::default() }.encode_to_vec();
        bytes.extend_from_slice(&[0xfa, 0x07, 3, 1, 2, 3]);

        assert_eq!(Applied::decode(&*bytes).unwrap().revision, 9);
    }
}
