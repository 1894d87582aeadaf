//! What clients do: registers, sets and banks of cells, each cell one object of the store.

use std::collections::BTreeMap;
use std::time::Duration;

use skep::store::State;
use skep::sys::entropy::SeededEntropy;
use skep::types::object::{Annotations, Config, ConfigSpec, Meta, Resource, Secret, SecretSpec, Sensitive};
use skep::types::{Expect, Kind, Object, ObjectId, Operation, Revision, Selector};

use crate::history::Call;
use crate::linear::Want;
use crate::serial::value_of;

/// How clients behave.
#[derive(Clone, Debug)]
pub struct Workload {
    pub groups: Vec<Group>,
    /// Of a thousand calls, so many are linearizable reads, and so many stale ones; the rest writes.
    pub reads: u64,
    pub stale: u64,
    /// Of a thousand calls, so many make an object of their own, which stays.
    pub fresh: u64,
    /// Of a thousand calls, so many give an object a name that is in demand, half of them for the present term only.
    pub named: u64,
    /// Of a thousand answers, so many get lost on their way: the client asks again, perhaps elsewhere.
    pub lost_answers: u64,
    /// Of a thousand attempts, so many go to whoever leads; the rest to anybody.
    pub to_leader: u64,
    /// Bytes of an object's data.
    pub payload: usize,
    /// Between an answer and the next call, microseconds.
    pub think_us: (u64, u64),
    /// An attempt without an answer is repeated after this.
    pub timeout: Duration,
    /// A client without an answer gives up after this.
    pub patience: Duration,
}

/// Cells that are used together.
#[derive(Clone, Copy, Debug)]
pub struct Group {
    pub style: Style,
    pub cells: usize,
}

/// How a group's cells are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One by one: made, replaced by version, removed; configs.
    Registers,
    /// As a set: added, removed whatever they hold, listed by an index; resources.
    Set,
    /// Several at once, all or nothing; secrets.
    Bank,
}

/// What a client believes a cell to hold, and under which version.
pub type Known = BTreeMap<(usize, usize), Option<(u64, Revision)>>;

impl Default for Workload {
    fn default() -> Self {
        Self {
            groups: vec![
                Group { style: Style::Registers, cells: 4 },
                Group { style: Style::Set, cells: 6 },
                Group { style: Style::Bank, cells: 4 },
            ],
            reads: 300,
            stale: 50,
            fresh: 100,
            named: 60,
            lost_answers: 20,
            to_leader: 750,
            payload: 64,
            think_us: (1_000, 40_000),
            timeout: Duration::from_secs(2),
            patience: Duration::from_secs(20),
        }
    }
}

