//! All prefixes with their reasons: what is installed, what stands in a shadow, what is refused and why.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;
use wire::id::NodeId;

use super::{
    spf::Reachable,
    topology::{Announced, Announcement, Topology},
};
use crate::{
    config::Imports,
    snapshot::{Route, RouteSource, RouteState},
};

/// Conflicts that are told one by one; one mistake in a large cluster makes as many as it has nodes.
const MAX_CONFLICTS: usize = 16;

/// The routes of one moment.
#[derive(Clone, Debug, Default)]
pub struct Rib {
    pub routes: Vec<Route>,
    /// Claims of the same prefix by several nodes, for status.
    pub conflicts: Vec<String>,
}

/// Prefixes that this node does not import, whoever announces them.
#[derive(Clone, Copy, Debug)]
pub struct Own<'a> {
    /// What it has in the mesh itself: its addresses and exports.
    pub mesh: &'a [IpNet],
    /// What its mapped exports are on this host.
    pub behind: &'a [IpNet],
    /// What its configuration protects.
    pub protected: &'a [IpNet],
    /// Networks that the host is connected to, with its addresses: importing (a part of) one would take it from the host.
    pub connected: &'a [IpNet],
    /// The mesh's ranges. Addresses of members in them are imported although the host is connected to a network around
    /// them: a carrier's 100.64.0.0/10 may well contain the mesh's range.
    pub ranges: &'a [IpNet],
    pub imports: &'a Imports,
}

/// A row, and what decides among rows of one prefix.
struct Row {
    route: Route,
    /// The node's attributes allow it the prefix.
    allowed: bool,
    silent: bool,
    since: u64,
}

/// Computes all routes, in the order of their prefixes. Longest prefix is the FIB's matter; of equal prefixes the
/// cheaper node is installed, of equal costs the lower NodeId, and of address claims the winner of
/// [`super::claims::wins`]. A `silent` node, which was asked and does not answer, gives way to whoever else
/// announces its prefix or one around it; it keeps what nobody else has, so that traffic goes on trying.
pub fn compute(
    me: NodeId,
    own: Own<'_>,
    reachable: &Reachable,
    silent: &BTreeSet<NodeId>,
    topology: &Topology,
) -> Rib {
    let others = topology.members().filter(|(node, _)| *node != me);
    let mut rows: Vec<Row> = others
        .flat_map(|(node, member)| {
            let reach = reachable.get(&node).and_then(|ways| ways.first());
            member.announced.iter().map(move |announced| (node, reach, *announced))
        })
        .map(|(node, reach, Announced { prefix, what, allowed })| {
            let refusal = if !allowed {
                Some("the node's attributes do not allow it this prefix".to_owned())
            } else {
                own.refusal(prefix)
            };
            let (state, reason) = match (refusal, reach) {
                (Some(reason), _) => (RouteState::Rejected, reason),
                (None, None) => (RouteState::Shadowed, "no way to the node is known".to_owned()),
                (None, Some(_)) => (RouteState::Installed, String::new()),
            };
            let via = reach.map(|reach| reach.via);
            let metric =
                reach.map_or(u32::MAX, |reach| u32::try_from(reach.cost_us).unwrap_or(u32::MAX));
            let (source, reason) = (what.source(), reason.into());
            let route = Route { prefix, node, via, metric, source, state, reason };
            let since = match what {
                Announcement::Claim { since } => since,
                Announcement::Address | Announcement::Export => 0,
            };
            Row { route, allowed, silent: silent.contains(&node), since }
        })
        .collect();
    rows.sort_by_key(|row| (row.route.prefix, row.silent, row.route.metric, row.route.node));
    give_way(&mut rows);
    let mut rib = Rib::default();
    own.unanswered(topology, &mut rib);
    for Row { route, .. } in rows.iter().filter(|row| row.allowed && own.has(row.route.prefix)) {
        if route.via.is_some() {
            let Route { prefix, node, .. } = route;
            rib.conflict(format!("{prefix} is announced by {node} and is this node's own"));
        }
    }
    let refused =
        rows.iter().map(|row| &row.route).filter(|route| route.state == RouteState::Rejected);
    for Route { prefix, node, .. } in refused {
        if own.behind.iter().any(|net| overlap(net, prefix)) {
            rib.conflict(format!(
                "{prefix} of {node} is refused, since it overlaps a network behind this node: export it there with mapTo"
            ));
        }
    }
    for same in rows.chunk_by_mut(|a, b| a.route.prefix == b.route.prefix) {
        if let Some(conflict) = settle(same) {
            rib.conflict(conflict);
        }
    }
    rib.routes = rows.into_iter().map(|row| row.route).collect();
    rib.routes.shrink_to_fit();
    rib
}

