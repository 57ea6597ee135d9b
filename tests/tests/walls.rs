//! The walls between the crates: what each forbids, proved from outside.
//!
//! The checks are functions of what they look at, and each is first shown something it must object to.

#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// What a pure crate may not even link.
const RUNTIME: &[&str] =
    &["tokio", "mio", "socket2", "async-std", "smol", "futures-executor", "rand", "chrono", "time"];

#[test]
fn pure_crates_link_no_runtime() {
    for name in ["wire", "session", "engine", "config", "crds"] {
        assert_eq!(forbidden(&dependencies(name), RUNTIME), [""; 0], "{name}");
    }
    assert!(!forbidden(&dependencies("netio"), RUNTIME).is_empty(), "the check can fail");
}

#[test]
fn the_configuration_knows_no_kubernetes_and_no_engine() {
    let foreign = ["kube", "k8s-openapi", "kube-client", "engine", "session", "netio", "wire"];
    assert_eq!(forbidden(&dependencies("config"), &foreign), [""; 0]);
    assert!(!forbidden(&dependencies("netio"), &foreign).is_empty(), "the check can fail");
}

#[test]
fn imports_point_one_way() {
    let allowed: [(&str, &[&str]); 10] = [
        ("wire", &[]),
        ("crds", &[]),
        ("config", &[]),
        ("task", &[]),
        ("telemetry", &[]),
        ("session", &["wire"]),
        ("rpc", &["wire"]),
        ("engine", &["wire", "session", "rpc"]),
        ("netio", &["wire", "session", "rpc", "engine", "task"]),
        ("operator", &["wire", "crds", "config", "session", "rpc", "task", "telemetry"]),
    ];
    let ours = [
        "wire",
        "config",
        "crds",
        "session",
        "rpc",
        "task",
        "telemetry",
        "engine",
        "netio",
        "operator",
        "sidecar",
        "tests",
    ];
    for (name, allowed) in allowed {
        let mut found = forbidden(&dependencies(name), &ours);
        found.retain(|found| found != name && !allowed.contains(&found.as_str()));
        assert_eq!(found, [""; 0], "{name}");
    }
}

#[test]
fn unsafe_code_lives_in_the_shell_alone() {
    let is_unsafe = |line: &str| words(line).any(|word| word == "unsafe" || word == "unsafe_code");
    assert!(is_unsafe("    unsafe { libc::read(fd) }"), "the check can fail");
    assert!(is_unsafe("#![allow(unsafe_code)]"), "the check can fail");
    assert!(!is_unsafe("// unsafe is not needed"), "comments are free");

    let allowed = ["sidecar/netio/src/port", "sidecar/netio/src/udp", "tests/src/lab"];
    let offenders =
        offending_lines(&sources(&["sidecar", "crds", "operator", "tests"]), &allowed, is_unsafe);
    let offenders: Vec<_> = offenders.iter().filter(|line| !line.contains("walls.rs")).collect();
    assert!(offenders.is_empty(), "{offenders:#?}");
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let workspace = read("Cargo.toml");
    assert!(workspace.contains("unsafe_code = \"deny\""));
    let members = workspace.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    let members: Vec<_> = members.split('"').skip(1).step_by(2).collect();
    assert!(members.len() >= 8);
    for member in members {
        let manifest = read(&format!("{member}/Cargo.toml"));
        assert!(manifest.contains("[lints]\nworkspace = true"), "{member}");
    }
}

#[test]
fn wire_denies_panics() {
    let lib = read("sidecar/wire/src/lib.rs");
    for lint in
        ["indexing_slicing", "panic", "unwrap_used", "expect_used", "arithmetic_side_effects"]
    {
        assert!(lib.contains(&format!("clippy::{lint}")), "{lint}");
    }
    let is_allowance = |line: &str| {
        let line = line.trim_start();
        (line.starts_with("#[allow") || line.starts_with("#![allow")) && line.contains("clippy")
    };
    assert!(is_allowance("    #[allow(clippy::indexing_slicing)]"), "the check can fail");
    let offenders = offending_lines(&sources(&["sidecar/wire/src"]), &[], is_allowance);
    assert!(offenders.is_empty(), "{offenders:#?}");
}

