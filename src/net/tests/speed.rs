//! How fast the loop is: `cargo test --profile fast --lib net::tests::speed -- --ignored --nocapture`.

use std::io::{Read, Write};
use std::time::{Duration, Instant as Clock};

use bytes::Bytes;

use super::harness::*;
use crate::codec::frame::{FrameKind, HEADER};
use crate::codec::{envelope, frame, request};
use crate::net::Limits;
use crate::types::api::Call;
use crate::types::{NodeId, Role};

/// Clients, each with one outstanding request of this size.
const CLIENTS: usize = 128;
const SIZE: usize = 256;

/// Processor time of the loops of this process, from the kernel's account of their threads.
fn net_time() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.filter_map(|task| {
        let task = task.ok()?.path();
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        let account = std::fs::read_to_string(task.join("schedstat")).ok()?;
        (name.trim() == "net").then(|| account.split(' ').next()?.parse::<u64>().ok()).flatten()
    });
    Duration::from_nanos(nanos.sum())
}

/// Rounds of one request and one answer on every connection; between rounds, `between`.
fn measure<S: Read + Write>(what: &str, clients: &mut [S], mut between: impl FnMut()) {
    let mut ask = Vec::new();
    frame::write(&mut ask, FrameKind::Request, 0, 1, &request::encode(Call::Query, 1000, None, &[7; SIZE]));
    let mut answer = vec![0; HEADER + SIZE];
    let (start, before) = (Clock::now(), net_time());
    let mut requests = 0;
    while start.elapsed() < Duration::from_secs(3) {
        for client in clients.iter_mut() {
            client.write_all(&ask).unwrap();
            client.flush().unwrap();
        }
        between();
        for client in clients.iter_mut() {
            client.read_exact(&mut answer).unwrap();
        }
        requests += clients.len();
    }
    let (elapsed, busy) = (start.elapsed(), net_time() - before);
    println!(
        "{what}: {:.0} requests/s, {:.1} us of the loop's processor time each, the loop {:.0} % busy",
        requests as f64 / elapsed.as_secs_f64(),
        busy.as_secs_f64() * 1e6 / requests as f64,
        100.0 * busy.as_secs_f64() / elapsed.as_secs_f64(),
    );
}

#[test]
#[ignore = "a measurement"]
fn requests_a_second() {
    let swarm = Swarm::new(1);
    let limits = Limits { unauthenticated_per_source: 256, ..Limits::default() };
    let setup = || Setup { limits, quiet: true, ..Setup::default() };
    let (mut one, mut two) = (Running::start_with(&swarm, 1, setup()), Running::start_with(&swarm, 2, setup()));
    one.dial(&[two.place()]);
    two.dial(&[one.place()]);
    one.wait_connected(two.id);
    two.wait_connected(one.id);
    let mut local: Vec<_> = (0..CLIENTS).map(|_| Client::local(&one).stream).collect();
    measure("unix sockets", &mut local, || {});
    let append = Bytes::from(vec![1; 32 << 10]);
    measure("unix sockets, with raft frames both ways", &mut local, || {
        assert!(one.handle().send_raft(two.id, append.clone(), false));
        assert!(two.handle().send_raft(one.id, &b"acknowledgement"[..], true));
    });
    let config = swarm.client(Some(&swarm.identity(NodeId(9), Role::Manager)));
    let mut secure: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = Client::secure(&one, config.clone());
            client.send(FrameKind::Hello, frame::END, 0, &envelope::encode(&hello(swarm.cluster, NodeId(9))));
            client.receive().unwrap();
            client.stream
        })
        .collect();
    measure("TLS", &mut secure, || {});
}
