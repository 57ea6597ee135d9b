//! Accepts sidecars and runs their sessions.
//!
//! One task accepts; every session is a task of its own that wakes on its connection, on a new table and on its deadlines,
//! and owns a few hundred bytes while nothing happens: it reads into memory of the thread, and keeps only what is not
//! whole yet. A caller that is nobody yet has few rights and little time.

use std::{
    collections::BTreeMap,
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use prost::Message;
use rand_chacha::rand_core::SeedableRng;
use ring::rand::{SecureRandom, SystemRandom};
use rpc::{
    feed::{
        APPLIED, Applied, DESIRED, Desired, ENROLL, ENROLL_CONTEXT, Enroll, Enrolled, LEAVING,
        Left, MAX_TOKEN, MAX_TRANSITIONS, RETIRE, Retire, STATUS, Status,
    },
    frame::{self, Failure, Frame, Kind, Reason},
};
use session::{
    feed::{Feed, Root},
    identity::verify,
};
use socket2::{SockRef, TcpKeepalive};
use task::TaskGroup;
use telemetry::TRACE;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch},
    time::sleep_until,
};
use tracing::Span;
use wire::id::{DhKey, NodeKeys, SignKey};

use super::{
    Authenticator, Event, MemberKey, Report, Reports, Table,
    auth::Refusal,
    bounds, clock,
    member::{Holder, Next},
};

/// Bytes read at once, into memory that all sessions of a thread share.
const READ: usize = 16 * 1024;
/// A connection that reads this little of what it is sent is not sent more.
const UNSENT_MOST: usize = 512 * 1024;
/// From the connection to the answer of Enroll; a review may take 10 s of it.
const ENROLL_WITHIN: Duration = Duration::from_secs(25);
/// A caller that the table does not know, or not yet, may wait so long for it.
const UNKNOWN_FOR: Duration = Duration::from_secs(60);
/// Counters of one member are handed on this often; transitions at once, but no oftener than [`TRANSITIONS_EVERY`].
const COUNTERS_EVERY: Duration = Duration::from_secs(10);
const TRANSITIONS_EVERY: Duration = Duration::from_secs(1);
/// How long a call of ours may be under way.
const ANSWER_WITHIN_MS: u32 = 30_000;

/// How much the server takes on.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sessions in all; 5,000 nodes, and the successors of some of them.
    pub sessions: usize,
    /// Connections that are nobody yet, in all and from one address.
    pub nobodies: usize,
    pub nobodies_per_source: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { sessions: 6000, nobodies: 512, nobodies_per_source: 32 }
    }
}

/// What the server did, for metrics.
#[derive(Debug, Default)]
pub struct Counts {
    pub sessions: AtomicU64,
    pub enrolled: AtomicU64,
    /// Callers that the authenticator refused.
    pub refused: AtomicU64,
    /// Connections that ended before they were somebody, for whatever other reason.
    pub failed: AtomicU64,
    /// Configurations sent.
    pub sent: AtomicU64,
}

/// A running server.
#[derive(Debug)]
pub struct Server {
    /// Where it listens.
    pub local: SocketAddr,
    pub reports: Reports,
    pub counts: Arc<Counts>,
}

impl Server {
    /// Listens on `listen`; ends with `group`, which closes all sessions.
    ///
    /// # Errors
    /// When the port is taken, or the system gives no randomness.
    pub fn start(
        listen: SocketAddr,
        root: &Root,
        authenticator: Authenticator,
        table: watch::Receiver<Arc<Table>>,
        limits: Limits,
        group: &TaskGroup,
    ) -> io::Result<Self> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(listen),
            socket2::Type::STREAM,
            None,
        )?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&listen.into())?;
        socket.listen(1024)?;
        let listener = TcpListener::from_std(socket.into())?;
        let local = listener.local_addr()?;
        let mut rng = rand_chacha::ChaCha12Rng::from_seed(random()?);
        let shared = Arc::new(Shared {
            server: Arc::new(session::feed::Server::new(root, aead(), &mut rng)),
            authenticator,
            table,
            reports: Reports::default(),
            counts: Arc::default(),
            current: Mutex::default(),
            sources: Mutex::default(),
            nobodies: Arc::new(Semaphore::new(limits.nobodies)),
            sessions: Arc::new(Semaphore::new(limits.sessions)),
            limits,
        });
        let (reports, counts) = (shared.reports.clone(), Arc::clone(&shared.counts));
        let sessions = group.child("feed-sessions");
        group.spawn("feed", accept(listener, shared, sessions));
        Ok(Self { local, reports, counts })
    }
}

