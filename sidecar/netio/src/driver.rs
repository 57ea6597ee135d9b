//! Drives an engine: hands it what happened, does what it says, decides nothing.
//!
//! The task owns the engine. It wakes on punts of the data plane, tunnel events, commands, changes of the host's network,
//! resolved names and the engine's deadline. Cancelling it makes the engine leave first: LSAs are withdrawn and the
//! sessions told, then it ends; unless its successor goes on with what there is ([`Departure`]), then it just ends.

mod host;
mod names;

use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use engine::{
    Engine, Server,
    config::Config,
    drops::DropReason,
    event::{Event, Input, Interface, Notice, NoticeKind, Persist, Socket, Transmit},
    fastpath::Outbox,
    path::addr::{Carrier, Hop, TunnelId},
    server::Counts,
    snapshot::Snapshot,
};
use ipnet::IpNet;
use tokio::sync::{mpsc, oneshot, watch};
use wire::id::NodeId;

pub use self::{
    host::{Departure, HostParts, HostState, HostTask},
    names::Name,
};
use crate::{
    netmon::{Interfaces, Kind},
    nft::Translation,
    resolve::{self, Resolver},
    task::{CancellationToken, TaskGroup},
    tunnel::{TunnelEvent, Tunnels},
    worker::{Plane, PuntReceiver, Punted},
};

/// Commands that may wait; whoever asks waits too.
pub const COMMAND_BOUND: usize = 64;
/// Events kept for `easynet events`.
const EVENTS_KEPT: usize = 512;
/// What leaving may take before the rest is given up.
const LEAVE_WITHIN: Duration = Duration::from_millis(300);

/// The machine that is driven.
#[derive(Debug)]
pub enum Machine {
    Node(Box<Engine>),
    Server(Box<Server>),
}

/// Something asked of the driver; answers go where the asker waits.
#[derive(Debug)]
pub enum Command {
    Snapshot(oneshot::Sender<View>),
    Counts(oneshot::Sender<(Counts, Vec<(DropReason, u64)>)>),
    Events {
        since: u64,
        answer: oneshot::Sender<Vec<Recorded>>,
    },
    /// Answers once, or never: the asker has a deadline.
    Ping {
        target: String,
        answer: oneshot::Sender<PingOutcome>,
    },
    Punch {
        target: String,
        answer: oneshot::Sender<bool>,
    },
    Configure {
        config: Box<Config>,
        names: Vec<Name>,
        translation: Translation,
    },
    /// Something that is no event of the engine's, to be kept with those.
    Record(Notice),
}

/// A node as the driver sees it.
#[derive(Debug)]
pub struct View {
    pub snapshot: Snapshot,
    pub host: HostState,
    pub interfaces: Interfaces,
    /// Bytes of control and of user packets that wait for the engine.
    pub punted: (usize, usize),
    pub drops: Vec<(DropReason, u64)>,
    /// Bootstrap names that do not resolve, by number, and why.
    pub unresolved: BTreeMap<usize, resolve::Failure>,
    pub now: Instant,
}

/// An event with its time and number.
#[derive(Clone, Debug)]
pub struct Recorded {
    pub number: u64,
    pub at: SystemTime,
    pub notice: Notice,
}

/// What a ping led to.
#[derive(Clone, Debug)]
pub enum PingOutcome {
    Pong {
        peer: NodeId,
        rtt: Duration,
        relayed: bool,
        hop: Hop,
    },
    /// No member has this name or address.
    Unknown,
}

/// All that the driver needs.
#[derive(Debug)]
pub struct Parts {
    pub machine: Machine,
    pub plane: Arc<Plane>,
    pub punts: PuntReceiver,
    pub tunnel_events: mpsc::Receiver<TunnelEvent>,
    pub commands: mpsc::Receiver<Command>,
    /// None for a server, which needs nothing of the host.
    pub host: Option<HostTask>,
    pub interfaces: watch::Receiver<Interfaces>,
    pub resolver: Option<Resolver>,
    pub names: Vec<Name>,
    pub persist: mpsc::Sender<Persist>,
    pub departure: Departure,
    /// Told of what happens, for counting; it must not block.
    pub observer: Observer,
}

/// Is told of what happens as it happens.
pub struct Observer(pub Box<dyn Fn(Observed<'_>) + Send>);

impl Observer {
    /// One that is not interested.
    pub fn none() -> Self {
        Self(Box::new(|_| {}))
    }
}

impl fmt::Debug for Observer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observer")
    }
}

