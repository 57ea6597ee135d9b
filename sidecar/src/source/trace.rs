//! What this node has of the trace of a change: its configuration's way into force, and until the node is connected with it.

use rpc::feed::Desired;
use tracing::{Span, field};

/// The spans of one revision; they end as they are dropped.
#[derive(Debug, Default)]
pub struct Trace {
    configure: Option<Span>,
    connect: Option<Span>,
}

impl Trace {
    /// A revision came.
    pub fn came(&mut self, desired: &Desired) {
        *self = Self::default();
        if desired.traceparent.is_empty() {
            return;
        }
        let span = tracing::info_span!(
            target: telemetry::TRACE,
            "configure",
            revision = desired.revision,
            error = field::Empty
        );
        telemetry::follow(&span, &desired.traceparent);
        self.configure = Some(span);
    }

    /// It is in force.
    pub fn applied(&mut self) {
        let Some(configure) = self.configure.take() else { return };
        let connect = tracing::info_span!(target: telemetry::TRACE, "connect");
        // As if from elsewhere: a child of this process would keep it from ending now.
        telemetry::follow(&connect, &telemetry::traceparent(&configure));
        self.connect = Some(connect);
    }

    /// It is not.
    pub fn refused(&mut self, error: &str) {
        if let Some(configure) = self.configure.take() {
            configure.record("error", error);
        }
    }

    /// The node has a peer or a server.
    pub fn connected(&mut self) {
        self.connect = None;
    }
}
