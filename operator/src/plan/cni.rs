//! Which ranges of pods are a node's own.
//!
//! `Node.spec.podCIDR` is true where the kubelet's IPAM (or flannel) gives addresses out of it. Other CNIs keep ranges of their own
//! and say so elsewhere, or give pods addresses of the underlay. What CNI it is shows on the Node object: by annotations, by
//! the reason of its condition NetworkUnavailable, by its cloud. Whatever is concluded is compared with the address of a live pod
//! of that node.
//!
//! | CNI | known by | its ranges |
//! |---|---|---|
//! | OVN-Kubernetes | annotation `k8s.ovn.org/node-subnets` | that annotation |
//! | Cilium | reason `CiliumIsUp`, or its annotations | `CiliumNode.spec.ipam.podCIDRs`, else `network.cilium.io/ipv4-pod-cidr` |
//! | Calico | reason `CalicoIsUp`, or annotation `projectcalico.org/IPv4Address` | `BlockAffinity` objects of the node |
//! | EKS VPC CNI | cloud `aws` and no podCIDR | none: pods have addresses of the VPC |
//! | flannel | annotation `flannel.alpha.coreos.com/backend-type` | `spec.podCIDR` |
//! | kubelet (ptp, bridge, kindnet) | a podCIDR and none of the above | `spec.podCIDR` |

use std::{collections::BTreeMap, fmt, net::IpAddr};

use ipnet::IpNet;

use crate::index::Node;

/// What else is known of the CNI: read from time to time, not followed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// By node: `CiliumNode.spec.ipam.podCIDRs`.
    pub cilium: BTreeMap<String, Vec<IpNet>>,
    /// By node: confirmed `BlockAffinity` objects of Calico.
    pub calico: BTreeMap<String, Vec<IpNet>>,
    /// By node: addresses of some pods that run there with a network of their own.
    pub pods: BTreeMap<String, Vec<IpAddr>>,
    /// Where the API server is reached.
    pub api_servers: Vec<IpAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cni {
    Kubelet,
    Flannel,
    Cilium,
    Calico,
    OvnKubernetes,
    EksVpc,
    Unknown,
}

/// Why a node's ranges are not known; what to do about it stands in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unclear {
    /// The node has no range and nothing says which CNI there is.
    NoRange,
    /// Pods have addresses of the cloud's network.
    Underlay,
    /// The CNI keeps ranges of its own, and does not say which.
    NotSaid(Cni),
    /// A live pod has an address outside.
    Untrue { cni: Cni, said: Vec<IpNet>, pod: IpAddr },
}

impl Cni {
    pub fn of(node: &Node) -> Self {
        let says = |key: &str| node.annotations.keys().any(|annotation| annotation.contains(key));
        if says("k8s.ovn.org/") {
            return Self::OvnKubernetes;
        }
        if node.network_reason == "CiliumIsUp" || says("cilium") {
            return Self::Cilium;
        }
        if node.network_reason == "CalicoIsUp" || says("projectcalico.org/") {
            return Self::Calico;
        }
        if says("flannel.alpha.coreos.com/") {
            return Self::Flannel;
        }
        match (node.pod_cidrs.is_empty(), node.provider.as_str()) {
            (false, _) => Self::Kubelet,
            (true, "aws") => Self::EksVpc,
            (true, _) => Self::Unknown,
        }
    }
}

impl fmt::Display for Cni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubelet => "the kubelet",
            Self::Flannel => "flannel",
            Self::Cilium => "Cilium",
            Self::Calico => "Calico",
            Self::OvnKubernetes => "OVN-Kubernetes",
            Self::EksVpc => "the VPC CNI",
            Self::Unknown => "an unknown CNI",
        })
    }
}

