//! A node that a server configures: what it begins with, and how later revisions come into force.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use config::{Partial, PassedOver, Settings};
use netio::{
    resolve::{self, Resolver},
    task::TaskGroup,
};
use rpc::feed::{Applied, Desired};
use session::identity::Identity;
use tokio::sync::watch;
use wire::id::NodeKeys;

use super::{aead, lobby::Lobby, stop_signal, unix_now};
use crate::{
    admin::Answers,
    args::Run,
    error::Failure,
    source::{
        FeedUrl, Standing,
        confirm::{Confirm, Verdict},
        feed::{self, Link, Parts},
        kept::Store,
        report,
        trace::Trace,
    },
    state::State,
};

/// A node that has a configuration on disk waits no longer for the server's, nor longer than until dialling failed once.
const SERVER_WITHIN: Duration = Duration::from_secs(2);
const CLOSE_WITHIN: Duration = Duration::from_millis(200);

/// The server's hold on this node.
pub(super) struct Delivered {
    pub(super) link: Link,
    pub(super) standing: Standing,
    keys: NodeKeys,
    store: Store,
    confirm: Confirm,
    trial: Option<Trial>,
    trace: Trace,
    /// The configuration in force.
    partial: Partial,
    passed_over: watch::Sender<Vec<PassedOver>>,
    revision: watch::Sender<u64>,
    connected: watch::Sender<bool>,
    group: TaskGroup,
}

/// A configuration on trial, and what was in force before it.
struct Trial {
    desired: Arc<Desired>,
    before: (u64, config::Delivered),
}

impl Delivered {
    /// Waits for the first configuration: the server's, or after a moment the one on disk. `None` if the process is told to
    /// stop before there is any.
    pub(super) async fn first(
        url: FeedUrl,
        run: &Run,
        state: &State,
        identity: &Arc<Identity>,
        (settings, hostname): (&Settings, &str),
    ) -> Result<Option<Self>, Failure> {
        let store = Store::open(state.dir(), &format!("{url}?k={}", url.root));
        let group = TaskGroup::new("source");
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let parts = Parts {
            url,
            token_file: run.config_server_token_file.clone(),
            identity: Arc::clone(identity),
            aead: aead(),
            revision: store.good().map_or(0, |good| good.revision),
        };
        let mut link = feed::spawn(parts, resolver, &group);
        let keys = identity.keys();
        let waited = match store.good() {
            Some(_) => {
                let mut health = link.health.clone();
                tokio::select! {
                    biased;
                    first = usable(&mut link, &store, &keys) => Some(first),
                    _ = health.wait_for(|health| health.error.is_some()) => None,
                    () = tokio::time::sleep(SERVER_WITHIN) => None,
                }
            }
            None => {
                tracing::info!("Waiting for the configuration server");
                let message = "this node waits for its first configuration";
                let lobby = Lobby::open(settings, hostname, false, ("Unconfigured", message));
                let first = tokio::select! {
                    first = usable(&mut link, &store, &keys) => Some(first),
                    () = stop_signal() => None,
                };
                lobby.close().await;
                let Some(first) = first else {
                    close(&group).await;
                    return Ok(None);
                };
                Some(first)
            }
        };
        let kept = || {
            let good = Arc::new(store.good()?.clone());
            let standing = Standing::read(&good, &keys, None, unix_now());
            match (standing, config::parse_delivered(&good.sidecar)) {
                (Ok(standing), Ok(config)) => Some((good, standing, config)),
                (Err(unfit), _) => {
                    tracing::warn!("What is on disk is of no use: {unfit}");
                    None
                }
                (Ok(_), Err(problems)) => {
                    tracing::warn!(?problems, "What is on disk is of no use");
                    None
                }
            }
        };
        let from_server = waited.is_some();
        let begin = match waited.or_else(kept) {
            Some(begin) => begin,
            None => usable(&mut link, &store, &keys).await,
        };
        let (desired, standing, config) = begin;
        if !from_server {
            tracing::warn!(
                revision = desired.revision,
                "The configuration server does not answer; starting from what it said last"
            );
        }
        let mut delivered = Self {
            standing,
            keys,
            store,
            confirm: Confirm::default(),
            trial: None,
            trace: Trace::default(),
            partial: Partial::default(),
            passed_over: watch::Sender::default(),
            revision: watch::Sender::new(desired.revision),
            connected: watch::Sender::new(false),
            group,
            link,
        };
        if from_server {
            delivered.store.keep(&desired);
            delivered.trace.came(&desired);
        }
        delivered.put_in_force(desired.revision, config);
        delivered.say_applied(desired.revision);
        Ok(Some(delivered))
    }

