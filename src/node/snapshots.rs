//! The threads that move snapshots: one writes those of the own store, one serves files to peers and takes theirs.
//!
//! A leader's message names a snapshot; the follower fetches its bytes with a call of its own, in parts that it asks for
//! as it writes them, and goes on where it was when the connection breaks. Nothing of it counts before every byte is
//! checked and on disk.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::outlet::Completion;
use super::pace::Pace;
use crate::net::handler::StreamId;
use crate::net::run::NetHandle;
use crate::raft::recover::Snapshots;
use crate::raft::run::{Handle, Input};
use crate::raft::{Event, SnapshotMark};
use crate::store::{SnapshotDecoder, State, Store};
use crate::sys::entropy::OsEntropy;
use crate::sys::files::{self, RealDisk};
use crate::sys::metrics::{Gauge, Metrics};
use crate::sys::queue::{Latest, Received, Receiver, Sender, bounded};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{Instant, monotonic};
use crate::types::{Code, Position, Status};
use crate::wal::{LogReader, SnapshotReader, SnapshotWriter, list_snapshots, named_keys, remove_snapshots_before};

/// Snapshots kept: the newest, and the one before it, which may be on its way to a peer.
const KEPT: usize = 2;

/// For the thread that writes snapshots.
#[derive(Debug)]
pub enum Job {
    /// Write one of the store as it is.
    Create,
    /// Remove snapshots that are sealed with an old key, as soon as the log does not rest on them any more.
    Tidy,
    /// Replace `peers.json`. Done here, because a file is synced, and who greets peers must not wait for the disk.
    Remember(Vec<u8>),
}

/// For the thread that moves them.
#[derive(Debug)]
pub enum Transfer {
    /// A peer asks for a file.
    Serve {
        /// Where the bytes go.
        stream: StreamId,
        /// Which.
        position: Position,
        /// After so many bytes.
        offset: u64,
    },
    /// The peer takes so many bytes now.
    Credit {
        /// The stream.
        stream: StreamId,
        /// In all, after what the socket loop has been handed.
        available: u32,
        /// How much that is; more may be on its way there.
        answered: u64,
    },
    /// The peer is gone.
    Cancel(StreamId),
    /// A leader's snapshot is on its way.
    Begin(SnapshotMark),
    /// A part of it.
    Part(Bytes),
    /// All of it has come.
    End,
    /// It will not come.
    Abort,
}

/// Starts the thread that writes snapshots.
pub fn spawn_writer(
    store: Arc<Store>,
    snapshots: Snapshots,
    recorded: LogReader,
    raft: Handle,
    metrics: &Metrics,
    peers_file: PathBuf,
    mut pace: Pace,
) -> io::Result<(Sender<Job>, Thread)> {
    let (sender, inbox) = bounded(4, metrics.queue("snapshot"));
    let seconds = metrics.histogram("skep_snapshot_seconds");
    let thread = thread::spawn_background("snapshot", move || {
        while let Some(job) = inbox.recv() {
            if let Job::Remember(bytes) = job {
                if let Err(error) = files::replace(&RealDisk, &peers_file, &bytes) {
                    log::warn!("cannot write {}: {error}", peers_file.display());
                }
                continue;
            }
            if let Job::Tidy = job {
                remove_old_keys(&snapshots, &recorded);
                continue;
            }
            let begin = monotonic();
            let wait = |bytes: usize| {
                let mut now = monotonic();
                while !pace.has_room(now, bytes as u64) {
                    std::thread::sleep(pace.ready_at(now).since(now));
                    now = monotonic();
                }
                pace.spend(bytes as u64);
                match inbox.is_closed() {
                    true => Err(io::Error::other("the node stops")),
                    false => Ok(()),
                }
            };
            let event = match snapshots.save_slowly(store.snapshot(), &mut OsEntropy, wait) {
                Ok(mark) => {
                    let took = monotonic().since(begin);
                    seconds.record(took);
                    log::info!(
                        "wrote a snapshot at log index {} ({} bytes) in {took:?}",
                        mark.position.index,
                        mark.bytes
                    );
                    remove_old(&snapshots, &recorded);
                    Event::SnapshotCreated { mark }
                }
                Err(_) if inbox.is_closed() => return,
                Err(error) => {
                    log::error!("cannot write a snapshot: {error}; the log grows until one succeeds");
                    Event::SnapshotFailed
                }
            };
            raft.internal(Input::Event(event));
        }
    })?;
    Ok((sender, thread))
}

