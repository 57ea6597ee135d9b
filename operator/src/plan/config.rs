//! What a sidecar of this cluster is configured with.

use std::net::IpAddr;

use config::{
    Export, ImportMode, Imports, Listen, Masquerade, P2p, PeerUrl, Punch, Scheme, Sidecar,
    sidecar::{Network, Node, Transport},
};
use crds::{EasyNetwork, Mtu, network as spec};
use ipnet::{IpNet, Ipv4Net};

use super::{Unusable, ranges};
use crate::names;

/// What all sidecars of a network have in common: the spec, read once and checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Common {
    pub name: String,
    pub cluster: String,
    pub range4: Ipv4Net,
    pub bootstrap: Vec<PeerUrl>,
    pub exports: Vec<(IpNet, Option<IpNet>)>,
    pub imports: Imports,
    pub masquerade: Masquerade,
    pub transport: Transport,
    pub port: u16,
    pub tun: String,
}

/// What is one member's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Own {
    pub hostname: String,
    pub ipv4: Option<std::net::Ipv4Addr>,
    pub exports: Vec<Export>,
    pub seeds: Vec<PeerUrl>,
    pub listens: bool,
}

impl Common {
    /// Reads a spec as if the API server had not checked it.
    ///
    /// # Errors
    /// What is wrong, as a sentence for the condition.
    pub fn read(network: &EasyNetwork) -> Result<Self, Unusable> {
        let spec = &network.spec;
        let object = network.metadata.name.clone().unwrap_or_default();
        if spec.cluster_name.is_empty() {
            return Err(Unusable("spec.clusterName is empty; name this cluster".to_owned()));
        }
        Ok(Self {
            name: spec.network_name.clone().unwrap_or_else(|| object.clone()),
            cluster: spec.cluster_name.clone(),
            range4: range4(&spec.addressing)?,
            bootstrap: bootstrap(&spec.bootstrap)?,
            exports: exports(&spec.routing)?,
            imports: imports(&spec.routing.imports)?,
            masquerade: match spec.routing.masquerade {
                spec::Masquerade::Inbound => Masquerade::Inbound,
                spec::Masquerade::Never => Masquerade::Never,
                spec::Masquerade::Always => Masquerade::Always,
            },
            transport: transport(&spec.transport)?,
            port: port(&spec.transport)?,
            tun: names::tun(&object),
        })
    }

    /// What a node offers: its own pod ranges, mapped if a configured range contains them and says how, and the configured
    /// ranges that every node offers.
    pub fn exports_of(
        &self,
        pod_ranges: &[IpNet],
        all_pods: &[IpNet],
        services: &[IpNet],
    ) -> Vec<Export> {
        let mut exports: Vec<Export> = Vec::new();
        let is_map_of_pods = |net: &IpNet| all_pods.iter().any(|pods| net.contains(pods));
        for range in pod_ranges {
            let covering = self.exports.iter().find(|(net, _)| net.contains(range));
            let to = covering.and_then(|(net, to)| ranges::mapped(*range, *net, (*to)?));
            let Ok(export) = Export::new(range.trunc(), to) else { continue };
            // Straight to the pod and back over the same node: nobody needs another source.
            exports.push(Export { masquerade: Masquerade::Never, ..export });
        }
        let wide = self.exports.iter().filter(|(net, _)| !is_map_of_pods(net));
        let services = services.iter().map(|range| (*range, None));
        for (net, to) in wide.copied().chain(services) {
            let Ok(export) = Export::new(net.trunc(), to) else { continue };
            if exports.iter().all(|other| other.announced() != export.announced()) {
                exports.push(Export { masquerade: self.masquerade, ..export });
            }
        }
        exports
    }

    /// The whole configuration of a member.
    pub fn sidecar(&self, own: &Own, protected: &[IpNet], exempt: &[IpNet]) -> Sidecar {
        let mut peers = own.seeds.clone();
        for peer in &self.bootstrap {
            if !peers.contains(peer) {
                peers.push(peer.clone());
            }
        }
        let ipv4 = own
            .ipv4
            .and_then(|address| format!("{address}/{}", self.range4.prefix_len()).parse().ok());
        Sidecar {
            network: Network {
                name: Some(self.name.clone()),
                range: self.range4.to_string().parse().ok(),
            },
            node: Node {
                hostname: own.hostname.parse().ok(),
                ipv4,
                ipv6: "auto".parse().ok(),
                tun: self.tun.parse().ok(),
            },
            listen: Some(if own.listens {
                vec![Listen::Port(self.port)]
            } else {
                vec![Listen::Port(0)]
            }),
            peers,
            exports: own.exports.clone(),
            imports: self.imports.clone(),
            protected: protected.to_vec(),
            exempt: exempt.to_vec(),
            transport: self.transport.clone(),
            ..Sidecar::default()
        }
    }
}

