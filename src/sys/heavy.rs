//! Values that take long to drop.
//!
//! The last clone of a state of a million objects has to look at each of them, a tenth of a second and more in which the
//! thread that held it does nothing else. Threads that others wait for leave that to one that is made for it. Which clone is
//! the last nobody knows before: of a large state every one that a stream held goes this way, at the cost of a thread.

use std::ops::{Deref, DerefMut};

use super::thread;

/// Dropped by a background thread of its own if that takes long, and at once otherwise.
pub struct Heavy<T: Send + 'static> {
    /// Always there until it is dropped.
    value: Option<T>,
    takes_long: bool,
}

impl<T: Send + 'static> Heavy<T> {
    /// A value, and whether it is worth a thread to drop it.
    pub const fn new(value: T, takes_long: bool) -> Self {
        Self { value: Some(value), takes_long }
    }
}

impl<T: Send + 'static> Drop for Heavy<T> {
    fn drop(&mut self) {
        let value = self.value.take();
        if self.takes_long
            && let Err(error) = thread::spawn_background("reaper", move || drop(value))
        {
            // It went with the thread that could not be made.
            log::debug!("memory was given back in place: {error}");
        }
    }
}

impl<T: Send + 'static> Deref for Heavy<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("it is there until it is dropped")
    }
}

impl<T: Send + 'static> DerefMut for Heavy<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.value.as_mut().expect("it is there until it is dropped")
    }
}

impl<T: Send + std::fmt::Debug + 'static> std::fmt::Debug for Heavy<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.value.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Sender, channel};
    use std::thread::{ThreadId, current};

    use super::*;

    struct Tells(Sender<ThreadId>);

    impl Drop for Tells {
        fn drop(&mut self) {
            let _ = self.0.send(current().id());
        }
    }

    #[test]
    fn what_takes_long_is_dropped_elsewhere_and_the_rest_here() {
        for takes_long in [false, true] {
            let (told, heard) = channel();
            drop(Heavy::new(Tells(told), takes_long));
            let by = heard.recv().ok();
            assert_eq!(by.map(|by| by != current().id()), Some(takes_long));
        }
    }
}
