//! The leader's loop: hears, plans, and carries out.
//!
//! One task owns all of it. What it hears is the world (the latest counts), what members report, and how its own writes went; each
//! makes the next *pass* due, and passes are a moment apart, so a thousand changes are one. A pass plans every network, which is
//! pure, hands what is to be written to the [`Queue`] and the [`Gate`], and publishes what the feed delivers. Writes run beside it,
//! bounded, each with its deadline. Cancelling drops what runs; whoever leads next starts from what the API server has.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use crds::EasyPeer;
use futures_util::{Future, FutureExt, StreamExt, stream::FuturesUnordered};
use ipnet::Ipv4Net;
use k8s_openapi::{api::core::v1::Secret as ApiSecret, jiff::Timestamp};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use rand_chacha::ChaCha12Rng;
use session::issuer::Issuer;
use task::CancellationToken;
use telemetry::TRACE;
use tokio::sync::watch;
use tracing::{Instrument, Span};

use crate::{
    api::{self, Failure},
    apply::{self, Queue, Write, Written},
    credentials::{self, Keys},
    facts,
    feed::{self, Event, MemberKey, Report, Reports, Table},
    index::World,
    metrics::Metrics,
    names,
    pace::{News, Pace},
    plan::{
        self, Credentials, Desired, Install, Object, ObjectKey, Reported, Target, agents,
        cni::Facts,
        status::{About, Notice, Reason},
    },
    records::{self, Records},
    status::{self, Gate, Key, Status},
};

mod change;

use change::Changes;

/// Even if nothing is heard: what depends on time is looked at again.
const IDLE: Duration = Duration::from_secs(60);
/// What was just written is believed before the watch says so.
const BELIEVED: Duration = Duration::from_secs(10);
/// Facts about CNIs are read again after this.
const FACTS: Duration = Duration::from_secs(60);
/// Members of a deleted network are told to go for so long.
const FAREWELL: Duration = Duration::from_secs(300);
/// Agents of a deleted network may clean up before their pods go.
const CLEAN_UP: Duration = Duration::from_secs(20);
/// Reports taken in before the next look at anything else.
const REPORTS_AT_ONCE: usize = 512;
/// Events that are remembered as told; with more, some may be told again.
const MOST_TOLD: usize = 1024;

/// What the loop is connected to.
#[derive(Debug)]
pub struct Inputs {
    pub world: watch::Receiver<Arc<World>>,
    pub reports: Reports,
    /// Everything is to be taken down.
    pub retire: watch::Receiver<bool>,
}

/// The loop.
pub struct Reconciler {
    client: Client,
    install: Install,
    /// Of this process, as events name it.
    reporter: String,
    /// Where others reach this process.
    address: std::net::IpAddr,
    table: watch::Sender<Arc<Table>>,
    metrics: Metrics,
    rng: ChaCha12Rng,
    hearing_since: i64,
    queue: Queue,
    gate: Gate,
    facts: Facts,
    facts_due: Instant,
    written: BTreeMap<String, (Arc<EasyPeer>, Instant)>,
    networks: BTreeMap<String, State>,
    farewell: BTreeMap<String, Instant>,
    told: BTreeSet<Notice>,
    next: Option<Instant>,
    running: FuturesUnordered<Job>,
}

/// What is remembered of a network between two passes.
#[derive(Debug, Default)]
struct State {
    keys: Option<(String, Result<Keys, credentials::Unusable>)>,
    secret_in_flight: bool,
    reports: BTreeMap<MemberKey, Reported>,
    lost: BTreeMap<Ipv4Net, i64>,
    records: Records,
    memo: plan::Memo,
    revoked_at: Option<i64>,
    /// The generation that the last pass was about.
    planned: Option<i64>,
    changes: Changes,
}

type Job = Pin<Box<dyn Future<Output = Done> + Send>>;

/// How something went that ran beside the loop.
enum Done {
    Write(Write, Result<Written, Failure>),
    Status(Key, Result<(), Failure>),
    Told(Result<(), Failure>),
    Secret(String, Result<(), Failure>),
    Facts(Box<Facts>),
}

impl std::fmt::Debug for Reconciler {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reconciler")
            .field("networks", &self.networks.keys())
            .field("queue", &self.queue.len())
            .field("running", &self.running.len())
            .finish_non_exhaustive()
    }
}

