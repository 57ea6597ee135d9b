//! Answers the API server over TLS, in every replica.
//!
//! Owns one listener; woken by connections and by a new certificate in the Secret. Cancelling it drops the connections, and the API
//! server asks another replica. Until there is a certificate nobody is answered.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header::CONTENT_TYPE};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use task::TaskGroup;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::timeout,
};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self, ServerConfig,
        pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    },
};

use super::{
    certificate::{Material, Pair},
    inject::Settings,
    review,
    rotate::SECRET,
};
use crate::index::World;

/// API servers keep few connections and use them again.
const MAX_CONNECTIONS: usize = 64;
/// etcd takes objects of 1.5 MB, and a question holds one.
const MAX_QUESTION: usize = 3 << 20;
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(5);
/// The API server gives up after 30 s at most.
const QUESTION_WITHIN: Duration = Duration::from_secs(30);
/// Where the configuration of the webhook points.
const PATH: &str = "/inject";

/// Counts what was answered; `outcome` is a word of [`review::answer`], or `malformed`.
pub type Observe = Arc<dyn Fn(&'static str, Duration) + Send + Sync>;

/// What an answer depends on.
#[derive(Clone)]
pub struct Answering {
    pub world: watch::Receiver<Arc<World>>,
    pub settings: Arc<Settings>,
    pub observe: Observe,
}

impl std::fmt::Debug for Answering {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Answering").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// Binds the address and answers until it is cancelled.
///
/// # Errors
/// When the address cannot be had.
pub async fn run(listen: SocketAddr, answering: Answering) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen} for the webhook"))?;
    serve(listener, answering).await
}

/// Answers who connects to `listener` until it is cancelled.
///
/// # Errors
/// Never.
pub async fn serve(listener: TcpListener, mut answering: Answering) -> anyhow::Result<()> {
    let certificate: Arc<ArcSwapOption<ServerConfig>> = Arc::default();
    let mut version = None;
    let connections = TaskGroup::new("webhook connections");
    // However this ends, they end with it.
    let _end = connections.token().clone().drop_guard();
    let free = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let key = format!("{}/{SECRET}", answering.settings.namespace);
    loop {
        let world = Arc::clone(&answering.world.borrow_and_update());
        let secret = world.secrets.get(&key);
        if secret.map(|secret| &secret.version) != version.as_ref() {
            version = secret.map(|secret| secret.version.clone());
            let material = secret.and_then(|secret| Material::read(&secret.data));
            let config = material.and_then(|material| certified(&material.serving).ok());
            // One that somebody deleted or spoilt is made anew; until then the last one is as good.
            if let Some(config) = config {
                certificate.store(Some(config));
            }
        }
        tokio::select! {
            changed = answering.world.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
            }
            permit = Arc::clone(&free).acquire_owned() => {
                let Ok(permit) = permit else { return Ok(()) };
                tokio::select! {
                    changed = answering.world.changed() => {
                        if changed.is_err() {
                            return Ok(());
                        }
                    }
                    accepted = listener.accept() => match accepted {
                        Ok((stream, _)) => {
                            let Some(config) = certificate.load_full() else { continue };
                            let connection = connection(stream, config, answering.clone(), permit);
                            connections.spawn_transient("connection", connection);
                        }
                        Err(error) => {
                            tracing::debug!(%error, "Accepting failed");
                            tokio::time::sleep(Duration::from_millis(100)).await;
                        }
                    },
                }
            }
        }
    }
}

/// How a certificate is served.
///
/// # Errors
/// When the certificate and its key do not parse or do not belong together.
pub fn certified(pair: &Pair) -> anyhow::Result<Arc<ServerConfig>> {
    let certificate = CertificateDer::from_pem_slice(pair.certificate.as_bytes())?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)?;
    Ok(Arc::new(config))
}

async fn connection(
    stream: TcpStream,
    config: Arc<ServerConfig>,
    answering: Answering,
    permit: OwnedSemaphorePermit,
) -> anyhow::Result<()> {
    let accepted = timeout(HANDSHAKE_WITHIN, TlsAcceptor::from(config).accept(stream)).await;
    let Ok(Ok(stream)) = accepted else { return Ok(()) };
    let service = service_fn(|request| {
        let answering = &answering;
        async move { Ok::<_, Infallible>(respond(request, answering).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(QUESTION_WITHIN);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "A connection of the API server broke off");
    }
    drop(permit);
    Ok(())
}

async fn respond(request: Request<Incoming>, answering: &Answering) -> Response<Full<Bytes>> {
    let started = Instant::now();
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND);
    }
    if request.method() != Method::POST {
        return plain(StatusCode::METHOD_NOT_ALLOWED);
    }
    let body = Limited::new(request.into_body(), MAX_QUESTION).collect();
    let question = match timeout(QUESTION_WITHIN, body).await {
        Ok(Ok(question)) => question.to_bytes(),
        Ok(Err(_)) => return plain(StatusCode::PAYLOAD_TOO_LARGE),
        Err(_) => return plain(StatusCode::REQUEST_TIMEOUT),
    };
    let world = Arc::clone(&answering.world.borrow());
    let answered = review::answer(&question, &world, &answering.settings);
    let outcome = answered.as_ref().map_or("malformed", |(_, outcome)| outcome);
    (answering.observe)(outcome, started.elapsed());
    match answered.and_then(|(answer, _)| serde_json::to_vec(&answer)) {
        Ok(text) => {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let json = http::HeaderValue::from_static("application/json");
            response.headers_mut().insert(CONTENT_TYPE, json);
            response
        }
        Err(error) => {
            tracing::debug!(%error, "The webhook was asked something that is no question");
            plain(StatusCode::BAD_REQUEST)
        }
    }
}

fn plain(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests;
