use super::*;

const MINUTE: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

#[test]
fn an_answer_is_fresh_then_stale_then_forgotten() {
    let (mut cache, t0) = (Cache::default(), Instant::now());
    cache.store(query(), Ok(answer(1)), Some(MINUTE), t0);

    assert_eq!(cache.look(&query(), t0 + 59 * SECOND), Look::Fresh(Ok(answer(1))));
    assert_eq!(cache.look(&query(), t0 + 60 * SECOND), Look::Stale(answer(1)));
    assert_eq!(cache.look(&query(), t0 + 23 * 60 * MINUTE), Look::Stale(answer(1)));
    assert_eq!(cache.look(&query(), t0 + 24 * 60 * MINUTE + MINUTE), Look::Unknown);
}

#[test]
fn a_lifetime_of_nothing_and_of_ever_is_neither() {
    let (mut cache, t0) = (Cache::default(), Instant::now());
    cache.store(query(), Ok(answer(1)), Some(Duration::ZERO), t0);
    assert_eq!(cache.look(&query(), t0 + 9 * SECOND), Look::Fresh(Ok(answer(1))));

    cache.store(query(), Ok(answer(1)), Some(1000 * 60 * MINUTE), t0);
    assert_eq!(cache.look(&query(), t0 + 60 * MINUTE), Look::Stale(answer(1)));
}

#[test]
fn failures_are_remembered_briefly() {
    let (mut cache, t0) = (Cache::default(), Instant::now());
    cache.store(query(), Err(Failure::Timeout), None, t0);
    assert_eq!(cache.look(&query(), t0 + 4 * SECOND), Look::Fresh(Err(Failure::Timeout)));
    assert_eq!(cache.look(&query(), t0 + 5 * SECOND), Look::Unknown);

    cache.store(query(), Err(Failure::NotFound), None, t0);
    assert_eq!(cache.look(&query(), t0 + 29 * SECOND), Look::Fresh(Err(Failure::NotFound)));
    assert_eq!(cache.look(&query(), t0 + 30 * SECOND), Look::Unknown);
}

#[test]
fn a_failure_to_ask_does_not_displace_an_answer() {
    let (mut cache, t0) = (Cache::default(), Instant::now());
    cache.store(query(), Ok(answer(1)), Some(MINUTE), t0);
    let later = t0 + 2 * MINUTE;
    cache.store(query(), Err(Failure::Timeout), None, later);

    assert_eq!(cache.look(&query(), later + 4 * SECOND), Look::Fresh(Ok(answer(1))));
    assert_eq!(cache.look(&query(), later + 5 * SECOND), Look::Stale(answer(1)));
}

#[test]
fn that_a_name_is_gone_displaces_its_answer() {
    let (mut cache, t0) = (Cache::default(), Instant::now());
    cache.store(query(), Ok(answer(1)), Some(MINUTE), t0);
    cache.store(query(), Err(Failure::NotFound), None, t0 + 2 * MINUTE);

    assert_eq!(cache.look(&query(), t0 + 2 * MINUTE), Look::Fresh(Err(Failure::NotFound)));
}

#[test]
fn the_cache_is_bounded() {
    let (mut cache, t0) = (Cache::default(), Instant::now());
    for number in 0..2 * MAX_ENTRIES {
        cache.store(Query::Addresses(format!("host{number}")), Ok(answer(1)), None, t0);
    }
    assert_eq!(cache.entries.len(), MAX_ENTRIES);
}

fn query() -> Query {
    Query::Addresses("relay.example.com".to_owned())
}

fn answer(last: u8) -> Answer {
    Answer::Addresses(vec![IpAddr::from([192, 0, 2, last])])
}
