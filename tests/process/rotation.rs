//! The root certificate is replaced while programs write.

use rustix::process::Signal;
use serde_json::Value;

use super::swarm::{Manager, Swarm, eventually};
use super::writers::Writers;

fn digest(manager: &Manager) -> String {
    manager.json(&["ca", "show"])["digest"].as_str().unwrap().to_owned()
}

/// Every manager that runs has the same root, and trusts nothing else.
#[track_caller]
fn check_root(swarm: &Swarm, expected: &str) {
    for manager in swarm.running() {
        eventually(&format!("{} trusts the new root only", manager.name), || {
            let shown = manager.json(&["ca", "show"]);
            let trusted = std::fs::read_to_string(manager.dir.join("pki/root.crt")).unwrap();
            (shown["digest"] == expected
                && shown["rotation"].is_null()
                && shown["roots"][0]["certificate"].as_str() == Some(trusted.as_str()))
            .then_some(())
        });
    }
}

#[test]
fn three_rotations_in_a_row_end_at_the_last_root_while_programs_write() {
    let mut swarm = Swarm::of(3);
    let writers = Writers::start(&swarm, 2);
    let first = digest(&swarm.managers[0]);
    let old_token = swarm.managers[0].skep(&["token", "show", "--role", "manager"]).ok();
    for place in 0..3 {
        writers.wait_for(20);
        // The last one begins before the one before it has ended.
        let wait: &[&str] = if place == 1 { &[] } else { &["--wait"] };
        swarm.managers[place].skep(&[&["ca", "rotate"], wait].concat()).ok();
    }
    writers.wait_for(20);
    let last = digest(&swarm.managers[0]);
    assert_ne!(first, last);
    check_root(&swarm, &last);
    let token = swarm.managers[0].skep(&["token", "show", "--role", "manager"]).ok();
    assert!(token != old_token && token.contains(&last), "tokens are made for the new root");
    writers.finish();
    swarm.converge();
    // All of them start again with what they have on their disks, and one more joins.
    for manager in &mut swarm.managers {
        manager.kill();
        manager.arguments.clear();
    }
    swarm.managers.iter_mut().for_each(Manager::start);
    (0..3).for_each(|place| swarm.votes(place));
    swarm.join(|_| {});
    check_root(&swarm, &last);
}

#[test]
fn a_manager_that_is_down_is_waited_for_by_name_and_moves_when_it_is_back() {
    let mut swarm = Swarm::of(3);
    let down = swarm.followers()[0];
    let up = swarm.followers()[1];
    swarm.managers[down].kill();
    let name = swarm.managers[down].name.clone();
    let before = digest(&swarm.managers[up]);
    let started = swarm.managers[up].json(&["ca", "rotate"]);
    assert_eq!(started["rotating"], true);
    let rotation = eventually("the others have moved", || {
        let rotation = swarm.managers[up].json(&["ca", "show"])["rotation"].clone();
        (rotation["converged"] == 2).then_some(rotation)
    });
    assert_eq!((&rotation["total"], &rotation["waiting"]), (&Value::from(3), &Value::from(1)));
    assert_eq!(rotation["waiting_for"][0]["name"], name.as_str());
    assert_eq!(digest(&swarm.managers[up]), before);
    let status = swarm.managers[up].status().unwrap()["warnings"].to_string();
    assert!(status.contains("2 of 3 nodes") && status.contains(&name), "{status}");
    let both = [swarm.managers[up].name.clone(), name];
    let refused = swarm.managers[up].skep(&["ca", "rotate", "--skip", &both[0], "--skip", &both[1]]);
    refused.refused_with_hint(3, &["skipping 2 of 3 managers"]);

    swarm.managers[down].arguments.clear();
    swarm.managers[down].start();
    swarm.votes(down);
    check_root(&swarm, started["digest"].as_str().unwrap());
}

/// Starts a worker that joins the first manager, and waits until a manager has it.
#[track_caller]
fn add_worker(swarm: &Swarm, name: &str) -> Manager {
    let token = swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok();
    let mut worker = Manager::new(swarm.path(), name);
    worker.arguments =
        vec!["--join".into(), swarm.managers[0].addr.clone(), "--token-file".into(), swarm.token_file(&token)];
    worker.spawn();
    in_touch(&worker);
    eventually("the worker has reported", || {
        let node = swarm.managers[0].json(&["node", "inspect", name]);
        (!node["certificate"]["reported_issuer"].as_str()?.is_empty()).then_some(())
    });
    worker
}

