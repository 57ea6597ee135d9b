//! What things are called in the cluster: names, labels, annotations.
//!
//! Everything here is a contract with the chart, with people's scripts and with the operator of the version before.

/// Which EasyNetwork an object of ours belongs to.
pub const NETWORK: &str = "easynet.io/network";
/// On a pod: which EasyNetwork it wants a sidecar of.
pub const INJECT: &str = "easynet.io/inject";
/// On the agents' pods: changes when something changed that a running pod does not notice by itself.
pub const FEED_HASH: &str = "easynet.io/feed";

/// Owns what the operator applies.
pub const FIELD_MANAGER: &str = "easynet";
/// Owns what it reports.
pub const STATUS_MANAGER: &str = "easynet-status";

pub const OPERATOR: &str = "easynet-operator";
pub const AGENT_ACCOUNT: &str = "easynet-agent";
/// The Service, the ConfigMap and the EndpointSlice of the feed.
pub const FEED: &str = "easynet-feed";
/// The Secret with the root of the feed's identity.
pub const IDENTITY: &str = "easynet-operator-identity";
pub const LEASE: &str = OPERATOR;

/// Which tokens the feed accepts.
pub const AUDIENCE: &str = "easynet";

/// The environment variable that says where traces go, for us and for those that we configure.
pub const COLLECTOR: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// An EasyPeer's name has so much of its member's.
const LONGEST_MEMBER: usize = 150;

/// The DaemonSet of a network.
pub fn agents(network: &str) -> String {
    format!("easynet-agent-{network}")
}

/// The Secret of a network, unless its spec names another.
pub fn credentials(network: &str) -> String {
    format!("easynet-{network}-credentials")
}

/// The TUN interface of a network on every node; at most 15 bytes.
pub fn tun(network: &str) -> String {
    format!("ez{}", hash8(&["tun", network]))
}

/// The EasyPeer of a node.
pub fn node_peer(network: &str, node: &str) -> String {
    peer(network, node, &["node", network, node])
}

/// The EasyPeer of a pod. Its UID counts: a pod of the same name is another member.
pub fn pod_peer(network: &str, namespace: &str, name: &str, uid: &str) -> String {
    peer(network, name, &["pod", network, namespace, name, uid])
}

/// The EasyPeer of a machine outside Kubernetes.
pub fn external_peer(network: &str, name: &str) -> String {
    peer(network, name, &["external", network, name])
}

fn peer(network: &str, member: &str, identity: &[&str]) -> String {
    let mut readable: String = member.chars().take(LONGEST_MEMBER).collect();
    while readable.ends_with(['-', '.']) {
        readable.pop();
    }
    format!("{network}-{readable}-{}", hash8(identity))
}

/// Eight hexadecimal digits that stand for some texts.
pub fn hash8(parts: &[&str]) -> String {
    let mut text = format!("{:016x}", hash64(parts));
    text.truncate(8);
    text
}

/// A number that stands for some texts, the same in every process.
pub fn hash64(parts: &[&str]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&part.len().to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let [a, b, c, d, e, f, g, h, ..] = *hasher.finalize().as_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_what_kubernetes_and_linux_allow() {
        let longest = "n".repeat(253);

        let peer = node_peer(&"e".repeat(40), &longest);

        assert!(peer.len() <= 253, "{}", peer.len());
        assert!(agents(&"e".repeat(40)).len() <= 63);
        assert_eq!(tun("prod").len(), 10);
        assert_eq!(node_peer("prod", "a"), "prod-a-9e0fafe2");
    }

    #[test]
    fn a_name_cut_in_the_middle_still_ends_well() {
        let node = format!("{}.rest", "a".repeat(LONGEST_MEMBER - 1));

        let peer = node_peer("prod", &node);

        assert!(peer.starts_with(&format!("prod-{}-", "a".repeat(LONGEST_MEMBER - 1))), "{peer}");
    }

    #[test]
    fn what_differs_has_names_that_differ() {
        let names = [
            node_peer("prod", "a"),
            node_peer("prod", "b"),
            pod_peer("prod", "default", "a", "1"),
            pod_peer("prod", "default", "a", "2"),
            pod_peer("prod", "defaul", "ta", "2"),
            external_peer("prod", "a"),
        ];

        assert_eq!(names.iter().collect::<std::collections::BTreeSet<_>>().len(), names.len());
    }
}
