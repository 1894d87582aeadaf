//! Everything at once: managers are killed, stopped and cut off from each other as a seed says, while programs write and read
//! a few registers through whichever manager answers. Afterwards there must be an order of all that they did which explains
//! every answer, and the managers must hold the same.
//!
//! The seed gives the plan, not what the machine makes of it: `SKEP_CHAOS_SEED` runs a plan again, `SKEP_CHAOS_SECONDS` a
//! longer one.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use skep::client::{Client, ClientError, WriteId};
use skep::sys::entropy::SeededEntropy;
use skep::types::api::{Answer as Reply, QueryKind, Write};
use skep::types::object::Sensitive;
use skep::types::{Code, Kind, Object, Revision};

use super::linear::{Answer, Cells, Operation, Timed, Verdict, Want, check};
use super::proxy::Network;
use super::swarm::Swarm;

const MANAGERS: usize = 3;
const REGISTERS: usize = 6;
const CLIENTS: usize = 5;
const KIND: &str = "register";
/// One attempt of a call.
const ATTEMPT: Duration = Duration::from_secs(2);
/// A client gives up a write after so long and leaves its outcome open.
const PATIENCE: Duration = Duration::from_secs(6);

/// What is done to the swarm, one after the other.
#[derive(Clone, Copy, Debug)]
enum Act {
    Kill(usize),
    Stop(usize),
    /// Starts or wakes whoever is killed or stopped.
    Revive,
    /// Nothing arrives from or at this one.
    Split(usize),
    /// The connections of this one end.
    Cut(usize),
    /// Nothing arrives from one at the other.
    Hold(usize, usize),
    Delay(usize, usize, Duration),
    /// Connections between the two end once, in the middle of something.
    CutAfter(usize, usize, u64),
    Heal,
    KillAll,
}

/// An act and the pause after it.
fn plan(seed: u64, length: Duration) -> Vec<(Act, Duration)> {
    let mut random = SeededEntropy::new(seed);
    let mut plan = Vec::new();
    let mut left = length;
    while !left.is_zero() {
        let one = random.below(MANAGERS as u64) as usize;
        let other = (one + 1 + random.below(MANAGERS as u64 - 1) as usize) % MANAGERS;
        let act = match random.below(20) {
            0..3 => Act::Kill(one),
            3..6 => Act::Stop(one),
            6..10 => Act::Revive,
            10..12 => Act::Split(one),
            12 => Act::Cut(one),
            13..15 => Act::Hold(one, other),
            15 => Act::Delay(one, other, Duration::from_millis(random.below(60))),
            16 => Act::CutAfter(one, other, random.below(20_000)),
            17..19 => Act::Heal,
            _ => Act::KillAll,
        };
        let pause = Duration::from_millis(50 + random.below(900)).min(left);
        left -= pause;
        plan.push((act, pause));
    }
    plan
}

/// What clients did, per register.
struct History {
    /// Moments: a larger one was later.
    clock: AtomicU64,
    /// No value is written twice.
    values: AtomicU64,
    operations: Vec<Mutex<Vec<Timed<Operation>>>>,
    stop: AtomicBool,
    /// What must not have been answered.
    wrong: Mutex<Vec<String>>,
    /// Writes that were acknowledged, and those that were given up.
    writes: (AtomicU64, AtomicU64),
}

impl History {
    fn new() -> Self {
        // As the registers are made: the first value is zero.
        let first = Operation::Write { wants: vec![], writes: vec![(0, Some(0))], answer: Answer::Done };
        let first = Timed { operation: first, called: 0, returned: Some(0) };
        Self {
            clock: AtomicU64::new(1),
            values: AtomicU64::new(1),
            operations: (0..REGISTERS).map(|_| Mutex::new(vec![first.clone()])).collect(),
            stop: AtomicBool::new(false),
            wrong: Mutex::default(),
            writes: (AtomicU64::new(0), AtomicU64::new(0)),
        }
    }

