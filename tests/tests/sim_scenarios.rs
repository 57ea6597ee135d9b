//! Named scenarios of the simulated mesh: each a sentence about what the product does.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::IpAddr, time::Duration};

use engine::{
    event::NoticeKind,
    snapshot::{PeerState, RouteState},
};
use ipnet::IpNet;
use tests::{
    edges,
    sim::{
        clock::Span,
        mesh::{Mesh, converged},
        net::Link,
        scenario::{self, for_seeds},
        site::{self, Site},
    },
};

#[test]
fn two_homes_meet_over_a_server_and_go_direct() {
    let mut mesh = Mesh::new(1).servers(1).node(Site::HomeNat).node(Site::HomeNat);
    let took = mesh.run_until(converged, 10.s()).expect("members find each other");
    assert!(took < 2.s(), "{took:?}");

    let first = mesh.ping(0, 1, 2.s()).expect("the first packet is relayed");
    assert!(first < 200.ms(), "{first:?}");
    mesh.run_for(1.s());

    assert_eq!(mesh.state(0, 1), PeerState::Direct);
    assert_eq!(mesh.state(1, 0), PeerState::Direct);
    assert!(mesh.ping(0, 1, 1.s()).unwrap() < first);
}

#[test]
fn symmetric_homes_stay_usable_over_the_relay() {
    let mut mesh = Mesh::new(2).servers(1).node(Site::Symmetric).node(Site::Symmetric);
    mesh.run_until(converged, 10.s()).expect("members find each other");

    for _ in 0..20 {
        assert!(mesh.ping(0, 1, 1.s()).is_some());
        mesh.run_for(500.ms());
    }

    assert_eq!(mesh.state(0, 1), PeerState::Relayed);
}

#[test]
fn a_member_that_offers_transit_carries_for_those_that_no_server_joins() {
    // Two sites, each with a server of its own; the middle one reaches both.
    let mut mesh = Mesh::new(3)
        .servers(2)
        .node(Site::Symmetric)
        .node(Site::Symmetric)
        .node_with(Site::Public, |member| member.transit = true);
    mesh.run_until(converged, 20.s()).expect("all meet first");
    scenario::cut_from_server(0, 1)(&mut mesh);
    scenario::cut_from_server(1, 0)(&mut mesh);
    scenario::cut(0, 1)(&mut mesh);
    // Links to the one that carries come with traffic to it.
    mesh.talk(&[(0, 2), (1, 2)], 200.ms(), 25.s());

    assert!(mesh.ping(0, 1, 2.s()).is_some(), "{:#?}", mesh.peer(0, 1));
    let middle = mesh.id(2);
    assert_eq!(mesh.peer(0, 1).unwrap().via, Some(middle));
    assert_eq!(mesh.peer(1, 0).unwrap().via, Some(middle));
    assert_eq!(loops(&mesh), Vec::<String>::new());
}

#[test]
fn each_member_keeps_links_with_the_three_nearest_that_carry_and_replaces_who_dies() {
    for_seeds(
        "sim_scenarios",
        "each_member_keeps_links_with_the_three_nearest_that_carry_and_replaces_who_dies",
        0..3,
        |seed| {
            let mut mesh = Mesh::new(seed).servers(2);
            // Eight that carry, each 10 ms farther from the internet than another, and six that do not.
            let far = |number: usize| (number * 5 + seed as usize * 3) % 8;
            for number in 0..8 {
                let latency = Duration::from_millis(2 + 10 * far(number) as u64);
                assert_eq!(mesh.add(Site::Public, latency), number);
                mesh.post_mut(number).member.transit = true;
            }
            (8..14).for_each(|_| assert!(mesh.add(Site::HomeNat, 10.ms()) >= 8));
            for (a, b) in (0..14).flat_map(|a| (0..a).map(move |b| (a, b))) {
                set_distance(&mut mesh, a, b, 1.ms());
            }
            (0..14).for_each(|number| mesh.start(number));
            let links = |mesh: &Mesh, number: usize| {
                let links = mesh.snapshot(number).unwrap().links;
                (0..14).filter(|other| links.contains(&mesh.id(*other))).collect::<Vec<_>>()
            };
            let nearest = |among: &[usize]| {
                let mut others = among.to_vec();
                others.sort_by_key(|other| far(*other));
                others.truncate(3);
                others.sort();
                others
            };
            let check = |mesh: &Mesh, among: &[usize]| {
                for number in 8..14 {
                    let (has, wants) = (links(mesh, number), nearest(among));
                    let seen: Vec<_> =
                        wants.iter().map(|other| mesh.peer(number, *other)).collect();
                    assert_eq!(has, wants, "{number}: {seen:#?}");
                }
            };

            // Whoever talks to one that carries has a direct path with it.
            let pairs: Vec<_> = (8..14).flat_map(|from| (0..8).map(move |to| (from, to))).collect();
            let talk = |mesh: &mut Mesh, span: Duration| {
                let end = mesh.now() + span;
                while mesh.now() < end {
                    mesh.talk(&pairs, 1.s(), 5.s());
                    for number in 8..14 {
                        let count = links(mesh, number).len();
                        assert!(count <= 4, "{number} keeps {count}");
                    }
                }
            };

            let all: Vec<usize> = (0..8).collect();
            talk(&mut mesh, 240.s());
            check(&mesh, &all);
            mesh.run_until(converged, 10.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));

            let (dead, alive): (Vec<usize>, Vec<usize>) =
                all.into_iter().partition(|number| far(*number) < 2);
            dead.iter().for_each(|number| mesh.stop(*number));
            talk(&mut mesh, 120.s());
            check(&mesh, &alive);
            mesh.run_until(converged, 10.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));
            assert!(mesh.ping(8, 9, 2.s()).is_some());
        },
    );
}

