//! The route table: for each call, who may make it, where it is served, how large it may be and how long it may take.
//!
//! The socket loop asks [`check`] (or [`check_forwarded`]) before a request reaches anyone, and [`deadline`] for its
//! time; the requests machine asks [`route`] where a request belongs. The caller is the one that the store knows
//! ([`Caller::acting`]), not only what its certificate says. There is no other place that grants a call.

use std::time::Duration;

use crate::types::api::Call;
use crate::types::error::{Code, Status};
use crate::types::limits::{MAX_CHANGE_BYTES, MAX_UNAUTHENTICATED_FRAME_BYTES};
use crate::types::{Caller, Role};

/// Where a call is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    /// By the manager that is asked. A read that must not be stale makes a round through the leader first.
    Here,
    /// By the leader: another manager passes it on.
    Leader,
}

/// What the table says of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Kinds of caller that may make it, as bits of the constants below.
    callers: u8,
    /// Where it is carried out.
    pub served: Served,
    /// The longest body, bytes.
    pub body_limit: usize,
    /// How long it may take when the caller does not say.
    pub deadline: Duration,
    /// A manager may pass it on to the leader.
    pub forwardable: bool,
    /// It is answered also while this node is not yet a member.
    pub before_joining: bool,
    /// The same request may be carried out again without harm: by its change id, or because doing it twice is doing it
    /// once. Only such a call goes round again when an attempt may have been carried out.
    pub repeatable: bool,
    /// It changes something, so that its outcome can be unknown.
    pub changes: bool,
}

const LOCAL: u8 = 1;
const ANONYMOUS: u8 = 2;
const WORKER: u8 = 4;
const MANAGER: u8 = 8;
const EXPIRED: u8 = 16;
const ANYONE: u8 = LOCAL | ANONYMOUS | WORKER | MANAGER | EXPIRED;

/// What whoever runs a node with an expired certificate can do.
pub(super) const EXPIRED_HINT: &str = "compare the clocks of both machines (`date -u`); if they are right, the node \
     gets a new certificate when it runs, or after `skep node approve NODE` on a manager if it was off for too long";

/// However long a caller asks for, a request ends after this.
pub const MAX_DEADLINE: Duration = Duration::from_secs(600);

/// The row of a call.
pub const fn route(call: Call) -> Route {
    use Served::{Here, Leader};
    const KIB: usize = 1 << 10;
    // Labels, indices and names stand beside the payload that a change carries.
    const WRITE: usize = MAX_CHANGE_BYTES + 64 * KIB;
    const CSR: usize = MAX_UNAUTHENTICATED_FRAME_BYTES - 4 * KIB;
    #[rustfmt::skip]
    let (callers, served, body_limit, seconds, forwardable, before_joining, repeatable) = match call {
        Call::Query             => (LOCAL | MANAGER, Here,   64 * KIB, 10, false, true,  true),
        Call::Write             => (LOCAL | MANAGER, Leader, WRITE,    10, true,  false, true),
        Call::Watch             => (LOCAL | MANAGER, Here,   64 * KIB, 10, false, false, true),
        Call::Admin             => (LOCAL,           Here,   KIB,      30, true,  false, false),
        // Tells of directories, peers and load: for whoever may read the manager's files anyway.
        Call::Diagnose          => (LOCAL,           Here,   KIB,      10, false, true,  true),
        // A locked manager takes it; every other one says that it is not locked.
        Call::Unlock            => (LOCAL,           Here,   KIB,      10, false, false, true),
        // Everything, the root key too: who may ask for it can take over the swarm.
        Call::Backup            => (LOCAL,           Here,   KIB,      30, false, false, true),
        Call::Snapshot          => (MANAGER,         Here,   KIB,      60, false, false, true),
        Call::ResolveAddress    => (MANAGER,         Here,   KIB,       5, false, false, true),
        Call::Health            => (MANAGER,         Here,   KIB,       5, false, true,  true),
        Call::Join              => (MANAGER,         Leader, 4 * KIB,  30, true,  false, true),
        Call::Leave             => (LOCAL | MANAGER, Leader, KIB,      30, true,  false, false),
        Call::SetAddress        => (MANAGER,         Leader, 4 * KIB,  10, true,  false, true),
        Call::GetRoot           => (ANYONE,          Leader, KIB,      10, true,  false, true),
        Call::Issue             => (ANYONE,          Leader, CSR,      30, true,  false, true),
        Call::CertificateStatus => (ANYONE,          Leader, KIB,      10, true,  false, true),
        Call::Report            => (WORKER | MANAGER, Leader, 32 * KIB, 10, true, false, true),
        Call::Session           => (WORKER | MANAGER, Here,  32 * KIB, 10, false, false, true),
        Call::GetUnlockKey      => (MANAGER,         Leader, KIB,      10, true,  false, true),
    };
    let deadline = Duration::from_secs(seconds);
    let changes = !matches!(
        call,
        Call::Query
            | Call::Watch
            | Call::Diagnose
            | Call::Backup
            | Call::Snapshot
            | Call::ResolveAddress
            | Call::Health
            | Call::GetRoot
            | Call::CertificateStatus
            | Call::Session
            | Call::GetUnlockKey
    );
    Route { callers, served, body_limit, deadline, forwardable, before_joining, repeatable, changes }
}