fn range4(addressing: &spec::Addressing) -> Result<Ipv4Net, Unusable> {
    let range = cidr::<Ipv4Net>("spec.addressing.ipv4CIDR", &addressing.ipv4_cidr)?;
    if (8..=24).contains(&range.prefix_len()) {
        return Ok(range);
    }
    Err(Unusable(format!("spec.addressing.ipv4CIDR {range} is none from /8 to /24")))
}

fn bootstrap(bootstrap: &spec::Bootstrap) -> Result<Vec<PeerUrl>, Unusable> {
    let read = |peer: &crds::PeerUrl| {
        peer.parse().map_err(|why| Unusable(format!("spec.bootstrap.peers has {}: {why}", &**peer)))
    };
    bootstrap.peers.iter().map(read).collect()
}

/// Ranges and what they are mapped to; none overlaps another, on either side.
fn exports(routing: &spec::Routing) -> Result<Vec<(IpNet, Option<IpNet>)>, Unusable> {
    let mut exports: Vec<(IpNet, Option<IpNet>)> = Vec::new();
    for export in &routing.exports {
        let net = cidr::<IpNet>("spec.routing.exports[].cidr", &export.cidr)?;
        let to = export.map_to.as_ref();
        let to = to.map(|to| cidr::<IpNet>("spec.routing.exports[].mapTo", to)).transpose()?;
        Export::new(net, to).map_err(|why| Unusable(format!("spec.routing.exports: {why}")))?;
        let announced = to.unwrap_or(net);
        if let Some((other, _)) = exports.iter().find(|(other, other_to)| {
            ranges::overlap(*other, net) || ranges::overlap(other_to.unwrap_or(*other), announced)
        }) {
            return Err(Unusable(format!(
                "spec.routing.exports has {other} and {net}, which overlap"
            )));
        }
        exports.push((net, to));
    }
    Ok(exports)
}

fn imports(imports: &spec::Imports) -> Result<Imports, Unusable> {
    let listed = imports.cidrs.iter().map(|range| cidr("spec.routing.imports.cidrs", range));
    let mode = match imports.mode {
        spec::ImportMode::All => ImportMode::All,
        spec::ImportMode::Listed => ImportMode::Listed,
        spec::ImportMode::None => ImportMode::None,
    };
    Ok(Imports { mode, cidrs: listed.collect::<Result<_, _>>()? })
}

fn transport(transport: &spec::Transport) -> Result<Transport, Unusable> {
    let mtu = match transport.mtu {
        Mtu::Auto => None,
        Mtu::Bytes(bytes) => Some(
            bytes
                .to_string()
                .parse()
                .map_err(|why| Unusable(format!("spec.transport.mtu is {bytes}: {why}")))?,
        ),
    };
    let p2p = match transport.p2p {
        spec::P2p::Enabled => P2p::On,
        spec::P2p::RelayOnly => P2p::RelayOnly,
    };
    let punch = match transport.punch {
        spec::Punch::Full => Punch::Full,
        spec::Punch::Light => Punch::Light,
        spec::Punch::Off => Punch::Off,
    };
    Ok(Transport { mtu, p2p: Some(p2p), punch: Some(punch) })
}

fn port(transport: &spec::Transport) -> Result<u16, Unusable> {
    if transport.listen_port == 0 {
        let why = "spec.transport.listenPort is 0; write a port from 1 to 65535";
        return Err(Unusable(why.to_owned()));
    }
    Ok(transport.listen_port)
}

/// Where others of the cluster reach a node that listens.
pub fn seed(address: IpAddr, port: u16, keys: [u8; 64]) -> PeerUrl {
    PeerUrl { scheme: Scheme::Udp, host: address.to_string(), port, keys: Some(keys) }
}

fn cidr<T>(field: &str, text: &str) -> Result<T, Unusable>
where
    T: std::str::FromStr,
    IpNet: From<T>,
    T: Copy,
{
    let net: T = text
        .parse()
        .map_err(|_| Unusable(format!("{field} has {text:?}, which is no range of addresses")))?;
    let whole = IpNet::from(net);
    if whole.trunc() != whole {
        return Err(Unusable(format!(
            "{field} has {text}, which names one address of a range; write {}",
            whole.trunc()
        )));
    }
    Ok(net)
}
