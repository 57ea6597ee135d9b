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

/// Events by time; those of one time in the order they were pushed. What the heap moves about is small; the events
/// stay where they are.
#[derive(Debug)]
pub struct Queue<E> {
    heap: BinaryHeap<Reverse<(SimTime, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
    pushed: u64,
}

impl<E> Queue<E> {
    pub fn new() -> Self {
        Self { heap: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), pushed: 0 }
    }

    pub fn push(&mut self, at: SimTime, event: E) {
        let place = match self.free.pop() {
            Some(place) => {
                self.events[place] = Some(event);
                place
            }
            None => {
                self.events.push(Some(event));
                self.events.len() - 1
            }
        };
        self.heap.push(Reverse((at, self.pushed, place)));
        self.pushed += 1;
    }

    pub fn next_at(&self) -> Option<SimTime> {
        self.heap.peek().map(|Reverse((at, ..))| *at)
    }

    pub fn pop(&mut self) -> Option<(SimTime, E)> {
        let Reverse((at, _, place)) = self.heap.pop()?;
        self.free.push(place);
        Some((at, self.events[place].take()?))
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
