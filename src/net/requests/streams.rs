//! Streams of answers: pulled from their source only as far as the receiver's credit goes.
//!
//! A part goes whole or not at all. One that is larger than the credit waits until the receiver takes so much, so a
//! receiver that wants everything grants a frame's worth more than what it leaves ungranted while it reads.
//!
//! What a stream is taken from may be a state of some time ago, which costs memory for as long as it is held. A receiver of
//! such a stream that takes nothing for [`STALLED`] loses it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;

use super::{Effect, Pull, Service};
use crate::codec::frame::INITIAL_CREDIT;
use crate::net::handler::StreamId;
use crate::sys::time::Instant;
use crate::types::NodeId;
use crate::types::error::{Code, Status};

/// Parts of one stream in one turn of the loop, so that a watcher that catches up does not keep others waiting.
const PARTS_PER_TURN: usize = 64;
/// Pulls in one turn, of a microsecond or two each: thousands of sessions whose time comes at once are asked one after the
/// other.
const PULLS_PER_TURN: usize = 1024;
/// Bytes of all streams in one turn, about.
const BYTES_PER_TURN: usize = 1 << 20;
/// Pulls in one turn of streams that are taken from a state of some time ago, each of which takes up to a third of a
/// millisecond.
const SEARCHES_PER_TURN: usize = 16;
/// How long a receiver may take nothing of a stream that holds on to something.
const STALLED: Duration = Duration::from_secs(60);

#[derive(Debug)]
pub(super) struct Streams<W> {
    open: BTreeMap<StreamId, Streaming<W>>,
    /// Nodes' sessions, which wait for their time and for nothing else: they are not looked at when the store moves.
    sessions: BTreeMap<StreamId, Streaming<W>>,
    /// How many each node has.
    by_node: BTreeMap<NodeId, usize>,
    /// Worth a pull: there is credit, something new, or its time has come.
    ready: BTreeSet<StreamId>,
    /// The one that had to wait for the next turn, which begins with it.
    first: Option<StreamId>,
    /// The store moved since the last pull.
    moved: bool,
    timers: BTreeSet<(Instant, StreamId)>,
}

#[derive(Debug)]
struct Streaming<W> {
    source: W,
    session_of: Option<NodeId>,
    /// Bytes that the receiver takes now.
    credit: u32,
    wake: Option<Instant>,
    /// Since when the receiver has taken nothing though there is something for it.
    stalled: Option<Instant>,
}

impl<W> Default for Streams<W> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            sessions: BTreeMap::new(),
            by_node: BTreeMap::new(),
            ready: BTreeSet::new(),
            first: None,
            moved: false,
            timers: BTreeSet::new(),
        }
    }
}

impl<W> Streams<W> {
    pub fn len(&self) -> usize {
        self.open.len() + self.sessions.len()
    }

    pub fn contains(&self, stream: StreamId) -> bool {
        self.open.contains_key(&stream) || self.sessions.contains_key(&stream)
    }

    /// How many sessions there are.
    pub fn sessions(&self) -> usize {
        self.sessions.len()
    }

    /// How many of them a node has.
    pub fn sessions_of(&self, node: NodeId) -> usize {
        self.by_node.get(&node).copied().unwrap_or(0)
    }

    /// `session_of`: whose session it is, if it is one.
    pub fn begin(&mut self, stream: StreamId, source: W, session_of: Option<NodeId>) {
        let streaming = Streaming { source, session_of, credit: INITIAL_CREDIT, wake: None, stalled: None };
        if let Some(node) = session_of {
            *self.by_node.entry(node).or_default() += 1;
            self.sessions.insert(stream, streaming);
        } else {
            self.open.insert(stream, streaming);
        }
        self.ready.insert(stream);
    }

    fn get_mut(&mut self, stream: StreamId) -> Option<&mut Streaming<W>> {
        self.open.get_mut(&stream).or_else(|| self.sessions.get_mut(&stream))
    }

    pub fn cancel(&mut self, stream: StreamId) {
        self.ready.remove(&stream);
        if let Some(at) = self.close(stream) {
            self.timers.remove(&(at, stream));
        }
    }

    /// Forgets it, and gives the time for which it waited.
    fn close(&mut self, stream: StreamId) -> Option<Instant> {
        let streaming = self.open.remove(&stream).or_else(|| self.sessions.remove(&stream))?;
        if let Some(node) = streaming.session_of
            && let Some(count) = self.by_node.get_mut(&node)
        {
            *count -= 1;
            if *count == 0 {
                self.by_node.remove(&node);
            }
        }
        streaming.wake
    }

