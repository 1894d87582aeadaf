//! Join tokens, and letting nodes in that a person must let in.

use super::refusal;
use super::write::No;
use crate::pki::JoinToken;
use crate::store::State;
use crate::types::error::{Code, Status};
use crate::types::object::{IssuanceState, MembershipState, Node, Sensitive, Token};
use crate::types::{Kind, Object, Operation, Timestamp};

/// A node that a person lets back in may come so long.
pub(super) const APPROVED_MS: u64 = 24 * 3_600_000;
/// Longer than any certificate; dates are written with four digits of year.
const MAX_TTL_MS: u64 = 100 * 365 * 24 * 3_600_000;

/// The token that the caller made, if it is one for the swarm's root: another would admit nobody.
pub(super) fn parse(state: &State, given: &Sensitive) -> Result<JoinToken, No> {
    let text = std::str::from_utf8(&given.0).unwrap_or_default();
    let token: JoinToken = text.parse().map_err(|error: crate::pki::TokenError| {
        Status::new(Code::InvalidArgument, error.to_string()).with_hint(error.hint())
    })?;
    let Some(cluster) = state.cluster() else {
        let status = Status::new(Code::FailedPrecondition, "the swarm has no root certificate yet");
        return Err(No::Now(status.with_hint("`skep status` shows how far this manager is")));
    };
    if token.digest() != cluster.root_ca.digest {
        let message = "the token was made for another root certificate than the swarm has";
        return Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint("run the command again")));
    }
    Ok(token)
}

/// The same as text, as the cluster object keeps it.
pub(super) fn text(state: &State, given: &Sensitive) -> Result<String, No> {
    parse(state, given).map(|token| token.to_string())
}

pub(super) fn conditions(ttl_ms: Option<u64>, uses: Option<u32>) -> Result<(), Status> {
    if ttl_ms.is_some_and(|ttl| ttl == 0 || ttl > MAX_TTL_MS) {
        let status = Status::new(Code::InvalidArgument, "a token lives longer than nothing and at most 100 years");
        return Err(status.with_hint("write it as `--ttl 1h` or `--ttl 30d`"));
    }
    if uses == Some(0) {
        let status = Status::new(Code::InvalidArgument, "a token that admits no node is of no use");
        return Err(status.with_hint("give `--uses` a number from 1 on, or leave it out for no limit"));
    }
    Ok(())
}

/// Its id derives from its secret, so that there is one object for it.
pub(super) fn create(state: &State, made: &JoinToken, token: Token) -> Result<Vec<Operation>, No> {
    if state.get(Kind::Token, made.object_id()).is_some() {
        return Err(No::Now(refusal::already_exists(Kind::Token, &token.id.to_string(), token.id)));
    }
    Ok(vec![Operation::Create(Object::Token(Box::new(token)))])
}

/// Accepts a node that waits, or lets one with an expired certificate renew it once.
pub(super) fn approve(node: &mut Node, now_ms: u64) -> Result<(), Status> {
    if node.spec.membership == MembershipState::Pending {
        node.spec.membership = MembershipState::Accepted;
        return Ok(());
    }
    let certificate = &mut node.certificate;
    let is_valid = certificate.expires_at.0 > now_ms && certificate.state != IssuanceState::Failed;
    if is_valid {
        let message = format!(
            "node {} needs no approval: it is accepted, and its certificate is valid until {}",
            node.id, certificate.expires_at
        );
        let hint = format!("`skep node inspect {}` shows what the swarm knows of it", node.id);
        return Err(Status::new(Code::FailedPrecondition, message).with_hint(hint));
    }
    certificate.approved_until = Some(Timestamp(now_ms.saturating_add(APPROVED_MS)));
    Ok(())
}
