use super::{addr::SocketId, *};

const RELAY: NodeId = NodeId([9; 16]);
const VIA: Way = Way::Relayed(RELAY);

fn direct() -> Way {
    Way::Direct(Hop::Udp { socket: SocketId(0), remote: "198.51.100.1:1".parse().unwrap() })
}

fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// An agent and the network it lives in: what answers, and how fast.
struct World {
    agent: Agent,
    now: Instant,
    start: Instant,
    rtt: BTreeMap<Way, Duration>,
    answers: Vec<(Instant, u64)>,
    changes: Vec<(u64, Option<Way>, Reason)>,
    /// Data goes out all the time; it comes back if this way lives.
    data: bool,
    /// What the network lets through.
    longest: u16,
}

impl World {
    fn new() -> Self {
        let start = Instant::now();
        let mut agent = Agent::new(0, 1353);
        agent.set_active(true, start);
        let (answers, changes) = (Vec::new(), Vec::new());
        Self {
            agent,
            now: start,
            start,
            rtt: BTreeMap::new(),
            answers,
            changes,
            data: false,
            longest: 1500,
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += ms(1);
            let now = self.now;
            if self.data {
                let alive = [self.agent.primary(), self.agent.bicast()]
                    .into_iter()
                    .flatten()
                    .any(|way| self.rtt.contains_key(&way));
                self.agent.traffic(Some(now), alive.then_some(now), now);
            }
            for (_, txid) in self.answers.extract_if(.., |(at, _)| *at <= now) {
                self.agent.acknowledged(txid, now);
            }
            let mut wakes = 0;
            while self.agent.poll_timeout().is_some_and(|at| at <= now) {
                self.agent.handle_timeout(now);
                wakes += 1;
                assert!(wakes < 10, "the agent never sleeps: {:?}", self.agent);
            }
            while let Some(output) = self.agent.poll_output() {
                match output {
                    Output::Probe { way, txid, len } => {
                        if let Some(&rtt) = self.rtt.get(&way)
                            && len <= self.longest
                        {
                            self.answers.push((now + rtt, txid));
                        }
                    }
                    Output::Resized => {}
                    Output::Changed { after, reason, .. } => {
                        let at = now.saturating_duration_since(self.start).as_millis() as u64;
                        self.changes.push((at, after, reason));
                    }
                }
            }
        }
    }

    fn established() -> Self {
        let mut world = Self::new();
        world.rtt.insert(VIA, ms(60));
        world.rtt.insert(direct(), ms(40));
        world.agent.set_relays(&[(RELAY, ms(60))], world.now);
        world.run(ms(500));
        world.agent.add(direct(), world.now);
        world.run(ms(2000));
        world.changes.clear();
        world
    }
}

#[test]
fn a_first_answer_that_came_late_does_not_keep_a_direct_path_out() {
    let mut world = World::new();
    world.rtt.insert(VIA, ms(2));
    world.agent.set_relays(&[(RELAY, ms(2))], world.now);
    world.run(ms(500));
    assert_eq!(world.agent.primary(), Some(VIA));
    world.rtt.insert(direct(), ms(400));
    let txid = world.agent.probe(direct(), world.now);
    world.answers.push((world.now + ms(400), txid));
    for _ in 0..7 {
        // The punch's own probes, of which none was answered.
        world.agent.probe(direct(), world.now);
    }

    world.run(ms(450));
    world.rtt.insert(direct(), ms(2));
    world.run(ms(1000));

    assert_eq!(world.agent.primary(), Some(direct()), "{:?}", world.changes);
}

#[test]
fn a_relay_in_doubt_has_another_carry_the_data_too() {
    let other = Way::Relayed(NodeId([8; 16]));
    let mut world = World::new();
    world.rtt.extend([(VIA, ms(2)), (other, ms(4))]);
    world.agent.set_relays(&[(RELAY, ms(2)), (NodeId([8; 16]), ms(4))], world.now);
    world.run(ms(1500));
    assert_eq!(world.agent.primary(), Some(VIA));

    world.agent.distrust(other, world.now);
    assert_eq!(world.agent.bicast(), None, "that one carries nothing");
    world.rtt.remove(&VIA);
    world.agent.distrust(VIA, world.now);
    assert_eq!(world.agent.bicast(), Some(other));
    world.run(ms(50));

    assert_eq!(world.agent.primary(), Some(other));
}

