//! Pings: round trips, clocks, and the links that have fallen silent.

use super::*;

impl<H: Handler> Net<H> {
    pub(super) fn ping(&mut self, id: ConnectionId, body: &Bytes) {
        let asked = match Ping::decode(body) {
            Ok(ping) => ping,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed ping: {error}")),
        };
        let Some(connection) = self.connections.get_mut(id) else { return };
        // What this node reports of itself is for managers.
        let report = if connection.class == Class::Manager { self.handler.ping() } else { Ping::default() };
        let pong = Ping { sent_ns: asked.sent_ns, wall_ms: wall_ms(), ..report };
        connection.link.lanes.push_urgent(FrameKind::Pong, 0, 0, pong.encode().into());
        self.answer_queued(id, false);
    }

    pub(super) fn pong(&mut self, id: ConnectionId, body: &Bytes) {
        let pong = match Ping::decode(body) {
            Ok(pong) => pong,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed pong: {error}")),
        };
        let Some(connection) = self.connections.get(id) else { return };
        let Some(peer) = connection.node() else { return };
        if connection.first_ping_ns.is_none_or(|first| pong.sent_ns < first) {
            return;
        }
        let Some(rtt_ns) = monotonic().as_nanos().checked_sub(pong.sent_ns) else { return };
        // The peer read its clock about half a round trip ago.
        let then_ms = wall_ms().saturating_sub(rtt_ns / 2_000_000);
        let offset_ms = i64::try_from(i128::from(pong.wall_ms) - i128::from(then_ms)).unwrap_or(i64::MAX);
        self.clocks.insert(peer, offset_ms);
        self.handler.measured(peer, rtt_ns / 1000, offset_ms, pong);
    }

    /// What is known of clocks, for a message about a certificate of this peer and the time: its own as it was when it
    /// could be reached, else the median of the others'.
    pub(super) fn clock_words(&self, peer: Option<NodeId>) -> Option<String> {
        if let Some(offset_ms) = peer.and_then(|peer| self.clocks.get(&peer)) {
            return Some(pki::clock_words("its clock", *offset_ms));
        }
        let mut offsets: Vec<i64> = self.clocks.values().copied().collect();
        offsets.sort_unstable();
        let median = offsets.get(offsets.len() / 2)?;
        Some(pki::clock_words("the clock of most other managers", *median))
    }

    /// Pings every link, and closes those from which nothing has come for too long.
    pub(in crate::net) fn ping_all(&mut self) {
        self.ping_scheduled = false;
        let links: Vec<_> = self.peers.links().collect();
        if !links.is_empty() {
            self.schedule_ping();
        }
        for id in links {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            if connection.missed >= self.settings.limits.missed_pings {
                log::info!("closing the connection with {}: it has been silent for too long", connection.addr);
                self.close(id);
                continue;
            }
            connection.missed += 1;
            self.send_ping(id);
        }
    }

    /// All links are pinged together, so that they cost one wake-up; without links there is none.
    pub(super) fn schedule_ping(&mut self) {
        if !self.ping_scheduled {
            self.ping_scheduled = true;
            self.timers.insert((self.now + self.settings.limits.ping, Timer::Ping));
        }
    }

    pub(super) fn send_ping(&mut self, id: ConnectionId) {
        let report = self.handler.ping();
        let ping = Ping { sent_ns: monotonic().as_nanos(), wall_ms: wall_ms(), ..report };
        if let Some(connection) = self.connections.get_mut(id) {
            connection.first_ping_ns.get_or_insert(ping.sent_ns);
            connection.link.lanes.push_urgent(FrameKind::Ping, 0, 0, ping.encode().into());
            self.mark_dirty(id);
        }
    }
}
