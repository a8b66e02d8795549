//! Commands: what an owner asks of a store, a few at a time, each on volumes and snapshots
//! that no other command works with. Clients go on beside them.

use super::machine::Process;
use super::oracle::{Fate, Vol};
use super::{clients, restart, transfers};
use crate::ErrorKind;
use crate::engine::api::CreateOptions;
use crate::types::{OnFull, Role, SnapName};
use std::rc::Rc;

/// Volumes that commands make.
const VOLUMES_MAX: usize = 3;
/// Snapshots of a volume.
const SNAPSHOTS_MAX: usize = 6;
/// The number of the command that makes a volume.
const CREATE: u32 = 26;
/// Blocks of a volume.
const BLOCKS_MAX: u64 = 90;

/// Runs commands as long as there are any left for this life.
pub(super) async fn run(process: Rc<Process>) {
    while process.commands_left.get() > 0 {
        process.commands_left.set(process.commands_left.get() - 1);
        let few = process.oracle.borrow().volumes.len() < 2;
        let kind = if few { CREATE } else { process.shared.rng.borrow_mut().u32(0..46) };
        let number = process.shared.number();
        process.doing.borrow_mut().push(format!("{number}: kind {kind}"));
        one(&process, kind).await;
        let prefix = format!("{number}:");
        process.doing.borrow_mut().retain(|text| !text.starts_with(&prefix));
        process.pause().await;
    }
}

async fn one(process: &Rc<Process>, kind: u32) {
    match kind {
        0..10 => connect(process),
        10..17 => take(process).await,
        17..21 => delete(process).await,
        21 | 22 => hold(process).await,
        23 => roll_back(process).await,
        24 | 25 => resize(process).await,
        CREATE => create(process).await,
        27 => remove(process).await,
        28 => role(process).await,
        29 => look(process).await,
        30 => refused(process).await,
        31..36 => transfers::send(process).await,
        36 => transfers::abort(process).await,
        _ => transfers::receive(process).await,
    }
}

/// A volume that no command works with and of which `wanted` holds, marked.
pub(super) fn claim(process: &Process, wanted: impl Fn(&Vol) -> bool) -> Option<String> {
    let idle: Vec<String> = {
        let oracle = process.oracle.borrow();
        let idle =
            oracle.volumes.iter().filter(|(_, vol)| !vol.busy && vol.fate == Fate::Must && wanted(vol));
        idle.map(|(name, _)| name.clone()).collect()
    };
    let name = process.shared.pick(idle)?;
    process.oracle.borrow_mut().vol(&name).busy = true;
    Some(name)
}

pub(super) fn release(process: &Process, volume: &str) {
    let mut oracle = process.oracle.borrow_mut();
    if let Some(vol) = oracle.volumes.get_mut(volume) {
        vol.busy = false;
    }
}

fn is_primary(vol: &Vol) -> bool {
    vol.role == Role::Primary
}

pub(super) fn snap_name(volume: &str, snapshot: &str) -> SnapName {
    format!("{volume}@{snapshot}").parse().expect("a name")
}

/// An idle snapshot of a claimed volume, by chance.
pub(super) fn idle_snapshot(process: &Process, volume: &str, held: bool) -> Option<String> {
    let idle: Vec<String> = {
        let mut oracle = process.oracle.borrow_mut();
        let snaps = oracle.vol(volume).snaps.iter();
        snaps.filter(|s| !s.busy && (held || !s.held)).map(|s| s.name.clone()).collect()
    };
    process.shared.pick(idle)
}

fn connect(process: &Rc<Process>) {
    let volumes: Vec<String> = {
        let oracle = process.oracle.borrow();
        let open = oracle.volumes.iter().filter(|(_, vol)| {
            vol.fate == Fate::Must && is_primary(vol) && !vol.role_changing && !vol.shut && vol.clients < 3
        });
        open.map(|(name, _)| name.clone()).collect()
    };
    if let Some(volume) = process.shared.pick(volumes) {
        clients::connect(process, &volume);
    }
}

async fn take(process: &Rc<Process>) {
    let count = process.shared.rng.borrow_mut().usize(1..=3);
    let room = |vol: &Vol| is_primary(vol) && vol.snaps.len() < SNAPSHOTS_MAX;
    let volumes: Vec<String> = (0..count).map_while(|_| claim(process, room)).collect();
    let group = process.shared.number();
    let name = format!("s{group}");
    for volume in &volumes {
        process.oracle.borrow_mut().take(volume, &name, group);
    }
    let names: Vec<SnapName> = volumes.iter().map(|volume| snap_name(volume, &name)).collect();
    if names.is_empty() {
        return;
    }
    let result = process.core().snapshot(&names).await;
    process.alive().await;
    result.expect("a take");
    for volume in &volumes {
        process.oracle.borrow_mut().taken(volume, &name);
        release(process, volume);
    }
    process.shared.count(|counts| {
        counts.snapshots += volumes.len() as u64;
        counts.batches += u64::from(volumes.len() > 1);
    });
}