#[test]
fn a_link_with_one_that_carries_no_more_is_given_up_by_both_ends() {
    let mut mesh = Mesh::new(8).servers(2).node(Site::Public).nodes(3, edges![100 % HomeNat]);
    mesh.stop(0);
    mesh.post_mut(0).member.transit = true;
    mesh.start(0);
    let linked = |mesh: &Mesh, number: usize, other: usize| {
        mesh.snapshot(number).unwrap().links.contains(&mesh.id(other))
    };
    let talk = |mesh: &mut Mesh| mesh.talk(&[(1, 0), (2, 0), (3, 0)], 200.ms(), 15.s());
    talk(&mut mesh);
    assert!((1..4).all(|number| linked(&mesh, number, 0) && linked(&mesh, 0, number)));
    assert!(!linked(&mesh, 1, 2), "neither carries");

    // Back within what a hello may take, so that no link goes down by itself.
    mesh.stop(0);
    mesh.post_mut(0).member.transit = false;
    mesh.start(0);
    talk(&mut mesh);
    mesh.run_for(60.s());

    for number in 1..4 {
        assert!(!linked(&mesh, number, 0), "{number} keeps it");
        assert!(!linked(&mesh, 0, number), "it keeps {number}");
        assert_eq!(mesh.state(number, 0), PeerState::Direct, "the session goes on");
    }
    mesh.run_until(converged, 10.s()).expect("all know");
}

#[test]
fn a_link_that_the_configuration_names_needs_nobody_who_carries() {
    let mut mesh = Mesh::new(9).servers(0).node(Site::Public).node_at(Site::HomeNat, &[0]);
    let linked = |mesh: &Mesh, number: usize, other: usize| {
        mesh.snapshot(number).unwrap().links.contains(&mesh.id(other))
    };
    mesh.run_until(|mesh| mesh.state(1, 0) == PeerState::Direct, 10.s()).expect("they meet");

    mesh.run_for(300.s());

    assert!(linked(&mesh, 1, 0) && linked(&mesh, 0, 1));
}

#[test]
fn who_leaves_is_gone_at_once_and_forgotten_later() {
    let mut mesh = Mesh::new(4).servers(2).nodes(6, edges![50 % HomeNat, 50 % Public]);
    mesh.run_for(2.s());
    mesh.run_until(converged, 20.s()).expect("all meet");
    mesh.talk(&[(0, 1), (2, 1)], 200.ms(), 2.s());
    let before = mesh.snapshot(0).unwrap().lsdb_entries;
    let address = mesh.address(1, true).unwrap();

    mesh.leave(1);
    mesh.run_for(1.s());

    assert_eq!(mesh.route(0, address), None);
    assert!(mesh.peer(0, 1).is_none());
    mesh.run_until(converged, 10.s()).expect("all know");
    // Whatever order the tombstones die in, none may come back from another's database.
    mesh.run_for(1200.s());
    for number in mesh.up() {
        assert_eq!(mesh.snapshot(number).unwrap().lsdb_entries, before - 2, "{number}");
    }
    assert!(converged(&mut mesh));
}

