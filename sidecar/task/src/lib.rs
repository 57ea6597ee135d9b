//! Named tasks and threads that live and die together.
//!
//! Everything that runs belongs to a [`TaskGroup`]. A member that ends although nobody asked it to,
//! fails or panics cancels the whole group and is named in what [`TaskGroup::join`] returns, so a
//! process never limps on without one of its parts. Groups nest: cancelling a group cancels its
//! children, a child's failure stays its own until whoever joins it says otherwise.
//!
//! | spawned by | may end by itself | when the group is cancelled |
//! |---|---|---|
//! | [`spawn`](TaskGroup::spawn) | no | its future is dropped at its next await |
//! | [`spawn_transient`](TaskGroup::spawn_transient) | yes | its future is dropped at its next await |
//! | [`spawn_graceful`](TaskGroup::spawn_graceful) | no | must watch the token; aborted at the deadline of `join` |
//! | [`spawn_thread`](TaskGroup::spawn_thread) | no | must watch the token; cannot be aborted, only named |

use std::{
    any::Any,
    collections::BTreeMap,
    fmt,
    future::Future,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::Poll,
    time::Duration,
};

use tokio::{sync::Notify, task::AbortHandle};
pub use tokio_util::sync::CancellationToken;

/// Tasks and threads with one fate. Clones are handles to the same group.
#[derive(Clone)]
pub struct TaskGroup {
    shared: Arc<Shared>,
}

/// How a member ended that should not have.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    #[error("ended although nobody asked it to")]
    Ended,
    #[error("failed: {0:#}")]
    Failed(anyhow::Error),
    #[error("panicked: {0}")]
    Panicked(String),
}

/// Why a group did not end well.
#[derive(Debug)]
pub struct GroupFailure {
    /// The member that ended first without being asked to, and why.
    pub first: Option<(String, Cause)>,
    /// Members that were still there at the deadline; tasks among them were aborted.
    pub stuck: Vec<String>,
}

struct Shared {
    name: String,
    token: CancellationToken,
    members: Mutex<Members>,
    left: Notify,
}

#[derive(Default)]
struct Members {
    next: u64,
    live: BTreeMap<u64, Member>,
    first: Option<(String, Cause)>,
}

struct Member {
    name: String,
    /// Absent for threads.
    abort: Option<AbortHandle>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Lifetime {
    AsLongAsTheGroup,
    Transient,
}

impl TaskGroup {
    /// A group of its own; `name` prefixes the names of members in logs.
    pub fn new(name: impl Into<String>) -> Self {
        Self::with_token(name.into(), CancellationToken::new())
    }

    /// A group that is cancelled together with this one.
    pub fn child(&self, name: impl Into<String>) -> Self {
        Self::with_token(name.into(), self.shared.token.child_token())
    }

    /// Cancelled when the group ends, for whatever reason.
    pub fn token(&self) -> &CancellationToken {
        &self.shared.token
    }

    /// Asks every member to end.
    pub fn cancel(&self) {
        self.shared.token.cancel();
    }

    /// Names of the members that are running, in the order they were spawned.
    pub fn running(&self) -> Vec<String> {
        self.shared.lock().live.values().map(|member| member.name.clone()).collect()
    }

    /// Runs a task that must live as long as the group.
    pub fn spawn<F>(&self, name: impl Into<String>, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let token = self.shared.token.clone();
        let work = Box::pin(drop_at(token, Box::pin(future)));
        self.start(name.into(), Lifetime::AsLongAsTheGroup, work);
    }

    /// Runs a task that may end by itself; failing or panicking still cancels the group.
    pub fn spawn_transient<F>(&self, name: impl Into<String>, future: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let token = self.shared.token.clone();
        let work = Box::pin(drop_at(token, Box::pin(future)));
        self.start(name.into(), Lifetime::Transient, work);
    }

    /// Runs a task that has work to do after the group was cancelled and watches the token itself.
    pub fn spawn_graceful<F>(
        &self,
        name: impl Into<String>,
        make: impl FnOnce(CancellationToken) -> F,
    ) where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let work = Box::pin(make(self.shared.token.clone()));
        self.start(name.into(), Lifetime::AsLongAsTheGroup, work);
    }

