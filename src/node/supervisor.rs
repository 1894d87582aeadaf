//! The thread `node`: follows the node from one role to the other, and to its end.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::assemble::Starter;
use super::dir::{DataDir, NodeFile, Phase};
use super::found::Keys;
use super::keys::KEY_FILE;
use super::lobby::Progress;
use super::manager::Manager;
use super::open::Opened;
use super::sockets::{self, Sockets};
use super::stop::{StopCell, Stopped};
use super::worker::{self, Worker, WorkerEnd};
use super::{Config, StartError, StartFailure};
use crate::agent::Own;
use crate::pki::keyfile::Lock;
use crate::sys::metrics::Metrics;
use crate::sys::thread::{self, Thread};
use crate::sys::time::{monotonic, wall_ms};
use crate::types::NodeId;

/// What a node does now. Clones are the same.
#[derive(Clone, Debug)]
pub enum Engine {
    /// Takes part in the Raft group.
    Manager(Arc<Manager>),
    /// Keeps a session with a manager.
    Worker(Arc<Worker>),
    /// On its way from one to the other.
    Changing,
}

/// What the node's handle and this thread share.
#[derive(Debug)]
pub struct Shared {
    pub node_id: NodeId,
    pub data_dir: PathBuf,
    pub socket: PathBuf,
    pub http: Option<SocketAddr>,
    pub metrics: Metrics,
    /// Why the whole node has stopped.
    pub stop: StopCell<Stopped>,
    asked: AtomicBool,
    progress: Progress,
    engine: Mutex<Engine>,
}

impl Shared {
    /// What the node does now.
    pub fn engine(&self) -> Engine {
        self.lock().clone()
    }

    /// Nothing begins any more.
    pub fn ask_to_stop(&self) {
        self.asked.store(true, SeqCst);
        self.progress.cancel();
    }

    fn lock(&self) -> MutexGuard<'_, Engine> {
        self.engine.lock().expect("no code panics while it holds this lock")
    }

    fn is_asked(&self) -> bool {
        self.asked.load(SeqCst)
    }

    /// Becomes this, unless the node is to stop: then this is given back, to be stopped.
    fn become_engine(&self, engine: Engine) -> Result<(), Engine> {
        let mut slot = self.lock();
        if self.is_asked() {
            return Err(engine);
        }
        *slot = engine;
        Ok(())
    }
}

/// What outlives a change of role.
#[derive(Debug)]
pub struct House {
    pub config: Config,
    pub dir: Arc<DataDir>,
    pub sockets: Sockets,
    pub metrics: Metrics,
    pub own: Own,
    /// Key files and the like, as they were read; the certificate in use is that of `own`.
    pub keys: Keys,
    pub progress: Progress,
    /// The machine's clock was never set when the node started.
    pub clock_unset: bool,
}

/// Before another attempt at a change that failed.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest such pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Threads that end with a role have so long.
const PARTING: Duration = Duration::from_secs(2);

/// The node, with what it begins as.
pub fn begin(house: House, file: NodeFile, engine: Engine) -> io::Result<super::Node> {
    let http = house.sockets.http.as_ref().map(std::net::TcpListener::local_addr).transpose()?;
    let shared = Arc::new(Shared {
        node_id: house.own.identity().node_id,
        data_dir: house.config.data_dir.clone(),
        socket: house.sockets.path.clone(),
        http,
        metrics: house.metrics.clone(),
        stop: StopCell::default(),
        asked: AtomicBool::new(false),
        progress: house.progress.clone(),
        engine: Mutex::new(engine),
    });
    let supervisor = Supervisor { house, file, shared: shared.clone(), pause: Duration::ZERO };
    let thread = thread::spawn("node", move || supervisor.run())?;
    Ok(super::Node { shared, supervisor: Mutex::new(Some::<Thread>(thread)) })
}

struct Supervisor {
    house: House,
    file: NodeFile,
    shared: Arc<Shared>,
    /// The last pause before a change of role was tried again.
    pause: Duration,
}

impl Supervisor {
    fn run(mut self) {
        let reason = self.follow();
        // Whoever asks for the node's end next finds nobody.
        *self.shared.lock() = Engine::Changing;
        let _ = std::fs::remove_file(&self.house.sockets.path);
        let shared = self.shared.clone();
        // The directory is free before anybody hears of the end.
        drop(self);
        shared.stop.stop(reason);
    }

