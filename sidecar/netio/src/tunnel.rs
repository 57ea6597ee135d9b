//! Stream carriers: connections that carry the same datagrams as UDP does.
//!
//! Nothing here knows who is at the other end: a tunnel is a *stranger* until the engine, which sees
//! the sessions, says that it is not ([`Tunnels::trust`]). Strangers are few, short-lived and
//! counted.
//!
//! What a tunnel reads goes to the [`Handler`] in batches, on the tunnel's own task, without a
//! channel. What is sent to one goes through a queue bounded in bytes ([`queue`]); any thread may
//! send.

pub mod queue;
pub mod tcp;

use std::{
    collections::BTreeMap,
    fmt, io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use engine::{
    drops::{DropReason, Drops},
    path::addr::{Carrier, Hop, TunnelId},
};
use tokio::sync::{Notify, mpsc};
use wire::stream::Malformed;

pub use self::queue::{Precedence, QUEUE_BOUND, Sent};
use self::queue::{Queue, QueueState};
use crate::task::{CancellationToken, TaskGroup};

/// Connections being made at once; a dial is cheap to repeat, a burst of them is not.
pub const MAX_DIALS: usize = 16;
/// Accepted connections without a session at once: what a flood may cost us.
pub const MAX_STRANGERS: usize = 16;
/// Accepted strangers at once of one IPv4 address or IPv6 /64, so that one source cannot take all.
pub const MAX_STRANGERS_PER_SOURCE: usize = 4;
/// Bytes that may wait for a stranger: some answers to handshakes.
pub const STRANGER_BOUND: usize = 64 * 1024;
/// How long a tunnel may stay a stranger; a handshake takes one round trip.
pub const STRANGER_TIMEOUT: Duration = Duration::from_secs(10);
/// Tunnel events that may wait for the driver; there are two in a tunnel's life.
pub const EVENT_BOUND: usize = 64;
/// How long a closing tunnel may take to send what it has queued.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);

/// Takes what a tunnel read: runs on the tunnel's task and must not block.
pub type Handler = Arc<dyn Fn(Hop, &mut Batch<'_>) + Send + Sync>;

/// Whole datagrams, in the order they arrived, in one buffer.
#[derive(Debug)]
pub struct Batch<'a> {
    bytes: &'a mut [u8],
    datagrams: &'a [Range<usize>],
}

/// What happens to tunnels, for the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TunnelEvent {
    Up {
        id: TunnelId,
        carrier: Carrier,
        local: SocketAddr,
        remote: SocketAddr,
        inbound: bool,
    },
    /// The last word about a tunnel; also of one that never came up.
    Down {
        id: TunnelId,
        remote: SocketAddr,
        reason: Closed,
    },
}

/// Why a tunnel is no more.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Closed {
    /// We closed it.
    Local,
    /// The other side closed it.
    Remote,
    /// It never came up.
    Unreachable(io::ErrorKind),
    /// It broke.
    Broken(io::ErrorKind),
    /// Nobody authenticated in [`TunnelConfig::stranger_timeout`].
    Stranger,
    /// It does not speak our protocol.
    Malformed(Malformed),
}

/// A dial was refused: [`MAX_DIALS`] are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_DIALS} connections are being made already")]
pub struct Busy;

/// How tunnels are made.
#[derive(Clone, Debug)]
pub struct TunnelConfig {
    /// Marks our sockets so that policy routing keeps them out of the mesh; needs CAP_NET_ADMIN.
    pub fwmark: Option<u32>,
    /// How long a tunnel may stay a stranger: [`STRANGER_TIMEOUT`].
    pub stranger_timeout: Duration,
    /// Accepted strangers at once: [`MAX_STRANGERS`]; more for a public server, whose clients all come as such.
    pub max_strangers: usize,
    /// Where it is counted what strangers did.
    pub drops: Arc<Drops>,
}

impl Default for TunnelConfig {
    fn default() -> Self {
        Self {
            fwmark: None,
            stranger_timeout: STRANGER_TIMEOUT,
            max_strangers: MAX_STRANGERS,
            drops: Arc::default(),
        }
    }
}

/// What was refused and lost, since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub accepted: AtomicU64,
    /// Connections refused because there were too many strangers, in all or of one source.
    pub refused: AtomicU64,
    /// Errors of `accept`, such as running out of file descriptors.
    pub accept_errors: AtomicU64,
    pub strangers_expired: AtomicU64,
    pub malformed: AtomicU64,
    /// Datagrams that found a queue full, or no tunnel.
    pub dropped: AtomicU64,
}

