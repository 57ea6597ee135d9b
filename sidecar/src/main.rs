//! `easynet`: a node of a mesh, a public server, and the commands to look at them.

use std::process::ExitCode;

// Few arenas and a small thread cache: idle memory counts in a pod.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    sidecar::app::main()
}
