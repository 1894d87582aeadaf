//! Writes: from a request and the state to a change, and from its outcome to an answer.

use crate::codec::digest128;
use crate::net::requests::Step;
use crate::store::{State, Store, Stored};
use crate::types::api::{Answer, Autolock, Write, WriteRequest};
use crate::types::error::{Code, Status};
use crate::types::object::{
    AcceptancePolicy, Annotations, Cluster, Config, ConfigSpec, EncryptionKey, Extension, Kind, MANAGER_SUBSYSTEM,
    Meta, PackedResource, Secret, SecretSpec, Sensitive, Token,
};
use crate::types::{
    Change, ChangeId, Expect, NodeId, Object, ObjectId, Operation, Outcome, Refusal, Revision, Role, Selector,
    Timestamp,
};

use super::Feed;
use super::{encode, nodes, refusal, rotate, tokens, validate};

/// What to do with a write.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "lives for one match; a box would cost every write an allocation")]
pub enum Decision {
    /// This attempt was judged before; its answer is the answer.
    Remembered(Outcome),
    /// Go on with this.
    Step(Step<Feed>),
}

/// Why there is no change to propose.
pub(super) enum No {
    /// Whatever the state says.
    Never(Status),
    /// As the state is now.
    Now(Status),
}

/// The id of a write's attempt: the caller's own for the first, derived from it for the others.
pub fn attempt_id(change: ChangeId, attempt: u32) -> ChangeId {
    match attempt {
        0 => change,
        _ => ChangeId(digest128(&[b"attempt", &change.0.to_le_bytes(), &attempt.to_le_bytes()])),
    }
}

/// The id of the object of `kind` that a change makes.
pub fn object_id(change: ChangeId, kind: Kind) -> ObjectId {
    ObjectId(digest128(&[b"object", &change.0.to_le_bytes(), kind.name().as_bytes()]))
}

/// Decides on the attempt with this number of the write. `now_ms`: the wall clock.
/// `reachable`: the nodes that this manager has a live connection to, itself included.
pub fn decide_write(
    state: &State,
    request: &WriteRequest,
    attempt: u32,
    now_ms: u64,
    reachable: &[NodeId],
) -> Decision {
    let id = attempt_id(request.change, attempt);
    if let Some(outcome) = state.remembered(id) {
        return Decision::Remembered(outcome);
    }
    if !state.covers(request.after) {
        // What the state says now may be this very change's doing, so none of it is an answer.
        return Decision::Remembered(Outcome::Forgotten);
    }
    Decision::Step(match operations(state, request, now_ms, reachable) {
        Ok(operations) => {
            Step::Propose(Change { id, after: request.after, time: Timestamp(now_ms), term: None, operations })
        }
        Err(No::Never(status)) => Step::Refuse(status),
        Err(No::Now(status)) => Step::RefuseIfConfirmed(status),
    })
}

/// The answer to a write whose attempt ended so.
pub(super) fn ended(store: &Store, request: &WriteRequest, outcome: &Outcome) -> Step<Feed> {
    match outcome {
        Outcome::Committed(revision) => {
            let id = written(store, request, *revision);
            Step::Answer(encode(&Answer::Written { id, revision: *revision }))
        }
        Outcome::Refused(Refusal::OutOfSequence { id, .. }) if !names_version_of(store, &request.write, *id) => {
            Step::Rebuild
        }
        Outcome::Refused(refused) => Step::Refuse(store.view(|state| in_words(state, &request.write, refused))),
        Outcome::Forgotten => Step::Refuse(refusal::forgotten()),
    }
}

