//! Faults of every kind in random order; afterwards the swarm must be well and have lost nothing.
//!
//! A seed first draws a plan (swarm testing: Groce and others, 2012): how large the swarm is, what its clients do, how the
//! disk and the ring are laid out, and *which* of the nemeses take part, each with a weight of its own. A run in which
//! everything may happen is a run in which little happens for long enough; leaving most of them out lets what remains
//! come in depth.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use skep::raft::Order;
use skep::sys::entropy::SeededEntropy;
use skep::types::NodeId;

use crate::disk::Rot;
use crate::failure::{Failure, catch, fail};
use crate::history::Searched;
use crate::node::Cause;
use crate::workload::{Group, Style, Workload};
use crate::world::World;
use crate::{Duration, check, ms};

/// Seeds that once found something, and what.
const SEEDS_KEPT: &[(u64, &str)] = &[
    (123, "a campaign between an installed snapshot and the news that it is applied, which panicked"),
    (2077, "a leader without connections to anybody who counted as a peer, after a restart in no time"),
    (
        103_056,
        "an old directory that was started twice before anybody met it, which the guard cannot know and is not asked to",
    ),
    (302_800, "a node that heard of a connection's end after the next one's beginning, which no network thread does"),
    (
        305_853,
        "a leader that ends after a forced removal, before it hears from whom it needs now, which nothing forbids",
    ),
];

/// How far a run goes. Whatever is `None` is drawn from the seed.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// Faults and reliefs before everything must be well again.
    pub rounds: Option<u32>,
    /// Managers at the beginning.
    pub size: Option<usize>,
    /// What happens to them.
    pub nemeses: Option<Vec<Nemesis>>,
    /// Prints everything that happens.
    pub verbose: bool,
}

/// What a run did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Digest of everything that happened: equal for equal seeds and settings.
    pub trace: u32,
    /// Simulated time.
    pub simulated: Duration,
    /// Writes that were acknowledged.
    pub acked: usize,
    /// Reads that were answered.
    pub reads: u64,
    /// Streams that watchers opened.
    pub watches: u64,
    /// Leaders that announced themselves.
    pub reigns: usize,
    /// Managers that there ever were.
    pub managers: usize,
    /// Managers of a former history that came back and were told that it is over.
    pub outlived: usize,
    /// Acknowledged writes that were lost with the managers that had them.
    pub lost: usize,
    /// How often each nemesis struck.
    pub struck: BTreeMap<Nemesis, u32>,
    /// What the searches for an order did.
    pub searched: Searched,
}

/// A kind of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Nemesis {
    /// kill -9.
    Kill,
    /// A machine loses its power in the middle of a write.
    Power,
    /// All machines lose their power at once and start again.
    Blackout,
    /// All processes are killed at once and start again.
    RestartAll,
    /// One manager is cut off.
    Isolate,
    /// Two parts of random size.
    Halves,
    /// Everybody sees a majority, nobody the same one.
    Ring,
    /// Two parts and one manager that sees both.
    Bridge,
    /// Nothing gets from one to the others, or the other way.
    OneWay,
    /// Only the leader and one other do not see each other.
    CutLeader,
    /// Some directions lose most of what is sent.
    Flaky,
    /// The network is slow, loses, repeats and reorders.
    Weather,
    /// SIGSTOP.
    Pause,
    /// A disk answers nothing.
    Stall,
    /// A disk takes its time.
    SlowDisk,
    /// A disk is full.
    FullDisk,
    /// A sync fails, which ends the process.
    SyncError,
    /// A bit of a log segment or snapshot changes.
    Flip,
    /// A log segment or snapshot loses its end.
    Truncate,
    /// The log's directory is gone.
    Wipe,
    /// An old copy of the directory is put in its place.
    Rollback,
    /// Monotonic clocks run at different rates, wall clocks jump.
    Clock,
    /// A manager joins.
    Join,
    /// A manager is removed.
    Leave,
    /// One is removed and another joins.
    Replace,
    /// A manager gets another address.
    Move,
    /// Leadership is handed over.
    Transfer,
    /// A snapshot is ordered.
    Snapshot,
    /// All managers but one are lost, and the swarm goes on from that one; some of the others come back later.
    Recover,
}

