//! Where things are: peers, listeners, the admin socket.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use data_encoding::BASE32_NOPAD;

use super::{Invalid, name::is_dns_name};
use crate::DEFAULT_PORT;

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
        check_host(host).map_err(|why| wrong(&why))?;
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

fn check_host(host: &str) -> Result<(), String> {
    if host.is_empty() {
        return Err("names no host".to_owned());
    }
    let is_address = host.parse::<IpAddr>().is_ok();
    if host.contains(':') && !is_address {
        return Err(format!("has the host {host:?}, which is no IPv6 address"));
    }
    if is_address || is_dns_name(host) {
        return Ok(());
    }
    Err(format!("has the host {host:?}, which is neither an address nor a name"))
}

/// The host of a public server's own URL: a name or an address, without brackets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicHost(String);

impl FromStr for PublicHost {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let host = bare.filter(|bare| bare.parse::<Ipv6Addr>().is_ok()).unwrap_or(text);
        match check_host(host) {
            Ok(()) => Ok(Self(host.to_owned())),
            Err(_) => Err(Invalid(format!(
                "{text:?} is no host; write a name such as relay.example.com, or an address"
            ))),
        }
    }
}

impl From<IpAddr> for PublicHost {
    fn from(address: IpAddr) -> Self {
        Self(address.to_string())
    }
}

impl fmt::Display for PublicHost {
    /// As a URL has it: an IPv6 address in brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.contains(':') { write!(f, "[{}]", self.0) } else { f.write_str(&self.0) }
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
            ("udp://[fe80::1%eth0]:1", "no IPv6 address"),
            ("udp://a b:1", "neither an address nor a name"),
            ("udp://-relay", "neither an address nor a name"),
            ("udp://a?k=abc", "no key"),
        ] {
            let error = text.parse::<PeerUrl>().unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn listeners_parse() {
        assert_eq!("0".parse(), Ok(Listen::Port(0)));
        assert_eq!("none".parse(), Ok(Listen::None));
        assert!("udp://[::]:5".parse::<Listen>().is_ok());
        assert!("70000".parse::<Listen>().is_err());
    }

    #[test]
    fn a_public_host_is_what_a_url_can_hold() {
        for (text, shown) in [
            ("relay.example.com", "relay.example.com"),
            ("192.0.2.1", "192.0.2.1"),
            ("2001:db8::1", "[2001:db8::1]"),
            ("[2001:db8::1]", "[2001:db8::1]"),
        ] {
            assert_eq!(text.parse::<PublicHost>().unwrap().to_string(), shown);
        }
        for wrong in ["", "a b", "relay:5", "udp://relay", "[relay]", "relay/"] {
            assert!(wrong.parse::<PublicHost>().is_err(), "{wrong}");
        }
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
