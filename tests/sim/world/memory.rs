//! Memory that rots, and who looks for it.

use skep::raft::Event;
use skep::store::scrub::{Progress, Scrubber};
use skep::types::{Kind, NodeId, Object};

use super::World;

impl World {
    /// Flips a bit of an object in one replica's memory; no hash says anything.
    pub fn rot_memory(&mut self, id: NodeId) {
        self.may_fence.insert(id);
        let store = self.nodes[&id].run.as_ref().expect("it runs").applier.store();
        store.write(|state| {
            let cold = state.iter(Kind::Config).next().map(|stored| stored.object.id()).expect("something was written");
            let before = state.hash();
            assert!(state.rot(Kind::Config, cold, |object| match object {
                Object::Config(config) => config.meta.created_at.0 ^= 1 << 9,
                _ => unreachable!("it is a config"),
            }));
            assert_eq!(state.hash(), before);
            ((), None)
        });
    }

    /// One pass of the scrubber at every manager that runs.
    pub fn scrub(&mut self) {
        for id in self.ids() {
            let now = self.now;
            let node = self.nodes.get_mut(&id).expect("the node exists");
            let at = node.clock.at(now);
            let Some(run) = node.run.as_mut() else { continue };
            let mut scrubber = Scrubber::default();
            let found = loop {
                match scrubber.step(&run.applier.store().snapshot(), 1 << 10) {
                    Ok(Progress::More) => {}
                    Ok(Progress::Passed) => break None,
                    Err(rot) => break Some(rot),
                }
            };
            if let Some(rot) = found {
                run.machine.step(at, Event::Rotten { what: rot.to_string() });
                self.finish_soon(id);
            }
        }
    }

    /// What a manager has to say about the replicas' agreement.
    pub fn alarms(&self, id: NodeId) -> Vec<String> {
        let node = &self.nodes[&id];
        node.run.as_ref().map_or(Vec::new(), |run| run.machine.report(node.clock.at(self.now)).alarms)
    }

    /// Whether this manager leads, as far as it knows.
    pub fn leads(&self, id: NodeId) -> bool {
        self.nodes[&id].run.as_ref().is_some_and(|run| run.machine.leadership().leader == Some(id))
    }
}
