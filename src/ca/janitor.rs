//! Signs what could not be signed when it was asked for, and removes what came to nothing.

use std::collections::BTreeMap;

use super::gate::{MAX_UNDER_WAY as MAX_COMING, under_way};
use super::{is_complete, renewed, sign, signer};
use crate::codec::digest128;
use crate::pki;
use crate::store::State;
use crate::sys::entropy::Entropy;
use crate::term::{Effect, Ended, Event, Service};
use crate::types::object::{Certificate, Cluster, IssuanceState, MembershipState, Node, Token};
use crate::types::{Change, ChangeId, Kind, Object, ObjectId, Operation, Role, Timestamp};

/// The leader's service beside the three calls. What it does, each time it looks:
///
/// - A node whose certificate waits for a signature ([`IssuanceState::Pending`] once it is accepted, [`IssuanceState::Renew`])
///   gets it as soon as the swarm can sign. A stored request that cannot be read ends as [`IssuanceState::Failed`].
/// - A node that asked for its first certificate and was never heard of is removed: an hour after it was made, or a day if it
///   waits for something itself. Of workers, when half of those that may be on their way are: after two minutes, or an hour;
///   else whoever had a token once could keep all others out long after it was replaced.
/// - A join token that ended is removed a day later, so that whoever still uses it learns why it is refused; one for a root
///   that the swarm no longer has, at once.
///
/// Every change names the version that it was decided from: a node that completes its join meanwhile stays.
pub struct Janitor {
    entropy: Box<dyn Entropy + Send>,
    /// Objects with a change that has not ended.
    under_way: BTreeMap<u64, (Kind, ObjectId)>,
    next_token: u64,
    looked_ms: Option<u64>,
    due_ms: Option<u64>,
}

/// What a look sees beside the nodes.
#[derive(Clone, Copy)]
struct Now {
    ms: u64,
    can_sign: bool,
    /// Many workers are on their way.
    crowded: bool,
}

impl std::fmt::Debug for Janitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Janitor")
            .field("under_way", &self.under_way)
            .field("due_ms", &self.due_ms)
            .finish_non_exhaustive()
    }
}

impl Janitor {
    /// A service that draws the serial numbers of certificates from `entropy`.
    pub fn new(entropy: Box<dyn Entropy + Send>) -> Self {
        Self { entropy, under_way: BTreeMap::new(), next_token: 0, looked_ms: None, due_ms: None }
    }

    fn look(&mut self, now_ms: u64, state: &State) -> Vec<Effect> {
        // A walk over all nodes: once for many changes, and the rarer the more there are.
        let pause_ms = LOOK_EVERY_MS.max(state.count(Kind::Node) as u64 / NODES_PER_MS);
        if let Some(looked) = self.looked_ms
            && let next = looked.saturating_add(pause_ms)
            && (looked..next).contains(&now_ms)
        {
            self.due_ms = Some(self.due_ms.map_or(next, |due| due.min(next)));
            return Vec::new();
        }
        self.looked_ms = Some(now_ms);
        self.due_ms = None;
        let Some(cluster) = state.cluster() else { return Vec::new() };
        let now = Now { ms: now_ms, can_sign: signer(cluster).is_ok(), crowded: under_way(state)[0] >= MAX_COMING / 2 };
        let mut effects = Vec::new();
        for stored in state.iter(Kind::Node).chain(state.iter(Kind::Token)) {
            let place = (stored.object.kind(), stored.object.id());
            if self.under_way.len() >= MAX_UNDER_WAY {
                self.look_by(now_ms.saturating_add(pause_ms));
                break;
            }
            if self.under_way.values().any(|other| *other == place) {
                continue;
            }
            let step = match &stored.object {
                Object::Node(node) => self.node(state, cluster, node, now),
                Object::Token(token) => self.token(cluster, token, now_ms),
                _ => None,
            };
            if let Some(operations) = step {
                let change = change(state, place, operations, now_ms);
                self.next_token += 1;
                self.under_way.insert(self.next_token, place);
                effects.push(Effect::Propose { token: self.next_token, change });
            }
        }
        effects
    }

    fn node(&mut self, state: &State, cluster: &Cluster, node: &Node, now: Now) -> Option<Vec<Operation>> {
        let now_ms = now.ms;
        let waits = matches!(node.certificate.state, IssuanceState::Pending | IssuanceState::Renew);
        if waits && now.can_sign && node.spec.membership == MembershipState::Accepted {
            let certificate = self.certificate(cluster, node, now_ms)?;
            let node = renewed(node, certificate);
            return Some(vec![Operation::Update(Object::Node(Box::new(node)))]);
        }
        if is_complete(state, node) {
            return None;
        }
        let patience_ms = match (waits, now.crowded && node.role == Role::Worker) {
            (true, false) => WAITING_JOIN_MS,
            (true, true) | (false, false) => SIGNED_JOIN_MS,
            (false, true) => CROWDED_JOIN_MS,
        };
        let id = node.id.into();
        self.remove_at(node.meta.created_at.0.saturating_add(patience_ms), now_ms, || {
            log::info!("node {} asked for a certificate and was not heard of since: it is forgotten", node.id);
            // Its certificate is somewhere, and a manager's would be taken for one that is not known here yet.
            let revoke = node.revoked_until().map(|until| Operation::Revoke { node: node.id, until });
            let remove = Operation::Remove { kind: Kind::Node, id, version: Some(node.meta.version) };
            revoke.into_iter().chain([remove]).collect()
        })
    }

