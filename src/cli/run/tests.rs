//! The daemon's surroundings around a daemon made of flags.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::{Condvar, Mutex};

use clap::Parser as _;

use super::*;
use crate::cli::args::{Cli, Command};

/// A daemon that stops when it is told to.
#[derive(Default)]
struct Fake {
    stopped: Mutex<Option<Stopped>>,
    changed: Condvar,
    stuck: AtomicBool,
    deaf: bool,
}

impl Fake {
    fn end(&self, exit: Exit, reason: &str) {
        *self.stopped.lock().unwrap() = Some(Stopped { reason: reason.to_owned(), hint: "do so".to_owned(), exit });
        self.changed.notify_all();
    }
}

impl Daemon for Fake {
    fn listen_addr(&self) -> SocketAddr {
        "127.0.0.1:4242".parse().unwrap()
    }

    fn wait(&self) -> Stopped {
        let guard = self.stopped.lock().unwrap();
        let guard = self.changed.wait_while(guard, |stopped| stopped.is_none()).unwrap();
        guard.clone().unwrap()
    }

    fn stop(&self, deadline: Duration) {
        assert!(deadline < STOP_LIMIT);
        if !self.deaf {
            self.end(Exit::Done, "asked to");
        }
    }

    fn progress(&self) -> bool {
        !self.stuck.load(Ordering::SeqCst)
    }
}

/// A service manager's socket, and the way to it with a watchdog of `watchdog_us`.
fn service_manager(watchdog_us: &str) -> (tempfile::TempDir, UnixDatagram, Notify) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let notify = Notify::from_environment(|name| match name {
        "NOTIFY_SOCKET" => Some(path.clone().into()),
        "WATCHDOG_USEC" => Some(watchdog_us.into()),
        _ => None,
    });
    (dir, socket, notify)
}

