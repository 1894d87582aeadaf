//! From a directory to a running node.

use std::sync::Arc;

use super::assemble::Starter;
use super::dir::{DataDir, NodeFile, Phase};
use super::lobby::{Joiner, Lobby, Progress};
use super::open::{Opened, has_log, node_keys, read_keys, reopen, segment_bytes};
use super::sockets::{self, Sockets};
use super::supervisor::{self, Engine, House};
use super::worker::{self, Worker};
use super::{Config, Node, StartError, StartFailure, found, join, locked};
use crate::agent::Own;
use crate::pki::UnlockKey;
use crate::sys::metrics::Metrics;
use crate::sys::time::{set_floor, wall_ms};
use crate::types::object::NodeDescription;
use crate::types::{ClusterId, NodeId, Role, Timestamp};

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

pub(super) fn internal(error: impl std::fmt::Display) -> StartError {
    StartError::new(StartFailure::Internal, "cannot start the node", error, "")
}
