//! The real binary without a TUN device: usage, configuration, state, exit codes, and a public server on loopback.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

const STRONG: &str = "mfrggzdfmztwq2lknnwg23tpob";

/// The binary, with nothing of this machine's environment.
fn easynet(args: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_easynet"));
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("EASYNET_")) {
        command.env_remove(name);
    }
    command.env_remove("RUST_LOG").args(args.split_whitespace()).stdin(Stdio::null());
    command
}

fn run(args: &str) -> Output {
    easynet(args).output().unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The error is one line: a sentence what, a sentence what to do; and nothing else is said.
fn assert_refused(output: &Output, code: i32, what: &str, remedy: &str) {
    let text = err(output);
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert_eq!(out(output), "", "results only on standard output");
    let line = text.lines().last().unwrap_or_default();
    assert!(line.starts_with("easynet: "), "{text}");
    assert!(line.contains(what), "{text:?} does not say {what:?}");
    assert!(line.contains(remedy), "{text:?} does not say {remedy:?}");
    assert!(line.ends_with('.'), "{text:?} is no sentence");
    assert!(!text.contains("panicked"), "{text}");
    assert!(!text.contains('\x1b'), "colour only on a terminal: {text:?}");
}

#[test]
fn what_is_not_understood_is_a_usage_error_with_a_way_on() {
    for (args, what, remedy) in [
        ("frob", "'frob'", "easynet --help"),
        ("run --frob", "'--frob'", "easynet run --help"),
        ("paths", "<PEER>", "easynet paths --help"),
        ("run --metrics nowhere", "'nowhere'", "such as 127.0.0.1:9100. See `easynet run --help`"),
        (
            "server --metrics :9100",
            "':9100'",
            "such as 127.0.0.1:9100. See `easynet server --help`",
        ),
        ("server -l 70000", "'70000'", "such as 11010. See `easynet server --help`"),
        ("run", "No network is named", "--network NAME"),
        ("run --network n", "secret is missing", "easynet secret new"),
        ("run --network n --secret-file /nonexistent/s", "/nonexistent/s", "--secret-file FILE"),
        ("run --network n --secret hunter2", "never an argument", "--secret-file FILE"),
        ("run --network n --secret=hunter2", "never an argument", "EASYNET_SECRET"),
        ("run --network n -p quic://a", "quic://, which is not there yet", "udp://HOST:PORT"),
        ("run --network n -p ws://a", "ws://, which is not there yet", "udp://HOST:PORT"),
        ("run --network n -p wss://a", "wss://, which is not there yet", "udp://HOST:PORT"),
        ("run --network n -p txt://a", "txt://, which is not there yet", "udp://HOST:PORT"),
        ("run --network n -p srv://a", "srv://, which is not there yet", "udp://HOST:PORT"),
        ("run --network n -p smtp://a", "unknown scheme \"smtp\"", "udp://HOST:PORT"),
        ("run --network n -p udp://a:0", "not 1 to 65535", "udp://HOST:PORT"),
        ("run --network n -p udp://a?k=abc", "no key", "easynet key show"),
        ("run --network n -l 70000", "\"70000\"", "write a port"),
        ("run --network n --mtu 9", "not between 1280 and 9000", "--help"),
        ("run --network n --ipv4 fd00::1", "no IPv4 address", "auto or off"),
        ("run --network n --ipv4 127.0.0.1", "cannot be a node's address", "run --help"),
        ("run --network n --ipv4 10.1.2.0/24", "is the range itself", "run --help"),
        ("run --network n --ipv6 fe80::1", "cannot be a node's address", "run --help"),
        ("run --network n --range 10.0.0.0/40", "the range \"10.0.0.0/40\"", "100.112.0.0/16"),
        ("run --network n --range 10.0.0.0/31", "has the wrong size", "/8 to /30"),
        ("run --network n --hostname a_b.-c", "is no host name", "run --help"),
        ("run --network n --tun sixteen-letters-", "no name for an interface", "easynet0"),
        ("run --network n -p udp://-a", "neither an address nor a name", "udp://HOST:PORT"),
        ("run --network n --export 10.0.0.0", "\"10.0.0.0\" is no subnet", "10.42.0.0/24"),
        ("run --network n --export 10.0.0.5/24", "write 10.0.0.0/24 for the subnet", "run --help"),
        ("run --network n --export 0.0.0.0/0", "no member accepts a default route", "run --help"),
        ("run --network n --export 10.0.0.0/8=11.0.0.0/9", "cannot be mapped", "run --help"),
        ("run --network n --punch hard", "punch is \"hard\"", "full or light or off"),
        ("run --network n --userspace", "not there yet", "TUN device"),
        ("run --config-server https://a", "unknown scheme", "tcp://HOST:PORT/NETWORK?k=ROOT"),
        ("run --config-server ws://a/n?k=b", "not there yet", "tcp://HOST:PORT/NETWORK?k=ROOT"),
        ("run --config-server-token-file f", "no server", "--config-server"),
        (
            "run --config-server tcp://a/n?k=aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq \
             --config-server-token-file /nonexistent/t",
            "Cannot read the token in /nonexistent/t",
            "--config-server-token-file FILE",
        ),
        (
            "run --config-server tcp://a/n?k=aeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaqcaibaeaq \
             --config-server-token-file /dev/null",
            "There is no token in /dev/null",
            "serviceAccountToken",
        ),
        ("run --network n --admin 127.0.0.1:0", "has no token", "--admin-token-file FILE"),
        ("run --network n --log =", "log filter", "such as info"),
        ("run --network n --log foo=bar=baz", "\"foo=bar=baz\" is none", "such as engine=debug"),
        ("status --wait rich", "\"rich\" is nothing to wait for", "peers=N"),
        ("status --timeout soon", "'soon'", "such as 30s or 2m. See `easynet status --help`"),
        ("ping b -c x", "'x'", "such as 4, or 0 for ever. See `easynet ping --help`"),
        ("ping b -i x", "'x'", "such as 0.2. See `easynet ping --help`"),
        ("status --admin 127.0.0.1:1", "asks for a token", "--admin-token-file FILE"),
        ("server --public-host udp://a", "is no host", "easynet server --help"),
        ("server --allow frob", "\"frob\" is no network id", "easynet status -o json"),
        ("debug heap f", "not there yet", "easynet stats"),
        ("config check /nonexistent/f", "/nonexistent/f", "can be read"),
    ] {
        let output = run(args);
        assert_refused(&output, 2, what, remedy);
        assert!(!err(&output).contains("hunter2"), "a secret is not repeated: {}", err(&output));
        assert!(err(&output).matches("expected one of").count() < 2, "once: {}", err(&output));
    }
}

#[test]
fn the_environment_is_read_and_its_faults_are_named() {
    let output = easynet("run --network n").env("EASYNET_PEERS", "udp://a,frob://b").output();
    assert_refused(&output.unwrap(), 2, "unknown scheme \"frob\"", "udp://HOST:PORT");
    let output = easynet("run --network n").env("EASYNET_SECRET", "  ").output();
    assert_refused(&output.unwrap(), 2, "secret is empty", "easynet secret new");
}

#[test]
fn every_command_has_help_that_says_what_it_is() {
    let top = out(&run("--help"));
    assert!(top.contains("Exit codes: 0 done"), "{top}");
    let commands = [
        "run",
        "server",
        "status",
        "peers",
        "paths",
        "routes",
        "node",
        "nat",
        "stats",
        "events",
        "ping",
        "doctor",
        "secret",
        "key",
        "config",
        "debug",
        "completion",
        "version",
    ];
    for command in commands {
        assert!(top.contains(&format!("  {command} ")), "{command} is not in {top}");
    }
    let nested = [
        "secret new",
        "key show",
        "config check",
        "config show",
        "config schema",
        "config reload",
        "debug heap",
    ];
    for command in commands.iter().chain(&nested) {
        let output = run(&format!("{command} --help"));
        let text = out(&output);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert!(text.contains(&format!("Usage: easynet {command}")), "{text}");
        assert!(text.lines().next().unwrap().len() > 10, "{command}: {text}");
        let widest = text.lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert!(widest <= 130, "{command} is {widest} wide");
    }
    let flags = out(&run("run --help"));
    for flag in [
        "--config",
        "--network",
        "--secret-file",
        "--peer",
        "--listen",
        "--hostname",
        "--ipv4",
        "--ipv6",
        "--range",
        "--export",
        "--tun",
        "--mtu",
        "--userspace",
        "--p2p",
        "--punch",
        "--transit",
        "--config-server",
        "--config-server-token-file",
        "--admin",
        "--state-dir",
        "--metrics",
        "--log",
        "--log-format",
    ] {
        assert!(flags.contains(flag), "{flag} is not in {flags}");
    }
    assert!(!flags.contains("--secret "), "{flags}");
    assert_eq!(out(&run("version")), format!("easynet {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(out(&run("--version")), out(&run("version")));
}

#[test]
fn completions_are_scripts() {
    for (shell, needle) in
        [("bash", "complete -F"), ("zsh", "#compdef easynet"), ("fish", "complete -c easynet")]
    {
        let output = run(&format!("completion {shell}"));
        assert_eq!(output.status.code(), Some(0));
        assert!(out(&output).contains(needle), "{shell}");
    }
    assert_eq!(run("completion tcl").status.code(), Some(2));
}

#[test]
fn secrets_are_new_each_time_and_strong() {
    let (first, second) = (out(&run("secret new")), out(&run("secret new")));
    assert_eq!(first.trim().len(), 26, "128 bits in base32");
    assert_ne!(first, second);
}

#[test]
fn a_key_is_made_once_and_shown_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let show = |form: &str| {
        let output = run(&format!("key show --state-dir {} {form}", state.display()));
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output)
    };
    let json: serde_json::Value = serde_json::from_str(&show("-o json")).unwrap();
    let (node, key) = (json["node_id"].as_str().unwrap(), json["k"].as_str().unwrap());
    assert_eq!(json.as_object().unwrap().len(), 2);
    assert_eq!((node.len(), key.len()), (26, 103));
    for form in ["", "-o table", "-o wide", "-o yaml"] {
        let text = show(form);
        assert!(text.contains(node) && text.contains(key), "{form}: {text}");
    }
    let mode = |name: &str| fs::metadata(state.join(name)).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(""), mode("node.key")), (0o700, 0o600));

    fs::write(state.join("node.key"), b"short").unwrap();
    let output = run(&format!("key show --state-dir {}", state.display()));
    assert_refused(&output, 1, "5 bytes instead of 64", "backup");
}

