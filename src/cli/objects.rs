//! Objects as rows and as documents.

use serde_json::{Value, json};

use crate::roles;
use crate::types::api::MemberReport;
use crate::types::object::{Kind, MembershipState, Node, NodeState, TokenEnd};
use crate::types::{Object, Role, Timestamp};

/// The columns of `ls`, as (heading, key of the row).
pub const fn columns(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::Node => &[
            ("ID", "id"),
            ("NAME", "name"),
            ("ROLE", "role"),
            ("MANAGER", "manager"),
            ("MEMBERSHIP", "membership"),
            ("AVAILABILITY", "availability"),
            ("STATE", "state"),
            ("ADDR", "addr"),
            ("PHASE", "phase"),
        ],
        Kind::Extension => &[
            ("ID", "id"),
            ("NAME", "name"),
            ("DESCRIPTION", "description"),
            ("VERSION", "version"),
            ("CREATED", "created_at"),
        ],
        Kind::Resource => &[
            ("ID", "id"),
            ("NAME", "name"),
            ("KIND", "kind"),
            ("SIZE", "size"),
            ("VERSION", "version"),
            ("UPDATED", "updated_at"),
        ],
        Kind::Token => &[
            ("ID", "id"),
            ("ROLE", "role"),
            ("LABELS", "labels"),
            ("USES LEFT", "uses_left"),
            ("EXPIRES", "expires_at"),
            ("STATE", "state"),
        ],
        Kind::Config => &[
            ("ID", "id"),
            ("NAME", "name"),
            ("SIZE", "size"),
            ("VERSION", "version"),
            ("CREATED", "created_at"),
            ("UPDATED", "updated_at"),
        ],
        _ => &[
            ("ID", "id"),
            ("NAME", "name"),
            ("VERSION", "version"),
            ("CREATED", "created_at"),
            ("UPDATED", "updated_at"),
        ],
    }
}

/// The name that people know the object by.
pub fn name(object: &Object) -> &str {
    match object {
        Object::Node(node) => &node.description.hostname,
        Object::Cluster(cluster) => &cluster.spec.annotations.name,
        Object::Secret(secret) => &secret.spec.annotations.name,
        Object::Config(config) => &config.spec.annotations.name,
        Object::Extension(extension) => &extension.annotations.name,
        Object::Resource(resource) => resource.name(),
        Object::Service(_) | Object::Task(_) | Object::Network(_) | Object::Volume(_) | Object::Token(_) => "",
    }
}

/// A flat row: `id`, `name`, `version`, `created_at`, `updated_at`, and what the kind adds.
pub fn row(object: &Object) -> Value {
    let meta = object.meta();
    let mut row = json!({
        "id": object.id(),
        "name": name(object),
        "version": meta.version,
        "created_at": meta.created_at,
        "updated_at": meta.updated_at,
    });
    match object {
        Object::Config(config) => row["size"] = config.spec.data.len().into(),
        Object::Extension(extension) => row["description"] = extension.description.as_str().into(),
        Object::Resource(resource) => {
            row["kind"] = resource.kind().into();
            row["size"] = resource.payload().len().into();
        }
        Object::Node(node) => {
            row["role"] = node.role.name().into();
            row["availability"] = json!(node.spec.availability);
            row["membership"] = json!(node.spec.membership);
            row["state"] = json!(node.status.state);
            row["addr"] = node.status.addr.as_str().into();
        }
        Object::Token(token) => {
            let labels: Vec<String> = object.labels().iter().map(|(key, value)| format!("{key}={value}")).collect();
            row["role"] = token.role.name().into();
            row["labels"] = labels.join(",").into();
            row["uses_left"] = json!(token.uses_left);
            row["expires_at"] = json!(token.expires_at);
        }
        _ => {}
    }
    row
}

/// Adds to a token's row whether it still admits anybody: `ready`, `expired` or `used up`.
pub fn add_token_state(row: &mut Value, object: &Object, now: Timestamp) {
    let Object::Token(token) = object else { return };
    row["state"] = match token.is_spent(now) {
        Some(TokenEnd::Expired(_)) => "expired",
        Some(TokenEnd::UsedUp) => "used up",
        None => "ready",
    }
    .into();
}

/// Adds to a node's row what the Raft group says of it: `manager` is `leader`, `reachable`, `unreachable`, or null, and
/// `state` as in [`manager_state`]; and its `phase`.
pub fn add_manager_state(row: &mut Value, object: &Object, members: &[MemberReport]) {
    let member = members.iter().find(|member| object.id() == member.node_id.into());
    row["manager"] = match member {
        Some(member) if member.leader => "leader".into(),
        Some(member) if member.reachable => "reachable".into(),
        Some(_) => "unreachable".into(),
        None => Value::Null,
    };
    if let Object::Node(node) = object {
        row["phase"] = phase(node, members).into();
    }
    if let Some(state) = member.map(manager_state) {
        row["state"] = json!(state);
    }
    if let Some(member) = member.filter(|_| row["addr"] == "") {
        row["addr"] = member.addr.as_str().into();
    }
}

