//! Threads as values: named, joined with a deadline, and fatal when they panic.

use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};

/// A running thread. Dropping it does not stop it: a thread ends when its inbox closes.
#[derive(Debug)]
pub struct Thread {
    name: String,
    done: Receiver<()>,
    handle: std::thread::JoinHandle<()>,
}

impl Thread {
    /// Waits until the thread has ended; false when `deadline` passed first.
    pub fn join(self, deadline: Duration) -> bool {
        // The sender is dropped when the thread's closure returns, so an error means "ended".
        let ended = !matches!(self.done.recv_timeout(deadline), Err(crossbeam_channel::RecvTimeoutError::Timeout));
        if ended {
            let _ = self.handle.join();
        }
        ended
    }

    /// The name given at [`spawn`].
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the thread has returned.
    pub fn is_finished(&self) -> bool {
        self.handle.is_finished()
    }
}

/// How much less of a busy processor a thread of [`spawn_background`] gets (`nice`): about a tenth of what another does.
const BACKGROUND_NICE: i32 = 10;

/// As [`spawn`], for work that nobody waits for, such as writing a snapshot: on a busy machine the other threads come first.
pub fn spawn_background(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
    spawn(name, move || {
        // Linux takes the calling thread for its id zero. Lowering oneself is always allowed.
        if let Err(error) = rustix::process::setpriority_process(None, BACKGROUND_NICE) {
            log::debug!("a background thread keeps its priority: {error}");
        }
        body();
    })
}

/// Starts a thread. A panic in it ends the process, whatever the build profile: the other threads would go on serving
/// from a state that nobody maintains any more.
pub fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> std::io::Result<Thread> {
    let (running, done) = bounded::<()>(0);
    let label = name.to_owned();
    let handle = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _running = running;
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            // The panic hook has printed message and place.
            eprintln!("skep: thread {label} panicked: the process stops, because a node without it cannot be trusted");
            std::process::abort();
        }
    })?;
    Ok(Thread { name: name.to_owned(), done, handle })
}
