//! Networks in issued mode, simulated: key epochs, revocations, prefixes that were not given.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeSet, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use engine::{
    config::{Config, Ipv4Policy},
    event::Input,
    snapshot::{RouteState, Snapshot},
};
use ipnet::IpNet;
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use session::{issuer::Issuer, membership::Master};
use tests::sim::{
    clock::Span,
    node::{Member, Node, identity},
    site::Site,
    traffic::Traffic,
    world::{PORT, StationId, World},
};
use wire::{
    certificate::{Attributes, Prefix},
    endpoint::Transport,
    id::NodeId,
    lsa::{Claim, ClusterBody},
};

/// A server, and members that hold what an issuer gave them.
struct Mesh {
    world: World<Node>,
    server: StationId,
    members: Vec<StationId>,
    configs: Vec<Config>,
    issuer: Issuer,
    rng: ChaCha12Rng,
}

impl Mesh {
    /// Members of epoch 1, each with the address 100.112.0.(1 + number) and the prefix 10.42.(number).0/24.
    fn new(seed: u64, members: u8) -> Self {
        let mut rng = ChaCha12Rng::from_seed([9; 32]);
        let issuer = Issuer::generate(&mut rng);
        let mut world = World::empty(seed);
        let host = world.net.add_host();
        Site::Public.plug(&mut world.net, host, 5.ms());
        let server = world.add_station(host);
        let (unix, now) = (world.clock().unix(world.now()), world.instant());
        world.start(server, Node::server(0, seed, unix, now));
        let mut mesh = Self { world, server, members: vec![], configs: vec![], issuer, rng };
        for number in 0..members {
            let host = mesh.world.net.add_host();
            Site::HomeNat.plug(&mut mesh.world.net, host, 10.ms());
            let station = mesh.world.add_station(host);
            mesh.members.push(station);
            let config = mesh.config(number, &[1]);
            mesh.configs.push(config.clone());
            let member = mesh.member(number);
            let now = mesh.world.instant();
            let seed = seed * 1000 + u64::from(number);
            mesh.world.start(station, Node::configured(&member, config, seed, now));
        }
        mesh
    }

    fn unix(&self) -> u64 {
        self.world.clock().unix(self.world.now())
    }

    fn member(&self, number: u8) -> Member {
        let mut member = Member::new(u64::from(number), &Master::from_bytes([0; 32]));
        let uplink = self.world.net.uplink(self.world.host(self.server)).unwrap();
        let addr = SocketAddr::new(uplink.v4.unwrap().into(), PORT);
        member.bootstrap = vec![(addr, Transport::Udp, Some(identity(b's', 0).keys()))];
        member
    }

    fn config(&mut self, number: u8, epochs: &[u32]) -> Config {
        let unix = self.unix();
        let base = self.member(number).config(unix, u32::try_from(unix).unwrap());
        let own: IpNet = format!("10.42.{number}.0/24").parse().unwrap();
        let address: ipnet::Ipv4Net = format!("100.112.0.{}/16", number + 1).parse().unwrap();
        let keys = base.identity.keys();
        let automatic = self.issuer.network().address_of(keys.node()).into();
        let attributes = Attributes {
            addresses: vec![Prefix::new(address.addr().into(), 32), Prefix::new(automatic, 128)],
            prefixes: vec![Prefix::new(own.network(), 24)],
            ..Attributes::default()
        };
        let membership = self.issuer.membership(keys, &attributes, 0, epochs.iter().copied(), unix);
        Config {
            membership: Arc::new(membership),
            records: vec![self.issuer.epoch_record(unix, &mut self.rng).into()],
            ipv4: Ipv4Policy::Fixed(address),
            exports: vec![own],
            ..base
        }
    }

    fn configure(&mut self, number: u8, change: impl FnOnce(&mut Config)) {
        let at = usize::from(number);
        change(&mut self.configs[at]);
        let config = Box::new(self.configs[at].clone());
        self.world.with(self.members[at], |node, now| node.input(Input::Configure(config), now));
    }

    /// Gives a member the keys of these epochs, and the record of the one in force.
    fn give_epochs(&mut self, number: u8, epochs: &[u32]) {
        let fresh = self.config(number, epochs);
        self.configure(number, |config| {
            config.membership = fresh.membership;
            config.records = fresh.records;
        });
    }

    fn give_record(&mut self, number: u8, record: Vec<u8>) {
        self.configure(number, |config| config.records.push(Bytes::from(record)));
    }

