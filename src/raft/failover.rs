//! Election timing: repeatable timeouts, and campaigns within milliseconds when the leader's process is gone.
//!
//! With CheckQuorum a follower ignores votes while it believes in its leader, so that a campaign right after the leader's
//! death meets silence. A follower that sees every connection to the leader's process closed and its address refuse a
//! redial therefore *forgets* the leader (safe: reads never rest on leases), waits its turn, and campaigns with PreVote.
//! Turns are staggered by rank, because followers that campaign at once duel for a dozen ticks.

use std::time::Duration;

use crate::codec::digest128;
use crate::sys::faults::{Fault, planted};
use crate::sys::time::Instant;

/// A lost duel is tried again so often.
const DUELS: u8 = 3;

/// The campaign that follows a leader's death.
#[derive(Debug, Default)]
pub struct Failover {
    /// Forget a leader once per (term, leader).
    forgotten: Option<(u64, u64)>,
    campaign_at: Option<Instant>,
    duels_left: u8,
}

impl Failover {
    /// The leader's process is gone. True when it must be forgotten; the campaign is due after `rank` turns.
    pub fn leader_died(&mut self, now: Instant, term: u64, leader: u64, rank: u32, turn: Duration) -> bool {
        if self.forgotten == Some((term, leader)) {
            return false;
        }
        self.forgotten = Some((term, leader));
        self.campaign_at = Some(now + turn * rank);
        self.duels_left = DUELS;
        true
    }

    /// A leader is known again, or our vote is given away: no campaign.
    pub fn cancel(&mut self) {
        self.campaign_at = None;
    }

    /// Whether to campaign now. `jitter` spreads the retries of a lost duel; asked only when there will be one.
    pub fn due(&mut self, now: Instant, jitter: impl FnOnce() -> u64) -> bool {
        if self.campaign_at.is_none_or(|at| at > now) {
            return false;
        }
        self.campaign_at = None;
        if self.duels_left > 0 {
            self.duels_left -= 1;
            self.campaign_at = Some(now + Duration::from_millis(20 + jitter() % 41));
        }
        true
    }

    /// When [`Failover::due`] must be asked.
    pub const fn deadline(&self) -> Option<Instant> {
        self.campaign_at
    }
}

/// How long a follower waits before it campaigns after its leader's death, per rank: long enough for the one before it
/// to win. `rtt_us` and `sync_us` are the slowest known.
pub fn turn(rtt_us: u64, sync_us: u64) -> Duration {
    Duration::from_millis(30).max(Duration::from_micros(3 * (rtt_us + sync_us))).min(Duration::from_secs(1))
}

/// An election timeout in ticks, from `ticks` up to twice as many (exclusive), the same for the same arguments.
pub fn election_timeout(seed: u64, id: u64, term: u64, role: u8, ticks: usize) -> usize {
    if planted(Fault::SameElectionTimeouts) {
        return ticks;
    }
    ticks + (spread(seed, id, term, role) % ticks as u64) as usize
}

/// The last election timeout and what it was for: it is set after every step, and made a few times in a term.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timeout {
    of: (u64, u8, usize),
    ticks: usize,
}

impl Timeout {
    /// [`election_timeout`], kept until one of its arguments changes. `seed` and `id` never do.
    pub fn get(&mut self, seed: u64, id: u64, term: u64, role: u8, ticks: usize) -> usize {
        if self.of != (term, role, ticks) || self.ticks == 0 {
            *self = Self { of: (term, role, ticks), ticks: election_timeout(seed, id, term, role, ticks) };
        }
        self.ticks
    }
}

/// A number that differs between members and terms and repeats with its arguments.
pub fn spread(seed: u64, id: u64, term: u64, salt: u8) -> u64 {
    digest128(&[&seed.to_le_bytes(), &id.to_le_bytes(), &term.to_le_bytes(), &[salt]]) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_leader_is_forgotten_once_and_a_duel_is_tried_again_three_times() {
        let mut failover = Failover::default();
        assert!(failover.leader_died(at(0), 3, 1, 1, Duration::from_millis(30)));
        assert!(!failover.leader_died(at(1), 3, 1, 1, Duration::from_millis(30)));
        assert!(!failover.due(at(29), || 0));
        let mut campaigns = Vec::new();
        for ms in 30..300 {
            if failover.due(at(ms), || 5) {
                campaigns.push(ms);
            }
        }
        assert_eq!(campaigns, [30, 55, 80, 105]);
    }

    #[test]
    fn timeouts_repeat_and_stay_in_bounds() {
        for term in 0..100 {
            let timeout = election_timeout(7, 2, term, 0, 10);
            assert!((10..20).contains(&timeout));
            assert_eq!(timeout, election_timeout(7, 2, term, 0, 10));
        }
        let mut kept = Timeout::default();
        for (term, role, ticks) in [(1, 0, 10), (1, 0, 10), (1, 1, 10), (2, 1, 10), (2, 1, 50), (1, 0, 10)] {
            assert_eq!(kept.get(7, 2, term, role, ticks), election_timeout(7, 2, term, role, ticks));
        }
    }
}
