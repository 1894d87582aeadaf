//! What other threads of this node have done and tell the net thread.

use super::*;

impl NodeHandler {
    pub(super) fn complete(&mut self, now: Instant, completion: Completion, out: &mut Outbox) {
        match completion {
            Completion::Active(active) => {
                self.activate(*active);
                self.announce(now, out);
            }
            Completion::Replies(replies) => self.raft_replies(now, replies, out),
            Completion::Outcomes(outcomes) => {
                for (token, outcome) in outcomes {
                    let result = ProposalResult::Applied(outcome);
                    self.drive(now, Event::Outcome { token, result }, out);
                }
                if self.watched.load(Relaxed) {
                    self.drive(now, Event::StoreMoved, out);
                }
            }
            Completion::Moved => self.drive(now, Event::StoreMoved, out),
            Completion::Leadership(leadership) => {
                log_leadership(&self.leadership, &leadership, self.identity.node_id);
                self.leadership = leadership;
                self.announce(now, out);
            }
            Completion::Peers(members) => {
                self.set_peers(now, members, out);
                self.announce(now, out);
            }
            Completion::Departed(nodes) => out.commands.push(Command::Judge(nodes)),
            Completion::Fetch(fetch) => self.begin_fetch(fetch, out),
            Completion::Served { stream, body, end } => {
                if end || !self.serving.contains_key(&stream) {
                    self.serving.remove(&stream);
                    self.answered.remove(&stream);
                } else {
                    *self.answered.entry(stream).or_default() += body.len() as u64;
                }
                out.commands.push(Command::Answer { stream, body, end });
            }
            Completion::NotServed { stream, status } => {
                self.serving.remove(&stream);
                out.refuse(stream, status);
            }
            Completion::Taken(position, bytes) => {
                if let Some(fetching) = self.fetching.as_ref().filter(|f| f.fetch.mark.position == position) {
                    out.commands.push(Command::Grant { token: fetching.token, bytes });
                }
            }
            Completion::FetchEnded(position) => {
                if let Some(fetching) = self.fetching.take_if(|f| f.fetch.mark.position == position) {
                    out.commands.push(Command::Abandon { token: fetching.token });
                    // It may be the end of one before, of the same place: then that of this one must not stay half done.
                    self.transfer(Transfer::Abort);
                }
            }
            Completion::Hint(node, addr) => {
                self.hints.insert(node, addr);
                self.dial_peers(out);
            }
            Completion::TurnedAway(status) => self.peer_refused_us(None, &status),
            Completion::Ask(ask) => self.ask(now, ask, out),
            Completion::Shutdown => {
                if self.stop.has_departed() {
                    self.answer_leaving(now, out);
                }
                out.commands.push(Command::Shutdown);
            }
        }
    }
}
