//! Managers that lock: the unlock key, a locked start, new keys, and no secret anywhere that people or machines read.

use std::io::Read as _;
use std::os::unix::net::UnixDatagram;

use serde_json::Value;
use skep::node::is_locked;
use skep::pki::keyfile::{self, Read};
use skep::pki::{KeyFile, NodeIdentity};

use super::swarm::{Ended, Manager, PATIENCE, Swarm, eventually, skep_with_input};

/// Turns the lock on; the key that was printed.
#[track_caller]
fn autolock(manager: &Manager) -> String {
    let ended = manager.skep(&["cluster", "update", "--autolock"]);
    assert!(ended.stderr.contains("skep unlock"), "{ended:?}");
    let key = ended.ok();
    assert!(key.starts_with("SWMKEY-1-") && key.len() == 52, "{key}");
    key
}

#[track_caller]
fn sealed(manager: &Manager, locked: bool) {
    eventually(&format!("{} is sealed: {locked}", manager.name), || (is_locked(&manager.dir) == locked).then_some(()));
}

/// What a manager's key file holds, if it is sealed under this key.
fn keys_of(manager: &Manager, key: &str) -> Option<KeyFile> {
    let text = std::fs::read_to_string(manager.dir.join("pki/node.key")).unwrap();
    let Read::Locked(locked) = keyfile::read(&text).unwrap() else { return None };
    locked.unlock(&key.parse().unwrap()).ok()
}

/// Ids of the data keys that segments and snapshots of a log name.
fn key_ids(manager: &Manager) -> std::collections::BTreeSet<u64> {
    skep::wal::named_keys(&skep::sys::files::RealDisk, &manager.dir.join("raft")).unwrap().ids
}

/// Starts a manager that is locked, and waits until it says so.
#[track_caller]
fn start_locked(manager: &mut Manager) {
    manager.spawn();
    eventually("it says that it is locked", || {
        let status = manager.status()?;
        (status["state"] == "locked").then_some(())
    });
}

#[track_caller]
fn unlock(manager: &Manager, key: &str) -> Ended {
    manager.skep_with_input(format!("{key}\n").as_bytes(), &["unlock"])
}

