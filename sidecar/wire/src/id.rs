//! Who is who: keys and the identifiers derived from them.

use std::{fmt, net::Ipv6Addr, ops::RangeInclusive, str::FromStr};

use data_encoding::BASE32_NOPAD;

use crate::put;

macro_rules! bytes_id {
    ($(#[$doc:meta])* $name:ident, $len:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $len]);

        impl $name {
            /// Takes exactly the identifier's length of bytes, or nothing.
            pub fn from_slice(bytes: &[u8]) -> Option<Self> {
                bytes.try_into().ok().map(Self)
            }

            pub fn as_bytes(&self) -> &[u8; $len] {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&BASE32_NOPAD.encode(&self.0).to_ascii_lowercase())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                BASE32_NOPAD
                    .decode(text.to_ascii_uppercase().as_bytes())
                    .ok()
                    .and_then(|bytes| Self::from_slice(&bytes))
                    .ok_or(InvalidId { what: stringify!($name), bytes: $len })
            }
        }
    };
}

bytes_id!(
    /// Names a node for good: the first 128 bits of `BLAKE3("easynet node" ‖ S_pub)`.
    NodeId,
    16
);
bytes_id!(
    /// Names a network: the first 128 bits of `BLAKE3("easynet net" ‖ R_pub)`.
    NetworkId,
    16
);
bytes_id!(
    /// An Ed25519 public key: what a node, or the network's root, signs with.
    SignKey,
    32
);
bytes_id!(
    /// An X25519 public key: a node's Noise static key.
    DhKey,
    32
);

impl NodeId {
    pub fn of(sign: &SignKey) -> Self {
        Self(derive(b"easynet node", &sign.0))
    }

    /// The 64 bits that packet headers carry.
    pub fn short(&self) -> ShortId {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        ShortId(u64::from_le_bytes([a, b, c, d, e, f, g, h]))
    }
}

impl ShortId {
    /// The ids that have this one as their first bytes.
    pub fn nodes(self) -> RangeInclusive<NodeId> {
        let [mut first, mut last] = [[0; 16], [0xff; 16]];
        put(&mut first, 0, &self.0.to_le_bytes());
        put(&mut last, 0, &self.0.to_le_bytes());
        NodeId(first)..=NodeId(last)
    }
}

impl NetworkId {
    pub fn of(root: &SignKey) -> Self {
        Self(derive(b"easynet net", &root.0))
    }

    /// The first address of the network's ULA /48: `fd` and 40 bits of the id.
    pub fn ula(&self) -> Ipv6Addr {
        let [a, b, c, d, e, ..] = self.0;
        Ipv6Addr::from([0xfd, a, b, c, d, e, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
    }

    /// A node's automatic IPv6 address: the network's ULA, then 80 bits of the node's id.
    pub fn address_of(&self, node: NodeId) -> Ipv6Addr {
        let [a, b, c, d, e, ..] = self.0;
        let [f, g, h, i, j, k, l, m, n, o, ..] = node.0;
        Ipv6Addr::from([0xfd, a, b, c, d, e, f, g, h, i, j, k, l, m, n, o])
    }
}

fn derive(label: &[u8], key: &[u8; 32]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(label);
    hasher.update(key);
    let mut id = [0; 16];
    hasher.finalize_xof().fill(&mut id);
    id
}

/// The first 64 bits of a [`NodeId`], as packet headers carry it. Two nodes of one network with the
/// same short id are visible in the LSDB, and the younger is refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShortId(pub u64);

impl fmt::Display for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.0.to_le_bytes()).to_ascii_lowercase())
    }
}

impl fmt::Debug for ShortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A node's two public keys; in URLs, `?k=` is the base32 of `S_pub ‖ D_pub`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKeys {
    pub sign: SignKey,
    pub dh: DhKey,
}

impl NodeKeys {
    pub fn node(&self) -> NodeId {
        NodeId::of(&self.sign)
    }

    pub fn to_bytes(self) -> [u8; 64] {
        let mut bytes = [0; 64];
        crate::put(&mut bytes, 0, &self.sign.0);
        crate::put(&mut bytes, 32, &self.dh.0);
        bytes
    }

    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != 64 {
            return None;
        }
        Some(Self { sign: SignKey(crate::array(bytes, 0)?), dh: DhKey(crate::array(bytes, 32)?) })
    }
}

impl fmt::Display for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&BASE32_NOPAD.encode(&self.to_bytes()).to_ascii_lowercase())
    }
}

impl fmt::Debug for NodeKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for NodeKeys {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        BASE32_NOPAD
            .decode(text.to_ascii_uppercase().as_bytes())
            .ok()
            .and_then(|bytes| Self::from_slice(&bytes))
            .ok_or(InvalidId { what: "node key", bytes: 64 })
    }
}

/// A text that is not the base32 of an identifier or key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a {what}: expected the base32 of {bytes} bytes")]
pub struct InvalidId {
    what: &'static str,
    bytes: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_id_is_that_of_the_nodes_in_its_range_alone() {
        let node = NodeId::of(&SignKey([7; 32]));
        let (mut same, mut other) = (node, node);
        same.0[8] ^= 1;
        other.0[7] ^= 1;

        let nodes = node.short().nodes();

        assert!(nodes.contains(&node) && nodes.contains(&same) && !nodes.contains(&other));
        assert_eq!(node.short(), same.short());
    }

    #[test]
    fn a_node_is_named_by_the_hash_of_its_signing_key() {
        let id = NodeId::of(&SignKey([7; 32]));

        assert_eq!(id, id.to_string().parse().unwrap());
        assert_eq!(id.short().0.to_le_bytes(), id.0[..8]);
        assert_ne!(id.0, NetworkId::of(&SignKey([7; 32])).0);
    }

    #[test]
    fn keys_survive_the_url_and_other_texts_are_refused() {
        let keys = NodeKeys { sign: SignKey([1; 32]), dh: DhKey([2; 32]) };

        assert_eq!(keys.to_string().parse::<NodeKeys>().unwrap(), keys);
        assert!("abc".parse::<NodeKeys>().is_err());
        assert!(NodeKeys::from_slice(&[0; 63]).is_none());
    }
}
