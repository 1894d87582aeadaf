//! Reaching a unix socket, whatever the length of its path.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use socket2::{Domain, SockAddr, Socket, Type};

/// The longest path that fits into a unix socket address with its terminating zero (unix(7)).
pub(super) const MAX_SOCKET_PATH: usize = 107;

/// Connects to the stream socket at `path`. A path that is too long for the system is reached through a descriptor of
/// its directory; `InvalidInput` when even the file's name is too long for that.
pub fn connect_unix(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return connect_short(path, timeout);
    }
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let directory = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    if short.as_os_str().as_bytes().len() > MAX_SOCKET_PATH {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the socket's file name is too long for the system"));
    }
    connect_short(&short, timeout)
}

fn connect_short(path: &Path, timeout: Duration) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Bounds the wait for a place in the listener's backlog: unix(7) has no other timeout for connect.
    socket.set_write_timeout(Some(timeout.max(Duration::from_millis(1))))?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_socket_below_a_long_path_is_reached_and_a_long_name_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        // Bound through the directory too: no address holds the whole path.
        let handle = std::fs::File::open(&deep).unwrap();
        let _listener = UnixListener::bind(format!("/proc/self/fd/{}/skep.sock", handle.as_raw_fd())).unwrap();
        assert!(deep.join("skep.sock").as_os_str().len() > MAX_SOCKET_PATH);
        connect_unix(&deep.join("skep.sock"), Duration::from_secs(1)).unwrap();

        let error = connect_unix(&deep.join("n".repeat(120)), Duration::from_secs(1)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
