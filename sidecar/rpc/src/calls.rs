//! The caller's side: calls under way, their answers so far, their deadlines.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use prost::Message;

use crate::frame::{Failure, Frame, Kind, Reason};

/// Calls under way at once, per peer.
pub const MAX_CALLS: usize = 64;
/// Longest answer that is put together.
pub const MAX_ANSWER: usize = 32 * 1024 * 1024;

/// Outcome of a call.
pub type Outcome = Result<Vec<u8>, Failure>;

#[derive(Debug)]
struct Call {
    deadline: Instant,
    answer: Vec<u8>,
}

/// Calls to one peer.
#[derive(Debug, Default)]
pub struct Calls {
    next: u64,
    calls: BTreeMap<u64, Call>,
}

impl Calls {
    /// Begins a call; the frame is to be sent.
    ///
    /// # Errors
    /// [`Reason::Busy`] when [`MAX_CALLS`] are under way.
    pub fn begin(
        &mut self,
        method: u32,
        body: Vec<u8>,
        within: Duration,
        now: Instant,
    ) -> Result<Frame, Failure> {
        if self.calls.len() >= MAX_CALLS {
            return Err(Failure {
                retry_ms: 100,
                ..Failure::new(Reason::Busy, "too many calls under way")
            });
        }
        self.next += 1;
        self.calls.insert(self.next, Call { deadline: now + within, answer: Vec::new() });
        let deadline_ms = u32::try_from(within.as_millis()).unwrap_or(u32::MAX);
        Ok(Frame { call: self.next, kind: Kind::Request as i32, method, deadline_ms, body })
    }

    /// Takes a frame; a call that ends by it is returned with its outcome. Frames of unknown calls are ignored: they were
    /// cancelled.
    pub fn handle(&mut self, frame: Frame) -> Option<(u64, Outcome)> {
        let call = self.calls.get_mut(&frame.call)?;
        let outcome = match frame.kind() {
            Kind::Stream | Kind::Response if call.answer.len() + frame.body.len() > MAX_ANSWER => {
                Err(Failure::new(Reason::Malformed, "the answer is too long"))
            }
            Kind::Stream => {
                call.answer.extend_from_slice(&frame.body);
                return None;
            }
            Kind::Response => {
                call.answer.extend_from_slice(&frame.body);
                Ok(std::mem::take(&mut call.answer))
            }
            Kind::Error => Err(Failure::decode(&*frame.body).unwrap_or_else(|_| {
                Failure::new(Reason::Malformed, "an error that does not decode")
            })),
            Kind::Request | Kind::Cancel | Kind::Unknown => return None,
        };
        self.calls.remove(&frame.call);
        Some((frame.call, outcome))
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.calls.values().map(|call| call.deadline).min()
    }

    /// Ends what is late; the cancels are to be sent.
    pub fn handle_timeout(&mut self, now: Instant) -> Vec<(u64, Frame)> {
        let late: Vec<u64> =
            self.calls.iter().filter(|(_, call)| call.deadline <= now).map(|(id, _)| *id).collect();
        late.into_iter().filter_map(|id| Some((id, self.cancel(id)?))).collect()
    }

    /// Gives a call up; the frame tells the other side.
    pub fn cancel(&mut self, call: u64) -> Option<Frame> {
        self.calls.remove(&call)?;
        Some(Frame { call, kind: Kind::Cancel as i32, ..Frame::default() })
    }

    pub fn len(&self) -> usize {
        self.calls.len()
    }

    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame;

    #[test]
    fn answers_come_together_and_late_ones_are_cancelled() {
        let now = Instant::now();
        let mut calls = Calls::default();
        let first = calls.begin(1, vec![], Duration::from_secs(1), now).unwrap();
        let second = calls.begin(1, vec![], Duration::from_secs(9), now).unwrap();
        let body = vec![1; frame::PIECE + 1];
        let frames = frame::answer(second.call, &body);

        assert_eq!(calls.handle(frames[0].clone()), None);
        assert_eq!(calls.handle(frames[1].clone()), Some((second.call, Ok(body))));
        let late = calls.handle_timeout(now + Duration::from_secs(1));
        assert_eq!((late.len(), late[0].0, late[0].1.kind()), (1, first.call, Kind::Cancel));
        assert_eq!(calls.handle(frame::failure(first.call, &Failure::default())), None);
        assert!(calls.is_empty());
    }

    #[test]
    fn more_calls_than_the_bound_are_busy() {
        let now = Instant::now();
        let mut calls = Calls::default();
        for _ in 0..MAX_CALLS {
            calls.begin(1, vec![], Duration::from_secs(1), now).unwrap();
        }

        let refused = calls.begin(1, vec![], Duration::from_secs(1), now).unwrap_err();

        assert_eq!(refused.reason(), Reason::Busy);
    }
}
