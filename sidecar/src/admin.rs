//! The admin socket, where the command line asks a running node: a unix socket of mode 0600, or TCP for whoever has a token.
//!
//! Requests and answers are JSON in the frames of `rpc`. Over a unix socket the mode is the gate. Over TCP the caller first
//! asks for a nonce ([`HELLO`]) and then puts HMAC-SHA-256(token, nonce ‖ request) before each request: the token itself
//! never travels, and a recorded request opens nothing. What is asked and answered can be read on the way.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use config::{Admin, Secret};
use netio::{
    driver::{Command, PingOutcome, View},
    resolve::Resolver,
    task::TaskGroup,
};
use ring::hmac;
use rpc::frame::{Failure as CallFailure, Reason};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    args, doctor,
    error::{Code, Failure, capital},
    metrics::Metrics,
    settings, state,
    view::{self, Facts, Pong},
};

/// Service 1 (command line), method 1: a question.
const ASK: u32 = 1 << 16 | 1;
/// Service 1, method 2: the connection's nonce.
const HELLO: u32 = 1 << 16 | 2;
/// A question that moves no packet is answered within this.
const WITHIN: Duration = Duration::from_secs(5);
const NONCE_LEN: usize = 16;
const MAC_LEN: usize = 32;
/// Ports that port 0 tries, from [`config::FIRST_FREE_PORT`] upwards.
const PORTS_TRIED: u16 = 1000;

/// What the command line asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    Status,
    Peers,
    Paths {
        peer: String,
    },
    Routes,
    Node,
    Nat,
    Stats,
    Events {
        since: u64,
    },
    Ping {
        peer: String,
    },
    ConfigShow,
    Reload,
    Retire,
    /// Look where the node runs at what it does not watch all the time.
    Examine,
}

impl Request {
    /// The metric label.
    fn as_str(&self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Peers => "peers",
            Self::Paths { .. } => "paths",
            Self::Routes => "routes",
            Self::Node => "node",
            Self::Nat => "nat",
            Self::Stats => "stats",
            Self::Events { .. } => "events",
            Self::Ping { .. } => "ping",
            Self::ConfigShow => "config_show",
            Self::Reload => "config_reload",
            Self::Retire => "retire",
            Self::Examine => "examine",
        }
    }
}

/// What answers: the driver, and the facts of the process.
#[derive(Clone, Debug)]
pub struct Answers {
    pub commands: mpsc::Sender<Command>,
    pub facts: Arc<Facts>,
    pub metrics: Metrics,
    pub orders: mpsc::Sender<Order>,
    pub resolver: Resolver,
}

/// What the node itself is told; answered with a sentence either way.
#[derive(Debug)]
pub enum Order {
    /// Read the configuration again.
    Reload(oneshot::Sender<Result<String, String>>),
    /// Leave for good and remove what was made. Answered when that is kept, before it is done.
    Retire(oneshot::Sender<Result<String, String>>),
}

/// Who answers at the admin socket.
#[derive(Clone, Debug)]
pub enum Desk {
    Node(Answers),
    /// No node runs; all there is to say is why.
    Lobby(Arc<view::Status>),
}

/// The admin socket, bound, where nobody is answered yet: who asks waits. Dropped, it is free for others.
#[derive(Debug)]
pub struct Door(Bound);

#[derive(Debug)]
enum Bound {
    Unix(SocketFile, UnixListener),
    Tcp(TcpListener, SocketAddr, Arc<hmac::Key>),
}

/// The file of a unix socket; goes with it.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

impl Door {
    /// Listens where `admin` says.
    ///
    /// # Errors
    /// When it cannot be bound, or another node answers there.
    pub async fn bind(admin: &Admin, token: Option<&Secret>) -> Result<Self, Failure> {
        match (admin, token) {
            (Admin::Unix(path), _) => bind_unix(path).await,
            (Admin::Tcp { host, port }, Some(token)) => bind_tcp(host, *port, token).await,
            (Admin::Tcp { .. }, None) => Err(Failure::usage(
                "The admin socket has no token",
                "Give --admin-token-file FILE.",
            )),
        }
        .map(Self)
    }

