//! Linearizable reads: many share one ReadIndex round.
//!
//! A round begins after every read it answers has arrived; reads that arrive later take a later round. raft-rs drops a
//! round silently when leadership moves or a message is lost, so that a round that stays unanswered is begun again under
//! a new context. A context is unique for ever: node, process nonce and counter.

use std::collections::VecDeque;
use std::time::Duration;

use crate::sys::faults::{Fault, planted};
use crate::sys::time::Instant;
use crate::types::Index;

/// A caller's number for a request.
pub type Token = u64;

/// Rounds under way at once: each costs a heartbeat to every peer.
const MAX_ROUNDS: usize = 4;

#[derive(Debug)]
struct Round {
    /// Every context sent for this round; an answer to any of them will do.
    contexts: Vec<u64>,
    sent: Instant,
    began: Instant,
    tokens: Vec<Token>,
}

/// Reads on their way.
#[derive(Debug, Default)]
pub struct Reads {
    nonce: u64,
    counter: u64,
    /// With the time they arrived.
    waiting: Vec<(Instant, Token)>,
    rounds: VecDeque<Round>,
    /// Answered, and to be let go once applied reaches the index.
    confirmed: Vec<(Index, Round)>,
}

impl Reads {
    /// `nonce` must differ between processes that ever use the same raft id.
    pub fn new(nonce: u64) -> Self {
        Self { nonce, ..Self::default() }
    }

    /// A read arrived.
    pub fn add(&mut self, now: Instant, token: Token) {
        self.waiting.push((now, token));
    }

    /// Whether no read is on its way.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads that are on their way.
    pub fn len(&self) -> usize {
        let in_rounds: usize = self.rounds.iter().map(|round| round.tokens.len()).sum();
        let confirmed: usize = self.confirmed.iter().map(|(_, round)| round.tokens.len()).sum();
        self.waiting.len() + in_rounds + confirmed
    }

    /// Contexts of rounds to begin now: one for the reads that wait, and one for each round that is `retry_after` old.
    pub fn begin(&mut self, now: Instant, retry_after: Duration) -> Vec<Vec<u8>> {
        let mut contexts = Vec::new();
        for round in &mut self.rounds {
            if now.since(round.sent) >= retry_after {
                self.counter += 1;
                round.contexts.push(self.counter);
                round.sent = now;
                contexts.push(context(self.nonce, self.counter));
            }
        }
        if planted(Fault::LateReadInRound)
            && let Some(round) = self.rounds.back_mut()
        {
            round.tokens.extend(self.waiting.drain(..).map(|(_, token)| token));
        }
        if !self.waiting.is_empty() && self.rounds.len() < MAX_ROUNDS {
            self.counter += 1;
            let waiting = std::mem::take(&mut self.waiting);
            let began = waiting.first().map_or(now, |(arrived, _)| *arrived);
            let tokens = waiting.into_iter().map(|(_, token)| token).collect();
            self.rounds.push_back(Round { contexts: vec![self.counter], sent: now, began, tokens });
            contexts.push(context(self.nonce, self.counter));
        }
        contexts
    }

    /// raft answered a context with an index.
    pub fn confirm(&mut self, answered: &[u8], index: Index) {
        let place = self
            .rounds
            .iter()
            .position(|round| round.contexts.iter().any(|&counter| context(self.nonce, counter) == answered));
        if let Some(round) = place.and_then(|place| self.rounds.remove(place)) {
            self.confirmed.push((index, round));
        }
    }

    /// Reads that may be answered from a state at `applied`.
    pub fn ready(&mut self, applied: Index) -> Vec<Token> {
        let mut ready = Vec::new();
        self.confirmed.retain_mut(|(index, round)| {
            let keep = *index > applied;
            if !keep {
                ready.append(&mut round.tokens);
            }
            keep
        });
        ready
    }

    /// Gives up what is older than `limit`, wherever it waits: for a leader, for an answer, or for entries that a manager
    /// which was cut off since does not get. The callers ask again or have stopped waiting.
    pub fn expire(&mut self, now: Instant, limit: Duration) -> Vec<Token> {
        let mut failed = Vec::new();
        self.waiting.retain(|(arrived, token)| {
            let keep = now.since(*arrived) < limit;
            if !keep {
                failed.push(*token);
            }
            keep
        });
        let mut is_young = |round: &mut Round| {
            let keep = now.since(round.began) < limit;
            if !keep {
                failed.append(&mut round.tokens);
            }
            keep
        };
        self.rounds.retain_mut(&mut is_young);
        self.confirmed.retain_mut(|(_, round)| is_young(round));
        failed
    }

    /// When the oldest round is due to be begun again.
    pub fn next_retry(&self, retry_after: Duration) -> Option<Instant> {
        self.rounds.iter().map(|round| round.sent + retry_after).min()
    }
}

fn context(nonce: u64, counter: u64) -> Vec<u8> {
    let mut bytes = nonce.to_le_bytes().to_vec();
    bytes.extend_from_slice(&counter.to_le_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    const RETRY: Duration = Duration::from_millis(300);

    fn at(ms: u64) -> Instant {
        Instant::from_nanos(ms * 1_000_000)
    }

    #[test]
    fn a_read_that_arrives_after_a_round_began_takes_a_later_one() {
        let mut reads = Reads::new(7);
        reads.add(at(0), 1);
        reads.add(at(0), 2);
        let first = reads.begin(at(0), RETRY);
        reads.add(at(0), 3);
        let second = reads.begin(at(1), RETRY);
        reads.confirm(&first[0], Index(5));
        assert_eq!((reads.ready(Index(4)), reads.ready(Index(5))), (vec![], vec![1, 2]));
        reads.confirm(&second[0], Index(5));
        assert_eq!((reads.ready(Index(5)), reads.len()), (vec![3], 0));
    }

    #[test]
    fn a_lost_round_is_begun_again_and_answers_once() {
        let mut reads = Reads::new(7);
        reads.add(at(0), 1);
        let first = reads.begin(at(0), RETRY);
        assert!(reads.begin(at(299), RETRY).is_empty());
        let again = reads.begin(at(300), RETRY);
        assert_ne!(first, again);
        reads.confirm(&first[0], Index(1));
        reads.confirm(&again[0], Index(2));
        assert_eq!((reads.ready(Index(2)), reads.len()), (vec![1], 0));
    }

    #[test]
    fn reads_are_given_up_wherever_they_wait() {
        let mut reads = Reads::new(7);
        reads.add(at(0), 1);
        let confirmed = reads.begin(at(0), RETRY);
        reads.confirm(&confirmed[0], Index(9));
        reads.add(at(0), 2);
        reads.begin(at(1), RETRY);
        reads.add(at(5), 3);
        let limit = Duration::from_millis(10);
        assert!(reads.expire(at(9), limit).is_empty());
        let mut failed = reads.expire(at(10), limit);
        failed.sort_unstable();
        assert_eq!(failed, [1, 2]);
        assert_eq!((reads.expire(at(15), limit), reads.len()), (vec![3], 0));
    }
}
