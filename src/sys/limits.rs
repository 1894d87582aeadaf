//! What the system allows this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lets this process open `wanted` files and sockets at a time, or as many as it may: shells and service managers begin with
/// 1024 for the sake of programs that use `select`. Gives what is allowed now; where it is too few, opening one fails.
pub fn allow_open_files(wanted: u64) -> u64 {
    let before = getrlimit(Resource::Nofile);
    let limit = raised(before, wanted);
    let is_set = limit == before || setrlimit(Resource::Nofile, limit).is_ok();
    let now = if is_set { limit } else { before };
    now.current.unwrap_or(u64::MAX)
}

/// `limit`, raised to `wanted` as far as its maximum lets it.
fn raised(limit: Rlimit, wanted: u64) -> Rlimit {
    let allowed = limit.maximum.map_or(wanted, |maximum| wanted.min(maximum));
    Rlimit { current: limit.current.map(|current| current.max(allowed)), ..limit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_raised_as_far_as_its_maximum_and_never_lowered() {
        let check = |current, maximum, wanted| raised(Rlimit { current, maximum }, wanted).current;
        assert_eq!(check(Some(1024), Some(4096), 2000), Some(2000));
        assert_eq!(check(Some(1024), Some(4096), 65_536), Some(4096));
        assert_eq!(check(Some(1024), None, 65_536), Some(65_536));
        assert_eq!(check(Some(1024), Some(4096), 10), Some(1024));
        assert_eq!(check(None, None, 65_536), None);
        // Whatever it is here, this asks for nothing.
        assert!(allow_open_files(0) > 0);
    }
}
