//! Who may begin a session with us: the same gate for nodes and public servers.
//!
//! In the order of what it costs: length and version, the source's share of this second, `mac1`, under load a cookie, and only
//! then half a millisecond of curve arithmetic. A replayed INIT passes all of it but the freshness value.

use std::{net::SocketAddr, time::Instant};

use rand_chacha::ChaCha12Rng;
use session::{
    cookie::{Jar, Limiter, Source},
    freshness::Highest,
    handshake::{Responder, verify_mac1},
    identity::Identity,
};
use wire::datagram::{Init, Versions};

use crate::{drops::DropReason, path::addr::Arrival};

/// Initiations in a second, of all sources, from which on a cookie is asked for: at half a millisecond each they
/// would take a twentieth of a core.
const LOAD: u32 = 100;

/// What became of an INIT.
#[derive(Debug)]
pub(crate) enum Gate {
    Open(Box<Responder>),
    /// Send this back instead.
    Reply(Vec<u8>),
    Drop(DropReason),
}

/// The gate.
#[derive(Debug)]
pub(crate) struct Acceptor {
    jar: Jar,
    limiter: Limiter,
    highest: Highest,
}

impl Acceptor {
    pub(crate) fn new(rng: &mut ChaCha12Rng, now: Instant) -> Self {
        Self { jar: Jar::new(rng, now), limiter: Limiter::new(now), highest: Highest::default() }
    }

    pub(crate) fn admit(
        &mut self,
        me: &Identity,
        init: &Init<'_>,
        arrival: &Arrival,
        rng: &mut ChaCha12Rng,
        now: Instant,
    ) -> Gate {
        let source = match arrival.via {
            Some(via) => Source::Relayed(via.link, via.src),
            None => Source::of(arrival.hop.remote().ip()),
        };
        if !self.limiter.accept(source, now) {
            return Gate::Drop(DropReason::InitiationRate);
        }
        if init.version != wire::VERSION {
            return Gate::Reply(
                Versions::encode(wire::VERSION, wire::VERSION, init.sender_index).to_vec(),
            );
        }
        let key = me.keys().dh;
        if !verify_mac1(&key, init.mac1_covers, &init.mac1) {
            return Gate::Drop(DropReason::BadMac1);
        }
        if self.limiter.load() > LOAD {
            let addr = cookie_address(arrival);
            if !self.jar.verify(addr, init.mac2_covers, &init.mac2, rng, now) {
                let cookie = self.jar.bake(&key, addr, init.sender_index, &init.mac1, rng, now);
                return Gate::Reply(cookie.to_vec());
            }
        }
        let Ok(responder) = Responder::read(me, init, rng) else {
            return Gate::Drop(DropReason::BadHandshake);
        };
        if !self.highest.accept(responder.remote, responder.payload.freshness) {
            return Gate::Drop(DropReason::Replayed);
        }
        Gate::Open(Box::new(responder))
    }
}

/// The address that a cookie proves. Behind a relay it is the relay's, which vouches for its nodes.
fn cookie_address(arrival: &Arrival) -> SocketAddr {
    arrival.hop.remote()
}
