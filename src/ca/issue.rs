//! The decision behind [`issue`]: renewal, admission by token, or a refusal.

use std::collections::BTreeMap;

use super::{
    awaits_approval, check_description, new_node, node_of, node_of_change, not_issued, renewed, sign, signer, starting,
};
use crate::pki::{self, JoinToken, same_secret};
use crate::store::State;
use crate::sys::entropy::Entropy;
use crate::types::api::IssueRequest;
use crate::types::object::{Certificate, Cluster, IssuanceState, MembershipState, Node, Sensitive, TokenEnd};
use crate::types::{
    Caller, Change, Code, Kind, NodeId, Object, ObjectId, Operation, Refusal, Role, Standing, Status, Timestamp,
};

/// What [`issue`] decided.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision {
    /// Propose this: it makes the node or renews its certificate, under the request's change id. `term` is left to the
    /// caller. When it is committed, [`super::status`] has the certificate of [`subject`], or says what it waits for.
    Propose(Change),
    /// The node has what it asks for: [`super::status`] hands it out.
    Have(NodeId),
}

/// What a request for a certificate comes to, if it is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// A node of this role, for a token.
    Newcomer(Role),
    /// A new certificate for this node.
    Renewal(NodeId),
}

/// Who may have what they wish for now. Asked before anything is signed, which takes longer than everything else.
pub type Permit<'a> = &'a mut dyn FnMut(Wish) -> Result<(), Status>;

/// The node that a request is for: the caller's own, or the one that its change makes.
pub fn subject(state: &State, caller: &Caller, request: &IssueRequest) -> NodeId {
    let ours = state.cluster().map(|cluster| cluster.id);
    match caller {
        Caller::Node { node_id, cluster_id, .. } if Some(*cluster_id) == ours => *node_id,
        _ => node_of_change(request.change),
    }
}

/// Decides on a request for a certificate, in the order that the folder's essay gives. A change that renews is bound to the
/// node's version: when that is refused as out of sequence, decide again.
///
/// # Errors
/// `InvalidArgument` for a bad request or token, `NotFound` for a node that is not there any more, `FailedPrecondition` for a
/// certificate that expired too long ago or a token that has ended, `Unavailable` until there is a cluster, or while the
/// certificate that was asked for cannot be signed; and what `permit` says.
pub fn issue(
    state: &State,
    caller: &Caller,
    request: &IssueRequest,
    now_ms: u64,
    entropy: &mut dyn Entropy,
    permit: Permit<'_>,
) -> Result<Decision, Status> {
    if request.csr.is_empty() {
        let status = Status::new(Code::InvalidArgument, "a signing request is needed, and this one is empty");
        return Err(status.with_hint("use the same version of skep on both sides"));
    }
    check_description(&request.description)?;
    let cluster = state.cluster().ok_or_else(starting)?;
    match caller {
        Caller::Node { node_id, cluster_id, expired, .. } if *cluster_id == cluster.id => {
            let Some(node) = node_of(state, *node_id) else { return Err(removed(*node_id)) };
            renew(cluster, node, *expired, request, now_ms, entropy, permit)
        }
        _ => admit(state, cluster, request, now_ms, entropy, permit),
    }
}

fn renew(
    cluster: &Cluster,
    node: &Node,
    expired: bool,
    request: &IssueRequest,
    now_ms: u64,
    entropy: &mut dyn Entropy,
    permit: Permit<'_>,
) -> Result<Decision, Status> {
    if node.spec.membership == MembershipState::Pending {
        return Err(awaits_approval(node.id));
    }
    let before = &node.certificate;
    let is_repeated = before.csr == request.csr;
    let waits = matches!(before.state, IssuanceState::Renew | IssuanceState::Pending);
    if expired && !(is_repeated && waits) {
        // The answer to the first attempt was lost, and the permission that it took with it.
        if is_repeated && before.state == IssuanceState::Issued && before.expires_at.0 > now_ms {
            return Ok(Decision::Have(node.id));
        }
        check_grace(cluster, node, now_ms)?;
    }
    pki::check_request(&request.csr)?;
    if is_repeated && waits {
        // Nothing would come of it but the answer that the node has already, however often it asks.
        signer(cluster).map_err(|why| not_issued(node.id, &why.message))?;
    }
    permit(Wish::Renewal(node.id))?;
    let certificate = match sign(cluster, node.id, node.role, &request.csr, now_ms, entropy) {
        Ok(signed) => Certificate { reported_issuer: before.reported_issuer.clone(), ..signed },
        Err(why) if is_repeated && waits => return Err(not_issued(node.id, &why.message)),
        // It keeps the one it has, and the permission to come back, until the new one is signed.
        Err(why) => Certificate {
            csr: request.csr.clone(),
            role: node.role,
            state: IssuanceState::Renew,
            error: why.message,
            ..before.clone()
        },
    };
    let node = renewed(node, certificate);
    let operations = vec![Operation::Update(Object::Node(Box::new(node)))];
    Ok(Decision::Propose(change(request, now_ms, operations)))
}

