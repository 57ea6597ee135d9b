//! Where bytes go and where they came from.

use std::net::SocketAddr;

use wire::id::ShortId;

/// A UDP socket, numbered by the shell, which keeps the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketId(pub u16);

/// One connection of a stream carrier, numbered by the shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TunnelId(pub u32);

/// How the bytes of a path travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    Udp,
    Tcp,
}

/// One step on the underlay: out of which socket or connection, to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hop {
    Udp { socket: SocketId, remote: SocketAddr },
    Tunnel { id: TunnelId, carrier: Carrier, remote: SocketAddr },
}

impl Hop {
    pub fn carrier(&self) -> Carrier {
        match *self {
            Self::Udp { .. } => Carrier::Udp,
            Self::Tunnel { carrier, .. } => carrier,
        }
    }

    pub fn remote(&self) -> SocketAddr {
        match *self {
            Self::Udp { remote, .. } | Self::Tunnel { remote, .. } => remote,
        }
    }
}

/// The relay step of a datagram that came inside TRANSIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Via {
    /// Our index of the session with the relay.
    pub link: u32,
    /// Who sent it, as the relay vouches.
    pub src: ShortId,
}

/// How a datagram reached us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Arrival {
    pub hop: Hop,
    pub via: Option<Via>,
}