impl Reconciler {
    pub fn new(
        client: Client,
        install: Install,
        reporter: String,
        address: std::net::IpAddr,
        table: watch::Sender<Arc<Table>>,
        metrics: Metrics,
        rng: ChaCha12Rng,
    ) -> Self {
        let now = Instant::now();
        Self {
            client,
            install,
            reporter,
            address,
            table,
            metrics,
            rng,
            hearing_since: Timestamp::now().as_second(),
            queue: Queue::default(),
            gate: Gate::new(now),
            facts: Facts::default(),
            facts_due: now,
            written: BTreeMap::new(),
            networks: BTreeMap::new(),
            farewell: BTreeMap::new(),
            told: BTreeSet::new(),
            next: None,
            running: FuturesUnordered::new(),
        }
    }

    /// Runs until cancelled.
    ///
    /// # Errors
    /// When what it hears from has ended.
    pub async fn run(mut self, mut inputs: Inputs, token: CancellationToken) -> anyhow::Result<()> {
        inputs.world.wait_for(|world| world.is_synced()).await?;
        let world = inputs.world.borrow_and_update().clone();
        self.facts = facts::read(&self.client, &world, Facts::default()).await;
        self.facts_due = Instant::now() + FACTS;
        let mut pace = Pace::new(Instant::now());
        loop {
            self.start_jobs();
            let now = Instant::now();
            let timers = [
                pace.poll_timeout(),
                self.next.map(|next| pace.not_before(next)),
                self.queue.poll_timeout(now),
                self.gate.poll_timeout(now),
                Some(self.facts_due),
            ];
            let wake = timers.into_iter().flatten().min().unwrap_or(now + IDLE);
            let is_dirty = tokio::select! {
                biased;
                () = token.cancelled() => return Ok(()),
                Some(done) = self.running.next(), if !self.running.is_empty() => self.handle_done(done),
                report = inputs.reports.next() => {
                    self.handle_report(report);
                    for _ in 0..REPORTS_AT_ONCE {
                        let Some(report) = inputs.reports.try_next() else { break };
                        self.handle_report(report);
                    }
                    true
                }
                changed = inputs.world.changed() => {
                    changed?;
                    true
                }
                changed = inputs.retire.changed() => {
                    changed?;
                    true
                }
                () = tokio::time::sleep_until(wake.into()) => {
                    self.next.is_some_and(|next| next <= Instant::now())
                }
            };
            let now = Instant::now();
            if is_dirty {
                let is_edit = self.is_edited(&inputs.world.borrow());
                pace.heard(if is_edit { News::Edit } else { News::Other }, now);
                self.next = None;
            }
            if self.facts_due <= now {
                self.facts_due = now + FACTS;
                let (client, world) = (self.client.clone(), inputs.world.borrow().clone());
                let before = self.facts.clone();
                let read = async move { facts::read(&client, &world, before).await };
                self.running.push(read.map(|facts| Done::Facts(Box::new(facts))).boxed());
            }
            if pace.is_due(now) {
                let world = inputs.world.borrow_and_update().clone();
                let retire = *inputs.retire.borrow();
                self.pass(&world, retire);
                let took = now.elapsed();
                self.metrics.passed(took);
                pace.passed(now, took);
            }
        }
    }

    /// Whether somebody changed what is wanted since the last pass.
    fn is_edited(&self, world: &World) -> bool {
        world.networks.iter().any(|(name, network)| {
            let state = self.networks.get(name);
            state.is_none_or(|state| state.planned != network.metadata.generation)
        })
    }

    /// Starts what may run now.
    fn start_jobs(&mut self) {
        let now = Instant::now();
        while let Some(write) = self.queue.poll_write(now) {
            let (client, span) = (self.client.clone(), self.trace(&write));
            let job = async move {
                let outcome = apply::write(client, &write).await;
                Done::Write(write, outcome)
            };
            self.running.push(job.instrument(span).boxed());
        }
        while let Some((key, status)) = self.gate.poll_write(now) {
            let (client, span) = (self.client.clone(), self.trace_status(&key));
            let job = async move {
                let outcome = status::write(client, &key, &status).await;
                Done::Status(key, outcome)
            };
            self.running.push(job.instrument(span).boxed());
        }
        self.metrics.waiting(self.queue.len(), self.gate.len());
    }

