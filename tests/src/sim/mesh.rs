//! A mesh on the simulated internet: public servers and members, what happens to them, and how they look.
//!
//! ```
//! use tests::{edges, sim::{clock::Span, mesh::{Mesh, converged}, scenario::partition}};
//!
//! let mut mesh = Mesh::new(7)
//!     .servers(2)
//!     .nodes(6, edges![60 % HomeNat, 30 % Public, 10 % Symmetric])
//!     .at(5.s(), partition(0..3))
//!     .at(30.s(), tests::sim::scenario::heal());
//! mesh.run_to(30.s());
//! assert!(mesh.run_until(converged, 60.s()).is_some());
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use engine::{
    event::Input,
    fib::NextHop,
    snapshot::{Peer, PeerState, RouteState, Snapshot},
};
use ipnet::IpNet;
use rand_core::RngCore;
use session::membership::Master;
use wire::{
    endpoint::Transport,
    id::{NetworkId, NodeId},
};

use super::{
    clock::{SimTime, Span},
    net::{HostId, Link},
    node::{Member, Node, identity},
    oracle::{self, Next, View, Wrong},
    site::{self, Mix, Site},
    traffic::Traffic,
    world::{HTTPS, PORT, StationId, World},
};

/// Something that is done to the mesh at a time.
pub type Deed = Box<dyn FnOnce(&mut Mesh)>;

/// Where servers answer STUN too.
const STUN_PORT: u16 = PORT + 1;
/// How often `run_until` asks.
const ASK: Duration = Duration::from_millis(250);

/// Servers and members by number, each in the order in which it was added.
#[derive(Debug)]
pub struct Mesh {
    pub world: World<Node>,
    pub traffic: Traffic,
    servers: Vec<StationId>,
    members: Vec<Post>,
    lag: Duration,
    master: Master,
    deeds: Deeds,
}

/// A member, up or down.
#[derive(Clone, Debug)]
pub struct Post {
    pub station: StationId,
    pub member: Member,
    pub site: Site,
    /// Other members whose bare addresses it is configured with.
    pub names: Vec<usize>,
    starts: u64,
}

/// What is going to be done, by time and then by order.
#[derive(Default)]
struct Deeds {
    due: BTreeMap<(SimTime, u64), Deed>,
    count: u64,
}

impl std::fmt::Debug for Deeds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deeds").field("due", &self.due.len()).finish_non_exhaustive()
    }
}

impl Mesh {
    pub fn new(seed: u64) -> Self {
        Self {
            world: World::empty(seed),
            traffic: Traffic::default(),
            servers: Vec::new(),
            members: Vec::new(),
            lag: Duration::ZERO,
            master: Master::from_bytes([7; 32]),
            deeds: Deeds::default(),
        }
    }

    /// New tables reach the workers of whatever starts from now on this late.
    #[must_use]
    pub fn lagging(self, lag: Duration) -> Self {
        Self { lag, ..self }
    }

    /// Adds public servers, 1 ms from the internet.
    #[must_use]
    pub fn servers(mut self, count: usize) -> Self {
        for _ in 0..count {
            let host = self.world.net.add_host();
            Site::Public.plug(&mut self.world.net, host, 1.ms());
            self.servers.push(self.world.add_station(host));
            self.start_server(self.servers.len() - 1);
        }
        self
    }

    /// Adds members at sites of a mix, some milliseconds from the internet, which start within a second from now.
    #[must_use]
    pub fn nodes(mut self, count: usize, mix: Mix) -> Self {
        for _ in 0..count {
            let site = mix.pick(self.world.random.next_u64());
            let latency = Duration::from_micros(1_000 + self.world.below(20_000));
            let number = self.add(site, latency);
            let start = self.world.now() + Duration::from_millis(self.world.below(1_000));
            self.do_at(start, move |mesh| mesh.start(number));
        }
        self
    }

    /// Adds a member that starts now, 10 ms from the internet.
    #[must_use]
    pub fn node(self, site: Site) -> Self {
        self.node_with(site, |_| {})
    }

    /// The same, configured with the bare addresses of other members.
    #[must_use]
    pub fn node_at(mut self, site: Site, names: &[usize]) -> Self {
        let number = self.add(site, 10.ms());
        self.members[number].names = names.to_vec();
        self.start(number);
        self
    }

