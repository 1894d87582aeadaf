//! Getting a certificate with a token, and a place in a swarm with the certificate.
//!
//! Both can be repeated: the request for a certificate has an id that is written down before it is sent, and joining
//! again gives the same place. A crash between any two steps is followed by the same steps.

use std::time::Duration;

use super::dir::{DataDir, NodeFile};
use super::found::Keys;
use super::lobby::Progress;
use super::{StartError, StartFailure};
use crate::agent::Own;
use crate::ca;
use crate::client::{Client, ClientError, TlsTarget};
use crate::pki::keyfile::Lock;
use crate::pki::seal::DataKey;
use crate::pki::{self, JoinToken, KeyFile, NodeIdentity, Trust, UnlockKey};
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Answer, Call, FEATURE_LEVEL, Hello, IssueRequest, JoinAnswer, JoinRequest};
use crate::types::object::{Availability, NodeDescription, Sensitive};
use crate::types::{ChangeId, Code, NodeId, Status};

/// One attempt may take so long.
const ATTEMPT: Duration = Duration::from_secs(10);
/// All attempts together, unless people are waited for: then since the last word of the swarm.
const PATIENCE: Duration = Duration::from_secs(30);
/// The first pause between attempts, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// The longest while people are waited for.
const LONG_PAUSE: Duration = Duration::from_secs(5);
/// Whether the node stops is looked at so often.
const TURN: Duration = Duration::from_millis(100);

fn what(addr: &str) -> String {
    format!("cannot join {addr}")
}

fn failed(addr: &str, status: Status) -> StartError {
    let failure = match status.code {
        Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted | Code::Unknown => {
            StartFailure::Unavailable
        }
        Code::Internal => StartFailure::Internal,
        _ => StartFailure::Refused,
    };
    StartError::new(failure, what(addr), status.message, status.hint)
}

fn refused(addr: &str, error: &pki::PkiError) -> StartError {
    StartError::refused(what(addr), error, error.hint())
}

/// When to try again, and when not any more.
struct Patience {
    until: Instant,
    pause: Duration,
}

impl Patience {
    fn new(now: Instant) -> Self {
        Self { until: now + PATIENCE, pause: FIRST_PAUSE }
    }

    /// The pause after an attempt that ended so; `None`: there is no use in another.
    fn after(&mut self, now: Instant, status: &Status) -> Option<Duration> {
        if !status.code.is_transient() || status.hopeless {
            return None;
        }
        let mut longest = LONGEST_PAUSE;
        if ca::is_waiting(status) {
            (self.until, longest) = (now + PATIENCE, LONG_PAUSE);
        }
        let pause = self.pause.min(longest);
        self.pause = (pause * 2).min(LONG_PAUSE);
        (now + pause <= self.until).then_some(pause)
    }
}

/// Repeats a call while it may succeed later, and lets `progress` say so. What waits for people waits as long as they take.
fn patiently<T>(
    addr: &str,
    what_for: &str,
    progress: &Progress,
    mut attempt: impl FnMut(Instant) -> Result<T, ClientError>,
) -> Result<T, StartError> {
    let asking = format!("asking {addr} for {what_for}");
    progress.say(asking.clone());
    let mut patience = Patience::new(monotonic());
    let mut told = None;
    loop {
        let status = match attempt(monotonic() + ATTEMPT) {
            Ok(value) => return Ok(value),
            Err(error) => error.into_status(),
        };
        let Some(pause) = patience.after(monotonic(), &status).filter(|_| !progress.is_cancelled()) else {
            return Err(failed(addr, status));
        };
        if ca::is_waiting(&status) {
            if told.as_ref() != Some(&status.message) {
                log::info!("joining {addr}: {} ({})", status.message, status.hint);
                told = Some(status.message.clone());
            }
            progress.say(format!("{asking}: {} ({})", status.message, status.hint));
        } else {
            log::debug!("joining {addr}: {status}; trying again");
            progress.say(format!("{asking}, so far in vain: {}", status.message));
        }
        let until = monotonic() + pause;
        while monotonic() < until {
            if progress.is_cancelled() {
                return Err(failed(addr, status));
            }
            std::thread::sleep(TURN.min(until.since(monotonic())));
        }
    }
}

fn target(
    addr: &str,
    identity: Option<&NodeIdentity>,
    trust: Trust,
    hello: Option<Hello>,
) -> Result<TlsTarget, StartError> {
    let config = pki::client_config(identity, trust).map_err(|error| refused(addr, &error))?;
    Ok(TlsTarget { addr: addr.to_owned(), server_name: pki::manager_name(), config, expected: None, hello })
}

