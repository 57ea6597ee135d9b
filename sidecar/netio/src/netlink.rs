//! What a node installs on its host: addresses, routes, a policy rule, forwarding.
//!
//! The caller says what should be ([`HostConfig`]); [`Netlink::apply`] finds the difference to what
//! is and sends only that. What was found is remembered, so applying the same again sends nothing;
//! after [`Netlink::resync`] the kernel is asked anew.
//!
//! Mesh routes live in a table of their own, found by one rule per family:
//!
//! ```text
//! 600:  not from all fwmark 0x3000/0x3000 lookup TABLE proto 229
//! ```
//!
//! Our own sockets carry the mark and so never see a mesh route: a tunnel cannot run inside itself.
//! Addresses bring no prefix route along, for that one would be in the main table.
//!
//! Several instances in one network namespace do not meet: the table is a hash of the TUN's name
//! ([`table_of`], 24 bits), the nft table carries that name, and everything is found again by table
//! and protocol number together. The mark is common to all, so no instance runs inside another.

pub mod drift;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    net::IpAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt;
use ipnet::IpNet;
use rtnetlink::{
    packet_core::{
        DefaultNla, NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST,
        NetlinkMessage, NetlinkPayload,
    },
    packet_route::{
        AddressFamily, RouteNetlinkMessage,
        address::{AddressAttribute, AddressFlags, AddressMessage},
        link::{AfSpecInet, AfSpecUnspec, LinkAttribute, LinkFlags, LinkMessage},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
        rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage},
    },
    sys::AsyncSocket as _,
};

use crate::task::TaskGroup;

/// Tells our routes and rules from everybody else's; nobody else is known to use it.
pub const PROTOCOL: u8 = 229;
/// Marks our own sockets. Bits that Kubernetes (0xc000), Cilium (0x0f00), the AWS CNI (0x80) and
/// Calico (the upper half) leave alone.
pub const FWMARK: u32 = 0x3000;
/// The bits of a mark that are compared.
pub const FWMASK: u32 = 0x3000;
/// Before the main table (32766) and the per-interface tables of cloud CNIs, after rules that keep
/// local pods local.
pub const RULE_PRIORITY: u32 = 600;
/// The kernel answers in microseconds; an answer that takes this long is lost.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

const IFLA_INET_CONF: u16 = 1;
const NLA_F_NESTED: u16 = 1 << 15;
const DEVCONF_FORWARDING: u16 = 1;
const DEVCONF_RP_FILTER: u16 = 8;
/// A packet from the mesh may come from wherever a route of ours leads, not only by the best one.
const RP_FILTER_LOOSE: u32 = 2;

/// The routing table of the instance with this TUN.
pub fn table_of(tun: &str) -> u32 {
    0x6500_0000 | (fnv(tun) & 0x00ff_ffff)
}

/// What should be on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    pub tun: String,
    pub mtu: u32,
    /// With the prefix length of the network they are in.
    pub addresses: BTreeSet<IpNet>,
    /// Prefixes in the mesh, with the source address to prefer.
    pub routes: BTreeMap<IpNet, Option<IpAddr>>,
    /// Prefixes whose routes stay if they are there, though nobody asks for them.
    pub spared: BTreeSet<IpNet>,
    /// Networks behind this node: forwarding is switched on where they are and on the TUN.
    pub exports: BTreeSet<IpNet>,
    pub table: u32,
    pub rule_priority: u32,
    pub fwmark: u32,
    pub fwmask: u32,
}

/// What [`Netlink::apply`] did.
#[derive(Debug, Default)]
pub struct Report {
    /// How many changes the kernel accepted.
    pub changed: usize,
    /// What it did not; the next `apply` tries again.
    pub failed: Vec<(Change, Error)>,
    pub findings: Vec<Finding>,
}

/// What we do not change and a person may want to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// IPv6 networks are exported and the host does not forward IPv6. Switching it on would make
    /// the host ignore router advertisements, so this is the owner's decision.
    Ipv6ForwardingOff,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no interface {0}")]
    NoInterface(String),
    #[error("{0}")]
    Kernel(io::Error),
    #[error("no answer from the kernel")]
    NoAnswer,
}

