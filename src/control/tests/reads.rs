//! Lists, inspections, tokens, orders and their rules.

use std::collections::BTreeSet;

use super::*;
use crate::net::requests::Order;
use crate::types::api::{Admin, Filter, JoinRequest, LeaveRequest, PAGE_BYTES, ResolveAddress, SetAddressRequest};

fn names(answer: &Answer) -> (Vec<String>, bool) {
    let Answer::Objects { objects, more } = answer else { panic!("{answer:?}") };
    (objects.iter().map(|object| object.name().unwrap_or_default().to_owned()).collect(), *more)
}

#[test]
fn a_list_is_filtered_and_in_order_of_id() {
    let mut swarm = Swarm::new();
    for name in ["web", "db", "cache"] {
        swarm.create_config(name);
    }
    swarm.write(label(Kind::Config, "db", &[("tier", "1")], None)).unwrap();
    let list = |filter| names(&swarm.ask(QueryKind::List(Kind::Config, filter, None)).unwrap()).0;
    let mut all = list(Filter::default());
    all.sort();
    assert_eq!(all, ["cache", "db", "web"]);
    assert_eq!(list(Filter { names: vec!["WEB".to_owned()], ..Filter::default() }), ["web"]);
    assert_eq!(list(Filter { name_prefixes: vec!["c".to_owned()], ..Filter::default() }), ["cache"]);
    assert_eq!(list(Filter { labels: [("tier".to_owned(), None)].into(), ..Filter::default() }), ["db"]);
    let by_kind = Filter { kinds: vec!["dish".to_owned()], ..Filter::default() };
    let status = swarm.ask(QueryKind::List(Kind::Config, by_kind, None)).unwrap_err();
    assert_eq!(verdict::<()>(&Err(status)), "InvalidArgument: a config has no kind to filter by");
}

#[test]
fn a_long_list_comes_in_pages() {
    let mut swarm = Swarm::new();
    let large = |number: u32| {
        let name = format!("c{number}");
        Write::CreateConfig { name, labels: BTreeMap::new(), data: vec![7; 400_000] }
    };
    for number in 0..5 {
        swarm.write(large(number)).unwrap();
    }
    let (mut after, mut pages, mut seen) = (None, 0, Vec::new());
    loop {
        let answer = swarm.ask(QueryKind::List(Kind::Config, Filter::default(), after)).unwrap();
        assert!(encode(&answer).len() < PAGE_BYTES + 1024);
        let Answer::Objects { objects, more } = answer else { panic!() };
        pages += 1;
        after = objects.last().map(Object::id);
        seen.extend(objects.iter().map(Object::id));
        if !more {
            break;
        }
    }
    assert_eq!(pages, 3);
    let expected: Vec<ObjectId> =
        swarm.view(|state| state.iter(Kind::Config).map(|stored| stored.object.id()).collect());
    assert_eq!(seen, expected);
}

#[test]
fn a_page_counts_objects_too_and_hidden_data_does_not_fill_it() {
    let mut swarm = Swarm::new();
    let operations = (0..1500)
        .map(|number| {
            let mut secret = object::Secret { id: ObjectId(number), ..Default::default() };
            secret.spec.annotations.name = format!("s{number}");
            secret.spec.data = Sensitive(vec![7; 5000]);
            Operation::Create(secret.into())
        })
        .collect();
    swarm.apply(operations);
    let list = |after| names(&swarm.ask(QueryKind::List(Kind::Secret, Filter::default(), after)).unwrap());
    let (first, more) = list(None);
    assert_eq!((first.len(), more), (1000, true));
    let (second, more) = list(Some(ObjectId(999)));
    assert_eq!((second.len(), more), (500, false));
    assert_eq!(list(Some(ObjectId(1499))), (Vec::new(), false));
}