const GOOD: &str = "\
apiVersion: config.easynet.io/v1alpha1
kind: Sidecar
network: {name: prod, secretFile: /etc/easynet/secret}
node: {hostname: a, ipv4: auto, ipv6: auto}
listen: [11010]
peers: [\"udp://relay.example.com:11010\"]
exports: [{cidr: 10.42.0.0/24}]
transport: {mtu: 1320, p2p: on, punch: full}
roles: {transit: false}
";

const BAD: &str = "\
apiVersion: config.easynet.io/v1alpha1
kind: Sidecar
netwrok: {name: prod}
listen: 11010
peers: [\"quic://a\", \"udp://b\"]
exports: [{cidr: 10.42.0.0/33}]
transport:
  mtu: 12
  punsh: full
roles: {transit: perhaps}
";

#[test]
fn a_good_file_is_valid_and_a_bad_one_is_told_everything_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    fs::write(&file, GOOD).unwrap();
    let output = run(&format!("config check {}", file.display()));
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
    assert!(out(&output).contains("is valid"));

    fs::write(&file, BAD).unwrap();
    for args in ["config check", "run --config"] {
        let output = run(&format!("{args} {}", file.display()));
        let text = err(&output);
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(2), ""));
        for line in [
            "has 7 problems:",
            "  line 3, column 1: netwrok: is not known; did you mean network?",
            "  line 4, column 9: listen: is not a list",
            "  line 5, column 9: peers[0]: \"quic://a\" uses quic://, which is not there yet",
            "  line 6, column 18: exports[0].cidr: is \"10.42.0.0/33\"; write a subnet",
            "  line 8, column 8: transport.mtu: the MTU \"12\" is not between 1280 and 9000",
            "  line 9, column 3: transport.punsh: is not known; did you mean punch?",
            "  line 10, column 18: roles.transit: is \"perhaps\"; write true or false",
            "Nothing was changed; mend the file",
        ] {
            assert!(text.contains(line), "{line:?} is not in:\n{text}");
        }
    }
}

