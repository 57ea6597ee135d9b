//! Which of the operators acts: the holder of one Lease.
//!
//! [`Candidate`] decides, [`run`] asks and writes. A lease that nobody touched for [`DURATION`] *by our own clock* is free; clocks of
//! two machines are never compared. The holder renews every [`RENEW`] and stops acting [`GRACE`] after its last success, before
//! anybody else may start. One that ends gives the lease back, so the next leads within [`RETRY`].

use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams};
use task::CancellationToken;
use tokio::sync::watch;

use crate::{api, names};

/// A lease untouched for so long is free.
pub const DURATION: Duration = Duration::from_secs(15);
/// The holder stops acting so long after its last renewal.
pub const GRACE: Duration = Duration::from_secs(10);
const RENEW: Duration = Duration::from_secs(3);
const RETRY: Duration = Duration::from_secs(2);
/// On the lease: when somebody asked to take everything down. The holder reads the lease anyway.
pub const RETIRE: &str = "easynet.io/retire";
/// An uninstallation that has not ended by then was given up.
const RETIRE_FOR: i64 = 600;
/// A request that takes longer counts as failed.
const WITHIN: Duration = Duration::from_secs(3);

/// What the lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Empty: given back.
    pub holder: String,
    /// Of the object; changes with every renewal.
    pub version: String,
    pub transitions: i32,
}

/// Who leads, as far as this operator knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leadership {
    /// Not known yet.
    Unknown,
    /// Another one does.
    Standby {
        leader: String,
    },
    Leader,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the lease with oneself as holder, who was not before.
    Take {
        transitions: i32,
    },
    /// Write it again as its holder.
    Renew {
        transitions: i32,
    },
    Wait(Duration),
}

/// One that would like to lead.
#[derive(Debug)]
pub struct Candidate {
    identity: String,
    seen: Option<(Record, Instant)>,
    renewed: Option<Instant>,
}

impl Candidate {
    pub fn new(identity: impl Into<String>) -> Self {
        Self { identity: identity.into(), seen: None, renewed: None }
    }

    /// Takes note of what the API server has.
    pub fn handle_seen(&mut self, record: Record, now: Instant) {
        if record.holder != self.identity {
            self.renewed = None;
        }
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record, now));
        }
    }

    /// Takes note that the own write succeeded that began at `began`.
    pub fn handle_written(&mut self, record: Record, began: Instant) {
        self.seen = Some((record, began));
        self.renewed = Some(began);
    }

    /// What to do with a lease as it was last seen.
    pub fn poll_step(&self, now: Instant) -> Step {
        let Some((record, at)) = &self.seen else { return Step::Take { transitions: 0 } };
        if record.holder == self.identity {
            let Some(renewed) = self.renewed else {
                // Its own from before a restart: a process of the same name, so nobody else acts.
                return Step::Renew { transitions: record.transitions };
            };
            let due = renewed + RENEW;
            return match due.checked_duration_since(now) {
                Some(wait) if !wait.is_zero() => Step::Wait(wait),
                Some(_) | None => Step::Renew { transitions: record.transitions },
            };
        }
        let free = record.holder.is_empty() || now >= *at + DURATION;
        if free {
            return Step::Take { transitions: record.transitions.saturating_add(1) };
        }
        Step::Wait(RETRY.min(*at + DURATION - now))
    }

    pub fn leadership(&self, now: Instant) -> Leadership {
        if self.renewed.is_some_and(|renewed| now < renewed + GRACE) {
            return Leadership::Leader;
        }
        match &self.seen {
            Some((record, _)) if record.holder != self.identity && !record.holder.is_empty() => {
                Leadership::Standby { leader: record.holder.clone() }
            }
            Some(_) | None => Leadership::Unknown,
        }
    }
}

/// Competes for the lease until the token is cancelled, and gives it back then.
///
/// # Errors
/// Never; failures are tried again.
pub async fn run(
    client: Client,
    namespace: String,
    identity: String,
    state: watch::Sender<Leadership>,
    retire: watch::Sender<bool>,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let mut candidate = Candidate::new(&identity);
    while !token.is_cancelled() {
        let pause = match turn(&leases, &mut candidate).await {
            Ok((pause, is_asked)) => {
                retire.send_if_modified(|now| std::mem::replace(now, is_asked) != is_asked);
                pause
            }
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "Lease not reached");
                RETRY
            }
        };
        let now = Instant::now();
        tell(&state, candidate.leadership(now));
        // A leader that cannot reach the API server must stop in time, not at its next try.
        let pause = match candidate.renewed {
            Some(renewed) => pause.min((renewed + GRACE).saturating_duration_since(now)),
            None => pause,
        };
        let pause = pause.max(Duration::from_millis(50));
        let _ = token.run_until_cancelled(tokio::time::sleep(pause)).await;
        tell(&state, candidate.leadership(Instant::now()));
    }
    if candidate.renewed.is_some() {
        tell(&state, Leadership::Unknown);
        // Whoever acted for this leader has ended when this task is the last: see `app`.
        let _ = tokio::time::timeout(WITHIN, give_back(&leases, &candidate)).await;
    }
    Ok(())
}