impl Rib {
    fn conflict(&mut self, what: String) {
        if self.conflicts.len() < MAX_CONFLICTS {
            self.conflicts.push(what);
        }
    }
}

/// Shadows the prefixes of silent nodes that lie within one of a node that answers.
fn give_way(rows: &mut [Row]) {
    if rows.iter().all(|row| !row.silent) {
        return;
    }
    let answering: BTreeSet<IpNet> = rows
        .iter()
        .filter(|row| !row.silent && row.route.state == RouteState::Installed)
        .map(|row| row.route.prefix)
        .collect();
    let silent =
        rows.iter_mut().filter(|row| row.silent && row.route.state == RouteState::Installed);
    for row in silent {
        let around = answering.iter().find(|net| net.contains(&row.route.prefix));
        if let Some(net) = around {
            row.route.state = RouteState::Shadowed;
            row.route.reason =
                format!("the node does not answer, and another that does announces {net}").into();
        }
    }
}

/// Leaves one of the installed rows of one prefix; what to tell people if there were several.
fn settle(rows: &mut [Row]) -> Option<String> {
    let installed: Vec<usize> =
        (0..rows.len()).filter(|&i| rows[i].route.state == RouteState::Installed).collect();
    let best = installed.iter().copied().reduce(|best, other| {
        let claim = |i: usize| (rows[i].since, rows[i].route.node);
        let both = rows[best].route.source == RouteSource::Claim
            && rows[other].route.source == RouteSource::Claim;
        if both && super::claims::wins(claim(other), claim(best)) { other } else { best }
    })?;
    if installed.len() == 1 {
        return None;
    }
    let (prefix, winner) = (rows[best].route.prefix, rows[best].route.node);
    let names: Vec<String> = installed.iter().map(|&i| rows[i].route.node.to_string()).collect();
    for i in installed.into_iter().filter(|&i| i != best) {
        rows[i].route.state = RouteState::Shadowed;
        rows[i].route.reason =
            format!("{winner} announces the same prefix and is preferred").into();
    }
    Some(format!("{prefix} is announced by {}; {winner} carries it", names.join(" and ")))
}

impl Own<'_> {
    fn has(&self, prefix: IpNet) -> bool {
        self.mesh.iter().any(|mine| mine.trunc() == prefix)
    }

    /// What we announce as it is although somebody has the same behind a map, and so refuses it.
    fn unanswered(&self, topology: &Topology, rib: &mut Rib) {
        let subnets = self.mesh.iter().filter(|net| net.prefix_len() < net.max_prefix_len());
        for mine in subnets {
            let refuses = topology
                .members()
                .find(|(_, member)| member.behind.iter().any(|net| overlap(net, mine)));
            if let Some((node, _)) = refuses {
                rib.conflict(format!(
                    "{mine} is exported as it is, and {node} has the same behind it and refuses ours: export it with mapTo"
                ));
            }
        }
    }

    fn refusal(&self, prefix: IpNet) -> Option<String> {
        if is_special(prefix) {
            let what = "default, loopback, link-local and multicast ranges are never imported";
            return Some(what.to_owned());
        }
        let overlaps = |net: &&IpNet| overlap(net, &prefix);
        let is_subnet = prefix.prefix_len() < prefix.max_prefix_len();
        if let Some(net) = self.protected.iter().find(overlaps) {
            return Some(format!("overlaps {net}, which the configuration protects"));
        }
        if !is_subnet && self.connected.iter().any(|net| net.addr() == prefix.addr()) {
            return Some(format!("{} is an address of this host", prefix.addr()));
        }
        let is_of_mesh = !is_subnet && self.ranges.iter().any(|net| net.contains(&prefix));
        if let Some(net) = self.connected.iter().filter(|_| !is_of_mesh).find(overlaps) {
            return Some(format!("overlaps {}, a network of this host", net.trunc()));
        }
        if let Some(net) = self.behind.iter().find(overlaps) {
            return Some(format!(
                "overlaps {net}, which is behind this node: the node that announces it maps it to another with mapTo"
            ));
        }
        if self.has(prefix) {
            return Some("this node has the same prefix".to_owned());
        }
        if !is_subnet {
            return None;
        }
        match self.imports {
            Imports::All => None,
            Imports::Listed(listed) if listed.iter().any(|net| net.contains(&prefix)) => None,
            Imports::Listed(_) => Some("is not listed in imports.cidrs".to_owned()),
            Imports::None => Some("imports.mode is none".to_owned()),
        }
    }
}

