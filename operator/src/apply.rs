//! Brings objects into the state that a plan wants, by server-side apply, and deletes what a plan does not want.
//!
//! An apply is a request even if it changes nothing, so [`Queue`] sends an object only if it differs from what was applied last, or
//! somebody changed the live object since. An operator that takes over knows no last apply; it compares the live object with the
//! wanted one instead. One write per object and [`AT_ONCE`] in all run at a time; what failed waits, each object by itself.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use kube::{
    Api, Client,
    api::{ApiResource, DeleteParams, DynamicObject, Patch, PatchParams},
};
use serde_json::Value;

use crate::{
    api::{self, Failure},
    backoff::Backoff,
    index::World,
    names,
    plan::{Object, ObjectKey, Target},
};

/// Writes that run at a time: more would only queue up in the API server, which has others to serve.
pub const AT_ONCE: usize = 8;
/// What was written is believed to be there for so long, before the watch shows it.
const BELIEVED: Duration = Duration::from_secs(10);
/// Says which desired state an object was applied from.
pub const APPLIED: &str = "easynet.io/applied";

/// Something to be done.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    Apply(Object),
    Delete { key: ObjectKey, uid: Option<String> },
}

impl Write {
    pub fn key(&self) -> &ObjectKey {
        match self {
            Self::Apply(object) => &object.key,
            Self::Delete { key, .. } => key,
        }
    }

    /// The network that the object is made for, if it is for one.
    pub fn network(&self) -> Option<&str> {
        let Self::Apply(object) = self else { return None };
        object.body.pointer("/metadata/labels")?.get(names::NETWORK)?.as_str()
    }
}

/// What a write led to.
#[derive(Clone, Debug, PartialEq)]
pub enum Written {
    Applied { hash: u64, mark: Mark, object: Box<DynamicObject> },
    Deleted,
}

/// By which a change of a live object shows: its generation, or its version where it has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    pub uid: String,
    pub generation: Option<i64>,
    /// Counts only without a generation.
    pub version: String,
}

impl Mark {
    fn is(&self, other: &Self) -> bool {
        let same = match (self.generation, other.generation) {
            (Some(a), Some(b)) => a == b,
            _ => self.version == other.version,
        };
        self.uid == other.uid && same
    }

    /// Whether this is the same object as it was before `other`. Versions of one object are numbers that grow.
    fn is_before(&self, other: &Self) -> bool {
        let number = |mark: &Self| mark.version.parse::<u64>().unwrap_or_default();
        self.uid == other.uid && number(self) < number(other)
    }
}

/// What was applied last.
#[derive(Clone, Debug)]
struct Last {
    hash: u64,
    mark: Mark,
    at: Instant,
    /// The watch has shown it since.
    is_seen: bool,
}

/// A write that has not begun.
#[derive(Debug)]
struct Waiting {
    write: Write,
    /// There is no such object yet.
    is_new: bool,
}

/// Decides what to write next.
#[derive(Debug, Default)]
pub struct Queue {
    waiting: BTreeMap<ObjectKey, Waiting>,
    running: BTreeSet<ObjectKey>,
    applied: BTreeMap<ObjectKey, Last>,
    failed: BTreeMap<ObjectKey, (Backoff, Instant)>,
}

impl Queue {
    /// Takes what a plan wants of the objects whose key `is_mine` says is that plan's; it replaces what the last plan wanted of
    /// these.
    pub fn want(
        &mut self,
        world: &World,
        is_mine: impl Fn(&ObjectKey) -> bool,
        objects: Vec<Object>,
        obsolete: BTreeSet<ObjectKey>,
        now: Instant,
    ) {
        self.waiting.retain(|key, _| !is_mine(key));
        for object in objects {
            let live = live(world, &object.key);
            if !self.is_as_applied(&object, live.as_ref(), now) {
                let is_new = live.is_none();
                self.waiting
                    .insert(object.key.clone(), Waiting { write: Write::Apply(object), is_new });
            }
        }
        for key in obsolete {
            if let Some(live) = live(world, &key) {
                let uid = Some(live.mark.uid).filter(|uid| !uid.is_empty());
                let write = Write::Delete { key: key.clone(), uid };
                self.waiting.insert(key, Waiting { write, is_new: false });
            } else {
                self.applied.remove(&key);
                self.failed.remove(&key);
            }
        }
    }

