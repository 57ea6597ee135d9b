//! `easynet doctor`: what is wrong, and what to do about it.
//!
//! With a node running, it is asked what it sees; the host is looked at only where the node cannot say. Without one, this
//! finds out why none would run: privileges, the TUN device, ports, name servers, and whether the configured peers answer.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    time::Duration,
};

use config::{Listen, PeerUrl, Scheme, Settings};
use netio::netlink::FWMARK;
use serde::{Deserialize, Serialize};
use socket2::SockRef;
use tokio::{
    net::{TcpStream, UdpSocket},
    time::timeout,
};
use wire::datagram::{Datagram, WHOIS_LEN, Whois};

use crate::{
    admin::{Answers, Request, ask, ask_within},
    args,
    error::{Code, Failure},
    render::{COLUMNS, show, table, wrap},
    settings, state, view,
};

/// Peers whose paths are looked at; more would only repeat it.
const PEERS_LOOKED_AT: usize = 16;
/// Peers that are named; the others are counted.
const PEERS_NAMED: usize = 8;
/// A server on another continent answers within this, and twice.
const ANSWER_WITHIN: Duration = Duration::from_millis(1000);
const ASKED: usize = 2;
/// A node looks at no more starts that do not answer, nor at more addresses of one: it is done within [`EXAMINED_WITHIN`].
const STARTS_ASKED: usize = 3;
const ADDRESSES_ASKED: usize = 2;
const EXAMINED_WITHIN: Duration = Duration::from_secs(20);

/// How grave a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    Ok,
    /// Worth knowing, and not wrong in itself.
    Note,
    Wrong,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub check: String,
    pub level: Level,
    pub message: String,
    /// What to do; `null` where all is well.
    pub remedy: Option<String>,
}

impl Finding {
    fn good(check: &str, message: impl Into<String>) -> Self {
        let (check, message) = (check.to_owned(), message.into());
        Self { check, level: Level::Ok, message, remedy: None }
    }

    fn note(check: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (check, message) = (check.to_owned(), message.into());
        Self { check, level: Level::Note, message, remedy: Some(remedy.into()) }
    }

    fn bad(check: &str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { level: Level::Wrong, ..Self::note(check, message, remedy) }
    }
}

/// What a node says of itself.
struct Seen {
    status: view::Status,
    peers: Vec<view::Peer>,
    stats: view::Stats,
    node: view::Node,
    routes: Vec<view::Route>,
    settings: Vec<serde_json::Value>,
    events: Vec<view::Event>,
    /// What the node found when it was asked to look.
    examined: Vec<Finding>,
}

/// Checks the node, or the host if none runs.
pub async fn run(args: args::Doctor) -> Result<(), Failure> {
    let findings = match &args.agents {
        Some(folder) => agents(folder, args.peer.as_deref()).await?,
        None => {
            let admin = &args.look.admin;
            match node(admin, args.peer.as_deref()).await? {
                Some(findings) => findings,
                None => {
                    let message = format!("no node answers at {}", admin.admin);
                    let remedy = "Start one with `easynet run`, or name its socket with --admin.";
                    let mut findings = vec![Finding::bad("node", message, remedy)];
                    findings.extend(host(args.config.as_deref()).await);
                    findings
                }
            }
        }
    };
    show(&findings, args.look.output, |_| page(&findings))?;
    let wrong = findings.iter().filter(|finding| finding.level == Level::Wrong).count();
    if wrong == 0 {
        return Ok(());
    }
    let what = if wrong == 1 {
        "1 thing is wrong".to_owned()
    } else {
        format!("{wrong} things are wrong")
    };
    Err(Failure::failed(what, "The findings say what to do."))
}

