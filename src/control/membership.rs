//! Orders to raft: handing over, leaving, joining, moving. Raft carries them out; here they are understood and checked
//! against the store.

use std::net::{IpAddr, SocketAddr};

use crate::net::handler::Incoming;
use crate::net::requests::{Order, Step};
use crate::store::State;
use crate::types::api::{Admin, Answer, JoinRequest, LeaveRequest, ResolveAddress, SetAddressRequest};
use crate::types::error::{Code, Status};
use crate::types::{Caller, Kind, MemberRole, NodeId, Role};

use super::Feed;
use super::{Context, encode, refusal};

pub(super) fn admin(state: &State, context: &Context, request: &Incoming, admin: Admin) -> Step<Feed> {
    match admin {
        Admin::Transfer { to: None } => Step::Raft(Order::Transfer { to: None }),
        Admin::Transfer { to: Some(reference) } => match voter(state, &reference) {
            Ok(node_id) => Step::Raft(Order::Transfer { to: Some(node_id) }),
            Err(status) => Step::RefuseIfConfirmed(status),
        },
        Admin::Snapshot => Step::Raft(Order::Snapshot),
        // Passed on, it would take out the leader and not the manager that was asked.
        Admin::Leave { .. } if request.forwarded => {
            Step::Refuse(Status::new(Code::InvalidArgument, "a manager can be told to leave only where it runs"))
        }
        Admin::RotateDataKey => Step::Refuse(Status::new(
            Code::InvalidArgument,
            "a manager can be told to change its data key only where it runs",
        )),
        Admin::Leave { force } => Step::Raft(Order::Leave { node_id: context.node_id, force, for_good: true }),
    }
}

/// The voter that a person means: by host name, node id or the beginning of one.
fn voter(state: &State, reference: &str) -> Result<NodeId, Status> {
    let stored = state
        .resolve(Kind::Node, reference)
        .map_err(|error| refusal::unresolved(state, Kind::Node, reference, &error))?;
    let node_id = NodeId::from(stored.object.id());
    match state.member_of(node_id).map(|member| member.role) {
        Some(MemberRole::Voter) => Ok(node_id),
        Some(MemberRole::Learner) => {
            Err(Status::new(Code::FailedPrecondition, format!("{reference} is still catching up and cannot lead"))
                .with_hint("`skep members` shows when it votes"))
        }
        None => Err(Status::new(Code::FailedPrecondition, format!("{reference} is not a manager"))
            .with_hint("`skep members` lists the managers")),
    }
}

pub(super) fn join(state: &State, request: &Incoming, join: JoinRequest) -> Step<Feed> {
    let Caller::Node { node_id, role: Role::Manager, .. } = request.caller else {
        return Step::Refuse(Status::new(Code::PermissionDenied, "only a node with a manager's certificate may join"));
    };
    let addr = match advertised(&join.advertise, &request.addr) {
        Ok(addr) => addr,
        Err(status) => return Step::Refuse(status),
    };
    let level = state.cluster().map_or(0, |cluster| cluster.feature_level);
    if join.feature_level < level {
        let message = format!(
            "the swarm's data is written in format {level}, and this manager understands up to {}",
            join.feature_level
        );
        let hint = "install the version that the other managers run, and start it again";
        return Step::RefuseIfConfirmed(Status::new(Code::FailedPrecondition, message).with_hint(hint));
    }
    if state.get(Kind::Node, node_id.into()).is_none() {
        let message = format!("the swarm does not know node {node_id}");
        let hint = "start it on an empty data directory with a join token: `skep token show --role manager` prints one";
        return Step::RefuseIfConfirmed(Status::new(Code::PermissionDenied, message).with_hint(hint));
    }
    Step::Raft(Order::Join { node_id, addr, feature_level: join.feature_level })
}

