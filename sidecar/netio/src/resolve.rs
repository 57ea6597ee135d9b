//! Outgoing name lookups.
//!
//! One [`Resolver`] serves the process. It asks the system's name servers (and hosts file) first;
//! if they fail or have not answered when half of the deadline is over, name servers of our own are
//! asked too, and the first answer wins. Every lookup ends by its deadline, whatever a server does,
//! and a bounded number runs at once. Answers are cached ([`cache`]); one that went stale is served
//! while it is refreshed.
//!
//! A lookup runs as a task of the group, shared by all who ask the same; dropping it is safe at any
//! await, those who wait then see a failure.

pub mod cache;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use hickory_resolver::{
    TokioResolver,
    config::{
        ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig,
        ResolverOpts,
    },
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
    system_conf::read_system_conf,
};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

pub use self::cache::{Answer, Failure, Outcome, Query, Service};
use self::cache::{Cache, Look};
use crate::task::TaskGroup;

/// Lookups that run at once; more wait within their own deadlines.
pub const MAX_LOOKUPS: usize = 16;
/// Names that may be looked up or wait for it; a configuration has a handful.
const MAX_PENDING: usize = 128;
/// When a lookup has failed.
const DEADLINE: Duration = Duration::from_secs(3);
/// Public name servers of two operators, asked only when the system's fail.
const OWN_SERVERS: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(1, 1, 1, 1)), 53),
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9)), 53),
];

/// Which servers to ask and how long.
#[derive(Clone, Debug)]
pub struct Config {
    pub first: Servers,
    /// Asked when the first ones fail; may be empty.
    pub own: Vec<SocketAddr>,
    pub deadline: Duration,
}

/// Name servers.
#[derive(Clone, Debug)]
pub enum Servers {
    /// As `/etc/resolv.conf` and `/etc/hosts` say.
    System,
    Fixed(Vec<SocketAddr>),
}

/// The process's resolver. Clones are handles to the same one.
#[derive(Clone)]
pub struct Resolver {
    shared: Arc<Shared>,
}

struct Shared {
    config: Config,
    group: TaskGroup,
    first: ArcSwap<Option<TokioResolver>>,
    own: Option<TokioResolver>,
    running: Semaphore,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    cache: Cache,
    pending: BTreeMap<Query, watch::Receiver<Option<Outcome>>>,
}

impl Default for Config {
    fn default() -> Self {
        Self { first: Servers::System, own: OWN_SERVERS.to_vec(), deadline: DEADLINE }
    }
}

