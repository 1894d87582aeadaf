//! The grammar as a whole.

#![allow(clippy::unwrap_used)]

use super::*;

/// The help of a command and of all below it.
fn help(command: &mut clap::Command, path: &str, text: &mut String) {
    let path = if path.is_empty() { command.get_name().to_owned() } else { format!("{path} {}", command.get_name()) };
    let mut shown = command.clone().bin_name(&path).term_width(100);
    text.push_str(&format!("==== {path}\n{}\n", shown.render_help()));
    for below in command.get_subcommands_mut() {
        help(below, &path, text);
    }
}

#[test]
fn the_help_of_every_command_is_as_written_down() {
    let mut command = Cli::command();
    command.build();
    let mut text = String::new();
    help(&mut command, "", &mut text);
    // The common options are the same everywhere: once is enough to read.
    let mut seen = false;
    let mut kept = Vec::new();
    let mut skipping = false;
    for line in text.lines() {
        if line == "Common options:" {
            skipping = std::mem::replace(&mut seen, true);
        } else if line.starts_with("==== ") {
            skipping = false;
        }
        if !skipping {
            kept.push(line.trim_end());
        }
    }
    let text = kept.join("\n") + "\n";
    if std::env::var_os("SKEP_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/src/cli/help.txt"), &text).unwrap();
    }
    assert!(text == include_str!("help.txt"), "the help changed; if that is right, run the tests with SKEP_BLESS=1");
}

#[test]
fn the_grammar_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn common_flags_stand_after_any_command() {
    for line in [
        "status --json --stale --timeout 1m --socket /s --data-dir /d",
        "config create a - --label x=y --json --timeout 500ms",
        "--json config ls",
        "secret update a --label x=y --label-rm z --if-version 7",
        "config update a --label-rm z",
        "extension create e --description text",
        "resource create r f --kind e --label a=b --index c=d",
        "resource update r - --if-version 3 --change-id 0000000000000000000000000@4",
        "cluster update --snapshot-bytes 64MiB --keep-bytes 1GiB --cert-expiry 90d --if-version 9",
        "node ls -q --filter name=m",
        "node promote a b --wait --timeout 1m",
        "node demote a --change-id 0000000000000000000000000@4",
        "node rm --force a b --wait",
        "node update a --availability drain --label x=y --label-rm z --if-version 3",
        "token show --role worker",
        "ca show --json",
        "ca rotate --cert f --key - --skip m3 --skip m4 --wait --change-id 0000000000000000000000000@4",
        "raft transfer m2",
        "leave --force",
        "backup save f --stale --passphrase-file p --force",
        "backup save - --passphrase-fd 3",
        "backup inspect f --json",
        "backup restore f --data-dir /d --advertise h:1 --name n --dry-run --yes --passphrase-file p",
        "recover --data-dir /d --advertise h:1 --from-snapshot --yes --dry-run --json",
        "watch --from 7 --kind config --kind secret",
        "bench write --clients 4 --total 10 --size 1KiB --socket /a --socket /b",
        "run --data-dir /d --token-file - --log debug",
        "wal inspect /d",
        "wal repair /d --dry-run --yes",
        "snapshot inspect /d/raft/snap-000000000001 --json --data-dir /d",
        "completions bash",
    ] {
        let parsed = Cli::try_parse_from(["skep"].into_iter().chain(line.split(' ')));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn wrong_command_lines_are_refused() {
    for line in [
        "config create a",
        "config update a",
        "cluster update",
        "resource create r f",
        "status --timeout 5",
        "watch --kind nonsense",
        "bench write --clients 0",
        "bench write --size 2MiB",
        "run --token T --token-file F",
        "run --profile moon",
        "extension update e",
        "secret rm",
        "backup save",
        "backup save f --passphrase-file p --passphrase-fd 3",
        "frob",
    ] {
        let error = Cli::try_parse_from(["skep"].into_iter().chain(line.split(' '))).unwrap_err();
        assert!(error.use_stderr(), "{line}");
    }
}

#[test]
fn an_operation_on_several_sockets_is_for_bench_only() {
    let cli = Cli::try_parse_from(["skep", "status", "--socket", "/a", "--socket", "/b"]).unwrap();
    assert_eq!(dispatch(cli).unwrap_err().exit, Exit::Usage);
}

#[test]
fn status_succeeds_on_a_manager_that_is_ready_and_on_no_other() {
    for (state, exit) in [
        ("ready", Exit::Done),
        ("joining", Exit::Unavailable),
        ("no leader", Exit::Unavailable),
        ("", Exit::Unavailable),
    ] {
        assert_eq!(status::status_exit(state), exit, "{state}");
    }
}

#[test]
fn what_a_command_sends_is_read_before_a_manager_is_sought() {
    let line = ["skep", "config", "create", "web", "/nonexistent/file", "--socket", "/nonexistent/socket"];
    let failure = dispatch(Cli::try_parse_from(line).unwrap()).unwrap_err();
    assert_eq!(failure.attempted, "cannot create config web");
    assert!(failure.message.starts_with("cannot read /nonexistent/file"), "{}", failure.message);
    assert!(failure.hint.contains("a file that is there"), "{}", failure.hint);
}

#[test]
fn a_join_token_is_not_printed() {
    let cli = Cli::try_parse_from(["skep", "run", "--join", "h:1", "--token", "PLANTED-SECRET"]).unwrap();
    let shown = format!("{cli:?}");
    assert!(shown.contains("h:1") && !shown.contains("PLANTED-SECRET"), "{shown}");
    assert!(!shown.contains(&format!("{:?}", b"PLANTED-SECRET")[1..20]), "{shown}");
}

/// Every command that a string of the program names in backquotes, with the file that does.
fn named_commands() -> Vec<(String, String)> {
    let begin = format!("`{} ", "skep");
    let mut found = Vec::new();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let code: Vec<&str> = source.lines().map(str::trim).filter(|line| !line.starts_with("//")).collect();
                // A line that ends with a backslash goes on where the next one begins.
                let code = code.join("\n").replace("\\\n", "");
                for part in code.split(begin.as_str()).skip(1) {
                    let line = part.split('`').next().unwrap();
                    found.push((line.to_owned(), path.display().to_string()));
                }
            }
        }
    }
    found
}

