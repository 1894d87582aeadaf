//! Repairing the log of a manager that does not run, as the last resort: see `wal::repair`.
//!
//! What is cut off may have been acknowledged, so the directory is marked before anything is cut: from then on it does
//! not start as the member it was. Its data is still good for a swarm of its own. Only when a snapshot covers all that is
//! cut off does it go on as before.

use std::path::Path;

use super::dir::{DataDir, NodeFile, Phase};
use super::keys;
use super::open::{lineage, log_error, segment_bytes};
use super::{StartError, StartFailure};
use crate::pki::{Keyring, UnlockKey};
use crate::sys::files::RealDisk;
use crate::wal::Options;
use crate::wal::repair::{self, Plan, RepairError};

/// A directory whose log is damaged, locked.
#[derive(Debug)]
pub struct Repair {
    dir: DataDir,
    file: NodeFile,
    keys: Keyring,
    options: Options,
    plan: Plan,
}

impl Repair {
    /// Looks at the log in the data directory `path`, and changes nothing; `None` when it opens as it is.
    /// `unlock` opens a key file that is locked.
    pub fn plan(path: &Path, unlock: Option<&UnlockKey>) -> Result<Option<Self>, StartError> {
        let what = || format!("cannot repair the log in {}", path.display());
        if !path.join("node.json").exists() {
            let hint = "name a manager's data directory, such as /var/lib/skep";
            return Err(StartError::refused(
                what(),
                "it holds no node.json: it is not a manager's data directory",
                hint,
            ));
        }
        let dir = DataDir::open(path)?;
        let file = dir.read()?.filter(|file| file.phase == Phase::Member);
        let Some(file) = file else {
            return Err(StartError::refused(what(), "it belongs to no member of a swarm", ""));
        };
        let keys = dir.open_keys(unlock)?.map(|store| store.keyring()).ok_or_else(|| {
            let hint = "put pki/node.key back from a backup; without it this node's log cannot be read";
            StartError::new(StartFailure::Damaged, what(), "its key is missing", hint)
        })?;
        let options = Options { segment_bytes: segment_bytes(file.profile), lineage: lineage(&dir, &file)? };
        let plan = repair::plan(&RealDisk, &dir.raft(), &keys, options).map_err(|error| match error {
            RepairError::Wal(error) => log_error(&dir, &error),
            error @ RepairError::Hopeless { .. } => {
                let hint = "with a majority of the other managers alive: move the directory aside and join anew with \
                            `skep run --join`; without one: look at the others with `skep recover --dry-run`, at what \
                            this one's newest whole snapshot holds with `skep recover --from-snapshot --dry-run`, or \
                            begin from a backup with `skep backup restore FILE`";
                StartError::new(StartFailure::Damaged, what(), error, hint)
            }
        })?;
        Ok(plan.map(|plan| Self { dir, file, keys, options, plan }))
    }

    /// What would be cut off.
    pub const fn what(&self) -> &Plan {
        &self.plan
    }

    /// Marks the directory and cuts.
    pub fn carry_out(mut self) -> Result<(), StartError> {
        let Plan { file, offset, last, covered, .. } = &self.plan;
        if !covered {
            let left = match last.0 {
                0 => "no entries are left".to_owned(),
                last => format!("entries up to {last} are left"),
            };
            self.file.repaired = Some(format!("{file} was damaged at byte {offset}; {left}"));
            self.dir.write(&self.file)?;
        }
        repair::carry_out(&RealDisk, &self.dir.raft(), &self.keys, self.options, &self.plan)
            .map_err(|error| log_error(&self.dir, &error))
    }
}

/// What seals the log and the snapshots of the node whose data directory `path` is, without taking its lock: the file is
/// replaced as a whole. `None` when there is no key file; `unlock` opens one that is locked.
pub fn data_keys(path: &Path, unlock: Option<&UnlockKey>) -> Result<Option<Keyring>, StartError> {
    Ok(keys::open(path, unlock)?.map(|file| Keyring::new(file.data_keys)))
}
