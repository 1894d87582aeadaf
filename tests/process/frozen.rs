//! A leader that is stopped for longer than an election takes: it wakes as a leader of the past, and says nothing that was
//! true only then.

use std::collections::BTreeMap;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::process::Signal;
use skep::client::{Client, ClientError, WriteId, Written};
use skep::types::api::{Answer, Filter, QueryKind, Write};
use skep::types::{Kind, Object};

use super::swarm::{Manager, Swarm, eventually};
use super::writers::Writers;

const TIMEOUT: Duration = Duration::from_secs(30);
const ROUNDS: u64 = 3;

/// A question to a manager that will sleep, over a connection that is made while it still answers; asked when the result
/// is called.
fn prepare<T: Send + 'static, A>(
    manager: &Manager,
    ask: A,
) -> impl FnOnce() -> JoinHandle<Result<T, ClientError>> + use<T, A>
where
    A: FnOnce(&mut Client, WriteId) -> Result<T, ClientError> + Send + 'static,
{
    let mut client = manager.client();
    let id = client.write_id();
    let (go, gone) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        gone.recv().unwrap();
        ask(&mut client, id)
    });
    move || {
        go.send(()).unwrap();
        thread
    }
}

fn inspect(name: &str) -> impl FnOnce(&mut Client, WriteId) -> Result<Answer, ClientError> + use<> {
    let name = name.to_owned();
    move |client, _| client.query(QueryKind::Inspect(Kind::Config, name), false, TIMEOUT)
}

fn list() -> impl FnOnce(&mut Client, WriteId) -> Result<Vec<Object>, ClientError> {
    move |client, _| client.list(Kind::Config, &Filter::default(), false, TIMEOUT)
}

fn create(name: &str) -> impl FnOnce(&mut Client, WriteId) -> Result<Written, ClientError> + use<> {
    let write = Write::CreateConfig { name: name.to_owned(), labels: BTreeMap::new(), data: vec![1] };
    move |client, id| client.write_as(id, write, TIMEOUT)
}

fn label(name: &str) -> impl FnOnce(&mut Client, WriteId) -> Result<Written, ClientError> + use<> {
    let set = BTreeMap::from([("woke".to_owned(), "yes".to_owned())]);
    let (kind, object) = (Kind::Config, name.to_owned());
    let write = Write::UpdateLabels { kind, object, set, remove: Vec::new(), if_version: None };
    move |client, id| client.write_as(id, write, TIMEOUT)
}

fn code<T>(thread: JoinHandle<Result<T, ClientError>>) -> &'static str {
    thread.join().unwrap().map_or_else(|error| error.status().code.name(), |_| "OK")
}

#[test]
fn a_leader_that_wakes_says_nothing_that_was_true_only_before() {
    let swarm = Swarm::of(3);
    let writers = Writers::start(&swarm, 4);
    for round in 0..ROUNDS {
        writers.wait_for(40);
        let frozen = swarm.leader();
        let manager = &swarm.managers[frozen];
        let [old, free, new] = ["old", "free", "new"].map(|name| format!("{name}-{round}"));
        manager.create_config(&old, b"x");
        manager.create_config(&free, b"x");
        let (see_old, see_new, see_all) =
            (prepare(manager, inspect(&old)), prepare(manager, inspect(&new)), prepare(manager, list()));
        let (make_free, make_new, change_new) =
            (prepare(manager, create(&free)), prepare(manager, create(&new)), prepare(manager, label(&new)));
        let term = manager.json(&["status"])["term"].as_u64();

        manager.signal(Signal::STOP);
        let awake: Vec<usize> = (0..3).filter(|&place| place != frozen).collect();
        let successor = &swarm.managers[swarm.leader_among(&awake)];
        writers.wait_for(20);
        successor.create_config(&new, b"x");
        for name in [&old, &free] {
            successor.skep(&["config", "rm", name]).ok();
        }

        // The questions wait in its sockets, and it takes itself for the leader when it wakes.
        let (see_old, see_new, see_all) = (see_old(), see_new(), see_all());
        let (make_free, make_new, change_new) = (make_free(), make_new(), change_new());
        manager.signal(Signal::CONT);
        assert_eq!(code(see_old), "NotFound", "it was removed before the question");
        assert_eq!(code(see_new), "OK", "it was there before the question");
        let all = see_all.join().unwrap().unwrap();
        let names: Vec<&str> = all.iter().filter_map(Object::name).collect();
        assert!(names.contains(&new.as_str()) && !names.contains(&old.as_str()), "{names:?}");
        assert_eq!(code(make_free), "OK", "the name was free before the question");
        assert_eq!(code(make_new), "AlreadyExists", "the name was taken before the question");
        assert_eq!(code(change_new), "OK", "it was there before the question");
        eventually("it follows", || {
            let status = manager.status()?;
            (status["role"] == "follower" && status["term"].as_u64() > term).then_some(())
        });
    }
    let mut finished = writers.finish();
    finished.others = ROUNDS * 7;
    finished.check(&swarm);
}
