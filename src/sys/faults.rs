//! Faults that tests plant on purpose, to see whether the simulator's checkers find them.
//!
//! `if planted(Fault::X)` stands where each fault would have been made. In a build without debug assertions the question
//! is a constant `false` and nothing of it is left in the program. In a build with them it is answered for the asking
//! thread alone, by a guard that only code can hold: there is no option, no variable of the environment and no command, so
//! a daemon cannot be told to misbehave.
//!
//! `tests/sim/planted.rs` says for each which checker catches it and after how many seeds.

/// Declares the enum and the list of all of it, so that neither can lack what the other has.
macro_rules! faults {
    ($($(#[$doc:meta])+ $name:ident,)+) => {
        /// Something done wrong, in one place of the product.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Fault {
            $($(#[$doc])+ $name,)+
        }

        impl Fault {
            /// Every fault, in the order of its declaration.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];
        }
    };
}

faults! {
    // ---- the log and the snapshots ----
    /// A batch is reported as durable before its sync.
    WriteNotSynced,
    /// A term and a vote without entries are not written.
    VoteNotWritten,
    /// A segment is used before its name is durable.
    SegmentNameNotSynced,
    /// A snapshot counts before its name is durable.
    SnapshotNameNotSynced,
    /// A batch holds a commit index beyond the entries written so far.
    CommitBeyondEntries,
    /// The unfinished write of a crash stays where the log goes on.
    TornTailLeft,
    /// Damage is taken for an unfinished write: it and all after it is cut off.
    DamageCutOff,
    /// Recovery does not see that entries were replaced.
    TruncationForgotten,
    /// The log is removed for a snapshot that it has not recorded.
    SnapshotUnrecorded,

    // ---- agreement ----
    /// A leader counts its own copy of an entry before that is synced.
    LeaderCountsUnsynced,
    /// A sole voter leads its learners under a term that is not durable.
    LeaderOfUnsyncedTerm,
    /// A follower acknowledges entries before they are synced.
    AppendAnsweredBeforeSync,
    /// A vote leaves before it is synced.
    VoteAnsweredBeforeSync,
    /// Heartbeats are answered under a term that is not durable.
    HeartbeatOfUnsyncedTerm,
    /// An installed snapshot is made durable without the term it came in.
    SnapshotWithoutHardState,
    /// A membership change is applied before its commit is durable.
    MembershipBeforeCommitSynced,
    /// A leader takes up a membership change when it proposes it.
    MembershipAtProposal,
    /// Elections begin without asking first.
    NoPreVote,
    /// A leader that hears from no majority leads on.
    NoCheckQuorum,
    /// Reads are answered from the local state at once.
    StaleRead,
    /// A leader answers reads without asking whether it still leads.
    LeaderReadsAlone,
    /// A read is answered before the state has come to its index.
    ReadBeforeApplied,
    /// A read takes part in a round that began before it came.
    LateReadInRound,
    /// A leader serves before it has applied what the terms before it committed.
    ServesBeforeOwnTerm,
    /// Votes are refused to a manager that joined while this one was cut off.
    StrangersNotHeard,
    /// A member that lost its log votes.
    EmptyLogVotes,
    /// A vote that comes before one's own log is durable makes a leader.
    EarlyVotesTaken,
    /// A member does not notice that its leader counts on entries it no longer has.
    LostLogUnnoticed,
    /// A member that was rolled back takes part again.
    RolledBackWelcome,
    /// A snapshot is sent that does not know its receiver.
    SnapshotWithoutReceiver,
    /// A snapshot that did not arrive is never sent again.
    SnapshotFailureUntold,
    /// All election timeouts are the same.
    SameElectionTimeouts,
    /// A candidate that was refused a vote waits for its next timeout.
    LostDuelWaits,
    /// A leader whose process is gone is waited for as for one that is silent.
    LeaderDeathUnnoticed,
    /// A leader whose disk has stalled leads on.
    StalledLeaderStays,
    /// A replica that a majority contradicts goes on.
    DivergenceUnnoticed,

    // ---- roles ----
    /// A manager is taken out of the group though those left have no majority that can be reached.
    QuorumUnguarded,
    /// A manager is written down as a worker before it has left the group.
    WorkerWhileMember,

    // ---- a new history ----
    /// A recovery keeps the history that it should end.
    LineageKept,
    /// A recovery counts revisions on where the survivor's end.
    RevisionNotRaised,
    /// What a recovery takes without knowing it to be committed keeps the revisions that it was given.
    TailNotRaised,
    /// A recovery leaves out what the survivor holds and does not know to be committed.
    RecoveredToCommit,
    /// A recovery forgets which changes were made.
    RecoveryForgetsChanges,

    // ---- the replicated state ----
    /// Applying a change reads a clock.
    ClockInApply,
    /// The last entry applied before a restart is applied again.
    AppliedTwice,
    /// A repeated change is carried out again.
    RepeatedChangeApplied,
    /// Changes are forgotten that may still be repeated, without a word.
    ChangeForgottenEarly,
    /// A snapshot does not bring along which changes were made.
    SnapshotForgetsChanges,
    /// A refused change takes a revision.
    RefusalTakesRevision,
    /// What a change did before the operation that refused it stays done.
    RefusedChangeHalfDone,
    /// An update does not look at the version it was made from.
    VersionUnchecked,
    /// A change's demands are not looked at.
    RequireUnchecked,
    /// Two objects of a kind may have one name.
    NameUnchecked,
    /// A renamed object is still found under its old name only.
    NameIndexStale,
    /// A change made for one term is carried out in another.
    TermUnchecked,
    /// The raft id of a removed member is given to the next.
    RaftIdReused,

    // ---- watching ----
    /// The events of a change come in the wrong order.
    EventsOutOfOrder,
    /// Of a change with several events only the first is seen.
    EventsMissing,
    /// A watcher is not told that a snapshot jumped over events.
    WatchGapAtInstall,
}

/// Whether this fault was planted in this thread.
#[cfg(debug_assertions)]
pub fn planted(fault: Fault) -> bool {
    PLANTED.get() == Some(fault)
}

/// Never, in a build without debug assertions.
#[cfg(not(debug_assertions))]
pub const fn planted(_: Fault) -> bool {
    false
}

#[cfg(not(debug_assertions))]
const _: () = assert!(!planted(Fault::WriteNotSynced), "a constant, so that nothing is left of what it decides");

#[cfg(debug_assertions)]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Fault>> = const { std::cell::Cell::new(None) };
}

/// Plants a fault in this thread, or none, until the guard is dropped. Only in builds with debug assertions.
#[cfg(debug_assertions)]
pub fn plant(fault: Option<Fault>) -> Planted {
    Planted { before: PLANTED.replace(fault), here: std::marker::PhantomData }
}

/// While it lives, a fault is planted. It stays in the thread that made it.
#[cfg(debug_assertions)]
#[derive(Debug)]
#[must_use = "the fault goes with the guard"]
pub struct Planted {
    before: Option<Fault>,
    here: std::marker::PhantomData<*const ()>,
}

#[cfg(debug_assertions)]
impl Drop for Planted {
    fn drop(&mut self) {
        PLANTED.set(self.before);
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn a_fault_is_planted_in_one_thread_and_as_long_as_its_guard_lives() {
        let guard = plant(Some(Fault::StaleRead));
        assert!(planted(Fault::StaleRead) && !planted(Fault::NoPreVote));
        let elsewhere = std::thread::spawn(|| planted(Fault::StaleRead)).join().expect("it does not panic");
        assert!(!elsewhere);
        let inner = plant(None);
        assert!(!planted(Fault::StaleRead));
        drop(inner);
        assert!(planted(Fault::StaleRead));
        drop(guard);
        assert!(Fault::ALL.iter().all(|fault| !planted(*fault)));
    }
}