fn operations(state: &State, request: &WriteRequest, now_ms: u64, reachable: &[NodeId]) -> Result<Vec<Operation>, No> {
    match &request.write {
        Write::CreateConfig { name, labels, data } => {
            validate::data_name(Kind::Config, name)?;
            validate::config_data(data)?;
            validate::attributes([labels])?;
            let annotations = Annotations { name: name.clone(), labels: labels.clone(), ..Annotations::default() };
            let spec = ConfigSpec { annotations, data: data.clone(), templating: None };
            create(state, request, Config { id: ObjectId(0), meta: Meta::default(), spec }.into(), None)
        }
        Write::CreateSecret { name, labels, data } => {
            validate::data_name(Kind::Secret, name)?;
            validate::secret_data(&data.0)?;
            validate::attributes([labels])?;
            let annotations = Annotations { name: name.clone(), labels: labels.clone(), ..Annotations::default() };
            let spec = SecretSpec { annotations, data: data.clone(), templating: None, driver: None };
            let secret = Secret { id: ObjectId(0), meta: Meta::default(), spec, internal: false };
            create(state, request, secret.into(), None)
        }
        Write::CreateExtension { name, description, labels } => {
            validate::free_name(Kind::Extension, name)?;
            validate::attributes([labels])?;
            let annotations = Annotations { name: name.clone(), labels: labels.clone(), ..Annotations::default() };
            let description = description.clone();
            let extension = Extension { id: ObjectId(0), meta: Meta::default(), annotations, description };
            create(state, request, extension.into(), None)
        }
        Write::CreateResource { name, kind, labels, indices, payload } => {
            validate::free_name(Kind::Resource, name)?;
            if kind.is_empty() {
                let status = Status::new(Code::InvalidArgument, "Resource must belong to an Extension");
                return Err(No::Never(status.with_hint("name one: `--kind EXTENSION`")));
            }
            validate::payload(payload)?;
            validate::attributes([labels, indices])?;
            let extension =
                state.by_name(Kind::Extension, kind).ok_or_else(|| No::Now(refusal::not_registered(kind)))?;
            let registered = extension.object.name().unwrap_or(kind);
            let require =
                Operation::Require { kind: Kind::Extension, id: extension.object.id(), expect: Expect::Present };
            let text = (name.as_str(), registered, payload.as_slice());
            let resource = PackedResource::new(ObjectId(0), Meta::default(), text, labels.clone(), indices.clone());
            create(state, request, Object::Resource(resource), Some(require))
        }
        Write::UpdateLabels { kind, object, set, remove, .. } => {
            if !matches!(kind, Kind::Config | Kind::Secret) {
                let message = format!("a {kind} cannot be changed by its labels alone");
                return Err(No::Never(Status::new(Code::InvalidArgument, message)));
            }
            update(state, request, *kind, object, |object| {
                let labels = match object {
                    Object::Config(config) => &mut config.spec.annotations.labels,
                    Object::Secret(secret) => &mut secret.spec.annotations.labels,
                    _ => return Ok(()),
                };
                labels.retain(|key, _| !remove.contains(key));
                labels.extend(set.iter().map(|(key, value)| (key.clone(), value.clone())));
                validate::attributes([&*labels])
            })
        }
        Write::UpdateResource { object, payload, labels, indices, .. } => {
            if let Some(payload) = payload {
                validate::payload(&payload.0)?;
            }
            update(state, request, Kind::Resource, object, |object| {
                let Object::Resource(resource) = object else { return Ok(()) };
                *resource =
                    resource.changed(payload.as_ref().map(|payload| &*payload.0), labels.as_ref(), indices.as_ref());
                validate::attributes([resource.labels(), resource.indices()])
            })
        }
        Write::UpdateNode { node, role, availability, set, remove, .. } => {
            let wanted = nodes::Wanted { role: *role, availability: *availability, set, remove };
            let stored = resolve(state, Kind::Node, node)?;
            expect_version(&stored, node, if_version(&request.write))?;
            nodes::update(state, &stored, &wanted, reachable)
        }
        Write::RemoveNode { node, force } => {
            let stored = resolve(state, Kind::Node, node)?;
            nodes::remove(state, &stored, *force, reachable)
        }
        Write::Remove { kind, object, if_version } => remove(state, *kind, object, *if_version),
        Write::UpdateCluster {
            snapshot_bytes,
            keep_bytes,
            node_certificate_expiry_ms,
            expired_grace_ms,
            approve_joins,
            autolock,
            ..
        } => {
            let numbers = [snapshot_bytes, keep_bytes, node_certificate_expiry_ms, expired_grace_ms];
            if numbers.iter().all(|number| number.is_none()) && approve_joins.is_none() && autolock.is_none() {
                let status = Status::new(Code::InvalidArgument, "no setting is named, so nothing would change");
                return Err(No::Never(status.with_hint("`skep cluster update --help` lists the settings")));
            }
            snapshot_bytes.map_or(Ok(()), |bytes| validate::log_bytes("--snapshot-bytes", bytes))?;
            keep_bytes.map_or(Ok(()), |bytes| validate::log_bytes("--keep-bytes", bytes))?;
            node_certificate_expiry_ms.map_or(Ok(()), validate::certificate_expiry)?;
            if let Some(Autolock::On { key }) = autolock {
                validate::unlock_key(&key.0)?;
            }
            expired_grace_ms.map_or(Ok(()), validate::expired_grace)?;
            let id = cluster_id(state)?.to_string();
            update(state, request, Kind::Cluster, &id, |object| {
                let Object::Cluster(cluster) = object else { return Ok(()) };
                let spec = &mut cluster.spec;
                spec.raft.snapshot_bytes = snapshot_bytes.unwrap_or(spec.raft.snapshot_bytes);
                spec.raft.keep_bytes = keep_bytes.unwrap_or(spec.raft.keep_bytes);
                let expiry = &mut spec.ca.node_certificate_expiry_ms;
                *expiry = node_certificate_expiry_ms.unwrap_or(*expiry);
                spec.ca.expired_grace_ms = expired_grace_ms.unwrap_or(spec.ca.expired_grace_ms);
                if let Some(ask) = approve_joins {
                    let policy = |role| AcceptancePolicy { role, autoaccept: !ask };
                    spec.acceptance_policies = [Role::Worker, Role::Manager].map(policy).to_vec();
                }
                match autolock {
                    None => {}
                    Some(Autolock::Off) => set_unlock_key(cluster, None),
                    // The key that there is stays: people have written it down.
                    Some(Autolock::On { .. }) if cluster.unlock_key().is_some() => {}
                    Some(Autolock::On { key }) => set_unlock_key(cluster, Some(key)),
                }
                Ok(())
            })
        }
        Write::RotateUnlockKey { key } => {
            validate::unlock_key(&key.0)?;
            let id = cluster_id(state)?.to_string();
            update(state, request, Kind::Cluster, &id, |object| {
                let Object::Cluster(cluster) = object else { return Ok(()) };
                if cluster.unlock_key().is_none() {
                    let status = Status::new(Code::FailedPrecondition, "managers do not lock: there is no unlock key");
                    return Err(status.with_hint("`skep cluster update --autolock` makes them lock"));
                }
                set_unlock_key(cluster, Some(key));
                Ok(())
            })
        }
        Write::RotateToken { role, token } => {
            let text = tokens::text(state, token)?;
            update(state, request, Kind::Cluster, &cluster_id(state)?.to_string(), |object| {
                let Object::Cluster(cluster) = object else { return Ok(()) };
                let tokens = &mut cluster.root_ca.join_tokens;
                match role {
                    Role::Worker => tokens.worker = text,
                    Role::Manager => tokens.manager = text,
                }
                Ok(())
            })
        }
        Write::CreateToken { role, labels, ttl_ms, uses, token } => {
            validate::attributes([labels])?;
            tokens::conditions(*ttl_ms, *uses)?;
            let made = tokens::parse(state, token)?;
            let expires_at = ttl_ms.map(|ttl| Timestamp(now_ms.saturating_add(ttl)));
            let annotations = Annotations { labels: labels.clone(), ..Annotations::default() };
            tokens::create(
                state,
                &made,
                Token {
                    id: made.object_id(),
                    meta: Meta::default(),
                    annotations,
                    role: *role,
                    expires_at,
                    uses_left: *uses,
                    root_digest: made.digest(),
                    secret_digest: Sensitive(made.secret_digest().to_vec()),
                },
            )
        }
        Write::RemoveToken { token } => {
            let stored = resolve(state, Kind::Token, token)?;
            Ok(vec![Operation::Remove { kind: Kind::Token, id: stored.object.id(), version: None }])
        }
        Write::ApproveNode { node } => update(state, request, Kind::Node, node, |object| {
            let Object::Node(node) = object else { return Ok(()) };
            tokens::approve(node, now_ms);
            Ok(())
        }),
        Write::RotateRoot { root, skip, resume } => {
            let cluster = rotate::rotate(state, root, skip, *resume, request.change, now_ms)?;
            Ok(vec![Operation::Update(Object::Cluster(Box::new(cluster)))])
        }
    }
}

