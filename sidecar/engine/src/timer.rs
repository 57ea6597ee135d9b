//! One heap of deadlines, each with its reason.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// Deadlines by key; setting a key again moves it.
#[derive(Clone, Debug)]
pub struct Timers<K> {
    by_time: BTreeSet<(Instant, K)>,
    by_key: BTreeMap<K, Instant>,
}

impl<K: Ord + Copy> Timers<K> {
    pub fn new() -> Self {
        Self { by_time: BTreeSet::new(), by_key: BTreeMap::new() }
    }

    /// Sets, moves or (with `None`) removes the deadline of `key`.
    pub fn set(&mut self, key: K, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.by_key.insert(key, at),
            None => self.by_key.remove(&key),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, key));
        }
        if let Some(at) = at {
            self.by_time.insert((at, key));
        }
    }

    /// Sets the deadline of `key` unless an earlier one is set.
    pub fn set_earlier(&mut self, key: K, at: Instant) {
        if self.by_key.get(&key).is_none_or(|&set| at < set) {
            self.set(key, Some(at));
        }
    }

    /// The next deadline and why.
    pub fn next(&self) -> Option<(Instant, K)> {
        self.by_time.first().copied()
    }

    /// Takes the next key that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        let (at, key) = self.next()?;
        if at > now {
            return None;
        }
        self.set(key, None);
        Some(key)
    }

    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }
}

impl<K: Ord + Copy> Default for Timers<K> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_key_has_one_deadline_and_is_taken_once() {
        let t0 = Instant::now();
        let mut timers = Timers::new();
        timers.set('a', Some(t0 + Duration::from_secs(2)));
        timers.set('b', Some(t0 + Duration::from_secs(1)));
        timers.set('a', Some(t0));
        timers.set_earlier('b', t0 + Duration::from_secs(5));

        assert_eq!(timers.next(), Some((t0, 'a')));
        assert_eq!(timers.pop_due(t0 + Duration::from_secs(9)), Some('a'));
        assert_eq!(timers.pop_due(t0), None);
        assert_eq!(timers.pop_due(t0 + Duration::from_secs(1)), Some('b'));
        assert!(timers.is_empty());
    }
}
