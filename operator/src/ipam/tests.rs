use proptest::prelude::*;

use super::*;

const NOW: i64 = 1_800_000_000;

/// What a test says of the world; everything else is empty.
#[derive(Clone, Debug)]
struct Case {
    range: Ipv4Net,
    records: Vec<Record>,
    wanted: BTreeSet<String>,
    claims: Vec<Claim>,
    lost: BTreeMap<Ipv4Net, i64>,
    now: i64,
}

impl Case {
    fn new(wanted: &[&str]) -> Self {
        Self {
            range: net("100.112.0.0/16"),
            records: Vec::new(),
            wanted: wanted.iter().map(|name| (*name).to_owned()).collect(),
            claims: Vec::new(),
            lost: BTreeMap::new(),
            now: NOW,
        }
    }

    fn allocate(&self) -> Allocation {
        allocate(&Known {
            range: self.range,
            cluster: "b",
            records: &self.records,
            wanted: &self.wanted,
            claims: &self.claims,
            lost: &self.lost,
            now: self.now,
        })
    }

    /// The world after the answer was written down.
    fn then(&self) -> Self {
        let allocation = self.allocate();
        let mut next = self.clone();
        next.records.retain(|record| !self.wanted.contains(&record.owner));
        for (owner, address) in &allocation.addresses {
            // The allocation keeps the oldest record of who has several of one address.
            let old = self.records.iter().filter(|r| r.owner == *owner && r.address == *address);
            let since = old.map(|record| record.since).min().unwrap_or(self.now);
            next.records.push(record(owner, *address, since));
        }
        next.lost = allocation.lost.iter().map(|(block, (_, seen))| (*block, *seen)).collect();
        next
    }
}

#[test]
fn a_member_keeps_its_address_and_a_new_one_gets_a_free_one_of_the_same_block() {
    let mut case = Case::new(&["a", "c"]);
    case.records = vec![record("a", ip("100.112.9.7"), NOW - 1000)];

    let allocation = case.allocate();

    assert_eq!(allocation.addresses["a"], ip("100.112.9.7"));
    assert_eq!(allocation.blocks, BTreeMap::from([(net("100.112.9.0/24"), NOW - 1000)]));
    assert_ne!(allocation.addresses["c"], allocation.addresses["a"]);
    assert!(net("100.112.9.0/24").contains(&allocation.addresses["c"]));
}

#[test]
fn of_two_members_with_one_address_the_older_keeps_it() {
    let mut case = Case::new(&["a", "c"]);
    case.records = vec![
        record("a", ip("100.112.9.7"), NOW - 1000),
        record("c", ip("100.112.9.7"), NOW - 2000),
    ];

    let allocation = case.allocate();

    assert_eq!(allocation.addresses["c"], ip("100.112.9.7"));
    assert_ne!(allocation.addresses["a"], ip("100.112.9.7"));
    assert_eq!(
        allocation.duplicates,
        [Duplicate { address: ip("100.112.9.7"), keeps: "c".into(), renumbered: "a".into() }]
    );
}

#[test]
fn an_address_of_somebody_gone_is_held_and_then_free() {
    let mut case = Case::new(&["a"]);
    let preferred = case.allocate().addresses["a"];
    case.records =
        vec![Record { held_until: Some(NOW + 10), ..record("gone", preferred, NOW - 5000) }];

    let held = case.allocate();
    case.now = NOW + 10;
    let free = case.allocate();

    assert_ne!(held.addresses["a"], preferred);
    assert_eq!(held.next, Some(NOW + 10));
    assert_eq!(free.addresses["a"], preferred);
    assert_eq!(free.next, None);
}

#[test]
fn a_member_that_comes_back_takes_its_held_address() {
    let mut case = Case::new(&["a"]);
    case.records =
        vec![Record { held_until: Some(NOW + 10), ..record("a", ip("100.112.9.7"), NOW - 5000) }];

    assert_eq!(case.allocate().addresses["a"], ip("100.112.9.7"));
}

#[test]
fn a_block_of_another_cluster_is_not_touched() {
    let mut case = Case::new(&["a"]);
    case.range = net("100.112.0.0/23");
    let first = block_of(case.allocate().addresses["a"]);
    case.claims = vec![claim("a", first, NOW - 5)];

    let second = block_of(case.allocate().addresses["a"]);
    case.claims.push(claim("c", second, NOW));

    assert_ne!(first, second);
    assert_eq!(case.allocate().exhausted, BTreeSet::from(["a".to_owned()]));
}

#[test]
fn the_older_claim_to_a_block_wins_and_near_ones_go_by_name() {
    for (ours, theirs, cluster, kept) in [
        (NOW - 5000, NOW - 100, "a", true),
        (NOW - 100, NOW - 5000, "c", false),
        (NOW - 500, NOW - 100, "a", false),
        (NOW - 100, NOW - 500, "c", true),
    ] {
        let mut case = Case::new(&["x"]);
        case.records = vec![record("x", ip("100.112.9.7"), ours)];
        case.claims = vec![claim(cluster, net("100.112.9.0/24"), theirs)];

        let allocation = case.allocate();

        assert_eq!(allocation.lost.is_empty(), kept, "{ours} {theirs} {cluster}");
        assert_eq!(allocation.addresses["x"], ip("100.112.9.7"), "not before the drain");
    }
}