async fn delete(process: &Rc<Process>) {
    let count = process.shared.rng.borrow_mut().usize(1..=3);
    let volumes: Vec<String> = (0..count).map_while(|_| claim(process, |vol| !vol.half)).collect();
    let group = process.shared.number();
    let mut names = Vec::new();
    for volume in &volumes {
        let some = process.shared.rng.borrow_mut().u32(1..3);
        for _ in 0..some {
            let spare = !process.shared.chance(6);
            let newest = process.oracle.borrow().volumes[volume].snaps.last().map(|snap| snap.name.clone());
            let news = process.shared.news.borrow().get(&transfers::partner(volume)).cloned();
            // The bases of the deltas to come mostly stay.
            let is_base = |name: &String| {
                newest.as_ref() == Some(name) || news.as_ref().is_some_and(|news| news.is_newest(name))
            };
            if let Some(name) = idle_snapshot(process, volume, false).filter(|name| !spare || !is_base(name))
            {
                let mut oracle = process.oracle.borrow_mut();
                let snap = oracle.vol(volume).snap(&name);
                (snap.busy, snap.fate, snap.group) = (true, Fate::May, Some(group));
                names.push((volume.clone(), name));
            }
        }
    }
    if !names.is_empty() {
        let list: Vec<SnapName> = names.iter().map(|(v, s)| snap_name(v, s)).collect();
        let result = process.core().delete_snapshots(&list).await;
        process.alive().await;
        result.expect("a deletion");
    }
    for (volume, name) in &names {
        process.oracle.borrow_mut().vol(volume).snaps.retain(|snap| snap.name != *name);
    }
    for volume in &volumes {
        release(process, volume);
    }
    process.shared.count(|counts| {
        counts.deletions += names.len() as u64;
        counts.group_deletions += u64::from(names.len() > 1);
    });
}

/// A deletion of which one is held does nothing.
async fn refused(process: &Rc<Process>) {
    let has_held = |vol: &Vol| vol.snaps.iter().any(|snap| snap.held && !snap.busy);
    let Some(volume) = claim(process, has_held) else { return };
    let list: Vec<SnapName> = {
        let mut oracle = process.oracle.borrow_mut();
        let idle = oracle.vol(&volume).snaps.iter().filter(|snap| !snap.busy);
        idle.map(|snap| snap_name(&volume, &snap.name)).collect()
    };
    let result = process.core().delete_snapshots(&list).await;
    process.alive().await;
    assert_eq!(result.expect_err("a snapshot is held").kind(), ErrorKind::Conflict);
    let there = process.core().list(Some(&volume)).await;
    process.alive().await;
    let there = there.expect("a list").volumes.swap_remove(0).snapshots.len();
    assert_eq!(
        there,
        process.oracle.borrow_mut().vol(&volume).snaps.len(),
        "a refused deletion did something"
    );
    release(process, &volume);
}

async fn hold(process: &Rc<Process>) {
    let Some(volume) = claim(process, |vol| !vol.snaps.is_empty()) else { return };
    if let Some(name) = idle_snapshot(process, &volume, true) {
        let held = {
            let mut oracle = process.oracle.borrow_mut();
            let snap = oracle.vol(&volume).snap(&name);
            snap.holding = true;
            snap.held
        };
        let of = snap_name(&volume, &name);
        let result = match held {
            true => process.core().release(&of, "tag").await,
            false => process.core().hold(&of, "tag").await,
        };
        process.alive().await;
        result.expect("a hold or a release");
        let mut oracle = process.oracle.borrow_mut();
        let snap = oracle.vol(&volume).snap(&name);
        (snap.held, snap.holding) = (!held, false);
        process.shared.count(|counts| counts.others += 1);
    }
    release(process, &volume);
}

async fn roll_back(process: &Rc<Process>) {
    let Some(volume) = claim(process, |vol| is_primary(vol) && !vol.snaps.is_empty()) else { return };
    if let Some(name) = idle_snapshot(process, &volume, true) {
        // The first look settles what it holds.
        restart::snapshot(process, &volume, &name).await;
        let image = {
            let mut oracle = process.oracle.borrow_mut();
            let vol = oracle.vol(&volume);
            vol.shut = true;
            let image = vol.snap(&name).image.clone();
            vol.rolling = Some(image.clone());
            image
        };
        let result = process.core().rollback(&snap_name(&volume, &name), true).await;
        process.alive().await;
        result.expect("a roll-back");
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(&volume);
        vol.adopt(image);
        vol.shut = false;
        process.shared.count(|counts| counts.others += 1);
    }
    release(process, &volume);
}

