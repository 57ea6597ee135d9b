//! `easynet run`: puts a node together.

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arc_swap::ArcSwap;
use config::{Address4, Address6, ImportMode, Listen, Scheme, Secret, Settings};
use engine::{
    Engine,
    config::{Bootstrap, Config, Imports, Ipv4Policy, Ipv6Policy, P2p, PunchMode},
    event::{Notice, NoticeKind, Persist},
    fib::Fib,
};
use netio::{
    driver::{Command, Departure, Driver, HostParts, HostTask, Machine, Name, Observer, Parts},
    netlink::FWMARK,
    netmon, nft,
    port::tun::{Tun, TunError},
    resolve::{self, Resolver},
    task::{GroupFailure, TaskGroup},
    tunnel::{TunnelConfig, Tunnels},
    udp::UdpSockets,
    worker::{Plane, Worker, punt},
};
use rpc::feed::Desired;
use session::{identity::Identity, membership};
use tokio::sync::{mpsc, oneshot};
use wire::{endpoint::Transport, id::NodeKeys};

use super::{
    aead, delivered::Delivered, give_back_code, lobby::Lobby, second_signal, stop_signal, unix_now,
};
use crate::{
    admin::{self, Answers, Desk, Order},
    args::Run,
    error::Failure,
    metrics::{self, Metrics},
    render, settings,
    source::Standing,
    state::{self, State},
    view::{self, Applied, Facts, Listener, Start},
};

