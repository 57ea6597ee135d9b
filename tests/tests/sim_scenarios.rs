//! Named scenarios of the simulated mesh: each a sentence about what the product does.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::SocketAddr, time::Duration};

use engine::snapshot::PeerState;
use session::membership::Master;
use tests::sim::{
    clock::Span,
    node::{Member, Node, identity},
    site::Site,
    traffic::Traffic,
    world::{PORT, StationId, World},
};
use wire::endpoint::Transport;

/// A small mesh: servers first, then members.
struct Mesh {
    world: World<Node>,
    servers: Vec<StationId>,
    members: Vec<StationId>,
    master: Master,
}

impl Mesh {
    fn new(seed: u64, servers: u64, sites: &[Site]) -> Self {
        let mut mesh = Self {
            world: World::empty(seed),
            servers: Vec::new(),
            members: Vec::new(),
            master: Master::from_bytes([7; 32]),
        };
        for number in 0..servers {
            let host = mesh.world.net.add_host();
            Site::Public.plug(&mut mesh.world.net, host, 5.ms());
            let station = mesh.world.add_station(host);
            let (unix, now) = (mesh.unix(), mesh.world.instant());
            mesh.world.start(station, Node::server(number, seed, unix, now));
            mesh.servers.push(station);
        }
        for (number, site) in (0..).zip(sites) {
            let host = mesh.world.net.add_host();
            site.plug(&mut mesh.world.net, host, 10.ms());
            let station = mesh.world.add_station(host);
            mesh.members.push(station);
            mesh.start(number);
        }
        mesh
    }

    fn unix(&self) -> u64 {
        self.world.clock().unix(self.world.now())
    }

    fn member(&self, number: usize) -> Member {
        let mut member = Member::new(number as u64, &self.master);
        for (index, server) in self.servers.iter().enumerate() {
            let uplink = self.world.net.uplink(self.world.host(*server)).unwrap();
            let keys = Some(identity(b's', index as u64).keys());
            let own = self.world.net.uplink(self.world.host(self.members[number])).unwrap();
            let ip = if own.v4.is_some() {
                uplink.v4.unwrap().into()
            } else {
                uplink.v6.unwrap().into()
            };
            member.bootstrap.push((SocketAddr::new(ip, PORT), Transport::Udp, keys));
        }
        member
    }

    fn start(&mut self, number: usize) {
        let member = self.member(number);
        let (unix, now) = (self.unix(), self.world.instant());
        let seed = self.world.seed * 1000 + number as u64;
        self.world.start(self.members[number], Node::member(&member, seed, unix, now));
    }

    /// One packet there and back; the round trip, if it came within `limit`.
    fn ping(&mut self, from: usize, to: usize, limit: Duration) -> Option<Duration> {
        let (a, b) = (self.members[from], self.members[to]);
        let src = self.world.machine(a)?.address(true)?;
        let dst = self.world.machine(b)?.address(true)?;
        let mut traffic = Traffic::default();
        let number = traffic.ask(&mut self.world, a, src, dst, 64);
        self.world.run_until(1.ms(), limit, |world| {
            traffic.settle(world);
            traffic.round_trip(number).is_some()
        })?;
        traffic.round_trip(number)
    }

    fn settled(&mut self, limit: Duration) -> Option<Duration> {
        let members = self.members.clone();
        self.world.run_until(50.ms(), limit, |world| {
            let now = world.instant();
            members.iter().filter_map(|id| world.machine(*id)?.snapshot(now)).all(|snapshot| {
                snapshot.peers.len() == members.len() - 1
                    && snapshot.peers.iter().all(|peer| peer.state != PeerState::Unreachable)
                    && snapshot
                        .routes
                        .iter()
                        .filter(|r| r.state == engine::snapshot::RouteState::Installed)
                        .count()
                        >= 2 * (members.len() - 1)
            })
        })
    }

    fn state(&self, from: usize, to: usize) -> PeerState {
        let now = self.world.instant();
        let to = self.world.machine(self.members[to]).unwrap().id();
        let snapshot = self.world.machine(self.members[from]).unwrap().snapshot(now).unwrap();
        snapshot
            .peers
            .iter()
            .find(|peer| peer.node == to)
            .map_or(PeerState::Unreachable, |peer| peer.state)
    }
}

#[test]
fn two_homes_meet_over_a_server_and_go_direct() {
    let mut mesh = Mesh::new(1, 1, &[Site::HomeNat, Site::HomeNat]);
    let took = mesh.settled(10.s()).expect("members find each other");
    assert!(took < 2.s(), "{took:?}");

    let first = mesh.ping(0, 1, 2.s()).expect("the first packet is relayed");
    assert!(first < 200.ms(), "{first:?}");
    mesh.world.run_for(1.s());

    assert_eq!(mesh.state(0, 1), PeerState::Direct);
    assert_eq!(mesh.state(1, 0), PeerState::Direct);
    assert!(mesh.ping(0, 1, 1.s()).unwrap() < first);
}

#[test]
fn symmetric_homes_stay_usable_over_the_relay() {
    let mut mesh = Mesh::new(2, 1, &[Site::Symmetric, Site::Symmetric]);
    mesh.settled(10.s()).expect("members find each other");

    for _ in 0..20 {
        assert!(mesh.ping(0, 1, 1.s()).is_some());
        mesh.world.run_for(500.ms());
    }

    assert_eq!(mesh.state(0, 1), PeerState::Relayed);
}
