//! Inside a namespace: starts a node and waits for the first answer through it.
//!
//! This program again, in another role, so that the time of entering the namespace does not count.

use std::{
    io::Read,
    net::Ipv4Addr,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use socket2::{Domain, Protocol, Socket, Type};

use crate::lab::{Host, node};

const TARGET: &str = "EASYNET_BENCH_TARGET";
const COMMAND: &str = "EASYNET_BENCH_COMMAND";
/// Before an answer counts as none.
const LONGEST: Duration = Duration::from_secs(10);
/// Between two questions.
const PACE: Duration = Duration::from_micros(500);
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const IPV4_LEN: usize = 20;
/// Tells our answers from those to others.
const MARK: &[u8] = b"first answer";

/// Becomes the probe, for good, if this process was started as it.
pub fn take_role() {
    let (Ok(target), Ok(command)) = (std::env::var(TARGET), std::env::var(COMMAND)) else { return };
    let code = match probe(&target, &command) {
        Ok(took) => {
            // Standard output is the log that the other side reads.
            let _ = std::io::Write::write_all(
                &mut std::io::stdout(),
                format!("\nanswered {}\n", took.as_micros()).as_bytes(),
            );
            0
        }
        Err(error) => {
            eprintln!("probe: {error:#}");
            1
        }
    };
    std::process::exit(code);
}

/// From the start of `command` on `host` to the first answer to a ping of `target`; the node is gone again afterwards.
///
/// # Errors
/// When none comes; with the log.
pub fn first_answer(
    host: &Host,
    target: &str,
    command: &str,
    log: &std::path::Path,
) -> Result<Duration, String> {
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let command = command.replace('"', "\\\"");
    let script = format!("env {TARGET}={target} {COMMAND}=\"{command}\" {}", program.display());
    let _ = host.spawn(&script, log).wait();
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let micros = text.lines().find_map(|line| line.strip_prefix("answered ")?.parse().ok());
    micros.map(Duration::from_micros).ok_or(text)
}

fn probe(target: &str, command: &str) -> anyhow::Result<Duration> {
    let target: Ipv4Addr = target.parse()?;
    let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?;
    socket.set_nonblocking(true)?;
    let to = std::net::SocketAddr::from((target, 0)).into();
    let question = question();

    let start = Instant::now();
    let mut node = Command::new("sh")
        .args(["-c", &format!("exec {command}")])
        .env_remove(TARGET)
        .env_remove(COMMAND)
        .stdin(Stdio::null())
        .spawn()?;
    let mut took = None;
    while took.is_none() && start.elapsed() < LONGEST {
        // There is no route before there is a TUN.
        let _ = socket.send_to(&question, &to);
        std::thread::sleep(PACE);
        let mut buf = [0; 256];
        while let Ok(len) = (&socket).read(&mut buf) {
            let packet = &buf[..len];
            let is_answer = packet.get(IPV4_LEN) == Some(&ECHO_REPLY)
                && packet.get(12..16) == Some(&target.octets()[..])
                && packet.ends_with(MARK);
            if is_answer {
                took = Some(start.elapsed());
                break;
            }
        }
    }
    node::signal(node.id(), "TERM");
    let _ = node.wait();
    took.ok_or_else(|| anyhow::anyhow!("no answer within {LONGEST:?}"))
}

/// An echo request with its checksum.
fn question() -> Vec<u8> {
    let mut packet = vec![ECHO_REQUEST, 0, 0, 0, 0x65, 0x7a, 0, 1];
    packet.extend_from_slice(MARK);
    let checksum = !wire::ip::sum(&packet);
    packet[2..4].copy_from_slice(&checksum.to_be_bytes());
    packet
}
