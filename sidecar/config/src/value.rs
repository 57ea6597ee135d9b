//! Values that cannot be wrong once they exist.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use data_encoding::BASE32_NOPAD;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use zeroize::Zeroizing;

use crate::DEFAULT_PORT;

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

as_text!(PeerUrl, Listen, Address4, Address6, Mtu, P2p, Punch, ImportMode, Masquerade);

/// How to reach a peer or server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Scheme {
    Udp,
    Tcp,
}

/// `udp://host:port?k=…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerUrl {
    pub scheme: Scheme,
    pub host: String,
    pub port: u16,
    /// The 64 bytes of `?k=`: signing key, then Noise static key.
    pub keys: Option<[u8; 64]>,
}

impl FromStr for PeerUrl {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |why: &str| {
            Invalid(format!("{text:?} {why}; write udp://HOST:PORT or tcp://HOST:PORT"))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        let scheme = scheme_of(scheme).map_err(|why| wrong(&why))?;
        let (address, query) =
            rest.split_once('?').map_or((rest, ""), |(address, query)| (address, query));
        let (host, port) = split_port(address.trim_end_matches('/')).map_err(|why| wrong(&why))?;
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let mut keys = None;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("k", key)) => {
                    let bytes = BASE32_NOPAD
                        .decode(key.to_ascii_uppercase().as_bytes())
                        .unwrap_or_default();
                    let bytes = bytes.try_into().map_err(|_| {
                        wrong("has a ?k= that is no key: it is the base32 of 64 bytes that `easynet key show` prints")
                    })?;
                    keys = Some(bytes);
                }
                _ => return Err(wrong("has a query other than ?k=")),
            }
        }
        Ok(Self { scheme, host: host.to_owned(), port: port.unwrap_or(DEFAULT_PORT), keys })
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match self.scheme {
            Scheme::Udp => "udp",
            Scheme::Tcp => "tcp",
        };
        if self.host.contains(':') {
            write!(f, "{scheme}://[{}]:{}", self.host, self.port)?;
        } else {
            write!(f, "{scheme}://{}:{}", self.host, self.port)?;
        }
        match &self.keys {
            Some(keys) => write!(f, "?k={}", BASE32_NOPAD.encode(keys).to_ascii_lowercase()),
            None => Ok(()),
        }
    }
}

fn scheme_of(scheme: &str) -> Result<Scheme, String> {
    match scheme {
        "udp" => Ok(Scheme::Udp),
        "tcp" => Ok(Scheme::Tcp),
        "quic" | "ws" | "wss" | "txt" | "srv" => {
            Err(format!("uses {scheme}://, which is not there yet"))
        }
        _ => Err(format!("has the unknown scheme {scheme:?}")),
    }
}

fn split_port(address: &str) -> Result<(&str, Option<u16>), String> {
    let (host, port) = if let Some(rest) = address.strip_prefix('[') {
        let (host, after) = rest.split_once(']').ok_or("has no ] after its IPv6 address")?;
        (host, after.strip_prefix(':'))
    } else {
        match address.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("needs [ ] around its IPv6 address".to_owned());
            }
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        }
    };
    let Some(port) = port else { return Ok((host, None)) };
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host, Some(port))),
        _ => Err(format!("has the port {port:?}, which is not 1 to 65535")),
    }
}

/// Where to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// UDP and TCP on both families; 0 takes the first free one from [`crate::FIRST_FREE_PORT`] upwards.
    Port(u16),
    /// One carrier on one address.
    Url(Scheme, SocketAddr),
    None,
}

impl FromStr for Listen {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |why: &str| {
            Invalid(format!(
                "{text:?} {why}; write a port, udp://ADDRESS:PORT, tcp://ADDRESS:PORT or none"
            ))
        };
        if text == "none" {
            return Ok(Self::None);
        }
        if let Ok(port) = text.parse() {
            return Ok(Self::Port(port));
        }
        let (scheme, address) =
            text.split_once("://").ok_or_else(|| wrong("is no port and no URL"))?;
        let scheme = scheme_of(scheme).map_err(|why| wrong(&why))?;
        let address = address.parse().map_err(|_| wrong("has no ADDRESS:PORT"))?;
        Ok(Self::Url(scheme, address))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port(port) => write!(f, "{port}"),
            Self::Url(Scheme::Udp, address) => write!(f, "udp://{address}"),
            Self::Url(Scheme::Tcp, address) => write!(f, "tcp://{address}"),
            Self::None => f.write_str("none"),
        }
    }
}

/// Where the command line connects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Admin {
    /// A unix socket; its mode is the gate.
    Unix(PathBuf),
    /// TCP, for whoever has the token; port 0 takes the first free one from [`crate::FIRST_FREE_PORT`] upwards.
    Tcp { host: String, port: u16 },
}

impl Default for Admin {
    fn default() -> Self {
        Self::Unix(PathBuf::from("/run/easynet/easynet.sock"))
    }
}

impl FromStr for Admin {
    type Err = Invalid;

