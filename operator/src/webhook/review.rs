//! What the API server asks and is answered: `admission.k8s.io/v1`, the part that is used.

use data_encoding::BASE64;
use k8s_openapi::api::core::v1::Pod;
use serde::{Deserialize, Serialize};

use super::inject::{Add, Settings, Verdict, inject, mark_refused};
use crate::index::World;

const API_VERSION: &str = "admission.k8s.io/v1";

/// The question. A pod that does not parse is `None`, and let through.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Question {
    pub api_version: String,
    pub request: Request,
}

#[derive(Debug, Deserialize)]
pub struct Request {
    pub uid: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default)]
    object: serde_json::Value,
}

/// The answer; always yes.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    api_version: &'static str,
    kind: &'static str,
    response: Response,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Parses a question and answers it; the outcome is a word for metrics.
///
/// # Errors
/// A text that is no question of this version.
pub fn answer(
    question: &[u8],
    world: &World,
    settings: &Settings,
) -> Result<(Answer, &'static str), serde_json::Error> {
    let Question { request, api_version } = serde_json::from_slice(question)?;
    if api_version != API_VERSION {
        return Err(<serde_json::Error as serde::de::Error>::custom(format!(
            "{api_version:?} is not {API_VERSION}"
        )));
    }
    // What an API server of a later version accepts may not parse here; it is none of ours then.
    let Ok(pod) = serde_json::from_value::<Pod>(request.object) else {
        return Ok((Answer::new(request.uid, &[], None), "unreadable"));
    };
    let verdict = if world.is_synced() {
        inject(&pod, &request.namespace, world, settings)
    } else {
        Verdict::Refuse(super::inject::Refusal::NoFeed)
    };
    Ok(match verdict {
        Verdict::Leave => (Answer::new(request.uid, &[], None), "left"),
        Verdict::Inject(adds) => (Answer::new(request.uid, &adds, None), "injected"),
        Verdict::Refuse(refusal) => {
            let warning = format!("easynet: no sidecar: {refusal}");
            let marked = mark_refused(&pod, &refusal);
            (Answer::new(request.uid, &marked, Some(warning)), refusal.reason())
        }
    })
}

impl Answer {
    fn new(uid: String, adds: &[Add], warning: Option<String>) -> Self {
        let patch = (!adds.is_empty()).then(|| serde_json::to_vec(adds).unwrap_or_default());
        let response = Response {
            uid,
            allowed: true,
            patch_type: patch.as_ref().map(|_| "JSONPatch"),
            patch: patch.map(|patch| BASE64.encode(&patch)),
            warnings: warning.into_iter().collect(),
        };
        Self { api_version: API_VERSION, kind: "AdmissionReview", response }
    }
}
