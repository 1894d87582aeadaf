//! Watches, part by part.

use super::*;
use crate::net::requests::Pull;
use crate::types::api::{Action, Filter, WatchItem, WatchRequest};

struct Watcher {
    watch: Watch,
    now_ms: u64,
}

impl Watcher {
    fn begin(swarm: &Swarm, request: WatchRequest) -> Self {
        Self { watch: Watch::begin(swarm.control.store(), request).unwrap(), now_ms: 0 }
    }

    fn pull(&mut self, swarm: &Swarm, room: usize) -> Pull {
        self.watch.pull(swarm.control.store(), Instant::from_nanos(self.now_ms * 1_000_000), room)
    }

    fn has_news(&mut self, swarm: &Swarm) -> bool {
        self.watch.has_news(swarm.control.store())
    }

    /// Everything there is to tell now, in words.
    #[track_caller]
    fn check(&mut self, swarm: &Swarm, expected: &str) {
        let mut words = Vec::new();
        loop {
            match self.pull(swarm, usize::MAX) {
                Pull::Part(body) => words.push(in_words(&envelope::decode(&body, body.len()).unwrap())),
                Pull::Full => panic!("there is room"),
                Pull::Searching => words.push("searching".to_owned()),
                Pull::Done => panic!("a watch goes on until it is cancelled"),
                Pull::Idle(_) => break,
                Pull::End(status) => {
                    words.push(format!("end {}", status.code.name()));
                    break;
                }
            }
        }
        assert_eq!(words.join("; "), expected);
    }
}

fn in_words(item: &WatchItem) -> String {
    let name = |object: &Object| object.name().unwrap_or_default().to_owned();
    match item {
        WatchItem::Snapshot { objects } => {
            format!("snapshot {}", objects.iter().map(name).collect::<Vec<_>>().join(" "))
        }
        WatchItem::Begin { lineage, revision } => {
            assert_eq!(*lineage, Lineage(7));
            format!("begin {revision}")
        }
        WatchItem::Change { revision, events } => {
            let events: Vec<String> = events
                .iter()
                .map(|event| {
                    let action = match event.action {
                        Action::Create => '+',
                        Action::Update => '~',
                        Action::Remove => '-',
                    };
                    let old = event.old.as_ref().map_or(String::new(), |old| format!("(was {})", old.meta().version));
                    format!("{action}{}{old}", name(&event.object))
                })
                .collect();
            format!("{revision}: {}", events.join(" "))
        }
        WatchItem::Mark { revision } => format!("mark {revision}"),
    }
}

#[test]
fn a_snapshot_that_is_looked_for_in_many_objects_lets_others_be_served() {
    let mut swarm = Swarm::new();
    swarm.create_config("web");
    for first in (0..25_000).step_by(1000) {
        let nodes = (first + 1..=first + 1000).map(|id| {
            let mut node = Node::new(NodeId(id), Role::Worker);
            if id == 15_000 {
                node.spec.annotations.labels.insert("rack".to_owned(), "7".to_owned());
                node.description.hostname = "wanted".to_owned();
            }
            Operation::Create(node.into())
        });
        swarm.apply(nodes.collect());
    }
    let filter = Filter { labels: [("rack".to_owned(), None)].into(), ..Filter::default() };
    let mut watcher = Watcher::begin(&swarm, WatchRequest { filter, ..WatchRequest::default() });
    let begun = swarm.view(|state| state.revision());
    let (mut searches, mut items) = (Vec::new(), Vec::new());
    loop {
        match watcher.pull(&swarm, usize::MAX) {
            Pull::Searching => searches.push(items.len()),
            Pull::Part(body) => items.push(in_words(&envelope::decode(&body, body.len()).unwrap())),
            _ => break,
        }
    }
    assert_eq!(items, ["snapshot wanted".to_owned(), format!("begin {begun}")]);
    // With one value in the filter 942 are looked at in a turn.
    assert_eq!(searches.iter().filter(|found| **found == 0).count(), 15_000 / 942);
    assert_eq!(searches.len(), 25_000 / 942 - 1);
    let kinds = vec![Kind::Node];
    let everything = WatchRequest { kinds, ..WatchRequest::default() };
    let mut watcher = Watcher::begin(&swarm, everything);
    let mut nodes = Vec::new();
    while let Pull::Part(body) = watcher.pull(&swarm, usize::MAX) {
        match envelope::decode(&body, body.len()).unwrap() {
            WatchItem::Snapshot { objects } => nodes.extend(objects.iter().map(Object::id)),
            item => assert_eq!(in_words(&item), format!("begin {begun}")),
        }
    }
    assert_eq!(nodes, (1..=25_000).map(ObjectId).collect::<Vec<_>>());
}

