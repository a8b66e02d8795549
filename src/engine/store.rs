//! The store as its owner sees it: thread-safe, blocking, every command a method.
//!
//! `serve` keeps one open and answers the control socket with it; any other command
//! opens one for itself when nobody serves. Both do the same work the same way.

use super::api::CreateOptions;
use super::export::Export;
use super::thread::{EngineThread, Handle, no_volume};
use super::{batch, volumes};
use crate::error::{Error, Result};
use crate::format::store::StoreHeader;
use crate::io::DriverKind;
use crate::snapshot::{DeleteCheck, Volume};
use crate::store::paths;
use crate::store::reserve::Lending;
use crate::types::{Name, OnFull, Role};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions as FileOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use uuid::Uuid;

/// How a store is opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct OpenOptions {
    /// Which driver its engines use.
    pub driver: DriverKind,
    /// How many engine threads; 0: one a core.
    pub threads: usize,
}

/// Where a volume lives.
pub(super) enum Place {
    Open(Handle),
    /// It could not be opened, and why.
    Broken(Error),
}

/// An open store: the lock on its directory and the engines of its volumes.
pub struct Store {
    pub(super) dir: PathBuf,
    pub(super) io_engine: &'static str,
    engines: Mutex<Vec<EngineThread>>,
    pub(super) handles: Vec<Handle>,
    places: RwLock<BTreeMap<String, Place>>,
    /// Commands over several volumes, and those that make or remove one, take turns.
    admin: Mutex<()>,
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
        batch::sync_dir(dir)?;
        if let Some(parent) = parents {
            batch::sync_dir(parent)?;
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
        let lock = lock(dir)?;
        let committed = batch::committed(&paths::batches(dir))?;
        let names = volumes::names(dir)?;
        let count = if options.threads > 0 {
            options.threads
        } else {
            std::thread::available_parallelism().map_or(1, usize::from)
        };
        let lending = Lending::default();
        let engines = (0..count)
            .map(|n| EngineThread::start(n, options.driver, lending.clone()))
            .collect::<Result<Vec<_>>>()?;
        let handles: Vec<Handle> = engines.iter().map(|e| e.handle.clone()).collect();
        let io_engine = handles[0].call(|engine| async move { Ok(engine.io.driver_name()) })?;
        let store = Self {
            dir: dir.to_owned(),
            io_engine,
            engines: Mutex::new(engines),
            handles,
            places: RwLock::default(),
            admin: Mutex::new(()),
            lock: Mutex::new(Some(lock)),
        };
        store.open_volumes(&names, &committed);
        if let Err(error) = store.finish_deletions() {
            // The snapshots stay; the file says which were meant.
            tracing::error!("deletions that a crash interrupted are not completed: {error}");
        }
        Ok(Arc::new(store))
    }

    fn open_volumes(&self, names: &[String], committed: &BTreeSet<Uuid>) {
        for (index, name) in names.iter().enumerate() {
            let handle = &self.handles[index % self.handles.len()];
            let place = match volumes::open(handle, &self.dir, name, committed) {
                Ok(()) => Place::Open(handle.clone()),
                Err(error) => {
                    tracing::error!("volume {name} stays closed: {error}");
                    Place::Broken(error)
                }
            };
            self.places_mut().insert(name.clone(), place);
        }
    }

    /// Does again what a crash may have left undone.
    fn finish_deletions(&self) -> Result<()> {
        let intended = batch::intended(&self.dir)?;
        if intended.is_empty() {
            return Ok(());
        }
        for (volume, snapshots) in intended {
            if let Ok(engine) = self.engine_of(&volume) {
                engine.call(move |engine| async move { engine.volume(&volume)?.delete(&snapshots).await })?;
            }
        }
        batch::done(&self.dir)
    }

