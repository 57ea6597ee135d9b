//! Whoever reads what is written.

use std::os::fd::{AsFd, OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Ends when whoever reads `out`, a pipe, a socket or a terminal, is gone; never, if nobody can be, as of a file.
pub async fn gone(out: impl AsFd) {
    let interest = Interest::WRITABLE | Interest::ERROR;
    let Some(out) = out.as_fd().try_clone_to_owned().ok().and_then(|out| watch(out, interest))
    else {
        return std::future::pending().await;
    };
    while let Ok(mut guard) = out.ready(interest).await {
        // Not `is_read_closed`: a peer that says that it sends nothing more may well read on.
        if guard.ready().is_write_closed() || guard.ready().is_error() {
            return;
        }
        guard.clear_ready();
    }
    std::future::pending().await
}

/// Only watched, and so left blocking, for this process and whoever else has it; a file cannot be.
fn watch(out: OwnedFd, interest: Interest) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is open and the same for as long as its owner lives, which is as long as the watch.
    unsafe { AsyncFd::register_with_interest(out, interest) }.ok()
}

#[cfg(test)]
mod tests {
    use std::{net::Shutdown, os::unix::net::UnixStream, time::Duration};

    use super::*;

    async fn is_gone(out: impl AsFd) -> bool {
        tokio::time::timeout(Duration::from_millis(50), gone(out)).await.is_ok()
    }

    #[tokio::test]
    async fn whoever_reads_a_pipe_or_a_socket_can_go_and_of_a_file_nobody_can() {
        let (reader, out) = std::io::pipe().unwrap();
        assert!(!is_gone(&out).await);
        drop(reader);
        assert!(is_gone(&out).await, "a pipe");

        let (reader, out) = UnixStream::pair().unwrap();
        reader.shutdown(Shutdown::Write).unwrap();
        assert!(!is_gone(&out).await, "it may read on");
        drop(reader);
        assert!(is_gone(&out).await, "a socket");

        assert!(!is_gone(tempfile::tempfile().unwrap()).await, "a file");
    }
}
