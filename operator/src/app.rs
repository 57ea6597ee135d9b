//! The composition root: what runs, in which order it starts and ends.
//!
//! | task | owns | wakes on |
//! |---|---|---|
//! | `watch {kind}` | one watch | the API server |
//! | `index` | the [`Index`] | changes that watches send |
//! | `lease` | the [`Candidate`](crate::lease::Candidate) | timers |
//! | `http` | a listener | connections |
//! | `webhook` | a listener | connections, another certificate |
//! | `leader` | the group of what only a leader runs: `reconcile`, `feed`, `webhook certificate` | leadership |
//!
//! On SIGTERM: unready → the leader's group ends → the lease is given back → the rest. A queue: changes of the watches
//! ([`CHANGES`], the watches wait), reports of the feed (coalesced per member), the world and the table (the latest wins).

use std::{
    io::{IsTerminal, Write},
    net::IpAddr,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::{CommandFactory, Parser, error::ErrorKind};
use data_encoding::BASE32_NOPAD;
use k8s_openapi::api::{
    apps::v1::DaemonSet,
    core::v1::{
        ConfigMap, Namespace, Node as ApiNode, Pod as ApiPod, Secret as ApiSecret, Service,
    },
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, Client, Config};
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use ring::rand::SecureRandom;
use task::{CancellationToken, TaskGroup};
use telemetry::Telemetry;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use crate::{
    api::{self, Requests},
    args::{Cli, Command, Join, Log, Retire, Run},
    feed, http,
    index::{self, Change, FeedService, Index, Live, Node, Pod, Secret, World},
    join,
    lease::{self, Leadership},
    metrics::Metrics,
    names,
    plan::Install,
    reconcile::{Inputs, Reconciler},
    retire,
    watch::{self as follow, Pulse, Source},
    webhook,
};

/// Changes on their way from the watches to the index; with more, the watches wait.
const CHANGES: usize = 1024;
/// The index speaks up at most this often.
const SETTLE: Duration = Duration::from_millis(20);
/// What only a leader runs ends within this.
const LEADER_ENDS: Duration = Duration::from_secs(3);
const ENDS: Duration = Duration::from_secs(5);
/// The exit code of a usage error.
const USAGE: u8 = 2;

/// Parses the arguments, does what they say, and says how it went.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            // Nothing can be said if even this fails.
            if help || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                let _ = error.print();
            } else {
                say(&usage(&error, std::env::args().nth(1).as_deref()));
            }
            return if help { ExitCode::SUCCESS } else { ExitCode::from(USAGE) };
        }
    };
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&words(&error));
            ExitCode::FAILURE
        }
    }
}

fn say(error: &str) {
    // Nothing can be said if even this fails.
    let _ = writeln!(std::io::stderr(), "easynet-operator: {error}");
}

/// What the argument parser says, as `easynet` says it: one sentence what and one what to do. `first` is the first argument.
fn usage(error: &clap::Error, first: Option<&str>) -> String {
    let text = error.render().to_string();
    let said = text.split("\nUsage:").next().unwrap_or_default();
    let said = said.split("\nFor more information").next().unwrap_or_default();
    let mut parts = said.trim_start_matches("error: ").split("\n\n").map(|part| {
        let words = part.split_whitespace().collect::<Vec<_>>().join(" ");
        words.trim_start_matches("tip: ").to_owned()
    });
    let what = parts.next().unwrap_or_default();
    let tips: Vec<String> = parts.filter(|tip| !tip.is_empty()).collect();
    let tips = if tips.is_empty() { String::new() } else { format!(" ({})", tips.join("; ")) };
    let command = first.filter(|name| Cli::command().find_subcommand(name).is_some());
    let command = command.map(|name| format!(" {name}")).unwrap_or_default();
    let mut letters = what.chars();
    let initial =
        letters.next().map(|letter| letter.to_uppercase().to_string()).unwrap_or_default();
    format!("{initial}{}{tips}. See `easynet-operator{command} --help`.", letters.as_str())
}

