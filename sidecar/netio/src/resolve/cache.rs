//! What is known about names, and for how long.
//!
//! ```text
//!           store(answer)                 TTL over                STALE_FOR over
//! Unknown ───────────────► Fresh(answer) ─────────► Stale(answer) ─────────────► Unknown
//!    └─────────────────────► Fresh(failure) ──────────────────────────────────────►┘
//!           store(failure)                 a few seconds
//! ```
//!
//! A failure to ask does not displace an answer: that stays, stale, and is asked again soon. That
//! the name does not exist is an answer and does displace it.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Bounds of how long an answer is fresh: short enough to follow a move, long enough to be of use.
const TTL_MIN: Duration = Duration::from_secs(10);
const TTL_MAX: Duration = Duration::from_secs(3600);
/// How long an answer is served although it is over: an outage of name servers lasts hours.
const STALE_FOR: Duration = Duration::from_secs(24 * 3600);
/// How long it is remembered that a name does not exist.
const NOT_FOUND_FOR: Duration = Duration::from_secs(30);
/// How long it is remembered that asking failed.
const FAILED_FOR: Duration = Duration::from_secs(5);
/// Names that are remembered; a configuration has a handful.
const MAX_ENTRIES: usize = 512;

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Query {
    Addresses(String),
    Texts(String),
    Services(String),
}

/// What was found; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    Texts(Vec<String>),
    Services(Vec<Service>),
}

/// One SRV record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub priority: u16,
    pub weight: u16,
    pub host: String,
    pub port: u16,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    #[error("no such name")]
    NotFound,
    #[error("no name server answered in time")]
    Timeout,
    #[error("too many lookups")]
    Busy,
    #[error("{0}")]
    Failed(String),
}

pub type Outcome = Result<Answer, Failure>;

#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<Query, Entry>,
}

#[derive(Debug)]
struct Entry {
    outcome: Outcome,
    fresh_until: Instant,
    forget_at: Instant,
}

/// What the cache says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    Fresh(Outcome),
    /// To be served and refreshed.
    Stale(Answer),
    Unknown,
}

impl Cache {
    pub(super) fn look(&self, query: &Query, now: Instant) -> Look {
        match self.entries.get(query) {
            Some(entry) if now < entry.fresh_until => Look::Fresh(entry.outcome.clone()),
            Some(Entry { outcome: Ok(answer), forget_at, .. }) if now < *forget_at => {
                Look::Stale(answer.clone())
            }
            Some(_) | None => Look::Unknown,
        }
    }

    pub(super) fn store(
        &mut self,
        query: Query,
        outcome: Outcome,
        ttl: Option<Duration>,
        now: Instant,
    ) {
        let fresh_for = match &outcome {
            Ok(_) => ttl.unwrap_or(TTL_MIN).clamp(TTL_MIN, TTL_MAX),
            Err(Failure::NotFound) => NOT_FOUND_FOR,
            Err(Failure::Timeout | Failure::Busy | Failure::Failed(_)) => FAILED_FOR,
        };
        let fresh_until = now + fresh_for;
        let failed = matches!(&outcome, Err(failure) if *failure != Failure::NotFound);
        if failed
            && let Some(known) = self.entries.get_mut(&query)
            && known.outcome.is_ok()
            && now < known.forget_at
        {
            known.fresh_until = fresh_until.min(known.forget_at);
            return;
        }
        let forget_at = if outcome.is_ok() { fresh_until + STALE_FOR } else { fresh_until };
        self.entries.insert(query, Entry { outcome, fresh_until, forget_at });
        if self.entries.len() > MAX_ENTRIES {
            self.entries.retain(|_, entry| now < entry.forget_at);
        }
        while self.entries.len() > MAX_ENTRIES {
            self.entries.pop_first();
        }
    }
}

impl Query {
    pub fn name(&self) -> &str {
        match self {
            Self::Addresses(name) | Self::Texts(name) | Self::Services(name) => name,
        }
    }
}

impl Answer {
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Addresses(addresses) => addresses.is_empty(),
            Self::Texts(texts) => texts.is_empty(),
            Self::Services(services) => services.is_empty(),
        }
    }
}

#[cfg(test)]
mod tests;
