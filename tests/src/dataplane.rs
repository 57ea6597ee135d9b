//! Two or three nodes' data planes without an engine, in network namespaces: given keys, given tables.
//!
//! ```text
//! ezdA 10.99.0.1 ── veth ── ezdB 10.99.0.2        (direct: over UDP, or one TCP connection)
//! ezdA 10.99.1.1 ── veth ── ezdR ── veth ── ezdB 10.99.2.1   (relayed by ezdR)
//! overlay: 10.98.0.1 and .2, fd98::1 and ::2 on the TUN `ezd0`
//! ```
//! Each data plane is a process of its own, this same program in another role.

use std::{
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    time::Instant,
};

use arc_swap::ArcSwap;
use engine::{
    fib::{Fib, Forward, Link, Local, NextHop, PeerEntry},
    path::addr::{Hop, SocketId},
};
use netio::{
    port::tun::Tun,
    task::{CancellationToken, TaskGroup},
    tunnel::{self, TunnelConfig, TunnelEvent, Tunnels},
    udp::UdpSockets,
    worker::{Plane, Worker, punt},
};
use session::{
    keys::{Suite, TransportKeys},
    transport::Session,
};
use wire::id::{NetworkId, NodeId};

/// Set to the role of a process: `a`, `b`, `r`.
const ROLE: &str = "EZD_ROLE";
/// [`Layout::as_str`].
const LAYOUT: &str = "EZD_LAYOUT";
const MTU: &str = "EZD_MTU";
const SUITE: &str = "EZD_SUITE";
/// Whom the role `talk` connects to.
const TALK_TO: &str = "EZD_TALK_TO";
const TUN: &str = "ezd0";
const PORT: u16 = 4500;
const NETWORK: NetworkId = NetworkId([9; 16]);
const A: NodeId = NodeId([1; 16]);
const B: NodeId = NodeId([2; 16]);
const R: NodeId = NodeId([3; 16]);

/// Who is between the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    Direct,
    /// The same over the TCP carrier.
    Tcp,
    Relay,
}

impl Layout {
    fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Tcp => "tcp",
            Self::Relay => "relay",
        }
    }
}

/// Becomes a node, for good, if this process was started as one. To be called first by whoever uses [`Lab`].
pub fn become_node() {
    let Ok(role) = std::env::var(ROLE) else { return };
    if role == "echo" || role == "talk" {
        let outcome = if role == "echo" { echo() } else { talk() };
        if let Err(error) = &outcome {
            eprintln!("{role}: {error:#}");
        }
        std::process::exit(i32::from(outcome.is_err()));
    }
    let layout = std::env::var(LAYOUT).unwrap_or_default();
    if let Err(error) = run_node(&role, &layout) {
        eprintln!("node {role}: {error:#}");
    }
    std::process::exit(1);
}

fn run_node(role: &str, layout: &str) -> anyhow::Result<()> {
    let is_relay = layout == "relay";
    let sockets = Arc::new(UdpSockets::new(None));
    let socket = sockets.bind((Ipv4Addr::UNSPECIFIED, PORT).into())?.id();
    let tun = match role {
        "r" => None,
        _ => Some(Arc::new(Tun::open(TUN)?)),
    };
    let mtu = std::env::var(MTU).ok().and_then(|mtu| mtu.parse().ok()).unwrap_or(1320);
    let mut fib = match role {
        "a" => end(A, B, 1, 2, socket, is_relay, mtu),
        "b" => end(B, A, 2, 1, socket, is_relay, mtu),
        _ => relay(socket, mtu),
    };
    if layout == "tcp" {
        set_next_hop(&mut fib, None);
    }
    let drops = fib.drops.clone();
    let (punts, _receiver) = punt::queue();
    let offloads = tun.as_ref().map(|tun| tun.offloads().to_string());
    let fib = Arc::new(ArcSwap::from_pointee(fib));
    let plane = Arc::new(Plane::new(fib.clone(), tun, sockets, punts));
    let token = CancellationToken::new();
    let worker = Worker::spawn_alone(plane.clone(), 0, token.clone())?;
    if layout == "tcp" {
        let role = role.to_owned();
        std::thread::spawn(move || {
            if let Err(error) = run_tunnel(&role, &plane, &fib) {
                eprintln!("{role}: {error:#}");
            }
        });
    }
    say(&format!("ready {}", offloads.unwrap_or_default()));
    // Ends with whoever started it.
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {}
    for (reason, count) in drops.iter().filter(|(_, count)| *count > 0) {
        eprintln!("{role}: {} {count}", reason.as_str());
    }
    token.cancel();
    let _ = worker.join();
    std::process::exit(0);
}

