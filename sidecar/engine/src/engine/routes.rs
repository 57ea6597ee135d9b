//! LSAs out and in, shortest paths, routes and addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::{IpNet, Ipv6Net};
use prost::Message;
use rand_chacha::rand_core::RngCore;
use session::{
    certificate::{self, Certified},
    lsa, membership,
};
use wire::{
    certificate::Prefix,
    control::Push,
    id::NodeId,
    lsa::{Claim, Container, Head, LinkBody, LsaKey, LsaType, Neighbour, NodeBody},
};

use super::Engine;
use crate::{
    config::{Ipv4Policy, Ipv6Policy},
    drops::DropReason,
    event::{Event, Host, Notice, NoticeKind, Persist},
    fib::Routes,
    peer::Peer,
    routing::{
        claims,
        lsdb::Freshness,
        origin::Origin,
        rib, spf,
        topology::{Announcement, Member},
    },
    snapshot::{Route, RouteState},
};

/// Copies age by whole seconds at every hop, so that an LSA seems some seconds younger or older than it is.
const AGE_SLACK: Duration = Duration::from_secs(5);
/// What is said of a second node with our keys.
pub(super) const TWIN: &str =
    "Another node runs with this node's key: stop it, or give it a state directory of its own";

impl Engine {
    pub(super) fn originate_node(&mut self, now: Instant) {
        let size = self.topology.members().count();
        let Some(seq) = self.node_lsa.take(size, now) else { return };
        let body = self.node_body().encode_to_vec();
        let clear = self.config.membership.certificate.encode_to_vec();
        self.publish_lsa(LsaType::Node, seq, Origin::lifetime(size), &clear, &body, now);
    }

    pub(super) fn originate_links(&mut self, now: Instant) {
        let size = self.topology.members().count();
        let Some(seq) = self.link_lsa.take(size, now) else { return };
        let neighbours = self
            .own_links()
            .into_iter()
            .map(|link| Neighbour {
                node: link.to.0.to_vec(),
                cost_us: link.cost_us,
                server: link.server,
            })
            .collect();
        let body = LinkBody { neighbours }.encode_to_vec();
        self.publish_lsa(LsaType::Link, seq, Origin::lifetime(size), &[], &body, now);
    }

    /// Own LSAs with lifetime 0: this node goes.
    pub(super) fn withdraw(&mut self, now: Instant) {
        let clear = self.config.membership.certificate.encode_to_vec();
        let seq = self.node_lsa.withdraw();
        self.publish_lsa(LsaType::Node, seq, 0, &clear, &[], now);
        let seq = self.link_lsa.withdraw();
        self.publish_lsa(LsaType::Link, seq, 0, &[], &[], now);
    }

    fn publish_lsa(
        &mut self,
        kind: LsaType,
        seq: u64,
        lifetime: u32,
        clear: &[u8],
        body: &[u8],
        now: Instant,
    ) {
        let (epoch, keys) = self.config.membership.sealing(self.issued.epoch());
        let group = keys.group;
        let mut nonce = [0; 24];
        self.rng.fill_bytes(&mut nonce);
        let head = Head {
            network: self.config.membership.network,
            signer: self.config.identity.keys().sign,
            kind: kind as u8,
            id: 0,
            flags: 0,
            gk_epoch: membership::low_byte(epoch),
            seq,
            lifetime,
            nonce,
        };
        let Some(bytes) = lsa::seal(&self.config.identity, &group, &head, clear, body) else {
            let message =
                "What this node has to say of itself exceeds an LSA: export fewer prefixes";
            return self.notice(Notice::new(NoticeKind::AddressConflict, None, message));
        };
        let Some(container) = Container::parse(bytes.into()) else { return };
        let key = container.key();
        if self.lsdb.insert(&container, 0, now).is_ok() {
            self.flood.originated(&self.lsdb, key, now);
        }
    }