impl Workload {
    /// The next call of a client that believes `known`; the value to write next is counted up.
    pub fn draw(&self, entropy: &mut SeededEntropy, known: &Known, next_value: &mut u64) -> (usize, Call) {
        let at = entropy.below(self.groups.len() as u64) as usize;
        let group = self.groups[at];
        let kind = entropy.below(1000);
        if kind < self.stale {
            return (at, Call::Stale);
        }
        if kind < self.stale + self.fresh {
            return (at, Call::Fresh);
        }
        if kind >= 1000 - self.named {
            return (at, Call::Named { slot: entropy.below(2) as usize, name: entropy.below(5) });
        }
        let is_read = kind < self.stale + self.fresh + self.reads;
        let mut value = || {
            *next_value += 1;
            *next_value
        };
        let cell = entropy.below(group.cells as u64) as usize;
        let call = match group.style {
            Style::Registers => match known.get(&(at, cell)) {
                _ if is_read => Call::Read(Some(cell)),
                None => Call::Read(Some(cell)),
                Some(None) => write(&[(cell, Want::Absent)], &[(cell, Some(value()))]),
                Some(Some((held, _))) => match entropy.below(10) {
                    0 => write(&[(cell, Want::Value(*held))], &[(cell, None)]),
                    1 => write(&[(cell, Want::Present)], &[(cell, None)]),
                    _ => write(&[(cell, Want::Value(*held))], &[(cell, Some(value()))]),
                },
            },
            Style::Set if is_read => Call::Read(None),
            Style::Set => match entropy.below(9) {
                0 => {
                    let wants: Vec<_> = (0..group.cells).map(|cell| (cell, Want::Absent)).collect();
                    write(&wants, &[(cell, Some(value()))])
                }
                1..=4 => write(&[(cell, Want::Present)], &[(cell, None)]),
                _ => write(&[(cell, Want::Absent)], &[(cell, Some(value()))]),
            },
            Style::Bank => {
                let held = |cell: usize| known.get(&(at, cell)).copied();
                let to = (cell + 1 + entropy.below(group.cells as u64 - 1) as usize) % group.cells;
                let third = (0..group.cells).find(|other| *other != cell && *other != to);
                match (held(cell), held(to)) {
                    (Some(from_holds), Some(to_holds)) if !is_read => {
                        let want = |held: Option<(u64, Revision)>| held.map_or(Want::Absent, |(it, _)| Want::Value(it));
                        let mut wants = vec![(cell, want(from_holds)), (to, want(to_holds))];
                        if let Some((third, held)) = third.and_then(|third| Some((third, held(third)?)))
                            && entropy.below(2) == 0
                        {
                            let loose = if held.is_some() { Want::Present } else { Want::Absent };
                            wants.push((third, if entropy.below(2) == 0 { loose } else { want(held) }));
                        }
                        // Both change, or the one goes and the other comes.
                        let first = if from_holds.is_some() && entropy.below(4) == 0 { None } else { Some(value()) };
                        write(&wants, &[(cell, first), (to, Some(value()))])
                    }
                    _ => Call::Read(None),
                }
            }
        };
        (at, call)
    }

    /// The operations of a write.
    pub fn operations(&self, at: usize, call: &Call, known: &Known, fresh: ObjectId) -> Vec<Operation> {
        if let Call::Named { slot, name } = call {
            let (kind, id) = (Kind::Config, ObjectId(fresh.0 + *slot as u128));
            return vec![match known.get(&(NAMES, *slot)) {
                None => Operation::Create(self.named_object(id, *name, Meta::default())),
                Some(Some((_, version))) => {
                    Operation::Update(self.named_object(id, *name, Meta { version: *version, ..Meta::default() }))
                }
                // It is there, and under which version is not known.
                Some(None) => Operation::Remove { kind, id, version: None },
            }];
        }
        let Call::Write { wants, writes } = call else {
            return vec![Operation::Create(self.fresh_object(fresh))];
        };
        let group = self.groups[at];
        let kind = group.kind();
        let version = |cell: usize| known.get(&(at, cell)).copied().flatten().map(|(_, version)| version);
        let mut operations = Vec::new();
        let everything_absent = wants.len() == group.cells && wants.iter().all(|(_, want)| *want == Want::Absent);
        if everything_absent && group.style == Style::Set {
            operations.push(Operation::RequireNone { kind, any_of: vec![group.selector(at)] });
        }
        for (cell, want) in wants {
            let id = cell_id(at, *cell);
            let written = writes.iter().find(|(written, _)| written == cell).map(|(_, value)| *value);
            let meta = Meta { version: version(*cell).unwrap_or_default(), ..Meta::default() };
            operations.push(match (want, written) {
                (Want::Absent, Some(Some(value))) => Operation::Create(self.object(at, *cell, value, Meta::default())),
                (Want::Value(_), Some(Some(value))) => Operation::Update(self.object(at, *cell, value, meta)),
                (Want::Value(_), Some(None)) => Operation::Remove { kind, id, version: Some(meta.version) },
                (Want::Present, Some(None)) => Operation::Remove { kind, id, version: None },
                (Want::Absent, None) if everything_absent => continue,
                (Want::Absent, None) => Operation::Require { kind, id, expect: Expect::Absent },
                (Want::Present, None) => Operation::Require { kind, id, expect: Expect::Present },
                (Want::Value(_), None) => Operation::Require { kind, id, expect: Expect::Version(meta.version) },
                (Want::Absent, Some(None)) | (Want::Present, Some(Some(_))) => {
                    unreachable!("no operation of the store does this: {call:?}")
                }
            });
        }
        operations
    }