const ECHO_PORT: u16 = 5998;
/// Large enough for many super-packets in flight, of a length that no segment size divides.
const TALK_BYTES: usize = 10_000_019;

/// Sends back one connection's bytes.
fn echo() -> anyhow::Result<()> {
    let listener = std::net::TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, ECHO_PORT))?;
    say("ready ");
    let (mut stream, _) = listener.accept()?;
    std::io::copy(&mut stream.try_clone()?, &mut stream)?;
    Ok(())
}

/// Sends bytes and compares what comes back.
fn talk() -> anyhow::Result<()> {
    use std::io::{Read, Write};
    let stream = std::net::TcpStream::connect(std::env::var(TALK_TO)?)?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    let sent: Vec<u8> = (0..TALK_BYTES as u64).map(|n| (n * n % 251) as u8).collect();
    let (mut reader, mut writer) = (stream.try_clone()?, stream);
    let mut received = Vec::new();
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let writing = scope.spawn(|| -> std::io::Result<()> {
            writer.write_all(&sent)?;
            writer.shutdown(std::net::Shutdown::Write)
        });
        reader.read_to_end(&mut received)?;
        writing.join().map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        Ok(())
    })?;
    anyhow::ensure!(received == sent, "what came back is not what was sent");
    Ok(())
}

fn say(line: &str) {
    use std::io::Write;
    let mut out = std::io::stdout();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}

/// Makes the one connection there is the next hop.
fn run_tunnel(role: &str, plane: &Arc<Plane>, fib: &ArcSwap<Fib>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let receiver = plane.clone();
        let handler: tunnel::Handler =
            Arc::new(move |hop, batch| receiver.receive(hop, batch, Instant::now()));
        let group = TaskGroup::new("node");
        let (tunnels, mut events) = Tunnels::new(TunnelConfig::default(), group, handler);
        plane.set_tunnels(tunnels.clone());
        match role {
            "b" => {
                tunnels.listen_tcp((Ipv4Addr::UNSPECIFIED, PORT).into())?;
            }
            _ => {
                tunnels.dial_tcp(([10, 99, 0, 2], PORT).into())?;
            }
        }
        while let Some(event) = events.recv().await {
            match event {
                TunnelEvent::Up { id, carrier, remote, .. } => {
                    tunnels.trust(id);
                    let mut next = Fib::clone(&fib.load());
                    set_next_hop(&mut next, Some(Hop::Tunnel { id, carrier, remote }));
                    fib.store(Arc::new(next));
                }
                // The other side does not listen yet.
                TunnelEvent::Down { remote, .. } => {
                    tokio::time::sleep(std::time::Duration::from_millis(20)).await;
                    tunnels.dial_tcp(remote)?;
                }
            }
        }
        Ok(())
    })
}

fn set_next_hop(fib: &mut Fib, hop: Option<Hop>) {
    for peer in Arc::make_mut(&mut fib.peers).values_mut() {
        let next_hop = hop.map(NextHop::Direct);
        *peer = Arc::new(PeerEntry { next_hop, ..PeerEntry::clone(peer) });
    }
}

/// The tables of one of the two ends.
fn end(
    own: NodeId,
    other: NodeId,
    number: u8,
    others: u8,
    socket: SocketId,
    is_relay: bool,
    mtu: u16,
) -> Fib {
    let now = Instant::now();
    let hop = |addr: [u8; 4]| Hop::Udp { socket, remote: SocketAddr::from((addr, PORT)) };
    let session = Arc::new(session(own, other, now));
    let link = Arc::new(session_with_relay(own, R, now));
    let next_hop = if is_relay {
        let hop = hop([10, 99, number, 254]);
        NextHop::Relayed { link: link.clone(), hop, dst: other.short() }
    } else {
        NextHop::Direct(hop([10, 99, 0, others]))
    };
    let nets = |number: u8| {
        [format!("10.98.0.{number}/32"), format!("fd98::{number}/128")]
            .map(|net| net.parse::<ipnet::IpNet>().expect("an address"))
    };
    let peer = PeerEntry {
        node: other,
        session: Some(session.clone()),
        next_hop: Some(next_hop),
        bicast: None,
        mtu,
        allowed: nets(others).into(),
        stats: Arc::default(),
    };
    let mut fib = Fib::new(own, now, mtu);
    let addresses = nets(number).map(|net| net.addr()).to_vec();
    fib.local = Arc::new(Local { addresses, ..Local::default() });
    fib.routes = Arc::new(nets(others).map(|net| (net, other)).into_iter().collect());
    fib.peers = Arc::new([(other, Arc::new(peer))].into());
    fib.sessions = Arc::new([(session.local_index(), session)].into());
    let entry = Link { session: link.clone(), network: NETWORK, vouched: None, quota: None };
    fib.links = Arc::new([(link.local_index(), entry)].into());
    fib
}

