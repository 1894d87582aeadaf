//! Bounded queues that never block their sender, each with a depth gauge.

use std::sync::{Arc, Mutex};

use crossbeam_channel::{RecvTimeoutError, TrySendError};

use super::metrics::Gauge;
use super::time::{Instant, monotonic};

/// The queue was full; here is what was not queued.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// The sending end of a queue. Clones share the queue.
#[derive(Debug)]
pub struct Sender<T> {
    channel: crossbeam_channel::Sender<T>,
    depth: Gauge,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), depth: self.depth.clone() }
    }
}

impl<T> Sender<T> {
    /// Queues `item`, or gives it back when the queue is full. An item sent after the receiver has gone is dropped:
    /// its thread has stopped, and so does the sender's soon.
    pub fn try_send(&self, item: T) -> Result<(), Full<T>> {
        self.depth.add(1);
        match self.channel.try_send(item) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(item)) => {
                self.depth.sub(1);
                Err(Full(item))
            }
            Err(TrySendError::Disconnected(_)) => {
                self.depth.sub(1);
                Ok(())
            }
        }
    }

    /// Items queued now.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }

    /// How many items fit.
    pub fn capacity(&self) -> usize {
        self.channel.capacity().unwrap_or(usize::MAX)
    }
}

/// The receiving end, owned by one thread.
#[derive(Debug)]
pub struct Receiver<T> {
    channel: crossbeam_channel::Receiver<T>,
    depth: Gauge,
}

/// What a wait on a queue ended with.
#[derive(Debug)]
pub enum Received<T> {
    /// An item.
    Item(T),
    /// The deadline passed.
    TimedOut,
    /// All senders are gone: the order to stop.
    Closed,
}

impl<T> Receiver<T> {
    /// The next item, if one is queued now.
    pub fn try_recv(&self) -> Option<T> {
        let item = self.channel.try_recv().ok()?;
        self.depth.sub(1);
        Some(item)
    }

    /// Items queued now.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether nothing is queued now.
    pub fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }

    /// Waits for an item; `None` once all senders are gone.
    pub fn recv(&self) -> Option<T> {
        let item = self.channel.recv().ok()?;
        self.depth.sub(1);
        Some(item)
    }

    /// Waits for an item until `deadline`.
    pub fn recv_until(&self, deadline: Instant) -> Received<T> {
        match self.channel.recv_timeout(deadline.since(monotonic())) {
            Ok(item) => {
                self.depth.sub(1);
                Received::Item(item)
            }
            Err(RecvTimeoutError::Timeout) => Received::TimedOut,
            Err(RecvTimeoutError::Disconnected) => Received::Closed,
        }
    }
}

/// A queue of at most `capacity` items whose depth shows in `depth`.
pub fn bounded<T>(capacity: usize, depth: Gauge) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(capacity);
    depth.set_limit(capacity as u64);
    (Sender { channel: sender, depth: depth.clone() }, Receiver { channel: receiver, depth })
}

/// A slot that holds the newest value only, for progress that may be overwritten.
#[derive(Debug)]
pub struct Latest<T>(Arc<Mutex<Option<T>>>);

impl<T> Clone for Latest<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Default for Latest<T> {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(None)))
    }
}

impl<T> Latest<T> {
    /// Replaces the value; true when the slot was empty, so that the reader must be woken.
    pub fn put(&self, value: T) -> bool {
        self.lock().replace(value).is_none()
    }

    /// Takes the value.
    pub fn take(&self) -> Option<T> {
        self.lock().take()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<T>> {
        self.0.lock().expect("no code panics while it holds this lock")
    }
}

/// Wakes a thread that has several queues: senders ring after they have queued, the thread waits on the bell and then
/// looks at every queue in its own order. Rings while one is pending cost nothing and wake nobody twice.
#[derive(Clone, Debug)]
pub struct Bell(crossbeam_channel::Sender<()>);

/// The waiting end of a [`Bell`].
#[derive(Debug)]
pub struct Waiter(crossbeam_channel::Receiver<()>);

/// A bell and its waiter.
pub fn bell() -> (Bell, Waiter) {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    (Bell(sender), Waiter(receiver))
}

impl Bell {
    /// Wakes the waiter, or makes its next wait return at once.
    pub fn ring(&self) {
        // Full means that it was rung and not yet heard; disconnected, that nobody listens any more.
        let _ = self.0.try_send(());
    }
}

impl Waiter {
    /// Waits for a ring until `deadline`. False once every bell is gone.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        !matches!(self.0.recv_timeout(deadline.since(monotonic())), Err(RecvTimeoutError::Disconnected))
    }
}
