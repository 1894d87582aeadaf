//! For `tests/fuzz`: what reads the files of the state directory and judges hellos.

pub use super::dir::{DataDir, NodeFile, Phase};
pub use super::greeting::{Greetings, Verdict};