impl Nemesis {
    pub const ALL: [Self; 29] = [
        Self::Kill,
        Self::Power,
        Self::Blackout,
        Self::RestartAll,
        Self::Isolate,
        Self::Halves,
        Self::Ring,
        Self::Bridge,
        Self::OneWay,
        Self::CutLeader,
        Self::Flaky,
        Self::Weather,
        Self::Pause,
        Self::Stall,
        Self::SlowDisk,
        Self::FullDisk,
        Self::SyncError,
        Self::Flip,
        Self::Truncate,
        Self::Wipe,
        Self::Rollback,
        Self::Clock,
        Self::Join,
        Self::Leave,
        Self::Replace,
        Self::Move,
        Self::Transfer,
        Self::Snapshot,
        Self::Recover,
    ];

    /// Of a hundred plans that may have everything, so many have it, where most nemeses have `percent`.
    const fn share(self, percent: u64) -> u64 {
        match self {
            // It ends what was, and what takes long to come about must have its time in most runs.
            Self::Recover => percent / 3,
            _ => percent,
        }
    }
}

/// What a seed stands for.
#[derive(Clone, Debug)]
struct Plan {
    size: usize,
    rounds: u32,
    /// Longest pause between two strikes, milliseconds.
    pause_ms: u64,
    /// Of a thousand rounds, so many make something better instead.
    relief: u64,
    /// Everything that may strike, as often as its weight says.
    nemeses: Vec<Nemesis>,
    clients: usize,
    watchers: usize,
    snapshot_bytes: u64,
    keep_bytes: u64,
    segment_bytes: u64,
    ring_bytes: usize,
    workload: Workload,
}

impl Plan {
    fn draw(seed: u64, settings: &Settings) -> Self {
        // Apart from the world's numbers, so that a plan is not tied to what happens under it.
        let mut entropy = SeededEntropy::new(seed ^ 0x9e37_79b9_7f4a_7c15);
        let mut one_of = |choices: &[u64]| choices[entropy.below(choices.len() as u64) as usize];
        let size = one_of(&[1, 2, 3, 3, 3, 3, 3, 4, 5, 5, 5, 7]) as usize;
        let rounds = one_of(&[15, 25, 40]) as u32;
        let pause_ms = one_of(&[60, 300, 700, 1500]);
        let relief = one_of(&[250, 500, 600]);
        let percent = one_of(&[10, 25, 50]);
        let clients = one_of(&[1, 3, 5]) as usize;
        let watchers = one_of(&[0, 1, 4]) as usize;
        let snapshot_bytes = one_of(&[6 << 10, 24 << 10, 1 << 20]);
        let keep_bytes = one_of(&[1 << 10, 8 << 10]);
        let segment_bytes = one_of(&[8 << 10, 32 << 10]);
        let ring_bytes = one_of(&[4 << 10, 1 << 20]) as usize;
        let cells = one_of(&[1, 3, 5]) as usize;
        let workload = Workload {
            groups: vec![
                Group { style: Style::Registers, cells },
                Group { style: Style::Set, cells: cells + 2 },
                Group { style: Style::Bank, cells: cells + 1 },
            ],
            reads: one_of(&[100, 300, 600]),
            stale: one_of(&[0, 100]),
            fresh: one_of(&[0, 50, 200]),
            named: 60,
            lost_answers: one_of(&[0, 20, 200]),
            to_leader: one_of(&[0, 500, 900]),
            payload: one_of(&[8, 200, 1200]) as usize,
            think_us: (500, one_of(&[3_000, 40_000, 200_000])),
            timeout: ms(one_of(&[300, 2000])),
            patience: ms(one_of(&[1500, 6000, 60_000])),
        };
        let mut nemeses = Vec::new();
        for nemesis in settings.nemeses.as_deref().unwrap_or(&Nemesis::ALL) {
            if settings.nemeses.is_some() || entropy.below(100) < nemesis.share(percent) {
                let weight = if *nemesis == Nemesis::Recover { 1 } else { 1 + entropy.below(3) as usize };
                nemeses.extend(std::iter::repeat_n(*nemesis, weight));
            }
        }
        Self {
            size: settings.size.unwrap_or(size),
            rounds: settings.rounds.unwrap_or(rounds),
            pause_ms,
            relief,
            nemeses,
            clients,
            watchers,
            snapshot_bytes,
            keep_bytes,
            segment_bytes,
            ring_bytes,
            workload,
        }
    }
}