    /// The cells of a group in a state, as a client reads them.
    pub fn read(&self, at: usize, cells: &[usize], state: &State) -> Vec<Option<(u64, Revision)>> {
        let group = self.groups[at];
        let show = |object: &Object| (value_of(object), object.meta().version);
        if group.style == Style::Bank {
            let get = |cell: &usize| state.get(group.kind(), cell_id(at, *cell)).map(|stored| show(&stored.object));
            return cells.iter().map(get).collect();
        }
        // By the index, so that it is checked as well.
        let found = state.find(group.kind(), &[group.selector(at)]);
        let get = |cell: &usize| {
            let id = cell_id(at, *cell);
            found.iter().find(|stored| stored.object.id() == id).map(|stored| show(&stored.object))
        };
        cells.iter().map(get).collect()
    }

    fn object(&self, at: usize, cell: usize, value: u64, meta: Meta) -> Object {
        let id = cell_id(at, cell);
        let mut annotations = Annotations { name: format!("g{at}-{cell}"), ..Annotations::default() };
        let data = self.data(value);
        match self.groups[at].style {
            Style::Registers => {
                Object::from(Config { id, meta, spec: ConfigSpec { annotations, data, templating: None } })
            }
            Style::Set => {
                annotations.indices.insert("set".to_owned(), format!("s{at}"));
                Object::from(Resource { id, meta, annotations, kind: "element".to_owned(), payload: data })
            }
            Style::Bank => {
                let spec = SecretSpec { annotations, data: Sensitive(data), ..SecretSpec::default() };
                Secret { id, meta, spec, internal: false }.into()
            }
        }
    }

    fn fresh_object(&self, id: ObjectId) -> Object {
        let annotations = Annotations { name: format!("fresh-{}", { id.0 }), ..Annotations::default() };
        let spec = ConfigSpec { annotations, data: self.data(id.0 as u64), templating: None };
        Object::from(Config { id, meta: Meta::default(), spec })
    }

    fn named_object(&self, id: ObjectId, name: u64, meta: Meta) -> Object {
        // Names that differ in case alone are the same name.
        let name = if id.0.is_multiple_of(2) { format!("name-{name}") } else { format!("NAME-{name}") };
        let annotations = Annotations { name, ..Annotations::default() };
        let spec = ConfigSpec { annotations, data: self.data(id.0 as u64), templating: None };
        Object::from(Config { id, meta, spec })
    }

    fn data(&self, value: u64) -> Vec<u8> {
        let mut data = value.to_le_bytes().to_vec();
        data.resize(self.payload.max(8), value as u8);
        data
    }
}

impl Group {
    pub fn kind(&self) -> Kind {
        match self.style {
            Style::Registers => Kind::Config,
            Style::Set => Kind::Resource,
            Style::Bank => Kind::Secret,
        }
    }

    fn selector(&self, at: usize) -> Selector {
        match self.style {
            Style::Set => Selector::Custom { index: "set".to_owned(), value: format!("s{at}") },
            _ => Selector::NamePrefix(format!("g{at}-")),
        }
    }
}

/// The group under which a client notes what it knows of its named objects.
pub const NAMES: usize = usize::MAX;

pub fn cell_id(group: usize, cell: usize) -> ObjectId {
    ObjectId(((group as u128 + 1) << 32) | (cell as u128 + 1))
}

fn write(wants: &[(usize, Want)], writes: &[(usize, Option<u64>)]) -> Call {
    Call::Write { wants: wants.to_vec(), writes: writes.to_vec() }
}
