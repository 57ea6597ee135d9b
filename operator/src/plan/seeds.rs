//! Which members a member starts from, when nobody outside is known.
//!
//! Every member is told some others by rendezvous hashing: each pair has a score, the best few win. A member that comes or goes
//! changes the seeds of those it wins or leaves alone, and nobody asks for a list of all.

use crate::names::hash64;

/// Seeds per member. A random graph of 5,000 nodes with six links each is connected but for odds that do not matter, and every
/// seed could be down while the mesh is started.
pub const COUNT: usize = 6;

/// The positions in `candidates` of the seeds of `member`, best first; never itself. `candidates` are hashes of names.
pub fn choose(member: u64, candidates: &[u64]) -> Vec<usize> {
    let mut best: Vec<(u64, usize)> = Vec::with_capacity(COUNT + 1);
    for (index, candidate) in candidates.iter().enumerate() {
        if *candidate == member {
            continue;
        }
        let score = mix(member, *candidate);
        if best.len() == COUNT && best.last().is_some_and(|worst| worst.0 >= score) {
            continue;
        }
        let place = best.partition_point(|(other, _)| *other >= score);
        best.insert(place, (score, index));
        best.truncate(COUNT);
    }
    best.into_iter().map(|(_, index)| index).collect()
}

/// The hash of a member's name.
pub fn hash(name: &str) -> u64 {
    hash64(&["seed", name])
}

/// The finaliser of SplitMix64 over both; not symmetric, so that seeds are not pairs.
fn mix(member: u64, candidate: u64) -> u64 {
    let mut z = member.rotate_left(32) ^ candidate;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_new_member_changes_the_seeds_of_few() {
        let all: Vec<u64> = (0..500).map(|index| hash(&format!("node-{index}"))).collect();
        let changed = all[..499]
            .iter()
            .filter(|member| choose(**member, &all[..499]) != choose(**member, &all))
            .count();

        assert!((1..=20).contains(&changed), "{changed} of 499, expected about 6");
    }

    #[test]
    fn nobody_is_its_own_seed_and_a_few_members_know_all() {
        let all: Vec<u64> = (0..4).map(|index| hash(&format!("node-{index}"))).collect();

        for (index, member) in all.iter().enumerate() {
            let seeds: BTreeSet<usize> = choose(*member, &all).into_iter().collect();
            assert_eq!(seeds, (0..4).filter(|other| *other != index).collect());
        }
    }

    #[test]
    fn every_member_is_reached_by_following_seeds() {
        let all: Vec<u64> = (0..2000).map(|index| hash(&format!("node-{index}"))).collect();
        let mut reached = BTreeSet::from([0]);
        let mut edge = vec![0];
        let mut links = vec![Vec::new(); all.len()];
        for (index, member) in all.iter().enumerate() {
            for seed in choose(*member, &all) {
                links[index].push(seed);
                links[seed].push(index);
            }
        }
        while let Some(index) = edge.pop() {
            edge.extend(links[index].iter().filter(|next| reached.insert(**next)));
        }

        assert_eq!(reached.len(), all.len());
    }
}