/// The ranges that `node` gives its pods addresses out of.
///
/// # Errors
/// When they are not known, or a live pod shows that what is known is not true; the ranges must be written by hand then.
pub fn pod_ranges(node: &Node, facts: &Facts) -> Result<Vec<IpNet>, Unclear> {
    let cni = Cni::of(node);
    let pods = facts.pods.get(&node.name).map(Vec::as_slice).unwrap_or_default();
    let said = match cni {
        Cni::Kubelet | Cni::Flannel => node.pod_cidrs.clone(),
        Cni::OvnKubernetes => ovn_subnets(node),
        Cni::Cilium => facts.cilium.get(&node.name).cloned().unwrap_or_else(|| cilium_ranges(node)),
        Cni::Calico => facts.calico.get(&node.name).cloned().unwrap_or_default(),
        Cni::EksVpc => return Err(Unclear::Underlay),
        Cni::Unknown => return Err(Unclear::NoRange),
    };
    if said.is_empty() {
        // Both can be told to use the node's own range; live pods prove it.
        let own = !pods.is_empty() && outside(&node.pod_cidrs, pods).is_none();
        if matches!(cni, Cni::Cilium | Cni::Calico) && own {
            return Ok(node.pod_cidrs.clone());
        }
        return Err(if cni == Cni::Flannel { Unclear::NoRange } else { Unclear::NotSaid(cni) });
    }
    match outside(&said, pods) {
        // Calico may lend a node single addresses out of others' blocks; its blocks are true all the same.
        Some(_) if cni == Cni::Calico && pods.iter().any(|pod| contains(&said, *pod)) => Ok(said),
        Some(pod) => Err(Unclear::Untrue { cni, said, pod }),
        None => Ok(said),
    }
}

impl fmt::Display for Unclear {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoRange => f.write_str(
                "it has no spec.podCIDR and its CNI is unknown; write the range of its pods under routing.exports",
            ),
            Self::Underlay => f.write_str(
                "its pods have addresses of the VPC; write the VPC's subnets that others shall reach under routing.exports",
            ),
            Self::NotSaid(cni) => write!(
                f,
                "{cni} keeps the ranges of its pods and does not say which; write them under routing.exports"
            ),
            Self::Untrue { cni, said, pod } => {
                let said: Vec<String> = said.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "{cni} says {}, but the pod address {pod} is outside; write the range of its pods under routing.exports",
                    said.join(", ")
                )
            }
        }
    }
}

fn outside(ranges: &[IpNet], pods: &[IpAddr]) -> Option<IpAddr> {
    // A pod of a family that the ranges do not cover at all says nothing.
    let same = |pod: &IpAddr| ranges.iter().any(|range| range.addr().is_ipv4() == pod.is_ipv4());
    pods.iter().find(|pod| same(pod) && !contains(ranges, **pod)).copied()
}

fn contains(ranges: &[IpNet], address: IpAddr) -> bool {
    ranges.iter().any(|range| range.contains(&address))
}

/// `{"default": ["10.128.2.0/23"]}`, or in old versions `{"default": "10.128.2.0/23"}`.
fn ovn_subnets(node: &Node) -> Vec<IpNet> {
    let text = node.annotations.get("k8s.ovn.org/node-subnets").map(String::as_str);
    let subnets: serde_json::Value =
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match subnets.get("default") {
        Some(serde_json::Value::Array(all)) => {
            all.iter().filter_map(|subnet| subnet.as_str()?.parse().ok()).collect()
        }
        Some(serde_json::Value::String(one)) => one.parse().into_iter().collect(),
        Some(_) | None => Vec::new(),
    }
}

