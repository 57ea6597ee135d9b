//! The TUN device: IP packets from and to the host, in pieces of up to 64 KiB.
//!
//! Opened by ioctl, so that the virtio header and the offloads are ours to choose. What the kernel refuses
//! is left out step by step; [`Tun::offloads`] says what is in force. Addresses, MTU and routes are
//! [`crate::netlink`]'s.

use std::{
    fmt,
    fs::OpenOptions,
    io::{self, IoSlice},
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    path::Path,
};

use engine::offload::{self, Delivery, VIRTIO_LEN, Virtio};

const DEVICE: &str = "/dev/net/tun";

const TUNSETIFF: libc::Ioctl = 0x4004_54ca;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54d0;
const TUNSETPERSIST: libc::Ioctl = 0x4004_54cb;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54d8;

const IFF_TUN: u16 = 0x0001;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

const OFFLOAD_CHECKSUM: libc::c_ulong = 0x01;
const OFFLOAD_TCP4: libc::c_ulong = 0x02;
const OFFLOAD_TCP6: libc::c_ulong = 0x04;
const OFFLOAD_UDP4: libc::c_ulong = 0x20;
const OFFLOAD_UDP6: libc::c_ulong = 0x40;

/// A virtio header and the longest packet.
pub const READ_LEN: usize = VIRTIO_LEN + offload::MAX_PACKET;

/// A TUN device; it is gone when the last handle is, unless it was made to stay ([`Tun::persist`]).
#[derive(Debug)]
pub struct Tun {
    fd: OwnedFd,
    name: String,
    offloads: Offloads,
}

/// What the kernel does in large pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offloads {
    /// Packets travel behind a virtio header.
    pub virtio: bool,
    /// Checksums may be left partial.
    pub checksum: bool,
    pub tcp: bool,
    pub udp: bool,
}

/// Why there is no TUN, and what to do about it.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    #[error(
        "there is no {DEVICE}: load the kernel module (`modprobe tun`), or give the container the device \
         (`--device {DEVICE}`)"
    )]
    NoDevice,
    #[error(
        "making a TUN device is not permitted: run as root, or give the process CAP_NET_ADMIN \
         (`--cap-add NET_ADMIN`)"
    )]
    NotPermitted,
    #[error("the interface name {0} is in use: choose another one, or stop what uses it")]
    NameTaken(String),
    #[error("{0:?} is no interface name: 1 to 15 characters, no slash, colon or space")]
    BadName(String),
    #[error("cannot {doing}: {error}")]
    Other { doing: &'static str, error: io::Error },
}

impl Tun {
    /// Makes the device `name`, or one with the kernel's next free number where the name ends in `%d`.
    ///
    /// # Errors
    /// For a person to act on; retrying does not help.
    pub fn open(name: &str) -> Result<Self, TunError> {
        let is_bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(is_bad) {
            return Err(TunError::BadName(name.to_owned()));
        }
        match Self::attach(name, IFF_VNET_HDR) {
            Err(TunError::Other { error, .. }) if is_invalid(&error) => {}
            outcome => return outcome,
        }
        match Self::attach(name, 0) {
            // An interface of another kind.
            Err(TunError::Other { error, .. }) if is_invalid(&error) && is_there(name) => {
                Err(TunError::NameTaken(name.to_owned()))
            }
            outcome => outcome,
        }
    }

