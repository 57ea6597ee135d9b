//! Replays the fuzz corpus, and mutates it for a while: the same mutants every time, more with
//! `FUZZ_ITERATIONS`, others with `FUZZ_SEED`.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use tests::fuzz::{TARGETS, Target};

/// Mutants of a target of cost 1; all targets together take some seconds.
const ITERATIONS: u64 = 300_000;
/// Inputs grow no further.
const MAX_INPUT: usize = 4096;
/// Values at which length and sign go wrong.
const INTERESTING: [u8; 8] = [0x00, 0x01, 0x7f, 0x80, 0xff, 0x10, 0x20, 0x40];

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let mut dirs: Vec<String> = fs::read_dir(corpus())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    dirs.sort();
    let mut names: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    names.sort();

    assert_eq!(dirs, names);
    assert!(TARGETS.iter().all(|target| !inputs(target).is_empty()));
}

#[test]
fn the_corpus_is_harmless() {
    for target in TARGETS {
        for input in inputs(target) {
            run(target, &input);
        }
    }
}

#[test]
fn mutants_of_the_corpus_are_harmless() {
    let seed = number("FUZZ_SEED").unwrap_or(1);
    let iterations = number("FUZZ_ITERATIONS").unwrap_or(ITERATIONS);
    for target in TARGETS {
        let corpus = inputs(target);
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut input = Vec::new();
        for round in 0..iterations / target.cost {
            if round % 8 == 0 {
                input = corpus[below(&mut random, corpus.len())].clone();
            }
            mutate(&mut input, &corpus, &mut random);
            run(target, &input);
        }
    }
}

fn run(target: &Target, input: &[u8]) {
    if catch_unwind(|| (target.run)(input)).is_err() {
        let path = std::env::temp_dir().join(format!("crash-{}", target.name));
        fs::write(&path, input).unwrap();
        panic!(
            "target {} fails on {} bytes, kept in {}; fix it and move them to {}",
            target.name,
            input.len(),
            path.display(),
            corpus().join(target.name).display(),
        );
    }
}

fn mutate(input: &mut Vec<u8>, corpus: &[Vec<u8>], random: &mut ChaCha8Rng) {
    for _ in 0..=below(random, 3) {
        let at = below(random, input.len() + 1);
        match below(random, 7) {
            0 if at < input.len() => input[at] ^= 1 << below(random, 8),
            1 if at < input.len() => input[at] = random.next_u32() as u8,
            2 if at < input.len() => input[at] = INTERESTING[below(random, INTERESTING.len())],
            3 => input.truncate(at),
            4 => input.insert(at, random.next_u32() as u8),
            5 if at < input.len() => {
                input.remove(at);
            }
            _ => {
                let other = &corpus[below(random, corpus.len())];
                let from = below(random, other.len() + 1);
                let len = below(random, (other.len() - from).min(64) + 1);
                input.splice(at..at, other[from..from + len].iter().copied());
            }
        }
        input.truncate(MAX_INPUT);
    }
}

fn below(random: &mut ChaCha8Rng, bound: usize) -> usize {
    (random.next_u64() % bound.max(1) as u64) as usize
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// The target's inputs, in order of their names.
fn inputs(target: &Target) -> Vec<Vec<u8>> {
    let mut paths: Vec<PathBuf> = fs::read_dir(corpus().join(target.name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.into_iter().map(|path| fs::read(path).unwrap()).collect()
}

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}
