//! Distance on the lab's backbone: this kernel has no netem, so packets take a way through a TUN whose reader holds each for
//! as long as its two places are apart.
//!
//! ```text
//! b1 ─ rule: iif b1 ─► delay0 ─► reader, holds ─► delay0 ─► main table ─► b2
//! ```
//! The reader is this program again, in another role; a program that uses [`Lab::stretch`] calls [`take_role`] first.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    io::{BufRead, BufReader, Write},
    net::IpAddr,
    os::fd::AsRawFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context;
use engine::offload::{Split, Virtio};
use netio::port::{
    ready::Ready,
    tun::{READ_LEN, Tun},
};
use wire::{ip, packet::Kind};

use super::{Lab, run_ok};

/// Distances as `address,address,microseconds`, separated by spaces.
const DISTANCES: &str = "EASYNET_LAB_DISTANCES";
const DEVICE: &str = "delay0";
const TABLE: u32 = 77;
/// Packets held; what comes when so many are is lost, as in a router.
const BOUND: usize = 100_000;
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// Becomes the reader, for good, if this process was started as it.
pub fn take_role() {
    let Ok(distances) = std::env::var(DISTANCES) else { return };
    if let Err(error) = hold(&distances) {
        eprintln!("delay: {error:#}");
    }
    std::process::exit(1);
}

impl Lab {
    /// Puts places of the backbone apart from each other, by their addresses there and the time of one way. To be called once,
    /// when all are there; pairs that are not named stay as they are.
    ///
    /// # Panics
    /// When there is no TUN.
    pub fn stretch(&mut self, distances: &[(&str, &str, Duration)]) {
        let net = self.full("net");
        let distances: Vec<String> = distances
            .iter()
            .map(|(a, b, distance)| format!("{a},{b},{}", distance.as_micros()))
            .collect();
        let mut reader = Command::new("ip")
            .args(["netns", "exec", &net])
            .arg(std::env::current_exe().expect("the path of this program"))
            .env(DISTANCES, distances.join(" "))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("ip netns exec runs");
        let mut line = String::new();
        let stdout = reader.stdout.take().expect("a pipe");
        let _ = BufReader::new(stdout).read_line(&mut line);
        assert_eq!(line.trim(), "ready", "the reader of {DEVICE} did not start");
        self.keep(reader);
        self.sh(
            "net",
            "sysctl -qw net.ipv4.conf.all.rp_filter=0 net.ipv4.conf.default.rp_filter=0",
        );
        self.sh("net", &format!("sysctl -qw net.ipv4.conf.{DEVICE}.rp_filter=0"));
        run_ok(&format!("ip -n {net} link set {DEVICE} mtu 1500 up"));
        run_ok(&format!("ip -n {net} route add default dev {DEVICE} table {TABLE}"));
        for number in 1..=self.links {
            // Some of the numbers are links inside sites; a rule for a device that is not there does nothing.
            run_ok(&format!("ip -n {net} rule add iif b{number} lookup {TABLE}"));
        }
    }
}

fn hold(distances: &str) -> anyhow::Result<()> {
    let apart = parse(distances)?;
    let tun = Tun::open(DEVICE)?;
    let mut ready = Ready::new()?;
    ready.add(tun.as_raw_fd(), 0)?;
    println(b"ready\n")?;

    let mut held: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut number = 0;
    let mut buf = vec![0; READ_LEN];
    loop {
        // Not yet up is no reason to end.
        while let Ok(Some((virtio, packet))) = tun.read(&mut buf) {
            let distance = ip::addresses(packet).and_then(|pair| apart.get(&pair));
            let due = Instant::now() + distance.copied().unwrap_or_default();
            for packet in whole(&virtio, packet) {
                number += 1;
                if held.len() < BOUND {
                    held.push(Reverse((due, number, packet)));
                }
            }
        }
        while let Some(Reverse((due, _, packet))) = held.peek()
            && *due <= Instant::now()
        {
            let _ = tun.deliver_one(packet);
            held.pop();
        }
        let next = held.peek().map(|Reverse((due, ..))| *due);
        let wait = next.map_or(LONGEST_WAIT, |due| due.saturating_duration_since(Instant::now()));
        ready.wait(wait.min(LONGEST_WAIT))?;
    }
}

/// The packets behind a virtio header, with complete checksums.
fn whole(virtio: &Virtio, packet: &mut [u8]) -> Vec<Vec<u8>> {
    if !virtio.is_super() {
        if virtio.settle(packet) == Some(Kind::IpPartial) {
            ip::complete(packet);
        }
        return vec![packet.to_vec()];
    }
    let Some(split) = Split::new(virtio, packet) else { return Vec::new() };
    (0..split.count())
        .map(|index| {
            let mut piece = vec![0; split.len_of(index)];
            split.write(packet, index, &mut piece);
            ip::complete(&mut piece);
            piece
        })
        .collect()
}

fn parse(distances: &str) -> anyhow::Result<BTreeMap<(IpAddr, IpAddr), Duration>> {
    let mut apart = BTreeMap::new();
    for word in distances.split(' ') {
        let mut parts = word.split(',');
        let (a, b, micros) = (parts.next(), parts.next(), parts.next());
        let (Some(a), Some(b), Some(micros)) = (a, b, micros) else {
            anyhow::bail!("{word} is no distance");
        };
        let (a, b): (IpAddr, IpAddr) = (a.parse()?, b.parse()?);
        let distance = Duration::from_micros(micros.parse().context("microseconds")?);
        apart.insert((a, b), distance);
        apart.insert((b, a), distance);
    }
    Ok(apart)
}

fn println(line: &[u8]) -> std::io::Result<()> {
    let mut out = std::io::stdout();
    out.write_all(line)?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_hold_in_both_directions() {
        let apart = parse("198.18.1.2,198.18.2.2,15000 198.18.2.2,198.18.3.2,20000").unwrap();

        let at = |a: &str, b: &str| apart.get(&(a.parse().unwrap(), b.parse().unwrap())).copied();
        assert_eq!(at("198.18.2.2", "198.18.1.2"), Some(Duration::from_millis(15)));
        assert_eq!(at("198.18.2.2", "198.18.3.2"), Some(Duration::from_millis(20)));
        assert_eq!(at("198.18.1.2", "198.18.3.2"), None);
        assert!(parse("198.18.1.2,198.18.2.2").is_err());
    }
}
