//! Control records: what nodes and servers say to each other inside sessions, as DATA of kind
//! [`crate::packet::Kind::Control`], and the encrypted payloads of the handshake.
//!
//! Protobuf, so that a field a node does not know is skipped and a rolling upgrade needs no flag day.

use crate::{certificate::Signed, endpoint::NatProfile};

/// One control record.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Control {
    #[prost(
        oneof = "Body",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22"
    )]
    pub body: Option<Body>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Body {
    /// First record of a session between members.
    #[prost(message, tag = "1")]
    Attributes(Signed),
    #[prost(message, tag = "2")]
    Hello(Hello),
    #[prost(message, tag = "3")]
    HelloAck(Hello),
    #[prost(message, tag = "4")]
    Announce(Announce),
    #[prost(message, tag = "5")]
    Pull(Pull),
    #[prost(message, tag = "6")]
    Push(Push),
    #[prost(message, tag = "7")]
    Digest(Digest),
    #[prost(message, tag = "8")]
    Buckets(Buckets),
    #[prost(message, tag = "9")]
    BucketHeads(BucketHeads),
    #[prost(message, tag = "10")]
    PunchRequest(Punch),
    #[prost(message, tag = "11")]
    PunchAck(Punch),
    #[prost(message, tag = "12")]
    Register(Register),
    #[prost(message, tag = "13")]
    Registered(Registered),
    #[prost(message, tag = "14")]
    Refused(Refused),
    #[prost(message, tag = "15")]
    Attach(Attach),
    /// The sender goes away now.
    #[prost(message, tag = "16")]
    Leave(Leave),
    /// The server goes away soon; attach elsewhere.
    #[prost(message, tag = "17")]
    Drain(Drain),
    #[prost(message, tag = "18")]
    Ping(Ping),
    #[prost(message, tag = "19")]
    Pong(Ping),
    /// A fragment of an RPC frame, as `rpc` lays it out.
    #[prost(bytes = "vec", tag = "20")]
    Rpc(Vec<u8>),
    /// Where the sender may be reached, when it did not ride in the handshake or changed since.
    #[prost(message, tag = "21")]
    Endpoints(Endpoints),
    /// A piece of a record that does not fit a datagram.
    #[prost(message, tag = "22")]
    Chunk(Chunk),
}

impl From<Body> for Control {
    fn from(body: Body) -> Self {
        Self { body: Some(body) }
    }
}

/// Keeps a link alive and measures it. Home links every 5 s, member links every 25 s.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Hello {
    #[prost(uint64, tag = "1")]
    pub seq: u64,
    /// The sender's clock in µs; echoed.
    #[prost(uint64, tag = "2")]
    pub sent_us: u64,
    /// From a server: the highest ATTACH sequence it has given, and the digest of who is attached.
    #[prost(uint64, tag = "3")]
    pub attach_seq: u64,
    #[prost(fixed64, tag = "4")]
    pub attach_digest: u64,
    /// The sender keeps the link only because the receiver does, or, with `seq` 0, keeps it no more.
    #[prost(bool, tag = "5")]
    pub follows: bool,
}

/// Names one LSA: who signed it, of which type, which of them.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct LsaHead {
    /// The signer's NodeId, 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub signer: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub kind: u32,
    #[prost(uint32, tag = "3")]
    pub id: u32,
    #[prost(fixed64, tag = "4")]
    pub seq: u64,
    /// Seconds since origination as far as the sender knows; only grows.
    #[prost(uint32, tag = "5")]
    pub age_s: u32,
}

/// "I have these"; who lacks one pulls it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Announce {
    #[prost(message, repeated, tag = "1")]
    pub heads: Vec<LsaHead>,
}

/// "Give me these."
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Pull {
    #[prost(message, repeated, tag = "1")]
    pub heads: Vec<LsaHead>,
}

/// The LSAs themselves.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Push {
    #[prost(message, repeated, tag = "1")]
    pub copies: Vec<LsaCopy>,
}

/// An LSA as received, and its age.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct LsaCopy {
    #[prost(uint32, tag = "1")]
    pub age_s: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub container: bytes::Bytes,
}