#[test]
fn of_two_with_the_same_fixed_address_one_carries_it_and_both_hear_of_it() {
    let same = |member: &mut tests::sim::node::Member| {
        member.ipv4 = Some("100.112.0.77/16".parse().unwrap());
    };
    let mut mesh = Mesh::new(5)
        .servers(1)
        .node(Site::Public)
        .node_with(Site::Public, same)
        .node_with(Site::HomeNat, same);
    mesh.run_for(10.s());

    let address: IpAddr = "100.112.0.77".parse().unwrap();
    let owner = mesh.route(0, address).expect("one of them carries it");
    assert!([mesh.id(1), mesh.id(2)].contains(&owner));
    let conflicts = mesh.snapshot(0).unwrap().conflicts;
    assert!(conflicts.iter().any(|text| text.contains("100.112.0.77")), "{conflicts:?}");
    for number in [1, 2] {
        let routes = mesh.snapshot(number).unwrap().routes;
        let other = routes.iter().find(|route| route.prefix.contains(&address)).unwrap();
        assert_eq!(other.state, RouteState::Rejected, "{other:?}");
        assert!(
            mesh.snapshot(number).unwrap().conflicts.iter().any(|c| c.contains("100.112.0.77"))
        );
    }
}

#[test]
fn of_two_claims_to_one_address_one_stays_and_the_other_moves() {
    for_seeds(
        "sim_scenarios",
        "of_two_claims_to_one_address_one_stays_and_the_other_moves",
        0..10,
        |seed| {
            let claim = |member: &mut tests::sim::node::Member| {
                member.kept.claim = Some(("100.112.9.9".parse().unwrap(), 1_767_000_000));
            };
            let mut mesh = Mesh::new(seed)
                .servers(2)
                .node_with(Site::HomeNat, claim)
                .node_with(Site::HomeNat, claim)
                .node(Site::Public);
            mesh.run_for(10.s());

            let [a, b] = [0, 1].map(|number| mesh.address(number, true).unwrap());
            assert_ne!(a, b);
            let winner = if mesh.id(0) < mesh.id(1) { a } else { b };
            assert_eq!(winner, "100.112.9.9".parse::<IpAddr>().unwrap());
            assert!(converged(&mut mesh), "{}", mesh.describe());
            assert!(mesh.ping(2, 0, 2.s()).is_some() && mesh.ping(2, 1, 2.s()).is_some());
        },
    );
}

#[test]
fn a_partition_in_which_both_sides_claim_one_address_heals() {
    for_seeds(
        "sim_scenarios",
        "a_partition_in_which_both_sides_claim_one_address_heals",
        0..10,
        |seed| {
            let claim = |member: &mut tests::sim::node::Member| {
                member.kept.claim = Some(("100.112.9.9".parse().unwrap(), 1_767_000_000));
            };
            let mut mesh = Mesh::new(seed).servers(2);
            for _ in 0..6 {
                let number = mesh.add(Site::HomeNat, 10.ms());
                mesh.start(number);
            }
            scenario::partition_with_server(3..6, 1)(&mut mesh);
            for number in [0, 3] {
                mesh.stop(number);
                claim(&mut mesh.post_mut(number).member);
                mesh.start(number);
            }
            mesh.run_for(30.s());
            assert_eq!(mesh.address(0, true), mesh.address(3, true));

            scenario::heal()(&mut mesh);

            mesh.run_until(converged, 30.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));
            assert_ne!(mesh.address(0, true), mesh.address(3, true));
        },
    );
}

#[test]
fn overlapping_exports_go_by_length_then_cost_and_are_reported() {
    let export = |prefix: &str| {
        let prefix: IpNet = prefix.parse().unwrap();
        move |member: &mut tests::sim::node::Member| member.exports = vec![prefix]
    };
    let mut mesh = Mesh::new(6)
        .servers(1)
        .node(Site::Public)
        .node_with(Site::Public, export("10.1.0.0/16"))
        .node_with(Site::Public, export("10.1.2.0/24"))
        .node_with(Site::Public, export("10.1.2.0/24"));
    for link in mesh.links_mut(3) {
        *link = Link::of(60.ms());
    }
    mesh.run_for(15.s());

    assert_eq!(mesh.route(0, "10.1.9.9".parse().unwrap()), Some(mesh.id(1)));
    assert_eq!(mesh.route(0, "10.1.2.9".parse().unwrap()), Some(mesh.id(2)));
    let conflicts = mesh.snapshot(0).unwrap().conflicts;
    assert!(conflicts.iter().any(|text| text.contains("10.1.2.0/24")), "{conflicts:?}");
    let routes = mesh.snapshot(0).unwrap().routes;
    let shadowed = routes.iter().find(|route| route.state == RouteState::Shadowed).unwrap();
    assert_eq!(shadowed.node, mesh.id(3));
}

