//! Watchers: they follow what happens through the real watch service, and go on elsewhere when their manager dies.

use skep::codec::envelope;
use skep::control::{Watch, redact};
use skep::net::requests::Pull;
use skep::store::watch::check::{self, Watched};
use skep::sys::time::Instant;
use skep::types::api::{Filter, WatchItem, WatchRequest};
use skep::types::limits::MAX_FRAME_BYTES;
use skep::types::{Code, Kind, Lineage, NodeId, Object, Revision};

use super::{Target, World};
use crate::failure::{ensure, fail};
use crate::ms;

/// Room for one part.
const ROOM: usize = 1 << 20;

/// A watcher and all that it was sent.
pub struct Watcher {
    kinds: Vec<Kind>,
    prefix: Option<String>,
    include_old: bool,
    /// Between two looks, microseconds.
    poll_us: (u64, u64),
    /// Where it is connected, with the process's life.
    watch: Option<(NodeId, u64, Watch)>,
    /// When it wants to be pulled though nothing happens that it wants.
    wake: Option<Instant>,
    /// Streams that go on from each other; a new chain begins when events were no longer kept.
    chains: Vec<Vec<Stream>>,
    /// Where it was in a history that a recovery ended.
    former: Option<(Lineage, Revision)>,
}

/// What came over one connection.
#[derive(Default)]
struct Stream {
    from: Option<Revision>,
    items: Vec<WatchItem>,
}

impl Stream {
    /// The revision up to which the watcher was told that it has everything.
    fn reached(&self) -> Option<Revision> {
        let told = self.items.iter().filter_map(|item| match item {
            WatchItem::Begin { revision, .. } | WatchItem::Change { revision, .. } | WatchItem::Mark { revision } => {
                Some(*revision)
            }
            WatchItem::Snapshot { .. } => None,
        });
        told.max().or(self.from)
    }

    /// Before its `Begin` a watch has told nothing that one could resume after.
    fn has_begun(&self) -> bool {
        self.reached().is_some()
    }
}

impl Watcher {
    fn wants(&self, object: &Object) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&object.kind());
        let name = self.prefix.as_ref().is_none_or(|prefix| object.name().is_some_and(|it| it.starts_with(prefix)));
        kind && name
    }

    fn request(&self, from: Option<(Lineage, Revision)>) -> WatchRequest {
        WatchRequest {
            from,
            skip_snapshot: false,
            kinds: self.kinds.clone(),
            filter: Filter { name_prefixes: self.prefix.iter().cloned().collect(), ..Filter::default() },
            include_old: self.include_old,
        }
    }
}

impl World {
    /// `count` watchers, each with another filter, some of them slow.
    pub fn watch(&mut self, count: usize) {
        for number in 0..count {
            let (kinds, prefix) = match number % 4 {
                0 => (vec![], None),
                1 => (vec![Kind::Config], None),
                2 => (vec![Kind::Resource, Kind::Secret], None),
                _ => (vec![], Some("g0-".to_owned())),
            };
            let slow = self.entropy.below(4) == 0;
            self.watchers.push(Watcher {
                kinds,
                prefix,
                include_old: self.entropy.below(2) == 0,
                poll_us: if slow { (500_000, 3_000_000) } else { (5_000, 80_000) },
                watch: None,
                wake: None,
                chains: vec![vec![]],
                former: None,
            });
            self.schedule(ms(1), Target::Watcher(self.watchers.len() - 1));
        }
    }

    pub(super) fn watcher_turn(&mut self, at: usize) {
        let connected = self.watchers[at].watch.as_ref().map(|(id, life, _)| (*id, *life));
        if let Some((id, life)) = connected {
            let node = &self.nodes[&id];
            let is_lost = node.run.is_none() || node.life != life || node.corrupted;
            if is_lost || (node.paused && self.entropy.below(8) == 0) || self.entropy.below(100) == 0 {
                self.watchers[at].watch = None;
            }
        }
        if self.watchers[at].watch.is_none() {
            self.connect_watcher(at);
        }
        self.pull(at);
        let after = self.between(self.watchers[at].poll_us);
        self.schedule(after, Target::Watcher(at));
    }