/// One thing to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    SetLink {
        mtu: Option<u32>,
        up: bool,
    },
    AddAddress(IpNet),
    SetRoute(IpNet, Option<IpAddr>),
    AddRule(Rule),
    RemoveRule(Rule),
    RemoveRoute(IpNet),
    RemoveAddress(IpNet),
    /// Lets packets that arrive at the interface with this index be forwarded.
    Forward(u32),
}

/// A policy rule: what does not carry the mark looks into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    pub v6: bool,
    pub priority: u32,
    pub fwmark: u32,
    pub fwmask: u32,
    pub table: u32,
}

/// What is on this host, as far as it is ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Actual {
    index: u32,
    mtu: u32,
    up: bool,
    addresses: BTreeSet<IpNet>,
    routes: BTreeMap<IpNet, Option<IpAddr>>,
    rules: BTreeSet<Rule>,
    /// Interfaces that must forward, and whether they do.
    forwarding: BTreeMap<u32, bool>,
}

/// The owner of everything that a node installs.
pub struct Netlink {
    group: TaskGroup,
    handle: rtnetlink::Handle,
    /// What was applied, and what the kernel then had; forgotten after a failure.
    known: Option<(HostConfig, Actual)>,
    /// Interfaces on which we switched forwarding on.
    forwarded: BTreeSet<u32>,
    requests: u64,
    own: Arc<drift::Own>,
}

impl HostConfig {
    /// An instance's defaults: no address, no route.
    pub fn new(tun: impl Into<String>, mtu: u32) -> Self {
        let tun = tun.into();
        Self {
            table: table_of(&tun),
            tun,
            mtu,
            addresses: BTreeSet::new(),
            routes: BTreeMap::new(),
            spared: BTreeSet::new(),
            exports: BTreeSet::new(),
            rule_priority: RULE_PRIORITY,
            fwmark: FWMARK,
            fwmask: FWMASK,
        }
    }

    /// A rule per family that has something to route.
    fn rules(&self) -> BTreeSet<Rule> {
        let Self { rule_priority: priority, fwmark, fwmask, table, .. } = *self;
        self.routes
            .keys()
            .chain(&self.spared)
            .map(|prefix| matches!(prefix, IpNet::V6(_)))
            .map(|v6| Rule { v6, priority, fwmark, fwmask, table })
            .collect()
    }
}

impl Netlink {
    /// Opens a socket in the current network namespace; its task joins `group`.
    ///
    /// # Errors
    /// When the system gives no netlink socket.
    pub fn new(group: &TaskGroup) -> io::Result<Self> {
        let own = Arc::new(drift::Own::default());
        let handle = open(group, &own)?;
        let group = group.clone();
        Ok(Self { group, handle, known: None, forwarded: BTreeSet::new(), requests: 0, own })
    }

    /// What tells our own changes from those of others, for [`drift::watch`].
    pub fn own(&self) -> Arc<drift::Own> {
        Arc::clone(&self.own)
    }

