//! What an operator has when something is wrong: the doctor, and the bundle for whoever is to find out.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use super::swarm::{Swarm, eventually, skep};

/// The doctor's findings at this level, by check.
fn at(findings: &Value, level: &str) -> Vec<String> {
    let rows = findings.as_array().unwrap().iter().filter(|row| row["level"] == level);
    rows.map(|row| row["check"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn the_doctor_sees_a_swarm_well_without_a_majority_without_a_manager_and_damaged() {
    let mut swarm = Swarm::of(3);
    for manager in &swarm.managers {
        let said = manager.skep(&["doctor"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.stdout.contains("ok    daemon") && said.stdout.contains("3 managers vote"), "{said:?}");
    }
    swarm.managers[1].kill();
    swarm.managers[2].kill();
    let manager = &swarm.managers[0];
    let said = eventually("it sees no majority", || {
        let said = manager.skep(&["doctor", "--json"]);
        (said.code == Some(4) && said.stdout.contains("without")).then_some(said)
    });
    let findings: Value = serde_json::from_str(&said.stdout).unwrap();
    assert!(at(&findings, "fail").contains(&"quorum".to_owned()), "{findings:#}");
    let quorum = findings.as_array().unwrap().iter().find(|row| row["check"] == "quorum").unwrap();
    for gone in &swarm.managers[1..] {
        assert!(quorum["what"].as_str().unwrap().contains(&gone.addr), "{quorum}");
    }
    assert!(quorum["todo"].as_str().unwrap().contains("`skep recover --data-dir"), "{quorum}");

    // Of one that does not run, and is not started by being looked at.
    let dir = swarm.managers[1].dir.display().to_string();
    let offline = |arguments: &[&str]| {
        skep(|command| {
            command.args(arguments).args(["--data-dir", &dir]);
        })
    };
    let said = offline(&["doctor"]);
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(said.stdout.contains("FAIL  daemon       no manager runs") && said.stdout.contains("skep run --data-dir"));
    assert!(said.stdout.contains("ok    log "), "{said:?}");

    // A byte in the middle of the log.
    let raft = swarm.managers[1].dir.join("raft");
    let mut names: Vec<_> = std::fs::read_dir(&raft).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.retain(|name| name.to_string_lossy().starts_with("wal-"));
    names.sort();
    let path = raft.join(&names[0]);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[512 + 40] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let said = offline(&["doctor"]);
    assert_eq!(said.code, Some(5), "{said:?}");
    assert!(said.stdout.contains("FAIL  log ") && said.stdout.contains("is damaged at byte"), "{said:?}");

    let nowhere = swarm.path().join("nowhere").display().to_string();
    let said = skep(|command| {
        command.args(["doctor", "--data-dir", &nowhere]);
    });
    assert_eq!(said.code, Some(4), "{said:?}");
    assert!(!std::path::Path::new(&nowhere).exists());
}

#[test]
fn a_bundle_holds_what_helps_and_no_secret() {
    let planted = "correct-horse-battery-staple";
    let mut swarm = Swarm::of(2);
    let manager = &swarm.managers[0];
    manager.skep_with_input(planted.as_bytes(), &["secret", "create", "key", "-"]).ok();
    manager.skep_with_input(planted.as_bytes(), &["config", "create", "plain", "-"]).ok();
    let tokens = ["manager", "worker"].map(|role| manager.skep(&["token", "show", "--role", role]).ok());
    let key = std::fs::read_to_string(manager.dir.join("pki/node.key")).unwrap();
    let mut secrets: Vec<String> = tokens.iter().map(|token| token.rsplit('-').next().unwrap().to_owned()).collect();
    secrets.push(planted.to_owned());
    secrets.extend(key.lines().filter(|line| !line.starts_with("-----") && line.len() > 20).map(str::to_owned));
    assert!(secrets.len() >= 4 && secrets.iter().all(|secret| secret.len() > 8), "{secrets:?}");

    let unpack = |path: &std::path::Path| {
        let dir = path.with_extension("d");
        std::fs::create_dir(&dir).unwrap();
        let output = Command::new("tar").arg("-xf").arg(path).arg("-C").arg(&dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let bytes = std::fs::read(path).unwrap();
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "the bundle holds {secret}");
        }
        dir.join("skep-bundle")
    };
    let read = |dir: &std::path::Path, name: &str| std::fs::read_to_string(dir.join(name)).unwrap_or_default();

    // Without a majority, and so without a leader.
    swarm.managers[1].kill();
    let manager = &swarm.managers[0];
    eventually("it has no leader", || (manager.skep(&["status"]).code == Some(4)).then_some(()));
    let path = swarm.path().join("live.tar");
    let file = path.display().to_string();
    manager.skep(&["debug", "bundle", &file]).ok();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    manager.skep(&["debug", "bundle", &file]).refused_with_hint(3, &["is there already"]);
    let dir = unpack(&path);
    assert!(read(&dir, "doctor.txt").contains("FAIL  quorum"));
    assert!(read(&dir, "events.txt").contains("no-leader"), "{}", read(&dir, "events.txt"));
    assert!(read(&dir, "metrics.txt").contains("skep_wal_sync_seconds_bucket"));
    assert!(read(&dir, "threads.txt").contains("raft") && read(&dir, "threads.txt").contains("scrub"));
    assert!(read(&dir, "log.jsonl").contains("\"batch\"") && read(&dir, "files.txt").contains("pki/node.key"));
    assert!(read(&dir, "process.txt").contains("Max open files"));
    for name in ["status.json", "members.json", "raft.json", "cluster.json", "node.json", "doctor.json"] {
        let text = read(&dir, name);
        assert!(serde_json::from_str::<Value>(&text).is_ok(), "{name}: {text}; {}", read(&dir, "errors.txt"));
    }
    assert_eq!(read(&dir, "errors.txt"), "");
    manager.skep(&["debug", "bundle", &file, "--force"]).ok();

    // Of a manager that does not run.
    let path = swarm.path().join("dead.tar");
    let (file, data) = (path.display().to_string(), swarm.managers[1].dir.display().to_string());
    skep(|command| {
        command.args(["debug", "bundle", &file, "--data-dir", &data]);
    })
    .ok();
    let dir = unpack(&path);
    assert!(read(&dir, "doctor.txt").contains("no manager runs") && read(&dir, "log.jsonl").contains("segment"));
    assert!(!dir.join("status.json").exists() && read(&dir, "errors.txt").contains("what the manager tells"));
}