    fn connect_watcher(&mut self, at: usize) {
        let usable = self.nodes.values().filter(|node| node.run.is_some() && !node.paused && !node.corrupted);
        let usable = usable.filter(|node| node.era == self.era);
        let usable: Vec<NodeId> = usable.map(|node| node.id).collect();
        if usable.is_empty() {
            return;
        }
        let id = usable[self.entropy.below(usable.len() as u64) as usize];
        let node = &self.nodes[&id];
        let store = node.run.as_ref().expect("it runs").applier.store();
        let watcher = &mut self.watchers[at];
        let chain = watcher.chains.last_mut().expect("there is always one");
        chain.retain(Stream::has_begun);
        let from = chain.last().and_then(Stream::reached);
        let former = watcher.former.take();
        match Watch::begin(store, watcher.request(former.or(from.map(|from| (self.lineage, from))))) {
            Ok(watch) => {
                ensure!("watch", former.is_none(), "a watch of a former history goes on from {former:?}");
                (watcher.watch, watcher.wake) = (Some((id, node.life, watch)), None);
                let chain = watcher.chains.last_mut().expect("there is always one");
                chain.push(Stream { from, items: Vec::new() });
                self.watches += 1;
            }
            Err(status) => {
                // Too old: it begins with a snapshot the next time.
                let resumes = from.is_some() || former.is_some();
                ensure!("watch", resumes, "a watch from the present was refused: {status}");
                ensure!("watch", status.code == Code::OutOfRange, "a watcher is not told to begin anew: {status}");
                watcher.chains.push(Vec::new());
            }
        }
    }

    /// A recovery ended the history that watchers followed.
    pub(super) fn watchers_succeed(&mut self, former: Lineage) {
        for watcher in &mut self.watchers {
            let chains = std::mem::replace(&mut watcher.chains, vec![vec![]]);
            let reached = chains.last().and_then(|chain| chain.iter().rev().find_map(Stream::reached));
            watcher.former = reached.map(|reached| (former, reached)).or(watcher.former);
            watcher.watch = None;
        }
    }

    fn pull(&mut self, at: usize) {
        let Watcher { watch, wake, chains, .. } = &mut self.watchers[at];
        let Some((id, _, watching)) = watch else { return };
        let node = &self.nodes[id];
        let Some(run) = node.run.as_ref().filter(|_| !node.paused) else { return };
        let now = node.clock.at(self.now);
        let store = run.applier.store();
        // As the machine that carries streams does.
        if wake.is_some_and(|at| at > now) && !watching.has_news(store) {
            return;
        }
        let chain = chains.last_mut().expect("there is always one");
        let stream = chain.last_mut().expect("a connected watcher has a stream");
        for _ in 0..32 {
            match watching.pull(store, now, ROOM) {
                Pull::Part(bytes) => {
                    let item =
                        envelope::decode(&bytes, MAX_FRAME_BYTES).expect("what a manager encodes can be decoded");
                    match (stream.from, &item) {
                        // Where a stream goes on it says so, and the one before it told the same.
                        (Some(from), WatchItem::Begin { revision, .. }) => {
                            ensure!("watch", *revision == from, "a watch resumed at {from} begins at {revision}");
                        }
                        _ => stream.items.push(item),
                    }
                }
                Pull::Full => fail("watch", "a part of a watch is larger than a frame"),
                Pull::Done => fail("watch", "a watch has no last part"),
                Pull::Searching => {
                    *wake = None;
                    return;
                }
                Pull::Idle(at) => {
                    *wake = at;
                    return;
                }
                Pull::End(_) => {
                    *watch = None;
                    chains.push(Vec::new());
                    return;
                }
            }
        }
    }

    /// The nine promises, of every watcher.
    pub(super) fn check_watches(&self) {
        let happened = self.serial.happened();
        for (number, watcher) in self.watchers.iter().enumerate() {
            let wants = |object: &Object| watcher.wants(object);
            let shows = |object: &Object| redact::redact(object);
            for chain in &watcher.chains {
                let streams: Vec<Watched<'_>> = chain
                    .iter()
                    .filter(|stream| stream.has_begun())
                    .map(|stream| Watched {
                        from: stream.from,
                        wants: &wants,
                        shows: &shows,
                        include_old: watcher.include_old,
                        items: &stream.items,
                    })
                    .collect();
                let Some(first) = streams.first() else { continue };
                let items: Vec<WatchItem> = streams.iter().flat_map(|stream| stream.items).cloned().collect();
                let mut verdict = check::all(happened, &Watched { items: &items, ..*first });
                for pair in streams.windows(2) {
                    verdict = verdict.and_then(|()| check::resumable(happened, &pair[0], &pair[1]));
                }
                if let Err(broken) = verdict {
                    fail("watch", format!("watcher {number}: {broken}"));
                }
            }
        }
    }
}
