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
use crate::client::{Client, ClientError, TlsTarget};
use crate::pki::seal::DataKey;
use crate::pki::{self, JoinToken, NodeIdentity, Trust};
use crate::sys::entropy::{Entropy, OsEntropy};
use crate::sys::time::{Instant, monotonic, wall_ms};
use crate::types::api::{Answer, Call, FEATURE_LEVEL, Hello, IssueRequest, JoinAnswer, JoinRequest};
use crate::types::object::{Availability, NodeDescription, Sensitive};
use crate::types::{ChangeId, Code, NodeId, Status};

/// One attempt may take so long.
const ATTEMPT: Duration = Duration::from_secs(10);
/// All attempts together.
const PATIENCE: Duration = Duration::from_secs(30);

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

/// Repeats a call while it may succeed later, and lets `progress` say so.
fn patiently<T>(
    addr: &str,
    what_for: &str,
    progress: &Progress,
    mut attempt: impl FnMut(Instant) -> Result<T, ClientError>,
) -> Result<T, StartError> {
    let asking = format!("asking {addr} for {what_for}");
    progress.say(asking.clone());
    let deadline = monotonic() + PATIENCE;
    let mut pause = Duration::from_millis(50);
    loop {
        let status = match attempt(monotonic() + ATTEMPT) {
            Ok(value) => return Ok(value),
            Err(error) => error.into_status(),
        };
        let over = monotonic() + pause > deadline || progress.is_cancelled();
        if !status.code.is_transient() || status.hopeless || over {
            return Err(failed(addr, status));
        }
        log::debug!("joining {addr}: {status}; trying again");
        progress.say(format!("{asking}, so far in vain: {}", status.message));
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
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
            _ => {
                Err(ClientError::Refused(Status::new(Code::Internal, "the manager gave another answer than asked for")))
            }
        }
    })?;
    parsed.verify_root(&root_pem).map_err(|error| refused(addr, &error))?;

    let (key, data_key) = match dir.read_key()? {
        Some(keys) => keys,
        None => {
            let keys = (pki::generate_key(&mut OsEntropy), DataKey::generate(&mut OsEntropy));
            dir.write_key(&keys.0, &keys.1)?;
            keys
        }
    };
    let csr = pki::signing_request(&key).map_err(|error| refused(addr, &error))?;
    let connect = target(addr, None, Trust::Roots(root_pem.clone()), None)?;
    let (node_id, chain) = patiently(addr, "a certificate", progress, |deadline| {
        let mut client = Client::tls(connect.clone(), deadline.since(monotonic()))?;
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
            file.request = None;
            dir.write(file).map_err(|error| ClientError::Refused(Status::new(Code::Internal, error.to_string())))?;
        }
        match answer? {
            Answer::Certificate { node_id, chain, .. } => Ok((node_id, chain)),
            _ => {
                Err(ClientError::Refused(Status::new(Code::Internal, "the manager gave another answer than asked for")))
            }
        }
    })?;
    let identity = NodeIdentity::new(&chain, key).map_err(|error| refused(addr, &error))?;
    identity.verify(&root_pem, wall_ms()).map_err(|error| refused(addr, &error))?;
    file.node_id = Some(node_id);
    file.cluster_id = Some(identity.identity().cluster_id);
    let keys = Keys { identity, root_pem, data_key };
    dir.write_identity(&keys.identity, &keys.root_pem, &keys.data_key)?;
    dir.write(file)?;
    Ok(keys)
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
            _ => {
                Err(ClientError::Refused(Status::new(Code::Internal, "the manager gave another answer than asked for")))
            }
        }
    })
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