/// The tables of the relay.
fn relay(socket: SocketId, mtu: u16) -> Fib {
    let now = Instant::now();
    let mut fib = Fib::new(R, now, mtu);
    let (mut links, mut forwards) = (Vec::new(), Vec::new());
    for (node, number) in [(A, 1), (B, 2)] {
        let session = Arc::new(session_with_relay(R, node, now));
        let remote = SocketAddr::from(([10, 99, number, 1], PORT));
        let hop = Hop::Udp { socket, remote };
        forwards.push(((NETWORK, node.short()), Forward { link: session.clone(), hop }));
        let vouched = Some(node.short());
        let index = session.local_index();
        links.push((index, Link { session, network: NETWORK, vouched, quota: None }));
    }
    fib.links = Arc::new(links.into_iter().collect());
    fib.forwards = Arc::new(forwards.into_iter().collect());
    fib
}

fn session(own: NodeId, other: NodeId, now: Instant) -> Session {
    let suite = match std::env::var(SUITE).as_deref() {
        Ok("chacha") => Suite::ChaCha20Poly1305,
        _ => Suite::Aes256Gcm,
    };
    let keys = TransportKeys::from_split(own < other, suite, (&[5; 32], &[6; 32]));
    Session::new(other, u32::from(own.0[0]), u32::from(other.0[0]), &keys, now)
}

fn session_with_relay(own: NodeId, other: NodeId, now: Instant) -> Session {
    let member = if own == R { other } else { own };
    let split = ([member.0[0] + 10; 32], [member.0[0] + 20; 32]);
    let keys = TransportKeys::from_split(own < other, Suite::Aes256Gcm, (&split.0, &split.1));
    let index = u32::from(member.0[0]) + 100;
    Session::new(other, index, index, &keys, now)
}

/// The namespaces, and the nodes in them; all is gone when dropped.
#[derive(Debug)]
pub struct Lab {
    layout: Layout,
    nodes: Vec<Child>,
}

/// Settings of the nodes' processes.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub mtu: Option<u16>,
    pub suite: Option<String>,
    /// CPUs for everything, as taskset takes them.
    pub cpus: Option<String>,
}

impl Lab {
    /// Makes the namespaces; needs root.
    pub fn new(layout: Layout) -> Self {
        remove_namespaces();
        let lab = Self { layout, nodes: Vec::new() };
        for name in lab.names() {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        match layout {
            Layout::Direct | Layout::Tcp => {
                wire_up("ezdA", "ezdv0", "10.99.0.1", "ezdB", "ezdv0", "10.99.0.2")
            }
            Layout::Relay => {
                wire_up("ezdA", "ezdv0", "10.99.1.1", "ezdR", "ezdv1", "10.99.1.254");
                wire_up("ezdB", "ezdv0", "10.99.2.1", "ezdR", "ezdv2", "10.99.2.254");
                ip("-n ezdA route add default via 10.99.1.254");
                ip("-n ezdB route add default via 10.99.2.254");
                lab.run("ezdR", &None, "sysctl -qw net.ipv4.ip_forward=1");
            }
        }
        lab
    }

    fn names(&self) -> &'static [&'static str] {
        match self.layout {
            Layout::Direct | Layout::Tcp => &["ezdA", "ezdB"],
            Layout::Relay => &["ezdA", "ezdB", "ezdR"],
        }
    }

