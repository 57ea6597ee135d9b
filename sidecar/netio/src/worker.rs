//! The threads that move packets.
//!
//! A worker owns a TUN queue, the UDP sockets' receiving side, and its buffers. It decides nothing: what it
//! reads goes through [`engine::fastpath`], whose outcomes it puts where they belong ([`Plane`]). It
//! loads the FIB once per turn.
//!
//! ```text
//! turn: TUN ─ up to TUN_READS packets ─► encapsulate ─► one run per next hop ─► sendmsg (GSO)
//!       each ready socket ─ up to SOCKET_READS runs (GRO) ─► decapsulate ─► writev │ sendmsg │ punt
//! nothing to do: give way and look again a few times, then epoll
//! ```

pub mod plane;
pub mod punt;

use std::{
    fmt, io,
    os::fd::AsRawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use engine::{
    fastpath::{self, Inbox, Outbox},
    path::addr::{Hop, SocketId},
};

pub use self::{
    plane::{Plane, PlaneSink},
    punt::{PuntReceiver, PuntSender, Punted},
};
use crate::{
    port::{
        ready::{Ready, Wake},
        tun::{READ_LEN, Tun},
    },
    task::{CancellationToken, TaskGroup},
    udp::{Table, UdpSocket},
};

/// Super-packets read in one turn before the sockets get theirs, and runs of one socket: a turn stays below a
/// millisecond, so that neither direction starves the other.
const TUN_READS: usize = 16;
const SOCKET_READS: usize = 8;
/// A worker that never has to wait looks this often, in turns, what else is readable: each is below a millisecond.
const BUSY_TURNS: u32 = 32;
/// A wait ends after this long, to look at the token.
const LONGEST_WAIT: Duration = Duration::from_millis(250);

const TOKEN_WAKE: u64 = u64::MAX;
const TOKEN_TUN: u64 = u64::MAX - 1;

/// Starts workers and wakes them.
pub struct Worker {
    plane: Arc<Plane>,
    wake: Arc<Wake>,
    ready: Ready,
    /// The sockets known to `ready`, of one publication of the table.
    table: Arc<Table>,
    tun: Option<Arc<Tun>>,
    tun_is_hot: bool,
    /// Sockets that had something since the last wait.
    hot: Vec<Arc<UdpSocket>>,
    read_buf: Box<[u8]>,
    receive_buf: Box<[u8]>,
    outbox: Outbox,
    inbox: Inbox,
    idle_looks: u32,
    busy_turns: u32,
}

impl Worker {
    /// Starts worker `index`. It ends with its group.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn spawn(plane: Arc<Plane>, index: usize, group: &TaskGroup) -> io::Result<()> {
        let mut worker = Self::new(plane)?;
        let wake = worker.wake.clone();
        group.spawn_graceful(format!("wake worker-{index}"), move |token| async move {
            token.cancelled().await;
            wake.wake();
            Ok(())
        });
        group.spawn_thread(format!("worker-{index}"), move |token| Ok(worker.run(&token)?))
    }

    /// Starts a worker outside any group, for programs without a runtime; it ends when `token` is cancelled.
    ///
    /// # Errors
    /// When the system gives no thread or descriptor.
    pub fn spawn_alone(
        plane: Arc<Plane>,
        index: usize,
        token: CancellationToken,
    ) -> io::Result<std::thread::JoinHandle<io::Result<()>>> {
        let mut worker = Self::new(plane)?;
        std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || worker.run(&token))
    }

    fn new(plane: Arc<Plane>) -> io::Result<Self> {
        let (ready, wake) = (Ready::new()?, Arc::new(Wake::new()?));
        ready.add(wake.as_raw_fd(), TOKEN_WAKE)?;
        let mut worker = Self {
            plane,
            wake,
            ready,
            table: Arc::default(),
            read_buf: Box::default(),
            receive_buf: vec![0; wire::datagram::MAX_DATAGRAM].into_boxed_slice(),
            tun: None,
            tun_is_hot: true,
            hot: Vec::new(),
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            idle_looks: 0,
            busy_turns: 0,
        };
        worker.plane.sockets().watch(worker.wake.clone());
        worker.follow_table();
        worker.follow_tun();
        Ok(worker)
    }

    fn run(&mut self, token: &CancellationToken) -> io::Result<()> {
        while !token.is_cancelled() {
            self.advance()?;
        }
        Ok(())
    }

    /// Moves what is there, or waits.
    fn advance(&mut self) -> io::Result<()> {
        if self.turn() {
            self.idle_looks = 0;
            self.busy_turns += 1;
            if self.busy_turns >= BUSY_TURNS {
                self.look(Duration::ZERO)?;
            }
        } else if self.idle_looks < IDLE_LOOKS {
            self.idle_looks += 1;
            std::thread::yield_now();
        } else {
            self.idle_looks = 0;
            self.hot.clear();
            self.tun_is_hot = false;
            self.look(LONGEST_WAIT)?;
        }
        Ok(())
    }

    /// Moves what is there; false if nothing was.
    fn turn(&mut self) -> bool {
        let plane = self.plane.clone();
        let fib = plane.fib().load();
        let mut sink = PlaneSink::new(&plane, &fib);
        let now = Instant::now();
        let mut moved = false;

        let mut is_gone = false;
        if let Some(tun) = self.tun.as_ref().filter(|_| self.tun_is_hot) {
            for _ in 0..TUN_READS {
                let (virtio, packet) = match tun.read(&mut self.read_buf) {
                    Ok(Some(read)) => read,
                    Ok(None) => break,
                    Err(error) => {
                        is_gone = Tun::is_gone(&error);
                        break;
                    }
                };
                moved = true;
                let reply =
                    fastpath::encapsulate(&fib, &virtio, packet, now, &mut self.outbox, &mut sink);
                if let Some(reply) = reply {
                    sink.deliver_one(&reply);
                }
            }
            self.outbox.flush(&mut sink);
        }
        if is_gone && let Some(tun) = self.tun.take() {
            self.ready.remove(tun.as_raw_fd());
            self.plane.lose_tun(&tun);
        }
        let (receive_buf, inbox) = (&mut self.receive_buf, &mut self.inbox);
        for socket in &self.hot {
            for _ in 0..SOCKET_READS {
                let Some(received) = socket.receive(receive_buf) else { break };
                moved = true;
                // The host may answer at once.
                self.tun_is_hot = true;
                let buf = &mut receive_buf[..received.len];
                let datagrams = (0..received.len)
                    .step_by(received.segment)
                    .map(|at| at..received.len.min(at + received.segment));
                let hop = Hop::Udp { socket: socket.id(), remote: received.remote };
                fastpath::decapsulate(&fib, buf, datagrams, hop, now, inbox, &mut sink);
            }
        }
        moved
    }

    /// Finds out what is readable, and waits for it up to `timeout`.
    fn look(&mut self, timeout: Duration) -> io::Result<()> {
        self.busy_turns = 0;
        let tokens = self.ready.wait(timeout)?;
        let mut is_woken = false;
        for &token in tokens {
            match token {
                TOKEN_WAKE => is_woken = true,
                TOKEN_TUN => self.tun_is_hot = true,
                token => {
                    let id = SocketId(token as u16);
                    if !self.hot.iter().any(|hot| hot.id() == id) {
                        self.hot.extend(self.table.get(&id).cloned());
                    }
                }
            }
        }
        if is_woken {
            self.wake.clear();
            self.follow_table();
            self.follow_tun();
        }
        Ok(())
    }

    /// Reads from the newest TUN and from no other.
    fn follow_tun(&mut self) {
        let tun = self.plane.tun();
        let is_same = match (&tun, &self.tun) {
            (Some(new), Some(old)) => Arc::ptr_eq(new, old),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if is_same {
            return;
        }
        if let Some(old) = &self.tun {
            self.ready.remove(old.as_raw_fd());
        }
        if let Some(new) = &tun {
            if let Err(error) = self.ready.add(new.as_raw_fd(), TOKEN_TUN) {
                tracing::warn!(%error, "Cannot wait for the TUN");
            }
            self.read_buf = vec![0; READ_LEN].into_boxed_slice();
        }
        self.tun = tun;
        self.tun_is_hot = true;
    }

    /// Reads from the sockets of the newest table and from no others.
    fn follow_table(&mut self) {
        let table = Arc::clone(&self.plane.sockets().table());
        for (id, socket) in self.table.iter().filter(|(id, _)| !table.contains_key(id)) {
            self.ready.remove(socket.as_raw_fd());
            self.hot.retain(|hot| hot.id() != *id);
        }
        for (id, socket) in table.iter().filter(|(id, _)| !self.table.contains_key(id)) {
            if let Err(error) = self.ready.add(socket.as_raw_fd(), u64::from(id.0)) {
                tracing::warn!(socket = id.0, %error, "Cannot wait for a socket");
            }
        }
        self.table = table;
    }
}

/// How often an idle worker looks again before it sleeps, giving way in between: a wake-up costs more than a few
/// looks, and small packets gather meanwhile (64-byte flood: 0.32 of raw without, 0.39–0.42 with three and more).
/// More only take the CPU from whoever is to answer.
const IDLE_LOOKS: u32 = 4;

impl Drop for Worker {
    fn drop(&mut self) {
        self.plane.sockets().unwatch(&self.wake);
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Worker")
            .field("tun", &self.tun)
            .field("sockets", &self.table.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
