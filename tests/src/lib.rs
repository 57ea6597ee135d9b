//! Whatever crosses a crate boundary: the simulator, the lab, and what fuzzers call.

pub mod cluster;
pub mod dataplane;
pub mod fuzz;
pub mod kubetools;
pub mod lab;
pub mod sim;
