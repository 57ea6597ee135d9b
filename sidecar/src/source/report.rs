//! Tells the configuration server how the node is.
//!
//! The task looks at the node once a second. What changed is handed to the session, which says transitions at once and the
//! rest when it is time; nothing is said twice. It also says to whoever tries a configuration whether the node is
//! connected.

use std::time::{Duration, SystemTime};

use engine::{
    event::NoticeKind,
    snapshot::{PeerState, RouteState, ServerState},
};
use netio::{
    driver::{Command, Recorded, View},
    task::TaskGroup,
};
use rpc::feed::{Condition, MAX_TRANSITIONS, Peers, Status, Transition};
use tokio::sync::{oneshot, watch};
use wire::lsa::ClusterBody;

use super::feed::Up;
use crate::{admin::Answers, view::Facts};

const EVERY: Duration = Duration::from_secs(1);
/// Prefixes and conflicts that are named; a hostile member could announce many.
const MOST_NAMED: usize = 16;
const MOST_CLUSTERS: usize = 256;

/// Starts the task; `revision` is the one in force.
pub fn spawn(
    answers: Answers,
    up: Up,
    revision: watch::Receiver<u64>,
    connected: watch::Sender<bool>,
    group: &TaskGroup,
) {
    group.spawn_transient("report", async move {
        let mut since = 0;
        let mut said = None;
        loop {
            let Ok(view) = answers.view().await else { return Ok(()) };
            connected.send_if_modified(|known| {
                let now = is_connected(&view);
                std::mem::replace(known, now) != now
            });
            let (answer, events) = oneshot::channel();
            if answers.commands.send(Command::Events { since, answer }).await.is_err() {
                return Ok(());
            }
            let Ok(events) = events.await else { return Ok(()) };
            since = events.last().map_or(since, |event| event.number);
            let status = status(&view, &answers.facts, *revision.borrow());
            let transitions = transitions(&events, said.as_ref(), &status);
            if !transitions.is_empty() || said.as_ref() != Some(&status) {
                up.status(Status { transitions, ..status.clone() });
                said = Some(status);
            }
            tokio::time::sleep(EVERY).await;
        }
    });
}

/// Whether the node has a peer or a server.
pub fn is_connected(view: &View) -> bool {
    let snapshot = &view.snapshot;
    let peer = snapshot
        .peers
        .iter()
        .any(|peer| matches!(peer.state, PeerState::Direct | PeerState::Relayed));
    peer || snapshot.servers.iter().any(|server| matches!(server.state, ServerState::Attached))
}

fn status(view: &View, facts: &Facts, revision: u64) -> Status {
    let snapshot = &view.snapshot;
    let seen = facts.status(view);
    let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let name = |node| {
        let peer = snapshot.peers.iter().find(|peer| peer.node == node);
        peer.map_or_else(|| node.to_string(), |peer| peer.hostname.clone())
    };
    // Within a cluster its own network leads to the pods, and nobody imports them.
    let own = own_cluster(&facts.hostname, &snapshot.issued.clusters);
    let refused = snapshot.routes.iter().filter(|route| {
        let is_own = own.is_some_and(|own| is_of_cluster(&name(route.node), own));
        route.state == RouteState::Rejected && !is_own
    });
    let mut ports: Vec<u32> =
        facts.sockets.table().values().map(|socket| u32::from(socket.local().port())).collect();
    ports.sort_unstable();
    ports.dedup();
    let peers = seen.peers;
    Status {
        // Said when it is sent.
        unix_s: 0,
        revision,
        addresses: snapshot.addresses.iter().map(|net| net.addr().to_string()).collect(),
        ready: view.host.applied,
        peers: Some(Peers {
            total: count(peers.total),
            direct: count(peers.direct),
            relayed: count(peers.relayed),
            idle: count(peers.idle),
            connecting: count(peers.connecting),
            unreachable: count(peers.unreachable),
        }),
        conditions: seen
            .conditions
            .into_iter()
            .map(|condition| Condition {
                kind: condition.kind,
                status: condition.status,
                reason: condition.reason,
                message: condition.message,
            })
            .collect(),
        transitions: Vec::new(),
        epoch_seen: snapshot.issued.seen.unwrap_or(0),
        epochs: snapshot.issued.epochs.clone(),
        clusters: snapshot.issued.clusters.iter().take(MOST_CLUSTERS).cloned().collect(),
        conflicts: snapshot
            .duplicate_key
            .iter()
            .chain(&snapshot.conflicts)
            .take(MOST_NAMED)
            .cloned()
            .collect(),
        refused: refused
            .take(MOST_NAMED)
            .map(|route| format!("{} of {}: {}", route.prefix, name(route.node), route.reason))
            .collect(),
        members_on_epoch: count(snapshot.issued.members_on_epoch),
        members: count(snapshot.issued.members),
        ports,
    }
}

