//! Cookies and limits: what a flood of initiations may cost.
//!
//! Under load an INIT with a good `mac1` but no good `mac2` gets a COOKIE instead of a handshake: a MAC of its source
//! address under a secret that changes every two minutes, sealed for whoever sent that `mac1`. The initiator
//! repeats INIT with `mac2` keyed by it. So only sources that receive what we send can make us work (WireGuard §5.3).

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use chacha20poly1305::{AeadInPlace, Key, KeyInit, Tag, XChaCha20Poly1305, XNonce};
use rand_core::RngCore;
use wire::{
    datagram::{COOKIE_LEN, Cookie, MAC_LEN},
    id::{DhKey, ShortId},
};
use zeroize::Zeroize;

use crate::{handshake::mac, transport::same};

/// The secret changes this often; the one before is still good.
const ROTATE: Duration = Duration::from_secs(120);
/// Initiations per second of one IPv4 address or IPv6 /64, or of one node behind one relay.
const RATE: u32 = 20;
/// Sources that are counted at once; beyond it, whoever is new is refused until the second is over.
const MOST_SOURCES: usize = 4096;

/// The responder's side.
pub struct Jar {
    current: [u8; 32],
    previous: [u8; 32],
    rotate_at: Instant,
}

impl Jar {
    pub fn new(rng: &mut impl RngCore, now: Instant) -> Self {
        let (mut current, mut previous) = ([0; 32], [0; 32]);
        rng.fill_bytes(&mut current);
        rng.fill_bytes(&mut previous);
        Self { current, previous, rotate_at: now + ROTATE }
    }

    /// Whether `mac2` over `covers` was keyed by a cookie that `source` got from us lately.
    pub fn verify(
        &mut self,
        source: SocketAddr,
        covers: &[u8],
        mac2: &[u8; MAC_LEN],
        rng: &mut impl RngCore,
        now: Instant,
    ) -> bool {
        self.rotate(rng, now);
        [&self.current, &self.previous]
            .into_iter()
            .any(|secret| same(&mac(&mac2_key(&cookie(secret, source)), covers), mac2))
    }

    /// The COOKIE for the sender of an initiation with that `mac1`.
    pub fn bake(
        &mut self,
        me: &DhKey,
        source: SocketAddr,
        receiver_index: u32,
        mac1: &[u8; MAC_LEN],
        rng: &mut impl RngCore,
        now: Instant,
    ) -> [u8; COOKIE_LEN] {
        self.rotate(rng, now);
        let mut nonce = [0; 24];
        rng.fill_bytes(&mut nonce);
        let mut sealed = [0; 32];
        sealed[..16].copy_from_slice(&cookie(&self.current, source));
        let (body, tag_out) = sealed.split_at_mut(16);
        let tag = cipher(me)
            .encrypt_in_place_detached(XNonce::from_slice(&nonce), mac1, body)
            .expect("16 bytes are no more than XChaCha20-Poly1305 takes");
        tag_out.copy_from_slice(&tag);
        Cookie::encode(receiver_index, &nonce, &sealed)
    }

    fn rotate(&mut self, rng: &mut impl RngCore, now: Instant) {
        if now >= self.rotate_at {
            self.previous = self.current;
            rng.fill_bytes(&mut self.current);
            self.rotate_at = now + ROTATE;
        }
    }
}

impl fmt::Debug for Jar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Jar(…)")
    }
}

impl Drop for Jar {
    fn drop(&mut self) {
        self.current.zeroize();
        self.previous.zeroize();
    }
}

/// The initiator's side: takes the cookie out of a COOKIE for the INIT `init` and writes `mac2` into it. False if
/// the COOKIE is not by `responder`, or not for this INIT.
pub fn redeem(init: &mut [u8], responder: &DhKey, answer: &Cookie<'_>) -> bool {
    let Some(mac1_at) = init.len().checked_sub(2 * MAC_LEN) else { return false };
    let Some((sealed, tag)) = answer.sealed.split_first_chunk::<16>() else { return false };
    if tag.len() != 16 {
        return false;
    }
    let mut cookie = *sealed;
    let opened = cipher(responder).decrypt_in_place_detached(
        XNonce::from_slice(&answer.nonce),
        &init[mac1_at..mac1_at + MAC_LEN],
        &mut cookie,
        Tag::from_slice(tag),
    );
    if opened.is_err() {
        return false;
    }
    let mac2_at = mac1_at + MAC_LEN;
    let mac2 = mac(&mac2_key(&cookie), &init[..mac2_at]);
    init[mac2_at..].copy_from_slice(&mac2);
    true
}