/// One seed: a swarm, clients, trouble of every kind, and in the end everything that must hold.
pub fn explore(seed: u64, settings: &Settings) -> Result<Report, Failure> {
    catch(|| run(seed, settings))
}

fn run(seed: u64, settings: &Settings) -> Report {
    let plan = Plan::draw(seed, settings);
    let mut world = World::new(seed);
    world.verbose |= settings.verbose;
    if world.verbose {
        println!("{plan:#?}");
    }
    let began = world.now;
    let layout = &mut world.layout;
    (layout.segment_bytes, layout.ring_bytes) = (plan.segment_bytes, plan.ring_bytes);
    (layout.settings.snapshot_bytes, layout.settings.keep_bytes) = (plan.snapshot_bytes, plan.keep_bytes);
    world.workload = plan.workload.clone();
    world.grow(plan.size);
    world.load(plan.clients);
    world.watch(plan.watchers);
    let mut struck: BTreeMap<Nemesis, u32> = BTreeMap::new();
    for _ in 0..plan.rounds {
        let wait = world.entropy.below(plan.pause_ms) + 20;
        world.run_for(ms(wait));
        if plan.nemeses.is_empty() || world.entropy.below(1000) < plan.relief {
            relief(&mut world);
        } else {
            let nemesis = plan.nemeses[world.entropy.below(plan.nemeses.len() as u64) as usize];
            if strike(&mut world, nemesis) {
                *struck.entry(nemesis).or_default() += 1;
            }
        }
    }
    world.recover_and_check();
    Report {
        trace: world.trace,
        simulated: world.now.since(began),
        acked: world.acked.len(),
        reads: world.reads_done,
        watches: world.watches,
        reigns: world.reigns.len(),
        managers: world.nodes.len(),
        outlived: world.outlived.len(),
        lost: world.acked_and_lost,
        struck,
        searched: world.searched,
    }
}

/// As [`explore`], for tests.
fn explored(seed: u64) -> Report {
    explore(seed, &Settings::default()).unwrap_or_else(|failure| fail(failure.checker, failure.message))
}

/// Whoever is struck: the leader as often as everybody else together.
fn victim(world: &mut World) -> NodeId {
    let ids: Vec<NodeId> = world.ids().into_iter().filter(|id| !world.is_gone(*id)).collect();
    let any = ids[world.entropy.below(ids.len() as u64) as usize];
    world.leader().filter(|_| world.entropy.below(2) == 0).unwrap_or(any)
}

/// Managers that count, in random order.
fn shuffled(world: &mut World) -> Vec<NodeId> {
    let mut ids: Vec<NodeId> = world.ids().into_iter().filter(|id| !world.is_gone(*id)).collect();
    for at in (1..ids.len()).rev() {
        ids.swap(at, world.entropy.below(at as u64 + 1) as usize);
    }
    ids
}

/// One fault; false when it cannot be made now.
pub fn strike(world: &mut World, nemesis: Nemesis) -> bool {
    let id = victim(world);
    // Started twice before anybody met it, an old directory counts more starts than anybody knows of.
    let unmet = world.rolled_back_and_unmet();
    match nemesis {
        Nemesis::Kill | Nemesis::Power | Nemesis::SyncError | Nemesis::FullDisk if unmet == Some(id) => return false,
        Nemesis::Kill | Nemesis::Power => {
            if !world.is_running(id) {
                return false;
            }
            if nemesis == Nemesis::Kill { world.kill(id) } else { world.lose_power_while_writing(id) }
        }
        Nemesis::Blackout | Nemesis::RestartAll => {
            let running = |id: &NodeId| world.is_running(*id) && unmet != Some(*id);
            let running: Vec<NodeId> = world.ids().into_iter().filter(running).collect();
            for &id in &running {
                if nemesis == Nemesis::Blackout { world.lose_power(id) } else { world.kill(id) }
            }
            for id in running {
                world.start(id);
            }
        }
        Nemesis::Isolate
        | Nemesis::Halves
        | Nemesis::Ring
        | Nemesis::Bridge
        | Nemesis::OneWay
        | Nemesis::CutLeader
        | Nemesis::Flaky
        | Nemesis::Weather => return disturb(world, nemesis, id),
        Nemesis::Pause => world.pause(id, true),
        Nemesis::Stall => world.stall(id, true),
        Nemesis::SlowDisk => {
            let slowest = [10_000, 100_000, 1_500_000][world.entropy.below(3) as usize];
            world.slow_disk(id, (slowest / 10, slowest));
        }
        Nemesis::FullDisk => {
            let free = world.entropy.below(40 << 10);
            world.limit_disk(id, Some(free));
        }
        Nemesis::SyncError if !world.is_running(id) => return false,
        Nemesis::SyncError => world.fail_syncs(id),
        Nemesis::Flip | Nemesis::Truncate | Nemesis::Wipe | Nemesis::Rollback => return ruin(world, nemesis, id),
        Nemesis::Clock => {
            let most = [500, 20_000, 300_000][world.entropy.below(3) as usize];
            let ppm = world.entropy.below(2 * most + 1) as i64 - most as i64;
            world.clock_rate(id, ppm);
            let jump = world.entropy.below(1 << 36) as i64 - (1 << 35);
            world.wall_clock(id, jump);
        }
        Nemesis::Join | Nemesis::Leave | Nemesis::Replace | Nemesis::Move | Nemesis::Transfer | Nemesis::Snapshot => {
            return churn(world, nemesis, id);
        }
        Nemesis::Recover => return recover(world),
    }
    true
}

