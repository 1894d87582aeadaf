//! Watching, across deaths of managers; and what nobody may see.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

use super::swarm::{Manager, PATIENCE, Swarm, binary};

/// `skep watch --json`.
struct Watcher {
    child: Child,
    lines: Receiver<String>,
    /// Standard error.
    said: Receiver<String>,
    /// Everything that was printed.
    seen: Vec<String>,
}

impl Watcher {
    fn start(manager: &Manager, arguments: &[&str]) -> Self {
        let mut command = binary();
        command.args(["watch", "--json", "--timeout", "50s"]).args(arguments).arg("--socket").arg(manager.socket());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let (sender, lines) = channel();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        let (sender, said) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        std::thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        Self { child, lines, said, seen: Vec::new() }
    }

    #[track_caller]
    fn next(&mut self) -> Value {
        let line = match self.lines.recv_timeout(PATIENCE) {
            Ok(line) => line,
            Err(error) => panic!("{error}: {:?}", self.said.try_iter().collect::<Vec<_>>()),
        };
        self.seen.push(line.clone());
        serde_json::from_str(&line).unwrap()
    }

    /// Revisions of changes, up to and with the one that creates this name.
    #[track_caller]
    fn until(&mut self, name: &str) -> Vec<u64> {
        let mut revisions = Vec::new();
        loop {
            let item = self.next();
            if item["mark"] == true {
                continue;
            }
            revisions.push(item["revision"].as_u64().unwrap());
            let events = item["events"].as_array().unwrap();
            if events.iter().any(|event| event["object"]["spec"]["annotations"]["name"] == name) {
                return revisions;
            }
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `count` numbers, each one more than the one before.
#[track_caller]
fn check_dense(revisions: &[u64]) {
    assert!(revisions.windows(2).all(|pair| pair[1] == pair[0] + 1), "{revisions:?}");
}

#[test]
fn a_watch_goes_on_without_a_gap_when_the_leader_dies_and_when_its_own_manager_does() {
    let mut swarm = Swarm::of(3);
    let leader = swarm.leader();
    let follower = swarm.followers()[0];
    let from = swarm.managers[follower].json(&["status"])["revision"].to_string();
    let mut watchers = [
        Watcher::start(&swarm.managers[follower], &["--from", &from]),
        // The one that will die.
        Watcher::start(&swarm.managers[leader], &["--from", &from]),
    ];
    for number in 0..5 {
        swarm.managers[follower].create_config(&format!("a{number}"), b"x");
    }
    let mut revisions: Vec<Vec<u64>> = watchers.iter_mut().map(|watcher| watcher.until("a4")).collect();
    swarm.managers[leader].kill();
    for number in 0..5 {
        swarm.managers[follower].create_config(&format!("b{number}"), b"x");
    }
    swarm.managers[leader].start();
    swarm.managers[follower].create_config("last", b"x");
    for (watcher, revisions) in watchers.iter_mut().zip(&mut revisions) {
        revisions.extend(watcher.until("last"));
        check_dense(revisions);
        assert_eq!(revisions.len(), 11, "{revisions:?}");
        assert_eq!(revisions[0].to_string(), (from.parse::<u64>().unwrap() + 1).to_string());
    }
}

#[test]
fn a_watch_shows_what_happened_and_only_of_the_kinds_asked_for() {
    let swarm = Swarm::of(1);
    let manager = &swarm.managers[0];
    let mut watcher = Watcher::start(manager, &["--kind", "config"]);
    // It says where it begins.
    let begin = watcher.next();
    assert!(begin["mark"] == true && begin["revision"].as_u64().is_some(), "{begin}");
    manager.skep(&["extension", "create", "route"]).ok();
    manager.create_config("motd", b"x");
    manager.skep(&["config", "update", "motd", "--label", "a=b"]).ok();
    manager.skep(&["config", "rm", "motd"]).ok();
    let mut actions = Vec::new();
    while actions.len() < 3 {
        let item = watcher.next();
        for event in item["events"].as_array().into_iter().flatten() {
            assert_eq!(event["kind"], "config");
            actions.push((event["action"].as_str().unwrap().to_owned(), event["old"].is_object()));
        }
    }
    let expected = [("create", false), ("update", true), ("remove", false)];
    assert_eq!(actions, expected.map(|(action, old)| (action.to_owned(), old)));
}

#[test]
fn a_watch_from_too_long_ago_says_so() {
    let swarm = Swarm::of(1);
    let manager = &swarm.managers[0];
    // More than the 8 MiB of events that are kept.
    for number in 0..10 {
        manager.create_config(&format!("c{number}"), &vec![7; 1_000_000]);
    }
    let ended = manager.skep(&["watch", "--from", "1", "--timeout", "20s"]);
    ended.refused_with_hint(3, &["revision"]);
    // From a moment ago it goes on.
    let revision = manager.json(&["status"])["revision"].to_string();
    let mut watcher = Watcher::start(manager, &["--from", &revision]);
    manager.create_config("last", b"x");
    assert_eq!(watcher.until("last").len(), 1);
}

#[test]
fn secrets_are_shown_nowhere() {
    let planted = "correct-horse-battery-staple";
    let mut swarm = Swarm::empty();
    for _ in 0..2 {
        swarm.join(|manager| manager.arguments.extend(["--log".to_owned(), "trace".to_owned()]));
    }
    let manager = &swarm.managers[swarm.leader()];
    let from = manager.json(&["status"])["revision"].to_string();
    let mut watcher = Watcher::start(manager, &["--from", &from]);
    manager.skep_with_input(planted.as_bytes(), &["secret", "create", "key", "-"]).ok();
    manager.skep(&["secret", "update", "key", "--label", "a=b"]).ok();
    manager.skep(&["cluster", "update", "--cert-expiry", "100d"]).ok();
    manager.skep_with_input(planted.as_bytes(), &["secret", "create", "key", "-"]).refused(3, &["already exists"]);
    manager.create_config("last", b"x");
    watcher.until("last");

    let mut texts: Vec<(String, String)> = vec![("watch".to_owned(), watcher.seen.join("\n"))];
    for arguments in [
        &["secret", "ls"][..],
        &["secret", "inspect", "key"],
        &["cluster", "inspect"],
        &["node", "ls"],
        &["status"],
        &["raft", "status"],
    ] {
        for json in [&[][..], &["--json"]] {
            let ended = manager.skep(&[arguments, json].concat());
            assert_eq!(ended.code, Some(0));
            texts.push((arguments.join(" "), ended.stdout + &ended.stderr));
        }
    }
    for manager in &swarm.managers {
        texts.push((format!("the log of {}", manager.name), manager.log_since(0)));
    }
    // What must not be there: the secret, also as base64, hex or a list of numbers; keys; tokens.
    let mut forbidden = vec![
        planted.to_owned(),
        "Y29ycmVjdC1ob3JzZS1iYXR0ZXJ5".to_owned(),
        planted.bytes().map(|byte| format!("{byte:02x}")).collect(),
        "99,111,114,114,101,99,116".to_owned(),
        "99, 111, 114, 114, 101, 99, 116".to_owned(),
        "PRIVATE KEY".to_owned(),
    ];
    for role in ["manager", "worker"] {
        let token = manager.skep(&["token", "show", "--role", role]).ok();
        forbidden.push(token.rsplit('-').next().unwrap().to_owned());
    }
    for manager in &swarm.managers {
        let key = std::fs::read_to_string(manager.dir.join("pki/node.key")).unwrap();
        forbidden.extend(key.lines().filter(|line| line.len() > 20 && !line.starts_with("-----")).map(str::to_owned));
    }
    for (place, text) in &texts {
        assert!(!text.is_empty(), "{place}");
        for never in &forbidden {
            assert!(!text.contains(never), "{place} shows {never}");
        }
    }
    // Nor does the disk: it is sealed.
    for manager in &swarm.managers {
        for entry in std::fs::read_dir(manager.dir.join("raft")).unwrap().flatten() {
            if entry.file_type().unwrap().is_file() {
                let bytes = std::fs::read(entry.path()).unwrap();
                let found = bytes.windows(planted.len()).any(|window| window == planted.as_bytes());
                assert!(!found, "{} holds the secret in the clear", entry.path().display());
            }
        }
    }
}