    /// The prefixes that a predecessor routes by a table.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub async fn found(&mut self, table: u32) -> Result<BTreeSet<IpNet>, Error> {
        Ok(self.routes(table).await?.into_keys().collect())
    }

    /// Whether exactly this was applied, and nothing of it failed.
    pub fn is_applied(&self, config: &HostConfig) -> bool {
        self.known.as_ref().is_some_and(|(applied, _)| applied == config)
    }

    /// Makes the host as `desired`. One change that fails does not keep the others back.
    ///
    /// # Errors
    /// When the host's state cannot be read, above all because there is no such interface.
    pub async fn apply(&mut self, desired: &HostConfig) -> Result<Report, Error> {
        let mut report = Report::default();
        if desired.exports.iter().any(|net| matches!(net, IpNet::V6(_))) && !forwards_ipv6() {
            report.findings.push(Finding::Ipv6ForwardingOff);
        }
        let mut actual = match self.known.take() {
            Some((applied, actual)) if applied.exports == desired.exports => actual,
            Some(_) | None => self.read(desired).await?,
        };
        let changes = plan(desired, &actual);
        let removes_address =
            changes.iter().any(|change| matches!(change, Change::RemoveAddress(_)));
        self.perform(desired, changes, &mut actual, &mut report).await;
        if removes_address {
            // With a primary address the kernel removes its secondaries and their routes.
            actual = self.read(desired).await?;
            self.perform(desired, plan(desired, &actual), &mut actual, &mut report).await;
        }
        if report.failed.is_empty() {
            self.known = Some((desired.clone(), actual));
        }
        Ok(report)
    }

    /// Forgets what was found: the next `apply` asks the kernel.
    pub fn resync(&mut self) {
        self.known = None;
    }

    /// Removes routes and rules and the forwarding that was switched on. Addresses go with the TUN.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest was tried.
    pub async fn remove(&mut self, config: &HostConfig) -> Result<(), Error> {
        self.known = None;
        let mut outcome = self.sweep_table(config.table).await;
        for index in std::mem::take(&mut self.forwarded) {
            let message = devconf(index, &[(DEVCONF_FORWARDING, 0)]);
            let reset = self.change(message, 0).await;
            // An interface that is gone forwards nothing.
            outcome =
                outcome.and(reset.or_else(|error| error.is_absence().then_some(()).ok_or(error)));
        }
        outcome
    }

    /// Removes what an earlier run with one of these TUN names left behind when it was killed.
    /// Call it after the TUN was made, which fails if another process has it.
    ///
    /// # Errors
    /// As [`Netlink::remove`].
    pub async fn sweep<'a>(
        &mut self,
        tuns: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), Error> {
        self.known = None;
        let mut outcome = Ok(());
        for tun in tuns {
            outcome = outcome.and(self.sweep_table(table_of(tun)).await);
        }
        outcome
    }

    /// How many messages were sent to the kernel, questions included.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    async fn sweep_table(&mut self, table: u32) -> Result<(), Error> {
        let mut outcome = Ok(());
        for rule in self.rules(table).await? {
            let removed = self.change(RouteNetlinkMessage::DelRule(rule.message()), 0).await;
            outcome = outcome.and(removed);
        }
        for (prefix, _) in self.routes(table).await? {
            let message = route_message(table, prefix, None, None);
            outcome = outcome.and(self.change(RouteNetlinkMessage::DelRoute(message), 0).await);
        }
        outcome
    }

    async fn read(&mut self, desired: &HostConfig) -> Result<Actual, Error> {
        let link = self.link(LinkAttribute::IfName(desired.tun.clone()), 0).await?;
        let index = link.header.index;
        self.own.index.store(index, Ordering::Relaxed);
        let mut forwarding = BTreeMap::new();
        if !desired.exports.is_empty() {
            forwarding.insert(index, forwards(&link));
        }
        for export in &desired.exports {
            let Some(egress) = self.egress(export.addr(), desired.fwmark).await else { continue };
            if let (IpNet::V4(_), false) = (export, forwarding.contains_key(&egress)) {
                let link = self.link_by_index(egress).await?;
                forwarding.insert(egress, forwards(&link));
            }
        }
        Ok(Actual {
            index,
            mtu: mtu(&link),
            up: link.header.flags.contains(LinkFlags::Up),
            addresses: self.addresses(index).await?,
            routes: self.routes(desired.table).await?,
            rules: self.rules(desired.table).await?,
            forwarding,
        })
    }

    async fn perform(
        &mut self,
        desired: &HostConfig,
        changes: Vec<Change>,
        actual: &mut Actual,
        report: &mut Report,
    ) {
        for change in changes {
            match self.send(desired, actual.index, &change).await {
                Ok(()) => {
                    report.changed += 1;
                    actual.note(&change);
                }
                Err(error) => report.failed.push((change, error)),
            }
        }
    }

    async fn send(
        &mut self,
        desired: &HostConfig,
        index: u32,
        change: &Change,
    ) -> Result<(), Error> {
        let table = desired.table;
        match change {
            Change::SetLink { mtu, up } => {
                let mut message = LinkMessage::default();
                message.header.index = index;
                message.attributes.extend(mtu.map(LinkAttribute::Mtu));
                if *up {
                    message.header.flags = LinkFlags::Up;
                    message.header.change_mask = LinkFlags::Up;
                }
                self.change(RouteNetlinkMessage::SetLink(message), 0).await
            }
            Change::AddAddress(net) => {
                let message = RouteNetlinkMessage::NewAddress(address_message(index, *net));
                self.change(message, NLM_F_CREATE | NLM_F_REPLACE).await
            }
            Change::RemoveAddress(net) => {
                let message = RouteNetlinkMessage::DelAddress(address_message(index, *net));
                self.change(message, 0).await
            }
            Change::SetRoute(prefix, src) => {
                let message = route_message(table, *prefix, *src, Some(index));
                let message = RouteNetlinkMessage::NewRoute(message);
                self.change(message, NLM_F_CREATE | NLM_F_REPLACE).await
            }
            Change::RemoveRoute(prefix) => {
                let message = route_message(table, *prefix, None, None);
                let removed = self.change(RouteNetlinkMessage::DelRoute(message), 0).await;
                // The kernel takes routes away with their source address.
                removed.or_else(|error| error.is_absence().then_some(()).ok_or(error))
            }
            Change::AddRule(rule) => {
                let message = RouteNetlinkMessage::NewRule(rule.message());
                self.change(message, NLM_F_CREATE | NLM_F_EXCL).await
            }
            Change::RemoveRule(rule) => {
                self.change(RouteNetlinkMessage::DelRule(rule.message()), 0).await
            }
            Change::Forward(interface) => {
                let on = [(DEVCONF_FORWARDING, 1), (DEVCONF_RP_FILTER, RP_FILTER_LOOSE)];
                // The host's own interfaces keep the filter their owner chose.
                let on = if *interface == index { &on[..] } else { &on[..1] };
                self.change(devconf(*interface, on), 0).await?;
                if *interface != index {
                    self.forwarded.insert(*interface);
                }
                Ok(())
            }
        }
    }

    async fn link_by_index(&mut self, index: u32) -> Result<LinkMessage, Error> {
        self.link(LinkAttribute::ExtMask(Vec::new()), index).await
    }

    async fn link(&mut self, key: LinkAttribute, index: u32) -> Result<LinkMessage, Error> {
        let name = format!("{key:?}");
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(key);
        let answers = self.ask(RouteNetlinkMessage::GetLink(message), NLM_F_ACK).await;
        for answer in answers.unwrap_or_default() {
            if let RouteNetlinkMessage::NewLink(link) = answer {
                return Ok(link);
            }
        }
        Err(Error::NoInterface(name))
    }

    async fn addresses(&mut self, index: u32) -> Result<BTreeSet<IpNet>, Error> {
        let mut message = AddressMessage::default();
        message.header.index = index;
        let answers = self.ask(RouteNetlinkMessage::GetAddress(message), NLM_F_DUMP).await?;
        Ok(answers.iter().filter_map(|answer| address(answer, index)).collect())
    }

    async fn routes(&mut self, table: u32) -> Result<BTreeMap<IpNet, Option<IpAddr>>, Error> {
        let mut routes = BTreeMap::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RouteMessage::default();
            message.header.address_family = family;
            message.header.protocol = RouteProtocol::Other(PROTOCOL);
            message.attributes.push(RouteAttribute::Table(table));
            match self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_DUMP).await {
                Ok(answers) => {
                    routes.extend(answers.iter().filter_map(|answer| route(answer, table)));
                }
                Err(error) if error.is_absence() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(routes)
    }

    async fn rules(&mut self, table: u32) -> Result<BTreeSet<Rule>, Error> {
        let mut rules = BTreeSet::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut message = RuleMessage::default();
            message.header.family = family;
            match self.ask(RouteNetlinkMessage::GetRule(message), NLM_F_DUMP).await {
                Ok(answers) => {
                    rules.extend(answers.iter().filter_map(rule).filter(|rule| rule.table == table))
                }
                Err(error) if error.is_absence() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(rules)
    }

    /// The interface by which a marked packet would leave towards an address.
    async fn egress(&mut self, to: IpAddr, mark: u32) -> Option<u32> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to.is_ipv6());
        message.header.destination_prefix_length = if to.is_ipv6() { 128 } else { 32 };
        message.attributes =
            vec![RouteAttribute::Destination(to.into()), RouteAttribute::Mark(mark)];
        let answers = self.ask(RouteNetlinkMessage::GetRoute(message), NLM_F_ACK).await.ok()?;
        answers.into_iter().find_map(|answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else { return None };
            route.attributes.iter().find_map(|attribute| {
                let RouteAttribute::Oif(index) = attribute else { return None };
                Some(*index)
            })
        })
    }

    async fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<(), Error> {
        self.ask(message, NLM_F_ACK | flags).await.map(drop)
    }

    async fn ask(
        &mut self,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, Error> {
        self.requests += 1;
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        let mut replies = match self.handle.request(message.clone()) {
            Ok(replies) => replies,
            Err(_) => {
                // The socket failed before; another one may do.
                self.handle = open(&self.group, &self.own).map_err(Error::Kernel)?;
                self.handle.request(message).map_err(|_| Error::NoAnswer)?
            }
        };
        let mut answers = Vec::new();
        loop {
            let reply = tokio::time::timeout(REPLY_TIMEOUT, replies.next()).await;
            match reply.map_err(|_| Error::NoAnswer)?.map(|reply| reply.payload) {
                Some(NetlinkPayload::InnerMessage(answer)) => answers.push(answer),
                Some(NetlinkPayload::Error(error)) if error.code.is_some() => {
                    return Err(Error::Kernel(error.to_io()));
                }
                Some(_) => {}
                None => return Ok(answers),
            }
        }
    }
}

