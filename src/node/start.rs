//! From a directory to a running node.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::dir::{DataDir, NodeFile, Phase};
use super::found::{self, Keys};
use super::greeting::Greetings;
use super::handler::{Active, Identity, NodeHandler, Parts};
use super::inside::Inside;
use super::keeper::Keeper;
use super::lobby::{Joiner, Lobby, Progress};
use super::manager::{Manager, Running};
use super::outlet::{Completion, Post};
use super::pace::Pace;
use super::sockets::{self, Sockets};
use super::stop::{StopCell, Stopped};
use super::supervisor::{self, Engine, House};
use super::worker::{self, Worker};
use super::{Config, Node, StartError, StartFailure, join, keys, leader, locked, locksmith, snapshots, space};
use crate::agent::Own;
use crate::agent::run::{self as agent_run, Agent, Follow};
use crate::ca::Janitor;
use crate::ca::rotation::Rotation;
use crate::net::{self, NetHandle, NetInbox};
use crate::pki::seal::DataKey;
use crate::pki::{self, NodeIdentity, UnlockKey};
use crate::raft::machine::{Machine as RaftMachine, Options};
use crate::raft::recover::{self, RecoverError, Recovery, Snapshots};
use crate::raft::run::{self as raft_run, Inbox, Outlet, Workers};
use crate::raft::{self, Timing, run};
use crate::roles::Roles;
use crate::store::{Store, scrub};
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::files::RealDisk;
use crate::sys::metrics::Gauge;
use crate::sys::metrics::Metrics;
use crate::sys::queue::{Sender, bounded};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{monotonic, set_floor, wall_ms};
use crate::term::Service;
use crate::types::api::{DiskSpace, FEATURE_LEVEL, Hello, JoinAnswer, PROTOCOL, RaftReport, RaftState, SessionItem};
use crate::types::limits::{WATCH_RING_BYTES, WATCH_RING_BYTES_SDCARD};
use crate::types::object::{NodeDescription, Profile};
use crate::types::{
    ClusterId, Index, Kind, Lineage, NodeId, Position, RaftId, Revision, Role, Status, Term, Timestamp,
};
use crate::wal::{self, Recovered, Reserve, SEGMENT_BYTES, SEGMENT_BYTES_SDCARD, Wal, WalError};

/// Batches that wait for the log or for apply; their bytes are bounded by raft.
const WORK_QUEUE: usize = 1024;
/// Completions that wait for the net thread.
const NET_QUEUE: usize = 1 << 13;