fn cilium_ranges(node: &Node) -> Vec<IpNet> {
    let annotations = node.annotations.iter();
    annotations
        .filter(|(key, _)| key.contains("cilium") && key.ends_with("-pod-cidr"))
        .filter_map(|(_, value)| value.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A node as its CNI documents it.
    fn node(annotations: serde_json::Value, reason: &str, pod_cidr: &str, provider: &str) -> Node {
        let object = json!({
            "metadata": {"name": "n", "annotations": annotations},
            "spec": {"podCIDR": pod_cidr, "podCIDRs": [pod_cidr], "providerID": provider},
            "status": {"conditions": [{"type": "NetworkUnavailable", "status": "False", "reason": reason}]},
        });
        Node::take(serde_json::from_value(object).unwrap())
    }

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn pods(addresses: &[&str]) -> Facts {
        let addresses = addresses.iter().map(|text| text.parse().unwrap()).collect();
        Facts { pods: BTreeMap::from([("n".to_owned(), addresses)]), ..Facts::default() }
    }

    #[test]
    fn the_kubelets_range_is_true_unless_a_pod_shows_otherwise() {
        let node = node(json!({}), "", "10.42.1.0/24", "");

        assert_eq!(Cni::of(&node), Cni::Kubelet);
        assert_eq!(pod_ranges(&node, &Facts::default()), Ok(nets(&["10.42.1.0/24"])));
        assert_eq!(
            pod_ranges(&node, &pods(&["10.42.1.9", "fd00::1"])),
            Ok(nets(&["10.42.1.0/24"]))
        );
        let untrue = pod_ranges(&node, &pods(&["10.42.1.9", "10.99.0.1"])).unwrap_err();
        assert_eq!(
            untrue.to_string(),
            "the kubelet says 10.42.1.0/24, but the pod address 10.99.0.1 is outside; write the range of its pods under routing.exports"
        );
    }

    #[test]
    fn flannel_uses_the_nodes_range() {
        let node = node(
            json!({"flannel.alpha.coreos.com/backend-type": "vxlan",
                "flannel.alpha.coreos.com/public-ip": "192.0.2.1"}),
            "FlannelIsUp",
            "10.244.3.0/24",
            "",
        );

        assert_eq!(Cni::of(&node), Cni::Flannel);
        assert_eq!(pod_ranges(&node, &Facts::default()), Ok(nets(&["10.244.3.0/24"])));
    }

    #[test]
    fn ovn_kubernetes_says_it_in_an_annotation() {
        for subnets in
            [r#"{"default":["10.128.2.0/23","fd01:0:0:3::/64"]}"#, r#"{"default":"10.128.2.0/23"}"#]
        {
            let node = node(json!({"k8s.ovn.org/node-subnets": subnets}), "", "", "");

            assert_eq!(Cni::of(&node), Cni::OvnKubernetes);
            let ranges = pod_ranges(&node, &Facts::default()).unwrap();
            assert_eq!(ranges[0], nets(&["10.128.2.0/23"])[0]);
        }
        let broken = node(json!({"k8s.ovn.org/node-subnets": "{"}), "", "", "");
        assert_eq!(
            pod_ranges(&broken, &Facts::default()),
            Err(Unclear::NotSaid(Cni::OvnKubernetes))
        );
    }

    #[test]
    fn ciliums_own_ranges_count_and_not_the_nodes() {
        let node = node(json!({}), "CiliumIsUp", "10.42.1.0/24", "");
        let mut facts = Facts::default();

        assert_eq!(pod_ranges(&node, &facts), Err(Unclear::NotSaid(Cni::Cilium)));
        assert_eq!(pod_ranges(&node, &pods(&["10.42.1.3"])), Ok(nets(&["10.42.1.0/24"])));
        facts.cilium.insert("n".to_owned(), nets(&["10.0.3.0/24"]));
        assert_eq!(pod_ranges(&node, &facts), Ok(nets(&["10.0.3.0/24"])));
    }

    #[test]
    fn cilium_may_say_it_in_an_annotation() {
        let node =
            node(json!({"network.cilium.io/ipv4-pod-cidr": "10.0.7.0/24"}), "", "10.42.1.0/24", "");

        assert_eq!(pod_ranges(&node, &Facts::default()), Ok(nets(&["10.0.7.0/24"])));
    }

    #[test]
    fn calicos_blocks_count_and_borrowed_addresses_do_not_make_them_untrue() {
        let node = node(
            json!({"projectcalico.org/IPv4Address": "192.0.2.1/24"}),
            "CalicoIsUp",
            "10.42.1.0/24",
            "",
        );
        let mut facts = pods(&["192.168.7.70", "192.168.9.3"]);
        facts.calico.insert("n".to_owned(), nets(&["192.168.7.64/26"]));

        assert_eq!(pod_ranges(&node, &facts), Ok(nets(&["192.168.7.64/26"])));
        facts.calico.clear();
        assert_eq!(pod_ranges(&node, &facts), Err(Unclear::NotSaid(Cni::Calico)));
    }

    #[test]
    fn on_eks_pods_have_addresses_of_the_vpc() {
        let node = node(json!({}), "", "", "aws:///eu-central-1a/i-0abc");

        assert_eq!(Cni::of(&node), Cni::EksVpc);
        let unclear = pod_ranges(&node, &pods(&["10.0.3.7"])).unwrap_err();
        assert!(unclear.to_string().contains("routing.exports"), "{unclear}");
    }

    #[test]
    fn a_node_without_range_and_cni_is_unclear() {
        let node = node(json!({}), "", "", "kind://docker/kind/n");

        assert_eq!(pod_ranges(&node, &Facts::default()), Err(Unclear::NoRange));
    }
}
