//! A swarm of real processes in a temporary directory.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use skep::client::Client;
use skep::types::api::Filter;
use skep::types::{Kind, Object};
use tempfile::TempDir;

/// Longer than anything takes on a loaded machine: only a broken product waits for it.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// How far a recovery and a restore raise the revision.
pub const ERA: u64 = 1 << 32;

/// What a recovery leaves as it is: everything but the nodes, of which it marks those that are gone, and but for the era of
/// versions, which it raises where they were not known to be committed.
pub fn untouched(objects: Vec<Object>) -> Vec<Object> {
    let mut objects: Vec<Object> = objects.into_iter().filter(|object| object.kind() != Kind::Node).collect();
    for object in &mut objects {
        object.meta_mut().version.0 %= ERA;
    }
    objects
}

/// Polls until `look` finds something.
#[track_caller]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// What a command printed, and how it ended.
#[derive(Debug)]
pub struct Ended {
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ended {
    /// It ended well; what it printed, without the last line break.
    #[track_caller]
    pub fn ok(self) -> String {
        assert_eq!(self.code, Some(0), "{self:?}");
        self.stdout.trim_end().to_owned()
    }

    /// It ended well and printed JSON.
    #[track_caller]
    pub fn json(self) -> Value {
        let text = self.ok();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// It failed with this code, and said all of these on standard error, in the form that messages have.
    #[track_caller]
    pub fn refused(self, code: i32, said: &[&str]) -> String {
        assert_eq!(self.code, Some(code), "{self:?}");
        assert!(self.stderr.lines().any(|line| line.starts_with("skep: ")), "no message: {self:?}");
        for part in said {
            assert!(self.stderr.contains(part), "nothing of {part:?}: {self:?}");
        }
        for never in ["panicked", "RUST_BACKTRACE", "skep::", "std::", "Error {", "Some("] {
            assert!(!self.stderr.contains(never), "{never:?} is nothing for people: {self:?}");
        }
        self.stderr
    }

    /// As [`Self::refused`], with a hint what to do.
    #[track_caller]
    pub fn refused_with_hint(self, code: i32, said: &[&str]) -> String {
        let stderr = self.refused(code, said);
        assert!(stderr.lines().any(|line| line.starts_with("hint: ") && line.len() > 12), "no hint: {stderr}");
        stderr
    }
}

/// Runs the binary to its end; it is killed when it takes too long.
#[track_caller]
pub fn skep(configure: impl FnOnce(&mut Command)) -> Ended {
    skep_with_input(b"", configure)
}

/// [`skep`] with something on standard input.
#[track_caller]
pub fn skep_with_input(input: &[u8], configure: impl FnOnce(&mut Command)) -> Ended {
    let mut command = binary();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    configure(&mut command);
    let begin = Instant::now();
    let mut child = command.spawn().unwrap();
    let (stdout, stderr) = (collect(child.stdout.take()), collect(child.stderr.take()));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // A command that refuses before it reads closes the pipe.
    let feeder = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let status = wait(&mut child, PATIENCE);
    if status.is_none() {
        let _ = child.kill();
        let _ = child.wait();
    }
    feeder.join().unwrap();
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let status = status.unwrap_or_else(|| panic!("{command:?} did not end; it said {stdout}{stderr}"));
    Ended { code: status.code(), stdout, stderr, took: begin.elapsed() }
}

/// The binary, with nothing of the surroundings in its environment.
pub fn binary() -> Command {
    binary_in(&[])
}

/// The binary, run by another command.
fn binary_in(wrapper: &[String]) -> Command {
    let path = env!("CARGO_BIN_EXE_skep").to_owned();
    let mut words = wrapper.iter().chain([&path]);
    let mut command = Command::new(words.next().expect("the binary at least"));
    command.args(words);
    for name in ["SKEP_SOCKET", "SKEP_DATA_DIR", "SKEP_TOKEN", "SKEP_LOG", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        command.env_remove(name);
    }
    command
}

fn collect(stream: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    let mut stream = stream.unwrap();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn wait(child: &mut Child, patience: Duration) -> Option<ExitStatus> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        if Instant::now() >= deadline {
            return None;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// One manager: its directory, its address, and its process while it has one.
#[derive(Debug)]
pub struct Manager {
    pub name: String,
    pub dir: PathBuf,
    /// Its control socket, where it is not in the data directory.
    pub socket: Option<PathBuf>,
    /// `host:port`, the same at every start.
    pub addr: String,
    pub log: PathBuf,
    /// More arguments for `skep run`.
    pub arguments: Vec<String>,
    /// The command that runs the binary, with its arguments, where it does not run by itself.
    pub wrapper: Vec<String>,
    /// More environment.
    pub environment: Vec<(String, String)>,
    /// The id of its process; zero while it has none.
    pub process: Arc<AtomicU32>,
    child: Option<Child>,
}

impl Manager {
    pub fn new(root: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: root.join(name),
            socket: None,
            addr: "127.0.0.1:0".to_owned(),
            log: root.join(format!("{name}.log")),
            arguments: Vec::new(),
            wrapper: Vec::new(),
            environment: Vec::new(),
            process: Arc::default(),
            child: None,
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.socket.clone().unwrap_or_else(|| self.dir.join("skep.sock"))
    }

    /// Starts the process and does not wait for anything.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = binary_in(&self.wrapper);
        command.args(["run", "--listen", &self.addr, "--name", &self.name, "--data-dir"]).arg(&self.dir);
        if let Some(socket) = &self.socket {
            command.arg("--socket").arg(socket);
        }
        command.args(&self.arguments).envs(self.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        self.process.store(child.id(), Ordering::SeqCst);
        self.child = Some(child);
    }

    /// Starts the process, and returns when it says that it listens.
    #[track_caller]
    pub fn start(&mut self) {
        let before = self.log_length();
        self.spawn();
        self.listening_since(before);
    }

    /// Waits until the log says where it listens, after so many bytes of it.
    #[track_caller]
    pub fn listening_since(&mut self, before: u64) {
        let addr = eventually(&format!("{} listens", self.name), || {
            let said = self.log_since(before);
            if let Some(status) = self.child.as_mut().and_then(|child| child.try_wait().unwrap()) {
                panic!("{} ended with {status}: {said}", self.name);
            }
            let line = said.lines().find(|line| line.contains("listening on "))?;
            Some(line.rsplit(' ').next()?.to_owned())
        });
        self.addr = addr;
    }

    pub fn is_running(&self) -> bool {
        self.child.is_some()
    }

    pub fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().expect("it runs"))
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// kill -9.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.process.store(0, Ordering::SeqCst);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Waits until the process has ended by itself; its exit code.
    #[track_caller]
    pub fn ended(&mut self) -> Option<i32> {
        let child = self.child.as_mut().expect("it was started");
        let status = wait(child, PATIENCE).unwrap_or_else(|| panic!("{} does not end", self.name));
        self.child = None;
        self.process.store(0, Ordering::SeqCst);
        status.code()
    }

    /// SIGTERM, and the end.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        assert_eq!(self.ended(), Some(0), "{}: {}", self.name, self.log_since(0));
    }

    pub fn log_length(&self) -> u64 {
        std::fs::metadata(&self.log).map_or(0, |metadata| metadata.len())
    }

    /// What it logged after so many bytes.
    pub fn log_since(&self, before: u64) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            file.seek(SeekFrom::Start(before)).unwrap();
            file.read_to_end(&mut text).unwrap();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A command to this manager.
    #[track_caller]
    pub fn skep(&self, arguments: &[&str]) -> Ended {
        self.skep_with_input(b"", arguments)
    }

    #[track_caller]
    pub fn skep_with_input(&self, input: &[u8], arguments: &[&str]) -> Ended {
        skep_with_input(input, |command| {
            command.arg("--socket").arg(self.socket()).args(arguments);
        })
    }

    /// A command's JSON.
    #[track_caller]
    pub fn json(&self, arguments: &[&str]) -> Value {
        self.skep(&[arguments, &["--json"]].concat()).json()
    }

    /// A config with this name, made through this manager; its id.
    #[track_caller]
    pub fn create_config(&self, name: &str, data: &[u8]) -> String {
        self.skep_with_input(data, &["config", "create", name, "-"]).ok()
    }

    /// A connection of a program.
    #[track_caller]
    pub fn client(&self) -> Client {
        Client::local(&self.socket(), Duration::from_secs(10)).unwrap()
    }

    /// `status`, whether there is a leader or not; `None` while it does not answer.
    pub fn status(&self) -> Option<Value> {
        let ended = self.skep(&["status", "--json", "--timeout", "5s"]);
        serde_json::from_str(&ended.stdout).ok()
    }

    /// Everything in the store of this manager, without asking the others.
    #[track_caller]
    pub fn everything(&self) -> Vec<Object> {
        let mut client = self.client();
        let kinds = [Kind::Node, Kind::Cluster, Kind::Config, Kind::Secret, Kind::Extension, Kind::Resource];
        kinds
            .iter()
            .flat_map(|kind| client.list(*kind, &Filter::default(), true, Duration::from_secs(30)).unwrap())
            .collect()
    }

    /// Resident memory, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid().as_raw_nonzero())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Managers that belong together.
pub struct Swarm {
    pub managers: Vec<Manager>,
    root: TempDir,
    _one: MutexGuard<'static, ()>,
}

impl Swarm {
    /// Nobody yet.
    pub fn empty() -> Self {
        // A test that failed has left nothing behind that the next one meets.
        let one = ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Self { managers: Vec::new(), root: tempfile::tempdir().unwrap(), _one: one }
    }

    /// So many voters.
    #[track_caller]
    pub fn of(count: usize) -> Self {
        let mut swarm = Self::empty();
        for _ in 0..count {
            swarm.join(|_| {});
        }
        swarm
    }

    pub fn path(&self) -> &Path {
        self.root.path()
    }

    /// Adds a manager that was not started yet.
    pub fn add(&mut self) -> usize {
        let name = format!("m{}", self.managers.len() + 1);
        self.managers.push(Manager::new(self.root.path(), &name));
        self.managers.len() - 1
    }

    /// Starts one more manager, the first of a swarm or one that joins it, and waits until it votes.
    #[track_caller]
    pub fn join(&mut self, configure: impl FnOnce(&mut Manager)) -> usize {
        let place = self.add();
        if let Some(running) = self.managers[..place].iter().find(|manager| manager.is_running()) {
            let token = running.skep(&["token", "show", "--role", "manager"]).ok();
            let addr = running.addr.clone();
            let file = self.token_file(&token);
            self.managers[place].arguments = vec!["--join".into(), addr, "--token-file".into(), file];
        }
        configure(&mut self.managers[place]);
        self.managers[place].start();
        self.votes(place);
        self.reported(place);
        place
    }

    /// Waits until the swarm has written down what a manager says of itself.
    #[track_caller]
    pub fn reported(&self, place: usize) {
        let manager = &self.managers[place];
        let id = manager.json(&["status"])["node_id"].as_str().unwrap().to_owned();
        eventually(&format!("{} has reported", manager.name), || {
            let mut client = manager.client();
            let nodes = client.list(Kind::Node, &Filter::default(), true, Duration::from_secs(30)).unwrap();
            let reported = |object: &Object| match object {
                Object::Node(node) => node.id.to_string() == id && !node.certificate.reported_issuer.is_empty(),
                _ => false,
            };
            nodes.iter().any(reported).then_some(())
        });
    }

    /// A file with a token in it.
    pub fn token_file(&self, token: &str) -> String {
        let path = self.root.path().join("token");
        std::fs::write(&path, format!("{token}\n")).unwrap();
        path.display().to_string()
    }

    /// Waits until a manager leads or follows, and has what was committed when this was called.
    #[track_caller]
    pub fn votes(&self, place: usize) {
        let manager = &self.managers[place];
        eventually(&format!("{} votes", manager.name), || {
            let status = manager.status()?;
            let voting = status["role"] == "leader" || status["role"] == "follower";
            (voting && status["state"] == "ready").then_some(())
        });
    }

    pub fn running(&self) -> impl Iterator<Item = &Manager> {
        self.managers.iter().filter(|manager| manager.is_running())
    }

    /// The place of the leader, once all that run agree on it.
    #[track_caller]
    pub fn leader(&self) -> usize {
        let running: Vec<usize> = (0..self.managers.len()).filter(|&place| self.managers[place].is_running()).collect();
        self.leader_among(&running)
    }

    /// The place of the leader, once these agree that it is one of them.
    #[track_caller]
    pub fn leader_among(&self, places: &[usize]) -> usize {
        eventually("the managers agree on a leader", || {
            let statuses: Option<Vec<Value>> = places.iter().map(|&place| self.managers[place].status()).collect();
            let statuses = statuses?;
            let leader = statuses.first()?["leader"].as_str()?.to_owned();
            if statuses.iter().any(|status| status["leader"] != leader.as_str()) {
                return None;
            }
            let place = statuses.iter().position(|status| status["node_id"] == leader.as_str())?;
            (statuses[place]["role"] == "leader").then_some(places[place])
        })
    }

    /// The places of those that run and do not lead.
    #[track_caller]
    pub fn followers(&self) -> Vec<usize> {
        let leader = self.leader();
        (0..self.managers.len()).filter(|&place| place != leader && self.managers[place].is_running()).collect()
    }

    /// Waits until all that run have applied the same log, and compares their stores object by object.
    #[track_caller]
    pub fn converge(&self) -> Vec<Object> {
        eventually("the managers have applied the same", || {
            let applied: Option<Vec<(Value, Value)>> = self
                .running()
                .map(|manager| manager.status().map(|status| (status["applied"].clone(), status["revision"].clone())))
                .collect();
            let applied = applied?;
            applied.iter().all(|each| *each == applied[0]).then_some(())
        });
        let mut stores = self.running().map(|manager| (manager.name.clone(), manager.everything()));
        let (first, store) = stores.next().expect("a manager runs");
        for (name, other) in stores {
            let differs = store.iter().zip(&other).find(|(one, other)| one != other);
            assert!(differs.is_none(), "{first} and {name} differ: {differs:?}");
            assert_eq!(store.len(), other.len(), "{first} and {name} hold different numbers of objects");
        }
        store
    }
}

impl Drop for Swarm {
    fn drop(&mut self) {
        for manager in &mut self.managers {
            manager.kill();
        }
        if std::thread::panicking() {
            for manager in &self.managers {
                let log = manager.log_since(0);
                let lines: Vec<&str> = log.lines().collect();
                let end = lines.len().saturating_sub(60);
                eprintln!("---- {} ({})", manager.name, manager.addr);
                for line in &lines[end..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}
