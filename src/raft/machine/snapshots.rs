//! When a snapshot is due, and how much log stays.

use super::*;

/// Log and snapshot that are to go from the disk, because they are sealed with a key that is to go or
/// cannot be read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Retiring {
    /// The last entry.
    upto: Index,
    /// A snapshot was being written when this was asked for: it may be sealed with the old key.
    another_first: bool,
    /// The snapshot that replaces all of it is on disk.
    written: bool,
}

impl Machine {
    pub(super) fn on_retire(&mut self, upto: Index) {
        match &mut self.retiring {
            Some(retiring) if !retiring.written => retiring.upto = retiring.upto.max(upto),
            _ => {
                let another_first = self.creating_snapshot;
                self.retiring = Some(Retiring { upto, another_first, written: false });
            }
        }
    }

    /// A follower needs the log up to this entry, and it cannot be read. The state that it led to is whole: a snapshot takes its
    /// place. Whoever needs it asks with every heartbeat, so once it is known that is enough.
    pub(super) fn on_unreadable(&mut self, upto: Index) {
        let is_known = self.retiring.is_some_and(|retiring| upto <= retiring.upto);
        if upto >= self.node.store().first() && !is_known {
            log::error!(
                "writing a snapshot to replace the log up to entry {upto}, which cannot be read: look at this disk"
            );
            self.on_retire(upto);
        }
    }

    /// Whether a snapshot that was just written is the one that lets everything before it retire.
    fn retires_log(&mut self, position: Position) -> bool {
        let Some(retiring) = self.retiring.as_mut().filter(|retiring| !retiring.written) else { return false };
        if std::mem::take(&mut retiring.another_first) || position.index < retiring.upto {
            return false;
        }
        retiring.written = true;
        true
    }

    /// Goes on with what is to retire: the snapshot as soon as it can hold everything, then the log as others let go of it.
    fn retire(&mut self) {
        let Some(retiring) = self.retiring else { return };
        if !retiring.written {
            if self.applied >= retiring.upto {
                self.create_snapshot();
            }
        } else if self.node.store().first() > retiring.upto {
            self.retiring = None;
        } else {
            self.compact(self.node.store().snapshot_mark().position);
        }
    }

    pub(super) fn note_sizes(&mut self, entries: &[Entry]) {
        for entry in entries {
            let bytes = entry_bytes(entry);
            self.log_bytes += bytes;
            self.total_bytes += bytes;
            if self.sizes.back().is_none_or(|(index, at)| self.total_bytes >= at + SIZE_GRAIN || index.0 >= entry.index)
            {
                while self.sizes.back().is_some_and(|(index, _)| index.0 >= entry.index) {
                    self.sizes.pop_back();
                }
                self.sizes.push_back((Index(entry.index), self.total_bytes));
            }
        }
    }

    pub(super) fn check_snapshot_due(&mut self, now: Instant) {
        let settings = self.replicated.settings;
        let size = settings.snapshot_bytes.max(2 * self.node.store().snapshot_mark().bytes);
        // The managers of a swarm do not all write at once.
        let due = size + size / 8 * u64::from(self.rank_without(RaftId(0)));
        let wanted = self.node.mut_store().take_snapshot_wanted();
        if self.snapshot_pause.is_some_and(|(until, _)| now < until) {
            return;
        }
        self.retire();
        // What is not committed may be long, and a snapshot of what there is one of already lets nothing of it go.
        let is_newer = self.node.store().snapshot_mark().position.index < self.applied;
        if self.log_bytes > due && is_newer {
            self.create_snapshot();
        } else if self.would_make_room(now) {
            self.low_disk_snapshot = Some(now);
            self.low_disk_floor = Some(self.disk.segments);
            self.create_snapshot();
        } else if let Some((index, _)) = wanted
            && index <= self.applied.0
            && is_newer
        {
            self.create_snapshot();
        }
    }

