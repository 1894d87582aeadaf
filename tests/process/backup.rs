//! Backups of a swarm that runs, and swarms that begin again from them.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use skep::types::api::Write;
use skep::types::{Kind, Object};

use super::swarm::{ERA, Ended, Manager, Swarm, binary, eventually, skep, skep_with_input, untouched};

fn fill(manager: &Manager) {
    manager.create_config("motd", b"be kind");
    manager.skep_with_input(b"hunter2-hunter2-hunter2", &["secret", "create", "password", "-"]).ok();
    manager.skep(&["extension", "create", "volume"]).ok();
    manager.skep_with_input(b"spin", &["resource", "create", "disk1", "-", "--kind", "volume", "--index", "a=b"]).ok();
    manager.skep(&["config", "update", "motd", "--label", "tone=soft"]).ok();
}

fn without_nodes(objects: Vec<Object>) -> Vec<Object> {
    objects.into_iter().filter(|object| object.kind() != Kind::Node).collect()
}

fn inspect(file: &Path, arguments: &[&str]) -> Ended {
    skep(|command| {
        command.args(["backup", "inspect"]).arg(file).args(arguments);
    })
}

fn restore(file: &Path, dir: &Path, input: &[u8], arguments: &[&str]) -> Ended {
    skep_with_input(input, |command| {
        command.args(["backup", "restore"]).arg(file).arg("--data-dir").arg(dir).args(arguments);
    })
}

fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Adds a manager over a directory that is there already, and starts it.
#[track_caller]
fn start(swarm: &mut Swarm, dir: PathBuf) -> usize {
    let place = swarm.add();
    swarm.managers[place].dir = dir;
    "phoenix".clone_into(&mut swarm.managers[place].name);
    swarm.managers[place].start();
    swarm.votes(place);
    place
}

#[test]
fn a_backup_taken_while_writes_run_begins_the_swarm_again_elsewhere() {
    let mut swarm = Swarm::of(3);
    fill(&swarm.managers[0]);
    let file = swarm.path().join("swarm.backup");
    let follower = swarm.followers()[0];
    let stop = AtomicBool::new(false);
    let (saved, written) = std::thread::scope(|scope| {
        let mut client = swarm.managers[0].client();
        let stop = &stop;
        let writer = scope.spawn(move || {
            let mut written = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let name = format!("hot{}", written.len());
                let write = Write::CreateConfig { name: name.clone(), labels: Default::default(), data: vec![7; 500] };
                written.push((name, client.write(write, Duration::from_secs(30)).unwrap().revision.0));
            }
            written
        });
        let revision = || swarm.managers[follower].status().unwrap()["revision"].as_u64().unwrap();
        let before = revision();
        eventually("some are written", || (revision() > before + 50).then_some(()));
        let saved = swarm.managers[follower].json(&["backup", "save", path(&file)]);
        let before = revision();
        eventually("more are written", || (revision() > before + 50).then_some(()));
        stop.store(true, Ordering::Relaxed);
        (saved, writer.join().unwrap())
    });
    let revision = saved["revision"].as_u64().unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(saved["bytes"].as_u64().unwrap(), std::fs::metadata(&file).unwrap().len());
    // It is not written over by accident.
    swarm.managers[0].skep(&["backup", "save", path(&file)]).refused_with_hint(3, &["of this name"]);

    let seen = inspect(&file, &["--json"]).json();
    assert_eq!((seen["revision"].as_u64().unwrap(), seen["members"].as_array().unwrap().len()), (revision, 3));
    let count = |kind: &str| {
        let rows = seen["objects"].as_array().unwrap();
        rows.iter().find(|row| row["kind"] == kind).map_or(0, |row| row["count"].as_u64().unwrap())
    };
    let expected: Vec<&str> = written.iter().filter(|(_, at)| *at <= revision).map(|(name, _)| name.as_str()).collect();
    assert!(!expected.is_empty() && expected.len() < written.len());
    assert_eq!(count("config"), expected.len() as u64 + 1);
    assert_eq!((count("secret"), count("node"), count("cluster")), (1, 3, 1));
    assert!(inspect(&file, &[]).ok().contains("not sealed"));

    // Elsewhere, while the old swarm still stands: the two have nothing to do with each other.
    let kept: Vec<Object> =
        without_nodes(swarm.converge()).into_iter().filter(|object| object.meta().version.0 <= revision).collect();
    let dir = swarm.path().join("restored");
    let said = restore(&file, &dir, b"", &["--dry-run"]).ok();
    assert!(said.contains("nothing was changed") && !dir.exists(), "{said}");
    restore(&file, &dir, b"nope\n", &[]).refused_with_hint(3, &["nothing was changed"]);
    assert!(!dir.exists());
    let said = restore(&file, &dir, b"yes\n", &["--name", "phoenix"]).ok();
    assert!(said.contains("skep run --data-dir"), "{said}");
    // A second time it is not empty.
    restore(&file, &dir, b"yes\n", &[]).refused_with_hint(3, &["not empty"]);

    let place = start(&mut swarm, dir);
    let phoenix = &swarm.managers[place];
    let status = phoenix.status().unwrap();
    assert_eq!(status["cluster_id"], seen["cluster_id"]);
    assert_eq!((status["voters"].as_u64().unwrap(), status["name"].as_str().unwrap()), (1, "phoenix"));
    assert!(status["revision"].as_u64().unwrap() > revision + ERA);
    assert_eq!(without_nodes(phoenix.everything()), kept, "ids, versions and contents");
    let rows = phoenix.json(&["node", "ls"]);
    let down = rows.as_array().unwrap().iter().filter(|row| row["state"] == "down").count();
    assert_eq!((rows.as_array().unwrap().len(), down), (4, 3), "{rows}");
    // The tokens are the same, and admit a newcomer to this swarm.
    let token = |manager: &Manager| manager.skep(&["token", "show", "--role", "manager"]).ok();
    assert_eq!(token(&swarm.managers[0]), token(phoenix));
    for place in 0..3 {
        swarm.managers[place].kill();
    }
    let joined = swarm.join(|_| {});
    swarm.managers[joined].create_config("after", b"x");
    swarm.converge();
    // An old manager is no member of the new history.
    let addr = swarm.managers[place].addr.clone();
    swarm.managers[0].arguments = vec!["--peer".to_owned(), addr];
    swarm.managers[0].spawn();
    eventually("it has met the other history", || {
        swarm.managers[0].log_since(0).contains("former history").then_some(())
    });
}

