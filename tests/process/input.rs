//! What people get wrong: every mistake has its message, its hint and its exit code.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;

use super::swarm::{Ended, Manager, Swarm, eventually, skep};

#[track_caller]
fn run(dir: &Path, arguments: &[&str]) -> Ended {
    skep(|command| {
        command.args(["run", "--listen", "127.0.0.1:0", "--data-dir"]).arg(dir).args(arguments);
    })
}

#[test]
fn places_that_cannot_be_used() {
    let swarm = Swarm::of(1);
    let root = swarm.path();
    let taken = &swarm.managers[0];

    let ended = skep(|command| {
        command.args(["run", "--listen", &taken.addr, "--data-dir"]).arg(root.join("other"));
    });
    ended.refused_with_hint(1, &[&format!("cannot listen on {}", taken.addr), "the port is in use", "--listen"]);
    // Nothing is left behind that the next try stumbles over.
    assert!(!root.join("other/node.json").exists());
    run(&root.join("other2"), &["--http", &taken.addr]).refused_with_hint(1, &["the port is in use", "--http"]);

    run(&taken.dir, &[]).refused_with_hint(3, &["cannot use the data directory", "another skep process is using it"]);
    // The one that uses it did not notice.
    taken.create_config("motd", b"hello");

    let file = root.join("file");
    std::fs::write(&file, b"x").unwrap();
    run(&file, &[]).refused_with_hint(3, &["is a file and not a directory", "--data-dir"]);
    run(&file.join("below"), &[]).refused_with_hint(3, &["is a file and not a directory", "--data-dir"]);

    let foreign = root.join("foreign");
    std::fs::create_dir(&foreign).unwrap();
    std::fs::write(foreign.join("thesis.txt"), b"years of work").unwrap();
    run(&foreign, &[]).refused_with_hint(3, &["it holds thesis.txt, which is not skep's"]);
    assert_eq!(std::fs::read_dir(&foreign).unwrap().flatten().filter(|entry| entry.file_name() != "LOCK").count(), 1);

    run(&root.join("unmounted"), &["--existing"]).refused_with_hint(3, &["it is empty, and --existing was given"]);

    // Nobody is there to answer.
    let ended = skep(|command| {
        command.args(["status", "--data-dir"]).arg(root.join("nobody"));
    });
    ended.refused_with_hint(4, &["skep run"]);
}

#[test]
fn tokens_and_addresses_that_do_not_lead_into_the_swarm() {
    let swarm = Swarm::of(1);
    let root = swarm.path();
    let manager = &swarm.managers[0];
    let token = manager.skep(&["token", "show", "--role", "manager"]).ok();
    let join = |name: &str, addr: &str, token: &str| {
        let file = swarm.token_file(token);
        run(&root.join(name), &["--join", addr, "--token-file", &file])
    };
    let cannot = format!("cannot join {}", manager.addr);

    join("j2", &manager.addr, "SWMTKN-1-abc").refused_with_hint(3, &[&cannot, "invalid join token"]);
    join("j3", &manager.addr, "hunter2").refused_with_hint(3, &[&cannot, "it does not begin with SWMTKN"]);
    // The right swarm, the wrong secret.
    let (front, secret) = token.rsplit_once('-').unwrap();
    let first = if secret.starts_with('0') { "1" } else { "0" };
    let wrong = format!("{front}-{first}{}", &secret[1..]);
    let said = join("j4", &manager.addr, &wrong).refused_with_hint(3, &[&cannot, "token"]);
    assert!(!said.contains(&wrong), "the token is a secret: {said}");
    // The token of another swarm.
    let other = format!("SWMTKN-1-{}-{secret}", "0".repeat(50));
    join("j5", &manager.addr, &other).refused_with_hint(3, &[&cannot, "does not match the join token"]);
    assert!(!root.join("j5/pki/root.crt").exists(), "whoever answered is not believed");
    let ended = run(&root.join("j6"), &["--join", &manager.addr]);
    ended.refused_with_hint(3, &[&cannot, "a join token is needed", "--token-file"]);
    run(&root.join("j7"), &["--join", &manager.addr, "--token-file", "/nonexistent/token"])
        .refused(1, &["/nonexistent/token"]);

    // The first mistake does not spoil the directory: the right token goes in after all.
    let file = swarm.token_file(&token);
    let members = |manager: &super::swarm::Manager| manager.json(&["members"]).as_array().unwrap().len();
    assert_eq!(members(manager), 1);
    let mut mended = super::swarm::Manager::new(root, "j4");
    mended.arguments = vec!["--join".into(), manager.addr.clone(), "--token-file".into(), file];
    mended.start();
    assert_eq!(members(manager), 2);
}

