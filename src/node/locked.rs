//! A manager whose keys are locked: it tells that it is, takes the unlock key, and does nothing else.
//!
//! Without its data key it cannot read its log, and without its private key it cannot talk to a peer: it holds neither, and
//! listens for peers no more than a manager that is down, so that they do not wait for it. What it knows is who it is, from
//! `node.json`.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use bytes::Bytes;

use super::dir::{DataDir, NodeFile};
use super::keys::{self, WRONG_KEY_HINT};
use super::lobby::{Lobby, Porter};
use super::sockets::Sockets;
use super::{Config, StartError, StartFailure};
use crate::codec::envelope;
use crate::control;
use crate::net::handler::Incoming;
use crate::pki::UnlockKey;
use crate::pki::keyfile::{KeyFileError, Locked, Read};
use crate::types::api::{Answer, Call, Query, QueryKind, UnlockRequest};
use crate::types::{ClusterId, Code, NodeId, Status};

/// Between two calls of whoever wants to know that the manager is still locked.
const TELL: Duration = Duration::from_secs(1);

/// Whether the key file in the data directory `dir` is sealed. False also when it cannot be read: whoever starts from the
/// directory finds out why.
pub fn is_locked(dir: &Path) -> bool {
    matches!(keys::read(dir), Ok(Some(Read::Locked(_))))
}

/// The key that opens the directory's key file, from the configuration or from whoever asks on the control socket; `None`
/// when it takes none. `while_locked` is called as soon as the manager waits, and then about every [`TELL`].
pub(super) fn unlock(
    config: &Config,
    dir: &DataDir,
    file: &NodeFile,
    sockets: Sockets,
    while_locked: Option<&mut dyn FnMut()>,
) -> Result<(Sockets, Option<UnlockKey>), StartError> {
    let Some(Read::Locked(locked)) = keys::read(dir.path())? else { return Ok((sockets, None)) };
    if let Some(key) = &config.unlock_key {
        keys::unlock(dir.path(), &locked, key)?;
        return Ok((sockets, Some(key.clone())));
    }
    let Some(while_locked) = while_locked else {
        // Nobody waits for one: the same words as from whoever only reads the directory.
        return keys::open(dir.path(), None).map(|_| (sockets, None));
    };
    let Sockets { listen, unix, of_group, path, http, advertise } = sockets;
    let addr = listen.as_ref().map(TcpListener::local_addr);
    drop(listen);
    let waiting = Arc::new(Waiting {
        node_id: file.node_id.unwrap_or(NodeId(0)),
        cluster_id: file.cluster_id.unwrap_or(ClusterId(0)),
        hostname: super::start::describe(config.name.as_deref()).hostname,
        locked,
        given: Mutex::new(None),
        changed: Condvar::new(),
    });
    let internal = |error: std::io::Error| {
        let what = "cannot wait for the unlock key";
        StartError::new(StartFailure::Internal, what, error, "")
    };
    let lobby = Lobby::open(&unix, of_group, http.as_ref(), waiting.clone()).map_err(internal)?;
    log::warn!(
        "the keys of this manager are locked: it waits for `skep unlock`, and does nothing else; its control socket is {}",
        path.display()
    );
    let key = waiting.wait(while_locked);
    drop(lobby);
    log::info!("unlocked");
    let listen = addr.map(|addr| addr.and_then(TcpListener::bind)).transpose().map_err(|error| {
        let what = format!("cannot listen on {} again", config.listen);
        StartError::new(StartFailure::Internal, what, error, "another process listens there now: see `ss -ltnp`")
    })?;
    Ok((Sockets { listen, unix, of_group, path, http, advertise }, Some(key)))
}

/// What the waiting manager knows, and what it waits for.
#[derive(Debug)]
struct Waiting {
    node_id: NodeId,
    cluster_id: ClusterId,
    hostname: String,
    locked: Locked,
    given: Mutex<Option<UnlockKey>>,
    changed: Condvar,
}

