//! `make demo-clusters`: two Kubernetes clusters behind NATs become one network, on this machine, in namespaces of their own.

#![allow(clippy::print_stdout)]

use std::{
    net::TcpListener,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;
use tests::{
    cluster::{
        Cluster, POD_RANGE,
        collector::{Collector, Span},
        measure::{Speed, memory},
        product::NAMESPACE,
    },
    lab::{Lab, Nat, Node, inside, node},
    narrate::{command, say, show, title},
};

/// Where OTLP over HTTP is taken.
const OTLP: u16 = 4318;
/// For what happens within moments.
const MOMENT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    if let Err(why) = Lab::is_possible() {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    let start = Instant::now();
    let mut lab = Lab::new();
    let (mut server, url, a, b) = world(&mut lab);
    let observer = lab.public_host("observer");
    let listener = inside(&observer, || TcpListener::bind(("0.0.0.0", OTLP)));
    let collector = Collector::start(listener.expect("the port of a new host is free"));
    install(&a, &b, &format!("http://{}:{OTLP}", observer.address));
    let first = network(&a, &url);
    let second = join(&a, &b);
    let target = pods(&a, &b);
    let direct = traffic(&b, &target);
    look(&a, &b);
    trace(&collector);
    let speed = measure(&a, &b);
    without_operator(&a, &b, &target);
    uninstall(&a, &b);
    drop((a, b));
    server.stop();
    drop(lab);

    title("In short");
    println!(
        "  network Ready {first:.1?} after kubectl apply; the second cluster {second:.1?} after it joined"
    );
    println!("  the path between the clusters was direct {direct:.1?} after the first packet");
    println!("  a pod had {:.2} of the throughput that its node had", speed.ratio());
    println!(
        "  everything that was made is gone again; this took {:.0} s",
        start.elapsed().as_secs_f64()
    );
    ExitCode::SUCCESS
}

fn world(lab: &mut Lab) -> (Node, String, Cluster, Cluster) {
    title("Two clusters behind NATs, and a public server");
    say(
        "Each cluster is real Kubernetes: etcd, API server, kubelets, containerd, pods. It stands behind a router that translates",
    );
    say(
        "addresses and lets nothing in. Neither API server can reach the other, and both use the same range for their pods:",
    );
    println!();
    println!("      cluster a (2 nodes, pods 10.244.0.0/16) ── NAT ──┐");
    println!(
        "                                                       ├── internet ── public server"
    );
    println!("      cluster b (1 node,  pods 10.244.0.0/16) ── NAT ──┘");
    println!();
    say("Starting them takes about half a minute …");
    let relay = lab.public_host("relay");
    let (server, url) = node::server(lab, &relay, "relay", "");
    let start = Instant::now();
    let plans = [("a", Nat::PortRestricted, 2), ("b", Nat::PortRestricted, 1)];
    let [a, b] = Cluster::start_all(lab, plans, &[]);
    for cluster in [&a, &b] {
        command(&cluster.name, "kubectl get nodes -o wide");
        show(&narrow(&cluster.kubectl(&["get", "nodes"]).ok()));
        cluster.load_easynet();
    }
    println!("\n  Both are up after {:.0} s.", start.elapsed().as_secs_f64());
    (server, url, a, b)
}

fn install(a: &Cluster, b: &Cluster, collector: &str) {
    title("Installing easynet in both");
    command("a, b", "helm install easynet charts/easynet -n easynet-system --create-namespace");
    say("The first one also says where it sends its traces:");
    let traces = [
        "--set",
        "operator.env[0].name=OTEL_EXPORTER_OTLP_ENDPOINT",
        "--set",
        &format!("operator.env[0].value={collector}"),
    ];
    println!("      {}", traces.join(" "));
    let [took_a, took_b] = thread::scope(|scope| {
        [(a, &traces[..]), (b, &[])]
            .map(|(cluster, options)| scope.spawn(|| cluster.install_easynet(options)))
            .map(|installing| installing.join().expect("the message is above"))
    });
    println!("  a: {took_a:.1?}, b: {took_b:.1?}");
    command("a", "kubectl -n easynet-system get pods");
    show(&a.kubectl(&["-n", NAMESPACE, "get", "pods"]).ok());
}

fn network(a: &Cluster, url: &str) -> Duration {
    title("One network");
    say(
        "An EasyNetwork is all that a user writes. Nothing else is configured on any node. The map lets pods of other clusters",
    );
    say("with the same range reach this one's: they see 10.200.x.y for 10.244.x.y.");
    let spec = json!({
        "clusterName": "a",
        "bootstrap": {"peers": [url]},
        "routing": {"exports": [{"cidr": POD_RANGE, "mapTo": "10.200.0.0/16"}]},
    });
    command("a", "kubectl apply -f - <<EOF");
    println!("  apiVersion: easynet.io/v1alpha1");
    println!("  kind: EasyNetwork");
    println!("  metadata: {{name: prod}}");
    println!("  spec:");
    println!("    clusterName: a");
    println!("    bootstrap: {{peers: [\"{}…\"]}}", &url[..url.len().min(40)]);
    println!("    routing: {{exports: [{{cidr: {POD_RANGE}, mapTo: 10.200.0.0/16}}]}}");
    println!("  EOF");
    show(&a.apply_network("prod", &spec).ok());
    let ready = a.network_ready("prod");
    command("a", "kubectl get easynetworks");
    show(&a.kubectl(&["get", "easynetworks"]).ok());
    println!("  Ready {ready:.1?} after kubectl apply.");
    ready
}

fn join(a: &Cluster, b: &Cluster) -> Duration {
    title("The second cluster joins");
    let line = format!(
        "kubectl --context a -n easynet-system exec deploy/easynet-operator -- easynet-operator join prod --cluster-name b --pod-cidr {POD_RANGE} | kubectl --context b apply -f -"
    );
    command("laptop", &line);
    let (invitation, remarks) = a.invite("prod", "b", &["--pod-cidr", POD_RANGE]);
    show(&remarks);
    show(&b.kubectl_with(&["apply", "-f", "-"], &invitation).ok());
    let ready = b.network_ready("prod");
    println!("  Ready {ready:.1?} after it was applied.");
    ready
}

/// Pods on both sides; the address of a's as b sees it.
fn pods(a: &Cluster, b: &Cluster) -> String {
    title("Pods");
    let address = a.web_pod("web", "a-n1", "hello-from-a");
    b.pod("client", "b-n1", "exec sleep 3600");
    let target = address.replacen("10.244.", "10.200.", 1);
    command("a", "kubectl get pods -o wide");
    show(&narrow(&a.kubectl(&["get", "pods", "-o", "wide"]).ok()));
    command("b", "kubectl get pods -o wide");
    show(&narrow(&b.kubectl(&["get", "pods", "-o", "wide"]).ok()));
    println!("  Pod web of cluster a is {address} at home and {target} for cluster b.");
    target
}

fn traffic(b: &Cluster, target: &str) -> Duration {
    title("A pod of b reaches a pod of a");
    b.wait("a pod of b reaches one of a", MOMENT, || b.fetch("client", target, 8080).is_some());
    command("b", &format!("kubectl exec client -- ping -c 5 -i 0.2 {target}"));
    show(&b.exec("client", &format!("ping -c 5 -i 0.2 {target}")).stdout);
    b.wait("the path is direct", MOMENT, || {
        b.fetch("client", target, 8080);
        b.is_direct("prod", "b-n1", "a-n1.a")
    });
    let direct = b.direct_after("prod", "b-n1", "a-n1.a");
    command("b", &format!("kubectl exec client -- sh -c \"echo GET / | nc {target} 8080\""));
    show(&b.fetch("client", target, 8080).unwrap_or_default());
    command("b", "kubectl -n easynet-system exec ds/easynet-agent-prod -- easynet peers");
    show(&b.easynet("prod", "b-n1", &["peers"]).stdout);
    direct
}

fn look(a: &Cluster, b: &Cluster) {
    title("Looking at it with kubectl");
    for cluster in [a, b] {
        command(&cluster.name, "kubectl get easynetworks,easypeers");
        show(&cluster.kubectl(&["get", "easynetworks,easypeers"]).ok());
    }
    command("a", "kubectl get easynetwork prod -o jsonpath=… (conditions)");
    for kind in
        ["Accepted", "ResolvedRefs", "Programmed", "Connected", "AddressConflictFree", "Ready"]
    {
        if let Some((status, reason, message)) = a.network_condition("prod", kind) {
            println!("  {kind:<20} {status:<8} {reason:<16} {message}");
        }
    }
}

/// What became of the EasyNetwork of the first cluster, from `kubectl apply` to nodes that are connected.
fn trace(collector: &Collector) {
    title("One trace of it");
    let trace = collector.wait(MOMENT, |spans| {
        let change = spans.iter().find(|span| span.name == "change")?;
        let is_connected = |span: &&Span| span.trace == change.trace && span.name == "connect";
        let connected = spans.iter().filter(is_connected).count();
        (connected >= 2).then(|| change.trace.clone())
    });
    show(&collector.tree(&trace).join("\n"));
}

/// How fast pods are beside their nodes, and what all of it takes of memory.
fn measure(a: &Cluster, b: &Cluster) -> Speed {
    title("What it costs");
    let speed = Speed::measure((b, "client"), a, |pod| pod.replacen("10.244.", "10.200.", 1));
    println!(
        "  One TCP connection from cluster to cluster: {:.2} Gbit/s from node to node, {:.2} from pod to pod.",
        speed.nodes, speed.pods
    );
    for program in ["easynet", "easynet-operator"] {
        let memory: Vec<_> = memory(a, program)
            .into_iter()
            .map(|bytes| format!("{:.1}", bytes as f64 / 1e6))
            .collect();
        println!("  Memory of each {program} in cluster a: {} MB.", memory.join(", "));
    }
    speed
}

fn without_operator(a: &Cluster, b: &Cluster, target: &str) {
    title("Without the operator");
    say(
        "Nothing that carries traffic depends on it: agents have their last configuration and their keys on disk.",
    );
    for cluster in [a, b] {
        let words = ["-n", NAMESPACE, "scale", "deploy/easynet-operator", "--replicas=0"];
        command(&cluster.name, &format!("kubectl {}", words.join(" ")));
        show(&cluster.kubectl(&words).ok());
    }
    let words = ["-n", NAMESPACE, "delete", "pod", "-l", "easynet.io/network=prod"];
    command("b", &format!("kubectl {}", words.join(" ")));
    show(&b.kubectl(&words).ok());
    let start = Instant::now();
    b.wait("traffic goes on", MOMENT, || b.fetch("client", target, 8080).is_some());
    println!(
        "  A pod of b reached a pod of a {:.1?} after its node's agent was killed.",
        start.elapsed()
    );
    for cluster in [a, b] {
        cluster
            .kubectl(&["-n", NAMESPACE, "scale", "deploy/easynet-operator", "--replicas=1"])
            .ok();
        let words =
            ["-n", NAMESPACE, "rollout", "status", "deploy/easynet-operator", "--timeout=90s"];
        cluster.kubectl(&words).ok();
    }
}

fn uninstall(a: &Cluster, b: &Cluster) {
    title("Uninstalling");
    for cluster in [a, b] {
        command(&cluster.name, "helm uninstall easynet -n easynet-system");
        let words = ["uninstall", "easynet", "-n", NAMESPACE, "--wait", "--timeout", "90s"];
        show(&cluster.helm(&words).ok());
    }
    command("a-n1", "ip -br link; ip rule; nft list tables");
    if let Some(node) = a.nodes.first() {
        show(&node.run("ip -br link; ip rule; nft list tables").stdout);
    }
}

/// The columns that fit.
fn narrow(table: &str) -> String {
    let lines = table.lines().map(|line| line.chars().take(110).collect::<String>());
    lines.collect::<Vec<_>>().join("\n")
}
