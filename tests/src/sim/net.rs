//! Hosts, links and segments, and the way of a packet through them, step by step.
//!
//! ```text
//!   host ──uplink── LAN ── edge ──uplink── internet ──uplink── host (public)
//!                    │                        │
//!   host ──uplink────┘     LAN ── edge ──uplink── carrier's LAN ── edge ──uplink── internet
//! ```
//! A *segment* is where addresses are unique: the internet, or the inside of an edge. Homes share
//! their private range, as they do. A step is what happens at one place at one time, so that a
//! packet meets a NAT in the state it has when it gets there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

pub use super::edge::Proto;
use super::{
    clock::{SimTime, Span},
    edge::{Behaviour, Edge},
    stream::Segment as StreamSegment,
};

/// Time to live of an ordinary packet.
pub const TTL: u8 = 64;
/// Routers between two uplinks of the internet: an opener with a TTL of 2–5 dies among them.
const CORE_HOPS: u8 = 6;
/// A link's queue holds this much; what would wait longer is dropped.
const QUEUE: Duration = Duration::from_millis(200);
/// Distance of two places of the internet that nothing else was said about.
const CORE_LATENCY: Duration = Duration::from_millis(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub usize);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EdgeId(pub usize);

/// Where an uplink is plugged in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Segment {
    Internet,
    Inside(EdgeId),
}

/// What an address of a segment belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    Host(HostId),
    Edge(EdgeId),
}

/// A packet on the underlay.
#[derive(Clone, Debug)]
pub struct Packet {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub ttl: u8,
    pub payload: Payload,
}

#[derive(Clone, Debug)]
pub enum Payload {
    Udp(Bytes),
    Tcp(StreamSegment),
}

impl Packet {
    pub fn proto(&self) -> Proto {
        match self.payload {
            Payload::Udp(_) => Proto::Udp,
            Payload::Tcp(_) => Proto::Tcp,
        }
    }

    /// Bytes on the wire, outer headers included.
    pub fn len(&self) -> usize {
        let ip = if self.dst.is_ipv4() { 20 } else { 40 };
        match &self.payload {
            Payload::Udp(bytes) => ip + 8 + bytes.len(),
            Payload::Tcp(segment) => ip + 20 + segment.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        false
    }
}

/// How a link carries packets, each way.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    pub latency: Duration,
    pub jitter: Duration,
    /// Of a million packets, so many are lost.
    pub loss_ppm: u32,
    /// Of a million packets, so many may overtake or fall behind within `jitter`.
    pub reorder_ppm: u32,
    /// Bytes per second.
    pub rate: Option<u64>,
    pub mtu: usize,
    pub up: bool,
}

impl Default for Link {
    fn default() -> Self {
        Self {
            latency: 1.ms(),
            jitter: Duration::ZERO,
            loss_ppm: 0,
            reorder_ppm: 0,
            rate: None,
            mtu: 1500,
            up: true,
        }
    }
}

impl Link {
    pub fn of(latency: Duration) -> Self {
        Self { latency, ..Self::default() }
    }

    #[must_use]
    pub fn with_loss(self, percent: u32) -> Self {
        Self { loss_ppm: percent * 10_000, ..self }
    }

    #[must_use]
    pub fn with_jitter(self, jitter: Duration) -> Self {
        Self { jitter, ..self }
    }

    #[must_use]
    pub fn with_mtu(self, mtu: usize) -> Self {
        Self { mtu, ..self }
    }

    #[must_use]
    pub fn with_rate(self, bytes_per_second: u64) -> Self {
        Self { rate: Some(bytes_per_second), ..self }
    }
}

/// A plug: a link to a segment and the addresses there.
#[derive(Clone, Debug)]
pub struct Uplink {
    pub segment: Segment,
    pub v4: Option<Ipv4Addr>,
    pub v6: Option<Ipv6Addr>,
    pub link: Link,
    up: Lane,
    down: Lane,
}

/// One direction of a link. What crosses is computed when it is sent, so that a packet from nearby may be looked at after one
/// from far away and yet enter before it: then it does not wait for that one, unless the link has a rate, whose queue is in the order of sending.
#[derive(Clone, Copy, Debug, Default)]
struct Lane {
    busy_until: SimTime,
    last_entry: SimTime,
    last_arrival: SimTime,
}

