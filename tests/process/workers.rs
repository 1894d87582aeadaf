//! Workers as people run them: the same command, with a worker's token.

use super::swarm::{Manager, Swarm, eventually};

/// A worker that was told to join through the first manager. It is not started.
fn worker(swarm: &Swarm, name: &str) -> Manager {
    let token = swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok();
    let mut worker = Manager::new(swarm.path(), name);
    let file = swarm.token_file(&token);
    worker.arguments = vec!["--join".into(), swarm.managers[0].addr.clone(), "--token-file".into(), file];
    worker
}

/// Waits until it is in touch with a manager; its status.
#[track_caller]
fn in_touch(worker: &Manager) -> serde_json::Value {
    eventually("the worker is in touch with a manager", || {
        let status = worker.status()?;
        (status["state"] == "ready" && status["role"] == "worker").then_some(status)
    })
}

#[test]
fn a_worker_is_run_by_the_same_command_and_says_what_it_is() {
    let mut swarm = Swarm::of(2);
    let mut worker = worker(&swarm, "w1");
    worker.spawn();
    let status = in_touch(&worker);
    let id = status["node_id"].as_str().unwrap().to_owned();
    assert_eq!(status["name"], "w1");
    assert!(status["certificate"]["expires_at"].as_str().unwrap() > "2026", "{status}");
    assert!(status["manager"][1].as_str().unwrap().contains(':'), "{status}");
    let text = worker.skep(&["status"]);
    assert_eq!(text.code, Some(0));
    for part in ["role      worker", "manager   ", "identity  worker certificate until ", &id] {
        assert!(text.stdout.contains(part), "no {part:?}: {text:?}");
    }
    let row = |swarm: &Swarm| {
        let nodes = swarm.managers[0].json(&["node", "ls"]);
        nodes.as_array().unwrap().iter().find(|row| row["id"] == id.as_str()).cloned()
    };
    eventually("the swarm lists it as ready", || {
        let row = row(&swarm)?;
        (row["role"] == "worker" && row["state"] == "ready" && row["addr"] == "127.0.0.1").then_some(())
    });

    // Everything else is for a manager, and it says where one is.
    for command in
        [&["config", "ls"][..], &["members"], &["raft", "status"], &["config", "rm", "x"], &["leave"], &["watch"]]
    {
        let said = worker.skep(command).refused_with_hint(3, &["this node is a worker"]);
        assert!(swarm.managers.iter().any(|manager| said.contains(&manager.addr)), "{said}");
    }

    // Killed, and started with the same command although the token file is gone.
    worker.kill();
    std::fs::remove_file(swarm.path().join("token")).unwrap();
    worker.spawn();
    assert_eq!(in_touch(&worker)["node_id"], id.as_str());
    let before = worker.log_length();

    // Its manager dies without a word, and another takes it.
    let manager = in_touch(&worker)["manager"][0].as_str().unwrap().to_owned();
    let place = swarm.managers.iter().position(|m| m.json(&["status"])["node_id"] == manager.as_str()).unwrap();
    swarm.managers[place].kill();
    eventually("it takes another manager", || (in_touch(&worker)["manager"][0] != manager.as_str()).then_some(()));
    assert!(worker.log_since(before).contains("in touch with manager"));
    swarm.managers[place].start();
    swarm.votes(place);
    worker.stop();
}

#[test]
fn a_worker_that_is_removed_ends_and_does_not_come_back() {
    let swarm = Swarm::of(1);
    let mut worker = worker(&swarm, "w1");
    worker.spawn();
    let id = in_touch(&worker)["node_id"].as_str().unwrap().to_owned();
    swarm.managers[0].skep(&["node", "rm", "--force", &id]).ok();
    assert_eq!(worker.ended(), Some(3), "{}", worker.log_since(0));
    assert!(worker.log_since(0).contains("was removed from the swarm"), "{}", worker.log_since(0));
    let before = worker.log_length();
    worker.spawn();
    assert_eq!(worker.ended(), Some(3));
    assert!(worker.log_since(before).contains("hint: to join again"), "{}", worker.log_since(before));
}

#[test]
fn a_worker_without_a_manager_says_why_and_waits() {
    let mut swarm = Swarm::of(1);
    let mut worker = worker(&swarm, "w1");
    worker.spawn();
    in_touch(&worker);
    swarm.managers[0].kill();
    let status = eventually("it says that nobody answers", || {
        let status = worker.status()?;
        (status["state"] == "no manager").then_some(status)
    });
    assert!(status["warnings"][0].as_str().unwrap().contains("no session with a manager"), "{status}");
    assert_eq!(worker.skep(&["status"]).code, Some(4));
    worker.skep(&["config", "ls"]).refused_with_hint(3, &["this node is a worker", "skep status"]);
    swarm.managers[0].start();
    in_touch(&worker);
}
