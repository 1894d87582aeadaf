//! The certificate authority: hands out the root certificate and signs newcomers' requests.
//!
//! Three calls, served by the leader, for anybody who can connect: [`get_root`], [`issue`] and [`status`]. A newcomer
//! without a certificate asks for the root and checks it against its join token, sends a signing request with the
//! token, and then asks for its certificate until it is there. [`found`] does all of that at once for the first manager,
//! who has nobody to ask.
//!
//! What the rest of the program may rely on:
//!
//! - Nothing here writes: [`issue`] returns the [`Change`] that makes the node, and only when that is committed does the
//!   node exist. The certificate it holds is handed out by [`status`], from the store, and so never before.
//! - The node's id derives from the change's id. A newcomer that repeats its request under the same change id gets the
//!   same node: the store answers the repetition, and the certificate signed the second time is dropped with it.
//! - The role comes from the token that matched, the subject from the store; nothing in a request but its public key
//!   reaches a certificate.
//! - No answer holds a private key or a token.
//!
//! Everything is a function of the request, the [`Directory`], time and entropy.
//!
//! Not here: certificates for nodes that have one already (renewal), for nodes that only wait for approval, and new
//! roots. They meet this code in two places: a caller with a certificate is told from a newcomer before [`issue`] looks
//! for a token, and [`IssuanceState`] has the states in between, for which [`status`] asks the caller to come again.

use std::time::Duration;

use crate::pki::{self, JoinToken, NodeIdentity, PkiError, PrivateKey, RootCa, same_secret};
use crate::sys::entropy::Entropy;
use crate::types::api::{Answer, IssueRequest};
use crate::types::object::{
    self, Availability, Certificate, Cluster, IssuanceState, JoinTokens, Node, NodeDescription, Sensitive,
};
use crate::types::{Change, ChangeId, ClusterId, Code, NodeId, Object, Operation, Role, Status, Timestamp};

/// What the authority needs to know of the store, at one revision.
pub trait Directory {
    /// The cluster object; `None` until the first manager has made it.
    fn cluster(&self) -> Option<Cluster>;
    /// A node.
    fn node(&self, id: NodeId) -> Option<Node>;
}

/// What [`issue`] decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Issue {
    /// Makes the node. `term` is left to the caller.
    pub change: Change,
    /// The node: when the change is committed, [`status`] has its certificate.
    pub node_id: NodeId,
}

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
pub fn get_root(directory: &dyn Directory) -> Result<Answer, Status> {
    let mut cluster = directory.cluster().ok_or_else(starting)?;
    let root = std::mem::take(&mut cluster.root_ca.certificate);
    if root.is_empty() { Err(starting()) } else { Ok(Answer::Root { root }) }
}

/// Signs a newcomer's request.
///
/// # Errors
/// `InvalidArgument` for a bad request or token, `Unavailable` until there is a cluster, `FailedPrecondition` when the
/// swarm cannot sign.
pub fn issue(
    directory: &dyn Directory,
    request: &IssueRequest,
    now_ms: u64,
    entropy: &mut dyn Entropy,
) -> Result<Issue, Status> {
    if request.csr.is_empty() {
        return Err(Status::new(Code::InvalidArgument, "a signing request is needed"));
    }
    check_description(&request.description)?;
    let cluster = directory.cluster().ok_or_else(starting)?;
    let role = role_of_token(&cluster, &request.token)?;
    if request.role.is_some_and(|wanted| wanted != role) {
        let wanted = request.role.unwrap_or(role).name();
        let message = format!("the token is a {} token", role.name());
        let hint = format!("print a {wanted} token on any manager with `skep token show --role {wanted}`");
        return Err(Status::new(Code::InvalidArgument, message).with_hint(hint));
    }
    let root = signer(&cluster)?;

    let node_id = node_of_change(request.change);
    let validity = certificate_validity(&cluster);
    let chain = root.sign_request(&request.csr, node_id, role, cluster.id, now_ms, validity, entropy)?;
    let certificate = issued(role, request.csr.clone(), chain);
    let node = new_node(node_id, request.description.clone(), request.availability, certificate);
    let change = Change {
        id: request.change,
        after: request.after,
        time: Timestamp(now_ms),
        term: None,
        operations: vec![Operation::Create(Object::Node(Box::new(node)))],
    };
    Ok(Issue { change, node_id })
}