#[derive(Debug)]
struct Host {
    /// In order of preference; the first that is up carries.
    uplinks: Vec<Uplink>,
    sent: Traffic,
    received: Traffic,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub packets: u64,
    pub bytes: u64,
}

impl Traffic {
    fn count(&mut self, len: usize) {
        self.packets += 1;
        self.bytes += len as u64;
    }
}

/// Why packets did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lost {
    NoUplink,
    LinkDown,
    Loss,
    Queue,
    TooBig,
    Unroutable,
    Partition,
    Ttl,
    Edge,
}

/// What happens next to a packet, somewhere.
#[derive(Clone, Debug)]
pub enum Step {
    Outward { edge: EdgeId, packet: Packet },
    Inward { edge: EdgeId, packet: Packet },
    Arrive { host: HostId, packet: Packet },
}

/// The underlay, whole.
#[derive(Debug)]
pub struct Net {
    hosts: Vec<Host>,
    edges: Vec<(Edge, Uplink)>,
    members: BTreeMap<(Segment, IpAddr), Member>,
    /// Groups of places of the internet that cannot reach each other; 0 unless said otherwise.
    groups: BTreeMap<Member, u32>,
    /// One-way latency between places of the internet, where it is not the default.
    distances: BTreeMap<(Member, Member), Duration>,
    /// Pairs of places between which nothing passes.
    cut: BTreeSet<(Member, Member)>,
    /// Positions on a plane of milliseconds, for worlds without explicit distances.
    positions: BTreeMap<Member, (u32, u32)>,
    random: ChaCha8Rng,
    lost: BTreeMap<Lost, u64>,
    next_public: u32,
    next_edge: u32,
    next_lan: BTreeMap<EdgeId, u32>,
    /// Insides whose hosts cannot see each other.
    isolated: BTreeSet<EdgeId>,
    /// Draws for everything that makes edges differ.
    edge_seed: u64,
}

impl Net {
    pub fn new(seed: u64) -> Self {
        Self {
            hosts: Vec::new(),
            edges: Vec::new(),
            members: BTreeMap::new(),
            groups: BTreeMap::new(),
            distances: BTreeMap::new(),
            cut: BTreeSet::new(),
            positions: BTreeMap::new(),
            random: ChaCha8Rng::seed_from_u64(seed ^ 0x6e65_7400),
            lost: BTreeMap::new(),
            next_public: 0,
            next_edge: 0,
            next_lan: BTreeMap::new(),
            isolated: BTreeSet::new(),
            edge_seed: seed,
        }
    }

    /// Adds an edge before `outside`, with an address of its own there.
    pub fn add_edge(&mut self, behaviour: Behaviour, outside: Segment, link: Link) -> EdgeId {
        let id = EdgeId(self.edges.len());
        self.next_edge += 1;
        let v4 = match outside {
            Segment::Internet => Ipv4Addr::from_bits(0x1400_0000 + self.next_edge),
            Segment::Inside(outer) => self.lan_address(outer),
        };
        self.edge_seed = self.edge_seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let uplink = Uplink::new(outside, Some(v4), None, link);
        self.edges.push((Edge::new(behaviour, v4.into(), self.edge_seed), uplink));
        self.members.insert((outside, v4.into()), Member::Edge(id));
        id
    }

    pub fn add_host(&mut self) -> HostId {
        let host =
            Host { uplinks: Vec::new(), sent: Traffic::default(), received: Traffic::default() };
        self.hosts.push(host);
        HostId(self.hosts.len() - 1)
    }

    /// Plugs a host in, as its last choice, with new addresses of the families asked for.
    pub fn plug(&mut self, host: HostId, segment: Segment, v4: bool, v6: bool, link: Link) {
        let v4 = v4.then(|| match segment {
            Segment::Internet => {
                self.next_public += 1;
                Ipv4Addr::from_bits(0x0500_0000 + self.next_public)
            }
            Segment::Inside(edge) => self.lan_address(edge),
        });
        let v6 = v6.then(|| {
            self.next_public += 1;
            let site = match segment {
                Segment::Internet => 0,
                Segment::Inside(EdgeId(edge)) => edge as u128 + 1,
            };
            Ipv6Addr::from_bits(0x2a00_0000 << 96 | site << 64 | u128::from(self.next_public))
        });
        if let Some(v4) = v4 {
            self.members.insert((segment, v4.into()), Member::Host(host));
        }
        if let Some(v6) = v6 {
            self.members.insert((segment, v6.into()), Member::Host(host));
            // IPv6 is routed, not translated: every outer segment knows behind which edge it is.
            let mut inner = segment;
            while let Segment::Inside(edge) = inner {
                inner = self.edges[edge.0].1.segment;
                self.members.insert((inner, v6.into()), Member::Edge(edge));
            }
        }
        self.hosts[host.0].uplinks.push(Uplink::new(segment, v4, v6, link));
    }

