//! Origin: a snapshot of another volume, which a volume shows where nothing was written to it.
//!
//! Such a volume is a writable copy by copy on write. A block of it that is in use was written
//! here; of one that is not, the origin has the content. A partial block is completed from the
//! origin under the lock that every write of the block takes, so nobody's write is lost over it.
//!
//! Invariants:
//! - the origin is a snapshot, so it never changes, and it stays open as long as its copy is;
//! - such a volume has no snapshots and one block a meta bit, so its writes go straight;
//! - a block that was trimmed shows zeros: where the origin has nothing, it goes out of use; where
//!   the origin has something, it stays in use, and its place in the clone volume is a hole.
//!
//! Why a crash is safe: a block that was in use is punched and stays in use, so a crash leaves
//! what was there or zeros, never the origin's bytes; the punch is durable with the next sync of
//! the clone volume, as a write would be. A record that brings a block into use counts after a
//! power cut only with a barrier that came after it, so only where its data is durable, too: the
//! origin's bytes never give way to a hole.

use super::full::Wanted;
use super::read::{Piece, push_run};
use super::reader::SnapshotReader;
use super::volume::{Volume, Who};
use super::write::{RANGE_BYTES, RECORD_BYTES};
use crate::error::{Error, Result};
use crate::format::journal::Record;
use crate::format::state::SnapshotRecord;
use crate::types::Block;
use bytes::BytesMut;
use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;
use uuid::Uuid;

/// Blocks that are made zero under one lock, at most: their ranges fit into one record.
const BLANK_STEP: u64 = 8192;
/// Blocks of which it is looked up at once what the origin has.
const WINDOW: u64 = 1 << 18;

/// A volume's origin, if it has one.
#[derive(Default)]
pub(super) struct Origin(RefCell<Option<Rc<SnapshotReader>>>);

impl Origin {
    /// The open snapshot.
    pub fn get(&self) -> Option<Rc<SnapshotReader>> {
        self.0.borrow().clone()
    }
}

impl Volume {
    /// Shows `origin` from now on where nothing was written. To be called before any client
    /// comes.
    ///
    /// # Errors
    /// `Corrupt` when the volume was not made as a copy of it.
    pub fn set_origin(&self, origin: SnapshotReader) -> Result<()> {
        let (ours, theirs) = (self.geometry(), origin.volume().geometry());
        let fits = ours.size == origin.size() && ours.block_size == theirs.block_size;
        if !fits || ours.granularity != 1 || !self.s.borrow().durable.snapshots.is_empty() {
            return Err(Error::corrupt(format!(
                "volume {} is no copy of {}@{}",
                self.name(),
                origin.volume().name(),
                origin.name()
            )));
        }
        self.origin.0.replace(Some(Rc::new(origin)));
        Ok(())
    }

    /// What whole blocks hold that are not in use; the last one may be cut at the size.
    pub(super) async fn unused(&self, blocks: Range<u64>) -> Result<Vec<Piece>> {
        let size = u64::from(self.geometry().block_size);
        let (start, end) = (blocks.start * size, blocks.end * size);
        let Some(origin) = self.origin.get() else { return Ok(vec![Piece::Hole(end - start)]) };
        let stop = end.min(origin.size());
        let mut pieces = origin.read(start, stop - start).await?;
        if stop < end {
            pieces.push(Piece::Hole(end - stop));
        }
        Ok(pieces)
    }

    /// A block that is not in use.
    pub(super) async fn unused_block(&self, block: u64) -> Result<BytesMut> {
        let mut bytes = BytesMut::with_capacity(self.geometry().block_size as usize);
        for piece in self.unused(block..block + 1).await? {
            match piece {
                Piece::Data(data) => bytes.extend_from_slice(&data),
                Piece::Hole(len) => bytes.resize(bytes.len() + usize::try_from(len).unwrap_or(0), 0),
            }
        }
        Ok(bytes)
    }

    /// Runs of a range in which something is stored, here or in the origin, or nothing: length
    /// in bytes, in use.
    ///
    /// # Errors
    /// `OutOfRange`; `Corrupt`, `Io` when the origin's maps can't be read.
    pub async fn shown_allocation(self: &Rc<Self>, offset: u64, len: u64) -> Result<Vec<(u64, bool)>> {
        let own = self.allocation(offset, len)?;
        let Some(origin) = self.origin.get() else { return Ok(own) };
        let (mut runs, mut at) = (Vec::new(), offset);
        for (len, used) in own {
            if used {
                push_run(&mut runs, len, true);
            } else {
                for (len, used) in origin.allocation(at, len).await? {
                    push_run(&mut runs, len, used);
                }
            }
            at += len;
        }
        Ok(runs)
    }