    fn node_body(&self) -> NodeBody {
        let homes = self.links.iter().filter(|(_, adjacency)| adjacency.registered);
        let fixed = self.fixed_addresses();
        NodeBody {
            attributes: Some(self.config.membership.attributes.clone()),
            hostname: self.config.hostname.clone(),
            candidates: Vec::new(),
            profile: None,
            homes: homes.map(|(node, _)| node.0.to_vec()).collect(),
            claims: self
                .claim
                .map(|(address, since)| Claim {
                    prefix: Some(Prefix::new(address.into(), 32)),
                    since,
                })
                .into_iter()
                .collect(),
            addresses: fixed.iter().map(|net| host_prefix(net.addr())).collect(),
            exports: self
                .config
                .exports
                .iter()
                .map(|net| Prefix::new(net.network(), net.prefix_len()))
                .collect(),
            transit: self.config.transit,
            version: self.config.version.clone(),
            os: std::env::consts::OS.to_owned(),
            arch: std::env::consts::ARCH.to_owned(),
            behind: self
                .config
                .behind
                .iter()
                .map(|net| Prefix::new(net.network(), net.prefix_len()))
                .collect(),
        }
    }

    /// Own addresses that nobody has to agree to, with the length of their network.
    fn fixed_addresses(&self) -> Vec<IpNet> {
        let mut addresses = Vec::new();
        if let Ipv4Policy::Fixed(net) = self.config.ipv4 {
            addresses.push(IpNet::V4(net));
        }
        match self.config.ipv6 {
            Ipv6Policy::Off => {}
            Ipv6Policy::Fixed(net) => addresses.push(IpNet::V6(net)),
            Ipv6Policy::Auto => {
                let address = claims::ipv6(self.config.membership.network, self.me);
                addresses.push(IpNet::V6(Ipv6Net::new(address, 48).unwrap_or_default()));
            }
        }
        addresses
    }

    /// Where the addresses of members come from, as far as this node's own tell.
    fn ranges(&self) -> Vec<IpNet> {
        let mut ranges = self.fixed_addresses();
        if let Ipv4Policy::Auto { range, .. } = self.config.ipv4 {
            ranges.push(IpNet::V4(range));
        }
        ranges
    }

    pub(super) fn on_push(&mut self, from: NodeId, push: Push, now: Instant) {
        for copy in push.copies {
            let Some(container) = Container::parse(copy.container) else {
                self.drop_packet(DropReason::Malformed);
                continue;
            };
            self.on_lsa(from, container, copy.age_s, now);
        }
    }

    fn on_lsa(&mut self, from: NodeId, container: Container, age: u32, now: Instant) {
        let network = self.config.membership.network;
        if container.head.network != network {
            return self.drop_packet(DropReason::WrongNetwork);
        }
        let key = container.key();
        if self.lsdb.freshness(&key, container.head.seq) != Freshness::Newer {
            return;
        }
        if key.signer == self.me {
            return self.on_own_lsa(&container, age, now);
        }
        if lsa::is_issued(&container, network) {
            return self.on_issued(Some(from), container, age, now);
        }
        let allowed = match LsaType::from_byte(container.head.kind) {
            Some(LsaType::Node) => match lsa::certified(&container, network, self.unix(now)) {
                Ok(certified) if self.issued.is_revoked(key.signer, certified.serial) => {
                    return self.drop_packet(DropReason::Revoked);
                }
                certified => certified.is_ok(),
            },
            // The root's alone.
            Some(LsaType::Cluster | LsaType::Epoch | LsaType::Revoke) => false,
            Some(LsaType::Link) | None => self.has_node(key.signer),
        };
        if !allowed {
            return self.drop_packet(DropReason::BadCertificate);
        }
        if !lsa::verify(&container) {
            return self.drop_packet(DropReason::Forged);
        }
        if !self.short_is_free(key.signer) {
            let message =
                format!("{} has the same short id as another member and is refused", key.signer);
            self.notice(Notice::new(NoticeKind::AddressConflict, Some(key.signer), message));
            return self.drop_packet(DropReason::DuplicateKey);
        }
        if self.lsdb.insert(&container, age, now).is_err() {
            return self.drop_packet(DropReason::LsaRefused);
        }
        self.flood.stored(key, Some(from), now);
        if container.head.lifetime == 0 {
            return self.on_lsa_gone(key, now);
        }
        self.read_lsa(&container, now);
    }

