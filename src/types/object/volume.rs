//! Volumes.

use super::*;

/// A volume.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Volume {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
}
