//! How fast snapshots are written and leave: so many bytes a second, with a short burst, for all peers together.
//!
//! A transfer is bounded by its receiver's credit already, but on a small board even that much takes the disk, the
//! processor and the line from heartbeats and from the log. Writing one's own snapshot takes the disk from the log
//! everywhere, and is in no hurry. A token bucket; it reads no clock.

use std::time::Duration;

use crate::sys::time::Instant;
use crate::types::object::Profile;

const MIB: u64 = 1 << 20;
/// What may be sent at once after a pause, as a part of a second.
const BURST: u64 = 20;
/// Sending begins again once so much may be sent: a wake-up for every byte would cost more than it saves.
const QUANTUM: u64 = 256 << 10;

/// A bucket that fills by the clock and is emptied by what is sent.
#[derive(Debug)]
pub struct Pace {
    bytes_per_s: u64,
    /// What may be sent, as of `at`.
    saved: u64,
    at: Option<Instant>,
}

impl Pace {
    /// A profile's pace. A fast network is not held back: the limit is far above what disk and TLS give on such machines.
    pub const fn of(profile: Profile) -> Self {
        Self::new(match profile {
            Profile::Lan | Profile::Wan => 256 * MIB,
            Profile::Sdcard => 16 * MIB,
        })
    }

    /// The pace at which a manager writes a snapshot of its own.
    pub const fn of_writing(profile: Profile) -> Self {
        Self::new(match profile {
            Profile::Lan | Profile::Wan => 64 * MIB,
            Profile::Sdcard => 8 * MIB,
        })
    }

    const fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s, saved: 0, at: None }
    }

    const fn burst(&self) -> u64 {
        let burst = self.bytes_per_s / BURST;
        if burst > QUANTUM { burst } else { QUANTUM }
    }

    /// How many bytes may be sent now.
    pub fn room(&mut self, now: Instant) -> u64 {
        let Some(at) = self.at else {
            (self.at, self.saved) = (Some(now), self.burst());
            return self.saved;
        };
        let earned = now.since(at).as_nanos() * u128::from(self.bytes_per_s) / 1_000_000_000;
        // What has not earned a byte yet stays on the clock.
        if earned > 0 {
            let earned = u64::try_from(earned).unwrap_or(u64::MAX);
            (self.at, self.saved) = (Some(now), self.saved.saturating_add(earned).min(self.burst()));
        }
        self.saved
    }

    /// Whether a chunk of so many bytes may go now. What is larger than a quantum goes like one.
    pub fn has_room(&mut self, now: Instant, bytes: u64) -> bool {
        self.room(now) >= bytes.min(QUANTUM)
    }

    /// So many bytes were sent, at most the room.
    pub const fn spend(&mut self, bytes: u64) {
        self.saved = self.saved.saturating_sub(bytes);
    }

    /// When there is room again that is worth a wake-up.
    pub fn ready_at(&self, now: Instant) -> Instant {
        let missing = QUANTUM.saturating_sub(self.saved);
        // Rounded up: a moment too early there is no room yet, and whoever waits would ask again at once.
        let nanos = (u128::from(missing) * 1_000_000_000).div_ceil(u128::from(self.bytes_per_s));
        self.at.unwrap_or(now) + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends as fast as it may for so long; bytes sent, and how often the sender woke.
    fn send_for(mut pace: Pace, seconds: u64) -> (u64, u64) {
        let mut now = Instant::from_nanos(1_000_000_000);
        let end = now + Duration::from_secs(seconds);
        let (mut sent, mut wakes) = (0, 0);
        while now < end {
            let room = pace.room(now);
            pace.spend(room);
            sent += room;
            wakes += 1;
            let next = pace.ready_at(now);
            assert!(next > now, "the sender would spin");
            now = next;
        }
        (sent, wakes)
    }

    #[test]
    fn what_leaves_in_a_while_is_the_pace_and_one_burst() {
        for (profile, mib_per_s) in [(Profile::Lan, 256), (Profile::Wan, 256), (Profile::Sdcard, 16)] {
            let (sent, wakes) = send_for(Pace::of(profile), 10);
            let steady = 10 * mib_per_s * MIB;
            let burst = mib_per_s * MIB / BURST;
            assert!(sent >= steady && sent <= steady + burst + QUANTUM, "{profile:?}: {sent}");
            assert!(wakes <= steady / QUANTUM + 2, "{profile:?}: {wakes}");
        }
    }

    #[test]
    fn whole_chunks_keep_the_pace_too() {
        let (mut pace, mut now, mut sent) = (Pace::of_writing(Profile::Lan), Instant::from_nanos(0), 0);
        while now < Instant::from_nanos(10_000_000_000) {
            if pace.has_room(now, QUANTUM) {
                pace.spend(QUANTUM);
                sent += QUANTUM;
            } else {
                now = pace.ready_at(now);
            }
        }
        let steady = 10 * 64 * MIB;
        assert!(sent >= steady - QUANTUM && sent <= steady + 64 * MIB / BURST + QUANTUM, "{sent}");
    }

    #[test]
    fn a_pause_saves_no_more_than_a_burst() {
        let mut pace = Pace::of(Profile::Sdcard);
        let now = Instant::from_nanos(0);
        let burst = pace.room(now);
        pace.spend(burst);
        assert_eq!(pace.room(now), 0);
        assert_eq!(pace.room(now + Duration::from_secs(3600)), burst);
    }

    #[test]
    fn time_too_short_for_a_byte_is_not_lost() {
        let mut pace = Pace::new(1000);
        let mut now = Instant::from_nanos(0);
        let burst = pace.room(now);
        pace.spend(burst);
        for _ in 0..10_000 {
            now = now + Duration::from_micros(100);
            pace.room(now);
        }
        assert_eq!(pace.room(now), 1000);
    }
}