impl Waiting {
    fn wait(&self, while_locked: &mut dyn FnMut()) -> UnlockKey {
        loop {
            while_locked();
            let given = self.given.lock().expect("no code panics while it holds this lock");
            let (mut given, _) = self
                .changed
                .wait_timeout_while(given, TELL, |given| given.is_none())
                .expect("no code panics while it holds this lock");
            if let Some(key) = given.take() {
                return key;
            }
        }
    }

    fn unlock(&self, request: &Incoming) -> Result<Bytes, Status> {
        let UnlockRequest { key } = decode(request)?;
        let key = UnlockKey::from_bytes(&key.0)
            .ok_or_else(|| Status::new(Code::InvalidArgument, "an unlock key has 32 bytes"))?;
        self.locked.unlock(&key).map_err(|error| match error {
            KeyFileError::WrongKey => Status::new(
                Code::PermissionDenied,
                "this is not the unlock key that the keys of this manager are sealed under",
            )
            .with_hint(WRONG_KEY_HINT),
            _ => {
                let hint = "put pki/node.key back from a backup; without it this node's log cannot be read";
                Status::new(Code::Internal, format!("the key file cannot be used: {error}")).with_hint(hint)
            }
        })?;
        *self.given.lock().expect("no code panics while it holds this lock") = Some(key);
        self.changed.notify_all();
        Ok(control::encode(&Answer::Done))
    }
}

impl Porter for Arc<Waiting> {
    fn identity(&self) -> (NodeId, ClusterId) {
        (self.node_id, self.cluster_id)
    }

    fn answer(&self, request: &Incoming) -> Result<Bytes, Status> {
        match request.call {
            Call::Unlock => self.unlock(request),
            Call::Query => match decode(request)? {
                Query { what: QueryKind::Status, .. } => {
                    let status = control::locked_status(self.node_id, self.cluster_id, &self.hostname);
                    Ok(control::encode(&Answer::Status(Box::new(status))))
                }
                _ => Err(self.refusal()),
            },
            _ => Err(self.refusal()),
        }
    }

    fn refusal(&self) -> Status {
        Status {
            // Asking again does not help before somebody has acted.
            hopeless: true,
            ..Status::new(Code::Unavailable, "this manager is locked: it has no state before it gets its unlock key")
                .with_hint("give it with `skep unlock`; any manager that runs prints it: `skep unlock-key show`")
        }
    }

    fn http(&self, path: &str) -> (u16, &'static str, String) {
        if path == "/healthz" {
            return (200, "text/plain", "ok\n".to_owned());
        }
        (503, "text/plain", "locked\n".to_owned())
    }
}

