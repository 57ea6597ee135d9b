//! Which way two NATs can be crossed: a table over both profiles, the same from either side.

use wire::endpoint::{Behaviour, NatProfile, V6};

/// The plans there are; more are rows of [`plan`]'s table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Strategy {
    /// Behind one NAT or in one network: host addresses.
    Lan,
    /// IPv6 on both sides: both open their firewalls.
    V6,
    /// One side can be reached as it is.
    Open,
    /// Endpoint-independent mappings on both sides: both send at once.
    Cone,
    /// Such a mapping on one side: the other sends to it, and comes through if that side filters by address at most, which
    /// its own packets have opened.
    OneSided,
    /// Nothing applies: the relay carries it.
    Relay,
}

impl Strategy {
    /// As events and metrics name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lan => "S0",
            Self::V6 => "S1",
            Self::Open => "S2",
            Self::Cone => "S3",
            Self::OneSided => "S4",
            Self::Relay => "S12",
        }
    }
}

/// A strategy and how it is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    pub strategy: Strategy,
    /// Packets, at most.
    pub budget: usize,
    /// Two packets with a small TTL open our NAT before the peer's packet can arrive and take the mapping.
    pub openers: bool,
}

/// Chooses; `plan(a, b) == plan(b, a)`.
pub fn plan(a: &NatProfile, b: &NatProfile) -> Plan {
    let openers = a.clash_risk || b.clash_risk;
    let same_nat = !a.external.is_empty() && a.external.iter().any(|ip| b.external.contains(ip));
    let both_v6 = a.v6() != V6::None && b.v6() != V6::None;
    let blocked = a.udp_blocked || b.udp_blocked;
    let (strategy, budget) = if same_nat {
        (Strategy::Lan, 64)
    } else if both_v6 {
        (Strategy::V6, 64)
    } else if blocked {
        (Strategy::Relay, 24)
    } else if open(a) || open(b) {
        (Strategy::Open, 64)
    } else if independent(a) && independent(b) {
        (Strategy::Cone, 64)
    } else if independent(a) || independent(b) {
        (Strategy::OneSided, 16)
    } else {
        (Strategy::Relay, 24)
    };
    Plan { strategy, budget, openers }
}

/// A hash of the plan, for both sides to compare.
pub fn hash(plan: &Plan) -> u64 {
    plan.strategy as u64 | (plan.budget as u64) << 8 | u64::from(plan.openers) << 32
}

fn open(profile: &NatProfile) -> bool {
    profile.mapping() == Behaviour::None
        || profile.filtering() == Behaviour::EndpointIndependent
        || profile.port_mapped
}

/// Not known yet counts as a cone: most NATs are, and the attempt is a few packets.
fn independent(profile: &NatProfile) -> bool {
    matches!(
        profile.mapping(),
        Behaviour::EndpointIndependent | Behaviour::Unknown | Behaviour::None
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(mapping: Behaviour, filtering: Behaviour) -> NatProfile {
        NatProfile { mapping: mapping as i32, filtering: filtering as i32, ..NatProfile::default() }
    }

    #[test]
    fn the_table_is_symmetric_and_says_what_the_field_knows() {
        use Behaviour::{
            AddressPortDependent as Apd, EndpointIndependent as Ei, None as Open, Unknown,
        };
        for (a, b, expected) in [
            (nat(Ei, Apd), nat(Ei, Apd), Strategy::Cone),
            (nat(Ei, Ei), nat(Apd, Apd), Strategy::Open),
            (nat(Open, Unknown), nat(Apd, Apd), Strategy::Open),
            (nat(Ei, Apd), nat(Apd, Apd), Strategy::OneSided),
            (nat(Apd, Apd), nat(Apd, Apd), Strategy::Relay),
            (nat(Unknown, Unknown), nat(Ei, Apd), Strategy::Cone),
        ] {
            assert_eq!(plan(&a, &b).strategy, expected, "{a:?} {b:?}");
            assert_eq!(plan(&a, &b), plan(&b, &a));
        }
    }

    #[test]
    fn ipv6_on_both_sides_beats_any_ipv4_nat() {
        let v6 = NatProfile {
            v6: V6::Filtered as i32,
            ..nat(Behaviour::AddressPortDependent, Behaviour::Unknown)
        };

        assert_eq!(plan(&v6, &v6).strategy, Strategy::V6);
    }
}
