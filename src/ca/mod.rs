//! The certificate authority: hands out the root certificate, admits newcomers and renews certificates.
//!
//! Three calls, served by the leader, for anybody who can connect: [`get_root`], [`issue`] and [`status`]. A newcomer
//! without a certificate asks for the root and checks it against its join token, sends a signing request with the
//! token, and then asks for its certificate until it is there. A node that has a certificate sends a signing request over a
//! connection that shows it, and no token. [`found`] does all of that at once for the first manager, who has nobody to ask.
//!
//! How [`issue`] decides, in this order:
//!
//! 1. A request without a signing request in it is refused.
//! 2. A caller with a certificate of this swarm in force gets a new one for the same node. Its role is the one that the
//!    store says the node acts in now, whatever the old certificate said. A node that the store does not have was removed.
//! 3. The same for a certificate that has expired, if that was not longer ago than the swarm's grace, and the node is not
//!    known to use a newer one: whoever has an old disk of a node that runs must not get in with it. Else a person may let the
//!    node back in (`skep node approve`): once, and within 24 hours.
//! 4. Everybody else needs a token, who shows a certificate of another swarm too: one of the two that every swarm has, or
//!    one that was made with conditions. The role comes from the token that matched, labels too.
//! 5. Whoever gets so far needs a permit ([`Gate`]), and nothing is signed before: that takes longest.
//!
//! What the rest of the program may rely on:
//!
//! - The three calls write nothing: [`issue`] returns the [`Change`](crate::types::Change) that makes the node or renews its certificate, and only
//!   when that is committed is there a certificate. It is handed out by [`status`], from the store, and so never before.
//! - A newcomer's id derives from the change's id. A newcomer that repeats its request under the same change id gets the
//!   same node: the store answers the repetition, and the certificate signed the second time is dropped with it.
//! - A token with conditions is used up in the change that makes the node, and counted by apply: a token for five nodes
//!   makes five, however many ask at once.
//! - The role comes from the token or the store, the subject from the store; nothing in a request but its public key
//!   reaches a certificate. A request that cannot be read is refused and leaves nothing: only what was written by somebody
//!   else, such as a restored store, can end as [`IssuanceState::Failed`].
//! - A swarm that cannot sign now (its key is missing or broken) takes the request all the same: the node waits as
//!   [`IssuanceState::Pending`] or [`IssuanceState::Renew`], keeps the certificate it has, and [`Janitor`] signs later. So does
//!   a newcomer that a person must approve first.
//! - Secrets are compared in a time that does not depend on them. No answer holds a private key or a token.
//!
//! A token that leaked fills nothing: [`Gate`] lets newcomers in at a bounded rate and refuses them while too many of their role
//! have asked and never come, and [`Janitor`] removes those after an hour, and tokens that have ended after a day. Nor does it
//! keep others out once it is replaced: a crowd of workers that never came is forgotten within minutes. Managers are not, few
//! as they may be, because the certificate of one that nobody came back with is revoked with its node, and that is remembered.
//!
//! Nor does a node's own key: what it wants written of itself is bounded per node.
//!
//! A new root, and how every node gets to it: [`rotation`].
//!
//! Everything is a function of the request, the [`State`], time, entropy, and what is permitted.
//!
//! Not here: which of its nodes the swarm tells to renew, and when a node does so by itself; who may make the calls
//! (`net::routes`); making tokens (`control`).

use std::time::Duration;

use crate::pki::{self, JoinToken, NodeIdentity, PkiError, PrivateKey, RootCa};
use crate::store::State;
use crate::sys::entropy::Entropy;
use crate::types::api::Answer;
use crate::types::object::{
    self, Availability, Certificate, Cluster, IssuanceState, JoinTokens, MembershipState, Node, NodeDescription,
    Sensitive,
};
use crate::types::{ChangeId, ClusterId, Code, Kind, NodeId, Object, Role, Status, Timestamp};

mod gate;
mod issue;
mod janitor;
pub mod rotation;

pub use gate::Gate;
pub use issue::{Decision, Permit, Wish, in_words, issue, may_come_back, subject};
pub use janitor::Janitor;

/// What the first manager begins with.
#[derive(Clone, Debug)]
pub struct Founding {
    /// For the cluster object.
    pub root_ca: object::RootCa,
    /// The manager's own node object.
    pub node: Node,
    /// Its certificate and key, to be kept on its disk.
    pub identity: NodeIdentity,
}

/// The swarm's root certificates.
///
/// # Errors
/// `Unavailable` until there is a cluster.
pub fn get_root(state: &State) -> Result<Answer, Status> {
    let root = state.cluster().ok_or_else(starting)?.root_ca.certificate.clone();
    if root.is_empty() { Err(starting()) } else { Ok(Answer::Root { root }) }
}

