//! The network between managers: every manager advertises the address of a proxy on the loopback, so that all that
//! managers say to each other passes here, where it can be held, cut and slowed by who says it to whom.
//!
//! Both ends of a connection are the loopback, so that addresses do not tell who dialled. The kernel does: it knows which
//! socket has the dialler's port, and which process holds that socket.
//!
//! What is held is a road, one way between two managers. Bytes wait in it, and so does the news that one end has closed or
//! was killed: to the other end nothing happened. Bytes that were held arrive late when the road opens again, as they do
//! when a real network heals.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::swarm::{Manager, Swarm};

/// Managers listen here, where no port is ever taken for an outgoing connection.
const LISTEN: &str = "127.0.0.2:0";
/// How long a connection may be nobody's: a process that dials has been started, but perhaps not noted yet.
const UNKNOWN: Duration = Duration::from_secs(5);

/// The places of two managers, from and to.
type Road = (usize, usize);

/// The network of a swarm.
pub struct Network {
    shared: Arc<Shared>,
    /// Where each proxy listens.
    addrs: Vec<SocketAddr>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ended: bool,
    /// The process of each manager.
    processes: Vec<Arc<AtomicU32>>,
    roads: BTreeMap<Road, Condition>,
    connections: BTreeMap<u64, Connection>,
    next: u64,
}

#[derive(Clone, Copy, Default)]
struct Condition {
    /// Nothing arrives until this ends.
    held: bool,
    /// Connections end at once.
    cut: bool,
    delay: Duration,
    /// Connections end after so many bytes, once.
    budget: Option<u64>,
}

struct Connection {
    between: Road,
    near: TcpStream,
    far: TcpStream,
}

impl Connection {
    fn end(&self) {
        let _ = (self.near.shutdown(Shutdown::Both), self.far.shutdown(Shutdown::Both));
    }
}

impl Network {
    /// A swarm of so many voters, and the network between them.
    #[track_caller]
    pub fn of(count: usize) -> (Swarm, Self) {
        let mut swarm = Swarm::empty();
        let mut network = Self { shared: Arc::default(), addrs: Vec::new() };
        for _ in 0..count {
            swarm.join(|manager| network.adopt(manager));
        }
        (swarm, network)
    }

    /// Puts the next manager, which was not started yet, behind a proxy.
    pub fn adopt(&mut self, manager: &mut Manager) {
        manager.addr = free_addr();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (addr, owner) = (listener.local_addr().unwrap(), self.addrs.len());
        self.addrs.push(addr);
        self.shared.lock().processes.push(manager.process.clone());
        manager.arguments.extend(["--advertise".to_owned(), addr.to_string()]);
        let (shared, target) = (self.shared.clone(), manager.addr.parse().unwrap());
        std::thread::spawn(move || {
            for near in listener.incoming().map_while(Result::ok) {
                if shared.lock().ended {
                    return;
                }
                let shared = shared.clone();
                std::thread::spawn(move || shared.serve(near, owner, target));
            }
        });
    }

    /// Holds what these say to those, who are not told.
    pub fn hold(&self, from: &[usize], to: &[usize]) {
        self.change(from, to, |road| road.held = true);
    }

    /// Holds both ways.
    pub fn split(&self, one: &[usize], other: &[usize]) {
        self.hold(one, other);
        self.hold(other, one);
    }

    /// Ends the connections between these and those, and every new one.
    pub fn cut(&self, one: &[usize], other: &[usize]) {
        self.change(one, other, |road| road.cut = true);
        self.change(other, one, |road| road.cut = true);
        let state = self.shared.lock();
        state.connections.values().filter(|connection| state.is_cut(connection.between)).for_each(Connection::end);
    }

    /// Ends the connections between two once, after so many more bytes from one to the other.
    pub fn cut_after(&self, from: usize, to: usize, bytes: u64) {
        self.change(&[from], &[to], |road| road.budget = Some(bytes));
    }

    /// Whether a [`Self::cut_after`] is still to come.
    pub fn will_cut(&self, from: usize, to: usize) -> bool {
        self.shared.lock().condition((from, to)).budget.is_some()
    }

    /// Everything from one to the other arrives so much later.
    pub fn delay(&self, from: usize, to: usize, delay: Duration) {
        self.change(&[from], &[to], |road| road.delay = delay);
    }

    /// Opens every road.
    pub fn heal(&self) {
        self.shared.lock().roads.clear();
        self.shared.changed.notify_all();
    }

    fn change(&self, from: &[usize], to: &[usize], change: impl Fn(&mut Condition)) {
        let mut state = self.shared.lock();
        for &from in from {
            to.iter().for_each(|&to| change(state.roads.entry((from, to)).or_default()));
        }
        drop(state);
        self.shared.changed.notify_all();
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.ended = true;
        state.connections.values().for_each(Connection::end);
        drop(state);
        self.shared.changed.notify_all();
        for addr in &self.addrs {
            drop(TcpStream::connect(addr));
        }
    }
}

