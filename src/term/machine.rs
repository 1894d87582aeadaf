//! The services of one term, side by side.

use std::collections::{BTreeMap, BTreeSet};

use super::{Effect, Ended, Event, Service};
use crate::codec::digest128;
use crate::store::State;
use crate::types::{Change, ChangeId, Code, Kind, NodeId, Status, Term};

/// Requests of one service that are under way at once; beyond that they are declined.
pub const MAX_UNDER_WAY: usize = 64;

/// Runs the services of one term.
pub struct Machine {
    term: Term,
    /// Drawn for the term and told to nobody. Whoever may write anything chooses the id of the change, and the first under an
    /// id is the only one: a worker that could work out the next id of a service would use it up, and nothing that the
    /// service asks for would ever be done, though it hears that it was.
    salt: u128,
    services: Vec<Box<dyn Service>>,
    /// What was asked for and has not ended: whose it is, and the service's own name for it.
    under_way: BTreeMap<u64, (usize, u64)>,
    next_token: u64,
}

impl std::fmt::Debug for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.services.iter().map(|service| service.name()).collect();
        f.debug_struct("Machine").field("term", &self.term).field("services", &names).finish_non_exhaustive()
    }
}

/// What a look sees.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    /// The wall clock.
    pub now_ms: u64,
    /// Everything.
    pub state: &'a State,
    /// The leader.
    pub here: NodeId,
    /// Nodes that the leader has a live connection to, itself included.
    pub reachable: &'a [NodeId],
}

/// Why to look.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// It is not known what changed, or it concerns everyone: the beginning, the members, the clock.
    pub everything: bool,
    /// Kinds of object of which some changed.
    pub kinds: BTreeSet<Kind>,
}

/// Something to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// For [`Machine::ended`].
    pub token: u64,
    /// What.
    pub work: Work,
}

/// What to do, as [`Effect`] says.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    /// Write this; its term is set.
    Propose(Change),
    /// Take a node out of the Raft group, with regard to quorum.
    RemoveMember(NodeId),
    /// Hand leadership over.
    Transfer(NodeId),
}

impl Machine {
    /// The services of `term`. `first_token` and what follows name their requests; no two terms of a process may share any.
    /// `salt` is random, and keeps the ids of changes from being guessed.
    pub fn new(term: Term, first_token: u64, salt: u128, services: Vec<Box<dyn Service>>) -> Self {
        Self { term, salt, services, under_way: BTreeMap::new(), next_token: first_token }
    }

    /// The token after the last one used.
    pub const fn next_token(&self) -> u64 {
        self.next_token
    }

    /// Whether a change to an object of this kind concerns anyone.
    pub fn concerns(&self, kind: Kind) -> bool {
        self.services.iter().any(|service| service.concerns(kind))
    }

    /// The earliest moment at which someone wants to look, by the wall clock.
    pub fn next_deadline(&self) -> Option<u64> {
        self.services.iter().filter_map(|service| service.next_deadline()).min()
    }

    /// What the services cannot do now, and why.
    pub fn notices(&self, state: &State) -> Vec<String> {
        self.services.iter().flat_map(|service| service.notices(state)).collect()
    }

    /// Lets those look whom the news concern, or whose time has come.
    pub fn look(&mut self, view: View<'_>, news: &News) -> Vec<Request> {
        let View { now_ms, state, here, reachable } = view;
        let mut requests = Vec::new();
        for index in 0..self.services.len() {
            let service = &mut self.services[index];
            let due = service.next_deadline().is_some_and(|at| at <= now_ms);
            if due || news.everything || news.kinds.iter().any(|kind| service.concerns(*kind)) {
                let effects = service.step(now_ms, Event::Look { state, here, reachable });
                self.ask(now_ms, index, effects, &mut requests);
            }
        }
        requests
    }

    /// A request ended. One that is not known belongs to a former term.
    pub fn ended(&mut self, now_ms: u64, token: u64, result: Ended) -> Vec<Request> {
        let mut requests = Vec::new();
        if let Some((index, token)) = self.under_way.remove(&token) {
            let effects = self.services[index].step(now_ms, Event::Outcome { token, result });
            self.ask(now_ms, index, effects, &mut requests);
        }
        requests
    }

