//! Who calls: what a token says, checked by whoever issued it.
//!
//! In a cluster that is the API server. A token counts only if
//!
//! - it is authentic and the *returned* audiences have ours: every author of a pod can mint a token of that audience, and an
//!   API server that does not know audiences returns none;
//! - it is bound to a pod, so it ends with that;
//! - for the role of a node: its ServiceAccount is the agents', its pod belongs to the network's DaemonSet, and the node is
//!   the one that the token is bound to, whatever the caller says;
//! - for the role of a pod: whoever the ServiceAccount is. Whether that pod is a member stands in the table.
//!
//! The pod of a node's token is looked up in the index first, so that an agent costs one request. The index may be behind, so it can
//! only say yes: a pod that it does not know, or not as an agent's, is asked for. That the pod exists, the API server said of the
//! token, from what it remembers of tokens for some seconds: for so long a pod that was deleted a moment ago may still enrol.

use std::{collections::BTreeMap, fmt, sync::Arc};

use k8s_openapi::api::{
    authentication::v1::{TokenReview, TokenReviewSpec, UserInfo},
    core::v1::Pod as ApiPod,
};
use kube::{Api, Client, api::PostParams};
use tokio::sync::{Semaphore, watch};

use super::MemberKey;
use crate::{
    api::{WITHIN, within},
    index::{Pod, World},
    names,
};

/// Reviews under way at once: what an API server takes without being asked to slow down.
const REVIEWS: usize = 32;
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";

/// Says who holds a token.
pub enum Authenticator {
    TokenReview(Reviewer),
    Static(Tokens),
}

/// Asks the API server.
pub struct Reviewer {
    client: Client,
    /// Where our agents run.
    namespace: String,
    /// Has the agents' pods, as far as they were heard of.
    world: watch::Receiver<Arc<World>>,
    turns: Arc<Semaphore>,
}

/// Tokens given out by hand, kept as their hashes.
#[derive(Default)]
pub struct Tokens(BTreeMap<[u8; 32], (String, MemberKey)>);

/// Why a caller is nobody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Whoever could say did not; asking again may help.
    #[error("the token could not be checked: {0}")]
    Unchecked(String),
    #[error("the token is not good: {0}")]
    NotGood(String),
    #[error("{0}")]
    NotAllowed(String),
}

impl Tokens {
    /// Adds a token of a member of a network (by the EasyNetwork's name).
    pub fn add(&mut self, token: &str, network: &str, member: MemberKey) {
        self.0.insert(*blake3::hash(token.as_bytes()).as_bytes(), (network.to_owned(), member));
    }
}

impl Authenticator {
    /// Asks the API server of `client`; `namespace` is where the agents' DaemonSets are, and `world` knows their pods.
    pub fn token_review(
        client: Client,
        namespace: impl Into<String>,
        world: watch::Receiver<Arc<World>>,
    ) -> Self {
        let turns = Arc::new(Semaphore::new(REVIEWS));
        Self::TokenReview(Reviewer { client, namespace: namespace.into(), world, turns })
    }

    /// Who in `network` holds `token`.
    ///
    /// # Errors
    /// Nobody, or nobody can say.
    pub async fn authenticate(&self, token: &str, network: &str) -> Result<MemberKey, Refusal> {
        if token.is_empty() {
            return Err(Refusal::NotGood("there is none".to_owned()));
        }
        match self {
            Self::TokenReview(reviewer) => reviewer.authenticate(token, network).await,
            Self::Static(tokens) => match tokens.0.get(blake3::hash(token.as_bytes()).as_bytes()) {
                Some((of, member)) if of == network => Ok(member.clone()),
                Some((of, _)) => {
                    Err(Refusal::NotAllowed(format!("the token is for the network {of}")))
                }
                None => Err(Refusal::NotGood("it is not known".to_owned())),
            },
        }
    }
}

