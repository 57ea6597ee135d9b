//! Virtual time and the queue of what happens when.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    time::{Duration, Instant},
};

/// Time since the world began.
pub type SimTime = Duration;

/// `30.s()`, `100.ms()`: how scenarios speak of time.
pub trait Span {
    fn us(self) -> Duration;
    fn ms(self) -> Duration;
    fn s(self) -> Duration;
    fn min(self) -> Duration;
}

impl Span for u64 {
    fn us(self) -> Duration {
        Duration::from_micros(self)
    }

    fn ms(self) -> Duration {
        Duration::from_millis(self)
    }

    fn s(self) -> Duration {
        Duration::from_secs(self)
    }

    fn min(self) -> Duration {
        Duration::from_secs(60 * self)
    }
}

/// Unix seconds when every world begins: 2026-01-01.
pub const UNIX_AT_START: u64 = 1_767_225_600;

/// Maps virtual time to the `Instant`s that machines take. Only differences matter to them.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    pub fn new() -> Self {
        Self { origin: Instant::now() }
    }

    pub fn instant(&self, at: SimTime) -> Instant {
        self.origin + at
    }

    /// The virtual time of an instant; one before the world began is its beginning.
    pub fn time(&self, at: Instant) -> SimTime {
        at.saturating_duration_since(self.origin)
    }

    pub fn unix(&self, at: SimTime) -> u64 {
        UNIX_AT_START + at.as_secs()
    }
}

impl Default for Clock {
    fn default() -> Self {
        Self::new()
    }
}

/// Events by time; those of one time in the order they were pushed.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<Entry<E>>>,
    pushed: u64,
}

#[derive(Debug)]
struct Entry<E> {
    at: SimTime,
    order: u64,
    event: E,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), pushed: 0 }
    }

    pub fn push(&mut self, at: SimTime, event: E) {
        self.heap.push(Reverse(Entry { at, order: self.pushed, event }));
        self.pushed += 1;
    }

    pub fn next_at(&self) -> Option<SimTime> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    pub fn pop(&mut self) -> Option<(SimTime, E)> {
        self.heap.pop().map(|Reverse(entry)| (entry.at, entry.event))
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> Ord for Entry<E> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_by_order() {
        let mut queue = Queue::new();
        queue.push(2.s(), 'c');
        queue.push(1.s(), 'a');
        queue.push(1.s(), 'b');

        let events: Vec<_> = std::iter::from_fn(|| queue.pop()).collect();

        assert_eq!(events, [(1.s(), 'a'), (1.s(), 'b'), (2.s(), 'c')]);
    }
}