/// Starts a node as `config` says. While its keys are locked and nobody has given the unlock key, `while_locked` is called
/// at once and then about every second; without it a locked directory is refused.
pub fn start(config: Config, while_locked: Option<&mut dyn FnMut()>) -> Result<Node, StartError> {
    let dir = DataDir::open(&config.data_dir)?;
    let known = dir.read()?;
    if let Some(cut) = known.as_ref().and_then(|file| file.repaired.as_ref()) {
        let what = format!("cannot start from {}", dir.path().display());
        let why = format!(
            "its log was repaired ({cut}): what was cut off may have been acknowledged, and a member that forgot that must \
             not vote"
        );
        let hint = format!(
            "with a majority of the other managers alive: move the directory aside and join anew with another address or \
             port in --listen and --advertise (the old member stays in the list and counts towards the majority); \
             without one: make it a swarm of its own with `skep recover --data-dir {}`",
            dir.path().display()
        );
        return Err(StartError::refused(what, why, hint));
    }
    if known.is_none() {
        check_new(&config, &dir)?;
    }
    let is_worker = known.as_ref().is_some_and(|file| file.phase == Phase::Worker);
    let sockets = sockets::bind(&config, is_worker)?;
    let (mut sockets, unlock) = match &known {
        Some(file) => locked::unlock(&config, &dir, file, sockets, while_locked)?,
        None => (sockets, None),
    };
    let mut file = match known {
        Some(file) => file,
        None => begin(&config, &dir)?,
    };
    if matches!(file.phase, Phase::Member | Phase::Worker) && config.join.is_some() {
        log::info!("{} belongs to a member of a swarm already: --join and --token are ignored", dir.path().display());
    }
    if file.phase == Phase::Founding && config.join.is_some() {
        // A first start that was cut off left nothing worth keeping, and the operator has decided otherwise since.
        dir.wipe_unfinished()?;
        file.phase = Phase::Joining;
    }
    file.boot += 1;
    let progress = Progress::default();
    let opened = match file.phase {
        Phase::Founding => {
            let description = describe(config.name.as_deref());
            let bytes = segment_bytes(file.profile);
            let (keys, wal, recovered) = found::found(&dir, &mut file, description, &sockets.advertise, bytes)?;
            dir.write(&file)?;
            log::info!("made a new swarm");
            Opened { keys, log: Some((wal, recovered)) }
        }
        Phase::Restoring => {
            let what = format!("cannot start from {}", dir.path().display());
            let hint =
                format!("give the command again: `skep backup restore FILE --data-dir {}`", dir.path().display());
            return Err(StartError::refused(what, "a restore of a backup to it was not finished", hint));
        }
        Phase::Joining => join_begin(&config, &dir, &mut file, &sockets, &progress, unlock.as_ref())?,
        Phase::Member => {
            // Raised and synced before anybody hears of this start.
            dir.write(&file)?;
            reopen(&dir, &file, unlock.as_ref())?
        }
        Phase::Worker => {
            dir.write(&file)?;
            Opened { keys: node_keys(&dir, &file, unlock.as_ref())?, log: None }
        }
    };
    let role = opened.keys.identity.identity().role;
    if role == Role::Worker && file.phase == Phase::Joining {
        // The token was a worker's.
        file.phase = Phase::Worker;
        dir.write(&file)?;
        log::info!("joined the swarm as a worker");
    }
    let own = Own::new(opened.keys.identity.clone(), opened.keys.root_pem.clone());
    let clock_unset = mind_the_clock(&own, worker::remembered_ms(&dir));
    let listen = sockets.listen.take();
    let house = House {
        config,
        dir: Arc::new(dir),
        sockets,
        metrics: Metrics::default(),
        own,
        keys: opened.keys.clone(),
        progress,
        clock_unset,
    };
    // A member without a log was taken out of the group: it asks what it is now.
    let takes_part = opened.log.is_some() || file.phase == Phase::Joining;
    let engine = match listen {
        Some(listen) if takes_part => {
            let advertise = house.sockets.advertise.clone();
            let addr = file.join.clone().into_iter().collect::<Vec<_>>();
            let manager = Starter::new(&house, file.clone(), listen, advertise, opened)?.run(&addr)?;
            file = house.dir.read()?.unwrap_or(file);
            Engine::Manager(Arc::new(manager))
        }
        _ => {
            sweep(&house.dir, &file);
            Engine::Worker(Arc::new(Worker::start(&house, &file, file.phase == Phase::Member)?))
        }
    };
    supervisor::begin(house, file, engine).map_err(internal)
}

/// A machine without a battery for its clock begins in the past. One that shows a time before this node's own certificate
/// was made was never set: then the time goes on from the newest that the node knows of. True when that is so.
fn mind_the_clock(own: &Own, known_ms: u64) -> bool {
    let identity = own.identity();
    let now_ms = wall_ms();
    if now_ms >= identity.not_before_ms {
        return false;
    }
    // Authorities date certificates back by a day.
    let signed_ms = (identity.not_before_ms + 86_400_000).min(identity.not_after_ms);
    let floor_ms = known_ms.max(signed_ms);
    log::warn!(
        "this machine's clock says {}, which cannot be: going on from {} until it is set",
        Timestamp(now_ms),
        Timestamp(floor_ms)
    );
    set_floor(floor_ms);
    true
}

/// A crash between the decision that a node is a worker and the end of its log: does the rest.
fn sweep(dir: &DataDir, file: &NodeFile) {
    if file.phase == Phase::Worker && has_log(dir) {
        match dir.retire(wall_ms()) {
            Ok(aside) => log::info!("the log was moved to {}", aside.display()),
            Err(error) => log::error!("the log could not be moved aside: {error}"),
        }
    }
}

/// What a manager or worker begins with.
pub(super) struct Opened {
    pub keys: Keys,
    /// `None` for a joiner: its history is not known yet.
    pub log: Option<(Wal, Recovered)>,
}