#[test]
fn a_second_node_with_the_same_key_raises_an_alarm_on_both() {
    let mut mesh =
        Mesh::new(7).servers(2).node(Site::HomeNat).node(Site::Public).node(Site::Public);
    mesh.run_until(converged, 10.s()).expect("all meet");
    let twin = mesh.add(Site::HomeNat, 10.ms());
    mesh.post_mut(twin).member.number = 0;
    mesh.start(twin);
    mesh.run_for(30.s());

    for number in [0, twin] {
        let notices = &mesh.machine(number).unwrap().notices;
        let alarm = notices.iter().any(|(_, notice)| {
            notice.kind == NoticeKind::AddressConflict && notice.message.contains("this node's key")
        });
        assert!(alarm, "{number}: {notices:#?}");
    }
    // The others are not harmed.
    assert!(mesh.ping(1, 2, 2.s()).is_some());
}

#[test]
fn a_copy_that_started_later_does_not_shut_its_original_out() {
    for_seeds(
        "sim_scenarios",
        "a_copy_that_started_later_does_not_shut_its_original_out",
        0..6,
        |seed| {
            // Even seeds without any server: all that the two speak to is another member.
            let servers = (seed % 2) as usize;
            let mut mesh = Mesh::new(seed).servers(servers).node(Site::Public);
            mesh = if servers == 0 {
                mesh.node_at(Site::HomeNat, &[0])
            } else {
                mesh.node(Site::HomeNat)
            };
            mesh.run_until(|mesh| mesh.state(1, 0) == PeerState::Direct || servers > 0, 10.s())
                .expect("the member answers");
            mesh.run_for(20.s());
            assert!(mesh.ping(1, 0, 2.s()).is_some());
            let copy = mesh.add(Site::HomeNat, 10.ms());
            mesh.post_mut(copy).member.number = 1;
            mesh.post_mut(copy).names = mesh.post(1).names.clone();
            mesh.start(copy);
            let began = mesh.now();

            // Each is heard again and again, in turns that become longer.
            let mut answered = [Vec::new(), Vec::new()];
            while mesh.now() < began + 900.s() {
                for (which, number) in [1, copy].into_iter().enumerate() {
                    if mesh.ping(number, 0, 1.s()).is_some() {
                        answered[which].push((mesh.now() - began).as_secs());
                    }
                }
                mesh.run_for(4.s());
            }

            for (which, number) in [1, copy].into_iter().enumerate() {
                let notices = &mesh.machine(number).unwrap().notices;
                let alarm = notices.iter().find(|(_, notice)| {
                    notice.kind == NoticeKind::AddressConflict
                        && notice.message.contains("this node's key")
                });
                let told = alarm.expect("it hears of the other").0;
                assert!(told < mesh.instant() - 780.s(), "{number}: {notices:#?}");
                assert!(mesh.snapshot(number).unwrap().duplicate_key.is_some());
                let answered = &answered[which];
                assert!(answered.iter().any(|at| *at > 400), "{number}: {answered:?}");
                let turns = answered.windows(2).filter(|two| two[1] - two[0] > 15).count();
                assert!(turns < 12, "{number}: {turns} turns, {answered:?}");
            }
        },
    );
}

#[test]
fn a_restart_raises_no_alarm() {
    for blank in [false, true] {
        let mut mesh = Mesh::new(8).servers(2).node(Site::HomeNat).node(Site::Public);
        mesh.run_until(converged, 10.s()).expect("all meet");
        let address = mesh.address(0, true);
        scenario::restart(0, 2.s(), blank)(&mut mesh);
        mesh.run_for(4.s());
        mesh.run_until(converged, 10.s()).expect("all meet again");

        assert!(mesh.ping(1, 0, 2.s()).is_some());
        assert_eq!(mesh.address(0, true), address, "the address comes from state or key");
        let notices = &mesh.machine(0).unwrap().notices;
        let alarm = notices.iter().find(|(_, notice)| notice.kind == NoticeKind::AddressConflict);
        assert!(alarm.is_none(), "{alarm:?}");
    }
}

