//! The table: aligned text for people, JSON for programs.

use std::{fmt::Write, time::Duration};

use serde_json::{Value, json};

use super::goal::{Goal, Row, Verdict};

/// What was found for one row.
#[derive(Clone, Debug, PartialEq)]
pub struct Figure {
    /// In the row's unit.
    pub value: f64,
    /// What this run showed in absolute figures.
    pub seen: String,
}

impl Figure {
    pub fn new(value: f64, seen: String) -> Self {
        Self { value, seen }
    }

    /// A row whose measuring failed, and why.
    pub fn failed(why: String) -> Self {
        Self { value: f64::NAN, seen: why }
    }
}

/// All that was found.
#[derive(Clone, Debug)]
pub struct Report {
    pub machine: String,
    pub rows: Vec<(Row, Figure)>,
    pub took: Duration,
}

impl Report {
    /// A report without rows, which says where it was made.
    pub fn of_this_machine() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let cpuinfo = read("/proc/cpuinfo");
        let model =
            cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
        let model = model.map_or("unknown CPU", |(_, model)| model.trim()).to_owned();
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
        let kernel = read("/proc/sys/kernel/osrelease");
        let kernel = kernel.split('-').next().unwrap_or_default().trim().to_owned();
        Self {
            machine: format!("{cpus} x {model}, Linux {kernel}"),
            rows: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// Rows whose *must* was not reached.
    pub fn missed(&self) -> impl Iterator<Item = Row> + '_ {
        let missed = |row: &Row, figure: &Figure| row.judge(figure.value) == Verdict::Missed;
        self.rows.iter().filter(move |(row, figure)| missed(row, figure)).map(|(row, _)| *row)
    }

    /// Aligned for a terminal.
    pub fn table(&self) -> String {
        let head = ["", "figure", "must", "stretch", "", "this run"].map(str::to_owned);
        let rows = self.rows.iter().map(|(row, figure)| {
            [
                row.title().to_owned(),
                row.show(figure.value),
                row.must().show(),
                row.stretch().map_or_else(String::new, Goal::show),
                row.judge(figure.value).as_str().to_owned(),
                figure.seen.clone(),
            ]
        });
        let lines: Vec<[String; 6]> = std::iter::once(head).chain(rows).collect();
        let width = |column: usize| {
            lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..6).map(width).collect();
        let mut text = format!("{}; {:.0} s\n", self.machine, self.took.as_secs_f64());
        for line in &lines {
            let mut out = String::new();
            for (cell, width) in line.iter().zip(&widths) {
                // Writing to a String cannot fail.
                let _ = write!(out, "{cell:<width$}  ");
            }
            text.push_str(out.trim_end());
            text.push('\n');
        }
        text
    }

    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(row, figure)| {
                json!({
                    "name": row.name(),
                    "title": row.title(),
                    "unit": row.unit().as_str(),
                    // NaN is null.
                    "value": figure.value,
                    "must": row.must().show(),
                    "stretch": row.stretch().map(Goal::show),
                    "verdict": row.judge(figure.value).as_str().to_lowercase(),
                    "seen": figure.seen,
                })
            })
            .collect();
        json!({"machine": self.machine, "took_s": self.took.as_secs_f64(), "rows": rows})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_each_row_with_its_verdict() {
        let report = Report {
            machine: "2 x CPU".to_owned(),
            rows: vec![
                (Row::TcpOneCpu, Figure::new(0.3123, "ours 2.5, raw 8.0 Gbit/s".to_owned())),
                (Row::Failover, Figure::failed("the direct path did not come".to_owned())),
            ],
            took: Duration::from_secs(3),
        };

        let text = report.table();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "2 x CPU; 3 s");
        assert!(lines[2].contains("0.312 x raw") && lines[2].contains("stretch"), "{text}");
        assert!(lines[3].contains("not measured") && lines[3].contains("MISSED"), "{text}");
        assert_eq!(report.missed().collect::<Vec<_>>(), [Row::Failover]);
        let json = report.json();
        assert_eq!(json["rows"][0]["verdict"], "stretch");
        assert!(json["rows"][1]["value"].is_null());
    }
}