/// What an observer is told.
#[derive(Debug)]
pub enum Observed<'a> {
    Notice(&'a Notice),
    /// Shortest paths were computed; how long that step of the engine took.
    ShortestPaths(Duration),
}

/// The task.
#[derive(Debug)]
pub struct Driver {
    machine: Machine,
    plane: Arc<Plane>,
    punts: PuntReceiver,
    tunnel_events: mpsc::Receiver<TunnelEvent>,
    commands: mpsc::Receiver<Command>,
    host: Option<HostTask>,
    interfaces: watch::Receiver<Interfaces>,
    names: names::Names,
    persist: mpsc::Sender<Persist>,
    departure: Departure,
    observer: Observer,
    /// Bootstrap names that do not resolve, and why.
    unresolved: BTreeMap<usize, resolve::Failure>,
    dials: BTreeMap<TunnelId, u32>,
    pings: BTreeMap<u64, oneshot::Sender<PingOutcome>>,
    next_ping: u64,
    events: VecDeque<Recorded>,
    next_event: u64,
    outbox: Outbox,
    left: bool,
}

impl Driver {
    /// Starts the task in `group`.
    pub fn spawn(parts: Parts, group: &TaskGroup) {
        let names = names::Names::new(parts.resolver, parts.names, group);
        let mut driver = Self {
            machine: parts.machine,
            plane: parts.plane,
            punts: parts.punts,
            tunnel_events: parts.tunnel_events,
            commands: parts.commands,
            host: parts.host,
            interfaces: parts.interfaces,
            names,
            persist: parts.persist,
            departure: parts.departure,
            observer: parts.observer,
            unresolved: BTreeMap::new(),
            dials: BTreeMap::new(),
            pings: BTreeMap::new(),
            next_ping: 0,
            events: VecDeque::new(),
            next_event: 1,
            outbox: Outbox::default(),
            left: false,
        };
        group.spawn_graceful("driver", move |token| async move {
            driver.run(&token).await;
            Ok(())
        });
    }

    async fn run(&mut self, token: &CancellationToken) {
        self.tell_sockets();
        self.tell_underlay();
        self.names.start();
        let mut leave_until = None;
        loop {
            self.drain();
            if self.left {
                return;
            }
            let deadline = self.deadline();
            tokio::select! {
                biased;
                () = token.cancelled(), if leave_until.is_none() => {
                    if self.departure.stays() {
                        return;
                    }
                    leave_until = Some(tokio::time::Instant::now() + LEAVE_WITHIN);
                    self.input(Input::Leave);
                }
                () = wait(leave_until) => return,
                Some(command) = self.commands.recv() => self.on_command(command),
                Some(event) = self.tunnel_events.recv() => self.on_tunnel(event),
                punts = self.punts.receive() => self.on_punts(punts),
                Some((index, found)) = self.names.resolved() => self.on_resolved(index, found),
                Ok(()) = self.interfaces.changed() => {
                    self.tell_underlay();
                    self.names.again();
                }
                () = wait(deadline) => self.on_deadline(),
            }
        }
    }

    fn deadline(&self) -> Option<tokio::time::Instant> {
        let at = match &self.machine {
            Machine::Node(engine) => engine.poll_timeout().map(|(at, _)| at),
            Machine::Server(server) => server.poll_timeout().map(|(at, _)| at),
        };
        at.map(tokio::time::Instant::from_std)
    }

    fn on_deadline(&mut self) {
        let now = Instant::now();
        match &mut self.machine {
            Machine::Node(engine) => {
                let before = engine.spf_runs();
                engine.handle_timeout(now);
                if engine.spf_runs() != before {
                    (self.observer.0)(Observed::ShortestPaths(now.elapsed()));
                }
            }
            Machine::Server(server) => server.handle_timeout(now),
        }
    }

    fn input(&mut self, input: Input<'_>) {
        let now = Instant::now();
        match &mut self.machine {
            Machine::Node(engine) => {
                let before = engine.spf_runs();
                engine.handle_input(input, now);
                if engine.spf_runs() != before {
                    (self.observer.0)(Observed::ShortestPaths(now.elapsed()));
                }
            }
            Machine::Server(server) => server.handle_input(input, now),
        }
        self.drain();
    }

    fn on_resolved(&mut self, index: usize, found: Result<Vec<SocketAddr>, resolve::Failure>) {
        match found {
            Ok(addrs) => {
                self.unresolved.remove(&index);
                self.input(Input::Bootstrap { index, addrs });
            }
            Err(failure) => {
                self.unresolved.insert(index, failure);
            }
        }
    }

