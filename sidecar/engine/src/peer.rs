//! What we know of one other node: who it is, the sessions we share, the handshake under way.
//!
//! ```text
//!            INIT answered                    rekey: INIT answered            first packet
//! nothing ───────────────► current ─────────────────────────► current, previous ◄──────── next
//!            (initiator)                      (initiator)                    (responder)
//! ```
//! An initiator's new session is current at once. A responder's waits as `next` until a packet of the
//! initiator authenticates with it, since only that proves that RESPONSE arrived. Several may wait: an initiator
//! repeats INIT before the answer to the first can be there, and takes the first answer that comes.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use session::{handshake::Initiator, transport::Session};
use wire::{
    certificate::Attributes,
    datagram::Role,
    endpoint::{Candidate, NatProfile},
    id::{NodeId, NodeKeys},
};

use crate::{
    path::{self, addr::Hop},
    reassembly::{Reassembly, RemoteClock},
};

/// Sessions are renewed by their initiator after this long, as `docs/protocol.md` has it.
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Keys older than this neither seal nor open.
const REJECT_AFTER: Duration = Duration::from_secs(180);
/// A session without user traffic is dropped after this long.
const IDLE_AFTER: Duration = Duration::from_secs(600);
/// INIT is repeated after this long, then half as long again each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// A primary that stays suspect for this long, with nothing in its place, or a handshake without an answer for the
/// longer one, make a peer silent: what others announce of its prefixes goes to them.
const SUSPECT_IS_SILENT: Duration = Duration::from_millis(500);
const HANDSHAKE_IS_SILENT: Duration = Duration::from_secs(1);
/// A handshake without an answer for this long may be one that is refused for its boot number.
const UNANSWERED: Duration = Duration::from_secs(10);
/// A node leaves a session at once for the one that it began. Who still says hello in the old one after this is another node
/// with the same keys.
const LEFT: Duration = Duration::from_secs(3);
/// Two sessions that came up within this may be of handshakes that crossed, of which each end took another one.
const CROSSED: Duration = Duration::from_secs(10);
/// A handshake that nobody asked for again is given up after this long.
const GIVE_UP_AFTER: Duration = Duration::from_secs(90);

/// What a node is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// From a bare address; its RESPONSE will say.
    Unknown,
    Member,
    Server,
}

/// One other node.
#[derive(Debug)]
pub(crate) struct Peer {
    pub(crate) node: NodeId,
    pub(crate) keys: NodeKeys,
    pub(crate) kind: Kind,
    /// Of the identity certificate that it showed in a handshake.
    pub(crate) serial: Option<u64>,
    /// Hops of the configuration, tried by handshakes and offered to the path agent.
    pub(crate) bootstrap: BTreeSet<Hop>,
    pub(crate) handshake: Option<Handshake>,
    pub(crate) sessions: Sessions,
    pub(crate) agent: path::Agent,
    pub(crate) attributes: Option<Attributes>,
    pub(crate) endpoints: Endpoints,
    /// When user traffic was last seen; a session without is dropped, a direct path no longer sought.
    pub(crate) traffic: Option<Instant>,
    pub(crate) last_error: Option<String>,
    /// When the session with it came up.
    pub(crate) since: Option<Instant>,
    /// It was asked, and answers on no path.
    pub(crate) silent: bool,
    /// The first packet that asked for it, until a direct path is there.
    pub(crate) wanted: Option<Instant>,
    /// The peer's INIT asked for a punch as soon as the session is confirmed.
    pub(crate) punch_on_confirm: bool,
    /// The peer says hello to us, and not only because we do: we are a link of its.
    pub(crate) linked_by_peer: bool,
    /// It is one of the nearest that carry for others: a link of ours.
    pub(crate) chosen: bool,
    /// Its clock less ours, in seconds.
    pub(crate) clock_offset: Option<i64>,
    /// The clocks of its sessions, by our index.
    pub(crate) clocks: BTreeMap<u32, RemoteClock>,
    pub(crate) chunks: Reassembly,
    pub(crate) fragments: Reassembly,
}

/// Where a peer may be reached, as it told us.
#[derive(Clone, Debug, Default)]
pub(crate) struct Endpoints {
    pub(crate) profile: Option<NatProfile>,
    pub(crate) candidates: Vec<Candidate>,
}

/// Initiations of one handshake whose RESPONSE may still come: with a round trip beyond the first repetition, the answer
/// to an earlier one arrives after the later one has gone.
const ATTEMPTS: usize = 3;

/// A handshake under way. Each repetition is a new INIT, since a recorded one must be worth nothing.
#[derive(Debug)]
pub(crate) struct Handshake {
    pub(crate) attempts: VecDeque<Attempt>,
    pub(crate) role: Role,
    pub(crate) began: Instant,
    next: Instant,
    retry: Duration,
}

/// One INIT.
#[derive(Debug)]
pub(crate) struct Attempt {
    pub(crate) index: u32,
    pub(crate) initiator: Initiator,
    pub(crate) init: Vec<u8>,
    pub(crate) sent: Instant,
}