    /// Unplugs everything of a host; its addresses are nobody's then.
    pub fn unplug(&mut self, host: HostId) {
        self.members.retain(|_, member| *member != Member::Host(host));
        self.hosts[host.0].uplinks.clear();
    }

    /// The uplink that carries now.
    pub fn uplink(&self, host: HostId) -> Option<&Uplink> {
        self.hosts[host.0].uplinks.iter().find(|uplink| uplink.link.up)
    }

    pub fn uplinks_mut(&mut self, host: HostId) -> impl Iterator<Item = &mut Link> {
        self.hosts[host.0].uplinks.iter_mut().map(|uplink| &mut uplink.link)
    }

    pub fn edge(&self, edge: EdgeId) -> &Edge {
        &self.edges[edge.0].0
    }

    pub fn edge_mut(&mut self, edge: EdgeId) -> &mut Edge {
        &mut self.edges[edge.0].0
    }

    /// Lets the hosts behind an edge see the edge alone, as a hotel's network does.
    pub fn isolate(&mut self, edge: EdgeId) {
        self.isolated.insert(edge);
    }

    pub fn is_isolated(&self, edge: EdgeId) -> bool {
        self.isolated.contains(&edge)
    }

    pub fn edge_link_mut(&mut self, edge: EdgeId) -> &mut Link {
        &mut self.edges[edge.0].1.link
    }

    /// The edges between a host and the internet, inner first.
    pub fn edges_before(&self, host: HostId) -> Vec<EdgeId> {
        let mut edges = Vec::new();
        let mut segment = self.uplink(host).map(|uplink| uplink.segment);
        while let Some(Segment::Inside(edge)) = segment {
            edges.push(edge);
            segment = Some(self.edges[edge.0].1.segment);
        }
        edges
    }

    /// The place on the internet from which a host's packets come.
    pub fn place(&self, host: HostId) -> Member {
        self.edges_before(host).last().map_or(Member::Host(host), |&edge| Member::Edge(edge))
    }

    pub fn set_group(&mut self, place: Member, group: u32) {
        self.groups.insert(place, group);
    }

    /// Ends every partition.
    pub fn heal(&mut self) {
        self.groups.clear();
        self.cut.clear();
    }

    /// Lets nothing pass between two places any more, or again.
    pub fn set_cut(&mut self, a: Member, b: Member, cut: bool) {
        for pair in [(a, b), (b, a)] {
            if cut {
                self.cut.insert(pair);
            } else {
                self.cut.remove(&pair);
            }
        }
    }

    /// Whether packets of two places can reach each other across the internet.
    pub fn connected(&self, a: Member, b: Member) -> bool {
        let group = |place| self.groups.get(&place).copied().unwrap_or(0);
        group(a) == group(b) && !self.cut.contains(&(a, b))
    }

    pub fn set_distance(&mut self, a: Member, b: Member, one_way: Duration) {
        self.distances.insert((a, b), one_way);
        self.distances.insert((b, a), one_way);
    }

    /// Puts a place on the plane; the unit is a millisecond of one-way latency.
    pub fn set_position(&mut self, place: Member, x: u32, y: u32) {
        self.positions.insert(place, (x, y));
    }

    pub fn sent(&self, host: HostId) -> Traffic {
        self.hosts[host.0].sent
    }

    pub fn received(&self, host: HostId) -> Traffic {
        self.hosts[host.0].received
    }

    pub fn lost(&self) -> &BTreeMap<Lost, u64> {
        &self.lost
    }

    pub fn hosts(&self) -> usize {
        self.hosts.len()
    }

