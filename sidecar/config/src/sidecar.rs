//! What a configuration server delivers: the same shape as the file, as a type.
//!
//! It holds what somebody else may decide about a node. What belongs to the machine (paths of files, the admin socket,
//! the metrics endpoint) has no place here, and no secret does: keys travel beside it. The server writes it with
//! [`Sidecar::to_json`]; a node reads it with [`crate::parse_delivered`].

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::{
    API_VERSION, KIND,
    value::{
        Address4, Address6, Export, Hostname, ImportMode, Listen, MeshRange, Mtu, P2p, PeerUrl,
        Punch, TunName,
    },
};

/// The configuration of one node; what is not said has its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Sidecar {
    #[serde(skip_serializing_if = "is_default")]
    pub network: Network,
    #[serde(skip_serializing_if = "is_default")]
    pub node: Node,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<Listen>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<PeerUrl>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exports: Vec<Export>,
    #[serde(skip_serializing_if = "is_default")]
    pub imports: Imports,
    /// Never imported, whoever announces it: the cluster's node, pod and service ranges.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub protected: Vec<IpNet>,
    /// Between these the sources stay as they are, whatever else on the host masquerades.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exempt: Vec<IpNet>,
    #[serde(skip_serializing_if = "is_default")]
    pub transport: Transport,
    #[serde(skip_serializing_if = "is_default")]
    pub roles: Roles,
}

/// The network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Network {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Where automatic IPv4 addresses come from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub range: Option<MeshRange>,
}

/// The node in it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Node {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<Hostname>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<Address4>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<Address6>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tun: Option<TunName>,
}

/// What is taken from other members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Imports {
    pub mode: ImportMode,
    /// With [`ImportMode::Listed`]: whatever lies within one of these is imported, and nothing else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<IpNet>,
}

/// How packets travel.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Transport {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<Mtu>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub p2p: Option<P2p>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub punch: Option<Punch>,
}

/// What the node does for others.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Roles {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transit: Option<bool>,
}

