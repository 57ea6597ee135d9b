//! The kinds of the API group `easynet.io`: what a user writes, what the operator reports.
//!
//! Types, schemas and validation, no logic: what an object *means* is the operator's business. Doc comments of fields become the
//! descriptions of `kubectl explain`, so they are written for the person at the keyboard. The manifests in `generated/` are what
//! `crdgen` makes of this crate.
//!
//! The API server refuses what these schemas refuse, but only since the schema is there: readers treat texts as unchecked.

// `KubeSchema` repeats each struct inside a function, and columns have words in common.
#![allow(unreachable_pub, clippy::duplicated_attributes)]

pub mod condition;
pub mod network;
pub mod peer;
mod text;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::Value;

pub use crate::{
    condition::ConditionType,
    network::{EasyNetwork, EasyNetworkSpec, EasyNetworkStatus},
    peer::{EasyPeer, EasyPeerSpec, EasyPeerStatus},
    text::{Cidr, Mtu, PeerUrl},
};

/// The API group of all kinds, and the prefix of labels and annotations.
pub const GROUP: &str = "easynet.io";
/// Its only version.
pub const VERSION: &str = "v1alpha1";

/// Every definition, in the order in which a person wants to read them.
pub fn definitions() -> [CustomResourceDefinition; 2] {
    [EasyNetwork::crd(), EasyPeer::crd()].map(|definition| {
        let mut value = serde_json::to_value(&definition).unwrap_or_default();
        tidy(&mut value);
        // Only texts and formats differ.
        serde_json::from_value(value).unwrap_or(definition)
    })
}

/// One definition as the YAML file that `kubectl apply` takes.
///
/// # Errors
/// When a schema holds what YAML cannot say, which the tests of this crate rule out.
pub fn manifest(definition: &CustomResourceDefinition) -> Result<String, serde_saphyr::ser::Error> {
    // Through JSON, whose maps are sorted: the same order whatever the types' order is.
    let value = serde_json::to_value(definition).unwrap_or_default();
    Ok(format!(
        "# Made by crdgen from the crate `crds`; edit that.\n{}",
        serde_saphyr::to_string(&value)?
    ))
}

/// Says in Kubernetes' words what came out of Rust: a description without the line breaks of its source, which `kubectl explain` would show,
/// and integer formats that the API server knows.
fn tidy(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), &*field) {
                    ("description", Value::String(text)) => {
                        let paragraphs: Vec<_> =
                            text.split("\n\n").map(|text| text.replace('\n', " ")).collect();
                        *field = paragraphs.join("\n\n").into();
                    }
                    ("format", Value::String(format)) => match format.as_str() {
                        "uint8" | "uint16" => *field = "int32".into(),
                        "uint32" | "uint64" => *field = "int64".into(),
                        _ => {}
                    },
                    _ => tidy(field),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests;
