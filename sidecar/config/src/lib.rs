//! The sidecar's configuration: what a person writes, parsed once into types that cannot be wrong.
//!
//! [`parse`] reads a file and reports *everything* that is wrong with it, each with line, column and the nearest valid key.
//! [`Partial`] is what one source (file, environment, flags) says; [`Partial::over`] merges them, and [`Settings`] is the
//! outcome with the source of every value. What a configuration server delivers has the same shape and the same checks:
//! [`sidecar::Sidecar`], read by [`parse_delivered`]. This crate knows neither the engine nor Kubernetes.

mod check;
mod merge;
mod schema;
pub mod sidecar;
mod tree;
mod value;

pub use self::{
    check::{Delivered, PassedOver, Problem, parse, parse_delivered},
    merge::{Origin, Partial, Settings, Sourced},
    schema::schema,
    sidecar::{Imports, Sidecar},
    value::{
        Address4, Address6, Admin, Export, Hostname, ImportMode, Invalid, Listen, Masquerade,
        MeshRange, Mtu, P2p, PeerUrl, PublicHost, Punch, Scheme, Secret, TunName,
        is_never_imported,
    },
};

/// `apiVersion` of the file.
pub const API_VERSION: &str = "config.easynet.io/v1alpha1";
/// `kind` of the file.
pub const KIND: &str = "Sidecar";
/// Where nodes listen unless told otherwise.
pub const DEFAULT_PORT: u16 = 11_010;
/// The first port that `--listen 0` tries.
pub const FIRST_FREE_PORT: u16 = 15_888;
