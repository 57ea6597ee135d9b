//! The TCP carrier: frames of [`wire::stream`] on a connection.
//!
//! A tunnel's task owns its socket. An idle tunnel holds no buffer: bytes are read into one buffer
//! of the thread, handed on in place, and only the beginning of an unfinished frame is kept.
//! Cancelling it is safe at any await: whatever was read was handed on, whatever was queued is lost
//! as any packet may be.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    ops::Range,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use engine::path::addr::{Carrier, Hop, TunnelId};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::{
    io::AsyncWriteExt,
    net::{
        TcpListener, TcpSocket, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};
use wire::stream::{self, Frame, Malformed};

use super::{
    Batch, Busy, Closed, DRAIN_TIMEOUT, MAX_DIALS, Shared, Tunnel, TunnelEvent, queue::Queue,
};

/// A connection that is not there by then is not worth having.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Unacknowledged bytes for this long mean that the connection is dead.
const USER_TIMEOUT: Duration = Duration::from_secs(15);
/// Keeps NAT bindings and notices a peer that vanished while nothing is sent.
const KEEPALIVE: Duration = Duration::from_secs(25);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_PROBES: u32 = 3;
/// What the kernel may hold unsent: more would delay control and hide loss from the queue's bound.
const NOTSENT_LOWAT: u32 = 128 * 1024;
/// Connections the kernel holds for us to accept.
const BACKLOG: i32 = 128;
/// How long to wait after an error of `accept`, doubled each time.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(50);
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);
/// One read takes this much at most; several of the largest frames.
pub const READ_BUFFER: usize = 128 * 1024;
/// Datagrams of one batch; bounds how long one tunnel holds the thread.
const MAX_BATCH: usize = 128;

thread_local! {
    static READ: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

pub(super) fn listen(shared: &Arc<Shared>, addr: SocketAddr) -> io::Result<SocketAddr> {
    let socket = socket(shared, addr)?;
    socket.set_reuse_address(true)?;
    if addr.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    let listener = TcpListener::from_std(socket.into())?;
    let local = listener.local_addr()?;
    let accepting = accept(shared.clone(), listener);
    shared.group.spawn(format!("accept {local}"), accepting);
    Ok(local)
}

pub(super) fn dial(shared: &Arc<Shared>, remote: SocketAddr) -> Result<TunnelId, Busy> {
    let permit = DialPermit::acquire(shared)?;
    let tunnel = shared.add(remote, false);
    let id = tunnel.id;
    let shared_by_task = shared.clone();
    shared.group.spawn_transient(format!("tunnel-{}", id.0), async move {
        let shared = shared_by_task;
        let connected = tokio::select! {
            connected = timeout(DIAL_TIMEOUT, connect(&shared, remote)) => {
                connected.unwrap_or(Err(io::ErrorKind::TimedOut.into()))
            }
            () = tunnel.close.cancelled() => Err(io::ErrorKind::Interrupted.into()),
        };
        drop(permit);
        let reason = match connected {
            Ok(stream) => run(&shared, &tunnel, stream).await,
            Err(_) if tunnel.close.is_cancelled() => Closed::Local,
            Err(error) => Closed::Unreachable(error.kind()),
        };
        shared.end(&tunnel, reason).await;
        Ok(())
    });
    Ok(id)
}

/// Accepts for ever: no error of `accept` is a reason to stop.
async fn accept(shared: Arc<Shared>, listener: TcpListener) -> anyhow::Result<()> {
    let mut backoff = ACCEPT_BACKOFF;
    loop {
        let (stream, remote) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                shared.counters.accept_errors.fetch_add(1, Ordering::Relaxed);
                if !is_of_one_connection(&error) {
                    tracing::debug!(%error, ?backoff, "Cannot accept");
                    tokio::time::sleep(backoff).await;
                    backoff = (backoff * 2).min(ACCEPT_BACKOFF_MAX);
                }
                continue;
            }
        };
        backoff = ACCEPT_BACKOFF;
        let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
        let Some(tunnel) = shared.admit(remote) else { continue };
        let shared_by_task = shared.clone();
        shared.group.spawn_transient(format!("tunnel-{}", tunnel.id.0), async move {
            let reason = run(&shared_by_task, &tunnel, stream).await;
            shared_by_task.end(&tunnel, reason).await;
            Ok(())
        });
    }
}

/// Whether an error of `accept` is about the connection that was to be accepted, not about us.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::Interrupted
    )
}

async fn connect(shared: &Shared, remote: SocketAddr) -> io::Result<TcpStream> {
    let socket = socket(shared, remote)?;
    TcpSocket::from_std_stream(socket.into()).connect(remote).await
}

