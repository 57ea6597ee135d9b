//! What stands between a site and the rest: a NAT for IPv4, a stateful firewall for IPv6, in the
//! terms of RFC 4787.
//!
//! *Mapping* says which flows share an external port, *allocation* which port it is, *filtering*
//! who may send to it. *Clash* is what a Linux NAT does whose INPUT chain accepts: a packet that finds
//! no mapping is tracked as a flow to the NAT itself, and an own flow that would need the same
//! tuple gets another port for as long as that lasts.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::clock::{SimTime, Span};

/// How long a packet to the NAT itself is tracked (Linux: unreplied UDP).
const CLASH_LIFETIME: Duration = Duration::from_secs(30);
/// Established TCP outlives every scenario.
const TCP_TIMEOUT: Duration = Duration::from_secs(7200);
/// Ports that a NAT hands out by itself.
const DYNAMIC: std::ops::RangeInclusive<u16> = 1024..=65_535;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Proto {
    Udp,
    Tcp,
}

/// What a mapping, or a filter, depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dependence {
    EndpointIndependent,
    AddressDependent,
    AddressPortDependent,
}

/// The external port of a new mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Allocation {
    /// The internal one, where it is free.
    Preserve,
    /// The last one and `step`.
    Sequential {
        step: u16,
    },
    /// Any of `low..=high`.
    Block {
        low: u16,
        high: u16,
    },
    Random,
}

/// How an edge behaves.
#[derive(Clone, Debug, PartialEq)]
pub struct Behaviour {
    pub mapping: Dependence,
    pub filtering: Dependence,
    pub allocation: Allocation,
    /// A UDP mapping without outbound (and, if `inbound_refreshes`, inbound) packets ends.
    pub udp_timeout: Duration,
    pub inbound_refreshes: bool,
    pub hairpin: bool,
    pub clash: bool,
    pub udp: bool,
    /// Ports to which TCP may go; none is all.
    pub tcp_ports: Option<BTreeSet<u16>>,
    /// Unsolicited IPv6 comes in.
    pub v6_open: bool,
}

impl Behaviour {
    /// A Linux `masquerade`: EIM, port preserving, APDF.
    pub fn port_restricted() -> Self {
        Self {
            mapping: Dependence::EndpointIndependent,
            filtering: Dependence::AddressPortDependent,
            allocation: Allocation::Preserve,
            udp_timeout: 120.s(),
            inbound_refreshes: true,
            hairpin: false,
            clash: false,
            udp: true,
            tcp_ports: None,
            v6_open: false,
        }
    }

    pub fn full_cone() -> Self {
        Self { filtering: Dependence::EndpointIndependent, ..Self::port_restricted() }
    }

    pub fn restricted() -> Self {
        Self { filtering: Dependence::AddressDependent, ..Self::port_restricted() }
    }

    /// EIM, but another port outside than inside.
    pub fn other_port() -> Self {
        Self { allocation: Allocation::Random, ..Self::port_restricted() }
    }

    pub fn symmetric_random() -> Self {
        Self {
            mapping: Dependence::AddressPortDependent,
            allocation: Allocation::Random,
            ..Self::port_restricted()
        }
    }

    pub fn symmetric_sequential() -> Self {
        Self { allocation: Allocation::Sequential { step: 1 }, ..Self::symmetric_random() }
    }

    pub fn port_block() -> Self {
        Self {
            allocation: Allocation::Block { low: 40_000, high: 40_255 },
            ..Self::symmetric_random()
        }
    }

    pub fn address_dependent() -> Self {
        Self { mapping: Dependence::AddressDependent, ..Self::symmetric_random() }
    }

    /// Port-restricted without the input drop: a packet that comes too early poisons.
    pub fn leaky() -> Self {
        Self { clash: true, ..Self::port_restricted() }
    }

    /// Lets out TCP to 80 and 443 and nothing else.
    pub fn udp_blocked() -> Self {
        Self { udp: false, tcp_ports: Some([80, 443].into()), ..Self::port_restricted() }
    }

    #[must_use]
    pub fn with_hairpin(self) -> Self {
        Self { hairpin: true, ..self }
    }
}

/// A flow in the order of the inside: from, and to whom.
type Flow = (Proto, SocketAddr, SocketAddr);

/// One NAT or firewall, its tables included.
#[derive(Debug)]
pub struct Edge {
    pub behaviour: Behaviour,
    /// The external IPv4 address.
    pub external: IpAddr,
    random: ChaCha8Rng,
    mappings: BTreeMap<Key, Mapping>,
    /// Mappings by external port.
    ports: BTreeMap<(Proto, u16), BTreeSet<Key>>,
    /// IPv6 flows that the inside began.
    flows: BTreeMap<Flow, SimTime>,
    /// Tracked packets to the NAT itself: external port and who sent them.
    clashes: BTreeMap<(Proto, u16, SocketAddr), SimTime>,
    last_port: u16,
    pub dropped: u64,
}

