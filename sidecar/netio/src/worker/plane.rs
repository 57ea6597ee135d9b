//! The ports of the data plane, for everybody who moves packets: workers, tunnels, the driver.

use std::{
    fmt,
    sync::{Arc, OnceLock},
    time::Instant,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use engine::{
    drops::{DropReason, Drops},
    fastpath::{self, Inbox, Outbox, Punt, Sink},
    fib::Fib,
    offload::{Delivery, Virtio},
    path::addr::Hop,
};
use wire::datagram::{TRANSIT_LEN, TYPE_DATA, TYPE_TRANSIT};

use super::punt::PuntSender;
use crate::{
    port::tun::Tun,
    tunnel::{Batch, Precedence, Tunnels},
    udp::UdpSockets,
};

/// The tables and the ports.
pub struct Plane {
    fib: Arc<ArcSwap<Fib>>,
    tun: ArcSwapOption<Tun>,
    sockets: Arc<UdpSockets>,
    punts: PuntSender,
    tunnels: OnceLock<Tunnels>,
}

impl Plane {
    /// Without a TUN this is a server, a test, or a node whose host has none yet: what would be delivered is dropped.
    pub fn new(
        fib: Arc<ArcSwap<Fib>>,
        tun: Option<Arc<Tun>>,
        sockets: Arc<UdpSockets>,
        punts: PuntSender,
    ) -> Self {
        let tun = ArcSwapOption::from(tun);
        Self { fib, tun, sockets, punts, tunnels: OnceLock::new() }
    }

    /// Adds the stream carriers, whose handler is [`Plane::receive`]; the first call counts.
    pub fn set_tunnels(&self, tunnels: Tunnels) {
        let _ = self.tunnels.set(tunnels);
    }

    pub fn fib(&self) -> &ArcSwap<Fib> {
        &self.fib
    }

    pub fn tun(&self) -> Option<Arc<Tun>> {
        self.tun.load_full()
    }

    /// Takes a TUN into use; the workers read from it from now on.
    pub fn set_tun(&self, tun: Arc<Tun>) {
        self.tun.store(Some(tun));
        self.sockets.wake();
    }

    /// Gives all ports back to the system, although somebody may still hold the plane.
    pub fn close(&self) {
        self.tun.store(None);
        let sockets: Vec<_> = self.sockets.table().keys().copied().collect();
        for socket in sockets {
            self.sockets.close(socket);
        }
    }

    /// Forgets a TUN that is gone, unless there is another one already.
    pub fn lose_tun(&self, gone: &Arc<Tun>) {
        self.tun.compare_and_swap(gone, None);
    }

    pub fn sockets(&self) -> &UdpSockets {
        &self.sockets
    }

    pub fn tunnels(&self) -> Option<&Tunnels> {
        self.tunnels.get()
    }

    /// Takes what a tunnel read.
    pub fn receive(&self, hop: Hop, batch: &mut Batch<'_>, now: Instant) {
        let fib = self.fib.load();
        let mut sink = PlaneSink::new(self, &fib);
        let (buf, datagrams) = batch.parts();
        let mut inbox = Inbox::default();
        fastpath::decapsulate(
            &fib,
            buf,
            datagrams.iter().cloned(),
            hop,
            now,
            &mut inbox,
            &mut sink,
        );
    }

    /// Encapsulates one plain IP packet, such as one held for a session that is up now.
    pub fn send_packet(&self, packet: &mut [u8], now: Instant, outbox: &mut Outbox) {
        let fib = self.fib.load();
        let mut sink = PlaneSink::new(self, &fib);
        let reply = fastpath::encapsulate(&fib, &Virtio::default(), packet, now, outbox, &mut sink);
        if let Some(reply) = reply {
            sink.deliver_one(&reply);
        }
        outbox.flush(&mut sink);
    }

    /// Hands one IP packet of the engine's to the host.
    pub fn deliver(&self, packet: &[u8]) {
        PlaneSink::new(self, &self.fib.load()).deliver_one(packet);
    }

    /// Sends one datagram of the engine's. Never waits.
    pub fn transmit(&self, hop: &Hop, datagram: &[u8], ttl: Option<u8>) {
        match *hop {
            Hop::Udp { socket, remote } => {
                if !self.sockets.send(socket, remote, datagram, ttl) {
                    self.fib.load().drops.count(DropReason::SendFailed);
                }
            }
            Hop::Tunnel { id, .. } => {
                let fib = self.fib.load();
                let sent = self
                    .tunnels
                    .get()
                    .map(|tunnels| tunnels.try_send(id, Precedence::Control, datagram).dropped);
                fib.drops.add(DropReason::TunnelFull, sent.unwrap_or(1) as u64);
            }
        }
    }
}

impl fmt::Debug for Plane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Plane").field("tun", &self.tun.load()).finish_non_exhaustive()
    }
}

/// The ports as the fast path sees them.
#[derive(Debug)]
pub struct PlaneSink<'a> {
    plane: &'a Plane,
    drops: &'a Drops,
}

impl<'a> PlaneSink<'a> {
    pub fn new(plane: &'a Plane, fib: &'a Fib) -> Self {
        Self { plane, drops: &fib.drops }
    }

    pub(super) fn deliver_one(&self, packet: &[u8]) {
        let tun = self.plane.tun.load();
        let written = tun.as_ref().is_some_and(|tun| tun.deliver_one(packet).is_ok());
        if !written {
            self.drops.count(DropReason::TunWrite);
        }
    }

    fn lose(&self, reason: DropReason, packets: usize) {
        if packets > 0 {
            self.drops.add(reason, packets as u64);
        }
    }
}

impl Sink for PlaneSink<'_> {
    #[inline]
    fn transmit(&mut self, hop: &Hop, datagrams: &[u8], segment: usize) {
        match *hop {
            Hop::Udp { socket, remote } => {
                let table = self.plane.sockets.table();
                match table.get(&socket) {
                    Some(socket) => {
                        let lost = socket.send(remote, datagrams, segment);
                        self.lose(DropReason::SendFailed, lost);
                    }
                    None => {
                        self.lose(DropReason::NoSocket, datagrams.len().div_ceil(segment.max(1)));
                    }
                }
            }
            Hop::Tunnel { id, .. } => {
                let Some(tunnels) = self.plane.tunnels.get() else {
                    return self.lose(DropReason::TunnelFull, 1);
                };
                let precedence = precedence_of(datagrams);
                let sent = tunnels.try_send_batch(id, precedence, datagrams.chunks(segment.max(1)));
                self.lose(DropReason::TunnelFull, sent.dropped);
            }
        }
    }

    #[inline]
    fn deliver(&mut self, buf: &mut [u8], deliveries: &[Delivery]) {
        let refused = match &*self.plane.tun.load() {
            Some(tun) => tun.deliver(buf, deliveries),
            None => deliveries.len(),
        };
        self.lose(DropReason::TunWrite, refused);
    }

    fn punt(&mut self, punt: Punt<'_>) {
        if let Err(reason) = self.plane.punts.push(punt) {
            self.drops.count(reason);
        }
    }
}

/// Forwarded handshakes and probes leave before data.
fn precedence_of(datagrams: &[u8]) -> Precedence {
    let kind = match datagrams {
        [TYPE_TRANSIT, ..] => datagrams.get(TRANSIT_LEN),
        _ => datagrams.first(),
    };
    if kind == Some(&TYPE_DATA) { Precedence::Data } else { Precedence::Control }
}
