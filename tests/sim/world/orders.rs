//! Orders to the swarm: begin, join, leave, transfer.

use skep::raft::{Event, Order, OrderResult};
use skep::types::api::{Answer, FEATURE_LEVEL};
use skep::types::{NodeId, RaftId};

use super::World;
use crate::failure::fail;
use crate::ms;
use crate::node::{Node, Start};

impl World {
    /// Begins a swarm.
    pub fn bootstrap(&mut self) -> NodeId {
        let id = self.new_node(RaftId(1));
        self.boot(id, &Start::Bootstrap);
        self.run_until("the first manager leads", ms(3000), |world| world.leader() == Some(id));
        id
    }

    /// Adds a manager, by way of the leader.
    pub fn join(&mut self) -> NodeId {
        let id = NodeId(self.next_node);
        let order = Order::Join { node_id: id, addr: address(id), feature_level: FEATURE_LEVEL };
        let end = self.now + ms(20_000);
        loop {
            match self.order(&order) {
                OrderResult::Done(Answer::Joined(answer)) => {
                    assert_eq!(answer.advertise, address(id));
                    self.new_node(answer.raft_id);
                    self.boot(id, &Start::Disk);
                    return id;
                }
                // Its leader may end in the middle, as one does that has not heard yet from whom it needs now.
                OrderResult::Uncertain if self.now < end => self.run_for(ms(300)),
                other => fail("liveness", format!("the join of node {} was answered {other:?}", id.0)),
            }
        }
    }

    /// A join that may come to nothing; the next attempt is then made by the same node.
    pub fn try_to_join(&mut self, leader: NodeId) {
        let (id, feature_level) = (NodeId(self.next_node), FEATURE_LEVEL);
        let order = Order::Join { node_id: id, addr: address(id), feature_level };
        if let Some(OrderResult::Done(Answer::Joined(answer))) = self.order_at(leader, order) {
            self.new_node(answer.raft_id);
            self.boot(id, &Start::Disk);
        }
    }

    fn new_node(&mut self, raft_id: RaftId) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.new_node_as(id, raft_id);
        id
    }

    /// A node whose id is known already becomes a manager.
    pub(super) fn new_node_as(&mut self, id: NodeId, raft_id: RaftId) {
        if let Some(before) = self.raft_ids.insert(raft_id, id) {
            fail("raft id", format!("{raft_id} was given to {} before {}", before.0, id.0));
        }
        self.nodes.insert(id, Node::new(id, raft_id, address(id), self.lineage, self.era));
    }

    /// One order, carried to whoever leads until it has an answer.
    pub fn order(&mut self, order: &Order) -> OrderResult {
        let end = self.now + ms(30_000);
        while self.now < end {
            let leader = self.wait_for_leader(ms(15_000));
            if let Some(result) = self.order_at(leader, order.clone())
                && result != OrderResult::Again
            {
                return result;
            }
            self.run_for(ms(50));
        }
        fail("liveness", format!("the order {order:?} was never answered"));
    }

    /// One order at one manager; `None` if it was not answered within five seconds.
    pub fn order_at(&mut self, id: NodeId, order: Order) -> Option<OrderResult> {
        let token = self.token(id);
        self.note(|_| format!("order {token} at node {}: {order:?}", id.0));
        self.orders.insert(token, None);
        self.request(id, Event::Order { token, order });
        let end = self.now + ms(5000);
        while self.now < end && self.orders[&token].is_none() && self.is_running(id) && self.turn(end) {}
        self.orders.remove(&token).flatten()
    }
}

pub fn address(id: NodeId) -> String {
    format!("manager-{}:4242", id.0)
}