#[test]
fn time_and_chance_come_from_outside() {
    let reads_the_world = |line: &str| {
        let line = line.split("//").next().unwrap_or_default();
        [
            "Instant::now",
            "SystemTime::now",
            "rand::random",
            "thread_rng",
            "OsRng",
            "getrandom",
            ".elapsed()",
        ]
        .iter()
        .any(|call| line.contains(call))
    };
    assert!(reads_the_world("let now = Instant::now();"), "the check can fail");
    assert!(!reads_the_world("//! No `Instant::now` here."), "comments are free");

    let sources = sources(&["sidecar/engine/src", "sidecar/session/src", "sidecar/wire/src"]);
    let offenders = offending_lines(&sources, &[], reads_the_world);
    assert!(offenders.is_empty(), "{offenders:#?}");
}

#[test]
fn clippy_bans_the_same_in_pure_crates() {
    let shared: Vec<_> = bans(&read("clippy.toml"));
    assert!(!shared.is_empty());
    for name in ["engine", "session"] {
        let own = bans(&read(&format!("sidecar/{name}/clippy.toml")));
        // A member's file replaces the root's.
        for ban in &shared {
            assert!(own.contains(ban), "{name} repeats {ban}");
        }
        for ban in [
            "std::time::Instant::now",
            "std::time::SystemTime::now",
            "std::collections::HashMap::iter",
            "std::collections::HashSet::iter",
        ] {
            assert!(own.iter().any(|own| own == ban), "{name} bans {ban}");
        }
        let lib = read(&format!("sidecar/{name}/src/lib.rs"));
        assert!(lib.contains("#![deny(clippy::iter_over_hash_type)]"), "{name}");
    }
}

/// The names in `tree` that stand in `list`.
fn forbidden(tree: &BTreeSet<String>, list: &[&str]) -> Vec<String> {
    tree.iter().filter(|name| list.contains(&name.as_str())).cloned().collect()
}

/// Every crate that a build of `name` links, itself included.
fn dependencies(name: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "-p",
            name,
            "-e",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let tree: BTreeSet<String> = String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .map(str::to_owned)
        .collect();
    assert!(tree.contains(name));
    tree
}

/// `path:line: text` of every line outside tests and `allowed` folders to which `objection` applies.
fn offending_lines(
    sources: &[PathBuf],
    allowed: &[&str],
    objection: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut offenders = Vec::new();
    for path in sources {
        let name = path.strip_prefix(root()).unwrap().display().to_string();
        if allowed.iter().any(|allowed| name.starts_with(allowed)) || name.ends_with("tests.rs") {
            continue;
        }
        let text = fs::read_to_string(path).unwrap();
        let mut lines = text.lines().enumerate();
        while let Some((number, line)) = lines.next() {
            if line == "#[cfg(test)]" {
                // To the end of what is for tests alone: a line, or a block that begins and ends in the first column.
                let is_end =
                    |line: &str| line.ends_with(';') && !line.starts_with(' ') || line == "}";
                lines.find(|(_, line)| is_end(line));
                continue;
            }
            if objection(line) {
                offenders.push(format!("{name}:{}: {}", number + 1, line.trim()));
            }
        }
    }
    offenders
}

/// The words of a line of code before a comment.
fn words(line: &str) -> impl Iterator<Item = &str> {
    let code = line.split("//").next().unwrap_or_default();
    code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '-')
        .filter(|word| !word.is_empty())
}

/// All Rust files below some folders of the repository.
fn sources(folders: &[&str]) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders: Vec<_> = folders.iter().map(|folder| root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.ends_with("target") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    assert!(!files.is_empty());
    files
}

/// The paths that a clippy.toml disallows.
fn bans(toml: &str) -> Vec<String> {
    let paths = toml.split("path = \"").skip(1);
    paths.map(|rest| rest.split('"').next().unwrap_or_default().to_owned()).collect()
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}
