//! Programs that end with us.

use std::{
    fs::{self, File},
    io::Write,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{OnceLock, mpsc},
    thread,
};

use super::Ran;

/// A part of a cluster, as a process.
#[derive(Debug)]
pub(super) struct Component {
    child: Child,
}

impl Component {
    /// Starts it; what it says is appended to `log`.
    pub(super) fn start(
        program: &Path,
        args: &[String],
        log: &Path,
        environment: &[(&str, String)],
    ) -> Self {
        let log = File::options().create(true).append(true).open(log).expect("a log file");
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(args)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second descriptor"))
            .stderr(log);
        Self { child: spawn(command) }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    pub(super) fn signal(&self, signal: &str) {
        let kill = format!("kill -{signal} {}", self.child.id());
        let output = Command::new("sh").args(["-c", &kill]).output().expect("sh runs");
        assert!(output.status.success(), "{kill}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// Bytes resident.
    pub(super) fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()));
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kilobytes = line.and_then(|line| line.trim().strip_suffix("kB"));
        kilobytes.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or(0) * 1024
    }

    pub(super) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.end();
    }
}

/// Runs a command to its end with `input` on its standard input.
pub(super) fn run(mut command: Command, input: &str) -> Ran {
    let what = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_owned();
    // Both at once, or each waits for the other when pipes are full. It may not want to read all of it.
    let writer = thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
    let output = child.wait_with_output().expect("it ends");
    writer.join().expect("writing does not panic");
    Ran {
        success: output.status.success(),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        what,
    }
}

/// Starts a process from a thread that lives as long as we do: a death signal is sent when the *thread* ends that
/// started the process, and the threads of tests come and go.
fn spawn(command: Command) -> Child {
    type Order = (Command, mpsc::SyncSender<Child>);
    static NURSERY: OnceLock<mpsc::SyncSender<Order>> = OnceLock::new();
    let nursery = NURSERY.get_or_init(|| {
        let (orders, incoming) = mpsc::sync_channel::<Order>(1);
        thread::spawn(move || {
            for (mut command, answer) in incoming {
                let child = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
                // Nobody else holds the other end, and it waits.
                let _ = answer.send(child);
            }
        });
        orders
    });
    let (answer, child) = mpsc::sync_channel(1);
    nursery.send((command, answer)).expect("the nursery lives as long as the process");
    child.recv().expect("the program starts")
}
