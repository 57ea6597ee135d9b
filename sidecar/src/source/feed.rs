//! Keeps the session with the configuration server.
//!
//! The task owns the connection. It wakes on that, on its deadlines, and on what this node has to say ([`Up`]). A server that
//! is gone is dialled again, at random times that grow to half a minute; the token is read anew each time, since it changes
//! under way. A clock that somebody set ends the session, too: the next one says what it shows now, and what is delivered is
//! judged by it. Cancelling the task closes the connection; the node runs on with what it has.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use netio::{netlink::FWMARK, resolve::Resolver, task::TaskGroup};
use prost::Message;
use rpc::{
    feed::{
        APPLIED, Applied, DESIRED, Desired, ENROLL, ENROLL_CONTEXT, Enroll, Enrolled, LEAVING,
        Leaving, Left, MAX_TOKEN, MAX_TRANSITIONS, RETIRE, Retired, STATUS, Status, Transition,
    },
    frame::{self, Failure, Frame, Kind, Reason},
};
use session::{
    feed::{Clock, Feed},
    identity::Identity,
};
use socket2::SockRef;
use tokio::{
    net::{TcpSocket, TcpStream},
    sync::{Notify, mpsc, oneshot, watch},
    time::{sleep, sleep_until, timeout},
};
use zeroize::Zeroizing;

use super::FeedUrl;
use crate::{app::unix_now, state};

/// The first wait before dialling again is up to this, then up to twice as much each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MOST: Duration = Duration::from_secs(30);
/// A session that lasted so long was a good one: waiting starts over.
const GOOD_AFTER: Duration = Duration::from_secs(30);
const RESOLVE_WITHIN: Duration = Duration::from_secs(5);
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// From the connection to the answer of Enroll.
const ENROLL_WITHIN: Duration = Duration::from_secs(30);
/// A question at the end is waited for no longer.
const LEAVING_WITHIN: Duration = Duration::from_secs(1);
/// Counters are told this often; transitions at once.
const COUNTERS_EVERY: Duration = Duration::from_secs(10);
const READ: usize = 16 * 1024;
/// A clock that differs by more is worth a warning: certificates are judged by it.
const CLOCK_TOLERANCE: u64 = session::certificate::CLOCK_TOLERANCE_S;
/// A clock that moved by more than this within a session was set, or the machine slept.
const CLOCK_SET: u64 = 30;

/// What the session needs.
#[derive(Debug)]
pub struct Parts {
    pub url: FeedUrl,
    pub token_file: Option<PathBuf>,
    pub identity: Arc<Identity>,
    pub aead: u32,
    /// The revision that the node runs with; 0 is none.
    pub revision: u64,
}

/// The node's end of a running session.
#[derive(Debug)]
pub struct Link {
    /// What the server wants last.
    pub desired: watch::Receiver<Option<Arc<Desired>>>,
    /// The server says that this node is a member no more; to be answered once that is kept.
    pub retire: mpsc::Receiver<oneshot::Sender<()>>,
    /// How the session is.
    pub health: watch::Receiver<Health>,
    pub up: Up,
}

/// How the session is, for people.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Health {
    /// Whom the server takes this node for, while there is a session.
    pub member: Option<String>,
    /// Why there is none.
    pub error: Option<String>,
}

/// What this node says; clones say it together. It holds one thing of each kind, the newest.
#[derive(Clone, Debug, Default)]
pub struct Up(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    out: Mutex<Out>,
    some: Notify,
    /// There is no time to wait before dialling again.
    hurry: Notify,
}

#[derive(Debug, Default)]
struct Out {
    revision: u64,
    /// What came into force last, and what did not; the newest last.
    applied: Vec<Applied>,
    status: Option<Status>,
    transitions: Vec<Transition>,
    leaving: Option<oneshot::Sender<bool>>,
}

impl Up {
    /// Tells what became of a revision, at once.
    pub fn applied(&self, applied: Applied) {
        let mut out = self.lock();
        if applied.error.is_empty() {
            out.revision = applied.revision;
        }
        out.applied.retain(|other| other.error.is_empty() != applied.error.is_empty());
        out.applied.push(applied);
        drop(out);
        self.0.some.notify_one();
    }

    /// Tells how the node is: with transitions at once, else when it is time.
    pub fn status(&self, mut status: Status) {
        let mut out = self.lock();
        out.transitions.append(&mut status.transitions);
        let excess = out.transitions.len().saturating_sub(MAX_TRANSITIONS);
        out.transitions.drain(..excess);
        out.status = Some(status);
        drop(out);
        self.0.some.notify_one();
    }

    /// Asks whether this node shall clean up as it ends. Without an answer within a second it shall not. Where there is no
    /// session, one is tried at once.
    pub async fn leaving(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.lock().leaving = Some(answer);
        self.0.some.notify_one();
        self.0.hurry.notify_one();
        matches!(timeout(LEAVING_WITHIN, answered).await, Ok(Ok(true)))
    }