    /// Sends a packet of a host; the port of `src` counts, its address is the uplink's.
    pub fn send(
        &mut self,
        host: HostId,
        mut packet: Packet,
        now: SimTime,
        steps: &mut Vec<(SimTime, Step)>,
    ) {
        let Some(index) = self.hosts[host.0].uplinks.iter().position(|uplink| uplink.link.up)
        else {
            return self.lose(Lost::NoUplink);
        };
        let uplink = &mut self.hosts[host.0].uplinks[index];
        let Some(src) = uplink.address(packet.dst) else { return self.lose(Lost::Unroutable) };
        packet.src.set_ip(src);
        let segment = uplink.segment;
        self.hosts[host.0].sent.count(packet.len());
        if packet.dst.ip() == src {
            steps.push((now, Step::Arrive { host, packet }));
            return;
        }
        let uplink = &mut self.hosts[host.0].uplinks[index];
        match uplink.cross(true, packet.len(), now, &mut self.random) {
            Ok(at) => self.route(segment, Member::Host(host), packet, at, steps),
            Err(lost) => self.lose(lost),
        }
    }

    /// Does a step; what is an arrival comes back.
    pub fn handle_step(
        &mut self,
        step: Step,
        now: SimTime,
        steps: &mut Vec<(SimTime, Step)>,
    ) -> Option<(HostId, Packet)> {
        match step {
            Step::Outward { edge, packet } => self.outward(edge, packet, now, steps),
            Step::Inward { edge, packet } => self.inward(edge, packet, now, steps),
            Step::Arrive { host, packet } => {
                // Whoever moved away meanwhile is not there.
                if !self.hosts[host.0].uplinks.iter().any(|uplink| uplink.has(packet.dst.ip())) {
                    self.lose(Lost::Unroutable);
                    return None;
                }
                self.hosts[host.0].received.count(packet.len());
                return Some((host, packet));
            }
        }
        None
    }

    fn outward(
        &mut self,
        id: EdgeId,
        mut packet: Packet,
        now: SimTime,
        steps: &mut Vec<(SimTime, Step)>,
    ) {
        let (edge, uplink) = &mut self.edges[id.0];
        let Some(ttl) = packet.ttl.checked_sub(1).filter(|&ttl| ttl > 0) else {
            return self.lose(Lost::Ttl);
        };
        packet.ttl = ttl;
        if packet.dst.ip() == edge.external {
            let turned = edge.hairpin(packet.proto(), packet.src, packet.dst, now);
            let Some((src, dst)) = turned else { return self.lose(Lost::Edge) };
            (packet.src, packet.dst) = (src, dst);
            return self.route(Segment::Inside(id), Member::Edge(id), packet, now, steps);
        }
        let Some(src) = edge.outbound(packet.proto(), packet.src, packet.dst, now) else {
            return self.lose(Lost::Edge);
        };
        packet.src = src;
        let segment = uplink.segment;
        match uplink.cross(true, packet.len(), now, &mut self.random) {
            Ok(at) => self.route(segment, Member::Edge(id), packet, at, steps),
            Err(lost) => self.lose(lost),
        }
    }

    fn inward(
        &mut self,
        id: EdgeId,
        mut packet: Packet,
        now: SimTime,
        steps: &mut Vec<(SimTime, Step)>,
    ) {
        let Some(ttl) = packet.ttl.checked_sub(1).filter(|&ttl| ttl > 0) else {
            return self.lose(Lost::Ttl);
        };
        packet.ttl = ttl;
        let (edge, _) = &mut self.edges[id.0];
        let Some(dst) = edge.inbound(packet.proto(), packet.src, packet.dst, now) else {
            return self.lose(Lost::Edge);
        };
        packet.dst = dst;
        self.route(Segment::Inside(id), Member::Edge(id), packet, now, steps);
    }

