//! The kinds of places where hosts stand, and which pairs of them can meet directly.

use std::time::Duration;

use super::{
    clock::Span,
    edge::{Behaviour, Dependence},
    net::{EdgeId, HostId, Link, Member, Net, Segment},
    world::{Machine, StationId, World},
};

/// A kind of place, edges included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Site {
    /// No edge, both families.
    Public,
    /// No edge, IPv4 alone.
    PublicV4,
    /// A port-restricted home NAT, IPv4 alone.
    HomeNat,
    /// The same with filtered IPv6.
    HomeDual,
    FullCone,
    Restricted,
    OtherPort,
    Leaky,
    Symmetric,
    /// The same with filtered IPv6.
    SymmetricDual,
    Sequential,
    Block,
    AddressDependent,
    /// A home NAT behind a carrier's, both endpoint-independent.
    Carrier,
    UdpBlocked,
    /// Filtered IPv6 and no IPv4.
    V6Only,
}

impl Site {
    pub const ALL: [Self; 16] = [
        Self::Public,
        Self::PublicV4,
        Self::HomeNat,
        Self::HomeDual,
        Self::FullCone,
        Self::Restricted,
        Self::OtherPort,
        Self::Leaky,
        Self::Symmetric,
        Self::SymmetricDual,
        Self::Sequential,
        Self::Block,
        Self::AddressDependent,
        Self::Carrier,
        Self::UdpBlocked,
        Self::V6Only,
    ];

    fn behaviour(self) -> Option<Behaviour> {
        Some(match self {
            Self::Public | Self::PublicV4 => return None,
            Self::HomeNat | Self::HomeDual | Self::V6Only | Self::Carrier => {
                Behaviour::port_restricted()
            }
            Self::FullCone => Behaviour::full_cone(),
            Self::Restricted => Behaviour::restricted(),
            Self::OtherPort => Behaviour::other_port(),
            Self::Leaky => Behaviour::leaky(),
            Self::Symmetric | Self::SymmetricDual => Behaviour::symmetric_random(),
            Self::Sequential => Behaviour::symmetric_sequential(),
            Self::Block => Behaviour::port_block(),
            Self::AddressDependent => Behaviour::address_dependent(),
            Self::UdpBlocked => Behaviour::udp_blocked(),
        })
    }

    fn families(self) -> (bool, bool) {
        let v6 = [Self::Public, Self::HomeDual, Self::SymmetricDual, Self::V6Only];
        (self != Self::V6Only, v6.contains(&self))
    }

    /// Plugs a host in at a new place of this kind, `latency` from the internet.
    pub fn plug(self, net: &mut Net, host: HostId, latency: Duration) {
        let (v4, v6) = self.families();
        let Some(behaviour) = self.behaviour() else {
            net.plug(host, Segment::Internet, v4, v6, Link::of(latency));
            return;
        };
        let mut outside = Segment::Internet;
        if self == Self::Carrier {
            let carrier = Behaviour::other_port();
            outside = Segment::Inside(net.add_edge(carrier, outside, Link::of(1.ms())));
        }
        let edge = net.add_edge(behaviour, outside, Link::of(latency));
        net.plug(host, Segment::Inside(edge), v4, v6, Link::of(200.us()));
    }
}

/// Shares of sites in a world, as [`edges!`](crate::edges) makes them.
#[derive(Clone, Debug)]
pub struct Mix(pub Vec<(u32, Site)>);

impl Mix {
    /// The site of a draw.
    pub fn pick(&self, draw: u64) -> Site {
        let total: u64 = self.0.iter().map(|&(share, _)| u64::from(share)).sum();
        let mut left = draw % total.max(1);
        for &(share, site) in &self.0 {
            match left.checked_sub(u64::from(share)) {
                Some(rest) => left = rest,
                None => return site,
            }
        }
        Site::Public
    }
}

/// `edges![60 % HomeNat, 30 % Public, 10 % Symmetric]`
#[macro_export]
macro_rules! edges {
    ($($share:literal % $site:ident),+ $(,)?) => {
        $crate::sim::site::Mix(vec![$(($share, $crate::sim::site::Site::$site)),+])
    };
}

/// What the underlay permits two stations, by the strategies that exist: on one LAN, over IPv6, one
/// side open, both endpoint-independent. False says "not promised", not "impossible".
pub fn direct_path_possible<M: Machine>(world: &World<M>, a: StationId, b: StationId) -> bool {
    let net = &world.net;
    let (a, b) = (world.host(a), world.host(b));
    let (Some(uplink_a), Some(uplink_b)) = (net.uplink(a), net.uplink(b)) else { return false };
    let (edges_a, edges_b) = (net.edges_before(a), net.edges_before(b));
    let is_isolated = edges_a.first().is_some_and(|&edge| net.is_isolated(edge));
    if uplink_a.segment == uplink_b.segment && uplink_a.segment != Segment::Internet && !is_isolated
    {
        return uplink_a.v4.is_some() == uplink_b.v4.is_some();
    }
    let udp = |edges: &[EdgeId]| edges.iter().all(|&edge| net.edge(edge).behaviour.udp);
    if !udp(&edges_a) || !udp(&edges_b) || !net.connected(net.place(a), net.place(b)) {
        return false;
    }
    if uplink_a.v6.is_some() && uplink_b.v6.is_some() {
        return true;
    }
    if uplink_a.v4.is_none() || uplink_b.v4.is_none() {
        return false;
    }
    // Behind one NAT only a hairpin does.
    let shared = edges_a.iter().find(|edge| edges_b.contains(edge));
    if shared.is_some_and(|&edge| !net.edge(edge).behaviour.hairpin) {
        return false;
    }
    let all = |edges: &[EdgeId], f: fn(&Behaviour) -> bool| {
        edges.iter().all(|&edge| f(&net.edge(edge).behaviour))
    };
    let endpoint_independent =
        |behaviour: &Behaviour| behaviour.mapping == Dependence::EndpointIndependent;
    let open = |behaviour: &Behaviour| {
        behaviour.mapping == Dependence::EndpointIndependent
            && behaviour.filtering == Dependence::EndpointIndependent
    };
    let mapping = all(&edges_a, endpoint_independent) && all(&edges_b, endpoint_independent);
    mapping || all(&edges_a, open) || all(&edges_b, open)
}

/// Whether a station's packets, or at least its stream connections, reach a public one.
pub fn reaches<M: Machine>(world: &World<M>, from: StationId, to: StationId) -> bool {
    let net = &world.net;
    let (from, to) = (world.host(from), world.host(to));
    let (Some(own), Some(theirs)) = (net.uplink(from), net.uplink(to)) else { return false };
    let v4 = own.v4.is_some() && theirs.v4.is_some();
    let v6 = own.v6.is_some() && theirs.v6.is_some();
    (v4 || v6) && net.connected(net.place(from), net.place(to))
}

/// The place on the internet behind which a station is.
pub fn place<M: Machine>(world: &World<M>, id: StationId) -> Member {
    world.net.place(world.host(id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mix_gives_each_its_share() {
        let mix = edges![60 % HomeNat, 30 % Public, 10 % Symmetric];

        let mut counts = std::collections::BTreeMap::new();
        for draw in 0..1000 {
            *counts.entry(mix.pick(draw)).or_insert(0) += 1;
        }

        assert_eq!(
            counts.into_iter().collect::<Vec<_>>(),
            [(Site::Public, 300), (Site::HomeNat, 600), (Site::Symmetric, 100)]
        );
    }
}