#[test]
fn without_a_majority_a_stale_backup_is_taken_and_any_other_is_refused() {
    let mut swarm = Swarm::of(3);
    fill(&swarm.managers[0]);
    let kept = without_nodes(swarm.converge());
    swarm.managers[0].kill();
    swarm.managers[1].kill();
    let file = swarm.path().join("last.backup");
    let said = eventually("the last manager gives up on the others", || {
        let ended = swarm.managers[2].skep(&["backup", "save", path(&file), "--timeout", "2s"]);
        ended.stderr.contains("has no leader").then_some(ended)
    });
    said.refused_with_hint(4, &["cannot save a backup to", "1 of 3 managers"]);
    assert!(!file.exists(), "nothing is left of a backup that failed");
    let left: Vec<String> = names(swarm.path());
    assert!(!left.iter().any(|name| name.contains("backup")), "{left:?}");
    swarm.managers[2].skep(&["backup", "save", path(&file), "--stale"]).ok();
    swarm.managers[2].kill();

    let dir = swarm.path().join("restored");
    restore(&file, &dir, b"", &["--yes", "--json", "--advertise", "127.0.0.1:9"]).json();
    let place = start(&mut swarm, dir);
    assert_eq!(without_nodes(swarm.managers[place].everything()), kept);
    swarm.managers[place].create_config("after", b"x");
}

