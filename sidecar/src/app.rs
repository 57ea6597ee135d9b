//! What each command does.

mod delivered;
mod lobby;
mod look;
mod node;
mod server;

use std::{io, process::ExitCode, sync::Arc, time::Duration};

use clap::{CommandFactory, FromArgMatches, error::ErrorKind};
use data_encoding::BASE32_NOPAD;
use netio::{
    port::code,
    task::TaskGroup,
    udp::{UdpSocket, UdpSockets},
};
use telemetry::Telemetry;

use crate::{
    args::{
        Cli, Command, ConfigCommand, DebugCommand, KeyCommand, Log, LogFormat, Output,
        SecretCommand,
    },
    error::{Failure, capital},
    render, settings,
    state::{self, State},
};

/// Threads for what blocks: `nft`, now and then.
const BLOCKING_THREADS: usize = 4;
const STACK: usize = 256 * 1024;
/// Where port 0 looks for one that TCP has free, and so many of those are tried for UDP.
const PORTS_LOOKED_AT: u16 = 1000;
const PORTS_TRIED: usize = 16;
/// What the start alone needed is given back after the first, and what was asked in between after the second, each time.
const FIRST_GIVEN_BACK: Duration = Duration::from_secs(2);
const GIVE_BACK_EVERY: Duration = Duration::from_secs(60);

/// Parses the arguments, does what they say, and says how it went.
pub fn main() -> ExitCode {
    let matches = match Cli::command().try_get_matches() {
        Ok(matches) => matches,
        Err(error) => {
            let help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            if help || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                // Nothing can be said if even this fails.
                let _ = error.print();
                return if help { ExitCode::SUCCESS } else { ExitCode::from(2) };
            }
            let failure = usage(&error);
            say_error(&failure);
            return failure.exit_code();
        }
    };
    let outcome = Cli::from_arg_matches(&matches)
        .map_err(|error| Failure::usage(error.to_string(), ""))
        .and_then(|cli| run(cli, &matches));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say_error(&failure);
            failure.exit_code()
        }
    }
}

/// What the argument parser says, as one sentence what and one what to do.
fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let said = text.split("\nUsage:").next().unwrap_or_default();
    let said = said.split("\nFor more information").next().unwrap_or_default();
    let mut parts = said.trim_start_matches("error: ").split("\n\n");
    let words = |part: &str| part.split_whitespace().collect::<Vec<_>>().join(" ");
    let what = parts.next().map(words).unwrap_or_default();
    let tips: Vec<String> = parts
        .map(words)
        .filter(|tip| !tip.is_empty())
        .map(|tip| tip.trim_start_matches("tip: ").to_owned())
        .collect();
    let tips = if tips.is_empty() { String::new() } else { format!(" ({})", tips.join("; ")) };
    let first =
        std::env::args().nth(1).filter(|name| Cli::command().find_subcommand(name).is_some());
    let help = match first {
        Some(name) => format!("See `easynet {name} --help`."),
        None => "See `easynet --help`.".to_owned(),
    };
    Failure::usage(format!("{}{tips}", capital(&what)), help)
}

fn run(cli: Cli, matches: &clap::ArgMatches) -> Result<(), Failure> {
    match cli.command {
        Command::Run(run) => {
            let telemetry = start_telemetry(&run.log)?;
            let matches = matches.subcommand_matches("run").unwrap_or(matches);
            let settings = settings::merge(&run, matches)?;
            let node = node::run(settings, run.config.clone(), *run, matches.clone());
            let outcome = runtime()?.block_on(node);
            telemetry.end();
            outcome
        }
        Command::Server(server) => {
            let _telemetry = start_telemetry(&server.log)?;
            runtime()?.block_on(server::run(server))
        }
        Command::Secret(SecretCommand::New) => {
            let mut bytes = zeroize::Zeroizing::new([0; 16]);
            state::random(&mut *bytes)?;
            render::print(&BASE32_NOPAD.encode(&*bytes).to_ascii_lowercase())
        }
        Command::Key(KeyCommand::Show { state_dir, output }) => key(&state_dir, output),
        Command::Config(ConfigCommand::Check { file }) => {
            settings::agree(&settings::read(&file)?.settle())?;
            render::print(&format!("{} is valid", file.display()))
        }
        Command::Config(ConfigCommand::Schema) => {
            let schema = serde_json::to_string_pretty(&config::schema())
                .map_err(|error| Failure::failed(error.to_string(), ""))?;
            render::print(&schema)
        }
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "easynet", &mut script);
            render::print(&String::from_utf8_lossy(&script))
        }
        Command::Version => render::print(&format!("easynet {}", env!("CARGO_PKG_VERSION"))),
        Command::Debug(DebugCommand::Heap { .. }) => Err(Failure::usage(
            "`easynet debug heap` is not there yet",
            "See `easynet stats` for the memory in use.",
        )),
        command @ (Command::Status(_)
        | Command::Peers(_)
        | Command::Paths(_)
        | Command::Routes(_)
        | Command::Node(_)
        | Command::Nat(_)
        | Command::Stats(_)
        | Command::Events(_)
        | Command::Ping(_)
        | Command::Doctor(_)
        | Command::Retire(_)
        | Command::Config(ConfigCommand::Show(_) | ConfigCommand::Reload(_))) => {
            runtime()?.block_on(look::run(command))
        }
    }
}

