//! Commands about stored objects: configs, secrets, extensions, resources, the swarm's settings; and the steps that others
//! share with them, such as to list, to show and to write.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use super::args::*;
use super::exit::{DONE, Ended, Failure};
use super::nodes::member_reports;
use super::objects;
use super::output::{Written, clean, tree};
use super::parse;
use super::session::{Session, read_data, unexpected};
use super::unlock;
use crate::types::Object;
use crate::types::api::{Answer, Autolock, QueryKind, Write};
use crate::types::limits::{MAX_CONFIG_BYTES, MAX_SECRET_BYTES};
use crate::types::object::{Kind, Sensitive};

/// The bytes of the file, or of standard input, that a command sends; none for a command that sends none. Read before a
/// manager is asked anything: a person who types them keeps no connection waiting.
pub fn input(command: &Command) -> Result<Vec<u8>, Failure> {
    let (path, limit, attempted) = match command {
        Command::Config(DataCommand::Create { name, file, .. }) => {
            (file, MAX_CONFIG_BYTES, cannot_create("config", name))
        }
        Command::Secret(DataCommand::Create { name, file, .. }) => {
            (file, MAX_SECRET_BYTES, cannot_create("secret", name))
        }
        Command::Resource(ResourceCommand::Create { name, file, .. }) => {
            (file, MAX_CONFIG_BYTES, cannot_create("resource", name))
        }
        Command::Resource(ResourceCommand::Update { object, file, .. }) => {
            (file, MAX_CONFIG_BYTES, cannot_update_resource(&object.object))
        }
        _ => return Ok(Vec::new()),
    };
    read_data(path, limit).map_err(|failure| failure.while_attempting(|| attempted))
}

fn cannot_create(kind: &str, name: &str) -> String {
    format!("cannot create {kind} {}", clean(name))
}

fn cannot_update_resource(object: &str) -> String {
    format!("cannot update resource {}", clean(object))
}

/// `skep config` and `skep secret`. `data` is what a new one holds.
pub fn data(session: &mut Session, kind: Kind, command: &DataCommand, data: Vec<u8>) -> Ended {
    match command {
        DataCommand::Create { name, label, write, .. } => {
            let attempted = || cannot_create(kind.name(), name);
            let (name, labels) = (name.clone(), pairs(label));
            let request = match kind {
                Kind::Secret => Write::CreateSecret { name, labels, data: Sensitive(data) },
                _ => Write::CreateConfig { name, labels, data },
            };
            write_and_show(session, write, request, attempted)
        }
        DataCommand::Update { object, label, label_rm, version, write } => {
            let request = Write::UpdateLabels {
                kind,
                object: object.object.clone(),
                set: pairs(label),
                remove: label_rm.clone(),
                if_version: version.if_version,
            };
            write_and_show(session, write, request, || format!("cannot update {kind} {}", clean(&object.object)))
        }
        DataCommand::Ls(args) => ls(session, kind, args),
        DataCommand::Inspect(object) => inspect(session, kind, &object.object),
        DataCommand::Rm(args) => rm(session, kind, args),
    }
}

/// `skep extension`.
pub fn extension(session: &mut Session, command: &ExtensionCommand) -> Ended {
    match command {
        ExtensionCommand::Create { name, description, write } => {
            let request = Write::CreateExtension {
                name: name.clone(),
                description: description.clone(),
                labels: BTreeMap::new(),
            };
            write_and_show(session, write, request, || format!("cannot create extension {}", clean(name)))
        }
        ExtensionCommand::Ls(args) => ls(session, Kind::Extension, args),
        ExtensionCommand::Inspect(object) => inspect(session, Kind::Extension, &object.object),
        ExtensionCommand::Rm(args) => rm(session, Kind::Extension, args),
    }
}

/// `skep resource`. `payload` is what one holds from now on.
pub fn resource(session: &mut Session, command: &ResourceCommand, payload: Vec<u8>) -> Ended {
    match command {
        ResourceCommand::Create { name, kind, label, index, write, .. } => {
            let attempted = || cannot_create("resource", name);
            let request = Write::CreateResource {
                name: name.clone(),
                kind: kind.clone(),
                labels: pairs(label),
                indices: pairs(index),
                payload,
            };
            write_and_show(session, write, request, attempted)
        }
        ResourceCommand::Update { object, version, write, .. } => {
            let attempted = || cannot_update_resource(&object.object);
            let request = Write::UpdateResource {
                object: object.object.clone(),
                payload: Some(Sensitive(payload)),
                labels: None,
                indices: None,
                if_version: version.if_version,
            };
            write_and_show(session, write, request, attempted)
        }
        ResourceCommand::Ls(args) => ls(session, Kind::Resource, args),
        ResourceCommand::Inspect(object) => inspect(session, Kind::Resource, &object.object),
        ResourceCommand::Rm(args) => rm(session, Kind::Resource, args),
    }
}