/// The state of an LSDB in one number; differing neighbours go on to [`Buckets`].
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Digest {
    #[prost(fixed64, tag = "1")]
    pub root: u64,
    #[prost(uint32, tag = "2")]
    pub entries: u32,
}

/// The digests of all buckets.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Buckets {
    #[prost(fixed64, repeated, tag = "1")]
    pub digests: Vec<u64>,
}

/// All heads in some buckets; the receiver pulls what is newer and announces what it has newer.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct BucketHeads {
    #[prost(uint32, repeated, tag = "1")]
    pub buckets: Vec<u32>,
    #[prost(message, repeated, tag = "2")]
    pub heads: Vec<LsaHead>,
    /// The sender wants the receiver's heads of these buckets in return.
    #[prost(bool, tag = "3")]
    pub reply: bool,
}

/// A punch attempt, asked for or agreed to.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Punch {
    #[prost(uint64, tag = "1")]
    pub attempt: u64,
    #[prost(message, optional, tag = "2")]
    pub endpoints: Option<Endpoints>,
    /// Hash of the plan that the sender computed from both profiles; they must agree.
    #[prost(fixed64, tag = "3")]
    pub plan_hash: u64,
    /// µs from the sending of this record to T0.
    #[prost(uint64, tag = "4")]
    pub starts_in_us: u64,
    /// An earlier attempt failed, or may have spoilt the ports: both sides take new ones, open their NATs first, and start
    /// 100 ms later for it.
    #[prost(bool, tag = "5")]
    pub again: bool,
    /// Packed candidates of the sender's new port; none if it keeps its usual one.
    #[prost(bytes = "vec", tag = "6")]
    pub fresh: Vec<u8>,
}

/// Where the sender may be reached.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Endpoints {
    #[prost(message, optional, tag = "1")]
    pub profile: Option<NatProfile>,
    /// Packed [`crate::endpoint::Candidate`]s.
    #[prost(bytes = "vec", tag = "2")]
    pub candidates: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub revision: u64,
}

/// Proves membership to a public server.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Register {
    #[prost(bytes = "vec", tag = "1")]
    pub network: Vec<u8>,
    /// The network root's key; its hash is the NetworkId.
    #[prost(bytes = "vec", tag = "2")]
    pub root: Vec<u8>,
    #[prost(message, optional, tag = "3")]
    pub certificate: Option<Signed>,
    /// By the node's signing key over `"easynet register" ‖ session hash`.
    #[prost(bytes = "vec", tag = "4")]
    pub signature: Vec<u8>,
    /// A token where the server's admission asks for one.
    #[prost(bytes = "vec", tag = "5")]
    pub token: Vec<u8>,
    /// The ATTACH sequence up to which this node knows who is attached, and its digest of it.
    #[prost(uint64, tag = "6")]
    pub attach_seq: u64,
    #[prost(fixed64, tag = "7")]
    pub attach_digest: u64,
}

/// The server's yes.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Registered {
    /// Bytes per second that the server relays for this node; 0 is unlimited.
    #[prost(uint64, tag = "1")]
    pub rate_node: u64,
    #[prost(uint64, tag = "2")]
    pub rate_network: u64,
    /// Bytes of LSAs that it stores for this node.
    #[prost(uint64, tag = "3")]
    pub lsa_bytes: u64,
    /// Further STUN ports or addresses of this server, packed 18 B each.
    #[prost(bytes = "vec", tag = "4")]
    pub stun: Vec<u8>,
}

/// The server's no.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Refused {
    #[prost(enumeration = "RefusedReason", tag = "1")]
    pub reason: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    /// Seconds after which to ask again; 0 is never.
    #[prost(uint32, tag = "3")]
    pub retry_s: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum RefusedReason {
    Unknown = 0,
    BadCertificate = 1,
    BadSignature = 2,
    NotAdmitted = 3,
    Full = 4,
    Draining = 5,
    Quota = 6,
    /// Another node with the same keys is attached.
    DuplicateKey = 7,
}

