//! What of an object may leave a manager. One place, for lists, inspections and watches.
//!
//! Secrets, tokens and the cluster are written as whitelists: the copies name every field, so that a field added to them does not
//! compile until somebody has decided here whether people may see it.

use crate::types::Object;
use crate::types::object::{
    CaSettings, Cluster, ClusterSpec, JoinTokens, RootCa, RootRotation, Runtime, Secret, SecretSpec, Sensitive,
    TaskSpec, Token,
};

/// A copy of `object` without anything that must stay inside the managers.
pub fn redact(object: &Object) -> Object {
    match object {
        Object::Secret(secret) => redact_secret(secret).into(),
        Object::Cluster(cluster) => Object::Cluster(Box::new(redact_cluster(cluster))),
        Object::Service(service) => {
            let mut service = service.clone();
            redact_task_spec(&mut service.spec.task);
            if let Some(previous) = &mut service.previous_spec {
                redact_task_spec(&mut previous.task);
            }
            Object::Service(service)
        }
        Object::Task(task) => {
            let mut task = task.clone();
            redact_task_spec(&mut task.spec);
            Object::Task(task)
        }
        Object::Token(token) => Object::Token(Box::new(redact_token(token))),
        Object::Node(_)
        | Object::Network(_)
        | Object::Config(_)
        | Object::Extension(_)
        | Object::Resource(_)
        | Object::Volume(_) => object.clone(),
    }
}

/// Whether the swarm made the object for itself: such objects are in no list and no watch.
pub fn is_internal(object: &Object) -> bool {
    matches!(object, Object::Secret(secret) if secret.internal)
}

/// Bytes of the stored encoding that [`redact`] leaves out, about.
pub(super) fn hidden_bytes(object: &Object) -> usize {
    match object {
        Object::Secret(secret) => secret.spec.data.0.len(),
        Object::Token(token) => token.secret_digest.0.len(),
        _ => 0,
    }
}

fn redact_task_spec(spec: &mut TaskSpec) {
    if let Runtime::Container(container) = &mut spec.runtime {
        container.registry_auth = Sensitive::default();
    }
}

fn redact_secret(secret: &Secret) -> Secret {
    let Secret { id, meta, spec, internal } = secret;
    let SecretSpec { annotations, data: _, templating, driver } = spec;
    Secret {
        id: *id,
        meta: *meta,
        spec: SecretSpec {
            annotations: annotations.clone(),
            data: Sensitive::default(),
            templating: templating.clone(),
            driver: driver.clone(),
        },
        internal: *internal,
    }
}

/// The digest goes too: nobody needs it, and whoever has it can try secrets against it.
fn redact_token(token: &Token) -> Token {
    let Token { id, meta, annotations, role, expires_at, uses_left, root_digest, secret_digest: _ } = token;
    Token {
        id: *id,
        meta: *meta,
        annotations: annotations.clone(),
        role: *role,
        expires_at: *expires_at,
        uses_left: *uses_left,
        root_digest: root_digest.clone(),
        secret_digest: Sensitive::default(),
    }
}

fn redact_cluster(cluster: &Cluster) -> Cluster {
    let Cluster {
        id,
        meta,
        spec,
        root_ca,
        network_bootstrap_keys: _,
        encryption_key_lamport_clock,
        unlock_keys: _,
        fips,
        default_address_pool,
        subnet_size,
        vxlan_udp_port,
        feature_level,
    } = cluster;
    Cluster {
        id: *id,
        meta: *meta,
        spec: redact_cluster_spec(spec),
        root_ca: redact_root_ca(root_ca),
        network_bootstrap_keys: Vec::new(),
        encryption_key_lamport_clock: *encryption_key_lamport_clock,
        unlock_keys: Vec::new(),
        fips: *fips,
        default_address_pool: default_address_pool.clone(),
        subnet_size: *subnet_size,
        vxlan_udp_port: *vxlan_udp_port,
        feature_level: *feature_level,
    }
}

fn redact_cluster_spec(spec: &ClusterSpec) -> ClusterSpec {
    let ClusterSpec {
        annotations,
        task_history_retention_limit,
        raft,
        heartbeat_period_ms,
        ca,
        default_log_driver,
        auto_lock_managers,
        acceptance_policies,
    } = spec;
    let CaSettings {
        node_certificate_expiry_ms,
        external_cas,
        signing_ca_certificate: _,
        signing_ca_key: _,
        force_rotate,
        expired_grace_ms,
    } = ca;
    ClusterSpec {
        annotations: annotations.clone(),
        task_history_retention_limit: *task_history_retention_limit,
        raft: *raft,
        heartbeat_period_ms: *heartbeat_period_ms,
        ca: CaSettings {
            node_certificate_expiry_ms: *node_certificate_expiry_ms,
            external_cas: external_cas.clone(),
            signing_ca_certificate: String::new(),
            signing_ca_key: Sensitive::default(),
            force_rotate: *force_rotate,
            expired_grace_ms: *expired_grace_ms,
        },
        default_log_driver: default_log_driver.clone(),
        auto_lock_managers: *auto_lock_managers,
        acceptance_policies: acceptance_policies.clone(),
    }
}

fn redact_root_ca(root_ca: &RootCa) -> RootCa {
    let RootCa { key: _, certificate, digest, join_tokens: _, rotation, last_forced_rotation } = root_ca;
    let rotation = rotation.as_ref().map(|rotation| {
        let RootRotation { certificate, key: _, cross_signed_certificate, issuer, join_tokens: _, started_at, skip } =
            rotation;
        RootRotation {
            certificate: certificate.clone(),
            key: Sensitive::default(),
            cross_signed_certificate: cross_signed_certificate.clone(),
            issuer: issuer.clone(),
            join_tokens: JoinTokens::default(),
            started_at: *started_at,
            skip: skip.clone(),
        }
    });
    RootCa {
        key: Sensitive::default(),
        certificate: certificate.clone(),
        digest: digest.clone(),
        join_tokens: JoinTokens::default(),
        rotation,
        last_forced_rotation: *last_forced_rotation,
    }
}
