//! OTLP over HTTP: spans as one protobuf message in one POST.
//!
//! It runs on the SDK's own thread, which may block. A collector stands in the cluster or on the node and speaks `http://`; whoever wants
//! TLS to a collector far away has one nearby pass the traces on.

use std::{
    io::{BufRead, BufReader, Write},
    net::{TcpStream, ToSocketAddrs},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use opentelemetry_proto::{
    tonic::collector::trace::v1::ExportTraceServiceRequest,
    transform::{
        common::tonic::ResourceAttributesWithSchema,
        trace::tonic::group_spans_by_resource_and_scope,
    },
};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SpanData, SpanExporter},
};
use prost::Message;

/// The whole collector, or where it takes traces.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const TRACES_ENDPOINT: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";
/// Connecting, writing and reading may take this long each.
const WITHIN: Duration = Duration::from_secs(5);
const PORT: u16 = 4318;

/// Sends spans to a collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    collector: Collector,
    resource: ResourceAttributesWithSchema,
}

/// Where a collector takes traces.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Collector {
    /// `host:port`
    authority: String,
    path: String,
}

impl Exporter {
    /// As the environment says it; `None` if it says nothing.
    pub(crate) fn from_environment() -> anyhow::Result<Option<Self>> {
        let of = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let collector = match (of(TRACES_ENDPOINT), of(ENDPOINT)) {
            (Some(url), _) => Collector::parse(&url, "").context(TRACES_ENDPOINT)?,
            (None, Some(url)) => Collector::parse(&url, "/v1/traces").context(ENDPOINT)?,
            (None, None) => return Ok(None),
        };
        let resource = ResourceAttributesWithSchema::default();
        Ok(Some(Self { collector, resource }))
    }
}

impl Collector {
    fn parse(url: &str, suffix: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!("{url:?} is not of the form http://HOST:4318");
        };
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{}", path.trim_end_matches('/'))),
            None => (rest, String::new()),
        };
        ensure!(!authority.is_empty(), "{url:?} names no host");
        let is_host = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        ensure!(authority.chars().all(is_host), "{url:?} is not of the form http://HOST:4318");
        let has_port =
            authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        let authority = if has_port { authority.to_owned() } else { format!("{authority}:{PORT}") };
        let path = format!("{}{suffix}", path.trim_end_matches('/'));
        let path = if path.is_empty() { "/".to_owned() } else { path };
        ensure!(!path.contains(char::is_whitespace), "{url:?} has a blank in it");
        Ok(Self { authority, path })
    }

    fn post(&self, body: &[u8]) -> anyhow::Result<()> {
        let mut addresses = self.authority.to_socket_addrs().context("it does not resolve")?;
        let address = addresses.next().context("it has no address")?;
        let mut stream = TcpStream::connect_timeout(&address, WITHIN)?;
        stream.set_read_timeout(Some(WITHIN))?;
        stream.set_write_timeout(Some(WITHIN))?;
        let Self { authority, path } = self;
        let length = body.len();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {authority}\r\nContent-Type: application/x-protobuf\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut status = String::new();
        BufReader::new(stream).read_line(&mut status)?;
        let is_taken = status.split(' ').nth(1).is_some_and(|code| code.starts_with('2'));
        ensure!(is_taken, "it answers {:?}", status.trim());
        Ok(())
    }
}

impl SpanExporter for Exporter {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let resource_spans = group_spans_by_resource_and_scope(batch, &self.resource);
        let body = ExportTraceServiceRequest { resource_spans }.encode_to_vec();
        self.collector.post(&body).map_err(|error| {
            let collector = &self.collector.authority;
            tracing::debug!(collector, error = format!("{error:#}"), "Traces not sent");
            OTelSdkError::InternalFailure(format!("{error:#}"))
        })
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_its_url() {
        for (url, suffix, authority, path) in [
            ("http://otel:4318", "/v1/traces", "otel:4318", "/v1/traces"),
            ("http://otel", "/v1/traces", "otel:4318", "/v1/traces"),
            ("http://[fd00::1]:80/", "/v1/traces", "[fd00::1]:80", "/v1/traces"),
            ("http://otel:1/a/", "/v1/traces", "otel:1", "/a/v1/traces"),
            ("http://otel:1/own", "", "otel:1", "/own"),
            ("http://otel:1", "", "otel:1", "/"),
        ] {
            let collector = Collector::parse(url, suffix).expect(url);
            assert_eq!((collector.authority.as_str(), collector.path.as_str()), (authority, path));
        }
        for url in ["otel:4318", "https://otel", "http://", "http://a b", "http://a/b c"] {
            assert!(Collector::parse(url, "/v1/traces").is_err(), "{url}");
        }
    }
}
