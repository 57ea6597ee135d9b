//! A small TCP for stream carriers: connects through the same edges and links as everything else,
//! delivers datagrams reliably and in order, and gives up when nothing is acknowledged.
//!
//! It repeats from the first unacknowledged segment after a fixed time, doubled each time, and then two segments for each
//! that is acknowledged (slow start); that is enough to be slow under loss, as TCP is, and to break when its path does.

use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    time::Duration,
};

use bytes::Bytes;

use super::clock::SimTime;

const RTO_FIRST: Duration = Duration::from_millis(250);
const RTO_MOST: Duration = Duration::from_secs(4);
/// Nothing acknowledged for this long ends the connection (`TCP_USER_TIMEOUT` of the product).
const GIVE_UP: Duration = Duration::from_secs(15);
/// Segments in flight; more wait.
const WINDOW: u64 = 256;
/// Segments that wait; more are refused, as a full send queue does.
const QUEUE: usize = 512;

/// What travels in a packet of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub kind: SegmentKind,
    pub seq: u64,
    /// All before this have arrived.
    pub ack: u64,
    pub bytes: Bytes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentKind {
    Syn,
    SynAck,
    Data,
    Ack,
    Reset,
}

impl Segment {
    fn bare(kind: SegmentKind) -> Self {
        Self { kind, seq: 0, ack: 0, bytes: Bytes::new() }
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// We sent SYN.
    Connecting,
    Open,
    Closed,
}

/// One side of a connection.
#[derive(Debug)]
pub struct Stream {
    pub local_port: u16,
    pub remote: SocketAddr,
    pub state: State,
    waiting: VecDeque<Bytes>,
    flight: BTreeMap<u64, Bytes>,
    next_seq: u64,
    /// What was in flight at the last timeout counts as lost: all below the second, of which the first is next.
    lost: (u64, u64),
    expected: u64,
    early: BTreeMap<u64, Bytes>,
    rto: Duration,
    deadline: Option<SimTime>,
    /// When something was last acknowledged, or the first thing since then sent.
    progress: SimTime,
    out: VecDeque<Segment>,
}

impl Stream {
    pub fn connect(local_port: u16, remote: SocketAddr, now: SimTime) -> Self {
        let mut stream = Self::new(local_port, remote, State::Connecting, now);
        stream.out.push_back(Segment::bare(SegmentKind::Syn));
        stream.deadline = Some(now + RTO_FIRST);
        stream
    }

    /// Answers a SYN.
    pub fn accept(local_port: u16, remote: SocketAddr, now: SimTime) -> Self {
        let mut stream = Self::new(local_port, remote, State::Open, now);
        stream.out.push_back(Segment::bare(SegmentKind::SynAck));
        stream
    }

    fn new(local_port: u16, remote: SocketAddr, state: State, now: SimTime) -> Self {
        Self {
            local_port,
            remote,
            state,
            waiting: VecDeque::new(),
            flight: BTreeMap::new(),
            next_seq: 0,
            lost: (0, 0),
            expected: 0,
            early: BTreeMap::new(),
            rto: RTO_FIRST,
            deadline: None,
            progress: now,
            out: VecDeque::new(),
        }
    }

    /// Queues a datagram; false if the queue is full.
    pub fn send(&mut self, bytes: Bytes, now: SimTime) -> bool {
        if self.waiting.len() >= QUEUE || self.state == State::Closed {
            return false;
        }
        self.waiting.push_back(bytes);
        self.fill(now);
        true
    }

    /// Takes a segment of the other side; datagrams that are in order now come back.
    pub fn handle_segment(&mut self, segment: Segment, now: SimTime) -> Vec<Bytes> {
        match segment.kind {
            SegmentKind::Reset => self.state = State::Closed,
            SegmentKind::Syn => self.out.push_back(Segment::bare(SegmentKind::SynAck)),
            SegmentKind::SynAck => {
                if self.state == State::Connecting {
                    self.state = State::Open;
                    self.deadline = None;
                    self.rto = RTO_FIRST;
                    self.progress = now;
                    self.fill(now);
                }
            }
            SegmentKind::Ack => self.acknowledge(segment.ack, now),
            SegmentKind::Data => {
                self.acknowledge(segment.ack, now);
                if segment.seq >= self.expected {
                    self.early.insert(segment.seq, segment.bytes);
                }
                let mut ready = Vec::new();
                while let Some(bytes) = self.early.remove(&self.expected) {
                    ready.push(bytes);
                    self.expected += 1;
                }
                self.out
                    .push_back(Segment { ack: self.expected, ..Segment::bare(SegmentKind::Ack) });
                return ready;
            }
        }
        Vec::new()
    }

