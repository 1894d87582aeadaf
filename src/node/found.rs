//! The first manager of a new swarm: root certificate, own certificate, cluster and node objects.

use std::sync::Arc;

use super::dir::{DataDir, NodeFile, Phase};
use super::keys::KeyStore;
use super::{StartError, StartFailure};
use crate::ca;
use crate::pki::seal::DataKey;
use crate::pki::{KeyFile, NodeIdentity};
use crate::raft::recover::{self, Snapshots};
use crate::store::State;
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::files::RealDisk;
use crate::sys::time::wall_ms;
use crate::types::api::FEATURE_LEVEL;
use crate::types::object::{
    AcceptancePolicy, Annotations, CaSettings, Cluster, ClusterSpec, Meta, NodeDescription, NodeState, Profile,
    RaftSettings, RootCa, Sensitive,
};
use crate::types::{
    Change, ChangeId, ClusterId, Lineage, NodeId, Object, Operation, Outcome, RaftId, Revision, Role, Term, Timestamp,
};
use crate::wal::{self, Recovered, Wal};

/// A node's identity and what seals its disk.
#[derive(Clone, Debug)]
pub struct Keys {
    /// Certificate and key.
    pub identity: NodeIdentity,
    /// The swarm's root, PEM.
    pub root_pem: String,
    /// The key file: seals log and snapshots.
    pub store: KeyStore,
}

/// The first manager's log is term 1, and its raft id is 1.
const FIRST: RaftId = RaftId(1);

/// Makes a new swarm in an empty directory; `file` says `member` when this returns, and is not yet written so.
pub fn found(
    dir: &DataDir,
    file: &mut NodeFile,
    description: NodeDescription,
    advertise: &str,
    segment_bytes: u64,
) -> Result<(Keys, Wal, Recovered), StartError> {
    let what = "cannot make a new swarm";
    let internal = |error: &dyn std::fmt::Display| StartError::new(StartFailure::Internal, what, error, "");
    dir.wipe_unfinished()?;
    let mut entropy = OsEntropy;
    let (cluster_id, node_id) = (ClusterId(entropy.next_u128()), NodeId(entropy.next_u128()));
    let lineage = Lineage(entropy.next_u128());
    let now_ms = wall_ms();
    let founding = ca::found(cluster_id, node_id, description, ca::DEFAULT_VALIDITY, now_ms, &mut entropy)
        .map_err(|error| internal(&error))?;
    let contents = KeyFile::new(founding.identity.key().clone(), DataKey::generate(&mut entropy));
    let store = dir.create_keys(contents)?;
    let keys = Keys { identity: founding.identity, root_pem: founding.root_ca.certificate.clone(), store };
    dir.write_certificate(&keys.identity, &keys.root_pem)?;

    let mut state = State::bootstrap(lineage, node_id, advertise);
    let mut node = founding.node;
    node.status.state = NodeState::Ready;
    node.status.addr = advertise.to_owned();
    let change = Change {
        id: ChangeId(entropy.next_u128()),
        after: Revision(0),
        time: Timestamp(now_ms),
        term: None,
        operations: vec![
            Operation::Create(Object::Cluster(Box::new(cluster(cluster_id, founding.root_ca, file.profile)))),
            Operation::Create(Object::Node(Box::new(node))),
        ],
    };
    let (outcome, _) = state.apply_change(change, Term(1));
    assert!(matches!(outcome, Outcome::Committed(_)), "nothing stands against the first objects: {outcome:?}");

    let options = wal::Options { segment_bytes, lineage };
    let disk = Arc::new(RealDisk);
    let (mut wal, _) =
        Wal::open(disk.clone(), &dir.raft(), keys.store.keyring(), options).map_err(|error| internal(&error))?;
    let snapshots = Snapshots { disk, dir: dir.raft(), keys: keys.store.keyring(), lineage };
    let recovered = recover::bootstrap(&mut wal, &snapshots, state, &mut entropy).map_err(|error| internal(&error))?;
    file.phase = Phase::Member;
    file.node_id = Some(node_id);
    file.cluster_id = Some(cluster_id);
    file.raft_id = Some(FIRST);
    file.lineage = Some(lineage);
    Ok((keys, wal, recovered))
}

/// The settings of a new swarm (the reference's defaults, where it has one).
fn cluster(id: ClusterId, root_ca: RootCa, profile: Profile) -> Cluster {
    let policy = |role| AcceptancePolicy { role, autoaccept: true };
    Cluster {
        id,
        meta: Meta::default(),
        spec: ClusterSpec {
            annotations: Annotations { name: "default".to_owned(), ..Annotations::default() },
            task_history_retention_limit: 5,
            raft: RaftSettings::for_profile(profile),
            heartbeat_period_ms: 5000,
            ca: CaSettings {
                node_certificate_expiry_ms: ca::DEFAULT_VALIDITY.as_millis() as u64,
                external_cas: Vec::new(),
                signing_ca_certificate: String::new(),
                signing_ca_key: Sensitive::default(),
                force_rotate: 0,
                expired_grace_ms: ca::DEFAULT_EXPIRED_GRACE.as_millis() as u64,
            },
            default_log_driver: None,
            auto_lock_managers: false,
            acceptance_policies: vec![policy(Role::Worker), policy(Role::Manager)],
        },
        root_ca,
        network_bootstrap_keys: Vec::new(),
        encryption_key_lamport_clock: 0,
        unlock_keys: Vec::new(),
        fips: false,
        default_address_pool: vec!["10.0.0.0/8".to_owned()],
        subnet_size: 24,
        vxlan_udp_port: 0,
        feature_level: FEATURE_LEVEL,
    }
}
