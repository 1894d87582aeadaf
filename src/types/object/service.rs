//! Services: what should run, and how.

use super::*;

/// What should run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: ServiceSpec,
    /// The revision that last changed the spec.
    pub spec_version: Option<Revision>,
    /// The spec before the last update, to roll back to.
    pub previous_spec: Option<Box<ServiceSpec>>,
    /// The revision that had made it.
    pub previous_spec_version: Option<Revision>,
    /// How it is reached; filled in by the allocator.
    pub endpoint: Option<Endpoint>,
    /// How far the last update is.
    pub update_status: Option<UpdateStatus>,
    /// For jobs: which run this is.
    pub job_status: Option<JobStatus>,
    /// To be removed when its tasks are gone.
    pub pending_delete: bool,
}

/// What is asked of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// What each task runs.
    pub task: TaskSpec,
    /// How many tasks, and where.
    pub mode: ServiceMode,
    /// How tasks are replaced after a change.
    pub update: Option<UpdateConfig>,
    /// How tasks are replaced on the way back.
    pub rollback: Option<UpdateConfig>,
    /// Networks of every task; those of the task spec are preferred.
    pub networks: Vec<NetworkAttachmentConfig>,
    /// How it is reached.
    pub endpoint: Option<EndpointSpec>,
}

/// How many tasks a service has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ServiceMode {
    /// So many, for ever.
    Replicated {
        /// How many.
        replicas: u64,
    },
    /// One on every node, for ever.
    Global,
    /// So many that end well.
    ReplicatedJob {
        /// At once.
        max_concurrent: u64,
        /// In all.
        total_completions: u64,
    },
    /// One on every node that ends well.
    GlobalJob,
}

impl Default for ServiceMode {
    fn default() -> Self {
        Self::Replicated { replicas: 1 }
    }
}

/// How tasks are replaced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UpdateConfig {
    /// How many at once; zero means all.
    pub parallelism: u64,
    /// Pause between them, milliseconds.
    pub delay_ms: u64,
    /// What to do when one fails.
    pub failure_action: FailureAction,
    /// How long a new task is watched for failure, milliseconds; `None` means the default of 30 s.
    pub monitor_ms: Option<u64>,
    /// The share of failures that is still a success, 0 to 1.
    pub max_failure_ratio: f32,
    /// Which of old and new task goes first.
    pub order: UpdateOrder,
}

/// What to do when a new task fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailureAction {
    /// Stop updating.
    #[default]
    Pause,
    /// Go on.
    Continue,
    /// Go back.
    Rollback,
}

/// Which of old and new task goes first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateOrder {
    /// The old one stops, then the new one starts.
    #[default]
    StopFirst,
    /// The new one starts, then the old one stops.
    StartFirst,
}

/// How far an update is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    /// Its state.
    pub state: UpdateState,
    /// When it began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub completed_at: Option<Timestamp>,
    /// Why it is where it is.
    pub message: String,
}

/// The state of an update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateState {
    /// None.
    #[default]
    Unknown,
    /// Under way.
    Updating,
    /// Stopped after a failure.
    Paused,
    /// Done.
    Completed,
    /// On the way back.
    RollbackStarted,
    /// Stopped on the way back after a failure.
    RollbackPaused,
    /// Back.
    RollbackCompleted,
}

/// Which run of a job this is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobStatus {
    /// Raised for each run; tasks of older ones are ended.
    pub iteration: u64,
    /// When this run began.
    pub last_execution: Option<Timestamp>,
}

/// What a task runs, with what, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TaskSpec {
    /// What it runs.
    pub runtime: Runtime,
    /// What it may use and what is set aside for it.
    pub resources: Option<ResourceRequirements>,
    /// What happens when it ends; `None` means the default: always again, after five seconds.
    pub restart: Option<RestartPolicy>,
    /// Where it may run; `None` means anywhere.
    pub placement: Option<Placement>,
    /// Where its output goes; `None` means the swarm's default.
    pub log_driver: Option<Driver>,
    /// Its networks.
    pub networks: Vec<NetworkAttachmentConfig>,
    /// Raised to replace tasks although nothing changed.
    pub force_update: u64,
    /// Objects that its driver wants on the node.
    pub resource_references: Vec<ResourceReference>,
}

/// What a task runs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// A container.
    Container(Box<ContainerSpec>),
    /// Nothing: it attaches a container from elsewhere to a network.
    Attachment {
        /// The container.
        container_id: String,
    },
    /// Something that a plugin runs.
    Generic {
        /// The plugin's kind.
        kind: String,
        /// For the plugin.
        #[serde(with = "readable")]
        payload: Vec<u8>,
    },
}

impl Default for Runtime {
    fn default() -> Self {
        Self::Container(Box::default())
    }
}

/// An object that a task's driver wants on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReference {
    /// The object's kind.
    pub kind: ResourceReferenceKind,
    /// The object.
    pub id: ObjectId,
}

/// What a [`ResourceReference`] may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResourceReferenceKind {
    /// A task.
    Task,
    /// A secret.
    Secret,
    /// A config.
    Config,
}

/// What a task may use and what is set aside for it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceRequirements {
    /// At most so much.
    pub limits: Option<ResourceLimits>,
    /// At least so much.
    pub reservations: Option<ResourceReservations>,
    /// Swap, bytes; -1 is unlimited, `None` the engine's default.
    pub swap_bytes: Option<i64>,
    /// How readily memory is swapped, 0 to 100; -1 or `None` is the engine's default.
    pub memory_swappiness: Option<i64>,
}

/// Upper bounds. Zero means none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimits {
    /// Processor time, in billionths of a core.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Processes.
    pub pids: i64,
}

/// What is set aside.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReservations {
    /// Processor time, in billionths of a core.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Countable and named resources.
    pub generic: Vec<GenericResource>,
}

/// What happens when a task ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RestartPolicy {
    /// When it is started again.
    pub condition: RestartCondition,
    /// Pause before that, milliseconds.
    pub delay_ms: u64,
    /// How often within the window; zero means without limit.
    pub max_attempts: u64,
    /// The window, milliseconds; zero means for ever.
    pub window_ms: u64,
}

impl Default for RestartPolicy {
    fn default() -> Self {
        Self { condition: RestartCondition::Any, delay_ms: 5000, max_attempts: 0, window_ms: 0 }
    }
}

/// When a task is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartCondition {
    /// Never.
    None,
    /// When it failed.
    OnFailure,
    /// Always.
    #[default]
    Any,
}

/// Where a task may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placement {
    /// Expressions such as `node.labels.disk==ssd`; all must hold.
    pub constraints: Vec<String>,
    /// Labels over whose values tasks are spread, such as `node.labels.zone`; the first is the outermost.
    pub preferences: Vec<String>,
    /// Platforms it runs on; empty means any.
    pub platforms: Vec<Platform>,
    /// At most so many tasks of the service per node; zero means any number.
    pub max_replicas: u64,
}

/// A processor architecture and an operating system; an empty one means any.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// As `uname -m` prints it.
    pub architecture: String,
    /// Such as `linux`.
    pub os: String,
}
