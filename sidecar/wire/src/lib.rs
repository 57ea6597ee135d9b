//! Bytes to types and back.
//!
//! Everything two nodes say to each other has its layout here: the fixed headers of the data path
//! ([`datagram`]), the evolvable control records inside sessions ([`control`]), the link-state
//! container and its bodies ([`lsa`]), certificates ([`certificate`]), NAT profiles and candidates
//! ([`endpoint`]), and the foreign formats the data path touches ([`ip`], [`stun`], [`stream`]).
//!
//! This crate forbids panics and state: every function is total, takes bytes and gives types (or
//! the other way round), and whatever does not parse is `None` for the caller to count as a drop.

#![cfg_attr(
    not(test),
    deny(
        clippy::indexing_slicing,
        clippy::panic,
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::arithmetic_side_effects
    )
)]

pub mod certificate;
pub mod control;
pub mod datagram;
pub mod endpoint;
pub mod id;
pub mod ip;
pub mod lsa;
pub mod packet;
pub mod stream;
pub mod stun;

/// The protocol version that INIT carries; a peer with another one is told which we speak.
pub const VERSION: u8 = 1;

/// Reads `N` bytes at `at`, or nothing if they are not all there.
pub(crate) fn array<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

/// Writes `field` at `at`; a caller hands a buffer of the layout's size, so a miss is impossible
/// and, being impossible, is ignored rather than a panic.
pub(crate) fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(target) = bytes.get_mut(at..).and_then(|rest| rest.get_mut(..field.len())) {
        target.copy_from_slice(field);
    }
}
