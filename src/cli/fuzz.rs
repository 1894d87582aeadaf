//! For `tests/fuzz`: what reads words of the command line.

use clap::Parser as _;

pub use super::advertise::{check as address, choose as advertised};
pub use super::parse::*;

/// Whether these words, the program's name first, are a command line.
pub fn command_line(words: &[&str]) -> bool {
    super::args::Cli::try_parse_from(words).is_ok()
}