#[test]
fn a_watch_with_too_many_values_is_refused_whatever_it_watches() {
    let swarm = Swarm::new();
    let begin = |values: usize, kinds: &[Kind]| {
        let names = (0..values).map(|number| number.to_string()).collect();
        let request = WatchRequest {
            kinds: kinds.to_vec(),
            filter: Filter { names, ..Filter::default() },
            ..WatchRequest::default()
        };
        Watch::begin(swarm.control.store(), request).map(|_| ()).map_err(|status| status.code)
    };
    for kinds in [&[][..], &[Kind::Resource], &[Kind::Node]] {
        assert_eq!((begin(1000, kinds), begin(1001, kinds)), (Ok(()), Err(Code::InvalidArgument)), "{kinds:?}");
    }
}

#[test]
fn a_snapshot_by_name_is_found_by_the_index_and_whole() {
    let mut swarm = Swarm::new();
    for first in (1..=3000).step_by(1000) {
        let nodes = (first..first + 1000).map(|id| {
            let mut node = Node::new(NodeId(id), Role::Worker);
            node.description.hostname = format!("{}-{id}", if id.is_multiple_of(2) { "even" } else { "odd" });
            Operation::Create(node.into())
        });
        swarm.apply(nodes.collect());
    }
    let filter = Filter { name_prefixes: vec!["EVEN-".to_owned()], ..Filter::default() };
    let mut watcher = Watcher::begin(&swarm, WatchRequest { filter, ..WatchRequest::default() });
    let (mut nodes, mut begun) = (Vec::new(), false);
    loop {
        match watcher.pull(&swarm, usize::MAX) {
            Pull::Searching => {}
            Pull::Part(body) => match envelope::decode(&body, body.len()).unwrap() {
                WatchItem::Snapshot { objects } => nodes.extend(objects.iter().map(Object::id)),
                item => begun |= in_words(&item).starts_with("begin"),
            },
            _ => break,
        }
    }
    assert_eq!((nodes, begun), ((1..=1500).map(|half| ObjectId(2 * half)).collect(), true));
}

#[test]
fn a_watch_begins_with_a_snapshot_and_goes_on_without_a_gap() {
    let mut swarm = Swarm::new();
    swarm.create_config("web");
    swarm.write(extension("dish")).unwrap();
    let mut watcher = Watcher::begin(&swarm, WatchRequest::default());
    // What comes between the beginning and the first pull is an event, not part of the snapshot.
    swarm.create_config("db");
    watcher.check(&swarm, "snapshot web; snapshot dish; begin 2; 3: +db; mark 3");
    swarm.write(label(Kind::Config, "db", &[("a", "1")], None)).unwrap();
    swarm.write(remove(Kind::Config, "web", None)).unwrap();
    watcher.now_ms = 500;
    watcher.check(&swarm, "4: ~db; 5: -web; mark 5");
    watcher.check(&swarm, "");
}

#[test]
fn a_watch_can_begin_with_the_present_or_resume() {
    let mut swarm = Swarm::new();
    swarm.create_config("web");
    swarm.create_config("db");
    let mut present = Watcher::begin(&swarm, WatchRequest { skip_snapshot: true, ..WatchRequest::default() });
    let from = |revision| WatchRequest { from: Some((Lineage(7), Revision(revision))), ..WatchRequest::default() };
    let mut resumed = Watcher::begin(&swarm, from(1));
    let mut ahead = Watcher::begin(&swarm, from(3));
    present.check(&swarm, "begin 2");
    resumed.check(&swarm, "begin 1; 2: +db; mark 2");
    ahead.check(&swarm, "begin 3");
    swarm.create_config("cache");
    swarm.create_config("queue");
    present.check(&swarm, "3: +cache; 4: +queue; mark 4");
    ahead.check(&swarm, "4: +queue; mark 4");
}

