//! The Secret of a network: its root, and the epoch in force.
//!
//! | key | holds |
//! |---|---|
//! | `root` | base32 of the root's seed (32 bytes) and the master key (32 bytes): who has it issues members |
//! | `epoch` | the key epoch in force, a number |
//! | `since` | when that began, unix seconds; absent means long ago |
//! | `secret` | instead of all these: a secret that nodes outside Kubernetes join with |

use std::{collections::BTreeMap, sync::Arc};

use data_encoding::BASE32_NOPAD;
use serde_json::{Value, json};
use session::issuer::Issuer;
use wire::id::NetworkId;
use zeroize::Zeroizing;

use crate::{index::Secret, names, plan::status::Reason};

/// The type of Secrets that the operator makes.
pub const KIND: &str = "easynet.io/credentials";

/// A network's keys.
#[derive(Clone, Debug)]
pub struct Keys {
    pub issuer: Arc<Issuer>,
    /// When the epoch in force began, unix seconds.
    pub since: i64,
    /// The secret was typed by somebody: the epoch never changes.
    pub is_typed: bool,
}

/// What is wrong with a Secret: reason and sentence of the condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unusable {
    pub reason: Reason,
    pub message: String,
}

/// Which Secret holds the keys of a network.
pub fn secret_name(network: &crds::EasyNetwork, name: &str) -> String {
    network
        .spec
        .credentials
        .as_ref()
        .map_or_else(|| names::credentials(name), |credentials| credentials.secret_ref.name.clone())
}

/// Reads a Secret. Takes some 50 ms for a typed secret, which is stretched.
///
/// # Errors
/// When it holds no keys, or a secret that can be guessed.
pub fn read(secret_name: &str, secret: &Secret, network_name: &str) -> Result<Keys, Unusable> {
    let invalid = |what: &str| Unusable {
        reason: Reason::CredentialsInvalid,
        message: format!(
            "the Secret {secret_name} {what}; apply again what `easynet-operator join` printed, or restore it from a backup"
        ),
    };
    let text = |key: &str| -> Option<Zeroizing<String>> {
        let bytes = secret.data.get(key)?;
        Some(Zeroizing::new(std::str::from_utf8(bytes).ok()?.trim().to_owned()))
    };
    if let Some(typed) = secret.data.get("secret") {
        if secret.data.contains_key("root") {
            return Err(invalid("holds both `root` and `secret`"));
        }
        let typed = std::str::from_utf8(typed).ok().map(str::trim).unwrap_or_default();
        if typed.is_empty() {
            return Err(Unusable {
                reason: Reason::CredentialsInvalid,
                message: format!(
                    "the Secret {secret_name} has an empty `secret`; put what `easynet secret new` prints there"
                ),
            });
        }
        let strength = session::membership::strength(typed);
        if strength < session::membership::WEAK_BITS {
            return Err(Unusable {
                reason: Reason::CredentialsWeak,
                message: format!(
                    "the `secret` in the Secret {secret_name} can be guessed (about {strength:.0} bits); put what `easynet secret new` prints there"
                ),
            });
        }
        let issuer = Arc::new(Issuer::from_secret(network_name, typed));
        return Ok(Keys { issuer, since: 0, is_typed: true });
    }
    let Some(root) = text("root") else {
        return Err(invalid("has neither `root` nor `secret`"));
    };
    let bytes = BASE32_NOPAD.decode(root.to_ascii_uppercase().as_bytes()).map(Zeroizing::new);
    let bytes = bytes.map_err(|_| invalid("has a `root` that is no base32"))?;
    let (seed, master) = bytes.split_at_checked(32).unwrap_or_default();
    let (Ok(seed), Ok(master)) = (seed.try_into(), master.try_into()) else {
        return Err(invalid("has a `root` of the wrong length"));
    };
    let epoch = text("epoch").and_then(|epoch| epoch.parse().ok());
    let Some(epoch) = epoch.filter(|epoch| *epoch > 0) else {
        return Err(invalid("has no `epoch`, a number above 0"));
    };
    let since = text("since").and_then(|since| since.parse().ok()).unwrap_or_default();
    Ok(Keys { issuer: Arc::new(Issuer::from_parts(seed, master, epoch)), since, is_typed: false })
}

