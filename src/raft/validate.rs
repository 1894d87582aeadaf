//! Looks at a peer's message before raft-rs does.
//!
//! raft-rs trusts its peers: a malformed message panics it in at least six ways, and an unknown sender can depose a
//! leader. Each rule here stands for one such case; `tests` has one for each.

use raft::eraftpb::{ConfState, EntryType, Message, MessageType};
use raft::{RaftLog, Storage};

use crate::sys::faults::{Fault, planted};

/// Why a message was not stepped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It is for somebody else.
    #[error("it is addressed to another member")]
    Addressee,
    /// Only a node itself sends this kind to itself.
    #[error("its kind is internal to a member")]
    LocalKind,
    /// It has no term.
    #[error("it carries no term")]
    NoTerm,
    /// Its term is far beyond any that elections can have brought about; the next would overflow.
    #[error("its term cannot be")]
    Term,
    /// Entries are not contiguous, of falling terms, of a later term than the message, or of a kind we never write.
    #[error("its entries do not follow each other")]
    Entries,
    /// It would replace entries that are committed.
    #[error("it contradicts entries that are committed here")]
    ContradictsCommitted,
    /// It acknowledges entries that do not exist.
    #[error("it acknowledges entries that this member never had")]
    AcknowledgesTooMuch,
    /// Its snapshot names nobody, not us, somebody twice, or a position that cannot be.
    #[error("its snapshot makes no sense")]
    Snapshot,
    /// A read request without its one context.
    #[error("its read context is malformed")]
    ReadContext,
    /// The leader believes this member has entries that it does not have.
    #[error("the leader counts on log entries that are no longer here")]
    LogLost,
}

/// The log as raft-rs has it, with what it has not handed over yet.
pub trait Log {
    /// The last entry's index.
    fn last(&self) -> u64;
    /// The commit index.
    fn committed(&self) -> u64;
    /// The term of an entry, if it is known.
    fn term_at(&self, index: u64) -> Option<u64>;
}

impl<T: Storage> Log for RaftLog<T> {
    fn last(&self) -> u64 {
        self.last_index()
    }

    fn committed(&self) -> u64 {
        self.committed
    }

    fn term_at(&self, index: u64) -> Option<u64> {
        // raft-rs answers 0 for what lies outside.
        self.term(index).ok().filter(|term| *term != 0)
    }
}

/// An election a millisecond reaches this in 35,000 years.
const MAX_TERM: u64 = 1 << 50;

/// Whether raft-rs can take `message`. `own` is this member's raft id.
pub fn check(message: &Message, own: u64, log: &impl Log) -> Result<(), Invalid> {
    if message.to != own || message.from == own || message.from == 0 {
        return Err(Invalid::Addressee);
    }
    let last = log.last();
    match message.msg_type {
        MessageType::MsgHup
        | MessageType::MsgBeat
        | MessageType::MsgUnreachable
        | MessageType::MsgSnapStatus
        | MessageType::MsgCheckQuorum
        | MessageType::MsgPropose
        | MessageType::MsgTransferLeader => return Err(Invalid::LocalKind),
        // A read request is of no term: one that has one panics the follower that passes it on.
        MessageType::MsgReadIndex if message.term != 0 => return Err(Invalid::Term),
        MessageType::MsgReadIndex => return check_read(message),
        _ => {}
    }
    if message.term == 0 {
        return Err(Invalid::NoTerm);
    }
    if message.term > MAX_TERM {
        return Err(Invalid::Term);
    }
    match message.msg_type {
        MessageType::MsgAppend => check_append(message, log),
        MessageType::MsgHeartbeat if planted(Fault::LostLogUnnoticed) => Ok(()),
        MessageType::MsgReadIndexResp => check_read(message),
        MessageType::MsgHeartbeat if message.commit > last => Err(Invalid::LogLost),
        MessageType::MsgAppendResponse if message.index > last => Err(Invalid::AcknowledgesTooMuch),
        MessageType::MsgSnapshot => check_snapshot(message, own, log),
        _ if !message.entries.is_empty() => Err(Invalid::Entries),
        _ => Ok(()),
    }
}

fn check_read(message: &Message) -> Result<(), Invalid> {
    match message.get_entries() {
        [entry] if entry.entry_type == EntryType::EntryNormal && (1..=64).contains(&entry.data.len()) => Ok(()),
        _ => Err(Invalid::ReadContext),
    }
}

fn check_append(message: &Message, log: &impl Log) -> Result<(), Invalid> {
    let mut index = message.index;
    let mut term = message.log_term;
    // Only the place before the first entry has no term. raft-rs takes what it does not have for an entry of term zero, and
    // would find that this matches.
    if (index == 0) != (term == 0) {
        return Err(Invalid::Entries);
    }
    for entry in &message.entries {
        index = index.checked_add(1).ok_or(Invalid::Entries)?;
        let known_kind = matches!(entry.entry_type, EntryType::EntryNormal | EntryType::EntryConfChange);
        if entry.index != index || entry.term < term || entry.term > message.term || entry.term == 0 || !known_kind {
            return Err(Invalid::Entries);
        }
        term = entry.term;
        if index <= log.committed() && log.term_at(index).is_some_and(|ours| ours != entry.term) {
            return Err(Invalid::ContradictsCommitted);
        }
    }
    Ok(())
}

