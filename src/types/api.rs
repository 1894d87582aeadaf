//! Requests and answers: what travels between command line, managers and nodes.
//!
//! Every call is one request body and one answer body, or a stream of answer bodies ([`Call::is_stream`]). Bodies are
//! versioned envelopes of the types here (`codec::envelope`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::object::{Availability, JoinTokens, Kind, NodeDescription, Object, Profile, Sensitive, Standing};
use super::{
    Caller, ChangeId, ClusterId, Index, Lineage, Member, MemberRole, NodeId, ObjectId, Position, RaftId, Revision,
    Role, Term, Timestamp,
};

/// A call, by its number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u16)]
pub enum Call {
    /// [`Query`] to [`Answer`]: reads.
    Query = 1,
    /// [`WriteRequest`] to [`Answer::Written`].
    Write = 2,
    /// [`WatchRequest`] to a stream of [`WatchItem`].
    Watch = 3,
    /// [`Admin`] to [`Answer`]: acts on this manager (transfer, snapshot, leave).
    Admin = 4,
    /// [`BackupRequest`] to a stream: one [`BackupInfo`], then the raw bytes of the state.
    Backup = 5,
    /// Nothing to [`Answer::Diagnosis`]: what this manager knows of its own health, leader or not, member or not.
    Diagnose = 6,
    /// [`UnlockRequest`] to [`Answer::Done`]: gives a locked manager its unlock key.
    Unlock = 7,
    /// [`SnapshotRequest`] to a stream of raw snapshot bytes.
    Snapshot = 16,
    /// [`ResolveAddress`] to [`Answer::Address`].
    ResolveAddress = 17,
    /// Nothing to [`Answer::Done`]: answered once the node takes part.
    Health = 18,
    /// [`JoinRequest`] to [`JoinAnswer`].
    Join = 32,
    /// [`LeaveRequest`] to [`Answer::Done`].
    Leave = 33,
    /// [`SetAddressRequest`] to [`Answer::Done`].
    SetAddress = 34,
    /// Nothing to the root certificate.
    GetRoot = 48,
    /// A signing request to a certificate.
    Issue = 49,
    /// A node id to its certificate.
    CertificateStatus = 50,
    /// [`ReportRequest`] to [`Answer::Done`]: what a node says of itself.
    Report = 51,
    /// [`SessionRequest`] to a stream of [`SessionItem`]: what the swarm tells a node of itself.
    Session = 64,
    /// Nothing to [`Answer::UnlockKey`]: what a manager seals its keys under.
    GetUnlockKey = 52,
}

impl Call {
    /// Every call, for tables and tests.
    pub const ALL: [Self; 19] = [
        Self::Query,
        Self::Write,
        Self::Watch,
        Self::Admin,
        Self::Backup,
        Self::Diagnose,
        Self::Unlock,
        Self::Snapshot,
        Self::ResolveAddress,
        Self::Health,
        Self::Join,
        Self::Leave,
        Self::SetAddress,
        Self::GetRoot,
        Self::Issue,
        Self::CertificateStatus,
        Self::Report,
        Self::Session,
        Self::GetUnlockKey,
    ];

    /// The call of this number.
    pub fn from_number(number: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|call| *call as u16 == number)
    }

    /// Whether the answer is a stream.
    pub const fn is_stream(self) -> bool {
        matches!(self, Self::Watch | Self::Backup | Self::Snapshot | Self::Session)
    }
}

/// The first frame on a connection, both ways between managers, from the manager only on others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The wire protocol spoken.
    pub protocol: u16,
    /// The swarm.
    pub cluster_id: ClusterId,
    /// The sender.
    pub node_id: NodeId,
    /// Its Raft id; `None` before it has joined.
    pub raft_id: Option<RaftId>,
    /// Its history.
    pub lineage: Lineage,
    /// How often it has started; raised and synced at each start.
    pub boot: u64,
    /// Random per process: the same boot with another nonce is a copied directory.
    pub nonce: u64,
    /// The last durable log entry, so that a member that was rolled back is noticed.
    pub last: Position,
    /// Where it listens.
    pub advertise: String,
    /// The newest format of replicated bytes it understands.
    pub feature_level: u32,
    /// The revision its store is at; callers make change ids after it.
    pub revision: Revision,
}

/// The protocol number in [`Hello`].
pub const PROTOCOL: u16 = 1;
/// The feature level this build writes and understands.
pub const FEATURE_LEVEL: u32 = 1;

