//! Checking a store: every structure and every checksum, without writing anything.

use super::api::{CheckReport, Finding};
use super::{batch, volumes};
use crate::error::Result;
use crate::io::{DriverKind, Reactor, driver};
use crate::snapshot::{Verified, check_closed};
use crate::store::paths::{self, VolumePaths};
use std::path::Path;

/// Checks all volumes of a store that nobody has open.
pub(super) fn check(store: &Path, names: &[String]) -> Result<CheckReport> {
    let driver = driver(DriverKind::Plain).map_err(|e| crate::Error::os("cannot start an engine", e))?;
    let mut reactor = Reactor::new(driver);
    let mut report = CheckReport::default();
    check_batches(store, &mut report);
    for name in names {
        let dir = VolumePaths(volumes::dir_of(store, name));
        let io = reactor.io();
        let (verified, snapshots) = reactor.block_on(async move { check_closed(&io, &dir).await });
        report.volumes += 1;
        report.snapshots += snapshots;
        add(&mut report, store, name, verified);
    }
    Ok(report)
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
    }));
}

/// The store's own small records.
fn check_batches(store: &Path, report: &mut CheckReport) {
    let files = [
        ("batches", batch::committed(&paths::batches(store)).map(drop)),
        ("deleting", batch::intended(store).map(drop)),
    ];
    for (file, result) in files {
        if let Err(error) = result {
            report.findings.push(Finding {
                volume: None,
                snapshot: None,
                file: file.to_owned(),
                block: None,
                problem: error.to_string(),
                repaired: None,
            });
        }
    }
}
