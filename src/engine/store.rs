//! The store as its owner sees it: thread-safe, blocking, every command a method.
//!
//! `serve` keeps one open and answers the control socket with it; any other command
//! opens one for itself when nobody serves. Both do the same work the same way. What a
//! command does is decided in `Core`; here are the threads it runs on, the lock, and
//! the waiting.

use super::api::{
    CheckReport, CreateOptions, Diff, HalfReceived, Received, SendRequest, Status, StoreInfo, VolumeFigures,
};
use super::check;
use super::core::Core;
use super::export::Export;
use super::thread::{EngineThread, Handle};
use crate::delta::digest::{Answer, BlockOf, Content, Question};
use crate::delta::sender::SendStream;
use crate::error::{Error, Result};
use crate::format::store::StoreHeader;
use crate::io::DriverKind;
use crate::store::{Tuning, paths};
use crate::types::{OnFull, Role, SnapName};
use futures::executor::block_on;
use std::fs::{File, OpenOptions as FileOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use uuid::Uuid;

/// How a store is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Which driver its engines use.
    pub driver: DriverKind,
    /// How many engine threads; 0: one a core.
    pub threads: usize,
}

/// An open store: the lock on its directory and the engines of its volumes.
pub struct Store {
    pub(super) core: Core,
    engines: Mutex<Vec<EngineThread>>,
    /// Held as long as the store is open.
    lock: Mutex<Option<File>>,
}

impl Store {
    /// Makes an empty store in a directory that is empty or absent.
    ///
    /// # Errors
    /// `Conflict` when something is there; `Io`.
    pub fn init(dir: &Path) -> Result<()> {
        if let Ok(mut list) = std::fs::read_dir(dir)
            && list.next().is_some()
        {
            let what = if paths::store_file(dir).exists() { "holds a store already" } else { "is not empty" };
            return Err(Error::conflict(format!("{} {what}", dir.display()))
                .hint("name an empty or absent directory"));
        }
        let os = |e| Error::os(format!("cannot make a store in {}", dir.display()), e);
        let parents = dir.parent().filter(|p| !p.as_os_str().is_empty());
        if let Some(parent) = parents {
            std::fs::create_dir_all(parent).map_err(os)?;
        }
        let mut builder = std::fs::DirBuilder::new();
        builder.mode(0o700);
        match builder.create(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(os(error)),
            _ => {}
        }
        builder.create(paths::volumes(dir)).map_err(os)?;
        FileOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(paths::lock_file(dir))
            .map_err(os)?;
        // The identity comes last: a store is one once it has it.
        let new = dir.join("store.new");
        let mut file = File::create(&new).map_err(os)?;
        file.write_all(&StoreHeader { uuid: Uuid::new_v4() }.encode())
            .and_then(|()| file.sync_all())
            .map_err(os)?;
        std::fs::rename(&new, paths::store_file(dir)).map_err(os)?;
        sync_dir(dir).map_err(os)?;
        if let Some(parent) = parents {
            sync_dir(parent).map_err(os)?;
        }
        Ok(())
    }

    /// Opens every volume. A volume that can't be opened stays closed and says why when it
    /// is asked for; the others work.
    ///
    /// # Errors
    /// `NotFound` when there is no store; `Conflict` when another process has it;
    /// `Unsupported` for a newer format.
    pub fn open(dir: &Path, options: OpenOptions) -> Result<Arc<Self>> {
        let (lock, header) = lock(dir)?;
        let count = if options.threads > 0 {
            options.threads
        } else {
            std::thread::available_parallelism().map_or(1, usize::from)
        };
        let engines =
            (0..count).map(|n| EngineThread::start(n, options.driver)).collect::<Result<Vec<_>>>()?;
        let handles: Vec<Handle> = engines.iter().map(|e| e.handle.clone()).collect();
        let core = block_on(Core::open(dir, header.uuid, handles, Tuning::default()))?;
        Ok(Arc::new(Self { core, engines: Mutex::new(engines), lock: Mutex::new(Some(lock)) }))
    }

    /// Disconnects clients, settles, marks everything clean, releases the lock.
    ///
    /// # Errors
    /// The first volume's that could not be closed; the others are.
    pub fn close(&self) -> Result<()> {
        let closed = block_on(self.core.close());
        for engine in &mut *self.engines.lock().unwrap_or_else(PoisonError::into_inner) {
            engine.stop();
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        closed
    }

    /// The device and inode of the lock that is held.
    pub(super) fn locked(&self) -> Option<(u64, u64)> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = lock.as_ref()?.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    }

    /// The store's decisions, for whoever awaits them.
    #[must_use]
    pub(crate) fn core(&self) -> &Core {
        &self.core
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.core.dir
    }

