//! Images without a registry: one layer of a few files, as the archive that `docker load` and `ctr images import` take.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::json;
use sha2::{Digest, Sha256};

const BLOCK: usize = 512;

/// An image of a few programs.
#[derive(Clone, Debug)]
pub struct Image {
    name: String,
    entrypoint: Vec<String>,
    files: Vec<(String, PathBuf)>,
    links: Vec<(String, String)>,
}

impl Image {
    /// An empty one, named as pods name it: `local/box:1`.
    pub fn new(name: &str, entrypoint: &[&str]) -> Self {
        let entrypoint = entrypoint.iter().map(|&word| word.to_owned()).collect();
        Self { name: name.to_owned(), entrypoint, files: Vec::new(), links: Vec::new() }
    }

    /// Puts a program at `path`.
    #[must_use]
    pub fn program(mut self, path: &str, source: impl Into<PathBuf>) -> Self {
        self.files.push((path.trim_start_matches('/').to_owned(), source.into()));
        self
    }

    /// Puts a program at `path`, and the libraries that it wants where it wants them.
    ///
    /// # Panics
    /// When `ldd` does not know it.
    #[must_use]
    pub fn dynamic_program(mut self, path: &str, source: impl Into<PathBuf>) -> Self {
        let source = source.into();
        let ldd = Command::new("ldd").arg(&source).output().expect("ldd runs");
        let libraries = String::from_utf8_lossy(&ldd.stdout).into_owned();
        // `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)`, and the loader by its path alone.
        for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
            if !self.files.iter().any(|(path, _)| path == library.trim_start_matches('/')) {
                self = self.program(library, library);
            }
        }
        self.program(path, source)
    }

    /// The product as it was built beside this program, for where nobody has made the real image. It behaves like that.
    ///
    /// # Panics
    /// When something of it is missing.
    pub fn easynet() -> Self {
        Self::new("easynet:dev", &["/bin/easynet"])
            .dynamic_program("bin/easynet", built("easynet"))
            .dynamic_program("bin/easynet-operator", built("easynet-operator"))
            .dynamic_program("bin/nft", "/usr/sbin/nft")
    }

    /// Puts a symbolic link at `path`.
    #[must_use]
    pub fn link(mut self, path: &str, target: &str) -> Self {
        self.links.push((path.trim_start_matches('/').to_owned(), target.to_owned()));
        self
    }

    /// Shell, `ping`, `nc`, `httpd`, `iperf3` and the like: what one looks around with. Not `wget`: it looks up the port of http in a library that a
    /// static program can not load.
    pub fn toolbox() -> Self {
        let tools =
            ["sh", "cat", "echo", "hostname", "httpd", "ip", "ls", "nc", "ping", "printf", "sleep"];
        let image = Self::new("local/box:1", &["/bin/sh"])
            .program("bin/busybox", "/bin/busybox")
            .dynamic_program("bin/iperf3", "/usr/bin/iperf3");
        tools.iter().fold(image, |image, tool| image.link(&format!("bin/{tool}"), "busybox"))
    }

    /// What holds the namespaces of a pod.
    pub fn pause() -> Self {
        Self::new("local/pause:1", &["/bin/busybox", "sleep", "2147483647"])
            .program("bin/busybox", "/bin/busybox")
    }

    /// Writes the archive.
    ///
    /// # Panics
    /// When a program is missing.
    pub fn write(&self, archive: &Path) {
        let layer = self.layer();
        let layer_id = hex(&layer);
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {"Entrypoint": self.entrypoint, "Env": ["PATH=/bin"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{layer_id}")]},
            "history": [{"created": "1970-01-01T00:00:00Z"}],
        })
        .to_string()
        .into_bytes();
        let config_name = format!("{}.json", hex(&config));
        let layer_name = format!("{layer_id}/layer.tar");
        let manifest =
            json!([{"Config": config_name, "RepoTags": [self.name], "Layers": [layer_name]}]);
        let mut tar = Tar::default();
        tar.folder(&layer_id);
        tar.file(&config_name, 0o644, &config);
        tar.file(&layer_name, 0o644, &layer);
        tar.file("manifest.json", 0o644, manifest.to_string().as_bytes());
        fs::write(archive, tar.finish())
            .unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    }

    fn layer(&self) -> Vec<u8> {
        let mut tar = Tar::default();
        let mut folders = BTreeSet::from(["etc".to_owned(), "tmp".to_owned()]);
        for (path, _) in &self.files {
            folders.extend(parents(path));
        }
        for (path, _) in &self.links {
            folders.extend(parents(path));
        }
        for folder in &folders {
            tar.folder(folder);
        }
        for (path, source) in &self.files {
            let content =
                fs::read(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
            tar.file(path, 0o755, &content);
        }
        for (path, target) in &self.links {
            tar.link(path, target);
        }
        tar.finish()
    }
}

