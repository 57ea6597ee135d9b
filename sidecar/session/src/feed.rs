//! The session of the configuration feed: two byte streams, sealed, over one connection.
//!
//! On the connection run the frames of `wire::stream`, each with one datagram of `wire::datagram`:
//!
//! ```text
//! node                      server
//!  WHOIS              ──►
//!                     ◄──   WHOIS_ACK      the server's keys, signed by its root
//!  INIT, role feed    ──►
//!                     ◄──   RESPONSE
//!  DATA               ◄─►   DATA           kind control: the next bytes of a stream; kind keepalive: nothing
//!  INIT               ──►                  every 100 to 115 s, beside the data; the old keys go with RESPONSE
//!                     ◄──   RESPONSE
//! ```
//! The node knows only the server's root, from `?k=`: the server's session keys are made anew whenever it starts, and the
//! signature over them is checked before INIT. The pre-shared key is zero; who the node is, the first call says
//! (`rpc::feed`), bound to this session by [`Feed::exporter`].
//!
//! A connection keeps order, so the counters of DATA must come one after the other, and freshness values are not used: a
//! replayed INIT makes a session that nobody can use.

mod clock;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ed25519_dalek::SigningKey;
use rand_chacha::{
    ChaCha12Rng,
    rand_core::{RngCore, SeedableRng},
};
use rand_core::CryptoRng;
use ring::aead::{Aad, LessSafeKey};
use wire::{
    control::{InitPayload, ResponsePayload},
    datagram::{
        DATA_HEADER_LEN, DATA_OVERHEAD, Data, Datagram, Init, Response, Role, TYPE_DATA, Versions,
        Whois,
    },
    id::{DhKey, NodeKeys, SignKey},
    packet::Kind,
    stream::{self, Frame},
};
use zeroize::{Zeroize, Zeroizing};

use crate::{
    handshake::{HandshakeError, Initiator, NO_PSK, Responder, verify_mac1},
    identity::{self, Identity},
    keys::TransportKeys,
    transport::{REJECT_AFTER, aead, nonce},
};

pub use self::clock::Clock;

/// Context of the root's signature over a server's keys.
pub const ENDORSE_CONTEXT: &[u8] = b"easynet feed server v1";
/// From the connection to the session.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);
/// Whoever said nothing for so long says that it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// A connection is dead when nothing came for three keepalives.
const DEAD_AFTER: Duration = Duration::from_secs(45);
/// The node renews the keys after this, and up to [`REKEY_JITTER`] later, so that thousands do not do it at once.
const REKEY_AFTER: Duration = Duration::from_secs(100);
const REKEY_JITTER: Duration = Duration::from_secs(15);
/// Bytes of the stream in one DATA.
const RECORD: usize = 8 * 1024;
/// Questions for the keys that one connection may ask.
const MOST_WHOIS: u32 = 4;

/// Signs the keys of servers; what `?k=` of a configuration server names.
#[derive(Clone)]
pub struct Root(SigningKey);

impl Root {
    pub fn generate(rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let mut seed = Zeroizing::new([0; 32]);
        rng.fill_bytes(&mut *seed);
        Self::from_bytes(&seed)
    }

    pub fn from_bytes(seed: &[u8; 32]) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The secret seed, to be kept in one place alone.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    pub fn key(&self) -> SignKey {
        SignKey(self.0.verifying_key().to_bytes())
    }

    fn endorse(&self, keys: &NodeKeys) -> [u8; 64] {
        identity::sign(&self.0, ENDORSE_CONTEXT, &keys.to_bytes())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Root").field(&self.key()).finish()
    }
}

/// A server's session keys and what its root says of them; shared by all its sessions.
#[derive(Debug)]
pub struct Server {
    identity: Identity,
    endorsement: [u8; 64],
    aead: u32,
}

