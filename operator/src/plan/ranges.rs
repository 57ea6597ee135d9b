//! Arithmetic of address ranges: maps, overlaps, summaries.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Ranges that a list in a configuration has at most.
pub const MOST: usize = 64;

/// Whether two ranges share an address.
pub fn overlap(a: IpNet, b: IpNet) -> bool {
    a.contains(&b) || b.contains(&a)
}

/// The part of `to` that `part` is in `from`, address by address. `None` if `part` is not in `from`, or the two are not of one
/// length.
pub fn mapped(part: IpNet, from: IpNet, to: IpNet) -> Option<IpNet> {
    if !from.contains(&part) || from.prefix_len() != to.prefix_len() {
        return None;
    }
    let net = match (part.network(), from.network(), to.network()) {
        (IpAddr::V4(part), IpAddr::V4(from), IpAddr::V4(to)) => {
            IpAddr::V4((u32::from(to) + (u32::from(part) - u32::from(from))).into())
        }
        (IpAddr::V6(part), IpAddr::V6(from), IpAddr::V6(to)) => {
            IpAddr::V6((u128::from(to) + (u128::from(part) - u128::from(from))).into())
        }
        _ => return None,
    };
    IpNet::new(net, part.prefix_len()).ok()
}

/// At most [`MOST`] ranges that cover all of `ranges`: joined where that adds nothing, widened where they are too many. Where the
/// summary says what must not be imported, too wide is safe; a summary never reaches a /8 (or /16) just to become shorter.
pub fn summary(ranges: impl IntoIterator<Item = IpNet>) -> Vec<IpNet> {
    let mut all = IpNet::aggregate(&ranges.into_iter().map(|range| range.trunc()).collect());
    let mut v4 = 31;
    let mut v6 = 120;
    while all.len() > MOST && (v4 > 8 || v6 > 16) {
        let widened = all.iter().map(|range| match range {
            IpNet::V4(range) if range.prefix_len() > v4 => {
                IpNet::V4(Ipv4Net::new(range.addr(), v4).unwrap_or(*range).trunc())
            }
            IpNet::V6(range) if range.prefix_len() > v6 => {
                IpNet::V6(Ipv6Net::new(range.addr(), v6).unwrap_or(*range).trunc())
            }
            IpNet::V4(_) | IpNet::V6(_) => *range,
        });
        all = IpNet::aggregate(&widened.collect());
        v4 = v4.saturating_sub(1).max(8);
        v6 = v6.saturating_sub(8).max(16);
    }
    all.sort();
    all
}

/// The first range of the length of `like` in 10.200.0.0 … 10.255.255.255, then in 172.16/12, that overlaps none of `used`;
/// for IPv6 in fd00:ea::/32.
pub fn free_like(like: IpNet, used: &[IpNet]) -> Option<IpNet> {
    let pools: &[&str] = match like {
        IpNet::V4(_) => {
            &["10.200.0.0/13", "10.208.0.0/12", "10.224.0.0/11", "172.16.0.0/12", "10.0.0.0/8"]
        }
        IpNet::V6(_) => &["fd00:ea::/32"],
    };
    let pools = pools.iter().filter_map(|pool| pool.parse::<IpNet>().ok());
    pools
        .filter(|pool| pool.prefix_len() <= like.prefix_len())
        .filter_map(|pool| pool.subnets(like.prefix_len()).ok())
        .find_map(|subnets| {
            subnets.take(4096).find(|subnet| !used.iter().any(|used| overlap(*used, *subnet)))
        })
}

/// A single address as a range.
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn a_part_is_mapped_to_the_same_place_of_the_other_range() {
        let (from, to) = (net("10.42.0.0/16"), net("10.200.0.0/16"));

        assert_eq!(mapped(net("10.42.7.0/24"), from, to), Some(net("10.200.7.0/24")));
        assert_eq!(mapped(from, from, to), Some(to));
        assert_eq!(mapped(net("10.43.7.0/24"), from, to), None);
        assert_eq!(mapped(net("10.0.0.0/8"), from, to), None);
        assert_eq!(
            mapped(net("fd00:42:0:7::/64"), net("fd00:42::/48"), net("fd00:99::/48")),
            Some(net("fd00:99:0:7::/64"))
        );
    }

    #[test]
    fn neighbours_are_joined() {
        let ranges = (0..256).map(|node| net(&format!("10.244.{node}.0/24")));

        assert_eq!(summary(ranges), [net("10.244.0.0/16")]);
    }

    #[test]
    fn a_free_range_overlaps_nothing_that_is_used() {
        let like = net("10.244.0.0/16");

        assert_eq!(free_like(like, &[]), Some(net("10.200.0.0/16")));
        assert_eq!(
            free_like(like, &[net("10.200.0.0/15"), net("10.202.3.0/24")]),
            Some(net("10.203.0.0/16"))
        );
        assert_eq!(free_like(net("10.0.0.0/7"), &[]), None);
    }

    proptest! {
        #[test]
        fn a_summary_covers_all_and_is_short(
            hosts in proptest::collection::vec(any::<u32>(), 1..400),
        ) {
            let ranges: Vec<IpNet> =
                hosts.iter().map(|host| super::host(IpAddr::V4((*host).into()))).collect();
            let summary = summary(ranges.clone());

            prop_assert!(summary.len() <= 256);
            for range in ranges {
                prop_assert!(summary.iter().any(|wide| wide.contains(&range)));
            }
        }
    }
}
