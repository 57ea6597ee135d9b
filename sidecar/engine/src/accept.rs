//! Who may begin a session with us: the same gate for nodes and public servers.
//!
//! In the order of what it costs: length and version, `mac1`, under load a cookie, the source's share of this second, and only
//! then half a millisecond of curve arithmetic. Under load only sources that a cookie proves are counted, so that invented
//! ones cannot fill the table of sources. A replayed INIT passes all of it but the freshness value, which is noted only once
//! the caller knows that the initiator belongs here: whoever does not leaves nothing behind.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

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
const SECOND: Duration = Duration::from_secs(1);

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
    /// Initiations with a good `mac1` since `since`, and in the second before.
    count: u32,
    before: u32,
    since: Instant,
}

impl Acceptor {
    pub(crate) fn new(rng: &mut ChaCha12Rng, now: Instant) -> Self {
        Self {
            jar: Jar::new(rng, now),
            limiter: Limiter::new(now),
            highest: Highest::default(),
            count: 0,
            before: 0,
            since: now,
        }
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
        if init.version != wire::VERSION {
            // Nothing in it can be checked, so only a share of the few that come in peace is answered.
            if self.is_loaded(now) || !self.limiter.accept(source, now) {
                return Gate::Drop(DropReason::InitiationRate);
            }
            return Gate::Reply(
                Versions::encode(wire::VERSION, wire::VERSION, init.sender_index).to_vec(),
            );
        }
        let key = me.keys().dh;
        if !verify_mac1(&key, init.mac1_covers, &init.mac1) {
            return Gate::Drop(DropReason::BadMac1);
        }
        let loaded = self.is_loaded(now);
        self.count += 1;
        if loaded {
            let addr = cookie_address(arrival);
            if !self.jar.verify(addr, init.mac2_covers, &init.mac2, rng, now) {
                let cookie = self.jar.bake(&key, addr, init.sender_index, &init.mac1, rng, now);
                return Gate::Reply(cookie.to_vec());
            }
        }
        if !self.limiter.accept(source, now) {
            return Gate::Drop(DropReason::InitiationRate);
        }
        let Ok(responder) = Responder::read(me, init, rng) else {
            return Gate::Drop(DropReason::BadHandshake);
        };
        Gate::Open(Box::new(responder))
    }

    /// Whether an initiation is newer than all that its sender has shown; it is noted then.
    pub(crate) fn is_fresh(&mut self, responder: &Responder) -> bool {
        self.highest.accept(responder.remote, responder.payload.freshness)
    }

    /// Whether `source` may ask one more cheap question in this second.
    pub(crate) fn may_ask(&mut self, source: Source, now: Instant) -> bool {
        self.limiter.accept(source, now)
    }

    fn is_loaded(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since);
        if passed >= SECOND {
            self.before = if passed < 2 * SECOND { self.count } else { 0 };
            self.count = 0;
            self.since = now;
        }
        self.count.max(self.before) > LOAD
    }
}

/// The address that a cookie proves. Behind a relay it is the relay's, which vouches for its nodes.
fn cookie_address(arrival: &Arrival) -> SocketAddr {
    arrival.hop.remote()
}