/// Free ports that `--listen 0` tries for UDP.
const PORTS_TRIED: usize = 16;
/// Firewalls change seldom, and each look is a process.
const FIREWALL_EVERY: Duration = Duration::from_secs(60);
/// Shutting down may take this long before what is left is named and left.
const STOP_WITHIN: Duration = Duration::from_secs(3);
/// An agent in standby looks for the lock this often: what a roll-out costs beyond taking over.
const STANDBY_LOOK: Duration = Duration::from_millis(20);
/// A predecessor that was killed has its ports and its TUN for a moment longer than its lock.
const PREDECESSOR_GONE: Duration = Duration::from_secs(3);
const PREDECESSOR_LOOK: Duration = Duration::from_millis(10);
/// How often it is looked whether a configuration on trial cut the node off.
const TRIAL_LOOK: Duration = Duration::from_secs(1);
/// How often a TUN is tried that could not be had.
const TUN_RETRY: Duration = Duration::from_secs(2);

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
    let hostname = settings.hostname.value.clone().unwrap_or_else(machine_name);
    let mut state = if run.standby {
        let Some(state) = stand_by(&settings, &hostname).await? else { return Ok(()) };
        state
    } else {
        State::open(&settings.state_dir.value)?
    };
    let is_agent = run.standby;
    let lobby = settings.clone();
    let identity = Arc::new(state.identity()?);
    let (settings, origin) = match (server, secret) {
        (Some(url), _) => {
            let here = (&settings, hostname.as_str());
            let first = Delivered::first(url, &run, &state, &identity, here).await?;
            let Some(delivered) = first else { return Ok(()) };
            let settings = settings::merge_delivered(&run, &matches, delivered.partial())?;
            (settings, Origin::Server(Box::new(delivered)))
        }
        (None, Some(secret)) => (settings, Origin::Secret(secret)),
        (None, None) => return Ok(()),
    };
    let hostname = settings.hostname.value.clone().unwrap_or_else(machine_name);
    let start = Begin { settings, file, run, matches, identity, origin, token, hostname };
    match start.run(&mut state).await? {
        Ending::Retired(hostname) if is_agent => {
            tracing::info!("Retired; waiting to be stopped");
            let message = "this agent has left for good and removed what it made";
            let lobby = Lobby::open(&lobby, &hostname, true, ("Retired", message));
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
    Retired(String),
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
    hostname: String,
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
        let member = match origin {
            Origin::Server(delivered) => Member::Server(delivered),
            Origin::Secret(secret) => {
                let strength = membership::strength(secret.expose());
                if strength < membership::WEAK_BITS {
                    tracing::warn!(
                        "The secret is weak (about {strength:.0} bits): make one with `easynet secret new`"
                    );
                }
                Member::Secret(state.master(&network, secret.expose()))
            }
        };
        let unix = unix_now();
        let boot = state.boot(unix);
        let config = translate(&settings, &identity, &member, state, &hostname, (boot, unix));
        let adopt = run.standby && !state.retired();
        state.set_retired(false).map_err(|error| {
            Failure::failed(format!("Cannot keep the state: {error}"), "Make room on the disk.")
        })?;

        let group = TaskGroup::new("node");
        let tun = match open_tun(&settings.tun.value, run.standby).await {
            Ok(tun) => Ok(Arc::new(tun)),
            // An agent that ended here would only be started again.
            Err(error) if run.standby => Err(tun_message(&error)),
            Err(error) => {
                let (what, remedy) = tun_words(&error);
                return Err(Failure::failed(what, remedy));
            }
        };
        if let Err(problem) = &tun {
            tracing::warn!("{problem}");
        }
        let (mark, sockets) = (Some(FWMARK), Arc::new(UdpSockets::new(Some(FWMARK))));
        let (punt_sender, punts) = punt::queue();
        let started = Instant::now();
        let mut seed = zeroize::Zeroizing::new([0; 32]);
        state::random(&mut *seed)?;
        let engine = Engine::new(config, *seed, started);
        let drops = Arc::clone(engine.drops());
        let fib = Arc::new(ArcSwap::from_pointee(Fib::new(
            engine.node(),
            started,
            settings.mtu.value.bytes(),
        )));
        let plane = Arc::new(Plane::new(
            fib,
            tun.as_ref().ok().cloned(),
            Arc::clone(&sockets),
            punt_sender,
        ));
        let receiver = Arc::clone(&plane);
        let (tunnels, tunnel_events) = Tunnels::new(
            TunnelConfig { fwmark: mark, drops, ..TunnelConfig::default() },
            group.clone(),
            Arc::new(move |hop, batch| receiver.receive(hop, batch, Instant::now())),
        );
        if run.standby {
            ports_free(&settings.listen.value).await;
        }
        let listeners = listen(&settings.listen.value, &sockets, &tunnels)?;
        plane.set_tunnels(tunnels.clone());

        let departure = Departure::default();
        if run.standby {
            departure.stay();
        }
        let host_parts = HostParts {
            tun: settings.tun.value.clone(),
            translation: translation(&settings),
            adopt,
            departure: departure.clone(),
        };
        let links = TaskGroup::new("links");
        let host = HostTask::spawn(host_parts, &links, &group).map_err(|error| {
            Failure::failed(format!("No netlink socket: {error}"), "Run with CAP_NET_ADMIN.")
        })?;
        let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
        let (commands, command_receiver) = mpsc::channel(netio::driver::COMMAND_BOUND);
        let (persist, persisted) = mpsc::channel(16);
        let metrics = Metrics::default();
        let facts = Arc::new(Facts {
            network: network.clone(),
            hostname: hostname.clone(),
            tun: ArcSwap::from_pointee(match &tun {
                Ok(tun) => Ok(tun_view(tun, &sockets, settings.mtu.value.bytes())),
                Err(problem) => Err(problem.clone()),
            }),
            listeners,
            sockets: Arc::clone(&sockets),
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
            applied: ArcSwap::from_pointee(applied(&settings, member.revision().unwrap_or(1))),
            forward_drops: ArcSwap::from_pointee(None),
        });
        Worker::spawn(Arc::clone(&plane), 0, &group).map_err(|error| {
            Failure::failed(
                format!("Cannot start a worker thread: {error}"),
                "Check the limits on processes.",
            )
        })?;
        let mtu = settings.mtu.value.bytes();
        keep_tun(settings.tun.value.clone(), mtu, run.standby, &plane, &facts, &group);
        let own_plane = Arc::clone(&plane);
        Driver::spawn(
            Parts {
                machine: Machine::Node(Box::new(engine)),
                plane,
                punts,
                tunnel_events,
                commands: command_receiver,
                host: Some(host),
                interfaces: netmon::watch(&group),
                resolver: Some(resolver),
                names: names(&settings),
                persist,
                departure: departure.clone(),
                observer: {
                    let metrics = metrics.clone();
                    Observer(Box::new(move |observed| metrics.observe(&observed)))
                },
            },
            &group,
        );
        let (orders, ordered) = mpsc::channel(1);
        let answers =
            Answers { commands: commands.clone(), facts: Arc::clone(&facts), metrics, orders };
        let patience = Instant::now() + if run.standby { PREDECESSOR_GONE } else { Duration::ZERO };
        let listening = async {
            let bound = loop {
                let desk = Desk::Node(answers.clone());
                match admin::listen(&settings.admin.value, token.clone(), desk, &group).await {
                    Err(_) if Instant::now() < patience => {}
                    outcome => break outcome?,
                }
                tokio::time::sleep(PREDECESSOR_LOOK).await;
            };
            if let Some(addr) = bound {
                render::print(&format!("admin {addr}"))?;
            }
            let Some(addr) = settings.metrics.value else { return Ok(()) };
            let bound = loop {
                match metrics::listen(addr, answers.clone(), &group).await {
                    Err(_) if Instant::now() < patience => {}
                    outcome => break outcome?,
                }
                tokio::time::sleep(PREDECESSOR_LOOK).await;
            };
            render::print(&format!("metrics {bound}"))
        };
        if let Err(failure) = listening.await {
            stop(&group, &links, &tunnels).await;
            return Err(failure);
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
        announce(&answers, &group);
        if let Member::Server(delivered) = &node.member {
            delivered.report(answers, &group);
        }
        give_back_code(&group);
        if !node.settings.exports.value.is_empty() {
            watch_forwarding(&node.facts, &group);
        }
        let end = node.serve(&group, persisted, ordered).await;
        let is_retired = end != End::Stopped;
        if is_retired {
            departure.leave();
            if let Some(tun) = own_plane.tun()
                && let Err(error) = tun.persist(false)
            {
                tracing::debug!(%error, "The TUN is gone already");
            }
        }
        tokio::select! {
            () = stop(&group, &links, &tunnels) => {}
            () = second_signal() => {}
        }
        own_plane.close();
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

/// The running node's own loop: persists, reloads, waits for the end.
struct Node<'a> {
    settings: Settings,
    run: Run,
    matches: clap::ArgMatches,
    identity: Arc<Identity>,
    member: Member,
    hostname: String,
    boot: u32,
    unix: u64,
    commands: mpsc::Sender<Command>,
    state: &'a mut State,
    facts: Arc<Facts>,
}

impl Node<'_> {
    /// Runs until the node is told to stop or to retire, or its parts end.
    async fn serve(
        &mut self,
        group: &TaskGroup,
        mut persisted: mpsc::Receiver<Persist>,
        mut orders: mpsc::Receiver<Order>,
    ) -> End {
        let stop = stop_signal();
        tokio::pin!(stop);
        let hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup());
        let Ok(mut hangup) = hangup else { return End::Stopped };
        loop {
            tokio::select! {
                () = &mut stop => {
                    tracing::info!("Stopping");
                    return match self.asked_to_retire().await {
                        true => End::StoppedAndRetired,
                        false => End::Stopped,
                    };
                }
                word = heard(&mut self.member) => if self.obey(word).await {
                    return End::Retired;
                },
                () = group.token().cancelled() => return End::Stopped,
                Some(persist) = persisted.recv() => self.state.set_claim(persist.claim),
                // The asker may have gone; what was ordered stands.
                Some(order) = orders.recv() => match order {
                    Order::Reload(answer) => {
                        let _ = answer.send(self.reload().await);
                    }
                    Order::Retire(answer) => match self.state.set_retired(true) {
                        Ok(()) => {
                            let _ = answer.send(Ok("This node leaves for good".to_owned()));
                            return End::Retired;
                        }
                        Err(error) => {
                            let _ = answer.send(Err(format!("cannot keep that it retires: {error}")));
                        }
                    },
                },
                _ = hangup.recv() => match self.reload().await {
                    Ok(message) => tracing::info!("{message}"),
                    Err(message) => tracing::warn!("{message}"),
                },
            }
        }
    }

    /// At SIGTERM: whether the server wants everything removed that this node made.
    async fn asked_to_retire(&mut self) -> bool {
        let Some(delivered) = self.member.delivered() else { return false };
        let retire = delivered.link.up.leaving().await;
        if retire {
            delivered.forget();
            if let Err(error) = self.state.set_retired(true) {
                tracing::warn!(%error, "Could not keep that this node retires");
            }
        }
        retire
    }

    /// Does what the server said, or what follows from a trial; true if the node shall not come back.
    async fn obey(&mut self, word: Word) -> bool {
        match word {
            Word::Desired(desired) => self.deliver(desired).await,
            Word::Retire(kept) => match self.state.set_retired(true) {
                Ok(()) => {
                    if let Some(delivered) = self.member.delivered() {
                        delivered.forget();
                    }
                    // The session may have ended in between; the server asks again.
                    let _ = kept.send(());
                    return true;
                }
                Err(error) => tracing::warn!(%error, "Could not keep that this node retires"),
            },
            Word::Look => {
                let before = self.member.delivered().and_then(Delivered::look);
                if let Some(partial) = before
                    && let Ok(settings) =
                        settings::merge_delivered(&self.run, &self.matches, partial)
                {
                    let revision = self.member.revision().unwrap_or_default();
                    self.configure(settings, revision).await;
                    let message = format!("Revision {revision} is in force again");
                    let notice = Notice::new(NoticeKind::ConfigRolledBack, None, message);
                    // A driver that is gone has no log of events either.
                    let _ = self.commands.send(Command::Record(notice)).await;
                }
            }
        }
        false
    }

    /// Applies what the server wants: the keys in any case, the configuration if all of it is valid and can change in a
    /// running node.
    async fn deliver(&mut self, desired: Arc<Desired>) {
        let Some(delivered) = self.member.delivered() else { return };
        let (partial, refused) = match delivered.read(&desired) {
            Ok(read) => read,
            Err(unfit) => return delivered.refused(desired.revision, unfit),
        };
        let next = match refused {
            Some(why) => Err(why),
            None => settings::merge_delivered(&self.run, &self.matches, partial.clone())
                .map_err(|failure| failure.to_string())
                .and_then(|next| self.can_become(&next).map(|()| next)),
        };
        let changed = next.as_ref().is_ok_and(|next| *next != self.settings);
        let revision = match &next {
            Ok(_) => desired.revision,
            Err(_) => self.member.revision().unwrap_or_default(),
        };
        self.configure(next.as_ref().unwrap_or(&self.settings).clone(), revision).await;
        let Some(delivered) = self.member.delivered() else { return };
        match next {
            Ok(_) => {
                let is_new = desired.revision != delivered.revision();
                if is_new {
                    tracing::info!(revision = desired.revision, "The configuration is applied");
                }
                delivered.applied(desired, partial, changed);
            }
            Err(why) => delivered.refused(desired.revision, why),
        }
    }

    /// Hands the engine this configuration, with the membership of now.
    async fn configure(&mut self, next: Settings, revision: u64) {
        let config = translate(
            &next,
            &self.identity,
            &self.member,
            self.state,
            &self.hostname,
            (self.boot, self.unix),
        );
        let command = Command::Configure {
            config: Box::new(config),
            names: names(&next),
            translation: translation(&next),
        };
        if self.commands.send(command).await.is_err() {
            return;
        }
        self.facts.applied.store(Arc::new(applied(&next, revision)));
        self.settings = next;
    }

    /// Reads the configuration again. Nothing is applied unless all of it is valid and can change in a running node.
    async fn reload(&mut self) -> Result<String, String> {
        let partial =
            self.member.delivered().map(|delivered| delivered.partial()).unwrap_or_default();
        let next = settings::merge_delivered(&self.run, &self.matches, partial)
            .map_err(|failure| failure.to_string())?;
        self.can_become(&next)?;
        if next == self.settings {
            return Ok("The configuration is the same".to_owned());
        }
        let revision = self.member.revision().unwrap_or(self.facts.applied().revision + 1);
        self.configure(next, revision).await;
        Ok(format!("The configuration is applied, as revision {revision}"))
    }

    /// Whether a running node can change to `next`.
    fn can_become(&self, next: &Settings) -> Result<(), String> {
        let now = &self.settings;
        let fixed = [
            ("network.name", next.network.value == now.network.value),
            ("network.secretFile", next.secret_file.value == now.secret_file.value),
            ("node.hostname", next.hostname.value == now.hostname.value),
            ("node.stateDir", next.state_dir.value == now.state_dir.value),
            ("node.tun", next.tun.value == now.tun.value),
            ("listen", next.listen.value == now.listen.value),
            ("admin", next.admin.value == now.admin.value),
            ("adminTokenFile", next.admin_token_file.value == now.admin_token_file.value),
            ("metrics", next.metrics.value == now.metrics.value),
        ];
        let changed: Vec<&str> =
            fixed.iter().filter(|(_, same)| !same).map(|(key, _)| *key).collect();
        if !changed.is_empty() {
            return Err(format!(
                "in a running node {} cannot change: restart it. Nothing was changed.",
                changed.join(", ")
            ));
        }
        Ok(())
    }
}

