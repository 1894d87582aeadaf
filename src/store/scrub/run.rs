//! The thread that scrubs: its pace, and whom it tells.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Progress, Rot, Scrubber};
use crate::store::Store;
use crate::sys::metrics::{Counter, Gauge, Metrics};
use crate::sys::queue::{Received, Receiver, Sender, bounded};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic};

/// How fast to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Bytes of objects in one slice.
    pub slice_bytes: u64,
    /// At least so long between slices.
    pub pause: Duration,
    /// Between slices also so many times what the last one took.
    pub rest: u32,
    /// From the begin of one pass to that of the next, and before the first: what was just read from disk was checked on
    /// the way.
    pub every: Duration,
}

impl Pace {
    /// About 2.5 MB a second and at most one part in a hundred of a core, whichever is less, once an hour. A slice takes
    /// a millisecond or two; 100 MB of objects take 40 s of each hour, and an empty store next to nothing.
    pub const PRODUCT: Self =
        Self { slice_bytes: 256 << 10, pause: Duration::from_millis(100), rest: 99, every: Duration::from_secs(3600) };
}

/// An order: begin a pass now, or go on with the one that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Pass;

/// The scrubbing thread; it ends when this is dropped.
pub type Scrub = Sender<Pass>;

/// Starts the thread. It ends when the [`Scrub`] is dropped, or with its first find, which `on_rot` is told.
pub fn spawn(
    store: Arc<Store>,
    pace: Pace,
    metrics: &Metrics,
    on_rot: impl FnOnce(Rot) + Send + 'static,
) -> io::Result<(Scrub, Thread)> {
    let (sender, inbox) = bounded(1, metrics.queue("scrub"));
    let scrub = Runner {
        store,
        pace,
        inbox,
        scrubber: Scrubber::default(),
        passes: metrics.counter("skep_scrub_passes_total"),
        checked: metrics.counter("skep_scrub_checked_total"),
        last_pass: metrics.gauge("skep_scrub_last_pass_ms"),
    };
    let thread = thread::spawn_background("scrub", move || {
        if let Some(rot) = scrub.run() {
            on_rot(rot);
        }
    })?;
    Ok((sender, thread))
}

struct Runner {
    store: Arc<Store>,
    pace: Pace,
    inbox: Receiver<Pass>,
    scrubber: Scrubber,
    passes: Counter,
    /// Objects and remembered changes looked at.
    checked: Counter,
    /// How long the last pass took, milliseconds.
    last_pass: Gauge,
}

impl Runner {
    /// What was found; `None` when the thread is to end.
    fn run(mut self) -> Option<Rot> {
        loop {
            let begin = monotonic() + self.pace.every;
            if let Received::Closed = self.inbox.recv_until(begin) {
                return None;
            }
            match self.pass() {
                Ok(true) => {}
                Ok(false) => return None,
                Err(rot) => return Some(rot),
            }
        }
    }

    /// One pass; false when the thread is to end.
    fn pass(&mut self) -> Result<bool, Rot> {
        let begin = monotonic();
        loop {
            let (slice_begin, checked) = (monotonic(), self.scrubber.checked());
            let progress = self.scrubber.step(&self.store.snapshot(), self.pace.slice_bytes)?;
            self.checked.add(self.scrubber.checked() - checked);
            if progress == Progress::Passed {
                let took = monotonic().since(begin);
                self.passes.add(1);
                self.last_pass.set(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                log::debug!("looked through the state in memory in {took:?}");
                return Ok(true);
            }
            let slice = monotonic().since(slice_begin);
            let until: Instant = monotonic() + self.pace.pause.max(slice * self.pace.rest);
            // An order to begin a pass finds one under way.
            while monotonic() < until {
                if let Received::Closed = self.inbox.recv_until(until) {
                    return Ok(false);
                }
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::store::State;
    use crate::types::object::Config;
    use crate::types::{
        Change, ChangeId, Kind, Lineage, NodeId, Object, ObjectId, Operation, Revision, Term, Timestamp,
    };

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn a_pass_on_order_finds_what_rotted_and_the_thread_ends_with_its_handle() {
        let mut state = State::bootstrap(Lineage(1), NodeId(1), "a:1");
        for n in 1..=30 {
            let mut config = Config { id: ObjectId(n), ..Config::default() };
            config.spec.annotations.name = format!("c{n}");
            let operations = vec![Operation::Create(config.into())];
            let change = Change { id: ChangeId(n), after: Revision(0), time: Timestamp(5), term: None, operations };
            state.apply_change(change, Term(1));
        }
        let store = Arc::new(Store::new(state, 1 << 20));
        let metrics = Metrics::default();
        let pace = Pace { slice_bytes: 1000, pause: Duration::ZERO, rest: 0, every: Duration::from_secs(3600) };
        let (found, finds) = mpsc::channel();
        let (scrub, thread) = spawn(store.clone(), pace, &metrics, move |rot| found.send(rot).unwrap()).unwrap();
        scrub.try_send(Pass).unwrap();
        let deadline = monotonic() + SOON;
        while metrics.counter("skep_scrub_passes_total").get() == 0 {
            assert!(monotonic() < deadline, "no pass ends");
            std::thread::yield_now();
        }
        assert_eq!(metrics.counter("skep_scrub_checked_total").get(), 60);
        store.write(|state| {
            let rotted = state.rot(Kind::Config, ObjectId(17), |object| match object {
                Object::Config(config) => config.spec.annotations.name.push('x'),
                _ => unreachable!(),
            });
            (assert!(rotted), None)
        });
        scrub.try_send(Pass).unwrap();
        assert_eq!(finds.recv_timeout(SOON).unwrap(), Rot::Object { kind: Kind::Config, id: ObjectId(17) });
        assert!(thread.join(SOON));

        let (scrub, thread) = spawn(store, pace, &metrics, |rot| panic!("no pass was due: {rot}")).unwrap();
        drop(scrub);
        assert!(thread.join(SOON));
    }
}