    /// Runs `work` on a thread of its own, which must look at the token at least a few times a
    /// second.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn spawn_thread(
        &self,
        name: impl Into<String>,
        work: impl FnOnce(CancellationToken) -> anyhow::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let name = name.into();
        let id = self.shared.enter(name.clone());
        let (shared, token) = (self.shared.clone(), self.shared.token.clone());
        let spawned = std::thread::Builder::new().name(name).spawn(move || {
            let outcome = catch_unwind(AssertUnwindSafe(|| work(token)));
            shared.leave(id, Lifetime::AsLongAsTheGroup, outcome);
        });
        if spawned.is_err() {
            self.shared.lock().live.remove(&id);
        }
        spawned.map(drop)
    }

    /// Waits until the group was cancelled and every member has left, but no longer than `within`
    /// after the cancellation. Tasks that are still there then are aborted.
    ///
    /// # Errors
    /// Names the member that ended first without being asked to, and those stuck at the deadline.
    pub async fn join(&self, within: Duration) -> Result<(), GroupFailure> {
        self.shared.token.cancelled().await;
        let emptied = tokio::time::timeout(within, self.shared.emptied()).await;
        let mut members = self.shared.lock();
        let mut stuck = Vec::new();
        if emptied.is_err() {
            for member in members.live.values() {
                stuck.push(member.name.clone());
                if let Some(abort) = &member.abort {
                    abort.abort();
                }
            }
        }
        let first = members.first.take();
        if first.is_none() && stuck.is_empty() {
            return Ok(());
        }
        Err(GroupFailure { first, stuck })
    }

    fn with_token(name: String, token: CancellationToken) -> Self {
        let (members, left) = (Mutex::default(), Notify::new());
        Self { shared: Arc::new(Shared { name, token, members, left }) }
    }

    #[expect(clippy::disallowed_methods, reason = "the one place that names and joins tasks")]
    fn start(&self, name: String, lifetime: Lifetime, work: Work) {
        let id = self.shared.enter(name);
        let shared = self.shared.clone();
        let handle = tokio::spawn(async move {
            // Leaves the group even if the task is aborted before it ever runs to its end.
            let mut membership = Membership { shared, id, lifetime, outcome: None };
            membership.outcome = Some(catching_panics(work).await);
        });
        if let Some(member) = self.shared.lock().live.get_mut(&id) {
            member.abort = Some(handle.abort_handle());
        }
    }
}

impl Shared {
    fn enter(&self, name: String) -> u64 {
        let mut members = self.lock();
        let id = members.next;
        members.next += 1;
        members.live.insert(id, Member { name, abort: None });
        id
    }

    fn leave(&self, id: u64, lifetime: Lifetime, outcome: Outcome) {
        let cause = match outcome {
            Err(panic) => Some(Cause::Panicked(panic_text(panic.as_ref()))),
            Ok(Err(error)) => Some(Cause::Failed(error)),
            Ok(Ok(())) if lifetime == Lifetime::Transient || self.token.is_cancelled() => None,
            Ok(Ok(())) => Some(Cause::Ended),
        };
        let mut members = self.lock();
        let member = members.live.remove(&id);
        if let (Some(cause), Some(member)) = (cause, member) {
            tracing::error!(group = %self.name, task = %member.name, %cause, "Task ended");
            members.first.get_or_insert((member.name, cause));
            drop(members);
            self.token.cancel();
        }
        self.left.notify_waiters();
    }

    async fn emptied(&self) {
        loop {
            let left = self.left.notified();
            tokio::pin!(left);
            // Enabled before looking, so that nobody can leave unseen in between.
            left.as_mut().enable();
            if self.lock().live.is_empty() {
                return;
            }
            left.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What `catch_unwind` gives.
/// What a task does. In a box from the beginning: every `async` around it would hold it twice, once to take it and once to run it.
type Work = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;
type Outcome = Result<anyhow::Result<()>, Box<dyn Any + Send>>;

struct Membership {
    shared: Arc<Shared>,
    id: u64,
    lifetime: Lifetime,
    /// Absent when the task was aborted, which only `join` and the end of the runtime do.
    outcome: Option<Outcome>,
}

impl Drop for Membership {
    fn drop(&mut self) {
        match self.outcome.take() {
            Some(outcome) => self.shared.leave(self.id, self.lifetime, outcome),
            None => self.shared.leave(self.id, Lifetime::Transient, Ok(Ok(()))),
        }
    }
}

async fn drop_at(
    token: CancellationToken,
    future: impl Future<Output = anyhow::Result<()>> + Unpin,
) -> anyhow::Result<()> {
    let result = token.run_until_cancelled(future).await.unwrap_or(Ok(()));
    // Others end at the same moment; to fail for want of them is no failure.
    if token.is_cancelled() { Ok(()) } else { result }
}

async fn catching_panics(mut work: Work) -> Outcome {
    std::future::poll_fn(move |context| {
        match catch_unwind(AssertUnwindSafe(|| work.as_mut().poll(context))) {
            Ok(Poll::Pending) => Poll::Pending,
            Ok(Poll::Ready(result)) => Poll::Ready(Ok(result)),
            Err(panic) => Poll::Ready(Err(panic)),
        }
    })
    .await
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "with a value that is no text".to_owned())
}

impl fmt::Display for GroupFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, cause)) = &self.first {
            write!(f, "task {name} {cause}")?;
        }
        if !self.stuck.is_empty() {
            let gap = if self.first.is_some() { "; " } else { "" };
            write!(f, "{gap}still running at the deadline: {}", self.stuck.join(", "))?;
        }
        Ok(())
    }
}

impl std::error::Error for GroupFailure {}

impl fmt::Debug for TaskGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TaskGroup")
            .field("name", &self.shared.name)
            .field("running", &self.running())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
