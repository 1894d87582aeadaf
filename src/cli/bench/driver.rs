//! The event loop that all clients share.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use mio::{Events, Poll, Token};

use super::connection::Connection;
use super::{Measured, Plan, Work};
use crate::cli::exit::Failure;
use crate::codec::frame::{FrameKind, Header, INITIAL_CREDIT};
use crate::codec::request::Ping;
use crate::codec::{envelope, request};
use crate::sys::entropy::{Entropy as _, OsEntropy, SeededEntropy};
use crate::sys::limits::allow_open_files;
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Answer, Call, Filter, Hello, Query, QueryKind, WatchItem, WatchRequest, Write, WriteRequest};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::object::Sensitive;
use crate::types::{ChangeId, Code, Kind, Object, Revision, Status};

/// Runs the plan to its end.
pub fn drive(plan: &Plan) -> Result<Measured, Failure> {
    let mut driver = Driver::connect(plan)?;
    driver.greet()?;
    driver.work()?;
    Ok(driver.measured)
}

struct Driver<'a> {
    plan: &'a Plan,
    poll: Poll,
    clients: Vec<Client>,
    /// When the first operation could begin.
    start: Instant,
    /// Operations begun.
    begun: u64,
    /// Operations that have ended, with an answer or an error.
    ended: u64,
    /// The newest revision seen: change ids are made after it.
    revision: Revision,
    /// Makes change ids: a system call for each would be a part of what is measured.
    entropy: SeededEntropy,
    /// Where bytes arrive.
    chunk: Vec<u8>,
    /// Writes of a watch benchmark that were committed, by group.
    committed: Vec<u64>,
    /// When each of them began, by its number.
    write_times: BTreeMap<u64, Instant>,
    measured: Measured,
}

struct Client {
    connection: Option<Connection>,
    socket: usize,
    watches: bool,
    /// The changes that a watcher wants; `None` for all.
    group: Option<u64>,
    state: State,
    ungranted: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Waits for the manager's hello.
    Greeting,
    /// May begin an operation.
    Ready,
    /// Waits for the answer to an operation on this stream.
    Waiting { stream: u32, since: Instant, operation: Operation },
    /// Was refused and waits a moment, so that a swarm without a leader is not asked a million times.
    Pausing { until: Instant },
    /// Receives a watch on this stream; `begun` once the manager said where it begins.
    Watching { stream: u32, begun: bool },
    /// Its manager is gone.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operation {
    Write(u64),
    Read,
}

impl<'a> Driver<'a> {
    fn connect(plan: &'a Plan) -> Result<Self, Failure> {
        let watchers = plan.watchers();
        let all = if plan.work == Work::Watch { watchers + plan.writers } else { plan.clients };
        // Too few show as errors when connecting.
        allow_open_files(all as u64 + 64);
        let poll = Poll::new().map_err(|error| Failure::internal(format!("cannot poll sockets: {error}")))?;
        let mut clients = Vec::with_capacity(all);
        for number in 0..all {
            let socket = number % plan.sockets.len();
            let connection = Connection::open(&plan.sockets[socket], plan.timeout, poll.registry(), Token(number))
                .map_err(|error| {
                    Failure::from(Status::new(
                        Code::Unavailable,
                        format!("client {number} cannot connect to {}: {error}", plan.sockets[socket].display()),
                    ))
                    .with_hint(
                        "is the manager running? see `skep status`; many clients need many descriptors: `ulimit -n`",
                    )
                })?;
            let watches = plan.work == Work::Watch && number < watchers;
            let group = (number < plan.clients).then_some(number as u64 % plan.groups);
            let connection = Some(connection);
            clients.push(Client { connection, socket, watches, group, state: State::Greeting, ungranted: 0 });
        }
        Ok(Self {
            plan,
            poll,
            clients,
            start: monotonic(),
            begun: 0,
            ended: 0,
            revision: Revision(0),
            entropy: SeededEntropy::new(OsEntropy.next_u64()),
            chunk: vec![0; CHUNK],
            committed: vec![0; plan.groups as usize],
            write_times: BTreeMap::new(),
            measured: Measured::default(),
        })
    }

