//! How this crate speaks to the API server: with a deadline, and with requests counted.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use kube::{
    Client, Config,
    client::{Body, ClientBuilder},
};
use tower::{Layer, Service};

/// A request of ours takes no longer than this, or counts as failed.
pub const WITHIN: Duration = Duration::from_secs(10);

/// Why a request had no result.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    #[error("the API server did not answer within {0:?}")]
    Late(Duration),
    #[error(transparent)]
    Refused(#[from] kube::Error),
}

impl Failure {
    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.is_not_found())
    }

    /// Somebody else wrote the object in between, or it is there already.
    pub fn is_conflict(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.code == 409)
    }

    /// The permission is missing.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.is_forbidden())
    }

    /// The API server answered; asking the same again gets the same answer.
    pub fn is_answer(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(_)))
    }

    /// The version to watch from is gone.
    pub fn is_expired(&self) -> bool {
        matches!(self, Self::Refused(kube::Error::Api(status)) if status.code == 410)
    }
}

/// Waits for an answer, but not for ever.
///
/// # Errors
/// As the API server says, or when it says nothing.
pub async fn within<T>(
    limit: Duration,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Failure> {
    match tokio::time::timeout(limit, request).await {
        Ok(outcome) => outcome.map_err(Failure::Refused),
        Err(_) => Err(Failure::Late(limit)),
    }
}

/// Requests sent, by what they do. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Requests(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    reads: AtomicU64,
    watches: AtomicU64,
    writes: AtomicU64,
}

impl Requests {
    /// GET without watches.
    pub fn reads(&self) -> u64 {
        self.0.reads.load(Ordering::Relaxed)
    }

    pub fn watches(&self) -> u64 {
        self.0.watches.load(Ordering::Relaxed)
    }

    /// Everything but GET.
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    fn count(&self, request: &http::Request<Body>) {
        let is_watch = request.uri().query().is_some_and(|query| query.contains("watch=true"));
        let counter = if request.method() != http::Method::GET {
            &self.0.writes
        } else if is_watch {
            &self.0.watches
        } else {
            &self.0.reads
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// A client of the API server whose requests are counted.
///
/// # Errors
/// When TLS or authentication cannot be set up.
pub fn client(config: Config, requests: &Requests) -> kube::Result<Client> {
    let counting = Counting(requests.clone());
    Ok(ClientBuilder::try_from(config)?.with_layer(&counting).build())
}

#[derive(Clone)]
struct Counting(Requests);

#[derive(Clone)]
struct Counted<S> {
    inner: S,
    requests: Requests,
}

impl<S> Layer<S> for Counting {
    type Service = Counted<S>;

    fn layer(&self, inner: S) -> Counted<S> {
        Counted { inner, requests: self.0.clone() }
    }
}

impl<S> Service<http::Request<Body>> for Counted<S>
where
    S: Service<http::Request<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<S::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        self.requests.count(&request);
        Box::pin(self.inner.call(request))
    }
}
