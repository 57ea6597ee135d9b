//! The image: made without an engine, valid, small, and what it holds runs with nothing around it. Needs root, for `chroot`.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::Value;
use sha2::{Digest, Sha256};
use tests::kubetools::root;

/// Of the 25 MB that people may have to pull.
const LARGEST_WITHOUT_PROGRAMS: u64 = 8_000_000;

#[test]
fn an_archive_made_without_an_engine_is_valid_and_its_programs_run_from_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let binaries = folder.path().join("binaries");
    fs::create_dir(&binaries).unwrap();
    for name in ["easynet", "easynet-operator"] {
        static_program(&binaries.join(name), name);
    }
    let (content, archive) = (folder.path().join("root"), folder.path().join("image.tar"));
    run(Command::new(root().join("image/root")).arg(&binaries).arg(&content));
    let pack = root().join("image/pack");
    run(Command::new(pack).arg(&content).arg("easynet:dev").arg(&archive).current_dir(&folder));

    run(Command::new(root().join("image/check")).arg(&archive));
    let size = archive.metadata().unwrap().len();
    println!("all but our own programs: {} kB", size / 1000);
    assert!(size < LARGEST_WITHOUT_PROGRAMS, "{size}: nft and its libraries take too much");
    let unpacked = Unpacked::of(&archive, folder.path());
    for program in ["easynet", "easynet-operator"] {
        assert_eq!(unpacked.run(&[&format!("/bin/{program}")], ""), format!("{program}\n"));
    }
    // Rules as the agents write them.
    let rules = "table inet t {\n\
        chain a { type nat hook postrouting priority 90; ip saddr 100.112.0.0/16 ip daddr 100.112.0.0/16 snat ip to ip saddr; }\n\
        chain b { type nat hook prerouting priority -110; iifname \"ez\" dnat ip prefix to ip daddr map { 10.201.0.0/16 : 10.244.0.0/16 }\n}\n\
        }\n";
    unpacked.run(&["/usr/sbin/nft", "-f", "-"], rules);
    // Everything that is not ours has its licence with it.
    let documents = unpacked.content.join("usr/share/doc");
    let packages = fs::read_to_string(documents.join("debian-packages")).unwrap();
    assert!(packages.lines().any(|line| line.starts_with("nftables ")), "{packages}");
    for package in packages.lines().filter_map(|line| line.split(' ').next()) {
        assert!(documents.join(package).join("copyright").is_file(), "{package}");
    }
}

#[test]
fn a_program_that_needs_a_loader_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["easynet", "easynet-operator"] {
        fs::copy("/bin/true", folder.path().join(name)).unwrap();
    }
    let mut command = Command::new(root().join("image/root"));
    let output = command.arg(folder.path()).arg(folder.path().join("root")).output().unwrap();

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("is not static"), "{output:?}");
}

#[test]
fn an_image_that_is_too_large_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("image.tar");
    let mut noise = fs::File::open("/dev/urandom").unwrap().take(26_000_000);
    io::copy(&mut noise, &mut fs::File::create(&archive).unwrap()).unwrap();

    let output = Command::new(root().join("image/check")).arg(&archive).output().unwrap();

    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("too large"), "{output:?}");
}

#[test]
fn the_same_files_make_the_same_image() {
    let folder = tempfile::tempdir().unwrap();
    let content = folder.path().join("root");
    for (layer, file) in [("tools", "etc/passwd"), ("easynet", "bin/easynet")] {
        let file = content.join(layer).join(file);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, "x").unwrap();
    }
    let pack = |name: &str| {
        let archive = folder.path().join(name);
        let mut command = Command::new(root().join("image/pack"));
        command.arg(&content).arg("easynet:dev").arg(&archive).current_dir(folder.path());
        assert!(command.status().unwrap().success());
        digest(&archive)
    };

    assert_eq!(pack("a.tar"), pack("b.tar"));
}

/// An image whose every digest was checked, laid out.
struct Unpacked {
    content: PathBuf,
}

impl Unpacked {
    fn of(archive: &Path, folder: &Path) -> Self {
        let (image, content) = (folder.join("unpacked"), folder.join("content"));
        unpack(archive, &image);
        let manifest = json(&image.join("manifest.json"))[0].clone();
        assert_eq!(manifest["RepoTags"], serde_json::json!(["easynet:dev"]));
        let name = manifest["Config"].as_str().unwrap();
        assert_eq!(name, format!("{}.json", digest(&image.join(name))));
        let config = json(&image.join(name));
        assert_eq!(config["config"]["Entrypoint"], serde_json::json!(["/bin/easynet"]));
        let layers = manifest["Layers"].as_array().unwrap();
        let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        assert_eq!((layers.len(), ids.len()), (2, 2));
        for (layer, id) in layers.iter().zip(ids) {
            let layer = image.join(layer.as_str().unwrap());
            assert_eq!(id, &format!("sha256:{}", digest(&layer)));
            unpack(&layer, &content);
        }
        Self { content }
    }

    /// Runs a program with the image as all there is, in a network namespace of its own.
    fn run(&self, words: &[&str], input: &str) -> String {
        let mut child = Command::new("unshare")
            .args(["--net", "chroot"])
            .arg(&self.content)
            .args(words)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

/// A program without a loader that says its name.
fn static_program(path: &Path, name: &str) {
    let source = path.with_extension("c");
    fs::write(
        &source,
        format!("#include <stdio.h>\nint main(void) {{ puts(\"{name}\"); return 0; }}\n"),
    )
    .unwrap();
    run(Command::new("cc").args(["-static-pie", "-O", "-o"]).arg(path).arg(source));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn unpack(archive: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    let status = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(to).status().unwrap();
    assert!(status.success());
}

fn digest(file: &Path) -> String {
    Sha256::digest(fs::read(file).unwrap()).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn json(file: &Path) -> Value {
    serde_json::from_slice(&fs::read(file).unwrap()).unwrap()
}
