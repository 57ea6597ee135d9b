//! One entry point per parser of foreign bytes, for fuzzers and for the replay of their corpus.
//!
//! A target takes any bytes, must not panic, and asserts what its parser promises. The corpus lies in
//! `tests/fuzz/corpus/<target>/`; `tests/tests/fuzz_corpus.rs` replays and mutates it.

use std::time::Instant;

use prost::Message;
use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;
use session::{
    cookie,
    handshake::{self, Initiator, Responder},
    identity::Identity,
    keys::{Suite, TransportKeys},
    transport::Session,
};
use wire::{
    certificate, control,
    datagram::{Datagram, Role},
    endpoint,
    id::NetworkId,
    ip, lsa,
    packet::Kind,
    stream, stun,
};

#[derive(Clone, Copy, Debug)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// How many runs of the cheapest target one of this takes.
    pub cost: u64,
}

pub const TARGETS: &[Target] = &[
    Target { name: "datagram", run: datagram, cost: 1 },
    Target { name: "control", run: control, cost: 1 },
    Target { name: "lsa", run: lsa, cost: 1 },
    Target { name: "certificate", run: certificate, cost: 1 },
    Target { name: "endpoint", run: endpoint, cost: 1 },
    Target { name: "ip", run: ip, cost: 1 },
    Target { name: "stun", run: stun, cost: 1 },
    Target { name: "stream", run: stream, cost: 1 },
    Target { name: "session", run: session, cost: 100 },
];

fn datagram(bytes: &[u8]) {
    match Datagram::parse(bytes) {
        Some(Datagram::Transit(transit)) => {
            assert!(transit.inner.len() < bytes.len(), "nesting ends");
            datagram(transit.inner);
        }
        Some(Datagram::Probe(probe)) => drop(probe.observed()),
        Some(Datagram::Stun(message)) => stun(message),
        Some(
            Datagram::Init(_)
            | Datagram::Response(_)
            | Datagram::Cookie(_)
            | Datagram::Data(_)
            | Datagram::Whois(_)
            | Datagram::Versions(_),
        )
        | None => {}
    }
    if let Some(&last) = bytes.last() {
        assert!(Kind::from_byte(last).is_none_or(|kind| kind as u8 == last));
    }
}

fn control(bytes: &[u8]) {
    assert_stable::<control::Control>(bytes);
    assert_stable::<control::InitPayload>(bytes);
    assert_stable::<control::ResponsePayload>(bytes);
}

fn lsa(bytes: &[u8]) {
    if let Some(container) = lsa::Container::parse(bytes.to_vec().into()) {
        assert_eq!(container.bytes(), bytes);
        let (clear, sealed) = (container.clear(), container.sealed());
        let mut again =
            lsa::Container::unsigned(&container.head, clear, sealed).expect("it fitted");
        again.extend_from_slice(&container.signature());
        assert_eq!(again, bytes);
    }
    assert_stable::<lsa::NodeBody>(bytes);
    assert_stable::<lsa::LinkBody>(bytes);
    assert_stable::<lsa::EpochBody>(bytes);
    assert_stable::<lsa::RevokeBody>(bytes);
}

fn certificate(bytes: &[u8]) {
    assert_stable::<certificate::Signed>(bytes);
    assert_stable::<certificate::Identity>(bytes);
    assert_stable::<certificate::Attributes>(bytes);
    if let Some((address, length)) =
        certificate::Prefix::decode(bytes).ok().and_then(|prefix| prefix.parse())
    {
        assert_eq!(certificate::Prefix::new(address, length).parse(), Some((address, length)));
    }
}

fn endpoint(bytes: &[u8]) {
    assert_stable::<endpoint::NatProfile>(bytes);
    let candidates = endpoint::Candidate::unpack_all(bytes);
    assert!(candidates.len() <= endpoint::MAX_CANDIDATES);
    let packed = endpoint::Candidate::pack_all(&candidates);
    assert_eq!(endpoint::Candidate::unpack_all(&packed), candidates);
}

