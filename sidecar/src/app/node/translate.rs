//! What the settings mean to the engine, to the host, and to whoever asks.

use std::{sync::Arc, time::SystemTime};

use config::{Address4, Address6, Hostname, ImportMode, Scheme, Settings};
use engine::config::{Bootstrap, Config, Imports, Ipv4Policy, Ipv6Policy, P2p, PunchMode};
use netio::{driver::Name, nft};
use session::identity::Identity;
use wire::{endpoint::Transport, id::NodeKeys};

use super::{super::aead, Member};
use crate::{
    source::Standing,
    state::State,
    view::{Applied, Start},
};

pub(super) fn translate(
    settings: &Settings,
    identity: &Arc<Identity>,
    member: &Member,
    state: &State,
    hostname: &Hostname,
    (boot, unix): (u32, u64),
) -> Config {
    let capabilities =
        if settings.transit.value { wire::certificate::CAPABILITY_TRANSIT } else { 0 };
    let Standing { membership, records } =
        member.standing(identity, hostname.as_str(), capabilities);
    Config {
        identity: Arc::clone(identity),
        membership,
        records,
        boot,
        hostname: hostname.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ipv4: match settings.ipv4.value {
            Address4::Off => Ipv4Policy::Off,
            Address4::Fixed(net) => Ipv4Policy::Fixed(net),
            Address4::Auto => {
                Ipv4Policy::Auto { range: settings.range.value.net(), kept: state.claim() }
            }
        },
        ipv6: match settings.ipv6.value {
            Address6::Off => Ipv6Policy::Off,
            Address6::Fixed(net) => Ipv6Policy::Fixed(net),
            Address6::Auto => Ipv6Policy::Auto,
        },
        exports: settings.exports.value.iter().map(config::Export::announced).collect(),
        behind: settings
            .exports
            .value
            .iter()
            .filter(|export| export.map_to.is_some())
            .map(|export| export.cidr)
            .collect(),
        imports: match settings.imports.value.mode {
            ImportMode::All => Imports::All,
            ImportMode::Listed => Imports::Listed(settings.imports.value.cidrs.clone()),
            ImportMode::None => Imports::None,
        },
        protected: settings.protected.value.clone(),
        bootstrap: settings
            .peers
            .value
            .iter()
            .map(|peer| Bootstrap {
                transport: match peer.scheme {
                    Scheme::Udp => Transport::Udp,
                    Scheme::Tcp => Transport::Tcp,
                },
                keys: peer.keys.as_ref().and_then(|keys| NodeKeys::from_slice(keys)),
            })
            .collect(),
        mtu: settings.mtu.value.bytes(),
        transit: settings.transit.value,
        p2p: match settings.p2p.value {
            config::P2p::On => P2p::On,
            config::P2p::RelayOnly => P2p::RelayOnly,
        },
        punch: match settings.punch.value {
            config::Punch::Full => PunchMode::Full,
            config::Punch::Light => PunchMode::Light,
            config::Punch::Off => PunchMode::Off,
        },
        aead: aead(),
        unix_at_start: unix,
    }
}

/// How addresses change between the mesh and what is behind this node.
pub(super) fn translation(settings: &Settings) -> nft::Translation {
    let exports = settings.exports.value.iter().map(|export| nft::Export {
        prefix: export.cidr,
        mapped: export.map_to,
        masquerade: match export.masquerade {
            config::Masquerade::Inbound => nft::Masquerade::Inbound,
            config::Masquerade::Never => nft::Masquerade::Never,
            config::Masquerade::Always => nft::Masquerade::Always,
        },
    });
    nft::Translation { exports: exports.collect(), exempt: settings.exempt.value.clone() }
}

pub(super) fn names(settings: &Settings) -> Vec<Name> {
    settings
        .peers
        .value
        .iter()
        .map(|peer| Name { host: peer.host.clone(), port: peer.port })
        .collect()
}

/// What `easynet config show` and `status` tell of the settings in force.
pub(super) fn applied(settings: &Settings, revision: u64) -> Applied {
    let rows = settings.rows().into_iter().map(
        |(key, value, origin)| serde_json::json!({"key": key, "value": value, "origin": origin.to_string()}),
    );
    let starts = settings.peers.value.iter().map(|peer| {
        let url = config::PeerUrl { keys: None, ..peer.clone() }.to_string();
        Start { url, peer: peer.clone() }
    });
    Applied { revision, at: SystemTime::now(), settings: rows.collect(), starts: starts.collect() }
}