/// The Secret of new keys.
pub fn manifest(
    name: &str,
    namespace: &str,
    labels: &BTreeMap<String, String>,
    issuer: &Issuer,
    since: i64,
) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "type": KIND,
        "metadata": {"name": name, "namespace": namespace, "labels": labels},
        "stringData": {
            "root": *root_text(issuer),
            "epoch": issuer.current_epoch().to_string(),
            "since": since.to_string(),
        },
    })
}

/// What changes when another epoch is in force.
pub fn rotation(epoch: u32, since: i64) -> Value {
    json!({"stringData": {"epoch": epoch.to_string(), "since": since.to_string()}})
}

/// What a person compares: the id of a network.
pub fn network_id(keys: &Keys) -> NetworkId {
    keys.issuer.network()
}

fn root_text(issuer: &Issuer) -> Zeroizing<String> {
    let parts = issuer.to_parts();
    let mut bytes = Zeroizing::new([0; 64]);
    bytes[..32].copy_from_slice(&*parts.root);
    bytes[32..].copy_from_slice(&*parts.master);
    Zeroizing::new(BASE32_NOPAD.encode(&*bytes).to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};

    use super::*;

    fn issuer() -> Issuer {
        Issuer::generate(&mut ChaCha12Rng::from_seed([7; 32]))
    }

    fn secret(entries: &[(&str, &str)]) -> Secret {
        let data = entries
            .iter()
            .map(|(key, value)| ((*key).to_owned(), Zeroizing::new(value.as_bytes().to_vec())));
        Secret { version: "1".to_owned(), data: data.collect() }
    }

    fn made() -> Vec<(String, String)> {
        let manifest = manifest("s", "ns", &BTreeMap::new(), &issuer(), 1000);
        let data = manifest["stringData"].as_object().unwrap();
        data.iter().map(|(key, value)| (key.clone(), value.as_str().unwrap().to_owned())).collect()
    }

    fn read_made(change: impl Fn(&str, &str) -> Option<String>) -> Result<Keys, Unusable> {
        let made = made();
        let entries: Vec<(&str, String)> = made
            .iter()
            .filter_map(|(key, value)| Some((key.as_str(), change(key, value)?)))
            .collect();
        let entries: Vec<(&str, &str)> =
            entries.iter().map(|(key, value)| (*key, value.as_str())).collect();
        read("s", &secret(&entries), "prod")
    }

    #[test]
    fn what_was_made_is_read_as_the_same_network() {
        let keys = read_made(|_, value| Some(value.to_owned())).unwrap();

        assert_eq!(keys.issuer.network(), issuer().network());
        assert_eq!((keys.issuer.current_epoch(), keys.since, keys.is_typed), (1, 1000, false));
        assert_eq!(keys.issuer.epoch(1).psk, issuer().epoch(1).psk);
    }

    #[test]
    fn a_broken_secret_says_what_is_wrong_and_what_to_do() {
        let without = |name: &'static str| {
            read_made(move |key, value| (key != name).then(|| value.to_owned())).unwrap_err()
        };
        let with = |name: &'static str, text: &'static str| {
            read_made(move |key, value| Some(if key == name { text } else { value }.to_owned()))
                .unwrap_err()
        };

        for (unusable, what) in [
            (without("root"), "neither `root` nor `secret`"),
            (without("epoch"), "no `epoch`"),
            (with("epoch", "0"), "no `epoch`"),
            (with("root", "aaaa"), "wrong length"),
            (with("root", "!"), "no base32"),
            (read("s", &secret(&[("secret", " ")]), "prod").unwrap_err(), "empty"),
        ] {
            assert_eq!(unusable.reason, Reason::CredentialsInvalid);
            assert!(unusable.message.contains(what), "{}", unusable.message);
        }
    }

    #[test]
    fn a_typed_secret_is_a_network_that_others_join_by_it_unless_it_is_weak() {
        let weak = read("s", &secret(&[("secret", "hunter2")]), "prod").unwrap_err();
        let typed = "kq3vh2xw7m5rztfy6n4cplbd2e";
        let keys = read("s", &secret(&[("secret", typed)]), "prod").unwrap();

        assert_eq!(weak.reason, Reason::CredentialsWeak);
        assert!(!weak.message.contains("hunter2"));
        assert_eq!(keys.issuer.network(), Issuer::from_secret("prod", typed).network());
        assert!(keys.is_typed);
    }
}
