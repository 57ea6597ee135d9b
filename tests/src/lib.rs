//! Whatever crosses a crate boundary: the simulator, the lab, what fuzzers call, and a stranger.

pub mod bench;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod dataplane;
pub mod fuzz;
pub mod kubetools;
pub mod lab;
pub mod narrate;
pub mod sim;
pub mod stranger;
