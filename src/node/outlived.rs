//! A member of a history that a recovery or a restore has ended, and that does not know it.
//!
//! A manager of the later history turns it away and says so. That alone ends nothing: a recovery on the wrong side of a cut
//! must not stop a healthy swarm, or one whose managers restart for a moment. So the member goes on, says what it was told,
//! and stops only when it has had no leader, and has been told so, for longer than machines restart or a network is mended.
//! Decides only: no clock, no sockets.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::sys::time::Instant;
use crate::types::NodeId;

/// Without a leader for so long, a member that is told that its history is over stops.
const STOPS: Duration = Duration::from_secs(600);
/// Each peer that says so is logged once in so long.
const LOGGED: Duration = Duration::from_secs(60);
/// A peer that dials or is dialled repeats itself at least this often: whoever is silent for longer has gone.
const FORGOTTEN: Duration = Duration::from_secs(180);

/// What a member was told of a later history.
#[derive(Debug, Default)]
pub struct Outlived {
    /// Since when it has had no leader and was told so.
    since: Option<Instant>,
    /// Who said so, and when that was last logged.
    logged: BTreeMap<Option<NodeId>, Instant>,
    /// What was said last, and when.
    told: Option<(Instant, String)>,
}

/// What a member does that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// It goes on, and this is news.
    Log,
    /// It goes on.
    GoOn,
    /// Nobody else is left on its side.
    Stop,
}

impl Outlived {
    /// `peer` says that this node's history is over, in these words; it has had no leader for `leaderless`.
    pub fn told(&mut self, now: Instant, peer: Option<NodeId>, why: &str, leaderless: Duration) -> Reaction {
        self.told = Some((now, why.to_owned()));
        if leaderless.is_zero() {
            self.since = None;
        }
        let since = *self.since.get_or_insert(now);
        if leaderless >= STOPS && now.since(since) >= STOPS {
            return Reaction::Stop;
        }
        if self.logged.get(&peer).is_some_and(|at| now.since(*at) < LOGGED) {
            return Reaction::GoOn;
        }
        self.logged.insert(peer, now);
        Reaction::Log
    }

    /// What people should know for as long as it is repeated.
    pub fn notice(&self, now: Instant) -> Option<String> {
        let (_, why) = self.told.as_ref().filter(|(at, _)| now.since(*at) < FORGOTTEN)?;
        Some(format!(
            "a swarm that was recovered or restored turns this manager away: {why}; if that one is wanted, move this data \
             directory away and join it; if not, stop its managers"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHY: &str = "node x belongs to a former history of this swarm";

    fn at(seconds: u64) -> Instant {
        Instant::from_nanos(seconds * 1_000_000_000)
    }

    /// Told every 30 seconds from `from` to `to`, without a leader since `leaderless`; the last reaction.
    fn told(outlived: &mut Outlived, from: u64, to: u64, leaderless: Option<u64>) -> Reaction {
        let mut last = Reaction::GoOn;
        for now in (from..=to).step_by(30) {
            let without = leaderless.map_or(0, |since| now - since);
            last = outlived.told(at(now), Some(NodeId(2)), WHY, Duration::from_secs(without));
        }
        last
    }

    #[test]
    fn a_member_without_a_leader_stops_when_it_was_told_for_ten_minutes() {
        let mut outlived = Outlived::default();
        assert_eq!(told(&mut outlived, 1000, 1570, Some(900)), Reaction::GoOn);
        assert_eq!(told(&mut outlived, 1600, 1600, Some(900)), Reaction::Stop);
        // It had been told for long, and has had no leader for a moment.
        let mut outlived = Outlived::default();
        assert_ne!(told(&mut outlived, 0, 3000, None), Reaction::Stop);
        assert_ne!(told(&mut outlived, 3030, 3600, Some(3015)), Reaction::Stop);
        assert_eq!(told(&mut outlived, 3630, 3630, Some(3015)), Reaction::Stop);
    }

    #[test]
    fn a_leader_that_comes_back_begins_the_count_anew() {
        let mut outlived = Outlived::default();
        assert_ne!(told(&mut outlived, 0, 570, Some(0)), Reaction::Stop);
        assert_ne!(told(&mut outlived, 580, 580, None), Reaction::Stop);
        assert_ne!(told(&mut outlived, 600, 1170, Some(590)), Reaction::Stop);
        assert_eq!(told(&mut outlived, 1200, 1200, Some(590)), Reaction::Stop);
    }

    #[test]
    fn every_peer_is_news_once_a_minute_and_a_notice_until_it_is_silent() {
        let mut outlived = Outlived::default();
        assert_eq!(outlived.notice(at(5)), None);
        let mut say = |now, peer| outlived.told(at(now), Some(NodeId(peer)), WHY, Duration::ZERO);
        assert_eq!(
            [say(5, 1), say(6, 2), say(7, 1), say(64, 1), say(65, 1)].map(|it| it == Reaction::Log),
            [true, true, false, false, true]
        );
        assert!(outlived.notice(at(244)).is_some_and(|notice| notice.contains(WHY)));
        assert_eq!(outlived.notice(at(245)), None);
    }
}