/// A node's certificate: the newest there is.
///
/// # Errors
/// `NotFound` when there is no such node, `Unavailable` while its certificate is being made, `FailedPrecondition` when
/// that was refused.
pub fn status(state: &State, node_id: NodeId) -> Result<Answer, Status> {
    let unknown = || Status::new(Code::NotFound, format!("node {node_id} is not part of this swarm"));
    let node = node_of(state, node_id).ok_or_else(unknown)?;
    let Certificate { role, ref error, certificate: ref chain, .. } = node.certificate;
    match node.certificate.state {
        IssuanceState::Issued | IssuanceState::Rotate => {
            Ok(Answer::Certificate { node_id, chain: chain.clone(), role })
        }
        IssuanceState::Failed => {
            let message = format!("no certificate was issued to node {node_id}: {error}");
            Err(Status::new(Code::FailedPrecondition, message).with_hint(
                "a node that was never in the swarm: start it again on an empty data directory; one that was: start it \
                 again, and it sends another request",
            ))
        }
        _ if node.spec.membership == MembershipState::Pending => Err(awaits_approval(node_id)),
        IssuanceState::Unknown | IssuanceState::Pending | IssuanceState::Renew => Err(not_issued(node_id, error)),
    }
}

fn node_of(state: &State, node_id: NodeId) -> Option<&Node> {
    match &state.get(Kind::Node, node_id.into())?.object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}

/// Whether a request for a certificate was taken and waits for people: whoever asked may wait as long as they do.
pub fn is_waiting(status: &Status) -> bool {
    status.code == Code::Unavailable && [APPROVAL, NOT_ISSUED].iter().any(|words| status.message.contains(words))
}

const APPROVAL: &str = "waits until a person approves it";
const NOT_ISSUED: &str = "is not issued yet";

fn awaits_approval(node_id: NodeId) -> Status {
    let message = format!("node {node_id} {APPROVAL}");
    Status::new(Code::Unavailable, message).with_hint(format!("on a manager: `skep node approve {node_id}`"))
}

fn not_issued(node_id: NodeId, why: &str) -> Status {
    let because = if why.is_empty() { String::new() } else { format!(": {why}") };
    let message = format!("the certificate of node {node_id} {NOT_ISSUED}{because}");
    Status::new(Code::Unavailable, message).with_hint("try again in a moment")
}

/// Makes the root, the join tokens and the first manager's certificate.
///
/// # Errors
/// When the clock shows a date that no certificate can hold.
pub fn found(
    cluster_id: ClusterId,
    node_id: NodeId,
    description: NodeDescription,
    validity: Duration,
    now_ms: u64,
    entropy: &mut dyn Entropy,
) -> Result<Founding, PkiError> {
    let root = RootCa::generate(now_ms, entropy)?;
    let key = pki::generate_key(entropy);
    let (node, identity) = manager(&root, cluster_id, node_id, key, description, validity, now_ms, entropy)?;
    Ok(Founding { root_ca: root_object(&root, entropy), node, identity })
}

/// A manager's certificate and node in a swarm that begins again from its data and has nobody else: what [`found`] makes,
/// signed by the root that there is.
///
/// # Errors
/// `FailedPrecondition` or `Internal` when the swarm cannot sign.
pub fn succeed(
    cluster: &Cluster,
    node_id: NodeId,
    description: NodeDescription,
    now_ms: u64,
    entropy: &mut dyn Entropy,
) -> Result<(Node, NodeIdentity), Status> {
    succeed_with(cluster, node_id, pki::generate_key(entropy), description, now_ms, entropy)
}

/// As [`succeed`], for a manager that has a key.
///
/// # Errors
/// The same.
pub fn succeed_with(
    cluster: &Cluster,
    node_id: NodeId,
    key: PrivateKey,
    description: NodeDescription,
    now_ms: u64,
    entropy: &mut dyn Entropy,
) -> Result<(Node, NodeIdentity), Status> {
    check_description(&description)?;
    let validity = certificate_validity(cluster);
    manager(&signer(cluster)?, cluster.id, node_id, key, description, validity, now_ms, entropy).map_err(Status::from)
}

/// A manager's certificate, and the node that has it.
#[allow(clippy::too_many_arguments, reason = "all of it goes into one certificate")]
fn manager(
    root: &RootCa,
    cluster_id: ClusterId,
    node_id: NodeId,
    key: PrivateKey,
    description: NodeDescription,
    validity: Duration,
    now_ms: u64,
    entropy: &mut dyn Entropy,
) -> Result<(Node, NodeIdentity), PkiError> {
    let csr = pki::signing_request(&key)?;
    let chain_pem = root.sign_request(&csr, node_id, Role::Manager, cluster_id, now_ms, validity, entropy)?;
    let identity = NodeIdentity::new(&chain_pem, key)?;
    let certificate = issued(root, Role::Manager, csr, chain_pem)?;
    Ok((new_node(node_id, description, Availability::Active, certificate), identity))
}

/// The node that a change with this id creates.
pub fn node_of_change(change: ChangeId) -> NodeId {
    // Hashed, so that a newcomer cannot choose its id by choosing the change's.
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    hash.update(b"skep node of change");
    hash.update(&change.0.to_be_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&hash.finish().as_ref()[..16]);
    NodeId(u128::from_be_bytes(id))
}

