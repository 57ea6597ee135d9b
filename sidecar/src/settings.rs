//! What is in force: file, environment and flags, merged and read once.

use std::{io::Read, path::Path, str::FromStr};

use clap::{ArgMatches, parser::ValueSource};
use config::{Admin, Invalid, Origin, Partial, Secret, Settings, Sourced};

use crate::{
    args::Run,
    error::{Failure, capital},
    source::{self, FeedUrl},
};

/// Merges a `run`'s sources. `matches` knows which of its values came from the environment.
///
/// # Errors
/// Everything that is wrong with the file, or the first thing that is with the rest; nothing was changed.
pub fn merge(run: &Run, matches: &ArgMatches) -> Result<Settings, Failure> {
    merge_delivered(run, matches, Partial::default())
}

/// The same over what a configuration server delivered.
///
/// # Errors
/// As [`merge`].
pub fn merge_delivered(
    run: &Run,
    matches: &ArgMatches,
    delivered: Partial,
) -> Result<Settings, Failure> {
    refuse(run)?;
    let file = match &run.config {
        Some(path) => read(path)?,
        None => Partial::default(),
    };
    let mut flags = Partial::default();
    let mut environment = Partial::default();
    macro_rules! put {
        ($field:ident, $id:literal, $value:expr) => {
            if let Some(value) = $value {
                let from_flag = matches.value_source($id) == Some(ValueSource::CommandLine);
                let (target, origin) = if from_flag {
                    (&mut flags, Origin::Flag)
                } else {
                    (&mut environment, Origin::Environment)
                };
                target.$field = Some(Sourced { value, origin });
            }
        };
    }
    if run.network.as_deref().is_some_and(|name| name.trim().is_empty()) {
        return Err(Failure::usage(
            "The network's name is empty",
            "Name it with --network, EASYNET_NETWORK or network.name.",
        ));
    }
    put!(network, "network", run.network.clone().map(Some));
    put!(secret_file, "secret_file", run.secret_file.clone().map(Some));
    put!(peers, "peers", list(&run.peers)?);
    put!(listen, "listen", list(&run.listen)?);
    put!(hostname, "hostname", one(run.hostname.as_deref())?.map(Some));
    put!(ipv4, "ipv4", one(run.ipv4.as_deref())?);
    put!(ipv6, "ipv6", one(run.ipv6.as_deref())?);
    put!(range, "range", one(run.range.as_deref())?);
    put!(exports, "exports", list(&run.exports)?);
    put!(tun, "tun", one(run.tun.as_deref())?);
    put!(mtu, "mtu", one(run.mtu.as_deref())?);
    put!(p2p, "p2p", one(run.p2p.as_deref())?);
    put!(punch, "punch", one(run.punch.as_deref())?);
    put!(transit, "transit", run.transit.then_some(true));
    put!(admin, "admin", run.admin.clone());
    put!(admin_token_file, "admin_token_file", run.admin_token_file.clone().map(Some));
    put!(state_dir, "state_dir", run.state_dir.clone());
    put!(metrics, "metrics", run.metrics.map(Some));
    let settings = flags.over(environment).over(file).over(delivered).settle();
    agree(&settings)?;
    if let Admin::Tcp { .. } = settings.admin.value
        && settings.admin_token_file.value.is_none()
    {
        return Err(Failure::usage(
            format!("The admin socket {} has no token", settings.admin.value),
            "Give a file with one by --admin-token-file FILE; `easynet secret new` makes one.",
        ));
    }
    Ok(settings)
}

/// Reads and checks a configuration file.
///
/// # Errors
/// All that is wrong with it, a line each.
pub fn read(path: &Path) -> Result<Partial, Failure> {
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(
            format!("Cannot read {}: {error}", path.display()),
            "Name a file that can be read.",
        )
    })?;
    config::parse(&text).map_err(|problems| {
        let lines: Vec<String> = problems.iter().map(|problem| format!("  {problem}")).collect();
        let count = if problems.len() == 1 {
            "1 problem".to_owned()
        } else {
            format!("{} problems", problems.len())
        };
        Failure::usage(
            format!("The file {} has {count}:\n{}\n", path.display(), lines.join("\n")),
            "Nothing was changed; mend the file and check it with `easynet config check`.",
        )
    })
}

