//! What waits to be sent over one tunnel.
//!
//! Framed datagrams in chunks that the tunnel's task writes whole. Control leaves before data, and
//! data in chunks small enough that control never waits behind more than one of them. When there is
//! no room, data drops the newest, for IP is lossy and the oldest is the next to go; control drops
//! the oldest, for the newest control message says more.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;
use wire::stream;

/// Bytes that may wait for one tunnel, what is being written included: 40 ms at 100 Mbit/s.
pub const QUEUE_BOUND: usize = 512 * 1024;
/// Of them, kept free of data so that control finds room.
const CONTROL_RESERVE: usize = 64 * 1024;
/// Data is written in pieces of this size: control waits behind one at most.
const CHUNK: usize = 32 * 1024;

/// What leaves first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Precedence {
    Control,
    Data,
}

/// What became of the datagrams of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub queued: usize,
    pub dropped: usize,
}

/// A look at a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueState {
    /// Bytes that wait, what is being written included.
    pub bytes: usize,
    pub dropped: u64,
}

#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    filled: Notify,
}

#[derive(Default)]
struct Waiting {
    control: VecDeque<Vec<u8>>,
    data: VecDeque<Vec<u8>>,
    control_bytes: usize,
    data_bytes: usize,
    /// Bytes handed to the writer and not yet taken by the kernel.
    writing: usize,
    dropped: u64,
    /// The last written chunk's memory, for the next one.
    spare: Vec<u8>,
}

impl Queue {
    /// Frames and queues datagrams.
    pub(super) fn push<'a>(
        &self,
        precedence: Precedence,
        datagrams: impl IntoIterator<Item = &'a [u8]>,
    ) -> Sent {
        let mut sent = Sent::default();
        let mut waiting = self.lock();
        for datagram in datagrams {
            let queued = match precedence {
                Precedence::Control => waiting.push_control(datagram),
                Precedence::Data => waiting.push_data(datagram),
            };
            sent.queued += usize::from(queued);
            sent.dropped += usize::from(!queued);
        }
        waiting.dropped += sent.dropped as u64;
        drop(waiting);
        if sent.queued > 0 {
            self.filled.notify_one();
        }
        sent
    }

    /// Waits for the next bytes to write; what the previous call returned counts as written.
    pub(super) async fn next(&self, written: Vec<u8>) -> Vec<u8> {
        let mut written = Some(written);
        loop {
            if let Some(chunk) = self.lock().take(written.take()) {
                return chunk;
            }
            self.filled.notified().await;
        }
    }

    /// The next bytes to write, if there are any.
    pub(super) fn take(&self, written: Vec<u8>) -> Option<Vec<u8>> {
        self.lock().take(Some(written))
    }

    pub(super) fn state(&self) -> QueueState {
        let waiting = self.lock();
        QueueState { bytes: waiting.bytes(), dropped: waiting.dropped }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    fn bytes(&self) -> usize {
        self.control_bytes + self.data_bytes + self.writing
    }

    fn push_data(&mut self, datagram: &[u8]) -> bool {
        let Some(header) = stream::header(datagram) else { return false };
        let framed = header.len() + datagram.len();
        let of_data = self.data_bytes + self.writing + framed;
        if of_data > QUEUE_BOUND - CONTROL_RESERVE || self.bytes() + framed > QUEUE_BOUND {
            return false;
        }
        if self.data.back().is_none_or(|chunk| chunk.len() + framed > CHUNK) {
            let mut chunk = std::mem::take(&mut self.spare);
            chunk.clear();
            self.data.push_back(chunk);
        }
        if let Some(chunk) = self.data.back_mut() {
            chunk.extend_from_slice(&header);
            chunk.extend_from_slice(datagram);
        }
        self.data_bytes += framed;
        true
    }

    fn push_control(&mut self, datagram: &[u8]) -> bool {
        let Some(header) = stream::header(datagram) else { return false };
        let framed = [&header[..], datagram].concat();
        while self.bytes() + framed.len() > QUEUE_BOUND {
            let Some(oldest) = self.control.pop_front() else { return false };
            self.control_bytes -= oldest.len();
            self.dropped += 1;
        }
        self.control_bytes += framed.len();
        self.control.push_back(framed);
        true
    }

    fn take(&mut self, written: Option<Vec<u8>>) -> Option<Vec<u8>> {
        if let Some(written) = written {
            self.writing = 0;
            // An idle tunnel keeps no memory.
            self.spare = if self.data.is_empty() { Vec::new() } else { written };
        }
        let chunk = if self.control.is_empty() {
            let chunk = self.data.pop_front()?;
            self.data_bytes -= chunk.len();
            chunk
        } else {
            self.control_bytes = 0;
            self.control.drain(..).flatten().collect()
        };
        self.writing = chunk.len();
        Some(chunk)
    }
}

#[cfg(test)]
mod tests;
