//! A blocking caller: for the command line, for a node that joins, and for programs that embed a node.
//!
//! A [`Client`] holds one connection and has one request outstanding. It needs no thread of its own: a call writes a
//! frame, waits for the answer, and returns. [`Client::local`] reaches a manager on the same machine over its control
//! socket, [`Client::tls`] one over the network.
//!
//! What callers may rely on:
//!
//! - [`Client::write`] carries out its change at most once. Id and after-revision are fixed before the first attempt and
//!   sent again unchanged, so that an answer that was lost is asked for, not repeated as a second write. It ends with a
//!   definite answer or with [`ClientError::OutcomeUnknown`], which holds what is needed to ask again later.
//! - A new write is made after a revision that is at most about a second old, however long the client has been idle.
//! - Calls that may succeed later ([`Code::is_transient`](crate::types::Code::is_transient)) are repeated until the timeout, except
//!   when the manager says that it sees no majority itself: then waiting would only hide the news.
//! - [`Backup`] hands out everything as it arrives, and says when that was all.
//! - [`Session`] is over when its connection is, and notices a manager that has fallen silent.
//! - [`Watch`] resumes after its last position when the connection breaks, and says so when it cannot; it never skips.
//! - Every wait has an end: a manager that stops answering costs the timeout and [`GRACE`].
//!
//! Not here: what requests mean, and who may make them.
//!
//! Invariants: bytes from the manager are limited by [`MAX_FRAME_BYTES`] before
//! memory is taken for them; after anything unexpected the connection is dropped and a new one is made.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::codec::frame::{END, FrameKind};
use crate::codec::{envelope, request};
use crate::sys::entropy::{Entropy as _, OsEntropy};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Answer, Call, Filter, Hello, Query, QueryKind, WatchRequest, Write, WriteRequest};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{ChangeId, Code, Kind, NodeId, Object, ObjectId, Revision, Status};

mod backup;
mod connection;
mod error;
mod local;
mod root;
mod session;
mod watch;

pub use backup::Backup;
pub use connection::Connection;
pub use error::ClientError;
pub use local::connect_unix;
pub use root::{given_root, own_root};
pub use session::Session;
pub use watch::Watch;

/// A connection to one manager, made again when it breaks.
#[derive(Debug)]
pub struct Client {
    target: Target,
    /// `None` after it broke.
    connection: Option<Connection>,
    /// The newest one.
    hello: Hello,
    /// The newest revision that this client was told of.
    revision: Revision,
    /// Until then [`Self::revision`] is recent enough for a new write.
    recent_until: Instant,
}

/// A write's identity. The same one with the same write is carried out once, however often it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteId {
    /// Random.
    pub change: ChangeId,
    /// A revision known before the first attempt.
    pub after: Revision,
}

/// A committed write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// The object made or changed.
    pub id: ObjectId,
    /// The revision, which is the object's version now.
    pub revision: Revision,
}

/// A manager on the network.
#[derive(Clone, Debug)]
pub struct TlsTarget {
    /// `host:port`.
    pub addr: String,
    /// The name that `config`'s verifier is given.
    pub server_name: rustls::pki_types::ServerName<'static>,
    /// Whom to trust and who the caller is.
    pub config: Arc<rustls::ClientConfig>,
    /// The node that must answer.
    pub expected: Option<NodeId>,
    /// Sent first by a caller that is a manager itself.
    pub hello: Option<Hello>,
}

#[derive(Clone, Debug)]
enum Target {
    Local(PathBuf),
    Tls(Box<TlsTarget>),
}

impl Client {
    /// Connects to the control socket at `path`. Fails at once when nobody listens there.
    pub fn local(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        Self::connect(Target::Local(path.to_owned()), timeout)
    }

    /// Connects over the network.
    pub fn tls(target: TlsTarget, timeout: Duration) -> Result<Self, ClientError> {
        Self::connect(Target::Tls(Box::new(target)), timeout)
    }

    /// What the manager said of itself when the connection was made.
    pub const fn hello(&self) -> &Hello {
        &self.hello
    }

    /// One attempt of any call. A call that is not a read may have been carried out when this fails with
    /// [`ClientError::Lost`].
    pub fn call<B: Serialize>(&mut self, call: Call, body: &B, timeout: Duration) -> Result<Answer, ClientError> {
        self.attempt(call, &envelope::encode(body), monotonic() + timeout)
    }

