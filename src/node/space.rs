//! The thread that watches how full the disk is, and keeps the log's reserve.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::raft::Event;
use crate::raft::run::{Handle, Input};
use crate::store::Store;
use crate::sys::metrics::Metrics;
use crate::sys::queue::{Received, Sender, bounded};
use crate::sys::thread::{self, Thread};
use crate::sys::time::monotonic;
use crate::types::Kind;
use crate::types::api::{DiskLevel, DiskSpace};
use crate::wal::Reserve;

/// Between two looks at a disk with plenty of room, and at one with little.
const PAUSES: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(200));
/// Plenty: nothing writes this much in the longer pause.
const PLENTY_BYTES: u64 = 2 << 30;

/// Looks once, then starts the thread. It ends when the sender is dropped.
pub fn spawn(reserve: Reserve, store: Arc<Store>, raft: Handle, metrics: &Metrics) -> io::Result<(Sender<()>, Thread)> {
    let (sender, stop) = bounded::<()>(1, metrics.queue("space"));
    let free = metrics.gauge("skep_disk_free_bytes");
    let held = metrics.gauge("skep_disk_reserve_bytes");
    let level = metrics.gauge("skep_disk_level");
    let mut last = DiskSpace::default();
    let mut failing = false;
    let mut look = move || -> Duration {
        let state_bytes = store.view(|state| Kind::ALL.into_iter().map(|kind| state.bytes(kind)).sum());
        match reserve.check(last.level, state_bytes) {
            Ok(space) => {
                failing = false;
                free.set(space.free_bytes);
                held.set(space.reserve_bytes);
                level.set(space.level as u64);
                tell(&last, &space);
                let pause = if space.free_bytes > PLENTY_BYTES { PAUSES.0 } else { PAUSES.1 };
                // Nobody decides anything by the exact number while there is room.
                if space.level != DiskLevel::Ok || last.level != space.level || last.dir.is_empty() {
                    raft.internal(Input::Event(Event::DiskSpace(space.clone())));
                }
                last = space;
                pause
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    log::warn!("cannot see how full the disk of the log is: {error}");
                }
                PAUSES.0
            }
        }
    };
    let mut pause = look();
    let thread = thread::spawn("space", move || {
        while !matches!(stop.recv_until(monotonic() + pause), Received::Closed) {
            pause = look();
        }
    })?;
    Ok((sender, thread))
}

fn tell(before: &DiskSpace, now: &DiskSpace) {
    if now.level == before.level {
        return;
    }
    let DiskSpace { free_bytes, needed_bytes, dir, .. } = now;
    match now.level {
        DiskLevel::Ok => log::info!("there is room on the disk of {dir} again: {free_bytes} bytes are free"),
        DiskLevel::Low => log::warn!(
            "the disk of {dir} is almost full, {free_bytes} bytes are free: this manager takes no changes until \
             {needed_bytes} bytes more are"
        ),
        DiskLevel::Full => log::error!(
            "the disk of {dir} is full, {free_bytes} bytes are free: this manager takes nothing new into its log until \
             {needed_bytes} bytes more are"
        ),
    }
}
