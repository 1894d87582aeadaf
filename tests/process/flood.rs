//! What strangers do to a port that is open to the network.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::swarm::{Swarm, eventually};

/// Bytes that are not what the protocol expects, whatever they are.
fn garbage() -> Vec<Vec<u8>> {
    let noise = |seed: u64| -> Vec<u8> {
        // xorshift64 (Marsaglia, 2003).
        let mut state = seed;
        let mut next = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        (0..512).flat_map(|_| next()).collect()
    };
    let mut all = vec![
        b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"\x16\x03\x01\xff\xff".to_vec(),
        b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff".to_vec(),
        vec![0; 70_000],
        vec![0xff; 70_000],
        b"SSH-2.0-OpenSSH_9.2p1\r\n".to_vec(),
        Vec::new(),
    ];
    all.extend((1..=20).map(|seed| noise(0x9e37_79b9_7f4a_7c15 ^ seed)));
    all
}

#[test]
fn strangers_neither_stop_writes_nor_fill_memory() {
    let swarm = Swarm::of(3);
    let leader = swarm.leader();
    let manager = &swarm.managers[leader];
    manager.create_config("before", b"x");
    let before = manager.resident_kib();

    // A thousand connections that say nothing, on the port of every manager.
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(TcpStream::connect(&manager.addr).unwrap());
    }
    manager.create_config("silence", b"x");
    // A port scanner.
    for _ in 0..500 {
        drop(TcpStream::connect(&manager.addr).unwrap());
    }
    manager.create_config("scanned", b"x");
    // People and programs who took it for something else; each is let go of.
    for bytes in garbage() {
        let mut stream = TcpStream::connect(&manager.addr).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        // Ends with a close or a reset, and never with the timeout.
        let mut answer = Vec::new();
        if let Err(error) = stream.take(1 << 20).read_to_end(&mut answer) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{bytes:?} is kept waiting");
        }
    }
    // The same on the control socket, which has no TLS before it.
    for bytes in garbage() {
        let mut stream = UnixStream::connect(manager.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let _ = stream.write_all(&bytes);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        if let Err(error) = stream.take(1 << 20).read_to_end(&mut answer) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "{bytes:?} is kept waiting");
        }
    }
    manager.create_config("garbage", b"x");
    assert_eq!(swarm.leader(), leader, "nobody lost an election over this");

    // Those who say nothing are let go of too.
    eventually("silent connections are closed", || {
        silent.retain(|stream| {
            stream.set_nonblocking(true).unwrap();
            matches!(stream.peek(&mut [0]), Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
        });
        silent.is_empty().then_some(())
    });
    let after = manager.resident_kib();
    assert!(after < before + 40 * 1024, "{before} KiB before, {after} KiB after");
    swarm.converge();
    for manager in &swarm.managers {
        let log = manager.log_since(0);
        assert!(!log.contains("panicked"), "{log}");
        assert!(log.lines().count() < 2000, "a stranger can fill the disk with log lines");
    }
}

#[test]
fn a_new_manager_gets_in_while_strangers_hold_connections() {
    let mut swarm = Swarm::of(1);
    let addr = swarm.managers[0].addr.clone();
    let held: Vec<TcpStream> = (0..1000).map(|_| TcpStream::connect(&addr).unwrap()).collect();
    let place = swarm.join(|_| {});
    swarm.managers[place].create_config("motd", b"x");
    drop(held);
    swarm.converge();
}
