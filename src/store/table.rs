//! One table: objects by id, and the indexes that answer every selector without a scan.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};

use super::Stored;
use crate::types::object::{MembershipState, TaskState};
use crate::types::{Object, ObjectId, Role, Selector};

/// The objects of one kind. A clone shares everything until one side writes.
#[derive(Clone, Default)]
pub(super) struct Table {
    objects: OrdMap<ObjectId, Arc<Stored>>,
    bytes: u64,
    /// Lower-case name and holder. Names of nodes and tasks may repeat, so the id is part of the key.
    names: OrdSet<(Arc<str>, ObjectId)>,
    /// Lower-case kinds of resources.
    kinds: OrdSet<(Arc<str>, ObjectId)>,
    /// Custom indices: index, value, object.
    custom: OrdSet<(Arc<str>, Arc<str>, ObjectId)>,
    relations: OrdSet<(Relation, ObjectId)>,
}

/// What an object is found by besides text: of fixed size, so that an index entry costs no allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Relation {
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

impl Table {
    pub fn get(&self, id: ObjectId) -> Option<&Arc<Stored>> {
        self.objects.get(&id)
    }

    pub fn iter(&self) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.values()
    }

    /// The objects of this id and the ones after it.
    pub fn from_id(&self, id: ObjectId) -> impl Iterator<Item = &Arc<Stored>> {
        self.objects.range(id..).map(|(_, stored)| stored)
    }

    pub fn len(&self) -> usize {
        self.objects.len()
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts `stored` in the place of what has its id, or removes what is there; gives back what was.
    pub fn replace(&mut self, id: ObjectId, stored: Option<Arc<Stored>>) -> Option<Arc<Stored>> {
        let old = match &stored {
            Some(new) => self.objects.insert(id, new.clone()),
            None => self.objects.remove(&id),
        };
        self.bytes -= old.as_ref().map_or(0, |old| u64::from(old.bytes));
        self.bytes += stored.as_ref().map_or(0, |new| u64::from(new.bytes));
        self.reindex(id, old.as_deref(), stored.as_deref());
        old
    }

    /// The objects with this name, ignoring case, in order of id.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &Arc<Stored>> {
        let name = lower(name);
        let first = (name.clone(), ObjectId(0));
        self.names.range(first..).take_while(move |(own, _)| *own == name).filter_map(|(_, id)| self.objects.get(id))
    }

    /// Everything that matches any of the selectors, in order of id, each once.
    pub fn find(&self, any_of: &[Selector]) -> Vec<&Arc<Stored>> {
        if any_of.contains(&Selector::All) {
            return self.objects.values().collect();
        }
        let mut ids = Vec::new();
        for selector in any_of {
            self.collect(selector, &mut ids);
        }
        ids.sort_unstable();
        ids.dedup();
        ids.into_iter().filter_map(|id| self.objects.get(&id)).collect()
    }

    /// Ids whose printed form begins with `prefix`.
    pub fn with_id_prefix(&self, prefix: &str) -> impl Iterator<Item = &Arc<Stored>> {
        let range = crate::types::ids::prefix_range(prefix);
        range.into_iter().flat_map(|(first, last)| self.objects.range(ObjectId(first)..=ObjectId(last))).map(|(_, o)| o)
    }

    fn collect(&self, selector: &Selector, ids: &mut Vec<ObjectId>) {
        match selector {
            Selector::All => ids.extend(self.objects.keys()),
            Selector::IdPrefix(prefix) => ids.extend(self.with_id_prefix(prefix).map(|stored| stored.object.id())),
            Selector::Name(name) => ids.extend(self.named(name).map(|stored| stored.object.id())),
            Selector::NamePrefix(prefix) => {
                let prefix = lower(prefix);
                let first = (prefix.clone(), ObjectId(0));
                let matching = self.names.range(first..).take_while(|(name, _)| name.starts_with(&*prefix));
                ids.extend(matching.map(|(_, id)| *id));
            }
            Selector::Kind(kind) => {
                let kind = lower(kind);
                let first = (kind.clone(), ObjectId(0));
                ids.extend(self.kinds.range(first..).take_while(|(own, _)| *own == kind).map(|(_, id)| *id));
            }
            Selector::Custom { index, value } => {
                let first = (Arc::from(index.as_str()), Arc::from(value.as_str()), ObjectId(0));
                let matching = self.custom.range(first..);
                let matching = matching.take_while(|(own, found, _)| **own == **index && **found == **value);
                ids.extend(matching.map(|(_, _, id)| *id));
            }
            Selector::CustomPrefix { index, prefix } => {
                let first = (Arc::from(index.as_str()), Arc::from(prefix.as_str()), ObjectId(0));
                let matching = self.custom.range(first..);
                let matching = matching.take_while(|(own, found, _)| **own == **index && found.starts_with(&**prefix));
                ids.extend(matching.map(|(_, _, id)| *id));
            }
            Selector::Role(role) => self.related(Relation::Role(*role), ids),
            Selector::Membership(state) => self.related(Relation::Membership(*state), ids),
            Selector::Service(id) => self.related(Relation::Service(*id), ids),
            Selector::Node(id) => self.related(Relation::Node(*id), ids),
            Selector::Slot(id, slot) => self.related(Relation::Slot(*id, *slot), ids),
            Selector::DesiredState(state) => self.related(Relation::DesiredState(*state), ids),
            Selector::TaskState(state) => self.related(Relation::TaskState(*state), ids),
            Selector::ReferencedNetwork(id) => self.related(Relation::Network(*id), ids),
            Selector::ReferencedSecret(id) => self.related(Relation::Secret(*id), ids),
            Selector::ReferencedConfig(id) => self.related(Relation::Config(*id), ids),
        }
    }

    fn related(&self, relation: Relation, ids: &mut Vec<ObjectId>) {
        let matching = self.relations.range((relation, ObjectId(0))..=(relation, ObjectId(u128::MAX)));
        ids.extend(matching.map(|(_, id)| *id));
    }

    /// Takes the old object out of every index and puts the new one in, leaving alone what both have.
    fn reindex(&mut self, id: ObjectId, old: Option<&Stored>, new: Option<&Stored>) {
        let (old, new) = (old.map(|stored| &stored.object), new.map(|stored| &stored.object));
        swap_text(&mut self.names, id, old.and_then(Object::name), new.and_then(Object::name));
        swap_text(&mut self.kinds, id, old.and_then(resource_kind), new.and_then(resource_kind));
        self.swap_custom(id, old, new);
        let (before, after) = (relations(old), relations(new));
        for relation in before.iter().filter(|relation| !after.contains(relation)) {
            self.relations.remove(&(*relation, id));
        }
        for relation in after.iter().filter(|relation| !before.contains(relation)) {
            self.relations.insert((*relation, id));
        }
    }

    fn swap_custom(&mut self, id: ObjectId, old: Option<&Object>, new: Option<&Object>) {
        let before = old.map(Object::indices);
        let after = new.map(Object::indices);
        if before == after {
            return;
        }
        for (index, value) in before.into_iter().flatten() {
            self.custom.remove(&(Arc::from(index.as_str()), Arc::from(value.as_str()), id));
        }
        for (index, value) in after.into_iter().flatten() {
            self.custom.insert((Arc::from(index.as_str()), Arc::from(value.as_str()), id));
        }
    }
}

