//! Waits for descriptors to become readable: epoll, and an eventfd to be woken by.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    time::Duration,
};

/// Descriptors that one wait reports at most; the rest come with the next.
const EVENTS: usize = 64;

/// A set of descriptors, each with a token of the caller's.
#[derive(Debug)]
pub struct Ready {
    epoll: OwnedFd,
    tokens: Vec<u64>,
}

/// Wakes whoever waits for it, from any thread.
#[derive(Debug)]
pub struct Wake {
    event: OwnedFd,
}

impl Ready {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        Ok(Self { epoll, tokens: Vec::with_capacity(EVENTS) })
    }

    /// Reports `token` while `fd` is readable.
    ///
    /// # Errors
    /// When `fd` is not open, or added already.
    pub fn add(&self, fd: RawFd, token: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: token };
        // SAFETY: `event` lives through the call, and epoll copies it.
        check(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event)
        })
    }

    /// Forgets `fd`; a closed one is forgotten already.
    pub fn remove(&self, fd: RawFd) {
        // SAFETY: a null event is allowed for EPOLL_CTL_DEL since Linux 2.6.9.
        let _ = check(unsafe {
            libc::epoll_ctl(self.epoll.as_raw_fd(), libc::EPOLL_CTL_DEL, fd, std::ptr::null_mut())
        });
    }

    /// Tokens of readable descriptors, after `timeout` at the latest; none when a signal came between.
    ///
    /// # Errors
    /// Only if the descriptor of the set itself is broken.
    pub fn wait(&mut self, timeout: Duration) -> io::Result<&[u64]> {
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        let millis = i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: `events` has room for EVENTS entries, which the kernel fills in.
        let count = unsafe {
            libc::epoll_wait(
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                EVENTS as libc::c_int,
                millis,
            )
        };
        self.tokens.clear();
        match usize::try_from(count) {
            Ok(count) => self.tokens.extend(events[..count].iter().map(|event| event.u64)),
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
        Ok(&self.tokens)
    }
}

impl Wake {
    /// # Errors
    /// When the process is out of descriptors.
    pub fn new() -> io::Result<Self> {
        // SAFETY: takes no pointers.
        let event = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        Ok(Self { event: owned(event)? })
    }

    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: reads eight bytes of `one`. A full counter is as good as a written one.
        let _ = unsafe { libc::write(self.event.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    }

    /// Takes note, so that the descriptor is no longer readable.
    pub fn clear(&self) {
        let mut count = [0u8; 8];
        // SAFETY: writes eight bytes into `count`.
        let _ =
            unsafe { libc::read(self.event.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) };
    }
}

impl AsRawFd for Wake {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: a system call just returned it, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wake_from_another_thread_ends_the_wait_until_it_is_cleared() {
        let mut ready = Ready::new().unwrap();
        let wake = Wake::new().unwrap();
        ready.add(wake.as_raw_fd(), 7).unwrap();
        assert!(ready.wait(Duration::ZERO).unwrap().is_empty());

        std::thread::scope(|scope| {
            scope.spawn(|| wake.wake());
            assert_eq!(ready.wait(Duration::from_secs(10)).unwrap(), [7]);
        });

        wake.clear();
        assert!(ready.wait(Duration::ZERO).unwrap().is_empty());
        ready.remove(wake.as_raw_fd());
        wake.wake();
        assert!(ready.wait(Duration::ZERO).unwrap().is_empty());
    }
}