#[test]
fn a_lost_block_is_left_after_the_drain_and_gets_nobody_new_before() {
    let mut case = Case::new(&["x", "y"]);
    case.records = vec![record("x", ip("100.112.9.7"), NOW)];
    case.claims = vec![claim("a", net("100.112.9.0/24"), NOW - 5000)];

    let seen = case.allocate();
    let mut later = case.then();
    later.now = NOW + 60;
    let left = later.allocate();

    assert_eq!(seen.addresses["x"], ip("100.112.9.7"));
    assert!(!net("100.112.9.0/24").contains(&seen.addresses["y"]));
    assert_eq!(seen.next, Some(NOW + 60));
    assert_eq!(seen.lost, BTreeMap::from([(net("100.112.9.0/24"), ("a".to_owned(), NOW))]));
    assert!(!net("100.112.9.0/24").contains(&left.addresses["x"]));
    assert_eq!(left.addresses["y"], seen.addresses["y"]);
}

#[test]
fn five_thousand_members_fit_the_default_range() {
    let names: Vec<String> = (0..5000).map(|index| format!("node-{index}")).collect();
    let case = Case::new(&names.iter().map(String::as_str).collect::<Vec<_>>());

    let allocation = case.allocate();

    assert_eq!(allocation.addresses.len(), 5000);
    assert_eq!(allocation.blocks.len(), 20);
    assert!(allocation.exhausted.is_empty());
}

proptest! {
    #[test]
    fn no_two_members_ever_have_one_address(case in case()) {
        let allocation = case.allocate();

        let addresses: BTreeSet<_> = allocation.addresses.values().collect();
        prop_assert_eq!(addresses.len(), allocation.addresses.len());
        for address in addresses {
            prop_assert!(case.range.contains(address));
            prop_assert!(allocation.blocks.contains_key(&block_of(*address)));
            let holder = case.records.iter().find(|record| {
                record.address == *address
                    && record.held_until.is_some_and(|until| until > case.now)
                    && !case.wanted.contains(&record.owner)
            });
            let had_it = allocation.addresses.iter().any(|(owner, own)| {
                let mut records = case.records.iter();
                own == address && records.any(|r| r.owner == *owner && r.address == *address)
            });
            prop_assert!(holder.is_none() || had_it);
        }
    }

    #[test]
    fn everybody_has_an_address_or_is_named(case in case()) {
        let allocation = case.allocate();

        for owner in &case.wanted {
            prop_assert!(
                allocation.addresses.contains_key(owner) != allocation.exhausted.contains(owner)
            );
        }
        prop_assert_eq!(allocation.addresses.len() + allocation.exhausted.len(), case.wanted.len());
    }

    #[test]
    fn asking_again_changes_nothing(case in case()) {
        let once = case.allocate();
        let again = case.then().allocate();

        prop_assert_eq!(once.addresses, again.addresses);
        prop_assert_eq!(once.exhausted, again.exhausted);
        prop_assert!(again.duplicates.is_empty());
    }

    #[test]
    fn order_does_not_matter(case in case(), seed in any::<u64>()) {
        let mut shuffled = case.clone();
        let by = |text: &str| hash64(&[&seed.to_string(), text]);
        shuffled.records.sort_by_key(|record| by(&format!("{record:?}")));
        shuffled.claims.sort_by_key(|claim| by(&format!("{claim:?}")));

        prop_assert_eq!(case.allocate(), shuffled.allocate());
    }

    #[test]
    fn who_had_an_address_alone_and_in_a_block_of_ours_keeps_it(case in case()) {
        let allocation = case.allocate();

        for record in &case.records {
            let rivals = case.records.iter().filter(|other| {
                *other != record && (other.address == record.address || other.owner == record.owner)
            });
            let block = block_of(record.address);
            let contested = case.claims.iter().any(|claim| overlap(claim.block, block));
            let ours = case.wanted.contains(&record.owner) && case.range.contains(&record.address);
            if ours && !contested && rivals.count() == 0 {
                prop_assert_eq!(allocation.addresses.get(&record.owner), Some(&record.address));
            }
        }
    }
}

fn case() -> impl Strategy<Value = Case> {
    let owner = || (0..12_u8).prop_map(|index| format!("m{index}"));
    let address =
        || (0..4_u8, 1..6_u8).prop_map(|(block, host)| Ipv4Addr::new(100, 112, block, host));
    let record = (owner(), address(), 0..3000_i64, proptest::option::of(-10..10_i64)).prop_map(
        |(owner, address, age, held)| Record {
            owner,
            address,
            since: NOW - age,
            held_until: held.map(|until| NOW + until),
        },
    );
    let claim = ((0..3_u8).prop_map(|c| ["a", "b", "c"][usize::from(c)]), 0..4_u8, 0..3000_i64)
        .prop_map(|(cluster, block, age)| {
            let block = Ipv4Net::new(Ipv4Addr::new(100, 112, block, 0), 24).unwrap();
            super::tests::claim(cluster, block, NOW - age)
        });
    (
        proptest::sample::select(vec!["100.112.0.0/16", "100.112.0.0/22", "100.112.1.0/24"]),
        proptest::collection::vec(record, 0..14),
        proptest::collection::btree_set(owner(), 0..12),
        proptest::collection::vec(claim, 0..5),
    )
        .prop_map(|(range, records, wanted, claims)| Case {
            range: net(range),
            records,
            wanted,
            claims,
            lost: BTreeMap::new(),
            now: NOW,
        })
}

fn record(owner: &str, address: Ipv4Addr, since: i64) -> Record {
    Record { owner: owner.to_owned(), address, since, held_until: None }
}

fn claim(cluster: &str, block: Ipv4Net, since: i64) -> Claim {
    Claim { cluster: cluster.to_owned(), block, since }
}

fn net(text: &str) -> Ipv4Net {
    text.parse().unwrap()
}

fn ip(text: &str) -> Ipv4Addr {
    text.parse().unwrap()
}