/// What went wrong and why, without what a cause says again of its own cause.
fn words(error: &anyhow::Error) -> String {
    let mut said: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if said.last().is_none_or(|last| !last.contains(&cause)) {
            said.push(cause);
        }
    }
    said.join(": ")
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Run(run) => {
            let telemetry = start_telemetry(&run.log)?;
            let outcome = runtime()?.block_on(until_told(*run));
            telemetry.end();
            outcome
        }
        Command::Join(join) => {
            let _telemetry = start_telemetry(&join.log)?;
            runtime()?.block_on(invite(join))
        }
        Command::Retire(retire) => {
            let _telemetry = start_telemetry(&retire.log)?;
            runtime()?.block_on(take_down(retire))
        }
        Command::Crds => {
            let mut all = String::new();
            for definition in crds::definitions() {
                all.push_str("---\n");
                all.push_str(&crds::manifest(&definition)?);
            }
            print(&all)
        }
        Command::Version => print(concat!("easynet-operator ", env!("CARGO_PKG_VERSION"), "\n")),
    }
}

fn start_telemetry(log: &Log) -> anyhow::Result<Telemetry> {
    // Whoever asked says what failed; the client says it once more for each request.
    let filter = format!("{},kube_client::client::builder=off", log.filter);
    telemetry::start(names::OPERATOR, &filter, log.format.into())
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(4)
        .enable_all()
        .build()
        .context("no runtime")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing the result")
}

async fn invite(join: Join) -> anyhow::Result<()> {
    let client = client(&Requests::default()).await?;
    let namespace = &join.place.namespace;
    let invitation =
        join::run(client, namespace, &join.network, &join.cluster_name, &join.pod_cidrs).await?;
    for remark in &invitation.remarks {
        let _ = writeln!(std::io::stderr(), "note: {remark}");
    }
    if std::io::stdout().is_terminal() {
        let _ = writeln!(
            std::io::stderr(),
            "note: whoever has this can make members of the network; pipe it into kubectl"
        );
    }
    print(&invitation.to_yaml()?)
}

async fn take_down(options: Retire) -> anyhow::Result<()> {
    // It succeeds whatever happens: an uninstallation must not hang on it.
    match client(&Requests::default()).await {
        Ok(client) => retire::run(client, &options.place.namespace).await,
        Err(error) => {
            tracing::warn!(error = format!("{error:#}"), "No client; nothing is taken down")
        }
    }
    Ok(())
}

/// Where the operator sends traces, and so those that it configures.
fn collector() -> Option<String> {
    std::env::var(names::COLLECTOR).ok()
}

async fn client(requests: &Requests) -> anyhow::Result<Client> {
    let mut config = Config::infer().await.context(
        "there is neither a kubeconfig nor a ServiceAccount; set KUBECONFIG, or run in a cluster",
    )?;
    // Deadlines are ours, per request; a watch lasts longer than any default.
    config.read_timeout = None;
    config.connect_timeout = Some(Duration::from_secs(5));
    api::client(config, requests).context("the client of the API server")
}

/// Runs the operator until SIGTERM or SIGINT.
async fn until_told(options: Run) -> anyhow::Result<()> {
    let requests = Requests::default();
    let client = client(&requests).await?;
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let told = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stop.cancel();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        outcome = operate(options, client, requests, stop.clone()) => outcome,
        () = told => Ok(()),
    }
}

