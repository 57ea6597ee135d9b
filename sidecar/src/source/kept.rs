//! What a configuration server delivered last, in the state directory: `feed.state`, mode 0600.
//!
//! Keys are kept as they come; a configuration once it is known to be good. A revision that was taken back is kept by
//! its number, so that it is not tried again after a restart either.

use std::{fs, io, path::PathBuf};

use prost::Message;
use rpc::feed::Desired;
use zeroize::Zeroizing;

use super::wipe;
use crate::state::{self, FEED};

/// What is kept.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Kept {
    /// The newest keys, certificate and records, with the configuration that was good last.
    #[prost(message, optional, tag = "1")]
    pub good: Option<Desired>,
    /// A revision that was taken back; 0 is none.
    #[prost(uint64, tag = "2")]
    pub refused: u64,
    /// Why.
    #[prost(string, tag = "3")]
    pub refused_why: String,
    /// Of the network and server that it came from, so that another one's is not used.
    #[prost(string, tag = "4")]
    pub source: String,
}

/// The file.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    kept: Kept,
}

impl Store {
    /// Opens the file of a state directory. What cannot be read, or came from elsewhere than `source`, is as good as
    /// nothing.
    pub fn open(dir: &std::path::Path, source: &str) -> Self {
        let path = dir.join(FEED);
        let kept = fs::read(&path)
            .ok()
            .map(Zeroizing::new)
            .and_then(|bytes| Kept::decode(bytes.as_slice()).ok())
            .filter(|kept| kept.source == source);
        let kept = kept.unwrap_or_else(|| Kept { source: source.to_owned(), ..Kept::default() });
        Self { path, kept }
    }

    pub fn good(&self) -> Option<&Desired> {
        self.kept.good.as_ref()
    }

    /// Why a revision is not tried, if it is not.
    pub fn refused(&self, revision: u64) -> Option<&str> {
        (self.kept.refused == revision && revision != 0).then_some(self.kept.refused_why.as_str())
    }

    /// Keeps the keys, certificate and records of what came; the configuration stays the one that was good.
    pub fn keep_keys(&mut self, came: &Desired) {
        let (revision, sidecar) = match &self.kept.good {
            Some(good) => (good.revision, good.sidecar.clone()),
            None => (came.revision, came.sidecar.clone()),
        };
        self.replace(Desired { revision, sidecar, traceparent: String::new(), ..came.clone() });
    }

    /// Keeps all of it: its configuration is good.
    pub fn keep(&mut self, good: &Desired) {
        self.replace(Desired { traceparent: String::new(), ..good.clone() });
    }

    /// Keeps that a revision was taken back.
    pub fn refuse(&mut self, revision: u64, why: &str) {
        self.kept.refused = revision;
        self.kept.refused_why = why.to_owned();
        self.save();
    }

    fn replace(&mut self, good: Desired) {
        if self.kept.good.as_ref() == Some(&good) {
            return;
        }
        if let Some(mut old) = self.kept.good.replace(good) {
            wipe(&mut old);
        }
        self.save();
    }

    /// A full disk is no reason to stop: the node goes on, and the next start waits for the server.
    fn save(&self) {
        let bytes = Zeroizing::new(self.kept.encode_to_vec());
        if let Err(error) = state::write(&self.path, &bytes) {
            tracing::warn!(%error, "Could not keep what the configuration server said");
        }
    }

    /// Forgets all of it: the node is no member any more.
    pub fn forget(&mut self) {
        if let Some(good) = &mut self.kept.good {
            wipe(good);
        }
        self.kept = Kept { source: std::mem::take(&mut self.kept.source), ..Kept::default() };
        match fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!(%error, "Could not remove what the configuration server said")
            }
        }
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(good) = &mut self.kept.good {
            wipe(good);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rpc::feed::Epoch;

    use super::*;

    fn desired(revision: u64, key: u8) -> Desired {
        Desired {
            revision,
            sidecar: format!("{{\"revision\": {revision}}}"),
            epochs: vec![Epoch { epoch: u32::from(key), psk: vec![key; 32], group: vec![key; 32] }],
            ..Desired::default()
        }
    }

    #[test]
    fn keys_are_kept_at_once_and_configurations_when_they_are_good() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), "a");
        store.keep_keys(&desired(1, 1));
        store.keep_keys(&desired(2, 2));
        drop(store);

        let mut store = Store::open(dir.path(), "a");
        let good = store.good().unwrap();
        assert_eq!((good.revision, good.epochs[0].epoch), (1, 2));
        store.keep(&desired(2, 2));
        assert_eq!(Store::open(dir.path(), "a").good(), Some(&desired(2, 2)));
        let mode = fs::metadata(dir.path().join(FEED)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }

    #[test]
    fn what_was_taken_back_is_not_tried_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), "a");
        store.keep(&desired(1, 1));
        store.refuse(2, "it cut this node off");

        let store = Store::open(dir.path(), "a");
        assert_eq!(store.refused(2), Some("it cut this node off"));
        assert_eq!((store.refused(3), store.refused(0)), (None, None));
        assert_eq!(store.good(), Some(&desired(1, 1)));
    }

    #[test]
    fn what_another_server_said_or_nobody_can_read_is_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let mut store = Store::open(dir.path(), "a");
        store.keep(&desired(1, 1));

        assert_eq!(Store::open(dir.path(), "b").good(), None);
        fs::write(dir.path().join(FEED), [0xff; 40]).unwrap();
        assert_eq!(Store::open(dir.path(), "a").good(), None);
        store.forget();
        assert!(!dir.path().join(FEED).exists());
    }
}
