//! Link-state advertisements: a container that anybody can check and only members can read.
//!
//! ```text
//!   0 [16] NetworkId │ 16 [32] S_pub │ 48 u8 type │ 49 u32 id │ 53 u8 flags │ 54 u8 gk_epoch
//!  55 u64 seq │ 63 u32 lifetime_s │ 67 u16 clear_len │ 69 u16 body_len │ 71 [24] nonce
//!  95 clear │ sealed body and tag │ [64] Ed25519 signature over "easynet lsa v1" ‖ all before it
//! ```
//! `clear` holds in NODE the encoded identity certificate, so that a server that never saw the node can check
//! it against the NetworkId; in EPOCH and REVOKE the whole body, so that servers and members without the newest
//! group key act on it too; else nothing. `sealed` is
//! XChaCha20-Poly1305 under the group key, with bytes 0..71 and `clear` as additional data.
//! A lifetime of 0 withdraws. `seq` is the boot counter in the high 32 bits and a counter below.
//!
//! CLUSTER, EPOCH and REVOKE are signed by the network's root, whose key hashes to the NetworkId. Several holders of
//! the root may sign the same (type, id), so their `seq` follows from the content: EPOCH `epoch ‖ unix seconds`, REVOKE
//! `unix seconds ‖ 0`, CLUSTER `unix seconds ‖ counter`, each half 32 bits.

use bytes::Bytes;

use crate::{
    array,
    certificate::{Prefix, Signed},
    endpoint::NatProfile,
    id::{NetworkId, NodeId, SignKey},
    put,
};

pub const HEAD_LEN: usize = 95;
/// Bytes of the head that are additional data of the seal.
pub const AAD_LEN: usize = 71;
pub const SIGNATURE_LEN: usize = 64;
/// Poly1305 tag of the sealed body.
pub const TAG_LEN: usize = 16;
/// Most bytes of one container: what one RPC of the dissemination carries.
pub const MAX_LEN: usize = 8192;
pub const SIGNATURE_CONTEXT: &[u8] = b"easynet lsa v1";

/// The types we know; others are kept and passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum LsaType {
    Node = 1,
    Link = 2,
    /// A cluster's address blocks; issuer-signed.
    Cluster = 3,
    /// The key epoch in force; issuer-signed.
    Epoch = 4,
    /// A node that is none any more; issuer-signed.
    Revoke = 5,
}

impl LsaType {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Node,
            2 => Self::Link,
            3 => Self::Cluster,
            4 => Self::Epoch,
            5 => Self::Revoke,
            _ => return None,
        })
    }
}

/// What names an LSA; of equal keys the higher `seq` is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LsaKey {
    pub signer: NodeId,
    /// A [`LsaType`], or one that we do not know.
    pub kind: u8,
    pub id: u32,
}

/// The fields of a container's head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub network: NetworkId,
    pub signer: SignKey,
    pub kind: u8,
    pub id: u32,
    pub flags: u8,
    pub gk_epoch: u8,
    pub seq: u64,
    /// Seconds; 0 withdraws.
    pub lifetime: u32,
    pub nonce: [u8; 24],
}

impl Head {
    pub fn key(&self) -> LsaKey {
        LsaKey { signer: NodeId::of(&self.signer), kind: self.kind, id: self.id }
    }
}

/// A container whose lengths are right; nothing is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    pub head: Head,
    bytes: Bytes,
    clear_len: usize,
}

impl Container {
    /// Checks lengths; `None` if they do not add up or exceed [`MAX_LEN`].
    pub fn parse(bytes: Bytes) -> Option<Self> {
        if bytes.len() > MAX_LEN {
            return None;
        }
        let clear_len = usize::from(u16::from_le_bytes(array(&bytes, 67)?));
        let body_len = usize::from(u16::from_le_bytes(array(&bytes, 69)?));
        let whole =
            HEAD_LEN.checked_add(clear_len)?.checked_add(body_len)?.checked_add(SIGNATURE_LEN)?;
        if whole != bytes.len() || body_len < TAG_LEN {
            return None;
        }
        let head = Head {
            network: NetworkId(array(&bytes, 0)?),
            signer: SignKey(array(&bytes, 16)?),
            kind: *bytes.get(48)?,
            id: u32::from_le_bytes(array(&bytes, 49)?),
            flags: *bytes.get(53)?,
            gk_epoch: *bytes.get(54)?,
            seq: u64::from_le_bytes(array(&bytes, 55)?),
            lifetime: u32::from_le_bytes(array(&bytes, 63)?),
            nonce: array(&bytes, 71)?,
        };
        Some(Self { head, bytes, clear_len })
    }

    /// Lays out everything but the signature; `sealed` is body and tag. Too much is `None`.
    pub fn unsigned(head: &Head, clear: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let clear_len = u16::try_from(clear.len()).ok()?;
        let body_len = u16::try_from(sealed.len()).ok()?;
        let len = HEAD_LEN.checked_add(clear.len())?.checked_add(sealed.len())?;
        if len.checked_add(SIGNATURE_LEN)? > MAX_LEN {
            return None;
        }
        let mut bytes = vec![0; HEAD_LEN];
        put(&mut bytes, 0, &Self::aad(head, clear_len, body_len));
        put(&mut bytes, 71, &head.nonce);
        bytes.extend_from_slice(clear);
        bytes.extend_from_slice(sealed);
        Some(bytes)
    }

