//! Watches the host's network.
//!
//! The kernel tells of changes to links, addresses and routes; after a moment without more of them
//! everything is read anew and published if it differs. Events only say *that* something changed, so
//! a lost one (the kernel's ENOBUFS) costs nothing but that reading; once a minute it is done anyway.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use anyhow::Context as _;
use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::{
    MulticastGroup,
    packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::AddressMessage,
        link::{LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
        route::{RouteAttribute, RouteHeader, RouteMessage, RouteType},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};

use crate::{netlink, task::TaskGroup};

/// Changes come in bursts: read when there was none for this long …
const QUIET: Duration = Duration::from_millis(50);
/// … but not later than this after the first.
const DEBOUNCE: Duration = Duration::from_millis(200);
/// Read even without an event: a back-stop.
const RESYNC: Duration = Duration::from_secs(60);
/// After a socket or a reading failed.
const RETRY: Duration = Duration::from_secs(1);
/// A dump that takes this long is lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

/// The host's network, as far as the mesh cares.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interfaces {
    pub list: Vec<Interface>,
    /// Whether the main table has a default route, by family.
    pub default_v4: bool,
    pub default_v6: bool,
}

/// One interface, by index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub index: u32,
    pub mtu: u32,
    /// Administratively up, with a carrier.
    pub up: bool,
    pub kind: Kind,
    /// Those of global or private scope, not the link-local ones.
    pub addresses: BTreeSet<IpNet>,
}

/// What an interface is to the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Peers may reach us by its addresses.
    Underlay,
    Loopback,
    /// A mesh or VPN: a path over it would run inside a tunnel.
    Tunnel,
    /// Of containers, pods or virtual machines: its addresses mean nothing elsewhere.
    Container,
}

/// Starts to watch the current network namespace; the task joins `group`.
pub fn watch(group: &TaskGroup) -> watch::Receiver<Interfaces> {
    let (publish, published) = watch::channel(Interfaces::default());
    group.spawn("netmon", async move {
        loop {
            if let Err(error) = follow(&publish).await {
                tracing::debug!(%error, "Cannot watch the network");
            }
            tokio::time::sleep(RETRY).await;
        }
    });
    published
}

/// Publishes changes until a socket fails. Questions have a socket of their own: the answers would
/// be lost with the notifications when these are too many.
async fn follow(publish: &watch::Sender<Interfaces>) -> anyhow::Result<()> {
    let (notifying, _keep_open, mut events) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ])?;
    let (answering, handle, _) = rtnetlink::new_connection_with_strict_check()?;
    let following = async {
        loop {
            let found = read(&handle).await?;
            publish.send_if_modified(|known| {
                let changed = *known != found;
                if changed {
                    tracing::debug!(interfaces = found.list.len(), "The network changed");
                    *known = found;
                }
                changed
            });
            let next = Instant::now() + RESYNC;
            while let Ok(event) = timeout_at(next, events.next()).await {
                let (event, _) = event.context("the notifications ended")?;
                if concerns_us(&event.payload) {
                    let deadline = Instant::now() + DEBOUNCE;
                    while let Ok(Ok(Some(_))) =
                        timeout_at(deadline, timeout(QUIET, events.next())).await
                    {
                    }
                    break;
                }
            }
        }
    };
    tokio::select! {
        outcome = following => outcome,
        () = notifying => anyhow::bail!("the notification socket failed"),
        () = answering => anyhow::bail!("the request socket failed"),
    }
}

/// Whether a notification is worth a look: mesh routes, which are ours and many, are not. Lost
/// notifications are.
fn concerns_us(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    let NetlinkPayload::InnerMessage(
        RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
    ) = payload
    else {
        return true;
    };
    route.header.table == RouteHeader::RT_TABLE_MAIN
}

impl Interfaces {
    /// Addresses by which peers may reach us directly.
    pub fn candidates(&self) -> impl Iterator<Item = IpAddr> {
        self.list
            .iter()
            .filter(|interface| interface.up && interface.kind == Kind::Underlay)
            .flat_map(|interface| interface.addresses.iter().map(IpNet::addr))
    }
}

