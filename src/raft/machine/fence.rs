//! A replica that is known to be wrong stops; a leader hands over first. Comparison of state hashes.

use super::*;

/// A leader that must stop waits so long for another to take over.
const FENCE_PATIENCE: Duration = Duration::from_secs(2);

/// A leader on its way out.
#[derive(Debug)]
pub(super) struct Fencing {
    stop: Stop,
    until: Instant,
}

/// What the voters' hashes at one mark say.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Judgement {
    /// Everybody who has reported has ours.
    Agreement,
    /// Somebody differs, and it is not this replica that is wrong for certain.
    Alarm(String),
    /// A majority contradicts this replica, all with the same sum.
    Outvoted(String),
}

impl Machine {
    /// This replica must not be heard any more. A follower stops at once. A leader takes no more requests, hands over so
    /// that the others need not find out by a timeout that it has gone, and stops when another leads, or soon anyway.
    pub(super) fn fence(&mut self, now: Instant, stop: Stop) {
        if self.fencing.is_some() {
            return;
        }
        self.stopping = true;
        self.effects.happened.push(Happened::Fenced);
        let reads = self.reads.expire(now, Duration::ZERO);
        if !reads.is_empty() {
            self.effects.replies.push(Reply::ReadFailed(reads));
        }
        if self.hand_over() {
            log::error!("{stop}: handing leadership over before this manager stops");
            self.fencing = Some(Fencing { stop, until: now + FENCE_PATIENCE });
        } else {
            self.effects.stop = Some(stop);
        }
    }

    /// To a voter with a healthy disk, or else to any that can be reached.
    fn hand_over(&mut self) -> bool {
        self.transfer_to_best(true) || self.transfer_to_best(false)
    }

    /// Ends with what was decided in this batch, and with a hand-over that is done or takes too long.
    pub(super) fn watch_fence(&mut self, now: Instant) {
        if let Some(stop) = self.fence_due.take() {
            self.fence(now, stop);
        }
        let Some(fencing) = &self.fencing else { return };
        let late = now >= fencing.until;
        let raft = &self.node.raft;
        let (leads, another) = (self.is_leader(), raft.leader_id != 0 && raft.leader_id != self.raft_id.0);
        // raft-rs gives a transfer up after an election timeout.
        let stuck = leads && raft.lead_transferee.is_none() && !late && !self.hand_over();
        if late || (!leads && another) || stuck {
            self.effects.stop = self.fencing.take().map(|fencing| fencing.stop);
        }
    }

    /// When [`Self::watch_fence`] must be asked.
    pub(super) fn fence_deadline(&self) -> Option<Instant> {
        self.fencing.as_ref().map(|fencing| fencing.until)
    }

    /// Judges every own mark by what the voters have reported for it. The newest one with reports says whether there is
    /// an alarm now: a replica that was made anew agrees there again.
    pub(super) fn compare_hashes(&mut self) {
        let mut alarm = None;
        for own in &self.marks {
            match self.judge(own) {
                None => {}
                Some(Judgement::Agreement) => alarm = None,
                Some(Judgement::Alarm(text)) => alarm = Some((own.index, text)),
                Some(Judgement::Outvoted(text)) => {
                    self.fence_due = Some(Stop::Fenced(text));
                    return;
                }
            }
        }
        if alarm != self.alarm {
            match &alarm {
                // Pings repeat what they report; this is said when it changes.
                Some((index, text)) => {
                    log::error!("{text}");
                    self.effects.happened.push(Happened::HashesDiffer { index: *index });
                }
                None => log::info!("the replicas' state hashes agree again"),
            }
            self.alarm = alarm;
        }
    }

    /// `None` when no other voter has reported.
    fn judge(&self, own: &StateHash) -> Option<Judgement> {
        let voters = self.voters().count();
        let majority = voters / 2 + 1;
        let mut sums: BTreeMap<u128, Vec<RaftId>> = BTreeMap::new();
        for member in self.voters().filter(|member| member.raft_id != self.raft_id) {
            let marks = self.peers.get(&member.node_id).map(|peer| &peer.marks);
            // The last word counts: a manager that started again has computed it anew.
            let last = marks.into_iter().flatten().rev().find(|(index, _)| *index == own.index);
            if let Some((_, sum)) = last {
                sums.entry(*sum).or_default().push(member.raft_id);
            }
        }
        if sums.is_empty() {
            return None;
        }
        let place = format!("at log index {} (revision {})", own.index, own.revision);
        let ours = sums.remove(&own.sum).map_or(0, |members| members.len());
        let votes = self.voters().any(|member| member.raft_id == self.raft_id);
        let with_us = ours + usize::from(votes);
        let Some((sum, others)) = sums.iter().max_by_key(|(_, members)| members.len()) else {
            return Some(Judgement::Agreement);
        };
        let count = others.len();
        if count >= majority && !planted(Fault::DivergenceUnnoticed) {
            return Some(Judgement::Outvoted(format!(
                "the state hash {place} is {:032x} here and {sum:032x} at {count} of {voters} voters: this replica is wrong",
                own.sum
            )));
        }
        let differ: Vec<String> = sums.values().flatten().map(ToString::to_string).collect();
        let differ = differ.join(" and ");
        Some(Judgement::Alarm(if with_us >= majority {
            format!(
                "member {differ} has another state hash {place} than {with_us} of {voters} voters: its replica is wrong"
            )
        } else {
            format!(
                "member {differ} has another state hash {place} than this one, and no majority of {voters} voters says \
                 which replica is wrong"
            )
        }))
    }

    /// What an operator must know of the replicas' agreement; nothing when all is well.
    pub(super) fn alarms(&self) -> Vec<String> {
        let fencing = self.fencing.as_ref().map(|fencing| fencing.stop.to_string());
        fencing.into_iter().chain(self.alarm.iter().map(|(_, text)| text.clone())).collect()
    }
}
