use std::collections::VecDeque;

use super::*;
use crate::sim::{
    clock::Span,
    edge::Behaviour,
    net::{Link, Segment as Place},
};

/// Greets every second, answers greetings, and dials when told to.
#[derive(Debug, Default)]
struct Greeter {
    to: Option<SocketAddr>,
    dial: Option<SocketAddr>,
    next: Option<Instant>,
    heard: Vec<(Hop, Vec<u8>)>,
    tunnels: Vec<String>,
    out: VecDeque<Out>,
}

impl Machine for Greeter {
    fn handle(&mut self, input: In, now: Instant) {
        match input {
            In::Datagram { hop, bytes } => {
                if bytes == b"hello" {
                    self.out.push_back(Out::Send { hop, bytes: b"welcome".to_vec(), ttl: None });
                }
                self.heard.push((hop, bytes));
            }
            In::Tun(packet) => self.out.push_back(Out::Tun(packet)),
            In::Sockets(_) => self.next = self.to.map(|_| now),
            In::SocketOpened { .. } => {}
            In::Underlay(_) => {
                if let Some(remote) = self.dial {
                    self.out.push_back(Out::Dial { dial: 1, remote });
                }
            }
            In::TunnelUp { id, remote, dial } => {
                self.tunnels.push(format!("up {dial:?}"));
                let hop = Hop::Tunnel { id, carrier: Carrier::Tcp, remote };
                if dial.is_some() {
                    self.out.push_back(Out::Send { hop, bytes: b"hello".to_vec(), ttl: None });
                }
            }
            In::TunnelDown { dial, .. } => self.tunnels.push(format!("down {dial:?}")),
        }
    }

    fn handle_timeout(&mut self, now: Instant) {
        if let Some(remote) = self.to
            && self.next.is_some_and(|next| next <= now)
        {
            let hop = Hop::Udp { socket: SocketId(0), remote };
            self.out.push_back(Out::Send { hop, bytes: b"hello".to_vec(), ttl: None });
            self.next = Some(now + 1.s());
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.next
    }

    fn poll(&mut self) -> Option<Out> {
        self.out.pop_front()
    }
}

#[test]
fn machines_talk_through_their_nats_and_timers_wake_them() {
    let mut world = World::empty(1);
    let server = public(&mut world);
    let home = home(&mut world, Behaviour::symmetric_random());
    world.start(server, Greeter::default());
    let to = Some(address(&world, server, PORT));
    world.start(home, Greeter { to, ..Greeter::default() });

    world.run_for(9_500.ms());

    let heard = &world.machine(home).unwrap().heard;
    assert_eq!(heard.len(), 10);
    assert!(heard.iter().all(|(_, bytes)| bytes == b"welcome"));
}

#[test]
fn a_sleeper_misses_everything_and_wakes_late() {
    let mut world = World::empty(1);
    let (a, b) = (public(&mut world), public(&mut world));
    world.start(a, Greeter::default());
    let to = Some(address(&world, a, PORT));
    world.start(b, Greeter { to, ..Greeter::default() });
    world.schedule(2_500.ms(), Box::new(move |world| world.set_asleep(b, true)));
    world.schedule(60.s(), Box::new(move |world| world.set_asleep(b, false)));

    world.run_to(59.s());
    assert_eq!(world.machine(a).unwrap().heard.len(), 3);
    world.run_to(61_900.ms());
    assert_eq!(world.machine(a).unwrap().heard.len(), 5);
}

#[test]
fn a_stream_passes_where_udp_does_not_and_dies_with_its_peer() {
    let mut world = World::empty(1);
    let server = public(&mut world);
    let home = home(&mut world, Behaviour::udp_blocked());
    world.start(server, Greeter::default());
    let dial = Some(address(&world, server, HTTPS));
    let to = Some(address(&world, server, PORT));
    world.start(home, Greeter { dial, to, ..Greeter::default() });

    world.run_for(5.s());
    let heard = &world.machine(home).unwrap().heard;
    assert_eq!(heard.len(), 1, "over the stream alone: {heard:?}");
    assert_eq!(world.machine(home).unwrap().tunnels, ["up Some(1)"]);

    world.stop(server);
    world.run_for(1.s());
    assert_eq!(world.machine(home).unwrap().tunnels, ["up Some(1)", "down Some(1)"]);
}

#[test]
fn a_dial_to_nobody_fails() {
    let mut world = World::empty(1);
    let a = public(&mut world);
    let dial = Some("5.9.9.9:443".parse().unwrap());
    world.start(a, Greeter { dial, ..Greeter::default() });
    world.run_for(60.s());
    assert_eq!(world.machine(a).unwrap().tunnels, ["down Some(1)"]);
}

#[test]
fn one_seed_gives_one_fingerprint() {
    let fingerprint = |seed| {
        let mut world = World::empty(seed);
        let server = public(&mut world);
        world.start(server, Greeter::default());
        let to = Some(address(&world, server, PORT));
        for _ in 0..20 {
            let home = home(&mut world, Behaviour::symmetric_random());
            let host = world.host(home);
            let jittery = Link::of(5.ms()).with_jitter(9.ms()).with_loss(10);
            world.net.uplinks_mut(host).for_each(|link| *link = jittery.clone());
            world.start(home, Greeter { to, ..Greeter::default() });
        }
        world.run_for(30.s());
        world.fingerprint()
    };
    assert_eq!(fingerprint(7), fingerprint(7));
    assert_ne!(fingerprint(7), fingerprint(8));
}

fn public(world: &mut World<Greeter>) -> StationId {
    let host = world.net.add_host();
    world.net.plug(host, Place::Internet, true, true, Link::default());
    world.add_station(host)
}

fn home(world: &mut World<Greeter>, behaviour: Behaviour) -> StationId {
    let edge = world.net.add_edge(behaviour, Place::Internet, Link::default());
    let host = world.net.add_host();
    world.net.plug(host, Place::Inside(edge), true, false, Link::default());
    world.add_station(host)
}

fn address(world: &World<Greeter>, station: StationId, port: u16) -> SocketAddr {
    let uplink = world.net.uplink(world.host(station)).unwrap();
    SocketAddr::new(uplink.v4.unwrap().into(), port)
}
