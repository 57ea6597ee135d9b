//! Tells when somebody else changes what is ours: a route in our table, a rule to it, the TUN or its addresses.
//!
//! The kernel says who asked for a change, so our own are passed over. A notification says only *that* something
//! changed; lost ones (ENOBUFS) count as one.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use futures_util::StreamExt;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        link::{LinkAttribute, LinkMessage},
        route::{RouteAttribute, RouteMessage},
        rule::{RuleAttribute, RuleMessage},
    },
};
use tokio::sync::mpsc;

use super::table_of;
use crate::task::TaskGroup;

/// After a socket failed.
const RETRY: Duration = Duration::from_secs(1);

/// What tells our own changes from those of others.
#[derive(Debug, Default)]
pub struct Own {
    /// The netlink port of our socket.
    pub(super) port: AtomicU32,
    /// The TUN's index, 0 if it is not known.
    pub(super) index: AtomicU32,
}

/// Starts to watch the current network namespace; the task joins `group`. Changes that nobody took note of yet are one.
pub fn watch(tun: &str, own: Arc<Own>, group: &TaskGroup) -> mpsc::Receiver<()> {
    let (told, changes) = mpsc::channel(1);
    let (tun, table) = (tun.to_owned(), table_of(tun));
    group.spawn("netlink drift", async move {
        loop {
            if let Err(error) = follow(&tun, table, &own, &told).await {
                tracing::debug!(%error, "Cannot watch what is ours");
            }
            // Whatever happened meanwhile was not seen.
            let _ = told.try_send(());
            tokio::time::sleep(RETRY).await;
        }
    });
    changes
}

async fn follow(tun: &str, table: u32, own: &Own, told: &mpsc::Sender<()>) -> anyhow::Result<()> {
    let (notifying, _keep_open, mut events) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ])?;
    let following = async {
        loop {
            let (event, _) = events.next().await.context("the notifications ended")?;
            if is_drift(&event, tun, table, own) {
                // Full: it was told already.
                let _ = told.try_send(());
            }
        }
    };
    tokio::select! {
        outcome = following => outcome,
        () = notifying => anyhow::bail!("the notification socket failed"),
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
fn is_drift(event: &NetlinkMessage<RouteNetlinkMessage>, tun: &str, table: u32, own: &Own) -> bool {
    let is_ours = event.header.port_number != 0
        && event.header.port_number == own.port.load(Ordering::Relaxed);
    let index = own.index.load(Ordering::Relaxed);
    let NetlinkPayload::InnerMessage(message) = &event.payload else { return true };
    match message {
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route) => {
            !is_ours && table_of_route(route) == table
        }
        RouteNetlinkMessage::NewRule(rule) | RouteNetlinkMessage::DelRule(rule) => {
            !is_ours && table_of_rule(rule) == table
        }
        RouteNetlinkMessage::NewAddress(address) | RouteNetlinkMessage::DelAddress(address) => {
            !is_ours && address.header.index == index
        }
        // Of links the kernel does not say who; ours change seldom.
        RouteNetlinkMessage::NewLink(link) | RouteNetlinkMessage::DelLink(link) => {
            link.header.index == index || has_name(link, tun)
        }
        _ => false,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
fn table_of_route(route: &RouteMessage) -> u32 {
    let found = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    found.unwrap_or(u32::from(route.header.table))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
fn table_of_rule(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|attribute| match attribute {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    found.unwrap_or(u32::from(rule.header.table))
}

fn has_name(link: &LinkMessage, name: &str) -> bool {
    link.attributes
        .iter()
        .any(|attribute| matches!(attribute, LinkAttribute::IfName(found) if found == name))
}
