//! The eleven kinds of object that the store replicates, and their specs (object model of Docker Swarm mode).
//!
//! Every object has an id and a [`Meta`]. What a person asks for is the *spec*; what the swarm observed or decided
//! stands beside it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::ids::prefix_range;
use super::selector::Selector;
use super::{ClusterId, NodeId, ObjectId, Revision, Role, Timestamp};

mod cluster;
mod container;
mod network;
mod node;
pub mod readable;
mod resource;
mod rotation;
mod service;
mod task;
mod token;
mod volume;

pub use cluster::*;
pub use container::*;
pub use network::*;
pub use node::*;
pub use resource::*;
pub use rotation::*;
pub use service::*;
pub use task::*;
pub use token::*;
pub use volume::*;

/// The tables of the store. The order is the order of objects in snapshots and never changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Machines.
    Node,
    /// What should run.
    Service,
    /// One instance of a service.
    Task,
    /// Networks.
    Network,
    /// The swarm's own settings and root CA; one object.
    Cluster,
    /// Sensitive data for services.
    Secret,
    /// Plain data for services.
    Config,
    /// Kinds of resource that users registered.
    Extension,
    /// Objects of a registered kind.
    Resource,
    /// Storage volumes.
    Volume,
    /// Join tokens with conditions.
    Token,
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 11] = [
        Self::Node,
        Self::Service,
        Self::Task,
        Self::Network,
        Self::Cluster,
        Self::Secret,
        Self::Config,
        Self::Extension,
        Self::Resource,
        Self::Volume,
        Self::Token,
    ];

    /// The name in messages and on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Service => "service",
            Self::Task => "task",
            Self::Network => "network",
            Self::Cluster => "cluster",
            Self::Secret => "secret",
            Self::Config => "config",
            Self::Extension => "extension",
            Self::Resource => "resource",
            Self::Volume => "volume",
            Self::Token => "token",
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether names must be unique within the kind, ignoring case. Nodes (hostnames) and tasks may share names, tokens have
    /// none.
    pub const fn has_unique_names(self) -> bool {
        !matches!(self, Self::Node | Self::Task | Self::Token)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What every object carries. Written by apply only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// The revision that last wrote the object.
    pub version: Revision,
    /// When it was created, by the leader's clock.
    pub created_at: Timestamp,
    /// When it was last written, by the leader's clock.
    pub updated_at: Timestamp,
}

/// Name and free-form attributes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Annotations {
    /// Unique within the kind, ignoring case, where the kind has unique names.
    pub name: String,
    /// For people and scripts.
    pub labels: BTreeMap<String, String>,
    /// Custom indices: name to value, searchable by value and by prefix.
    pub indices: BTreeMap<String, String>,
}

/// Bytes that must not appear in logs, errors or `Debug`. `control` redacts them before anything leaves a manager.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sensitive(#[serde(with = "readable")] pub Vec<u8>);

impl fmt::Debug for Sensitive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{} bytes>", self.0.len())
    }
}

impl Drop for Sensitive {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.0);
    }
}

/// Sensitive data for services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Secret {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: SecretSpec,
    /// Made by the swarm itself; hidden from lists.
    pub internal: bool,
}

/// What a secret holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// The secret; at most [`super::limits::MAX_SECRET_BYTES`]. Never shown by control.
    pub data: Sensitive,
    /// Template engine applied when a task reads it.
    pub templating: Option<Driver>,
    /// Plugin that produces the value instead of `data`.
    pub driver: Option<Driver>,
}

/// Plain data for services.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: ConfigSpec,
}

/// What a config holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigSpec {
    /// Name and labels.
    pub annotations: Annotations,
    /// The data; at most [`super::limits::MAX_CONFIG_BYTES`].
    #[serde(with = "readable")]
    pub data: Vec<u8>,
    /// Template engine applied when a task reads it. Boxed: nearly all have none, and pay for it nevertheless.
    pub templating: Option<Box<Driver>>,
}

/// A kind of resource that a user registered.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// Name and labels.
    pub annotations: Annotations,
    /// For people.
    pub description: String,
}

/// A named plugin and its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// The plugin.
    pub name: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// An object of any kind. All but resources, the small and many, are boxed: those do not pay for the size of the others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Object {
    /// A machine.
    Node(Box<Node>),
    /// What should run.
    Service(Box<Service>),
    /// One instance of a service.
    Task(Box<Task>),
    /// A network.
    Network(Box<Network>),
    /// The swarm's settings.
    Cluster(Box<Cluster>),
    /// Sensitive data.
    Secret(Box<Secret>),
    /// Plain data.
    Config(Box<Config>),
    /// A registered kind.
    Extension(Box<Extension>),
    /// An object of a registered kind.
    Resource(PackedResource),
    /// A volume.
    Volume(Box<Volume>),
    /// A join token with conditions.
    Token(Box<Token>),
}

macro_rules! from {
    ($($kind:ident),*) => {
        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Box::new(object))
            }
        })*
    };
}