    /// Whether a node said of itself who it is, be it under keys that we have not got yet.
    fn has_node(&self, node: NodeId) -> bool {
        self.topology.member(node).is_some()
            || self.lsdb.contains(&LsaKey { signer: node, kind: LsaType::Node as u8, id: 0 })
    }

    /// Opens a stored LSA of a member and acts on it. Without the key of its epoch it waits in the database until
    /// that comes.
    pub(super) fn read_lsa(&mut self, container: &Container, now: Instant) {
        let Some(group) = self.config.membership.group(container.head.gk_epoch) else { return };
        let Some(body) = lsa::open(container, group) else {
            return self.drop_packet(DropReason::Forged);
        };
        match LsaType::from_byte(container.head.kind) {
            Some(LsaType::Node) => {
                let network = self.config.membership.network;
                match lsa::certified(container, network, self.unix(now)) {
                    Ok(certified)
                        if self.issued.is_revoked(certified.keys.node(), certified.serial) =>
                    {
                        self.drop_packet(DropReason::Revoked);
                    }
                    Ok(certified) => self.on_node(&certified, &container.head, &body, now),
                    Err(_) => self.drop_packet(DropReason::BadCertificate),
                }
            }
            Some(LsaType::Link) => {
                if let Ok(body) = LinkBody::decode(&*body) {
                    self.topology.set_links(container.key().signer, &body);
                    self.throttle.request(now);
                }
            }
            // Not a member's; types of a later version are kept and passed on.
            Some(LsaType::Cluster | LsaType::Epoch | LsaType::Revoke) | None => {}
        }
    }

    /// One of our own came back newer than we ever said it: from an earlier life, or from a second one.
    fn on_own_lsa(&mut self, container: &Container, age: u32, now: Instant) {
        if !lsa::verify(container) {
            return self.drop_packet(DropReason::Forged);
        }
        let origin = match LsaType::from_byte(container.head.kind) {
            Some(LsaType::Node) => &mut self.node_lsa,
            Some(LsaType::Link) => &mut self.link_lsa,
            Some(LsaType::Cluster | LsaType::Epoch | LsaType::Revoke) | None => return,
        };
        let seq = container.head.seq;
        let lived = now.saturating_duration_since(self.started);
        let is_younger = Duration::from_secs(u64::from(age)) + AGE_SLACK < lived;
        if origin.surpassed(seq, is_younger, now) {
            let theirs = u32::try_from(seq >> 32).unwrap_or(u32::MAX);
            // Whoever has heard of a later start refuses our INITs.
            if theirs > self.boot.number() {
                self.renew_boot(theirs, now);
            }
            self.meet_twin(now);
        }
    }

    /// Another node runs with our keys. Each of the two speaks above the other for as long as both live; once is enough to say.
    pub(super) fn meet_twin(&mut self, now: Instant) {
        let before = self.twin.replace(now);
        let is_known =
            before.is_some_and(|seen| now.saturating_duration_since(seen) < super::TWIN_REMEMBERED);
        if !is_known {
            self.notice(Notice::new(NoticeKind::AddressConflict, Some(self.me), TWIN));
        }
    }