#[test]
fn a_filter_shows_what_enters_and_what_leaves_it() {
    let mut swarm = Swarm::new();
    let filter = Filter { labels: [("tier".to_owned(), None)].into(), ..Filter::default() };
    let request = WatchRequest { kinds: vec![Kind::Config], filter, include_old: true, ..WatchRequest::default() };
    let mut watcher = Watcher::begin(&swarm, request);
    watcher.check(&swarm, "begin 0");
    swarm.create_config("web");
    // Nothing matched; how far that is, is told.
    watcher.check(&swarm, "mark 1");
    swarm.write(label(Kind::Config, "web", &[("tier", "1")], None)).unwrap();
    swarm.write(secret("tier")).unwrap();
    swarm.write(label(Kind::Secret, "tier", &[("tier", "1")], None)).unwrap();
    let leave = Write::UpdateLabels {
        kind: Kind::Config,
        object: "web".to_owned(),
        set: BTreeMap::new(),
        remove: vec!["tier".to_owned()],
        if_version: None,
    };
    swarm.write(leave).unwrap();
    swarm.write(label(Kind::Config, "web", &[("other", "1")], None)).unwrap();
    watcher.now_ms = 1000;
    watcher.check(&swarm, "2: ~web(was 1); 5: ~web(was 2); mark 6");
}

#[test]
fn a_change_is_one_item_with_all_its_events() {
    let mut swarm = Swarm::new();
    let mut watcher = Watcher::begin(&swarm, WatchRequest::default());
    let make = |id: u128| {
        let mut config = object::Config { id: ObjectId(id), ..Default::default() };
        config.spec.annotations.name = format!("c{id}");
        Operation::Create(Object::from(config))
    };
    swarm.apply(vec![make(2), make(1)]);
    watcher.check(&swarm, "begin 0; 1: +c2 +c1; mark 1");
}

#[test]
fn marks_are_not_sent_all_the_time() {
    let mut swarm = Swarm::new();
    let request = WatchRequest { kinds: vec![Kind::Secret], ..WatchRequest::default() };
    let mut watcher = Watcher::begin(&swarm, request);
    swarm.create_config("a");
    watcher.check(&swarm, "begin 0; mark 1");
    swarm.create_config("b");
    watcher.now_ms = 100;
    watcher.check(&swarm, "");
    let Pull::Idle(Some(due)) = watcher.pull(&swarm, usize::MAX) else { panic!("a mark is due later") };
    assert_eq!(due, Instant::from_nanos(500_000_000));
    watcher.now_ms = 500;
    watcher.check(&swarm, "mark 2");
}

#[test]
fn what_a_watcher_does_not_want_is_passed_without_a_pull() {
    let mut swarm = Swarm::new();
    let request = WatchRequest { kinds: vec![Kind::Secret], ..WatchRequest::default() };
    let mut watcher = Watcher::begin(&swarm, request);
    assert!(!watcher.has_news(&swarm), "what is left of the beginning is pulled, whatever is new");
    watcher.check(&swarm, "begin 0");
    assert!(!watcher.has_news(&swarm));
    for number in 0..17 {
        swarm.create_config(&format!("a{number}"));
    }
    assert!(watcher.has_news(&swarm), "there is more than is looked at at once");
    assert!(!watcher.has_news(&swarm));
    watcher.check(&swarm, "mark 17");
    swarm.create_config("b");
    swarm.write(secret("c")).unwrap();
    swarm.create_config("d");
    assert!(watcher.has_news(&swarm));
    assert!(watcher.has_news(&swarm), "only a pull passes what is wanted");
    watcher.now_ms = 500;
    watcher.check(&swarm, "19: +c; mark 20");
    assert!(!watcher.has_news(&swarm));
    // Comparing takes time, and the writer would wait for it: then a pull does it.
    watcher.watch = {
        let filter = Filter { id_prefixes: vec!["a".to_owned()], ..Filter::default() };
        let request = WatchRequest { filter, skip_snapshot: true, ..WatchRequest::default() };
        Watch::begin(swarm.control.store(), request).unwrap()
    };
    watcher.check(&swarm, "begin 20");
    assert!(watcher.has_news(&swarm));
}

