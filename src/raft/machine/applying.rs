//! Committed entries to apply, and what apply reports.

use super::*;

impl Machine {
    pub(super) fn hand_to_apply(&mut self, now: Instant) {
        while let Some(entry) = self.committed.front() {
            if self.deciding.is_some() || self.applying_bytes > MAX_APPLYING_BYTES {
                break;
            }
            let index = Index(entry.index);
            let must_be_durable =
                entry.entry_type == EntryType::EntryConfChange && !planted(Fault::MembershipBeforeCommitSynced);
            if must_be_durable && index > self.durable.hard_state.commit {
                // A crash between applying a membership change and writing its commit would bring back a
                // configuration that no longer counts.
                if index > self.commit_asked {
                    self.persist(now, None, Vec::new(), None, Vec::new());
                }
                break;
            }
            let entry = self.committed.pop_front().expect("front() was there");
            let bytes = entry_bytes(&entry);
            self.committed_bytes -= bytes;
            self.applying_bytes += bytes;
            self.handed.push_back((index, bytes));
            let token = self.take_token(index, Term(entry.term));
            if entry.entry_type == EntryType::EntryConfChange {
                let mut change = ConfChange::default();
                // Apply stops the node on an entry it cannot read; an empty change alters nothing here.
                let _ = change.merge_from_bytes(&entry.data);
                self.deciding = Some((index, change));
            } else if entry.data.is_empty() {
                // The first entry of a term, or a membership change that raft-rs replaced.
                if self.orders.proposed.as_ref().is_some_and(|proposed| proposed.index == index) {
                    self.membership_decided(index, None);
                }
            } else {
                self.changes_since_mark += 1;
                self.last_change = now;
            }
            self.effects.apply.push((entry, token));
        }
    }

    /// The caller that waits for this entry. Callers whose entries were overwritten are told.
    pub(super) fn take_token(&mut self, index: Index, term: Term) -> Option<Token> {
        while let Some(&(pending_index, pending_term, token)) = self.pending.front() {
            if pending_index > index {
                return None;
            }
            self.pending.pop_front();
            if pending_index == index && pending_term == term {
                return Some(token);
            }
            self.effects.replies.push(Reply::Lost(token));
        }
        None
    }

    pub(super) fn on_applied(&mut self, applied: Applied) {
        let index = applied.position.index;
        // raft-rs panics when more is applied than persisted. Nothing else is handed to apply until then.
        if self.installing.is_some_and(|(_, installing)| index >= installing) {
            self.installed_early = Some(applied);
            return;
        }
        self.applied = self.applied.max(index);
        while self.handed.front().is_some_and(|(handed, _)| *handed <= index) {
            let (_, bytes) = self.handed.pop_front().expect("front() was there");
            self.applying_bytes -= bytes;
        }
        let was_member = self.is_member();
        if let Some(replicated) = applied.replicated {
            if replicated.members != self.replicated.members {
                self.effects.peers = Some(replicated.members.clone());
            }
            self.replicated = replicated;
        }
        if let Some((at, change)) = self.deciding.take_if(|(at, _)| *at <= index) {
            let accepted = applied.members.iter().any(|(member, accepted)| *member == at && *accepted);
            if accepted && let Err(error) = self.node.apply_conf_change(&change) {
                panic!("apply accepted a membership change that raft refuses: {error}");
            }
            let configuration = self.configuration();
            self.node.mut_store().set_configuration(&configuration);
            let voters = configuration.voters.len() as u32;
            self.effects.happened.push(Happened::Member { index: at, accepted, voters });
            self.membership_decided(at, Some(accepted));
        }
        if index.0 > self.node.raft.raft_log.applied {
            self.node.advance_apply_to(index.0);
        }
        self.answer_addresses(index);
        if let Some(mark) = applied.mark {
            self.changes_since_mark = 0;
            self.mark_proposed = None;
            self.marks.push_back(mark);
            if self.marks.len() > MARKS_KEPT {
                self.marks.pop_front();
            }
            self.compare_hashes();
        }
        if was_member && !self.is_member() {
            self.effects.stop = Some(Stop::Removed);
        }
    }

    pub(super) fn answer_addresses(&mut self, applied: Index) {
        let (done, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.orders.addresses).into_iter().partition(|(index, _, _)| *index <= applied);
        self.orders.addresses = waiting;
        for (index, term, token) in done {
            let same = self.node.store().term_at(index.0).is_none_or(|ours| ours == term);
            let result = if same { OrderResult::Done(Answer::Done) } else { OrderResult::Again };
            self.effects.replies.push(Reply::Order(token, result));
        }
    }
}
