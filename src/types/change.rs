//! A write and what became of it.

use serde::{Deserialize, Serialize};

use super::object::{Kind, Object};
use super::selector::Selector;
use super::{ChangeId, NodeId, ObjectId, Revision, Term, Timestamp};

/// One atomic write. The leader proposes it; `apply` checks it on every replica in log order, all or nothing.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// Fixed by the caller before the first attempt; a repeated id gets the first answer.
    pub id: ChangeId,
    /// A revision the caller knew when it made the id. When the ring of remembered ids no longer reaches back to it, the
    /// change is not applied and its outcome is unknown.
    pub after: Revision,
    /// The leader's wall clock; becomes `created_at` and `updated_at`.
    pub time: Timestamp,
    /// Set by a leader's service: refused when the entry's term differs, so that a deposed leader's service writes nothing.
    pub term: Option<Term>,
    /// Checked in order, each against the state that the ones before it left.
    pub operations: Vec<Operation>,
}

impl Change {
    /// The one object that it creates, replaces or removes; `None` if there is none, or several.
    pub fn written(&self) -> Option<ObjectId> {
        let mut written = self.operations.iter().filter_map(|operation| match operation {
            Operation::Create(object) | Operation::Update(object) => Some(object.id()),
            Operation::Remove { id, .. } => Some(*id),
            _ => None,
        });
        written.next().filter(|_| written.next().is_none())
    }
}

/// One step of a [`Change`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Operation {
    /// Adds an object; its id and its name must be free. `meta` is filled in by apply.
    Create(Object),
    /// Replaces an object whose version must equal `object.meta().version`.
    Update(Object),
    /// Removes an object, of this version if one is given.
    Remove {
        /// Which table.
        kind: Kind,
        /// Which object.
        id: ObjectId,
        /// The version it must have.
        version: Option<Revision>,
    },
    /// Demands something of an object without changing it.
    Require {
        /// Which table.
        kind: Kind,
        /// Which object.
        id: ObjectId,
        /// What must hold.
        expect: Expect,
    },
    /// Demands that no object of the kind matches any of the selectors, such as "nothing refers to this".
    RequireNone {
        /// Which table.
        kind: Kind,
        /// What must match nothing; any of these.
        any_of: Vec<Selector>,
    },
    /// Takes one use of a join token, which must not have ended at the change's time. Without a version: many nodes may join
    /// with one token at once, and apply counts them.
    UseToken(ObjectId),
    /// Notes that a manager is removed and its certificates mean nothing any more. Never refused; has no event.
    Revoke {
        /// Whose.
        node: NodeId,
        /// The end of the last certificate that named it a manager.
        until: Timestamp,
    },
}

/// What [`Operation::Require`] demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Expect {
    /// The object is there, whatever its version.
    Present,
    /// The object is there with this version.
    Version(Revision),
    /// There is no such object.
    Absent,
}

/// What became of a change. Equal on every replica.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Applied; this is its revision and the version of everything it wrote.
    Committed(Revision),
    /// Not applied, and never will be.
    Refused(Refusal),
    /// The ring of remembered ids does not reach back to `after`: it may have been applied once. Not applied now.
    Forgotten,
}

/// Why a change was refused. Fields name the first operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refusal {
    /// The object's version is another than the caller's.
    OutOfSequence {
        /// Which table.
        kind: Kind,
        /// Which object.
        id: ObjectId,
        /// The version it has; `None` when it must be absent or of a version, and is not there.
        found: Option<Revision>,
    },
    /// An object of this id is there already.
    Exists {
        /// Which table.
        kind: Kind,
        /// Which object.
        id: ObjectId,
    },
    /// Another object has this name (names differ by more than case).
    NameConflict {
        /// Which table.
        kind: Kind,
        /// The object that has the name.
        holder: ObjectId,
    },
    /// There is no such object.
    NotFound {
        /// Which table.
        kind: Kind,
        /// Which object.
        id: ObjectId,
    },
    /// Something still matches a [`Operation::RequireNone`].
    Referenced {
        /// Which table.
        kind: Kind,
        /// The first object that matches.
        by: ObjectId,
    },
    /// The change was made in another term by a leader's service.
    TermChanged,
    /// The change is malformed: too large, empty, or an index over its limit. The text is fixed per cause.
    Invalid(InvalidChange),
    /// The join token ended, or admitted as many nodes as it was made for.
    TokenSpent {
        /// Which token.
        id: ObjectId,
    },
}

/// What is malformed in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum InvalidChange {
    /// No operations.
    #[error("a change needs at least one operation")]
    Empty,
    /// Labels and indices over 16 KiB.
    #[error("labels and indices of one object are limited to 16 KiB together")]
    LabelsTooLarge,
    /// A name is required and missing.
    #[error("an object of this kind needs a name")]
    NameMissing,
}