    fn is_as_applied(
        &mut self,
        object: &Object,
        live: Option<&LiveObject<'_>>,
        now: Instant,
    ) -> bool {
        let is_known = self.applied.contains_key(&object.key);
        let last = self.applied.get_mut(&object.key).filter(|last| last.hash == object.hash);
        match (last, live) {
            // The watch has yet to show what was just written.
            (Some(last), Some(live)) if live.mark.is_before(&last.mark) => true,
            (Some(last), Some(live)) => {
                last.is_seen = true;
                last.mark.is(&live.mark)
            }
            (Some(last), None) => !last.is_seen && now < last.at + BELIEVED,
            (None, Some(_)) if is_known => false,
            (None, Some(live)) => {
                let body = live.body();
                let from =
                    |body: &Value| body.pointer("/metadata/annotations")?.get(APPLIED).cloned();
                from(&body) == from(&object.body) && covers(&body, &object.body)
            }
            (None, None) => false,
        }
    }

    /// The next thing to do, if something may be done now. Of one kind what is missing goes first: somebody waits for it, while of
    /// what is there the last word holds.
    pub fn poll_write(&mut self, now: Instant) -> Option<Write> {
        if self.running.len() >= AT_ONCE {
            return None;
        }
        let due = |key: &ObjectKey| {
            !self.running.contains(key) && self.failed.get(key).is_none_or(|(_, at)| *at <= now)
        };
        let mut all = self.waiting.iter().filter(|(key, _)| due(key));
        let (first, waiting) = all.next()?;
        let missing = || {
            let mut alike = all.take_while(|(key, _)| key.target == first.target);
            alike.find(|(_, waiting)| waiting.is_new).map(|(key, _)| key)
        };
        let key = if waiting.is_new { first } else { missing().unwrap_or(first) }.clone();
        self.running.insert(key.clone());
        self.waiting.remove(&key).map(|waiting| waiting.write)
    }

    /// When something that failed may be tried again.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let tried = self.waiting.keys().filter_map(|key| self.failed.get(key).map(|(_, at)| *at));
        // What is due already starts when something that runs has ended.
        tried.filter(|at| *at > now).min()
    }

    pub fn handle_written(&mut self, key: &ObjectKey, written: &Written, now: Instant) {
        self.running.remove(key);
        self.failed.remove(key);
        match written {
            Written::Applied { hash, mark, .. } => {
                let last = Last { hash: *hash, mark: mark.clone(), at: now, is_seen: false };
                self.applied.insert(key.clone(), last);
            }
            Written::Deleted => {
                self.applied.remove(key);
            }
        }
    }

    /// Notes a failure; the write is tried again after the returned pause, unless a plan changes its mind.
    pub fn handle_failed(&mut self, write: Write, now: Instant) -> Duration {
        let key = write.key().clone();
        self.running.remove(&key);
        self.applied.remove(&key);
        let salt = names::hash64(&[&key.name]);
        let (backoff, at) =
            self.failed.entry(key.clone()).or_insert_with(|| (Backoff::new(salt), now));
        let pause = backoff.failed();
        *at = now + pause;
        self.waiting.entry(key).or_insert(Waiting { write, is_new: false });
        pause
    }

    /// Writes that wait or run.
    pub fn len(&self) -> usize {
        self.waiting.len() + self.running.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Does one write.
///
/// # Errors
/// As the API server says. That something to be deleted is not there is well.
pub async fn write(client: Client, write: &Write) -> Result<Written, Failure> {
    let key = write.key();
    let resource = resource(key.target);
    let objects: Api<DynamicObject> = if key.namespace.is_empty() {
        Api::all_with(client, &resource)
    } else {
        Api::namespaced_with(client, &key.namespace, &resource)
    };
    match write {
        Write::Apply(object) => {
            let params = PatchParams::apply(names::FIELD_MANAGER).force();
            let patch = Patch::Apply(&*object.body);
            let live = api::within(api::WITHIN, objects.patch(&key.name, &params, &patch)).await?;
            let meta = &live.metadata;
            let mark = Mark {
                uid: meta.uid.clone().unwrap_or_default(),
                generation: meta.generation,
                version: meta.resource_version.clone().unwrap_or_default(),
            };
            Ok(Written::Applied { hash: object.hash, mark, object: Box::new(live) })
        }
        Write::Delete { uid, .. } => {
            let mut params = DeleteParams::background();
            if let Some(uid) = uid {
                let preconditions = kube::api::Preconditions {
                    uid: Some(uid.clone()),
                    ..kube::api::Preconditions::default()
                };
                params = params.preconditions(preconditions);
            }
            match api::within(api::WITHIN, objects.delete(&key.name, &params)).await {
                Ok(_) => Ok(Written::Deleted),
                // Gone, or another object of the same name by now.
                Err(failure) if failure.is_not_found() || failure.is_conflict() => {
                    Ok(Written::Deleted)
                }
                Err(failure) => Err(failure),
            }
        }
    }
}

fn resource(target: Target) -> ApiResource {
    let (group, version, kind, plural) = match target {
        Target::ConfigMap => ("", "v1", "ConfigMap", "configmaps"),
        Target::EndpointSlice => ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
        Target::DaemonSet => ("apps", "v1", "DaemonSet", "daemonsets"),
        Target::Peer => (crds::GROUP, crds::VERSION, "EasyPeer", "easypeers"),
    };
    let api_version =
        if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

struct LiveObject<'a> {
    mark: Mark,
    body: Body<'a>,
}

enum Body<'a> {
    Json(&'a Value),
    Peer(&'a crds::EasyPeer),
}

impl LiveObject<'_> {
    fn body(&self) -> Value {
        match self.body {
            Body::Json(value) => value.clone(),
            Body::Peer(peer) => serde_json::to_value(peer).unwrap_or_default(),
        }
    }
}

fn live<'a>(world: &'a World, key: &ObjectKey) -> Option<LiveObject<'a>> {
    if key.target == Target::Peer {
        let peer = world.peers.get(&key.name)?;
        let mark = Mark {
            uid: peer.metadata.uid.clone().unwrap_or_default(),
            generation: peer.metadata.generation,
            version: peer.metadata.resource_version.clone().unwrap_or_default(),
        };
        return Some(LiveObject { mark, body: Body::Peer(peer) });
    }
    let objects = match key.target {
        Target::ConfigMap => &world.config_maps,
        Target::EndpointSlice => &world.slices,
        Target::DaemonSet | Target::Peer => &world.daemon_sets,
    };
    let live = objects.get(&format!("{}/{}", key.namespace, key.name))?;
    let mark =
        Mark { uid: live.uid.clone(), generation: live.generation, version: live.version.clone() };
    Some(LiveObject { mark, body: Body::Json(&live.object) })
}