    fn lock(&self) -> MutexGuard<'_, Out> {
        self.0.out.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the session; it ends with `group`.
pub fn spawn(parts: Parts, resolver: Resolver, group: &TaskGroup) -> Link {
    let (desired_sender, desired) = watch::channel(None);
    let (retire_sender, retire) = mpsc::channel(1);
    let (health_sender, health) = watch::channel(Health::default());
    let up = Up::default();
    up.lock().revision = parts.revision;
    let dialer = Dialer {
        parts,
        resolver,
        desired: desired_sender,
        retire: retire_sender,
        health: health_sender,
        up: up.clone(),
    };
    group.spawn("feed", dialer.run());
    Link { desired, retire, health, up }
}

struct Dialer {
    parts: Parts,
    resolver: Resolver,
    desired: watch::Sender<Option<Arc<Desired>>>,
    retire: mpsc::Sender<oneshot::Sender<()>>,
    health: watch::Sender<Health>,
    up: Up,
}

/// Why a session ended, or none came about.
type Why = String;

impl Dialer {
    async fn run(self) -> anyhow::Result<()> {
        let mut wait = RETRY_FIRST;
        let mut said = None;
        loop {
            let began = Instant::now();
            let why = match self.connect().await {
                Ok(stream) => match Connection::new(&self, Instant::now()) {
                    Ok(connection) => connection.run(&stream).await,
                    Err(error) => error.to_string(),
                },
                Err(why) => why,
            };
            if said.as_ref() != Some(&why) {
                tracing::warn!(server = %self.parts.url, why, "No session with the configuration server");
                said = Some(why.clone());
            }
            self.health.send_replace(Health { member: None, error: Some(why) });
            if began.elapsed() >= GOOD_AFTER {
                (wait, said) = (RETRY_FIRST, None);
            }
            tokio::select! {
                () = sleep(jittered(wait)) => {}
                () = self.up.0.hurry.notified() => {}
            }
            wait = (wait * 2).min(RETRY_MOST);
        }
    }

    async fn connect(&self) -> Result<TcpStream, Why> {
        let FeedUrl { host, port, .. } = &self.parts.url;
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => timeout(RESOLVE_WITHIN, self.resolver.addresses(host))
                .await
                .map_err(|_| format!("{host} did not resolve in time"))?
                .map_err(|failure| format!("{host} does not resolve: {failure}"))?,
        };
        let mut why = format!("{host} has no address");
        for address in addresses.into_iter().take(4) {
            let address = SocketAddr::new(address, *port);
            match timeout(CONNECT_WITHIN, dial(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => why = format!("{address}: {error}"),
                Err(_) => why = format!("{address} does not answer"),
            }
        }
        Err(why)
    }

    /// The token, as it stands in its file now.
    fn token(&self) -> Result<Zeroizing<String>, Why> {
        self.parts.token_file.as_deref().map_or_else(|| Ok(Zeroizing::default()), token)
    }
}

/// The token that says who this node is.
///
/// # Errors
/// Why the file has none.
pub fn token(path: &Path) -> Result<Zeroizing<String>, String> {
    let text = std::fs::read_to_string(path)
        .map(Zeroizing::new)
        .map_err(|error| format!("cannot read the token in {}: {error}", path.display()))?;
    let token = Zeroizing::new(text.trim().to_owned());
    if token.len() > MAX_TOKEN {
        return Err(format!("{} is too long to be a token", path.display()));
    }
    Ok(token)
}

async fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Without the capability there is no mark, and no TUN whose routes it would have to avoid.
    let _ = SockRef::from(&socket).set_mark(FWMARK);
    let stream = socket.connect(address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn jittered(wait: Duration) -> Duration {
    let mut bytes = [0; 4];
    // Without chance everybody waits the same; that is all.
    let _ = state::random(&mut bytes);
    wait.mul_f64(0.25 + 0.75 * f64::from(u32::from_le_bytes(bytes)) / f64::from(u32::MAX))
}

/// One connection.
struct Connection<'a> {
    dialer: &'a Dialer,
    feed: Feed,
    began: Instant,
    /// As this machine has it.
    clock: Clock,
    enrolling: Option<u64>,
    enrolled: bool,
    next_call: u64,
    leaving: Option<(u64, oneshot::Sender<bool>)>,
    /// The Retire whose keeping is waited for.
    retiring: Option<(u64, oneshot::Receiver<()>)>,
    status_sent: Option<Instant>,
}

enum Woke {
    Readable(io::Result<()>),
    Writable(io::Result<()>),
    Said,
    RetirementKept(bool),
    Deadline,
}

impl<'a> Connection<'a> {
    fn new(dialer: &'a Dialer, now: Instant) -> Result<Self, crate::error::Failure> {
        let mut seed = [0; 32];
        state::random(&mut seed)?;
        let Parts { url, identity, aead, .. } = &dialer.parts;
        Ok(Self {
            dialer,
            feed: Feed::dial(Arc::clone(identity), url.root, *aead, seed, now),
            began: now,
            clock: Clock::new(unix_now(), now),
            enrolling: None,
            enrolled: false,
            next_call: 0,
            leaving: None,
            retiring: None,
            status_sent: None,
        })
    }

