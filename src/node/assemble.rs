//! Puts the threads of a manager together, and joins first where there is no log yet.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::dir::{NodeFile, Phase};
use super::greeting::Greetings;
use super::handler::{Active, Identity, NodeHandler, Parts};
use super::inside::Inside;
use super::keeper::Keeper;
use super::manager::{Manager, Running};
use super::open::{Opened, lineage, open_log, recover_error, segment_bytes};
use super::outlet::{Completion, Post};
use super::pace::Pace;
use super::sockets::Sockets;
use super::start::{describe, internal};
use super::stop::{StopCell, Stopped};
use super::supervisor::House;
use super::{StartError, StartFailure, join, keys, leader, locksmith, snapshots, space, worker};
use crate::agent::run::{self as agent_run, Agent, Follow};
use crate::ca::Janitor;
use crate::ca::rotation::Rotation;
use crate::net::{self, NetHandle, NetInbox};
use crate::pki;
use crate::pki::seal::DataKey;
use crate::raft::machine::{Machine as RaftMachine, Options};
use crate::raft::recover::{self, Recovery, Snapshots};
use crate::raft::run::{self as raft_run, Inbox, Outlet, Workers};
use crate::raft::{self, Timing, run};
use crate::roles::Roles;
use crate::store::{Store, scrub};
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::files::RealDisk;
use crate::sys::metrics::{Gauge, Metrics};
use crate::sys::queue::{Sender, bounded};
use crate::sys::thread::{self, Thread};
use crate::sys::time::{monotonic, set_floor};
use crate::term::Service;
use crate::types::api::{DiskSpace, FEATURE_LEVEL, Hello, JoinAnswer, PROTOCOL, RaftReport, RaftState, SessionItem};
use crate::types::limits::{WATCH_RING_BYTES, WATCH_RING_BYTES_SDCARD};
use crate::types::object::Profile;
use crate::types::{Index, Kind, Lineage, Position, RaftId, Revision, Status, Term};
use crate::wal::{self, Recovered, Reserve, Wal};

/// Batches that wait for the log or for apply; their bytes are bounded by raft.
const WORK_QUEUE: usize = 1024;
/// Completions that wait for the net thread.
const NET_QUEUE: usize = 1 << 13;

/// The newest time in the state.
pub(super) fn newest_ms(store: &Store) -> u64 {
    let state = store.snapshot();
    let times = Kind::ALL.into_iter().flat_map(|kind| state.iter(kind).map(|stored| stored.object.meta().updated_at.0));
    times.max().unwrap_or(0)
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
        let Recovery { applier, applied, log, hard_state, log_bytes, log_ends } = recovery;
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
                log_ends,
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

/// What raft says of itself before it runs.
pub(super) fn empty_report() -> RaftReport {
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
