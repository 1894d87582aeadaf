//! Tasks: one run of one instance of a service.

use super::*;

/// One instance of a service. It runs once: another attempt is another task.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// What it runs; copied from the service when the task is made.
    pub spec: TaskSpec,
    /// The revision of the service's spec that it was made from.
    pub spec_version: Option<Revision>,
    /// Its service; `None` for an attachment made by hand.
    pub service_id: Option<ObjectId>,
    /// Its place among the service's replicas, from 1; zero in global services.
    pub slot: u64,
    /// Its node; `None` until it has one, then for ever the same.
    pub node_id: Option<NodeId>,
    /// Name and labels.
    pub annotations: Annotations,
    /// The service's name and labels when the task was made.
    pub service_annotations: Annotations,
    /// What is known of it.
    pub status: TaskStatus,
    /// The state it should be in; never goes back.
    pub desired_state: TaskState,
    /// Its places in networks.
    pub networks: Vec<NetworkAttachment>,
    /// How its service is reached.
    pub endpoint: Option<Box<Endpoint>>,
    /// Where its output goes.
    pub log_driver: Option<Driver>,
    /// The countable and named resources that are its own.
    pub assigned_generic_resources: Vec<GenericResource>,
    /// For jobs: the run it belongs to.
    pub job_iteration: Option<u64>,
    /// Volumes of the swarm that are mounted into it.
    pub volumes: Vec<VolumeAttachment>,
}

/// A task's state, in the order in which a task passes through them; it never goes back. The numbers are Docker's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TaskState {
    /// Made by an orchestrator.
    #[default]
    New = 0,
    /// Has its addresses; waits for a node.
    Pending = 64,
    /// Has a node.
    Assigned = 192,
    /// The node took it.
    Accepted = 256,
    /// The node fetches what it needs.
    Preparing = 320,
    /// It can start.
    Ready = 384,
    /// It starts.
    Starting = 448,
    /// It runs.
    Running = 512,
    /// It ended well.
    Complete = 576,
    /// It was stopped.
    Shutdown = 640,
    /// It ended badly.
    Failed = 704,
    /// It could not start.
    Rejected = 768,
    /// It is to be removed; desired only.
    Remove = 800,
    /// Its node is lost for good.
    Orphaned = 832,
}

impl TaskState {
    /// Every state, in order.
    pub const ALL: [Self; 14] = [
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
    ];

    /// Docker's number.
    pub const fn number(self) -> u16 {
        self as u16
    }

    /// Whether the task has ended, and nothing of it runs any more.
    pub const fn is_terminal(self) -> bool {
        self.number() > Self::Running.number()
    }
}

/// What is known of a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    /// When it came into this state, by the clock of whoever saw it.
    pub timestamp: Timestamp,
    /// Its state.
    pub state: TaskState,
    /// What is happening.
    pub message: String,
    /// What went wrong.
    pub error: String,
    /// Its container.
    pub container: Option<ContainerStatus>,
    /// Ports published on its own node.
    pub ports: Vec<PortConfig>,
    /// The manager that wrote this.
    pub applied_by: Option<NodeId>,
    /// When it did, by the leader's clock.
    pub applied_at: Option<Timestamp>,
}

/// What is known of a task's container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerStatus {
    /// The engine's id for it.
    pub container_id: String,
    /// Its process, zero when it does not run.
    pub pid: i32,
    /// What it exited with.
    pub exit_code: i32,
}

/// A volume of the swarm that is mounted into a task.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAttachment {
    /// The volume.
    pub volume_id: ObjectId,
    /// The mount's source.
    pub source: String,
    /// The mount's target.
    pub target: String,
}
