//! Checking a store: every structure and every checksum, without writing anything.

use super::api::{CheckReport, Finding};
use super::{batch, groups, sessions, upkeep, volumes};
use crate::error::{Error, Result};
use crate::io::{DriverKind, Io, Reactor, driver};
use crate::snapshot::{Verified, check_closed, give_up_stage};
use crate::store::paths::VolumePaths;
use std::collections::BTreeMap;
use std::path::Path;
use uuid::Uuid;

/// Checks a volume, or all, of a store that nobody has open; with `images` also every
/// before-image.
pub(super) fn check(store: &Path, only: Option<&str>, images: bool) -> Result<CheckReport> {
    let driver = driver(DriverKind::Plain).map_err(|e| Error::os("cannot start an engine", e))?;
    let mut reactor = Reactor::new(driver);
    let (io, store, only) = (reactor.io(), store.to_owned(), only.map(str::to_owned));
    reactor.block_on(async move { check_all(&io, &store, only.as_deref(), images).await })
}

async fn check_all(io: &Io, store: &Path, only: Option<&str>, images: bool) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let listed = volumes::listed(io, store).await?;
    if let Some(name) = only
        && !listed.iter().any(|(there, _)| there == name)
    {
        return Err(super::thread::no_volume(name));
    }
    let small = [
        ("batches", batch::committed(io, store, false).await.map_or_else(Some, |found| found.damage)),
        ("deleting", batch::intended(io, store, false).await.err()),
    ];
    for (file, error) in small {
        report.findings.extend(error.map(|error| finding(None, file.to_owned(), &error)));
    }
    if let Some(error) = upkeep::read(io, store, false).await?.damage {
        report.findings.push(finding(None, "upkeep".to_owned(), &error));
    }
    if let Some(error) = groups::read(io, store, false).await?.damage {
        report.findings.push(finding(None, "groups".to_owned(), &error));
    }
    for (name, error) in sessions::read(io, store, false).await?.damaged {
        report.findings.push(finding(None, format!("sessions/{name}"), &error));
    }
    let mut owners: BTreeMap<Uuid, String> = BTreeMap::new();
    for (name, identity) in listed {
        if only.is_some_and(|only| only != name) {
            continue;
        }
        let dir = VolumePaths(volumes::dir_of(store, &name));
        let (verified, snapshots) = check_closed(io, &dir, images).await?;
        // A volume that has somebody else's journal is damaged, and no original.
        if verified.found.is_empty()
            && let Some(twin) = identity.and_then(|uuid| owners.insert(uuid, name.clone()))
        {
            let error = volumes::is_a_copy(&name, &twin);
            report.findings.push(finding(Some(&name), format!("volumes/{name}"), &error));
        }
        report.volumes += 1;
        report.snapshots += snapshots;
        add(&mut report, store, &name, verified);
    }
    Ok(report)
}

/// Before a repair opens the volumes: what keeps one closed and only a decision of its owner
/// gives up is given up.
pub(super) fn give_up(store: &Path) -> Result<()> {
    let driver = driver(DriverKind::Plain).map_err(|e| Error::os("cannot start an engine", e))?;
    let mut reactor = Reactor::new(driver);
    let (io, store) = (reactor.io(), store.to_owned());
    reactor.block_on(async move {
        for (name, _) in volumes::listed(&io, &store).await? {
            let dir = VolumePaths(volumes::dir_of(&store, &name));
            if let Err(error) = give_up_stage(&io, &dir).await {
                // The check that follows tells of it.
                tracing::warn!("volume {name}: {error}");
            }
        }
        Ok(())
    })
}

/// What a repair did: findings that are gone are told as repaired, the others as they are
/// now.
pub(super) fn compare(before: CheckReport, mut after: CheckReport) -> CheckReport {
    let same = |a: &Finding, b: &Finding| (&a.volume, &a.file, a.block) == (&b.volume, &b.file, b.block);
    let gone = before.findings.into_iter().filter(|old| !after.findings.iter().any(|new| same(old, new)));
    let mut findings: Vec<Finding> = gone
        .map(|old| {
            let how = if old.file.ends_with("/stage") {
                "given up: the volume goes on with what was flushed; the file is kept as stage.damaged"
            } else if old.file.contains("/snapshots/") && old.snapshot.is_some() {
                "made again from the segments, or from its second file"
            } else {
                "written again"
            };
            Finding { repaired: Some(how.to_owned()), ..old }
        })
        .collect();
    findings.append(&mut after.findings);
    CheckReport { findings, ..after }
}

fn finding(volume: Option<&str>, file: String, error: &Error) -> Finding {
    Finding {
        volume: volume.map(str::to_owned),
        snapshot: None,
        file,
        block: None,
        problem: error.to_string(),
        repaired: None,
        advice: error.hint_text().unwrap_or_default().to_owned(),
    }
}

/// Adds what was seen of a volume.
pub(super) fn add(report: &mut CheckReport, store: &Path, volume: &str, verified: Verified) {
    report.files += verified.files;
    report.bytes += verified.bytes;
    report.findings.extend(verified.found.into_iter().map(|found| Finding {
        volume: Some(volume.to_owned()),
        snapshot: found.snapshot,
        file: found.file.strip_prefix(store).unwrap_or(&found.file).display().to_string(),
        block: found.block,
        problem: found.problem,
        repaired: None,
        advice: found.advice,
    }));
}
