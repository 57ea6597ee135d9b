//! Prometheus metrics and probes over HTTP.

use std::{net::SocketAddr, time::Duration};

use netio::{driver::Command, task::TaskGroup};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::{Registry, Unit},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
};

use crate::{admin::Answers, error::Failure, view};

/// Requests answered at once.
const MAX_REQUESTS: usize = 8;
/// A request's head; more is none of ours.
const MAX_HEAD: usize = 4096;
const WITHIN: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Label {
    state: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Direction {
    direction: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabel {
    queue: String,
}

/// Serves a node's metrics on `addr`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen(addr: SocketAddr, answers: Answers, group: &TaskGroup) -> Result<(), Failure> {
    serve(addr, Source::Node(answers), group).await
}

/// Serves a public server's metrics on `addr`.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn listen_server(
    addr: SocketAddr,
    commands: mpsc::Sender<Command>,
    group: &TaskGroup,
) -> Result<(), Failure> {
    serve(addr, Source::Server(commands), group).await
}

#[derive(Clone, Debug)]
enum Source {
    Node(Answers),
    Server(mpsc::Sender<Command>),
}

async fn serve(addr: SocketAddr, source: Source, group: &TaskGroup) -> Result<(), Failure> {
    let listener = TcpListener::bind(addr).await.map_err(|error| {
        Failure::failed(
            format!("Cannot serve metrics on {addr}: {error}"),
            "Choose another address with --metrics.",
        )
    })?;
    let connections = group.child("metrics connections");
    group.spawn("metrics", async move {
        let slots = std::sync::Arc::new(Semaphore::new(MAX_REQUESTS));
        loop {
            let Ok(slot) = std::sync::Arc::clone(&slots).acquire_owned().await else {
                return Ok(());
            };
            let Ok((stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let source = source.clone();
            connections.spawn_transient("metrics request", async move {
                // A scraper that hangs up is no error of ours.
                let _ = tokio::time::timeout(WITHIN, answer(stream, source)).await;
                drop(slot);
                Ok(())
            });
        }
    });
    Ok(())
}

async fn answer(mut stream: TcpStream, source: Source) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let mut piece = [0; 512];
        let count = stream.read(&mut piece).await?;
        if count == 0 || head.len() > MAX_HEAD {
            return Ok(());
        }
        head.extend_from_slice(piece.get(..count).unwrap_or_default());
    }
    let line = String::from_utf8_lossy(&head);
    let path = line.split_whitespace().nth(1).unwrap_or_default().to_owned();
    let (code, body) = match path.as_str() {
        "/livez" => ("200 OK", "ok\n".to_owned()),
        "/readyz" if is_ready(&source).await => ("200 OK", "ok\n".to_owned()),
        "/readyz" => ("503 Service Unavailable", "not ready\n".to_owned()),
        "/metrics" => match text(&source).await {
            Some(text) => ("200 OK", text),
            None => ("503 Service Unavailable", "shutting down\n".to_owned()),
        },
        _ => ("404 Not Found", "there is /metrics, /livez and /readyz\n".to_owned()),
    };
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    let head = format!(
        "HTTP/1.1 {code}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

async fn is_ready(source: &Source) -> bool {
    match source {
        Source::Node(answers) => match answers.view().await {
            Ok(view) => answers.facts.status(&view).ready,
            Err(_) => false,
        },
        Source::Server(_) => true,
    }
}

async fn text(source: &Source) -> Option<String> {
    let mut registry = Registry::with_prefix("easynet");
    match source {
        Source::Node(answers) => {
            let view = answers.view().await.ok()?;
            node(&mut registry, &answers.facts.status(&view), &answers.facts.stats(&view));
        }
        Source::Server(commands) => {
            let (sender, receiver) = oneshot::channel();
            commands.send(Command::Counts(sender)).await.ok()?;
            let counts = receiver.await.ok()?;
            gauge(&mut registry, "networks", "Networks with members here", counts.networks);
            gauge(&mut registry, "attached", "Members attached", counts.attached);
            gauge(&mut registry, "sessions", "Sessions", counts.sessions);
            gauge(&mut registry, "lsdb_entries", "LSAs stored, unreadable", counts.lsas);
        }
    }
    let mut process = Registry::default();
    let rss: Gauge = Gauge::default();
    rss.set(view::rss().and_then(|bytes| i64::try_from(bytes).ok()).unwrap_or(0));
    process.register_with_unit("process_resident_memory", "Resident memory", Unit::Bytes, rss);
    let (mut ours, mut its) = (String::new(), String::new());
    encode(&mut ours, &registry).ok()?;
    encode(&mut its, &process).ok()?;
    Some(format!("{}{its}", ours.trim_end_matches("# EOF\n")))
}

fn node(registry: &mut Registry, status: &view::Status, stats: &view::Stats) {
    let peers: Family<Label, Gauge> = Family::default();
    let counts = &status.peers;
    for (state, count) in [
        ("direct", counts.direct),
        ("relayed", counts.relayed),
        ("idle", counts.idle),
        ("connecting", counts.connecting),
        ("unreachable", counts.unreachable),
    ] {
        peers
            .get_or_create(&Label { state: state.to_owned() })
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("peers", "Members by how they are reached", peers);
    let packets: Family<Direction, Counter> = Family::default();
    let bytes: Family<Direction, Counter> = Family::default();
    for (direction, packet_count, byte_count) in
        [("tx", stats.packets.tx, stats.bytes.tx), ("rx", stats.packets.rx, stats.bytes.rx)]
    {
        packets.get_or_create(&Direction { direction }).inc_by(packet_count);
        bytes.get_or_create(&Direction { direction }).inc_by(byte_count);
    }
    registry.register("packets", "IP packets through the mesh", packets);
    registry.register("bytes", "Bytes of IP packets through the mesh", bytes);
    let drops: Family<Reason, Counter> = Family::default();
    for (reason, count) in &stats.drops {
        drops.get_or_create(&Reason { reason: reason.clone() }).inc_by(*count);
    }
    registry.register("drops", "Packets dropped, by reason", drops);
    let queues: Family<QueueLabel, Gauge> = Family::default();
    for (name, queue) in &stats.queues {
        let gauge = queues.get_or_create(&QueueLabel { queue: name.clone() });
        gauge.set(i64::try_from(queue.len).unwrap_or(i64::MAX));
    }
    registry.register("queue_length", "Bytes that wait in a queue", queues);
    gauge(registry, "lsdb_entries", "LSAs known", stats.lsdb_entries);
}

fn gauge(registry: &mut Registry, name: &'static str, help: &'static str, value: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}
