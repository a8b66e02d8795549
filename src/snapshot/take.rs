//! Taking a snapshot.
//!
//! The epoch rises in memory, at one instant; writers go on in the new epoch. What was let
//! in before belongs to the snapshot: it is waited for, settled and made durable, and then
//! one record makes the snapshot exist. Without the record, groups saved in the new epoch
//! belong to the snapshot before it, which needs just those images.

use super::receive::{BeforeEnd, Receiving};
use super::slots::Slots;
use super::volume::{Exclusive, Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::state::SnapshotRecord;
use crate::io::OpenHow;
use crate::store::room::Room;
use crate::store::stage::Stage;
use crate::types::{Epoch, SetId, SetStamp};
use std::rc::Rc;
use uuid::Uuid;

/// What the records of a take need in the journal, in bytes.
const TAKE_BYTES: u64 = 1024;

/// What a snapshot is to be.
#[derive(Clone, Debug)]
pub struct TakeRequest {
    /// Its identity.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// When it is taken, in microseconds since 1970.
    pub created_us: u64,
    /// The batch that it is part of, if several volumes are taken at one instant.
    pub batch: Option<Uuid>,
    /// It is what a receive under way brings.
    pub received: bool,
    /// The set that it belongs to, if a session takes or receives it.
    pub set: Option<SetStamp>,
}

/// A take under way. Dropped early, the snapshot never was.
pub struct TakeTicket {
    volume: Rc<Volume>,
    request: TakeRequest,
    epoch: Option<Epoch>,
    size: u64,
    /// Nobody knows whether the batch was committed.
    undecided: bool,
    /// The receive that it ends, and what was before.
    ends: Option<(Receiving, Option<BeforeEnd>)>,
    _room: Room,
    _exclusive: Exclusive,
}

impl Volume {
    /// Takes a snapshot; it is durable when this returns.
    ///
    /// # Errors
    /// `Conflict` when the name is taken or a receive or roll-back forbids it.
    pub async fn take(self: &Rc<Self>, request: TakeRequest) -> Result<()> {
        let mut ticket = self.prepare_take(request).await?;
        ticket.raise();
        ticket.finish().await?;
        ticket.publish();
        Ok(())
    }

    /// First step: checks, and keeps other commands away.
    ///
    /// # Errors
    /// As for [`Self::take`].
    pub async fn prepare_take(self: &Rc<Self>, request: TakeRequest) -> Result<TakeTicket> {
        let exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        let size = {
            let s = self.s.borrow();
            let name = &request.name;
            if s.durable.named(name).is_some() {
                return Err(Error::conflict(format!("snapshot {}@{name} exists already", self.name())));
            }
            if !request.received && !name.starts_with('_') {
                if s.durable.receive.is_some() {
                    return Err(Error::conflict(format!(
                        "volume {} is in the middle of a receive",
                        self.name()
                    ))
                    .hint("let it finish, or drop it with 'snapvol receive VOL --abort'"));
                }
                if s.durable.rollback.is_some() {
                    return Err(Error::conflict(format!("volume {} is being rolled back", self.name())));
                }
            }
            match &s.durable.receive {
                Some(receive) if request.received => receive.size,
                _ => s.durable.geometry.size,
            }
        };
        self.map_stage().await?;
        self.space_for_take().await;
        let room = self.journal.reserve(TAKE_BYTES).await?;
        let volume = Rc::clone(self);
        Ok(TakeTicket {
            volume,
            request,
            epoch: None,
            size,
            undecided: false,
            ends: None,
            _room: room,
            _exclusive: exclusive,
        })
    }

    /// Maps the stage, which a volume without snapshots does not need.
    pub(super) async fn map_stage(&self) -> Result<()> {
        if self.s.borrow().slots.stage.is_some() {
            return self.fill_reserve(0).await;
        }
        let (volume, slots, size) = {
            let s = self.s.borrow();
            let slots = Slots::capacity(&s.durable, self.tuning.stage_bytes);
            (s.durable.uuid, slots, s.durable.geometry.block_size)
        };
        let (stage, left) = Stage::open(&self.io, &self.paths.stage(), volume, slots, size).await?;
        if self.s.borrow().slots.stage.is_none() {
            debug_assert!(left.is_empty(), "an open volume has taken in what was left");
            self.s.borrow_mut().slots.stage = Some(stage);
            // A power cut on a full disk must not take its space.
            self.sync_stage().await?;
        }
        self.weigh_layers();
        self.fill_reserve(0).await
    }

    async fn sync_stage(&self) -> Result<()> {
        let file = self.io.open(&self.paths.stage(), OpenHow::Write).await?;
        let synced = self.io.sync(file).await;
        self.io.close(file);
        synced?;
        self.io.sync_dir(&self.paths.0).await
    }

    /// Raises the epoch: a new open layer from now on. Nothing else may be raised meanwhile.
    pub(super) fn raise_epoch(&self) -> Epoch {
        let mut s = self.s.borrow_mut();
        let epoch = s.epoch.next();
        s.epoch = epoch;
        s.chain.push_open(epoch);
        epoch
    }
}

impl TakeTicket {
    /// It ends a receive, which nobody else touches as long.
    pub(super) fn ending(mut self, receiving: Receiving) -> Self {
        let before = self.volume.before_end();
        self.ends = Some((receiving, before));
        self
    }

    /// The set that it ends, if it belongs to one.
    #[must_use]
    pub fn set(&self) -> Option<SetId> {
        Some(SetId { stamp: self.request.set?, target: self.request.uuid })
    }

    /// Second step: the instant of the snapshot. Not an await in it, so that several
    /// volumes of one thread, or paused ones of several, have one instant.
    pub fn raise(&mut self) {
        let epoch = self.volume.raise_epoch();
        let mut s = self.volume.s.borrow_mut();
        let frozen = s.production.clone();
        s.frozen.insert(epoch, frozen);
        s.retained.take();
        s.taking = Some(epoch);
        if self.request.set.is_some() {
            s.touched.begin(epoch);
        }
        self.epoch = Some(epoch);
    }

    /// Third step: everything that belongs to the snapshot, and the record, are durable.
    ///
    /// # Errors
    /// `Io`, `Full`; the snapshot does not exist then.
    pub async fn finish(&mut self) -> Result<()> {
        let Some(epoch) = self.epoch else { return Ok(()) };
        let volume = &self.volume;
        volume.settled_before(epoch).await?;
        volume.flush_settled().await?;
        let snapshot = {
            let mut s = volume.s.borrow_mut();
            s.taking = None;
            s.unconfirmed = Some(epoch);
            s.hidden.insert(self.request.uuid);
            let in_use = s.frozen.get(&epoch).map_or(0, crate::map::BitMap::count);
            SnapshotRecord {
                uuid: self.request.uuid,
                name: self.request.name.clone(),
                created_us: self.request.created_us,
                epoch,
                size: self.size,
                in_use,
                holds: Vec::new(),
                set: self.request.set,
            }
        };
        let record = Record::Take { snapshot, batch: self.request.batch, received: self.request.received };
        volume.record(record);
        self.epoch = None;
        volume.journal_synced().await
    }

    /// Last step: users see the snapshot. With a batch, the store has committed it.
    pub fn publish(self) {
        let volume = &self.volume;
        if let Some(batch) = self.request.batch {
            volume.record(Record::Confirmed { batch });
        }
        volume.s.borrow_mut().hidden.remove(&self.request.uuid);
        volume.kick_sealer();
        volume.kick_checkpoint();
    }

    /// Instead of the last step: the batch is not committed, the snapshot never was.
    ///
    /// # Errors
    /// `Io`.
    pub async fn undo(mut self) -> Result<()> {
        let before = self.ends.as_mut().and_then(|(_, before)| before.take());
        let volume = &self.volume;
        let uuid = self.request.uuid;
        let taken = volume.s.borrow().durable.snapshot(uuid).is_some();
        if taken {
            volume.forget_snapshot(uuid).await?;
            if let Some(before) = before {
                volume.receive_again(before).await?;
            }
        }
        volume.s.borrow_mut().hidden.remove(&uuid);
        Ok(())
    }
}

impl TakeTicket {
    /// Instead of the last step: nobody knows whether the batch is committed. Nothing is
    /// built on either answer: the volume takes no writes until it is opened again.
    pub fn abandon(mut self, error: &Error) {
        self.undecided = true;
        let _ = self.volume.latch_on::<()>(Err(error.duplicate()));
    }
}

impl Drop for TakeTicket {
    fn drop(&mut self) {
        if self.undecided {
            return;
        }
        self.volume.s.borrow_mut().unconfirmed = None;
        // Raised and not recorded: the new epoch belongs to the snapshot before it.
        if let Some(epoch) = self.epoch.take() {
            let mut s = self.volume.s.borrow_mut();
            s.taking = None;
            s.frozen.remove(&epoch);
            s.forget_retained();
            drop(s);
            self.volume.marks_changed();
        }
    }
}

impl Volume {
    /// Takes the youngest snapshot out of the queue before anybody saw it; its layers
    /// belong to the one before it.
    async fn forget_snapshot(self: &Rc<Self>, uuid: Uuid) -> Result<()> {
        let Some(epoch) = self.s.borrow().durable.snapshot(uuid).map(|r| r.epoch) else { return Ok(()) };
        let older = self.s.borrow().older_than(epoch);
        self.load_from(older.unwrap_or(epoch)).await?;
        // The layer of the one before may have been sealed, its frozen map forgotten.
        let tail = older.map(|older| Ok::<_, Error>((older, self.thaw(older, epoch)?))).transpose()?;
        let record = Record::Delete {
            snapshots: vec![uuid],
            removed: Vec::new(),
            added: Vec::new(),
            ends_receive: false,
            remembered: false,
        };
        // Until it is durable a crash may bring the snapshot back, so it is respected as long.
        self.journal.push(record.clone());
        self.journal_synced().await?;
        let mut s = self.s.borrow_mut();
        s.durable.apply(&record);
        s.frozen.remove(&epoch);
        s.frozen.extend(tail);
        s.freed.forget_from(epoch);
        s.forget_retained();
        drop(s);
        self.marks_changed();
        Ok(())
    }
}
