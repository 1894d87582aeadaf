//! Scripts: what arrives at the machine, and what it asks for, in words.
//!
//! This manager is node 1. Requests end 10 s after the start of the script. In effects, `s` is a stream and `t` a token;
//! both count from 1.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use super::*;
use crate::codec::frame::INITIAL_CREDIT;
use crate::net::handler::ConnectionId;
use crate::sys::metrics::Metrics;
use crate::types::Outcome;
use crate::types::api::Write;
use crate::types::{Caller, ChangeId, ClusterId, Kind, ObjectId, Refusal, Revision, Role, Timestamp};

/// A service whose requests say themselves what they want.
#[derive(Debug, Default)]
struct Scripted {
    /// What its streams have to give, sizes in bytes, and how many times each was asked for.
    parts: VecDeque<usize>,
    pulls: usize,
    /// Pulls that find nothing yet.
    searches: usize,
    ends: bool,
    complete: bool,
    wake: Option<Instant>,
    /// What is new is not for its streams.
    no_news: bool,
    holds: bool,
    /// An object was removed meanwhile.
    gone: bool,
}

impl Service for Scripted {
    type Stream = ();

    fn decide(&mut self, request: &Incoming, attempt: u32, confirmed: bool) -> Step<()> {
        let text = text(request);
        match text.as_str() {
            "read" if confirmed => Step::Answer("read".into()),
            "read" => Step::Barrier,
            "list" if !confirmed => Step::Barrier,
            "local" | "list" => Step::Answer(text.into()),
            "missing" => Step::RefuseIfConfirmed(Status::new(Code::NotFound, "missing")),
            "bad" => Step::Refuse(Status::new(Code::InvalidArgument, "bad")),
            "transfer" => Step::Raft(Order::Transfer { to: None }),
            "snapshot" => Step::Raft(Order::Snapshot),
            "leave" => Step::Raft(Order::Leave { node_id: NodeId(1), force: false, for_good: true }),
            "leave!" => Step::Raft(Order::Leave { node_id: NodeId(1), force: true, for_good: true }),
            "join" => Step::Raft(Order::Join { node_id: NodeId(9), addr: "new:1".to_owned(), feature_level: 1 }),
            "watch" => Step::Stream(()),
            "elsewhere" => Step::Elsewhere,
            "huge" => Step::Propose(change(attempt, MAX_CHANGE_BYTES)),
            "update" | "another update" => Step::Propose(update(attempt, text.len() as u128)),
            "update what is gone" if self.gone => Step::Refuse(Status::new(Code::NotFound, "gone")),
            "update what is gone" => Step::Propose(update(attempt, 6)),
            // A confirmed look shows that what it wanted to write is there already.
            "written after a round" if confirmed => Step::Propose(change(attempt, 0)),
            "written after a round" => Step::Barrier,
            _ => Step::Propose(change(attempt, 0)),
        }
    }

    fn takes_long(&self, request: &Incoming, confirmed: bool) -> bool {
        confirmed && text(request) == "list"
    }

    fn ended(&mut self, _: &Incoming, attempt: u32, _: Option<ObjectId>, outcome: &Outcome) -> Step<()> {
        match outcome {
            Outcome::Committed(revision) => Step::Answer(format!("written at {revision} by attempt {attempt}").into()),
            Outcome::Refused(_) => Step::Rebuild,
            Outcome::Forgotten => {
                let mut status = Status::new(Code::Unknown, "forgotten").with_hint("look");
                status.hopeless = true;
                Step::Refuse(status)
            }
        }
    }

    fn is_word_of_every_leader(&self, status: &Status) -> bool {
        status.message == "wait for people"
    }

    fn holds(&self, (): &()) -> bool {
        self.holds
    }

    fn has_news(&mut self, (): &mut ()) -> bool {
        !self.no_news
    }

    fn pull(&mut self, _: Instant, (): &mut (), room: usize) -> Pull {
        self.pulls += 1;
        match self.parts.front() {
            Some(size) if *size > room => Pull::Full,
            Some(_) => Pull::Part(vec![0; self.parts.pop_front().unwrap()].into()),
            None if self.searches > 0 => {
                self.searches -= 1;
                Pull::Searching
            }
            None if self.complete => Pull::Done,
            None if self.ends => Pull::End(Status::new(Code::OutOfRange, "too old")),
            None => Pull::Idle(self.wake.take()),
        }
    }
}

fn text(request: &Incoming) -> String {
    if request.call == Call::Write {
        let write: WriteRequest = envelope::decode(&request.body, 1000).unwrap();
        let Write::Remove { object, .. } = write.write else { panic!("tests write removals") };
        return object;
    }
    String::from_utf8(request.body.to_vec()).unwrap()
}

fn change(attempt: u32, bytes: usize) -> Change {
    let mut config = crate::types::object::Config::default();
    config.spec.data = vec![0; bytes];
    let operations = vec![crate::types::Operation::Create(crate::types::Object::from(config))];
    Change { id: ChangeId(attempt.into()), after: Revision(0), time: Timestamp(0), term: None, operations }
}

fn update(attempt: u32, object: u128) -> Change {
    let config = crate::types::object::Config { id: ObjectId(object), ..Default::default() };
    let operations = vec![Operation::Update(crate::types::Object::from(config))];
    Change { operations, ..change(attempt, 0) }
}

fn stream(number: u32) -> StreamId {
    StreamId { connection: ConnectionId(1), stream: number }
}

fn at(ms: u64) -> Instant {
    Instant::from_nanos(ms * 1_000_000)
}

fn ask(number: u32, call: Call, text: &str) -> Event {
    let body = match call {
        Call::Write => {
            let write = Write::Remove { kind: Kind::Config, object: text.to_owned(), if_version: None };
            envelope::encode(&WriteRequest { change: ChangeId(35), after: Revision(7), write }).into()
        }
        _ => Bytes::from(text.to_owned().into_bytes()),
    };
    // A root is what someone without a certificate asks for.
    let caller = if call == Call::GetRoot { Caller::Anonymous } else { Caller::Local };
    let (addr, deadline) = (String::new(), at(10_000));
    Event::Request(Incoming { stream: stream(number), caller, addr, forwarded: false, call, deadline, body })
}

/// A node asks for its session.
fn session(number: u32, node: u128) -> Event {
    let Event::Request(incoming) = ask(number, Call::Session, "watch") else { unreachable!() };
    let (node_id, role, cluster_id) = (NodeId(node), Role::Worker, ClusterId(1));
    Event::Request(Incoming { caller: Caller::Node { node_id, role, cluster_id, expired: false }, ..incoming })
}

/// As [`ask`], passed on by another manager.
fn passed_on(number: u32, call: Call, text: &str) -> Event {
    let Event::Request(incoming) = ask(number, call, text) else { unreachable!() };
    Event::Request(Incoming { forwarded: true, ..incoming })
}

