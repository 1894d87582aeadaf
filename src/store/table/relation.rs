//! What objects have to do with others, and are found by.

use crate::types::object::{MembershipState, TaskState};
use crate::types::{Object, ObjectId, Role, Selector};

/// What an object is found by besides text: of fixed size, so that an index entry costs no allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Relation {
    Role(Role),
    Membership(MembershipState),
    Service(ObjectId),
    Node(ObjectId),
    Slot(ObjectId, u64),
    DesiredState(TaskState),
    TaskState(TaskState),
    Network(ObjectId),
    Secret(ObjectId),
    Config(ObjectId),
}

impl Relation {
    /// What `object` is found by; may repeat. Resources, the many and small, have none and cost no allocation here.
    pub fn of(object: Option<&Object>) -> Vec<Self> {
        let Some(object) = object else { return Vec::new() };
        let mut relations = Vec::new();
        match object {
            Object::Resource(_) => return relations,
            Object::Node(node) => {
                relations.extend([Self::Role(node.spec.desired_role), Self::Membership(node.spec.membership)]);
            }
            Object::Task(task) => {
                relations.extend([Self::DesiredState(task.desired_state), Self::TaskState(task.status.state)]);
                relations.extend(task.node_id.map(|id| Self::Node(id.into())));
                if let Some(id) = task.service_id {
                    relations.extend([Self::Service(id), Self::Slot(id, task.slot)]);
                }
            }
            _ => {}
        }
        relations.extend(object.referenced_networks().map(Self::Network));
        relations.extend(object.referenced_secrets().map(Self::Secret));
        relations.extend(object.referenced_configs().map(Self::Config));
        relations
    }

    /// What objects must have to do with others, or with a state, to be selected.
    pub const fn asked_for(selector: &Selector) -> Option<Self> {
        Some(match selector {
            Selector::Role(role) => Self::Role(*role),
            Selector::Membership(state) => Self::Membership(*state),
            Selector::Service(id) => Self::Service(*id),
            Selector::Node(id) => Self::Node(*id),
            Selector::Slot(id, slot) => Self::Slot(*id, *slot),
            Selector::DesiredState(state) => Self::DesiredState(*state),
            Selector::TaskState(state) => Self::TaskState(*state),
            Selector::ReferencedNetwork(id) => Self::Network(*id),
            Selector::ReferencedSecret(id) => Self::Secret(*id),
            Selector::ReferencedConfig(id) => Self::Config(*id),
            Selector::All
            | Selector::IdPrefix(_)
            | Selector::Name(_)
            | Selector::NamePrefix(_)
            | Selector::Kind(_)
            | Selector::Custom { .. }
            | Selector::CustomPrefix { .. } => return None,
        })
    }
}
