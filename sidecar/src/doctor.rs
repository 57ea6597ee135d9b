//! `easynet doctor`: what is wrong, and what to do about it.

use serde::Serialize;

use crate::{
    admin::{Request, ask},
    args,
    error::{Code, Failure},
    render::{show, table},
    view,
};

/// Clocks may differ by this much, in seconds, before it is worth a word.
const CLOCK_TOLERANCE_S: i64 = 60;

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub check: String,
    pub ok: bool,
    pub message: String,
    /// What to do; empty where all is well.
    pub remedy: String,
}

impl Finding {
    fn good(check: &str, message: impl Into<String>) -> Self {
        Self { check: check.to_owned(), ok: true, message: message.into(), remedy: String::new() }
    }

    fn bad(check: &str, message: impl Into<String>, remedy: &str) -> Self {
        Self {
            check: check.to_owned(),
            ok: false,
            message: message.into(),
            remedy: remedy.to_owned(),
        }
    }
}

/// Checks the host, and the node if one runs.
pub async fn run(args: args::Doctor) -> Result<(), Failure> {
    let admin = &args.look.admin;
    let mut findings = host();
    match ask::<view::Status>(admin, &Request::Status).await {
        Ok(status) => {
            findings.extend(node(&status));
            let peers: Vec<view::Peer> = ask(admin, &Request::Peers).await?;
            if let Some(name) = &args.peer {
                findings.push(peer(&status, &peers, name));
            }
        }
        Err(failure) if failure.code == Code::NoNode => {
            let remedy = "Start one with `easynet run`, or name its socket with --admin.";
            findings.push(Finding::bad("node", "no node answers", remedy));
        }
        Err(failure) => return Err(failure),
    }
    show(&findings, args.look.output, |_| page(&findings))?;
    let wrong = findings.iter().filter(|finding| !finding.ok).count();
    if wrong == 0 {
        return Ok(());
    }
    let what = if wrong == 1 {
        "1 thing is wrong".to_owned()
    } else {
        format!("{wrong} things are wrong")
    };
    Err(Failure::failed(what, "See the remedies above."))
}

fn page(findings: &[Finding]) -> String {
    let rows: Vec<Vec<String>> = findings
        .iter()
        .map(|finding| {
            let verdict = if finding.ok { "ok" } else { "WRONG" };
            let text = if finding.remedy.is_empty() {
                finding.message.clone()
            } else {
                format!("{}. {}", finding.message, finding.remedy)
            };
            vec![verdict.to_owned(), finding.check.clone(), text]
        })
        .collect();
    table(&["", "CHECK", "FINDING"], &rows)
}

/// What can be told without a node.
fn host() -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.push(match std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun") {
        Ok(_) => Finding::good("tun", "/dev/net/tun can be opened"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Finding::bad(
            "tun",
            "there is no /dev/net/tun",
            "Load the module with `modprobe tun`, or give the container `--device /dev/net/tun`.",
        ),
        Err(error) => Finding::bad(
            "tun",
            format!("/dev/net/tun cannot be opened: {error}"),
            "Run as root, or give the container `--device /dev/net/tun`.",
        ),
    });
    findings.push(if has_net_admin() {
        Finding::good("privileges", "CAP_NET_ADMIN is there")
    } else {
        Finding::bad(
            "privileges",
            "CAP_NET_ADMIN is missing",
            "Run as root, or with `--cap-add NET_ADMIN`.",
        )
    });
    let nft = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join("nft").exists()))
        || ["/usr/sbin/nft", "/sbin/nft"].iter().any(|path| std::path::Path::new(path).exists());
    findings.push(if nft {
        Finding::good("nft", "nft is installed")
    } else {
        Finding::bad(
            "nft",
            "nft is not installed",
            "Install nftables; without it exports are not translated.",
        )
    });
    findings
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