struct Shared {
    server: Arc<session::feed::Server>,
    authenticator: Authenticator,
    table: watch::Receiver<Arc<Table>>,
    reports: Reports,
    counts: Arc<Counts>,
    /// Who has the session of a member; a later one takes its place.
    current: Mutex<BTreeMap<(String, MemberKey), Incumbent>>,
    /// Connections that are nobody yet, by source.
    sources: Mutex<BTreeMap<IpAddr, usize>>,
    nobodies: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    limits: Limits,
}

struct Incumbent {
    session: u64,
    /// Dropped to end it.
    _end: oneshot::Sender<()>,
}

/// A connection that is nobody yet counts until this is dropped.
struct Nobody {
    shared: Arc<Shared>,
    source: IpAddr,
    _permit: OwnedSemaphorePermit,
}

async fn accept(
    listener: TcpListener,
    shared: Arc<Shared>,
    sessions: TaskGroup,
) -> anyhow::Result<()> {
    let mut number = 0;
    loop {
        // What waits, waits in the system's queue.
        let nobody = Arc::clone(&shared.nobodies).acquire_owned().await?;
        let place = Arc::clone(&shared.sessions).acquire_owned().await?;
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "A connection was not accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let source = from.ip().to_canonical();
        let Some(nobody) = Nobody::count(&shared, source, nobody) else {
            shared.counts.failed.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        let Ok(seed) = random() else { continue };
        number += 1;
        let running = Box::new(Session {
            feed: Feed::accept(Arc::clone(&shared.server), seed, Instant::now()),
            shared: Arc::clone(&shared),
            number,
            source,
            began: Instant::now(),
            nobody: Some(nobody),
            auth: None,
            member: None,
            next_call: 0,
            retire_call: None,
            delivery: None,
            _place: place,
        });
        sessions.spawn_transient("session", running.run(stream));
    }
}

impl Nobody {
    fn count(shared: &Arc<Shared>, source: IpAddr, permit: OwnedSemaphorePermit) -> Option<Self> {
        let mut sources = shared.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let count = sources.entry(source).or_default();
        if *count >= shared.limits.nobodies_per_source {
            return None;
        }
        *count += 1;
        Some(Self { shared: Arc::clone(shared), source, _permit: permit })
    }
}

impl Drop for Nobody {
    fn drop(&mut self) {
        let mut sources = self.shared.sources.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = sources.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                sources.remove(&self.source);
            }
        }
    }
}

type Authentication = Pin<Box<dyn Future<Output = Result<MemberKey, Refusal>> + Send>>;

/// One connection.
struct Session {
    feed: Feed,
    shared: Arc<Shared>,
    number: u64,
    source: IpAddr,
    began: Instant,
    nobody: Option<Nobody>,
    auth: Option<Pending>,
    member: Option<Box<Somebody>>,
    next_call: u64,
    retire_call: Option<u64>,
    /// The traced configuration that is on its way to the member.
    delivery: Option<(u64, Span)>,
    _place: OwnedSemaphorePermit,
}

/// An Enroll whose token is being checked.
struct Pending {
    call: u64,
    enroll: Enroll,
    keys: NodeKeys,
    /// As it stood when Enroll came.
    clock: Option<clock::Watched>,
    outcome: Authentication,
}

/// A connection that is somebody.
struct Somebody {
    network: String,
    member: MemberKey,
    holder: Holder,
    since: Instant,
    clock: Option<clock::Watched>,
    table: watch::Receiver<Arc<Table>>,
    superseded: oneshot::Receiver<()>,
    unknown_since: Option<Instant>,
    /// Said, and not handed on yet.
    held: Option<Status>,
    handed_on: Option<Instant>,
}

