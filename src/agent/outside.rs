//! A worker's way to the swarm: a session with one manager, and calls to whichever answers.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::own::Own;
use super::remotes::Remotes;
use super::run::{News, Swarm};
use crate::client::{Client, ClientError, Session};
use crate::pki;
use crate::sys::entropy::{Entropy, OsEntropy, SeededEntropy};
use crate::sys::queue::{Received, Receiver};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Answer, Call, Hello, IssueRequest, ReportRequest, SessionItem, SessionRequest};
use crate::types::object::NodeDescription;
use crate::types::{Code, NodeId, Revision, Status};

/// Connecting, and one call, may take so long.
const ATTEMPT: Duration = Duration::from_secs(3);
/// A call goes to so many managers before it has failed.
const ATTEMPTS: usize = 3;
/// The thread looks so often whether it is to end.
const TURN: Duration = Duration::from_millis(500);
/// The pause before the next session, and what it grows by each time: to twice as much and this (swarmkit's
/// `agent/session.go`).
const MORE_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Writes down where the managers are.
pub type Remember = Box<dyn FnMut(&[(NodeId, String)]) + Send>;

/// The manager that a worker is in touch with, or why there is none. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Link(Arc<Mutex<LinkState>>);

/// What `skep status` says of a worker's connection.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Who, and where it was dialled.
    pub manager: Option<(NodeId, String)>,
    /// Its clock minus ours, milliseconds.
    pub clock_offset_ms: Option<i64>,
    /// Why there is no session; empty while there is one.
    pub trouble: String,
}

impl Link {
    /// As it is now.
    pub fn state(&self) -> LinkState {
        self.0.lock().expect("no code panics while it holds this lock").clone()
    }

    fn set(&self, state: LinkState) {
        *self.0.lock().expect("no code panics while it holds this lock") = state;
    }
}

/// What it is made of.
pub struct Parts {
    /// The node's identity.
    pub own: Own,
    /// This machine.
    pub description: NodeDescription,
    /// Managers that the node remembers.
    pub known: Vec<(NodeId, String)>,
    /// Addresses that a person gave.
    pub given: Vec<String>,
    /// The hello of a node with a manager's certificate.
    pub hello: Hello,
    /// Dropping its other end stops the thread.
    pub stop: Receiver<()>,
    /// What `skep status` shows.
    pub link: Link,
    /// Writes the managers down when they are others.
    pub remember: Remember,
}

/// The way.
pub struct Outside {
    own: Own,
    description: NodeDescription,
    remotes: Remotes,
    hello: Hello,
    stop: Receiver<()>,
    stopped: bool,
    link: Link,
    remember: Remember,
    managers: Vec<(NodeId, String)>,
    session: Option<Current>,
    retry_at: Instant,
    pause: Duration,
    revision: Revision,
    jitter: SeededEntropy,
}

struct Current {
    session: Session,
    addr: String,
    /// The end of the certificate it was begun with: it begins anew with the next one, before its manager closes it.
    not_after_ms: u64,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("remotes", &self.remotes).finish_non_exhaustive()
    }
}

impl Outside {
    /// Begins without a session.
    pub fn new(parts: Parts) -> Self {
        let Parts { own, description, known, given, hello, stop, link, remember } = parts;
        let seed = OsEntropy.next_u64();
        let addrs = known.iter().map(|(_, addr)| addr.clone());
        Self {
            remotes: Remotes::new(addrs, given, seed),
            own,
            description,
            hello,
            stop,
            stopped: false,
            link,
            remember,
            managers: known,
            session: None,
            retry_at: monotonic(),
            pause: Duration::ZERO,
            revision: Revision(0),
            jitter: SeededEntropy::new(seed ^ 1),
        }
    }

    /// A connection to a manager, with the certificate as it is now.
    fn connect(&mut self, addr: &str) -> Result<Client, Status> {
        let hello = self.hello.clone();
        let target = self.own.target(addr, wall_ms(), || hello)?;
        let client = Client::tls(target, ATTEMPT).map_err(ClientError::into_status)?;
        self.revision = self.revision.max(client.hello().revision);
        Ok(client)
    }

    /// Begins a session with the next manager.
    fn begin(&mut self, now: Instant) -> News {
        let Some(addr) = self.remotes.choose() else {
            self.fail(now, None, Status::new(Code::Unavailable, "no manager's address is known"));
            return News::Nothing;
        };
        let not_after_ms = self.own.identity().not_after_ms;
        let request = SessionRequest { description: self.description.clone(), issuer: self.own.issuer() };
        let begun = self
            .connect(&addr)
            .and_then(|client| Session::begin(client, &request, ATTEMPT).map_err(ClientError::into_status));
        match begun {
            Ok(session) => {
                self.session = Some(Current { session, addr, not_after_ms });
                News::Nothing
            }
            Err(status) => self.refused(now, &addr, status),
        }
    }

    /// A manager turned this node away, or could not be reached.
    fn refused(&mut self, now: Instant, addr: &str, status: Status) -> News {
        if is_removal(&status) {
            return News::Removed(status);
        }
        let strange = status.message.contains(pki::UNKNOWN_ROOT);
        self.fail(now, Some(addr), status);
        // Perhaps the roots were replaced while this node was away.
        match strange.then(|| fetch_roots(addr)).flatten() {
            Some(roots) if roots != self.own.roots() => News::Roots(roots),
            _ => News::Nothing,
        }
    }