fn ip(bytes: &[u8]) {
    let header = ip::Header::parse(bytes);
    if let Some(header) = header {
        assert!(header.header_len <= header.total_len && header.total_len <= bytes.len());
        assert_eq!(ip::addresses(bytes), Some((header.src, header.dst)));
    }
    if let Some(answer) = ip::packet_too_big(bytes, 1280) {
        assert!(answer.len() <= ip::IPV6_MIN_MTU);
        let answer = ip::Header::parse(&answer).expect("our own packet");
        assert_eq!(Some(answer.dst), header.map(|header| header.src));
        assert_eq!(Some(answer.src), header.map(|header| header.dst));
    }
    let mut packet = bytes.to_vec();
    if ip::complete(&mut packet) {
        let completed = packet.clone();
        ip::complete(&mut packet);
        assert_eq!(packet, completed);
        if ip::clamp_mss(&mut packet, 1280, ip::Checksum::Complete) {
            assert!(!ip::clamp_mss(&mut packet, 1280, ip::Checksum::Complete), "once is enough");
        }
    }
    ip::clamp_mss(&mut packet, bytes.len(), ip::Checksum::Partial);
    assert_eq!(packet.len(), bytes.len());
}

fn stun(bytes: &[u8]) {
    let Some(message) = stun::Message::parse(bytes) else { return };
    let from = "[2001:db8::1]:9".parse().expect("literal");
    let answer = stun::answer(&message, from, Some(from), Some(from));
    assert!(answer.len() <= bytes.len().max(stun::HEADER_LEN + 24), "no amplification");
    let answer = stun::Message::parse(&answer).expect("our own answer");
    assert_eq!(answer.transaction, message.transaction);
    assert!(answer.mapped == Some(from) || answer.error == Some(stun::UNKNOWN_ATTRIBUTE));
}

fn stream(bytes: &[u8]) {
    let mut at = 0;
    while let stream::Frame::Whole(range) = stream::next(bytes, at) {
        assert!(range.start > at && range.end > range.start && range.end <= bytes.len());
        assert!(stream::TYPES.contains(&bytes[range.start]));
        let header = stream::header(&bytes[range.clone()]).expect("it came in a frame");
        assert_eq!(header, bytes[at..range.start]);
        at = range.end;
    }
}

/// Everything that a session looks at before, or while, it authenticates.
fn session(bytes: &[u8]) {
    let node = Identity::from_bytes(&[1; 64]);
    let random = || ChaCha8Rng::from_seed([2; 32]);
    if let Some(Datagram::Init(init)) = Datagram::parse(bytes) {
        handshake::verify_mac1(&node.keys().dh, init.mac1_covers, &init.mac1);
        assert!(Responder::read(&node, &init, &mut random()).is_err(), "nobody made it");
    }
    if let Some(Datagram::Response(response)) = Datagram::parse(bytes) {
        let payload = control::InitPayload::default();
        let dh = node.keys().dh;
        let (mut initiator, _) =
            Initiator::start(&node, dh, Role::Any, 1, &payload, &mut random()).expect("it fits");
        assert!(initiator.read(&response, |_, _| Some([0; 32])).is_err(), "nobody made it");
    }
    if let Some(Datagram::Cookie(answer)) = Datagram::parse(bytes) {
        assert!(!cookie::redeem(&mut [0; 1144], &node.keys().dh, &answer), "nobody baked it");
    }
    let keys = TransportKeys::from_split(true, Suite::ChaCha20Poly1305, (&[1; 32], &[2; 32]));
    let session = Session::new(node.node(), 1, 2, &keys, Instant::now());
    assert!(session.open(&mut bytes.to_vec()).is_err(), "nobody sealed it");
    assert!(!session.verify_probe(bytes) && !session.verify_hop(bytes), "nobody signed it");
    if let Some(container) = lsa::Container::parse(bytes.to_vec().into()) {
        assert!(!session::lsa::verify(&container), "nobody signed it");
        assert!(session::lsa::open(&container, &[3; 32]).is_none(), "nobody sealed it");
        assert!(session::lsa::certified(&container, container.head.network, 0).is_err());
    }
    if let Ok(signed) = certificate::Signed::decode(bytes) {
        let root = node.keys().sign;
        assert!(session::certificate::check(&signed, NetworkId::of(&root), 0).is_err());
        assert!(session::certificate::check_attributes(&signed, &root, &root, 0).is_err());
    }
}

/// What decodes, encodes to something that decodes to the same.
fn assert_stable<M: Message + Default + PartialEq + std::fmt::Debug>(bytes: &[u8]) {
    if let Ok(message) = M::decode(bytes) {
        assert_eq!(M::decode(&message.encode_to_vec()[..]), Ok(message));
    }
}
