//! A watch that outlives its connection.

use std::time::Duration;

use super::{Client, ClientError, Pauses};
use crate::codec::frame::{END, FrameKind, INITIAL_CREDIT};
use crate::codec::{envelope, request};
use crate::sys::time::{Instant, monotonic};
use crate::types::api::{Call, WatchItem, WatchRequest};
use crate::types::limits::MAX_FRAME_BYTES;
use crate::types::{Code, Lineage, Revision, Status};

/// A stream of [`WatchItem`]s. As an iterator it waits for ever and ends after an error.
#[derive(Debug)]
pub struct Watch {
    client: Client,
    request: WatchRequest,
    /// How long to try to connect again.
    patience: Duration,
    /// The stream on the present connection; `None` when there is none.
    stream: Option<u32>,
    /// Everything up to here was handed out.
    position: Option<(Lineage, Revision)>,
    /// A part of the snapshot was handed out and its end was not: there is nothing to resume from.
    mid_snapshot: bool,
    /// Whether [`WatchItem::Begin`] was handed out.
    begun: bool,
    /// When the stream broke, and the pauses since; `None` while items arrive.
    outage: Option<(Instant, Pauses)>,
    /// Bytes consumed and not granted again.
    ungranted: u32,
    ended: bool,
}

impl Watch {
    pub(super) fn begin(client: Client, request: WatchRequest, patience: Duration) -> Result<Self, ClientError> {
        let position = request.from;
        let mut watch = Self {
            client,
            request,
            patience,
            stream: None,
            position,
            mid_snapshot: false,
            begun: false,
            outage: None,
            ungranted: 0,
            ended: false,
        };
        watch.open(monotonic() + patience)?;
        Ok(watch)
    }

    /// Where the watch stands: a later one resumes here.
    pub const fn position(&self) -> Option<(Lineage, Revision)> {
        self.position
    }

    /// The next item, or `None` once the deadline has passed. Errors: [`Code::OutOfRange`] when the events after the
    /// position are gone, and whatever keeps the watch from resuming.
    pub fn next_until(&mut self, deadline: Option<Instant>) -> Result<Option<WatchItem>, ClientError> {
        loop {
            if self.stream.is_none() {
                if deadline.is_some_and(|deadline| deadline <= monotonic()) {
                    return Ok(None);
                }
                self.resume()?;
                continue;
            }
            match self.receive(deadline) {
                Ok(item) => {
                    if let Some(item) = self.admit(item) {
                        return Ok(Some(item));
                    }
                }
                Err(ClientError::Lost(status)) if status.code == Code::DeadlineExceeded => return Ok(None),
                Err(error) if error.may_pass() => self.pause(error)?,
                Err(error) => return Err(error),
            }
        }
    }

    /// Notes how far the item takes the watch; `None` for one that the caller has seen the like of.
    fn admit(&mut self, item: WatchItem) -> Option<WatchItem> {
        self.outage = None;
        match &item {
            WatchItem::Snapshot { .. } => self.mid_snapshot = true,
            WatchItem::Begin { lineage, revision } => {
                self.mid_snapshot = false;
                let again = std::mem::replace(&mut self.begun, true);
                if again {
                    return None;
                }
                self.position = Some((*lineage, *revision));
            }
            WatchItem::Change { revision, .. } | WatchItem::Mark { revision } => {
                let lineage = self.position.map_or(self.client.hello().lineage, |(lineage, _)| lineage);
                self.position = Some((lineage, *revision));
            }
        }
        Some(item)
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<WatchItem, ClientError> {
        let stream = self.stream;
        let connection =
            self.client.connection.as_mut().ok_or_else(|| {
                ClientError::Lost(Status::new(Code::Unavailable, "the connection of the watch is gone"))
            })?;
        loop {
            let (header, body) = connection.receive(deadline)?;
            if Some(header.stream) != stream {
                continue;
            }
            match header.kind {
                FrameKind::Answer if header.flags & END != 0 => {
                    return Err(ClientError::Lost(Status::new(Code::Unavailable, "the manager ended the watch")));
                }
                FrameKind::Answer => {
                    self.ungranted += header.length;
                    if self.ungranted >= INITIAL_CREDIT / 2 {
                        let credit = self.ungranted.to_le_bytes();
                        connection.send(FrameKind::Credit, header.stream, &credit, monotonic() + self.patience)?;
                        self.ungranted = 0;
                    }
                    return envelope::decode(&body, MAX_FRAME_BYTES).map_err(ClientError::undecodable);
                }
                FrameKind::Error => return Err(ClientError::refusal(&body)),
                FrameKind::Credit => {}
                _ => return Err(ClientError::garbled("a frame that is no part of a watch")),
            }
        }
    }

    /// Connects again and continues after the position.
    fn resume(&mut self) -> Result<(), ClientError> {
        if self.mid_snapshot {
            let status = Status::new(Code::Unavailable, "the connection broke within the snapshot")
                .with_hint("begin the watch again: a part of a snapshot has no position to resume from");
            return Err(ClientError::Lost(status));
        }
        self.request.from = self.position;
        self.client.connection = None;
        match self.open(monotonic() + self.patience) {
            Err(error) if error.may_pass() => self.pause(error),
            result => result,
        }
    }

    /// Waits before the next attempt, or gives up with the last attempt's error.
    fn pause(&mut self, error: ClientError) -> Result<(), ClientError> {
        self.stream = None;
        let (began, pauses) = self.outage.get_or_insert_with(|| (monotonic(), Pauses::default()));
        if pauses.wait(*began + self.patience) { Ok(()) } else { Err(error) }
    }

    fn open(&mut self, deadline: Instant) -> Result<(), ClientError> {
        let body = request::encode(Call::Watch, u32::MAX, None, &envelope::encode(&self.request));
        let connection = self.client.connection(deadline)?;
        let stream = connection.open(&body, deadline)?;
        // One change may be larger than the first credit; with a frame's worth on top every item fits at any time.
        let credit = u32::try_from(MAX_FRAME_BYTES).expect("4 MiB fits into 32 bits");
        connection.send(FrameKind::Credit, stream, &credit.to_le_bytes(), deadline)?;
        self.stream = Some(stream);
        self.ungranted = 0;
        Ok(())
    }
}

impl Iterator for Watch {
    type Item = Result<WatchItem, ClientError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let item = self.next_until(None).transpose();
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }
}
