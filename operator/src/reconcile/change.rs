//! A change of an EasyNetwork on its way into the cluster, as its trace tells it.
//!
//! ```text
//!           note                    carry, in force                   read
//!  nothing ──────► on its way ───────────────────────► in force ────────────► nothing: everybody can read it
//! ```
//! A later change takes the place of the one before, and whatever takes longer than [`TRACED`] is traced no further.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use crds::{ConditionType, EasyNetwork, EasyNetworkStatus};
use kube::ResourceExt;
use telemetry::TRACE;
use tracing::Span;

use crate::plan::Desired;

/// A change that is not in force everywhere by then is traced no further.
const TRACED: Duration = Duration::from_secs(300);

/// What is traced of a network's changes.
#[derive(Debug, Default)]
pub(super) struct Changes {
    /// The generation of the change that was traced last.
    traced: Option<i64>,
    change: Option<Change>,
}

#[derive(Debug)]
struct Change {
    began: Instant,
    /// Of its trace, until it is in force.
    span: Option<Span>,
    traceparent: String,
    /// The EasyPeers of its network.
    peers: BTreeSet<String>,
}

impl Changes {
    /// Begins to trace what was changed since the status was written.
    pub(super) fn note(&mut self, network: &EasyNetwork, now: Instant) {
        let Some(generation) = network.metadata.generation else { return };
        let planned = network.status.as_ref().and_then(|status| status.observed_generation);
        if planned == Some(generation) || self.traced == Some(generation) {
            return;
        }
        let name = network.name_any();
        let span =
            tracing::info_span!(target: TRACE, parent: None, "change", network = name, generation);
        let traceparent = telemetry::traceparent(&span);
        self.traced = Some(generation);
        let peers = BTreeSet::new();
        self.change = Some(Change { began: now, span: Some(span), traceparent, peers });
    }

    /// Lets members know which trace they are part of, until the change is in force.
    pub(super) fn carry(&mut self, desired: &mut Desired, now: Instant) {
        let Some(change) = &mut self.change else { return };
        if !change.traceparent.is_empty() {
            change.peers = desired.peer_status.keys().cloned().collect();
        }
        if change.span.is_some() {
            for member in desired.members.values_mut() {
                member.traceparent.clone_from(&change.traceparent);
            }
        }
        if is_in_force(&desired.status) {
            change.span = None;
        }
        if now >= change.began + TRACED {
            self.change = None;
        }
    }

    /// People can read this status: the change is over if it says that it is in force.
    pub(super) fn read(&mut self, status: &EasyNetworkStatus) {
        let is_about_it = status.observed_generation == self.traced && is_in_force(status);
        self.change.take_if(|change| change.span.is_none() && is_about_it);
    }

    /// The span of a change that is on its way.
    pub(super) fn span(&self) -> Option<&Span> {
        self.change.as_ref()?.span.as_ref()
    }

    /// The trace of a change whose end not everybody can read yet.
    pub(super) fn traceparent(&self) -> Option<&str> {
        self.change.as_ref().map(|change| change.traceparent.as_str())
    }

    /// Whether an EasyPeer is of the network that changes.
    pub(super) fn concerns(&self, peer: &str) -> bool {
        self.change.as_ref().is_some_and(|change| change.peers.contains(peer))
    }
}

/// Whether every agent runs what the status is about.
fn is_in_force(status: &EasyNetworkStatus) -> bool {
    let programmed = ConditionType::Programmed.as_str();
    status
        .conditions
        .iter()
        .any(|condition| condition.type_ == programmed && condition.status == "True")
}
