//! What a store does with snapshots: taken at one instant, deleted, held, rolled back to,
//! compared.

use super::api::{Diff, DiffExtent, DiffKind};
use super::batch::{self, Commit, Deletions};
use super::core::{Admin, Core};
use super::thread::{Handle, Pending};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{TakeRequest, TakeTicket, Volume};
use crate::types::{Name, SetId, SnapName};
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

/// What is taken of one of several volumes.
#[derive(Clone)]
pub(super) enum Taken {
    /// A snapshot of that name.
    Named(String),
    /// A cut of that number.
    Cut(u64),
    /// What has arrived under that identity.
    Arrived(Uuid),
}

/// A take on one of several volumes, between its steps.
struct Prepared {
    engine: Handle,
    volume: String,
    /// The set that it ends.
    set: Option<SetId>,
}

impl Prepared {
    /// Runs a step with the volume's ticket, which is put back.
    fn step<T, F, Fut>(&self, step: F) -> Pending<T>
    where
        T: Send + 'static,
        F: FnOnce(TakeTicket) -> Fut + Send + 'static,
        Fut: Future<Output = (TakeTicket, Result<T>)> + 'static,
    {
        let volume = self.volume.clone();
        self.engine.call(move |engine| async move {
            let ticket = engine.tickets.borrow_mut().remove(&volume);
            let ticket = ticket.ok_or_else(|| Error::invalid("that take has ended"))?;
            let (ticket, result) = step(ticket).await;
            engine.tickets.borrow_mut().insert(volume, ticket);
            result
        })
    }

    /// Runs the last step.
    fn end<F, Fut>(self, step: F) -> Pending<()>
    where
        F: FnOnce(TakeTicket) -> Fut + Send + 'static,
        Fut: Future<Output = Result<()>> + 'static,
    {
        self.engine.call(move |engine| async move {
            let ticket = engine.tickets.borrow_mut().remove(&self.volume);
            match ticket {
                Some(ticket) => step(ticket).await,
                None => Ok(()),
            }
        })
    }
}

impl Core {
    /// Takes snapshots, all at one instant: all or none. A group stands for its volumes.
    pub async fn snapshot(&self, names: &[SnapName]) -> Result<()> {
        let admin = self.admin().await;
        let names = &self.of_volumes(names)?[..];
        let volumes: BTreeSet<&Name> = names.iter().map(|n| &n.volume).collect();
        if volumes.len() < names.len() {
            return Err(
                Error::invalid("a volume is named twice").hint("take one snapshot of each volume at a time")
            );
        }
        if let [name] = names {
            let snapshot = name.snapshot.to_string();
            return self
                .with(name.volume.as_str(), move |volume| async move {
                    let now = volume.io().now_us();
                    volume.take(request(&volume, snapshot, now, None)).await
                })
                .await;
        }
        let of = |name: &SnapName| (name.volume.to_string(), Taken::Named(name.snapshot.to_string()));
        let takes: Vec<_> = names.iter().map(of).collect();
        self.take_together(&admin, &takes).await.map(drop)
    }

