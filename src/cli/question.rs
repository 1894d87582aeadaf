//! Questions before what cannot be undone.

use std::io::{BufRead, Write as _};

use super::exit::Failure;
use crate::types::Code;

/// Goes on only if the answer to `question`, read from `input`, is `yes`, or `assumed` says so.
pub fn ask(question: &str, assumed: bool, mut input: impl BufRead) -> Result<(), Failure> {
    if assumed {
        return Ok(());
    }
    // Whoever does not see the question does not answer it either.
    let _ = write!(std::io::stderr(), "{question}\nType `yes` to go on:\n");
    let _ = std::io::stderr().flush();
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
            assert_eq!(ask("?", assumed, answer.as_bytes()).is_ok(), expected, "{answer:?} {assumed}");
        }
    }
}
