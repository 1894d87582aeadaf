//! Who is on the other side: what TLS and the hello say of it, and what that admits it to.

use rustls::CertificateError;
use rustls::pki_types::UnixTime;

use super::*;

/// The link of a manager with an expired certificate is made anew after this, and then with what it has by then.
const LENT_MS: u64 = 5000;

impl<H: Handler> Net<H> {
    /// A dialled peer did not take this node, or this node not the peer.
    pub(super) fn refused_dial(&mut self, id: ConnectionId, dial: &Dial, status: &Status, by_them: bool) {
        match dial.purpose {
            Purpose::Call(token) => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.dial = None;
                }
                let message = format!("{}: {}", dial.addr, status.message);
                let told = Status { message, ..status.clone() };
                self.fail_call(token, Reply::Refused(told));
            }
            Purpose::Peer(_) => {
                self.warn_of_peer(dial.peer, &format!("{}: {}", dial.addr, status.message), &status.hint);
                if by_them {
                    self.handler.turned_away(Some(dial.peer), status, &mut self.out);
                }
            }
        }
    }

    /// TLS is set up: who is it?
    pub(super) fn secured(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        let Some(tls) = connection.link.tls() else { return };
        if let Err(error) = pki::tls::check_protocol(tls.alpn_protocol()) {
            self.meters.failed_handshakes.add(1);
            return self.refuse(id, &error.into());
        }
        let class = pki::classify(tls.peer_certificates(), wall_ms());
        self.meters.handshakes.add(1);
        let dialled = connection.dial.as_ref().map(|dial| dial.peer);
        match (class, dialled) {
            (pki::Class::Valid(identity) | pki::Class::Expired(identity), _)
                if identity.cluster_id != self.settings.cluster_id =>
            {
                self.refuse(id, &pki::PkiError::OtherSwarm.into());
            }
            (pki::Class::Valid(identity), Some(expected)) => {
                if identity.node_id != expected || identity.role != Role::Manager {
                    let message = format!(
                        "another node answers at this address: expected manager {expected}, found {} {}",
                        identity.role.name(),
                        identity.node_id
                    );
                    return self.refuse(id, &Status::new(Code::FailedPrecondition, message));
                }
                self.set_caller(id, &identity, false, Stage::Greeting);
                self.send_hello(id);
            }
            (pki::Class::Expired(identity), Some(expected)) => {
                let is_link = connection.dial.as_ref().is_some_and(|dial| matches!(dial.purpose, Purpose::Peer(_)));
                let is_expected = identity.node_id == expected && identity.role == Role::Manager;
                if !is_link || !is_expected || !self.handler.admits_expired(expected) {
                    let status = self.expired(&identity);
                    return self.refuse(id, &status);
                }
                self.set_caller(id, &identity, true, Stage::Greeting);
                self.send_hello(id);
            }
            (pki::Class::None, Some(_)) => {
                let message = "the other side shows no certificate in force";
                self.refuse(id, &Status::new(Code::Unauthenticated, message));
            }
            (pki::Class::Valid(identity), None) if identity.role == Role::Manager => {
                // Its hello comes first, and ours answers it: so a hello tells the side that dialled that it was accepted.
                self.set_caller(id, &identity, false, Stage::Greeting);
            }
            (pki::Class::Valid(identity), None) => {
                if self.handler.standing(identity.node_id) == Standing::Removed {
                    return self.refuse(id, &removed(identity.node_id));
                }
                self.set_caller(id, &identity, false, Stage::Open);
                self.authenticated(id, Class::Worker);
                self.send_hello(id);
                self.keep_to_share(identity.node_id);
            }
            (pki::Class::Expired(identity), None) => {
                self.set_caller(id, &identity, true, Stage::Open);
                self.reclassify(id, Class::Anonymous);
                self.send_hello(id);
            }
            (pki::Class::None, None) => {
                if let Some(connection) = self.connections.get_mut(id) {
                    connection.caller = Some(Caller::Anonymous);
                    connection.stage = Stage::Open;
                }
                self.reclassify(id, Class::Anonymous);
                self.send_hello(id);
            }
        }
    }

    /// Why a manager with this certificate, which was dialled, is no peer.
    fn expired(&self, identity: &Identity) -> Status {
        let (time, not_after) = (wall_ms(), identity.not_after_ms);
        let [time, not_after] = [time, not_after].map(|ms| UnixTime::since_unix_epoch(Duration::from_millis(ms)));
        let (message, hint) = pki::explain(&CertificateError::ExpiredContext { time, not_after }.into());
        let message = match self.clock_words(Some(identity.node_id)) {
            Some(words) => format!("{message}; {words}"),
            None => message,
        };
        Status::new(Code::Unauthenticated, message).with_hint(hint)
    }

    fn set_caller(&mut self, id: ConnectionId, identity: &Identity, expired: bool, stage: Stage) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let Identity { node_id, role, cluster_id, not_after_ms, .. } = *identity;
        // A link that is lent does not last: its other side has a new certificate soon.
        connection.expires_ms = if expired { wall_ms().saturating_add(LENT_MS) } else { not_after_ms };
        connection.caller = Some(Caller::Node { node_id, role, cluster_id, expired });
        connection.stage = stage;
    }

    /// From here on the limits of members hold.
    pub(super) fn authenticated(&mut self, id: ConnectionId, class: Class) {
        self.unauthenticated.remove(&id);
        self.reclassify(id, class);
        if let Some(connection) = self.connections.get_mut(id) {
            connection.authenticated = true;
        }
        self.watch_expiry(id);
    }

    /// Closes a worker's oldest connection when it has more than its share: one worker's key, in the wrong hands, must not
    /// take all descriptors.
    fn keep_to_share(&mut self, worker: NodeId) {
        let its = |connection: &&Connection| connection.class == Class::Worker && connection.node() == Some(worker);
        let ids = || self.connections.iter().filter(its).map(|connection| connection.id);
        if ids().count() > self.settings.limits.per_worker
            && let Some(oldest) = ids().min()
        {
            log::debug!("closing the oldest connection of worker {worker}: it has too many");
            self.meters.evicted.add(1);
            self.close(oldest);
        }
    }

    /// A certificate holds for no longer than it says, also on a connection that was made before its end.
    pub(super) fn watch_expiry(&mut self, id: ConnectionId) {
        let Some(connection) = self.connections.get(id) else { return };
        let left_ms = connection.expires_ms.saturating_sub(wall_ms());
        // At most a day at a time: the wall clock may be set meanwhile.
        let left = Duration::from_millis(left_ms.saturating_add(1000)).min(Duration::from_secs(86_400));
        self.set_deadline(id, Some(self.now + left));
    }

    /// Sends this node's hello; marked as the last frame that is not an answer, on a connection for one call.
    pub(in crate::net) fn send_hello(&mut self, id: ConnectionId) {
        let hello = envelope::encode(&self.handler.hello());
        let Some(connection) = self.connections.get_mut(id) else { return };
        let for_a_call = matches!(connection.dial, Some(Dial { purpose: Purpose::Call(_), .. }));
        connection.link.lanes.push_urgent(FrameKind::Hello, if for_a_call { END } else { 0 }, 0, hello.into());
        self.mark_dirty(id);
    }

    pub(super) fn hello(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
        let hello: Hello = match envelope::decode(body, MAX_UNAUTHENTICATED_FRAME_BYTES) {
            Ok(hello) => hello,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed hello: {error}")),
        };
        let Some(connection) = self.connections.get(id) else { return };
        let Some(caller) = connection.caller.clone() else { return };
        let Some(node) = caller.node_id() else { return };
        let is_lent = matches!(caller, Caller::Node { expired: true, .. });
        let for_a_call = header.flags & END != 0;
        let standing = self.handler.standing(node);
        let admitted = match standing {
            Standing::Removed => Err(removed(node)),
            // It may still ask, above all for the certificate that says what it is now.
            Standing::Worker if !for_a_call => Err(demoted(node)),
            _ => Ok(()),
        };
        // The handler has the last word only on those whom the store admits: what it remembers of them is of managers.
        let accepted = self.check_hello(node, &hello).and(admitted).and_then(|()| match standing {
            Standing::Worker => Ok(()),
            _ => self.handler.greeted(&caller, &hello),
        });
        if let Err(status) = accepted {
            return self.refuse(id, &status);
        }
        self.authenticated(id, if standing == Standing::Worker { Class::Worker } else { Class::Manager });
        let Some(connection) = self.connections.get_mut(id) else { return };
        connection.stage = Stage::Open;
        match connection.dial.as_ref().map(|dial| dial.purpose) {
            Some(Purpose::Call(token)) => return self.send_waiting_call(id, token),
            Some(Purpose::Peer(attempt)) => {
                self.attempts.remove(&attempt);
                self.meters.dials.add(1);
            }
            // One with an expired certificate has had ours: to ask for a new one it would not have had to greet.
            None if is_lent => {}
            None => self.send_hello(id),
        }
        // A connection for one call is not for anything else.
        if !for_a_call && let Some(connection) = self.connections.get_mut(id) {
            connection.is_peer_link = true;
            let dialled = connection.dial.is_some();
            self.send_ping(id);
            self.schedule_ping();
            self.peers.link_up(self.now, node, id, dialled, &mut self.effects);
        }
    }

    /// A hello where none is needed: of a manager with an expired certificate that wants to be a peer all the same.
    pub(super) fn late_hello(&mut self, id: ConnectionId, header: Header, body: &Bytes) {
        let Some(connection) = self.connections.get(id) else { return };
        match connection.caller {
            Some(Caller::Node { node_id, role: Role::Manager, expired: true, .. })
                if !connection.authenticated
                    && header.flags & END == 0
                    && self.handler.standing(node_id) != Standing::Removed
                    && self.handler.admits_expired(node_id) =>
            {
                self.hello(id, header, body);
            }
            Some(Caller::Node { node_id, expired: true, .. }) => {
                let message = format!("the certificate of node {node_id} has expired");
                self.refuse(id, &Status::new(Code::Unauthenticated, message).with_hint(routes::EXPIRED_HINT));
            }
            _ => self.malformed(id, Malformed::Order, "a hello is for managers, once, as the first frame"),
        }
    }

    fn check_hello(&self, node: NodeId, hello: &Hello) -> Result<(), Status> {
        if hello.protocol != PROTOCOL {
            let message = format!("manager {node} speaks protocol {} and this one {PROTOCOL}", hello.protocol);
            return Err(
                Status::new(Code::FailedPrecondition, message).with_hint("run the same version of skep on both")
            );
        }
        if hello.cluster_id != self.settings.cluster_id {
            return Err(pki::PkiError::OtherSwarm.into());
        }
        if hello.node_id != node {
            let message = format!("a hello in the name of {} on a connection of {node}", hello.node_id);
            return Err(Status::new(Code::PermissionDenied, message));
        }
        Ok(())
    }

    /// The other side ends the connection, with a reason.
    pub(super) fn turned_away(&mut self, id: ConnectionId, body: &Bytes) {
        let status: Status = match envelope::decode(body, MAX_UNAUTHENTICATED_FRAME_BYTES) {
            Ok(status) => status,
            Err(error) => return self.malformed(id, Malformed::Body, &format!("malformed status: {error}")),
        };
        let Some(connection) = self.connections.get(id) else { return };
        log::debug!("{} ended the connection: {status}", connection.addr);
        match connection.dial.clone() {
            Some(dial) => self.refused_dial(id, &dial, &status, true),
            None => {
                if let Some(node) = connection.node()
                    && connection.class == Class::Manager
                {
                    self.handler.turned_away(Some(node), &status, &mut self.out);
                }
            }
        }
        self.close(id);
    }
}

pub(super) fn removed(node: NodeId) -> Status {
    Status::new(Code::PermissionDenied, format!("node {node} was removed from the swarm"))
        .with_hint("to join again, move its data directory aside and run `skep run --join HOST:PORT --token-file FILE`")
}

/// For a node whose certificate says more than the store.
pub(super) fn demoted(node: NodeId) -> Status {
    Status::new(Code::PermissionDenied, format!("node {node} was demoted to a worker"))
        .with_hint("it asks for a worker's certificate by itself; `skep node promote NODE` makes it a manager again")
}

/// For a worker that the store does not have, where that says nothing of what others have.
pub(super) fn unknown(node: NodeId) -> Status {
    Status::new(Code::Unavailable, format!("this manager does not know node {node}")).with_hint("ask another manager")
}
