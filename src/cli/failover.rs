//! `failover`: a volume that follows takes the place of the one that it followed.

use super::output;
use crate::control::Access;
use crate::error::{Error, Result};
use crate::replica::failover::{Report, Request, Sender};
use crate::types::{Name, SnapName};
use std::str::FromStr;

/// Have a volume that follows take its primary's place
///
/// It says first what it goes on from and what is lost. The volume becomes writable; connections
/// that are open stay read-only until they reconnect. The old primary takes no writes any more as
/// soon as it is reached, and 'resync' there has it follow. Run again after a crash, it goes on.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume, or a group, or VOL@SNAP to go on from an older state; the newest one stays as a snapshot
    #[arg(value_name = "VOL[@SNAP]")]
    target: Target,
    /// Have the primary hand over, with nothing lost; as 'failback'
    #[arg(long, conflicts_with_all = ["now", "dry_run", "json"])]
    sync: bool,
    /// Don't try to reach the primary
    #[arg(long)]
    now: bool,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Also while the primary answers: it is fenced first, and what it has not shipped stays there
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    volume: Name,
    snapshot: Option<Name>,
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

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    if args.sync {
        if args.target.snapshot.is_some() {
            return Err(Error::invalid("--sync goes on from the newest state, not from an older one"));
        }
        return super::failback::hand_over(
            access,
            &args.target.volume,
            super::failback::PAUSE_MAX_MS,
            args.force,
        );
    }
    let request = Request {
        volume: args.target.volume.to_string(),
        snapshot: args.target.snapshot.as_ref().map(Name::to_string),
        now: args.now,
        dry_run: args.dry_run,
        force: args.force,
    };
    if !args.dry_run && !args.json {
        // What is lost is said before anything is done, also where it is refused then.
        let looked = Request { dry_run: true, force: true, ..request.clone() };
        let plan = access.failover(&looked)?;
        if !plan.already {
            eprint!("{}", told(&plan));
        }
    }
    let report = access.failover(&request)?;
    if args.json {
        return output::print_json(&report);
    }
    output::print(&if report.done { done(&report) } else { told(&report) })
}

fn kind_of(report: &Report) -> &'static str {
    if report.group { "group" } else { "volume" }
}

/// What a failover would do.
fn told(report: &Report) -> String {
    let (volume, what) = (&report.volume, kind_of(report));
    let number = report.number.map_or("its newest state".to_owned(), |number| format!("set {number}"));
    let age = match (&report.received, report.age_seconds) {
        (Some(received), Some(age)) => format!(", which began to arrive {age:.0} s ago, at {received}"),
        _ => String::new(),
    };
    let mut text = match &report.snapshot {
        None => format!("{what} {volume} goes on from {number}{age}\n"),
        Some(name) => {
            format!("{what} {volume} goes on from snapshot {name}; {number}{age}, stays as a snapshot\n")
        }
    };
    text.push_str("whatever was written at the primary after that is not here\n");
    if let Some(number) = report.dropped {
        text.push_str(&format!("set {number} is half received, and is dropped\n"));
    }
    let way = &report.way_back;
    text.push_str(&match report.sender {
        Sender::Answers => format!("the primary answers, at {way}; with --force it is fenced first\n"),
        Sender::NotServed => {
            format!("the primary's store is there, at {way}, and nobody serves it: it is fenced\n")
        }
        Sender::GivenWay => format!("the volume at {way} takes no writes any more\n"),
        Sender::Silent => {
            let why = report.silence.as_deref().unwrap_or("nothing was heard");
            format!("the primary does not answer, at {way}: {why}\n")
        }
        Sender::Unknown => {
            "there is no way to ask the primary, and it has no connection to this store\n".to_owned()
        }
        Sender::Connected => {
            "the primary has a connection to this store, and can't be fenced over it\n".to_owned()
        }
        Sender::NotAsked => "the primary is not asked\n".to_owned(),
    });
    text
}

fn done(report: &Report) -> String {
    let Report { volume, epoch, .. } = report;
    let what = kind_of(report);
    let number = report.number.map_or(String::new(), |number| format!(" after set {number}"));
    if report.already {
        return format!("{what} {volume} is the primary already, by an earlier failover{number}\n");
    }
    format!("{what} {volume} is the primary, in role epoch {epoch}{number}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_said() {
        let report = Report {
            volume: "db".to_owned(),
            number: Some(812),
            received: Some("2026-11-21T12:00:00Z".to_owned()),
            age_seconds: Some(3.4),
            dropped: Some(813),
            sender: Sender::Answers,
            way_back: "/srv/a/db".to_owned(),
            ..Report::default()
        };
        let expected = "\
volume db goes on from set 812, which began to arrive 3 s ago, at 2026-11-21T12:00:00Z
whatever was written at the primary after that is not here
set 813 is half received, and is dropped
the primary answers, at /srv/a/db; with --force it is fenced first
";
        assert_eq!(told(&report), expected);
        let target: Target = "db@monday".parse().unwrap();
        assert_eq!(target.snapshot.unwrap().as_str(), "monday");
        assert!("db@".parse::<Target>().is_err());
    }
}
