//! Where a node's configuration comes from when it is not a file: a configuration server.
//!
//! ```text
//! feed     keeps the session: dials, proves who the node is, takes what is delivered, tells how it is
//! kept     what was delivered last, on disk: a node starts from it when no server answers
//! report   looks how the node is
//! confirm  takes a configuration back that cut the node off
//! trace    what of a change's trace happens here
//! ```
//! Keys, certificates and the network's records are applied as they come and never taken back; only the
//! configuration is tried.

pub mod confirm;
pub mod feed;
pub mod kept;
pub mod report;
pub mod trace;

use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use data_encoding::BASE32_NOPAD;
use rpc::feed::Desired;
use session::{
    certificate::{self, Untrusted},
    membership::{EpochKeys, Membership},
};
use wire::id::{NetworkId, NodeKeys, SignKey};
use zeroize::Zeroize;

/// Where a configuration server listens if its URL does not say.
const PORT: u16 = 22020;

/// `tcp://HOST:PORT/NETWORK?k=ROOT`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeedUrl {
    pub host: String,
    pub port: u16,
    /// What the server calls the network.
    pub network: String,
    /// Signs the server's keys.
    pub root: SignKey,
}

impl FromStr for FeedUrl {
    type Err = config::Invalid;

    fn from_str(text: &str) -> Result<Self, config::Invalid> {
        let wrong = |why: &str| {
            config::Invalid(format!(
                "the configuration server {text:?} {why}; write tcp://HOST:PORT/NETWORK?k=ROOT"
            ))
        };
        let (scheme, rest) = text.split_once("://").ok_or_else(|| wrong("has no scheme"))?;
        match scheme {
            "tcp" => {}
            "udp" | "ws" | "wss" => {
                return Err(wrong(&format!("uses {scheme}://, which is not there yet")));
            }
            _ => return Err(wrong(&format!("has the unknown scheme {scheme:?}"))),
        }
        let (place, query) = rest.split_once('?').ok_or_else(|| wrong("has no ?k="))?;
        let (address, network) = place.split_once('/').ok_or_else(|| wrong("names no network"))?;
        if network.is_empty() || network.contains('/') {
            return Err(wrong("names no network"));
        }
        let (host, port) = match address.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && !port.contains(']') => {
                let port = port.parse().ok().filter(|port| *port > 0);
                (host, port.ok_or_else(|| wrong("has a port that is not 1 to 65535"))?)
            }
            Some(_) | None => (address, PORT),
        };
        let host = host.trim_matches(['[', ']']);
        if host.is_empty() {
            return Err(wrong("names no host"));
        }
        let root = query
            .strip_prefix("k=")
            .and_then(|key| BASE32_NOPAD.decode(key.to_ascii_uppercase().as_bytes()).ok())
            .and_then(|bytes| SignKey::from_slice(&bytes))
            .ok_or_else(|| wrong("has a ?k= that is no root: it is the base32 of 32 bytes"))?;
        Ok(Self { host: host.to_owned(), port, network: network.to_owned(), root })
    }
}

impl fmt::Display for FeedUrl {
    /// Without the key, which only fills the line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "tcp://[{}]:{}/{}", self.host, self.port, self.network)
        } else {
            write!(f, "tcp://{}:{}/{}", self.host, self.port, self.network)
        }
    }
}

/// What makes this node a member, as a server delivered it: checked.
#[derive(Clone, Debug)]
pub struct Standing {
    pub membership: Arc<Membership>,
    pub records: Vec<Bytes>,
}

/// Why what was delivered makes this node no member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    #[error("the network's root key is missing")]
    NoRoot,
    #[error("the certificate {0}")]
    Certificate(Untrusted),
    #[error("the attributes: {0}")]
    Attributes(Untrusted),
    #[error("it is of another network than before: this node was a member of {0}")]
    OtherNetwork(NetworkId),
    #[error("there are no keys")]
    NoKeys,
}