/// What a running node sees; `None` if none answers there.
async fn node(admin: &args::Admin, peer: Option<&str>) -> Result<Option<Vec<Finding>>, Failure> {
    let status = match ask::<view::Status>(admin, &Request::Status).await {
        Ok(status) => status,
        Err(failure) if failure.code == Code::NoNode => return Ok(None),
        Err(failure) => return Err(failure),
    };
    let seen = Seen {
        status,
        peers: ask(admin, &Request::Peers).await?,
        stats: ask(admin, &Request::Stats).await?,
        node: ask(admin, &Request::Node).await?,
        routes: ask(admin, &Request::Routes).await?,
        settings: ask(admin, &Request::ConfigShow).await?,
        events: ask(admin, &Request::Events { since: 0 }).await?,
        // A node of an earlier version does not know how.
        examined: ask_within(admin, &Request::Examine, EXAMINED_WITHIN).await.unwrap_or_default(),
    };
    let mut findings = seen.findings();
    let direct = seen.peers.iter().filter(|peer| peer.state == "direct");
    for peer in direct.take(PEERS_LOOKED_AT) {
        let request = Request::Paths { peer: peer.node_id.clone() };
        // It may have left in between.
        let paths: Vec<view::Path> = ask(admin, &request).await.unwrap_or_default();
        findings.extend(seen.path_mtu(peer, &paths));
    }
    findings.extend(peer.map(|name| seen.peer(name)));
    Ok(Some(findings))
}

/// On a node of Kubernetes: each agent whose socket is in `folder`, and without one whether it could run.
async fn agents(folder: &Path, peer: Option<&str>) -> Result<Vec<Finding>, Failure> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
    let mut sockets: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "sock"))
        .collect();
    sockets.sort();
    let mut findings = Vec::new();
    for socket in sockets {
        let network = socket.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let admin = config::Admin::Unix(socket.clone());
        let admin = args::Admin { admin, admin_token_file: None };
        let seen = node(&admin, peer).await?.unwrap_or_else(|| {
            let message = format!("no agent answers at {}", socket.display());
            let remedy = "Look at its pod: `kubectl describe` says why it does not run.";
            vec![Finding::bad("node", message, remedy)]
        });
        findings.extend(
            seen.into_iter().map(|finding| Finding {
                check: format!("{network} {}", finding.check),
                ..finding
            }),
        );
    }
    if findings.is_empty() {
        let message = format!("no agent runs on this node: {} has no socket", folder.display());
        let remedy = "Apply an EasyNetwork that selects this node.";
        findings = vec![Finding::note("agents", message, remedy), device(), privileges(), nft()];
        findings.extend(free_ports(&config::Partial::default().settle()));
    }
    Ok(findings)
}

fn page(findings: &[Finding]) -> String {
    let check = findings.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
    let width = COLUMNS.saturating_sub(check + 9).max(30);
    let mut rows = Vec::new();
    for finding in findings {
        let verdict = match finding.level {
            Level::Ok => "ok",
            Level::Note => "note",
            Level::Wrong => "WRONG",
        };
        let remedy = finding.remedy.as_ref().map(|remedy| format!("→ {remedy}"));
        let lines = wrap(&finding.message, width).into_iter();
        let lines = lines.chain(remedy.iter().flat_map(|remedy| wrap(remedy, width)));
        for (index, line) in lines.enumerate() {
            let (verdict, check) =
                if index == 0 { (verdict, finding.check.as_str()) } else { ("", "") };
            rows.push(vec![verdict.to_owned(), check.to_owned(), line]);
        }
    }
    table(&["", "CHECK", "FINDING"], &rows)
}

impl Seen {
    fn findings(&self) -> Vec<Finding> {
        let status = &self.status;
        let running = format!("{} runs version {}", status.hostname, status.version);
        let mut findings = vec![if status.version == env!("CARGO_PKG_VERSION") {
            Finding::good("node", running)
        } else {
            let message = format!("{running}, and this is {}", env!("CARGO_PKG_VERSION"));
            Finding::note("node", message, "Use one version for both.")
        }];
        findings.push(self.tun());
        findings.push(self.ports());
        findings.extend(status.servers.iter().map(|server| {
            let check = format!("start {}", server.url);
            // That it answers somebody is no reason why it does not answer the node.
            let examined = self.examined.iter().find(|finding| finding.check == check);
            let examined = examined.filter(|finding| finding.level == Level::Wrong);
            examined.cloned().unwrap_or_else(|| self.server(server))
        }));
        findings.extend(self.examined.iter().filter(|finding| finding.check == "state").cloned());
        findings.push(self.udp());
        findings.extend(self.underlay_mtu());
        findings.extend(self.conditions());
        findings.extend(self.routes());
        findings.extend(self.strangers());
        findings.extend(self.namesakes());
        findings.push(self.members());
        findings
    }

