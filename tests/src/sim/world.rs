//! The world: stations on the underlay, what happens to them, and what they do.
//!
//! A *station* is a host with one machine on it and the little of an operating system that the
//! machine needs: sockets, stream connections, a TUN, a timer. The world takes the next happening,
//! hands it to its machine, and carries out what that wants, until the time is up.

use std::{
    collections::BTreeMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use bytes::Bytes;
use engine::path::addr::{Carrier, Hop, SocketId, TunnelId};
use ipnet::IpNet;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::{
    clock::{Clock, Queue, SimTime},
    net::{HostId, Net, Packet, Payload, Step, TTL},
    stream::{Segment, SegmentKind, State, Stream},
};

/// Where every station listens, UDP and TCP.
pub const PORT: u16 = 11_010;
/// Where stations listen for TCP too, for those whose firewall lets out nothing else.
pub const HTTPS: u16 = 443;
/// A machine that wants to be woken this often at one time never sleeps.
const MAX_WAKES_AT_ONCE: u32 = 1000;
/// What one happening may make a machine do; more is an unbounded queue.
const MAX_OUTPUTS: usize = 20_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StationId(pub usize);

/// What a station's machine is told.
#[derive(Clone, Debug)]
pub enum In {
    /// From a UDP socket or a tunnel.
    Datagram {
        hop: Hop,
        bytes: Vec<u8>,
    },
    /// An IP packet that the host put into the TUN.
    Tun(Vec<u8>),
    Sockets(Vec<(SocketId, SocketAddr)>),
    SocketOpened {
        open: u32,
        id: SocketId,
        local: SocketAddr,
    },
    Underlay(Vec<IpNet>),
    TunnelUp {
        id: TunnelId,
        remote: SocketAddr,
        dial: Option<u32>,
    },
    TunnelDown {
        id: Option<TunnelId>,
        dial: Option<u32>,
    },
}

/// What a station's machine wants done.
#[derive(Clone, Debug)]
pub enum Out {
    Send {
        hop: Hop,
        bytes: Vec<u8>,
        ttl: Option<u8>,
    },
    Dial {
        dial: u32,
        remote: SocketAddr,
    },
    CloseTunnel(TunnelId),
    /// For one attempt or test, over IPv4.
    OpenSocket {
        open: u32,
    },
    CloseSocket(SocketId),
    /// An IP packet for the host.
    Tun(Vec<u8>),
}

/// What runs on a station: a node, a public server, or a test's stub.
pub trait Machine: fmt::Debug {
    fn handle(&mut self, input: In, now: Instant);
    fn handle_timeout(&mut self, now: Instant);
    fn poll_timeout(&self) -> Option<Instant>;
    fn poll(&mut self) -> Option<Out>;
}

/// Something that is done to the world at a time.
pub type Deed<M> = Box<dyn FnOnce(&mut World<M>)>;

pub struct World<M> {
    pub seed: u64,
    pub net: Net,
    pub random: ChaCha8Rng,
    clock: Clock,
    now: SimTime,
    queue: Queue<Happening<M>>,
    stations: Vec<Station<M>>,
    /// By host; a host without an entry has no machine yet.
    by_host: BTreeMap<HostId, StationId>,
    steps: Vec<(SimTime, Step)>,
    /// Over everything that was sent, by whom and when.
    history: DefaultHasher,
    /// IP packets that came out of TUNs since last asked, with when and where.
    delivered: Vec<(SimTime, StationId, Vec<u8>)>,
    happenings: u64,
}

#[derive(Debug)]
struct Station<M> {
    host: HostId,
    /// None while the machine is down.
    machine: Option<M>,
    asleep: bool,
    sockets: BTreeMap<SocketId, Socket>,
    next_socket: u16,
    streams: BTreeMap<TunnelId, Connection>,
    next_tunnel: u32,
    next_port: u16,
    /// The earliest wake that is in the queue.
    wake: Option<SimTime>,
    woken: (SimTime, u32),
}

#[derive(Clone, Copy, Debug)]
struct Socket {
    port: u16,
    v6: bool,
    ephemeral: bool,
}

#[derive(Debug)]
struct Connection {
    stream: Stream,
    dial: Option<u32>,
    announced: bool,
}

enum Happening<M> {
    Step(Step),
    Wake(StationId),
    StreamTimer(StationId, TunnelId),
    Deed(Deed<M>),
}

impl<M: Machine> World<M> {
    pub fn empty(seed: u64) -> Self {
        Self {
            seed,
            net: Net::new(seed),
            random: ChaCha8Rng::seed_from_u64(seed),
            clock: Clock::new(),
            now: Duration::ZERO,
            queue: Queue::new(),
            stations: Vec::new(),
            by_host: BTreeMap::new(),
            steps: Vec::new(),
            history: DefaultHasher::new(),
            delivered: Vec::new(),
            happenings: 0,
        }
    }

    pub fn now(&self) -> SimTime {
        self.now
    }

    pub fn instant(&self) -> Instant {
        self.clock.instant(self.now)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A hash over every packet sent so far: equal histories have equal ones.
    pub fn fingerprint(&self) -> u64 {
        self.history.finish()
    }

    pub fn happenings(&self) -> u64 {
        self.happenings
    }

    pub fn stations(&self) -> impl Iterator<Item = StationId> + use<M> {
        (0..self.stations.len()).map(StationId)
    }

    /// The machines that are up.
    pub fn machines(&self) -> impl Iterator<Item = (StationId, &M)> {
        self.stations().filter_map(|id| Some((id, self.machine(id)?)))
    }

    pub fn machine(&self, id: StationId) -> Option<&M> {
        self.stations[id.0].machine.as_ref()
    }

    /// Sockets that a machine asked for and has not closed.
    pub fn asked_for(&self, id: StationId) -> usize {
        self.stations[id.0].sockets.values().filter(|socket| socket.ephemeral).count()
    }

    pub fn host(&self, id: StationId) -> HostId {
        self.stations[id.0].host
    }

    /// Puts a station without a machine on a host.
    pub fn add_station(&mut self, host: HostId) -> StationId {
        let id = StationId(self.stations.len());
        self.by_host.insert(host, id);
        self.stations.push(Station {
            host,
            machine: None,
            asleep: false,
            sockets: BTreeMap::new(),
            next_socket: 0,
            streams: BTreeMap::new(),
            next_tunnel: 0,
            next_port: 40_000,
            wake: None,
            woken: (Duration::ZERO, 0),
        });
        id
    }

    /// Starts a machine: sockets open, addresses told.
    pub fn start(&mut self, id: StationId, machine: M) {
        let station = &mut self.stations[id.0];
        station.machine = Some(machine);
        station.sockets.clear();
        station.next_socket = 0;
        station.open_socket(PORT, false, false);
        station.open_socket(PORT, true, false);
        self.tell_sockets(id);
        self.tell_underlay(id);
    }

    /// Opens a further port of a station, in both families.
    pub fn listen(&mut self, id: StationId, port: u16) {
        let station = &mut self.stations[id.0];
        station.open_socket(port, false, false);
        station.open_socket(port, true, false);
        self.tell_sockets(id);
    }

    /// Ends a machine without a word: its sockets and connections are gone.
    pub fn stop(&mut self, id: StationId) -> Option<M> {
        let station = &mut self.stations[id.0];
        station.sockets.clear();
        // The kernel resets what a dead process had open.
        let tunnels: Vec<_> = station.streams.keys().copied().collect();
        let machine = station.machine.take();
        for tunnel in tunnels {
            self.close_stream(id, tunnel);
        }
        self.stations[id.0].streams.clear();
        machine
    }

    /// A sleeping host neither hears nor acts; when it wakes its timers are late.
    pub fn set_asleep(&mut self, id: StationId, asleep: bool) {
        self.stations[id.0].asleep = asleep;
        if !asleep {
            self.wake(id);
        }
    }

    pub fn is_asleep(&self, id: StationId) -> bool {
        self.stations[id.0].asleep
    }

    /// Does something with a machine, and what it wants then.
    pub fn with<T>(&mut self, id: StationId, f: impl FnOnce(&mut M, Instant) -> T) -> Option<T> {
        let now = self.instant();
        let result = self.stations[id.0].machine.as_mut().map(|machine| f(machine, now));
        self.drain(id);
        result
    }

    /// Tells a machine the addresses that its host has now.
    pub fn tell_underlay(&mut self, id: StationId) {
        let uplink = self.net.uplink(self.stations[id.0].host);
        let addresses: Vec<IpNet> = uplink
            .into_iter()
            .flat_map(|uplink| {
                let v4 = uplink.v4.and_then(|v4| IpNet::new(v4.into(), 24).ok());
                let v6 = uplink.v6.and_then(|v6| IpNet::new(v6.into(), 64).ok());
                [v4, v6]
            })
            .flatten()
            .collect();
        self.feed(id, In::Underlay(addresses));
    }

    /// Does `deed` at a time from the beginning.
    pub fn schedule(&mut self, at: SimTime, deed: Deed<M>) {
        self.queue.push(at.max(self.now), Happening::Deed(deed));
    }

    /// An IP packet from the host into the TUN.
    pub fn inject(&mut self, id: StationId, packet: Vec<u8>) {
        self.feed(id, In::Tun(packet));
    }

    /// What came out of TUNs since last asked.
    pub fn take_delivered(&mut self) -> Vec<(SimTime, StationId, Vec<u8>)> {
        std::mem::take(&mut self.delivered)
    }

    pub fn run_for(&mut self, span: Duration) {
        self.run_to(self.now + span);
    }

    pub fn run_to(&mut self, end: SimTime) {
        while self.queue.next_at().is_some_and(|at| at <= end) {
            self.step();
        }
        self.now = end;
    }

    /// Runs until `done` holds, asked every `every`; the time it took, or nothing if `limit` was not enough.
    pub fn run_until(
        &mut self,
        every: Duration,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> bool,
    ) -> Option<Duration> {
        let start = self.now;
        loop {
            if done(self) {
                return Some(self.now - start);
            }
            if self.now >= start + limit {
                return None;
            }
            self.run_for(every);
        }
    }

    /// Does the next happening.
    fn step(&mut self) {
        let Some((at, happening)) = self.queue.pop() else { return };
        self.now = self.now.max(at);
        self.happenings += 1;
        match happening {
            Happening::Step(step) => {
                let mut steps = std::mem::take(&mut self.steps);
                let arrival = self.net.handle_step(step, self.now, &mut steps);
                self.steps = steps;
                self.take_steps();
                if let Some((host, packet)) = arrival {
                    self.arrive(host, packet);
                }
            }
            Happening::Wake(id) => {
                // One that an earlier deadline came before is no wake any more.
                if self.stations[id.0].wake == Some(at) {
                    self.stations[id.0].wake = None;
                    self.wake(id);
                }
            }
            Happening::StreamTimer(id, tunnel) => {
                if let Some(connection) = self.stations[id.0].streams.get_mut(&tunnel) {
                    connection.stream.handle_timeout(self.now);
                    self.drive_stream(id, tunnel);
                }
            }
            Happening::Deed(deed) => deed(self),
        }
    }

    fn wake(&mut self, id: StationId) {
        let now = self.instant();
        let station = &mut self.stations[id.0];
        if station.asleep {
            return;
        }
        let Some(machine) = &mut station.machine else { return };
        if machine.poll_timeout().is_some_and(|at| at <= now) {
            station.woken = match station.woken {
                (at, times) if at == self.now => (at, times + 1),
                _ => (self.now, 1),
            };
            assert!(
                station.woken.1 < MAX_WAKES_AT_ONCE,
                "{id:?} never sleeps at {:?}: {:?}",
                self.now,
                station.woken
            );
            machine.handle_timeout(now);
        }
        self.drain(id);
    }

    fn arrive(&mut self, host: HostId, packet: Packet) {
        let Some(&id) = self.by_host.get(&host) else { return };
        let station = &self.stations[id.0];
        if station.asleep {
            return;
        }
        match packet.payload {
            Payload::Udp(bytes) => {
                let socket = station.sockets.iter().find(|(_, socket)| {
                    socket.port == packet.dst.port() && socket.v6 == packet.dst.is_ipv6()
                });
                let Some((&socket, _)) = socket else { return };
                let hop = Hop::Udp { socket, remote: packet.src };
                self.feed(id, In::Datagram { hop, bytes: bytes.to_vec() });
            }
            Payload::Tcp(segment) => self.arrive_segment(id, packet.src, packet.dst, segment),
        }
    }

    fn arrive_segment(
        &mut self,
        id: StationId,
        src: SocketAddr,
        dst: SocketAddr,
        segment: Segment,
    ) {
        let station = &mut self.stations[id.0];
        let known = station.streams.iter().find(|(_, connection)| {
            connection.stream.remote == src && connection.stream.local_port == dst.port()
        });
        let tunnel = match known {
            Some((&tunnel, _)) => tunnel,
            None if segment.kind == SegmentKind::Syn
                && station.machine.is_some()
                && [PORT, HTTPS].contains(&dst.port()) =>
            {
                let tunnel = station.take_tunnel();
                let stream = Stream::accept(dst.port(), src, self.now);
                let connection = Connection { stream, dial: None, announced: false };
                station.streams.insert(tunnel, connection);
                self.drive_stream(id, tunnel);
                return;
            }
            None => {
                if segment.kind != SegmentKind::Reset {
                    self.send_segment(id, dst.port(), src, Stream::reset());
                }
                return;
            }
        };
        let Some(connection) = self.stations[id.0].streams.get_mut(&tunnel) else { return };
        let datagrams = connection.stream.handle_segment(segment, self.now);
        self.drive_stream(id, tunnel);
        for bytes in datagrams {
            let hop = Hop::Tunnel { id: tunnel, carrier: Carrier::Tcp, remote: src };
            self.feed(id, In::Datagram { hop, bytes: bytes.to_vec() });
        }
    }

    /// Sends what a stream has to send, tells the machine what became of it, and sets its timer.
    fn drive_stream(&mut self, id: StationId, tunnel: TunnelId) {
        let Some(connection) = self.stations[id.0].streams.get_mut(&tunnel) else { return };
        let mut segments = Vec::new();
        while let Some(segment) = connection.stream.poll_segment() {
            segments.push(segment);
        }
        let (port, remote) = (connection.stream.local_port, connection.stream.remote);
        let (state, dial) = (connection.stream.state, connection.dial);
        let timer = connection.stream.poll_timeout();
        let announce = state == State::Open && !connection.announced;
        connection.announced |= announce;
        let announced = connection.announced;
        for segment in segments {
            self.send_segment(id, port, remote, segment);
        }
        if let Some(at) = timer {
            self.queue.push(at, Happening::StreamTimer(id, tunnel));
        }
        if announce {
            self.feed(id, In::TunnelUp { id: tunnel, remote, dial });
        }
        if state == State::Closed {
            self.stations[id.0].streams.remove(&tunnel);
            let id_told = announced.then_some(tunnel);
            self.feed(id, In::TunnelDown { id: id_told, dial });
        }
    }

    fn close_stream(&mut self, id: StationId, tunnel: TunnelId) {
        if let Some(connection) = self.stations[id.0].streams.get_mut(&tunnel) {
            connection.stream.close();
            self.drive_stream(id, tunnel);
        }
    }

    fn feed(&mut self, id: StationId, input: In) {
        let now = self.instant();
        if let Some(machine) = &mut self.stations[id.0].machine {
            machine.handle(input, now);
            self.drain(id);
        }
    }

    /// Carries out what a machine wants, and remembers when to wake it.
    fn drain(&mut self, id: StationId) {
        for done in 0.. {
            assert!(done < MAX_OUTPUTS, "{id:?} wants more than {MAX_OUTPUTS} things at once");
            let Some(machine) = &mut self.stations[id.0].machine else { return };
            let Some(output) = machine.poll() else { break };
            self.carry_out(id, output);
        }
        let station = &mut self.stations[id.0];
        let deadline = station.machine.as_ref().and_then(Machine::poll_timeout);
        if let Some(at) = deadline.map(|at| self.clock.time(at).max(self.now))
            && station.wake.is_none_or(|wake| at < wake)
        {
            station.wake = Some(at);
            self.queue.push(at, Happening::Wake(id));
        }
    }

    fn carry_out(&mut self, id: StationId, output: Out) {
        let station = &mut self.stations[id.0];
        match output {
            Out::Send { hop: Hop::Udp { socket, remote }, bytes, ttl } => {
                let Some(socket) = station.sockets.get(&socket) else { return };
                let port = socket.port;
                self.send(id, port, remote, ttl.unwrap_or(TTL), Payload::Udp(bytes.into()));
            }
            Out::Send { hop: Hop::Tunnel { id: tunnel, .. }, bytes, .. } => {
                if let Some(connection) = station.streams.get_mut(&tunnel) {
                    connection.stream.send(Bytes::from(bytes), self.now);
                    self.drive_stream(id, tunnel);
                }
            }
            Out::Dial { dial, remote } => {
                let tunnel = station.take_tunnel();
                let port = station.take_port();
                let stream = Stream::connect(port, remote, self.now);
                let connection = Connection { stream, dial: Some(dial), announced: false };
                station.streams.insert(tunnel, connection);
                self.drive_stream(id, tunnel);
            }
            Out::CloseTunnel(tunnel) => self.close_stream(id, tunnel),
            Out::OpenSocket { open } => {
                let port = station.take_port();
                let socket = station.open_socket(port, false, true);
                let local = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                self.feed(id, In::SocketOpened { open, id: socket, local });
            }
            Out::CloseSocket(socket) => {
                let closed = station.sockets.remove(&socket);
                assert!(
                    closed.is_some_and(|closed| closed.ephemeral),
                    "{id:?} closes {socket:?}, which is not its to close"
                );
            }
            Out::Tun(packet) => self.delivered.push((self.now, id, packet)),
        }
    }

    fn tell_sockets(&mut self, id: StationId) {
        let sockets = self.stations[id.0].sockets.iter();
        let sockets = sockets
            .filter(|(_, socket)| !socket.ephemeral)
            .map(|(&id, socket)| {
                let any: IpAddr = match socket.v6 {
                    true => Ipv6Addr::UNSPECIFIED.into(),
                    false => Ipv4Addr::UNSPECIFIED.into(),
                };
                (id, SocketAddr::new(any, socket.port))
            })
            .collect();
        self.feed(id, In::Sockets(sockets));
    }

    fn send_segment(&mut self, id: StationId, port: u16, remote: SocketAddr, segment: Segment) {
        self.send(id, port, remote, TTL, Payload::Tcp(segment));
    }

    fn send(&mut self, id: StationId, port: u16, dst: SocketAddr, ttl: u8, payload: Payload) {
        match &payload {
            Payload::Udp(bytes) => (self.now, id, port, dst, ttl, bytes).hash(&mut self.history),
            Payload::Tcp(segment) => {
                (self.now, id, port, dst, segment.seq, &segment.bytes).hash(&mut self.history);
            }
        }
        let src = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
        let packet = Packet { src, dst, ttl, payload };
        let mut steps = std::mem::take(&mut self.steps);
        self.net.send(self.stations[id.0].host, packet, self.now, &mut steps);
        self.steps = steps;
        self.take_steps();
    }

    fn take_steps(&mut self) {
        for (at, step) in self.steps.drain(..) {
            self.queue.push(at, Happening::Step(step));
        }
    }

    /// A number below `bound`, from the world's seed.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.random.next_u64() % bound.max(1)
    }
}

impl<M> Station<M> {
    fn open_socket(&mut self, port: u16, v6: bool, ephemeral: bool) -> SocketId {
        let id = SocketId(self.next_socket);
        self.next_socket += 1;
        self.sockets.insert(id, Socket { port, v6, ephemeral });
        id
    }

    fn take_tunnel(&mut self) -> TunnelId {
        self.next_tunnel += 1;
        TunnelId(self.next_tunnel)
    }

    fn take_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        self.next_port
    }
}

impl<M> fmt::Debug for World<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World")
            .field("seed", &self.seed)
            .field("now", &self.now)
            .field("stations", &self.stations.len())
            .field("queued", &self.queue.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
