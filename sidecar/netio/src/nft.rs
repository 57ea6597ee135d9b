//! Address translation and MSS clamping, in one nftables table per instance.
//!
//! The table is written whole by `nft -f -`, which replaces it atomically. It never touches anybody
//! else's rules. That has a limit: in nftables a packet must pass every table, so an `accept` here
//! cannot undo a `drop` elsewhere (Docker's `FORWARD` policy, say). [`forward_drops`] finds such
//! chains, so that a person can be told.
//!
//! Without the `nft` binary the mesh works, exports without masquerading; the caller reports
//! [`Error::Missing`] as a condition.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::{Command, Output, Stdio},
    time::Duration,
};

use ipnet::IpNet;
use tokio::{task::spawn_blocking, time::timeout};

/// `nft` takes milliseconds; longer means that it hangs.
const NFT_TIMEOUT: Duration = Duration::from_secs(10);
/// IPv4 and TCP headers.
const HEADERS_V4: u32 = 40;
/// IPv6 and TCP headers.
const HEADERS_V6: u32 = 60;

/// What the table of an instance should do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftConfig {
    pub tun: String,
    /// Of the mesh: TCP connections through the TUN get segments that fit.
    pub mtu: u32,
    pub exports: Vec<Export>,
}

/// A network behind this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    pub prefix: IpNet,
    /// The network as the mesh sees it, of the same family and length; mapped address by address.
    pub mapped: Option<IpNet>,
    /// Makes packets into the network come from this host, so that it needs no route back.
    pub masquerade: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("there is no nft program: install nftables to masquerade exported networks")]
    Missing,
    #[error("nft refused: {0}")]
    Refused(String),
    #[error("cannot run nft: {0}")]
    Io(io::Error),
}

/// The name of an instance's table. Two names that differ only in characters that nft does not
/// allow get different tables.
pub fn table(tun: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let name: String = tun.chars().map(allowed).collect();
    if name == tun {
        return format!("easynet_{name}");
    }
    format!("easynet_{name}_{:06x}", crate::netlink::table_of(tun) & 0x00ff_ffff)
}

/// The table as a script for `nft -f`.
pub fn render(config: &NftConfig) -> String {
    let (table, tun) = (table(&config.tun), quoted(&config.tun));
    let mut script = String::new();
    // Adding first makes the deletion valid where there is no such table yet.
    let _ = writeln!(script, "add table inet {table}\ndelete table inet {table}");
    let _ = writeln!(script, "table inet {table} {{");
    let chains: [(&str, &[&str]); 3] =
        [("forward", &["iifname", "oifname"]), ("input", &["iifname"]), ("output", &["oifname"])];
    for (hook, directions) in chains {
        let _ = writeln!(script, "\tchain mss_{hook} {{");
        let _ = writeln!(script, "\t\ttype filter hook {hook} priority mangle; policy accept;");
        for direction in directions {
            for (family, headers) in [("ipv4", HEADERS_V4), ("ipv6", HEADERS_V6)] {
                let mss = config.mtu.saturating_sub(headers);
                let _ = writeln!(
                    script,
                    "\t\t{direction} {tun} meta nfproto {family} tcp flags & (syn | rst) == syn \
                     tcp option maxseg size > {mss} tcp option maxseg size set {mss}"
                );
            }
        }
        let _ = writeln!(script, "\t}}");
    }
    render_mapped(&mut script, &tun, &config.exports);
    render_masquerade(&mut script, &tun, &config.exports);
    script.push_str("}\n");
    script
}

