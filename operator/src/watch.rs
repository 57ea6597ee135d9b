//! Follows one kind of object: lists it, then watches it, for ever.
//!
//! A watch is asked to end after [`TIMEOUT`], so that one that silently stopped is noticed; every answer, event, bookmark or
//! failure is a sign of life ([`Pulse`]), by which liveness judges. A list comes in pages; an object that does not parse is
//! handed on as such and harms no other.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::{StreamExt, TryStreamExt};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Resource, ResourceExt,
    api::{ListParams, WatchEvent, WatchParams},
    core::DeserializeGuard,
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::{
    api::{self, Failure},
    backoff::Backoff,
    index::{Change, Delta, Malformed, Read},
};

/// How long one watch lasts. Some load balancers cut a silent connection after 240 s.
pub const TIMEOUT: Duration = Duration::from_secs(200);
/// A watcher that gave no sign of life for so long is stuck.
pub const STUCK: Duration = Duration::from_secs(300);

/// An API server that is back is noticed within this: until then nobody's change is heard of.
const AGAIN_WITHIN: Duration = Duration::from_secs(5);
const PAGE: u32 = 500;
/// A list of 500 objects from a busy API server.
const LIST_WITHIN: Duration = Duration::from_secs(60);

/// When each watcher last showed that it lives. Clones are handles to the same.
#[derive(Clone, Debug, Default)]
pub struct Pulse(Arc<Mutex<BTreeMap<&'static str, Instant>>>);

impl Pulse {
    pub fn beat(&self, watcher: &'static str, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(watcher, now);
    }

    /// Watchers that are stuck.
    pub fn stuck(&self, now: Instant) -> Vec<&'static str> {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let late = beats.iter().filter(|(_, at)| now.saturating_duration_since(**at) > STUCK);
        late.map(|(watcher, _)| *watcher).collect()
    }

    /// Seconds since the last sign of life, of each.
    pub fn ages(&self, now: Instant) -> Vec<(&'static str, Duration)> {
        let beats = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        beats.iter().map(|(name, at)| (*name, now.saturating_duration_since(*at))).collect()
    }
}

/// What to follow, and how it becomes a [`Change`].
#[derive(Debug)]
pub struct Source<K, T> {
    pub name: &'static str,
    /// The objects, of which some may not parse.
    pub objects: Api<DeserializeGuard<K>>,
    pub labels: Option<String>,
    pub fields: Option<String>,
    /// Takes of an object what the index keeps, so that the rest is not held in memory.
    pub take: fn(K) -> T,
    pub change: fn(Delta<T>) -> Change,
}

/// Follows `source` and sends what changes. Ends when nobody listens any more.
///
/// # Errors
/// Never; failures are tried again.
pub async fn follow<K, T>(
    source: Source<K, T>,
    pulse: Pulse,
    changes: mpsc::Sender<Change>,
) -> anyhow::Result<()>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    T: Send + Sync + 'static,
{
    let mut backoff = Backoff::default();
    pulse.beat(source.name, Instant::now());
    loop {
        let outcome = source.list_and_watch(&pulse, &changes, &mut backoff).await;
        pulse.beat(source.name, Instant::now());
        let Err(failure) = outcome else { return Ok(()) };
        if failure.is_expired() {
            tracing::debug!(watcher = source.name, "Version expired, listing again");
            continue;
        }
        let pause = backoff.failed().min(AGAIN_WITHIN);
        if failure.is_forbidden() {
            tracing::warn!(watcher = source.name, error = %failure, "Not allowed to watch");
        } else if backoff.failures() == 1 {
            tracing::warn!(watcher = source.name, error = %failure, "Watch failed, trying again");
        } else {
            tracing::debug!(watcher = source.name, error = %failure, ?pause, "Watch failed");
        }
        tokio::time::sleep(pause).await;
    }
}

