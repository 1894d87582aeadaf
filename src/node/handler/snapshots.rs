//! Snapshots on their way from here and to here. The bytes move between the transfer thread and the socket loop; this
//! keeps count of who fetches what, and takes a broken transfer up again.

use super::*;

/// A broken snapshot transfer is taken up again so often without receiving anything.
const FETCH_ATTEMPTS: u32 = 6;
/// Before the first of these attempts; doubled for each.
const FETCH_PAUSE: Duration = Duration::from_millis(100);
/// A whole snapshot may take this long.
const FETCH_DEADLINE_MS: u32 = 600_000;

/// A snapshot on its way to this node.
pub(super) struct Fetching {
    pub(super) fetch: FetchSnapshot,
    pub(super) token: u64,
    received: u64,
    /// Attempts since something was received.
    attempts: u32,
    /// When to ask again, after the connection broke.
    pub(super) retry_at: Option<Instant>,
}

impl NodeHandler {
    pub(super) fn serve_snapshot(&mut self, request: &Incoming, out: &mut Outbox) {
        let (Some(member), Some(node)) = (&self.member, request.caller.node_id()) else { return };
        let wanted: SnapshotRequest = match crate::codec::envelope::decode(&request.body, request.body.len()) {
            Ok(wanted) => wanted,
            Err(error) => {
                let status = Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"));
                out.refuse(request.stream, status);
                return;
            }
        };
        let SnapshotRequest { position, offset } = wanted;
        let job = Transfer::Serve { stream: request.stream, position, offset };
        if member.transfer.try_send(job).is_err() {
            out.refuse(request.stream, Status::new(Code::ResourceExhausted, "too many snapshots are being sent"));
            return;
        }
        self.serving.insert(request.stream, node);
        self.raft.link(raft::Event::SnapshotServing { node });
    }

    pub(super) fn begin_fetch(&mut self, fetch: FetchSnapshot, out: &mut Outbox) {
        if let Some(old) = &mut self.fetching {
            out.commands.push(Command::Abandon { token: old.token });
            if (old.fetch.from, old.fetch.mark.position) == (fetch.from, fetch.mark.position) {
                // The leader lost sight of this fetch and offers the same again: what was received is kept.
                old.attempts = 0;
                self.call_for_snapshot(out);
                return;
            }
        }
        self.fetching = None;
        log::info!("fetching a snapshot at log index {} from node {}", fetch.mark.position.index, fetch.from);
        let Some(member) = &self.member else { return };
        if member.transfer.try_send(Transfer::Begin(fetch.mark.clone())).is_err() {
            self.raft.link(raft::Event::SnapshotNotFetched { position: fetch.mark.position });
            return;
        }
        self.fetching = Some(Fetching { fetch, token: 0, received: 0, attempts: 0, retry_at: None });
        self.call_for_snapshot(out);
    }

    pub(super) fn call_for_snapshot(&mut self, out: &mut Outbox) {
        let token = self.own_token();
        let Some(fetching) = &mut self.fetching else { return };
        fetching.token = token;
        fetching.attempts += 1;
        fetching.retry_at = None;
        if fetching.received > 0 {
            log::info!("going on with the snapshot after byte {}", fetching.received);
        }
        let request = SnapshotRequest { position: fetching.fetch.mark.position, offset: fetching.received };
        out.commands.push(Command::Call {
            token,
            to: Target::Node(fetching.fetch.from),
            call: Call::Snapshot,
            deadline_ms: FETCH_DEADLINE_MS,
            forwarded: None,
            body: crate::codec::envelope::encode(&request).into(),
        });
    }

    pub(super) fn fetch_replied(&mut self, reply: Reply) {
        let Some(fetching) = &mut self.fetching else { return };
        match reply {
            Reply::Answer { body, end } => {
                fetching.received += body.len() as u64;
                fetching.attempts = 0;
                if !body.is_empty() {
                    self.transfer(Transfer::Part(body));
                }
                if end {
                    self.transfer(Transfer::End);
                }
            }
            Reply::Refused(status) => {
                log::warn!("the snapshot is refused: {status}");
                self.transfer(Transfer::Abort);
            }
            Reply::Lost { .. } if fetching.attempts < FETCH_ATTEMPTS => {
                // A redial takes a moment; what was received is kept.
                fetching.retry_at = Some(monotonic() + FETCH_PAUSE * (1 << fetching.attempts));
            }
            Reply::Lost { .. } => {
                log::warn!("the snapshot's sender cannot be reached");
                self.transfer(Transfer::Abort);
            }
        }
    }

    pub(super) fn transfer(&mut self, transfer: Transfer) {
        if let Some(member) = &self.member
            && member.transfer.try_send(transfer).is_err()
        {
            // Only possible when the disk takes nothing for thousands of parts; credit bounds them to a few.
            log::error!("the transfer thread is stuck");
        }
    }
}