impl Handshake {
    pub(crate) fn new(role: Role, now: Instant) -> Self {
        Self { attempts: VecDeque::new(), role, began: now, next: now, retry: RETRY_FIRST }
    }

    /// When the next INIT goes out.
    pub(crate) fn due(&self) -> Instant {
        self.next
    }

    /// Adds an INIT that goes out now; the index of one that is given up for it is returned.
    pub(crate) fn attempt(&mut self, attempt: Attempt, now: Instant) -> Option<u32> {
        self.next = now + self.retry;
        self.retry = (self.retry + self.retry / 2).min(RETRY_MOST);
        self.attempts.push_back(attempt);
        if self.attempts.len() > ATTEMPTS {
            self.attempts.pop_front().map(|oldest| oldest.index)
        } else {
            None
        }
    }

    pub(crate) fn hopeless(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= GIVE_UP_AFTER
    }

    pub(crate) fn is_unanswered(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= UNANSWERED
    }

    /// A relay towards the peer became known: what was sent before may have gone nowhere.
    pub(crate) fn relay_appeared(&mut self, now: Instant) {
        if self.attempts.len() > 1 || now >= self.next {
            self.hurry(now);
        }
    }

    /// Sends again soon: a path appeared.
    pub(crate) fn hurry(&mut self, now: Instant) {
        self.retry = RETRY_FIRST;
        self.next = self.next.min(now);
    }
}

/// The sessions shared with a peer, by their turn.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    pub(crate) previous: Option<Arc<Session>>,
    pub(crate) current: Option<Established>,
    /// Ours as a responder, not yet confirmed by a packet; the oldest first, at most [`ATTEMPTS`].
    pub(crate) next: VecDeque<Established>,
}

/// A session and our part in making it.
#[derive(Clone, Debug)]
pub(crate) struct Established {
    pub(crate) session: Arc<Session>,
    pub(crate) initiator: bool,
    /// When it could be used.
    pub(crate) at: Instant,
}

impl Sessions {
    /// The session to seal with.
    pub(crate) fn sending(&self) -> Option<&Arc<Session>> {
        self.current.as_ref().map(|current| &current.session)
    }

    /// Takes a session that our INIT made; the one it replaces is returned for clean-up, if any.
    pub(crate) fn initiated(&mut self, session: Arc<Session>, now: Instant) -> Vec<Arc<Session>> {
        let gone = self.previous.take();
        self.previous = self
            .current
            .replace(Established { session, initiator: true, at: now })
            .map(|before| before.session);
        gone.into_iter().collect()
    }

    /// Takes a session that answered an INIT; it waits for confirmation.
    pub(crate) fn responded(&mut self, session: Arc<Session>, now: Instant) -> Vec<Arc<Session>> {
        self.next.push_back(Established { session, initiator: false, at: now });
        let surplus = self.next.len().saturating_sub(ATTEMPTS);
        self.next.drain(..surplus).map(|next| next.session).collect()
    }

    /// A packet authenticated under `index`; true if that made a new session current. What fell out is returned.
    pub(crate) fn confirm(&mut self, index: u32, now: Instant) -> (bool, Vec<Arc<Session>>) {
        let found = self.next.iter().position(|next| next.session.local_index() == index);
        let Some(at) = found else { return (false, Vec::new()) };
        let mut gone: Vec<_> = self.previous.take().into_iter().collect();
        gone.extend(self.next.drain(..at).map(|next| next.session));
        self.previous = self.current.take().map(|before| before.session);
        self.current = self.next.pop_front().map(|next| Established { at: now, ..next });
        (true, gone)
    }

    /// Whether the node at the other end of this session left it for one that it began, some time ago.
    pub(crate) fn is_left(&self, index: u32, now: Instant) -> bool {
        let previous = self.previous.as_ref().filter(|session| session.local_index() == index);
        let (Some(previous), Some(current)) = (previous, &self.current) else { return false };
        let between =
            current.session.established().saturating_duration_since(previous.established());
        !current.initiator
            && between >= CROSSED
            && now.saturating_duration_since(current.at) >= LEFT
    }

    /// Takes away what is too old to use.
    pub(crate) fn expire(&mut self, now: Instant) -> Vec<Arc<Session>> {
        let old = |session: &Session| {
            now.saturating_duration_since(session.established()) >= REJECT_AFTER
        };
        let mut gone = Vec::new();
        gone.extend(self.previous.take_if(|session| old(session)));
        gone.extend(
            self.current.take_if(|current| old(&current.session)).map(|current| current.session),
        );
        let first_fresh = self.next.iter().position(|next| !old(&next.session));
        let stale = first_fresh.unwrap_or(self.next.len());
        gone.extend(self.next.drain(..stale).map(|next| next.session));
        gone
    }

    /// When `expire` has something to do.
    pub(crate) fn expires(&self) -> Option<Instant> {
        self.all().map(|session| session.established() + REJECT_AFTER).min()
    }

