//! A stage of the pipeline that is not tied to its thread: whoever has work for it may do the work.
//!
//! A hop to a thread that sleeps takes longer than most stages need for one small write, and most of its processor time
//! besides. A thread that has queued something runs the stage itself when nobody else is at it ([`Stage::try_run`]); when
//! somebody is, that one looks again before it leaves. So one thread at a time is in the stage, none ever waits for another
//! there, and nothing that was queued before a call is left lying.
//!
//! What may run there must not block, for the thread that it runs on has other things to do.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, TryLockError};

/// The stage's state while it is in service, and a note that somebody has work for it.
pub struct Stage<T> {
    state: Mutex<Option<T>>,
    due: AtomicBool,
}

impl<T> Default for Stage<T> {
    fn default() -> Self {
        Self { state: Mutex::new(None), due: AtomicBool::new(false) }
    }
}

impl<T> std::fmt::Debug for Stage<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").field("due", &self.due).finish_non_exhaustive()
    }
}

impl<T> Stage<T> {
    /// Takes `state` into service.
    pub fn begin(&self, state: T) {
        *self.lock() = Some(state);
    }

    /// Ends the service. What is queued from then on is nobody's.
    pub fn end(&self) -> Option<T> {
        self.lock().take()
    }

    /// Runs `turn` here and now, again as long as others had work meanwhile; false when another thread is at it, or this
    /// one further up its stack, who sees to it, or when the stage is not in service.
    pub fn try_run(&self, mut turn: impl FnMut(&mut T)) -> bool {
        self.due.store(true, SeqCst);
        // Whoever holds the lock when this fails has not looked at `due` for the last time yet.
        while self.due.load(SeqCst) {
            let mut state = match self.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::WouldBlock) => return false,
                Err(TryLockError::Poisoned(_)) => panic!("a panic in a stage ends the process"),
            };
            let Some(state) = state.as_mut() else { return false };
            while self.due.swap(false, SeqCst) {
                turn(state);
            }
        }
        true
    }

    /// Runs `turn` once the thread that is at it, if any, is done; what it gave the last time. `None` when the stage is not
    /// in service. For the stage's own thread, which has nothing else to do.
    pub fn run<R>(&self, mut turn: impl FnMut(&mut T) -> R) -> Option<R> {
        loop {
            let mut state = self.lock();
            self.due.store(false, SeqCst);
            let result = turn(state.as_mut()?);
            drop(state);
            if !self.due.load(SeqCst) {
                return Some(result);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<T>> {
        self.state.lock().expect("a panic in a stage ends the process")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    #[test]
    fn nothing_that_was_queued_is_left_whoever_runs() {
        const EACH: u64 = 20_000;
        let (stage, queued) = (Arc::new(Stage::default()), Arc::new(AtomicU64::new(0)));
        stage.begin(0_u64);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (stage, queued) = (stage.clone(), queued.clone());
                std::thread::spawn(move || {
                    for _ in 0..EACH {
                        queued.fetch_add(1, SeqCst);
                        stage.try_run(|taken| *taken += queued.swap(0, SeqCst));
                    }
                })
            })
            .collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!((queued.load(Relaxed), stage.end()), (0, Some(4 * EACH)));
    }

    #[test]
    fn what_a_turn_queues_for_its_own_stage_is_done_by_the_same_call() {
        let stage = Stage::default();
        stage.begin(3);
        let turns = AtomicU64::new(0);
        let nested = |left: &mut u64| {
            turns.fetch_add(1, Relaxed);
            if *left > 0 {
                *left -= 1;
                assert!(!stage.try_run(|_| unreachable!("this thread is in the stage already")));
            }
        };
        assert!(stage.try_run(nested));
        assert_eq!((turns.load(Relaxed), stage.end()), (4, Some(0)));
    }

    #[test]
    fn a_stage_out_of_service_runs_nothing() {
        let stage = Stage::<u64>::default();
        assert!(!stage.try_run(|_| unreachable!()));
        assert_eq!(stage.run(|_| 1), None);
        stage.begin(1);
        assert_eq!(stage.run(|state| *state), Some(1));
        assert_eq!(stage.end(), Some(1));
        assert_eq!(stage.run(|state| *state), None);
    }
}