#[test]
fn what_the_ring_no_longer_holds_ends_the_watch() {
    let mut swarm = Swarm::with_ring(1000);
    let mut slow = Watcher::begin(&swarm, WatchRequest::default());
    slow.check(&swarm, "begin 0");
    let request = WatchRequest { kinds: vec![Kind::Secret], ..WatchRequest::default() };
    let mut of_others = Watcher::begin(&swarm, request);
    of_others.check(&swarm, "begin 0");
    for number in 0..20 {
        swarm.create_config(&format!("c{number}"));
    }
    slow.check(&swarm, "end OutOfRange");
    // Whether there was anything for it among them nobody can say.
    assert!(of_others.has_news(&swarm));
    of_others.check(&swarm, "end OutOfRange");
    let from = |lineage, revision| WatchRequest { from: Some((lineage, revision)), ..WatchRequest::default() };
    let status = Watch::begin(swarm.control.store(), from(Lineage(7), Revision(1))).unwrap_err();
    assert_eq!(status.code, Code::OutOfRange);
    assert!(
        status.message.contains("after revision 1 are no longer kept") && status.hint.contains("--from"),
        "{status:?}"
    );
    let status = Watch::begin(swarm.control.store(), from(Lineage(8), Revision(20))).unwrap_err();
    assert!(status.message.contains("another lineage"), "{status:?}");
}

#[test]
fn a_part_that_does_not_fit_waits_and_is_not_lost() {
    let mut swarm = Swarm::new();
    swarm.create_config("web");
    let mut watcher = Watcher::begin(&swarm, WatchRequest::default());
    for room in [1, 50] {
        assert!(matches!(watcher.pull(&swarm, room), Pull::Full));
    }
    swarm.create_config("db");
    assert!(matches!(watcher.pull(&swarm, 1000), Pull::Part(_)));
    assert!(matches!(watcher.pull(&swarm, 10), Pull::Full));
    assert!(matches!(watcher.pull(&swarm, 1000), Pull::Part(_)));
    assert!(matches!(watcher.pull(&swarm, 50), Pull::Full));
    watcher.check(&swarm, "2: +db; mark 2");
}

#[test]
fn a_large_snapshot_comes_in_parts_in_order() {
    let mut swarm = Swarm::new();
    let operations = (0..1000)
        .map(|id| {
            let mut config = object::Config { id: ObjectId(id), ..Default::default() };
            config.spec.annotations.name = format!("c{id}");
            config.spec.data = vec![7; 200];
            Operation::Create(Object::from(config))
        })
        .collect();
    swarm.apply(operations);
    swarm.write(secret("last")).unwrap();
    let mut watcher = Watcher::begin(&swarm, WatchRequest::default());
    let (mut ids, mut parts) = (Vec::new(), 0);
    while let Pull::Part(body) = watcher.pull(&swarm, usize::MAX) {
        assert!(body.len() < 66 << 10);
        if let WatchItem::Snapshot { objects } = envelope::decode(&body, body.len()).unwrap() {
            ids.extend(objects.iter().map(|object| (object.kind(), object.id())));
            parts += 1;
        }
    }
    assert!(parts > 3, "{parts}");
    assert_eq!(ids.len(), 1001);
    assert!(ids.is_sorted(), "in order of kind and id");
}

#[test]
fn watchers_of_everything_share_one_encoding() {
    let mut swarm = Swarm::new();
    let mut watchers: Vec<Watcher> = (0..2).map(|_| Watcher::begin(&swarm, WatchRequest::default())).collect();
    swarm.create_config("web");
    let mut bodies = Vec::new();
    for watcher in &mut watchers {
        watcher.pull(&swarm, usize::MAX);
        let Pull::Part(body) = watcher.pull(&swarm, usize::MAX) else { panic!() };
        bodies.push(body.as_ptr());
    }
    assert_eq!(bodies[0], bodies[1]);
}

#[test]
fn a_filter_that_makes_no_sense_is_refused() {
    let swarm = Swarm::new();
    let filter = Filter { kinds: vec!["dish".to_owned()], ..Filter::default() };
    let request = WatchRequest { kinds: vec![Kind::Config], filter, ..WatchRequest::default() };
    assert_eq!(Watch::begin(swarm.control.store(), request).unwrap_err().code, Code::InvalidArgument);
}
