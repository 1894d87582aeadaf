//! Replacing the root certificate: what may become the new one, what that starts, and how far it is.
//!
//! The rules are those of Docker Swarm. A certificate comes with its key, alone, and lasts for a year at least. The present
//! certificate ends a rotation; the target of the one under way lets it go on; any other one is signed by the present root
//! and becomes the target. Two roots of one swarm never share a key: which of them signed a node's certificate could not
//! be told.
//!
//! Asking nodes for new certificates, and the end, are the leader's business (`ca::rotation`).

use std::collections::BTreeSet;

use crate::codec::digest128;
use crate::pki::{self, JoinToken, PkiError, RootCa, RootFacts};
use crate::store::State;
use crate::sys::entropy::Entropy;
use crate::types::api::{MAX_ROTATION_NODES, NewRoot, RootCaReport, RootCertificate, RotationNode, RotationReport};
use crate::types::error::{Code, Status};
use crate::types::object::{
    Cluster, JoinTokens, Node, NodeState, RootRotation, RotationProgress, Sensitive, Standing, leaves_majority,
};
use crate::types::{ChangeId, Kind, MemberRole, NodeId, Object, Role, Timestamp};

use super::write::{No, resolve};
use super::{Context, report};

/// The cluster object with the rotation in it that this asks for.
pub(super) fn rotate(
    state: &State,
    root: &NewRoot,
    skip: &[String],
    resume: bool,
    change: ChangeId,
    now_ms: u64,
) -> Result<Cluster, No> {
    let successor = successor(root)?;
    let mut cluster = state.cluster().ok_or_else(|| No::Now(not_yet()))?.clone();
    let skip = nodes(state, skip)?;
    if let (true, Some(rotation)) = (resume, &mut cluster.root_ca.rotation) {
        rotation.skip.extend(skip);
        check_majority(state, &rotation.skip)?;
        return Ok(cluster);
    }
    let current = pki::root_facts(&cluster.root_ca.certificate).map_err(|error| No::Now(broken(&error)))?;
    if current.iter().any(|current| current.pem == successor.facts.pem) {
        // The present root: a rotation ends where it began, and a key that was lost is there again.
        if !skip.is_empty() {
            let message = "the present root certificate needs no rotation, so there is nobody to skip";
            return Err(No::Now(Status::new(Code::InvalidArgument, message).with_hint("leave out --skip")));
        }
        cluster.root_ca.rotation = None;
        cluster.root_ca.key = root.key.clone();
        return Ok(cluster);
    }
    successor.check_lifetime(now_ms)?;
    if current.iter().any(|current| current.issuer == successor.facts.issuer) {
        return Err(No::Now(identical_key("the present root certificate")));
    }
    if let Some(rotation) = &mut cluster.root_ca.rotation {
        if rotation.certificate == successor.facts.pem {
            rotation.key = root.key.clone();
            rotation.skip.extend(skip);
            check_majority(state, &rotation.skip)?;
            return Ok(cluster);
        }
        if rotation.issuer == successor.facts.issuer {
            return Err(No::Now(identical_key("the target of the rotation under way")));
        }
    }
    check_majority(state, &skip)?;
    let join_tokens = checked_tokens(&root.join_tokens, &successor.facts.pem)?;
    let cross_signed = cross_signed(&cluster, &successor, change, now_ms)?;
    cluster.root_ca.rotation = Some(RootRotation {
        certificate: successor.facts.pem,
        key: root.key.clone(),
        cross_signed_certificate: cross_signed,
        issuer: successor.facts.issuer,
        join_tokens,
        started_at: Timestamp(now_ms),
        skip,
    });
    Ok(cluster)
}

/// A root that may become the swarm's as far as it alone can tell.
struct Successor {
    facts: RootFacts,
    certificate: String,
    key: Sensitive,
}