impl Reviewer {
    async fn authenticate(&self, token: &str, network: &str) -> Result<MemberKey, Refusal> {
        let _turn = self.turns.acquire().await.map_err(|_| unchecked(&"the server stops"))?;
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![names::AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let reviewed = within(WITHIN, reviews.create(&PostParams::default(), &review))
            .await
            .map_err(|error| unchecked(&error))?;
        let bound = read(reviewed, &self.namespace)?;
        let Bound { role: Role::Node(node), name, uid, .. } = &bound else {
            return Ok(MemberKey::Pod {
                namespace: bound.namespace,
                name: bound.name,
                uid: bound.uid,
            });
        };
        let known = self.world.borrow().agents.get(&format!("{}/{name}", self.namespace)).cloned();
        if is_agent(known.as_deref(), uid, node, network).is_err() {
            let pods: Api<ApiPod> = Api::namespaced(self.client.clone(), &self.namespace);
            let pod =
                within(WITHIN, pods.get_opt(name)).await.map_err(|error| unchecked(&error))?;
            is_agent(pod.map(Pod::take_agent).as_ref(), uid, node, network)?;
        }
        Ok(MemberKey::Node(node.clone()))
    }
}

fn unchecked(error: &dyn fmt::Display) -> Refusal {
    Refusal::Unchecked(error.to_string())
}

/// The pod that a good token is bound to.
#[derive(Debug, PartialEq, Eq)]
struct Bound {
    role: Role,
    namespace: String,
    name: String,
    uid: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// An agent's account, on this node.
    Node(String),
    Pod,
}

/// Reads the answer of the API server.
fn read(review: TokenReview, namespace: &str) -> Result<Bound, Refusal> {
    let not_good = |why: &str| Err(Refusal::NotGood(why.to_owned()));
    let Some(status) = review.status else { return not_good("the API server says nothing of it") };
    if status.authenticated != Some(true) {
        let error = status.error.unwrap_or_else(|| "the API server does not know it".to_owned());
        return Err(Refusal::NotGood(error));
    }
    if !status.audiences.iter().flatten().any(|audience| audience == names::AUDIENCE) {
        return not_good("it is for another audience");
    }
    let Some(user) = status.user else { return not_good("it is nobody's") };
    let account = user.username.as_deref().and_then(|name| {
        name.strip_prefix("system:serviceaccount:").and_then(|name| name.split_once(':'))
    });
    let Some((of, account)) = account else { return not_good("it is no ServiceAccount's") };
    let (Some(name), Some(uid)) = (extra(&user, POD_NAME), extra(&user, POD_UID)) else {
        return not_good("it is not bound to a pod; use a projected one");
    };
    let role = if of == namespace && account == names::AGENT_ACCOUNT {
        let Some(node) = extra(&user, NODE_NAME) else {
            return not_good("it is not bound to a node");
        };
        Role::Node(node)
    } else {
        Role::Pod
    };
    Ok(Bound { role, namespace: of.to_owned(), name, uid })
}

/// The only value of one of the token's extras.
fn extra(user: &UserInfo, key: &str) -> Option<String> {
    match user.extra.as_ref()?.get(key)?.as_slice() {
        [value] if !value.is_empty() => Some(value.clone()),
        _ => None,
    }
}

/// Whether the pod of a token with the agents' account is an agent of `network` on `node`.
fn is_agent(pod: Option<&Pod>, uid: &str, node: &str, network: &str) -> Result<(), Refusal> {
    let not_allowed = |why: String| Err(Refusal::NotAllowed(why));
    let Some(pod) = pod.filter(|pod| pod.uid == uid) else {
        return not_allowed("the token's pod is gone".to_owned());
    };
    if pod.node != node {
        return not_allowed(format!("the token's pod does not run on {node}"));
    }
    let wanted = names::agents(network);
    if pod.daemon_set != wanted {
        return not_allowed(format!("the token's pod is not of the DaemonSet {wanted}"));
    }
    Ok(())
}

impl fmt::Debug for Authenticator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TokenReview(_) => "Authenticator::TokenReview",
            Self::Static(_) => "Authenticator::Static",
        })
    }
}

