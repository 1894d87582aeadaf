//! A running manager: its threads, and the order in which they end.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::outlet::Completion;
use super::stop::{StopCell, Stopped};
use crate::net::NetHandle;
use crate::raft::run::Handle;
use crate::raft::{Event, Timing};
use crate::store::Store;
#[cfg(debug_assertions)]
use crate::store::scrub::Pass;
use crate::store::scrub::Scrub;
use crate::sys::metrics::{Counter, Gauge};
use crate::sys::queue::Sender;
use crate::sys::thread::Thread;
use crate::sys::time::monotonic;
use crate::types::RaftId;
#[cfg(debug_assertions)]
use crate::types::{Change, Kind, Object};
use crate::wal;

/// What of a node is a manager: from when it takes part in the Raft group until it does no more.
#[derive(Debug)]
pub struct Manager {
    pub raft_id: RaftId,
    pub listen: SocketAddr,
    pub timing: Timing,
    pub stop: Arc<StopCell<Stopped>>,
    pub raft: Handle,
    pub net: NetHandle<Completion>,
    pub pulse: wal::run::Pulse,
    pub applied: Counter,
    pub apply_queue: Gauge,
    pub seen: (AtomicU64, AtomicU64),
    pub running: Mutex<Option<Running>>,
    pub store: Arc<Store>,
}

/// The threads, in the order in which they are stopped.
#[derive(Debug)]
pub struct Running {
    pub threads: Vec<Thread>,
    /// Ends the thread that scrubs, when it is dropped.
    pub scrub: Scrub,
    /// Dropped, it ends the thread that watches the disk.
    pub space: Sender<()>,
    /// Dropped, it ends the thread that keeps the certificate.
    pub agent: Sender<()>,
}

/// An unsynced write older than this is no progress.
const STUCK: Duration = Duration::from_secs(20);
/// How long a leader that stops waits for another to take over.
const HAND_OVER: Duration = Duration::from_millis(1500);

impl Manager {
    /// Hands leadership over, stops the threads, and gives up after `deadline`: what was acknowledged is on disk whatever
    /// happens.
    pub fn stop(&self, deadline: Duration) {
        let until = monotonic() + deadline;
        if self.raft.report().serving && self.raft.report().members.len() > 1 {
            self.raft.link(Event::Stopping);
            let patience = until.min(monotonic() + HAND_OVER);
            while self.raft.report().serving && monotonic() < patience {
                std::thread::sleep(Duration::from_millis(self.timing.tick_ms / 10));
            }
        }
        self.halt(until.since(monotonic()), &Stopped::Asked);
        self.stop.stop(Stopped::Asked);
    }

    /// Stops the threads, in the order in which they feed each other.
    pub fn halt(&self, deadline: Duration, reason: &Stopped) {
        let Some(running) = self.running.lock().expect("no code panics while it holds this lock").take() else {
            return;
        };
        let until = monotonic() + deadline;
        if *reason != Stopped::Asked {
            // A node that may not take part says nothing more.
            self.raft.stop();
        }
        // A full queue means that the net thread is stuck; the deadline ends it.
        let _ = self.net.send(Completion::Shutdown);
        drop((running.scrub, running.agent));
        let mut threads = running.threads.into_iter();
        if let Some(net) = threads.next() {
            net.join(until.since(monotonic()));
        }
        self.raft.stop();
        self.pulse.give_up();
        drop(running.space);
        for thread in threads {
            let name = thread.name().to_owned();
            if !thread.join(until.since(monotonic())) {
                log::warn!("thread {name} did not stop in time");
            }
        }
    }

    /// Whether raft, log and apply have made progress since the last call, or had nothing to do.
    pub fn progress(&self) -> bool {
        let turns = self.raft.turns();
        let applied = self.applied.get();
        let raft = self.seen.0.swap(turns, Relaxed) != turns;
        let apply = self.seen.1.swap(applied, Relaxed) != applied || self.apply_queue.get() == 0;
        let log = self.pulse.oldest_unsynced().is_none_or(|since| monotonic().since(since) < STUCK);
        raft && apply && log
    }

    /// Flips a bit of a config in memory behind the store's back, and looks through the memory now instead of within the
    /// hour. For tests of what happens then.
    #[cfg(debug_assertions)]
    pub fn rot(&self, config: &str) {
        self.store.write(|state| {
            let id = state.by_name(Kind::Config, config).expect("the test has made it").object.id();
            let rotted = state.rot(Kind::Config, id, |object| match object {
                Object::Config(config) => config.spec.data[0] ^= 1,
                _ => unreachable!("it is a config"),
            });
            assert!(rotted);
            ((), None)
        });
        self.scrub();
    }

    /// Looks through the memory now.
    #[cfg(debug_assertions)]
    pub fn scrub(&self) {
        if let Some(running) = &*self.running.lock().expect("no code panics while it holds this lock") {
            // A pass that is waiting already will do.
            let _ = running.scrub.try_send(Pass);
        }
    }

    /// Makes a config in this replica only, so that its state hash differs from the others'. For tests.
    #[cfg(debug_assertions)]
    pub fn diverge(&self, change: Change) {
        self.store.write(|state| {
            let term = state.applied().term;
            state.apply_change(change, term)
        });
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.halt(Duration::from_secs(2), &Stopped::Asked);
    }
}