async fn resize(process: &Rc<Process>) {
    let Some(volume) = claim(process, is_primary) else { return };
    let (old, new) = {
        let mut oracle = process.oracle.borrow_mut();
        let old = oracle.vol(&volume).live.len();
        let max = usize::try_from(BLOCKS_MAX).unwrap_or(0) * process.shared.block_size as usize;
        let around = process.shared.rng.borrow_mut().usize(old / 2..=old + old / 2).min(max);
        (old, around.next_multiple_of(512).max(512))
    };
    if new < old {
        // What is cut off goes as a trim does, so nobody may work there.
        process.shut(&volume).await;
    }
    let cut = {
        let mut oracle = process.oracle.borrow_mut();
        oracle.vol(&volume).resizing = Some(new);
        (new < old).then(|| oracle.begin(&volume, new, vec![0; old - new]))
    };
    let result = process.core().resize(&volume, new as u64, true).await;
    process.alive().await;
    result.expect("a resize");
    {
        let mut oracle = process.oracle.borrow_mut();
        if let Some(cut) = cut {
            oracle.ack(&volume, cut);
            oracle.vol(&volume).all_flushed();
        }
        let vol = oracle.vol(&volume);
        vol.resized(new);
        vol.shut = false;
    }
    process.shared.count(|counts| counts.others += 1);
    release(process, &volume);
}

async fn create(process: &Rc<Process>) {
    let made = process.oracle.borrow().volumes.keys().filter(|name| name.starts_with('v')).count();
    if made >= VOLUMES_MAX {
        return;
    }
    let name = format!("v{}-{}", process.shared.number(), process.index);
    let (blocks, odd, granularity) = {
        let mut rng = process.shared.rng.borrow_mut();
        let odd = rng.u64(0..u64::from(process.shared.block_size) / 512) * 512;
        (rng.u64(12..BLOCKS_MAX), odd, [1, 1, 4][rng.usize(0..3)])
    };
    let size = blocks * u64::from(process.shared.block_size) + odd;
    let options =
        CreateOptions { size, block_size: process.shared.block_size, granularity, on_full: OnFull::Freeze };
    let mut vol = Vol::new(usize::try_from(size).expect("a small volume"), Role::Primary);
    vol.busy = true;
    process.oracle.borrow_mut().volumes.insert(name.clone(), vol);
    let result = process.core().create(&name, &options, Role::Primary).await;
    process.alive().await;
    result.expect("a new volume");
    process.oracle.borrow_mut().vol(&name).fate = Fate::Must;
    process.shared.count(|counts| counts.volumes += 1);
    release(process, &name);
}

async fn remove(process: &Rc<Process>) {
    if !process.shared.chance(3) {
        return;
    }
    let free = |vol: &Vol| !vol.half && vol.snaps.iter().all(|snap| !snap.held && !snap.busy);
    let Some(volume) = claim(process, free) else { return };
    process.shut(&volume).await;
    process.oracle.borrow_mut().vol(&volume).fate = Fate::May;
    let result = process.core().delete_volume(&volume, true).await;
    process.alive().await;
    result.expect("a volume that goes");
    process.oracle.borrow_mut().volumes.remove(&volume);
    process.shared.count(|counts| counts.volumes += 1);
}

async fn role(process: &Rc<Process>) {
    let Some(volume) = claim(process, |vol| !vol.half) else { return };
    let native = if volume.starts_with("r-") { Role::Secondary } else { Role::Primary };
    if process.oracle.borrow().volumes[&volume].role == native && !process.shared.chance(4) {
        // Most volumes are what they were made to be, so that streams find something to do.
        return release(process, &volume);
    }
    let primary = {
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(&volume);
        (vol.role_changing, vol.shut) = (true, true);
        is_primary(vol)
    };
    let result = match primary {
        true => process.core().demote(&volume, true).await,
        false => process.core().promote(&volume, false).await,
    };
    process.alive().await;
    result.expect("a change of role");
    {
        let mut oracle = process.oracle.borrow_mut();
        let vol = oracle.vol(&volume);
        vol.role = if primary { Role::Secondary } else { Role::Primary };
        (vol.role_changing, vol.shut) = (false, false);
        if primary {
            // Nobody writes any more, and what was written is durable.
            vol.all_flushed();
        }
    }
    process.shared.count(|counts| counts.others += 1);
    release(process, &volume);
}

/// Looks at a volume: a snapshot, or what a secondary shows.
async fn look(process: &Rc<Process>) {
    let Some(volume) = claim(process, |_| true) else { return };
    if let Some(name) = idle_snapshot(process, &volume, true) {
        restart::snapshot(process, &volume, &name).await;
    }
    transfers::look_at_secondary(process, &volume).await;
    release(process, &volume);
}
