//! What a manager says while it joins, and what it fetches over connections that break.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::swarm::{Swarm, eventually};

#[test]
fn a_manager_that_waits_for_a_certificate_says_so_and_refuses_the_rest() {
    let mut swarm = Swarm::of(1);
    let token = swarm.managers[0].skep(&["token", "show", "--role", "manager"]).ok();
    let file = swarm.token_file(&token);
    // Takes connections and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = silent.local_addr().unwrap().to_string();
    let place = swarm.add();
    let manager = &mut swarm.managers[place];
    manager.arguments = vec!["--join".into(), addr.clone(), "--token-file".into(), file];
    manager.spawn();
    let manager = &swarm.managers[place];
    let status = eventually("it answers", || {
        let ended = manager.skep(&["status", "--json"]);
        assert_ne!(ended.code, Some(0), "{ended:?}");
        serde_json::from_str::<serde_json::Value>(&ended.stdout).ok().map(|status| (ended.code, status))
    });
    let (code, status) = status;
    assert_eq!((code, &status["state"], &status["role"]), (Some(4), &"joining".into(), &"joining".into()));
    let warning = status["warnings"][0].as_str().unwrap();
    assert!(warning.contains(&format!("asking {addr} for the swarm's root certificate")), "{warning}");
    let text = manager.skep(&["status"]);
    assert!(text.stdout.contains("joining") && text.stdout.contains(&addr), "{text:?}");
    for command in [&["config", "ls"][..], &["members"], &["node", "ls", "--stale"], &["raft", "snapshot"]] {
        let arguments = [command, &["--timeout", "200ms"]].concat();
        manager.skep(&arguments).refused_with_hint(4, &["joining a swarm", "skep status"]);
    }
    // The swarm answers at that address after all.
    drop(silent);
    let target = swarm.managers[0].addr.clone();
    let _relay = Relay::at(&addr, &target, None);
    swarm.managers[place].listening_since(0);
    swarm.votes(place);
    swarm.converge();
}

/// Passes connections on, and breaks the first that has carried so many bytes.
struct Relay {
    addr: String,
    broken: Arc<AtomicBool>,
    ended: Arc<AtomicBool>,
}

impl Relay {
    fn at(addr: &str, target: &str, break_after: Option<u64>) -> Self {
        let listener = eventually("the address is free", || TcpListener::bind(addr).ok());
        let relay = Self {
            addr: listener.local_addr().unwrap().to_string(),
            broken: Arc::new(AtomicBool::new(break_after.is_none())),
            ended: Arc::default(),
        };
        let (target, broken, ended) = (target.to_owned(), relay.broken.clone(), relay.ended.clone());
        std::thread::spawn(move || {
            for near in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                let (Ok(near), Ok(far)) = (near, TcpStream::connect(&target)) else { continue };
                let carried = Arc::new(AtomicU64::new(0));
                for (from, to) in [(&near, &far), (&far, &near)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let (carried, broken) = (carried.clone(), broken.clone());
                    std::thread::spawn(move || {
                        pass_on(from, to, |bytes| {
                            let before = carried.fetch_add(bytes, Ordering::SeqCst);
                            before < break_after.unwrap_or(u64::MAX) || broken.swap(true, Ordering::SeqCst)
                        });
                    });
                }
            }
        });
        relay
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(&self.addr);
    }
}

/// Copies until either side ends or `go_on` says no.
fn pass_on(mut from: TcpStream, mut to: TcpStream, mut go_on: impl FnMut(u64) -> bool) {
    let mut bytes = vec![0; 16 << 10];
    while let Ok(length @ 1..) = from.read(&mut bytes) {
        if !go_on(length as u64) || to.write_all(&bytes[..length]).is_err() {
            break;
        }
    }
    let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
}

#[test]
fn a_snapshot_whose_connection_breaks_goes_on_where_it_was() {
    let mut swarm = Swarm::of(1);
    let founder = &swarm.managers[0];
    founder.skep(&["cluster", "update", "--snapshot-bytes", "64KiB", "--keep-bytes", "64KiB"]).ok();
    for number in 0..64 {
        // Bytes that no snapshot makes smaller.
        let mut state = number + 1_u64;
        let noise = std::iter::repeat_with(|| {
            // xorshift64 (Marsaglia, 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        });
        founder.create_config(&format!("noise-{number}"), &noise.take(64 << 10).collect::<Vec<u8>>());
    }
    founder.skep(&["raft", "snapshot"]).ok();
    // The newcomer does not know where the founder listens before it has the snapshot: it fetches over the connection that
    // the founder made.
    let listen = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let relay = Relay::at("127.0.0.1:0", &listen, Some(1 << 20));
    let place = swarm.join(|manager| {
        manager.addr = listen;
        manager.arguments.extend(["--advertise".to_owned(), relay.addr.clone()]);
    });
    swarm.converge();
    let said = swarm.managers[place].log_since(0);
    assert!(relay.broken.load(Ordering::SeqCst), "nothing was broken: {said}");
    let after = said.split("going on with the snapshot after byte ").nth(1).unwrap_or_else(|| panic!("{said}"));
    let after: u64 = after.split_whitespace().next().unwrap().parse().unwrap();
    assert!(after > 256 << 10, "it began almost anew, at byte {after}");
    assert!(said.contains("fetched a snapshot"), "{said}");
}
