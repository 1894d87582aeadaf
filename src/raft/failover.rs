//! Election timing: repeatable timeouts, and campaigns within milliseconds when the leader's process is gone.
//!
//! With CheckQuorum a follower ignores votes while it believes in its leader, so that a campaign right after the leader's
//! death meets silence. A follower that sees every connection to the leader's process closed and its address refuse a
//! redial therefore *forgets* the leader (safe: reads never rest on leases), waits its turn, and campaigns with PreVote.
//! Turns are staggered by rank, because followers that campaign at once duel for a dozen ticks.
//!
//! Candidates whose requests cross vote for themselves and refuse each other, and raft-rs has them wait for another
//! timeout. Whoever is refused a vote and has not won about a turn later tries again, a few times before its next timeout.

use std::time::Duration;

use crate::codec::digest128;
use crate::sys::faults::{Fault, planted};
use crate::sys::time::Instant;

/// Campaigns that may follow one after the leader's death or a timeout, before the next timeout.
const DUELS: u8 = 3;

/// The campaigns that do not wait for a timeout: after a leader's death, and after a lost duel.
#[derive(Debug, Default)]
pub struct Failover {
    /// Forget a leader once per (term, leader).
    forgotten: Option<(u64, u64)>,
    campaign_at: Option<Instant>,
    /// See [`turn`], as of the last event.
    turn: Duration,
    duels_left: u8,
    /// They follow a death, and not a timeout.
    after_death: bool,
}

impl Failover {
    /// The leader's process is gone. True when it must be forgotten; the campaign is due after `rank` turns.
    pub fn leader_died(&mut self, now: Instant, term: u64, leader: u64, rank: u32, turn: Duration) -> bool {
        if self.forgotten == Some((term, leader)) {
            return false;
        }
        self.forgotten = Some((term, leader));
        self.campaign_at = Some(now + turn * rank);
        self.turn = turn;
        self.duels_left = DUELS;
        self.after_death = true;
        true
    }

    /// An election timeout has passed and we have begun to campaign.
    pub const fn timed_out(&mut self) {
        self.campaign_at = None;
        self.duels_left = DUELS;
        self.after_death = false;
    }

    /// Whether the campaigns that become due follow a leader's death.
    pub const fn is_after_death(&self) -> bool {
        self.after_death
    }

    /// Our request for votes was refused, most likely by another candidate. Other answers are still on their way, and so is
    /// the first word of a leader that was just elected: for another round trip and another sync, a third of a turn, they
    /// are waited for, and then for what `jitter` says.
    pub fn duel_lost(&mut self, now: Instant, turn: Duration, jitter: u64) {
        if planted(Fault::LostDuelWaits) {
            return;
        }
        let at = now + turn * (16 + (jitter % 48) as u32) / 48;
        self.turn = turn;
        if let Some(retry) = &mut self.campaign_at {
            *retry = at.min(*retry);
        } else if self.duels_left > 0 {
            self.duels_left -= 1;
            self.campaign_at = Some(at);
        }
    }

    /// A leader is known again, or our vote is given away: no campaign.
    pub fn cancel(&mut self) {
        self.campaign_at = None;
    }

    /// Whether to campaign now. That campaign may come to nothing without a refusal too, so another one is due after it, if
    /// there may be one: `jitter`, asked only then, spreads those of several candidates.
    pub fn due(&mut self, now: Instant, jitter: impl FnOnce() -> u64) -> bool {
        if self.campaign_at.is_none_or(|at| at > now) {
            return false;
        }
        self.campaign_at = None;
        if self.duels_left > 0 {
            self.duels_left -= 1;
            // Two round trips and two syncs decide most campaigns: two thirds of a turn.
            self.campaign_at = Some(now + self.turn * (32 + (jitter() % 64) as u32) / 48);
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
///
/// It is also about how far retries of a lost duel are spread, so that the one that is first has mostly won before the next
/// begins.
pub fn turn(rtt_us: u64, sync_us: u64) -> Duration {
    Duration::from_millis(30).max(Duration::from_micros(3 * (rtt_us + sync_us))).min(Duration::from_secs(1))
}

/// An election timeout in ticks, from `ticks` up to twice as many (exclusive), the same for the same arguments.
pub fn election_timeout(seed: u64, id: u64, term: u64, role: u8, ticks: usize) -> usize {
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
    if planted(Fault::SameElectionTimeouts) {
        return 0;
    }
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
            if failover.due(at(ms), || 8) {
                campaigns.push(ms);
            }
        }
        assert_eq!(campaigns, [30, 55, 80, 105]);
    }

    #[test]
    fn whoever_is_refused_a_vote_tries_again_within_a_turn_and_three_times_until_the_next_timeout() {
        let turn = Duration::from_millis(30);
        let mut failover = Failover::default();
        failover.duel_lost(at(0), turn, 0);
        assert_eq!(failover.deadline(), None, "nothing began here");
        for began in [1000, 2000] {
            failover.timed_out();
            for duel in 0..3 {
                let refused = began + 12 * duel;
                failover.duel_lost(at(refused), turn, 0);
                failover.duel_lost(at(refused + 1), turn, 16);
                assert!(!failover.due(at(refused + 9), || 0), "the first refusal counts");
                assert!(failover.due(at(refused + 10), || 0));
            }
            assert_eq!(failover.deadline(), None);
            failover.duel_lost(at(began + 500), turn, 0);
            assert_eq!(failover.deadline(), None, "enough until the next timeout");
        }
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
