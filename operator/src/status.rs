//! Writes statuses, and never storms.
//!
//! [`Gate`] decides which status is written when. A transition goes at once, counters wait: an EasyPeer's 10 s after its last write, an
//! EasyNetwork's 60 s but for a few at once. Of several statuses of one object only the newest counts. [`BURST`] and [`RATE`] make at
//! most 20 writes in any second, whatever happens, and EasyNetworks go first.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crds::{EasyNetwork, EasyNetworkStatus, EasyPeer, EasyPeerStatus};
use k8s_openapi::{
    api::{core::v1::ObjectReference, events::v1::Event},
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::json;

use crate::{
    api::{self, Failure},
    backoff::Backoff,
    names,
    plan::status::{About, Notice},
};

/// An Event that could not be told is told again after each of these.
const TELL_AGAIN_AFTER: [Duration; 2] = [Duration::from_secs(2), Duration::from_secs(8)];

/// Writes at once.
pub const BURST: f64 = 5.0;
/// Writes per second after that.
pub const RATE: f64 = 15.0;
/// Objects whose status waits to be written; with more, whoever asks asks again.
pub const MOST: usize = 256;
const PEER_PAUSE: Duration = Duration::from_secs(10);
const NETWORK_PAUSE: Duration = Duration::from_secs(60);
/// Counters of a new network are of interest: so many writes without pause, earned back one per [`NETWORK_PAUSE`].
const NETWORK_SPARE: f64 = 3.0;
/// What was written is what is there, until the watch says so.
const BELIEVED: Duration = Duration::from_secs(10);

/// Whose status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// An EasyNetwork that does not parse; the API server may not take a status for it.
    Malformed(String),
    Network(String),
    Peer(String),
}

/// A status.
#[derive(Clone, Debug, PartialEq)]
pub enum Status {
    Network(Box<EasyNetworkStatus>),
    Peer(Box<EasyPeerStatus>),
}

/// Decides which status is written when.
#[derive(Debug)]
pub struct Gate {
    waiting: BTreeMap<Key, Waiting>,
    running: BTreeMap<Key, Status>,
    last: BTreeMap<Key, Last>,
    tokens: f64,
    filled: Instant,
}

#[derive(Debug)]
struct Waiting {
    status: Status,
    not_before: Instant,
    is_urgent: bool,
}

#[derive(Debug)]
struct Last {
    status: Status,
    at: Instant,
    spare: f64,
    backoff: Backoff,
}

impl Gate {
    pub fn new(now: Instant) -> Self {
        Self {
            waiting: BTreeMap::new(),
            running: BTreeMap::new(),
            last: BTreeMap::new(),
            tokens: BURST,
            filled: now,
        }
    }

    /// Takes the status that an object should have; `live` is the one it has. `false` if there is no room: offer it again.
    pub fn offer(&mut self, key: Key, live: Option<&Status>, status: Status, now: Instant) -> bool {
        let last = self.last.get(&key);
        let written = last.filter(|last| now < last.at + BELIEVED).map(|last| &last.status);
        let before = self.running.get(&key).or(written).or(live);
        if before == Some(&status) {
            self.waiting.remove(&key);
            return true;
        }
        let is_urgent = before.is_none_or(|before| before.is_transition_to(&status));
        let earliest = match (&key, last) {
            (_, None) => now,
            _ if is_urgent => now,
            (Key::Peer(_), Some(last)) => last.at + PEER_PAUSE,
            (Key::Network(_) | Key::Malformed(_), Some(last)) if last.spare_at(now) >= 1.0 => now,
            (Key::Network(_) | Key::Malformed(_), Some(last)) => last.at + NETWORK_PAUSE,
        };
        if let Some(waiting) = self.waiting.get_mut(&key) {
            waiting.status = status;
            waiting.is_urgent |= is_urgent;
            waiting.not_before = waiting.not_before.min(earliest);
            return true;
        }
        if self.waiting.len() >= MOST && matches!(key, Key::Peer(_)) {
            return false;
        }
        self.waiting.insert(key, Waiting { status, not_before: earliest, is_urgent });
        true
    }

