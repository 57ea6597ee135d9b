//! The rows of the table: what each must reach, and where we want it to be.

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    TcpOneCpu,
    CpuOneCpu,
    TcpTwoCpus,
    Flood,
    RttIdle,
    RttLoaded,
    RssIdle,
    RssPeak,
    TcpCarrier,
    Relay,
    RelayRtt,
    Start,
    DirectMedian,
    DirectTail,
    Failover,
    SimRest,
    SimChurn,
    SimConvergence,
    SimMemory,
}

/// A bound on a figure.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    AtLeast(f64),
    AtMost(f64),
    Below(f64),
}

/// What a figure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Times what raw veth shows in the same run.
    Ratio,
    Millis,
    Megabytes,
    BytesPerSecond,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Stretch,
    Met,
    Missed,
}

impl Row {
    pub const ALL: [Self; 19] = [
        Self::TcpOneCpu,
        Self::CpuOneCpu,
        Self::TcpTwoCpus,
        Self::Flood,
        Self::RttIdle,
        Self::RttLoaded,
        Self::RssIdle,
        Self::RssPeak,
        Self::TcpCarrier,
        Self::Relay,
        Self::RelayRtt,
        Self::Start,
        Self::DirectMedian,
        Self::DirectTail,
        Self::Failover,
        Self::SimRest,
        Self::SimChurn,
        Self::SimConvergence,
        Self::SimMemory,
    ];

    /// What `--only` takes.
    pub fn name(self) -> &'static str {
        match self {
            Self::TcpOneCpu => "tcp-1cpu",
            Self::CpuOneCpu => "cpu-1cpu",
            Self::TcpTwoCpus => "tcp-2cpu",
            Self::Flood => "flood",
            Self::RttIdle => "rtt-idle",
            Self::RttLoaded => "rtt-loaded",
            Self::RssIdle => "rss-idle",
            Self::RssPeak => "rss-peak",
            Self::TcpCarrier => "tcp-carrier",
            Self::Relay => "relay-tcp",
            Self::RelayRtt => "relay-rtt",
            Self::Start => "start",
            Self::DirectMedian => "direct-p50",
            Self::DirectTail => "direct-p95",
            Self::Failover => "failover",
            Self::SimRest => "sim-rest",
            Self::SimChurn => "sim-churn",
            Self::SimConvergence => "sim-convergence",
            Self::SimMemory => "sim-memory",
        }
    }

    /// The rows that a word of `--only` names: all that begin with it.
    pub fn named(word: &str) -> Vec<Self> {
        Self::ALL.into_iter().filter(|row| row.name().starts_with(word)).collect()
    }

    pub fn title(self) -> &'static str {
        match self {
            Self::TcpOneCpu => "TCP, one stream, one CPU",
            Self::CpuOneCpu => "CPU s/GB, one CPU",
            Self::TcpTwoCpus => "TCP, one stream, two CPUs",
            Self::Flood => "64 B flood",
            Self::RttIdle => "RTT idle, p50",
            Self::RttLoaded => "RTT beside one TCP stream, p50",
            Self::RssIdle => "RSS idle",
            Self::RssPeak => "RSS peak under load",
            Self::TcpCarrier => "TCP carrier, one stream, two CPUs",
            Self::Relay => "relay A-R-B, one TCP stream",
            Self::RelayRtt => "relay A-R-B, idle RTT p99",
            Self::Start => "start to first ping, p50",
            Self::DirectMedian => "direct path, EIM x EIM, p50",
            Self::DirectTail => "direct path, EIM x EIM, p95",
            Self::Failover => "failover of a dead path, worst",
            Self::SimRest => "control bytes per node at rest",
            Self::SimChurn => "control bytes per node at 1 %/min churn",
            Self::SimConvergence => "a dead node's prefixes converge, p99",
            Self::SimMemory => "memory per node of a large network",
        }
    }

    pub fn unit(self) -> Unit {
        match self {
            Self::TcpOneCpu
            | Self::CpuOneCpu
            | Self::TcpTwoCpus
            | Self::Flood
            | Self::RttIdle
            | Self::TcpCarrier
            | Self::Relay => Unit::Ratio,
            Self::RttLoaded
            | Self::RelayRtt
            | Self::Start
            | Self::DirectMedian
            | Self::DirectTail
            | Self::Failover
            | Self::SimConvergence => Unit::Millis,
            Self::RssIdle | Self::RssPeak | Self::SimMemory => Unit::Megabytes,
            Self::SimRest | Self::SimChurn => Unit::BytesPerSecond,
        }
    }

    pub fn must(self) -> Goal {
        match self {
            Self::TcpOneCpu => Goal::AtLeast(0.22),
            Self::CpuOneCpu => Goal::AtMost(4.6),
            Self::TcpTwoCpus => Goal::AtLeast(0.26),
            Self::Flood => Goal::AtLeast(0.36),
            Self::RttIdle => Goal::AtMost(8.0),
            Self::RttLoaded => Goal::AtMost(4.0),
            Self::RssIdle => Goal::AtMost(10.0),
            Self::RssPeak => Goal::AtMost(16.0),
            Self::TcpCarrier => Goal::AtLeast(0.06),
            Self::Relay => Goal::AtLeast(0.11),
            Self::RelayRtt => Goal::Below(20.0),
            Self::Start => Goal::AtMost(110.0),
            Self::DirectMedian => Goal::AtMost(250.0),
            Self::DirectTail => Goal::AtMost(600.0),
            Self::Failover => Goal::Below(700.0),
            Self::SimRest => Goal::AtMost(1000.0),
            Self::SimChurn => Goal::AtMost(6000.0),
            Self::SimConvergence => Goal::AtMost(2000.0),
            Self::SimMemory => Goal::AtMost(10.0),
        }
    }

    pub fn stretch(self) -> Option<Goal> {
        Some(match self {
            Self::TcpOneCpu => Goal::AtLeast(0.30),
            Self::CpuOneCpu => Goal::AtMost(3.2),
            Self::TcpTwoCpus => Goal::AtLeast(0.36),
            Self::Flood => Goal::AtLeast(0.6),
            Self::RttIdle => Goal::AtMost(4.5),
            Self::RttLoaded => Goal::AtMost(2.5),
            Self::RssIdle => Goal::AtMost(6.0),
            Self::RssPeak => Goal::AtMost(10.0),
            Self::TcpCarrier => Goal::AtLeast(0.22),
            Self::Relay => Goal::AtLeast(0.2),
            Self::Start => Goal::AtMost(85.0),
            Self::DirectMedian => Goal::AtMost(180.0),
            Self::Failover => Goal::Below(400.0),
            Self::SimRest => Goal::AtMost(750.0),
            Self::SimChurn => Goal::AtMost(3000.0),
            Self::RelayRtt | Self::DirectTail | Self::SimConvergence | Self::SimMemory => {
                return None;
            }
        })
    }

    pub fn judge(self, value: f64) -> Verdict {
        if !self.must().is_reached_by(value) {
            Verdict::Missed
        } else if self.stretch().is_some_and(|goal| goal.is_reached_by(value)) {
            Verdict::Stretch
        } else {
            Verdict::Met
        }
    }

    /// A value of this row with its unit.
    pub fn show(self, value: f64) -> String {
        let unit = self.unit();
        if value.is_nan() {
            return "not measured".to_owned();
        }
        match unit {
            Unit::Ratio if value < 1.0 => format!("{value:.3} {}", unit.as_str()),
            Unit::Ratio => format!("{value:.2} {}", unit.as_str()),
            Unit::Millis if value < 10.0 => format!("{value:.2} {}", unit.as_str()),
            Unit::Millis => format!("{value:.0} {}", unit.as_str()),
            Unit::Megabytes => format!("{value:.1} {}", unit.as_str()),
            Unit::BytesPerSecond => format!("{value:.0} {}", unit.as_str()),
        }
    }
}