/// How long a call of this caller may take: what the caller asked for (zero: nothing), within bounds. One who has not
/// proved to be a member does not keep a place for longer than the call usually takes.
pub fn deadline(call: Call, caller: &Caller, asked_ms: u32) -> Duration {
    let usual = route(call).deadline;
    let longest = if is_stranger(caller) { usual } else { MAX_DEADLINE };
    match asked_ms {
        0 => usual,
        asked => Duration::from_millis(u64::from(asked)).min(longest),
    }
}

/// Whether the caller shows no certificate in force, so that it may be anyone.
pub const fn is_stranger(caller: &Caller) -> bool {
    matches!(caller, Caller::Anonymous | Caller::Node { expired: true, .. })
}

/// Whether `caller` may make `call`; the error says what the caller lacks.
pub fn check(call: Call, caller: &Caller) -> Result<(), Status> {
    if route(call).callers & bit(caller) != 0 {
        return Ok(());
    }
    Err(match caller {
        Caller::Local => Status::new(
            Code::PermissionDenied,
            format!("{} is a call between managers, not for the local socket", name(call)),
        ),
        Caller::Anonymous => {
            Status::new(Code::Unauthenticated, format!("{} needs a certificate of this swarm", name(call)))
                .with_hint("join the swarm first: `skep run --join HOST:PORT --token-file FILE`")
        }
        Caller::Node { expired: true, .. } => Status::new(
            Code::Unauthenticated,
            format!("{} needs a certificate in force, and the caller's has expired", name(call)),
        )
        .with_hint(EXPIRED_HINT),
        Caller::Node { role, .. } => {
            let allowed = if route(call).callers & MANAGER != 0 { "managers" } else { "the manager's own machine" };
            Status::new(
                Code::PermissionDenied,
                format!("{} is for {allowed} only, and the caller is a {}", name(call), role.name()),
            )
        }
    })
}

/// Whether `by` may pass on `call` for `origin`: only a manager may, only a call for the leader, and only for someone who
/// may make the call.
pub fn check_forwarded(call: Call, by: &Caller, origin: &Caller) -> Result<(), Status> {
    if let Caller::Node { role: Role::Manager, expired: true, .. } = by {
        let message =
            "the manager that was asked may not pass calls on: its certificate has expired, or had a moment ago";
        let hint = "it gets a new one by itself; try again in a moment, or ask another manager";
        return Err(Status::new(Code::Unavailable, message).with_hint(hint));
    }
    if !by.is_manager() {
        return Err(Status::new(Code::PermissionDenied, "only a manager may pass on the calls of others"));
    }
    if !route(call).forwardable {
        let message = format!("{} is answered where it is asked and cannot be passed on", name(call));
        return Err(Status::new(Code::InvalidArgument, message));
    }
    check(call, origin)
}

/// The call's name in messages.
pub const fn name(call: Call) -> &'static str {
    match call {
        Call::Query => "a query",
        Call::Write => "a write",
        Call::Watch => "a watch",
        Call::Admin => "an order to a manager",
        Call::Diagnose => "asking for a diagnosis",
        Call::Backup => "taking a backup",
        Call::Snapshot => "fetching a snapshot",
        Call::ResolveAddress => "resolving an address",
        Call::Health => "a health check",
        Call::Join => "joining as a manager",
        Call::Leave => "leaving the managers",
        Call::SetAddress => "changing an address",
        Call::GetRoot => "fetching the root certificate",
        Call::Issue => "issuing a certificate",
        Call::CertificateStatus => "asking for a certificate",
        Call::Report => "a node's report of itself",
        Call::Session => "a node's session",
        Call::Unlock => "unlocking a manager",
        Call::GetUnlockKey => "fetching the unlock key",
    }
}

