//! The root certificate is replaced while programs write.

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