    /// What becomes of a request that waits; `None` when it has to wait longer.
    fn certificate(&mut self, cluster: &Cluster, node: &Node, now_ms: u64) -> Option<Certificate> {
        let asked = &node.certificate;
        if let Err(error) = pki::check_request(&asked.csr) {
            let error = format!("CSR Decode failed: {error}");
            return Some(Certificate { state: IssuanceState::Failed, error, ..asked.clone() });
        }
        match sign(cluster, node.id, node.role, &asked.csr, now_ms, &mut *self.entropy) {
            Ok(signed) => Some(Certificate { reported_issuer: asked.reported_issuer.clone(), ..signed }),
            Err(why) => {
                log::debug!("the request of node {} waits: {why}", node.id);
                None
            }
        }
    }

    fn token(&mut self, cluster: &Cluster, token: &Token, now_ms: u64) -> Option<Vec<Operation>> {
        let ended_ms = match (token.expires_at, token.uses_left) {
            _ if token.root_digest != cluster.root_ca.digest => 0,
            (_, Some(0)) => token.meta.updated_at.0.saturating_add(ENDED_TOKEN_MS),
            (Some(end), _) => end.0.saturating_add(ENDED_TOKEN_MS),
            (None, _) => return None,
        };
        let (id, version) = (token.id, Some(token.meta.version));
        self.remove_at(ended_ms, now_ms, || vec![Operation::Remove { kind: Kind::Token, id, version }])
    }

    fn remove_at(
        &mut self,
        at_ms: u64,
        now_ms: u64,
        remove: impl FnOnce() -> Vec<Operation>,
    ) -> Option<Vec<Operation>> {
        if at_ms <= now_ms {
            return Some(remove());
        }
        self.look_by(at_ms);
        None
    }

    fn look_by(&mut self, at_ms: u64) {
        self.due_ms = Some(self.due_ms.map_or(at_ms, |due| due.min(at_ms)));
    }
}

impl Service for Janitor {
    fn name(&self) -> &'static str {
        "janitor"
    }

    fn concerns(&self, kind: Kind) -> bool {
        matches!(kind, Kind::Node | Kind::Cluster | Kind::Token)
    }

    fn step(&mut self, now_ms: u64, event: Event<'_>) -> Vec<Effect> {
        match event {
            Event::Look { state, .. } => self.look(now_ms, state),
            Event::Outcome { token, result } => {
                let about = self.under_way.remove(&token);
                if !matches!(result, Ended::Committed(_)) {
                    log::debug!("a clean-up of {about:?} ended with {result:?}");
                    self.look_by(now_ms.saturating_add(RETRY_MS));
                }
                Vec::new()
            }
        }
    }

    fn next_deadline(&self) -> Option<u64> {
        self.due_ms
    }
}

/// The same decision about the same version has the same id within a term. Not over terms: a change that a former leader's
/// entry lost to the end of its term is remembered as refused.
fn change(state: &State, (kind, id): (Kind, ObjectId), operations: Vec<Operation>, now_ms: u64) -> Change {
    let version = state.get(kind, id).map_or(0, |stored| stored.object.meta().version.0);
    let term = state.applied().term.0;
    let parts = [b"janitor", kind.name().as_bytes(), &id.0.to_le_bytes(), &version.to_le_bytes(), &term.to_le_bytes()];
    let (id, after) = (ChangeId(digest128(&parts)), state.revision());
    Change { id, after, time: Timestamp(now_ms), term: None, operations }
}

const HOUR_MS: u64 = 3_600_000;

/// A node that has its certificate starts with it at once; an hour is room for a person to mend its network.
pub const SIGNED_JOIN_MS: u64 = HOUR_MS;

/// One that waits for approval, or for a swarm that cannot sign, waits for people.
pub const WAITING_JOIN_MS: u64 = 24 * HOUR_MS;

/// In a crowd, one of whom too many never come. A worker says that it is there within seconds.
pub const CROWDED_JOIN_MS: u64 = 2 * 60_000;

/// For so long a token that ended is refused by name.
pub const ENDED_TOKEN_MS: u64 = 24 * HOUR_MS;

/// Changes are looked at together.
const LOOK_EVERY_MS: u64 = 500;

/// 100,000 nodes are looked through every 5 s.
const NODES_PER_MS: u64 = 20;

/// After a change that came to nothing.
const RETRY_MS: u64 = 5000;

/// Changes at once; what is left is found at the next look.
const MAX_UNDER_WAY: usize = 32;