/// Gets the root and a certificate with a token, and writes them to the directory. The token says which role it is for.
pub fn certificate(
    dir: &DataDir,
    file: &mut NodeFile,
    addr: &str,
    token: Option<&Sensitive>,
    description: NodeDescription,
    progress: &Progress,
) -> Result<Keys, StartError> {
    let Some(token) = token else {
        let hint = "give --token-file FILE; print a token on any manager with `skep token show`";
        return Err(StartError::refused(what(addr), "a join token is needed", hint));
    };
    let text = String::from_utf8_lossy(&token.0).trim().to_owned();
    let parsed: JoinToken = text.parse().map_err(|error: pki::TokenError| {
        let hint = error.hint();
        StartError::refused(what(addr), error, hint)
    })?;

    // Nobody is trusted before the root's digest is the token's.
    let root_pem = patiently(addr, "the swarm's root certificate", progress, |deadline| {
        let target = target(addr, None, Trust::Anything, None)
            .map_err(|error| ClientError::Refused(Status::new(Code::Internal, error.to_string())))?;
        let mut client = Client::tls(target, deadline.since(monotonic()))?;
        match client.call(Call::GetRoot, &(), deadline.since(monotonic()))? {
            Answer::Root { root } => Ok(root),
            _ => Err(odd_answer()),
        }
    })?;
    parsed.verify_root(&root_pem).map_err(|error| refused(addr, &error))?;

    let store = match dir.open_keys(None)? {
        Some(store) => store,
        None => {
            let (key, data_key) = (pki::generate_key(&mut OsEntropy), DataKey::generate(&mut OsEntropy));
            dir.create_keys(KeyFile::new(key, data_key))?
        }
    };
    let key = store.file().node_key;
    let csr = pki::signing_request(&key).map_err(|error| refused(addr, &error))?;
    let connect = target(addr, None, Trust::Roots(root_pem.clone()), None)?;
    // Its request was taken, or perhaps was before the last start.
    let (mut was_taken, mut may_be_taken) = (false, file.request.is_some());
    let (node_id, chain) = patiently(addr, "a certificate", progress, |deadline| {
        let mut client = Client::tls(connect.clone(), deadline.since(monotonic()))?;
        // Asked for by the node's id, which does not age: of an old request a swarm that writes much knows no more.
        if let (Some((change, _)), true) = (file.request, was_taken || may_be_taken) {
            let node_id = ca::node_of_change(change);
            match client.call(Call::CertificateStatus, &node_id, deadline.since(monotonic())) {
                Ok(Answer::Certificate { node_id, chain, .. }) => return Ok((node_id, chain)),
                Err(ClientError::Refused(status)) if status.code == Code::NotFound => {
                    may_be_taken = false;
                    if was_taken {
                        forget_request(dir, file)?;
                        let message = format!("node {node_id} was not let in: it was removed while it waited");
                        let hint = "start it again to ask anew; `skep node approve NODE` on a manager lets it in";
                        return Err(refusal(Status::new(Code::FailedPrecondition, message).with_hint(hint)));
                    }
                }
                Err(error) => {
                    was_taken |= matches!(&error, ClientError::Refused(status) if ca::is_waiting(status));
                    return Err(error);
                }
                Ok(_) => return Err(odd_answer()),
            }
        }
        let (change, after) = match file.request {
            Some(request) => request,
            None => {
                let request = (ChangeId(OsEntropy.next_u128()), client.hello().revision);
                file.request = Some(request);
                dir.write(file)
                    .map_err(|error| ClientError::Refused(Status::new(Code::Internal, error.to_string())))?;
                request
            }
        };
        let request = IssueRequest {
            change,
            after,
            csr: csr.clone(),
            token: Sensitive(text.clone().into_bytes()),
            role: None,
            description: description.clone(),
            availability: Availability::Active,
        };
        let answer = client.call(Call::Issue, &request, deadline.since(monotonic()));
        if let Err(ClientError::Refused(status)) = &answer
            && !status.code.is_transient()
            && status.code != Code::Internal
        {
            // What was refused stays refused under its id: the next start, with another token perhaps, asks anew.
            forget_request(dir, file)?;
        }
        was_taken |= matches!(&answer, Err(ClientError::Refused(status)) if ca::is_waiting(status));
        match answer? {
            Answer::Certificate { node_id, chain, .. } => Ok((node_id, chain)),
            _ => Err(odd_answer()),
        }
    })?;
    let identity = NodeIdentity::new(&chain, key).map_err(|error| refused(addr, &error))?;
    identity.verify(&root_pem, wall_ms()).map_err(|error| refused(addr, &error))?;
    file.node_id = Some(node_id);
    file.cluster_id = Some(identity.identity().cluster_id);
    let keys = Keys { identity, root_pem, store };
    dir.write_certificate(&keys.identity, &keys.root_pem)?;
    dir.write(file)?;
    Ok(keys)
}

fn forget_request(dir: &DataDir, file: &mut NodeFile) -> Result<(), ClientError> {
    file.request = None;
    dir.write(file).map_err(|error| refusal(Status::new(Code::Internal, error.to_string())))
}

fn refusal(status: Status) -> ClientError {
    ClientError::Refused(status)
}

fn odd_answer() -> ClientError {
    refusal(Status::new(Code::Internal, "the manager gave another answer than asked for"))
}

