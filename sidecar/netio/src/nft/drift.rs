//! Tells when our table changes: the kernel names the table in what it says of it.
//!
//! What changed is not read from the notification; whoever is told looks at the table. Our own changes are told too:
//! they leave nothing to mend. Where the kernel gives no such socket, the regular look is all there is.

use std::{future::poll_fn, io, time::Duration};

use bytes::BytesMut;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER};
use tokio::sync::mpsc;

use super::table;
use crate::task::TaskGroup;

/// `NFNLGRP_NFTABLES` of linux/netfilter/nfnetlink.h.
const GROUP: u32 = 7;
/// Notifications come in batches of up to this many bytes.
const BATCH: usize = 64 * 1024;
/// After a socket failed.
const RETRY: Duration = Duration::from_secs(5);

/// Starts to watch the current network namespace; the task joins `group`. Changes that nobody took note of yet are one.
pub fn watch(tun: &str, group: &TaskGroup) -> mpsc::Receiver<()> {
    let (told, changes) = mpsc::channel(1);
    let name = format!("{}\0", table(tun));
    group.spawn("nft drift", async move {
        loop {
            if let Err(error) = follow(name.as_bytes(), &told).await {
                tracing::debug!(%error, "Cannot watch the firewall");
            }
            // Whatever happened meanwhile was not seen.
            let _ = told.try_send(());
            tokio::time::sleep(RETRY).await;
        }
    });
    changes
}

async fn follow(name: &[u8], told: &mpsc::Sender<()>) -> io::Result<()> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, 0))?;
    socket.socket_ref().add_membership(GROUP)?;
    let mut batch = BytesMut::with_capacity(BATCH);
    loop {
        batch.clear();
        match poll_fn(|context| socket.poll_recv(context, &mut batch)).await {
            Ok(()) if !batch.windows(name.len()).any(|window| window == name) => continue,
            Ok(()) => {}
            // Too many notifications at once; ours may have been among them.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            Err(error) => return Err(error),
        }
        // Full: it was told already.
        let _ = told.try_send(());
    }
}
