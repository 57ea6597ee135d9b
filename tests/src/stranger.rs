//! Somebody who speaks the protocol by hand, and so may do what no node does.
//!
//! Pure: it makes datagrams and reads them. What carries them is the caller's matter, be it a machine in this process or a
//! socket in a namespace.

use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
use session::{
    freshness::Clock,
    handshake::Initiator,
    identity::Identity,
    lsa,
    membership::{Master, Membership, low_byte},
    transport::Session,
};
use wire::{
    control::{AEAD_CHACHA, Body, Control, InitPayload, Register},
    datagram::{DATA_HEADER_LEN, Datagram, Probe, ProbeOp, Role, Transit},
    id::{NodeId, NodeKeys, ShortId},
    lsa::{Head, LsaType},
    packet::Kind,
};

/// What a server makes a member sign; see `docs/protocol.md`.
const REGISTER_CONTEXT: &[u8] = b"easynet register";

/// A node's keys, a membership, and no machine.
#[derive(Debug)]
pub struct Stranger {
    pub identity: Identity,
    pub membership: Membership,
    clock: Clock,
    index: u32,
    rng: ChaCha12Rng,
}

/// An INIT that waits for its answer.
#[derive(Debug)]
pub struct Pending {
    pub init: Vec<u8>,
    initiator: Initiator,
    index: u32,
    to: NodeKeys,
}

impl Stranger {
    /// The same `seed` gives the same keys.
    pub fn new(master: &Master, seed: u64) -> Self {
        let mut rng = ChaCha12Rng::seed_from_u64(seed);
        let identity = Identity::generate(&mut rng);
        let membership = master.membership(&identity, &format!("s{seed}"), 0);
        Self { identity, membership, clock: Clock::new(1), index: 0, rng }
    }

    pub fn node(&self) -> NodeId {
        self.identity.node()
    }

    /// Begins a handshake.
    pub fn init(&mut self, to: NodeKeys, role: Role) -> Pending {
        let freshness = self.clock.tick();
        self.init_with(to, role, freshness)
    }

    /// Begins one with a freshness value of the caller's.
    pub fn init_with(&mut self, to: NodeKeys, role: Role, freshness: u64) -> Pending {
        self.index += 1;
        let payload = InitPayload {
            network: self.membership.network.0.to_vec(),
            certificate: Some(self.membership.certificate.clone()),
            aead: AEAD_CHACHA,
            freshness,
            role: u32::from(role as u8),
            sign: self.identity.keys().sign.0.to_vec(),
            ..InitPayload::default()
        };
        let (initiator, init) =
            Initiator::start(&self.identity, to.dh, role, self.index, &payload, &mut self.rng)
                .expect("the payload fits");
        Pending { init, initiator, index: self.index, to }
    }

    /// Reads an answer to it; `None` if it is none, or not a good one.
    pub fn session(&self, pending: &mut Pending, answer: &[u8], now: Instant) -> Option<Session> {
        let Some(Datagram::Response(response)) = Datagram::parse(answer) else { return None };
        let psk = |_, epoch| self.membership.psk(epoch).copied();
        let answer = pending.initiator.read(&response, psk).ok()?;
        let peer = pending.to.node();
        Some(Session::new(peer, pending.index, response.sender_index, &answer.keys, now))
    }

    /// An LSA of its own.
    pub fn lsa(&self, kind: u8, id: u32, seq: u64, lifetime: u32, body: &[u8]) -> Bytes {
        let (epoch, keys) = self.membership.sealing(None);
        let is_node = kind == LsaType::Node as u8;
        let clear = if is_node { self.membership.certificate.encode_to_vec() } else { Vec::new() };
        let head = Head {
            network: self.membership.network,
            signer: self.identity.keys().sign,
            kind,
            id,
            flags: 0,
            gk_epoch: low_byte(epoch),
            seq,
            lifetime,
            nonce: [kind; 24],
        };
        lsa::seal(&self.identity, &keys.group, &head, &clear, body).expect("it fits").into()
    }

    /// REGISTER for its own network under a session.
    pub fn register(&self, session: &Session) -> Body {
        Body::Register(Register {
            network: self.membership.network.0.to_vec(),
            root: self.membership.root.0.to_vec(),
            certificate: Some(self.membership.certificate.clone()),
            signature: self.identity.sign(REGISTER_CONTEXT, session.exporter()).to_vec(),
            ..Register::default()
        })
    }
}

/// Seals a control record.
pub fn control(session: &Session, body: Body) -> Vec<u8> {
    session.seal_record(Kind::Control, &Control::from(body).encode_to_vec()).expect("a young key")
}

/// Opens a datagram of a session: the control record in it.
pub fn open(session: &Session, datagram: &[u8]) -> Option<Body> {
    let mut bytes = datagram.to_vec();
    let opened = session.open(&mut bytes).ok()?;
    let plain = bytes.get(DATA_HEADER_LEN..DATA_HEADER_LEN + opened.len)?;
    (opened.kind == Kind::Control).then(|| Control::decode(plain).ok()?.body).flatten()
}

/// A signed probe of this length, stamped with `micros`.
pub fn probe(session: &Session, micros: u64, len: usize) -> Vec<u8> {
    let mut probe = Probe::encode(ProbeOp::Ask, 0, session.remote_index(), 7, micros, None, len);
    session.sign_probe(&mut probe);
    probe
}

/// Packs a datagram into TRANSIT over a session with a relay, from `src`, whoever that is.
pub fn transit(session: &Session, src: ShortId, dst: ShortId, inner: &[u8]) -> Vec<u8> {
    let counter = session.reserve_hops(1);
    let head = Transit::head(wire::datagram::HOP_LIMIT, session.remote_index(), counter, dst, src);
    let mut bytes = [&head[..], inner].concat();
    session.sign_hop(&mut bytes);
    bytes
}
