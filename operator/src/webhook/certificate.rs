//! The webhook's certificate: which one is served, which ones are trusted, and when that changes.
//!
//! ```text
//!            RENEW                 SETTLE, and the caBundle holds both
//! serving a ───────► serving a ─────────────────────────────────────► serving b
//!                    next    b                                        previous a
//! ```
//!
//! A certificate is served only after everybody could learn to trust it, and is trusted until the one after it is staged. All three
//! are in one Secret, so any replica can serve and any leader can go on. Certificates sign themselves: who trusts one trusts one
//! key and no authority.

use std::{collections::BTreeMap, fmt, time::Duration};

use rcgen::{CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair};
use zeroize::Zeroizing;

const DAY: i64 = 24 * 3600;
/// How long a certificate is valid.
const LIFETIME: i64 = 90 * DAY;
/// Its successor is staged at this age.
const RENEW: i64 = 30 * DAY;
/// An operator that was away for so long does not wait for anybody.
const LATE: i64 = LIFETIME - DAY;
/// API servers watch the configuration of webhooks; one that lags behind gets this long.
const SETTLE: i64 = 120;
/// Clocks of API servers may be behind ours.
const SKEW: i64 = 3600;

/// What the Secret holds.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    pub serving: Pair,
    pub next: Option<Pair>,
    /// The certificate that was served before, PEM.
    pub previous: Option<String>,
}

/// A certificate and its key.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// PEM.
    pub certificate: String,
    /// PKCS #8 in PEM.
    pub key: Zeroizing<String>,
    /// Unix seconds.
    pub issued: i64,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing for so long.
    Keep(Duration),
    /// Make the next certificate, to be trusted but not yet served.
    Stage,
    /// Serve the next one, if the `caBundle` holds it.
    Promote,
    /// Too late for steps.
    Replace,
}

impl Material {
    /// A first certificate.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn new(name: &str, now: i64) -> Result<Self, rcgen::Error> {
        Ok(Self { serving: Pair::new(name, now)?, next: None, previous: None })
    }

    /// Reads a Secret. `None` for one that is of no use, which is written anew.
    pub fn read(data: &BTreeMap<String, Zeroizing<Vec<u8>>>) -> Option<Self> {
        let text = |key: &str| String::from_utf8(data.get(key)?.to_vec()).ok();
        let pair = |name: &str| {
            let pair = Pair {
                certificate: text(&format!("{name}.crt"))?,
                key: Zeroizing::new(text(&format!("{name}.key"))?),
                issued: text(&format!("{name}.issued"))?.trim().parse().ok()?,
            };
            pair.is_usable().then_some(pair)
        };
        Some(Self { serving: pair("tls")?, next: pair("next"), previous: text("previous.crt") })
    }

    /// What the Secret is to hold.
    pub fn data(&self) -> BTreeMap<String, Zeroizing<Vec<u8>>> {
        let bytes = |text: &str| Zeroizing::new(text.as_bytes().to_vec());
        let mut data = BTreeMap::new();
        for (name, pair) in [("tls", Some(&self.serving)), ("next", self.next.as_ref())] {
            let Some(pair) = pair else { continue };
            data.insert(format!("{name}.crt"), bytes(&pair.certificate));
            data.insert(format!("{name}.key"), bytes(&pair.key));
            data.insert(format!("{name}.issued"), bytes(&pair.issued.to_string()));
        }
        if let Some(previous) = &self.previous {
            data.insert("previous.crt".to_owned(), bytes(previous));
        }
        data
    }

    /// Everything an API server is to trust, PEM.
    pub fn bundle(&self) -> String {
        let next = self.next.as_ref().map(|pair| &pair.certificate);
        let all = self.previous.iter().chain([&self.serving.certificate]).chain(next);
        let lines = all.flat_map(|pem| pem.lines().filter(|line| !line.is_empty()));
        lines.fold(String::new(), |text, line| text + line + "\n")
    }

    /// What to do at `now`, in Unix seconds.
    pub fn step(&self, now: i64) -> Step {
        let age = now.saturating_sub(self.serving.issued);
        if age >= LATE {
            return Step::Replace;
        }
        let wait = match &self.next {
            Some(next) => next.issued.saturating_add(SETTLE).saturating_sub(now),
            None => RENEW.saturating_sub(age),
        };
        match (&self.next, u64::try_from(wait)) {
            (_, Ok(wait @ 1..)) => Step::Keep(Duration::from_secs(wait)),
            (Some(_), _) => Step::Promote,
            (None, _) => Step::Stage,
        }
    }

    /// Puts the next certificate beside the one that is served.
    ///
    /// # Errors
    /// When the system gives no randomness.
    pub fn staged(self, name: &str, now: i64) -> Result<Self, rcgen::Error> {
        Ok(Self { next: Some(Pair::new(name, now)?), previous: None, ..self })
    }

    /// Serves the next certificate from now on.
    pub fn promoted(self) -> Self {
        match self.next {
            Some(next) => {
                Self { previous: Some(self.serving.certificate), serving: next, next: None }
            }
            None => self,
        }
    }
}

impl Pair {
    fn new(name: &str, now: i64) -> Result<Self, rcgen::Error> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new([name.to_owned()])?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = time(now.saturating_sub(SKEW));
        params.not_after = time(now.saturating_add(LIFETIME));
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { certificate, key: Zeroizing::new(key.serialize_pem()), issued: now })
    }

    /// Whether the two belong together and parse.
    fn is_usable(&self) -> bool {
        super::serve::certified(self).is_ok()
    }
}

fn time(unix: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(unix).unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

impl fmt::Debug for Pair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pair").field("issued", &self.issued).finish_non_exhaustive()
    }
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { serving, next, previous } = self;
        f.debug_struct("Material")
            .field("serving", serving)
            .field("next", next)
            .field("previous", &previous.is_some())
            .finish()
    }
}

#[cfg(test)]
mod tests;