    fn tun(&self) -> Finding {
        let Some(tun) = &self.status.tun else {
            return Finding::note("tun", "the node has no TUN device", "Run it with one.");
        };
        if tun.offload.tcp {
            return Finding::good("tun", format!("{} with offloads, mtu {}", tun.name, tun.mtu));
        }
        let message = format!("{} works without TCP offloads: throughput is low", tun.name);
        Finding::note("tun", message, "Use a kernel that has TUN offloads (TUNSETOFFLOAD).")
    }

    fn ports(&self) -> Finding {
        let failed: Vec<String> = self
            .status
            .listeners
            .iter()
            .filter_map(|listener| Some(format!("{}: {}", listener.url, listener.error.as_ref()?)))
            .collect();
        if !failed.is_empty() {
            let remedy = "Stop what has the port, or choose another one with --listen (0: the first free one).";
            return Finding::bad(
                "ports",
                format!("not listening on {}", failed.join(", ")),
                remedy,
            );
        }
        if self.status.listeners.is_empty() {
            let remedy = "Choose one with --listen, unless this is meant to be so.";
            return Finding::note("ports", "the node listens nowhere", remedy);
        }
        let urls: Vec<&str> =
            self.status.listeners.iter().map(|listener| listener.url.as_str()).collect();
        Finding::good("ports", format!("listening on {}", urls.join(" ")))
    }

    fn server(&self, server: &view::Server) -> Finding {
        let check = format!("start {}", server.url);
        match (server.state.as_str(), &server.message) {
            ("attached", _) => {
                let rtt = server.rtt_ms.map(|rtt| format!(" in {rtt:.1} ms")).unwrap_or_default();
                Finding::good(&check, format!("answers{rtt}"))
            }
            ("resolving", why) => Finding::bad(
                &check,
                why.clone().unwrap_or_else(|| "its name is being resolved".to_owned()),
                "Check the name, and that the servers in /etc/resolv.conf answer.",
            ),
            ("refused", why) => Finding::bad(
                &check,
                format!("refuses this network: {}", why.as_deref().unwrap_or("without a reason")),
                format!(
                    "Ask its operator to allow the network id {}, or use another server.",
                    self.status.network_id
                ),
            ),
            (_, Some(why)) => Finding::bad(&check, why.clone(), self.other_secret()),
            (_, None) if server.pinned => Finding::bad(
                &check,
                "does not answer",
                format!(
                    "Check that it runs, that its port is open for UDP and TCP, and that ?k= is its key; if it is a \
                     member: {}",
                    lower(&self.other_secret())
                ),
            ),
            (_, None) => Finding::bad(
                &check,
                "does not answer",
                "Check that it runs, and that its port is open for UDP and TCP.",
            ),
        }
    }

    fn other_secret(&self) -> String {
        format!(
            "Compare --network and the secret with those there; `easynet status` shows the same network id \
             everywhere if they are right, here {}.",
            self.status.network_id
        )
    }

    fn udp(&self) -> Finding {
        let nat = &self.status.nat;
        if nat.udp == "blocked" {
            return Finding::bad(
                "udp",
                "no answer over UDP: it is blocked on the way",
                "Let UDP out to the servers' ports; until then all traffic goes over TCP and relays.",
            );
        }
        if nat.tested_at.is_none() {
            let remedy = "It needs a public server; ask again once one is attached.";
            return Finding::note("udp", "what NAT is before this node is not known", remedy);
        }
        let what = match nat.v4.mapping.as_str() {
            "none" => "no NAT over IPv4".to_owned(),
            mapping => format!("NAT {mapping}/{} over IPv4", nat.v4.filtering),
        };
        Finding::good("udp", format!("{what}, IPv6 {}", nat.v6.kind))
    }

