use wire::control::{AEAD_AES, AEAD_CHACHA};

use super::*;

/// All bytes to write to the connection.
fn take(feed: &mut Feed) -> Option<Vec<u8>> {
    let bytes = feed.unsent().to_vec();
    feed.handle_sent(bytes.len());
    (!bytes.is_empty()).then_some(bytes)
}

struct Pair {
    node: Feed,
    server: Feed,
    now: Instant,
}

impl Pair {
    fn new() -> Self {
        Self::with_root(root().key())
    }

    fn with_root(known: SignKey) -> Self {
        let now = Instant::now();
        let server =
            Server::new(&root(), AEAD_AES | AEAD_CHACHA, &mut ChaCha12Rng::from_seed([2; 32]));
        Self {
            node: Feed::dial(identity(1), known, AEAD_CHACHA, [3; 32], now),
            server: Feed::accept(Arc::new(server), [4; 32], now),
            now,
        }
    }

    /// Carries bytes both ways until nobody has any, in pieces that break frames.
    fn settle(&mut self) -> Result<(), FeedError> {
        loop {
            let (down, up) = (take(&mut self.server), take(&mut self.node));
            if down.is_none() && up.is_none() {
                return Ok(());
            }
            for piece in up.unwrap_or_default().chunks(101) {
                self.server.handle_bytes(piece, self.now)?;
            }
            for piece in down.unwrap_or_default().chunks(103) {
                self.node.handle_bytes(piece, self.now)?;
            }
        }
    }

    fn pass(&mut self, time: Duration) -> Result<(), FeedError> {
        let until = self.now + time;
        loop {
            let next = self.node.poll_timeout().min(self.server.poll_timeout());
            if next > until {
                break;
            }
            self.now = self.now.max(next);
            self.node.handle_timeout(self.now)?;
            self.server.handle_timeout(self.now)?;
            self.settle()?;
        }
        self.now = until;
        Ok(())
    }
}

fn root() -> Root {
    Root::from_bytes(&[9; 32])
}

fn identity(seed: u8) -> Arc<Identity> {
    Arc::new(Identity::from_bytes(&[seed; 64]))
}

#[test]
fn both_sides_get_the_streams_of_the_other_and_the_same_hash() {
    let mut pair = Pair::new();
    assert_eq!(pair.node.exporter(), None);
    pair.settle().unwrap();

    pair.node.send(b"token", pair.now);
    pair.server.send(&[7; 100_000], pair.now);
    pair.settle().unwrap();

    assert_eq!(pair.server.received(), b"token");
    assert_eq!(pair.node.received(), &[7; 100_000]);
    assert!(pair.node.exporter().is_some());
    assert_eq!(pair.node.exporter(), pair.server.exporter());
    assert_eq!(pair.server.remote(), Some(identity(1).keys().dh));
}

#[test]
fn a_server_that_another_root_signed_never_sees_an_init() {
    let mut pair = Pair::with_root(Root::from_bytes(&[8; 32]).key());

    assert_eq!(pair.settle(), Err(FeedError::WrongRoot));
    assert_eq!(take(&mut pair.node), None);
    assert_eq!(pair.node.error(), Some(FeedError::WrongRoot));
}

#[test]
fn an_idle_session_lives_for_hours_with_ever_new_keys() {
    let mut pair = Pair::new();
    pair.settle().unwrap();
    let hash = *pair.node.exporter().unwrap();
    let mut established = Vec::new();

    for _ in 0..60 {
        pair.pass(Duration::from_secs(60)).unwrap();
        established.push(pair.node.keys.as_ref().unwrap().established);
    }
    pair.node.send(b"still here", pair.now);
    pair.settle().unwrap();

    established.dedup();
    assert!((30..=36).contains(&established.len()), "{}", established.len());
    assert_eq!(pair.server.received(), b"still here");
    assert_eq!(pair.node.exporter(), Some(&hash));
    assert!(pair.now - pair.server.keys.as_ref().unwrap().established < Duration::from_secs(120));
}