impl Standing {
    /// Reads certificate, keys and records; `before` is the network that this node is a member of, if it is of one:
    /// what names it to others cannot change while it runs.
    ///
    /// # Errors
    /// Whatever does not fit, and nothing of it is used.
    pub fn read(
        desired: &Desired,
        me: &NodeKeys,
        before: Option<NetworkId>,
        unix: u64,
    ) -> Result<Self, Unfit> {
        let root = SignKey::from_slice(&desired.root).ok_or(Unfit::NoRoot)?;
        let network = NetworkId::of(&root);
        if let Some(before) = before.filter(|before| *before != network) {
            return Err(Unfit::OtherNetwork(before));
        }
        let malformed = Unfit::Certificate(Untrusted::Malformed);
        let signed = desired.certificate.clone().ok_or(malformed)?;
        let certified = certificate::check(&signed, network, unix).map_err(Unfit::Certificate)?;
        if certified.keys != *me {
            return Err(Unfit::Certificate(Untrusted::WrongKey));
        }
        let attributes =
            desired.attributes.clone().ok_or(Unfit::Attributes(Untrusted::Malformed))?;
        certificate::check_attributes(&attributes, &root, &me.sign, unix)
            .map_err(Unfit::Attributes)?;
        let epochs: BTreeMap<u32, EpochKeys> = desired
            .epochs
            .iter()
            .filter_map(|keys| {
                let psk = keys.psk.as_slice().try_into().ok()?;
                let group = keys.group.as_slice().try_into().ok()?;
                Some((keys.epoch, EpochKeys { psk, group }))
            })
            .collect();
        if epochs.is_empty() {
            return Err(Unfit::NoKeys);
        }
        let membership = Membership { network, root, certificate: signed, attributes, epochs };
        let records = desired.records.iter().map(|record| Bytes::from(record.clone())).collect();
        Ok(Self { membership: Arc::new(membership), records })
    }

    /// The key epochs that it has.
    pub fn epochs(&self) -> Vec<u32> {
        self.membership.epochs.keys().copied().collect()
    }
}

/// Overwrites the keys in a message before it is dropped.
pub fn wipe(desired: &mut Desired) {
    for keys in &mut desired.epochs {
        keys.psk.zeroize();
        keys.group.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
    use rpc::feed::Epoch;
    use session::{identity::Identity, issuer::Issuer};
    use wire::certificate::Attributes;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_url_names_server_network_and_root() {
        let root = SignKey([7; 32]);
        let url: FeedUrl = format!("tcp://10.96.0.7:22020/prod?k={root}").parse().unwrap();
        assert_eq!(
            (url.host.as_str(), url.port, url.network.as_str()),
            ("10.96.0.7", 22020, "prod")
        );
        assert_eq!(url.root, root);
        let six: FeedUrl = format!("tcp://[fd00::1]:5/prod?k={root}").parse().unwrap();
        assert_eq!((six.host.as_str(), six.port), ("fd00::1", 5));
        assert_eq!(six.to_string(), "tcp://[fd00::1]:5/prod");
        let bare: FeedUrl = format!("tcp://feed.example/prod?k={root}").parse().unwrap();
        assert_eq!(bare.port, PORT);

        for (text, part) in [
            ("10.96.0.7/prod", "no scheme"),
            ("udp://h/prod?k=a", "not there yet"),
            ("tcp://h:22020?k=a", "names no network"),
            ("tcp://h/prod", "no ?k="),
            ("tcp://h/prod?k=abc", "no root"),
            ("tcp://h:0/prod?k=abc", "1 to 65535"),
            ("tcp:///prod?k=abc", "no host"),
        ] {
            let config::Invalid(why) = text.parse::<FeedUrl>().unwrap_err();
            assert!(why.contains(part), "{text}: {why}");
        }
    }

    #[test]
    fn only_what_makes_this_node_a_member_is_taken() {
        let issuer = Issuer::generate(&mut ChaCha12Rng::from_seed([1; 32]));
        let me = Identity::from_bytes(&[1; 64]).keys();
        let member = issuer.membership(me, &Attributes::default(), 0, [3], NOW);
        let good = Desired {
            root: issuer.root().0.to_vec(),
            certificate: Some(member.certificate.clone()),
            attributes: Some(member.attributes.clone()),
            epochs: vec![Epoch { epoch: 3, psk: vec![1; 32], group: vec![2; 32] }],
            ..Desired::default()
        };
        assert_eq!(Standing::read(&good, &me, None, NOW).unwrap().epochs(), [3]);
        assert!(Standing::read(&good, &me, Some(issuer.network()), NOW).is_ok());

        let other = Identity::from_bytes(&[2; 64]).keys();
        let foreign = NetworkId([0; 16]);
        let expected = [
            (Desired { root: vec![], ..good.clone() }, me, None, Unfit::NoRoot),
            (good.clone(), me, Some(foreign), Unfit::OtherNetwork(foreign)),
            (good.clone(), other, None, Unfit::Certificate(Untrusted::WrongKey)),
            (Desired { epochs: vec![], ..good.clone() }, me, None, Unfit::NoKeys),
            (
                Desired { attributes: None, ..good },
                me,
                None,
                Unfit::Attributes(Untrusted::Malformed),
            ),
        ];
        for (desired, me, before, unfit) in expected {
            assert_eq!(Standing::read(&desired, &me, before, NOW).unwrap_err(), unfit);
        }
    }
}
