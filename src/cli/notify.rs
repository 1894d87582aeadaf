//! Telling the service manager how the daemon fares: the protocol of sd_notify(3).
//!
//! Datagrams of `KEY=VALUE` lines to the socket that `NOTIFY_SOCKET` names: a path, or with `@` in front an abstract
//! name. Without that variable nothing is sent.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

/// The way to the service manager, if there is one.
#[derive(Debug, Default)]
pub struct Notify {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment says.
    pub fn from_environment(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let socket = match variable("NOTIFY_SOCKET") {
            Some(name) if !name.is_empty() => match connect(name.as_bytes()) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    log::warn!("the service manager's socket {} cannot be reached: {error}", name.to_string_lossy());
                    None
                }
            },
            _ => None,
        };
        let number = |name| variable(name).and_then(|text| text.to_str().and_then(|text| text.parse::<u64>().ok()));
        // The variables are inherited: a WATCHDOG_PID of another process says that they are not meant for us.
        let ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&us| ours && us > 0).map(Duration::from_micros);
        Self { socket, watchdog }
    }

    /// How often to say that all is well: half of the time after which the service manager acts.
    pub fn interval(&self) -> Option<Duration> {
        self.socket.as_ref().and(self.watchdog).map(|limit| limit / 2)
    }

    /// The daemon listens.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}\n", one_line(status)));
    }

    /// The daemon stops by itself or was asked to.
    pub fn stopping(&self, status: &str) {
        self.send(&format!("STOPPING=1\nSTATUS={}\n", one_line(status)));
    }

    /// The daemon makes progress.
    pub fn alive(&self) {
        self.send("WATCHDOG=1\n");
    }

    fn send(&self, message: &str) {
        if let Some(socket) = &self.socket
            && let Err(error) = socket.send(message.as_bytes())
        {
            log::warn!("the service manager cannot be told {:?}: {error}", message.trim_end());
        }
    }
}

fn connect(name: &[u8]) -> io::Result<UnixDatagram> {
    let address = match name.strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(std::ffi::OsStr::from_bytes(name))?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A service manager that does not read must not stop the daemon.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let mut bytes = [0; 4096];
        let count = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    }

    fn environment(pairs: Vec<(&'static str, String)>) -> impl Fn(&str) -> Option<OsString> {
        move |name| pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
    }

    #[test]
    fn a_socket_of_either_sort_hears_ready_alive_and_stopping() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = UnixDatagram::bind(&path).unwrap();
        let name = format!("skep-test-{}", std::process::id());
        let by_name = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        for (server, variable) in [(by_path, path.display().to_string()), (by_name, format!("@{name}"))] {
            let notify = Notify::from_environment(environment(vec![("NOTIFY_SOCKET", variable)]));
            notify.ready("listening on 10.0.0.7:4242\nREADY=0");
            assert_eq!(received(&server), "READY=1\nSTATUS=listening on 10.0.0.7:4242 READY=0\n");
            notify.alive();
            assert_eq!(received(&server), "WATCHDOG=1\n");
            notify.stopping("bye");
            assert_eq!(received(&server), "STOPPING=1\nSTATUS=bye\n");
            assert_eq!(notify.interval(), None);
        }
    }

    #[test]
    fn the_watchdog_is_asked_for_this_process_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let _server = UnixDatagram::bind(&path).unwrap();
        let interval = |pid: Option<u32>, usec: &str| {
            let mut pairs = vec![("NOTIFY_SOCKET", path.display().to_string()), ("WATCHDOG_USEC", usec.to_owned())];
            pairs.extend(pid.map(|pid| ("WATCHDOG_PID", pid.to_string())));
            Notify::from_environment(environment(pairs)).interval()
        };
        let half = Some(Duration::from_secs(5));
        assert_eq!(interval(None, "10000000"), half);
        assert_eq!(interval(Some(std::process::id()), "10000000"), half);
        assert_eq!(interval(Some(1), "10000000"), None);
        assert_eq!(interval(None, "0"), None);
        assert_eq!(interval(None, "soon"), None);
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        let notify = Notify::from_environment(|_| None);
        notify.ready("");
        assert_eq!(notify.interval(), None);
        Notify::from_environment(environment(vec![("NOTIFY_SOCKET", "/nonexistent/socket".to_owned())])).alive();
    }
}