    /// Does what the machine wants: events first, so that the data plane knows a session before the peer does.
    fn drain(&mut self) {
        while let Some(event) = self.poll_event() {
            self.on_event(event);
        }
        while let Some(transmit) = self.poll_transmit() {
            self.plane.transmit(&transmit.hop, &transmit.bytes, transmit.ttl);
        }
    }

    fn poll_event(&mut self) -> Option<Event> {
        match &mut self.machine {
            Machine::Node(engine) => engine.poll_event(),
            Machine::Server(server) => server.poll_event(),
        }
    }

    fn poll_transmit(&mut self) -> Option<Transmit> {
        match &mut self.machine {
            Machine::Node(engine) => engine.poll_transmit(),
            Machine::Server(server) => server.poll_transmit(),
        }
    }

    fn on_punts(&mut self, punts: Vec<Punted>) {
        for punt in punts {
            match punt {
                Punted::Raw { arrival, bytes } => {
                    self.input(Input::Datagram { arrival, bytes: &bytes })
                }
                Punted::Opened { arrival, session, kind, plaintext } => {
                    self.input(Input::Record { arrival, session, kind, plaintext: &plaintext });
                }
                Punted::Heard { arrival, session } => self.input(Input::Heard { arrival, session }),
                Punted::NoSession { peer, packet } => {
                    self.input(Input::Outbound { packet: &packet, peer })
                }
                Punted::Active { peer } => self.input(Input::Active { peer }),
            }
        }
    }