    /// Underlay interfaces whose MTU is less than what a full packet of the mesh needs.
    fn underlay_mtu(&self) -> Option<Finding> {
        let mesh = u32::from(self.status.tun.as_ref()?.mtu);
        let needed = mesh + OVERHEAD;
        let own = &self.status.tun.as_ref()?.name;
        let narrow: Vec<String> = self
            .node
            .interfaces
            .iter()
            .filter(|interface| {
                let addresses = &interface.addresses;
                interface.mtu < needed
                    && interface.name != *own
                    && interface.name != "lo"
                    && !addresses.is_empty()
            })
            .map(|interface| format!("{} ({})", interface.name, interface.mtu))
            .collect();
        if narrow.is_empty() {
            return None;
        }
        let message = format!(
            "a full packet takes {needed} bytes, more than {} carry: they are cut to what fits",
            narrow.join(", ")
        );
        Some(Finding::note("mtu", message, "Nothing is lost; a smaller --mtu saves the cutting."))
    }

    fn path_mtu(&self, peer: &view::Peer, paths: &[view::Path]) -> Option<Finding> {
        let mesh = self.status.tun.as_ref()?.mtu;
        let primary = paths.iter().find(|path| path.state == "primary")?;
        let carries = primary.mtu.filter(|carries| *carries < mesh)?;
        let message = format!(
            "the way to {} swallows packets over {carries} bytes of the mesh's {mesh} (an MTU black hole)",
            peer.hostname
        );
        let remedy = format!(
            "Packets are cut to fit; to save that set --mtu {} on both sides, or let ICMP \"fragmentation needed\" through.",
            carries.max(1280)
        );
        Some(Finding::note("mtu", message, remedy))
    }

    fn conditions(&self) -> Vec<Finding> {
        let remedies = [
            ("HostConfigured", "Mend what it names; the node tries again."),
            (
                "AddressConflictFree",
                "Give each its own address or subnet; `easynet routes` shows who has which.",
            ),
            (
                "KeyUnique",
                "Stop the copy, remove node.key from its state directory (a copied one has the key of the original) or \
                 give it another --state-dir, and start it again: it makes a key of its own.",
            ),
            ("SocketsMarked", "Run the node with CAP_NET_ADMIN."),
            (
                "ForwardingOpen",
                "Let those chains accept what comes from and goes to the TUN; with Docker: \
                 `iptables -I DOCKER-USER -i TUN -j ACCEPT` and the same with -o.",
            ),
            ("ClockRight", "Set this machine's clock, by NTP for example."),
            ("ConfigKnown", "Upgrade this node to the version of its configuration server."),
        ];
        let known =
            |kind: &str| remedies.iter().find(|(name, _)| *name == kind).map(|(_, text)| *text);
        self.status
            .conditions
            .iter()
            .filter_map(|condition| {
                let remedy = known(&condition.kind)?;
                let check = match condition.kind.as_str() {
                    "ClockRight" => "clock",
                    "ConfigKnown" => "config",
                    "ForwardingOpen" => "forwarding",
                    "AddressConflictFree" => "addresses",
                    "KeyUnique" => "key",
                    "SocketsMarked" => "marks",
                    _ => "host",
                };
                let message = lower(&condition.message);
                Some(match condition.status {
                    true => Finding::good(check, message),
                    // While versions are rolled out it is as it must be.
                    false if check == "config" => Finding::note(check, message, remedy),
                    false => Finding::bad(check, message, remedy),
                })
            })
            .collect()
    }

    fn routes(&self) -> Vec<Finding> {
        self.routes
            .iter()
            .filter(|route| route.state == "rejected")
            .map(|route| {
                let whose = route.hostname.as_deref().unwrap_or(&route.node_id);
                let why = route.reason.as_deref().unwrap_or("no reason is known");
                let message = format!("{} of {whose} is not used: {why}", route.prefix);
                Finding::note(
                    "routes",
                    message,
                    "See `easynet routes`; change the export if it is wanted.",
                )
            })
            .collect()
    }

