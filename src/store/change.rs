//! Carrying out a change: every operation against the state that the ones before it left, all or nothing.

use std::sync::Arc;

use super::state::{State, Stored};
use super::table::Taken;
use super::watch::{Event, EventBatch};
use crate::sys::faults::{Fault, planted};
use crate::sys::time;
use crate::types::api::Action;
use crate::types::change::InvalidChange;
use crate::types::limits::MAX_LABEL_BYTES;
use crate::types::object::Meta;
use crate::types::{Change, Expect, Kind, Object, ObjectId, Operation, Refusal, Revision, Timestamp};

/// Carries out `change` under the next revision, or leaves `state` as it was.
pub(super) fn execute(state: &mut State, change: Change) -> Result<EventBatch, Refusal> {
    if change.operations.is_empty() {
        return Err(Refusal::Invalid(InvalidChange::Empty));
    }
    let revision = state.revision.next();
    let made = if planted(Fault::ClockInApply) { Timestamp(time::monotonic().as_nanos()) } else { change.time };
    let mut events = Vec::with_capacity(change.operations.len());
    // Carried out when nothing can be refused any more: there is no event to take them back by.
    let mut revoked = Vec::new();
    for operation in change.operations {
        if let Operation::Revoke { node, until } = operation {
            revoked.push((node, until));
            continue;
        }
        match step(state, operation, revision, made) {
            Ok(event) => events.extend(event),
            Err(refusal) => {
                if !planted(Fault::RefusedChangeHalfDone) {
                    undo(state, events);
                }
                return Err(refusal);
            }
        }
    }
    for (node, until) in revoked {
        state.revoke(node, until, made);
    }
    state.revision = revision;
    Ok(EventBatch::new(revision, events))
}

/// One operation. Checks everything before it changes anything.
fn step(
    state: &mut State,
    operation: Operation,
    revision: Revision,
    time: Timestamp,
) -> Result<Option<Event>, Refusal> {
    match operation {
        Operation::Create(object) => create(state, object, revision, time).map(Some),
        Operation::Update(object) => update(state, object, revision, time).map(Some),
        Operation::Remove { kind, id, version } => {
            let found = state.get(kind, id).ok_or(Refusal::NotFound { kind, id })?;
            let found = found.object.meta().version;
            if version.is_some_and(|wanted| wanted != found) {
                return Err(Refusal::OutOfSequence { kind, id, found: Some(found) });
            }
            let old = state.replace(kind, id, None).expect("it was found above");
            Ok(Some(Event { action: Action::Remove, object: old, old: None }))
        }
        Operation::Require { kind, id, expect } => require(state, kind, id, expect).map(|()| None),
        Operation::RequireNone { kind, any_of } => match state.find_for_entry(kind, &any_of) {
            Some(stored) => Err(Refusal::Referenced { kind, by: stored.object.id() }),
            None => Ok(None),
        },
        Operation::UseToken(id) => use_token(state, id, revision, time),
        Operation::Revoke { .. } => Ok(None),
    }
}

/// Counts one use of a token that admits at `time`. One without a limit is only looked at.
fn use_token(state: &mut State, id: ObjectId, revision: Revision, time: Timestamp) -> Result<Option<Event>, Refusal> {
    let kind = Kind::Token;
    let stored = state.get(kind, id).ok_or(Refusal::NotFound { kind, id })?;
    let Object::Token(token) = &stored.object else { return Err(Refusal::NotFound { kind, id }) };
    if token.is_spent(time).is_some() {
        return Err(Refusal::TokenSpent { id });
    }
    let Some(left) = token.uses_left else { return Ok(None) };
    let mut token = token.clone();
    token.uses_left = Some(left - 1);
    update(state, Object::Token(token), revision, time).map(Some)
}

fn create(state: &mut State, object: Object, revision: Revision, time: Timestamp) -> Result<Event, Refusal> {
    let (kind, id) = (object.kind(), object.id());
    check_shape(&object)?;
    let meta = Meta { version: revision, created_at: time, updated_at: time };
    let stored = with_meta(object, meta);
    match state.create(stored.clone()) {
        Err(Taken::Id) => return Err(Refusal::Exists { kind, id }),
        Err(Taken::Name(holder)) => return Err(Refusal::NameConflict { kind, holder }),
        Ok(()) => {}
    }
    Ok(Event { action: Action::Create, object: stored, old: None })
}

fn update(state: &mut State, object: Object, revision: Revision, time: Timestamp) -> Result<Event, Refusal> {
    let (kind, id) = (object.kind(), object.id());
    check_shape(&object)?;
    let old = state.get(kind, id).ok_or(Refusal::NotFound { kind, id })?;
    let found = *old.object.meta();
    if found.version != object.meta().version && !planted(Fault::VersionUnchecked) {
        return Err(Refusal::OutOfSequence { kind, id, found: Some(found.version) });
    }
    // One that keeps its name has it.
    if object.name_bytes() != old.object.name_bytes() {
        check_name(state, &object)?;
    }
    let meta = Meta { version: revision, created_at: found.created_at, updated_at: time };
    let stored = with_meta(object, meta);
    let old = state.replace(kind, id, Some(stored.clone()));
    Ok(Event { action: Action::Update, object: stored, old })
}

fn require(state: &State, kind: Kind, id: ObjectId, expect: Expect) -> Result<(), Refusal> {
    let found = state.get(kind, id).map(|stored| stored.object.meta().version);
    match (expect, found) {
        _ if planted(Fault::RequireUnchecked) => Ok(()),
        (Expect::Present, Some(_)) | (Expect::Absent, None) => Ok(()),
        (Expect::Version(wanted), Some(version)) if wanted == version => Ok(()),
        (Expect::Present, None) => Err(Refusal::NotFound { kind, id }),
        (Expect::Absent, Some(_)) => Err(Refusal::Exists { kind, id }),
        (Expect::Version(_), found) => Err(Refusal::OutOfSequence { kind, id, found }),
    }
}

fn check_shape(object: &Object) -> Result<(), Refusal> {
    if object.kind().has_unique_names() && object.name_bytes().is_none() {
        return Err(Refusal::Invalid(InvalidChange::NameMissing));
    }
    let maps = [object.labels(), object.indices()];
    let bytes: usize = maps.into_iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > MAX_LABEL_BYTES {
        return Err(Refusal::Invalid(InvalidChange::LabelsTooLarge));
    }
    Ok(())
}

fn check_name(state: &State, object: &Object) -> Result<(), Refusal> {
    let (kind, id) = (object.kind(), object.id());
    let Some(name) = object.name_bytes().filter(|_| kind.has_unique_names()) else { return Ok(()) };
    match state.table(kind).named(name).next().map(|holder| holder.object.id()) {
        Some(holder) if holder != id && !planted(Fault::NameUnchecked) => Err(Refusal::NameConflict { kind, holder }),
        _ => Ok(()),
    }
}

fn with_meta(mut object: Object, meta: Meta) -> Arc<Stored> {
    *object.meta_mut() = meta;
    Arc::new(Stored::new(object))
}

/// Takes back what the operations before the refused one did, last first.
fn undo(state: &mut State, events: Vec<Event>) {
    for event in events.into_iter().rev() {
        let (kind, id) = (event.object.object.kind(), event.object.object.id());
        let before = match event.action {
            Action::Create => None,
            Action::Update => event.old,
            Action::Remove => Some(event.object),
        };
        state.replace(kind, id, before);
    }
}
