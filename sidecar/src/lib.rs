//! The composition root of `easynet`: arguments, configuration, state, the admin socket and its output. What packets and peers need
//! is in the crates below; here they are put together.

pub mod admin;
pub mod app;
pub mod args;
pub mod doctor;
pub mod error;
pub mod metrics;
pub mod render;
pub mod settings;
pub mod source;
pub mod state;
pub mod view;
