//! Who may configure itself from the operator: real tokens, a real API server.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use data_encoding::{BASE64, BASE64URL_NOPAD};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{
    Api, Client,
    api::{DeleteParams, PostParams},
};
use netio::{
    resolve::{self, Resolver},
    task::TaskGroup,
};
use operator::{
    api::Requests,
    feed::{
        Attributes, Authenticator, Event, Limits, Member, MemberKey, Network, Server, Table,
        auth::Refusal,
    },
    index::{self, World},
    watch::key_of,
};
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use serde_json::{Value, json};
use session::{feed::Root, identity::Identity, issuer::Issuer};
use sidecar::source::feed::{self, Parts};
use tests::cluster::ControlPlane;
use tokio::sync::watch;

const NETWORK: &str = "prod";

/// A namespace with agents and others in it.
struct Place {
    plane: &'static ControlPlane,
    client: Client,
    namespace: String,
}

impl Place {
    async fn new() -> Self {
        let plane = ControlPlane::shared();
        let namespace = plane.namespace("feed").await;
        plane.service_account(&namespace, "easynet-agent").await;
        let place = Self { plane, client: plane.client(), namespace };
        for node in ["n1", "n2"] {
            let node: Node = serde_json::from_value(json!({"metadata": {"name": node}})).unwrap();
            // Another test of this program may have made it.
            let _ = Api::all(place.client.clone()).create(&PostParams::default(), &node).await;
        }
        place
    }

    fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn pod(&self, name: &str, account: &str, node: &str, owner: &str) -> Pod {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "DaemonSet", "name": owner,
                "uid": "00000000-0000-0000-0000-000000000001", "controller": true,
            }]},
            "spec": {
                "serviceAccountName": account, "nodeName": node,
                "containers": [{"name": "agent", "image": "easynet"}],
            },
        }))
        .unwrap();
        self.pods().create(&PostParams::default(), &pod).await.unwrap()
    }

    async fn agent(&self, name: &str, node: &str) -> Pod {
        self.pod(name, "easynet-agent", node, "easynet-agent-prod").await
    }

    async fn token(&self, account: &str, audience: &str, pod: Option<&Pod>) -> String {
        self.plane.token(&self.namespace, account, audience, pod).await
    }

    /// One whose index has heard of nothing yet.
    fn authenticator(&self) -> Authenticator {
        self.authenticator_of(self.client.clone(), World::default())
    }

    fn authenticator_of(&self, client: Client, world: World) -> Authenticator {
        Authenticator::token_review(client, &self.namespace, watch::channel(Arc::new(world)).1)
    }

    /// What an index knows that has heard of these agents.
    fn world(&self, agents: &[Pod]) -> World {
        let named = agents.iter().map(|pod| {
            let taken = Arc::new(index::Pod::take_agent(pod.clone()));
            (key_of(&pod.metadata), taken)
        });
        let mut world = World::default();
        world.agents.extend(named);
        world
    }

    async fn ask(&self, token: &str) -> Result<MemberKey, Refusal> {
        self.authenticator().authenticate(token, NETWORK).await
    }

    /// The same token, as the API server would have signed it for other times.
    fn in_the_past(&self, token: &str) -> String {
        let parts: Vec<&str> = token.split('.').collect();
        let mut claims: Value =
            serde_json::from_slice(&BASE64URL_NOPAD.decode(parts[1].as_bytes()).unwrap()).unwrap();
        for (claim, before) in [("iat", 7200), ("nbf", 7200), ("exp", 3600)] {
            let now = std::time::SystemTime::now()
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap()
                .as_secs();
            claims[claim] = json!(now - before);
        }
        let claims = BASE64URL_NOPAD.encode(claims.to_string().as_bytes());
        let signed = format!("{}.{claims}", parts[0]);
        let pem = fs::read_to_string(self.plane.dir().join("pki/sa.key")).unwrap();
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let rng = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &BASE64.decode(body.as_bytes()).unwrap(),
            &rng,
        )
        .unwrap();
        let signature = key.sign(&rng, signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    }
}