#[test]
fn the_schema_names_every_key_that_the_checker_knows() {
    let output = run("config schema");
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.yaml");
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value["properties"].as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect()
    };
    let mut text = String::new();
    for key in keys(&schema) {
        let nested = keys(&schema["properties"][&key]);
        if nested.is_empty() {
            text.push_str(&format!("{key}: [[]]\n"));
        } else {
            let inner: Vec<String> = nested.iter().map(|key| format!("{key}: [[]]")).collect();
            text.push_str(&format!("{key}: {{{}}}\n", inner.join(", ")));
        }
    }
    fs::write(&file, &text).unwrap();

    let said = err(&run(&format!("config check {}", file.display())));

    assert!(!said.contains("is not known"), "{said}");
    assert_eq!(keys(&schema).len(), 15, "{schema}");
}

#[test]
fn a_state_directory_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, b"").unwrap();
    let start = |state: &Path| {
        easynet(&format!("run --network n --state-dir {}", state.display()))
            .env("EASYNET_SECRET", STRONG)
            .output()
            .unwrap()
    };
    let output = start(&file.join("state"));
    assert_refused(&output, 1, &format!("{}/state", file.display()), "--state-dir");

    let readonly = Path::new("/proc/easynet");
    assert_refused(&start(readonly), 1, "/proc/easynet", "--state-dir");
}