#[test]
fn when_one_of_two_homes_dies_relayed_traffic_goes_on_within_the_suspicion_time() {
    for_seeds(
        "sim_scenarios",
        "when_one_of_two_homes_dies_relayed_traffic_goes_on_within_the_suspicion_time",
        0..20,
        |seed| {
            let mut mesh = Mesh::new(seed).servers(2).node(Site::Symmetric).node(Site::Symmetric);
            mesh.run_until(converged, 10.s()).expect("all meet");
            mesh.talk(&[(0, 1)], 20.ms(), 5.s());
            let via = mesh.peer(0, 1).unwrap().via.expect("it is relayed");
            let home = (0..2).find(|&server| mesh.server_id(server) == via).unwrap();

            mesh.stop_server(home);
            mesh.talk(&[(0, 1)], 20.ms(), 5.s());

            let silence = mesh.traffic.longest_silence(mesh.station(0));
            assert!(silence < 700.ms(), "{silence:?}");
        },
    );
}

#[test]
fn a_dead_direct_path_costs_less_than_700_ms_up_to_a_round_trip_of_150_ms() {
    for_seeds(
        "sim_scenarios",
        "a_dead_direct_path_costs_less_than_700_ms_up_to_a_round_trip_of_150_ms",
        0..20,
        |seed| {
            for one_way in [5, 40, 64] {
                let mut mesh = Mesh::new(seed).servers(2).node(Site::HomeNat).node(Site::HomeNat);
                set_distance(&mut mesh, 0, 1, Duration::from_millis(one_way));
                // Or a relay would be the nearer way.
                for server in 0..2 {
                    set_server_distance(&mut mesh, 0, server, Duration::from_millis(one_way));
                }
                mesh.run_until(converged, 10.s()).expect("all meet");
                mesh.talk(&[(0, 1)], 20.ms(), 5.s());
                assert_eq!(mesh.state(0, 1), PeerState::Direct);

                scenario::cut(0, 1)(&mut mesh);
                mesh.talk(&[(0, 1)], 20.ms(), 4.s());

                let silence = mesh.traffic.longest_silence(mesh.station(0));
                assert!(silence < 700.ms(), "one way {one_way} ms: {silence:?}");
                assert_eq!(mesh.state(0, 1), PeerState::Relayed);
            }
        },
    );
}

#[test]
fn direct_traffic_goes_on_when_every_server_is_gone() {
    let mut mesh = Mesh::new(9).servers(2).node(Site::HomeNat).node(Site::HomeNat);
    mesh.run_until(converged, 10.s()).expect("all meet");
    mesh.talk(&[(0, 1)], 100.ms(), 3.s());
    assert_eq!(mesh.state(0, 1), PeerState::Direct);

    mesh.stop_server(0);
    mesh.stop_server(1);
    mesh.talk(&[(0, 1)], 100.ms(), 600.s());

    let silence = mesh.traffic.longest_silence(mesh.station(0));
    assert!(silence <= 300.ms(), "{silence:?}");
}

#[test]
fn who_dies_is_unreachable_within_seconds_with_traffic_and_within_half_a_minute_without() {
    let mut mesh = Mesh::new(12).servers(1).node(Site::HomeNat).node(Site::HomeNat);
    mesh.run_until(converged, 10.s()).expect("all meet");
    mesh.talk(&[(0, 1)], 100.ms(), 3.s());
    assert_eq!(mesh.state(0, 1), PeerState::Direct);
    // Without the server no relay takes its place.
    mesh.stop_server(0);
    mesh.run_for(40.s());
    assert_eq!(mesh.state(0, 1), PeerState::Direct, "who is quiet is not dead");

    scenario::cut(0, 1)(&mut mesh);
    mesh.run_for(27.s());
    assert_eq!(mesh.state(0, 1), PeerState::Unreachable, "{:#?}", mesh.peer(0, 1));
    let why = mesh.peer(0, 1).unwrap().last_error.unwrap();
    assert!(why.contains("answered nothing"), "{why}");

    scenario::heal()(&mut mesh);
    mesh.run_for(3.s());
    assert_eq!(mesh.state(0, 1), PeerState::Direct, "{:#?}", mesh.peer(0, 1));

    let (from, to) = (mesh.address(0, true).unwrap(), mesh.address(1, true).unwrap());
    mesh.stop(1);
    for _ in 0..20 {
        let station = mesh.station(0);
        mesh.traffic.ask(&mut mesh.world, station, from, to, 64);
        mesh.run_for(100.ms());
    }
    assert_eq!(mesh.state(0, 1), PeerState::Unreachable, "{:#?}", mesh.peer(0, 1));
}