/// Who of a network is attached to this server, in clear: a change since the last one, or (full) all.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Attach {
    #[prost(message, repeated, tag = "1")]
    pub changes: Vec<AttachChange>,
    #[prost(bool, tag = "2")]
    pub full: bool,
    #[prost(uint64, tag = "3")]
    pub seq: u64,
    /// XOR of the hashes of all attached NodeIds after this change.
    #[prost(fixed64, tag = "4")]
    pub digest: u64,
    /// More of a `full` list follows.
    #[prost(bool, tag = "5")]
    pub more: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct AttachChange {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub node: Vec<u8>,
    #[prost(bool, tag = "2")]
    pub up: bool,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Leave {}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Drain {
    /// URLs of servers to go to.
    #[prost(string, repeated, tag = "1")]
    pub elsewhere: Vec<String>,
    #[prost(uint32, tag = "2")]
    pub within_s: u32,
}

/// Engine to engine; PONG echoes it.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Ping {
    #[prost(uint64, tag = "1")]
    pub id: u64,
    #[prost(uint64, tag = "2")]
    pub sent_us: u64,
}

/// A piece of an encoded [`Control`] record.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Chunk {
    /// The same in all pieces of one record.
    #[prost(fixed64, tag = "1")]
    pub id: u64,
    #[prost(uint32, tag = "2")]
    pub index: u32,
    #[prost(uint32, tag = "3")]
    pub count: u32,
    #[prost(bytes = "vec", tag = "4")]
    pub bytes: Vec<u8>,
}

/// The encrypted payload of INIT; framed as `u16 length │ protobuf │ zeros` to its fixed size.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct InitPayload {
    #[prost(bytes = "vec", tag = "1")]
    pub network: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub certificate: Option<Signed>,
    /// Sum of the [`AEAD_`](AEAD_CHACHA) bits that the initiator speaks.
    #[prost(uint32, tag = "3")]
    pub aead: u32,
    /// Grows with every INIT of a node towards a peer: boot counter in the high 32 bits, a counter below.
    #[prost(fixed64, tag = "4")]
    pub freshness: u64,
    #[prost(uint32, tag = "5")]
    pub role: u32,
    /// Only towards a key known from an LSA or `?k=`.
    #[prost(message, optional, tag = "6")]
    pub endpoints: Option<Endpoints>,
    /// The initiator wants to punch as soon as the session is up.
    #[prost(bool, tag = "7")]
    pub punch: bool,
    #[prost(uint32, tag = "8")]
    pub capabilities: u32,
    /// The node's own keys; a server without a network has no certificate.
    #[prost(bytes = "vec", tag = "9")]
    pub sign: Vec<u8>,
    /// Unix seconds as the sender's clock has it, for `doctor`; nothing depends on it.
    #[prost(uint64, tag = "10")]
    pub clock: u64,
    /// The newest key epoch that the initiator has: RESPONSE uses the newest that both have.
    #[prost(uint32, tag = "11")]
    pub epoch: u32,
}

/// ChaCha20-Poly1305; everybody speaks it.
pub const AEAD_CHACHA: u32 = 1;
/// AES-256-GCM; offered where the processor has it.
pub const AEAD_AES: u32 = 2;

/// The encrypted payload of RESPONSE.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ResponsePayload {
    #[prost(bytes = "vec", tag = "1")]
    pub network: Vec<u8>,
    #[prost(message, optional, tag = "2")]
    pub certificate: Option<Signed>,
    /// The one AEAD bit chosen.
    #[prost(uint32, tag = "3")]
    pub aead: u32,
    #[prost(uint32, tag = "4")]
    pub role: u32,
    #[prost(uint32, tag = "5")]
    pub psk_epoch: u32,
    /// Packed address that the INIT came from; empty when it came over a relay.
    #[prost(bytes = "vec", tag = "6")]
    pub observed: Vec<u8>,
    #[prost(message, optional, tag = "7")]
    pub endpoints: Option<Endpoints>,
    #[prost(uint32, tag = "8")]
    pub capabilities: u32,
    #[prost(bytes = "vec", tag = "9")]
    pub sign: Vec<u8>,
    #[prost(uint64, tag = "10")]
    pub clock: u64,
}

#[cfg(test)]
mod tests;
