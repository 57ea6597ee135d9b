use super::*;

const NAME: &str = "easynet-webhook.easynet-system.svc";
const T0: i64 = 1_800_000_000;

#[test]
fn a_certificate_is_trusted_before_it_is_served_and_after() {
    let first = Material::new(NAME, T0).unwrap();
    assert_eq!(first.step(T0), Step::Keep(Duration::from_secs(30 * 24 * 3600)));
    assert_eq!(certificates(&first.bundle()), 1);

    let month = T0 + RENEW;
    assert_eq!(first.step(month), Step::Stage);
    let staged = first.clone().staged(NAME, month).unwrap();
    assert_eq!(staged.serving, first.serving, "not served yet");
    assert_eq!(certificates(&staged.bundle()), 2);

    assert_eq!(staged.step(month), Step::Keep(Duration::from_secs(120)));
    assert_eq!(staged.step(month + SETTLE), Step::Promote);
    let promoted = staged.clone().promoted();
    assert_eq!(Some(&promoted.serving), staged.next.as_ref());
    assert_eq!(certificates(&promoted.bundle()), 2, "a replica may still serve the old one");
    assert!(promoted.bundle().contains(first.serving.certificate.trim()));
    assert_eq!(
        promoted.step(month + SETTLE),
        Step::Keep(Duration::from_secs(30 * 24 * 3600 - 120))
    );

    let again = promoted.staged(NAME, month + RENEW).unwrap();
    assert_eq!(certificates(&again.bundle()), 2, "the oldest one is trusted no more");
}

#[test]
fn an_operator_that_was_away_too_long_serves_a_new_one_at_once() {
    let old = Material::new(NAME, T0).unwrap();

    assert_eq!(old.step(T0 + LATE - 1), Step::Stage);
    assert_eq!(old.step(T0 + LATE), Step::Replace);
    let staged = old.staged(NAME, T0 + RENEW).unwrap();
    assert_eq!(
        staged.step(T0 + LATE),
        Step::Replace,
        "even with one that was staged and forgotten"
    );
}

#[test]
fn a_clock_that_was_set_back_changes_nothing() {
    let material = Material::new(NAME, T0).unwrap();

    assert!(matches!(material.step(T0 - 365 * DAY), Step::Keep(_)));
    assert!(matches!(material.step(i64::MIN), Step::Keep(_)));
    assert_eq!(material.step(i64::MAX), Step::Replace);
}

#[test]
fn what_is_written_is_read_again() {
    let first = Material::new(NAME, T0).unwrap();
    let staged = first.clone().staged(NAME, T0 + 1).unwrap();
    let promoted = staged.clone().promoted();

    for material in [first, staged, promoted] {
        assert_eq!(Material::read(&material.data()), Some(material));
    }
}

#[test]
fn a_secret_that_somebody_spoilt_is_no_material() {
    let good = Material::new(NAME, T0).unwrap().data();
    let other = Material::new(NAME, T0).unwrap().data();
    let spoilt = |key: &str, value: &[u8]| {
        let mut data = good.clone();
        data.insert(key.to_owned(), Zeroizing::new(value.to_vec()));
        data
    };

    assert!(Material::read(&good).is_some());
    assert_eq!(Material::read(&BTreeMap::new()), None);
    assert_eq!(Material::read(&spoilt("tls.crt", b"")), None);
    assert_eq!(Material::read(&spoilt("tls.crt", b"\xff\xfe")), None);
    assert_eq!(Material::read(&spoilt("tls.key", b"no key")), None);
    assert_eq!(Material::read(&spoilt("tls.issued", b"yesterday")), None);
    assert_eq!(Material::read(&spoilt("tls.key", &other["tls.key"])), None, "another's key");
    let half = Material::read(&spoilt("next.crt", b"half")).unwrap();
    assert_eq!(half.next, None, "the one that is served stays");
}

#[test]
fn keys_are_in_no_log() {
    let material = Material::new(NAME, T0).unwrap().staged(NAME, T0).unwrap().promoted();
    let shown = format!("{material:?}");

    assert!(!shown.contains("PRIVATE") && !shown.contains("BEGIN"), "{shown}");
}

fn certificates(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}