#[test]
fn a_server_that_restarts_has_its_members_back_in_seconds() {
    let mut mesh = Mesh::new(10).servers(1).nodes(20, edges![50 % HomeNat, 50 % Symmetric]);
    mesh.run_for(2.s());
    mesh.run_until(converged, 20.s()).expect("all meet");
    scenario::restart_server(0, 1.s())(&mut mesh);
    mesh.run_for(1.s());
    let took = mesh.run_until(converged, 60.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));
    assert!(took < 30.s(), "{took:?}");
}

#[test]
fn members_attached_over_tcp_come_back_to_a_server_that_restarts() {
    for_seeds(
        "sim_scenarios",
        "members_attached_over_tcp_come_back_to_a_server_that_restarts",
        0..6,
        |seed| {
            let mut mesh = Mesh::new(seed).servers(1).node(Site::UdpBlocked).node(Site::UdpBlocked);
            mesh.run_until(converged, 20.s()).expect("they meet over TCP");
            // Sooner and later than the hellos take to miss it.
            scenario::restart_server(0, Duration::from_secs(1 + 4 * seed))(&mut mesh);
            mesh.run_for(Duration::from_secs(1 + 4 * seed));

            mesh.run_until(converged, 30.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));
            assert!(mesh.ping(0, 1, 2.s()).is_some());
        },
    );
}

#[test]
fn traffic_to_a_subnet_of_a_dead_node_goes_to_the_other_owner_within_two_seconds() {
    for_seeds(
        "sim_scenarios",
        "traffic_to_a_subnet_of_a_dead_node_goes_to_the_other_owner_within_two_seconds",
        0..20,
        |seed| {
            let export = |member: &mut tests::sim::node::Member| {
                member.exports = vec!["10.7.0.0/24".parse().unwrap()];
            };
            let mut mesh = Mesh::new(seed)
                .servers(2)
                .node(Site::HomeNat)
                .node_with(Site::Public, export)
                .node_with(Site::Symmetric, export);
            mesh.run_until(converged, 10.s()).expect("all meet");
            let inside: IpAddr = "10.7.0.9".parse().unwrap();
            let owner = mesh.route(0, inside).unwrap();
            let owner = [1, 2].into_iter().find(|&number| mesh.id(number) == owner).unwrap();
            let other = 3 - owner;
            mesh.talk(&[(0, owner)], 50.ms(), 3.s());

            mesh.stop(owner);
            let died = mesh.now();
            let target = mesh.id(other);
            let source = mesh.address(0, true).unwrap();
            let station = mesh.station(0);
            while mesh.route(0, inside) != Some(target) {
                assert!(mesh.now() < died + 2.s(), "still goes to the dead one");
                mesh.traffic.ask(&mut mesh.world, station, source, inside, 64);
                mesh.run_for(50.ms());
            }
            // And back, when it is back.
            mesh.start(owner);
            mesh.run_for(10.s());
            assert_eq!(mesh.route(0, inside), Some(mesh.id(owner)));
        },
    );
}

#[test]
fn a_network_of_a_hundred_is_learnt_over_one_server_in_seconds() {
    let mut mesh = Mesh::new(11).servers(1).nodes(100, edges![100 % Public]);
    mesh.run_for(20.s());
    let late = mesh.add(Site::HomeNat, 10.ms());
    mesh.start(late);
    let took = mesh.run_until(
        |mesh| mesh.snapshot(late).is_some_and(|snapshot| snapshot.peers.len() == 100),
        60.s(),
    );
    let took = took.expect("it learns them");
    assert!(took < 3.s(), "{took:?}");
}

