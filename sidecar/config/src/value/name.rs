//! What people call things.

use std::{fmt, str::FromStr};

use super::Invalid;

/// RFC 1035 §2.3.4.
const MAX_NAME: usize = 253;
const MAX_LABEL: usize = 63;
/// The kernel's `IFNAMSIZ` without its zero.
const MAX_INTERFACE: usize = 15;

/// What a host can be called: labels of letters, digits, hyphens and underscores with dots between them.
pub(super) fn is_dns_name(text: &str) -> bool {
    let is_label = |label: &str| {
        let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        (1..=MAX_LABEL).contains(&label.len())
            && label.chars().all(inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= MAX_NAME && text.split('.').all(is_label)
}

/// A node's name in the mesh, at most 253 characters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hostname(String);

impl Hostname {
    /// The name nearest to what a machine calls itself: a machine may have any.
    pub fn of_machine(name: &str) -> Self {
        let kept = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
        let name: String = name.trim().chars().map(kept).take(MAX_NAME).collect();
        let labels = name.split('.').map(|label| {
            let label = label.get(..MAX_LABEL).unwrap_or(label);
            label.trim_matches('-')
        });
        let name = labels.filter(|label| !label.is_empty()).collect::<Vec<_>>().join(".");
        Self(if name.is_empty() { "unnamed".to_owned() } else { name })
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Hostname {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if is_dns_name(text) {
            return Ok(Self(text.to_owned()));
        }
        let shown: String = text.chars().take(64).collect();
        Err(Invalid(format!(
            "{shown:?} is no host name; write letters, digits and hyphens, with dots between, at most {MAX_NAME} characters"
        )))
    }
}

impl fmt::Display for Hostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Name of the TUN interface: what the kernel takes as one, at most 15 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TunName(String);

impl TunName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for TunName {
    fn default() -> Self {
        Self("easynet0".to_owned())
    }
}

impl FromStr for TunName {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let fits = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | ':' | '%' | '"');
        let is_taken = matches!(text, "." | ".." | "all" | "default");
        if (1..=MAX_INTERFACE).contains(&text.len()) && text.chars().all(fits) && !is_taken {
            return Ok(Self(text.to_owned()));
        }
        Err(Invalid(format!(
            "{text:?} is no name for an interface; write 1 to {MAX_INTERFACE} letters and digits, such as easynet0"
        )))
    }
}

impl fmt::Display for TunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_names_are_what_a_name_server_could_hold() {
        for right in ["a", "node-7.prod", "web_1", "NODE"] {
            assert_eq!(right.parse::<Hostname>().unwrap().as_str(), right);
        }
        let long = "a".repeat(64);
        for wrong in ["", "a b", "-a", "a..b", "a.", "ünder", "a\tb", long.as_str()] {
            assert!(wrong.parse::<Hostname>().is_err(), "{wrong:?}");
        }
        assert!(["a"; 127].join(".").parse::<Hostname>().is_ok());
        assert!(["a"; 128].join(".").parse::<Hostname>().is_err());
    }

    #[test]
    fn a_machines_own_name_is_made_to_fit() {
        for (name, fitted) in [
            ("node-7.lan\n", "node-7.lan"),
            ("Anna's Laptop", "Anna-s-Laptop"),
            ("  ", "unnamed"),
            ("(none)", "none"),
            (".a..b.", "a.b"),
        ] {
            let hostname = Hostname::of_machine(name);
            assert_eq!(hostname.as_str(), fitted);
            assert_eq!(fitted.parse(), Ok(hostname));
        }
        let long = Hostname::of_machine(&"é".repeat(300));
        assert_eq!(long.as_str(), "unnamed");
        let long = Hostname::of_machine(&"x".repeat(300));
        assert_eq!(long.as_str().parse(), Ok(long));
    }

    #[test]
    fn interface_names_are_what_the_kernel_takes() {
        assert!("ez-0.prod_a".parse::<TunName>().is_ok());
        for wrong in ["", "sixteen-letters-", "a b", "a/b", "ez%d", "..", "all", "é"] {
            assert!(wrong.parse::<TunName>().is_err(), "{wrong:?}");
        }
    }
}
