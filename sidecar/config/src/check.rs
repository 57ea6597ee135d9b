//! The file, checked: all problems at once, each with its place.

use std::{fmt, str::FromStr};

use ipnet::IpNet;

use crate::{
    API_VERSION, KIND,
    merge::{Origin, Partial, Sourced},
    sidecar::Imports,
    tree::{self, Node, Value},
    value::{Export, ImportMode, Invalid, Listen, Mtu, P2p, Punch},
};

/// Something wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub line: usize,
    pub column: usize,
    /// Where in the document: `transport.mtu`, `peers[1]`.
    pub path: String,
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}: ", self.line, self.column)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

/// What a configuration server delivered, as far as this version knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Delivered {
    pub partial: Partial,
    /// What it does not know, in the order of the text.
    pub passed_over: Vec<PassedOver>,
}

/// Something of a configuration that only a later version knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PassedOver {
    /// Where in the document: `node.mood`, `transport.punch`, `peers[1]`.
    pub path: String,
    /// What stands there, if the place is known and its word is not.
    pub word: Option<String>,
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A key may be anything.
        write!(f, "{}", self.path.escape_debug())?;
        match &self.word {
            Some(word) => write!(f, " {word:?}"),
            None => Ok(()),
        }
    }
}

/// Reads a configuration file. Nothing of it is used unless all of it is right.
///
/// # Errors
/// Everything that is wrong, in the order of the file.
pub fn parse(text: &str) -> Result<Partial, Vec<Problem>> {
    check(text, Origin::File).map(|delivered| delivered.partial)
}

/// Reads what a configuration server delivered, as JSON or YAML. The server may be of a later version, so what is not known is passed
/// over, and said: keys; items of a list that gives something (peers, listeners, exports, imports, exempt ranges); and where one word or
/// number is asked for, another form, in whose place the narrowest that is known stands. What has no narrowest is wrong: addresses, names
/// and ranges of the node, and protected ranges, without which more would be let in; and so is a map or a list that has another form, which
/// only another `apiVersion` may give it. Passed over, and nobody's news, is also what is the machine's own business (paths and sockets).
///
/// # Errors
/// Everything that is wrong with the rest, in the order of the text.
pub fn parse_delivered(text: &str) -> Result<Delivered, Vec<Problem>> {
    check(text, Origin::Server)
}

fn check(text: &str, origin: Origin) -> Result<Delivered, Vec<Problem>> {
    let root = match tree::read(text) {
        Ok(Some(root)) => root,
        Ok(None) => {
            let message = format!("the file is empty; it starts with `apiVersion: {API_VERSION}`");
            return Err(vec![Problem { line: 1, column: 1, path: String::new(), message }]);
        }
        Err((line, column, message)) => {
            return Err(vec![Problem { line, column, path: String::new(), message }]);
        }
    };
    let mut check = Check { origin, problems: Vec::new(), passed_over: Vec::new() };
    let partial = check.document(&root);
    if check.problems.is_empty() {
        return Ok(Delivered { partial, passed_over: check.passed_over });
    }
    check.problems.sort_by_key(|problem| (problem.line, problem.column));
    Err(check.problems)
}

/// Keys that a person sets on the machine and a server never does.
const OWN: [&str; 5] = ["secretFile", "stateDir", "admin", "adminTokenFile", "metrics"];

struct Check {
    origin: Origin,
    problems: Vec<Problem>,
    passed_over: Vec<PassedOver>,
}