    /// The span of a write, if it belongs to a change.
    fn trace(&self, write: &Write) -> Span {
        let state = write.network().and_then(|network| self.networks.get(network));
        let Some(parent) = state.and_then(|state| state.changes.span()) else {
            return Span::none();
        };
        let ObjectKey { target, name, .. } = write.key();
        tracing::info_span!(target: TRACE, parent: parent, "apply", kind = ?target, name)
    }

    /// The span of the write of a status, if it belongs to a change; also of the one that says that the change is in force.
    fn trace_status(&self, key: &Key) -> Span {
        let (state, kind, name) = match key {
            Key::Network(name) => (self.networks.get(name), "EasyNetwork", name),
            Key::Peer(name) => {
                let mut states = self.networks.values();
                (states.find(|state| state.changes.concerns(name)), "EasyPeer", name)
            }
            Key::Malformed(_) => return Span::none(),
        };
        let Some(parent) = state.and_then(|state| state.changes.traceparent()) else {
            return Span::none();
        };
        let span = tracing::info_span!(target: TRACE, parent: None, "status", kind, name);
        // As if from elsewhere: the change may be over before it.
        telemetry::follow(&span, parent);
        span
    }

    /// Takes in how something went; whether there is something to plan.
    fn handle_done(&mut self, done: Done) -> bool {
        let now = Instant::now();
        match done {
            Done::Write(write, Ok(written)) => {
                self.metrics.wrote(write.key().target, "ok");
                self.queue.handle_written(write.key(), &written, now);
                if let Written::Applied { object, .. } = written
                    && write.key().target == Target::Peer
                    && let Ok(peer) = object.try_parse::<EasyPeer>()
                {
                    self.written.insert(peer.name_any(), (Arc::new(peer), now));
                    return true;
                }
                false
            }
            Done::Write(write, Err(failure)) => {
                self.metrics.wrote(write.key().target, outcome(&failure));
                let key = write.key().clone();
                let pause = self.queue.handle_failed(write, now);
                tracing::warn!(kind = ?key.target, name = %key.name, error = %failure, ?pause, "Write failed");
                false
            }
            Done::Status(key, Ok(())) => {
                self.metrics.wrote_status("ok");
                let written = self.gate.handle_written(&key, now);
                if let (Key::Network(name), Some(Status::Network(status))) = (&key, &written)
                    && let Some(state) = self.networks.get_mut(name)
                {
                    state.changes.read(status);
                }
                tracing::debug!(?key, is_known = written.is_some(), "Status written");
                false
            }
            Done::Status(key @ Key::Malformed(_), Err(failure)) if failure.is_answer() => {
                self.metrics.wrote_status(outcome(&failure));
                tracing::debug!(?key, error = %failure, "Status not taken");
                self.gate.handle_refused(&key, now);
                false
            }
            Done::Status(key, Err(failure)) => {
                self.metrics.wrote_status(outcome(&failure));
                if failure.is_not_found() {
                    self.gate.forget(|gone| *gone == key);
                } else {
                    tracing::debug!(?key, error = %failure, "Status not written");
                }
                self.gate.handle_failed(&key, now);
                false
            }
            Done::Told(Ok(())) => false,
            Done::Told(Err(failure)) => {
                tracing::debug!(error = %failure, "Event not told");
                false
            }
            Done::Secret(network, outcome) => {
                if let Some(state) = self.networks.get_mut(&network) {
                    state.secret_in_flight = false;
                }
                match outcome {
                    Ok(()) => tracing::info!(network, "Keys written"),
                    // Another one made it; the watch brings it.
                    Err(failure) if failure.is_conflict() => {}
                    Err(failure) => tracing::warn!(network, error = %failure, "Keys not written"),
                }
                true
            }
            Done::Facts(facts) => {
                self.facts = *facts;
                // Also a look at everything once a minute, should some news have been lost.
                true
            }
        }
    }