fn leads(leader: u128) -> Event {
    Event::Leadership(Leadership { leader: Some(NodeId(leader)), serving: leader == 1, no_majority: None })
}

fn no_leader() -> Event {
    Event::Leadership(Leadership::default())
}

fn no_majority() -> Event {
    let mut status = Status::new(Code::Unavailable, "1 of 3 managers").with_hint("start them");
    status.hopeless = true;
    Event::Leadership(Leadership { no_majority: Some(status), ..Leadership::default() })
}

fn committed(token: Token, revision: u64) -> Event {
    Event::Outcome { token, result: ProposalResult::Applied(Outcome::Committed(Revision(revision))) }
}

fn conflict(token: Token) -> Event {
    let refusal = Refusal::OutOfSequence { kind: Kind::Config, id: ObjectId(1), found: Some(Revision(3)) };
    Event::Outcome { token, result: ProposalResult::Applied(Outcome::Refused(refusal)) }
}

fn ended(token: Token, result: ProposalResult) -> Event {
    Event::Outcome { token, result }
}

fn replied(token: Token, body: &'static str) -> Event {
    Event::Replied { token, reply: Reply::Answer { body: body.into(), end: true } }
}

fn refused(token: Token, code: Code) -> Event {
    Event::Replied { token, reply: Reply::Refused(Status::new(code, "by the leader")) }
}

fn lost(token: Token, sent: bool) -> Event {
    Event::Replied { token, reply: Reply::Lost { sent } }
}

fn raft_result(token: Token, result: Result<&'static str, Code>) -> Event {
    let result = result.map(Bytes::from).map_err(|code| Status::new(code, "by raft"));
    Event::RaftResult { token, result }
}

/// A machine under a script.
struct Run {
    machine: Requests<Scripted>,
    now: Instant,
    /// The last refusal in full.
    refused: Option<Status>,
}

impl Run {
    fn new(limits: Limits) -> Self {
        Self { machine: Requests::new(NodeId(1), Scripted::default(), limits), now: at(0), refused: None }
    }

    /// A machine that knows who leads.
    fn under(leader: u128) -> Self {
        let mut run = Self::new(Limits::default());
        run.check(leads(leader), "");
        run
    }

    fn at(&mut self, ms: u64) -> &mut Self {
        self.now = at(ms);
        self
    }

    #[track_caller]
    fn check(&mut self, event: Event, expected: &str) -> &mut Self {
        let (mut effects, name) = (Vec::new(), format!("{event:?}"));
        self.machine.step(self.now, event, &mut effects);
        for effect in &effects {
            if let Effect::Refuse { status, .. } = effect {
                self.refused = Some(status.clone());
            }
        }
        let words: Vec<String> = effects.iter().map(in_words).collect();
        assert_eq!(words.join("; "), expected, "after {name}");
        self
    }

    #[track_caller]
    fn turn(&mut self, expected: &str) -> &mut Self {
        self.check(Event::TurnEnded, expected)
    }

    #[track_caller]
    fn idle(&self) {
        assert!(self.machine.is_empty() && self.machine.tokens.is_empty() && self.machine.timers.is_empty());
        assert_eq!((self.machine.held.len(), self.machine.held_bytes, self.machine.held_of_strangers), (0, 0, 0));
    }
}

fn in_words(effect: &Effect) -> String {
    match effect {
        Effect::Answer { stream, body, end: true } => {
            format!("answer s{} {}", stream.stream, String::from_utf8_lossy(body))
        }
        Effect::Answer { stream, body, end: false } => format!("part s{} of {}", stream.stream, body.len()),
        Effect::Refuse { stream, status } => format!("refuse s{} {}", stream.stream, status.code.name()),
        Effect::Propose { token, command } => {
            let Command::Change(change) = envelope::decode(command, MAX_CHANGE_BYTES).unwrap() else { panic!() };
            format!("propose t{token} attempt {}", change.id.0)
        }
        Effect::Read { token } => format!("read t{token}"),
        Effect::Raft { token, order } => {
            let order = match order {
                Order::Transfer { .. } => "transfer",
                Order::Snapshot => "snapshot",
                Order::Join { .. } => "join",
                Order::Leave { .. } => "leave",
                Order::SetAddress { .. } => "set address",
            };
            format!("raft t{token} {order}")
        }
        Effect::Forward { token, to, call, deadline_ms, .. } => {
            format!("forward t{token} to {} {call:?} {deadline_ms} ms", to.0)
        }
        Effect::Abandon { token } => format!("abandon t{token}"),
        Effect::BackDial { token, node, addr } => format!("dial t{token} {} {addr}", node.0),
        Effect::Elsewhere(incoming) => format!("elsewhere s{}", incoming.stream.stream),
    }
}

#[test]
fn a_write_at_the_leader_is_proposed_and_answered_once() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .turn("")
        .check(committed(1, 8), "answer s1 written at 8 by attempt 0")
        // A second outcome of the same proposal finds nobody.
        .check(committed(1, 8), "")
        .turn("")
        .idle();
}

#[test]
fn a_write_at_a_follower_is_passed_on_with_what_is_left_of_its_time() {
    let mut run = Run::under(2);
    run.at(1500)
        .check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 8500 ms")
        .check(replied(1, "done"), "answer s1 done")
        .idle();
}

#[test]
fn a_definite_refusal_by_the_leader_is_passed_back() {
    for code in [Code::NotFound, Code::AlreadyExists, Code::Aborted, Code::ResourceExhausted, Code::DeadlineExceeded] {
        let mut run = Run::under(2);
        run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
            .check(refused(1, code), &format!("refuse s1 {}", code.name()))
            .idle();
    }
    // Whoever leads says the same: nobody is kept waiting here for what takes a person's time.
    let waiting = Reply::Refused(Status::new(Code::Unavailable, "wait for people"));
    Run::under(2)
        .check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .check(Event::Replied { token: 1, reply: waiting }, "refuse s1 Unavailable")
        .idle();
}

#[test]
fn what_was_passed_on_is_never_passed_on_again() {
    let mut run = Run::under(2);
    run.check(passed_on(1, Call::Write, "x"), "refuse s1 Unavailable").idle();
    // Nobody leads as far as is known here: whoever passed it on may know of an election that is not announced yet.
    let mut run = Run::new(Limits::default());
    run.check(passed_on(1, Call::Write, "x"), "").check(leads(2), "refuse s1 Unavailable").idle();
    let mut run = Run::new(Limits::default());
    run.check(passed_on(1, Call::Admin, "transfer"), "").check(leads(1), "raft t1 transfer");
    let mut run = Run::new(Limits::default());
    run.check(passed_on(1, Call::Admin, "transfer"), "").check(no_majority(), "refuse s1 Unavailable").idle();
    // The leader itself takes it, as soon as it serves.
    let mut run = Run::new(Limits::default());
    run.check(Event::Leadership(Leadership { leader: Some(NodeId(1)), ..Leadership::default() }), "")
        .check(passed_on(1, Call::Write, "x"), "")
        .check(leads(1), "propose t1 attempt 0");
}