/// A read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Query {
    /// Answer from the local store at once, leader or not; else the answer is linearizable.
    pub stale: bool,
    /// What to read.
    pub what: QueryKind,
}

impl Query {
    /// Of an encoded query for a list, whether it may be stale; `None` of everything else. Told from its first bytes: a
    /// manager asks this of every query.
    pub fn list_is_stale(envelope: &[u8]) -> Option<bool> {
        // The version of the envelope, `stale`, the number of the variant.
        match envelope {
            [_, stale, 3, 0, 0, 0, ..] => Some(*stale != 0),
            _ => None,
        }
    }
}

/// Objects in one page of a list.
pub const PAGE_OBJECTS: usize = 1000;
/// Encoded bytes in one page of a list; a page holds at least one object.
pub const PAGE_BYTES: usize = 1 << 20;

/// What a [`Query`] reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum QueryKind {
    /// This manager's state; always local.
    Status,
    /// The Raft group as this manager knows it; always local.
    Members,
    /// Raft's progress; always local.
    Raft,
    /// Objects of a kind, in order of id, those after the given one: a page of at most [`PAGE_OBJECTS`] objects and
    /// about [`PAGE_BYTES`]. The id of a page's last object asks for the next, or what [`Answer::Searched`] says.
    List(Kind, Filter, Option<ObjectId>),
    /// One object by name, id or unambiguous id prefix.
    Inspect(Kind, String),
    /// The join token for a role.
    Token(Role),
    /// What became of a change.
    Change(ChangeId, Revision),
    /// The root certificate, and how far its rotation is.
    RootCa,
    /// The key that unlocks managers.
    UnlockKey,
}

/// Which objects of a kind. Several values of one field mean any; several fields mean all, except that for secrets,
/// configs, resources and extensions `names`, `name_prefixes` and `id_prefixes` are alternatives to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// Whole names, ignoring case.
    pub names: Vec<String>,
    /// Beginnings of names, ignoring case.
    pub name_prefixes: Vec<String>,
    /// Beginnings of ids.
    pub id_prefixes: Vec<String>,
    /// Labels that must be there; with a value, have it.
    pub labels: BTreeMap<String, Option<String>>,
    /// Resources: of these kinds.
    pub kinds: Vec<String>,
}

/// A write, to be retried with the same `change` and `after` until it has a definite answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WriteRequest {
    /// Fixed before the first attempt.
    pub change: ChangeId,
    /// A revision known before the first attempt (the connection's hello tells one).
    pub after: Revision,
    /// What to write.
    pub write: Write,
}

