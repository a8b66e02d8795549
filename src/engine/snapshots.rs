//! What a store does with snapshots: taken at one instant, deleted, held, rolled back to,
//! compared.

use super::api::{Diff, DiffExtent, DiffKind};
use super::store::Store;
use super::thread::Handle;
use super::{batch, volumes};
use crate::error::{Error, Result};
use crate::snapshot::TakeRequest;
use crate::store::paths;
use crate::types::{Name, SnapName};
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

impl Store {
    /// Takes snapshots, all at one instant: all or none.
    ///
    /// # Errors
    /// `Conflict` when one exists; `Invalid` for two of one volume; `Io`, `Full`.
    pub fn snapshot(&self, names: &[SnapName]) -> Result<()> {
        let _admin = self.admin();
        let volumes: BTreeSet<&Name> = names.iter().map(|n| &n.volume).collect();
        if volumes.len() < names.len() {
            return Err(
                Error::invalid("a volume is named twice").hint("take one snapshot of each volume at a time")
            );
        }
        if let [name] = names {
            let request = request(name, volumes::now_us(), None);
            return self.with(name.volume.as_str(), move |volume| async move { volume.take(request).await });
        }
        self.snapshot_batch(names)
    }

    fn snapshot_batch(&self, names: &[SnapName]) -> Result<()> {
        let batch_id = Uuid::new_v4();
        let created = volumes::now_us();
        let mut prepared: Vec<(Handle, String)> = Vec::new();
        let mut result: Result<()> = Ok(());
        for name in names {
            let request = request(name, created, Some(batch_id));
            let volume = name.volume.to_string();
            let step = self.engine_of(&volume).and_then(|engine| {
                let key = volume.clone();
                engine.call(move |engine| async move {
                    let found = engine.volume(&key)?;
                    let ticket = found.prepare_take(request).await?;
                    found.pause();
                    engine.tickets.borrow_mut().insert(key, ticket);
                    Ok(())
                })?;
                Ok(engine)
            });
            match step {
                Ok(engine) => prepared.push((engine, volume)),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // All clients' writes wait now: this is the instant.
        if result.is_ok() {
            for (engine, volume) in &prepared {
                let key = volume.clone();
                result = result.and(engine.call(move |engine| async move {
                    if let Some(ticket) = engine.tickets.borrow_mut().get_mut(&key) {
                        ticket.raise();
                    }
                    Ok(())
                }));
            }
        }
        for (engine, volume) in &prepared {
            let key = volume.clone();
            let _ = engine.call(move |engine| async move {
                engine.volume(&key)?.resume();
                Ok(())
            });
        }
        if result.is_ok() {
            let pending: Vec<_> = prepared
                .iter()
                .map(|(engine, volume)| {
                    let key = volume.clone();
                    engine.start(move |engine| async move {
                        let ticket = engine.tickets.borrow_mut().remove(&key);
                        let Some(mut ticket) = ticket else { return Ok(()) };
                        let result = ticket.finish().await;
                        engine.tickets.borrow_mut().insert(key, ticket);
                        result
                    })
                })
                .collect();
            for answer in pending {
                result = result.and(answer.wait());
            }
        }
        let committed = result.and_then(|()| batch::commit(&paths::batches(&self.dir), batch_id));
        let commit = committed.is_ok();
        for (engine, volume) in prepared {
            let done = engine.call(move |engine| async move {
                let ticket = engine.tickets.borrow_mut().remove(&volume);
                match ticket {
                    Some(ticket) if commit => {
                        ticket.publish();
                        Ok(())
                    }
                    Some(ticket) => ticket.undo().await,
                    None => Ok(()),
                }
            });
            if let Err(error) = done {
                tracing::error!("{error}");
            }
        }
        committed
    }

    /// Deletes snapshots, all or none.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` when one is held, open or a base; `Io`.
    pub fn delete_snapshots(&self, names: &[SnapName]) -> Result<()> {
        let _admin = self.admin();
        let mut deletions: BTreeMap<String, Vec<Uuid>> = BTreeMap::new();
        for name in names {
            let snapshot = name.snapshot.to_string();
            let uuid = self.with(name.volume.as_str(), move |volume| async move {
                let (uuid, check) = volume.can_delete(&snapshot)?;
                match volume.refusal(&snapshot, &check) {
                    Some(error) => Err(error),
                    None => Ok(uuid),
                }
            })?;
            let list = deletions.entry(name.volume.to_string()).or_default();
            if !list.contains(&uuid) {
                list.push(uuid);
            }
        }
        let deletions: Vec<(String, Vec<Uuid>)> = deletions.into_iter().collect();
        let several = deletions.iter().map(|(_, s)| s.len()).sum::<usize>() > 1;
        if several {
            batch::intend(&self.dir, &deletions)?;
        }
        for (volume, snapshots) in deletions {
            self.with(&volume, move |volume| async move { volume.delete(&snapshots).await })?;
        }
        if several { batch::done(&self.dir) } else { Ok(()) }
    }

    /// Holds a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Conflict`, `Invalid` for the tag.
    pub fn hold(&self, name: &SnapName, tag: &str) -> Result<()> {
        let tag: Name = tag.parse()?;
        let snapshot = name.snapshot.to_string();
        self.with(
            name.volume.as_str(),
            move |volume| async move { volume.hold(&snapshot, tag.as_str()).await },
        )
    }

    /// Lets go of a snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn release(&self, name: &SnapName, tag: &str) -> Result<()> {
        let (snapshot, tag) = (name.snapshot.to_string(), tag.to_owned());
        self.with(name.volume.as_str(), move |volume| async move { volume.release(&snapshot, &tag).await })
    }

    /// Makes production that snapshot again.
    ///
    /// # Errors
    /// `Conflict` while a client has the volume open, unless forced.
    pub fn rollback(&self, name: &SnapName, force: bool) -> Result<()> {
        let (name, snapshot) = (name.volume.to_string(), name.snapshot.to_string());
        let engine = self.engine_of(&name)?;
        engine.call(move |engine| async move {
            let volume = engine.volume(&name)?;
            let clients = engine.clients.of(&name, false).len();
            if clients > 0 && !force {
                return Err(Error::conflict(format!("volume {name} has {clients} clients connected"))
                    .hint("disconnect them, or use --force"));
            }
            engine.clients.disconnect(&name, false).await;
            volume.roll_back(&snapshot).await
        })
    }

    /// What changed from one snapshot to a younger one, or to now.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` when `from` is not the older.
    pub fn diff(&self, from: &SnapName, to: Option<&str>) -> Result<Diff> {
        let (older, younger) = (from.snapshot.to_string(), to.map(str::to_owned));
        let delta = self.with(from.volume.as_str(), move |volume| async move {
            volume.delta(&older, younger.as_deref()).await
        })?;
        let (data_bytes, discard_bytes) = delta.totals();
        let extents = delta.runs(0..delta.size).map(|run| DiffExtent {
            offset: run.bytes.start,
            length: run.bytes.end - run.bytes.start,
            kind: if run.discard { DiffKind::Discard } else { DiffKind::Data },
        });
        Ok(Diff {
            volume: from.volume.to_string(),
            from: from.snapshot.to_string(),
            to: to.map(str::to_owned),
            block_size: delta.block_size,
            data_bytes,
            discard_bytes,
            extents: extents.collect(),
        })
    }
}

fn request(name: &SnapName, created_us: u64, batch: Option<Uuid>) -> TakeRequest {
    TakeRequest { uuid: Uuid::new_v4(), name: name.snapshot.to_string(), created_us, batch, received: false }
}
