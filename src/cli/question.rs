//! Questions before what cannot be undone.

use std::io::{self, BufRead, Write};

use super::exit::Failure;
use crate::types::Code;

/// Asks on standard error and reads the answer from standard input: goes on only if it is `yes`, or `assumed` says so.
pub fn ask(question: &str, assumed: bool) -> Result<(), Failure> {
    ask_with(question, assumed, io::stdin().lock(), io::stderr())
}

fn ask_with(question: &str, assumed: bool, mut input: impl BufRead, mut output: impl Write) -> Result<(), Failure> {
    if assumed {
        return Ok(());
    }
    // Whoever does not see the question does not answer it either.
    let _ = write!(output, "{question}\nType `yes` to go on:\n").and_then(|()| output.flush());
    let mut answer = String::new();
    let read = input.read_line(&mut answer);
    match read {
        Ok(_) if answer.trim() == "yes" => Ok(()),
        _ => Err(Failure::refused(Code::FailedPrecondition, "it was not answered with yes; nothing was changed")
            .with_hint("answer `yes`, or give --yes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_yes_is_yes() {
        for (answer, assumed, expected) in [
            ("yes\n", false, true),
            ("yes", false, true),
            (" yes \n", false, true),
            ("", false, false),
            ("y\n", false, false),
            ("yes please\n", false, false),
            ("no\nyes\n", false, false),
            ("", true, true),
        ] {
            let mut shown = Vec::new();
            let answered = ask_with("Sure?", assumed, answer.as_bytes(), &mut shown);
            assert_eq!(answered.is_ok(), expected, "{answer:?} {assumed}");
            assert_eq!(shown.starts_with(b"Sure?\n"), !assumed);
        }
    }
}