    fn on_node(&mut self, certified: &Certified, head: &Head, body: &[u8], now: Instant) {
        let keys = certified.keys;
        let node = keys.node();
        let Ok(body) = NodeBody::decode(body) else {
            return self.drop_packet(DropReason::Malformed);
        };
        let attributes = body.attributes.as_ref().and_then(|signed| {
            certificate::check_attributes(
                signed,
                &self.config.membership.root,
                &keys.sign,
                self.unix(now),
            )
            .ok()
        });
        let Some(attributes) = attributes else {
            return self.drop_packet(DropReason::BadCertificate);
        };
        let boot = |seq: u64| seq >> 32;
        let has_restarted =
            self.topology.member(node).is_some_and(|member| boot(member.seq) < boot(head.seq));
        let member = Member::new(keys, certified.serial, &attributes, body, head);
        self.topology.set_member(node, member);
        if has_restarted {
            self.on_restarted(node, now);
        }
        if self.loses_claim_to(node) {
            self.give_up_claim(node, now);
        }
        self.throttle.request(now);
        self.link_if_neighbour(node, now);
        if self.links.contains_key(&node) {
            self.fib_dirty = true;
        }
    }

    /// A node came back without having left: it knows nothing of our session, and may have nothing to send by itself.
    fn on_restarted(&mut self, node: NodeId, now: Instant) {
        let is_stale = self
            .peers
            .get(&node)
            .is_some_and(|peer| peer.handshake.is_none() && peer.sessions.sending().is_some());
        if is_stale {
            self.initiate(node, now);
        }
    }

    pub(super) fn on_lsa_gone(&mut self, key: LsaKey, now: Instant) {
        match LsaType::from_byte(key.kind) {
            Some(LsaType::Node) => {
                if self.topology.remove_member(key.signer) && !self.links.contains_key(&key.signer)
                {
                    self.drop_peer(key.signer, "it left the network", now);
                }
            }
            Some(LsaType::Link) => self.topology.remove_links(key.signer),
            Some(LsaType::Cluster) => self.issued.forget_cluster(key.id),
            Some(LsaType::Epoch | LsaType::Revoke) | None => {}
        }
        self.throttle.request(now);
    }

    /// Shortest paths, routes, and what follows for every peer.
    pub(super) fn recompute(&mut self, now: Instant) {
        if !self.throttle.take(now) {
            return;
        }
        self.spf_runs += 1;
        self.reachable =
            spf::compute(self.me, &self.own_links(), &self.direct_ways(now), &self.topology);
        let nodes: Vec<NodeId> = self.peers.keys().copied().collect();
        for node in nodes {
            let relays = self.relays_of(node);
            if let Some(peer) = self.peers.get_mut(&node) {
                peer.agent.set_relays(&relays, now);
                if let Some(handshake) = peer.handshake.as_mut().filter(|_| !relays.is_empty()) {
                    handshake.relay_appeared(now);
                }
            }
            self.drain_agent(node, now);
        }
        let connected: Vec<IpNet> = self.connected.iter().chain(&self.networks).copied().collect();
        let own = rib::Own {
            mesh: &self.own_nets(),
            protected: &self.config.protected,
            behind: &self.config.behind,
            connected: &connected,
            ranges: &self.ranges(),
            imports: &self.config.imports,
        };
        let rib = rib::compute(self.me, own, &self.reachable, &self.silent(), &self.topology);
        self.tell_routes(&rib.routes);
        for conflict in
            rib.conflicts.iter().filter(|conflict| !self.rib.conflicts.contains(*conflict))
        {
            self.events.push_back(Event::Notice(Notice::new(
                NoticeKind::AddressConflict,
                None,
                conflict.clone(),
            )));
        }
        let changed = installed(&rib.routes).ne(installed(&self.rib.routes));
        self.rib = rib;
        if changed {
            let routes: Routes = installed(&self.rib.routes).collect();
            self.routes = Arc::new(routes);
        }
        self.rebuild_entries();
        self.update_host();
        self.fib_dirty = true;
    }