    /// What has a slash is a path, what ends in `:PORT` is not.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |why: &str| {
            Invalid(format!("the admin socket {text:?} {why}; write a path or HOST:PORT"))
        };
        if text.is_empty() {
            return Err(wrong("is empty"));
        }
        if text.contains('/') {
            return Ok(Self::Unix(PathBuf::from(text)));
        }
        let Some((host, port)) = text.rsplit_once(':') else {
            return Ok(Self::Unix(PathBuf::from(text)));
        };
        let port = port.parse().map_err(|_| wrong("has no port from 0 to 65535"))?;
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        Ok(Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

/// The mesh IPv4 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address4 {
    Auto,
    Off,
    Fixed(Ipv4Net),
}

/// The mesh IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address6 {
    Auto,
    Off,
    Fixed(Ipv6Net),
}

macro_rules! address {
    ($name:ident, $ip:ty, $net:ty, $length:literal, $family:literal) => {
        impl FromStr for $name {
            type Err = Invalid;

            fn from_str(text: &str) -> Result<Self, Invalid> {
                match text {
                    "auto" => return Ok(Self::Auto),
                    "off" => return Ok(Self::Off),
                    _ => {}
                }
                let net = match text.parse::<$ip>() {
                    Ok(address) => <$net>::new(address, $length).ok(),
                    Err(_) => text.parse().ok(),
                };
                net.map(Self::Fixed).ok_or_else(|| {
                    Invalid(format!(
                        concat!(
                            "{:?} is no ",
                            $family,
                            " address; write ADDRESS, ADDRESS/LENGTH, auto or off"
                        ),
                        text
                    ))
                })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    Self::Auto => f.write_str("auto"),
                    Self::Off => f.write_str("off"),
                    Self::Fixed(net) => write!(f, "{net}"),
                }
            }
        }
    };
}

address!(Address4, Ipv4Addr, Ipv4Net, 32, "IPv4");
address!(Address6, Ipv6Addr, Ipv6Net, 128, "IPv6");

/// MTU of the mesh, 1280 to 9000: below, IPv6 does not work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

impl Mtu {
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
            Ok(bytes) if (1280..=9000).contains(&bytes) => Ok(Self(bytes)),
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

/// A network reachable through this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", try_from = "RawExport")]
pub struct Export {
    pub cidr: IpNet,
    /// The network as the mesh sees it, mapped address by address; of the same family and length.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map_to: Option<IpNet>,
    pub masquerade: Masquerade,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawExport {
    cidr: IpNet,
    map_to: Option<IpNet>,
    #[serde(default)]
    masquerade: Masquerade,
}

impl TryFrom<RawExport> for Export {
    type Error = Invalid;

    fn try_from(raw: RawExport) -> Result<Self, Invalid> {
        Ok(Self { masquerade: raw.masquerade, ..Self::new(raw.cidr, raw.map_to)? })
    }
}

impl Export {
    /// # Errors
    /// When the two networks cannot be mapped onto each other.
    pub fn new(cidr: IpNet, map_to: Option<IpNet>) -> Result<Self, Invalid> {
        let (cidr, map_to) = (cidr.trunc(), map_to.map(|net| net.trunc()));
        if let Some(mapped) = map_to
            && (mapped.prefix_len() != cidr.prefix_len()
                || mapped.addr().is_ipv4() != cidr.addr().is_ipv4())
        {
            return Err(Invalid(format!(
                "{cidr} cannot be mapped to {mapped}: write a network of the same family and the same length"
            )));
        }
        Ok(Self { cidr, map_to, masquerade: Masquerade::default() })
    }

    /// The network as the mesh sees it.
    pub fn announced(&self) -> IpNet {
        self.map_to.unwrap_or(self.cidr)
    }
}

impl FromStr for Export {
    type Err = Invalid;

    /// `CIDR` or `CIDR=MAP`.
    fn from_str(text: &str) -> Result<Self, Invalid> {
        let net = |part: &str| {
            part.trim().parse::<IpNet>().map_err(|_| {
                Invalid(format!(
                    "the export {text:?} is no subnet; write one such as 10.42.0.0/24, or \
                     10.42.0.0/24=10.200.0.0/24 to map it"
                ))
            })
        };
        match text.split_once('=') {
            Some((cidr, map_to)) => Self::new(net(cidr)?, Some(net(map_to)?)),
            None => Self::new(net(text)?, None),
        }
    }
}

impl fmt::Display for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.cidr)?;
        if let Some(mapped) = self.map_to {
            write!(f, "={mapped}")?;
        }
        match self.masquerade {
            Masquerade::Inbound => Ok(()),
            other @ (Masquerade::Never | Masquerade::Always) => {
                write!(f, " (masquerade {other})")
            }
        }
    }
}

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

