//! Where a node starts: addresses of its configuration, and the identity of who answers there.
//!
//! An address without a pinned key is asked by WHOIS. The answer is not trusted for more than
//! finding the key: a member is then proved by pre-shared key and certificate, a server is trusted
//! on first use and pinned for as long as this process runs.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use wire::{
    datagram::Whois,
    endpoint::Transport,
    id::{NodeId, NodeKeys},
};

/// The first repetition of a WHOIS; then half as long again each time.
const RETRY_FIRST: Duration = Duration::from_millis(250);
const RETRY_MOST: Duration = Duration::from_secs(5);
/// Addresses that one name may stand for; more are passed over.
const MAX_ADDRS: usize = 8;

/// One bootstrap entry on its way to a node with keys.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub transport: Transport,
    pub addrs: Vec<SocketAddr>,
    keys: Option<NodeKeys>,
    txid: u64,
    retry: Duration,
    ask_at: Option<Instant>,
}

impl Bootstrap {
    pub fn new(transport: Transport, keys: Option<NodeKeys>, txid: u64) -> Self {
        Self { transport, addrs: Vec::new(), keys, txid, retry: RETRY_FIRST, ask_at: None }
    }

    pub fn keys(&self) -> Option<&NodeKeys> {
        self.keys.as_ref()
    }

    pub fn node(&self) -> Option<NodeId> {
        self.keys.map(|keys| keys.node())
    }

    /// Takes the addresses that the name has now; true if they changed.
    pub fn resolved(&mut self, mut addrs: Vec<SocketAddr>, now: Instant) -> bool {
        addrs.truncate(MAX_ADDRS);
        if addrs == self.addrs {
            return false;
        }
        self.addrs = addrs;
        if self.keys.is_none() && !self.addrs.is_empty() {
            self.retry = RETRY_FIRST;
            self.ask_at = Some(now);
        }
        true
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ask_at
    }

    /// The question to send to every address, if it is time.
    pub fn handle_timeout(&mut self, now: Instant) -> Option<[u8; wire::datagram::WHOIS_LEN]> {
        if self.ask_at.is_none_or(|at| now < at) || self.keys.is_some() {
            return None;
        }
        self.ask_at = Some(now + self.retry);
        self.retry = (self.retry + self.retry / 2).min(RETRY_MOST);
        Some(Whois::ask(self.txid))
    }

    /// The question, for a connection that just came up.
    pub fn question(&self) -> [u8; wire::datagram::WHOIS_LEN] {
        Whois::ask(self.txid)
    }

    /// True if the answer was to our question; the entry has keys then.
    pub fn answered(&mut self, whois: &Whois) -> bool {
        if !whois.answer || whois.txid != self.txid || self.keys.is_some() || self.ask_at.is_none()
        {
            return false;
        }
        self.keys = Some(whois.keys);
        self.ask_at = None;
        true
    }
}

#[cfg(test)]
mod tests {
    use wire::{
        datagram::Datagram,
        id::{DhKey, SignKey},
    };

    use super::*;

    #[test]
    fn an_unpinned_address_is_asked_until_it_answers() {
        let t0 = Instant::now();
        let mut entry = Bootstrap::new(Transport::Udp, None, 77);
        assert_eq!(entry.poll_timeout(), None);

        entry.resolved(vec!["192.0.2.1:11010".parse().unwrap()], t0);
        assert!(entry.handle_timeout(t0).is_some());
        assert_eq!(entry.poll_timeout(), Some(t0 + Duration::from_millis(250)));
        assert!(entry.handle_timeout(t0).is_none());
        assert!(entry.handle_timeout(t0 + Duration::from_millis(250)).is_some());
        assert_eq!(entry.poll_timeout(), Some(t0 + Duration::from_millis(625)));

        let keys = NodeKeys { sign: SignKey([1; 32]), dh: DhKey([2; 32]) };
        let reply = |txid| match Datagram::parse(&Whois::answer(txid, &keys, &[0; 64])) {
            Some(Datagram::Whois(whois)) => whois,
            other => panic!("{other:?}"),
        };
        assert!(!entry.answered(&reply(78)));
        assert!(entry.answered(&reply(77)));
        assert_eq!(entry.node(), Some(keys.node()));
        assert_eq!(entry.poll_timeout(), None);
    }
}
