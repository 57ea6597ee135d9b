//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

const AFTER: &str = "\
Two machines in one network, through a public server:
  server$ easynet server --state-dir server      # prints its URL with ?k=
  a$ easynet secret new > secret
  a$ easynet run --network home --secret-file secret -p 'udp://server:11010?k=…'
  b$ easynet run --network home --secret-file secret -p 'udp://server:11010?k=…'
  a$ easynet peers                               # who is there, and how it is reached

Exit codes: 0 done · 1 failed · 2 usage or configuration error · 3 no node answers · 4 a wait ran out";

/// A mesh network: encrypted end to end, direct where it can be, relayed where it must be.
#[derive(Debug, Parser)]
#[command(name = "easynet", version, after_help = AFTER, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node until SIGTERM or SIGINT; it leaves the network and removes what it made
    Run(Box<Run>),
    /// Run a public server: introduces nodes to each other and forwards what it cannot read
    Server(Server),
    /// The node in one page; or wait for something to be true of it
    Status(Status),
    /// The other members: how each is reached, how far it is, what passed
    Peers(Look),
    /// All ways to one peer, measured
    Paths(PeerLook),
    /// Prefixes, whose they are, and why one is not installed
    Routes(Look),
    /// This node: addresses, interfaces, listeners
    Node(Look),
    /// What the NAT before this node does
    Nat(Look),
    /// Packets, bytes, drops by reason, queues, memory
    Stats(Look),
    /// What happened and why
    Events(Events),
    /// Ask a peer for an answer through the mesh, engine to engine
    Ping(Ping),
    /// Find out what is wrong and what to do about it
    Doctor(Doctor),
    /// Make the node leave for good and remove what it made; an agent (--standby) then waits to be stopped
    Retire(Admin),
    /// Make secrets
    #[command(subcommand)]
    Secret(SecretCommand),
    /// This node's public identity
    #[command(subcommand)]
    Key(KeyCommand),
    /// Check, show and reload the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
    /// For developers of easynet
    #[command(subcommand)]
    Debug(DebugCommand),
    /// Print a completion script: easynet completion bash > /etc/bash_completion.d/easynet
    Completion { shell: clap_complete::Shell },
    /// The version
    Version,
}

/// Where the node's admin socket is.
#[derive(Clone, Debug, Args)]
pub struct Admin {
    /// Unix socket of the node, or its HOST:PORT
    #[arg(
        long,
        env = "EASYNET_ADMIN",
        default_value = "/run/easynet/easynet.sock",
        value_name = "PATH|HOST:PORT"
    )]
    pub admin: config::Admin,
    /// File with the token that opens a HOST:PORT
    #[arg(long, env = "EASYNET_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
pub struct Look {
    #[command(flatten)]
    pub admin: Admin,
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Clone, Debug, Args)]
pub struct PeerLook {
    /// Host name, mesh address, or the node id (8 characters of it or more)
    pub peer: String,
    #[command(flatten)]
    pub look: Look,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Wide,
    Json,
    Yaml,
}

/// A node. A flag beats the environment, which beats the file.
#[derive(Clone, Debug, Args)]
#[command(after_help = "\
Examples:
  easynet run --network home --secret-file secret -p udp://relay.example.com
  EASYNET_SECRET=… easynet run --network home -p udp://relay.example.com --export 10.42.0.0/24
  easynet run --config /etc/easynet/config.yaml")]