/// Removes all but the newest snapshots, and never the one that the log has recorded: a newer file may be an orphan that
/// raft did not take.
fn remove_old(snapshots: &Snapshots, recorded: &LogReader) {
    let result = list_snapshots(snapshots.disk.as_ref(), &snapshots.dir).and_then(|indexes| {
        match indexes.len().checked_sub(KEPT) {
            Some(first) => {
                let keep = indexes[first].min(recorded.snapshot().index);
                remove_snapshots_before(snapshots.disk.as_ref(), &snapshots.dir, keep)
            }
            None => Ok(()),
        }
    });
    if let Err(error) = result {
        log::warn!("cannot remove old snapshots: {error}");
    }
}

/// Removes all snapshots before the one that the log has recorded, if that is sealed with the newest key. A peer that is
/// being sent one keeps it until it is done.
fn remove_old_keys(snapshots: &Snapshots, recorded: &LogReader) {
    let Snapshots { disk, dir, keys, .. } = snapshots;
    let index = recorded.snapshot().index;
    let result = named_keys(disk.as_ref(), dir).and_then(|named| {
        match named.newest_snapshot == Some((index, keys.newest().id())) {
            true => remove_snapshots_before(disk.as_ref(), dir, index),
            false => Ok(()),
        }
    });
    if let Err(error) = result {
        log::warn!("cannot remove old snapshots: {error}");
    }
}

/// Starts the thread that serves and takes snapshots.
pub fn spawn_transfer(
    snapshots: Snapshots,
    recorded: LogReader,
    raft: Handle,
    net: NetHandle<Completion>,
    metrics: &Metrics,
    pace: Pace,
) -> io::Result<(Sender<Transfer>, Thread)> {
    let (sender, inbox) = bounded(4096, metrics.queue("transfer"));
    let mut mover =
        Mover { snapshots, recorded, raft, net, serving: BTreeMap::new(), served: None, pace, taking: None };
    let thread = thread::spawn_background("transfer", move || mover.run(&inbox))?;
    Ok((sender, thread))
}

struct Serving {
    reader: SnapshotReader,
    credit: i64,
    sent: u64,
    next: Option<Vec<u8>>,
}

struct Taking {
    mark: SnapshotMark,
    writer: SnapshotWriter,
    /// To the thread that decodes, which takes as long as writing. `None` once all of it has come.
    parts: Option<Sender<Bytes>>,
    /// Bytes that the sender has not been told of, because too much waits to be decoded.
    owed: Arc<AtomicU32>,
    /// What it holds, or what is wrong with it.
    decoded: Latest<Result<State, String>>,
}

/// How often it is looked whether all is decoded.
const LOOK: Duration = Duration::from_millis(5);

/// Parts that wait to be decoded before the sender is made to wait: some 8 MiB.
const PARTS: usize = 32;

struct Mover {
    snapshots: Snapshots,
    recorded: LogReader,
    raft: Handle,
    net: NetHandle<Completion>,
    serving: BTreeMap<StreamId, Serving>,
    /// Who was sent something last: the others come first the next time.
    served: Option<StreamId>,
    pace: Pace,
    taking: Option<Taking>,
}

impl Mover {
    fn run(&mut self, inbox: &Receiver<Transfer>) {
        loop {
            self.look();
            let transfer = match self.next_turn() {
                None => inbox.recv(),
                Some(at) => match inbox.recv_until(at) {
                    Received::Item(transfer) => Some(transfer),
                    Received::Closed => None,
                    Received::TimedOut => {
                        self.send_on();
                        continue;
                    }
                },
            };
            let Some(transfer) = transfer else { return };
            match transfer {
                Transfer::Serve { stream, position, offset } => self.serve(stream, position, offset),
                Transfer::Credit { stream, available, answered } => {
                    if let Some(serving) = self.serving.get_mut(&stream) {
                        serving.credit = i64::from(available) - (serving.sent - answered.min(serving.sent)) as i64;
                    }
                    self.send_on();
                }
                Transfer::Cancel(stream) => {
                    self.serving.remove(&stream);
                }
                Transfer::Begin(mark) => self.begin(mark),
                Transfer::Part(bytes) => self.part(bytes),
                Transfer::End => self.all_has_come(),
                Transfer::Abort => self.abort(None),
            }
        }
    }

    /// When to send on to those who would take more than the pace allowed, or to look at what is being taken.
    fn next_turn(&self) -> Option<Instant> {
        let now = monotonic();
        let send = self.serving.values().any(|serving| serving.credit > 0).then(|| self.pace.ready_at(now));
        let look = self.taking.as_ref().map(|_| now + LOOK);
        send.into_iter().chain(look).min()
    }

