//! Certificates and attributes: what an issuer says of a node.
//!
//! Both travel as [`Signed`]: the body's raw bytes and the issuer's signature over
//! `context ‖ body`; nobody re-encodes before verifying.

/// Context of an identity certificate's signature.
pub const IDENTITY_CONTEXT: &[u8] = b"easynet identity certificate v1";
/// Context of the signature over attributes.
pub const ATTRIBUTES_CONTEXT: &[u8] = b"easynet attributes v1";

/// Bytes with a signature over them.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Signed {
    /// The encoded [`Identity`] or [`Attributes`].
    #[prost(bytes = "vec", tag = "1")]
    pub body: Vec<u8>,
    /// Ed25519, 64 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub signature: Vec<u8>,
}

/// May carry other members' traffic.
pub const CAPABILITY_TRANSIT: u32 = 1;

/// The identity certificate; all that a public server ever sees of a member.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Identity {
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// 16 bytes.
    #[prost(bytes = "vec", tag = "2")]
    pub network: Vec<u8>,
    /// The node's Ed25519 key, 32 bytes.
    #[prost(bytes = "vec", tag = "3")]
    pub sign: Vec<u8>,
    /// The node's X25519 key, 32 bytes.
    #[prost(bytes = "vec", tag = "4")]
    pub dh: Vec<u8>,
    #[prost(uint64, tag = "5")]
    pub serial: u64,
    /// Unix seconds.
    #[prost(uint64, tag = "6")]
    pub not_before: u64,
    /// Unix seconds; 0 is never.
    #[prost(uint64, tag = "7")]
    pub not_after: u64,
    /// A sum of bits; [`CAPABILITY_TRANSIT`] is one, others are kept and not asked for.
    #[prost(uint32, tag = "8")]
    pub capabilities: u32,
    /// The network root's Ed25519 key, 32 bytes; its hash is the network's id.
    #[prost(bytes = "vec", tag = "9")]
    pub issuer: Vec<u8>,
}

/// What only members may see of a member; bound to its signing key.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Attributes {
    /// The node's Ed25519 key, 32 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub sign: Vec<u8>,
    #[prost(string, tag = "2")]
    pub hostname: String,
    /// Overlay addresses fixed by the issuer, as [`Prefix`]es of full length.
    #[prost(message, repeated, tag = "3")]
    pub addresses: Vec<Prefix>,
    /// Prefixes that the node may announce; `any_prefix` lifts the restriction (secret mode).
    #[prost(message, repeated, tag = "4")]
    pub prefixes: Vec<Prefix>,
    #[prost(bool, tag = "5")]
    pub any_prefix: bool,
    #[prost(string, repeated, tag = "6")]
    pub groups: Vec<String>,
    #[prost(uint64, tag = "7")]
    pub serial: u64,
    /// Unix seconds; 0 is never.
    #[prost(uint64, tag = "8")]
    pub not_after: u64,
}

/// An IP prefix: 4 or 16 address bytes and a length.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Message)]
pub struct Prefix {
    #[prost(bytes = "vec", tag = "1")]
    pub address: Vec<u8>,
    #[prost(uint32, tag = "2")]
    pub length: u32,
}

impl Prefix {
    pub fn new(address: std::net::IpAddr, length: u8) -> Self {
        let address = match address {
            std::net::IpAddr::V4(v4) => v4.octets().to_vec(),
            std::net::IpAddr::V6(v6) => v6.octets().to_vec(),
        };
        Self { address, length: u32::from(length) }
    }

    /// The address and length, if they are ones.
    pub fn parse(&self) -> Option<(std::net::IpAddr, u8)> {
        let (address, most): (std::net::IpAddr, u32) = match self.address.len() {
            4 => (crate::array::<4>(&self.address, 0)?.into(), 32),
            16 => (crate::array::<16>(&self.address, 0)?.into(), 128),
            _ => return None,
        };
        if self.length > most {
            return None;
        }
        Some((address, u8::try_from(self.length).ok()?))
    }
}

#[cfg(test)]
mod tests;