    /// The next status to write, if one may be written now.
    pub fn poll_write(&mut self, now: Instant) -> Option<(Key, Status)> {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * RATE;
        self.tokens = (self.tokens + gained).min(BURST);
        self.filled = now;
        if self.tokens < 1.0 {
            return None;
        }
        let due = self
            .waiting
            .iter()
            .filter(|(key, waiting)| waiting.not_before <= now && !self.running.contains_key(key));
        // Networks sort first; among peers transitions do.
        let key = due
            .min_by_key(|(key, waiting)| {
                (matches!(key, Key::Peer(_)), !waiting.is_urgent, waiting.not_before)
            })
            .map(|(key, _)| key.clone())?;
        let waiting = self.waiting.remove(&key)?;
        self.tokens -= 1.0;
        self.running.insert(key.clone(), waiting.status.clone());
        Some((key, waiting.status))
    }

    /// When to poll again.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let due = self
            .waiting
            .iter()
            .filter(|(key, _)| !self.running.contains_key(key))
            .map(|(_, waiting)| waiting.not_before)
            .min()?;
        let missing = (1.0 - self.tokens).max(0.0) / RATE;
        let refilled = self.filled + Duration::from_secs_f64(missing);
        Some(due.max(refilled).max(now))
    }

    /// A write succeeded; returns the status that was written.
    pub fn handle_written(&mut self, key: &Key, now: Instant) -> Option<Status> {
        let status = self.running.remove(key)?;
        let spare = self.last.get(key).map_or(NETWORK_SPARE, |last| last.spare_at(now));
        let spare = (spare - 1.0).max(0.0);
        let last = Last { status: status.clone(), at: now, spare, backoff: Backoff::default() };
        self.last.insert(key.clone(), last);
        Some(status)
    }

    /// The API server does not take this status; it is not tried again, another one is.
    pub fn handle_refused(&mut self, key: &Key, now: Instant) {
        self.handle_written(key, now);
    }

    /// A write failed; it is tried again later, unless a newer status was offered meanwhile.
    pub fn handle_failed(&mut self, key: &Key, now: Instant) {
        let Some(status) = self.running.remove(key) else { return };
        let mut backoff = self.last.get(key).map_or_else(
            || Backoff::new(names::hash64(&[&format!("{key:?}")])),
            |last| last.backoff,
        );
        let not_before = now + backoff.failed();
        if let Some(last) = self.last.get_mut(key) {
            last.backoff = backoff;
        }
        let entry = self.waiting.entry(key.clone()).or_insert(Waiting {
            status,
            not_before,
            is_urgent: true,
        });
        entry.not_before = entry.not_before.max(not_before);
    }

    /// Forgets an object that is gone.
    pub fn forget(&mut self, is_gone: impl Fn(&Key) -> bool) {
        self.waiting.retain(|key, _| !is_gone(key));
        self.last.retain(|key, _| !is_gone(key));
    }

    /// Whether a status of an object waits to be written, or is being written.
    pub fn is_pending(&self, key: &Key) -> bool {
        self.waiting.contains_key(key) || self.running.contains_key(key)
    }

    /// What is, or is about to be, written of an object.
    pub fn last(&self, key: &Key) -> Option<&Status> {
        let waiting = self.waiting.get(key).map(|waiting| &waiting.status);
        let running = || self.running.get(key);
        waiting.or_else(running).or_else(|| self.last.get(key).map(|last| &last.status))
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Last {
    fn spare_at(&self, now: Instant) -> f64 {
        let since = now.saturating_duration_since(self.at).as_secs_f64();
        (self.spare + since / NETWORK_PAUSE.as_secs_f64()).min(NETWORK_SPARE)
    }
}

impl Status {
    /// Whether somebody waits for the difference.
    pub fn is_transition_to(&self, next: &Self) -> bool {
        match (self, next) {
            (Self::Network(before), Self::Network(after)) => {
                differ(&before.conditions, &after.conditions)
                    || before.network_id != after.network_id
                    || before.observed_generation != after.observed_generation
                    || before.conflicts != after.conflicts
            }
            (Self::Peer(before), Self::Peer(after)) => {
                before.state != after.state
                    || before.applied_revision != after.applied_revision
                    || before.applied_error != after.applied_error
                    || before.node_id != after.node_id
                    || differ(&before.conditions, &after.conditions)
            }
            (Self::Network(_), Self::Peer(_)) | (Self::Peer(_), Self::Network(_)) => true,
        }
    }
}

fn differ(before: &[Condition], after: &[Condition]) -> bool {
    let short = |condition: &Condition| {
        (condition.type_.clone(), condition.status.clone(), condition.reason.clone())
    };
    before.len() != after.len()
        || before.iter().map(short).zip(after.iter().map(short)).any(|(a, b)| a != b)
}

/// Writes one status.
///
/// # Errors
/// As the API server says.
pub async fn write(client: Client, key: &Key, status: &Status) -> Result<(), Failure> {
    let params = PatchParams::apply(names::STATUS_MANAGER).force();
    let body = |kind: &str, name: &str, status: serde_json::Value| {
        json!({
            "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION),
            "kind": kind,
            "metadata": {"name": name},
            "status": status,
        })
    };
    match (key, status) {
        (Key::Network(name) | Key::Malformed(name), Status::Network(status)) => {
            let patch = Patch::Apply(body("EasyNetwork", name, json!(status)));
            let networks: Api<kube::core::DynamicObject> =
                Api::all_with(client, &kube::core::ApiResource::erase::<EasyNetwork>(&()));
            api::within(api::WITHIN, networks.patch_status(name, &params, &patch)).await?;
        }
        (Key::Peer(name), Status::Peer(status)) => {
            let patch = Patch::Apply(body("EasyPeer", name, json!(status)));
            let peers: Api<kube::core::DynamicObject> =
                Api::all_with(client, &kube::core::ApiResource::erase::<EasyPeer>(&()));
            api::within(api::WITHIN, peers.patch_status(name, &params, &patch)).await?;
        }
        (Key::Network(_) | Key::Malformed(_), Status::Peer(_))
        | (Key::Peer(_), Status::Network(_)) => {}
    }
    Ok(())
}

/// Tells people by an Event.
///
/// # Errors
/// As the API server says when it was asked for the last time: a new cluster has no namespace for events at first.
pub async fn tell(client: Client, reporter: &str, notice: &Notice) -> Result<(), Failure> {
    let now = Timestamp::now();
    let (regarding, namespace) = match &notice.about {
        About::Network { name, uid } => {
            let regarding = ObjectReference {
                api_version: Some(format!("{}/{}", crds::GROUP, crds::VERSION)),
                kind: Some("EasyNetwork".to_owned()),
                name: Some(name.clone()),
                uid: Some(uid.clone()),
                ..ObjectReference::default()
            };
            // Where events of objects without a namespace live.
            (regarding, "default".to_owned())
        }
        About::Pod { namespace, name, uid } => {
            let regarding = ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Pod".to_owned()),
                namespace: Some(namespace.clone()),
                name: Some(name.clone()),
                uid: Some(uid.clone()),
                ..ObjectReference::default()
            };
            (regarding, namespace.clone())
        }
    };
    let name = regarding.name.clone().unwrap_or_default();
    let mut note = notice.message.clone();
    // The API server takes 1 kB.
    while note.len() > 1000 {
        note.pop();
    }
    let event = Event {
        metadata: ObjectMeta {
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        event_time: Some(MicroTime(now)),
        type_: Some(if notice.warning { "Warning" } else { "Normal" }.to_owned()),
        reason: Some(notice.reason.clone()),
        action: Some("Reconcile".to_owned()),
        note: Some(note),
        regarding: Some(regarding),
        reporting_controller: Some(format!("{}/operator", crds::GROUP)),
        reporting_instance: Some(reporter.to_owned()),
        ..Event::default()
    };
    let events: Api<Event> = Api::namespaced(client, &namespace);
    let mut pauses = TELL_AGAIN_AFTER.into_iter();
    loop {
        let told = api::within(api::WITHIN, events.create(&PostParams::default(), &event)).await;
        match (told, pauses.next()) {
            (Ok(_), _) => return Ok(()),
            // An answer that came too late.
            (Err(failure), _) if failure.is_conflict() => return Ok(()),
            (Err(failure), None) => return Err(failure),
            (Err(_), Some(pause)) => tokio::time::sleep(pause).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use crds::{network::PeersStatus, peer::PeerState};

    use super::*;

    fn peer(state: PeerState, direct: u32) -> Status {
        let status = EasyPeerStatus {
            state: Some(state),
            direct: Some(direct),
            ..EasyPeerStatus::default()
        };
        Status::Peer(Box::new(status))
    }

    fn network(total: u32, generation: i64) -> Status {
        let status = EasyNetworkStatus {
            observed_generation: Some(generation),
            peers: Some(PeersStatus { total, ..PeersStatus::default() }),
            ..EasyNetworkStatus::default()
        };
        Status::Network(Box::new(status))
    }

    fn key(name: &str) -> Key {
        Key::Peer(name.to_owned())
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// Writes everything that may be written at `now`.
    fn drain(gate: &mut Gate, now: Instant) -> Vec<(Key, Status)> {
        let written: Vec<_> = std::iter::from_fn(|| gate.poll_write(now)).collect();
        for (key, _) in &written {
            gate.handle_written(key, now);
        }
        written
    }

    #[test]
    fn a_status_that_is_there_already_is_not_written() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        let status = peer(PeerState::Alone, 0);

        assert!(gate.offer(key("a"), Some(&status), status.clone(), t0));

        assert_eq!(gate.poll_write(t0), None);
        assert!(gate.is_empty());
    }

    #[test]
    fn a_transition_goes_at_once_and_counters_wait() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        gate.offer(key("a"), None, peer(PeerState::Alone, 0), t0);
        assert_eq!(drain(&mut gate, t0).len(), 1);

        gate.offer(key("a"), None, peer(PeerState::Alone, 1), t0 + s(1));
        assert_eq!(drain(&mut gate, t0 + s(1)), []);
        assert_eq!(gate.poll_timeout(t0 + s(1)), Some(t0 + s(10)));
        gate.offer(key("a"), None, peer(PeerState::Connected, 1), t0 + s(2));
        assert_eq!(drain(&mut gate, t0 + s(2)), [(key("a"), peer(PeerState::Connected, 1))]);
    }

    #[test]
    fn of_several_statuses_the_newest_counts() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        for direct in 0..5 {
            gate.offer(key("a"), None, peer(PeerState::Connected, direct), t0);
        }

        assert_eq!(drain(&mut gate, t0), [(key("a"), peer(PeerState::Connected, 4))]);
    }

    #[test]
    fn a_networks_counters_are_written_a_few_times_and_then_every_minute() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        let mut written = Vec::new();
        let mut live = None;
        for second in 0..300 {
            let now = t0 + s(second);
            let total = u32::try_from(second).unwrap();
            gate.offer(Key::Network("n".to_owned()), live.as_ref(), network(total, 1), now);
            for (_, status) in drain(&mut gate, now) {
                written.push(second);
                live = Some(status);
            }
        }

        assert_eq!(written.len(), 3 + 4, "{written:?}");
        assert!(written[3..].windows(2).all(|pair| pair[1] - pair[0] >= 59), "{written:?}");
    }

    #[test]
    fn a_thousand_flapping_members_cause_no_more_than_twenty_writes_in_any_second() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        let mut written: Vec<u64> = Vec::new();
        for step in 0..500_u64 {
            let now = t0 + Duration::from_millis(step * 20);
            let state = if step % 2 == 0 { PeerState::Lost } else { PeerState::Connected };
            for member in 0..1000 {
                gate.offer(key(&member.to_string()), None, peer(state, 0), now);
            }
            assert!(gate.len() <= MOST);
            written.extend(drain(&mut gate, now).iter().map(|_| step * 20));
        }

        for start in &written {
            let within = written.iter().filter(|at| (*start..start + 1000).contains(at)).count();
            assert!(within <= 20, "{within} writes in the second from {start} ms");
        }
        assert!(written.len() > 140, "{}", written.len());
    }

    #[test]
    fn a_failed_write_is_tried_again_with_the_newest_status() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        gate.offer(key("a"), None, peer(PeerState::Alone, 0), t0);
        let (failed, _) = gate.poll_write(t0).unwrap();
        gate.offer(key("a"), None, peer(PeerState::Connected, 1), t0);

        gate.handle_failed(&failed, t0);

        assert_eq!(drain(&mut gate, t0), []);
        assert_eq!(drain(&mut gate, t0 + s(1)), [(key("a"), peer(PeerState::Connected, 1))]);
    }

    #[test]
    fn a_refused_status_is_not_tried_again_but_another_one_is() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        let malformed = Key::Malformed("n".to_owned());
        gate.offer(malformed.clone(), None, network(1, 1), t0);
        gate.poll_write(t0).unwrap();

        gate.handle_refused(&malformed, t0);

        assert_eq!(drain(&mut gate, t0 + s(100)), []);
        assert_eq!(gate.last(&malformed), Some(&network(1, 1)));
        gate.offer(malformed.clone(), None, network(1, 2), t0 + s(100));
        assert_eq!(drain(&mut gate, t0 + s(100)), [(malformed, network(1, 2))]);
    }

    #[test]
    fn networks_go_before_peers() {
        let t0 = Instant::now();
        let mut gate = Gate::new(t0);
        for member in 0..10 {
            gate.offer(key(&member.to_string()), None, peer(PeerState::Alone, 0), t0);
        }
        gate.offer(Key::Network("n".to_owned()), None, network(1, 1), t0);

        assert_eq!(gate.poll_write(t0).unwrap().0, Key::Network("n".to_owned()));
    }
}
