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
        let admin = loop {
            match admin::Door::bind(&settings.admin.value, token).await {
                Err(_) if Instant::now() < patience => {}
                outcome => break outcome?,
            }
            tokio::time::sleep(PREDECESSOR_LOOK).await;
        };
        let Some(addr) = settings.metrics.value else { return Ok(Self { admin, metrics: None }) };
        let metrics = loop {
            match metrics::Door::bind(addr).await {
                Err(_) if Instant::now() < patience => {}
                outcome => break outcome?,
            }
            tokio::time::sleep(PREDECESSOR_LOOK).await;
        };
        Ok(Self { admin, metrics: Some(metrics) })
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