/// Turns the managers' lock on with this key, or off.
fn set_unlock_key(cluster: &mut Cluster, key: Option<&Sensitive>) {
    cluster.spec.auto_lock_managers = key.is_some();
    cluster.unlock_keys.retain(|key| key.subsystem != MANAGER_SUBSYSTEM);
    cluster.unlock_keys.extend(key.map(|key| EncryptionKey {
        subsystem: MANAGER_SUBSYSTEM.to_owned(),
        key: key.clone(),
        ..EncryptionKey::default()
    }));
}

/// The id of what is made stands in for all objects of the change: it is derived from the caller's change id, so a
/// repeated request makes the same object.
fn create(
    state: &State,
    request: &WriteRequest,
    mut object: Object,
    require: Option<Operation>,
) -> Result<Vec<Operation>, No> {
    let kind = object.kind();
    let id = object_id(request.change, kind);
    match &mut object {
        Object::Config(config) => config.id = id,
        Object::Secret(secret) => secret.id = id,
        Object::Extension(extension) => extension.id = id,
        Object::Resource(resource) => resource.id = id,
        _ => {}
    }
    let name = object.name().unwrap_or_default();
    if let Some(holder) = state.by_name(kind, name) {
        return Err(No::Now(refusal::already_exists(kind, name, holder.object.id())));
    }
    Ok(require.into_iter().chain([Operation::Create(object)]).collect())
}