/// All tunnels. Clones are handles to the same ones; any thread may send.
#[derive(Clone)]
pub struct Tunnels {
    shared: Arc<Shared>,
}

struct Shared {
    config: TunnelConfig,
    group: TaskGroup,
    handler: Handler,
    events: mpsc::Sender<TunnelEvent>,
    table: ArcSwap<BTreeMap<TunnelId, Arc<Tunnel>>>,
    /// Held while the table changes; readers never take it.
    changing: Mutex<()>,
    next: AtomicU32,
    dials: AtomicU32,
    counters: Counters,
}

/// One connection, made or being made.
struct Tunnel {
    id: TunnelId,
    remote: SocketAddr,
    inbound: bool,
    queue: Queue,
    trusted: AtomicBool,
    became_trusted: Notify,
    close: CancellationToken,
}

impl Tunnels {
    /// Tunnels whose tasks join `group`, and the receiver of their events.
    pub fn new(
        config: TunnelConfig,
        group: TaskGroup,
        handler: Handler,
    ) -> (Self, mpsc::Receiver<TunnelEvent>) {
        let (events, receiver) = mpsc::channel(EVENT_BOUND);
        let shared = Shared {
            config,
            group,
            handler,
            events,
            table: ArcSwap::default(),
            changing: Mutex::new(()),
            next: AtomicU32::new(1),
            dials: AtomicU32::new(0),
            counters: Counters::default(),
        };
        (Self { shared: Arc::new(shared) }, receiver)
    }

    /// Accepts TCP connections on `addr` and returns the address in use (port 0 takes a free one).
    ///
    /// # Errors
    /// When the address cannot be listened on, or the socket not be marked.
    pub fn listen_tcp(&self, addr: SocketAddr) -> io::Result<SocketAddr> {
        tcp::listen(&self.shared, addr)
    }

    /// Starts to connect; an event tells the outcome. Datagrams sent meanwhile wait in the queue.
    ///
    /// # Errors
    /// [`Busy`]: ask again later.
    pub fn dial_tcp(&self, remote: SocketAddr) -> Result<TunnelId, Busy> {
        tcp::dial(&self.shared, remote)
    }

    /// Queues one datagram.
    pub fn try_send(&self, id: TunnelId, precedence: Precedence, datagram: &[u8]) -> Sent {
        self.try_send_batch(id, precedence, [datagram])
    }

    /// Queues datagrams under one lock; what finds no room is dropped and counted.
    pub fn try_send_batch<'a>(
        &self,
        id: TunnelId,
        precedence: Precedence,
        datagrams: impl IntoIterator<Item = &'a [u8]>,
    ) -> Sent {
        let sent = match self.shared.table.load().get(&id) {
            Some(tunnel) if !tunnel.is_full_stranger() => tunnel.queue.push(precedence, datagrams),
            Some(_) | None => Sent { queued: 0, dropped: datagrams.into_iter().count() },
        };
        self.shared.counters.dropped.fetch_add(sent.dropped as u64, Ordering::Relaxed);
        sent
    }

    /// Says that a session is up over this tunnel: it is no stranger any more.
    pub fn trust(&self, id: TunnelId) {
        if let Some(tunnel) = self.shared.table.load().get(&id) {
            tunnel.trusted.store(true, Ordering::Release);
            tunnel.became_trusted.notify_one();
        }
    }

    /// Closes a tunnel after what it has queued was sent, or a second later.
    pub fn close(&self, id: TunnelId) {
        if let Some(tunnel) = self.shared.table.load().get(&id) {
            tunnel.close.cancel();
        }
    }

    /// Closes all of them.
    pub fn close_all(&self) {
        for tunnel in self.shared.table.load().values() {
            tunnel.close.cancel();
        }
    }

    /// How many there are, those being made included.
    pub fn len(&self) -> usize {
        self.shared.table.load().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length and drops of a tunnel's queue.
    pub fn queue(&self, id: TunnelId) -> Option<QueueState> {
        self.shared.table.load().get(&id).map(|tunnel| tunnel.queue.state())
    }

    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }
}

