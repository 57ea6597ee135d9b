//! Texts with a rule of their own, checked by the API server wherever they stand.

use std::{borrow::Cow, fmt, ops::Deref};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A range of addresses such as `10.42.0.0/16`. Not parsed here: an object from before the schema may hold anything.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Cidr(pub String);

/// Where to start: `udp://HOST:PORT?k=KEY`. Not parsed here.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerUrl(pub String);

/// The MTU of the mesh interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mtu {
    /// What fits every usual underlay.
    #[default]
    Auto,
    Bytes(u16),
}

impl JsonSchema for Cidr {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // The API server computes the cost of rules from the length; 43 is that of the longest range.
        json_schema!({
            "type": "string",
            "maxLength": 43,
            "x-kubernetes-validations": [
                {
                    "rule": "isCIDR(self)",
                    "messageExpression": "self + ' is no range of addresses; write ADDRESS/LENGTH such as 10.42.0.0/16 or fd00:42::/48'",
                },
                {
                    // For `isCIDR` 10.0.0.5/24 is one. Naming the right range here would cost more than a schema may.
                    "rule": "!isCIDR(self) || cidr(self) == cidr(self).masked()",
                    "message": "that is one address of a range; write the range itself, with zeros after its prefix, such as 10.42.0.0/16 or fd00:42::/48",
                },
            ],
        })
    }
}

impl JsonSchema for PeerUrl {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "PeerUrl".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 512,
            "x-kubernetes-validations": [
                {
                    "rule": r"self.matches('^(udp|tcp)://([^/?#@:\\s]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?/?([?]k=[A-Za-z2-7]{103})?$')",
                    "messageExpression": "self + ' is no peer; write udp://HOST:PORT?k=KEY or tcp://HOST:PORT?k=KEY, where KEY is what `easynet key show` prints there'",
                },
            ],
        })
    }
}

impl JsonSchema for Mtu {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Mtu".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "x-kubernetes-int-or-string": true,
            "x-kubernetes-validations": [
                {
                    "rule": "type(self) == int ? self >= 1280 && self <= 9000 : self == 'Auto'",
                    "message": "write Auto or a number from 1280 to 9000",
                },
            ],
        })
    }
}

impl Serialize for Mtu {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Auto => serializer.serialize_str("Auto"),
            Self::Bytes(bytes) => serializer.serialize_u16(*bytes),
        }
    }
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl de::Visitor<'_> for Visitor {
            type Value = Mtu;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("Auto or a number of bytes")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Mtu, E> {
                if text == "Auto" {
                    Ok(Mtu::Auto)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<Mtu, E> {
                u16::try_from(bytes)
                    .map(Mtu::Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(bytes), &self))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<Mtu, E> {
                u16::try_from(bytes)
                    .map(Mtu::Bytes)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(bytes), &self))
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

macro_rules! text {
    ($($name:ident),*) => {$(
        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    )*};
}

text!(Cidr, PeerUrl);