/// Asks one of these managers for a place in the Raft group. The node must listen already: the leader calls back before it
/// agrees.
pub fn place(
    addrs: &[String],
    keys: &Keys,
    hello: &Hello,
    advertise: &str,
    progress: &Progress,
) -> Result<JoinAnswer, StartError> {
    let connect = |addr: &String| {
        let trust = Trust::Roots(keys.root_pem.clone());
        target(addr, Some(&keys.identity), trust, Some(hello.clone()))
    };
    let connects = addrs.iter().map(connect).collect::<Result<Vec<_>, _>>()?;
    let request = JoinRequest { advertise: advertise.to_owned(), feature_level: FEATURE_LEVEL };
    let addr = addrs.first().map_or("a manager", String::as_str);
    let mut turn = 0;
    patiently(addr, "a place among the managers", progress, |deadline| {
        let Some(connect) = connects.get(turn % connects.len().max(1)) else {
            let status = Status::new(Code::FailedPrecondition, "no manager's address is known");
            return Err(ClientError::Unreachable(status));
        };
        turn += 1;
        let mut client = Client::tls(connect.clone(), deadline.since(monotonic()))?;
        match client.call(Call::Join, &request, deadline.since(monotonic()))? {
            Answer::Joined(answer) => Ok(*answer),
            _ => Err(odd_answer()),
        }
    })
}

/// What the swarm's managers seal their keys under, so that a new manager's data key is never on its disk in the clear.
/// `None` when nobody tells: the manager follows its own store as soon as it has one.
pub fn lock(addrs: &[String], keys: &Keys, hello: &Hello) -> Option<Lock> {
    for addr in addrs {
        let trust = Trust::Roots(keys.root_pem.clone());
        let connect = target(addr, Some(&keys.identity), trust, Some(hello.clone())).ok()?;
        match Client::tls(connect, ATTEMPT).and_then(|mut client| client.call(Call::GetUnlockKey, &(), ATTEMPT)) {
            Ok(Answer::UnlockKey { key: Some(key), version }) => {
                let key = UnlockKey::from_bytes(&key.0)?;
                return Some(Lock { key: Some(key), version });
            }
            Ok(_) => return None,
            Err(error) => log::warn!("{addr} did not tell whether managers lock: {}", error.into_status()),
        }
    }
    None
}

/// Finds the managers behind `--peer` addresses: the hello of each says who it is. What is found is handed to `found`;
/// addresses that do not answer are tried again until `ended`. Why one cannot be reached or turns this node away is
/// handed to `failed`, each time.
pub fn find_peers(
    addrs: Vec<String>,
    own: &Own,
    hello: &dyn Fn() -> Hello,
    found: impl Fn(NodeId, String),
    failed: impl Fn(Status),
    ended: impl Fn() -> bool,
) -> Result<(), StartError> {
    let mut left = addrs;
    let mut pause = Duration::from_millis(100);
    while !left.is_empty() && !ended() {
        let mut silent = Vec::new();
        for addr in left {
            // The certificate as it is now: it may have been renewed since the last attempt.
            let connect = own.target(&addr, wall_ms(), hello).map_err(|error| refused(&addr, &error))?;
            match Client::tls(connect, Duration::from_secs(2)) {
                Ok(client) => found(client.hello().node_id, addr),
                Err(error) => {
                    let status = error.into_status();
                    log::debug!("--peer {addr}: {status}");
                    failed(status);
                    silent.push(addr);
                }
            }
        }
        left = silent;
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(5));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_are_waited_for_as_long_as_they_take_and_machines_for_half_a_minute() {
        let at = |seconds: u64| Instant::from_nanos(seconds * 1_000_000_000);
        let approval = Status::new(Code::Unavailable, "node x waits until a person approves it");
        let signature = Status::new(Code::Unavailable, "the certificate of node x is not issued yet: no key");
        let silence = Status::new(Code::Unavailable, "no answer");
        let mut patience = Patience::new(at(0));
        assert_eq!(patience.after(at(0), &silence), Some(FIRST_PAUSE));
        assert_eq!(patience.after(at(29), &silence), Some(FIRST_PAUSE * 2));
        assert_eq!(patience.after(at(30), &silence), None);
        let mut patience = Patience::new(at(0));
        for seconds in (0..100_000).step_by(10) {
            let status = if seconds % 20 == 0 { &approval } else { &signature };
            assert!(patience.after(at(seconds), status).is_some(), "after {seconds} s");
        }
        assert_eq!(patience.after(at(100_000), &approval), Some(LONG_PAUSE));
        // A manager that goes away meanwhile may come back.
        assert_eq!(patience.after(at(100_028), &silence), Some(LONGEST_PAUSE));
        assert_eq!(patience.after(at(100_031), &silence), None);
        assert_eq!(patience.after(at(0), &Status::new(Code::InvalidArgument, "no")), None);
        assert_eq!(patience.after(at(0), &Status { hopeless: true, ..silence }), None);
    }
}
