//! Link-state routing: what every node says of itself, spread to all, and the routes that follow.
//!
//! [`lsdb`] holds the newest LSA of every node as received bytes; [`flood`] spreads new ones and [`sync`] finds what was
//! missed. These three never look inside, so a public server runs them for networks that it cannot read. Members open
//! the bodies: [`topology`] is the graph and [`spf`] the shortest paths in it, [`rib`] the prefixes and their reasons,
//! [`claims`] the automatic addresses. [`origin`] decides when a node speaks, [`nearest`] with whom it keeps links.

pub mod claims;
pub mod flood;
pub mod issued;
pub mod lsdb;
pub mod nearest;
pub mod origin;
pub mod rib;
pub mod spf;
pub mod sync;
pub mod topology;