    pub(super) fn create_snapshot(&mut self) {
        if !self.creating_snapshot && self.applied.0 > 0 {
            self.creating_snapshot = true;
            self.effects.create_snapshot = true;
        }
    }

    pub(super) fn on_snapshot_created(&mut self, now: Instant, mark: SnapshotMark) {
        self.creating_snapshot = false;
        self.snapshot_pause = None;
        let position = mark.position;
        self.effects.happened.push(Happened::SnapshotWritten { index: position.index, bytes: mark.bytes });
        let answer = Answer::SnapshotWritten { position, bytes: mark.bytes };
        self.finish_snapshot_orders(OrderResult::Done(answer));
        let retires = self.retires_log(position);
        if position <= self.node.store().snapshot_mark().position {
            // One of the same entry may have taken the file's place, sealed anew.
            if retires {
                self.effects.compact = Some(self.node.store().first());
            }
            return;
        }
        self.log_bytes = self.bytes_after(position.index);
        self.node.mut_store().snapshot_created(mark);
        let record = Some(wal::SnapshotMark::Created(position)).filter(|_| !planted(Fault::SnapshotUnrecorded));
        self.persist(now, None, Vec::new(), record, Vec::new());
        if retires {
            // Even if nothing of it can go yet: the segment that is written must be followed by another.
            self.effects.compact = Some(self.node.store().first());
        }
        self.compact(position);
    }

    /// Lets go of the log that the snapshot of `position` covers, except for what others may still need; on a low disk, and
    /// when its key is to go, they get the snapshot instead.
    pub(super) fn compact(&mut self, position: Position) {
        let keep_bytes = if self.disk.level == DiskLevel::Ok { self.replicated.settings.keep_bytes } else { 0 };
        let mut keep_from = match self.retiring {
            // Sizes are known by samples only; here it is about every entry.
            Some(_) => position.index.next(),
            None => self.index_bytes_before(position.index, keep_bytes),
        };
        if self.is_leader() {
            let slowest = self
                .replicated
                .members
                .iter()
                .filter(|member| member.raft_id != self.raft_id)
                .filter_map(|member| self.node.raft.prs().get(member.raft_id.0))
                .filter(|progress| progress.recent_active && progress.matched > 0)
                .map(|progress| progress.matched)
                .min();
            // Nobody needs what everybody active has.
            keep_from = keep_from.max(Index(slowest.unwrap_or(u64::MAX).saturating_add(1)).min(position.index.next()));
        }
        // Whoever is being sent an older snapshot needs the log from there on.
        let sending = self.node.raft.prs().iter().filter(|(_, progress)| progress.state == ProgressState::Snapshot);
        let sent = sending.map(|(_, progress)| Index(progress.pending_snapshot)).min().unwrap_or(position.index);
        // What raft-rs has not been told to be applied it may still read, when it campaigns.
        let keep_from = keep_from.min(position.index.min(sent).min(self.applied).next());
        if keep_from > self.node.store().first() {
            self.node.mut_store().compact(keep_from);
            while self.sizes.len() > 1 && self.sizes[1].0 <= keep_from {
                self.sizes.pop_front();
            }
            self.effects.compact = Some(keep_from);
        }
    }

    pub(super) fn bytes_after(&self, index: Index) -> u64 {
        let at = self.sizes.iter().rev().find(|(sampled, _)| *sampled <= index).map_or(0, |(_, at)| *at);
        self.total_bytes - at.min(self.total_bytes)
    }

    /// The index from which on at most `bytes` of log stand before `index`.
    pub(super) fn index_bytes_before(&self, index: Index, bytes: u64) -> Index {
        let end = self.total_bytes - self.bytes_after(index).min(self.total_bytes);
        let from = self.sizes.iter().find(|(sampled, at)| *sampled <= index && at + bytes >= end);
        from.map_or(index.next(), |(sampled, _)| *sampled)
    }
}