    /// Who answers on a direct path is reachable although no link of ours leads there any more.
    fn direct_ways(&self, now: Instant) -> Vec<(NodeId, spf::Reach)> {
        let answering = self.peers.values().filter(|peer| {
            reached_directly(peer, now) && self.topology.member(peer.node).is_some()
        });
        let ways = answering.map(|peer| {
            let rtt = peer.agent.rtt().unwrap_or_default();
            let cost_us = u64::try_from(rtt.as_micros() / 2).unwrap_or(u64::MAX);
            (peer.node, spf::Reach { cost_us, hops: 1, via: peer.node })
        });
        ways.collect()
    }

    /// Whether somebody is still thought to be reached directly alone and is not.
    pub(super) fn lost_directly(&self, now: Instant) -> bool {
        self.reachable.iter().any(|(node, ways)| {
            let alone = ways.iter().all(|way| way.via == node) && !self.links.contains_key(&node);
            alone && self.peers.get(&node).is_none_or(|peer| !reached_directly(peer, now))
        })
    }

    /// Who was asked and does not answer, whatever the LSDB says.
    fn silent(&self) -> BTreeSet<NodeId> {
        self.peers.values().filter(|peer| peer.silent).map(|peer| peer.node).collect()
    }

    /// The relays that lead to `node`, with the latency of the whole way.
    pub(super) fn relays_of(&self, node: NodeId) -> Vec<(NodeId, Duration)> {
        let ways = self.reachable.get(&node).into_iter().flatten();
        ways.filter(|reach| reach.via != node)
            .take(4)
            .map(|reach| (reach.via, reach.latency() * 2))
            .collect()
    }

    /// Both lists are in the order of their prefixes.
    fn tell_routes(&mut self, routes: &[Route]) {
        let before: Vec<(IpNet, NodeId)> = installed(&self.rib.routes).collect();
        let after: Vec<(IpNet, NodeId)> = installed(routes).collect();
        if before == after {
            return;
        }
        for &(prefix, node) in without(&after, |new| before.binary_search(new).is_ok()) {
            let notice = Notice::new(NoticeKind::RouteAdded, Some(node), "Route added")
                .with("prefix", prefix);
            self.events.push_back(Event::Notice(notice));
        }
        let remains = |(prefix, _): &(IpNet, NodeId)| {
            after.binary_search_by(|(other, _)| other.cmp(prefix)).is_ok()
        };
        for &(prefix, node) in without(&before, remains) {
            let notice = Notice::new(NoticeKind::RouteRemoved, Some(node), "Route removed")
                .with("prefix", prefix);
            self.events.push_back(Event::Notice(notice));
        }
    }

    /// What the host shall have: our addresses, and every installed prefix that they do not cover routed into the TUN.
    pub(super) fn update_host(&mut self) {
        let mut addresses = self.fixed_addresses();
        if let (Some((address, _)), Ipv4Policy::Auto { range, .. }) = (self.claim, self.config.ipv4)
            && let Ok(net) = ipnet::Ipv4Net::new(address, range.prefix_len())
        {
            addresses.push(IpNet::V4(net));
        }
        let covered = |prefix: &IpNet| addresses.iter().any(|net| net.contains(prefix));
        let mut routes: Vec<IpNet> = addresses.iter().map(IpNet::trunc).collect();
        routes.extend(
            installed(&self.rib.routes).map(|(prefix, _)| prefix).filter(|prefix| !covered(prefix)),
        );
        routes.sort_unstable();
        routes.dedup();
        let host = Host { addresses, routes, mtu: self.config.mtu };
        if host != self.host {
            self.host = host;
            self.host_dirty = true;
            self.fib_dirty = true;
        }
    }

    /// Takes an automatic address at once, as tentative as it may be.
    pub(super) fn claim_address(&mut self, now: Instant) {
        let Ipv4Policy::Auto { range, kept } = self.config.ipv4 else {
            self.claim = None;
            return self.update_host();
        };
        let taken = self.taken_addresses();
        let keeps = |claim: &(Ipv4Addr, u64)| range.contains(&claim.0);
        if self.claim.filter(keeps).is_none() {
            self.claim = kept.filter(keeps).or_else(|| {
                claims::pick(self.me, range, &taken).map(|address| (address, self.unix(now)))
            });
            self.told_claim();
        }
        let winner =
            self.topology.members().map(|(node, _)| node).find(|&node| self.loses_claim_to(node));
        if let Some(winner) = winner {
            self.give_up_claim(winner, now);
        }
        self.update_host();
    }

