//! Keeps the host's network as the engine wants it: addresses and routes through netlink, translation through nft.
//!
//! A task of its own, since the kernel may take its time and packets do not wait. The latest wish wins.

use std::collections::{BTreeMap, BTreeSet};

use engine::event::Host;
use ipnet::IpNet;
use tokio::sync::watch;

use crate::{
    netlink::{HostConfig, Netlink},
    nft::{self, Export, NftConfig},
    task::TaskGroup,
};

/// How the host took the last wish.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostState {
    /// Everything wanted is there.
    pub applied: bool,
    /// What is not, in words for a person.
    pub problems: Vec<String>,
}

/// Handle of the task.
#[derive(Debug)]
pub struct HostTask {
    wish: watch::Sender<Option<Host>>,
    state: watch::Receiver<HostState>,
}

impl HostTask {
    /// Starts the task for a TUN that exists; it removes what it made when its group ends.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn spawn(
        tun: String,
        exports: Vec<IpNet>,
        links: &TaskGroup,
        group: &TaskGroup,
    ) -> std::io::Result<Self> {
        let mut netlink = Netlink::new(links)?;
        let (wish, mut wishes) = watch::channel(None::<Host>);
        let (states, state) = watch::channel(HostState::default());
        group.spawn_graceful("host", move |token| async move {
            let mut config = HostConfig::new(tun.clone(), 1320);
            config.exports = exports.iter().copied().collect();
            if let Err(error) = netlink.sweep([tun.as_str()]).await {
                tracing::debug!(%error, "Nothing swept");
            }
            if let Err(error) = nft::remove(&tun).await {
                tracing::debug!(%error, "No table of ours removed");
            }
            let mut rules = None;
            loop {
                tokio::select! {
                    () = token.cancelled() => break,
                    changed = wishes.changed() => if changed.is_err() { break },
                }
                let Some(host) = wishes.borrow_and_update().clone() else { continue };
                let state =
                    apply(&mut netlink, &mut config, &mut rules, &tun, &exports, &host).await;
                for problem in &state.problems {
                    tracing::warn!("{problem}");
                }
                states.send_replace(state);
            }
            if let Err(error) = nft::remove(&tun).await {
                tracing::debug!(%error, "No table of ours removed");
            }
            if let Err(error) = netlink.remove(&config).await {
                tracing::warn!(%error, "Could not remove routes and rules");
            }
            Ok(())
        });
        Ok(Self { wish, state })
    }

    /// What the host shall have from now on.
    pub fn want(&self, host: Host) {
        self.wish.send_replace(Some(host));
    }

    pub fn state(&self) -> HostState {
        self.state.borrow().clone()
    }
}

async fn apply(
    netlink: &mut Netlink,
    config: &mut HostConfig,
    rules: &mut Option<NftConfig>,
    tun: &str,
    exports: &[IpNet],
    host: &Host,
) -> HostState {
    let mut problems = Vec::new();
    config.mtu = u32::from(host.mtu);
    config.addresses = host.addresses.iter().map(|net| exact(*net)).collect::<BTreeSet<_>>();
    config.routes = host.routes.iter().map(|net| (*net, None)).collect::<BTreeMap<_, _>>();
    match netlink.apply(config).await {
        Ok(report) => {
            problems.extend(
                report
                    .failed
                    .iter()
                    .map(|(change, error)| format!("Could not {change:?}: {error}")),
            );
            problems.extend(report.findings.iter().map(|finding| format!("{finding:?}")));
        }
        Err(error) => problems.push(format!("Could not configure {tun}: {error}")),
    }
    let wanted = NftConfig {
        tun: tun.to_owned(),
        mtu: u32::from(host.mtu),
        exports: exports
            .iter()
            .map(|prefix| Export { prefix: *prefix, mapped: None, masquerade: true })
            .collect(),
    };
    if rules.as_ref() != Some(&wanted) {
        match nft::apply(&wanted).await {
            Ok(()) => *rules = Some(wanted),
            Err(error) => {
                problems.push(format!("No address translation and no MSS clamp: {error}"))
            }
        }
    }
    HostState { applied: problems.is_empty(), problems }
}

/// The address alone: what lies behind it is routed in a table of our own.
fn exact(net: IpNet) -> IpNet {
    IpNet::from(net.addr())
}
