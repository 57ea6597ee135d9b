//! `easynet server`: a public server, without network, TUN or capability.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use config::PublicHost;
use engine::{
    Server,
    fib::Fib,
    server::{Admission, Config},
};
use netio::{
    driver::{Departure, Driver, Machine, Parts},
    netmon,
    task::TaskGroup,
    tunnel::{TunnelConfig, Tunnels},
    udp::UdpSockets,
    worker::{Plane, Worker, punt},
};
use tokio::sync::mpsc;
use wire::id::NetworkId;

use super::{aead, bind_port, give_back_code, stop_signal, unix_now};
use crate::{
    args,
    error::Failure,
    metrics, render,
    state::{self, State},
};

const STOP_WITHIN: Duration = Duration::from_secs(2);
/// What a tunnel has to say last is written within this.
const LINKS_WITHIN: Duration = Duration::from_millis(300);
/// Connections that nobody has authenticated on yet, at once: all clients come as such, a whole site perhaps at one time.
const MAX_STRANGERS: usize = 512;
/// The other STUN ports are the first free ones of these above the main port.
const STUN_PORTS: u16 = 16;
/// How long the addresses of the host are waited for at the start.
const ADDRESSES_WITHIN: Duration = Duration::from_secs(1);

/// Runs a public server until it is told to stop.
pub(super) async fn run(args: args::Server) -> Result<(), Failure> {
    let admission = admission(&args.allow)?;
    let mut state = State::open(&args.state_dir)?;
    for warning in state.warnings.drain(..) {
        tracing::warn!("{warning}");
    }
    let identity = Arc::new(state.identity()?);
    let keys = identity.keys();
    let mut config = Config::open(identity, aead(), unix_now());
    config.admission = admission;

    // What is taken is said before anybody attaches.
    let door = match args.metrics {
        Some(addr) => Some(metrics::Door::bind(addr).await?),
        None => None,
    };
    let group = TaskGroup::new("server");
    // Ends later: the farewell goes over tunnels too.
    let links = TaskGroup::new("links");
    let sockets = Arc::new(UdpSockets::new(None));
    let taken = |error: std::io::Error| {
        Failure::failed(
            format!("Cannot listen on port {}: {error}", args.listen),
            "Stop what has it, or choose another one with --listen.",
        )
    };
    let (_, port) = bind_port(&sockets, args.listen).map_err(taken)?;
    // Without it a symmetric NAT before our clients cannot be told from others; the mesh works all the same.
    let _second = (1..STUN_PORTS).find_map(|step| sockets.bind_dual(port.checked_add(step)?).ok());
    let interfaces = netmon::watch(&group);
    let mut known = interfaces.clone();
    let _ = tokio::time::timeout(ADDRESSES_WITHIN, known.changed()).await;
    let known = known.borrow_and_update().clone();
    for ip in two_addresses(&known) {
        // Answers that come from the other of the two tell a full cone from a restricted one; each has two ports, as RFC 5780
        // has it, since a socket on all addresses does not know from which it answers.
        let free = (1..STUN_PORTS)
            .filter_map(|step| sockets.bind(SocketAddr::new(ip, port.checked_add(step)?)).ok());
        let bound = free.take(2).count();
        tracing::debug!(bound, "Answering STUN on an address of its own");
    }
    let mut seed = zeroize::Zeroizing::new([0; 32]);
    state::random(&mut *seed)?;
    let started = Instant::now();
    let server = Server::new(config, *seed, started);
    let drops = Arc::clone(server.drops());
    let (punt_sender, punts) = punt::queue();
    let fib = Arc::new(ArcSwap::from_pointee(Fib::new(server.node(), started, u16::MAX)));
    let plane = Arc::new(Plane::new(fib, None, Arc::clone(&sockets), punt_sender));
    let receiver = Arc::clone(&plane);
    let (tunnels, tunnel_events) = Tunnels::new(
        TunnelConfig { max_strangers: MAX_STRANGERS, drops, ..TunnelConfig::default() },
        links.clone(),
        Arc::new(move |hop, batch| receiver.receive(hop, batch, Instant::now())),
    );
    for addr in [SocketAddr::from(([0, 0, 0, 0], port)), SocketAddr::from(([0_u16; 8], port))] {
        if let Err(error) = tunnels.listen_tcp(addr) {
            tracing::warn!(%error, "Not listening on TCP");
        }
    }
    plane.set_tunnels(tunnels.clone());
    Worker::spawn(Arc::clone(&plane), 0, &group).map_err(|error| {
        Failure::failed(
            format!("Cannot start a worker thread: {error}"),
            "Check the limits on processes.",
        )
    })?;
    let (commands, command_receiver) = mpsc::channel(netio::driver::COMMAND_BOUND);
    let (persist, _persisted) = mpsc::channel(1);
    Driver::spawn(
        Parts {
            machine: Machine::Server(Box::new(server)),
            plane,
            punts,
            tunnel_events,
            commands: command_receiver,
            host: None,
            interfaces,
            resolver: None,
            names: Vec::new(),
            persist,
            departure: Departure::default(),
            observer: netio::driver::Observer::none(),
        },
        &group,
    );
    if let Some(door) = door {
        let bound = door.local();
        door.open(metrics::Source::Server(commands.clone()), &group);
        render::print(&format!("metrics {bound}"))?;
    }
    let host = match args.public_host {
        Some(host) => host,
        None => first_address(&known),
    };
    let stop = stop_signal();
    render::print(&format!("udp://{host}:{port}?k={keys}"))?;
    tracing::info!("Ready");
    give_back_code(&group);
    tokio::select! {
        () = stop => tracing::info!("Stopping"),
        () = group.token().cancelled() => {}
    }
    group.cancel();
    let joined = group.join(STOP_WITHIN).await;
    tunnels.close_all();
    links.cancel();
    let _ = links.join(LINKS_WITHIN).await;
    match joined {
        Ok(()) => Ok(()),
        Err(failure) => match failure.first {
            Some((task, cause)) => Err(Failure::failed(
                format!("{task} ended: {cause:?}"),
                "Report this, with the log.",
            )),
            None => Ok(()),
        },
    }
}

fn admission(allow: &[String]) -> Result<Admission, Failure> {
    if allow.is_empty() {
        return Ok(Admission::Open);
    }
    let networks: Result<BTreeSet<NetworkId>, Failure> = allow
        .iter()
        .map(|text| {
            text.trim().parse().map_err(|_| {
                Failure::usage(
                    format!("{text:?} is no network id"),
                    "Take network_id of `easynet status -o json` on a member.",
                )
            })
        })
        .collect();
    networks.map(Admission::Listed)
}

/// A global address if there is one, else any that others might reach.
fn first_address(interfaces: &netmon::Interfaces) -> PublicHost {
    let candidates: Vec<IpAddr> = interfaces.candidates().collect();
    let best = candidates.iter().find(|ip| ip.is_ipv4()).or(candidates.first());
    best.copied().unwrap_or(Ipv4Addr::LOCALHOST.into()).into()
}

/// Two public IPv4 addresses of the host, if it has as many.
fn two_addresses(interfaces: &netmon::Interfaces) -> Vec<IpAddr> {
    let is_public = |ip: &IpAddr| match ip {
        // Private ones, and the carriers' (RFC 6598).
        IpAddr::V4(v4) => !v4.is_private() && !matches!(v4.octets(), [100, 64..=127, ..]),
        IpAddr::V6(_) => false,
    };
    let found: Vec<IpAddr> = interfaces.candidates().filter(is_public).take(2).collect();
    if found.len() < 2 { Vec::new() } else { found }
}
