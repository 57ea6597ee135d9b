//! The command line.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

use crate::webhook::inject::PodSecurity;

const AFTER: &str = "\
A network, and a second cluster in it:
  a$ helm install easynet charts/easynet -n easynet-system --create-namespace
  a$ kubectl apply -f network.yaml               # kind: EasyNetwork, spec.clusterName: a
  b$ helm install easynet charts/easynet -n easynet-system --create-namespace
  $ kubectl --context a -n easynet-system exec deploy/easynet-operator -- \\
      easynet-operator join prod --cluster-name b | kubectl --context b apply -f -

Exit codes: 0 done · 1 failed · 2 usage error";

/// Connects the nodes of this cluster, and those of others, to one mesh network.
#[derive(Debug, Parser)]
#[command(name = "easynet-operator", version, after_help = AFTER, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch EasyNetworks and do what they say, until SIGTERM
    Run(Box<Run>),
    /// Print what another cluster needs to join a network of this one
    Join(Join),
    /// Tell all agents to clean up, and delete what the operator made; for uninstalling
    Retire(Retire),
    /// Print the CustomResourceDefinitions
    Crds,
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub struct Run {
    #[command(flatten)]
    pub place: Place,
    /// This process's name: that of its pod, and its identity as holder of the lease
    #[arg(long, env = "POD_NAME", value_name = "NAME", default_value = "easynet-operator")]
    pub name: String,
    /// Image that the agents run
    #[arg(long, env = "EASYNET_IMAGE", value_name = "REF")]
    pub image: String,
    /// When agents' nodes pull that image
    #[arg(long, default_value = "IfNotPresent", value_name = "POLICY")]
    pub image_pull_policy: PullPolicy,
    /// Where sidecars fetch their configuration
    #[arg(long, default_value = "0.0.0.0:22020", value_name = "HOST:PORT")]
    pub feed_listen: SocketAddr,
    /// Where sidecars reach that [default: the address of this process's pod]
    #[arg(long, env = "POD_IP", value_name = "ADDRESS")]
    pub advertise: Option<IpAddr>,
    /// Where the API server asks whether a pod gets a sidecar; without it no pod does
    #[arg(long, value_name = "HOST:PORT")]
    pub webhook_listen: Option<SocketAddr>,
    /// What the cluster enforces in namespaces without a Pod Security label
    #[arg(long, default_value = "privileged", value_name = "LEVEL")]
    pub default_pod_security: PodSecurity,
    /// Where to answer /metrics, /livez and /readyz
    #[arg(long, default_value = "0.0.0.0:8080", value_name = "HOST:PORT")]
    pub metrics: SocketAddr,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Debug, Args)]
pub struct Join {
    /// The EasyNetwork of this cluster
    #[arg(value_name = "NETWORK")]
    pub network: String,
    /// Name of the cluster that joins; no other cluster of the network may have it
    #[arg(long, value_name = "NAME")]
    pub cluster_name: ClusterName,
    /// A range of pods of the cluster that joins (repeat); where this cluster uses it too, it is mapped to one that is free
    #[arg(long = "pod-cidr", value_name = "CIDR", value_parser = subnet)]
    pub pod_cidrs: Vec<IpNet>,
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Debug, Args)]
pub struct Retire {
    #[command(flatten)]
    pub place: Place,
    #[command(flatten)]
    pub log: Log,
}

/// A cluster's name, as `spec.clusterName` of an EasyNetwork: a label of the names of its nodes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterName(String);

impl ClusterName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ClusterName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let is_label = (1..=63).contains(&text.len())
            && text.chars().all(inner)
            && !text.starts_with('-')
            && !text.ends_with('-');
        if !is_label {
            return Err("write at most 63 lower-case letters, digits and dashes".to_owned());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Where the operator is installed.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// Namespace of the installation
    #[arg(long, env = "POD_NAMESPACE", default_value = "easynet-system", value_name = "NAMESPACE")]
    pub namespace: String,
}

#[derive(Clone, Debug, Args)]
pub struct Log {
    /// What to log, such as info or operator=debug
    #[arg(long = "log", env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    pub filter: String,
    /// How to log
    #[arg(long = "log-format", default_value = "text", value_name = "FORMAT")]
    pub format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

/// As in a pod's `imagePullPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    #[value(name = "Always")]
    Always,
    #[value(name = "IfNotPresent")]
    IfNotPresent,
    #[value(name = "Never")]
    Never,
}

impl From<LogFormat> for telemetry::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

impl PullPolicy {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Always => "Always",
            Self::IfNotPresent => "IfNotPresent",
            Self::Never => "Never",
        }
    }
}

fn subnet(text: &str) -> Result<IpNet, String> {
    text.parse().map_err(|_| "write a range such as 10.244.0.0/16 or fd00:10::/56".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_chart_can_say_what_it_says() {
        let cli = Cli::try_parse_from([
            "easynet-operator",
            "run",
            "--namespace=easynet-system",
            "--name=pod-1",
            "--image=easynet:dev",
            "--feed-listen=0.0.0.0:22020",
            "--webhook-listen=0.0.0.0:9443",
            "--metrics=0.0.0.0:8080",
            "--image-pull-policy=Never",
            "--log=info",
            "--log-format=json",
        ])
        .unwrap();

        let Command::Run(run) = cli.command else { panic!("{cli:?}") };
        assert_eq!(run.image_pull_policy, PullPolicy::Never);
    }

    #[test]
    fn a_range_that_is_none_is_told_how_one_looks() {
        let said = Cli::try_parse_from([
            "easynet-operator",
            "join",
            "prod",
            "--cluster-name=b",
            "--pod-cidr=10.0.0.0/33",
        ]);

        let said = said.unwrap_err().to_string();
        assert!(said.contains("write a range such as 10.244.0.0/16"), "{said}");
    }

    #[test]
    fn a_cluster_name_is_a_label() {
        for right in ["b", "eu-west-1"] {
            assert!(right.parse::<ClusterName>().is_ok(), "{right}");
        }
        for wrong in ["", "B", "-b", "b-", "b.c", "b c"] {
            assert!(wrong.parse::<ClusterName>().is_err(), "{wrong}");
        }
    }
}
