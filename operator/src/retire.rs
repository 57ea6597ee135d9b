//! Taking everything down, before the operator is uninstalled.
//!
//! A mark on the lease asks the operator that runs to tell its agents to clean up; it then deletes its DaemonSets and EasyPeers. This
//! command waits for that, deletes what is left when the time is up, and succeeds in any case: an uninstallation must not hang.

use std::time::{Duration, Instant};

use crds::EasyPeer;
use k8s_openapi::{
    api::{
        apps::v1::DaemonSet,
        coordination::v1::Lease,
        core::v1::{ConfigMap, Secret},
        discovery::v1::EndpointSlice,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::{api, lease, names};

/// The agents' time.
const WAIT: Duration = Duration::from_secs(45);
const LOOK: Duration = Duration::from_millis(500);
const PAGE: u32 = 500;

/// Asks, waits, and sees to the rest.
pub async fn run(client: Client, namespace: &str) {
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
    let peers: Api<EasyPeer> = Api::all(client.clone());
    if let Err(error) = ask(&client, namespace).await {
        tracing::warn!(error = format!("{error:#}"), "The operator could not be asked");
    }
    let deadline = Instant::now() + WAIT;
    loop {
        let left = (names_of(&sets, Some(names::NETWORK)).await, names_of(&peers, None).await);
        match &left {
            (Ok(sets), Ok(peers)) if sets.is_empty() && peers.is_empty() => {
                tracing::info!("All agents have cleaned up");
                break;
            }
            _ if Instant::now() >= deadline => {
                tracing::warn!(
                    ?left,
                    "Not all agents said that they have cleaned up; deleting what is left"
                );
                break;
            }
            _ => tokio::time::sleep(LOOK).await,
        }
    }
    delete_all(&sets, Some(names::NETWORK)).await;
    delete_all(&peers, None).await;
    // These go with the Service of the feed, but not every cluster collects garbage at once.
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
    delete(&slices, names::FEED).await;
    delete(&secrets, names::IDENTITY).await;
    delete(&maps, names::FEED).await;
}

async fn ask(client: &Client, namespace: &str) -> anyhow::Result<()> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mark = json!({"metadata": {"annotations": {lease::RETIRE: Timestamp::now().to_string()}}});
    let (params, patch) = (PatchParams::default(), Patch::Merge(mark));
    api::within(api::WITHIN, leases.patch(names::LEASE, &params, &patch)).await?;
    Ok(())
}

async fn names_of<K>(objects: &Api<K>, label: Option<&str>) -> Result<Vec<String>, api::Failure>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut params = ListParams::default().limit(PAGE);
    if let Some(label) = label {
        params = params.labels(label);
    }
    let page = api::within(api::WITHIN, objects.list_metadata(&params)).await?;
    Ok(page.items.iter().map(ResourceExt::name_any).collect())
}

async fn delete_all<K>(objects: &Api<K>, label: Option<&str>)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    // A page at a time; what is deleted does not come again.
    for _ in 0..20 {
        match names_of(objects, label).await {
            Ok(names) if names.is_empty() => return,
            Ok(names) => {
                for name in names {
                    delete(objects, &name).await;
                }
            }
            Err(failure) => {
                tracing::warn!(error = %failure, "Not listed, so not deleted");
                return;
            }
        }
    }
}

async fn delete<K>(objects: &Api<K>, name: &str)
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let deleted = api::within(api::WITHIN, objects.delete(name, &DeleteParams::background())).await;
    match deleted {
        Ok(_) => tracing::info!(name, "Deleted"),
        Err(failure) if failure.is_not_found() => {}
        Err(failure) => tracing::warn!(name, error = %failure, "Not deleted"),
    }
}