    fn fail(&mut self, now: Instant, addr: Option<&str>, status: Status) {
        if let Some(addr) = addr {
            self.remotes.failed(addr);
        }
        if self.session.take().is_some() || self.link.state().trouble.is_empty() {
            log::warn!("no session with a manager: {status}");
        } else {
            log::debug!("no session with a manager: {status}");
        }
        let trouble = match status.hint.is_empty() {
            true => status.message,
            false => format!("{}; {}", status.message, status.hint),
        };
        self.link.set(LinkState { manager: None, clock_offset_ms: None, trouble });
        self.pause = (self.pause * 2 + MORE_PAUSE).min(LONGEST_PAUSE);
        let millis = u64::try_from(self.pause.as_millis()).unwrap_or(u64::MAX);
        self.retry_at = now + Duration::from_millis(self.jitter.below(millis));
    }

    /// Waits on the session there is.
    fn listen(&mut self, deadline: Instant) -> News {
        let certificate_ms = self.own.identity().not_after_ms;
        let Some(current) = &mut self.session else { return News::Nothing };
        if current.not_after_ms != certificate_ms {
            // The next session shows the new certificate.
            log::debug!("beginning the session anew with the new certificate");
            (self.session, self.retry_at) = (None, monotonic());
            return News::Nothing;
        }
        let heard = current.session.next_until(deadline.min(monotonic() + TURN));
        let (addr, manager) = (current.addr.clone(), current.session.hello().node_id);
        let clock_offset_ms = current.session.clock_offset_ms();
        match heard {
            Ok(item) => {
                if self.link.state().manager.is_none() && item.is_some() {
                    log::info!("in touch with manager {manager} at {addr}");
                }
                if item.is_some() || self.link.state().manager.is_some() {
                    self.remotes.served(&addr);
                    self.pause = Duration::ZERO;
                    self.link.set(LinkState {
                        manager: Some((manager, addr)),
                        clock_offset_ms,
                        trouble: String::new(),
                    });
                }
                item.map_or(News::Nothing, |item| self.told(item))
            }
            Err(error) => {
                let status = error.into_status();
                self.refused(monotonic(), &addr, status)
            }
        }
    }

    fn told(&mut self, item: SessionItem) -> News {
        if item.managers != self.managers && !item.managers.is_empty() {
            (self.remember)(&item.managers);
            self.managers.clone_from(&item.managers);
            self.remotes.replace(item.managers.iter().map(|(_, addr)| addr.clone()));
        }
        News::Told(Box::new(item))
    }

    /// One call, to the manager of the session if there is one, else to those that failed least.
    fn call<B: serde::Serialize>(&mut self, call: Call, body: &B) -> Result<Answer, Status> {
        let mut failure = Status::new(Code::Unavailable, "no manager's address is known");
        let mut first = self.session.as_ref().map(|current| current.addr.clone());
        for _ in 0..ATTEMPTS.min(self.remotes.len().max(1)) {
            if self.is_stopping() {
                break;
            }
            let Some(addr) = first.take().or_else(|| self.remotes.choose()) else { break };
            let called = self
                .connect(&addr)
                .and_then(|mut client| client.call(call, body, ATTEMPT).map_err(ClientError::into_status));
            match called {
                Ok(answer) => return Ok(answer),
                Err(status) if !status.code.is_transient() && status.code != Code::Unauthenticated => {
                    return Err(status);
                }
                Err(status) => {
                    self.remotes.failed(&addr);
                    failure = status;
                }
            }
        }
        Err(failure)
    }
}

impl Swarm for Outside {
    fn wait(&mut self, deadline: Instant) -> News {
        if self.is_stopping() {
            return News::Stop;
        }
        let now = monotonic();
        if self.session.is_some() {
            return self.listen(deadline);
        }
        // With a certificate that is over there is nothing to be had but a new one.
        let expired = self.own.identity().is_expired(wall_ms());
        if !expired && now >= self.retry_at {
            return match self.begin(now) {
                News::Nothing if self.session.is_some() => News::Connected,
                news => news,
            };
        }
        let until = if expired { deadline } else { deadline.min(self.retry_at) };
        match self.stop.recv_until(until) {
            Received::TimedOut => News::Nothing,
            Received::Item(()) | Received::Closed => {
                self.stopped = true;
                News::Stop
            }
        }
    }

    fn revision(&mut self) -> Revision {
        self.revision
    }

    fn issue(&mut self, request: &IssueRequest) -> Result<Answer, Status> {
        self.call(Call::Issue, request)
    }

    fn report(&mut self, request: &ReportRequest) -> Result<Answer, Status> {
        self.call(Call::Report, request)
    }

    fn is_stopping(&self) -> bool {
        self.stopped || matches!(self.stop.recv_until(Instant::default()), Received::Item(()) | Received::Closed)
    }
}

/// A manager's word that this node is no longer part of the swarm. It comes over a connection whose other side has proved
/// to be a manager, and only after that has made sure.
pub fn is_removal(status: &Status) -> bool {
    status.code == Code::PermissionDenied && status.message.ends_with("was removed from the swarm")
}

/// The swarm's roots by somebody's word: believed only if our own certificate leads to them.
fn fetch_roots(addr: &str) -> Option<String> {
    let config = pki::client_config(None, pki::Trust::Anything).ok()?;
    let server_name = pki::manager_name();
    let target = crate::client::TlsTarget { addr: addr.to_owned(), server_name, config, expected: None, hello: None };
    let mut client = Client::tls(target, ATTEMPT).ok()?;
    match client.call(Call::GetRoot, &(), ATTEMPT) {
        Ok(Answer::Root { root }) => Some(root),
        _ => None,
    }
}
