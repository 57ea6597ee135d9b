//! Reads what is not followed: where CNIs keep their ranges, a sample of pods, the API server's addresses.
//!
//! Everything here is optional: what is not there, or not allowed, is left out. Lists are bounded.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::api::{core::v1::Pod, discovery::v1::EndpointSlice};
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, ListParams},
};
use serde_json::Value;

use crate::{
    api,
    index::World,
    plan::cni::{Cni, Facts},
};

/// Pods looked at; a few of every node in a cluster of usual size.
const SAMPLE: u32 = 500;
/// Objects of a CNI in one page.
const PAGE: u32 = 500;
/// Objects of a CNI in all.
const MOST: usize = 20_000;

/// Reads what is there.
pub async fn read(client: &Client, world: &World) -> Facts {
    let has = |cni: Cni| world.nodes.values().any(|node| Cni::of(node) == cni);
    let (pods, api_servers) = tokio::join!(pods(client), api_servers(client));
    Facts {
        cilium: if has(Cni::Cilium) { cilium(client).await } else { BTreeMap::new() },
        calico: if has(Cni::Calico) { calico(client).await } else { BTreeMap::new() },
        pods,
        api_servers,
    }
}

async fn pods(client: &Client) -> BTreeMap<String, Vec<IpAddr>> {
    let pods: Api<Pod> = Api::all(client.clone());
    let params =
        ListParams::default().fields("spec.hostNetwork=false,status.phase=Running").limit(SAMPLE);
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    match api::within(api::WITHIN, pods.list(&params)).await {
        Ok(page) => {
            for pod in page {
                let Some(node) = pod.spec.and_then(|spec| spec.node_name) else { continue };
                let addresses = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
                let parsed =
                    addresses.iter().filter_map(|address| address.ip.parse::<IpAddr>().ok());
                let known = found.entry(node).or_default();
                known.extend(parsed);
                known.sort();
                // Two show as much as twenty, and the facts change less.
                known.truncate(4);
            }
        }
        Err(failure) => tracing::debug!(error = %failure, "Pods not sampled"),
    }
    found
}

async fn api_servers(client: &Client) -> Vec<IpAddr> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    match api::within(api::WITHIN, slices.get_opt("kubernetes")).await {
        Ok(slice) => {
            let endpoints = slice.map(|slice| slice.endpoints).unwrap_or_default();
            let addresses = endpoints.into_iter().flat_map(|endpoint| endpoint.addresses);
            let mut addresses: Vec<IpAddr> =
                addresses.filter_map(|address| address.parse().ok()).collect();
            addresses.sort();
            addresses
        }
        Err(failure) => {
            tracing::debug!(error = %failure, "Addresses of the API server not read");
            Vec::new()
        }
    }
}

/// `CiliumNode` objects: one per node, named like it.
async fn cilium(client: &Client) -> BTreeMap<String, Vec<IpNet>> {
    let mut ranges = BTreeMap::new();
    for object in foreign(client, "cilium.io", "v2", "CiliumNode", "ciliumnodes").await {
        let cidrs = object.data.pointer("/spec/ipam/podCIDRs").and_then(Value::as_array);
        let cidrs = cidrs.into_iter().flatten();
        let parsed: Vec<IpNet> = cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect();
        if let Some(name) = object.metadata.name.filter(|_| !parsed.is_empty()) {
            ranges.insert(name, parsed);
        }
    }
    ranges
}

/// `BlockAffinity` objects: which node has which block.
async fn calico(client: &Client) -> BTreeMap<String, Vec<IpNet>> {
    let mut ranges: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    let group = "crd.projectcalico.org";
    for object in foreign(client, group, "v1", "BlockAffinity", "blockaffinities").await {
        let field = |name: &str| object.data.pointer(&format!("/spec/{name}"))?.as_str();
        let is_deleted = field("deleted").is_some_and(|deleted| deleted == "true");
        let (Some(node), Some("confirmed"), false) = (field("node"), field("state"), is_deleted)
        else {
            continue;
        };
        if let Some(range) = field("cidr").and_then(|cidr| cidr.parse().ok()) {
            ranges.entry(node.to_owned()).or_default().push(range);
        }
    }
    for ranges in ranges.values_mut() {
        ranges.sort();
    }
    ranges
}

async fn foreign(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
) -> Vec<DynamicObject> {
    let resource = ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: format!("{group}/{version}"),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    };
    let objects: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
    let mut params = ListParams::default().limit(PAGE);
    let mut all = Vec::new();
    while all.len() < MOST {
        match api::within(api::WITHIN, objects.list(&params)).await {
            Ok(page) => {
                let token = page.metadata.continue_.clone().filter(|token| !token.is_empty());
                all.extend(page.items);
                params.continue_token = token;
                if params.continue_token.is_none() {
                    break;
                }
            }
            Err(failure) => {
                tracing::debug!(kind, error = %failure, "Objects of the CNI not read");
                break;
            }
        }
    }
    all
}
