//! `make bench`: the whole table of docs/performance.md in one run, with the real binary, in namespaces of its own.

use std::{
    io::Write,
    process::{Command, ExitCode},
};

use clap::{Parser, ValueEnum};
use tests::{
    bench::{Bench, Effort, goal::Row, probe},
    lab::{self, Lab, delay},
};

/// The product's: a simulated network lives on small allocations, and what they take is what nodes take.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const AFTER: &str = "\
Rows:
  tcp-1cpu cpu-1cpu tcp-2cpu   one TCP stream over UDP, and what a gigabyte costs
  flood rtt-idle rtt-loaded    small packets
  rss-idle rss-peak            memory of a node
  tcp-carrier                  one TCP stream over the TCP carrier
  relay-tcp relay-rtt          over a public server
  start                        from the start of a node to the first answer
  direct-p50 direct-p95        from the first packet to the direct path through two NATs
  failover                     outage when a direct path dies
  sim-rest sim-churn           what a simulated network of 5,000 costs each node
  sim-convergence sim-memory

Examples:
  make bench
  EASYNET_BIN=target/release/easynet target/release/bench --only tcp --only flood --rounds 5
  EASYNET_BIN=target/release/easynet target/release/bench -o json > bench.json

Needs root and a machine that does nothing else. Exit codes: 0 measured · 1 a row could not be measured, or with --strict
missed what it must reach · 2 usage error";

/// Measures easynet beside raw veth: ratios, what each must reach, and what one run showed.
#[derive(Debug, Parser)]
#[command(name = "bench", after_help = AFTER, max_term_width = 100)]
struct Args {
    /// Only this row, or those that begin so (repeat)
    #[arg(long, value_name = "ROW")]
    only: Vec<String>,
    /// Turns of what is compared; the median counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=99), value_name = "N")]
    rounds: u32,
    /// Length of one stream or flood
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=60), value_name = "S")]
    seconds: u32,
    /// Meetings of two nodes behind NATs
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=1000), value_name = "N")]
    meetings: u32,
    /// Nodes of the simulated network
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(100..=50_000), value_name = "N")]
    nodes: u32,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
    /// Fail when a row misses what it must reach
    #[arg(long)]
    strict: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Output {
    #[default]
    Table,
    Json,
}

fn main() -> ExitCode {
    delay::take_role();
    probe::take_role();
    let args = Args::parse();
    let mut wanted = Vec::new();
    for word in &args.only {
        let rows = Row::named(word);
        if rows.is_empty() {
            let names: Vec<&str> = Row::ALL.iter().map(|row| row.name()).collect();
            eprintln!("there is no row {word}: {}", names.join(" "));
            return ExitCode::from(2);
        }
        wanted.extend(rows);
    }
    if let Err(why) = is_possible() {
        eprintln!("{why}");
        return ExitCode::FAILURE;
    }
    clean_up_when_stopped();

    let effort = Effort {
        rounds: args.rounds,
        seconds: args.seconds,
        meetings: args.meetings,
        nodes: args.nodes as usize,
    };
    let report = Bench::new(effort, wanted).run();

    let text = match args.output {
        Output::Table => report.table(),
        Output::Json => format!("{:#}\n", report.json()),
    };
    if std::io::stdout().write_all(text.as_bytes()).is_err() {
        return ExitCode::FAILURE;
    }
    let incomplete = report.rows.iter().any(|(_, figure)| figure.value.is_nan());
    let missed = args.strict && report.missed().next().is_some();
    if incomplete || missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn is_possible() -> Result<(), String> {
    Lab::is_possible()?;
    let binary = lab::node::binary();
    let version = Command::new(&binary).arg("version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        return Err(format!(
            "{} does not run: build it with `cargo build --release -p sidecar`",
            binary.display()
        ));
    }
    Ok(())
}

/// A bench that is interrupted leaves no namespace and no process behind.
fn clean_up_when_stopped() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
            return;
        };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut term) = signal(SignalKind::terminate()) else { return };
            tokio::select! {
                _ = term.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
            lab::abandon();
            std::process::exit(130);
        });
    });
}
