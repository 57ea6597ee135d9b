//! A collector of traces: it takes OTLP over HTTP, as the real ones do, and remembers the spans.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use data_encoding::HEXLOWER;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::{KeyValue, any_value::Value},
    trace::v1::ResourceSpans,
};
use prost::Message;

/// What came in until now. Its threads end with the program.
#[derive(Clone, Debug, Default)]
pub struct Collector(Arc<Mutex<Vec<Span>>>);

/// One span, as the process that made it tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Whose it is: `service.name`.
    pub service: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty for the root of a trace.
    pub parent: String,
    /// Unix nanoseconds.
    pub began: u64,
    pub ended: u64,
    pub attributes: BTreeMap<String, String>,
}

impl Collector {
    /// Takes spans on this listener.
    pub fn start(listener: TcpListener) -> Self {
        let collector = Self::default();
        let accepting = collector.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let collector = accepting.clone();
                // A process that ends in the middle of a message is no matter.
                thread::spawn(move || collector.serve(stream).ok());
            }
        });
        collector
    }

    pub fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until `find` finds something among the spans.
    ///
    /// # Panics
    /// When it does not in time; the message holds the spans.
    pub fn wait<T>(&self, within: Duration, find: impl Fn(&[Span]) -> Option<T>) -> T {
        let deadline = Instant::now() + within;
        loop {
            let spans = self.spans();
            if let Some(found) = find(&spans) {
                return found;
            }
            assert!(Instant::now() < deadline, "not among the spans: {spans:#?}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// A trace for people to read: a line for each span, indented below its parent, with its begin since that of the root.
    pub fn tree(&self, trace: &str) -> Vec<String> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace == trace);
        spans.sort_by_key(|span| span.began);
        let mut lines = Vec::new();
        for root in spans.iter().filter(|span| span.parent.is_empty()) {
            branch(&spans, root, root.began, 0, &mut lines);
        }
        lines
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut reader = BufReader::new(&stream);
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            if let Some((name, value)) = line.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().map_err(io::Error::other)?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let request = ExportTraceServiceRequest::decode(&*body).map_err(io::Error::other)?;
        let spans = request.resource_spans.into_iter().flat_map(spans);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(spans);
        let answer = ExportTraceServiceResponse::default().encode_to_vec();
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\nContent-Length: {}\r\n\r\n",
            answer.len()
        );
        (&stream).write_all(head.as_bytes())?;
        (&stream).write_all(&answer)
    }
}

fn branch(spans: &[Span], span: &Span, zero: u64, depth: usize, lines: &mut Vec<String>) {
    let millis = |nanos: u64| nanos as f64 / 1e6;
    let shown = |key: &&str| span.attributes.contains_key(*key);
    let about = ["network", "generation", "kind", "name", "member", "revision"].into_iter();
    let about: Vec<_> =
        about.filter(shown).map(|key| format!("{key}={}", span.attributes[key])).collect();
    let begin = millis(span.began.saturating_sub(zero));
    let took = millis(span.ended.saturating_sub(span.began));
    let name = format!("{:indent$}{}", "", span.name, indent = 2 * depth);
    lines.push(format!(
        "{begin:>8.1} ms  {name:<16} {took:>8.1} ms  {:<17} {}",
        span.service,
        about.join(" ")
    ));
    for child in spans.iter().filter(|child| child.parent == span.id) {
        branch(spans, child, zero, depth + 1, lines);
    }
}

fn spans(of: ResourceSpans) -> Vec<Span> {
    let resource = attributes(of.resource.map(|resource| resource.attributes).unwrap_or_default());
    let service = resource.get("service.name").cloned().unwrap_or_default();
    let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
    let read = spans.map(|span| Span {
        service: service.clone(),
        name: span.name,
        trace: HEXLOWER.encode(&span.trace_id),
        id: HEXLOWER.encode(&span.span_id),
        parent: HEXLOWER.encode(&span.parent_span_id),
        began: span.start_time_unix_nano,
        ended: span.end_time_unix_nano,
        attributes: attributes(span.attributes),
    });
    read.collect()
}

fn attributes(all: Vec<KeyValue>) -> BTreeMap<String, String> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    };
    all.into_iter().map(|pair| (pair.key, text(pair.value.and_then(|value| value.value)))).collect()
}
