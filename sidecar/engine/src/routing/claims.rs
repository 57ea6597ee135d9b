//! Automatic addresses: IPv6 from the key, IPv4 by a claim that the network settles.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use wire::id::{NetworkId, NodeId};

/// A claim this much older wins whatever the ids, in seconds: long enough that clocks and partitions do not matter.
const SENIORITY_S: u64 = 600;
/// The start of a range is left to people's own choices.
const RESERVED: u32 = 16;

/// Whether claim `a` beats claim `b`, each a time (unix seconds) and a claimant.
pub fn wins(a: (u64, NodeId), b: (u64, NodeId)) -> bool {
    if a.0 + SENIORITY_S < b.0 {
        return true;
    }
    if b.0 + SENIORITY_S < a.0 {
        return false;
    }
    a.1 < b.1
}

/// Picks an address of `range` that nobody in `taken` has: from the node's key, then the next free one. `None` if the range is
/// full.
pub fn pick(node: NodeId, range: Ipv4Net, taken: &BTreeMap<Ipv4Addr, NodeId>) -> Option<Ipv4Addr> {
    let size = 1_u32.checked_shl(32 - u32::from(range.prefix_len()))?;
    let reserved = if size > 4 * RESERVED { RESERVED } else { 1 };
    let usable = size.checked_sub(reserved + 1).filter(|usable| *usable > 0)?;
    let [a, b, c, d, ..] = *blake3::hash(&node.0).as_bytes();
    let start = u32::from_le_bytes([a, b, c, d]) % usable;
    (0..usable)
        .map(|step| Ipv4Addr::from(u32::from(range.network()) + reserved + (start + step) % usable))
        .find(|address| taken.get(address).is_none_or(|owner| *owner == node))
}

/// The network's ULA /48: `fd` and 40 bits of its id.
pub fn ula(network: NetworkId) -> Ipv6Net {
    Ipv6Net::new(network.ula(), 48).unwrap_or_default()
}

/// A node's IPv6 address: the network's ULA, then 80 bits of the node's id.
pub fn ipv6(network: NetworkId, node: NodeId) -> Ipv6Addr {
    network.address_of(node)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOW: NodeId = NodeId([1; 16]);
    const HIGH: NodeId = NodeId([2; 16]);

    #[test]
    fn seniority_wins_then_the_lower_id() {
        for (a, b, expected) in [
            ((1000, LOW), (1000, HIGH), true),
            ((1000, HIGH), (1000, LOW), false),
            ((1000, HIGH), (1600, LOW), false),
            ((1000, HIGH), (1601, LOW), true),
            ((1601, LOW), (1000, HIGH), false),
        ] {
            assert_eq!(wins(a, b), expected, "{a:?} {b:?}");
            assert_eq!(wins(b, a), !expected, "{b:?} {a:?}");
        }
    }

    #[test]
    fn a_pick_is_stable_free_and_no_special_address() {
        let range: Ipv4Net = "10.1.2.0/24".parse().unwrap();
        let first = pick(LOW, range, &BTreeMap::new()).unwrap();
        assert_eq!(pick(LOW, range, &BTreeMap::from([(first, LOW)])), Some(first));
        assert_ne!(pick(LOW, range, &BTreeMap::from([(first, HIGH)])), Some(first));

        let mut taken = BTreeMap::new();
        while let Some(address) = pick(LOW, range, &taken) {
            taken.insert(address, HIGH);
        }
        assert_eq!(taken.len(), 256 - 16 - 1);
        assert!(!taken.contains_key(&"10.1.2.0".parse().unwrap()));
        assert!(!taken.contains_key(&"10.1.2.255".parse().unwrap()));
    }

    #[test]
    fn ipv6_comes_from_network_and_key() {
        let address = ipv6(NetworkId([0xab; 16]), LOW);

        assert_eq!(address, "fdab:abab:abab:101:101:101:101:101".parse::<Ipv6Addr>().unwrap());
        assert!(ula(NetworkId([0xab; 16])).contains(&address));
    }
}