    fn handle_report(&mut self, report: Report) {
        let state = self.networks.entry(report.network).or_default();
        let reported = state.reports.entry(report.member.clone()).or_default();
        match report.event {
            Event::Enrolled { keys, from, version } => {
                tracing::debug!(member = %report.member, "Member enrolled");
                *reported = Reported {
                    online: true,
                    keys: Some(keys),
                    from: Some(from),
                    version,
                    applied: reported.applied,
                    ..Reported::default()
                };
            }
            Event::Applied { revision, epochs: _ } => {
                reported.applied = Some(revision);
                reported.failed = None;
            }
            Event::Failed { revision, error, rolled_back } => {
                if rolled_back && reported.applied == Some(revision) {
                    reported.applied = None;
                }
                reported.failed = Some((revision, error));
            }
            Event::Status(status) => {
                if status.revision != 0 {
                    reported.applied = Some(status.revision);
                }
                reported.status = Some(*status);
            }
            Event::Clock { ahead_s } => reported.ahead_s = ahead_s,
            Event::Retired => reported.retired = true,
            Event::Gone => reported.online = false,
        }
    }

    /// Plans everything once.
    fn pass(&mut self, world: &Arc<World>, retire: bool) {
        let now = Instant::now();
        let unix = Timestamp::now().as_second();
        let world = self.with_written(world, now);
        let mut round = Round { objects: self.own_objects(&world), ..Round::default() };
        for (name, network) in &world.networks {
            self.plan(name, network, &world, retire, (now, unix), &mut round);
        }
        self.departing(&world, &mut round.table, now);
        let table = &mut round.table;
        table.whole = names_of_networks(&world).all(|network| table.networks.contains_key(network));
        let all_retired = retire && self.all_retired(&world, table, now);
        // Before all else: thousands of sessions go on with it while this task sees to what people read.
        self.publish(std::mem::take(table));
        self.say(&world, &mut round, (now, unix));
        if self.farewell.values().any(|since| now < *since + CLEAN_UP) {
            round.look_again(unix + 2);
        }
        round.obsolete.extend(self.orphans(&world, now));
        if retire {
            round.take_down(&world, all_retired);
        }
        self.queue.want(&world, |_| true, round.objects, round.obsolete, now);
        self.next = round.next.map(|at| {
            now + Duration::from_secs(u64::try_from(at.saturating_sub(unix)).unwrap_or_default())
        });
    }

    /// Plans one network, and sees to its keys.
    fn plan(
        &mut self,
        name: &str,
        network: &Arc<crds::EasyNetwork>,
        world: &World,
        retire: bool,
        (now, unix): (Instant, i64),
        round: &mut Round,
    ) {
        self.farewell.remove(name);
        let credentials = self.credentials(name, network, world);
        let mut state = self.networks.remove(name).unwrap_or_default();
        state.changes.note(network, now);
        let planning = state.changes.span().map_or_else(
            Span::none,
            |change| tracing::info_span!(target: TRACE, parent: change, "plan"),
        );
        let input = plan::Input {
            world,
            network,
            install: &self.install,
            credentials: &credentials,
            reports: &state.reports,
            facts: &self.facts,
            lost: &state.lost,
            hearing_since: self.hearing_since,
            retire,
            now: unix,
        };
        let mut desired = planning.in_scope(|| plan::plan(&input, &mut state.memo));
        state.changes.carry(&mut desired, now);
        state.planned = network.metadata.generation;
        state.lost = std::mem::take(&mut desired.lost);
        round.objects.append(&mut desired.objects);
        round.obsolete.append(&mut desired.obsolete);
        if let Some(next) = desired.next {
            round.look_again(next);
        }
        if desired.generate && !state.secret_in_flight {
            state.secret_in_flight = true;
            self.generate(name, network, unix);
        }
        forget_strangers(&mut state, &desired);
        if let Some(part) = self.feed_part(name, &mut state, &mut desired, unix) {
            round.table.networks.insert(name.to_owned(), part);
        }
        self.networks.insert(name.to_owned(), state);
        round.planned.push((name.to_owned(), Arc::clone(network), desired));
    }

    /// Offers what people read, and forgets of whom there is nothing to say any more.
    fn say(&mut self, world: &World, round: &mut Round, (now, unix): (Instant, i64)) {
        for (name, network, desired) in std::mem::take(&mut round.planned) {
            if !self.offer_status(&name, &network, world, desired, now) {
                // Asked again when some of those that wait were written.
                round.look_again(unix + 5);
            }
        }
        self.offer_malformed(world, unix, now);
        self.gate.forget(|key| match key {
            Key::Malformed(name) => !is_malformed(world, name),
            Key::Network(name) => !world.networks.contains_key(name),
            Key::Peer(name) => !world.peers.contains_key(name),
        });
    }