    pub fn handle_timeout(&mut self, now: SimTime) {
        if self.deadline.is_none_or(|deadline| now < deadline) || self.state == State::Closed {
            return;
        }
        if now >= self.progress + GIVE_UP {
            self.close();
            return;
        }
        self.rto = (self.rto * 2).min(RTO_MOST);
        self.deadline = Some(now + self.rto);
        if self.state == State::Connecting {
            self.out.push_back(Segment::bare(SegmentKind::Syn));
        } else if let Some((&first, _)) = self.flight.first_key_value() {
            self.lost = (first, self.next_seq);
            self.repeat(1);
        }
    }

    /// Sends this many of the lost segments again.
    fn repeat(&mut self, count: usize) {
        let (next, end) = self.lost;
        for (&seq, bytes) in self.flight.range(next..end.max(next)).take(count) {
            let (ack, bytes) = (self.expected, bytes.clone());
            self.out.push_back(Segment { kind: SegmentKind::Data, seq, ack, bytes });
            self.lost.0 = seq + 1;
        }
    }

    pub fn poll_timeout(&self) -> Option<SimTime> {
        self.deadline.filter(|_| self.state != State::Closed)
    }

    pub fn poll_segment(&mut self) -> Option<Segment> {
        self.out.pop_front()
    }

    /// Ends it and tells the other side, once.
    pub fn close(&mut self) {
        if self.state != State::Closed {
            self.state = State::Closed;
            self.out.push_back(Segment::bare(SegmentKind::Reset));
        }
    }

    pub fn reset() -> Segment {
        Segment::bare(SegmentKind::Reset)
    }

    fn fill(&mut self, now: SimTime) {
        while self.state == State::Open && (self.flight.len() as u64) < WINDOW {
            let Some(bytes) = self.waiting.pop_front() else { break };
            if self.flight.is_empty() {
                self.progress = now;
                self.deadline = Some(now + self.rto);
            }
            let seq = self.next_seq;
            self.next_seq += 1;
            self.flight.insert(seq, bytes.clone());
            self.out.push_back(Segment { kind: SegmentKind::Data, seq, ack: self.expected, bytes });
        }
    }

    fn acknowledge(&mut self, ack: u64, now: SimTime) {
        let before = self.flight.len();
        self.flight = self.flight.split_off(&ack);
        if self.flight.len() < before {
            self.progress = now;
            self.rto = RTO_FIRST;
            self.deadline = (!self.flight.is_empty()).then_some(now + self.rto);
            self.repeat(2 * (before - self.flight.len()));
        }
        self.fill(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::clock::Span;

    #[test]
    fn datagrams_arrive_once_and_in_order_whatever_is_lost() {
        let mut now = Duration::ZERO;
        let mut a = Stream::connect(1, "5.0.0.2:443".parse().unwrap(), now);
        let mut b = Stream::accept(443, "5.0.0.1:1".parse().unwrap(), now);
        let mut received = Vec::new();
        for n in 0..40u8 {
            assert!(a.send(Bytes::from(vec![n]), now));
        }
        let mut sent = 0;
        while received.len() < 40 {
            while let Some(segment) = a.poll_segment() {
                sent += 1;
                if sent % 3 != 0 {
                    received.extend(b.handle_segment(segment, now));
                }
            }
            while let Some(segment) = b.poll_segment() {
                a.handle_segment(segment, now);
            }
            now += 100.ms();
            a.handle_timeout(now);
            assert!(now < 60.s(), "stuck after {}", received.len());
        }
        assert!(received.iter().enumerate().all(|(n, bytes)| bytes[..] == [n as u8]));
        assert_eq!(a.state, State::Open);
    }

    #[test]
    fn a_window_that_a_hole_swallowed_is_there_soon_after() {
        let mut a = Stream::connect(1, "5.0.0.2:443".parse().unwrap(), Duration::ZERO);
        let mut b = Stream::accept(443, "5.0.0.1:1".parse().unwrap(), Duration::ZERO);
        b.poll_segment().into_iter().for_each(|segment| drop(a.handle_segment(segment, 0.s())));
        (0..200).for_each(|n| assert!(a.send(Bytes::from(vec![n]), Duration::ZERO)));
        while a.poll_segment().is_some() {}
        let mut received = 0;
        let mut now = Duration::ZERO;

        while received < 200 {
            now += 20.ms();
            a.handle_timeout(now);
            let sent: Vec<_> = std::iter::from_fn(|| a.poll_segment()).collect();
            received += sent.into_iter().map(|s| b.handle_segment(s, now).len()).sum::<usize>();
            let acks: Vec<_> = std::iter::from_fn(|| b.poll_segment()).collect();
            acks.into_iter().for_each(|ack| drop(a.handle_segment(ack, now)));
            assert!(now < 500.ms(), "stuck after {received}");
        }
    }

    #[test]
    fn a_dead_path_ends_the_connection() {
        let mut stream = Stream::connect(1, "5.0.0.2:443".parse().unwrap(), Duration::ZERO);
        while let Some(deadline) = stream.poll_timeout() {
            stream.handle_timeout(deadline);
            assert!(deadline < 30.s());
        }
        assert_eq!(stream.state, State::Closed);
    }
}
