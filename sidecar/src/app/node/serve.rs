//! The running node's own loop.

use std::{sync::Arc, time::Duration};

use config::{Hostname, Settings};
use engine::event::{Notice, NoticeKind, Persist};
use netio::{driver::Command, task::TaskGroup};
use rpc::feed::Desired;
use session::identity::Identity;
use tokio::sync::{mpsc, oneshot};

use super::{
    super::{delivered::Delivered, stop_signal},
    Member,
    translate::{applied, names, translate, translation},
};
use crate::{admin::Order, args::Run, settings, state::State, view::Facts};

/// How often it is looked whether a configuration on trial cut the node off.
const TRIAL_LOOK: Duration = Duration::from_secs(1);

/// Persists, reloads, obeys the server, waits for the end.
pub(super) struct Node<'a> {
    pub(super) settings: Settings,
    pub(super) run: Run,
    pub(super) matches: clap::ArgMatches,
    pub(super) identity: Arc<Identity>,
    pub(super) member: Member,
    pub(super) hostname: Hostname,
    pub(super) boot: u32,
    /// When it began.
    pub(super) unix: u64,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) state: &'a mut State,
    pub(super) facts: Arc<Facts>,
}

impl Node<'_> {
    /// Runs until the node is told to stop or to retire, or its parts end.
    pub(super) async fn serve(
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
                Some(persist) = persisted.recv() => {
                    self.state.set_boot(persist.boot);
                    self.state.set_claim(persist.claim);
                }
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
        let (config, refused) = match delivered.read(&desired) {
            Ok(read) => read,
            Err(unfit) => return delivered.refused(desired.revision, unfit),
        };
        let next = match refused {
            Some(why) => Err(why),
            None => settings::merge_delivered(&self.run, &self.matches, config.partial.clone())
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
                delivered.applied(desired, config, changed);
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
pub(super) enum End {
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