    /// Disconnects clients, settles, marks everything clean, releases the lock.
    ///
    /// # Errors
    /// The first volume's that could not be closed; the others are.
    pub fn close(&self) -> Result<()> {
        let _admin = self.admin();
        let places = std::mem::take(&mut *self.places_mut());
        let mut first = None;
        let mut all_clean = true;
        for (name, place) in places {
            let Place::Open(engine) = place else {
                all_clean = false;
                continue;
            };
            let result = engine.call(move |engine| async move {
                if let Ok(volume) = engine.volume(&name) {
                    // Requests that wait for space would keep their clients connected.
                    volume.stop_waiting();
                }
                engine.clients.disconnect(&name, true).await;
                let volume = engine.volumes.borrow_mut().remove(&name);
                match volume {
                    Some(volume) => volume.close().await,
                    None => Ok(()),
                }
            });
            if let Err(error) = result {
                tracing::error!("{error}");
                all_clean = false;
                first = first.or(Some(error));
            }
        }
        for engine in &mut *self.engines.lock().unwrap_or_else(PoisonError::into_inner) {
            engine.stop();
        }
        if all_clean {
            batch::forget(&paths::batches(&self.dir))?;
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
        first.map_or(Ok(()), Err)
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The device and inode of the lock that is held.
    pub(super) fn locked(&self) -> Option<(u64, u64)> {
        let lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let metadata = lock.as_ref()?.metadata().ok()?;
        Some((metadata.dev(), metadata.ino()))
    }

    pub(super) fn admin(&self) -> MutexGuard<'_, ()> {
        self.admin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn places(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Place>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn places_mut(&self) -> std::sync::RwLockWriteGuard<'_, BTreeMap<String, Place>> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is a volume of that name.
    pub(super) fn has_volume(&self, volume: &str) -> bool {
        self.places().contains_key(volume)
    }

    /// The engine of a volume.
    pub(super) fn engine_of(&self, volume: &str) -> Result<Handle> {
        match self.places().get(volume) {
            Some(Place::Open(engine)) => Ok(engine.clone()),
            Some(Place::Broken(error)) => Err(error.duplicate()),
            None => Err(no_volume(volume)),
        }
    }

    /// Runs a task with a volume, on its engine.
    pub(super) fn with<T, F, Fut>(&self, volume: &str, task: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Volume>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let name = volume.to_owned();
        self.engine_of(volume)?.call(move |engine| async move { task(engine.volume(&name)?).await })
    }

    /// Makes a volume, sparse.
    ///
    /// # Errors
    /// `Invalid`, `Conflict` when the name is taken, `Unsupported` when the file system has
    /// no such files.
    pub fn create(&self, volume: &str, options: &CreateOptions) -> Result<()> {
        self.create_as(volume, options, Role::Primary)
    }

    /// The same with a role.
    pub(super) fn create_as(&self, volume: &str, options: &CreateOptions, role: Role) -> Result<()> {
        volume.parse::<Name>()?;
        let _admin = self.admin();
        if self.has_volume(volume) {
            return Err(Error::conflict(format!("volume {volume} exists already")));
        }
        let count = self.places().len();
        let engine = &self.handles[count % self.handles.len()];
        volumes::create(engine, &self.dir, volume, options, role)?;
        volumes::open(engine, &self.dir, volume, &BTreeSet::new())?;
        self.places_mut().insert(volume.to_owned(), Place::Open(engine.clone()));
        Ok(())
    }

    /// Changes what happens when space runs out.
    ///
    /// # Errors
    /// `NotFound`, `Io`.
    pub fn set_on_full(&self, volume: &str, on_full: OnFull) -> Result<()> {
        self.with(volume, move |volume| async move { volume.set_on_full(on_full).await })
    }

    /// Sets a volume's size, in bytes.
    ///
    /// # Errors
    /// `Conflict` for a shrink without `force`; as for a write.
    pub fn resize(&self, volume: &str, size: u64, force: bool) -> Result<()> {
        let name = volume.to_owned();
        self.engine_of(volume)?.call(move |engine| async move {
            let volume = engine.volume(&name)?;
            let old = volume.geometry();
            crate::types::Geometry::new(size, old.block_size, old.granularity)?;
            if size < old.size {
                if !force {
                    return Err(Error::conflict(format!(
                        "{size} bytes is less than volume {name} has ({})",
                        old.size
                    ))
                    .hint("--force cuts off what is beyond, and disconnects clients"));
                }
                engine.clients.disconnect(&name, false).await;
            }
            volume.resize(size).await
        })
    }

    /// Deletes a volume and, with `recursive`, its snapshots.
    ///
    /// # Errors
    /// `Conflict` when it has snapshots, holds or clients.
    pub fn delete_volume(&self, volume: &str, recursive: bool) -> Result<()> {
        let _admin = self.admin();
        let name = volume.to_owned();
        let engine = self.engine_of(volume)?;
        engine.call(move |engine| async move {
            let found = engine.volume(&name)?;
            let clients = engine.clients.of(&name, true).len();
            if clients > 0 {
                return Err(Error::conflict(format!("volume {name} has {clients} clients connected"))
                    .hint("disconnect them first"));
            }
            let snapshots = found.snapshots();
            for record in &snapshots {
                let (_, check) = found.can_delete(&record.name)?;
                if check != DeleteCheck::Free
                    && let Some(error) = found.refusal(&record.name, &check)
                {
                    return Err(error);
                }
            }
            if !snapshots.is_empty() && !recursive {
                return Err(Error::conflict(format!("volume {name} has {} snapshots", snapshots.len()))
                    .hint("--recursive deletes them with it"));
            }
            engine.volumes.borrow_mut().remove(&name);
            found.close().await
        })?;
        self.places_mut().remove(volume);
        volumes::remove(&self.dir, volume)
    }

    /// The names of all exports: volumes, each followed by its snapshots.
    ///
    /// # Errors
    /// `Interrupted` when the store is closing.
    pub fn exports(&self) -> Result<Vec<String>> {
        let names: Vec<String> = self.places().keys().cloned().collect();
        let mut exports = Vec::new();
        for name in names {
            let snapshots = self.with(&name, |volume| async move { Ok(volume.snapshots()) });
            if let Ok(snapshots) = snapshots {
                exports.push(name.clone());
                exports.extend(snapshots.into_iter().map(|record| format!("{name}@{}", record.name)));
            }
        }
        Ok(exports)
    }

    /// Finds `VOL` or `VOL@SNAP`; the empty name is the only volume, if there is one.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn export(self: &Arc<Self>, name: &str) -> Result<Export> {
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume.to_owned(), Some(snapshot.to_owned())),
            None if name.is_empty() => {
                let places = self.places();
                let mut names = places.keys();
                match (names.next(), names.next()) {
                    (Some(only), None) => (only.clone(), None),
                    _ => {
                        return Err(Error::not_found("the empty export name means nothing here")
                            .hint("name a volume: the store does not have just one"));
                    }
                }
            }
            None => (name.to_owned(), None),
        };
        let engine = self.engine_of(&volume)?;
        if let Some(snapshot) = snapshot.clone() {
            self.with(&volume, move |volume| async move { volume.open_snapshot(&snapshot).map(drop) })?;
        }
        let name = snapshot.as_ref().map_or_else(|| volume.clone(), |s| format!("{volume}@{s}"));
        Ok(Export { name, volume, snapshot, engine })
    }
}

/// Checks that there is a store of a known version, and locks it.
pub(super) fn lock(dir: &Path) -> Result<File> {
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
    StoreHeader::decode(&bytes).map_err(|e| e.context(path.display().to_string()))?;
    let path = paths::lock_file(dir);
    let file = FileOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(|e| Error::os(format!("cannot open {}", path.display()), e))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => {
            Err(Error::conflict(format!("another process has the store {} open", dir.display()))
                .hint("wait until it has ended, or work through its daemon"))
        }
        Err(error) => Err(Error::os(format!("cannot lock {}", path.display()), error.into())),
    }
}
