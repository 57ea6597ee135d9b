//! The admin socket: a unix socket, mode 0600, where the command line asks a running node.
//!
//! Requests and answers are JSON in the frames of `rpc`; the socket's mode is the gate.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::Path,
    sync::Arc,
    time::Duration,
};

use netio::{
    driver::{Command, PingOutcome, View},
    task::TaskGroup,
};
use rpc::frame::{Failure as CallFailure, Reason};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
};

use crate::{
    error::{Code, Failure},
    view::{self, Facts, Pong},
};

/// Service 1 (command line), method 1.
const METHOD: u32 = 1 << 16 | 1;
/// A question that moves no packet is answered within this.
const WITHIN: Duration = Duration::from_secs(5);

/// What the command line asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case")]
pub enum Request {
    Status,
    Peers,
    Paths { peer: String },
    Routes,
    Node,
    Nat,
    Stats,
    Events { since: u64 },
    Ping { peer: String },
    ConfigShow,
    Reload,
}

/// What answers: the driver, and the facts of the process.
#[derive(Clone, Debug)]
pub struct Answers {
    pub commands: mpsc::Sender<Command>,
    pub facts: Arc<Facts>,
    pub settings: Arc<serde_json::Value>,
    pub reload: mpsc::Sender<oneshot::Sender<Result<String, String>>>,
}

/// Listens on `path`; the task ends with its group and removes the socket.
///
/// # Errors
/// When the path cannot be bound, or another node answers there.
pub async fn listen(path: &Path, answers: Answers, group: &TaskGroup) -> Result<(), Failure> {
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
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let (path, connections) = (path.to_owned(), group.child("admin connections"));
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
            let answers = answers.clone();
            connections.spawn_transient("admin connection", async move {
                let handler = |_method, body: Vec<u8>| answer(answers.clone(), body);
                // A caller that hangs up is no error of ours.
                let _ = rpc::driver::serve(stream, handler).await;
                Ok(())
            });
        }
        let _ = fs::remove_file(&path);
        Ok(())
    });
    Ok(())
}

async fn answer(answers: Answers, body: Vec<u8>) -> Result<Vec<u8>, CallFailure> {
    let request: Request = serde_json::from_slice(&body)
        .map_err(|error| CallFailure::new(Reason::Malformed, format!("not a request: {error}")))?;
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
        Request::ConfigShow => to_json(&*answers.settings),
        Request::Reload => {
            let (sender, receiver) = oneshot::channel();
            answers.reload.send(sender).await.map_err(|_| gone())?;
            match receiver.await.map_err(|_| gone())? {
                Ok(message) => to_json(&message),
                Err(message) => return Err(CallFailure::new(Reason::Failed, message)),
            }
        }
    };
    json.map_err(|error| CallFailure::new(Reason::Failed, error.to_string()))
}

impl Answers {
    /// The node as it is now.
    pub async fn view(&self) -> Result<View, CallFailure> {
        self.ask(Command::Snapshot).await
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

/// Asks the node at `path`.
///
/// # Errors
/// Exit code 3 when nobody answers there.
pub async fn ask<T: DeserializeOwned>(path: &Path, request: &Request) -> Result<T, Failure> {
    ask_within(path, request, WITHIN).await
}

/// The same with a deadline of its own.
///
/// # Errors
/// Exit code 3 when nobody answers there, 4 when the answer is late.
pub async fn ask_within<T: DeserializeOwned>(
    path: &Path,
    request: &Request,
    within: Duration,
) -> Result<T, Failure> {
    let start = "Start one with `easynet run`, or name its socket with --admin.";
    let no_node = |error: io::Error| {
        Failure::new(Code::NoNode, format!("No node answers at {}: {error}", path.display()), start)
    };
    let mut stream = UnixStream::connect(path).await.map_err(no_node)?;
    let body =
        serde_json::to_vec(request).map_err(|error| Failure::failed(error.to_string(), ""))?;
    match rpc::driver::call(&mut stream, METHOD, body, within).await.map_err(no_node)? {
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
        Err(failure) => Err(Failure::failed(capital(&failure.message), "")),
    }
}

fn capital(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}