#[test]
fn three_managers_lock_change_their_key_and_open_again() {
    let mut swarm = Swarm::of(3);
    swarm.managers[0].create_config("before", b"x");
    swarm.managers[0].skep(&["unlock-key", "show"]).refused_with_hint(3, &["no unlock key"]);
    swarm.managers[0].skep(&["unlock-key", "rotate"]).refused_with_hint(3, &["do not lock"]);
    let plain: Vec<_> = swarm.managers.iter().map(key_ids).collect();
    let chain = |manager: &Manager| std::fs::read_to_string(manager.dir.join("pki/node.crt")).unwrap();
    let chains: Vec<_> = swarm.managers.iter().map(chain).collect();

    let key = autolock(&swarm.managers[1]);
    for manager in &swarm.managers {
        sealed(manager, true);
        assert_eq!(manager.skep(&["unlock-key", "show"]).ok(), key);
    }
    // Asked for again: the key that people have written down stays.
    assert_eq!(autolock(&swarm.managers[2]), key);
    // What was sealed with keys that lay there in the clear goes, without anybody asking.
    for (manager, plain) in swarm.managers.iter().zip(&plain) {
        eventually("nothing names the first data key", || key_ids(manager).is_disjoint(plain).then_some(()));
    }
    for (manager, before) in swarm.managers.iter().zip(&chains) {
        eventually("a certificate for a private key that was never in the clear", || {
            let file = keys_of(manager, &key)?;
            let identity = NodeIdentity::new(&chain(manager), file.node_key).ok()?;
            (!file.renew && identity.chain_pem() != before).then_some(())
        });
    }
    swarm.managers[0].create_config("meanwhile", b"x");
    swarm.managers[1].skep(&["unlock"]).refused(3, &["holds no unlock key"]);
    unlock(&swarm.managers[1], &key).refused_with_hint(3, &["not locked"]);

    // A locked start.
    let second = &mut swarm.managers[1];
    second.stop();
    start_locked(second);
    let before = second.log_length();
    assert!(second.log_since(0).contains("`skep unlock`"), "{}", second.log_since(0));
    assert_eq!(second.skep(&["status"]).code, Some(4));
    second.skep(&["config", "ls", "--stale"]).refused_with_hint(4, &["locked"]);
    let doctor = second.skep(&["doctor"]);
    assert!(doctor.code == Some(4) && doctor.stdout.contains("the manager is locked"), "{doctor:?}");
    unlock(second, "nonsense").refused_with_hint(3, &["no unlock key"]);
    let wrong = "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    let said = unlock(second, wrong).refused_with_hint(3, &["not the unlock key"]);
    assert!(!said.contains("AAAA"), "{said}");
    // It ends as it should when it is told to, locked as it is.
    second.signal(rustix::process::Signal::TERM);
    assert_eq!(second.ended(), Some(0));
    start_locked(second);
    unlock(second, &key).ok();
    second.listening_since(before);
    swarm.votes(1);
    swarm.managers[1].create_config("after", b"x");

    // A new unlock key. The one before opens nothing that was sealed since.
    let data_keys = |file: &KeyFile| file.data_keys.iter().map(|key| key.expose().to_vec()).collect::<Vec<_>>();
    let former = data_keys(&keys_of(&swarm.managers[0], &key).unwrap());
    let ended = swarm.managers[0].skep(&["unlock-key", "rotate", "--json"]);
    let rotated: Value = serde_json::from_str(&ended.stdout).unwrap();
    let new = rotated["unlock_key"].as_str().unwrap().to_owned();
    assert_ne!(new, key);
    let third = swarm.path().join("new");
    std::fs::write(&third, &new).unwrap();
    eventually("the third manager is sealed under the new key", || keys_of(&swarm.managers[2], &new));
    swarm.managers[2].stop();
    start_locked(&mut swarm.managers[2]);
    unlock(&swarm.managers[2], &key).refused_with_hint(3, &["not the unlock key"]);
    swarm.managers[2].signal(rustix::process::Signal::TERM);
    assert_eq!(swarm.managers[2].ended(), Some(0));
    // From a file, as a service does it.
    swarm.managers[2].arguments.extend(["--unlock-key-file".to_owned(), third.display().to_string()]);
    swarm.managers[2].start();
    swarm.votes(2);

    // Off: in the clear again, with the same data keys, and nobody waits for anything.
    let before = eventually("the first manager has one data key, made under the new key", || {
        let keys = data_keys(&keys_of(&swarm.managers[0], &new)?);
        (keys.len() == 1 && !former.contains(&keys[0])).then_some(keys)
    });
    swarm.managers[0].skep(&["cluster", "update", "--autolock=false"]).ok();
    for place in 0..3 {
        sealed(&swarm.managers[place], false);
    }
    let text = std::fs::read_to_string(swarm.managers[0].dir.join("pki/node.key")).unwrap();
    let Read::Open(opened) = keyfile::read(&text).unwrap() else { panic!("it is in the clear") };
    assert_eq!(data_keys(&opened), before);
    swarm.managers[0].skep(&["unlock-key", "show"]).refused_with_hint(3, &["no unlock key"]);
    swarm.managers[0].stop();
    swarm.managers[0].start();
    swarm.votes(0);
    swarm.converge();
}

#[test]
fn a_manager_that_joins_locked_managers_is_locked_and_a_credential_opens_it() {
    let mut swarm = Swarm::of(1);
    let key = autolock(&swarm.managers[0]);
    let place = swarm.join(|_| {});
    sealed(&swarm.managers[place], true);
    let manager = &mut swarm.managers[place];
    assert!(!manager.log_since(0).contains("did not tell"), "{}", manager.log_since(0));
    manager.stop();
    let credentials = manager.dir.parent().unwrap().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    std::fs::write(credentials.join("skep-unlock-key"), &key).unwrap();
    manager.environment.push(("CREDENTIALS_DIRECTORY".to_owned(), credentials.display().to_string()));
    manager.start();
    swarm.votes(place);
    // One that holds another key ends at once, for whoever watches the service.
    let manager = &mut swarm.managers[place];
    manager.stop();
    let wrong = "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    std::fs::write(credentials.join("skep-unlock-key"), wrong).unwrap();
    manager.spawn();
    assert_eq!(manager.ended(), Some(3), "{}", manager.log_since(0));
}