fn check_snapshot(message: &Message, own: u64, log: &impl Log) -> Result<(), Invalid> {
    let metadata = message.get_snapshot().get_metadata();
    let state: &ConfState = metadata.get_conf_state();
    let mut ids: Vec<u64> = state.voters.iter().chain(&state.learners).copied().collect();
    let named = ids.contains(&own);
    ids.sort_unstable();
    let count = ids.len();
    ids.dedup();
    let sound = metadata.index > 0
        && metadata.term > 0
        && metadata.term <= message.term
        && !state.voters.is_empty()
        && ids.len() == count
        && ids.first() != Some(&0)
        && named
        && state.voters_outgoing.is_empty()
        && state.learners_next.is_empty();
    if !sound || !message.entries.is_empty() {
        return Err(Invalid::Snapshot);
    }
    // raft-rs would put it in the place of the log although nobody has fetched it.
    if metadata.index <= log.committed() && log.term_at(metadata.index).is_some_and(|ours| ours != metadata.term) {
        return Err(Invalid::ContradictsCommitted);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use raft::eraftpb::Entry;

    use super::*;

    const OWN: u64 = 2;

    /// The terms of all entries, which are committed.
    struct Terms(Vec<u64>);

    impl Log for Terms {
        fn last(&self) -> u64 {
            self.0.len() as u64
        }

        fn committed(&self) -> u64 {
            self.last()
        }

        fn term_at(&self, index: u64) -> Option<u64> {
            self.0.get(usize::try_from(index).ok()?.checked_sub(1)?).copied()
        }
    }

    fn entry(term: u64, index: u64) -> Entry {
        let mut entry = Entry::default();
        (entry.term, entry.index, entry.data) = (term, index, vec![1].into());
        entry
    }

    fn message(kind: MessageType, edit: impl FnOnce(&mut Message)) -> Message {
        let mut message = Message::default();
        message.msg_type = kind;
        (message.from, message.to, message.term) = (1, OWN, 5);
        edit(&mut message);
        message
    }

    fn refused(kind: MessageType, edit: impl FnOnce(&mut Message)) -> Result<(), Invalid> {
        check(&message(kind, edit), OWN, &Terms(vec![1, 1, 2]))
    }

    #[test]
    fn what_a_sound_member_sends_passes() {
        for kind in [
            MessageType::MsgAppend,
            MessageType::MsgAppendResponse,
            MessageType::MsgHeartbeat,
            MessageType::MsgHeartbeatResponse,
            MessageType::MsgRequestVote,
            MessageType::MsgRequestVoteResponse,
            MessageType::MsgRequestPreVote,
            MessageType::MsgRequestPreVoteResponse,
            MessageType::MsgTimeoutNow,
        ] {
            assert_eq!(refused(kind, |_| {}), Ok(()), "{kind:?}");
        }
        let append = |m: &mut Message| (m.index, m.log_term, m.entries) = (3, 2, vec![entry(4, 4), entry(5, 5)].into());
        assert_eq!(refused(MessageType::MsgAppend, append), Ok(()));
        assert_eq!(refused(MessageType::MsgReadIndex, |m| (m.term, m.entries) = (0, vec![entry(0, 0)].into())), Ok(()));
        assert_eq!(refused(MessageType::MsgReadIndexResp, |m| m.entries = vec![entry(0, 0)].into()), Ok(()));
    }

    #[test]
    fn a_message_for_somebody_else_or_of_an_internal_kind_is_refused() {
        assert_eq!(refused(MessageType::MsgAppend, |m| m.to = 3), Err(Invalid::Addressee));
        assert_eq!(refused(MessageType::MsgAppend, |m| m.from = OWN), Err(Invalid::Addressee));
        for kind in [
            MessageType::MsgHup,
            MessageType::MsgBeat,
            MessageType::MsgUnreachable,
            MessageType::MsgSnapStatus,
            MessageType::MsgCheckQuorum,
            MessageType::MsgPropose,
            MessageType::MsgTransferLeader,
        ] {
            assert_eq!(refused(kind, |_| {}), Err(Invalid::LocalKind), "{kind:?}");
        }
    }

    #[test]
    fn an_append_of_term_zero_would_be_taken_for_a_local_one() {
        assert_eq!(refused(MessageType::MsgAppend, |m| m.term = 0), Err(Invalid::NoTerm));
    }

    #[test]
    fn a_term_that_cannot_be_would_overflow_at_the_next_election() {
        assert_eq!(refused(MessageType::MsgHeartbeat, |m| m.term = u64::MAX), Err(Invalid::Term));
        assert_eq!(refused(MessageType::MsgRequestVote, |m| m.term = u64::MAX), Err(Invalid::Term));
    }

    #[test]
    fn an_append_with_a_gap_would_panic() {
        for entries in [vec![entry(5, 5)], vec![entry(5, 4), entry(5, 6)], vec![entry(6, 4)], vec![entry(1, 4)]] {
            let edit = |m: &mut Message| (m.index, m.log_term, m.entries) = (3, 2, entries.into());
            assert_eq!(refused(MessageType::MsgAppend, edit), Err(Invalid::Entries));
        }
    }

    #[test]
    fn an_append_that_contradicts_committed_entries_would_panic() {
        let edit = |m: &mut Message| (m.index, m.log_term, m.entries) = (2, 1, vec![entry(4, 3)].into());
        assert_eq!(refused(MessageType::MsgAppend, edit), Err(Invalid::ContradictsCommitted));
    }

    #[test]
    fn a_heartbeat_beyond_the_log_would_panic() {
        assert_eq!(refused(MessageType::MsgHeartbeat, |m| m.commit = 4), Err(Invalid::LogLost));
    }

    #[test]
    fn an_acknowledgement_beyond_the_log_would_poison_progress() {
        assert_eq!(refused(MessageType::MsgAppendResponse, |m| m.index = 4), Err(Invalid::AcknowledgesTooMuch));
    }

    #[test]
    fn a_read_request_without_context_would_panic() {
        assert_eq!(refused(MessageType::MsgReadIndex, |m| m.term = 0), Err(Invalid::ReadContext));
        let two = |m: &mut Message| (m.term, m.entries) = (0, vec![entry(0, 0), entry(0, 0)].into());
        assert_eq!(refused(MessageType::MsgReadIndex, two), Err(Invalid::ReadContext));
        assert_eq!(refused(MessageType::MsgReadIndexResp, |_| {}), Err(Invalid::ReadContext));
    }

    #[test]
    fn a_read_request_with_a_term_would_panic_the_follower_that_passes_it_on() {
        let request = |m: &mut Message| m.entries = vec![entry(0, 0)].into();
        assert_eq!(refused(MessageType::MsgReadIndex, request), Err(Invalid::Term));
    }

    #[test]
    fn an_answer_to_a_read_has_a_term_that_can_be() {
        let of = |term| move |m: &mut Message| (m.term, m.entries) = (term, vec![entry(0, 0)].into());
        assert_eq!(refused(MessageType::MsgReadIndexResp, of(0)), Err(Invalid::NoTerm));
        assert_eq!(refused(MessageType::MsgReadIndexResp, of(u64::MAX)), Err(Invalid::Term));
    }

    #[test]
    fn an_append_after_an_entry_of_no_term_would_match_whatever_is_missing_here() {
        for entries in [vec![], vec![entry(5, 101)]] {
            let edit = |m: &mut Message| (m.index, m.log_term, m.entries, m.commit) = (100, 0, entries.into(), 101);
            assert_eq!(refused(MessageType::MsgAppend, edit), Err(Invalid::Entries));
        }
        assert_eq!(refused(MessageType::MsgAppend, |m| (m.index, m.log_term) = (0, 1)), Err(Invalid::Entries));
    }

    #[test]
    fn a_snapshot_that_makes_no_sense_would_panic_or_leave_a_group_without_voters() {
        let sound = |m: &mut Message| {
            let metadata = m.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (9, 5);
            metadata.mut_conf_state().voters = vec![1, OWN];
        };
        assert_eq!(refused(MessageType::MsgSnapshot, sound), Ok(()));
        let of = |index, term| {
            move |m: &mut Message| {
                sound(m);
                let metadata = m.mut_snapshot().mut_metadata();
                (metadata.index, metadata.term) = (index, term);
            }
        };
        assert_eq!(refused(MessageType::MsgSnapshot, of(3, 2)), Ok(()));
        assert_eq!(refused(MessageType::MsgSnapshot, of(3, 5)), Err(Invalid::ContradictsCommitted));
        type Edit = fn(&mut raft::eraftpb::SnapshotMetadata);
        let edits: [Edit; 6] = [
            |metadata| metadata.index = 0,
            |metadata| metadata.term = 6,
            |metadata| metadata.mut_conf_state().voters.clear(),
            |metadata| metadata.mut_conf_state().learners = vec![1],
            |metadata| metadata.mut_conf_state().voters = vec![1, 3],
            |metadata| metadata.mut_conf_state().voters_outgoing = vec![1],
        ];
        for edit in edits {
            let broken = |m: &mut Message| {
                sound(m);
                edit(m.mut_snapshot().mut_metadata());
            };
            assert_eq!(refused(MessageType::MsgSnapshot, broken), Err(Invalid::Snapshot));
        }
    }
}