    /// Until every client has its hello and every watcher its beginning.
    fn greet(&mut self) -> Result<(), Failure> {
        let deadline = monotonic() + self.plan.timeout;
        loop {
            let waiting = self.clients.iter().any(|client| {
                matches!(client.state, State::Greeting | State::Watching { begun: false, .. })
                    || (client.watches && client.state == State::Ready)
            });
            if !waiting {
                return Ok(());
            }
            if monotonic() >= deadline {
                return Err(stalled(self.plan.timeout));
            }
            for number in 0..self.clients.len() {
                if self.clients[number].watches && self.clients[number].state == State::Ready {
                    self.begin_watch(number);
                }
            }
            self.turn(POLL, false)?;
            self.none_left()?;
        }
    }

    fn work(&mut self) -> Result<(), Failure> {
        let start = monotonic();
        self.start = start;
        let (mut last_ended, mut last_progress, mut last_shown) = (0, start, start);
        while !self.is_done() {
            let now = monotonic();
            for number in 0..self.clients.len() {
                match self.clients[number].state {
                    State::Pausing { until } if until <= now => self.revive(number),
                    _ => {}
                }
                self.begin(number, false);
            }
            self.turn(self.wait(), true)?;
            self.none_left()?;
            let now = monotonic();
            let done = self.ended + self.measured.deliveries.total();
            let none_due = self.plan.rate.is_some() && self.begun == self.ended && self.begun < self.writes_wanted();
            if done != last_ended || none_due {
                (last_ended, last_progress) = (done, now);
            } else if now.since(last_progress) > self.plan.timeout + STALL_SLACK {
                return Err(stalled(self.plan.timeout));
            }
            if self.plan.progress && now.since(last_shown) > SHOW_EVERY {
                last_shown = now;
                self.show(now.since(start));
            }
        }
        self.measured.elapsed = monotonic().since(start);
        if self.plan.progress {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
        Ok(())
    }

    fn is_done(&self) -> bool {
        match self.plan.work {
            Work::Watch => {
                self.ended >= self.writes_wanted() && self.measured.deliveries.total() >= self.deliveries_due()
            }
            _ => self.ended >= self.plan.total,
        }
    }

    /// Operations that clients begin; in a watch benchmark each is delivered to every watcher that wants it.
    fn writes_wanted(&self) -> u64 {
        match self.plan.work {
            Work::Watch => self.plan.writes(),
            _ => self.plan.total,
        }
    }

    /// What the watchers that are left get of the writes that were committed.
    fn deliveries_due(&self) -> u64 {
        let watchers = self.clients.iter().filter(|client| client.watches && client.state != State::Gone);
        let of = |group: Option<u64>| match group {
            Some(group) => self.committed[group as usize],
            None => self.committed.iter().sum(),
        };
        watchers.map(|client| of(client.group)).sum()
    }

    /// Waits for sockets and handles what they bring.
    fn turn(&mut self, wait: Duration, begin: bool) -> Result<(), Failure> {
        let mut events = Events::with_capacity(1024);
        if let Err(error) = self.poll.poll(&mut events, Some(wait))
            && error.kind() != std::io::ErrorKind::Interrupted
        {
            return Err(Failure::internal(format!("cannot poll sockets: {error}")));
        }
        for event in &events {
            let number = event.token().0;
            let was_busy = self.clients[number].state != State::Ready;
            let Some(connection) = self.clients[number].connection.as_mut() else { continue };
            let flushed = if event.is_writable() { connection.flush(self.poll.registry()) } else { Ok(()) };
            let filled = flushed.and_then(|()| connection.fill(&mut self.chunk));
            // What arrived before the end counts.
            let frames = connection.frames();
            match frames {
                Ok(frames) => {
                    for (header, body) in frames {
                        self.frame(number, header, &body);
                    }
                }
                Err(error) => self.lose(number, &error),
            }
            if let Err(error) = filled {
                self.lose(number, &error);
            }
            if begin {
                self.begin(number, was_busy);
            }
        }
        Ok(())
    }

    /// When the next operation is due, if there is a rate.
    fn due(&self) -> Option<Instant> {
        let nanos = u128::from(self.begun) * 1_000_000_000 / u128::from(self.plan.rate?);
        Some(self.start + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How long there is nothing to do but for what sockets bring: until the next operation is due, if a client is free.
    fn wait(&self) -> Duration {
        let is_free = |client: &Client| client.state == State::Ready && !client.watches;
        match self.due() {
            Some(due) if self.begun < self.writes_wanted() && self.clients.iter().any(is_free) => {
                due.since(monotonic()).min(POLL)
            }
            _ => POLL,
        }
    }

    /// Begins the client's next operation if it may and one is left and due. With a client that was busy until now it
    /// counts from when it was due; else it is late because timers are, which is no fault of the swarm's.
    fn begin(&mut self, number: usize, was_busy: bool) {
        let client = &mut self.clients[number];
        if client.state != State::Ready || client.watches || self.begun >= self.writes_wanted() {
            return;
        }
        let due = self.due();
        if due.is_some_and(|due| due > monotonic()) {
            return;
        }
        let operation = match self.plan.work {
            Work::Write | Work::Watch => Operation::Write(self.begun),
            Work::Mixed if self.begun.is_multiple_of(10) => Operation::Write(self.begun),
            Work::Mixed | Work::Read => Operation::Read,
        };
        self.begun += 1;
        let body = self.encode(operation);
        let since = due.filter(|_| was_busy).unwrap_or_else(monotonic);
        if let (Operation::Write(sequence), Work::Watch) = (operation, self.plan.work) {
            self.write_times.insert(sequence, since);
        }
        let client = &mut self.clients[number];
        let Some(connection) = client.connection.as_mut() else { return };
        match connection.request(self.poll.registry(), &body) {
            Ok(stream) => client.state = State::Waiting { stream, since, operation },
            Err(error) => {
                client.state = State::Waiting { stream: 0, since, operation };
                self.lose(number, &error);
            }
        }
    }

    fn encode(&mut self, operation: Operation) -> Vec<u8> {
        let deadline_ms = u32::try_from(self.plan.timeout.as_millis()).unwrap_or(u32::MAX);
        match operation {
            Operation::Write(sequence) => {
                let write = self.write(sequence);
                let change = ChangeId::ordered(wall_ms(), self.entropy.next_u128());
                let request = WriteRequest { change, after: self.revision, write };
                request::encode(Call::Write, deadline_ms, None, &envelope::encode(&request))
            }
            Operation::Read => {
                let object = self.plan.object.expect("a benchmark that reads is prepared with an object");
                let what = QueryKind::Inspect(Kind::Resource, object.to_string());
                let query = Query { stale: self.plan.stale, what };
                request::encode(Call::Query, deadline_ms, None, &envelope::encode(&query))
            }
        }
    }

    fn write(&self, sequence: u64) -> Write {
        // No two alike: a manager that left out an update that changes nothing would be measured doing nothing.
        let mut payload = vec![b'x'; self.plan.size];
        payload.iter_mut().zip(sequence.to_le_bytes()).for_each(|(to, byte)| *to = byte);
        let over = &self.plan.overwrite;
        if over.is_empty() {
            return Write::CreateResource {
                name: format!("{}{sequence}", self.plan.prefix(sequence % self.plan.groups)),
                kind: self.plan.extension.clone(),
                labels: BTreeMap::new(),
                indices: BTreeMap::new(),
                payload,
            };
        }
        // Of ten operations of a mixed run one is a write.
        let number = if self.plan.work == Work::Mixed { sequence / 10 } else { sequence };
        Write::UpdateResource {
            object: over[(number % over.len() as u64) as usize].to_string(),
            payload: Some(Sensitive(payload)),
            labels: None,
            indices: None,
            if_version: None,
        }
    }

    fn begin_watch(&mut self, number: usize) {
        let (mut kinds, mut filter) = (Vec::new(), Filter::default());
        if let Some(group) = self.clients[number].group {
            kinds.push(Kind::Resource);
            filter.kinds.push(self.plan.extension.clone());
            if self.plan.groups > 1 {
                filter.name_prefixes.push(self.plan.prefix(group));
            }
        }
        let request = WatchRequest { from: None, skip_snapshot: true, kinds, filter, include_old: false };
        let body = request::encode(Call::Watch, u32::MAX, None, &envelope::encode(&request));
        let client = &mut self.clients[number];
        let Some(connection) = client.connection.as_mut() else { return };
        match connection.request(self.poll.registry(), &body) {
            Ok(stream) => client.state = State::Watching { stream, begun: false },
            Err(error) => self.lose(number, &error),
        }
    }

    fn frame(&mut self, number: usize, header: Header, body: &[u8]) {
        let client = &mut self.clients[number];
        match (header.kind, client.state) {
            (FrameKind::Hello, State::Greeting) => match envelope::decode::<Hello>(body, MAX_FRAME_BYTES) {
                Ok(hello) => {
                    client.state = State::Ready;
                    self.revision = self.revision.max(hello.revision);
                }
                Err(error) => self.lose(number, &std::io::Error::other(error)),
            },
            (FrameKind::Ping, _) => {
                let sent_ns = Ping::decode(body).map(|ping| ping.sent_ns).unwrap_or_default();
                let pong = Ping { sent_ns, wall_ms: wall_ms(), ..Ping::default() }.encode();
                if let Some(connection) = client.connection.as_mut() {
                    let _ = connection.send(self.poll.registry(), FrameKind::Pong, 0, &pong);
                }
            }
            (FrameKind::Error, _) if header.stream == 0 => {
                let text = refusal(body);
                self.lose(number, &std::io::Error::other(text));
            }
            (FrameKind::Answer, State::Waiting { stream, since, operation }) if header.stream == stream => {
                client.state = State::Ready;
                self.answered(since, operation, body);
            }
            (FrameKind::Error, State::Waiting { stream, .. }) if header.stream == stream => {
                client.state = State::Pausing { until: monotonic() + PAUSE };
                self.ended += 1;
                self.count_error(refusal(body));
            }
            (FrameKind::Answer, State::Watching { stream, .. }) if header.stream == stream => {
                self.watched(number, header, body);
            }
            (FrameKind::Error, State::Watching { stream, .. }) if header.stream == stream => {
                self.lose(number, &std::io::Error::other(refusal(body)));
            }
            _ => {}
        }
    }

    fn answered(&mut self, since: Instant, operation: Operation, body: &[u8]) {
        let us = micros(monotonic().since(since));
        self.ended += 1;
        match (operation, envelope::decode::<Answer>(body, MAX_FRAME_BYTES)) {
            (Operation::Write(sequence), Ok(Answer::Written { revision, .. })) => {
                self.revision = self.revision.max(revision);
                self.committed[(sequence % self.plan.groups) as usize] += 1;
                self.measured.writes.record(us);
            }
            (Operation::Read, Ok(Answer::Object(_))) => self.measured.reads.record(us),
            (_, Ok(_)) => self.count_error("the manager answered something else than was asked".to_owned()),
            (_, Err(error)) => self.count_error(error.to_string()),
        }
    }

    fn watched(&mut self, number: usize, header: Header, body: &[u8]) {
        match envelope::decode::<WatchItem>(body, MAX_FRAME_BYTES) {
            Ok(WatchItem::Begin { .. }) => {
                self.clients[number].state = State::Watching { stream: header.stream, begun: true };
            }
            Ok(WatchItem::Change { events, .. }) => {
                let now = monotonic();
                for event in events {
                    if let Some(began) = self.write_time(&event.object) {
                        self.measured.deliveries.record(micros(now.since(began)));
                    }
                }
            }
            Ok(WatchItem::Snapshot { .. } | WatchItem::Mark { .. }) => {}
            Err(error) => return self.lose(number, &std::io::Error::other(error)),
        }
        let client = &mut self.clients[number];
        client.ungranted += header.length;
        if client.ungranted >= INITIAL_CREDIT / 2 {
            let credit = std::mem::take(&mut client.ungranted).to_le_bytes();
            if let Some(connection) = client.connection.as_mut()
                && let Err(error) = connection.send(self.poll.registry(), FrameKind::Credit, header.stream, &credit)
            {
                self.lose(number, &error);
            }
        }
    }

    fn write_time(&self, object: &Object) -> Option<Instant> {
        let Object::Resource(resource) = object else { return None };
        let (_, sequence) = resource.name().strip_prefix(&self.plan.extension)?.rsplit_once('-')?;
        self.write_times.get(&sequence.parse().ok()?).copied()
    }

    /// The client's connection is gone; what it waited for is an error.
    fn lose(&mut self, number: usize, error: &std::io::Error) {
        let client = &mut self.clients[number];
        client.connection = None;
        let waited = matches!(client.state, State::Waiting { .. });
        client.state = match client.watches || client.state == State::Greeting {
            true => State::Gone,
            false => State::Pausing { until: monotonic() + PAUSE },
        };
        if waited {
            self.ended += 1;
        }
        self.count_error(format!("the connection broke: {error}"));
    }

    /// After a pause: go on, on a new connection if the old one is gone.
    fn revive(&mut self, number: usize) {
        let client = &mut self.clients[number];
        if client.connection.is_some() {
            client.state = State::Ready;
            return;
        }
        let path: &Path = &self.plan.sockets[client.socket];
        match Connection::open(path, PAUSE, self.poll.registry(), Token(number)) {
            Ok(connection) => {
                client.connection = Some(connection);
                client.state = State::Greeting;
            }
            Err(_) => client.state = State::Gone,
        }
    }

    fn count_error(&mut self, text: String) {
        self.measured.errors += 1;
        self.measured.first_error.get_or_insert(text);
    }

    /// An error once there is nobody left to begin an operation.
    fn none_left(&self) -> Result<(), Failure> {
        let able = |client: &&Client| !client.watches && client.state != State::Gone;
        if self.clients.iter().any(|client| able(&client)) && self.watchers_alive() {
            return Ok(());
        }
        let why = self.measured.first_error.clone().unwrap_or_default();
        Err(Failure::from(Status::new(Code::Unavailable, format!("all clients lost their manager: {why}")))
            .with_hint("see what became of the managers: `skep members`"))
    }

    fn watchers_alive(&self) -> bool {
        self.plan.work != Work::Watch || self.clients.iter().any(|client| client.watches && client.state != State::Gone)
    }

    fn show(&self, elapsed: Duration) {
        let (done, total) = match self.plan.work {
            Work::Watch => (self.measured.deliveries.total(), self.plan.total),
            _ => (self.ended, self.plan.total),
        };
        let rate = done as f64 / elapsed.as_secs_f64().max(0.001);
        let _ = write!(std::io::stderr(), "\r\x1b[K{done}/{total}  {rate:.0}/s  {} errors", self.measured.errors);
    }
}

fn refusal(body: &[u8]) -> String {
    match envelope::decode::<Status>(body, MAX_FRAME_BYTES) {
        Ok(status) => format!("{}: {}", status.code.name(), status.message),
        Err(error) => error.to_string(),
    }
}

fn stalled(timeout: Duration) -> Failure {
    let message = format!("no operation has ended for {} s", (timeout + STALL_SLACK).as_secs());
    Failure::from(Status::new(Code::Unavailable, message))
        .with_hint("see whether the swarm has a leader: `skep status`")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// Bytes read at once.
const CHUNK: usize = 64 << 10;
/// How long the loop waits for sockets before it looks at pauses.
const POLL: Duration = Duration::from_millis(10);
/// A client that was refused waits so long.
const PAUSE: Duration = Duration::from_millis(20);
/// How much longer than the timeout the benchmark waits for anything to happen.
const STALL_SLACK: Duration = Duration::from_secs(1);
/// How often a terminal is shown how far it is.
const SHOW_EVERY: Duration = Duration::from_millis(200);
