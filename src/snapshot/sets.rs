//! Cuts: the snapshots of replication, and the line of role epochs that they belong to.
//!
//! A cut is an ordinary snapshot with an internal name and a stamp in its record; it is
//! taken, kept, read and deleted as any other. Unlike other internal snapshots it survives an
//! open, and only whoever runs the sessions deletes it. A bookmark is what is left of a cut that
//! need not be read any more, and is the base of a delta yet to come: see `touched`.

use super::take::{TakeRequest, TakeTicket};
use super::volume::{Volume, Who};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::state::{BookmarkRecord, SnapshotRecord};
use crate::types::{RoleEpoch, SetId, SetStamp, Standing};
use std::rc::Rc;
use uuid::Uuid;

/// The name of a cut. Two lines of descent may count alike, so its identity is a part of it.
#[must_use]
pub fn cut_name(number: u64, uuid: Uuid) -> String {
    let (start, ..) = uuid.as_fields();
    format!("_set-{number}-{start:08x}")
}

/// As long as it is kept, cuts of the volume are not to become bookmarks.
pub struct Readable(Rc<Volume>);

impl Drop for Readable {
    fn drop(&mut self) {
        self.0.readable.set(self.0.readable.get() - 1);
    }
}

impl Volume {
    /// Has cuts stay readable. Those that are bookmarks already stay so.
    #[must_use]
    pub fn keep_readable(self: &Rc<Self>) -> Readable {
        self.readable.set(self.readable.get() + 1);
        Readable(Rc::clone(self))
    }

    /// Whether cuts are to stay readable: because somebody wants that, or because the volume is
    /// handed over. The last one is what it shows as a secondary.
    #[must_use]
    pub fn is_kept_readable(&self) -> bool {
        self.readable.get() > 0 || self.roles().standing == Standing::HandingOver
    }

    /// The role epochs that led to the present one, oldest first.
    #[must_use]
    pub fn lineage(&self) -> Vec<RoleEpoch> {
        self.s.borrow().durable.lineage.clone()
    }

    /// The number of the youngest cut that was taken or received.
    #[must_use]
    pub fn last_cut(&self) -> u64 {
        self.s.borrow().durable.last_cut
    }

    /// Sets them, durably.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn set_lineage(self: &Rc<Self>, lineage: Vec<RoleEpoch>) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        self.record_durably(Record::Lineage(lineage)).await?;
        Ok(())
    }

    /// The cuts, oldest first.
    #[must_use]
    pub fn cuts(&self) -> Vec<SnapshotRecord> {
        let s = self.s.borrow();
        let shown = |r: &&SnapshotRecord| r.set.is_some() && !s.hidden.contains(&r.uuid);
        s.durable.snapshots.iter().filter(shown).cloned().collect()
    }

    /// The bookmarks, oldest first.
    #[must_use]
    pub fn bookmarks(&self) -> Vec<BookmarkRecord> {
        self.s.borrow().durable.bookmarks.clone()
    }

    /// The bookmark of that identity.
    #[must_use]
    pub fn bookmark(&self, uuid: Uuid) -> Option<BookmarkRecord> {
        self.s.borrow().durable.bookmark(uuid).cloned()
    }

    /// Lets the before-images of a cut go: it becomes a bookmark, which can't be read, and can
    /// be the base of a delta.
    ///
    /// # Errors
    /// `NotFound`; `Invalid` for a snapshot that is no cut; as for a deletion.
    pub async fn shrink(self: &Rc<Self>, cut: Uuid) -> Result<()> {
        let _exclusive = self.exclusive().await;
        let (record, shrunk) = {
            let s = self.s.borrow();
            (s.durable.snapshot(cut).cloned(), s.durable.bookmark(cut).is_some())
        };
        match record {
            None if shrunk => return Ok(()),
            None => return Err(Error::not_found(format!("volume {} has no cut {cut}", self.name()))),
            Some(record) if record.set.is_none() => {
                return Err(Error::invalid(format!("snapshot {cut} is no cut")));
            }
            Some(_) => {}
        }
        let result = self.healed(async || self.delete_one(cut, true).await).await;
        result.map_err(|e| self.named(e))?;
        self.reclaim().await
    }

    /// Bookmarks go.
    ///
    /// # Errors
    /// `Io`, `Full`.
    pub async fn forget_bookmarks(self: &Rc<Self>, bookmarks: &[Uuid]) -> Result<()> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        let known: Vec<Uuid> = {
            let s = self.s.borrow();
            bookmarks.iter().copied().filter(|uuid| s.durable.bookmark(*uuid).is_some()).collect()
        };
        if known.is_empty() {
            return Ok(());
        }
        // Until it is durable a power cut brings them back, so what is touched is noted as long.
        self.record_durably(Record::Forget { bookmarks: known }).await?;
        self.marks_changed();
        Ok(())
    }

    /// Takes a cut; a power cut can't take it back when this returns. Only one at a time may
    /// be taken, or two get the same number.
    ///
    /// # Errors
    /// `Conflict` when a receive or roll-back forbids it; `Io`, `Full`.
    pub async fn take_cut(self: &Rc<Self>) -> Result<SetId> {
        let request = self.cut_request(self.last_cut() + 1, self.io().now_us(), None)?;
        let (uuid, set) = (request.uuid, request.set);
        self.take(request).await?;
        let stamp = set.ok_or_else(|| Error::invalid("a cut has a stamp"))?;
        Ok(SetId { stamp, target: uuid })
    }

    /// First step of a cut together with other volumes, under a number that is larger than all
    /// before. The other steps are those of a take.
    ///
    /// # Errors
    /// As for [`Self::take_cut`].
    pub async fn prepare_cut(self: &Rc<Self>, number: u64, now_us: u64, batch: Uuid) -> Result<TakeTicket> {
        self.prepare_take(self.cut_request(number, now_us, Some(batch))?).await
    }

    fn cut_request(&self, number: u64, created_us: u64, batch: Option<Uuid>) -> Result<TakeRequest> {
        let (epoch, base) = {
            let s = self.s.borrow();
            if s.durable.receive.is_some() || s.durable.rollback.is_some() {
                return Err(Error::conflict(format!(
                    "volume {} is half received or rolled back",
                    self.name()
                )));
            }
            let epoch = s.durable.lineage.last().copied().unwrap_or_default();
            let cuts = s.durable.snapshots.iter().filter(|r| r.set.is_some()).map(|r| (r.epoch, r.uuid));
            let marks = cuts.chain(s.durable.bookmarks.iter().map(|b| (b.epoch, b.uuid)));
            let base = marks.max().map(|(_, uuid)| uuid);
            if number <= s.durable.last_cut {
                return Err(Error::invalid(format!("cut {number} of volume {} was taken", self.name())));
            }
            (epoch, base)
        };
        let (uuid, set) = (self.io().identity(), Some(SetStamp { epoch, number, base }));
        Ok(TakeRequest { uuid, name: cut_name(number, uuid), created_us, batch, received: false, set })
    }

    /// Whether a stream is being applied at this moment.
    #[must_use]
    pub fn is_receiving(&self) -> bool {
        self.receiving.get()
    }

    /// The youngest state that this volume shows as a secondary: what users see, or what a
    /// session brought.
    #[must_use]
    pub fn newest_state(&self) -> Option<SnapshotRecord> {
        let s = self.s.borrow();
        let shown =
            |r: &&SnapshotRecord| (r.set.is_some() || !r.is_internal()) && !s.hidden.contains(&r.uuid);
        s.durable.snapshots.iter().rev().find(shown).cloned()
    }
}