    /// Makes a range read as zeros in a volume that has an origin.
    pub(super) async fn trim_over(
        self: &Rc<Self>,
        origin: &SnapshotReader,
        who: Who,
        wanted: Wanted<'_>,
        bytes: Range<u64>,
    ) -> Result<()> {
        let geometry = self.geometry();
        let size = u64::from(geometry.block_size);
        let first = bytes.start.div_ceil(size);
        // The last block counts as whole when the range reaches the end of the volume.
        let last = if bytes.end == geometry.size { bytes.end.div_ceil(size) } else { bytes.end / size };
        if first >= last {
            return self.write_zeros_while(who, wanted, bytes.start, bytes.end - bytes.start, false).await;
        }
        self.write_zeros_while(who, wanted, bytes.start, first * size - bytes.start, false).await?;
        let mut block = first;
        while block < last {
            let window = block..(block + WINDOW).min(last);
            let (from, upto) = (window.start * size, (window.end * size).min(geometry.size));
            let mut at = from;
            for (len, used) in origin.allocation(from, upto - from).await? {
                if used {
                    self.blank_all(who, wanted, at / size..(at + len).div_ceil(size)).await?;
                } else {
                    self.trim_own(who, wanted, at, len).await?;
                }
                at += len;
            }
            block = window.end;
        }
        let rest = (last * size).min(bytes.end);
        self.write_zeros_while(who, wanted, rest, bytes.end - rest, false).await
    }

    async fn blank_all(self: &Rc<Self>, who: Who, wanted: Wanted<'_>, blocks: Range<u64>) -> Result<()> {
        let mut block = blocks.start;
        while block < blocks.end {
            let step = block..(block + BLANK_STEP).min(blocks.end);
            self.with_space(wanted, async || self.blank(who, step.clone()).await).await?;
            block = step.end;
        }
        Ok(())
    }

    /// Makes blocks holes that are in use.
    async fn blank(self: &Rc<Self>, who: Who, blocks: Range<u64>) -> Result<()> {
        let count = blocks.end - blocks.start;
        let _room = self.journal.reserve(RECORD_BYTES + count.div_ceil(2) * RANGE_BYTES).await?;
        let admitted = self.admit(who).await?;
        let _held = self.locks.lock(blocks.clone()).await;
        let may_hold_data = {
            let s = self.s.borrow();
            if s.tail().is_some() || !s.slots.is_empty() {
                return Err(Error::conflict("a volume that is a copy by copy on write has a snapshot"));
            }
            let used = s.production.next_set(blocks.start).is_some_and(|block| block < blocks.end);
            used || s.stale.next_set(blocks.start).is_some_and(|block| block < blocks.end)
        };
        if may_hold_data && let Err(error) = self.clone_volume.punch(Block(blocks.start), count).await {
            self.note_failed(&blocks);
            return Err(error);
        }
        self.bring_into_use(&[blocks], admitted.epoch).await?;
        self.kick_checkpoint();
        Ok(())
    }

    /// Holds a snapshot under a tag that users can't type, so that it can be somebody's origin:
    /// the one of that name, or the youngest state.
    ///
    /// # Errors
    /// `NotFound` for the name; `Conflict` when there is no state; `Io`.
    pub async fn hold_as_origin(self: &Rc<Self>, name: Option<&str>, tag: &str) -> Result<SnapshotRecord> {
        let _exclusive = self.exclusive().await;
        self.writable(Who::Store)?;
        let found = match name {
            Some(name) => Some(self.s.borrow().visible(name).cloned().ok_or_else(|| self.no_snapshot(name))?),
            None => self.newest_state(),
        };
        let record = found.ok_or_else(|| {
            Error::conflict(format!("volume {} has no state that could be shown", self.name()))
                .hint(format!("take a snapshot first: snapvol snapshot {}@NAME", self.name()))
        })?;
        self.record_durably(Record::Hold { snapshot: record.uuid, tag: tag.to_owned() }).await?;
        Ok(record)
    }

    /// Lets go of whatever is held under that tag.
    ///
    /// # Errors
    /// `Io`.
    pub async fn release_origin(self: &Rc<Self>, tag: &str) -> Result<()> {
        let _exclusive = self.exclusive().await;
        for (snapshot, _) in self.origins().into_iter().filter(|(_, held)| held == tag) {
            self.writable(Who::Store)?;
            self.record_durably(Record::Release { snapshot, tag: tag.to_owned() }).await?;
        }
        Ok(())
    }

    /// The snapshots that are held as origins, and the tags.
    #[must_use]
    pub fn origins(&self) -> Vec<(Uuid, String)> {
        let s = self.s.borrow();
        let tags = s.durable.snapshots.iter().flat_map(|r| r.holds.iter().map(|tag| (r.uuid, tag.clone())));
        tags.filter(|(_, tag)| is_origin_tag(tag)).collect()
    }

    /// The record of a snapshot, whoever sees it.
    #[must_use]
    pub fn record_of(&self, uuid: Uuid) -> Option<SnapshotRecord> {
        self.s.borrow().durable.snapshot(uuid).cloned()
    }
}

/// Whether a hold is that of an origin: no tag that users type begins like this.
#[must_use]
pub fn is_origin_tag(tag: &str) -> bool {
    tag.starts_with('+')
}