impl Goal {
    /// A figure that was not measured reaches nothing.
    pub fn is_reached_by(self, value: f64) -> bool {
        match self {
            Self::AtLeast(bound) => value >= bound,
            Self::AtMost(bound) => value <= bound,
            Self::Below(bound) => value < bound,
        }
    }

    pub fn show(self) -> String {
        match self {
            Self::AtLeast(bound) => format!(">= {bound}"),
            Self::AtMost(bound) => format!("<= {bound}"),
            Self::Below(bound) => format!("< {bound}"),
        }
    }
}

impl Unit {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ratio => "x raw",
            Self::Millis => "ms",
            Self::Megabytes => "MB",
            Self::BytesPerSecond => "B/s",
        }
    }
}

impl Verdict {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stretch => "stretch",
            Self::Met => "met",
            Self::Missed => "MISSED",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_judged_by_both_goals_and_nothing_measured_is_a_miss() {
        assert_eq!(Row::TcpOneCpu.judge(0.31), Verdict::Stretch);
        assert_eq!(Row::TcpOneCpu.judge(0.22), Verdict::Met);
        assert_eq!(Row::TcpOneCpu.judge(0.219), Verdict::Missed);
        assert_eq!(Row::RelayRtt.judge(20.0), Verdict::Missed);
        assert_eq!(Row::RelayRtt.judge(0.1), Verdict::Met);
        assert_eq!(Row::Failover.judge(f64::NAN), Verdict::Missed);
    }

    #[test]
    fn a_word_names_all_rows_that_begin_with_it() {
        assert_eq!(Row::named("relay"), [Row::Relay, Row::RelayRtt]);
        assert_eq!(Row::named("direct"), [Row::DirectMedian, Row::DirectTail]);
        assert!(Row::named("throughput").is_empty());
    }
}
