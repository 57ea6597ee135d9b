use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use serde_json::json;

use super::*;

#[test]
fn a_change_is_over_when_the_status_that_says_so_is_written() {
    let (mut gate, mut changes, now) = (Gate::new(Instant::now()), changed(), Instant::now());
    let pending = status(3, "False");
    changes.carry(&mut desired(&pending), now);
    offer_network(&mut gate, &mut changes, "prod", Some(status(2, "True")), pending.clone(), now);
    assert!(changes.span().is_some(), "it is not in force");
    let written = write(&mut gate, now);
    assert_eq!(written, pending);
    changes.read(&written);
    assert!(changes.traceparent().is_some());

    changes.carry(&mut desired(&status(3, "True")), now);
    offer_network(&mut gate, &mut changes, "prod", Some(pending), status(3, "True"), now);

    assert!(changes.span().is_none(), "it is in force");
    assert!(changes.traceparent().is_some(), "nobody can read it yet");
    // A write of before that was under way is no word of this change.
    changes.read(&status(2, "True"));
    assert!(changes.traceparent().is_some());
    changes.read(&write(&mut gate, now));
    assert!(changes.traceparent().is_none());
}

#[test]
fn a_change_is_over_at_once_when_another_operator_wrote_that_it_is_in_force() {
    let (mut gate, mut changes, now) = (Gate::new(Instant::now()), changed(), Instant::now());
    changes.carry(&mut desired(&status(3, "True")), now);

    offer_network(&mut gate, &mut changes, "prod", Some(status(3, "True")), status(3, "True"), now);

    assert_eq!(gate.poll_write(now), None, "it stands there already");
    assert!(changes.traceparent().is_none());
}

#[test]
fn a_change_that_never_is_in_force_is_given_up() {
    let (mut changes, began) = (changed(), Instant::now());

    changes.carry(&mut desired(&status(3, "False")), began + Duration::from_secs(299));
    assert!(changes.span().is_some());
    changes.carry(&mut desired(&status(3, "False")), began + Duration::from_secs(300));

    assert!(changes.traceparent().is_none());
}

/// A network whose third generation nobody has seen to yet.
fn changed() -> Changes {
    let mut network: crds::EasyNetwork = serde_json::from_value(json!({
        "apiVersion": "easynet.io/v1alpha1", "kind": "EasyNetwork",
        "metadata": {"name": "prod", "generation": 3}, "spec": {"clusterName": "a"},
    }))
    .unwrap();
    network.status = Some(status(2, "True"));
    let mut changes = Changes::default();
    changes.note(&network, Instant::now());
    assert!(changes.span().is_some());
    changes
}

fn status(generation: i64, programmed: &str) -> crds::EasyNetworkStatus {
    let condition = Condition {
        type_: "Programmed".to_owned(),
        status: programmed.to_owned(),
        reason: "Programmed".to_owned(),
        message: String::new(),
        observed_generation: Some(generation),
        last_transition_time: Time(Timestamp::UNIX_EPOCH),
    };
    crds::EasyNetworkStatus {
        observed_generation: Some(generation),
        conditions: vec![condition],
        ..crds::EasyNetworkStatus::default()
    }
}

fn desired(status: &crds::EasyNetworkStatus) -> Desired {
    Desired { status: status.clone(), ..Desired::default() }
}

/// Writes what waits to be written, as the API server takes it.
fn write(gate: &mut Gate, now: Instant) -> crds::EasyNetworkStatus {
    let (key, _) = gate.poll_write(now).unwrap();
    let Some(Status::Network(status)) = gate.handle_written(&key, now) else {
        panic!("of a network")
    };
    *status
}
