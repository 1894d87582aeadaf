//! The end of a run: everything works again, and everything that was promised holds.

use skep::raft::{Order, OrderResult};
use skep::store::ERA;
use skep::types::Outcome;

use super::World;
use crate::failure::{ensure, fail};
use crate::history;
use crate::{Duration, ms};

/// After all faults have ended, a write succeeds within this: two elections that end without a leader, and a link that is
/// found dead between them.
pub const HEALED: Duration = ms(10_000);

impl World {
    /// Everything works again: heal, start everybody, replace who lost its data, and see that the swarm makes progress and
    /// that all are equal.
    pub fn recover_and_check(&mut self) {
        self.relieve();
        self.start_all();
        self.write_within(HEALED);
        self.replace_lost();
        self.load = false;
        self.run_until("every client is answered", ms(30_000), |world| {
            world.clients.iter().all(|client| client.doing.is_none())
        });
        // Reads that were abandoned are given up after ten seconds.
        self.run_for(ms(11_000));
        self.settle();
        // Watchers see the end.
        self.run_for(ms(3_500));
        self.check_all();
    }

    /// Takes the member that lost its data out of the swarm, and lets a new one join for it.
    pub fn replace_lost(&mut self) {
        let Some(lost) = self.lost else { return };
        if self.rolled_back.take() == Some(lost) {
            // Every other has met a later start of it, and says so as soon as it connects.
            self.run_until("the member that was rolled back is turned away", ms(10_000), |world| world.is_gone(lost));
        }
        let end = self.now + ms(20_000);
        loop {
            match self.order(&Order::Leave { node_id: lost, force: true, for_good: true }) {
                OrderResult::Done(_) => break,
                // It leads and sees nobody yet to hand over to, or another change is under way.
                OrderResult::Refused(_) | OrderResult::Uncertain if self.now < end => self.run_for(ms(300)),
                other => fail("liveness", format!("node {} cannot be removed: {other:?}", lost.0)),
            }
        }
        self.join();
        self.settle();
        self.lost = None;
    }

    /// What must hold now that nothing is under way.
    fn check_all(&mut self) {
        for node in self.nodes.values().filter(|node| node.era == self.era) {
            let Some(run) = &node.run else { continue };
            ensure!("answers", run.tokens.is_empty(), "node {} never answered {:?}", node.id.0, run.tokens);
            if node.corrupted {
                continue;
            }
            let state = node.state().expect("it runs");
            self.check_acked(&state);
            let outcomes = self.issued.iter().filter_map(|id| state.remembered(*id));
            let committed = outcomes.filter(|outcome| matches!(outcome, Outcome::Committed(_))).count() as u64;
            ensure!(
                "at most once",
                committed == state.revision().0 % ERA,
                "node {} has {} revisions of {committed} changes",
                node.id.0,
                state.revision()
            );
            ensure!("state hash", state.hash() == state.recompute_hash(), "node {} keeps a wrong sum", node.id.0);
            self.serial.check_state(node.id, &state);
        }
        for (id, outcome) in &self.told {
            let found = self.serial.outcome_of(*id);
            ensure!("lost write", found == Some(outcome), "change {id} was answered {outcome:?} and is {found:?}");
        }
        for node in self.nodes.values().filter(|node| node.era != self.era) {
            let dials = node
                .run
                .as_ref()
                .is_some_and(|run| run.wanted.iter().any(|peer| self.is_current(*peer) && self.is_running(*peer)));
            let told = !dials || self.outlived.contains(&node.id);
            ensure!("history", told, "nobody tells node {} that its history is over", node.id.0);
        }
        self.check_watches();
        self.searched.add(history::check(&self.workload.groups, &self.history));
    }
}
