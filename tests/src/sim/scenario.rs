//! What happens to a world, in sentences, over many seeds; and how to see a failure again.

use std::{
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    mesh::Mesh,
    site::{self, Site},
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
            // Nodes of one world verify the same signatures.
            session::memo::remember(true);
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

/// Parts the internet: the members named cannot reach anybody else, nor be reached.
pub fn partition(members: impl IntoIterator<Item = usize>) -> impl FnOnce(&mut Mesh) + 'static {
    let members: Vec<_> = members.into_iter().collect();
    move |mesh| {
        for number in members {
            let place = site::place(&mesh.world, mesh.station(number));
            mesh.world.net.set_group(place, 1);
        }
    }
}

/// The same, but a server is on their side.
pub fn partition_with_server(
    members: impl IntoIterator<Item = usize>,
    server: usize,
) -> impl FnOnce(&mut Mesh) + 'static {
    let part = partition(members);
    move |mesh| {
        part(mesh);
        let place = site::place(&mesh.world, mesh.server_station(server));
        mesh.world.net.set_group(place, 1);
    }
}

/// Ends every partition and every cut.
pub fn heal() -> impl FnOnce(&mut Mesh) + 'static {
    |mesh| mesh.world.net.heal()
}

/// Lets nothing pass between two members across the internet, whatever else they reach.
pub fn cut(a: usize, b: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        let [a, b] = [a, b].map(|number| site::place(&mesh.world, mesh.station(number)));
        mesh.world.net.set_cut(a, b, true);
    }
}

/// Lets nothing pass between a member and a server.
pub fn cut_from_server(member: usize, server: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        let a = site::place(&mesh.world, mesh.station(member));
        let b = site::place(&mesh.world, mesh.server_station(server));
        mesh.world.net.set_cut(a, b, true);
    }
}

/// Moves a member to a new place; its host notices at once, as netlink tells.
pub fn roam(member: usize, to: Site, latency: Duration) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        let host = mesh.host(member);
        mesh.world.net.unplug(host);
        to.plug(&mut mesh.world.net, host, latency);
        mesh.post_mut(member).site = to;
        let station = mesh.station(member);
        mesh.world.tell_underlay(station);
    }
}

/// Takes an uplink of a member down or up, in the order in which they were plugged in; its host notices.
pub fn uplink(member: usize, index: usize, up: bool) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        if let Some(link) = mesh.links_mut(member).nth(index) {
            link.up = up;
        }
        let station = mesh.station(member);
        mesh.world.tell_underlay(station);
    }
}

/// Every link of a member loses this share of its packets.
pub fn loss(member: usize, percent: u32) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| mesh.links_mut(member).for_each(|link| *link = link.clone().with_loss(percent))
}

pub fn sleep(member: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| mesh.world.set_asleep(mesh.station(member), true)
}

pub fn wake(member: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| mesh.world.set_asleep(mesh.station(member), false)
}

/// The NATs before a member forget everything.
pub fn reboot_nat(member: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        for edge in mesh.world.net.edges_before(mesh.host(member)) {
            mesh.world.net.edge_mut(edge).reboot();
        }
    }
}

/// Ends a member without a word.
pub fn kill(member: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| mesh.stop(member)
}

/// Ends a member without a word and starts it again after a while, with or without what it kept.
pub fn restart(member: usize, after: Duration, blank: bool) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        mesh.stop(member);
        mesh.do_in(after, move |mesh| match blank {
            true => mesh.start_blank(member),
            false => mesh.start(member),
        });
    }
}

pub fn leave(member: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| mesh.leave(member)
}

pub fn kill_server(server: usize) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| mesh.stop_server(server)
}

/// Ends a server without a word and starts it again, with nothing in its memory.
pub fn restart_server(server: usize, after: Duration) -> impl FnOnce(&mut Mesh) + 'static {
    move |mesh| {
        mesh.stop_server(server);
        mesh.do_in(after, move |mesh| mesh.start_server(server));
    }
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
