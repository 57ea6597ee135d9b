//! Sources and sinks of IP packets, and what waits for them.
//!
//! `unsafe` is allowed here: these are the system calls that no crate we have wraps.

#![allow(unsafe_code)]

pub mod code;
pub mod ready;
pub mod tun;
