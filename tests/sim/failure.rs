//! What a checker found, as a value: which checker it was and what it saw.
//!
//! A checker deep inside the world unwinds with a [`Failure`] and no panic message; [`catch`] makes a `Result` of it at
//! the edge. A panic of the product, or of the simulator itself, is caught the same way and comes out under the name
//! [`PANIC`].

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// The checker of everything that panics by itself.
pub const PANIC: &str = "panic";

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Which checker says so.
    pub checker: &'static str,
    /// What it saw.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.checker, self.message)
    }
}

/// Ends the run: `checker` saw a broken promise.
pub fn fail(checker: &'static str, message: impl Into<String>) -> ! {
    resume_unwind(Box::new(Failure { checker, message: message.into() }))
}

/// Ends the run unless a promise holds: `ensure!(checker, condition, "what else")`.
macro_rules! ensure {
    ($checker:expr, $condition:expr, $($message:tt)+) => {
        if !$condition {
            $crate::failure::fail($checker, format!($($message)+));
        }
    };
}
pub(crate) use ensure;

/// Runs something to its end or its first broken promise.
pub fn catch<T>(run: impl FnOnce() -> T) -> Result<T, Failure> {
    // What was unwound through is dropped, so that nothing half done is seen again.
    catch_unwind(AssertUnwindSafe(run)).map_err(of_panic)
}

fn of_panic(payload: Box<dyn Any + Send>) -> Failure {
    let payload = match payload.downcast::<Failure>() {
        Ok(failure) => return *failure,
        Err(payload) => payload,
    };
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
    Failure { checker: PANIC, message: text.unwrap_or_else(|| "a panic without a text".to_owned()) }
}

mod tests {
    use super::*;

    #[test]
    fn a_broken_promise_and_a_panic_come_out_as_values() {
        assert_eq!(catch(|| 7), Ok(7));
        let broken = catch(|| ensure!("log prefix", 1 > 2, "{} is not {}", 1, 2));
        assert_eq!(broken.unwrap_err().to_string(), "log prefix: 1 is not 2");
        let panicked = catch(|| panic!("{}", 5)).unwrap_err();
        assert_eq!((panicked.checker, panicked.message.as_str()), (PANIC, "5"));
    }
}