impl Error {
    /// Whether the kernel says that there is no such thing, or no such family.
    fn is_absence(&self) -> bool {
        let Self::Kernel(error) = self else { return false };
        matches!(
            error.raw_os_error(),
            Some(
                libc::ENOENT
                    | libc::ESRCH
                    | libc::ENODEV
                    | libc::EAFNOSUPPORT
                    | libc::EOPNOTSUPP
                    | libc::EADDRNOTAVAIL
            )
        )
    }
}

fn open(group: &TaskGroup, own: &drift::Own) -> io::Result<rtnetlink::Handle> {
    let (mut connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
    // The kernel would give it a port only with the first message.
    let address = connection.socket_mut().socket_mut().bind_auto()?;
    own.port.store(address.port_number(), Ordering::Relaxed);
    group.spawn_transient("netlink", async move {
        connection.await;
        Ok(())
    });
    Ok(handle)
}

/// What leads from `actual` to `desired`, in an order in which nothing is missing in between.
fn plan(desired: &HostConfig, actual: &Actual) -> Vec<Change> {
    let mut changes = Vec::new();
    let mtu = (desired.mtu != actual.mtu).then_some(desired.mtu);
    if mtu.is_some() || !actual.up {
        changes.push(Change::SetLink { mtu, up: !actual.up });
    }
    changes
        .extend(desired.addresses.difference(&actual.addresses).copied().map(Change::AddAddress));
    for (prefix, src) in &desired.routes {
        if actual.routes.get(prefix) != Some(src) {
            changes.push(Change::SetRoute(*prefix, *src));
        }
    }
    let rules = desired.rules();
    changes.extend(rules.difference(&actual.rules).copied().map(Change::AddRule));
    changes.extend(actual.rules.difference(&rules).copied().map(Change::RemoveRule));
    for prefix in actual.routes.keys() {
        if !desired.routes.contains_key(prefix) && !desired.spared.contains(prefix) {
            changes.push(Change::RemoveRoute(*prefix));
        }
    }
    changes.extend(
        actual.addresses.difference(&desired.addresses).copied().map(Change::RemoveAddress),
    );
    for (interface, forwards) in &actual.forwarding {
        if !forwards {
            changes.push(Change::Forward(*interface));
        }
    }
    changes
}

impl Actual {
    fn note(&mut self, change: &Change) {
        match change {
            Change::SetLink { mtu, up } => {
                self.mtu = mtu.unwrap_or(self.mtu);
                self.up |= up;
            }
            Change::AddAddress(net) => drop(self.addresses.insert(*net)),
            Change::RemoveAddress(net) => drop(self.addresses.remove(net)),
            Change::SetRoute(prefix, src) => drop(self.routes.insert(*prefix, *src)),
            Change::RemoveRoute(prefix) => drop(self.routes.remove(prefix)),
            Change::AddRule(rule) => drop(self.rules.insert(*rule)),
            Change::RemoveRule(rule) => drop(self.rules.remove(rule)),
            Change::Forward(interface) => drop(self.forwarding.insert(*interface, true)),
        }
    }
}

impl Rule {
    fn message(&self) -> RuleMessage {
        let mut message = RuleMessage::default();
        message.header.family = family(self.v6);
        message.header.action = RuleAction::ToTable;
        message.header.flags = RuleFlags::Invert;
        message.attributes = vec![
            RuleAttribute::Priority(self.priority),
            RuleAttribute::FwMark(self.fwmark),
            RuleAttribute::FwMask(self.fwmask),
            RuleAttribute::Table(self.table),
            RuleAttribute::Protocol(RouteProtocol::Other(PROTOCOL)),
        ];
        message
    }
}

fn address_message(index: u32, net: IpNet) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(net.addr().is_ipv6());
    message.header.prefix_len = net.prefix_len();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(net.addr()),
        AddressAttribute::Address(net.addr()),
        AddressAttribute::Flags(AddressFlags::Noprefixroute | AddressFlags::Nodad),
    ];
    message
}

