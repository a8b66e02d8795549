//! Arguments that several commands take, and how they are parsed.

use crate::error::{Error, Result};
use crate::types::{DrillName, Name, SnapName};
use std::str::FromStr;

/// `VOL` or `VOL@SNAP`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub volume: Name,
    pub snapshot: Option<Name>,
}

impl Target {
    /// Whether it is that volume itself, and no snapshot of it.
    pub fn is_volume(&self, volume: &Name) -> bool {
        self.snapshot.is_none() && self.volume == *volume
    }
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        if text.contains('@') {
            let SnapName { volume, snapshot } = text.parse()?;
            return Ok(Self { volume, snapshot: Some(snapshot) });
        }
        Ok(Self { volume: text.parse()?, snapshot: None })
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.snapshot {
            Some(snapshot) => write!(out, "{}@{snapshot}", self.volume),
            None => self.volume.fmt(out),
        }
    }
}

/// What is exported under a name: a volume, a snapshot or a drill.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExportName {
    Target(Target),
    Drill(DrillName),
}

impl FromStr for ExportName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.parse() {
            Ok(drill) => Ok(Self::Drill(drill)),
            Err(_) => Ok(Self::Target(text.parse()?)),
        }
    }
}

impl std::fmt::Display for ExportName {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Target(target) => target.fmt(out),
            Self::Drill(drill) => drill.fmt(out),
        }
    }
}

/// A tag of a hold: as a name, but it may also begin with `_` or `.`.
///
/// # Errors
/// `Invalid` for an empty, long or unprintable tag.
pub(super) fn parse_tag(text: &str) -> Result<String> {
    let fits = (1..=63).contains(&text.len());
    if fits && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
        return Ok(text.to_owned());
    }
    Err(Error::invalid(format!(
        "'{}' is no valid tag: it takes 1 to 63 letters, digits, '.', '_' or '-'",
        text.escape_debug()
    )))
}

/// A power-of-two size below 4 GiB; what it must be else, the geometry says.
///
/// # Errors
/// `Invalid` when it is no size or too large.
pub(super) fn parse_block_size(text: &str) -> Result<u32> {
    let size = crate::types::parse_size(text)?;
    u32::try_from(size).map_err(|_| Error::invalid(format!("a block size of {text} is too large")))
}

/// A time as people write it, in milliseconds: `500ms`, `5s`, `15m`, `2h`, `30d`.
///
/// # Errors
/// `Invalid` when the text is no time, or one beyond ten years.
pub(super) fn parse_time(text: &str) -> Result<u64> {
    const MAX_MS: u64 = 10 * 366 * 86_400_000;
    let bad = || {
        Error::invalid(format!("'{}' is no time", text.escape_debug()))
            .hint("write a number with ms, s, m, h or d, such as 500ms, 5s or 15m")
    };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(bad()),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    let number: u64 = digits.parse().map_err(|_| bad())?;
    number.checked_mul(factor).filter(|ms| *ms <= MAX_MS).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        let target: Target = "db@monday".parse().unwrap();
        assert_eq!(
            (target.volume.as_str(), target.snapshot.as_ref().map(Name::as_str)),
            ("db", Some("monday"))
        );
        assert_eq!(target.to_string(), "db@monday");
        assert_eq!("db".parse::<Target>().unwrap().to_string(), "db");
        for bad in ["", "@", "db@", "@x", "db@a@b", "_db", "a/b", "db@_x"] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
    }

    #[test]
    fn exports() {
        for good in ["db", "db@monday", "db+drill"] {
            assert_eq!(good.parse::<ExportName>().unwrap().to_string(), good);
        }
        assert!(matches!("db+drill".parse(), Ok(ExportName::Drill(_))));
        for bad in ["", "db+", "db+a@b", "db@a+b", "+a"] {
            assert!(bad.parse::<ExportName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(parse_time("500ms").unwrap(), 500);
        assert_eq!(parse_time("0s").unwrap(), 0);
        assert_eq!(parse_time("15m").unwrap(), 900_000);
        assert_eq!(parse_time("30d").unwrap(), 30 * 86_400_000);
        for bad in ["", "5", "s", "-5s", "1.5h", "5 s", "5sm", "99999d", "99999999999999999999s", "5S"] {
            assert!(parse_time(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tags() {
        assert!(parse_tag("backup-1").is_ok());
        for bad in ["", "a b", "a\n", &"x".repeat(64)] {
            assert!(parse_tag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn block_sizes() {
        assert_eq!(parse_block_size("4K").unwrap(), 4096);
        assert!(parse_block_size("8G").is_err());
    }
}