impl Check {
    fn document(&mut self, root: &Node) -> Partial {
        let mut partial = Partial::default();
        let keys = [
            "apiVersion",
            "kind",
            "network",
            "node",
            "listen",
            "peers",
            "exports",
            "imports",
            "protected",
            "exempt",
            "transport",
            "roles",
            "admin",
            "adminTokenFile",
            "metrics",
        ];
        let mut seen = (false, false);
        for (key, node) in self.map(root, "", &keys) {
            match key {
                "apiVersion" => {
                    seen.0 = true;
                    self.constant(node, "apiVersion", API_VERSION);
                }
                "kind" => {
                    seen.1 = true;
                    self.constant(node, "kind", KIND);
                }
                "network" => self.network(node, &mut partial),
                "node" => self.node(node, &mut partial),
                "listen" => partial.listen = self.list(node, "listen", &[Listen::None]),
                "peers" => partial.peers = self.list(node, "peers", &[]),
                "exports" => partial.exports = self.exports(node),
                "imports" => partial.imports = Some(self.imports(node)),
                "protected" => partial.protected = self.cidrs(node, "protected"),
                "exempt" => partial.exempt = self.given_cidrs(node, "exempt"),
                "transport" => self.transport(node, &mut partial),
                "roles" => {
                    for (_, node) in self.map(node, "roles", &["transit"]) {
                        partial.transit = self.transit(node);
                    }
                }
                "admin" => partial.admin = self.parsed(node, "admin"),
                "adminTokenFile" => {
                    partial.admin_token_file =
                        self.text::<std::path::PathBuf>(node, "adminTokenFile").map(some);
                }
                _ => {
                    partial.metrics =
                        self.value::<std::net::SocketAddr>(node, "metrics", "HOST:PORT").map(some)
                }
            }
        }
        if !seen.0 {
            self.problem(
                root,
                "apiVersion",
                format!("is missing; write `apiVersion: {API_VERSION}`"),
            );
        }
        if !seen.1 {
            self.problem(root, "kind", format!("is missing; write `kind: {KIND}`"));
        }
        partial
    }

    fn network(&mut self, node: &Node, partial: &mut Partial) {
        for (key, node) in self.map(node, "network", &["name", "secretFile", "range"]) {
            match key {
                "name" => partial.network = self.text::<String>(node, "network.name").map(some),
                "secretFile" => {
                    partial.secret_file =
                        self.text::<std::path::PathBuf>(node, "network.secretFile").map(some);
                }
                _ => partial.range = self.parsed(node, "network.range"),
            }
        }
    }

    fn node(&mut self, node: &Node, partial: &mut Partial) {
        for (key, node) in self.map(node, "node", &["hostname", "ipv4", "ipv6", "stateDir", "tun"])
        {
            match key {
                "hostname" => partial.hostname = self.parsed(node, "node.hostname").map(some),
                "ipv4" => partial.ipv4 = self.parsed(node, "node.ipv4"),
                "ipv6" => partial.ipv6 = self.parsed(node, "node.ipv6"),
                "stateDir" => partial.state_dir = self.text(node, "node.stateDir"),
                _ => partial.tun = self.parsed(node, "node.tun"),
            }
        }
    }

    fn transport(&mut self, node: &Node, partial: &mut Partial) {
        for (key, node) in self.map(node, "transport", &["mtu", "p2p", "punch"]) {
            match key {
                "mtu" => partial.mtu = self.mtu(node),
                "p2p" => partial.p2p = self.choice(node, "transport.p2p", Some(P2p::RelayOnly)),
                _ => partial.punch = self.choice(node, "transport.punch", Some(Punch::Off)),
            }
        }
    }

    fn transit(&mut self, node: &Node) -> Option<Sourced<bool>> {
        let path = "roles.transit";
        if self.is_unknown::<bool>(node) {
            self.pass_over(node, path);
            return Some(self.said(false));
        }
        self.value(node, path, "true or false")
    }