fn route_message(table: u32, prefix: IpNet, src: Option<IpAddr>, oif: Option<u32>) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(prefix.addr().is_ipv6());
    message.header.destination_prefix_length = prefix.prefix_len();
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.header.scope = RouteScope::Link;
    message.header.kind = RouteType::Unicast;
    message.attributes =
        vec![RouteAttribute::Destination(prefix.network().into()), RouteAttribute::Table(table)];
    message.attributes.extend(src.map(|src| RouteAttribute::PrefSource(src.into())));
    message.attributes.extend(oif.map(RouteAttribute::Oif));
    message
}

/// `IFLA_AF_SPEC ⊃ AF_INET ⊃ IFLA_INET_CONF ⊃ values`; works where /proc/sys is read-only, as it is
/// in containers. By hand, since the typed form leaves out values of zero.
fn devconf(index: u32, values: &[(u16, u32)]) -> RouteNetlinkMessage {
    let mut conf = Vec::new();
    for (kind, value) in values {
        conf.extend_from_slice(&8_u16.to_ne_bytes());
        conf.extend_from_slice(&kind.to_ne_bytes());
        conf.extend_from_slice(&value.to_ne_bytes());
    }
    let conf = AfSpecInet::Other(DefaultNla::new(IFLA_INET_CONF | NLA_F_NESTED, conf));
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![conf])])];
    RouteNetlinkMessage::SetLink(message)
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
pub(crate) fn address(message: &RouteNetlinkMessage, index: u32) -> Option<IpNet> {
    let RouteNetlinkMessage::NewAddress(message) = message else { return None };
    if message.header.index != index {
        return None;
    }
    let (mut local, mut address) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(ip) => local = Some(*ip),
            AddressAttribute::Address(ip) => address = Some(*ip),
            _ => {}
        }
    }
    let ip = local.or(address)?;
    // Link-local addresses are the kernel's business.
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if link_local { None } else { IpNet::new(ip, message.header.prefix_len).ok() }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
fn route(message: &RouteNetlinkMessage, table: u32) -> Option<(IpNet, Option<IpAddr>)> {
    let RouteNetlinkMessage::NewRoute(message) = message else { return None };
    let v6 = message.header.address_family == AddressFamily::Inet6;
    let mut to = if v6 { IpAddr::from([0; 16]) } else { IpAddr::from([0; 4]) };
    let (mut src, mut found) = (None, u32::from(message.header.table));
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => to = ip(address)?,
            RouteAttribute::PrefSource(address) => src = ip(address),
            RouteAttribute::Table(number) => found = *number,
            _ => {}
        }
    }
    let ours = found == table && message.header.protocol == RouteProtocol::Other(PROTOCOL);
    if !ours {
        return None;
    }
    Some((IpNet::new(to, message.header.destination_prefix_length).ok()?, src))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enums")]
