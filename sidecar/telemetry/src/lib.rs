//! Logs to standard error, and traces to a collector if `OTEL_EXPORTER_OTLP_ENDPOINT` names one.
//!
//! Whoever has something to say uses `tracing`. What is logged is an event; what is traced is a span of the target [`TRACE`], and nothing
//! else, so that no line of the log ever leaves the machine this way. A trace goes from process to process as a W3C `traceparent`:
//!
//! ```text
//! operator   change ─┬─ plan
//!                    ├─ apply       each object that is written
//!                    ├─ status      each status that is written
//!                    └─ deliver     each member that is sent its configuration
//! sidecar                └─ configure ── connect
//! ```
//! Spans are sent from a thread of the SDK's own, in batches; with a collector that is away they are dropped, and nobody waits.

mod otlp;

use std::{collections::HashMap, io::IsTerminal, time::Duration};

use anyhow::{Context as _, anyhow};
use opentelemetry::{
    Context,
    propagation::TextMapPropagator,
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{
    EnvFilter, Layer, Registry, filter::filter_fn, layer::SubscriberExt, util::SubscriberInitExt,
};

/// The target of spans that are traced.
pub const TRACE: &str = "trace";
/// The header's name, also where there are no headers.
const TRACEPARENT: &str = "traceparent";
/// What has not been sent by then is lost.
const FLUSH_WITHIN: Duration = Duration::from_secs(2);

/// How to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Json,
}

/// Held as long as the process has something to say.
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

/// Starts logging what `filter` lets through, and tracing as `service`.
///
/// # Errors
/// When the filter or the collector's address makes no sense, or logging was started before.
pub fn start(service: &'static str, filter: &str, format: Format) -> anyhow::Result<Telemetry> {
    // Said, and no cause of this error: it says its own cause already.
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow!(
            "the log filter {filter:?} is none ({error}); write a level, such as info, or a filter, such as \
             engine=debug"
        )
    })?;
    let exporter = otlp::Exporter::from_environment()?;
    let provider = exporter.map(|exporter| provider(service, exporter));
    let traces = provider.as_ref().map(|provider| {
        let tracer = provider.tracer(service);
        let is_traced = filter_fn(|meta| meta.is_span() && meta.target() == TRACE);
        // What the spans say is theirs; threads and lines of code are nobody's business.
        tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_target(false)
            .with_threads(false)
            .with_tracked_inactivity(false)
            .with_filter(is_traced)
    });
    let subscriber = tracing_subscriber::registry().with(logs(format).with_filter(filter));
    subscriber.with(traces).try_init().context("logging was started before")?;
    Ok(Telemetry(provider))
}

fn logs(format: Format) -> Box<dyn Layer<Registry> + Send + Sync> {
    let is_person = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    match format {
        Format::Text => lines.with_ansi(is_person).with_target(false).boxed(),
        Format::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    }
}

fn provider(service: &'static str, exporter: otlp::Exporter) -> SdkTracerProvider {
    let resource = Resource::builder().with_service_name(service).build();
    SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource).build()
}

impl Telemetry {
    /// Sends what was not sent yet.
    pub fn end(self) {
        if let Some(provider) = self.0 {
            // Nobody is left to be told.
            let _ = provider.shutdown_with_timeout(FLUSH_WITHIN);
        }
    }
}

/// Where in which trace a span is, for another process; empty if nothing is traced.
pub fn traceparent(span: &Span) -> String {
    let context = span.context();
    if !context.span().span_context().is_valid() {
        return String::new();
    }
    let mut headers = HashMap::new();
    TraceContextPropagator::new().inject_context(&context, &mut headers);
    headers.remove(TRACEPARENT).unwrap_or_default()
}

/// Makes a span that has not begun the child of one in another process. What is no `traceparent` makes no difference.
pub fn follow(span: &Span, traceparent: &str) {
    let headers = HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]);
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
    if parent.span().span_context().is_valid() {
        // It fails where nothing is traced.
        let _ = span.set_parent(parent);
    }
}
