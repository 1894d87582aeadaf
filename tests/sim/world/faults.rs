//! What can be done to a manager.

use skep::types::object::{Annotations, Config, ConfigSpec, Meta};
use skep::types::{Change, ChangeId, NodeId, Object, ObjectId, Operation, Revision, Timestamp};

use super::World;
use crate::disk::Rot;
use crate::ms;
use crate::node::{Cause, Start};

impl World {
    /// Starts a process that was stopped.
    pub fn start(&mut self, id: NodeId) {
        self.boot(id, &Start::Disk);
    }

    /// kill -9: what was written stays, redials are refused.
    pub fn kill(&mut self, id: NodeId) {
        self.note(|_| format!("node {} is killed", id.0));
        self.end(id);
    }

    /// The machine loses its power: what was not synced is lost in part, and nobody refuses anything.
    pub fn lose_power(&mut self, id: NodeId) {
        self.note(|_| format!("node {} loses its power", id.0));
        self.nodes.get_mut(&id).expect("the node exists").lose_power(&mut self.entropy);
    }

    /// As [`World::lose_power`], at the next moment at which something is being written, if that is soon.
    pub fn lose_power_while_writing(&mut self, id: NodeId) {
        let end = self.now + ms(60);
        let writes = |world: &Self| world.nodes[&id].run.as_ref().is_some_and(|run| run.writing > 0);
        while self.is_running(id) && !writes(self) && self.turn(end) {}
        self.lose_power(id);
    }

    /// The data directory is lost while the process is down.
    pub fn wipe(&mut self, id: NodeId) {
        assert!(!self.is_running(id));
        self.note(|_| format!("the directory of node {} is wiped", id.0));
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.disk.wipe();
        node.promised = None;
        self.promises.forget(id);
        self.may_fence.insert(id);
    }

    /// Keeps a copy of the directory of a manager that is down.
    pub fn copy_directory(&mut self, id: NodeId) {
        assert!(!self.is_running(id));
        self.note(|_| format!("the directory of node {} is copied", id.0));
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.image = Some((node.disk.image(), node.boot));
    }

    /// Puts the copy of the directory back in its place: the manager forgets all that it did since.
    pub fn restore_directory(&mut self, id: NodeId) {
        assert!(!self.is_running(id));
        self.note(|_| format!("node {} gets its old directory back", id.0));
        let node = self.nodes.get_mut(&id).expect("the node exists");
        let (image, boot) = node.image.take().expect("a copy was made");
        (node.disk, node.boot, node.promised) = (image, boot, None);
        self.promises.forget(id);
        (self.lost, self.rolled_back) = (Some(id), Some(id));
        self.may_fence.insert(id);
    }

    /// The member with an old directory, until it is turned away.
    pub fn rolled_back_and_unmet(&self) -> Option<NodeId> {
        self.rolled_back.filter(|id| !self.is_gone(*id))
    }

    /// Whether putting the copy back is something that the others can notice: each of them has met a later start.
    pub fn would_be_noticed(&self, id: NodeId) -> bool {
        let Some((_, boot)) = &self.nodes[&id].image else { return false };
        let others = self.nodes.values().filter(|node| node.id != id && !self.is_gone(node.id));
        others.map(|node| self.met.get(&(node.id, id))).all(|met| met.is_some_and(|met| met > boot))
    }

    /// Whether a manager will never take part again.
    pub fn is_gone(&self, id: NodeId) -> bool {
        !self.is_current(id) || matches!(self.stopped(id), Some(Cause::Stop(_) | Cause::Damaged(_)))
    }

    /// A file of a manager that is down rots; false if it has none.
    pub fn rot(&mut self, id: NodeId, rot: Rot) -> bool {
        assert!(!self.is_running(id));
        let done = self.nodes[&id].disk.rot(rot, &mut self.entropy);
        self.lost = Some(id);
        self.note(|_| format!("node {}: {done:?}", id.0));
        done.is_some()
    }

