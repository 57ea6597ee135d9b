//! What is inside a DATA packet: its last plaintext byte says so, as in TLS 1.3, so that an IP
//! packet stays where the TUN put it.

/// The last plaintext byte of a DATA packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// An IP packet with complete checksums.
    Ip = 1,
    /// An IP packet whose TCP or UDP checksum holds only the pseudo header's sum; the AEAD covers
    /// integrity and the receiver's TUN completes it.
    IpPartial = 2,
    /// A protobuf [`crate::control::Control`] record.
    Control = 3,
    /// A piece of an IP packet too big for the path even at IPv6's minimum MTU:
    /// `id u16 │ index u8 │ count u8 │ bytes`.
    Fragment = 4,
    /// Nothing; keeps a NAT binding and says "I am here".
    Keepalive = 5,
    /// A virtio-net header (10 B) and an IP super-packet of at most 60 KiB; stream carriers only.
    Super = 6,
}

impl Kind {
    pub fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ip,
            2 => Self::IpPartial,
            3 => Self::Control,
            4 => Self::Fragment,
            5 => Self::Keepalive,
            6 => Self::Super,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_kinds_parse() {
        let known: Vec<u8> = (0..=255)
            .filter(|&byte| Kind::from_byte(byte).is_some_and(|kind| kind as u8 == byte))
            .collect();

        assert_eq!(known, [1, 2, 3, 4, 5, 6]);
    }
}
