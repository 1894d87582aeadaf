//! Who leads and who belongs to the swarm: tells the requests machine, dials the members where they listen now, and tells the
//! swarm when this one has moved.

use super::*;

/// A member that is taken out keeps its connections so long: the answer to its request is on its way to it.
const PARTING: Duration = Duration::from_millis(500);

impl NodeHandler {
    pub(super) fn announce(&mut self, now: Instant, out: &mut Outbox) {
        self.refreshed = None;
        self.refresh(now);
        let Some(member) = &self.member else { return };
        let context = &member.requests.service().control.context;
        let no_majority = match self.settling {
            Some(_) => None,
            None => member.store.view(|state| control::no_majority(state, context)),
        };
        let leadership = Leadership { leader: self.leadership.leader, serving: self.leadership.serving, no_majority };
        self.drive(now, Event::Leadership(leadership), out);
        self.move_if_needed(out);
    }

    /// With a certificate that had ended, the others turned this manager away. With the next one they do not, and callers
    /// wait for the moment that it takes to reach them. Who has a leader has a majority, and nothing to look at.
    pub(super) fn look_at_certificate(&mut self, now: Instant, out: &mut Outbox) {
        if self.leadership.leader.is_some() && !self.was_expired {
            return;
        }
        let is_expired = self.own.identity().is_expired(wall_ms());
        if std::mem::replace(&mut self.was_expired, is_expired) && !is_expired {
            out.commands.push(Command::Redial);
            self.settling = Some(now + SETTLING);
            self.announce(now, out);
        }
    }

    pub(super) fn set_peers(&mut self, now: Instant, members: Vec<Member>, out: &mut Outbox) {
        let old = std::mem::replace(&mut self.peers, members);
        self.parting.retain(|(_, member)| !self.peers.iter().any(|peer| peer.node_id == member.node_id));
        for member in old {
            if !self.peers.iter().any(|peer| peer.node_id == member.node_id) {
                self.links.remove(&member.node_id);
                self.addresses.found(member.node_id);
                self.parting.push((now + PARTING, member));
            }
        }
        for link in self.links.values_mut() {
            if let Some(member) = self.peers.iter().find(|member| member.node_id == link.node_id) {
                link.addr.clone_from(&member.addr);
            }
        }
        for member in &self.peers {
            let alive = self.links.get(&member.node_id).is_some_and(|link| link.alive);
            if !alive && member.node_id != self.identity.node_id {
                self.addresses.lost(now, member.node_id);
            }
        }
        self.dial_peers(out);
    }

    /// Asks a manager that is connected where a member listens that does not answer. An address that came this way and did
    /// not answer either makes room for that of the members' list again.
    pub(super) fn ask_for_addresses(&mut self, now: Instant, out: &mut Outbox) {
        let connected: Vec<NodeId> = self.links.values().filter(|link| link.alive).map(|link| link.node_id).collect();
        let mut dial = false;
        for (node, asked) in self.addresses.due(now, &connected) {
            let failed = self.hints.remove(&node);
            dial |= failed.is_some();
            let member = self.peers.iter().find(|member| member.node_id == node);
            let (Some(raft_id), Some(asked)) = (member.map(|member| member.raft_id), asked) else { continue };
            let token = self.own_token();
            self.resolving.insert(token, (node, failed));
            out.commands.push(Command::Call {
                token,
                to: Target::Node(asked),
                call: Call::ResolveAddress,
                deadline_ms: OWN_DEADLINE_MS,
                forwarded: None,
                body: crate::codec::envelope::encode(&ResolveAddress { raft_id }).into(),
            });
        }
        if dial {
            self.dial_peers(out);
        }
    }

