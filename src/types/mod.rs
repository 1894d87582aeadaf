//! The nouns: ids, revisions, the ten object kinds and their specs, changes and their outcomes, limits.
//!
//! Plain data with serde: bincode for disk and wire (through `codec`), JSON for people. Nothing here decides anything,
//! reads a clock or does I/O.
//!
//! Invariants: enum variants are append-only (bincode writes their position); no `usize`, no hash map, no recursive type
//! in anything that is stored or sent; ids are 128 bits, printed as 25 characters of base36; a secret's bytes have no
//! readable `Debug`.

pub mod api;
pub mod change;
pub mod error;
pub mod ids;
pub mod limits;
pub mod log;
pub mod member;
pub mod object;
pub mod selector;

pub use change::{Change, Expect, Operation, Outcome, Refusal};
pub use error::{Code, Status};
pub use ids::{ChangeId, ClusterId, Index, Lineage, NodeId, ObjectId, RaftId, Revision, Term, Timestamp};
pub use log::Position;
pub use member::{Caller, Member, MemberChange, MemberRole, Role, Standing};
pub use object::{Kind, Object};
pub use selector::Selector;