fn check_new(config: &Config, dir: &DataDir) -> Result<(), StartError> {
    if config.existing {
        let what = format!("cannot start from {}", dir.path().display());
        let hint = "is its disk mounted? leave --existing out to begin a new node";
        return Err(StartError::refused(what, "it is empty, and --existing was given", hint));
    }
    Ok(())
}

/// `node.json` of a new node, written before anything else.
fn begin(config: &Config, dir: &DataDir) -> Result<NodeFile, StartError> {
    let phase = if config.join.is_some() { Phase::Joining } else { Phase::Founding };
    let mut file = NodeFile::new(phase, config.profile);
    file.join.clone_from(&config.join);
    dir.write(&file)?;
    Ok(file)
}

pub(super) fn segment_bytes(profile: Profile) -> u64 {
    if profile == Profile::Sdcard { SEGMENT_BYTES_SDCARD } else { SEGMENT_BYTES }
}

pub(super) fn describe(name: Option<&str>) -> NodeDescription {
    let system = rustix::system::uname();
    let text = |name: &std::ffi::CStr| name.to_string_lossy().into_owned();
    NodeDescription {
        hostname: name.map(str::to_owned).unwrap_or_else(|| text(system.nodename())),
        architecture: text(system.machine()),
        os: text(system.sysname()).to_lowercase(),
        engine_version: env!("CARGO_PKG_VERSION").to_owned(),
        ..NodeDescription::default()
    }
}

fn join_begin(
    config: &Config,
    dir: &DataDir,
    file: &mut NodeFile,
    sockets: &Sockets,
    progress: &Progress,
    unlock: Option<&UnlockKey>,
) -> Result<Opened, StartError> {
    // The command line wins over what an earlier start was told: the operator may have mended it.
    if config.join.is_some() {
        file.join.clone_from(&config.join);
    }
    dir.write(file)?;
    let keys = match read_keys(dir, file, unlock)? {
        Some(keys) => keys,
        None => {
            let addr = file.join.clone().unwrap_or_default();
            let description = describe(config.name.as_deref());
            progress.say(format!("beginning to join {addr}"));
            let joiner = Joiner {
                node_id: NodeId(0),
                cluster_id: ClusterId(0),
                hostname: description.hostname.clone(),
                progress: progress.clone(),
            };
            let Sockets { unix, of_group, http, .. } = sockets;
            let _lobby = Lobby::open(unix, *of_group, http.as_ref(), joiner).map_err(internal)?;
            join::certificate(dir, file, &addr, config.token.as_ref(), description, progress)?
        }
    };
    Ok(Opened { keys, log: None })
}

/// Certificate, root and keys, if a certificate was issued already. `unlock` opens a key file that is locked.
pub(super) fn read_keys(
    dir: &DataDir,
    file: &NodeFile,
    unlock: Option<&UnlockKey>,
) -> Result<Option<Keys>, StartError> {
    let what = || format!("cannot use the certificate in {}", dir.path().display());
    dir.recover_identity(unlock)?;
    let (Some(root_pem), Some(chain)) = (dir.read_text("pki/root.crt")?, dir.read_text("pki/node.crt")?) else {
        return Ok(None);
    };
    let Some(store) = dir.open_keys(unlock)? else { return Ok(None) };
    let damaged = |error: pki::PkiError| StartError::new(StartFailure::Damaged, what(), &error, error.hint());
    let identity = NodeIdentity::new(&chain, store.file().node_key).map_err(damaged)?;
    if file.node_id.is_some_and(|node_id| node_id != identity.identity().node_id) {
        let hint = "put the files of pki/ back that belong to this node.json";
        return Err(StartError::new(StartFailure::Damaged, what(), "it names another node than node.json", hint));
    }
    // One that is over, or not yet valid by this machine's clock, is renewed.
    if let Err(error) = identity.verify_at_its_time(&root_pem, wall_ms()) {
        return Err(StartError::refused(what(), &error, error.hint()));
    }
    Ok(Some(Keys { identity, root_pem, store }))
}