    /// The same, told something else than usual.
    #[must_use]
    pub fn node_with(mut self, site: Site, change: impl FnOnce(&mut Member)) -> Self {
        let number = self.add(site, 10.ms());
        change(&mut self.members[number].member);
        self.start(number);
        self
    }

    /// Does something at a time from the beginning of the world.
    #[must_use]
    pub fn at(mut self, at: SimTime, deed: impl FnOnce(&mut Self) + 'static) -> Self {
        self.do_at(at, deed);
        self
    }

    pub fn do_at(&mut self, at: SimTime, deed: impl FnOnce(&mut Self) + 'static) {
        self.deeds.count += 1;
        self.deeds.due.insert((at, self.deeds.count), Box::new(deed));
    }

    pub fn do_in(&mut self, wait: Duration, deed: impl FnOnce(&mut Self) + 'static) {
        self.do_at(self.world.now() + wait, deed);
    }

    /// Puts a member on the map without starting it; its number.
    pub fn add(&mut self, site: Site, latency: Duration) -> usize {
        let host = self.world.net.add_host();
        site.plug(&mut self.world.net, host, latency);
        let station = self.world.add_station(host);
        let number = self.members.len();
        let member = Member::new(number as u64, &self.master);
        self.members.push(Post { station, member, site, names: Vec::new(), starts: 0 });
        number
    }

    /// Adds a member behind the edge of another one, which starts now.
    #[must_use]
    pub fn node_beside(mut self, other: usize) -> Self {
        let uplink = self.world.net.uplink(self.host(other)).expect("it is plugged in");
        let (segment, v4, v6) = (uplink.segment, uplink.v4.is_some(), uplink.v6.is_some());
        let site = self.members[other].site;
        let number = self.add(site, 10.ms());
        let host = self.host(number);
        self.world.net.unplug(host);
        self.world.net.plug(host, segment, v4, v6, Link::of(200.us()));
        self.start(number);
        self
    }

    /// Gives a member a second uplink, which carries while the first is down.
    pub fn plug_second(&mut self, number: usize, site: Site, latency: Duration) {
        let host = self.host(number);
        site.plug(&mut self.world.net, host, latency);
    }

    pub fn master(&self) -> &Master {
        &self.master
    }