#[test]
fn doctor_looks_at_every_agent_of_a_node_of_kubernetes() {
    let dir = tempfile::tempdir().unwrap();
    let look = || {
        let output = run(&format!("doctor -o json --agents {}", dir.path().display()));
        let findings: Vec<serde_json::Value> = serde_json::from_str(&out(&output)).unwrap();
        (output.status.code(), findings)
    };

    let (_, none) = look();
    assert_eq!((&none[0]["check"], &none[0]["level"]), (&"agents".into(), &"note".into()));
    assert!(none.iter().any(|finding| finding["check"] == "tun"), "whether one could run here");

    for network in ["home", "prod"] {
        let socket = dir.path().join(network).with_extension("sock");
        drop(std::os::unix::net::UnixListener::bind(socket).unwrap());
    }
    let (code, dead) = look();
    let checks: Vec<_> = dead.iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    assert_eq!((code, checks), (Some(1), vec!["home node", "prod node"]));
}

#[test]
fn without_a_node_nobody_answers_and_a_wait_runs_out() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("sock");
    for command in [
        "status",
        "peers",
        "paths a",
        "routes",
        "node",
        "nat",
        "stats",
        "events",
        "ping a",
        "config show",
        "config reload",
    ] {
        let output = run(&format!("{command} --admin {}", socket.display()));
        assert_refused(&output, 3, "No node answers at", "easynet run");
    }
    let start = Instant::now();
    let output = run(&format!("status --wait ready --timeout 300ms --admin {}", socket.display()));
    assert_refused(&output, 4, "Waited 300ms in vain for ready", "easynet doctor");
    assert!(start.elapsed() >= Duration::from_millis(300));

    // A socket of a node that is gone, and one that hangs up.
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert_refused(&run(&format!("status --admin {}", socket.display())), 3, "nobody listens", "");
    let token = dir.path().join("token");
    fs::write(&token, STRONG).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let hanging_up = std::thread::spawn(move || drop(listener.accept()));
    let output = run(&format!("status --admin {addr} --admin-token-file {}", token.display()));
    assert_refused(&output, 3, "hung up", "--admin");
    hanging_up.join().unwrap();
}

