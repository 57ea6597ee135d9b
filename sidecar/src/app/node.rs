//! `easynet run`: puts a node together.

mod carriers;
mod doors;
mod serve;
mod translate;
mod tun;

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use config::{Hostname, Secret, Settings};
use engine::Engine;
use netio::{
    driver::{Departure, Driver, HostParts, HostTask, Machine, Observer, Parts},
    netmon, nft,
    resolve::{self, Resolver},
    task::{GroupFailure, TaskGroup},
    tunnel::Tunnels,
};
use session::{identity::Identity, membership};
use tokio::sync::mpsc;

use self::{
    carriers::{Carriers, ports_free},
    doors::Doors,
    serve::{End, Node},
    translate::{applied, names, translate, translation},
    tun::{first_tun, keep_tun, tun_view},
};
use super::{
    delivered::Delivered, give_back_code, lobby::Lobby, second_signal, stop_signal, unix_now,
};
use crate::{
    admin::Answers,
    args::Run,
    error::Failure,
    metrics::Metrics,
    settings,
    source::Standing,
    state::{self, State},
    view::Facts,
};

/// Firewalls change seldom, and each look is a process.
const FIREWALL_EVERY: Duration = Duration::from_secs(60);
/// Shutting down may take this long before what is left is named and left.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// What a tunnel has to say last is written within this, and netlink is given up.
const LINKS_WITHIN: Duration = Duration::from_millis(300);
/// An agent in standby looks for the lock this often: what a roll-out costs beyond taking over.
const STANDBY_LOOK: Duration = Duration::from_millis(20);
/// A predecessor that was killed has its ports and its TUN for a moment longer than its lock.
const PREDECESSOR_GONE: Duration = Duration::from_secs(3);
const PREDECESSOR_LOOK: Duration = Duration::from_millis(10);

/// Runs a node until it is told to stop.
pub(super) async fn run(
    settings: Settings,
    file: Option<PathBuf>,
    run: Run,
    matches: clap::ArgMatches,
) -> Result<(), Failure> {
    let server = settings::config_server(&run)?;
    let secret = match (&server, &settings.network.value) {
        (Some(_), _) => None,
        (None, None) => {
            return Err(Failure::usage(
                "No network is named",
                "Give it by --network NAME, and its secret by --secret-file FILE.",
            ));
        }
        (None, Some(_)) => Some(settings::secret(&settings)?),
    };
    let token = settings.admin_token_file.value.as_deref().map(settings::token).transpose()?;
    let hostname = own_name(&settings);
    let mut state = if run.standby {
        let Some(state) = stand_by(&settings, hostname.as_str()).await? else { return Ok(()) };
        state
    } else {
        State::open(&settings.state_dir.value)?
    };
    let is_agent = run.standby;
    let lobby = settings.clone();
    let identity = Arc::new(state.identity()?);
    let (settings, origin) = match (server, secret) {
        (Some(url), _) => {
            // The lobby takes them until there is a configuration, and would wait for one that somebody else has.
            drop(Doors::bind(&settings, token.as_ref(), patience(&run)).await?);
            let here = (&settings, hostname.as_str());
            let first = Delivered::first(url, &run, &state, &identity, here).await?;
            let Some(delivered) = first else { return Ok(()) };
            let settings = settings::merge_delivered(&run, &matches, delivered.partial())?;
            (settings, Origin::Server(Box::new(delivered)))
        }
        (None, Some(secret)) => (settings, Origin::Secret(secret)),
        (None, None) => return Ok(()),
    };
    let hostname = own_name(&settings);
    let start = Begin { settings, file, run, matches, identity, origin, token, hostname };
    match start.run(&mut state).await? {
        Ending::Retired(hostname) if is_agent => {
            tracing::info!("Retired; waiting to be stopped");
            let message = "this agent has left for good and removed what it made";
            let lobby = Lobby::open(&lobby, hostname.as_str(), true, ("Retired", message));
            stop_signal().await;
            lobby.close().await;
            Ok(())
        }
        Ending::Retired(_) | Ending::Stopped => Ok(()),
    }
}

/// Waits, ready, until no other node has the state directory; `None` if told to stop before that.
async fn stand_by(settings: &Settings, hostname: &str) -> Result<Option<State>, Failure> {
    let dir = &settings.state_dir.value;
    if let Some(state) = State::try_open(dir)? {
        return Ok(Some(state));
    }
    tracing::info!("Standing by");
    let message = "this agent stands by while another one has the state directory";
    let lobby = Lobby::open(settings, hostname, true, ("Standby", message));
    let stop = stop_signal();
    tokio::pin!(stop);
    let outcome = loop {
        match State::try_open(dir) {
            Ok(Some(state)) => break Ok(Some(state)),
            Ok(None) => {}
            Err(failure) => break Err(failure),
        }
        tokio::select! {
            () = &mut stop => break Ok(None),
            () = tokio::time::sleep(STANDBY_LOOK) => {}
        }
    };
    lobby.close().await;
    outcome
}

