//! `make bench`: the targets of `docs/performance.md`, all in one run, side by side with raw veth.
//!
//! | Module | Is |
//! |---|---|
//! | [`goal`] | the rows of the table: what each must reach, and what it should |
//! | [`load`] | TCP streams, floods and pings between two hosts, and the CPU time they cost |
//! | [`stage`] | two nodes with a veth between, or with a relay between |
//! | [`carry`] | rows about carrying packets: throughput, CPU, round trips, memory, relay, TCP carrier |
//! | [`reach`] | rows about reaching somebody: start, direct path, death of a path |
//! | [`scale`] | rows about many nodes, in the simulator |
//! | [`probe`] | what runs inside a namespace: this program again, in another role |
//! | [`report`] | the table |
//!
//! What is compared is measured in turns and the median of the ratios counts, so that a busy moment of the machine hits both.

pub mod carry;
pub mod goal;
pub mod load;
pub mod probe;
pub mod reach;
pub mod report;
pub mod scale;
pub mod stage;

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use self::{
    goal::Row,
    report::{Figure, Report},
};

/// How much is measured.
#[derive(Clone, Debug)]
pub struct Effort {
    /// Turns of what is compared.
    pub rounds: u32,
    /// Of one stream or flood.
    pub seconds: u32,
    /// Meetings of two nodes behind NATs.
    pub meetings: u32,
    /// Of the simulated network.
    pub nodes: usize,
}

/// A run of the bench: what is wanted and what was found.
#[derive(Debug)]
pub struct Bench {
    pub effort: Effort,
    wanted: Vec<Row>,
    report: Report,
    started: Instant,
}

impl Bench {
    /// Measures `wanted`, or everything if that is empty.
    pub fn new(effort: Effort, wanted: Vec<Row>) -> Self {
        let wanted = if wanted.is_empty() { Row::ALL.to_vec() } else { wanted };
        Self { effort, wanted, report: Report::of_this_machine(), started: Instant::now() }
    }

    /// Measures, and says on standard error what it does meanwhile.
    pub fn run(mut self) -> Report {
        carry::direct(&mut self);
        carry::stream(&mut self);
        carry::relay(&mut self);
        reach::start(&mut self);
        reach::direct_path(&mut self);
        reach::failover(&mut self);
        scale::many(&mut self);
        self.report.took = self.started.elapsed();
        self.report
    }

    pub fn wants(&self, row: Row) -> bool {
        self.wanted.contains(&row)
    }

    pub fn wants_any(&self, rows: &[Row]) -> bool {
        rows.iter().any(|row| self.wants(*row))
    }

    /// Puts a figure into the table if its row is wanted.
    pub fn found(&mut self, row: Row, figure: Figure) {
        if self.wants(row) {
            self.say(&format!("{}: {}", row.name(), row.show(figure.value)));
            self.report.rows.push((row, figure));
        }
    }

    /// A line of progress.
    pub fn say(&self, line: &str) {
        eprintln!("[{:>4.0} s] {line}", self.started.elapsed().as_secs_f64());
    }
}

/// Runs a part of the bench; if it fails or panics, what it owes is in the table as not measured, and the rest goes on.
fn attempt(bench: &mut Bench, rows: &[Row], part: impl FnOnce(&mut Bench) -> Result<(), String>) {
    let outcome = catch_unwind(AssertUnwindSafe(|| part(bench)));
    let why = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(why)) => why,
        Err(panic) => panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic")
            .to_owned(),
    };
    bench.say(&why);
    let first_line: String = why.lines().next().unwrap_or_default().chars().take(80).collect();
    for row in rows {
        if !bench.report.rows.iter().any(|(found, _)| found == row) {
            bench.found(*row, Figure::failed(first_line.clone()));
        }
    }
}

/// The middle of the values, the upper one of two.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    percentile(values, 50)
}

/// The value that so many percent are not above.
pub fn percentile(values: impl IntoIterator<Item = f64>, percent: usize) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let at = (values.len() * percent / 100).min(values.len().saturating_sub(1));
    values.get(at).copied().unwrap_or(f64::NAN)
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        let values = [5.0, 1.0, 3.0, 4.0, 2.0];

        assert_eq!(median(values), 3.0);
        assert_eq!(percentile(values, 95), 5.0);
        assert_eq!(percentile(values, 0), 1.0);
        assert!(median([]).is_nan());
    }
}
