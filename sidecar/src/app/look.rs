//! The commands that look at a running node.

use std::time::{Duration, Instant};

use netio::port::reader;
use serde::Serialize;

use crate::{
    admin::{Request, ask, ask_within},
    args::{self, Command, ConfigCommand, Events, Output, Ping, Status},
    doctor,
    error::{Code, Failure},
    render::{
        self, COLUMNS, GAP, Reader, bytes, cut, listed, or_dash, pairs, show, show_next, table,
    },
    view,
};

/// How often a wait looks.
const POLL: Duration = Duration::from_millis(25);
const PING_WITHIN: Duration = Duration::from_secs(5);

pub(super) async fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Status(args) => status(args).await,
        Command::Peers(look) => {
            let peers: Vec<view::Peer> = ask(&look.admin, &Request::Peers).await?;
            show(&peers, look.output, |wide| peers_table(&peers, wide))
        }
        Command::Paths(args) => {
            let request = Request::Paths { peer: args.peer };
            let paths: Vec<view::Path> = ask(&args.look.admin, &request).await?;
            show(&paths, args.look.output, |wide| paths_table(&paths, wide))
        }
        Command::Routes(look) => {
            let routes: Vec<view::Route> = ask(&look.admin, &Request::Routes).await?;
            show(&routes, look.output, |wide| routes_table(&routes, wide))
        }
        Command::Node(look) => {
            let node: view::Node = ask(&look.admin, &Request::Node).await?;
            show(&node, look.output, |_| node_page(&node))
        }
        Command::Nat(look) => {
            let nat: view::Nat = ask(&look.admin, &Request::Nat).await?;
            show(&nat, look.output, |_| nat_page(&nat))
        }
        Command::Stats(look) => {
            let stats: view::Stats = ask(&look.admin, &Request::Stats).await?;
            show(&stats, look.output, |_| stats_page(&stats))
        }
        Command::Events(args) => while_read(events(args)).await,
        Command::Ping(args) if args.count == 0 => while_read(ping(args)).await,
        Command::Ping(args) => ping(args).await,
        Command::Doctor(args) => doctor::run(args).await,
        Command::Config(ConfigCommand::Show(look)) => {
            let rows: Vec<serde_json::Value> = ask(&look.admin, &Request::ConfigShow).await?;
            show(&rows, look.output, |wide| config_table(&rows, wide))
        }
        Command::Retire(admin) => {
            let message: String = ask(&admin, &Request::Retire).await?;
            render::print(&message)
        }
        Command::Config(ConfigCommand::Reload(admin)) => {
            let message: Result<String, Failure> = ask(&admin, &Request::Reload).await;
            // It says what is wrong with the configuration; nothing was changed.
            let of_usage = |code| if code == Code::Failed { Code::Usage } else { code };
            let message =
                message.map_err(|failure| Failure { code: of_usage(failure.code), ..failure })?;
            render::print(&message)
        }
        Command::Run(_)
        | Command::Server(_)
        | Command::Secret(_)
        | Command::Key(_)
        | Command::Config(ConfigCommand::Check { .. } | ConfigCommand::Schema)
        | Command::Completion { .. }
        | Command::Version
        | Command::Debug(_) => Ok(()),
    }
}

/// What is said for as long as somebody reads it, as of `easynet ping PEER | head -1`; who has seen enough is no failure.
async fn while_read(saying: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    tokio::select! {
        said = saying => said,
        () = reader::gone(std::io::stdout()) => Ok(()),
    }
}

async fn status(args: Status) -> Result<(), Failure> {
    let path = &args.look.admin;
    if let Some(condition) = &args.wait {
        wait(path, condition, args.timeout).await?;
    }
    let status: view::Status = ask(path, &Request::Status).await?;
    show(&status, args.look.output, |_| status_page(&status))
}