    fn strangers(&self) -> Option<Finding> {
        let refused: u64 = ["wrong_network", "bad_handshake", "bad_certificate"]
            .iter()
            .filter_map(|reason| self.stats.drops.get(*reason))
            .sum();
        if refused == 0 {
            return None;
        }
        let message =
            format!("{refused} handshakes with another network name or secret were refused");
        let remedy =
            "If a member of yours cannot join, compare its --network and secret with those here.";
        Some(Finding::note("strangers", message, remedy))
    }

    /// Whoever says one of these names means the first node that has it.
    fn namesakes(&self) -> Vec<Finding> {
        let mut bearers: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        let own = (self.status.hostname.as_str(), self.status.node_id.as_str());
        let others = self.peers.iter().map(|peer| (peer.hostname.as_str(), peer.node_id.as_str()));
        for (name, node) in others.chain([own]) {
            bearers.entry(name).or_default().push(&node[..node.len().min(8)]);
        }
        let shared = bearers.iter().filter(|(_, nodes)| nodes.len() > 1);
        let finding = |(name, nodes): (&&str, &Vec<&str>)| {
            let message = format!("{} nodes are called {name}: {}", nodes.len(), nodes.join(", "));
            Finding::note("names", message, "Give each its own by --hostname.")
        };
        shared.map(finding).collect()
    }

    fn members(&self) -> Finding {
        let peers = &self.status.peers;
        if peers.unreachable > 0 {
            let lost = self.peers.iter().filter(|peer| peer.state == "unreachable");
            let mut names: Vec<&str> =
                lost.map(|peer| peer.hostname.as_str()).take(PEERS_NAMED).collect();
            if peers.unreachable > names.len() {
                names.push("…");
            }
            let message = format!(
                "{} of {} peers are unreachable: {}",
                peers.unreachable,
                peers.total,
                names.join(", ")
            );
            let remedy = "See whether they run and reach a server that this node reaches too; \
                          `easynet doctor --peer NAME` says more of one.";
            // A member that is switched off is no fault of this node.
            return if peers.unreachable == peers.total {
                Finding::bad("peers", message, remedy)
            } else {
                Finding::note("peers", message, remedy)
            };
        }
        if peers.total == 0 {
            let message = "nobody else is in this network";
            return Finding::note("peers", message, self.other_secret());
        }
        let message = format!(
            "{} in all: {} direct, {} relayed, {} idle",
            peers.total, peers.direct, peers.relayed, peers.idle
        );
        Finding::good("peers", message)
    }

    /// Why a peer is, or is not, reached directly.
    fn peer(&self, name: &str) -> Finding {
        let found = self.peers.iter().find(|peer| peer.is_called(name));
        let check = format!("peer {name}");
        let Some(peer) = found else {
            let remedy = "`easynet peers` lists who is there.";
            return Finding::bad(&check, "nobody in the mesh has this name", remedy);
        };
        match peer.state.as_str() {
            "direct" => {
                let remote = peer.remote.as_deref().unwrap_or_default();
                let rtt = peer.rtt_ms.map(|rtt| format!(" in {rtt:.1} ms")).unwrap_or_default();
                Finding::good(&check, format!("is reached directly at {remote}{rtt}"))
            }
            "idle" => {
                Finding::good(&check, "is reachable; a direct path is sought once there is traffic")
            }
            "relayed" => self.relayed(&check, peer),
            "connecting" => {
                let why = peer.last_error.as_deref().unwrap_or("does not answer the handshake");
                Finding::bad(&check, why, "Check that it runs and that its secret is the same.")
            }
            _ => Finding::bad(
                &check,
                peer.last_error
                    .clone()
                    .unwrap_or_else(|| "no relay and no address leads to it".to_owned()),
                "Check that it runs and reaches a server that this node reaches too.",
            ),
        }
    }