/// Reads the lease and does one step. Says when to do the next, and whether everything is to be taken down.
async fn turn(leases: &Api<Lease>, candidate: &mut Candidate) -> anyhow::Result<(Duration, bool)> {
    let found = api::within(WITHIN, leases.get_opt(names::LEASE)).await?;
    if let Some(lease) = &found {
        candidate.handle_seen(record(lease), Instant::now());
    } else {
        candidate.seen = None;
    }
    let is_asked = found.as_ref().is_some_and(|lease| is_retiring(lease, Timestamp::now()));
    let transitions = match candidate.poll_step(Instant::now()) {
        Step::Wait(pause) => return Ok((pause, is_asked)),
        Step::Take { transitions } | Step::Renew { transitions } => transitions,
    };
    let began = Instant::now();
    let mut lease = desired(&candidate.identity, transitions);
    let written = match found {
        Some(found) => {
            lease.metadata = found.metadata;
            lease.metadata.managed_fields = None;
            let spec = found.spec.unwrap_or_default();
            if let Some(spec_now) = &mut lease.spec
                && spec.holder_identity.as_deref() == Some(&candidate.identity)
            {
                spec_now.acquire_time = spec.acquire_time;
            }
            let params = PostParams::default();
            api::within(WITHIN, leases.replace(names::LEASE, &params, &lease)).await
        }
        None => api::within(WITHIN, leases.create(&PostParams::default(), &lease)).await,
    };
    let written = written.context("writing the lease")?;
    candidate.handle_written(record(&written), began);
    Ok((RENEW, is_asked))
}

/// Whether `easynet-operator retire` asked for it a short while ago.
fn is_retiring(lease: &Lease, now: Timestamp) -> bool {
    let asked = lease.metadata.annotations.as_ref().and_then(|all| all.get(RETIRE));
    let asked: Option<Timestamp> = asked.and_then(|at| at.parse().ok());
    asked.is_some_and(|at| now.as_second().saturating_sub(at.as_second()) < RETIRE_FOR)
}

async fn give_back(leases: &Api<Lease>, candidate: &Candidate) -> anyhow::Result<()> {
    let mut lease = leases.get(names::LEASE).await?;
    if lease.spec.as_ref().and_then(|spec| spec.holder_identity.as_deref())
        != Some(&candidate.identity)
    {
        return Ok(());
    }
    if let Some(spec) = &mut lease.spec {
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
    }
    lease.metadata.managed_fields = None;
    leases.replace(names::LEASE, &PostParams::default(), &lease).await?;
    Ok(())
}

fn desired(identity: &str, transitions: i32) -> Lease {
    let now = MicroTime(Timestamp::now());
    Lease {
        metadata: ObjectMeta { name: Some(names::LEASE.to_owned()), ..ObjectMeta::default() },
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.to_owned()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

fn tell(state: &watch::Sender<Leadership>, leadership: Leadership) {
    state.send_if_modified(|state| {
        if *state == leadership {
            return false;
        }
        tracing::info!(now = ?leadership, before = ?state, "Leadership changed");
        *state = leadership;
        true
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: &str) -> Record {
        Record { holder: holder.to_owned(), version: version.to_owned(), transitions: 4 }
    }

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_lease_that_is_not_there_is_taken() {
        let mut candidate = Candidate::new("a");
        let t0 = Instant::now();

        assert_eq!(candidate.poll_step(t0), Step::Take { transitions: 0 });
        candidate.handle_written(record("a", "1"), t0);

        assert_eq!(candidate.leadership(t0), Leadership::Leader);
        assert_eq!(candidate.poll_step(t0), Step::Wait(RENEW));
        assert_eq!(candidate.poll_step(t0 + RENEW), Step::Renew { transitions: 4 });
    }

    #[test]
    fn another_ones_lease_is_taken_when_it_was_not_touched_for_its_duration() {
        let mut candidate = Candidate::new("a");
        let t0 = Instant::now();
        candidate.handle_seen(record("b", "1"), t0);
        candidate.handle_seen(record("b", "1"), t0 + s(10));

        assert_eq!(candidate.leadership(t0), Leadership::Standby { leader: "b".to_owned() });
        assert_eq!(candidate.poll_step(t0 + s(14)), Step::Wait(s(1)));
        assert_eq!(candidate.poll_step(t0 + DURATION), Step::Take { transitions: 5 });
    }

    #[test]
    fn a_renewal_of_the_other_starts_the_wait_anew() {
        let mut candidate = Candidate::new("a");
        let t0 = Instant::now();
        candidate.handle_seen(record("b", "1"), t0);
        candidate.handle_seen(record("b", "2"), t0 + s(14));

        assert_eq!(candidate.poll_step(t0 + DURATION), Step::Wait(RETRY));
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        let mut candidate = Candidate::new("a");
        let t0 = Instant::now();
        candidate.handle_seen(record("", "3"), t0);

        assert_eq!(candidate.poll_step(t0), Step::Take { transitions: 5 });
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_another_may_start() {
        let mut leader = Candidate::new("a");
        let mut other = Candidate::new("b");
        let t0 = Instant::now();
        leader.handle_written(record("a", "1"), t0);
        other.handle_seen(record("a", "1"), t0);

        assert_eq!(leader.leadership(t0 + GRACE), Leadership::Unknown);
        assert_eq!(other.poll_step(t0 + GRACE), Step::Wait(RETRY));
        const { assert!(GRACE.as_secs() < DURATION.as_secs()) };
    }

    #[test]
    fn who_lost_the_lease_knows_when_it_sees_another_holder() {
        let mut leader = Candidate::new("a");
        let t0 = Instant::now();
        leader.handle_written(record("a", "1"), t0);

        leader.handle_seen(record("b", "2"), t0 + s(1));

        assert_eq!(leader.leadership(t0 + s(1)), Leadership::Standby { leader: "b".to_owned() });
    }
}