    /// A read, repeated while it may succeed later.
    pub fn query(&mut self, what: QueryKind, stale: bool, timeout: Duration) -> Result<Answer, ClientError> {
        let body = envelope::encode(&Query { stale, what });
        let deadline = monotonic() + timeout;
        let mut pauses = Pauses::default();
        loop {
            match self.attempt(Call::Query, &body, deadline) {
                Err(error) if error.may_pass() && pauses.wait(deadline) => {}
                result => return result,
            }
        }
    }

    /// All objects of a kind that match, in order of id: as many pages as it takes, each read at its own revision.
    pub fn list(
        &mut self,
        kind: Kind,
        filter: &Filter,
        stale: bool,
        timeout: Duration,
    ) -> Result<Vec<Object>, ClientError> {
        let mut all = Vec::new();
        let mut after = None;
        loop {
            match self.query(QueryKind::List(kind, filter.clone(), after), stale, timeout)? {
                Answer::Objects { objects, more } => {
                    after = objects.last().map(Object::id);
                    all.extend(objects);
                    if !more || after.is_none() {
                        return Ok(all);
                    }
                }
                Answer::Searched { objects, after: last } => {
                    after = Some(last);
                    all.extend(objects);
                }
                _ => return Err(self.unexpected()),
            }
        }
    }

    /// An id for a write that is made now, after a revision that was current a moment ago: managers remember only so many
    /// changes, and could not tell what became of one that claims to be older. A client that has heard nothing lately asks
    /// for a new hello first; when none can be had, it takes what it knows.
    pub fn write_id(&mut self) -> WriteId {
        if monotonic() >= self.recent_until
            && let Ok((connection, hello)) = self.target.connect(monotonic() + REFRESH_TIMEOUT)
        {
            self.connection = Some(connection);
            self.greeted(hello);
        }
        WriteId { change: ChangeId::ordered(wall_ms(), OsEntropy.next_u128()), after: self.revision }
    }

    /// A write under an id of its own.
    pub fn write(&mut self, write: Write, timeout: Duration) -> Result<Written, ClientError> {
        let id = self.write_id();
        self.write_as(id, write, timeout)
    }

    /// A write under this id: the first attempt, or a question what became of an earlier one.
    pub fn write_as(&mut self, id: WriteId, write: Write, timeout: Duration) -> Result<Written, ClientError> {
        let body = envelope::encode(&WriteRequest { change: id.change, after: id.after, write });
        let deadline = monotonic() + timeout;
        let mut pauses = Pauses::default();
        // Set by the first attempt that may have been carried out: from then on only an answer about this id will do.
        let mut in_doubt = false;
        loop {
            let error = match self.attempt(Call::Write, &body, deadline) {
                Ok(Answer::Written { id, revision }) => {
                    // A write asked about again may be an old one, whose revision says nothing of the present.
                    if revision > self.revision {
                        self.knows(revision);
                    }
                    return Ok(Written { id, revision });
                }
                Ok(_) => self.unexpected(),
                Err(error) => error,
            };
            if error.is_definite() {
                return Err(error);
            }
            in_doubt |= error.leaves_doubt();
            if error.may_pass() && pauses.wait(deadline) {
                continue;
            }
            return Err(match in_doubt {
                true => ClientError::OutcomeUnknown { id, status: error.into_status() },
                false => error,
            });
        }
    }

    /// Begins a watch on a connection of its own to the same manager. `patience` is how long it tries to connect again
    /// when that connection breaks.
    pub fn watch(&self, request: WatchRequest, patience: Duration) -> Result<Watch, ClientError> {
        Watch::begin(Self::connect(self.target.clone(), patience)?, request, patience)
    }

    /// Begins a backup on a connection of its own to the same manager. With `stale` it is of what that manager has. The
    /// manager may be silent for `patience`, however long the whole takes.
    pub fn backup(&self, stale: bool, patience: Duration) -> Result<Backup, ClientError> {
        Backup::begin(Self::connect(self.target.clone(), patience)?, stale, patience)
    }

    fn connect(target: Target, timeout: Duration) -> Result<Self, ClientError> {
        let (connection, hello) = target.connect(monotonic() + timeout)?;
        let (revision, recent_until) = (hello.revision, monotonic() + RECENT);
        Ok(Self { target, connection: Some(connection), hello, revision, recent_until })
    }

    /// Takes in a hello.
    fn greeted(&mut self, hello: Hello) {
        // Another manager may lag behind, but revisions of another history compare with none.
        let revision = match hello.lineage == self.hello.lineage {
            true => hello.revision.max(self.revision),
            false => hello.revision,
        };
        self.hello = hello;
        self.knows(revision);
    }

