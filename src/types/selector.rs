//! How objects are found: by id, name, relation, state or custom index. A list of selectors means any of them.

use serde::{Deserialize, Serialize};

use super::object::{MembershipState, TaskState};
use super::{Object, ObjectId, Role};

/// Selects objects of one table. A selector that does not fit the table (a slot of a secret) matches nothing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Selector {
    /// Every object.
    All,
    /// The printed id begins with this.
    IdPrefix(String),
    /// The name equals this, ignoring case.
    Name(String),
    /// The name begins with this, ignoring case.
    NamePrefix(String),
    /// Tasks of a service.
    Service(ObjectId),
    /// Tasks on a node.
    Node(ObjectId),
    /// Tasks of a service's slot.
    Slot(ObjectId, u64),
    /// Tasks that should be in this state.
    DesiredState(TaskState),
    /// Tasks that are in this state.
    TaskState(TaskState),
    /// Nodes of this desired role.
    Role(Role),
    /// Nodes in this membership state.
    Membership(MembershipState),
    /// Resources of this kind (an extension's name, ignoring case as names do).
    Kind(String),
    /// Services and tasks that refer to this network.
    ReferencedNetwork(ObjectId),
    /// Services, tasks and volumes that refer to this secret.
    ReferencedSecret(ObjectId),
    /// Services and tasks that refer to this config.
    ReferencedConfig(ObjectId),
    /// Objects whose custom index has this value.
    Custom {
        /// The index's name.
        index: String,
        /// Its value.
        value: String,
    },
    /// Objects whose custom index begins with this value.
    CustomPrefix {
        /// The index's name.
        index: String,
        /// What its value begins with.
        prefix: String,
    },
}

impl Selector {
    /// Whether `object` matches, decided from the object alone. Indexes must agree with this.
    pub fn matches(&self, object: &Object) -> bool {
        super::object::matches(object, self)
    }
}