    /// Sends a part to each who takes one, in turn, for as long as the pace allows.
    fn send_on(&mut self) {
        loop {
            let waiting = self.serving.iter().filter(|(_, serving)| serving.credit > 0).map(|(stream, _)| *stream);
            let turns = in_turn(waiting.collect(), self.served);
            if turns.is_empty() {
                return;
            }
            for stream in turns {
                if !self.send_part(stream) {
                    return;
                }
            }
        }
    }

    fn report(&self, completion: Completion) {
        // The stream stalls and its deadline ends it when the net thread is that far behind.
        let _ = self.net.send(completion);
    }

    fn serve(&mut self, stream: StreamId, position: Position, offset: u64) {
        let Snapshots { disk, dir, keys, lineage } = &self.snapshots;
        let opened = SnapshotReader::open(disk.as_ref(), dir, keys, *lineage, position.index).and_then(|mut reader| {
            reader.skip_to(offset)?;
            Ok(reader)
        });
        match opened {
            Ok(reader) if reader.meta().position == position => {
                let credit = i64::from(crate::codec::frame::INITIAL_CREDIT);
                self.serving.insert(stream, Serving { reader, credit, sent: 0, next: None });
                self.send_on();
            }
            Ok(_) => {
                let status = Status::new(Code::NotFound, "that snapshot is not here any more");
                self.report(Completion::NotServed { stream, status });
            }
            Err(error) => {
                let status = Status::new(Code::NotFound, format!("the snapshot cannot be read: {error}"));
                self.report(Completion::NotServed { stream, status });
            }
        }
    }

    /// Sends what a stream takes of the present chunk; false when the pace allows nothing now.
    fn send_part(&mut self, stream: StreamId) -> bool {
        let Some(serving) = self.serving.get_mut(&stream) else { return true };
        let allowed = self.pace.room(monotonic());
        if allowed == 0 {
            return false;
        }
        self.served = Some(stream);
        let chunk = match serving.next.take() {
            Some(chunk) => Ok(Some(chunk)),
            None => serving.reader.next_chunk(),
        };
        match chunk {
            Ok(Some(mut chunk)) => {
                // What does not fit into the window waits for the next credit, and what is too fast for its turn.
                let window = u64::try_from(serving.credit).unwrap_or(0).min(allowed);
                let room = usize::try_from(window).unwrap_or(usize::MAX).min(chunk.len());
                let rest = chunk.split_off(room);
                self.pace.spend(room as u64);
                serving.credit -= room as i64;
                serving.sent += room as u64;
                serving.next = (!rest.is_empty()).then_some(rest);
                let _ = self.net.send(Completion::Served { stream, body: chunk.into(), end: false });
            }
            Ok(None) => {
                let _ = self.net.send(Completion::Served { stream, body: Bytes::new(), end: true });
                self.serving.remove(&stream);
            }
            Err(error) => {
                log::error!("a snapshot that was to be sent cannot be read: {error}");
                let status = Status::new(Code::Internal, "the snapshot cannot be read; the sender's log says why");
                let _ = self.net.send(Completion::NotServed { stream, status });
                self.serving.remove(&stream);
            }
        }
        true
    }

    fn begin(&mut self, mark: SnapshotMark) {
        // Whoever ordered this knows that it replaces what is under way. Its file goes first: it may have the same name.
        self.taking = None;
        let Snapshots { disk, dir, keys, lineage } = &self.snapshots;
        let position = mark.position;
        let writer = SnapshotWriter::create(disk.clone(), dir, keys, *lineage, position, &mark.configuration);
        let begun = writer.map_err(|error| error.to_string()).and_then(|writer| {
            let (owed, decoded) = (Arc::default(), Latest::default());
            let parts = self.spawn_decoder(position, &owed, &decoded).map_err(|error| error.to_string())?;
            Ok(Taking { mark, writer, parts: Some(parts), owed, decoded })
        });
        match begun {
            Ok(taking) => self.taking = Some(taking),
            Err(error) => {
                log::error!("cannot begin to write a snapshot: {error}");
                self.raft.internal(Input::Event(Event::SnapshotNotFetched { position }));
                self.report(Completion::FetchEnded(position));
            }
        }
    }

