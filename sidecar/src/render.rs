//! Output for people and scripts: aligned tables, JSON, YAML.

use std::io::{IsTerminal, Write};

use serde::Serialize;

use crate::{args::Output, error::Failure};

/// A table fits this, unless it is to be wide.
pub const COLUMNS: usize = 100;
/// Between the columns of a table.
pub const GAP: usize = 2;

/// Writes `value` as JSON or YAML, or the table that `table` makes of it.
///
/// # Errors
/// When standard output cannot be written, as on a full disk.
pub fn show<T: Serialize>(
    value: &T,
    output: Output,
    table: impl FnOnce(bool) -> String,
) -> Result<(), Failure> {
    let text = match output {
        Output::Table => table(false),
        Output::Wide => table(true),
        Output::Json => serde_json::to_string_pretty(value)
            .map_err(|error| Failure::failed(error.to_string(), ""))?,
        Output::Yaml => serde_saphyr::to_string(value)
            .map_err(|error| Failure::failed(error.to_string(), ""))?,
    };
    print(&text)
}

/// Whoever reads standard output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    Reads,
    /// It has seen enough, as `head` has; that is no failure, and nothing more is wanted.
    Gone,
}

/// Writes one of values that come one by one, at once: a line of JSON, a document of YAML, or the line that `line` makes of it.
///
/// # Errors
/// When standard output cannot be written, as on a full disk.
pub fn show_next<T: Serialize>(
    value: &T,
    output: Output,
    line: impl FnOnce() -> String,
) -> Result<Reader, Failure> {
    let text = match output {
        Output::Table | Output::Wide => line(),
        Output::Json => {
            serde_json::to_string(value).map_err(|error| Failure::failed(error.to_string(), ""))?
        }
        Output::Yaml => {
            let document = serde_saphyr::to_string(value)
                .map_err(|error| Failure::failed(error.to_string(), ""))?;
            format!("---\n{document}")
        }
    };
    write(&text)
}

/// Writes a text and a line's end.
///
/// # Errors
/// When standard output cannot be written, as on a full disk.
pub fn print(text: &str) -> Result<(), Failure> {
    write(text).map(|_| ())
}

fn write(text: &str) -> Result<Reader, Failure> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Ok(()) => Ok(Reader::Reads),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(Failure::failed(format!("Cannot write the output: {error}"), "")),
    }
}

/// Whether colour helps: on a terminal, unless `NO_COLOR` is set.
fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

/// Without what would move a terminal's cursor: others chose some of these texts.
fn plain(text: &str) -> String {
    text.chars()
        .map(|char| if char.is_control() { char::REPLACEMENT_CHARACTER } else { char })
        .collect()
}

/// Columns, aligned.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    if rows.is_empty() {
        return format!("{}\n(none)", head.join("  "));
    }
    let widths: Vec<usize> = (0..head.len())
        .map(|column| {
            let cells =
                rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count());
            cells.chain([head[column].chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> =
            cells.zip(&widths).map(|(cell, width)| format!("{:<width$}", plain(cell))).collect();
        padded.join(&" ".repeat(GAP)).trim_end().to_owned()
    };
    let mut lines = vec![line(&mut head.iter().copied())];
    if colour() {
        lines[0] = format!("\x1b[1m{}\x1b[0m", lines[0]);
    }
    lines.extend(rows.iter().map(|row| line(&mut row.iter().map(String::as_str))));
    lines.join("\n")
}

/// Cuts a text into lines of at most `width` columns, between words.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(_) | None => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Cuts a text into pieces of `width` columns, wherever that is.
pub fn cut(text: &str, width: usize) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    chars.chunks(width).map(|piece| piece.iter().collect()).collect()
}

/// Names and values, a line each.
pub fn pairs(pairs: &[(&str, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let lines: Vec<String> =
        pairs.iter().map(|(name, value)| format!("{name:<width$}  {value}")).collect();
    lines.join("\n")
}

/// Bytes for people.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "kB", "MB", "GB", "TB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{count} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

/// A value, or a dash.
pub fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Several values, or a dash.
pub fn listed<T: AsRef<str>>(values: &[T], between: &str) -> String {
    if values.is_empty() {
        return "-".to_owned();
    }
    values.iter().map(AsRef::as_ref).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_aligned_and_bytes_are_readable() {
        let rows =
            vec![vec!["a".to_owned(), "1".to_owned()], vec!["long".to_owned(), "22".to_owned()]];

        assert_eq!(table(&["NAME", "N"], &rows), "NAME  N\na     1\nlong  22");
        assert_eq!(table(&["NAME", "N"], &[]), "NAME  N\n(none)");
        assert_eq!(wrap("a bb  ccc", 4), ["a bb", "ccc"]);
        assert_eq!(cut("abcde", 2), ["ab", "cd", "e"]);
        assert_eq!(
            (bytes(999), bytes(1500), bytes(2_000_000)),
            ("999 B".into(), "1.5 kB".into(), "2.0 MB".into())
        );
    }
}