/// All but one are lost for good, or nearly so.
fn recover(world: &mut World) -> bool {
    let heir = shuffled(world)[0];
    if !world.recover_one(heir) {
        return false;
    }
    let leader = world.wait_for_leader(ms(10_000));
    for _ in 0..world.entropy.below(4) {
        world.try_to_join(leader);
    }
    for former in world.left_behind().into_iter().take(2) {
        if world.entropy.below(2) == 0 {
            world.start(former);
        }
    }
    true
}

/// The network.
fn disturb(world: &mut World, nemesis: Nemesis, id: NodeId) -> bool {
    let ids = shuffled(world);
    let others: Vec<NodeId> = ids.iter().copied().filter(|other| *other != id).collect();
    match nemesis {
        Nemesis::Isolate => world.isolate(&[id]),
        Nemesis::Halves => {
            let at = world.entropy.below(ids.len() as u64) as usize;
            world.part(&ids[..at], &ids[at..]);
        }
        Nemesis::Ring => {
            // Each sees those next to it: with itself a majority.
            let reach = ids.len() / 4 + 1;
            for (one, a) in ids.iter().enumerate() {
                for (other, b) in ids.iter().enumerate().skip(one + 1) {
                    let distance = (other - one).min(ids.len() - (other - one));
                    if distance > reach || (ids.len() == 3 && one == 0 && other == 1) {
                        world.part(&[*a], &[*b]);
                    }
                }
            }
        }
        Nemesis::Bridge => {
            let half = others.len() / 2;
            world.part(&others[..half], &others[half..]);
        }
        Nemesis::OneWay => {
            if world.entropy.below(2) == 0 {
                world.cut(&[id], &others)
            } else {
                world.cut(&others, &[id])
            }
        }
        Nemesis::CutLeader => {
            let Some(leader) = world.leader() else { return false };
            let Some(&other) = ids.iter().find(|id| **id != leader) else { return false };
            world.part(&[leader], &[other]);
        }
        Nemesis::Flaky => {
            for &a in &ids {
                for &b in &ids {
                    if a != b && world.entropy.below(3) == 0 {
                        let lost = 300 + world.entropy.below(650);
                        world.net.flaky.insert((a, b), lost);
                    }
                }
            }
        }
        _ => {
            world.net.drop = world.entropy.below(200);
            world.net.duplicate = world.entropy.below(200);
            world.net.reorder = world.entropy.below(2) == 0;
            world.net.latency_us = (100, 500 + world.entropy.below(60_000));
        }
    }
    true
}

