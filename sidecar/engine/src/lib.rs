//! The mesh node as pure state machines.
//!
//! Nothing here does I/O, reads a clock or draws a random number: bytes, facts and `now` come in,
//! bytes, events and snapshots go out, and all chance comes from one seed. So the same code runs in
//! the product, driven by `netio`, and by the thousand in the simulator.
//!
//! Every machine speaks the same verbs: `new`, `handle_input`, `handle_timeout`, `poll_timeout`,
//! `poll_transmit`, `poll_event`. Machines do not call each other; [`engine`] hands values on.

#![deny(clippy::iter_over_hash_type)]
// Tests have to take their first instant from somewhere.
#![cfg_attr(test, allow(clippy::disallowed_methods))]

mod accept;
pub mod attach;
pub mod boot;
pub mod bootstrap;
pub mod config;
pub mod drops;
pub mod engine;
pub mod event;
pub mod fastpath;
pub mod fib;
pub mod hold;
pub mod link;
pub mod nat;
pub mod offload;
pub mod path;
mod peer;
pub mod punch;
mod reassembly;
mod record;
pub mod routing;
pub mod server;
pub mod snapshot;
pub mod timer;

pub use engine::Engine;
pub use server::Server;
