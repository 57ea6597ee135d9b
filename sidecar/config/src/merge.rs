//! What each source says, and what is in force.

use std::{fmt, path::PathBuf};

use ipnet::IpNet;

use crate::{
    sidecar::Imports,
    value::{
        Address4, Address6, Admin, Export, Hostname, Invalid, Listen, MeshRange, Mtu, P2p, PeerUrl,
        Punch, TunName,
    },
};

/// Where a value came from; a later one beats an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Default,
    /// A configuration server.
    Server,
    File,
    Environment,
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Default => "default",
            Self::Server => "server",
            Self::File => "file",
            Self::Environment => "environment",
            Self::Flag => "flag",
        })
    }
}

/// A value and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sourced<T> {
    pub value: T,
    pub origin: Origin,
}

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $default:expr,)*) => {
        /// What one source says; what it does not say is `None`.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Partial {
            $($(#[$doc])* pub $name: Option<Sourced<$type>>,)*
        }

        /// What is in force, and where each value came from.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Settings {
            $($(#[$doc])* pub $name: Sourced<$type>,)*
        }

        impl Partial {
            /// This source's values over those of `lower`.
            #[must_use]
            pub fn over(self, lower: Self) -> Self {
                Self { $($name: self.$name.or(lower.$name),)* }
            }

            /// Fills what nobody said with the defaults.
            pub fn settle(self) -> Settings {
                Settings {
                    $($name: self.$name.unwrap_or_else(|| Sourced { value: $default, origin: Origin::Default }),)*
                }
            }
        }
    };
}

settings! {
    network: Option<String> = None,
    /// `-` is standard input.
    secret_file: Option<PathBuf> = None,
    range: MeshRange = MeshRange::default(),
    hostname: Option<Hostname> = None,
    ipv4: Address4 = Address4::Auto,
    ipv6: Address6 = Address6::Auto,
    state_dir: PathBuf = PathBuf::from("/var/lib/easynet"),
    tun: TunName = TunName::default(),
    listen: Vec<Listen> = vec![Listen::Port(crate::DEFAULT_PORT)],
    peers: Vec<PeerUrl> = Vec::new(),
    exports: Vec<Export> = Vec::new(),
    imports: Imports = Imports::default(),
    /// Never imported, whoever announces it.
    protected: Vec<IpNet> = Vec::new(),
    /// Between these no other program on the host masquerades.
    exempt: Vec<IpNet> = Vec::new(),
    mtu: Mtu = Mtu::default(),
    p2p: P2p = P2p::On,
    punch: Punch = Punch::Full,
    transit: bool = false,
    admin: Admin = Admin::default(),
    /// Opens an admin socket over TCP.
    admin_token_file: Option<PathBuf> = None,
    metrics: Option<std::net::SocketAddr> = None,
}

impl Settings {
    /// Whether the values agree with each other.
    ///
    /// # Errors
    /// What does not, and what to write instead.
    pub fn agree(&self) -> Result<(), Invalid> {
        let listen = &self.listen.value;
        if listen.len() > 1 && listen.contains(&Listen::None) {
            return Err(Invalid(
                "listen is none and something else; write one or the other".into(),
            ));
        }
        // What a server delivers was weighed by it, with what else the network has.
        if self.exports.origin == Origin::Server {
            return Ok(());
        }
        let range = match self.ipv4.value {
            Address4::Fixed(net) if net.prefix_len() < 32 => net.trunc(),
            Address4::Fixed(_) | Address4::Auto | Address4::Off => self.range.value.net(),
        };
        let mut announced: Vec<IpNet> = Vec::new();
        for export in &self.exports.value {
            let net = export.announced();
            if announced.contains(&net) {
                return Err(Invalid(format!("{net} is exported twice; write each export once")));
            }
            if net.contains(&IpNet::from(range)) || IpNet::from(range).contains(&net) {
                return Err(Invalid(format!(
                    "the export {net} overlaps {range}, the mesh's own range: map it by {}=NETWORK, or choose another --range",
                    export.cidr
                )));
            }
            announced.push(net);
        }
        Ok(())
    }

    /// Key, value and origin of everything, for `easynet config show`. No secret is among them.
    pub fn rows(&self) -> Vec<(&'static str, serde_json::Value, Origin)> {
        fn list<T: fmt::Display>(items: &[T]) -> serde_json::Value {
            items.iter().map(ToString::to_string).collect()
        }
        vec![
            ("network.name", self.network.value.clone().into(), self.network.origin),
            (
                "network.secretFile",
                self.secret_file.value.as_ref().map(|path| path.display().to_string()).into(),
                self.secret_file.origin,
            ),
            ("network.range", self.range.value.to_string().into(), self.range.origin),
            (
                "node.hostname",
                self.hostname.value.as_ref().map(Hostname::as_str).into(),
                self.hostname.origin,
            ),
            ("node.ipv4", self.ipv4.value.to_string().into(), self.ipv4.origin),
            ("node.ipv6", self.ipv6.value.to_string().into(), self.ipv6.origin),
            (
                "node.stateDir",
                self.state_dir.value.display().to_string().into(),
                self.state_dir.origin,
            ),
            ("node.tun", self.tun.value.as_str().into(), self.tun.origin),
            ("listen", list(&self.listen.value), self.listen.origin),
            ("peers", list(&self.peers.value), self.peers.origin),
            ("exports", list(&self.exports.value), self.exports.origin),
            ("imports.mode", self.imports.value.mode.to_string().into(), self.imports.origin),
            ("imports.cidrs", list(&self.imports.value.cidrs), self.imports.origin),
            ("protected", list(&self.protected.value), self.protected.origin),
            ("exempt", list(&self.exempt.value), self.exempt.origin),
            ("transport.mtu", self.mtu.value.bytes().into(), self.mtu.origin),
            ("transport.p2p", self.p2p.value.to_string().into(), self.p2p.origin),
            ("transport.punch", self.punch.value.to_string().into(), self.punch.origin),
            ("roles.transit", self.transit.value.into(), self.transit.origin),
            ("admin", self.admin.value.to_string().into(), self.admin.origin),
            (
                "adminTokenFile",
                self.admin_token_file.value.as_ref().map(|path| path.display().to_string()).into(),
                self.admin_token_file.origin,
            ),
            (
                "metrics",
                self.metrics.value.map(|addr| addr.to_string()).into(),
                self.metrics.origin,
            ),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_contradict_each_other_are_told() {
        let of = |exports: &[&str], listen: &[&str]| {
            let partial = Partial {
                exports: Some(Sourced {
                    value: exports.iter().map(|text| text.parse().unwrap()).collect(),
                    origin: Origin::Flag,
                }),
                listen: Some(Sourced {
                    value: listen.iter().map(|text| text.parse().unwrap()).collect(),
                    origin: Origin::Flag,
                }),
                ..Partial::default()
            };
            partial.settle().agree().map_err(|Invalid(why)| why).err().unwrap_or_default()
        };
        assert_eq!(of(&["10.9.0.0/24=10.8.0.0/24", "10.7.0.0/24"], &["5", "6"]), "");
        assert!(of(&["10.9.0.0/24=10.8.0.0/24", "10.8.0.0/24"], &[]).contains("exported twice"));
        assert!(of(&["100.112.7.0/24"], &[]).contains("the mesh's own range"));
        assert!(of(&["100.64.0.0/10"], &[]).contains("the mesh's own range"));
        assert!(of(&[], &["none", "5"]).contains("one or the other"));
    }

    #[test]
    fn a_flag_beats_the_environment_which_beats_the_file() {
        let say = |name: &str, origin| Partial {
            tun: Some(Sourced { value: name.parse().unwrap(), origin }),
            ..Partial::default()
        };
        let file = Partial {
            transit: Some(Sourced { value: true, origin: Origin::File }),
            ..say("f", Origin::File)
        };

        let settings =
            say("c", Origin::Flag).over(say("b", Origin::Environment)).over(file).settle();

        assert_eq!(settings.tun, Sourced { value: "c".parse().unwrap(), origin: Origin::Flag });
        assert_eq!(settings.transit.origin, Origin::File);
        assert_eq!(settings.mtu.origin, Origin::Default);
    }
}