#[test]
fn a_weak_secret_is_warned_of() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    // An interface that is there already and no TUN: it fails before it makes anything.
    let start = |secret: &str| {
        let args = format!(
            "run --network n --tun lo --admin /nonexistent/x --state-dir {}",
            state.display()
        );
        easynet(&args).env("EASYNET_SECRET", secret).output().unwrap()
    };
    let weak = start("hunter2");
    assert!(err(&weak).contains("The secret is weak"), "{}", err(&weak));
    assert!(!err(&weak).contains("hunter2"));
    assert_refused(&weak, 1, "the interface name lo is in use", "Choose another one");
    assert!(!err(&start(STRONG)).contains("weak"));
}

#[test]
fn a_spoilt_state_file_is_set_aside_and_said_and_the_key_stays() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let key = |()| out(&run(&format!("key show -o json --state-dir {}", state.display())));
    let before = key(());
    fs::write(state.join("state.json"), b"{ half").unwrap();
    let args = format!("run --network n --tun lo --state-dir {}", state.display());

    let output = easynet(&args).env("EASYNET_SECRET", STRONG).output().unwrap();

    assert!(err(&output).contains("it is set aside as"), "{}", err(&output));
    assert_eq!(fs::read(state.join("state.corrupt-1")).unwrap(), b"{ half");
    assert_eq!(key(()), before);
}

/// A public server on loopback; it needs no privilege.
struct Server {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Server {
    fn start(state: &Path, options: &str) -> Self {
        let args = format!("server --state-dir {} --log warn {options}", state.display());
        let mut child =
            easynet(&args).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Self { child, lines }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn stop(&mut self) -> Option<i32> {
        Command::new("kill").arg(self.child.id().to_string()).status().unwrap();
        self.child.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn http(addr: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(addr).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_prints_its_url_counts_and_ends_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let port = free_port();
    let mut server = Server::start(
        &state,
        &format!("--public-host 127.0.0.1 --listen {port} --metrics 127.0.0.1:0"),
    );
    let metrics = server.line();
    let metrics = metrics.strip_prefix("metrics ").unwrap();
    let url = server.line();
    let keys = out(&run(&format!("key show -o json --state-dir {}", state.display())));
    let keys: serde_json::Value = serde_json::from_str(&keys).unwrap();
    assert_eq!(url, format!("udp://127.0.0.1:{port}?k={}", keys["k"].as_str().unwrap()));

    assert!(http(metrics, "/livez").starts_with("HTTP/1.1 200"));
    assert!(http(metrics, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(http(metrics, "/frob").starts_with("HTTP/1.1 404"));
    let text = http(metrics, "/metrics");
    for metric in [
        "easynet_networks 0",
        "easynet_lsdb_entries 0",
        "easynet_drops_total{reason=\"malformed\"} 0",
        "process_resident_memory_bytes ",
    ] {
        assert!(text.contains(metric), "{metric} is not in {text}");
    }
    assert!(text.ends_with("# EOF\n"));
    assert_eq!(text.matches("# EOF").count(), 1);

    let second = run(&format!("server --listen {} --state-dir {}", free_port(), state.display()));
    assert_refused(&second, 1, "Another easynet runs with the state directory", "--state-dir");
    let other = dir.path().join("other");
    let second = run(&format!("server --listen {port} --state-dir {}", other.display()));
    assert_refused(&second, 1, &format!("Cannot listen on port {port}"), "--listen");
    assert_eq!(server.stop(), Some(0));
}

#[test]
fn a_server_takes_the_first_free_port_and_says_the_host_it_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let mut server = Server::start(&state, "--listen 0 --public-host 2001:db8::7");

    let url = server.line();

    let port = url.strip_prefix("udp://[2001:db8::7]:").and_then(|rest| rest.split('?').next());
    let port: u16 = port.unwrap().parse().unwrap();
    assert!((15_888..16_888).contains(&port), "{url}");
    assert_eq!(server.stop(), Some(0));
}
