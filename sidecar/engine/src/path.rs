//! Paths: concrete ways to a peer.

pub mod addr;
