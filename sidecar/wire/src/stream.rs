//! Framing of datagrams on a stream carrier.
//!
//! ```text
//! frame   0 u16 length │ 2 datagram, its first byte in 0x80–0xBF
//! ```
//!
//! `length` is little-endian and counts the datagram alone. What does not begin like a datagram of
//! ours is not our protocol (an HTTP request, a TLS hello, a scanner) and ends the connection, as
//! early as its third byte.

use std::ops::{Range, RangeInclusive};

/// Bytes of a frame before its datagram.
pub const HEADER_LEN: usize = 2;
/// Longest datagram in a frame: a jumbo packet of 9000 with every header fits, and text that is
/// read as a length (`GE`, `SS`) does not.
pub const MAX_FRAME: usize = 16_384;
/// First bytes that a datagram of ours may have.
pub const TYPES: RangeInclusive<u8> = 0x80..=0xBF;

/// The frame header of a datagram; nothing if that is empty or too long to frame.
pub fn header(datagram: &[u8]) -> Option<[u8; HEADER_LEN]> {
    let length = u16::try_from(datagram.len()).ok()?;
    (1..=MAX_FRAME).contains(&datagram.len()).then(|| length.to_le_bytes())
}

/// What a stream's bytes begin with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A whole datagram, at this range of the bytes.
    Whole(Range<usize>),
    /// The beginning of one.
    Partial,
    Malformed(Malformed),
}

/// Why a stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Malformed {
    /// A frame of length zero.
    Empty,
    /// A frame longer than [`MAX_FRAME`].
    TooLong,
    /// A frame that does not begin like a datagram of ours.
    Foreign,
}

/// Looks at the frame that begins at `at`.
pub fn next(bytes: &[u8], at: usize) -> Frame {
    let Some(length) = crate::array::<HEADER_LEN>(bytes, at).map(u16::from_le_bytes) else {
        return Frame::Partial;
    };
    let length = usize::from(length);
    if length == 0 {
        return Frame::Malformed(Malformed::Empty);
    }
    if length > MAX_FRAME {
        return Frame::Malformed(Malformed::TooLong);
    }
    let start = at.saturating_add(HEADER_LEN);
    match bytes.get(start) {
        Some(first) if !TYPES.contains(first) => return Frame::Malformed(Malformed::Foreign),
        Some(_) => {}
        None => return Frame::Partial,
    }
    let end = start.saturating_add(length);
    if end > bytes.len() { Frame::Partial } else { Frame::Whole(start..end) }
}

#[cfg(test)]
mod tests;