fn render_mapped(script: &mut String, tun: &str, exports: &[Export]) {
    let mapped: Vec<(IpNet, IpNet)> = exports
        .iter()
        .filter_map(|export| Some((export.prefix.trunc(), export.mapped?.trunc())))
        .filter(|(prefix, mapped)| prefix.prefix_len() == mapped.prefix_len())
        .filter(|(prefix, mapped)| prefix.addr().is_ipv4() == mapped.addr().is_ipv4())
        .collect();
    if mapped.is_empty() {
        return;
    }
    let _ = writeln!(script, "\tchain nat_mapped {{");
    let _ = writeln!(script, "\t\ttype nat hook prerouting priority dstnat; policy accept;");
    for (prefix, mapped) in mapped {
        let ip = family(prefix);
        let _ = writeln!(
            script,
            "\t\tiifname {tun} dnat {ip} prefix to {ip} daddr map {{ {mapped} : {prefix} }}"
        );
    }
    let _ = writeln!(script, "\t}}");
}

fn render_masquerade(script: &mut String, tun: &str, exports: &[Export]) {
    if !exports.iter().any(|export| export.masquerade) {
        return;
    }
    let _ = writeln!(script, "\tchain nat_exports {{");
    let _ = writeln!(script, "\t\ttype nat hook postrouting priority srcnat; policy accept;");
    for Export { prefix, .. } in exports.iter().filter(|export| export.masquerade) {
        let ip = family(*prefix);
        let prefix = prefix.trunc();
        let _ =
            writeln!(script, "\t\tiifname {tun} oifname != {tun} {ip} daddr {prefix} masquerade");
    }
    let _ = writeln!(script, "\t}}");
}

/// Writes the table.
///
/// # Errors
/// [`Error::Missing`] where there is no `nft`; what `nft` says otherwise.
pub async fn apply(config: &NftConfig) -> Result<(), Error> {
    run(&["-f", "-"], &render(config)).await.map(drop)
}

/// Removes the table of an instance, this one or one that was killed; there may be none.
///
/// # Errors
/// As [`apply`].
pub async fn remove(tun: &str) -> Result<(), Error> {
    let table = table(tun);
    run(&["-f", "-"], &format!("add table inet {table}\ndelete table inet {table}\n"))
        .await
        .map(drop)
}

/// Chains of others that drop what they do not know among forwarded packets, as
/// `family table chain`.
///
/// # Errors
/// As [`apply`].
pub async fn forward_drops() -> Result<Vec<String>, Error> {
    run(&["list", "chains"], "").await.map(|listing| dropping_chains(&listing))
}

fn dropping_chains(listing: &str) -> Vec<String> {
    let (mut table, mut chain, mut found) = ("", "", Vec::new());
    for line in listing.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("table ") {
            table = name.trim_end_matches('{').trim();
        } else if let Some(name) = line.strip_prefix("chain ") {
            chain = name.trim_end_matches('{').trim();
        } else if line.contains("hook forward") && line.contains("policy drop") {
            found.push(format!("{table} {chain}"));
        }
    }
    found
}

async fn run(arguments: &'static [&'static str], script: &str) -> Result<String, Error> {
    let script = script.to_owned();
    let running = spawn_blocking(move || run_blocking(arguments, &script));
    let output = match timeout(NFT_TIMEOUT, running).await {
        Ok(Ok(Ok(output))) => output,
        Ok(Ok(Err(error))) if error.kind() == io::ErrorKind::NotFound => {
            return Err(Error::Missing);
        }
        Ok(Ok(Err(error))) => return Err(Error::Io(error)),
        Ok(Err(error)) => return Err(Error::Io(io::Error::other(error))),
        Err(_) => return Err(Error::Io(io::ErrorKind::TimedOut.into())),
    };
    if !output.status.success() {
        return Err(Error::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run_blocking(arguments: &[&str], script: &str) -> io::Result<Output> {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    if let Some(mut stdin) = child.stdin.take() {
        // What it did not read it will complain about itself.
        let _ = stdin.write_all(script.as_bytes());
    }
    child.wait_with_output()
}

fn family(prefix: IpNet) -> &'static str {
    if prefix.addr().is_ipv6() { "ip6" } else { "ip" }
}

/// An interface name as an nft string; the kernel forbids `/` and blanks but not quotes.
fn quoted(tun: &str) -> String {
    format!("\"{}\"", tun.replace(['"', '\\'], ""))
}

#[cfg(test)]
mod tests;