fn rule(message: &RouteNetlinkMessage) -> Option<Rule> {
    let RouteNetlinkMessage::NewRule(message) = message else { return None };
    let v6 = message.header.family == AddressFamily::Inet6;
    let table = u32::from(message.header.table);
    let mut rule = Rule { v6, priority: 0, fwmark: 0, fwmask: 0, table };
    let mut ours = false;
    for attribute in &message.attributes {
        match attribute {
            RuleAttribute::Priority(priority) => rule.priority = *priority,
            RuleAttribute::FwMark(mark) => rule.fwmark = *mark,
            RuleAttribute::FwMask(mask) => rule.fwmask = *mask,
            RuleAttribute::Table(table) => rule.table = *table,
            RuleAttribute::Protocol(protocol) => {
                ours = *protocol == RouteProtocol::Other(PROTOCOL);
            }
            _ => {}
        }
    }
    ours.then_some(rule)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        RouteAddress::Mpls(_) | RouteAddress::Other(_) | _ => None,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "the kernel's enum")]
fn mtu(link: &LinkMessage) -> u32 {
    let of = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    };
    link.attributes.iter().find_map(of).unwrap_or(0)
}

fn forwards(link: &LinkMessage) -> bool {
    link.attributes.iter().any(|attribute| {
        let LinkAttribute::AfSpecUnspec(families) = attribute else { return false };
        families.iter().any(|family| {
            let AfSpecUnspec::Inet(confs) = family else { return false };
            confs
                .iter()
                .any(|conf| matches!(conf, AfSpecInet::DevConf(conf) if conf.forwarding == 1))
        })
    })
}

