//! Where a node may be reached: candidates and the profile of the NAT before it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bytes of a packed socket address: `[16] IPv6 or v4-mapped address │ u16 port`.
pub const ADDR_LEN: usize = 18;
/// Bytes of a packed candidate: `u8 kind │ [18] address`.
pub const CANDIDATE_LEN: usize = 19;
/// Most candidates a node tells about itself.
pub const MAX_CANDIDATES: usize = 16;

/// Packs an address as `[16] │ u16`, IPv4 as v4-mapped; port little-endian as all of our headers.
pub fn pack_addr(addr: SocketAddr) -> [u8; ADDR_LEN] {
    let ip = match addr.ip() {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    let mut bytes = [0; ADDR_LEN];
    crate::put(&mut bytes, 0, &ip.octets());
    crate::put(&mut bytes, 16, &addr.port().to_le_bytes());
    bytes
}

/// Unpacks what [`pack_addr`] made; v4-mapped addresses come back as IPv4.
pub fn unpack_addr(bytes: &[u8; ADDR_LEN]) -> SocketAddr {
    let mut ip = [0; 16];
    ip.copy_from_slice(bytes.first_chunk::<16>().unwrap_or(&[0; 16]));
    let [.., low, high] = *bytes;
    SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), u16::from_le_bytes([low, high]))
}

/// How a node came to know one of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum CandidateKind {
    /// Of an interface of the host.
    Host = 1,
    /// As a STUN server or a peer saw it.
    Reflexive = 2,
    /// Granted by a port mapping protocol.
    Mapped = 3,
    /// Told by the configuration.
    Configured = 4,
}

/// Which transport a candidate speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Transport {
    Udp = 0,
    Tcp = 1,
}

/// An address where a node may be reached. Packed: `u8 kind (low nibble) and transport (high) │ [18] address`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Candidate {
    pub kind: CandidateKind,
    pub transport: Transport,
    pub addr: SocketAddr,
}

impl Candidate {
    pub fn pack(&self) -> [u8; CANDIDATE_LEN] {
        let mut bytes = [0; CANDIDATE_LEN];
        let head = (self.kind as u8) | ((self.transport as u8) << 4);
        crate::put(&mut bytes, 0, &[head]);
        crate::put(&mut bytes, 1, &pack_addr(self.addr));
        bytes
    }

    pub fn unpack(bytes: &[u8; CANDIDATE_LEN]) -> Option<Self> {
        let [head, addr @ ..] = bytes;
        let kind = match head & 0x0f {
            1 => CandidateKind::Host,
            2 => CandidateKind::Reflexive,
            3 => CandidateKind::Mapped,
            4 => CandidateKind::Configured,
            _ => return None,
        };
        let transport = match head >> 4 {
            0 => Transport::Udp,
            1 => Transport::Tcp,
            _ => return None,
        };
        Some(Self { kind, transport, addr: unpack_addr(addr) })
    }

    /// Packs up to [`MAX_CANDIDATES`], one after the other.
    pub fn pack_all(candidates: &[Self]) -> Vec<u8> {
        candidates.iter().take(MAX_CANDIDATES).flat_map(Self::pack).collect()
    }

    /// Unpacks up to [`MAX_CANDIDATES`]; kinds of a later version are passed over.
    pub fn unpack_all(bytes: &[u8]) -> Vec<Self> {
        bytes
            .chunks_exact(CANDIDATE_LEN)
            .take(MAX_CANDIDATES)
            .filter_map(|chunk| Self::unpack(chunk.first_chunk()?))
            .collect()
    }
}

/// How a NAT maps or filters (RFC 4787 §4.1, §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Behaviour {
    /// Not known (yet); treated as the hardest.
    Unknown = 0,
    /// The same for every remote endpoint: EIM, EIF.
    EndpointIndependent = 1,
    /// Depends on the remote address: ADM, ADF.
    AddressDependent = 2,
    /// Depends on the remote address and port: APDM, APDF.
    AddressPortDependent = 3,
    /// There is no NAT (mapping) or no filter (filtering).
    None = 4,
}

impl Behaviour {
    /// As people read a mapping: RFC 4787's words, shortened.
    pub fn mapping_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "eim",
            Self::AddressDependent => "adm",
            Self::AddressPortDependent => "apdm",
            Self::None => "none",
        }
    }

    /// As people read a filter.
    pub fn filtering_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::EndpointIndependent => "eif",
            Self::AddressDependent => "adf",
            Self::AddressPortDependent => "apdf",
            Self::None => "none",
        }
    }
}