/// One member's data is lost, damaged or old. Never a second one's before the first has been replaced: a swarm cannot
/// survive the loss of what a majority holds, and says nothing else.
fn ruin(world: &mut World, nemesis: Nemesis, id: NodeId) -> bool {
    let Some(leader) = world.leader() else { return false };
    let copied = world.ids().into_iter().find(|id| nemesis == Nemesis::Rollback && world.would_be_noticed(*id));
    let id = copied.unwrap_or(id);
    let voters = world.state(leader).configuration().voters;
    let is_voter = voters.contains(&world.nodes[&id].raft_id);
    if world.lost.is_some() || voters.len() < 3 || !is_voter || world.is_gone(id) || !world.is_settled() {
        return false;
    }
    if world.is_running(id) {
        world.kill(id);
    }
    match nemesis {
        Nemesis::Flip | Nemesis::Truncate => {
            let rot = if nemesis == Nemesis::Flip { Rot::Flip } else { Rot::Truncate };
            if !world.rot(id, rot) {
                return false;
            }
        }
        Nemesis::Wipe => {
            world.wipe(id);
            world.lost = Some(id);
        }
        _ if world.would_be_noticed(id) => world.restore_directory(id),
        _ => {
            // The first time makes the copy, and a later one puts it back.
            world.copy_directory(id);
            world.start(id);
            return false;
        }
    }
    world.start(id);
    true
}

/// Orders at whoever leads, without insisting.
fn churn(world: &mut World, nemesis: Nemesis, id: NodeId) -> bool {
    let Some(leader) = world.leader() else { return false };
    let members = world.state(leader).members().len();
    match nemesis {
        // A member that lost its data unnoticed must not meet somebody who never met it.
        Nemesis::Join if members < 7 && world.lost.is_none() => world.try_to_join(leader),
        Nemesis::Leave if members > 2 => {
            drop(world.order_at(leader, Order::Leave { node_id: id, force: false, for_good: true }))
        }
        Nemesis::Replace if members > 1 && world.lost.is_none() => {
            drop(world.order_at(leader, Order::Leave { node_id: id, force: false, for_good: true }));
            if let Some(leader) = world.leader() {
                world.try_to_join(leader);
            }
        }
        Nemesis::Move => {
            let addr = format!("moved-{}:{}", id.0, world.entropy.below(1000));
            drop(world.order_at(leader, Order::SetAddress { node_id: id, addr }));
        }
        Nemesis::Transfer => {
            let to = (world.entropy.below(2) == 0).then_some(id);
            drop(world.order_at(leader, Order::Transfer { to }));
        }
        Nemesis::Snapshot => {
            if !world.is_running(id) {
                return false;
            }
            drop(world.order_at(id, Order::Snapshot));
        }
        _ => return false,
    }
    true
}

/// Whether whoever starts managers again would start this one.
fn may_start(world: &World, id: NodeId) -> bool {
    matches!(world.stopped(id), None | Some(Cause::Disk(_))) && world.is_current(id)
}

/// Something gets better.
pub fn relief(world: &mut World) {
    if world.entropy.below(2) == 0 {
        world.heal();
    }
    for id in world.ids() {
        match world.entropy.below(4) {
            0 | 1 if !world.is_running(id) && may_start(world, id) => world.start(id),
            2 => {
                world.pause(id, false);
                world.stall(id, false);
                world.slow_disk(id, (100, 1000));
                world.limit_disk(id, None);
            }
            _ => {}
        }
    }
    if world.lost.is_some() && world.entropy.below(4) == 0 {
        world.relieve();
        world.start_all();
        world.replace_lost();
    }
}

#[test]
fn a_swarm_survives_every_mix_of_faults() {
    check(150, |seed| drop(explored(seed)));
}

#[test]
fn a_swarm_survives_more_mixes_of_faults() {
    check(150, |seed| drop(explored(seed + 1000)));
}

/// What makes managers differ in what they hold, and recoveries more often than in a plan of everything.
const RECOVERIES: &[Nemesis] = &[
    Nemesis::Recover,
    Nemesis::Isolate,
    Nemesis::Halves,
    Nemesis::Pause,
    Nemesis::Stall,
    Nemesis::Power,
    Nemesis::Kill,
    Nemesis::Blackout,
    Nemesis::SyncError,
    Nemesis::FullDisk,
    Nemesis::Wipe,
    Nemesis::Flip,
    Nemesis::Rollback,
    Nemesis::Join,
    Nemesis::Leave,
    Nemesis::Transfer,
    Nemesis::Snapshot,
];

#[test]
fn a_swarm_survives_recoveries_among_other_faults() {
    let settings = Settings { nemeses: Some(RECOVERIES.to_vec()), ..Settings::default() };
    check(25, |seed| match explore(seed, &settings) {
        Ok(report) => drop(report),
        Err(failure) => fail(failure.checker, failure.message),
    });
}

