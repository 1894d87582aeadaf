//! What every command that talks to a manager needs: a connection, the common flags, and where results go.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::args::{Common, WriteArgs};
use super::exit::Failure;
use super::output::Output;
use crate::client::{Client, ClientError, Written};
use crate::sys::time::monotonic;
use crate::types::Code;
use crate::types::api::{Admin, Answer, Call, QueryKind, Write};

/// One command's dealings with a manager.
pub struct Session {
    pub client: Client,
    pub out: Output,
    pub stale: bool,
    pub timeout: Duration,
}

impl Session {
    /// Connects to the control socket that the flags name.
    pub fn open(common: &Common, out: Output) -> Result<Self, Failure> {
        let socket = match common.socket.as_slice() {
            [socket] => socket.clone(),
            [] => data_dir(common)?.join("skep.sock"),
            _ => return Err(Failure::usage("--socket is given several times; only `skep bench` takes several")),
        };
        let client = Client::local(&socket, common.timeout)?;
        Ok(Self { client, out, stale: common.stale, timeout: common.timeout })
    }

    /// A read, linearizable unless `--stale`.
    pub fn query(&mut self, what: QueryKind) -> Result<Answer, Failure> {
        Ok(self.client.query(what, self.stale, self.timeout)?)
    }

    /// A write, or with `--change-id` the question what became of it.
    pub fn write(&mut self, args: &WriteArgs, write: Write) -> Result<Written, Failure> {
        let id = args.change_id.unwrap_or_else(|| self.client.write_id());
        Ok(self.client.write_as(id, write, self.timeout)?)
    }

    /// An order to this manager. Repeated while nobody leads: nothing was done then, and a leader that was just told to
    /// hand over, or one that was just elected, says so too.
    pub fn admin(&mut self, admin: &Admin) -> Result<Answer, ClientError> {
        let deadline = monotonic() + self.timeout;
        loop {
            match self.client.call(Call::Admin, admin, deadline.since(monotonic())) {
                Err(ClientError::Refused(status))
                    if status.code == Code::Unavailable && !status.hopeless && deadline.since(monotonic()) > PAUSE =>
                {
                    std::thread::sleep(PAUSE);
                }
                result => return result,
            }
        }
    }
}

/// Between two attempts while leadership is on its way.
const PAUSE: Duration = Duration::from_millis(50);

/// The answer is of another kind than the question.
pub fn unexpected() -> Failure {
    Failure::internal("the manager answered something else than was asked")
        .with_hint("use the `skep` that the manager runs")
}

/// Where a manager keeps its state unless it is told.
pub fn data_dir(common: &Common) -> Result<PathBuf, Failure> {
    if let Some(dir) = &common.data_dir {
        return Ok(dir.clone());
    }
    default_data_dir(rustix::process::geteuid().is_root(), |name| std::env::var_os(name).map(PathBuf::from)).ok_or_else(
        || Failure::usage("there is no HOME to keep state in").with_hint("name a directory with --data-dir"),
    )
}

fn default_data_dir(root: bool, variable: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    if root {
        return Some(PathBuf::from("/var/lib/skep"));
    }
    // The XDG Base Directory Specification: a path that is not absolute is to be ignored.
    let absolute = |name| variable(name).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("skep"))
}

/// The bytes of a file, or of standard input for `-`, if they are fewer than `limit`.
pub fn read_data(path: &Path, limit: usize) -> Result<Vec<u8>, Failure> {
    let mut data = Vec::new();
    let bounded = limit as u64;
    let (shown, result) = if path == Path::new("-") {
        ("standard input".to_owned(), std::io::stdin().lock().take(bounded).read_to_end(&mut data))
    } else {
        let result = File::open(path).and_then(|file| file.take(bounded).read_to_end(&mut data));
        (path.display().to_string(), result)
    };
    result.map_err(|error| {
        let failure = Failure::internal(format!("cannot read {shown}: {error}"));
        match error.kind() {
            ErrorKind::NotFound => failure.with_hint("name a file that is there, or `-` for standard input"),
            ErrorKind::IsADirectory => failure.with_hint("name a file, or `-` for standard input"),
            ErrorKind::PermissionDenied => {
                failure.with_hint("if you may become somebody who can: `sudo cat FILE | skep ... -`")
            }
            _ => failure,
        }
    })?;
    if data.len() >= limit {
        return Err(Failure::refused(
            Code::InvalidArgument,
            format!("{shown} is too large: data must be smaller than {limit} bytes"),
        )
        .with_hint("store a reference to larger data, such as a path or URL"));
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write as _;

    #[test]
    fn the_data_directory_follows_user_and_environment() {
        let check = |root, variables: &[(&str, &str)], expected: Option<&str>| {
            let found = default_data_dir(root, |name| {
                variables.iter().find(|(key, _)| *key == name).map(|(_, value)| PathBuf::from(value))
            });
            assert_eq!(found, expected.map(PathBuf::from), "{root} {variables:?}");
        };
        check(true, &[("HOME", "/root")], Some("/var/lib/skep"));
        check(false, &[("HOME", "/home/a"), ("XDG_STATE_HOME", "/state")], Some("/state/skep"));
        check(false, &[("HOME", "/home/a"), ("XDG_STATE_HOME", "relative")], Some("/home/a/.local/state/skep"));
        check(false, &[("HOME", "/home/a")], Some("/home/a/.local/state/skep"));
        check(false, &[], None);
    }

    #[test]
    fn data_at_the_limit_is_refused_and_below_it_is_read() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100]).unwrap();
        assert_eq!(read_data(file.path(), 101).unwrap(), [7; 100]);
        let failure = read_data(file.path(), 100).unwrap_err();
        assert_eq!(failure.exit as u8, 3);
        assert_eq!(read_data(Path::new("/nonexistent/file"), 100).unwrap_err().exit as u8, 1);
    }
}