    fn id(&self, number: u8) -> NodeId {
        self.world.machine(self.members[usize::from(number)]).unwrap().id()
    }

    fn snapshot(&self, number: u8) -> Snapshot {
        let now = self.world.instant();
        self.world.machine(self.members[usize::from(number)]).unwrap().snapshot(now).unwrap()
    }

    fn numbers(&self) -> std::ops::Range<u8> {
        0..u8::try_from(self.members.len()).unwrap()
    }

    fn until(&mut self, limit: Duration, good: impl Fn(&Self) -> bool) -> Option<Duration> {
        let began = self.world.now();
        while !good(self) {
            if self.world.now() - began > limit {
                return None;
            }
            self.world.run_for(20.ms());
        }
        Some(self.world.now() - began)
    }

    fn settled(&mut self) {
        let others = self.members.len() - 1;
        self.until(20.s(), |mesh| {
            mesh.numbers().all(|number| installed(&mesh.snapshot(number)).len() == 3 * others)
        })
        .expect("members find each other");
    }

    fn ping(&mut self, from: u8, to: u8) -> bool {
        let address = |number| format!("100.112.0.{}", number + 1).parse().unwrap();
        let mut traffic = Traffic::default();
        let station = self.members[usize::from(from)];
        let number = traffic.ask(&mut self.world, station, address(from), address(to), 64);
        let answered = self.world.run_until(1.ms(), 2.s(), |world| {
            traffic.settle(world);
            traffic.round_trip(number).is_some()
        });
        answered.is_some()
    }

    fn all_ping(&mut self) {
        for from in self.numbers() {
            for to in self.numbers().filter(|to| *to != from) {
                assert!(self.ping(from, to), "{from} reaches {to}");
            }
        }
    }
}

fn installed(snapshot: &Snapshot) -> BTreeSet<(IpNet, NodeId)> {
    snapshot
        .routes
        .iter()
        .filter(|route| route.state == RouteState::Installed)
        .map(|route| (route.prefix, route.node))
        .collect()
}

#[test]
fn a_new_key_epoch_takes_over_without_a_lost_packet_or_a_new_address() {
    let mut mesh = Mesh::new(1, 4);
    mesh.settled();
    mesh.all_ping();
    let before: Vec<_> = mesh.numbers().map(|number| installed(&mesh.snapshot(number))).collect();

    // The keys go out one member after the other; nobody uses them yet.
    for number in mesh.numbers() {
        mesh.give_epochs(number, &[1, 2]);
        mesh.world.run_for(5.s());
        mesh.all_ping();
        assert_eq!(mesh.snapshot(number).issued.sealing, 1);
    }
    // One member is told that the epoch is in force; the network hears it from that one.
    let unix = mesh.unix();
    let record = mesh.issuer.at_epoch(2).epoch_record(unix, &mut mesh.rng);
    mesh.give_record(0, record);
    let took = mesh.until(5.s(), |mesh| {
        mesh.numbers().all(|number| {
            let issued = mesh.snapshot(number).issued;
            (issued.sealing, issued.members_on_epoch, issued.members) == (2, 3, 3)
        })
    });
    assert!(took.is_some_and(|took| took < 2.s()), "{took:?}");
    mesh.all_ping();

    // The old keys go; sessions are renewed with the new ones.
    mesh.issuer = mesh.issuer.at_epoch(2);
    for number in mesh.numbers() {
        mesh.give_epochs(number, &[2]);
        mesh.all_ping();
    }
    for _ in 0..30 {
        mesh.world.run_for(10.s());
        mesh.all_ping();
    }

    let after: Vec<_> = mesh.numbers().map(|number| installed(&mesh.snapshot(number))).collect();
    assert_eq!(after, before);
    assert_eq!(mesh.snapshot(0).issued.epochs, [2]);
}

#[test]
fn a_member_whose_keys_come_late_is_neither_lost_nor_deaf() {
    let mut mesh = Mesh::new(2, 3);
    mesh.settled();
    for number in [0, 1] {
        mesh.give_epochs(number, &[1, 2]);
    }
    let unix = mesh.unix();
    let record = mesh.issuer.at_epoch(2).epoch_record(unix, &mut mesh.rng);
    mesh.give_record(0, record);
    mesh.world.run_for(5.s());
    assert_eq!(mesh.snapshot(2).issued.seen, Some(2));
    assert_eq!(mesh.snapshot(2).issued.sealing, 1);
    mesh.all_ping();
    // Sessions are renewed in the meantime, and what the others say cannot be read.
    for _ in 0..20 {
        mesh.world.run_for(10.s());
        mesh.all_ping();
    }

    mesh.issuer = mesh.issuer.at_epoch(2);
    mesh.give_epochs(2, &[1, 2]);

    let took = mesh.until(5.s(), |mesh| {
        mesh.numbers().all(|number| {
            let issued = mesh.snapshot(number).issued;
            (issued.sealing, issued.members_on_epoch) == (2, 2)
        })
    });
    assert!(took.is_some(), "{:?}", mesh.snapshot(2).issued);
    mesh.all_ping();
}

