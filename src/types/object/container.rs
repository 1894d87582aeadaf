//! What a container runs and what it sees.

use super::*;

/// A container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The image, by name and digest.
    pub image: String,
    /// The container's labels.
    pub labels: BTreeMap<String, String>,
    /// Replaces the image's entry point.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its host name.
    pub hostname: String,
    /// Environment, `NAME=value`.
    pub env: Vec<String>,
    /// Working directory.
    pub dir: String,
    /// User, name or number.
    pub user: String,
    /// Further groups.
    pub groups: Vec<String>,
    /// Confinement.
    pub privileges: Option<Privileges>,
    /// Whether an init runs as process 1; `None` is the engine's default.
    pub init: Option<bool>,
    /// It has a terminal.
    pub tty: bool,
    /// Its standard input stays open.
    pub open_stdin: bool,
    /// Its root file system is read-only.
    pub read_only: bool,
    /// The signal that asks it to stop.
    pub stop_signal: String,
    /// What is mounted into it.
    pub mounts: Vec<Mount>,
    /// Time to stop before it is killed, milliseconds; `None` is the engine's default.
    pub stop_grace_period_ms: Option<u64>,
    /// The registry's credentials, base64 of JSON.
    pub registry_auth: Sensitive,
    /// Secrets it sees.
    pub secrets: Vec<SecretReference>,
    /// Configs it sees.
    pub configs: Vec<ConfigReference>,
    /// Lines of its hosts file, `IP name...`.
    pub hosts: Vec<String>,
    /// Name resolution; `None` is the engine's default.
    pub dns: Option<DnsConfig>,
    /// How it is known to be well; `None` is the image's way.
    pub healthcheck: Option<HealthConfig>,
    /// Isolation on Windows.
    pub isolation: Isolation,
    /// At most so many processes; zero means any number.
    pub pids_limit: i64,
    /// Kernel parameters of its namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Capabilities it has besides the default ones.
    pub capability_add: Vec<String>,
    /// Default capabilities that it has not.
    pub capability_drop: Vec<String>,
    /// Limits of its processes.
    pub ulimits: Vec<Ulimit>,
    /// Added to its score when memory runs out, -1000 to 1000.
    pub oom_score_adj: i64,
}

/// A container's confinement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Privileges {
    /// Windows: where the credential spec is.
    pub credential_spec: Option<CredentialSpec>,
    /// SELinux.
    pub selinux: Option<SelinuxContext>,
    /// Seccomp; `None` is the engine's default.
    pub seccomp: Option<Seccomp>,
    /// AppArmor; `None` is the engine's default.
    pub apparmor: Option<Apparmor>,
    /// Its processes gain no privileges.
    pub no_new_privileges: bool,
}

/// Where a credential spec is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CredentialSpec {
    /// A file on the node.
    File(String),
    /// A value in the node's registry.
    Registry(String),
    /// A config.
    Config(ObjectId),
}

/// SELinux labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelinuxContext {
    /// Off.
    pub disable: bool,
    /// User label.
    pub user: String,
    /// Role label.
    pub role: String,
    /// Type label.
    pub kind: String,
    /// Level label.
    pub level: String,
}

/// A seccomp profile.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Seccomp {
    /// The engine's.
    Default,
    /// None.
    Unconfined,
    /// This one, JSON.
    Custom(#[serde(with = "readable")] Vec<u8>),
}

/// An AppArmor profile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Apparmor {
    /// The engine's.
    Default,
    /// None.
    Disabled,
}

/// Isolation on Windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// The engine's.
    #[default]
    Default,
    /// A process.
    Process,
    /// A virtual machine.
    Hyperv,
}

/// Something mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// A path, a volume's name, or `group:NAME`.
    pub source: String,
    /// Where in the container.
    pub target: String,
    /// Not to be written.
    pub read_only: bool,
    /// How it is kept consistent, on engines that ask.
    pub consistency: MountConsistency,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountKind {
    /// A path of the node.
    Bind(BindOptions),
    /// A volume of the engine.
    Volume(VolumeOptions),
    /// Memory.
    Tmpfs(TmpfsOptions),
    /// A named pipe (Windows).
    Npipe,
    /// A volume of the swarm.
    Cluster,
}

/// How a path is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindOptions {
    /// Which mounts show through.
    pub propagation: MountPropagation,
    /// Without what is mounted below it.
    pub non_recursive: bool,
    /// The path is made if it is not there.
    pub create_mountpoint: bool,
    /// Mounts below it stay writable although it is read-only.
    pub read_only_non_recursive: bool,
    /// Fails unless mounts below it can be made read-only.
    pub read_only_force_recursive: bool,
}

/// Which mounts show through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountPropagation {
    /// Recursive, private.
    #[default]
    Rprivate,
    /// Private.
    Private,
    /// Recursive, shared.
    Rshared,
    /// Shared.
    Shared,
    /// Recursive, slave.
    Rslave,
    /// Slave.
    Slave,
}

/// How a volume of the engine is made and mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeOptions {
    /// Not filled from the image.
    pub no_copy: bool,
    /// The volume's labels.
    pub labels: BTreeMap<String, String>,
    /// Its driver.
    pub driver: Option<Driver>,
    /// A path inside it.
    pub subpath: String,
}

/// How memory is mounted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TmpfsOptions {
    /// At most so much; zero is the system's default.
    pub size_bytes: i64,
    /// Permission bits of its root.
    pub mode: u32,
    /// Mount options.
    pub options: String,
}

/// How a mount is kept consistent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MountConsistency {
    /// The engine's.
    #[default]
    Default,
    /// At once on both sides.
    Consistent,
    /// The node may be behind.
    Cached,
    /// The container may be ahead.
    Delegated,
}

/// A secret that a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretReference {
    /// The secret.
    pub secret_id: ObjectId,
    /// Its name when it was asked for.
    pub secret_name: String,
    /// Where it appears.
    pub target: Option<FileTarget>,
}

/// A config that a container sees.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReference {
    /// The config.
    pub config_id: ObjectId,
    /// Its name when it was asked for.
    pub config_name: String,
    /// Where it appears; `None` when only the engine reads it, such as a credential spec.
    pub target: Option<FileTarget>,
}

/// A file in a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTarget {
    /// Its name or path.
    pub name: String,
    /// Owner.
    pub uid: String,
    /// Group.
    pub gid: String,
    /// Permission bits.
    pub mode: u32,
}

/// Name resolution.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsConfig {
    /// Servers.
    pub nameservers: Vec<String>,
    /// Domains to search.
    pub search: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// How a container is known to be well.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthConfig {
    /// `NONE`; `CMD` and arguments; or `CMD-SHELL` and a line. Empty is the image's.
    pub test: Vec<String>,
    /// Time between checks, milliseconds; zero is the default.
    pub interval_ms: u64,
    /// Time a check may take, milliseconds; zero is the default.
    pub timeout_ms: u64,
    /// Failures in a row that make it unwell; zero is the default.
    pub retries: u32,
    /// Time to start, in which failures do not count, milliseconds.
    pub start_period_ms: u64,
    /// Time between checks while it starts, milliseconds.
    pub start_interval_ms: u64,
}

/// A limit of a container's processes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Which, such as `nofile`.
    pub name: String,
    /// What a process may raise it to.
    pub hard: i64,
    /// What it starts with.
    pub soft: i64,
}