fn update(
    state: &State,
    request: &WriteRequest,
    kind: Kind,
    reference: &str,
    change: impl FnOnce(&mut Object) -> Result<(), Status>,
) -> Result<Vec<Operation>, No> {
    let stored = resolve(state, kind, reference)?;
    expect_version(&stored, reference, if_version(&request.write))?;
    let mut object = stored.object.clone();
    // Drawn from the object as it is: with other labels there the limit might hold.
    change(&mut object).map_err(No::Now)?;
    Ok(vec![Operation::Update(object)])
}

fn remove(state: &State, kind: Kind, reference: &str, if_version: Option<Revision>) -> Result<Vec<Operation>, No> {
    if !matches!(kind, Kind::Config | Kind::Secret | Kind::Extension | Kind::Resource) {
        let message = format!("a {kind} cannot be removed this way");
        return Err(No::Never(Status::new(Code::InvalidArgument, message)));
    }
    let stored = resolve(state, kind, reference)?;
    expect_version(&stored, reference, if_version)?;
    let id = stored.object.id();
    let mut operations = Vec::new();
    if let Some((by, any_of)) = users(&stored.object) {
        let names = user_names(state, by, &any_of);
        if !names.is_empty() {
            return Err(No::Now(refusal::in_use(kind, stored.object.name().unwrap_or(reference), by, &names)));
        }
        operations.push(Operation::RequireNone { kind: by, any_of });
    }
    operations.push(Operation::Remove { kind, id, version: if_version });
    Ok(operations)
}

/// What may refer to an object, and how to find it.
fn users(object: &Object) -> Option<(Kind, Vec<Selector>)> {
    match object {
        Object::Secret(secret) => Some((Kind::Service, vec![Selector::ReferencedSecret(secret.id)])),
        Object::Config(config) => Some((Kind::Service, vec![Selector::ReferencedConfig(config.id)])),
        Object::Extension(extension) => {
            Some((Kind::Resource, vec![Selector::Kind(extension.annotations.name.clone())]))
        }
        _ => None,
    }
}

/// One more than a message lists, so that it can say that there are more.
fn user_names(state: &State, by: Kind, any_of: &[Selector]) -> Vec<String> {
    let users = state.find_some(by, any_of, 11);
    users.into_iter().map(|user| refusal::name(state, by, user.object.id())).collect()
}

pub(super) fn resolve(state: &State, kind: Kind, reference: &str) -> Result<std::sync::Arc<Stored>, No> {
    state.resolve(kind, reference).map_err(|error| No::Now(refusal::unresolved(state, kind, reference, &error)))
}

fn expect_version(stored: &Stored, reference: &str, expected: Option<Revision>) -> Result<(), No> {
    let found = stored.object.meta().version;
    match expected {
        Some(expected) if expected != found => {
            let kind = stored.object.kind();
            Err(No::Now(refusal::out_of_sequence(kind, reference, Some(expected), Some(found))))
        }
        _ => Ok(()),
    }
}

fn cluster_id(state: &State) -> Result<ObjectId, No> {
    state.cluster().map(|cluster| cluster.id.into()).ok_or_else(|| {
        No::Now(
            Status::new(Code::FailedPrecondition, "the swarm's settings are not there yet")
                .with_hint("`skep status` shows how far this manager is"),
        )
    })
}

/// Whether the caller said which version the object must have; of other objects that a change demands something of it
/// knows nothing.
fn names_version_of(store: &Store, write: &Write, id: ObjectId) -> bool {
    if_version(write).is_some()
        && match write {
            Write::UpdateNode { node, .. } => {
                store.view(|state| state.resolve(Kind::Node, node)).is_ok_and(|stored| stored.object.id() == id)
            }
            _ => true,
        }
}

