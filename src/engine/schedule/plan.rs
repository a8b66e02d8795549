//! When a schedule takes its next snapshot and which of the old ones go, from facts alone.
//!
//! Invariants:
//! - within a run of the daemon two are apart by the schedule's interval on a clock that nobody
//!   sets; the wall clock decides only how soon after a start the first one is due;
//! - a clock that was set back neither stops the schedule nor makes it take many;
//! - however long nothing ran, one is taken, not one for each that was missed;
//! - the youngest one is never among those that go.

use crate::format::upkeep::Schedule;
use std::collections::BTreeSet;
use std::time::Duration;
use uuid::Uuid;

const HOUR_US: u64 = 3_600_000_000;
const DAY_US: u64 = 24 * HOUR_US;

/// What is known of the time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Microseconds since 1970, by a clock that may be set.
    pub now_us: u64,
    /// When the youngest one was taken, by that clock.
    pub last_us: Option<u64>,
    /// How long ago one was taken in this run.
    pub since_last: Option<Duration>,
    /// How long this run is.
    pub since_start: Duration,
}

/// How long to wait for the next one; zero: it is due.
#[must_use]
pub fn wait(schedule: &Schedule, clock: &Clock) -> Duration {
    let every = Duration::from_millis(schedule.every_ms);
    if let Some(since) = clock.since_last {
        return every.saturating_sub(since);
    }
    let from_start = every.saturating_sub(clock.since_start);
    match clock.last_us {
        None => Duration::ZERO,
        // The clock was set back, or is wrong: nobody knows how long ago that was.
        Some(last) if last > clock.now_us => from_start,
        Some(last) => every.saturating_sub(Duration::from_micros(clock.now_us - last)).min(from_start),
    }
}

/// A snapshot that a schedule took and that is there.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Its identity.
    pub uuid: Uuid,
    /// When it was taken, in microseconds since 1970.
    pub created_us: u64,
}

/// Those that the schedule does not keep; `taken` is in the order of the queue, oldest first.
#[must_use]
pub fn surplus(schedule: &Schedule, taken: &[Taken]) -> Vec<Uuid> {
    let mut kept: BTreeSet<Uuid> = BTreeSet::new();
    let last = usize::try_from(schedule.keep_last.max(1)).unwrap_or(usize::MAX);
    kept.extend(taken.iter().rev().take(last).map(|one| one.uuid));
    for (unit, count) in [(HOUR_US, schedule.keep_hourly), (DAY_US, schedule.keep_daily)] {
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        for one in taken.iter().rev() {
            if (seen.len() as u64) < count && seen.insert(one.created_us / unit) {
                kept.insert(one.uuid);
            }
        }
    }
    taken.iter().map(|one| one.uuid).filter(|uuid| !kept.contains(uuid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);
    const EVERY: Schedule = Schedule { every_ms: 900_000, keep_last: 2, keep_hourly: 3, keep_daily: 2 };

    fn clock(now_min: u64, last_min: Option<u64>, since_last: Option<u32>, since_start: u32) -> Clock {
        Clock {
            now_us: now_min * 60_000_000,
            last_us: last_min.map(|min| min * 60_000_000),
            since_last: since_last.map(|min| MINUTE * min),
            since_start: MINUTE * since_start,
        }
    }

    #[test]
    fn the_first_one_follows_the_one_before_the_start() {
        let wait = |now, last, start| wait(&EVERY, &clock(now, last, None, start)).as_secs() / 60;
        assert_eq!(wait(1000, None, 0), 0);
        assert_eq!(wait(1000, Some(990), 0), 5);
        assert_eq!(wait(1000, Some(10), 0), 0, "one for all that were missed");
        // The clock was set back by a day: one interval after the start, once.
        assert_eq!(wait(1000, Some(2440), 0), 15);
        assert_eq!(wait(1010, Some(2440), 10), 5);
        assert_eq!(wait(1015, Some(2440), 15), 0);
        // Set back by a little, the wait is never longer than an interval in all.
        assert_eq!(wait(991, Some(990), 12), 3);
    }

    #[test]
    fn within_a_run_the_wall_clock_decides_nothing() {
        for now in [0, 985, 1000, 1_000_000] {
            let wait = |since| wait(&EVERY, &clock(now, Some(990), Some(since), 100)).as_secs() / 60;
            assert_eq!([wait(0), wait(14), wait(15), wait(99)], [15, 1, 0, 0]);
        }
    }

    fn taken(minutes: &[u64]) -> Vec<Taken> {
        let one = |min: &u64| Taken { uuid: Uuid::from_u128(u128::from(*min)), created_us: min * 60_000_000 };
        minutes.iter().map(one).collect()
    }

    fn gone(schedule: &Schedule, minutes: &[u64]) -> Vec<u128> {
        surplus(schedule, &taken(minutes)).iter().map(Uuid::as_u128).collect()
    }

    #[test]
    fn the_youngest_of_hours_and_days_stay() {
        // Four in each of the last hours of day 1, from minute 1440 on; day 0 before it.
        let minutes =
            [100, 1000, 1440, 1455, 1470, 1485, 1500, 1515, 1530, 1545, 1560, 1575, 1590, 1605, 1620];
        // Kept: 1605 and 1620 as the last, 1620, 1605 and 1545 by hour, 1620 and 1000 by day.
        assert_eq!(gone(&EVERY, &minutes), [100, 1440, 1455, 1470, 1485, 1500, 1515, 1530, 1560, 1575, 1590]);
        let one = Schedule { every_ms: 60_000, keep_last: 0, keep_hourly: 0, keep_daily: 0 };
        assert_eq!(gone(&one, &[1, 2, 3]), [1, 2], "the youngest stays whatever is asked");
        assert!(gone(&EVERY, &[]).is_empty());
        let all = Schedule { keep_last: u64::MAX, ..EVERY };
        assert!(gone(&all, &minutes).is_empty());
    }

    /// The queue has the order in which they were taken, whatever the clock said.
    #[test]
    fn a_clock_that_was_set_back_loses_nothing_young() {
        let few = Schedule { every_ms: 60_000, keep_last: 2, keep_hourly: 0, keep_daily: 0 };
        assert_eq!(gone(&few, &[5000, 5001, 10, 11]), [5000, 5001]);
    }

    /// As time goes on, what is there stays within what is asked, and the old is never dropped
    /// for good while it is the only one of its day.
    #[test]
    fn a_month_of_it() {
        let mut there: Vec<u64> = Vec::new();
        for step in 0..30 * 96 {
            there.push(step * 15);
            let gone = gone(&EVERY, &there);
            there.retain(|min| !gone.contains(&u128::from(*min)));
            assert!(there.len() <= 7, "{there:?}");
            assert_eq!(there.last(), Some(&(step * 15)));
        }
        let days: BTreeSet<u64> = there.iter().map(|min| min / 1440).collect();
        assert_eq!(days.len(), 2, "{there:?}");
    }
}