#[test]
fn seeds_that_found_something_are_clean() {
    for (seed, found) in SEEDS_KEPT {
        if let Err(failure) = explore(*seed, &Settings::default()) {
            panic!("seed {seed}, kept because of {found}: {failure}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    check(3, |seed| assert_eq!(explored(seed), explored(seed)));
}

/// What `scripts/sim` runs: seeds from `SKEP_SIM_FROM` on, so many as `SKEP_SIM_SEEDS` says or for `SKEP_SIM_SECONDS`, on
/// every core; stops at the first that fails. With `SKEP_SIM_REPLAY` it tells everything that happens under one seed.
#[test]
#[ignore = "run by scripts/sim"]
fn hunt() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let from = number("SKEP_SIM_FROM").unwrap_or(1);
    let seconds = number("SKEP_SIM_SECONDS").map(Duration::from_secs);
    let count = number("SKEP_SIM_SEEDS").unwrap_or(if seconds.is_some() { u64::MAX - from } else { 300 });
    let threads = if count == 1 { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let began = std::time::Instant::now();
    let (next, stop, failed) = (AtomicU64::new(from), AtomicBool::new(false), Mutex::new(None));
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !stop.load(Relaxed) && seconds.is_none_or(|limit| began.elapsed() < limit) {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= from.saturating_add(count) {
                        break;
                    }
                    match explore(seed, &Settings::default()) {
                        Ok(report) => totals.lock().unwrap().add(&report, began),
                        Err(failure) => {
                            stop.store(true, Relaxed);
                            failed.lock().unwrap().get_or_insert((seed, failure));
                        }
                    }
                }
            });
        }
    });
    println!("{}", totals.lock().unwrap().line(began));
    println!("{}", totals.lock().unwrap().table());
    if let Some((seed, failure)) = failed.into_inner().unwrap() {
        println!("seed {seed}: {failure}\nreplay: scripts/sim --seed {seed} --replay");
        std::process::exit(1);
    }
}

/// What many runs did.
#[derive(Default)]
struct Totals {
    seeds: u64,
    simulated: Duration,
    acked: usize,
    reads: u64,
    searched: Searched,
    /// How often each nemesis struck, and in how many runs.
    struck: BTreeMap<Nemesis, (u32, u32)>,
    outlived: usize,
    lost: usize,
    told: Duration,
}

impl Totals {
    fn add(&mut self, report: &Report, began: std::time::Instant) {
        self.seeds += 1;
        self.simulated += report.simulated;
        self.acked += report.acked;
        self.reads += report.reads;
        self.searched.add(report.searched);
        self.outlived += report.outlived;
        self.lost += report.lost;
        for (nemesis, count) in &report.struck {
            let (times, runs) = self.struck.entry(*nemesis).or_default();
            (*times, *runs) = (*times + count, *runs + 1);
        }
        if began.elapsed() >= self.told + Duration::from_secs(5) {
            self.told = began.elapsed();
            println!("{}", self.line(began));
        }
    }

    /// Every nemesis with how often it struck and in how many runs, also those that never did.
    fn table(&self) -> String {
        let cell = |nemesis: &Nemesis| {
            let (times, runs) = self.struck.get(nemesis).copied().unwrap_or_default();
            format!("{:<12}{times:>6} in {runs:<6}", format!("{nemesis:?}"))
        };
        let rows = Nemesis::ALL.chunks(4).map(|row| row.iter().map(cell).collect::<Vec<_>>().join("  "));
        let rows: Vec<String> = rows.map(|row| row.trim_end().to_owned()).collect();
        format!(
            "struck (times in runs):\n{}\n{} managers of a former history were told so; {} acknowledged writes were lost \
             with all who had them",
            rows.join("\n"),
            self.outlived,
            self.lost,
        )
    }

    fn line(&self, began: std::time::Instant) -> String {
        let (hours, minutes) = (self.simulated.as_secs_f64() / 3600.0, began.elapsed().as_secs_f64() / 60.0);
        format!(
            "{} seeds, {hours:.2} simulated hours in {:.0} s ({:.1} hours a minute), {} writes and {} reads answered, \
             {} operations in {} histories ordered, {} searches given up",
            self.seeds,
            minutes * 60.0,
            hours / minutes,
            self.acked,
            self.reads,
            self.searched.operations,
            self.searched.histories,
            self.searched.given_up,
        )
    }
}
