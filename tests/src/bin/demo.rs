//! `make demo`: two sites behind NATs become one network, on this machine, in namespaces of their own.

#![allow(clippy::print_stdout)]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use tests::{
    lab::{Homes, Host, Lab, Nat, Node, homes::MOMENT, node},
    narrate::{command, say, show, title},
};

fn main() -> ExitCode {
    if let Err(why) = Lab::is_possible() {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let mut homes = build();
    let direct = first_packets(&homes);
    look(&homes);
    let direct_rate = throughput(&homes, "directly");
    let outage = death_of_the_direct_path(&homes);
    let relayed_rate = throughput(&homes, "over the relay");
    let again = direct_again(&homes);
    subnet(&mut homes);
    leave(&mut homes);
    drop(homes);

    title("In short");
    println!(
        "  direct {direct:?} after the first packet; {direct_rate:.2} Gbit/s directly, {relayed_rate:.2} over the relay"
    );
    println!(
        "  the death of the direct path cost {outage:?}; the next one was found {again:?} after it was possible"
    );
    println!(
        "  everything that was made is gone again; this took {:.0} s",
        start.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

/// Two sites, a public server, a node in each site.
fn build() -> Homes {
    title("Two sites behind NATs, and a public server");
    say(
        "Each site is a host behind a router that translates addresses and lets nothing in that was not asked for.",
    );
    say(
        "They share no network but the \"internet\" between the routers. All of it is made of network namespaces:",
    );
    println!();
    println!("      host a ── router a (NAT) ──┐");
    println!("   10.2.0.2     198.18.2.2       ├── internet ── public server 198.18.1.2");
    println!("      host b ── router b (NAT) ──┘");
    println!("   10.3.0.2     198.18.3.2");
    println!();
    let mut lab = Lab::new();
    let relay = lab.public_host("relay");
    let mut site_a = lab.site("ra", Nat::PortRestricted);
    let mut site_b = lab.site("rb", Nat::PortRestricted);
    let host_a = lab.host(&mut site_a, "a");
    let host_b = lab.host(&mut site_b, "b");

    say(
        "The public server needs no configuration, no privilege and no secret. It prints where it is reached:",
    );
    command("relay", "easynet server --public-host 198.18.1.2 --state-dir server");
    let (server, url) = node::server(&mut lab, &relay, "server", "");
    println!("  {url}");
    println!();
    say(
        "A node needs the network's name, its secret, which is made once and copied to both, and a place to start:",
    );
    command("a", "easynet secret new > secret");
    command("a", "easynet run --network lab --secret-file secret -p 'udp://198.18.1.2:11010?k=…'");
    command("b", "easynet run --network lab --secret-file secret -p 'udp://198.18.1.2:11010?k=…'");
    let began = Instant::now();
    let a = Node::start(&lab, &host_a, "a", &[&url], "");
    let b = Node::start(&lab, &host_b, "b", &[&url], "");
    for node in [&a, &b] {
        node.wait("ready", MOMENT);
        node.wait("peers=1", MOMENT);
    }
    println!(
        "  Both are ready and know each other {:?} after they were started:",
        round(began.elapsed())
    );
    println!("  a has {} and {}", a.ipv4(), a.ipv6());
    println!("  b has {} and {}", b.ipv4(), b.ipv6());
    Homes { a, b, server, url, site_a, site_b, host_a, host_b, lab }
}

/// The first packets travel over the server; how long until they travel directly.
fn first_packets(homes: &Homes) -> Duration {
    title("The first packets");
    say(
        "There is no session yet. The first packet waits while one is made over the server, and goes that way too; meanwhile",
    );
    say(
        "both sides send through their NATs at the same moment. The first answer moves the traffic to the direct path.",
    );
    let target = homes.b.ipv4();
    command("a", &format!("ping -c 5 -i 0.01 {target}"));
    show(&homes.host_a.run(&format!("ping -n -c 5 -i 0.01 {target}")));
    homes.a.wait("direct=b", MOMENT);
    let kinds = ["peer_up", "path_primary", "punch_started", "punch_ended"];
    command("a", &format!("easynet events | grep -E '{}'", kinds.join("|")));
    let events = homes.a.cli(&["events"]).stdout;
    let events = String::from_utf8_lossy(&events);
    let wanted = events.lines().filter(|line| kinds.iter().any(|kind| line.contains(kind)));
    show(&wanted.collect::<Vec<_>>().join("\n"));
    let directs = homes.a.events("path_primary");
    let after = directs.iter().find_map(|event| event["fields"]["after_ms"].as_str()?.parse().ok());
    let direct = Duration::from_millis(after.unwrap_or_default());
    println!("  The direct path carried the traffic {direct:?} after the first packet.");
    direct
}

fn look(homes: &Homes) {
    title("Looking at a node");
    for words in [&["peers"][..], &["paths", "b"], &["routes"], &["nat"]] {
        command("a", &format!("easynet {}", words.join(" ")));
        show(&String::from_utf8_lossy(&homes.a.cli(words).stdout));
    }
}

fn throughput(homes: &Homes, how: &str) -> f64 {
    title(&format!("Throughput {how}"));
    let target = homes.b.ipv4();
    command("a", &format!("iperf3 -c {target} -t 3"));
    let rate = homes.host_a.iperf(&homes.host_b, &target, 3, "");
    println!("  {rate:.2} Gbit/s in one TCP stream, encrypted end to end");
    let ping = homes.host_a.ping(&target, 20, Duration::from_millis(20));
    if let Some(rtt) = ping.percentile(50) {
        println!("  round trip {rtt:?} (median of 20)");
    }
    rate
}

fn death_of_the_direct_path(homes: &Homes) -> Duration {
    title("The direct path dies");
    say(
        "The internet drops every packet between the two routers from now on, without a word, while a ping runs every 10 ms.",
    );
    let interval = Duration::from_millis(10);
    let (host, target) = (homes.host_a.clone(), homes.b.ipv4());
    let pinging = std::thread::spawn(move || host.ping(&target, 250, interval));
    std::thread::sleep(Duration::from_millis(700));
    homes.lab.cut(&homes.site_a, &homes.site_b);
    let ping = pinging.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    let gap = ping.longest_gap(interval);
    println!("  {} of {} pings were lost: an outage of {gap:?}.", ping.lost(), ping.sent);
    command("a", "easynet peers");
    show(&String::from_utf8_lossy(&homes.a.cli(&["peers"]).stdout));
    gap
}

fn direct_again(homes: &Homes) -> Duration {
    title("And is there again");
    say(
        "The sites can reach each other again. The node seeks a direct path for as long as there is traffic and none is found,",
    );
    say("less often as time goes on; here the traffic is a ping.");
    homes.lab.restore();
    let began = Instant::now();
    let target = homes.b.ipv4();
    while homes.a.peer("b")["state"] != "direct" && began.elapsed() < Duration::from_secs(90) {
        homes.host_a.ping(&target, 2, Duration::from_millis(200));
    }
    let took = round(began.elapsed());
    println!("  {} again after {took:?}.", homes.a.peer("b")["state"].as_str().unwrap_or("?"));
    took
}

fn subnet(homes: &mut Homes) {
    title("A subnet behind a node");
    let lan = format!("10.{}.0.0/24", homes.site_b.number);
    let printer: Host = homes.lab.host(&mut homes.site_b, "printer");
    say(
        "In b's site there is a machine without easynet. b makes its network reachable for everybody, and is restarted to",
    );
    say("say so; it keeps its key and its address.");
    command("b", &format!("easynet run … --export {lan}"));
    homes.b.stop();
    homes.b.restart(&[&homes.url], &format!("--export {lan}"));
    homes.b.wait("ready", MOMENT);
    homes.a.wait("peers=1", MOMENT);
    for _ in 0..40 {
        if homes.host_a.ping(&printer.address, 1, Duration::from_millis(200)).lost() == 0 {
            break;
        }
    }
    command("a", "easynet routes");
    show(&String::from_utf8_lossy(&homes.a.cli(&["routes"]).stdout));
    command("a", &format!("ping -c 3 {}", printer.address));
    show(&homes.host_a.run(&format!("ping -n -c 3 -i 0.2 {}", printer.address)));
}

fn leave(homes: &mut Homes) {
    title("Leaving");
    say(
        "A node that is asked to stop tells the others and removes what it made: interface, routes, rules, translation.",
    );
    command("a", "kill -TERM …");
    let code = homes.a.stop();
    println!("  exit code {}", code.map_or("none".to_owned(), |code| code.to_string()));
    command("a", "ip -br link; ip rule");
    show(&homes.host_a.run("ip -br link; ip rule"));
    homes.b.stop();
    homes.server.stop();
}

fn round(time: Duration) -> Duration {
    Duration::from_millis(u64::try_from(time.as_millis()).unwrap_or(u64::MAX))
}