fn overlap(a: &IpNet, b: &IpNet) -> bool {
    a.contains(b) || b.contains(a)
}

/// What is never imported, whoever announces it.
fn is_special(prefix: IpNet) -> bool {
    let address = prefix.network();
    prefix.prefix_len() == 0
        || address.is_loopback()
        || address.is_multicast()
        || address.is_unspecified()
        || match address {
            IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
            IpAddr::V6(v6) => v6.is_unicast_link_local(),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_node_gives_way_to_who_answers_and_keeps_what_nobody_else_has() {
        let row = |prefix: &str, node: u8, metric, silent| Row {
            route: Route {
                prefix: prefix.parse().unwrap(),
                node: NodeId([node; 16]),
                via: None,
                metric,
                source: RouteSource::Lsa,
                state: RouteState::Installed,
                reason: "".into(),
            },
            allowed: true,
            silent,
            since: 0,
        };
        let mut rows = [
            row("10.0.0.0/8", 1, 9, false),
            row("10.1.0.0/16", 2, 1, true),
            row("10.1.0.0/16", 3, 9, false),
            row("10.2.0.0/16", 2, 1, true),
            row("192.168.7.0/24", 2, 1, true),
        ];

        give_way(&mut rows);

        assert_eq!(
            rows.map(|row| row.route.state),
            [
                RouteState::Installed,
                RouteState::Shadowed,
                RouteState::Installed,
                RouteState::Shadowed,
                RouteState::Installed
            ]
        );
    }

    #[test]
    fn what_the_host_has_itself_is_not_imported() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let own = Own {
            mesh: &[net("100.112.0.1/32"), net("10.9.0.0/24")],
            protected: &[net("10.96.0.0/12")],
            behind: &[net("10.244.0.0/16")],
            connected: &[net("192.168.1.7/24"), net("100.64.3.4/10"), net("100.112.9.9/32")],
            ranges: &[net("100.112.0.0/16")],
            imports: &Imports::All,
        };
        for (prefix, refused) in [
            ("192.168.1.0/24", Some("192.168.1.0/24, a network of this host")),
            ("192.168.1.128/25", Some("a network of this host")),
            ("192.168.0.0/16", Some("a network of this host")),
            ("192.168.1.1/32", Some("192.168.1.0/24, a network of this host")),
            ("192.168.1.7/32", Some("192.168.1.7 is an address of this host")),
            ("192.168.2.0/24", None),
            ("100.99.0.1/32", Some("100.64.0.0/10, a network of this host")),
            ("100.112.9.9/32", Some("100.112.9.9 is an address of this host")),
            ("100.112.0.2/32", None),
            ("100.112.0.1/32", Some("this node has")),
            ("10.9.0.0/24", Some("this node has")),
            ("10.100.0.0/16", Some("the configuration protects")),
            ("10.100.0.1/32", Some("the configuration protects")),
            ("10.244.7.0/24", Some("overlaps 10.244.0.0/16, which is behind this node")),
            ("10.244.7.1/32", Some("with mapTo")),
            ("0.0.0.0/0", Some("never imported")),
            ("169.254.1.0/24", Some("never imported")),
            ("fe80::/64", Some("never imported")),
            ("fd00:1::/64", None),
        ] {
            let refusal = own.refusal(net(prefix));
            match refused {
                Some(part) => {
                    let refusal = refusal.unwrap_or_default();
                    assert!(refusal.contains(part), "{prefix}: {refusal}");
                }
                None => assert_eq!(refusal, None, "{prefix}"),
            }
        }
    }

    #[test]
    fn imports_choose_subnets_and_never_members() {
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let listed = Imports::Listed(vec![net("10.200.0.0/16")]);
        let refusal = |imports: &Imports, prefix: &str| {
            let none = &[];
            let own = Own {
                mesh: none,
                protected: none,
                behind: none,
                connected: none,
                ranges: none,
                imports,
            };
            own.refusal(net(prefix))
        };
        for (prefix, of_listed, of_none) in [
            ("10.200.3.0/24", None, Some("imports.mode is none")),
            ("10.200.0.0/15", Some("is not listed in imports.cidrs"), Some("imports.mode is none")),
            ("10.201.0.0/24", Some("is not listed in imports.cidrs"), Some("imports.mode is none")),
            ("100.112.0.9/32", None, None),
            ("fd00::9/128", None, None),
        ] {
            assert_eq!(refusal(&listed, prefix).as_deref(), of_listed, "{prefix}");
            assert_eq!(refusal(&Imports::None, prefix).as_deref(), of_none, "{prefix}");
        }
    }
}
