//! `skep wal`: a look at a log on disk, without a manager.

use super::args::WalCommand;
use super::exit::{Exit, Failure};
use super::output::Output;

/// `skep wal inspect`.
pub fn run(_out: &mut Output, command: &WalCommand) -> Result<Exit, Failure> {
    let WalCommand::Inspect { dir } = command;
    Err(Failure::internal(format!("cannot read {}", dir.display())))
}