#[test]
fn a_request_waits_for_a_leader_and_keeps_its_place() {
    let mut run = Run::new(Limits::default());
    run.check(ask(1, Call::Write, "x"), "")
        .check(ask(2, Call::Query, "read"), "")
        .check(ask(3, Call::Write, "x"), "")
        .turn("")
        .check(leads(2), "forward t1 to 2 Write 10000 ms; forward t2 to 2 Write 10000 ms")
        .turn("read t3")
        .check(Event::ReadReady { token: 3 }, "answer s2 read");
}

#[test]
fn waiting_is_refused_at_once_when_no_majority_is_there() {
    let mut run = Run::new(Limits::default());
    run.check(ask(1, Call::Write, "x"), "")
        .check(ask(2, Call::Query, "read"), "")
        .check(no_majority(), "refuse s1 Unavailable; refuse s2 Unavailable")
        .check(ask(3, Call::Write, "x"), "refuse s3 Unavailable");
    let status = run.refused.clone().unwrap();
    assert!(status.hopeless && status.message.contains("1 of 3"));
    // What needs no majority is answered still.
    run.check(ask(4, Call::Query, "local"), "answer s4 local").check(ask(5, Call::Watch, "watch"), "");
    assert_eq!(run.machine.len(), 1);
}

#[test]
fn a_write_in_flight_when_the_leader_dies_goes_round_again_with_its_id() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .at(100)
        .check(lost(1, true), "")
        .check(no_leader(), "")
        .turn("")
        .at(300)
        .check(leads(3), "forward t2 to 3 Write 9700 ms")
        .check(lost(1, true), "")
        .check(replied(2, "done"), "answer s1 done")
        .idle();
}

#[test]
fn a_write_is_taken_back_from_a_leader_that_was_replaced() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        // Nothing is gained while nobody else leads.
        .check(no_leader(), "")
        .check(leads(3), "abandon t1; forward t2 to 3 Write 10000 ms")
        .check(leads(1), "abandon t2; propose t3 attempt 0")
        .check(replied(2, "late"), "")
        .check(committed(3, 8), "answer s1 written at 8 by attempt 0")
        .idle();
}

#[test]
fn a_write_proposed_by_a_leader_that_steps_down_goes_round_again() {
    for result in [ProposalResult::Lost, ProposalResult::Uncertain, ProposalResult::NotProposed(NotProposed::NotLeader)]
    {
        let mut run = Run::under(1);
        run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
            .check(no_leader(), "")
            .check(ended(1, result), "")
            .turn("")
            .check(leads(2), "forward t2 to 2 Write 10000 ms")
            .check(replied(2, "done"), "answer s1 done")
            .idle();
    }
}

#[test]
fn a_leader_that_is_itself_still_the_leader_is_asked_again_after_a_pause() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms").check(refused(1, Code::Unavailable), "");
    assert_eq!(run.machine.next_deadline(), Some(at(20)));
    run.at(19).turn("").at(20).turn("forward t2 to 2 Write 9980 ms").check(replied(2, "done"), "answer s1 done").idle();
}

#[test]
fn an_unknown_outcome_at_the_leader_is_asked_about_again() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .check(refused(1, Code::Unknown), "")
        .at(20)
        .turn("forward t2 to 2 Write 9980 ms")
        // From now on a refusal that speaks of this attempt only is no answer.
        .check(refused(2, Code::ResourceExhausted), "refuse s1 Unknown");
    // But not when asking again cannot help.
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(ended(1, ProposalResult::Applied(Outcome::Forgotten)), "refuse s1 Unknown")
        .idle();
    let mut run = Run::under(2);
    let hopeless = Status { hopeless: true, ..Status::new(Code::Unknown, "forgotten") };
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .check(Event::Replied { token: 1, reply: Reply::Refused(hopeless) }, "refuse s1 Unknown")
        .idle();
}

#[test]
fn a_deadline_before_anything_was_sent_says_so() {
    let mut run = Run::new(Limits::default());
    run.check(ask(1, Call::Write, "x"), "").at(9999).turn("").at(10_000).turn("refuse s1 DeadlineExceeded").idle();
    let mut run = Run::under(2);
    run.check(ask(1, Call::Query, "read"), "");
    // It may have come after the end of the turn.
    assert_eq!(run.machine.next_deadline(), Some(Instant::default()));
    run.turn("read t1").at(10_000).turn("refuse s1 DeadlineExceeded").check(Event::ReadReady { token: 1 }, "").idle();
    // It came too late.
    let mut run = Run::under(1);
    run.at(10_000).check(ask(1, Call::Write, "x"), "refuse s1 DeadlineExceeded").idle();
    // A lost attempt is no doubt: another entry was committed in its place, or it never left.
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(no_leader(), "")
        .check(ended(1, ProposalResult::Lost), "")
        .at(10_000)
        .turn("refuse s1 DeadlineExceeded");
    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .check(lost(1, false), "")
        .check(no_leader(), "")
        .at(10_000)
        .turn("refuse s1 DeadlineExceeded");
    // Nor is a read that was passed on.
    let mut run = Run::under(2);
    run.check(ask(1, Call::GetRoot, ""), "forward t1 to 2 GetRoot 10000 ms")
        .at(10_000)
        .turn("abandon t1; refuse s1 DeadlineExceeded")
        .idle();
}