    /// The address of `ezdB` on the underlay.
    pub fn raw_address(&self) -> &'static str {
        match self.layout {
            Layout::Direct | Layout::Tcp => "10.99.0.2",
            Layout::Relay => "10.99.2.1",
        }
    }

    /// Starts the nodes and gives their TUNs addresses; stops those there were.
    pub fn start(&mut self, settings: &Settings) {
        self.stop();
        for name in self.names() {
            let mut command = in_namespace(name, &settings.cpus);
            command.arg(std::env::current_exe().expect("this program"));
            command.args(std::env::args().skip(1));
            command.env(ROLE, name.trim_start_matches("ezd").to_lowercase());
            command.env(LAYOUT, self.layout.as_str());
            command.env(MTU, settings.mtu.unwrap_or(1320).to_string());
            command.env(SUITE, settings.suite.as_deref().unwrap_or("aes"));
            let mut node = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("the node starts");
            let stdout = BufReader::new(node.stdout.take().expect("piped"));
            let ready = stdout.lines().map_while(Result::ok).find(|line| line.contains("ready "));
            assert!(ready.is_some(), "{name} did not start");
            self.nodes.push(node);
        }
        let mtu = settings.mtu.unwrap_or(1320);
        for (name, number) in [("ezdA", 1), ("ezdB", 2)] {
            ip(&format!("-n {name} addr add 10.98.0.{number}/24 dev {TUN}"));
            ip(&format!("-n {name} addr add fd98::{number}/64 dev {TUN} nodad"));
            ip(&format!("-n {name} link set {TUN} mtu {mtu} up"));
        }
    }

    /// Ends the nodes, which then say what they dropped.
    pub fn stop(&mut self) {
        for mut node in self.nodes.drain(..) {
            drop(node.stdin.take());
            let _ = node.wait();
        }
    }

    /// Runs a command in a namespace and returns its output, which must be a success.
    pub fn run(&self, name: &str, cpus: &Option<String>, command: &str) -> String {
        let output = self.try_run(name, cpus, command);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{name}: {command}: {text}{complaint}");
        text
    }

    fn try_run(&self, name: &str, cpus: &Option<String>, command: &str) -> Output {
        let mut process = in_namespace(name, cpus);
        process.args(command.split_whitespace());
        process.output().expect("the command starts")
    }

    /// Sends 10 MB over TCP from `ezdA` to `to` in `ezdB` and back; panics unless they come back unharmed.
    pub fn talk(&self, to: &str) {
        let mut echo = self.role("ezdB", "echo");
        let mut echo = echo.stdout(Stdio::piped()).spawn().expect("the echo starts");
        let stdout = BufReader::new(echo.stdout.take().expect("piped"));
        assert!(stdout.lines().map_while(Result::ok).any(|line| line.contains("ready ")));
        let mut talk = self.role("ezdA", "talk");
        let status = talk.env(TALK_TO, format!("{to}:{ECHO_PORT}")).status().expect("talk starts");
        let _ = echo.kill();
        let _ = echo.wait();
        assert!(status.success(), "TCP to {to} was harmed");
    }

    /// This program again, in a role.
    fn role(&self, name: &str, role: &str) -> Command {
        let mut command = in_namespace(name, &None);
        command.arg(std::env::current_exe().expect("this program"));
        command.args(std::env::args().skip(1)).env(ROLE, role);
        command
    }

    /// One iperf3 run from `ezdA` to `to` in `ezdB`; the client's report.
    pub fn iperf(&self, to: &str, cpus: &Option<String>, arguments: &str) -> serde_json::Value {
        let mut server = in_namespace("ezdB", cpus);
        server.args(["iperf3", "-s", "-1", "-p", "5999"]).stdout(Stdio::null());
        let mut server = server.spawn().expect("iperf3 starts");
        self.wait_for_listener();
        let output = self.try_run(
            "ezdA",
            cpus,
            &format!("iperf3 -J -c {to} -p 5999 --connect-timeout 3000 {arguments}"),
        );
        let _ = server.kill();
        let _ = server.wait();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn wait_for_listener(&self) {
        for _ in 0..200 {
            if self.run("ezdB", &None, "ss -Hltn").contains(":5999") {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Round-trip times in µs of `count` pings, 5 ms apart, in ascending order.
    pub fn ping(&self, to: &str, cpus: &Option<String>, count: usize) -> Vec<f64> {
        let text = self.run("ezdA", cpus, &format!("ping -n -c {count} -i 0.005 {to}"));
        let mut times: Vec<f64> = text
            .lines()
            .filter_map(|line| line.split("time=").nth(1)?.split(' ').next()?.parse().ok())
            .map(|millis: f64| millis * 1000.0)
            .collect();
        times.sort_by(f64::total_cmp);
        times
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.stop();
        remove_namespaces();
    }
}

fn remove_namespaces() {
    for name in ["ezdA", "ezdB", "ezdR"] {
        let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
    }
}

fn in_namespace(name: &str, cpus: &Option<String>) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", name]);
    if let Some(cpus) = cpus {
        command.args(["taskset", "-c", cpus]);
    }
    command
}

fn wire_up(a: &str, dev_a: &str, addr_a: &str, b: &str, dev_b: &str, addr_b: &str) {
    ip(&format!("link add {dev_a} netns {a} type veth peer name {dev_b} netns {b}"));
    for (name, dev, addr) in [(a, dev_a, addr_a), (b, dev_b, addr_b)] {
        ip(&format!("-n {name} addr add {addr}/24 dev {dev}"));
        ip(&format!("-n {name} link set {dev} up"));
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().expect("iproute2");
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {arguments}: {complaint}");
}
