//! What several volumes do at one instant: the store's own small records.
//!
//! A take over several volumes is committed by one identity appended to the file
//! `batches` and synced; each volume's record names it, and counts only with it. A
//! deletion over several volumes is written whole to the file `deleting` before the first
//! one is begun, and done again at the next open if a crash came in between.

use crate::error::{Error, Result};
use crate::format::codec::{Fields, Put};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const ENTRY_SIZE: usize = 20;

fn os(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> Error {
    let text = format!("cannot {what} {}", path.display());
    move |e| Error::os(text, e)
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(os("sync", dir))
}

/// Whether an entry is whole.
fn checks(entry: &[u8]) -> bool {
    crc32c::crc32c(&entry[..16]).to_le_bytes() == entry[16..]
}

/// The batches that were committed. A torn last entry was promised to nobody.
pub(super) fn committed(path: &Path) -> Result<BTreeSet<Uuid>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map_err(os("read", path))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(BTreeSet::new()),
        Err(error) => return Err(os("open", path)(error)),
    };
    let mut all = BTreeSet::new();
    let count = bytes.len() / ENTRY_SIZE;
    for (index, entry) in bytes.chunks_exact(ENTRY_SIZE).enumerate() {
        if checks(entry) {
            all.insert(Fields(entry).uuid()?);
        } else if index + 1 < count {
            return Err(Error::corrupt(format!("{}: entry {index} is damaged", path.display())).hint(
                "a snapshot of several volumes may hang on it; if none was being taken at the last crash, remove the file",
            ));
        }
    }
    Ok(all)
}

/// Commits a batch: durable when this returns.
pub(super) fn commit(path: &Path, batch: Uuid) -> Result<()> {
    let new = !path.exists();
    let mut file = OpenOptions::new().append(true).create(true).open(path).map_err(os("open", path))?;
    // A torn entry from before a crash must neither shift this one nor stand before it: only
    // the last one may be bad.
    let bytes = std::fs::read(path).map_err(os("read", path))?;
    let count = bytes.chunks_exact(ENTRY_SIZE).rposition(checks).map_or(0, |last| last + 1);
    let whole = (count * ENTRY_SIZE) as u64;
    if whole != bytes.len() as u64 {
        file.set_len(whole).map_err(os("mend", path))?;
    }
    let mut entry = Put::default();
    entry.uuid(batch);
    let crc = crc32c::crc32c(&entry.0);
    entry.u32(crc);
    file.write_all(&entry.0).and_then(|()| file.sync_all()).map_err(os("write", path))?;
    if new && let Some(dir) = path.parent() {
        sync_dir(dir)?;
    }
    Ok(())
}

/// Forgets all batches: every volume has confirmed its own.
pub(super) fn forget(path: &Path) -> Result<()> {
    if path.exists() {
        let file = OpenOptions::new().write(true).open(path).map_err(os("open", path))?;
        file.set_len(0).and_then(|()| file.sync_all()).map_err(os("empty", path))?;
    }
    Ok(())
}

fn deleting_file(store: &Path) -> PathBuf {
    store.join("deleting")
}

/// Remembers deletions that are about to be done.
pub(super) fn intend(store: &Path, deletions: &[(String, Vec<Uuid>)]) -> Result<()> {
    let path = deleting_file(store);
    let new = path.with_extension("new");
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
    let mut file = File::create(&new).map_err(os("make", &new))?;
    file.write_all(&out.0).and_then(|()| file.sync_all()).map_err(os("write", &new))?;
    std::fs::rename(&new, &path).map_err(os("rename", &new))?;
    sync_dir(store)
}

/// The deletions that a crash may have left undone.
pub(super) fn intended(store: &Path) -> Result<Vec<(String, Vec<Uuid>)>> {
    let path = deleting_file(store);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(os("read", &path)(error)),
    };
    let parse = || {
        let (body, sum) = bytes.split_at_checked(bytes.len().saturating_sub(4)).unwrap_or_default();
        if crc32c::crc32c(body).to_le_bytes() != *sum {
            return Err(Error::corrupt("wrong checksum"));
        }
        let mut from = Fields(body);
        let mut all = Vec::new();
        for _ in 0..from.count(8)? {
            let volume = from.text()?;
            let snapshots = (0..from.count(16)?).map(|_| from.uuid()).collect::<Result<_>>()?;
            all.push((volume, snapshots));
        }
        from.end()?;
        Ok(all)
    };
    parse().map_err(|e| e.context(path.display().to_string()))
}

/// The deletions are done.
pub(super) fn done(store: &Path) -> Result<()> {
    let path = deleting_file(store);
    std::fs::remove_file(&path).map_err(os("remove", &path))?;
    sync_dir(store)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_torn_entry_is_nobody_s() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("batches");
        let (a, b) = (Uuid::new_v4(), Uuid::new_v4());
        commit(&path, a).unwrap();
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[1; 7]).unwrap();
        assert_eq!(committed(&path).unwrap(), BTreeSet::from([a]));
        commit(&path, b).unwrap();
        assert_eq!(committed(&path).unwrap(), BTreeSet::from([a, b]));
        // A power cut may leave an entry's length without its bytes.
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&[0; ENTRY_SIZE]).unwrap();
        assert_eq!(committed(&path).unwrap(), BTreeSet::from([a, b]));
        let c = Uuid::new_v4();
        commit(&path, c).unwrap();
        assert_eq!(committed(&path).unwrap(), BTreeSet::from([a, b, c]));
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[3] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(committed(&path).unwrap_err().kind(), crate::ErrorKind::Corrupt);
        forget(&path).unwrap();
        assert!(committed(&path).unwrap().is_empty());
    }

    #[test]
    fn intentions_survive() {
        let dir = tempfile::tempdir().unwrap();
        let all = vec![("a".to_owned(), vec![Uuid::new_v4()]), ("b".to_owned(), vec![])];
        assert!(intended(dir.path()).unwrap().is_empty());
        intend(dir.path(), &all).unwrap();
        assert_eq!(intended(dir.path()).unwrap(), all);
        done(dir.path()).unwrap();
        assert!(intended(dir.path()).unwrap().is_empty());
    }
}
