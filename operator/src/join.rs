//! What another cluster needs to join a network of this one: a Secret and an EasyNetwork, ready to apply.
//!
//! Whoever has the output can issue members of the network. It goes to standard output, remarks for people go to standard error.

use anyhow::{Context, bail};
use crds::{EasyNetwork, network};
use ipnet::IpNet;
use k8s_openapi::{
    api::core::v1::{Node as ApiNode, Secret as ApiSecret},
    api::networking::v1::ServiceCIDR,
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::{Value, json};

use crate::{
    api,
    args::ClusterName,
    credentials, facts,
    index::{self, Node, Secret, World},
    names,
    plan::{LocalRanges, agents, cni::Facts, ranges},
};

/// What is printed.
#[derive(Clone, Debug, PartialEq)]
pub struct Invitation {
    pub documents: Vec<Value>,
    /// Sentences for the person at the keyboard.
    pub remarks: Vec<String>,
}

/// Reads what is needed from the API server and makes the invitation.
///
/// # Errors
/// When the network has no keys yet, or the arguments make no sense.
pub async fn run(
    client: Client,
    namespace: &str,
    network: &str,
    cluster: &ClusterName,
    pod_cidrs: &[IpNet],
) -> anyhow::Result<Invitation> {
    let networks: Api<EasyNetwork> = Api::all(client.clone());
    let found = api::within(api::WITHIN, networks.get_opt(network)).await.with_context(|| {
        format!(
            "cannot read the EasyNetwork; see whether `kubectl get easynetwork {network}` works"
        )
    })?;
    let Some(found) = found else {
        bail!("there is no EasyNetwork {network} here; `kubectl get easynetworks` lists them");
    };
    let secret_name = credentials::secret_name(&found, network);
    let secrets: Api<ApiSecret> = Api::namespaced(client.clone(), namespace);
    let secret = api::within(api::WITHIN, secrets.get_opt(&secret_name)).await?;
    let Some(secret) = secret else {
        bail!(
            "the network has no keys yet (Secret {secret_name}); see the conditions of the EasyNetwork"
        );
    };
    let nodes: Api<ApiNode> = Api::all(client.clone());
    let nodes = api::within(api::WITHIN, nodes.list(&ListParams::default())).await?;
    let services: Api<ServiceCIDR> = Api::all(client.clone());
    let services = api::within(api::WITHIN, services.list(&ListParams::default())).await?;
    let mut world = World::default();
    for node in nodes {
        let node = Node::take(node);
        world.nodes.insert(node.name.clone(), node.into());
    }
    for range in services {
        world.service_ranges.insert(range.name_any(), index::take_service_ranges(range).into());
    }
    let facts = facts::read(&client, &world, Facts::default()).await;
    let local = LocalRanges::of(&world, &facts);
    invite(&found, &Secret::take(secret), namespace, cluster, pod_cidrs, &local)
}

/// Makes the invitation.
///
/// # Errors
/// When the keys cannot be read, or the arguments make no sense.
pub fn invite(
    found: &EasyNetwork,
    secret: &Secret,
    namespace: &str,
    cluster: &ClusterName,
    pod_cidrs: &[IpNet],
    local: &LocalRanges,
) -> anyhow::Result<Invitation> {
    let name = found.name_any();
    let spec = &found.spec;
    let cluster = cluster.as_str();
    if cluster == spec.cluster_name {
        bail!("--cluster-name {cluster} is this cluster's own name; give the other one another");
    }
    let secret_name = credentials::secret_name(found, &name);
    let network_name = spec.network_name.clone().unwrap_or_else(|| name.clone());
    let keys = credentials::read(&secret_name, secret, &network_name)
        .map_err(|unusable| anyhow::anyhow!(unusable.message))?;
    let own_name = names::credentials(&name);
    let labels = agents::labels_of(&name, "credentials");
    let mut credentials =
        credentials::manifest(&own_name, namespace, &labels, &keys.issuer, keys.since);
    if keys.is_typed {
        let typed = secret.data.get("secret").context("the secret is gone")?;
        credentials["stringData"] = json!({"secret": String::from_utf8_lossy(typed).trim()});
    }

    let (exports, mut remarks) = exports(found, pod_cidrs, local)?;
    let mut joined = json!({
        "clusterName": cluster,
        "networkID": keys.issuer.network().to_string(),
    });
    if network_name != name || spec.network_name.is_some() {
        joined["networkName"] = json!(network_name);
    }
    if spec.bootstrap.peers.is_empty() {
        remarks.push(
            "spec.bootstrap.peers is empty, so the clusters find each other only if somebody adds a public server, or a member with a public address, on both sides".to_owned(),
        );
    } else {
        joined["bootstrap"] = json!({"peers": spec.bootstrap.peers});
    }
    if spec.addressing != network::Addressing::default() {
        joined["addressing"] = json!(spec.addressing);
    }
    if spec.transport != network::Transport::default() {
        joined["transport"] = json!(spec.transport);
    }
    if !exports.is_empty() {
        joined["routing"] = json!({"exports": exports});
    }
    let network = json!({
        "apiVersion": format!("{}/{}", crds::GROUP, crds::VERSION),
        "kind": "EasyNetwork",
        "metadata": {"name": name},
        "spec": joined,
    });
    Ok(Invitation { documents: vec![credentials, network], remarks })
}

/// What the joining cluster exports of its pods under other addresses, since this one has the same; and what this one has
/// to do about it.
fn exports(
    found: &EasyNetwork,
    pod_cidrs: &[IpNet],
    local: &LocalRanges,
) -> anyhow::Result<(Vec<Value>, Vec<String>)> {
    let name = found.name_any();
    let here = &found.spec.routing.exports;
    let is_mapped_here = |range: IpNet| {
        here.iter().any(|export| {
            export.map_to.is_some()
                && export.cidr.parse::<IpNet>().is_ok_and(|cidr| cidr.contains(&range))
        })
    };
    let mut used = used(found, pod_cidrs, local);
    let mut free = |range: IpNet| {
        let free = ranges::free_like(range, &used)
            .with_context(|| format!("no range of the length of {range} is free"))?;
        used.push(free);
        anyhow::Ok(free)
    };
    let (mut exports, mut remarks) = (Vec::new(), Vec::new());
    for range in pod_cidrs {
        let range = range.trunc();
        let Some(own) = local.all().find(|own| ranges::overlap(*own, range)) else { continue };
        let to = free(range)?;
        exports.push(json!({"cidr": range.to_string(), "mapTo": to.to_string()}));
        if local.pods.contains(&own) && !is_mapped_here(own) {
            let to = free(range)?;
            remarks.push(format!(
                "both clusters have pods in {range}, so this one must be mapped too: kubectl patch easynetwork {name} --type=merge -p '{{\"spec\":{{\"routing\":{{\"exports\":[{{\"cidr\":\"{range}\",\"mapTo\":\"{to}\"}}]}}}}}}'"
            ));
        }
    }
    Ok((exports, remarks))
}

/// All ranges that either cluster has or the network gives out.
fn used(found: &EasyNetwork, pod_cidrs: &[IpNet], local: &LocalRanges) -> Vec<IpNet> {
    let spec = &found.spec;
    let exported = spec.routing.exports.iter();
    let exported = exported.flat_map(|export| [Some(&export.cidr), export.map_to.as_ref()]);
    let exported = exported.flatten().map(|cidr| &**cidr);
    let reported = found.status.iter().flat_map(|status| &status.exported).map(|cidr| &**cidr);
    exported
        .chain(reported)
        .chain([&*spec.addressing.ipv4_cidr])
        .filter_map(|cidr| cidr.parse::<IpNet>().ok())
        .chain(local.all())
        .chain(pod_cidrs.iter().copied())
        .collect()
}

impl Invitation {
    /// As `kubectl apply -f -` reads it.
    ///
    /// # Errors
    /// When a value is none that YAML knows, which does not happen.
    pub fn to_yaml(&self) -> anyhow::Result<String> {
        let mut text = String::new();
        for document in &self.documents {
            text.push_str("---\n");
            text.push_str(&serde_saphyr::to_string(document)?);
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
    use session::issuer::Issuer;

    use super::*;

    fn name(text: &str) -> ClusterName {
        text.parse().unwrap()
    }

    fn network() -> EasyNetwork {
        serde_json::from_value(json!({
            "apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork",
            "metadata": {"name": "prod"},
            "spec": {"clusterName": "a", "bootstrap": {"peers": ["udp://relay.example.com:11010"]}},
        }))
        .unwrap()
    }

    fn secret() -> Secret {
        let issuer = Issuer::generate(&mut ChaCha12Rng::from_seed([7; 32]));
        let manifest = credentials::manifest("s", "ns", &Default::default(), &issuer, 5);
        let data = manifest["stringData"].as_object().unwrap().iter();
        let data = data.map(|(key, value)| {
            (key.clone(), zeroize::Zeroizing::new(value.as_str().unwrap().as_bytes().to_vec()))
        });
        Secret { version: "1".to_owned(), data: data.collect() }
    }

    fn local() -> LocalRanges {
        LocalRanges {
            nodes: vec!["192.0.2.0/24".parse().unwrap()],
            pods: vec!["10.244.0.0/23".parse().unwrap()],
            services: vec!["10.96.0.0/12".parse().unwrap()],
        }
    }

    #[test]
    fn the_other_cluster_gets_the_same_network_under_its_own_name() {
        let invitation = invite(&network(), &secret(), "ns", &name("b"), &[], &local()).unwrap();

        let spec = &invitation.documents[1]["spec"];
        assert_eq!(spec["clusterName"], "b");
        assert_eq!(spec["networkID"].as_str().unwrap().len(), 26);
        assert_eq!(spec["bootstrap"]["peers"][0], "udp://relay.example.com:11010");
        assert_eq!(spec.get("routing"), None);
        assert_eq!(invitation.documents[0]["metadata"]["name"], "easynet-prod-credentials");
        assert_eq!(invitation.remarks, [""; 0]);
        let parsed: crds::EasyNetworkSpec = serde_json::from_value(spec.clone()).unwrap();
        assert_eq!(parsed.cluster_name, "b");
        assert!(invitation.to_yaml().unwrap().starts_with("---\n"));
    }

    #[test]
    fn overlapping_pods_are_mapped_on_both_sides_to_ranges_that_are_free() {
        let pods: IpNet = "10.244.0.0/16".parse().unwrap();

        let invitation =
            invite(&network(), &secret(), "ns", &name("b"), &[pods], &local()).unwrap();

        let exports = &invitation.documents[1]["spec"]["routing"]["exports"];
        assert_eq!(*exports, json!([{"cidr": "10.244.0.0/16", "mapTo": "10.200.0.0/16"}]));
        assert_eq!(invitation.remarks.len(), 1);
        assert!(
            invitation.remarks[0].contains("\"mapTo\":\"10.201.0.0/16\""),
            "{:?}",
            invitation.remarks
        );
    }

    #[test]
    fn pods_that_overlap_nothing_need_no_map() {
        let pods: IpNet = "10.42.0.0/16".parse().unwrap();

        let invitation =
            invite(&network(), &secret(), "ns", &name("b"), &[pods], &local()).unwrap();

        assert_eq!(invitation.documents[1]["spec"].get("routing"), None);
    }

    #[test]
    fn this_clusters_own_name_is_refused() {
        assert!(invite(&network(), &secret(), "ns", &name("a"), &[], &local()).is_err());
    }
}
