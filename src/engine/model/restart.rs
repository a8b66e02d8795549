//! What is looked at when a process has opened its store, and before it closes it.

use super::clients::bytes_of;
use super::machine::Process;
use super::oracle::{Fate, Snap};
use crate::engine::api::VolumeInfo;
use crate::types::Role;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// Compares everything that the store holds with what it may hold, and goes on from what
/// was found. `orderly`: no process has died since it was looked at last.
pub(super) async fn check(process: &Rc<Process>, orderly: bool) {
    let infos = process.core().list(None).await;
    process.alive().await;
    let infos = infos.expect("a list").volumes;
    for info in &infos {
        assert_ne!(
            info.state,
            "damaged",
            "volume {} did not open: {:?}",
            info.name,
            process.core().engine_of(&info.name).err()
        );
    }
    names(process, &infos);
    for info in &infos {
        queue(process, info);
    }
    groups(process, &infos);
    for info in infos {
        settle(process, &info);
        half(process, &info.name).await;
        if !process.oracle.borrow_mut().vol(&info.name).half {
            production(process, &info.name, orderly).await;
        }
        for snap in &info.snapshots {
            snapshot(process, &info.name, &snap.name).await;
        }
    }
    let report = process.core().verify(None, true).await;
    process.alive().await;
    let findings = report.expect("a scrub").findings;
    assert!(findings.is_empty(), "a scrub finds {findings:?}");
}

/// Volumes that must be there are, and no others.
fn names(process: &Process, infos: &[VolumeInfo]) {
    let mut oracle = process.oracle.borrow_mut();
    let there: BTreeSet<&str> = infos.iter().map(|info| info.name.as_str()).collect();
    for name in &there {
        assert!(oracle.volumes.contains_key(*name), "volume {name} comes from nowhere");
    }
    oracle.volumes.retain(|name, vol| {
        let is_there = there.contains(name.as_str());
        assert!(is_there || vol.fate == Fate::May, "volume {name} is gone");
        vol.fate = Fate::Must;
        is_there
    });
}

/// Snapshots that must be there are, in their order, with their holds.
fn queue(process: &Process, info: &VolumeInfo) {
    let mut oracle = process.oracle.borrow_mut();
    let vol = oracle.vol(&info.name);
    let there: Vec<&str> = info.snapshots.iter().map(|snap| snap.name.as_str()).collect();
    if let Some(arrival) = vol.arrival.take()
        && there.contains(&arrival.name.as_str())
    {
        assert!(arrival.complete, "{}@{} appeared from half a stream", info.name, arrival.name);
        vol.adopt(arrival.image.clone());
        vol.snaps.push(Snap::received(arrival.name, arrival.image));
    }
    for snap in &vol.snaps {
        let is_there = there.contains(&snap.name.as_str());
        assert!(is_there || snap.fate == Fate::May, "snapshot {}@{} is gone", info.name, snap.name);
    }
    let known: Vec<&str> =
        vol.snaps.iter().map(|snap| snap.name.as_str()).filter(|name| there.contains(name)).collect();
    assert_eq!(known, there, "the queue of {}", info.name);
}

/// What comes or goes together did.
fn groups(process: &Process, infos: &[VolumeInfo]) {
    let mut oracle = process.oracle.borrow_mut();
    let mut seen: BTreeMap<u64, (bool, String)> = BTreeMap::new();
    for info in infos {
        for snap in &oracle.vol(&info.name).snaps {
            let Some(group) = snap.group.filter(|_| snap.fate == Fate::May) else { continue };
            let is_there = info.snapshots.iter().any(|found| found.name == snap.name);
            let name = format!("{}@{}", info.name, snap.name);
            let (first, other) = seen.entry(group).or_insert_with(|| (is_there, name.clone()));
            assert_eq!(*first, is_there, "half of what belongs together: {other} and {name}");
        }
    }
}

/// From here on what was found must stay.
fn settle(process: &Process, info: &VolumeInfo) {
    let mut oracle = process.oracle.borrow_mut();
    let vol = oracle.vol(&info.name);
    vol.snaps.retain(|snap| info.snapshots.iter().any(|found| found.name == snap.name));
    for (snap, found) in vol.snaps.iter_mut().zip(&info.snapshots) {
        snap.fate = Fate::Must;
        let held = !found.holds.is_empty();
        assert!(snap.holding || snap.held == held, "the hold of {}@{}", info.name, snap.name);
        (snap.held, snap.holding) = (held, false);
        assert_eq!(found.size, snap.image.len() as u64, "the size of {}@{}", info.name, snap.name);
    }
    assert!(vol.role_changing || vol.role == info.role, "the role of {}", info.name);
    (vol.role, vol.role_changing) = (info.role, false);
}

/// Notes whether a receive is half done.
pub(super) async fn half(process: &Process, volume: &str) {
    let half = process.core().receive_status(volume).await;
    process.alive().await;
    let half = half.expect("a status").is_some();
    let mut oracle = process.oracle.borrow_mut();
    let vol = oracle.vol(volume);
    assert!(!half || vol.role == Role::Secondary, "{volume} receives, and is a primary");
    vol.half = half;
    if !half {
        vol.half_of = None;
    }
}

/// Compares production.
pub(super) async fn production(process: &Process, volume: &str, orderly: bool) {
    let (engine, open) = process.open_volume(volume);
    let found = process.on(&engine, async move { open.read(0, open.geometry().size).await }).await;
    let found = bytes_of(found.expect("production that can be read"));
    let checked = process.oracle.borrow_mut().vol(volume).check_production(found);
    if let Err(error) = checked {
        panic!("production of {volume} on machine {} (orderly: {orderly}): {error}", process.index);
    }
    process.shared.count(|counts| counts.compared += 1);
}

/// Compares a snapshot.
pub(super) async fn snapshot(process: &Process, volume: &str, name: &str) {
    let (engine, open) = process.open_volume(volume);
    let wanted = name.to_owned();
    let found = process
        .on(&engine, async move {
            let reader = open.open_snapshot(&wanted)?;
            reader.read(0, reader.size()).await
        })
        .await;
    let found = bytes_of(found.expect("a snapshot that can be read"));
    let checked = process.oracle.borrow_mut().check_snapshot(volume, name, &found);
    if let Err(error) = checked {
        panic!("machine {}: {error}", process.index);
    }
    process.shared.count(|counts| counts.compared += 1);
}