const fn bit(caller: &Caller) -> u8 {
    match caller {
        Caller::Local => LOCAL,
        Caller::Anonymous => ANONYMOUS,
        Caller::Node { expired: true, .. } => EXPIRED,
        Caller::Node { role: Role::Worker, .. } => WORKER,
        Caller::Node { role: Role::Manager, .. } => MANAGER,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::types::{ClusterId, NodeId};

    fn node(role: Role, expired: bool) -> Caller {
        Caller::Node { node_id: NodeId(7), role, cluster_id: ClusterId(1), expired }
    }

    /// What the product promises, written apart from the table: who may make the call, and whether a manager may pass it
    /// on. `l` local socket, `a` no certificate, `w` worker, `m` manager, `e` expired certificate.
    pub const PROMISED: [(Call, &str, bool); 19] = [
        (Call::Query, "lm", false),
        (Call::Write, "lm", true),
        (Call::Watch, "lm", false),
        (Call::Admin, "l", true),
        (Call::Diagnose, "l", false),
        (Call::Unlock, "l", false),
        (Call::Backup, "l", false),
        (Call::Snapshot, "m", false),
        (Call::ResolveAddress, "m", false),
        (Call::Health, "m", false),
        (Call::Join, "m", true),
        (Call::Leave, "lm", true),
        (Call::SetAddress, "m", true),
        (Call::GetRoot, "lawme", true),
        (Call::Issue, "lawme", true),
        (Call::CertificateStatus, "lawme", true),
        (Call::Report, "wm", true),
        (Call::Session, "wm", false),
        (Call::GetUnlockKey, "m", true),
    ];

    #[test]
    fn every_call_admits_exactly_its_callers() {
        let callers = [
            ('l', Caller::Local),
            ('a', Caller::Anonymous),
            ('w', node(Role::Worker, false)),
            ('m', node(Role::Manager, false)),
            ('e', node(Role::Worker, true)),
            ('e', node(Role::Manager, true)),
        ];
        for call in Call::ALL {
            let (_, allowed, forwardable) = *PROMISED
                .iter()
                .find(|(promised, ..)| *promised == call)
                .unwrap_or_else(|| panic!("{call:?} has no row: decide who may make it"));
            for (letter, caller) in &callers {
                let may = allowed.contains(*letter);
                let verdict = check(call, caller);
                assert_eq!(verdict.is_ok(), may, "{call:?} by {caller:?}");
                if let Err(status) = verdict {
                    assert!(matches!(status.code, Code::PermissionDenied | Code::Unauthenticated), "{status:?}");
                }
                // Passed on by a manager in force: as if made directly, if the call may be passed on at all.
                let by_manager = check_forwarded(call, &node(Role::Manager, false), caller);
                assert_eq!(by_manager.is_ok(), may && forwardable, "{call:?} by {caller:?} through a manager");
                // Passed on by anyone else: never.
                for (_, by) in callers.iter().filter(|(_, by)| !by.is_manager()) {
                    let status = check_forwarded(call, by, caller).expect_err("only managers pass calls on");
                    let lapsed = matches!(by, Caller::Node { role: Role::Manager, .. });
                    let code = if lapsed { Code::Unavailable } else { Code::PermissionDenied };
                    assert_eq!(status.code, code, "{call:?} by {caller:?} through {by:?}");
                }
            }
        }
    }

    #[test]
    fn what_the_leader_serves_can_be_passed_on_and_bodies_fit_a_frame() {
        for call in Call::ALL {
            let route = route(call);
            assert!(route.served == Served::Here || route.forwardable, "{call:?}");
            assert!(route.body_limit < crate::types::limits::MAX_FRAME_BYTES, "{call:?}");
            if route.callers & ANONYMOUS != 0 {
                assert!(route.body_limit < MAX_UNAUTHENTICATED_FRAME_BYTES, "{call:?}");
            }
            assert!(!route.deadline.is_zero(), "{call:?}");
        }
    }

    #[test]
    fn a_caller_that_names_no_deadline_gets_the_calls_own() {
        assert_eq!(deadline(Call::Write, &Caller::Local, 0), Duration::from_secs(10));
        assert_eq!(deadline(Call::Write, &Caller::Local, 250), Duration::from_millis(250));
        assert_eq!(deadline(Call::Write, &Caller::Local, u32::MAX), MAX_DEADLINE);
    }

    #[test]
    fn a_stranger_waits_no_longer_than_the_call_usually_takes() {
        for (caller, longest_s) in [
            (Caller::Local, 600),
            (node(Role::Manager, false), 600),
            (node(Role::Worker, false), 600),
            (Caller::Anonymous, 30),
            (node(Role::Worker, true), 30),
            (node(Role::Manager, true), 30),
        ] {
            assert_eq!(deadline(Call::Issue, &caller, u32::MAX), Duration::from_secs(longest_s), "{caller:?}");
            assert_eq!(deadline(Call::Issue, &caller, 250), Duration::from_millis(250), "{caller:?}");
            assert_eq!(deadline(Call::Issue, &caller, 0), Duration::from_secs(30), "{caller:?}");
        }
    }
}