#[test]
fn a_deadline_after_something_was_sent_is_an_unknown_outcome_with_its_change_id() {
    let check_unknown = |run: &mut Run| {
        let status = run.refused.clone().unwrap();
        assert_eq!(status.code, Code::Unknown);
        let id = ChangeId(35).to_string();
        assert!(status.message.contains(&id) && status.message.contains("after revision 7"), "{status:?}");
        assert!(status.hint.contains(&format!("--change-id {id}@7")), "{status:?}");
        run.idle();
    };
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0").at(10_000).turn("refuse s1 Unknown");
    check_unknown(&mut run);
    run.check(committed(1, 8), "");

    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .at(10_000)
        .turn("abandon t1; refuse s1 Unknown");
    check_unknown(&mut run);

    // Held again after an attempt that may have been carried out.
    let mut run = Run::under(2);
    run.check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .check(no_leader(), "")
        .check(lost(1, true), "")
        .at(10_000)
        .turn("refuse s1 Unknown");
    check_unknown(&mut run);

    // The majority went away too: nothing to wait for, but still unknown.
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(no_majority(), "")
        .check(ended(1, ProposalResult::Uncertain), "refuse s1 Unknown");
    assert!(run.refused.as_ref().unwrap().hopeless);
    check_unknown(&mut run);

    // A leader that steps down with a change passed on to it must not say that nothing happened.
    let mut run = Run::under(1);
    run.check(passed_on(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(leads(2), "")
        .check(ended(1, ProposalResult::Uncertain), "refuse s1 Unknown");
    check_unknown(&mut run);
}

#[test]
fn a_conflict_is_built_again_eight_times() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0");
    for attempt in 1..=8 {
        run.check(conflict(attempt), &format!("propose t{} attempt {attempt}", attempt + 1));
    }
    run.check(conflict(9), "refuse s1 Aborted").idle();

    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(conflict(1), "propose t2 attempt 1")
        .check(committed(2, 9), "answer s1 written at 9 by attempt 1");
}

#[test]
fn updates_of_one_object_take_turns_in_order_of_arrival() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "update"), "propose t1 attempt 0")
        .check(ask(2, Call::Write, "update"), "")
        .check(ask(3, Call::Write, "update"), "")
        .check(ask(4, Call::Write, "another update"), "propose t2 attempt 0")
        .check(ask(5, Call::Write, "x"), "propose t3 attempt 0")
        .check(committed(1, 9), "answer s1 written at 9 by attempt 0; propose t4 attempt 0")
        // Another manager's service was faster: whoever has the turn keeps it.
        .check(conflict(4), "propose t5 attempt 1")
        .check(committed(5, 11), "answer s2 written at 11 by attempt 1; propose t6 attempt 0")
        .check(committed(3, 12), "answer s5 written at 12 by attempt 0")
        .check(committed(6, 13), "answer s3 written at 13 by attempt 0")
        .check(committed(2, 14), "answer s4 written at 14 by attempt 0")
        .idle();
    assert!(run.machine.turns.is_empty());
}

#[test]
fn a_turn_passes_on_from_whoever_cannot_take_it() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "update"), "propose t1 attempt 0")
        .check(ask(2, Call::Write, "update"), "")
        .check(ask(3, Call::Write, "update what is gone"), "")
        .check(ask(4, Call::Write, "update what is gone"), "")
        .check(ask(5, Call::Write, "update"), "")
        .check(Event::Cancelled(stream(2)), "");
    run.machine.service_mut().gone = true;
    run.check(
        committed(1, 9),
        "answer s1 written at 9 by attempt 0; refuse s3 NotFound; refuse s4 NotFound; propose t2 attempt 0",
    )
    .check(ask(6, Call::Write, "update"), "")
    // Its change may still be committed; the next one finds out.
    .check(Event::Cancelled(stream(5)), "propose t3 attempt 0")
    .check(ask(7, Call::Write, "update"), "")
    .check(ended(3, ProposalResult::Uncertain), "propose t4 attempt 0")
    .check(ask(8, Call::Write, "update"), "")
    .at(20)
    .turn("")
    .check(leads(2), "")
    .check(ended(4, ProposalResult::Lost), "forward t5 to 2 Write 9980 ms; forward t6 to 2 Write 9980 ms")
    .at(40)
    .turn("forward t7 to 2 Write 9960 ms");
    assert!(run.machine.turns.is_empty());
}

#[test]
fn an_overload_meets_the_one_whose_turn_it_is_and_the_others_wait() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "update"), "propose t1 attempt 0")
        .check(ask(2, Call::Write, "update"), "")
        .check(ask(3, Call::Write, "update"), "")
        .check(ended(1, ProposalResult::NotProposed(NotProposed::Overloaded)), "refuse s1 ResourceExhausted")
        .turn("")
        .at(20)
        .turn("propose t2 attempt 0")
        .check(committed(2, 9), "answer s2 written at 9 by attempt 0; propose t3 attempt 0")
        .check(committed(3, 10), "answer s3 written at 10 by attempt 0")
        .idle();
}

#[test]
fn what_waits_for_a_turn_is_bounded() {
    let Event::Request(one) = ask(1, Call::Write, "update") else { unreachable!() };
    let mut run = Run::new(Limits { queued_bytes: 2 * one.body.len(), ..Limits::default() });
    run.check(leads(1), "")
        .check(ask(1, Call::Write, "update"), "propose t1 attempt 0")
        .check(ask(2, Call::Write, "update"), "")
        .check(ask(3, Call::Write, "update"), "")
        .check(ask(4, Call::Write, "update"), "refuse s4 ResourceExhausted")
        .check(committed(1, 9), "answer s1 written at 9 by attempt 0; propose t2 attempt 0")
        .check(ask(5, Call::Write, "update"), "");
}

#[test]
fn who_waits_for_a_turn_until_the_deadline_has_written_nothing() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "update"), "propose t1 attempt 0")
        .check(ask(2, Call::Write, "update"), "")
        .check(ask(3, Call::Write, "update"), "")
        .at(10_000)
        .turn("refuse s1 Unknown; refuse s2 DeadlineExceeded; refuse s3 DeadlineExceeded")
        .check(committed(1, 9), "")
        .idle();
    assert!(run.refused.unwrap().message.contains("others were changing the object"));
}

#[test]
fn a_write_that_goes_round_walks_its_attempts_from_the_first() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(conflict(1), "propose t2 attempt 1")
        .check(ended(2, ProposalResult::Uncertain), "")
        .at(20)
        .turn("propose t3 attempt 0");
}

#[test]
fn a_refusal_drawn_from_the_store_needs_a_round() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "missing"), "")
        .check(ask(2, Call::Write, "bad"), "refuse s2 InvalidArgument")
        .turn("read t1")
        .check(Event::ReadReady { token: 1 }, "refuse s1 NotFound")
        .idle();
    // What the round shows may be another thing than what was seen before it.
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "written after a round"), "")
        .turn("read t1")
        .check(Event::ReadReady { token: 1 }, "propose t2 attempt 0");
}

#[test]
fn reads_of_one_turn_share_a_round_and_later_ones_take_a_later_round() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Query, "read"), "")
        .check(ask(2, Call::Query, "read"), "")
        .turn("read t1")
        .check(ask(3, Call::Query, "read"), "")
        // The round of the first two began before the third arrived.
        .check(Event::ReadReady { token: 1 }, "answer s1 read; answer s2 read")
        .turn("read t2")
        .check(Event::ReadReady { token: 2 }, "answer s3 read")
        .idle();
}

#[test]
fn a_failed_round_is_tried_again() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Query, "read"), "")
        .turn("read t1")
        .check(Event::ReadFailed { token: 1 }, "")
        .turn("")
        .at(20)
        .turn("read t2")
        .check(Event::ReadReady { token: 2 }, "answer s1 read")
        .idle();
}