/// How a node's own loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Its process ends, or starts again; what it made stays if it is an agent.
    Stopped,
    /// Its process ends, and nothing of what it made stays.
    StoppedAndRetired,
    /// It left for good; its process ends when it is told to.
    Retired,
}

/// Something that the server said, or time to look how a trial goes.
enum Word {
    Desired(Arc<Desired>),
    Retire(oneshot::Sender<()>),
    Look,
}

/// Waits for the server; for ever, if there is none. Cancelling it loses nothing.
async fn heard(member: &mut Member) -> Word {
    let Some(delivered) = member.delivered() else { return std::future::pending().await };
    let link = &mut delivered.link;
    tokio::select! {
        Ok(()) = link.desired.changed() => match link.desired.borrow_and_update().clone() {
            Some(desired) => Word::Desired(desired),
            None => Word::Look,
        },
        Some(kept) = link.retire.recv() => Word::Retire(kept),
        () = tokio::time::sleep(TRIAL_LOOK) => Word::Look,
    }
}

/// Says once that the node is ready, with its addresses.
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
    tunnels.close_all();
    if let Err(failure) = group.join(STOP_WITHIN).await
        && !failure.stuck.is_empty()
    {
        tracing::warn!(tasks = ?failure.stuck, "Left behind");
    }
    links.cancel();
    let _ = links.join(Duration::from_millis(200)).await;
}