    /// The configuration in force.
    pub(super) fn partial(&self) -> Partial {
        self.partial.clone()
    }

    pub(super) fn revision(&self) -> u64 {
        *self.revision.borrow()
    }

    /// What of the configuration in force this version does not know.
    pub(super) fn passed_over(&self) -> watch::Receiver<Vec<PassedOver>> {
        self.passed_over.subscribe()
    }

    /// Starts telling the server how the node is.
    pub(super) fn report(&self, answers: Answers, group: &TaskGroup) {
        let (up, connected) = (self.link.up.clone(), self.connected.clone());
        report::spawn(answers, up, self.revision.subscribe(), connected, group);
    }

    /// Reads what came. The keys count at once; the configuration is what is to be tried, or, with the reason why it is not, the
    /// one in force.
    ///
    /// # Errors
    /// What came does not make this node a member of its network: nothing of it counts.
    pub(super) fn read(
        &mut self,
        desired: &Desired,
    ) -> Result<(config::Delivered, Option<String>), String> {
        self.trace.came(desired);
        let network = Some(self.standing.membership.network);
        self.standing = Standing::read(desired, &self.keys, network, unix_now())
            .map_err(|unfit| unfit.to_string())?;
        self.store.keep_keys(desired);
        if let Some(why) = self.store.refused(desired.revision) {
            return Ok((self.in_force(), Some(why.to_owned())));
        }
        match config::parse_delivered(&desired.sidecar) {
            Ok(config) => Ok((config, None)),
            Err(problems) => {
                let lines: Vec<String> = problems.iter().map(ToString::to_string).collect();
                Ok((self.in_force(), Some(lines.join("; "))))
            }
        }
    }

    /// The revision is in force now. If it `changed` anything of a node that was connected, it is on trial.
    pub(super) fn applied(
        &mut self,
        desired: Arc<Desired>,
        config: config::Delivered,
        changed: bool,
    ) {
        let before = match self.trial.take() {
            Some(trial) => trial.before,
            None => (self.revision(), self.in_force()),
        };
        self.put_in_force(desired.revision, config);
        self.say_applied(desired.revision);
        let was_connected = *self.connected.borrow();
        if changed && self.confirm.applied(desired.revision, was_connected, Instant::now()) {
            self.trial = Some(Trial { desired, before });
        } else {
            self.store.keep(&desired);
        }
    }

    /// The revision is not in force.
    pub(super) fn refused(&mut self, revision: u64, error: String) {
        tracing::warn!(revision, error, "The configuration server's revision is not applied");
        self.trace.refused(&error);
        let epochs = self.standing.epochs();
        self.link.up.applied(Applied { revision, error, rolled_back: false, epochs });
    }

    /// Looks whether the configuration on trial cut the node off; returns what to go back to if it did.
    pub(super) fn look(&mut self) -> Option<Partial> {
        let connected = *self.connected.borrow();
        if connected {
            self.trace.connected();
        }
        match self.confirm.observe(connected, Instant::now())? {
            Verdict::Good(_) => {
                let trial = self.trial.take()?;
                self.store.keep(&trial.desired);
                None
            }
            Verdict::TakeBack(revision) => {
                let (before, config) = self.trial.take()?.before;
                let error = format!(
                    "revision {revision} left this node without peer and server for a minute; revision {before} is in force again"
                );
                tracing::warn!("{error}");
                self.store.refuse(revision, &error);
                self.put_in_force(before, config);
                let epochs = self.standing.epochs();
                self.link.up.applied(Applied { revision, error, rolled_back: true, epochs });
                Some(self.partial())
            }
        }
    }