/// The certificate and keys of a node that is part of a swarm.
fn node_keys(dir: &DataDir, file: &NodeFile, unlock: Option<&UnlockKey>) -> Result<Keys, StartError> {
    let what = || format!("cannot start from {}", dir.path().display());
    read_keys(dir, file, unlock)?.ok_or_else(|| {
        let hint = "put pki/ back from a backup, or move the whole directory aside and join again";
        StartError::new(StartFailure::Damaged, what(), "its certificate or key is missing", hint)
    })
}

/// What a member needs to read its log, whether its certificate is in force or not. Every way to an existing log leads
/// through here.
pub(super) fn member_keys(dir: &DataDir, file: &NodeFile, unlock: Option<&UnlockKey>) -> Result<Keys, StartError> {
    let what = || format!("cannot start from {}", dir.path().display());
    let keys = node_keys(dir, file, unlock)?;
    if !has_log(dir) {
        if let Some(aside) = dir.retired() {
            let why = format!("this node left the swarm or was removed from it; its log was moved to {aside}");
            let hint = "to join again, move the whole directory aside and start with --join HOST:PORT and a token";
            return Err(StartError::refused(what(), why, hint));
        }
        let why =
            "its log is gone (raft/ is missing or empty): a member that forgot what it acknowledged must not vote";
        let hint = "put raft/ back, or move the whole directory aside and join anew with another address or port in \
                    --listen and --advertise; the old member stays in the list and counts towards the majority";
        return Err(StartError::refused(what(), why, hint));
    }
    Ok(keys)
}

fn reopen(dir: &DataDir, file: &NodeFile, unlock: Option<&UnlockKey>) -> Result<Opened, StartError> {
    if !has_log(dir) && dir.retired().is_some() && !file.left {
        return Ok(Opened { keys: node_keys(dir, file, unlock)?, log: None });
    }
    let keys = member_keys(dir, file, unlock)?;
    let lineage = lineage(dir, file)?;
    Ok(Opened { log: Some(open_log(dir, &keys, file.profile, lineage)?), keys })
}

fn has_log(dir: &DataDir) -> bool {
    let names = std::fs::read_dir(dir.raft()).into_iter().flatten().flatten();
    names.into_iter().any(|entry| entry.file_name().to_string_lossy().starts_with("wal-"))
}

pub(super) fn lineage(dir: &DataDir, file: &NodeFile) -> Result<Lineage, StartError> {
    file.lineage.ok_or_else(|| {
        let what = format!("cannot start from {}", dir.path().display());
        StartError::new(StartFailure::Damaged, what, "node.json names no lineage", "put it back from a backup")
    })
}

fn open_log(dir: &DataDir, keys: &Keys, profile: Profile, lineage: Lineage) -> Result<(Wal, Recovered), StartError> {
    let options = wal::Options { segment_bytes: segment_bytes(profile), lineage };
    Wal::open(Arc::new(RealDisk), &dir.raft(), keys.store.keyring(), options).map_err(|error| log_error(dir, &error))
}

pub(super) fn log_error(dir: &DataDir, error: &WalError) -> StartError {
    let what = format!("cannot open the log in {}", dir.raft().display());
    let failure = match error {
        WalError::Damaged { .. } => StartFailure::Damaged,
        WalError::Io { .. } => StartFailure::Internal,
        _ => StartFailure::Refused,
    };
    StartError::new(failure, what, error, error.hint())
}

/// Puts the threads of a manager together.
pub(super) struct Starter<'a> {
    house: &'a House,
    file: NodeFile,
    opened: Opened,
    identity: Identity,
    metrics: Metrics,
    stop: Arc<StopCell<Stopped>>,
    watched: Arc<AtomicBool>,
    raft: run::Handle,
    raft_inbox: Option<Inbox>,
    net: NetHandle<Completion>,
    net_parts: Option<(net::Config, NodeHandler, NetInbox<Completion>)>,
    net_thread: Option<Thread>,
    listen: std::net::SocketAddr,
}

pub(super) fn internal(error: impl std::fmt::Display) -> StartError {
    StartError::new(StartFailure::Internal, "cannot start the node", error, "")
}

