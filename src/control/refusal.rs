//! Refusals in words: with the names that a person typed, and what to type next.

use crate::store::{MAX_CANDIDATES, ResolveError, State};
use crate::types::change::Refusal;
use crate::types::error::{Code, Status};
use crate::types::{Kind, ObjectId, Revision};

/// How many objects a message names before it says "and more".
const NAMED: usize = 10;

/// The object that `reference` means does not exist, or is not one.
pub(super) fn unresolved(state: &State, kind: Kind, reference: &str, error: &ResolveError) -> Status {
    match error {
        ResolveError::NotFound => not_found(kind, reference),
        ResolveError::Ambiguous(candidates) => {
            let named: Vec<String> =
                candidates.iter().take(NAMED).map(|id| format!("{id} ({})", name(state, kind, *id))).collect();
            let more = if candidates.len() > NAMED { " and more" } else { "" };
            let or_more = if candidates.len() < MAX_CANDIDATES { "" } else { " or more" };
            let message = format!(
                "{reference} could be any of {}{or_more} {kind}s: {}{more}",
                candidates.len(),
                named.join(", ")
            );
            Status::new(Code::InvalidArgument, message).with_hint("type more of the id")
        }
    }
}

pub(super) fn not_found(kind: Kind, reference: &str) -> Status {
    let message = match kind {
        Kind::Secret | Kind::Config => format!("could not find {kind} {reference}"),
        _ => format!("{kind} {reference} not found"),
    };
    Status::new(Code::NotFound, message).with_hint(listed(kind))
}

pub(super) fn already_exists(kind: Kind, name: &str, holder: ObjectId) -> Status {
    let hint = match kind {
        Kind::Secret | Kind::Config => {
            format!("choose another name: the data of a {kind} never changes, only its labels (`skep {kind} update`)")
        }
        Kind::Resource => format!("`skep resource update {name} FILE` replaces its payload; or choose another name"),
        _ => "choose another name".to_owned(),
    };
    Status::new(Code::AlreadyExists, format!("{kind} {name} already exists, with id {holder}")).with_hint(hint)
}

pub(super) fn not_registered(kind: &str) -> Status {
    Status::new(Code::InvalidArgument, format!("Kind {kind} is not registered"))
        .with_hint(format!("register it first: `skep extension create {kind}`"))
}

pub(super) fn out_of_sequence(kind: Kind, what: &str, expected: Option<Revision>, found: Option<Revision>) -> Status {
    let message = match (expected, found) {
        (Some(expected), Some(found)) => {
            format!("update out of sequence: {kind} {what} is at version {found}, not {expected}")
        }
        (Some(expected), None) => {
            format!("update out of sequence: {kind} {what} is gone, and was expected at version {expected}")
        }
        (None, _) => format!("update out of sequence: {kind} {what} changed meanwhile"),
    };
    let hint = match kind {
        // There is but one.
        Kind::Cluster => "look at it again: `skep cluster inspect`, then use the version it shows".to_owned(),
        _ => format!("look at it again: `skep {kind} inspect {what}`, then use the version it shows"),
    };
    Status::new(Code::Aborted, message).with_hint(hint)
}

/// `users` are names of objects of kind `by` that refer to the object.
pub(super) fn in_use(kind: Kind, name: &str, by: Kind, users: &[String]) -> Status {
    let more = if users.len() > NAMED { ", and more" } else { "" };
    let listed = users[..users.len().min(NAMED)].join(", ");
    let message = format!("{kind} '{name}' is in use by the following {by}(s): {listed}{more}");
    let hint = match by {
        Kind::Resource => format!("remove them first: `skep resource ls --filter kind={name}` lists them all"),
        _ => format!("change or remove the {by} first"),
    };
    Status::new(Code::InvalidArgument, message).with_hint(hint)
}

/// The outcome is out of the ring's reach: asking again cannot change that.
pub(super) fn forgotten() -> Status {
    let message =
        "the outcome of this change is no longer known: too many changes came after it; it was not applied now";
    let mut status = Status::new(Code::Unknown, message)
        .with_hint("look whether it took effect, and type the command again without `--change-id` if not");
    status.hopeless = true;
    status
}

/// A refusal that no request of this service should meet, in plain words.
pub(super) fn other(refusal: &Refusal) -> Status {
    match refusal {
        Refusal::Invalid(cause) => Status::new(Code::InvalidArgument, cause.to_string()),
        Refusal::TokenSpent { .. } => Status::new(Code::FailedPrecondition, "the join token admits nobody any more")
            .with_hint("make another on any manager with `skep token create --role ROLE`"),
        Refusal::TermChanged => Status::new(Code::Aborted, "leadership changed while the change was made"),
        Refusal::Exists { kind, id } | Refusal::NameConflict { kind, holder: id } => {
            Status::new(Code::AlreadyExists, format!("{kind} {id} already exists"))
        }
        Refusal::NotFound { kind, id } => not_found(*kind, &id.to_string()),
        Refusal::OutOfSequence { kind, id, found } => out_of_sequence(*kind, &id.to_string(), None, *found),
        Refusal::Referenced { kind, by } => {
            Status::new(Code::InvalidArgument, format!("it is in use by the following {kind}(s): {by}"))
        }
    }
}

/// The object's name, or its id when it has none or is gone.
pub(super) fn name(state: &State, kind: Kind, id: ObjectId) -> String {
    state.get(kind, id).and_then(|stored| stored.object.name()).map_or_else(|| id.to_string(), str::to_owned)
}

fn listed(kind: Kind) -> String {
    match kind {
        Kind::Node | Kind::Secret | Kind::Config | Kind::Extension | Kind::Resource | Kind::Token => {
            format!("`skep {kind} ls` lists them")
        }
        _ => String::new(),
    }
}