fn cookie(secret: &[u8; 32], source: SocketAddr) -> [u8; 16] {
    mac(secret, &wire::endpoint::pack_addr(source))
}

fn mac2_key(cookie: &[u8; 16]) -> [u8; 32] {
    blake3::derive_key("easynet mac2 v1", cookie)
}

fn cipher(responder: &DhKey) -> XChaCha20Poly1305 {
    XChaCha20Poly1305::new(Key::from_slice(&blake3::derive_key("easynet cookie v1", &responder.0)))
}

/// Where an initiation came from, as far as limits go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    /// An IPv4 address, or the /64 of an IPv6 address.
    Net(IpAddr),
    /// A node behind a relay: our index of the link, and who the relay says it is.
    Relayed(u32, ShortId),
}

impl Source {
    pub fn of(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(v4) => Self::Net(v4.into()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                Self::Net(std::net::Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
        }
    }
}

/// Counts initiations by source, a second at a time.
#[derive(Clone, Debug)]
pub struct Limiter {
    since: Instant,
    counts: BTreeMap<Source, u32>,
}

impl Limiter {
    pub fn new(now: Instant) -> Self {
        Self { since: now, counts: BTreeMap::new() }
    }

    /// False if `source` has had its share of this second.
    pub fn accept(&mut self, source: Source, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.counts.clear();
        }
        if self.counts.len() >= MOST_SOURCES && !self.counts.contains_key(&source) {
            return false;
        }
        let count = self.counts.entry(source).or_default();
        *count += 1;
        *count <= RATE
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha12Rng, rand_core::SeedableRng};
    use wire::datagram::{Datagram, INIT_LEN};

    use super::*;

    const ME: DhKey = DhKey([4; 32]);

    fn initiation() -> Vec<u8> {
        let mut init = vec![7; INIT_LEN];
        init[INIT_LEN - 16..].fill(0);
        init
    }

    fn verify(
        jar: &mut Jar,
        rng: &mut ChaCha12Rng,
        init: &[u8],
        source: &str,
        now: Instant,
    ) -> bool {
        let mac2 = init[INIT_LEN - 16..].try_into().unwrap();
        jar.verify(source.parse().unwrap(), &init[..INIT_LEN - 16], &mac2, rng, now)
    }

    #[test]
    fn a_cookie_proves_its_source_for_two_to_four_minutes() {
        let t0 = Instant::now();
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let mut jar = Jar::new(&mut rng, t0);
        let mut init = initiation();
        let mac1 = init[INIT_LEN - 32..INIT_LEN - 16].try_into().unwrap();
        assert!(!verify(&mut jar, &mut rng, &init, "192.0.2.1:5", t0));

        let baked = jar.bake(&ME, "192.0.2.1:5".parse().unwrap(), 9, &mac1, &mut rng, t0);
        let Some(Datagram::Cookie(answer)) = Datagram::parse(&baked) else {
            panic!("not a COOKIE")
        };
        assert!(!redeem(&mut initiation(), &DhKey([5; 32]), &answer));
        assert!(redeem(&mut init, &ME, &answer));

        assert!(verify(&mut jar, &mut rng, &init, "192.0.2.1:5", t0));
        assert!(!verify(&mut jar, &mut rng, &init, "192.0.2.1:6", t0));
        assert!(verify(&mut jar, &mut rng, &init, "192.0.2.1:5", t0 + ROTATE));
        assert!(!verify(&mut jar, &mut rng, &init, "192.0.2.1:5", t0 + ROTATE * 2));
    }

    #[test]
    fn a_source_has_twenty_a_second_and_a_v6_source_is_its_network() {
        let t0 = Instant::now();
        let mut limiter = Limiter::new(t0);
        let count = |limiter: &mut Limiter, source: &str, now| {
            let source = Source::of(source.parse().unwrap());
            (0..30).filter(|_| limiter.accept(source, now)).count()
        };

        assert_eq!(count(&mut limiter, "192.0.2.1", t0), 20);
        assert_eq!(count(&mut limiter, "2001:db8::1", t0), 20);
        assert_eq!(count(&mut limiter, "2001:db8::2", t0), 0);
        assert_eq!(count(&mut limiter, "192.0.2.1", t0 + Duration::from_secs(1)), 20);
    }
}