impl<'a> Starter<'a> {
    /// Makes the queues between the threads.
    pub fn new(
        house: &'a House,
        file: NodeFile,
        listen: std::net::TcpListener,
        advertise: String,
        opened: Opened,
    ) -> Result<Self, StartError> {
        let metrics = house.metrics.clone();
        let stop = Arc::new(StopCell::default());
        let watched = Arc::new(AtomicBool::new(false));
        let certificate = house.own.identity();
        let mut entropy = OsEntropy;
        let identity = Identity {
            node_id: certificate.node_id,
            cluster_id: certificate.cluster_id,
            hostname: describe(house.config.name.as_deref()).hostname,
            data_dir: house.config.data_dir.display().to_string(),
            advertise,
            boot: file.boot,
            nonce: entropy.next_u64(),
        };
        let (raft, raft_inbox) = raft_run::queues(empty_report(), &metrics);
        let credentials = house.own.credentials().map_err(|error| {
            StartError::new(StartFailure::Damaged, "cannot use the node's certificate", &error, error.hint())
        })?;
        let (net, net_inbox) = net::channel(NET_QUEUE, &metrics).map_err(internal)?;
        let parts = Parts {
            identity: identity.clone(),
            raft: raft.clone(),
            greetings: Greetings::load(&house.dir.path().join("peers.json"))?,
            metrics: metrics.clone(),
            stop: stop.clone(),
            watched: watched.clone(),
            progress: house.progress.clone(),
            own: house.own.clone(),
        };
        let Sockets { unix, of_group, http, .. } = &house.sockets;
        let addr = listen.local_addr().map_err(internal)?;
        let net_config = net::Config {
            listen: Some(listen),
            unix: Some(unix.try_clone().map_err(internal)?),
            socket_group: *of_group,
            http: http.as_ref().map(std::net::TcpListener::try_clone).transpose().map_err(internal)?,
            node_id: identity.node_id,
            cluster_id: identity.cluster_id,
            credentials: Some(credentials),
            limits: net::Limits::default(),
            seed: entropy.next_u64(),
            metrics: metrics.clone(),
        };
        let net_parts = Some((net_config, NodeHandler::new(parts), net_inbox));
        Ok(Self {
            house,
            file,
            opened,
            identity,
            metrics,
            stop,
            watched,
            raft,
            raft_inbox: Some(raft_inbox),
            net,
            net_parts,
            net_thread: None,
            listen: addr,
        })
    }

