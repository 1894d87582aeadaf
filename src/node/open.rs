//! What a directory holds of a node that was there before: its certificate and keys, its log; and what to say when they cannot
//! be used.

use std::sync::Arc;

use super::dir::{DataDir, NodeFile};
use super::found::Keys;
use super::{StartError, StartFailure};
use crate::pki::{self, NodeIdentity, UnlockKey};
use crate::raft::recover::RecoverError;
use crate::sys::files::RealDisk;
use crate::sys::time::wall_ms;
use crate::types::Lineage;
use crate::types::object::Profile;
use crate::wal::{self, Recovered, SEGMENT_BYTES, SEGMENT_BYTES_SDCARD, Wal, WalError};

/// What a manager or worker begins with.
pub(super) struct Opened {
    pub keys: Keys,
    /// `None` for a joiner: its history is not known yet.
    pub log: Option<(Wal, Recovered)>,
}

pub(super) fn segment_bytes(profile: Profile) -> u64 {
    if profile == Profile::Sdcard { SEGMENT_BYTES_SDCARD } else { SEGMENT_BYTES }
}

/// Certificate, root and keys, if a certificate was issued already. `unlock` opens a key file that is locked.
pub(super) fn read_keys(
    dir: &DataDir,
    file: &NodeFile,
    unlock: Option<&UnlockKey>,
) -> Result<Option<Keys>, StartError> {
    let what = || format!("cannot use the certificate in {}", dir.path().display());
    dir.recover_identity(unlock)?;
    let (Some(root_pem), Some(chain)) = (dir.read_text("pki/root.crt")?, dir.read_text("pki/node.crt")?) else {
        return Ok(None);
    };
    let Some(store) = dir.open_keys(unlock)? else { return Ok(None) };
    let damaged = |error: pki::PkiError| StartError::new(StartFailure::Damaged, what(), &error, error.hint());
    let identity = NodeIdentity::new(&chain, store.file().node_key).map_err(damaged)?;
    if file.node_id.is_some_and(|node_id| node_id != identity.identity().node_id) {
        let hint = "put the files of pki/ back that belong to this node.json";
        return Err(StartError::new(StartFailure::Damaged, what(), "it names another node than node.json", hint));
    }
    // One that is over, or not yet valid by this machine's clock, is renewed.
    if let Err(error) = identity.verify_at_its_time(&root_pem, wall_ms()) {
        return Err(StartError::refused(what(), &error, error.hint()));
    }
    Ok(Some(Keys { identity, root_pem, store }))
}

/// The certificate and keys of a node that is part of a swarm.
pub(super) fn node_keys(dir: &DataDir, file: &NodeFile, unlock: Option<&UnlockKey>) -> Result<Keys, StartError> {
    let what = || format!("cannot start from {}", dir.path().display());
    read_keys(dir, file, unlock)?.ok_or_else(|| {
        let hint = "put pki/ back from a backup, or move the whole directory aside and join again";
        StartError::new(StartFailure::Damaged, what(), "its certificate or key is missing", hint)
    })
}

/// What a member needs to read its log, whether its certificate is in force or not. Every way to an existing log leads
/// through here.
pub(super) fn member_keys(dir: &DataDir, file: &NodeFile, unlock: Option<&UnlockKey>) -> Result<Keys, StartError> {
    let what = || format!("cannot start from {}", dir.path().display());
    let keys = node_keys(dir, file, unlock)?;
    if !has_log(dir) {
        if let Some(aside) = dir.retired() {
            let why = format!("this node left the swarm or was removed from it; its log was moved to {aside}");
            let hint = "to join again, move the whole directory aside and start with --join HOST:PORT and a token";
            return Err(StartError::refused(what(), why, hint));
        }
        let why =
            "its log is gone (raft/ is missing or empty): a member that forgot what it acknowledged must not vote";
        let hint = "put raft/ back, or move the whole directory aside and join anew with another address or port in \
                    --listen and --advertise; the old member stays in the list and counts towards the majority";
        return Err(StartError::refused(what(), why, hint));
    }
    Ok(keys)
}

/// The keys and the log of a member, or the keys alone of one that was taken out of the group.
pub(super) fn reopen(dir: &DataDir, file: &NodeFile, unlock: Option<&UnlockKey>) -> Result<Opened, StartError> {
    if !has_log(dir) && dir.retired().is_some() && !file.left {
        return Ok(Opened { keys: node_keys(dir, file, unlock)?, log: None });
    }
    let keys = member_keys(dir, file, unlock)?;
    let lineage = lineage(dir, file)?;
    let log = open_log(dir, &keys, file.profile, lineage)?;
    // Each may be as large as the state, and neither a writer nor a fetch outlives its process.
    if let Err(error) = wal::remove_unfinished_snapshots(&RealDisk, &dir.raft()) {
        log::warn!("an unfinished snapshot stays: {error}");
    }
    Ok(Opened { log: Some(log), keys })
}

pub(super) fn has_log(dir: &DataDir) -> bool {
    let names = std::fs::read_dir(dir.raft()).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("wal-"))
}

pub(super) fn lineage(dir: &DataDir, file: &NodeFile) -> Result<Lineage, StartError> {
    file.lineage.ok_or_else(|| {
        let what = format!("cannot start from {}", dir.path().display());
        StartError::new(StartFailure::Damaged, what, "node.json names no lineage", "put it back from a backup")
    })
}

pub(super) fn open_log(
    dir: &DataDir,
    keys: &Keys,
    profile: Profile,
    lineage: Lineage,
) -> Result<(Wal, Recovered), StartError> {
    let options = wal::Options { segment_bytes: segment_bytes(profile), lineage };
    Wal::open(Arc::new(RealDisk), &dir.raft(), keys.store.keyring(), options).map_err(|error| log_error(dir, &error))
}

pub(super) fn log_error(dir: &DataDir, error: &WalError) -> StartError {
    let what = format!("cannot open the log in {}", dir.raft().display());
    let failure = match error {
        WalError::Damaged { .. } => StartFailure::Damaged,
        WalError::Io { .. } => StartFailure::Internal,
        _ => StartFailure::Refused,
    };
    StartError::new(failure, what, error, error.hint())
}

pub(super) fn recover_error(dir: &DataDir, error: &RecoverError) -> StartError {
    match error {
        RecoverError::Wal(error) => log_error(dir, error),
        _ => {
            let what = format!("cannot replay the log in {}", dir.raft().display());
            let hint = "move the whole directory aside and join again with --join and a token";
            StartError::new(StartFailure::Damaged, what, error, hint)
        }
    }
}