pub struct Run {
    /// The whole configuration, as YAML
    #[arg(long, env = "EASYNET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Network to join
    #[arg(long, env = "EASYNET_NETWORK", value_name = "NAME")]
    pub network: Option<String>,
    /// File with the network's secret, - for standard input (or the secret itself in EASYNET_SECRET; never an argument)
    #[arg(long, env = "EASYNET_SECRET_FILE", value_name = "FILE")]
    pub secret_file: Option<PathBuf>,
    /// Refused: a secret is no argument.
    #[arg(long, hide = true, num_args = 0..=1)]
    pub secret: Option<Option<String>>,
    /// Where to start: udp://HOST:PORT or tcp://HOST:PORT; ?k= pins the key (repeat)
    #[arg(short, long = "peer", env = "EASYNET_PEERS", value_delimiter = ',', value_name = "URL")]
    pub peers: Vec<String>,
    /// Port or URL to listen on [default: 11010]; a port means UDP and TCP on both families, 0 the first free one from
    /// 15888, `none` no listening
    #[arg(short, long, env = "EASYNET_LISTEN", value_delimiter = ',', value_name = "PORT|URL")]
    pub listen: Vec<String>,
    /// Name in the mesh [default: the machine's]
    #[arg(long, env = "EASYNET_HOSTNAME", value_name = "NAME")]
    pub hostname: Option<String>,
    /// Mesh IPv4 address: ADDRESS[/LENGTH], auto or off [default: auto]
    #[arg(long, env = "EASYNET_IPV4", value_name = "ADDRESS")]
    pub ipv4: Option<String>,
    /// Mesh IPv6 address: ADDRESS[/LENGTH], auto or off [default: auto]
    #[arg(long, env = "EASYNET_IPV6", value_name = "ADDRESS")]
    pub ipv6: Option<String>,
    /// Where automatic IPv4 addresses come from [default: 100.112.0.0/16]
    #[arg(long, env = "EASYNET_RANGE", value_name = "CIDR")]
    pub range: Option<String>,
    /// Subnet reachable through this node; =MAP shows it to the mesh as another one of the same length (repeat)
    #[arg(
        long = "export",
        env = "EASYNET_EXPORTS",
        value_delimiter = ',',
        value_name = "CIDR[=MAP]"
    )]
    pub exports: Vec<String>,
    /// Name of the TUN interface [default: easynet0]
    #[arg(long, env = "EASYNET_TUN", value_name = "NAME")]
    pub tun: Option<String>,
    /// MTU of the mesh, 1280 to 9000 [default: 1320]
    #[arg(long, env = "EASYNET_MTU", value_name = "N")]
    pub mtu: Option<String>,
    /// Without a TUN device (not there yet)
    #[arg(long, env = "EASYNET_USERSPACE")]
    pub userspace: bool,
    /// Seek direct paths: on or relay-only [default: on]
    #[arg(long, env = "EASYNET_P2P", value_name = "MODE")]
    pub p2p: Option<String>,
    /// Effort for direct paths: full, light or off [default: full]
    #[arg(long, env = "EASYNET_PUNCH", value_name = "MODE")]
    pub punch: Option<String>,
    /// Carry other members' traffic too
    #[arg(long, env = "EASYNET_TRANSIT")]
    pub transit: bool,
    /// Take the configuration from a server: tcp://HOST:PORT/NETWORK?k=ROOT
    #[arg(long, env = "EASYNET_CONFIG_SERVER", value_name = "URL")]
    pub config_server: Option<String>,
    /// File with the token that says to the configuration server who this node is
    #[arg(long, env = "EASYNET_CONFIG_SERVER_TOKEN_FILE", value_name = "FILE")]
    pub config_server_token_file: Option<PathBuf>,
    /// Where the command line connects: a unix socket, or HOST:PORT (port 0: the first free one from 15888)
    /// with --admin-token-file [default: /run/easynet/easynet.sock]
    #[arg(long, env = "EASYNET_ADMIN", value_name = "PATH|HOST:PORT")]
    pub admin: Option<config::Admin>,
    /// File with the token that a HOST:PORT asks for, 16 characters or more
    #[arg(long, env = "EASYNET_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,
    /// Keys and what is kept across restarts [default: /var/lib/easynet]
    #[arg(long, env = "EASYNET_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Be a host's agent: stand by, ready, while another one has the state directory; then go on with its interface,
    /// address and routes; at the end leave them to the next one (`easynet retire` removes them)
    #[arg(long, env = "EASYNET_STANDBY")]
    pub standby: bool,
    /// Serve Prometheus metrics, /livez and /readyz there
    #[arg(long, env = "EASYNET_METRICS", value_name = "HOST:PORT", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Clone, Debug, Args)]
pub struct Log {
    /// What to log: error, warn, info, debug, trace, or a filter such as engine=debug
    #[arg(long = "log", env = "RUST_LOG", default_value = "info", value_name = "FILTER")]
    pub filter: String,
    /// How to log
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    #[default]
    Text,
    Json,
}