    /// When the current session's initiator renews it.
    pub(crate) fn rekey_at(&self) -> Option<Instant> {
        self.current
            .as_ref()
            .filter(|current| current.initiator)
            .map(|current| current.at + REKEY_AFTER)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Session>> {
        let current = self.current.as_ref().map(|current| &current.session);
        let next = self.next.iter().map(|next| &next.session);
        self.previous.iter().chain(current).chain(next)
    }

    pub(crate) fn clear(&mut self) -> Vec<Arc<Session>> {
        let gone = self.all().cloned().collect();
        *self = Self::default();
        gone
    }
}

impl Peer {
    pub(crate) fn new(keys: NodeKeys, kind: Kind, txid: u64, datagram: u16) -> Self {
        Self {
            node: keys.node(),
            keys,
            kind,
            serial: None,
            bootstrap: BTreeSet::new(),
            handshake: None,
            sessions: Sessions::default(),
            agent: path::Agent::new(txid, datagram),
            attributes: None,
            endpoints: Endpoints::default(),
            traffic: None,
            last_error: None,
            since: None,
            silent: false,
            wanted: None,
            punch_on_confirm: false,
            linked_by_peer: false,
            chosen: false,
            clock_offset: None,
            clocks: BTreeMap::new(),
            chunks: Reassembly::default(),
            fragments: Reassembly::default(),
        }
    }

    pub(crate) fn idle_since(&self, now: Instant) -> bool {
        let last = self.traffic.or(self.since);
        last.is_none_or(|last| now.saturating_duration_since(last) >= IDLE_AFTER)
    }

    /// Whether it was asked long enough and answers on no path.
    pub(crate) fn answers_nothing(&self, now: Instant) -> bool {
        if self.sessions.sending().is_none() {
            let age = |since| now.saturating_duration_since(since);
            let handshake = self.handshake.as_ref();
            return handshake.is_some_and(|one| age(one.began) >= HANDSHAKE_IS_SILENT);
        }
        self.silent_for(now).is_some_and(|time| time >= SUSPECT_IS_SILENT)
    }

    /// For how long the path of its traffic is suspect, with nothing in its place.
    pub(crate) fn silent_for(&self, now: Instant) -> Option<Duration> {
        let path = self.agent.path(self.agent.primary()?)?;
        let is_suspect = path.state == path::State::Suspect;
        is_suspect.then(|| now.saturating_duration_since(path.since))
    }

    /// Whether user traffic was seen within `window`.
    pub(crate) fn busy(&self, window: Duration, now: Instant) -> bool {
        self.traffic.is_some_and(|last| now.saturating_duration_since(last) < window)
    }
}

#[cfg(test)]
mod tests {
    use session::keys::{Suite, TransportKeys};

    use super::*;

    #[test]
    fn the_answer_that_the_initiator_took_is_confirmed_though_later_ones_were_given() {
        let now = Instant::now();
        let mut sessions = Sessions::default();
        for index in 1..=3 {
            assert!(sessions.responded(session(index, now), now).is_empty());
        }

        let (confirmed, gone) = sessions.confirm(2, now);

        assert!(confirmed);
        assert_eq!(indices(gone), [1]);
        assert_eq!(sessions.sending().unwrap().local_index(), 2);
        assert_eq!(sessions.all().count(), 2, "a later answer may still be taken");
        assert!(!sessions.confirm(2, now).0);
    }

    #[test]
    fn a_session_is_left_once_its_node_began_another_one() {
        let t0 = Instant::now();
        let later = t0 + CROSSED;
        let mut sessions = Sessions::default();
        sessions.initiated(session(1, t0), t0);
        sessions.responded(session(2, later), later);
        assert!(sessions.confirm(2, later).0);

        assert!(!sessions.is_left(1, later), "what was under way may still come");
        assert!(sessions.is_left(1, later + LEFT));
        assert!(!sessions.is_left(2, later + LEFT));

        sessions.initiated(session(3, later + CROSSED), later + CROSSED);
        assert!(!sessions.is_left(2, later + CROSSED * 2), "it may not know of ours yet");
    }

    #[test]
    fn sessions_of_handshakes_that_crossed_are_not_left() {
        let t0 = Instant::now();
        let mut sessions = Sessions::default();
        sessions.responded(session(1, t0), t0);
        sessions.initiated(session(2, t0 + LEFT), t0 + LEFT);
        assert!(sessions.confirm(1, t0 + LEFT).0);

        assert!(!sessions.is_left(2, t0 + CROSSED * 2));
    }

    #[test]
    fn answers_that_nobody_confirms_are_few_and_expire() {
        let now = Instant::now();
        let mut sessions = Sessions::default();
        let gone: Vec<_> =
            (1..=5).flat_map(|index| sessions.responded(session(index, now), now)).collect();

        assert_eq!(indices(gone), [1, 2]);
        assert_eq!(indices(sessions.expire(now + REJECT_AFTER)), [3, 4, 5]);
        assert_eq!(sessions.all().count(), 0);
    }

    fn session(index: u32, now: Instant) -> Arc<Session> {
        let keys = TransportKeys::from_split(true, Suite::Aes256Gcm, (&[1; 32], &[2; 32]));
        Arc::new(Session::new(NodeId([7; 16]), index, index, &keys, now))
    }

    fn indices(sessions: Vec<Arc<Session>>) -> Vec<u32> {
        sessions.iter().map(|session| session.local_index()).collect()
    }
}