    /// SIGSTOP and SIGCONT.
    pub fn pause(&mut self, id: NodeId, paused: bool) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        if node.paused == paused || node.run.is_none() {
            return;
        }
        node.paused = paused;
        let held = std::mem::take(&mut node.held);
        for happening in held {
            self.at_node(id, crate::Duration::from_micros(1), happening);
        }
        self.note(|_| format!("node {} is paused: {paused}", id.0));
    }

    /// The disk stops answering, or goes on.
    pub fn stall(&mut self, id: NodeId, stalled: bool) {
        self.nodes.get_mut(&id).expect("the node exists").stalled = stalled;
        self.note(|_| format!("the disk of node {} stalls: {stalled}", id.0));
    }

    /// Syncs take between these from now on, microseconds.
    pub fn slow_disk(&mut self, id: NodeId, sync_us: (u64, u64)) {
        self.nodes.get_mut(&id).expect("the node exists").sync_us = sync_us;
        self.note(|_| format!("syncs of node {} take {sync_us:?} us", id.0));
    }

    /// Only so many bytes fit on the disk from now on; `None` makes room.
    pub fn limit_disk(&mut self, id: NodeId, free: Option<u64>) {
        self.nodes[&id].disk.limit(free);
        if free.is_some() {
            self.may_fail.insert(id);
        }
        self.note(|_| format!("room on the disk of node {}: {free:?}", id.0));
    }

    /// The next sync fails, and every other until the process is gone.
    pub fn fail_syncs(&mut self, id: NodeId) {
        self.nodes[&id].disk.fail_syncs();
        self.may_fail.insert(id);
        self.note(|_| format!("syncs of node {} fail", id.0));
    }

    /// The monotonic clock runs so much faster from now on, in parts of a million.
    pub fn clock_rate(&mut self, id: NodeId, ppm: i64) {
        let now = self.now;
        self.nodes.get_mut(&id).expect("the node exists").clock.set_rate(now, ppm);
        self.note(|_| format!("the clock of node {} runs {ppm} ppm faster", id.0));
    }

    /// The wall clock jumps.
    pub fn wall_clock(&mut self, id: NodeId, offset_ms: i64) {
        self.nodes.get_mut(&id).expect("the node exists").clock.wall_ms = offset_ms;
        self.note(|_| format!("the wall clock of node {} is {offset_ms} ms off", id.0));
    }

    /// Changes one replica's state behind its back.
    pub fn corrupt(&mut self, id: NodeId) {
        let node = self.nodes.get_mut(&id).expect("the node exists");
        node.corrupted = true;
        self.may_fence.insert(id);
        let spec = ConfigSpec {
            annotations: Annotations { name: "nobody wrote this".to_owned(), ..Annotations::default() },
            data: vec![0; 8],
            templating: None,
        };
        let object = Object::from(Config { id: ObjectId(0xbad), meta: Meta::default(), spec });
        let operations = vec![Operation::Create(object)];
        let change = Change { id: ChangeId(0xbad), after: Revision(0), time: Timestamp(1), term: None, operations };
        let store = node.run.as_ref().expect("it runs").applier.store();
        store.write(|state| {
            let term = state.applied().term;
            state.apply_change(change, term)
        });
    }

    /// Everything that can be undone is: the network is whole, processes go on, disks have room and answer.
    pub fn relieve(&mut self) {
        self.heal();
        for id in self.ids() {
            self.pause(id, false);
            let node = self.nodes.get_mut(&id).expect("the node exists");
            (node.stalled, node.sync_us) = (false, (100, 1000));
            node.disk.limit(None);
            node.disk.repair();
        }
    }

    /// Starts everybody that is down and may start.
    pub fn start_all(&mut self) {
        for id in self.ids() {
            let may_start = matches!(self.stopped(id), None | Some(Cause::Disk(_)));
            if !self.is_running(id) && may_start && self.is_current(id) {
                self.start(id);
            }
        }
    }
}