/// Waits until a worker is in touch with a manager; that one's id.
#[track_caller]
fn in_touch(worker: &Manager) -> String {
    eventually("the worker is in touch with a manager", || {
        let status = worker.status()?;
        (status["state"] == "ready").then(|| status["manager"][0].as_str().map(str::to_owned)).flatten()
    })
}

fn trusted(node: &Manager) -> String {
    std::fs::read_to_string(node.dir.join("pki/root.crt")).unwrap()
}

#[test]
fn a_worker_whose_manager_dies_in_a_rotation_gets_its_new_certificate_from_another() {
    let mut swarm = Swarm::of(3);
    let worker = add_worker(&swarm, "w1");
    let old = trusted(&worker);
    let manager = in_touch(&worker);
    let place = swarm.managers.iter().position(|it| it.status().unwrap()["node_id"] == manager.as_str()).unwrap();
    let other = (place + 1) % 3;
    // It hears nothing of the rotation as long as its manager lives.
    worker.signal(Signal::STOP);
    let started = swarm.managers[other].json(&["ca", "rotate"]);
    let rotation = eventually("the managers have moved", || {
        let rotation = swarm.managers[other].json(&["ca", "show"])["rotation"].clone();
        (rotation["converged"] == 3).then_some(rotation)
    });
    assert_eq!(rotation["waiting_for"][0]["name"], "w1");
    swarm.managers[place].kill();
    worker.signal(Signal::CONT);
    eventually("another manager has it", || (in_touch(&worker) != manager).then_some(()));
    let digest = started["digest"].as_str().unwrap();
    check_root(&swarm, digest);
    eventually("the worker trusts the new root only", || {
        (trusted(&worker) != old && trusted(&worker) == trusted(&swarm.managers[other])).then_some(())
    });
    let [row, root] = [&["node", "inspect", "w1"][..], &["ca", "show"]].map(|words| swarm.managers[other].json(words));
    assert_eq!(row["certificate"]["reported_issuer"], root["roots"][0]["issuer"]);
    // The manager that died had moved: it comes back, and the worker stays with whom it has.
    swarm.managers[place].arguments.clear();
    swarm.managers[place].start();
    swarm.votes(place);
    check_root(&swarm, digest);
    in_touch(&worker);
}

#[test]
fn a_worker_that_a_rotation_went_on_without_hears_that_it_must_join_again() {
    let mut swarm = Swarm::of(1);
    let mut worker = add_worker(&swarm, "w1");
    let id = worker.status().unwrap()["node_id"].as_str().unwrap().to_owned();
    worker.stop();
    let manager = &swarm.managers[0];
    let hinted = manager.skep(&["ca", "rotate", "--wait", "--skip", "w1"]);
    assert!(hinted.stderr.contains("hint: a skipped node"), "{hinted:?}");
    hinted.ok();
    let before = worker.log_length();
    worker.spawn();
    let status = eventually("it says why nobody takes it", || {
        let status = worker.status()?;
        status["warnings"].to_string().contains("the root was replaced while this node was away").then_some(status)
    });
    assert_eq!(status["state"], "no manager");
    assert!(status["warnings"].to_string().contains("join again on an empty data directory"), "{status}");
    assert!(worker.log_since(before).contains("the root was replaced"), "{}", worker.log_since(before));
    assert_eq!(worker.skep(&["status"]).code, Some(4));
    // A new root is not taken from whoever offers one.
    assert_ne!(trusted(&worker), trusted(&swarm.managers[0]));

    // What it was told to do. Its former self is no more than a row to remove.
    worker.kill();
    std::fs::rename(&worker.dir, swarm.path().join("aside")).unwrap();
    drop(worker);
    let token = swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok();
    let mut worker = Manager::new(swarm.path(), "w1");
    worker.arguments =
        vec!["--join".into(), swarm.managers[0].addr.clone(), "--token-file".into(), swarm.token_file(&token)];
    worker.spawn();
    in_touch(&worker);
    assert_ne!(worker.status().unwrap()["node_id"], id.as_str());
    swarm.managers[0].skep(&["node", "rm", "--force", &id]).ok();
    assert_eq!(swarm.managers[0].json(&["node", "ls"]).as_array().unwrap().len(), 2);
    swarm.managers[0].stop();
}