/// What a [`WriteRequest`] writes. An object argument is a name, an id or an unambiguous id prefix.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Write {
    /// Makes a config.
    CreateConfig {
        /// Its name.
        name: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Its data.
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Makes a secret.
    CreateSecret {
        /// Its name.
        name: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// The secret.
        data: Sensitive,
    },
    /// Changes the labels of a config or secret.
    UpdateLabels {
        /// Config or secret.
        kind: Kind,
        /// Which.
        object: String,
        /// Set these.
        set: BTreeMap<String, String>,
        /// Remove these.
        remove: Vec<String>,
        /// Only if the object still has this version.
        if_version: Option<Revision>,
    },
    /// Registers a kind of resource.
    CreateExtension {
        /// Its name.
        name: String,
        /// For people.
        description: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
    },
    /// Makes an object of a registered kind.
    CreateResource {
        /// Its name.
        name: String,
        /// The extension's name.
        kind: String,
        /// Its labels.
        labels: BTreeMap<String, String>,
        /// Its custom indices.
        indices: BTreeMap<String, String>,
        /// Its bytes.
        #[serde(with = "serde_bytes")]
        payload: Vec<u8>,
    },
    /// Replaces the payload (and, if given, labels and indices) of a resource.
    UpdateResource {
        /// Which.
        object: String,
        /// Its new bytes; `None` keeps them.
        payload: Option<Sensitive>,
        /// Its new labels; `None` keeps them.
        labels: Option<BTreeMap<String, String>>,
        /// Its new indices; `None` keeps them.
        indices: Option<BTreeMap<String, String>>,
        /// Only if the object still has this version.
        if_version: Option<Revision>,
    },
    /// Removes an object.
    Remove {
        /// Config, secret, extension or resource.
        kind: Kind,
        /// Which.
        object: String,
        /// Only if the object still has this version.
        if_version: Option<Revision>,
    },
    /// Changes the swarm's settings; `None` keeps a setting.
    UpdateCluster {
        /// Log bytes between snapshots.
        snapshot_bytes: Option<u64>,
        /// Log bytes kept for followers that lag.
        keep_bytes: Option<u64>,
        /// Validity of node certificates, milliseconds.
        node_certificate_expiry_ms: Option<u64>,
        /// For so long after its end a certificate still gets its node a new one, milliseconds.
        expired_grace_ms: Option<u64>,
        /// Nodes that join wait until a person approves them.
        approve_joins: Option<bool>,
        /// Only if the cluster object still has this version.
        if_version: Option<Revision>,
        /// Whether managers seal their keys under an unlock key.
        autolock: Option<Autolock>,
    },
    /// Replaces the swarm's join token for a role. Nodes that have joined keep their certificates.
    RotateToken {
        /// The role that it admits to.
        role: Role,
        /// The new token, made by the caller for the swarm's root, so that a repeated request makes no other.
        token: Sensitive,
    },
    /// Makes a join token with conditions.
    CreateToken {
        /// The role that it admits to.
        role: Role,
        /// Labels of the nodes that it admits.
        labels: BTreeMap<String, String>,
        /// It ends so long after it was made, milliseconds.
        ttl_ms: Option<u64>,
        /// It admits so many nodes.
        uses: Option<u32>,
        /// Its text, made by the caller for the swarm's root. The swarm keeps a digest of it.
        token: Sensitive,
    },
    /// Removes a join token with conditions.
    RemoveToken {
        /// Its id.
        token: String,
    },
    /// Lets a node in that waits for it, or back in, once, when its certificate expired longer ago than the grace.
    ApproveNode {
        /// Name, id or prefix.
        node: String,
    },
    /// Asks something else of a node; `None` leaves it.
    UpdateNode {
        /// Which.
        node: String,
        /// The role it should have.
        role: Option<Role>,
        /// Whether it takes tasks.
        availability: Option<Availability>,
        /// Set these labels.
        set: BTreeMap<String, String>,
        /// Remove these.
        remove: Vec<String>,
        /// Only if the object still has this version.
        if_version: Option<Revision>,
    },
    /// Removes a node: one that is down and no manager, or with `force` any. A manager is demoted first, by the leader,
    /// and is gone when that is done.
    RemoveNode {
        /// Which.
        node: String,
        /// Also one that is up, or a manager.
        force: bool,
    },
    /// Replaces the root certificate: begins a rotation, gives the one under way another target, or ends it when the
    /// certificate is the present one.
    RotateRoot {
        /// The root to rotate to.
        root: NewRoot,
        /// Nodes that the rotation does not wait for. They have to join again when it has ended.
        skip: Vec<String>,
        /// A rotation that is under way goes on to its own target, and only `skip` counts; `root` is for when there is
        /// none.
        resume: bool,
    },
    /// Replaces the unlock key; refused while managers do not lock.
    RotateUnlockKey {
        /// The new key, 32 bytes.
        key: Sensitive,
    },
}

/// Whether managers seal their keys under an unlock key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Autolock {
    /// They do not.
    Off,
    /// They do.
    On {
        /// The key, 32 bytes, if the swarm has none yet: that one stays.
        key: Sensitive,
    },
}

/// A root certificate to rotate to, with all that takes randomness: it comes from whoever asks, so that a repeated
/// request asks for the same. `client::own_root` makes one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRoot {
    /// The certificate, PEM, without any text around it.
    pub certificate: String,
    /// Its key, PKCS#8 PEM.
    pub key: Sensitive,
    /// The swarm's join tokens once the rotation has ended, made for this certificate.
    pub join_tokens: JoinTokens,
}

/// Acts on the manager that is asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Admin {
    /// Hands leadership to a voter, or to the best one. Forwarded to the leader.
    Transfer {
        /// Name, node id or prefix.
        to: Option<String>,
    },
    /// Writes a snapshot on this manager now and compacts its log.
    Snapshot,
    /// Takes this manager out of the Raft group and stops it.
    Leave {
        /// Even if quorum would be lost or no leader can be asked.
        force: bool,
    },
    /// Seals what this manager writes from now on with a new data key, and lets go of the one before.
    RotateDataKey,
}