    fn attach(name: &str, flags: u16) -> Result<Self, TunError> {
        let fd: OwnedFd = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(DEVICE)
            .map_err(|error| TunError::of("open /dev/net/tun", name, error))?
            .into();
        let mut request = InterfaceRequest::new(name, IFF_TUN | IFF_NO_PI | flags);
        // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is laid out as and large enough for.
        let made = unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETIFF, &raw mut request) };
        check(made).map_err(|error| TunError::of("make the TUN device", name, error))?;

        let mut tun = Self { fd, name: request.name(), offloads: Offloads::NONE };
        if flags & IFF_VNET_HDR != 0 {
            tun.offloads.virtio = true;
            tun.set_header_len()
                .map_err(|error| TunError::of("set the header's length", name, error))?;
            tun.choose_offloads();
        }
        Ok(tun)
    }

    fn set_header_len(&self) -> io::Result<()> {
        let len = VIRTIO_LEN as libc::c_int;
        // SAFETY: TUNSETVNETHDRSZ reads an int.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETVNETHDRSZ, &raw const len) })
    }

    fn choose_offloads(&mut self) {
        let tcp = OFFLOAD_CHECKSUM | OFFLOAD_TCP4 | OFFLOAD_TCP6;
        let steps = [
            (tcp | OFFLOAD_UDP4 | OFFLOAD_UDP6, Offloads::ALL),
            (tcp, Offloads { udp: false, ..Offloads::ALL }),
            (OFFLOAD_CHECKSUM, Offloads { udp: false, tcp: false, ..Offloads::ALL }),
        ];
        for (flags, offloads) in steps {
            // SAFETY: TUNSETOFFLOAD takes its argument by value.
            if check(unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETOFFLOAD, flags) }).is_ok() {
                self.offloads = offloads;
                return;
            }
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the device, with its addresses and routes, outlives this process. Whoever opens it next takes it over.
    ///
    /// # Errors
    /// When the device is gone.
    pub fn persist(&self, stays: bool) -> io::Result<()> {
        let stays = libc::c_ulong::from(stays);
        // SAFETY: TUNSETPERSIST takes its argument by value.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), TUNSETPERSIST, stays) })
    }

    /// Whether an error of [`Tun::read`] says that somebody removed the device.
    pub fn is_gone(error: &io::Error) -> bool {
        error.raw_os_error() == Some(libc::EBADFD)
    }

    /// What is in force.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Reads one packet into `buf`, of [`READ_LEN`] bytes, and returns its header and where it is; `None` when there
    /// is none.
    ///
    /// # Errors
    /// When the device is down or gone.
    pub fn read<'a>(&self, buf: &'a mut [u8]) -> io::Result<Option<(Virtio, &'a mut [u8])>> {
        // SAFETY: the kernel writes at most `buf.len()` bytes into `buf`.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), buf.as_mut_ptr().cast(), buf.len()) };
        let Ok(read) = usize::try_from(read) else {
            let error = io::Error::last_os_error();
            return match error.raw_os_error() {
                Some(libc::EAGAIN | libc::EINTR) => Ok(None),
                _ => Err(error),
            };
        };
        let bytes = &mut buf[..read];
        if !self.offloads.virtio {
            return Ok(Some((Virtio::default(), bytes)));
        }
        match bytes.split_first_chunk_mut::<VIRTIO_LEN>() {
            Some((header, packet)) => Ok(Some((Virtio::parse(header), packet))),
            None => Ok(None),
        }
    }

    /// Writes opened packets, joined where that can be undone; returns how many the kernel refused.
    pub fn deliver(&self, buf: &mut [u8], deliveries: &[Delivery]) -> usize {
        if !self.offloads.virtio {
            return self.deliver_plain(buf, deliveries);
        }
        let mut refused = 0;
        offload::coalesce(buf, deliveries, self.offloads.udp, |write| {
            let written = if write.packets.len() < MAX_PIECES {
                let mut pieces = [IoSlice::new(&[]); MAX_PIECES];
                pieces[0] = IoSlice::new(write.head);
                for (piece, range) in pieces[1..].iter_mut().zip(write.payloads()) {
                    *piece = IoSlice::new(&buf[range]);
                }
                self.write(&pieces[..=write.packets.len()])
            } else {
                let mut pieces = vec![IoSlice::new(write.head)];
                pieces.extend(write.payloads().map(|range| IoSlice::new(&buf[range])));
                self.write(&pieces)
            };
            if written.is_err() {
                refused += write.packets.len();
            }
        });
        refused
    }

    fn deliver_plain(&self, buf: &mut [u8], deliveries: &[Delivery]) -> usize {
        let mut refused = 0;
        for one in deliveries {
            let packet = &mut buf[one.at..one.at + one.len];
            if one.is_partial {
                wire::ip::complete(packet);
            }
            refused += usize::from(self.write(&[IoSlice::new(packet)]).is_err());
        }
        refused
    }

    /// Writes one whole packet with complete checksums.
    ///
    /// # Errors
    /// When the device is down, or what is written is no IP packet.
    pub fn deliver_one(&self, packet: &[u8]) -> io::Result<()> {
        let header = Virtio::default().encode();
        let header = if self.offloads.virtio { &header[..] } else { &[] };
        self.write(&[IoSlice::new(header), IoSlice::new(packet)])
    }

    fn write(&self, pieces: &[IoSlice<'_>]) -> io::Result<()> {
        // SAFETY: an IoSlice has the layout of an iovec, and each is valid for reading.
        let written = unsafe {
            libc::writev(self.fd.as_raw_fd(), pieces.as_ptr().cast(), pieces.len() as libc::c_int)
        };
        if written < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// A header and the packets of one run.
const MAX_PIECES: usize = 65;

impl AsRawFd for Tun {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Offloads {
    const NONE: Self = Self { virtio: false, checksum: false, tcp: false, udp: false };
    const ALL: Self = Self { virtio: true, checksum: true, tcp: true, udp: true };
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let in_force = [
            (self.virtio, "virtio"),
            (self.checksum, "checksum"),
            (self.tcp, "tcp"),
            (self.udp, "udp"),
        ];
        let names: Vec<_> =
            in_force.iter().filter(|(is_on, _)| *is_on).map(|(_, name)| *name).collect();
        if names.is_empty() { f.write_str("none") } else { f.write_str(&names.join(" ")) }
    }
}

fn is_invalid(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
}

fn is_there(interface: &str) -> bool {
    Path::new("/sys/class/net").join(interface).exists()
}

impl TunError {
    fn of(doing: &'static str, name: &str, error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => Self::NoDevice,
            Some(libc::EPERM | libc::EACCES) => Self::NotPermitted,
            Some(libc::EBUSY) => Self::NameTaken(name.to_owned()),
            _ => Self::Other { doing, error },
        }
    }
}

/// `struct ifreq` as TUNSETIFF reads it: the name and the flags.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    unused: [u8; 22],
}

impl InterfaceRequest {
    fn new(name: &str, flags: u16) -> Self {
        let mut request = Self { name: [0; libc::IFNAMSIZ], flags, unused: [0; 22] };
        request.name[..name.len()].copy_from_slice(name.as_bytes());
        request
    }

    fn name(&self) -> String {
        let name = self.name.split(|&byte| byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(name).into_owned()
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests;
