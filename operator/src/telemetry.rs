//! Logs.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

use crate::args::{Log, LogFormat};

/// Starts logging to standard error.
///
/// # Errors
/// When the filter makes no sense, or logging was started before.
pub fn start(log: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&log.filter).with_context(|| {
        format!("--log {} makes no sense; write info, or operator=debug,info", log.filter)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
    started.map_err(|error| anyhow::anyhow!("logging does not start: {error}"))
}
