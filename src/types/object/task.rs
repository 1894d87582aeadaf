//! Tasks.

use super::*;

/// One instance of a service.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
}

/// A task's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    /// Made.
    New,
}
