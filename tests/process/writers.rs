//! Programs that write all the time, as a careful program does: every write has one id, and is sent again under that id,
//! to whichever manager answers, until its outcome is known.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use skep::client::{Client, ClientError, WriteId};
use skep::types::api::Write;
use skep::types::{Object, ObjectId, Revision};

use super::swarm::{PATIENCE, Swarm, eventually};

/// The kind of the resources that writers make.
pub const KIND: &str = "load";
const ATTEMPT: Duration = Duration::from_secs(3);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    count: AtomicU64,
    /// Name to id and revision of every acknowledged creation.
    acknowledged: Mutex<BTreeMap<String, (ObjectId, Revision)>>,
    /// What must not have happened.
    wrong: Mutex<Vec<String>>,
}

/// Threads that write.
pub struct Writers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// The revision before the first write.
    base: u64,
}

impl Writers {
    /// Registers the kind and starts so many threads.
    #[track_caller]
    pub fn start(swarm: &Swarm, count: usize) -> Self {
        let first = swarm.running().next().expect("a manager runs");
        first.skep(&["extension", "create", KIND]).ok();
        let base = first.json(&["status"])["revision"].as_u64().unwrap();
        let shared = Arc::new(Shared::default());
        let sockets: Vec<PathBuf> = swarm.managers.iter().map(super::swarm::Manager::socket).collect();
        let threads = (0..count).map(|number| {
            let (shared, mut sockets) = (shared.clone(), sockets.clone());
            let first = number % sockets.len();
            sockets.rotate_left(first);
            std::thread::spawn(move || Writer { shared, sockets, client: None }.run(number))
        });
        Self { threads: threads.collect(), shared, base }
    }

    /// Acknowledged writes so far.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::SeqCst)
    }

    /// Waits for so many more acknowledged writes.
    #[track_caller]
    pub fn wait_for(&self, more: u64) {
        let enough = self.count() + more;
        eventually("writes are acknowledged", || (self.count() >= enough).then_some(()));
    }

    /// Lets every writer finish the write it is at. Gives a check to run on what the managers have then.
    #[track_caller]
    pub fn finish(mut self) -> Finished {
        self.shared.stop.store(true, Ordering::SeqCst);
        for thread in std::mem::take(&mut self.threads) {
            thread.join().unwrap();
        }
        let wrong = self.shared.wrong.lock().unwrap();
        assert!(wrong.is_empty(), "{wrong:#?}");
        let acknowledged = self.shared.acknowledged.lock().unwrap().clone();
        Finished { acknowledged, count: self.shared.count.load(Ordering::SeqCst), base: self.base, others: 0 }
    }
}

impl Drop for Writers {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
    }
}

/// What was acknowledged.
pub struct Finished {
    acknowledged: BTreeMap<String, (ObjectId, Revision)>,
    count: u64,
    base: u64,
    /// Writes of others meanwhile, each of which took a revision.
    pub others: u64,
}

impl Finished {
    /// Every manager has every acknowledged creation at its revision, nothing else, and nothing happened twice: revisions
    /// are dense, so one more than the acknowledged writes would be a write that was carried out again.
    #[track_caller]
    pub fn check(&self, swarm: &Swarm) {
        let store = swarm.converge();
        let mut found = BTreeMap::new();
        for object in &store {
            if let Object::Resource(resource) = object
                && resource.kind() == KIND
            {
                found.insert(resource.name().to_owned(), (resource.id, object.meta().version));
            }
        }
        for (name, (id, revision)) in &self.acknowledged {
            let (found_id, version) = found.get(name).unwrap_or_else(|| panic!("{name} at {revision} is lost"));
            assert_eq!(found_id, id, "{name}");
            assert!(version >= revision, "{name}: {version} is older than {revision}");
        }
        assert_eq!(found.len(), self.acknowledged.len(), "there is something that nobody was told of");
        let revision = swarm.running().next().unwrap().json(&["status"])["revision"].as_u64().unwrap();
        assert_eq!(revision, self.base + self.count + self.others, "a write was carried out twice");
        eprintln!("{} writes acknowledged, {} of them creations", self.count, self.acknowledged.len());
    }
}

struct Writer {
    shared: Arc<Shared>,
    /// The first is the one in use.
    sockets: Vec<PathBuf>,
    client: Option<Client>,
}

impl Writer {
    fn run(&mut self, number: usize) {
        for round in 0_u64.. {
            if self.shared.stop.load(Ordering::SeqCst) {
                return;
            }
            let name = format!("{number}-{round}");
            let write = Write::CreateResource {
                name: name.clone(),
                kind: KIND.to_owned(),
                labels: BTreeMap::new(),
                indices: BTreeMap::new(),
                payload: vec![number as u8; 100],
            };
            let Some((id, revision)) = self.write(&name, write) else { return };
            self.shared.acknowledged.lock().unwrap().insert(name.clone(), (id, revision));
            // An update that is carried out twice takes two revisions.
            if round % 4 == 3 {
                let write = Write::UpdateResource {
                    object: id.to_string(),
                    payload: Some(skep::types::object::Sensitive(vec![round as u8; 100])),
                    labels: None,
                    indices: None,
                    if_version: None,
                };
                if self.write(&name, write).is_none() {
                    return;
                }
            }
        }
    }

    /// Writes until the outcome is known.
    fn write(&mut self, name: &str, write: Write) -> Option<(ObjectId, Revision)> {
        let deadline = Instant::now() + PATIENCE;
        let mut id: Option<WriteId> = None;
        loop {
            let outcome = self.attempt(&mut id, &write);
            match outcome {
                Ok(written) => {
                    self.shared.count.fetch_add(1, Ordering::SeqCst);
                    return Some(written);
                }
                Err(ClientError::Refused(status))
                    if !status.code.is_transient() && status.code.name() != "DeadlineExceeded" =>
                {
                    self.wrong(format!("{name} ({id:?}) was refused: {}: {status}", status.code.name()));
                    return None;
                }
                Err(error) if Instant::now() > deadline => {
                    self.wrong(format!("{name} ({id:?}) has no outcome: {error:?}"));
                    return None;
                }
                Err(_) => {
                    // Another manager may know.
                    self.client = None;
                    self.sockets.rotate_left(1);
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }

    fn attempt(&mut self, id: &mut Option<WriteId>, write: &Write) -> Result<(ObjectId, Revision), ClientError> {
        if self.client.is_none() {
            self.client = Some(Client::local(&self.sockets[0], ATTEMPT)?);
        }
        let client = self.client.as_mut().expect("it was just made");
        let id = *id.get_or_insert_with(|| client.write_id());
        client.write_as(id, write.clone(), ATTEMPT).map(|written| (written.id, written.revision))
    }

    fn wrong(&self, what: String) {
        self.shared.wrong.lock().unwrap().push(what);
    }
}
