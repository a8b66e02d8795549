//! `schedule`: a volume's series of snapshots, shown, set or ended.

use super::args::parse_time;
use super::output;
use crate::control::Access;
use crate::engine::api::ScheduleInfo;
use crate::error::Result;
use crate::format::upkeep::Schedule;
use crate::types::Name;

/// Take snapshots of a volume by schedule and delete them again; without options show it
///
/// Runs while the store is served, of a primary and of a secondary alike. The snapshots are
/// called auto-20261121T1530Z, by the time in UTC. Of those that it took, it keeps the
/// youngest ones and the youngest of each hour and of each day; what is held or in use stays,
/// and what somebody else took is never touched. Options that are not given stay as they are.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The volume
    #[arg(value_name = "VOL")]
    volume: Name,

    /// How often; a second at least [default: 15m]
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    every: Option<u64>,

    /// Keep the youngest N; one at least [default: 8]
    #[arg(long, value_name = "N")]
    keep_last: Option<u64>,

    /// Keep the youngest of each of the last N hours that have any [default: 24]
    #[arg(long, value_name = "N")]
    keep_hourly: Option<u64>,

    /// Keep the youngest of each of the last N days that have any [default: 14]
    #[arg(long, value_name = "N")]
    keep_daily: Option<u64>,

    /// End it; the snapshots stay
    #[arg(long, conflicts_with_all = ["every", "keep_last", "keep_hourly", "keep_daily"])]
    off: bool,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// What was there, with what is asked; none if nothing is asked.
    fn changed(&self, known: Option<Schedule>) -> Option<Schedule> {
        let asked = [self.every, self.keep_last, self.keep_hourly, self.keep_daily];
        asked.iter().any(Option::is_some).then(|| {
            let known = known.unwrap_or_default();
            Schedule {
                every_ms: self.every.unwrap_or(known.every_ms),
                keep_last: self.keep_last.unwrap_or(known.keep_last).max(1),
                keep_hourly: self.keep_hourly.unwrap_or(known.keep_hourly),
                keep_daily: self.keep_daily.unwrap_or(known.keep_daily),
            }
        })
    }
}

pub(super) fn run(access: &Access, args: &Args) -> Result<()> {
    let volume = args.volume.as_str();
    let mut info = access.schedule(volume)?;
    let asked = if args.off { Some(None) } else { args.changed(info.schedule).map(Some) };
    if let Some(schedule) = asked {
        access.set_schedule(volume, schedule)?;
        info = access.schedule(volume)?;
        if schedule.is_some() && !access.is_served() {
            eprintln!("noted; it runs while the store is served");
        }
    }
    if args.json { output::print_json(&info) } else { output::print(&text(&info)) }
}

/// A time as people write it.
fn time(ms: u64) -> String {
    let units = [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s")];
    let unit = units.into_iter().find(|(unit, _)| ms.is_multiple_of(*unit));
    unit.map_or_else(|| format!("{ms}ms"), |(unit, letter)| format!("{}{letter}", ms / unit))
}

fn text(info: &ScheduleInfo) -> String {
    let mut text = match info.schedule {
        None => format!("{}: no schedule", info.volume),
        Some(Schedule { every_ms, keep_last, keep_hourly, keep_daily }) => format!(
            "{}: every {}, keep {keep_last}, {keep_hourly} hourly, {keep_daily} daily",
            info.volume,
            time(every_ms)
        ),
    };
    text.push_str(&format!("; {} snapshots there", info.status.snapshots));
    if let Some(last) = &info.status.last {
        text.push_str(&format!(", the last of {last}"));
    }
    if let Some(error) = &info.status.error {
        text.push_str(&format!("\n    it is tried again: {error}"));
    }
    text + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::ScheduleStatus;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn changed(words: &[&str], known: Option<Schedule>) -> Option<Schedule> {
        let words = ["schedule", "db"].iter().chain(words);
        Line::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).args.changed(known)
    }

    #[test]
    fn options_not_given_stay() {
        let known = Schedule { every_ms: 60_000, keep_last: 1, keep_hourly: 2, keep_daily: 3 };
        assert_eq!(changed(&[], Some(known)), None);
        let hourly = Schedule { keep_hourly: 9, ..known };
        assert_eq!(changed(&["--keep-hourly", "9"], Some(known)), Some(hourly));
        let fresh = Schedule { every_ms: 3_600_000, ..Schedule::default() };
        assert_eq!(changed(&["--every", "1h"], None), Some(fresh));
        assert!(Line::try_parse_from(["schedule", "db", "--off", "--every", "1h"]).is_err());
    }

    #[test]
    fn words_for_people() {
        let schedule = Some(Schedule::default());
        let status = ScheduleStatus { snapshots: 3, last: Some("then".into()), error: Some("full".into()) };
        let info = ScheduleInfo { volume: "db".into(), schedule, status };
        assert_eq!(
            text(&info),
            "db: every 15m, keep 8, 24 hourly, 14 daily; 3 snapshots there, the last of then\n    \
             it is tried again: full\n"
        );
        assert_eq!([time(60_000), time(7_200_000), time(90_000)], ["1m", "2h", "90s"]);
    }
}
