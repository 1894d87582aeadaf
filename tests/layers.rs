//! The layer rule: a folder of `src` names only folders above it in the table of `src/lib.rs`.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};

/// Folders in the order of the table: rows of the form ``//! | `name` | charter |``.
fn table(lib: &str) -> Vec<String> {
    lib.lines()
        .filter_map(|line| line.strip_prefix("//! | `")?.split_once("` |"))
        .map(|(folder, _)| folder.to_owned())
        .collect()
}

/// What code names at the top of the crate: `crate::x::y` and `crate::{x, y::z}` give `x` and `y`.
fn named(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = code;
    while let Some(at) = rest.find("crate::") {
        let before = rest[..at].chars().next_back();
        rest = &rest[at + "crate::".len()..];
        // `mycrate::x` is another crate.
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        match rest.strip_prefix('{') {
            None => names.push(first_name(rest)),
            Some(group) => {
                let mut depth = 0;
                let mut start = true;
                for (at, c) in group.char_indices() {
                    match c {
                        '}' if depth == 0 => break,
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => start = true,
                        c if start && !c.is_whitespace() => {
                            names.push(first_name(&group[at..]));
                            start = false;
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

fn first_name(text: &str) -> String {
    text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The source without comments, whose links may point anywhere.
fn without_comments(source: &str) -> String {
    source.lines().map(|line| line.split_once("//").map_or(line, |(code, _)| code)).collect::<Vec<_>>().join("\n")
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Uses of a folder that is not above the user, as `file: name`.
fn upward(folder: &str, table: &[String], code: &str) -> Vec<String> {
    let own = table.iter().position(|name| name == folder).unwrap();
    named(code)
        .into_iter()
        .filter(|name| match table.iter().position(|folder| folder == name) {
            Some(place) => place > own,
            // Nothing but the folders stands at the top, so that a name which is none hides a dependency.
            None => true,
        })
        .collect()
}

#[test]
fn no_folder_names_one_below_it() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let table = table(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let mut wrong = Vec::new();
    for folder in &table {
        let mut files = Vec::new();
        sources(&src.join(folder), &mut files);
        for file in files {
            let code = without_comments(&fs::read_to_string(&file).unwrap());
            let file = file.strip_prefix(&src).unwrap().display().to_string();
            wrong.extend(
                upward(folder, &table, &code).into_iter().map(|name| format!("src/{file} names crate::{name}")),
            );
        }
    }
    assert!(wrong.is_empty(), "a folder may name only folders above it in src/lib.rs:\n{}", wrong.join("\n"));
}

#[test]
fn the_table_lists_every_folder_and_nothing_else() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut listed = table(&fs::read_to_string(src.join("lib.rs")).unwrap());
    let mut there: Vec<String> = fs::read_dir(&src)
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_dir())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    listed.sort();
    there.sort();
    assert_eq!(listed, there);
}

#[test]
fn an_upward_import_is_found_however_it_is_written() {
    let table: Vec<String> = ["sys", "types", "net"].map(str::to_owned).to_vec();
    let check = |code: &str, expected: &[&str]| assert_eq!(upward("types", &table, &without_comments(code)), expected);
    check("use crate::sys::time;", &[]);
    check("use crate::types::{Kind, Object};", &[]);
    check("use crate::net::run;", &["net"]);
    check("use crate::{sys::time, net::{a, b}, types};", &["net"]);
    check("fn f() { crate::net::g(); }", &["net"]);
    check("// crate::net is below\nuse crate::sys;", &[]);
    check("macro_rules! m { () => { $crate::net::x } }", &["net"]);
    check("use mycrate::net;", &[]);
    check("use crate::Hidden;", &["Hidden"]);
}