fn successor(root: &NewRoot) -> Result<Successor, Status> {
    let invalid = |message: &str| Status::new(Code::InvalidArgument, message);
    match (root.certificate.is_empty(), root.key.0.is_empty()) {
        (false, false) => {}
        (true, false) => {
            let message = "if a signing CA key is provided, the signing CA cert must also be provided";
            return Err(invalid(message).with_hint("`skep ca rotate --cert FILE --key FILE` takes both"));
        }
        (false, true) => {
            let message = "the CA certificate comes without its key: certificate authorities outside the swarm are not \
                           supported, so the swarm must hold the key";
            return Err(invalid(message).with_hint("`skep ca rotate --cert FILE --key FILE` takes both"));
        }
        (true, true) => {
            return Err(invalid("no root certificate is given").with_hint("`skep ca rotate` makes one by itself"));
        }
    }
    let facts = pki::root_facts(&root.certificate).map_err(Status::from)?;
    let Ok([facts]) = <[RootFacts; 1]>::try_from(facts) else {
        let message = "the desired CA certificate cannot contain multiple certificates";
        return Err(invalid(message).with_hint("give the root alone, without the certificates above or below it"));
    };
    let successor = Successor { facts, certificate: root.certificate.clone(), key: root.key.clone() };
    successor.load()?;
    if successor.facts.path_length == Some(0) {
        let message = "the CA certificate may sign nodes only, not the root that is to follow it (path length 0): the \
                       swarm could never leave it";
        return Err(invalid(message).with_hint(PkiError::NoSuccessor.hint()));
    }
    Ok(successor)
}

impl Successor {
    fn load(&self) -> Result<RootCa, Status> {
        let unreadable = || Status::from(PkiError::Unreadable { what: "root key" });
        let key = std::str::from_utf8(&self.key.0).map_err(|_| unreadable())?;
        Ok(RootCa::load(&self.certificate, key)?)
    }

    fn check_lifetime(&self, now_ms: u64) -> Result<(), Status> {
        let (begin, end) = (Timestamp(self.facts.not_before_ms), Timestamp(self.facts.not_after_ms));
        let (message, hint) = if begin.0 > now_ms {
            (
                format!("the CA certificate is not valid before {begin}, and it is {}", Timestamp(now_ms)),
                "compare the clocks of the manager and of the machine that it was made on (`date -u`)",
            )
        } else if end.0 < now_ms.saturating_add(MIN_LIFETIME_MS) {
            (
                format!("CA certificate expires too soon: at {end}, and it must last for a year"),
                "make it for 20 years, as `skep ca rotate` alone does",
            )
        } else {
            return Ok(());
        };
        Err(Status::new(Code::InvalidArgument, message).with_hint(hint))
    }
}

/// The new root signed by the present one, after a rehearsal: certificates that nodes refuse would be found out too late.
fn cross_signed(cluster: &Cluster, successor: &Successor, change: ChangeId, now_ms: u64) -> Result<String, No> {
    let root_ca = &cluster.root_ca;
    let key = std::str::from_utf8(&root_ca.key.0).unwrap_or_default();
    let current = RootCa::load(&root_ca.certificate, key).map_err(|error| No::Now(broken(&error)))?;
    let entropy = &mut Derived { change, blocks: 0 };
    let cross_signed = match current.cross_sign(&successor.load()?, entropy) {
        Ok(cross_signed) => cross_signed,
        Err(PkiError::NoSuccessor) => {
            let message = "the present root certificate may sign nodes only, not the root that is to follow it (path \
                           length 0)";
            let hint = "begin a new swarm with `skep run` on an empty data directory, and let the nodes join it";
            return Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint(hint)));
        }
        Err(error) => return Err(No::Now(error.into())),
    };
    let rehearsed = successor.load()?.succeeding(cross_signed.clone());
    rehearsed.rehearse(&root_ca.certificate, cluster.id, now_ms, entropy).map_err(|error| No::Now(error.into()))?;
    Ok(cross_signed)
}

