//! Reading and writing through any manager.

use super::swarm::Swarm;

#[test]
fn what_is_written_through_one_follower_is_read_through_another() {
    let swarm = Swarm::of(3);
    let followers = swarm.followers();
    let (one, other) = (&swarm.managers[followers[0]], &swarm.managers[followers[1]]);

    // Linearizable: no matter how far the other has come, it has this write when it answers.
    for number in 0..20 {
        let name = format!("motd-{number}");
        let id = one.create_config(&name, b"hello");
        let found = other.json(&["config", "inspect", &name]);
        assert_eq!(found["id"], id.as_str());
        assert_eq!(found["spec"]["data"], "aGVsbG8=");
    }
    // Stale reads need nobody, and have it soon.
    swarm.converge();
    let rows = other.json(&["config", "ls", "--stale"]);
    assert_eq!(rows.as_array().unwrap().len(), 20);

    let members = other.json(&["members"]);
    let members = members.as_array().unwrap();
    assert_eq!(members.len(), 3);
    assert!(members.iter().all(|member| member["role"] == "voter" && member["reachable"] == true), "{members:?}");
    assert_eq!(members.iter().filter(|member| member["leader"] == true).count(), 1);
    for key in ["node_id", "raft_id", "name", "addr", "match", "rtt_ms"] {
        assert!(members.iter().all(|member| member.get(key).is_some()), "{key}");
    }

    let rows = other.json(&["node", "ls"]);
    assert!(rows.as_array().unwrap().iter().all(|row| row["state"] == "ready"), "{rows}");
    assert_eq!(other.json(&["node", "inspect", "m2"])["status"]["state"], "ready");

    let status = other.json(&["status"]);
    let links = status["links"].as_array().unwrap();
    assert!(links.len() == 2 && links.iter().all(|link| link["addr"].as_str().unwrap().contains(':')), "{links:?}");
    for key in ["node_id", "cluster_id", "state", "role", "leader", "term", "commit", "applied", "revision"] {
        assert!(!status[key].is_null(), "{key}: {status}");
    }
    assert_eq!((&status["voters"], &status["tolerates"]), (&3.into(), &1.into()));
}

#[test]
fn a_manager_cut_off_from_the_others_answers_stale_reads_and_refuses_the_rest_at_once() {
    let mut swarm = Swarm::of(3);
    let survivor = swarm.followers()[0];
    swarm.managers[survivor].create_config("motd", b"hello");
    swarm.converge();
    for place in 0..3 {
        if place != survivor {
            swarm.managers[place].kill();
        }
    }
    let manager = &swarm.managers[survivor];
    // The two deaths are noticed one after the other, each when its connection ends: what is said between them counts two.
    let status = super::swarm::eventually("it notices both", || {
        let ended = manager.skep(&["status", "--json"]);
        let status: serde_json::Value = serde_json::from_str(&ended.stdout).ok()?;
        (ended.code == Some(4) && status["reachable"] == 1).then_some(status)
    });
    assert_eq!(status["state"], "no leader");

    let said = ["1 of 3 managers can be reached", "2 are needed", "the last leader was m"];
    // The timeout is not used up: waiting would only hide the news.
    let ended = manager.skep_with_input(b"x", &["config", "create", "other", "-", "--timeout", "55s"]);
    assert!(ended.took.as_secs() < 20, "{ended:?}");
    ended.refused_with_hint(4, &said);
    let ended = manager.skep(&["config", "ls", "--timeout", "55s"]);
    assert!(ended.took.as_secs() < 20, "{ended:?}");
    ended.refused_with_hint(4, &said);
    let rows = manager.json(&["config", "ls", "--stale"]);
    assert_eq!(rows[0]["name"], "motd");
    let rows = manager.json(&["node", "ls", "--stale"]);
    let up: Vec<_> = rows.as_array().unwrap().iter().filter(|row| row["state"] == "ready").collect();
    assert!(up.len() == 1 && up[0]["name"] == manager.name.as_str(), "{rows}");
    assert!(rows.as_array().unwrap().iter().all(|row| row["state"] != "unknown"), "{rows}");

    // Back again, everything is as before, and the write that was refused never happened.
    for place in 0..3 {
        if place != survivor {
            swarm.managers[place].start();
        }
    }
    let names = swarm.managers[survivor].json(&["config", "ls", "--timeout", "30s"]);
    assert_eq!(names.as_array().unwrap().len(), 1, "{names}");
}