    /// Joins with one of these managers if there is no log yet, then starts everything else.
    pub fn run(mut self, managers: &[String]) -> Result<Manager, StartError> {
        let begun_before = self.opened.log.is_some();
        let (wal, recovered) = match self.opened.log.take() {
            Some(log) => log,
            None => self.join(managers)?,
        };
        let dir = self.house.dir.clone();
        let lineage = lineage(&dir, &self.file)?;
        let raft_id = self.file.raft_id.ok_or_else(|| internal("node.json names no raft id"))?;
        let snapshots =
            Snapshots { disk: Arc::new(RealDisk), dir: dir.raft(), keys: self.opened.keys.store.keyring(), lineage };
        let ring = if self.file.profile == Profile::Sdcard { WATCH_RING_BYTES_SDCARD } else { WATCH_RING_BYTES };
        if let Some(cut) = &recovered.cut {
            log::warn!("the log ended in a write that was not finished: {cut:?}");
        }
        let begin = monotonic();
        let recovery = recover::recover(&wal.reader(), &recovered, &snapshots, ring)
            .map_err(|error| recover_error(&dir, &error))?;
        log::info!("replayed the log up to index {} in {:?}", recovery.applied, monotonic().since(begin));
        let pulse = wal.pulse();
        let reader = wal.reader();
        let Recovery { applier, applied, log, hard_state, log_bytes } = recovery;
        let store = applier.store().clone();
        let scrubbed = store.clone();
        let kept = store.clone();
        if self.house.clock_unset {
            set_floor(newest_ms(&store));
        }

        let reserve = Reserve::new(Arc::new(RealDisk), &dir.raft(), segment_bytes(self.file.profile));
        let (space, space_thread) =
            space::spawn(reserve, store.clone(), self.raft.clone(), &self.metrics).map_err(internal)?;
        let (snapshot_jobs, snapshot_thread) = snapshots::spawn_writer(
            store.clone(),
            snapshots.clone(),
            reader.clone(),
            self.raft.clone(),
            &self.metrics,
            dir.path().join("peers.json"),
            Pace::of_writing(self.file.profile),
        )
        .map_err(internal)?;
        let (transfer, transfer_thread) = snapshots::spawn_transfer(
            snapshots,
            reader.clone(),
            self.raft.clone(),
            self.net.clone(),
            &self.metrics,
            Pace::of(self.file.profile),
        )
        .map_err(internal)?;
        let here = self.identity.node_id;
        let services: leader::Services = Box::new(move |term| {
            vec![
                Box::new(Janitor::new(Box::new(OsEntropy))) as Box<dyn Service>,
                Box::new(Rotation::default()) as Box<dyn Service>,
                Box::new(Roles::new(term)) as Box<dyn Service>,
            ]
        });
        let (leader, leader_thread) =
            leader::spawn(here, store.clone(), self.raft.clone(), services, &self.metrics).map_err(internal)?;
        let held_up = leader.notices();
        let outlet: Arc<dyn Outlet> = Arc::new(Post {
            net: self.net.clone(),
            snapshots: snapshot_jobs.clone(),
            leader,
            node_id: here,
            store: store.clone(),
            stop: self.stop.clone(),
            watched: self.watched.clone(),
        });
        let surroundings = locksmith::Surroundings {
            keys: self.opened.keys.store.clone(),
            store: store.clone(),
            disk: Arc::new(RealDisk),
            dir: dir.path().to_owned(),
            log: reader.clone(),
            raft: self.raft.clone(),
            snapshots: snapshot_jobs.clone(),
        };
        let (locksmith, locksmith_thread) = locksmith::spawn(surroundings, &self.metrics).map_err(internal)?;
        let (wal_queue, wal_inbox) = bounded(WORK_QUEUE, self.metrics.queue("wal"));
        let on_durable = raft_run::on_durable(self.raft.clone(), outlet.clone());
        let wal_thread = wal::run::spawn(wal, wal_inbox, &self.metrics, on_durable).map_err(internal)?;
        let on_applied = raft_run::on_applied(self.raft.clone(), outlet.clone(), store.clone());
        let (apply, apply_thread) =
            crate::apply::spawn(applier, WORK_QUEUE, &self.metrics, on_applied).map_err(internal)?;
        let machine = RaftMachine::new(
            monotonic(),
            Options {
                raft_id,
                node_id: self.identity.node_id,
                lineage,
                profile: self.file.profile,
                seed: self.identity.node_id.0 as u64,
                nonce: self.identity.nonce,
                log,
                applied,
                replicated: store.view(raft_run::replicated),
                log_bytes,
                hard_state,
                persist_number: 0,
            },
        )
        .map_err(|error| internal(format!("raft does not accept the log: {error}")))?;
        let active = Active {
            held_up,
            raft_id,
            lineage,
            store,
            transfer,
            jobs: snapshot_jobs,
            locksmith: locksmith.clone(),
            advertise: self.identity.advertise.clone(),
        };
        let mut active = Some(active);
        if self.net_parts.is_none()
            && let Some(active) = active.take()
            // Ahead of everything that raft reports.
            && self.net.send(Completion::Active(Box::new(active))).is_err()
        {
            return Err(internal("the net thread does not answer"));
        }
        let workers = Workers { wal: wal_queue, apply, reader };
        let inbox = self.raft_inbox.take().ok_or_else(|| internal("the raft thread was started already"))?;
        let raft_thread =
            raft_run::spawn(machine, inbox, &self.raft, workers, outlet, &self.metrics).map_err(internal)?;
        // A member says nothing before it knows what it has: its hello names the end of its log.
        if let (Some((config, mut handler, inbox)), Some(active)) = (self.net_parts.take(), active) {
            handler.activate(active);
            self.net_thread = Some(net::spawn(config, handler, inbox).map_err(internal)?);
        }
        let back = self.raft.clone();
        let (scrub, scrub_thread) = scrub::spawn(scrubbed, scrub::Pace::PRODUCT, &self.metrics, move |rot| {
            back.internal(raft_run::Input::Event(raft::Event::Rotten { what: rot.to_string() }));
        })
        .map_err(internal)?;
        let mut addrs = self.house.config.peers.clone();
        if begun_before && kept.view(|state| state.members().is_empty()) {
            // It was stopped before it had its first snapshot. Those who have one call it where it was; if it is somewhere
            // else now, it has to call them.
            addrs.extend(worker::remembered(&dir).into_iter().map(|(_, addr)| addr).chain(self.file.join.clone()));
            addrs.sort();
            addrs.dedup();
        }
        self.look_for_peers(addrs, raft_id, lineage)?;
        let net_thread = self.net_thread.take().ok_or_else(|| internal("the net thread was not started"))?;
        let (agent, agent_thread) = self.spawn_agent(raft_id, lineage, &kept)?;
        let threads = vec![
            net_thread,
            agent_thread,
            raft_thread,
            wal_thread,
            apply_thread,
            space_thread,
            locksmith_thread,
            scrub_thread,
            leader_thread,
        ];
        // These two end when the last sender to them goes with the threads above.
        drop((snapshot_thread, transfer_thread));
        Ok(Manager {
            raft_id,
            listen: self.listen,
            applied: self.metrics.counter("skep_apply_entries_total"),
            apply_queue: self.metrics.queue("apply"),
            timing: Timing::of(self.file.profile),
            stop: self.stop,
            raft: self.raft,
            net: self.net,
            pulse,
            seen: Default::default(),
            running: Mutex::new(Some(Running { threads, scrub, space, locksmith, agent })),
            store: kept,
        })
    }