/// Whether the host forwards IPv6; unknown counts as yes, for there is then nothing to advise.
fn forwards_ipv6() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding")
        .map_or(true, |text| text.trim() != "0")
}

fn family(v6: bool) -> AddressFamily {
    if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet }
}

/// FNV-1a of 32 bits.
fn fnv(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::SetLink { mtu, up } => write!(f, "set link (mtu {mtu:?}, up {up})"),
            Self::AddAddress(net) => write!(f, "add address {net}"),
            Self::RemoveAddress(net) => write!(f, "remove address {net}"),
            Self::SetRoute(prefix, _) => write!(f, "set route {prefix}"),
            Self::RemoveRoute(prefix) => write!(f, "remove route {prefix}"),
            Self::AddRule(rule) => write!(f, "add rule to table {}", rule.table),
            Self::RemoveRule(rule) => write!(f, "remove rule to table {}", rule.table),
            Self::Forward(interface) => write!(f, "forward on interface {interface}"),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipv6ForwardingOff => f.write_str(
                "IPv6 networks are exported and this host does not forward IPv6: \
                 switch it on with `sysctl -w net.ipv6.conf.all.forwarding=1`",
            ),
        }
    }
}

impl fmt::Debug for Netlink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Netlink")
            .field("known", &self.known)
            .field("requests", &self.requests)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
