//! Nodes: machines and their certificates.

use super::*;

/// A machine. Its id is the CN of its certificate.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Identity.
    pub id: NodeId,
    /// Version and times.
    pub meta: Meta,
    /// What was asked for.
    pub spec: NodeSpec,
    /// What the node said of itself.
    pub description: NodeDescription,
    /// What the swarm observed.
    pub status: NodeStatus,
    /// The last certificate issued.
    pub certificate: Certificate,
    /// The role the node acts in now; follows `spec.desired_role`.
    pub role: Role,
    /// Networks the node itself is attached to.
    pub attachments: Vec<NetworkAttachment>,
    /// UDP port of VXLAN traffic; zero means 4789.
    pub vxlan_udp_port: u32,
    /// The end of the certificate that named it a manager longest, noted when it was demoted or got one that ends earlier;
    /// zero: neither was.
    pub manager_until: Timestamp,
}

impl Node {
    /// A node of which nothing is known yet but that it is taken in with a role.
    pub fn new(id: NodeId, role: Role) -> Self {
        Self {
            id,
            meta: Meta::default(),
            spec: NodeSpec {
                annotations: Annotations::default(),
                desired_role: role,
                membership: MembershipState::Accepted,
                availability: Availability::Active,
            },
            description: NodeDescription::default(),
            status: NodeStatus { state: NodeState::Unknown, message: String::new(), addr: String::new() },
            certificate: Certificate::none(role),
            role,
            attachments: Vec::new(),
            vxlan_udp_port: 0,
            manager_until: Timestamp(0),
        }
    }

    /// The end of the last certificate that names it a manager, if there is one: until then it must be revoked when the
    /// node is removed.
    pub fn revoked_until(&self) -> Option<Timestamp> {
        let now = if self.certificate.role == Role::Manager { self.certificate.expires_at } else { Timestamp(0) };
        Some(now.max(self.manager_until)).filter(|until| until.0 > 0)
    }
}

/// What is asked of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    /// Labels set by people; the name is unused, the hostname stands in the description.
    pub annotations: Annotations,
    /// The role it should have.
    pub desired_role: Role,
    /// Whether it may take part.
    pub membership: MembershipState,
    /// Whether it takes tasks.
    pub availability: Availability,
}

/// Whether a node may take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MembershipState {
    /// Waits for approval.
    Pending,
    /// Takes part.
    Accepted,
    /// Is being removed: it leaves the managers first.
    Leaving,
}

/// Whether a node takes tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Availability {
    /// Takes tasks.
    Active,
    /// Keeps its tasks, takes no new ones.
    Pause,
    /// Gives its tasks away.
    Drain,
}

/// What a node says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    /// Its host name; also what `skep run --name` sets.
    pub hostname: String,
    /// CPU architecture, as `uname -m` prints it.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// Processor time, in billionths of a core.
    pub nano_cpus: i64,
    /// Memory in bytes.
    pub memory_bytes: i64,
    /// Countable and named resources besides.
    pub generic_resources: Vec<GenericResource>,
    /// Version of what runs tasks there.
    pub engine_version: String,
    /// Labels set on the engine.
    pub engine_labels: BTreeMap<String, String>,
    /// Plugins: (type, name).
    pub plugins: Vec<(String, String)>,
    /// SHA-256 of the root certificates it trusts, base36, empty if unknown.
    pub trust_root_digest: String,
    /// DER subject of the issuer of its certificate.
    #[serde(with = "readable")]
    pub certificate_issuer: Vec<u8>,
    /// DER public key of the issuer of its certificate.
    #[serde(with = "readable")]
    pub certificate_issuer_public_key: Vec<u8>,
    /// It uses FIPS-validated cryptography only.
    pub fips: bool,
    /// What its CSI plugins know it as.
    pub csi: Vec<NodeCsiInfo>,
}