    async fn run(mut self, stream: &TcpStream) -> Why {
        loop {
            if let Err(why) = self.flush(stream) {
                return why;
            }
            let woke = self.wait(stream).await;
            if let Err(why) = self.handle(woke, stream) {
                return why;
            }
        }
    }

    async fn wait(&mut self, stream: &TcpStream) -> Woke {
        let deadline = self.deadline();
        let unsent = !self.feed.unsent().is_empty();
        let enrolled = self.enrolled;
        let kept = async {
            match &mut self.retiring {
                Some((_, kept)) => kept.await.is_ok(),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = stream.readable() => Woke::Readable(ready),
            ready = stream.writable(), if unsent => Woke::Writable(ready),
            () = self.dialer.up.0.some.notified(), if enrolled => Woke::Said,
            kept = kept => Woke::RetirementKept(kept),
            () = sleep_until(deadline.into()) => Woke::Deadline,
        }
    }

    fn deadline(&self) -> Instant {
        let enroll = (!self.enrolled).then_some(self.began + ENROLL_WITHIN);
        let status = self.status_due();
        [enroll, status].into_iter().flatten().fold(self.feed.poll_timeout(), Instant::min)
    }

    /// When the status that waits may go.
    fn status_due(&self) -> Option<Instant> {
        if !self.enrolled {
            return None;
        }
        let out = self.dialer.up.lock();
        out.status.as_ref()?;
        let now = self.began;
        Some(match self.status_sent {
            Some(last) if out.transitions.is_empty() => last + COUNTERS_EVERY,
            Some(_) | None => now,
        })
    }

    fn handle(&mut self, woke: Woke, stream: &TcpStream) -> Result<(), Why> {
        let now = Instant::now();
        if self.clock.ahead(unix_now(), now).unsigned_abs() > CLOCK_SET {
            return Err("this machine's clock was set".to_owned());
        }
        match woke {
            Woke::Readable(ready) => {
                ready.map_err(|error| error.to_string())?;
                self.read(stream, now)?;
            }
            Woke::Writable(ready) => ready.map_err(|error| error.to_string())?,
            Woke::Said => self.speak(now),
            Woke::RetirementKept(kept) => {
                if let Some((call, _)) = self.retiring.take() {
                    if kept {
                        self.answer(call, &Retired {}.encode_to_vec(), now);
                    } else {
                        let failure = Failure::new(Reason::Failed, "it could not be kept");
                        self.send(&frame::failure(call, &failure), now);
                    }
                }
            }
            Woke::Deadline => {
                self.feed.handle_timeout(now).map_err(|error| error.to_string())?;
                if !self.enrolled && now >= self.began + ENROLL_WITHIN {
                    return Err("it did not answer who this node is".to_owned());
                }
                self.speak(now);
            }
        }
        Ok(())
    }

    fn read(&mut self, stream: &TcpStream, now: Instant) -> Result<(), Why> {
        let mut buffer = [0; READ];
        let count = match stream.try_read(&mut buffer) {
            Ok(0) => return Err("the server closed the connection".to_owned()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let read = buffer.get(..count).unwrap_or_default();
        self.feed.handle_bytes(read, now).map_err(|error| error.to_string())?;
        if self.enrolling.is_none() && self.feed.exporter().is_some() {
            self.enroll(now)?;
        }
        loop {
            match frame::take(self.feed.received()) {
                Ok(Some(frame)) => self.frame(frame, now)?,
                Ok(None) => break,
                Err(_) => return Err("the server sends what does not decode".to_owned()),
            }
        }
        let rest = self.feed.received();
        if rest.is_empty() {
            *rest = Vec::new();
        }
        Ok(())
    }

    fn flush(&mut self, stream: &TcpStream) -> Result<(), Why> {
        while !self.feed.unsent().is_empty() {
            match stream.try_write(self.feed.unsent()) {
                Ok(count) => self.feed.handle_sent(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    fn enroll(&mut self, now: Instant) -> Result<(), Why> {
        let Some(exporter) = self.feed.exporter() else { return Ok(()) };
        let identity = &self.dialer.parts.identity;
        let keys = identity.keys();
        let enroll = Enroll {
            token: self.dialer.token()?.to_string(),
            sign: keys.sign.0.to_vec(),
            dh: keys.dh.0.to_vec(),
            signature: identity.sign(ENROLL_CONTEXT, exporter).to_vec(),
            network: self.dialer.parts.url.network.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: self.dialer.up.lock().revision,
            unix_s: unix_now(),
        };
        self.enrolling = Some(self.call(ENROLL, enroll.encode_to_vec(), now));
        Ok(())
    }

    fn frame(&mut self, frame: Frame, now: Instant) -> Result<(), Why> {
        match frame.kind() {
            Kind::Request => self.asked(frame, now),
            Kind::Response | Kind::Error
                if self.enrolling == Some(frame.call) && !self.enrolled =>
            {
                self.enrolled(&frame, now)
            }
            Kind::Response => {
                if let Some((_, answer)) = self.leaving.take_if(|(call, _)| *call == frame.call) {
                    let left = Left::decode(&*frame.body).unwrap_or_default();
                    // Whoever asked may be gone.
                    let _ = answer.send(left.retire);
                }
                Ok(())
            }
            Kind::Error | Kind::Stream | Kind::Cancel | Kind::Unknown => Ok(()),
        }
    }

    fn enrolled(&mut self, frame: &Frame, now: Instant) -> Result<(), Why> {
        if frame.kind() == Kind::Error {
            let failure = Failure::decode(&*frame.body).unwrap_or_default();
            return Err(format!("the server refuses this node: {}", failure.message));
        }
        let enrolled = Enrolled::decode(&*frame.body)
            .map_err(|_| "the server's answer does not decode".to_owned())?;
        let skew = enrolled.unix_s.abs_diff(unix_now());
        if enrolled.unix_s != 0 && skew > CLOCK_TOLERANCE {
            tracing::warn!(
                "This node's clock and the configuration server's differ by {skew} s: set the clock, or certificates will not be valid"
            );
        }
        self.enrolled = true;
        let health = Health { member: Some(enrolled.member), error: None };
        self.dialer.health.send_replace(health);
        tracing::info!(server = %self.dialer.parts.url, "The configuration server answers");
        self.speak(now);
        Ok(())
    }

    fn asked(&mut self, frame: Frame, now: Instant) -> Result<(), Why> {
        match frame.method {
            DESIRED => {
                let desired = Desired::decode(&*frame.body)
                    .map_err(|_| "a configuration does not decode".to_owned())?;
                self.answer(frame.call, &[], now);
                self.dialer.desired.send_replace(Some(Arc::new(desired)));
            }
            RETIRE if self.retiring.is_none() => {
                let (kept, wait) = oneshot::channel();
                if self.dialer.retire.try_send(kept).is_ok() {
                    self.retiring = Some((frame.call, wait));
                } else {
                    let failure = Failure::new(Reason::Busy, "it is about to");
                    self.send(&frame::failure(frame.call, &failure), now);
                }
            }
            _ => {
                let failure = Failure::new(Reason::NotAllowed, "no such method");
                self.send(&frame::failure(frame.call, &failure), now);
            }
        }
        Ok(())
    }

    /// Says what is to be said and may be by now.
    fn speak(&mut self, now: Instant) {
        if !self.enrolled {
            return;
        }
        let due = self.status_due().is_some_and(|at| at <= now);
        let mut out = self.dialer.up.lock();
        let applied = std::mem::take(&mut out.applied);
        let status = if due { out.status.take() } else { None };
        let transitions = match status {
            Some(_) => std::mem::take(&mut out.transitions),
            None => Vec::new(),
        };
        let leaving = out.leaving.take();
        drop(out);
        for applied in applied {
            self.call(APPLIED, applied.encode_to_vec(), now);
        }
        if let Some(status) = status {
            self.status_sent = Some(now);
            self.call(
                STATUS,
                Status { transitions, unix_s: unix_now(), ..status }.encode_to_vec(),
                now,
            );
        }
        if let Some(answer) = leaving {
            let call = self.call(LEAVING, Leaving {}.encode_to_vec(), now);
            self.leaving = Some((call, answer));
        }
    }

    fn call(&mut self, method: u32, body: Vec<u8>, now: Instant) -> u64 {
        self.next_call += 1;
        let deadline_ms = u32::try_from(ENROLL_WITHIN.as_millis()).unwrap_or(u32::MAX);
        let call = self.next_call;
        self.send(&Frame { call, kind: Kind::Request as i32, method, deadline_ms, body }, now);
        call
    }

    fn answer(&mut self, call: u64, body: &[u8], now: Instant) {
        for frame in frame::answer(call, body) {
            self.send(&frame, now);
        }
    }

    fn send(&mut self, frame: &Frame, now: Instant) {
        self.feed.send(&frame.to_stream(), now);
    }
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("url", &self.parts.url).finish_non_exhaustive()
    }
}
