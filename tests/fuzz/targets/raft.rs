//! What peers may send to raft: any messages at all, through the validator, into a real machine in each of its states,
//! with the log and the store it would have.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use raft::eraftpb::{ConfState, Entry, EntryType, HardState, Message, MessageType};
use skep::apply::{self, Applier, Effect};
use skep::codec::raft_message;
use skep::raft::machine::{Machine, Options};
use skep::raft::storage::LogView;
use skep::raft::{Applied, Effects, Event, Replicated, SnapshotMark};
use skep::store::{State, Store};
use skep::sys::time::Instant;
use skep::types::api::RaftState;
use skep::types::log::{Command, Configuration};
use skep::types::object::{Profile, RaftSettings};
use skep::types::{Index, Lineage, Member, MemberChange, MemberRole, NodeId, Position, RaftId, Term};
use skep::wal::{self, Persist};

use super::state::conf_change;
use super::wire::sample_messages;
use super::{PLAIN, Target, numbered};

pub(super) fn targets() -> Vec<Target> {
    vec![Target {
        name: "raft_step",
        run: step,
        seeds,
        runs: 6000,
        // The state and the machine are built for each input; a snapshot's members are listed several times.
        bytes_per_byte: 128,
        bytes_besides: 1 << 20,
        ..PLAIN
    }]
}

const LINEAGE: Lineage = Lineage(0xab);
/// The log that members start with ends here.
const LAST: u64 = 9;
/// So much of it is committed and applied.
const COMMIT: u64 = 8;

fn node(raft_id: u64) -> NodeId {
    NodeId(0x100 + u128::from(raft_id))
}

/// A log as a swarm of three voters and a learner begins: members, then changes.
fn sample_log() -> Vec<Entry> {
    let add = |raft_id: u64| MemberChange::AddLearner {
        raft_id: RaftId(raft_id),
        node_id: node(raft_id),
        addr: format!("m{raft_id}:4242"),
    };
    let promote = |raft_id| MemberChange::Promote { raft_id: RaftId(raft_id) };
    let members = [add(2), promote(2), add(3), promote(3), add(4)];
    let members = members.iter().map(|change| (EntryType::EntryConfChange, conf_change(change)));
    let mark = apply::encode(&Command::Mark { floors: vec![(RaftId(1), Index(3))] });
    let commands = [Vec::new(), mark.clone(), mark].map(|data| (EntryType::EntryNormal, data));
    (2..)
        .zip(members.chain(commands))
        .map(|(index, (entry_type, data))| Entry { entry_type, term: 1, index, data: data.into(), ..Entry::default() })
        .collect()
}

/// The states that a member can be in when a message comes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Start {
    Joiner,
    Follower,
    FollowerOfOne,
    Compacted,
    Installed,
    Learner,
    PreCandidate,
    Candidate,
    Leader,
    LeaderUnsynced,
    SoleLeader,
}

const STARTS: [Start; 11] = [
    Start::Joiner,
    Start::Follower,
    Start::FollowerOfOne,
    Start::Compacted,
    Start::Installed,
    Start::Learner,
    Start::PreCandidate,
    Start::Candidate,
    Start::Leader,
    Start::LeaderUnsynced,
    Start::SoleLeader,
];

/// Choices about everything around the machine.
#[derive(Clone, Copy)]
struct Flags(u8);

impl Flags {
    /// Syncs finish only at the end.
    fn slow_disk(self) -> bool {
        self.0 & 1 != 0
    }

    /// Entries are applied only at the end.
    fn slow_apply(self) -> bool {
        self.0 & 2 != 0
    }

    /// Time passes between messages.
    fn ticks(self) -> bool {
        self.0 & 4 != 0
    }

    /// The machine catches its breath after each message, and not after all of them.
    fn finishes(self) -> bool {
        self.0 & 8 == 0
    }

    /// A snapshot that is offered cannot be fetched.
    fn no_fetch(self) -> bool {
        self.0 & 16 != 0
    }

