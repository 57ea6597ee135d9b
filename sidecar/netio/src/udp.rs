//! The UDP sockets: one table, numbered; any thread may send.
//!
//! Every listen port has one socket for each family, so that an address is never of the other one. All are
//! marked, so that policy routing keeps the underlay out of the mesh, and never fragment.

pub mod gso;

use std::{
    collections::BTreeMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, Guard};
use engine::path::addr::SocketId;
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::port::ready::Wake;

/// Bytes that a socket may hold in the kernel: 20 ms at 1.5 Gbit/s, so that a worker that has to wait
/// for its CPU loses nothing.
const BUFFER: usize = 4 << 20;
/// How long the kernel may keep a sending worker waiting for room before the rest is dropped.
const SEND_TIMEOUT: Duration = Duration::from_millis(20);

/// All UDP sockets of a process.
#[derive(Debug)]
pub struct UdpSockets {
    mark: Option<u32>,
    table: ArcSwap<Table>,
    /// Held while the table changes, with what to wake then.
    changing: Mutex<Changing>,
}

/// Sockets by number.
pub type Table = BTreeMap<SocketId, Arc<UdpSocket>>;

#[derive(Debug, Default)]
struct Changing {
    next: u16,
    watchers: Vec<Arc<Wake>>,
}

/// One bound socket.
#[derive(Debug)]
pub struct UdpSocket {
    id: SocketId,
    socket: Socket,
    local: SocketAddr,
    /// Sends runs in one call; off for good once the kernel or a driver refused.
    gso: AtomicBool,
    /// Receives runs in one call.
    gro: bool,
    /// The mark was refused: CAP_NET_ADMIN is missing.
    unmarked: bool,
}

impl UdpSockets {
    /// Sockets carry `mark`, if any.
    pub fn new(mark: Option<u32>) -> Self {
        Self { mark, table: ArcSwap::default(), changing: Mutex::default() }
    }

    /// Binds one socket; workers that watch read from it from now on.
    ///
    /// # Errors
    /// When the address is taken or not ours, or the family is missing on this host.
    pub fn bind(&self, addr: SocketAddr) -> io::Result<Arc<UdpSocket>> {
        let mut changing = self.lock();
        let mut table = Table::clone(&self.table.load());
        // Numbers are not reused soon: a late transmit must not leave by a newer socket.
        let id = loop {
            let id = SocketId(changing.next);
            changing.next = changing.next.wrapping_add(1);
            if !table.contains_key(&id) {
                break id;
            }
        };
        let socket = Arc::new(UdpSocket::bind(id, addr, self.mark)?);
        table.insert(id, socket.clone());
        self.publish(table, &changing);
        Ok(socket)
    }

    /// Binds `port` in both families; the one that the host lacks is left out. Port 0 takes one that is free in both.
    ///
    /// # Errors
    /// When neither can be bound.
    pub fn bind_dual(&self, port: u16) -> io::Result<Vec<Arc<UdpSocket>>> {
        let v4 = self.bind((Ipv4Addr::UNSPECIFIED, port).into());
        let port = v4.as_ref().map_or(port, |socket| socket.local.port());
        let v6 = self.bind((Ipv6Addr::UNSPECIFIED, port).into());
        match (v4, v6) {
            (Err(error), Err(_)) => Err(error),
            (v4, v6) => Ok(v4.into_iter().chain(v6).collect()),
        }
    }

    /// Closes a socket once nobody uses it any more.
    pub fn close(&self, id: SocketId) {
        let changing = self.lock();
        let mut table = Table::clone(&self.table.load());
        if table.remove(&id).is_some() {
            self.publish(table, &changing);
        }
    }

    pub fn table(&self) -> Guard<Arc<Table>> {
        self.table.load()
    }

    /// Sends one datagram of the engine's, with a time to live of its own for openers that shall not arrive. Never
    /// waits; false if it was not sent.
    pub fn send(&self, id: SocketId, remote: SocketAddr, datagram: &[u8], ttl: Option<u8>) -> bool {
        self.table.load().get(&id).is_some_and(|socket| socket.send_one(remote, datagram, ttl))
    }

