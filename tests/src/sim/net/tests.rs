use super::*;
use crate::sim::clock::Queue;

#[test]
fn public_hosts_reach_each_other_after_links_and_distance() {
    let mut world = World::new();
    let (a, b) = (world.public(), world.public());
    world.net.set_distance(Member::Host(a), Member::Host(b), 20.ms());

    world.send(a, 1000, world.v4(b, 2000), b"hello");

    // Two links of 1 ms and the distance.
    assert_eq!(world.run(), [(22.ms(), b, "5.0.0.1:1000".into(), b"hello".to_vec())]);
}

#[test]
fn what_comes_from_afar_holds_up_nothing_from_nearby() {
    let mut world = World::new();
    let (far, near, at) = (world.public(), world.public(), world.public());
    world.net.set_distance(Member::Host(far), Member::Host(at), 200.ms());
    world.net.set_distance(Member::Host(near), Member::Host(at), 20.ms());

    world.send(far, 1000, world.v4(at, 2000), b"far");
    world.send(near, 1000, world.v4(at, 2000), b"near");

    let arrivals: Vec<_> = world.run().into_iter().map(|(time, .., said)| (time, said)).collect();
    assert_eq!(arrivals, [(22.ms(), b"near".to_vec()), (202.ms(), b"far".to_vec())]);
}

#[test]
fn a_home_is_translated_and_only_answers_come_back() {
    let mut world = World::new();
    let server = world.public();
    let (home, edge) = world.home(Behaviour::port_restricted());

    world.send(home, 1000, world.v4(server, 2000), b"question");
    assert_eq!(world.run()[0].2, "20.0.0.1:1000");

    world.send(server, 2000, "20.0.0.1:1000".parse().unwrap(), b"answer");
    world.send(server, 2001, "20.0.0.1:1000".parse().unwrap(), b"stranger");
    let arrivals = world.run();
    assert_eq!(arrivals.len(), 1);
    assert_eq!((arrivals[0].1, &arrivals[0].3[..]), (home, &b"answer"[..]));
    assert_eq!(world.net.edge(edge).dropped, 1);
}

#[test]
fn neighbours_on_a_lan_need_no_edge_but_two_lans_do() {
    let mut world = World::new();
    let (a, edge) = world.home(Behaviour::port_restricted());
    let b = world.net.add_host();
    world.net.plug(b, Segment::Inside(edge), true, false, Link::default());
    let (stranger, _) = world.home(Behaviour::port_restricted());
    assert_eq!(world.v4(a, 0), world.v4(stranger, 0), "private ranges collide");

    world.send(a, 1, world.v4(b, 2), b"x");

    let arrivals = world.run();
    assert_eq!((arrivals[0].0, arrivals[0].1), (2.ms(), b));
    assert_eq!(arrivals[0].2, "192.168.1.2:1");
}

#[test]
fn a_carrier_nat_translates_twice() {
    let mut world = World::new();
    let server = world.public();
    let carrier =
        world.net.add_edge(Behaviour::symmetric_random(), Segment::Internet, Link::default());
    let edge =
        world.net.add_edge(Behaviour::port_restricted(), Segment::Inside(carrier), Link::default());
    let home = world.net.add_host();
    world.net.plug(home, Segment::Inside(edge), true, true, Link::default());

    world.send(home, 1000, world.v4(server, 2000), b"q");
    let from: SocketAddr = world.run()[0].2.parse().unwrap();
    assert_eq!(from.ip(), world.net.edge(carrier).external);
    assert_ne!(from.port(), 1000);
    world.send(server, 2000, from, b"a");
    assert_eq!(world.run()[0].1, home);

    // IPv6 passes both untranslated, once the inside has begun.
    let v6 = SocketAddr::new(world.net.uplink(home).unwrap().v6.unwrap().into(), 1000);
    let outside = SocketAddr::new(world.net.uplink(server).unwrap().v6.unwrap().into(), 2000);
    world.send(server, 2000, v6, b"early");
    assert_eq!(world.run(), []);
    world.send(home, 1000, outside, b"q");
    assert_eq!(world.run()[0].2, v6.to_string());
    world.send(server, 2000, v6, b"a");
    assert_eq!(world.run()[0].1, home);
}

#[test]
fn a_low_ttl_opens_the_own_nat_and_gets_no_further() {
    let mut world = World::new();
    let (a, edge) = world.home(Behaviour::port_restricted());
    let (_, other) = world.home(Behaviour::leaky());
    let there = SocketAddr::new(world.net.edge(other).external, 7);

    world.send_ttl(a, 1000, there, b"opener", 3);

    assert_eq!(world.run(), []);
    assert_eq!(world.net.lost()[&Lost::Ttl], 1);
    assert_eq!((world.net.edge(edge).dropped, world.net.edge(other).dropped), (0, 0));
}