/// Whether an expired certificate still gets its node a new one. The store knows the end of the newest that was issued, and
/// not of the one shown. When the newest is in force, the node either never got it, or has it and is not who asks.
fn check_grace(cluster: &Cluster, node: &Node, now_ms: u64) -> Result<(), Status> {
    let Certificate { expires_at, approved_until, in_use, .. } = node.certificate;
    let grace_ms = cluster.spec.ca.expired_grace_ms;
    let is_approved = approved_until.is_some_and(|until| now_ms < until.0);
    let id = node.id;
    if is_approved {
        return Ok(());
    }
    if now_ms <= expires_at.0 && in_use {
        let message = format!("node {id} uses a newer certificate than this one, which has expired");
        let hint = format!(
            "compare the clocks of both machines first (`date -u`): one that is fast takes a good certificate for expired; \
             if the node itself asks, because it lost the newer one: `skep node approve {id}` on a manager lets it back in; \
             if not, somebody has an old key of it: remove the node and join it again"
        );
        return Err(Status::new(Code::FailedPrecondition, message).with_hint(hint));
    }
    if now_ms <= expires_at.0.saturating_add(grace_ms) {
        return Ok(());
    }
    let message = format!(
        "the certificate of node {id} expired at {expires_at}, longer ago than the {} that this swarm allows",
        in_days(grace_ms)
    );
    let hint =
        format!("to let it back in: `skep node approve {id}` on a manager, within 24 hours of the node's next start");
    Err(Status::new(Code::FailedPrecondition, message).with_hint(hint))
}

/// Whether a manager with an expired certificate would get a new one for it.
pub fn may_come_back(state: &State, node_id: NodeId, now_ms: u64) -> bool {
    let (Some(cluster), Some(node)) = (state.cluster(), node_of(state, node_id)) else { return false };
    state.standing(node_id) == Standing::Manager && check_grace(cluster, node, now_ms).is_ok()
}

fn in_days(ms: u64) -> String {
    const DAY_MS: u64 = 86_400_000;
    if ms.is_multiple_of(DAY_MS) { format!("{} days", ms / DAY_MS) } else { format!("{} minutes", ms / 60_000) }
}

fn removed(node_id: NodeId) -> Status {
    let message = format!("node {node_id} not found when attempting to renew certificate");
    Status::new(Code::NotFound, message).with_hint(
        "it was removed from the swarm: to join again, start it on an empty data directory with a join token",
    )
}

fn admit(
    state: &State,
    cluster: &Cluster,
    request: &IssueRequest,
    now_ms: u64,
    entropy: &mut dyn Entropy,
    permit: Permit<'_>,
) -> Result<Decision, Status> {
    let Admission { role, labels, token } = admission(state, cluster, &request.token, now_ms)?;
    if let Some(wanted) = request.role.filter(|wanted| *wanted != role) {
        let wanted = wanted.name();
        let message = format!("the token is a {} token", role.name());
        let hint = format!("print a {wanted} token on any manager with `skep token show --role {wanted}`");
        return Err(Status::new(Code::InvalidArgument, message).with_hint(hint));
    }
    pki::check_request(&request.csr)?;
    permit(Wish::Newcomer(role))?;
    let node_id = node_of_change(request.change);
    let waiting = |why: String| Certificate {
        csr: request.csr.clone(),
        state: IssuanceState::Pending,
        error: why,
        ..Certificate::none(role)
    };
    let policy = cluster.spec.acceptance_policies.iter().find(|policy| policy.role == role);
    let accepted = policy.is_none_or(|policy| policy.autoaccept);
    let certificate = if accepted {
        sign(cluster, node_id, role, &request.csr, now_ms, entropy).unwrap_or_else(|why| waiting(why.message))
    } else {
        waiting(String::new())
    };
    let mut node = new_node(node_id, request.description.clone(), request.availability, certificate);
    node.spec.annotations.labels = labels;
    if !accepted {
        node.spec.membership = MembershipState::Pending;
    }
    let create = Operation::Create(Object::Node(Box::new(node)));
    let operations = token.map(Operation::UseToken).into_iter().chain([create]).collect();
    Ok(Decision::Propose(change(request, now_ms, operations)))
}