    fn now(&self) -> u64 {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    fn add(&self, register: usize, operation: Operation, called: u64, returned: Option<u64>) {
        self.operations[register].lock().unwrap().push(Timed { operation, called, returned });
    }
}

fn name(register: usize) -> String {
    format!("r{register}")
}

fn payload(value: u64) -> Vec<u8> {
    value.to_le_bytes().to_vec()
}

/// A register's value and the revision that wrote it.
fn value(object: &Object) -> (u64, Revision) {
    let Object::Resource(resource) = object else { panic!("{object:?}") };
    let bytes = resource.payload().try_into().expect("eight bytes were written");
    (u64::from_le_bytes(bytes), object.meta().version)
}

/// A program that reads and writes, over and over, at one manager as long as that answers.
struct Caller {
    history: Arc<History>,
    sockets: Vec<PathBuf>,
    random: SeededEntropy,
    client: Option<Client>,
    /// What it read last of each register.
    seen: Vec<Option<(u64, Revision)>>,
}

impl Caller {
    fn run(&mut self) {
        while !self.history.stop.load(Ordering::SeqCst) {
            let register = self.random.below(REGISTERS as u64) as usize;
            match (self.random.below(4), self.seen[register]) {
                (0, _) => self.write(register, None),
                (1, Some(seen)) => self.write(register, Some(seen)),
                _ => {
                    // What is not answered has told nothing.
                    let _ = self.read(register);
                }
            }
            // Time to think keeps the histories short.
            std::thread::sleep(Duration::from_millis(self.random.below(8)));
            if self.random.below(30) == 0 {
                self.go_elsewhere();
            }
        }
    }

    fn go_elsewhere(&mut self) {
        self.client = None;
        let place = self.random.below(self.sockets.len() as u64) as usize;
        self.sockets.rotate_left(place);
    }

    fn client(&mut self) -> Result<&mut Client, ClientError> {
        let client = match self.client.take() {
            Some(client) => client,
            None => Client::local(&self.sockets[0], ATTEMPT)?,
        };
        Ok(self.client.insert(client))
    }

    fn read(&mut self, register: usize) -> Result<u64, ClientError> {
        let called = self.history.now();
        let what = QueryKind::Inspect(Kind::Resource, name(register));
        let answer = self.client().and_then(|client| client.query(what, false, ATTEMPT));
        let returned = self.history.now();
        match answer {
            Ok(Reply::Object(object)) => {
                let seen = value(&object);
                self.seen[register] = Some(seen);
                self.history.add(register, Operation::Read(vec![Some(seen.0)]), called, Some(returned));
                Ok(seen.0)
            }
            Ok(other) => panic!("{other:?}"),
            Err(error) => {
                self.check(&error, &[]);
                self.go_elsewhere();
                Err(error)
            }
        }
    }

