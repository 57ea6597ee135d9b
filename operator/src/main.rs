//! `easynet-operator`: connects the nodes of a Kubernetes cluster to a mesh network.

use std::process::ExitCode;

fn main() -> ExitCode {
    operator::app::main()
}