    /// What is sent between messages: reads and proposals of this member's own callers.
    fn is_busy(self) -> bool {
        self.0 & 32 != 0
    }

    /// The messages are built from small numbers instead of decoded.
    fn builds(self) -> bool {
        self.0 & 128 != 0
    }
}

/// A machine and the threads around it.
struct Harness {
    machine: Machine,
    applier: Applier,
    flags: Flags,
    own: u64,
    now: Instant,
    /// The log as the disk has it, by index.
    disk: BTreeMap<u64, Entry>,
    hard_state: wal::HardState,
    unsynced: VecDeque<u64>,
    unapplied: Vec<Entry>,
    /// The fetched snapshot's state, until it is installed.
    fetched: Option<State>,
    stopped: bool,
}

/// The first byte chooses the state, the second what happens around the machine; the rest is a frame of messages.
fn step(input: &[u8]) {
    let [start, flags, body @ ..] = input else { return };
    let flags = Flags(*flags);
    let messages = if flags.builds() {
        build(body)
    } else {
        let Ok(messages) = raft_message::decode_all(&Bytes::copy_from_slice(body)) else { return };
        messages
    };
    let start = STARTS[usize::from(*start) % STARTS.len()];
    let mut harness = Harness::begin(start, flags);
    for (turn, mut message) in (0_u64..).zip(messages.into_iter().take(24)) {
        if flags.builds() {
            message.to = harness.own;
        }
        if flags.is_busy() {
            harness.machine.step(harness.now, Event::Read { token: 1000 + turn });
            let command = apply::encode(&Command::Mark { floors: Vec::new() }).into();
            harness.machine.step(harness.now, Event::Propose { token: 2000 + turn, command });
        }
        let from = node(message.from);
        harness.machine.step(harness.now, Event::Peer { from, message });
        if flags.finishes() {
            harness.settle();
        }
        if flags.ticks() {
            harness.tick();
        }
        if harness.stopped {
            return;
        }
    }
    harness.flags.0 &= !0b11;
    // Long enough for an election, and for what waits to be tried again.
    for _ in 0..25 {
        harness.catch_up();
        harness.tick();
        if harness.stopped {
            return;
        }
    }
    drop(harness.machine.report(harness.now));
}

impl Harness {
    fn begin(start: Start, flags: Flags) -> Self {
        let own = match start {
            Start::SoleLeader => 1,
            Start::Learner => 4,
            _ => 2,
        };
        let log = match start {
            Start::Joiner | Start::SoleLeader => Vec::new(),
            Start::Installed => sample_log()[..COMMIT as usize - 1].to_vec(),
            _ => sample_log(),
        };
        let state = match start {
            Start::Joiner => State::new(LINEAGE),
            _ => State::bootstrap(LINEAGE, node(1), "m1:4242"),
        };
        let mut applier = Applier::new(Arc::new(Store::new(state, 1 << 16)));
        for entry in log.iter().filter(|entry| entry.index <= COMMIT) {
            applier.apply(entry).expect("the sample log is understood");
        }
        let (applied, configuration) = applier.store().view(|state| (state.applied(), state.configuration()));
        // What a snapshot covers is no longer in the log.
        let (snapshot, base) = match start {
            Start::Joiner => (Position::default(), Position::default()),
            Start::Compacted => (position(1, 7), position(1, 6)),
            Start::Installed => (applied, applied),
            _ => (position(1, 1), position(1, 1)),
        };
        let kept: Vec<Entry> = log.into_iter().filter(|entry| entry.index > base.index.0).collect();
        let last = kept.last().map_or(base, |entry| position(entry.term, entry.index));
        let runs = kept.first().map(|entry| position(entry.term, entry.index)).into_iter().collect();
        let mark = SnapshotMark { position: snapshot, configuration: configuration.clone(), bytes: 100 };
        let mut stored = HardState::default();
        (stored.term, stored.commit) = (applied.term.0, applied.index.0);
        let hard_state = wal::HardState { term: applied.term, vote: RaftId(0), commit: applied.index };
        let now = Instant::from_nanos(1_000_000_000);
        let options = Options {
            raft_id: RaftId(own),
            node_id: node(own),
            lineage: LINEAGE,
            profile: Profile::Lan,
            seed: 5,
            nonce: 6,
            log: LogView::new(base, runs, last, kept.clone(), mark, &configuration, stored),
            applied: applied.index,
            replicated: replicated(&applier),
            log_bytes: 0,
            log_ends: Vec::new(),
            hard_state,
            persist_number: 0,
        };
        let mut harness = Self {
            machine: Machine::new(now, options).expect("the machine starts"),
            applier,
            flags: Flags(0),
            own,
            now,
            disk: kept.into_iter().map(|entry| (entry.index, entry)).collect(),
            hard_state,
            unsynced: VecDeque::new(),
            unapplied: Vec::new(),
            fetched: None,
            stopped: false,
        };
        harness.reach(start, flags);
        harness.flags = flags;
        harness
    }

