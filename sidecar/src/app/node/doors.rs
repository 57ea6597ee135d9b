//! Where a node is asked: the admin socket and the metrics endpoint.

use std::time::Instant;

use config::{Secret, Settings};
use netio::task::TaskGroup;

use super::PREDECESSOR_LOOK;
use crate::{
    admin::{self, Answers, Desk},
    error::Failure,
    metrics, render,
};

/// Bound before the node says anything to others, for one that is taken is the node's end; nobody is answered yet.
#[derive(Debug)]
pub(super) struct Doors {
    admin: admin::Door,
    metrics: Option<metrics::Door>,
}

impl Doors {
    /// Binds them. Until `patience` is over a predecessor may have them.
    pub(super) async fn bind(
        settings: &Settings,
        token: Option<&Secret>,
        patience: Instant,
    ) -> Result<Self, Failure> {
        let admin = patiently(patience, || admin::Door::bind(&settings.admin.value, token)).await?;
        let metrics = match settings.metrics.value {
            Some(addr) => Some(patiently(patience, || metrics::Door::bind(addr)).await?),
            None => None,
        };
        Ok(Self { admin, metrics })
    }

    /// Answers from now on, and says where if that is not known before.
    pub(super) fn open(self, answers: &Answers, group: &TaskGroup) -> Result<(), Failure> {
        if let Some(addr) = self.admin.local() {
            render::print(&format!("admin {addr}"))?;
        }
        self.admin.open(Desk::Node(answers.clone()), group);
        let Some(metrics) = self.metrics else { return Ok(()) };
        render::print(&format!("metrics {}", metrics.local()))?;
        metrics.open(metrics::Source::Node(answers.clone()), group);
        Ok(())
    }
}

async fn patiently<T, F: Future<Output = Result<T, Failure>>>(
    patience: Instant,
    bind: impl Fn() -> F,
) -> Result<T, Failure> {
    loop {
        match bind().await {
            Err(_) if Instant::now() < patience => tokio::time::sleep(PREDECESSOR_LOOK).await,
            outcome => return outcome,
        }
    }
}
