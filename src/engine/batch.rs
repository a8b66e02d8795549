//! What several volumes do at one instant: the store's own small records.
//!
//! A take over several volumes is committed by one identity appended to the file
//! `batches` and synced; each volume's record names it, and counts only with it. A
//! deletion over several volumes is written whole to the file `deleting` before the first
//! one is begun, and done again at the next open if a crash came in between.
//!
//! Why a crash is safe: an open syncs both files and their names before it believes them,
//! so that no two volumes ever hear different answers, whatever crashes follow. And a
//! commit that fails is taken back durably before any volume undoes its take; where that
//! fails too, nobody knows the outcome, and nothing is built on it until an open has read
//! it from the disk.

use crate::error::{Error, Result, ResultExt};
use crate::format::codec::{Fields, Put};
use crate::io::{FileId, Io, OpenHow};
use crate::store::{paths, small_file};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind as OsKind;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Bytes of an entry. It divides a sector, so that a power cut leaves all of it or zeros.
const ENTRY_SIZE: usize = 32;

/// The snapshots that are to go, by volume.
pub(super) type Deletions = BTreeMap<String, Vec<Uuid>>;

/// What the file `batches` says.
#[derive(Debug, Default)]
pub(super) struct Batches {
    /// The batches that were committed.
    pub committed: BTreeSet<Uuid>,
    /// An entry can't be read: other batches may have been committed.
    pub damage: Option<Error>,
}

/// How a commit ended.
#[derive(Debug)]
pub(super) enum Commit {
    /// It is durable.
    Done,
    /// It failed, and durably never was.
    Undone(Error),
    /// Nobody knows which of the two an open will find.
    Unknown(Error),
}

/// An entry, as it lies in the file.
#[derive(PartialEq)]
enum Entry {
    Committed(Uuid),
    /// It never came to be.
    Torn,
    Damaged,
}

fn entry(bytes: &[u8]) -> Entry {
    if bytes.len() < ENTRY_SIZE || bytes.iter().all(|byte| *byte == 0) {
        return Entry::Torn;
    }
    let mut fields = Fields(bytes);
    match (fields.uuid(), fields.u32()) {
        (Ok(uuid), Ok(crc)) if crc == crc32c::crc32c(&bytes[..16]) && fields.0.iter().all(|b| *b == 0) => {
            Entry::Committed(uuid)
        }
        _ => Entry::Damaged,
    }
}

fn encode_entry(batch: Uuid) -> Bytes {
    let mut out = Put::default();
    out.uuid(batch);
    let crc = crc32c::crc32c(&out.0);
    out.u32(crc);
    out.0.resize(ENTRY_SIZE, 0);
    out.0.into()
}

