//! The rest of the command line, and the scripts beside it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use super::swarm::{Swarm, eventually, skep};

/// A GET; status code and body.
#[track_caller]
pub fn get(addr: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
}

/// A port that was free a moment ago.
pub fn free_addr() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[test]
fn probes_and_metrics() {
    let mut swarm = Swarm::empty();
    let http = free_addr();
    swarm.join(|manager| manager.arguments.extend(["--http".to_owned(), http.clone()]));
    swarm.join(|_| {});
    swarm.managers[0].create_config("motd", b"x");
    assert_eq!(get(&http, "/healthz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&http, "/readyz"), (200, "ok\n".to_owned()));
    assert_eq!(get(&http, "/nothing").0, 404);
    let (code, metrics) = get(&http, "/metrics");
    assert_eq!(code, 200);
    for name in [
        "skep_queue_depth",
        "skep_wal_sync_seconds",
        "skep_raft_term",
        "skep_store_revision",
        "skep_store_objects{kind=\"config\"} 1",
        "skep_peer_up",
        "skep_peer_rtt",
        "elections",
        "proposals",
        "reads",
    ] {
        assert!(metrics.contains(name), "no {name}:\n{metrics}");
    }
    for line in metrics.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit_once(' ').map(|(_, value)| value.parse::<f64>());
        assert!(matches!(value, Some(Ok(_))), "{line}");
    }
    // Alone it lives, and is not ready.
    swarm.managers[1].kill();
    eventually("it is not ready", || (get(&http, "/readyz").0 == 503).then_some(()));
    assert!(get(&http, "/readyz").1.contains("1 of 2 managers"));
    assert_eq!(get(&http, "/healthz").0, 200);
}

#[test]
fn a_log_can_be_looked_at() {
    let mut swarm = Swarm::of(1);
    for number in 0..5 {
        swarm.managers[0].create_config(&format!("c{number}"), b"planted-text");
    }
    // While the manager runs, and after.
    let dir = swarm.managers[0].dir.display().to_string();
    let inspect = |arguments: &[&str]| {
        skep(|command| {
            command.args(["wal", "inspect", &dir]).args(arguments);
        })
    };
    let live = inspect(&[]).ok();
    swarm.managers[0].stop();
    let text = inspect(&[]).ok();
    assert!(text.len() >= live.len() && text.contains("wal-") && text.contains("batch"), "{text}");
    assert!(!text.contains("planted"));
    let rows = inspect(&["--json"]).json();
    let rows = rows.as_array().unwrap();
    let batches = rows.iter().filter(|row| row["type"] == "batch").count();
    assert!(batches >= 5, "{batches}");
    assert!(rows.iter().all(|row| row["type"] != "problem"), "{rows:?}");
    assert!(rows.iter().any(|row| row["type"] == "snapshot"));
}

#[test]
fn completions_and_help_need_no_manager() {
    for shell in ["bash", "zsh", "fish"] {
        let script = skep(|command| {
            command.args(["completions", shell]);
        })
        .ok();
        assert!(script.contains("skep") && script.contains("snapshot"), "{shell}");
    }
    let help = skep(|command| {
        command.arg("--help");
    })
    .ok();
    for command in ["run", "status", "members", "watch", "config", "secret", "raft", "leave", "bench"] {
        assert!(help.lines().any(|line| line.trim_start().starts_with(command)), "{command}: {help}");
    }
}

#[test]
fn a_small_measurement_has_all_its_numbers() {
    let swarm = Swarm::of(1);
    for what in ["write", "read", "mixed"] {
        let report = swarm.managers[0].json(&["bench", what, "--total", "200", "--clients", "4"]);
        for key in ["ops_per_s", "p50_us", "p99_us", "max_us"] {
            assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{what} {key}: {report}");
        }
        assert_eq!(report["errors"], 0, "{what}: {report}");
    }
    let resources = || swarm.managers[0].json(&["resource", "ls"]).as_array().unwrap().len();
    let before = resources();
    let over = swarm.managers[0].json(&["bench", "write", "--overwrite", "1", "--total", "500", "--clients", "32"]);
    assert_eq!((over["ops"].as_u64(), over["errors"].as_u64()), (Some(500), Some(0)), "{over}");
    // The one that all write over: none is refused for what the others write.
    assert_eq!(resources(), before + 1);
}

#[test]
fn the_readmes_first_ten_minutes() {
    // Nothing else may run meanwhile.
    let swarm = Swarm::empty();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/cluster");
    let dir = swarm.path().join("cluster");
    let cluster = |arguments: &[&str]| {
        let mut command = Command::new(&script);
        command.args(arguments).env("SKEP_BIN", env!("CARGO_BIN_EXE_skep")).env("SKEP_CLUSTER_DIR", &dir);
        command.env_remove("SKEP_SOCKET").env_remove("SKEP_DATA_DIR");
        let output = command.output().unwrap();
        let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{arguments:?}: {stdout}{stderr}");
        stdout.into_owned()
    };
    struct Down<'a>(&'a dyn Fn(&[&str]) -> String);
    impl Drop for Down<'_> {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                (self.0)(&["down", "--wipe"]);
            } else {
                let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.0)(&["down", "--wipe"])));
            }
        }
    }
    let _down = Down(&cluster);
    let said = cluster(&["up", "3"]);
    assert!(said.contains("m1") && said.contains("m3") && said.contains("export SKEP_SOCKET="), "{said}");
    let on = |name: &str, arguments: &[&str]| {
        let socket = dir.join(name).join("data/skep.sock");
        super::swarm::skep_with_input(b"hello\n", |command| {
            command.args(arguments).env("SKEP_SOCKET", socket);
        })
    };
    on("m1", &["config", "create", "greeting", "-"]).ok();
    let leader = cluster(&["leader"]).trim().to_owned();
    cluster(&["kill", &leader]);
    let other = if leader == "m2" { "m3" } else { "m2" };
    on(other, &["config", "create", "second", "-"]).ok();
    cluster(&["start", &leader]);
    let rows = on(&leader, &["config", "ls", "--json"]).json();
    assert_eq!(rows.as_array().unwrap().len(), 2);
    let status = cluster(&["status"]);
    assert_eq!(status.matches(" running ").count(), 3, "{status}");
    // Again changes nothing.
    cluster(&["up"]);
    assert!(cluster(&["logs", "m1"]).contains("listening on"));
    cluster(&["stop", "m3"]);
    assert_eq!(cluster(&["status"]).matches(" stopped ").count(), 1);
}