fn nodes(state: &State, references: &[String]) -> Result<BTreeSet<NodeId>, No> {
    let node = |reference: &String| Ok(NodeId(resolve(state, Kind::Node, reference)?.object.id().0));
    references.iter().map(node).collect()
}

/// Skipped nodes are cut off when the rotation ends. If those left over are no majority then, the swarm stops with it.
fn check_majority(state: &State, skip: &BTreeSet<NodeId>) -> Result<(), No> {
    let voters = voters(state);
    let (lost, all) = (skip.intersection(&voters).count(), voters.len());
    if leaves_majority(all, lost) {
        return Ok(());
    }
    let (left, majority) = (all - lost, all / 2 + 1);
    let message = format!(
        "skipping {lost} of {all} managers that vote would leave {left}, and {majority} are needed: the swarm would stop"
    );
    Err(No::Now(Status::new(Code::FailedPrecondition, message).with_hint("start those managers again, and skip fewer")))
}

fn checked_tokens(tokens: &JoinTokens, root_pem: &str) -> Result<JoinTokens, Status> {
    let fits = |text: &str| text.parse::<JoinToken>().is_ok_and(|token| token.verify_root(root_pem).is_ok());
    if fits(&tokens.worker) && fits(&tokens.manager) && !pki::same_secret(&tokens.worker, &tokens.manager) {
        return Ok(tokens.clone());
    }
    let message = "the request does not hold two different join tokens for the new root";
    Err(Status::new(Code::InvalidArgument, message).with_hint("use a command line of the same version as the manager"))
}

fn identical_key(whose: &str) -> Status {
    Status::new(Code::InvalidArgument, format!("Cannot update to a cert with an identical key: it is that of {whose}"))
        .with_hint("make a new key with the new certificate")
}

fn broken(error: &PkiError) -> Status {
    let message =
        format!("the swarm's root key or certificate is unusable, so that it cannot sign its successor: {error}");
    Status::new(Code::FailedPrecondition, message)
        .with_hint("`skep ca rotate --cert FILE --key FILE` with the present certificate gives the swarm its key again")
}

fn not_yet() -> Status {
    Status::new(Code::FailedPrecondition, "the swarm has no root certificate yet")
        .with_hint("`skep status` shows how far this manager is")
}

/// What `skep ca show` tells.
pub(super) fn report(state: &State, context: &Context) -> Result<RootCaReport, Status> {
    let root_ca = &state.cluster().ok_or_else(not_yet)?.root_ca;
    let rotation = root_ca.rotation.as_ref().map(|rotation| {
        let progress = progress(state, rotation);
        Ok::<_, Status>(RotationReport {
            root: facts(&rotation.certificate)?.into_iter().next().ok_or_else(not_yet)?,
            started_at: rotation.started_at,
            total: progress.total,
            converged: progress.converged,
            waiting: progress.waiting.len() as u64,
            waiting_for: named(state, context, rotation, &progress.waiting),
            skipped: named(state, context, rotation, &progress.skipped),
        })
    });
    Ok(RootCaReport {
        digest: root_ca.digest.clone(),
        roots: facts(&root_ca.certificate)?,
        has_key: !root_ca.key.0.is_empty(),
        rotation: rotation.transpose()?,
    })
}

/// A line for `skep status` while a rotation is under way.
pub(super) fn warning(state: &State, context: &Context) -> Option<String> {
    let rotation = state.cluster()?.root_ca.rotation.as_ref()?;
    let progress = progress(state, rotation);
    let mut names: Vec<String> = named(state, context, rotation, &progress.waiting)
        .into_iter()
        .take(MAX_WARNED)
        .map(|node| if node.connected == Some(false) { format!("{} (not reachable)", node.name) } else { node.name })
        .collect();
    if progress.waiting.len() > names.len() {
        names.push(format!("{} more", progress.waiting.len() - names.len()));
    }
    let waiting = if names.is_empty() { String::new() } else { format!(", waiting for {}", names.join(", ")) };
    Some(format!(
        "the root certificate is being replaced since {}: {} of {} nodes have certificates of the new one{waiting}; `skep \
         ca show` tells more",
        rotation.started_at, progress.converged, progress.total
    ))
}