    pub fn network(&self) -> NetworkId {
        self.master.membership(&identity(b'm', 0), "", 0).network
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn post(&self, number: usize) -> &Post {
        &self.members[number]
    }

    pub fn post_mut(&mut self, number: usize) -> &mut Post {
        &mut self.members[number]
    }

    pub fn station(&self, number: usize) -> StationId {
        self.members[number].station
    }

    pub fn host(&self, number: usize) -> HostId {
        self.world.host(self.station(number))
    }

    pub fn server_station(&self, number: usize) -> StationId {
        self.servers[number]
    }

    pub fn server_count(&self) -> usize {
        self.servers.len()
    }

    pub fn machine(&self, number: usize) -> Option<&Node> {
        self.world.machine(self.station(number))
    }

    pub fn server(&self, number: usize) -> Option<&Node> {
        self.world.machine(self.servers[number])
    }

    /// The members that run and are awake.
    pub fn up(&self) -> Vec<usize> {
        (0..self.members.len()).filter(|&number| self.is_up(number)).collect()
    }

    pub fn is_up(&self, number: usize) -> bool {
        let station = self.station(number);
        self.world.machine(station).is_some() && !self.world.is_asleep(station)
    }

    pub fn id(&self, number: usize) -> NodeId {
        identity(b'm', self.members[number].member.number).node()
    }

    pub fn server_id(&self, number: usize) -> NodeId {
        identity(b's', number as u64).node()
    }

    pub fn snapshot(&self, number: usize) -> Option<Snapshot> {
        self.machine(number)?.snapshot(self.world.instant())
    }

    /// What one member sees of another.
    pub fn peer(&self, from: usize, to: usize) -> Option<Peer> {
        let to = self.id(to);
        self.snapshot(from)?.peers.into_iter().find(|peer| peer.node == to)
    }

    pub fn state(&self, from: usize, to: usize) -> PeerState {
        self.peer(from, to).map_or(PeerState::Unreachable, |peer| peer.state)
    }

    /// An overlay address of a member.
    pub fn address(&self, number: usize, v4: bool) -> Option<IpAddr> {
        self.machine(number)?.address(v4)
    }

    /// To whom a member sends what is for an address.
    pub fn route(&self, from: usize, to: IpAddr) -> Option<NodeId> {
        self.machine(from)?.fib().routes.longest_match(to)
    }

    /// Starts a member, or starts it again, with what its state directory holds.
    pub fn start(&mut self, number: usize) {
        self.stop(number);
        let site = self.members[number].site;
        let entries: Vec<_> =
            (0..self.servers.len()).map(|server| self.entry(server, site)).collect();
        let named = self.members[number].names.clone();
        let named: Vec<_> =
            named.into_iter().map(|other| self.addresses(self.host(other), PORT)).collect();
        let (unix, now) = (self.unix(), self.world.instant());
        let seed = self.world.seed;
        let post = &mut self.members[number];
        post.member.bootstrap.clear();
        post.member.alternates.clear();
        for (server, (mut addrs, transport)) in (0..).zip(entries) {
            // A TCP dial takes the first one, and all sites but one have IPv4.
            let Some(first) = addrs.pop() else { continue };
            post.member.bootstrap.push((first, transport, Some(identity(b's', server).keys())));
            post.member.alternates.push(addrs);
        }
        for mut addrs in named {
            let Some(first) = addrs.pop() else { continue };
            post.member.bootstrap.push((first, Transport::Udp, None));
            post.member.alternates.push(addrs);
        }
        post.starts += 1;
        let seed = seed << 32 ^ (number as u64) << 8 ^ post.starts;
        let mut node = Node::member(&post.member, seed, unix, now);
        node.lag = self.lag;
        post.member.boot = session::freshness::boot_counter(post.member.boot, unix);
        let station = post.station;
        self.world.start(station, node);
    }

    /// How a server is configured: by a name with both families; over TCP where nothing else gets out.
    fn entry(&self, server: usize, from: Site) -> (Vec<SocketAddr>, Transport) {
        let (transport, port) =
            if from == Site::UdpBlocked { (Transport::Tcp, HTTPS) } else { (Transport::Udp, PORT) };
        (self.addresses(self.world.host(self.servers[server]), port), transport)
    }

    fn addresses(&self, host: HostId, port: u16) -> Vec<SocketAddr> {
        let uplink = self.world.net.uplink(host);
        let addrs = uplink.into_iter().flat_map(|uplink| {
            let (v4, v6) = (uplink.v4.map(IpAddr::V4), uplink.v6.map(IpAddr::V6));
            [v4, v6].into_iter().flatten().map(|ip| SocketAddr::new(ip, port))
        });
        addrs.collect()
    }

    /// Ends a member without a word; what it kept stays.
    pub fn stop(&mut self, number: usize) {
        let post = &mut self.members[number];
        if let Some(node) = self.world.stop(post.station) {
            post.member.boot = post.member.boot.max(node.persist.boot);
            post.member.kept = node.persist;
        }
    }

    /// Starts it with an empty state directory but for its key.
    pub fn start_blank(&mut self, number: usize) {
        let member = &mut self.members[number].member;
        member.boot = 0;
        member.kept.claim = None;
        self.start(number);
    }

    /// A member leaves as it should, and ends a second later.
    pub fn leave(&mut self, number: usize) {
        let station = self.station(number);
        self.world.with(station, |node, now| node.input(Input::Leave, now));
        self.do_in(1.s(), move |mesh| mesh.stop(number));
    }

    pub fn start_server(&mut self, number: usize) {
        self.stop_server(number);
        let (unix, now, seed) = (self.unix(), self.world.instant(), self.world.seed);
        let seed = seed << 32 ^ unix << 8 ^ number as u64;
        let mut node = Node::server(number as u64, !seed, unix, now);
        node.lag = self.lag;
        self.world.start(self.servers[number], node);
        self.world.listen(self.servers[number], STUN_PORT);
    }

    pub fn stop_server(&mut self, number: usize) {
        self.world.stop(self.servers[number]);
    }

    fn unix(&self) -> u64 {
        self.world.clock().unix(self.world.now())
    }

    pub fn instant(&self) -> Instant {
        self.world.instant()
    }

    pub fn now(&self) -> SimTime {
        self.world.now()
    }

    /// Runs to a time from the beginning, doing what is to be done meanwhile.
    pub fn run_to(&mut self, end: SimTime) {
        while let Some((&(at, _), _)) = self.deeds.due.first_key_value()
            && at <= end
        {
            let Some((_, deed)) = self.deeds.due.pop_first() else { break };
            if at > self.world.now() {
                self.world.run_to(at);
            }
            deed(self);
        }
        self.world.run_to(end);
    }

    pub fn run_for(&mut self, span: Duration) {
        self.run_to(self.world.now() + span);
    }

    /// Runs until `done` holds; the time it took, or nothing if `limit` was not enough.
    pub fn run_until(
        &mut self,
        mut done: impl FnMut(&mut Self) -> bool,
        limit: Duration,
    ) -> Option<Duration> {
        self.run_until_every(ASK, &mut done, limit)
    }

    pub fn run_until_every(
        &mut self,
        every: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
        limit: Duration,
    ) -> Option<Duration> {
        let start = self.world.now();
        loop {
            if done(self) {
                return Some(self.world.now() - start);
            }
            if self.world.now() >= start + limit {
                return None;
            }
            self.run_for(every);
        }
    }

    /// One question over the overlay; its number, unless one of the two has no address of the family.
    pub fn ask(&mut self, from: usize, to: usize, v4: bool) -> Option<u64> {
        let (src, dst) = (self.address(from, v4)?, self.address(to, v4)?);
        let station = self.station(from);
        Some(self.traffic.ask(&mut self.world, station, src, dst, 64))
    }

    /// One packet there and back; the round trip, if it came within `limit`.
    pub fn ping(&mut self, from: usize, to: usize, limit: Duration) -> Option<Duration> {
        self.ping_address(from, self.address(to, true)?, limit)
    }

    pub fn ping_address(&mut self, from: usize, dst: IpAddr, limit: Duration) -> Option<Duration> {
        let src = self.address(from, dst.is_ipv4())?;
        let station = self.station(from);
        let number = self.traffic.ask(&mut self.world, station, src, dst, 64);
        self.run_until_every(
            1.ms(),
            |mesh| {
                mesh.traffic.settle(&mut mesh.world);
                mesh.traffic.round_trip(number).is_some()
            },
            limit,
        )?;
        self.traffic.round_trip(number)
    }

    /// Steady questions from each `from` to its `to`, one every `every`, and their answers.
    pub fn talk(&mut self, pairs: &[(usize, usize)], every: Duration, span: Duration) {
        let end = self.world.now() + span;
        let step = every.min(5.ms());
        let mut next = self.world.now();
        while self.world.now() < end {
            if self.world.now() >= next {
                next += every;
                for &(from, to) in pairs {
                    self.ask(from, to, true);
                }
            }
            self.run_for(step);
            self.traffic.settle(&mut self.world);
        }
    }

    /// IP bytes a member sent and received so far.
    pub fn bytes(&self, number: usize) -> u64 {
        let host = self.host(number);
        self.world.net.sent(host).bytes + self.world.net.received(host).bytes
    }

    /// Whether the underlay lets a member reach a server.
    pub fn reaches(&self, number: usize, server: usize) -> bool {
        let station = self.servers[server];
        self.is_up(number)
            && self.world.machine(station).is_some()
            && site::reaches(&self.world, self.station(number), station)
    }

    /// The mesh as the oracle wants it: members that reach no server stand outside.
    pub fn observe(&self) -> oracle::Mesh {
        let up = self.up();
        let network = self.network();
        let mut views = BTreeMap::new();
        let mut edges = Vec::new();
        for server in 0..self.servers.len() {
            let Some(machine) = self.server(server).and_then(Node::as_server) else { continue };
            let Some((attached, digest)) = machine.network(network) else { continue };
            let next = attached.into_iter().map(|node| (node, Next::Direct)).collect();
            let view = View { lsdb: digest, next, server: true, ..View::default() };
            views.insert(self.server_id(server), view);
            let members = up.iter().filter(|&&number| self.reaches(number, server));
            edges.extend(members.map(|&number| (self.id(number), self.server_id(server))));
        }
        for &number in &up {
            if let Some(view) = self.view(number) {
                views.insert(self.id(number), view);
            }
        }
        let attached: BTreeSet<NodeId> = edges.iter().flat_map(|&(a, b)| [a, b]).collect();
        let components = oracle::components(attached, edges);
        oracle::Mesh { views, components }
    }

    fn view(&self, number: usize) -> Option<View> {
        let node = self.machine(number)?;
        let snapshot = self.snapshot(number)?;
        let installed = snapshot.routes.iter().filter(|route| route.state == RouteState::Installed);
        let routes = installed.map(|route| (route.prefix, route.node)).collect();
        let fib = node.fib();
        let next = snapshot.peers.iter().filter_map(|peer| {
            let entry = fib.peers.get(&peer.node);
            let hop = entry.and_then(|entry| entry.session.as_ref().and(entry.next_hop.as_ref()));
            let next = match (hop, peer.state) {
                (Some(NextHop::Direct(_)), _) => Next::Direct,
                (Some(NextHop::Relayed { link, .. }), _) => Next::Via(link.peer()),
                (None, PeerState::Unreachable) => return None,
                (None, _) => peer.via.map_or(Next::Direct, Next::Via),
            };
            Some((peer.node, next))
        });
        let mut next: BTreeMap<NodeId, Next> = next.collect();
        // What it forwards for others.
        for ((_, short), forward) in fib.forwards.iter() {
            let to = snapshot.peers.iter().find(|peer| peer.node.short() == *short);
            if let Some(to) = to {
                let via = forward.link.peer();
                let hop = if via == to.node { Next::Direct } else { Next::Via(via) };
                next.entry(to.node).or_insert(hop);
            }
        }
        let own = node.host.addresses.iter().map(|net| IpNet::from(net.addr()));
        Some(View {
            lsdb: snapshot.lsdb_digest,
            routes,
            next,
            owns: own.chain(self.members[number].member.exports.iter().copied()).collect(),
            server: false,
            deaf: self.members[number].member.deaf,
        })
    }

    /// Everything that a settled mesh must not be.
    pub fn wrongs(&self) -> Vec<Wrong> {
        self.observe().wrongs()
    }

    /// Whether all LSDBs of each component are equal; a quick look before a thorough one.
    pub fn agree(&self) -> bool {
        let up = self.up();
        let network = self.network();
        (0..self.servers.len()).all(|server| {
            let Some(machine) = self.server(server).and_then(Node::as_server) else { return true };
            let members = up.iter().filter(|&&number| self.reaches(number, server));
            let Some((_, digest)) = machine.network(network) else {
                return members.count() == 0;
            };
            let whole = members.filter(|&&number| !self.members[number].member.deaf);
            let mut engines = whole.filter_map(|&number| self.machine(number)?.engine());
            engines.all(|engine| engine.lsdb_digest() == digest)
        })
    }

    /// Panics with what is wrong, and where.
    pub fn assert_sound(&self) {
        let wrongs = self.wrongs();
        assert!(
            wrongs.is_empty(),
            "seed {} at {:?}: {} wrongs, among them\n{}\n{}",
            self.world.seed,
            self.world.now(),
            wrongs.len(),
            wrongs.iter().take(5).map(ToString::to_string).collect::<Vec<_>>().join("\n"),
            self.describe(),
        );
    }

    /// Who is who, for people who read a failure.
    pub fn describe(&self) -> String {
        let members = (0..self.members.len()).map(|number| {
            let post = &self.members[number];
            let up = if self.is_up(number) { "up" } else { "down" };
            let lsdb = self.machine(number).and_then(Node::engine).map(|e| e.lsdb_digest());
            let reaches: Vec<usize> =
                (0..self.servers.len()).filter(|&server| self.reaches(number, server)).collect();
            format!(
                "{number}: {} {:?} {up} servers {reaches:?} lsdb {:x?}",
                self.id(number),
                post.site,
                lsdb
            )
        });
        let servers = (0..self.servers.len()).map(|number| {
            let network =
                self.server(number).and_then(|node| node.as_server()?.network(self.network()));
            format!(
                "server {number}: {} attached {:?} lsdb {:x?}",
                self.server_id(number),
                network.as_ref().map(|(attached, _)| attached.len()),
                network.as_ref().map(|(_, digest)| digest)
            )
        });
        servers.chain(members).collect::<Vec<_>>().join("\n")
    }

    /// Links of a member's host, the first uplink first.
    pub fn links_mut(&mut self, number: usize) -> impl Iterator<Item = &mut Link> {
        let host = self.host(number);
        self.world.net.uplinks_mut(host)
    }
}

/// Whether the mesh is as it should be, everywhere.
pub fn converged(mesh: &mut Mesh) -> bool {
    mesh.agree() && mesh.wrongs().is_empty()
}
