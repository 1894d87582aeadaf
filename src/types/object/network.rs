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

/// A task's or node's place in a network.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkAttachment {
    /// The network.
    pub network_id: ObjectId,
    /// Its addresses there, CIDR.
    pub addresses: Vec<String>,
    /// Its other names there.
    pub aliases: Vec<String>,
    /// Options of the network's driver for this attachment.
    pub driver_options: BTreeMap<String, String>,
}
