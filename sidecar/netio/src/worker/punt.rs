//! The queue from the data plane to the engine: bounded in bytes, control apart from user packets, and no
//! source gets more than its share.

use std::{
    collections::hash_map::RandomState,
    hash::BuildHasher,
    mem,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use engine::{
    drops::DropReason,
    fastpath::Punt,
    fib::Meter,
    path::addr::{Arrival, Via},
};
use tokio::sync::Notify;
use wire::{datagram::TYPE_DATA, id::NodeId, packet::Kind};

/// Bytes of control (handshakes, probes, records) that may wait for the engine.
pub const CONTROL_BOUND: usize = 256 * 1024;
/// Of them, what nobody has authenticated yet: a flood of it leaves room for the records of sessions.
const RAW_BOUND: usize = CONTROL_BOUND / 2;
/// Bytes of user packets that may wait for the engine, which itself holds 64 KiB.
pub const DATA_BOUND: usize = 256 * 1024;
/// What an entry costs beside its bytes.
const ENTRY: usize = mem::size_of::<Punted>();

/// Sources that are told apart; two that share a slot share its rate.
const SLOTS: usize = 256;
/// Datagrams a second that a source may ask the engine to look at: a punching peer's probes over all its
/// sockets, with room.
const SOURCE_RATE: u64 = 500;
const SOURCE_BURST: u64 = 1000;
/// Of them, DATA of sessions that we do not know: one is enough to see that the peer has an old one.
const STALE_RATE: u64 = 4;
const STALE_BURST: u64 = 4;

/// A [`engine::fastpath::Punt`] with bytes of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Punted {
    Raw { arrival: Arrival, bytes: Vec<u8> },
    Opened { arrival: Arrival, session: u32, kind: Kind, plaintext: Vec<u8> },
    Heard { arrival: Arrival, session: u32 },
    NoSession { peer: NodeId, packet: Vec<u8> },
    Active { peer: NodeId },
}

/// Makes the queue.
pub fn queue() -> (PuntSender, PuntReceiver) {
    let slots = |rate, burst| (0..SLOTS).map(|_| Meter::new(rate, burst)).collect();
    let shared = Arc::new(Shared {
        waiting: Mutex::default(),
        filled: Notify::new(),
        epoch: Instant::now(),
        hasher: RandomState::new(),
        sources: slots(SOURCE_RATE, SOURCE_BURST),
        stale: slots(STALE_RATE, STALE_BURST),
    });
    (PuntSender { shared: shared.clone() }, PuntReceiver { shared })
}

/// The data plane's end; any thread may push.
#[derive(Clone, Debug)]
pub struct PuntSender {
    shared: Arc<Shared>,
}

/// The driver's end.
#[derive(Debug)]
pub struct PuntReceiver {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    waiting: Mutex<Waiting>,
    filled: Notify,
    epoch: Instant,
    hasher: RandomState,
    sources: Vec<Meter>,
    stale: Vec<Meter>,
}

#[derive(Debug, Default)]
struct Waiting {
    punts: Vec<Punted>,
    control_bytes: usize,
    data_bytes: usize,
}

impl PuntSender {
    /// Copies a punt into the queue and wakes the driver.
    ///
    /// # Errors
    /// Why it was dropped, for the caller to count.
    pub fn push(&self, punt: Punt<'_>) -> Result<(), DropReason> {
        if let Punt::Raw { arrival, bytes } = punt
            && !self.shared.admits(&arrival, bytes)
        {
            return Err(DropReason::PuntLimited);
        }
        let cost = ENTRY + bytes_of(&punt).len();
        let mut waiting = self.shared.lock();
        let (used, bound) = match punt {
            Punt::NoSession { .. } => (&mut waiting.data_bytes, DATA_BOUND),
            Punt::Raw { .. } => (&mut waiting.control_bytes, RAW_BOUND),
            Punt::Opened { .. } | Punt::Heard { .. } | Punt::Active { .. } => {
                (&mut waiting.control_bytes, CONTROL_BOUND)
            }
        };
        if *used + cost > bound {
            return Err(DropReason::PuntFull);
        }
        *used += cost;
        waiting.punts.push(Punted::from(punt));
        drop(waiting);
        self.shared.filled.notify_one();
        Ok(())
    }
}

impl PuntReceiver {
    /// Waits for punts and takes all there are, oldest first. Safe to cancel.
    pub async fn receive(&self) -> Vec<Punted> {
        loop {
            let punts = self.take();
            if !punts.is_empty() {
                return punts;
            }
            self.shared.filled.notified().await;
        }
    }

    /// What waits now.
    pub fn take(&self) -> Vec<Punted> {
        mem::take(&mut *self.shared.lock()).punts
    }

    /// Bytes of control and of user packets that wait.
    pub fn len_bytes(&self) -> (usize, usize) {
        let waiting = self.shared.lock();
        (waiting.control_bytes, waiting.data_bytes)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a source has not used up its share.
    fn admits(&self, arrival: &Arrival, bytes: &[u8]) -> bool {
        let slot = match arrival.via {
            Some(Via { src, .. }) => self.hasher.hash_one(src),
            None => self.hasher.hash_one(source(arrival.hop.remote().ip())),
        } as usize
            % SLOTS;
        let meters = if bytes.first() == Some(&TYPE_DATA) { &self.stale } else { &self.sources };
        meters[slot].take(1, Instant::now().saturating_duration_since(self.epoch))
    }
}

/// What counts as one source: an IPv4 address, an IPv6 /64.
fn source(ip: IpAddr) -> u64 {
    match ip.to_canonical() {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => (u128::from(v6) >> 64) as u64,
    }
}

fn bytes_of<'a>(punt: &Punt<'a>) -> &'a [u8] {
    match *punt {
        Punt::Raw { bytes, .. } => bytes,
        Punt::Opened { plaintext, .. } => plaintext,
        Punt::NoSession { packet, .. } => packet,
        Punt::Heard { .. } | Punt::Active { .. } => &[],
    }
}

impl From<Punt<'_>> for Punted {
    fn from(punt: Punt<'_>) -> Self {
        match punt {
            Punt::Raw { arrival, bytes } => Self::Raw { arrival, bytes: bytes.to_vec() },
            Punt::Opened { arrival, session, kind, plaintext } => {
                Self::Opened { arrival, session, kind, plaintext: plaintext.to_vec() }
            }
            Punt::Heard { arrival, session } => Self::Heard { arrival, session },
            Punt::NoSession { peer, packet } => Self::NoSession { peer, packet: packet.to_vec() },
            Punt::Active { peer } => Self::Active { peer },
        }
    }
}

#[cfg(test)]
mod tests;
