//! The store's decisions: every command as an async function over the engines.
//!
//! Nothing here blocks, opens a file, reads a clock or starts a thread: what has to be
//! read or written is an operation of some engine, and each command goes on when an
//! engine has answered. [`super::Store`] runs it for threads that wait; a simulation runs
//! it with engines on simulated disks.
//!
//! Invariants:
//! - commands over several volumes, and those that make or remove one, take turns;
//! - what an open believes (names of volumes, `batches`, `deleting`) is durable first;
//! - no two open volumes have the same identity.

use super::api::CreateOptions;
use super::batch::{self, Batches, Deletions};
use super::drill::is_drill;
use super::export::Export;
use super::groups::{self, Groups};
use super::sessions::{self, Sessions};
use super::thread::{Engine, Handle, Pending, no_volume};
use super::turns::Turns;
use super::upkeep::{self, Upkeep};
use super::volumes;
use crate::error::{Error, Result};
use crate::snapshot::{DeleteCheck, Volume};
use crate::store::Tuning;
use crate::store::reserve::Lending;
use crate::types::{Geometry, Name, OnFull, Role};
use futures::StreamExt;
use futures::lock::{Mutex, MutexGuard};
use futures::stream;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use uuid::Uuid;

/// Volumes that are opened beside each other: they wait for syncs most of the time, and one
/// that was not closed takes memory for its journal.
const OPENED_AT_ONCE: usize = 8;

/// Where a volume lives.
pub(super) enum Place {
    Open(Handle),
    /// It could not be opened, and why.
    Broken(Error),
}

/// What the turns of [`Core::admin`] guard.
#[derive(Default)]
pub(super) struct Admin {
    /// Deletions that the file `deleting` names and that are not done yet.
    pub unfinished: Deletions,
    /// Why that file can't be read; nothing is written over it.
    pub damage: Option<Error>,
}

/// The volumes of a store and the engines they live on.
pub(crate) struct Core {
    pub(super) dir: PathBuf,
    pub(super) handles: Vec<Handle>,
    pub(super) tuning: Tuning,
    lending: Lending,
    places: RwLock<BTreeMap<String, Place>>,
    admin: Mutex<Admin>,
    pub(super) identity: Uuid,
    pub(super) sessions: Sessions,
    pub(super) upkeep: Upkeep,
    pub(super) groups: Groups,
    /// Volumes that are taking their sender's place at this moment.
    pub(super) turning: std::sync::Mutex<BTreeSet<String>>,
    /// Who takes a cut of a volume.
    cutting: std::sync::Mutex<BTreeMap<String, Turns>>,
}

impl Core {
    /// Opens every volume of the store in `dir`. A volume that can't be opened stays closed
    /// and says why when it is asked for; the others work.
    ///
    /// # Errors
    /// `Io` when the store's own files can't be read.
    pub(super) async fn open(
        dir: &Path,
        identity: Uuid,
        handles: Vec<Handle>,
        tuning: Tuning,
    ) -> Result<Self> {
        let mut core = Self {
            dir: dir.to_owned(),
            handles,
            tuning,
            lending: Lending::default(),
            places: RwLock::default(),
            admin: Mutex::default(),
            identity,
            sessions: Sessions::default(),
            upkeep: Upkeep::default(),
            groups: Groups::default(),
            turning: std::sync::Mutex::default(),
            cutting: std::sync::Mutex::default(),
        };
        let (batches, found, sessions, upkeep, groups) = core
            .on_store(|engine, dir| async move {
                let batches = batch::committed(&engine.io, &dir, true).await?;
                let found = volumes::found(&engine.io, &dir).await?;
                let sessions = sessions::read(&engine.io, &dir, true).await?;
                let upkeep = upkeep::read(&engine.io, &dir, true).await?;
                Ok((batches, found, sessions, upkeep, groups::read(&engine.io, &dir, true).await?))
            })
            .await?;
        for (file, error) in &sessions.damaged {
            tracing::error!("the session {file} can't be read: {error}");
        }
        if let Some(error) = &upkeep.damage {
            tracing::error!("nothing is done by schedule: {error}");
        }
        if let Some(error) = &groups.damage {
            tracing::error!("nobody knows which volumes belong together: {error}");
        }
        core.sessions = sessions;
        core.upkeep = upkeep;
        core.groups = groups;
        let (drills, found) = found.into_iter().partition(|(name, _)| is_drill(name));
        core.open_volumes(found, &batches).await;
        core.open_drills(drills, &batches).await;
        if let Err(error) = core.finish_deletions().await {
            // The snapshots stay; the file says which were meant.
            tracing::error!("deletions that a crash interrupted are not completed: {error}");
        }
        core.finish_groups().await;
        core.hold_unconfirmed().await;
        Ok(core)
    }