#[test]
fn addresses_where_no_swarm_is() {
    let swarm = Swarm::empty();
    let root = swarm.path();
    let token = format!("SWMTKN-1-{}-{}", "0".repeat(50), "0".repeat(25));
    let file = swarm.token_file(&token);
    let join = |name: &str, addr: &str| run(&root.join(name), &["--join", addr, "--token-file", &file]);

    // Somebody speaks HTTP there.
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = web.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in web.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
        }
    });
    let ended = join("a", &addr);
    assert!(ended.took.as_secs() < 35, "{ended:?}");
    assert!(matches!(ended.code, Some(3 | 4)), "{ended:?}");
    let code = ended.code.unwrap();
    ended.refused_with_hint(code, &[&format!("cannot join {addr}")]);

    run(&root.join("b"), &["--join", "no-port", "--token-file", &file]).refused(2, &["no-port"]);
}

#[test]
fn a_join_address_where_nobody_listens_or_nobody_answers() {
    let swarm = Swarm::empty();
    let root = swarm.path().to_owned();
    let token = format!("SWMTKN-1-{}-{}", "0".repeat(50), "0".repeat(25));
    let file = swarm.token_file(&token);
    // A port that nobody listens on, and one where connections are taken and nothing is said.
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let nobody = closed.local_addr().unwrap().to_string();
    drop(closed);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let speechless = silent.local_addr().unwrap().to_string();
    // Both try for a while, in case the other only starts: side by side.
    let attempts: Vec<_> = [("nobody", nobody), ("speechless", speechless)]
        .into_iter()
        .map(|(name, addr)| {
            let (dir, file) = (root.join(name), file.clone());
            std::thread::spawn(move || (run(&dir, &["--join", &addr, "--token-file", &file]), addr))
        })
        .collect();
    for attempt in attempts {
        let (ended, addr) = attempt.join().unwrap();
        assert!(ended.took.as_secs() < 50, "{ended:?}");
        ended.refused_with_hint(4, &[&format!("cannot join {addr}")]);
    }
}

#[test]
fn objects_that_cannot_be_made_changed_or_removed() {
    let swarm = Swarm::of(1);
    let manager = &swarm.managers[0];
    let create = |input: &[u8], arguments: &[&str]| manager.skep_with_input(input, arguments);

    // Data at and over the limits.
    create(&vec![1; 512_000], &["secret", "create", "big", "-"])
        .refused_with_hint(3, &["cannot create secret big", "512000"]);
    create(&vec![1; 511_999], &["secret", "create", "just", "-"]).ok();
    create(&vec![1; 1_024_000], &["config", "create", "big", "-"])
        .refused_with_hint(3, &["cannot create config big", "1024000"]);
    create(&vec![1; 1_023_999], &["config", "create", "just", "-"]).ok();
    manager.skep(&["extension", "create", "route"]).ok();
    create(&vec![1; 1_024_000], &["resource", "create", "big", "-", "--kind", "route"])
        .refused_with_hint(3, &["cannot create resource big", "1024000"]);
    create(b"", &["config", "create", "empty", "-"]).refused(3, &["cannot create config empty", "larger than 0"]);
    let label = format!("k={}", "v".repeat(16 * 1024));
    create(b"x", &["config", "create", "labelled", "-", "--label", &label]).refused(3, &["limited to 16384 bytes"]);

    // Names.
    for bad in ["a b", "-a", "a/b", ""] {
        create(b"x", &["config", "create", "--", bad, "-"]).refused(3, &["config name"]);
    }
    create(b"x", &["config", "create", "web", "-"]).ok();
    create(b"x", &["config", "create", "WEB", "-"])
        .refused_with_hint(3, &["cannot create config WEB", "already exists", "choose another name"]);
    create(b"x", &["resource", "create", "r", "-", "--kind", "missing"])
        .refused_with_hint(3, &["Kind missing is not registered", "skep extension create missing"]);
    manager.skep(&["config", "inspect", "nothing"]).refused_with_hint(3, &["could not find config nothing"]);
    manager.skep(&["config", "rm", "nothing"]).refused_with_hint(3, &["could not find config nothing"]);

    // An id's beginning that two objects share.
    let mut firsts = std::collections::BTreeMap::new();
    let shared = (0..200).find_map(|number| {
        let id = create(b"x", &["config", "create", &format!("n{number}"), "-"]).ok();
        firsts.insert(id[..1].to_owned(), id.clone()).map(|_| id[..1].to_owned())
    });
    let shared = shared.unwrap();
    manager.skep(&["config", "inspect", &shared]).refused_with_hint(3, &["could be any of", "type more of the id"]);

    // Versions.
    create(b"1", &["resource", "create", "r", "-", "--kind", "route"]).ok();
    let version = manager.json(&["resource", "inspect", "r"])["meta"]["version"].to_string();
    create(b"2", &["resource", "update", "r", "-", "--if-version", &version]).ok();
    create(b"3", &["resource", "update", "r", "-", "--if-version", &version])
        .refused_with_hint(3, &["cannot update resource r", "update out of sequence", "skep resource inspect r"]);
    manager
        .skep(&["config", "update", "web", "--label", "a=b", "--if-version", "1"])
        .refused_with_hint(3, &["update out of sequence"]);
    assert_eq!(manager.json(&["resource", "inspect", "r"])["payload"], "Mg==");

    // In use.
    manager
        .skep(&["extension", "rm", "route"])
        .refused_with_hint(3, &["cannot remove extension route", "in use by the following resource(s): r"]);
    manager.skep(&["resource", "rm", "r"]).ok();
    manager.skep(&["extension", "rm", "route"]).ok();

    // The command line itself.
    manager.skep(&["frobnicate"]).refused(2, &[]);
    manager.skep(&["config", "ls", "--filter", "colour=red"]).refused(2, &[]);
    manager.skep(&["watch", "--kind", "unicorn"]).refused(2, &["not a kind of object"]);
    manager.skep(&["cluster", "update", "--snapshot-bytes", "1"]).refused(3, &["must be from 65536"]);
    manager.skep(&["config", "ls", "--timeout", "soon"]).refused(2, &["a duration is"]);

    // For scripts, the same as one object.
    let ended = manager.skep(&["config", "inspect", "nothing", "--json"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(3), ""));
    let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
    assert_eq!(error["code"], "NotFound");
    assert!(error["message"].as_str().unwrap().contains("could not find config nothing"));
    assert!(!error["hint"].as_str().unwrap().is_empty());
}

