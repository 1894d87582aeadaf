//! The unlock key: where it comes from, and the commands about it.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read, Write as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use serde_json::json;
use zeroize::Zeroizing;

use super::args::{UnlockArgs, UnlockKeyCommand, WriteArgs};
use super::exit::{Ended, Exit, Failure};
use super::session::{Session, unexpected};
use crate::pki::{UNLOCK_KEY_PREFIX, UnlockKey};
use crate::sys::entropy::OsEntropy;
use crate::types::api::{Answer, Call, QueryKind, UnlockRequest, Write};
use crate::types::object::Sensitive;
use crate::types::{Code, Revision};

/// The name of the credential that systemd hands to the service (systemd.exec(5), `LoadCredentialEncrypted=`).
const CREDENTIAL: &str = "skep-unlock-key";
/// An unlock key has 52 characters; a file that is much longer is another file.
const MAX_BYTES: usize = 1024;

/// The unlock key that a command was given: in a file, through a descriptor, or by the service manager. Nobody is asked.
pub fn given(args: &UnlockArgs) -> Result<Option<UnlockKey>, Failure> {
    let credentials = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    let (path, shown) = match (&args.unlock_key_file, args.unlock_key_fd) {
        (Some(path), _) if path == Path::new("-") => return read(&mut io::stdin().lock(), "standard input").map(Some),
        (Some(path), _) => (path.clone(), path.display().to_string()),
        (None, Some(descriptor)) => {
            (PathBuf::from(format!("/proc/self/fd/{descriptor}")), format!("descriptor {descriptor}"))
        }
        (None, None) => match credentials.map(|dir| dir.join(CREDENTIAL)).filter(|path| path.exists()) {
            Some(path) => {
                let shown = path.display().to_string();
                (path, shown)
            }
            None => return Ok(None),
        },
    };
    let mut file = File::open(&path)
        .map_err(|error| Failure::internal(format!("cannot read the unlock key from {shown}: {error}")))?;
    read(&mut file, &shown).map(Some)
}

/// As [`given`]; a person at a terminal is asked if there is none and the directory is locked.
pub fn given_or_asked(args: &UnlockArgs, dir: &Path) -> Result<Option<UnlockKey>, Failure> {
    if !crate::node::is_locked(dir) {
        return Ok(None);
    }
    match given(args)? {
        None if io::stdin().is_terminal() => ask().map(Some),
        given => Ok(given),
    }
}

/// The key on standard input, or what a person types there unseen.
fn ask() -> Result<UnlockKey, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return read(&mut stdin.lock(), "standard input");
    }
    let _ = write!(io::stderr(), "Unlock key: ");
    let _ = io::stderr().flush();
    let typed = {
        let _quiet = Quiet::begin(&stdin)
            .map_err(|error| Failure::internal(format!("cannot make the terminal hide what is typed: {error}")))?;
        type_line(&mut stdin.lock())
    };
    let _ = writeln!(io::stderr());
    let typed = typed.ok_or_else(|| Failure::refused(Code::FailedPrecondition, "no unlock key was typed"))?;
    parse(&typed, "what was typed")
}

/// A terminal that shows nothing and hands over each byte, signals' too, so that it is put right whatever is typed.
struct Quiet<T: AsFd> {
    terminal: T,
    before: Termios,
}

impl<T: AsFd> Quiet<T> {
    fn begin(terminal: T) -> io::Result<Self> {
        let before = tcgetattr(&terminal)?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        tcsetattr(&terminal, OptionalActions::Flush, &quiet)?;
        Ok(Self { terminal, before })
    }
}

impl<T: AsFd> Drop for Quiet<T> {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// What terminals send for Ctrl-C, Ctrl-D, the two keys that erase, and Ctrl-U.
const INTERRUPT: u8 = 0x03;
const END: u8 = 0x04;
const ERASE: u8 = 0x7f;
const BACKSPACE: u8 = 0x08;
const KILL: u8 = 0x15;

/// A line from a terminal that hands over each byte; `None` when it was given up.
fn type_line(input: &mut impl Read) -> Option<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_BYTES));
    loop {
        let mut byte = [0; 1];
        if input.read(&mut byte).ok()? == 0 {
            return None;
        }
        match byte[0] {
            b'\n' | b'\r' => return Some(line),
            INTERRUPT | END => return None,
            ERASE | BACKSPACE => drop(line.pop()),
            KILL => line.clear(),
            byte if line.len() < MAX_BYTES => line.push(byte),
            _ => {}
        }
    }
}

fn read(input: &mut impl Read, shown: &str) -> Result<UnlockKey, Failure> {
    let mut text = Zeroizing::new(Vec::with_capacity(MAX_BYTES + 1));
    input
        .take(MAX_BYTES as u64)
        .read_to_end(&mut text)
        .map_err(|error| Failure::internal(format!("cannot read the unlock key from {shown}: {error}")))?;
    parse(&text, shown)
}

/// Nothing of the text is in the failure: it may be a key with a typing error.
fn parse(text: &[u8], shown: &str) -> Result<UnlockKey, Failure> {
    let parsed = std::str::from_utf8(text).ok().map(str::parse::<UnlockKey>);
    let why = match parsed {
        Some(Ok(key)) => return Ok(key),
        Some(Err(error)) => error.to_string(),
        None => "it is not text".to_owned(),
    };
    let message = format!("{shown} holds no unlock key: {why}");
    Err(Failure::refused(Code::InvalidArgument, message)
        .with_hint(format!("it is what `skep unlock-key show` prints: {UNLOCK_KEY_PREFIX}…")))
}