/// `skep cluster`.
pub fn cluster(session: &mut Session, command: &ClusterCommand) -> Ended {
    match command {
        ClusterCommand::Inspect => {
            let id = session.client.hello().cluster_id.to_string();
            inspect(session, Kind::Cluster, &id)
        }
        ClusterCommand::Update {
            snapshot_bytes,
            keep_bytes,
            cert_expiry,
            expired_grace,
            approve_joins,
            autolock,
            version,
            write,
        } => {
            let request = Write::UpdateCluster {
                autolock: autolock.map(|on| match on {
                    true => Autolock::On { key: unlock::generate() },
                    false => Autolock::Off,
                }),
                snapshot_bytes: *snapshot_bytes,
                keep_bytes: *keep_bytes,
                node_certificate_expiry_ms: cert_expiry.map(milliseconds),
                expired_grace_ms: expired_grace.map(milliseconds),
                approve_joins: *approve_joins,
                if_version: version.if_version,
            };
            let attempted = || "cannot update the swarm's settings".to_owned();
            if *autolock != Some(true) {
                return write_and_show(session, write, request, attempted);
            }
            session.write(write, request).map_err(|failure| failure.while_attempting(attempted))?;
            unlock::show(session)?;
            unlock::tell(
                "this is the unlock key: keep it apart from the managers. From its next start on each of them waits for it \
                 (`skep unlock`); any manager that runs prints it again: `skep unlock-key show`",
            );
            DONE
        }
    }
}

pub(super) fn list(session: &mut Session, kind: Kind, args: &LsArgs) -> Result<Vec<Object>, Failure> {
    let filter = parse::filters(&args.filter);
    session
        .client
        .list(kind, &filter, session.stale, session.timeout)
        .map_err(|error| Failure::from(error).while_attempting(|| format!("cannot list {kind}s")))
}

fn ls(session: &mut Session, kind: Kind, args: &LsArgs) -> Ended {
    let objects = list(session, kind, args)?;
    if args.quiet && !session.out.json {
        return ids(session, &objects);
    }
    let rows: Vec<Value> = objects.iter().map(objects::row).collect();
    session.out.rows(objects::columns(kind), &rows)?;
    DONE
}

pub(super) fn ids(session: &mut Session, objects: &[Object]) -> Ended {
    for object in objects {
        if let Written::Closed = session.out.line(&object.id().to_string())? {
            break;
        }
    }
    DONE
}

pub(super) fn inspect(session: &mut Session, kind: Kind, object: &str) -> Ended {
    let answer = session
        .query(QueryKind::Inspect(kind, object.to_owned()))
        .map_err(|failure| failure.while_attempting(|| format!("cannot show {kind} {}", clean(object))))?;
    let Answer::Object(mut object) = answer else { return Err(unexpected()) };
    let mut phase = None;
    if let Object::Node(node) = &mut *object {
        let members = member_reports(session)?;
        phase = Some(objects::phase(node, &members));
        if let Some(member) = members.iter().find(|member| member.node_id == node.id) {
            node.status.state = objects::manager_state(member);
        }
    }
    let mut document =
        if session.out.json { objects::document(&object) } else { objects::document_for_people(&object) };
    if let Some(phase) = phase {
        document["phase"] = phase.into();
    }
    match session.out.json {
        true => session.out.document(&document)?,
        false => session.out.text(&tree(&document))?,
    };
    DONE
}

fn rm(session: &mut Session, kind: Kind, args: &RmArgs) -> Ended {
    let object = args.object.object.clone();
    let request = Write::Remove { kind, object, if_version: args.version.if_version };
    write_and_show(session, &args.write, request, || format!("cannot remove {kind} {}", clean(&args.object.object)))
}

pub(super) fn write_and_show(
    session: &mut Session,
    args: &WriteArgs,
    request: Write,
    attempted: impl FnOnce() -> String,
) -> Ended {
    let written = session.write(args, request).map_err(|failure| failure.while_attempting(attempted))?;
    match session.out.json {
        true => session.out.document(&json!({ "id": written.id, "version": written.revision }))?,
        false => session.out.line(&written.id.to_string())?,
    };
    DONE
}

pub(super) fn pairs(pairs: &[(String, String)]) -> BTreeMap<String, String> {
    pairs.iter().cloned().collect()
}

pub(super) fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