impl<K, T> Source<K, T>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    T: Send + Sync + 'static,
{
    /// Ends well when nobody listens, with a failure when the list must be made again.
    async fn list_and_watch(
        &self,
        pulse: &Pulse,
        changes: &mpsc::Sender<Change>,
        backoff: &mut Backoff,
    ) -> Result<(), Failure> {
        let (all, mut version) = self.list(pulse).await?;
        if changes.send((self.change)(Delta::Reset(all))).await.is_err() {
            return Ok(());
        }
        let params = WatchParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            timeout: u32::try_from(TIMEOUT.as_secs()).ok(),
            ..WatchParams::default()
        };
        loop {
            let stream = match api::within(api::WITHIN, self.objects.watch(&params, &version)).await
            {
                Ok(stream) => stream,
                // The list is still good; only the connection is to be made again.
                Err(failure) if !failure.is_expired() && !failure.is_forbidden() => {
                    pulse.beat(self.name, Instant::now());
                    tokio::time::sleep(backoff.failed().min(AGAIN_WITHIN)).await;
                    continue;
                }
                Err(failure) => return Err(failure),
            };
            let mut stream = stream.boxed();
            loop {
                let margin = Duration::from_secs(10);
                let next = tokio::time::timeout(TIMEOUT + margin, stream.try_next()).await;
                pulse.beat(self.name, Instant::now());
                let delta = match next {
                    Ok(Ok(Some(WatchEvent::Added(object) | WatchEvent::Modified(object)))) => {
                        version = object.resource_version().unwrap_or(version);
                        let (key, read) = self.read(object);
                        Delta::Put(key, read)
                    }
                    Ok(Ok(Some(WatchEvent::Deleted(object)))) => {
                        version = object.resource_version().unwrap_or(version);
                        Delta::Remove(key_of(object.meta()))
                    }
                    Ok(Ok(Some(WatchEvent::Bookmark(bookmark)))) => {
                        version = bookmark.metadata.resource_version;
                        continue;
                    }
                    Ok(Ok(Some(WatchEvent::Error(status)))) => {
                        return Err(Failure::Refused(kube::Error::Api(status.boxed())));
                    }
                    Ok(Ok(None)) => break,
                    Ok(Err(error)) => {
                        tracing::debug!(watcher = self.name, %error, "Watch broke off");
                        tokio::time::sleep(backoff.failed().min(AGAIN_WITHIN)).await;
                        break;
                    }
                    Err(_) => {
                        tracing::warn!(
                            watcher = self.name,
                            "A watch fell silent; connecting again"
                        );
                        break;
                    }
                };
                backoff.succeeded();
                if changes.send((self.change)(delta)).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    async fn list(&self, pulse: &Pulse) -> Result<(Vec<(String, Read<T>)>, String), Failure> {
        let mut params = ListParams {
            label_selector: self.labels.clone(),
            field_selector: self.fields.clone(),
            limit: Some(PAGE),
            ..ListParams::default()
        };
        let mut all = Vec::new();
        loop {
            let page = api::within(LIST_WITHIN, self.objects.list(&params)).await?;
            pulse.beat(self.name, Instant::now());
            all.extend(page.items.into_iter().map(|object| self.read(object)));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                return Ok((all, page.metadata.resource_version.unwrap_or_default()));
            }
        }
    }

    fn read(&self, object: DeserializeGuard<K>) -> (String, Read<T>) {
        let key = key_of(object.meta());
        match object.0 {
            Ok(object) => (key, Ok(Arc::new((self.take)(object)))),
            Err(invalid) => {
                tracing::warn!(watcher = self.name, object = %key, error = %invalid.error, "An object does not parse");
                let ObjectMeta { uid, generation, .. } = invalid.metadata;
                let uid = uid.unwrap_or_default();
                let malformed = Malformed { error: invalid.error, uid, generation };
                (key, Err(malformed))
            }
        }
    }
}

/// `namespace/name`, or the name alone.
pub fn key_of(meta: &ObjectMeta) -> String {
    let name = meta.name.as_deref().unwrap_or_default();
    match &meta.namespace {
        Some(namespace) => format!("{namespace}/{name}"),
        None => name.to_owned(),
    }
}
