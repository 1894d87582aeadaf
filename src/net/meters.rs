//! What the socket loop counts.

use crate::sys::metrics::{Counter, Gauge, Metrics};

/// Whose a connection is, for the gauge of open connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Dialled or accepted, not yet known whose.
    Handshaking,
    /// On the local socket.
    Local,
    /// On TLS without a certificate in force.
    Anonymous,
    /// A worker's.
    Worker,
    /// A manager's.
    Manager,
    /// HTTP.
    Http,
}

/// Why bytes were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Malformed {
    /// The frame's header.
    Header,
    /// The frame is too long.
    Length,
    /// The frame's body.
    Body,
    /// The frame does not belong here or now.
    Order,
    /// HTTP.
    Http,
}

/// Every counter of the loop, looked up once.
#[derive(Debug)]
pub(super) struct Meters {
    connections: [Gauge; 6],
    malformed: [Counter; 5],
    pub received_bytes: Counter,
    pub sent_bytes: Counter,
    pub received_frames: Counter,
    pub sent_frames: Counter,
    /// System calls that read from or write to a socket, or wait for sockets.
    pub calls: Counter,
    pub handshakes: Counter,
    pub failed_handshakes: Counter,
    pub dials: Counter,
    pub failed_dials: Counter,
    /// Raft frames that found no connection or a full queue.
    pub dropped_appends: Counter,
    pub dropped_urgent: Counter,
    /// Connections closed because their other side does not read.
    pub slow_readers: Counter,
    /// Connections closed to make room, or because their time was over before they authenticated.
    pub evicted: Counter,
    /// Stream parts beyond credit: a mistake of the handler's or of the other side.
    pub over_credit: Counter,
    /// Requests that did not pass the route table or a limit.
    pub refused_requests: Counter,
}

impl Meters {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let class = |name| metrics.gauge(&format!("skep_net_connections{{class=\"{name}\"}}"));
        let malformed = |cause| metrics.counter(&format!("skep_net_malformed_total{{cause=\"{cause}\"}}"));
        Self {
            connections: ["handshaking", "local", "anonymous", "worker", "manager", "http"].map(class),
            malformed: ["header", "length", "body", "order", "http"].map(malformed),
            received_bytes: metrics.counter("skep_net_received_bytes_total"),
            sent_bytes: metrics.counter("skep_net_sent_bytes_total"),
            received_frames: metrics.counter("skep_net_received_frames_total"),
            sent_frames: metrics.counter("skep_net_sent_frames_total"),
            calls: metrics.counter("skep_net_system_calls_total"),
            handshakes: metrics.counter("skep_net_handshakes_total{result=\"ok\"}"),
            failed_handshakes: metrics.counter("skep_net_handshakes_total{result=\"failed\"}"),
            dials: metrics.counter("skep_net_dials_total{result=\"ok\"}"),
            failed_dials: metrics.counter("skep_net_dials_total{result=\"failed\"}"),
            dropped_appends: metrics.counter("skep_net_dropped_raft_total{lane=\"bulk\"}"),
            dropped_urgent: metrics.counter("skep_net_dropped_raft_total{lane=\"urgent\"}"),
            slow_readers: metrics.counter("skep_net_slow_readers_total"),
            evicted: metrics.counter("skep_net_evicted_total"),
            over_credit: metrics.counter("skep_net_over_credit_total"),
            refused_requests: metrics.counter("skep_net_refused_requests_total"),
        }
    }

    pub(super) const fn open(&self, class: Class) -> &Gauge {
        &self.connections[class as usize]
    }

    pub(super) const fn malformed(&self, cause: Malformed) -> &Counter {
        &self.malformed[cause as usize]
    }
}
