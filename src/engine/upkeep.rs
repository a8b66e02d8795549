//! What a store remembers of its volumes' schedules and sources: the file `upkeep`.
//!
//! Invariants: what is in memory is what the file says, and changes only once that is durable;
//! while the file can't be read nothing is changed and nothing is done by schedule, since nobody
//! knows which snapshots a schedule took.

use super::api::UpdateSource;
use super::core::Core;
use super::store::Store;
use crate::error::{Error, Result};
use crate::format::upkeep::{self, Made, VolumeUpkeep};
use crate::io::Io;
use crate::store::small_file;
use futures::executor::block_on;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{PoisonError, RwLock};
use uuid::Uuid;

/// What the file says.
#[derive(Default)]
pub(super) struct Upkeep {
    known: RwLock<BTreeMap<Uuid, VolumeUpkeep>>,
    /// Why it can't be read.
    pub damage: Option<Error>,
    /// It is written by one at a time.
    writing: futures::lock::Mutex<()>,
    /// What schedules do, which no file says.
    pub running: super::schedule::Running,
}

fn path_of(store: &Path) -> PathBuf {
    store.join("upkeep")
}

/// Reads the file. With `sync` what is read is durable, and what a crash left goes.
pub(super) async fn read(io: &Io, store: &Path, sync: bool) -> Result<Upkeep> {
    let path = path_of(store);
    let mut found = Upkeep::default();
    if sync {
        small_file::tidy(io, &path).await?;
    }
    let volumes = match small_file::read(io, &path, sync).await {
        Ok(None) => return Ok(found),
        Ok(Some(bytes)) => upkeep::decode(&bytes),
        Err(error) => Err(error),
    };
    let volumes = volumes.map_err(|error| {
        error.context(path.display().to_string()).hint(
            "restore the file from a copy, or remove it: then schedules and sources are forgotten, \
             and the snapshots that schedules took stay",
        )
    });
    match volumes {
        Ok(volumes) => {
            let known = volumes.into_iter().map(|volume| (volume.volume, volume)).collect();
            found.known = RwLock::new(known);
        }
        Err(error) => found.damage = Some(error),
    }
    Ok(found)
}

async fn write(io: &Io, store: &Path, volumes: &[VolumeUpkeep]) -> Result<()> {
    small_file::write(io, &path_of(store), upkeep::encode(volumes).into()).await
}

impl Core {
    /// What is known of a volume of that identity.
    pub(super) fn upkeep_of(&self, volume: Uuid) -> VolumeUpkeep {
        let known = self.upkeep.known.read().unwrap_or_else(PoisonError::into_inner);
        known.get(&volume).cloned().unwrap_or(VolumeUpkeep { volume, ..VolumeUpkeep::default() })
    }

    /// The volumes that have a schedule, by identity.
    pub(super) fn scheduled(&self) -> Vec<Uuid> {
        let known = self.upkeep.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().filter(|volume| volume.schedule.is_some()).map(|volume| volume.volume).collect()
    }

    /// What a schedule took under that identity, of any volume.
    pub(super) fn made(&self, snapshot: Uuid) -> Option<Made> {
        let known = self.upkeep.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().flat_map(|volume| &volume.made).find(|made| made.snapshot == snapshot).copied()
    }

    /// Changes what is known of a volume, durably. What is known of volumes that are gone goes.
    ///
    /// # Errors
    /// `Corrupt` while the file can't be read; `Io`, `Full`.
    pub(super) async fn change_upkeep(
        &self,
        volume: Uuid,
        change: impl FnOnce(&mut VolumeUpkeep),
    ) -> Result<()> {
        if let Some(damage) = &self.upkeep.damage {
            return Err(damage.duplicate());
        }
        let _writing = self.upkeep.writing.lock().await;
        let mut there: BTreeSet<Uuid> = BTreeSet::from([volume]);
        for name in self.volume_names() {
            match self.with(&name, |volume| async move { Ok(volume.uuid()) }).await {
                Ok(uuid) => there.insert(uuid),
                // Nobody knows which one it is.
                Err(_) => {
                    there.extend(self.upkeep_all().into_iter().map(|known| known.volume));
                    break;
                }
            };
        }
        let mut changed = self.upkeep_of(volume);
        change(&mut changed);
        let mut all = self.upkeep_all();
        all.retain(|known| known.volume != volume && there.contains(&known.volume));
        all.push(changed);
        let written = all.clone();
        self.on_store(move |engine, dir| async move { write(&engine.io, &dir, &written).await }).await?;
        let mut known = self.upkeep.known.write().unwrap_or_else(PoisonError::into_inner);
        *known = all.into_iter().map(|volume| (volume.volume, volume)).collect();
        Ok(())
    }

    /// From where a volume is updated.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` while nobody knows.
    pub async fn update_source(&self, volume: &str) -> Result<UpdateSource> {
        let (uuid, ..) = self.unit(volume).await?;
        if let Some(damage) = &self.upkeep.damage {
            return Err(damage.duplicate());
        }
        let VolumeUpkeep { source, remote_command, checked_us, .. } = self.upkeep_of(uuid);
        Ok(UpdateSource { source, remote_command, checked_us })
    }

    /// Remembers from where a volume is updated, and when it was asked.
    ///
    /// # Errors
    /// `NotFound`; `Corrupt` while the file can't be read; `Io`, `Full`.
    pub async fn remember_source(&self, volume: &str, of: UpdateSource) -> Result<()> {
        let (uuid, ..) = self.unit(volume).await?;
        self.change_upkeep(uuid, |known| {
            (known.source, known.remote_command, known.checked_us) =
                (of.source, of.remote_command, of.checked_us);
        })
        .await
    }

    fn upkeep_all(&self) -> Vec<VolumeUpkeep> {
        let known = self.upkeep.known.read().unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }
}

impl Store {
    /// From where a volume is updated.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`.
    pub fn update_source(&self, volume: &str) -> Result<UpdateSource> {
        block_on(self.core.update_source(volume))
    }

    /// Remembers from where a volume is updated, and when it was asked.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt`, `Io`, `Full`.
    pub fn remember_source(&self, volume: &str, of: UpdateSource) -> Result<()> {
        block_on(self.core.remember_source(volume, of))
    }
}