fn is_not_good(outcome: &Result<MemberKey, Refusal>) -> bool {
    matches!(outcome, Err(Refusal::NotGood(_)))
}

#[tokio::test]
async fn an_agent_is_the_node_that_its_pod_runs_on() {
    let place = Place::new().await;
    let (one, two) = (place.agent("a1", "n1").await, place.agent("a2", "n2").await);

    for (pod, node) in [(one, "n1"), (two, "n2")] {
        let token = place.token("easynet-agent", "easynet", Some(&pod)).await;
        assert_eq!(place.ask(&token).await, Ok(MemberKey::Node(node.to_owned())));
    }
}

#[tokio::test]
async fn a_token_of_another_audience_or_time_or_of_nobody_is_not_good() {
    let place = Place::new().await;
    let pod = place.agent("a1", "n1").await;
    let good = place.token("easynet-agent", "easynet", Some(&pod)).await;
    let other = place.token("easynet-agent", "vault", Some(&pod)).await;
    let unbound = place.token("easynet-agent", "easynet", None).await;
    let mut tampered = good.clone();
    tampered.truncate(good.len() - 8);
    tampered.push_str("AAAAAAAA");

    for (what, token) in [
        ("another audience", other),
        ("not bound to a pod", unbound),
        ("another signature", tampered),
        ("no token", "not.a.token".to_owned()),
        ("expired", place.in_the_past(&good)),
    ] {
        let outcome = place.ask(&token).await;
        assert!(is_not_good(&outcome), "{what}: {outcome:?}");
    }
    assert!(place.ask(&good).await.is_ok());
}

#[tokio::test]
async fn the_token_of_a_deleted_pod_is_not_good() {
    let place = Place::new().await;
    let pod = place.agent("a1", "n1").await;
    let token = place.token("easynet-agent", "easynet", Some(&pod)).await;

    place.pods().delete("a1", &DeleteParams::default().grace_period(0)).await.unwrap();
    let outcome = place.ask(&token).await;
    assert!(outcome.is_err(), "{outcome:?}");

    // A pod of the same name is another pod.
    place.agent("a1", "n1").await;
    let outcome = place.ask(&token).await;
    assert!(outcome.is_err(), "{outcome:?}");
}

#[tokio::test]
async fn nobody_but_an_agent_of_the_network_is_a_node() {
    let place = Place::new().await;
    let foreign = place.pod("p1", "default", "n1", "easynet-agent-prod").await;
    let token = place.token("default", "easynet", Some(&foreign)).await;
    let MemberKey::Pod { name, .. } = place.ask(&token).await.unwrap() else {
        panic!("a foreign ServiceAccount is no node")
    };
    assert_eq!(name, "p1");

    for (name, owner) in [("a1", "easynet-agent-test"), ("a2", "somebody")] {
        let pod = place.pod(name, "easynet-agent", "n1", owner).await;
        let token = place.token("easynet-agent", "easynet", Some(&pod)).await;
        let outcome = place.ask(&token).await;
        assert!(matches!(outcome, Err(Refusal::NotAllowed(_))), "{owner}: {outcome:?}");
    }

    let elsewhere = place.plane.namespace("elsewhere").await;
    place.plane.service_account(&elsewhere, "easynet-agent").await;
    let other = Place { plane: place.plane, client: place.client.clone(), namespace: elsewhere };
    let pod = other.agent("a1", "n1").await;
    let token = other.token("easynet-agent", "easynet", Some(&pod)).await;
    let outcome = place.ask(&token).await;
    assert!(matches!(outcome, Ok(MemberKey::Pod { .. })), "{outcome:?}");
}