    /// Wakes all watchers, for something else that they look at then.
    pub fn wake(&self) {
        for watcher in &self.lock().watchers {
            watcher.wake();
        }
    }

    /// Wakes `watcher` whenever the table changes.
    pub fn watch(&self, watcher: Arc<Wake>) {
        self.lock().watchers.push(watcher);
    }

    pub fn unwatch(&self, watcher: &Arc<Wake>) {
        self.lock().watchers.retain(|other| !Arc::ptr_eq(other, watcher));
    }

    fn publish(&self, table: Table, changing: &Changing) {
        self.table.store(Arc::new(table));
        for watcher in &changing.watchers {
            watcher.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Changing> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl UdpSocket {
    fn bind(id: SocketId, addr: SocketAddr, mark: Option<u32>) -> io::Result<Self> {
        let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        if addr.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        let unmarked = mark.is_some_and(|mark| socket.set_mark(mark).is_err());
        gso::set_buffers(&socket, BUFFER);
        gso::never_fragment(&socket, addr.is_ipv6());
        socket.set_write_timeout(Some(SEND_TIMEOUT))?;
        let gro = gso::enable_gro(&socket);
        socket.bind(&addr.into())?;
        let local = socket.local_addr()?.as_socket().unwrap_or(addr);
        let gso = AtomicBool::new(gso::has_gso(&socket));
        Ok(Self { id, socket, local, gso, gro, unmarked })
    }

    pub fn id(&self) -> SocketId {
        self.id
    }

    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Whether runs are sent, and received, in one call.
    pub fn offloads(&self) -> (bool, bool) {
        (self.gso.load(Ordering::Relaxed), self.gro)
    }

    /// Whether the mark that was asked for could not be set: packets of the underlay may then loop into the mesh.
    pub fn is_unmarked(&self) -> bool {
        self.unmarked
    }

    /// Sends a run of datagrams of `segment` bytes each (the last maybe shorter); returns how many were not sent.
    pub fn send(&self, remote: SocketAddr, datagrams: &[u8], segment: usize) -> usize {
        if segment == 0 {
            return 0;
        }
        if datagrams.len() <= segment {
            return usize::from(gso::send(&self.socket, remote, datagrams, None).is_err());
        }
        if self.gso.load(Ordering::Relaxed) {
            match gso::send(&self.socket, remote, datagrams, Some(segment as u16)) {
                Ok(()) => return 0,
                Err(error) => match error.raw_os_error() {
                    // The driver cannot after all.
                    Some(libc::EIO) => self.gso.store(false, Ordering::Relaxed),
                    // The kernel cannot, or the segment does not fit the path: one by one will tell.
                    Some(libc::EINVAL) => {
                        return self.send_singly(remote, datagrams, segment, true);
                    }
                    _ => return datagrams.len().div_ceil(segment),
                },
            }
        }
        self.send_singly(remote, datagrams, segment, false)
    }

    fn send_singly(
        &self,
        remote: SocketAddr,
        datagrams: &[u8],
        segment: usize,
        doubts_gso: bool,
    ) -> usize {
        let mut lost = 0;
        for datagram in datagrams.chunks(segment) {
            lost += usize::from(gso::send(&self.socket, remote, datagram, None).is_err());
        }
        if doubts_gso && lost == 0 {
            tracing::debug!(socket = self.id.0, "The kernel refuses UDP segmentation offload");
            self.gso.store(false, Ordering::Relaxed);
        }
        lost
    }

    fn send_one(&self, remote: SocketAddr, datagram: &[u8], ttl: Option<u8>) -> bool {
        gso::send_now(&self.socket, remote, datagram, ttl).is_ok()
    }

    /// Receives a run of datagrams, if one is there. Errors that a peer's host caused (ICMP) say nothing about the
    /// socket and are passed over.
    pub fn receive(&self, buf: &mut [u8]) -> Option<gso::Received> {
        gso::receive(&self.socket, buf)
    }
}

impl AsRawFd for UdpSocket {
    fn as_raw_fd(&self) -> RawFd {
        SockRef::from(&self.socket).as_raw_fd()
    }
}

#[cfg(test)]
mod tests;
