//! `skep run`: everything around the node. Flags, logger, signals, and the service manager.

use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::{flag, low_level};

use super::advertise;
use super::args::{Common, RunArgs};
use super::daemon::{Daemon, Options, Stopped};
use super::exit::{Ended, Exit, Failure};
use super::notify::Notify;
use super::session::data_dir;
use super::{logger, output::clean, unlock};
use crate::sys::files::{self, RealDisk};
use crate::sys::limits::allow_open_files;
use crate::sys::metrics::Gauge;
use crate::sys::queue::{Received, Receiver, Sender, bounded};
use crate::sys::thread;
use crate::sys::time::{Instant, monotonic};
use crate::types::object::Sensitive;

/// Runs a node until it is told to stop or stops by itself.
pub fn run(
    common: &Common,
    args: &RunArgs,
    start: impl FnOnce(Options, &mut dyn FnMut()) -> Result<Arc<dyn Daemon>, Failure>,
) -> Ended {
    let options = options(common, args)?;
    logger::install(args.log.into());
    let allowed = allow_open_files(OPEN_FILES);
    log::debug!("{allowed} files and connections may be open at a time");
    let (events, inbox) = bounded(8, Gauge::default());
    let signals = Signals::install(&events)?;
    let notify = Notify::from_environment(|name| std::env::var_os(name));
    let mut told = false;
    // A locked manager has started as far as it can: `systemctl start` must not wait for a person, nor may the boot that
    // it is a part of, and the watchdog has nothing to complain of.
    let mut while_locked = || {
        if !std::mem::replace(&mut told, true) {
            notify.ready("locked: waiting for `skep unlock`");
        }
        notify.alive();
    };
    let dir = options.data_dir.clone();
    let daemon = start(options, &mut while_locked)?;
    // Whatever ended the process before, this one runs.
    let _ = std::fs::remove_file(dir.join(STOPPED_FILE));
    signals.running();
    serve(&daemon, &dir, &notify, events, &inbox)
}

/// Connections, mostly: what the sessions of all workers that a manager takes need, and watchers besides.
const OPEN_FILES: u64 = 65_536;

/// What the main thread waits for.
#[derive(Debug)]
enum Event {
    /// A first SIGTERM or SIGINT.
    Signal,
    /// The node has stopped, asked or not.
    Stopped(Stopped),
}

/// Keeps the service manager informed until the node has stopped.
fn serve(
    daemon: &Arc<dyn Daemon>,
    dir: &Path,
    notify: &Notify,
    events: Sender<Event>,
    inbox: &Receiver<Event>,
) -> Ended {
    let waiter = daemon.clone();
    let ended = events.clone();
    spawn("wait", move || {
        let stopped = waiter.wait();
        let _ = ended.try_send(Event::Stopped(stopped));
    })?;
    let listening = match daemon.listen_addr() {
        addr if addr.port() == 0 => "running as a worker: `skep status` shows its manager".to_owned(),
        addr => format!("listening on {addr}"),
    };
    log::info!("{listening}");
    notify.ready(&listening);

    let mut stopping: Option<Instant> = None;
    let mut next_ping = notify.interval().map(|interval| monotonic() + interval);
    loop {
        let deadline = [stopping, next_ping].into_iter().flatten().min().unwrap_or(monotonic() + IDLE);
        match inbox.recv_until(deadline) {
            Received::Item(Event::Signal) if stopping.is_none() => {
                log::info!("asked to stop: handing over and stopping within {} s", STOP_LIMIT.as_secs());
                notify.stopping("stopping");
                stopping = Some(monotonic() + STOP_LIMIT);
                let daemon = daemon.clone();
                spawn("stop", move || daemon.stop(STOP_LIMIT - STOP_MARGIN))?;
            }
            Received::Item(Event::Signal) => {}
            Received::Item(Event::Stopped(_)) if stopping.is_some() => return Ok(Exit::Done),
            Received::Item(Event::Stopped(stopped)) => {
                note(dir, &stopped);
                return ended_by_itself(stopped, notify);
            }
            Received::TimedOut | Received::Closed => {}
        }
        let now = monotonic();
        if stopping.is_some_and(|limit| now >= limit) {
            log::warn!(
                "still not stopped after {} s: ending anyway, what was acknowledged is on disk",
                STOP_LIMIT.as_secs()
            );
            return Ok(Exit::Done);
        }
        if let (Some(due), Some(interval)) = (next_ping, notify.interval())
            && now >= due
        {
            // Silence is the message when raft, the log or apply are stuck: the service manager restarts us.
            if daemon.progress() {
                notify.alive();
            } else {
                log::warn!(
                    "no progress for {} s: the service manager is not told that all is well",
                    interval.as_secs()
                );
            }
            next_ping = Some(now + interval);
        }
    }
}

/// In the data directory while no process runs: why the last one stopped by itself. Its members are `exit`, `reason` and
/// `hint`, for `skep doctor`.
pub(super) const STOPPED_FILE: &str = "stopped.json";

/// Keeps why a manager stopped by itself: journals are rotated, and the next start would go as far.
fn note(dir: &Path, stopped: &Stopped) {
    if stopped.exit == Exit::Done {
        return;
    }
    let Stopped { reason, hint, exit } = stopped;
    let text = serde_json::json!({ "exit": *exit as u8, "reason": reason, "hint": hint }).to_string();
    if let Err(error) = files::replace(&RealDisk, &dir.join(STOPPED_FILE), text.as_bytes()) {
        log::warn!("cannot write {}: {error}", dir.join(STOPPED_FILE).display());
    }
}

