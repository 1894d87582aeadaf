//! The apply thread, and the way to it.
//!
//! A request that is small and alone is carried out by whoever hands it in, if nobody else is at it
//! ([`crate::sys::stage`]): for one small write the hop to this thread and back took longer than applying it.

use std::io;
use std::sync::Arc;

use raft::eraftpb::Entry;

use super::{Applier, ApplyError, Effect};
use crate::store::State;
use crate::sys::metrics::{Counter, Histogram, Metrics};
use crate::sys::queue::{self, Full, Receiver, Sender};
use crate::sys::stage::Stage;
use crate::sys::thread::{self, Thread};
use crate::sys::time::monotonic;
use crate::types::log::StateHash;
use crate::types::{Index, NodeId, Outcome, Position};

/// Committed entries in log order. The token is the proposer's, where it waits at this manager.
#[derive(Debug)]
pub struct Work {
    /// Entry and token.
    pub entries: Vec<(Entry, Option<u64>)>,
}

/// What the apply thread is asked to do.
#[derive(Debug)]
pub enum Request {
    /// Apply entries.
    Apply(Work),
    /// Go on from a snapshot.
    Install {
        /// The snapshot's state.
        state: Box<State>,
    },
}

/// How far a request brought the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// The last entry applied.
    pub applied: Position,
    /// Membership entries and whether each was accepted.
    pub members: Vec<(Index, bool)>,
    /// The last mark's hash.
    pub mark: Option<StateHash>,
    /// Payload bytes of the entries, for whoever bounds what waits here.
    pub bytes: u64,
    /// The Raft group's configuration is another than before.
    pub configuration_changed: bool,
    /// Nodes that were removed, or are managers no more.
    pub departed: Vec<NodeId>,
    /// The state was replaced as a whole, so that any node may have been.
    pub installed: bool,
}

impl Request {
    /// Whether it takes no longer than waking another thread.
    fn is_small(&self) -> bool {
        match self {
            Self::Apply(work) => {
                work.entries.len() <= SMALL_ENTRIES
                    && work.entries.iter().map(|(entry, _)| entry.data.len()).sum::<usize>() <= SMALL_BYTES
            }
            Self::Install { .. } => false,
        }
    }
}

/// The most entries of a request that is carried out where it is handed in.
const SMALL_ENTRIES: usize = 4;
/// The most bytes of their payloads.
const SMALL_BYTES: usize = 16 << 10;

/// Where requests are handed in. Dropping the last clone is the order to stop.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Sender<Request>,
    stage: Arc<Stage<Apply>>,
}

impl Handle {
    /// Has a request carried out after all earlier ones, by the apply thread or here and now; gives it back when too many
    /// wait. Never waits.
    pub fn give(&self, request: Request) -> Result<(), Full<Request>> {
        let here = self.requests.is_empty() && request.is_small();
        self.requests.put(request)?;
        if !here || !self.stage.try_run(Apply::drain) {
            self.requests.wake();
        }
        Ok(())
    }
}

/// What is called once for each request with what it did, and with the outcomes of the changes that had a token.
type OnApplied = Box<dyn FnMut(Progress, Vec<(u64, Outcome)>) + Send>;

/// Starts the apply thread, for which at most `capacity` requests wait. `on_applied` is called once per request, with the
/// outcomes of the changes that had a token, on whichever thread carried it out, and must not block. The thread ends when
/// the handle is dropped.
///
/// An entry that cannot be applied ends the process with code 5: this replica cannot follow the others any more, and
/// whatever it would serve might be wrong.
pub fn spawn(
    applier: Applier,
    capacity: usize,
    metrics: &Metrics,
    on_applied: impl FnMut(Progress, Vec<(u64, Outcome)>) + Send + 'static,
) -> io::Result<(Handle, Thread)> {
    let (requests, inbox) = queue::bounded(capacity, metrics.queue("apply"));
    let (inbox, stage) = (Arc::new(inbox), Arc::new(Stage::default()));
    stage.begin(Apply {
        applier,
        inbox: inbox.clone(),
        entries: metrics.counter("skep_apply_entries_total"),
        batch_time: metrics.histogram("skep_apply_batch_seconds"),
        on_applied: Box::new(on_applied),
    });
    let handle = Handle { requests, stage: stage.clone() };
    let thread = thread::spawn("apply", move || {
        while inbox.wait() {
            stage.run(Apply::drain);
        }
        stage.end();
    })?;
    Ok((handle, thread))
}

/// Exit code for a node whose data is damaged or not understood.
const EXIT_DAMAGED: i32 = 5;

/// The one writer of the store.
struct Apply {
    applier: Applier,
    /// From raft.
    inbox: Arc<Receiver<Request>>,
    entries: Counter,
    batch_time: Histogram,
    on_applied: OnApplied,
}

impl Apply {
    fn drain(&mut self) {
        while let Some(request) = self.inbox.try_recv() {
            let begin = monotonic();
            match self.carry_out(request) {
                Ok((progress, outcomes)) => {
                    self.batch_time.record(monotonic().since(begin));
                    (self.on_applied)(progress, outcomes);
                }
                Err(error) => {
                    log::error!("{error}: this manager stops, because it can no longer follow the others");
                    std::process::exit(EXIT_DAMAGED);
                }
            }
        }
    }