fn change(request: &IssueRequest, now_ms: u64, operations: Vec<Operation>) -> Change {
    Change { id: request.change, after: request.after, time: Timestamp(now_ms), term: None, operations }
}

/// What a token gives.
struct Admission {
    role: Role,
    labels: BTreeMap<String, String>,
    /// Used once by the change that makes the node.
    token: Option<ObjectId>,
}

/// What the token admits to. The manager's is compared first, and both always, so that the time tells nothing; a token with
/// conditions is found by a digest of its secret, of which a guess that is nearly right knows nothing.
fn admission(state: &State, cluster: &Cluster, given: &Sensitive, now_ms: u64) -> Result<Admission, Status> {
    let tokens = &cluster.root_ca.join_tokens;
    if tokens.manager.is_empty() && tokens.worker.is_empty() {
        return Err(starting());
    }
    let (manager, worker) = (same_secret(&tokens.manager, &given.0), same_secret(&tokens.worker, &given.0));
    let standing = |role| Ok(Admission { role, labels: BTreeMap::new(), token: None });
    if manager {
        return standing(Role::Manager);
    }
    if worker {
        return standing(Role::Worker);
    }
    let unknown = || {
        let message = "A valid join token is necessary to join this cluster";
        Status::new(Code::InvalidArgument, message)
            .with_hint("print one on any manager with `skep token show --role manager`; tokens change when rotated")
    };
    let parsed = std::str::from_utf8(&given.0).ok().and_then(|text| text.parse::<JoinToken>().ok());
    let parsed = parsed.filter(|token| token.digest() == cluster.root_ca.digest).ok_or_else(unknown)?;
    let stored = state.get(Kind::Token, parsed.object_id()).map(|stored| &stored.object);
    let Some(Object::Token(token)) = stored else { return Err(unknown()) };
    if !same_secret(&token.secret_digest.0, parsed.secret_digest()) {
        return Err(unknown());
    }
    match token.is_spent(Timestamp(now_ms)) {
        Some(end) => Err(spent(token.role, end)),
        None => Ok(Admission { role: token.role, labels: token.annotations.labels.clone(), token: Some(token.id) }),
    }
}

/// The token that matched has ended.
fn spent(role: Role, end: TokenEnd) -> Status {
    let message = match end {
        TokenEnd::Expired(at) => format!("the join token expired at {at}"),
        TokenEnd::UsedUp => "the join token has admitted as many nodes as it was made for".to_owned(),
    };
    let role = role.name();
    let hint = format!("make another on any manager with `skep token create --role {role}`");
    Status::new(Code::FailedPrecondition, message).with_hint(hint)
}

/// Why the change of a [`Decision`] was refused by apply, for the caller.
pub fn in_words(refused: &Refusal) -> Status {
    match refused {
        Refusal::TokenSpent { .. } | Refusal::NotFound { kind: Kind::Token, .. } => Status::new(
            Code::FailedPrecondition,
            "the join token admits nobody any more: others were faster, or it was removed",
        )
        .with_hint("make another on any manager with `skep token create --role ROLE`"),
        Refusal::NotFound { kind: Kind::Node, id } => removed((*id).into()),
        _ => Status::new(Code::Aborted, "the certificate was not issued, because the swarm's state changed meanwhile")
            .with_hint("try again"),
    }
}