#[test]
fn a_revoked_member_loses_sessions_and_routes_everywhere_within_two_seconds() {
    let mut mesh = Mesh::new(3, 4);
    mesh.settled();
    mesh.all_ping();
    let revoked = mesh.id(3);
    let unix = mesh.unix();
    let record = mesh.issuer.revoke_record(revoked, unix + 1, unix, &mut mesh.rng);
    mesh.give_record(0, record);

    let took = mesh.until(5.s(), |mesh| {
        (0..3).all(|number| {
            let snapshot = mesh.snapshot(number);
            snapshot.peers.iter().all(|peer| peer.node != revoked)
                && snapshot.routes.iter().all(|route| route.node != revoked)
        })
    });

    assert!(took.is_some_and(|took| took < 2.s()), "{took:?}");
    for _ in 0..6 {
        mesh.world.run_for(30.s());
        for other in 0..3 {
            assert!(!mesh.ping(3, other) && !mesh.ping(other, 3), "{other}");
        }
    }
    let attached = mesh.world.machine(mesh.server).unwrap().as_server().unwrap().counts().attached;
    assert_eq!(attached, 3, "the server serves it no more");
}

#[test]
fn a_prefix_that_was_not_given_is_refused_and_said() {
    let mut mesh = Mesh::new(4, 3);
    mesh.settled();

    let stolen: Vec<IpNet> = ["10.42.0.0/16", "10.42.1.0/24", "10.42.1.128/25", "192.168.7.0/24"]
        .map(|net| net.parse().unwrap())
        .into();
    mesh.configure(2, |config| {
        config.exports.extend(&stolen);
        config.ipv4 = Ipv4Policy::Fixed("100.112.0.1/16".parse().unwrap());
    });
    mesh.world.run_for(10.s());

    let thief = mesh.id(2);
    let snapshot = mesh.snapshot(0);
    for prefix in &stolen {
        let row = snapshot
            .routes
            .iter()
            .find(|route| route.prefix == *prefix && route.node == thief)
            .unwrap();
        assert_eq!(row.state, RouteState::Rejected, "{prefix}");
        assert!(row.reason.contains("attributes do not allow"), "{}", row.reason);
    }
    let own: IpNet = "10.42.2.0/24".parse().unwrap();
    assert!(installed(&snapshot).contains(&(own, thief)), "what it was given stays");
    assert!(mesh.ping(0, 1) && mesh.ping(1, 0));
}

#[test]
fn only_the_root_revokes() {
    let mut mesh = Mesh::new(5, 3);
    mesh.settled();
    let other = Issuer::generate(&mut ChaCha12Rng::from_seed([1; 32]));
    let unix = mesh.unix();
    let forged = other.revoke_record(mesh.id(1), unix + 1, unix, &mut mesh.rng);

    mesh.give_record(2, forged);
    mesh.world.run_for(5.s());

    mesh.all_ping();
}

#[test]
fn every_cluster_sees_what_all_clusters_claim() {
    let mut mesh = Mesh::new(6, 3);
    mesh.settled();
    for (number, name) in [(0, "fra1"), (1, "nyc2")] {
        let block = Prefix::new([100, 112, number + 8, 0].into(), 24);
        let unix = mesh.unix();
        let body = ClusterBody {
            name: name.to_owned(),
            blocks: vec![Claim { prefix: Some(block), since: unix }],
            exports: vec![],
        };
        let record = mesh.issuer.cluster_record(&body, unix, 0, &mut mesh.rng).unwrap();
        mesh.give_record(number, record);
    }

    let all = |mesh: &Mesh| {
        mesh.numbers().all(|number| {
            let clusters = mesh.snapshot(number).issued.clusters;
            let names: BTreeSet<_> = clusters.iter().map(|body| body.name.clone()).collect();
            names == BTreeSet::from(["fra1".to_owned(), "nyc2".to_owned()])
        })
    };
    assert!(mesh.until(5.s(), all).is_some(), "{:?}", mesh.snapshot(2).issued);
}