    fn carry_out(&mut self, request: Request) -> Result<(Progress, Vec<(u64, Outcome)>), ApplyError> {
        let mut progress = Progress::default();
        let mut outcomes = Vec::new();
        match request {
            Request::Apply(work) => {
                for (entry, token) in work.entries {
                    self.apply(&entry, token, &mut progress, &mut outcomes)?;
                }
            }
            Request::Install { state } => {
                self.applier.store().install(*state);
                progress.configuration_changed = true;
                progress.installed = true;
            }
        }
        progress.departed = self.applier.take_departed();
        progress.applied = self.applier.store().view(State::applied);
        Ok((progress, outcomes))
    }

    fn apply(
        &mut self,
        entry: &Entry,
        token: Option<u64>,
        progress: &mut Progress,
        outcomes: &mut Vec<(u64, Outcome)>,
    ) -> Result<(), ApplyError> {
        let effect = self.applier.apply(entry)?;
        self.entries.add(1);
        progress.bytes += entry.data.len() as u64;
        match effect {
            Effect::Outcome(outcome) => outcomes.extend(token.map(|token| (token, outcome))),
            Effect::Member { accepted, .. } => {
                progress.members.push((Index(entry.index), accepted));
                progress.configuration_changed |= accepted;
            }
            Effect::Mark(hash) => progress.mark = Some(hash),
            Effect::None | Effect::Address => {}
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;
    use std::time::Duration;

    use raft::eraftpb::ConfChangeType;

    use super::super::machine::tests::{applier, create, entry, learner, member};
    use super::*;
    use crate::types::log::Command;
    use crate::types::{Kind, Revision};

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_request_is_answered_once_with_everything_it_did() {
        let metrics = Metrics::default();
        let (sender, reports) = mpsc::channel();
        let applier = applier();
        let store = applier.store().clone();
        let (handle, thread) = spawn(applier, 8, &metrics, move |progress, outcomes| {
            sender.send((progress, outcomes)).unwrap();
        })
        .unwrap();

        let entries = vec![
            (entry(2, Vec::new()), None),
            (create(3, "one"), Some(30)),
            (create(4, "two"), None),
            (member(5, ConfChangeType::AddLearnerNode, 2, &learner(2)), None),
            (member(6, ConfChangeType::AddLearnerNode, 2, &learner(2)), None),
            (create(7, "three"), Some(70)),
            (entry(8, super::super::encode(&Command::Mark { floors: Vec::new() })), None),
        ];
        let bytes = entries.iter().map(|(entry, _)| entry.data.len() as u64).sum();
        handle.give(Request::Apply(Work { entries })).unwrap();
        let (progress, outcomes) = reports.recv_timeout(SOON).unwrap();
        let (applied, mark) = store.view(|state| (state.applied(), state.hash()));
        let expected = Progress {
            applied,
            members: vec![(Index(5), true), (Index(6), false)],
            mark: Some(StateHash { index: Index(8), revision: Revision(3), sum: mark }),
            bytes,
            configuration_changed: true,
            ..Progress::default()
        };
        assert_eq!((progress, applied.index), (expected, Index(8)));
        let committed = |revision| Outcome::Committed(Revision(revision));
        assert_eq!(outcomes, [(30, committed(1)), (70, committed(3))]);

        handle.give(Request::Apply(Work { entries: vec![(create(9, "four"), None)] })).unwrap();
        let (progress, outcomes) = reports.recv_timeout(SOON).unwrap();
        assert_eq!((progress.applied.index, progress.configuration_changed, outcomes.len()), (Index(9), false, 0));
        assert_eq!(metrics.counter("skep_apply_entries_total").get(), 8);

        drop(handle);
        assert!(thread.join(SOON));
    }

    #[test]
    fn entries_follow_an_installed_snapshot() {
        let metrics = Metrics::default();
        let (sender, reports) = mpsc::channel();
        let (applier, mut other) = (applier(), super::super::machine::tests::applier());
        let store = applier.store().clone();
        for index in 2..10 {
            other.apply(&create(index, &format!("c{index}"))).unwrap();
        }
        let (handle, thread) = spawn(applier, 8, &metrics, move |progress, _| sender.send(progress).unwrap()).unwrap();
        handle.give(Request::Install { state: Box::new(other.store().snapshot()) }).unwrap();
        handle.give(Request::Apply(Work { entries: vec![(create(10, "c10"), None)] })).unwrap();
        let installed = reports.recv_timeout(SOON).unwrap();
        assert_eq!((installed.applied.index, installed.configuration_changed), (Index(9), true));
        assert!(installed.installed);
        assert_eq!(reports.recv_timeout(SOON).unwrap().applied.index, Index(10));
        assert_eq!(store.view(|state| state.count(Kind::Config)), 9);
        drop(handle);
        assert!(thread.join(SOON));
    }
}
