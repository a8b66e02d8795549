//! `replicate`: has a volume of another store follow one of this store, or changes how.

use super::args::parse_time;
use crate::control::Access;
use crate::error::{Error, Result};
use crate::format::session::{OnBacklog, Start};
use crate::replica::manage::{PolicyChange, Replicate};
use crate::types::{Name, parse_size};
use std::str::FromStr;

/// Have a volume elsewhere follow this one, from now on and by itself
///
/// First a whole copy, made while the volume is in use, then what changes, in sets. It runs
/// while the store is served, survives restarts of either side and goes on where it was
/// interrupted. Said again for the same volume and destination, it changes the options given.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group
    #[arg(value_name = "VOL")]
    volume: Name,
    /// Where to: ssh://[user@]host[:port]/STORE/VOL, or /STORE/VOL; for a group without /VOL
    #[arg(value_name = "DEST")]
    destination: String,
    /// Cut a set this long after the last one, if something has changed [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    timeout: Option<u64>,
    /// Cut a set as soon as so much has changed [default: 64M]
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    high_water: Option<u64>,
    /// Ship at most so many bytes a second; 0 for no limit
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    limit: Option<u64>,
    /// Let at most so much pile up while it can't be shipped: changed bytes, or an age such as
    /// 7d; 0 for no bound
    #[arg(long, value_name = "SIZE|AGE")]
    backlog: Option<Backlog>,
    /// What happens at that bound
    #[arg(long, value_enum)]
    on_backlog: Option<AtBound>,
    /// Warn, in the log and in status, when the far side is that far behind; 0s: never [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    warn_lag: Option<u64>,
    /// Warn when so much waits to be shipped; 0: at half of --backlog, if that is a size
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    warn_backlog: Option<u64>,
    /// The program to run there, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    remote_command: Option<String>,
    /// How the volume here is reached from there, for a failover and the way back:
    /// ssh://[user@]host[:port]/STORE/VOL, for a group without /VOL; stores of one machine need not
    /// be told
    #[arg(long, value_name = "DEST")]
    way_back: Option<String>,
    /// The program to run here then, as its shell takes it
    #[arg(long, value_name = "COMMAND")]
    way_back_command: Option<String>,
    /// When the store is opened: do writers wait until a receiver has confirmed that this is still
    /// the primary, or write at once? [default: confirmed]
    #[arg(long, value_enum)]
    start: Option<StartHow>,
    /// Run this before a cut, to quiesce what writes; without it a set is what a crash would leave
    #[arg(long, value_name = "COMMAND")]
    before_cut: Option<String>,
    /// Run this after a cut, whether or not it was taken
    #[arg(long, value_name = "COMMAND")]
    after_cut: Option<String>,
    /// Run this once when five attempts in a row have failed; attempts go on
    #[arg(long, value_name = "COMMAND")]
    on_error: Option<String>,
}

/// What may pile up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Backlog {
    Bytes(u64),
    Age(u64),
}

impl FromStr for Backlog {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match (parse_size(text), parse_time(text)) {
            // A minute and a mebibyte are told apart by the case of their letter.
            (Ok(_), Ok(ms)) if text.ends_with(|c: char| c.is_ascii_lowercase()) => Ok(Self::Age(ms)),
            (Ok(bytes), _) => Ok(Self::Bytes(bytes)),
            (Err(_), Ok(ms)) => Ok(Self::Age(ms)),
            (Err(_), Err(_)) => {
                Err(Error::invalid(format!("'{}' is neither a size nor a time", text.escape_debug()))
                    .hint("write a size such as 10G, or an age such as 7d; 5M are mebibytes, 5m minutes"))
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum AtBound {
    /// The session ends and lets go of what is kept for it; 'resume' ships the volume whole again
    Terminate,
    /// Writers of the volume wait until there is less
    Freeze,
    /// Writes are refused until there is less
    Readonly,
}

impl From<AtBound> for OnBacklog {
    fn from(at_bound: AtBound) -> Self {
        match at_bound {
            AtBound::Terminate => Self::Terminate,
            AtBound::Freeze => Self::Freeze,
            AtBound::Readonly => Self::Readonly,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum StartHow {
    /// They wait
    Confirmed,
    /// They write at once; after a failover that nobody told this side of, both sides write
    Alone,
}

pub(super) fn run(access: &Access, args: Args) -> Result<()> {
    let bound = match args.backlog {
        None => (None, None),
        Some(Backlog::Bytes(bytes)) => (Some(bytes), Some(0)),
        Some(Backlog::Age(ms)) => (Some(0), Some(ms)),
    };
    if args.high_water == Some(0) || args.timeout == Some(0) {
        return Err(Error::invalid("a time-out or a high-water mark of 0 would cut without end"));
    }
    access.replicate(Replicate {
        volume: args.volume.to_string(),
        destination: args.destination,
        remote_command: args.remote_command,
        way_back: args.way_back,
        way_back_command: args.way_back_command,
        change: PolicyChange {
            timeout_ms: args.timeout,
            high_water: args.high_water,
            limit: args.limit,
            backlog_bytes: bound.0,
            backlog_ms: bound.1,
            on_backlog: args.on_backlog.map(OnBacklog::from),
            before_cut: args.before_cut,
            after_cut: args.after_cut,
            on_error: args.on_error,
            warn_lag_ms: args.warn_lag,
            warn_backlog: args.warn_backlog,
            start: args.start.map(|how| match how {
                StartHow::Confirmed => Start::Confirmed,
                StartHow::Alone => Start::Alone,
            }),
        },
    })?;
    if !access.is_served() {
        eprintln!("noted; it runs while the store is served");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backlogs() {
        for (text, expected) in [
            ("10G", Backlog::Bytes(10 << 30)),
            ("5M", Backlog::Bytes(5 << 20)),
            ("5m", Backlog::Age(300_000)),
            ("7d", Backlog::Age(7 * 86_400_000)),
            ("0", Backlog::Bytes(0)),
        ] {
            assert_eq!(text.parse::<Backlog>().unwrap(), expected, "{text}");
        }
        assert!("many".parse::<Backlog>().is_err());
    }
}