/// What a running node knows to be wrong.
fn node(status: &view::Status) -> Vec<Finding> {
    let mut findings = vec![Finding::good("node", format!("{} runs", status.hostname))];
    for server in &status.servers {
        findings.push(self::server(server));
    }
    let tcp_only = status.nat.udp == "blocked";
    findings.push(if tcp_only {
        Finding::bad(
            "udp",
            "no STUN answer over UDP",
            "Let UDP out to the servers' ports; until then all traffic goes over TCP and relays.",
        )
    } else {
        Finding::good(
            "udp",
            format!("UDP works; NAT {}/{}", status.nat.v4.mapping, status.nat.v4.filtering),
        )
    });
    for condition in status.conditions.iter().filter(|condition| condition.kind != "Connected") {
        findings.push(if condition.status {
            Finding::good(&condition.kind, condition.message.clone())
        } else {
            Finding::bad(
                &condition.kind,
                condition.message.clone(),
                "Mend what it names; the node tries again.",
            )
        });
    }
    let unreachable = status.peers.unreachable;
    if unreachable > 0 {
        let message = format!("{unreachable} of {} peers are unreachable", status.peers.total);
        findings.push(Finding::bad(
            "peers",
            message,
            "Look at `easynet peers -o wide` and at those nodes.",
        ));
    }
    findings
}

fn server(server: &view::Server) -> Finding {
    let check = format!("start {}", server.url);
    if let Some(offset) = server.clock_offset_s.filter(|offset| offset.abs() > CLOCK_TOLERANCE_S) {
        let message = format!("its clock differs from this machine's by {offset} s");
        return Finding::bad(&check, message, "Set this machine's clock, by NTP for example.");
    }
    match (server.state.as_str(), &server.message) {
        ("attached", _) => Finding::good(&check, "answers"),
        ("resolving", _) => Finding::bad(
            &check,
            "its name does not resolve",
            "Check the name, and this machine's name servers.",
        ),
        ("refused", Some(why)) => {
            Finding::bad(&check, format!("refuses this network: {why}"), "Ask its operator.")
        }
        (_, Some(why)) => Finding::bad(&check, why.clone(), "Mend that and restart the node."),
        (_, None) => Finding::bad(
            &check,
            "does not answer",
            "Check that it runs, that its port is open for UDP and TCP, and that ?k= is its key.",
        ),
    }
}

/// Why a peer is, or is not, reached directly.
fn peer(status: &view::Status, peers: &[view::Peer], name: &str) -> Finding {
    let found = peers.iter().find(|peer| {
        peer.hostname == name
            || peer.ipv4.as_deref() == Some(name)
            || peer.ipv6.as_deref() == Some(name)
            || (name.len() >= 8 && peer.node_id.starts_with(name))
    });
    let check = format!("peer {name}");
    let Some(peer) = found else {
        return Finding::bad(
            &check,
            "nobody in the mesh has this name",
            "`easynet peers` lists who is there.",
        );
    };
    let symmetric = |nat: &str| nat.starts_with("apdm") || nat.starts_with("adm");
    let ours = format!("{}/{}", status.nat.v4.mapping, status.nat.v4.filtering);
    let theirs = peer.nat.clone().unwrap_or_else(|| "unknown".to_owned());
    match peer.state.as_str() {
        "direct" => Finding::good(
            &check,
            format!("is reached directly at {}", peer.remote.clone().unwrap_or_default()),
        ),
        "idle" => {
            Finding::good(&check, "is reachable; a direct path is sought once there is traffic")
        }
        "relayed" if symmetric(&ours) || symmetric(&theirs) => Finding::bad(
            &check,
            format!(
                "is relayed: the NATs are {ours} here and {theirs} there, and at least one changes ports by destination"
            ),
            "Open or forward the UDP port on one side, or use IPv6 on both; until then the relay carries the traffic.",
        ),
        "relayed" => Finding::bad(
            &check,
            format!("is relayed: no probe has come through yet (NATs {ours} here, {theirs} there)"),
            "Check that both sides let UDP out; `easynet events` shows the attempts.",
        ),
        "connecting" => {
            Finding::bad(&check, "does not answer the handshake", "Check that it runs.")
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