    /// Forgets what the server said: the node is no member any more.
    pub(super) fn forget(&mut self) {
        self.store.forget();
    }

    /// Ends the session, after what was said last.
    pub(super) async fn close(self) {
        close(&self.group).await;
    }

    fn in_force(&self) -> config::Delivered {
        config::Delivered {
            partial: self.partial.clone(),
            passed_over: self.passed_over.borrow().clone(),
        }
    }

    fn put_in_force(&mut self, revision: u64, config: config::Delivered) {
        let config::Delivered { partial, passed_over } = config;
        self.partial = partial;
        self.revision.send_replace(revision);
        let is_news = self.passed_over.send_if_modified(|before| {
            let is_news = *before != passed_over;
            *before = passed_over;
            is_news
        });
        let passed_over = self.passed_over.borrow();
        if is_news && !passed_over.is_empty() {
            // Words may be addresses.
            let paths: Vec<&str> = passed_over.iter().map(|part| part.path.as_str()).collect();
            tracing::warn!(
                revision,
                passed_over = ?paths,
                "The configuration is of a later version: what this one does not know is passed over; upgrade it"
            );
        }
    }

    fn say_applied(&mut self, revision: u64) {
        self.trace.applied();
        let epochs = self.standing.epochs();
        self.link.up.applied(Applied { revision, epochs, ..Applied::default() });
    }
}

async fn close(group: &TaskGroup) {
    group.cancel();
    if let Err(failure) = group.join(CLOSE_WITHIN).await {
        tracing::debug!(?failure, "The session with the configuration server did not end well");
    }
}

/// The first thing that the server wants and this node can do. Whoever is to retire has nothing to remove yet.
async fn usable(
    link: &mut Link,
    store: &Store,
    keys: &NodeKeys,
) -> (Arc<Desired>, Standing, config::Delivered) {
    loop {
        tokio::select! {
            changed = link.desired.changed() => if changed.is_err() {
                return std::future::pending().await;
            },
            Some(kept) = link.retire.recv() => {
                // The session may have ended in between; the server asks again.
                let _ = kept.send(());
                continue;
            }
        }
        let Some(desired) = link.desired.borrow_and_update().clone() else { continue };
        let standing = match Standing::read(&desired, keys, None, unix_now()) {
            Ok(standing) => standing,
            Err(unfit) => {
                tell(link, &desired, unfit.to_string(), Vec::new());
                continue;
            }
        };
        let refused = store.refused(desired.revision).map(str::to_owned);
        let parsed = match refused {
            Some(why) => Err(why),
            None => config::parse_delivered(&desired.sidecar).map_err(|problems| {
                problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            }),
        };
        match parsed {
            Ok(config) => return (desired, standing, config),
            Err(why) => tell(link, &desired, why.clone(), standing.epochs()),
        }
        // Its keys are good; the configuration is the one before, if there is one.
        if let Some(good) = store.good()
            && let Ok(config) = config::parse_delivered(&good.sidecar)
        {
            let (revision, sidecar) = (good.revision, good.sidecar.clone());
            let mixed = Desired { revision, sidecar, ..Desired::clone(&desired) };
            return (Arc::new(mixed), standing, config);
        }
    }
}

fn tell(link: &Link, desired: &Desired, error: String, epochs: Vec<u32>) {
    tracing::warn!(
        revision = desired.revision,
        error,
        "What the configuration server says is of no use"
    );
    let applied = Applied { revision: desired.revision, error, rolled_back: false, epochs };
    link.up.applied(applied);
}
