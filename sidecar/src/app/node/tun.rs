//! The node's TUN device: had at the start, or as soon as it can be.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use netio::{
    port::tun::{Tun, TunError},
    task::TaskGroup,
    udp::UdpSockets,
    worker::Plane,
};

use super::{PREDECESSOR_GONE, PREDECESSOR_LOOK};
use crate::{
    error::Failure,
    view::{self, Facts},
};

/// How often a TUN is tried that could not be had.
const TUN_RETRY: Duration = Duration::from_secs(2);

/// The TUN that a node starts with; an agent starts without one too, since it would only be started again, and what is
/// wrong stands in its place.
pub(super) async fn first_tun(
    name: &str,
    is_agent: bool,
) -> Result<Result<Arc<Tun>, String>, Failure> {
    match open_tun(name, is_agent).await {
        Ok(tun) => Ok(Ok(Arc::new(tun))),
        Err(error) if is_agent => {
            let problem = tun_message(&error);
            tracing::warn!("{problem}");
            Ok(Err(problem))
        }
        Err(error) => {
            let (what, remedy) = tun_words(&error);
            Err(Failure::failed(what, remedy))
        }
    }
}

/// Opens the TUN. A successor waits for its predecessor to be gone, and makes it stay for its own successor.
async fn open_tun(name: &str, is_agent: bool) -> Result<Tun, TunError> {
    let until = Instant::now() + PREDECESSOR_GONE;
    let tun = loop {
        match Tun::open(name) {
            Err(TunError::NameTaken(_)) if is_agent && Instant::now() < until => {
                tokio::time::sleep(PREDECESSOR_LOOK).await;
            }
            outcome => break outcome?,
        }
    };
    if is_agent {
        tun.persist(true)
            .map_err(|error| TunError::Other { doing: "make the TUN device stay", error })?;
    }
    Ok(tun)
}

/// Takes a TUN into use whenever there is none: because the host had none before, or somebody removed it.
pub(super) fn keep_tun(
    name: String,
    mtu: u16,
    is_agent: bool,
    plane: &Arc<Plane>,
    facts: &Arc<Facts>,
    group: &TaskGroup,
) {
    let (plane, facts) = (Arc::clone(plane), Arc::clone(facts));
    group.spawn("tun", async move {
        loop {
            tokio::time::sleep(TUN_RETRY).await;
            if plane.tun().is_some() {
                continue;
            }
            match open_tun(&name, is_agent).await {
                Ok(tun) => {
                    tracing::info!("The TUN device is there again");
                    facts.tun.store(Arc::new(Ok(tun_view(&tun, &facts.sockets, mtu))));
                    plane.set_tun(Arc::new(tun));
                }
                Err(error) => facts.tun.store(Arc::new(Err(tun_message(&error)))),
            }
        }
    });
}

pub(super) fn tun_view(tun: &Tun, sockets: &UdpSockets, mtu: u16) -> view::Tun {
    let offloads = tun.offloads();
    let (gso, gro) =
        sockets.table().values().next().map_or((false, false), |socket| socket.offloads());
    view::Tun {
        name: tun.name().to_owned(),
        mtu,
        queues: 1,
        offload: view::Offload {
            checksum: offloads.checksum,
            tcp: offloads.tcp,
            udp: offloads.udp,
            udp_gso: gso,
            udp_gro: gro,
        },
    }
}

fn tun_message(error: &TunError) -> String {
    let (what, remedy) = tun_words(error);
    format!("{what}. {remedy}")
}

/// What is wrong with the TUN device, and what to do about it, as two sentences.
fn tun_words(error: &TunError) -> (String, String) {
    let text = error.to_string();
    match text.split_once(": ") {
        Some((what, remedy)) if !matches!(error, TunError::Other { .. }) => {
            (format!("Cannot make the TUN device: {what}"), sentence(remedy))
        }
        Some(_) | None => {
            (format!("Cannot make the TUN device: {text}"), "See `easynet doctor`.".to_owned())
        }
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).chain(['.']).collect()
}