/// What flows of one mapping have in common; `only` is the remote of one that had to be set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    proto: Proto,
    inside: SocketAddr,
    ip: Option<IpAddr>,
    port: Option<u16>,
}

#[derive(Debug)]
struct Mapping {
    external: u16,
    used: SimTime,
    /// Whom the inside sent to through it.
    remotes: BTreeSet<SocketAddr>,
}

impl Edge {
    pub fn new(behaviour: Behaviour, external: IpAddr, seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let last_port = 20_000 + (random.next_u32() % 20_000) as u16;
        Self {
            behaviour,
            external,
            random,
            mappings: BTreeMap::new(),
            ports: BTreeMap::new(),
            flows: BTreeMap::new(),
            clashes: BTreeMap::new(),
            last_port,
            dropped: 0,
        }
    }

    /// Sends a packet out: its source as the outside sees it, or nothing if it does not get out.
    pub fn outbound(
        &mut self,
        proto: Proto,
        src: SocketAddr,
        dst: SocketAddr,
        now: SimTime,
    ) -> Option<SocketAddr> {
        let permitted = self.permits(proto, dst);
        let source = permitted.then(|| self.outbound_permitted(proto, src, dst, now)).flatten();
        self.dropped += u64::from(source.is_none());
        source
    }

    /// Takes a packet in: its destination inside, or nothing if it is filtered.
    pub fn inbound(
        &mut self,
        proto: Proto,
        src: SocketAddr,
        dst: SocketAddr,
        now: SimTime,
    ) -> Option<SocketAddr> {
        let inside = match dst {
            SocketAddr::V4(_) => self.inbound_v4(proto, src, dst.port(), now),
            SocketAddr::V6(_) => self.inbound_v6(proto, src, dst, now),
        };
        self.dropped += u64::from(inside.is_none());
        inside
    }

    /// Takes a packet that the inside sent to the external address: its source and destination inside.
    pub fn hairpin(
        &mut self,
        proto: Proto,
        src: SocketAddr,
        dst: SocketAddr,
        now: SimTime,
    ) -> Option<(SocketAddr, SocketAddr)> {
        if !self.behaviour.hairpin {
            self.dropped += 1;
            return None;
        }
        let source = self.outbound(proto, src, dst, now)?;
        Some((source, self.inbound(proto, source, dst, now)?))
    }

    /// Forgets everything, as a reboot does.
    pub fn reboot(&mut self) {
        self.mappings.clear();
        self.ports.clear();
        self.flows.clear();
        self.clashes.clear();
    }

    /// Mappings and flows alive.
    pub fn len(&self, now: SimTime) -> usize {
        let mappings =
            self.mappings.iter().filter(|(key, mapping)| self.is_alive(key, mapping, now));
        mappings.count() + self.flows.len()
    }

    fn permits(&self, proto: Proto, dst: SocketAddr) -> bool {
        match proto {
            Proto::Udp => self.behaviour.udp,
            Proto::Tcp => {
                self.behaviour.tcp_ports.as_ref().is_none_or(|ports| ports.contains(&dst.port()))
            }
        }
    }

    fn outbound_permitted(
        &mut self,
        proto: Proto,
        src: SocketAddr,
        dst: SocketAddr,
        now: SimTime,
    ) -> Option<SocketAddr> {
        if src.is_ipv6() {
            self.flows.insert((proto, src, dst), now);
            return Some(src);
        }
        let apart = Key { proto, inside: src, ip: Some(dst.ip()), port: Some(dst.port()) };
        let shared = match self.behaviour.mapping {
            Dependence::EndpointIndependent => Key { ip: None, port: None, ..apart },
            Dependence::AddressDependent => Key { port: None, ..apart },
            Dependence::AddressPortDependent => apart,
        };
        self.expire(&apart, now);
        self.expire(&shared, now);
        // A flow that was set apart stays so.
        let key = if self.mappings.contains_key(&apart) { apart } else { shared };
        let key = if self.clashes_with(&key, dst, now) { apart } else { key };
        if !self.mappings.contains_key(&key) {
            let external = self.allocate(&key, dst, now)?;
            self.mappings.insert(key, Mapping { external, used: now, remotes: BTreeSet::new() });
            self.ports.entry((proto, external)).or_default().insert(key);
        }
        let mapping = self.mappings.get_mut(&key)?;
        mapping.used = now;
        mapping.remotes.insert(dst);
        Some(SocketAddr::new(self.external, mapping.external))
    }

    /// Whether the flow's tuple is taken by a tracked packet of the remote's to the NAT itself.
    fn clashes_with(&self, key: &Key, dst: SocketAddr, now: SimTime) -> bool {
        let wanted = match self.mappings.get(key) {
            // An answered flow of the mapping keeps its tuple.
            Some(mapping) if mapping.remotes.contains(&dst) => return false,
            Some(mapping) => mapping.external,
            None if self.behaviour.allocation == Allocation::Preserve => key.inside.port(),
            None => return false,
        };
        let tracked = self.clashes.get(&(key.proto, wanted, dst));
        tracked.is_some_and(|&seen| now < seen + CLASH_LIFETIME)
    }