    fn exports(&mut self, node: &Node) -> Option<Sourced<Vec<Export>>> {
        let items = self.items(node, "exports")?;
        let mut exports: Vec<Export> = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let path = format!("exports[{index}]");
            if self.is_lenient() && !matches!(item.value, Value::Map(_)) {
                self.pass_over(item, &path);
                continue;
            }
            let (mut cidr, mut map_to, mut masquerade) = (None, None, None);
            let (mut is_there, mut is_clear) = (false, true);
            for (key, node) in self.map(item, &path, &["cidr", "mapTo", "masquerade"]) {
                let path = format!("{path}.{key}");
                let is_read = match key {
                    "cidr" => {
                        is_there = true;
                        cidr = self.given_subnet(node, &path);
                        cidr.is_some()
                    }
                    "mapTo" => {
                        map_to = self.given_subnet(node, &path);
                        map_to.is_some()
                    }
                    _ => {
                        masquerade = self.choice(node, &path, None);
                        masquerade.is_some()
                    }
                };
                is_clear &= is_read || !self.is_lenient();
            }
            let Some(cidr) = cidr else {
                if !is_there && matches!(item.value, Value::Map(_)) {
                    self.problem(item, &path, "names no subnet; write cidr: 10.42.0.0/24".into());
                }
                continue;
            };
            match Export::new(cidr, map_to) {
                Ok(export) if exports.iter().any(|has| has.announced() == export.announced()) => {
                    let message = format!("{} is exported twice", export.announced());
                    self.problem(item, &path, message);
                }
                // Announced is only what is served as it is meant.
                Ok(_) if !is_clear => {}
                Ok(export) => exports.push(Export {
                    masquerade: masquerade.map_or(export.masquerade, |said| said.value),
                    ..export
                }),
                Err(Invalid(why)) => self.problem(item, &path, why),
            }
        }
        Some(self.said(exports))
    }

    fn imports(&mut self, node: &Node) -> Sourced<Imports> {
        let mut imports = Imports::default();
        for (key, node) in self.map(node, "imports", &["mode", "cidrs"]) {
            if key == "mode" {
                if let Some(mode) = self.choice(node, "imports.mode", Some(ImportMode::None)) {
                    imports.mode = mode.value;
                }
            } else if let Some(cidrs) = self.given_cidrs(node, "imports.cidrs") {
                imports.cidrs = cidrs.value;
            }
        }
        self.said(imports)
    }

    /// Subnets without one of which less would be right, so that all of them must be known.
    fn cidrs(&mut self, node: &Node, path: &str) -> Option<Sourced<Vec<IpNet>>> {
        self.subnets(node, path, Self::subnet)
    }

    /// Subnets each of which gives something, so that one that is not known can be left out.
    fn given_cidrs(&mut self, node: &Node, path: &str) -> Option<Sourced<Vec<IpNet>>> {
        self.subnets(node, path, Self::given_subnet)
    }

    fn subnets(
        &mut self,
        node: &Node,
        path: &str,
        read: impl Fn(&mut Self, &Node, &str) -> Option<IpNet>,
    ) -> Option<Sourced<Vec<IpNet>>> {
        let items = self.items(node, path)?;
        let parsed = items
            .iter()
            .enumerate()
            .filter_map(|(index, item)| read(self, item, &format!("{path}[{index}]")))
            .map(|net| net.trunc())
            .collect();
        Some(self.said(parsed))
    }

    fn subnet(&mut self, node: &Node, path: &str) -> Option<IpNet> {
        let net = self.value::<IpNet>(node, path, "a subnet such as 10.42.0.0/24")?;
        Some(net.value)
    }

    fn given_subnet(&mut self, node: &Node, path: &str) -> Option<IpNet> {
        if self.is_unknown::<IpNet>(node) {
            self.pass_over(node, path);
            return None;
        }
        self.subnet(node, path)
    }

    /// A number must be a right one; for a word of a later version stands the least that every underlay carries.
    fn mtu(&mut self, node: &Node) -> Option<Sourced<Mtu>> {
        let is_number = matches!(&node.value, Value::Scalar(text) if is_number(text));
        let path = "transport.mtu";
        if is_number { self.parsed(node, path) } else { self.choice(node, path, Some(Mtu::LEAST)) }
    }

    /// Of several words or forms; `none` stands for a list in which nothing is known.
    fn list<T: FromStr<Err = Invalid> + Clone>(
        &mut self,
        node: &Node,
        path: &str,
        none: &[T],
    ) -> Option<Sourced<Vec<T>>> {
        let items = self.items(node, path)?;
        let parsed = items.iter().enumerate().filter_map(|(index, item)| {
            self.choice(item, &format!("{path}[{index}]"), None).map(|sourced| sourced.value)
        });
        let parsed: Vec<T> = parsed.collect();
        let is_known = !parsed.is_empty() || items.is_empty();
        Some(self.said(if is_known { parsed } else { none.to_vec() }))
    }

    fn items<'a>(&mut self, node: &'a Node, path: &str) -> Option<&'a [Node]> {
        match &node.value {
            Value::List(items) => Some(items),
            Value::Scalar(_) | Value::Map(_) => {
                self.problem(
                    node,
                    path,
                    "is not a list; write one item a line, each after a dash".to_owned(),
                );
                None
            }
        }
    }

    fn constant(&mut self, node: &Node, path: &str, expected: &str) {
        if self.text::<String>(node, path).is_some_and(|found| found.value != expected) {
            self.problem(node, path, format!("is not what this version reads; write {expected}"));
        }
    }

    fn text<T: From<String>>(&mut self, node: &Node, path: &str) -> Option<Sourced<T>> {
        match &node.value {
            Value::Scalar(text) if !text.is_empty() => Some(self.said(T::from(text.clone()))),
            Value::Scalar(_) => {
                self.problem(node, path, "is empty".to_owned());
                None
            }
            Value::List(_) | Value::Map(_) => {
                self.problem(node, path, "is not a text".to_owned());
                None
            }
        }
    }

    fn parsed<T: FromStr<Err = Invalid>>(&mut self, node: &Node, path: &str) -> Option<Sourced<T>> {
        let text = self.text::<String>(node, path)?.value;
        match text.parse() {
            Ok(value) => Some(self.said(value)),
            Err(Invalid(why)) => {
                self.problem(node, path, why);
                None
            }
        }
    }

    /// One of several words or forms, to which later versions may add; `narrowest` is the one that opens nothing.
    fn choice<T: FromStr<Err = Invalid>>(
        &mut self,
        node: &Node,
        path: &str,
        narrowest: Option<T>,
    ) -> Option<Sourced<T>> {
        if self.is_unknown::<T>(node) {
            self.pass_over(node, path);
            return narrowest.map(|value| self.said(value));
        }
        self.parsed(node, path)
    }

    /// Whether it may be something of a later version.
    fn is_unknown<T: FromStr>(&self, node: &Node) -> bool {
        let is_known = matches!(&node.value, Value::Scalar(text) if text.parse::<T>().is_ok());
        self.is_lenient() && !is_known
    }

    fn pass_over(&mut self, node: &Node, path: &str) {
        let word = match &node.value {
            Value::Scalar(word) => Some(word.clone()),
            Value::List(_) | Value::Map(_) => None,
        };
        self.passed_over.push(PassedOver { path: path.to_owned(), word });
    }

    /// Whether the text may be of a later version.
    fn is_lenient(&self) -> bool {
        self.origin == Origin::Server
    }

    fn value<T: FromStr>(&mut self, node: &Node, path: &str, expected: &str) -> Option<Sourced<T>> {
        let text = self.text::<String>(node, path)?.value;
        match text.parse() {
            Ok(value) => Some(self.said(value)),
            Err(_) => {
                self.problem(node, path, format!("is {text:?}; write {expected}"));
                None
            }
        }
    }

    /// The known entries of a map; unknown and repeated ones are problems.
    fn map<'a>(
        &mut self,
        node: &'a Node,
        path: &str,
        known: &[&'static str],
    ) -> Vec<(&'static str, &'a Node)> {
        let Value::Map(entries) = &node.value else {
            let message = format!("is not a map; it has the keys {}", known.join(", "));
            self.problem(node, path, message);
            return Vec::new();
        };
        let mut found: Vec<(&'static str, &Node)> = Vec::new();
        for (key, value) in entries {
            let Value::Scalar(name) = &key.value else {
                self.problem(key, path, "has a key that is no text".to_owned());
                continue;
            };
            let full = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
            let lenient = self.is_lenient();
            if lenient && OWN.contains(&name.as_str()) {
                continue;
            }
            match known.iter().find(|known| *known == name) {
                Some(known) if found.iter().any(|(seen, _)| seen == known) => {
                    self.problem(key, &full, "stands here twice".to_owned());
                }
                Some(known) => found.push((known, value)),
                None if lenient => {
                    self.passed_over.push(PassedOver { path: full, word: None });
                }
                None => {
                    let nearest = known.iter().min_by_key(|known| distance(known, name));
                    let hint = match nearest
                        .filter(|nearest| distance(nearest, name) <= name.len().div_ceil(3))
                    {
                        Some(nearest) => format!("did you mean {nearest}?"),
                        None => format!("there is {}", known.join(", ")),
                    };
                    self.problem(key, &full, format!("is not known; {hint}"));
                }
            }
        }
        found
    }

    fn said<T>(&self, value: T) -> Sourced<T> {
        Sourced { value, origin: self.origin }
    }

    fn problem(&mut self, node: &Node, path: &str, message: String) {
        self.problems.push(Problem {
            line: node.line,
            column: node.column,
            path: path.to_owned(),
            message,
        });
    }
}