    /// Verifies a store that nobody has open: structure and metadata checksums. With
    /// `repair`, volumes are opened, which recovers what a crash left, and what is damaged
    /// and stands somewhere else too is written again; the report says of each finding
    /// whether it is gone.
    ///
    /// # Errors
    /// `Conflict` while somebody has it open.
    pub fn check(dir: &Path, repair: bool) -> Result<CheckReport> {
        let before = {
            let _lock = lock(dir)?;
            let before = check::check(dir, None, false)?;
            if repair {
                check::give_up(dir)?;
            }
            before
        };
        if !repair {
            return Ok(before);
        }
        let store = Self::open(dir, OpenOptions::default())?;
        let repaired = block_on(store.core.repair());
        store.close()?;
        repaired?;
        let _lock = lock(dir)?;
        Ok(check::compare(before, check::check(dir, None, false)?))
    }

    /// Verifies every stored byte that has a checksum, of a store that nobody has open.
    ///
    /// # Errors
    /// `Conflict` while somebody has it open; `NotFound`.
    pub fn scrub_closed(dir: &Path, volume: Option<&str>) -> Result<CheckReport> {
        let _lock = lock(dir)?;
        check::check(dir, volume, true)
    }

    /// Makes a volume, sparse.
    ///
    /// # Errors
    /// `Invalid`, `Conflict` when the name is taken, `Unsupported` when the file system has
    /// no such files.
    pub fn create(&self, volume: &str, options: &CreateOptions) -> Result<()> {
        block_on(self.core.create(volume, options, Role::Primary))
    }

