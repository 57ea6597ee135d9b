//! Address translation and MSS clamping, in one nftables table per instance.
//!
//! ```text
//! mss_*        what goes through the TUN gets TCP segments that fit the mesh
//! map_in       prerouting, −110    mesh ─► mapped network: destination to what it is on this host
//! translate    postrouting, 90     before others' source translation (100), and after it nothing changes any more:
//!              masquerade, 1:1 maps, and sources translated to *themselves*, which keeps them
//! ```
//! An `accept` in our table would not keep another table from masquerading; a source translated to itself does, since
//! a connection is translated once. So pods stay visible to the mesh whatever their CNI masquerades.
//!
//! The table is written whole by `nft -f -`, which replaces it atomically. It never touches anybody
//! else's rules. That has a limit: in nftables a packet must pass every table, so an `accept` here
//! cannot undo a `drop` elsewhere (Docker's `FORWARD` policy, say). [`forward_drops`] finds such
//! chains, so that a person can be told.
//!
//! Without the `nft` binary the mesh works, exports without masquerading; the caller reports
//! [`Error::Missing`] as a condition.

pub mod drift;

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
/// Before everybody's destination translation (−100), so that a Service's address is looked at afterwards.
const MAP_IN: i32 = -110;
/// Before everybody's source translation (100).
const TRANSLATE: i32 = 90;
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
    pub translation: Translation,
}

/// How addresses change between the mesh and what is behind this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translation {
    pub exports: Vec<Export>,
    /// Between any two of these, sources stay as they are.
    pub exempt: Vec<IpNet>,
}

/// A network behind this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Export {
    pub prefix: IpNet,
    /// The network as the mesh sees it, of the same family and length; mapped address by address.
    pub mapped: Option<IpNet>,
    pub masquerade: Masquerade,
}

/// Whose address packets between an exported network and the mesh carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masquerade {
    /// Into the network: this host's, so that it needs no route back.
    Inbound,
    Never,
    /// In both directions: this host's into the network, this node's mesh address into the mesh.
    Always,
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
    render_map_in(&mut script, &tun, &config.translation);
    render_translate(&mut script, &tun, &config.translation);
    script.push_str("}\n");
    script
}

fn render_map_in(script: &mut String, tun: &str, translation: &Translation) {
    let mapped: Vec<(IpNet, IpNet)> =
        translation.exports.iter().filter_map(|export| export.map()).collect();
    if mapped.is_empty() {
        return;
    }
    let _ = writeln!(script, "\tchain map_in {{");
    let _ = writeln!(script, "\t\ttype nat hook prerouting priority {MAP_IN}; policy accept;");
    for (prefix, mapped) in mapped {
        let ip = family(prefix);
        let _ = writeln!(
            script,
            "\t\tiifname {tun} {ip} daddr {mapped} dnat {ip} prefix to {ip} daddr map {{ {mapped} : {prefix} }}"
        );
    }
    let _ = writeln!(script, "\t}}");
}

/// The first rule that fits a connection decides.
fn render_translate(script: &mut String, tun: &str, translation: &Translation) {
    let Translation { exports, exempt } = translation;
    if exports.is_empty() && exempt.is_empty() {
        return;
    }
    for (name, kind, is_v6) in [("mesh4", "ipv4_addr", false), ("mesh6", "ipv6_addr", true)] {
        let nets = of_family(exempt, is_v6);
        if !nets.is_empty() {
            let _ = writeln!(
                script,
                "\tset {name} {{\n\t\ttype {kind}\n\t\tflags interval\n\t\tauto-merge\n\
                 \t\telements = {{ {nets} }}\n\t}}"
            );
        }
    }
    let _ = writeln!(script, "\tchain translate {{");
    let _ = writeln!(script, "\t\ttype nat hook postrouting priority {TRANSLATE}; policy accept;");
    for export in exports {
        let (ip, prefix) = (family(export.prefix), export.prefix.trunc());
        let into = format!("\t\tiifname {tun} oifname != {tun} {ip} daddr {prefix}");
        let out = format!("\t\toifname {tun} {ip} saddr {prefix}");
        let _ = match export.masquerade {
            Masquerade::Inbound | Masquerade::Always => writeln!(script, "{into} masquerade"),
            Masquerade::Never => writeln!(script, "{into} snat {ip} to {ip} saddr"),
        };
        let _ = match (export.masquerade, export.map()) {
            (Masquerade::Always, _) => writeln!(script, "{out} masquerade"),
            (Masquerade::Inbound | Masquerade::Never, None) => {
                writeln!(script, "{out} snat {ip} to {ip} saddr")
            }
            (Masquerade::Inbound | Masquerade::Never, Some((prefix, mapped))) => {
                writeln!(
                    script,
                    "{out} snat {ip} prefix to {ip} saddr map {{ {prefix} : {mapped} }}"
                )
            }
        };
    }
    for (name, ip, is_v6) in [("mesh4", "ip", false), ("mesh6", "ip6", true)] {
        if !of_family(exempt, is_v6).is_empty() {
            let _ = writeln!(
                script,
                "\t\t{ip} saddr @{name} {ip} daddr @{name} snat {ip} to {ip} saddr"
            );
        }
    }
    let _ = writeln!(script, "\t}}");
}

impl Export {
    /// What it is on this host and what it is in the mesh, if that can be mapped.
    fn map(&self) -> Option<(IpNet, IpNet)> {
        let (prefix, mapped) = (self.prefix.trunc(), self.mapped?.trunc());
        let fits = prefix.prefix_len() == mapped.prefix_len()
            && prefix.addr().is_ipv4() == mapped.addr().is_ipv4();
        fits.then_some((prefix, mapped))
    }
}

fn of_family(nets: &[IpNet], is_v6: bool) -> String {
    let nets = nets.iter().filter(|net| net.addr().is_ipv6() == is_v6);
    nets.map(|net| net.trunc().to_string()).collect::<Vec<_>>().join(", ")
}

/// Writes the table.
///
/// # Errors
/// [`Error::Missing`] where there is no `nft`; what `nft` says otherwise.
pub async fn apply(config: &NftConfig) -> Result<(), Error> {
    run(script_arguments(), &render(config)).await.map(drop)
}

/// Removes the table of an instance, this one or one that was killed; there may be none.
///
/// # Errors
/// As [`apply`].
pub async fn remove(tun: &str) -> Result<(), Error> {
    let table = table(tun);
    run(script_arguments(), &format!("add table inet {table}\ndelete table inet {table}\n"))
        .await
        .map(drop)
}

/// The table of an instance as `nft` shows it; compare it with what it showed before.
///
/// # Errors
/// As [`apply`]; [`Error::Refused`] if there is no such table.
pub async fn show(tun: &str) -> Result<String, Error> {
    run(vec!["list".into(), "table".into(), "inet".into(), table(tun)], "").await
}

/// Chains of others that drop what they do not know among forwarded packets, as
/// `family table chain`.
///
/// # Errors
/// As [`apply`].
pub async fn forward_drops() -> Result<Vec<String>, Error> {
    run(vec!["list".into(), "chains".into()], "").await.map(|listing| dropping_chains(&listing))
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

fn script_arguments() -> Vec<String> {
    vec!["-f".into(), "-".into()]
}

async fn run(arguments: Vec<String>, script: &str) -> Result<String, Error> {
    let script = script.to_owned();
    let running = spawn_blocking(move || run_blocking(&arguments, &script));
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

fn run_blocking(arguments: &[String], script: &str) -> io::Result<Output> {
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
