//! Sources and sinks of IP packets, and what waits for them and for readers of other output.
//!
//! `unsafe` is allowed here: these are the system calls that no crate we have wraps.

#![allow(unsafe_code)]

pub mod code;
pub mod reader;
pub mod ready;
pub mod tun;
