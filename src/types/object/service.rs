//! Services.

use super::*;

/// What should run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
}
