//! A small file of the store that is always one whole version of itself: written beside, synced
//! and renamed, and its directory synced.
//!
//! Whatever crash comes, an open finds the version from before or the new one; what is left of one
//! that did not come into force has the suffix `.new`.

use crate::error::{Error, Result, ResultExt};
use crate::io::{FileId, Io, OpenHow};
use bytes::{Bytes, BytesMut};
use std::io::ErrorKind as OsKind;
use std::path::{Path, PathBuf};

/// The suffix of a version that is not in force yet.
pub const NEW: &str = ".new";

fn beside(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(NEW);
    PathBuf::from(name)
}

fn is_missing(error: &Error) -> bool {
    error.os_kind() == Some(OsKind::NotFound)
}

/// All of an open file.
///
/// # Errors
/// `Io`.
pub async fn read_open(io: &Io, file: FileId) -> Result<BytesMut> {
    let size = io.size(file).await?;
    io.read(file, 0, usize::try_from(size).unwrap_or(usize::MAX)).await
}

/// The file, if it is there. With `sync` what is read is durable, its name too.
///
/// # Errors
/// `Io`.
pub async fn read(io: &Io, path: &Path, sync: bool) -> Result<Option<BytesMut>> {
    let file = match io.open(path, OpenHow::Read).await {
        Err(error) if is_missing(&error) => return Ok(None),
        opened => opened?,
    };
    let result = async {
        if sync {
            io.sync(file).await?;
        }
        read_open(io, file).await
    }
    .await;
    io.close(file);
    let bytes = result.context(|| path.display().to_string())?;
    if sync && let Some(dir) = path.parent() {
        io.sync_dir(dir).await?;
    }
    Ok(Some(bytes))
}

/// Writes a new version; it is durable when this returns. After an error an open finds either.
///
/// # Errors
/// `Io`, `Full`.
pub async fn write(io: &Io, path: &Path, bytes: Bytes) -> Result<()> {
    let new = beside(path);
    let file = io.open(&new, OpenHow::CreateEmpty).await?;
    let written = async {
        io.write(file, 0, bytes).await?;
        io.sync(file).await
    }
    .await;
    io.close(file);
    written.context(|| new.display().to_string())?;
    io.rename(&new, path).await?;
    match path.parent() {
        Some(dir) => io.sync_dir(dir).await,
        None => Ok(()),
    }
}

/// Removes a file, durably; one that is not there is no error.
///
/// # Errors
/// `Io`.
pub async fn remove(io: &Io, path: &Path) -> Result<()> {
    match io.remove(path).await {
        Err(error) if !is_missing(&error) => return Err(error),
        _ => {}
    }
    match path.parent() {
        Some(dir) => io.sync_dir(dir).await,
        None => Ok(()),
    }
}

/// Removes what a crash left of a version that did not come into force.
///
/// # Errors
/// `Io`.
pub async fn tidy(io: &Io, path: &Path) -> Result<()> {
    remove(io, &beside(path)).await
}