    fn knows(&mut self, revision: Revision) {
        self.revision = revision;
        self.recent_until = monotonic() + RECENT;
    }

    /// The connection, made again if it broke.
    fn connection(&mut self, deadline: Instant) -> Result<&mut Connection, ClientError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let (connection, hello) = self.target.connect(deadline)?;
                self.greeted(hello);
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }

    fn attempt(&mut self, call: Call, body: &[u8], deadline: Instant) -> Result<Answer, ClientError> {
        self.connection(deadline)?;
        let mut connection = self.connection.take().expect("it was just made");
        let remaining = deadline.since(monotonic());
        // Zero would mean as long as the manager likes.
        let deadline_ms = u32::try_from(remaining.as_millis()).unwrap_or(u32::MAX).max(1);
        let result = exchange(&mut connection, &request::encode(call, deadline_ms, None, body), deadline + GRACE);
        // After a refusal the connection is as good as before; after anything else it is not known what comes next on it.
        if matches!(result, Ok(_) | Err(ClientError::Refused(_))) {
            self.connection = Some(connection);
        }
        result
    }

    /// An answer of another kind than the request demands.
    fn unexpected(&mut self) -> ClientError {
        self.connection = None;
        ClientError::Lost(Status::new(Code::Internal, "the manager answered something else than was asked"))
    }
}

/// Sends a request and waits for its only answer.
fn exchange(connection: &mut Connection, request: &[u8], deadline: Instant) -> Result<Answer, ClientError> {
    let stream = connection.open(request, deadline)?;
    loop {
        let (header, body) = connection.receive(Some(deadline))?;
        if header.stream != stream {
            continue;
        }
        match header.kind {
            FrameKind::Answer if header.flags & END != 0 => {
                return envelope::decode(&body, MAX_FRAME_BYTES).map_err(ClientError::undecodable);
            }
            FrameKind::Error => return Err(ClientError::refusal(&body)),
            FrameKind::Credit => {}
            _ => return Err(ClientError::garbled("a frame that no answer begins with")),
        }
    }
}

impl Target {
    fn connect(&self, deadline: Instant) -> Result<(Connection, Hello), ClientError> {
        let mut connection = match self {
            Self::Local(path) => Connection::local(path, deadline)?,
            Self::Tls(target) => Connection::tls(target, deadline)?,
        };
        if let Self::Tls(target) = self
            && let Some(hello) = &target.hello
        {
            connection.send(FrameKind::Hello, 0, &envelope::encode(hello), deadline)?;
        }
        let hello: Hello = match connection.receive(Some(deadline + GRACE)).map_err(ClientError::before_sending)? {
            (header, body) if header.kind == FrameKind::Hello => {
                envelope::decode(&body, MAX_FRAME_BYTES).map_err(ClientError::undecodable)?
            }
            (header, body) if header.kind == FrameKind::Error => return Err(ClientError::refusal(&body)),
            _ => return Err(ClientError::garbled("a first frame that is not a hello")),
        };
        let expected = match self {
            Self::Local(_) => None,
            Self::Tls(target) => target.expected,
        };
        match expected {
            Some(expected) if hello.node_id != expected => {
                let message = format!("{} is node {}, not {expected}", connection.peer(), hello.node_id);
                Err(ClientError::Refused(Status::new(Code::Unauthenticated, message)))
            }
            _ => Ok((connection, hello)),
        }
    }
}

/// Growing pauses between attempts, with jitter so that callers who were refused together do not return together.
#[derive(Debug, Default)]
struct Pauses {
    count: u32,
}

impl Pauses {
    /// Waits; false when the deadline would pass before the next attempt.
    fn wait(&mut self, deadline: Instant) -> bool {
        let full = FIRST_PAUSE.saturating_mul(1 << self.count.min(8)).min(LONGEST_PAUSE);
        self.count += 1;
        let half = full / 2;
        let jitter = half.mul_f64(OsEntropy.next_u64() as f64 / u64::MAX as f64);
        let pause = half + jitter;
        if deadline.since(monotonic()) <= pause {
            return false;
        }
        std::thread::sleep(pause);
        true
    }
}

/// How much longer than the request's deadline a caller waits, so that the manager's own account of a deadline that
/// passed arrives instead of a mere silence.
pub const GRACE: Duration = Duration::from_millis(500);
/// A revision learned so long ago is no longer given to new writes. Managers remember 131,072 changes, which takes many
/// times as long.
const RECENT: Duration = Duration::from_secs(1);
/// How long a new hello may take.
const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);
/// The first pause between two attempts.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
/// No pause is longer.
const LONGEST_PAUSE: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests;
