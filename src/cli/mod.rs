//! What a person types and reads: the grammar of the command line, tables and JSON, exit codes, and the daemon's
//! surroundings (logger, signals, service manager).
//!
//! [`main`] is the whole of the binary. Most commands are a conversation with a running manager over its control socket,
//! through [`crate::client`]. `run` is the daemon itself; `recover`, `backup inspect`, `backup restore`, `wal` and
//! `snapshot` work on files of one that does not run; `doctor` and `debug bundle` take whatever they can get of either.
//!
//! What people and scripts may rely on:
//!
//! - Exit codes ([`Exit`]) and the JSON of `--json` are stable; both say the same as the text does.
//! - Messages are `skep: what was attempted: why`, then `hint:` with the next command to type. With `--json` an error is
//!   one object on standard error: `code`, `message`, `hint`, and `change_id` for a write whose outcome is not known.
//! - A reader that closes standard output early (`| head`) ends a command quietly.
//! - What other people stored is printed without its control characters; secrets are not printed at all.
//!
//! A passphrase or an unlock key is never an argument: it is read from a file, a descriptor, a credential of the service
//! manager, or a terminal that does not show it.
//!
//! A log that the disk cannot deliver (SIGBUS) ends any command with the file, the offset and exit code 5.
//!
//! The logger, the signal handlers and the service manager's notifications are set up here and nowhere else: a program
//! that embeds a node has its own.
//!
//! Not here: decisions. Whether a name is valid or a change allowed is for the manager to say; the command line refuses
//! only what cannot be sent.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

mod advertise;
mod args;
mod backup;
mod bench;
mod bundle;
mod ca;
mod commands;
mod daemon;
mod doctor;
mod exit;
#[doc(hidden)]
pub mod fuzz;
mod logger;
mod nodes;
mod notify;
mod objects;
mod output;
mod parse;
mod question;
mod raft;
mod recover;
mod run;
mod session;
mod snapshot;
mod status;
mod tar;
mod tokens;
mod unlock;
mod wal;
mod watch;

use args::{Cli, Command};
pub use daemon::{Daemon, Options, Stopped};
use exit::Ended;
pub use exit::{Exit, Failure};
use output::Output;
use session::Session;

/// The binary: reads the process's arguments, does what they say, and gives the exit code.
pub fn main() -> ExitCode {
    // Every command that reads a log reads it through a map: `run`, and those that look at a damaged one.
    if let Err(error) = crate::wal::report_media_errors() {
        eprintln!("skep: cannot tell a failing disk from other faults: {error}");
    }
    let arguments: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return not_parsed(&error, &arguments).into(),
    };
    let json = cli.common.json;
    match dispatch(cli) {
        Ok(exit) => exit.into(),
        Err(failure) => {
            complain(&failure, json);
            failure.exit.into()
        }
    }
}

fn dispatch(cli: Cli) -> Ended {
    let mut out = Output::new(Box::new(std::io::stdout()), cli.common.json);
    match &cli.command {
        Command::Run(args) => return run::run(&cli.common, args, daemon::start),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "skep", &mut script);
            out.text(&String::from_utf8_lossy(&script))?;
            out.flush()?;
            return Ok(Exit::Done);
        }
        Command::Doctor => {
            let exit = doctor::run(&cli.common, &mut out)?;
            out.flush()?;
            return Ok(exit);
        }
        Command::Debug(args::DebugCommand::Bundle(args)) => {
            let exit = bundle::run(&cli.common, args, &mut out)?;
            out.flush()?;
            return Ok(exit);
        }
        Command::Wal(command) => {
            let exit = wal::run(&mut out, command)?;
            out.flush()?;
            return Ok(exit);
        }
        Command::Snapshot(command) => {
            let exit = snapshot::run(&cli.common, &mut out, command)?;
            out.flush()?;
            return Ok(exit);
        }
        Command::Backup(command) => return backup::run(&cli.common, command, out),
        Command::Ca(command) => return ca::run(&cli.common, command, out),
        Command::Recover(args) => {
            let exit = recover::run(&cli.common, args, &mut out)?;
            out.flush()?;
            return Ok(exit);
        }
        Command::Bench(command) => {
            let exit = bench::run(&cli.common, command, &mut out)?;
            out.flush()?;
            return Ok(exit);
        }
        _ => {}
    }
    if let Command::Unlock(args) = &cli.command {
        // Before a manager is asked: a person who types keeps no connection waiting.
        let key = unlock::key_to_unlock_with(args)?;
        let mut session = Session::open(&cli.common, out)?;
        let exit = unlock::unlock(&mut session, &key)?;
        session.out.flush()?;
        return Ok(exit);
    }
    let input = commands::input(&cli.command)?;
    let mut session = Session::open(&cli.common, out)?;
    let exit = ask(&mut session, &cli.command, input)?;
    session.out.flush()?;
    Ok(exit)
}

/// Commands that are questions to a manager; `input` is what the command read.
fn ask(session: &mut Session, command: &Command, input: Vec<u8>) -> Ended {
    use crate::types::Kind;
    match command {
        Command::Status => status::status(session),
        Command::Members => nodes::members(session),
        Command::Watch(args) => watch::watch(session, args),
        Command::Node(command) => nodes::node(session, command),
        Command::Config(command) => commands::data(session, Kind::Config, command, input),
        Command::Secret(command) => commands::data(session, Kind::Secret, command, input),
        Command::Extension(command) => commands::extension(session, command),
        Command::Resource(command) => commands::resource(session, command, input),
        Command::Cluster(command) => commands::cluster(session, command),
        Command::Token(command) => tokens::token(session, command),
        Command::UnlockKey(command) => unlock::key(session, command),
        Command::Raft(command) => raft::raft(session, command),
        Command::Leave(args) => raft::leave(session, args),
        Command::Run(_)
        | Command::Unlock(_)
        | Command::Completions { .. }
        | Command::Doctor
        | Command::Debug(_)
        | Command::Wal(_)
        | Command::Snapshot(_)
        | Command::Recover(_)
        | Command::Backup(_)
        | Command::Ca(_)
        | Command::Bench(_) => {
            unreachable!("dispatch has handled the commands that ask nobody, or in their own way")
        }
    }
}

/// A command line that is wrong, or a question for help.
fn not_parsed(error: &clap::Error, arguments: &[OsString]) -> Exit {
    if !error.use_stderr() {
        // A reader that left early is no failure here either.
        let _ = error.print();
        return Exit::Done;
    }
    let text = error.render().to_string();
    let text = text.strip_prefix("error: ").unwrap_or(&text);
    let text = text.replace("For more information, try '--help'.", "hint: add --help to see what can be given");
    if arguments.iter().any(|argument| argument == "--json") {
        let first = text.lines().next().unwrap_or_default();
        complain(&Failure::usage(first).with_hint("add --help to see what can be given"), true);
    } else if text.starts_with("skep")
        || error.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
    {
        let _ = write!(std::io::stderr(), "{text}");
    } else {
        let _ = write!(std::io::stderr(), "skep: {text}");
    }
    Exit::Usage
}

fn complain(failure: &Failure, json: bool) {
    // Nobody may be left to read standard error; the exit code still tells.
    let _ = match json {
        true => writeln!(std::io::stderr(), "{}", failure.json()),
        false => write!(std::io::stderr(), "{}", failure.text()),
    };
}

#[cfg(test)]
mod tests;