    /// Sets a register, if given only when it is still what was seen.
    fn write(&mut self, register: usize, seen: Option<(u64, Revision)>) {
        let new = self.history.values.fetch_add(1, Ordering::SeqCst);
        let write = Write::UpdateResource {
            object: name(register),
            payload: Some(Sensitive(payload(new))),
            labels: None,
            indices: None,
            if_version: seen.map(|(_, version)| version),
        };
        let operation = |answer| Operation::Write {
            wants: seen.iter().map(|(value, _)| (0, Want::Value(*value))).collect(),
            writes: vec![(0, Some(new))],
            answer,
        };
        let called = self.history.now();
        // Some programs do not ask again.
        let deadline = Instant::now() + if self.random.below(4) == 0 { Duration::ZERO } else { PATIENCE };
        let mut id: Option<WriteId> = None;
        loop {
            let result = self.client().and_then(|client| {
                let id = *id.get_or_insert_with(|| client.write_id());
                client.write_as(id, write.clone(), ATTEMPT)
            });
            let returned = self.history.now();
            let error = match result {
                Ok(written) => {
                    self.seen[register] = Some((new, written.revision));
                    self.history.writes.0.fetch_add(1, Ordering::SeqCst);
                    return self.history.add(register, operation(Answer::Done), called, Some(returned));
                }
                Err(error) => error,
            };
            if error.status().code == Code::Aborted {
                self.seen[register] = None;
                // Without a demand of its own the manager lost too many races, which says nothing.
                if seen.is_some() {
                    self.history.add(register, operation(Answer::Refused), called, Some(returned));
                }
                return;
            }
            self.check(&error, &[Code::Unknown]);
            self.go_elsewhere();
            if Instant::now() > deadline {
                self.history.writes.1.fetch_add(1, Ordering::SeqCst);
                return self.history.add(register, operation(Answer::Unknown), called, None);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Registers are there, and nobody is forbidden anything.
    fn check(&self, error: &ClientError, also: &[Code]) {
        let code = error.status().code;
        if ![Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted].contains(&code)
            && !also.contains(&code)
        {
            self.history.wrong.lock().unwrap().push(format!("{}: {error:?}", code.name()));
        }
    }
}

/// What stands of the managers' processes.
struct Nemesis<'a> {
    swarm: &'a mut Swarm,
    network: &'a Network,
    stopped: [bool; MANAGERS],
}

impl Nemesis<'_> {
    fn act(&mut self, act: Act) {
        let everybody: Vec<usize> = (0..MANAGERS).collect();
        let others = |place: usize| everybody.iter().copied().filter(|&other| other != place).collect::<Vec<_>>();
        match act {
            Act::Kill(place) => self.kill(place),
            Act::KillAll => everybody.iter().for_each(|&place| self.kill(place)),
            Act::Stop(place) if self.swarm.managers[place].is_running() => {
                self.swarm.managers[place].signal(Signal::STOP);
                self.stopped[place] = true;
            }
            Act::Stop(_) => {}
            Act::Revive => self.revive(),
            Act::Split(place) => self.network.split(&[place], &others(place)),
            Act::Cut(place) => self.network.cut(&[place], &others(place)),
            Act::Hold(from, to) => self.network.hold(&[from], &[to]),
            Act::Delay(from, to, delay) => self.network.delay(from, to, delay),
            Act::CutAfter(from, to, bytes) => self.network.cut_after(from, to, bytes),
            Act::Heal => self.network.heal(),
        }
    }

    fn kill(&mut self, place: usize) {
        self.swarm.managers[place].kill();
        self.stopped[place] = false;
    }

    fn revive(&mut self) {
        for place in 0..MANAGERS {
            let manager = &mut self.swarm.managers[place];
            if !manager.is_running() {
                manager.spawn();
            } else if std::mem::take(&mut self.stopped[place]) {
                manager.signal(Signal::CONT);
            }
        }
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is no number")))
}

#[test]
fn no_order_of_kills_stops_and_partitions_loses_a_write_or_shows_an_old_value() {
    let seed = number("SKEP_CHAOS_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    let length = Duration::from_secs(number("SKEP_CHAOS_SECONDS").unwrap_or(15));
    eprintln!("SKEP_CHAOS_SEED={seed} runs this plan again");
    let (mut swarm, network) = Network::of(MANAGERS);
    swarm.managers[0].skep(&["extension", "create", KIND]).ok();
    let mut client = swarm.managers[0].client();
    for register in 0..REGISTERS {
        let (labels, indices) = Default::default();
        let (name, kind) = (name(register), KIND.to_owned());
        let write = Write::CreateResource { name, kind, labels, indices, payload: payload(0) };
        client.write(write, PATIENCE).unwrap();
    }
    let history = Arc::new(History::new());
    let sockets: Vec<PathBuf> = swarm.managers.iter().map(super::swarm::Manager::socket).collect();
    let caller = |number: u64| Caller {
        history: history.clone(),
        sockets: sockets.clone(),
        random: SeededEntropy::new(seed ^ (number + 1) << 32),
        client: None,
        seen: vec![None; REGISTERS],
    };
    let callers: Vec<_> = (0..CLIENTS as u64)
        .map(|number| {
            let mut caller = caller(number);
            std::thread::spawn(move || caller.run())
        })
        .collect();

    let mut nemesis = Nemesis { swarm: &mut swarm, network: &network, stopped: [false; MANAGERS] };
    for (act, pause) in plan(seed, length) {
        eprintln!("{act:?}");
        nemesis.act(act);
        std::thread::sleep(pause);
    }
    nemesis.revive();
    network.heal();
    let before = history.writes.0.load(Ordering::SeqCst);
    (0..MANAGERS).for_each(|place| swarm.votes(place));
    // Without anybody's help it goes on.
    super::swarm::eventually("clients are served", || {
        (history.writes.0.load(Ordering::SeqCst) > before + 20).then_some(())
    });
    history.stop.store(true, Ordering::SeqCst);
    callers.into_iter().for_each(|thread| thread.join().unwrap());

    // Each manager's last word is part of the history.
    for place in 0..MANAGERS {
        let mut reader = caller(0);
        reader.sockets.rotate_left(place);
        for register in 0..REGISTERS {
            super::swarm::eventually("a read is answered", || reader.read(register).ok());
        }
    }
    let wrong = history.wrong.lock().unwrap();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let mut count = 0;
    for (register, operations) in history.operations.iter().enumerate() {
        let operations = operations.lock().unwrap();
        count += operations.len();
        let verdict = check(&Cells(1), &operations);
        assert_eq!(verdict, Verdict::Linearizable, "register {register} of SKEP_CHAOS_SEED={seed}");
    }
    let (written, given_up) = (&history.writes.0, &history.writes.1);
    eprintln!("{count} operations, {written:?} writes acknowledged, {given_up:?} given up");
    swarm.converge();
    for manager in &swarm.managers {
        let said = manager.log_since(0);
        for never in ["panicked", "differs from", "diverged", "malformed", "dropping a raft message"] {
            assert!(!said.contains(never), "{} said {never:?} (SKEP_CHAOS_SEED={seed})", manager.name);
        }
    }
}
