//! Listening: for peers, for the command line, for probes.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{Config, StartError, StartFailure};

/// `sun_path` holds this many bytes and a zero.
const MAX_SOCKET_PATH: usize = 107;

/// Everything a node listens on.
#[derive(Debug)]
pub struct Sockets {
    /// For peers, until the manager takes it; `None` for a worker.
    pub listen: Option<TcpListener>,
    /// For the command line.
    pub unix: UnixListener,
    /// `unix` belongs to a group.
    pub of_group: bool,
    /// Where `unix` is.
    pub path: PathBuf,
    /// For probes.
    pub http: Option<TcpListener>,
    /// What others are told.
    pub advertise: String,
}

/// Binds everything, before anything is written: a port in use must not leave half a node behind. A worker has no port
/// for peers.
pub fn bind(config: &Config, is_worker: bool) -> Result<Sockets, StartError> {
    let (listen, advertise) = match is_worker {
        true => (None, String::new()),
        false => bind_listen(config).map(|(listen, advertise)| (Some(listen), advertise))?,
    };
    let http = config.http.as_deref().map(|addr| bind_tcp(addr, "--http")).transpose()?;
    let (unix, path) = bind_unix(config)?;
    let of_group = config.socket_group.is_some();
    Ok(Sockets { listen, unix, of_group, path, http, advertise })
}

/// Listens for peers; where, and what others are told.
pub fn bind_listen(config: &Config) -> Result<(TcpListener, String), StartError> {
    let listen = bind_tcp(&config.listen, "--listen")?;
    let local = listen.local_addr().map_err(|error| internal(format!("cannot listen on {}", config.listen), error))?;
    let advertise = advertise(config, local);
    Ok((listen, advertise))
}

fn internal(what: String, error: impl std::fmt::Display) -> StartError {
    StartError::new(StartFailure::Internal, what, error, "")
}

fn bind_tcp(addr: &str, flag: &str) -> Result<TcpListener, StartError> {
    let what = format!("cannot listen on {addr}");
    let addresses: Vec<SocketAddr> = addr
        .to_socket_addrs()
        .map_err(|error| StartError::refused(&what, error, format!("give {flag} as HOST:PORT")))?
        .collect();
    TcpListener::bind(&addresses[..]).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("another process listens there: see `ss -ltnp`, or choose another port with {flag}")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("this machine has no such address: choose one of its own with {flag}")
            }
            io::ErrorKind::PermissionDenied => format!("ports below 1024 need root: choose another with {flag}"),
            _ => String::new(),
        };
        let why = match error.kind() {
            io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
            io::ErrorKind::AddrNotAvailable => "the address is not available".to_owned(),
            _ => error.to_string(),
        };
        StartError::new(StartFailure::Internal, &what, why, hint)
    })
}

/// Port 0 in what is advertised means the port listened on; no advertised address means the one listened on.
fn advertise(config: &Config, local: SocketAddr) -> String {
    match config.advertise.as_deref() {
        None => local.to_string(),
        Some(addr) => match addr.rsplit_once(':') {
            Some((host, "0")) => format!("{host}:{}", local.port()),
            _ => addr.to_owned(),
        },
    }
}

fn bind_unix(config: &Config) -> Result<(UnixListener, PathBuf), StartError> {
    let path = config.socket.clone().unwrap_or_else(|| config.data_dir.join("skep.sock"));
    let what = format!("cannot make the control socket {}", path.display());
    if config.socket_group.is_some() && path.starts_with(&config.data_dir) {
        let why = "the data directory is closed to the group that --socket-group names";
        return Err(StartError::refused(what, why, "put the socket elsewhere, such as --socket /run/skep/skep.sock"));
    }
    match UnixStream::connect(reachable(&path)?.0) {
        Ok(_) => {
            let hint = "talk to that one with --socket, or choose another path";
            return Err(StartError::refused(what, "another process answers there", hint));
        }
        // Connecting to a file that is no socket is refused as well, and that file is somebody's.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused && is_socket(&path) => {
            std::fs::remove_file(&path).map_err(|error| internal(what.clone(), error))?;
        }
        Err(_) => {}
    }
    let (reach, _dir) = reachable(&path)?;
    let listener = UnixListener::bind(&reach).map_err(|error| {
        let hint = match error.kind() {
            io::ErrorKind::NotFound => "its directory does not exist: make it, or choose another with --socket",
            io::ErrorKind::AddrInUse => {
                "a file that is no socket stands there: move it, or choose another with --socket"
            }
            _ => "choose another path with --socket",
        };
        StartError::new(StartFailure::Internal, &what, error, hint)
    })?;
    if let Some(group) = &config.socket_group {
        let id = group_id(group)
            .ok_or_else(|| StartError::refused(&what, format!("there is no group {group}"), "see `getent group`"))?;
        std::os::unix::fs::chown(&path, None, Some(id)).map_err(|error| {
            StartError::new(StartFailure::Internal, &what, error, "run as root, or as a member of the group")
        })?;
    }
    // The group is set before it is let in.
    let mode = if config.socket_group.is_some() { 0o660 } else { 0o600 };
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))
        .map_err(|error| internal(what.clone(), error))?;
    Ok((listener, path))
}

fn is_socket(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket())
}

/// A name for a socket that the system takes: a long path is reached through its directory's descriptor.
fn reachable(path: &Path) -> Result<(PathBuf, Option<std::fs::File>), StartError> {
    if path.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok((path.to_owned(), None));
    }
    let what = format!("cannot make the control socket {}", path.display());
    let hint = "choose a shorter path with --socket";
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(StartError::refused(what, "it has no file name", hint));
    };
    let dir = std::fs::File::open(dir).map_err(|error| StartError::new(StartFailure::Internal, &what, error, hint))?;
    let short = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd())).join(name);
    if short.as_os_str().len() > MAX_SOCKET_PATH {
        return Err(StartError::refused(what, "its name is too long", hint));
    }
    Ok((short, Some(dir)))
}

/// A group's number, from `/etc/group` or itself a number.
fn group_id(group: &str) -> Option<u32> {
    if let Ok(id) = group.parse() {
        return Some(id);
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let mut fields = groups.lines().map(|line| line.split(':'));
    fields.find_map(|mut fields| if fields.next()? == group { fields.nth(1)?.parse().ok() } else { None })
}