    /// The head as additional data of the seal, without the nonce.
    pub fn aad(head: &Head, clear_len: u16, body_len: u16) -> [u8; AAD_LEN] {
        let mut bytes = [0; AAD_LEN];
        put(&mut bytes, 0, &head.network.0);
        put(&mut bytes, 16, &head.signer.0);
        put(&mut bytes, 48, &[head.kind]);
        put(&mut bytes, 49, &head.id.to_le_bytes());
        put(&mut bytes, 53, &[head.flags, head.gk_epoch]);
        put(&mut bytes, 55, &head.seq.to_le_bytes());
        put(&mut bytes, 63, &head.lifetime.to_le_bytes());
        put(&mut bytes, 67, &clear_len.to_le_bytes());
        put(&mut bytes, 69, &body_len.to_le_bytes());
        bytes
    }

    pub fn key(&self) -> LsaKey {
        self.head.key()
    }

    /// The container as received; passed on as it is.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What stands in clear: the encoded [`Signed`] identity certificate in NODE.
    pub fn clear(&self) -> &[u8] {
        HEAD_LEN
            .checked_add(self.clear_len)
            .and_then(|end| self.bytes.get(HEAD_LEN..end))
            .unwrap_or_default()
    }

    /// Body and tag under the group key.
    pub fn sealed(&self) -> &[u8] {
        let range = HEAD_LEN
            .checked_add(self.clear_len)
            .zip(self.bytes.len().checked_sub(SIGNATURE_LEN))
            .and_then(|(start, end)| self.bytes.get(start..end));
        range.unwrap_or_default()
    }

    /// What the signature covers, after [`SIGNATURE_CONTEXT`].
    pub fn signed(&self) -> &[u8] {
        self.bytes
            .len()
            .checked_sub(SIGNATURE_LEN)
            .and_then(|end| self.bytes.get(..end))
            .unwrap_or_default()
    }

    pub fn signature(&self) -> [u8; SIGNATURE_LEN] {
        self.bytes
            .len()
            .checked_sub(SIGNATURE_LEN)
            .and_then(|at| array(&self.bytes, at))
            .unwrap_or([0; SIGNATURE_LEN])
    }
}

/// Body of NODE: what a node says about itself.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NodeBody {
    #[prost(message, optional, tag = "1")]
    pub attributes: Option<Signed>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Stable candidates, packed.
    #[prost(bytes = "vec", tag = "3")]
    pub candidates: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    pub profile: Option<NatProfile>,
    /// NodeIds of home servers, 16 bytes each.
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub homes: Vec<Vec<u8>>,
    /// Claimed overlay addresses (automatic IPv4).
    #[prost(message, repeated, tag = "6")]
    pub claims: Vec<Claim>,
    /// Overlay addresses set by hand or derived from the key.
    #[prost(message, repeated, tag = "7")]
    pub addresses: Vec<Prefix>,
    /// Exported subnets.
    #[prost(message, repeated, tag = "8")]
    pub exports: Vec<Prefix>,
    /// Carries other members' traffic.
    #[prost(bool, tag = "9")]
    pub transit: bool,
    #[prost(string, tag = "10")]
    pub version: String,
    #[prost(string, tag = "11")]
    pub os: String,
    #[prost(string, tag = "12")]
    pub arch: String,
    /// What mapped exports are on the node's host: whoever announces such a prefix as it is cannot be answered there.
    #[prost(message, repeated, tag = "13")]
    pub behind: Vec<Prefix>,
}

/// A claim on an overlay address.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Claim {
    #[prost(message, optional, tag = "1")]
    pub prefix: Option<Prefix>,
    /// Unix seconds when first claimed.
    #[prost(uint64, tag = "2")]
    pub since: u64,
}

/// Body of LINK: the adjacencies a node advertises.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct LinkBody {
    #[prost(message, repeated, tag = "1")]
    pub neighbours: Vec<Neighbour>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Neighbour {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub node: Vec<u8>,
    /// Quantised cost in µs of latency.
    #[prost(uint32, tag = "2")]
    pub cost_us: u32,
    #[prost(bool, tag = "3")]
    pub server: bool,
}

/// Body of CLUSTER: what one cluster of the network claims.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct ClusterBody {
    #[prost(string, tag = "1")]
    pub name: String,
    /// Blocks of overlay addresses; of the same block the claim that `engine::routing::claims::wins` says.
    #[prost(message, repeated, tag = "2")]
    pub blocks: Vec<Claim>,
    /// What the cluster exports, as the mesh sees it (mapped).
    #[prost(message, repeated, tag = "3")]
    pub exports: Vec<Prefix>,
}

/// Body of EPOCH, in clear.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct EpochBody {
    /// Headers carry its low byte.
    #[prost(uint32, tag = "1")]
    pub epoch: u32,
}

/// Body of REVOKE, in clear.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct RevokeBody {
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub node: Vec<u8>,
    /// Certificates with a lower serial are revoked.
    #[prost(uint64, tag = "2")]
    pub below_serial: u64,
}

#[cfg(test)]
mod tests;
