//! The system calls of UDP segmentation offload (`UDP_SEGMENT`, `UDP_GRO`; udp(7)) and their kin.

#![allow(unsafe_code)]

use std::{
    io,
    mem::{self, MaybeUninit},
    net::SocketAddr,
    os::fd::AsRawFd,
    ptr,
};

use socket2::{SockAddr, SockAddrStorage, Socket};

/// Room for one control message with an int, aligned as `cmsghdr` is.
const CONTROL_WORDS: usize = 4;

/// A run of datagrams from one sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    pub remote: SocketAddr,
    pub len: usize,
    /// Length of each, but the last may be shorter.
    pub segment: usize,
}

/// Receives without waiting.
pub(super) fn receive(socket: &Socket, buf: &mut [u8]) -> Option<Received> {
    let mut control = [0u64; CONTROL_WORDS * 2];
    let mut iov = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: a msghdr of zeros is valid: no name, no buffers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = ptr::from_mut(&mut storage).cast();
    message.msg_namelen = storage.size_of();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = mem::size_of_val(&control) as _;
    let len = loop {
        // SAFETY: name, buffer and control of `message` outlive the call and have the lengths given.
        let received =
            unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
        if let Ok(len) = usize::try_from(received) {
            break len;
        }
        match io::Error::last_os_error().raw_os_error() {
            // A pending ICMP error was reported and is gone; what was received is still there.
            Some(
                libc::ECONNREFUSED
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EINTR
                | libc::EMSGSIZE
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EHOSTDOWN,
            ) => {}
            _ => return None,
        }
    };
    // SAFETY: the kernel filled in an address of this length.
    let remote = unsafe { SockAddr::new(storage, message.msg_namelen) }.as_socket()?;
    let segment = gro_segment(&message).filter(|&segment| segment > 0 && segment < len);
    Some(Received { remote, len, segment: segment.unwrap_or(len) })
}

fn gro_segment(message: &libc::msghdr) -> Option<usize> {
    // SAFETY: the kernel filled in control and its length; CMSG_FIRSTHDR and CMSG_NXTHDR stay within.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while let Some(found) = header.as_ref() {
            if found.cmsg_level == libc::SOL_UDP && found.cmsg_type == libc::UDP_GRO {
                let segment = ptr::read_unaligned(libc::CMSG_DATA(header).cast::<libc::c_int>());
                return usize::try_from(segment).ok();
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
    None
}

/// Sends a run of datagrams, or one. Waits for room within the socket's time-out.
pub(super) fn send(
    socket: &Socket,
    remote: SocketAddr,
    bytes: &[u8],
    segment: Option<u16>,
) -> io::Result<()> {
    let control = segment.map(|segment| Control::new(libc::SOL_UDP, libc::UDP_SEGMENT, segment));
    send_message(socket, remote, bytes, control, 0)
}

/// Sends one datagram without waiting.
pub(super) fn send_now(
    socket: &Socket,
    remote: SocketAddr,
    datagram: &[u8],
    ttl: Option<u8>,
) -> io::Result<()> {
    let (level, kind) = match remote {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT),
    };
    let control = ttl.map(|ttl| Control::new(level, kind, libc::c_int::from(ttl)));
    send_message(socket, remote, datagram, control, libc::MSG_DONTWAIT)
}

fn send_message(
    socket: &Socket,
    remote: SocketAddr,
    bytes: &[u8],
    mut control: Option<Control>,
    flags: libc::c_int,
) -> io::Result<()> {
    let name = SockAddr::from(remote);
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: a msghdr of zeros is valid: no name, no buffers.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = name.as_ptr().cast_mut().cast();
    message.msg_namelen = name.len();
    message.msg_iov = &raw mut iov;
    message.msg_iovlen = 1;
    if let Some(control) = &mut control {
        message.msg_control = control.words.as_mut_ptr().cast();
        message.msg_controllen = control.len as _;
    }
    loop {
        // SAFETY: name, buffer and control of `message` outlive the call, which only reads them.
        let sent = unsafe {
            libc::sendmsg(socket.as_raw_fd(), &raw const message, flags | libc::MSG_NOSIGNAL)
        };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// One control message.
struct Control {
    words: [u64; CONTROL_WORDS],
    len: usize,
}

impl Control {
    fn new<T: Copy>(level: libc::c_int, kind: libc::c_int, value: T) -> Self {
        const { assert!(mem::size_of::<T>() <= 8) };
        let size = mem::size_of::<T>() as libc::c_uint;
        let mut words = [0u64; CONTROL_WORDS];
        let header = words.as_mut_ptr().cast::<libc::cmsghdr>();
        // SAFETY: `words` is aligned for a cmsghdr and has room for one with eight bytes of data.
        unsafe {
            (*header).cmsg_level = level;
            (*header).cmsg_type = kind;
            (*header).cmsg_len = libc::CMSG_LEN(size) as _;
            ptr::write_unaligned(libc::CMSG_DATA(header).cast::<T>(), value);
        }
        // SAFETY: arithmetic only.
        let len = unsafe { libc::CMSG_SPACE(size) } as usize;
        Self { words, len }
    }
}

/// Makes both buffers `bytes` long, or as long as we may.
pub(super) fn set_buffers(socket: &Socket, bytes: usize) {
    let size = bytes as libc::c_int;
    if set(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, size).is_err() {
        let _ = socket.set_recv_buffer_size(bytes);
    }
    if set(socket, libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, size).is_err() {
        let _ = socket.set_send_buffer_size(bytes);
    }
}

/// Sets "don't fragment" and ignores what the kernel believes the path's MTU to be: ours is measured.
pub(super) fn never_fragment(socket: &Socket, is_v6: bool) {
    // Refused by sandboxes that never fragment anyway.
    let _ = if is_v6 {
        set(socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        set(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    };
}

/// Asks for runs of datagrams; false if the kernel is too old.
pub(super) fn enable_gro(socket: &Socket) -> bool {
    set(socket, libc::SOL_UDP, libc::UDP_GRO, 1).is_ok()
}

/// Whether the kernel knows segmentation offload; a driver may refuse it all the same.
pub(super) fn has_gso(socket: &Socket) -> bool {
    set(socket, libc::SOL_UDP, libc::UDP_SEGMENT, 0).is_ok()
}

fn set(
    socket: &Socket,
    level: libc::c_int,
    name: libc::c_int,
    value: libc::c_int,
) -> io::Result<()> {
    let value = MaybeUninit::new(value);
    // SAFETY: the kernel reads an int from `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_ptr().cast(),
            mem::size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