fn swap_text(index: &mut OrdSet<(Arc<str>, ObjectId)>, id: ObjectId, old: Option<&str>, new: Option<&str>) {
    if old == new {
        return;
    }
    if let Some(old) = old {
        index.remove(&(lower(old), id));
    }
    if let Some(new) = new {
        index.insert((lower(new), id));
    }
}

/// Lower case of ASCII letters only: Unicode's tables change between compilers, and replicas may be built by several.
fn lower(text: &str) -> Arc<str> {
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Arc::from(text.to_ascii_lowercase())
    } else {
        Arc::from(text)
    }
}

fn resource_kind(object: &Object) -> Option<&str> {
    match object {
        Object::Resource(resource) => Some(&resource.kind),
        _ => None,
    }
}

/// What `object` is found by; may repeat. Resources, the many and small, have none and cost no allocation here.
fn relations(object: Option<&Object>) -> Vec<Relation> {
    let Some(object) = object else { return Vec::new() };
    let mut relations = Vec::new();
    match object {
        Object::Node(node) => {
            relations.extend([Relation::Role(node.spec.desired_role), Relation::Membership(node.spec.membership)]);
        }
        Object::Task(task) => {
            relations.extend([Relation::DesiredState(task.desired_state), Relation::TaskState(task.status.state)]);
            relations.extend(task.node_id.map(|id| Relation::Node(id.into())));
            if let Some(id) = task.service_id {
                relations.extend([Relation::Service(id), Relation::Slot(id, task.slot)]);
            }
        }
        _ => {}
    }
    relations.extend(object.referenced_networks().map(Relation::Network));
    relations.extend(object.referenced_secrets().map(Relation::Secret));
    relations.extend(object.referenced_configs().map(Relation::Config));
    relations
}