    /// Starts the thread that keeps the certificate.
    fn spawn_agent(
        &self,
        raft_id: RaftId,
        lineage: Lineage,
        store: &Arc<Store>,
    ) -> Result<(Sender<()>, Thread), StartError> {
        let (stop, stopped) = bounded(1, Gauge::default());
        let remembering = self.house.dir.clone();
        let inside = Inside {
            own: self.house.own.clone(),
            node_id: self.identity.node_id,
            store: store.clone(),
            raft: self.raft.clone(),
            net: self.net.clone(),
            stop: stopped,
            stopped: false,
            hello: Box::new(self.member_hello(raft_id, lineage)),
            seen: None,
            told: None,
            leader: None,
            remember: Box::new(move |managers| worker::remember(&remembering, managers)),
            remembered: (worker::remembered(&self.house.dir), monotonic()),
            clock_unset: self.house.clock_unset,
            keys: self.opened.keys.store.clone(),
            wanted: false,
        };
        let thread = agent_run::spawn(Agent {
            own: self.house.own.clone(),
            swarm: inside,
            keep: Box::new(Keeper::new(self.house)),
            follow: Box::new(Unmoved),
            description: describe(self.house.config.name.as_deref()),
            advertise: self.identity.advertise.clone(),
        })
        .map_err(internal)?;
        Ok((stop, thread))
    }

    /// Where managers lock, the first thing that a new one seals is sealed with a key that never was on the disk in the
    /// clear.
    fn lock_early(&self, managers: &[String], hello: &Hello) -> Result<(), StartError> {
        let keys = &self.opened.keys;
        let Some(lock) = join::lock(managers, keys, hello) else { return Ok(()) };
        let locked = keys.store.change(|file| {
            file.follow(lock);
            // The one before stays for now: an earlier attempt may have begun a log with it.
            file.data_keys.insert(0, DataKey::generate(&mut OsEntropy));
            file.rotate = false;
        });
        locked.map_err(|error| {
            let what = format!("cannot write {}", self.house.dir.path().join(keys::KEY_FILE).display());
            StartError::new(StartFailure::Internal, what, error, "")
        })
    }

    /// The hello of a member.
    fn member_hello(&self, raft_id: RaftId, lineage: Lineage) -> impl Fn() -> Hello + Send + use<> {
        let (raft, hello) = (self.raft.clone(), self.hello());
        move || Hello { raft_id: Some(raft_id), lineage, last: raft.durable().last, ..hello.clone() }
    }