/// How a node ended that ended well.
enum Ending {
    Stopped,
    /// Told to leave for good; the host name, for whoever asks.
    Retired(Hostname),
}

/// What a node begins with.
struct Begin {
    settings: Settings,
    file: Option<PathBuf>,
    run: Run,
    matches: clap::ArgMatches,
    identity: Arc<Identity>,
    origin: Origin,
    token: Option<Secret>,
    hostname: Hostname,
}

/// Where a node's membership comes from.
enum Origin {
    Secret(Secret),
    Server(Box<Delivered>),
}

/// What makes the node a member.
enum Member {
    /// It issues its own certificate.
    Secret(membership::Master),
    Server(Box<Delivered>),
}

impl Member {
    fn of(origin: Origin, network: &str, state: &mut State) -> Self {
        let secret = match origin {
            Origin::Server(delivered) => return Self::Server(delivered),
            Origin::Secret(secret) => secret,
        };
        let strength = membership::strength(secret.expose());
        if strength < membership::WEAK_BITS {
            tracing::warn!(
                "The secret is weak (about {strength:.0} bits): make one with `easynet secret new`"
            );
        }
        Self::Secret(state.master(network, secret.expose()))
    }

    fn delivered(&mut self) -> Option<&mut Delivered> {
        match self {
            Self::Server(delivered) => Some(delivered),
            Self::Secret(_) => None,
        }
    }

    /// The server's revision that is in force.
    fn revision(&self) -> Option<u64> {
        match self {
            Self::Server(delivered) => Some(delivered.revision()),
            Self::Secret(_) => None,
        }
    }

    /// Certificate and keys, and the records that the node spreads.
    fn standing(&self, identity: &Identity, hostname: &str, capabilities: u32) -> Standing {
        match self {
            Self::Server(delivered) => delivered.standing.clone(),
            Self::Secret(master) => Standing {
                membership: Arc::new(master.membership(identity, hostname, capabilities)),
                records: Vec::new(),
            },
        }
    }
}

impl Begin {
    async fn run(self, state: &mut State) -> Result<Ending, Failure> {
        let Self { settings, file, run, matches, identity, origin, token, hostname } = self;
        let network = settings.network.value.clone().unwrap_or_default();
        for warning in state.warnings.drain(..) {
            tracing::warn!("{warning}");
        }
        let doors = Doors::bind(&settings, token.as_ref(), patience(&run)).await?;
        let member = Member::of(origin, &network, state);
        let unix = unix_now();
        let boot = state.boot(unix);
        let config = translate(&settings, &identity, &member, state, &hostname, (boot, unix));
        let adopt = run.standby && !state.retired();
        state.set_retired(false).map_err(|error| {
            Failure::failed(format!("Cannot keep the state: {error}"), "Make room on the disk.")
        })?;

        let group = TaskGroup::new("node");
        let tun = first_tun(settings.tun.value.as_str(), run.standby).await?;
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        state::random(&mut *seed)?;
        let started = Instant::now();
        let engine = Engine::new(config, *seed, started);
        if run.standby {
            ports_free(&settings.listen.value).await;
        }
        let device = tun.as_ref().ok().cloned();
        let links = TaskGroup::new("links");
        let carriers = Carriers::open(&engine, &settings, device, started, (&group, &links))?;
        let Carriers { plane, sockets, tunnels, tunnel_events, punts, listeners } = carriers;

        let departure = Departure::default();
        if run.standby {
            departure.stay();
        }
        let host_parts = HostParts {
            tun: settings.tun.value.to_string(),
            former_tun: state.replace_tun(settings.tun.value.as_str()),
            translation: translation(&settings),
            adopt,
            departure: departure.clone(),
        };
        let host = HostTask::spawn(host_parts, &links, &group).map_err(|error| {
            Failure::failed(format!("No netlink socket: {error}"), "Run with CAP_NET_ADMIN.")
        })?;
        let mtu = settings.mtu.value.bytes();
        let facts = Arc::new(Facts {
            network,
            hostname: hostname.to_string(),
            state_dir: settings.state_dir.value.clone(),
            tun: ArcSwap::from_pointee(match &tun {
                Ok(tun) => Ok(tun_view(tun, &sockets, mtu)),
                Err(problem) => Err(problem.clone()),
            }),
            listeners,
            sockets,
            started,
            started_at: SystemTime::now(),
            source: match (&member, &file) {
                (Member::Server(_), _) => "server".to_owned(),
                (Member::Secret(_), Some(path)) => path.display().to_string(),
                (Member::Secret(_), None) => "flags".to_owned(),
            },
            server: match &member {
                Member::Server(delivered) => Some(delivered.link.health.clone()),
                Member::Secret(_) => None,
            },
            passed_over: match &member {
                Member::Server(delivered) => Some(delivered.passed_over()),
                Member::Secret(_) => None,
            },
            applied: ArcSwap::from_pointee(applied(&settings, member.revision().unwrap_or(1))),
            forward_drops: ArcSwap::from_pointee(None),
        });
        keep_tun(settings.tun.value.to_string(), mtu, run.standby, &plane, &facts, &group);
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let (commands, command_receiver) = mpsc::channel(netio::driver::COMMAND_BOUND);
        let (persist, persisted) = mpsc::channel(16);
        let metrics = Metrics::default();
        let observed = metrics.clone();
        Driver::spawn(
            Parts {
                machine: Machine::Node(Box::new(engine)),
                plane: Arc::clone(&plane),
                punts,
                tunnel_events,
                commands: command_receiver,
                host: Some(host),
                interfaces: netmon::watch(&group),
                resolver: Some(resolver.clone()),
                names: names(&settings),
                persist,
                departure: departure.clone(),
                observer: Observer(Box::new(move |what| observed.observe(&what))),
            },
            &group,
        );
        let (orders, ordered) = mpsc::channel(1);
        let answers = Answers {
            commands: commands.clone(),
            facts: Arc::clone(&facts),
            metrics,
            orders,
            resolver,
        };
        if let Err(failure) = doors.open(&answers, &group) {
            stop(&group, &links, &tunnels).await;
            return Err(failure);
        }
        announce(&answers, &group);
        if let Member::Server(delivered) = &member {
            delivered.report(answers, &group);
        }
        give_back_code(&group);
        if !settings.exports.value.is_empty() {
            watch_forwarding(&facts, &group);
        }
        let mut node = Node {
            settings,
            run,
            matches,
            identity,
            member,
            hostname,
            boot,
            unix,
            commands,
            state,
            facts,
        };
        let end = node.serve(&group, persisted, ordered).await;

        let is_retired = end != End::Stopped;
        if is_retired {
            departure.leave();
            if let Some(tun) = plane.tun()
                && let Err(error) = tun.persist(false)
            {
                tracing::debug!(%error, "The TUN is gone already");
            }
        }
        tokio::select! {
            () = stop(&group, &links, &tunnels) => {}
            () = second_signal() => {}
        }
        plane.close();
        if let Member::Server(delivered) = node.member {
            delivered.close().await;
        }
        let joined = group.join(Duration::ZERO).await;
        if is_retired && let Err(error) = node.state.clear() {
            tracing::warn!(%error, "Not all that this node kept could be removed");
        }
        match joined {
            Err(GroupFailure { first: Some((task, cause)), .. }) => Err(Failure::failed(
                format!("{task} ended: {cause:?}"),
                "Report this, with the log.",
            )),
            Ok(()) | Err(_) if end == End::Retired => Ok(Ending::Retired(node.hostname)),
            Ok(()) | Err(_) => Ok(Ending::Stopped),
        }
    }
}

