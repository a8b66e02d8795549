//! Schedules: series of snapshots that are taken by themselves, and how long each is kept.
//!
//! A schedule deletes only what a schedule took: each is written down by identity in `upkeep`
//! before it is taken. What is held, open, a base or the youngest state of its volume stays.
//!
//! On a secondary one is a second name for the state that the volume shows: it is taken only
//! while nothing is being received, and is written down with the state and the set that it
//! repeats. To a sender the volume shows that state, as it did before (`Core::original`). A
//! state that has a second name already gets no other.

pub mod plan;

use super::api::{ScheduleInfo, ScheduleStatus};
use super::core::Core;
use super::store::Store;
use super::thread::Engine;
use super::volumes::rfc3339;
use crate::error::{Error, ErrorKind, Result};
use crate::format::state::SnapshotRecord;
use crate::format::upkeep::{Made, Schedule};
use crate::snapshot::{TakeRequest, Volume};
use crate::types::{Name, Role, SetId};
use futures::executor::block_on;
use plan::{Clock, Taken};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use uuid::Uuid;

/// How long a schedule rests after a failure.
const REST: Duration = Duration::from_secs(30);
/// Names tried for one snapshot: a clock that was set back gives some again.
const NAMES: u32 = 1000;
/// The shortest interval.
const EVERY_MS_MIN: u64 = 1000;
/// Below that a name has seconds.
const MINUTE_MS: u64 = 60_000;

