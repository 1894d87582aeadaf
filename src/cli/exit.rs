//! How a command ends: exit codes, and failures as people and scripts read them.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::parse;
use crate::client::{ClientError, WriteId};
use crate::types::{Code, Status};

/// The exit codes. Scripts depend on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// Done.
    Done = 0,
    /// Something failed that should not: I/O, a port in use.
    Internal = 1,
    /// The command line is wrong.
    Usage = 2,
    /// Refused: the same command will be refused again until something changes.
    Refused = 3,
    /// No leader, no manager, no room: later may do.
    Unavailable = 4,
    /// Data is damaged.
    Damaged = 5,
    /// A write or an order was sent, and its outcome is not known.
    Unknown = 6,
}

/// A command's end: an exit code, or a failure to print.
pub type Ended = Result<Exit, Failure>;

pub(super) const DONE: Ended = Ok(Exit::Done);

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

impl Exit {
    /// The exit code for a refusal.
    pub const fn of(code: Code) -> Self {
        match code {
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::Aborted
            | Code::FailedPrecondition
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::OutOfRange
            | Code::Unimplemented => Self::Refused,
            Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted => Self::Unavailable,
            Code::Unknown => Self::Unknown,
            Code::Internal => Self::Internal,
        }
    }
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What was attempted, such as `cannot create config web`; empty when the message says it all.
    pub attempted: String,
    /// The class of failure, as JSON shows it.
    pub code: &'static str,
    /// Why.
    pub message: String,
    /// The next command to type, or empty.
    pub hint: String,
    /// How the process ends.
    pub exit: Exit,
    /// A write whose outcome is not known.
    pub change: Option<Box<WriteId>>,
}

impl Failure {
    /// An input or output error, or something else that should not fail.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal.name(), message, Exit::Internal)
    }

    /// A wrong command line.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument.name(), message, Exit::Usage)
    }

    /// A refusal that this command finds by itself.
    pub fn refused(code: Code, message: impl Into<String>) -> Self {
        Self::new(code.name(), message, Exit::of(code))
    }

    /// Damaged data.
    pub fn damaged(message: impl Into<String>) -> Self {
        Self::new("DataLoss", message, Exit::Damaged)
    }

    /// The failure of an order that is given once and has no id to ask again with. One that was sent and never answered
    /// may have been carried out; `hint` says how to find out.
    pub fn of_order(error: ClientError, hint: &str) -> Self {
        match error {
            ClientError::Lost(status) => {
                Self::refused(Code::Unknown, format!("the outcome is not known: {}", status.message)).with_hint(hint)
            }
            other => other.into(),
        }
    }

    fn new(code: &'static str, message: impl Into<String>, exit: Exit) -> Self {
        Self { attempted: String::new(), code, message: message.into(), hint: String::new(), exit, change: None }
    }

    /// Says what was attempted, unless that is said already.
    #[must_use]
    pub fn while_attempting(mut self, attempted: impl FnOnce() -> String) -> Self {
        if self.attempted.is_empty() {
            self.attempted = attempted();
        }
        self
    }

    /// Adds what to do next.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = hint.into();
        self
    }

    /// For people: one line, and one with the hint.
    pub fn text(&self) -> String {
        let mut text = String::from("skep: ");
        if !self.attempted.is_empty() {
            text.push_str(&self.attempted);
            text.push_str(": ");
        }
        text.push_str(&self.message);
        text.push('\n');
        if !self.hint.is_empty() {
            text.push_str("hint: ");
            text.push_str(&self.hint);
            text.push('\n');
        }
        text
    }

    /// For scripts.
    pub fn json(&self) -> Value {
        let message = match self.attempted.is_empty() {
            true => self.message.clone(),
            false => format!("{}: {}", self.attempted, self.message),
        };
        let mut object = json!({ "code": self.code, "message": message, "hint": self.hint });
        if let Some(id) = &self.change {
            object["change_id"] = parse::show_write_id(**id).into();
        }
        object
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::refused(status.code, status.message).with_hint(status.hint)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::OutcomeUnknown { id, status } => {
                let shown = parse::show_write_id(id);
                let message = format!("the change {shown} may have been carried out: {}", status.message);
                let hint =
                    format!("give the same command again with `--change-id {shown}`: it is carried out at most once");
                let mut failure = Self::refused(Code::Unknown, message).with_hint(hint);
                failure.change = Some(Box::new(id));
                failure
            }
            // A read that was lost changes nothing: whoever asks again does no harm.
            ClientError::Lost(status) | ClientError::Unreachable(status) | ClientError::Refused(status) => {
                status.into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{ChangeId, Revision};

    #[test]
    fn every_code_has_its_exit() {
        for (code, exit) in [
            (Code::InvalidArgument, 3),
            (Code::NotFound, 3),
            (Code::AlreadyExists, 3),
            (Code::Aborted, 3),
            (Code::FailedPrecondition, 3),
            (Code::PermissionDenied, 3),
            (Code::Unauthenticated, 3),
            (Code::ResourceExhausted, 4),
            (Code::Unavailable, 4),
            (Code::DeadlineExceeded, 4),
            (Code::Unknown, 6),
            (Code::OutOfRange, 3),
            (Code::Unimplemented, 3),
            (Code::Internal, 1),
        ] {
            assert_eq!(Exit::of(code) as u8, exit, "{code:?}");
        }
        assert_eq!(Failure::usage("").exit as u8, 2);
        assert_eq!(Failure::damaged("").exit as u8, 5);
        assert_eq!(Failure::internal("").exit as u8, 1);
    }

    #[test]
    fn a_failure_reads_the_same_for_people_and_scripts() {
        let failure = Failure::from(Status::new(Code::NotFound, "no config is named web").with_hint("skep config ls"))
            .while_attempting(|| "cannot remove config web".to_owned());
        assert_eq!(failure.text(), "skep: cannot remove config web: no config is named web\nhint: skep config ls\n");
        let expected = r#"{"code":"NotFound","hint":"skep config ls","message":"cannot remove config web: no config is named web"}"#;
        assert_eq!(failure.json().to_string(), expected);
    }

    #[test]
    fn an_order_that_was_lost_has_an_unknown_outcome_and_one_that_was_refused_has_not() {
        let status = || Status::new(Code::Unavailable, "the connection broke");
        let check = |error, code, exit, hint| {
            let failure = Failure::of_order(error, "look");
            assert_eq!((failure.code, failure.exit, failure.hint.as_str()), (code, exit, hint));
        };
        check(ClientError::Lost(status()), "Unknown", Exit::Unknown, "look");
        check(ClientError::Unreachable(status()), "Unavailable", Exit::Unavailable, "");
        check(ClientError::Refused(status()), "Unavailable", Exit::Unavailable, "");
        check(ClientError::Refused(Status::new(Code::Unknown, "?")), "Unknown", Exit::Unknown, "");
    }

    #[test]
    fn an_unknown_outcome_prints_what_asks_again() {
        let id = WriteId { change: ChangeId(7), after: Revision(9) };
        let status = Status::new(Code::Unavailable, "the connection broke");
        let failure = Failure::from(ClientError::OutcomeUnknown { id, status });
        assert_eq!(failure.exit, Exit::Unknown);
        assert!(failure.hint.contains("--change-id 0000000000000000000000007@9"), "{}", failure.hint);
        assert_eq!(failure.json()["change_id"], "0000000000000000000000007@9");
    }
}