/// How long a predecessor may have what this node needs.
fn patience(run: &Run) -> Instant {
    Instant::now() + if run.standby { PREDECESSOR_GONE } else { Duration::ZERO }
}

/// Says once that the node is ready, with its addresses: its own may be in the log, a peer's not.
fn announce(answers: &Answers, group: &TaskGroup) {
    let answers = answers.clone();
    group.spawn_transient("announce", async move {
        loop {
            let Ok(view) = answers.view().await else { return Ok(()) };
            let status = answers.facts.status(&view);
            if status.ready {
                let addresses: Vec<String> =
                    [status.ipv4, status.ipv6].into_iter().flatten().collect();
                tracing::info!("Ready: {}", addresses.join(" "));
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
}

async fn stop(group: &TaskGroup, links: &TaskGroup, tunnels: &Tunnels) {
    group.cancel();
    if let Err(failure) = group.join(STOP_WITHIN).await
        && !failure.stuck.is_empty()
    {
        tracing::warn!(tasks = ?failure.stuck, "Left behind");
    }
    tunnels.close_all();
    links.cancel();
    let _ = links.join(LINKS_WITHIN).await;
}

/// Looks now and then whether somebody's firewall drops what this node forwards to its exports.
fn watch_forwarding(facts: &Arc<Facts>, group: &TaskGroup) {
    let facts = Arc::clone(facts);
    group.spawn("forwarding", async move {
        loop {
            match nft::forward_drops().await {
                Ok(chains) => {
                    if !chains.is_empty()
                        && facts.forward_drops.load().as_ref().as_ref() != Some(&chains)
                    {
                        tracing::warn!(?chains, "Firewall chains of others drop forwarded packets");
                    }
                    facts.forward_drops.store(Arc::new(Some(chains)));
                }
                Err(error) => tracing::debug!(%error, "Cannot look at the firewall"),
            }
            tokio::time::sleep(FIREWALL_EVERY).await;
        }
    });
}

fn own_name(settings: &Settings) -> Hostname {
    let of_machine = || {
        let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Hostname::of_machine(&name)
    };
    settings.hostname.value.clone().unwrap_or_else(of_machine)
}