/// A public server: no network, no TUN, no capability.
#[derive(Clone, Debug, Args)]
pub struct Server {
    /// Port for UDP and TCP on both families; 0 the first free one from 15888
    #[arg(
        short,
        long,
        env = "EASYNET_LISTEN",
        default_value_t = config::DEFAULT_PORT,
        value_name = "PORT",
        value_parser = port
    )]
    pub listen: u16,
    /// Host name or address to print in the URL [default: the machine's first address]
    #[arg(long, env = "EASYNET_PUBLIC_HOST", value_name = "HOST")]
    pub public_host: Option<config::PublicHost>,
    /// Key and nothing else
    #[arg(
        long,
        env = "EASYNET_STATE_DIR",
        default_value = "/var/lib/easynet-server",
        value_name = "DIR"
    )]
    pub state_dir: PathBuf,
    /// Serve only these networks (their ids, as `easynet status` shows them); default any
    #[arg(long = "allow", env = "EASYNET_ALLOW", value_delimiter = ',', value_name = "NETWORK_ID")]
    pub allow: Vec<String>,
    /// Serve Prometheus metrics, /livez and /readyz there
    #[arg(long, env = "EASYNET_METRICS", value_name = "HOST:PORT", value_parser = address)]
    pub metrics: Option<SocketAddr>,
    #[command(flatten)]
    pub log: Log,
}

#[derive(Clone, Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub look: Look,
    /// Block until it is so: ready, direct=PEER or peers=N
    #[arg(long, value_name = "CONDITION")]
    pub wait: Option<String>,
    /// How long to wait
    #[arg(long, default_value = "30s", value_parser = time, value_name = "TIME")]
    pub timeout: Duration,
}

#[derive(Clone, Debug, Args)]
pub struct Events {
    #[command(flatten)]
    pub look: Look,
    /// Go on as they happen
    #[arg(short, long)]
    pub follow: bool,
}

/// An address of this machine and a port.
fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "write an address and a port, such as 127.0.0.1:9100".to_owned())
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| "write a port, 0 to 65535, such as 11010".to_owned())
}

fn time(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|_| "write a time, such as 30s or 2m".to_owned())
}

fn count(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "write how many times, such as 4, or 0 for ever".to_owned())
}

/// A number of seconds, up to a day.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().filter(|seconds| (0.0..=86_400.0).contains(seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds, such as 0.2".to_owned())
}

#[derive(Clone, Debug, Args)]
pub struct Ping {
    /// Host name, mesh address, or the node id (8 characters of it or more)
    pub peer: String,
    /// How many times; 0 is for ever, with each answer as it comes: of JSON a line, of YAML a document
    #[arg(short, default_value_t = 4, value_name = "N", value_parser = count)]
    pub count: u32,
    /// Seconds between them
    #[arg(short, default_value = "1", value_name = "S", value_parser = seconds)]
    pub interval: Duration,
    #[command(flatten)]
    pub look: Look,
}

#[derive(Clone, Debug, Args)]
pub struct Doctor {
    /// Why this peer is, or is not, reached directly
    #[arg(long, value_name = "PEER")]
    pub peer: Option<String>,
    /// Without a node: the file that it would be started with
    #[arg(long, env = "EASYNET_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// On a node of Kubernetes: all agents whose sockets are in this folder
    #[arg(long, value_name = "DIR")]
    pub agents: Option<PathBuf>,
    #[command(flatten)]
    pub look: Look,
}

#[derive(Clone, Debug, Subcommand)]
pub enum SecretCommand {
    /// A secret of 128 bits
    New,
}

#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Node id and the ?k= of URLs; makes the key if there is none
    Show {
        /// Where the key is kept
        #[arg(
            long,
            env = "EASYNET_STATE_DIR",
            default_value = "/var/lib/easynet",
            value_name = "DIR"
        )]
        state_dir: PathBuf,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t)]
        output: Output,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file: everything that is wrong with it, with line and column
    Check {
        /// The configuration file
        file: PathBuf,
    },
    /// The configuration in force and where each value came from
    Show(Look),
    /// JSON Schema of the file
    Schema,
    /// Make the running node read its file again
    Reload(Admin),
}

#[derive(Clone, Debug, Subcommand)]
pub enum DebugCommand {
    /// Dump the heap (not there yet)
    Heap {
        /// Where to
        file: PathBuf,
    },
}
