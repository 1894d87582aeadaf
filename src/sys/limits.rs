//! What the system allows this process.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Lets this process open `wanted` files and sockets at a time, or as many as it may: shells and service managers begin with
/// 1024 for the sake of programs that use `select`. Gives what is allowed now; where it is too few, opening one fails.
pub fn allow_open_files(wanted: u64) -> u64 {
    let before = getrlimit(Resource::Nofile);
    let Some(current) = before.current.filter(|current| *current < wanted) else {
        return before.current.unwrap_or(u64::MAX);
    };
    let mut limit = before;
    let allowed = before.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    limit.current = Some(allowed);
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => allowed,
        Err(_) => current,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_as_far_as_the_system_lets_us_and_never_lowered() {
        let before = getrlimit(Resource::Nofile);
        let is = |limit: u64| getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX) == limit;
        let few = allow_open_files(1);
        assert!(is(few) && before.current.is_none_or(|current| current == few));
        let most = allow_open_files(u64::MAX - 1);
        assert!(is(most) && most >= few);
        assert!(before.maximum.is_none_or(|maximum| most == maximum));
    }
}
