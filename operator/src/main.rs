//! `easynet-operator`: connects the nodes of a Kubernetes cluster to a mesh network.

use std::process::ExitCode;

// Few arenas and a small thread cache: idle memory counts in a pod.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    operator::app::main()
}
