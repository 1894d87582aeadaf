//! What the links to other managers tell: who is there, how far away, and who turns this node away.

use super::*;

impl NodeHandler {
    pub(super) fn peer_greeted(&mut self, caller: &Caller, hello: &Hello) -> Result<(), Status> {
        let Some(member) = &self.member else { return Ok(()) };
        let verdict = member.store.view(|state| self.greetings.judge(caller, hello, state, member.lineage));
        match verdict {
            Verdict::Welcome => {}
            Verdict::WelcomeNew(peers) => {
                // A queue that is full of snapshots to write drops it: what is not remembered is judged by the floors.
                let _ = member.jobs.try_send(Job::Remember(peers));
            }
            Verdict::Refused(status) => return Err(status),
        }
        let known = self.peers.iter().find(|peer| peer.node_id == hello.node_id);
        if known.is_some_and(|peer| peer.addr != hello.advertise) && !hello.advertise.is_empty() {
            self.hints.insert(hello.node_id, hello.advertise.clone());
        }
        Ok(())
    }

    /// A manager, this one if it is known which, does not take this node.
    pub(super) fn peer_refused_us(&mut self, peer: Option<NodeId>, status: &Status) {
        if self.member.is_none() {
            return;
        }
        let by = peer.map_or_else(|| "a manager".to_owned(), |peer| format!("manager {peer}"));
        match Greetings::meaning(status) {
            Some(Stopped::Outlived(why)) => self.outlived(monotonic(), peer, &by, why),
            Some(stopped) => {
                log::error!("{by} turned this node away: {status}");
                self.stop.stop(stopped);
            }
            None => {
                let now = monotonic();
                let told = format!("{by} turned this node away: {status}{}", in_brackets(&status.hint));
                let known = self.refusals.insert(peer, (now, told.clone()));
                // It is dialled again and again.
                if known.is_none_or(|(at, before)| before != told || now.since(at) > REFUSAL_LASTS) {
                    log::warn!("{told}");
                }
            }
        }
    }

    /// A manager of a later history turned this one away.
    fn outlived(&mut self, now: Instant, peer: Option<NodeId>, by: &str, why: String) {
        let leaderless = Duration::from_millis(self.raft.report().leaderless_ms);
        match self.outlived.told(now, peer, &why, leaderless) {
            Reaction::Stop => {
                log::error!("{by} turned this node away: {why}");
                self.stop.stop(Stopped::Outlived(why));
            }
            Reaction::Log => log::error!(
                "{by} turned this node away: {why}; this node goes on. Is that swarm the one you want? Then stop this \
                 manager, move its data directory away and start it with --join HOST:PORT and a token of that swarm; \
                 otherwise stop the managers of that one"
            ),
            Reaction::GoOn => {}
        }
    }

    pub(super) fn peer_connected(&mut self, peer: NodeId, out: &mut Outbox) {
        let addr = self.peers.iter().find(|member| member.node_id == peer).map(|member| member.addr.clone());
        let link = self.links.entry(peer).or_insert_with(|| LinkReport {
            node_id: peer,
            addr: String::new(),
            alive: false,
            rtt_us: 0,
            clock_offset_ms: 0,
            sync_us: 0,
            disk_low: false,
        });
        link.alive = true;
        self.refusals.remove(&Some(peer));
        self.addresses.found(peer);
        link.addr = addr.unwrap_or_default();
        self.raft.link(raft::Event::Link { node: peer, up: true, refused: false });
        self.announce(monotonic(), out);
    }

    pub(super) fn peer_disconnected(&mut self, peer: NodeId, refused: bool, out: &mut Outbox) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.alive = false;
            link.rtt_us = 0;
        }
        if self.peers.iter().any(|member| member.node_id == peer) {
            self.addresses.lost(monotonic(), peer);
        }
        // A hint that leads nowhere must not hide the address that the members' list has.
        if self.hints.remove(&peer).is_some() {
            self.dial_peers(out);
        }
        self.raft.link(raft::Event::Link { node: peer, up: false, refused });
        self.announce(monotonic(), out);
    }

    pub(super) fn peer_measured(&mut self, peer: NodeId, rtt_us: u64, clock_offset_ms: i64, ping: Ping) {
        if let Some(link) = self.links.get_mut(&peer) {
            link.rtt_us = rtt_us;
            link.clock_offset_ms = clock_offset_ms;
            link.sync_us = ping.sync_us;
            link.disk_low = ping.disk_low;
        }
        let mark = (Index(ping.mark_index), ping.mark_sum);
        self.raft.link(raft::Event::Measured { node: peer, rtt_us, sync_us: ping.sync_us, mark });
        if self.low_disks.contains(&peer) != ping.disk_low {
            if ping.disk_low {
                self.low_disks.insert(peer)
            } else {
                self.low_disks.remove(&peer)
            };
            self.raft.link(raft::Event::PeerDisk { node: peer, low: ping.disk_low });
        }
    }
}
