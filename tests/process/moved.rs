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
    writers.finish().check(&swarm);
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
    writers.finish().check(&swarm);
}