#[test]
fn a_write_is_asked_about_again_under_its_id() {
    let swarm = Swarm::of(1);
    let manager = &swarm.managers[0];
    let revision = manager.json(&["status"])["revision"].to_string();
    let change = format!("{}7@{revision}", "0".repeat(24));
    let create =
        |data: &[u8]| manager.skep_with_input(data, &["config", "create", "motd", "-", "--change-id", &change]);
    let first = create(b"hello").ok();
    // Neither a second config nor "already exists": the first one's answer.
    assert_eq!(create(b"hello").ok(), first);
    let rows = manager.json(&["config", "ls"]);
    assert_eq!((rows.as_array().unwrap().len(), &rows[0]["id"]), (1, &first.as_str().into()));
}

#[test]
fn a_directory_of_one_swarm_is_not_led_into_another() {
    let mut swarm = Swarm::of(1);
    let ours = swarm.managers[0].skep(&["token", "show", "--role", "worker"]).ok();
    let token = swarm.token_file(&ours);
    let mut worker = Manager::new(swarm.path(), "w1");
    worker.arguments = vec!["--join".into(), swarm.managers[0].addr.clone(), "--token-file".into(), token];
    worker.spawn();
    let ready = |worker: &Manager| worker.status().filter(|status| status["state"] == "ready");
    let before = eventually("it has joined", || ready(&worker));
    worker.stop();

    // Another swarm, and its token.
    let place = swarm.add();
    swarm.managers[place].start();
    let addr = swarm.managers[place].addr.clone();
    let theirs = swarm.managers[place].skep(&["token", "show", "--role", "worker"]).ok();
    let token = swarm.token_file(&theirs);
    worker.arguments = vec!["--join".into(), addr.clone(), "--token-file".into(), token];
    let logged = worker.log_length();
    worker.spawn();
    let after = eventually("it is where it was", || ready(&worker));
    assert_eq!((&after["node_id"], &after["cluster_id"]), (&before["node_id"], &before["cluster_id"]));
    let said = worker.log_since(logged);
    assert!(said.contains("belongs to a member of a swarm already: --join and --token are ignored"), "{said}");

    // Named as a manager of its own swarm, while that one is down: neither takes the other for one of its own.
    worker.stop();
    swarm.managers[0].stop();
    worker.arguments = vec!["--peer".into(), addr];
    let logged = worker.log_length();
    worker.spawn();
    eventually("it says why it is in touch with nobody", || {
        let said = worker.log_since(logged);
        said.contains("it belongs to another swarm").then_some(())
    });
    assert_eq!(worker.status().unwrap()["state"], "no manager");
    assert_eq!(swarm.managers[place].json(&["node", "ls"]).as_array().unwrap().len(), 1);
    swarm.managers[0].start();
    let back = eventually("its own manager is back", || ready(&worker));
    assert_eq!(back["cluster_id"], before["cluster_id"]);
    worker.stop();
}