    /// From one role to the next, until the node ends.
    fn follow(&mut self) -> Stopped {
        loop {
            let next = match self.shared.engine() {
                Engine::Manager(manager) => match self.manage(&manager) {
                    Some(reason) => return reason,
                    None => self.become_worker(true),
                },
                Engine::Worker(worker) => match worker.wait() {
                    WorkerEnd::Asked => return Stopped::Asked,
                    WorkerEnd::Removed => {
                        worker.stop(PARTING);
                        return Stopped::Removed;
                    }
                    WorkerEnd::Promoted => {
                        *self.shared.lock() = Engine::Changing;
                        worker.stop(PARTING);
                        self.become_manager()
                    }
                },
                Engine::Changing => self.become_worker(false),
            };
            match next {
                Ok(engine) => {
                    if let Err(engine) = self.shared.become_engine(engine) {
                        match engine {
                            Engine::Manager(manager) => manager.halt(PARTING, &Stopped::Asked),
                            Engine::Worker(worker) => worker.stop(PARTING),
                            Engine::Changing => {}
                        }
                        return Stopped::Asked;
                    }
                }
                Err(error) => {
                    log::error!("{}: {}", error.what, error.why);
                    if self.rest() {
                        return Stopped::Asked;
                    }
                }
            }
            if self.shared.is_asked() && matches!(self.shared.engine(), Engine::Changing) {
                return Stopped::Asked;
            }
        }
    }

    /// Waits for the end of a manager: the reason to end the node with it, or `None` for one that was taken out of the
    /// group and may be a worker now.
    fn manage(&mut self, manager: &Arc<Manager>) -> Option<Stopped> {
        let reason = manager.stop.wait();
        let departed = matches!(reason, Stopped::Removed | Stopped::Demoted);
        let left = reason == Stopped::Removed && manager.stop.was_asked_to_leave();
        if departed {
            let managers = worker::managers_of(&manager.store, self.shared.node_id);
            worker::remember(&self.house.dir, &managers);
        }
        if departed && !left {
            *self.shared.lock() = Engine::Changing;
        }
        manager.halt(PARTING, &reason);
        if !departed {
            return Some(reason);
        }
        if left {
            self.file.left = true;
            if let Err(error) = self.house.dir.write(&self.file) {
                log::error!("{error}");
            }
        }
        match self.house.dir.retire(wall_ms()) {
            Ok(aside) => log::info!("the log was moved to {}", aside.display()),
            Err(error) => log::error!("the log could not be moved aside: {error}"),
        }
        left.then_some(reason)
    }

    /// A worker, or with `in_doubt` what perhaps is one.
    fn become_worker(&mut self, in_doubt: bool) -> Result<Engine, StartError> {
        let in_doubt = in_doubt || self.file.phase == Phase::Member;
        if !in_doubt {
            self.unseal()?;
        }
        Worker::start(&self.house, &self.file, in_doubt).map(|worker| Engine::Worker(Arc::new(worker)))
    }

    /// Nobody unlocks a worker: only managers keep what the unlock key is for.
    fn unseal(&self) -> Result<(), StartError> {
        let keys = &self.house.keys.store;
        if keys.file().lock.key.is_none() {
            return Ok(());
        }
        // Nothing was heard of a lock, as far as a manager that this node may become again is concerned.
        keys.change(|file| file.lock = Lock::default()).map_err(|error| {
            let what = format!("cannot write {}", self.house.dir.path().join(KEY_FILE).display());
            StartError::new(StartFailure::Internal, what, error, "")
        })
    }

    /// Joins the Raft group with the certificate that the worker was given.
    fn become_manager(&mut self) -> Result<Engine, StartError> {
        log::info!("this node is a manager now: joining the others");
        let managers = worker::remembered(&self.house.dir);
        let begun = self.join(managers.into_iter().map(|(_, addr)| addr).collect());
        if let Err(error) = &begun {
            log::error!("{}: {}", error.what, error.why);
            self.file.phase = Phase::Worker;
            self.house.dir.write(&self.file)?;
            // As a worker it hears whether it is still to become a manager.
            if self.rest() {
                return Ok(Engine::Changing);
            }
            return self.become_worker(false);
        }
        self.pause = Duration::ZERO;
        begun
    }

    fn join(&mut self, managers: Vec<String>) -> Result<Engine, StartError> {
        let (listen, advertise) = sockets::bind_listen(&self.house.config)?;
        self.file = self.house.dir.read()?.unwrap_or_else(|| self.file.clone());
        self.file.phase = Phase::Joining;
        // Peers take each manager of this node for a start of its own.
        self.file.boot += 1;
        self.house.dir.write(&self.file)?;
        let mut keys = self.house.keys.clone();
        keys.identity = self.house.own.node();
        keys.root_pem = self.house.own.roots();
        let opened = Opened { keys, log: None };
        let manager = Starter::new(&self.house, self.file.clone(), listen, advertise, opened)?.run(&managers)?;
        self.file = self.house.dir.read()?.unwrap_or_else(|| self.file.clone());
        Ok(Engine::Manager(Arc::new(manager)))
    }

    /// Pauses, longer each time; true when the node is to stop.
    fn rest(&mut self) -> bool {
        self.pause = (self.pause * 2).clamp(FIRST_PAUSE, LONGEST_PAUSE);
        let until = monotonic() + self.pause;
        while monotonic() < until {
            if self.shared.is_asked() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.shared.is_asked()
    }
}
