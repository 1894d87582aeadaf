//! The grammar: every command, flag and default.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use super::parse;
use crate::client::WriteId;
use crate::types::object::{Availability, Kind, Profile, Sensitive};
use crate::types::{Revision, Role};

/// A swarm manager in one small binary: Raft, a replicated object store, mutual TLS and join tokens.
#[derive(Clone, Debug, Parser)]
#[command(name = "skep", version, propagate_version = false, disable_help_subcommand = true, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    pub common: Common,
    #[command(subcommand)]
    pub command: Command,
}

/// Flags that may stand after any command.
#[derive(Clone, Debug, Args)]
pub struct Common {
    /// Print JSON; errors are one JSON object on standard error
    #[arg(long, global = true, help_heading = "Common options")]
    pub json: bool,
    /// Read what this manager has, at once and without a leader
    #[arg(long, global = true, help_heading = "Common options")]
    pub stale: bool,
    /// Give up after this time
    #[arg(long, global = true, value_name = "DURATION", default_value = "10s", value_parser = parse::duration, help_heading = "Common options")]
    pub timeout: Duration,
    /// The manager's control socket [default: <data-dir>/skep.sock]
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "SKEP_SOCKET",
        hide_env_values = true,
        help_heading = "Common options"
    )]
    pub socket: Vec<PathBuf>,
    /// The manager's state [default: /var/lib/skep as root, else $XDG_STATE_HOME/skep]
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = "SKEP_DATA_DIR",
        hide_env_values = true,
        help_heading = "Common options"
    )]
    pub data_dir: Option<PathBuf>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Run a node: it begins a swarm as its first manager, joins one with --join, as what the token is for, or starts again
    Run(RunArgs),
    /// This manager's state; exits 4 unless it is ready
    Status,
    /// The managers of the swarm
    Members,
    /// Print changes as they are committed
    Watch(WatchArgs),
    /// Nodes of the swarm
    #[command(subcommand)]
    Node(NodeCommand),
    /// Plain data for services
    #[command(subcommand)]
    Config(DataCommand),
    /// Sensitive data for services
    #[command(subcommand)]
    Secret(DataCommand),
    /// Kinds of resource
    #[command(subcommand)]
    Extension(ExtensionCommand),
    /// Objects of a registered kind
    #[command(subcommand)]
    Resource(ResourceCommand),
    /// The swarm's settings
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Join tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// The root certificate
    #[command(subcommand)]
    Ca(CaCommand),
    /// Give a locked manager its unlock key: from --unlock-key-file, else from standard input
    Unlock(UnlockArgs),
    /// The key that opens managers after a start, once they lock
    #[command(subcommand)]
    UnlockKey(UnlockKeyCommand),
    /// The Raft group
    #[command(subcommand)]
    Raft(RaftCommand),
    /// Take this manager out of the swarm and stop it
    Leave(LeaveArgs),
    /// The whole swarm in one file
    #[command(subcommand)]
    Backup(BackupCommand),
    /// Make a swarm of this manager alone when the others are gone for good
    Recover(RecoverArgs),
    /// Look at a manager from all sides, running or not, and say what to do; exits 0 when nothing fails, 4 when
    /// something does, 5 when data is damaged
    Doctor,
    /// For whoever has to find out what happened
    #[command(subcommand)]
    Debug(DebugCommand),
    /// A manager's log on disk
    #[command(subcommand)]
    Wal(WalCommand),
    /// A snapshot on disk
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
    /// Measure a running swarm
    #[command(subcommand)]
    Bench(BenchCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// Where to listen for managers and nodes
    #[arg(long, value_name = "ADDR", default_value = "0.0.0.0:4242")]
    pub listen: String,
    /// Where others reach this manager [default: the listen address, else the one global address]
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Join the swarm of the manager at this address
    #[arg(long, value_name = "ADDR")]
    pub join: Option<String>,
    /// The join token; shows in `ps`, so prefer --token-file or SKEP_TOKEN
    #[arg(long, value_name = "T", conflicts_with = "token_file", value_parser = parse::token)]
    pub token: Option<Sensitive>,
    /// Read the join token from this file, or from standard input with `-`
    #[arg(long, value_name = "FILE")]
    pub token_file: Option<PathBuf>,
    /// A manager to try besides those remembered; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub peer: Vec<String>,
    /// Refuse an empty data directory: a disk that is not mounted must not make a new swarm
    #[arg(long)]
    pub existing: bool,
    /// Open the control socket to this group too
    #[arg(long, value_name = "G")]
    pub socket_group: Option<String>,
    /// Serve /healthz, /readyz and /metrics here
    #[arg(long, value_name = "ADDR")]
    pub http: Option<String>,
    /// Timing for the network and disk; the first manager's counts
    #[arg(long, value_name = "PROFILE", default_value = "lan")]
    pub profile: ProfileArg,
    /// The node's name [default: the host name]
    #[arg(long, value_name = "NODE")]
    pub name: Option<String>,
    #[command(flatten)]
    pub unlock: UnlockArgs,
    /// How much to log
    #[arg(long, value_name = "LEVEL", env = "SKEP_LOG", hide_env_values = true, default_value = "info")]
    pub log: LevelArg,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ProfileArg {
    /// One site
    Lan,
    /// Several sites
    Wan,
    /// Slow flash
    Sdcard,
}

impl From<ProfileArg> for Profile {
    fn from(profile: ProfileArg) -> Self {
        match profile {
            ProfileArg::Lan => Self::Lan,
            ProfileArg::Wan => Self::Wan,
            ProfileArg::Sdcard => Self::Sdcard,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LevelArg {
    Off,
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

impl From<LevelArg> for log::LevelFilter {
    fn from(level: LevelArg) -> Self {
        match level {
            LevelArg::Off => Self::Off,
            LevelArg::Error => Self::Error,
            LevelArg::Warn => Self::Warn,
            LevelArg::Info => Self::Info,
            LevelArg::Debug => Self::Debug,
            LevelArg::Trace => Self::Trace,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum RoleArg {
    Manager,
    Worker,
}

impl From<RoleArg> for Role {
    fn from(role: RoleArg) -> Self {
        match role {
            RoleArg::Manager => Self::Manager,
            RoleArg::Worker => Self::Worker,
        }
    }
}

#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Begin after this revision [default: with what is committed from now on]
    #[arg(long, value_name = "REV", value_parser = parse::revision)]
    pub from: Option<Revision>,
    /// Only this kind of object; may be repeated
    #[arg(long, value_name = "K", value_parser = parse::kind)]
    pub kind: Vec<Kind>,
}

#[derive(Clone, Debug, Args)]
pub struct LeaveArgs {
    /// Even if the others lose their majority, or no leader answers
    #[arg(long)]
    pub force: bool,
}

/// A passphrase is never an argument: those show in `ps`.
#[derive(Clone, Debug, Args)]
pub struct PassphraseArgs {
    /// The file that holds the passphrase
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_fd")]
    pub passphrase_file: Option<PathBuf>,
    /// The open file descriptor to read the passphrase from
    #[arg(long, value_name = "N")]
    pub passphrase_fd: Option<u32>,
}

/// An unlock key is never an argument: those show in `ps`.
#[derive(Clone, Debug, Default, Args)]
pub struct UnlockArgs {
    /// The file that holds the unlock key, or `-` for standard input; read only when the manager is locked
    #[arg(long, value_name = "FILE|-", conflicts_with = "unlock_key_fd")]
    pub unlock_key_file: Option<PathBuf>,
    /// The open file descriptor to read the unlock key from
    #[arg(long, value_name = "N")]
    pub unlock_key_fd: Option<u32>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum UnlockKeyCommand {
    /// Print it
    Show,
    /// Replace it, and with it the keys of all managers that it has sealed
    Rotate {
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum BackupCommand {
    /// Save everything to a file, while the swarm runs
    Save(SaveArgs),
    /// Check a backup to its last byte, and say what it holds
    Inspect {
        /// The backup, or `-` for standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
        #[command(flatten)]
        passphrase: PassphraseArgs,
    },
    /// Begin the swarm again from a backup, in an empty data directory
    Restore(RestoreArgs),
}

#[derive(Clone, Debug, Args)]
pub struct SaveArgs {
    /// The file to write, or `-` for standard output
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RestoreArgs {
    /// The backup, or `-` for standard input
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    #[command(flatten)]
    pub passphrase: PassphraseArgs,
    /// Where others reach the new manager [default: where it says when it starts]
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// The new manager's name [default: the host name]
    #[arg(long, value_name = "NODE")]
    pub name: Option<String>,
    /// Check everything, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

#[derive(Clone, Debug, Args)]
pub struct RecoverArgs {
    /// Where others reach this manager from now on [default: where they did]
    #[arg(long, value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Begin from the newest whole snapshot and leave out the log, when `skep wal repair` cannot mend that
    #[arg(long)]
    pub from_snapshot: bool,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
    #[command(flatten)]
    pub unlock: UnlockArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum DebugCommand {
    /// Put everything that helps to find a fault, and no secret, into a tar archive
    Bundle(BundleArgs),
}

#[derive(Clone, Debug, Args)]
pub struct BundleArgs {
    /// The archive to write, or `-` for standard output
    #[arg(value_name = "FILE|-")]
    pub file: PathBuf,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Debug, Args)]
pub struct LsArgs {
    /// Print ids only
    #[arg(short, long)]
    pub quiet: bool,
    /// name=P, id=P, label=K[=V] or kind=K; P is what the name or id begins with; may be repeated
    #[arg(long, value_name = "FILTER", value_parser = parse::filter)]
    pub filter: Vec<parse::FilterTerm>,
}

#[derive(Clone, Debug, Args)]
pub struct ObjectArg {
    /// A name, an id, or an unambiguous beginning of an id
    #[arg(value_name = "NAME")]
    pub object: String,
}

#[derive(Clone, Debug, Args)]
pub struct WriteArgs {
    /// Ask what became of an earlier attempt of the same command, as its error printed it
    #[arg(long, value_name = "ID@REV", value_parser = parse::write_id)]
    pub change_id: Option<WriteId>,
}

#[derive(Clone, Debug, Args)]
pub struct VersionArg {
    /// Only if the object still has this version
    #[arg(long, value_name = "REV", value_parser = parse::revision)]
    pub if_version: Option<Revision>,
}

#[derive(Clone, Debug, Args)]
pub struct RmArgs {
    #[command(flatten)]
    pub object: ObjectArg,
    #[command(flatten)]
    pub version: VersionArg,
    #[command(flatten)]
    pub write: WriteArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum NodeCommand {
    /// List nodes
    Ls(LsArgs),
    /// Show one node
    Inspect(ObjectArg),
    /// Let a node in that waits for it, or back in, once and within 24 hours, when its certificate expired long ago
    Approve {
        #[command(flatten)]
        object: ObjectArg,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Make managers of nodes
    Promote(NodesArgs),
    /// Make workers of managers; the last manager stays one
    Demote(NodesArgs),
    /// Change labels or availability
    #[command(group = clap::ArgGroup::new("changes").required(true).multiple(true))]
    Update {
        #[command(flatten)]
        object: ObjectArg,
        /// Whether it takes tasks
        #[arg(long, value_name = "AVAILABILITY", group = "changes")]
        availability: Option<AvailabilityArg>,
        /// Set a label; may be repeated
        #[arg(long, value_name = "K=V", value_parser = parse::pair, group = "changes")]
        label: Vec<(String, String)>,
        /// Remove a label; may be repeated
        #[arg(long, value_name = "K", group = "changes")]
        label_rm: Vec<String>,
        #[command(flatten)]
        version: VersionArg,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Remove a node that is down
    Rm {
        /// Also one that is up, or a manager, which is demoted first
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        nodes: NodesArgs,
    },
}

#[derive(Clone, Debug, Args)]
pub struct NodesArgs {
    /// Names, ids, or unambiguous beginnings of ids
    #[arg(value_name = "NODE", required = true)]
    pub nodes: Vec<String>,
    /// Come back when it is done, or after --timeout
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub write: WriteArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AvailabilityArg {
    /// Takes tasks
    Active,
    /// Keeps its tasks, takes no new ones
    Pause,
    /// Gives its tasks away
    Drain,
}

impl From<AvailabilityArg> for Availability {
    fn from(availability: AvailabilityArg) -> Self {
        match availability {
            AvailabilityArg::Active => Self::Active,
            AvailabilityArg::Pause => Self::Pause,
            AvailabilityArg::Drain => Self::Drain,
        }
    }
}

#[derive(Clone, Debug, Subcommand)]
pub enum DataCommand {
    /// Create one from a file and print its id
    Create {
        /// Its name
        name: String,
        /// The data, or `-` for standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
        /// A label; may be repeated
        #[arg(long, value_name = "K=V", value_parser = parse::pair)]
        label: Vec<(String, String)>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Change its labels; the data of an object never changes
    #[command(group = clap::ArgGroup::new("labels").required(true).multiple(true))]
    Update {
        #[command(flatten)]
        object: ObjectArg,
        /// Set a label; may be repeated
        #[arg(long, value_name = "K=V", value_parser = parse::pair, group = "labels")]
        label: Vec<(String, String)>,
        /// Remove a label; may be repeated
        #[arg(long, value_name = "K", group = "labels")]
        label_rm: Vec<String>,
        #[command(flatten)]
        version: VersionArg,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List them
    Ls(LsArgs),
    /// Show one
    Inspect(ObjectArg),
    /// Remove one
    Rm(RmArgs),
}

#[derive(Clone, Debug, Subcommand)]
pub enum ExtensionCommand {
    /// Register a kind of resource and print its id
    Create {
        /// Its name
        name: String,
        /// What it is for
        #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
        description: String,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List them
    Ls(LsArgs),
    /// Show one
    Inspect(ObjectArg),
    /// Remove one that no resource uses
    Rm(RmArgs),
}

#[derive(Clone, Debug, Subcommand)]
pub enum ResourceCommand {
    /// Create one from a file and print its id
    Create {
        /// Its name
        name: String,
        /// The payload, or `-` for standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
        /// The extension it belongs to
        #[arg(long, value_name = "EXTENSION")]
        kind: String,
        /// A label; may be repeated
        #[arg(long, value_name = "K=V", value_parser = parse::pair)]
        label: Vec<(String, String)>,
        /// A custom index; may be repeated
        #[arg(long, value_name = "K=V", value_parser = parse::pair)]
        index: Vec<(String, String)>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Replace its payload
    Update {
        #[command(flatten)]
        object: ObjectArg,
        /// The payload, or `-` for standard input
        #[arg(value_name = "FILE|-")]
        file: PathBuf,
        #[command(flatten)]
        version: VersionArg,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List them
    Ls(LsArgs),
    /// Show one
    Inspect(ObjectArg),
    /// Remove one
    Rm(RmArgs),
}

#[derive(Clone, Debug, Subcommand)]
pub enum ClusterCommand {
    /// Show the settings
    Inspect,
    /// Change settings; every manager follows at once
    #[command(group = clap::ArgGroup::new("settings").required(true).multiple(true))]
    Update {
        /// Log between two snapshots, such as 64MiB
        #[arg(long, value_name = "SIZE", value_parser = parse::size, group = "settings")]
        snapshot_bytes: Option<u64>,
        /// Log kept for managers that lag, such as 64MiB
        #[arg(long, value_name = "SIZE", value_parser = parse::size, group = "settings")]
        keep_bytes: Option<u64>,
        /// Validity of node certificates, such as 90d
        #[arg(long, value_name = "D", value_parser = parse::duration, group = "settings")]
        cert_expiry: Option<Duration>,
        /// How long after its end a certificate still gets its node a new one, such as 365d
        #[arg(long, value_name = "D", value_parser = parse::duration, group = "settings")]
        expired_grace: Option<Duration>,
        /// Nodes that join wait for `skep node approve`; `--approve-joins=false` lets them in again
        #[arg(
            long,
            value_name = "BOOL",
            num_args = 0..=1,
            require_equals = true,
            default_missing_value = "true",
            group = "settings"
        )]
        approve_joins: Option<bool>,
        /// Whether managers seal their keys on disk, and need the unlock key after a start
        #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", group = "settings")]
        autolock: Option<bool>,
        #[command(flatten)]
        version: VersionArg,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum TokenCommand {
    /// Print the join tokens, or one of them
    Show {
        /// Only the token for this role
        #[arg(long, value_name = "ROLE")]
        role: Option<RoleArg>,
    },
    /// Replace the join tokens, or one of them, and print what is new; nodes that have joined stay
    Rotate {
        /// Only the token for this role
        #[arg(long, value_name = "ROLE")]
        role: Option<RoleArg>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// Make a join token with conditions and print it; it is shown only now
    Create {
        /// The role that it admits to
        #[arg(long, value_name = "ROLE")]
        role: RoleArg,
        /// A label for the nodes that it admits; may be repeated
        #[arg(long, value_name = "K=V", value_parser = parse::pair)]
        label: Vec<(String, String)>,
        /// It ends after this time, such as 1h
        #[arg(long, value_name = "D", value_parser = parse::duration)]
        ttl: Option<Duration>,
        /// It admits so many nodes
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,
        #[command(flatten)]
        write: WriteArgs,
    },
    /// List the join tokens with conditions
    Ls(LsArgs),
    /// Show one
    Inspect(ObjectArg),
    /// Remove one: it admits nobody from then on
    Rm {
        #[command(flatten)]
        object: ObjectArg,
        #[command(flatten)]
        write: WriteArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum CaCommand {
    /// Show the root certificate, and how far its replacement is
    Show,
    /// Replace the root certificate: every node gets a new certificate, and the swarm works on meanwhile
    Rotate(RotateArgs),
}

#[derive(Clone, Debug, Args)]
pub struct RotateArgs {
    /// The new root certificate, PEM; the present one ends a rotation [default: a new one is made]
    #[arg(long, value_name = "FILE")]
    pub cert: Option<PathBuf>,
    /// Its private key, PKCS#8 PEM, or `-` for standard input
    #[arg(long, value_name = "FILE|-")]
    pub key: Option<PathBuf>,
    /// Do not wait for this node, which has to join again afterwards; may be repeated. A rotation that is under way goes on
    #[arg(long, value_name = "NODE")]
    pub skip: Vec<String>,
    /// Show how far it is until it has ended
    #[arg(long)]
    pub wait: bool,
    #[command(flatten)]
    pub write: WriteArgs,
}

#[derive(Clone, Debug, Subcommand)]
pub enum RaftCommand {
    /// Raft's progress on this manager
    Status {
        /// Also what happened to Raft lately, oldest first
        #[arg(long)]
        events: bool,
    },
    /// Hand leadership to another manager
    Transfer {
        /// A manager's name or id [default: the one that is furthest]
        #[arg(value_name = "NODE")]
        to: Option<String>,
    },
    /// Write a snapshot on this manager now and shorten its log
    Snapshot,
    /// Seal what this manager writes to its disk with a new key, and let go of what the key before has sealed
    RotateKey,
}

#[derive(Clone, Debug, Subcommand)]
pub enum WalCommand {
    /// Print segments and batches of a log that no manager has open
    Inspect {
        /// The data directory, or its `raft` directory
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        #[command(flatten)]
        unlock: UnlockArgs,
    },
    /// Cut a damaged log off where the damage begins, as the last resort
    Repair {
        /// The data directory of a manager that does not run
        #[arg(value_name = "DIR")]
        dir: PathBuf,
        /// Do not ask
        #[arg(long)]
        yes: bool,
        /// Say what would be cut off, and change nothing
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        unlock: UnlockArgs,
    },
}

#[derive(Clone, Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Check a snapshot from end to end and say what it holds
    Inspect {
        /// The file; its key is in the data directory around it, or in that of --data-dir
        #[arg(value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        unlock: UnlockArgs,
    },
}

#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Clients; each is one connection with one request outstanding
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: u32,
    /// Operations in all
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    pub total: u64,
    /// Bytes of each resource
    #[arg(long, value_name = "BYTES", default_value = "256", value_parser = parse::payload_size)]
    pub size: u64,
    /// Begin N operations a second instead of as many as are answered; one that must wait for a client counts from
    /// when it was due
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
}

#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Create resources, each with its own id, or write over some
    Write {
        #[command(flatten)]
        bench: BenchArgs,
        #[command(flatten)]
        write: WriteBenchArgs,
    },
    /// Read one resource, linearizably; --stale reads it locally
    Read(BenchArgs),
    /// One write to nine reads
    Mixed {
        #[command(flatten)]
        bench: BenchArgs,
        #[command(flatten)]
        write: WriteBenchArgs,
    },
    /// Watch from every client while others write; an operation is one change delivered to one watcher
    Watch {
        #[command(flatten)]
        bench: BenchArgs,
        #[command(flatten)]
        watch: WatchBenchArgs,
    },
}

#[derive(Clone, Debug, Default, Args)]
pub struct WriteBenchArgs {
    /// Write over N resources in turn instead of creating one each time, so that nothing grows
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub overwrite: Option<u32>,
}

#[derive(Clone, Debug, Args)]
pub struct WatchBenchArgs {
    /// Each client wants one change in N, by the beginning of its name
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub one_in: u32,
    /// Watchers besides that want every change, of all kinds
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub unfiltered: u32,
    /// Clients besides that write
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub writers: u32,
}

impl Default for WatchBenchArgs {
    fn default() -> Self {
        Self { one_in: 1, unfiltered: 0, writers: 16 }
    }
}
