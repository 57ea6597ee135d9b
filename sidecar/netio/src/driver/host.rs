//! Keeps the host's network as the engine wants it: addresses and routes through netlink, translation through nft.
//!
//! A task of its own, since the kernel may take its time and packets do not wait. The latest wish wins. What somebody
//! else changes meanwhile is put back: the kernel tells of it, and twice a minute everything is looked at anyway.
//!
//! An agent's successor finds what its predecessor left and takes it over: nothing is removed that may be wanted
//! again, so that connections do not notice. Routes that nobody asked for within [`ADOPTED_FOR`] go then.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use engine::event::Host;
use ipnet::IpNet;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::wait;
use crate::{
    netlink::{self, HostConfig, Netlink},
    nft::{self, NftConfig, Translation},
    task::TaskGroup,
};

/// Everything is looked at even if the kernel told of nothing: a back-stop.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Changes come in bursts, and their author may not be done yet.
const SETTLE: Duration = Duration::from_millis(100);
/// Whoever keeps changing what is ours is answered this often, and no more.
const REPAIR_EVERY: Duration = Duration::from_secs(1);
/// A successor has learned the mesh's routes anew by then.
const ADOPTED_FOR: Duration = Duration::from_secs(10);

/// How the host took the last wish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Everything wanted is there.
    pub applied: bool,
    /// What is not, in words for a person.
    pub problems: Vec<String>,
    /// How often something was put back that somebody else had changed.
    pub repairs: u64,
}

/// Whether what is on the host outlives the process: an agent's successor goes on with it, everybody else cleans up.
#[derive(Clone, Debug, Default)]
pub struct Departure(Arc<AtomicBool>);