    /// The address, if it is one of TCP.
    pub fn local(&self) -> Option<SocketAddr> {
        match &self.0 {
            Bound::Unix(..) => None,
            Bound::Tcp(_, local, _) => Some(*local),
        }
    }

    /// Answers whoever asks, until the group ends.
    pub fn open(self, desk: Desk, group: &TaskGroup) {
        match self.0 {
            Bound::Unix(file, listener) => answer_unix(listener, file, desk, group),
            Bound::Tcp(listener, _, key) => answer_tcp(listener, key, desk, group),
        }
    }
}

async fn bind_unix(path: &Path) -> Result<Bound, Failure> {
    let failed = |error: io::Error| {
        Failure::failed(
            format!("Cannot listen on the admin socket {}: {error}", path.display()),
            "Choose another path with --admin.",
        )
    };
    if UnixStream::connect(path).await.is_ok() {
        return Err(Failure::failed(
            format!("Another node answers on the admin socket {}", path.display()),
            "Stop it, or give this one an --admin of its own.",
        ));
    }
    if let Some(dir) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(dir).map_err(failed)?;
    }
    match fs::symlink_metadata(path) {
        // Only what an earlier node left is in our way, not somebody's file.
        Ok(found) if !std::os::unix::fs::FileTypeExt::is_socket(&found.file_type()) => {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        Ok(_) => fs::remove_file(path).map_err(failed)?,
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    let file = SocketFile(path.to_owned());
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    Ok(Bound::Unix(file, listener))
}

fn answer_unix(listener: UnixListener, file: SocketFile, desk: Desk, group: &TaskGroup) {
    let connections = group.child("admin connections");
    group.spawn_graceful("admin", move |token| async move {
        loop {
            let accepted = tokio::select! {
                () = token.cancelled() => break,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                // Out of descriptors, most likely; others may come free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let desk = desk.clone();
            connections.spawn_transient("admin connection", async move {
                let handler = |_method, body: Vec<u8>| answer(desk.clone(), body);
                // A caller that hangs up is no error of ours.
                let _ = rpc::driver::serve(stream, handler).await;
                Ok(())
            });
        }
        drop(file);
        Ok(())
    });
}

async fn bind_tcp(host: &str, port: u16, token: &Secret) -> Result<Bound, Failure> {
    let ports = if port == 0 {
        config::FIRST_FREE_PORT..=config::FIRST_FREE_PORT + PORTS_TRIED
    } else {
        port..=port
    };
    let mut bound = Err(io::ErrorKind::AddrInUse.into());
    for port in ports {
        bound = TcpListener::bind((host, port)).await;
        if !bound.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse) {
            break;
        }
    }
    let failed = |error: io::Error| {
        Failure::failed(
            format!("Cannot listen on the admin socket {host}:{port}: {error}"),
            "Choose another one with --admin; port 0 takes the first free one from 15888 upwards.",
        )
    };
    let listener = bound.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    let key = Arc::new(hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes()));
    Ok(Bound::Tcp(listener, local, key))
}

fn answer_tcp(listener: TcpListener, key: Arc<hmac::Key>, desk: Desk, group: &TaskGroup) {
    let connections = group.child("admin connections");
    group.spawn("admin", async move {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, most likely; others may come free.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let (desk, key) = (desk.clone(), Arc::clone(&key));
            connections.spawn_transient("admin connection", async move {
                let mut nonce = [0; NONCE_LEN];
                if state::random(&mut nonce).is_err() {
                    return Ok(());
                }
                let handler = |method, body: Vec<u8>| {
                    let (desk, key) = (desk.clone(), Arc::clone(&key));
                    async move {
                        if method == HELLO {
                            return Ok(nonce.to_vec());
                        }
                        answer(desk, proven(&key, nonce, &body)?).await
                    }
                };
                // A caller that hangs up is no error of ours.
                let _ = rpc::driver::serve(stream, handler).await;
                Ok(())
            });
        }
    });
}