fn receive(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let count = socket.recv(&mut bytes).unwrap();
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn the_service_manager_hears_ready_then_pings_while_there_is_progress_then_stopping() {
    let (dir, socket, notify) = service_manager("20000");
    let (events, inbox) = bounded(8, Gauge::default());
    let signal = events.clone();
    let fake = Arc::new(Fake::default());
    let daemon: Arc<dyn Daemon> = fake.clone();
    let path = dir.path().to_owned();
    let served = std::thread::spawn(move || serve(&daemon, &path, &notify, events, &inbox));

    assert_eq!(receive(&socket), "READY=1\nSTATUS=listening on 127.0.0.1:4242\n");
    assert_eq!(receive(&socket), "WATCHDOG=1\n");
    assert_eq!(receive(&socket), "WATCHDOG=1\n");
    fake.stuck.store(true, Ordering::SeqCst);
    // One ping may be on its way; then silence, which is what the watchdog is for.
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let mut late = 0;
    while socket.recv(&mut [0; 64]).is_ok() {
        late += 1;
    }
    assert!(late <= 2, "{late} pings without progress");
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();

    signal.try_send(Event::Signal).unwrap();
    assert_eq!(receive(&socket), "STOPPING=1\nSTATUS=stopping\n");
    assert_eq!(served.join().unwrap(), Ok(Exit::Done));
}

#[test]
fn a_daemon_that_ends_by_itself_gives_its_exit_code() {
    for exit in [Exit::Refused, Exit::Damaged, Exit::Internal] {
        let (dir, socket, notify) = service_manager("0");
        let (events, inbox) = bounded(8, Gauge::default());
        let fake = Arc::new(Fake::default());
        fake.end(exit, "this node was removed");
        let daemon: Arc<dyn Daemon> = fake;
        let failure = serve(&daemon, dir.path(), &notify, events, &inbox).unwrap_err();
        assert_eq!((failure.exit, failure.hint.as_str()), (exit, "do so"));
        assert!(failure.text().starts_with("skep: the daemon has stopped: this node was removed\n"));
        receive(&socket);
        assert_eq!(receive(&socket), "STOPPING=1\nSTATUS=this node was removed\n");
        // Whoever looks later finds why.
        let kept = std::fs::read_to_string(dir.path().join(STOPPED_FILE)).unwrap();
        let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
        assert_eq!(kept, serde_json::json!({ "exit": exit as u8, "reason": "this node was removed", "hint": "do so" }));
    }
}

#[test]
fn a_daemon_that_does_not_stop_is_left_behind_at_the_limit() {
    let (dir, _socket, notify) = service_manager("0");
    let (events, inbox) = bounded(8, Gauge::default());
    events.try_send(Event::Signal).unwrap();
    let daemon: Arc<dyn Daemon> = Arc::new(Fake { deaf: true, ..Fake::default() });
    let began = monotonic();
    assert_eq!(serve(&daemon, dir.path(), &notify, events, &inbox), Ok(Exit::Done));
    let took = monotonic().since(began);
    assert!(took >= STOP_LIMIT && took < STOP_LIMIT + Duration::from_secs(2), "{took:?}");
}

fn parsed(flags: &[&str]) -> Result<Options, Failure> {
    let cli = Cli::try_parse_from(["skep", "run"].iter().chain(flags)).unwrap();
    let Command::Run(args) = &cli.command else { panic!() };
    options(&cli.common, args)
}

#[test]
fn flags_become_options() {
    let options = parsed(&[
        "--data-dir",
        "/d",
        "--listen",
        "127.0.0.1:1",
        "--join",
        "h:2",
        "--token",
        " T\n",
        "--peer",
        "a:1",
        "--peer",
        "b:2",
        "--existing",
        "--socket",
        "/s",
        "--socket-group",
        "g",
        "--http",
        "127.0.0.1:9",
        "--profile",
        "sdcard",
        "--name",
        "n",
    ]);
    let expected = Options {
        data_dir: PathBuf::from("/d"),
        listen: "127.0.0.1:1".to_owned(),
        advertise: None,
        join: Some("h:2".to_owned()),
        token: Some(Sensitive(b"T".to_vec())),
        peers: vec!["a:1".to_owned(), "b:2".to_owned()],
        existing: true,
        socket: Some(PathBuf::from("/s")),
        socket_group: Some("g".to_owned()),
        http: Some("127.0.0.1:9".to_owned()),
        profile: crate::types::object::Profile::Sdcard,
        name: Some("n".to_owned()),
        unlock_key: None,
    };
    assert_eq!(options, Ok(expected));
    assert_eq!(parsed(&["--data-dir", "/d", "--listen", "nonsense"]).unwrap_err().exit, Exit::Usage);
    assert_eq!(parsed(&["--data-dir", "/d", "--listen", "127.0.0.1:1", "--join", "h"]).unwrap_err().exit, Exit::Usage);
}

#[test]
fn a_token_comes_from_a_flag_a_file_or_the_environment_in_this_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, "from-file\n").unwrap();
    let args = |flags: &[&str]| {
        let cli = Cli::try_parse_from(["skep", "run"].iter().chain(flags)).unwrap();
        let Command::Run(args) = cli.command else { panic!() };
        args
    };
    let check = |flags: &[&str], environment: Option<&str>, expected: Option<&str>| {
        let found = token(&args(flags), environment.map(str::to_owned)).unwrap();
        assert_eq!(found, expected.map(|text| Sensitive(text.as_bytes().to_vec())), "{flags:?}");
    };
    let file = file.to_str().unwrap();
    check(&["--token", "from-flag"], Some("from-environment"), Some("from-flag"));
    check(&["--token-file", file], Some("from-environment"), Some("from-file"));
    check(&[], Some("from-environment"), Some("from-environment"));
    check(&[], Some(""), None);
    check(&[], None, None);
    assert!(token(&args(&["--token-file", "/nonexistent"]), None).is_err());
}

#[test]
fn a_member_needs_its_token_file_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let data_dir = dir.path().to_str().unwrap();
    let flags = ["--data-dir", data_dir, "--listen", "127.0.0.1:1", "--join", "h:1", "--token-file", "/nonexistent"];
    assert!(parsed(&flags).is_err());
    std::fs::write(dir.path().join("node.json"), r#"{"phase":"member"}"#).unwrap();
    assert_eq!(parsed(&flags).unwrap().token, None);
}
