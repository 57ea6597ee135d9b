//! A network of thousands: what it costs a node at rest and under churn, how soon traffic finds its way round a
//! dead node, and how much memory one takes.
//!
//! Thousands of whole nodes on one machine would need tens of gigabytes, since each knows all others. So some are
//! *whole*, and measured; the others are *deaf*: they attach, speak, answer and roam as everybody does, with the same
//! engine, but the LSAs of others are kept from them. To the whole ones and to the servers there is no difference,
//! since members of such a network exchange LSAs with their home servers alone.
//!
//! Every signature is verified once per thread and remembered (`session::memo`), which changes no byte.

use std::{
    net::IpAddr,
    ops::Range,
    time::{Duration, Instant},
};

use rand_core::RngCore;
use session::memo;
use tikv_jemalloc_ctl::thread;

use super::{clock::Span, mesh::Mesh, node::Node, site::Mix};
use crate::edges;

/// Whole nodes of a large network.
const WHOLE: usize = 48;
/// Of them, so many pairs announce one subnet each, and so many talk to it.
const SUBNETS: usize = 12;
const TALKERS: usize = 12;
const TALKING: Range<usize> = 2 * SUBNETS..2 * SUBNETS + TALKERS;
/// Whose memory is looked at.
const QUIET: Range<usize> = TALKING.end..WHOLE;
/// Nodes start at this rate, as after a power cut.
const STARTS_PER_SECOND: u64 = 400;
/// A node that died or left comes back after this.
const BACK_AFTER: Duration = Duration::from_secs(20);

/// What was measured.
#[derive(Clone, Debug)]
pub struct Scale {
    pub nodes: usize,
    /// Nodes that were measured.
    pub whole: usize,
    /// Until the last of them knew everybody, from its start.
    pub learnt_in: Duration,
    /// IP bytes per second, sent and received together.
    pub bytes_per_node_at_rest: f64,
    /// The same while 1 % of the nodes per minute die or leave, and come back.
    pub bytes_per_node_churn: f64,
    /// Datagrams per second at rest, sent and received together.
    pub packets_per_node_at_rest: f64,
    /// From a node's death until traffic to its subnet goes to another that announces it, under churn.
    pub convergence_p50: Duration,
    pub convergence_p99: Duration,
    /// Bytes of heap of a node that knows all the others, after churn.
    pub memory_per_node: u64,
    /// Real time of it all.
    pub took: Duration,
}

/// Measures a network of `nodes`.
pub fn measure(nodes: usize, seed: u64) -> Scale {
    let began = Instant::now();
    let mut run = Run::new(nodes, WHOLE.min(nodes), seed);
    let learnt_in = run.join();
    run.mesh.run_for(30.s());
    let (bytes_per_node_at_rest, packets_per_node_at_rest) = run.rate(60.s());
    run.churn(300.s());
    run.mesh.run_for(30.s());
    let (bytes_per_node_churn, _) = run.rate(60.s());
    let times = run.deaths();
    let memory_per_node = run.memory();
    let at = |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)];
    Scale {
        nodes,
        whole: run.whole,
        learnt_in,
        bytes_per_node_at_rest,
        bytes_per_node_churn,
        packets_per_node_at_rest,
        convergence_p50: at(50),
        convergence_p99: at(99),
        memory_per_node,
        took: began.elapsed(),
    }
}

/// A network under measurement; the whole nodes have the lower numbers.
#[derive(Debug)]
pub struct Run {
    pub mesh: Mesh,
    pub whole: usize,
}

impl Run {
    /// Puts everybody on the map: two servers, homes, public nodes, and a tenth behind symmetric NATs.
    pub fn new(nodes: usize, whole: usize, seed: u64) -> Self {
        memo::remember(true);
        let mut mesh = Mesh::new(seed).servers(2);
        let mix: Mix = edges![60 % HomeNat, 30 % Public, 10 % Symmetric];
        for number in 0..nodes {
            let site = mix.pick(mesh.world.random.next_u64());
            let latency = Duration::from_micros(2_000 + mesh.world.below(30_000));
            mesh.add(site, latency);
            let subnet = number / 2;
            let member = &mut mesh.post_mut(number).member;
            member.deaf = number >= whole;
            if subnet < SUBNETS && number < whole {
                let prefix = format!("10.{subnet}.0.0/16");
                member.exports = vec![prefix.parse().expect("a prefix")];
            }
        }
        Self { mesh, whole }
    }

    /// Starts everybody, the whole ones last; until they know all.
    pub fn join(&mut self) -> Duration {
        let gap = Duration::from_micros(1_000_000 / STARTS_PER_SECOND);
        let (mut at, nodes) = (self.mesh.now(), self.mesh.len());
        for number in self.whole..nodes {
            self.mesh.do_at(at, move |mesh| mesh.start(number));
            at += gap;
        }
        self.mesh.run_to(at);
        let others = nodes - self.whole;
        self.mesh
            .run_until(|mesh| attached(mesh).into_iter().all(|count| count == others), 60.s())
            .unwrap_or_else(|| panic!("attached: {:?} of {others}", attached(&self.mesh)));
        self.mesh.run_for(5.s());
        let began = self.mesh.now();
        for number in 0..self.whole {
            self.mesh.do_at(began + gap * number as u32, move |mesh| mesh.start(number));
        }
        let last = began + gap * self.whole as u32;
        self.mesh.run_to(last);
        self.mesh
            .run_until(|mesh| all_known(mesh, nodes), 180.s())
            .unwrap_or_else(|| panic!("not all know all: {}", self.unknown()));
        let learnt_in = self.mesh.now() - began;
        // Routes follow within the longest throttle of the shortest paths.
        self.mesh.run_for(3.s());
        learnt_in
    }

