//! Resolves bootstrap names, again and again; nothing that moves packets waits for it.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::sync::mpsc;

use crate::{
    resolve::{Failure, Resolver},
    task::TaskGroup,
};

/// A name that resolved is asked again after this; the resolver's cache answers until its time is up.
const REFRESH: Duration = Duration::from_secs(60);
/// One that did not, after this.
const RETRY: Duration = Duration::from_secs(3);
/// Results that may wait for the driver.
const RESULT_BOUND: usize = 16;

/// A bootstrap entry's host and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub host: String,
    pub port: u16,
}

/// Which entry, and its addresses or why there are none.
type Found = (usize, Result<Vec<SocketAddr>, Failure>);

/// The names of a node, each resolved by a task of its own.
#[derive(Debug)]
pub(super) struct Names {
    resolver: Option<Resolver>,
    names: Vec<Name>,
    group: TaskGroup,
    tasks: Option<TaskGroup>,
    results: mpsc::Sender<Found>,
    receiver: mpsc::Receiver<Found>,
}

impl Names {
    pub(super) fn new(resolver: Option<Resolver>, names: Vec<Name>, group: &TaskGroup) -> Self {
        let (results, receiver) = mpsc::channel(RESULT_BOUND);
        Self { resolver, names, group: group.clone(), tasks: None, results, receiver }
    }

    pub(super) fn start(&mut self) {
        if let Some(before) = self.tasks.take() {
            before.cancel();
        }
        let tasks = self.group.child("names");
        for (index, name) in self.names.iter().cloned().enumerate() {
            let (results, resolver) = (self.results.clone(), self.resolver.clone());
            tasks.spawn_transient(format!("resolve bootstrap {index}"), async move {
                let mut told = false;
                loop {
                    let found = addresses(&name.host, resolver.as_ref()).await;
                    let wait = if found.is_err() { RETRY } else { REFRESH };
                    if let Err(error) = &found
                        && !told
                    {
                        tracing::warn!(%error, "A bootstrap name does not resolve; trying again");
                    }
                    told = found.is_err();
                    let place = |ips: Vec<IpAddr>| {
                        ips.into_iter().map(|ip| SocketAddr::new(ip, name.port)).collect()
                    };
                    if results.send((index, found.map(place))).await.is_err() {
                        return Ok(());
                    }
                    tokio::time::sleep(wait).await;
                }
            });
        }
        self.tasks = Some(tasks);
    }

    /// Starts anew even with the same names: whoever was configured anew knows no addresses.
    pub(super) fn set(&mut self, names: Vec<Name>) {
        self.names = names;
        self.start();
    }

    /// The network changed, and with it maybe the name servers.
    pub(super) fn again(&mut self) {
        if let Some(resolver) = &self.resolver {
            resolver.reload();
        }
        self.start();
    }

    pub(super) async fn resolved(&mut self) -> Option<Found> {
        self.receiver.recv().await
    }
}

async fn addresses(host: &str, resolver: Option<&Resolver>) -> Result<Vec<IpAddr>, Failure> {
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(vec![ip]);
    }
    let Some(resolver) = resolver else { return Err(Failure::NotFound) };
    resolver.addresses(host).await
}
