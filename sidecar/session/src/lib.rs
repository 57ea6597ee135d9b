//! Secrets and what is done with them, pure.
//!
//! [`identity`] and [`membership`] are what a node is and belongs to; [`certificate`] what issuers say of
//! it; [`issuer`] is the network's root, where one is held; [`handshake`] makes [`transport::Session`]s, which seal,
//! open and authenticate everything else; [`feed`] is the session over which nodes are configured;
//! [`cookie`] keeps floods of initiations away; [`lsa`] seals and signs what the network floods.
//!
//! This crate forbids I/O, time and chance: randomness comes from a generator that the caller seeds, time is an
//! argument. Secrets have no content in `Debug` and are zeroised.

#![deny(clippy::iter_over_hash_type)]
// Tests have to take their first instant from somewhere.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

pub mod certificate;
pub mod cookie;
pub mod feed;
pub mod freshness;
pub mod handshake;
pub mod identity;
pub mod issuer;
pub mod keys;
pub mod lsa;
pub mod membership;
pub mod memo;
mod noise;
pub mod replay;
pub mod transport;