    fn on_tunnel(&mut self, event: TunnelEvent) {
        match event {
            TunnelEvent::Up { id, carrier, remote, .. } => {
                let dial = self.dials.get(&id).copied();
                self.input(Input::TunnelUp { id, carrier, remote, dial });
            }
            TunnelEvent::Down { id, .. } => {
                let dial = self.dials.remove(&id);
                self.input(Input::TunnelDown { id: Some(id), dial });
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Fib(fib) => self.plane.fib().store(fib),
            Event::Host(host) => {
                if let Some(task) = &self.host {
                    task.want(host);
                }
            }
            Event::Release(mut packet) => {
                self.plane.send_packet(&mut packet, Instant::now(), &mut self.outbox)
            }
            Event::Deliver(packet) => self.plane.deliver(&packet),
            Event::Dial { dial, carrier: Carrier::Tcp, remote } => self.dial(dial, remote),
            Event::Dial { dial, carrier: Carrier::Udp, .. } => {
                self.input(Input::TunnelDown { id: None, dial: Some(dial) });
            }
            Event::Authenticated(id) => self.with_tunnels(|tunnels| tunnels.trust(id)),
            Event::CloseTunnel(id) => self.with_tunnels(|tunnels| tunnels.close(id)),
            Event::OpenSocket { open } => {
                let socket = self.plane.sockets().bind(([0, 0, 0, 0], 0).into());
                let socket =
                    socket.ok().map(|socket| Socket { id: socket.id(), local: socket.local() });
                self.input(Input::SocketOpened { open, socket });
            }
            Event::CloseSocket(id) => self.plane.sockets().close(id),
            Event::Pong { id, peer, rtt, relayed, hop } => {
                if let Some(answer) = self.pings.remove(&id) {
                    // Nobody waits any more: the ping's deadline passed.
                    let _ = answer.send(PingOutcome::Pong { peer, rtt, relayed, hop });
                }
            }
            Event::Persist(persist) => {
                // A full queue holds newer ones of the same kind already.
                let _ = self.persist.try_send(persist);
            }
            Event::Notice(notice) => self.record(notice),
            Event::Left => self.left = true,
        }
    }

    fn dial(&mut self, dial: u32, remote: SocketAddr) {
        let made = self.plane.tunnels().and_then(|tunnels| tunnels.dial_tcp(remote).ok());
        match made {
            Some(id) => {
                self.dials.insert(id, dial);
            }
            None => self.input(Input::TunnelDown { id: None, dial: Some(dial) }),
        }
    }

    fn with_tunnels(&self, act: impl FnOnce(&Tunnels)) {
        if let Some(tunnels) = self.plane.tunnels() {
            act(tunnels);
        }
    }

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Snapshot(answer) => {
                if let Machine::Node(engine) = &self.machine {
                    let now = Instant::now();
                    let _ = answer.send(View {
                        snapshot: engine.snapshot(now),
                        host: self.host.as_ref().map(HostTask::state).unwrap_or_default(),
                        interfaces: self.interfaces.borrow().clone(),
                        punted: self.punts.len_bytes(),
                        drops: engine.drops().iter().collect(),
                        unresolved: self.unresolved.clone(),
                        now,
                    });
                }
            }
            Command::Counts(answer) => {
                if let Machine::Server(server) = &self.machine {
                    let drops = self.plane.fib().load().drops.iter().collect();
                    let _ = answer.send((server.counts(), drops));
                }
            }
            Command::Events { since, answer } => {
                let _ = answer.send(
                    self.events.iter().filter(|event| event.number > since).cloned().collect(),
                );
            }
            Command::Ping { target, answer } => self.ping(&target, answer),
            Command::Punch { target, answer } => {
                let peer = self.find(&target);
                if let Some(peer) = peer {
                    self.input(Input::Punch { peer });
                }
                let _ = answer.send(peer.is_some());
            }
            Command::Configure { config, names, translation } => {
                self.unresolved.clear();
                if let Some(host) = &self.host {
                    host.translate(translation);
                }
                self.input(Input::Configure(config));
                self.names.set(names);
            }
            Command::Record(notice) => self.record(notice),
        }
    }

    fn ping(&mut self, target: &str, answer: oneshot::Sender<PingOutcome>) {
        let Some(peer) = self.find(target) else {
            let _ = answer.send(PingOutcome::Unknown);
            return;
        };
        self.pings.retain(|_, waiting| !waiting.is_closed());
        self.next_ping += 1;
        let id = self.next_ping;
        self.pings.insert(id, answer);
        self.input(Input::Ping { id, peer });
    }

    fn find(&self, target: &str) -> Option<NodeId> {
        match &self.machine {
            Machine::Node(engine) => engine.find(target),
            Machine::Server(_) => None,
        }
    }

    fn record(&mut self, notice: Notice) {
        let kind = notice.kind.as_str();
        let peer = notice.peer.map(tracing::field::display);
        let field = |name| {
            let found = notice.fields.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.as_str())
        };
        let number = |name| field(name).and_then(|value| value.parse::<u64>().ok());
        // Addresses and names of peers stay below INFO; the message says what happened without them, but for a conflict, about which
        // nobody can do anything who does not know the prefix and the members.
        macro_rules! log {
            ($level:ident) => {
                tracing::$level!(
                    kind,
                    peer,
                    reason = field("reason"),
                    via = field("via"),
                    plan = field("plan"),
                    outcome = field("outcome"),
                    ms = number("ms"),
                    after_ms = number("after_ms"),
                    mapping = field("mapping"),
                    filtering = field("filtering"),
                    "{}",
                    notice.message
                )
            };
        }
        if notice.kind == NoticeKind::AddressConflict {
            log!(warn);
        } else {
            log!(info);
        }
        tracing::debug!(kind = notice.kind.as_str(), peer = ?notice.peer, fields = ?notice.fields, "Event");
        (self.observer.0)(Observed::Notice(&notice));
        if self.events.len() == EVENTS_KEPT {
            self.events.pop_front();
        }
        self.events.push_back(Recorded { number: self.next_event, at: SystemTime::now(), notice });
        self.next_event += 1;
    }

    fn tell_sockets(&mut self) {
        let sockets = self
            .plane
            .sockets()
            .table()
            .values()
            .map(|socket| Socket { id: socket.id(), local: socket.local() })
            .collect();
        self.input(Input::Sockets(sockets));
    }

    fn tell_underlay(&mut self) {
        let interfaces = self.interfaces.borrow_and_update().clone();
        let underlay = interfaces
            .list
            .iter()
            .filter(|interface| interface.up && interface.kind == Kind::Underlay)
            .map(|interface| Interface {
                name: interface.name.clone(),
                mtu: interface.mtu,
                addresses: interface.addresses.iter().copied().filter(is_routable).collect(),
            })
            .collect();
        self.input(Input::Underlay(underlay));
        let Some(host) = &self.host else { return };
        let networks = interfaces
            .list
            .iter()
            .filter(|interface| match interface.kind {
                Kind::Container | Kind::Tunnel => interface.name != host.tun(),
                Kind::Underlay | Kind::Loopback => false,
            })
            .flat_map(|interface| interface.addresses.iter().copied().filter(is_routable))
            .collect();
        self.input(Input::Networks(networks));
    }
}

/// Link-local addresses need a scope, which a candidate does not carry.
fn is_routable(net: &IpNet) -> bool {
    match net {
        IpNet::V4(v4) => !v4.addr().is_link_local(),
        IpNet::V6(v6) => !v6.addr().is_unicast_link_local(),
    }
}

async fn wait(until: Option<tokio::time::Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}
