//! One frame: over byte streams `u32 length, little-endian │ protobuf`.

use prost::Message;

/// Longest frame; a longer answer goes in [`Kind::Stream`] pieces.
pub const MAX_FRAME: usize = 256 * 1024;
/// Bytes of an answer in one frame.
pub const PIECE: usize = 64 * 1024;

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Kind {
    Unknown = 0,
    Request = 1,
    /// The (last piece of the) answer.
    Response = 2,
    /// A piece of an answer; more follow.
    Stream = 3,
    /// The caller does not wait any more.
    Cancel = 4,
    Error = 5,
}

/// A frame of one call.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Frame {
    /// Chosen by the caller, unique among its calls under way.
    #[prost(uint64, tag = "1")]
    pub call: u64,
    #[prost(enumeration = "Kind", tag = "2")]
    pub kind: i32,
    /// In a request: which service (high 16 bits) and method.
    #[prost(uint32, tag = "3")]
    pub method: u32,
    /// In a request: milliseconds that the caller still waits.
    #[prost(uint32, tag = "4")]
    pub deadline_ms: u32,
    #[prost(bytes = "vec", tag = "5")]
    pub body: Vec<u8>,
}

/// Why a call has no answer.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Failure {
    #[prost(enumeration = "Reason", tag = "1")]
    pub reason: i32,
    #[prost(string, tag = "2")]
    pub message: String,
    /// With [`Reason::Busy`]: when to ask again.
    #[prost(uint32, tag = "3")]
    pub retry_ms: u32,
}

impl Failure {
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason: reason as i32, message: message.into(), retry_ms: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Reason {
    /// The call was understood and failed.
    Failed = 0,
    /// Too many calls under way.
    Busy = 1,
    /// The deadline passed.
    Late = 2,
    /// No such method, or not for this caller.
    NotAllowed = 3,
    Malformed = 4,
}

impl Frame {
    /// The frame with its length before it.
    pub fn to_stream(&self) -> Vec<u8> {
        let body = self.encode_to_vec();
        let mut bytes = Vec::with_capacity(body.len() + 4);
        bytes.extend_from_slice(&u32::try_from(body.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend_from_slice(&body);
        bytes
    }
}

/// Takes the next whole frame off the front of `buffer`: `Ok(None)` if more bytes are needed.
///
/// # Errors
/// [`Reason::Malformed`] ends the connection: there is no telling where the next frame begins.
pub fn take(buffer: &mut Vec<u8>) -> Result<Option<Frame>, Reason> {
    let Some(length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > MAX_FRAME {
        return Err(Reason::Malformed);
    }
    let Some(body) = buffer.get(4..4 + length) else { return Ok(None) };
    let frame = Frame::decode(body).map_err(|_| Reason::Malformed)?;
    buffer.drain(..4 + length);
    Ok(Some(frame))
}

/// The frames of an answer.
pub fn answer(call: u64, body: &[u8]) -> Vec<Frame> {
    let mut pieces: Vec<&[u8]> = body.chunks(PIECE).collect();
    let last = pieces.pop().unwrap_or_default();
    let frame = |kind: Kind, body: &[u8]| Frame {
        call,
        kind: kind as i32,
        body: body.to_vec(),
        ..Frame::default()
    };
    let mut frames: Vec<Frame> =
        pieces.into_iter().map(|piece| frame(Kind::Stream, piece)).collect();
    frames.push(frame(Kind::Response, last));
    frames
}

/// The frame of a failure.
pub fn failure(call: u64, failure: &Failure) -> Frame {
    Frame { call, kind: Kind::Error as i32, body: failure.encode_to_vec(), ..Frame::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_cut_and_large_answers_are_cut_up() {
        let body = vec![7; PIECE * 2 + 5];
        let stream: Vec<u8> = answer(9, &body).iter().flat_map(Frame::to_stream).collect();
        let mut buffer = Vec::new();
        let mut frames = Vec::new();
        for piece in stream.chunks(1000) {
            buffer.extend_from_slice(piece);
            while let Some(frame) = take(&mut buffer).unwrap() {
                frames.push(frame);
            }
        }

        assert_eq!(
            frames.iter().map(Frame::kind).collect::<Vec<_>>(),
            [Kind::Stream, Kind::Stream, Kind::Response]
        );
        assert_eq!(frames.iter().flat_map(|frame| frame.body.clone()).collect::<Vec<_>>(), body);
    }

    #[test]
    fn a_length_beyond_the_bound_ends_it() {
        assert_eq!(take(&mut vec![0xff; 8]), Err(Reason::Malformed));
        assert_eq!(take(&mut vec![1, 0, 0]), Ok(None));
        assert_eq!(take(&mut vec![2, 0, 0, 0, 0xff, 0xff]), Err(Reason::Malformed));
    }
}