#[test]
fn the_last_manager_of_a_locked_swarm_is_recovered_with_the_unlock_key() {
    let mut swarm = Swarm::of(3);
    let key = autolock(&swarm.managers[0]);
    swarm.managers[0].create_config("kept", b"x");
    swarm.converge();
    sealed(&swarm.managers[2], true);
    for manager in &mut swarm.managers {
        manager.kill();
    }
    let dir = swarm.managers[2].dir.clone();
    let recover = |input: &[u8], arguments: &[&str]| {
        skep_with_input(input, |command| {
            command.args(["recover", "--data-dir"]).arg(&dir).args(arguments);
        })
    };
    recover(b"yes\n", &[]).refused_with_hint(3, &["locked", "--unlock-key-file"]);
    let wrong = b"SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
    recover(wrong, &["--yes", "--unlock-key-file", "-"]).refused_with_hint(3, &["not the unlock key"]);
    recover(key.as_bytes(), &["--yes", "--unlock-key-file", "-"]).ok();
    // It is still locked, under the same key.
    let third = &mut swarm.managers[2];
    let before = third.log_length();
    start_locked(third);
    unlock(third, &key).ok();
    third.listening_since(before);
    swarm.votes(2);
    assert_eq!(swarm.managers[2].json(&["config", "ls"]).as_array().unwrap().len(), 1);
}

#[test]
fn a_service_that_is_locked_has_started_and_its_watchdog_hears_of_it() {
    let mut swarm = Swarm::of(1);
    let key = autolock(&swarm.managers[0]);
    sealed(&swarm.managers[0], true);
    swarm.managers[0].stop();
    let path = swarm.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let receive = || {
        let mut bytes = [0; 4096];
        let count = socket.recv(&mut bytes).expect("the service manager is told in time");
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    };
    let manager = &mut swarm.managers[0];
    manager.environment.push(("NOTIFY_SOCKET".to_owned(), path.display().to_string()));
    manager.arguments.extend(["--http", "127.0.0.1:0"].map(str::to_owned));
    manager.environment.push(("WATCHDOG_USEC".to_owned(), "30000000".to_owned()));
    start_locked(manager);
    let ready = receive();
    assert!(ready.contains("READY=1\n") && ready.contains("locked"), "{ready}");
    for _ in 0..3 {
        assert_eq!(receive(), "WATCHDOG=1\n");
    }
    // Peers find nobody at home, as with a manager that is down.
    assert!(std::net::TcpStream::connect(&manager.addr).is_err());
    unlock(manager, &key).ok();
    let ready = std::iter::repeat_with(receive).find(|said| said != "WATCHDOG=1\n").unwrap();
    assert!(ready.contains("READY=1\n") && ready.contains(&manager.addr), "{ready}");
}

#[test]
fn a_data_key_is_replaced_while_writes_go_on() {
    let mut swarm = Swarm::of(1);
    let manager = &swarm.managers[0];
    let mut before = key_ids(manager);
    for round in 0..3 {
        manager.create_config(&format!("a{round}"), &[7; 5000]);
        manager.skep(&["raft", "rotate-key"]).ok();
        // Asked for twice: the second one waits for the first.
        manager.skep(&["raft", "rotate-key"]).ok();
        let mut written = 0;
        let after = eventually("nothing names the key before", || {
            manager.create_config(&format!("b{round}-{written}"), &[7; 5000]);
            written += 1;
            let now = key_ids(manager);
            (now.is_disjoint(&before) && now.len() == 1).then_some(now)
        });
        before = after;
    }
    let count = manager.json(&["config", "ls"]).as_array().unwrap().len();
    swarm.managers[0].kill();
    swarm.managers[0].start();
    swarm.votes(0);
    assert_eq!(swarm.managers[0].json(&["config", "ls"]).as_array().unwrap().len(), count);
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| byte >> (7 - at % 8) & 1);
    let digit = |at: usize| (0..6).fold(0, |number, offset| number << 1 | bit(at * 6 + offset));
    (0..(bytes.len() * 8).div_ceil(6)).map(|at| char::from(DIGITS[usize::from(digit(at))])).collect()
}

