//! Monotonic time for decisions, wall time for people.

use std::fmt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment on the monotonic clock, in nanoseconds since an arbitrary start.
///
/// Unlike `std::time::Instant` it can be made from a number, which is what a simulated clock does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Instant(u64);

impl Instant {
    /// The moment `nanos` nanoseconds after the clock's start.
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the clock's start.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// Time from `earlier` to `self`; zero when `earlier` is later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl std::ops::Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Self(self.0.saturating_add(nanos))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", Duration::from_nanos(self.0))
    }
}

/// The monotonic clock now. Shared by all threads of the process.
pub fn monotonic() -> Instant {
    static START: OnceLock<std::time::Instant> = OnceLock::new();
    let start = START.get_or_init(std::time::Instant::now);
    Instant(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// The wall clock now, in milliseconds since 1970-01-01 UTC; zero when it is set before that, and no earlier than what
/// [`set_floor`] was told.
pub fn wall_ms() -> u64 {
    let floor = FLOOR_MS.load(Relaxed);
    let system = system_ms().saturating_add(wound_ms());
    if floor == 0 {
        return system;
    }
    let since = monotonic().since(Instant(FLOOR_SET.load(Relaxed)));
    let passed = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
    system.max(floor.saturating_add(passed))
}

/// It is this late at least, in milliseconds since 1970: a machine without a battery for its clock begins in 1970 at each
/// start, and knows better by what it has written down. From now on [`wall_ms`] goes on from here, until the system's
/// clock has been set to something later. An earlier floor than the present one changes nothing.
pub fn set_floor(floor_ms: u64) {
    if floor_ms > wall_ms() {
        FLOOR_SET.store(monotonic().as_nanos(), Relaxed);
        FLOOR_MS.store(floor_ms, Relaxed);
    }
}

static FLOOR_MS: AtomicU64 = AtomicU64::new(0);
/// When it was set, on the monotonic clock.
static FLOOR_SET: AtomicU64 = AtomicU64::new(0);

/// The system's clock.
fn system_ms() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |elapsed| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Winds the wall clock of this process forward: certificates age by so much at once. For tests, in builds with debug
/// assertions only; there is no option and no variable of the environment for it.
#[cfg(debug_assertions)]
#[doc(hidden)]
pub fn wind(by: Duration) {
    WOUND_MS.fetch_add(u64::try_from(by.as_millis()).unwrap_or(u64::MAX), Relaxed);
}

#[cfg(debug_assertions)]
static WOUND_MS: AtomicU64 = AtomicU64::new(0);

#[cfg(debug_assertions)]
fn wound_ms() -> u64 {
    WOUND_MS.load(Relaxed)
}

#[cfg(not(debug_assertions))]
const fn wound_ms() -> u64 {
    0
}