    /// Takes a packet that `from` put on a segment to whatever has its destination there.
    fn route(
        &mut self,
        segment: Segment,
        from: Member,
        mut packet: Packet,
        mut now: SimTime,
        steps: &mut Vec<(SimTime, Step)>,
    ) {
        let Some(&to) = self.members.get(&(segment, packet.dst.ip())) else {
            return match segment {
                Segment::Inside(edge) if from != Member::Edge(edge) => {
                    steps.push((now, Step::Outward { edge, packet }));
                }
                Segment::Inside(_) | Segment::Internet => self.lose(Lost::Unroutable),
            };
        };
        if segment == Segment::Internet {
            if !self.connected(from, to) {
                return self.lose(Lost::Partition);
            }
            let Some(ttl) = packet.ttl.checked_sub(CORE_HOPS).filter(|&ttl| ttl > 0) else {
                return self.lose(Lost::Ttl);
            };
            packet.ttl = ttl;
            now += self.distance(from, to);
        }
        if let (Segment::Inside(edge), Member::Host(_), Member::Host(_)) = (segment, from, to)
            && self.isolated.contains(&edge)
        {
            return self.lose(Lost::Unroutable);
        }
        let uplink = match to {
            Member::Host(host) => self.hosts[host.0]
                .uplinks
                .iter_mut()
                .find(|uplink| uplink.segment == segment && uplink.has(packet.dst.ip())),
            Member::Edge(edge) => Some(&mut self.edges[edge.0].1),
        };
        let Some(uplink) = uplink else { return self.lose(Lost::Unroutable) };
        match uplink.cross(false, packet.len(), now, &mut self.random) {
            Ok(at) => steps.push((
                at,
                match to {
                    Member::Host(host) => Step::Arrive { host, packet },
                    Member::Edge(edge) => Step::Inward { edge, packet },
                },
            )),
            Err(lost) => self.lose(lost),
        }
    }

    fn distance(&self, a: Member, b: Member) -> Duration {
        if let Some(&distance) = self.distances.get(&(a, b)) {
            return distance;
        }
        match (self.positions.get(&a), self.positions.get(&b)) {
            (Some(a), Some(b)) => {
                let (x, y) = (u64::from(a.0.abs_diff(b.0)), u64::from(a.1.abs_diff(b.1)));
                CORE_LATENCY + Duration::from_micros((1_000_000 * (x * x + y * y)).isqrt())
            }
            _ => CORE_LATENCY,
        }
    }

    fn lan_address(&mut self, edge: EdgeId) -> Ipv4Addr {
        let next = self.next_lan.entry(edge).or_insert(1);
        *next += 1;
        Ipv4Addr::from_bits(0xc0a8_0100 + *next)
    }

    fn lose(&mut self, why: Lost) {
        *self.lost.entry(why).or_default() += 1;
    }
}

impl Uplink {
    fn new(segment: Segment, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, link: Link) -> Self {
        Self { segment, v4, v6, link, up: Lane::default(), down: Lane::default() }
    }

    /// The own address in the family of `dst`.
    fn address(&self, dst: SocketAddr) -> Option<IpAddr> {
        match dst {
            SocketAddr::V4(_) => self.v4.map(IpAddr::V4),
            SocketAddr::V6(_) => self.v6.map(IpAddr::V6),
        }
    }

    fn has(&self, ip: IpAddr) -> bool {
        self.v4.map(IpAddr::V4) == Some(ip) || self.v6.map(IpAddr::V6) == Some(ip)
    }

    /// When a packet that enters now leaves at the other end.
    fn cross(
        &mut self,
        upwards: bool,
        len: usize,
        now: SimTime,
        random: &mut ChaCha8Rng,
    ) -> Result<SimTime, Lost> {
        let link = &self.link;
        if !link.up {
            return Err(Lost::LinkDown);
        }
        if len > link.mtu {
            return Err(Lost::TooBig);
        }
        if link.loss_ppm > 0 && random.next_u32() % 1_000_000 < link.loss_ppm {
            return Err(Lost::Loss);
        }
        let lane = if upwards { &mut self.up } else { &mut self.down };
        let mut at = now;
        let is_last = now >= lane.last_entry;
        if let Some(rate) = link.rate {
            let start = lane.busy_until.max(now);
            if start > now + QUEUE {
                return Err(Lost::Queue);
            }
            at = start + Duration::from_nanos(len as u64 * 1_000_000_000 / rate.max(1));
            lane.busy_until = at;
        }
        at += link.latency;
        if link.jitter > Duration::ZERO {
            at += Duration::from_nanos(random.next_u64() % link.jitter.as_nanos() as u64);
        }
        let overtakes = link.reorder_ppm > 0 && random.next_u32() % 1_000_000 < link.reorder_ppm;
        if is_last && !overtakes {
            at = at.max(lane.last_arrival);
            (lane.last_entry, lane.last_arrival) = (now, at);
        }
        Ok(at)
    }
}

#[cfg(test)]
mod tests;