/// Gives a locked manager its unlock key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockRequest {
    /// The key, 32 bytes.
    pub key: Sensitive,
}

/// Begins a watch. A change is one item, however large it is, and waits until the watcher has granted so many bytes: a
/// watcher grants a frame's worth (`limits::MAX_FRAME_BYTES`) more than it ever leaves ungranted.
///
/// With a filter, an update is shown when the object matches after it or matched before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WatchRequest {
    /// Resume after this position; `None` begins with a snapshot of matching objects.
    pub from: Option<(Lineage, Revision)>,
    /// Begin with the present, without a snapshot. Ignored with `from`.
    pub skip_snapshot: bool,
    /// Kinds of object; empty means all.
    pub kinds: Vec<Kind>,
    /// Which objects of them.
    pub filter: Filter,
    /// Send the object's former contents too.
    pub include_old: bool,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was made.
    Create,
    /// It was replaced.
    Update,
    /// It was removed.
    Remove,
}

/// One object's part of a change, redacted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WatchEvent {
    /// What happened.
    pub action: Action,
    /// The object after it; for a removal, the object removed.
    pub object: Object,
    /// The object before an update, on request.
    pub old: Option<Object>,
}

/// One item of a watch stream.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum WatchItem {
    /// A part of the snapshot, in order of kind and id.
    Snapshot {
        /// Objects.
        objects: Vec<Object>,
    },
    /// The snapshot is complete; events follow from the next revision.
    Begin {
        /// The history the revision belongs to.
        lineage: Lineage,
        /// The snapshot's revision.
        revision: Revision,
    },
    /// One change: never split, never merged.
    Change {
        /// Its revision.
        revision: Revision,
        /// Its events that match, in order.
        events: Vec<WatchEvent>,
    },
    /// Everything up to here has been sent.
    Mark {
        /// The revision.
        revision: Revision,
    },
}

/// Asks for everything: all that is replicated, secrets and keys with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupRequest {
    /// From the local store as it is, leader or not; else it has everything that was committed when it was asked for.
    pub stale: bool,
}

/// What a backup is of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupInfo {
    /// When it was made, by the clock of the manager that made it.
    pub created_at: Timestamp,
    /// The version of skep that made it.
    pub version: String,
    /// The manager that made it.
    pub node_id: NodeId,
    /// The swarm.
    pub cluster_id: ClusterId,
    /// Its history.
    pub lineage: Lineage,
    /// The last log entry in it.
    pub position: Position,
    /// The revision of the state.
    pub revision: Revision,
    /// The members of the Raft group.
    pub members: Vec<Member>,
    /// The format of the replicated bytes.
    pub feature_level: u32,
    /// The hash of the state.
    pub hash: u128,
}

/// Asks for a snapshot file of the sender's store, for a follower that lags too far.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotRequest {
    /// The snapshot that the raft message described.
    pub position: Position,
    /// Continue after so many bytes.
    pub offset: u64,
}

/// Asks where a member listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolveAddress {
    /// The member.
    pub raft_id: RaftId,
}

/// Asks to become a member. The caller's certificate says who.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Where the joiner listens; an unspecified IP is replaced by the one observed.
    pub advertise: String,
    /// The newest format of replicated bytes it understands.
    pub feature_level: u32,
}

/// The joiner's place in the Raft group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinAnswer {
    /// Its Raft id.
    pub raft_id: RaftId,
    /// The address it was given, with the IP observed if it named none.
    pub advertise: String,
    /// The swarm's history.
    pub lineage: Lineage,
    /// The swarm's timing.
    pub profile: Profile,
    /// Everybody, itself included.
    pub members: Vec<Member>,
}

/// Asks to be taken out of the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaveRequest {
    /// Who.
    pub node_id: NodeId,
    /// Even if quorum would be at risk.
    pub force: bool,
}

/// Says where the caller listens now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SetAddressRequest {
    /// `host:port`.
    pub addr: String,
}

