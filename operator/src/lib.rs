//! The operator: what EasyNetworks say becomes agents, keys, addresses and configurations.
//!
//! ```text
//! API server ─watch─► index ─World─► plan ─Desired─► apply   ─► API server
//!                                      ▲        ├──► status  ─► API server
//!                  sidecars ─► feed ───┘        └──► feed    ─► sidecars
//! ```
//! [`index`], [`plan`] and [`ipam`] are functions of their inputs. [`reconcile`] owns the loop, [`lease`] says which of several
//! operators runs it, [`app`] puts the parts together. Nothing here knows the engine: operator and sidecar share the configuration's
//! types, the sessions and the calls of the feed.

pub mod api;
pub mod app;
pub mod apply;
pub mod args;
pub mod backoff;
pub mod credentials;
pub mod facts;
pub mod feed;
pub mod http;
pub mod index;
pub mod ipam;
pub mod join;
pub mod lease;
pub mod metrics;
pub mod names;
pub mod pace;
pub mod plan;
pub mod reconcile;
pub mod records;
pub mod retire;
pub mod status;
pub mod watch;
pub mod webhook;