fn names(dir: &Path) -> Vec<String> {
    std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_sealed_backup_opens_with_its_passphrase_only_and_damage_is_told() {
    let mut swarm = Swarm::of(1);
    fill(&swarm.managers[0]);
    let write = |name: &str, text: &str| {
        let path = swarm.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let (right, wrong, empty) = (write("right", "correct horse\n"), write("wrong", "battery\n"), write("empty", "\n"));
    let file = swarm.path().join("sealed.backup");
    let manager = &swarm.managers[0];
    let ended = manager.skep(&["backup", "save", path(&file), "--passphrase-file", &right]);
    assert!(!ended.stderr.contains("warning"), "{ended:?}");
    ended.ok();
    let ended = manager.skep(&["backup", "save", path(&swarm.path().join("plain.backup"))]);
    assert!(ended.stderr.contains("warning") && ended.stderr.contains("--passphrase-file"), "{ended:?}");
    manager
        .skep(&["backup", "save", path(&swarm.path().join("x")), "--passphrase-file", &empty])
        .refused_with_hint(3, &["holds no passphrase"]);
    let bytes = std::fs::read(&file).unwrap();
    let shows = |bytes: &[u8], text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    assert!(!shows(&bytes, b"hunter2") && !shows(&bytes, b"PRIVATE KEY"));
    assert!(shows(&std::fs::read(swarm.path().join("plain.backup")).unwrap(), b"hunter2"));

    // Through a descriptor, and from standard input to standard output.
    let rows = inspect(&file, &["--json", "--passphrase-file", &right]).json();
    assert_eq!(rows["sealed"], true);
    let output = binary()
        .args(["--socket", path(&manager.socket()), "backup", "save", "-", "--passphrase-fd", "0"])
        .stdin(std::fs::File::open(&right).unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let again = skep_with_input(&output.stdout, |command| {
        command.args(["backup", "inspect", "-", "--json", "--passphrase-file", &right]);
    })
    .json();
    assert_eq!(again["revision"], rows["revision"]);

    let dir = swarm.path().join("restored");
    restore(&file, &dir, b"", &["--yes", "--passphrase-file", &wrong]).refused_with_hint(3, &["passphrase is not"]);
    restore(&file, &dir, b"", &["--yes"]).refused_with_hint(3, &["sealed with a passphrase"]);
    inspect(&swarm.path().join("plain.backup"), &["--passphrase-file", &right]).refused_with_hint(3, &["not sealed"]);
    inspect(Path::new(&right), &[]).refused_with_hint(3, &["not a backup"]);
    inspect(&swarm.path().join("missing"), &[]).refused(3, &["no such file"]);

    // Damaged ones are refused before anything is made.
    let broken = swarm.path().join("broken.backup");
    for (what, bytes) in [
        ("flipped", [&bytes[..bytes.len() / 2], &[bytes[bytes.len() / 2] ^ 4], &bytes[bytes.len() / 2 + 1..]].concat()),
        ("truncated", bytes[..bytes.len() - 1].to_vec()),
        ("cut off", bytes[..bytes.len() / 3].to_vec()),
    ] {
        std::fs::write(&broken, bytes).unwrap();
        for ended in [
            inspect(&broken, &["--passphrase-file", &right]),
            restore(&broken, &dir, b"", &["--yes", "--passphrase-file", &right]),
        ] {
            let said = ended.refused_with_hint(5, &["is damaged at byte"]);
            assert!(said.contains("broken.backup"), "{what}: {said}");
        }
        assert!(!dir.exists(), "{what}");
    }

    restore(&file, &dir, b"", &["--yes", "--passphrase-file", &right]).ok();
    swarm.managers[0].kill();
    start(&mut swarm, dir);
}

#[test]
fn a_directory_that_holds_anything_is_not_restored_to() {
    let swarm = Swarm::of(1);
    let file = swarm.path().join("a.backup");
    swarm.managers[0].skep(&["backup", "save", path(&file)]).ok();
    let photos = swarm.path().join("photos");
    std::fs::create_dir(&photos).unwrap();
    std::fs::write(photos.join("holiday.jpg"), b"x").unwrap();
    restore(&file, &photos, b"", &["--yes"]).refused_with_hint(3, &["not empty", "holiday.jpg"]);
    assert_eq!(names(&photos), ["holiday.jpg"]);
    let live = swarm.managers[0].dir.clone();
    restore(&file, &live, b"", &["--yes"]).refused_with_hint(3, &["not empty"]);
    swarm.managers[0].create_config("unharmed", b"x");
}

/// Kills a command later and later, until it is too late; `look` judges what each kill has left.
fn kill_ever_later(arguments: &[&str], mut look: impl FnMut(bool)) {
    for step in 0.. {
        let mut child =
            binary().args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let until = Instant::now() + Duration::from_millis(3 * step);
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if Instant::now() >= until {
                child.kill().unwrap();
                child.wait().unwrap();
                break None;
            }
        };
        look(status.is_some());
        if let Some(status) = status {
            assert!(status.success(), "{arguments:?}: {status}");
            return;
        }
    }
}

#[test]
fn a_restore_and_a_recovery_that_are_killed_anywhere_can_be_given_again() {
    let mut swarm = Swarm::of(1);
    fill(&swarm.managers[0]);
    let kept = without_nodes(swarm.managers[0].everything());
    let file = swarm.path().join("a.backup");
    swarm.managers[0].skep(&["backup", "save", path(&file)]).ok();
    swarm.managers[0].kill();
    let old = swarm.managers[0].dir.clone();

    let dir = swarm.path().join("restored");
    kill_ever_later(&["backup", "restore", path(&file), "--data-dir", path(&dir), "--yes"], |ended| {
        // Until the end it is no manager that starts by itself.
        let phase = std::fs::read(dir.join("node.json"))
            .map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap()["phase"].clone());
        match phase.as_ref().map(|phase| phase.as_str().unwrap()) {
            Ok("member") if !ended => std::fs::remove_dir_all(&dir).unwrap(),
            Ok("member") | Err(_) => {}
            Ok("restoring") => {
                skep(|command| {
                    command.args(["run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(&dir);
                })
                .refused_with_hint(3, &["restore", "not finished"]);
            }
            other => panic!("{other:?}"),
        }
    });
    let place = start(&mut swarm, dir);
    assert_eq!(without_nodes(swarm.managers[place].everything()), kept);
    swarm.managers[place].kill();

    kill_ever_later(&["recover", "--data-dir", path(&old), "--yes"], |_| {
        let looked = skep(|command| {
            command.args(["recover", "--dry-run", "--json", "--data-dir", path(&old)]);
        })
        .json();
        assert_eq!(looked["objects"]["config"], 1, "{looked}");
    });
    swarm.managers[0].start();
    swarm.votes(0);
    assert_eq!(untouched(swarm.managers[0].everything()), untouched(kept));
}
