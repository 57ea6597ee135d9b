//! Prometheus metrics and probes over HTTP.
//!
//! What has a state (peers, queues, memory) is read when a scraper asks; what happens (paths won, punches, calls) is counted as
//! it happens, by [`Metrics`].

use std::{net::SocketAddr, sync::Arc, time::Duration};

use engine::event::{Notice, NoticeKind};
use netio::{
    driver::{Command, Observed},
    task::TaskGroup,
};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
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
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PLAIN: &str = "text/plain; charset=utf-8";

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct State {
    state: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Traffic {
    direction: &'static str,
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabel {
    queue: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Attempt {
    plan: String,
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Call {
    method: &'static str,
    outcome: &'static str,
}

/// What happened since the start of a node; clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    switches: Family<Reason, Counter>,
    punches: Family<Attempt, Counter>,
    direct: Histogram,
    shortest_paths: Histogram,
    calls: Family<Call, Histogram>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            switches: Family::default(),
            punches: Family::default(),
            // 25 ms to 51 s: a punch within a round trip, and one that took every plan.
            direct: Histogram::new(exponential_buckets(0.025, 2.0, 12)),
            // 10 µs to 2.6 s: three nodes, and five thousand.
            shortest_paths: Histogram::new(exponential_buckets(0.000_01, 4.0, 10)),
            calls: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.000_1, 4.0, 8))
            }),
        }
    }
}

impl Metrics {
    /// Counts what the driver saw.
    pub fn observe(&self, observed: &Observed<'_>) {
        match observed {
            Observed::Notice(notice) => self.noticed(notice),
            Observed::ShortestPaths(took) => self.shortest_paths.observe(took.as_secs_f64()),
        }
    }

    fn noticed(&self, notice: &Notice) {
        let field = |name: &str| {
            notice.fields.iter().find(|(key, _)| *key == name).map(|(_, value)| value.as_str())
        };
        if notice.kind == NoticeKind::PathPrimary {
            let reason = field("reason").unwrap_or("unknown").to_owned();
            self.switches.get_or_create(&Reason { reason }).inc();
            if let Some(took) = field("after_ms").and_then(|ms| ms.parse::<f64>().ok()) {
                self.direct.observe(took / 1000.0);
            }
        }
        if notice.kind == NoticeKind::PunchEnded {
            let label = |name| field(name).unwrap_or("unknown").to_owned();
            let attempt = Attempt { plan: label("plan"), outcome: label("outcome") };
            self.punches.get_or_create(&attempt).inc();
        }
    }

    /// Counts an answered call of the command line.
    pub fn called(
        &self,
        method: &'static str,
        failure: Option<&rpc::frame::Failure>,
        took: Duration,
    ) {
        let outcome = match failure.map(rpc::frame::Failure::reason) {
            None => "ok",
            Some(rpc::frame::Reason::Failed) => "failed",
            Some(rpc::frame::Reason::Busy) => "busy",
            Some(rpc::frame::Reason::Late) => "late",
            Some(rpc::frame::Reason::NotAllowed) => "not_allowed",
            Some(rpc::frame::Reason::Malformed) => "malformed",
        };
        self.calls.get_or_create(&Call { method, outcome }).observe(took.as_secs_f64());
    }

    fn register(&self, registry: &mut Registry) {
        registry.register(
            "path_switches",
            "Changes of the path that carries a peer's traffic",
            self.switches.clone(),
        );
        registry.register(
            "punch_attempts",
            "Attempts at a direct path that ended",
            self.punches.clone(),
        );
        registry.register_with_unit(
            "direct",
            "From the first packet to a peer to the direct path",
            Unit::Seconds,
            self.direct.clone(),
        );
        registry.register_with_unit(
            "spf",
            "Engine steps that computed shortest paths",
            Unit::Seconds,
            self.shortest_paths.clone(),
        );
        registry.register_with_unit(
            "rpc",
            "Answers to the command line",
            Unit::Seconds,
            self.calls.clone(),
        );
    }
}

/// Where metrics are served, bound, and nobody is answered yet.
#[derive(Debug)]
pub struct Door {
    listener: TcpListener,
    local: SocketAddr,
}