fn progress(state: &State, rotation: &RootRotation) -> RotationProgress {
    rotation.progress(state.iter(Kind::Node).filter_map(|stored| node_of(&stored.object)), &voters(state))
}

/// The first of them in words: there may be as many as there are nodes.
fn named(state: &State, context: &Context, rotation: &RootRotation, list: &[(NodeId, Standing)]) -> Vec<RotationNode> {
    let known = |id: NodeId| node_of(&state.get(Kind::Node, id.into())?.object);
    let since = |node: &Node, standing: Standing| match standing {
        Standing::NotAsked => rotation.started_at,
        _ => node.meta.updated_at.max(rotation.started_at),
    };
    let in_order = list.iter().filter_map(|(id, standing)| {
        let node = known(*id)?;
        let is_there = connected(state, context, node) != Some(false);
        Some((node.role != Role::Manager, is_there, since(node, *standing), *id, *standing))
    });
    let mut in_order: Vec<_> = in_order.collect();
    in_order.sort_unstable_by_key(|(worker, is_there, since, id, _)| (*worker, *is_there, *since, *id));
    let first = in_order.into_iter().take(MAX_ROTATION_NODES);
    let in_words = first.filter_map(|(_, _, since, id, standing)| {
        let node = known(id)?;
        Some(RotationNode {
            node_id: id,
            name: report::name(state, context, id),
            role: node.role,
            standing,
            since,
            connected: connected(state, context, node),
            error: match standing {
                Standing::Failed => node.certificate.error.clone(),
                _ => String::new(),
            },
            in_skip_list: rotation.skip.contains(&id),
        })
    });
    in_words.collect()
}

fn connected(state: &State, context: &Context, node: &Node) -> Option<bool> {
    if state.member_of(node.id).is_some() {
        return Some(node.id == context.node_id || context.raft.reachable.contains(&node.id));
    }
    match node.status.state {
        NodeState::Ready => Some(true),
        NodeState::Down | NodeState::Disconnected => Some(false),
        NodeState::Unknown => None,
    }
}

fn facts(roots_pem: &str) -> Result<Vec<RootCertificate>, Status> {
    let roots = pki::root_facts(roots_pem).map_err(|error| broken(&error))?;
    let described = roots.into_iter().map(|facts| RootCertificate {
        digest: pki::root_digest(&facts.pem),
        issuer: facts.issuer,
        subject: facts.subject,
        not_before: Timestamp(facts.not_before_ms),
        not_after: Timestamp(facts.not_after_ms),
        certificate: facts.pem,
    });
    Ok(described.collect())
}

fn voters(state: &State) -> BTreeSet<NodeId> {
    let members = state.members().values();
    members.filter(|member| member.role == MemberRole::Voter).map(|member| member.node_id).collect()
}

fn node_of(object: &Object) -> Option<&Node> {
    match object {
        Object::Node(node) => Some(node),
        _ => None,
    }
}

/// Bytes that differ from change to change and are the same for one: for the serial number of the certificate, which must
/// be unique and need not be secret. Nothing here draws on chance.
struct Derived {
    change: ChangeId,
    blocks: u64,
}

impl Entropy for Derived {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(16) {
            let block = digest128(&[b"rotation", &self.change.0.to_le_bytes(), &self.blocks.to_le_bytes()]);
            self.blocks += 1;
            chunk.copy_from_slice(&block.to_le_bytes()[..chunk.len()]);
        }
    }
}

/// A root lasts at least this long when it becomes the target: a year, as in Docker Swarm.
const MIN_LIFETIME_MS: u64 = 365 * 86_400_000;

/// Nodes that a line of `skep status` names.
const MAX_WARNED: usize = 5;
