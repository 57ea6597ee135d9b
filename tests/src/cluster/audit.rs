//! What the API server answered, from its audit log.

use std::{
    fs::File,
    io::{Read, Seek, SeekFrom},
    path::PathBuf,
    time::Duration,
};

use serde_json::Value;

/// Requests answered since it was made, or since the last look.
#[derive(Debug)]
pub struct Audit {
    log: PathBuf,
    position: u64,
}

/// A request that the API server answered. A watch is one when it begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    pub user: String,
    pub agent: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` …
    pub verb: String,
    /// With its subresource: `easynetworks/status`. Empty for what is no resource.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// 0 while a watch goes on.
    pub code: u16,
    pub uri: String,
}

impl Request {
    /// Whether it would change something if it succeeded.
    pub fn is_write(&self) -> bool {
        !["get", "list", "watch"].contains(&self.verb.as_str())
    }

    /// Whether the user had no right to ask.
    pub fn is_forbidden(&self) -> bool {
        self.code == 403
    }
}

impl Audit {
    pub(super) fn new(log: PathBuf) -> Self {
        let position = log.metadata().map_or(0, |file| file.len());
        Self { log, position }
    }

    /// All requests since the last look.
    pub fn requests(&mut self) -> Vec<Request> {
        let Ok(mut log) = File::open(&self.log) else { return Vec::new() };
        let mut text = String::new();
        log.seek(SeekFrom::Start(self.position)).expect("a file can be read from anywhere");
        log.read_to_string(&mut text).expect("the log is text");
        // The last line may still be written.
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        self.position += complete as u64;
        text[..complete].lines().filter_map(parse).collect()
    }

    /// Those of one user, such as `system:serviceaccount:easynet-system:easynet-operator`.
    pub fn requests_of(&mut self, user: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.user == user);
        requests
    }

    /// The requests of one user during this time.
    pub async fn watch_user(&mut self, user: &str, time: Duration) -> Vec<Request> {
        self.requests();
        tokio::time::sleep(time).await;
        self.requests_of(user)
    }
}

fn parse(line: &str) -> Option<Request> {
    let event: Value = serde_json::from_str(line).ok()?;
    // A watch is written when it begins and when it ends.
    let verb = text(&event["verb"]);
    if verb == "watch" && event["stage"] != "ResponseStarted" {
        return None;
    }
    let object = &event["objectRef"];
    let mut resource = text(&object["resource"]);
    if let Some(subresource) = object["subresource"].as_str() {
        resource = format!("{resource}/{subresource}");
    }
    Some(Request {
        user: text(&event["user"]["username"]),
        agent: text(&event["userAgent"]),
        verb,
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        code: event["responseStatus"]["code"]
            .as_u64()
            .and_then(|code| code.try_into().ok())
            .unwrap_or(0),
        uri: text(&event["requestURI"]),
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}
