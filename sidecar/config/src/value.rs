//! Values that cannot be wrong once they exist.

mod endpoint;
mod name;
mod net;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

pub use self::{
    endpoint::{Admin, Listen, PeerUrl, PublicHost, Scheme},
    name::{Hostname, TunName},
    net::{Address4, Address6, Export, MeshRange, is_never_imported},
};

/// A sentence about what is wrong with a text, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// A scalar as people write it: `11010` and `"11010"` are the same.
#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Number(u64),
    Text(String),
}

/// What is written as text, and read from a text or a number.
macro_rules! as_text {
    ($($name:ty),+ $(,)?) => {$(
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = match Scalar::deserialize(deserializer)? {
                    Scalar::Number(number) => number.to_string(),
                    Scalar::Text(text) => text,
                };
                text.parse().map_err(D::Error::custom)
            }
        }
    )+};
}

as_text!(
    PeerUrl, Listen, Address4, Address6, MeshRange, Hostname, TunName, Mtu, P2p, Punch, ImportMode,
    Masquerade,
);

/// MTU of the mesh, 1280 to 9000: below, IPv6 does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
    /// Carried by every underlay that carries IPv6 (RFC 8200 §5), in pieces if need be.
    pub const LEAST: Self = Self(1280);

    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl Default for Mtu {
    /// Fits every underlay of 1441 bytes and more, relayed too.
    fn default() -> Self {
        Self(1320)
    }
}

impl FromStr for Mtu {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        match text.parse() {
            Ok(bytes) if (Self::LEAST.0..=9000).contains(&bytes) => Ok(Self(bytes)),
            _ => Err(Invalid(format!("the MTU {text:?} is not between 1280 and 9000"))),
        }
    }
}

impl fmt::Display for Mtu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident, $what:literal, $($(#[$about:meta])* $variant:ident = $text:literal),+) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$about])* $variant),+
        }

        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                match text {
                    $($text => Ok(Self::$variant),)+
                    _ => Err(Invalid(format!(
                        concat!($what, " is {:?}; write ", choice!(@list $($text),+)),
                        text
                    ))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self {
                    $(Self::$variant => $text),+
                })
            }
        }
    };
    (@list $first:literal $(, $more:literal)*) => { concat!($first $(, " or ", $more)*) };
}

choice!(
    /// Whether direct paths are sought.
    P2p, "p2p", On = "on", RelayOnly = "relay-only"
);
choice!(
    /// How much effort goes into a direct path.
    Punch, "punch", Full = "full", Light = "light", Off = "off"
);
choice!(
    /// Which of the prefixes that others announce are taken.
    #[derive(Default)]
    ImportMode, "the mode of imports",
    #[default] All = "all", Listed = "listed", None = "none"
);
choice!(
    /// Whose address packets between an exported network and the mesh carry.
    #[derive(Default)]
    Masquerade, "masquerade",
    /// What comes from the mesh gets this host's address in the network, which then needs no route back.
    #[default] Inbound = "inbound",
    /// Both sides see each other's addresses.
    Never = "never",
    /// As `Inbound`; and what goes into the mesh gets this node's mesh address, so that members which do not import
    /// the network can answer it.
    Always = "always"
);

/// A secret that shows nothing of itself and is zeroised.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    /// Surrounding white space, such as the last line's end, is not part of it.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let text = text.trim();
        if text.is_empty() {
            return Err(Invalid(
                "the secret is empty; make one with `easynet secret new`".to_owned(),
            ));
        }
        Ok(Self(Zeroizing::new(text.to_owned())))
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new(" hunter2\n").unwrap()), "Secret(…)");
        assert!(Secret::new("  \n").is_err());
    }

    #[test]
    fn mtus_have_bounds() {
        assert!("1279".parse::<Mtu>().is_err());
        assert_eq!("9000".parse::<Mtu>().map(Mtu::bytes), Ok(9000));
    }
}