fn socket(shared: &Shared, addr: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    if let Some(mark) = shared.config.fwmark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// Serves a connection until it ends, and says why it did.
async fn run(shared: &Shared, tunnel: &Tunnel, stream: TcpStream) -> Closed {
    let local = match prepare(shared, &stream) {
        Ok(local) => local,
        Err(error) => return Closed::Broken(error.kind()),
    };
    let (id, remote, inbound) = (tunnel.id, tunnel.remote, tunnel.inbound);
    let up = TunnelEvent::Up { id, carrier: Carrier::Tcp, local, remote, inbound };
    if shared.events.send(up).await.is_err() {
        return Closed::Local;
    }
    tracing::trace!(tunnel = id.0, %remote, inbound, "Tunnel up");
    let (reader, half) = stream.into_split();
    let mut writer = Writer { half, chunk: Vec::new(), at: 0 };
    let reason = tokio::select! {
        reason = read(shared, tunnel, &reader) => reason,
        error = writer.write(&tunnel.queue) => Closed::Broken(error.kind()),
        () = expire(tunnel, shared.config.stranger_timeout) => Closed::Stranger,
        () = tunnel.close.cancelled() => Closed::Local,
    };
    if reason == Closed::Local {
        // The peer may not read any more; then what is queued is lost.
        let _ = timeout(DRAIN_TIMEOUT, writer.drain(&tunnel.queue)).await;
    }
    reason
}

fn prepare(shared: &Shared, stream: &TcpStream) -> io::Result<SocketAddr> {
    let socket = socket2::SockRef::from(stream);
    if let Some(mark) = shared.config.fwmark {
        socket.set_mark(mark)?;
    }
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE_INTERVAL)
        .with_retries(KEEPALIVE_PROBES);
    socket.set_tcp_keepalive(&keepalive)?;
    stream.local_addr()
}

async fn expire(tunnel: &Tunnel, within: Duration) {
    if timeout(within, tunnel.trusted()).await.is_ok() {
        std::future::pending().await
    }
}

async fn read(shared: &Shared, tunnel: &Tunnel, reader: &OwnedReadHalf) -> Closed {
    let hop = Hop::Tunnel { id: tunnel.id, carrier: Carrier::Tcp, remote: tunnel.remote };
    let mut partial = Vec::new();
    let mut datagrams = Vec::with_capacity(MAX_BATCH);
    loop {
        if let Err(error) = reader.readable().await {
            return Closed::Broken(error.kind());
        }
        let outcome = READ.with_borrow_mut(|buffer| {
            buffer.resize(READ_BUFFER, 0);
            read_once(shared, hop, reader, buffer, &mut partial, &mut datagrams)
        });
        if let Err(reason) = outcome {
            return reason;
        }
        // A fast sender would otherwise keep the thread to itself.
        tokio::task::yield_now().await;
    }
}

/// Reads what is there and hands on the frames that are whole.
fn read_once(
    shared: &Shared,
    hop: Hop,
    reader: &OwnedReadHalf,
    buffer: &mut [u8],
    partial: &mut Vec<u8>,
    datagrams: &mut Vec<Range<usize>>,
) -> Result<(), Closed> {
    let kept = partial.len();
    buffer[..kept].copy_from_slice(partial);
    let read = match reader.try_read(&mut buffer[kept..]) {
        Ok(0) => return Err(Closed::Remote),
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
        Err(error) => return Err(Closed::Broken(error.kind())),
    };
    let filled = &mut buffer[..kept + read];
    let mut at = 0;
    let mut malformed: Option<Malformed> = None;
    loop {
        let frame = stream::next(filled, at);
        if let Frame::Whole(range) = &frame {
            at = range.end;
            datagrams.push(range.clone());
        }
        let ends = !matches!(frame, Frame::Whole(_));
        if (ends || datagrams.len() == MAX_BATCH) && !datagrams.is_empty() {
            (shared.handler)(hop, &mut Batch { bytes: filled, datagrams });
            datagrams.clear();
        }
        if let Frame::Malformed(reason) = frame {
            malformed = Some(reason);
        }
        if ends {
            break;
        }
    }
    if let Some(reason) = malformed {
        return Err(Closed::Malformed(reason));
    }
    let rest = &filled[at..];
    if rest.is_empty() {
        // An idle tunnel keeps no memory.
        *partial = Vec::new();
    } else {
        partial.clear();
        partial.extend_from_slice(rest);
    }
    Ok(())
}

/// Writes what a queue gives. Dropped in the middle of a chunk it goes on there, so that the frames
/// stay whole.
struct Writer {
    half: OwnedWriteHalf,
    chunk: Vec<u8>,
    at: usize,
}

impl Writer {
    async fn write(&mut self, queue: &Queue) -> io::Error {
        loop {
            if let Err(error) = self.flush().await {
                return error;
            }
            let written = std::mem::take(&mut self.chunk);
            self.at = 0;
            self.chunk = queue.next(written).await;
        }
    }

    /// Writes what is queued and says that nothing follows.
    async fn drain(&mut self, queue: &Queue) -> io::Result<()> {
        self.flush().await?;
        while let Some(next) = queue.take(std::mem::take(&mut self.chunk)) {
            (self.chunk, self.at) = (next, 0);
            self.flush().await?;
        }
        self.half.shutdown().await
    }

    async fn flush(&mut self) -> io::Result<()> {
        while self.at < self.chunk.len() {
            match self.half.write(&self.chunk[self.at..]).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                written => self.at += written,
            }
        }
        Ok(())
    }
}

struct DialPermit(Arc<Shared>);

impl DialPermit {
    fn acquire(shared: &Arc<Shared>) -> Result<Self, Busy> {
        let free = |dials: u32| (dials < MAX_DIALS as u32).then_some(dials + 1);
        match shared.dials.fetch_update(Ordering::AcqRel, Ordering::Acquire, free) {
            Ok(_) => Ok(Self(shared.clone())),
            Err(_) => Err(Busy),
        }
    }
}

impl Drop for DialPermit {
    fn drop(&mut self) {
        self.0.dials.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests;