from!(Node, Service, Task, Network, Cluster, Secret, Config, Extension, Volume, Token);

impl From<Resource> for Object {
    fn from(resource: Resource) -> Self {
        Self::Resource(resource.into())
    }
}

macro_rules! each {
    ($object:expr, $inner:ident => $value:expr) => {
        match $object {
            Object::Node($inner) => $value,
            Object::Service($inner) => $value,
            Object::Task($inner) => $value,
            Object::Network($inner) => $value,
            Object::Cluster($inner) => $value,
            Object::Secret($inner) => $value,
            Object::Config($inner) => $value,
            Object::Extension($inner) => $value,
            Object::Resource($inner) => $value,
            Object::Volume($inner) => $value,
            Object::Token($inner) => $value,
        }
    };
}

impl Object {
    /// The table it belongs to.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Node(_) => Kind::Node,
            Self::Service(_) => Kind::Service,
            Self::Task(_) => Kind::Task,
            Self::Network(_) => Kind::Network,
            Self::Cluster(_) => Kind::Cluster,
            Self::Secret(_) => Kind::Secret,
            Self::Config(_) => Kind::Config,
            Self::Extension(_) => Kind::Extension,
            Self::Resource(_) => Kind::Resource,
            Self::Volume(_) => Kind::Volume,
            Self::Token(_) => Kind::Token,
        }
    }

    /// Its id.
    pub fn id(&self) -> ObjectId {
        match self {
            Self::Node(node) => node.id.into(),
            Self::Service(service) => service.id,
            Self::Task(task) => task.id,
            Self::Network(network) => network.id,
            Self::Cluster(cluster) => cluster.id.into(),
            Self::Secret(secret) => secret.id,
            Self::Config(config) => config.id,
            Self::Extension(extension) => extension.id,
            Self::Resource(resource) => resource.id,
            Self::Volume(volume) => volume.id,
            Self::Token(token) => token.id,
        }
    }

    /// Its version and times.
    pub fn meta(&self) -> &Meta {
        each!(self, object => &object.meta)
    }

    /// Its version and times, for apply.
    pub fn meta_mut(&mut self) -> &mut Meta {
        each!(self, object => &mut object.meta)
    }

    /// Name, labels and custom indices; `None` for a resource, which keeps them in another form. A node's name there is
    /// unused: see [`Object::name`].
    const fn annotations(&self) -> Option<&Annotations> {
        Some(match self {
            Self::Node(node) => &node.spec.annotations,
            Self::Service(service) => &service.spec.annotations,
            Self::Task(task) => &task.annotations,
            Self::Network(network) => &network.spec.annotations,
            Self::Cluster(cluster) => &cluster.spec.annotations,
            Self::Secret(secret) => &secret.spec.annotations,
            Self::Config(config) => &config.spec.annotations,
            Self::Extension(extension) => &extension.annotations,
            Self::Resource(_) => return None,
            Self::Volume(volume) => &volume.spec.annotations,
            Self::Token(token) => &token.annotations,
        })
    }

    /// The name: a node's is its host name. `None` where there is none, as for most tasks.
    pub fn name(&self) -> Option<&str> {
        let name = match self {
            Self::Node(node) => &node.description.hostname,
            Self::Resource(resource) => resource.name(),
            _ => &self.annotations()?.name,
        };
        Some(name).filter(|name| !name.is_empty())
    }

    /// The same to compare and to hash, which is cheaper: a resource keeps bytes, and need not look whether they are text.
    pub fn name_bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Resource(resource) => Some(resource.name_bytes()).filter(|name| !name.is_empty()),
            _ => self.name().map(str::as_bytes),
        }
    }

    /// Whether this is its name, ignoring case.
    pub fn has_name(&self, name: &str) -> bool {
        self.name_bytes().is_some_and(|own| own.eq_ignore_ascii_case(name.as_bytes()))
    }

    /// Whether its name begins so, ignoring case.
    pub fn has_name_prefix(&self, prefix: &str) -> bool {
        self.name_bytes().is_some_and(|own| starts_with_ignoring_case(own, prefix.as_bytes()))
    }

    /// Whether its id, as it is printed, begins so.
    pub fn has_id_prefix(&self, prefix: &str) -> bool {
        let ObjectId(id) = self.id();
        prefix_range(prefix).is_some_and(|(first, last)| (first..=last).contains(&id))
    }

    /// Whether it is a resource of this kind, ignoring case.
    pub fn is_resource_of(&self, kind: &str) -> bool {
        matches!(self, Self::Resource(own) if own.kind_bytes().eq_ignore_ascii_case(kind.as_bytes()))
    }

    /// The labels that people gave it.
    pub fn labels(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Resource(resource) => resource.labels(),
            _ => self.annotations().map_or(&NO_ATTRIBUTES, |annotations| &annotations.labels),
        }
    }

    /// The custom indices: name to value.
    pub fn indices(&self) -> &BTreeMap<String, String> {
        match self {
            Self::Resource(resource) => resource.indices(),
            _ => self.annotations().map_or(&NO_ATTRIBUTES, |annotations| &annotations.indices),
        }
    }

    /// What its tasks run, for services and tasks.
    pub fn task_spec(&self) -> Option<&TaskSpec> {
        match self {
            Self::Service(service) => Some(&service.spec.task),
            Self::Task(task) => Some(&task.spec),
            _ => None,
        }
    }

    /// The networks that a service or task asks for. May repeat.
    pub fn referenced_networks(&self) -> impl Iterator<Item = ObjectId> {
        let of_service: &[NetworkAttachmentConfig] = match self {
            Self::Service(service) => &service.spec.networks,
            _ => &[],
        };
        let of_task = self.task_spec().into_iter().flat_map(|spec| &spec.networks);
        let assigned: &[NetworkAttachment] = match self {
            Self::Task(task) => &task.networks,
            _ => &[],
        };
        let asked = of_service.iter().chain(of_task).map(|attachment| attachment.target);
        asked.chain(assigned.iter().map(|attachment| attachment.network_id))
    }

    /// The secrets that a service, task or volume refers to. May repeat.
    pub fn referenced_secrets(&self) -> impl Iterator<Item = ObjectId> {
        let of_volume: &[VolumeSecret] = match self {
            Self::Volume(volume) => &volume.spec.secrets,
            _ => &[],
        };
        let of_volume = of_volume.iter().map(|secret| secret.secret);
        let of_container = self.container().into_iter().flat_map(|spec| &spec.secrets).map(|secret| secret.secret_id);
        of_container.chain(of_volume).chain(self.resource_references(ResourceReferenceKind::Secret))
    }

    /// The configs that a service or task refers to. May repeat.
    pub fn referenced_configs(&self) -> impl Iterator<Item = ObjectId> {
        let of_container = self.container().into_iter().flat_map(|spec| &spec.configs).map(|config| config.config_id);
        let credentials = self.container().and_then(|spec| spec.privileges.as_ref()?.credential_spec.as_ref());
        let credentials = credentials.and_then(|spec| match spec {
            CredentialSpec::Config(id) => Some(*id),
            CredentialSpec::File(_) | CredentialSpec::Registry(_) => None,
        });
        of_container.chain(credentials).chain(self.resource_references(ResourceReferenceKind::Config))
    }

    fn container(&self) -> Option<&ContainerSpec> {
        match &self.task_spec()?.runtime {
            Runtime::Container(container) => Some(container),
            Runtime::Attachment { .. } | Runtime::Generic { .. } => None,
        }
    }

    fn resource_references(&self, kind: ResourceReferenceKind) -> impl Iterator<Item = ObjectId> {
        let references = self.task_spec().into_iter().flat_map(|spec| &spec.resource_references);
        references.filter(move |reference| reference.kind == kind).map(|reference| reference.id)
    }
}

