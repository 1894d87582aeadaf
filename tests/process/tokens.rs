//! Who gets in: tokens that are rotated, that end or are used up, and nodes that a person must approve.

use serde_json::Value;

use super::swarm::{Manager, Swarm, eventually};

impl Swarm {
    /// Starts one more manager that joins the first one with this token, and waits for nothing.
    fn join_with(&mut self, token: &str) -> usize {
        let place = self.add();
        self.rejoin_with(place, token);
        place
    }

    /// Starts it, again or for the first time, to join with this token.
    fn rejoin_with(&mut self, place: usize, token: &str) {
        self.rejoin_through(0, place, token);
    }

    /// The same, through this manager.
    fn rejoin_through(&mut self, through: usize, place: usize, token: &str) {
        let file = self.path().join(format!("token-{place}"));
        std::fs::write(&file, format!("{token}\n")).unwrap();
        let addr = self.managers[through].addr.clone();
        let manager = &mut self.managers[place];
        manager.arguments = vec!["--join".into(), addr, "--token-file".into(), file.display().to_string()];
        manager.spawn();
    }

    /// Waits until a manager that was to join has given up; what it said since then.
    #[track_caller]
    fn turned_away(&mut self, place: usize, before: u64) -> String {
        assert_eq!(self.managers[place].ended(), Some(3), "{}", self.managers[place].log_since(before));
        self.managers[place].log_since(before)
    }

    fn nodes(&self) -> Vec<Value> {
        self.managers[0].json(&["node", "ls"]).as_array().unwrap().clone()
    }
}

#[test]
fn a_rotated_token_lets_nobody_in_and_members_need_none() {
    let mut swarm = Swarm::of(2);
    let old = swarm.managers[0].skep(&["token", "show", "--role", "manager"]).ok();
    let worker = swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok();
    swarm.managers[1].stop();
    // One of two has no majority: it comes back with its certificate, though its token file holds the old token still.
    swarm.managers[1].start();
    swarm.votes(1);
    // Through the follower, as through the leader.
    let follower = swarm.followers()[0];
    let new = swarm.managers[follower].skep(&["token", "rotate", "--role", "manager"]).ok();
    assert_ne!(new, old);
    assert_eq!(swarm.managers[0].skep(&["token", "show", "--role", "manager"]).ok(), new);
    assert_eq!(swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok(), worker);
    swarm.managers[1].stop();
    swarm.managers[1].start();
    swarm.votes(1);

    let late = swarm.join_with(&old);
    let said = swarm.turned_away(late, 0);
    assert!(said.contains("A valid join token is necessary") && said.contains("skep token show"), "{said}");
    swarm.rejoin_with(late, &new);
    swarm.votes(late);
    swarm.converge();

    let both = swarm.managers[0].json(&["token", "rotate"]);
    let rows = both.as_array().unwrap();
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|row| row["token"] != new.as_str() && row["token"] != worker.as_str()), "{both}");
}

#[test]
fn a_token_for_one_node_admits_one_and_labels_it() {
    let mut swarm = Swarm::of(1);
    let founder = &swarm.managers[0];
    let made =
        founder.json(&["token", "create", "--role", "manager", "--label", "zone=a", "--ttl", "1h", "--uses", "1"]);
    let (id, token) = (made["id"].as_str().unwrap().to_owned(), made["token"].as_str().unwrap().to_owned());
    let secret = token.rsplit('-').next().unwrap();
    let listed = founder.skep(&["token", "ls"]).ok();
    assert!(listed.contains(&id) && listed.contains("zone=a") && listed.contains("ready"), "{listed}");
    let inspected = founder.skep(&["token", "inspect", &id]).ok();
    assert!(!listed.contains(secret) && !inspected.contains(secret), "{listed}{inspected}");

    let first = swarm.join_with(&token);
    swarm.votes(first);
    let name = swarm.managers[first].name.clone();
    let node = swarm.managers[0].json(&["node", "inspect", &name]);
    assert_eq!(node["spec"]["annotations"]["labels"]["zone"], "a");
    let row = &swarm.managers[first].json(&["token", "ls"])[0];
    assert_eq!((&row["uses_left"], &row["state"]), (&0.into(), &"used up".into()));

    let second = swarm.join_with(&token);
    let said = swarm.turned_away(second, 0);
    assert!(said.contains("as many nodes as it was made for") && said.contains("skep token create"), "{said}");
    assert_eq!(swarm.nodes().len(), 2);
    // The same directory, with a token that admits.
    let another = swarm.managers[0].skep(&["token", "create", "--role", "manager", "--uses", "1"]).ok();
    swarm.rejoin_with(second, &another);
    swarm.votes(second);
    swarm.converge();

    swarm.managers[0].skep(&["token", "rm", &id]).ok();
    swarm.managers[0].skep(&["token", "rm", &id]).refused_with_hint(3, &["not found", "skep token ls"]);
    let ended = swarm.managers[0].skep(&["token", "create", "--role", "manager", "--ttl", "1ms"]).ok();
    let before = swarm.add();
    swarm.rejoin_with(before, &ended);
    let said = swarm.turned_away(before, 0);
    assert!(said.contains("the join token expired at"), "{said}");
}

