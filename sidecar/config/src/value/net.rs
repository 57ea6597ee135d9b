//! Addresses and ranges.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::{Invalid, Masquerade};

/// Ranges that no node takes from another: they mean this host, this link or everything.
const NEVER: [&str; 7] = [
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "0.0.0.0/8",
    "::/127",
    "fe80::/10",
    "ff00::/8",
];

/// Whether no node ever imports this range, whoever announces it: a default route, loopback, link-local, multicast.
pub fn is_never_imported(range: IpNet) -> bool {
    let overlaps = |never: IpNet| never.contains(&range) || range.contains(&never);
    range.prefix_len() == 0 || NEVER.iter().filter_map(|never| never.parse().ok()).any(overlaps)
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
                let net = net.ok_or_else(|| {
                    Invalid(format!(
                        concat!(
                            "{:?} is no ",
                            $family,
                            " address; write ADDRESS, ADDRESS/LENGTH, auto or off"
                        ),
                        text
                    ))
                })?;
                check_address(net.into(), text)?;
                Ok(Self::Fixed(net))
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

fn check_address(net: IpNet, text: &str) -> Result<(), Invalid> {
    let one = IpNet::from(net.addr());
    let broadcast = IpNet::new_assert(Ipv4Addr::BROADCAST.into(), 32);
    if is_never_imported(one) || one == broadcast {
        return Err(Invalid(format!(
            "{text:?} cannot be a node's address: loopback, link-local, multicast and broadcast addresses are not carried; \
             write one of your own, such as 100.112.0.7 or fd00::7"
        )));
    }
    // RFC 3021 and RFC 6164: where there are two addresses, both are hosts.
    let has_ends = net.prefix_len() + 1 < net.max_prefix_len();
    let is_end =
        net.addr() == net.network() || net.addr().is_ipv4() && net.addr() == net.broadcast();
    if has_ends && is_end {
        return Err(Invalid(format!(
            "{text:?} is the range itself, not an address in it; write a host's address"
        )));
    }
    Ok(())
}

/// Where automatic IPv4 addresses come from: a range of /8 to /30.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeshRange(Ipv4Net);

impl MeshRange {
    pub fn net(self) -> Ipv4Net {
        self.0
    }
}

impl Default for MeshRange {
    /// In the range for carriers (RFC 6598), which sites do not use themselves.
    fn default() -> Self {
        Self(Ipv4Net::new_assert(Ipv4Addr::new(100, 112, 0, 0), 16))
    }
}

impl FromStr for MeshRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let wrong = |why: &str| {
            Invalid(format!(
                "the range {text:?} {why}; write an IPv4 range of /8 to /30 such as 100.112.0.0/16"
            ))
        };
        let net: Ipv4Net = text.parse().map_err(|_| wrong("is none"))?;
        if net != net.trunc() {
            return Err(wrong(&format!("is one address of {}", net.trunc())));
        }
        if !(8..=30).contains(&net.prefix_len()) {
            return Err(wrong("has the wrong size"));
        }
        if is_never_imported(net.into()) {
            return Err(wrong("holds addresses that no node can have"));
        }
        Ok(Self(net))
    }
}

impl fmt::Display for MeshRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

address!(Address4, Ipv4Addr, Ipv4Net, 32, "IPv4");
address!(Address6, Ipv6Addr, Ipv6Net, 128, "IPv6");

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
    /// When one of the networks is none that others import, or they cannot be mapped onto each other.
    pub fn new(cidr: IpNet, map_to: Option<IpNet>) -> Result<Self, Invalid> {
        for net in [Some(cidr), map_to].into_iter().flatten() {
            check_export(net)?;
        }
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

fn check_export(net: IpNet) -> Result<(), Invalid> {
    if net != net.trunc() {
        return Err(Invalid(format!(
            "{net} is one address of a subnet; write {} for the subnet, or {} for the address",
            net.trunc(),
            IpNet::from(net.addr())
        )));
    }
    if is_never_imported(net) {
        return Err(Invalid(format!(
            "{net} cannot be exported: no member accepts a default route, loopback, link-local or multicast range from another"
        )));
    }
    Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_a_nodes_own() {
        assert_eq!("10.1.2.3".parse(), Ok(Address4::Fixed("10.1.2.3/32".parse().unwrap())));
        assert!("10.1.2.3/24".parse::<Address4>().is_ok());
        assert!("10.1.2.4/31".parse::<Address4>().is_ok());
        assert_eq!("off".parse(), Ok(Address6::Off));
        for wrong in [
            "fd00::1",
            "127.0.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "169.254.169.254",
            "255.255.255.255",
            "10.1.2.0/24",
            "10.1.2.255/24",
        ] {
            assert!(wrong.parse::<Address4>().is_err(), "{wrong}");
        }
        for wrong in ["10.1.2.3", "::1", "::", "fe80::1", "ff02::1", "fd00::/64"] {
            assert!(wrong.parse::<Address6>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_range_has_room() {
        assert!("10.0.0.0/8".parse::<MeshRange>().is_ok());
        assert!("10.1.2.4/30".parse::<MeshRange>().is_ok());
        for (wrong, why) in [
            ("10.1.2.4/31", "wrong size"),
            ("0.0.0.0/0", "wrong size"),
            ("10.1.2.3/24", "one address of 10.1.2.0/24"),
            ("127.0.0.0/8", "no node can have"),
            ("fd00::/48", "is none"),
        ] {
            let error = wrong.parse::<MeshRange>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn exports_are_subnets_that_others_take() {
        assert!("10.42.0.0/24=10.200.0.0/24".parse::<Export>().is_ok());
        assert!("192.168.7.9/32".parse::<Export>().is_ok());
        for (wrong, why) in [
            ("10.42.0.5/24", "write 10.42.0.0/24 for the subnet, or 10.42.0.5/32"),
            ("10.42.0.0/24=10.200.0.1/24", "one address of a subnet"),
            ("0.0.0.0/0", "cannot be exported"),
            ("127.0.0.0/8", "cannot be exported"),
            ("fe80::/64", "cannot be exported"),
            ("10.42.0.0/24=10.200.0.0/16", "same length"),
        ] {
            let error = wrong.parse::<Export>().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