/// Whether `object` matches `selector`, decided from the object alone.
pub(super) fn matches(object: &Object, selector: &Selector) -> bool {
    match selector {
        Selector::All => true,
        Selector::IdPrefix(prefix) => object.has_id_prefix(prefix),
        Selector::Name(name) => object.has_name(name),
        Selector::NamePrefix(prefix) => object.has_name_prefix(prefix),
        Selector::Role(role) => matches!(object, Object::Node(node) if node.spec.desired_role == *role),
        Selector::Membership(state) => matches!(object, Object::Node(node) if node.spec.membership == *state),
        Selector::Kind(kind) => object.is_resource_of(kind),
        Selector::Service(_)
        | Selector::Node(_)
        | Selector::Slot(..)
        | Selector::DesiredState(_)
        | Selector::TaskState(_) => matches!(object, Object::Task(task) if task_matches(task, selector)),
        Selector::ReferencedNetwork(id) => object.referenced_networks().any(|own| own == *id),
        Selector::ReferencedSecret(id) => object.referenced_secrets().any(|own| own == *id),
        Selector::ReferencedConfig(id) => object.referenced_configs().any(|own| own == *id),
        Selector::Custom { index, value } => object.indices().get(index) == Some(value),
        Selector::CustomPrefix { index, prefix } => {
            object.indices().get(index).is_some_and(|value| value.starts_with(prefix.as_str()))
        }
    }
}

fn task_matches(task: &Task, selector: &Selector) -> bool {
    match selector {
        Selector::Service(id) => task.service_id == Some(*id),
        Selector::Node(id) => task.node_id == Some((*id).into()),
        Selector::Slot(id, slot) => task.service_id == Some(*id) && task.slot == *slot,
        Selector::DesiredState(state) => task.desired_state == *state,
        Selector::TaskState(state) => task.status.state == *state,
        _ => false,
    }
}

fn starts_with_ignoring_case(text: &[u8], prefix: &[u8]) -> bool {
    text.get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix))
}
