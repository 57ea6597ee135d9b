//! A folder per control plane: keys, data, logs. It goes when the test program goes, however that happens; the logs of a failure stay a day.

use std::{
    fs,
    io::Write,
    panic,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, Once, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use super::binaries;

/// How long logs of a failed run are kept.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// Lines of each log in the message of a failure.
const LINES: usize = 8;

/// Those of this process, for the panic hook.
static ALL: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

#[derive(Debug)]
pub(super) struct RunDir {
    pub(super) path: PathBuf,
    /// Waits for the end of its standard input, which the kernel closes with us.
    janitor: Child,
}

impl RunDir {
    pub(super) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let all = binaries::target().join("run");
        sweep(&all);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = all.join(format!("{}-{number}", std::process::id()));
        for folder in ["pki", "log"] {
            fs::create_dir_all(path.join(folder)).expect("a folder in target");
        }
        // Processes that we leave behind die a little after us, and may still write.
        let script = "cat >/dev/null; for try in 1 2 3 4 5 6 7 8 9 10; do \
            if [ -e \"$0/failed\" ]; then find \"$0\" -mindepth 1 -maxdepth 1 ! -name log ! -name failed -exec rm -rf --one-file-system {} +; \
            else rm -rf --one-file-system \"$0\"; fi; [ -e \"$0/pki\" ] || exit 0; sleep 0.3; done";
        let janitor = Command::new("sh")
            .args(["-c", script])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh runs");
        ALL.lock().unwrap_or_else(PoisonError::into_inner).push(path.clone());
        keep_logs_of_failures();
        Self { path, janitor }
    }

    pub(super) fn complaints(&self) -> String {
        complaints(&self.path)
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        ALL.lock().unwrap_or_else(PoisonError::into_inner).retain(|path| *path != self.path);
        drop(self.janitor.stdin.take());
        // It waits a moment for what still writes; others of its kind run at the end of the process.
        let _ = self.janitor.wait();
    }
}

/// The lines of all logs that look like complaints, last ones only.
fn complaints(run: &Path) -> String {
    let mut text = format!("logs are in {}\n", run.join("log").display());
    let Ok(logs) = fs::read_dir(run.join("log")) else { return text };
    let mut logs: Vec<_> = logs.flatten().map(|entry| entry.path()).collect();
    logs.sort();
    for log in logs {
        if log.ends_with("audit.log") {
            continue;
        }
        let content = fs::read(&log).unwrap_or_default();
        let content = String::from_utf8_lossy(&content).into_owned();
        let complains = |line: &&str| {
            // `E1126 16:12:42…` is how Kubernetes marks an error, W and I are less.
            let mark = line.as_bytes().get(1).is_some_and(u8::is_ascii_digit);
            if mark {
                return line.starts_with(['E', 'F']);
            }
            ["\"level\":\"error\"", "\"level\":\"fatal\"", "level=error", "panic", "ERROR"]
                .iter()
                .any(|word| line.contains(word))
        };
        let lines: Vec<_> = content.lines().filter(complains).collect();
        if lines.is_empty() {
            continue;
        }
        text.push_str(&format!("{}:\n", log.file_name().unwrap_or_default().display()));
        for line in &lines[lines.len().saturating_sub(LINES)..] {
            text.push_str(&format!("  {line}\n"));
        }
    }
    text
}

/// A test that panics marks the folders of this process, and says where they are.
fn keep_logs_of_failures() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            before(info);
            for path in ALL.lock().unwrap_or_else(PoisonError::into_inner).iter() {
                // A failure to say more must not hide the failure.
                let _ = fs::write(path.join("failed"), "");
                let _ = write!(std::io::stderr(), "cluster: {}", complaints(path));
            }
        }));
    });
}

/// Removes what programs left that are gone, except young logs.
fn sweep(all: &Path) {
    let Ok(entries) = fs::read_dir(all) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().into_string().unwrap_or_default();
        let Some((pid, _)) = name.split_once('-') else { continue };
        if Path::new("/proc").join(pid).exists() {
            continue;
        }
        let failed = fs::metadata(entry.path().join("failed")).and_then(|file| file.modified());
        let is_young = failed.is_ok_and(|then| then.elapsed().is_ok_and(|age| age < KEPT));
        if !is_young {
            // Its janitor may be at it.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
