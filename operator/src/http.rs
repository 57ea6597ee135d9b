//! Metrics and probes over HTTP: `/metrics`, `/livez`, `/readyz`.

use std::{
    convert::Infallible,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use task::TaskGroup;
use tokio::{net::TcpListener, sync::Semaphore};

use crate::{metrics::Metrics, watch::Pulse};

/// Connections at once; a scraper and a kubelet need one each.
const MOST: usize = 16;
const WITHIN: Duration = Duration::from_secs(10);
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What is asked for at each request.
#[derive(Clone, Debug)]
pub struct Answers {
    pub metrics: Metrics,
    pub pulse: Pulse,
    /// Why this process is not ready, if it is not.
    pub unready: tokio::sync::watch::Receiver<Option<String>>,
}

/// Answers until the group ends.
///
/// # Errors
/// When the listener fails.
pub async fn serve(
    listener: TcpListener,
    answers: Answers,
    group: TaskGroup,
) -> anyhow::Result<()> {
    let permits = std::sync::Arc::new(Semaphore::new(MOST));
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, or the peer left at once; both pass.
                tracing::debug!(%error, "Accept failed");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(permit) = permits.clone().try_acquire_owned() else { continue };
        let answers = answers.clone();
        group.spawn_transient(format!("http {}", name(peer)), async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &answers);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(WITHIN)
                .keep_alive(false)
                .max_buf_size(8192)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(WITHIN, connection).await;
            drop(permit);
            Ok(())
        });
    }
}

fn answer(request: &Request<Incoming>, answers: &Answers) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "GET only\n".to_owned(), "text/plain");
    }
    let now = Instant::now();
    match request.uri().path() {
        "/metrics" => text(StatusCode::OK, answers.metrics.render(now), OPENMETRICS),
        "/livez" => match answers.pulse.stuck(now).as_slice() {
            [] => text(StatusCode::OK, "ok\n".to_owned(), "text/plain"),
            stuck => {
                let said = format!("no sign of life from: {}\n", stuck.join(", "));
                text(StatusCode::SERVICE_UNAVAILABLE, said, "text/plain")
            }
        },
        "/readyz" => match &*answers.unready.borrow() {
            None => text(StatusCode::OK, "ok\n".to_owned(), "text/plain"),
            Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n"), "text/plain"),
        },
        _ => text(
            StatusCode::NOT_FOUND,
            "there are /metrics, /livez and /readyz\n".to_owned(),
            "text/plain",
        ),
    }
}

fn text(status: StatusCode, body: String, kind: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(kind));
    response
}

/// Tasks have names without addresses.
fn name(peer: SocketAddr) -> &'static str {
    if peer.ip().is_loopback() { "local" } else { "remote" }
}