/// Asks the CA for a certificate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssueRequest {
    /// Fixed before the first attempt, so that a repeated request gives the same node.
    pub change: ChangeId,
    /// A revision known before the first attempt.
    pub after: Revision,
    /// The signing request, PEM.
    pub csr: String,
    /// The join token.
    pub token: Sensitive,
    /// The role that the node means to take: a token for another one is refused before a node is made.
    pub role: Option<Role>,
    /// What the node says of itself.
    pub description: NodeDescription,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// What a node says of itself once it is up, and again when any of it changes. The caller's certificate says who.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReportRequest {
    /// Fixed before the first attempt.
    pub change: ChangeId,
    /// A revision known before the first attempt.
    pub after: Revision,
    /// Its machine.
    pub description: NodeDescription,
    /// The root that its certificate leads to, as [`SessionRequest::issuer`].
    pub issuer: String,
    /// Where others reach it, `host:port`; empty for a node that listens nowhere: then it is where it was seen.
    pub addr: String,
}

/// Begins a session: a stream of what the swarm wants of the calling node, the first item at once, the others when
/// something in it changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRequest {
    /// The caller's machine.
    pub description: NodeDescription,
    /// The digest of the public key of the root that the caller's certificate leads to, base36; empty if that is not
    /// known.
    pub issuer: String,
}

/// What the swarm wants of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionItem {
    /// The role it has now: its certificate should name it.
    pub role: Role,
    /// The role it is to have.
    pub desired_role: Role,
    /// It has a place in the Raft group.
    pub member: bool,
    /// It should ask for a new certificate now.
    pub renew: bool,
    /// The roots to trust, PEM.
    pub roots: String,
    /// The managers and where they listen.
    pub managers: Vec<(NodeId, String)>,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// A write is committed.
    Written {
        /// The object made, changed or removed. All zero when a change is asked about again so late that this manager
        /// knows only its revision.
        id: ObjectId,
        /// The change's revision.
        revision: Revision,
    },
    /// This manager's state.
    Status(Box<StatusReport>),
    /// The Raft group.
    Members(Vec<MemberReport>),
    /// Raft's progress.
    Raft(Box<RaftReport>),
    /// A page of objects, redacted, in order of id.
    Objects {
        /// The objects.
        objects: Vec<Object>,
        /// There are more after the last of them.
        more: bool,
    },
    /// One object, redacted.
    Object(Box<Object>),
    /// A join token.
    Token(Sensitive),
    /// What became of a change: committed at this revision, refused for this reason, or neither known.
    Change(ChangeReport),
    /// A member's address.
    Address(String),
    /// Who leads after a transfer.
    Leader(NodeId),
    /// A snapshot was written.
    SnapshotWritten {
        /// Its place in the log.
        position: Position,
        /// Its size.
        bytes: u64,
    },
    /// The swarm's root certificate, PEM.
    Root {
        /// One or more certificates.
        root: String,
    },
    /// A node's certificate chain.
    Certificate {
        /// The node.
        node_id: NodeId,
        /// The chain, PEM.
        chain: String,
        /// The role it names.
        role: Role,
    },
    /// A place in the Raft group.
    Joined(Box<JoinAnswer>),
    /// A manager's own health.
    Diagnosis(Box<Diagnosis>),
    /// The root certificate, and how far its rotation is.
    RootCa(Box<RootCaReport>),
    /// What managers seal their keys under.
    UnlockKey {
        /// The key, 32 bytes; `None` while they do not lock.
        key: Option<Sensitive>,
        /// The version of the swarm's settings that say so.
        version: Revision,
    },
    /// A page of objects as in [`Self::Objects`], of a search that took long enough and goes on after this id.
    Searched {
        /// The objects; perhaps none.
        objects: Vec<Object>,
        /// The last object that was looked at.
        after: ObjectId,
    },
}

/// The swarm's root certificate. No secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCaReport {
    /// The digest of what nodes are given to trust, as join tokens show it.
    pub digest: String,
    /// The certificates in it.
    pub roots: Vec<RootCertificate>,
    /// The swarm holds the key.
    pub has_key: bool,
    /// A rotation under way.
    pub rotation: Option<RotationReport>,
}

/// What a root certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootCertificate {
    /// The digest of this certificate, as join tokens show it.
    pub digest: String,
    /// The digest of its public key: the `issuer` of certificates that it signs.
    pub issuer: String,
    /// Its subject.
    pub subject: String,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid through this second.
    pub not_after: Timestamp,
    /// The certificate, PEM.
    pub certificate: String,
}