    /// Lets the sessions of the feed see what members shall have, if that is news.
    fn publish(&self, table: Table) {
        self.metrics.table(&table);
        self.table.send_if_modified(|before| {
            let changed = !same(before, &table);
            if changed {
                *before = Arc::new(table);
            }
            changed
        });
    }

    /// The world, with what this loop wrote a moment ago.
    fn with_written(&mut self, world: &Arc<World>, now: Instant) -> Arc<World> {
        self.written.retain(|name, (peer, at)| {
            let seen = world.peers.get(name).is_some_and(|seen| version(seen) >= version(peer));
            !seen && now < *at + BELIEVED
        });
        if self.written.is_empty() {
            return world.clone();
        }
        let mut world = World::clone(world);
        for (name, (peer, _)) in &self.written {
            // The status is another writer's: what the watch saw is newer than an answer to an apply.
            world.peers.insert(name.clone(), peer.clone());
        }
        Arc::new(world)
    }

    /// What the operator itself needs in the cluster.
    fn own_objects(&self, world: &World) -> Vec<Object> {
        let key = format!("{}/{}", self.install.namespace, names::FEED);
        let Some(feed) = world.feed_services.get(&key) else { return Vec::new() };
        let slice = agents::feed_slice(&self.install, feed, self.address);
        agents::feed_config_map(&self.install, feed).into_iter().chain([slice]).collect()
    }

    /// The network's keys, from the Secret that its spec names.
    fn credentials(
        &mut self,
        name: &str,
        network: &crds::EasyNetwork,
        world: &World,
    ) -> Credentials {
        let secret_name = credentials::secret_name(network, name);
        let state = self.networks.entry(name.to_owned()).or_default();
        let Some(secret) = world.secrets.get(&format!("{}/{secret_name}", self.install.namespace))
        else {
            state.keys = None;
            let is_made_here =
                network.spec.network_id.is_none() && network.spec.credentials.is_none();
            let was_made = network.status.as_ref().and_then(|status| status.network_id.clone());
            if is_made_here && was_made.is_none() {
                return Credentials::Absent;
            }
            let hint = match (&network.spec.network_id, was_made) {
                (Some(_), _) => {
                    "apply what `easynet-operator join` prints in a cluster of the network"
                }
                (None, Some(_)) => {
                    "restore it from a backup; without it nobody can become a member of this network"
                }
                (None, None) => "make it, or remove spec.credentials",
            };
            return Credentials::Unusable {
                reason: Reason::CredentialsMissing,
                message: format!(
                    "the Secret {secret_name} is not in the namespace {}; {hint}",
                    self.install.namespace
                ),
            };
        };
        let network_name = network.spec.network_name.clone().unwrap_or_else(|| name.to_owned());
        let version = format!("{secret_name}/{}/{network_name}", secret.version);
        if state.keys.as_ref().is_none_or(|(known, _)| *known != version) {
            state.keys = Some((version, credentials::read(&secret_name, secret, &network_name)));
        }
        let Some((_, read)) = &state.keys else { return Credentials::Absent };
        match read {
            Err(unusable) => {
                Credentials::Unusable { reason: unusable.reason, message: unusable.message.clone() }
            }
            Ok(keys) => {
                let id = keys.issuer.network();
                let asked = network.spec.network_id.as_deref();
                let was = network.status.as_ref().and_then(|status| status.network_id.as_deref());
                let Some(other) = asked.or(was).filter(|other| *other != id.to_string()) else {
                    return Credentials::Ready { network: id };
                };
                Credentials::Unusable {
                    reason: Reason::NetworkIDMismatch,
                    message: format!(
                        "the Secret {secret_name} holds the keys of network {id}, but this EasyNetwork is {other}; restore the Secret, or delete the EasyNetwork and create it anew"
                    ),
                }
            }
        }
    }