    /// Another manager said where a member listens, or did not. It may know less than this one: what the member said
    /// itself meanwhile stands, and where it did not answer it is not looked for again before the members' list was tried.
    pub(super) fn resolved(&mut self, node: NodeId, failed: Option<&str>, reply: Reply, out: &mut Outbox) {
        let Reply::Answer { body, .. } = reply else { return };
        let Ok(Answer::Address(addr)) = crate::codec::envelope::decode(&body, body.len()) else { return };
        let alive = self.links.get(&node).is_some_and(|link| link.alive);
        let known = self.peers.iter().find(|member| member.node_id == node);
        let is_known = known.is_none_or(|member| member.addr == addr) || self.hints.contains_key(&node);
        if alive || is_known || failed == Some(addr.as_str()) {
            return;
        }
        log::info!("member {node} is said to listen at {addr}: dialling it there");
        self.hints.insert(node, addr);
        self.dial_peers(out);
    }

    /// Closes the connections of those who had their time to hear that they are no longer members.
    pub(super) fn part(&mut self, now: Instant, out: &mut Outbox) {
        let (due, parting) = std::mem::take(&mut self.parting).into_iter().partition(|(due, _)| *due <= now);
        self.parting = parting;
        let due: Vec<(Instant, Member)> = due;
        if due.is_empty() {
            return;
        }
        self.dial_peers(out);
        out.commands.extend(due.into_iter().map(|(_, member)| Command::Disconnect(member.node_id)));
    }

    /// Apply may see that this node left before the leader's answer is here, and the node stops then: whoever asked for
    /// it gets what is true.
    pub(super) fn answer_leaving(&mut self, now: Instant, out: &mut Outbox) {
        for stream in std::mem::take(&mut self.leaving) {
            self.drive(now, Event::Cancelled(stream), out);
            out.commands.push(Command::Answer { stream, body: control::encode(&Answer::Done), end: true });
        }
    }

    pub(super) fn dial_peers(&self, out: &mut Outbox) {
        let own = self.identity.node_id;
        let parting = self.parting.iter().map(|(_, member)| member);
        let peers = self.peers.iter().chain(parting).filter(|member| member.node_id != own);
        let dial = |member: &Member| {
            let addr = self.hints.get(&member.node_id).unwrap_or(&member.addr);
            (member.node_id, addr.clone())
        };
        // Without any state there is nobody but those that were found elsewhere.
        let found = self.hints.iter().filter(|(node, _)| self.peers.is_empty() && **node != own);
        let found = found.map(|(node, addr)| (*node, addr.clone()));
        out.commands.push(Command::Peers(peers.map(dial).chain(found).collect()));
    }

    /// Tells the swarm when this node listens elsewhere than the members' list says.
    fn move_if_needed(&mut self, out: &mut Outbox) {
        let own = self.peers.iter().find(|member| member.node_id == self.identity.node_id);
        let (Some(own), Some(leader), None) = (own, self.leadership.leader, self.moving) else { return };
        if own.addr == self.identity.advertise {
            return;
        }
        let addr = self.identity.advertise.clone();
        log::info!("this manager moved from {} to {addr}: telling the swarm", own.addr);
        let token = self.own_token();
        if leader == self.identity.node_id {
            let order = Order::SetAddress { node_id: leader, addr };
            if self.ask_raft(raft::Event::Order { token, order }) {
                self.moving = Some(token);
            }
            return;
        }
        self.moving = Some(token);
        out.commands.push(Command::Call {
            token,
            to: Target::Node(leader),
            call: Call::SetAddress,
            deadline_ms: OWN_DEADLINE_MS,
            forwarded: None,
            body: crate::codec::envelope::encode(&SetAddressRequest { addr }).into(),
        });
    }
}

pub(super) fn log_leadership(before: &raft::Leadership, after: &raft::Leadership, own: NodeId) {
    match after.leader {
        Some(leader) if leader == own && after.serving => log::info!("this manager leads in term {}", after.term),
        Some(leader) if leader != own && before.leader != Some(leader) => {
            log::info!("manager {leader} leads in term {}", after.term);
        }
        None if before.leader.is_some() => log::warn!("no leader is known in term {}", after.term),
        _ => {}
    }
}
