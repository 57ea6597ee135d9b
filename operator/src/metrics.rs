//! What the operator counts, as Prometheus reads it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Registry, Unit},
};

use crate::{
    api::Requests,
    feed::{Counts, Table},
    plan::Target,
    watch::Pulse,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabel {
    queue: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WatchLabel {
    watch: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct VerbLabel {
    verb: &'static str,
}

/// Counters and gauges; clones are the same.
#[derive(Clone, Debug)]
pub struct Metrics {
    passes: Histogram,
    writes: Family<WriteLabels, Counter>,
    answers: Family<OutcomeLabel, Histogram>,
    queues: Family<QueueLabel, Gauge>,
    networks: Gauge,
    malformed: Gauge,
    members: Gauge,
    leader: Gauge,
    requests: Requests,
    pulse: Pulse,
    /// Of the feed that runs now.
    feed: Arc<ArcSwapOption<Counts>>,
    registry: Arc<Registry>,
}

impl Metrics {
    pub fn new(requests: Requests, pulse: Pulse) -> Self {
        let mut registry = Registry::with_prefix("easynet_operator");
        // 1 ms to 4 s: two nodes, and five thousand.
        let passes = Histogram::new(exponential_buckets(0.001, 4.0, 7));
        let writes = Family::default();
        let queues = Family::default();
        let (networks, malformed) = (Gauge::default(), Gauge::default());
        let (members, leader) = (Gauge::default(), Gauge::default());
        registry.register_with_unit(
            "plan",
            "Time to plan all networks once",
            Unit::Seconds,
            passes.clone(),
        );
        let writes: Family<WriteLabels, Counter> = writes;
        registry.register("writes", "Writes to the API server by kind and outcome", writes.clone());
        let answers: Family<OutcomeLabel, Histogram> = Family::new_with_constructor(|| {
            // 50 µs to 200 ms.
            Histogram::new(exponential_buckets(0.000_05, 4.0, 7))
        });
        registry.register_with_unit(
            "webhook",
            "Time to answer about a pod, by what became of it",
            Unit::Seconds,
            answers.clone(),
        );
        let queues: Family<QueueLabel, Gauge> = queues;
        registry.register("queue_length", "Writes that wait", queues.clone());
        registry.register("networks", "EasyNetworks that the feed delivers", networks.clone());
        registry.register("malformed", "Objects that do not parse", malformed.clone());
        registry.register("members", "Members that the feed delivers to", members.clone());
        registry.register("leader", "1 if this operator holds the lease", leader.clone());
        Self {
            passes,
            writes,
            answers,
            queues,
            networks,
            malformed,
            members,
            leader,
            requests,
            pulse,
            feed: Arc::default(),
            registry: Arc::new(registry),
        }
    }

    pub fn passed(&self, took: Duration) {
        self.passes.observe(took.as_secs_f64());
    }

    /// Counts an answer of the webhook.
    pub fn answered(&self, outcome: &'static str, took: Duration) {
        self.answers.get_or_create(&OutcomeLabel { outcome }).observe(took.as_secs_f64());
    }

    pub fn wrote(&self, target: Target, outcome: &'static str) {
        let kind = match target {
            Target::ConfigMap => "ConfigMap",
            Target::EndpointSlice => "EndpointSlice",
            Target::Peer => "EasyPeer",
            Target::DaemonSet => "DaemonSet",
        };
        self.writes.get_or_create(&WriteLabels { kind, outcome }).inc();
    }

    pub fn wrote_status(&self, outcome: &'static str) {
        self.writes.get_or_create(&WriteLabels { kind: "status", outcome }).inc();
    }

    pub fn waiting(&self, apply: usize, status: usize) {
        let set = |queue, length: usize| {
            self.queues
                .get_or_create(&QueueLabel { queue })
                .set(i64::try_from(length).unwrap_or(i64::MAX));
        };
        set("apply", apply);
        set("status", status);
    }

    pub fn table(&self, table: &Table) {
        let members: usize = table.networks.values().map(|network| network.members.len()).sum();
        self.networks.set(i64::try_from(table.networks.len()).unwrap_or(i64::MAX));
        self.members.set(i64::try_from(members).unwrap_or(i64::MAX));
    }

    pub fn malformed(&self, objects: usize) {
        self.malformed.set(i64::try_from(objects).unwrap_or(i64::MAX));
    }

    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Takes note of the feed whose numbers count from now on.
    pub fn serves(&self, counts: Arc<Counts>) {
        self.feed.store(Some(counts));
    }

    /// All of it as text.
    pub fn render(&self, now: Instant) -> String {
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        let mut moment = Registry::with_prefix("easynet_operator");
        let requests: Family<VerbLabel, Counter> = Family::default();
        for (verb, count) in [
            ("read", self.requests.reads()),
            ("watch", self.requests.watches()),
            ("write", self.requests.writes()),
        ] {
            requests.get_or_create(&VerbLabel { verb }).inc_by(count);
        }
        moment.register("requests", "Requests to the API server", requests);
        let ages: Family<WatchLabel, Gauge<f64, std::sync::atomic::AtomicU64>> = Family::default();
        for (watch, age) in self.pulse.ages(now) {
            ages.get_or_create(&WatchLabel { watch }).set(age.as_secs_f64());
        }
        moment.register_with_unit(
            "watch_age",
            "Time since a watch last gave a sign of life",
            Unit::Seconds,
            ages,
        );
        if let Some(feed) = self.feed.load_full() {
            let sessions: Gauge = Gauge::default();
            sessions.set(i64::try_from(feed.sessions.load(Ordering::Relaxed)).unwrap_or(i64::MAX));
            moment.register("feed_sessions", "Members that are connected", sessions);
            for (name, help, count) in [
                ("feed_enrolled", "Members that proved who they are", &feed.enrolled),
                ("feed_refused", "Callers that could not prove who they are", &feed.refused),
                ("feed_failed", "Connections that ended before they were anybody's", &feed.failed),
                ("feed_sent", "Configurations sent", &feed.sent),
            ] {
                let counter: Counter = Counter::default();
                counter.inc_by(count.load(Ordering::Relaxed));
                moment.register(name, help, counter);
            }
        }
        let mut rest = String::new();
        let _ = encode(&mut rest, &moment);
        let mut process = Registry::default();
        if let Some(bytes) = resident_bytes() {
            let memory: Gauge = Gauge::default();
            memory.set(bytes);
            process.register_with_unit(
                "process_resident_memory",
                "Memory in use",
                Unit::Bytes,
                memory,
            );
        }
        let mut last = String::new();
        let _ = encode(&mut last, &process);
        // Only the end of the last part ends the whole.
        let cut = |text: &str| text.trim_end_matches("# EOF\n").to_owned();
        format!("{}{}{last}", cut(&text), cut(&rest))
    }
}

/// `VmRSS` of this process.
pub fn resident_bytes() -> Option<i64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kilobytes: i64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_parts_are_one_text_with_one_end() {
        let pulse = Pulse::default();
        pulse.beat("nodes", Instant::now());
        let metrics = Metrics::new(Requests::default(), pulse);
        metrics.wrote(Target::Peer, "ok");
        metrics.passed(Duration::from_millis(3));

        let text = metrics.render(Instant::now());

        assert_eq!(text.matches("# EOF").count(), 1);
        assert!(text.ends_with("# EOF\n"));
        for line in [
            "easynet_operator_writes_total{kind=\"EasyPeer\",outcome=\"ok\"} 1",
            "easynet_operator_watch_age_seconds{watch=\"nodes\"}",
            "easynet_operator_requests_total{verb=\"watch\"} 0",
            "process_resident_memory_bytes",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }
}
