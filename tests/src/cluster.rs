//! Real Kubernetes for tests: etcd, kube-apiserver, and whatever else is asked for.
//!
//! ```no_run
//! use tests::cluster::ControlPlane;
//!
//! # async fn example() -> anyhow::Result<()> {
//! let plane = ControlPlane::shared();            // one per test program, started on first use (about 5 s)
//! plane.install_crds().await;                    // EasyNetwork and EasyPeer, established
//! let client = plane.client();                   // cluster-admin; belongs to the runtime it is made in
//! let namespace = plane.namespace("feed").await; // a fresh one with a ServiceAccount `default`
//! let token = plane.token(&namespace, "default", "easynet", None).await;
//! let as_operator = plane.client_with_token(&token);
//! plane.kubectl(&["get", "easynetworks"]).ok();  // real kubectl, real helm
//! # Ok(()) }
//! ```
//! - [`ControlPlane::shared`] is for tests that leave the server alone; cluster-scoped objects of different tests need different names.
//!   [`ControlPlane::start`] gives one of its own, to kill, stop and restart ([`ControlPlane::kill_apiserver`] …), and [`Options`] adds
//!   controllers and a scheduler. Any number run side by side, each on ports of its own on the loopback.
//! - [`ControlPlane::audit`] sees every request that the API server answered, by whom: counts requests, proves permissions.
//! - Everything ends with the test program, whatever kills that: processes get SIGKILL from the kernel, files go with a janitor. After a
//!   panic the logs stay in `target/cluster/run/…/log`, and the panic's message says where.
//! - [`Cluster`] is a whole one, with nodes that run pods, behind a NAT in a [`crate::lab::Lab`]. Needs root.
//! - The programs come from `tests/scripts/prepare-cluster` or from `KUBEBUILDER_ASSETS`.