/// Runs the operator until `stop`.
///
/// # Errors
/// When a port is taken, or a part of it ends that should not.
pub async fn operate(
    options: Run,
    client: Client,
    requests: Requests,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let pulse = Pulse::default();
    let metrics = Metrics::new(requests, pulse.clone());
    let namespace = options.place.namespace.clone();

    let group = TaskGroup::new("operator");
    let (unready_tx, unready) = watch::channel(Some("starting".to_owned()));
    let listener = TcpListener::bind(options.metrics)
        .await
        .with_context(|| format!("--metrics {} is not to be had", options.metrics))?;
    let answers = http::Answers { metrics: metrics.clone(), pulse: pulse.clone(), unready };
    group.spawn("http", http::serve(listener, answers, group.clone()));

    let (changes_tx, changes) = mpsc::channel(CHANGES);
    let (world_tx, world) = watch::channel(Arc::new(World::default()));
    follow_all(&group, &client, &namespace, &pulse, &changes_tx);
    drop(changes_tx);
    group.spawn("index", keep_index(changes, world_tx));

    if let Some(listen) = options.webhook_listen {
        group.spawn("webhook", webhook::serve::run(listen, answering(&options, &world, &metrics)));
    }

    let leases = TaskGroup::new("lease");
    let (leadership_tx, mut leadership) = watch::channel(Leadership::Unknown);
    let (retire_tx, retiring) = watch::channel(false);
    let (lease_client, lease_namespace, lease_name) =
        (client.clone(), namespace.clone(), options.name.clone());
    leases.spawn_graceful("lease", |token| {
        lease::run(lease_client, lease_namespace, lease_name, leadership_tx, retire_tx, token)
    });

    let mut leading: Option<TaskGroup> = None;
    let mut synced = world.clone();
    let ended = loop {
        let is_leader = *leadership.borrow_and_update() == Leadership::Leader;
        metrics.leads(is_leader);
        unready_tx.send_replace(why_unready(&world.borrow()));
        match (&leading, is_leader) {
            (None, true) => {
                let child = group.child("leader");
                let parts = Parts {
                    client: client.clone(),
                    options: &options,
                    metrics: metrics.clone(),
                    world: world.clone(),
                    retiring: retiring.clone(),
                    rng: ChaCha12Rng::from_seed(seed()?),
                };
                lead(&child, parts);
                leading = Some(child);
            }
            (Some(child), false) => {
                child.cancel();
                if let Err(failure) = child.join(LEADER_ENDS).await {
                    tracing::warn!(%failure, "What the leader ran did not end well");
                }
                leading = None;
            }
            (None, false) | (Some(_), true) => {}
        }
        let led = leading.as_ref().map(|child| child.token().clone());
        tokio::select! {
            () = stop.cancelled() => break Ok(()),
            () = group.token().cancelled() => break Err(anyhow::anyhow!("a part of the operator has ended")),
            () = cancelled(led) => {
                let failure = match &leading {
                    Some(child) => child.join(LEADER_ENDS).await.err().map(|failure| failure.to_string()),
                    None => None,
                };
                break Err(anyhow::anyhow!("{}", failure.unwrap_or_else(|| "the leader's part has ended".to_owned())));
            }
            changed = leadership.changed() => changed?,
            changed = synced.changed() => changed?,
        }
    };
    tracing::info!("Ending");
    unready_tx.send_replace(Some("ending".to_owned()));
    if let Some(child) = leading {
        child.cancel();
        let _ = child.join(LEADER_ENDS).await;
    }
    leases.cancel();
    let _ = leases.join(ENDS).await;
    group.cancel();
    let outcome = group.join(ENDS).await;
    ended?;
    outcome.map_err(Into::into)
}

fn why_unready(world: &World) -> Option<String> {
    let missing = world.unsynced();
    (!missing.is_empty()).then(|| format!("not listed yet: {}", missing.join(", ")))
}

async fn cancelled(token: Option<CancellationToken>) {
    match token {
        Some(token) => token.cancelled().await,
        None => std::future::pending().await,
    }
}

/// What a leader's part is made of.
struct Parts<'a> {
    client: Client,
    options: &'a Run,
    metrics: Metrics,
    world: watch::Receiver<Arc<World>>,
    retiring: watch::Receiver<bool>,
    rng: ChaCha12Rng,
}