    async fn open_volumes(&self, found: Vec<(String, Option<Uuid>)>, batches: &Batches) {
        let mut owners: BTreeMap<Uuid, String> = BTreeMap::new();
        let mut round: Vec<(usize, String, Option<Uuid>)> = Vec::new();
        let mut copies: Vec<(usize, String, Uuid)> = Vec::new();
        for (index, (name, uuid)) in found.into_iter().enumerate() {
            match uuid.filter(|uuid| owners.contains_key(uuid)) {
                Some(uuid) => copies.push((index, name, uuid)),
                None => {
                    owners.extend(uuid.map(|uuid| (uuid, name.clone())));
                    round.push((index, name, uuid));
                }
            }
        }
        let opening = round.iter().map(|(index, name, _)| self.open_volume(*index, name, batches));
        let opened: Vec<bool> = stream::iter(opening).buffered(OPENED_AT_ONCE).collect().await;
        for ((_, _, uuid), opened) in round.iter().zip(opened) {
            if !opened {
                uuid.map(|uuid| owners.remove(&uuid));
            }
        }
        // Of several with one identity, the first that opens.
        for (index, name, uuid) in copies {
            if let Some(twin) = owners.get(&uuid) {
                self.not_opened(name.clone(), volumes::is_a_copy(&name, twin));
            } else if self.open_volume(index, &name, batches).await {
                owners.insert(uuid, name);
            }
        }
    }

    /// Opens one volume; whether it is open now.
    async fn open_volume(&self, index: usize, name: &str, batches: &Batches) -> bool {
        let handle = &self.handles[index % self.handles.len()];
        match volumes::open(handle, &self.dir, name, self.tuning, batches).await {
            Ok(()) => {
                self.share_lending(handle, name);
                self.places_mut().insert(name.to_owned(), Place::Open(handle.clone()));
                true
            }
            Err(error) => {
                self.not_opened(name.to_owned(), error);
                false
            }
        }
    }

    pub(super) fn not_opened(&self, name: String, error: Error) {
        tracing::error!("volume {name} stays closed: {error}");
        self.places_mut().insert(name, Place::Broken(error));
    }

    /// Lets a volume know when another one works with the last space there is. The engine
    /// hears of it before anything that is asked of the volume later.
    pub(super) fn share_lending(&self, engine: &Handle, volume: &str) {
        let (lending, name) = (self.lending.clone(), volume.to_owned());
        drop(engine.call(move |engine| async move {
            engine.volume(&name)?.share_lending(&lending);
            Ok(())
        }));
    }

    /// Closes every volume, which disconnects its clients; then nothing is committed any
    /// more that a volume does not know of itself.
    ///
    /// # Errors
    /// The first volume's that could not be closed; the others are.
    pub async fn close(&self) -> Result<()> {
        let _admin = self.admin().await;
        let places = std::mem::take(&mut *self.places_mut());
        let mut first = None;
        let mut all_clean = true;
        // A drill reads from its volume as long as it is open.
        let (drills, volumes): (Vec<_>, Vec<_>) = places.into_iter().partition(|(name, _)| is_drill(name));
        for (name, place) in drills.into_iter().chain(volumes) {
            let Place::Open(engine) = place else {
                all_clean = false;
                continue;
            };
            let closed = engine.call(move |engine| async move {
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
            if let Err(error) = closed.await {
                tracing::error!("{error}");
                all_clean = false;
                first = first.or(Some(error));
            }
        }
        if all_clean {
            self.on_store(|engine, dir| async move { batch::forget(&engine.io, &dir).await }).await?;
        }
        first.map_or(Ok(()), Err)
    }

    /// What keeps two cuts of a volume from being taken at once.
    pub(super) fn cutting(&self, volume: &str) -> Turns {
        let mut all = self.cutting.lock().unwrap_or_else(PoisonError::into_inner);
        all.entry(volume.to_owned()).or_default().clone()
    }

    /// The store's directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Waits for the commands that take turns.
    pub(super) async fn admin(&self) -> MutexGuard<'_, Admin> {
        self.admin.lock().await
    }

    /// Takes a turn if nobody else has one.
    pub(super) fn try_admin(&self) -> Option<MutexGuard<'_, Admin>> {
        self.admin.try_lock()
    }