/// What runs, which no file says.
#[derive(Default)]
pub(super) struct Running {
    /// Volumes of which one is due as soon as nothing is being received.
    due: Mutex<BTreeSet<Uuid>>,
    /// How many were taken of each volume.
    taken: Mutex<BTreeMap<Uuid, u64>>,
    /// What keeps a volume's schedule from doing its work.
    errors: Mutex<BTreeMap<Uuid, String>>,
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The name of a snapshot taken at that time, the `attempt`th.
fn name_of(now_us: u64, every_ms: u64, attempt: u32) -> String {
    let time = i64::try_from(now_us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    let format = if every_ms < MINUTE_MS { "auto-%Y%m%dT%H%M%SZ" } else { "auto-%Y%m%dT%H%MZ" };
    let name = time.unwrap_or(jiff::Timestamp::UNIX_EPOCH).strftime(format).to_string();
    if attempt == 0 { name } else { format!("{name}-{}", attempt + 1) }
}

/// A take that was prepared: nothing can change what it will hold but clients of a primary.
struct Prepared {
    name: String,
    made: Made,
}

impl Core {
    /// Sets a volume's schedule, or ends it; what it took stays.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for an interval below a minute; `Io`.
    pub async fn set_schedule(&self, volume: &str, schedule: Option<Schedule>) -> Result<()> {
        if schedule.is_some_and(|schedule| schedule.every_ms < EVERY_MS_MIN) {
            return Err(Error::invalid("a schedule takes one snapshot a second at most"));
        }
        let (uuid, ..) = self.unit(volume).await?;
        locked(&self.upkeep.running.errors).remove(&uuid);
        self.change_upkeep(uuid, |known| known.schedule = schedule).await
    }

    /// A volume's schedule and what it took.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` while nobody knows.
    pub async fn schedule(&self, volume: &str) -> Result<ScheduleInfo> {
        let (uuid, ..) = self.unit(volume).await?;
        if let Some(damage) = &self.upkeep.damage {
            return Err(damage.duplicate());
        }
        let schedule = self.upkeep_of(uuid).schedule;
        let there = self.taken(volume, uuid).await?;
        let last = there.last().map(|one| rfc3339(one.created_us));
        let error = locked(&self.upkeep.running.errors).get(&uuid).cloned();
        Ok(ScheduleInfo {
            volume: volume.to_owned(),
            schedule,
            status: ScheduleStatus { snapshots: there.len(), last, error },
        })
    }

    /// The same for `status`; none without a schedule.
    pub(super) async fn schedule_status(&self, volume: &str) -> Option<ScheduleStatus> {
        let (uuid, ..) = self.unit(volume).await.ok()?;
        self.upkeep_of(uuid).schedule?;
        Some(self.schedule(volume).await.ok()?.status)
    }

    /// The state that a snapshot is a second name of; else it itself.
    pub(super) fn original(&self, snapshot: Uuid) -> Uuid {
        self.made(snapshot).and_then(|made| made.of).unwrap_or(snapshot)
    }

    /// The set that brought the state which a snapshot of a schedule is a second name of.
    pub fn set_of(&self, snapshot: Uuid) -> Option<SetId> {
        let made = self.made(snapshot)?;
        Some(SetId { stamp: made.set?, target: made.of? })
    }

    /// What schedules took of a volume and is there, oldest first.
    async fn taken(&self, volume: &str, uuid: Uuid) -> Result<Vec<Taken>> {
        let made: BTreeSet<Uuid> = self.upkeep_of(uuid).made.iter().map(|made| made.snapshot).collect();
        let there = self.with(volume, |volume| async move { Ok(volume.snapshots()) }).await?;
        let there = there.into_iter().filter(|record| made.contains(&record.uuid));
        Ok(there.map(|record| Taken { uuid: record.uuid, created_us: record.created_us }).collect())
    }

    /// Takes a snapshot by schedule; none where it would be another name for the same.
    ///
    /// # Errors
    /// `Conflict` while something is being received or rolled back; `Io`, `Full`.
    pub async fn take_scheduled(&self, volume: &str) -> Result<Option<String>> {
        let _admin = self.admin().await;
        self.take_scheduled_now(volume).await
    }

    async fn take_scheduled_now(&self, volume: &str) -> Result<Option<String>> {
        let (uuid, ..) = self.unit(volume).await?;
        let known = self.upkeep_of(uuid);
        let every_ms = known.schedule.unwrap_or_default().every_ms;
        let repeated: BTreeMap<Uuid, Made> = known.made.iter().map(|made| (made.snapshot, *made)).collect();
        let prepared = self.on_engine(volume, move |engine, name| async move {
            prepare(&engine, &name, every_ms, &repeated).await
        });
        let Some(prepared) = prepared.await? else { return Ok(None) };
        // Before it exists, so that there is none that nobody would ever delete.
        let there: BTreeSet<Uuid> =
            self.taken(volume, uuid).await.unwrap_or_default().iter().map(|one| one.uuid).collect();
        let written = self.change_upkeep(uuid, |known| {
            known.made.retain(|made| there.contains(&made.snapshot));
            known.made.push(prepared.made);
        });
        let written = written.await;
        let is_written = written.is_ok();
        let taken = self.on_engine(volume, move |engine, name| async move {
            let ticket = engine.tickets.borrow_mut().remove(&name);
            match ticket {
                Some(mut ticket) if is_written => {
                    ticket.raise();
                    ticket.finish().await?;
                    ticket.publish();
                    Ok(())
                }
                _ => Ok(()),
            }
        });
        let taken = taken.await;
        written.and(taken)?;
        *locked(&self.upkeep.running.taken).entry(uuid).or_default() += 1;
        locked(&self.upkeep.running.due).remove(&uuid);
        Ok(Some(prepared.name))
    }

    /// Nothing is being received into a volume at this moment: takes what waited for that,
    /// unless another command holds that up.
    pub(super) async fn take_what_is_due(&self, volume: &str) {
        let Ok((uuid, ..)) = self.unit(volume).await else { return };
        let is_due = locked(&self.upkeep.running.due).contains(&uuid);
        if !is_due || self.upkeep_of(uuid).schedule.is_none() {
            return;
        }
        let Some(_admin) = self.try_admin() else { return };
        if let Err(error) = self.take_scheduled_now(volume).await {
            // It is tried again, and whoever does that says why it fails.
            tracing::debug!("volume {volume}: no snapshot after a set: {error}");
        }
    }

    /// Deletes what the schedule of a volume does not keep any more; returns how many went.
    ///
    /// # Errors
    /// `Io`, `Corrupt`; what is held, open or a base is left for later.
    pub async fn sweep_scheduled(&self, volume: &str) -> Result<usize> {
        let (uuid, ..) = self.unit(volume).await?;
        let Some(schedule) = self.upkeep_of(uuid).schedule else { return Ok(0) };
        // A receiver that has no set yet may stand on any of them.
        let begins = |side| {
            self.sessions_of(volume, side)
                .iter()
                .any(|session| session.member(volume).is_some_and(|member| member.applied.is_none()))
        };
        if begins(crate::format::session::Side::Sender) || !self.sessions.damaged.is_empty() {
            return Ok(0);
        }
        let surplus = plan::surplus(&schedule, &self.taken(volume, uuid).await?);
        let mut gone = 0;
        for snapshot in surplus {
            let _admin = self.admin().await;
            let deleted = self.with(volume, move |volume| async move {
                // The state that it shows goes for no schedule's sake.
                if volume.newest_state().is_some_and(|newest| newest.uuid == snapshot) {
                    return Ok(false);
                }
                volume.delete(&[snapshot]).await.map(|()| true)
            });
            match deleted.await {
                Ok(deleted) => gone += usize::from(deleted),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
        Ok(gone)
    }
}

/// Checks that one can be taken, keeps others from changing that, and says what it will be.
async fn prepare(
    engine: &Rc<Engine>,
    name: &str,
    every_ms: u64,
    made: &BTreeMap<Uuid, Made>,
) -> Result<Option<Prepared>> {
    let volume = engine.volume(name)?;
    let (uuid, now) = (engine.io.identity(), engine.io.now_us());
    let mut attempt = 0;
    let snapshots = volume.snapshots();
    while snapshots.iter().any(|record| record.name == name_of(now, every_ms, attempt)) && attempt < NAMES {
        attempt += 1;
    }
    let name_of_it = name_of(now, every_ms, attempt);
    let request = TakeRequest {
        uuid,
        name: name_of_it.clone(),
        created_us: now,
        batch: None,
        received: false,
        set: None,
    };
    let ticket = volume.prepare_take(request).await?;
    // No receive ends or begins while that is held.
    let Some(made) = repeats(&volume, uuid, made) else { return Ok(None) };
    engine.tickets.borrow_mut().insert(name.to_owned(), ticket);
    Ok(Some(Prepared { name: name_of_it, made }))
}

/// What a snapshot taken now is; none if it would repeat one that a schedule took.
fn repeats(volume: &Rc<Volume>, uuid: Uuid, made: &BTreeMap<Uuid, Made>) -> Option<Made> {
    if volume.role() == Role::Primary {
        return Some(Made { snapshot: uuid, of: None, set: None });
    }
    let SnapshotRecord { uuid: shown, set, .. } = volume.newest_state()?;
    if made.contains_key(&shown) {
        return None;
    }
    Some(Made { snapshot: uuid, of: Some(shown), set })
}

/// What a run of the daemon knows of its schedules.
pub struct Ticker {
    started: Instant,
    volumes: BTreeMap<Uuid, Ticking>,
}

/// What it knows of one of them.
#[derive(Default)]
struct Ticking {
    /// When one was taken in this run, and how many had been by then.
    last: Option<(Instant, u64)>,
    /// Nothing is tried before that.
    rests_until: Option<Instant>,
    /// What was swept, and under which schedule.
    swept: Option<(u64, Schedule)>,
    /// The error that was told.
    told: Option<String>,
}

impl Default for Ticker {
    fn default() -> Self {
        Self { started: Instant::now(), volumes: BTreeMap::new() }
    }
}

impl Store {
    /// Takes and deletes what is due by schedule; to be called every second or so.
    pub fn tick(&self, ticker: &mut Ticker) {
        let scheduled = self.core.scheduled();
        if scheduled.is_empty() {
            ticker.volumes.clear();
            return;
        }
        for name in self.core.volume_names() {
            let Ok((uuid, ..)) = block_on(self.core.unit(&name)) else { continue };
            if !scheduled.contains(&uuid) {
                ticker.volumes.remove(&uuid);
                continue;
            }
            let started = ticker.started;
            self.tick_volume(started, ticker.volumes.entry(uuid).or_default(), &name, uuid);
        }
    }

    fn tick_volume(&self, started: Instant, ticking: &mut Ticking, name: &str, uuid: Uuid) {
        let now = Instant::now();
        if ticking.rests_until.is_some_and(|until| now < until) {
            return;
        }
        let running = &self.core.upkeep.running;
        match self.work(started, ticking, name, uuid, now) {
            Ok(()) => {
                ticking.rests_until = None;
                if ticking.told.take().is_some() {
                    tracing::info!("volume {name}: its schedule goes on");
                }
                locked(&running.errors).remove(&uuid);
            }
            Err(error) if error.kind() == ErrorKind::Conflict => {
                // Something is being received: what ends that takes it, or the next tick.
                locked(&running.due).insert(uuid);
            }
            Err(error) => {
                ticking.rests_until = Some(now + REST);
                let text = error.to_string();
                if ticking.told.as_ref() != Some(&text) {
                    tracing::error!("volume {name}: its schedule is tried again: {text}");
                    ticking.told = Some(text.clone());
                }
                locked(&running.errors).insert(uuid, text);
            }
        }
    }

    fn work(
        &self,
        started: Instant,
        ticking: &mut Ticking,
        name: &str,
        uuid: Uuid,
        now: Instant,
    ) -> Result<()> {
        let Some(schedule) = self.core.upkeep_of(uuid).schedule else { return Ok(()) };
        let count = locked(&self.core.upkeep.running.taken).get(&uuid).copied().unwrap_or(0);
        if ticking.last.map_or(0, |(_, known)| known) < count {
            ticking.last = Some((now, count));
        }
        let taken = block_on(self.core.taken(name, uuid))?;
        let now_us = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX));
        let clock = Clock {
            now_us,
            last_us: taken.last().map(|one| one.created_us),
            since_last: ticking.last.map(|(at, _)| now - at),
            since_start: now - started,
        };
        if plan::wait(&schedule, &clock).is_zero() {
            match block_on(self.core.take_scheduled(name))? {
                Some(snapshot) => tracing::debug!("volume {name}: snapshot {snapshot} by schedule"),
                None => tracing::debug!("volume {name}: nothing new for its schedule"),
            }
            let count = locked(&self.core.upkeep.running.taken).get(&uuid).copied().unwrap_or(0);
            ticking.last = Some((now, count));
        }
        let count = ticking.last.map_or(0, |(_, known)| known);
        if ticking.swept != Some((count, schedule)) {
            block_on(self.core.sweep_scheduled(name))?;
            ticking.swept = Some((count, schedule));
        }
        Ok(())
    }

    /// Sets a volume's schedule, or ends it.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `Io`.
    pub fn set_schedule(&self, volume: &str, schedule: Option<Schedule>) -> Result<()> {
        volume.parse::<Name>()?;
        block_on(self.core.set_schedule(volume, schedule))
    }

    /// A volume's schedule and what it took.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn schedule(&self, volume: &str) -> Result<ScheduleInfo> {
        block_on(self.core.schedule(volume))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_times_in_utc() {
        assert_eq!(name_of(1_795_275_000_000_000, 60_000, 0), "auto-20261121T1530Z");
        assert_eq!(name_of(1_795_275_059_999_999, 900_000, 1), "auto-20261121T1530Z-2");
        assert_eq!(name_of(1_795_275_059_999_999, 1000, 0), "auto-20261121T153059Z");
        assert!(name_of(u64::MAX, 1000, 999).parse::<Name>().is_ok());
    }
}