fn root_object(root: &RootCa, entropy: &mut dyn Entropy) -> object::RootCa {
    let certificate = root.certificate_pem().to_owned();
    let join_tokens = JoinTokens {
        worker: JoinToken::generate(&certificate, entropy).to_string(),
        manager: JoinToken::generate(&certificate, entropy).to_string(),
    };
    object::RootCa {
        key: Sensitive(root.key().to_pem().as_bytes().to_vec()),
        digest: pki::root_digest(&certificate),
        certificate,
        join_tokens,
        rotation: None,
        last_forced_rotation: 0,
    }
}

/// Signs a request for a node of this role. What the node said and what it
/// was allowed are not in what it gives.
///
/// # Errors
/// What is wrong with the request, or `FailedPrecondition` and `Internal` when the swarm cannot sign.
fn sign(
    cluster: &Cluster,
    node_id: NodeId,
    role: Role,
    csr: &str,
    now_ms: u64,
    entropy: &mut dyn Entropy,
) -> Result<Certificate, Status> {
    let (root, validity) = (signer(cluster)?, certificate_validity(cluster));
    let chain = root.sign_request(csr, node_id, role, cluster.id, now_ms, validity, entropy)?;
    Ok(issued(&root, role, csr.to_owned(), chain)?)
}

fn issued(root: &RootCa, role: Role, csr: String, chain: String) -> Result<Certificate, PkiError> {
    let expires_at = Timestamp(pki::identity_of_pem(&chain)?.not_after_ms);
    let issuer = root.issuer().to_owned();
    let state = IssuanceState::Issued;
    Ok(Certificate { csr, state, certificate: chain, issuer, expires_at, ..Certificate::none(role) })
}

fn new_node(id: NodeId, description: NodeDescription, availability: Availability, certificate: Certificate) -> Node {
    let mut node = Node::new(id, certificate.role);
    node.spec.availability = availability;
    node.description = description;
    node.certificate = certificate;
    node
}

/// Who signs for the swarm: in a rotation the new root, whose chains end with what the old one signed.
fn signer(cluster: &Cluster) -> Result<RootCa, Status> {
    let root = &cluster.root_ca;
    match &root.rotation {
        None => load_root(&root.certificate, &root.key),
        Some(rotation) => {
            Ok(load_root(&rotation.certificate, &rotation.key)?.succeeding(rotation.cross_signed_certificate.clone()))
        }
    }
}

fn load_root(certificate: &str, key: &Sensitive) -> Result<RootCa, Status> {
    if key.0.is_empty() {
        let message = "this swarm does not hold its root key, so it cannot sign certificates";
        return Err(Status::new(Code::FailedPrecondition, message));
    }
    // A failure is the swarm's, not the caller's, and the text could not help it.
    let broken = || Status::new(Code::Internal, "the swarm's root certificate or key is unusable");
    let key = std::str::from_utf8(&key.0).map_err(|_| broken())?;
    RootCa::load(certificate, key).map_err(|_| broken())
}

fn certificate_validity(cluster: &Cluster) -> Duration {
    let asked = Duration::from_millis(cluster.spec.ca.node_certificate_expiry_ms);
    if asked < MIN_VALIDITY { DEFAULT_VALIDITY } else { asked }
}

/// The node with its new certificate. A former one that named it a manager may end later, when validity was shortened: that
/// is noted, for when the node is removed.
fn renewed(node: &Node, certificate: Certificate) -> Node {
    let until = node.revoked_until();
    let mut next = Node { certificate, ..node.clone() };
    if next.revoked_until() < until {
        next.manager_until = until.unwrap_or_default();
    }
    next
}

/// Whether the node has completed its join: it said which certificate it uses, or took its place among the managers.
fn is_complete(state: &State, node: &Node) -> bool {
    !node.certificate.reported_issuer.is_empty() || state.member_of(node.id).is_some()
}

/// What a stranger says of itself is stored, and nobody else checks it.
fn check_description(description: &NodeDescription) -> Result<(), Status> {
    match description.problem() {
        Some(problem) => Err(Status::new(Code::InvalidArgument, problem).with_hint(
            "set another host name with `skep run --name NODE`, and give the node fewer and plain engine labels",
        )),
        None => Ok(()),
    }
}

fn starting() -> Status {
    Status::new(Code::Unavailable, "the swarm's certificate authority is still starting")
        .with_hint("try again in a moment")
}

/// Validity of a node's certificate unless the swarm's settings say otherwise: 90 days, as swarmkit.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(90 * 86_400);

/// Settings below this are taken for the default, as swarmkit does.
pub const MIN_VALIDITY: Duration = Duration::from_secs(3600);

/// For so long after its end a certificate still gets its node a new one, unless the settings say otherwise: a year.
pub const DEFAULT_EXPIRED_GRACE: Duration = Duration::from_secs(365 * 86_400);

#[cfg(test)]
mod tests;