    /// Dials `--peer` and other addresses on a thread of its own: they have names and no identities yet.
    fn look_for_peers(&mut self, addrs: Vec<String>, raft_id: RaftId, lineage: Lineage) -> Result<(), StartError> {
        if addrs.is_empty() {
            return Ok(());
        }
        let hello = self.member_hello(raft_id, lineage);
        let own = self.house.own.clone();
        let (net, stop) = (self.net.clone(), self.stop.clone());
        let found = move |node, addr| {
            // A hint that is lost for want of room is no loss: the members' list has an address too.
            let _ = net.send(Completion::Hint(node, addr));
        };
        let told = self.net.clone();
        let failed = move |status: Status| {
            if Greetings::meaning(&status).is_some() {
                // If there is no room for it: the manager is called again soon.
                let _ = told.send(Completion::TurnedAway(status));
            }
        };
        thread::spawn("peers", move || {
            if let Err(error) = join::find_peers(addrs, &own, &hello, found, failed, || stop.is_stopped()) {
                log::warn!("cannot look for --peer addresses: {error}");
            }
        })
        .map_err(internal)?;
        Ok(())
    }

    /// The hello of a node without a place.
    fn hello(&self) -> Hello {
        let Identity { boot, nonce, advertise, .. } = &self.identity;
        hello_without_place(&self.house.own.identity(), *boot, *nonce, advertise)
    }

    /// Listens, answering health checks only, and asks for a place: the leader calls back before it agrees.
    fn join(&mut self, managers: &[String]) -> Result<(Wal, Recovered), StartError> {
        if let Some((config, handler, inbox)) = self.net_parts.take() {
            self.net_thread = Some(net::spawn(config, handler, inbox).map_err(internal)?);
        }
        let hello = self.hello();
        let advertise = &self.identity.advertise;
        let answer = join::place(managers, &self.opened.keys, &hello, advertise, &self.house.progress)?;
        let JoinAnswer { raft_id, advertise, lineage, profile, .. } = answer;
        log::info!("joined the swarm as member {raft_id} at {advertise}");
        self.identity.advertise = advertise;
        self.file.profile = profile;
        self.file.lineage = Some(lineage);
        self.file.raft_id = Some(raft_id);
        self.file.phase = Phase::Member;
        self.file.left = false;
        self.lock_early(managers, &hello)?;
        let log = open_log(&self.house.dir, &self.opened.keys, profile, lineage)?;
        self.house.dir.write(&self.file)?;
        Ok(log)
    }
}

/// A manager's own store tells its agent what to do: nothing else follows from it.
struct Unmoved;

impl Follow for Unmoved {
    fn told(&mut self, _: &pki::Identity, _: &SessionItem) {}
    fn removed(&mut self, _: &Status) {}
}

/// The hello of a node that has no place in the Raft group.
pub(super) fn hello_without_place(identity: &pki::Identity, boot: u64, nonce: u64, advertise: &str) -> Hello {
    Hello {
        protocol: PROTOCOL,
        cluster_id: identity.cluster_id,
        node_id: identity.node_id,
        raft_id: None,
        lineage: Lineage(0),
        boot,
        nonce,
        last: Position::default(),
        advertise: advertise.to_owned(),
        feature_level: FEATURE_LEVEL,
        revision: Revision(0),
    }
}

/// The newest time in the state.
pub(super) fn newest_ms(store: &Store) -> u64 {
    let state = store.snapshot();
    let times = Kind::ALL.into_iter().flat_map(|kind| state.iter(kind).map(|stored| stored.object.meta().updated_at.0));
    times.max().unwrap_or(0)
}

pub(super) fn recover_error(dir: &DataDir, error: &RecoverError) -> StartError {
    match error {
        RecoverError::Wal(error) => log_error(dir, error),
        _ => {
            let what = format!("cannot replay the log in {}", dir.raft().display());
            let hint = "move the whole directory aside and join again with --join and a token";
            StartError::new(StartFailure::Damaged, what, error, hint)
        }
    }
}

/// What raft says of itself before it runs.
pub fn empty_report() -> RaftReport {
    RaftReport {
        raft_id: RaftId(0),
        state: RaftState::Joining,
        leader: None,
        last_leader: None,
        leaderless_ms: 0,
        serving: false,
        term: Term(0),
        commit: Index(0),
        applied: Index(0),
        first: Index(0),
        last: Index(0),
        snapshot: Index(0),
        log_bytes: 0,
        elections: 0,
        members: Vec::new(),
        progress: Vec::new(),
        reachable: Vec::new(),
        alarms: Vec::new(),
        unsynced_ms: 0,
        disk: DiskSpace::default(),
    }
}