/// A root rotation under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationReport {
    /// The new root.
    pub root: RootCertificate,
    /// When it became the target.
    pub started_at: Timestamp,
    /// Nodes that have a certificate.
    pub total: u64,
    /// Those of them that use one of the new root.
    pub converged: u64,
    /// How many of the others the rotation waits for.
    pub waiting: u64,
    /// Some of those: managers first, those without a connection before the others; at most [`MAX_ROTATION_NODES`].
    pub waiting_for: Vec<RotationNode>,
    /// Some that it does not wait for, and that have to join again if they are no further when it ends; as many at most.
    pub skipped: Vec<RotationNode>,
}

/// Nodes named in a [`RotationReport`], of either sort.
pub const MAX_ROTATION_NODES: usize = 100;

/// A node that has no certificate of the new root yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RotationNode {
    /// The node.
    pub node_id: NodeId,
    /// Its host name.
    pub name: String,
    /// Its role.
    pub role: Role,
    /// How far it is.
    pub standing: Standing,
    /// Since when it is no further.
    pub since: Timestamp,
    /// Whether the manager that answers is connected to it; `None` when that is not known.
    pub connected: Option<bool>,
    /// Why its request was refused, or empty.
    pub error: String,
    /// It was to be skipped. It is waited for all the same while too few managers would be left for a majority without it.
    pub in_skip_list: bool,
}

/// What became of a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ChangeReport {
    /// Committed.
    Committed(Revision),
    /// Refused.
    Refused(String),
    /// Not remembered: it was never applied, as far as the ring reaches back.
    NotApplied,
    /// The ring does not reach back far enough to say.
    Forgotten,
}

/// A member's state in the Raft group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RaftState {
    /// Leads.
    Leader,
    /// Follows.
    Follower,
    /// Asks for votes.
    Candidate,
    /// Catches up before it votes.
    Learner,
    /// Has no log yet.
    Joining,
    /// Takes no part: a worker has no log.
    Worker,
}

/// What raft knows of itself; refreshed by the raft thread, read by anyone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftReport {
    /// This member.
    pub raft_id: RaftId,
    /// What it does.
    pub state: RaftState,
    /// Who leads, if known.
    pub leader: Option<RaftId>,
    /// Who led last, if it is not known who leads now.
    pub last_leader: Option<RaftId>,
    /// Milliseconds since a leader was known; zero while one is.
    pub leaderless_ms: u64,
    /// This node leads and has applied its own term's first entry.
    pub serving: bool,
    /// The term.
    pub term: Term,
    /// The last entry known to be committed.
    pub commit: Index,
    /// The last entry applied.
    pub applied: Index,
    /// The first entry still in the log.
    pub first: Index,
    /// The last entry.
    pub last: Index,
    /// The last snapshot.
    pub snapshot: Index,
    /// Log bytes since the last snapshot.
    pub log_bytes: u64,
    /// Elections this node started since its process began.
    pub elections: u64,
    /// Voters and learners as of `applied`.
    pub members: Vec<Member>,
    /// What the leader knows of each member; empty elsewhere.
    pub progress: Vec<Progress>,
    /// Nodes this manager has a live connection to, itself included.
    pub reachable: Vec<NodeId>,
    /// What is wrong with the replicas' agreement, for people; empty when all is well.
    pub alarms: Vec<String>,
    /// How long the disk has not finished the oldest write that was ordered, milliseconds.
    pub unsynced_ms: u64,
    /// How much room there is for the log.
    pub disk: DiskSpace,
}

/// One thing that happened to raft.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RaftEvent {
    /// How long ago, milliseconds.
    pub age_ms: u64,
    /// What, in one word, such as `election`, `slow-sync` or `snapshot-failed`.
    pub kind: String,
    /// For people.
    pub text: String,
}

/// What a manager knows of its own health. No secrets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// The node.
    pub node_id: NodeId,
    /// How often it has started.
    pub boot: u64,
    /// How long its process runs.
    pub uptime_ms: u64,
    /// It has its place in the swarm.
    pub joined: bool,
    /// What raft says of itself.
    pub raft: RaftReport,
    /// Syncs of the log since the process began.
    pub sync_count: u64,
    /// The median of them, microseconds.
    pub sync_p50_us: u64,
    /// 99 in a hundred are faster, microseconds.
    pub sync_p99_us: u64,
    /// The queues between its threads.
    pub queues: Vec<QueueReport>,
    /// What happened to raft lately, oldest first.
    pub events: Vec<RaftEvent>,
    /// Everything it counts, in Prometheus text format.
    pub metrics: String,
}