/// Starts what only a leader runs: first who it is, then the feed, then the loop.
fn lead(group: &TaskGroup, parts: Parts<'_>) {
    let options = parts.options;
    let (namespace, name) = (options.place.namespace.clone(), options.name.clone());
    let (image, pull_policy) =
        (options.image.clone(), options.image_pull_policy.as_str().to_owned());
    let (advertise, listen) = (options.advertise, options.feed_listen);
    let Parts { client, metrics, world, retiring, mut rng, .. } = parts;
    if options.webhook_listen.is_some() {
        let rotating = webhook::rotate::run(client.clone(), namespace.clone());
        group.spawn("webhook certificate", rotating);
    }
    let inner = group.clone();
    group.spawn("reconcile", async move {
        let address = match advertise {
            Some(address) => address,
            None => own_address(&client, &namespace, &name).await?,
        };
        let root = feed::identity::root(&client, &namespace, &mut rng).await?;
        let (table_tx, table) = watch::channel(Arc::new(feed::Table::default()));
        let authenticator =
            feed::Authenticator::token_review(client.clone(), namespace.clone(), world.clone());
        let server = feed::Server::start(
            listen,
            &root,
            authenticator,
            table,
            feed::Limits::default(),
            &inner,
        )
        .with_context(|| format!("--feed-listen {listen} is not to be had"))?;
        metrics.serves(server.counts.clone());
        let install = Install {
            collector: collector(),
            namespace,
            image,
            pull_policy,
            feed_root: BASE32_NOPAD.encode(&root.key().0).to_ascii_lowercase(),
            feed_port: server.local.port(),
        };
        let inputs = Inputs { world, reports: server.reports.clone(), retire: retiring };
        let token = inner.token().clone();
        Reconciler::new(client, install, name, address, table_tx, metrics, rng)
            .run(inputs, token)
            .await
    });
}

/// What the webhook's answers depend on.
fn answering(
    options: &Run,
    world: &watch::Receiver<Arc<World>>,
    metrics: &Metrics,
) -> webhook::serve::Answering {
    let settings = webhook::inject::Settings {
        namespace: options.place.namespace.clone(),
        image: options.image.clone(),
        pull_policy: options.image_pull_policy.as_str().to_owned(),
        default_pod_security: options.default_pod_security,
        collector: collector(),
    };
    let metrics = metrics.clone();
    webhook::serve::Answering {
        world: world.clone(),
        settings: Arc::new(settings),
        observe: Arc::new(move |outcome, took| metrics.answered(outcome, took)),
    }
}

/// The address of the pod that this process runs in.
async fn own_address(client: &Client, namespace: &str, name: &str) -> anyhow::Result<IpAddr> {
    let pods: Api<ApiPod> = Api::namespaced(client.clone(), namespace);
    let pod = api::within(api::WITHIN, pods.get(name)).await.with_context(|| {
        format!("the pod {name} in {namespace} is not to be read; say --advertise ADDRESS")
    })?;
    let address = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
    address
        .parse()
        .with_context(|| format!("the pod {name} has no address; say --advertise ADDRESS"))
}

/// Builds the world from what the watches say.
async fn keep_index(
    mut changes: mpsc::Receiver<Change>,
    world: watch::Sender<Arc<World>>,
) -> anyhow::Result<()> {
    let mut index = Index::default();
    let mut batch = Vec::new();
    while changes.recv_many(&mut batch, CHANGES).await > 0 {
        let began = Instant::now();
        let mut is_news = false;
        for change in batch.drain(..) {
            is_news |= index.apply(change);
        }
        if is_news {
            world.send_replace(Arc::new(index.world().clone()));
            tokio::time::sleep_until((began + SETTLE).into()).await;
        }
    }
    anyhow::bail!("the watches have ended")
}

