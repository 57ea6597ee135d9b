//! The way back from members: coalesced per member, so that it needs no bound but their number.
//!
//! Of each kind of event a member has one under way, the newest. Members are read in the order in which they first had
//! something to say, one event at a time, so nobody waits for somebody who says much.

use std::{
    collections::{BTreeMap, VecDeque},
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use rpc::feed::MAX_TRANSITIONS;
use tokio::sync::Notify;

use super::{Event, MemberKey, Report};

/// Both ends of the way back; clones are handles to the same queue.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    some: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    order: VecDeque<(String, MemberKey)>,
    events: BTreeMap<(String, MemberKey), Vec<Event>>,
    coalesced: u64,
}

impl Reports {
    /// Puts a report in; what it makes obsolete goes.
    pub fn put(&self, report: Report) {
        let mut queue = self.lock();
        let key = (report.network, report.member);
        let events = queue.events.entry(key.clone()).or_default();
        let (first, before) = (events.is_empty(), events.len());
        let event = match events.iter().position(|old| same_kind(old, &report.event)) {
            Some(at) => merged(events.remove(at), report.event),
            None => report.event,
        };
        events.push(event);
        if events.len() == before {
            queue.coalesced += 1;
        }
        if first {
            queue.order.push_back(key);
        }
        drop(queue);
        self.0.some.notify_one();
    }

    /// The next report. Cancelling it loses nothing.
    pub async fn next(&self) -> Report {
        loop {
            if let Some(report) = self.try_next() {
                return report;
            }
            self.0.some.notified().await;
        }
    }

    /// The next report, if there is one.
    pub fn try_next(&self) -> Option<Report> {
        let mut queue = self.lock();
        let key = queue.order.pop_front()?;
        let events = queue.events.get_mut(&key)?;
        let event = events.remove(0);
        if events.is_empty() {
            queue.events.remove(&key);
        } else {
            queue.order.push_back(key.clone());
        }
        let more = !queue.order.is_empty();
        drop(queue);
        if more {
            self.0.some.notify_one();
        }
        Some(Report { network: key.0, member: key.1, event })
    }

    /// Members with something that was not read yet.
    pub fn waiting(&self) -> usize {
        self.lock().order.len()
    }

    /// Events that a newer one took the place of.
    pub fn coalesced(&self) -> u64 {
        self.lock().coalesced
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn same_kind(a: &Event, b: &Event) -> bool {
    mem::discriminant(a) == mem::discriminant(b)
}

/// Of two events of a kind the newer one, with the transitions of both.
fn merged(old: Event, new: Event) -> Event {
    let (Event::Status(old), Event::Status(mut new)) = (old, new.clone()) else { return new };
    let mut transitions = old.transitions;
    transitions.append(&mut new.transitions);
    let excess = transitions.len().saturating_sub(MAX_TRANSITIONS);
    new.transitions = transitions.split_off(excess);
    Event::Status(new)
}

#[cfg(test)]
mod tests {
    use rpc::feed::{Status, Transition};

    use super::*;

    fn report(member: &str, event: Event) -> Report {
        Report { network: "prod".into(), member: MemberKey::Node(member.into()), event }
    }

    fn status(revision: u64, transition: &str) -> Event {
        let transition = Transition { kind: transition.into(), ..Transition::default() };
        Event::Status(Box::new(Status {
            revision,
            transitions: vec![transition],
            ..Status::default()
        }))
    }

    #[test]
    fn of_each_kind_the_newest_counts_and_transitions_add_up() {
        let reports = Reports::default();
        for revision in 1..=100 {
            reports.put(report("a", status(revision, &format!("t{revision}"))));
        }
        reports.put(report("a", Event::Gone));

        let Some(Report { event: Event::Status(status), .. }) = reports.try_next() else {
            panic!("a status first")
        };
        assert_eq!(status.revision, 100);
        assert_eq!(status.transitions.len(), MAX_TRANSITIONS);
        assert_eq!(status.transitions.last().map(|t| t.kind.as_str()), Some("t100"));
        assert_eq!(reports.try_next(), Some(report("a", Event::Gone)));
        assert_eq!((reports.try_next(), reports.coalesced()), (None, 99));
    }

    #[test]
    fn what_came_last_is_read_last() {
        let reports = Reports::default();
        let applied = |revision| Event::Applied { revision, epochs: vec![] };
        reports.put(report("a", applied(1)));
        reports.put(report("a", Event::Gone));
        reports.put(report("a", applied(2)));

        assert_eq!(reports.try_next(), Some(report("a", Event::Gone)));
        assert_eq!(reports.try_next(), Some(report("a", applied(2))));
    }

    #[test]
    fn a_member_that_says_much_does_not_keep_another_waiting() {
        let reports = Reports::default();
        reports.put(report("a", Event::Retired));
        reports.put(report("a", Event::Gone));
        reports.put(report("b", Event::Gone));

        let members: Vec<_> = std::iter::from_fn(|| reports.try_next())
            .map(|report| report.member.to_string())
            .collect();

        assert_eq!(members, ["node a", "node b", "node a"]);
        assert_eq!(reports.waiting(), 0);
    }
}