    fn relayed(&self, check: &str, peer: &view::Peer) -> Finding {
        let setting = |key: &str| {
            let row = self.settings.iter().find(|row| row["key"] == key);
            row.and_then(|row| row["value"].as_str()).unwrap_or_default().to_owned()
        };
        if setting("transport.p2p") == "relay-only" {
            let message = "is relayed, since this node is configured so (p2p relay-only)";
            return Finding::note(check, message, "Run with --p2p on to seek direct paths.");
        }
        if setting("transport.punch") == "off" {
            let message = "is relayed, since this node makes no attempts (punch off)";
            return Finding::note(check, message, "Run with --punch full.");
        }
        let nat = &self.status.nat;
        if nat.udp == "blocked" {
            let message = "is relayed: UDP is blocked on this side";
            return Finding::bad(check, message, "Let UDP out; direct paths need it.");
        }
        let ended = |outcome: &str| {
            let mine = |event: &&view::Event| {
                event.kind == "punch_ended"
                    && event.peer.as_deref() == Some(peer.node_id.as_str())
                    && event.fields.get("outcome").is_some_and(|found| found == outcome)
            };
            self.events.iter().filter(mine).count()
        };
        let (won, lost) = (ended("direct"), ended("relayed"));
        let tried = match (won, lost) {
            (0, 0) => "no attempt has ended yet".to_owned(),
            (0, lost) => format!("{lost} attempts failed"),
            (won, lost) => format!("{won} attempts succeeded and {lost} failed"),
        };
        let symmetric = |nat: &str| nat.starts_with("apdm") || nat.starts_with("adm");
        let ours = format!("{}/{}", nat.v4.mapping, nat.v4.filtering);
        let theirs = peer.nat.clone().unwrap_or_else(|| "unknown".to_owned());
        if symmetric(&ours) || symmetric(&theirs) {
            let side = match (symmetric(&ours), symmetric(&theirs)) {
                (true, true) => "both sides",
                (true, false) => "this side",
                (false, _) => "its side",
            };
            let message = format!(
                "is relayed: the NAT on {side} takes another port for each destination ({ours} here, {theirs} there); {tried}"
            );
            let remedy = "Open or forward the UDP port on one side, or use IPv6 on both; until then the relay \
                          carries the traffic.";
            return Finding::bad(check, message, remedy);
        }
        let message = format!(
            "is relayed: no probe has come through (NATs {ours} here, {theirs} there); {tried}"
        );
        let remedy = "Check that both sides let UDP out; `easynet events` shows the attempts.";
        Finding::bad(check, message, remedy)
    }
}

/// Around an IP packet of the mesh: IPv6, UDP, and ours, relayed.
const OVERHEAD: u32 = 40 + 8 + (wire::datagram::DATA_OVERHEAD + wire::datagram::TRANSIT_LEN) as u32;

/// What can be told without a node.
async fn host(file: Option<&Path>) -> Vec<Finding> {
    let mut findings = vec![device(), privileges(), nft()];
    let settings = match file.map(settings::read) {
        None => config::Partial::default().settle(),
        Some(Ok(partial)) => {
            findings.push(Finding::good("config", "the file is valid"));
            partial.settle()
        }
        Some(Err(failure)) => {
            findings.push(Finding::bad("config", failure.what.trim_end(), failure.remedy));
            return findings;
        }
    };
    findings.extend(free_ports(&settings));
    findings.push(state_dir(&settings.state_dir.value));
    findings.extend(exposed(&settings.state_dir.value));
    findings.push(name_servers().await);
    for peer in &settings.peers.value {
        findings.push(answers(peer).await);
    }
    findings
}

fn device() -> Finding {
    let give = "give the container `--device /dev/net/tun`";
    match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("tun", "/dev/net/tun can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::bad(
            "tun",
            "there is no /dev/net/tun",
            format!("Load the module with `modprobe tun`, or {give}."),
        ),
        Err(error) => Finding::bad(
            "tun",
            format!("/dev/net/tun cannot be opened: {error}"),
            format!("Run as root, or {give}."),
        ),
    }
}