/// Where a node is on its way to the role that was asked of it; empty when it has it.
pub fn phase(node: &Node, members: &[MemberReport]) -> &'static str {
    let member = members.iter().find(|member| member.node_id == node.id);
    roles::phase(node, member.map(|member| (member.role, member.leader)))
}

/// Whether a node is a manager when everything is done that was asked for.
pub fn is_to_be_manager(object: &Object) -> bool {
    matches!(object, Object::Node(node) if node.spec.desired_role == Role::Manager && node.spec.membership != MembershipState::Leaving)
}

/// A manager's state is what the manager that answers sees of it: `ready` while the two are connected, else `down`. The
/// state that the store keeps is that of nodes which report to a dispatcher.
pub const fn manager_state(member: &MemberReport) -> NodeState {
    if member.reachable { NodeState::Ready } else { NodeState::Down }
}

/// The whole object, without secrets; bytes as base64.
pub fn document(object: &Object) -> Value {
    let mut value = match object {
        Object::Node(node) => json!(node),
        Object::Service(service) => json!(service),
        Object::Task(task) => json!(task),
        Object::Network(network) => json!(network),
        Object::Cluster(cluster) => json!(cluster),
        Object::Secret(secret) => json!(secret),
        Object::Config(config) => json!(config),
        Object::Extension(extension) => json!(extension),
        Object::Resource(resource) => json!(resource),
        Object::Volume(volume) => json!(volume),
        Object::Token(token) => json!(token),
    };
    // The manager has blanked these already; a field that is always blank only asks for questions.
    for path in [
        "/spec/data",
        "/root_ca/key",
        "/root_ca/join_tokens",
        "/root_ca/rotation/key",
        "/root_ca/rotation/join_tokens",
        "/spec/ca/signing_ca_key",
        "/unlock_keys",
        "/network_bootstrap_keys",
        "/secret_digest",
    ] {
        if matches!(object, Object::Secret(_) | Object::Cluster(_) | Object::Token(_)) {
            remove(&mut value, path);
        }
    }
    match object {
        Object::Config(config) => value["spec"]["data"] = base64(&config.spec.data).into(),
        Object::Resource(resource) => value["payload"] = base64(resource.payload()).into(),
        Object::Node(node) => {
            value["description"]["certificate_issuer"] = base64(&node.description.certificate_issuer).into();
            if node.manager_until == Timestamp(0) {
                value["manager_until"] = Value::Null;
            }
        }
        _ => {}
    }
    value
}

/// [`document`] for people: data that is text is shown as text.
pub fn document_for_people(object: &Object) -> Value {
    let mut value = document(object);
    match object {
        Object::Config(config) => value["spec"]["data"] = text_or_size(&config.spec.data).into(),
        Object::Resource(resource) => value["payload"] = text_or_size(resource.payload()).into(),
        Object::Node(node) if node.manager_until == Timestamp(0) => remove(&mut value, "/manager_until"),
        _ => {}
    }
    value
}

fn remove(value: &mut Value, path: &str) {
    if let Some((parent, field)) = path.rsplit_once('/')
        && let Some(Value::Object(fields)) = value.pointer_mut(parent)
    {
        fields.remove(field);
    }
}

fn text_or_size(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= 4096 => text.to_owned(),
        _ => format!("<{} bytes>", bytes.len()),
    }
}

/// Base64 with padding (RFC 4648 section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let mut three = [0; 3];
        three[..chunk.len()].copy_from_slice(chunk);
        let word = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() { char::from(ALPHABET[digit as usize]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::object::{Annotations, Config, ConfigSpec, Meta, Secret, SecretSpec, Sensitive};
    use crate::types::{ObjectId, Revision};

    fn annotations(name: &str) -> Annotations {
        Annotations { name: name.to_owned(), ..Annotations::default() }
    }

    #[test]
    fn base64_matches_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
    }

    #[test]
    fn a_secret_shows_nothing_even_when_a_manager_did_not_redact_it() {
        let spec = SecretSpec {
            annotations: annotations("key"),
            data: Sensitive(b"hunter2".to_vec()),
            ..SecretSpec::default()
        };
        let secret = Object::from(Secret { spec, ..Secret::default() });
        for shown in [document(&secret), document_for_people(&secret), row(&secret)] {
            let text = shown.to_string();
            assert!(!text.contains("hunter2") && !text.contains("104,117"), "{text}");
        }
    }

    #[test]
    fn a_row_is_flat_and_stable() {
        let meta = Meta { version: Revision(7), created_at: Timestamp(0), updated_at: Timestamp(1000) };
        let spec = ConfigSpec { annotations: annotations("web"), data: b"abc".to_vec(), templating: None };
        let config = Object::from(Config { id: ObjectId(1), meta, spec });
        let expected = r#"{"created_at":"1970-01-01T00:00:00.000Z","id":"0000000000000000000000001","name":"web","size":3,"updated_at":"1970-01-01T00:00:01.000Z","version":7}"#;
        assert_eq!(row(&config).to_string(), expected);
        assert_eq!(document(&config)["spec"]["data"], "YWJj");
        assert_eq!(document_for_people(&config)["spec"]["data"], "abc");
    }
}