/// The request, if whoever sent it has the token.
fn proven(key: &hmac::Key, nonce: [u8; NONCE_LEN], body: &[u8]) -> Result<Vec<u8>, CallFailure> {
    let refused = || CallFailure::new(Reason::NotAllowed, "the token is another one");
    let (mac, request) = body.split_at_checked(MAC_LEN).ok_or_else(refused)?;
    hmac::verify(key, &[&nonce, request].concat(), mac).map_err(|_| refused())?;
    Ok(request.to_vec())
}

async fn answer(desk: Desk, body: Vec<u8>) -> Result<Vec<u8>, CallFailure> {
    let request: Request = serde_json::from_slice(&body)
        .map_err(|error| CallFailure::new(Reason::Malformed, format!("not a request: {error}")))?;
    let answers = match (desk, &request) {
        (Desk::Node(answers), _) => answers,
        (Desk::Lobby(status), Request::Status) => {
            return to_json(&*status)
                .map_err(|error| CallFailure::new(Reason::Failed, error.to_string()));
        }
        (Desk::Lobby(status), _) => {
            let why = status.conditions.first().map(|condition| condition.message.clone());
            let why = why.unwrap_or_else(|| "it waits".to_owned());
            return Err(CallFailure::new(Reason::Failed, format!("no node runs here: {why}")));
        }
    };
    let (method, began) = (request.as_str(), Instant::now());
    let outcome = decide(&answers, request).await;
    answers.metrics.called(method, outcome.as_ref().err(), began.elapsed());
    outcome
}

async fn decide(answers: &Answers, request: Request) -> Result<Vec<u8>, CallFailure> {
    let json = match request {
        Request::Status => to_json(&answers.facts.status(&answers.view().await?)),
        Request::Peers => to_json(&answers.facts.peers(&answers.view().await?)),
        Request::Paths { peer } => {
            let paths = answers.facts.paths(&answers.view().await?, &peer);
            to_json(&paths.ok_or_else(|| unknown(&peer))?)
        }
        Request::Routes => to_json(&answers.facts.routes(&answers.view().await?)),
        Request::Node => to_json(&answers.facts.node(&answers.view().await?)),
        Request::Nat => to_json(&answers.facts.nat(&answers.view().await?.snapshot)),
        Request::Stats => to_json(&answers.facts.stats(&answers.view().await?)),
        Request::Events { since } => {
            let events = answers.ask(|answer| Command::Events { since, answer }).await?;
            to_json(&events.iter().map(view::event).collect::<Vec<_>>())
        }
        Request::Ping { peer } => {
            if view::is_own(&answers.facts, &answers.view().await?.snapshot, &peer) {
                let message = format!("this node itself is {peer}; ping another one");
                return Err(CallFailure::new(Reason::Failed, message));
            }
            let target = peer.clone();
            match answers.ask(|answer| Command::Ping { target, answer }).await? {
                PingOutcome::Unknown => return Err(unknown(&peer)),
                PingOutcome::Pong { peer, rtt, relayed, hop } => to_json(&Pong {
                    peer: peer.to_string(),
                    rtt_ms: view::millis(rtt),
                    relayed,
                    remote: hop.remote().to_string(),
                }),
            }
        }
        Request::ConfigShow => to_json(&answers.facts.applied().settings),
        Request::Reload => to_json(&answers.order(Order::Reload).await?),
        Request::Retire => to_json(&answers.order(Order::Retire).await?),
        Request::Examine => to_json(&doctor::examine(answers).await?),
    };
    json.map_err(|error| CallFailure::new(Reason::Failed, error.to_string()))
}

impl Answers {
    /// The node as it is now.
    pub async fn view(&self) -> Result<View, CallFailure> {
        self.ask(Command::Snapshot).await
    }

    async fn order(
        &self,
        order: impl FnOnce(oneshot::Sender<Result<String, String>>) -> Order,
    ) -> Result<String, CallFailure> {
        let (sender, receiver) = oneshot::channel();
        self.orders.send(order(sender)).await.map_err(|_| gone())?;
        let outcome = receiver.await.map_err(|_| gone())?;
        outcome.map_err(|message| CallFailure::new(Reason::Failed, message))
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, CallFailure> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(command(sender)).await.map_err(|_| gone())?;
        receiver.await.map_err(|_| gone())
    }
}