/// A queue between two threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueReport {
    /// Its name.
    pub name: String,
    /// What waits in it now.
    pub depth: u64,
    /// What fits; zero when it is bounded otherwise.
    pub capacity: u64,
}

/// How a manager's disk is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskLevel {
    /// There is room.
    #[default]
    Ok,
    /// A leader refuses changes; what is in the log already still fits.
    Low,
    /// The next segment of the log cannot be made without the reserve, or the reserve is too small for a snapshot: a
    /// follower takes no entries either.
    Full,
}

/// How much room there is for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSpace {
    /// What that means.
    pub level: DiskLevel,
    /// Free bytes where the log is.
    pub free_bytes: u64,
    /// Bytes kept for snapshots on a full disk.
    pub reserve_bytes: u64,
    /// Segments of the log, the one that is written among them.
    pub segments: u64,
    /// Bytes to be freed until changes are taken again; zero while they are.
    pub needed_bytes: u64,
    /// The log's directory.
    pub dir: String,
}

/// How far a member is, as the leader knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The member.
    pub raft_id: RaftId,
    /// The last entry known to be on its disk.
    pub matched: Index,
    /// `probe`, `replicate` or `snapshot`.
    pub state: String,
    /// Milliseconds since it last sent a message of raft's; `None` when it has sent none yet.
    pub heard_ms: Option<u64>,
}

/// A link to a peer; refreshed by the net thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkReport {
    /// The peer.
    pub node_id: NodeId,
    /// Where it was reached or reached from.
    pub addr: String,
    /// A connection is up.
    pub alive: bool,
    /// Round trip of the last ping, microseconds; zero if none returned yet.
    pub rtt_us: u64,
    /// Its wall clock minus ours, milliseconds.
    pub clock_offset_ms: i64,
    /// Its median sync time, microseconds, as it reports it.
    pub sync_us: u64,
    /// Its disk is low or full, as it reports it.
    pub disk_low: bool,
}

/// `skep status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// This node.
    pub node_id: NodeId,
    /// Its name.
    pub name: String,
    /// The swarm.
    pub cluster_id: ClusterId,
    /// `ready`, `no leader`, `joining`, `locked`; of a worker `ready` or `no manager`.
    pub state: String,
    /// What this member does.
    pub role: RaftState,
    /// The leader's node id, if known.
    pub leader: Option<NodeId>,
    /// The leader's name, if known.
    pub leader_name: String,
    /// The term.
    pub term: Term,
    /// The last entry known to be committed.
    pub commit: Index,
    /// The last entry applied.
    pub applied: Index,
    /// The store's revision.
    pub revision: Revision,
    /// How many members vote.
    pub voters: u32,
    /// How many voters this manager has a live connection to, itself included.
    pub reachable: u32,
    /// How many voters may fail.
    pub tolerates: u32,
    /// Milliseconds since a leader was known; zero while one is.
    pub leaderless_ms: u64,
    /// The version of this manager.
    pub version: String,
    /// Warnings for the operator, such as an even number of voters.
    pub warnings: Vec<String>,
    /// Links to peers.
    pub links: Vec<LinkReport>,
    /// The manager that a worker is in touch with: who, and where.
    pub manager: Option<(NodeId, String)>,
    /// This node's certificate; `None` until it has one.
    pub certificate: Option<CertificateReport>,
}

/// A node's own certificate, and how its renewal goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateReport {
    /// The role it names.
    pub role: Role,
    /// Its end.
    pub expires_at: Timestamp,
    /// When the node asks for the next one, unless it is told to before.
    pub renews_at: Timestamp,
    /// Why the last attempt to get a new one came to nothing; empty when it did not.
    pub trouble: String,
}

/// One line of `skep members`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberReport {
    /// The member's identity.
    pub node_id: NodeId,
    /// Its Raft id.
    pub raft_id: RaftId,
    /// Its host name.
    pub name: String,
    /// Where it listens.
    pub addr: String,
    /// Whether it votes.
    pub role: MemberRole,
    /// Whether it leads.
    pub leader: bool,
    /// Whether this manager has a live connection to it.
    pub reachable: bool,
    /// How far its log is known to be; only the leader knows.
    pub matched: Option<Index>,
    /// Round trip in microseconds.
    pub rtt_us: Option<u64>,
}

/// A call passed on by a follower, with who made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forwarded {
    /// The verified caller.
    pub caller: Caller,
    /// Where the caller connected from, for the observed IP of a join.
    pub addr: String,
}