#[tokio::test]
async fn an_agent_that_the_index_knows_costs_no_look_at_its_pod() {
    let place = Place::new().await;
    let requests = Requests::default();
    let client = place.plane.counted_client(&requests);
    let old = place.agent("a1", "n1").await;
    place.pods().delete("a1", &DeleteParams::default().grace_period(0)).await.unwrap();
    let (now, foreign) = (
        place.agent("a1", "n1").await,
        place.pod("a2", "easynet-agent", "n1", "easynet-agent-test").await,
    );
    let token = place.token("easynet-agent", "easynet", Some(&now)).await;
    let of_foreign = place.token("easynet-agent", "easynet", Some(&foreign)).await;
    // The index may be behind, so what it does not confirm is looked at.
    for (what, known, token, looks, is_agent) in [
        ("known", vec![now.clone()], &token, 0, true),
        ("not heard of", vec![], &token, 1, true),
        ("another of that name", vec![old], &token, 1, true),
        ("of another network", vec![foreign], &of_foreign, 1, false),
    ] {
        let authenticator = place.authenticator_of(client.clone(), place.world(&known));
        let (reads, writes) = (requests.reads(), requests.writes());

        let outcome = authenticator.authenticate(token, NETWORK).await;

        assert_eq!(outcome.is_ok(), is_agent, "{what}: {outcome:?}");
        let cost = (requests.reads() - reads, requests.writes() - writes);
        assert_eq!(cost, (looks, 1), "{what}: looks at pods, and reviews");
    }

    // Of a pod that is gone the token is not good, although the index has not heard of it yet.
    let token = place.token("easynet-agent", "easynet", Some(&now)).await;
    let authenticator = place.authenticator_of(client, place.world(&[now]));
    place.pods().delete("a1", &DeleteParams::default().grace_period(0)).await.unwrap();
    let outcome = authenticator.authenticate(&token, NETWORK).await;
    assert!(is_not_good(&outcome), "{outcome:?}");
}

#[tokio::test]
async fn an_agent_is_configured_by_its_token_alone() {
    let place = Place::new().await;
    let pod = place.agent("a1", "n1").await;
    let token = place.token("easynet-agent", "easynet", Some(&pod)).await;
    let dir = tempfile::tempdir().unwrap();
    let token_file = dir.path().join("token");
    fs::write(&token_file, token).unwrap();
    let key = MemberKey::Node("n1".to_owned());
    let member = Member {
        revision: 3,
        sidecar: Arc::default(),
        attributes: Attributes::default(),
        retire: false,
        traceparent: String::new(),
    };
    let network = Network {
        issuer: Arc::new(Issuer::generate(&mut ChaCha12Rng::from_seed([1; 32]))),
        epochs: vec![],
        members: [(key.clone(), member)].into(),
        records: Arc::default(),
    };
    let table = Table { networks: [(NETWORK.to_owned(), network)].into(), whole: true };
    let (_table, receiver) = watch::channel(Arc::new(table));
    let group = TaskGroup::new("test");
    let root = Root::from_bytes(&[7; 32]);
    let listen = SocketAddr::from(([127, 0, 0, 1], 0));
    let authenticator = place.authenticator();
    let server =
        Server::start(listen, &root, authenticator, receiver, Limits::default(), &group).unwrap();
    let url = format!("tcp://{}/{NETWORK}?k={}", server.local, root.key());

    let parts = Parts {
        url: url.parse().unwrap(),
        token_file: Some(token_file),
        identity: Arc::new(Identity::from_bytes(&[1; 64])),
        aead: wire::control::AEAD_CHACHA,
        revision: 0,
    };
    let resolver = Resolver::new(resolve::Config::default(), group.child("resolver"));
    let mut link = feed::spawn(parts, resolver, &group);

    let within = Duration::from_secs(20);
    let wait = link.desired.wait_for(Option::is_some);
    let desired = tokio::time::timeout(within, wait).await.unwrap().unwrap().clone().unwrap();
    assert_eq!(desired.revision, 3);
    let report = tokio::time::timeout(within, server.reports.next()).await.unwrap();
    assert_eq!(report.member, key);
    assert!(matches!(report.event, Event::Enrolled { .. }));
    group.cancel();
}
