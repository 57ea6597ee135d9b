//! Control records as they travel: whole, or in pieces where they do not fit a datagram.

use std::time::Instant;

use prost::Message;
use session::transport::{OpenError, Session};
use wire::{
    control::{Body, Chunk, Control},
    datagram::DATA_HEADER_LEN,
    packet::Kind,
};

use crate::{drops::DropReason, reassembly::Reassembly};

/// Bytes of one control record that fit any path: 1200 less the underlay's headers, TRANSIT and DATA.
const RECORD_MOST: usize = 1050;
/// Longest control record that is taken in pieces: an LSA and its frame.
const CHUNKED_MOST: usize = 16 * 1024;

/// The plaintexts to seal for `body`; `id` tells the pieces of one record from those of another.
pub(crate) fn encode(body: Body, id: u64) -> Vec<Vec<u8>> {
    let bytes = Control::from(body).encode_to_vec();
    if bytes.len() <= RECORD_MOST {
        return vec![bytes];
    }
    let count = u32::try_from(bytes.len().div_ceil(RECORD_MOST)).unwrap_or(u32::MAX);
    (0..count)
        .zip(bytes.chunks(RECORD_MOST))
        .map(|(index, piece)| {
            Control::from(Body::Chunk(Chunk { id, index, count, bytes: piece.to_vec() }))
                .encode_to_vec()
        })
        .collect()
}

/// Opens a DATA datagram that came as it was: the tables of a worker are a moment older than a new session.
pub(crate) fn open(
    session: &Session,
    datagram: &[u8],
    now: Instant,
) -> Result<(Kind, Vec<u8>), DropReason> {
    if session.is_expired(now) {
        return Err(DropReason::KeyExpired);
    }
    let mut datagram = datagram.to_vec();
    let opened = session.open(&mut datagram).map_err(|error| match error {
        OpenError::Malformed => DropReason::Malformed,
        OpenError::Forged => DropReason::Forged,
    })?;
    if !session.accept_one(opened.counter) {
        return Err(DropReason::Replayed);
    }
    datagram.truncate(DATA_HEADER_LEN + opened.len);
    Ok((opened.kind, datagram.split_off(DATA_HEADER_LEN)))
}

/// What a record's plaintext says.
pub(crate) enum Decoded {
    Body(Body),
    /// A piece, or a body of a later version: nothing to do.
    Nothing,
    Malformed,
}

/// Decodes a plaintext; pieces are put together in `chunks`.
pub(crate) fn decode(plaintext: &[u8], chunks: &mut Reassembly) -> Decoded {
    match Control::decode(plaintext) {
        Ok(Control { body: Some(Body::Chunk(chunk)) }) => match chunks.take(chunk, CHUNKED_MOST) {
            None => Decoded::Nothing,
            Some(whole) => match Control::decode(&*whole) {
                Ok(Control { body: Some(Body::Chunk(_)) }) | Err(_) => Decoded::Malformed,
                Ok(Control { body: Some(body) }) => Decoded::Body(body),
                Ok(Control { body: None }) => Decoded::Nothing,
            },
        },
        Ok(Control { body: Some(body) }) => Decoded::Body(body),
        Ok(Control { body: None }) => Decoded::Nothing,
        Err(_) => Decoded::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use wire::control::{LsaCopy, Push};

    use super::*;

    #[test]
    fn a_large_record_travels_in_pieces() {
        let copy = LsaCopy { age_s: 3, container: vec![7; 5000].into() };
        let body = Body::Push(Push { copies: vec![copy] });
        let mut chunks = Reassembly::default();
        let mut whole = Vec::new();
        let pieces = encode(body.clone(), 9);
        assert!(pieces.len() == 5 && pieces.iter().all(|piece| piece.len() < RECORD_MOST + 30));
        for piece in pieces {
            match decode(&piece, &mut chunks) {
                Decoded::Body(body) => whole.push(body),
                Decoded::Nothing => {}
                Decoded::Malformed => panic!("malformed"),
            }
        }

        assert_eq!(whole, [body]);
    }
}
