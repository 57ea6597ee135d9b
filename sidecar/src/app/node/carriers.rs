//! What carries the node's packets: plane, worker, UDP sockets and tunnels, and where it listens.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use arc_swap::ArcSwap;
use config::{Listen, Scheme, Settings};
use engine::{Engine, fib::Fib};
use netio::{
    netlink::FWMARK,
    port::tun::Tun,
    task::TaskGroup,
    tunnel::{TunnelConfig, TunnelEvent, Tunnels},
    udp::UdpSockets,
    worker::{
        Plane, Worker,
        punt::{self, PuntReceiver},
    },
};
use tokio::sync::mpsc;

use super::{super::bind_port, PREDECESSOR_GONE, PREDECESSOR_LOOK};
use crate::{
    error::Failure,
    view::{self, Listener},
};

pub(super) struct Carriers {
    pub(super) plane: Arc<Plane>,
    pub(super) sockets: Arc<UdpSockets>,
    pub(super) tunnels: Tunnels,
    pub(super) tunnel_events: mpsc::Receiver<TunnelEvent>,
    pub(super) punts: PuntReceiver,
    pub(super) listeners: Vec<Listener>,
}

impl Carriers {
    /// Opens them for an engine that began at `started`. The tunnels are of `links`, which ends after `group`: what the
    /// node says last goes over them too.
    ///
    /// # Errors
    /// When a port is taken, or the worker's thread cannot be had.
    pub(super) fn open(
        engine: &Engine,
        settings: &Settings,
        tun: Option<Arc<Tun>>,
        started: Instant,
        (group, links): (&TaskGroup, &TaskGroup),
    ) -> Result<Self, Failure> {
        let sockets = Arc::new(UdpSockets::new(Some(FWMARK)));
        let (punt_sender, punts) = punt::queue();
        let fib = Fib::new(engine.node(), started, settings.mtu.value.bytes());
        let fib = Arc::new(ArcSwap::from_pointee(fib));
        let plane = Arc::new(Plane::new(fib, tun, Arc::clone(&sockets), punt_sender));
        let receiver = Arc::clone(&plane);
        let drops = Arc::clone(engine.drops());
        let (tunnels, tunnel_events) = Tunnels::new(
            TunnelConfig { fwmark: Some(FWMARK), drops, ..TunnelConfig::default() },
            links.clone(),
            Arc::new(move |hop, batch| receiver.receive(hop, batch, Instant::now())),
        );
        let listeners = listen(&settings.listen.value, &sockets, &tunnels)?;
        plane.set_tunnels(tunnels.clone());
        Worker::spawn(Arc::clone(&plane), 0, group).map_err(|error| {
            Failure::failed(
                format!("Cannot start a worker thread: {error}"),
                "Check the limits on processes.",
            )
        })?;
        Ok(Self { plane, sockets, tunnels, tunnel_events, punts, listeners })
    }
}

/// Opens what is to be listened on; a node that listens nowhere still needs a socket of its own.
fn listen(
    wanted: &[Listen],
    sockets: &UdpSockets,
    tunnels: &Tunnels,
) -> Result<Vec<Listener>, Failure> {
    let taken = |what: &str, error: std::io::Error| {
        Failure::failed(
            format!("Cannot listen on {what}: {error}"),
            "Choose another port with --listen; 0 takes the first free one from 15888 upwards.",
        )
    };
    let mut listeners = Vec::new();
    let listening = |url| Listener { url, state: "listening".to_owned(), error: None };
    for listen in wanted {
        match *listen {
            Listen::None => {}
            Listen::Port(port) => {
                let (bound, port) = bind_port(sockets, port)
                    .map_err(|error| taken(&format!("UDP port {port}"), error))?;
                for socket in bound {
                    listeners.push(listening(view::url("udp", socket.local())));
                }
                for addr in [([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()] {
                    match tunnels.listen_tcp(addr) {
                        Ok(local) => listeners.push(listening(view::url("tcp", local))),
                        Err(error)
                            if error.kind() == std::io::ErrorKind::AddrInUse || addr.is_ipv4() =>
                        {
                            tracing::warn!(%error, port = addr.port(), "Not listening on TCP");
                            listeners.push(Listener {
                                url: view::url("tcp", addr),
                                state: "failed".to_owned(),
                                error: Some(error.to_string()),
                            });
                        }
                        // A host without IPv6 has nothing to listen on.
                        Err(error) => tracing::debug!(%error, "Not listening on TCP over IPv6"),
                    }
                }
            }
            Listen::Url(Scheme::Udp, addr) => {
                let socket =
                    sockets.bind(addr).map_err(|error| taken(&format!("udp://{addr}"), error))?;
                listeners.push(listening(view::url("udp", socket.local())));
            }
            Listen::Url(Scheme::Tcp, addr) => {
                let local = tunnels
                    .listen_tcp(addr)
                    .map_err(|error| taken(&format!("tcp://{addr}"), error))?;
                listeners.push(listening(view::url("tcp", local)));
            }
        }
    }
    if sockets.table().is_empty() {
        sockets.bind_dual(0).map_err(|error| taken("any UDP port", error))?;
    }
    Ok(listeners)
}

/// Waits until a predecessor has let go of the ports.
pub(super) async fn ports_free(wanted: &[Listen]) {
    let taken = |error: std::io::Error| error.kind() == std::io::ErrorKind::AddrInUse;
    let udp = |addr: SocketAddr| std::net::UdpSocket::bind(addr).is_err_and(taken);
    let tcp = |addr: SocketAddr| std::net::TcpListener::bind(addr).is_err_and(taken);
    let is_busy = |listen: &Listen| match *listen {
        Listen::None | Listen::Port(0) => false,
        Listen::Port(port) => [([0, 0, 0, 0], port).into(), ([0_u16; 8], port).into()]
            .into_iter()
            .any(|addr| udp(addr) || tcp(addr)),
        Listen::Url(Scheme::Udp, addr) => udp(addr),
        Listen::Url(Scheme::Tcp, addr) => tcp(addr),
    };
    let until = Instant::now() + PREDECESSOR_GONE;
    while wanted.iter().any(is_busy) && Instant::now() < until {
        tokio::time::sleep(PREDECESSOR_LOOK).await;
    }
}
