//! Makes a damaged log one that opens, by cutting off everything on one side of the damage.
//!
//! When a whole snapshot covers the damage and everything before it, that beginning goes, and nothing is lost: it was kept
//! only so that others can catch up, and every segment repeats what was promised before it.
//!
//! Otherwise everything from the first damage on goes, and that may have been acknowledged. So this is for whoever has no
//! other copy: a manager whose log lost its end must never vote in the group it was a member of, and seeing to that is the
//! caller's part, before [`carry_out`].
//!
//! What is cut off is kept in `lost+found/`. When neither side would stand by itself, because the snapshot that it rests
//! on is damaged or gone, there is nothing to repair.
//!
//! Where to cut is what [`inspect`] says, which looks at the files one by one. Whether what is left opens is not concluded
//! from that but tried: a plan has been opened, on a disk that shows the log as the cut would leave it.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::Options;
use super::error::{Doing, WalError};
use super::format::{Record, SECTOR};
use super::inspect::{Found, inspect};
use super::look::look;
use super::newest::{self, NEWEST, Newest};
use super::recover::{self, LOST};
use super::segment::{self, Segment};
use super::snapshot::{self, SnapshotReader};
use crate::pki::Keyring;
use crate::sys::files::{Disk, File};
use crate::types::Index;

/// What [`carry_out`] would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// The file that is damaged first.
    pub file: String,
    /// Where.
    pub offset: u64,
    /// What is wrong there.
    pub what: String,
    /// What goes to `lost+found/`, in order.
    pub cuts: Vec<CutOff>,
    /// All that is cut off is in the snapshot too, and nothing is lost.
    pub covered: bool,
    /// The last entry that stays.
    pub last: Index,
    /// The snapshot that what stays rests on; zero for none.
    pub snapshot: Index,
    /// The newest segment that stays.
    sequence: u64,
}

/// A part of a file that is cut off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CutOff {
    /// The file.
    pub file: String,
    /// From here on; zero for all of it.
    pub from: u64,
    /// So many bytes.
    pub bytes: u64,
}

/// Why a log cannot be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// A file could not be used, for a reason that is not damage.
    #[error(transparent)]
    Wal(#[from] WalError),
    /// What would be left is not a log that opens.
    #[error("{file} is damaged at byte {offset}: {what}; {why}, so that no part of the log stands by itself")]
    Hopeless {
        /// The file that is damaged first.
        file: String,
        /// Where.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// Why cutting does not help.
        why: String,
    },
}

