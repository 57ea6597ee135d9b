//! The state directory: keys, and what is kept across restarts.
//!
//! ```text
//! lock          held by the one node that runs here
//! node.key      64 secret bytes; nothing else ever goes into it, so nothing else can spoil it
//! state.json    boot counter, claimed address, derived master keys; set aside and begun anew if it cannot be read
//! ```
//! The directory is 0700, files are 0600 and replaced whole: written beside, synced, renamed.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    net::Ipv4Addr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use data_encoding::BASE32_NOPAD;
use ring::rand::SecureRandom;
use serde::{Deserialize, Serialize};
use session::{identity::Identity, membership::Master};
use zeroize::Zeroizing;

use crate::error::Failure;

const LOCK: &str = "lock";
const KEY: &str = "node.key";
const STATE: &str = "state.json";
/// What a configuration server delivered.
pub(crate) const FEED: &str = "feed.state";
/// Extensions of what is being written, and, with a number, of what could not be read.
const BESIDE: &str = "tmp";
const ASIDE: &str = "corrupt-";

/// What is kept beside the key.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
struct Kept {
    boot: u32,
    /// Told to leave for good; what it had made is not to be taken over.
    retired: bool,
    claim: Option<(Ipv4Addr, u64)>,
    /// The TUN that the node had last.
    tun: Option<String>,
    /// Base32 of derived master keys by a hash of name and secret, so that the slow derivation runs once.
    masters: BTreeMap<String, String>,
}

impl fmt::Debug for Kept {
    /// Without the keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kept").field("boot", &self.boot).finish_non_exhaustive()
    }
}

/// An open state directory; nobody else has it.
#[derive(Debug)]
pub struct State {
    dir: PathBuf,
    kept: Kept,
    /// Held open for its lock.
    _lock: File,
    /// Said once at the start: what others have access to, and what was set aside.
    pub warnings: Vec<String>,
}

impl State {
    /// Opens the directory, making it if need be.
    ///
    /// # Errors
    /// When it cannot be written, or another node has it.
    pub fn open(dir: &Path) -> Result<Self, Failure> {
        Self::try_open(dir)?.ok_or_else(|| {
            Failure::failed(
                format!("Another easynet runs with the state directory {}", dir.display()),
                "Stop it, or give this one a --state-dir of its own.",
            )
        })
    }