#[test]
fn the_first_answer_of_a_direct_path_takes_the_traffic_from_the_relay() {
    let mut world = World::new();
    world.rtt.insert(VIA, ms(60));
    world.rtt.insert(direct(), ms(40));
    world.agent.set_relays(&[(RELAY, ms(60))], world.now);
    world.run(ms(100));
    assert_eq!(world.agent.primary(), Some(VIA));

    world.agent.add(direct(), world.now);
    world.run(ms(45));

    assert_eq!(world.agent.primary(), Some(direct()));
    assert_eq!(world.changes.last().unwrap().2, Reason::Direct);
    assert_eq!(world.agent.path(VIA).unwrap().state, State::Warm);
}

#[test]
fn a_much_slower_direct_path_leaves_the_traffic_on_the_relay() {
    let mut world = World::new();
    world.rtt.insert(VIA, ms(20));
    world.rtt.insert(direct(), ms(200));
    world.agent.set_relays(&[(RELAY, ms(20))], world.now);
    world.agent.add(direct(), world.now);
    world.run(ms(3000));

    assert_eq!(world.agent.primary(), Some(VIA));
}

#[test]
fn a_dead_path_under_data_costs_less_than_700_ms() {
    for rtt in [2, 40, 150] {
        let mut world = World::established();
        world.rtt.insert(direct(), ms(rtt));
        world.rtt.insert(VIA, ms(rtt + 20));
        world.data = true;
        world.run(ms(40_000));
        world.changes.clear();
        world.start = world.now;
        assert_eq!(world.agent.primary(), Some(direct()));

        world.rtt.remove(&direct());
        world.run(ms(1000));

        let suspect =
            world.changes.iter().find(|(_, _, reason)| *reason == Reason::Suspect).unwrap().0;
        let (at, after, _) =
            *world.changes.iter().find(|(_, after, _)| *after == Some(VIA)).unwrap();
        assert!(suspect < 500, "rtt {rtt}: suspect after {suspect} ms");
        assert!(at < 700 && after == Some(VIA), "rtt {rtt}: switched after {at} ms");
    }
}

#[test]
fn one_way_traffic_is_no_false_alarm() {
    let mut world = World::established();
    for _ in 0..5000 {
        world.now += ms(1);
        let now = world.now;
        world.agent.traffic(Some(now), None, now);
        world.run(ms(1));
    }

    assert_eq!(world.changes, []);
}

#[test]
fn a_path_that_comes_back_is_primary_again_without_having_been_left() {
    let mut world = World::established();
    world.rtt.remove(&VIA);
    world.data = true;
    world.run(ms(1000));
    world.rtt.remove(&direct());
    world.run(ms(450));
    assert_eq!(world.agent.path(direct()).unwrap().state, State::Suspect);

    world.rtt.insert(direct(), ms(40));
    world.run(ms(200));

    assert_eq!(world.agent.path(direct()).unwrap().state, State::Primary);
    assert_eq!(world.changes.last().unwrap().2, Reason::Recovered);
}

#[test]
fn a_path_that_narrows_under_data_shrinks_the_datagrams_within_a_second() {
    let mut world = World::established();
    assert_eq!(world.agent.datagram(), 1353);

    world.longest = 1250;
    for _ in 0..1000 {
        let now = world.now;
        world.agent.traffic(Some(now), None, now);
        world.run(ms(1));
    }

    assert!(world.agent.datagram() <= 1250, "{}", world.agent.datagram());
    assert_eq!(world.agent.primary(), Some(direct()));
    assert_eq!(world.changes, []);
}

#[test]
fn strangers_addresses_are_few() {
    let mut world = World::new();
    for port in 1..100 {
        let remote = format!("198.51.100.9:{port}").parse().unwrap();
        world.agent.asked(Way::Direct(Hop::Udp { socket: SocketId(0), remote }), false, world.now);
    }

    assert_eq!(world.agent.paths().count(), MAX_UNVERIFIED);
}

#[test]
fn what_never_answers_is_forgotten_and_a_quiet_peer_costs_a_keepalive() {
    let mut world = World::established();
    let remote = "198.51.100.77:1".parse().unwrap();
    let dead = Way::Direct(Hop::Udp { socket: SocketId(0), remote });
    world.agent.add(dead, world.now);
    world.run(ms(40_000));
    assert!(world.agent.path(dead).is_none());

    let before = world.agent.next_txid;
    world.run(ms(100_000));
    assert!(world.agent.next_txid - before <= 10, "{}", world.agent.next_txid - before);
}

#[test]
fn behind_a_nat_that_forgets_soon_a_quiet_path_is_kept_alive_the_more_often() {
    let mut world = World::new();
    world.rtt.insert(direct(), ms(40));
    world.agent.add(direct(), world.now);
    world.agent.remembered_for(Some(ms(14_000)));
    world.run(ms(60_000));

    let before = world.agent.next_txid;
    world.run(ms(105_000));

    assert_eq!(world.agent.next_txid - before, 10, "one in 10.5 s");
}
