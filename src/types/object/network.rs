//! Networks.

use super::*;

/// A network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Network {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
}
