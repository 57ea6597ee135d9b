//! What happens to a world, in sentences, over many seeds; and how to see a failure again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    net::Link,
    site::{self, Site},
    world::{Deed, Machine, StationId},
};

/// Threads for many seeds: the machine has two cores, and each world runs on one.
const THREADS: usize = 2;

/// Runs a scenario for every seed, or only for `SIM_SEED`. A failure names the command that repeats it:
/// `file` and `name` are the test's.
pub fn for_seeds(
    file: &str,
    name: &str,
    seeds: std::ops::Range<u64>,
    scenario: impl Fn(u64) + Sync,
) {
    let only = std::env::var("SIM_SEED").ok().and_then(|seed| seed.parse::<u64>().ok());
    let seeds = only.map_or(seeds, |seed| seed..seed + 1);
    let next = AtomicU64::new(seeds.start);
    let run = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                return Ok(());
            }
            catch_unwind(AssertUnwindSafe(|| scenario(seed))).map_err(|panic| (seed, panic))?;
        }
    };
    let failure = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(run)).collect();
        let failures = threads.into_iter().filter_map(|thread| thread.join().ok()?.err());
        failures.min_by_key(|&(seed, _)| seed)
    });
    if let Some((seed, panic)) = failure {
        #[allow(clippy::print_stderr)]
        {
            eprintln!("again: SIM_SEED={seed} cargo test -p tests --test {file} -- --exact {name}");
        }
        resume_unwind(panic);
    }
}

/// Parts the internet: those named cannot reach the others, nor the others them.
pub fn partition<M: Machine + 'static>(stations: impl IntoIterator<Item = StationId>) -> Deed<M> {
    let stations: Vec<_> = stations.into_iter().collect();
    Box::new(move |world| {
        for station in stations {
            let place = site::place(world, station);
            world.net.set_group(place, 1);
        }
    })
}

pub fn heal<M: Machine + 'static>() -> Deed<M> {
    Box::new(|world| world.net.heal())
}

/// Lets nothing pass between two stations across the internet, whatever else they reach.
pub fn cut<M: Machine + 'static>(a: StationId, b: StationId) -> Deed<M> {
    Box::new(move |world| {
        let (a, b) = (site::place(world, a), site::place(world, b));
        world.net.set_cut(a, b, true);
    })
}

/// Moves a station to a new place; its host notices at once, as netlink tells.
pub fn roam<M: Machine + 'static>(station: StationId, to: Site, latency: Duration) -> Deed<M> {
    Box::new(move |world| {
        let host = world.host(station);
        world.net.unplug(host);
        to.plug(&mut world.net, host, latency);
        world.tell_underlay(station);
    })
}

/// Every link of a station becomes this.
pub fn relink<M: Machine + 'static>(station: StationId, link: Link) -> Deed<M> {
    Box::new(move |world| {
        let host = world.host(station);
        world.net.uplinks_mut(host).for_each(|old| *old = link.clone());
    })
}

pub fn sleep<M: Machine + 'static>(station: StationId) -> Deed<M> {
    Box::new(move |world| world.set_asleep(station, true))
}

pub fn wake<M: Machine + 'static>(station: StationId) -> Deed<M> {
    Box::new(move |world| world.set_asleep(station, false))
}

/// The NATs before a station forget everything.
pub fn reboot_nat<M: Machine + 'static>(station: StationId) -> Deed<M> {
    Box::new(move |world| {
        for edge in world.net.edges_before(world.host(station)) {
            world.net.edge_mut(edge).reboot();
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_seed_is_run_once_and_a_failure_comes_through() {
        let seen = Mutex::new(Vec::new());
        for_seeds("file", "name", 0..9, |seed| seen.lock().unwrap().push(seed));
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        assert_eq!(seen, (0..9).collect::<Vec<_>>());

        let failed = catch_unwind(|| for_seeds("file", "name", 0..9, |seed| assert_ne!(seed, 4)));
        assert!(failed.is_err());
    }
}
