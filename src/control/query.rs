//! Reads.

use std::sync::Arc;

use crate::net::requests::Step;
use crate::store::{State, Store, Stored};
use crate::types::api::{Answer, ChangeReport, Filter, PAGE_BYTES, PAGE_OBJECTS, Query, QueryKind};
use crate::types::error::{Code, Status};
use crate::types::{ChangeId, Kind, ObjectId, Outcome, Refusal, Revision, Role};

use super::Feed;
use super::write::attempt_id;
use super::{Context, encode, filter, redact, refusal, report, rotate};

/// Objects that one page of a list looks at. A label that few have is looked for in all of them, on the thread that serves
/// every socket: 1.3 to 3 ms at a time.
const LOOKS: usize = 10_000;

/// So many looks take about as long with this filter: comparing with sixteen values takes as long as a look without any.
pub(super) fn looks(filter: &Filter) -> usize {
    LOOKS * 16 / (16 + filter::values(filter))
}

/// Decides on a read: answers from this manager alone at once, anything else only from a store that is as new as the
/// request, unless the caller wants it stale.
pub(super) fn decide(store: &Store, asked: &Query, confirmed: bool, context: &Context) -> Step<Feed> {
    let local = matches!(asked.what, QueryKind::Status | QueryKind::Members | QueryKind::Raft);
    if !local && context.joining() {
        let status = Status::new(Code::Unavailable, "this node has not joined the swarm yet")
            .with_hint("`skep status` shows how far it is");
        return Step::Refuse(status);
    }
    if !local && !asked.stale && !confirmed {
        return Step::Barrier;
    }
    match answer(store, &asked.what, context) {
        Ok(answer) => Step::Answer(encode(&answer)),
        Err(status) => Step::Refuse(status),
    }
}

/// One thing is found under the lock: that takes less than cloning the state, and a clone makes the writer copy its way to
/// what it changes next. A page of a list is made from a clone, so that the writer does not wait for it.
fn answer(store: &Store, what: &QueryKind, context: &Context) -> Result<Answer, Status> {
    match what {
        QueryKind::Inspect(kind, reference) => {
            store.view(|state| find(state, *kind, reference)).map(|stored| show(&stored))
        }
        QueryKind::Token(_) | QueryKind::Change(..) | QueryKind::UnlockKey => {
            store.view(|state| query(state, what, context))
        }
        QueryKind::Status | QueryKind::Members | QueryKind::Raft | QueryKind::List(..) | QueryKind::RootCa => {
            query(&store.snapshot(), what, context)
        }
    }
}

/// Answers from `state` and `context` as they are.
pub fn query(state: &State, what: &QueryKind, context: &Context) -> Result<Answer, Status> {
    match what {
        QueryKind::Status => Ok(Answer::Status(Box::new(report::status(state, context)))),
        QueryKind::Members => Ok(Answer::Members(report::members(state, context))),
        QueryKind::Raft => Ok(Answer::Raft(Box::new(context.raft.clone()))),
        QueryKind::List(kind, filter, after) => list(state, *kind, filter, *after),
        QueryKind::Inspect(kind, reference) => find(state, *kind, reference).map(|stored| show(&stored)),
        QueryKind::Token(role) => token(state, *role),
        QueryKind::RootCa => Ok(Answer::RootCa(Box::new(rotate::report(state, context)?))),
        QueryKind::Change(id, after) => Ok(Answer::Change(change(state, *id, *after))),
        QueryKind::UnlockKey => unlock_key(state),
    }
}

fn list(state: &State, kind: Kind, wanted: &Filter, after: Option<ObjectId>) -> Result<Answer, Status> {
    page(state, kind, wanted, after, looks(wanted))
}

/// A page for which at most `looks` objects are looked at.
pub(super) fn page(
    state: &State,
    kind: Kind,
    wanted: &Filter,
    after: Option<ObjectId>,
    looks: usize,
) -> Result<Answer, Status> {
    filter::check(kind, wanted)?;
    let mut objects = Vec::new();
    let Some(from) = after.map_or(Some(0), |after| after.0.checked_add(1)).map(ObjectId) else {
        return Ok(Answer::Objects { objects, more: false });
    };
    let search = state.search(kind, &filter::selectors(wanted), from);
    let mut bytes = 0;
    let mut last = None;
    for (looked, stored) in state.candidates(kind, &search, from).enumerate() {
        if looked >= looks
            && let Some(after) = last
        {
            return Ok(Answer::Searched { objects, after });
        }
        last = Some(stored.object.id());
        if redact::is_internal(&stored.object) || !filter::matches(wanted, &stored.object) {
            continue;
        }
        let size = visible_bytes(stored);
        if !objects.is_empty() && (objects.len() >= PAGE_OBJECTS || bytes + size > PAGE_BYTES) {
            return Ok(Answer::Objects { objects, more: true });
        }
        bytes += size;
        objects.push(redact::redact(&stored.object));
    }
    Ok(Answer::Objects { objects, more: false })
}

pub(super) fn visible_bytes(stored: &Stored) -> usize {
    (stored.bytes as usize).saturating_sub(redact::hidden_bytes(&stored.object))
}

fn find(state: &State, kind: Kind, reference: &str) -> Result<Arc<Stored>, Status> {
    state.resolve(kind, reference).map_err(|error| refusal::unresolved(state, kind, reference, &error))
}

fn show(stored: &Stored) -> Answer {
    Answer::Object(Box::new(redact::redact(&stored.object)))
}

fn token(state: &State, role: Role) -> Result<Answer, Status> {
    let cluster = state.cluster().ok_or_else(|| {
        Status::new(Code::FailedPrecondition, "the swarm has no join tokens yet")
            .with_hint("`skep status` shows how far this manager is")
    })?;
    let tokens = &cluster.root_ca.join_tokens;
    let token = match role {
        Role::Worker => &tokens.worker,
        Role::Manager => &tokens.manager,
    };
    Ok(Answer::Token(crate::types::object::Sensitive(token.clone().into_bytes())))
}

/// What managers seal their keys under, with the version of the settings that say so.
pub(super) fn unlock_key(state: &State) -> Result<Answer, Status> {
    let cluster = state.cluster().ok_or_else(|| {
        Status::new(Code::Unavailable, "the swarm's settings are not there yet")
            .with_hint("`skep status` shows how far this manager is")
    })?;
    Ok(Answer::UnlockKey { key: cluster.unlock_key().cloned(), version: cluster.meta.version })
}

/// What became of a write: the last of its attempts that was judged tells.
fn change(state: &State, id: ChangeId, after: Revision) -> ChangeReport {
    let attempts = (0..=crate::net::requests::MAX_REBUILDS).map_while(|n| state.remembered(attempt_id(id, n)));
    match attempts.last() {
        Some(Outcome::Committed(revision)) => ChangeReport::Committed(revision),
        Some(Outcome::Refused(Refusal::OutOfSequence { .. })) => {
            ChangeReport::Refused("update out of sequence".to_owned())
        }
        Some(Outcome::Refused(refused)) => ChangeReport::Refused(refusal::other(&refused).message),
        None if state.covers(after) => ChangeReport::NotApplied,
        Some(Outcome::Forgotten) | None => ChangeReport::Forgotten,
    }
}
