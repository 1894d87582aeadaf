//! The ten kinds of object that the store replicates, and their specs (object model of Docker Swarm mode).
//!
//! Every object has an id and a [`Meta`]. What a person asks for is the *spec*; what the swarm observed or decided
//! stands beside it.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::selector::Selector;
use super::{ClusterId, NodeId, ObjectId, Revision, Role, Timestamp};

mod cluster;
mod network;
mod node;
mod service;
mod task;
mod volume;

pub use cluster::*;
pub use network::*;
pub use node::*;
pub use service::*;
pub use task::*;
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
}

impl Kind {
    /// Every kind, in order.
    pub const ALL: [Self; 10] = [
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
        }
    }

    /// The kind of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// Whether names must be unique within the kind, ignoring case. Nodes (hostnames) and tasks may share names.
    pub const fn has_unique_names(self) -> bool {
        !matches!(self, Self::Node | Self::Task)
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
pub struct Sensitive(#[serde(with = "serde_bytes")] pub Vec<u8>);

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
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// Template engine applied when a task reads it.
    pub templating: Option<Driver>,
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

/// An object of a registered kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resource {
    /// Identity.
    pub id: ObjectId,
    /// Version and times.
    pub meta: Meta,
    /// Name, labels and indices.
    pub annotations: Annotations,
    /// The extension's name.
    pub kind: String,
    /// The user's bytes; at most [`super::limits::MAX_CONFIG_BYTES`].
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

/// A named plugin and its options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Driver {
    /// The plugin.
    pub name: String,
    /// Its options.
    pub options: BTreeMap<String, String>,
}

/// An object of any kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::large_enum_variant, reason = "objects live behind Arc in the store; a box more would be a second hop")]
pub enum Object {
    /// A machine.
    Node(Node),
    /// What should run.
    Service(Service),
    /// One instance of a service.
    Task(Task),
    /// A network.
    Network(Network),
    /// The swarm's settings.
    Cluster(Cluster),
    /// Sensitive data.
    Secret(Secret),
    /// Plain data.
    Config(Config),
    /// A registered kind.
    Extension(Extension),
    /// An object of a registered kind.
    Resource(Resource),
    /// A volume.
    Volume(Volume),
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
        }
    }

    /// Its id.
    pub fn id(&self) -> ObjectId {
        each!(self, object => object.id.into())
    }

    /// Its version and times.
    pub fn meta(&self) -> &Meta {
        each!(self, object => &object.meta)
    }

    /// Its version and times, for apply.
    pub fn meta_mut(&mut self) -> &mut Meta {
        each!(self, object => &mut object.meta)
    }

    /// Name, labels and custom indices. A node's name there is unused: see [`Object::name`].
    pub const fn annotations(&self) -> Option<&Annotations> {
        match self {
            Self::Node(node) => Some(&node.spec.annotations),
            Self::Cluster(cluster) => Some(&cluster.spec.annotations),
            Self::Secret(secret) => Some(&secret.spec.annotations),
            Self::Config(config) => Some(&config.spec.annotations),
            Self::Extension(extension) => Some(&extension.annotations),
            Self::Resource(resource) => Some(&resource.annotations),
            Self::Service(_) | Self::Task(_) | Self::Network(_) | Self::Volume(_) => None,
        }
    }

    /// The name, where there is one: a node's is its host name.
    pub fn name(&self) -> Option<&str> {
        let name = match self {
            Self::Node(node) => &node.description.hostname,
            _ => &self.annotations()?.name,
        };
        (!name.is_empty()).then_some(name.as_str())
    }
}

/// Whether `object` matches `selector`, decided from the object alone.
pub(super) fn matches(object: &Object, selector: &Selector) -> bool {
    match selector {
        Selector::All => true,
        Selector::IdPrefix(prefix) => object.id().to_string().starts_with(prefix.as_str()),
        Selector::Name(name) => object.name().is_some_and(|own| own.eq_ignore_ascii_case(name)),
        Selector::NamePrefix(prefix) => object.name().is_some_and(|own| starts_with_ignoring_case(own, prefix)),
        Selector::Role(role) => matches!(object, Object::Node(node) if node.spec.desired_role == *role),
        Selector::Membership(state) => matches!(object, Object::Node(node) if node.spec.membership == *state),
        Selector::Kind(kind) => matches!(object, Object::Resource(own) if own.kind.eq_ignore_ascii_case(kind)),
        Selector::Custom { index, value } => custom_index(object, index) == Some(value.as_str()),
        Selector::CustomPrefix { index, prefix } => {
            custom_index(object, index).is_some_and(|value| value.starts_with(prefix.as_str()))
        }
        _ => false,
    }
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.as_bytes().get(..prefix.len()).is_some_and(|head| head.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn custom_index<'a>(object: &'a Object, index: &str) -> Option<&'a str> {
    object.annotations()?.indices.get(index).map(String::as_str)
}
