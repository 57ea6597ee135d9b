//! Reads what is not followed: where CNIs keep their ranges, a sample of pods, the API server's addresses.
//!
//! Everything here is optional: what is not there is left out, and what could not be read now is as it was before. Lists are bounded.

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

/// Reads what is there; `before` is what was read last.
pub async fn read(client: &Client, world: &World, before: Facts) -> Facts {
    let has = |cni: Cni| world.nodes.values().any(|node| Cni::of(node) == cni);
    let (pods, api_servers) = tokio::join!(pods(client), api_servers(client));
    Facts {
        cilium: match has(Cni::Cilium) {
            true => cilium(client).await.unwrap_or(before.cilium),
            false => BTreeMap::new(),
        },
        calico: match has(Cni::Calico) {
            true => calico(client).await.unwrap_or(before.calico),
            false => BTreeMap::new(),
        },
        pods: pods.unwrap_or(before.pods),
        api_servers: api_servers.unwrap_or(before.api_servers),
    }
}

async fn pods(client: &Client) -> Option<BTreeMap<String, Vec<IpAddr>>> {
    let pods: Api<Pod> = Api::all(client.clone());
    let params =
        ListParams::default().fields("spec.hostNetwork=false,status.phase=Running").limit(SAMPLE);
    let page = known("pods", api::within(api::WITHIN, pods.list(&params)).await)?;
    let mut found: BTreeMap<String, Vec<IpAddr>> = BTreeMap::new();
    for pod in page {
        let Some(node) = pod.spec.and_then(|spec| spec.node_name) else { continue };
        let addresses = pod.status.and_then(|status| status.pod_ips).unwrap_or_default();
        let parsed = addresses.iter().filter_map(|address| address.ip.parse::<IpAddr>().ok());
        let known = found.entry(node).or_default();
        known.extend(parsed);
        known.sort();
        // Two show as much as twenty, and the facts change less.
        known.truncate(4);
    }
    Some(found)
}

async fn api_servers(client: &Client) -> Option<Vec<IpAddr>> {
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    let slice = api::within(api::WITHIN, slices.get_opt("kubernetes")).await;
    let endpoints = known("addresses of the API server", slice)?.map(|slice| slice.endpoints);
    let addresses = endpoints.into_iter().flatten().flat_map(|endpoint| endpoint.addresses);
    let mut addresses: Vec<IpAddr> = addresses.filter_map(|address| address.parse().ok()).collect();
    addresses.sort();
    Some(addresses)
}

/// What was read; nothing, and a warning, if that failed.
fn known<T>(what: &str, read: Result<T, api::Failure>) -> Option<T> {
    read.inspect_err(|failure| {
        tracing::warn!(what, error = %failure, "Not read; what was known of it before counts on");
    })
    .ok()
}

/// `CiliumNode` objects: one per node, named like it.
async fn cilium(client: &Client) -> Option<BTreeMap<String, Vec<IpNet>>> {
    let mut ranges = BTreeMap::new();
    for object in foreign(client, "cilium.io", "v2", "CiliumNode", "ciliumnodes").await? {
        let cidrs = object.data.pointer("/spec/ipam/podCIDRs").and_then(Value::as_array);
        let cidrs = cidrs.into_iter().flatten();
        let parsed: Vec<IpNet> = cidrs.filter_map(|cidr| cidr.as_str()?.parse().ok()).collect();
        if let Some(name) = object.metadata.name.filter(|_| !parsed.is_empty()) {
            ranges.insert(name, parsed);
        }
    }
    Some(ranges)
}

/// `BlockAffinity` objects: which node has which block.
async fn calico(client: &Client) -> Option<BTreeMap<String, Vec<IpNet>>> {
    let mut ranges: BTreeMap<String, Vec<IpNet>> = BTreeMap::new();
    let group = "crd.projectcalico.org";
    for object in foreign(client, group, "v1", "BlockAffinity", "blockaffinities").await? {
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
    Some(ranges)
}

async fn foreign(
    client: &Client,
    group: &str,
    version: &str,
    kind: &str,
    plural: &str,
) -> Option<Vec<DynamicObject>> {
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
        let page = match api::within(api::WITHIN, objects.list(&params)).await {
            // The kind is not there at all.
            Err(failure) if failure.is_not_found() => break,
            page => known(kind, page)?,
        };
        params.continue_token = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        all.extend(page.items);
        if params.continue_token.is_none() {
            break;
        }
    }
    Some(all)
}