#[test]
fn pages_of_what_a_filter_lets_through_are_full_and_end() {
    let mut swarm = Swarm::new();
    // Every third is of the other kind; the last one has the last id that there is.
    let resource = |number: u128| {
        let id = if number == 2999 { u128::MAX } else { number << 110 };
        let kind = if number.is_multiple_of(3) { "other" } else { "most" };
        let mut resource = object::Resource { id: ObjectId(id), kind: kind.to_owned(), ..Default::default() };
        resource.annotations.name = format!("r{number}");
        Operation::Create(resource.into())
    };
    swarm.apply((0..1500).map(resource).collect());
    swarm.apply((1500..3000).map(resource).collect());
    let filter = |kind: &str| Filter { kinds: vec![kind.to_owned()], ..Filter::default() };
    let page = |filter: &Filter, after| {
        let answer = swarm.ask(QueryKind::List(Kind::Resource, filter.clone(), after)).unwrap();
        let Answer::Objects { objects, more } = answer else { panic!("{answer:?}") };
        (objects.iter().map(Object::id).collect::<Vec<_>>(), more)
    };
    for (kind, count) in [("Most", 2000), ("other", 1000)] {
        let (mut after, mut seen, mut pages) = (None, Vec::new(), 0);
        loop {
            let (found, more) = page(&filter(kind), after);
            assert!(found.len() == 1000 || !more, "a page of {} and more", found.len());
            (after, pages) = (found.last().copied(), pages + 1);
            seen.extend(found);
            if !more {
                break;
            }
        }
        assert_eq!((seen.len(), pages), (count, count / 1000), "{kind}");
        assert!(seen.is_sorted() && seen.windows(2).all(|pair| pair[0] != pair[1]));
    }
    assert_eq!(page(&filter("most"), Some(ObjectId(u128::MAX))), (Vec::new(), false));
    assert_eq!(page(&Filter::default(), Some(ObjectId(u128::MAX - 1))), (vec![ObjectId(u128::MAX)], false));
}

#[test]
fn what_the_swarm_keeps_for_itself_is_in_no_list() {
    let mut swarm = Swarm::new();
    let mut secret = object::Secret { id: ObjectId(1), internal: true, ..Default::default() };
    secret.spec.annotations.name = "internal".to_owned();
    swarm.apply(vec![Operation::Create(secret.into())]);
    let answer = swarm.ask(QueryKind::List(Kind::Secret, Filter::default(), None)).unwrap();
    assert_eq!(names(&answer), (Vec::new(), false));
}

#[test]
fn an_object_is_found_by_name_id_or_the_beginning_of_its_id() {
    let mut swarm = Swarm::ready();
    let id = swarm.create_config("web");
    for reference in ["web", "WEB", &id.to_string(), &id.to_string()[..10]] {
        let Ok(Answer::Object(object)) = swarm.ask(QueryKind::Inspect(Kind::Config, reference.to_owned())) else {
            panic!("{reference}")
        };
        assert_eq!(object.id(), id);
    }
    let inspect = |kind, reference: &str| verdict(&swarm.ask(QueryKind::Inspect(kind, reference.to_owned())));
    assert_eq!(inspect(Kind::Config, "nope"), "NotFound: could not find config nope");
    assert_eq!(inspect(Kind::Node, "nope"), "NotFound: node nope not found");
    assert_eq!(inspect(Kind::Node, "m2"), "ok");
    assert_eq!(inspect(Kind::Cluster, "default"), "ok");
    let ambiguous = inspect(Kind::Node, "000000000000000000000000");
    let one = NodeId(1);
    assert!(
        ambiguous.starts_with("InvalidArgument: 000000000000000000000000 could be any of 3 nodes: "),
        "{ambiguous}"
    );
    assert!(ambiguous.contains(&format!("{one} (m1)")), "{ambiguous}");
}