    /// Takes of several volumes at one instant, which one entry of the store commits: all or none,
    /// whatever crash comes. It is done in the turn that `_admin` proves. Returns the sets that they
    /// end, where they end any.
    ///
    /// # Errors
    /// As for each take; `Io` when nobody knows whether it was committed.
    pub(super) async fn take_together(
        &self,
        _admin: &Admin,
        takes: &[(String, Taken)],
    ) -> Result<Vec<Option<SetId>>> {
        let (batch, now) =
            self.on_store(|engine, _| async move { Ok((engine.io.identity(), engine.io.now_us())) }).await?;
        let mut prepared = Vec::new();
        let mut result: Result<()> = Ok(());
        for (volume, taken) in takes {
            match self.prepare(volume, taken.clone(), now, batch).await {
                Ok(volume) => prepared.push(volume),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
        }
        // All clients' writes wait now: this is the instant.
        if result.is_ok() {
            for volume in &prepared {
                let raised = volume.step(|mut ticket| async move {
                    ticket.raise();
                    (ticket, Ok(()))
                });
                result = result.and(raised.await);
            }
        }
        for Prepared { engine, volume, .. } in &prepared {
            let volume = volume.clone();
            drop(engine.call(move |engine| async move {
                engine.volume(&volume)?.resume();
                Ok(())
            }));
        }
        if result.is_ok() {
            let finish = |volume: &Prepared| {
                volume.step(|mut ticket| async move {
                    let result = ticket.finish().await;
                    (ticket, result)
                })
            };
            let finished = join_all(prepared.iter().map(finish)).await;
            result = finished.into_iter().collect();
        }
        let outcome = match result {
            Ok(()) => self
                .on_store(move |engine, dir| async move { Ok(batch::commit(&engine.io, &dir, batch).await) })
                .await
                .unwrap_or_else(Commit::Unknown),
            Err(error) => Commit::Undone(error),
        };
        let sets = prepared.iter().map(|volume| volume.set).collect();
        end(prepared, outcome).await.map(|()| sets)
    }

    /// First step on one volume of several; its clients' writes wait from here on.
    async fn prepare(&self, volume: &str, taken: Taken, now: u64, batch: Uuid) -> Result<Prepared> {
        let (volume, key) = (volume.to_owned(), volume.to_owned());
        let engine = self.engine_of(&volume)?;
        let ready = engine.call(move |engine| async move {
            let found = engine.volume(&key)?;
            let ticket = match taken {
                Taken::Named(name) => found.prepare_take(request(&found, name, now, Some(batch))).await?,
                Taken::Cut(number) => found.prepare_cut(number, now, batch).await?,
                Taken::Arrived(target) => found.receive_arrived(target)?.prepare(batch).await?,
            };
            let set = ticket.set();
            found.pause();
            engine.tickets.borrow_mut().insert(key, ticket);
            Ok(set)
        });
        let set = ready.await?;
        Ok(Prepared { engine, volume, set })
    }

    /// Deletes snapshots, all or none. A group stands for those of its volumes that have it.
    pub async fn delete_snapshots(&self, names: &[SnapName]) -> Result<()> {
        let mut admin = self.admin().await;
        if let Err(error) = self.carry_out(&mut admin.unfinished).await {
            tracing::warn!("an earlier deletion is still not completed: {error}");
        }
        let hidden = self.hide(&self.there(names).await?).await?;
        if hidden.values().map(Vec::len).sum::<usize>() <= 1 {
            for (volume, snapshots) in hidden {
                self.with(&volume, move |volume| async move { volume.delete(&snapshots).await }).await?;
            }
            return Ok(());
        }
        if let Err(error) = self.intend(&mut admin, &hidden).await {
            self.set_hidden(&hidden, false).await;
            return Err(error);
        }
        self.carry_out(&mut admin.unfinished).await
    }

    /// Snapshots by the names of volumes; a volume that joined its group later may not have one.
    async fn there(&self, names: &[SnapName]) -> Result<Vec<SnapName>> {
        let mut all = Vec::new();
        for name in names {
            let Some(group) = self.group(name.volume.as_str()) else {
                all.push(name.clone());
                continue;
            };
            let before = all.len();
            for of_volume in self.of_volumes(std::slice::from_ref(name))? {
                let wanted = name.snapshot.to_string();
                let found = self.with(of_volume.volume.as_str(), |volume| async move {
                    Ok(volume.snapshots().iter().any(|record| record.name == wanted))
                });
                if found.await? {
                    all.push(of_volume);
                }
            }
            if all.len() == before {
                return Err(Error::not_found(format!(
                    "no volume of group {} has a snapshot {}",
                    group.name, name.snapshot
                )));
            }
        }
        Ok(all)
    }

    /// Hides the snapshots of those names, all or none.
    async fn hide(&self, names: &[SnapName]) -> Result<Deletions> {
        let mut asked: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for name in names {
            asked.entry(name.volume.to_string()).or_default().insert(name.snapshot.to_string());
        }
        let mut hidden = Deletions::new();
        for (volume, names) in asked {
            let names: Vec<String> = names.into_iter().collect();
            let found = self.with(&volume, |volume| async move { volume.hide_for_deletion(&names) }).await;
            match found {
                Ok(uuids) => hidden.insert(volume, uuids),
                Err(error) => {
                    self.set_hidden(&hidden, false).await;
                    return Err(error);
                }
            };
        }
        Ok(hidden)
    }

    async fn set_hidden(&self, snapshots: &Deletions, hidden: bool) {
        for (volume, uuids) in snapshots {
            let uuids = uuids.clone();
            let done = self.with(volume, move |volume| async move {
                volume.set_hidden(&uuids, hidden);
                Ok(())
            });
            // A volume that is gone has nothing to hide.
            let _ = done.await;
        }
    }

    /// Makes deletions durable as an intention, beside those that are not done yet. An
    /// error says that they will not be done.
    async fn intend(&self, admin: &mut Admin, deletions: &Deletions) -> Result<()> {
        if let Some(damage) = &admin.damage {
            return Err(damage.duplicate());
        }
        let before = admin.unfinished.clone();
        for (volume, snapshots) in deletions {
            admin.unfinished.entry(volume.clone()).or_default().extend(snapshots);
        }
        let all = admin.unfinished.clone();
        let intended =
            self.on_store(move |engine, dir| async move { batch::intend(&engine.io, &dir, &all).await });
        let Err(mut error) = intended.await else { return Ok(()) };
        if error.kind() == ErrorKind::Full {
            match self.intend_on_a_reserve(&admin.unfinished, deletions).await {
                Ok(()) => return Ok(()),
                Err(second) => error = second,
            }
        }
        let old = before.clone();
        let back = self.on_store(move |engine, dir| async move {
            match old.is_empty() {
                true => batch::done(&engine.io, &dir).await,
                false => batch::intend(&engine.io, &dir, &old).await,
            }
        });
        if let Err(second) = back.await {
            // Nobody knows which an open would find; doing it agrees with both.
            tracing::error!("an intention can't be taken back, and is carried out: {second}");
            return Ok(());
        }
        admin.unfinished = before;
        Err(error)
    }

    /// Makes an intention durable with the last space that one of its volumes keeps back.
    async fn intend_on_a_reserve(&self, all: &Deletions, deletions: &Deletions) -> Result<()> {
        let Some(volume) = deletions.keys().next() else { return Ok(()) };
        let (all, dir) = (all.clone(), self.dir.clone());
        self.with(volume, move |volume| async move {
            let io = volume.io();
            volume.with_reserve(|| batch::intend(&io, &dir, &all)).await
        })
        .await
    }

    /// Does deletions that were intended; those that fail stay in the list.
    async fn carry_out(&self, deletions: &mut Deletions) -> Result<()> {
        if deletions.is_empty() {
            return Ok(());
        }
        let mut result = Ok(());
        for (volume, snapshots) in std::mem::take(deletions) {
            if !self.has_volume(&volume) {
                continue;
            }
            let uuids = snapshots.clone();
            let done = self.with(&volume, |volume| async move {
                let done = volume.delete(&uuids).await;
                // What is left is gone at the next open at the latest.
                volume.set_hidden(&uuids, done.is_err());
                done
            });
            if let Err(error) = done.await {
                deletions.insert(volume, snapshots);
                result = result.and(Err(error));
            }
        }
        if result.is_ok() {
            let ended = self.on_store(|engine, dir| async move { batch::done(&engine.io, &dir).await });
            if let Err(error) = ended.await {
                tracing::warn!("the list of deletions stays, though they are done: {error}");
            }
        }
        result.map_err(|error| error.hint("the rest is deleted when the store is opened again"))
    }

    /// Does again what a crash may have left undone.
    pub(super) async fn finish_deletions(&self) -> Result<()> {
        let mut admin = self.admin().await;
        let intended =
            self.on_store(|engine, dir| async move { batch::intended(&engine.io, &dir, true).await });
        match intended.await {
            Ok(intended) => admin.unfinished = intended,
            Err(error) => {
                admin.damage = Some(error.duplicate());
                return Err(error);
            }
        }
        self.carry_out(&mut admin.unfinished).await
    }

    /// Holds a snapshot.
    pub async fn hold(&self, name: &SnapName, tag: &str) -> Result<()> {
        let tag: Name = tag.parse()?;
        let snapshot = name.snapshot.to_string();
        let held = self.with(name.volume.as_str(), move |volume| async move {
            volume.hold(&snapshot, tag.as_str()).await
        });
        held.await
    }

    /// Lets go of a snapshot.
    pub async fn release(&self, name: &SnapName, tag: &str) -> Result<()> {
        let (snapshot, tag) = (name.snapshot.to_string(), tag.to_owned());
        let released = self
            .with(name.volume.as_str(), move |volume| async move { volume.release(&snapshot, &tag).await });
        released.await
    }

    /// Makes production that snapshot again.
    pub async fn rollback(&self, name: &SnapName, force: bool) -> Result<()> {
        self.check_not_fed(name.volume.as_str(), "a roll-back")?;
        let snapshot = name.snapshot.to_string();
        self.on_engine(name.volume.as_str(), move |engine, name| async move {
            let volume = engine.volume(&name)?;
            let clients = engine.clients.of(&name, false).len();
            if clients > 0 && !force {
                return Err(Error::conflict(format!("volume {name} has {clients} clients connected"))
                    .hint("disconnect them, or use --force"));
            }
            engine.clients.disconnect(&name, false).await;
            volume.roll_back(&snapshot).await
        })
        .await
    }

    /// What changed from one snapshot to a younger one, or to now.
    pub async fn diff(&self, from: &SnapName, to: Option<&str>) -> Result<Diff> {
        let (older, younger) = (from.snapshot.to_string(), to.map(str::to_owned));
        let delta = self.with(from.volume.as_str(), move |volume| async move {
            volume.delta(&older, younger.as_deref()).await
        });
        let delta = delta.await?;
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

/// The last step of a take over several volumes.
async fn end(prepared: Vec<Prepared>, outcome: Commit) -> Result<()> {
    let mut ending = Vec::new();
    for volume in prepared {
        ending.push(match &outcome {
            Commit::Done => volume.end(|ticket| async move {
                ticket.publish();
                Ok(())
            }),
            Commit::Undone(_) => volume.end(|ticket| async move { ticket.undo().await }),
            Commit::Unknown(error) => {
                let error = error.duplicate();
                volume.end(|ticket| async move {
                    ticket.abandon(&error);
                    Ok(())
                })
            }
        });
    }
    for ended in join_all(ending).await {
        if let Err(error) = ended {
            tracing::error!("{error}");
        }
    }
    match outcome {
        Commit::Done => Ok(()),
        Commit::Undone(error) => Err(error),
        Commit::Unknown(error) => Err(error.hint(
            "whether the snapshots exist is known when the store is opened again; until then their volumes \
             are read-only",
        )),
    }
}

fn request(volume: &Volume, name: String, created_us: u64, batch: Option<Uuid>) -> TakeRequest {
    TakeRequest { uuid: volume.io().identity(), name, created_us, batch, received: false, set: None }
}