/// A node's certificate: the newest there is.
///
/// # Errors
/// `NotFound` when there is no such node, `Unavailable` while its certificate is being made, `FailedPrecondition` when
/// that was refused.
pub fn status(directory: &dyn Directory, node_id: NodeId) -> Result<Answer, Status> {
    let unknown = || Status::new(Code::NotFound, format!("node {node_id} is not part of this swarm"));
    let Certificate { role, state, error, certificate: chain, .. } =
        directory.node(node_id).ok_or_else(unknown)?.certificate;
    match state {
        IssuanceState::Issued | IssuanceState::Rotate => Ok(Answer::Certificate { node_id, chain, role }),
        IssuanceState::Failed => {
            let message = format!("no certificate was issued to node {node_id}: {error}");
            Err(Status::new(Code::FailedPrecondition, message))
        }
        IssuanceState::Unknown | IssuanceState::Pending | IssuanceState::Renew => {
            let message = format!("the certificate of node {node_id} is not issued yet");
            Err(Status::new(Code::Unavailable, message).with_hint("try again in a moment"))
        }
    }
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
    let certificate = issued(Role::Manager, csr, chain_pem);
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

fn issued(role: Role, csr: String, chain: String) -> Certificate {
    Certificate { role, csr, state: IssuanceState::Issued, error: String::new(), certificate: chain }
}

fn new_node(id: NodeId, description: NodeDescription, availability: Availability, certificate: Certificate) -> Node {
    let mut node = Node::new(id, certificate.role);
    node.spec.availability = availability;
    node.description = description;
    node.certificate = certificate;
    node
}

/// The role that a token admits to: the manager's is compared first, and both always, so that the time tells nothing.
fn role_of_token(cluster: &Cluster, token: &Sensitive) -> Result<Role, Status> {
    let tokens = &cluster.root_ca.join_tokens;
    if tokens.manager.is_empty() && tokens.worker.is_empty() {
        return Err(starting());
    }
    let (manager, worker) = (same_secret(&tokens.manager, &token.0), same_secret(&tokens.worker, &token.0));
    if manager {
        Ok(Role::Manager)
    } else if worker {
        Ok(Role::Worker)
    } else {
        let message = "A valid join token is necessary to join this cluster";
        Err(Status::new(Code::InvalidArgument, message)
            .with_hint("print one on any manager with `skep token show --role manager`; tokens change when rotated"))
    }
}

fn signer(cluster: &Cluster) -> Result<RootCa, Status> {
    let root = &cluster.root_ca;
    if root.key.0.is_empty() {
        let message = "this swarm does not hold its root key, so it cannot sign certificates";
        return Err(Status::new(Code::FailedPrecondition, message));
    }
    // A failure is the swarm's, not the newcomer's, and the text could not help it.
    let broken = || Status::new(Code::Internal, "the swarm's root certificate or key is unusable");
    let key = std::str::from_utf8(&root.key.0).map_err(|_| broken())?;
    RootCa::load(&root.certificate, key).map_err(|_| broken())
}

fn certificate_validity(cluster: &Cluster) -> Duration {
    let asked = Duration::from_millis(cluster.spec.ca.node_certificate_expiry_ms);
    if asked < MIN_VALIDITY { DEFAULT_VALIDITY } else { asked }
}

/// A host name is shown on terminals and is not checked by anybody else.
fn check_description(description: &NodeDescription) -> Result<(), Status> {
    let hostname = &description.hostname;
    if hostname.len() > MAX_HOSTNAME_BYTES || hostname.chars().any(char::is_control) {
        let message = format!("a host name has at most {MAX_HOSTNAME_BYTES} bytes and no control characters");
        return Err(Status::new(Code::InvalidArgument, message).with_hint("set another with `skep run --name NODE`"));
    }
    Ok(())
}

fn starting() -> Status {
    Status::new(Code::Unavailable, "the swarm's certificate authority is still starting")
        .with_hint("try again in a moment")
}

/// Validity of a node's certificate unless the swarm's settings say otherwise: 90 days, as swarmkit.
pub const DEFAULT_VALIDITY: Duration = Duration::from_secs(90 * 86_400);

/// Settings below this are taken for the default, as swarmkit does.
pub const MIN_VALIDITY: Duration = Duration::from_secs(3600);

/// The longest host name (RFC 1035 section 3.1).
const MAX_HOSTNAME_BYTES: usize = 253;

#[cfg(test)]
mod tests;