fn translate(
    settings: &Settings,
    identity: &Arc<Identity>,
    member: &Member,
    state: &State,
    hostname: &str,
    (boot, unix): (u32, u64),
) -> Config {
    let capabilities =
        if settings.transit.value { wire::certificate::CAPABILITY_TRANSIT } else { 0 };
    let Standing { membership, records } = member.standing(identity, hostname, capabilities);
    Config {
        identity: Arc::clone(identity),
        membership,
        records,
        boot,
        hostname: hostname.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ipv4: match settings.ipv4.value {
            Address4::Off => Ipv4Policy::Off,
            Address4::Fixed(net) => Ipv4Policy::Fixed(net),
            Address4::Auto => Ipv4Policy::Auto { range: settings.range.value, kept: state.claim() },
        },
        ipv6: match settings.ipv6.value {
            Address6::Off => Ipv6Policy::Off,
            Address6::Fixed(net) => Ipv6Policy::Fixed(net),
            Address6::Auto => Ipv6Policy::Auto,
        },
        exports: settings.exports.value.iter().map(config::Export::announced).collect(),
        behind: settings
            .exports
            .value
            .iter()
            .filter(|export| export.map_to.is_some())
            .map(|export| export.cidr)
            .collect(),
        imports: match settings.imports.value.mode {
            ImportMode::All => Imports::All,
            ImportMode::Listed => Imports::Listed(settings.imports.value.cidrs.clone()),
            ImportMode::None => Imports::None,
        },
        protected: settings.protected.value.clone(),
        bootstrap: settings
            .peers
            .value
            .iter()
            .map(|peer| Bootstrap {
                transport: match peer.scheme {
                    Scheme::Udp => Transport::Udp,
                    Scheme::Tcp => Transport::Tcp,
                },
                keys: peer.keys.as_ref().and_then(|keys| NodeKeys::from_slice(keys)),
            })
            .collect(),
        mtu: settings.mtu.value.bytes(),
        transit: settings.transit.value,
        p2p: match settings.p2p.value {
            config::P2p::On => P2p::On,
            config::P2p::RelayOnly => P2p::RelayOnly,
        },
        punch: match settings.punch.value {
            config::Punch::Full => PunchMode::Full,
            config::Punch::Light => PunchMode::Light,
            config::Punch::Off => PunchMode::Off,
        },
        aead: aead(),
        unix_at_start: unix,
    }
}

