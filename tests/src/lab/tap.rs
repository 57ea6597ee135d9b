//! What a host's interfaces carry, kept to be searched.

use std::{
    io::{ErrorKind, Read},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{Host, inside};

/// All protocols (`ETH_P_ALL`), in network order.
const EVERYTHING: i32 = 0x0003_u16.to_be() as i32;
/// Bytes kept; no test here carries more.
const MOST: usize = 64 << 20;

/// Records every frame on every interface of a host until it is stopped.
#[derive(Debug)]
pub struct Tap {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Vec<u8>>>,
}

impl Tap {
    /// Starts to record.
    ///
    /// # Panics
    /// Without root.
    pub fn start(host: &Host) -> Self {
        let mut socket = inside(host, || {
            let protocol = Some(Protocol::from(EVERYTHING));
            Socket::new(Domain::PACKET, Type::RAW, protocol).expect("a packet socket")
        });
        socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        let _ = socket.set_recv_buffer_size(8 << 20);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut kept = Vec::new();
            let mut frame = vec![0; 1 << 17];
            while !stopped.load(Ordering::Relaxed) {
                match socket.read(&mut frame) {
                    Ok(len) if kept.len() + len <= MOST => kept.extend_from_slice(&frame[..len]),
                    Ok(_) => panic!("more than {MOST} bytes on the wire"),
                    Err(error)
                        if matches!(
                            error.kind(),
                            ErrorKind::WouldBlock | ErrorKind::Interrupted
                        ) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            kept
        });
        Self { stop, thread: Some(thread) }
    }

    /// Stops, and gives all that was seen.
    ///
    /// # Panics
    /// When it could not keep up.
    pub fn stop(mut self) -> Vec<u8> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().map(|thread| thread.join().expect("the tap")).unwrap_or_default()
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