    pub(super) fn places(&self) -> RwLockReadGuard<'_, BTreeMap<String, Place>> {
        self.places.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn places_mut(&self) -> RwLockWriteGuard<'_, BTreeMap<String, Place>> {
        self.places.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The names of all volumes, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        self.places().keys().cloned().collect()
    }

    /// Whether there is a volume of that name.
    pub(crate) fn has_volume(&self, volume: &str) -> bool {
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

    /// Runs a task on a volume's engine.
    pub(super) async fn on_engine<T, F, Fut>(&self, volume: &str, task: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>, String) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let name = volume.to_owned();
        self.engine_of(volume)?.call(move |engine| task(engine, name)).await
    }

    /// Runs a task with a volume, on its engine.
    pub(crate) async fn with<T, F, Fut>(&self, volume: &str, task: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Volume>) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        self.on_engine(volume, |engine, name| async move { task(engine.volume(&name)?).await }).await
    }

    /// Runs a task about the store's own files, on an engine that does those.
    pub(super) fn on_store<T, F, Fut>(&self, task: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(Rc<Engine>, PathBuf) -> Fut + Send + 'static,
        Fut: Future<Output = Result<T>> + 'static,
    {
        let dir = self.dir.clone();
        self.handles[0].call(move |engine| task(engine, dir))
    }

    /// Makes a volume, sparse.
    pub async fn create(&self, volume: &str, options: &CreateOptions, role: Role) -> Result<()> {
        volume.parse::<Name>()?;
        let _admin = self.admin().await;
        self.check_name_free(volume)?;
        let count = self.places().len();
        let engine = &self.handles[count % self.handles.len()];
        volumes::create(engine, &self.dir, volume, options, role).await?;
        let opened = volumes::open(engine, &self.dir, volume, self.tuning, &Batches::default()).await;
        let place = match &opened {
            Ok(()) => {
                self.share_lending(engine, volume);
                Place::Open(engine.clone())
            }
            Err(error) => Place::Broken(error.duplicate()),
        };
        self.places_mut().insert(volume.to_owned(), place);
        opened
    }

    /// Changes what happens when space runs out.
    pub async fn set_on_full(&self, volume: &str, on_full: OnFull) -> Result<()> {
        self.with(volume, move |volume| async move { volume.set_on_full(on_full).await }).await
    }

    /// Sets a volume's size, in bytes.
    pub async fn resize(&self, volume: &str, size: u64, force: bool) -> Result<()> {
        self.check_not_fed(volume, "another size")?;
        self.on_engine(volume, move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let old = volume.geometry();
            Geometry::new(size, old.block_size, old.granularity)?;
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
        .await
    }

    /// Deletes a volume and, with `recursive`, its snapshots.
    pub async fn delete_volume(&self, volume: &str, recursive: bool) -> Result<()> {
        let _admin = self.admin().await;
        self.check_not_fed(volume, "its deletion")?;
        self.check_not_followed(volume)?;
        self.check_not_member(volume)?;
        self.check_no_drills(volume)?;
        let closed = self
            .on_engine(volume, move |engine, name| async move {
                let found = engine.volume(&name)?;
                check_removal(&engine, &name, &found, recursive)?;
                engine.volumes.borrow_mut().remove(&name);
                Ok(found.close().await.err())
            })
            .await?;
        let gone = match closed {
            Some(error) => Err(error),
            None => volumes::remove(&self.handles[0], &self.dir, volume).await,
        };
        let mut places = self.places_mut();
        match &gone {
            Ok(()) => places.remove(volume),
            // It is half closed, or its name may come back: the next open knows.
            Err(error) => {
                let said = error.duplicate().hint("open the store again, then delete the volume");
                places.insert(volume.to_owned(), Place::Broken(said))
            }
        };
        gone
    }

    /// The names of all exports: volumes, each followed by its snapshots.
    pub async fn exports(&self) -> Result<Vec<String>> {
        let mut exports = Vec::new();
        for name in self.names() {
            let snapshots = self.with(&name, |volume| async move { Ok(volume.snapshots()) }).await;
            if let Ok(snapshots) = snapshots {
                exports.push(name.clone());
                exports.extend(snapshots.into_iter().map(|record| format!("{name}@{}", record.name)));
            }
        }
        Ok(exports)
    }

    /// Finds `VOL` or `VOL@SNAP`; the empty name is the only volume, if there is one.
    pub async fn export(&self, name: &str) -> Result<Export> {
        let (volume, snapshot) = match name.split_once('@') {
            Some((volume, snapshot)) => (volume.to_owned(), Some(snapshot.to_owned())),
            None if name.is_empty() => match &self.volume_names()[..] {
                [only] => (only.clone(), None),
                _ => {
                    return Err(Error::not_found("the empty export name means nothing here")
                        .hint("name a volume: the store does not have just one"));
                }
            },
            None => (name.to_owned(), None),
        };
        let engine = self.engine_of(&volume)?;
        if let Some(snapshot) = snapshot.clone() {
            self.with(&volume, move |volume| async move { volume.open_snapshot(&snapshot).map(drop) })
                .await?;
        }
        let name = snapshot.as_ref().map_or_else(|| volume.clone(), |s| format!("{volume}@{s}"));
        Ok(Export { name, volume, snapshot, engine })
    }
}

/// Why a volume is not removed, if something is against it.
fn check_removal(engine: &Engine, name: &str, volume: &Rc<Volume>, recursive: bool) -> Result<()> {
    let clients = engine.clients.of(name, true).len();
    if clients > 0 {
        return Err(Error::conflict(format!("volume {name} has {clients} clients connected"))
            .hint("disconnect them first"));
    }
    let snapshots = volume.snapshots();
    for record in &snapshots {
        let (_, check) = volume.can_delete(&record.name)?;
        if check != DeleteCheck::Free
            && let Some(error) = volume.refusal(&record.name, &check)
        {
            return Err(error);
        }
    }
    if !snapshots.is_empty() && !recursive {
        return Err(Error::conflict(format!("volume {name} has {} snapshots", snapshots.len()))
            .hint("--recursive deletes them with it"));
    }
    Ok(())
}