    /// Whether `node` has a better right to the address that we claim.
    fn loses_claim_to(&self, node: NodeId) -> bool {
        let (Some((address, since)), Some(member)) = (self.claim, self.topology.member(node))
        else {
            return false;
        };
        member.addresses().any(|announced| {
            announced.prefix.addr() == IpAddr::V4(address)
                && match announced.what {
                    Announcement::Claim { since: theirs } => {
                        claims::wins((theirs, node), (since, self.me))
                    }
                    Announcement::Address | Announcement::Export => true,
                }
        })
    }

    /// Gives the claimed address up to `winner` and takes another.
    fn give_up_claim(&mut self, winner: NodeId, now: Instant) {
        let Ipv4Policy::Auto { range, .. } = self.config.ipv4 else { return };
        let Some((address, _)) = self.claim else { return };
        let taken = self.taken_addresses();
        self.claim = claims::pick(self.me, range, &taken).map(|address| (address, self.unix(now)));
        let message = match self.claim {
            Some((new, _)) => format!("{address} belongs to another node; this node has {new} now"),
            None => format!(
                "{address} belongs to another node, and {range} has no other left: use a larger range"
            ),
        };
        self.notice(Notice::new(NoticeKind::AddressConflict, Some(winner), message));
        self.told_claim();
        self.update_host();
        self.node_lsa.changed(now);
    }

    /// Has kept what this node must not lose.
    pub(super) fn persist(&mut self) {
        let persist = Persist { claim: self.claim, boot: self.boot.number() };
        self.events.push_back(Event::Persist(persist));
    }

    fn told_claim(&mut self) {
        self.persist();
        if let Some((address, _)) = self.claim {
            let notice = Notice::new(NoticeKind::AddressClaimed, None, "Address claimed")
                .with("address", address);
            self.notice(notice);
        }
    }

    fn taken_addresses(&self) -> BTreeMap<Ipv4Addr, NodeId> {
        let mut taken = BTreeMap::new();
        for (node, member) in self.topology.members() {
            for announced in member.addresses() {
                if let IpAddr::V4(v4) = announced.prefix.addr() {
                    taken.insert(v4, node);
                }
            }
        }
        taken
    }
}

pub(super) fn installed(routes: &[Route]) -> impl Iterator<Item = (IpNet, NodeId)> + '_ {
    routes
        .iter()
        .filter(|route| route.state == RouteState::Installed)
        .map(|route| (route.prefix, route.node))
}

fn reached_directly(peer: &Peer, now: Instant) -> bool {
    peer.sessions.sending().is_some() && peer.agent.is_direct_and_fresh(now) && !peer.silent
}

fn without(
    routes: &[(IpNet, NodeId)],
    known: impl Fn(&(IpNet, NodeId)) -> bool,
) -> impl Iterator<Item = &(IpNet, NodeId)> {
    routes.iter().filter(move |route| !known(route))
}

fn host_prefix(address: IpAddr) -> Prefix {
    Prefix::new(address, if address.is_ipv4() { 32 } else { 128 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_links_there_may_be_fit_an_lsa() {
        let neighbour = Neighbour { node: vec![7; 16], cost_us: 2_000_000, server: true };
        let most = crate::engine::links::MAX_LINKS + crate::engine::MAX_HOMES + 3;
        let body = LinkBody { neighbours: vec![neighbour; most] };

        let around = wire::lsa::HEAD_LEN + wire::lsa::TAG_LEN + wire::lsa::SIGNATURE_LEN;
        assert!(body.encoded_len() + around <= wire::lsa::MAX_LEN, "{}", body.encoded_len());
    }
}