/// Starts a watch for each kind of [`index::KINDS`].
fn follow_all(
    group: &TaskGroup,
    client: &Client,
    namespace: &str,
    pulse: &Pulse,
    changes: &mpsc::Sender<Change>,
) {
    let all = Follow { group, client, namespace, pulse, changes };
    let named = format!("metadata.name={}", names::FEED);
    let of_feed = format!("kubernetes.io/service-name={}", names::FEED);
    let network = names::NETWORK;
    all.cluster::<crds::EasyNetwork, _>("networks", None, |network| network, Change::Networks);
    all.cluster::<crds::EasyPeer, _>("peers", None, take_peer, Change::Peers);
    all.cluster::<ApiNode, _>("nodes", None, Node::take, Change::Nodes);
    all.cluster::<ApiPod, _>("injected", Some(names::INJECT), Pod::take_injected, Change::Injected);
    all.cluster::<Namespace, _>("namespaces", None, index::take_namespace, Change::Namespaces);
    all.cluster::<ServiceCIDR, _>(
        "service ranges",
        None,
        index::take_service_ranges,
        Change::ServiceRanges,
    );
    all.own::<ApiPod, _>("agents", Some(network), None, Pod::take_agent, Change::Agents);
    all.own::<ApiSecret, _>("secrets", None, None, Secret::take, Change::Secrets);
    all.own::<DaemonSet, _>(
        "daemonsets",
        Some(network),
        None,
        Live::take_daemon_set,
        Change::DaemonSets,
    );
    all.own::<Service, _>("service", None, Some(&named), FeedService::take, Change::FeedServices);
    all.own::<ConfigMap, _>(
        "configmap",
        None,
        Some(&named),
        Live::take_config_map,
        Change::ConfigMaps,
    );
    all.own::<EndpointSlice, _>("slice", Some(&of_feed), None, Live::take_slice, Change::Slices);
}

/// Of a peer only the owner's notes are left out.
fn take_peer(mut peer: crds::EasyPeer) -> crds::EasyPeer {
    peer.metadata.managed_fields = None;
    peer
}

struct Follow<'a> {
    group: &'a TaskGroup,
    client: &'a Client,
    namespace: &'a str,
    pulse: &'a Pulse,
    changes: &'a mpsc::Sender<Change>,
}

impl Follow<'_> {
    fn cluster<K, T>(
        &self,
        name: &'static str,
        labels: Option<&str>,
        take: fn(K) -> T,
        change: fn(index::Delta<T>) -> Change,
    ) where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
        K::DynamicType: Default,
        T: Send + Sync + 'static,
    {
        let objects = Api::all_with(self.client.clone(), &K::DynamicType::default());
        self.start(Source {
            name,
            objects,
            labels: labels.map(str::to_owned),
            fields: None,
            take,
            change,
        });
    }

    fn own<K, T>(
        &self,
        name: &'static str,
        labels: Option<&str>,
        fields: Option<&str>,
        take: fn(K) -> T,
        change: fn(index::Delta<T>) -> Change,
    ) where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + serde::de::DeserializeOwned
            + std::fmt::Debug
            + Send
            + 'static,
        K::DynamicType: Default,
        T: Send + Sync + 'static,
    {
        let objects = Api::namespaced(self.client.clone(), self.namespace);
        let (labels, fields) = (labels.map(str::to_owned), fields.map(str::to_owned));
        self.start(Source { name, objects, labels, fields, take, change });
    }

    fn start<K, T>(&self, source: Source<K, T>)
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
        K::DynamicType: Default,
        T: Send + Sync + 'static,
    {
        let name = format!("watch {}", source.name);
        self.group.spawn(name, follow::follow(source, self.pulse.clone(), self.changes.clone()));
    }
}

fn seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    ring::rand::SystemRandom::new()
        .fill(&mut seed)
        .map_err(|_| anyhow::anyhow!("the system gives no random numbers"))?;
    Ok(seed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_usage_error_is_a_sentence_what_and_one_what_to_do() {
        let said = |args: &[&str]| {
            let error = Cli::try_parse_from([&["easynet-operator"], args].concat()).unwrap_err();
            usage(&error, args.first().copied())
        };

        assert_eq!(
            said(&["frob"]),
            "Unrecognized subcommand 'frob'. See `easynet-operator --help`."
        );
        assert_eq!(
            said(&["retire", "--frob"]),
            "Unexpected argument '--frob' found. See `easynet-operator retire --help`."
        );
        assert_eq!(
            said(&["join", "prod", "--cluster-name", "B"]),
            "Invalid value 'B' for '--cluster-name <NAME>': write at most 63 lower-case letters, digits and dashes. \
             See `easynet-operator join --help`."
        );
        assert_eq!(
            said(&["join", "prod"]),
            "The following required arguments were not provided: --cluster-name <NAME>. \
             See `easynet-operator join --help`."
        );
    }
}