fn key(state_dir: &std::path::Path, output: Output) -> Result<(), Failure> {
    // A node that runs here has the lock; its key can be read all the same.
    let identity = match state::read_identity(state_dir)? {
        Some(identity) => identity,
        None => State::open(state_dir)?.identity()?,
    };
    let value = serde_json::json!({"node_id": identity.node().to_string(), "k": identity.keys().to_string()});
    render::show(&value, output, |_| {
        render::pairs(&[
            ("node id", identity.node().to_string()),
            ("?k=", identity.keys().to_string()),
        ])
    })
}

fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(STACK)
        .thread_keep_alive(Duration::from_secs(1))
        .build()
        .map_err(|error| {
            Failure::failed(
                format!("Cannot start: {error}"),
                "Check the limits on open files and processes.",
            )
        })
}

/// Sockets of both families on a port, 0 for the first one from [`config::FIRST_FREE_PORT`] that is free for UDP and TCP.
fn bind_port(sockets: &UdpSockets, port: u16) -> io::Result<(Vec<Arc<UdpSocket>>, u16)> {
    if port != 0 {
        return Ok((sockets.bind_dual(port)?, port));
    }
    (config::FIRST_FREE_PORT..config::FIRST_FREE_PORT + PORTS_LOOKED_AT)
        .filter(|port| std::net::TcpListener::bind(("0.0.0.0", *port)).is_ok())
        .take(PORTS_TRIED)
        .find_map(|port| Some((sockets.bind_dual(port).ok()?, port)))
        .ok_or_else(|| io::ErrorKind::AddrInUse.into())
}

/// Keeps code mapped only as long as it is in use.
fn give_back_code(group: &TaskGroup) {
    group.spawn("code", async {
        tokio::time::sleep(FIRST_GIVEN_BACK).await;
        loop {
            code::give_back();
            tokio::time::sleep(GIVE_BACK_EVERY).await;
        }
    });
}

fn start_telemetry(log: &Log) -> Result<Telemetry, Failure> {
    let format = match log.log_format {
        LogFormat::Text => telemetry::Format::Text,
        LogFormat::Json => telemetry::Format::Json,
    };
    telemetry::start("easynet", &log.filter, format)
        .map_err(|error| Failure::usage(capital(&format!("{error:#}")), ""))
}

#[allow(clippy::print_stderr)]
fn say_error(failure: &Failure) {
    eprintln!("easynet: {failure}");
}

/// Two AEADs where the processor has AES, else one.
pub(crate) fn aead() -> u32 {
    #[cfg(target_arch = "x86_64")]
    let has_aes = std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let has_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let has_aes = false;
    wire::control::AEAD_CHACHA | if has_aes { wire::control::AEAD_AES } else { 0 }
}

pub(crate) fn unix_now() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Waits for SIGTERM or SIGINT, which end the process no more by themselves as soon as this was called.
fn stop_signal() -> impl Future<Output = ()> {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()));
    async move {
        let (Ok(mut term), Ok(mut int)) = signals else {
            return std::future::pending().await;
        };
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
    }
}

/// Ends the process at the next signal: whoever sends two does not want to wait.
async fn second_signal() {
    stop_signal().await;
    std::process::exit(130);
}
