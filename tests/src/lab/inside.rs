//! Code of this program inside a host's network.

use std::{fs::File, os::fd::AsRawFd};

use super::Host;

/// Runs `act` on a thread of its own whose sockets belong to `host`; they stay there, wherever they are used afterwards.
///
/// # Panics
/// When the namespace cannot be entered, or `act` panics.
pub fn inside<T: Send>(host: &Host, act: impl FnOnce() -> T + Send) -> T {
    let path = format!("/var/run/netns/{}", host.namespace);
    let namespace = File::open(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            enter(&namespace);
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[allow(unsafe_code)]
fn enter(namespace: &File) {
    // SAFETY: setns takes a descriptor, which `namespace` keeps open, and touches no memory of ours; only this thread moves.
    let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(entered, 0, "setns: {}", std::io::Error::last_os_error());
}