#[test]
fn an_elected_leader_serves_once_its_term_has_begun() {
    let mut run = Run::new(Limits::default());
    let elected = Leadership { leader: Some(NodeId(1)), serving: false, no_majority: None };
    run.check(Event::Leadership(elected), "")
        .check(ask(1, Call::Write, "x"), "")
        .check(ask(2, Call::Query, "read"), "")
        .turn("")
        .check(leads(1), "propose t1 attempt 0")
        .turn("read t2");
}

#[test]
fn too_many_waiting_requests_are_refused() {
    let mut run = Run::new(Limits { held: 2, ..Limits::default() });
    run.check(ask(1, Call::Write, "x"), "").check(ask(2, Call::Write, "x"), "");
    run.check(ask(3, Call::Write, "x"), "refuse s3 ResourceExhausted").check(Event::Cancelled(stream(1)), "");
    run.check(ask(4, Call::Write, "x"), "");

    let mut run = Run::new(Limits { held_bytes: 10, ..Limits::default() });
    run.check(ask(1, Call::GetRoot, "12345678"), "").check(ask(2, Call::GetRoot, "123"), "refuse s2 ResourceExhausted");
    run.check(ask(3, Call::GetRoot, "12"), "");

    let mut run = Run::under(1);
    run.machine.limits.requests = 1;
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0");
    run.check(ask(2, Call::Write, "x"), "refuse s2 ResourceExhausted");

    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(ended(1, ProposalResult::NotProposed(NotProposed::Overloaded)), "refuse s1 ResourceExhausted")
        .idle();
}

#[test]
fn strangers_that_wait_take_no_place_of_a_member() {
    let mut run = Run::new(Limits { held: 3, held_of_strangers: 1, ..Limits::default() });
    let expired = |number| {
        let Event::Request(incoming) = ask(number, Call::Issue, "x") else { unreachable!() };
        let (node_id, cluster_id) = (NodeId(5), crate::types::ClusterId(1));
        let caller = Caller::Node { node_id, role: Role::Worker, cluster_id, expired: true };
        Event::Request(Incoming { caller, ..incoming })
    };
    run.check(ask(1, Call::GetRoot, ""), "")
        .check(ask(2, Call::GetRoot, ""), "refuse s2 ResourceExhausted")
        .check(expired(3), "refuse s3 ResourceExhausted")
        .check(ask(4, Call::Write, "x"), "")
        .check(Event::Cancelled(stream(1)), "")
        .check(expired(5), "")
        .check(ask(6, Call::GetRoot, ""), "refuse s6 ResourceExhausted")
        .check(ask(7, Call::Write, "x"), "");
    // Once a leader takes them, their places are free again.
    run.check(
        leads(2),
        "forward t1 to 2 Write 10000 ms; forward t2 to 2 Issue 10000 ms; forward t3 to 2 Write 10000 ms",
    );
    run.check(no_leader(), "").check(ask(8, Call::GetRoot, ""), "");
}

#[test]
fn the_load_counts_what_waits_and_what_is_open() {
    let metrics = Metrics::default();
    let check = |run: &Run, held, requests, streams| {
        assert_eq!(run.machine.load(), Load { held, requests, streams });
        run.machine.load().show(&metrics);
        let shown = ["skep_requests_held", "skep_requests", "skep_streams"].map(|name| metrics.gauge(name).get());
        assert_eq!(shown, [held as u64, requests as u64, streams as u64]);
    };
    let mut run = Run::new(Limits::default());
    check(&run, 0, 0, 0);
    run.check(ask(1, Call::Write, "x"), "").check(ask(2, Call::Watch, "watch"), "");
    check(&run, 1, 1, 1);
    run.check(leads(1), "propose t1 attempt 0");
    check(&run, 0, 1, 1);
    run.check(committed(1, 7), "answer s1 written at 7 by attempt 0").check(Event::Cancelled(stream(2)), "");
    check(&run, 0, 0, 0);
}

#[test]
fn what_requests_and_changes_carry_is_not_printed() {
    const MARKER: &str = "PLANTED-SECRET";
    let numbers = format!("{:?}", MARKER.as_bytes());
    for mut run in [Run::under(1), Run::under(2)] {
        let mut effects = Vec::new();
        let event = ask(1, Call::Write, MARKER);
        assert!(!format!("{event:?}").contains(MARKER));
        run.machine.step(run.now, event, &mut effects);
        let Event::Request(incoming) = ask(3, Call::Write, MARKER) else { unreachable!() };
        effects.push(Effect::Elsewhere(incoming));
        effects.push(Effect::Answer { stream: stream(1), body: MARKER.into(), end: true });
        effects.push(Effect::Propose { token: 1, command: MARKER.into() });
        let shown = format!("{effects:?} {:?}", run.machine);
        assert!(!shown.contains(MARKER) && !shown.contains(&numbers[1..20]), "{shown}");
        assert!(shown.contains("body_bytes: 14") && shown.contains("command_bytes: 14"), "{shown}");
    }
}

#[test]
fn a_cancelled_request_leaves_nothing_behind() {
    let cancel = || Event::Cancelled(stream(1));
    Run::new(Limits::default()).check(ask(1, Call::Write, "x"), "").check(cancel(), "").check(leads(1), "").idle();
    Run::under(1)
        .check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(cancel(), "")
        .check(committed(1, 8), "")
        .idle();
    Run::under(2)
        .check(ask(1, Call::Write, "x"), "forward t1 to 2 Write 10000 ms")
        .check(cancel(), "abandon t1")
        .idle();
    Run::under(1).check(ask(1, Call::Query, "read"), "").check(cancel(), "").turn("").idle();
    Run::under(1)
        .check(ask(1, Call::Query, "read"), "")
        .turn("read t1")
        .check(cancel(), "")
        .check(Event::ReadReady { token: 1 }, "")
        .idle();
    Run::under(1).check(ask(1, Call::Watch, "watch"), "").check(cancel(), "").turn("").idle();
}

#[test]
fn a_stream_number_is_answered_once() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Write, "x"), "propose t1 attempt 0")
        .check(ask(1, Call::Query, "local"), "")
        .check(committed(1, 8), "answer s1 written at 8 by attempt 0")
        .idle();
}

#[test]
fn a_change_over_the_limit_is_refused_before_it_is_proposed() {
    Run::under(1).check(ask(1, Call::Write, "huge"), "refuse s1 InvalidArgument").idle();
}