    /// The same, or `None` while another node has it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn try_open(dir: &Path) -> Result<Option<Self>, Failure> {
        let choose = "Choose another one with --state-dir, or mend its owner and mode.";
        let failed = |error: io::Error| {
            Failure::failed(
                format!("Cannot use the state directory {}: {error}", dir.display()),
                choose,
            )
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join(LOCK))
            .map_err(failed)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => return Ok(None),
            Err(fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        let exposed = exposed(dir).into_iter();
        let mut warnings: Vec<String> =
            exposed.map(|Exposed { what, remedy }| format!("{what}: {remedy}")).collect();
        let kept = match fs::read(dir.join(STATE)) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                let aside = set_aside(&dir.join(STATE));
                warnings.push(format!(
                    "The state file could not be read ({error}); it is set aside as {aside}"
                ));
                Kept::default()
            }),
            Err(_) => Kept::default(),
        };
        Ok(Some(Self { dir: dir.to_owned(), kept, _lock: lock, warnings }))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The node's identity; made at the first start.
    ///
    /// # Errors
    /// When the key is there but not one, or cannot be kept: a node with a new key at every start is a stranger each time.
    pub fn identity(&mut self) -> Result<Identity, Failure> {
        if let Some(identity) = read_identity(&self.dir)? {
            return Ok(identity);
        }
        let mut bytes = Zeroizing::new([0; 64]);
        random(&mut *bytes)?;
        write(&self.dir.join(KEY), &*bytes).map_err(|error| {
            Failure::failed(
                format!("Cannot keep the node's key: {error}"),
                "Make room, or mend the directory.",
            )
        })?;
        Ok(Identity::from_bytes(&bytes))
    }

    /// The boot counter of this start, kept before it is used.
    pub fn boot(&mut self, unix_now: u64) -> u32 {
        self.kept.boot = session::freshness::boot_counter(self.kept.boot, unix_now);
        self.save();
        self.kept.boot
    }

    /// The master key of name and secret, derived at most once.
    pub fn master(&mut self, name: &str, secret: &str) -> Master {
        let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
        hash.update(&(name.len() as u64).to_le_bytes());
        hash.update(name.as_bytes());
        hash.update(secret.as_bytes());
        let key = BASE32_NOPAD.encode(&hash.finish().as_ref()[..10]).to_ascii_lowercase();
        let known =
            self.kept.masters.get(&key).and_then(|text| BASE32_NOPAD.decode(text.as_bytes()).ok());
        if let Some(bytes) = known.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok()) {
            return Master::from_bytes(bytes);
        }
        let master = Master::derive(name, secret);
        self.kept.masters = BTreeMap::from([(key, BASE32_NOPAD.encode(&*master.to_bytes()))]);
        self.save();
        master
    }

    /// Whether the node was told to leave for good ([`State::set_retired`]).
    pub fn retired(&self) -> bool {
        self.kept.retired
    }

    /// Keeps that the node shall not come back by itself, or that it may.
    ///
    /// # Errors
    /// When it cannot be kept: whoever asked must not believe it.
    pub fn set_retired(&mut self, retired: bool) -> io::Result<()> {
        if self.kept.retired == retired {
            return Ok(());
        }
        self.kept.retired = retired;
        self.try_save()
    }

    /// Removes all of it, keys too: the node has left for good. The directory itself may be a mount, which stays.
    ///
    /// # Errors
    /// When a file stays.
    pub fn clear(&mut self) -> io::Result<()> {
        self.kept = Kept::default();
        let mut outcome = Ok(());
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            if is_ours(&entry.file_name())
                && let Err(error) = fs::remove_file(entry.path())
            {
                outcome = Err(error);
            }
        }
        // Only an empty one goes, and only if it is no mount.
        let _ = fs::remove_dir(&self.dir);
        outcome
    }

    pub fn claim(&self) -> Option<(Ipv4Addr, u64)> {
        self.kept.claim
    }

    pub fn set_claim(&mut self, claim: Option<(Ipv4Addr, u64)>) {
        if self.kept.claim != claim {
            self.kept.claim = claim;
            self.save();
        }
    }

    /// Keeps the name of the node's TUN; the one before, if that was another.
    pub fn replace_tun(&mut self, name: &str) -> Option<String> {
        if self.kept.tun.as_deref() == Some(name) {
            return None;
        }
        let former = self.kept.tun.replace(name.to_owned());
        self.save();
        former
    }

    /// Keeps the boot counter that a running node has come to.
    pub fn set_boot(&mut self, boot: u32) {
        if boot > self.kept.boot {
            self.kept.boot = boot;
            self.save();
        }
    }

    /// A full disk is no reason to stop: the mesh goes on, and the next start knows less.
    fn save(&self) {
        if let Err(error) = self.try_save() {
            tracing::warn!(%error, "Could not keep the state; going on without");
        }
    }

    fn try_save(&self) -> io::Result<()> {
        write(&self.dir.join(STATE), &serde_json::to_vec(&self.kept)?)
    }
}

/// What others than the owner can do with a state directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exposed {
    pub what: String,
    /// The command that ends it.
    pub remedy: String,
}

/// What others than the owner can change or read of a state directory.
pub fn exposed(dir: &Path) -> Vec<Exposed> {
    let mode =
        |path: &Path| fs::metadata(path).ok().map(|found| found.permissions().mode() & 0o7777);
    let mut found = Vec::new();
    if let Some(mode) = mode(dir).filter(|mode| mode & 0o022 != 0) {
        let dir = dir.display();
        found.push(Exposed {
            what: format!("Others can replace the key in {dir} (mode {mode:04o})"),
            remedy: format!("`chmod 700 {dir}`"),
        });
    }
    // The others hold keys, too.
    for path in [KEY, STATE, FEED].map(|name| dir.join(name)) {
        if let Some(mode) = mode(&path).filter(|mode| mode & 0o077 != 0) {
            let path = path.display();
            found.push(Exposed {
                what: format!("Others can use the keys in {path} (mode {mode:04o})"),
                remedy: format!("`chmod 600 {path}`"),
            });
        }
    }
    found
}

/// Whether a file of a state directory is one that a node makes; what else people keep there is theirs.
fn is_ours(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let is_whole = [LOCK, KEY, STATE, FEED].contains(&&*name);
    let is_part = name.rsplit_once('.').is_some_and(|(stem, extension)| {
        ["node", "state", "feed"].contains(&stem)
            && (extension == BESIDE || extension.starts_with(ASIDE))
    });
    is_whole || is_part
}

/// The identity kept in a state directory, whoever has that open; `None` if there is none yet.
///
/// # Errors
/// When the key is there but not one, or cannot be read.
pub fn read_identity(dir: &Path) -> Result<Option<Identity>, Failure> {
    let path = dir.join(KEY);
    let bytes = match fs::read(&path).map(Zeroizing::new) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(Failure::failed(
                format!("Cannot read {}: {error}", path.display()),
                "Mend its owner and mode.",
            ));
        }
    };
    let bytes: Zeroizing<[u8; 64]> = Zeroizing::new(bytes.as_slice().try_into().map_err(|_| {
        Failure::failed(
            format!("{} is no key: it has {} bytes instead of 64", path.display(), bytes.len()),
            "Restore it from a backup, or remove it to become a new node.",
        )
    })?);
    Ok(Some(Identity::from_bytes(&bytes)))
}