/// Opens a file that may be missing.
async fn open(io: &Io, path: &Path, how: OpenHow) -> Result<Option<FileId>> {
    match io.open(path, how).await {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.os_kind() == Some(OsKind::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The batches that were committed. A torn last entry was promised to nobody. With `sync`
/// the answer is durable.
pub(super) async fn committed(io: &Io, store: &Path, sync: bool) -> Result<Batches> {
    let path = paths::batches(store);
    let bytes = small_file::read(io, &path, sync).await?.unwrap_or_default();
    let mut all = Batches::default();
    let count = bytes.len().div_ceil(ENTRY_SIZE);
    for (index, bytes) in bytes.chunks(ENTRY_SIZE).enumerate() {
        match entry(bytes) {
            Entry::Committed(batch) => {
                all.committed.insert(batch);
            }
            Entry::Torn if index + 1 == count => {}
            Entry::Torn | Entry::Damaged => {
                let error = Error::corrupt(format!("{}: entry {index} is damaged", path.display()));
                all.damage = Some(error.hint(
                    "restore the file from a copy; without it, snapshots of several volumes whose taking \
                     a crash interrupted are gone",
                ));
            }
        }
    }
    Ok(all)
}

/// Commits a batch. The outcome is durable when this returns, unless it is unknown.
pub(super) async fn commit(io: &Io, store: &Path, batch: Uuid) -> Commit {
    let path = paths::batches(store);
    let file = match open_or_create(io, &path).await {
        Ok(file) => file,
        Err(error) => return Commit::Undone(error),
    };
    let end = match end_of_entries(io, file).await {
        Ok(end) => end,
        Err(error) => {
            io.close(file);
            return Commit::Undone(error.context(path.display().to_string()));
        }
    };
    let appended = async {
        io.write(file, end, encode_entry(batch)).await?;
        io.sync(file).await?;
        // An empty file may be one that nobody has made durable under its name: the commit
        // that made it may have failed.
        if end == 0 { io.sync_dir(store).await } else { Ok(()) }
    }
    .await;
    let outcome = match appended {
        Ok(()) => Commit::Done,
        Err(error) => {
            let error = error.context(path.display().to_string());
            match cut(io, file, end).await {
                Ok(()) => Commit::Undone(error),
                Err(second) => {
                    tracing::error!("{}: the entry can't be taken back: {second}", path.display());
                    Commit::Unknown(error)
                }
            }
        }
    };
    io.close(file);
    outcome
}

async fn open_or_create(io: &Io, path: &Path) -> Result<FileId> {
    match open(io, path, OpenHow::Write).await? {
        Some(file) => Ok(file),
        None => io.open(path, OpenHow::CreateNew).await,
    }
}

/// Where the next entry goes. What a crash left of one must neither shift it nor stand
/// before it, since only the last one may be torn.
async fn end_of_entries(io: &Io, file: FileId) -> Result<u64> {
    let bytes = small_file::read_open(io, file).await?;
    let torn = bytes.chunks(ENTRY_SIZE).rev().take_while(|bytes| entry(bytes) == Entry::Torn).count();
    let end = ((bytes.len().div_ceil(ENTRY_SIZE) - torn) * ENTRY_SIZE) as u64;
    if end != bytes.len() as u64 {
        io.truncate(file, end).await?;
    }
    Ok(end)
}

/// Cuts a file off, durably.
async fn cut(io: &Io, file: FileId, end: u64) -> Result<()> {
    io.truncate(file, end).await?;
    io.sync(file).await
}

/// Forgets all batches: every volume has confirmed its own.
pub(super) async fn forget(io: &Io, store: &Path) -> Result<()> {
    let path = paths::batches(store);
    let Some(file) = open(io, &path, OpenHow::Write).await? else { return Ok(()) };
    let result = cut(io, file, 0).await;
    io.close(file);
    result.context(|| path.display().to_string())
}

fn deleting_file(store: &Path) -> PathBuf {
    store.join("deleting")
}

/// Remembers deletions that are about to be done. If that fails, nobody will do them.
pub(super) async fn intend(io: &Io, store: &Path, deletions: &Deletions) -> Result<()> {
    small_file::write(io, &deleting_file(store), encode_deletions(deletions)).await
}

/// The file `deleting`, as bytes.
#[must_use]
pub fn encode_deletions(deletions: &BTreeMap<String, Vec<Uuid>>) -> Bytes {
    let mut out = Put::default();
    out.count(deletions.len());
    for (volume, snapshots) in deletions {
        out.text(volume);
        out.count(snapshots.len());
        for uuid in snapshots {
            out.uuid(*uuid);
        }
    }
    let crc = crc32c::crc32c(&out.0);
    out.u32(crc);
    out.0.into()
}

/// What the file `deleting` says.
///
/// # Errors
/// `Corrupt`.
pub fn decode_deletions(bytes: &[u8]) -> Result<BTreeMap<String, Vec<Uuid>>> {
    let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(4)).unwrap_or_default();
    if crc32c::crc32c(body).to_le_bytes() != *sum {
        return Err(Error::corrupt("wrong checksum").hint(
            "a deletion over several volumes was interrupted: delete what is left of it, then remove the file",
        ));
    }
    let mut from = Fields(body);
    let mut all = Deletions::new();
    for _ in 0..from.count(8)? {
        let volume = from.text()?;
        let snapshots = (0..from.count(16)?).map(|_| from.uuid()).collect::<Result<_>>()?;
        all.insert(volume, snapshots);
    }
    from.end()?;
    Ok(all)
}

/// The deletions that a crash may have left undone; with `sync` the answer is durable.
pub(super) async fn intended(io: &Io, store: &Path, sync: bool) -> Result<Deletions> {
    let path = deleting_file(store);
    match small_file::read(io, &path, sync).await? {
        Some(bytes) => decode_deletions(&bytes).context(|| path.display().to_string()),
        None => Ok(Deletions::new()),
    }
}

/// The deletions are done, or will not be.
pub(super) async fn done(io: &Io, store: &Path) -> Result<()> {
    small_file::remove(io, &deleting_file(store)).await
}

#[cfg(test)]
mod tests;