#[test]
fn a_node_that_must_be_approved_waits_and_joins_when_it_is() {
    let mut swarm = Swarm::of(1);
    let founder = &swarm.managers[0];
    founder.skep(&["cluster", "update", "--approve-joins"]).ok();
    let token = founder.skep(&["token", "show", "--role", "manager"]).ok();
    let place = swarm.join_with(&token);
    let id = eventually("it waits", || {
        let node = swarm.nodes().into_iter().find(|node| node["membership"] == "pending")?;
        Some(node["id"].as_str().unwrap().to_owned())
    });
    eventually("it says so", || {
        let status = swarm.managers[place].status()?;
        let said = status["warnings"][0].as_str()?;
        said.contains("waits until a person approves it").then_some(())
    });
    let doctor = swarm.managers[place].skep(&["doctor"]);
    assert!(doctor.code == Some(4) && doctor.stdout.contains("has not joined its swarm yet: "), "{doctor:?}");
    swarm.managers[0].skep(&["node", "approve", &id]).ok();
    swarm.managers[place].listening_since(0);
    swarm.votes(place);
    assert!(swarm.nodes().iter().all(|node| node["membership"] == "accepted"));
    // Who is not let in is told so, and asks anew at its next start. This one asks a follower, and is told what it waits for
    // in the leader's words.
    let (through, refused) = (swarm.followers()[0], swarm.add());
    swarm.rejoin_through(through, refused, &token);
    let id = eventually("another waits", || {
        let node = swarm.nodes().into_iter().find(|node| node["membership"] == "pending")?;
        Some(node["id"].as_str().unwrap().to_owned())
    });
    eventually("it says so", || {
        let status = swarm.managers[refused].status()?;
        status["warnings"][0].as_str()?.contains("waits until a person approves it").then_some(())
    });
    swarm.managers[0].skep(&["node", "rm", "--force", &id]).ok();
    let said = swarm.turned_away(refused, 0);
    assert!(said.contains("was not let in: it was removed while it waited"), "{said}");
    swarm.managers[0].skep(&["node", "approve", "nobody"]).refused_with_hint(3, &["not found", "skep node ls"]);
    swarm.converge();
}

#[test]
fn as_many_join_at_once_with_a_token_as_it_was_made_for_and_no_more() {
    let swarm = Swarm::of(2);
    for (round, uses) in [1, 3].into_iter().enumerate() {
        let token = swarm.managers[0].skep(&["token", "create", "--role", "worker", "--uses", &uses.to_string()]).ok();
        let file = swarm.token_file(&token);
        // Half of them ask the leader, half a follower, all in the same moment.
        let mut workers: Vec<Manager> = (0..2 * uses)
            .map(|number| {
                let mut worker = Manager::new(swarm.path(), &format!("w{round}-{number}"));
                let addr = swarm.managers[number % 2].addr.clone();
                worker.arguments = vec!["--join".into(), addr, "--token-file".into(), file.clone()];
                worker
            })
            .collect();
        workers.iter_mut().for_each(Manager::spawn);
        let mut in_touch = 0;
        for worker in &mut workers {
            let admitted = eventually("it is in touch with a manager, or turned away", || {
                // Before it is counted, or after others were.
                let words = ["as many nodes as it was made for", "the join token admits nobody any more"];
                let turned_away = words.iter().any(|words| worker.log_since(0).contains(words));
                let is_ready = worker.status().is_some_and(|status| status["state"] == "ready");
                (turned_away || is_ready).then_some(is_ready)
            });
            if admitted {
                in_touch += 1;
            } else {
                assert_eq!(worker.ended(), Some(3), "{}", worker.log_since(0));
            }
        }
        assert_eq!(in_touch, uses);
        let of_round = format!("w{round}-");
        let named = swarm.nodes().into_iter().filter(|row| row["name"].as_str().unwrap().starts_with(&of_round));
        assert_eq!(named.count(), uses, "who was turned away has left nothing");
    }
    let left: Vec<Value> = swarm.managers[1].json(&["token", "ls"]).as_array().unwrap().clone();
    assert!(left.len() == 2 && left.iter().all(|row| row["uses_left"] == 0), "{left:?}");
}