/// A program of the product as it was built beside this one.
///
/// # Panics
/// When it is not there; the message says how to build it.
pub fn built(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("the path of this program");
    let folder = exe.ancestors().find(|folder| folder.join(name).is_file());
    folder
        .unwrap_or_else(|| panic!("no {name} beside the tests: run `cargo build --workspace`"))
        .join(name)
}

/// `a/b` and `a` of `a/b/c`.
fn parents(path: &str) -> impl Iterator<Item = String> {
    let parents = Path::new(path).ancestors().skip(1).map(|folder| folder.display().to_string());
    parents.filter(|folder| !folder.is_empty()).collect::<Vec<_>>().into_iter()
}

fn hex(content: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(&Sha256::digest(content))
}

/// The archive format of POSIX.1-1988 (ustar), as much of it as an image needs.
#[derive(Debug, Default)]
struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    fn folder(&mut self, name: &str) {
        self.header(&format!("{name}/"), 0o755, 0, b'5', "");
    }

    fn file(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.header(name, mode, content.len(), b'0', "");
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
    }

    fn link(&mut self, name: &str, target: &str) {
        self.header(name, 0o777, 0, b'2', target);
    }

    fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }

    /// `0 name[100] │ 100 mode[8] │ 108 uid[8] │ 116 gid[8] │ 124 size[12] │ 136 mtime[12] │ 148 checksum[8] │ 156 type │ 157 link[100] │ 257 magic`
    fn header(&mut self, name: &str, mode: u32, size: usize, kind: u8, target: &str) {
        let mut header = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(name.len() < 100 && target.len() < 100, "{name} is too long a name");
        put(0, name.as_bytes());
        put(100, format!("{mode:07o}").as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{size:011o}").as_bytes());
        put(136, b"00000000000");
        // The sum is made with blanks in its own place.
        put(148, b"        ");
        put(156, &[kind]);
        put(157, target.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_it_writes_is_a_tar_that_tar_reads() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("image.tar");
        Image::new("local/x:1", &["/bin/sh"])
            .program("/usr/bin/tool", "/bin/sh")
            .link("/bin/t", "../usr/bin/tool")
            .write(&archive);

        let list = |file: &Path| {
            let output = Command::new("tar").arg("tf").arg(file).output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        };
        let outer = list(&archive);
        let layer = outer.lines().find(|name| name.ends_with("/layer.tar")).unwrap().to_owned();
        assert!(outer.lines().any(|name| name == "manifest.json"));
        let extract =
            Command::new("tar").current_dir(dir.path()).args(["xf", "image.tar"]).status();
        assert!(extract.unwrap().success());
        let inner = list(&dir.path().join(layer));
        assert_eq!(
            inner.lines().collect::<Vec<_>>(),
            ["bin/", "etc/", "tmp/", "usr/", "usr/bin/", "usr/bin/tool", "bin/t"]
        );
    }
}
