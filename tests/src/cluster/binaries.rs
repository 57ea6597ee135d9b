//! Where the programs are.

use std::path::{Path, PathBuf};

/// `target/cluster`, where `tests/scripts/prepare-cluster` puts what it obtains.
pub(super) fn target() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    root.join("target/cluster")
}

/// A part of Kubernetes: the program, and its first argument if the program is more than this part.
pub(super) fn kubernetes(part: &str) -> (PathBuf, Option<&str>) {
    if let Some(path) = asset(part) {
        return (path, None);
    }
    (prepared("kube"), Some(part))
}

pub(super) fn etcd() -> PathBuf {
    asset("etcd").unwrap_or_else(|| {
        etcd_bin_vendored::etcd_bin_path().expect("etcd is there for this platform").to_owned()
    })
}

pub(super) fn kubectl() -> PathBuf {
    asset("kubectl").unwrap_or_else(|| prepared("kubectl"))
}

pub(super) fn helm() -> PathBuf {
    prepared("helm")
}

/// What the user brought, by the convention of envtest.
fn asset(name: &str) -> Option<PathBuf> {
    let path = PathBuf::from(std::env::var_os("KUBEBUILDER_ASSETS")?).join(name);
    path.is_file().then_some(path)
}

fn prepared(name: &str) -> PathBuf {
    let path = target().join("bin").join(name);
    assert!(path.exists(), "{name} is missing: run tests/scripts/prepare-cluster");
    path
}