fn ended_by_itself(stopped: Stopped, notify: &Notify) -> Ended {
    notify.stopping(&stopped.reason);
    if stopped.exit == Exit::Done {
        log::info!("{}", stopped.reason);
        return Ok(Exit::Done);
    }
    let mut failure = match stopped.exit {
        Exit::Damaged => Failure::damaged(stopped.reason),
        _ => Failure::internal(stopped.reason),
    };
    if stopped.exit == Exit::Refused {
        failure.code = crate::types::Code::FailedPrecondition.name();
    }
    failure.exit = stopped.exit;
    Err(failure.with_hint(stopped.hint).while_attempting(|| "the daemon has stopped".to_owned()))
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<thread::Thread, Failure> {
    thread::spawn(name, body).map_err(|error| Failure::internal(format!("cannot start a thread: {error}")))
}

/// SIGTERM and SIGINT: the first one asks, the second one ends the process. Before the node runs there is nobody to
/// ask, and the first one ends it.
struct Signals {
    starting: Arc<AtomicBool>,
}

impl Signals {
    fn install(events: &Sender<Event>) -> Result<Self, Failure> {
        let starting = Arc::new(AtomicBool::new(true));
        let asked = Arc::new(AtomicBool::new(false));
        let register = || -> std::io::Result<UnixStream> {
            let (reader, writer) = UnixStream::pair()?;
            for signal in [SIGTERM, SIGINT] {
                // Handlers run in this order.
                flag::register_conditional_shutdown(signal, i32::from(Exit::Done as u8), starting.clone())?;
                flag::register_conditional_shutdown(signal, i32::from(Exit::Internal as u8), asked.clone())?;
                flag::register(signal, asked.clone())?;
                low_level::pipe::register(signal, writer.try_clone()?)?;
            }
            Ok(reader)
        };
        let mut reader =
            register().map_err(|error| Failure::internal(format!("cannot install signal handlers: {error}")))?;
        let events = events.clone();
        spawn("signals", move || {
            let mut byte = [0; 1];
            while reader.read_exact(&mut byte).is_ok() {
                let _ = events.try_send(Event::Signal);
            }
        })?;
        Ok(Self { starting })
    }

    /// The node runs: from now on the first signal asks it to stop.
    fn running(&self) {
        self.starting.store(false, Ordering::SeqCst);
    }
}

/// The flags, checked.
fn options(common: &Common, args: &RunArgs) -> Result<Options, Failure> {
    let socket = match common.socket.as_slice() {
        [] => None,
        [socket] => Some(socket.clone()),
        _ => return Err(Failure::usage("--socket is given several times")),
    };
    advertise::check("--listen", &args.listen)?;
    for (flag, address) in [("--advertise", &args.advertise), ("--join", &args.join), ("--http", &args.http)] {
        if let Some(address) = address {
            advertise::check(flag, address)?;
        }
    }
    for address in &args.peer {
        advertise::check("--peer", address)?;
    }
    let data_dir = data_dir(common)?;
    // The same command line starts and restarts a node: one that is part of a swarm needs no token, so that a token file
    // that was removed after the first start, or standard input, must not be read again.
    let unlock_key = if crate::node::is_locked(&data_dir) { unlock::given(&args.unlock)? } else { None };
    let token = match crate::node::is_member(&data_dir) {
        true => None,
        false => token(args, std::env::var("SKEP_TOKEN").ok())?,
    };
    Ok(Options {
        data_dir,
        listen: args.listen.clone(),
        advertise: advertise::choose(&args.listen, args.advertise.as_deref(), advertise::interfaces)?,
        join: args.join.clone(),
        token,
        peers: args.peer.clone(),
        existing: args.existing,
        socket,
        socket_group: args.socket_group.clone(),
        http: args.http.clone(),
        profile: args.profile.into(),
        name: args.name.as_deref().map(clean),
        unlock_key,
    })
}

/// The join token: a flag wins over the environment.
fn token(args: &RunArgs, environment: Option<String>) -> Result<Option<Sensitive>, Failure> {
    let token = match (&args.token, &args.token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(path)) => Sensitive(read_token(path)?.into_bytes()),
        (None, None) => match environment {
            Some(token) if !token.is_empty() => Sensitive(token.into_bytes()),
            _ => return Ok(None),
        },
    };
    Ok(Some(Sensitive(token.0.trim_ascii().to_vec())))
}

fn read_token(path: &Path) -> Result<String, Failure> {
    // A token has 85 characters; a file that is much longer is another file.
    let data = super::session::read_data(path, 4096)?;
    String::from_utf8(data).map_err(|_| {
        Failure::usage(format!("{} holds no join token", path.display()))
            .with_hint("print one with `skep token show` on a manager")
    })
}

/// A stop takes no longer.
const STOP_LIMIT: Duration = Duration::from_secs(5);
/// The node is given less, so that the process has ended when the limit is up.
const STOP_MARGIN: Duration = Duration::from_millis(500);
/// Without anything to do the main thread still looks around.
const IDLE: Duration = Duration::from_secs(3600);

#[cfg(test)]
mod tests;