    fn ask(&mut self, now_ms: u64, index: usize, effects: Vec<Effect>, requests: &mut Vec<Request>) {
        for effect in effects {
            if self.under_way.values().filter(|(whose, _)| *whose == index).count() >= MAX_UNDER_WAY {
                let status = Status::new(Code::ResourceExhausted, "too much is under way already");
                let outcome = Event::Outcome { token: effect.token(), result: Ended::Declined(status) };
                // What it asks for now would be too much as well: it is heard at its next look.
                let _ = self.services[index].step(now_ms, outcome);
                continue;
            }
            let token = self.next_token;
            self.next_token += 1;
            self.under_way.insert(token, (index, effect.token()));
            let work = match effect {
                Effect::Propose { change, .. } => {
                    let id = ChangeId(digest128(&[&self.salt.to_le_bytes(), &change.id.0.to_le_bytes()]));
                    Work::Propose(Change { id, term: Some(self.term), ..change })
                }
                Effect::RemoveMember { node_id, .. } => Work::RemoveMember(node_id),
                Effect::Transfer { to, .. } => Work::Transfer(to),
            };
            requests.push(Request { token, work });
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::types::{ChangeId, Lineage, Revision, Timestamp};

    /// Writes down what it hears, and asks for as many changes at each look as it was told.
    struct Recorder {
        name: &'static str,
        kind: Kind,
        asks: u64,
        due: Option<u64>,
        heard: Arc<Mutex<Vec<String>>>,
    }

    impl Service for Recorder {
        fn name(&self) -> &'static str {
            self.name
        }

        fn concerns(&self, kind: Kind) -> bool {
            kind == self.kind
        }

        fn step(&mut self, now_ms: u64, event: Event<'_>) -> Vec<Effect> {
            let name = self.name;
            let told = match event {
                Event::Look { .. } => format!("{name} looks at {now_ms}"),
                Event::Outcome { token, result: Ended::Declined(_) } => format!("{name}: {token} is declined"),
                Event::Outcome { token, result } => format!("{name}: {token} is {result:?}"),
            };
            let is_look = told.contains("looks");
            self.heard.lock().unwrap().push(told);
            let asks = if is_look { self.asks } else { 0 };
            (0..asks).map(|token| Effect::Propose { token, change: change() }).collect()
        }

        fn next_deadline(&self) -> Option<u64> {
            self.due
        }
    }

    fn change() -> Change {
        Change { id: ChangeId(1), after: Revision(0), time: Timestamp(0), term: None, operations: Vec::new() }
    }

    struct Term7 {
        machine: Machine,
        heard: Arc<Mutex<Vec<String>>>,
        state: State,
    }

    impl Term7 {
        fn new(services: &[(&'static str, Kind, u64, Option<u64>)]) -> Self {
            let heard = Arc::new(Mutex::new(Vec::new()));
            let services = services.iter().map(|&(name, kind, asks, due)| {
                Box::new(Recorder { name, kind, asks, due, heard: heard.clone() }) as Box<dyn Service>
            });
            let machine = Machine::new(Term(7), 100, 5, services.collect());
            Self { machine, heard, state: State::bootstrap(Lineage(1), NodeId(1), "a:1") }
        }

        fn look(&mut self, now_ms: u64, news: &News) -> Vec<Request> {
            let view = View { now_ms, state: &self.state, here: NodeId(1), reachable: &[] };
            self.machine.look(view, news)
        }

        #[track_caller]
        fn heard(&self, expected: &[&str]) {
            assert_eq!(std::mem::take(&mut *self.heard.lock().unwrap()), expected);
        }
    }

    fn of(kinds: &[Kind]) -> News {
        News { everything: false, kinds: kinds.iter().copied().collect() }
    }

    #[test]
    fn each_looks_at_what_concerns_it_and_when_its_time_has_come() {
        let mut term = Term7::new(&[("a", Kind::Node, 0, None), ("b", Kind::Secret, 0, Some(50))]);
        assert_eq!(term.machine.next_deadline(), Some(50));
        term.look(1, &News { everything: true, ..News::default() });
        term.heard(&["a looks at 1", "b looks at 1"]);
        term.look(2, &of(&[Kind::Config]));
        term.heard(&[]);
        term.look(3, &of(&[Kind::Node, Kind::Config]));
        term.heard(&["a looks at 3"]);
        term.look(50, &of(&[]));
        term.heard(&["b looks at 50"]);
        assert!(term.machine.concerns(Kind::Secret) && !term.machine.concerns(Kind::Config));
    }

    #[test]
    fn outcomes_find_their_service_under_its_own_name_and_once() {
        let mut term = Term7::new(&[("a", Kind::Node, 2, None), ("b", Kind::Node, 1, None)]);
        let requests = term.look(1, &of(&[Kind::Node]));
        assert_eq!(requests.iter().map(|request| request.token).collect::<Vec<_>>(), [100, 101, 102]);
        let terms: Vec<_> = requests
            .iter()
            .map(|request| match &request.work {
                Work::Propose(change) => change.term,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(terms, [Some(Term(7)); 3]);
        term.heard(&["a looks at 1", "b looks at 1"]);
        for (token, result) in [(102, Ended::Done), (101, Ended::Uncertain), (101, Ended::Done), (7, Ended::Done)] {
            assert_eq!(term.machine.ended(2, token, result), []);
        }
        term.heard(&["b: 0 is Done", "a: 1 is Uncertain"]);
        assert_eq!(term.machine.next_token(), 103);
    }

    #[test]
    fn the_id_of_a_change_is_the_same_within_a_term_and_cannot_be_worked_out() {
        let id_under = |salt| {
            let mut term = Term7::new(&[("a", Kind::Node, 1, None)]);
            term.machine.salt = salt;
            match &term.look(1, &of(&[Kind::Node]))[0].work {
                Work::Propose(change) => change.id,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(id_under(5), id_under(5));
        assert_ne!(id_under(5), id_under(6));
        assert_ne!(id_under(5), change().id);
    }

    #[test]
    fn more_than_may_be_under_way_is_declined_at_once() {
        let most = MAX_UNDER_WAY as u64;
        let mut term = Term7::new(&[("a", Kind::Node, most + 1, None)]);
        let requests = term.look(1, &of(&[Kind::Node]));
        assert_eq!(requests.len(), MAX_UNDER_WAY);
        term.heard(&["a looks at 1", "a: 64 is declined"]);
        term.machine.ended(2, 100, Ended::Done);
        // One place is free again.
        assert_eq!(term.look(3, &of(&[Kind::Node])).len(), 1);
    }
}