mod audit;
pub mod bed;
mod binaries;
pub mod collector;
mod image;
pub mod measure;
mod node;
mod pki;
mod process;
pub mod product;
mod run;
mod whole;

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    path::PathBuf,
    process::Command,
    sync::{
        Mutex, OnceLock, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use data_encoding::BASE64;
use k8s_openapi::{
    api::{
        authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec},
        core::v1::{Namespace, Pod, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config, ResourceExt,
    api::{ObjectMeta, Patch, PatchParams, PostParams},
    config::AuthInfo,
    runtime::{conditions, wait::await_condition},
};
use operator::api::Requests;

pub use self::{
    audit::{Audit, Request},
    image::{Image, built},
    node::Node,
    whole::{Cluster, POD_RANGE, condition, has_condition},
};
use self::{pki::Pki, process::Component, run::RunDir};
use crate::lab::Host;

/// How long anything may take to come up. It takes 4 to 7 s on an idle machine with two cores.
const STARTUP: Duration = Duration::from_secs(90);
/// How long one API request of the harness may take.
const REQUEST: Duration = Duration::from_secs(30);

/// What runs beside etcd and the API server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// kube-controller-manager: garbage collection, ServiceAccounts, Deployments, DaemonSets, namespaces that really go away.
    pub controllers: bool,
    /// kube-scheduler.
    pub scheduler: bool,
}

/// A running etcd and kube-apiserver.
#[derive(Debug)]
pub struct ControlPlane {
    pki: Pki,
    place: Place,
    ports: Ports,
    parts: Mutex<BTreeMap<&'static str, Component>>,
    /// Goes last, when nobody writes into it any more.
    run: RunDir,
}

/// Where it is reached.
#[derive(Clone, Debug)]
struct Place {
    address: String,
    /// Its network namespace, if it has one of its own.
    namespace: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    etcd_peer: u16,
    apiserver: u16,
    controllers: u16,
    scheduler: u16,
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
    what: String,
}

impl Ran {
    /// What it printed.
    ///
    /// # Panics
    /// When it failed; the message holds its output.
    pub fn ok(self) -> String {
        assert!(self.success, "{}: {}{}", self.what, self.stdout, self.stderr);
        self.stdout
    }

    /// What it complained about.
    ///
    /// # Panics
    /// When it did not fail.
    pub fn err(self) -> String {
        assert!(!self.success, "{} succeeded: {}", self.what, self.stdout);
        self.stderr
    }
}

impl ControlPlane {
    /// The one of this test program.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<ControlPlane> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    /// A new etcd and API server, ready.
    ///
    /// # Panics
    /// When a program is missing (the message says what brings it) or something does not come up in time (the message holds the log).
    pub fn start() -> Self {
        Self::start_with(Options::default())
    }

    /// The same with more parts.
    ///
    /// # Panics
    /// As [`ControlPlane::start`].
    pub fn start_with(options: Options) -> Self {
        let place = Place { address: "127.0.0.1".to_owned(), namespace: None };
        Self::start_at(place, Ports::free(), options)
    }

    /// On a host of a lab. Clients of this process do not reach it there, `kubectl` and `helm` do.
    ///
    /// # Panics
    /// As [`ControlPlane::start`].
    pub fn start_in(host: &Host, options: Options) -> Self {
        let place =
            Place { address: host.address.clone(), namespace: Some(host.namespace.clone()) };
        Self::start_at(place, Ports::USUAL, options)
    }

    fn start_at(place: Place, ports: Ports, options: Options) -> Self {
        let run = RunDir::new();
        let pki = Pki::new(&run.path.join("pki"), &place.address);
        let plane = Self { place, ports, pki, parts: Mutex::new(BTreeMap::new()), run };
        plane.kubeconfig("admin", "admin", &["system:masters"]);
        plane.kubeconfig("proxy", "system:kube-proxy", &[]);
        plane.kubeconfig("kubelet-client", "kube-apiserver", &["system:masters"]);
        plane.start_part("etcd");
        plane.start_part("kube-apiserver");
        plane.wait_ready();
        if options.controllers {
            plane.kubeconfig("controllers", "system:kube-controller-manager", &[]);
            plane.start_part("kube-controller-manager");
        }
        if options.scheduler {
            plane.kubeconfig("scheduler", "system:kube-scheduler", &[]);
            plane.start_part("kube-scheduler");
        }
        plane
    }

    /// Where the API server listens.
    pub fn url(&self) -> String {
        format!("https://{}:{}", self.place.address, self.ports.apiserver)
    }

    /// A kubeconfig file for cluster-admin, for whatever takes one.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.run.path.join("pki/admin.conf")
    }

    /// A folder for whatever a test wants to have gone with the control plane.
    pub fn dir(&self) -> PathBuf {
        self.run.path.clone()
    }

    /// A client with all rights. It lives in the runtime that it is made in.
    pub fn client(&self) -> Client {
        self.client_as("admin", &["system:masters"])
    }

    /// The operator's kind of client, which counts what it asks, with all rights.
    pub fn counted_client(&self, requests: &Requests) -> Client {
        let config = self.config(self.certified("admin", &["system:masters"]));
        operator::api::client(config, requests).expect("a client")
    }

    /// A client that is this user by certificate.
    pub fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        client(self.config(self.certified(user, groups)))
    }

    fn certified(&self, user: &str, groups: &[&str]) -> AuthInfo {
        let (certificate, key) = self.pki.client(user, groups);
        AuthInfo {
            client_certificate_data: Some(BASE64.encode(certificate.as_bytes())),
            client_key_data: Some(BASE64.encode(key.as_bytes()).into()),
            ..AuthInfo::default()
        }
    }

    /// A client that shows this token.
    pub fn client_with_token(&self, token: &str) -> Client {
        client(
            self.config(AuthInfo { token: Some(token.to_owned().into()), ..AuthInfo::default() }),
        )
    }

    fn config(&self, auth_info: AuthInfo) -> Config {
        let mut config = Config::new(self.url().parse().expect("a URL of ours"));
        config.root_cert = Some(vec![self.pki.authority_der()]);
        config.connect_timeout = Some(REQUEST);
        config.auth_info = auth_info;
        config
    }

    /// Applies the kinds of this product and waits until the server serves them.
    ///
    /// # Panics
    /// When the server refuses them.
    pub async fn install_crds(&self) {
        let api: Api<CustomResourceDefinition> = Api::all(self.client());
        for definition in crds::definitions() {
            let name = definition.name_any();
            let params = PatchParams::apply("tests").force();
            api.patch(&name, &params, &Patch::Apply(&definition))
                .await
                .unwrap_or_else(|error| panic!("{name}: {error}"));
            let established = await_condition(api.clone(), &name, conditions::is_crd_established());
            tokio::time::timeout(REQUEST, established)
                .await
                .unwrap_or_else(|_| panic!("{name} is not established: {}", self.complaints()))
                .expect("the API server answers");
        }
    }

    /// A fresh namespace whose name starts with `prefix`, with a ServiceAccount `default`.
    ///
    /// # Panics
    /// When the server does not take it.
    pub async fn namespace(&self, prefix: &str) -> String {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{prefix}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let client = self.client();
        let metadata = ObjectMeta { name: Some(name.clone()), ..ObjectMeta::default() };
        let namespace = Namespace { metadata, ..Namespace::default() };
        Api::all(client)
            .create(&PostParams::default(), &namespace)
            .await
            .unwrap_or_else(|error| panic!("namespace {name}: {error}"));
        self.service_account(&name, "default").await;
        name
    }

    /// Creates a ServiceAccount unless it is there.
    ///
    /// # Panics
    /// When the server does not take it.
    pub async fn service_account(&self, namespace: &str, name: &str) {
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let account = ServiceAccount { metadata, ..ServiceAccount::default() };
        let api: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        api.patch(name, &PatchParams::apply("tests").force(), &Patch::Apply(&account))
            .await
            .unwrap_or_else(|error| panic!("ServiceAccount {namespace}/{name}: {error}"));
    }

    /// A token of a ServiceAccount, as a kubelet gets it for a projected volume: for this audience, an hour long, and bound to a pod if there
    /// is one.
    ///
    /// # Panics
    /// When the server does not give one.
    pub async fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: &str,
        pod: Option<&Pod>,
    ) -> String {
        let bound_object_ref = pod.map(|pod| BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(pod.name_any()),
            uid: pod.uid(),
        });
        let request = TokenRequest {
            spec: TokenRequestSpec {
                audiences: vec![audience.to_owned()],
                bound_object_ref,
                expiration_seconds: Some(3600),
            },
            ..TokenRequest::default()
        };
        let api: Api<ServiceAccount> = Api::namespaced(self.client(), namespace);
        let answer = api
            .create_token_request(account, &PostParams::default(), &request)
            .await
            .unwrap_or_else(|error| panic!("a token of {namespace}/{account}: {error}"));
        answer.status.expect("a token request is answered with a token").token
    }

    /// Runs `kubectl` as cluster-admin.
    pub fn kubectl(&self, args: &[&str]) -> Ran {
        self.kubectl_with(args, "")
    }

    /// The same with something on its standard input, for `apply -f -`.
    pub fn kubectl_with(&self, args: &[&str], input: &str) -> Ran {
        let mut command = self.client_command(binaries::kubectl());
        command.args(args);
        process::run(command, input)
    }

    /// Runs `helm` as cluster-admin, with folders of its own.
    pub fn helm(&self, args: &[&str]) -> Ran {
        let mut command = self.client_command(binaries::helm());
        command.args(args);
        for (variable, folder) in [
            ("HELM_CACHE_HOME", "cache"),
            ("HELM_CONFIG_HOME", "config"),
            ("HELM_DATA_HOME", "data"),
        ] {
            command.env(variable, self.run.path.join("helm").join(folder));
        }
        process::run(command, "")
    }

    fn client_command(&self, program: PathBuf) -> Command {
        let (program, args) = self.inside(program, Vec::new());
        let mut command = Command::new(program);
        command.args(args).env("KUBECONFIG", self.admin_kubeconfig()).env("HOME", &self.run.path);
        command
    }

    /// The same program, in the network namespace of the control plane.
    fn inside(&self, program: PathBuf, args: Vec<String>) -> (PathBuf, Vec<String>) {
        let Some(namespace) = &self.place.namespace else { return (program, args) };
        let outer = [format!("--net=/run/netns/{namespace}"), program.display().to_string()];
        (PathBuf::from("nsenter"), outer.into_iter().chain(args).collect())
    }

    /// What the API server answered from now on.
    pub fn audit(&self) -> Audit {
        Audit::new(self.run.path.join("log/audit.log"))
    }

    /// Ends the API server as a crash does.
    pub fn kill_apiserver(&self) {
        self.kill_part("kube-apiserver");
    }

    /// Starts it again after [`ControlPlane::kill_apiserver`] and waits until it is ready.
    pub fn start_apiserver(&self) {
        self.start_part("kube-apiserver");
        self.wait_ready();
    }

    /// etcd forgets everything but what is now; only for when no API server runs.
    ///
    /// # Panics
    /// When etcd does not do it.
    pub fn compact(&self) {
        // Any answer of etcd says which revision is the newest.
        let newest = self.etcd("/v3/kv/range", r#"{"key": "AA=="}"#);
        let revision = newest["header"]["revision"].as_str().expect("a revision");
        let compaction = serde_json::json!({"revision": revision, "physical": true});
        self.etcd("/v3/kv/compaction", &compaction.to_string());
    }

    /// Asks etcd by its gateway, which speaks HTTP.
    fn etcd(&self, path: &str, body: &str) -> serde_json::Value {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.etcd)).expect("etcd");
        let length = body.len();
        let request = format!(
            "POST {path} HTTP/1.0\r\nHost: etcd\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).expect("etcd reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("etcd answers");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.contains(" 200 "), "{answer}");
        serde_json::from_str(body).expect("etcd answers in JSON")
    }

    /// The API server hangs: it neither answers nor closes connections.
    pub fn freeze_apiserver(&self) {
        self.signal_part("kube-apiserver", "STOP");
    }

    /// It goes on after [`ControlPlane::freeze_apiserver`].
    pub fn thaw_apiserver(&self) {
        self.signal_part("kube-apiserver", "CONT");
    }

    /// Bytes of memory that a part uses: `etcd`, `kube-apiserver` …
    pub fn memory(&self, part: &str) -> u64 {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.get(part).map_or(0, Component::memory)
    }

    /// The last lines of all logs that complain, for the message of a failure.
    pub fn complaints(&self) -> String {
        self.run.complaints()
    }

    fn start_part(&self, name: &'static str) {
        let (program, args) = self.command(name);
        let log = self.run.path.join("log").join(format!("{name}.log"));
        let (program, args) = self.inside(program, args);
        let component = Component::start(&program, &args, &log, &[]);
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(name, component);
    }

    fn kill_part(&self, name: &str) {
        let part = self.parts.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        part.expect("it runs").kill();
    }

    fn signal_part(&self, name: &str, signal: &str) {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.get(name).expect("it runs").signal(signal);
    }

    fn command(&self, name: &str) -> (PathBuf, Vec<String>) {
        let Ports { etcd, etcd_peer, apiserver, controllers, scheduler } = self.ports;
        let pki = self.run.path.join("pki");
        let file = |name: &str| pki.join(name).display().to_string();
        let log = self.run.path.join("log").display().to_string();
        let etcd_url = format!("http://127.0.0.1:{etcd}");
        let peer_url = format!("http://127.0.0.1:{etcd_peer}");
        let args = match name {
            "etcd" => vec![
                format!("--data-dir={}", self.run.path.join("etcd").display()),
                format!("--listen-client-urls={etcd_url}"),
                format!("--advertise-client-urls={etcd_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster=default={peer_url}"),
                // Nobody needs these data after a power failure.
                "--unsafe-no-fsync".to_owned(),
            ],
            "kube-apiserver" => vec![
                format!("--etcd-servers={etcd_url}"),
                format!("--bind-address={}", self.place.address),
                format!("--advertise-address={}", self.place.address),
                format!("--secure-port={apiserver}"),
                "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
                format!("--tls-cert-file={}", file("apiserver.crt")),
                format!("--tls-private-key-file={}", file("apiserver.key")),
                format!("--client-ca-file={}", file("ca.crt")),
                "--authorization-mode=Node,RBAC".to_owned(),
                "--enable-admission-plugins=NodeRestriction".to_owned(),
                "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
                format!("--service-account-key-file={}", file("sa.pub")),
                format!("--service-account-signing-key-file={}", file("sa.key")),
                format!("--kubelet-client-certificate={}", file("kubelet-client.crt")),
                format!("--kubelet-client-key={}", file("kubelet-client.key")),
                "--kubelet-preferred-address-types=InternalIP".to_owned(),
                format!("--requestheader-client-ca-file={}", file("ca.crt")),
                "--requestheader-allowed-names=front-proxy-client".to_owned(),
                "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
                "--requestheader-group-headers=X-Remote-Group".to_owned(),
                "--requestheader-username-headers=X-Remote-User".to_owned(),
                // Webhooks are dialled by the addresses of endpoints: nobody translates ClusterIPs here.
                "--enable-aggregator-routing=true".to_owned(),
                format!("--audit-policy-file={}", file("audit.yaml")),
                format!("--audit-log-path={log}/audit.log"),
                "--audit-log-mode=blocking".to_owned(),
                "--profiling=false".to_owned(),
                "--v=1".to_owned(),
            ],
            "kube-controller-manager" => vec![
                format!("--kubeconfig={}", file("controllers.conf")),
                format!("--authentication-kubeconfig={}", file("controllers.conf")),
                format!("--authorization-kubeconfig={}", file("controllers.conf")),
                "--leader-elect=false".to_owned(),
                "--use-service-account-credentials=true".to_owned(),
                format!("--root-ca-file={}", file("ca.crt")),
                format!("--service-account-private-key-file={}", file("sa.key")),
                format!("--cluster-signing-cert-file={}", file("ca.crt")),
                format!("--cluster-signing-key-file={}", file("ca.key")),
                "--allocate-node-cidrs=false".to_owned(),
                "--node-monitor-period=2s".to_owned(),
                "--node-monitor-grace-period=20s".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={controllers}"),
            ],
            _ => vec![
                format!("--kubeconfig={}", file("scheduler.conf")),
                format!("--authentication-kubeconfig={}", file("scheduler.conf")),
                format!("--authorization-kubeconfig={}", file("scheduler.conf")),
                "--leader-elect=false".to_owned(),
                "--bind-address=127.0.0.1".to_owned(),
                format!("--secure-port={scheduler}"),
            ],
        };
        if name == "etcd" {
            return (binaries::etcd(), args);
        }
        let (program, part) = binaries::kubernetes(name);
        (program, part.into_iter().map(str::to_owned).chain(args).collect())
    }

    fn kubeconfig(&self, file: &str, user: &str, groups: &[&str]) {
        self.pki.kubeconfig(file, &self.url(), user, groups);
    }

    /// Makes the kubeconfig of a node's kubelet.
    pub(crate) fn node_kubeconfig(&self, node: &str) {
        self.kubeconfig(node, &format!("system:node:{node}"), &["system:nodes"]);
    }

    /// Waits until the API server says that it is ready.
    fn wait_ready(&self) {
        let deadline = Instant::now() + STARTUP;
        if self.place.namespace.is_some() {
            // Only a program in its namespace can ask.
            while !self.kubectl(&["get", "--raw", "/readyz"]).success {
                let may_come = Instant::now() < deadline
                    && !self.has_ended("kube-apiserver")
                    && !self.has_ended("etcd");
                assert!(may_come, "the API server is not ready: {}", self.complaints());
                thread::sleep(Duration::from_millis(200));
            }
            return;
        }
        // A runtime of its own, since the caller may be inside one.
        let ready = thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .expect("a runtime");
                runtime.block_on(async {
                    let client = self.client();
                    while Instant::now() < deadline {
                        let request = http::Request::get("/readyz").body(Vec::new());
                        let request = request.expect("a path is a URL");
                        let answer = client.request_text(request);
                        if let Ok(Ok(_)) =
                            tokio::time::timeout(Duration::from_secs(2), answer).await
                        {
                            return true;
                        }
                        if self.has_ended("kube-apiserver") || self.has_ended("etcd") {
                            return false;
                        }
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                    false
                })
            });
            waiting.join().expect("waiting does not panic")
        });
        assert!(ready, "the API server is not ready: {}", self.complaints());
    }

    fn has_ended(&self, name: &str) -> bool {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        parts.get_mut(name).is_some_and(Component::has_ended)
    }
}

impl Ports {
    /// Those that everybody uses, where nobody else is.
    const USUAL: Self =
        Self { etcd: 2379, etcd_peer: 2380, apiserver: 6443, controllers: 10257, scheduler: 10259 };

    fn free() -> Self {
        // All at once, so that they differ.
        let listeners: Vec<_> = (0..5)
            .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port"))
            .collect();
        let port = |index: usize| {
            let listener: &TcpListener = &listeners[index];
            listener.local_addr().expect("a bound socket has an address").port()
        };
        Self {
            etcd: port(0),
            etcd_peer: port(1),
            apiserver: port(2),
            controllers: port(3),
            scheduler: port(4),
        }
    }
}

fn client(config: Config) -> Client {
    Client::try_from(config).expect("a client of certificates of ours")
}
