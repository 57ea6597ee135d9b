//! The shell: whatever does something to the outside, and decides nothing.
//!
//! # Threads and tasks
//!
//! Everything that runs is a named member of a [`task::TaskGroup`].
//!
//! | Thread or task | Owns | Wakes on |
//! |---|---|---|
//! | control runtime, one thread | every task below | I/O, timers |
//! | `driver` | the engine | punts, tunnel events, commands, its deadline |
//! | `worker-{i}`, a thread each | TUN queue i, UDP sockets, an arena | readiness |
//! | `wake worker-{i}` | nothing; wakes the worker to see that it ends | the end of the group |
//! | `accept {addr}` | one listening socket ([`tunnel::tcp`]) | connections |
//! | `tunnel-{id}` | one connection; hands what it reads to its handler in batches | I/O, its queue |
//! | `netlink` | the request socket of [`netlink`] | replies |
//! | `netmon` | the notification socket of [`netmon`] | link, address and route changes, once a minute |
//! | `resolve {name}` | one lookup of [`resolve`] | answers, its deadline |
//!
//! # Queues
//!
//! Bounds are bytes. A full queue drops, by a policy named here, and counts.
//!
//! | Queue | Bound | When full |
//! |---|---|---|
//! | worker → driver punts; control apart from data | 256 KiB each | drops the newest |
//! | to a tunnel | [`tunnel::QUEUE_BOUND`] | drops the newest data; of control the oldest |
//! | tunnel → driver events | [`tunnel::EVENT_BOUND`] | the tunnel waits |
//! | dials, accepts without a session | [`tunnel::MAX_DIALS`], [`tunnel::MAX_STRANGERS`] | refused, counted |
//! | lookups | [`resolve::MAX_LOOKUPS`] | waits within its own deadline |
//! | netmon → driver, driver → workers | the latest value | latest wins |
//!
//! Shutdown goes: unready → stop accepting → the engine leaves → drain ≤ 1 s → close tunnels →
//! [`netlink::Netlink::remove`] and [`nft::remove`].

/// Bytes of all queues and buffers of a node with one worker, whose two home servers are reached over streams and whose
/// places for strangers are all taken: what a machine of little memory has to have beside the tables.
pub const WORST_CASE: usize = worker::punt::CONTROL_BOUND
    + worker::punt::DATA_BOUND
    + engine::hold::TOTAL_BYTES
    + tunnel::MAX_STRANGERS * tunnel::STRANGER_BOUND
    + 2 * tunnel::QUEUE_BOUND
    + tunnel::tcp::READ_BUFFER
    + port::tun::READ_LEN
    + wire::datagram::MAX_DATAGRAM
    + 2 * engine::fastpath::MAX_RUN;
const _: () = assert!(WORST_CASE <= 4 << 20);

pub mod driver;
pub mod netlink;
pub mod netmon;
#[cfg(test)]
mod netns;
pub mod nft;
pub mod port;
pub mod resolve;
pub mod tunnel;
pub mod udp;
pub mod worker;

pub use ::task;
