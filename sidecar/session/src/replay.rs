//! Which counters were seen (RFC 6479, with a ring of words instead of a shifting bitmap).

/// Counters behind the highest that may still arrive: a GSO batch of 64 packets on each of several reordered
/// paths, with room. One word more is kept, so that the word being cleared is never one in the window.
pub const WINDOW: u64 = 8192;
const WORDS: usize = (WINDOW / 64) as usize + 1;

/// The window of one receiving key.
#[derive(Clone, Debug)]
pub struct Window {
    highest: u64,
    seen: Box<[u64; WORDS]>,
}

impl Window {
    pub fn new() -> Self {
        Self { highest: 0, seen: Box::new([0; WORDS]) }
    }

    /// Whether `counter` is new; marks nothing.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter > self.highest {
            return true;
        }
        if self.highest - counter >= WINDOW {
            return false;
        }
        self.seen[word(counter)] & bit(counter) == 0
    }

    /// Marks `counter` as seen; false if it was seen before or is too old. Call it only for what authenticated.
    pub fn accept(&mut self, counter: u64) -> bool {
        if !self.is_new(counter) {
            return false;
        }
        if counter > self.highest {
            let steps = (counter / 64 - self.highest / 64).min(WORDS as u64);
            for step in 1..=steps {
                self.seen[((self.highest / 64 + step) % WORDS as u64) as usize] = 0;
            }
            self.highest = counter;
        }
        self.seen[word(counter)] |= bit(counter);
        true
    }
}

impl Default for Window {
    fn default() -> Self {
        Self::new()
    }
}

fn word(counter: u64) -> usize {
    (counter / 64 % WORDS as u64) as usize
}

fn bit(counter: u64) -> u64 {
    1 << (counter % 64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_counter_is_accepted_once_and_not_behind_the_window() {
        let mut window = Window::new();
        assert!(window.accept(0));
        assert!(!window.accept(0));
        assert!(window.accept(9000));
        assert!(!window.accept(9000 - WINDOW));
        assert!(window.accept(9000 - WINDOW + 1));
        assert!(!window.accept(9000 - WINDOW + 1));
        assert!(window.accept(u64::MAX));
        assert!(!window.accept(9001));
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_set(counters in prop::collection::vec(0u64..40_000, 1..400)) {
            let mut window = Window::new();
            let mut seen = BTreeSet::new();
            let mut highest = 0;
            for counter in counters {
                let expected = !seen.contains(&counter) && (counter > highest || highest - counter < WINDOW);
                prop_assert_eq!(window.accept(counter), expected);
                if expected {
                    seen.insert(counter);
                    highest = highest.max(counter);
                }
            }
        }
    }
}
