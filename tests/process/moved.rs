//! Managers whose addresses change: identity is the certificate.

use super::proxy::free_addr;
use super::swarm::{Swarm, eventually};
use super::writers::Writers;

/// Waits until every manager lists every manager where it listens now.
#[track_caller]
fn check_addresses(swarm: &Swarm) {
    for manager in &swarm.managers {
        eventually(&format!("{} knows where everybody is", manager.name), || {
            let members = manager.json(&["members"]);
            let knows = |other: &super::swarm::Manager| {
                let rows = members.as_array().unwrap();
                rows.iter().any(|row| row["name"] == other.name.as_str() && row["addr"] == other.addr.as_str())
            };
            swarm.managers.iter().all(knows).then_some(())
        });
    }
    // What a node says of itself follows, which is a write for each that moved.
    let leader = &swarm.managers[swarm.leader()];
    eventually("the nodes' objects say where everybody is", || {
        let nodes = leader.json(&["node", "ls"]);
        let rows = nodes.as_array().unwrap();
        let knows = |manager: &super::swarm::Manager| rows.iter().any(|row| row["addr"] == manager.addr.as_str());
        swarm.managers.iter().all(knows).then_some(())
    });
}

#[test]
fn managers_that_all_moved_at_once_find_each_other_by_one_address() {
    let mut swarm = Swarm::of(3);
    let writers = Writers::start(&swarm, 2);
    writers.wait_for(40);
    for manager in &mut swarm.managers {
        manager.kill();
    }
    // Another address and another port; one of them is told to the two others.
    for manager in &mut swarm.managers {
        manager.addr = free_addr();
    }
    let known = swarm.managers[0].addr.clone();
    swarm.managers[0].arguments.clear();
    for manager in &mut swarm.managers[1..] {
        manager.arguments = vec!["--peer".into(), known.clone()];
    }
    swarm.managers.iter_mut().for_each(super::swarm::Manager::start);
    writers.wait_for(40);
    (0..3).for_each(|place| swarm.votes(place));
    check_addresses(&swarm);
    assert_eq!(swarm.managers[0].json(&["status"])["voters"], 3);

    // From then on nobody needs to be told.
    for manager in &mut swarm.managers {
        manager.kill();
        manager.arguments.clear();
    }
    swarm.managers.iter_mut().for_each(super::swarm::Manager::start);
    writers.wait_for(40);
    (0..3).for_each(|place| swarm.votes(place));
    let mut finished = writers.finish();
    finished.others = 3;
    finished.check(&swarm);
}

#[test]
fn managers_that_move_one_after_the_other_need_no_help() {
    let mut swarm = Swarm::of(3);
    let writers = Writers::start(&swarm, 2);
    for place in 0..3 {
        writers.wait_for(20);
        let manager = &mut swarm.managers[place];
        manager.kill();
        manager.addr = free_addr();
        manager.arguments.clear();
        manager.start();
        swarm.votes(place);
        check_addresses(&swarm);
    }
    let mut finished = writers.finish();
    finished.others = 3;
    finished.check(&swarm);
}

#[test]
fn managers_are_known_by_names_that_are_looked_up_each_time() {
    // What a name means may change: it is kept as it was given.
    let by_name = |manager: &mut super::swarm::Manager| {
        manager.arguments.extend(["--advertise".to_owned(), "localhost:0".to_owned()]);
    };
    let mut swarm = Swarm::empty();
    swarm.join(by_name);
    for _ in 0..2 {
        swarm.join(|manager| {
            let port = manager.arguments[1].rsplit_once(':').unwrap().1.to_owned();
            manager.arguments[1] = format!("localhost:{port}");
            by_name(manager);
        });
    }
    let listed = |swarm: &Swarm| {
        let members = swarm.managers[0].json(&["members"]);
        members.as_array().unwrap().iter().map(|row| row["addr"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert!(listed(&swarm).iter().all(|addr| addr.starts_with("localhost:")), "{:?}", listed(&swarm));
    let before = listed(&swarm);
    // All at other ports, and one of them known to the others by name.
    for manager in &mut swarm.managers {
        manager.kill();
        manager.addr = free_addr().replace("127.0.0.2", "127.0.0.1");
    }
    let port = swarm.managers[0].addr.rsplit_once(':').unwrap().1.to_owned();
    for (place, manager) in swarm.managers.iter_mut().enumerate() {
        manager.arguments = vec!["--advertise".into(), "localhost:0".into()];
        if place > 0 {
            manager.arguments.extend(["--peer".into(), format!("localhost:{port}")]);
        }
    }
    swarm.managers.iter_mut().for_each(super::swarm::Manager::start);
    (0..3).for_each(|place| swarm.votes(place));
    eventually("everybody is listed by name at the new port", || {
        let after = listed(&swarm);
        (after.iter().all(|addr| addr.starts_with("localhost:") && !before.contains(addr))).then_some(())
    });
    assert_eq!(swarm.managers[0].json(&["status"])["voters"], 3);
    swarm.converge();
}