impl Resolver {
    /// A resolver whose lookups join `group`.
    pub fn new(config: Config, group: TaskGroup) -> Self {
        let own = Some(&config.own).filter(|own| !own.is_empty()).and_then(|own| {
            build(ResolverConfig::from_name_servers(servers(own)), ResolverOpts::default())
        });
        let shared = Shared {
            first: ArcSwap::from_pointee(first(&config)),
            config,
            group,
            own,
            running: Semaphore::new(MAX_LOOKUPS),
            state: Mutex::default(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Reads the system's configuration again: the host may have moved to another network.
    pub fn reload(&self) {
        self.shared.first.store(Arc::new(first(&self.shared.config)));
    }

    /// The addresses of a host; an address is its own.
    ///
    /// # Errors
    /// That there is no such name, or that nobody said so in time. Both are remembered briefly.
    pub async fn addresses(&self, host: &str) -> Result<Vec<IpAddr>, Failure> {
        if let Ok(ip) = host.trim_matches(['[', ']']).parse() {
            return Ok(vec![ip]);
        }
        match self.lookup(Query::Addresses(host.to_owned())).await? {
            Answer::Addresses(addresses) => Ok(addresses),
            Answer::Texts(_) | Answer::Services(_) => Err(Failure::NotFound),
        }
    }

    /// The TXT records of a name.
    ///
    /// # Errors
    /// As [`Resolver::addresses`].
    pub async fn texts(&self, name: &str) -> Result<Vec<String>, Failure> {
        match self.lookup(Query::Texts(name.to_owned())).await? {
            Answer::Texts(texts) => Ok(texts),
            Answer::Addresses(_) | Answer::Services(_) => Err(Failure::NotFound),
        }
    }

    /// The SRV records of a name, best first.
    ///
    /// # Errors
    /// As [`Resolver::addresses`].
    pub async fn services(&self, name: &str) -> Result<Vec<Service>, Failure> {
        match self.lookup(Query::Services(name.to_owned())).await? {
            Answer::Services(services) => Ok(services),
            Answer::Addresses(_) | Answer::Texts(_) => Err(Failure::NotFound),
        }
    }

    /// Answers from the cache or asks.
    ///
    /// # Errors
    /// As [`Resolver::addresses`].
    pub async fn lookup(&self, query: Query) -> Outcome {
        let mut answer = {
            let mut state = self.shared.lock();
            match state.cache.look(&query, Instant::now()) {
                Look::Fresh(outcome) => return outcome,
                Look::Stale(answer) => {
                    // What is known is served even when the refresh finds no place.
                    let _ = self.ask(&mut state, query);
                    return Ok(answer);
                }
                Look::Unknown => self.ask(&mut state, query)?,
            }
        };
        let answered = timeout(self.shared.config.deadline, answer.wait_for(Option::is_some));
        match answered.await {
            Ok(Ok(outcome)) => outcome.clone().unwrap_or(Err(Failure::Timeout)),
            Ok(Err(_)) | Err(_) => Err(Failure::Timeout),
        }
    }

    /// Joins the lookup that is under way for a query, or starts one.
    fn ask(
        &self,
        state: &mut State,
        query: Query,
    ) -> Result<watch::Receiver<Option<Outcome>>, Failure> {
        if let Some(pending) = state.pending.get(&query) {
            return Ok(pending.clone());
        }
        if state.pending.len() >= MAX_PENDING {
            return Err(Failure::Busy);
        }
        let (tell, answer) = watch::channel(None);
        state.pending.insert(query.clone(), answer.clone());
        let shared = self.shared.clone();
        self.shared.group.spawn_transient(format!("resolve {}", query.name()), async move {
            let asked = timeout(shared.config.deadline, shared.ask_servers(&query)).await;
            let (outcome, ttl) = asked.unwrap_or((Err(Failure::Timeout), None));
            tracing::debug!(?query, ?outcome, "Looked up");
            let mut state = shared.lock();
            state.pending.remove(&query);
            state.cache.store(query, outcome.clone(), ttl, Instant::now());
            drop(state);
            tell.send_replace(Some(outcome));
            Ok(())
        });
        Ok(answer)
    }
}

/// What a server said and for how long it holds.
type Told = (Outcome, Option<Duration>);

impl Shared {
    async fn ask_servers(&self, query: &Query) -> Told {
        let Ok(_permit) = self.running.acquire().await else { return (Err(Failure::Busy), None) };
        let first = self.first.load_full();
        let first = ask_optional(Option::as_ref(&first), query);
        tokio::pin!(first);
        let head_start = self.config.deadline / 2;
        let early = timeout(head_start, &mut first).await.ok();
        let own = ask_optional(self.own.as_ref(), query);
        match early {
            Some(told @ (Ok(_), _)) => told,
            Some(failed) => better(failed, own.await),
            None => {
                tokio::pin!(own);
                tokio::select! {
                    told = &mut first => if told.0.is_ok() { told } else { better(told, own.await) },
                    told = &mut own => if told.0.is_ok() { told } else { better(first.await, told) },
                }
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of two the one that says more: an answer, else that there is none, else the first.
fn better(first: Told, second: Told) -> Told {
    let says_more = second.0.is_ok() || second.0 == Err(Failure::NotFound);
    if first.0.is_err() && says_more { second } else { first }
}

async fn ask_optional(resolver: Option<&TokioResolver>, query: &Query) -> Told {
    let Some(resolver) = resolver else {
        return (Err(Failure::Failed("no name servers".to_owned())), None);
    };
    match ask_one(resolver, query).await {
        Ok((answer, _)) if answer.is_empty() => (Err(Failure::NotFound), None),
        Ok((answer, ttl)) => (Ok(answer), Some(ttl)),
        Err(error) if error.is_nx_domain() || error.is_no_records_found() => {
            (Err(Failure::NotFound), None)
        }
        Err(NetError::Timeout) => (Err(Failure::Timeout), None),
        Err(error) => (Err(Failure::Failed(error.to_string())), None),
    }
}

async fn ask_one(resolver: &TokioResolver, query: &Query) -> Result<(Answer, Duration), NetError> {
    let now = Instant::now();
    match query {
        Query::Addresses(host) => {
            let found = resolver.lookup_ip(host.as_str()).await?;
            let mut addresses: Vec<IpAddr> = found.iter().collect();
            addresses.sort_unstable();
            addresses.dedup();
            let ttl = found.valid_until().saturating_duration_since(now);
            Ok((Answer::Addresses(addresses), ttl))
        }
        Query::Texts(name) => {
            let found = resolver.txt_lookup(name.as_str()).await?;
            let ttl = found.valid_until().saturating_duration_since(now);
            Ok((Answer::Texts(texts(&found)), ttl))
        }
        Query::Services(name) => {
            let found = resolver.srv_lookup(name.as_str()).await?;
            let ttl = found.valid_until().saturating_duration_since(now);
            Ok((Answer::Services(services(&found)), ttl))
        }
    }
}

fn texts(found: &Lookup) -> Vec<String> {
    let mut texts: Vec<String> = found
        .answers()
        .iter()
        .filter_map(|record| {
            let RData::TXT(text) = &record.data else { return None };
            Some(text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect())
        })
        .collect();
    texts.sort_unstable();
    texts
}

fn services(found: &Lookup) -> Vec<Service> {
    let mut services: Vec<Service> = found
        .answers()
        .iter()
        .filter_map(|record| {
            let RData::SRV(srv) = &record.data else { return None };
            let host = srv.target.to_utf8().trim_end_matches('.').to_owned();
            Some(Service { priority: srv.priority, weight: srv.weight, host, port: srv.port })
        })
        .collect();
    services.sort_unstable_by(|a, b| {
        (a.priority, b.weight, &a.host, a.port).cmp(&(b.priority, a.weight, &b.host, b.port))
    });
    services
}

fn first(config: &Config) -> Option<TokioResolver> {
    match &config.first {
        Servers::System => {
            let (config, options) = read_system_conf().ok()?;
            build(config, options)
        }
        Servers::Fixed(fixed) => {
            let mut options = ResolverOpts::default();
            options.use_hosts_file = ResolveHosts::Never;
            build(ResolverConfig::from_name_servers(servers(fixed)), options)
        }
    }
}

fn build(config: ResolverConfig, mut options: ResolverOpts) -> Option<TokioResolver> {
    // The cache is ours; so is the deadline, which two tries of this fit into.
    options.cache_size = 0;
    options.timeout = DEADLINE / 2;
    options.attempts = 1;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        .with_options(options)
        .build()
        .ok()
}

fn servers(addresses: &[SocketAddr]) -> Vec<NameServerConfig> {
    let connection = |mut connection: ConnectionConfig, port| {
        connection.port = port;
        connection
    };
    let server = |address: &SocketAddr| {
        let udp = connection(ConnectionConfig::udp(), address.port());
        let tcp = connection(ConnectionConfig::tcp(), address.port());
        NameServerConfig::new(address.ip(), true, vec![udp, tcp])
    };
    addresses.iter().map(server).collect()
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver").field("config", &self.shared.config).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