/// `skep unlock`: `key` was read before the manager was asked anything.
pub fn unlock(session: &mut Session, key: &UnlockKey) -> Ended {
    let request = UnlockRequest { key: Sensitive(key.expose().to_vec()) };
    let attempted = || "cannot unlock this manager".to_owned();
    match session.client.call(Call::Unlock, &request, session.timeout) {
        Ok(Answer::Done) => {}
        Ok(_) => return Err(unexpected()),
        Err(error) => return Err(Failure::from(error).while_attempting(attempted)),
    }
    match session.out.json {
        true => session.out.document(&json!({ "unlocked": true }))?,
        false => session.out.line("unlocked: the manager starts; `skep status` shows how far it is")?,
    };
    Ok(Exit::Done)
}

/// The key for `skep unlock`.
pub fn key_to_unlock_with(args: &UnlockArgs) -> Result<UnlockKey, Failure> {
    let attempted = || "cannot unlock this manager".to_owned();
    let key = match given(args) {
        Ok(Some(key)) => Ok(key),
        Ok(None) => ask(),
        Err(failure) => Err(failure),
    };
    key.map_err(|failure| failure.while_attempting(attempted))
}

/// A new key, for a write.
pub fn generate() -> Sensitive {
    Sensitive(UnlockKey::generate(&mut OsEntropy).expose().to_vec())
}

/// `skep unlock-key`.
pub fn key(session: &mut Session, command: &UnlockKeyCommand) -> Ended {
    match command {
        UnlockKeyCommand::Show => show(session),
        UnlockKeyCommand::Rotate { write } => rotate(session, write),
    }
}

fn rotate(session: &mut Session, args: &WriteArgs) -> Ended {
    session
        .write(args, Write::RotateUnlockKey { key: generate() })
        .map_err(|failure| failure.while_attempting(|| "cannot replace the unlock key".to_owned()))?;
    // Not the key that was sent: a command that was given again has made another, and the first one counts.
    show(session)?;
    tell("the one before opens only managers that have been down since; keep it until all have started again");
    Ok(Exit::Done)
}

/// Prints the unlock key that is in force.
pub fn show(session: &mut Session) -> Ended {
    let (key, version) = current(session)?;
    let Some(key) = key else {
        return Err(Failure::refused(Code::FailedPrecondition, "managers do not lock: there is no unlock key")
            .with_hint("`skep cluster update --autolock` makes them lock"));
    };
    let text = key.to_text();
    match session.out.json {
        true => session.out.document(&json!({ "unlock_key": text.as_str(), "version": version }))?,
        false => session.out.line(&text)?,
    };
    Ok(Exit::Done)
}

fn current(session: &mut Session) -> Result<(Option<UnlockKey>, Revision), Failure> {
    let answer = session
        .query(QueryKind::UnlockKey)
        .map_err(|failure| failure.while_attempting(|| "cannot show the unlock key".to_owned()))?;
    let Answer::UnlockKey { key, version } = answer else { return Err(unexpected()) };
    let key = key.map(|key| UnlockKey::from_bytes(&key.0).ok_or_else(unexpected)).transpose()?;
    Ok((key, version))
}

/// Says something beside the answer, for people.
pub fn tell(text: &str) {
    // Nobody may be left to read it.
    let _ = writeln!(io::stderr(), "hint: {text}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const TEXT: &str = "SWMKEY-1-AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

    #[test]
    fn a_key_is_read_from_a_file_and_nothing_of_another_text_is_shown() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let attempt = |text: &str| {
            std::fs::write(&path, text).unwrap();
            given(&UnlockArgs { unlock_key_file: Some(path.clone()), unlock_key_fd: None })
        };
        assert_eq!(attempt(&format!("{TEXT}\n")).unwrap().unwrap().to_text().as_str(), TEXT);
        let failure = attempt(&TEXT[..50]).unwrap_err();
        assert_eq!(failure.exit, Exit::Refused);
        assert!(!failure.text().contains("AAECAw") && failure.hint.contains("unlock-key show"), "{failure:?}");
        assert_eq!(attempt(&"x".repeat(5000)).unwrap_err().exit, Exit::Refused);
        let missing = UnlockArgs { unlock_key_file: Some(dir.path().join("none")), unlock_key_fd: None };
        assert_eq!(given(&missing).unwrap_err().exit, Exit::Internal);
    }

    #[test]
    fn a_typed_line_is_mended_and_given_up_as_on_any_terminal() {
        let check = |typed: &[u8], expected: Option<&[u8]>| {
            assert_eq!(type_line(&mut &typed[..]).as_deref().map(Vec::as_slice), expected, "{typed:?}");
        };
        check(b"abc\n", Some(b"abc"));
        check(b"abd\x7fc\r", Some(b"abc"));
        check(b"xyz\x15abc\n", Some(b"abc"));
        check(b"\x08\n", Some(b""));
        check(b"abc\x03", None);
        check(b"abc\x04", None);
        check(b"abc", None);
    }
}
