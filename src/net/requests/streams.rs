//! Streams of answers: pulled from their source only as far as the receiver's credit goes.
//!
//! A part goes whole or not at all. One that is larger than the credit waits until the receiver takes so much, so a
//! receiver that wants everything grants a frame's worth more than what it leaves ungranted while it reads.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;

use super::{Effect, Pull, Service};
use crate::codec::frame::INITIAL_CREDIT;
use crate::net::handler::StreamId;
use crate::sys::time::Instant;

/// Parts of one stream in one turn of the loop, so that a watcher that catches up does not keep others waiting.
const PARTS_PER_TURN: usize = 64;

#[derive(Debug)]
pub(super) struct Streams<W> {
    open: BTreeMap<StreamId, Streaming<W>>,
    /// Worth a pull: credit, the store or the stream itself moved since the last one.
    ready: BTreeSet<StreamId>,
    timers: BTreeSet<(Instant, StreamId)>,
}

#[derive(Debug)]
struct Streaming<W> {
    source: W,
    /// Bytes that the receiver takes now.
    credit: u32,
    wake: Option<Instant>,
}

impl<W> Default for Streams<W> {
    fn default() -> Self {
        Self { open: BTreeMap::new(), ready: BTreeSet::new(), timers: BTreeSet::new() }
    }
}

impl<W> Streams<W> {
    pub fn len(&self) -> usize {
        self.open.len()
    }

    pub fn contains(&self, stream: StreamId) -> bool {
        self.open.contains_key(&stream)
    }

    pub fn begin(&mut self, stream: StreamId, source: W) {
        self.open.insert(stream, Streaming { source, credit: INITIAL_CREDIT, wake: None });
        self.ready.insert(stream);
    }

    pub fn cancel(&mut self, stream: StreamId) {
        self.ready.remove(&stream);
        if let Some(streaming) = self.open.remove(&stream)
            && let Some(at) = streaming.wake
        {
            self.timers.remove(&(at, stream));
        }
    }

    pub fn credit(&mut self, stream: StreamId, available: u32) {
        if let Some(streaming) = self.open.get_mut(&stream) {
            streaming.credit = available;
            self.ready.insert(stream);
        }
    }

    pub fn store_moved(&mut self) {
        self.ready.extend(self.open.keys().copied());
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        if self.ready.is_empty() { self.timers.first().map(|(at, _)| *at) } else { Some(Instant::default()) }
    }

    /// Sends what can be sent.
    pub fn pull<S: Service<Stream = W>>(&mut self, now: Instant, service: &mut S, effects: &mut Vec<Effect>) {
        while let Some(&(at, stream)) = self.timers.first().filter(|(at, _)| *at <= now) {
            self.timers.remove(&(at, stream));
            self.ready.insert(stream);
        }
        for stream in std::mem::take(&mut self.ready) {
            let Some(streaming) = self.open.get_mut(&stream) else { continue };
            if let Some(at) = streaming.wake.take() {
                self.timers.remove(&(at, stream));
            }
            for part in 0.. {
                if part == PARTS_PER_TURN {
                    self.ready.insert(stream);
                    break;
                }
                if streaming.credit == 0 {
                    break;
                }
                match service.pull(now, &mut streaming.source, streaming.credit as usize) {
                    Pull::Part(body) => {
                        let bytes = u32::try_from(body.len()).unwrap_or(u32::MAX);
                        streaming.credit = streaming.credit.saturating_sub(bytes);
                        effects.push(Effect::Answer { stream, body, end: false });
                    }
                    Pull::Full => break,
                    Pull::Idle(wake) => {
                        streaming.wake = wake;
                        self.timers.extend(wake.map(|at| (at, stream)));
                        break;
                    }
                    Pull::Done => {
                        effects.push(Effect::Answer { stream, body: Bytes::new(), end: true });
                        self.open.remove(&stream);
                        break;
                    }
                    Pull::End(status) => {
                        effects.push(Effect::Refuse { stream, status });
                        self.open.remove(&stream);
                        break;
                    }
                }
            }
        }
    }
}