/// Walks the grammar along the words as far as they are given; placeholders stand for arguments.
fn check_command(grammar: &clap::Command, line: &str) -> Result<(), String> {
    let (mut current, mut arguments) = (grammar, 0);
    let mut words = line.split_whitespace();
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix("--") {
            let option = current
                .get_arguments()
                .find(|argument| argument.get_long() == Some(long))
                .ok_or_else(|| format!("no option --{long}"))?;
            if option.get_action().takes_values() {
                words.next();
            }
        } else if current.has_subcommands() {
            // These stand for kinds that have all of each other's commands.
            let word = if word == "{kind}" { "config" } else { word };
            current = current.find_subcommand(word).ok_or_else(|| format!("no command {word}"))?;
        } else {
            arguments += 1;
        }
    }
    match arguments <= current.get_positionals().count() {
        true => Ok(()),
        false => Err("too many arguments".to_owned()),
    }
}

#[test]
fn every_command_that_a_message_names_exists() {
    let mut grammar = Cli::command();
    grammar.build();
    for line in ["status", "token show --role manager", "resource update r FILE", "run --join HOST:PORT --token-file F"]
    {
        assert_eq!(check_command(&grammar, line), Ok(()), "{line}");
    }
    for line in ["frob", "node frob", "cluster inspect default", "status --frob", "raft status now"] {
        assert!(check_command(&grammar, line).is_err(), "{line}");
    }
    let named = named_commands();
    assert!(named.len() > 40, "only {} were found", named.len());
    let wrong: Vec<_> = named
        .iter()
        .filter_map(|(line, path)| check_command(&grammar, line).err().map(|why| format!("{path}: {line}: {why}")))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
