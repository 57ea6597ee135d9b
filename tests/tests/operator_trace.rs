//! What one trace shows of the operator's own work on a change: what it wrote, and what it told people.

#![allow(clippy::unwrap_used)]

use std::{net::TcpListener, time::Duration};

use rpc::feed::{Peers, Status};
use serde_json::json;
use tests::cluster::{
    Options,
    bed::Bed,
    collector::{Collector, Span},
};

const SOON: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_trace_of_a_change_has_each_object_and_each_status_that_is_written_for_it() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let collector_at = format!("http://{}", listener.local_addr().unwrap());
    let collector = Collector::start(listener);
    let bed = Bed::start(Options::default(), 2, &[]).await;
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", collector_at),
        ("OTEL_BSP_SCHEDULE_DELAY", "200".to_owned()),
    ];
    let operator = bed.operator_process_with("op-1", &environment).await;
    let mut agents = bed.ready(operator.feed).await;

    let first = trace(&collector, "1");
    for kind in ["ConfigMap", "DaemonSet", "Peer"] {
        let of_kind = |span: &&Span| span.attributes.get("kind").is_some_and(|of| of == kind);
        let applied = first.named("apply").find(of_kind);
        // The ConfigMap is of no network.
        assert_eq!(applied.is_some(), kind != "ConfigMap", "{:#?}", first.spans);
    }
    first.check_statuses();

    bed.patch(json!({"spec": {"transport": {"mtu": 1400}}})).await;
    for agent in &mut agents {
        let desired = agent.wait_for(|desired| desired.sidecar.contains("1400")).await;
        agent.run(&desired);
    }
    trace(&collector, "2").check_statuses();

    // What is written afterwards is of no change.
    let known = collector.spans().len();
    let peers = Some(Peers { total: 1, unreachable: 1, ..Peers::default() });
    agents[0].link.up.status(Status { ready: true, peers, ..Status::default() });
    bed.condition("Connected", "False").await;
    tokio::time::sleep(Duration::from_millis(800)).await;
    let later = collector.spans().split_off(known);
    assert!(later.iter().all(|span| span.name != "status"), "{later:#?}");
    operator.kill();
}

struct Trace {
    change: Span,
    spans: Vec<Span>,
}

/// The whole trace of a generation: until the status that ends it was written.
fn trace(collector: &Collector, generation: &str) -> Trace {
    collector.wait(SOON, |spans| {
        let is_change =
            |span: &&Span| span.name == "change" && span.attributes["generation"] == generation;
        let change = spans.iter().find(is_change)?.clone();
        let of_trace = spans.iter().filter(|span| span.trace == change.trace).cloned();
        let trace = Trace { spans: of_trace.collect(), change };
        let told = trace.statuses("EasyNetwork").any(|status| status.ended > trace.change.ended);
        told.then_some(trace)
    })
}

impl Trace {
    fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Span> {
        self.spans.iter().filter(move |span| span.name == name)
    }

    fn statuses<'a>(&'a self, kind: &'a str) -> impl Iterator<Item = &'a Span> {
        self.named("status").filter(move |span| span.attributes["kind"] == kind)
    }

    fn check_statuses(&self) {
        for span in self.named("status").chain(self.named("apply")).chain(self.named("plan")) {
            assert_eq!(span.parent, self.change.id, "{span:?}");
            assert_eq!(span.service, "easynet-operator");
            assert!(span.began >= self.change.began, "{span:?}");
        }
        assert!(self.statuses("EasyNetwork").all(|status| status.attributes["name"] == "prod"));
        let is_of_a_node = |status: &Span| status.attributes["name"].starts_with("prod-node-");
        assert!(self.statuses("EasyPeer").all(is_of_a_node), "{:#?}", self.spans);
        assert!(self.statuses("EasyPeer").next().is_some(), "{:#?}", self.spans);
    }
}
