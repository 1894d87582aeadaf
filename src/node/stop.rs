//! Why and when a node stops by itself.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Condvar, Mutex, MutexGuard};

use crate::raft::Stop;

/// Why a node has stopped.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// It was asked to.
    Asked,
    /// It left the swarm or was removed from it; its log was moved aside.
    Removed,
    /// It belongs to a former history of its swarm, and has had no leader for minutes.
    Outlived(String),
    /// Its state or log cannot be trusted.
    Fenced(String),
    /// Its memory cannot be trusted.
    Rotten(String),
}

impl From<Stop> for Stopped {
    fn from(stop: Stop) -> Self {
        match stop {
            Stop::Removed => Self::Removed,
            Stop::Fenced(why) => Self::Fenced(why),
            Stop::Rotten(why) => Self::Rotten(why),
        }
    }
}

/// The first reason to stop, and who waits for one.
#[derive(Debug)]
pub struct StopCell<R> {
    reason: Mutex<Option<R>>,
    changed: Condvar,
    /// A person asked this node to leave the group.
    leaving: AtomicBool,
}

impl<R> Default for StopCell<R> {
    fn default() -> Self {
        Self { reason: Mutex::new(None), changed: Condvar::new(), leaving: AtomicBool::new(false) }
    }
}

impl<R: Clone + fmt::Debug> StopCell<R> {
    /// Gives a reason; a later one changes nothing.
    pub fn stop(&self, reason: R) {
        let mut slot = self.lock();
        if slot.is_none() {
            log::debug!("stopping: {reason:?}");
            *slot = Some(reason);
            self.changed.notify_all();
        }
    }

    /// Whether there is a reason.
    pub fn is_stopped(&self) -> bool {
        self.lock().is_some()
    }

    /// Blocks until there is a reason.
    pub fn wait(&self) -> R {
        let mut slot = self.lock();
        loop {
            if let Some(reason) = &*slot {
                return reason.clone();
            }
            slot = self.changed.wait(slot).expect("no code panics while it holds this lock");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<R>> {
        self.reason.lock().expect("no code panics while it holds this lock")
    }
}

impl StopCell<Stopped> {
    /// Whether the reason is that the node is no longer a member.
    pub fn is_removed(&self) -> bool {
        *self.lock() == Some(Stopped::Removed)
    }

    /// A person asked this node to leave the group, or was refused.
    pub fn ask_to_leave(&self, asked: bool) {
        self.leaving.store(asked, SeqCst);
    }

    /// Whether a person asked this node to leave the group.
    pub fn was_asked_to_leave(&self) -> bool {
        self.leaving.load(SeqCst)
    }
}