/// Fills with the system's randomness.
///
/// # Errors
/// When the system has none.
pub fn random(bytes: &mut [u8]) -> Result<(), Failure> {
    ring::rand::SystemRandom::new()
        .fill(bytes)
        .map_err(|_| Failure::failed("The system gives no random numbers", "Check /dev/urandom."))
}

/// Replaces a file whole, mode 0600.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension(BESIDE);
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&beside)?;
    let written = file
        .write_all(bytes)
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        // What is half written helps nobody, and a full disk needs the room.
        let _ = fs::remove_file(&beside);
    }
    written
}

fn set_aside(path: &Path) -> String {
    for number in 1..1000 {
        let aside = path.with_extension(format!("{ASIDE}{number}"));
        if !aside.exists() {
            let _ = fs::rename(path, &aside);
            return aside.display().to_string();
        }
    }
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clearing_takes_what_is_ours_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let mut state = State::open(&dir).unwrap();
        state.identity().unwrap();
        state.set_retired(true).unwrap();
        for ours in ["state.corrupt-1", "feed.state", "feed.tmp"] {
            fs::write(dir.join(ours), b"").unwrap();
        }
        fs::write(dir.join("precious.txt"), b"").unwrap();
        fs::create_dir(dir.join("state")).unwrap();

        state.clear().unwrap();

        let mut left: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["precious.txt", "state"]);
    }

    #[test]
    fn a_directory_has_one_owner_and_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        let mut state = State::open(&dir).unwrap();
        let id = state.identity().unwrap().node();
        let boot = state.boot(1000);
        state.set_claim(Some((Ipv4Addr::new(100, 112, 0, 20), 7)));
        assert!(State::open(&dir).unwrap_err().what.contains("Another easynet"));
        assert!(State::try_open(&dir).unwrap().is_none());
        state.set_boot(boot + 50);
        state.set_boot(boot);
        assert_eq!(state.replace_tun("easynet0"), None);
        assert!(!state.retired());
        state.set_retired(true).unwrap();
        drop(state);

        let mut again = State::open(&dir).unwrap();

        assert_eq!(again.identity().unwrap().node(), id);
        assert!(again.boot(1000) > boot + 50);
        assert!(again.retired());
        assert_eq!(again.replace_tun("easynet0"), None);
        assert_eq!(again.replace_tun("ez1"), Some("easynet0".to_owned()));
        assert_eq!(again.claim(), Some((Ipv4Addr::new(100, 112, 0, 20), 7)));
        let mode = |name: &str| fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("node.key"), mode("state.json"), mode("")), (0o600, 0o600, 0o700));

        again.clear().unwrap();
        assert!(!dir.exists());
    }

    #[test]
    fn a_spoilt_state_file_is_set_aside_and_the_key_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let id = State::open(dir.path()).unwrap().identity().unwrap().node();
        write(&dir.path().join("state.json"), b"{ half").unwrap();

        let mut state = State::open(dir.path()).unwrap();

        assert_eq!(state.warnings.len(), 1);
        assert!(dir.path().join("state.corrupt-1").exists());
        assert_eq!(state.identity().unwrap().node(), id);
    }

    #[test]
    fn what_others_have_access_to_is_warned_of() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("state");
        State::open(&dir).unwrap().identity().unwrap();
        let chmod = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        assert!(State::open(&dir).unwrap().warnings.is_empty());

        chmod(&dir, 0o755);
        assert!(exposed(&dir).is_empty(), "names are no secret");
        chmod(&dir, 0o777);
        chmod(&dir.join("node.key"), 0o644);

        let warnings = State::open(&dir).unwrap().warnings;
        assert_eq!(warnings.len(), 2, "{warnings:?}");
        assert!(warnings[0].contains("(mode 0777): `chmod 700 "), "{warnings:?}");
        assert!(warnings[1].contains("node.key (mode 0644): `chmod 600 "), "{warnings:?}");
    }

    #[test]
    fn a_key_that_is_none_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("node.key"), b"short").unwrap();

        let error = State::open(dir.path()).unwrap().identity().unwrap_err();

        assert!(error.what.contains("5 bytes"), "{error}");
        assert_eq!(fs::read(dir.path().join("node.key")).unwrap(), b"short");
    }
}