    fn inbound_v4(
        &mut self,
        proto: Proto,
        src: SocketAddr,
        port: u16,
        now: SimTime,
    ) -> Option<SocketAddr> {
        let keys: Vec<Key> =
            self.ports.get(&(proto, port)).into_iter().flatten().copied().collect();
        for key in keys {
            self.expire(&key, now);
            let filtering = self.behaviour.filtering;
            let Some(mapping) = self.mappings.get_mut(&key) else { continue };
            let passes = match filtering {
                Dependence::EndpointIndependent => true,
                Dependence::AddressDependent => {
                    mapping.remotes.iter().any(|remote| remote.ip() == src.ip())
                }
                Dependence::AddressPortDependent => mapping.remotes.contains(&src),
            };
            if passes {
                if self.behaviour.inbound_refreshes {
                    mapping.used = now;
                }
                return Some(key.inside);
            }
        }
        if self.behaviour.clash && proto == Proto::Udp {
            self.clashes.insert((proto, port, src), now);
        }
        None
    }

    fn inbound_v6(
        &mut self,
        proto: Proto,
        src: SocketAddr,
        dst: SocketAddr,
        now: SimTime,
    ) -> Option<SocketAddr> {
        if self.behaviour.v6_open {
            return Some(dst);
        }
        let timeout = self.timeout(proto);
        let seen = self.flows.get_mut(&(proto, dst, src))?;
        if now >= *seen + timeout {
            self.flows.remove(&(proto, dst, src));
            return None;
        }
        *seen = now;
        Some(dst)
    }

    fn allocate(&mut self, key: &Key, dst: SocketAddr, now: SimTime) -> Option<u16> {
        let free = |edge: &mut Self, port: u16| edge.is_free(key, port, dst, now).then_some(port);
        match self.behaviour.allocation {
            Allocation::Preserve => {
                free(self, key.inside.port()).or_else(|| self.random_port(key, dst, now))
            }
            Allocation::Random => self.random_port(key, dst, now),
            Allocation::Sequential { step } => (0..u16::MAX).find_map(|_| {
                let next = self.last_port.checked_add(step).unwrap_or(*DYNAMIC.start());
                self.last_port = next.max(*DYNAMIC.start());
                free(self, self.last_port)
            }),
            Allocation::Block { low, high } => {
                let size = u32::from(high - low) + 1;
                let offset = self.random.next_u32() % size;
                (0..size).find_map(|i| free(self, low + ((offset + i) % size) as u16))
            }
        }
    }

    fn random_port(&mut self, key: &Key, dst: SocketAddr, now: SimTime) -> Option<u16> {
        let size = u32::from(DYNAMIC.end() - DYNAMIC.start()) + 1;
        (0..1000).find_map(|_| {
            let port = DYNAMIC.start() + (self.random.next_u32() % size) as u16;
            self.is_free(key, port, dst, now).then_some(port)
        })
    }

    /// Whether `port` is free for the flow: for everybody where mappings are shared, else only for its tuple.
    fn is_free(&mut self, key: &Key, port: u16, dst: SocketAddr, now: SimTime) -> bool {
        let users: Vec<Key> =
            self.ports.get(&(key.proto, port)).into_iter().flatten().copied().collect();
        for user in &users {
            self.expire(user, now);
        }
        let tracked = self.clashes.get(&(key.proto, port, dst));
        if tracked.is_some_and(|&seen| now < seen + CLASH_LIFETIME) {
            return false;
        }
        let users = self.ports.get(&(key.proto, port)).into_iter().flatten();
        users.into_iter().all(|user| {
            let of_one_remote = key.port.is_some() && user.port.is_some();
            of_one_remote && (user.ip, user.port) != (key.ip, key.port)
        })
    }

    fn expire(&mut self, key: &Key, now: SimTime) {
        let Some(mapping) = self.mappings.get(key) else { return };
        if self.is_alive(key, mapping, now) {
            return;
        }
        let port = (key.proto, mapping.external);
        self.mappings.remove(key);
        if let Some(users) = self.ports.get_mut(&port) {
            users.remove(key);
            if users.is_empty() {
                self.ports.remove(&port);
            }
        }
    }

    fn is_alive(&self, key: &Key, mapping: &Mapping, now: SimTime) -> bool {
        now < mapping.used + self.timeout(key.proto)
    }

    fn timeout(&self, proto: Proto) -> Duration {
        match proto {
            Proto::Udp => self.behaviour.udp_timeout,
            Proto::Tcp => TCP_TIMEOUT,
        }
    }
}

#[cfg(test)]
mod tests;
