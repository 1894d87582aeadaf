//! Carries what the raft, log and apply threads have to say to the net thread and the snapshot workers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use bytes::Bytes;

use super::greeting::is_demoted;
use super::handler::Active;
use super::leader::LeaderHandle;
use super::snapshots::Job;
use super::stop::{StopCell, Stopped};
use crate::net::handler::StreamId;
use crate::net::run::NetHandle;
use crate::raft::run::Outlet;
use crate::raft::{FetchSnapshot, Leadership, Reply, Stop};
use crate::store::Store;
use crate::sys::queue::Sender;
use crate::sys::time::Instant;
use crate::types::api::Call;
use crate::types::{Member, NodeId, Outcome, Position, Status};

/// A request of this node's own, asked of its own services.
#[derive(Debug)]
pub struct Ask {
    /// What.
    pub call: Call,
    /// Its envelope.
    pub body: Bytes,
    /// When nobody waits for the answer any more.
    pub deadline: Instant,
    /// This node's certificate is over.
    pub expired: bool,
    /// Where the answer goes.
    pub reply: Sender<Result<Bytes, Status>>,
}

/// What other threads send to the net thread.
#[derive(Debug)]
pub enum Completion {
    /// The node has its place in the swarm: requests are served from now on.
    Active(Box<Active>),
    /// Answers of raft.
    Replies(Vec<Reply>),
    /// Outcomes of proposals.
    Outcomes(Vec<(u64, Outcome)>),
    /// The store moved.
    Moved,
    /// Who leads changed.
    Leadership(Leadership),
    /// Members changed.
    Peers(Vec<Member>),
    /// These nodes were removed, or are managers no more; `None`: any may have been.
    Departed(Option<Vec<NodeId>>),
    /// A snapshot is to be fetched.
    Fetch(FetchSnapshot),
    /// A part of a snapshot for a peer.
    Served {
        /// Where to.
        stream: StreamId,
        /// The bytes.
        body: Bytes,
        /// Nothing follows.
        end: bool,
    },
    /// A snapshot cannot be served.
    NotServed {
        /// Where to.
        stream: StreamId,
        /// Why.
        status: Status,
    },
    /// So many bytes of a fetched snapshot are written: the sender may go on.
    Taken(Position, u32),
    /// The fetch of the snapshot of this place is over, one way or the other.
    FetchEnded(Position),
    /// A manager answers at this address, whatever the members' list says.
    Hint(NodeId, String),
    /// A manager that was called by its address turned this node away.
    TurnedAway(Status),
    /// This node asks its own services something.
    Ask(Ask),
    /// Close everything.
    Shutdown,
}

/// The way out for the raft, log and apply threads.
#[derive(Debug)]
pub struct Post {
    /// The net thread.
    pub net: NetHandle<Completion>,
    /// Writes snapshots.
    pub snapshots: Sender<Job>,
    /// Runs the services of a leader.
    pub leader: LeaderHandle,
    /// This node.
    pub node_id: NodeId,
    /// Its store.
    pub store: Arc<Store>,
    /// Ends the node.
    pub stop: Arc<StopCell<Stopped>>,
    /// Somebody watches the store.
    pub watched: Arc<AtomicBool>,
}

impl Post {
    fn tell_watchers(&self) {
        if self.watched.load(Relaxed) {
            self.send(Completion::Moved);
        }
    }

    fn send(&self, completion: Completion) {
        if self.net.send(completion).is_err() {
            // Answers must not be lost, and nobody can wait for room.
            log::error!("the net thread does not take what raft and apply report: it is stuck");
            std::process::abort();
        }
    }
}

impl Outlet for Post {
    fn send(&self, to: NodeId, body: Vec<u8>, urgent: bool) -> bool {
        self.net.send_raft(to, body, urgent)
    }

    fn replies(&self, replies: Vec<Reply>) {
        let replies = self.leader.take_replies(replies);
        if !replies.is_empty() {
            self.send(Completion::Replies(replies));
        }
    }

    fn outcomes(&self, outcomes: Vec<(u64, Outcome)>) {
        self.leader.moved();
        let outcomes = self.leader.take_outcomes(outcomes);
        if outcomes.is_empty() {
            self.tell_watchers();
        } else {
            self.send(Completion::Outcomes(outcomes));
        }
    }

    fn moved(&self) {
        self.leader.moved();
        self.tell_watchers();
    }

    fn departed(&self, nodes: Option<Vec<NodeId>>) {
        self.send(Completion::Departed(nodes));
    }

    fn leadership(&self, leadership: Leadership) {
        self.leader.leadership(leadership);
        self.send(Completion::Leadership(leadership));
    }

    fn peers(&self, members: Vec<Member>) {
        self.send(Completion::Peers(members));
    }

    fn fetch_snapshot(&self, fetch: FetchSnapshot) {
        self.send(Completion::Fetch(fetch));
    }

    fn create_snapshot(&self) -> bool {
        // Other jobs wait there too: while one is written, there may be no room.
        self.snapshots.try_send(Job::Create).is_ok()
    }

    fn stop(&self, stop: Stop) {
        let stopped = match stop {
            Stop::Removed if self.store.view(|state| is_demoted(state, self.node_id)) => Stopped::Demoted,
            other => other.into(),
        };
        self.stop.stop(stopped);
    }
}