/// How addresses change between the mesh and what is behind this node.
fn translation(settings: &Settings) -> nft::Translation {
    let exports = settings.exports.value.iter().map(|export| nft::Export {
        prefix: export.cidr,
        mapped: export.map_to,
        masquerade: match export.masquerade {
            config::Masquerade::Inbound => nft::Masquerade::Inbound,
            config::Masquerade::Never => nft::Masquerade::Never,
            config::Masquerade::Always => nft::Masquerade::Always,
        },
    });
    nft::Translation { exports: exports.collect(), exempt: settings.exempt.value.clone() }
}

fn names(settings: &Settings) -> Vec<Name> {
    settings
        .peers
        .value
        .iter()
        .map(|peer| Name { host: peer.host.clone(), port: peer.port })
        .collect()
}

/// Opens what is to be listened on; a node that listens nowhere still needs a socket of its own.
fn listen(
    wanted: &[Listen],
    sockets: &UdpSockets,
    tunnels: &Tunnels,
) -> Result<Vec<Listener>, Failure> {
    let taken = |what: &str, error: std::io::Error| {
        Failure::failed(
            format!("Cannot listen on {what}: {error}"),
            "Choose another port with --listen; 0 takes the first free one from 15888 upwards.",
        )
    };
    let mut listeners = Vec::new();
    let listening = |url| Listener { url, state: "listening".to_owned(), error: None };
    for listen in wanted {
        match *listen {
            Listen::None => {}
            Listen::Port(port) => {
                let ports: Vec<u16> = if port == 0 {
                    (config::FIRST_FREE_PORT..config::FIRST_FREE_PORT + 1000)
                        .filter(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
                        .take(PORTS_TRIED)
                        .collect()
                } else {
                    vec![port]
                };
                let bound =
                    ports.iter().find_map(|port| Some((sockets.bind_dual(*port).ok()?, *port)));
                let Some((bound, port)) = bound else {
                    let error = sockets
                        .bind_dual(port)
                        .err()
                        .unwrap_or_else(|| std::io::ErrorKind::AddrInUse.into());
                    return Err(taken(&format!("UDP port {port}"), error));
                };
                for socket in bound {
                    listeners.push(listening(view::url("udp", socket.local())));
                }
                for addr in [([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()] {
                    match tunnels.listen_tcp(addr) {
                        Ok(local) => listeners.push(listening(view::url("tcp", local))),
                        Err(error)
                            if error.kind() == std::io::ErrorKind::AddrInUse || addr.is_ipv4() =>
                        {
                            tracing::warn!(%error, port = addr.port(), "Not listening on TCP");
                            listeners.push(Listener {
                                url: view::url("tcp", addr),
                                state: "failed".to_owned(),
                                error: Some(error.to_string()),
                            });
                        }
                        // A host without IPv6 has nothing to listen on.
                        Err(error) => tracing::debug!(%error, "Not listening on TCP over IPv6"),
                    }
                }
            }
            Listen::Url(Scheme::Udp, addr) => {
                let socket =
                    sockets.bind(addr).map_err(|error| taken(&format!("udp://{addr}"), error))?;
                listeners.push(listening(view::url("udp", socket.local())));
            }
            Listen::Url(Scheme::Tcp, addr) => {
                let local = tunnels
                    .listen_tcp(addr)
                    .map_err(|error| taken(&format!("tcp://{addr}"), error))?;
                listeners.push(listening(view::url("tcp", local)));
            }
        }
    }
    if sockets.table().is_empty() {
        sockets.bind_dual(0).map_err(|error| taken("any UDP port", error))?;
    }
    Ok(listeners)
}

fn tun_view(tun: &Tun, sockets: &UdpSockets, mtu: u16) -> view::Tun {
    let offloads = tun.offloads();
    let (gso, gro) =
        sockets.table().values().next().map_or((false, false), |socket| socket.offloads());
    view::Tun {
        name: tun.name().to_owned(),
        mtu,
        queues: 1,
        offload: view::Offload {
            checksum: offloads.checksum,
            tcp: offloads.tcp,
            udp: offloads.udp,
            udp_gso: gso,
            udp_gro: gro,
        },
    }
}

fn applied(settings: &Settings, revision: u64) -> Applied {
    let rows = settings.rows().into_iter().map(
        |(key, value, origin)| serde_json::json!({"key": key, "value": value, "origin": origin.to_string()}),
    );
    let starts = settings.peers.value.iter().map(|peer| {
        let url = config::PeerUrl { keys: None, ..peer.clone() }.to_string();
        Start { url, pinned: peer.keys.is_some() }
    });
    Applied { revision, at: SystemTime::now(), settings: rows.collect(), starts: starts.collect() }
}

/// Opens the TUN. A successor waits for its predecessor to be gone, and makes it stay for its own successor.
async fn open_tun(name: &str, is_agent: bool) -> Result<Tun, TunError> {
    let until = Instant::now() + PREDECESSOR_GONE;
    let tun = loop {
        match Tun::open(name) {
            Err(TunError::NameTaken(_)) if is_agent && Instant::now() < until => {
                tokio::time::sleep(PREDECESSOR_LOOK).await;
            }
            outcome => break outcome?,
        }
    };
    if is_agent {
        tun.persist(true)
            .map_err(|error| TunError::Other { doing: "make the TUN device stay", error })?;
    }
    Ok(tun)
}

/// Takes a TUN into use whenever there is none: because the host had none before, or somebody removed it.
fn keep_tun(
    name: String,
    mtu: u16,
    is_agent: bool,
    plane: &Arc<Plane>,
    facts: &Arc<Facts>,
    group: &TaskGroup,
) {
    let (plane, facts) = (Arc::clone(plane), Arc::clone(facts));
    group.spawn("tun", async move {
        loop {
            tokio::time::sleep(TUN_RETRY).await;
            if plane.tun().is_some() {
                continue;
            }
            match open_tun(&name, is_agent).await {
                Ok(tun) => {
                    tracing::info!("The TUN device is there again");
                    facts.tun.store(Arc::new(Ok(tun_view(&tun, &facts.sockets, mtu))));
                    plane.set_tun(Arc::new(tun));
                }
                Err(error) => facts.tun.store(Arc::new(Err(tun_message(&error)))),
            }
        }
    });
}

/// Waits until a predecessor has let go of the ports.
async fn ports_free(wanted: &[Listen]) {
    let taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let udp = |addr: SocketAddr| std::net::UdpSocket::bind(addr).is_err_and(taken);
    let tcp = |addr: SocketAddr| std::net::TcpListener::bind(addr).is_err_and(taken);
    let is_busy = |listen: &Listen| match *listen {
        Listen::None | Listen::Port(0) => false,
        Listen::Port(port) => [([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()]
            .into_iter()
            .any(|addr| udp(addr) || tcp(addr)),
        Listen::Url(Scheme::Udp, addr) => udp(addr),
        Listen::Url(Scheme::Tcp, addr) => tcp(addr),
    };
    let until = Instant::now() + PREDECESSOR_GONE;
    while wanted.iter().any(is_busy) && Instant::now() < until {
        tokio::time::sleep(PREDECESSOR_LOOK).await;
    }
}

fn tun_message(error: &TunError) -> String {
    let (what, remedy) = tun_words(error);
    format!("{what}. {remedy}")
}

/// What is wrong with the TUN device, and what to do about it, as two sentences.
fn tun_words(error: &TunError) -> (String, String) {
    let text = error.to_string();
    match text.split_once(": ") {
        Some((what, remedy)) if !matches!(error, TunError::Other { .. }) => {
            (format!("Cannot make the TUN device: {what}"), sentence(remedy))
        }
        Some(_) | None => {
            (format!("Cannot make the TUN device: {text}"), "See `easynet doctor`.".to_owned())
        }
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).chain(['.']).collect()
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

fn machine_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "unnamed".to_owned())
}