/// Whether `live` says everything that `wanted` says.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => wanted.iter().all(|(key, wanted)| {
            match live.get(key) {
                Some(live) => covers(live, wanted),
                // The API server leaves out what is empty.
                None => is_empty(wanted),
            }
        }),
        (Value::Array(live), Value::Array(wanted)) => {
            live.len() == wanted.len()
                && live.iter().zip(wanted).all(|(live, wanted)| covers(live, wanted))
        }
        (live, wanted) => live == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(all) => all.is_empty(),
        Value::Object(all) => all.is_empty(),
        Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::index::{Change, Delta, Index, Live};

    fn object(text: &str) -> Object {
        let body = json!({"metadata": {"name": "a"}, "data": {"text": text}});
        Object::new(Target::ConfigMap, "ns", "a".to_owned(), body)
    }

    /// The world with the object in it as the API server has it.
    fn world(text: &str, version: &str) -> World {
        let mut body = Value::clone(&object(text).body);
        body["metadata"]["uid"] = json!("1");
        let live = Live {
            uid: "1".to_owned(),
            version: version.to_owned(),
            object: body,
            ..Live::default()
        };
        let mut index = Index::default();
        index.apply(Change::ConfigMaps(Delta::Put("ns/a".to_owned(), Ok(Arc::new(live)))));
        index.world().clone()
    }

    fn applied(object: &Object, version: &str) -> Written {
        let mark = Mark { uid: "1".to_owned(), generation: None, version: version.to_owned() };
        let live = DynamicObject::new("a", &resource(Target::ConfigMap));
        Written::Applied { hash: object.hash, mark, object: Box::new(live) }
    }

    fn want(queue: &mut Queue, world: &World, object: Object) -> Option<Write> {
        queue.want(world, |_| true, vec![object], BTreeSet::new(), Instant::now());
        queue.poll_write(Instant::now())
    }

    #[test]
    fn what_was_applied_and_is_so_still_is_not_sent_again() {
        let mut queue = Queue::default();
        let first = want(&mut queue, &World::default(), object("x"));
        assert_eq!(first, Some(Write::Apply(object("x"))));
        queue.handle_written(&object("x").key, &applied(&object("x"), "5"), Instant::now());

        assert_eq!(want(&mut queue, &world("x", "5"), object("x")), None);
        assert!(queue.is_empty());
    }

    #[test]
    fn an_edit_by_somebody_else_is_repaired() {
        let mut queue = Queue::default();
        queue.handle_written(&object("x").key, &applied(&object("x"), "5"), Instant::now());

        assert!(want(&mut queue, &world("y", "6"), object("x")).is_some());
    }

    #[test]
    fn what_the_watch_has_yet_to_show_is_not_written_again() {
        let mut queue = Queue::default();
        queue.handle_written(&object("x").key, &applied(&object("x"), "5"), Instant::now());

        assert_eq!(want(&mut queue, &World::default(), object("x")), None);
        assert_eq!(want(&mut queue, &world("old", "4"), object("x")), None);
        assert_eq!(want(&mut queue, &world("x", "5"), object("x")), None);
        // It was there, and now it is not: somebody deleted it.
        assert!(want(&mut queue, &World::default(), object("x")).is_some());
    }

    #[test]
    fn a_changed_wish_is_sent() {
        let mut queue = Queue::default();
        queue.handle_written(&object("x").key, &applied(&object("x"), "5"), Instant::now());

        assert!(want(&mut queue, &world("x", "5"), object("z")).is_some());
    }

    #[test]
    fn who_takes_over_sends_nothing_that_is_so_already() {
        let mut queue = Queue::default();

        assert_eq!(want(&mut queue, &world("x", "5"), object("x")), None);
        assert!(want(&mut queue, &world("x", "5"), object("y")).is_some());
    }

    #[test]
    fn an_object_is_written_once_at_a_time_and_the_newest_wish_wins() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let none = World::default();
        assert!(want(&mut queue, &none, object("x")).is_some());

        assert_eq!(want(&mut queue, &none, object("y")), None);
        assert_eq!(want(&mut queue, &none, object("z")), None);
        queue.handle_written(&object("x").key, &applied(&object("x"), "5"), Instant::now());

        assert_eq!(queue.poll_write(now), Some(Write::Apply(object("z"))));
    }

    #[test]
    fn what_failed_waits_and_a_newer_wish_takes_its_place() {
        let mut queue = Queue::default();
        let now = Instant::now();
        let none = World::default();
        let write = want(&mut queue, &none, object("x")).unwrap();

        let pause = queue.handle_failed(write, now);

        assert_eq!(queue.poll_write(now), None);
        assert_eq!(queue.poll_timeout(now), Some(now + pause));
        queue.want(&none, |_| true, vec![object("y")], BTreeSet::new(), now);
        assert_eq!(queue.poll_write(now + pause), Some(Write::Apply(object("y"))));
    }

    #[test]
    fn only_what_is_there_is_deleted_and_only_that_one() {
        let mut queue = Queue::default();
        let key = object("x").key;
        let obsolete = BTreeSet::from([key.clone()]);

        queue.want(&World::default(), |_| true, Vec::new(), obsolete.clone(), Instant::now());
        assert!(queue.is_empty());

        queue.want(&world("x", "5"), |_| true, Vec::new(), obsolete, Instant::now());
        let write = queue.poll_write(Instant::now());
        assert_eq!(write, Some(Write::Delete { key, uid: Some("1".to_owned()) }));
    }

    #[test]
    fn what_is_missing_is_made_before_what_is_there_is_changed() {
        let mut queue = Queue::default();
        let objects = ["a", "b", "c"].map(|name| {
            let body = json!({"metadata": {"name": name}, "data": {"text": "new"}});
            Object::new(Target::ConfigMap, "ns", name.to_owned(), body)
        });
        let (now, world) = (Instant::now(), world("old", "5"));

        queue.want(&world, |_| true, objects.into(), BTreeSet::new(), now);
        let order: Vec<String> = std::iter::from_fn(|| queue.poll_write(now))
            .map(|write| write.key().name.clone())
            .collect();

        assert_eq!(order, ["b", "c", "a"]);
    }

    #[test]
    fn no_more_than_a_few_writes_run_at_once() {
        let mut queue = Queue::default();
        let objects =
            (0..20).map(|index| Object::new(Target::ConfigMap, "ns", index.to_string(), json!({})));
        queue.want(&World::default(), |_| true, objects.collect(), BTreeSet::new(), Instant::now());

        let started = std::iter::from_fn(|| queue.poll_write(Instant::now())).count();

        assert_eq!(started, AT_ONCE);
        assert_eq!(queue.len(), 20);
    }

    #[test]
    fn a_live_object_may_say_more_but_not_other_or_less() {
        let live = json!({"a": {"b": 1, "more": 2}, "list": [{"x": 1, "default": true}]});

        assert!(covers(
            &live,
            &json!({"a": {"b": 1}, "list": [{"x": 1}], "none": [], "nil": null})
        ));
        assert!(!covers(&live, &json!({"a": {"b": 2}})));
        assert!(!covers(&live, &json!({"list": [{"x": 1}, {"x": 2}]})));
        assert!(!covers(&live, &json!({"c": 1})));
    }
}