    /// Makes the keys of a new network. Never overwrites what is there: that would be another network.
    fn generate(&mut self, name: &str, network: &crds::EasyNetwork, unix: i64) {
        let issuer = Issuer::generate(&mut self.rng);
        let secret_name = credentials::secret_name(network, name);
        let labels = agents::labels_of(name, "credentials");
        let manifest =
            credentials::manifest(&secret_name, &self.install.namespace, &labels, &issuer, unix);
        let secrets: Api<ApiSecret> = Api::namespaced(self.client.clone(), &self.install.namespace);
        let name = name.to_owned();
        let job = async move {
            let secret = match serde_json::from_value::<ApiSecret>(manifest) {
                Ok(secret) => secret,
                Err(error) => {
                    return Done::Secret(
                        name,
                        Err(Failure::Refused(kube::Error::SerdeError(error))),
                    );
                }
            };
            let params = PostParams {
                field_manager: Some(names::FIELD_MANAGER.to_owned()),
                ..PostParams::default()
            };
            let made = api::within(api::WITHIN, secrets.create(&params, &secret)).await;
            Done::Secret(name, made.map(drop))
        };
        self.running.push(job.boxed());
    }

    /// What the feed delivers of a network, and the change of its keys when that is due.
    fn feed_part(
        &mut self,
        name: &str,
        state: &mut State,
        desired: &mut Desired,
        unix: i64,
    ) -> Option<feed::Network> {
        let Some((version, Ok(keys))) = &state.keys else { return None };
        let keys = keys.clone();
        let is_planned = desired.claim != wire::lsa::ClusterBody::default();
        if !is_planned {
            // Rejected: what runs goes on as it is.
            return self.table.borrow().networks.get(name).cloned();
        }
        let now = u64::try_from(unix).unwrap_or_default();
        for node in &desired.revoked {
            if !keys.is_typed && state.records.revoke(*node, &keys.issuer, now, &mut self.rng) {
                tracing::info!(network = name, "Member revoked");
                state.revoked_at = Some(unix);
            }
        }
        let seen = state.reports.values().filter_map(|reported| reported.status.as_ref());
        let seen = seen.map(|status| status.epoch_seen).max().unwrap_or_default();
        let current = keys.issuer.current_epoch();
        if !keys.is_typed
            && !state.secret_in_flight
            && let Some(epoch) =
                records::next_epoch(current, keys.since, seen, state.revoked_at, unix)
        {
            let (secret_name, version) = version.split_once('/').unwrap_or_default();
            let version = version.split('/').next().unwrap_or_default();
            state.secret_in_flight = true;
            let mut patch = credentials::rotation(epoch, unix);
            // Only if nobody else changed it meanwhile.
            patch["metadata"]["resourceVersion"] = version.into();
            let secrets: Api<ApiSecret> =
                Api::namespaced(self.client.clone(), &self.install.namespace);
            let (network, secret_name) = (name.to_owned(), secret_name.to_owned());
            tracing::info!(network, epoch, "Key epoch changes");
            let job = async move {
                let (params, patch) = (PatchParams::default(), Patch::Merge(patch));
                let written =
                    api::within(api::WITHIN, secrets.patch(&secret_name, &params, &patch)).await;
                Done::Secret(network, written.map(drop))
            };
            self.running.push(job.boxed());
        }
        Some(feed::Network {
            issuer: keys.issuer.clone(),
            epochs: if keys.is_typed { Vec::new() } else { records::epochs(current) },
            members: std::mem::take(&mut desired.members),
            records: state.records.all(&keys.issuer, &desired.claim, now, &mut self.rng),
        })
    }

    /// Offers what people read to whoever writes it; `false` if some of it found no room.
    fn offer_status(
        &mut self,
        name: &str,
        network: &crds::EasyNetwork,
        world: &World,
        desired: Desired,
        now: Instant,
    ) -> bool {
        let about =
            About::Network { name: name.to_owned(), uid: network.uid().unwrap_or_default() };
        let before = network.status.as_ref().map(|status| status.conditions.as_slice());
        let transitions = plan::status::transitions(
            &about,
            before.unwrap_or_default(),
            &desired.status.conditions,
        );
        for notice in transitions.into_iter().chain(desired.events) {
            self.tell(notice);
        }
        let changes = &mut self.networks.entry(name.to_owned()).or_default().changes;
        let live = network.status.clone();
        offer_network(&mut self.gate, changes, name, live, desired.status, now);
        let mut has_room = true;
        for (peer, status) in desired.peer_status {
            let live = world.peers.get(&peer).and_then(|peer| peer.status.clone());
            let live = live.map(|status| Status::Peer(Box::new(status)));
            let status = Status::Peer(Box::new(status));
            has_room &= self.gate.offer(Key::Peer(peer), live.as_ref(), status, now);
        }
        has_room
    }

