//! Volumes that a storage plugin (CSI) provides to the whole swarm.

use super::*;

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Volume {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: VolumeSpec,
    /// Where it is on its way to or from nodes.
    pub publish_status: Vec<VolumePublishStatus>,
    /// What the plugin says of it; `None` until it was made there.
    pub info: Option<VolumeInfo>,
    /// To be removed when no node has it any more.
    pub pending_delete: bool,
}

/// What is asked of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// Volumes of one group stand in for each other.
    pub group: String,
    /// The plugin.
    pub driver: Driver,
    /// How it may be used.
    pub access_mode: VolumeAccessMode,
    /// Secrets for the plugin.
    pub secrets: Vec<VolumeSecret>,
    /// From where it must be reachable.
    pub accessibility: TopologyRequirement,
    /// How large it must be.
    pub capacity: Option<CapacityRange>,
    /// Whether tasks may use it.
    pub availability: VolumeAvailability,
}

/// How a volume may be used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAccessMode {
    /// On how many nodes at once.
    pub scope: VolumeScope,
    /// By how many tasks at once.
    pub sharing: VolumeSharing,
    /// As what.
    pub access: VolumeAccess,
}

/// On how many nodes a volume may be at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeScope {
    /// One.
    #[default]
    SingleNode,
    /// Several.
    MultiNode,
}

/// By how many tasks a volume may be used at once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSharing {
    /// One.
    #[default]
    None,
    /// Any number, to read.
    ReadOnly,
    /// One to write, any number to read.
    OneWriter,
    /// Any number.
    All,
}

/// As what a volume is used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeAccess {
    /// As a file system.
    Mount {
        /// Its type, empty for the plugin's default.
        fs_type: String,
        /// Mount options.
        mount_flags: Vec<String>,
    },
    /// As a block device.
    Block,
}

impl Default for VolumeAccess {
    fn default() -> Self {
        Self::Mount { fs_type: String::new(), mount_flags: Vec::new() }
    }
}

/// A secret for the plugin.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSecret {
    /// What the plugin calls it.
    pub key: String,
    /// The secret.
    pub secret: ObjectId,
}

/// From where a volume must be reachable: each a set of keys and values that nodes have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TopologyRequirement {
    /// From one of these at least.
    pub requisite: Vec<BTreeMap<String, String>>,
    /// Preferably from these, the first above all.
    pub preferred: Vec<BTreeMap<String, String>>,
}

/// How large a volume must be. Zero means no bound.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapacityRange {
    /// At least.
    pub required_bytes: i64,
    /// At most.
    pub limit_bytes: i64,
}

/// Whether tasks may use a volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeAvailability {
    /// They may.
    #[default]
    Active,
    /// Those that do may, no others.
    Pause,
    /// None may.
    Drain,
}

/// Where a volume is on its way to or from a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePublishStatus {
    /// The node.
    pub node_id: NodeId,
    /// How far.
    pub state: VolumePublishState,
    /// What the plugin says of it there.
    pub context: BTreeMap<String, String>,
    /// Why it does not get on.
    pub message: String,
}

/// How far a volume is on its way to or from a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumePublishState {
    /// The plugin is to publish it there.
    PendingPublish,
    /// It is there.
    Published,
    /// The node is to let go of it.
    PendingNodeUnpublish,
    /// The plugin is to take it away.
    PendingUnpublish,
}

/// What the plugin says of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Its size.
    pub capacity_bytes: i64,
    /// For the plugin on the nodes.
    pub context: BTreeMap<String, String>,
    /// The plugin's id for it.
    pub volume_id: String,
    /// From where it is reachable.
    pub accessible_topology: Vec<BTreeMap<String, String>>,
}