impl Shared {
    fn add(&self, remote: SocketAddr, inbound: bool) -> Arc<Tunnel> {
        let _changing = self.lock();
        self.insert(remote, inbound)
    }

    /// Adds an accepted connection, unless there are too many strangers.
    fn admit(&self, remote: SocketAddr) -> Option<Arc<Tunnel>> {
        let _changing = self.lock();
        let table = self.table.load();
        let strangers = table.values().filter(|tunnel| tunnel.inbound && !tunnel.is_trusted());
        let (mut all, mut same) = (0, 0);
        for stranger in strangers {
            all += 1;
            same += usize::from(source(stranger.remote.ip()) == source(remote.ip()));
        }
        if all >= self.config.max_strangers || same >= MAX_STRANGERS_PER_SOURCE {
            self.counters.refused.fetch_add(1, Ordering::Relaxed);
            self.config.drops.count(DropReason::StreamRefused);
            return None;
        }
        self.counters.accepted.fetch_add(1, Ordering::Relaxed);
        Some(self.insert(remote, true))
    }

    fn insert(&self, remote: SocketAddr, inbound: bool) -> Arc<Tunnel> {
        let tunnel = Arc::new(Tunnel {
            id: TunnelId(self.next.fetch_add(1, Ordering::Relaxed)),
            remote,
            inbound,
            queue: Queue::default(),
            trusted: AtomicBool::new(false),
            became_trusted: Notify::new(),
            close: self.group.token().child_token(),
        });
        let mut table = BTreeMap::clone(&self.table.load());
        table.insert(tunnel.id, tunnel.clone());
        self.table.store(Arc::new(table));
        tunnel
    }

    fn forget(&self, id: TunnelId) {
        let _changing = self.lock();
        let mut table = BTreeMap::clone(&self.table.load());
        table.remove(&id);
        self.table.store(Arc::new(table));
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets a tunnel, counts why it ended and tells the engine.
    async fn end(&self, tunnel: &Tunnel, reason: Closed) {
        self.forget(tunnel.id);
        let counted = match reason {
            Closed::Stranger => {
                Some((&self.counters.strangers_expired, DropReason::StreamStranger))
            }
            Closed::Malformed(_) => Some((&self.counters.malformed, DropReason::StreamMalformed)),
            Closed::Local | Closed::Remote | Closed::Unreachable(_) | Closed::Broken(_) => None,
        };
        if let Some((counter, drop)) = counted {
            counter.fetch_add(1, Ordering::Relaxed);
            self.config.drops.count(drop);
        }
        // What strangers do is worth a counter, not a line.
        if tunnel.is_trusted() || !tunnel.inbound {
            tracing::debug!(tunnel = tunnel.id.0, remote = %tunnel.remote, ?reason, "Tunnel down");
        } else {
            tracing::trace!(tunnel = tunnel.id.0, remote = %tunnel.remote, ?reason, "Tunnel down");
        }
        let down = TunnelEvent::Down { id: tunnel.id, remote: tunnel.remote, reason };
        // Nobody listens any more only while everything ends.
        let _ = self.events.send(down).await;
    }
}

impl Tunnel {
    fn is_trusted(&self) -> bool {
        self.trusted.load(Ordering::Acquire)
    }

    fn is_full_stranger(&self) -> bool {
        self.inbound && !self.is_trusted() && self.queue.state().bytes >= STRANGER_BOUND
    }

    async fn trusted(&self) {
        while !self.is_trusted() {
            self.became_trusted.notified().await;
        }
    }
}

impl Batch<'_> {
    pub fn len(&self) -> usize {
        self.datagrams.len()
    }

    pub fn is_empty(&self) -> bool {
        self.datagrams.is_empty()
    }

    /// Hands out the datagrams one after the other, to be opened in place.
    pub fn for_each(&mut self, mut take: impl FnMut(&mut [u8])) {
        for range in self.datagrams {
            if let Some(datagram) = self.bytes.get_mut(range.clone()) {
                take(datagram);
            }
        }
    }

    /// The buffer and where in it the datagrams are.
    pub fn parts(&mut self) -> (&mut [u8], &[Range<usize>]) {
        (self.bytes, self.datagrams)
    }
}

/// What counts as one source: an IPv4 address, an IPv6 /64.
fn source(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let network = u128::from(v6) & (u128::MAX << 64);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

impl fmt::Debug for Tunnels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnels")
            .field("config", &self.shared.config)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