impl Server {
    /// Makes session keys. `aead` is the sum of `wire::control::AEAD_` bits that this machine offers.
    pub fn new(root: &Root, aead: u32, rng: &mut (impl RngCore + CryptoRng)) -> Self {
        let identity = Identity::generate(rng);
        let endorsement = root.endorse(&identity.keys());
        Self { identity, endorsement, aead }
    }
}

/// Why a session ends. All but [`FeedError::Silent`] are the other side's, or somebody's in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    #[error("what answers there does not speak this protocol")]
    Malformed,
    #[error("the server's keys are not signed by the root that ?k= names")]
    WrongRoot,
    #[error("the handshake {0}")]
    Handshake(#[from] HandshakeError),
    #[error("it speaks protocol versions {lowest} to {highest}: upgrade the older of the two")]
    Version { lowest: u8, highest: u8 },
    #[error("a record does not authenticate")]
    Forged,
    #[error("the handshake took longer than 10 s")]
    TooSlow,
    #[error("nothing came for 45 s")]
    Silent,
    #[error("the keys were not renewed in time")]
    Expired,
}

/// One end of a session. Like every machine here it is told what came and when, and says what goes.
pub struct Feed {
    side: Side,
    rng: ChaCha12Rng,
    began: Instant,
    last_sent: Instant,
    last_received: Instant,
    /// The beginning of a frame that has not come whole.
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
    received: Vec<u8>,
    keys: Option<Keys>,
    /// Opens what a node sealed before it had our RESPONSE.
    previous: Option<Opener>,
    next_index: u32,
    exporter: Option<[u8; 32]>,
    remote: Option<DhKey>,
    error: Option<FeedError>,
}

enum Side {
    Node(Box<Node>),
    Server { server: Arc<Server>, asked: u32 },
}

struct Node {
    identity: Arc<Identity>,
    root: SignKey,
    aead: u32,
    txid: u64,
    server: Option<NodeKeys>,
    handshake: Option<(Initiator, u32)>,
    rekey_at: Option<Instant>,
}

struct Keys {
    seal: LessSafeKey,
    sealed: u64,
    remote_index: u32,
    open: Opener,
    established: Instant,
}

struct Opener {
    key: LessSafeKey,
    opened: u64,
    index: u32,
}

