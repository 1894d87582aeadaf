//! Hands raft-rs's slog records to `log`.

use std::fmt::{Arguments, Write as _};

use slog::{Drain, KV as _, Key, Level, Logger, Never, OwnedKVList, Record, Serializer, o};

/// A logger for raft-rs that writes through the `log` facade.
pub fn logger() -> Logger {
    Logger::root(Bridge, o!())
}

struct Bridge;

impl Drain for Bridge {
    type Ok = ();
    type Err = Never;

    fn log(&self, record: &Record<'_>, values: &OwnedKVList) -> Result<(), Never> {
        // An election or a membership change writes several lines; operators read our own line for each.
        let level = match record.level() {
            Level::Critical | Level::Error => log::Level::Error,
            Level::Warning => log::Level::Warn,
            Level::Info => log::Level::Debug,
            Level::Debug | Level::Trace => log::Level::Trace,
        };
        if level > log::max_level() {
            return Ok(());
        }
        let mut text = record.msg().to_string();
        let mut fields = Fields(&mut text);
        let _ = record.kv().serialize(record, &mut fields);
        let _ = values.serialize(record, &mut fields);
        log::log!(target: "raft", level, "{text}");
        Ok(())
    }
}

struct Fields<'a>(&'a mut String);

/// Fields in which raft-rs prints whole messages and entries: what people stored, secrets too, has no place in a log.
const CONTENTS: [&str; 2] = ["msg", "ents"];

impl Serializer for Fields<'_> {
    fn emit_arguments(&mut self, key: Key, value: &Arguments<'_>) -> slog::Result {
        if CONTENTS.contains(&key) {
            return Ok(());
        }
        let _ = write!(self.0, " {key}={value}");
        Ok(())
    }
}
