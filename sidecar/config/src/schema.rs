//! The file's shape for editors.

/// JSON Schema (draft 2020-12) of the configuration file.
pub fn schema() -> serde_json::Value {
    let text =
        |description: &str| serde_json::json!({"type": "string", "description": description});
    let object = |description: &str, properties: serde_json::Value| {
        serde_json::json!({
            "type": "object", "description": description,
            "additionalProperties": false, "properties": properties,
        })
    };
    let cidr = object(
        "a subnet reachable through this node",
        serde_json::json!({
            "cidr": text("the subnet, such as 10.42.0.0/24"),
            "mapTo": text("the subnet as the mesh sees it, of the same length, mapped address by address"),
            "masquerade": {"enum": ["inbound", "never", "always"], "description":
                "inbound: what comes from the mesh gets this host's address; never; always: in both directions"},
        }),
    );
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "easynet sidecar configuration",
        "type": "object",
        "additionalProperties": false,
        "required": ["apiVersion", "kind"],
        "properties": {
            "apiVersion": {"const": crate::API_VERSION},
            "kind": {"const": crate::KIND},
            "network": object("the network to join", serde_json::json!({
                "name": text("its name"),
                "secretFile": text("the file that holds its secret"),
                "range": text("where automatic IPv4 addresses come from"),
            })),
            "node": object("this node", serde_json::json!({
                "hostname": text("its name in the mesh; default the machine's"),
                "ipv4": text("ADDRESS[/LENGTH], auto or off"),
                "ipv6": text("ADDRESS[/LENGTH], auto or off"),
                "stateDir": text("keys and what is kept across restarts"),
                "tun": text("name of the TUN interface"),
            })),
            "listen": {"type": "array", "items": {"type": ["integer", "string"]},
                "description": "ports or URLs; a port means UDP and TCP on both families"},
            "peers": {"type": "array", "items": text("udp://HOST:PORT[?k=KEY]"),
                "description": "where to start"},
            "exports": {"type": "array", "items": cidr},
            "imports": object("what is taken of the prefixes that others announce", serde_json::json!({
                "mode": {"enum": ["all", "listed", "none"], "description":
                    "listed: only what lies within one of cidrs; addresses of members are always reachable"},
                "cidrs": {"type": "array", "items": text("a subnet such as 10.200.0.0/16")},
            })),
            "protected": {"type": "array", "items": text("a subnet such as 10.96.0.0/12"),
                "description": "never imported, whoever announces it"},
            "exempt": {"type": "array", "items": text("a subnet such as 10.42.0.0/16"),
                "description": "between these no other program on this host masquerades"},
            "transport": object("how packets travel", serde_json::json!({
                "mtu": {"type": "integer", "minimum": 1280, "maximum": 9000},
                "p2p": {"enum": ["on", "relay-only"]},
                "punch": {"enum": ["full", "light", "off"]},
            })),
            "roles": object("what this node does for others", serde_json::json!({
                "transit": {"type": "boolean", "description": "carry other members' traffic"},
            })),
            "admin": text("where the command line connects: a unix socket, or HOST:PORT with adminTokenFile"),
            "adminTokenFile": text("the file with the token that opens an admin socket over TCP"),
            "metrics": text("HOST:PORT of the metrics endpoint"),
        },
    })
}