#[test]
fn pairs_of_cones_are_direct_in_time() {
    // Relay round trip 60 ms, direct 40 ms.
    let mut times = Vec::new();
    for seed in 0..3 {
        let mut mesh = Mesh::new(seed).servers(1);
        let pairs: Vec<(usize, usize)> = (0..34).map(|n| (2 * n, 2 * n + 1)).collect();
        for &(a, b) in &pairs {
            for number in [a, b] {
                let site = [Site::HomeNat, Site::OtherPort, Site::Restricted][number % 3];
                assert_eq!(mesh.add(site, 5.ms()), number);
                set_server_distance(&mut mesh, number, 0, Duration::from_micros(8_600));
            }
            set_distance(&mut mesh, a, b, Duration::from_micros(9_600));
            mesh.start(a);
            mesh.start(b);
        }
        mesh.run_until(converged, 20.s()).expect("all meet");
        let began = mesh.now();
        let mut direct = vec![None; pairs.len()];
        for &(a, b) in &pairs {
            mesh.ask(a, b, true);
        }
        while mesh.now() < began + 3.s() {
            mesh.run_for(5.ms());
            mesh.traffic.settle(&mut mesh.world);
            for (n, &(a, b)) in pairs.iter().enumerate() {
                let is = || mesh.state(a, b) == PeerState::Direct;
                if direct[n].is_none() && is() {
                    direct[n] = Some(mesh.now() - began);
                }
            }
        }
        times.extend(direct.into_iter().map(|time| time.unwrap_or(Duration::MAX)));
    }
    times.sort();
    let (p50, p95) = (times[times.len() / 2], times[times.len() * 95 / 100]);
    assert!(p50 <= 250.ms(), "p50 {p50:?}");
    assert!(p95 <= 600.ms(), "p95 {p95:?}: {:?}", &times[times.len() - 8..]);
}

fn loops(mesh: &Mesh) -> Vec<String> {
    let wrongs = mesh.wrongs();
    let loops = wrongs.iter().filter(|w| matches!(w, tests::sim::oracle::Wrong::Loop { .. }));
    loops.map(ToString::to_string).collect()
}

fn set_distance(mesh: &mut Mesh, a: usize, b: usize, one_way: Duration) {
    let [a, b] = [a, b].map(|number| site::place(&mesh.world, mesh.station(number)));
    mesh.world.net.set_distance(a, b, one_way);
}

fn set_server_distance(mesh: &mut Mesh, member: usize, server: usize, one_way: Duration) {
    let a = site::place(&mesh.world, mesh.station(member));
    let b = site::place(&mesh.world, mesh.server_station(server));
    mesh.world.net.set_distance(a, b, one_way);
}

#[test]
fn records_that_come_before_a_worker_knows_their_session_are_not_lost() {
    // Longer than any round trip here: what a new session's first records say reaches old tables.
    let mut mesh = Mesh::new(31).lagging(120.ms()).servers(1);
    mesh = mesh.node(Site::HomeNat).node(Site::HomeNat);

    let took = mesh.run_until(converged, 10.s()).expect("members find each other");

    assert!(took < 1.s(), "{took:?}");
    let first = mesh.ping(0, 1, 2.s()).expect("the first packet is relayed");
    assert!(first < 500.ms(), "{first:?}");
}

#[test]
fn members_that_attach_to_a_carrying_member_at_one_moment_reach_each_other_soon() {
    for_seeds(
        "sim_scenarios",
        "members_that_attach_to_a_carrying_member_at_one_moment_reach_each_other_soon",
        0..40,
        |seed| {
            let mut mesh = Mesh::new(seed)
                .lagging((seed % 4 * 15).ms())
                .node_with(Site::Public, |member| member.transit = true)
                .node_at(Site::Symmetric, &[0])
                .node_at(Site::Symmetric, &[0]);
            let patience = if seed % 2 == 0 { 2.s() } else { 15.s() };
            if seed % 2 == 1 {
                (0..3).for_each(|number| scenario::loss(number, 2)(&mut mesh));
            }

            let meets = |mesh: &mut Mesh| {
                [(1, 2), (2, 1), (0, 1), (0, 2)].iter().all(|&(from, to)| {
                    let usable = [PeerState::Idle, PeerState::Relayed, PeerState::Direct];
                    usable.contains(&mesh.state(from, to))
                })
            };
            let took = mesh.run_until(meets, 40.s());

            assert!(took.is_some_and(|took| took < patience), "seed {seed}: {took:?}");
        },
    );
}
