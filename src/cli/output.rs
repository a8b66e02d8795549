//! What a person or a script reads: text on stdout, errors on stderr, units, tables.
//!
//! A reader that closed its end of stdout has read enough: nothing more is written,
//! and that is no failure.

use crate::engine::api::CheckReport;
use crate::error::{Error, Result};
use std::io::{ErrorKind, Write};

/// Writes the text to stdout and flushes it.
///
/// # Errors
/// `Io` or `Full` when stdout takes it not, but for a closed pipe.
pub fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(Error::os("write to stdout", error)),
        _ => Ok(()),
    }
}

/// Writes a value as JSON, indented, with a final line end.
///
/// # Errors
/// As for [`print()`].
pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    let mut text = serde_json::to_string_pretty(value)
        .map_err(|error| Error::os("write an answer as JSON", error.into()))?;
    text.push('\n');
    print(&text)
}

/// Writes the error to stderr: one sentence, then the hint. Line ends inside would
/// break that, so they become blanks.
pub fn print_error(error: &Error) {
    let mut text = format!("snapvol: {}\n", one_line(&error.to_string()));
    if let Some(hint) = error.hint_text() {
        text.push_str("hint: ");
        text.push_str(&one_line(hint));
        text.push('\n');
    }
    // There is nobody left to tell when stderr fails.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

fn one_line(text: &str) -> String {
    text.lines().map(str::trim).collect::<Vec<_>>().join(" ")
}

/// Bytes for people: `512 B`, `4.0 KiB`, `1.5 GiB`.
#[must_use]
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    // In tenths of the unit, rounded; a value that rounds up to 1024 takes the next one.
    let mut shift = 10;
    for unit in UNITS {
        let tenths = ((u128::from(bytes) * 10) + (1 << (shift - 1))) >> shift;
        if tenths < 10240 {
            return format!("{}.{} {unit}", tenths / 10, tenths % 10);
        }
        shift += 10;
    }
    format!("{bytes} B")
}

/// Lays rows out in columns, two blanks apart; `right` columns are flush right.
#[must_use]
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            if column > 0 {
                line.push_str("  ");
            }
            let width = widths[column];
            line.push_str(&if right.contains(&column) {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Says what a check or a scrub saw; findings are an error of the kind `Corrupt`, but
/// for those that were all repaired.
///
/// # Errors
/// `Corrupt` when something is damaged; as for [`print()`].
pub fn report(what: &str, report: &CheckReport, json: bool) -> Result<()> {
    if json {
        print_json(report)?;
    } else {
        print(&report_text(what, report))?;
    }
    let open = report.findings.iter().filter(|finding| finding.repaired.is_none()).count();
    let found = report.findings.len();
    match (found, open) {
        (0, _) => Ok(()),
        (_, 0) => Err(Error::corrupt(format!("{what} found and repaired {found} problem(s)"))
            .hint("run it once more to see that nothing is left")),
        _ => Err(Error::corrupt(format!("{what} found {open} problem(s)")).hint(if what == "scrub" {
            "what is damaged answers with an error and is never overwritten; restore it from a copy"
        } else {
            "stop the daemon and run: snapvol check --repair"
        })),
    }
}

fn report_text(what: &str, report: &CheckReport) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let mut place = match (&finding.volume, &finding.snapshot) {
            (Some(volume), Some(snapshot)) => format!("{volume}@{snapshot}: "),
            (Some(volume), None) => format!("{volume}: "),
            (None, _) => String::new(),
        };
        place.push_str(&finding.file);
        if let Some(block) = finding.block {
            place.push_str(&format!(", block {block}"));
        }
        text.push_str(&format!("{place}: {}", finding.problem));
        match &finding.repaired {
            Some(repaired) => text.push_str(&format!(" (repaired: {repaired})\n")),
            None if finding.advice.is_empty() => text.push('\n'),
            None => text.push_str(&format!("\n  {}\n", finding.advice)),
        }
    }
    text.push_str(&format!(
        "{what}: {} volume(s), {} snapshot(s), {} file(s), {} verified, {} problem(s)\n",
        report.volumes,
        report.snapshots,
        report.files,
        human(report.bytes),
        report.findings.len()
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::Finding;

    #[test]
    fn units() {
        for (bytes, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            ((1 << 20) - 1, "1.0 MiB"),
            (10 << 30, "10.0 GiB"),
            (64 << 40, "64.0 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [["NAME", "SIZE"], ["a", "10 B"], ["long-name", "1 B"]]
            .map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows, &[1]), "NAME       SIZE\na          10 B\nlong-name   1 B\n");
    }

    #[test]
    fn findings_are_damage() {
        let mut seen = CheckReport { volumes: 1, ..CheckReport::default() };
        assert!(report("check", &seen, false).is_ok());
        seen.findings.push(Finding {
            volume: Some("db".into()),
            snapshot: None,
            file: "volumes/db/journal".into(),
            block: Some(7),
            problem: "bad checksum".into(),
            repaired: None,
            advice: "restore it from a copy".into(),
        });
        assert!(report_text("check", &seen).starts_with("db: volumes/db/journal, block 7: bad checksum\n"));
        assert_eq!(report("check", &seen, false).unwrap_err().kind().exit_code(), 4);
    }

    #[test]
    fn an_error_stays_one_line() {
        assert_eq!(one_line("a\n  b\r\nc"), "a b c");
    }
}