/// JSON Schema (draft 2020-12) of the configuration file.
pub fn schema() -> serde_json::Value {
    let text =
        |description: &str| serde_json::json!({"type": "string", "description": description});
    let object = |description: &str, properties: serde_json::Value| {
        serde_json::json!({
            "type": "object", "description": description,
            "additionalProperties": false, "properties": properties,
        })
    };
    let cidr = object(
        "a subnet reachable through this node",
        serde_json::json!({
            "cidr": text("the subnet, such as 10.42.0.0/24"),
            "mapTo": text("the subnet as the mesh sees it, of the same length, mapped address by address"),
            "masquerade": {"enum": ["inbound", "never", "always"], "description":
                "inbound: what comes from the mesh gets this host's address; never; always: in both directions"},
        }),
    );
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "easynet sidecar configuration",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind"],
        "properties": {
            "apiVersion": {"const": crate::API_VERSION},
            "kind": {"const": crate::KIND},
            "network": object("the network to join", serde_json::json!({
                "name": text("its name"),
                "secretFile": text("the file that holds its secret"),
                "range": text("where automatic IPv4 addresses come from"),
            })),
            "node": object("this node", serde_json::json!({
                "hostname": text("its name in the mesh; default the machine's"),
                "ipv4": text("ADDRESS[/LENGTH], auto or off"),
                "ipv6": text("ADDRESS[/LENGTH], auto or off"),
                "stateDir": text("keys and what is kept across restarts"),
                "tun": text("name of the TUN interface"),
            })),
            "listen": {"type": "array", "items": {"type": ["integer", "string"]},
                "description": "ports or URLs; a port means UDP and TCP on both families"},
            "peers": {"type": "array", "items": text("udp://HOST:PORT[?k=KEY]"),
                "description": "where to start"},
            "exports": {"type": "array", "items": cidr},
            "imports": object("what is taken of the prefixes that others announce", serde_json::json!({
                "mode": {"enum": ["all", "listed", "none"], "description":
                    "listed: only what lies within one of cidrs; addresses of members are always reachable"},
                "cidrs": {"type": "array", "items": text("a subnet such as 10.200.0.0/16")},
            })),
            "protected": {"type": "array", "items": text("a subnet such as 10.96.0.0/12"),
                "description": "never imported, whoever announces it"},
            "exempt": {"type": "array", "items": text("a subnet such as 10.42.0.0/16"),
                "description": "between these no other program on this host masquerades"},
            "transport": object("how packets travel", serde_json::json!({
                "mtu": {"type": "integer", "minimum": 1280, "maximum": 9000},
                "p2p": {"enum": ["on", "relay-only"]},
                "punch": {"enum": ["full", "light", "off"]},
            })),
            "roles": object("what this node does for others", serde_json::json!({
                "transit": {"type": "boolean", "description": "carry other members' traffic"},
            })),
            "admin": text("where the command line connects: a unix socket, or HOST:PORT with adminTokenFile"),
            "adminTokenFile": text("the file with the token that opens an admin socket over TCP"),
            "metrics": text("HOST:PORT of the metrics endpoint"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_say_what_is_wrong_with_them() {
        let url: PeerUrl = "udp://relay.example.com:1234".parse().unwrap();
        assert_eq!((url.host.as_str(), url.port, url.keys), ("relay.example.com", 1234, None));
        assert_eq!(
            "tcp://[2001:db8::1]".parse::<PeerUrl>().unwrap().to_string(),
            "tcp://[2001:db8::1]:11010"
        );
        for (text, expected) in [
            ("relay:1", "no scheme"),
            ("quic://relay", "not there yet"),
            ("smtp://relay", "unknown scheme"),
            ("udp://", "no host"),
            ("udp://a:99999", "not 1 to 65535"),
            ("udp://2001:db8::1", "needs [ ]"),
            ("udp://a?k=abc", "no key"),
        ] {
            let error = text.parse::<PeerUrl>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn a_secret_shows_nothing() {
        assert_eq!(format!("{:?}", Secret::new(" hunter2\n").unwrap()), "Secret(…)");
        assert!(Secret::new("  \n").is_err());
    }

    #[test]
    fn listeners_mtus_and_addresses_parse() {
        assert_eq!("0".parse(), Ok(Listen::Port(0)));
        assert_eq!("none".parse(), Ok(Listen::None));
        assert!("udp://[::]:5".parse::<Listen>().is_ok());
        assert!("70000".parse::<Listen>().is_err());
        assert!("1279".parse::<Mtu>().is_err());
        assert_eq!("10.1.2.3".parse(), Ok(Address4::Fixed("10.1.2.3/32".parse().unwrap())));
        assert!("fd00::1".parse::<Address4>().is_err());
        assert_eq!("off".parse(), Ok(Address6::Off));
    }

    #[test]
    fn an_admin_socket_is_a_path_or_a_host_and_port() {
        let tcp = |host: &str, port| Ok(Admin::Tcp { host: host.to_owned(), port });
        assert_eq!("/run/a:b".parse(), Ok(Admin::Unix("/run/a:b".into())));
        assert_eq!("sock".parse(), Ok(Admin::Unix("sock".into())));
        assert_eq!("localhost:0".parse(), tcp("localhost", 0));
        assert_eq!("[::1]:5".parse(), tcp("::1", 5));
        assert_eq!("[::1]:5".parse::<Admin>().unwrap().to_string(), "[::1]:5");
        for wrong in ["", "host:", ":5", "host:70000"] {
            assert!(wrong.parse::<Admin>().is_err(), "{wrong}");
        }
    }
}
