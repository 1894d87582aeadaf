//! Standard output: aligned tables and indented trees for people, JSON for scripts.

use std::io::{self, BufWriter, Write};

use serde_json::Value;

use super::exit::Failure;

/// Where results go.
pub struct Output {
    out: BufWriter<Box<dyn Write>>,
    /// JSON is wanted.
    pub json: bool,
}

/// The reader of standard output has gone: the command ends without a word.
#[derive(Debug)]
pub enum Written {
    /// Go on.
    Yes,
    /// Nobody reads any more.
    Closed,
}

impl Output {
    /// To `out`.
    pub fn new(out: Box<dyn Write>, json: bool) -> Self {
        Self { out: BufWriter::new(out), json }
    }

    /// A line of text.
    pub fn line(&mut self, line: &str) -> Result<Written, Failure> {
        checked(self.out.write_all(line.as_bytes()).and_then(|()| self.out.write_all(b"\n")))
    }

    /// A JSON document over several lines.
    pub fn document(&mut self, value: &Value) -> Result<Written, Failure> {
        self.line(&format!("{value:#}"))
    }

    /// A JSON document on one line, for a stream of them.
    pub fn record(&mut self, value: &Value) -> Result<Written, Failure> {
        self.line(&value.to_string())
    }

    /// Rows: JSON objects as they are, or a table of `columns` (heading, key).
    pub fn rows(&mut self, columns: &[(&str, &str)], rows: &[Value]) -> Result<Written, Failure> {
        if self.json {
            return self.document(&Value::Array(rows.to_vec()));
        }
        self.text(&table(columns, rows))
    }

    /// Text that ends in a newline of its own.
    pub fn text(&mut self, text: &str) -> Result<Written, Failure> {
        checked(self.out.write_all(text.as_bytes()))
    }

    /// Everything out.
    pub fn flush(&mut self) -> Result<Written, Failure> {
        checked(self.out.flush())
    }
}

fn checked(result: io::Result<()>) -> Result<Written, Failure> {
    match result {
        Ok(()) => Ok(Written::Yes),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Written::Closed),
        Err(error) => Err(Failure::internal(format!("cannot write to standard output: {error}"))),
    }
}

/// Aligned columns, two spaces between them. An empty or missing value shows as `-`.
pub fn table(columns: &[(&str, &str)], rows: &[Value]) -> String {
    let mut lines: Vec<Vec<String>> = vec![columns.iter().map(|(heading, _)| (*heading).to_owned()).collect()];
    lines.extend(rows.iter().map(|row| columns.iter().map(|(_, key)| cell(&row[*key])).collect()));
    let widths: Vec<usize> = (0..columns.len())
        .map(|column| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for line in &lines {
        let mut out = String::new();
        for (value, width) in line.iter().zip(&widths) {
            out.push_str(&format!("{value:<width$}  "));
        }
        text.push_str(out.trim_end());
        text.push('\n');
    }
    text
}

fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => clean(text),
        other => other.to_string(),
    }
}

/// An object as indented lines `key: value`; empty values are left out.
pub fn tree(value: &Value) -> String {
    let mut text = String::new();
    grow(value, 0, &mut text);
    text
}

fn grow(value: &Value, depth: usize, text: &mut String) {
    let entries: Vec<(String, &Value)> = match value {
        Value::Object(fields) => fields.iter().map(|(key, value)| (format!("{}:", clean(key)), value)).collect(),
        Value::Array(items) => items.iter().map(|value| ("-".to_owned(), value)).collect(),
        _ => return,
    };
    let indent = "  ".repeat(depth);
    for (key, value) in entries {
        match value {
            empty if is_empty(empty) => {}
            Value::Object(_) | Value::Array(_) => {
                text.push_str(&format!("{indent}{key}\n"));
                grow(value, depth + 1, text);
            }
            Value::String(many) if many.trim_end().contains('\n') => {
                text.push_str(&format!("{indent}{key}\n"));
                for line in many.lines() {
                    text.push_str(&format!("{indent}  {}\n", clean(line)));
                }
            }
            other => text.push_str(&format!("{indent}{key} {}\n", cell(other))),
        }
    }
}

/// Whether a value has nothing to show.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Object(fields) => fields.values().all(is_empty),
        Value::Array(items) => items.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Control characters could move the cursor or recolour a terminal; what others stored must not.
pub fn clean(text: &str) -> String {
    text.trim_end_matches('\n').chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// Seconds to a tenth.
pub fn seconds(ms: u64) -> String {
    format!("{}.{} s", ms / 1000, ms % 1000 / 100)
}

/// Milliseconds to the microsecond; `None` for what was not measured.
pub fn micros(us: u64) -> Option<String> {
    (us > 0).then(|| format!("{}.{:03} ms", us / 1000, us % 1000))
}

/// The text of a JSON string.
pub fn word(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_table_is_aligned_and_clean() {
        let rows = [json!({"id": "a", "name": "web\u{1b}[31m", "n": null}), json!({"id": "abc", "name": "", "n": 7})];
        let expected = "ID   NAME      N\na    web\u{FFFD}[31m  -\nabc  -         7\n";
        assert_eq!(table(&[("ID", "id"), ("NAME", "name"), ("N", "n")], &rows), expected);
    }

    #[test]
    fn a_tree_leaves_out_what_is_empty() {
        let value = json!({"id": "x", "spec": {"labels": {"none": ""}, "data": "one\ntwo\n", "list": [{"k": 1}, 2]}, "none": null});
        let expected = "id: x\nspec:\n  data:\n    one\n    two\n  list:\n    -\n      k: 1\n    - 2\n";
        assert_eq!(tree(&value), expected);
    }

    #[test]
    fn a_reader_that_left_is_no_failure_and_a_full_disk_is() {
        struct Failing(io::ErrorKind);
        impl Write for Failing {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(self.0.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let attempt = |kind| {
            let mut output = Output::new(Box::new(Failing(kind)), false);
            output.line("text").and_then(|_| output.flush())
        };
        assert!(matches!(attempt(io::ErrorKind::BrokenPipe), Ok(Written::Closed)));
        assert!(attempt(io::ErrorKind::StorageFull).is_err());
    }
}
