//! The root that `?k=` names: made once, and kept in a Secret of the operator's namespace.

use anyhow::Context;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use rand_chacha::ChaCha12Rng;
use session::feed::Root;

use crate::{
    api::{WITHIN, within},
    names,
};

/// The Secret's key.
const KEY: &str = "root";

/// Reads the root, or makes it. Of two that make it at once, one does, and both have that one.
///
/// # Errors
/// When the API server does not answer, or what is in the Secret is no root: a new one would lock every sidecar out, so
/// that is left to a person.
pub async fn root(client: &Client, namespace: &str, rng: &mut ChaCha12Rng) -> anyhow::Result<Root> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    if let Some(secret) = within(WITHIN, secrets.get_opt(names::IDENTITY)).await? {
        return read(&secret);
    }
    let root = Root::generate(rng);
    match within(WITHIN, secrets.create(&PostParams::default(), &secret(&root))).await {
        Ok(_) => Ok(root),
        Err(failure) if failure.is_conflict() => {
            read(&within(WITHIN, secrets.get(names::IDENTITY)).await?)
        }
        Err(failure) => Err(failure.into()),
    }
}

fn secret(root: &Root) -> Secret {
    let labels = [("app.kubernetes.io/managed-by".to_owned(), names::OPERATOR.to_owned())];
    Secret {
        metadata: ObjectMeta {
            name: Some(names::IDENTITY.to_owned()),
            labels: Some(labels.into()),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), ByteString(root.to_bytes().to_vec()))].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

fn read(secret: &Secret) -> anyhow::Result<Root> {
    let bytes = secret.data.as_ref().and_then(|data| data.get(KEY));
    let seed = bytes.and_then(|bytes| <&[u8; 32]>::try_from(bytes.0.as_slice()).ok());
    seed.map(Root::from_bytes).with_context(|| {
        format!(
            "the Secret {} has no {KEY:?} of 32 bytes; restore it, or delete it and restart all agents",
            names::IDENTITY
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_survives_its_secret_and_nothing_else_is_one() {
        let root = Root::from_bytes(&[7; 32]);
        assert_eq!(read(&secret(&root)).unwrap().key(), root.key());

        for bytes in [&b""[..], &[7; 31], &[7; 64]] {
            let mut spoilt = secret(&root);
            let data = [(KEY.to_owned(), ByteString(bytes.to_vec()))];
            spoilt.data = Some(data.into());
            assert!(read(&spoilt).unwrap_err().to_string().contains("restore it"));
        }
    }
}
