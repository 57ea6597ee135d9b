//! Calls over anything that carries bytes: one frame layout, bounded everywhere, deadlines that travel.
//!
//! [`frame`] is the layout, [`calls`] the caller's and [`serving`] the answerer's state, both pure and told the time. With the
//! feature `driver`, [`driver`] runs them over a byte stream such as the admin socket. [`feed`] has the messages of the
//! configuration feed.

pub mod calls;
#[cfg(feature = "driver")]
pub mod driver;
pub mod feed;
pub mod frame;
pub mod serving;