fn some<T>(sourced: Sourced<T>) -> Sourced<Option<T>> {
    Sourced { value: Some(sourced.value), origin: sourced.origin }
}

/// Whether a text is a number, of whatever size and form.
fn is_number(text: &str) -> bool {
    // Without a digit are `inf` and `nan`, words to everybody else.
    text.parse::<f64>().is_ok() && text.contains(|char: char| char.is_ascii_digit())
}

/// Edits between two words (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::value::{Listen, Masquerade, Punch};

    const GOOD: &str = "\
apiVersion: config.easynet.io/v1alpha1
kind: Sidecar
network: {name: prod, secretFile: /etc/easynet/secret}
node: {hostname: a, ipv4: auto, ipv6: auto}
listen: [11010]
peers: [\"udp://relay.example.com:11010\"]
exports: [{cidr: 10.42.0.0/24}]
transport: {mtu: 1320, p2p: on, punch: light}
roles: {transit: false}
";

    #[test]
    fn the_documented_file_is_read() {
        let settings = parse(GOOD).unwrap().settle();

        assert_eq!(settings.network.value.as_deref(), Some("prod"));
        assert_eq!(settings.listen.value, [Listen::Port(11010)]);
        assert_eq!(settings.punch.value, Punch::Light);
        assert_eq!(settings.exports.value, ["10.42.0.0/24".parse().unwrap()]);
        assert_eq!(settings.imports.value, Imports::default());
        assert_eq!(settings.punch.origin, Origin::File);
    }

    #[test]
    fn everything_that_is_wrong_is_said_at_once() {
        let text = "\
apiVersion: config.easynet.io/v1alpha1
kind: Sidecar
netwrok: {name: prod}
listen: 11010
peers: [\"quic://a\", \"udp://b\"]
exports: [{cidr: 10.42.0.0/33}]
transport:
  mtu: 12
  punsh: full
";
        let problems: Vec<String> =
            parse(text).unwrap_err().iter().map(ToString::to_string).collect();

        assert_eq!(
            problems,
            [
                "line 3, column 1: netwrok: is not known; did you mean network?",
                "line 4, column 9: listen: is not a list; write one item a line, each after a dash",
                "line 5, column 9: peers[0]: \"quic://a\" uses quic://, which is not there yet; write \
                 udp://HOST:PORT or tcp://HOST:PORT",
                "line 6, column 18: exports[0].cidr: is \"10.42.0.0/33\"; write a subnet such as 10.42.0.0/24",
                "line 8, column 8: transport.mtu: the MTU \"12\" is not between 1280 and 9000",
                "line 9, column 3: transport.punsh: is not known; did you mean punch?",
            ]
        );
    }

    #[test]
    fn maps_imports_and_protected_ranges_are_read_and_checked() {
        let head = "apiVersion: config.easynet.io/v1alpha1\nkind: Sidecar\n";
        let good = "\
exports:
  - {cidr: 10.42.0.0/16, mapTo: 10.200.0.0/16, masquerade: never}
imports: {mode: listed, cidrs: [10.201.0.0/16]}
protected: [10.96.0.0/12, \"fd00:96::/108\"]
exempt: [10.42.0.0/16]
";
        let settings = parse(&format!("{head}{good}")).unwrap().settle();
        assert_eq!(settings.exports.value[0].announced(), "10.200.0.0/16".parse().unwrap());
        assert_eq!(settings.exports.value[0].masquerade, Masquerade::Never);
        assert_eq!(settings.imports.value.mode, ImportMode::Listed);
        assert_eq!(settings.protected.value.len(), 2);

        let bad = "\
exports:
  - {cidr: 10.42.0.0/16, mapTo: 10.200.0.0/24}
  - {mapTo: 10.200.0.0/24}
  - {cidr: 10.1.0.0/24, masquerade: sometimes}
  - {cidr: 10.1.0.0/24}
imports: {mode: some}
protected: [everything]
";
        let problems: Vec<String> = parse(&format!("{head}{bad}"))
            .unwrap_err()
            .iter()
            .map(|problem| problem.message.clone())
            .collect();
        assert_eq!(
            problems,
            [
                "10.42.0.0/16 cannot be mapped to 10.200.0.0/24: write a network of the same family and the same \
                 length",
                "names no subnet; write cidr: 10.42.0.0/24",
                "masquerade is \"sometimes\"; write inbound or never or always",
                "10.1.0.0/24 is exported twice",
                "the mode of imports is \"some\"; write all or listed or none",
                "is \"everything\"; write a subnet such as 10.42.0.0/24",
            ]
        );
    }

    #[test]
    fn what_is_no_yaml_has_a_place() {
        let problems = parse("a: [1\nb: 2").unwrap_err();

        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("not YAML"), "{}", problems[0]);
        assert!(parse("").unwrap_err()[0].message.contains("empty"));
    }
}