fn to_json<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(value)
}

fn unknown(peer: &str) -> CallFailure {
    CallFailure::new(
        Reason::Failed,
        format!("nobody in the mesh is called {peer:?}; `easynet peers` lists who is"),
    )
}

fn gone() -> CallFailure {
    CallFailure::new(Reason::Failed, "the node is shutting down")
}

/// Asks the node.
///
/// # Errors
/// Exit code 3 when nobody answers there.
pub async fn ask<T: DeserializeOwned>(
    admin: &args::Admin,
    request: &Request,
) -> Result<T, Failure> {
    ask_within(admin, request, WITHIN).await
}

/// The same with a deadline of its own.
///
/// # Errors
/// Exit code 3 when nobody answers there, 4 when the answer is late.
pub async fn ask_within<T: DeserializeOwned>(
    admin: &args::Admin,
    request: &Request,
    within: Duration,
) -> Result<T, Failure> {
    let body =
        serde_json::to_vec(request).map_err(|error| Failure::failed(error.to_string(), ""))?;
    let no_node = |error: io::Error| {
        Failure::new(
            Code::NoNode,
            format!("No node answers at {}: {}", admin.admin, error_words(&error)),
            "Start one with `easynet run`, or name its socket with --admin.",
        )
    };
    let outcome = match &admin.admin {
        Admin::Unix(path) => {
            let mut stream = UnixStream::connect(path).await.map_err(no_node)?;
            rpc::driver::call(&mut stream, ASK, body, within).await.map_err(no_node)?
        }
        Admin::Tcp { host, port } => {
            let Some(file) = &admin.admin_token_file else {
                return Err(Failure::usage(
                    format!("{} asks for a token", admin.admin),
                    "Name its file with --admin-token-file FILE.",
                ));
            };
            let token = settings::token(file)?;
            let connect = TcpStream::connect((host.as_str(), *port));
            let mut stream = tokio::time::timeout(WITHIN, connect)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                .map_err(no_node)?;
            prove(&mut stream, &token, body, within).await.map_err(no_node)?
        }
    };
    match outcome {
        Ok(body) => serde_json::from_slice(&body).map_err(|error| {
            Failure::failed(
                format!("The node answers in another version: {error}"),
                "Use the same version for both.",
            )
        }),
        Err(failure) if failure.reason() == Reason::Late => Err(Failure::new(
            Code::TimedOut,
            "There was no answer in time",
            "Try again, or look at `easynet doctor`.",
        )),
        Err(failure) if failure.reason() == Reason::NotAllowed => Err(Failure::failed(
            format!("{} refuses: {}", admin.admin, failure.message),
            "Use the token file that the node was started with.",
        )),
        Err(failure) => Err(Failure::failed(capital(&failure.message), "")),
    }
}

async fn prove<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    token: &Secret,
    body: Vec<u8>,
    within: Duration,
) -> io::Result<rpc::calls::Outcome> {
    let nonce = match rpc::driver::call(stream, HELLO, Vec::new(), WITHIN).await? {
        Ok(nonce) => nonce,
        Err(failure) => return Ok(Err(failure)),
    };
    let key = hmac::Key::new(hmac::HMAC_SHA256, token.expose().as_bytes());
    let mac = hmac::sign(&key, &[nonce.as_slice(), &body].concat());
    rpc::driver::call(stream, ASK, [mac.as_ref(), &body].concat(), within).await
}

fn error_words(error: &io::Error) -> String {
    let words = [
        (io::ErrorKind::NotFound, "there is no such socket"),
        (io::ErrorKind::ConnectionRefused, "nobody listens there"),
        (io::ErrorKind::PermissionDenied, "the socket is not open to this user"),
        (io::ErrorKind::UnexpectedEof, "it hung up"),
        (io::ErrorKind::ConnectionReset, "it hung up"),
    ];
    let known = words.iter().find(|(kind, _)| *kind == error.kind());
    known.map_or_else(|| error.to_string(), |(_, words)| (*words).to_owned())
}
