use std::{fs, path::Path};

use serde_json::json;

use crate::{EasyNetwork, Mtu, definitions, manifest};

#[test]
fn the_generated_files_are_what_the_types_say() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    let mut expected = Vec::new();
    for definition in definitions() {
        let name = format!("{}.yaml", definition.spec.names.plural);
        let file = fs::read_to_string(folder.join(&name)).unwrap_or_default();
        assert!(
            file == manifest(&definition).unwrap(),
            "{name} is old: cargo run -p crds --bin crdgen"
        );
        expected.push(name);
    }
    let mut found: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn every_field_says_what_it_is() {
    for definition in definitions() {
        let schema = definition.spec.versions[0].schema.as_ref().unwrap();
        let schema = serde_json::to_value(schema.open_api_v3_schema.as_ref().unwrap()).unwrap();
        let mut silent = Vec::new();
        undescribed(&schema, definition.spec.names.kind.clone(), &mut silent);
        assert_eq!(silent, [""; 0]);
    }
}

#[test]
fn the_six_lines_of_a_first_network_are_enough() {
    let network: EasyNetwork = serde_json::from_value(json!({
        "apiVersion": "easynet.io/v1alpha1",
        "kind": "EasyNetwork",
        "metadata": {"name": "prod"},
        "spec": {"clusterName": "fra1"},
    }))
    .unwrap();
    assert_eq!(network.spec.addressing.ipv4_cidr.0, "100.112.0.0/16");
    assert_eq!(network.spec.transport.listen_port, 11010);
    assert_eq!(network.spec.transport.mtu, Mtu::Auto);
    assert!(network.status.is_none());
}

#[test]
fn an_mtu_is_a_word_or_a_number() {
    for (value, mtu) in [(json!("Auto"), Mtu::Auto), (json!(1400), Mtu::Bytes(1400))] {
        assert_eq!(serde_json::from_value::<Mtu>(value.clone()).unwrap(), mtu);
        assert_eq!(serde_json::to_value(mtu).unwrap(), value);
    }
    for value in [json!("auto"), json!(-1), json!(70000), json!(1.5), json!(null)] {
        assert!(serde_json::from_value::<Mtu>(value).is_err());
    }
}

/// Collects the paths of fields of ours without a description.
fn undescribed(schema: &serde_json::Value, path: String, silent: &mut Vec<String>) {
    if schema.get("description").is_none() && !path.ends_with("[]") && !path.ends_with("metadata") {
        silent.push(path.clone());
    }
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        undescribed(field, format!("{path}.{name}"), silent);
    }
    if let Some(items) = schema.get("items") {
        undescribed(items, format!("{path}[]"), silent);
    }
}