#[test]
fn an_order_is_given_where_it_can_be_carried_out() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Admin, "transfer"), "raft t1 transfer").check(raft_result(1, Ok("led")), "answer s1 led");
    let mut run = Run::under(2);
    run.check(ask(1, Call::Admin, "transfer"), "forward t1 to 2 Admin 10000 ms")
        .check(ask(2, Call::Admin, "snapshot"), "raft t2 snapshot")
        // The leader is asked to let this manager go; the order itself would take out the leader.
        .check(ask(3, Call::Admin, "leave"), "forward t3 to 2 Leave 10000 ms")
        .check(replied(3, "gone"), "answer s3 gone");
}

#[test]
fn an_order_that_may_not_be_repeated_is_not() {
    let mut run = Run::under(2);
    run.check(ask(1, Call::Admin, "leave"), "forward t1 to 2 Leave 10000 ms").check(lost(1, true), "refuse s1 Unknown");
    assert!(run.refused.as_ref().unwrap().hint.contains("skep members"));
    let mut run = Run::under(2);
    run.check(ask(1, Call::Admin, "transfer"), "forward t1 to 2 Admin 10000 ms")
        .check(refused(1, Code::Unknown), "refuse s1 Unknown");
    // The leader's word that nothing was done.
    let mut run = Run::under(2);
    run.check(ask(1, Call::Admin, "transfer"), "forward t1 to 2 Admin 10000 ms")
        .check(refused(1, Code::Unavailable), "")
        .at(20)
        .turn("forward t2 to 2 Admin 9980 ms");
    let mut run = Run::under(2);
    run.check(ask(1, Call::Admin, "leave"), "forward t1 to 2 Leave 10000 ms")
        .check(leads(3), "")
        .check(replied(1, "gone"), "answer s1 gone");
    // One that never left may be sent.
    let mut run = Run::under(2);
    run.check(ask(1, Call::Admin, "leave"), "forward t1 to 2 Leave 10000 ms")
        .check(lost(1, false), "")
        .check(leads(3), "forward t2 to 3 Leave 10000 ms");
    // Raft's word that nothing was done.
    let mut run = Run::under(1);
    run.check(ask(1, Call::Admin, "leave"), "raft t1 leave")
        .check(leads(2), "")
        .check(raft_result(1, Err(Code::Unavailable)), "")
        .at(20)
        .turn("forward t2 to 2 Leave 9980 ms");
    let mut run = Run::under(1);
    run.check(ask(1, Call::Admin, "leave"), "raft t1 leave")
        .check(raft_result(1, Err(Code::FailedPrecondition)), "refuse s1 FailedPrecondition")
        .idle();
}

#[test]
fn a_manager_can_leave_by_force_when_there_is_nobody_to_ask() {
    Run::new(Limits::default()).check(ask(1, Call::Admin, "leave!"), "raft t1 leave");
    Run::new(Limits::default()).check(ask(1, Call::Admin, "leave"), "");
    Run::under(2).check(ask(1, Call::Admin, "leave!"), "forward t1 to 2 Leave 10000 ms");
}

#[test]
fn a_joiner_is_dialled_before_it_is_taken_in() {
    let mut run = Run::under(1);
    run.check(ask(1, Call::Join, "join"), "dial t1 9 new:1")
        .check(replied(1, ""), "raft t2 join")
        .check(raft_result(2, Ok("welcome")), "answer s1 welcome")
        .idle();
    let mut run = Run::under(1);
    run.check(ask(1, Call::Join, "join"), "dial t1 9 new:1")
        .check(lost(1, false), "refuse s1 FailedPrecondition")
        .idle();
    let status = run.refused.clone().unwrap();
    assert!(status.message.contains("new:1") && status.hint.contains("--advertise"), "{status:?}");
    let mut run = Run::under(1);
    run.check(ask(1, Call::Join, "join"), "dial t1 9 new:1")
        .at(4999)
        .turn("")
        .at(5000)
        .turn("abandon t1; refuse s1 FailedPrecondition")
        .idle();
    // A repeated join is the same join.
    let mut run = Run::under(1);
    run.check(ask(1, Call::Join, "join"), "dial t1 9 new:1")
        .check(replied(1, ""), "raft t2 join")
        .check(raft_result(2, Err(Code::Unknown)), "")
        .at(20)
        .turn("dial t3 9 new:1");
}

#[test]
fn a_joiner_out_of_reach_whose_earlier_join_is_in_doubt_hears_that_it_is_unknown() {
    let in_doubt = || {
        let mut run = Run::under(1);
        run.check(ask(1, Call::Join, "join"), "dial t1 9 new:1")
            .check(replied(1, ""), "raft t2 join")
            .check(raft_result(2, Err(Code::Unknown)), "")
            .at(20)
            .turn("dial t3 9 new:1");
        run
    };
    let check = |run: &mut Run| {
        run.idle();
        let status = run.refused.clone().unwrap();
        assert!(status.message.contains("new:1") && status.hint.contains("ask again"), "{status:?}");
    };
    let mut run = in_doubt();
    check(run.check(lost(3, false), "refuse s1 Unknown"));
    let mut run = in_doubt();
    check(run.at(5020).turn("abandon t3; refuse s1 Unknown"));

    // The same when another leader cannot reach it.
    let mut run = Run::under(2);
    run.check(ask(1, Call::Join, "join"), "forward t1 to 2 Join 10000 ms")
        .check(lost(1, true), "")
        .at(20)
        .turn("forward t2 to 2 Join 9980 ms")
        .check(refused(2, Code::FailedPrecondition), "refuse s1 Unknown")
        .idle();
    // What the log says stays definite.
    let mut run = Run::under(2);
    run.check(ask(1, Call::Join, "join"), "forward t1 to 2 Join 10000 ms")
        .check(lost(1, true), "")
        .at(20)
        .turn("forward t2 to 2 Join 9980 ms")
        .check(refused(2, Code::PermissionDenied), "refuse s1 PermissionDenied")
        .idle();
}

#[test]
fn what_the_node_answers_itself_is_handed_over() {
    Run::under(1).check(ask(1, Call::Snapshot, "elsewhere"), "elsewhere s1").idle();
}

#[test]
fn a_stream_sends_what_its_receiver_takes() {
    let mut run = Run::under(1);
    run.machine.service.parts = VecDeque::from([100, 200]);
    run.check(ask(1, Call::Watch, "watch"), "").turn("part s1 of 100; part s1 of 200").turn("");
    let pulls = run.machine.service.pulls;
    run.turn("");
    assert_eq!(run.machine.service.pulls, pulls, "an idle stream is left alone");

    // Most of the window, then more than is left of it.
    let (most, rest) = (INITIAL_CREDIT as usize - 1000, 900);
    run.machine.service.parts = VecDeque::from([most, 1200, 50]);
    run.check(Event::StoreMoved, "").turn(&format!("part s1 of {most}"));
    run.check(Event::StoreMoved, "").turn("");
    run.check(Event::Credit(stream(1), rest), "").turn("");
    run.check(Event::Credit(stream(1), 1200), "").turn("part s1 of 1200").turn("");
    run.check(Event::Credit(stream(1), 50), "").turn("part s1 of 50");
}