/// Every way in which something may stand in text: as it is, in hex, as a list of numbers, in base64 wherever it begins.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let numbers: Vec<String> = bytes.iter().map(u8::to_string).collect();
    let mut forms = vec![
        secret.to_owned(),
        numbers.join(", "),
        numbers.join(","),
        bytes.iter().map(|b| format!("{b:02x}")).collect(),
    ];
    forms.extend((0..3).map(|before| {
        // The digits that hold bits of this text alone.
        let text = base64(&[&vec![0; before], bytes].concat());
        let first = (before * 8).div_ceil(6);
        text[first..(before + bytes.len()) * 8 / 6].to_owned()
    }));
    forms
}

#[test]
fn no_secret_is_in_anything_that_a_run_prints_logs_serves_or_writes_down() {
    let mut swarm = Swarm::empty();
    let mut pages = Vec::new();
    for _ in 0..3 {
        let http = super::tools::free_addr();
        pages.push(http.clone());
        swarm.join(|manager| manager.arguments.extend(["--http", &http, "--log", "trace"].map(str::to_owned)));
    }
    let planted = "a-planted-secret-0123456789";
    let passphrase = "a-planted-passphrase-9876543210";
    let mut said: Vec<(String, Vec<u8>)> = Vec::new();
    let mut watch = super::swarm::binary();
    watch.arg("--socket").arg(swarm.managers[0].socket()).args(["watch", "--json", "--from", "1"]);
    watch.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::null());
    let mut watching = watch.spawn().unwrap();
    let mut stream = watching.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes
    });

    // What is secret: data, tokens of every sort, unlock keys, a passphrase, the key of a root.
    let mut secrets: Vec<String> = vec![planted.to_owned(), passphrase.to_owned()];
    let mut tokens = vec![];
    for role in ["manager", "worker"] {
        tokens.push(swarm.managers[0].skep(&["token", "show", "--role", role]).ok());
        tokens.push(swarm.managers[1].skep(&["token", "create", "--role", role, "--ttl", "1h"]).ok());
    }
    secrets.push(autolock(&swarm.managers[0])["SWMKEY-1-".len()..].to_owned());
    for manager in &swarm.managers {
        sealed(manager, true);
    }
    let key = swarm.managers[1].skep(&["unlock-key", "rotate"]).ok();
    secrets.push(key["SWMKEY-1-".len()..].to_owned());
    let file = |name: &str, text: &[u8]| {
        let path = swarm.path().join(name).display().to_string();
        std::fs::write(&path, text).unwrap();
        path
    };
    let now_ms = skep::sys::time::wall_ms();
    let root = skep::client::own_root(now_ms, &mut skep::sys::entropy::OsEntropy).unwrap();
    let root_key = String::from_utf8(root.key.0.clone()).unwrap();
    secrets.extend(root_key.lines().filter(|line| !line.starts_with('-')).map(str::to_owned));
    let [cert, key_file, passphrase_file] = [
        ("root.crt", root.certificate.as_bytes()),
        ("root.key", &root.key.0[..]),
        ("passphrase", passphrase.as_bytes()),
    ]
    .map(|(name, text)| file(name, text));

    // A run with everything in it, also what fails. Bundles and backups are read as they are: neither is compressed.
    for (place, manager) in swarm.managers.iter().enumerate() {
        let [bundle, backup] = ["bundle", "backup"].map(|name| swarm.path().join(format!("{name}-{place}")));
        let [bundle_name, backup_name] = [&bundle, &backup].map(|path| path.display().to_string());
        for (input, arguments) in [
            (planted, &["secret", "create", "s", "-"][..]),
            (planted, &["secret", "create", "s", "-"]),
            ("", &["secret", "update", "s", "--label", "a=b"]),
            ("", &["secret", "inspect", "s", "--json"]),
            ("", &["cluster", "inspect", "--json"]),
            ("", &["cluster", "update", "--autolock", "--if-version", "1"]),
            ("", &["node", "ls", "--json"]),
            ("", &["token", "ls", "--json"]),
            ("", &["status", "--json"]),
            ("", &["raft", "status", "--json"]),
            ("", &["raft", "rotate-key"]),
            ("", &["ca", "rotate", "--wait", "--cert", &cert, "--key", &key_file]),
            ("", &["ca", "rotate", "--cert", &key_file, "--key", &cert]),
            ("", &["ca", "show", "--json"]),
            ("", &["doctor"]),
            ("", &["doctor", "--json"]),
            (key.as_str(), &["unlock"]),
            ("", &["backup", "save", &backup_name, "--passphrase-file", "/nonexistent"]),
            ("", &["backup", "save", &backup_name, "--passphrase-file", &passphrase_file]),
            ("", &["backup", "inspect", &backup_name, "--passphrase-file", &key_file]),
            ("", &["backup", "inspect", &backup_name, "--passphrase-file", &passphrase_file]),
            ("", &["debug", "bundle", &bundle_name]),
        ] {
            let ended = manager.skep_with_input(input.as_bytes(), arguments);
            said.push((format!("{arguments:?}"), format!("{}{}", ended.stdout, ended.stderr).into_bytes()));
        }
        said.push((bundle_name, std::fs::read(bundle).unwrap()));
        said.push((backup_name, std::fs::read(backup).unwrap()));
        for page in ["/metrics", "/healthz", "/readyz", "/nothing"] {
            said.push((page.to_owned(), super::tools::get(&pages[place], page).1.into_bytes()));
        }
    }
    for verb in ["show", "rotate"] {
        tokens.extend(swarm.managers[0].skep(&["token", verb]).ok().lines().skip(1).map(str::to_owned));
    }
    secrets.extend(tokens.iter().map(|token| token.rsplit('-').next().unwrap().to_owned()));
    let restarted = &mut swarm.managers[2];
    restarted.stop();
    let before = restarted.log_length();
    start_locked(restarted);
    for wrong in [&key[..key.len() - 1], "SWMKEY-1-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"] {
        let ended = unlock(restarted, wrong);
        said.push(("unlock".to_owned(), format!("{}{}", ended.stdout, ended.stderr).into_bytes()));
    }
    secrets.push(key["SWMKEY-1-".len()..key.len() - 1].to_owned());
    unlock(restarted, &key).ok();
    restarted.listening_since(before);
    swarm.votes(2);
    swarm.managers[0].skep(&["cluster", "update", "--autolock=false"]).ok();
    for place in 0..3 {
        sealed(&swarm.managers[place], false);
        let contents = std::fs::read_to_string(swarm.managers[place].dir.join("pki/node.key")).unwrap();
        let Read::Open(file) = keyfile::read(&contents).unwrap() else { panic!() };
        for key in &file.data_keys {
            secrets.push(key.expose().iter().map(|byte| format!("{byte:02x}")).collect());
        }
        secrets.extend(contents.lines().filter(|line| line.len() > 40 && !line.contains(' ')).map(str::to_owned));
    }
    assert!(secrets.iter().all(|secret| secret.len() >= 20), "{secrets:?}");
    swarm.managers[0].create_config("last", b"x");
    let _ = watching.kill();
    let _ = watching.wait();
    let watched = reader.join().unwrap();
    assert!(String::from_utf8_lossy(&watched).contains("\"kind\":\"secret\""), "the watch saw the secret");
    said.push(("watch".to_owned(), watched));
    for manager in &swarm.managers {
        let log = std::fs::read(&manager.log).unwrap();
        assert!(log.len() > 1000);
        said.push((manager.log.display().to_string(), log));
        // All that lies in the directory but the key file: log and snapshots are sealed.
        let folders = [manager.dir.clone(), manager.dir.join("raft"), manager.dir.join("pki")];
        for entry in folders.iter().flat_map(|folder| std::fs::read_dir(folder).unwrap()).flatten() {
            if entry.file_type().unwrap().is_file() && entry.file_name() != "node.key" {
                // No secret holds a zero byte, and a segment is full of them.
                let mut bytes = std::fs::read(entry.path()).unwrap();
                bytes.retain(|byte| *byte != 0);
                said.push((entry.path().display().to_string(), bytes));
            }
        }
    }
    let found = |name: &str| said.iter().any(|(place, bytes)| place.contains(name) && bytes.len() > 1000);
    assert!(["bundle-0", "backup-0", "/metrics", "raft/wal-", "doctor"].iter().all(|name| found(name)));
    let forms: Vec<(&str, Vec<String>)> = secrets.iter().map(|secret| (&secret[..4], forms(secret))).collect();
    for (place, bytes) in &said {
        let text = String::from_utf8_lossy(bytes);
        for (beginning, forms) in &forms {
            assert!(!forms.iter().any(|form| text.contains(form.as_str())), "{place} holds a secret: {beginning}…");
        }
    }
}