impl Departure {
    /// From now on the process goes silently: the network is not left, and nothing is removed.
    pub fn stay(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// From now on the process leaves the network and cleans up; so it is at first.
    pub fn leave(&self) {
        self.0.store(false, Ordering::Release);
    }

    pub fn stays(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// What a host task is for.
#[derive(Clone, Debug)]
pub struct HostParts {
    /// Its name; the interface exists.
    pub tun: String,
    /// The TUN that this node had before, if it had another name: what it left goes too.
    pub former_tun: Option<String>,
    pub translation: Translation,
    /// Takes over what a predecessor with this TUN left, instead of removing it.
    pub adopt: bool,
    pub departure: Departure,
}

/// Handle of the task.
#[derive(Debug)]
pub struct HostTask {
    tun: String,
    wish: watch::Sender<Wish>,
    state: watch::Receiver<HostState>,
}

#[derive(Clone, Debug, Default)]
struct Wish {
    host: Option<Host>,
    translation: Translation,
}

impl HostTask {
    /// Starts the task; when its group ends it removes what it made, or leaves it, as [`HostParts::departure`] then says.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn spawn(parts: HostParts, links: &TaskGroup, group: &TaskGroup) -> std::io::Result<Self> {
        let netlink = Netlink::new(links)?;
        let wish = Wish { host: None, translation: parts.translation.clone() };
        let (wish, mut wishes) = watch::channel(wish);
        let (states, state) = watch::channel(HostState::default());
        let mut links_changed = netlink::drift::watch(&parts.tun, netlink.own(), group);
        let mut tables_changed = nft::drift::watch(&parts.tun, group);
        let tun = parts.tun.clone();
        let mut keeper = Keeper::new(parts, netlink);
        group.spawn_graceful("host", move |token| async move {
            keeper.begin().await;
            let mut adopted_until = Some(Instant::now() + ADOPTED_FOR);
            let (mut repair_at, mut repaired_at) = (None::<Instant>, Instant::now());
            let mut look_at = Instant::now() + LOOK_EVERY;
            let mut repairs = 0;
            loop {
                let mut looks = false;
                let due = |now: Instant| Some((now + SETTLE).max(repaired_at + REPAIR_EVERY));
                tokio::select! {
                    () = token.cancelled() => break,
                    changed = wishes.changed() => if changed.is_err() { break },
                    Some(()) = links_changed.recv() => {
                        repair_at = repair_at.or(due(Instant::now()));
                        continue;
                    }
                    Some(()) = tables_changed.recv() => {
                        repair_at = repair_at.or(due(Instant::now()));
                        continue;
                    }
                    () = wait(repair_at) => looks = true,
                    () = sleep_until(look_at) => looks = true,
                    () = wait(adopted_until) => {
                        adopted_until = None;
                        keeper.release();
                    }
                }
                let wish = wishes.borrow_and_update().clone();
                let Some(host) = wish.host else { continue };
                if looks {
                    let now = Instant::now();
                    (repair_at, repaired_at, look_at) = (None, now, now + LOOK_EVERY);
                    let put_back = keeper.look(&host, &wish.translation).await;
                    if put_back > 0 {
                        repairs += 1;
                        tracing::warn!(
                            changes = put_back,
                            "Put back what somebody else had changed"
                        );
                    }
                }
                let problems = keeper.apply(&host, &wish.translation).await;
                if states.borrow().problems != problems {
                    for problem in &problems {
                        tracing::warn!("{problem}");
                    }
                }
                states.send_replace(HostState { applied: problems.is_empty(), problems, repairs });
            }
            keeper.end().await;
            Ok(())
        });
        Ok(Self { tun, wish, state })
    }

    /// The name of the TUN.
    pub fn tun(&self) -> &str {
        &self.tun
    }

    /// What the host shall have from now on.
    pub fn want(&self, host: Host) {
        self.wish.send_modify(|wish| wish.host = Some(host));
    }

    /// How addresses are translated from now on.
    pub fn translate(&self, translation: Translation) {
        self.wish.send_if_modified(|wish| {
            let changed = wish.translation != translation;
            wish.translation = translation;
            changed
        });
    }

    pub fn state(&self) -> HostState {
        self.state.borrow().clone()
    }
}

/// What is on the host, and how it gets there.
struct Keeper {
    parts: HostParts,
    netlink: Netlink,
    config: HostConfig,
    table: Option<Table>,
}

/// Our table as we wrote it, and as `nft` then showed it.
struct Table {
    config: NftConfig,
    shown: String,
}

impl Keeper {
    fn new(parts: HostParts, netlink: Netlink) -> Self {
        let config = HostConfig::new(parts.tun.clone(), 1320);
        Self { parts, netlink, config, table: None }
    }

    async fn begin(&mut self) {
        if self.parts.adopt {
            match self.netlink.found(self.config.table).await {
                Ok(found) => self.config.spared = found,
                Err(error) => tracing::debug!(%error, "Nothing taken over"),
            }
            return;
        }
        // Who has an interface of that name now has its table, too.
        let is_there = |tun: &String| Path::new("/sys/class/net").join(tun).exists();
        let former = self.parts.former_tun.take().filter(|former| !is_there(former));
        for tun in former.into_iter().chain([self.parts.tun.clone()]) {
            if let Err(error) = self.netlink.sweep([tun.as_str()]).await {
                tracing::debug!(%error, "Nothing swept");
            }
            if let Err(error) = nft::remove(&tun).await {
                tracing::debug!(%error, "No table of ours removed");
            }
        }
    }

    /// What a predecessor left and nobody asked for is not wanted.
    fn release(&mut self) {
        self.config.spared.clear();
    }

    /// Compares with what is really there and mends it; returns how much there was to mend. A wish that was not
    /// applied yet is none of that.
    async fn look(&mut self, host: &Host, translation: &Translation) -> usize {
        let was_applied = self.netlink.is_applied(&self.wanted(host, translation));
        self.netlink.resync();
        let mut mended = 0;
        if was_applied && let Ok(report) = self.netlink.apply(&self.config).await {
            mended += report.changed;
        }
        if let Some(table) = &self.table {
            let is_ours = match nft::show(&self.parts.tun).await {
                Ok(shown) => shown == table.shown,
                Err(nft::Error::Refused(_)) => false,
                // Nothing is known of it, and nothing could be done.
                Err(nft::Error::Missing | nft::Error::Io(_)) => true,
            };
            if !is_ours {
                self.table = None;
                mended += 1;
            }
        }
        mended
    }

    fn wanted(&self, host: &Host, translation: &Translation) -> HostConfig {
        let exports = translation.exports.iter();
        HostConfig {
            mtu: u32::from(host.mtu),
            addresses: host.addresses.iter().map(|net| exact(*net)).collect::<BTreeSet<_>>(),
            routes: host.routes.iter().map(|net| (*net, None)).collect::<BTreeMap<_, _>>(),
            exports: exports.map(|export| export.prefix).collect(),
            ..self.config.clone()
        }
    }

    async fn apply(&mut self, host: &Host, translation: &Translation) -> Vec<String> {
        let mut problems = Vec::new();
        let tun = &self.parts.tun;
        self.config = self.wanted(host, translation);
        match self.netlink.apply(&self.config).await {
            Ok(report) => {
                problems.extend(
                    report
                        .failed
                        .iter()
                        .map(|(change, error)| format!("Could not {change}: {error}")),
                );
                problems.extend(report.findings.iter().map(ToString::to_string));
            }
            Err(error) => problems.push(format!("Could not configure {tun}: {error}")),
        }
        let config = NftConfig {
            tun: tun.clone(),
            mtu: u32::from(host.mtu),
            translation: translation.clone(),
        };
        if self.table.as_ref().is_none_or(|table| table.config != config) {
            match nft::apply(&config).await {
                Ok(()) => {
                    let shown = nft::show(tun).await.unwrap_or_default();
                    self.table = Some(Table { config, shown });
                }
                Err(error) => {
                    self.table = None;
                    problems.push(format!("No address translation and no MSS clamp: {error}"));
                }
            }
        }
        problems
    }

    async fn end(&mut self) {
        if self.parts.departure.stays() {
            return;
        }
        if let Err(error) = nft::remove(&self.parts.tun).await {
            tracing::debug!(%error, "No table of ours removed");
        }
        if let Err(error) = self.netlink.remove(&self.config).await {
            tracing::warn!(%error, "Could not remove routes and rules");
        }
    }
}

/// The address alone: what lies behind it is routed in a table of our own.
fn exact(net: IpNet) -> IpNet {
    IpNet::from(net.addr())
}