impl NodeDescription {
    /// What is wrong with it, if anything. The node itself chooses every word, and all of them are copied to every manager and
    /// shown on terminals.
    pub fn problem(&self) -> Option<String> {
        if self.hostname.len() > MAX_HOSTNAME_BYTES || has_control(&self.hostname) {
            return Some(format!("a host name has at most {MAX_HOSTNAME_BYTES} bytes and no control characters"));
        }
        let one = [&self.architecture, &self.os, &self.engine_version, &self.trust_root_digest];
        let labels = self.engine_labels.iter().flat_map(|(key, value)| [key, value]);
        let plugins = self.plugins.iter().flat_map(|(kind, name)| [kind, name]);
        let resources = self.generic_resources.iter().map(|resource| match resource {
            GenericResource::Discrete { kind, .. } => [kind, kind],
            GenericResource::Named { kind, value } => [kind, value],
        });
        let words: Vec<&String> = one.into_iter().chain(labels).chain(plugins).chain(resources.flatten()).collect();
        if words.iter().any(|word| has_control(word)) {
            return Some("a node's description has no control characters".to_owned());
        }
        let issuer = self.certificate_issuer.len() + self.certificate_issuer_public_key.len();
        let bytes = words.iter().map(|word| word.len() + WORD_BYTES).sum::<usize>() + issuer;
        (bytes > MAX_DESCRIPTION_BYTES).then(|| {
            format!("a node's description has at most {MAX_DESCRIPTION_BYTES} bytes, and this one has {bytes}")
        })
    }
}

fn has_control(text: &str) -> bool {
    text.chars().any(char::is_control)
}

/// The longest host name (RFC 1035 section 3.1).
const MAX_HOSTNAME_BYTES: usize = 253;
/// Room for a board with many devices; a node object is copied to every manager and watcher.
const MAX_DESCRIPTION_BYTES: usize = 16 << 10;
/// What a word takes beside its letters.
const WORD_BYTES: usize = 8;

/// A node as one CSI plugin knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCsiInfo {
    /// The plugin.
    pub plugin: String,
    /// The node's id there.
    pub node_id: String,
    /// How many volumes it takes; zero means no limit.
    pub max_volumes_per_node: i64,
    /// Where the node is: key to value.
    pub accessible_topology: BTreeMap<String, String>,
}

/// A countable or named resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GenericResource {
    /// So many of a kind.
    Discrete {
        /// The kind.
        kind: String,
        /// How many.
        value: i64,
    },
    /// One of a kind, by name.
    Named {
        /// The kind.
        kind: String,
        /// Its name.
        value: String,
    },
}

/// What the swarm observed of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its state.
    pub state: NodeState,
    /// Why.
    pub message: String,
    /// The address it was last seen at.
    pub addr: String,
}

/// A node's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum NodeState {
    /// Not heard of since the leader changed.
    Unknown,
    /// Lost.
    Down,
    /// Heard of.
    Ready,
    /// On its way to another manager.
    Disconnected,
}

/// A node's certificate and how far its issue is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// The role it names.
    pub role: Role,
    /// The signing request, PEM.
    pub csr: String,
    /// How far.
    pub state: IssuanceState,
    /// Why it failed.
    pub error: String,
    /// The chain, PEM: the newest that was signed. While a new one is asked for, the one that the node still has.
    pub certificate: String,
    /// Who signed it: the digest of the authority's public key, as `pki::issuer_of` prints it. Empty while there is none.
    pub issuer: String,
    /// Until when it is valid; zero while there is none.
    pub expires_at: Timestamp,
    /// The issuer of the certificate that the node said it uses. Empty until it has said so: a node that never did, and
    /// never was a member of the Raft group, has not completed its join.
    pub reported_issuer: String,
    /// The node has reported since this certificate was issued, so that it needs no older one.
    pub in_use: bool,
    /// A person let the node back in: until then it may renew with an expired certificate, once.
    pub approved_until: Option<Timestamp>,
}

impl Certificate {
    /// No certificate yet, for a node of this role.
    pub const fn none(role: Role) -> Self {
        Self {
            role,
            csr: String::new(),
            state: IssuanceState::Unknown,
            error: String::new(),
            certificate: String::new(),
            issuer: String::new(),
            expires_at: Timestamp(0),
            reported_issuer: String::new(),
            in_use: false,
            approved_until: None,
        }
    }
}

/// How far the issue of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IssuanceState {
    /// Nothing asked.
    Unknown,
    /// A known node asked for a new one.
    Renew,
    /// A new node asked.
    Pending,
    /// Signed.
    Issued,
    /// Refused.
    Failed,
    /// The node is told to ask for a new one.
    Rotate,
}