/// What an interface is, by its name and the kind the kernel tells (`veth`, `bridge`, …).
pub fn classify(name: &str, kind: Option<&str>) -> Kind {
    const TUNNELS: [&str; 11] =
        ["easynet", "ez", "wg", "tun", "tap", "tailscale", "zt", "nebula", "utun", "ppp", "ipsec"];
    const CONTAINERS: [&str; 19] = [
        "docker",
        "cni",
        "veth",
        "cali",
        "flannel",
        "cilium",
        "lxc",
        "kube-",
        "virbr",
        "br-",
        "vnet",
        "podman",
        "nodelocaldns",
        "antrea",
        "weave",
        "ovn",
        "vxlan",
        "dummy",
        "nerdctl",
    ];
    const TUNNEL_KINDS: [&str; 14] = [
        "tun",
        "wireguard",
        "gre",
        "gretap",
        "ip6gre",
        "ip6gretap",
        "ipip",
        "sit",
        "ip6tnl",
        "vti",
        "vti6",
        "xfrm",
        "geneve",
        "vxlan",
    ];
    if name == "lo" {
        return Kind::Loopback;
    }
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    if begins(&CONTAINERS) {
        return Kind::Container;
    }
    if begins(&TUNNELS) || kind.is_some_and(|kind| TUNNEL_KINDS.contains(&kind)) {
        return Kind::Tunnel;
    }
    // A veth that is not named so is the way out of a container; a bridge may carry the host's own
    // address. Both are underlay.
    match kind {
        Some("dummy" | "netkit") => Kind::Container,
        Some(_) | None => Kind::Underlay,
    }
}

async fn read(handle: &rtnetlink::Handle) -> anyhow::Result<Interfaces> {
    let links = dump(handle, RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
    let addresses =
        dump(handle, RouteNetlinkMessage::GetAddress(AddressMessage::default())).await?;
    let mut list: BTreeMap<u32, Interface> =
        links.iter().filter_map(interface).map(|found| (found.index, found)).collect();
    for interface in list.values_mut() {
        let own = |message| netlink::address(message, interface.index);
        interface.addresses = addresses.iter().filter_map(own).collect();
    }
    Ok(Interfaces {
        list: list.into_values().collect(),
        default_v4: has_default(handle, AddressFamily::Inet).await?,
        default_v6: has_default(handle, AddressFamily::Inet6).await?,
    })
}

async fn has_default(handle: &rtnetlink::Handle, family: AddressFamily) -> anyhow::Result<bool> {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.attributes.push(RouteAttribute::Table(u32::from(RouteHeader::RT_TABLE_MAIN)));
    let routes = dump(handle, RouteNetlinkMessage::GetRoute(message)).await?;
    Ok(routes.iter().any(|route| {
        let RouteNetlinkMessage::NewRoute(route) = route else { return false };
        let leads_out = |attribute: &RouteAttribute| {
            matches!(
                attribute,
                RouteAttribute::Oif(_)
                    | RouteAttribute::Gateway(_)
                    | RouteAttribute::MultiPath(_)
                    | RouteAttribute::NhId(_)
            )
        };
        route.header.destination_prefix_length == 0
            && route.header.table == RouteHeader::RT_TABLE_MAIN
            && route.header.kind == RouteType::Unicast
            && route.attributes.iter().any(leads_out)
    }))
}

async fn dump(
    handle: &rtnetlink::Handle,
    message: RouteNetlinkMessage,
) -> anyhow::Result<Vec<RouteNetlinkMessage>> {
    let mut message = NetlinkMessage::from(message);
    message.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    let mut replies = handle.clone().request(message)?;
    let mut answers = Vec::new();
    while let Some(reply) = timeout(REPLY_TIMEOUT, replies.next()).await? {
        if let NetlinkPayload::Error(error) = &reply.payload
            && error.code.is_some()
        {
            // A kernel without this family, or without this table, has none of it.
            if matches!(error.raw_code().abs(), libc::EAFNOSUPPORT | libc::ENOENT) {
                return Ok(answers);
            }
            return Err(error.to_io().into());
        }
        if let NetlinkPayload::InnerMessage(answer) = reply.payload {
            answers.push(answer);
        }
    }
    Ok(answers)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
fn interface(message: &RouteNetlinkMessage) -> Option<Interface> {
    let RouteNetlinkMessage::NewLink(link) = message else { return None };
    let (mut name, mut mtu, mut kind) = (None, 0, None);
    for attribute in &link.attributes {
        match attribute {
            LinkAttribute::IfName(text) => name = Some(text.clone()),
            LinkAttribute::Mtu(number) => mtu = *number,
            LinkAttribute::LinkInfo(infos) => kind = infos.iter().find_map(kind_of),
            _ => {}
        }
    }
    let name = name?;
    let up = link.header.flags.contains(LinkFlags::Up | LinkFlags::LowerUp);
    let kind = classify(&name, kind.as_deref());
    Some(Interface { name, index: link.header.index, mtu, up, kind, addresses: BTreeSet::new() })
}

fn kind_of(info: &LinkInfo) -> Option<String> {
    let LinkInfo::Kind(kind) = info else { return None };
    Some(kind.to_string())
}

#[cfg(test)]
mod tests;
