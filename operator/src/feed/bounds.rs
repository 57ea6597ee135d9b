//! What members say, made fit to be written down and read: a member may be in the wrong hands, and what it says ends up in objects of a
//! bounded size and on people's terminals.

use std::collections::BTreeSet;

use rpc::feed::{Condition, MAX_TRANSITIONS, Status};

/// Bytes of a version.
pub const VERSION: usize = 64;
/// Bytes of why a configuration could not be applied: some twenty sentences.
pub const ERROR: usize = 4096;
/// Bytes of a sentence.
const SENTENCE: usize = 1024;
/// Bytes of a name, a reason or an address.
const WORD: usize = 64;
/// Sentences, addresses, ports and epochs of one status.
const MANY: usize = 32;
/// Clusters of one network that a member speaks of.
const CLUSTERS: usize = 256;

/// Cuts a text to `most` bytes, and takes from it what would not be shown but change how the rest is.
pub fn text(text: &mut String, most: usize) {
    text.truncate(text.floor_char_boundary(most));
    if text.contains(is_unseen) {
        *text = text.replace(['\n', '\t'], " ").replace(is_unseen, "\u{fffd}");
    }
}

/// The same for all of a status.
pub fn status(status: &mut Status) {
    for sentences in [&mut status.conflicts, &mut status.refused] {
        texts(sentences, MANY, SENTENCE);
    }
    texts(&mut status.addresses, MANY, WORD);
    status.ports.truncate(MANY);
    status.epochs.truncate(MANY);
    status.clusters.truncate(CLUSTERS);
    for cluster in &mut status.clusters {
        text(&mut cluster.name, WORD);
    }
    let excess = status.transitions.len().saturating_sub(MAX_TRANSITIONS);
    status.transitions.drain(..excess);
    for transition in &mut status.transitions {
        text(&mut transition.kind, WORD);
        text(&mut transition.message, SENTENCE);
    }
    conditions(&mut status.conditions);
}

/// The API server takes no two conditions of one type, and no type but a word.
fn conditions(conditions: &mut Vec<Condition>) {
    let mut seen = BTreeSet::new();
    conditions.retain(|condition| is_word(&condition.kind) && seen.insert(condition.kind.clone()));
    conditions.truncate(MANY);
    for condition in conditions {
        text(&mut condition.reason, WORD);
        text(&mut condition.message, SENTENCE);
    }
}

fn texts(texts: &mut Vec<String>, many: usize, most: usize) {
    texts.truncate(many);
    texts.iter_mut().for_each(|one| text(one, most));
}

fn is_word(kind: &str) -> bool {
    (1..=WORD).contains(&kind.len()) && kind.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Control characters, and those that order, join or hide what is around them.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_and_shows_all_that_is_in_it() {
        for (said, shown) in [
            ("fine: häuser", "fine: häuser"),
            ("two\nlines", "two lines"),
            ("\u{1b}[2Jgone", "\u{fffd}[2Jgone"),
            ("a\u{202e}b", "a\u{fffd}b"),
            ("12345678901234567890", "1234567890123456"),
            ("123456789012345é", "123456789012345"),
        ] {
            let mut said = said.to_owned();
            text(&mut said, 16);
            assert_eq!(said, shown);
        }
    }

    #[test]
    fn whatever_a_member_says_of_itself_is_bounded_and_no_condition_comes_twice() {
        let long = || "x".repeat(200_000);
        let condition =
            |kind: String| Condition { kind, status: false, reason: long(), message: long() };
        let mut kinds: Vec<String> = (0..100).map(|number| format!("Kind{number}")).collect();
        kinds.extend(["Kind1".to_owned(), "no word".to_owned(), String::new(), long()]);
        let mut said = Status {
            addresses: vec![long(); 100],
            conditions: kinds.into_iter().map(condition).collect(),
            conflicts: vec![long(); 100],
            refused: vec![long(); 100],
            ports: vec![1; 1000],
            epochs: vec![1; 1000],
            clusters: vec![wire::lsa::ClusterBody { name: long(), ..Default::default() }; 1000],
            transitions: vec![
                rpc::feed::Transition { at_ms: 1, kind: long(), message: long() };
                100
            ],
            ..Status::default()
        };

        status(&mut said);

        assert!(prost::Message::encoded_len(&said) < 200_000);
        assert_eq!(said.conditions.len(), MANY);
        let kinds: BTreeSet<&String> = said.conditions.iter().map(|said| &said.kind).collect();
        assert_eq!(kinds.len(), MANY);
    }
}
