//! Bounded queues that never block their sender, each with a depth gauge.
//!
//! The bound is a count. A channel with a bound of its own makes all its slots at once: the queues of a manager, nearly
//! always empty, took 3 of its 13 MB.
//!
//! The channel's own blocking receive first spins and yields, which on a small machine takes the processor from whoever is
//! to send: at 128 clients on two cores `sched_yield` in the raft threads alone took 1.9 % of all samples. A receiver here
//! sleeps at once, and a sender wakes it only if it sleeps.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex};
use std::thread::Thread;

use crossbeam_channel::TryRecvError;

use super::metrics::Gauge;
use super::time::{Instant, monotonic};

/// The queue was full; here is what was not queued.
#[derive(Debug)]
pub struct Full<T>(pub T);

/// The sending end of a queue. Clones share the queue.
#[derive(Debug)]
pub struct Sender<T> {
    /// Taken only by `drop`.
    channel: Option<crossbeam_channel::Sender<T>>,
    capacity: usize,
    depth: Gauge,
    bed: Arc<Bed>,
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.bed.visitors.fetch_add(1, Ordering::SeqCst);
        Self {
            channel: self.channel.clone(),
            capacity: self.capacity,
            depth: self.depth.clone(),
            bed: self.bed.clone(),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        // The last one gone is something to wake up for.
        self.channel = None;
        self.bed.visitors.fetch_sub(1, Ordering::SeqCst);
        self.bed.wake();
    }
}

impl<T> Sender<T> {
    /// Queues `item`, or gives it back when the queue is full. An item sent after the receiver has gone is dropped:
    /// its thread has stopped, and so does the sender's soon.
    pub fn try_send(&self, item: T) -> Result<(), Full<T>> {
        self.put(item)?;
        self.bed.wake();
        Ok(())
    }

    /// As [`Self::try_send`], and wakes nobody.
    pub fn put(&self, item: T) -> Result<(), Full<T>> {
        if self.bed.queued.fetch_add(1, Ordering::Relaxed) >= self.capacity {
            self.bed.queued.fetch_sub(1, Ordering::Relaxed);
            return Err(Full(item));
        }
        self.depth.add(1);
        if self.channel().send(item).is_err() {
            // Nobody takes anything out of it any more.
            self.bed.queued.fetch_sub(1, Ordering::Relaxed);
            self.depth.sub(1);
        }
        Ok(())
    }

    /// Wakes the receiver, if it sleeps, after [`Self::put`].
    pub fn wake(&self) {
        self.bed.wake();
    }

    /// Does the same for somebody who sends nothing.
    pub fn waker(&self) -> Waker {
        Waker(self.bed.clone())
    }

    /// Items queued now.
    pub fn len(&self) -> usize {
        self.channel().len()
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.channel().is_empty()
    }

    /// How many items fit.
    pub const fn capacity(&self) -> usize {
        self.capacity
    }

    fn channel(&self) -> &crossbeam_channel::Sender<T> {
        self.channel.as_ref().expect("only drop takes it")
    }
}

/// Wakes the receiver of a queue, and does not keep the queue open.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Bed>);

impl Waker {
    /// Wakes it, if it sleeps.
    pub fn wake(&self) {
        self.0.wake();
    }
}

/// The receiving end. One thread waits on it; where a stage takes from it (`sys::stage`), whoever is in that does.
#[derive(Debug)]
pub struct Receiver<T> {
    channel: crossbeam_channel::Receiver<T>,
    depth: Gauge,
    bed: Arc<Bed>,
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
        self.taken();
        Some(item)
    }

    fn taken(&self) {
        self.bed.queued.fetch_sub(1, Ordering::Relaxed);
        self.depth.sub(1);
    }

    /// Items queued now.
    pub fn len(&self) -> usize {
        self.channel.len()
    }

    /// Whether nothing is queued now.
    pub fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }

    /// Whether all senders are gone: the order to stop.
    pub fn is_closed(&self) -> bool {
        self.bed.visitors.load(Ordering::SeqCst) == 0
    }

    /// Waits until there is an item, and leaves it; false once there is none and all senders are gone.
    pub fn wait(&self) -> bool {
        let look = || match self.channel.is_empty() {
            false => Some(true),
            // What the last one sent before it went is seen by now.
            true if self.is_closed() => Some(!self.channel.is_empty()),
            true => None,
        };
        self.bed.sleep_until(None, look).unwrap_or(false)
    }

    /// Waits for an item; `None` once all senders are gone.
    pub fn recv(&self) -> Option<T> {
        match self.receive(None) {
            Received::Item(item) => Some(item),
            Received::Closed => None,
            Received::TimedOut => unreachable!("there was no deadline"),
        }
    }

    /// Waits for an item until `deadline`.
    pub fn recv_until(&self, deadline: Instant) -> Received<T> {
        self.receive(Some(deadline))
    }

    fn receive(&self, deadline: Option<Instant>) -> Received<T> {
        let look = || match self.channel.try_recv() {
            Ok(item) => {
                self.taken();
                Some(Received::Item(item))
            }
            Err(TryRecvError::Disconnected) => Some(Received::Closed),
            Err(TryRecvError::Empty) => None,
        };
        self.bed.sleep_until(deadline, look).unwrap_or(Received::TimedOut)
    }
}

