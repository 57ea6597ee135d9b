//! What answers while no node runs: an agent that stands by, one that has retired, one that has no configuration yet.
//!
//! The first two say that they are ready, for there is nothing to wait for: a roll-out goes on when the successor says so. Its
//! predecessor may still have the addresses; they are tried again until they are free.

use std::{sync::Arc, time::Duration};

use config::Settings;
use netio::task::TaskGroup;

use crate::{
    admin::{self, Desk},
    metrics, settings, state,
    view::Status,
};

/// How often an address is tried that somebody else has.
const RETRY: Duration = Duration::from_millis(100);
const CLOSE_WITHIN: Duration = Duration::from_millis(500);

/// Open until it is closed.
pub(super) struct Lobby {
    group: TaskGroup,
}

impl Lobby {
    pub(super) fn open(
        settings: &Settings,
        hostname: &str,
        is_ready: bool,
        (reason, message): (&str, &str),
    ) -> Self {
        let group = TaskGroup::new("lobby");
        let identity = state::read_identity(&settings.state_dir.value).ok().flatten();
        let node = identity.map(|identity| identity.node().to_string());
        let status = Status::lobby(hostname.to_owned(), node, reason, message);
        let status = Arc::new(Status { ready: is_ready, ..status });
        let (admin, token_file) =
            (settings.admin.value.clone(), settings.admin_token_file.value.clone());
        let own = group.clone();
        group.spawn_transient("lobby admin", async move {
            loop {
                let token = token_file.as_deref().and_then(|file| settings::token(file).ok());
                if let Ok(door) = admin::Door::bind(&admin, token.as_ref()).await {
                    door.open(Desk::Lobby(status), &own);
                    return Ok(());
                }
                tokio::time::sleep(RETRY).await;
            }
        });
        if let Some(addr) = settings.metrics.value {
            let own = group.clone();
            group.spawn_transient("lobby metrics", async move {
                loop {
                    if let Ok(door) = metrics::Door::bind(addr).await {
                        door.open(metrics::Source::Lobby { is_ready }, &own);
                        return Ok(());
                    }
                    tokio::time::sleep(RETRY).await;
                }
            });
        }
        Self { group }
    }

    /// Frees the addresses.
    pub(super) async fn close(self) {
        self.group.cancel();
        if let Err(failure) = self.group.join(CLOSE_WITHIN).await {
            tracing::debug!(?failure, "The lobby did not close well");
        }
    }
}
