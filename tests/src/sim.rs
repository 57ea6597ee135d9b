//! A discrete-event simulator: the product's engine and fast path by the thousand, on one thread, in
//! virtual time, from one seed.
//!
//! | Module | Is |
//! |---|---|
//! | [`clock`] | virtual time and the queue of what happens when |
//! | [`edge`] | NATs and firewalls in the terms of RFC 4787 |
//! | [`mesh`] | servers and members, built and moved in sentences, and how they look |
//! | [`net`] | hosts, links and segments; carries packets step by step |
//! | [`node`] | the product on a station: engine or server, with its fast path |
//! | [`storm`] | random scenarios |
//! | [`stream`] | a small TCP for stream carriers |
//! | [`site`] | the kinds of places where hosts stand, and which pairs can meet directly |
//! | [`scale`] | a network of thousands, measured |
//! | [`scenario`] | what happens to a world, in sentences, over many seeds |
//! | [`traffic`] | test packets on the overlay, and what an outage costs them |
//! | [`oracle`] | what must be true of a mesh that has settled |
//! | [`world`] | stations with machines on them, and what happens to them |
//!
//! Nothing in here reads a clock or draws a number but from the world's seed, and every map that is
//! walked is ordered: the same seed gives the same bytes.

pub mod clock;
pub mod edge;
pub mod mesh;
pub mod net;
pub mod node;
pub mod oracle;
pub mod scale;
pub mod scenario;
pub mod site;
pub mod storm;
pub mod stream;
pub mod traffic;
pub mod world;