    /// What heap a whole node has that talks to nobody: what comes back when some of them end.
    pub fn memory(&mut self) -> u64 {
        let before = held();
        for quiet in QUIET {
            self.mesh.stop(quiet);
        }
        before.saturating_sub(held()) / QUIET.len() as u64
    }

    fn unknown(&self) -> String {
        let missing = (0..self.whole).map(|number| {
            let engine = self.mesh.machine(number).and_then(Node::engine);
            engine.map_or(0, |engine| engine.live().lsas)
        });
        format!("LSAs by node: {:?}", missing.collect::<Vec<_>>())
    }

    /// Bytes and datagrams per second and whole node, both directions, over a while.
    pub fn rate(&mut self, span: Duration) -> (f64, f64) {
        let count = |mesh: &Mesh| {
            (0..self.whole).fold((0, 0), |(bytes, packets), number| {
                let (net, host) = (&mesh.world.net, mesh.host(number));
                let (sent, received) = (net.sent(host), net.received(host));
                (bytes + sent.bytes + received.bytes, packets + sent.packets + received.packets)
            })
        };
        let before = count(&self.mesh);
        self.mesh.run_for(span);
        let after = count(&self.mesh);
        let per = span.as_secs_f64() * self.whole as f64;
        ((after.0 - before.0) as f64 / per, (after.1 - before.1) as f64 / per)
    }

    /// From now on 1 % of the nodes per minute go, every other one without a word, and come back.
    pub fn churn(&mut self, span: Duration) {
        let nodes = self.mesh.len();
        let victims = nodes - self.first_victim();
        let gap = Duration::from_secs(60) * 100 / nodes as u32;
        let (mut at, end) = (self.mesh.now(), self.mesh.now() + span);
        for count in 0.. {
            at += gap;
            if at >= end {
                break;
            }
            let number = self.first_victim() + self.mesh.world.below(victims as u64) as usize;
            self.mesh.do_at(at, move |mesh| {
                if !mesh.is_up(number) {
                    return;
                }
                if count % 2 == 0 {
                    mesh.stop(number);
                } else {
                    mesh.leave(number);
                }
                mesh.do_in(BACK_AFTER, move |mesh| mesh.start(number));
            });
        }
    }

    /// Who is measured does not go; where all are whole, those that announce and talk stay.
    fn first_victim(&self) -> usize {
        if self.whole < self.mesh.len() { self.whole } else { TALKING.end }
    }

    /// One owner of each subnet after the other dies while others talk to it: how long each talker's route went on
    /// leading there, in ascending order.
    pub fn deaths(&mut self) -> Vec<Duration> {
        let talkers: Vec<usize> = TALKING.collect();
        let mut times = Vec::new();
        for subnet in 0..SUBNETS {
            let inside: IpAddr = format!("10.{subnet}.0.9").parse().expect("an address");
            let owners = [2 * subnet, 2 * subnet + 1];
            self.talk(&talkers, inside, 3.s(), |_| false);
            // Who is nearest differs; the first talker's choice dies.
            let chosen = self.mesh.route(talkers[0], inside);
            let dies = if chosen == Some(self.mesh.id(owners[1])) { owners[1] } else { owners[0] };
            let dead = self.mesh.id(dies);
            let affected: Vec<usize> = talkers
                .iter()
                .copied()
                .filter(|&talker| self.mesh.route(talker, inside) == Some(dead))
                .collect();
            self.mesh.stop(dies);
            let died = self.mesh.now();
            let mut left = affected.clone();
            self.talk(&affected, inside, 20.s(), |mesh| {
                left.retain(|&talker| {
                    let still = mesh.route(talker, inside) == Some(dead);
                    if !still {
                        times.push(mesh.now() - died);
                    }
                    still
                });
                left.is_empty()
            });
            times.extend(left.iter().map(|_| 20.s()));
        }
        times.sort();
        times
    }

    /// Each talker asks something inside every 50 ms, until the time is up or enough was seen.
    fn talk(
        &mut self,
        talkers: &[usize],
        inside: IpAddr,
        span: Duration,
        mut enough: impl FnMut(&Mesh) -> bool,
    ) {
        let end = self.mesh.now() + span;
        while self.mesh.now() < end && !enough(&self.mesh) {
            for &talker in talkers {
                let Some(own) = self.mesh.address(talker, true) else { continue };
                let station = self.mesh.station(talker);
                self.mesh.traffic.ask(&mut self.mesh.world, station, own, inside, 64);
            }
            for _ in 0..5 {
                self.mesh.run_for(10.ms());
                self.mesh.traffic.settle(&mut self.mesh.world);
            }
        }
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        memo::remember(false);
    }
}

fn attached(mesh: &Mesh) -> Vec<usize> {
    (0..mesh.server_count())
        .map(|server| {
            let machine = mesh.server(server).and_then(Node::as_server);
            machine.and_then(|machine| machine.network(mesh.network())).map_or(0, |(a, _)| a.len())
        })
        .collect()
}

/// Whether the whole nodes hold both LSAs of everybody.
fn all_known(mesh: &Mesh, nodes: usize) -> bool {
    attached(mesh).into_iter().all(|count| count == nodes)
        && (0..mesh.len()).filter(|&number| !mesh.post(number).member.deaf).all(|number| {
            let engine = mesh.machine(number).and_then(Node::engine);
            engine.is_some_and(|engine| engine.live().lsas == 2 * nodes)
        })
}

/// Bytes of heap that this thread took and did not give back, as jemalloc rounds them. It must be the program's allocator.
fn held() -> u64 {
    let taken = thread::allocatedp::read().expect("jemalloc").get();
    taken.saturating_sub(thread::deallocatedp::read().expect("jemalloc").get())
}
