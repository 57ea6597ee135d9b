//! Every kind of place with every other: who may have a direct path has one, and who may not stays usable.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{collections::BTreeMap, sync::Mutex};

use engine::snapshot::PeerState;
use tests::sim::{
    clock::Span,
    mesh::{Mesh, converged},
    scenario::for_seeds,
    site::{Site, direct_path_possible},
};

/// Worlds; each has two of every site, so that each cell has three or four pairs in it.
const WORLDS: u64 = 10;

/// Pairs of a cell, those that went direct, and those that could be used at all.
#[derive(Clone, Copy, Debug, Default)]
struct Cell {
    pairs: u32,
    promised: u32,
    direct: u32,
    usable: u32,
}

#[test]
fn of_each_cell_97_in_100_pairs_go_direct_where_promised_and_all_are_usable() {
    let cells: Mutex<BTreeMap<(Site, Site), Cell>> = Mutex::default();
    for_seeds(
        "sim_nat_cells",
        "of_each_cell_97_in_100_pairs_go_direct_where_promised_and_all_are_usable",
        0..WORLDS,
        |seed| {
            let mut mesh = Mesh::new(seed).servers(2);
            for site in Site::ALL.into_iter().chain(Site::ALL) {
                mesh = mesh.node(site);
            }
            mesh.run_until(converged, 30.s()).unwrap_or_else(|| panic!("{}", mesh.describe()));
            mesh.run_for(5.s());
            for wave in 0..mesh.len() - 1 {
                let pairs = matching(mesh.len(), wave);
                let promised: Vec<bool> = pairs
                    .iter()
                    .map(|&(a, b)| {
                        direct_path_possible(&mesh.world, mesh.station(a), mesh.station(b))
                    })
                    .collect();
                mesh.talk(&pairs, 250.ms(), 4.s());
                let mut cells = cells.lock().unwrap();
                for (&(a, b), promised) in pairs.iter().zip(promised) {
                    let (mut x, mut y) = (mesh.post(a).site, mesh.post(b).site);
                    if x > y {
                        std::mem::swap(&mut x, &mut y);
                    }
                    let cell = cells.entry((x, y)).or_default();
                    cell.pairs += 1;
                    cell.promised += u32::from(promised);
                    let state = mesh.state(a, b);
                    cell.direct += u32::from(promised && state == PeerState::Direct);
                    cell.usable +=
                        u32::from([PeerState::Direct, PeerState::Relayed].contains(&state));
                }
            }
        },
    );
    let cells = cells.into_inner().unwrap();
    let bad: Vec<_> = cells
        .iter()
        .filter(|(_, cell)| cell.direct * 100 < cell.promised * 97 || cell.usable < cell.pairs)
        .collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(cells.len(), 136);
    assert_eq!(cells.values().filter(|cell| cell.promised > 0).count(), 66);
}

/// Round `wave` of a tournament: everybody meets somebody, over all waves everybody meets everybody.
fn matching(players: usize, wave: usize) -> Vec<(usize, usize)> {
    let circle = players - 1;
    let seat = |n: usize| (wave + n) % circle;
    let mut pairs = vec![(circle, seat(0))];
    pairs.extend((1..players / 2).map(|n| (seat(n), seat(circle - n))));
    pairs
}
