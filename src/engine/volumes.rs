//! The volumes of a store: made, opened, described, removed.

use super::api::{CreateOptions, SnapshotInfo, VolumeInfo, VolumeStatus};
use super::batch::Batches;
use super::drill::{self, is_drill};
use super::thread::{Engine, Handle};
use crate::error::{Error, Result};
use crate::io::Io;
use crate::snapshot::{Volume, undecided_takes};
use crate::store::paths::VolumePaths;
use crate::store::replay::identity as journal_identity;
use crate::store::{Tuning, paths};
use crate::types::{Geometry, Name, Role};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::collections::BTreeSet;
use std::io::ErrorKind as OsKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use uuid::Uuid;

/// A time in RFC 3339, to the microsecond.
pub(crate) fn rfc3339(us: u64) -> String {
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
pub(super) async fn create(
    engine: &Handle,
    store: &Path,
    name: &str,
    options: &CreateOptions,
    role: Role,
) -> Result<()> {
    let geometry = Geometry::new(options.size, options.block_size, options.granularity)?;
    let (volumes, dir, on_full) = (paths::volumes(store), dir_of(store, name), options.on_full);
    let made = engine.call(move |engine| async move {
        let io = &engine.io;
        let hidden = volumes.join(format!(".new-{}", io.identity()));
        let made = async {
            Volume::create(io, &hidden, io.identity(), geometry, on_full, role).await?;
            io.rename(&hidden, &dir).await
        }
        .await;
        let made = match made {
            Ok(()) => io.sync_dir(&volumes).await,
            error => error,
        };
        if made.is_err() {
            // It has one of the two names. What can't be removed goes at the next open.
            let _ = io.rename(&dir, &hidden).await;
            let _ = remove_tree(io, hidden).await;
        }
        made
    });
    made.await.map_err(|e| e.context(format!("volume {name}")))
}

/// Opens a volume on its engine.
pub(super) async fn open(
    engine: &Handle,
    store: &Path,
    name: &str,
    tuning: Tuning,
    batches: &Batches,
) -> Result<()> {
    let (dir, name) = (dir_of(store, name), name.to_owned());
    let committed = batches.committed.clone();
    let damage = batches.damage.as_ref().map(Error::duplicate);
    let opened = engine.call(move |engine| async move {
        if let Some(damage) = damage {
            check_undecided(&engine.io, &dir, &committed, damage)
                .await
                .map_err(|e| e.context(format!("volume {name}")))?;
        }
        let origin = drill::origin_of(&engine, &name)?;
        let (volume, opened) = Volume::open(&engine.io, &dir, &name, tuning, &committed).await?;
        if let Some(origin) = origin
            && let Err(error) = volume.set_origin(origin)
        {
            // Nothing was written that a close could miss.
            let _ = volume.close().await;
            return Err(error);
        }
        if !opened.clean {
            tracing::info!("volume {name}: recovered, {} staged writes taken up again", opened.staged);
        }
        engine.volumes.borrow_mut().insert(name, volume);
        Ok(())
    });
    opened.await
}

/// Refuses a volume with a take that hangs on a batch of which nobody knows whether it was
/// committed.
async fn check_undecided(io: &Io, dir: &Path, committed: &BTreeSet<Uuid>, damage: Error) -> Result<()> {
    let undecided = undecided_takes(io, dir, committed).await?;
    match undecided.first() {
        None => Ok(()),
        Some(snapshot) => Err(damage.context(format!("whether snapshot {snapshot} exists is not known"))),
    }
}

/// Removes a closed volume's files: it is gone once its name is.
pub(super) async fn remove(engine: &Handle, store: &Path, name: &str) -> Result<()> {
    let (volumes, dir, name) = (paths::volumes(store), dir_of(store, name), name.to_owned());
    let removed = engine.call(move |engine| async move {
        let io = &engine.io;
        let hidden = volumes.join(format!(".gone-{}", io.identity()));
        io.rename(&dir, &hidden).await?;
        io.sync_dir(&volumes).await?;
        if let Err(error) = remove_tree(io, hidden).await {
            tracing::warn!("what is left of volume {name} goes at the next open: {error}");
        }
        Ok(())
    });
    removed.await
}

/// Removes a file, or a directory with all that is in it.
fn remove_tree(io: &Io, path: PathBuf) -> LocalBoxFuture<'_, Result<()>> {
    async move {
        match io.remove(&path).await {
            Err(error) if error.os_kind() == Some(OsKind::IsADirectory) => {}
            done => return done,
        }
        for name in io.list(&path).await? {
            remove_tree(io, path.join(name)).await?;
        }
        io.remove_dir(&path).await
    }
    .boxed_local()
}

/// Names the copy of a volume that is open under another name.
pub(super) fn is_a_copy(name: &str, twin: &str) -> Error {
    Error::conflict(format!("volume {name} is a copy of volume {twin}, with the same identity"))
        .hint("move its directory out of the store; 'snapvol copy' makes a volume with an own identity")
}

/// The volumes in a store and, where it can be read, their identities, without touching
/// anything.
pub(super) async fn listed(io: &Io, store: &Path) -> Result<Vec<(String, Option<Uuid>)>> {
    let volumes = paths::volumes(store);
    let mut found = Vec::new();
    for name in io.list(&volumes).await? {
        if is_half(&name) {
            continue;
        }
        let dir = volumes.join(&name);
        let no_directory = match io.list(&dir).await {
            Err(error) => error.os_kind() == Some(OsKind::NotADirectory),
            Ok(_) => false,
        };
        if no_directory || !is_volume_name(&name) {
            tracing::warn!("{} is no volume and is left alone", dir.display());
            continue;
        }
        // Whoever opens the volume is told why that fails.
        let identity = journal_identity(io, &VolumePaths(dir).journal()).await.ok();
        found.push((name, identity));
    }
    Ok(found)
}

/// The same; what a crash left half made or half removed goes. The names are durable then:
/// one that only the page cache had could vanish, or come back, after it was believed.
pub(super) async fn found(io: &Io, store: &Path) -> Result<Vec<(String, Option<Uuid>)>> {
    let volumes = paths::volumes(store);
    io.sync_dir(&volumes).await?;
    for name in io.list(&volumes).await? {
        if is_half(&name) {
            // What can't be removed now is tried again at the next open.
            let _ = remove_tree(io, volumes.join(name)).await;
        }
    }
    listed(io, store).await
}

/// Whether a volume may have that name, a drill among them.
fn is_volume_name(name: &str) -> bool {
    name.parse::<Name>().is_ok() || is_drill(name)
}

/// Whether it is half made or half removed.
fn is_half(name: &str) -> bool {
    name.starts_with(".new-") || name.starts_with(".gone-")
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
            schedule: None,
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
            of: None,
            set: None,
        })
        .collect();
    let drill = drill::described(&engine, &name);
    Ok(VolumeInfo {
        name,
        drill,
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