/// Why a session ends, for the log.
type Over = String;

enum Woke {
    Readable(io::Result<()>),
    Writable(io::Result<()>),
    Authenticated(Result<MemberKey, Refusal>),
    Table(bool),
    Superseded,
    Deadline,
}

impl Session {
    async fn run(mut self: Box<Self>, stream: TcpStream) -> anyhow::Result<()> {
        let _ = stream.set_nodelay(true);
        let keepalive = TcpKeepalive::new().with_time(Duration::from_secs(30));
        let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
        self.shared.counts.sessions.fetch_add(1, Ordering::Relaxed);
        let why = loop {
            if let Err(over) = self.flush(&stream) {
                break over;
            }
            let woke = self.wait(&stream).await;
            if let Err(over) = self.handle(woke, &stream) {
                // What says why is worth a try; nobody waits for it.
                let _ = self.flush(&stream);
                break over;
            }
        };
        self.over(&why);
        Ok(())
    }

    async fn wait(&mut self, stream: &TcpStream) -> Woke {
        let deadline = self.deadline();
        let unsent = !self.feed.unsent().is_empty();
        let auth = async {
            match &mut self.auth {
                Some(pending) => pending.outcome.as_mut().await,
                None => std::future::pending().await,
            }
        };
        let member = async {
            match &mut self.member {
                Some(somebody) => tokio::select! {
                    changed = somebody.table.changed() => Woke::Table(changed.is_ok()),
                    _ = &mut somebody.superseded => Woke::Superseded,
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ready = stream.readable() => Woke::Readable(ready),
            ready = stream.writable(), if unsent => Woke::Writable(ready),
            outcome = auth => Woke::Authenticated(outcome),
            woke = member => woke,
            () = sleep_until(deadline.into()) => Woke::Deadline,
        }
    }

    fn deadline(&self) -> Instant {
        let own = match &self.member {
            None => Some(self.began + ENROLL_WITHIN),
            Some(somebody) => somebody.deadline(),
        };
        own.map_or(self.feed.poll_timeout(), |own| own.min(self.feed.poll_timeout()))
    }

    fn handle(&mut self, woke: Woke, stream: &TcpStream) -> Result<(), Over> {
        let now = Instant::now();
        match woke {
            Woke::Readable(ready) => {
                ready.map_err(|error| error.to_string())?;
                self.read(stream, now)?;
            }
            Woke::Writable(ready) => ready.map_err(|error| error.to_string())?,
            Woke::Authenticated(outcome) => self.authenticated(outcome, now)?,
            Woke::Table(true) => self.compare(now)?,
            Woke::Table(false) => return Err("the server stops".to_owned()),
            Woke::Superseded => return Err("the member has another session".to_owned()),
            Woke::Deadline => self.timeout(now)?,
        }
        Ok(())
    }

    /// Reads what there is, up to [`READ`], and acts on it.
    fn read(&mut self, stream: &TcpStream, now: Instant) -> Result<(), Over> {
        let mut buffer = [0; READ];
        let count = match stream.try_read(&mut buffer) {
            Ok(0) => return Err("the other side closed the connection".to_owned()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        let read = buffer.get(..count).unwrap_or_default();
        self.feed.handle_bytes(read, now).map_err(|error| error.to_string())?;
        loop {
            match frame::take(self.feed.received()) {
                Ok(Some(frame)) => self.frame(frame, now)?,
                Ok(None) => break,
                Err(_) => return Err("a frame does not decode".to_owned()),
            }
        }
        let rest = self.feed.received();
        if rest.is_empty() {
            *rest = Vec::new();
        }
        Ok(())
    }

    /// Writes as much as the system takes.
    fn flush(&mut self, stream: &TcpStream) -> Result<(), Over> {
        while !self.feed.unsent().is_empty() {
            match stream.try_write(self.feed.unsent()) {
                Ok(count) => self.feed.handle_sent(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.to_string()),
            }
        }
        Ok(())
    }

    fn frame(&mut self, frame: Frame, now: Instant) -> Result<(), Over> {
        match frame.kind() {
            Kind::Request => match (frame.method, self.member.is_some()) {
                (ENROLL, false) => self.enroll(frame, now),
                (APPLIED | STATUS | LEAVING, true) => self.said(frame, now),
                (ENROLL | APPLIED | STATUS | LEAVING, _) => Err("a call out of turn".to_owned()),
                _ => {
                    let failure = Failure::new(Reason::NotAllowed, "no such method");
                    self.send(&frame::failure(frame.call, &failure), now);
                    Ok(())
                }
            },
            Kind::Response => {
                if self.retire_call == Some(frame.call) {
                    self.retire_call = None;
                    self.report(Event::Retired);
                }
                self.delivery.take_if(|(call, _)| *call == frame.call);
                Ok(())
            }
            Kind::Error => {
                tracing::debug!(number = self.number, "A call of ours failed");
                Ok(())
            }
            Kind::Stream | Kind::Cancel | Kind::Unknown => Ok(()),
        }
    }

    fn enroll(&mut self, frame: Frame, now: Instant) -> Result<(), Over> {
        if self.auth.is_some() {
            return Err("a second Enroll".to_owned());
        }
        let enroll =
            Enroll::decode(&*frame.body).map_err(|_| "Enroll does not decode".to_owned())?;
        let Some(keys) = self.proved(&enroll) else {
            let failure = Failure::new(Reason::NotAllowed, "the signature does not verify");
            self.send(&frame::failure(frame.call, &failure), now);
            return Err("the signature in Enroll does not verify".to_owned());
        };
        let (shared, token, network) =
            (Arc::clone(&self.shared), enroll.token.clone(), enroll.network.clone());
        self.auth = Some(Pending {
            call: frame.call,
            clock: clock::Watched::new(enroll.unix_s, now),
            enroll,
            keys,
            outcome: Box::pin(
                async move { shared.authenticator.authenticate(&token, &network).await },
            ),
        });
        Ok(())
    }

    /// The caller's keys, if it has both of them.
    fn proved(&self, enroll: &Enroll) -> Option<NodeKeys> {
        let keys = NodeKeys {
            sign: SignKey::from_slice(&enroll.sign)?,
            dh: DhKey::from_slice(&enroll.dh)?,
        };
        let proved = self.feed.remote() == Some(keys.dh)
            && enroll.token.len() <= MAX_TOKEN
            && verify(&keys.sign, ENROLL_CONTEXT, self.feed.exporter()?, &enroll.signature);
        proved.then_some(keys)
    }

    fn authenticated(
        &mut self,
        outcome: Result<MemberKey, Refusal>,
        now: Instant,
    ) -> Result<(), Over> {
        let Some(Pending { call, mut enroll, keys, clock, .. }) = self.auth.take() else {
            return Ok(());
        };
        bounds::text(&mut enroll.version, bounds::VERSION);
        let member = match outcome {
            Ok(member) => member,
            Err(refusal) => {
                self.shared.counts.refused.fetch_add(1, Ordering::Relaxed);
                let reason = match refusal {
                    Refusal::Unchecked(_) => Reason::Failed,
                    Refusal::NotGood(_) | Refusal::NotAllowed(_) => Reason::NotAllowed,
                };
                self.send(&frame::failure(call, &Failure::new(reason, refusal.to_string())), now);
                return Err(refusal.to_string());
            }
        };
        self.nobody = None;
        self.shared.counts.enrolled.fetch_add(1, Ordering::Relaxed);
        let enrolled = Enrolled {
            network: enroll.network.clone(),
            member: member.to_string(),
            unix_s: unix(),
        };
        for frame in frame::answer(call, &enrolled.encode_to_vec()) {
            self.send(&frame, now);
        }
        let (end, superseded) = oneshot::channel();
        let key = (enroll.network.clone(), member.clone());
        self.shared.current().insert(key, Incumbent { session: self.number, _end: end });
        tracing::debug!(member = %member, network = enroll.network, "A member has a session");
        self.member = Some(Box::new(Somebody {
            network: enroll.network,
            member,
            holder: Holder::new(keys),
            since: now,
            clock,
            table: self.shared.table.clone(),
            superseded,
            unknown_since: None,
            held: None,
            handed_on: None,
        }));
        self.report(Event::Enrolled { keys, from: self.source, version: enroll.version });
        self.compare(now)
    }

    /// Sends what is new in the table.
    fn compare(&mut self, now: Instant) -> Result<(), Over> {
        self.judge_clock(now);
        let Some(somebody) = &mut self.member else { return Ok(()) };
        if self.feed.unsent().len() > UNSENT_MOST {
            return Err("it does not read what it is sent".to_owned());
        }
        let table = Arc::clone(&somebody.table.borrow_and_update());
        let next = somebody.holder.next(&table, &somebody.network, &somebody.member, unix());
        if next != Next::Unknown {
            somebody.unknown_since = None;
        }
        match next {
            Next::Nothing => {}
            Next::Unknown => {
                somebody.unknown_since.get_or_insert(now);
            }
            Next::Send(desired) => self.deliver(*desired, now),
            Next::Retire => {
                let call = self.call(RETIRE, Retire {}.encode_to_vec(), now);
                self.retire_call = Some(call);
            }
        }
        Ok(())
    }

    fn judge_clock(&mut self, now: Instant) {
        let clock = self.member.as_mut().and_then(|somebody| somebody.clock.as_mut());
        if let Some(ahead_s) = clock.and_then(|clock| clock.look(unix(), now)) {
            self.report(Event::Clock { ahead_s });
        }
    }

    fn deliver(&mut self, mut desired: Desired, now: Instant) {
        self.shared.counts.sent.fetch_add(1, Ordering::Relaxed);
        let delivery = self.trace(&desired);
        if let Some(span) = &delivery {
            desired.traceparent = telemetry::traceparent(span);
        }
        let call = self.call(DESIRED, desired.encode_to_vec(), now);
        self.delivery = delivery.map(|span| (call, span));
    }

    /// The span of a delivery, if what led to it is traced.
    fn trace(&self, desired: &Desired) -> Option<Span> {
        let somebody = self.member.as_ref().filter(|_| !desired.traceparent.is_empty())?;
        let (member, revision) = (&somebody.member, desired.revision);
        let span = tracing::info_span!(target: TRACE, "deliver", %member, revision);
        telemetry::follow(&span, &desired.traceparent);
        Some(span)
    }

    fn said(&mut self, frame: Frame, now: Instant) -> Result<(), Over> {
        let malformed = || "a message does not decode".to_owned();
        let mut answer = Vec::new();
        match frame.method {
            APPLIED => {
                let applied = Applied::decode(&*frame.body).map_err(|_| malformed())?;
                let Applied { revision, mut error, rolled_back, epochs } = applied;
                bounds::text(&mut error, bounds::ERROR);
                self.report(if error.is_empty() {
                    Event::Applied { revision, epochs }
                } else {
                    Event::Failed { revision, error, rolled_back }
                });
            }
            STATUS => {
                let status = Status::decode(&*frame.body).map_err(|_| malformed())?;
                self.take_status(status, now);
                self.judge_clock(now);
            }
            _ => {
                let retire = self.member.as_ref().is_some_and(|somebody| somebody.retires());
                answer = Left { retire }.encode_to_vec();
            }
        }
        for frame in frame::answer(frame.call, &answer) {
            self.send(&frame, now);
        }
        Ok(())
    }

    fn take_status(&mut self, mut status: Status, now: Instant) {
        let Some(somebody) = &mut self.member else { return };
        bounds::status(&mut status);
        // The time is no part of how the node is, or each would be news.
        let said = std::mem::take(&mut status.unix_s);
        match &mut somebody.clock {
            Some(clock) if said != 0 => clock.said(said, now),
            Some(_) => {}
            None => somebody.clock = clock::Watched::new(said, now),
        }
        if let Some(mut held) = somebody.held.take() {
            held.transitions.append(&mut status.transitions);
            status.transitions = held.transitions;
        }
        let excess = status.transitions.len().saturating_sub(MAX_TRANSITIONS);
        status.transitions.drain(..excess);
        somebody.held = Some(status);
        self.hand_on(now);
    }

    /// Hands a status on if it is time.
    fn hand_on(&mut self, now: Instant) {
        let Some(somebody) = &mut self.member else { return };
        if somebody.hand_on_at().is_none_or(|at| now < at) {
            return;
        }
        if let Some(status) = somebody.held.take() {
            somebody.handed_on = Some(now);
            self.report(Event::Status(Box::new(status)));
        }
    }

    fn timeout(&mut self, now: Instant) -> Result<(), Over> {
        self.feed.handle_timeout(now).map_err(|error| error.to_string())?;
        let Some(somebody) = &self.member else {
            if now >= self.began + ENROLL_WITHIN {
                return Err("it did not say who it is".to_owned());
            }
            return Ok(());
        };
        if somebody.unknown_since.is_some_and(|since| now >= since + UNKNOWN_FOR) {
            return Err("there is no configuration for it".to_owned());
        }
        self.hand_on(now);
        self.compare(now)
    }

    fn call(&mut self, method: u32, body: Vec<u8>, now: Instant) -> u64 {
        self.next_call += 1;
        let call = self.next_call;
        let frame =
            Frame { call, kind: Kind::Request as i32, method, deadline_ms: ANSWER_WITHIN_MS, body };
        self.send(&frame, now);
        call
    }

    fn send(&mut self, frame: &Frame, now: Instant) {
        self.feed.send(&frame.to_stream(), now);
    }

    fn report(&self, event: Event) {
        let Some(somebody) = &self.member else { return };
        if self.is_current(somebody) {
            self.shared.reports.put(Report {
                network: somebody.network.clone(),
                member: somebody.member.clone(),
                event,
            });
        }
    }

    fn is_current(&self, somebody: &Somebody) -> bool {
        let key = (somebody.network.clone(), somebody.member.clone());
        self.shared.current().get(&key).is_some_and(|now| now.session == self.number)
    }

    fn over(mut self, why: &str) {
        self.shared.counts.sessions.fetch_sub(1, Ordering::Relaxed);
        let Some(somebody) = self.member.take() else {
            self.shared.counts.failed.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(from = %self.source, why, "A connection ended before it was anybody's");
            return;
        };
        tracing::debug!(member = %somebody.member, why, "A member's session ended");
        let current = self.is_current(&somebody);
        let Somebody { network, member, held, .. } = *somebody;
        if !current {
            return;
        }
        self.shared.current().remove(&(network.clone(), member.clone()));
        let put = |event| {
            let (network, member) = (network.clone(), member.clone());
            self.shared.reports.put(Report { network, member, event });
        };
        if let Some(status) = held {
            put(Event::Status(Box::new(status)));
        }
        put(Event::Gone);
    }
}

impl Somebody {
    fn deadline(&self) -> Option<Instant> {
        let unknown = self.unknown_since.map(|since| since + UNKNOWN_FOR);
        let renew = self.holder.renew_at().map(|at| {
            let wait = at.saturating_sub(unix()).max(1);
            Instant::now() + Duration::from_secs(wait)
        });
        [unknown, renew, self.hand_on_at()].into_iter().flatten().min()
    }

    /// When what is held may be handed on.
    fn hand_on_at(&self) -> Option<Instant> {
        let held = self.held.as_ref()?;
        let every = if held.transitions.is_empty() { COUNTERS_EVERY } else { TRANSITIONS_EVERY };
        Some(self.handed_on.map_or(self.since, |last| last + every))
    }

    fn retires(&self) -> bool {
        self.table.borrow().retires(&self.network, &self.member)
    }
}

impl Shared {
    fn current(&self) -> MutexGuard<'_, BTreeMap<(String, MemberKey), Incumbent>> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn random() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random numbers"))?;
    Ok(bytes)
}

fn unix() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What every machine speaks; a configuration is no bulk data.
fn aead() -> u32 {
    wire::control::AEAD_CHACHA
}