fn privileges() -> Finding {
    if has_net_admin() {
        return Finding::good("privileges", "CAP_NET_ADMIN is there");
    }
    let remedy = "Run as root, or give the container `--cap-add NET_ADMIN`.";
    Finding::bad("privileges", "CAP_NET_ADMIN is missing", remedy)
}

/// CAP_NET_ADMIN is bit 12 of the effective set.
fn has_net_admin() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let line = status.lines().find(|line| line.starts_with("CapEff:"))?.to_owned();
            u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok()
        })
        .is_some_and(|effective| effective & (1 << 12) != 0)
}

fn nft() -> Finding {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("nft").exists()));
    if found {
        return Finding::good("nft", "nft is installed");
    }
    let remedy = "Install nftables, if this node is to export subnets.";
    Finding::note("nft", "nft is not installed: exports are not translated", remedy)
}

fn free_ports(settings: &Settings) -> Vec<Finding> {
    let mut findings = Vec::new();
    for listen in &settings.listen.value {
        let taken = match *listen {
            Listen::None | Listen::Port(0) => continue,
            Listen::Port(port) => {
                let any = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
                is_taken(Scheme::Udp, any).or_else(|| is_taken(Scheme::Tcp, any))
            }
            Listen::Url(scheme, addr) => is_taken(scheme, addr),
        };
        findings.push(match taken {
            None => Finding::good("ports", format!("{listen} is free")),
            Some(why) => Finding::bad(
                "ports",
                format!("{listen} cannot be listened on: {why}"),
                "Stop what has it, or choose another one with --listen (0: the first free one).",
            ),
        });
    }
    findings
}

fn is_taken(scheme: Scheme, addr: SocketAddr) -> Option<std::io::Error> {
    match scheme {
        Scheme::Udp => std::net::UdpSocket::bind(addr).err(),
        Scheme::Tcp => std::net::TcpListener::bind(addr).err(),
    }
}

fn state_dir(dir: &Path) -> Finding {
    let nearest = dir.ancestors().find(|dir| dir.exists()).unwrap_or(dir);
    match tempfile_in(nearest) {
        Ok(()) => Finding::good("state", format!("{} can be written", dir.display())),
        Err(error) => Finding::bad(
            "state",
            format!("{} cannot be written: {error}", dir.display()),
            "Mend its owner and mode, make room, or choose another one with --state-dir.",
        ),
    }
}

/// What others have access to in the state directory.
fn exposed(dir: &Path) -> Vec<Finding> {
    let finding = |state::Exposed { what, remedy }| {
        let remedy = format!(
            "Close it by {remedy}; if somebody may have used it, stop the node and remove node.key: it makes another one."
        );
        Finding::bad("state", lower(&what), remedy)
    };
    state::exposed(dir).into_iter().map(finding).collect()
}

/// Writes a file that nobody else has, and removes it.
fn tempfile_in(dir: &Path) -> std::io::Result<()> {
    let path = dir.join(format!(".easynet-doctor-{}", std::process::id()));
    let written = std::fs::write(&path, [0; 4096]);
    // What could not be made needs no removing.
    let _ = std::fs::remove_file(&path);
    written
}

/// Asks each name server of the system a question that every one can answer.
async fn name_servers() -> Finding {
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers: Vec<std::net::IpAddr> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok())
        .collect();
    if servers.is_empty() {
        let remedy = "Names resolve through public servers, or write a nameserver there.";
        return Finding::note("dns", "/etc/resolv.conf names no server", remedy);
    }
    let names: Vec<String> = servers.iter().map(ToString::to_string).collect();
    for server in servers {
        if dns_answers(SocketAddr::new(server, 53)).await {
            return Finding::good("dns", format!("{} answers", names.join(" or ")));
        }
    }
    Finding::bad(
        "dns",
        format!("{} in /etc/resolv.conf does not answer", names.join(" and ")),
        "Mend it, or name peers by address.",
    )
}