pub(super) fn leave(request: &Incoming, leave: LeaveRequest) -> Step<Feed> {
    match request.caller.node_id() {
        Some(caller) if caller != leave.node_id => {
            Step::Refuse(Status::new(Code::PermissionDenied, "a manager may take out only itself"))
        }
        _ => Step::Raft(Order::Leave { node_id: leave.node_id, force: leave.force, for_good: true }),
    }
}

pub(super) fn set_address(request: &Incoming, address: SetAddressRequest) -> Step<Feed> {
    let Some(node_id) = request.caller.node_id() else {
        return Step::Refuse(Status::new(Code::PermissionDenied, "only a manager may change its address"));
    };
    match advertised(&address.addr, &request.addr) {
        Ok(addr) => Step::Raft(Order::SetAddress { node_id, addr }),
        Err(status) => Step::Refuse(status),
    }
}

pub(super) fn resolve_address(state: &State, which: ResolveAddress) -> Step<Feed> {
    match state.members().get(&which.raft_id) {
        Some(member) => Step::Answer(encode(&Answer::Address(member.addr.clone()))),
        None => Step::Refuse(Status::new(
            Code::NotFound,
            format!("this manager knows no member with Raft id {}", which.raft_id),
        )),
    }
}

/// The address under which a node wants to be reached. One without an IP of its own (`0.0.0.0:4242`) means "the one you
/// see me under".
fn advertised(advertise: &str, observed: &str) -> Result<String, Status> {
    let bad = |why: &str| {
        Status::new(Code::InvalidArgument, format!("the advertised address {advertise:?} cannot be used: {why}"))
            .with_hint("give one that the other managers reach: `--advertise HOST:PORT`")
    };
    if let Ok(socket) = advertise.parse::<SocketAddr>() {
        if socket.port() == 0 {
            return Err(bad("its port is 0"));
        }
        if !socket.ip().is_unspecified() {
            return Ok(advertise.to_owned());
        }
        let seen: SocketAddr = observed.parse().map_err(|_| bad("it names no host, and none was observed"))?;
        // A v4 caller on a v6 socket.
        let ip: IpAddr = seen.ip().to_canonical();
        return Ok(SocketAddr::new(ip, socket.port()).to_string());
    }
    let (host, port) = advertise.rsplit_once(':').ok_or_else(|| bad("it has no port"))?;
    let label = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    if host.is_empty() || host.len() > 253 || !host.bytes().all(label) {
        return Err(bad("its host is not a name"));
    }
    match port.parse::<u16>() {
        Ok(1..) => Ok(advertise.to_owned()),
        _ => Err(bad("its port is not a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_host_is_the_one_observed() {
        for (advertise, observed, expected) in [
            ("10.0.0.7:4242", "10.9.9.9:50000", Ok("10.0.0.7:4242")),
            ("0.0.0.0:4242", "10.9.9.9:50000", Ok("10.9.9.9:4242")),
            ("[::]:4242", "[2001:db8::1]:50000", Ok("[2001:db8::1]:4242")),
            ("[::]:4242", "[::ffff:10.9.9.9]:50000", Ok("10.9.9.9:4242")),
            ("0.0.0.0:4242", "", Err("names no host")),
            ("manager-1.example:4242", "", Ok("manager-1.example:4242")),
            ("10.0.0.7:0", "", Err("its port is 0")),
            ("manager:0", "", Err("not a number from 1 to 65535")),
            ("manager:99999", "", Err("not a number from 1 to 65535")),
            ("manager", "", Err("it has no port")),
            (":4242", "", Err("its host is not a name")),
            ("a b:4242", "", Err("its host is not a name")),
        ] {
            match (advertised(advertise, observed), expected) {
                (Ok(addr), Ok(wanted)) => assert_eq!(addr, wanted),
                (Err(status), Err(wanted)) => assert!(status.message.contains(wanted), "{status}"),
                (found, _) => panic!("{advertise}: {found:?}"),
            }
        }
    }
}