/// Whether the values agree with each other.
///
/// # Errors
/// What does not.
pub fn agree(settings: &Settings) -> Result<(), Failure> {
    settings.agree().map_err(|Invalid(why)| Failure::usage(why, "See `easynet run --help`."))
}

/// The network's secret: of its file, else of `EASYNET_SECRET`.
///
/// # Errors
/// When there is none, or it cannot be read.
pub fn secret(settings: &Settings) -> Result<Secret, Failure> {
    let remedy =
        "Give it by --secret-file FILE or in EASYNET_SECRET; `easynet secret new` makes one.";
    let text = match &settings.secret_file.value {
        Some(path) if path.as_os_str() == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| {
                Failure::usage(format!("Cannot read the secret: {error}"), remedy)
            })?;
            text
        }
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::usage(format!("Cannot read the secret in {}: {error}", path.display()), remedy)
        })?,
        None => std::env::var("EASYNET_SECRET")
            .map_err(|_| Failure::usage("The network's secret is missing", remedy))?,
    };
    Secret::new(&text).map_err(|Invalid(why)| Failure::usage(why, remedy))
}

/// The token that opens an admin socket over TCP.
///
/// # Errors
/// When it cannot be read, or can be guessed.
pub fn token(path: &Path) -> Result<Secret, Failure> {
    let remedy = "Name a file with 16 characters or more; `easynet secret new` makes them.";
    let text = std::fs::read_to_string(path).map_err(|error| {
        Failure::usage(format!("Cannot read the token in {}: {error}", path.display()), remedy)
    })?;
    let short = || Failure::usage(format!("The token in {} is too short", path.display()), remedy);
    let token = Secret::new(&text).map_err(|_| short())?;
    if token.expose().len() < 16 {
        return Err(short());
    }
    Ok(token)
}

fn refuse(run: &Run) -> Result<(), Failure> {
    if run.secret.is_some() {
        return Err(Failure::usage(
            "A secret is never an argument, since every process can read those",
            "Write it to a file and give that by --secret-file FILE, or set EASYNET_SECRET.",
        ));
    }
    if run.userspace {
        return Err(Failure::usage("--userspace is not there yet", "Run with a TUN device."));
    }
    Ok(())
}

/// The configuration server to ask, if one is named.
///
/// # Errors
/// When its URL is none, a secret is named beside it (the server gives the keys), or there is no token in its file. That is
/// read again for each session.
pub fn config_server(run: &Run) -> Result<Option<FeedUrl>, Failure> {
    let Some(text) = &run.config_server else {
        if run.config_server_token_file.is_some() {
            return Err(Failure::usage(
                "There is a token for a configuration server and no server",
                "Name it by --config-server tcp://HOST:PORT/NETWORK?k=ROOT.",
            ));
        }
        return Ok(None);
    };
    if run.secret_file.is_some() {
        return Err(Failure::usage(
            "A node has its keys from the configuration server or from a secret, not from both",
            "Leave out --secret-file or --config-server.",
        ));
    }
    let url =
        text.parse().map_err(|Invalid(why)| Failure::usage(why, "See `easynet run --help`."))?;
    if let Some(path) = &run.config_server_token_file {
        let refused = |why: &str| {
            let remedy = "Name a file that has it by --config-server-token-file FILE; in a pod it is that of a projected \
                          serviceAccountToken.";
            Failure::usage(capital(why), remedy)
        };
        let token = source::feed::token(path).map_err(|why| refused(&why))?;
        if token.is_empty() {
            return Err(refused(&format!("there is no token in {}", path.display())));
        }
    }
    Ok(Some(url))
}

fn one<T: FromStr<Err = Invalid>>(text: Option<&str>) -> Result<Option<T>, Failure> {
    text.map(|text| {
        text.parse().map_err(|Invalid(why)| Failure::usage(why, "See `easynet run --help`."))
    })
    .transpose()
}

fn list<T: FromStr<Err = Invalid>>(texts: &[String]) -> Result<Option<Vec<T>>, Failure> {
    if texts.is_empty() {
        return Ok(None);
    }
    let parsed: Result<Vec<T>, Failure> = texts
        .iter()
        .map(|text| {
            text.trim()
                .parse()
                .map_err(|Invalid(why)| Failure::usage(why, "See `easynet run --help`."))
        })
        .collect();
    parsed.map(Some)
}