/// The object that a committed write concerns.
fn written(store: &Store, request: &WriteRequest, revision: Revision) -> ObjectId {
    let (kind, reference) = match &request.write {
        Write::CreateConfig { .. } => return object_id(request.change, Kind::Config),
        Write::CreateSecret { .. } => return object_id(request.change, Kind::Secret),
        Write::CreateExtension { .. } => return object_id(request.change, Kind::Extension),
        Write::CreateResource { .. } => return object_id(request.change, Kind::Resource),
        Write::UpdateLabels { kind, object, .. } | Write::Remove { kind, object, .. } => (*kind, object.as_str()),
        Write::UpdateResource { object, .. } => (Kind::Resource, object.as_str()),
        Write::UpdateCluster { .. }
        | Write::RotateToken { .. }
        | Write::RotateRoot { .. }
        | Write::RotateUnlockKey { .. } => (Kind::Cluster, ""),
        Write::CreateToken { .. } => (Kind::Token, ""),
        Write::RemoveToken { token } => (Kind::Token, token.as_str()),
        Write::ApproveNode { node } => (Kind::Node, node.as_str()),
        Write::UpdateNode { node, .. } | Write::RemoveNode { node, .. } => (Kind::Node, node.as_str()),
    };
    // The events say it, for as long as they are kept; a name may have changed hands since.
    let before = Revision(revision.0.saturating_sub(1));
    let lineage = store.view(State::lineage);
    let batch = store.watch_from(lineage, before).and_then(|mut cursor| store.poll(&mut cursor, 1));
    let event = batch.ok().and_then(|batches| {
        let batch = batches.first().filter(|batch| batch.revision == revision)?.clone();
        batch.events.iter().map(|event| &event.object.object).find(|object| object.kind() == kind).map(Object::id)
    });
    let by_reference = || match kind {
        Kind::Cluster => store.view(|state| state.cluster().map(|cluster| cluster.id.into())),
        _ => reference.parse().ok().or_else(|| {
            let stored = store.view(|state| state.resolve(kind, reference)).ok()?;
            (stored.object.meta().version == revision).then(|| stored.object.id())
        }),
    };
    event.or_else(by_reference).unwrap_or_default()
}

/// A refusal by apply, with the names of the request.
fn in_words(state: &State, write: &Write, refused: &Refusal) -> Status {
    match (write, refused) {
        (
            Write::CreateConfig { name, .. }
            | Write::CreateSecret { name, .. }
            | Write::CreateExtension { name, .. }
            | Write::CreateResource { name, .. },
            Refusal::NameConflict { kind, holder } | Refusal::Exists { kind, id: holder },
        ) => refusal::already_exists(*kind, name, *holder),
        (Write::CreateResource { kind: registered, .. }, Refusal::NotFound { kind: Kind::Extension, .. }) => {
            refusal::not_registered(registered)
        }
        (_, Refusal::OutOfSequence { kind, id, found }) => {
            refusal::out_of_sequence(*kind, argument(write, *id).as_str(), if_version(write), *found)
        }
        (_, Refusal::NotFound { kind, id }) => refusal::not_found(*kind, argument(write, *id).as_str()),
        (Write::Remove { kind, object, .. }, Refusal::Referenced { kind: by, by: user }) => {
            let stored = state.resolve(*kind, object).ok();
            let selected = stored.as_ref().and_then(|stored| users(&stored.object));
            let mut names = selected.map(|(by, any_of)| user_names(state, by, &any_of)).unwrap_or_default();
            if names.is_empty() {
                names.push(refusal::name(state, *by, *user));
            }
            let name = stored.as_ref().and_then(|stored| stored.object.name()).unwrap_or(object);
            refusal::in_use(*kind, name, *by, &names)
        }
        _ => refusal::other(refused),
    }
}

/// What the person typed for the object, or its id.
fn argument(write: &Write, id: ObjectId) -> String {
    match write {
        Write::UpdateLabels { object, .. } | Write::UpdateResource { object, .. } | Write::Remove { object, .. } => {
            object.clone()
        }
        Write::RemoveToken { token: object } | Write::ApproveNode { node: object } => object.clone(),
        Write::UpdateCluster { .. }
        | Write::RotateToken { .. }
        | Write::RotateRoot { .. }
        | Write::RotateUnlockKey { .. } => "default".to_owned(),
        Write::UpdateNode { node, .. } | Write::RemoveNode { node, .. } => node.clone(),
        _ => id.to_string(),
    }
}

const fn if_version(write: &Write) -> Option<Revision> {
    match write {
        Write::UpdateLabels { if_version, .. }
        | Write::UpdateResource { if_version, .. }
        | Write::Remove { if_version, .. }
        | Write::UpdateCluster { if_version, .. }
        | Write::UpdateNode { if_version, .. } => *if_version,
        _ => None,
    }
}

impl From<Status> for No {
    fn from(status: Status) -> Self {
        Self::Never(status)
    }
}