fn decode<T: serde::de::DeserializeOwned>(request: &Incoming) -> Result<T, Status> {
    envelope::decode(&request.body, request.body.len()).map_err(|error| {
        Status::new(Code::InvalidArgument, format!("the request cannot be read: {error}"))
            .with_hint("use a command line of the same version as the manager")
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Instant;

    use super::*;
    use crate::client::Client;
    use crate::node::Node;
    use crate::sys::entropy::SeededEntropy;
    use crate::types::api::{Autolock, Write};
    use crate::types::object::Sensitive;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = look() {
                return found;
            }
            assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn key(seed: u64) -> UnlockKey {
        UnlockKey::generate(&mut SeededEntropy::new(seed))
    }

    fn sensitive(key: &UnlockKey) -> Sensitive {
        Sensitive(key.expose().to_vec())
    }

    fn autolock(node: &Node, autolock: Autolock) {
        let write = Write::UpdateCluster {
            snapshot_bytes: None,
            keep_bytes: None,
            expired_grace_ms: None,
            approve_joins: None,
            node_certificate_expiry_ms: None,
            if_version: None,
            autolock: Some(autolock),
        };
        node.client().unwrap().write(write, PATIENCE).unwrap();
    }

    /// The data keys in a directory.
    fn data_keys(dir: &Path, unlock: Option<&UnlockKey>) -> Vec<crate::pki::seal::DataKey> {
        keys::open(dir, unlock).unwrap().unwrap().data_keys
    }

    #[test]
    fn a_locked_manager_tells_that_it_is_and_works_once_it_has_its_key() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path();
        let node = Node::start(Config::local(dir)).unwrap();
        let plain = data_keys(dir, None);
        let motd = Write::CreateConfig { name: "motd".into(), labels: Default::default(), data: b"x".to_vec() };
        node.client().unwrap().write(motd, PATIENCE).unwrap();
        autolock(&node, Autolock::On { key: sensitive(&key(1)) });
        eventually("the key file is sealed", || is_locked(dir).then_some(()));
        let sealed = eventually("the data key that was never sealed is gone", || {
            let keys = data_keys(dir, Some(&key(1)));
            (keys.len() == 1 && keys != plain).then_some(keys)
        });
        // It works all the while, also for one who says that it is to be unlocked.
        let refused = node.client().unwrap().call(Call::Unlock, &UnlockRequest { key: sensitive(&key(1)) }, PATIENCE);
        assert_eq!(refused.unwrap_err().into_status().code, Code::FailedPrecondition);
        node.stop(Duration::from_secs(5));
        drop(node);

        // Without the key, and with another.
        let error = Node::start(Config::local(dir)).unwrap_err();
        assert!(error.failure == StartFailure::Refused && error.why.contains("locked"), "{error:?}");
        let wrong = Config { unlock_key: Some(key(2)), ..Config::local(dir) };
        let error = Node::start(wrong).unwrap_err();
        assert!(error.failure == StartFailure::Refused && error.why.contains("not the unlock key"), "{error:?}");

        // One that waits for it.
        let http = "127.0.0.1:0".to_owned();
        let config = Config { http: Some(http), ..Config::local(dir) };
        let waiting = std::thread::spawn(move || {
            let mut told = 0;
            let node = Node::start_unlocked_by_others(config, &mut || told += 1).unwrap();
            assert!(told > 0);
            node
        });
        let socket = dir.join("skep.sock");
        let mut client = eventually("it answers", || Client::local(&socket, Duration::from_secs(5)).ok());
        let Ok(Answer::Status(status)) = client.query(QueryKind::Status, false, PATIENCE) else { panic!() };
        assert_eq!((status.state.as_str(), status.node_id == NodeId(0)), ("locked", false));
        assert!(status.warnings[0].contains("skep unlock"));
        let mut ask = |what: QueryKind| client.query(what, true, PATIENCE).unwrap_err().into_status();
        assert_eq!(ask(QueryKind::Members).code, Code::Unavailable);
        assert!(ask(QueryKind::UnlockKey).hint.contains("skep unlock"));
        let mut give = |key: Sensitive| client.call(Call::Unlock, &UnlockRequest { key }, PATIENCE);
        assert_eq!(give(sensitive(&key(2))).unwrap_err().into_status().code, Code::PermissionDenied);
        assert_eq!(give(Sensitive(vec![1; 31])).unwrap_err().into_status().code, Code::InvalidArgument);
        assert_eq!(give(sensitive(&key(1))).unwrap(), Answer::Done);
        let node = waiting.join().unwrap();
        let configs = node.client().unwrap().list(crate::types::Kind::Config, &Default::default(), false, PATIENCE);
        assert_eq!(configs.unwrap().len(), 1);

        // Off again: in the clear, and the data key stays.
        autolock(&node, Autolock::Off);
        eventually("the key file is in the clear", || (!is_locked(dir)).then_some(()));
        assert_eq!(data_keys(dir, None), sealed);
        node.stop(Duration::from_secs(5));
        drop(node);
        Node::start(Config::local(dir)).unwrap().stop(Duration::from_secs(5));
    }
}
