//! The systemd unit.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

fn unit() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/skep.service")).unwrap()
}

#[test]
fn systemd_finds_nothing_wrong_with_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("systemd-analyze is not installed: nothing to ask");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("skep.service");
    // systemd looks whether the program is there.
    std::fs::write(&path, unit().replace("/usr/local/bin/skep", env!("CARGO_BIN_EXE_skep"))).unwrap();
    let output = Command::new("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // Other units of this machine are none of our business.
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("skep.service")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_unit_keeps_its_promises() {
    let unit = unit();
    for line in [
        "Type=notify",
        "Restart=on-failure",
        "RestartPreventExitStatus=2 3 5",
        "StateDirectoryMode=0700",
        "NoNewPrivileges=yes",
        "ProtectSystem=strict",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    assert!(unit.contains("--data-dir ${STATE_DIRECTORY}"));
    assert!(unit.lines().any(|line| line.starts_with("WatchdogSec=")));
}