/// How a NAT chooses the external port of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Allocation {
    Unknown = 0,
    /// The internal port, where it is free.
    Preserve = 1,
    /// `last + step`: `first` is the last seen port, `second` the step.
    Sequential = 2,
    /// Inside one block: `first`..=`second`.
    Block = 3,
    Random = 4,
}

/// The node's IPv6 situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum V6 {
    None = 0,
    /// A global address behind a stateful firewall, or not known to be open.
    Filtered = 1,
    /// A global address that takes unsolicited packets.
    Open = 2,
}

/// What a node knows of the NAT before it, as it tells its peers.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct NatProfile {
    #[prost(enumeration = "Behaviour", tag = "1")]
    pub mapping: i32,
    #[prost(enumeration = "Behaviour", tag = "2")]
    pub filtering: i32,
    #[prost(enumeration = "Allocation", tag = "3")]
    pub allocation: i32,
    #[prost(uint32, tag = "4")]
    pub allocation_first: u32,
    #[prost(uint32, tag = "5")]
    pub allocation_second: u32,
    #[prost(bool, optional, tag = "6")]
    pub hairpin: Option<bool>,
    /// Seconds a UDP binding lives without traffic; 0 is unknown.
    #[prost(uint32, tag = "7")]
    pub lifetime_s: u32,
    /// A packet that arrives before our own first one takes the mapping away.
    #[prost(bool, tag = "8")]
    pub clash_risk: bool,
    /// External addresses, 16 bytes each, IPv4 as v4-mapped.
    #[prost(bytes = "vec", repeated, tag = "9")]
    pub external: Vec<Vec<u8>>,
    #[prost(enumeration = "V6", tag = "10")]
    pub v6: i32,
    /// No STUN answer over UDP although a server is reachable over TCP.
    #[prost(bool, tag = "11")]
    pub udp_blocked: bool,
    /// A port mapping is in force.
    #[prost(bool, tag = "12")]
    pub port_mapped: bool,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message;

    use super::*;

    #[test]
    fn a_profile_has_known_bytes_and_passes_over_later_fields() {
        let profile = NatProfile {
            mapping: Behaviour::EndpointIndependent as i32,
            filtering: Behaviour::AddressPortDependent as i32,
            allocation: Allocation::Preserve as i32,
            hairpin: Some(false),
            lifetime_s: 30,
            v6: V6::Filtered as i32,
            ..NatProfile::default()
        };

        let mut bytes = profile.encode_to_vec();

        assert_eq!(bytes, [0x08, 1, 0x10, 3, 0x18, 1, 0x30, 0, 0x38, 30, 0x50, 1]);
        bytes.extend_from_slice(&[0x98, 0x06, 7]);
        assert_eq!(NatProfile::decode(&bytes[..]), Ok(profile));
    }

    #[test]
    fn a_behaviour_of_a_later_version_is_unknown() {
        let profile = NatProfile::decode(&[0x08, 77][..]).unwrap();
        assert_eq!(profile.mapping(), Behaviour::Unknown);
    }

    #[test]
    fn a_candidate_is_nineteen_known_bytes() {
        let candidate = Candidate {
            kind: CandidateKind::Reflexive,
            transport: Transport::Tcp,
            addr: "203.0.113.9:11010".parse().unwrap(),
        };

        let bytes = candidate.pack();

        assert_eq!(
            bytes,
            [0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 203, 0, 113, 9, 0x02, 0x2b]
        );
        assert_eq!(Candidate::unpack(&bytes), Some(candidate));
    }

    #[test]
    fn unknown_kinds_are_passed_over_and_the_count_is_bounded() {
        let v6 = Candidate {
            kind: CandidateKind::Host,
            transport: Transport::Udp,
            addr: "[2001:db8::1]:1".parse().unwrap(),
        };
        let mut bytes = Candidate::pack_all(&[v6; 20]);
        assert_eq!(Candidate::unpack_all(&bytes).len(), MAX_CANDIDATES);

        bytes[0] = 0x0f;
        assert_eq!(Candidate::unpack_all(&bytes), [v6; MAX_CANDIDATES - 1]);
    }

    proptest! {
        #[test]
        fn nothing_panics_and_what_unpacks_packs_again(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let _ = NatProfile::decode(&bytes[..]);
            let candidates = Candidate::unpack_all(&bytes);
            prop_assert_eq!(Candidate::unpack_all(&Candidate::pack_all(&candidates)), candidates);
        }
    }
}