    /// Brings the machine into its state by what would have brought it there.
    fn reach(&mut self, start: Start, flags: Flags) {
        self.settle();
        match start {
            Start::FollowerOfOne => self.peer(MessageType::MsgHeartbeat, 1, 3),
            Start::PreCandidate | Start::Candidate | Start::Leader | Start::LeaderUnsynced => {
                while self.machine.report(self.now).state != RaftState::Candidate {
                    self.tick();
                }
                let term = self.machine.report(self.now).term.0;
                if start != Start::PreCandidate {
                    self.peer(MessageType::MsgRequestPreVoteResponse, 1, term + 1);
                    let term = self.machine.report(self.now).term.0;
                    if start != Start::Candidate {
                        if start == Start::LeaderUnsynced {
                            self.flags = Flags(flags.0 | 1);
                        }
                        self.peer(MessageType::MsgRequestVoteResponse, 3, term);
                        assert_eq!(self.machine.report(self.now).state, RaftState::Leader, "the votes were enough");
                    }
                }
            }
            Start::SoleLeader => assert_eq!(self.machine.report(self.now).state, RaftState::Leader),
            _ => {}
        }
        assert!(!self.stopped, "the start is sound");
    }

    fn peer(&mut self, kind: MessageType, from: u64, term: u64) {
        let mut message = Message::default();
        message.msg_type = kind;
        (message.from, message.to, message.term) = (from, self.own, term);
        self.machine.step(self.now, Event::Peer { from: node(from), message });
        self.settle();
    }

    fn tick(&mut self) {
        self.now = self.now + Duration::from_millis(100);
        self.machine.step(self.now, Event::Tick);
        self.settle();
    }

    /// The disk and apply do what they still had to do.
    fn catch_up(&mut self) {
        while let Some(number) = self.unsynced.pop_front() {
            self.machine.step(self.now, Event::Persisted { number });
        }
        let entries = std::mem::take(&mut self.unapplied);
        self.apply(entries);
        self.settle();
    }

    /// Carries out what the machine wants until it wants nothing more.
    fn settle(&mut self) {
        for _ in 0..64 {
            if self.stopped {
                return;
            }
            let effects = self.machine.finish(self.now);
            if !self.carry_out(effects) {
                return;
            }
        }
        panic!("the machine does not come to rest");
    }

