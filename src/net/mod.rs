//! Connections: sockets, TLS, frames, streams and peers, on one thread.
//!
//! [`spawn`] starts the `net` thread: one readiness loop that owns every socket of the process. Who decides is a
//! [`handler::Handler`], called on that thread; what it wants done it leaves as [`handler::Command`]s. Other threads hold
//! a [`NetHandle`]: they send the handler completions, and Raft messages straight to a peer. [`channel`] makes the handle
//! before the loop runs, so that threads which need each other can be wired in any order.
//!
//! # A turn
//!
//! The loop waits for sockets, then: accepts, reads all that is readable and hands over every frame, takes what other
//! threads sent, does what is due, calls `turn_ended` once, and writes every connection with something new once. So many
//! small requests share one proposal, one write and one wake-up. Nothing in a turn blocks; names are looked up on threads
//! of their own. Without peers and deadlines the loop sleeps until a socket wakes it.
//!
//! # Connections
//!
//! Three listeners: TLS 1.3 (managers, workers, and nodes that have no certificate yet), the local socket (plain frames;
//! root and the daemon's owner by the kernel's word, or whoever the file mode admits), and HTTP for probes. A node that has
//! no certificate of its own yet serves the latter two.
//!
//! On TLS the certificate says who it is, and `routes` what each kind of caller may ask. Between managers each side's first
//! frame is its hello, and nothing else is heard before the handler accepted it; the side that was dialled answers with
//! its own only then, so that a hello received means a hello accepted. Everybody else receives one hello and sends none. A
//! hello that is marked with `END` announces a connection for calls of its sender alone: it is no link, nobody sends Raft
//! messages or pings on it.
//!
//! The certificate says who somebody is, and the store what it may do: [`handler::Handler::standing`] is asked for every
//! connection and every request, of the caller and of whom a manager asks for. A manager's certificate in the hands of a
//! demoted node is a worker's, good for calls and for no link. Who is removed or demoted loses what is open when
//! [`handler::Command::Judge`] comes, whoever dialled.
//!
//! A connection lives no longer than the certificate it was made with. One exception: managers that were all off past the
//! end of their certificates have no leader, who alone could renew them. Where [`handler::Handler::admits_expired`] says so, an
//! expired manager is a peer for a few seconds at a time: it sends and takes Raft messages, and asks for nothing but a certificate. Who breaks the rules of frames gets an `Error` on
//! stream 0 with the reason, and is closed after having had time to read it.
//!
//! # Peers
//!
//! Every manager dials every other; [`handler::Command::Peers`] says whom. A peer is sent to over the connection that was
//! dialled, else over the one it dialled. Links are pinged every second, and closed when nothing at all has come for
//! three. When the last link to a peer closes, its address is dialled at once, and only then is the handler told, with
//! whether the address refused: a process that is gone is known to be gone within milliseconds.
//!
//! # What is bounded
//!
//! | what | and beyond it |
//! |---|---|
//! | completions, Raft frames waiting for the loop | given back to their sender |
//! | bytes of appends waiting on a connection | the append is dropped and the handler told; Raft repeats itself |
//! | bytes of answers waiting on a connection | the connection is closed: its other side does not read |
//! | a stream of answers | waits for credit: the handler must send no more than that |
//! | open requests of a connection | `ResourceExhausted`, the connection goes on |
//! | a frame | 4 MiB, 64 KiB before authentication; the connection is closed |
//! | connections that have not authenticated, in all and per source | the oldest is closed, never the newest |
//! | connections of one worker | the oldest is closed |
//! | time to authenticate, time without a request for those who do not | the connection is closed |
//! | handshakes in a turn | the rest waits for the next turn; authenticated connections do not |
//!
//! Two lanes per connection: votes, heartbeats and their answers, pings, pongs and credit overtake appends and answers,
//! between frames and never inside one. The kernel is kept from taking more than 128 KiB ahead of the wire, because
//! nothing overtakes what it has taken.
//!
//! # Not here
//!
//! What a request means and who serves it (`requests`, and the services behind it), what certificates say (`pki`), who is
//! a member (the handler knows). No retries: a call is answered, refused or lost, once, and its caller decides.
//!
//! # Invariants
//!
//! - The handler hears of every request at most once, and of the end of every stream that it did not end itself.
//! - Every call gets exactly one last reply, unless it is abandoned, and never while it is being made.
//! - `connected` and `disconnected` alternate for each peer.
//! - Nothing that arrives can make the loop panic, and no connection can make another wait for more than its share of a
//!   turn.
//!
//! Files: `run` the loop, `accept` and `dial` the two ways a connection begins, `session` its life, `calls` streams and
//! credit, `peers` the decisions about peers (no sockets, no clock), `link` socket and TLS, `wire` frames, `connection` the
//! table, `http` the probes, `meters` the counters, `requests` the machine that gives every request its one answer.

mod accept;
mod calls;
mod connection;
mod dial;
#[doc(hidden)]
pub mod fuzz;
pub mod handler;
mod http;
mod link;
mod meters;
mod peers;
pub mod requests;
pub mod routes;
pub mod run;
mod session;
mod wire;

#[cfg(test)]
mod tests;

pub use run::{Config, Credentials, Limits, NetHandle, NetInbox, channel, spawn};