/// The cluster that a node is of, by its host name, which the operator gave: `NODE.CLUSTER`.
fn own_cluster<'a>(hostname: &str, clusters: &'a [ClusterBody]) -> Option<&'a str> {
    let mut names = clusters.iter().map(|cluster| cluster.name.as_str());
    names.find(|cluster| is_of_cluster(hostname, cluster))
}

fn is_of_cluster(hostname: &str, cluster: &str) -> bool {
    hostname.rsplit_once('.').is_some_and(|(_, of)| of == cluster)
}

/// What happened since the last look, as far as it concerns whoever configures the node.
fn transitions(events: &[Recorded], before: Option<&Status>, now: &Status) -> Vec<Transition> {
    let mut transitions: Vec<Transition> = events
        .iter()
        .filter(|event| concerns(event.notice.kind))
        .map(|event| Transition {
            at_ms: millis(event.at),
            kind: event.notice.kind.as_str().to_owned(),
            message: event.notice.message.clone(),
        })
        .collect();
    let mut turned = |kind: &str, message: String| {
        let at_ms = millis(SystemTime::now());
        transitions.push(Transition { at_ms, kind: kind.to_owned(), message });
    };
    if before.map(|before| before.ready) != Some(now.ready) {
        turned(
            "ready",
            if now.ready { "The node is ready" } else { "The node is not ready" }.into(),
        );
    }
    for condition in &now.conditions {
        let known = before
            .and_then(|before| before.conditions.iter().find(|other| other.kind == condition.kind));
        if known.map(|known| (known.status, &known.reason))
            != Some((condition.status, &condition.reason))
        {
            turned(&condition.kind, format!("{}: {}", condition.reason, condition.message));
        }
    }
    if before.is_some_and(|before| before.addresses != now.addresses) {
        turned("addresses", now.addresses.join(" "));
    }
    if before.map(|before| before.clusters.len()) != Some(now.clusters.len())
        || before.is_some_and(|before| before.clusters != now.clusters)
    {
        turned("clusters", format!("{} clusters are known", now.clusters.len()));
    }
    let excess = transitions.len().saturating_sub(MAX_TRANSITIONS);
    transitions.split_off(excess)
}

/// Not what happens all the time in a large network.
fn concerns(kind: NoticeKind) -> bool {
    match kind {
        NoticeKind::ServerAttached
        | NoticeKind::ServerLost
        | NoticeKind::AddressClaimed
        | NoticeKind::AddressConflict
        | NoticeKind::ConfigRolledBack
        | NoticeKind::KeyEpoch
        | NoticeKind::Revoked => true,
        NoticeKind::PeerUp
        | NoticeKind::PeerDown
        | NoticeKind::PathPrimary
        | NoticeKind::PunchStarted
        | NoticeKind::PunchEnded
        | NoticeKind::NatProfile
        | NoticeKind::RouteAdded
        | NoticeKind::RouteRemoved
        | NoticeKind::ConfigApplied => false,
    }
}

fn millis(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_name_that_the_operator_gave_names_its_cluster() {
        let cluster = |name: &str| ClusterBody { name: name.into(), ..ClusterBody::default() };
        let clusters = [cluster("fra1"), cluster("ams1")];

        assert_eq!(own_cluster("n1.fra1", &clusters), Some("fra1"));
        assert_eq!(own_cluster("ip-10-0-0-7.ec2.internal.ams1", &clusters), Some("ams1"));
        for other in ["n1", "fra1", "n1.fra2", "laptop.example.com"] {
            assert_eq!(own_cluster(other, &clusters), None, "{other}");
        }
    }
}
