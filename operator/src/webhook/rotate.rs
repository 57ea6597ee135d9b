//! Keeps the certificate fresh and trusted, in the operator that leads.
//!
//! Level-triggered: each turn reads the Secret and the configuration of the webhook, and makes both what they should be. It owns
//! nothing between turns, so it may end at any time, and whoever leads next goes on.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use data_encoding::BASE64;
use k8s_openapi::{
    ByteString,
    api::{admissionregistration::v1::MutatingWebhookConfiguration, core::v1::Secret},
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use zeroize::Zeroizing;

use super::certificate::{Material, Step};
use crate::{
    api::{self, Failure},
    names,
};

/// The Secret with the certificate.
pub const SECRET: &str = "easynet-webhook-tls";
/// The configuration that the chart made.
pub const CONFIGURATION: &str = "easynet-webhook";
/// Its one webhook.
const WEBHOOK: &str = "inject.easynet.io";
/// The Service in front of the webhook.
const SERVICE: &str = "easynet-webhook";
/// A `caBundle` that somebody removed is back after this.
const EVERY: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(2);

/// Looks after the certificate for as long as it is polled.
///
/// # Errors
/// Never; failures are tried again.
pub async fn run(client: Client, namespace: String) -> anyhow::Result<()> {
    let rotation = Rotation {
        secrets: Api::namespaced(client.clone(), &namespace),
        configurations: Api::all(client),
        name: format!("{SERVICE}.{namespace}.svc"),
    };
    loop {
        let pause = match rotation.turn(unix_now()).await {
            Ok(pause) => pause,
            Err(error) => {
                tracing::warn!(%error, "The webhook's certificate could not be looked after");
                AGAIN
            }
        };
        tokio::time::sleep(pause).await;
    }
}

struct Rotation {
    secrets: Api<Secret>,
    configurations: Api<MutatingWebhookConfiguration>,
    /// That the API server calls.
    name: String,
}

impl Rotation {
    /// One look at both objects; when the next one is due.
    async fn turn(&self, now: i64) -> anyhow::Result<Duration> {
        let Some(configuration) =
            api::within(api::WITHIN, self.configurations.get_opt(CONFIGURATION)).await?
        else {
            // The chart's webhook is off.
            return Ok(EVERY);
        };
        let secret = api::within(api::WITHIN, self.secrets.get_opt(SECRET)).await?;
        let version = secret.as_ref().and_then(|secret| secret.metadata.resource_version.clone());
        let data = secret.and_then(|secret| secret.data).unwrap_or_default();
        let data = data.into_iter().map(|(key, value)| (key, Zeroizing::new(value.0))).collect();
        let next = match Material::read(&data) {
            Some(material) => {
                self.trust(&configuration, &material).await?;
                match material.step(now) {
                    Step::Keep(wait) => return Ok(wait.min(EVERY)),
                    Step::Stage => material.staged(&self.name, now)?,
                    Step::Promote => material.promoted(),
                    Step::Replace => Material::new(&self.name, now)?,
                }
            }
            None => Material::new(&self.name, now)?,
        };
        tracing::info!(certificate = ?next, "The webhook's certificate changes");
        self.write(&configuration, &next, version).await?;
        Ok(Duration::ZERO)
    }

    /// Makes the API server trust all of it.
    async fn trust(
        &self,
        configuration: &MutatingWebhookConfiguration,
        material: &Material,
    ) -> Result<(), Failure> {
        let bundle = material.bundle();
        let mut webhooks = configuration.webhooks.iter().flatten();
        let trusted = webhooks.find(|webhook| webhook.name == WEBHOOK);
        let trusted = trusted.and_then(|webhook| webhook.client_config.ca_bundle.as_ref());
        if trusted.is_some_and(|trusted| trusted.0 == bundle.as_bytes()) {
            return Ok(());
        }
        let ours = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": CONFIGURATION},
            "webhooks": [{"name": WEBHOOK, "clientConfig": {"caBundle": BASE64.encode(bundle.as_bytes())}}],
        });
        let (params, patch) = (forced(), Patch::Apply(&ours));
        let applied = self.configurations.patch(CONFIGURATION, &params, &patch);
        api::within(api::WITHIN, applied).await.map(drop)
    }

    /// Writes the Secret, unless somebody did so since it was read.
    async fn write(
        &self,
        configuration: &MutatingWebhookConfiguration,
        material: &Material,
        version: Option<String>,
    ) -> Result<(), Failure> {
        let data: BTreeMap<String, ByteString> = material
            .data()
            .into_iter()
            .map(|(key, value)| (key, ByteString(value.to_vec())))
            .collect();
        let ours = json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": SECRET,
                "resourceVersion": version,
                "labels": {"app.kubernetes.io/name": "easynet", "app.kubernetes.io/part-of": "easynet"},
                // It goes with the webhook.
                "ownerReferences": [{
                    "apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "MutatingWebhookConfiguration",
                    "name": CONFIGURATION,
                    "uid": configuration.metadata.uid,
                }],
            },
            "type": "Opaque",
            "data": data,
        });
        let (params, patch) = (forced(), Patch::Apply(&ours));
        match api::within(api::WITHIN, self.secrets.patch(SECRET, &params, &patch)).await {
            // Read it again.
            Err(failure) if failure.is_conflict() => Ok(()),
            outcome => outcome.map(drop),
        }
    }
}

fn forced() -> PatchParams {
    PatchParams::apply(names::FIELD_MANAGER).force()
}

pub(super) fn unix_now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
