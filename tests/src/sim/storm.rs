//! Random scenarios: a mesh to which everything happens that happens to meshes, and then calm, in which
//! all must be well again.
//!
//! One number makes one storm. What happens is drawn before it happens, so that a storm can be told.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::{
    clock::Span,
    mesh::Mesh,
    net::Link,
    scenario,
    site::{Mix, Site},
};
use crate::edges;

/// A storm begins when the mesh has had this long to come up.
const BEGINS: Duration = Duration::from_secs(5);
/// Everything happens within this.
const LASTS: Duration = Duration::from_secs(25);
/// What happens for a while is over after this.
const LONGEST: Duration = Duration::from_secs(18);
/// Deeds of one storm.
const DEEDS: u64 = 12;

/// A mesh of `nodes` members with a storm before it; it has to be run to [`Storm::over`].
#[derive(Debug)]
pub struct Storm {
    pub mesh: Mesh,
    /// When the last deed is done and undone.
    pub over: Duration,
    /// What happens, for people.
    pub story: Vec<String>,
}

/// Brews the storm of a seed.
pub fn brew(seed: u64, nodes: usize) -> Storm {
    let mut chance = Chance(ChaCha8Rng::seed_from_u64(seed ^ 0x73_746f_726d));
    let mix = chance.mix();
    let servers = if chance.below(4) == 0 { 1 } else { 2 };
    let mut mesh = Mesh::new(seed).servers(servers).nodes(nodes, mix);
    let mut story = Vec::new();
    for number in 0..nodes {
        prepare(&mut mesh, number, &mut chance);
    }
    for _ in 0..DEEDS {
        let at = BEGINS + Duration::from_millis(chance.below(LASTS.as_millis() as u64));
        let told = happen(&mut mesh, at, &mut chance);
        story.push(format!("{:>6} ms: {told}", at.as_millis()));
    }
    story.sort();
    let over = BEGINS + LASTS + LONGEST;
    mesh.do_at(over, calm);
    Storm { mesh, over, story }
}

/// Ends everything that is wrong with the underlay. Who is gone stays gone.
fn calm(mesh: &mut Mesh) {
    mesh.world.net.heal();
    for number in 0..mesh.len() {
        let station = mesh.station(number);
        mesh.world.set_asleep(station, false);
        for link in mesh.links_mut(number) {
            *link = Link { loss_ppm: 0, reorder_ppm: 0, up: true, ..link.clone() };
        }
        mesh.world.tell_underlay(station);
    }
}

/// What makes members differ from the beginning.
fn prepare(mesh: &mut Mesh, number: usize, chance: &mut Chance) {
    let share = chance.below(100);
    let member = &mut mesh.post_mut(number).member;
    // Every tenth carries for others, every fifth has a subnet behind it; two may have the same.
    member.transit = share < 10;
    if chance.below(5) == 0 {
        let subnet = chance.below(40);
        member.exports = vec![format!("10.{subnet}.0.0/24").parse().expect("a prefix")];
    }
    if chance.below(10) == 0 {
        mesh.plug_second(number, Site::HomeNat, 15.ms());
    }
    if chance.below(5) == 0 {
        let percent = 1 + chance.below(5) as u32;
        let (jitter, reorder) = (chance.below(8).ms(), chance.below(2) as u32 * 20_000);
        for link in mesh.links_mut(number) {
            *link = link.clone().with_loss(percent).with_jitter(jitter);
            link.reorder_ppm = reorder;
        }
    }
}

/// Plans one deed; what it is, for people.
fn happen(mesh: &mut Mesh, at: Duration, chance: &mut Chance) -> String {
    let number = chance.below(mesh.len() as u64) as usize;
    let other = chance.below(mesh.len() as u64) as usize;
    let span = Duration::from_millis(1_500 + chance.below(LONGEST.as_millis() as u64 - 2_000));
    let end = at + span;
    match chance.below(13) {
        0 => {
            let (from, share) = (number, 1 + chance.below(mesh.len() as u64 / 2) as usize);
            let len = mesh.len();
            let part = (from..from + share).map(move |number| number % len);
            if mesh.server_count() > 1 && chance.below(2) == 0 {
                mesh.do_at(at, scenario::partition_with_server(part, 1));
            } else {
                mesh.do_at(at, scenario::partition(part));
            }
            mesh.do_at(end, scenario::heal());
            format!("{share} from {from} on are apart for {span:?}")
        }
        1 => {
            mesh.do_at(at, scenario::restart(number, span, false));
            format!("{number} restarts after {span:?}")
        }
        2 => {
            mesh.do_at(at, scenario::restart(number, span, true));
            format!("{number} restarts after {span:?} and knows nothing")
        }
        3 => {
            let to = chance.site();
            mesh.do_at(at, scenario::roam(number, to, 12.ms()));
            format!("{number} roams to {to:?}")
        }
        4 => {
            mesh.do_at(at, scenario::sleep(number));
            mesh.do_at(end, scenario::wake(number));
            format!("{number} sleeps for {span:?}")
        }
        5 => {
            mesh.do_at(at, scenario::reboot_nat(number));
            format!("the NAT of {number} reboots")
        }
        6 => {
            let percent = 10 + chance.below(40) as u32;
            mesh.do_at(at, scenario::loss(number, percent));
            mesh.do_at(end, scenario::loss(number, 0));
            format!("{number} loses {percent} % for {span:?}")
        }
        7 => {
            mesh.do_at(at, scenario::uplink(number, 0, false));
            mesh.do_at(end, scenario::uplink(number, 0, true));
            format!("the uplink of {number} is down for {span:?}")
        }
        8 => {
            mesh.do_at(at, scenario::cut(number, other));
            mesh.do_at(end, scenario::heal());
            format!("{number} and {other} are cut from each other for {span:?}")
        }
        9 => {
            mesh.do_at(at, scenario::leave(number));
            format!("{number} leaves")
        }
        10 => {
            mesh.do_at(at, scenario::kill(number));
            format!("{number} dies")
        }
        11 => {
            let server = chance.below(mesh.server_count() as u64) as usize;
            mesh.do_at(at, scenario::restart_server(server, span));
            format!("server {server} restarts after {span:?}")
        }
        _ => {
            let server = chance.below(mesh.server_count() as u64) as usize;
            mesh.do_at(at, scenario::cut_from_server(number, server));
            mesh.do_at(end, scenario::heal());
            format!("{number} is cut from server {server} for {span:?}")
        }
    }
}

struct Chance(ChaCha8Rng);

impl Chance {
    fn below(&mut self, bound: u64) -> u64 {
        self.0.next_u64() % bound.max(1)
    }

    fn mix(&mut self) -> Mix {
        match self.below(4) {
            0 => edges![60 % HomeNat, 30 % Public, 10 % Symmetric],
            1 => edges![40 % HomeDual, 20 % V6Only, 20 % PublicV4, 10 % Carrier, 10 % UdpBlocked],
            2 => edges![
                20 % FullCone,
                20 % Restricted,
                20 % OtherPort,
                20 % Leaky,
                10 % Sequential,
                10 % Block
            ],
            _ => Mix(Site::ALL.map(|site| (1, site)).to_vec()),
        }
    }

    /// Somewhere to roam to: not where only TCP gets out, since the configuration does not say that.
    fn site(&mut self) -> Site {
        let sites = Site::ALL.len() as u64;
        loop {
            let site = Site::ALL[self.below(sites) as usize];
            if site != Site::UdpBlocked {
                return site;
            }
        }
    }
}
