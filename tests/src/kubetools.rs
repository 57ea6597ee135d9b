//! `helm`, `kubectl` and the schemas of Kubernetes, fetched once into `target/kube`.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

/// Where the repository is.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

/// The `helm` to use, 3.18 or later.
pub fn helm() -> PathBuf {
    tools().join("bin/helm")
}

/// The `kubectl` to use, 1.33 or later.
pub fn kubectl() -> PathBuf {
    tools().join("bin/kubectl")
}

/// Checks files of manifests against the schemas of a Kubernetes `version` such as `1.33`; unknown
/// fields are errors. What it says is in the answer.
pub fn validate(version: &str, files: &[&Path]) -> Result<(), String> {
    let output = Command::new("python3")
        .args(["-m", "kubernetes_validate", "--strict", "--quiet", "-k", version])
        .args(files)
        .env("PYTHONPATH", tools().join("python"))
        .output()
        .map_err(|error| format!("cannot run python3: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let (said, why) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    Err(format!("{said}{why}"))
}

fn tools() -> &'static Path {
    static TOOLS: OnceLock<PathBuf> = OnceLock::new();
    TOOLS.get_or_init(|| {
        let output = Command::new(root().join("tests/scripts/kube-tools"))
            .arg("--validate")
            .stderr(Stdio::inherit())
            .output()
            .expect("bash is there");
        assert!(output.status.success(), "tests/scripts/kube-tools failed: see above");
        PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
    })
}