#[test]
fn a_search_that_looks_at_many_stops_and_says_where_it_goes_on() {
    let mut swarm = Swarm::new();
    let ids: BTreeSet<ObjectId> = (0..50).map(|n| swarm.create_config(&format!("c{n}"))).collect();
    swarm.write(label(Kind::Config, "c20", &[("tier", "1")], None)).unwrap();
    let state = swarm.control.store().snapshot();
    for (wanted, expected) in
        [(Filter { labels: [("tier".to_owned(), None)].into(), ..Filter::default() }, 1), (Filter::default(), 50)]
    {
        for looks in [1, 7, 49, 50, 51] {
            let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
            loop {
                pages += 1;
                match query::page(&state, Kind::Config, &wanted, after, looks).unwrap() {
                    Answer::Searched { objects, after: last } => {
                        assert!(after < Some(last) && ids.contains(&last), "{after:?} {last:?}");
                        found.extend(objects);
                        after = Some(last);
                    }
                    Answer::Objects { objects, more } => {
                        assert!(!more);
                        found.extend(objects);
                        break;
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!((found.len(), pages), (expected, 50_usize.div_ceil(looks)), "{looks} looks");
        }
    }
}

#[test]
fn what_could_be_very_many_is_not_counted() {
    let mut swarm = Swarm::ready();
    let nodes = (100..300).map(|id| Operation::Create(Node::new(NodeId(id), Role::Worker).into()));
    swarm.apply(nodes.collect());
    let ambiguous = verdict(&swarm.ask(QueryKind::Inspect(Kind::Node, "00000000000000000000000".to_owned())));
    assert!(ambiguous.contains("could be any of 100 or more nodes: "), "{ambiguous}");
    assert!(ambiguous.ends_with(" and more"), "{ambiguous}");
}

#[test]
fn tokens_are_told_only_when_asked_for() {
    let mut swarm = Swarm::new();
    assert_eq!(swarm.ask(QueryKind::Token(Role::Worker)).unwrap_err().code, Code::FailedPrecondition);
    let mut with_tokens = cluster();
    with_tokens.root_ca.join_tokens =
        object::JoinTokens { worker: "SWMTKN-1-w".to_owned(), manager: "SWMTKN-1-m".to_owned() };
    swarm.apply(vec![Operation::Create(Object::Cluster(Box::new(with_tokens)))]);
    for (role, token) in [(Role::Worker, "SWMTKN-1-w"), (Role::Manager, "SWMTKN-1-m")] {
        assert_eq!(swarm.ask(QueryKind::Token(role)), Ok(Answer::Token(Sensitive(token.as_bytes().to_vec()))));
    }
}

#[test]
fn reads_are_linearizable_unless_they_are_local_or_may_be_stale() {
    let mut swarm = Swarm::ready();
    let decide = |swarm: &Swarm, stale, what, confirmed| {
        let body = envelope::encode(&Query { stale, what });
        match swarm.control.decide(&incoming(Call::Query, body), 0, confirmed, NOW_MS) {
            Step::Answer(_) => "answer",
            Step::Barrier => "barrier",
            Step::Refuse(_) => "refuse",
            other => panic!("{other:?}"),
        }
    };
    let list = || QueryKind::List(Kind::Node, Filter::default(), None);
    let missing = || QueryKind::Inspect(Kind::Node, "x".to_owned());
    for what in [QueryKind::Status, QueryKind::Members, QueryKind::Raft] {
        assert_eq!(decide(&swarm, false, what, false), "answer");
    }
    for what in [list(), missing(), QueryKind::Token(Role::Worker), QueryKind::Change(ChangeId(1), Revision(0))] {
        assert_eq!(decide(&swarm, false, what, false), "barrier");
    }
    assert_eq!(decide(&swarm, false, list(), true), "answer");
    assert_eq!(decide(&swarm, true, list(), false), "answer");
    assert_eq!(decide(&swarm, false, missing(), true), "refuse");
    // Before it has joined, a node knows nothing but itself.
    swarm.control.context.raft.state = RaftState::Joining;
    assert_eq!(decide(&swarm, true, list(), false), "refuse");
    assert_eq!(decide(&swarm, false, QueryKind::Status, false), "answer");
}

#[test]
fn what_became_of_a_change_can_be_asked() {
    let mut swarm = Swarm::new();
    let request = swarm.request(config("web"));
    let ask = |swarm: &Swarm| match swarm.ask(QueryKind::Change(request.change, request.after)) {
        Ok(Answer::Change(report)) => report,
        other => panic!("{other:?}"),
    };
    assert_eq!(ask(&swarm), api::ChangeReport::NotApplied);
    swarm.send(&request).unwrap();
    assert_eq!(ask(&swarm), api::ChangeReport::Committed(Revision(1)));
}

fn manager(id: u128) -> Caller {
    Caller::Node { node_id: NodeId(id), role: Role::Manager, cluster_id: ClusterId(5), expired: false }
}

fn order(swarm: &Swarm, request: &Incoming) -> String {
    match swarm.control.decide(request, 0, false, NOW_MS) {
        Step::Raft(order) => format!("{order:?}"),
        Step::Refuse(status) => format!("refuse {}: {}", status.code.name(), status.message),
        Step::RefuseIfConfirmed(status) => format!("refuse if confirmed {}: {}", status.code.name(), status.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn orders_name_the_managers_they_mean() {
    let swarm = Swarm::ready();
    let admin = |admin: Admin| incoming(Call::Admin, envelope::encode(&admin));
    let transfer = |to: &str| order(&swarm, &admin(Admin::Transfer { to: Some(to.to_owned()) }));
    let all = |order: Order| format!("{order:?}");
    assert_eq!(transfer("m1"), all(Order::Transfer { to: Some(NodeId(1)) }));
    assert_eq!(order(&swarm, &admin(Admin::Transfer { to: None })), all(Order::Transfer { to: None }));
    assert_eq!(transfer("m2"), "refuse if confirmed FailedPrecondition: m2 is not a manager");
    assert_eq!(transfer("m9"), "refuse if confirmed NotFound: node m9 not found");
    assert_eq!(order(&swarm, &admin(Admin::Snapshot)), all(Order::Snapshot));
    let leave = admin(Admin::Leave { force: false });
    assert_eq!(order(&swarm, &leave), all(Order::Leave { node_id: NodeId(1), force: false, for_good: true }));
    let passed_on = Incoming { forwarded: true, ..leave };
    assert!(order(&swarm, &passed_on).starts_with("refuse InvalidArgument: a manager can be told to leave"));
}

#[test]
fn a_manager_speaks_for_itself_only() {
    let mut swarm = Swarm::ready();
    let by = |caller: Caller, call, body| Incoming { caller, addr: "10.0.0.3:5555".to_owned(), ..incoming(call, body) };
    let leave = |node_id| envelope::encode(&LeaveRequest { node_id, force: false });
    let left = format!("{:?}", Order::Leave { node_id: NodeId(3), force: false, for_good: true });
    assert_eq!(order(&swarm, &by(manager(3), Call::Leave, leave(NodeId(3)))), left);
    assert_eq!(order(&swarm, &by(Caller::Local, Call::Leave, leave(NodeId(3)))), left);
    let other = order(&swarm, &by(manager(2), Call::Leave, leave(NodeId(3))));
    assert_eq!(other, "refuse PermissionDenied: a manager may take out only itself");

    let address = envelope::encode(&SetAddressRequest { addr: "0.0.0.0:4242".to_owned() });
    let moved = Order::SetAddress { node_id: NodeId(3), addr: "10.0.0.3:4242".to_owned() };
    assert_eq!(order(&swarm, &by(manager(3), Call::SetAddress, address)), format!("{moved:?}"));

    let join = |level| envelope::encode(&JoinRequest { advertise: "0.0.0.0:4242".to_owned(), feature_level: level });
    let joined = Order::Join { node_id: NodeId(3), addr: "10.0.0.3:4242".to_owned(), feature_level: 1 };
    assert_eq!(order(&swarm, &by(manager(3), Call::Join, join(1))), format!("{joined:?}"));
    let older = order(&swarm, &by(manager(3), Call::Join, join(0)));
    assert!(
        older.starts_with("refuse if confirmed FailedPrecondition: the swarm's data is written in format 1"),
        "{older}"
    );
    let unknown = order(&swarm, &by(manager(9), Call::Join, join(1)));
    assert!(unknown.starts_with("refuse if confirmed PermissionDenied: node"), "{unknown}");

    // A node that was removed asks in vain, whoever passes its call on.
    let revoke = Operation::Revoke { node: NodeId(3), until: Timestamp(u64::MAX) };
    let remove = Operation::Remove { kind: Kind::Node, id: NodeId(3).into(), version: None };
    assert!(matches!(swarm.apply(vec![revoke, remove]), Outcome::Committed(_)));
    let removed = Incoming { forwarded: true, ..by(manager(3), Call::Join, join(1)) };
    assert!(order(&swarm, &removed).starts_with("refuse PermissionDenied: node"), "{}", order(&swarm, &removed));
    // A manager that lags does not know those who came while it did, and says of nobody that it was removed before a round
    // has shown it; raft's own calls it answers in the meantime.
    for call in Call::ALL {
        let request = by(manager(9), call, vec![0]);
        let between_managers = matches!(call, Call::Snapshot | Call::ResolveAddress | Call::Health);
        let said = |confirmed| match swarm.control.decide(&request, 0, confirmed, NOW_MS) {
            Step::Refuse(status) | Step::RefuseIfConfirmed(status) => status.message,
            _ => String::new(),
        };
        let verdict = |confirmed| said(confirmed).ends_with("was removed from the swarm");
        assert_eq!((verdict(false), verdict(true)), (!between_managers, !between_managers), "{call:?}");
        let certain = matches!(swarm.control.decide(&request, 0, false, NOW_MS), Step::Refuse(status) if status.code == Code::PermissionDenied);
        assert!(!certain, "{call:?}");
    }
}

#[test]
fn a_members_address_is_told() {
    let swarm = Swarm::ready();
    let ask = |raft_id| {
        let body = envelope::encode(&ResolveAddress { raft_id });
        swarm.control.decide(&incoming(Call::ResolveAddress, body), 0, false, NOW_MS)
    };
    let Step::Answer(body) = ask(RaftId(1)) else { panic!() };
    assert_eq!(envelope::decode(&body, 1000), Ok(Answer::Address("10.0.0.1:4242".to_owned())));
    assert!(matches!(ask(RaftId(9)), Step::Refuse(status) if status.code == Code::NotFound));
    let health = swarm.control.decide(&incoming(Call::Health, Vec::new()), 0, false, NOW_MS);
    assert!(matches!(health, Step::Answer(body) if body == encode(&Answer::Done)));
}
