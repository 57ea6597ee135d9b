use std::sync::Mutex;

use data_encoding::BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, pki_types::ServerName},
};

use super::*;
use crate::{
    index::Secret,
    webhook::{inject::PodSecurity, rotate::unix_now},
};

const NAME: &str = "easynet-webhook.easynet-system.svc";

#[tokio::test]
async fn a_pod_that_asks_is_answered_with_a_patch_over_tls() {
    let server = Server::start().await;
    let material = server.certify();

    let answer = server.ask(&material.bundle(), &question("prod")).await.unwrap();

    let response = &answer["response"];
    assert_eq!((&answer["kind"], &response["uid"]), (&json!("AdmissionReview"), &json!("u-1")));
    assert_eq!((&response["allowed"], &response["patchType"]), (&json!(true), &json!("JSONPatch")));
    let patch = BASE64.decode(response["patch"].as_str().unwrap().as_bytes()).unwrap();
    let patch: Value = serde_json::from_slice(&patch).unwrap();
    assert_eq!(patch[1]["value"][0]["name"], "easynet", "{patch}");
    assert_eq!(server.outcomes(), ["injected"]);
}

#[tokio::test]
async fn a_pod_that_may_not_have_a_sidecar_is_let_through_with_a_warning() {
    let server = Server::start().await;
    let material = server.certify();

    let answer = server.ask(&material.bundle(), &question("other")).await.unwrap();

    assert_eq!(answer["response"]["allowed"], true);
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(warning.contains("easynet: no sidecar: there is no EasyNetwork other"), "{warning}");
    assert_eq!(server.outcomes(), ["UnknownNetwork"]);
}

#[tokio::test]
async fn before_the_cluster_is_known_nobody_is_refused_for_what_is_not_known() {
    let server = Server::start_with(World::default()).await;
    let material = server.certify();

    let answer = server.ask(&material.bundle(), &question("prod")).await.unwrap();

    assert_eq!(answer["response"]["allowed"], true);
    assert_eq!(server.outcomes(), ["NoFeed"]);
}

#[tokio::test]
async fn what_is_no_question_costs_nobody_but_the_one_who_asked() {
    let server = Server::start().await;
    let bundle = server.certify().bundle();
    let pod_of_later = json!({"apiVersion": "admission.k8s.io/v1", "request": {"uid": "u-2", "object": {"spec": 5}}});

    assert_eq!(server.ask(&bundle, "no json").await.unwrap_err(), 400);
    assert_eq!(
        server
            .ask(&bundle, r#"{"apiVersion": "admission.k8s.io/v9", "request": {"uid": "a"}}"#)
            .await
            .unwrap_err(),
        400
    );
    assert_eq!(server.ask(&bundle, &"x".repeat(MAX_QUESTION + 1)).await.unwrap_err(), 413);
    assert_eq!(server.ask_at("/other", &bundle, "{}").await.unwrap_err(), 404);
    let unreadable = server.ask(&bundle, &pod_of_later.to_string()).await.unwrap();
    assert_eq!(
        unreadable["response"]["allowed"], true,
        "a pod that does not parse here is let through"
    );
    assert!(server.ask(&bundle, &question("prod")).await.is_ok(), "and the next one is served");
}

#[tokio::test]
async fn a_certificate_that_changes_is_trusted_all_the_way() {
    let server = Server::start().await;
    let first = server.certify();
    let before = first.bundle();
    let staged = first.staged(NAME, unix_now()).unwrap();
    server.write(&staged);
    assert!(server.ask(&before, &question("prod")).await.is_ok(), "the old one is still served");

    let bundle = staged.bundle();
    let promoted = staged.promoted();
    server.write(&promoted);

    assert!(server.ask(&bundle, &question("prod")).await.is_ok());
    server.remove();
    assert!(
        server.ask(&bundle, &question("prod")).await.is_ok(),
        "a Secret that is gone takes nothing away"
    );
}

#[tokio::test]
async fn who_connects_and_says_nothing_keeps_nobody_waiting() {
    let server = Server::start().await;
    let bundle = server.certify().bundle();
    let mut silent = Vec::new();
    for _ in 0..MAX_CONNECTIONS / 2 {
        silent.push(TcpStream::connect(server.address).await.unwrap());
    }

    assert!(server.ask(&bundle, &question("prod")).await.is_ok());
}

struct Server {
    address: SocketAddr,
    world: watch::Sender<Arc<World>>,
    outcomes: Arc<Mutex<Vec<&'static str>>>,
    _tasks: TaskGroup,
}

impl Server {
    async fn start() -> Self {
        Self::start_with(crate::webhook::inject::tests::synced_world()).await
    }

    async fn start_with(world: World) -> Self {
        let (world, receiver) = watch::channel(Arc::new(world));
        let outcomes: Arc<Mutex<Vec<&'static str>>> = Arc::default();
        let counted = Arc::clone(&outcomes);
        let settings = Settings {
            namespace: "easynet-system".to_owned(),
            image: "easynet:1".to_owned(),
            pull_policy: "IfNotPresent".to_owned(),
            default_pod_security: PodSecurity::Privileged,
            collector: None,
        };
        let answering = Answering {
            world: receiver,
            settings: Arc::new(settings),
            observe: Arc::new(move |outcome, _| counted.lock().unwrap().push(outcome)),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let tasks = TaskGroup::new("test");
        tasks.spawn("webhook", serve(listener, answering));
        Self { address, world, outcomes, _tasks: tasks }
    }

    /// A first certificate, in the Secret.
    fn certify(&self) -> Material {
        let material = Material::new(NAME, unix_now()).unwrap();
        self.write(&material);
        material
    }

    fn write(&self, material: &Material) {
        self.world.send_modify(|world| {
            let secret = Secret { version: format!("{:?}", Instant::now()), data: material.data() };
            let key = format!("easynet-system/{SECRET}");
            Arc::make_mut(world).secrets.insert(key, Arc::new(secret));
        });
    }

    fn remove(&self) {
        self.world.send_modify(|world| Arc::make_mut(world).secrets.clear());
    }

    fn outcomes(&self) -> Vec<&'static str> {
        self.outcomes.lock().unwrap().clone()
    }

    async fn ask(&self, bundle: &str, question: &str) -> Result<Value, u16> {
        self.ask_at(PATH, bundle, question).await
    }

    /// What it answers to whoever trusts the bundle, or the status if that is another than 200.
    async fn ask_at(&self, path: &str, bundle: &str, question: &str) -> Result<Value, u16> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(certificate.unwrap()).unwrap();
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.address).await.unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let mut stream =
            connector.connect(ServerName::try_from(NAME).unwrap(), stream).await.unwrap();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {NAME}\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            question.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        // It may answer before it has read all of it, and hang up.
        let _ = stream.write_all(question.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status: u16 = head.split(' ').nth(1).unwrap().parse().unwrap();
        if status == 200 { Ok(serde_json::from_str(body).unwrap()) } else { Err(status) }
    }
}

fn question(network: &str) -> String {
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "namespace": "shop",
            "operation": "CREATE",
            "object": {
                "metadata": {"name": "p", "labels": {"easynet.io/inject": network}},
                "spec": {"containers": [{"name": "app", "image": "a"}]},
            },
        },
    })
    .to_string()
}