    /// True when the machine was told something new.
    fn carry_out(&mut self, effects: Effects) -> bool {
        let mut news = false;
        for outgoing in &effects.messages {
            check_sent(&outgoing.message);
        }
        for (persist, released) in effects.persist {
            for outgoing in &released {
                check_sent(&outgoing.message);
            }
            self.write(&persist);
            if self.flags.slow_disk() {
                self.unsynced.push_back(persist.number);
            } else {
                news = true;
                self.machine.step(self.now, Event::Persisted { number: persist.number });
            }
        }
        if let Some(place) = effects.install {
            let state = self.fetched.take().expect("only what was fetched is installed");
            assert_eq!(state.applied(), place);
            self.unapplied.clear();
            self.applier.store().install(state);
            let applied =
                Applied { position: place, replicated: Some(replicated(&self.applier)), ..Applied::default() };
            news = true;
            self.machine.step(self.now, Event::Applied(applied));
        }
        let entries = effects.apply.into_iter().map(|(entry, _)| entry);
        if self.flags.slow_apply() {
            self.unapplied.extend(entries);
        } else {
            let entries: Vec<Entry> = self.unapplied.drain(..).chain(entries).collect();
            news |= !entries.is_empty();
            self.apply(entries);
        }
        for fetch in effects.fetch {
            let entries = self.disk.range(fetch.low.0..fetch.high.0).map(|(_, entry)| entry.clone()).collect();
            news = true;
            self.machine.step(self.now, Event::Fetched { fetch, entries });
        }
        if effects.create_snapshot {
            let (place, configuration) = self.applier.store().view(|state| (state.applied(), state.configuration()));
            let mark = SnapshotMark { position: place, configuration, bytes: 100 };
            news = true;
            self.machine.step(self.now, Event::SnapshotCreated { mark });
        }
        if let Some(fetch) = effects.fetch_snapshot {
            news = true;
            self.fetch_snapshot(&fetch.mark);
        }
        if let Some(keep_from) = effects.compact {
            assert!(keep_from <= self.applied().index.next(), "what is not applied is not dropped");
            self.disk = self.disk.split_off(&keep_from.0);
        }
        self.stopped |= effects.stop.is_some();
        news
    }

    fn applied(&self) -> Position {
        self.applier.store().view(State::applied)
    }