/// An address of a manager that nothing listens on.
pub fn free_addr() -> String {
    TcpListener::bind(LISTEN).unwrap().local_addr().unwrap().to_string()
}

impl State {
    fn condition(&self, road: Road) -> Condition {
        self.roads.get(&road).copied().unwrap_or_default()
    }

    fn is_cut(&self, (one, other): Road) -> bool {
        self.condition((one, other)).cut || self.condition((other, one)).cut
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Serves a connection to `owner` until it ends.
    fn serve(self: Arc<Self>, near: TcpStream, owner: usize, target: SocketAddr) {
        let Some(dialler) = self.dialler(&near) else { return };
        let between = (dialler, owner);
        // The call itself takes the road.
        if !self.passes(between, 0) {
            return;
        }
        let Ok(far) = TcpStream::connect(target) else { return };
        let _ = (near.set_nodelay(true), far.set_nodelay(true));
        let (Ok(near_too), Ok(far_too)) = (near.try_clone(), far.try_clone()) else { return };
        let mut state = self.lock();
        if state.ended || state.is_cut(between) {
            return;
        }
        state.next += 1;
        let id = state.next;
        let (Ok(near_end), Ok(far_end)) = (near.try_clone(), far.try_clone()) else { return };
        state.connections.insert(id, Connection { between, near: near_end, far: far_end });
        drop(state);
        let back = {
            let shared = self.clone();
            std::thread::spawn(move || shared.carry((owner, dialler), far_too, near_too))
        };
        self.carry(between, near, far);
        let _ = back.join();
        self.lock().connections.remove(&id);
    }

    /// Carries bytes until one end is gone, and that news to the other end.
    fn carry(&self, road: Road, mut from: TcpStream, mut to: TcpStream) {
        let mut bytes = vec![0; 16 << 10];
        loop {
            let Ok(length @ 1..) = from.read(&mut bytes) else {
                self.passes(road, 0);
                let _ = to.shutdown(Shutdown::Both);
                return;
            };
            if !self.passes(road, length as u64) || to.write_all(&bytes[..length]).is_err() {
                self.passes((road.1, road.0), 0);
                let _ = from.shutdown(Shutdown::Both);
                return;
            }
        }
    }

    /// Waits until so many bytes may go on; false when the connection is cut instead.
    fn passes(&self, road: Road, bytes: u64) -> bool {
        let mut state = self.lock();
        while !state.ended && state.condition(road).held && !state.is_cut(road) {
            state = self.changed.wait(state).unwrap();
        }
        if state.ended || state.is_cut(road) {
            return false;
        }
        let condition = state.condition(road);
        match condition.budget {
            Some(budget) if budget < bytes => {
                state.roads.entry(road).or_default().budget = None;
                let same = |other: Road| other == road || other == (road.1, road.0);
                state.connections.values().filter(|each| same(each.between)).for_each(Connection::end);
                return false;
            }
            Some(budget) => state.roads.entry(road).or_default().budget = Some(budget - bytes),
            None => {}
        }
        drop(state);
        std::thread::sleep(condition.delay);
        true
    }

    /// The place of the manager that made this connection.
    fn dialler(&self, near: &TcpStream) -> Option<usize> {
        let (from, to) = (near.peer_addr().ok()?, near.local_addr().ok()?);
        let deadline = Instant::now() + UNKNOWN;
        loop {
            let processes = self.lock().processes.clone();
            let found = inode(from, to).and_then(|inode| {
                let socket = format!("socket:[{inode}]");
                processes.iter().position(|process| holds(process.load(Ordering::SeqCst), &socket))
            });
            if found.is_some() || Instant::now() > deadline || self.lock().ended {
                return found;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// The socket at `from` that is connected to `to`.
fn inode(from: SocketAddr, to: SocketAddr) -> Option<u64> {
    let hex = |addr: SocketAddr| match addr {
        // The kernel prints the address as the number that it is in memory.
        SocketAddr::V4(addr) => format!("{:08X}:{:04X}", u32::from_ne_bytes(addr.ip().octets()), addr.port()),
        SocketAddr::V6(_) => unreachable!("proxies listen on IPv4"),
    };
    let (from, to) = (hex(from), hex(to));
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().find_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        (*fields.get(1)? == from && *fields.get(2)? == to).then_some(fields.get(9)?.parse().ok()?)
    })
}

/// Whether the process has this descriptor.
fn holds(process: u32, socket: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(format!("/proc/{process}/fd")) else { return false };
    entries.flatten().any(|entry| std::fs::read_link(entry.path()).is_ok_and(|link| link.as_os_str() == socket))
}
