//! The short way: requests that need no wait are done in one step, without a task.
//!
//! Each function looks at everything that could make it wait; if anything does, it changes
//! nothing and the caller goes the long way, which is always right. As nothing else runs
//! between its first look and its last word, it needs no locks and no admission.

use super::volume::{Volume, Who};
use crate::error::Result;
use crate::io::Shown;
use crate::types::{Block, Epoch};
use bytes::{Bytes, BytesMut};
use std::ops::Range;
use std::rc::Rc;

/// How far a read came that was to need no wait.
#[derive(Debug)]
pub enum ReadNow {
    /// The data is at the end of the buffer.
    Appended,
    /// The data is to be sent from where it lies.
    Shown(Shown),
    /// It needs a wait.
    Waits,
}

/// Where a write goes.
enum Way {
    /// To the clone volume: no snapshot needs what is there.
    Straight,
    /// To the stage, block by block.
    Stage(Epoch),
}

impl Volume {
    /// Shows a range of production, or appends it to `buffer`, if it lies in the page cache in
    /// one piece; else the buffer stays as it was.
    ///
    /// What is shown may change until it was sent: by writes that somebody asks for before the
    /// reader has his answer. He may get what was there before them or after.
    ///
    /// # Errors
    /// `OutOfRange`, `Io`; the buffer stays as it was.
    pub fn read_now(self: &Rc<Self>, offset: u64, len: usize, buffer: &mut BytesMut) -> Result<ReadNow> {
        self.in_range(offset, len as u64)?;
        {
            let s = self.s.borrow();
            let blocks = s.durable.geometry.blocks_touching(offset, len as u64);
            let granules = s.granules(&blocks);
            let whole = s.production.runs(granules.clone()).next() == Some((granules, true));
            if !whole || (!s.slots.is_empty() && blocks.into_iter().any(|block| s.slots.has(Block(block)))) {
                return Ok(ReadNow::Waits);
            }
        }
        if let Some(shown) = self.clone_volume.show(offset, len) {
            return Ok(ReadNow::Shown(shown));
        }
        let read = self.clone_volume.read_now(offset, len, buffer).map_err(|error| self.named(error))?;
        Ok(if read { ReadNow::Appended } else { ReadNow::Waits })
    }

    /// Writes whole blocks of granules in use if that needs no wait (true); else nothing is
    /// acknowledged, and [`Self::write`] does it or says why not.
    pub fn write_now(self: &Rc<Self>, who: Who, offset: u64, data: &Bytes) -> bool {
        let Some(blocks) = self.whole(offset, data.len() as u64) else { return false };
        let way = self.way(who, &blocks);
        if way.is_none() || !self.touch_now(&blocks) {
            return false;
        }
        match way {
            Some(Way::Straight) => {
                // What failed, the long way does again and says.
                matches!(self.clone_volume.write_now(Block(blocks.start), data), Some(Ok(())))
            }
            Some(Way::Stage(epoch)) => self.stage_now(&blocks, epoch, data),
            None => false,
        }
    }

    /// Notes that blocks are about to change, if that needs no wait.
    fn touch_now(&self, blocks: &Range<u64>) -> bool {
        let s = &mut *self.s.borrow_mut();
        let held = s.blocks(&s.granules(blocks));
        s.touched.note(&[held], std::slice::from_ref(blocks), s.epoch)
    }

    /// The blocks of a range that consists of whole ones.
    fn whole(&self, offset: u64, len: u64) -> Option<Range<u64>> {
        let geometry = self.s.borrow().durable.geometry;
        let size = u64::from(geometry.block_size);
        let end = offset.checked_add(len)?;
        let whole =
            len > 0 && offset.is_multiple_of(size) && len.is_multiple_of(size) && end <= geometry.size;
        whole.then(|| offset / size..end / size)
    }

    /// Where a write of these blocks goes, if nothing stands in its way.
    fn way(&self, who: Who, blocks: &Range<u64>) -> Option<Way> {
        if self.reserve.is_lent() || self.writable(who).is_err() || self.check_gate(who).is_err() {
            return None;
        }
        let s = self.s.borrow();
        let granules = s.granules(blocks);
        let range = s.blocks(&granules);
        let paused = (s.paused > 0 || self.brakes.closed().is_some()) && who == Who::Client;
        let in_use = s.production.runs(granules.clone()).next() == Some((granules, true));
        if paused || !in_use || !self.locks.is_free(&range) || s.retained.unknown_in(&range).is_some() {
            return None;
        }
        let epoch = s.epoch;
        let count = blocks.end - blocks.start;
        if s.slots.is_empty() && s.tail_for(epoch).is_none() {
            return Some(Way::Straight);
        }
        let mut staged = 0;
        for block in blocks.clone().map(Block) {
            if s.slots.has(block) || s.needs_save(block, epoch).ok()? {
                staged += 1;
            }
        }
        match staged {
            0 => Some(Way::Straight),
            // Of a granule in use, blocks that nobody wrote may be holes.
            all if all == count && s.shift() == 0 => Some(Way::Stage(epoch)),
            _ => None,
        }
    }

    /// Stages blocks of granules in use, if there is space for all that may follow.
    fn stage_now(self: &Rc<Self>, blocks: &Range<u64>, epoch: Epoch, data: &Bytes) -> bool {
        let count = blocks.end - blocks.start;
        let fits = {
            let s = self.s.borrow();
            s.slots.stage.is_some() && self.journal.has_room(count * s.slots.room())
        };
        let saved = self.s.borrow().slots.unsettled() as u64 + count;
        if !fits || !self.save.has_room(saved) || !self.has_reserve(count) || !self.may_stage(count) {
            return false;
        }
        let size = self.geometry().block_size as usize;
        for (block, part) in blocks.clone().zip(data.chunks(size)) {
            let seq = self.journal.take_seq();
            let staged = self.s.borrow_mut().slots.put(seq, Block(block), epoch, part);
            debug_assert!(staged, "there was room");
            if !staged {
                return false;
            }
        }
        self.found_space();
        self.kick_settler();
        self.kick_checkpoint();
        true
    }
}
