//! The volumes of a store: made, opened, described, removed.

use super::api::{CreateOptions, SnapshotInfo, VolumeInfo, VolumeStatus};
use super::batch::sync_dir;
use super::thread::{Engine, Handle};
use crate::error::{Error, Result};
use crate::snapshot::Volume;
use crate::store::{Tuning, paths};
use crate::types::{Geometry, Name, Role};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};
use uuid::Uuid;

/// Now, in microseconds since 1970.
pub(super) fn now_us() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |d| u64::try_from(d.as_micros()).unwrap_or(u64::MAX))
}

/// A time in RFC 3339, to the microsecond.
pub(super) fn rfc3339(us: u64) -> String {
    let time = i64::try_from(us).ok().and_then(|us| jiff::Timestamp::from_microsecond(us).ok());
    time.unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// The inverse of [`rfc3339`].
pub(super) fn parse_rfc3339(text: &str) -> Result<u64> {
    let time: jiff::Timestamp =
        text.parse().map_err(|_| Error::invalid(format!("'{}' is no time", text.escape_debug())))?;
    Ok(u64::try_from(time.as_microsecond()).unwrap_or(0))
}

/// The directory of a volume.
pub(super) fn dir_of(store: &Path, volume: &str) -> PathBuf {
    paths::volumes(store).join(volume)
}

/// Makes a volume's files under a hidden name, then gives them their own.
pub(super) fn create(
    engine: &Handle,
    store: &Path,
    name: &str,
    options: &CreateOptions,
    role: Role,
) -> Result<()> {
    let geometry = Geometry::new(options.size, options.block_size, options.granularity)?;
    let volumes = paths::volumes(store);
    let hidden = volumes.join(format!(".new-{}", Uuid::new_v4()));
    let (dir, on_full) = (hidden.clone(), options.on_full);
    let made = engine.call(move |engine| async move {
        Volume::create(&engine.io, &dir, Uuid::new_v4(), geometry, on_full, role).await
    });
    let result = made.and_then(|()| {
        std::fs::rename(&hidden, volumes.join(name))
            .map_err(|e| Error::os(format!("cannot name volume {name}"), e))?;
        sync_dir(&volumes)
    });
    if result.is_err() {
        let _ = std::fs::remove_dir_all(&hidden);
    }
    result.map_err(|e| e.context(format!("volume {name}")))
}

/// Opens a volume on its engine.
pub(super) fn open(engine: &Handle, store: &Path, name: &str, committed: &BTreeSet<Uuid>) -> Result<()> {
    let (dir, name, committed) = (dir_of(store, name), name.to_owned(), committed.clone());
    engine.call(move |engine| async move {
        let (volume, opened) = Volume::open(&engine.io, &dir, &name, Tuning::default(), &committed).await?;
        if !opened.clean {
            tracing::info!("volume {name}: recovered, {} staged writes taken up again", opened.staged);
        }
        volume.share_lending(&engine.lending);
        engine.volumes.borrow_mut().insert(name, volume);
        Ok(())
    })
}

/// Removes a closed volume's files: it is gone once its name is.
pub(super) fn remove(store: &Path, name: &str) -> Result<()> {
    let volumes = paths::volumes(store);
    let hidden = volumes.join(format!(".gone-{}", Uuid::new_v4()));
    std::fs::rename(volumes.join(name), &hidden)
        .map_err(|e| Error::os(format!("cannot remove volume {name}"), e))?;
    sync_dir(&volumes)?;
    std::fs::remove_dir_all(&hidden)
        .map_err(|e| Error::os(format!("cannot remove the files of volume {name}"), e))
}

/// The names of the volumes in a store, without touching anything.
pub(super) fn listed(store: &Path) -> Result<Vec<String>> {
    let mut names: Vec<String> = entries(store)?
        .into_iter()
        .filter(|(name, _)| name.parse::<Name>().is_ok())
        .map(|(name, _)| name)
        .collect();
    names.sort();
    Ok(names)
}

/// The same; what a crash left half made or half removed goes.
pub(super) fn names(store: &Path) -> Result<Vec<String>> {
    for (name, path) in entries(store)? {
        if name.starts_with(".new-") || name.starts_with(".gone-") {
            // What can't be removed now is tried again at the next open.
            let _ = std::fs::remove_dir_all(path);
        } else if name.parse::<Name>().is_err() {
            tracing::warn!("{} is no volume and is left alone", path.display());
        }
    }
    listed(store)
}

/// The directories in the directory of volumes.
fn entries(store: &Path) -> Result<Vec<(String, PathBuf)>> {
    let volumes = paths::volumes(store);
    let os = |e| Error::os(format!("cannot list {}", volumes.display()), e);
    let mut all = Vec::new();
    for entry in std::fs::read_dir(&volumes).map_err(os)? {
        let entry = entry.map_err(os)?;
        if entry.path().is_dir() {
            all.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
        } else {
            tracing::warn!("{} is no volume and is left alone", entry.path().display());
        }
    }
    Ok(all)
}

/// How the volumes of an engine stand with the space around them.
pub(super) fn statuses(engine: &Engine) -> Vec<VolumeStatus> {
    let volumes = engine.volumes.borrow();
    let status = |(name, volume): (&String, &Rc<Volume>)| {
        let space = volume.space();
        VolumeStatus {
            name: name.clone(),
            state: volume.state_word().to_owned(),
            on_full: volume.on_full_policy(),
            reserved: space.reserved,
            waiting_writes: space.waiting,
            dropped_snapshots: space.dropped,
        }
    };
    volumes.iter().map(status).collect()
}

/// Describes a volume.
pub(super) async fn describe(engine: Rc<Engine>, name: String) -> Result<VolumeInfo> {
    let volume = engine.volume(&name)?;
    let summary = volume.summary().await?;
    let snapshots = summary
        .snapshots
        .into_iter()
        .map(|s| SnapshotInfo {
            name: s.record.name,
            uuid: s.record.uuid,
            created: rfc3339(s.record.created_us),
            size: s.record.size,
            in_use: s.in_use,
            saved: s.saved,
            freed_by_delete: s.freed_by_delete,
            holds: s.record.holds,
        })
        .collect();
    Ok(VolumeInfo {
        name,
        uuid: summary.uuid,
        role: summary.role,
        state: summary.state.to_owned(),
        on_full: summary.on_full,
        size: summary.geometry.size,
        block_size: summary.geometry.block_size,
        granularity: summary.geometry.granularity,
        in_use: summary.in_use,
        saved: summary.saved,
        snapshots,
    })
}