impl fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reviewer").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Tokens").field(&self.0.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn review(audiences: &[&str], username: &str, extra: serde_json::Value) -> TokenReview {
        serde_json::from_value(json!({
            "spec": {},
            "status": {
                "authenticated": true,
                "audiences": audiences,
                "user": {"username": username, "extra": extra},
            },
        }))
        .unwrap()
    }

    fn bound_extra() -> serde_json::Value {
        json!({POD_NAME: ["easynet-agent-prod-x"], POD_UID: ["u1"], NODE_NAME: ["n1"]})
    }

    const AGENT: &str = "system:serviceaccount:easynet-system:easynet-agent";

    #[test]
    fn only_an_agents_token_is_a_nodes() {
        let ok = read(review(&["easynet"], AGENT, bound_extra()), "easynet-system").unwrap();
        assert_eq!(ok.role, Role::Node("n1".into()));

        for (username, role) in [
            ("system:serviceaccount:other:easynet-agent", Role::Pod),
            ("system:serviceaccount:easynet-system:default", Role::Pod),
        ] {
            let bound = read(review(&["easynet"], username, bound_extra()), "easynet-system");
            assert_eq!(bound.unwrap().role, role, "{username}");
        }
    }

    #[test]
    fn whatever_is_amiss_with_a_token_is_said() {
        let no = |extra: &[&str]| {
            let mut all = bound_extra();
            for key in extra {
                all.as_object_mut().unwrap().remove(*key);
            }
            all
        };
        for (audiences, username, extra, part) in [
            (&[][..], AGENT, no(&[]), "another audience"),
            (&["kubernetes"][..], AGENT, no(&[]), "another audience"),
            (&["easynet"][..], "system:node:n1", no(&[]), "no ServiceAccount"),
            (&["easynet"][..], AGENT, no(&[POD_NAME]), "not bound to a pod"),
            (&["easynet"][..], AGENT, no(&[POD_UID]), "not bound to a pod"),
            (&["easynet"][..], AGENT, no(&[NODE_NAME]), "not bound to a node"),
            (&["easynet"][..], AGENT, json!({POD_NAME: ["a", "b"], POD_UID: ["u"]}), "not bound"),
        ] {
            let refusal = read(review(audiences, username, extra), "easynet-system").unwrap_err();
            assert!(refusal.to_string().contains(part), "{part}: {refusal}");
        }
        let expired = serde_json::from_value(
            json!({"spec": {}, "status": {"authenticated": false, "error": "token has expired"}}),
        );
        let refusal = read(expired.unwrap(), "easynet-system").unwrap_err();
        assert_eq!(refusal.to_string(), "the token is not good: token has expired");
    }

    #[test]
    fn an_agent_is_a_pod_of_the_networks_daemon_set_on_that_node() {
        let pod = |uid: &str, node: &str, kind: &str, owner: &str| {
            let pod = json!({
                "metadata": {"uid": uid, "ownerReferences": [
                    {"apiVersion": "v1", "kind": "DaemonSet", "name": "easynet-agent-prod", "uid": "p"},
                    {"apiVersion": "apps/v1", "kind": kind, "name": owner, "uid": "o", "controller": true},
                ]},
                "spec": {"nodeName": node, "containers": []},
            });
            Pod::take_agent(serde_json::from_value(pod).unwrap())
        };
        let good = pod("u1", "n1", "DaemonSet", "easynet-agent-prod");
        assert_eq!(is_agent(Some(&good), "u1", "n1", "prod"), Ok(()));

        for (pod, uid, node, network) in [
            (None, "u1", "n1", "prod"),
            (Some(good.clone()), "u2", "n1", "prod"),
            (Some(good.clone()), "u1", "n2", "prod"),
            (Some(good), "u1", "n1", "test"),
            (Some(pod("u1", "n1", "ReplicaSet", "easynet-agent-prod")), "u1", "n1", "prod"),
            (Some(pod("u1", "n1", "DaemonSet", "mine")), "u1", "n1", "prod"),
        ] {
            assert!(is_agent(pod.as_ref(), uid, node, network).is_err(), "{pod:?} {network}");
        }
    }

    #[tokio::test]
    async fn a_known_token_is_good_for_its_network_alone() {
        let mut tokens = Tokens::default();
        tokens.add("t1", "prod", MemberKey::External("a".into()));
        let authenticator = Authenticator::Static(tokens);

        assert_eq!(
            authenticator.authenticate("t1", "prod").await,
            Ok(MemberKey::External("a".into()))
        );
        assert!(authenticator.authenticate("t1", "test").await.is_err());
        assert!(authenticator.authenticate("t2", "prod").await.is_err());
        assert!(authenticator.authenticate("", "prod").await.is_err());
        assert!(!format!("{authenticator:?}").contains("t1"));
    }
}