/// Any answer will do, also a refusal.
async fn dns_answers(server: SocketAddr) -> bool {
    // Identification 1, recursion desired, one question: the root's name servers.
    const QUESTION: [u8; 17] = [0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let mut answer = [0; 512];
    ask_udp(server, &QUESTION, &mut answer).await.is_some_and(|len| len >= 12)
}

/// Sends a question a few times; the answer's length.
async fn ask_udp(to: SocketAddr, question: &[u8], answer: &mut [u8]) -> Option<usize> {
    let any: SocketAddr =
        if to.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0_u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await.ok()?;
    // Without the capability there is no mark, and no TUN whose routes it would have to avoid.
    let _ = SockRef::from(&socket).set_mark(FWMARK);
    socket.connect(to).await.ok()?;
    for _ in 0..ASKED {
        let asked = async {
            socket.send(question).await?;
            socket.recv(answer).await
        };
        if let Ok(Ok(len)) = timeout(ANSWER_WITHIN, asked).await {
            return Some(len);
        }
    }
    None
}

/// What a running node finds where it runs, when it is asked: whoever asks may stand in another network.
///
/// # Errors
/// When the node is shutting down.
pub async fn examine(answers: &Answers) -> Result<Vec<Finding>, rpc::frame::Failure> {
    let servers = answers.facts.status(&answers.view().await?).servers;
    let mut findings = exposed(&answers.facts.state_dir);
    let mut asked = 0;
    for start in &answers.facts.applied().starts {
        let is_silent = |server: &view::Server| {
            server.url == start.url && server.state == "connecting" && server.message.is_none()
        };
        if asked == STARTS_ASKED || !servers.iter().any(is_silent) {
            continue;
        }
        asked += 1;
        // One that does not resolve says so itself.
        let Ok(found) = answers.resolver.addresses(&start.peer.host).await else { continue };
        let addrs = found.into_iter().map(|ip| SocketAddr::new(ip, start.peer.port)).collect();
        findings.push(reached(&start.peer, addrs).await);
    }
    Ok(findings)
}

/// Whether a configured peer or server answers who it is, and over what.
async fn answers(peer: &PeerUrl) -> Finding {
    match tokio::net::lookup_host((peer.host.as_str(), peer.port)).await {
        Ok(addrs) => reached(peer, addrs.collect()).await,
        Err(error) => {
            let remedy = "Check the name, and that the servers in /etc/resolv.conf answer.";
            Finding::bad(&start(peer), format!("its name does not resolve: {error}"), remedy)
        }
    }
}

/// The name of the check of a configured peer or server.
fn start(peer: &PeerUrl) -> String {
    format!("start {}", PeerUrl { keys: None, ..peer.clone() })
}

async fn reached(peer: &PeerUrl, mut addrs: Vec<SocketAddr>) -> Finding {
    addrs.truncate(ADDRESSES_ASKED);
    let check = start(peer);
    for addr in &addrs {
        let Some(keys) = whois(*addr).await else { continue };
        return match &peer.keys {
            Some(expected) if *expected != keys => Finding::bad(
                &check,
                "answers with another key than ?k=",
                "Take the URL that `easynet server` prints there.",
            ),
            Some(_) | None => Finding::good(&check, "answers over UDP"),
        };
    }
    for addr in addrs {
        if matches!(timeout(ANSWER_WITHIN, TcpStream::connect(addr)).await, Ok(Ok(_))) {
            let message = "answers over TCP but not over UDP";
            let remedy =
                "Let UDP out to its port; until then all traffic goes over TCP and relays.";
            return Finding::bad(&check, message, remedy);
        }
    }
    let remedy = "Check that it runs, and that its port is open for UDP and TCP.";
    Finding::bad(&check, "does not answer", remedy)
}

/// Asks an address who it is.
async fn whois(addr: SocketAddr) -> Option<[u8; 64]> {
    let mut answer = [0; WHOIS_LEN];
    let question = Whois::ask(u64::from(std::process::id()));
    let len = ask_udp(addr, &question, &mut answer).await?;
    match Datagram::parse(answer.get(..len)?) {
        Some(Datagram::Whois(whois)) if whois.answer => Some(whois.keys.to_bytes()),
        _ => None,
    }
}

fn lower(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}