impl Sidecar {
    /// The document as [`crate::parse_delivered`] reads it; equal configurations give equal text.
    pub fn to_json(&self) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Document<'a> {
            api_version: &'static str,
            kind: &'static str,
            #[serde(flatten)]
            sidecar: &'a Sidecar,
        }
        serde_json::to_string(&Document { api_version: API_VERSION, kind: KIND, sidecar: self })
            .expect("texts, numbers and lists of them are always JSON")
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Delivered, Masquerade, Origin, Partial, parse_delivered};

    fn net<T: std::str::FromStr<Err: std::fmt::Debug>>(text: &str) -> T {
        text.parse().unwrap()
    }

    fn passed_over(delivered: &Delivered) -> Vec<String> {
        delivered.passed_over.iter().map(ToString::to_string).collect()
    }

    fn full() -> Sidecar {
        Sidecar {
            network: Network { name: Some("prod".to_owned()), range: Some(net("100.112.0.0/16")) },
            node: Node {
                hostname: Some(net("node-a")),
                ipv4: Some(net("100.112.3.7/16")),
                ipv6: Some(Address6::Auto),
                tun: Some(net("ez1234abcd")),
            },
            listen: Some(vec![Listen::Port(11010), net("udp://127.0.0.1:5")]),
            peers: vec![net("udp://192.0.2.1:11010")],
            exports: vec![
                Export {
                    cidr: net("10.42.3.0/24"),
                    map_to: Some(net("10.200.3.0/24")),
                    masquerade: Masquerade::Never,
                },
                net("10.43.0.0/16"),
            ],
            imports: Imports { mode: ImportMode::Listed, cidrs: vec![net("10.201.0.0/16")] },
            protected: vec![net("10.96.0.0/12")],
            exempt: vec![net("10.42.0.0/16"), net("fd00:42::/56")],
            transport: Transport {
                mtu: Some(net("1400")),
                p2p: Some(P2p::RelayOnly),
                punch: Some(Punch::Light),
            },
            roles: Roles { transit: Some(true) },
        }
    }

    #[test]
    fn what_is_delivered_says_what_the_server_meant() {
        let sidecar = full();

        let delivered = parse_delivered(&sidecar.to_json()).unwrap();
        assert_eq!(delivered.passed_over, []);
        let settings = delivered.partial.settle();

        assert_eq!(settings.network.value, sidecar.network.name);
        assert_eq!(Some(settings.range.value), sidecar.network.range);
        assert_eq!(settings.hostname.value, sidecar.node.hostname);
        assert_eq!(Some(settings.ipv4.value), sidecar.node.ipv4);
        assert_eq!(Some(settings.ipv6.value), sidecar.node.ipv6);
        assert_eq!(Some(&settings.tun.value), sidecar.node.tun.as_ref());
        assert_eq!(Some(settings.listen.value), sidecar.listen);
        assert_eq!(settings.peers.value, sidecar.peers);
        assert_eq!(settings.exports.value, sidecar.exports);
        assert_eq!(settings.imports.value, sidecar.imports);
        assert_eq!(settings.protected.value, sidecar.protected);
        assert_eq!(settings.exempt.value, sidecar.exempt);
        assert_eq!(Some(settings.mtu.value), sidecar.transport.mtu);
        assert_eq!(Some(settings.p2p.value), sidecar.transport.p2p);
        assert_eq!(Some(settings.punch.value), sidecar.transport.punch);
        assert_eq!(Some(settings.transit.value), sidecar.roles.transit);
        assert_eq!(settings.exempt.origin, Origin::Server);
    }

    #[test]
    fn a_document_is_read_back_whole_and_says_nothing_of_defaults() {
        let sidecar = full();
        assert_eq!(serde_json::from_str::<Sidecar>(&sidecar.to_json()).unwrap(), sidecar);
        assert_eq!(
            Sidecar::default().to_json(),
            r#"{"apiVersion":"config.easynet.io/v1alpha1","kind":"Sidecar"}"#
        );
        assert_eq!(parse_delivered(&Sidecar::default().to_json()), Ok(Delivered::default()));
    }

    #[test]
    fn keys_of_a_later_version_are_passed_over_and_wrong_values_are_not() {
        let later = r#"{"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar", "colour": ["red"],
            "node": {"hostname": "a", "mood": {"today": 1}},
            "exports": [{"cidr": "10.0.0.0/24", "weight": 7}]}"#;
        let delivered = parse_delivered(later).unwrap();
        assert_eq!(passed_over(&delivered), ["colour", "node.mood", "exports[0].weight"]);
        let settings = delivered.partial.settle();
        assert_eq!(settings.hostname.value, Some(net("a")));
        assert_eq!(settings.exports.value, [net("10.0.0.0/24")]);

        let wrong = r#"{"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar",
            "exports": [{"cidr": "10.0.0.0/24", "mapTo": "10.1.0.0/16"}], "transport": {"mtu": 12}}"#;
        let problems = parse_delivered(wrong).unwrap_err();
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].message.contains("same length"), "{problems:?}");
    }

    #[test]
    fn words_of_a_later_version_are_passed_over_and_said_and_open_nothing() {
        let later = r#"{"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar",
            "transport": {"mtu": "auto", "p2p": "sometimes", "punch": {"most": 3}},
            "listen": [11010, "quic://0.0.0.0:11010"],
            "peers": ["quic://192.0.2.1:11010", "udp://192.0.2.2:11010?colour=red", {"weight": 3}, "udp://192.0.2.3:11010"],
            "exports": [{"cidr": "10.0.0.0/24", "masquerade": "thrice"}, {"cidr": "10.0.1.0/24"},
                {"cidr": "pods"}, {"cidr": "10.0.2.0/24", "mapTo": "any"}, "10.0.3.0/24"],
            "imports": {"mode": "signed", "cidrs": ["10.1.0.0/16", "fra1"]},
            "exempt": ["pods", "10.2.0.0/16"],
            "roles": {"transit": "at night"}}"#;

        let delivered = parse_delivered(later).unwrap();

        assert_eq!(
            passed_over(&delivered),
            [
                r#"transport.mtu "auto""#,
                r#"transport.p2p "sometimes""#,
                "transport.punch",
                r#"listen[1] "quic://0.0.0.0:11010""#,
                r#"peers[0] "quic://192.0.2.1:11010""#,
                r#"peers[1] "udp://192.0.2.2:11010?colour=red""#,
                "peers[2]",
                r#"exports[0].masquerade "thrice""#,
                r#"exports[2].cidr "pods""#,
                r#"exports[3].mapTo "any""#,
                r#"exports[4] "10.0.3.0/24""#,
                r#"imports.mode "signed""#,
                r#"imports.cidrs[1] "fra1""#,
                r#"exempt[0] "pods""#,
                r#"roles.transit "at night""#,
            ]
        );
        let settings = delivered.partial.settle();
        assert_eq!(settings.mtu.value.bytes(), 1280);
        assert_eq!(settings.p2p.value, P2p::RelayOnly);
        assert_eq!(settings.punch.value, Punch::Off);
        assert_eq!(settings.listen.value, [Listen::Port(11010)]);
        assert_eq!(settings.peers.value, [net("udp://192.0.2.3:11010")]);
        assert_eq!(settings.exports.value, [net("10.0.1.0/24")]);
        assert_eq!(settings.imports.value.mode, ImportMode::None);
        assert_eq!(settings.imports.value.cidrs, [net("10.1.0.0/16")]);
        assert_eq!(settings.exempt.value, [net("10.2.0.0/16")]);
        assert!(!settings.transit.value);

        let nothing_known = r#"{"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar",
            "transport": {"punch": "gently"}, "listen": ["quic://0.0.0.0:11010"]}"#;
        let settings = parse_delivered(nothing_known).unwrap().partial.settle();
        assert_eq!(settings.punch.value, Punch::Off);
        assert_eq!(settings.listen.value, [Listen::None]);
        // A person's own file is another matter.
        assert_eq!(crate::parse(later).unwrap_err().len(), 15);
    }

    #[test]
    fn what_has_no_narrower_form_is_refused_whole_and_named() {
        for (part, path) in [
            (r#""node": {"ipv4": "anycast"}"#, "node.ipv4"),
            (r#""node": {"ipv4": ["100.112.0.1", "100.112.0.2"]}"#, "node.ipv4"),
            (r#""node": {"ipv6": {"suffix": 7}}"#, "node.ipv6"),
            (r#""node": {"hostname": "two words"}"#, "node.hostname"),
            (r#""node": {"tun": "longer-than-fifteen"}"#, "node.tun"),
            (r#""network": {"range": "fd00::/48"}"#, "network.range"),
            (r#""protected": ["10.0.0.0/8", "pods"]"#, "protected[1]"),
            (r#""transport": {"mtu": 70000}"#, "transport.mtu"),
            (r#""transport": {"mtu": -5}"#, "transport.mtu"),
            (r#""transport": {"mtu": 1400.5}"#, "transport.mtu"),
            (r#""transport": {"mtu": 1.4e3}"#, "transport.mtu"),
            (r#""transport": {"mtu": 1e999}"#, "transport.mtu"),
            (r#""transport": {"mtu": 140014001400140014001400140014}"#, "transport.mtu"),
            (r#""transport": "fast""#, "transport"),
            (r#""roles": ["transit"]"#, "roles"),
            (r#""node": "a""#, "node"),
            (r#""network": ["n"]"#, "network"),
            (r#""imports": "all""#, "imports"),
            (r#""imports": {"cidrs": "10.1.0.0/16"}"#, "imports.cidrs"),
            (r#""peers": {"first": "udp://192.0.2.1:11010"}"#, "peers"),
            (r#""listen": 11010"#, "listen"),
            (r#""exports": "10.0.0.0/24""#, "exports"),
            (r#""protected": "10.96.0.0/12""#, "protected"),
            (r#""exempt": "pods""#, "exempt"),
        ] {
            let text = format!(
                r#"{{"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar", {part}}}"#
            );

            let problems = parse_delivered(&text).unwrap_err();

            let paths: Vec<&str> = problems.iter().map(|problem| problem.path.as_str()).collect();
            assert_eq!(paths, [path], "{part}");
        }
    }

    #[test]
    fn a_server_decides_nothing_about_the_machines_own_files_and_sockets() {
        let reaching = r#"{"apiVersion": "config.easynet.io/v1alpha1", "kind": "Sidecar",
            "network": {"name": "n", "secretFile": "/etc/shadow"}, "node": {"stateDir": "/etc"},
            "admin": "0.0.0.0:1", "adminTokenFile": "/etc/hostname", "metrics": "0.0.0.0:2"}"#;

        let Delivered { partial, passed_over } = parse_delivered(reaching).unwrap();

        assert_eq!(passed_over, []);
        let name = partial.network.clone();
        assert_eq!(name.unwrap().value.as_deref(), Some("n"));
        assert_eq!(Partial { network: None, ..partial }, Partial::default());
    }
}