/// A queue of at most `capacity` items whose depth shows in `depth`.
pub fn bounded<T>(capacity: usize, depth: Gauge) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::unbounded();
    depth.set_limit(capacity as u64);
    let bed = Arc::new(Bed { visitors: AtomicUsize::new(1), ..Bed::default() });
    (
        Sender { channel: Some(sender), capacity, depth: depth.clone(), bed: bed.clone() },
        Receiver { channel: receiver, depth, bed },
    )
}

/// Where the one thread that takes from a queue, or listens to a bell, sleeps while there is nothing.
#[derive(Debug, Default)]
struct Bed {
    /// Senders of the queue that are left.
    visitors: AtomicUsize,
    /// Items in the queue, and ones that are being put there.
    queued: AtomicUsize,
    asleep: AtomicBool,
    sleeper: Mutex<Option<Thread>>,
}

impl Bed {
    /// Asks `look` until it finds something, asleep in between; `None` once the deadline has passed.
    fn sleep_until<R>(&self, deadline: Option<Instant>, look: impl Fn() -> Option<R>) -> Option<R> {
        if let Some(found) = look() {
            return Some(found);
        }
        *self.sleeper.lock().expect("no code panics while it holds this lock") = Some(std::thread::current());
        loop {
            // The sleeper says that it sleeps and looks once more, a sender queues and asks whether anybody sleeps: with
            // both in one order either the one sees the item or the other the sleeper.
            self.asleep.store(true, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            let found = look();
            let left = deadline.map(|deadline| deadline.since(monotonic()));
            if found.is_some() || left.is_some_and(|left| left.is_zero()) {
                self.asleep.store(false, Ordering::SeqCst);
                return found;
            }
            match left {
                Some(left) => std::thread::park_timeout(left),
                None => std::thread::park(),
            }
        }
    }

    /// Wakes the sleeper, if it sleeps.
    fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::SeqCst) {
            let sleeper = self.sleeper.lock().expect("no code panics while it holds this lock").clone();
            if let Some(sleeper) = sleeper {
                sleeper.unpark();
            }
        }
    }
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
#[derive(Debug)]
pub struct Bell(Arc<Belfry>);

/// The waiting end of a [`Bell`].
#[derive(Debug)]
pub struct Waiter(Arc<Belfry>);

/// What a bell and its waiter share.
#[derive(Debug)]
struct Belfry {
    rung: AtomicBool,
    /// Bells that are left.
    bells: AtomicUsize,
    bed: Bed,
}

/// A bell and its waiter.
pub fn bell() -> (Bell, Waiter) {
    let belfry = Arc::new(Belfry { rung: AtomicBool::new(false), bells: AtomicUsize::new(1), bed: Bed::default() });
    (Bell(belfry.clone()), Waiter(belfry))
}

impl Bell {
    /// Wakes the waiter, or makes its next wait return at once.
    pub fn ring(&self) {
        if !self.0.rung.swap(true, Ordering::SeqCst) {
            self.0.bed.wake();
        }
    }
}

impl Clone for Bell {
    fn clone(&self) -> Self {
        self.0.bells.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.bells.fetch_sub(1, Ordering::SeqCst);
        self.0.bed.wake();
    }
}

impl Waiter {
    /// Waits for a ring until `deadline`. False once every bell is gone.
    pub fn wait_until(&self, deadline: Instant) -> bool {
        let Belfry { rung, bells, bed } = &*self.0;
        let heard = || {
            let rung = rung.swap(false, Ordering::SeqCst);
            let gone = bells.load(Ordering::SeqCst) == 0;
            (rung || gone).then_some(rung || !gone)
        };
        bed.sleep_until(Some(deadline), heard).unwrap_or(true)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::sys::metrics::Metrics;
    use std::time::Duration;

    #[test]
    fn nothing_that_is_sent_is_slept_through() {
        let metrics = Metrics::default();
        let (there, at_there) = bounded(1, metrics.queue("there"));
        let (back, at_back) = bounded(1, metrics.queue("back"));
        let echo = std::thread::spawn(move || {
            while let Some(number) = at_there.recv() {
                back.try_send(number).unwrap();
            }
        });
        for number in 0..20_000 {
            there.try_send(number).unwrap();
            assert_eq!(at_back.recv(), Some(number));
        }
        drop(there);
        assert_eq!(at_back.recv(), None, "the other side's last sender has gone with its thread");
        echo.join().unwrap();
    }

    #[test]
    fn a_wait_ends_at_its_deadline_with_a_ring_or_when_every_bell_is_gone() {
        let (bell, waiter) = bell();
        let soon = || monotonic() + Duration::from_millis(1);
        let late = || monotonic() + Duration::from_secs(60);
        assert!(waiter.wait_until(soon()));
        bell.ring();
        bell.clone().ring();
        assert!(waiter.wait_until(late()), "a ring that came before is heard");
        let ringing = std::thread::spawn(move || bell.ring());
        assert!(waiter.wait_until(late()));
        ringing.join().unwrap();
        assert!(!waiter.wait_until(late()));
    }

    #[test]
    fn a_receiver_hears_of_the_deadline_and_of_the_last_sender() {
        let (sender, receiver) = bounded::<u8>(4, Metrics::default().queue("q"));
        assert!(matches!(receiver.recv_until(monotonic() + Duration::from_millis(1)), Received::TimedOut));
        let other = sender.clone();
        drop(sender);
        let dropping = std::thread::spawn(move || drop(other));
        assert!(matches!(receiver.recv_until(monotonic() + Duration::from_secs(60)), Received::Closed));
        dropping.join().unwrap();
    }
}
