//! Why packets end here: a closed list, counted, and a metric label each.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $label:literal,)*) => {
        /// Why a packet was dropped.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum DropReason {
            $($(#[$doc])* $name,)*
        }

        impl DropReason {
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The metric label.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $label,)*
                }
            }
        }
    };
}

reasons! {
    /// From the TUN: no IP packet, or one whose lengths do not add up.
    NotIp = "not_ip",
    /// From the TUN: a virtio header that contradicts its packet.
    BadOffload = "bad_offload",
    /// No prefix covers the destination.
    NoRoute = "no_route",
    /// A session, but no way to the peer.
    NoPath = "no_path",
    /// Larger than the path carries; the sender was told.
    TooBig = "too_big",
    /// No datagram of ours.
    Malformed = "malformed",
    /// TRANSIT over a link that we do not have.
    UnknownLink = "unknown_link",
    /// Did not open.
    Forged = "forged",
    /// A hop MAC that is not the link's.
    HopForged = "hop_forged",
    Replayed = "replayed",
    HopReplayed = "hop_replayed",
    /// Keys older than they may get.
    KeyExpired = "key_expired",
    /// The key has sealed all it may.
    KeyExhausted = "key_exhausted",
    /// An inner source that is not the peer's.
    SourceNotAllowed = "source_not_allowed",
    /// An inner source out of a network that this host or its cluster has itself: an answer could not find back.
    SourceOverlaps = "source_overlaps",
    /// An inner destination that is neither our address nor exported by us.
    NotOurs = "not_ours",
    HopLimit = "hop_limit",
    /// TRANSIT inside TRANSIT.
    Nested = "nested",
    /// TRANSIT in the name of a node that is not the one attached over that link.
    NotVouched = "not_vouched",
    /// TRANSIT to a node that we have no link to.
    NoForward = "no_forward",
    OverQuota = "over_quota",
    /// The kernel had no room, or the underlay no route.
    SendFailed = "send_failed",
    /// A hop over a socket that is gone.
    NoSocket = "no_socket",
    /// The queue to a stream carrier is full.
    TunnelFull = "tunnel_full",
    /// The TUN took no more.
    TunWrite = "tun_write",
    /// The queue to the engine is full.
    PuntFull = "punt_full",
    /// A datagram under an index that nobody has.
    UnknownSession = "unknown_session",
    /// More initiations than one source may send.
    InitiationRate = "initiation_rate",
    /// INIT for another key than ours.
    BadMac1 = "bad_mac1",
    /// A handshake message that does not authenticate.
    BadHandshake = "bad_handshake",
    /// A certificate or attributes that the network's root did not give.
    BadCertificate = "bad_certificate",
    /// A node that the network's root took its certificate away from.
    Revoked = "revoked",
    /// A handshake with somebody who has none of our key epochs.
    KeyEpoch = "key_epoch",
    WrongNetwork = "wrong_network",
    /// INIT for a role that this node does not have.
    WrongRole = "wrong_role",
    /// Another node has this one's short id.
    DuplicateKey = "duplicate_key",
    /// An LSA beyond its signer's share, or too old.
    LsaRefused = "lsa_refused",
    /// One source asked the engine for more than its share.
    PuntLimited = "punt_limited",
    /// A stream connection that does not speak our protocol, closed.
    StreamMalformed = "stream_malformed",
    /// A stream connection that nobody authenticated on in time, closed.
    StreamStranger = "stream_stranger",
    /// A stream connection beyond what strangers may have, closed.
    StreamRefused = "stream_refused",
}

/// One counter per reason, written by workers, read by whoever asks.
#[derive(Debug)]
pub struct Drops {
    counts: [AtomicU64; DropReason::ALL.len()],
}

impl Drops {
    #[inline]
    pub fn count(&self, reason: DropReason) {
        self.add(reason, 1);
    }

    #[inline]
    pub fn add(&self, reason: DropReason, packets: u64) {
        self.counts[reason as usize].fetch_add(packets, Ordering::Relaxed);
    }

    pub fn count_of(&self, reason: DropReason) -> u64 {
        self.counts[reason as usize].load(Ordering::Relaxed)
    }

    /// All reasons and their counts, in the order of the list.
    pub fn iter(&self) -> impl Iterator<Item = (DropReason, u64)> + '_ {
        DropReason::ALL.iter().map(|&reason| (reason, self.count_of(reason)))
    }
}

impl Default for Drops {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_label() {
        let drops = Drops::default();
        for (times, &reason) in DropReason::ALL.iter().enumerate() {
            drops.add(reason, times as u64);
        }

        let counts: Vec<_> = drops.iter().map(|(_, count)| count).collect();
        let labels: BTreeSet<_> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();

        assert_eq!(counts, (0..DropReason::ALL.len() as u64).collect::<Vec<_>>());
        assert_eq!(labels.len(), DropReason::ALL.len());
    }
}