/// Finds out what a repair of the log in `dir` would cut off, and changes nothing; `None` when the log opens as it is.
pub fn plan(
    disk: &dyn Disk,
    dir: &Path,
    keys: impl Into<Keyring>,
    options: Options,
) -> Result<Option<Plan>, RepairError> {
    let keys = &keys.into();
    let sequences = segment::sequences(&disk.list(dir).doing("list", dir)?);
    // Another key or another swarm is no damage: cutting would destroy a log that somebody can still read.
    for sequence in &sequences {
        match Segment::open(disk, dir, *sequence, keys, options.lineage) {
            Ok(_) | Err(WalError::Damaged { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut plan: Option<Plan> = None;
    let (mut last, mut rests_on) = (Index(0), Index(0));
    let mut is_first = true;
    let mut is_torn = false;
    // As of before the segment at hand, whose header does not count if that goes as a whole.
    let mut before = (String::new(), last, rests_on);
    for found in inspect(disk, dir, Some(keys))? {
        match found {
            Found::Segment { file, header } => {
                before = (file, last, rests_on);
                if std::mem::take(&mut is_first) {
                    last = header.last.index;
                }
                rests_on = rests_on.max(header.snapshot.index);
            }
            Found::Problem { harmless: true, .. } => is_torn = true,
            Found::Batch { header, records, .. } if !std::mem::take(&mut is_torn) => {
                if header.entries > 0 {
                    last = Index(header.first.saturating_add(u64::from(header.entries)).saturating_sub(1));
                }
                for record in records.iter().flatten() {
                    match record {
                        Record::Installed(position) => (last, rests_on) = (position.index, position.index),
                        Record::Created(position) => rests_on = rests_on.max(position.index),
                        Record::Truncate(from) if header.entries == 0 => last = Index(from.0.saturating_sub(1)),
                        _ => {}
                    }
                }
            }
            Found::Problem { file, offset, what, harmless: false } => {
                let sequence = segment::sequences(std::slice::from_ref(&file)).pop();
                if file != NEWEST && sequence.is_none() {
                    // A snapshot: whether what stays rests on it is looked at below.
                    continue;
                }
                // A segment that is missing is noticed at the header of a later one.
                if offset < SECTOR && before.0 >= file {
                    (last, rests_on) = (before.1, before.2);
                }
                plan = Some(Plan {
                    file,
                    offset,
                    what,
                    cuts: Vec::new(),
                    covered: false,
                    last,
                    snapshot: rests_on,
                    sequence: 0,
                });
                // That the last segment is missing, and damage to the file that says so, is told before anything else.
                if sequence.is_some_and(|sequence| sequences.last().is_some_and(|newest| sequence <= *newest)) {
                    break;
                }
            }
            Found::Batch { .. } | Found::End { .. } | Found::Snapshot { .. } => {}
        }
    }
    let Some(mut plan) = plan else { return check_snapshot(disk, dir, keys, options, rests_on, None).map(|()| None) };
    if let Some(plan) = beginning(disk, dir, keys, options, &sequences, &plan)? {
        return Ok(Some(plan));
    }
    (plan.last, plan.snapshot) = (last, rests_on);
    cut_from(disk, dir, &sequences, &mut plan)?;
    check_snapshot(disk, dir, keys, options, rests_on, Some(&plan))?;
    let cut = Planned { disk, dir, plan: &plan };
    let (_, left) =
        look(&cut, dir, keys, &options).map_err(|error| plan.hopeless(&format!("what comes before it: {error}")))?;
    plan.last = left.last.index;
    plan.snapshot = left.snapshot.map_or(Index(0), |snapshot| snapshot.position.index);
    Ok(Some(plan))
}

/// A disk as a plan would leave it, for reading.
#[derive(Debug)]
struct Planned<'a> {
    disk: &'a dyn Disk,
    dir: &'a Path,
    plan: &'a Plan,
}

impl Planned<'_> {
    /// Where the file is cut.
    fn cut(&self, path: &Path) -> Option<u64> {
        let name = path.strip_prefix(self.dir).ok()?.to_str()?;
        self.plan.cuts.iter().find(|cut| cut.file == name).map(|cut| cut.from)
    }
}

impl Disk for Planned<'_> {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        if path == self.dir.join(NEWEST) {
            return Err(io::ErrorKind::NotFound.into());
        }
        match self.cut(path) {
            Some(0) => Err(io::ErrorKind::NotFound.into()),
            Some(from) => Ok(Arc::new(PlannedFile { file: self.disk.open(path)?, from })),
            None => self.disk.open(path),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = self.disk.list(dir)?;
        names.retain(|name| self.cut(&dir.join(name)) != Some(0));
        Ok(names)
    }

    fn create(&self, _: &Path) -> io::Result<Arc<dyn File>> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn rename(&self, _: &Path, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn remove(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// A segment with zeros from where it is cut.
#[derive(Debug)]
struct PlannedFile {
    file: Arc<dyn File>,
    from: u64,
}

impl File for PlannedFile {
    fn read_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.file.read_at(offset, bytes)?;
        let stays = usize::try_from(self.from.saturating_sub(offset)).unwrap_or(usize::MAX);
        if let Some(cut) = bytes.get_mut(stays..) {
            cut.fill(0);
        }
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync_data(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
}

/// A plan that cuts off the damage and everything before it, if a whole snapshot covers that and the rest is whole.
fn beginning(
    disk: &dyn Disk,
    dir: &Path,
    keys: &Keyring,
    options: Options,
    sequences: &[u64],
    damage: &Plan,
) -> Result<Option<Plan>, RepairError> {
    let Some(damaged) = segment::sequences(std::slice::from_ref(&damage.file)).pop() else { return Ok(None) };
    let Some(newest) = sequences.last().copied().filter(|newest| *newest > damaged) else { return Ok(None) };
    // With segments missing at the end too, what they held is in no snapshot.
    if !newest::read(disk, dir).is_ok_and(|told| newest::missing(told, newest).is_none()) {
        return Ok(None);
    }
    // There may be more damage further on, and damage that shows only in the segment after it: what opens is what counts.
    let mut plan = Plan { covered: true, sequence: newest, ..damage.clone() };
    for sequence in sequences.iter().copied().filter(|sequence| *sequence < newest) {
        let file = segment::name(sequence);
        let path = dir.join(&file);
        let bytes = disk.open(&path).and_then(|file| file.len()).doing("read the length of", &path)?;
        plan.cuts.push(CutOff { file, from: 0, bytes });
        let Ok((_, left)) = look(&Planned { disk, dir, plan: &plan }, dir, keys, &options) else { continue };
        let snapshot = left.snapshot.map_or(Index(0), |snapshot| snapshot.position.index);
        // One that is not whole is told of by the plan that cuts off the end.
        if snapshot != Index(0) && check_snapshot(disk, dir, keys, options, snapshot, None).is_ok() {
            (plan.last, plan.snapshot) = (left.last.index, snapshot);
            return Ok(Some(plan));
        }
    }
    Ok(None)
}

/// Lists what is to be cut off from the damage on.
fn cut_from(disk: &dyn Disk, dir: &Path, sequences: &[u64], plan: &mut Plan) -> Result<(), RepairError> {
    let damaged = segment::sequences(std::slice::from_ref(&plan.file)).pop().unwrap_or(u64::MAX);
    for sequence in sequences.iter().copied().filter(|sequence| *sequence >= damaged) {
        let file = segment::name(sequence);
        let path = dir.join(&file);
        let len = disk.open(&path).and_then(|file| file.len()).doing("read the length of", &path)?;
        let from = if sequence == damaged && plan.offset >= SECTOR && len > plan.offset { plan.offset } else { 0 };
        plan.cuts.push(CutOff { file, from, bytes: len - from });
    }
    let whole = plan.cuts.iter().filter(|cut| cut.from == 0).count();
    let stays = sequences.iter().filter(|sequence| **sequence < damaged).count() + plan.cuts.len() - whole;
    match sequences.get(stays.wrapping_sub(1)).filter(|_| stays > 0) {
        Some(sequence) => plan.sequence = *sequence,
        None => return Err(plan.hopeless("nothing of the log stands before that")),
    }
    Ok(())
}

/// Whether the snapshot that a log rests on is whole.
fn check_snapshot(
    disk: &dyn Disk,
    dir: &Path,
    keys: &Keyring,
    options: Options,
    index: Index,
    plan: Option<&Plan>,
) -> Result<(), RepairError> {
    if index == Index(0) {
        return Ok(());
    }
    let read = || -> Result<(), WalError> {
        let mut reader = SnapshotReader::open(disk, dir, keys, options.lineage, index)?;
        while reader.next_chunk()?.is_some() {}
        Ok(())
    };
    read().map_err(|error| {
        let file = snapshot::name(index);
        match plan {
            Some(plan) => plan.hopeless(&format!("what comes before that needs {file}: {error}")),
            None => match error {
                WalError::Damaged { file, offset, what } => {
                    RepairError::Hopeless { file, offset, what, why: "the log rests on that snapshot".to_owned() }
                }
                error => RepairError::Hopeless {
                    file,
                    offset: 0,
                    what: error.to_string(),
                    why: "the log rests on that snapshot".to_owned(),
                },
            },
        }
    })
}

impl Plan {
    fn hopeless(&self, why: &str) -> RepairError {
        let Self { file, offset, what, .. } = self.clone();
        RepairError::Hopeless { file, offset, what, why: why.to_owned() }
    }
}

/// Does it. A crash in the middle leaves a log that is still refused, and a plan for the rest.
pub fn carry_out(
    disk: &dyn Disk,
    dir: &Path,
    keys: impl Into<Keyring>,
    options: Options,
    plan: &Plan,
) -> Result<(), WalError> {
    let keys = &keys.into();
    let lost = dir.join(LOST);
    disk.create_dir(&lost).doing("create", &lost)?;
    disk.sync_dir(dir).doing("sync", dir)?;
    // The newest first: what is left is a log with damage at its end at every moment.
    for cut in plan.cuts.iter().rev() {
        let path = dir.join(&cut.file);
        if cut.from == 0 {
            let names = disk.list(&lost).doing("list", &lost)?;
            let free = (1..).map(|number| format!("{}-whole-{number}", cut.file)).find(|name| !names.contains(name));
            let kept = lost.join(free.expect("there are more numbers than files"));
            disk.rename(&path, &kept).doing("rename a file to", &kept)?;
        } else {
            let sequence = segment::sequences(std::slice::from_ref(&cut.file)).pop().unwrap_or_default();
            let segment = Arc::new(Segment::open(disk, dir, sequence, keys, options.lineage)?);
            recover::cut(disk, dir, &segment, cut.from)?;
        }
        disk.sync_dir(&lost).doing("sync", &lost)?;
        disk.sync_dir(dir).doing("sync", dir)?;
    }
    // A damaged one is replaced as a whole.
    match disk.remove(&dir.join(NEWEST)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).doing("remove", &dir.join(NEWEST));
        }
        _ => {}
    }
    Newest::create(disk, dir, plan.sequence).map(|_| ())
}
