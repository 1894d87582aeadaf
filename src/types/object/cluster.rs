//! The cluster object: settings, root CA and join tokens. There is one, named `default`.

use super::*;

/// The swarm's settings. Its id is the O of every certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Identity.
    pub id: ClusterId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: ClusterSpec,
    /// Root certificate, key and join tokens.
    pub root_ca: RootCa,
    /// Keys that encrypt traffic of networks; newest first.
    pub network_bootstrap_keys: Vec<EncryptionKey>,
    /// Raised whenever a bootstrap key is made.
    pub encryption_key_lamport_clock: u64,
    /// Keys that unlock managers.
    pub unlock_keys: Vec<EncryptionKey>,
    /// Whether only FIPS-validated cryptography may be used.
    pub fips: bool,
    /// Address pools for networks, CIDR.
    pub default_address_pool: Vec<String>,
    /// Prefix length of subnets cut from the pools.
    pub subnet_size: u32,
    /// UDP port of VXLAN traffic; zero means 4789.
    pub vxlan_udp_port: u32,
    /// The format that all replicated bytes are written in; never falls.
    pub feature_level: u32,
}

/// What is asked of the swarm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterSpec {
    /// Name `default`, and labels.
    pub annotations: Annotations,
    /// Finished tasks kept per slot.
    pub task_history_retention_limit: i64,
    /// Log, snapshots and timing.
    pub raft: RaftSettings,
    /// Agents report at least this often, milliseconds.
    pub heartbeat_period_ms: u64,
    /// Certificates.
    pub ca: CaSettings,
    /// Log driver of tasks that name none.
    pub default_log_driver: Option<Driver>,
    /// Whether managers need the unlock key to start.
    pub auto_lock_managers: bool,
    /// Who may join without a person's approval.
    pub acceptance_policies: Vec<AcceptancePolicy>,
}

/// Log, snapshots and timing of the Raft group. Changes take effect at once on every manager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftSettings {
    /// A snapshot is due when the log since the last one is larger than this and than twice that snapshot, bytes.
    pub snapshot_bytes: u64,
    /// At most so much log before the last snapshot is kept for followers that lag, bytes.
    pub keep_bytes: u64,
    /// Timing.
    pub profile: Profile,
}

/// Timing and memory for a kind of network and disk. Chosen by the first manager.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// One site: tick 100 ms, election 1 to 2 s.
    #[default]
    Lan,
    /// Several sites: tick 500 ms, election 5 to 10 s.
    Wan,
    /// Slow flash: tick 500 ms, election 10 to 20 s, 4 MiB segments, small rings.
    Sdcard,
}

impl RaftSettings {
    /// The settings a new swarm begins with.
    pub const fn for_profile(profile: Profile) -> Self {
        let keep = match profile {
            Profile::Sdcard => 16 << 20,
            Profile::Lan | Profile::Wan => 64 << 20,
        };
        Self { snapshot_bytes: 64 << 20, keep_bytes: keep, profile }
    }
}

/// How certificates are made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaSettings {
    /// Validity of node certificates, milliseconds; at least one hour.
    pub node_certificate_expiry_ms: u64,
    /// Certificate authorities outside the swarm.
    pub external_cas: Vec<ExternalCa>,
    /// A root certificate to rotate to, PEM.
    pub signing_ca_certificate: String,
    /// Its key, PEM.
    pub signing_ca_key: Sensitive,
    /// Raised to force a rotation.
    pub force_rotate: u64,
    /// For so long after its end a certificate still gets its node a new one, milliseconds.
    pub expired_grace_ms: u64,
}

/// A certificate authority outside the swarm.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalCa {
    /// Where it answers.
    pub url: String,
    /// Protocol options.
    pub options: BTreeMap<String, String>,
    /// Its root, PEM.
    pub certificate: String,
}

/// Who may join.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AcceptancePolicy {
    /// Nodes of this role.
    pub role: Role,
    /// Without a person's approval.
    pub autoaccept: bool,
}

/// The swarm's root certificate authority.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCa {
    /// Private key, PKCS#8 PEM; empty with an external CA only. Never leaves the managers.
    pub key: Sensitive,
    /// Root certificates, PEM.
    pub certificate: String,
    /// SHA-256 of `certificate`, 50 characters base36: the digest in join tokens.
    pub digest: String,
    /// The tokens that admit nodes.
    pub join_tokens: JoinTokens,
    /// A rotation under way.
    pub rotation: Option<RootRotation>,
    /// Last `force_rotate` acted upon.
    pub last_forced_rotation: u64,
}

/// The tokens that admit nodes: `SWMTKN-1-<digest>-<secret>`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinTokens {
    /// Admits workers.
    pub worker: String,
    /// Admits managers.
    pub manager: String,
}

impl fmt::Debug for JoinTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<join tokens>")
    }
}

/// A symmetric key of one of the swarm's subsystems.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EncryptionKey {
    /// Who uses it, such as `networking:gossip` or `swarm-manager`.
    pub subsystem: String,
    /// The algorithm's number in the reference's API.
    pub algorithm: u32,
    /// The key.
    pub key: Sensitive,
    /// When it was made, on the cluster's key clock.
    pub lamport_time: u64,
}