impl Door {
    /// Listens on `addr`.
    ///
    /// # Errors
    /// When it cannot be listened on.
    pub async fn bind(addr: SocketAddr) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| {
            Failure::failed(
                format!("Cannot serve metrics on {addr}: {error}"),
                "Choose another address with --metrics.",
            )
        };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let local = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, local })
    }

    /// The address bound.
    pub fn local(&self) -> SocketAddr {
        self.local
    }

    /// Serves what `source` has, until the group ends.
    pub fn open(self, source: Source, group: &TaskGroup) {
        let listener = self.listener;
        let connections = group.child("metrics connections");
        group.spawn("metrics", async move {
            let slots = Arc::new(Semaphore::new(MAX_REQUESTS));
            loop {
                let Ok(slot) = Arc::clone(&slots).acquire_owned().await else {
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
    }
}

/// Whose metrics are served.
#[derive(Clone, Debug)]
pub enum Source {
    Node(Answers),
    /// A public server, by its driver.
    Server(mpsc::Sender<Command>),
    /// No node runs: there is `/livez` and `/readyz`.
    Lobby {
        is_ready: bool,
    },
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
    let (code, kind, body) = match path.as_str() {
        "/livez" => ("200 OK", PLAIN, "ok\n".to_owned()),
        "/readyz" if is_ready(&source).await => ("200 OK", PLAIN, "ok\n".to_owned()),
        "/readyz" => ("503 Service Unavailable", PLAIN, "not ready\n".to_owned()),
        "/metrics" => match text(&source).await {
            Some(text) => ("200 OK", OPENMETRICS, text),
            None => ("503 Service Unavailable", PLAIN, "shutting down\n".to_owned()),
        },
        _ => ("404 Not Found", PLAIN, "there is /metrics, /livez and /readyz\n".to_owned()),
    };
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
        Source::Lobby { is_ready } => *is_ready,
    }
}

async fn text(source: &Source) -> Option<String> {
    let mut registry = Registry::with_prefix("easynet");
    match source {
        Source::Node(answers) => {
            let view = answers.view().await.ok()?;
            answers.metrics.register(&mut registry);
            node(&mut registry, &answers.facts.status(&view), &answers.facts.stats(&view));
            let repairs: Counter = Counter::default();
            repairs.inc_by(view.host.repairs);
            let help = "Times that something of ours on the host was put back";
            registry.register("host_repairs", help, repairs);
        }
        Source::Server(commands) => {
            let (sender, receiver) = oneshot::channel();
            commands.send(Command::Counts(sender)).await.ok()?;
            let (counts, dropped) = receiver.await.ok()?;
            gauge(&mut registry, "networks", "Networks with members here", counts.networks);
            gauge(&mut registry, "attached", "Members attached", counts.attached);
            gauge(&mut registry, "sessions", "Sessions", counts.sessions);
            gauge(&mut registry, "lsdb_entries", "LSAs stored, unreadable", counts.lsas);
            let dropped = dropped.iter().map(|(reason, count)| (reason.as_str(), *count));
            drops(&mut registry, dropped);
        }
        Source::Lobby { .. } => {}
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
    let peers: Family<State, Gauge> = Family::default();
    let counts = &status.peers;
    for (state, count) in [
        ("direct", counts.direct),
        ("relayed", counts.relayed),
        ("idle", counts.idle),
        ("connecting", counts.connecting),
        ("unreachable", counts.unreachable),
    ] {
        peers.get_or_create(&State { state }).set(i64::try_from(count).unwrap_or(i64::MAX));
    }
    registry.register("peers", "Members by how they are reached", peers);
    let help = "IP packets through the mesh";
    registry.register("packets", help, by_direction(&stats.packets));
    registry.register("bytes", "Bytes of IP packets through the mesh", by_direction(&stats.bytes));
    drops(registry, stats.drops.iter().map(|(reason, count)| (reason.as_str(), *count)));
    let queues: Family<QueueLabel, Gauge> = Family::default();
    for (name, queue) in &stats.queues {
        let gauge = queues.get_or_create(&QueueLabel { queue: name.clone() });
        gauge.set(i64::try_from(queue.len).unwrap_or(i64::MAX));
    }
    registry.register("queue_length", "Bytes that wait in a queue", queues);
    gauge(registry, "lsdb_entries", "LSAs known", stats.lsdb_entries);
    let revision = usize::try_from(status.config.revision).unwrap_or(usize::MAX);
    gauge(registry, "config_revision", "Configurations applied since the start", revision);
}

fn by_direction(counts: &view::Directions) -> Family<Traffic, Counter> {
    let family: Family<Traffic, Counter> = Family::default();
    for (direction, kinds) in [("tx", counts.tx), ("rx", counts.rx)] {
        for (kind, count) in [("direct", kinds.direct), ("relayed", kinds.relayed)] {
            family.get_or_create(&Traffic { direction, kind }).inc_by(count);
        }
    }
    family
}

fn drops<'a>(registry: &mut Registry, counts: impl Iterator<Item = (&'a str, u64)>) {
    let drops: Family<Reason, Counter> = Family::default();
    for (reason, count) in counts {
        drops.get_or_create(&Reason { reason: reason.to_owned() }).inc_by(count);
    }
    registry.register("drops", "Packets dropped, by reason", drops);
}

fn gauge(registry: &mut Registry, name: &'static str, help: &'static str, value: usize) {
    let gauge: Gauge = Gauge::default();
    gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
    registry.register(name, help, gauge);
}