    pub fn credit(&mut self, stream: StreamId, available: u32) {
        if let Some(streaming) = self.get_mut(stream) {
            streaming.credit = available;
            streaming.stalled = None;
            self.ready.insert(stream);
        }
    }

    pub fn store_moved(&mut self) {
        self.moved = true;
    }

    /// Most watchers want few of the changes. One that waits for its time, and wants nothing of what is new, goes on
    /// waiting: with a thousand of them a turn would otherwise go into timers and lists.
    fn look_at_what_is_new<S: Service<Stream = W>>(&mut self, service: &mut S) {
        for (stream, streaming) in &mut self.open {
            if streaming.wake.is_none() || service.has_news(&mut streaming.source) {
                self.ready.insert(*stream);
            }
        }
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let is_due = !self.ready.is_empty() || self.moved && !self.open.is_empty();
        if is_due { Some(Instant::default()) } else { self.timers.first().map(|(at, _)| *at) }
    }

    /// Sends what can be sent.
    pub fn pull<S: Service<Stream = W>>(&mut self, now: Instant, service: &mut S, effects: &mut Vec<Effect>) {
        while let Some(&(at, stream)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, stream));
            self.ready.insert(stream);
        }
        if std::mem::take(&mut self.moved) {
            self.look_at_what_is_new(service);
        }
        let mut before = std::mem::take(&mut self.ready);
        let after = self.first.take().map(|first| before.split_off(&first)).unwrap_or_default();
        let (mut bytes_left, mut searches_left, mut pulls_left) = (BYTES_PER_TURN, SEARCHES_PER_TURN, PULLS_PER_TURN);
        let mut all_wait = false;
        for stream in after.into_iter().chain(before) {
            let streaming = self.open.get_mut(&stream).or_else(|| self.sessions.get_mut(&stream));
            let Some(streaming) = streaming else { continue };
            let is_over = bytes_left == 0 || pulls_left == 0;
            if is_over || searches_left == 0 && service.holds(&streaming.source) {
                // Where the turn ended for everybody comes before where it did for those who search: they come again as
                // soon as the round has come to them.
                if is_over && !std::mem::replace(&mut all_wait, is_over) || self.first.is_none() {
                    self.first = Some(stream);
                }
                self.ready.insert(stream);
                continue;
            }
            if let Some(at) = streaming.wake.take() {
                self.timers.remove(&(at, stream));
            }
            let mut waits = false;
            for part in 0.. {
                let searches = service.holds(&streaming.source);
                let is_over = part == PARTS_PER_TURN || bytes_left == 0 || pulls_left == 0;
                if is_over || searches_left == 0 && searches {
                    self.ready.insert(stream);
                    break;
                }
                if streaming.credit == 0 {
                    waits = true;
                    break;
                }
                let pulled = service.pull(now, &mut streaming.source, streaming.credit as usize);
                searches_left -= usize::from(searches);
                pulls_left -= 1;
                match pulled {
                    Pull::Part(body) => {
                        bytes_left = bytes_left.saturating_sub(body.len());
                        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
                        streaming.credit = streaming.credit.saturating_sub(bytes);
                        effects.push(Effect::Answer { stream, body, end: false });
                    }
                    Pull::Full => {
                        waits = true;
                        break;
                    }
                    Pull::Searching => {
                        self.ready.insert(stream);
                        break;
                    }
                    Pull::Idle(wake) => {
                        streaming.wake = wake;
                        self.timers.extend(wake.map(|at| (at, stream)));
                        break;
                    }
                    Pull::Done => {
                        effects.push(Effect::Answer { stream, body: Bytes::new(), end: true });
                        self.close(stream);
                        break;
                    }
                    Pull::End(status) => {
                        effects.push(Effect::Refuse { stream, status });
                        self.close(stream);
                        break;
                    }
                }
            }
            if waits {
                self.wait(now, stream, service, effects);
            }
        }
    }

    /// The receiver must take something before the stream goes on.
    fn wait<S: Service<Stream = W>>(&mut self, now: Instant, stream: StreamId, service: &S, effects: &mut Vec<Effect>) {
        let Some(streaming) = self.get_mut(stream).filter(|streaming| service.holds(&streaming.source)) else {
            return;
        };
        let until = *streaming.stalled.get_or_insert(now) + STALLED;
        if until <= now {
            let why = format!(
                "the receiver has taken nothing for {} s, and what it is sent is held for it",
                STALLED.as_secs()
            );
            let status = Status::new(Code::DeadlineExceeded, why).with_hint("read faster, or write to a file first");
            effects.push(Effect::Refuse { stream, status });
            self.close(stream);
        } else {
            streaming.wake = Some(until);
            self.timers.insert((until, stream));
        }
    }
}