#[test]
fn a_partition_parts_and_heals() {
    let mut world = World::new();
    let (a, b) = (world.public(), world.public());
    world.net.set_group(Member::Host(b), 1);
    world.send(a, 1, world.v4(b, 2), b"x");
    assert_eq!(world.run(), []);

    world.net.heal();
    world.send(a, 1, world.v4(b, 2), b"x");
    assert_eq!(world.run().len(), 1);
}

#[test]
fn links_lose_delay_and_limit() {
    let mut world = World::new();
    let (a, b) = (world.public(), world.public());
    for link in world.net.uplinks_mut(a) {
        *link = Link::of(1.ms()).with_loss(50).with_rate(1_000_000).with_jitter(5.ms());
    }
    for _ in 0..200 {
        world.send(a, 1, world.v4(b, 2), &[0; 972]);
    }
    let arrivals = world.run();
    assert!((60..140).contains(&arrivals.len()), "{}", arrivals.len());
    assert!(arrivals.windows(2).all(|pair| pair[1].0 >= pair[0].0), "in order without reordering");
    // A thousand bytes at a megabyte per second: a millisecond each.
    let took = arrivals.last().unwrap().0;
    assert!(took >= Duration::from_millis(arrivals.len() as u64), "{took:?}");

    world.send(a, 1, world.v4(b, 2), &[0; 1500]);
    assert_eq!(world.run(), []);
    assert_eq!(world.net.lost()[&Lost::TooBig], 1);
}

#[test]
fn the_second_uplink_carries_when_the_first_is_down() {
    let mut world = World::new();
    let (a, b) = (world.public(), world.public());
    world.net.plug(a, Segment::Internet, true, false, Link::of(9.ms()));
    world.net.uplinks_mut(a).next().unwrap().up = false;

    world.send(a, 1, world.v4(b, 2), b"x");

    assert_eq!(world.run()[0].2, "5.0.0.5:1", "another address");
}

#[test]
fn one_seed_gives_one_history() {
    let history = || {
        let mut world = World::new();
        let (a, b) = (world.public(), world.public());
        for link in world.net.uplinks_mut(a) {
            *link =
                Link { reorder_ppm: 100_000, ..Link::default() }.with_loss(10).with_jitter(9.ms());
        }
        for n in 0..100 {
            world.send(a, 1, world.v4(b, 2), &[n]);
        }
        world.run()
    };
    assert_eq!(history(), history());
}

struct World {
    net: Net,
    now: SimTime,
    queue: Queue<Step>,
}

type Arrival = (SimTime, HostId, String, Vec<u8>);

impl World {
    fn new() -> Self {
        Self { net: Net::new(1), now: Duration::ZERO, queue: Queue::new() }
    }

    fn public(&mut self) -> HostId {
        let host = self.net.add_host();
        self.net.plug(host, Segment::Internet, true, true, Link::default());
        host
    }

    fn home(&mut self, behaviour: Behaviour) -> (HostId, EdgeId) {
        let edge = self.net.add_edge(behaviour, Segment::Internet, Link::default());
        let host = self.net.add_host();
        self.net.plug(host, Segment::Inside(edge), true, true, Link::default());
        (host, edge)
    }

    fn v4(&self, host: HostId, port: u16) -> SocketAddr {
        SocketAddr::new(self.net.uplink(host).unwrap().v4.unwrap().into(), port)
    }

    fn send(&mut self, host: HostId, port: u16, dst: SocketAddr, bytes: &[u8]) {
        self.send_ttl(host, port, dst, bytes, TTL);
    }

    fn send_ttl(&mut self, host: HostId, port: u16, dst: SocketAddr, bytes: &[u8], ttl: u8) {
        let src = SocketAddr::new([0, 0, 0, 0].into(), port);
        let payload = Payload::Udp(bytes.to_vec().into());
        let mut steps = Vec::new();
        self.net.send(host, Packet { src, dst, ttl, payload }, self.now, &mut steps);
        steps.into_iter().for_each(|(at, step)| self.queue.push(at, step));
    }

    fn run(&mut self) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        while let Some((at, step)) = self.queue.pop() {
            self.now = at;
            let mut steps = Vec::new();
            if let Some((host, packet)) = self.net.handle_step(step, at, &mut steps) {
                let Payload::Udp(bytes) = packet.payload else { continue };
                arrivals.push((at, host, packet.src.to_string(), bytes.to_vec()));
            }
            steps.into_iter().for_each(|(at, step)| self.queue.push(at, step));
        }
        arrivals
    }
}
