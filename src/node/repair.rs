//! Repairing the log of a manager that does not run, as the last resort: see `wal::repair`.
//!
//! What is cut off may have been acknowledged, so the directory is marked before anything is cut: from then on it does
//! not start as the member it was. Its data is still good for a swarm of its own.

use std::path::Path;

use super::dir::{DataDir, NodeFile, Phase};
use super::start::{lineage, log_error, segment_bytes};
use super::{StartError, StartFailure};
use crate::pki::seal::DataKey;
use crate::sys::files::RealDisk;
use crate::wal::Options;
use crate::wal::repair::{self, Plan, RepairError};

/// A directory whose log is damaged, locked.
#[derive(Debug)]
pub struct Repair {
    dir: DataDir,
    file: NodeFile,
    key: DataKey,
    options: Options,
    plan: Plan,
}

impl Repair {
    /// Looks at the log in the data directory `path`, and changes nothing; `None` when it opens as it is.
    pub fn plan(path: &Path) -> Result<Option<Self>, StartError> {
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
        let key = dir.read_key()?.map(|(_, key)| key).ok_or_else(|| {
            let hint = "put pki/node.key back from a backup; without it this node's log cannot be read";
            StartError::new(StartFailure::Damaged, what(), "its key is missing", hint)
        })?;
        let options = Options { segment_bytes: segment_bytes(file.profile), lineage: lineage(&dir, &file)? };
        let plan = repair::plan(&RealDisk, &dir.raft(), &key, options).map_err(|error| match error {
            RepairError::Wal(error) => log_error(&dir, &error),
            error @ RepairError::Hopeless { .. } => {
                let hint = "with a majority of the other managers alive: move the directory aside and join anew with \
                            `skep run --join`; without one: look at the others with `skep recover --dry-run`, or begin \
                            from a backup with `skep backup restore FILE`";
                StartError::new(StartFailure::Damaged, what(), error, hint)
            }
        })?;
        Ok(plan.map(|plan| Self { dir, file, key, options, plan }))
    }

    /// What would be cut off.
    pub const fn what(&self) -> &Plan {
        &self.plan
    }

    /// Marks the directory and cuts.
    pub fn carry_out(mut self) -> Result<(), StartError> {
        let Plan { file, offset, last, .. } = &self.plan;
        self.file.repaired = Some(format!("{file} was damaged at byte {offset}; entries up to {last} are left"));
        self.dir.write(&self.file)?;
        repair::carry_out(&RealDisk, &self.dir.raft(), &self.key, self.options, &self.plan)
            .map_err(|error| log_error(&self.dir, &error))
    }
}

/// What seals the log and the snapshots of the node whose data directory `path` is; `None` when it has no key.
pub fn data_key(path: &Path) -> Result<Option<DataKey>, StartError> {
    DataDir::data_key(path)
}
