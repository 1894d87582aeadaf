//! The daemon's logger: time, level, thread, message, on standard error.

use std::io::Write as _;

use crate::sys::time::wall_ms;
use crate::types::Timestamp;

/// Installs it. A second call, and a program that has a logger already, keep the first one.
pub fn install(level: log::LevelFilter) {
    let _ = env_logger::Builder::new()
        .filter_level(level)
        .format(|out, record| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or("-");
            writeln!(out, "{} {:5} {name}: {}", Timestamp(wall_ms()), record.level(), record.args())
        })
        .try_init();
}