#[test]
fn a_part_larger_than_the_window_waits_until_the_receiver_takes_so_much() {
    let large = INITIAL_CREDIT + 1;
    let mut run = Run::under(1);
    run.machine.service.parts = VecDeque::from([large as usize, 10]);
    run.check(ask(1, Call::Watch, "watch"), "").turn("");
    run.check(Event::Credit(stream(1), large - 1), "").turn("");
    run.check(Event::Credit(stream(1), large + 9), "").turn(&format!("part s1 of {large}"));
    run.check(Event::Credit(stream(1), 10), "").turn("part s1 of 10");
    // All is used up: there is nothing to ask the source for.
    let pulls = run.machine.service.pulls;
    run.check(Event::StoreMoved, "").turn("");
    assert_eq!(run.machine.service.pulls, pulls);
}

#[test]
fn who_takes_nothing_of_what_is_held_for_him_for_a_minute_loses_his_stream() {
    let begun = |holds| {
        let mut run = Run::under(1);
        run.machine.service.holds = holds;
        run.machine.service.parts = VecDeque::from([INITIAL_CREDIT as usize, 10, 20]);
        run.check(ask(1, Call::Backup, "watch"), "").turn(&format!("part s1 of {INITIAL_CREDIT}"));
        run
    };
    let mut run = begun(true);
    assert_eq!(run.machine.next_deadline(), Some(at(60_000)));
    // A little is enough to stay.
    run.at(50_000).check(Event::Credit(stream(1), 10), "").turn("part s1 of 10");
    assert_eq!(run.machine.next_deadline(), Some(at(110_000)));
    run.at(109_999).turn("").check(Event::StoreMoved, "").turn("");
    run.at(110_000).turn("refuse s1 DeadlineExceeded").idle();
    assert!(run.refused.as_ref().is_some_and(|status| !status.hint.is_empty()));
    // A part that does not fit is not taken either.
    let mut run = begun(true);
    run.at(1000).check(Event::Credit(stream(1), 9), "").turn("");
    run.at(60_999).turn("").at(61_000).turn("refuse s1 DeadlineExceeded").idle();
    // Who costs nothing may take his time, and who has taken everything has not stalled.
    let mut run = begun(false);
    assert_eq!(run.machine.next_deadline(), None);
    run.at(1_000_000).check(Event::StoreMoved, "").turn("");
    let mut run = begun(true);
    run.machine.service.parts.clear();
    run.check(Event::Credit(stream(1), 1000), "").turn("");
    assert_eq!(run.machine.next_deadline(), None);
}

#[test]
fn a_stream_takes_turns_with_others_and_wakes_when_it_asked_to() {
    let mut run = Run::under(1);
    run.machine.service.parts = vec![1; 100].into();
    run.check(ask(1, Call::Watch, "watch"), "");
    let part = ["part s1 of 1"; 64].join("; ");
    run.turn(&part);
    assert_eq!(run.machine.next_deadline(), Some(Instant::default()), "there is more to send");
    run.turn(&part[..36 * "part s1 of 1; ".len() - 2]);
    run.machine.service.wake = Some(at(500));
    run.check(Event::StoreMoved, "").turn("");
    assert_eq!(run.machine.next_deadline(), Some(at(500)));
    run.machine.service.parts.push_back(7);
    run.at(500).turn("part s1 of 7");
    assert_eq!(run.machine.next_deadline(), None);
}

#[test]
fn streams_that_search_for_long_take_turns() {
    let mut run = Run::under(1);
    for number in 1..=18 {
        run.check(ask(number, Call::Watch, "watch"), "");
    }
    run.machine.service.holds = true;
    run.machine.service.searches = 16;
    run.turn("");
    assert_eq!((run.machine.service.pulls, run.machine.next_deadline()), (16, Some(Instant::default())));
    // Those who were not asked come first, and those who searched are asked again.
    run.machine.service.parts = [1, 2, 3].into();
    run.turn("part s17 of 1; part s17 of 2; part s17 of 3");
    assert_eq!((run.machine.service.pulls, run.machine.next_deadline()), (16 + 16, Some(Instant::default())));
    run.turn("");
    assert_eq!((run.machine.service.pulls, run.machine.next_deadline()), (16 + 3 + 18, None));
}

#[test]
fn streams_that_send_much_take_turns() {
    // Enough parts of whatever size, and what is sent in a turn of them.
    let check = |size: usize, holds: bool, in_a_turn: usize| {
        let mut run = Run::under(1);
        for number in 1..=3 {
            run.check(ask(number, Call::Watch, "watch"), "");
            run.check(Event::Credit(stream(number), 8 << 20), "");
        }
        run.machine.service.holds = holds;
        run.machine.service.parts = vec![size; 3 * in_a_turn].into();
        for number in 1..=3 {
            run.turn(&vec![format!("part s{number} of {size}"); in_a_turn].join("; "));
            assert_eq!(run.machine.next_deadline(), Some(Instant::default()));
        }
        run.turn("");
    };
    check(200 << 10, false, 6);
    check(1, true, 16);
}

#[test]
fn a_stream_that_wants_nothing_of_what_is_new_waits_for_its_time() {
    let mut run = Run::under(1);
    run.machine.service.wake = Some(at(500));
    run.check(ask(1, Call::Watch, "watch"), "").turn("");
    run.machine.service.no_news = true;
    run.machine.service.parts.push_back(7);
    run.check(Event::StoreMoved, "").turn("");
    assert_eq!((run.machine.service.pulls, run.machine.next_deadline()), (1, Some(at(500))));
    run.at(500).turn("part s1 of 7");
    // Now it has no time of its own: only a pull can tell when to come back.
    run.machine.service.parts.push_back(8);
    run.check(Event::StoreMoved, "").turn("part s1 of 8");
}

#[test]
fn a_stream_that_cannot_go_on_says_why_and_ends() {
    let mut run = Run::under(1);
    run.machine.service.ends = true;
    run.check(ask(1, Call::Watch, "watch"), "")
        .turn("refuse s1 OutOfRange")
        .check(Event::StoreMoved, "")
        .turn("")
        .idle();
}

#[test]
fn a_stream_that_has_sent_everything_ends_with_an_empty_answer() {
    let mut run = Run::under(1);
    run.machine.service.parts = [10].into();
    run.machine.service.complete = true;
    run.check(ask(1, Call::Watch, "watch"), "")
        .turn("part s1 of 10; answer s1 ")
        .check(Event::StoreMoved, "")
        .turn("")
        .idle();
}

