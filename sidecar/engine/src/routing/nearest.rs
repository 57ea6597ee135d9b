//! Which of the members that carry for others are kept as links: the nearest few of those with a direct path, by its latency.
//!
//! A nearer one is linked before the farthest is given up, and only if it is nearer by enough that the two do not change places
//! for ever.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use wire::id::NodeId;

/// Links that a node keeps with such members.
pub const LINKS: usize = 3;
/// Who declined is asked again after this: each time the link is told to the whole network, and that it is not there.
const RETRY: Duration = Duration::from_secs(1800);
/// At most one link changes its place in this time: whoever changes a link tells the whole network.
const CALM: Duration = Duration::from_secs(60);
/// Nearer is who is so by both of these.
const NEARER: Duration = Duration::from_millis(5);
const NEARER_PERCENT: u32 = 10;

/// A member that carries for others, with a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    /// Round trip of the direct path, if there is one that works.
    pub rtt: Option<Duration>,
    /// It is one of the links chosen here.
    pub is_chosen: bool,
    /// It answers on that link.
    pub is_up: bool,
}

/// What to do now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub link: Vec<NodeId>,
    pub unlink: Option<NodeId>,
}

/// What is remembered of the candidates.
#[derive(Clone, Debug, Default)]
pub struct Nearest {
    declined: BTreeMap<NodeId, Instant>,
    /// When one was last linked in place of another.
    changed: Option<Instant>,
}

impl Nearest {
    /// `node` wants no link with us: others come first for a while.
    pub fn declined(&mut self, node: NodeId, now: Instant) {
        self.declined.insert(node, now);
    }

    /// What to do; to be asked every few seconds.
    pub fn plan(&mut self, candidates: &[Candidate], now: Instant) -> Plan {
        self.declined.retain(|_, at| !is_past(*at, RETRY, now));
        let chosen: Vec<&Candidate> = candidates.iter().filter(|one| one.is_chosen).collect();
        // One that was never up is still coming up.
        let working = chosen.iter().filter(|one| one.rtt.is_some() || !one.is_up).count();
        let farthest = chosen.iter().max_by_key(|one| distance(one));
        let mut near: Vec<&Candidate> = candidates
            .iter()
            .filter(|one| !one.is_chosen && one.rtt.is_some())
            .filter(|one| !self.declined.contains_key(&one.node))
            .collect();
        near.sort_by_key(|one| distance(one));
        let mut plan = Plan::default();
        if working < LINKS {
            plan.link = near.iter().take(LINKS - working).map(|one| one.node).collect();
        } else if chosen.len() == LINKS
            && self.changed.is_none_or(|last| is_past(last, CALM, now))
            && let (Some(near), Some(far)) = (near.first(), farthest)
            && is_nearer(near.rtt, far.rtt)
        {
            plan.link.push(near.node);
            self.changed = Some(now);
        }
        let others = chosen.iter().filter(|one| farthest != Some(one));
        if others.filter(|one| one.rtt.is_some() && one.is_up).count() >= LINKS {
            plan.unlink = farthest.map(|one| one.node);
        }
        plan
    }
}

fn is_past(since: Instant, wait: Duration, now: Instant) -> bool {
    now.saturating_duration_since(since) >= wait
}

fn distance(one: &Candidate) -> (Duration, NodeId) {
    (one.rtt.unwrap_or(Duration::MAX), one.node)
}

fn is_nearer(near: Option<Duration>, far: Option<Duration>) -> bool {
    let (Some(near), Some(far)) = (near, far) else { return false };
    let gained = far.saturating_sub(near);
    gained > NEARER && gained > far / 100 * NEARER_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(number: u8) -> NodeId {
        NodeId([number; 16])
    }

    /// A member as far away as `millis` says.
    fn at(number: u8, millis: u64, is_chosen: bool, is_up: bool) -> Candidate {
        let rtt = Some(Duration::from_millis(millis));
        Candidate { node: node(number), rtt, is_chosen, is_up }
    }

    #[test]
    fn the_nearest_are_linked_and_a_nearer_one_takes_the_place_of_the_farthest_once_it_is_up() {
        let t0 = Instant::now();
        let mut nearest = Nearest::default();
        let all = [
            at(1, 40, false, false),
            at(2, 10, false, false),
            at(3, 30, false, false),
            at(4, 20, false, false),
        ];
        assert_eq!(nearest.plan(&all, t0).link, [node(2), node(4), node(3)]);

        let mut chosen = [
            at(2, 10, true, true),
            at(3, 30, true, true),
            at(4, 20, true, true),
            at(5, 26, false, false),
        ];
        assert_eq!(nearest.plan(&chosen, t0), Plan::default(), "4 ms are not worth it");

        chosen[3] = at(5, 15, false, false);
        assert_eq!(nearest.plan(&chosen, t0).link, [node(5)]);
        chosen[3] = at(5, 15, true, false);
        assert_eq!(nearest.plan(&chosen, t0), Plan::default());
        chosen[3] = at(5, 15, true, true);
        assert_eq!(nearest.plan(&chosen, t0).unlink, Some(node(3)));
    }

    #[test]
    fn one_link_in_a_minute_changes_its_place() {
        let t0 = Instant::now();
        let mut nearest = Nearest::default();
        let chosen = [at(1, 40, true, true), at(2, 41, true, true), at(3, 42, true, true)];
        let with = |near| -> Vec<Candidate> { chosen.into_iter().chain([near]).collect() };
        assert_eq!(nearest.plan(&with(at(4, 10, false, false)), t0).link, [node(4)]);

        let other = with(at(5, 10, false, false));
        assert_eq!(nearest.plan(&other, t0 + CALM / 2), Plan::default());
        assert_eq!(nearest.plan(&other, t0 + CALM).link, [node(5)]);
    }

    #[test]
    fn who_declined_or_lost_its_path_is_replaced() {
        let t0 = Instant::now();
        let mut nearest = Nearest::default();
        let lost = Candidate { rtt: None, ..at(1, 10, true, true) };
        let mut all = [
            lost,
            at(2, 20, true, true),
            at(3, 30, true, true),
            at(4, 40, false, false),
            at(5, 50, false, false),
        ];
        nearest.declined(node(4), t0);
        assert_eq!(nearest.plan(&all, t0).link, [node(5)]);
        assert_eq!(nearest.plan(&all, t0 + RETRY).link, [node(4)]);

        all[4] = at(5, 50, true, true);
        assert_eq!(nearest.plan(&all, t0).unlink, Some(node(1)));
    }
}