    /// Starts the thread that decodes the parts of one snapshot. It ends when no more come, or one is bad.
    fn spawn_decoder(
        &self,
        position: Position,
        owed: &Arc<AtomicU32>,
        decoded: &Latest<Result<State, String>>,
    ) -> io::Result<Sender<Bytes>> {
        // What waits is bounded by what the sender is told: see `part`.
        let (parts, inbox) = bounded(usize::MAX, Gauge::default());
        let (net, owed, decoded) = (self.net.clone(), owed.clone(), decoded.clone());
        thread::spawn_background("decode", move || {
            let mut decoder = SnapshotDecoder::new();
            let result = loop {
                let Some(part): Option<Bytes> = inbox.recv() else { break decoder.finish() };
                if Arc::strong_count(&owed) == 1 {
                    // It was given up.
                    return;
                }
                if let Err(error) = decoder.push(&part) {
                    break Err(error);
                }
                if inbox.len() < PARTS {
                    let owed = owed.swap(0, Ordering::SeqCst);
                    if owed > 0 {
                        let _ = net.send(Completion::Taken(position, owed));
                    }
                }
            };
            decoded.put(result.map_err(|error| error.to_string()));
        })?;
        Ok(parts)
    }

    fn part(&mut self, bytes: Bytes) {
        let Some(taking) = self.taking.as_mut() else { return };
        let Some(parts) = &taking.parts else { return };
        if let Err(error) = taking.writer.write_chunk(&bytes) {
            return self.abort(Some(error.to_string()));
        }
        taking.owed.fetch_add(bytes.len() as u32, Ordering::SeqCst);
        // The thread that decodes looks at what is owed after every part, so whatever it sees of this one it tells.
        let _ = parts.try_send(bytes);
        if parts.len() < PARTS {
            let owed = taking.owed.swap(0, Ordering::SeqCst);
            let position = taking.mark.position;
            if owed > 0 {
                self.report(Completion::Taken(position, owed));
            }
        }
    }

    fn all_has_come(&mut self) {
        if let Some(taking) = self.taking.as_mut() {
            taking.parts = None;
        }
    }

    /// Ends the taking of a snapshot once it is decoded, or found to be bad.
    fn look(&mut self) {
        let Some(result) = self.taking.as_ref().and_then(|taking| taking.decoded.take()) else { return };
        let Some(Taking { mark, writer, .. }) = self.taking.take() else { return };
        let position = mark.position;
        let finished = result.and_then(|state| {
            if state.applied() != position || state.lineage() != self.snapshots.lineage {
                return Err("it is of another place or swarm than announced".to_owned());
            }
            let meta = writer.finish().map_err(|error| error.to_string())?;
            Ok((state, meta))
        });
        match finished {
            Ok((state, meta)) => {
                log::info!("fetched a snapshot at log index {} ({} bytes)", position.index, meta.bytes);
                remove_old(&self.snapshots, &self.recorded);
                self.raft.internal(Input::Fetched { position, bytes: meta.bytes, state: Box::new(state) });
            }
            Err(error) => {
                log::error!("the snapshot that was fetched cannot be used: {error}");
                self.raft.internal(Input::Event(Event::SnapshotNotFetched { position }));
            }
        }
        self.report(Completion::FetchEnded(position));
    }

    fn abort(&mut self, why: Option<String>) {
        let Some(taking) = self.taking.take() else { return };
        if let Some(why) = why {
            log::error!("the snapshot that is being fetched cannot be used: {why}");
        }
        let position = taking.mark.position;
        self.raft.internal(Input::Event(Event::SnapshotNotFetched { position }));
        self.report(Completion::FetchEnded(position));
    }
}

/// The streams that wait, those behind the one that was served last first.
fn in_turn(mut waiting: Vec<StreamId>, last: Option<StreamId>) -> Vec<StreamId> {
    let first = waiting.iter().position(|stream| last.is_none_or(|last| *stream > last)).unwrap_or(0);
    waiting.rotate_left(first);
    waiting
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::handler::ConnectionId;

    #[test]
    fn whoever_was_served_last_is_served_last_the_next_time() {
        let streams: Vec<StreamId> =
            [(1, 5), (2, 1), (2, 3)].map(|(on, stream)| StreamId { connection: ConnectionId(on), stream }).into();
        let [a, b, c] = [streams[0], streams[1], streams[2]];
        let check = |last, expected: &[StreamId]| assert_eq!(in_turn(streams.clone(), last), expected);
        check(None, &[a, b, c]);
        check(Some(a), &[b, c, a]);
        check(Some(b), &[c, a, b]);
        check(Some(c), &[a, b, c]);
        // One that is gone.
        check(Some(StreamId { connection: ConnectionId(2), stream: 2 }), &[c, a, b]);
        assert_eq!(in_turn(Vec::new(), Some(a)), []);
    }
}
