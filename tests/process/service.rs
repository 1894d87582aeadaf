//! What a service manager sees.

use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::swarm::Swarm;

fn receive(socket: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let count = socket.recv(&mut bytes).expect("the service manager is told in time");
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

#[test]
fn the_service_manager_is_told_ready_without_a_majority_and_all_is_well_while_it_is() {
    let mut swarm = Swarm::of(2);
    for manager in &mut swarm.managers {
        manager.kill();
    }
    let path = swarm.path().join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    swarm.managers[0].environment = vec![
        ("NOTIFY_SOCKET".to_owned(), path.display().to_string()),
        ("WATCHDOG_USEC".to_owned(), "400000".to_owned()),
    ];
    swarm.managers[0].spawn();
    let ready = receive(&socket);
    assert!(ready.contains("READY=1\n") && ready.contains(&swarm.managers[0].addr), "{ready}");
    // It listens when it says so.
    std::net::TcpStream::connect(&swarm.managers[0].addr).unwrap();
    assert_eq!(swarm.managers[0].skep(&["status"]).code, Some(4));

    let begin = Instant::now();
    for _ in 0..3 {
        assert_eq!(receive(&socket), "WATCHDOG=1\n");
    }
    // Twice per interval.
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());

    swarm.managers[0].signal(Signal::TERM);
    let stopping = std::iter::repeat_with(|| receive(&socket)).find(|said| said != "WATCHDOG=1\n").unwrap();
    assert!(stopping.contains("STOPPING=1\n"), "{stopping}");
    assert_eq!(swarm.managers[0].ended(), Some(0));
}