#[test]
fn of_those_that_take_long_a_few_are_decided_in_a_turn() {
    let mut run = Run::under(1);
    for number in 1..=5 {
        run.check(ask(number, Call::Query, "list"), "");
    }
    run.check(ask(6, Call::Query, "read"), "").turn("read t1");
    // Everybody else is answered at once.
    run.check(Event::ReadReady { token: 1 }, "answer s6 read");
    assert_eq!(run.machine.next_deadline(), Some(Instant::default()));
    run.check(Event::Cancelled(stream(2)), "").check(Event::Cancelled(stream(3)), "");
    run.turn("answer s1 list; answer s4 list").turn("answer s5 list").idle();
    // One whose time is over before its turn has come.
    for number in 11..=13 {
        run.check(ask(number, Call::Query, "list"), "");
    }
    run.turn("read t2").check(Event::ReadReady { token: 2 }, "").at(10_000);
    run.turn("refuse s11 DeadlineExceeded; refuse s12 DeadlineExceeded; refuse s13 DeadlineExceeded").idle();
}

#[test]
fn open_streams_are_counted() {
    let mut run = Run::new(Limits { streams: 1, sessions: 2, ..Limits::default() });
    run.check(ask(1, Call::Watch, "watch"), "").check(ask(2, Call::Watch, "watch"), "refuse s2 ResourceExhausted");
    run.check(Event::Cancelled(stream(1)), "").check(ask(3, Call::Watch, "watch"), "");
    // Sessions have places of their own, and leave them however they end.
    run.check(session(4, 1), "").check(session(5, 2), "");
    run.check(session(6, 3), "refuse s6 ResourceExhausted").check(Event::Cancelled(stream(4)), "");
    run.machine.service.ends = true;
    run.turn("refuse s3 OutOfRange; refuse s5 OutOfRange");
    run.check(session(7, 1), "").check(session(8, 2), "").check(session(9, 3), "refuse s9 ResourceExhausted");
}

#[test]
fn a_node_has_few_sessions() {
    let mut run = Run::new(Limits::default());
    for number in 1..=8 {
        run.check(session(number, 1), "");
    }
    run.check(session(9, 1), "refuse s9 ResourceExhausted").check(session(10, 2), "");
    run.check(Event::Cancelled(stream(3)), "").check(session(11, 1), "");
    assert_eq!(run.machine.load().streams, 9);
}

#[test]
fn streams_whose_time_comes_at_once_take_turns() {
    let mut run = Run::new(Limits::default());
    for number in 1..=1500 {
        run.check(session(number, number.into()), "");
    }
    run.turn("");
    assert_eq!((run.machine.service.pulls, run.machine.next_deadline()), (1024, Some(Instant::default())));
    run.turn("");
    assert_eq!((run.machine.service.pulls, run.machine.next_deadline()), (1500, None));
    // What is new is not for them.
    run.check(Event::StoreMoved, "").turn("");
    assert_eq!(run.machine.service.pulls, 1500);
}

/// Whatever happens in whatever order, every request is answered exactly once and nothing is left behind.
#[test]
fn random_histories_answer_every_request_once() {
    use crate::sys::entropy::SeededEntropy;
    for seed in 0..200 {
        let mut random = SeededEntropy::new(seed);
        let mut run = Run::new(Limits { held: 8, held_of_strangers: 2, ..Limits::default() });
        let (mut asked, mut answered, mut cancelled) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<Effect> = Vec::new();
        for step in 0..400_u64 {
            let mut effects = Vec::new();
            let event = match random.below(10) {
                0..3 => {
                    let number = asked.len() as u32 + 1;
                    asked.insert(number);
                    let (call, text) = [
                        (Call::Write, "x"),
                        (Call::Write, "missing"),
                        (Call::Write, "update"),
                        (Call::Write, "another update"),
                        (Call::Query, "read"),
                        (Call::Query, "local"),
                        (Call::Query, "list"),
                        (Call::Admin, "transfer"),
                        (Call::Admin, "leave!"),
                        (Call::Join, "join"),
                        (Call::GetRoot, "read"),
                    ][random.below(11) as usize];
                    match random.below(4) {
                        0 => passed_on(number, call, text),
                        _ => ask(number, call, text),
                    }
                }
                3 => match random.below(4) {
                    0 => no_leader(),
                    1 => no_majority(),
                    _ => leads(u128::from(random.below(3)) + 1),
                },
                4 => Event::TurnEnded,
                5 if !asked.is_empty() && random.below(4) == 0 => {
                    let number = random.below(asked.len() as u64) as u32 + 1;
                    if !answered.contains(&number) {
                        cancelled.insert(number);
                    }
                    Event::Cancelled(stream(number))
                }
                _ if !open.is_empty() => {
                    let effect = open.swap_remove(random.below(open.len() as u64) as usize);
                    let choice = random.below(6);
                    match effect {
                        Effect::Propose { token, .. } => match choice {
                            0 => ended(token, ProposalResult::Uncertain),
                            1 => ended(token, ProposalResult::Lost),
                            2 => conflict(token),
                            3 => ended(token, ProposalResult::NotProposed(NotProposed::Overloaded)),
                            _ => committed(token, step),
                        },
                        Effect::Read { token } if choice == 0 => Event::ReadFailed { token },
                        Effect::Read { token } => Event::ReadReady { token },
                        Effect::Raft { token, .. } => match choice {
                            0 => raft_result(token, Err(Code::Unavailable)),
                            1 => raft_result(token, Err(Code::Unknown)),
                            _ => raft_result(token, Ok("done")),
                        },
                        Effect::Forward { token, .. } | Effect::BackDial { token, .. } => match choice {
                            0 => lost(token, false),
                            1 => lost(token, true),
                            2 => refused(token, Code::Unavailable),
                            3 => refused(token, Code::Unknown),
                            _ => replied(token, "done"),
                        },
                        _ => Event::TurnEnded,
                    }
                }
                _ => Event::TurnEnded,
            };
            run.now = at(step * 20);
            run.machine.step(run.now, event, &mut effects);
            if step == 399 {
                run.now = at(60_000);
                run.machine.step(run.now, Event::TurnEnded, &mut effects);
            }
            for effect in effects {
                match effect {
                    Effect::Answer { stream, .. } | Effect::Refuse { stream, .. } => {
                        assert!(answered.insert(stream.stream), "seed {seed}: s{} answered twice", stream.stream);
                        assert!(!cancelled.contains(&stream.stream), "seed {seed}: s{} was cancelled", stream.stream);
                    }
                    Effect::Abandon { token } => open.retain(|effect| {
                        !matches!(effect, Effect::Forward { token: own, .. } | Effect::BackDial { token: own, .. } if *own == token)
                    }),
                    effect => open.push(effect),
                }
            }
        }
        assert_eq!(answered.len() + cancelled.len(), asked.len(), "seed {seed}");
        run.idle();
    }
}