    /// What the log would write, by the rules that it has.
    fn write(&mut self, persist: &Persist) {
        if let Some(wal::SnapshotMark::Installed(place)) = persist.snapshot {
            self.disk.clear();
            assert!(place.index >= self.hard_state.commit, "a snapshot from before what is committed");
        }
        if let Some(first) = persist.entries.first() {
            assert!(first.index > self.hard_state.commit.0, "an entry that is committed is replaced");
            self.disk.split_off(&first.index);
            if let Some((last, _)) = self.disk.last_key_value() {
                assert_eq!(first.index, last + 1, "the log has a gap");
            }
        }
        for entry in &persist.entries {
            let before = self.disk.last_key_value();
            assert!(before.is_none_or(|(index, last)| *index + 1 == entry.index && last.term <= entry.term));
            self.disk.insert(entry.index, entry.clone());
        }
        if let Some(new) = persist.hard_state {
            let old = std::mem::replace(&mut self.hard_state, new);
            assert!(new.term >= old.term && new.commit >= old.commit, "the hard state goes back");
            let voted_twice = new.term == old.term && old.vote.0 != 0 && new.vote != old.vote;
            assert!(!voted_twice, "two votes in one term");
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        let mut applied = Applied::default();
        let before = replicated(&self.applier);
        for entry in &entries {
            match self.applier.apply(entry) {
                Ok(Effect::Member { accepted, .. }) => applied.members.push((Index(entry.index), accepted)),
                Ok(Effect::Mark(mark)) => applied.mark = Some(mark),
                Ok(_) => {}
                Err(error) => {
                    // The node stops and says so.
                    assert!(!error.to_string().is_empty());
                    self.stopped = true;
                    return;
                }
            }
        }
        if entries.is_empty() {
            return;
        }
        applied.position = self.applied();
        let after = replicated(&self.applier);
        applied.replicated = (after != before).then_some(after);
        self.machine.step(self.now, Event::Applied(applied));
    }

    /// A leader's snapshot of that place, if our own state could have come to it: what the transfer checks.
    fn fetch_snapshot(&mut self, mark: &SnapshotMark) {
        let place = mark.position;
        let distance = place.index.0.saturating_sub(self.applied().index.0);
        let known = self.own != 1 && (1..200).contains(&distance) && place.term >= self.applied().term;
        let state = known.then(|| self.leaders_state(place)).filter(|state| {
            !self.flags.no_fetch() && state.applied() == place && state.configuration() == sorted(&mark.configuration)
        });
        let event = match state {
            Some(state) => {
                self.fetched = Some(state);
                Event::SnapshotFetched { position: place, bytes: 100 }
            }
            None => Event::SnapshotNotFetched { position: place },
        };
        self.machine.step(self.now, event);
    }

    /// The state of a leader that applied the sample log and nothing but empty entries after it.
    fn leaders_state(&self, place: Position) -> State {
        let state = State::bootstrap(LINEAGE, node(1), "m1:4242");
        let mut applier = Applier::new(Arc::new(Store::new(state, 1 << 16)));
        for entry in sample_log().iter().filter(|entry| entry.index <= place.index.0) {
            applier.apply(entry).expect("the sample log is understood");
        }
        for index in LAST + 1..=place.index.0 {
            let entry = Entry { term: place.term.0, index, ..Entry::default() };
            applier.apply(&entry).expect("an empty entry is always understood");
        }
        applier.store().snapshot()
    }
}

fn sorted(configuration: &Configuration) -> Configuration {
    let mut sorted = configuration.clone();
    sorted.voters.sort_unstable();
    sorted.learners.sort_unstable();
    sorted
}

fn position(term: u64, index: u64) -> Position {
    Position { term: Term(term), index: Index(index) }
}

/// What is sent survives the wire.
fn check_sent(message: &Message) {
    let mut bytes = Vec::new();
    raft_message::encode_into(message, &mut bytes);
    let decoded = raft_message::decode_all(&bytes.into()).expect("what is sent can be read");
    assert_eq!(decoded.len(), 1);
}

fn replicated(applier: &Applier) -> Replicated {
    let settings = RaftSettings::for_profile(Profile::Lan);
    applier.store().view(|state| {
        let members: Vec<Member> = state.members().values().cloned().collect();
        assert!(members.is_empty() || members.iter().any(|member| member.role == MemberRole::Voter));
        Replicated { members, next_raft_id: state.next_raft_id(), settings }
    })
}

/// Messages from small numbers, so that most of them nearly make sense: 12 bytes for each message, 3 for each entry.
fn build(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some((fields, rest)) = bytes.split_first_chunk::<12>() {
        bytes = rest;
        let [kind, from, term, log_term, index, commit, commit_term, hint, flags, snapshot, entries, context] = *fields;
        let mut message = Message::default();
        message.msg_type = KINDS[usize::from(kind) % KINDS.len()];
        message.from = number(from % 8);
        (message.term, message.log_term, message.index) = (number(term), number(log_term), number(index));
        (message.commit, message.commit_term, message.reject_hint) =
            (number(commit), number(commit_term), number(hint));
        message.reject = flags & 1 != 0;
        if flags & 2 != 0 {
            message.request_snapshot = number(snapshot);
        }
        message.priority = i64::from(flags >> 4);
        if flags & 4 != 0 {
            message.context = vec![context; usize::from(context) % 20].into();
        }
        if message.msg_type == MessageType::MsgSnapshot {
            let metadata = message.mut_snapshot().mut_metadata();
            (metadata.index, metadata.term) = (number(snapshot), number(hint));
            metadata.set_conf_state(members(context));
        }
        for place in 0..u64::from(entries % 5) {
            let Some(([entry_term, shift, content], rest)) = bytes.split_first_chunk::<3>() else { break };
            bytes = rest;
            let entry_index = message.index.wrapping_add(1 + place).wrapping_add(u64::from(shift / 250));
            message.entries.push(entry(number(*entry_term), entry_index, *content));
        }
        messages.push(message);
    }
    messages
}

const KINDS: [MessageType; 19] = [
    MessageType::MsgHup,
    MessageType::MsgBeat,
    MessageType::MsgPropose,
    MessageType::MsgAppend,
    MessageType::MsgAppendResponse,
    MessageType::MsgRequestVote,
    MessageType::MsgRequestVoteResponse,
    MessageType::MsgSnapshot,
    MessageType::MsgHeartbeat,
    MessageType::MsgHeartbeatResponse,
    MessageType::MsgUnreachable,
    MessageType::MsgSnapStatus,
    MessageType::MsgCheckQuorum,
    MessageType::MsgTransferLeader,
    MessageType::MsgTimeoutNow,
    MessageType::MsgReadIndex,
    MessageType::MsgReadIndexResp,
    MessageType::MsgRequestPreVote,
    MessageType::MsgRequestPreVoteResponse,
];

/// Most bytes are themselves; the largest are the numbers where sums overflow.
fn number(byte: u8) -> u64 {
    match byte {
        0..=31 => u64::from(byte),
        250 => (1 << 50) - 1,
        251 => 1 << 50,
        252 => (1 << 62) - 1,
        253 => i64::MAX as u64,
        254 => u64::MAX - 1,
        255 => u64::MAX,
        _ => u64::from(byte % 16),
    }
}

fn members(choice: u8) -> ConfState {
    let mut state = ConfState::default();
    (state.voters, state.learners) = match choice % 8 {
        0 | 1 => (vec![1, 2, 3], vec![4]),
        2 => (vec![1, 2, 3], vec![]),
        3 => (vec![1, 2], vec![3]),
        4 => (vec![2], vec![]),
        5 => (vec![], vec![2]),
        6 => (vec![1, 2, 2], vec![4]),
        _ => (vec![1, 2, u64::MAX], vec![3, 4]),
    };
    state
}

fn entry(term: u64, index: u64, content: u8) -> Entry {
    let add = MemberChange::AddLearner { raft_id: RaftId(5), node_id: node(5), addr: "m5:4242".to_owned() };
    let (entry_type, data) = match content % 12 {
        0..=3 => (EntryType::EntryNormal, Vec::new()),
        4 | 5 => (EntryType::EntryNormal, apply::encode(&Command::Mark { floors: vec![(RaftId(2), Index(3))] })),
        6 => (EntryType::EntryConfChange, conf_change(&add)),
        7 => (EntryType::EntryConfChange, conf_change(&MemberChange::Promote { raft_id: RaftId(4) })),
        8 => {
            let raft_id = RaftId(u64::from(content / 12 % 5));
            (EntryType::EntryConfChange, conf_change(&MemberChange::Remove { raft_id }))
        }
        9 => (EntryType::EntryConfChange, vec![content; 3]),
        10 => (EntryType::EntryConfChangeV2, Vec::new()),
        _ => (EntryType::EntryNormal, vec![content; 40]),
    };
    Entry { entry_type, term, index, data: data.into(), ..Entry::default() }
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let messages = sample_messages();
    let mut inputs = Vec::new();
    for start in 0..STARTS.len() as u8 {
        let mut body = Vec::new();
        for message in &messages {
            let mut message = message.clone();
            if STARTS[usize::from(start)] == Start::Learner {
                message.to = 4;
            }
            raft_message::encode_into(&message, &mut body);
        }
        inputs.push([&[start, 4], &body[..]].concat());
        // The same kinds, in small numbers: kind, from, term, log term, index, commit, ...
        let built: Vec<u8> = [
            [3, 1, 3, 1, 9, 9, 0, 0, 0, 0, 2, 0].to_vec(),
            vec![3, 0, 5, 3, 0, 4],
            [8, 1, 3, 0, 0, 10, 0, 0, 0, 0, 0, 0].to_vec(),
            [5, 3, 5, 3, 11, 0, 0, 0, 0, 0, 0, 0].to_vec(),
            [3, 3, 5, 3, 11, 12, 0, 0, 0, 0, 1, 0].to_vec(),
            vec![5, 0, 6],
            [4, 1, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0].to_vec(),
            [7, 1, 6, 0, 0, 0, 0, 5, 0, 20, 0, 0].to_vec(),
            [14, 1, 6, 0, 0, 0, 0, 0, 0, 0, 0, 0].to_vec(),
        ]
        .concat();
        inputs.push([&[start, 128 | 8], &built[..]].concat());
    }
    numbered(inputs)
}