    /// Of an EasyNetwork that does not parse an Event and the status say so; all that runs is left alone.
    fn offer_malformed(&mut self, world: &World, unix: i64, now: Instant) {
        self.metrics.malformed(world.malformed.len());
        for ((kind, name), malformed) in &world.malformed {
            if *kind != "EasyNetwork" {
                continue;
            }
            let (status, notice) = plan::status::malformed(name, malformed, unix);
            self.tell(notice);
            let status = Status::Network(Box::new(status));
            // What was written cannot be read back, so it is compared with what was last offered.
            let key = Key::Malformed(name.clone());
            let last = self.gate.last(&key).cloned();
            let unchanged = last.as_ref().is_some_and(|last| !last.is_transition_to(&status));
            if !unchanged {
                self.gate.offer(key, None, status, now);
            }
        }
    }

    fn tell(&mut self, notice: Notice) {
        if self.told.len() >= MOST_TOLD {
            self.told.clear();
        }
        if !self.told.insert(notice.clone()) {
            return;
        }
        // The opposite of what was told before may come again.
        self.told.retain(|other| {
            other.about != notice.about
                || *other == notice
                || matches!(other.about, About::Pod { .. })
        });
        let (client, reporter) = (self.client.clone(), self.reporter.clone());
        let job = async move { Done::Told(status::tell(client, &reporter, &notice).await) };
        self.running.push(job.boxed());
    }

    /// Members of networks that were deleted are told to clean up.
    fn departing(&mut self, world: &World, table: &mut Table, now: Instant) {
        let before = self.table.borrow().clone();
        for (name, part) in &before.networks {
            if table.networks.contains_key(name) || is_malformed(world, name) {
                continue;
            }
            if world.networks.contains_key(name) {
                continue;
            }
            let since = *self.farewell.entry(name.clone()).or_insert(now);
            if now >= since + FAREWELL {
                self.networks.remove(name);
                continue;
            }
            let mut part = part.clone();
            for member in part.members.values_mut() {
                member.retire = true;
            }
            table.networks.insert(name.clone(), part);
        }
        // Those that were deleted while nobody looked.
        for network in world.daemon_sets.values().filter_map(|set| set.labels.get(names::NETWORK)) {
            if !world.networks.contains_key(network) && !is_malformed(world, network) {
                self.farewell.entry(network.clone()).or_insert(now);
            }
        }
        for (kind, name) in world.malformed.keys() {
            if *kind == "EasyNetwork"
                && let Some(part) = before.networks.get(name)
            {
                table.networks.insert(name.clone(), part.clone());
            }
        }
        self.farewell
            .retain(|name, since| now < *since + FAREWELL && !world.networks.contains_key(name));
    }

    /// Objects of networks that do not exist, should the cluster's garbage collector not have seen to them.
    fn orphans(&self, world: &World, now: Instant) -> BTreeSet<ObjectKey> {
        let is_gone = |network: &str| {
            !world.networks.contains_key(network)
                && !is_malformed(world, network)
                && self.farewell.get(network).is_none_or(|since| {
                    now >= *since + CLEAN_UP || self.has_retired(world, network)
                })
        };
        let sets = world.daemon_sets.iter().filter_map(|(key, live)| {
            let network = live.labels.get(names::NETWORK)?;
            let (namespace, name) = key.split_once('/')?;
            is_gone(network).then(|| ObjectKey {
                target: Target::DaemonSet,
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            })
        });
        let peers = world.peers.iter().filter(|(_, peer)| is_gone(&peer.spec.network));
        let peers = peers.map(|(name, _)| ObjectKey {
            target: Target::Peer,
            namespace: String::new(),
            name: name.clone(),
        });
        sets.chain(peers).collect()
    }

    /// Whether every member of a network that can be asked has cleaned up: those that have a session, and each agent that runs.
    fn has_retired(&self, world: &World, network: &str) -> bool {
        let nothing = BTreeMap::new();
        let reports = self.networks.get(network).map_or(&nothing, |state| &state.reports);
        let mut agents = world.agents.values().filter(|pod| {
            pod.network == network && !pod.node.is_empty() && !pod.ended && pod.trouble.is_none()
        });
        reports.values().all(|reported| reported.retired || !reported.online)
            && agents.all(|pod| {
                let reported = reports.get(&MemberKey::Node(pod.node.clone()));
                reported.is_some_and(|reported| reported.retired)
            })
    }

