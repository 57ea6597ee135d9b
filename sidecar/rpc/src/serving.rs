//! The answerer's side: which calls run, and until when.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::frame::{Failure, Frame, Kind, Reason};

/// Calls that run at once, per peer, and bytes of their requests.
pub const MAX_RUNNING: usize = 64;
pub const MAX_BYTES: usize = 256 * 1024;
/// No call runs longer, whatever its caller says.
const LONGEST: Duration = Duration::from_secs(120);

/// What a frame asks for.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Run it, until then at the latest.
    Run {
        call: u64,
        method: u32,
        body: Vec<u8>,
        until: Instant,
    },
    /// Stop it; nobody waits.
    Stop {
        call: u64,
    },
    /// Refuse it with this frame.
    Refuse(Frame),
    Nothing,
}

/// The calls of one peer that run here.
#[derive(Debug, Default)]
pub struct Serving {
    running: BTreeMap<u64, usize>,
    bytes: usize,
}

impl Serving {
    pub fn handle(&mut self, frame: Frame, now: Instant) -> Action {
        match frame.kind() {
            Kind::Request => {
                if self.running.contains_key(&frame.call) {
                    let failure = Failure::new(Reason::Malformed, "the call runs already");
                    return Action::Refuse(crate::frame::failure(frame.call, &failure));
                }
                let bytes = frame.body.len();
                if self.running.len() >= MAX_RUNNING || self.bytes + bytes > MAX_BYTES {
                    let failure = Failure {
                        retry_ms: 100,
                        ..Failure::new(Reason::Busy, "too many calls run")
                    };
                    return Action::Refuse(crate::frame::failure(frame.call, &failure));
                }
                self.running.insert(frame.call, bytes);
                self.bytes += bytes;
                let within = Duration::from_millis(u64::from(frame.deadline_ms)).min(LONGEST);
                Action::Run {
                    call: frame.call,
                    method: frame.method,
                    body: frame.body,
                    until: now + within,
                }
            }
            Kind::Cancel => {
                self.ended(frame.call);
                Action::Stop { call: frame.call }
            }
            Kind::Response | Kind::Stream | Kind::Error | Kind::Unknown => Action::Nothing,
        }
    }

    /// A call ended; true if it still ran, so its answer is wanted.
    pub fn ended(&mut self, call: u64) -> bool {
        match self.running.remove(&call) {
            Some(bytes) => {
                self.bytes -= bytes;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(call: u64, bytes: usize) -> Frame {
        Frame {
            call,
            kind: Kind::Request as i32,
            method: 3,
            deadline_ms: 500,
            body: vec![0; bytes],
        }
    }

    #[test]
    fn calls_run_within_bounds_and_deadlines() {
        let now = Instant::now();
        let mut serving = Serving::default();
        let until = now + Duration::from_millis(500);
        assert_eq!(
            serving.handle(request(1, 2), now),
            Action::Run { call: 1, method: 3, body: vec![0; 2], until }
        );
        assert!(matches!(serving.handle(request(1, 2), now), Action::Refuse(_)));
        assert!(matches!(serving.handle(request(2, MAX_BYTES), now), Action::Refuse(_)));

        let cancel = Frame { call: 1, kind: Kind::Cancel as i32, ..Frame::default() };
        assert_eq!(serving.handle(cancel, now), Action::Stop { call: 1 });
        assert!(!serving.ended(1));
        assert!(matches!(serving.handle(request(2, MAX_BYTES), now), Action::Run { .. }));
    }
}