impl Feed {
    /// The node's end of a fresh connection.
    pub fn dial(
        identity: Arc<Identity>,
        root: SignKey,
        aead: u32,
        seed: [u8; 32],
        now: Instant,
    ) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let node = Node {
            identity,
            root,
            aead,
            txid: rng.next_u64(),
            server: None,
            handshake: None,
            rekey_at: None,
        };
        let question = Whois::ask(node.txid);
        let mut feed = Self::new(Side::Node(Box::new(node)), rng, now);
        feed.put(&question, now);
        feed
    }

    /// The server's end of a fresh connection.
    pub fn accept(server: Arc<Server>, seed: [u8; 32], now: Instant) -> Self {
        let rng = ChaCha12Rng::from_seed(seed);
        Self::new(Side::Server { server, asked: 0 }, rng, now)
    }

    fn new(side: Side, mut rng: ChaCha12Rng, now: Instant) -> Self {
        Self {
            side,
            next_index: rng.next_u32(),
            rng,
            began: now,
            last_sent: now,
            last_received: now,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            received: Vec::new(),
            keys: None,
            previous: None,
            exporter: None,
            remote: None,
            error: None,
        }
    }

    /// Takes what came on the connection. What opened is in [`Feed::received`] then.
    ///
    /// # Errors
    /// The session is over.
    pub fn handle_bytes(&mut self, bytes: &[u8], now: Instant) -> Result<(), FeedError> {
        self.last_received = now;
        let mut incoming = std::mem::take(&mut self.incoming);
        incoming.extend_from_slice(bytes);
        let mut at = 0;
        let outcome = loop {
            match stream::next(&incoming, at) {
                Frame::Whole(range) => {
                    at = range.end;
                    let Some(datagram) = incoming.get_mut(range) else {
                        break Err(FeedError::Malformed);
                    };
                    if let Err(error) = self.handle_datagram(datagram, now) {
                        break Err(error);
                    }
                }
                Frame::Partial => break Ok(()),
                Frame::Malformed(_) => break Err(FeedError::Malformed),
            }
        };
        if at < incoming.len() {
            incoming.drain(..at);
            self.incoming = incoming;
        }
        if let Err(error) = outcome {
            self.error.get_or_insert(error);
        }
        outcome
    }

    /// Time passed; early, late and twice are all right.
    ///
    /// # Errors
    /// The session is over.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), FeedError> {
        let over = match &self.keys {
            None if now >= self.began + HANDSHAKE_WITHIN => Some(FeedError::TooSlow),
            Some(keys) if now >= keys.established + REJECT_AFTER => Some(FeedError::Expired),
            None | Some(_) if now >= self.last_received + DEAD_AFTER => Some(FeedError::Silent),
            None | Some(_) => None,
        };
        if let Some(error) = over {
            self.error.get_or_insert(error);
            return Err(error);
        }
        if self.keys.is_none() {
            return Ok(());
        }
        if let Side::Node(node) = &mut self.side
            && node.rekey_at.is_some_and(|at| at <= now)
        {
            node.rekey_at = None;
            self.initiate(now)?;
        }
        if now >= self.last_sent + KEEPALIVE {
            self.seal(Kind::Keepalive, &[], now);
        }
        Ok(())
    }

    /// When to call [`Feed::handle_timeout`].
    pub fn poll_timeout(&self) -> Instant {
        let Some(keys) = &self.keys else { return self.began + HANDSHAKE_WITHIN };
        let rekey = match &self.side {
            Side::Node(node) => node.rekey_at,
            Side::Server { .. } => None,
        };
        let fixed = (self.last_sent + KEEPALIVE).min(self.last_received + DEAD_AFTER);
        let fixed = fixed.min(keys.established + REJECT_AFTER);
        rekey.map_or(fixed, |rekey| rekey.min(fixed))
    }

    /// Bytes to write to the connection now.
    pub fn unsent(&self) -> &[u8] {
        &self.outgoing
    }

    /// The connection took so many of them.
    pub fn handle_sent(&mut self, count: usize) {
        if count < self.outgoing.len() {
            self.outgoing.drain(..count);
        } else {
            // Of thousands of sessions nearly all have nothing to say.
            self.outgoing = Vec::new();
        }
    }

    /// The other side's stream as far as it came; the reader takes off its front what it understands.
    pub fn received(&mut self) -> &mut Vec<u8> {
        &mut self.received
    }

    /// Puts bytes onto our stream; only once the session [is up](Feed::exporter).
    pub fn send(&mut self, bytes: &[u8], now: Instant) {
        for piece in bytes.chunks(RECORD) {
            self.seal(Kind::Control, piece, now);
        }
    }

    /// The hash of the session, equal on both sides and known to nobody else: what Enroll signs. `None` until the
    /// handshake is over; renewing keys does not change it.
    pub fn exporter(&self) -> Option<&[u8; 32]> {
        self.exporter.as_ref()
    }

    /// The other side's static key, proved by the handshake.
    pub fn remote(&self) -> Option<DhKey> {
        self.remote
    }

    /// Why the session is over, if it is.
    pub fn error(&self) -> Option<FeedError> {
        self.error
    }

    fn handle_datagram(&mut self, datagram: &mut [u8], now: Instant) -> Result<(), FeedError> {
        if datagram.first() == Some(&TYPE_DATA) {
            return self.open(datagram);
        }
        match Datagram::parse(datagram) {
            Some(Datagram::Whois(whois)) => self.on_whois(&whois, now),
            Some(Datagram::Init(init)) => self.on_init(&init, now),
            Some(Datagram::Response(response)) => self.on_response(&response, now),
            Some(Datagram::Versions(versions)) => {
                Err(FeedError::Version { lowest: versions.lowest, highest: versions.highest })
            }
            Some(
                Datagram::Cookie(_)
                | Datagram::Data(_)
                | Datagram::Probe(_)
                | Datagram::Transit(_)
                | Datagram::Stun(_),
            )
            | None => Err(FeedError::Malformed),
        }
    }

    fn on_whois(&mut self, whois: &Whois, now: Instant) -> Result<(), FeedError> {
        match &mut self.side {
            Side::Server { server, asked } => {
                *asked += 1;
                if whois.answer || *asked > MOST_WHOIS {
                    return Err(FeedError::Malformed);
                }
                let answer =
                    Whois::answer(whois.txid, &server.identity.keys(), &server.endorsement);
                self.put(&answer, now);
                Ok(())
            }
            Side::Node(node) => {
                if !whois.answer || whois.txid != node.txid || node.server.is_some() {
                    return Err(FeedError::Malformed);
                }
                let signed = whois.keys.to_bytes();
                if !identity::verify(&node.root, ENDORSE_CONTEXT, &signed, &whois.signature) {
                    return Err(FeedError::WrongRoot);
                }
                node.server = Some(whois.keys);
                self.remote = Some(whois.keys.dh);
                self.initiate(now)
            }
        }
    }

    fn initiate(&mut self, now: Instant) -> Result<(), FeedError> {
        self.next_index = self.next_index.wrapping_add(1);
        let index = self.next_index;
        let Side::Node(node) = &mut self.side else { return Ok(()) };
        let Some(server) = node.server else { return Ok(()) };
        let payload = InitPayload {
            aead: node.aead,
            role: u32::from(Role::Feed as u8),
            sign: node.identity.keys().sign.0.to_vec(),
            ..InitPayload::default()
        };
        let (initiator, init) = Initiator::start(
            &node.identity,
            server.dh,
            Role::Feed,
            index,
            &payload,
            &mut self.rng,
        )?;
        node.handshake = Some((initiator, index));
        self.put(&init, now);
        Ok(())
    }

    fn on_init(&mut self, init: &Init<'_>, now: Instant) -> Result<(), FeedError> {
        let Side::Server { server, .. } = &self.side else { return Err(FeedError::Malformed) };
        let server = Arc::clone(server);
        if init.version != wire::VERSION {
            self.put(&Versions::encode(wire::VERSION, wire::VERSION, init.sender_index), now);
            return Err(FeedError::Version { lowest: init.version, highest: init.version });
        }
        if !verify_mac1(&server.identity.keys().dh, init.mac1_covers, &init.mac1) {
            return Err(FeedError::Handshake(HandshakeError::Forged));
        }
        let responder = Responder::read(&server.identity, init, &mut self.rng)?;
        if init.role != Role::Feed as u8 {
            return Err(FeedError::Handshake(HandshakeError::RoleMismatch));
        }
        if self.remote.is_some_and(|known| known != responder.remote) {
            return Err(FeedError::Forged);
        }
        self.remote = Some(responder.remote);
        self.next_index = self.next_index.wrapping_add(1);
        let index = self.next_index;
        let remote_index = responder.receiver_index();
        let payload = ResponsePayload {
            sign: server.identity.keys().sign.0.to_vec(),
            ..ResponsePayload::default()
        };
        let (response, keys) =
            responder.respond(Role::Feed, &NO_PSK, 0, server.aead, index, payload)?;
        self.put(&response, now);
        let keys = self.keys_of(&keys, index, remote_index, now);
        self.previous = self.keys.replace(keys).map(|old| old.open);
        Ok(())
    }

    fn on_response(&mut self, response: &Response<'_>, now: Instant) -> Result<(), FeedError> {
        let Side::Node(node) = &mut self.side else { return Err(FeedError::Malformed) };
        let Some((mut initiator, index)) = node.handshake.take() else {
            return Err(FeedError::Malformed);
        };
        if response.receiver_index != index {
            return Err(FeedError::Malformed);
        }
        let answer = initiator.read(response, |_, _| None)?;
        let jitter = u64::from(self.rng.next_u32()) % REKEY_JITTER.as_millis() as u64;
        node.rekey_at = Some(now + REKEY_AFTER + Duration::from_millis(jitter));
        let keys = self.keys_of(&answer.keys, index, response.sender_index, now);
        // The server seals with the new keys alone from RESPONSE on.
        self.keys = Some(keys);
        Ok(())
    }

    fn keys_of(
        &mut self,
        keys: &TransportKeys,
        index: u32,
        remote_index: u32,
        now: Instant,
    ) -> Keys {
        self.exporter.get_or_insert(keys.exporter);
        Keys {
            seal: aead(keys.suite, &keys.data_send),
            sealed: 0,
            remote_index,
            open: Opener { key: aead(keys.suite, &keys.data_recv), opened: 0, index },
            established: now,
        }
    }

    fn open(&mut self, datagram: &mut [u8]) -> Result<(), FeedError> {
        let Some(keys) = &mut self.keys else { return Err(FeedError::Malformed) };
        let Some(Datagram::Data(head)) = Datagram::parse(datagram) else {
            return Err(FeedError::Malformed);
        };
        let (index, counter) = (head.receiver_index, head.counter);
        let opener = if index == keys.open.index {
            self.previous = None;
            &mut keys.open
        } else {
            self.previous
                .as_mut()
                .filter(|previous| previous.index == index)
                .ok_or(FeedError::Forged)?
        };
        if counter != opener.opened {
            return Err(FeedError::Forged);
        }
        opener.opened += 1;
        let (header, body) = datagram.split_at_mut(DATA_HEADER_LEN);
        let plain = opener
            .key
            .open_in_place(nonce(counter), Aad::from(&*header), body)
            .map_err(|ring::error::Unspecified| FeedError::Forged)?;
        let (kind, plain) = plain.split_last().ok_or(FeedError::Malformed)?;
        match Kind::from_byte(*kind) {
            Some(Kind::Control) => {
                self.received.extend_from_slice(plain);
                Ok(())
            }
            Some(Kind::Keepalive) => Ok(()),
            Some(Kind::Ip | Kind::IpPartial | Kind::Fragment | Kind::Super) | None => {
                Err(FeedError::Malformed)
            }
        }
    }

    fn seal(&mut self, kind: Kind, plain: &[u8], now: Instant) {
        let Some(keys) = &mut self.keys else { return };
        let mut record = vec![0; DATA_OVERHEAD + plain.len()];
        let (header, rest) = record.split_at_mut(DATA_HEADER_LEN);
        header.copy_from_slice(&Data::head(keys.remote_index, keys.sealed));
        let (body, tag_at) = rest.split_at_mut(plain.len() + 1);
        body[..plain.len()].copy_from_slice(plain);
        body[plain.len()] = kind as u8;
        let tag = keys
            .seal
            .seal_in_place_separate_tag(nonce(keys.sealed), Aad::from(&*header), body)
            .expect("a record is shorter than the AEAD's limit");
        tag_at.copy_from_slice(tag.as_ref());
        keys.sealed += 1;
        self.put(&record, now);
    }

    fn put(&mut self, datagram: &[u8], now: Instant) {
        let header = stream::header(datagram).expect("a record fits a frame");
        self.outgoing.extend_from_slice(&header);
        self.outgoing.extend_from_slice(datagram);
        self.last_sent = now;
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.exporter.zeroize();
        self.received.zeroize();
    }
}

impl fmt::Debug for Feed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Feed")
            .field("remote", &self.remote)
            .field("is_up", &self.keys.is_some())
            .field("error", &self.error)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