/// Waits until a condition holds; a node that is only starting is waited for too.
async fn wait(path: &args::Admin, condition: &str, timeout: Duration) -> Result<(), Failure> {
    let usage = || {
        Failure::usage(
            format!("{condition:?} is nothing to wait for"),
            "Write ready, direct=PEER or peers=N.",
        )
    };
    let deadline = Instant::now() + timeout;
    let mut last = String::from("no node answered");
    while Instant::now() < deadline {
        let outcome = match condition.split_once('=') {
            None if condition == "ready" => {
                let status: Result<view::Status, Failure> = ask(path, &Request::Status).await;
                status.map(|status| {
                    let reasons = status.conditions.iter().filter(|condition| !condition.status);
                    let why: Vec<String> =
                        reasons.map(|condition| condition.message.clone()).collect();
                    (status.ready, why.join("; "))
                })
            }
            Some(("peers", count)) => {
                let count: usize = count.parse().map_err(|_| usage())?;
                let status: Result<view::Status, Failure> = ask(path, &Request::Status).await;
                status.map(|status| {
                    let reached = status.peers.total - status.peers.unreachable;
                    (reached >= count, format!("{reached} of {count} peers are reachable"))
                })
            }
            Some(("direct", peer)) => {
                let peers: Result<Vec<view::Peer>, Failure> = ask(path, &Request::Peers).await;
                peers.map(|peers| match peers.iter().find(|found| found.is_called(peer)) {
                    Some(found) => (found.state == "direct", format!("{peer} is {}", found.state)),
                    None => (false, format!("nobody is called {peer}")),
                })
            }
            None | Some(_) => return Err(usage()),
        };
        match outcome {
            Ok((true, _)) => return Ok(()),
            Ok((false, why)) => last = why,
            Err(failure) if failure.code == Code::NoNode => {}
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(POLL).await;
    }
    Err(Failure::new(
        Code::TimedOut,
        format!("Waited {} in vain for {condition}: {last}", humantime::format_duration(timeout)),
        "`easynet doctor` finds out why.",
    ))
}

async fn events(args: Events) -> Result<(), Failure> {
    let path = &args.look.admin;
    let mut since = 0;
    loop {
        let events: Vec<view::Event> = ask(path, &Request::Events { since }).await?;
        since = events.last().map_or(since, |event| event.number);
        if args.follow {
            for event in &events {
                if show_next(event, args.look.output, || event_line(event))? == Reader::Gone {
                    return Ok(());
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        return show(&events, args.look.output, |_| {
            events.iter().map(event_line).collect::<Vec<_>>().join("\n")
        });
    }
}

fn event_line(event: &view::Event) -> String {
    let fields: Vec<String> =
        event.fields.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let peer = event
        .peer
        .as_deref()
        .map(|peer| format!(" {}", &peer[..peer.len().min(8)]))
        .unwrap_or_default();
    format!("{}  {:<15}{peer}  {}  {}", event.at, event.kind, event.message, fields.join(" "))
        .trim_end()
        .to_owned()
}

/// One question of a ping, and its answer if there was one.
#[derive(Serialize)]
struct Asked {
    number: u32,
    peer: Option<String>,
    rtt_ms: Option<f64>,
    relayed: Option<bool>,
    remote: Option<String>,
}

impl Asked {
    fn of(number: u32, pong: Option<view::Pong>) -> Self {
        let unanswered = Self { number, peer: None, rtt_ms: None, relayed: None, remote: None };
        pong.map_or(unanswered, |pong| Self {
            number,
            peer: Some(pong.peer),
            rtt_ms: Some(pong.rtt_ms),
            relayed: Some(pong.relayed),
            remote: Some(pong.remote),
        })
    }

    fn line(&self) -> String {
        let (Some(rtt), Some(remote)) = (self.rtt_ms, &self.remote) else {
            return format!("{}: no answer", self.number);
        };
        let way = if self.relayed == Some(true) { "relayed by" } else { "direct from" };
        format!("{}: {rtt:.2} ms, {way} {remote}", self.number)
    }
}

/// Asks as often as is wanted. What has no end is shown as it comes; else JSON and YAML are one document, and the outcome is told also
/// when nobody reads the answers any more.
async fn ping(args: Ping) -> Result<(), Failure> {
    let output = args.look.output;
    let is_document = args.count > 0 && (output == Output::Json || output == Output::Yaml);
    let mut document: Vec<Asked> = Vec::new();
    let mut is_answered = false;
    let mut number = 0;
    while args.count == 0 || number < args.count {
        if number > 0 {
            tokio::time::sleep(args.interval).await;
        }
        number += 1;
        let request = Request::Ping { peer: args.peer.clone() };
        let pong = match ask_within(&args.look.admin, &request, PING_WITHIN).await {
            Ok(pong) => Some(pong),
            Err(failure) if failure.code == Code::TimedOut => None,
            Err(failure) => return Err(failure),
        };
        is_answered |= pong.is_some();
        let asked = Asked::of(number, pong);
        if is_document {
            document.push(asked);
        } else if show_next(&asked, output, || asked.line())? == Reader::Gone
            && (args.count == 0 || is_answered)
        {
            return Ok(());
        }
    }
    if is_document {
        show(&document, output, |_| String::new())?;
    }
    if !is_answered {
        return Err(Failure::failed(
            format!("{} did not answer", args.peer),
            "`easynet doctor --peer` finds out why.",
        ));
    }
    Ok(())
}

fn status_page(status: &view::Status) -> String {
    let peers = &status.peers;
    let mut rows = vec![
        ("network", format!("{} ({})", status.network, status.network_id)),
        ("node", format!("{} ({})", status.hostname, status.node_id)),
        ("ready", if status.ready { "yes" } else { "no" }.to_owned()),
        (
            "addresses",
            listed(&[&status.ipv4, &status.ipv6].into_iter().flatten().collect::<Vec<_>>(), "  "),
        ),
        ("uptime", humantime::format_duration(Duration::from_secs(status.uptime_s)).to_string()),
    ];
    if let Some(tun) = &status.tun {
        let offload = if tun.offload.tcp { "offloads on" } else { "offloads off" };
        rows.push(("tun", format!("{}, mtu {}, {offload}", tun.name, tun.mtu)));
    }
    for server in &status.servers {
        let rtt = server.rtt_ms.map(|rtt| format!(", {rtt:.1} ms")).unwrap_or_default();
        let message =
            server.message.as_ref().map(|message| format!(": {message}")).unwrap_or_default();
        rows.push(("start", format!("{} {}{rtt}{message}", server.url, server.state)));
    }
    rows.push((
        "peers",
        format!(
            "{} in all: {} direct, {} relayed, {} idle, {} connecting, {} unreachable",
            peers.total,
            peers.direct,
            peers.relayed,
            peers.idle,
            peers.connecting,
            peers.unreachable
        ),
    ));
    rows.push((
        "nat",
        format!("{}/{}, udp {}", status.nat.v4.mapping, status.nat.v4.filtering, status.nat.udp),
    ));
    for condition in status.conditions.iter().filter(|condition| !condition.status) {
        rows.push(("problem", format!("{}: {}", condition.reason, condition.message)));
    }
    pairs(&rows)
}

fn peers_table(peers: &[view::Peer], wide: bool) -> String {
    let mut head = vec!["HOSTNAME", "IPV4", "STATE", "VIA", "RTT", "LOSS", "TX", "RX"];
    if wide {
        head.extend(["NODE", "IPV6", "REMOTE", "NAT", "EXPORTS", "VERSION", "ERROR"]);
    }
    let rows: Vec<Vec<String>> = peers
        .iter()
        .map(|peer| {
            let mut row = vec![
                peer.hostname.clone(),
                or_dash(peer.ipv4.as_ref()),
                peer.state.clone(),
                or_dash(
                    peer.via
                        .as_ref()
                        .map(|via| via[..via.len().min(8)].to_owned())
                        .or(peer.carrier.clone()),
                ),
                or_dash(peer.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
                format!("{:.0} %", peer.loss * 100.0),
                bytes(peer.tx_bytes),
                bytes(peer.rx_bytes),
            ];
            if wide {
                row.extend([
                    peer.node_id.clone(),
                    or_dash(peer.ipv6.as_ref()),
                    or_dash(peer.remote.as_ref()),
                    or_dash(peer.nat.as_ref()),
                    listed(&peer.exports, ","),
                    or_dash(Some(&peer.version).filter(|version| !version.is_empty())),
                    or_dash(peer.last_error.as_ref()),
                ]);
            }
            row
        })
        .collect();
    table(&head, &rows)
}

fn paths_table(paths: &[view::Path], wide: bool) -> String {
    let mut head = vec!["STATE", "CARRIER", "REMOTE", "WAY", "RTT", "SCORE", "LOSS", "MTU"];
    if wide {
        head.extend(["LOCAL", "VIA", "JITTER", "SINCE"]);
    }
    let rows: Vec<Vec<String>> = paths
        .iter()
        .map(|path| {
            let mut row = vec![
                path.state.clone(),
                path.carrier.clone(),
                path.remote.clone(),
                if path.relayed { "relayed" } else { "direct" }.to_owned(),
                or_dash(path.rtt_ms.map(|rtt| format!("{rtt:.1} ms"))),
                or_dash(path.score.map(|score| format!("{score:.1}"))),
                format!("{:.0} %", path.loss * 100.0),
                or_dash(path.mtu),
            ];
            if wide {
                row.extend([
                    or_dash(path.local.as_ref()),
                    or_dash(path.via.as_ref()),
                    or_dash(path.rtt_var_ms.map(|rtt| format!("{rtt:.1} ms"))),
                    path.since.clone(),
                ]);
            }
            row
        })
        .collect();
    table(&head, &rows)
}

fn routes_table(routes: &[view::Route], wide: bool) -> String {
    let mut head = vec!["PREFIX", "HOSTNAME", "METRIC", "STATE", "REASON"];
    if wide {
        head.extend(["VIA", "SOURCE", "NODE"]);
    }
    let rows: Vec<Vec<String>> = routes
        .iter()
        .map(|route| {
            let metric = route.metric.map(|metric| format!("{:.1} ms", f64::from(metric) / 1000.0));
            let mut row = vec![
                route.prefix.clone(),
                or_dash(route.hostname.as_ref()),
                or_dash(metric),
                route.state.clone(),
                or_dash(route.reason.as_ref()),
            ];
            if wide {
                row.extend([
                    or_dash(route.via.as_ref()),
                    route.source.clone(),
                    route.node_id.clone(),
                ]);
            }
            row
        })
        .collect();
    table(&head, &rows)
}

fn node_page(node: &view::Node) -> String {
    let mut rows = vec![
        ("node", format!("{} ({})", node.hostname, node.node_id)),
        ("version", format!("{} on {} {}", node.version, node.os, node.arch)),
        ("addresses", listed(&node.addresses, "  ")),
        ("public", listed(&node.public_addresses, "  ")),
    ];
    rows.extend(node.listeners.iter().map(|listener| ("listens", listener.url.clone())));
    rows.extend(node.interfaces.iter().map(|interface| {
        (
            "interface",
            format!("{} mtu {}  {}", interface.name, interface.mtu, interface.addresses.join("  ")),
        )
    }));
    pairs(&rows)
}

fn nat_page(nat: &view::Nat) -> String {
    let hairpin = match nat.v4.hairpin {
        Some(true) => "yes",
        Some(false) => "no",
        None => "unknown",
    };
    let lifetime = nat.v4.lifetime_s.map(|seconds| format!("{seconds} s and more"));
    pairs(&[
        ("IPv4 mapping", nat.v4.mapping.clone()),
        ("IPv4 filtering", nat.v4.filtering.clone()),
        ("IPv4 ports", nat.v4.allocation.kind.clone()),
        ("IPv4 hairpin", hairpin.to_owned()),
        ("IPv4 lifetime", or_dash(lifetime.as_ref())),
        ("IPv4 external", listed(&nat.v4.external, "  ")),
        ("IPv6", nat.v6.kind.clone()),
        ("IPv6 external", listed(&nat.v6.external, "  ")),
        ("UDP", nat.udp.clone()),
        ("tested", or_dash(nat.tested_at.as_ref())),
    ])
}

fn stats_page(stats: &view::Stats) -> String {
    let mut rows = vec![
        ("packets out", kinds(stats.packets.tx, |count| count.to_string())),
        ("packets in", kinds(stats.packets.rx, |count| count.to_string())),
        ("bytes out", kinds(stats.bytes.tx, bytes)),
        ("bytes in", kinds(stats.bytes.rx, bytes)),
        ("memory", format!("{} resident", or_dash(stats.memory.rss_bytes.map(bytes)))),
        ("LSAs", stats.lsdb_entries.to_string()),
    ];
    let drops: Vec<String> =
        stats.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    rows.push(("drops", if drops.is_empty() { "none".to_owned() } else { drops.join(", ") }));
    let queues =
        stats.queues.iter().map(|(name, queue)| format!("{name} {} of {} B", queue.len, queue.cap));
    rows.push(("queues", queues.collect::<Vec<_>>().join(", ")));
    pairs(&rows)
}

fn kinds(counts: view::Kinds, show: impl Fn(u64) -> String) -> String {
    format!("{} direct, {} relayed", show(counts.direct), show(counts.relayed))
}

/// Of a list each item has a line; what is too long goes on on the next.
fn config_table(rows: &[serde_json::Value], is_wide: bool) -> String {
    let text = |value: &serde_json::Value| match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_null() => "-".to_owned(),
        None => value.to_string(),
    };
    let longest = |name: &str| rows.iter().map(|row| text(&row[name]).chars().count()).max();
    let others = longest("key").unwrap_or(0) + longest("origin").unwrap_or(0) + 2 * GAP;
    let width = if is_wide { usize::MAX } else { COLUMNS.saturating_sub(others).max(20) };
    let mut lines = Vec::new();
    for row in rows {
        let items = row["value"].as_array().map_or_else(
            || vec![text(&row["value"])],
            |items| items.iter().map(text).collect::<Vec<_>>(),
        );
        let items = if items.is_empty() { vec!["-".to_owned()] } else { items };
        let pieces = items.iter().flat_map(|item| cut(item, width));
        let heads = std::iter::once((text(&row["key"]), text(&row["origin"])));
        let heads = heads.chain(std::iter::repeat_with(Default::default));
        lines.extend(pieces.zip(heads).map(|(piece, (key, origin))| vec![key, piece, origin]));
    }
    table(&["KEY", "VALUE", "FROM"], &lines)
}