#[test]
fn what_was_sealed_before_the_new_keys_arrived_still_opens() {
    let mut pair = Pair::new();
    pair.settle().unwrap();
    pair.now += REKEY_AFTER + REKEY_JITTER;
    pair.node.last_received = pair.now;
    pair.node.handle_timeout(pair.now).unwrap();
    pair.node.send(b"old keys", pair.now);
    pair.settle().unwrap();
    pair.node.send(b", new keys", pair.now);
    pair.settle().unwrap();

    assert_eq!(pair.server.received(), b"old keys, new keys");
    assert!(pair.server.previous.is_none());
}

#[test]
fn silence_and_slowness_end_it() {
    let mut alone = Pair::new().node;
    let began = alone.began;
    assert_eq!(alone.poll_timeout(), began + HANDSHAKE_WITHIN);
    assert_eq!(alone.handle_timeout(began + HANDSHAKE_WITHIN), Err(FeedError::TooSlow));

    let mut pair = Pair::new();
    pair.settle().unwrap();
    let t0 = pair.now;
    pair.server.handle_timeout(t0 + KEEPALIVE).unwrap();
    assert!(take(&mut pair.server).is_some());
    assert_eq!(pair.server.handle_timeout(t0 + DEAD_AFTER), Err(FeedError::Silent));
    pair.server.last_received = t0 + REJECT_AFTER;
    assert_eq!(pair.server.handle_timeout(t0 + REJECT_AFTER), Err(FeedError::Expired));
}

#[test]
fn no_record_can_be_changed_repeated_or_left_out() {
    for spoil in [
        |records: &mut Vec<Vec<u8>>| records[0][30] ^= 1,
        |records: &mut Vec<Vec<u8>>| records.insert(1, records[0].clone()),
        |records: &mut Vec<Vec<u8>>| drop(records.remove(0)),
        |records: &mut Vec<Vec<u8>>| records.swap(0, 1),
    ] {
        let mut pair = Pair::new();
        pair.settle().unwrap();
        let mut records = Vec::new();
        for text in [b"first record", b"other record"] {
            pair.node.send(text, pair.now);
            records.push(take(&mut pair.node).unwrap());
        }
        spoil(&mut records);

        let outcome =
            records.iter().try_for_each(|record| pair.server.handle_bytes(record, pair.now));

        assert_eq!(outcome, Err(FeedError::Forged));
    }
}

#[test]
fn whoever_speaks_something_else_is_cut_off_at_once() {
    for bytes in [&b"GET / HTTP/1.1\r\n"[..], &[0x16, 3, 1, 2, 0, 1], &[3, 0, 0x86, 0, 0]] {
        let mut pair = Pair::new();
        assert_eq!(
            pair.server.handle_bytes(bytes, pair.now),
            Err(FeedError::Malformed),
            "{bytes:?}"
        );
    }
    let mut pair = Pair::new();
    let question = take(&mut pair.node).unwrap();
    let outcome = (0..9).try_for_each(|_| pair.server.handle_bytes(&question, pair.now));
    assert_eq!(outcome, Err(FeedError::Malformed));
}

#[test]
fn a_member_or_a_server_role_is_not_answered() {
    let mut pair = Pair::new();
    let keys = match &pair.server.side {
        Side::Server { server, .. } => server.identity.keys(),
        Side::Node(_) => panic!("the server's side"),
    };
    let payload = InitPayload { role: Role::Member as u32, ..InitPayload::default() };
    let (_, init) =
        Initiator::start(&identity(1), keys.dh, Role::Member, 1, &payload, &mut pair.node.rng)
            .unwrap();
    let mut framed = stream::header(&init).unwrap().to_vec();
    framed.extend_from_slice(&init);

    assert_eq!(
        pair.server.handle_bytes(&framed, pair.now),
        Err(FeedError::Handshake(HandshakeError::RoleMismatch))
    );
    assert_eq!(pair.server.exporter(), None);
}