    /// Changes what happens when space runs out.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn set_on_full(&self, volume: &str, on_full: OnFull) -> Result<()> {
        block_on(self.core.set_on_full(volume, on_full))
    }

    /// Sets a volume's size, in bytes.
    ///
    /// # Errors
    /// `Conflict` for a shrink without `force`; as for a write.
    pub fn resize(&self, volume: &str, size: u64, force: bool) -> Result<()> {
        block_on(self.core.resize(volume, size, force))
    }

    /// Deletes a volume and, with `recursive`, its snapshots.
    ///
    /// # Errors
    /// `Conflict` when it has snapshots, holds or clients.
    pub fn delete_volume(&self, volume: &str, recursive: bool) -> Result<()> {
        block_on(self.core.delete_volume(volume, recursive))
    }

    /// The names of all exports: volumes, each followed by its snapshots.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing.
    pub fn exports(&self) -> Result<Vec<String>> {
        block_on(self.core.exports())
    }

    /// Finds `VOL` or `VOL@SNAP`; the empty name is the only volume, if there is one.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn export(&self, name: &str) -> Result<Export> {
        block_on(self.core.export(name))
    }

    /// Takes snapshots, all at one instant: all or none.
    ///
    /// # Errors
    /// `Conflict` when one exists; `Invalid` for two of one volume; `Io`, `Full`.
    pub fn snapshot(&self, names: &[SnapName]) -> Result<()> {
        block_on(self.core.snapshot(names))
    }

    /// Deletes snapshots, all or none. If that fails half-way, the rest is deleted by the
    /// next command that deletes, or when the store is opened again.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when one is held, open or a base; `Io`.
    pub fn delete_snapshots(&self, names: &[SnapName]) -> Result<()> {
        block_on(self.core.delete_snapshots(names))
    }

    /// Holds a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid` for the tag.
    pub fn hold(&self, name: &SnapName, tag: &str) -> Result<()> {
        block_on(self.core.hold(name, tag))
    }

    /// Lets go of a snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn release(&self, name: &SnapName, tag: &str) -> Result<()> {
        block_on(self.core.release(name, tag))
    }

    /// Makes production that snapshot again.
    ///
    /// # Errors
    /// `Conflict` while a client has the volume open, unless forced.
    pub fn rollback(&self, name: &SnapName, force: bool) -> Result<()> {
        block_on(self.core.rollback(name, force))
    }

    /// What changed from one snapshot to a younger one, or to now.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when `from` is not the older.
    pub fn diff(&self, from: &SnapName, to: Option<&str>) -> Result<Diff> {
        block_on(self.core.diff(from, to))
    }

    /// The stream, made while it is read.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`.
    pub fn send(&self, request: &SendRequest) -> Result<Box<dyn Read + Send>> {
        let source = block_on(self.core.source(request))?;
        Ok(Box::new(SendStream::read_ahead(Box::new(source))?))
    }

    /// The digests of a range of a snapshot, or of as much of it as one answer has.
    ///
    /// # Errors
    /// `NotFound` when the volume or the snapshot is gone; `Io`; `Corrupt` when not even the
    /// maps can be read.
    pub fn digests(&self, question: &Question) -> Result<Answer> {
        block_on(self.core.digests(question))
    }

    /// The content of a block of the snapshot that a comparison is about; none: it is damaged.
    ///
    /// # Errors
    /// As [`Self::digests`]; `OutOfRange`.
    pub fn content(&self, of: &BlockOf) -> Result<Option<Content>> {
        block_on(self.core.content(of.clone()))
    }

    /// Puts a damaged block of that snapshot right, durably. False: nothing proves that it had
    /// this content, and nothing was done.
    ///
    /// # Errors
    /// As [`Self::digests`]; `OutOfRange`.
    pub fn restore_content(&self, of: &BlockOf, content: &Content) -> Result<bool> {
        block_on(self.core.restore(of.clone(), content.clone()))
    }

    /// A comparison is done with a volume: its snapshot is closed.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn end_digests(&self, volume: &str, comparison: Uuid) -> Result<()> {
        block_on(self.core.end_digests(volume, comparison))
    }

    /// For a comparison, or until it is silent for a while, what every receiver of a volume has
    /// stays readable here.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn keep_readable(&self, volume: &str, comparison: Uuid) -> Result<()> {
        block_on(self.core.keep_readable(volume, comparison))
    }

    /// Identities of a volume's snapshots, those of replication among them, youngest first; with
    /// `bookmarks`, also of what is left of earlier ones.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn offers(&self, volume: &str, bookmarks: bool) -> Result<Vec<Uuid>> {
        block_on(async {
            if bookmarks { self.core.offers(volume).await } else { self.core.states(volume).await }
        })
    }

    /// Applies a stream; the answer comes when all of it is durable.
    ///
    /// # Errors
    /// `Conflict`, and what `delta::receiver` says of a stream.
    pub fn receive(&self, volume: &str, input: &mut (dyn Read + Send)) -> Result<Received> {
        block_on(self.core.receive(volume, input))
    }

    /// The receive that was begun and not ended.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn receive_status(&self, volume: &str) -> Result<Option<HalfReceived>> {
        block_on(self.core.receive_status(volume))
    }

    /// Drops what is half received; the volume is as before.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` while it runs.
    pub fn receive_abort(&self, volume: &str) -> Result<()> {
        block_on(self.core.receive_abort(volume))
    }

    /// Makes a secondary writable; with `force` also a primary that waits, or that gave way.
    ///
    /// # Errors
    /// `Conflict`.
    pub fn promote(&self, volume: &str, force: bool) -> Result<()> {
        block_on(self.core.promote(volume, force))
    }

    /// Whether a session feeds the volume.
    #[must_use]
    pub fn follows(&self, volume: &str) -> bool {
        self.core.fed_unit(volume).is_some()
    }

    /// Makes a primary a secondary.
    ///
    /// # Errors
    /// `Conflict` while a writer is connected, unless forced.
    pub fn demote(&self, volume: &str, force: bool) -> Result<()> {
        block_on(self.core.demote(volume, force))
    }

    /// Volumes and snapshots.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`.
    pub fn list(&self, volume: Option<&str>) -> Result<StoreInfo> {
        block_on(self.core.list(volume))
    }

    /// Layers and their checksums.
    ///
    /// # Errors
    /// What keeps it from looking.
    pub fn check_open(&self) -> Result<CheckReport> {
        block_on(self.core.verify(None, false))
    }

    /// Verifies every stored byte that has a checksum.
    ///
    /// # Errors
    /// `NotFound`, or what keeps it from looking.
    pub fn scrub(&self, volume: Option<&str>) -> Result<CheckReport> {
        block_on(self.core.verify(volume, true))
    }

    /// All open volumes in figures, sorted by name.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing.
    pub fn figures(&self) -> Result<Vec<VolumeFigures>> {
        block_on(self.core.figures())
    }

    /// Clients and transfers; what the daemon knows of itself is its to fill in.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing.
    pub fn status(&self) -> Result<Status> {
        let mut status = block_on(self.core.status())?;
        status.space = self.space(status.volumes.iter().map(|v| v.reserved).sum());
        Ok(status)
    }
}

/// Makes the names in a directory durable.
fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Checks that there is a store of a known version, and locks it.
fn lock(dir: &Path) -> Result<(File, StoreHeader)> {
    let path = paths::store_file(dir);
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Err(Error::not_found(format!("there is no store in {}", dir.display()))
                .hint(format!("'snapvol --store {} init' makes one", dir.display())));
        }
        Err(error) => return Err(Error::os(format!("cannot read {}", path.display()), error)),
    };
    let header = StoreHeader::decode(&bytes).map_err(|e| e.context(path.display().to_string()))?;
    let path = paths::lock_file(dir);
    let file = FileOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::os(format!("cannot open {}", path.display()), e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok((file, header)),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::conflict(format!("another process has the store {} open", dir.display()))
                .hint("wait until it has ended, or work through its daemon"))
        }
        Err(error) => Err(Error::os(format!("cannot lock {}", path.display()), error.into())),
    }
}

#[cfg(test)]
mod tests;