    fn all_retired(&self, world: &World, table: &Table, now: Instant) -> bool {
        let leaving = self.farewell.iter().filter(|(_, since)| now < **since + CLEAN_UP);
        table
            .networks
            .keys()
            .chain(leaving.map(|(network, _)| network))
            .all(|network| self.has_retired(world, network))
    }
}

/// What one pass comes to.
#[derive(Debug, Default)]
struct Round {
    objects: Vec<Object>,
    obsolete: BTreeSet<ObjectKey>,
    table: Table,
    planned: Vec<(String, Arc<crds::EasyNetwork>, Desired)>,
    /// When the answer may be another one without anything happening (unix seconds).
    next: Option<i64>,
}

impl Round {
    fn look_again(&mut self, at: i64) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Everything goes, once all members have cleaned up.
    fn take_down(&mut self, world: &World, all_retired: bool) {
        if all_retired {
            self.objects.retain(|object| object.key.target == Target::EndpointSlice);
            self.obsolete.extend(everything(world));
            return;
        }
        // Nothing is made any more, and nothing taken away from those who still clean up.
        self.objects
            .retain(|object| matches!(object.key.target, Target::Peer | Target::EndpointSlice));
        self.obsolete.clear();
    }
}

/// Offers the status of a network to whoever writes it. What stands there already, as another operator wrote it, is not written.
fn offer_network(
    gate: &mut Gate,
    changes: &mut Changes,
    name: &str,
    live: Option<crds::EasyNetworkStatus>,
    status: crds::EasyNetworkStatus,
    now: Instant,
) {
    let key = Key::Network(name.to_owned());
    let live = live.map(|status| Status::Network(Box::new(status)));
    gate.offer(key.clone(), live.as_ref(), Status::Network(Box::new(status.clone())), now);
    if !gate.is_pending(&key) {
        changes.read(&status);
    }
}

/// Reports of those who are neither members nor connected are dropped, so that they do not pile up.
fn forget_strangers(state: &mut State, desired: &Desired) {
    state
        .reports
        .retain(|member, reported| reported.online || desired.members.contains_key(member));
}

/// All that was made for networks.
fn everything(world: &World) -> Vec<ObjectKey> {
    let sets = world.daemon_sets.keys().filter_map(|key| {
        let (namespace, name) = key.split_once('/')?;
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        Some(ObjectKey { target: Target::DaemonSet, namespace, name })
    });
    let peers = world.peers.keys().map(|name| ObjectKey {
        target: Target::Peer,
        namespace: String::new(),
        name: name.clone(),
    });
    sets.chain(peers).collect()
}

/// Every EasyNetwork that exists, readable or not.
fn names_of_networks(world: &World) -> impl Iterator<Item = &String> {
    let malformed = world.malformed.keys().filter(|(kind, _)| *kind == "EasyNetwork");
    world.networks.keys().chain(malformed.map(|(_, name)| name))
}

fn is_malformed(world: &World, network: &str) -> bool {
    world.malformed.contains_key(&("EasyNetwork", network.to_owned()))
}

/// Versions of one object are numbers that grow; see KEP-5504.
fn version(peer: &EasyPeer) -> u64 {
    peer.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default()
}

fn same(a: &Table, b: &Table) -> bool {
    a.whole == b.whole
        && a.networks.len() == b.networks.len()
        && a.networks.iter().zip(&b.networks).all(|((a_name, a), (b_name, b))| {
            a_name == b_name
                && a.issuer.network() == b.issuer.network()
                && a.issuer.current_epoch() == b.issuer.current_epoch()
                && a.members == b.members
                && a.records == b.records
        })
}

fn outcome(failure: &Failure) -> &'static str {
    if failure.is_conflict() {
        "conflict"
    } else if failure.is_forbidden() {
        "forbidden"
    } else if failure.is_not_found() {
        "not_found"
    } else {
        match failure {
            Failure::Late(_) => "late",
            Failure::Refused(_) => "failed",
        }
    }
}

#[cfg(test)]
mod tests;
