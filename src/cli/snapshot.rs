//! `skep snapshot`: a look at a snapshot on disk, without a manager. It is read from end to end: what is printed was
//! vouched for by every checksum, every seal and the state hash. Contents of objects are not shown.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::args::{Common, SnapshotCommand};
use super::exit::{Ended, Exit, Failure};
use super::output::Output;
use super::unlock;
use super::wal::failed;
use crate::node::repair::data_keys;
use crate::store::{SnapshotDecoder, State};
use crate::sys::files::RealDisk;
use crate::types::{Code, Kind};
use crate::wal::{SnapshotFile, WalError};

/// `skep snapshot inspect`.
pub fn run(common: &Common, out: &mut Output, command: &SnapshotCommand) -> Ended {
    let SnapshotCommand::Inspect { file, unlock } = command;
    let attempted = || format!("cannot read the snapshot {}", file.display());
    let whole = |error: &WalError| Failure { attempted: attempted(), ..failed(file, error) };
    let opened = SnapshotFile::open(&RealDisk, file).map_err(|error| whole(&error))?;
    let dir = common.data_dir.clone().or_else(|| around(file));
    let keys = match &dir {
        Some(dir) => {
            let key = unlock::given_or_asked(unlock, dir)?;
            data_keys(dir, key.as_ref()).map_err(|error| Failure::from(error).while_attempting(attempted))?
        }
        None => None,
    };
    let Some(keys) = keys else {
        let message = format!("it is sealed with data key {:016x}, and no key is at hand", opened.key_id);
        let hint = "name the data directory of the manager that wrote it with --data-dir";
        return Err(Failure::refused(Code::FailedPrecondition, message).with_hint(hint).while_attempting(attempted));
    };
    let header = json!({
        "file": file.file_name().map(|name| name.to_string_lossy().into_owned()),
        "index": opened.meta.position.index,
        "term": opened.meta.position.term,
        "bytes": opened.meta.bytes,
        "voters": opened.meta.configuration.voters,
        "learners": opened.meta.configuration.learners,
        "lineage": opened.lineage,
        "key_id": format!("{:016x}", opened.key_id),
    });
    let (meta, lineage) = (opened.meta.clone(), opened.lineage);
    let mut reader = opened.reader(&keys).map_err(|error| whole(&error))?;
    let mut decoder = SnapshotDecoder::new();
    let broken = |why: String| Failure::damaged(why).while_attempting(attempted);
    while let Some(chunk) = reader.next_chunk().map_err(|error| whole(&error))? {
        decoder.push(&chunk).map_err(|error| broken(error.to_string()))?;
    }
    let state = decoder.finish().map_err(|error| broken(error.to_string()))?;
    let same =
        state.applied() == meta.position && state.configuration() == meta.configuration && state.lineage() == lineage;
    if !same {
        return Err(broken("it holds another state than its header says".to_owned()));
    }
    show(out, header, &state)?;
    Ok(Exit::Done)
}

/// The data directory that a snapshot lies in.
fn around(file: &Path) -> Option<PathBuf> {
    let raft = std::path::absolute(file).ok()?.parent()?.to_owned();
    raft.ends_with("raft").then(|| raft.parent().map(Path::to_owned))?
}

fn show(out: &mut Output, mut value: Value, state: &State) -> Result<(), Failure> {
    let members = state.members().values().map(|member| {
        json!({ "raft_id": member.raft_id, "node_id": member.node_id, "addr": member.addr, "role": member.role })
    });
    let kinds = Kind::ALL.into_iter().filter(|kind| state.count(*kind) > 0);
    let objects = kinds
        .clone()
        .map(|kind| json!({ "kind": kind.to_string(), "count": state.count(kind), "bytes": state.bytes(kind) }));
    value["revision"] = json!(state.revision());
    value["members"] = members.collect();
    value["objects"] = objects.collect();
    value["hash"] = format!("{:032x}", state.hash()).into();
    if out.json {
        out.document(&value)?;
        return Ok(());
    }
    let text = |key: &str| value[key].to_string().trim_matches('"').to_owned();
    let mut lines = vec![
        format!("{}  index {}, term {}, {} bytes", text("file"), text("index"), text("term"), text("bytes")),
        format!("lineage {}, sealed with data key {}", text("lineage"), text("key_id")),
        format!("revision {}, state hash {}, which is right", text("revision"), text("hash")),
    ];
    lines.extend(state.members().values().map(|member| {
        let role = format!("{:?}", member.role).to_lowercase();
        format!("  member {}  {}  {}  {role}", member.raft_id, member.node_id, member.addr)
    }));
    lines.extend(kinds.map(|kind| format!("  {kind}  {} objects, {} bytes", state.count(kind), state.bytes(kind))));
    for line in lines {
        out.line(&super::output::clean(&line))?;
    }
    Ok(())
}
